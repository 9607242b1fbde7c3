//! A response's body, read from its connection as the client takes it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::deadline::Deadline;
use foregate_exchange::http1::{Framing, Piece};
use foregate_exchange::{Failure, Kind, head};
use foregate_routing::InFlight;
use http_body::{Frame, SizeHint};
use tokio::time::Instant;

use super::{Http1, Stop};
use crate::client::Shelf;
use crate::upload::{Progress, Rest};

/// Room for one read of a body: at first, and at most where reads fill what they are given and its client keeps up.
/// Over loopback a large download over HTTP/1.1 takes 0.6 of what it takes in reads of the smaller size.
const FIRST_READ: usize = 64 * 1024;
const LARGEST_READ: usize = 256 * 1024;
/// A client keeps up that is done with a piece after so long.
const PROMPT: Duration = Duration::from_millis(10);
/// So many bodies of a worker are read in larger pieces at a time, so that clients which stop reading in their midst
/// make it hold little more for that.
const LARGE_BODIES: usize = 64;

/// How much is read at a time.
struct Reads {
    room: usize,
    /// Room of the last one, and when it was.
    last: (usize, Option<Instant>),
    large: Option<Large>,
}

impl Reads {
    fn new() -> Reads {
        Reads { room: FIRST_READ, last: (FIRST_READ, None), large: None }
    }

    /// What was read decides how much is read next.
    fn filled(&mut self, length: usize) {
        let now = Instant::now();
        let (_, before) = std::mem::replace(&mut self.last, (self.room, Some(now)));
        if before.is_none_or(|before| now.duration_since(before) > PROMPT) || length < self.room / 2 {
            self.room = FIRST_READ;
            self.large = None;
        } else if length >= self.room {
            self.large = self.large.take().or_else(Large::one);
            if self.large.is_some() {
                self.room = (self.room * 2).min(LARGEST_READ);
            }
        }
    }
}

/// One of the bodies that are read in larger pieces.
struct Large;

impl Large {
    fn one() -> Option<Large> {
        let others = LARGE.get();
        (others < LARGE_BODIES).then(|| {
            LARGE.set(others + 1);
            Large
        })
    }
}

impl Drop for Large {
    fn drop(&mut self) {
        LARGE.set(LARGE.get().saturating_sub(1));
    }
}

thread_local! {
    static LARGE: Cell<usize> = const { Cell::new(0) };
}

pub(super) struct Download {
    drive: Drive,
    /// `None`: the body ends with the connection.
    framing: Option<Framing>,
    reads: Reads,
    over: bool,
    /// How long the VM may pause.
    idle: Option<Duration>,
    /// Where the connection is not at hand, whose own is taken otherwise.
    deadline: Deadline,
    in_flight: InFlight,
}

/// Who moves the connection.
pub(super) enum Drive {
    /// The body alone; with the shelf it goes back to, if it may.
    Inline(Box<Http1>, Option<Rc<Shelf>>),
    /// A task beside it, which sends the rest of the request.
    Beside(Rc<Shared>, Rest),
    Done,
}

/// A connection that is read by a body and written by a task.
pub(super) struct Shared {
    /// Taken out when the client broke off its request: the VM must not take what it got for all of it.
    http1: RefCell<Option<Box<Http1>>>,
    reader: Cell<Option<Waker>>,
}

impl Download {
    pub(super) fn new(
        drive: Drive,
        framing: Option<Framing>,
        idle: Option<Duration>,
        in_flight: InFlight,
    ) -> Download {
        let over = framing.as_ref().is_some_and(Framing::is_done);
        Download { drive, framing, reads: Reads::new(), over, idle, deadline: Deadline::default(), in_flight }
    }

