//! How much of its weight counts: less than all of it while a VM warms up, or says that it has too much to do.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// All of a weight.
pub(crate) const FULL: u32 = 256;
/// What a VM that has just come up begins with, and what no report takes it below: who got nothing at all would never
/// warm up, and nobody would see that it can do more.
const LEAST: u32 = FULL / 16;
/// Instead of a time: from when it is next looked at.
const FROM_NOW: u64 = u64::MAX;

/// One endpoint's. Every order is relaxed: a pick that sees it late shares as one a moment earlier did.
#[derive(Debug)]
pub(crate) struct Share {
    /// Since when it warms up, nanoseconds; 0: it is warm.
    since: AtomicU64,
    /// What the VM itself asks for.
    asked: AtomicU32,
}

impl Default for Share {
    fn default() -> Share {
        Share { since: AtomicU64::new(FROM_NOW), asked: AtomicU32::new(FULL) }
    }
}

impl Share {
    /// Begins to warm up.
    pub(crate) fn rise(&self) {
        self.since.store(FROM_NOW, Ordering::Relaxed);
    }

    /// For how long it has warmed up; none: it is warm.
    pub(crate) fn warming(&self, now: u64) -> Option<Duration> {
        match self.since.load(Ordering::Relaxed) {
            0 => None,
            FROM_NOW => Some(Duration::ZERO),
            since => Some(Duration::from_nanos(now.saturating_sub(since))),
        }
    }

    /// Goes on where another process was.
    pub(crate) fn resume(&self, warming: Option<Duration>, now: u64) {
        let since = |passed: Duration| {
            let passed = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
            now.saturating_sub(passed).max(1)
        };
        self.since.store(warming.map_or(0, since), Ordering::Relaxed);
    }

    /// The VM asks for this part of its weight, of [`FULL`].
    pub(crate) fn ask(&self, share: u32) {
        self.asked.store(share.clamp(LEAST, FULL), Ordering::Relaxed);
    }

    pub(crate) fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }

    /// Of [`FULL`], and never nothing. `slow_start` is how long its pool gives a VM to warm up.
    pub(crate) fn now(&self, slow_start: Option<Duration>, now: u64) -> u32 {
        let asked = self.asked();
        match slow_start {
            Some(slow_start) => (asked * self.risen(slow_start, now) / FULL).max(1),
            None => asked,
        }
    }

    /// From [`LEAST`] to [`FULL`] in a straight line.
    fn risen(&self, slow_start: Duration, now: u64) -> u32 {
        match self.since.load(Ordering::Relaxed) {
            0 => FULL,
            FROM_NOW => {
                _ = self.since.compare_exchange(FROM_NOW, now.max(1), Ordering::Relaxed, Ordering::Relaxed);
                LEAST
            }
            since => {
                let passed = u128::from(now.saturating_sub(since));
                if passed >= slow_start.as_nanos() {
                    // Unless it has just begun anew.
                    _ = self.since.compare_exchange(since, 0, Ordering::Relaxed, Ordering::Relaxed);
                    return FULL;
                }
                let gained = u128::from(FULL - LEAST) * passed / slow_start.as_nanos().max(1);
                LEAST + u32::try_from(gained).unwrap_or(FULL - LEAST)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const SLOW: Option<Duration> = Some(Duration::from_secs(30));

    #[test]
    fn it_rises_in_a_straight_line_once() {
        let share = Share::default();
        assert_eq!(share.now(SLOW, 5 * SECOND), FULL / 16, "from when it is first looked at");
        assert_eq!(share.now(SLOW, 20 * SECOND), FULL / 16 + FULL * 15 / 32);
        assert_eq!(share.now(SLOW, 4 * SECOND), FULL / 16, "a clock that is a little behind");
        assert_eq!(share.now(SLOW, 35 * SECOND), FULL);
        assert_eq!(share.now(SLOW, 6 * SECOND), FULL, "for good");
        share.rise();
        assert_eq!(share.now(SLOW, 60 * SECOND), FULL / 16);
    }

    #[test]
    fn without_a_slow_start_it_has_risen() {
        assert_eq!(Share::default().now(None, 1), FULL);
    }

    #[test]
    fn what_it_asks_for_is_part_of_what_it_would_get() {
        let share = Share::default();
        share.ask(FULL / 2);
        assert_eq!(share.now(None, SECOND), FULL / 2);
        assert_eq!(share.now(SLOW, SECOND), FULL / 32);
        assert_eq!(share.now(SLOW, 31 * SECOND), FULL / 2);
        share.ask(0);
        assert_eq!(share.now(None, SECOND), FULL / 16, "nobody is starved by a report");
        share.ask(10 * FULL);
        assert_eq!(share.now(None, SECOND), FULL, "nor favoured");
    }
}
