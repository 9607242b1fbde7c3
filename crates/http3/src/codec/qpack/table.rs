//! The static table (RFC 9204, appendix A).

use http::HeaderName;

/// The name of a table entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    Pseudo(Pseudo),
    Field(HeaderName),
}

/// The pseudo-header fields of requests and responses (RFC 9114, section 4.3; RFC 9220).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pseudo {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

impl Pseudo {
    fn name(self) -> &'static str {
        match self {
            Pseudo::Method => ":method",
            Pseudo::Scheme => ":scheme",
            Pseudo::Authority => ":authority",
            Pseudo::Path => ":path",
            Pseudo::Protocol => ":protocol",
            Pseudo::Status => ":status",
        }
    }

    pub(super) fn named(name: &[u8]) -> Option<Pseudo> {
        Some(match name {
            b":method" => Pseudo::Method,
            b":scheme" => Pseudo::Scheme,
            b":authority" => Pseudo::Authority,
            b":path" => Pseudo::Path,
            b":protocol" => Pseudo::Protocol,
            b":status" => Pseudo::Status,
            _ => return None,
        })
    }
}

pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) value: &'static str,
}

impl Entry {
    pub(super) fn name_len(&self) -> usize {
        match &self.name {
            Name::Pseudo(pseudo) => pseudo.name().len(),
            Name::Field(name) => name.as_str().len(),
        }
    }
}

const fn pseudo(name: Pseudo, value: &'static str) -> Entry {
    Entry { name: Name::Pseudo(name), value }
}

const fn field(name: &'static str, value: &'static str) -> Entry {
    Entry { name: Name::Field(HeaderName::from_static(name)), value }
}

/// Where the first entry of each name stands, for names worth a reference in a response; sorted by name.
pub(super) static PLACES: [(&str, u8); 47] = [
    ("accept", 29),
    ("accept-encoding", 31),
    ("accept-language", 72),
    ("accept-ranges", 32),
    ("access-control-allow-credentials", 73),
    ("access-control-allow-headers", 33),
    ("access-control-allow-methods", 76),
    ("access-control-allow-origin", 35),
    ("access-control-expose-headers", 79),
    ("access-control-request-headers", 80),
    ("access-control-request-method", 81),
    ("age", 2),
    ("alt-svc", 83),
    ("authorization", 84),
    ("cache-control", 36),
    ("content-disposition", 3),
    ("content-encoding", 42),
    ("content-length", 4),
    ("content-security-policy", 85),
    ("content-type", 44),
    ("cookie", 5),
    ("date", 6),
    ("early-data", 86),
    ("etag", 7),
    ("expect-ct", 87),
    ("forwarded", 88),
    ("if-modified-since", 8),
    ("if-none-match", 9),
    ("if-range", 89),
    ("last-modified", 10),
    ("link", 11),
    ("location", 12),
    ("origin", 90),
    ("purpose", 91),
    ("range", 55),
    ("referer", 13),
    ("server", 92),
    ("set-cookie", 14),
    ("strict-transport-security", 56),
    ("timing-allow-origin", 93),
    ("upgrade-insecure-requests", 94),
    ("user-agent", 95),
    ("vary", 59),
    ("x-content-type-options", 61),
    ("x-forwarded-for", 96),
    ("x-frame-options", 97),
    ("x-xss-protection", 62),
];

