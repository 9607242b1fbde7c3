//! Our half of a request stream.

use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, StatusCode};

use crate::codec::head;
use crate::connection::Shared;
use crate::{Code, Error, Priority};

/// What a response may send before it takes turns with others of its urgency, unless the client has said
/// what it wants: the small ones, which pages are made of, are through by then.
const FIRST_SHARE: u64 = 64 * 1024;
/// What a usual head takes, encoded.
const HEAD: usize = 256;

static PRIORITY: HeaderName = HeaderName::from_static("priority");

/// A response being written.
///
/// Everything is queued first and leaves with [`SendStream::poll_flush`], so that a head, its body and the
/// end can leave in one packet. Dropped before [`SendStream::finish`], it resets the stream.
pub struct SendStream {
    quic: quinn::SendStream,
    shared: Rc<Shared>,
    /// Frames and frame headers, written before the data.
    frames: Vec<u8>,
    /// What is being written: frames, then data.
    queue: [Bytes; 2],
    index: u64,
    written: u64,
    asked: Priority,
    answered: Priority,
    /// The place quinn was told, and the updates it was computed with.
    place: Option<i32>,
    updates: u64,
    waiting: bool,
    gave_way: bool,
    over: bool,
}

impl SendStream {
    pub(crate) fn new(quic: quinn::SendStream, shared: &Rc<Shared>) -> SendStream {
        SendStream {
            index: quic.id().index(),
            quic,
            shared: shared.clone(),
            frames: Vec::new(),
            queue: [Bytes::new(), Bytes::new()],
            written: 0,
            asked: Priority::default(),
            answered: Priority::default(),
            place: None,
            updates: 0,
            waiting: false,
            gave_way: false,
            over: false,
        }
    }

    pub(crate) fn asked(&mut self, headers: &HeaderMap) {
        self.asked = priority(headers);
    }

    /// Queues a 1xx response.
    pub fn interim(&mut self, status: StatusCode, headers: &HeaderMap) {
        head::response(status, headers, &mut self.frames);
    }

    /// Queues the head of the response. Its `priority` stands above what the client asked for.
    pub fn head(&mut self, status: StatusCode, headers: &HeaderMap) {
        self.answered = priority(headers);
        self.frames.reserve(HEAD);
        head::response(status, headers, &mut self.frames);
    }

    /// Queues a piece of the body. What was queued before must have been flushed, unless it was a head.
    pub fn data(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        head::data_header(data.len() as u64, &mut self.frames);
        let [_, last] = &mut self.queue;
        debug_assert!(last.is_empty(), "data over data");
        *last = data;
    }

    /// Queues the trailers. The body must have been flushed.
    pub fn trailers(&mut self, trailers: &HeaderMap) {
        head::response_trailers(trailers, &mut self.frames);
    }

    /// How many bytes QUIC has taken.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Whether everything queued has been handed to QUIC.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.frames.is_empty() && self.queue.iter().all(Bytes::is_empty)
    }

    /// Hands QUIC what is queued, as it takes it.
    ///
    /// # Errors
    /// The client wants no more of it, or the connection was lost.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if self.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        let place = self.take_place();
        if !self.gave_way && self.shared.turns.give_way(self.index, place) {
            // They have been woken, and run before this stream is polled again.
            self.gave_way = true;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            let [first, _] = &mut self.queue;
            if first.is_empty() {
                *first = std::mem::take(&mut self.frames).into();
            } else if !self.frames.is_empty() {
                // What could not all be written stands before what was queued since, and both before the data.
                *first = [first, self.frames.as_slice()].concat().into();
                self.frames.clear();
            }
            if self.is_flushed() {
                self.wait_no_more();
                return Poll::Ready(Ok(()));
            }
            let written = pin!(self.quic.write_chunks(&mut self.queue)).poll(cx);
            let Poll::Ready(written) = written else {
                self.waiting = true;
                self.gave_way = false;
                self.shared.turns.wait(self.index, place, cx);
                return Poll::Pending;
            };
            match written {
                Ok(written) => self.written += written.bytes as u64,
                Err(error) => {
                    self.wait_no_more();
                    let error = Error::from(error);
                    if matches!(error, Error::Cancelled(_)) {
                        self.shared.cancelled();
                        self.reset(Code::H3_REQUEST_CANCELLED);
                    }
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// Ends the response. Everything must have been flushed.
    pub fn finish(&mut self) {
        debug_assert!(self.is_flushed());
        if !self.over {
            self.over = true;
            self.shared.answered();
            // It may have been stopped meanwhile.
            _ = self.quic.finish();
        }
    }

    /// Ends the response with an error; what the client has not received is lost.
    pub fn reset(&mut self, code: Code) {
        if !self.over {
            self.over = true;
            _ = self.quic.reset(code.into());
        }
    }

    /// Resolves when the client asks us to stop, or the connection is lost.
    pub fn stopped(&self) -> impl Future<Output = Error> + use<> {
        let stopped = self.quic.stopped();
        let shared = self.shared.clone();
        async move {
            match stopped.await {
                Ok(Some(code)) => {
                    shared.cancelled();
                    Error::Cancelled(code)
                }
                Ok(None) => Error::Closed,
                Err(error) => error.into(),
            }
        }
    }

    fn wait_no_more(&mut self) {
        self.gave_way = false;
        if std::mem::take(&mut self.waiting) {
            self.shared.turns.leave(self.index);
        }
    }

    /// This stream's place among the others; quinn is told where it has changed.
    fn take_place(&mut self) -> i32 {
        let updates = self.shared.updates.borrow();
        if updates.count() != self.updates {
            self.updates = updates.count();
            if let Some(update) = updates.of(u64::from(quinn::VarInt::from(self.quic.id()))) {
                self.asked = update;
            }
        }
        let priority = self.asked.overridden_by(self.answered);
        let place = priority.place(self.index, self.written > FIRST_SHARE);
        if self.place.replace(place) != Some(place) {
            // A stream that is closed has no place to take.
            _ = self.quic.set_priority(place);
        }
        place
    }
}

impl Drop for SendStream {
    fn drop(&mut self) {
        self.wait_no_more();
        // Left to itself quinn would end it as if it were whole.
        self.reset(Code::H3_REQUEST_CANCELLED);
    }
}

/// The `priority` field of a head; several are one list.
fn priority(headers: &HeaderMap) -> Priority {
    let mut values = headers.get_all(&PRIORITY).iter().filter_map(|value| value.to_str().ok());
    match (values.next(), values.next()) {
        (None, _) => Priority::default(),
        (Some(one), None) => Priority::parse(one),
        (Some(one), Some(other)) => {
            let rest: Vec<&str> = values.collect();
            Priority::parse(&[&[one, other], rest.as_slice()].concat().join(","))
        }
    }
}
