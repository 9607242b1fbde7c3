//! Messages: from fields to a request, from a response to fields (RFC 9114, section 4).

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING, UPGRADE};
use http::uri::{Authority, PathAndQuery, Scheme, Uri};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, request};

use super::Violation;
use super::frame::{Header, Kind};
use super::qpack::{Encoder, Fields, Problem, Pseudos};
use super::varint;
use crate::code::Code;

static KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
static PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// A request's head, held to the rules.
#[derive(Debug)]
pub struct Head {
    pub parts: request::Parts,
    /// The `:protocol` of an extended CONNECT (RFC 9220).
    pub protocol: Option<Bytes>,
    /// What Content-Length announces.
    pub content_length: Option<u64>,
}

/// Makes fields a request.
///
/// # Errors
/// The request is malformed (RFC 9114, section 4.1.2).
pub fn request(fields: Fields) -> Result<Head, Violation> {
    let Fields { pseudos, headers } = fields;
    let malformed = Violation::malformed;
    if pseudos.status.is_some() {
        return Err(malformed("a request with :status"));
    }
    let method = pseudos.method.as_deref().ok_or(malformed("a request without :method"))?;
    let method = Method::from_bytes(method).map_err(|_| malformed("the :method is not valid"))?;
    connection_fields(&headers)?;
    let content_length = content_length(&headers)?;
    let uri = target(&method, &pseudos, &headers)?;

    let (mut parts, ()) = Request::new(()).into_parts();
    parts.method = method;
    parts.uri = uri;
    parts.version = Version::HTTP_3;
    parts.headers = headers;
    Ok(Head { parts, protocol: pseudos.protocol, content_length })
}

/// Makes fields trailers.
///
/// # Errors
/// The message is malformed: trailers have no pseudo-header fields.
pub fn trailers(fields: Fields) -> Result<HeaderMap, Violation> {
    if !fields.pseudos.is_empty() {
        return Err(Violation::malformed("a pseudo-header field in trailers"));
    }
    connection_fields(&fields.headers)?;
    Ok(fields.headers)
}

/// What a field section that cannot be taken means for its stream or its connection.
impl From<Problem> for Violation {
    fn from(problem: Problem) -> Violation {
        let failed = |reason| Violation::connection(Code::QPACK_DECOMPRESSION_FAILED, reason);
        match problem {
            Problem::Malformed(reason) => Violation::malformed(reason),
            Problem::TooLarge => {
                Violation::stream(Code::H3_EXCESSIVE_LOAD, "a field section larger than announced")
            }
            Problem::Integer => failed("an integer of the field section is too large"),
            Problem::Huffman => failed("a string of the field section is not valid Huffman code"),
            Problem::Truncated => failed("the field section ends within a field line"),
            Problem::StaticIndex => failed("there is no such entry in the static table"),
            Problem::Base => failed("the base of the field section is negative"),
            Problem::Dynamic => failed("a reference to the dynamic table, whose capacity is 0"),
        }
    }
}

