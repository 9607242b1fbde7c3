//! Response heads, to bytes. Framing is decided here and never copied.

use bytes::{BufMut, BytesMut};
use foregate_exchange::http1::{self, Ending, decimal, field};
use http::header::{CONNECTION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, Method, StatusCode, Version};
use http_body::SizeHint;

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

/// The names a `Trailer` field announces, when the client takes trailers.
pub(super) fn announced(fields: &HeaderMap, asked: &Asked) -> Vec<HeaderName> {
    if !asked.takes_trailers {
        return Vec::new();
    }
    http1::announced(fields)
}

fn status_line(out: &mut BytesMut, status: StatusCode) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

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
