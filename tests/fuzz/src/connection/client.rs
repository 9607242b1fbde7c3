//! A client that does what the input says.

use std::time::Duration;

use foregate_http3::Code;
use foregate_http3::codec::frame::{Header, Kind};
use foregate_http3::codec::qpack;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, timeout};

use super::service::Goodbye;
use crate::input::Input;
use crate::seeds::phrases;

/// Long enough for everything to happen that can, see the module above.
const PAUSE: Duration = Duration::from_millis(1);
/// How many steps are taken, and how many pieces of a response are read: an input should not take a second, and
/// with the smallest windows each byte is a piece.
const STEPS: usize = 200;
const PIECES: usize = 200;

/// What a step does, by the lower half of its first byte; the upper half chooses a stream, or how it is read.
pub(crate) mod step {
    pub(crate) const OPEN: u8 = 0;
    pub(crate) const OPEN_UNI: u8 = 1;
    /// Followed by a length and so many bytes. What is written without a pause is read together.
    pub(crate) const WRITE: u8 = 2;
    pub(crate) const WRITE_AND_PAUSE: u8 = 3;
    /// Followed by the number of a phrase.
    pub(crate) const SAY: u8 = 4;
    pub(crate) const SAY_AND_PAUSE: u8 = 5;
    /// The same on a new bidirectional stream.
    pub(crate) const ASK: u8 = 6;
    /// The same on a new unidirectional stream.
    pub(crate) const TELL: u8 = 7;
    pub(crate) const FINISH: u8 = 8;
    pub(crate) const RESET: u8 = 9;
    pub(crate) const STOP: u8 = 10;
    pub(crate) const PAUSE: u8 = 11;
    /// Of the server: it leaves, in two steps.
    pub(crate) const LEAVE: u8 = 12;
}

/// How a response is read, by the upper half of the step that opens the stream: not at all, a byte at a time,
/// else as it comes.
pub(crate) mod reading {
    pub(crate) const NOT: u8 = 1;
    pub(crate) const BYTEWISE: u8 = 2;
}

pub(super) struct Client {
    quic: quinn::Connection,
    streams: Vec<Stream>,
    goodbyes: mpsc::UnboundedSender<Goodbye>,
    /// What the server has been told of leaving.
    said: usize,
    readers: Vec<JoinHandle<()>>,
}

struct Stream {
    send: SendStream,
    recv: Receiving,
}

enum Receiving {
    /// Nobody reads it.
    Left {
        _recv: RecvStream,
    },
    By(tokio::task::AbortHandle),
    Over,
}

impl Client {
    pub(super) fn new(quic: quinn::Connection, goodbyes: mpsc::UnboundedSender<Goodbye>) -> Client {
        Client { quic, streams: Vec::new(), goodbyes, said: 0, readers: Vec::new() }
    }

    pub(super) async fn follow(&mut self, mut input: Input<'_>) {
        for _ in 0..STEPS {
            if input.is_over() || self.quic.close_reason().is_some() {
                break;
            }
            let first = input.byte();
            self.step(first & 0x0f, first >> 4, &mut input).await;
        }
        sleep(PAUSE).await;
        for reader in self.readers.extract_if(.., |reader| reader.is_finished()) {
            if let Err(error) = reader.await {
                assert!(error.is_cancelled(), "{error}");
            }
        }
    }

    async fn step(&mut self, step: u8, choice: u8, input: &mut Input<'_>) {
        match step {
            step::OPEN => self.open(choice).await,
            step::OPEN_UNI => self.open_uni().await,
            step::WRITE | step::WRITE_AND_PAUSE => {
                let length = usize::from(input.byte());
                self.write(choice, input.take(length)).await;
            }
            step::SAY | step::SAY_AND_PAUSE => self.write(choice, phrases::nth(input.byte())).await,
            step::ASK => {
                self.open(choice).await;
                self.write_last(phrases::nth(input.byte())).await;
            }
            step::TELL => {
                self.open_uni().await;
                self.write_last(phrases::nth(input.byte())).await;
            }
            step::FINISH => {
                if let Some(stream) = self.stream(choice) {
                    _ = stream.send.finish();
                }
            }
            step::RESET => {
                if let Some(stream) = self.stream(choice) {
                    _ = stream.send.reset(Code::H3_REQUEST_CANCELLED.into());
                }
            }
            step::STOP => {
                if let Some(stream) = self.stream(choice) {
                    // Either way the stream is dropped, and that stops it.
                    if let Receiving::By(reader) = std::mem::replace(&mut stream.recv, Receiving::Over) {
                        reader.abort();
                    }
                }
            }
            step::LEAVE => {
                if let Some(goodbye) = [Goodbye::Begin, Goodbye::Finish].get(self.said) {
                    self.said += 1;
                    _ = self.goodbyes.send(*goodbye);
                }
            }
            _ => {}
        }
        if let step::WRITE_AND_PAUSE | step::SAY_AND_PAUSE | step::PAUSE = step {
            sleep(PAUSE).await;
        }
    }

