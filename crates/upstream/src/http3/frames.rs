//! What h3 is given of a stream: the same bytes, cut so that it never holds more than it looks at.

use bytes::{Buf, Bytes, BytesMut};
use foregate_http3::codec::frame::{Header, Kind, Partial};
use foregate_http3::codec::varint;

/// The longest field section, and the longest frame of a control stream. h3 collects such frames whole; a
/// field counts at least 32 bytes of it, which also keeps them far from the 24,576 at which a map panics.
pub(super) const MAX_FRAME: usize = 64 * 1024;

/// The type of a control stream (RFC 9114, section 6.2.1).
const CONTROL: u64 = 0;

/// What h3 0.0.8 does not find wrong, or finds too late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Violation {
    /// h3 takes the end within a DATA frame for a clean one, and then panics when asked for trailers.
    #[error("the stream ends within a frame")]
    Cut,
    /// h3 would end the connection for it, and with it every other request.
    #[error("the stream ends before the response")]
    NoHead,
    /// h3 would collect it, however long it says it is.
    #[error("a frame of more than 64 KiB that has to be read whole")]
    TooLong,
}

/// Takes one stream apart.
///
/// h3 reads before it looks at what it holds, so a stream of small frames would pile up in it. It gets them
/// one at a time: frames that must be read whole, whole; of DATA the header, then piece by piece. Frames it
/// ignores, and empty DATA, which it takes for the end of the body, it does not get.
#[derive(Debug)]
pub(super) struct Frames {
    within: Within,
    control: bool,
    /// A frame has been handed on.
    begun: bool,
    goaway: Option<u64>,
}

#[derive(Debug)]
enum Within {
    /// The type at the start of a unidirectional stream.
    Type(Vec<u8>),
    Header(Partial),
    /// With its header, as far as it has come.
    Whole {
        kind: Kind,
        collected: BytesMut,
        left: usize,
    },
    Data {
        left: u64,
    },
    Skipped {
        left: u64,
    },
    /// Of another type, which is not made of frames.
    Raw,
}

impl Frames {
    /// Of the VM's side of a request stream.
    pub(super) fn response() -> Frames {
        Frames { within: Within::Header(Partial::default()), control: false, begun: false, goaway: None }
    }

    /// Of a stream the VM opened.
    pub(super) fn unidirectional() -> Frames {
        Frames { within: Within::Type(Vec::new()), control: false, begun: false, goaway: None }
    }

    /// The next piece for h3, never empty; `None`: the bytes are used up.
    ///
    /// # Errors
    /// Nothing more can be read.
    pub(super) fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Bytes>, Violation> {
        while !bytes.is_empty() {
            let piece = match &mut self.within {
                Within::Type(kind) => {
                    kind.push(bytes.get_u8());
                    let Some((value, _)) = varint::decode(kind) else { continue };
                    let kind = std::mem::take(kind);
                    self.control = value == CONTROL;
                    self.within = if self.control { next_frame() } else { Within::Raw };
                    kind.into()
                }
                Within::Header(partial) => {
                    let Some(header) = partial.read(bytes) else { continue };
                    let Some(piece) = self.begin(header)? else { continue };
                    piece
                }
                Within::Whole { kind, collected, left } => {
                    let taken = bytes.split_to(bytes.len().min(*left));
                    *left -= taken.len();
                    collected.extend_from_slice(&taken);
                    if *left > 0 {
                        continue;
                    }
                    let (kind, frame) = (*kind, std::mem::take(collected).freeze());
                    self.end(kind, &frame);
                    frame
                }
                Within::Data { left } => {
                    let taken = bytes.split_to(clamp(*left, bytes.len()));
                    *left -= taken.len() as u64;
                    if *left == 0 {
                        self.within = next_frame();
                    }
                    taken
                }
                Within::Skipped { left } => {
                    let n = clamp(*left, bytes.len());
                    bytes.advance(n);
                    *left -= n as u64;
                    if *left == 0 {
                        self.within = next_frame();
                    }
                    continue;
                }
                Within::Raw => std::mem::take(bytes),
            };
            self.begun = true;
            return Ok(Some(piece));
        }
        Ok(None)
    }

