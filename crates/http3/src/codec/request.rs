//! The frames of a request stream, from the client's side (RFC 9114, section 4.1).

use bytes::{Buf, Bytes, BytesMut};

use super::Violation;
use super::frame::{Header, Kind, Partial};
use crate::code::Code;

/// What came on a request stream.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A whole encoded field section: of the head, or of the trailers.
    Section(Bytes),
    /// A field section longer than the reader takes. It is skipped, and nothing after it is of use.
    TooLarge,
    /// A piece of the body.
    Data(Bytes),
}

/// Takes a request stream apart. It holds at most one field section of the announced size.
#[derive(Debug)]
pub struct Reader {
    phase: Phase,
    within: Within,
    /// The longest field section that is collected.
    limit: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Head,
    Body,
    /// After the head of a CONNECT: nothing but DATA (section 4.4).
    Tunnel,
    /// After the trailers.
    Over,
}

#[derive(Debug)]
enum Within {
    Header(Partial),
    Section { collected: BytesMut, left: usize },
    Data { left: u64 },
    Skipped { left: u64 },
}

impl Reader {
    #[must_use]
    pub fn new(limit: usize) -> Reader {
        Reader { phase: Phase::Head, within: Within::Header(Partial::default()), limit }
    }

    /// Takes the next event off the front of the bytes; `None`: they are used up.
    ///
    /// # Errors
    /// A frame where it must not be: the connection ends.
    pub fn read(&mut self, bytes: &mut Bytes) -> Result<Option<Event>, Violation> {
        loop {
            match &mut self.within {
                Within::Header(partial) => {
                    let Some(header) = partial.read(bytes) else { return Ok(None) };
                    if let Some(event) = self.begin(header, bytes)? {
                        return Ok(Some(event));
                    }
                }
                Within::Section { collected, left } => {
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    let taken = bytes.split_to(bytes.len().min(*left));
                    *left -= taken.len();
                    collected.extend_from_slice(&taken);
                    if *left == 0 {
                        let section = std::mem::take(collected).freeze();
                        self.next_frame();
                        return Ok(Some(Event::Section(section)));
                    }
                }
                Within::Data { left } => {
                    if bytes.is_empty() {
                        return Ok(None);
                    }
                    let taken = bytes.split_to(clamp(*left, bytes.len()));
                    *left -= taken.len() as u64;
                    if *left == 0 {
                        self.next_frame();
                    }
                    return Ok(Some(Event::Data(taken)));
                }
                Within::Skipped { left } => {
                    let n = clamp(*left, bytes.len());
                    bytes.advance(n);
                    *left -= n as u64;
                    if *left > 0 {
                        return Ok(None);
                    }
                    self.next_frame();
                }
            }
        }
    }

    /// The head was a CONNECT's.
    pub fn tunnel(&mut self) {
        self.phase = Phase::Tunnel;
    }

    /// Asked when the stream has ended.
    ///
    /// # Errors
    /// The stream ended within a frame, or before the request's head (RFC 9114, sections 7.1 and 4.1).
    pub fn finish(&self) -> Result<(), Violation> {
        match &self.within {
            Within::Header(partial) if partial.is_empty() => {}
            _ => return Err(Violation::connection(Code::H3_FRAME_ERROR, "the stream ends within a frame")),
        }
        if self.phase == Phase::Head {
            return Err(Violation::stream(
                Code::H3_REQUEST_INCOMPLETE,
                "the stream ends before the request's head",
            ));
        }
        Ok(())
    }

    fn begin(&mut self, header: Header, bytes: &mut Bytes) -> Result<Option<Event>, Violation> {
        let unexpected = |reason| Err(Violation::connection(Code::H3_FRAME_UNEXPECTED, reason));
        match header.kind {
            Kind::HEADERS => {
                self.phase = match self.phase {
                    Phase::Head => Phase::Body,
                    Phase::Body => Phase::Over,
                    Phase::Tunnel => return unexpected("HEADERS within a tunnel"),
                    Phase::Over => return unexpected("HEADERS after the trailers"),
                };
                let Some(length) = usize::try_from(header.length).ok().filter(|length| *length <= self.limit)
                else {
                    self.within = Within::Skipped { left: header.length };
                    return Ok(Some(Event::TooLarge));
                };
                if bytes.len() >= length {
                    let section = bytes.split_to(length);
                    self.next_frame();
                    return Ok(Some(Event::Section(section)));
                }
                // Not reserved: the peer has to send what it wants us to hold.
                self.within = Within::Section { collected: BytesMut::new(), left: length };
            }
            Kind::DATA => match self.phase {
                Phase::Head => return unexpected("DATA before HEADERS"),
                Phase::Over => return unexpected("DATA after the trailers"),
                Phase::Body | Phase::Tunnel if header.length == 0 => self.next_frame(),
                Phase::Body | Phase::Tunnel => self.within = Within::Data { left: header.length },
            },
            Kind::SETTINGS
            | Kind::GOAWAY
            | Kind::MAX_PUSH_ID
            | Kind::CANCEL_PUSH
            | Kind::PRIORITY_UPDATE_REQUEST
            | Kind::PRIORITY_UPDATE_PUSH => {
                return unexpected("a frame of the control stream on a request stream");
            }
            Kind::PUSH_PROMISE => return unexpected("PUSH_PROMISE from a client"),
            kind if kind.of_http2() => return unexpected("a frame type of HTTP/2"),
            // RFC 9114, section 9: unknown types are ignored wherever they stand.
            _ if header.length == 0 => self.next_frame(),
            _ => self.within = Within::Skipped { left: header.length },
        }
        Ok(None)
    }

