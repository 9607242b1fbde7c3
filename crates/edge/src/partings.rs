//! WebSockets that must end because the time is over in which their VM, or the listener they came by, was to end what it had
//! begun. All of a worker's are looked at from time to time, so that none needs a timer.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use foregate_exchange::{clock, tunnel};
use foregate_routing::Pool;
use slab::Slab;

use crate::drain::Phase;
use crate::listener::Listener;

/// The WebSockets of one worker.
#[derive(Default)]
pub(crate) struct Partings(RefCell<Slab<Open>>);

struct Open {
    listener: Rc<Listener>,
    pool: Arc<Pool>,
    /// The index of the VM.
    member: usize,
    waker: Option<Waker>,
}

impl Partings {
    /// For a WebSocket to this VM that came by this listener, from now on.
    pub(crate) fn begin(
        self: &Rc<Partings>,
        listener: &Rc<Listener>,
        pool: &Arc<Pool>,
        member: usize,
    ) -> tunnel::Parting {
        let open = Open { listener: listener.clone(), pool: pool.clone(), member, waker: None };
        let key = self.0.borrow_mut().insert(open);
        let entry = Entry { all: self.clone(), key };
        Box::new(move |cx| entry.poll(cx))
    }

    pub(crate) fn look(&self, now: u64) {
        for (_, open) in self.0.borrow_mut().iter_mut() {
            if open.is_over(now)
                && let Some(waker) = open.waker.take()
            {
                waker.wake();
            }
        }
    }
}

impl Open {
    fn is_over(&self, now: u64) -> bool {
        self.listener.drain.phase() >= Phase::Parting || self.pool.is_over(self.member, now)
    }
}

/// One of them, until dropped.
struct Entry {
    all: Rc<Partings>,
    key: usize,
}

impl Entry {
    fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        let mut all = self.all.0.borrow_mut();
        let Some(open) = all.get_mut(self.key) else { return Poll::Pending };
        if !open.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            open.waker = Some(cx.waker().clone());
        }
        if open.is_over(clock::now_nanos()) { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.all.0.borrow_mut().try_remove(self.key);
    }
}
