//! The one body type of requests and responses.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::{Failure, Tunnel};

/// A request's or response's body.
///
/// Not `Send`: a body belongs to the worker its connection belongs to. Dropping a stream before its end
/// cancels the exchange behind it.
#[derive(Default)]
pub enum Body {
    #[default]
    Empty,
    /// Everything is here.
    Full(Bytes),
    /// Comes piece by piece from a connection.
    Stream(Pin<Box<dyn http_body::Body<Data = Bytes, Error = Failure>>>),
    /// The response switches protocols: from here on it is bytes in both directions.
    Tunnel(Tunnel),
}

impl Body {
    pub fn stream(body: impl http_body::Body<Data = Bytes, Error = Failure> + 'static) -> Body {
        Body::Stream(Box::pin(body))
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        if bytes.is_empty() { Body::Empty } else { Body::Full(bytes) }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = self.get_mut();
        match this {
            Body::Empty | Body::Tunnel(_) => Poll::Ready(None),
            Body::Full(bytes) => {
                let bytes = std::mem::take(bytes);
                *this = Body::Empty;
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Body::Stream(stream) => stream.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Body::Empty | Body::Tunnel(_) => true,
            Body::Full(_) => false,
            Body::Stream(stream) => stream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Body::Empty | Body::Tunnel(_) => SizeHint::with_exact(0),
            Body::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Body::Stream(stream) => stream.size_hint(),
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Empty => f.write_str("Empty"),
            Body::Full(bytes) => write!(f, "Full({} bytes)", bytes.len()),
            Body::Stream(_) => f.write_str("Stream"),
            Body::Tunnel(_) => f.write_str("Tunnel"),
        }
    }
}
