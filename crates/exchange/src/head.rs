//! Hygiene of request and response heads (RFC 9110, section 7): what is for one connection only stays on
//! it, what is said about the client is true, and a host is named exactly once.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use http::header::{
    ACCEPT, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, COOKIE, DATE, EXPECT, FORWARDED, HOST,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RETRY_AFTER, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    UPGRADE, VIA, WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Version};

pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub const EARLY_DATA: HeaderName = HeaderName::from_static("early-data");
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub const X_CLIENT_CERT_SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
pub const X_CLIENT_CERT_SAN: HeaderName = HeaderName::from_static("x-client-cert-san");
pub const X_CLIENT_CERT_FINGERPRINT: HeaderName = HeaderName::from_static("x-client-cert-fingerprint");

/// Why a head is refused with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostProblem {
    #[error("the request names no host")]
    Missing,
    #[error("the request names a host more than once")]
    Double,
    #[error("the Host field and the request target name different hosts")]
    Conflict,
    #[error("the Host field is not text")]
    NotText,
}

/// The one authority a request names, by target or by `Host` (RFC 9110, section 7.2).
///
/// `None` only for HTTP/1.0, which knows requests without.
///
/// # Errors
/// None, two, or two different ones.
pub fn authority(parts: &Parts) -> Result<Option<HeaderValue>, HostProblem> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(HostProblem::Double);
    }
    match (parts.uri.authority().map(http::uri::Authority::as_str), host) {
        (Some(target), Some(host)) if !target.as_bytes().eq_ignore_ascii_case(host.as_bytes()) => {
            Err(HostProblem::Conflict)
        }
        // RFC 9112, section 3.2: HTTP/1.1 needs the field even beside an absolute target.
        (Some(_), None) if parts.version == Version::HTTP_11 => Err(HostProblem::Missing),
        (_, Some(host)) => Ok(Some(host.clone())),
        (Some(target), None) => HeaderValue::from_str(target).map(Some).map_err(|_| HostProblem::NotText),
        (None, None) if parts.version <= Version::HTTP_10 => Ok(None),
        (None, None) => Err(HostProblem::Missing),
    }
}

/// Whether a comma-separated field contains a token, without regard to case.
#[must_use]
pub fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}

/// Removes what is meant for one connection only: the fixed fields and those `Connection` names.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(',').map(str::trim))
            // What nearly all of them say names what is removed anyway.
            .filter(|name| {
                !["close", "keep-alive", "upgrade"].iter().any(|word| name.eq_ignore_ascii_case(word))
            })
            .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
            // A peer must not be able to take away what every message needs, nor who it has proven to be.
            .filter(|name| *name != HOST && *name != CONTENT_LENGTH && !is_identity(name.as_str()))
            .collect();
        for name in named {
            headers.remove(name);
        }
    }
    // To look at the few names there are is cheaper than to ask for each of these.
    let fixed: Vec<HeaderName> = headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    for name in fixed {
        headers.remove(name);
    }
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    match *name {
        CONNECTION | PROXY_AUTHENTICATE | PROXY_AUTHORIZATION | TE | TRANSFER_ENCODING | UPGRADE => true,
        _ => matches!(name.as_str(), "close" | "keep-alive" | "proxy-connection" | "http2-settings"),
    }
}

/// Removes from a trailer section what may not stand there (RFC 9110, section 6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    for name in [
        HOST,
        CONTENT_LENGTH,
        CONTENT_TYPE,
        TRAILER,
        EXPECT,
        COOKIE,
        SET_COOKIE,
        WWW_AUTHENTICATE,
        http::header::AUTHORIZATION,
        http::header::CONTENT_ENCODING,
        http::header::CONTENT_RANGE,
        http::header::RANGE,
        http::header::CACHE_CONTROL,
        ACCEPT,
        DATE,
        FORWARDED,
        X_FORWARDED_FOR,
        X_FORWARDED_HOST,
        X_FORWARDED_PROTO,
    ] {
        trailers.remove(name);
    }
    identify(trailers, None);
}

/// The client's address as far as trusted peers vouch for it: from the right of `X-Forwarded-For`, the
/// first address that is not itself a trusted proxy.
#[must_use]
pub fn client_ip(headers: &HeaderMap, peer: IpAddr, trusted: impl Fn(IpAddr) -> bool) -> IpAddr {
    let mut client = peer;
    for value in headers.get_all(X_FORWARDED_FOR).iter().rev() {
        let Ok(text) = value.to_str() else { return client };
        for item in text.rsplit(',') {
            if !trusted(client) {
                return client;
            }
            let Some(address) = forwarded_address(item.trim()) else { return client };
            client = address;
        }
    }
    client
}

