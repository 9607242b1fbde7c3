//! What live traffic does to a pool: it sets members aside that fail, takes them back, and is repeated within a budget.

use std::time::Duration;

use super::{Member, Pool};
use crate::circuit::{Entry, Outlier};
use crate::retry::Repetition;

/// What a request has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is sent to its member for so long.
    SetAside(Duration),
    /// Its member was set aside, and takes part again.
    Restored,
    /// Its member was the last that was not set aside, and fails too: all take part again.
    AllFail,
}

impl Pool {
    /// Takes in how the request of a [`Pick`](super::Pick) went. `now_nanos` is the clock of [`Pool::pick`].
    pub fn judge(&self, index: usize, entry: Entry, well: bool, now_nanos: u64) -> Option<Verdict> {
        let outlier = self.outlier.as_ref()?;
        let vitals = &self.members.get(index)?.endpoint.vitals;
        vitals.tally.count(well);
        let circuit = &vitals.circuit;
        if well && entry == Entry::Free && circuit.is_cut(outlier.consecutive_failures) {
            // It begins well, but what it began before did not come to its end.
            return self.set_aside(index, now_nanos);
        }
        if well {
            let restored = circuit.succeed(entry, now_nanos);
            if restored {
                vitals.share.rise();
                // What failed before it was taken back says nothing of it now.
                _ = vitals.tally.take();
            }
            return restored.then_some(Verdict::Restored);
        }
        if !circuit.fail(entry, outlier.consecutive_failures) {
            return None;
        }
        self.set_aside(index, now_nanos)
    }

    /// Sets a member aside, if the others allow it.
    pub fn set_aside(&self, index: usize, now_nanos: u64) -> Option<Verdict> {
        let outlier = self.outlier.as_ref()?;
        let circuit = &self.members.get(index)?.endpoint.vitals.circuit;
        // Who failed its trial is one of those that are aside already.
        if circuit.is_closed() {
            let others = || self.others(index).map(|member| &member.endpoint.vitals.circuit);
            let aside = others().filter(|circuit| !circuit.is_closed()).count();
            // Those count too that would be aside if `max_ejected` allowed it.
            if others().all(|circuit| circuit.fails(outlier.consecutive_failures)) {
                let back = others().filter(|circuit| circuit.close(now_nanos)).count();
                return (back > 0).then_some(Verdict::AllFail);
            }
            let most = (self.members.len() * usize::from(outlier.max_ejected) / 100).max(1);
            if aside >= most {
                return None;
            }
        }
        Some(Verdict::SetAside(circuit.open(now_nanos, outlier.eject)))
    }

    /// A member that was just set aside asks for so long a rest (`Retry-After`); for how long it is aside now.
    pub fn let_rest(&self, index: usize, asked: Duration, now_nanos: u64) -> Option<Verdict> {
        let outlier = self.outlier.as_ref()?;
        let circuit = &self.members.get(index)?.endpoint.vitals.circuit;
        Some(Verdict::SetAside(circuit.rest(asked, now_nanos, outlier.eject)))
    }

    /// When members are set aside; none: never.
    pub fn outlier(&self) -> Option<&Outlier> {
        self.outlier.as_ref()
    }

    /// After how long without an answer a VM is to be doubted; none where doubt would lead to nothing.
    pub fn patience(&self) -> Option<Duration> {
        self.outlier.as_ref().filter(|_| self.members.len() > 1)?.probe_after
    }