    /// Opens a stream if that is allowed.
    async fn open(&mut self, how: u8) {
        let Ok(Ok((send, recv))) = timeout(PAUSE, self.quic.open_bi()).await else { return };
        let recv = if how == reading::NOT {
            Receiving::Left { _recv: recv }
        } else {
            let reader = spawn_local(read(recv, how == reading::BYTEWISE));
            let handle = reader.abort_handle();
            self.readers.push(reader);
            Receiving::By(handle)
        };
        self.streams.push(Stream { send, recv });
    }

    async fn open_uni(&mut self) {
        if let Ok(Ok(send)) = timeout(PAUSE, self.quic.open_uni()).await {
            self.streams.push(Stream { send, recv: Receiving::Over });
        }
    }

    fn stream(&mut self, choice: u8) -> Option<&mut Stream> {
        let count = self.streams.len();
        self.streams.get_mut(usize::from(choice).checked_rem(count)?)
    }

    /// Writes what there is room for.
    async fn write(&mut self, choice: u8, bytes: &[u8]) {
        if let Some(stream) = self.stream(choice) {
            _ = timeout(PAUSE, stream.send.write_all(bytes)).await;
        }
    }

    async fn write_last(&mut self, bytes: &[u8]) {
        if let Some(stream) = self.streams.last_mut() {
            _ = timeout(PAUSE, stream.send.write_all(bytes)).await;
        }
    }

    pub(super) fn leave(self) {
        self.readers.iter().for_each(JoinHandle::abort);
        self.quic.close(VarInt::from_u32(0x100), b"");
    }
}

/// Reads a response; one that ends must be whole.
async fn read(mut recv: RecvStream, bytewise: bool) {
    let mut response = Vec::new();
    for number in 0.. {
        if number == PIECES {
            // No more of it is wanted, but the service is not told so.
            std::future::pending::<()>().await;
        }
        match recv.read_chunk(if bytewise { 1 } else { usize::MAX }, true).await {
            Ok(Some(chunk)) => response.extend_from_slice(&chunk.bytes),
            Ok(None) => break,
            // Reset, or lost with the connection.
            Err(_) => return,
        }
        if bytewise {
            sleep(PAUSE / 100).await;
        }
    }
    let statuses = statuses(&response);
    let (last, interim) = statuses.split_last().expect("a response without a head");
    assert!(!last.starts_with('1') && interim.iter().all(|status| status.starts_with('1')), "{statuses:?}");
}

/// The statuses of a response that has come to its end; panics where it is not made of whole frames in order.
pub(super) fn statuses(mut response: &[u8]) -> Vec<String> {
    let mut statuses = Vec::new();
    let mut trailers = false;
    while !response.is_empty() {
        let (Header { kind, length }, size) = Header::decode(response).expect("the end of a frame header");
        let payload = &response[size..size + length as usize];
        response = &response[size + length as usize..];
        assert!(!trailers, "a frame after the trailers");
        match kind {
            Kind::HEADERS => match qpack::decode(payload, u64::MAX).unwrap().pseudos.status {
                Some(status) => statuses.push(String::from_utf8(status.to_vec()).unwrap()),
                None => trailers = true,
            },
            Kind::DATA => assert!(!statuses.is_empty(), "a body before the head"),
            other => panic!("a frame of {other:?}"),
        }
    }
    statuses
}