/// An item of `X-Forwarded-For`: an address, sometimes with a port, sometimes in brackets.
fn forwarded_address(item: &str) -> Option<IpAddr> {
    if let Ok(address) = item.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    if let Ok(address) = item.parse::<std::net::SocketAddr>() {
        return Some(address.ip().to_canonical());
    }
    let bare = item.strip_prefix('[')?.strip_suffix(']')?;
    bare.parse::<IpAddr>().ok().map(|address| address.to_canonical())
}

/// What is true of a request's origin, for [`forwarded`].
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The address of the connection's peer.
    pub peer: &'a HeaderValue,
    /// Whether what the peer says of those before it is believed.
    pub trusted: bool,
    /// "http" or "https".
    pub scheme: &'static str,
    /// As the client named it, with a port if it gave one.
    pub authority: &'a HeaderValue,
    pub version: Version,
}

/// Sets `X-Forwarded-For`, `-Proto`, `-Host` and `Via` for the VM.
///
/// What an untrusted peer says of the kind is dropped first, also under names that CGI-like servers
/// cannot tell apart (`X_Forwarded_For`).
pub fn forwarded(headers: &mut HeaderMap, origin: &Origin<'_>) {
    if origin.trusted {
        let mut chain = Vec::new();
        for value in headers.get_all(X_FORWARDED_FOR).iter().filter(|value| value.to_str().is_ok()) {
            chain.extend_from_slice(value.as_bytes());
            chain.extend_from_slice(b", ");
        }
        chain.extend_from_slice(origin.peer.as_bytes());
        // Pieces of valid values make one; if they did not, what we know ourselves would be left.
        let chain = HeaderValue::from_maybe_shared(bytes::Bytes::from(chain));
        headers.insert(X_FORWARDED_FOR, chain.unwrap_or_else(|_| origin.peer.clone()));
        if !headers.contains_key(X_FORWARDED_PROTO) {
            headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(origin.scheme));
        }
        if !headers.contains_key(X_FORWARDED_HOST) {
            headers.insert(X_FORWARDED_HOST, origin.authority.clone());
        }
    } else {
        drop_claims(headers);
        headers.insert(X_FORWARDED_FOR, origin.peer.clone());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(origin.scheme));
        headers.insert(X_FORWARDED_HOST, origin.authority.clone());
    }
    let via = match origin.version {
        Version::HTTP_10 => "1.0 foregate",
        Version::HTTP_2 => "2 foregate",
        Version::HTTP_3 => "3 foregate",
        _ => "1.1 foregate",
    };
    headers.append(VIA, HeaderValue::from_static(via));
}

/// What is said of a client's certificate that was verified.
#[derive(Clone, Debug)]
pub struct CertificateFields {
    pub subject: Option<HeaderValue>,
    pub san: Option<HeaderValue>,
    pub fingerprint: Option<HeaderValue>,
}

/// Sets `X-Client-Cert-*`, if the client has shown a certificate that is good, and removes all that a client, or whoever
/// speaks for it, says of the kind itself: not all proxies know that such fields are to be dropped.
pub fn identify(headers: &mut HeaderMap, client: Option<&CertificateFields>) {
    let claims: Vec<HeaderName> = headers.keys().filter(|name| is_identity(name.as_str())).cloned().collect();
    for name in claims {
        headers.remove(name);
    }
    let Some(client) = client else { return };
    let fields = [
        (X_CLIENT_CERT_SUBJECT, &client.subject),
        (X_CLIENT_CERT_SAN, &client.san),
        (X_CLIENT_CERT_FINGERPRINT, &client.fingerprint),
    ];
    for (name, value) in fields {
        if let Some(value) = value {
            headers.insert(name, value.clone());
        }
    }
}

/// Who a client is by its certificate, as we and others say it (RFC 9440), also as servers read it that take every mark in
/// a name for the same.
fn is_identity(name: &str) -> bool {
    let plain = |rest: &str, expected: &str| {
        let mark = |byte: u8| if byte.is_ascii_alphanumeric() { byte } else { b'-' };
        rest.len() >= expected.len() && rest.bytes().map(mark).zip(expected.bytes()).all(|(a, b)| a == b)
    };
    // Almost no field passes this.
    match name.as_bytes().first() {
        Some(b'x') => plain(name, "x-client-cert-"),
        Some(b'c') => plain(name, "client-cert") && matches!(name.len() - "client-cert".len(), 0 | 6),
        _ => false,
    }
}

