//! A request's body, read from its connection as the VM takes it.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::head::strip_trailers;
use foregate_exchange::http1::Piece;
use foregate_exchange::{Failure, Kind};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};

use super::wire::Wire;
use crate::deadline::Deadline;

/// Nothing is read before somebody asks for it: that is the back-pressure, and it is when a client that
/// waits for 100 (Continue) is told to go on.
pub(super) struct RequestBody<IO> {
    wire: Rc<Wire<IO>>,
    /// Between two reads.
    pause: Option<Duration>,
    deadline: Deadline,
    failed: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> RequestBody<IO> {
    pub(super) fn new(wire: Rc<Wire<IO>>, pause: Option<Duration>) -> RequestBody<IO> {
        RequestBody { wire, pause, deadline: Deadline::default(), failed: false }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if self.failed || self.wire.is_abandoned() {
            return Poll::Ready(Some(Err(Kind::ClientGone.into())));
        }
        if self.wire.owes_continue.take() {
            self.wire.put(|output| output.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n"));
            // What cannot be written now the connection's loop writes.
            if let Poll::Ready(Err(error)) = self.wire.poll_flush(cx) {
                return Poll::Ready(Some(Err(Failure::because(Kind::ClientGone, error))));
            }
        }
        loop {
            match self.wire.decode() {
                Err(broken) => return Poll::Ready(Some(Err(Failure::because(Kind::ClientBody, broken)))),
                Ok(Piece::Data(data)) => {
                    self.deadline.clear();
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Piece::Trailers(mut fields)) => {
                    strip_trailers(&mut fields);
                    return Poll::Ready(Some(Ok(Frame::trailers(fields))));
                }
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::More) => {}
            }
            match self.wire.poll_fill(cx) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    self.deadline.clear();
                    self.wire.wake_loop(cx);
                }
                Poll::Ready(Ok(_)) => {
                    let reason = "the connection ended within the request's body";
                    return Poll::Ready(Some(Err(Failure::because(Kind::ClientGone, reason))));
                }
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Some(Err(Failure::because(Kind::ClientGone, error))));
                }
                Poll::Pending => {
                    self.wire.body_waits(cx);
                    return match self.deadline.poll(cx, self.pause) {
                        Poll::Ready(()) => Poll::Ready(Some(Err(Kind::ClientBodyTimeout.into()))),
                        Poll::Pending => Poll::Pending,
                    };
                }
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> http_body::Body for RequestBody<IO> {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = self.poll(cx);
        if matches!(frame, Poll::Ready(Some(Err(_)))) {
            self.failed = true;
            self.wire.fail();
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.wire.body_is_done()
    }

    fn size_hint(&self) -> SizeHint {
        self.wire.framing.borrow().size_hint()
    }
}
