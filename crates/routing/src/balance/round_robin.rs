//! Smooth weighted round robin (as in nginx: 5-1-1 gives a a b a c a a), precomputed, so that a pick is one
//! relaxed addition to a cursor and one look into a table.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Candidates, Occasion};
use crate::dice::mix;
use crate::pool::Member;

/// Weights whose reduced sum is larger are rounded to fit: 16 KiB a tier, and an error of the shares below
/// that of a thousand requests.
const MAX_ROUND: u64 = 4096;

#[derive(Debug)]
pub(crate) struct RoundRobin {
    /// One round, as slots.
    round: Box<[u32]>,
    cursor: Cursor,
}

/// The place in the endless sequence of rounds, on a cache line of its own: every worker writes it.
#[derive(Debug)]
#[repr(align(64))]
struct Cursor(AtomicU64);

impl RoundRobin {
    pub(super) fn new(members: &[&Member], previous: Option<&RoundRobin>) -> RoundRobin {
        let weights = members.iter().map(|member| u64::from(member.weight)).collect();
        let at = previous.map_or(0, |previous| previous.cursor.0.load(Ordering::Relaxed));
        RoundRobin { round: smooth(&reduce(weights)), cursor: Cursor(AtomicU64::new(at)) }
    }

    pub(super) fn pick(&self, candidates: &Candidates<'_>, occasion: Occasion) -> Option<usize> {
        let at = self.cursor.0.fetch_add(1, Ordering::Relaxed);
        let place = usize::try_from(at.checked_rem(self.round.len() as u64)?).ok()?;
        let scheduled = usize::try_from(*self.round.get(place)?).ok()?;
        // When the one whose turn it is cannot, its share goes to all others by weight. Simply taking the
        // next would double the load of whoever stands behind a dead VM.
        let scheduled = candidates.open(scheduled);
        scheduled
            .filter(|candidate| candidates.takes_turn(candidate, occasion.dice))
            .or_else(|| candidates.by_weight(mix(at)))
            .map(|candidate| candidate.slot)
    }
}

/// Divides by the greatest common divisor, and scales down what is still too long for a round.
fn reduce(mut weights: Vec<u64>) -> Vec<u64> {
    fn gcd(a: u64, b: u64) -> u64 {
        if b == 0 { a } else { gcd(b, a % b) }
    }
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    weights.iter_mut().for_each(|weight| *weight /= divisor);
    let sum: u64 = weights.iter().sum();
    if sum > MAX_ROUND {
        // 32-bit weights times 4096 stay far below 64 bits. Nobody loses its last turn.
        weights.iter_mut().for_each(|weight| *weight = ((*weight * MAX_ROUND + sum / 2) / sum).max(1));
    }
    weights
}

/// One round: each turn everybody gains its weight, the richest has the turn and pays the sum.
fn smooth(weights: &[u64]) -> Box<[u32]> {
    let sum: u64 = weights.iter().sum();
    if weights.iter().all(|weight| *weight == 1) {
        return (0..).take(weights.len()).collect();
    }
    let mut credits = vec![0_i64; weights.len()];
    let turn = |_| {
        let mut richest: Option<(u32, &mut i64)> = None;
        for ((slot, credit), weight) in (0..).zip(&mut credits).zip(weights) {
            *credit += weight.cast_signed();
            if richest.as_ref().is_none_or(|(_, most)| *credit > **most) {
                richest = Some((slot, credit));
            }
        }
        let (slot, credit) = richest?;
        *credit -= sum.cast_signed();
        Some(slot)
    };
    (0..sum).map_while(turn).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rounds_are_smooth() {
        assert_eq!(*smooth(&[5, 1, 1]), [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(*smooth(&[1, 1, 1]), [0, 1, 2]);
        assert_eq!(*smooth(&[2, 1]), [0, 1, 0]);
        assert!(smooth(&[]).is_empty());
    }

    #[test]
    fn weights_are_reduced() {
        assert_eq!(reduce(vec![300, 100]), [3, 1]);
        assert_eq!(reduce(vec![7]), [1]);
        assert_eq!(reduce(vec![]), []);
        assert_eq!(reduce(vec![100_000, 1]), [4096, 1]);
        assert_eq!(reduce(vec![60_001, 20_000]), [3072, 1024]);
    }

    proptest! {
        #[test]
        fn a_round_holds_everybody_by_weight(weights in prop::collection::vec(1_u32..2_000_000, 1..20)) {
            let round = smooth(&reduce(weights.iter().map(|w| u64::from(*w)).collect()));
            prop_assert!(round.len() as u64 <= MAX_ROUND + weights.len() as u64);
            let sum: f64 = weights.iter().map(|w| f64::from(*w)).sum();
            for (slot, weight) in weights.iter().enumerate() {
                let turns = round.iter().filter(|at| **at as usize == slot).count();
                prop_assert!(turns >= 1);
                let error = turns as f64 / round.len() as f64 - f64::from(*weight) / sum;
                prop_assert!(error.abs() < 0.01, "{error}");
            }
        }
    }
}
