//! The same member for the same key: a Maglev table (Eisenbud et al., NSDI 2016), with bounded loads
//! (Mirrokni et al., 2018) so that one popular key cannot drown its VM.

use std::sync::Arc;

use super::{Candidates, Occasion};
use crate::dice::{Purpose, below, digest, mix};
use crate::pool::Member;

/// Primes, each at least a hundred times the number of members it is for: then shares are even to a percent
/// and hardly more keys move than must. The steps are far apart because a table of another size moves all.
const SIZES: [(usize, usize); 4] =
    [(100, 10_007), (1_000, 100_003), (10_000, 1_000_003), (usize::MAX, 10_000_019)];

/// After so many places without an open member one is chosen among all: when nearly all are down or full.
const MAX_STEPS: usize = 64;

#[derive(Debug)]
pub(crate) struct Maglev {
    /// Slots. Shared by successive snapshots while the members stay the same.
    table: Arc<[u32]>,
    /// What the table was made of: address and weight, by slot.
    made_of: Box<[(Box<str>, u32)]>,
}

impl Maglev {
    pub(super) fn new(members: &[&Member], previous: Option<&Maglev>) -> Maglev {
        let made_of: Box<[_]> = members
            .iter()
            .map(|member| (member.endpoint.address.to_string().into_boxed_str(), member.weight))
            .collect();
        let table = match previous {
            Some(previous) if previous.made_of == made_of => Arc::clone(&previous.table),
            _ => fill(&made_of),
        };
        Maglev { table, made_of }
    }

    /// The member at the key's place, or else at the key's next place, and so on. The places of a key are
    /// drawn, each from the one before, not taken side by side: what stands side by side in a Maglev table is
    /// not independent, and the keys of a dead VM would not be shared evenly. The keys of the others stay.
    pub(super) fn pick(&self, candidates: &Candidates<'_>, occasion: Occasion) -> Option<usize> {
        let mut bound = None;
        let mut hash = occasion.key;
        for _ in 0..MAX_STEPS {
            let place = usize::try_from(below(hash, self.table.len() as u64)).ok()?;
            let slot = usize::try_from(*self.table.get(place)?).ok()?;
            hash = mix(hash);
            let candidate = candidates.open(slot);
            let Some(candidate) = candidate.filter(|it| candidates.takes_turn(it, occasion.key)) else {
                continue;
            };
            let in_flight = candidate.vitals.in_flight();
            // An idle member is below every bound: the others need not be looked at.
            if in_flight == 0
                || bound.get_or_insert_with(|| Bound::of(candidates)).allows(in_flight, candidate.weight())
            {
                return Some(slot);
            }
        }
        candidates.by_weight(hash).map(|candidate| candidate.slot)
    }
}

/// Nobody gets more than 1.25 times its share of the requests in flight at the open members, this one
/// included, rounded up: so there is always one below its bound.
#[derive(Debug)]
struct Bound {
    requests: u64,
    weight: u64,
}

impl Bound {
    fn of(candidates: &Candidates<'_>) -> Bound {
        candidates.all_open().fold(Bound { requests: 1, weight: 0 }, |sum, candidate| Bound {
            requests: sum.requests + u64::from(candidate.vitals.in_flight()),
            weight: sum.weight + candidate.weight(),
        })
    }

    /// `in_flight + 1 <= ceil(5/4 * requests * weight / sum of weights)`, without dividing.
    fn allows(&self, in_flight: u32, weight: u64) -> bool {
        4 * u128::from(in_flight) * u128::from(self.weight)
            < 5 * u128::from(self.requests) * u128::from(weight)
    }
}

