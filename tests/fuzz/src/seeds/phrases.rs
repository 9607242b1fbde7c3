//! Things a client can say, so that an input need not spell out what is usual.

use std::sync::LazyLock;

use foregate_http3::codec::frame::{Header, Kind};
use foregate_http3::codec::qpack::Encoder;

/// A phrase by its number in an input.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Phrase {
    /// The start of a control stream.
    Control,
    Get,
    /// Announces five bytes.
    Post,
    Hello,
    Trailers,
    Expect,
    Early,
    Large,
    Urgent,
    Never,
    WebSocket,
    Connect,
    TooLarge,
    Malformed,
    EndlessHead,
    EndlessUnknown,
    EncoderStream,
    DecoderStream,
    PriorityUpdate,
    Goaway,
    MaxPushId,
    Grease,
}

/// The phrase that a byte of an input stands for.
pub(crate) fn nth(number: u8) -> &'static [u8] {
    static PHRASES: LazyLock<Vec<Vec<u8>>> = LazyLock::new(all);
    &PHRASES[usize::from(number) % PHRASES.len()]
}

/// In the order of [`Phrase`].
fn all() -> Vec<Vec<u8>> {
    let connect = |fields: &[(&str, &str)]| frame(Kind::HEADERS.0, &section(fields));
    vec![
        control(),
        request("GET", "/", &[]),
        request("POST", "/", &[("content-length", "5")]),
        data(b"hello"),
        frame(Kind::HEADERS.0, &section(&[("x-trailer", "1")])),
        request("PUT", "/", &[("expect", "100-continue")]),
        request("POST", "/early", &[]),
        request("GET", "/large", &[]),
        request("GET", "/large", &[("priority", "u=0, i")]),
        request("GET", "/never", &[]),
        connect(&[
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "https"),
            (":authority", "shop.test"),
            (":path", "/"),
        ]),
        connect(&[(":method", "CONNECT"), (":authority", "shop.test:443")]),
        request("GET", "/", &[("x-large", &"~".repeat(600))]),
        request("GET", "/", &[("x-Upper", "")]),
        beginning(Kind::HEADERS.0, 1 << 61),
        beginning(0x21, 1 << 61),
        vec![0x02, 0x20],
        vec![0x03, 0x44],
        frame(Kind::PRIORITY_UPDATE_REQUEST.0, b"\x00u=7, i"),
        frame(Kind::GOAWAY.0, &[0]),
        frame(Kind::MAX_PUSH_ID.0, &[9]),
        frame(0x21, b"grease"),
    ]
}

pub(crate) fn control() -> Vec<u8> {
    [vec![0x00], frame(Kind::SETTINGS.0, &[])].concat()
}

/// The HEADERS frame of a request.
pub(crate) fn request(method: &str, path: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let head = [(":method", method), (":scheme", "https"), (":authority", "shop.test"), (":path", path)];
    frame(Kind::HEADERS.0, &section(&[&head[..], fields].concat()))
}

pub(crate) fn section(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out);
    for (name, value) in fields {
        encoder.field(name, value.as_bytes());
    }
    out
}

pub(crate) fn data(bytes: &[u8]) -> Vec<u8> {
    frame(Kind::DATA.0, bytes)
}

pub(crate) fn frame(kind: u64, payload: &[u8]) -> Vec<u8> {
    [beginning(kind, payload.len() as u64), payload.to_vec()].concat()
}

/// A frame's header, with nothing behind it.
pub(crate) fn beginning(kind: u64, length: u64) -> Vec<u8> {
    let mut out = Vec::new();
    Header { kind: Kind(kind), length }.encode(&mut out);
    out
}
