//! A request stream: frames as they come, and the response they must make.

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, VarInt};

use super::{
    frame::{DATA, HEADERS, take_varint},
    qpack,
};
use crate::fields::Fields;

/// Why nothing more comes on a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// RESET_STREAM with this code.
    Reset(u64),
    /// The connection is over.
    Lost(ConnectionError),
    /// A FIN in the middle of a frame.
    Torn,
}

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u64,
    pub payload: Bytes,
}

/// The frames of one stream.
pub struct Frames {
    pub recv: RecvStream,
    buffer: BytesMut,
}

impl Frames {
    pub fn new(recv: RecvStream) -> Frames {
        Frames { recv, buffer: BytesMut::new() }
    }

    /// Reads more; `false` at the FIN.
    async fn fill(&mut self) -> Result<bool, Ended> {
        match self.recv.read_chunk(64 * 1024, true).await {
            Ok(Some(chunk)) => {
                self.buffer.extend_from_slice(&chunk.bytes);
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(ReadError::Reset(code)) => Err(Ended::Reset(code.into_inner())),
            Err(ReadError::ConnectionLost(why)) => Err(Ended::Lost(why)),
            Err(other) => panic!("the client itself: {other}"),
        }
    }

    /// An integer, such as the type of a stream; `None` when the stream ends before it.
    pub async fn varint(&mut self) -> Result<Option<u64>, Ended> {
        loop {
            let mut rest = &self.buffer[..];
            if let Some(value) = take_varint(&mut rest) {
                let used = self.buffer.len() - rest.len();
                self.buffer.advance(used);
                return Ok(Some(value));
            }
            if !self.fill().await? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(Ended::Torn) };
            }
        }
    }

    /// Bytes as they come, for streams that hold no frames; `None` at the end.
    pub async fn bytes(&mut self) -> Result<Option<Bytes>, Ended> {
        let more = !self.buffer.is_empty() || self.fill().await?;
        Ok(more.then(|| self.buffer.split().freeze()))
    }

    /// The next frame; `None` when the stream ends before it.
    pub async fn next(&mut self) -> Result<Option<Frame>, Ended> {
        let Some(kind) = self.varint().await? else { return Ok(None) };
        let length = self.varint().await?.ok_or(Ended::Torn)?;
        let length = usize::try_from(length).expect("a frame that fits into memory");
        while self.buffer.len() < length {
            if !self.fill().await? {
                return Err(Ended::Torn);
            }
        }
        Ok(Some(Frame { kind, payload: self.buffer.split_to(length).freeze() }))
    }
}

/// A whole response.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub fields: Fields,
    pub body: Bytes,
    pub trailers: Option<Fields>,
    /// Interim responses, in order.
    pub interim: Vec<(u16, Fields)>,
    /// The types of the frames, in order.
    pub frames: Vec<u64>,
}

/// What became of a request.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// A response and its FIN.
    Answered(Box<Answer>),
    /// RESET_STREAM with this code, after a final head with this status if there was one.
    Reset {
        code: u64,
        status: Option<u16>,
    },
    Lost(ConnectionError),
}

/// One request stream in the hands of a test. Dropping it ends both of its directions.
pub struct Stream {
    pub send: SendStream,
    pub frames: Frames,
}

impl Stream {
    pub fn new(send: SendStream, recv: RecvStream) -> Stream {
        Stream { send, frames: Frames::new(recv) }
    }

    /// The number of the stream.
    pub fn id(&self) -> u64 {
        VarInt::from(self.send.id()).into_inner()
    }

