//! When a request that failed is made again.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;

/// What a pool repeats, and how much of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often a request may be made again.
    pub attempts: u32,
    pub on: Box<[Cause]>,
    /// Percent of the pool's requests under way that may be repetitions; none: as many as there are.
    pub budget: Option<u8>,
    /// None: whoever is slow is waited for.
    pub hedge: Option<Hedge>,
}

/// When a request that may be made again is made elsewhere at the same time, because no answer has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hedge {
    After(Duration),
    /// After the time within which 95 of a hundred answers of the pool begin.
    P95,
}

/// Why an attempt did not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// No connection, so that the VM knows nothing of the request.
    Connect,
    /// The VM broke off before it had answered, or with what is no answer.
    Reset,
    /// The VM did not answer in time.
    Timeout,
    /// It answered, with this status.
    Status(StatusCode),
}

/// A pool with little to do may repeat so many at a time all the same: where answers take a millisecond, two are under
/// way at 2,000 a second.
const LEAST: u32 = 10;

impl Default for Retry {
    fn default() -> Retry {
        Retry { attempts: 2, on: [Cause::Connect, Cause::Reset].into(), budget: Some(20), hedge: None }
    }
}

impl Retry {
    pub fn covers(&self, cause: Cause) -> bool {
        self.on.contains(&cause)
    }
}

/// How many repetitions of a pool are under way.
#[derive(Debug, Default)]
pub(crate) struct Repeating(AtomicU32);

/// One of them, until dropped.
#[derive(Debug)]
#[must_use = "dropping it at once says that the repetition is over"]
pub struct Repetition<'p>(&'p AtomicU32);

impl Repeating {
    /// One more, if `budget` percent of `running` allow it.
    pub(crate) fn begin(&self, budget: Option<u8>, running: u32) -> Option<Repetition<'_>> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let one = Repetition(&self.0);
        let allowed = budget.map_or(u64::MAX, |percent| u64::from(running) * u64::from(percent) / 100);
        (u64::from(before) < allowed.max(LEAST.into())).then_some(one)
    }
}

impl Drop for Repetition<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_share_of_what_is_under_way() {
        for (budget, running, most) in
            [(Some(20), 100, 20), (Some(20), 4, 10), (Some(0), 1000, 10), (Some(100), 17, 17)]
        {
            let repeating = Repeating::default();
            let begun: Vec<_> = (0..50).map_while(|_| repeating.begin(budget, running)).collect();
            assert_eq!(begun.len(), most, "{budget:?} of {running}");
            assert!(repeating.begin(budget, running).is_none());
            drop(begun);
            assert!(repeating.begin(budget, running).is_some(), "they were given back");
        }
        let repeating = Repeating::default();
        assert_eq!((0..500).map_while(|_| repeating.begin(None, 1)).collect::<Vec<_>>().len(), 500);
    }

    #[test]
    fn by_default_only_what_cannot_do_harm_is_repeated() {
        let retry = Retry::default();
        assert!(retry.covers(Cause::Connect) && retry.covers(Cause::Reset));
        assert!(!retry.covers(Cause::Timeout) && !retry.covers(Cause::Status(StatusCode::BAD_GATEWAY)));
    }
}
