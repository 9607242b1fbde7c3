//! Field sections and the heads they make: what is taken stays within its limits and comes back when written.

use bytes::Bytes;
use foregate_http3::codec::frame::{Header, Kind};
use foregate_http3::codec::qpack::{DecoderStream, Encoder, EncoderStream, Fields, Problem, decode};
use foregate_http3::codec::{Violation, head};
use http::{HeaderMap, Method, StatusCode, Version};

use crate::input::Input;

/// Large enough for whatever an input can decode to.
const UNLIMITED: u64 = u64::MAX;
/// The static table's `:path`, with a literal value (RFC 9204, section 4.5.4).
const PATH: u8 = 0x51;

/// An input is a limit in units of 16 bytes, the length of a first piece, and bytes, which are taken for a
/// field section, for a string in the Huffman code, and for the streams of QPACK.
pub fn qpack(input: &[u8]) {
    let mut input = Input(input);
    let limit = u64::from(input.byte()) * 16;
    let cut = usize::from(input.byte()).min(input.0.len());
    let bytes = input.0;
    section(bytes, limit);
    huffman(bytes);
    for read in [encoder_stream, decoder_stream] {
        assert_eq!(read(&[bytes]), read(&[&bytes[..cut], &bytes[cut..]]));
        assert_eq!(read(&[bytes]), read(&bytes.chunks(1).collect::<Vec<_>>()));
    }
}

fn section(bytes: &[u8], limit: u64) {
    let whole = match decode(bytes, UNLIMITED) {
        Ok(fields) => fields,
        Err(_) => return assert!(decode(bytes, limit).is_err(), "taken under a limit, and else not"),
    };
    match decode(bytes, limit) {
        Ok(fields) => {
            // Blanks around values count, but are not kept.
            assert!(size(&fields) <= limit, "more than the limit");
            assert_eq!(list(&fields), list(&whole));
        }
        Err(problem) => assert_eq!(problem, Problem::TooLarge),
    }
    // Written by us it says the same.
    let again = decode(&encoded(&whole), UNLIMITED).unwrap();
    assert_eq!(list(&again), list(&whole));
    let headers = whole.headers.clone();
    request(whole);
    trailers(again, &headers);
}

/// Everything in a section, in an order that does not depend on the map's.
fn list(fields: &Fields) -> Vec<(&str, &[u8])> {
    let headers = fields.headers.keys().flat_map(|name| {
        fields.headers.get_all(name).iter().map(move |value| (name.as_str(), value.as_bytes()))
    });
    let mut list: Vec<_> = pseudos(fields).chain(headers).collect();
    // Stable: several fields of one name are a list, whose order counts.
    list.sort_by_key(|(name, _)| (!name.starts_with(':'), *name));
    list
}

fn pseudos(fields: &Fields) -> impl Iterator<Item = (&str, &[u8])> {
    let pseudos = &fields.pseudos;
    [
        (":method", &pseudos.method),
        (":scheme", &pseudos.scheme),
        (":authority", &pseudos.authority),
        (":path", &pseudos.path),
        (":protocol", &pseudos.protocol),
        (":status", &pseudos.status),
    ]
    .into_iter()
    .filter_map(|(name, value)| value.as_deref().map(|value| (name, value)))
}

/// RFC 9114, section 4.2.2.
fn size(fields: &Fields) -> u64 {
    list(fields).iter().map(|(name, value)| (name.len() + value.len() + 32) as u64).sum()
}

fn encoded(fields: &Fields) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = Encoder::new(&mut out);
    for (name, value) in list(fields) {
        encoder.field(name, value);
    }
    out
}

fn request(fields: Fields) {
    let method = fields.pseudos.method.clone();
    let authority = fields.pseudos.authority.clone();
    let path = fields.pseudos.path.clone();
    let Ok(head) = head::request(fields) else { return };
    assert_eq!(head.parts.version, Version::HTTP_3);
    assert_eq!(Some(head.parts.method.as_str().as_bytes()), method.as_deref());
    let uri = &head.parts.uri;
    assert_eq!(uri.authority().map(|name| name.as_str().as_bytes()), authority.as_deref());
    if head.parts.method != Method::CONNECT {
        assert!(head.protocol.is_none());
    }
    if let Some(path) = path {
        assert_eq!(uri.path_and_query().unwrap().as_str().as_bytes(), path, "another path");
    }
    response(&head.parts.headers);
}

/// A head of ours with such fields is one frame, and can be read.
fn response(headers: &HeaderMap) {
    let mut out = Vec::new();
    head::response(StatusCode::IM_A_TEAPOT, headers, &mut out);
    let (header, size) = Header::decode(&out).unwrap();
    assert_eq!(header, Header { kind: Kind::HEADERS, length: (out.len() - size) as u64 });
    let fields = decode(&out[size..], UNLIMITED).unwrap();
    assert_eq!(fields.pseudos.status.as_deref(), Some(&b"418"[..]));
    assert_eq!(fields.headers, *headers);
}

fn trailers(fields: Fields, headers: &HeaderMap) {
    let pseudo = !fields.pseudos.is_empty();
    if let Ok(trailers) = head::trailers(fields) {
        assert!(!pseudo);
        assert_eq!(trailers, *headers);
    }
}

/// The code is one to one: a string that is taken is written back as it came, wherever that is shorter than
/// the text.
fn huffman(code: &[u8]) {
    let mut section = vec![0, 0, PATH];
    prefixed(0x80, 7, code.len(), &mut section);
    section.extend_from_slice(code);
    let text = match decode(&section, UNLIMITED) {
        Ok(fields) => fields.pseudos.path.unwrap(),
        Err(problem) => return assert_eq!(problem, Problem::Huffman),
    };
    let mut out = Vec::new();
    Encoder::new(&mut out).field(":path", &text);
    let written: &[u8] = if code.len() < text.len() { code } else { &text };
    assert!(out.ends_with(written), "another code for the same text");
    assert_eq!(decode(&out, UNLIMITED).unwrap().pseudos.path, Some(Bytes::from(text.to_vec())));
}

/// An integer with a prefix of so many bits (RFC 7541, section 5.1).
fn prefixed(flags: u8, bits: u32, value: usize, out: &mut Vec<u8>) {
    let full = (1 << bits) - 1;
    if value < full {
        return out.push(flags | value as u8);
    }
    out.push(flags | full as u8);
    let mut rest = value - full;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn encoder_stream(pieces: &[&[u8]]) -> Result<(), Violation> {
    let mut stream = EncoderStream::default();
    pieces.iter().try_for_each(|piece| stream.read(piece))
}

fn decoder_stream(pieces: &[&[u8]]) -> Result<(), Violation> {
    let mut stream = DecoderStream::default();
    pieces.iter().try_for_each(|piece| stream.read(piece))
}