/// Removes every field by which a client could pose as a proxy.
fn drop_claims(headers: &mut HeaderMap) {
    let claims: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            let first = name.as_bytes().first();
            // Almost no field passes this, so that the common request allocates nothing here.
            matches!(first, Some(b'x' | b'f' | b'h' | b'c' | b't' | b'v'))
                && (name.starts_with("x-forwarded-")
                    || matches!(name, "forwarded" | "via" | "x-real-ip")
                    || (name.contains('_') && poses(&name.replace('_', "-"))))
        })
        .cloned()
        .collect();
    for name in claims {
        headers.remove(name);
    }
}

/// Names that mean something else when a server takes `_` for `-`.
fn poses(name: &str) -> bool {
    name.starts_with("x-forwarded-")
        || matches!(
            name,
            "forwarded" | "x-real-ip" | "x-request-id" | "host" | "content-length" | "transfer-encoding"
        )
}

/// Joins several `Cookie` fields into the one that HTTP/1.1 knows (RFC 9113, section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    let mut fields = headers.get_all(COOKIE).iter();
    let (Some(first), Some(_)) = (fields.next(), fields.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for field in headers.get_all(COOKIE).iter().skip(1) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(field.as_bytes());
    }
    // Pieces of valid values and "; " make a valid value.
    if let Ok(value) = HeaderValue::from_maybe_shared(bytes::Bytes::from(joined)) {
        headers.insert(COOKIE, value);
    }
}

/// For how long whoever answers wants to be left alone (RFC 9110, section 10.2.3), in seconds or until a date.
#[must_use]
pub fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    httpdate::parse_http_date(text).ok()?.duration_since(SystemTime::now()).ok()
}

/// Gives a response the `Date` every origin and gateway owes (RFC 9110, section 6.6.1).
pub fn ensure_date(headers: &mut HeaderMap) {
    if !headers.contains_key(DATE) {
        headers.insert(DATE, date());
    }
}

