//! A request body that may not be longer than its route allows.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use foregate_exchange::{Body, Failure, Kind};
use http_body::{Body as _, Frame, SizeHint};

/// Fails with `ClientBodyTooLarge` at the first byte beyond the limit.
pub(crate) struct Limited {
    body: Body,
    left: u64,
}

impl Limited {
    /// The body under the limit, or nothing if its announced length is beyond it already.
    pub(crate) fn wrap(body: Body, limit: u64) -> Option<Body> {
        let size = body.size_hint();
        if size.lower() > limit {
            return None;
        }
        // What is known to be short enough needs no counting.
        if size.exact().is_some() {
            return Some(body);
        }
        Some(Body::stream(Limited { body, left: limit }))
    }
}

impl http_body::Body for Limited {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            match self.left.checked_sub(data.len() as u64) {
                Some(left) => self.left = left,
                None => return Poll::Ready(Some(Err(Kind::ClientBodyTooLarge.into()))),
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
