//! The frames of request streams and control streams: read alike in whatever pieces they come.

use bytes::{Bytes, BytesMut};
use foregate_http3::codec::frame::{Header, Kind};
use foregate_http3::codec::{Violation, control, request};

use crate::input::Input;

/// The longest field section that is collected; the readers' own limits are multiples of it.
const LIMITS: [usize; 4] = [0, 16, 100, 32 * 1024];

/// An input is a choice of the limit, of whether the request turns out to be a tunnel, the lengths of four
/// pieces, over and over, and the bytes of the stream.
pub fn frames(input: &[u8]) {
    let mut input = Input(input);
    let choice = usize::from(input.byte());
    let lengths = [input.byte(), input.byte(), input.byte(), input.byte()];
    let stream = input.0;
    let limit = LIMITS[choice % LIMITS.len()];
    let tunnel = choice & 0x80 != 0;

    let whole = of_request(&[stream], limit, tunnel);
    assert_eq!(whole, of_request(&input.pieces(lengths), limit, tunnel));
    assert_eq!(whole, of_request(&input.pieces([1; 4]), limit, tunnel));
    if let Some(expected) = lawful(stream, limit, tunnel) {
        assert_eq!(whole, (expected, Ok(())));
    }
    let whole = of_control(&[stream]);
    assert_eq!(whole, of_control(&input.pieces(lengths)));
    assert_eq!(whole, of_control(&input.pieces([1; 4])));
}

/// What a request stream brings until it ends or breaks a rule. Neighbouring data is joined, since cuts
/// fall within it.
fn of_request(pieces: &[&[u8]], limit: usize, tunnel: bool) -> (Vec<request::Event>, Result<(), Violation>) {
    let mut reader = request::Reader::new(limit);
    let mut events: Vec<request::Event> = Vec::new();
    for piece in pieces {
        let mut bytes = Bytes::copy_from_slice(piece);
        loop {
            match reader.read(&mut bytes) {
                Ok(None) => break,
                Ok(Some(request::Event::Data(data))) => {
                    assert!(!data.is_empty(), "an event without anything in it");
                    join(&mut events, data);
                }
                Ok(Some(event)) => {
                    if let request::Event::Section(section) = &event {
                        assert!(section.len() <= limit, "more was collected than is allowed");
                    }
                    if tunnel && events.is_empty() {
                        reader.tunnel();
                    }
                    events.push(event);
                }
                Err(violation) => return (events, Err(violation)),
            }
        }
        assert!(bytes.is_empty(), "bytes that were not used up");
    }
    (events, reader.finish())
}

fn join(events: &mut Vec<request::Event>, more: Bytes) {
    match events.last_mut() {
        Some(request::Event::Data(data)) => {
            let mut joined = BytesMut::from(std::mem::take(data));
            joined.extend_from_slice(&more);
            *data = joined.freeze();
        }
        _ => events.push(request::Event::Data(more)),
    }
}

/// What whole frames in a lawful order must bring; `None` where they are not. Written down a second time, and
/// as simply as it can be.
fn lawful(mut stream: &[u8], limit: usize, tunnel: bool) -> Option<Vec<request::Event>> {
    let mut events = Vec::new();
    let mut sections = 0;
    while !stream.is_empty() {
        let (Header { kind, length }, size) = Header::decode(stream)?;
        let length = usize::try_from(length).ok()?;
        let payload = stream.get(size..)?.get(..length)?;
        stream = &stream[size + length..];
        match kind {
            Kind::HEADERS if length <= limit && sections < if tunnel { 1 } else { 2 } => {
                sections += 1;
                events.push(request::Event::Section(Bytes::copy_from_slice(payload)));
            }
            Kind::DATA if sections == 1 && length > 0 => join(&mut events, Bytes::copy_from_slice(payload)),
            Kind::DATA if sections == 1 => {}
            Kind(0x00..=0x0d | 0xf_0700 | 0xf_0701) => return None,
            _ => {}
        }
    }
    (sections > 0).then_some(events)
}

/// What a control stream brings until it breaks a rule.
fn of_control(pieces: &[&[u8]]) -> (Vec<control::Event>, Result<(), Violation>) {
    let mut reader = control::Reader::default();
    let mut events = Vec::new();
    for piece in pieces {
        let mut bytes = Bytes::copy_from_slice(piece);
        loop {
            match reader.read(&mut bytes) {
                Ok(None) => break,
                Ok(Some(event)) => events.push(event),
                Err(violation) => return (events, Err(violation)),
            }
        }
        assert!(bytes.is_empty(), "bytes that were not used up");
    }
    assert!(events.iter().skip(1).all(|event| *event != control::Event::Settings));
    (events, Ok(()))
}
