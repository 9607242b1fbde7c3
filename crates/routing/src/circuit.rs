//! What live traffic says of a VM: after some failures in a row it is set aside for a while, then one request tries
//! it, and that one decides. Pure: time is an argument.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

/// When requests that fail set a VM aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outlier {
    /// So many in a row do.
    pub consecutive_failures: u32,
    /// For so long; twice as long each time it fails again, sixteen times at most.
    pub eject: Duration,
    /// Percent of a pool's members that may be set aside at a time; one always may.
    pub max_ejected: u8,
    /// Who has not answered for so long is probed, and set aside if the probe fails too; none: nobody is for that.
    pub probe_after: Option<Duration>,
}

impl Default for Outlier {
    fn default() -> Outlier {
        Outlier {
            consecutive_failures: 5,
            eject: Duration::from_secs(30),
            max_ejected: 50,
            probe_after: Some(Duration::from_secs(5)),
        }
    }
}

/// How many times `eject` a VM gets that asks for a rest: it may only have meant one of its visitors.
const MOST_REST: u32 = 4;
/// How often the time aside doubles.
const MAX_DOUBLINGS: u32 = 4;

/// One endpoint's standing with live traffic. Closed, as a circuit is that carries current; open once it is set aside.
/// Every order is relaxed: what races here are reports of one and the same VM, and any order of them is true.
#[derive(Debug, Default)]
pub(crate) struct Circuit {
    /// Requests that failed in a row.
    failures: AtomicU32,
    /// Responses in a row that began well and were cut short.
    cuts: AtomicU32,
    /// How often it was opened, to tell one time from another.
    opened: AtomicU32,
    /// The time of which a trial was last let in.
    tried: AtomicU32,
    /// Nanoseconds; 0 is closed. Before then nothing is sent there, after it one request is, as a trial, which moves
    /// it on: if nothing is heard of that one, another follows.
    until: AtomicU64,
    /// How often it was set aside without having been well for as long in between.
    ejections: AtomicU32,
    /// Nanoseconds, when it last closed.
    closed: AtomicU64,
}

/// How often a circuit had opened when a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u32);

/// How a request came to be sent to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing stood against it.
    Free,
    /// It decides whether the VM is taken back, unless something else has meanwhile.
    Trial(Mark),
    /// The VM is set aside, but there was nobody else.
    LastResort,
}

impl Circuit {
    pub(crate) fn is_closed(&self) -> bool {
        self.until.load(Ordering::Relaxed) == 0
    }

    /// Whether it is set aside, or would be if the others allowed it.
    pub(crate) fn fails(&self, limit: u32) -> bool {
        let reached = |counter: &AtomicU32| counter.load(Ordering::Relaxed) >= limit.max(1);
        !self.is_closed() || reached(&self.failures) || reached(&self.cuts)
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark(self.opened.load(Ordering::Relaxed))
    }

    /// Whether the VM was set aside since the mark was taken, and still is.
    pub(crate) fn has_opened(&self, mark: Mark) -> bool {
        !self.is_closed() && self.mark() != mark
    }

