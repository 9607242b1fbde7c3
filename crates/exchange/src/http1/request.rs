//! Request heads: bytes to [`Request`], refusing what two parties could read differently (RFC 9112), and back.

use std::mem::MaybeUninit;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Scheme, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version};

use super::{Chunked, Ending, Framing, field};
use crate::head;

/// Fields of one head; more than browsers and their extensions ever send.
const MAX_FIELDS: usize = 128;

/// A request head and what it says about its connection.
#[derive(Debug)]
pub struct Head {
    pub request: Request<()>,
    pub framing: Framing,
    pub keep_alive: bool,
    /// The client waits for a 100 before it sends its body.
    pub expects: bool,
    pub takes_trailers: bool,
    /// The protocol the client asks to switch to, if we let it.
    pub upgrade: Option<HeaderValue>,
}

/// A head that is refused: the status, and the reason for client and log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: StatusCode,
    pub reason: &'static str,
}

const fn bad(reason: &'static str) -> Refusal {
    Refusal { status: StatusCode::BAD_REQUEST, reason }
}

/// Of a head that is longer than it may be.
#[must_use]
pub fn too_long(buffer: &[u8]) -> Refusal {
    // No line end where the limit ends: it is the target that is too long.
    if buffer.contains(&b'\n') {
        Refusal {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            reason: "the request head is larger than limits.request_head",
        }
    } else {
        Refusal {
            status: StatusCode::URI_TOO_LONG,
            reason: "the request line is larger than limits.request_head",
        }
    }
}

