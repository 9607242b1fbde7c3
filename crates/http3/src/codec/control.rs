//! The control stream and SETTINGS (RFC 9114, sections 6.2.1 and 7.2).

use std::str;

use bytes::{Buf, Bytes};

use super::frame::{Header, Kind, Partial};
use super::{Violation, varint};
use crate::code::Code;

/// The longest payload of a control frame that is read; real SETTINGS take some dozen bytes.
const LONGEST: u64 = 4096;

/// What this side tells its peer in SETTINGS.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The largest field section we take, counted by RFC 9114, section 4.2.2.
    pub max_field_section_size: u64,
}

impl Settings {
    const MAX_FIELD_SECTION_SIZE: u64 = 0x06;
    const QPACK_MAX_TABLE_CAPACITY: u64 = 0x01;
    const QPACK_BLOCKED_STREAMS: u64 = 0x07;
    /// RFC 9220, section 3.
    const ENABLE_CONNECT_PROTOCOL: u64 = 0x08;

    /// The start of our control stream: its type and the SETTINGS frame.
    #[must_use]
    pub fn preface(self) -> Vec<u8> {
        let mut payload = Vec::new();
        for (id, value) in [
            (Settings::QPACK_MAX_TABLE_CAPACITY, 0),
            (Settings::MAX_FIELD_SECTION_SIZE, self.max_field_section_size),
            (Settings::QPACK_BLOCKED_STREAMS, 0),
            (Settings::ENABLE_CONNECT_PROTOCOL, 1),
        ] {
            varint::encode(id, &mut payload);
            varint::encode(value, &mut payload);
        }
        let mut out = Vec::new();
        varint::encode(StreamKind::Control.id(), &mut out);
        Header { kind: Kind::SETTINGS, length: payload.len() as u64 }.encode(&mut out);
        out.extend_from_slice(&payload);
        out
    }
}

/// A GOAWAY frame: requests with this id and above are not served.
#[must_use]
pub fn goaway(id: u64) -> Vec<u8> {
    let mut payload = Vec::new();
    varint::encode(id, &mut payload);
    let mut out = Vec::new();
    Header { kind: Kind::GOAWAY, length: payload.len() as u64 }.encode(&mut out);
    out.extend_from_slice(&payload);
    out
}

/// The types of unidirectional streams (RFC 9114, section 6.2; RFC 9204, section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    Control,
    Push,
    Encoder,
    Decoder,
    Unknown,
}

impl StreamKind {
    #[must_use]
    pub fn from_id(id: u64) -> StreamKind {
        match id {
            0x00 => StreamKind::Control,
            0x01 => StreamKind::Push,
            0x02 => StreamKind::Encoder,
            0x03 => StreamKind::Decoder,
            _ => StreamKind::Unknown,
        }
    }

    fn id(self) -> u64 {
        match self {
            StreamKind::Control => 0x00,
            StreamKind::Push => 0x01,
            StreamKind::Encoder => 0x02,
            StreamKind::Decoder => 0x03,
            // Reserved for exercise (RFC 9114, section 6.2.3).
            StreamKind::Unknown => 0x21,
        }
    }
}

/// What came on a client's control stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    Settings,
    /// The client pushes nothing, so the id says nothing but that it leaves.
    Goaway,
    /// RFC 9218, section 7.1: the priority of the request with this stream id.
    Priority {
        stream: u64,
        value: String,
    },
}

/// Takes a client's control stream apart.
#[derive(Debug)]
pub struct Reader {
    within: Within,
    settled: bool,
    goaway: Option<u64>,
    max_push_id: Option<u64>,
}

#[derive(Debug)]
enum Within {
    Header(Partial),
    Payload { kind: Kind, collected: Vec<u8>, left: u64 },
    Skipped { left: u64 },
}

impl Default for Reader {
    fn default() -> Reader {
        Reader { within: Within::Header(Partial::default()), settled: false, goaway: None, max_push_id: None }
    }
}

