//! The phases of a listener: waiting, serving, draining, closing.

use std::cell::Cell;

use tokio::sync::Notify;

/// Only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Ready, and accepts nothing yet.
    Waiting,
    Serving,
    /// No new connections; every connection ends after what it is doing.
    Draining,
    /// Nothing runs any more, or time is up: idle connections end now.
    Closing,
}

/// A listener's phase, and the wait for the next.
pub(crate) struct Drain {
    phase: Cell<Phase>,
    changed: Notify,
}

impl Drain {
    pub(crate) fn new() -> Drain {
        Drain { phase: Cell::new(Phase::Waiting), changed: Notify::new() }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.changed.notify_waiters();
    }

    /// Waits until the listener is in this phase or a later one.
    pub(crate) async fn reached(&self, phase: Phase) {
        loop {
            let changed = self.changed.notified();
            if self.phase.get() >= phase {
                return;
            }
            changed.await;
        }
    }
}
