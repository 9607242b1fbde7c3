//! One address a worker listens on, and what goes on that came by it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::drain::{Drain, Phase};

/// Belongs to its worker. Whatever came by it holds it, so that it ends when the last of that has ended.
pub(crate) struct Listener {
    /// The same for all workers, and never used again.
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    pub(crate) drain: Drain,
    /// Requests and tunnels under way.
    running: Cell<usize>,
    /// Client connections.
    open: Cell<usize>,
}

impl Listener {
    pub(crate) fn new(id: u64, address: SocketAddr) -> Rc<Listener> {
        let (running, open) = (Cell::new(0), Cell::new(0));
        Rc::new(Listener { id, address, drain: Drain::new(), running, open })
    }

    /// Counts a request for as long as the guard lives.
    pub(crate) fn begin(self: &Rc<Listener>) -> Counted {
        Counted::new(self, |listener| &listener.running)
    }

    /// Counts a connection for as long as the guard lives.
    pub(crate) fn connected(self: &Rc<Listener>) -> Counted {
        Counted::new(self, |listener| &listener.open)
    }

    pub(crate) fn running(&self) -> usize {
        self.running.get()
    }

    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    pub(crate) fn serves(&self) -> bool {
        self.drain.phase() == Phase::Serving
    }
}

/// One more, until dropped.
pub(crate) struct Counted {
    listener: Rc<Listener>,
    counter: fn(&Listener) -> &Cell<usize>,
}

impl Counted {
    fn new(listener: &Rc<Listener>, counter: fn(&Listener) -> &Cell<usize>) -> Counted {
        counter(listener).update(|count| count + 1);
        Counted { listener: listener.clone(), counter }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.counter)(&self.listener).update(|count| count.saturating_sub(1));
    }
}