    /// Sends; what the gateway no longer wants is lost, as the test will see from what comes back.
    pub async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.send.write_all(bytes.as_ref()).await;
    }

    /// Sends, and ends this direction.
    pub async fn finish(&mut self, bytes: impl AsRef<[u8]>) {
        self.write(bytes).await;
        let _ = self.send.finish();
    }

    /// RESET_STREAM.
    pub fn reset(&mut self, code: u64) {
        let _ = self.send.reset(VarInt::from_u64(code).unwrap());
    }

    /// STOP_SENDING.
    pub fn stop(&mut self, code: u64) {
        let _ = self.frames.recv.stop(VarInt::from_u64(code).unwrap());
    }

    /// The code of the gateway's STOP_SENDING; `None` if it took everything.
    pub async fn stopped(&mut self) -> Option<u64> {
        self.send.stopped().await.ok().flatten().map(VarInt::into_inner)
    }

    /// The next frame of the response, which must come.
    pub async fn frame(&mut self) -> Frame {
        self.frames.next().await.unwrap_or_else(|e| panic!("{e:?}")).expect("a frame, not the end")
    }

    /// The head of a response: of the next one, interim or final.
    pub async fn head(&mut self) -> (u16, Fields) {
        let frame = self.frame().await;
        assert_eq!(frame.kind, HEADERS, "{frame:?}");
        status(qpack::decode(&frame.payload).unwrap_or_else(|e| panic!("{e}")))
    }

    /// Bytes of DATA frames until there are as many.
    pub async fn body(&mut self, length: usize) -> Vec<u8> {
        let mut body = Vec::new();
        while body.len() < length {
            let frame = self.frame().await;
            assert_eq!(frame.kind, DATA, "{frame:?}");
            body.extend_from_slice(&frame.payload);
        }
        body
    }

    /// Reads to the end; panics where the response is not one that RFC 9114, section 4.1 allows.
    pub async fn outcome(&mut self) -> Outcome {
        let mut interim = Vec::new();
        let mut last: Option<(u16, Fields)> = None;
        let (mut body, mut trailers, mut frames) = (Vec::new(), None, Vec::new());
        loop {
            let frame = match self.frames.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(Ended::Reset(code)) => return Outcome::Reset { code, status: last.map(|(s, _)| s) },
                Err(Ended::Lost(why)) => return Outcome::Lost(why),
                Err(Ended::Torn) => panic!("the response ends within a frame, after {frames:?}"),
            };
            frames.push(frame.kind);
            match (frame.kind, &last, &trailers) {
                (HEADERS, None, None) => {
                    let fields = qpack::decode(&frame.payload).unwrap_or_else(|e| panic!("{e}"));
                    let (status, fields) = status(fields);
                    if status < 200 {
                        interim.push((status, fields));
                    } else {
                        last = Some((status, fields));
                    }
                }
                (HEADERS, Some(_), None) => {
                    let fields = qpack::decode(&frame.payload).unwrap_or_else(|e| panic!("{e}"));
                    lawful(&fields);
                    trailers = Some(fields);
                }
                (DATA, Some(_), None) => body.extend_from_slice(&frame.payload),
                (0..=0x20, ..) => panic!("a frame out of place, the last of {frames:x?}"),
                _ => {}
            }
        }
        let (status, fields) = last.unwrap_or_else(|| panic!("no final response: {frames:?} {interim:?}"));
        if let Some(length) = fields.get("content-length")
            && (!body.is_empty() || frames.contains(&DATA))
        {
            assert_eq!(length, body.len().to_string(), "{fields:?}");
        }
        Outcome::Answered(Box::new(Answer { status, fields, body: body.into(), trailers, interim, frames }))
    }

    /// The response, which must be whole.
    pub async fn answer(&mut self) -> Answer {
        match self.outcome().await {
            Outcome::Answered(answer) => *answer,
            other => panic!("no answer: {other:x?}"),
        }
    }
}

/// Section 4.3.2: exactly one `:status`, before everything else.
fn status(mut fields: Fields) -> (u16, Fields) {
    assert!(fields.0.first().is_some_and(|(name, _)| name == ":status"), "{fields:?}");
    let (_, status) = fields.0.remove(0);
    assert!(status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit()), "status {status:?}");
    lawful(&fields);
    (status.parse().unwrap(), fields)
}

/// Section 4.2: lower-case names that are tokens, valid values, and nothing of HTTP/1.1 connections.
fn lawful(fields: &Fields) {
    const CONNECTION: [&str; 6] =
        ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade", "te"];
    for (name, value) in fields.iter() {
        let token = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&b);
        assert!(!name.is_empty() && name.bytes().all(token), "field name {name:?} in {fields:?}");
        assert!(!CONNECTION.contains(&name), "{name} in {fields:?}");
        assert!(value.chars().all(|c| c == '\t' || !c.is_ascii_control()), "{name}: {value:?}");
        assert_eq!(value.trim_matches([' ', '\t']), value, "{name}: {value:?}");
    }
}