/// Section 4.3.1: which pseudo-header fields a request has, and what they make.
fn target(method: &Method, pseudos: &Pseudos, headers: &HeaderMap) -> Result<Uri, Violation> {
    let invalid = Violation::malformed;
    let malformed = |reason| Err(invalid(reason));
    let authority = match pseudos.authority.clone() {
        None => None,
        Some(authority) if authority.is_empty() => return malformed("the :authority is empty"),
        Some(authority) if authority.contains(&b'@') => return malformed("the :authority names a user"),
        Some(authority) => match Authority::from_maybe_shared(authority) {
            Ok(authority) => Some(authority),
            Err(_) => return malformed("the :authority is not valid"),
        },
    };
    let mut target = http::uri::Parts::default();
    if method == Method::CONNECT && pseudos.protocol.is_none() {
        // Section 4.4.
        if pseudos.scheme.is_some() || pseudos.path.is_some() {
            return malformed("a CONNECT with :scheme or :path");
        }
        target.authority = authority;
        if target.authority.is_none() {
            return malformed("a CONNECT without :authority");
        }
        return Uri::from_parts(target).map_err(|_| invalid("the :authority is not valid"));
    }
    if pseudos.protocol.is_some() && method != Method::CONNECT {
        return malformed(":protocol in a request that is not CONNECT");
    }
    let Some(scheme) = &pseudos.scheme else { return malformed("a request without :scheme") };
    let scheme = match &scheme[..] {
        b"https" => Scheme::HTTPS,
        b"http" => Scheme::HTTP,
        other if !other.first().is_some_and(u8::is_ascii_alphabetic) => {
            return malformed("the :scheme is not valid");
        }
        other => Scheme::try_from(other).map_err(|_| invalid("the :scheme is not valid"))?,
    };
    let path = match pseudos.path.clone() {
        None => return malformed("a request without :path"),
        Some(path) if path.is_empty() => return malformed("the :path is empty"),
        Some(path) if path == "*" && method != Method::OPTIONS => {
            return malformed("the :path * belongs to OPTIONS");
        }
        Some(path) if path != "*" && !path.starts_with(b"/") => {
            return malformed("the :path does not begin with a slash");
        }
        // It would not be part of what is forwarded.
        Some(path) if path.contains(&b'#') => return malformed("the :path has a fragment"),
        Some(path) => path,
    };
    let path = PathAndQuery::from_maybe_shared(path).map_err(|_| invalid("the :path is not valid"))?;
    match authority {
        Some(authority) => {
            target.scheme = Some(scheme);
            target.authority = Some(authority);
        }
        None if pseudos.protocol.is_some() => return malformed("an extended CONNECT without :authority"),
        None if !headers.contains_key(HOST) => return malformed("a request without :authority and Host"),
        None => {}
    }
    target.path_and_query = Some(path);
    Uri::from_parts(target).map_err(|_| invalid("the request's target is not valid"))
}

/// Section 4.2: the fields that belong to an HTTP/1.1 connection.
fn connection_fields(headers: &HeaderMap) -> Result<(), Violation> {
    if headers.keys().any(of_connection) {
        return Err(Violation::malformed("a field that belongs to an HTTP/1.1 connection"));
    }
    if headers.get_all(TE).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"trailers")) {
        return Err(Violation::malformed("a TE field that is not \"trailers\""));
    }
    Ok(())
}

fn of_connection(name: &HeaderName) -> bool {
    [&CONNECTION, &TRANSFER_ENCODING, &UPGRADE, &KEEP_ALIVE, &PROXY_CONNECTION].contains(&name)
}

fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Violation> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let digits = |value: &HeaderValue| {
        let text = value.to_str().ok()?;
        // `parse` alone would take a plus sign.
        text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
    };
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(None),
        (Some(length), None) => {
            digits(length).map(Some).ok_or(Violation::malformed("the Content-Length is not a number"))
        }
        (Some(_), Some(_)) => Err(Violation::malformed("the Content-Length stands there twice")),
    }
}

/// Appends a HEADERS frame with a response's head.
pub fn response(status: StatusCode, headers: &HeaderMap, out: &mut Vec<u8>) {
    headers_frame(out, |encoder| {
        encoder.status(status);
        fields(headers, encoder);
    });
}

/// Appends a HEADERS frame with trailers.
pub fn response_trailers(trailers: &HeaderMap, out: &mut Vec<u8>) {
    headers_frame(out, |encoder| fields(trailers, encoder));
}

fn fields(headers: &HeaderMap, encoder: &mut Encoder<'_>) {
    for (name, value) in headers {
        if !of_connection(name) {
            encoder.field(name.as_str(), value.as_bytes());
        }
    }
}