    fn next_frame(&mut self) {
        self.within = Within::Header(Partial::default());
    }
}

/// The smaller of what a frame has left and what is there.
fn clamp(left: u64, there: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(there)
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

    /// Reads pieces to their end; neighbouring data is joined, so that cuts make no difference.
    fn events(pieces: &[&[u8]]) -> Result<Vec<Event>, Violation> {
        let mut reader = Reader::new(100);
        let mut events: Vec<Event> = Vec::new();
        for piece in pieces {
            let mut bytes = Bytes::copy_from_slice(piece);
            while let Some(event) = reader.read(&mut bytes)? {
                match (event, events.last_mut()) {
                    (Event::Data(more), Some(Event::Data(data))) => {
                        *data = [data.as_ref(), more.as_ref()].concat().into();
                    }
                    (event, _) => events.push(event),
                }
            }
            assert!(bytes.is_empty());
        }
        reader.finish().map(|()| events)
    }

    fn code(frames: &[Vec<u8>]) -> Code {
        events(&[&frames.concat()]).unwrap_err().code
    }

    #[test]
    fn a_request_in_whatever_pieces() {
        let bytes = [
            frame(Kind(0x21), b"grease"),
            frame(Kind::HEADERS, b"head"),
            frame(Kind::DATA, b"some "),
            frame(Kind::DATA, b""),
            frame(Kind(0x40), b"unknown"),
            frame(Kind::DATA, b"body"),
            frame(Kind::HEADERS, b"trailers"),
            frame(Kind(0x21), b""),
        ]
        .concat();
        let expected = [
            Event::Section(Bytes::from_static(b"head")),
            Event::Data(Bytes::from_static(b"some body")),
            Event::Section(Bytes::from_static(b"trailers")),
        ];
        assert_eq!(events(&[&bytes]).unwrap(), expected);
        for cut in 0..bytes.len() {
            assert_eq!(events(&[&bytes[..cut], &bytes[cut..]]).unwrap(), expected, "cut at {cut}");
        }
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(events(&single).unwrap(), expected);
    }

    #[test]
    fn frames_out_of_place_are_refused() {
        let head = || frame(Kind::HEADERS, b"h");
        assert_eq!(code(&[frame(Kind::DATA, b"x"), head()]), Code::H3_FRAME_UNEXPECTED);
        assert_eq!(code(&[head(), head(), head()]), Code::H3_FRAME_UNEXPECTED);
        assert_eq!(code(&[head(), head(), frame(Kind::DATA, b"x")]), Code::H3_FRAME_UNEXPECTED);
        for kind in [2, 3, 4, 5, 6, 7, 8, 9, 0xd, 0xf_0700, 0xf_0701] {
            assert_eq!(code(&[head(), frame(Kind(kind), b"")]), Code::H3_FRAME_UNEXPECTED, "{kind:#x}");
        }
    }

    #[test]
    fn a_tunnel_has_only_data() {
        let mut reader = Reader::new(100);
        let mut bytes = Bytes::from(
            [frame(Kind::HEADERS, b"h"), frame(Kind::DATA, b"x"), frame(Kind::HEADERS, b"h")].concat(),
        );
        assert!(matches!(reader.read(&mut bytes), Ok(Some(Event::Section(_)))));
        reader.tunnel();
        assert!(matches!(reader.read(&mut bytes), Ok(Some(Event::Data(_)))));
        assert_eq!(reader.read(&mut bytes).unwrap_err().code, Code::H3_FRAME_UNEXPECTED);
    }

    #[test]
    fn an_early_end_is_told_by_where_it_is() {
        assert_eq!(code(&[]), Code::H3_REQUEST_INCOMPLETE);
        assert_eq!(code(&[frame(Kind(0x21), b"x")]), Code::H3_REQUEST_INCOMPLETE);
        let bytes = [frame(Kind::HEADERS, b"head"), frame(Kind::DATA, b"body")].concat();
        for cut in (1..6).chain(7..bytes.len()) {
            assert_eq!(events(&[&bytes[..cut]]).unwrap_err().code, Code::H3_FRAME_ERROR, "{cut}");
        }
        assert!(events(&[&bytes[..6]]).is_ok());
    }

    #[test]
    fn a_section_beyond_the_limit_is_not_collected() {
        let mut reader = Reader::new(100);
        let mut head = Vec::new();
        Header { kind: Kind::HEADERS, length: 1 << 61 }.encode(&mut head);
        assert_eq!(reader.read(&mut head.into()), Ok(Some(Event::TooLarge)));
        for _ in 0..10 {
            assert_eq!(reader.read(&mut Bytes::from_static(&[7; 1000])), Ok(None));
        }
        assert!(matches!(reader.within, Within::Skipped { .. }));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_are_read_alike(bytes: Vec<u8>, cut in 0usize..64) {
            let cut = cut.min(bytes.len());
            prop_assert_eq!(events(&[&bytes]), events(&[&bytes[..cut], &bytes[cut..]]));
        }
    }
}