/// Now, as `Date` writes it; formatted once a second for each thread.
fn date() -> HeaderValue {
    use std::cell::RefCell;
    use std::time::Instant;

    thread_local! {
        static LAST: RefCell<Option<(Instant, HeaderValue)>> = const { RefCell::new(None) };
    }
    LAST.with_borrow_mut(|last| match last {
        Some((made, value)) if made.elapsed() < Duration::from_millis(500) => value.clone(),
        _ => {
            let text = httpdate::fmt_http_date(SystemTime::now());
            let value = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
            *last = Some((Instant::now(), value.clone()));
            value
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;
    use http::Request;

    #[test]
    fn a_rest_is_asked_for_in_seconds_or_until_a_date() {
        let asked = |text: &str| {
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]))
        };
        assert_eq!(asked("120"), Some(Duration::from_secs(120)));
        assert_eq!(asked(" 0 "), Some(Duration::ZERO));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(100));
        assert!((98..=100).contains(&asked(&date).unwrap().as_secs()));
        for none in ["", "-1", "soon", "1.5", "99999999999999999999999", "Fri, 31 Dec 1999 23:59:59 GMT"] {
            assert_eq!(asked(none), None, "{none}");
        }
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    fn parts(target: &str, version: Version, hosts: &[&str]) -> Parts {
        let mut request = Request::builder().uri(target).version(version);
        for host in hosts {
            request = request.header(HOST, *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_host_is_named_exactly_once() {
        let case = |target, version, hosts: &[&str]| {
            authority(&parts(target, version, hosts))
                .map(|host| host.map(|host| host.to_str().unwrap().to_owned()))
        };
        assert_eq!(case("/", Version::HTTP_11, &["a.test"]), Ok(Some("a.test".into())));
        assert_eq!(case("/", Version::HTTP_11, &[]), Err(HostProblem::Missing));
        assert_eq!(case("/", Version::HTTP_10, &[]), Ok(None));
        assert_eq!(case("/", Version::HTTP_11, &["a.test", "a.test"]), Err(HostProblem::Double));
        assert_eq!(case("http://a.test/", Version::HTTP_11, &["A.test"]), Ok(Some("A.test".into())));
        assert_eq!(case("http://a.test/", Version::HTTP_11, &["b.test"]), Err(HostProblem::Conflict));
        assert_eq!(case("http://a.test/", Version::HTTP_11, &[]), Err(HostProblem::Missing));
        assert_eq!(case("https://a.test/", Version::HTTP_2, &[]), Ok(Some("a.test".into())));
        assert_eq!(case("https://a.test/", Version::HTTP_2, &["b.test"]), Err(HostProblem::Conflict));
    }

    fn map(fields: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        map
    }

    #[test]
    fn fields_of_one_connection_stay_there() {
        let mut headers = map(&[
            ("connection", "close, X-Secret"),
            ("connection", "host"),
            ("x-secret", "1"),
            ("host", "a.test"),
            ("keep-alive", "5"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("x-kept", "1"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers, map(&[("host", "a.test"), ("x-kept", "1")]));
    }

    #[test]
    fn an_untrusted_client_cannot_pose() {
        let mut headers = map(&[
            ("x-forwarded-for", "6.6.6.6"),
            ("x-forwarded-port", "1"),
            ("x_forwarded_for", "6.6.6.6"),
            ("forwarded", "for=6.6.6.6"),
            ("via", "1.1 evil"),
            ("x-real-ip", "6.6.6.6"),
            ("x_custom", "kept"),
        ]);
        let origin = Origin {
            peer: &HeaderValue::from_static("192.0.2.1"),
            trusted: false,
            scheme: "https",
            authority: &HeaderValue::from_static("a.test:8443"),
            version: Version::HTTP_2,
        };
        forwarded(&mut headers, &origin);
        let expected = map(&[
            ("x_custom", "kept"),
            ("x-forwarded-for", "192.0.2.1"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "a.test:8443"),
            ("via", "2 foregate"),
        ]);
        assert_eq!(headers, expected);
    }

    #[test]
    fn a_client_is_who_its_certificate_says() {
        let claims = [
            ("x-client-cert-subject", "CN=root"),
            ("X_Client_Cert_San", "DNS:root.test"),
            ("x.client-cert_subject", "CN=root"),
            ("x-client-cert-verified", "yes"),
            ("client-cert", ":AAAA:"),
            ("client_cert_chain", ":AAAA:"),
        ];
        let others =
            [("x-client", "a"), ("client-certificates", "b"), ("x-client-certified", "c"), ("cookie", "d")];
        let shown = CertificateFields {
            subject: Some(HeaderValue::from_static("CN=alice")),
            san: None,
            fingerprint: Some(HeaderValue::from_static("0f")),
        };
        let mut headers = map(&[&claims[..], &others].concat());
        identify(&mut headers, None);
        assert_eq!(headers, map(&others));
        let mut headers = map(&[&claims[..], &others].concat());
        identify(&mut headers, Some(&shown));
        let told = [("x-client-cert-subject", "CN=alice"), ("x-client-cert-fingerprint", "0f")];
        assert_eq!(headers, map(&[&others[..], &told].concat()));
        headers.insert(CONNECTION, HeaderValue::from_static("x-client-cert-subject, cookie"));
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.get(X_CLIENT_CERT_SUBJECT).unwrap(), "CN=alice");
        assert!(!headers.contains_key(COOKIE));
        let mut trailers = map(&claims);
        strip_trailers(&mut trailers);
        assert!(trailers.is_empty(), "{trailers:?}");
    }

    #[test]
    fn trusted_proxies_vouch_for_the_client() {
        let trusted = |address: IpAddr| address.to_string().starts_with("10.");
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let headers = map(&[("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.0.0.2")]);
        assert_eq!(client_ip(&headers, ip("10.0.0.1"), trusted), ip("1.2.3.4"));
        assert_eq!(client_ip(&headers, ip("9.9.9.9"), trusted), ip("9.9.9.9"));
        let several = map(&[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "[2001:db8::1]:99")]);
        assert_eq!(client_ip(&several, ip("10.0.0.1"), trusted), ip("2001:db8::1"));
        let garbage = map(&[("x-forwarded-for", "1.2.3.4, unknown")]);
        assert_eq!(client_ip(&garbage, ip("10.0.0.1"), trusted), ip("10.0.0.1"));
    }

    #[test]
    fn cookies_are_joined() {
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("cookie", "c=3")]);
        join_cookies(&mut headers);
        assert_eq!(headers, map(&[("cookie", "a=1; b=2; c=3")]));
    }
}
