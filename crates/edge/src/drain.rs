//! The phases of a listener: waiting, serving, draining, parting, closing.

use std::cell::Cell;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::deadline::Deadline;

/// Only ever moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Ready, and accepts nothing yet.
    Waiting,
    Serving,
    /// No new connections; every connection ends after what it is doing.
    Draining,
    /// Time is nearly up: WebSockets are told to go.
    Parting,
    /// Nothing runs any more, or time is up: idle connections end now.
    Closing,
}

/// A listener's phase, and the wait for the next.
pub(crate) struct Drain {
    phase: Cell<Phase>,
    changed: Notify,
    /// Since when clients are told to go, and within which time all of them are.
    told: Cell<Option<(Instant, Duration)>>,
    /// How many have asked when it is their turn.
    turns: Cell<u32>,
}

impl Drain {
    pub(crate) fn new() -> Drain {
        Drain {
            phase: Cell::new(Phase::Waiting),
            changed: Notify::new(),
            told: Cell::new(None),
            turns: Cell::new(0),
        }
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.set(phase);
        self.changed.notify_waiters();
    }

    /// Has clients go one after the other within this time: all at once they would have to wait for each other where they
    /// connect anew.
    pub(crate) fn begin(&self, spread: Duration) {
        self.told.set(Some((Instant::now(), spread)));
        self.enter(Phase::Draining);
    }

    /// When the next connection that asks is to be told; it asks once.
    fn next_turn(&self) -> Instant {
        let (since, spread) = self.told.get().unwrap_or_else(|| (Instant::now(), Duration::ZERO));
        let turn = self.turns.replace(self.turns.get().wrapping_add(1));
        // By the golden ratio: however many there are, they are spread evenly.
        let share = f64::from(turn.wrapping_mul(0x9E37_79B9)) / f64::from(u32::MAX);
        since + spread.mul_f64(share)
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

/// When one connection is told to go.
#[derive(Default)]
pub(crate) struct Turn {
    at: Option<Instant>,
    wait: Deadline,
}

impl Turn {
    /// Whether it is time. The listener drains.
    pub(crate) fn has_come(&mut self, drain: &Drain) -> bool {
        *self.at.get_or_insert_with(|| drain.next_turn()) <= Instant::now()
    }

    /// Waits for it. The listener drains.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, drain: &Drain) -> Poll<()> {
        if self.has_come(drain) {
            return Poll::Ready(());
        }
        let left = self.at.map(|at| at.saturating_duration_since(Instant::now()));
        self.wait.poll(cx, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clients_go_one_after_the_other() {
        let drain = Drain::new();
        drain.begin(Duration::from_secs(4));
        let mut turns: Vec<Turn> = (0..1000).map(|_| Turn::default()).collect();
        for second in 1..=4 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let gone = turns.iter_mut().filter_map(|turn| turn.has_come(&drain).then_some(())).count();
            assert!(gone.abs_diff(250 * second) < 10, "{gone} after {second} s");
        }
        let mut turn = Turn::default();
        let begun = Instant::now();
        drain.begin(Duration::from_secs(4));
        std::future::poll_fn(|cx| turn.poll(cx, &drain)).await;
        assert!(begun.elapsed() <= Duration::from_secs(4) && turn.has_come(&drain));
        // Where nobody connects anew there is nothing to wait for.
        drain.begin(Duration::ZERO);
        assert!(Turn::default().has_come(&drain));
    }
}
