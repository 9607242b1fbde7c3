//! The unidirectional streams of a client (RFC 9114, section 6.2).

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use quinn::{ReadError, RecvStream};

use crate::Error;
use crate::code::Code;
use crate::codec::control::{Event, Reader, StreamKind};
use crate::codec::qpack::{DecoderStream, EncoderStream};
use crate::codec::{Violation, varint};

/// Bytes of these streams that are read before others of the worker run. The shortest of frames take eight and are some
/// work each.
const PIECE: usize = 4096;

/// Those of one connection. Their number is bounded by what QUIC allows the client to open.
#[derive(Default)]
pub(crate) struct UniStreams {
    streams: Vec<Uni>,
    control: bool,
    encoder: bool,
    decoder: bool,
}

struct Uni {
    quic: RecvStream,
    role: Role,
}

enum Role {
    /// The type has not come whole.
    Unnamed(Vec<u8>),
    Control(Reader),
    Encoder(EncoderStream),
    Decoder(DecoderStream),
}

impl UniStreams {
    pub(crate) fn add(&mut self, quic: RecvStream) {
        self.streams.push(Uni { quic, role: Role::Unnamed(Vec::new()) });
    }

    /// Reads what has come. Each event of the control stream is handed to `tell`.
    ///
    /// # Errors
    /// A violation; every one of these streams concerns the whole connection.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, mut tell: impl FnMut(Event)) -> Result<(), Error> {
        let (mut at, mut left) = (0, PIECE);
        while let Some(uni) = self.streams.get_mut(at) {
            if left == 0 {
                cx.waker().wake_by_ref();
                break;
            }
            let read = pin!(uni.quic.read_chunk(left, true)).poll(cx);
            let Poll::Ready(read) = read else {
                at += 1;
                continue;
            };
            let goes_on = match read {
                Ok(Some(chunk)) => {
                    left = left.saturating_sub(chunk.bytes.len());
                    self.take(at, chunk.bytes, &mut tell)?
                }
                Err(ReadError::ConnectionLost(error)) => return Err(error.into()),
                Ok(None) | Err(_) => match uni.role {
                    // A stream that ends before its type is known is of no use, and no harm.
                    Role::Unnamed(_) => false,
                    _ => {
                        let reason = "a critical stream was closed";
                        return Err(Violation::connection(Code::H3_CLOSED_CRITICAL_STREAM, reason).into());
                    }
                },
            };
            if !goes_on {
                self.streams.swap_remove(at);
            }
        }
        Ok(())
    }

    /// Hands bytes to their stream. False: the stream is not wanted.
    fn take(&mut self, at: usize, mut bytes: Bytes, tell: &mut impl FnMut(Event)) -> Result<bool, Error> {
        let Some(uni) = self.streams.get_mut(at) else { return Ok(false) };
        if let Role::Unnamed(start) = &mut uni.role {
            // Only the type is held, however much comes with it.
            let missing = 8usize.saturating_sub(start.len()).min(bytes.len());
            let before = start.len();
            start.extend_from_slice(bytes.get(..missing).unwrap_or_default());
            let Some((id, size)) = varint::decode(start) else { return Ok(true) };
            bytes = bytes.split_off(size - before);
            let refuse = |reason| Err(Violation::connection(Code::H3_STREAM_CREATION_ERROR, reason).into());
            uni.role = match StreamKind::from_id(id) {
                StreamKind::Control if std::mem::replace(&mut self.control, true) => {
                    return refuse("a second control stream");
                }
                StreamKind::Encoder if std::mem::replace(&mut self.encoder, true) => {
                    return refuse("a second QPACK encoder stream");
                }
                StreamKind::Decoder if std::mem::replace(&mut self.decoder, true) => {
                    return refuse("a second QPACK decoder stream");
                }
                StreamKind::Control => Role::Control(Reader::default()),
                StreamKind::Encoder => Role::Encoder(EncoderStream::default()),
                StreamKind::Decoder => Role::Decoder(DecoderStream::default()),
                StreamKind::Push => return refuse("a push stream from a client"),
                StreamKind::Unknown => {
                    // Section 6.2: not an error; the client is told that nobody reads it.
                    _ = uni.quic.stop(Code::H3_STREAM_CREATION_ERROR.into());
                    return Ok(false);
                }
            };
        }
        match &mut uni.role {
            Role::Unnamed(_) => {}
            Role::Control(reader) => {
                while let Some(event) = reader.read(&mut bytes)? {
                    tell(event);
                }
            }
            Role::Encoder(stream) => stream.read(&bytes)?,
            Role::Decoder(stream) => stream.read(&bytes)?,
        }
        Ok(true)
    }
}