impl Reader {
    /// Takes the next event off the front of the bytes; `None`: they are used up.
    ///
    /// # Errors
    /// Every violation on this stream ends the connection.
    pub fn read(&mut self, bytes: &mut Bytes) -> Result<Option<Event>, Violation> {
        loop {
            match &mut self.within {
                Within::Header(partial) => {
                    let Some(header) = partial.read(bytes) else { return Ok(None) };
                    self.begin(header)?;
                }
                Within::Payload { kind, collected, left } => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    collected.extend_from_slice(&bytes.split_to(n));
                    *left -= n as u64;
                    if *left > 0 {
                        return Ok(None);
                    }
                    let (kind, payload) = (*kind, std::mem::take(collected));
                    self.within = Within::Header(Partial::default());
                    if let Some(event) = self.frame(kind, &payload)? {
                        return Ok(Some(event));
                    }
                }
                Within::Skipped { left } => {
                    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    bytes.advance(n);
                    *left -= n as u64;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.within = Within::Header(Partial::default());
                }
            }
        }
    }

    fn begin(&mut self, header: Header) -> Result<(), Violation> {
        let unexpected = |reason| Err(Violation::connection(Code::H3_FRAME_UNEXPECTED, reason));
        let Header { kind, length } = header;
        if !self.settled && kind != Kind::SETTINGS {
            return Err(Violation::connection(
                Code::H3_MISSING_SETTINGS,
                "the control stream does not begin with SETTINGS",
            ));
        }
        match kind {
            Kind::SETTINGS if self.settled => return unexpected("a second SETTINGS frame"),
            Kind::SETTINGS
            | Kind::GOAWAY
            | Kind::MAX_PUSH_ID
            | Kind::CANCEL_PUSH
            | Kind::PRIORITY_UPDATE_REQUEST
            | Kind::PRIORITY_UPDATE_PUSH => {
                if length > LONGEST {
                    return Err(Violation::connection(
                        Code::H3_EXCESSIVE_LOAD,
                        "a control frame longer than 4096 bytes",
                    ));
                }
                self.settled = true;
                self.within = Within::Payload { kind, collected: Vec::new(), left: length };
            }
            Kind::DATA | Kind::HEADERS => {
                return unexpected("a frame of request streams on the control stream");
            }
            Kind::PUSH_PROMISE => return unexpected("PUSH_PROMISE from a client"),
            kind if kind.of_http2() => return unexpected("a frame type of HTTP/2"),
            _ => self.within = Within::Skipped { left: length },
        }
        Ok(())
    }

    fn frame(&mut self, kind: Kind, payload: &[u8]) -> Result<Option<Event>, Violation> {
        let id_error = |reason| Err(Violation::connection(Code::H3_ID_ERROR, reason));
        match kind {
            Kind::SETTINGS => settings(payload).map(|()| Some(Event::Settings)),
            Kind::GOAWAY => {
                let id = only_id(payload)?;
                if self.goaway.is_some_and(|before| id > before) {
                    return id_error("the id in GOAWAY has grown");
                }
                self.goaway = Some(id);
                Ok(Some(Event::Goaway))
            }
            Kind::MAX_PUSH_ID => {
                let id = only_id(payload)?;
                if self.max_push_id.is_some_and(|before| id < before) {
                    return id_error("MAX_PUSH_ID has shrunk");
                }
                self.max_push_id = Some(id);
                Ok(None)
            }
            Kind::CANCEL_PUSH => {
                only_id(payload)?;
                // Nothing was promised, whatever MAX_PUSH_ID allows.
                id_error("CANCEL_PUSH for a push that was not promised")
            }
            Kind::PRIORITY_UPDATE_PUSH => id_error("PRIORITY_UPDATE for a push that was not promised"),
            Kind::PRIORITY_UPDATE_REQUEST => {
                let Some((stream, size)) = varint::decode(payload) else { return Err(CUT) };
                // Requests stand on bidirectional streams that the client opens (RFC 9000, section 2.1).
                if stream & 0x03 != 0 {
                    return id_error("PRIORITY_UPDATE for a stream that cannot carry a request");
                }
                let value = payload.get(size..).and_then(|value| str::from_utf8(value).ok());
                // A value that cannot be parsed says nothing (RFC 9218, section 5).
                let value = value.unwrap_or_default().to_owned();
                Ok(Some(Event::Priority { stream, value }))
            }
            _ => Ok(None),
        }
    }
}

const CUT: Violation =
    Violation::connection(Code::H3_FRAME_ERROR, "a frame whose payload is not what its type says");

/// A payload that is one integer and nothing else.
fn only_id(payload: &[u8]) -> Result<u64, Violation> {
    match varint::decode(payload) {
        Some((id, size)) if size == payload.len() => Ok(id),
        _ => Err(CUT),
    }
}

