//! Tunnels: after an upgrade or an extended CONNECT the exchange is bytes in both directions.

mod frames;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use self::frames::{Frames, GOING_AWAY};
use crate::deadline::Deadline;

/// Each direction holds at most this much of what the other end has not taken yet.
const BUFFER: usize = 16 * 1024;
/// Who was told that it is over has so long to agree.
const GOODBYE: Duration = Duration::from_secs(5);

/// The VM's end of a tunnel, waiting for the client's connection to be joined to it.
pub struct Tunnel {
    stream: Box<dyn Stream>,
    idle: Option<Duration>,
    parting: Option<Parting>,
    /// Whatever must live as long as the tunnel runs, such as the VM's in-flight count.
    _guard: Box<dyn std::any::Any>,
}

/// Ready when the tunnel is to end although nobody has ended it.
pub type Parting = Box<dyn FnMut(&mut Context<'_>) -> Poll<()>>;

impl Tunnel {
    /// `idle` closes the tunnel when no byte has passed in either direction for that long.
    pub fn new(stream: impl Stream + 'static, idle: Option<Duration>, guard: impl std::any::Any) -> Tunnel {
        Tunnel { stream: Box::new(stream), idle, parting: None, _guard: Box::new(guard) }
    }

    /// The same tunnel under another time limit.
    #[must_use]
    pub fn limited(self, idle: Option<Duration>) -> Tunnel {
        Tunnel { idle, ..self }
    }

    /// The same tunnel, which carries a WebSocket: when `parting` is ready the client is told that the server goes away
    /// (RFC 6455, section 7.4.1), between two frames, and its answer ends both.
    #[must_use]
    pub fn parting(self, parting: Parting) -> Tunnel {
        Tunnel { parting: Some(parting), ..self }
    }

    /// Copies in both directions until both ends have finished, one fails, or nothing moves for too long.
    ///
    /// An end of one direction is passed on as a half-close; the other direction goes on.
    ///
    /// # Errors
    /// What either end reported, or `TimedOut`.
    pub async fn join(mut self, client: impl AsyncRead + AsyncWrite) -> io::Result<()> {
        let mut client = pin!(client);
        let mut server = Pin::new(&mut self.stream);
        let mut up = Pipe::new();
        let mut down = Pipe::new();
        down.frames = self.parting.is_some().then(Frames::default);
        let mut deadline = Deadline::default();
        let mut goodbye = Deadline::default();
        poll_fn(|cx| {
            if !down.leaves && self.parting.as_mut().is_some_and(|parting| parting(cx).is_ready()) {
                down.leaves = true;
            }
            if down.leaves && goodbye.poll(cx, Some(GOODBYE)).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let upward = up.poll(cx, client.as_mut(), server.as_mut())?;
            let downward = down.poll(cx, server.as_mut(), client.as_mut())?;
            if upward.is_ready() && downward.is_ready() {
                return Poll::Ready(Ok(()));
            }
            if up.take_moved() | down.take_moved() {
                deadline.clear();
            }
            deadline.poll(cx, self.idle).map(|()| Err(io::ErrorKind::TimedOut.into()))
        })
        .await
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnel")
    }
}

/// A byte stream in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// One direction: read, write, flush when the reader pauses, shut down after its end.
struct Pipe {
    buffer: Box<[u8]>,
    filled: usize,
    written: usize,
    ended: bool,
    unflushed: bool,
    done: bool,
    moved: bool,
    /// Follows what passes, where that is a WebSocket.
    frames: Option<Frames>,
    /// It is to say goodbye as soon as that may stand between two frames, and has said it: nothing follows that.
    leaves: bool,
    gone: bool,
}

impl Pipe {
    fn new() -> Pipe {
        Pipe {
            buffer: vec![0; BUFFER].into_boxed_slice(),
            filled: 0,
            written: 0,
            ended: false,
            unflushed: false,
            done: false,
            moved: false,
            frames: None,
            leaves: false,
            gone: false,
        }
    }

    /// Puts the last frame in place, if one may stand here, and the server has not said goodbye itself.
    fn says_goodbye(&mut self) -> bool {
        let between = self.frames.as_ref().is_some_and(|frames| frames.is_between() && !frames.is_closed());
        if let (true, Some(place)) = (between, self.buffer.get_mut(..GOING_AWAY.len())) {
            place.copy_from_slice(&GOING_AWAY);
            (self.written, self.filled, self.gone) = (0, GOING_AWAY.len(), true);
        }
        between
    }

    /// Follows what was read; of what comes after the goodbye, or after its place, nothing is passed on.
    fn follow(&mut self) {
        let Some(frames) = &mut self.frames else { return };
        let read = self.buffer.get(..self.filled).unwrap_or_default();
        self.filled = if self.gone { 0 } else { frames.pass(read, self.leaves && !frames.is_closed()) };
    }

    /// Whether bytes have passed since the last question.
    fn take_moved(&mut self) -> bool {
        std::mem::take(&mut self.moved)
    }

    fn poll<R, W>(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut R>,
        mut to: Pin<&mut W>,
    ) -> Poll<io::Result<()>>
    where
        R: AsyncRead + ?Sized,
        W: AsyncWrite + ?Sized,
    {
        if self.done {
            return Poll::Ready(Ok(()));
        }
        loop {
            while let Some(rest) = self.buffer.get(self.written..self.filled).filter(|rest| !rest.is_empty())
            {
                let n = ready!(to.as_mut().poll_write(cx, rest))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.written += n;
                self.unflushed = true;
                self.moved = true;
            }
            if self.ended {
                ready!(to.as_mut().poll_shutdown(cx))?;
                self.done = true;
                return Poll::Ready(Ok(()));
            }
            if self.leaves && !self.gone && self.says_goodbye() {
                continue;
            }
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match from.as_mut().poll_read(cx, &mut buffer) {
                Poll::Ready(result) => {
                    result?;
                    self.filled = buffer.filled().len();
                    self.written = 0;
                    self.ended = self.filled == 0;
                    self.follow();
                }
                Poll::Pending => {
                    if self.unflushed {
                        ready!(to.as_mut().poll_flush(cx))?;
                        self.unflushed = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}