    /// Begins to make a request again, if the budget allows it.
    pub fn repeat(&self) -> Option<Repetition<'_>> {
        self.repeating.begin(self.retry.budget, self.in_flight())
    }

    /// The other members that new work may be sent to as far as probes know.
    fn others(&self, index: usize) -> impl Iterator<Item = &Member> {
        let all = self.members.iter().enumerate().filter(move |(other, _)| *other != index);
        all.map(|(_, member)| member).filter(|member| member.weight > 0 && member.endpoint.vitals.takes_new())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use http::HeaderMap;
    use proptest::prelude::*;

    use super::super::tests::{cookies, pool, spec};
    use super::*;
    use crate::dice::mix;
    use crate::{Balance, InFlight, Pick, PoolSpec, Secret, State, Sticky};

    const SECOND: u64 = 1_000_000_000;
    const EJECT: Duration = Duration::from_secs(30);

    fn built(outlier: Option<Outlier>, balance: Balance, members: &[(u32, u32)]) -> Arc<Pool> {
        super::super::tests::built(PoolSpec { outlier, ..spec(balance, members) })
    }

    /// So many requests to a member fail, which are under way at the same time.
    fn fail(pool: &Pool, index: usize, times: usize, now: u64) -> Vec<Verdict> {
        (0..times).filter_map(|_| pool.judge(index, Entry::Free, false, now)).collect()
    }

    /// The request that tries a member.
    fn trial(pool: &Pool, index: usize, now: u64) -> Entry {
        let mut picks = (0..200).filter_map(|n| pool.pick(mix(n), &[], mix(!n), now));
        let entry = picks.find(|pick| pick.index == index).unwrap().entry;
        assert!(matches!(entry, Entry::Trial(_)), "{entry:?}");
        entry
    }

    fn seen(pool: &Pool, tried: &[usize], now: u64) -> Vec<usize> {
        let mut seen: Vec<_> =
            (0..200).filter_map(|n| Some(pool.pick(mix(n), tried, mix(!n), now)?.index)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    }

    #[test]
    fn where_all_of_many_fail_all_take_part_again() {
        let pool = pool(Balance::RoundRobin, &[(1, 0); 4]);
        assert_eq!(fail(&pool, 0, 5, SECOND), [Verdict::SetAside(EJECT)]);
        assert_eq!(fail(&pool, 1, 5, SECOND), [Verdict::SetAside(EJECT)]);
        // Half of them are aside; more must not be.
        assert_eq!(fail(&pool, 2, 5, SECOND), []);
        assert_eq!(seen(&pool, &[], SECOND), [2, 3]);
        // So the last one that does well is found by it failing too.
        assert_eq!(fail(&pool, 3, 4, SECOND), []);
        assert_eq!(fail(&pool, 3, 1, SECOND), [Verdict::AllFail]);
        assert_eq!(seen(&pool, &[], SECOND), [0, 1, 2, 3]);
        // One that is well makes it the trouble of the others alone.
        assert_eq!(fail(&pool, 0, 5, SECOND), [Verdict::SetAside(2 * EJECT)]);
        assert_eq!(fail(&pool, 1, 5, SECOND), [Verdict::SetAside(2 * EJECT)]);
        assert_eq!(pool.judge(2, Entry::Free, true, SECOND), None);
        assert_eq!(fail(&pool, 3, 5, SECOND), []);
        assert_eq!(seen(&pool, &[], SECOND), [2, 3]);
    }

    #[test]
    fn who_fails_five_times_gets_nothing_until_a_trial_succeeds() {
        for balance in
            [Balance::RoundRobin, Balance::LeastRequests, Balance::Random, Balance::Ewma, Balance::Hash]
        {
            let pool = pool(balance, &[(1, 0); 3]);
            assert_eq!(fail(&pool, 1, 4, SECOND), []);
            assert_eq!(seen(&pool, &[], SECOND), [0, 1, 2], "{balance}");
            assert_eq!(fail(&pool, 1, 1, SECOND), [Verdict::SetAside(EJECT)]);
            assert_eq!(seen(&pool, &[], 30 * SECOND), [0, 2], "{balance}");
            assert_eq!(fail(&pool, 1, 10, 2 * SECOND), [], "what was under way");

            // One of all these is the trial.
            let picks: Vec<Pick<'_>> =
                (0..200).filter_map(|n| pool.pick(mix(n), &[], mix(!n), 31 * SECOND)).collect();
            assert_eq!(picks.len(), 200, "{balance}");
            let trials: Vec<_> = picks.iter().filter(|pick| pick.index == 1).map(|pick| pick.entry).collect();
            assert!(matches!(trials[..], [Entry::Trial(_)]), "{balance}");
            drop(picks);
            assert_eq!(pool.judge(1, trials[0], true, 32 * SECOND), Some(Verdict::Restored));
            assert_eq!(seen(&pool, &[], 32 * SECOND), [0, 1, 2], "{balance}");
        }
    }

    #[test]
    fn who_fails_its_trial_stays_away() {
        let pool = pool(Balance::RoundRobin, &[(1, 0); 2]);
        fail(&pool, 0, 5, SECOND);
        let trial = trial(&pool, 0, 31 * SECOND);
        assert_eq!(pool.judge(0, trial, false, 31 * SECOND), Some(Verdict::SetAside(EJECT * 2)));
        assert_eq!(pool.judge(0, trial, false, 32 * SECOND), None, "once");
        assert_eq!(seen(&pool, &[], 90 * SECOND), [1]);
        assert_eq!(seen(&pool, &[], 91 * SECOND), [0, 1]);
    }

    #[test]
    fn no_more_than_a_share_is_set_aside() {
        let outlier = Outlier { max_ejected: 50, ..Outlier::default() };
        let pool = built(Some(outlier), Balance::RoundRobin, &[(1, 0); 4]);
        assert_eq!(fail(&pool, 0, 5, SECOND), [Verdict::SetAside(EJECT)]);
        assert_eq!(fail(&pool, 1, 5, SECOND), [Verdict::SetAside(EJECT)]);
        assert_eq!(fail(&pool, 2, 50, SECOND), []);
        assert_eq!(seen(&pool, &[], SECOND), [2, 3]);
        // There is room again.
        let trial = trial(&pool, 0, 31 * SECOND);
        assert_eq!(pool.judge(0, trial, true, 31 * SECOND), Some(Verdict::Restored));
        assert_eq!(fail(&pool, 2, 5, 31 * SECOND), [Verdict::SetAside(EJECT)]);
    }

    #[test]
    fn one_always_may_be() {
        let outlier = Outlier { max_ejected: 10, ..Outlier::default() };
        let pool = built(Some(outlier), Balance::RoundRobin, &[(1, 0); 3]);
        assert_eq!(fail(&pool, 0, 5, SECOND), [Verdict::SetAside(EJECT)]);
        assert_eq!(fail(&pool, 1, 5, SECOND), []);
    }

    #[test]
    fn the_last_one_never_is_and_has_all_tried_again() {
        let outlier = Outlier { max_ejected: 100, ..Outlier::default() };
        let pool = built(Some(outlier), Balance::RoundRobin, &[(1, 0), (1, 1), (0, 0), (1, 0)]);
        pool.members()[3].endpoint.vitals.set_state(State::Down);
        assert_eq!(fail(&pool, 0, 5, SECOND), [Verdict::SetAside(EJECT)]);
        assert_eq!(seen(&pool, &[], SECOND), [1]);
        assert_eq!(fail(&pool, 1, 5, SECOND), [Verdict::AllFail], "the others are down or take no new work");
        assert_eq!(seen(&pool, &[], SECOND), [0]);

        let single = built(Some(Outlier::default()), Balance::RoundRobin, &[(1, 0)]);
        assert_eq!(fail(&single, 0, 100, SECOND), []);
        assert_eq!(seen(&single, &[], SECOND), [0]);
    }

    #[test]
    fn who_is_set_aside_is_better_than_nobody() {
        let pool = pool(Balance::RoundRobin, &[(1, 0); 2]);
        fail(&pool, 0, 5, SECOND);
        pool.members()[1].endpoint.vitals.set_state(State::Down);
        let pick = pool.pick(0, &[], 0, SECOND).unwrap();
        assert_eq!((pick.index, pick.entry), (0, Entry::LastResort));
        assert!(pool.pick(0, &[1], 0, SECOND).is_none(), "but not for a second attempt");
        assert_eq!(pool.judge(0, Entry::LastResort, false, SECOND), None);
        assert_eq!(pool.judge(0, Entry::LastResort, true, SECOND), Some(Verdict::Restored));
        assert_eq!(pool.pick(0, &[], 0, SECOND).unwrap().entry, Entry::Free);
    }

    #[test]
    fn clients_stuck_to_one_that_is_set_aside_go_elsewhere_and_come_back() {
        let sticky = Some(Sticky { cookie: "fg_vm".into(), max_age: None, secret: Secret([7; 16]) });
        let pool = super::super::tests::built(PoolSpec { sticky, ..spec(Balance::RoundRobin, &[(1, 0); 2]) });
        let set = pool.sticky_cookie(&HeaderMap::new(), 0, false).unwrap();
        let headers = cookies(set.to_str().unwrap().split_once(';').unwrap().0);
        fail(&pool, 0, 5, SECOND);
        assert!(pool.pick_sticky(&headers, &[], 30 * SECOND).is_none());
        let entry = pool.pick_sticky(&headers, &[], 31 * SECOND).unwrap().entry;
        assert!(matches!(entry, Entry::Trial(_)));
        assert!(pool.pick_sticky(&headers, &[], 31 * SECOND).is_none(), "the trial is under way");
    }

    #[test]
    fn a_probe_that_finds_one_up_again_takes_it_back() {
        let pool = pool(Balance::RoundRobin, &[(1, 0); 2]);
        let vitals = &pool.members()[0].endpoint.vitals;
        vitals.set_state(State::Up);
        fail(&pool, 0, 5, SECOND);
        vitals.set_state(State::Up);
        assert_eq!(seen(&pool, &[], SECOND), [1], "probes may succeed where requests do not");
        vitals.set_state(State::Down);
        vitals.set_state(State::Up);
        assert_eq!(seen(&pool, &[], SECOND), [0, 1]);
    }

    #[test]
    fn who_cuts_its_responses_short_is_set_aside() {
        let pool = pool(Balance::RoundRobin, &[(1, 0); 2]);
        for _ in 0..5 {
            assert_eq!(pool.judge(0, Entry::Free, true, SECOND), None);
            InFlight::begin(&pool.members()[0].endpoint).cut(true);
        }
        assert_eq!(pool.judge(0, Entry::Free, true, SECOND), Some(Verdict::SetAside(EJECT)));
        assert_eq!(seen(&pool, &[], SECOND), [1]);
    }

    #[test]
    fn who_is_set_aside_gets_nothing_because_others_are_busy() {
        let mut spec = spec(Balance::RoundRobin, &[(1, 0); 2]);
        spec.members[1].max_requests = Some(1);
        let pool = super::super::tests::built(spec);
        fail(&pool, 0, 5, SECOND);
        let one = pool.pick(0, &[], 0, SECOND).unwrap();
        assert_eq!(one.index, 1);
        assert!(pool.pick(0, &[], 0, SECOND).is_none() && pool.is_busy(&[], SECOND));
        drop(one);
        assert_eq!(pool.pick(0, &[], 0, SECOND).unwrap().index, 1);
    }

    #[test]
    fn nobody_is_set_aside_where_that_is_off() {
        let pool = built(None, Balance::RoundRobin, &[(1, 0); 2]);
        assert_eq!(fail(&pool, 0, 100, SECOND), []);
        assert_eq!(seen(&pool, &[], SECOND), [0, 1]);
    }

    proptest! {
        /// Whatever fails: somebody is picked as long as probes know of somebody, and who is aside is not, unless its
        /// time has come or it is the last resort.
        #[test]
        fn there_is_always_somebody(
            balance in prop::sample::select(Balance::ALL.to_vec()),
            members in prop::collection::vec((1_u32..4, 0_u32..3), 1..7),
            max_ejected in 0_u8..=100,
            steps in prop::collection::vec((any::<u64>(), 0_u64..20 * SECOND, any::<bool>()), 1..300),
        ) {
            let outlier = Outlier { consecutive_failures: 2, max_ejected, ..Outlier::default() };
            let pool = built(Some(outlier), balance, &members);
            let mut now = SECOND;
            let mut aside = vec![0; members.len()];
            for (seed, passes, well) in steps {
                now += passes;
                let pick = pool.pick(mix(seed), &[], mix(!seed), now).unwrap();
                let (index, entry) = (pick.index, pick.entry);
                prop_assert!(aside[index] <= now || entry == Entry::LastResort);
                let closed = pool.members()[index].endpoint.vitals.circuit.is_closed();
                prop_assert_eq!(closed, entry == Entry::Free);
                match pool.judge(index, entry, well, now) {
                    Some(Verdict::SetAside(time)) => aside[index] = now + u64::try_from(time.as_nanos()).unwrap(),
                    Some(Verdict::Restored) => aside[index] = 0,
                    Some(Verdict::AllFail) => aside.fill(0),
                    None => {}
                }
                let out = pool.members().iter().filter(|member| !member.endpoint.vitals.circuit.is_closed()).count();
                prop_assert!(out < members.len());
                prop_assert!(out <= (members.len() * usize::from(max_ejected) / 100).max(1));
            }
        }
    }
}
