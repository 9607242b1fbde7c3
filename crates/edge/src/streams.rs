//! The streams of one HTTP/2 or HTTP/3 connection, counted, so that it knows when it is idle.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Waker;

/// The streams of a connection that are being answered.
#[derive(Default)]
pub(crate) struct Streams {
    open: Cell<usize>,
    /// The connection's task, which waits for the last of them to end.
    observer: RefCell<Option<Waker>>,
}

impl Streams {
    /// One more, until the guard is dropped.
    pub(crate) fn begin(this: &Rc<Streams>) -> Open {
        this.open.set(this.open.get() + 1);
        Open(this.clone())
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

pub(crate) struct Open(Rc<Streams>);

impl Drop for Open {
    fn drop(&mut self) {
        let left = self.0.open.get().saturating_sub(1);
        self.0.open.set(left);
        if left == 0
            && let Some(observer) = self.0.observer.borrow().as_ref()
        {
            observer.wake_by_ref();
        }
    }
}
