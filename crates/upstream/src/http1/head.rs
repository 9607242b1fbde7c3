//! Heads as HTTP/1.1 says them: requests to bytes, bytes to responses.

use std::mem::MaybeUninit;

use bytes::{BufMut, Bytes, BytesMut};
use foregate_exchange::http1::{Chunked, Ending, Framing, decimal, field};
use foregate_exchange::{Failure, Kind, head};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

use crate::client::Outgoing;
use crate::response::check_status;

/// A VM's response head may have this many fields.
const MAX_FIELDS: usize = 256;

/// How a request's body is framed: from what it knows of its length, whatever its fields say. `None`: there is
/// no body.
pub(super) fn ending(method: &Method, body: Option<Option<u64>>) -> Ending {
    match body {
        Some(Some(length)) => Ending::Length(length),
        Some(None) => Ending::Chunked,
        // Where a body is usual, its absence is said (RFC 9110, section 8.6); some servers insist with 411.
        None if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => Ending::Length(0),
        None => Ending::None,
    }
}

/// Writes a request's head.
pub(super) fn request(out: &mut BytesMut, outgoing: &Outgoing, ending: Ending) {
    let target = outgoing.target.as_str();
    out.reserve(64 + target.len() + outgoing.authority.len() + outgoing.headers.len() * 48);
    out.put_slice(outgoing.method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    field(out, &HOST, outgoing.authority.as_bytes());
    for (name, value) in &outgoing.headers {
        let ours = match *name {
            HOST | CONTENT_LENGTH | TRANSFER_ENCODING | CONNECTION | UPGRADE | TE => true,
            // There are none without chunks.
            TRAILER => ending != Ending::Chunked,
            _ => false,
        };
        if !ours {
            field(out, name, value.as_bytes());
        }
    }
    match ending {
        Ending::None | Ending::Close => {}
        Ending::Length(length) => field(out, &CONTENT_LENGTH, decimal(length, &mut [0; 20])),
        Ending::Chunked => field(out, &TRANSFER_ENCODING, b"chunked"),
    }
    if let Some(protocol) = &outgoing.upgrade {
        field(out, &CONNECTION, b"upgrade");
        field(out, &UPGRADE, protocol.as_bytes());
    } else if outgoing.ask_trailers {
        field(out, &CONNECTION, b"te");
        field(out, &TE, b"trailers");
    }
    out.put_slice(b"\r\n");
}

/// A response head, and where its body ends.
pub(super) struct Answered {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    /// `None`: at the end of the connection.
    pub(super) framing: Option<Framing>,
    /// The VM keeps the connection, and nothing about its framing was odd.
    pub(super) keeps: bool,
}

/// Parses a complete head, of an interim response too. Values share its memory.
///
/// # Errors
/// [`Kind::BadResponse`]: it is not HTTP, or could mean two things.
pub(super) fn response(head: Bytes, head_only: bool) -> Result<Answered, Failure> {
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
    check_status(status)?;
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