/// The frame's length is known only after its payload, so room for two bytes is left, which is enough for
/// all but enormous heads.
fn headers_frame(out: &mut Vec<u8>, write: impl FnOnce(&mut Encoder<'_>)) {
    const ROOM: usize = 2;
    varint::encode(Kind::HEADERS.0, out);
    let start = out.len();
    out.extend_from_slice(&[0; ROOM]);
    write(&mut Encoder::new(out));
    let length = out.len() - start - ROOM;
    if length < 1 << 14 {
        let bytes = (length as u16 | 0x4000).to_be_bytes();
        for (to, from) in out.iter_mut().skip(start).zip(bytes) {
            *to = from;
        }
    } else {
        let mut prefix = Vec::new();
        varint::encode(length as u64, &mut prefix);
        out.splice(start..start + ROOM, prefix);
    }
}

/// Appends the header of a DATA frame of so many bytes.
pub fn data_header(length: u64, out: &mut Vec<u8>) {
    Header { kind: Kind::DATA, length }.encode(out);
}

#[cfg(test)]
mod tests {
    use super::super::qpack::decode;
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Result<Fields, Violation> {
        let mut section = Vec::new();
        {
            let mut encoder = Encoder::new(&mut section);
            for (name, value) in list {
                encoder.field(name, value.as_bytes());
            }
        }
        Ok(decode(&section, 65536)?)
    }

    /// A usual request in which the given fields stand instead of or beside its own; "-" takes one away.
    fn get(changes: &[(&str, &str)]) -> Result<Head, Violation> {
        let usual =
            [(":method", "GET"), (":scheme", "https"), (":path", "/a?b"), (":authority", "shop.test")];
        let kept = usual.iter().filter(|(name, _)| changes.iter().all(|(changed, _)| changed != name));
        let mut list: Vec<_> =
            kept.chain(changes.iter().filter(|(_, value)| *value != "-")).copied().collect();
        list.sort_by_key(|(name, _)| !name.starts_with(':'));
        request(fields(&list)?)
    }

    #[test]
    fn a_request() {
        let head = get(&[("accept", "*/*"), ("content-length", "12"), ("te", "trailers")]).unwrap();
        assert_eq!(head.parts.uri, "https://shop.test/a?b");
        assert_eq!(head.parts.method, Method::GET);
        assert_eq!(head.content_length, Some(12));
        assert_eq!(head.parts.headers.len(), 3);
        let head = get(&[(":authority", "-"), ("host", "shop.test")]).unwrap();
        assert_eq!(head.parts.uri, "/a?b");
        let head = get(&[(":method", "OPTIONS"), (":path", "*")]).unwrap();
        assert_eq!(head.parts.uri.path(), "*");
    }

    #[test]
    fn connect_in_both_forms() {
        let head =
            request(fields(&[(":method", "CONNECT"), (":authority", "shop.test:443")]).unwrap()).unwrap();
        assert_eq!(head.parts.uri, "shop.test:443");
        let head = get(&[(":method", "CONNECT"), (":protocol", "websocket")]).unwrap();
        assert_eq!(head.protocol.unwrap(), "websocket");
        assert_eq!(head.parts.uri, "https://shop.test/a?b");
    }

    #[test]
    fn malformed_requests_are_refused() {
        let cases: &[&[(&str, &str)]] = &[
            &[(":method", "-")],
            &[(":scheme", "-")],
            &[(":path", "-")],
            &[(":authority", "-")],
            &[(":method", "G E T")],
            &[(":scheme", "1http")],
            &[(":path", "")],
            &[(":path", "*")],
            &[(":path", "a")],
            &[(":path", "/a#b")],
            &[(":path", "/a b")],
            &[(":authority", "")],
            &[(":authority", "user@shop.test")],
            &[(":authority", "shop test")],
            &[(":status", "200")],
            &[(":protocol", "websocket")],
            &[(":method", "CONNECT")],
            &[(":method", "CONNECT"), (":protocol", "websocket"), (":authority", "-"), ("host", "shop.test")],
            &[("connection", "close")],
            &[("keep-alive", "1")],
            &[("proxy-connection", "close")],
            &[("transfer-encoding", "chunked")],
            &[("upgrade", "websocket")],
            &[("te", "gzip")],
            &[("content-length", "+1")],
            &[("content-length", "1"), ("content-length", "1")],
            &[("content-length", "99999999999999999999")],
        ];
        for case in cases {
            let violation = get(case).expect_err(&format!("{case:?}"));
            assert_eq!(violation, Violation::malformed(violation.reason), "{case:?}");
        }
        assert!(trailers(fields(&[(":path", "/")]).unwrap()).is_err());
    }

    #[test]
    fn a_response_of_any_size_can_be_read() {
        for size in [0, 10, 20_000] {
            let mut headers = HeaderMap::new();
            headers.insert("x-size", HeaderValue::try_from("~".repeat(size)).unwrap());
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
            let mut out = Vec::new();
            response(StatusCode::IM_A_TEAPOT, &headers, &mut out);
            let (header, taken) = Header::decode(&out).unwrap();
            assert_eq!(header.kind, Kind::HEADERS);
            assert_eq!(header.length, (out.len() - taken) as u64);
            let fields = decode(&out[taken..], 65536).unwrap();
            assert_eq!(fields.pseudos.status.unwrap(), "418");
            assert_eq!(fields.headers.len(), 1);
        }
    }
}