    /// Asked when the stream has ended.
    ///
    /// # Errors
    /// It must not have ended here.
    pub(super) fn finish(&self) -> Result<(), Violation> {
        match &self.within {
            Within::Header(partial) if partial.is_empty() && (self.begun || self.control) => Ok(()),
            Within::Header(partial) if partial.is_empty() => Err(Violation::NoHead),
            // RFC 9114, section 6.2: a stream may end before its type has come.
            Within::Type(_) | Within::Raw => Ok(()),
            Within::Header(_) | Within::Whole { .. } | Within::Data { .. } | Within::Skipped { .. } => {
                Err(Violation::Cut)
            }
        }
    }

    /// What the last GOAWAY said, once.
    pub(super) fn goaway(&mut self) -> Option<u64> {
        self.goaway.take()
    }

    fn begin(&mut self, header: Header) -> Result<Option<Bytes>, Violation> {
        let Header { kind, length } = header;
        let mut encoded = Vec::with_capacity(Header::LONGEST);
        header.encode(&mut encoded);
        self.within = match kind {
            _ if length == 0 && (kind == Kind::DATA || !is_known(kind)) => next_frame(),
            Kind::DATA => {
                self.within = Within::Data { left: length };
                return Ok(Some(encoded.into()));
            }
            _ if !is_known(kind) => Within::Skipped { left: length },
            _ => {
                let left = usize::try_from(length).unwrap_or(usize::MAX);
                if left > MAX_FRAME {
                    return Err(Violation::TooLong);
                }
                if left == 0 {
                    self.within = next_frame();
                    return Ok(Some(encoded.into()));
                }
                // Not reserved: the VM has to send what it wants us to hold.
                Within::Whole { kind, collected: BytesMut::from(encoded.as_slice()), left }
            }
        };
        Ok(None)
    }

    fn end(&mut self, kind: Kind, frame: &[u8]) {
        self.within = next_frame();
        if self.control && kind == Kind::GOAWAY {
            let payload = Header::decode(frame).and_then(|(_, size)| frame.get(size..));
            self.goaway = payload.and_then(varint::decode).map(|(id, _)| id);
        }
    }
}

/// The types h3 has an opinion on. That of WebTransport (0x41), which has no length for h3, is none of them:
/// nobody has agreed to it.
fn is_known(kind: Kind) -> bool {
    kind.of_http2()
        || [
            Kind::DATA,
            Kind::HEADERS,
            Kind::CANCEL_PUSH,
            Kind::SETTINGS,
            Kind::PUSH_PROMISE,
            Kind::GOAWAY,
            Kind::MAX_PUSH_ID,
        ]
        .contains(&kind)
}

fn next_frame() -> Within {
    Within::Header(Partial::default())
}