/// Each member walks the table in an order of its own and takes the first free place, by turns; a heavier
/// one has more turns.
fn fill(members: &[(Box<str>, u32)]) -> Arc<[u32]> {
    struct Walk {
        slot: u32,
        weight: u64,
        next: u64,
        skip: u64,
        /// What it must have earned for its next turn.
        due: u64,
    }
    const FREE: u32 = u32::MAX;
    if members.is_empty() {
        return Arc::default();
    }
    let size = SIZES.into_iter().find(|(most, _)| members.len() <= *most).map_or(0, |(_, size)| size);
    let places = size as u64;
    let mut walks: Vec<Walk> = (0..)
        .zip(members)
        .map(|(slot, (address, weight))| Walk {
            slot,
            weight: u64::from(*weight),
            next: digest(Purpose::MaglevOffset, address.as_bytes()) % places,
            skip: digest(Purpose::MaglevSkip, address.as_bytes()) % (places - 1) + 1,
            due: 0,
        })
        .collect();
    // The order of the file must not matter: only who is there.
    walks.sort_by_key(|walk| (walk.next, walk.skip));
    let heaviest = walks.iter().map(|walk| walk.weight).max().unwrap_or(1);
    let mut table = vec![FREE; size];
    let mut free = size;
    let mut turn = 0;
    while free > 0 {
        turn += 1;
        for walk in &mut walks {
            if turn * walk.weight < walk.due || free == 0 {
                continue;
            }
            walk.due += heaviest;
            // Ends: a place is free, and a walk over a prime number of places comes to every one.
            loop {
                let place = usize::try_from(walk.next).ok().and_then(|place| table.get_mut(place));
                walk.next = (walk.next + walk.skip) % places;
                if let Some(place @ &mut FREE) = place {
                    *place = walk.slot;
                    free -= 1;
                    break;
                }
            }
        }
    }
    table.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::endpoint::{Address, Endpoint};

    fn members(weights: &[u32]) -> Vec<(Box<str>, u32)> {
        let address = |n: usize| format!("10.0.{}.{}:80", n / 250, n % 250).into_boxed_str();
        weights.iter().enumerate().map(|(n, weight)| (address(n), *weight)).collect()
    }

    fn addresses(members: &[(Box<str>, u32)]) -> Vec<&str> {
        fill(members).iter().map(|slot| &*members[*slot as usize].0).collect()
    }

    #[test]
    fn sizes_are_primes_and_large_enough() {
        for (most, size) in SIZES {
            assert!(most == usize::MAX || size > 100 * most);
            assert!((2..).take_while(|n| n * n <= size).all(|n| size % n != 0), "{size}");
        }
    }

    #[test]
    fn the_order_of_the_file_does_not_matter() {
        let forward = members(&[1, 2, 3, 1]);
        let backward: Vec<_> = forward.iter().rev().cloned().collect();
        assert_eq!(addresses(&forward), addresses(&backward));
    }

    #[test]
    fn an_unchanged_table_is_used_again() {
        let member = |port: u16, weight| Member {
            endpoint: Endpoint::new("pool".into(), Address::Ip(([10, 0, 0, 1], port).into())),
            name: "vm".into(),
            weight,
            tier: 0,
            max_requests: None,
        };
        let (one, two, heavier) = (member(1, 1), member(2, 1), member(2, 2));
        let first = Maglev::new(&[&one, &two], None);
        assert!(Arc::ptr_eq(&first.table, &Maglev::new(&[&one, &two], Some(&first)).table));
        for others in [vec![&one], vec![&two, &one], vec![&one, &heavier]] {
            assert!(!Arc::ptr_eq(&first.table, &Maglev::new(&others, Some(&first)).table));
        }
    }

    #[test]
    fn small_tables() {
        assert!(fill(&[]).is_empty());
        assert!(fill(&members(&[7])).iter().all(|slot| *slot == 0));
    }

    #[test]
    fn large_tiers_are_filled_too() {
        let table = fill(&members(&[1; 150]));
        assert_eq!(table.len(), 100_003);
        for slot in 0..150 {
            let places = table.iter().filter(|at| **at == slot).count();
            assert!((660..=675).contains(&places), "{places}");
        }
    }

    #[test]
    fn bounds() {
        let bound = Bound { requests: 9, weight: 3 };
        // 1.25 * 9 / 3 = 3.75, rounded up 4 with this request.
        assert!(bound.allows(3, 1));
        assert!(!bound.allows(4, 1));
        assert!(bound.allows(7, 2));
        let huge = Bound { requests: u64::MAX, weight: u64::MAX };
        assert!(!huge.allows(u32::MAX, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn shares_are_the_weights(weights in prop::collection::vec(1_u32..20, 1..24)) {
            let members = members(&weights);
            let table = fill(&members);
            let sum: u32 = weights.iter().sum();
            for (slot, weight) in (0..).zip(&weights) {
                let share = table.iter().filter(|at| **at == slot).count() as f64 / table.len() as f64;
                prop_assert!((share - f64::from(*weight) / f64::from(sum)).abs() < 0.005);
            }
        }

        #[test]
        fn hardly_more_moves_than_must(weights in prop::collection::vec(1_u32..4, 2..24), gone in any::<prop::sample::Index>()) {
            let before = members(&weights);
            let mut after = before.clone();
            let (gone, weight) = after.remove(gone.index(before.len()));
            let sum: u32 = weights.iter().sum();
            let share = f64::from(weight) / f64::from(sum);
            let (old, new) = (addresses(&before), addresses(&after));
            let moved = old.iter().zip(&new).filter(|(old, new)| old != new).count() as f64 / old.len() as f64;
            let of_others = old.iter().zip(&new).filter(|(old, new)| old != new && ***old != *gone).count();
            prop_assert!(moved < share + 0.02, "{moved} of {share}");
            prop_assert!((of_others as f64) < 0.02 * old.len() as f64, "{of_others}");
        }
    }
}
