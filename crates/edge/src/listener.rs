//! One address a worker listens on, and what goes on that came by it.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use slab::Slab;
use tokio::task::AbortHandle;

use crate::drain::{Drain, Phase};

/// Belongs to its worker. Whatever came by it holds it, so that it ends when the last of that has ended.
pub(crate) struct Listener {
    /// The same for all workers, and never used again.
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    pub(crate) drain: Drain,
    /// Requests and tunnels under way.
    running: Cell<usize>,
    /// TCP connections, to cut those that do not end.
    connections: RefCell<Slab<Option<AbortHandle>>>,
    /// QUIC connections, which end with their endpoint's say.
    quic: Cell<usize>,
}

impl Listener {
    pub(crate) fn new(id: u64, address: SocketAddr) -> Rc<Listener> {
        let (running, quic) = (Cell::new(0), Cell::new(0));
        Rc::new(Listener { id, address, drain: Drain::new(), running, connections: RefCell::default(), quic })
    }

    /// Counts a request for as long as the guard lives.
    pub(crate) fn begin(self: &Rc<Listener>) -> Counted {
        Counted::new(self, |listener| &listener.running)
    }

    /// Counts a QUIC connection for as long as the guard lives.
    pub(crate) fn connected(self: &Rc<Listener>) -> Counted {
        Counted::new(self, |listener| &listener.quic)
    }

    /// Has a task serve a TCP connection. The task gets what it has to hold.
    pub(crate) fn serve<F: Future<Output = ()> + 'static>(
        self: &Rc<Listener>,
        serving: impl FnOnce(Entered) -> F,
    ) {
        let key = self.connections.borrow_mut().insert(None);
        let task = tokio::task::spawn_local(serving(Entered { listener: self.clone(), key }));
        // It has not begun to run.
        if let Some(entry) = self.connections.borrow_mut().get_mut(key) {
            *entry = Some(task.abort_handle());
        }
    }

    /// Ends the TCP connections that are still there, whatever they do.
    pub(crate) fn cut(&self) {
        self.connections.borrow().iter().filter_map(|(_, task)| task.as_ref()).for_each(AbortHandle::abort);
    }

    pub(crate) fn running(&self) -> usize {
        self.running.get()
    }

    /// Client connections.
    pub(crate) fn open(&self) -> usize {
        self.quic.get() + self.connections.borrow().len()
    }

    pub(crate) fn serves(&self) -> bool {
        self.drain.phase() == Phase::Serving
    }
}

/// A TCP connection of a listener, until dropped.
pub(crate) struct Entered {
    pub(crate) listener: Rc<Listener>,
    key: usize,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.listener.connections.borrow_mut().try_remove(self.key);
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
