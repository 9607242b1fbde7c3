//! Who of a tier gets the next request. One file per balancer.
//!
//! All of them pick without a lock and without an allocation, from members that are usable, not yet tried
//! for this request and of a weight above zero. What costs time is computed when the snapshot is built.

mod ewma;
mod first;
mod hash;
mod least_requests;
mod random;
mod round_robin;

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::dice::{below, mix};
use crate::endpoint::Vitals;
use crate::pool::Member;
use crate::share::FULL;

/// How the members of a pool share its requests. All honour weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Balance {
    /// In turn, smoothly: the heavy ones are spread over the round.
    #[default]
    RoundRobin,
    /// The one with the fewest requests in flight for its weight.
    LeastRequests,
    /// The less loaded of two drawn by weight.
    Random,
    /// The one that promises the soonest answer: recent latency times requests in flight.
    Ewma,
    /// Always the same one for the same key, unless it is overloaded.
    Hash,
    /// The first in the order of the file.
    First,
}

/// A name that is none of [`Balance::NAMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no such balancer: it is one of {}", Balance::NAMES.join(", "))]
pub struct UnknownBalance;

impl Balance {
    pub const ALL: [Balance; 6] = [
        Balance::RoundRobin,
        Balance::LeastRequests,
        Balance::Random,
        Balance::Ewma,
        Balance::Hash,
        Balance::First,
    ];

    /// As a configuration writes them, in the order of [`Balance::ALL`].
    pub const NAMES: [&'static str; 6] = ["round_robin", "least_requests", "random", "ewma", "hash", "first"];

    /// As a configuration writes it.
    pub fn name(self) -> &'static str {
        let [round_robin, least_requests, random, ewma, hash, first] = Balance::NAMES;
        match self {
            Balance::RoundRobin => round_robin,
            Balance::LeastRequests => least_requests,
            Balance::Random => random,
            Balance::Ewma => ewma,
            Balance::Hash => hash,
            Balance::First => first,
        }
    }
}

impl fmt::Display for Balance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Balance {
    type Err = UnknownBalance;

    fn from_str(name: &str) -> Result<Balance, UnknownBalance> {
        Balance::ALL.into_iter().find(|balance| balance.name() == name).ok_or(UnknownBalance)
    }
}

/// The compiled form: what a [`Balance`] has precomputed for the members of one tier. Members are named by
/// their slot, their place among those members of the tier that have a weight above zero.
#[derive(Debug)]
pub(crate) enum Balancer {
    RoundRobin(round_robin::RoundRobin),
    LeastRequests,
    Random(Draw),
    Ewma(Draw),
    Hash(hash::Maglev),
    First,
}

/// What a pick may depend on beside the members' vitals.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Occasion {
    pub(crate) key: u64,
    pub(crate) dice: u64,
    pub(crate) now_nanos: u64,
}

impl Balancer {
    /// `previous` is the same tier's balancer in the snapshot before: a round goes on where it was, and a
    /// table is used again when nobody came or went.
    pub(crate) fn new(balance: Balance, members: &[&Member], previous: Option<&Balancer>) -> Balancer {
        match balance {
            Balance::RoundRobin => {
                let previous = match previous {
                    Some(Balancer::RoundRobin(previous)) => Some(previous),
                    _ => None,
                };
                Balancer::RoundRobin(round_robin::RoundRobin::new(members, previous))
            }
            Balance::LeastRequests => Balancer::LeastRequests,
            Balance::Random => Balancer::Random(Draw::new(members)),
            Balance::Ewma => Balancer::Ewma(Draw::new(members)),
            Balance::Hash => {
                let previous = match previous {
                    Some(Balancer::Hash(previous)) => Some(previous),
                    _ => None,
                };
                Balancer::Hash(hash::Maglev::new(members, previous))
            }
            Balance::First => Balancer::First,
        }
    }

    /// The slot that gets the request; none when no candidate is open.
    pub(crate) fn pick(&self, candidates: &Candidates<'_>, occasion: Occasion) -> Option<usize> {
        match self {
            Balancer::RoundRobin(round) => round.pick(candidates, occasion),
            Balancer::LeastRequests => least_requests::pick(candidates, occasion),
            Balancer::Random(draw) => random::pick(draw, candidates, occasion),
            Balancer::Ewma(draw) => ewma::pick(draw, candidates, occasion),
            Balancer::Hash(table) => table.pick(candidates, occasion),
            Balancer::First => first::pick(candidates, occasion),
        }
    }
}

/// Which members live traffic lets a request be sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heed {
    /// Whatever it has set aside, all.
    Nothing,
    /// Those it has not set aside, and those whose time has come.
    Due,
    /// Those it has not set aside.
    Closed,
}

/// The members of one tier, as one request sees them.
#[derive(Debug)]
pub(crate) struct Candidates<'a> {
    /// All members of the pool.
    pub(crate) members: &'a [Member],
    /// Slot to index: those of the tier with a weight above zero.
    pub(crate) slots: &'a [usize],
    /// Indices.
    pub(crate) tried: &'a [usize],
    pub(crate) heed: Heed,
    pub(crate) now_nanos: u64,
    /// How long a member warms up.
    pub(crate) slow_start: Option<Duration>,
    /// The largest share of those that are open, once somebody has asked for it; 0 before.
    pub(crate) most: Cell<u32>,
}

/// A member that may be picked now.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate<'a> {
    pub(crate) slot: usize,
    /// Above zero.
    weight: u32,
    /// How much of its weight counts, of [`FULL`]; above zero.
    share: u32,
    pub(crate) vitals: &'a Vitals,
}

