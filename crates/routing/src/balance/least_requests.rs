//! The one with the fewest requests in flight for its weight.
//!
//! Looks at all members: with more than some hundred of them, `random` is nearly as even and much cheaper.

use super::{Candidates, Occasion};

/// Compares in flight / weight, without the request to come: those that have nothing to do are equals, and share what comes by
/// weight. With it the heaviest would get all there is in a pool that is nearly idle.
pub(super) fn pick(candidates: &Candidates<'_>, occasion: Occasion) -> Option<usize> {
    candidates
        .cheapest(occasion.dice, |candidate| Load {
            requests: candidate.vitals.in_flight().into(),
            weight: candidate.weight(),
        })
        .map(|candidate| candidate.slot)
}

/// A fraction, compared without dividing: both terms fit a word, so the products fit two.
#[derive(Clone, Copy, Debug)]
struct Load {
    requests: u64,
    weight: u64,
}

impl PartialEq for Load {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other).is_some_and(std::cmp::Ordering::is_eq)
    }
}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        let mine = u128::from(self.requests) * u128::from(other.weight);
        let theirs = u128::from(other.requests) * u128::from(self.weight);
        mine.partial_cmp(&theirs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loads_are_fractions() {
        let load = |requests, weight| Load { requests, weight };
        assert!(load(1, 3) < load(1, 2));
        assert!(load(2, 4) == load(1, 2));
        assert!(load(0, 1) == load(0, 9) && load(0, 1) < load(1, 9));
        assert!(load(1 << 32, 1) > load(1, u32::MAX.into()));
    }
}
