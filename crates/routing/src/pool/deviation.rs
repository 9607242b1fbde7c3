//! Members that fail more often than the others, although never often in a row.

use super::{Member, Pool, Verdict};
use crate::tally::Count;

/// A member is judged by so many requests, and so are the others: fewer may be chance.
const ENOUGH: u64 = 100;
/// So much larger is the share of its requests that fail.
const MORE: f64 = 0.1;
/// And so many times the standard error of that difference: chance brings that about once in thirty thousand looks.
const ERRORS: f64 = 4.0;

/// A member fails more often than the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Deviation {
    pub index: usize,
    /// Of its requests, from 0 to 1.
    pub fails: f64,
    /// Of those of all others together.
    pub others_fail: f64,
    pub verdict: Verdict,
}

impl Pool {
    /// Compares the members by what was counted since the last time, and sets the one aside that deviates most, if one
    /// does. Look often enough to see it soon, and rarely enough for there to be something to compare.
    pub fn compare(&self, now_nanos: u64) -> Option<Deviation> {
        self.outlier.as_ref()?;
        let count = |member: &Member| {
            let vitals = &member.endpoint.vitals;
            let count = vitals.tally.take();
            // Of who is set aside that is known already.
            if vitals.circuit.is_closed() { count } else { Count::default() }
        };
        let counts: Vec<Count> = self.members.iter().map(count).collect();
        let (index, fails, others_fail) = worst(&counts)?;
        let verdict = self.set_aside(index, now_nanos)?;
        Some(Deviation { index, fails, others_fail, verdict })
    }
}

/// Whose share of failures is larger than that of all others together beyond chance; of several, the largest.
fn worst(counts: &[Count]) -> Option<(usize, f64, f64)> {
    let sum = counts.iter().fold(Count::default(), |sum, count| Count {
        all: sum.all + count.all,
        failed: sum.failed + count.failed,
    });
    let deviates = |(index, count): (usize, &Count)| {
        let others = Count { all: sum.all - count.all, failed: sum.failed - count.failed };
        if count.all < ENOUGH || others.all < ENOUGH {
            return None;
        }
        let [fails, others_fail] = [count, &others].map(|count| count.failed as f64 / count.all as f64);
        let overall = sum.failed as f64 / sum.all as f64;
        let error = (overall * (1.0 - overall) * (1.0 / count.all as f64 + 1.0 / others.all as f64)).sqrt();
        let more = fails - others_fail;
        (more >= MORE && more >= ERRORS * error).then_some((index, fails, others_fail))
    };
    counts.iter().enumerate().filter_map(deviates).max_by(|one, other| one.1.total_cmp(&other.1))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::tests::pool;
    use super::*;
    use crate::circuit::Entry;
    use crate::{Balance, State};

    const SECOND: u64 = 1_000_000_000;

    fn count(all: u64, failed: u64) -> Count {
        Count { all, failed }
    }

    fn found(counts: &[(u64, u64)]) -> Option<usize> {
        let counts: Vec<_> = counts.iter().map(|(all, failed)| count(*all, *failed)).collect();
        worst(&counts).map(|(index, ..)| index)
    }

    #[test]
    fn who_fails_more_often_than_the_others_deviates() {
        assert_eq!(found(&[(1000, 200), (1000, 10)]), Some(0));
        assert_eq!(found(&[(1000, 10), (1000, 10), (1000, 500), (1000, 300)]), Some(2), "the worst first");
        assert_eq!(found(&[(1000, 300), (1000, 300), (1000, 310)]), None, "all fail alike");
        assert_eq!(found(&[(100_000, 8_000), (100_000, 0)]), None, "it is not much");
        assert_eq!(found(&[(99, 99), (1000, 0)]), None, "they are few");
        assert_eq!(found(&[(1000, 900), (99, 0)]), None, "there is nothing to compare with");
        assert_eq!(found(&[(100, 14), (100, 3)]), None, "it may be chance");
        assert_eq!(found(&[(1000, 1000)]), None);
        assert_eq!(found(&[]), None);
    }

    #[test]
    fn it_is_set_aside_for_what_was_counted_since_the_last_look() {
        let pool = pool(Balance::RoundRobin, &[(1, 0); 3]);
        let serve = |index: usize, failing: u64| {
            for n in 0..200 {
                pool.judge(index, Entry::Free, n % 10 >= failing, SECOND);
            }
        };
        (0..3).for_each(|index| serve(index, u64::from(index == 1) * 3));
        let deviation = pool.compare(SECOND).unwrap();
        assert_eq!((deviation.index, deviation.fails, deviation.others_fail), (1, 0.3, 0.0));
        assert_eq!(deviation.verdict, Verdict::SetAside(Duration::from_secs(30)));
        assert!((0..100).all(|n| pool.pick(0, &[], n, SECOND).unwrap().index != 1));
        (0..3).for_each(|index| serve(index, 0));
        assert_eq!(pool.compare(2 * SECOND), None, "what was counted before is over");
    }

    #[test]
    fn what_was_before_it_was_set_aside_or_taken_back_does_not_count() {
        let pool = pool(Balance::RoundRobin, &[(1, 0); 2]);
        let vitals = &pool.members()[0].endpoint.vitals;
        let served = || (0..1000).for_each(|_| _ = pool.judge(1, Entry::Free, true, SECOND));
        // Set aside after some in a row, and more of what was under way fails after that.
        (0..400).for_each(|_| _ = pool.judge(0, Entry::Free, false, SECOND));
        served();
        assert_eq!(pool.compare(2 * SECOND), None, "it is not set aside twice for the same");
        assert!(pool.pick(0, &[1], 0, 31 * SECOND).is_some(), "its time is not doubled");
        // A probe finds it well again after it was down.
        (0..400).for_each(|_| vitals.tally.count(false));
        vitals.set_state(State::Down);
        vitals.set_state(State::Up);
        served();
        assert_eq!(pool.compare(40 * SECOND), None);
    }
}
