//! Response heads: bytes to fields and framing, and back. Framing is decided here and never copied.

use std::mem::MaybeUninit;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use http_body::SizeHint;

use super::{Chunked, Ending, Framing, field};
use crate::{Failure, Kind, head};

/// A response head may have this many fields.
const MAX_FIELDS: usize = 256;

/// What of the request a response's framing depends on.
#[derive(Clone, Debug)]
pub struct Asked {
    pub method: Method,
    pub version: Version,
    pub takes_trailers: bool,
}

impl Asked {
    #[must_use]
    pub fn ending(&self, status: StatusCode, size: &SizeHint) -> Ending {
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
pub fn write(
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
    ending.announce(out);
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
pub fn write_interim(out: &mut BytesMut, status: StatusCode, fields: &HeaderMap) {
    status_line(out, status);
    for (name, value) in fields {
        if *name != CONTENT_LENGTH {
            field(out, name, value.as_bytes());
        }
    }
    out.put_slice(b"\r\n");
}

fn status_line(out: &mut BytesMut, status: StatusCode) {
    out.put_slice(b"HTTP/1.1 ");
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    out.put_slice(b"\r\n");
}

/// A response head, and where its body ends.
#[derive(Debug)]
pub struct Answered {
    pub status: StatusCode,
    pub headers: HeaderMap,
    /// `None`: at the end of the connection.
    pub framing: Option<Framing>,
    /// The VM keeps the connection, and nothing about its framing was odd.
    pub keeps: bool,
}

/// Parses a complete head, of an interim response too. Values share its memory.
///
/// # Errors
/// [`Kind::BadResponse`]: it is not HTTP, or could mean two things.
pub fn parse(head: Bytes, head_only: bool) -> Result<Answered, Failure> {
    let mut fields = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Response::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut parsed, &head, &mut fields)
        .map_err(|error| Failure::because(Kind::BadResponse, error))?;
    if status != httparse::Status::Complete(head.len()) {
        return Err(bad("its head ends in its middle"));
    }
    let version = if parsed.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let status = parsed
        .code
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or_else(|| bad("it has no status"))?;
    let mut headers = HeaderMap::with_capacity(parsed.headers.len() + 4);
    for field in parsed.headers.iter() {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| bad("a field name is not valid"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| bad("a field value is not valid"))?;
        headers.append(name, value);
    }
    let close = version == Version::HTTP_10 || head::has_token(&headers, &CONNECTION, "close");
    let (framing, odd) = framing(&mut headers, status, version, head_only)?;
    let keeps = !close && !odd && framing.is_some();
    Ok(Answered { status, headers, framing, keeps })
}

/// Where a response's body ends (RFC 9112, section 6.3), and whether what follows on its connection is not to be
/// trusted. Of the length only that of a body which is not sent is left in the fields.
fn framing(
    headers: &mut HeaderMap,
    status: StatusCode,
    version: Version,
    head_only: bool,
) -> Result<(Option<Framing>, bool), Failure> {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coded = match (codings.next(), codings.next()) {
        (None, _) => false,
        (Some(coding), None)
            if coding.as_bytes().eq_ignore_ascii_case(b"chunked") && version == Version::HTTP_11 =>
        {
            true
        }
        _ => return Err(bad("its transfer coding is not understood")),
    };
    let said = headers.contains_key(CONTENT_LENGTH);
    let length = content_length(headers)?;
    if head_only || status == StatusCode::NOT_MODIFIED {
        match length.filter(|_| !coded) {
            Some(length) => _ = headers.insert(CONTENT_LENGTH, HeaderValue::from(length)),
            None => _ = headers.remove(CONTENT_LENGTH),
        }
        return Ok((Some(Framing::None), coded && said));
    }
    // What the body's length is the body knows.
    headers.remove(CONTENT_LENGTH);
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        // A body that was announced may follow all the same.
        return Ok((Some(Framing::None), coded || length.is_some_and(|length| length > 0)));
    }
    if coded {
        return Ok((Some(Framing::Chunked(Chunked::default())), said));
    }
    Ok((length.map(Framing::Length), false))
}

/// The one length that all fields and their items name.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Failure> {
    let mut length = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let text = value.to_str().map_err(|_| bad("its Content-Length is not a number"))?;
        for item in text.split(',').map(str::trim) {
            let digits = !item.is_empty() && item.bytes().all(|byte| byte.is_ascii_digit());
            let number: Option<u64> = item.parse().ok().filter(|_| digits);
            let number = number.ok_or_else(|| bad("its Content-Length is not a number"))?;
            if length.replace(number).is_some_and(|before| before != number) {
                return Err(bad("its Content-Length fields differ"));
            }
        }
    }
    Ok(length)
}

fn bad(reason: &'static str) -> Failure {
    Failure::because(Kind::BadResponse, reason)
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
            write(&mut out, StatusCode::OK, &fields, ending, &asked, close);
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
