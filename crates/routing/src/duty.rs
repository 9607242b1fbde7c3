//! Whether a VM wants work: it, or whoever runs it, may say so before it is switched off.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What somebody has said of a VM; in the order of who gets less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Duty {
    /// It takes what it is given.
    #[default]
    Work,
    /// No new work. Who is stuck to it may come until its pool's time for that is over.
    Drain,
    /// Nothing at all: it is about to be worked on, or says itself that it does not do.
    Off,
}

/// One endpoint's: a [`Duty`] and since when, in one word. Every order is relaxed, as in all vitals.
#[derive(Debug, Default)]
pub(crate) struct Roster(AtomicU64);

/// The lowest bits of the word: a clock in nanoseconds can spare them.
const DUTY: u64 = 3;

impl Roster {
    /// From now on. The duty before. Since when it is not to work goes on, whichever of the two that was.
    pub(crate) fn set(&self, duty: Duty, now: u64) -> Duty {
        let code = match duty {
            Duty::Work => 0,
            Duty::Drain => 1,
            Duty::Off => 2,
        };
        let word = self.0.load(Ordering::Relaxed);
        let before = duty_of(word);
        if before != duty {
            let since = if before == Duty::Work { now } else { word };
            self.0.store(since & !DUTY | code, Ordering::Relaxed);
        }
        before
    }

    pub(crate) fn duty(&self) -> Duty {
        duty_of(self.0.load(Ordering::Relaxed))
    }

    /// Whether it has had no new work for so long that what was begun with it before must end.
    pub(crate) fn is_over(&self, drain: Duration, now: u64) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        let passed = now.saturating_sub(word & !DUTY);
        duty_of(word) != Duty::Work && u128::from(passed) >= drain.as_nanos()
    }
}

fn duty_of(word: u64) -> Duty {
    match word & DUTY {
        1 => Duty::Drain,
        2 => Duty::Off,
        _ => Duty::Work,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const DRAIN: Duration = Duration::from_secs(30);

    #[test]
    fn the_time_of_a_drain_counts_from_its_beginning() {
        let roster = Roster::default();
        assert!(roster.duty() == Duty::Work && !roster.is_over(DRAIN, 99 * SECOND));
        assert_eq!(roster.set(Duty::Drain, 100 * SECOND), Duty::Work);
        assert_eq!(roster.set(Duty::Drain, 120 * SECOND), Duty::Drain, "said again");
        assert!(!roster.is_over(DRAIN, 129 * SECOND) && roster.is_over(DRAIN, 130 * SECOND));
        assert_eq!(roster.set(Duty::Off, 140 * SECOND), Duty::Drain);
        assert!(roster.is_over(DRAIN, 140 * SECOND), "it goes on from where it was");
        assert_eq!(roster.set(Duty::Work, 171 * SECOND), Duty::Off);
        assert!(!roster.is_over(DRAIN, 999 * SECOND));
    }
}
