//! The client's half of a request stream.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::Method;
use http_body::{Frame, SizeHint};

use crate::codec::head::{self, Head};
use crate::codec::request::{Event, Reader};
use crate::codec::{Violation, qpack};
use crate::connection::Shared;
use crate::{Code, Error, Settings};

/// How many of QUIC's pieces are taken at once, which are packets.
const BATCH: usize = 8;

/// A request's body, and before it its head.
///
/// As an [`http_body::Body`] it ends with the client's FIN; an end before the announced length is an error.
/// Dropped before its end, it asks the client to stop without an error (RFC 9114, section 4.1).
pub struct RecvStream {
    quic: quinn::RecvStream,
    shared: Rc<Shared>,
    reader: Reader,
    /// What has been read and not yet taken apart: the pieces from `next` on.
    pieces: [Bytes; BATCH],
    next: usize,
    /// Of the announced length.
    left: Option<u64>,
    over: bool,
}

impl RecvStream {
    pub(crate) fn new(quic: quinn::RecvStream, shared: &Rc<Shared>) -> RecvStream {
        // No section that is allowed takes more bytes encoded than it counts decoded.
        let limit = usize::try_from(shared.settings.max_field_section_size).unwrap_or(usize::MAX);
        RecvStream {
            quic,
            shared: shared.clone(),
            reader: Reader::new(limit),
            pieces: Default::default(),
            next: BATCH,
            left: None,
            over: false,
        }
    }

    /// Asks the client to send no more. Nothing can be read afterwards.
    pub fn stop(&mut self, code: Code) {
        if !self.over {
            self.over = true;
            // It may have been reset meanwhile.
            _ = self.quic.stop(code.into());
        }
    }

    /// Whether everything has been read.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// The next piece of the body, or its trailers.
    ///
    /// # Errors
    /// The client cancelled, or broke a rule. Nothing can be read afterwards.
    pub fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        Poll::Ready(match ready!(self.poll_event(cx)) {
            Ok(None | Some(Event::Section(_))) if self.left.is_some_and(|left| left > 0) => {
                Some(Err(self.fail(Violation::malformed("the body is shorter than its Content-Length"))))
            }
            Ok(None) => None,
            Ok(Some(Event::Data(data))) => Some(self.count(data).map(Frame::data)),
            Ok(Some(Event::Section(section))) => {
                let limit = self.shared.settings.max_field_section_size;
                let trailers =
                    qpack::decode(&section, limit).map_err(Violation::from).and_then(head::trailers);
                Some(trailers.map(Frame::trailers).map_err(|violation| self.fail(violation)))
            }
            Ok(Some(Event::TooLarge)) => Some(Err(self.fail(Violation::from(qpack::Problem::TooLarge)))),
            Err(error) => Some(Err(error)),
        })
    }

    /// The first field section, encoded.
    pub(crate) fn poll_section(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Error>> {
        Poll::Ready(match ready!(self.poll_event(cx))? {
            Some(Event::Section(section)) => Ok(section),
            Some(Event::TooLarge) => Err(Error::TooLarge),
            // The reader lets nothing else come first.
            Some(Event::Data(_)) | None => Err(Error::Closed),
        })
    }

    /// What the head says about what follows it.
    pub(crate) fn expect(&mut self, head: &Head) {
        self.left = head.content_length;
        if head.parts.method == Method::CONNECT {
            // Section 4.4: only DATA may follow, and it is no body.
            self.left = None;
            self.reader.tunnel();
        }
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.shared.settings
    }

    /// Ends this direction, or the connection, for a violation.
    pub(crate) fn fail(&mut self, violation: Violation) -> Error {
        self.stop(violation.code);
        self.shared.raise(violation)
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Event>, Error>> {
        if self.over {
            return Poll::Ready(Ok(None));
        }
        loop {
            while let Some(piece) = self.pieces.get_mut(self.next) {
                match self.reader.read(piece) {
                    Ok(Some(event)) => return Poll::Ready(Ok(Some(event))),
                    Ok(None) => self.next += 1,
                    Err(violation) => return Poll::Ready(Err(self.fail(violation))),
                }
            }
            let read = ready!(pin!(self.quic.read_chunks(&mut self.pieces)).poll(cx));
            match read {
                Ok(Some(count)) => {
                    // They are moved to the end, so that `next` alone says what there is.
                    self.pieces.rotate_right(BATCH - count);
                    self.next = BATCH - count;
                }
                Ok(None) => {
                    let finished = self.reader.finish();
                    if let Err(violation) = finished {
                        return Poll::Ready(Err(self.fail(violation)));
                    }
                    self.over = true;
                    return Poll::Ready(Ok(None));
                }
                Err(error) => {
                    self.over = true;
                    let error = Error::from(error);
                    if matches!(error, Error::Cancelled(_)) {
                        self.shared.cancelled();
                    }
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// Holds the body to its announced length.
    fn count(&mut self, data: Bytes) -> Result<Bytes, Error> {
        if let Some(left) = &mut self.left {
            match left.checked_sub(data.len() as u64) {
                Some(rest) => *left = rest,
                None => {
                    return Err(self.fail(Violation::malformed("the body is longer than its Content-Length")));
                }
            }
        }
        Ok(data)
    }
}

impl http_body::Body for RecvStream {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.poll_body(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for RecvStream {
    fn drop(&mut self) {
        // Left to itself quinn would say code 0, which clients take for an error.
        self.stop(Code::H3_NO_ERROR);
    }
}
