//! The bytes of one connection, shared by its loop and the body being read from it.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::BytesMut;
use foregate_exchange::http1::{Broken, Framing, Output, Piece};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

/// Room for one read of a head, and of a body.
const HEAD_READ: usize = 4 * 1024;
const BODY_READ: usize = 32 * 1024;
/// What a client may send ahead while its request is being answered.
const PIPELINED: usize = 64 * 1024;

/// One thread owns a connection; the cells are borrowed only within a poll.
pub(super) struct Wire<IO> {
    io: RefCell<IO>,
    /// Read and not yet taken.
    pub(super) input: RefCell<BytesMut>,
    /// Waits to be written.
    pub(super) output: RefCell<Output>,
    /// The body of the request under way.
    pub(super) framing: RefCell<Framing>,
    /// The client waits for a 100 before it sends its body.
    pub(super) owes_continue: Cell<bool>,
    /// The connection's loop and the body may be polled by two tasks, and the socket remembers one reader:
    /// whoever reads tells the other.
    body_waker: Cell<Option<Waker>>,
    loop_waker: Cell<Option<Waker>>,
    /// The body failed: what follows it on this connection is not to be trusted.
    failed: Cell<bool>,
    /// The loop has given the connection up; a body that is still held by somebody reads no more.
    abandoned: Cell<bool>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Wire<IO> {
    pub(super) fn new(io: IO, first: BytesMut) -> Wire<IO> {
        Wire {
            io: RefCell::new(io),
            input: RefCell::new(first),
            output: RefCell::default(),
            framing: RefCell::new(Framing::None),
            owes_continue: Cell::new(false),
            body_waker: Cell::new(None),
            loop_waker: Cell::new(None),
            failed: Cell::new(false),
            abandoned: Cell::new(false),
        }
    }

    /// Reads what has come; 0 is the end.
    pub(super) fn poll_fill(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut input = self.input.borrow_mut();
        let mut io = self.io.borrow_mut();
        let io = Pin::new(&mut *io);
        if !matches!(*self.framing.borrow(), Framing::None) {
            input.reserve(BODY_READ);
            return poll_read_buf(io, cx, &mut *input);
        }
        // Heads are small, and mostly there is none: a connection that waits for one has no buffer for it.
        let mut room = [const { MaybeUninit::uninit() }; HEAD_READ];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(io.poll_read(cx, &mut read))?;
        input.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    /// Ready when the client has closed. Reads ahead only what a pipelining client may send.
    pub(super) fn watch(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.body_is_done() { self.read_ahead(cx) } else { Poll::Pending }
    }

    /// Reads a bounded amount; ready when the client has closed.
    pub(super) fn read_ahead(&self, cx: &mut Context<'_>) -> Poll<()> {
        while self.input.borrow().len() < PIPELINED {
            match ready!(self.poll_fill(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// Gives back the memory of requests and responses that are over.
    pub(super) fn rest(&self) {
        let mut input = self.input.borrow_mut();
        if input.is_empty() {
            *input = BytesMut::new();
        }
        self.output.borrow_mut().rest();
    }

    /// Whether the request's body has been read to its end.
    pub(super) fn body_is_done(&self) -> bool {
        self.framing.borrow().is_done()
    }

    /// The next piece of the request's body from what has been read.
    pub(super) fn decode(&self) -> Result<Piece, Broken> {
        self.framing.borrow_mut().decode(&mut self.input.borrow_mut())
    }

    /// The body waits for bytes.
    pub(super) fn body_waits(&self, cx: &Context<'_>) {
        self.body_waker.set(Some(cx.waker().clone()));
    }

    /// The loop waits for the client to leave.
    pub(super) fn loop_waits(&self, cx: &Context<'_>) {
        self.loop_waker.set(Some(cx.waker().clone()));
    }

    /// There are bytes for the body, read by the loop.
    pub(super) fn wake_body(&self) {
        if let Some(waker) = self.body_waker.take() {
            waker.wake();
        }
    }

    /// The body has read, so the socket no longer knows the loop.
    pub(super) fn wake_loop(&self, cx: &Context<'_>) {
        if let Some(waker) = self.loop_waker.take() {
            if waker.will_wake(cx.waker()) {
                self.loop_waker.set(Some(waker));
            } else {
                waker.wake();
            }
        }
    }

    pub(super) fn fail(&self) {
        self.failed.set(true);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed.get()
    }

    pub(super) fn abandon(&self) {
        self.abandoned.set(true);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.get()
    }

    /// Appends to what is to be written.
    pub(super) fn put(&self, write: impl FnOnce(&mut BytesMut)) {
        write(self.output.borrow_mut().bytes());
    }

    /// Writes what waits, without flushing layers below. `Ready` when nothing waits here any more.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.borrow_mut().poll_write(&mut *self.io.borrow_mut(), cx)
    }

    /// Writes what waits and flushes it to the socket.
    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.output.borrow_mut().poll_flush(&mut *self.io.borrow_mut(), cx)
    }

    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx)
    }
}

/// After an upgrade the connection is a plain byte stream, beginning with what was read too early.
pub(super) struct Bare<IO>(pub(super) std::rc::Rc<Wire<IO>>);

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Bare<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut input = self.0.input.borrow_mut();
        if input.is_empty() {
            return Pin::new(&mut *self.0.io.borrow_mut()).poll_read(cx, buf);
        }
        let n = input.len().min(buf.remaining());
        buf.put_slice(&input.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Bare<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }
}
