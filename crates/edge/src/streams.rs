//! What streams of HTTP/2 and HTTP/3 have in common: being counted, so that a connection knows when it is
//! idle, what they may take of the worker's time, how much of an unwanted body is read, and the length of a response.

mod budget;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;
use std::time::Duration;

use foregate_exchange::Body;
use foregate_exchange::http1::decimal;
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, StatusCode, response};
use http_body::Body as _;

pub(crate) use self::budget::Turns;
use self::budget::{Budget, Budgeted};

/// What of a request's body nobody wanted is read away, and for how long.
pub(crate) const DISCARD: usize = 256 * 1024;
pub(crate) const LINGER: Duration = Duration::from_millis(500);

/// The streams of a connection that are being answered.
pub(crate) struct Streams {
    open: Cell<usize>,
    /// How many there should be at most.
    most: usize,
    /// The connection's task, which waits for the last of them to end, or for room.
    observer: RefCell<Option<Waker>>,
    budget: Budget,
    turns: Rc<Turns>,
}

impl Streams {
    /// Those of a new connection; `turns` are its worker's.
    pub(crate) fn new(turns: &Rc<Turns>, most: usize) -> Streams {
        Streams {
            open: Cell::default(),
            most,
            observer: RefCell::default(),
            budget: Budget::default(),
            turns: turns.clone(),
        }
    }

    /// One more, whose work is to be run as a task.
    pub(crate) fn begin<F>(this: &Rc<Streams>, work: F) -> Budgeted<F> {
        this.open.set(this.open.get() + 1);
        Budgeted::new(Open(this.clone()), work)
    }

    /// Whether there are as many as there should be; the caller is woken as soon as there are not.
    pub(crate) fn are_full(&self, waker: &Waker) -> bool {
        self.observe(waker) >= self.most
    }

    /// How many there are; wakes the caller when there are none left.
    pub(crate) fn observe(&self, waker: &Waker) -> usize {
        let mut observer = self.observer.borrow_mut();
        if !observer.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *observer = Some(waker.clone());
        }
        self.open.get()
    }
}

/// Counts a stream until it is dropped.
struct Open(Rc<Streams>);

impl Drop for Open {
    fn drop(&mut self) {
        let left = self.0.open.get().saturating_sub(1);
        self.0.open.set(left);
        if (left == 0 || left + 1 == self.0.most)
            && let Some(observer) = self.0.observer.borrow().as_ref()
        {
            observer.wake_by_ref();
        }
    }
}

/// A length as a field says it: `HeaderValue::from` would allocate twice.
fn length_value(length: u64) -> HeaderValue {
    let mut digits = [0; 20];
    HeaderValue::from_bytes(decimal(length, &mut digits)).unwrap_or_else(|_| HeaderValue::from(length))
}

/// Makes a response's Content-Length what its body knows. True: it has no body, whatever its fields say, and
/// the length is the one a body would have.
pub(crate) fn announce_length(head: &mut response::Parts, body: &Body, head_only: bool) -> bool {
    let bodiless =
        head_only || head.status == StatusCode::NO_CONTENT || head.status == StatusCode::NOT_MODIFIED;
    if !bodiless {
        match body.size_hint().exact() {
            Some(length) => _ = head.headers.insert(CONTENT_LENGTH, length_value(length)),
            None => _ = head.headers.remove(CONTENT_LENGTH),
        }
    }
    bodiless
}
