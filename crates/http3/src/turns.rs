//! Who of a connection's streams writes when not all can.
//!
//! quinn sends what it holds by priority, but lets in whoever writes first, as long as the client's window
//! for the connection and the send buffer have room. So a stream that could write asks here first whether a
//! more urgent one is waiting, and lets that one try before.

use std::cell::RefCell;
use std::task::{Context, Waker};

/// The streams that have something to write and no room for it.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    waiting: RefCell<Vec<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    stream: u64,
    place: i32,
    waker: Waker,
}

impl Turns {
    /// The stream has found no room.
    pub(crate) fn wait(&self, stream: u64, place: i32, cx: &Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        match waiting.iter_mut().find(|other| other.stream == stream) {
            Some(known) => {
                known.place = place;
                known.waker.clone_from(cx.waker());
            }
            None => waiting.push(Waiting { stream, place, waker: cx.waker().clone() }),
        }
    }

    /// The stream waits no longer.
    pub(crate) fn leave(&self, stream: u64) {
        self.waiting.borrow_mut().retain(|other| other.stream != stream);
    }

    /// Whether streams with a higher place wait; they are woken, to try before this one.
    pub(crate) fn give_way(&self, stream: u64, place: i32) -> bool {
        let waiting = self.waiting.borrow();
        let mut before =
            waiting.iter().filter(|other| other.place > place && other.stream != stream).peekable();
        let any = before.peek().is_some();
        before.for_each(|other| other.waker.wake_by_ref());
        any
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn only_the_more_urgent_go_first() {
        let turns = Turns::default();
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(counter.clone());
        let cx = Context::from_waker(&waker);
        turns.wait(1, -5, &cx);
        turns.wait(1, -3, &cx);
        assert!(turns.give_way(2, -4));
        assert!(!turns.give_way(2, -3));
        assert!(!turns.give_way(2, -1));
        assert!(!turns.give_way(1, -4));
        assert_eq!(counter.0.load(Ordering::Relaxed), 1);
        turns.leave(1);
        assert!(!turns.give_way(2, -4));
    }
}