/// Parses a complete head. Values share its memory.
///
/// # Errors
/// It is not HTTP, or could mean two things.
pub fn parse(head: Bytes) -> Result<Head, Refusal> {
    let mut fields = [const { MaybeUninit::<httparse::Header<'_>>::uninit() }; MAX_FIELDS];
    let mut parsed = httparse::Request::new(&mut []);
    let status = httparse::ParserConfig::default()
        .parse_request_with_uninit_headers(&mut parsed, &head, &mut fields)
        .map_err(|error| unparsable(error, &head))?;
    if status != httparse::Status::Complete(head.len()) {
        return Err(bad("the request head ends in its middle"));
    }
    let version = match parsed.version {
        Some(0) => Version::HTTP_10,
        _ => Version::HTTP_11,
    };
    let method = Method::from_bytes(parsed.method.unwrap_or_default().as_bytes())
        .map_err(|_| bad("the method is not valid"))?;
    let target = parsed.path.unwrap_or_default();
    let uri = target_uri(&method, target, &head)?;

    let mut headers = HeaderMap::with_capacity(parsed.headers.len() + 6);
    for field in parsed.headers.iter() {
        let name =
            HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| bad("a field name is not valid"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
            .map_err(|_| bad("a field value holds a control character"))?;
        headers.append(name, value);
    }

    let framing = framing(&headers, version)?;
    let close = head::has_token(&headers, &CONNECTION, "close");
    let keep_alive =
        !close && (version == Version::HTTP_11 || head::has_token(&headers, &CONNECTION, "keep-alive"));
    let expects = version == Version::HTTP_11
        && headers.get(EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !expects {
        headers.remove(EXPECT);
    }
    let takes_trailers = version == Version::HTTP_11 && head::has_token(&headers, &TE, "trailers");
    let upgrade = upgrade(&headers, &method, version);

    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(Head { request, framing, keep_alive, expects, takes_trailers, upgrade })
}

fn unparsable(error: httparse::Error, head: &[u8]) -> Refusal {
    match error {
        httparse::Error::HeaderName => bad("a field name is not valid"),
        httparse::Error::HeaderValue => bad("a field value is not valid"),
        httparse::Error::NewLine => bad("a line does not end in CR LF"),
        httparse::Error::Token => bad("the request line is not valid"),
        httparse::Error::TooManyHeaders => Refusal {
            status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            reason: "the request head has more than 128 fields",
        },
        // A blank too many in the line is no version of HTTP.
        httparse::Error::Version if !names_version(head) => bad("the request line is not valid"),
        httparse::Error::Version => Refusal {
            status: StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            reason: "the HTTP version is not supported; use HTTP/1.1",
        },
        _ => bad("the request head is not valid"),
    }
}

/// Whether the request line is three words, the last of them HTTP with some version.
fn names_version(head: &[u8]) -> bool {
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    let version = words.nth(2).unwrap_or_default();
    version.starts_with(b"HTTP/") && words.next().is_none()
}

/// The request target in its four forms (RFC 9112, section 3.2).
fn target_uri(method: &Method, target: &str, head: &Bytes) -> Result<Uri, Refusal> {
    if *method == Method::CONNECT {
        return Err(Refusal {
            status: StatusCode::METHOD_NOT_ALLOWED,
            reason: "this gateway is not a forward proxy; CONNECT is not allowed",
        });
    }
    // A fragment is no part of a target, and the URI type would drop it silently.
    if target.contains('#') {
        return Err(bad("the request target holds a fragment"));
    }
    let uri = Uri::from_maybe_shared(head.slice_ref(target.as_bytes()))
        .map_err(|_| bad("the request target is not valid"))?;
    match (uri.scheme(), uri.authority()) {
        (None, None) if target.starts_with('/') || (target == "*" && *method == Method::OPTIONS) => Ok(uri),
        (Some(scheme), Some(authority)) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => {
            if authority.as_str().contains('@') {
                return Err(bad("the request target holds user information"));
            }
            Ok(uri)
        }
        _ => Err(bad("the request target is not valid")),
    }
}

/// Where the body ends (RFC 9112, section 6). Whatever could be read in two ways is refused.
fn framing(headers: &HeaderMap, version: Version) -> Result<Framing, Refusal> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(bad("Content-Length stands there twice"));
    }
    if !headers.contains_key(TRANSFER_ENCODING) {
        return length.map_or(Ok(Framing::None), |length| content_length(length).map(Framing::Length));
    }
    if length.is_some() {
        return Err(bad("Transfer-Encoding and Content-Length stand side by side"));
    }
    if version == Version::HTTP_10 {
        return Err(bad("HTTP/1.0 does not know Transfer-Encoding"));
    }
    let (mut fields, mut chunked) = (0, 0);
    for coding in headers.get_all(TRANSFER_ENCODING) {
        if coding.is_empty() {
            return Err(bad("Transfer-Encoding is empty"));
        }
        fields += 1;
        chunked += usize::from(coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    }
    match (fields, chunked) {
        (1, 1) => Ok(Framing::Chunked(Chunked::default())),
        (_, all) if all == fields => Err(bad("Transfer-Encoding stands there twice")),
        _ => Err(Refusal {
            status: StatusCode::NOT_IMPLEMENTED,
            reason: "the only transfer coding understood is chunked",
        }),
    }
}

/// Digits and nothing else: no sign, no list, no blank.
fn content_length(value: &HeaderValue) -> Result<u64, Refusal> {
    let digits = value.as_bytes();
    let valid = !digits.is_empty() && digits.len() <= 18 && digits.iter().all(u8::is_ascii_digit);
    let length = value.to_str().ok().filter(|_| valid).and_then(|text| text.parse().ok());
    length.ok_or(bad("Content-Length is not a number"))
}

fn upgrade(headers: &HeaderMap, method: &Method, version: Version) -> Option<HeaderValue> {
    let protocol = headers.get(UPGRADE)?;
    // h2c by upgrade is obsolete (RFC 9113, section 3.1) and would pass requests unseen.
    let refused = head::has_token(headers, &UPGRADE, "h2c");
    let asked = head::has_token(headers, &CONNECTION, "upgrade");
    (asked && !refused && *method == Method::GET && version == Version::HTTP_11).then(|| protocol.clone())
}

/// How a request's body is framed: from what it knows of its length, whatever its fields say. `None`: there is
/// no body.
#[must_use]
pub fn ending(method: &Method, body: Option<Option<u64>>) -> Ending {
    match body {
        Some(Some(length)) => Ending::Length(length),
        Some(None) => Ending::Chunked,
        // Where a body is usual, its absence is said (RFC 9110, section 8.6); some servers insist with 411.
        None if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => Ending::Length(0),
        None => Ending::None,
    }
}

/// What is asked of a VM.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'a> {
    pub method: &'a Method,
    pub target: &'a str,
    pub authority: &'a HeaderValue,
    /// What of them is about framing or the connection is not written.
    pub headers: &'a HeaderMap,
    pub ending: Ending,
    /// The protocol to leave HTTP for.
    pub upgrade: Option<&'a HeaderValue>,
    /// Asks for trailers.
    pub ask_trailers: bool,
}

/// Writes a head.
pub fn write(out: &mut BytesMut, asking: &Asking<'_>) {
    let Asking { method, target, authority, headers, ending, upgrade, ask_trailers } = *asking;
    out.reserve(64 + target.len() + authority.len() + headers.len() * 48);
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    out.put_slice(target.as_bytes());
    out.put_slice(b" HTTP/1.1\r\n");
    field(out, &HOST, authority.as_bytes());
    for (name, value) in headers {
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
    ending.announce(out);
    if let Some(protocol) = upgrade {
        field(out, &CONNECTION, b"upgrade");
        field(out, &UPGRADE, protocol.as_bytes());
    } else if ask_trailers {
        field(out, &CONNECTION, b"te");
        field(out, &TE, b"trailers");
    }
    out.put_slice(b"\r\n");
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    fn head(text: &'static str) -> Result<Head, u16> {
        parse(Bytes::from_static(text.as_bytes())).map_err(|refusal| refusal.status.as_u16())
    }

    #[test]
    fn an_ordinary_head() {
        let head = head("GET /a?b HTTP/1.1\r\nHost: x\r\nCookie: a=1\r\n\r\n").unwrap();
        assert_eq!(head.request.uri().path_and_query().unwrap(), "/a?b");
        assert!(head.keep_alive && matches!(head.framing, Framing::None));
    }

    #[test]
    fn what_two_parties_could_read_differently_is_refused() {
        let cases = [
            ("GET / HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : x\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\0y\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: x\rX: y\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n: x\r\n\r\n", 400),
            ("GET  / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET /#f HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET http://u@x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
            ("CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 1, 2\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", 501),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
            ("GET /a b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
            ("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        ];
        for (text, status) in cases {
            assert_eq!(head(text).map(|_| ()), Err(status), "{text:?}");
        }
    }

    #[test]
    fn what_is_too_long_is_told() {
        assert_eq!(too_long(b"GET /aaaaaaaaaaa").status, StatusCode::URI_TOO_LONG);
        assert_eq!(too_long(b"GET /\r\nA: bbbb").status, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
}