/// The smaller of what a frame has left and what is there.
fn clamp(left: u64, there: usize) -> usize {
    usize::try_from(left).unwrap_or(usize::MAX).min(there)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop at the first surprise")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Header { kind, length: payload.len() as u64 }.encode(&mut out);
        out.extend_from_slice(payload);
        out
    }

    /// What h3 gets of these chunks, then how the stream ends.
    fn read(mut frames: Frames, chunks: &[&[u8]]) -> (Vec<Bytes>, Result<(), Violation>) {
        let mut pieces = Vec::new();
        for chunk in chunks {
            let mut bytes = Bytes::copy_from_slice(chunk);
            loop {
                match frames.next(&mut bytes) {
                    Ok(Some(piece)) => pieces.push(piece),
                    Ok(None) => break,
                    Err(violation) => return (pieces, Err(violation)),
                }
            }
            assert!(bytes.is_empty());
        }
        assert!(pieces.iter().all(|piece| !piece.is_empty()), "h3 takes no empty piece");
        (pieces, frames.finish())
    }

    fn response(bytes: &[u8]) -> (Vec<Bytes>, Result<(), Violation>) {
        read(Frames::response(), &[bytes])
    }

    #[test]
    fn h3_gets_one_frame_at_a_time() {
        let stream = [
            frame(Kind(0x21), b"grease"),
            frame(Kind::HEADERS, b"head"),
            frame(Kind::DATA, b""),
            frame(Kind::DATA, b"some"),
            frame(Kind(0x41), b"no session"),
            frame(Kind::DATA, b"more"),
            frame(Kind::HEADERS, b"trailers"),
            frame(Kind(0x21), b""),
        ]
        .concat();
        let (pieces, end) = response(&stream);
        assert_eq!(end, Ok(()));
        let expected: [&[u8]; 6] =
            [b"\x01\x04head", b"\x00\x04", b"some", b"\x00\x04", b"more", b"\x01\x08trailers"];
        assert_eq!(pieces, expected);

        let single: Vec<&[u8]> = stream.chunks(1).collect();
        let (pieces, end) = read(Frames::response(), &single);
        assert_eq!((pieces.concat(), end), (expected.concat(), Ok(())));
    }

    #[test]
    fn an_end_within_a_frame_is_no_end() {
        let stream =
            [frame(Kind::HEADERS, b"head"), frame(Kind::DATA, b"body"), frame(Kind(0x21), b"x")].concat();
        let whole = [0, 6, 12, stream.len()];
        for cut in 0..=stream.len() {
            let expected = match cut {
                0 => Err(Violation::NoHead),
                _ if whole.contains(&cut) => Ok(()),
                _ => Err(Violation::Cut),
            };
            assert_eq!(response(&stream[..cut]).1, expected, "cut at {cut}");
        }
        assert_eq!(response(&frame(Kind(0x21), b"grease")).1, Err(Violation::NoHead));
    }

    #[test]
    fn what_must_be_held_whole_is_bounded() {
        for kind in [Kind::HEADERS, Kind::PUSH_PROMISE, Kind::SETTINGS, Kind(0x2)] {
            let mut header = Vec::new();
            Header { kind, length: MAX_FRAME as u64 + 1 }.encode(&mut header);
            assert_eq!(response(&header), (vec![], Err(Violation::TooLong)), "{kind:?}");
        }
        // What nobody wants may be as long as it likes: nothing of it is kept.
        let mut frames = Frames::response();
        let mut header = Vec::new();
        Header { kind: Kind(0x21), length: varint::MAX }.encode(&mut header);
        assert_eq!(frames.next(&mut header.into()), Ok(None));
        for _ in 0..100 {
            assert_eq!(frames.next(&mut Bytes::from_static(&[7; 4096])), Ok(None));
        }
        assert!(matches!(frames.within, Within::Skipped { .. }));
    }

    #[test]
    fn a_control_stream_tells_of_its_goaway() {
        let stream = [
            vec![0],
            frame(Kind::SETTINGS, b""),
            frame(Kind::GOAWAY, &[0x40, 0x20]),
            frame(Kind(0x21), b"x"),
        ]
        .concat();
        let mut frames = Frames::unidirectional();
        let mut bytes = Bytes::from(stream);
        assert_eq!(frames.next(&mut bytes), Ok(Some(Bytes::from_static(&[0]))), "the type stands alone");
        assert_eq!(frames.next(&mut bytes), Ok(Some(Bytes::from_static(&[4, 0]))));
        assert_eq!(frames.goaway(), None);
        assert_eq!(frames.next(&mut bytes), Ok(Some(Bytes::from_static(&[7, 2, 0x40, 0x20]))));
        assert_eq!(frames.goaway(), Some(32));
        assert_eq!(frames.goaway(), None);
        assert_eq!(frames.next(&mut bytes), Ok(None));
    }

    #[test]
    fn streams_that_are_no_frames_pass_as_they_are() {
        let (pieces, end) = read(Frames::unidirectional(), &[&[2, 0x3f, 0xe1, 0x1f], &[0x80]]);
        assert_eq!((pieces.concat(), end), (vec![2, 0x3f, 0xe1, 0x1f, 0x80], Ok(())));
        assert_eq!(read(Frames::unidirectional(), &[]).1, Ok(()));
        assert_eq!(read(Frames::unidirectional(), &[&[0x40]]).1, Ok(()));
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_chunks_are_read_alike(bytes: Vec<u8>, cut in 0usize..64) {
            let cut = cut.min(bytes.len());
            let joined = |(pieces, end): (Vec<Bytes>, _)| (pieces.concat(), end);
            prop_assert_eq!(
                joined(response(&bytes)),
                joined(read(Frames::response(), &[&bytes[..cut], &bytes[cut..]]))
            );
        }
    }
}
