//! Response heads and body framing, to bytes. Framing is decided here and never copied.

use bytes::{BufMut, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, Method, StatusCode, Version};
use http_body::SizeHint;

/// How the end of a response's body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// There is no body, whatever the fields say.
    None,
    Length(u64),
    Chunked,
    /// By the end of the connection, for HTTP/1.0.
    Close,
}

/// What of the request a response's framing depends on.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) version: Version,
    pub(super) takes_trailers: bool,
}

impl Asked {
    pub(super) fn ending(&self, status: StatusCode, size: &SizeHint) -> Ending {
        if self.method == Method::HEAD
            || status.is_informational()
            || status == StatusCode::NO_CONTENT
            || status == StatusCode::NOT_MODIFIED
        {
            Ending::None
        } else if let Some(length) = size.exact() {
            Ending::Length(length)
        } else if self.version == Version::HTTP_10 {
            Ending::Close
        } else {
            Ending::Chunked
        }
    }
}

/// Writes a head. `close` announces that the connection ends with it.
pub(super) fn head(
    out: &mut BytesMut,
    status: StatusCode,
    fields: &HeaderMap,
    ending: Ending,
    asked: &Asked,
    close: bool,
) {
    out.reserve(64 + fields.len() * 48);
    status_line(out, status);
    for (name, value) in fields {
        let skip = match *name {
            CONNECTION | TRANSFER_ENCODING => true,
            // Of a response without body it tells the length the body would have.
            CONTENT_LENGTH => ending != Ending::None || status == StatusCode::NO_CONTENT,
            TRAILER => ending != Ending::Chunked || !asked.takes_trailers,
            _ => false,
        };
        if !skip {
            field(out, name, value.as_bytes());
        }
    }
    match ending {
        Ending::None | Ending::Close => {}
        Ending::Length(length) => field(out, &CONTENT_LENGTH, decimal(length, &mut [0; 20])),
        Ending::Chunked => field(out, &TRANSFER_ENCODING, b"chunked"),
    }
    if status == StatusCode::SWITCHING_PROTOCOLS && fields.contains_key(UPGRADE) {
        field(out, &CONNECTION, b"upgrade");
    } else if close {
        field(out, &CONNECTION, b"close");
    } else if asked.version == Version::HTTP_10 {
        field(out, &CONNECTION, b"keep-alive");
    }
    out.put_slice(b"\r\n");
}

/// Writes an interim head (1xx).
pub(super) fn interim(out: &mut BytesMut, status: StatusCode, fields: &HeaderMap) {
    status_line(out, status);
    for (name, value) in fields {
        if *name != CONTENT_LENGTH {
            field(out, name, value.as_bytes());
        }
    }
    out.put_slice(b"\r\n");
}

/// Begins a chunk; its data and CR LF follow.
pub(super) fn chunk_size(out: &mut BytesMut, size: usize) {
    let mut digits = [0; 16];
    let mut at = digits.len();
    let mut left = size;
    loop {
        at = at.saturating_sub(1);
        if let (Some(digit), Some(value)) = (digits.get_mut(at), b"0123456789abcdef".get(left & 15)) {
            *digit = *value;
        }
        left >>= 4;
        if left == 0 {
            break;
        }
    }
    out.put_slice(digits.get(at..).unwrap_or_default());
    out.put_slice(b"\r\n");
}

/// Ends a chunked body with the trailers that were announced, if the client takes any.
pub(super) fn last_chunk(out: &mut BytesMut, trailers: Option<&HeaderMap>, announced: &[HeaderName]) {
    out.put_slice(b"0\r\n");
    for (name, value) in trailers.into_iter().flatten() {
        if announced.contains(name) {
            field(out, name, value.as_bytes());
        }
    }
    out.put_slice(b"\r\n");
}

/// The names a `Trailer` field announces, when the client takes trailers.
pub(super) fn announced(fields: &HeaderMap, asked: &Asked) -> Vec<HeaderName> {
    if !asked.takes_trailers {
        return Vec::new();
    }
    fields
        .get_all(TRAILER)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect()
}

fn status_line(out: &mut BytesMut, status: StatusCode) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
}

fn field(out: &mut BytesMut, name: &HeaderName, value: &[u8]) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at = at.saturating_sub(1);
        if let Some(digit) = digits.get_mut(at) {
            *digit = b'0' + (number % 10) as u8;
        }
        number /= 10;
        if number == 0 {
            break;
        }
    }
    digits.get(at..).unwrap_or_default()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_they_are() {
        for number in [0, 7, 10, 255, 4096, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
        for size in [1, 15, 16, 255, 65536, usize::MAX] {
            let mut out = BytesMut::new();
            chunk_size(&mut out, size);
            assert_eq!(out, format!("{size:x}\r\n"));
        }
    }

    #[test]
    fn framing_is_written_once_and_never_copied() {
        let asked = Asked { method: Method::GET, version: Version::HTTP_11, takes_trailers: false };
        let mut fields = HeaderMap::new();
        fields.insert(CONTENT_LENGTH, "99".parse().unwrap());
        fields.insert(TRANSFER_ENCODING, "gzip".parse().unwrap());
        let text = |ending, close| {
            let mut out = BytesMut::new();
            head(&mut out, StatusCode::OK, &fields, ending, &asked, close);
            String::from_utf8(out.to_vec()).unwrap()
        };
        assert_eq!(text(Ending::Length(5), false), "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n");
        assert_eq!(
            text(Ending::Chunked, true),
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        );
        assert_eq!(text(Ending::None, false), "HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n");
    }
}