    /// The next piece of the body from what the connection has read.
    fn decode(&mut self) -> Result<Piece, Failure> {
        let Download { drive, framing, .. } = self;
        drive.with(|http1| {
            let Some(http1) = http1 else { return Err(Kind::Truncated.into()) };
            match framing {
                Some(framing) => framing
                    .decode(&mut http1.input)
                    .map_err(|broken| Failure::because(Kind::Truncated, broken)),
                None if http1.input.is_empty() => Ok(Piece::More),
                None => Ok(Piece::Data(http1.input.split().freeze())),
            }
        })
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Frame<Bytes>>, Failure>> {
        loop {
            match self.decode()? {
                Piece::Data(data) => return Poll::Ready(Ok(Some(Frame::data(self.unpinned(data))))),
                Piece::Trailers(mut fields) => {
                    head::strip_trailers(&mut fields);
                    return Poll::Ready(Ok(Some(Frame::trailers(fields))));
                }
                Piece::End => return Poll::Ready(Ok(None)),
                Piece::More => {}
            }
            let room = self.reads.room;
            let filled = self.drive.with(|http1| match http1 {
                Some(http1) => http1.poll_fill(cx, room),
                None => Poll::Ready(Ok(0)),
            });
            match filled {
                Poll::Ready(Ok(n)) if n > 0 => self.reads.filled(n),
                Poll::Ready(Ok(_)) if self.framing.is_none() => return Poll::Ready(Ok(None)),
                Poll::Ready(Ok(_)) => return Poll::Ready(Err(Kind::Truncated.into())),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Failure::because(Kind::Truncated, error))),
                Poll::Pending => {
                    if let Drive::Beside(shared, _) = &self.drive {
                        shared.reader.set(Some(cx.waker().clone()));
                    }
                    let idle = self.idle;
                    ready!(self.deadline().poll(cx, idle));
                    return Poll::Ready(Err(Kind::BodyTimeout.into()));
                }
            }
        }
    }

    /// A small piece, which may wait long for its client, without the large buffer it was read into: what holds
    /// one is at least an eighth of it.
    fn unpinned(&self, data: Bytes) -> Bytes {
        let (room, _) = self.reads.last;
        if data.len() < room / 8 { Bytes::copy_from_slice(&data) } else { data }
    }

    fn deadline(&mut self) -> &mut Deadline {
        match &mut self.drive {
            Drive::Inline(http1, _) => &mut http1.deadline,
            Drive::Beside(..) | Drive::Done => &mut self.deadline,
        }
    }

    /// Nothing more is read for this body.
    fn finish(&mut self) {
        self.over = true;
        self.in_flight.cut(false);
        match std::mem::replace(&mut self.drive, Drive::Done) {
            Drive::Inline(http1, Some(shelf)) => http1.recycle(&shelf),
            // An upload beside it goes on: its task holds the connection as long as it needs it.
            Drive::Beside(_, upload) => upload.end(),
            Drive::Inline(_, None) | Drive::Done => {}
        }
    }
}

impl Drive {
    /// The client may not read before it has sent everything, so the upload must go on by itself.
    pub(super) fn beside(
        http1: Box<Http1>,
        progress: Option<Rc<Progress>>,
        limit: Option<Duration>,
    ) -> Drive {
        let shared = Rc::new(Shared { http1: RefCell::new(Some(http1)), reader: Cell::default() });
        let writer = shared.clone();
        let task = tokio::task::spawn_local(async move {
            let sent = poll_fn(|cx| match &mut *writer.http1.borrow_mut() {
                Some(http1) => http1.poll_send(cx, &mut false),
                None => Poll::Ready(Ok(())),
            });
            if let Err(Stop::Client(_)) = sent.await {
                writer.http1.take();
                if let Some(reader) = writer.reader.take() {
                    reader.wake();
                }
            }
        });
        Drive::Beside(shared, Rest::new(task.abort_handle(), progress, limit))
    }

    fn with<T>(&mut self, act: impl FnOnce(Option<&mut Http1>) -> T) -> T {
        match self {
            Drive::Inline(http1, _) => act(Some(http1)),
            Drive::Beside(shared, _) => act(shared.http1.borrow_mut().as_deref_mut()),
            Drive::Done => act(None),
        }
    }

    /// Closes the connection.
    fn give_up(&mut self) {
        if let Drive::Beside(_, upload) = std::mem::replace(self, Drive::Done) {
            upload.abort();
        }
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let frame = ready!(self.poll(cx));
        self.deadline().clear();
        Poll::Ready(match frame {
            Ok(Some(frame)) => {
                // The last piece: the connection is free before it is written.
                if self.framing.as_ref().is_some_and(Framing::is_done) {
                    self.finish();
                }
                Some(Ok(frame))
            }
            Ok(None) => {
                self.finish();
                None
            }
            Err(failure) => {
                // Whatever it still says is not to be trusted.
                self.over = true;
                if !matches!(&self.drive, Drive::Beside(_, upload) if upload.has_failed()) {
                    self.in_flight.cut(true);
                }
                self.drive.give_up();
                Some(Err(failure))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.over
    }

    fn size_hint(&self) -> SizeHint {
        match &self.framing {
            Some(framing) => framing.size_hint(),
            None if self.over => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if !self.over {
            // The client is gone: so is our interest in the rest.
            self.drive.give_up();
        }
    }
}