    /// Whether a request might be sent there now.
    pub(crate) fn admits(&self, now: u64) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        until == 0 || until <= now
    }

    /// Sends one there, if nobody else has just taken the trial. The next one is due after `eject`.
    pub(crate) fn enter(&self, now: u64, eject: Duration) -> Option<Entry> {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return Some(Entry::Free);
        }
        let next = later(now, eject);
        let taken = until <= now
            && self.until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let Mark(time) = self.mark();
        taken.then(|| {
            self.tried.store(time, Ordering::Relaxed);
            Entry::Trial(Mark(time))
        })
    }

    /// A request went well. True: that takes the VM back.
    pub(crate) fn succeed(&self, entry: Entry, now: u64) -> bool {
        // Mostly there is nothing to write, and a line that all workers read stays where it is.
        if entry == Entry::Free {
            if self.failures.load(Ordering::Relaxed) != 0 {
                self.failures.store(0, Ordering::Relaxed);
            }
            return false;
        }
        self.close(now)
    }

    /// A request failed. True: this asks for the VM to be set aside.
    pub(crate) fn fail(&self, entry: Entry, limit: u32) -> bool {
        match entry {
            Entry::Trial(mark) => !self.is_closed() && self.mark() == mark,
            // What was sent before it was set aside fails late, and says nothing new.
            Entry::Free if !self.is_closed() => false,
            Entry::Free => {
                let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                // Again and again, where it could not be set aside at first.
                failures.is_multiple_of(limit.max(1))
            }
            Entry::LastResort => false,
        }
    }

    /// A response was cut short, or came to its end.
    pub(crate) fn cut(&self, short: bool) {
        if short && !self.is_closed() {
            // It began before the VM was set aside for the same.
        } else if short {
            self.cuts.fetch_add(1, Ordering::Relaxed);
        } else if self.cuts.load(Ordering::Relaxed) != 0 {
            self.cuts.store(0, Ordering::Relaxed);
        }
    }

    /// Whether so many in a row were cut short.
    pub(crate) fn is_cut(&self, limit: u32) -> bool {
        self.is_closed() && self.cuts.load(Ordering::Relaxed) >= limit.max(1)
    }

    /// Sets the VM aside from now on; for how long.
    pub(crate) fn open(&self, now: u64, eject: Duration) -> Duration {
        let before = self.ejections.load(Ordering::Relaxed);
        let aside = |ejections: u32| eject.saturating_mul(1 << ejections.min(MAX_DOUBLINGS));
        let well = now.saturating_sub(self.closed.load(Ordering::Relaxed));
        let was_trial = !self.is_closed();
        // As long as it was aside last time, and as long again.
        let forgiven = !was_trial && before > 0 && u128::from(well) > aside(before).as_nanos();
        let ejections = if forgiven { 0 } else { before };
        self.ejections.store(ejections.saturating_add(1), Ordering::Relaxed);
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.failures.store(0, Ordering::Relaxed);
        self.cuts.store(0, Ordering::Relaxed);
        let aside = aside(ejections);
        self.until.store(later(now, aside), Ordering::Relaxed);
        aside
    }

    /// The VM, which was just set aside, asks for so long a rest: it gets that, within reason, and is not tried before, whatever probes say. For how long it is aside now.
    pub(crate) fn rest(&self, asked: Duration, now: u64, eject: Duration) -> Duration {
        let asked = later(now, asked.min(eject.saturating_mul(MOST_REST)));
        let until = self.until.load(Ordering::Relaxed);
        if until != 0 && until < asked {
            let Mark(time) = self.mark();
            self.tried.store(time, Ordering::Relaxed);
            // Unless something else has just happened.
            _ = self.until.compare_exchange(until, asked, Ordering::Relaxed, Ordering::Relaxed);
        }
        Duration::from_nanos(self.until.load(Ordering::Relaxed).saturating_sub(now))
    }

    /// Takes the VM back. False: it was never set aside.
    pub(crate) fn close(&self, now: u64) -> bool {
        self.failures.store(0, Ordering::Relaxed);
        self.cuts.store(0, Ordering::Relaxed);
        let open = self.until.swap(0, Ordering::Relaxed) != 0;
        if open {
            self.closed.store(now, Ordering::Relaxed);
        }
        open
    }

    /// A probe went well. Whoever was set aside for the first time, as one is that was just restarted, is tried at once; who
    /// has failed its trial then waits its time, for probes may succeed where requests do not.
    pub(crate) fn hasten(&self, now: u64) {
        let until = self.until.load(Ordering::Relaxed);
        let Mark(time) = self.mark();
        let untried = self.tried.load(Ordering::Relaxed) != time;
        if until > now && untried && self.ejections.load(Ordering::Relaxed) == 1 {
            // Unless something else has just happened.
            let due = now.max(1);
            _ = self.until.compare_exchange(until, due, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// For how much longer the VM is set aside, if it is, and how often it was, for another process.
    pub(crate) fn standing(&self, now: u64) -> (Option<Duration>, u32) {
        let until = self.until.load(Ordering::Relaxed);
        let left = (until != 0).then(|| Duration::from_nanos(until.saturating_sub(now)));
        (left, self.ejections.load(Ordering::Relaxed))
    }

    /// Goes on where another process was.
    pub(crate) fn resume(&self, (left, ejections): (Option<Duration>, u32), now: u64) {
        self.ejections.store(ejections, Ordering::Relaxed);
        match left {
            Some(left) => {
                self.opened.fetch_add(1, Ordering::Relaxed);
                self.until.store(later(now, left), Ordering::Relaxed);
            }
            // It may have been so until just now.
            None => self.closed.store(now, Ordering::Relaxed),
        }
    }

    /// Something else has found the VM well: what was before is over.
    pub(crate) fn forget(&self) {
        for counter in [&self.failures, &self.cuts, &self.ejections] {
            counter.store(0, Ordering::Relaxed);
        }
        self.until.store(0, Ordering::Relaxed);
    }
}

fn later(now: u64, wait: Duration) -> u64 {
    now.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const EJECT: Duration = Duration::from_secs(30);

    fn trial(circuit: &Circuit, now: u64) -> Entry {
        let entry = circuit.enter(now, EJECT).unwrap();
        assert!(matches!(entry, Entry::Trial(_)), "{entry:?}");
        entry
    }

    #[test]
    fn what_happened_once_counts_once() {
        let circuit = Circuit::default();
        let before = circuit.mark();
        circuit.open(SECOND, EJECT);
        assert!(circuit.has_opened(before));
        let mark = circuit.mark();
        let slow = trial(&circuit, 31 * SECOND);
        assert!(!circuit.has_opened(mark), "a trial begins");
        // Another trial, which is found out to hang.
        trial(&circuit, 61 * SECOND);
        circuit.open(70 * SECOND, EJECT);
        assert!(circuit.has_opened(mark));
        assert!(!circuit.fail(slow, 5), "that is known already");
        circuit.close(80 * SECOND);
        assert!(!circuit.fail(slow, 5) && !circuit.has_opened(before));
    }

    #[test]
    fn responses_that_are_cut_short_are_counted_in_a_row() {
        let circuit = Circuit::default();
        for short in [true, true, false, true, true] {
            circuit.cut(short);
        }
        assert!(!circuit.is_cut(3));
        circuit.cut(true);
        assert!(circuit.is_cut(3));
        circuit.open(SECOND, EJECT);
        for _ in 0..9 {
            circuit.cut(true);
        }
        assert!(!circuit.is_cut(3), "they began before");
        circuit.close(SECOND);
        assert!(!circuit.is_cut(3));
    }

    #[test]
    fn only_failures_in_a_row_count() {
        let circuit = Circuit::default();
        for _ in 0..4 {
            assert!(!circuit.fail(Entry::Free, 5));
        }
        assert!(!circuit.succeed(Entry::Free, 0));
        for _ in 0..4 {
            assert!(!circuit.fail(Entry::Free, 5));
        }
        assert!(circuit.fail(Entry::Free, 5));
        // The pool may have said no.
        for _ in 0..4 {
            assert!(!circuit.fail(Entry::Free, 5));
        }
        assert!(circuit.fail(Entry::Free, 5), "it asks again");
    }

    #[test]
    fn one_request_tries_it_and_decides() {
        let circuit = Circuit::default();
        assert_eq!(circuit.open(SECOND, EJECT), EJECT);
        assert!(!circuit.admits(31 * SECOND - 1));
        assert_eq!(circuit.enter(31 * SECOND - 1, EJECT), None);
        assert!(!circuit.fail(Entry::Free, 1), "one that was under way says nothing new");
        assert!(!circuit.succeed(Entry::Free, 20 * SECOND), "well or not");
        assert!(!circuit.is_closed());

        assert!(circuit.admits(31 * SECOND));
        let trial = trial(&circuit, 31 * SECOND);
        assert_eq!(circuit.enter(31 * SECOND, EJECT), None, "one at a time");
        assert!(circuit.succeed(trial, 32 * SECOND));
        assert_eq!(circuit.enter(32 * SECOND, EJECT), Some(Entry::Free));
    }

    #[test]
    fn a_trial_nothing_is_heard_of_is_followed_by_another() {
        let circuit = Circuit::default();
        circuit.open(SECOND, EJECT);
        trial(&circuit, 31 * SECOND);
        assert_eq!(circuit.enter(60 * SECOND, EJECT), None);
        trial(&circuit, 61 * SECOND);
    }

    #[test]
    fn who_fails_again_stays_away_longer() {
        let circuit = Circuit::default();
        let mut now = SECOND;
        let mut aside = Vec::new();
        for _ in 0..7 {
            let time = circuit.open(now, EJECT);
            aside.push(time.as_secs());
            now = later(now, time);
            let trial = trial(&circuit, now);
            assert!(circuit.fail(trial, 5));
        }
        assert_eq!(aside, [30, 60, 120, 240, 480, 480, 480]);
    }

    #[test]
    fn a_probe_that_goes_well_hastens_the_first_trial_alone() {
        let circuit = Circuit::default();
        circuit.hasten(SECOND);
        assert!(circuit.is_closed());
        circuit.open(SECOND, EJECT);
        circuit.hasten(3 * SECOND);
        trial(&circuit, 3 * SECOND);
        circuit.hasten(4 * SECOND);
        assert_eq!(circuit.enter(4 * SECOND, EJECT), None, "one is under way");
        circuit.open(4 * SECOND, EJECT);
        circuit.hasten(5 * SECOND);
        assert_eq!(circuit.enter(6 * SECOND, EJECT), None);
    }

    #[test]
    fn who_asks_for_a_rest_gets_it() {
        let circuit = Circuit::default();
        assert_eq!(circuit.rest(EJECT, SECOND, EJECT), Duration::ZERO);
        assert!(circuit.is_closed(), "who is not set aside is not by that");
        for (asks, gets) in [(5, 30), (90, 90), (100_000, 120)] {
            circuit.open(SECOND, EJECT);
            assert_eq!(circuit.rest(Duration::from_secs(asks), SECOND, EJECT).as_secs(), gets, "{asks}");
            circuit.hasten(2 * SECOND);
            assert_eq!(circuit.admits(3 * SECOND), asks == 5, "its probes may go well all the time");
            assert!(circuit.admits((gets + 1) * SECOND));
            assert!(circuit.close(SECOND));
            circuit.ejections.store(0, Ordering::Relaxed);
        }
    }

    #[test]
    fn who_was_well_for_long_is_forgiven() {
        for (well, aside) in [(59, 60), (61, 30)] {
            let circuit = Circuit::default();
            circuit.open(SECOND, EJECT);
            assert!(circuit.succeed(Entry::LastResort, 40 * SECOND));
            assert_eq!(circuit.open((40 + well) * SECOND, EJECT).as_secs(), aside, "{well}");
        }
    }

    #[test]
    fn a_last_resort_may_help_and_cannot_hurt() {
        let circuit = Circuit::default();
        circuit.open(SECOND, EJECT);
        assert!(!circuit.fail(Entry::LastResort, 1));
        assert!(circuit.succeed(Entry::LastResort, 2 * SECOND));
        assert!(circuit.is_closed());
        assert!(!circuit.close(3 * SECOND), "it is closed");
    }

    proptest! {
        /// Whatever is reported in whatever order: an open circuit never lets two requests in within the time of a
        /// trial, and a success of a trial always closes it.
        #[test]
        fn at_most_one_at_a_time_while_it_is_open(
            steps in prop::collection::vec((0_u8..4, 0_u64..20 * SECOND), 1..200),
        ) {
            let circuit = Circuit::default();
            let mut now = 1;
            let mut last: Option<u64> = None;
            for (step, passes) in steps {
                now += passes;
                let open = !circuit.is_closed();
                match step {
                    0 => {
                        if circuit.fail(Entry::Free, 2) {
                            prop_assert!(!open);
                            circuit.open(now, EJECT);
                            last = Some(now);
                        }
                    }
                    1 => {
                        circuit.succeed(Entry::Free, now);
                        prop_assert_eq!(!circuit.is_closed(), open);
                    }
                    _ => match circuit.enter(now, EJECT) {
                        Some(entry @ Entry::Trial(_)) => {
                            prop_assert!(last.is_some_and(|last| u128::from(now - last) >= EJECT.as_nanos()));
                            last = Some(now);
                            if step == 3 {
                                prop_assert!(circuit.succeed(entry, now));
                                prop_assert!(circuit.is_closed());
                            }
                        }
                        Some(entry) => prop_assert!(!open && entry == Entry::Free),
                        None => prop_assert!(open),
                    },
                }
            }
        }
    }
}
