//! Bodies for both sides, and bodies as text.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::sync::mpsc;

/// A body that yields what it is sent, of unknown length.
pub(crate) struct Fed(mpsc::UnboundedReceiver<Result<Frame<Bytes>, io::Error>>);

pub(crate) type Feed = mpsc::UnboundedSender<Result<Frame<Bytes>, io::Error>>;

impl Body for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx)
    }
}

pub(crate) fn feed() -> (Fed, Feed) {
    let (feed, body) = mpsc::unbounded_channel();
    (Fed(body), feed)
}

/// A body that has all its frames ready.
pub(crate) fn fed<const N: usize>(frames: [Frame<Bytes>; N]) -> Fed {
    let (body, feed) = feed();
    for frame in frames {
        feed.send(Ok(frame)).unwrap();
    }
    body
}

pub(crate) fn data(bytes: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(bytes.as_bytes()))
}

pub(crate) fn trailers(fields: &[(&'static str, &'static str)]) -> Frame<Bytes> {
    let fields = fields
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
    Frame::trailers(HeaderMap::from_iter(fields))
}

/// The body as text, and its trailers behind `||`.
pub(crate) async fn read<B: Body<Data = Bytes>>(body: B) -> Result<String, B::Error> {
    let body = body.collect().await?;
    let trailers = body.trailers().map(|trailers| format!("|{}", fields(trailers)));
    let bytes = body.to_bytes();
    Ok(format!("{}{}", String::from_utf8_lossy(&bytes), trailers.unwrap_or_default()))
}

/// `|name: value` for each field.
pub(crate) fn fields(fields: &HeaderMap) -> String {
    fields.iter().map(|(name, value)| format!("|{name}: {}", value.to_str().unwrap())).collect()
}