impl Candidate<'_> {
    /// What counts of its weight, towards that of others.
    pub(crate) fn weight(&self) -> u64 {
        u64::from(self.weight) * u64::from(self.share)
    }

    /// The same towards others by requests in flight. One that has none is like any other that has none: how often it
    /// is looked at at all then limits its share.
    fn weight_with(&self, in_flight: u32) -> u64 {
        if in_flight == 0 { u64::from(self.weight) * u64::from(FULL) } else { self.weight() }
    }
}

impl<'a> Candidates<'a> {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The candidate at this slot, if it is usable, not set aside and was not tried.
    pub(crate) fn open(&self, slot: usize) -> Option<Candidate<'a>> {
        let index = *self.slots.get(slot)?;
        let member = self.members.get(index)?;
        let vitals = &member.endpoint.vitals;
        let open =
            member.takes_new(self.heed, self.now_nanos) && member.has_room() && !self.tried.contains(&index);
        open.then(|| {
            let share = vitals.share.now(self.slow_start, self.now_nanos);
            Candidate { slot, weight: member.weight, share, vitals }
        })
    }

    /// Whether one that is open takes its turn: always, but while only a part of its weight counts, and for more of the
    /// others. The same for the same `chance`, as long as the part is no smaller.
    fn takes_turn(&self, candidate: &Candidate<'_>, chance: u64) -> bool {
        if candidate.share >= FULL {
            return true;
        }
        let point = below(mix(chance.wrapping_add(mix(candidate.slot as u64))), self.most().into());
        point < u64::from(candidate.share)
    }

    /// The largest share of those that are open. Mostly the first has all of it; once is enough for a pick.
    fn most(&self) -> u32 {
        if self.most.get() == 0 {
            let mut most = 1;
            for candidate in self.all_open() {
                most = most.max(candidate.share);
                if most >= FULL {
                    break;
                }
            }
            self.most.set(most);
        }
        self.most.get()
    }

    /// All that are open, by slot.
    pub(crate) fn all_open(&self) -> impl Iterator<Item = Candidate<'a>> {
        (0..self.len()).filter_map(|slot| self.open(slot))
    }

    /// A choice by weight among all that are open, the same for the same `hash` and the same open ones.
    fn by_weight(&self, hash: u64) -> Option<Candidate<'a>> {
        let total = self.all_open().map(|candidate| candidate.weight()).sum();
        let mut point = below(hash, total);
        let mut last = None;
        for candidate in self.all_open() {
            match point.checked_sub(candidate.weight()) {
                Some(rest) => point = rest,
                None => return Some(candidate),
            }
            last = Some(candidate);
        }
        // One went down between the two scans: whoever was seen last will do.
        last
    }

    /// The candidate of the lowest cost; among equals one by weight, so that an idle pool is shared as well.
    fn cheapest<C: PartialOrd>(
        &self,
        dice: u64,
        cost: impl Fn(&Candidate<'_>) -> C,
    ) -> Option<Candidate<'a>> {
        let mut best: Option<(C, Candidate<'a>)> = None;
        // The weight of all that have tied with the best so far.
        let mut tied = 0;
        let mut passed_over = None;
        for candidate in self.all_open() {
            if !self.takes_turn(&candidate, dice) {
                passed_over = Some(candidate);
                continue;
            }
            let weight = u64::from(candidate.weight);
            let cost = cost(&candidate);
            match &best {
                Some((lowest, _)) if cost > *lowest => continue,
                Some((lowest, _)) if cost == *lowest => {
                    tied += weight;
                    // A reservoir of one: each of the tied ends up in it with a chance of its weight.
                    if below(mix(dice.wrapping_add(tied)), tied) >= weight {
                        continue;
                    }
                }
                _ => tied = weight,
            }
            best = Some((cost, candidate));
        }
        best.map(|(_, candidate)| candidate).or(passed_over)
    }
}

/// Draws slots at random by weight.
#[derive(Debug)]
pub(crate) struct Draw {
    /// The sum of the weights up to and including each slot.
    cumulative: Box<[u64]>,
}

impl Draw {
    /// How often is drawn before all are looked at: with half of the members down, one pick in 256 comes to
    /// that.
    const ATTEMPTS: u64 = 8;

    fn new(members: &[&Member]) -> Draw {
        let mut sum = 0;
        let add = |member: &&Member| {
            sum += u64::from(member.weight);
            sum
        };
        Draw { cumulative: members.iter().map(add).collect() }
    }

    /// An open candidate by weight.
    fn open<'a>(&self, candidates: &Candidates<'a>, dice: u64) -> Option<Candidate<'a>> {
        let total = self.cumulative.last().copied()?;
        (0..Draw::ATTEMPTS)
            .find_map(|attempt| {
                let point = below(mix(dice.wrapping_add(attempt)), total);
                let drawn = candidates.open(self.cumulative.partition_point(|sum| *sum <= point))?;
                candidates.takes_turn(&drawn, dice.wrapping_add(attempt)).then_some(drawn)
            })
            .or_else(|| candidates.by_weight(mix(dice.wrapping_add(Draw::ATTEMPTS))))
    }

    /// Two candidates, drawn independently: they may be the same one.
    fn two<'a>(&self, candidates: &Candidates<'a>, dice: u64) -> Option<(Candidate<'a>, Candidate<'a>)> {
        Some((self.open(candidates, dice)?, self.open(candidates, mix(!dice))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_variants_agree() {
        for (balance, name) in Balance::ALL.into_iter().zip(Balance::NAMES) {
            assert_eq!(balance.to_string(), name);
            assert_eq!(name.parse(), Ok(balance));
        }
        let error = "round-robin".parse::<Balance>().unwrap_err();
        assert!(error.to_string().ends_with("one of round_robin, least_requests, random, ewma, hash, first"));
    }
}
