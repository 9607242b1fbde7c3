//! Tunnels: after an upgrade or an extended CONNECT the exchange is bytes in both directions.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::deadline::Deadline;

/// Each direction holds at most this much of what the other end has not taken yet.
const BUFFER: usize = 16 * 1024;

/// The VM's end of a tunnel, waiting for the client's connection to be joined to it.
pub struct Tunnel {
    stream: Box<dyn Stream>,
    idle: Option<Duration>,
    /// Whatever must live as long as the tunnel runs, such as the VM's in-flight count.
    _guard: Box<dyn std::any::Any>,
}

impl Tunnel {
    /// `idle` closes the tunnel when no byte has passed in either direction for that long.
    pub fn new(stream: impl Stream + 'static, idle: Option<Duration>, guard: impl std::any::Any) -> Tunnel {
        Tunnel { stream: Box::new(stream), idle, _guard: Box::new(guard) }
    }

    /// The same tunnel under a time limit and with a guard of the caller's that lives as long.
    #[must_use]
    pub fn guarded(self, idle: Option<Duration>, guard: impl std::any::Any) -> Tunnel {
        Tunnel { stream: self.stream, idle, _guard: Box::new((self._guard, guard)) }
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
        let mut deadline = Deadline::default();
        poll_fn(|cx| {
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
        }
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
            let mut buffer = ReadBuf::new(&mut self.buffer);
            match from.as_mut().poll_read(cx, &mut buffer) {
                Poll::Ready(result) => {
                    result?;
                    self.filled = buffer.filled().len();
                    self.written = 0;
                    self.ended = self.filled == 0;
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