/// Checks a client's SETTINGS. None of them changes what a server without push and without a dynamic table
/// does, but for `SETTINGS_MAX_FIELD_SECTION_SIZE`, which is advice.
fn settings(mut payload: &[u8]) -> Result<(), Violation> {
    let refuse = |reason| Err(Violation::connection(Code::H3_SETTINGS_ERROR, reason));
    let mut seen = Vec::new();
    while !payload.is_empty() {
        let Some((id, first)) = varint::decode(payload) else { return Err(CUT) };
        let Some((value, second)) = payload.get(first..).and_then(varint::decode) else { return Err(CUT) };
        payload = payload.get(first + second..).unwrap_or_default();
        match id {
            0x02..=0x05 => return refuse("a setting of HTTP/2"),
            // RFC 9220, section 3, and RFC 9297, section 2.1.1: they are yes or no.
            Settings::ENABLE_CONNECT_PROTOCOL | 0x33 if value > 1 => {
                return refuse("a setting that is neither 0 nor 1");
            }
            _ => {}
        }
        seen.push(id);
    }
    seen.sort_unstable();
    if seen.windows(2).any(|pair| matches!(pair, [one, other] if one == other)) {
        return refuse("a setting that stands there twice");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Header { kind, length: payload.len() as u64 }.encode(&mut out);
        out.extend_from_slice(payload);
        out
    }

    fn events(pieces: &[&[u8]]) -> Result<Vec<Event>, Violation> {
        let mut reader = Reader::default();
        let mut events = Vec::new();
        for piece in pieces {
            let mut bytes = Bytes::copy_from_slice(piece);
            while let Some(event) = reader.read(&mut bytes)? {
                events.push(event);
            }
        }
        Ok(events)
    }

    fn after_settings(frames: &[Vec<u8>]) -> Result<Vec<Event>, Violation> {
        events(&[&frame(Kind::SETTINGS, b""), &frames.concat()])
    }

    #[test]
    fn a_stream_in_whatever_pieces() {
        let bytes = [
            frame(Kind::SETTINGS, &[0x06, 0x40, 0xff, 0x21, 0x00]),
            frame(Kind(0x21), b"grease"),
            frame(Kind::PRIORITY_UPDATE_REQUEST, b"\x04u=1, i"),
            frame(Kind::MAX_PUSH_ID, &[3]),
            frame(Kind::GOAWAY, &[0]),
        ]
        .concat();
        let expected =
            [Event::Settings, Event::Priority { stream: 4, value: "u=1, i".to_owned() }, Event::Goaway];
        for cut in 0..bytes.len() {
            assert_eq!(events(&[&bytes[..cut], &bytes[cut..]]).unwrap(), expected, "cut at {cut}");
        }
    }

    #[test]
    fn each_violation_has_its_code() {
        let code = |frames: &[Vec<u8>]| after_settings(frames).unwrap_err().code;
        assert_eq!(events(&[&frame(Kind::GOAWAY, &[0])]).unwrap_err().code, Code::H3_MISSING_SETTINGS);
        assert_eq!(events(&[&frame(Kind(0x21), &[0])]).unwrap_err().code, Code::H3_MISSING_SETTINGS);
        for kind in [0, 1, 2, 4, 5, 6, 8, 9] {
            assert_eq!(code(&[frame(Kind(kind), &[])]), Code::H3_FRAME_UNEXPECTED, "{kind}");
        }
        assert_eq!(code(&[frame(Kind::GOAWAY, &[4]), frame(Kind::GOAWAY, &[8])]), Code::H3_ID_ERROR);
        assert_eq!(
            code(&[frame(Kind::MAX_PUSH_ID, &[4]), frame(Kind::MAX_PUSH_ID, &[3])]),
            Code::H3_ID_ERROR
        );
        assert_eq!(code(&[frame(Kind::CANCEL_PUSH, &[0])]), Code::H3_ID_ERROR);
        assert_eq!(code(&[frame(Kind::PRIORITY_UPDATE_PUSH, &[0])]), Code::H3_ID_ERROR);
        assert_eq!(code(&[frame(Kind::PRIORITY_UPDATE_REQUEST, &[1])]), Code::H3_ID_ERROR);
        assert_eq!(code(&[frame(Kind::GOAWAY, &[])]), Code::H3_FRAME_ERROR);
        assert_eq!(code(&[frame(Kind::GOAWAY, &[0, 0])]), Code::H3_FRAME_ERROR);
        let long = Header { kind: Kind::GOAWAY, length: 1 << 61 };
        let mut bytes = Vec::new();
        long.encode(&mut bytes);
        assert_eq!(code(&[bytes]), Code::H3_EXCESSIVE_LOAD);
    }

    #[test]
    fn settings_are_held_to_the_rules() {
        let code = |payload: &[u8]| settings(payload).unwrap_err().code;
        assert_eq!(settings(&[0x01, 0x00, 0x07, 0x10, 0x08, 0x01]), Ok(()));
        for reserved in 2..=5 {
            assert_eq!(code(&[reserved, 0]), Code::H3_SETTINGS_ERROR);
        }
        assert_eq!(code(&[0x06, 1, 0x06, 1]), Code::H3_SETTINGS_ERROR);
        assert_eq!(code(&[0x08, 2]), Code::H3_SETTINGS_ERROR);
        assert_eq!(code(&[0x06]), Code::H3_FRAME_ERROR);
    }

    #[test]
    fn our_own_preface_can_be_read() {
        let preface = Settings { max_field_section_size: 65536 }.preface();
        assert_eq!(preface[0], 0);
        assert_eq!(events(&[&preface[1..]]), Ok(vec![Event::Settings]));
        assert_eq!(after_settings(&[goaway(varint::MAX - 3)]), Ok(vec![Event::Settings, Event::Goaway]));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_read_alike(bytes: Vec<u8>, cut in 0usize..64) {
            let cut = cut.min(bytes.len());
            let whole = [frame(Kind::SETTINGS, b""), bytes.clone()].concat();
            prop_assert_eq!(events(&[&whole]), after_settings(&[bytes[..cut].to_vec(), bytes[cut..].to_vec()]));
        }
    }
}
