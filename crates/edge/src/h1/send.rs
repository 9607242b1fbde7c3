//! A response's body, written to its connection as it comes and as the client takes it.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::http1::BodyWriter;
use foregate_exchange::{Body, Failure};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::yield_now;

use super::wire::Wire;
use crate::deadline::Deadline;

/// How much is written before others are served: a client that takes everything as fast as its VM gives it would not
/// let go of the thread otherwise.
const TURN: usize = 256 * 1024;

pub(super) struct Sending<'c, IO> {
    pub(super) wire: &'c Wire<IO>,
    pub(super) body: Body,
    pub(super) writer: BodyWriter,
    /// The body broke off.
    pub(super) failed: Option<Failure>,
    pub(super) deadline: &'c mut Deadline,
    /// How long the client may take nothing.
    pub(super) stalled: Option<Duration>,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Sending<'_, IO> {
    /// Writes and flushes all of it.
    pub(super) async fn all(mut self, peer: SocketAddr) -> io::Result<()> {
        while !poll_fn(|cx| self.poll(cx)).await? {
            yield_now().await;
        }
        let Some(failure) = self.failed else { return Ok(()) };
        // What did come is the client's; closing without the end is how HTTP/1.1 says that there should have been more.
        tracing::warn!(%peer, failure = failure.kind().label(), %failure, "response cut short");
        Err(io::Error::other(failure))
    }

    /// Writes what there is; false: it has had its turn, and there may be more.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let mut turn = TURN;
        loop {
            while !self.is_over() && self.wire.output.borrow().has_room() {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => {
                        turn = turn.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                        let mut output = self.wire.output.borrow_mut();
                        self.writer.put(&mut output, frame).map_err(io::Error::other)?;
                    }
                    Poll::Ready(Some(Err(failure))) => self.failed = Some(failure),
                    Poll::Ready(None) => {
                        self.writer.end(&mut self.wire.output.borrow_mut()).map_err(io::Error::other)?;
                    }
                    Poll::Pending => {
                        ready!(self.poll_flush(cx))?;
                        if self.wire.watch(cx).is_ready() {
                            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
                        }
                        return Poll::Pending;
                    }
                }
            }
            if self.is_over() {
                return self.poll_flush(cx).map_ok(|()| true);
            }
            let written = self.wire.poll_write(cx);
            ready!(self.unless_stalled(written, cx))?;
            if turn == 0 {
                return Poll::Ready(Ok(false));
            }
        }
    }

    /// Nothing more comes.
    fn is_over(&self) -> bool {
        self.writer.has_ended() || self.failed.is_some()
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.wire.poll_flush(cx);
        self.unless_stalled(flushed, cx)
    }

    fn unless_stalled(
        &mut self,
        written: Poll<io::Result<()>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if written.is_ready() {
            self.deadline.clear();
            return written;
        }
        self.deadline.poll(cx, self.stalled).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use bytes::BytesMut;
    use foregate_exchange::http1::Ending;
    use http_body::Frame;
    use tokio::io::{Join, empty, join, sink};
    use tokio::runtime::{Builder, LocalOptions};
    use tokio::task::spawn_local;

    use super::*;

    const PIECE: usize = 64 * 1024;

    /// Never has anybody wait.
    struct Fast {
        left: usize,
        given: Rc<Cell<usize>>,
    }

    impl http_body::Body for Fast {
        type Data = Bytes;
        type Error = Failure;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
            let Some(left) = self.left.checked_sub(PIECE) else { return Poll::Ready(None) };
            self.left = left;
            self.given.set(self.given.get() + PIECE);
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[0; PIECE])))))
        }
    }

    /// A client that takes everything at once, and says nothing.
    fn greedy() -> Wire<Join<tokio::io::Empty, tokio::io::Sink>> {
        Wire::new(join(empty(), sink()), BytesMut::new())
    }

    #[test]
    fn others_have_their_turn_while_a_client_takes_all_there_is() {
        let runtime = Builder::new_current_thread().enable_time().build_local(LocalOptions::default());
        runtime.expect("a runtime").block_on(async {
            const LENGTH: usize = 64 << 20;
            let given = Rc::new(Cell::new(0));
            let body = Body::stream(Fast { left: LENGTH, given: given.clone() });
            let sent = spawn_local(async move {
                let sending = Sending {
                    wire: &greedy(),
                    body,
                    writer: BodyWriter::new(Ending::Length(LENGTH as u64), Vec::new()),
                    failed: None,
                    deadline: &mut Deadline::default(),
                    stalled: None,
                };
                sending.all(([127, 0, 0, 1], 80).into()).await
            });
            while !sent.is_finished() {
                yield_now().await;
                let turn = given.replace(0);
                assert!(turn <= TURN, "{turn} bytes in one turn");
            }
            sent.await.expect("it ends").expect("all of it is sent");
        });
    }
}