#[rustfmt::skip]
pub(super) static ENTRIES: [Entry; 99] = [
    pseudo(Pseudo::Authority, ""),
    pseudo(Pseudo::Path, "/"),
    field("age", "0"),
    field("content-disposition", ""),
    field("content-length", "0"),
    field("cookie", ""),
    field("date", ""),
    field("etag", ""),
    field("if-modified-since", ""),
    field("if-none-match", ""),
    field("last-modified", ""),
    field("link", ""),
    field("location", ""),
    field("referer", ""),
    field("set-cookie", ""),
    pseudo(Pseudo::Method, "CONNECT"),
    pseudo(Pseudo::Method, "DELETE"),
    pseudo(Pseudo::Method, "GET"),
    pseudo(Pseudo::Method, "HEAD"),
    pseudo(Pseudo::Method, "OPTIONS"),
    pseudo(Pseudo::Method, "POST"),
    pseudo(Pseudo::Method, "PUT"),
    pseudo(Pseudo::Scheme, "http"),
    pseudo(Pseudo::Scheme, "https"),
    pseudo(Pseudo::Status, "103"),
    pseudo(Pseudo::Status, "200"),
    pseudo(Pseudo::Status, "304"),
    pseudo(Pseudo::Status, "404"),
    pseudo(Pseudo::Status, "503"),
    field("accept", "*/*"),
    field("accept", "application/dns-message"),
    field("accept-encoding", "gzip, deflate, br"),
    field("accept-ranges", "bytes"),
    field("access-control-allow-headers", "cache-control"),
    field("access-control-allow-headers", "content-type"),
    field("access-control-allow-origin", "*"),
    field("cache-control", "max-age=0"),
    field("cache-control", "max-age=2592000"),
    field("cache-control", "max-age=604800"),
    field("cache-control", "no-cache"),
    field("cache-control", "no-store"),
    field("cache-control", "public, max-age=31536000"),
    field("content-encoding", "br"),
    field("content-encoding", "gzip"),
    field("content-type", "application/dns-message"),
    field("content-type", "application/javascript"),
    field("content-type", "application/json"),
    field("content-type", "application/x-www-form-urlencoded"),
    field("content-type", "image/gif"),
    field("content-type", "image/jpeg"),
    field("content-type", "image/png"),
    field("content-type", "text/css"),
    field("content-type", "text/html; charset=utf-8"),
    field("content-type", "text/plain"),
    field("content-type", "text/plain;charset=utf-8"),
    field("range", "bytes=0-"),
    field("strict-transport-security", "max-age=31536000"),
    field("strict-transport-security", "max-age=31536000; includesubdomains"),
    field("strict-transport-security", "max-age=31536000; includesubdomains; preload"),
    field("vary", "accept-encoding"),
    field("vary", "origin"),
    field("x-content-type-options", "nosniff"),
    field("x-xss-protection", "1; mode=block"),
    pseudo(Pseudo::Status, "100"),
    pseudo(Pseudo::Status, "204"),
    pseudo(Pseudo::Status, "206"),
    pseudo(Pseudo::Status, "302"),
    pseudo(Pseudo::Status, "400"),
    pseudo(Pseudo::Status, "403"),
    pseudo(Pseudo::Status, "421"),
    pseudo(Pseudo::Status, "425"),
    pseudo(Pseudo::Status, "500"),
    field("accept-language", ""),
    field("access-control-allow-credentials", "FALSE"),
    field("access-control-allow-credentials", "TRUE"),
    field("access-control-allow-headers", "*"),
    field("access-control-allow-methods", "get"),
    field("access-control-allow-methods", "get, post, options"),
    field("access-control-allow-methods", "options"),
    field("access-control-expose-headers", "content-length"),
    field("access-control-request-headers", "content-type"),
    field("access-control-request-method", "get"),
    field("access-control-request-method", "post"),
    field("alt-svc", "clear"),
    field("authorization", ""),
    field("content-security-policy", "script-src 'none'; object-src 'none'; base-uri 'none'"),
    field("early-data", "1"),
    field("expect-ct", ""),
    field("forwarded", ""),
    field("if-range", ""),
    field("origin", ""),
    field("purpose", "prefetch"),
    field("server", ""),
    field("timing-allow-origin", "*"),
    field("upgrade-insecure-requests", "1"),
    field("user-agent", ""),
    field("x-forwarded-for", ""),
    field("x-frame-options", "deny"),
    field("x-frame-options", "sameorigin"),
];
