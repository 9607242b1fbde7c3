//! How long a pool's VMs mostly take: the time within which 95 of a hundred answers begin.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// Four to each doubling: a bound is at most a fifth above what was measured.
const PER_DOUBLING: u32 = 4;
/// From 64 microseconds to more than a minute.
const DOUBLINGS: u32 = 21;
const FIRST: u32 = 16;
const BUCKETS: usize = (PER_DOUBLING * DOUBLINGS) as usize;
/// The bound is computed anew each time so many have come; what came before then counts half.
const EVERY: u32 = 128;
/// Percent.
const SHARE: u64 = 95;

/// One pool's, under all snapshots. Every order is relaxed: it is an estimate.
#[derive(Debug)]
pub(crate) struct Pace {
    buckets: [AtomicU32; BUCKETS],
    seen: AtomicU32,
    /// Nanoseconds; 0: not enough is known.
    bound: AtomicU64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            buckets: [const { AtomicU32::new(0) }; BUCKETS],
            seen: AtomicU32::new(0),
            bound: AtomicU64::new(0),
        }
    }
}

impl Pace {
    /// None until so many answers have come that it means something.
    pub(crate) fn bound(&self) -> Option<Duration> {
        let nanos = self.bound.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    pub(crate) fn observe(&self, sample: Duration) {
        if let Some(bucket) = self.buckets.get(place(sample)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        if self.seen.fetch_add(1, Ordering::Relaxed).wrapping_add(1).is_multiple_of(EVERY) {
            self.settle();
        }
    }

    fn settle(&self) {
        let counts = self.buckets.each_ref().map(|bucket| u64::from(bucket.load(Ordering::Relaxed)));
        let wanted = (counts.iter().sum::<u64>() * SHARE).div_ceil(100);
        let mut sum = 0;
        let reached = counts.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        if let Some(place) = reached {
            self.bound.store(upper(place), Ordering::Relaxed);
        }
        for (bucket, count) in self.buckets.iter().zip(counts) {
            let forgotten = u32::try_from(count.div_ceil(2)).unwrap_or(u32::MAX);
            let less = |count: u32| Some(count.saturating_sub(forgotten));
            // Never fails: there is always a next value.
            _ = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        }
    }
}

/// The bucket of a sample.
fn place(sample: Duration) -> usize {
    let nanos = u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX) | 1 << FIRST;
    let doubling = nanos.ilog2();
    // The two bits after the highest.
    let quarter = (nanos >> (doubling - 2)) & 3;
    let place = (doubling - FIRST) * PER_DOUBLING + quarter as u32;
    (place as usize).min(BUCKETS - 1)
}

/// Where a bucket ends, in nanoseconds.
fn upper(place: usize) -> u64 {
    let (doubling, quarter) = (place as u64 / 4, place as u64 % 4);
    (5 + quarter) << (u64::from(FIRST) + doubling - 2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bound(samples: impl IntoIterator<Item = u64>) -> Option<u128> {
        let pace = Pace::default();
        samples.into_iter().for_each(|micros| pace.observe(Duration::from_micros(micros)));
        pace.bound().map(|bound| bound.as_micros())
    }

    #[test]
    fn five_of_a_hundred_take_longer() {
        assert_eq!(bound((0..127).map(|_| 10_000)), None, "not enough is known");
        let even = bound((0..10_000).map(|n| n * 7919 % 10_000 * 10)).unwrap();
        assert!((95_000..119_000).contains(&even), "{even}");
        let two_kinds = bound((0..10_000).map(|n| if n % 100 < 3 { 900_000 } else { 2_000 })).unwrap();
        assert!((2_000..2_500).contains(&two_kinds), "{two_kinds}");
    }

    #[test]
    fn what_was_is_forgotten() {
        let now = bound((0..2_000).map(|n| if n < 1_000 { 500_000 } else { 1_000 })).unwrap();
        assert!((1_000..1_250).contains(&now), "{now}");
    }

    proptest! {
        #[test]
        fn a_bucket_holds_what_is_below_its_end(nanos in 0_u64..60_000_000_000) {
            let place = place(Duration::from_nanos(nanos));
            prop_assert!(nanos < upper(place));
            prop_assert!(place == 0 || nanos >= upper(place - 1));
            prop_assert!(place == 0 || upper(place) * 100 <= nanos * 126);
        }
    }
}
