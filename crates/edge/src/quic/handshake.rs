//! Whether a connection's handshake is over: until then what its client says may be a recording.

use std::cell::Cell;

use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct Handshake {
    finished: Cell<bool>,
    changed: Notify,
}

impl Handshake {
    pub(super) fn finish(&self) {
        self.finished.set(true);
        self.changed.notify_waiters();
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finished.get()
    }

    /// Waits for the end of the handshake; for ever, if it fails.
    pub(crate) async fn finished(&self) {
        while !self.is_finished() {
            self.changed.notified().await;
        }
    }
}
