//! The beginning of a request's body, kept until it is known that the VM has taken the request.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use foregate_exchange::{Body, Failure};
use http::HeaderMap;
use http_body::{Frame, SizeHint};

/// So much is kept. A VM that rejects a request has usually seen nothing but its head, so this is about what
/// may have been sent to it meanwhile, not about uploads.
const KEPT: usize = 64 * 1024;

/// What has been sent.
#[derive(Default)]
pub(crate) struct Kept {
    pieces: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    size: usize,
    ended: bool,
}

impl Kept {
    /// Takes note of what goes out; false when it becomes too much.
    pub(crate) fn note(&mut self, frame: Option<&Frame<Bytes>>) -> bool {
        match frame {
            None => self.ended = true,
            Some(frame) => {
                if let Some(data) = frame.data_ref().filter(|data| !data.is_empty()) {
                    self.size += data.len();
                    self.pieces.push_back(data.clone());
                }
                self.trailers = frame.trailers_ref().cloned();
            }
        }
        self.size <= KEPT
    }

    /// The whole body once more; `rest` is what has not been sent.
    pub(crate) fn again(self, rest: Body) -> Body {
        let rest = if self.ended || self.trailers.is_some() { Body::Empty } else { rest };
        if self.pieces.is_empty() && self.trailers.is_none() {
            return rest;
        }
        Body::stream(Again { pieces: self.pieces, trailers: self.trailers, rest })
    }
}

/// What was sent before, then the rest.
struct Again {
    pieces: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
    rest: Body,
}

impl http_body::Body for Again {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        if let Some(trailers) = self.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let sent = self.pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + sent);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + sent);
        }
        hint
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use http_body::Body as _;
    use http_body_util::BodyExt;

    use super::*;

    fn noted(frames: &[Frame<Bytes>], ended: bool) -> Kept {
        let mut kept = Kept::default();
        assert!(frames.iter().all(|frame| kept.note(Some(frame))));
        assert!(!ended || kept.note(None));
        kept
    }

    #[tokio::test]
    async fn what_was_sent_comes_again_before_the_rest() {
        let sent = [Frame::data(Bytes::from_static(b"some ")), Frame::data(Bytes::new())];
        let body = noted(&sent, false).again(Body::Full(Bytes::from_static(b"body")));
        assert_eq!(body.size_hint().exact(), Some(9));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "some body");

        let trailers = HeaderMap::from_iter([(http::header::ETAG, "1".parse().unwrap())]);
        let sent = [Frame::data(Bytes::from_static(b"all")), Frame::trailers(trailers.clone())];
        let collected = noted(&sent, true).again(Body::Empty).collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
        assert_eq!(collected.to_bytes(), "all");

        assert!(noted(&[], true).again(Body::Empty).is_end_stream());
        assert!(noted(&[Frame::data(Bytes::new())], true).again(Body::Empty).is_end_stream());
    }

    #[test]
    fn it_does_not_keep_uploads() {
        let mut kept = Kept::default();
        let piece = Frame::data(Bytes::from(vec![0; KEPT]));
        assert!(kept.note(Some(&piece)));
        assert!(!kept.note(Some(&Frame::data(Bytes::from_static(b"x")))));
    }
}
