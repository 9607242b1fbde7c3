//! When HTTP/3 is advertised: from what probes find and who comes. Pure; the time is an argument.

use std::time::{Duration, Instant};

use super::Saying;

/// Probes in a row that must fail before it is taken back: one may be lost in a busy moment.
const FALL: u32 = 2;
/// Probes in a row that must succeed before it is advertised again, so that a link that comes and goes does not
/// turn every browser round each minute.
const RISE: u32 = 3;

/// So many clients told without one that came mean that none can. Of clients, bots and old programs included, at
/// least one in twenty tries HTTP/3 once it knows of it: that 200 pass it by has a chance of 0.95^200, which is
/// one in 28,000.
pub(super) const MANY: usize = 200;
/// What is told is used for the next connection, and the one at hand lasts as long as a visit.
const VISIT: Duration = Duration::from_secs(30 * 60);
/// How long it is not advertised because nobody came, before it is tried again with others.
const NOBODY: Duration = Duration::from_secs(24 * 60 * 60);

/// The pause after a first probe or a change, which doubles with each probe to the pause of every day: right
/// after a boot, or while somebody works on the network, things change within seconds.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);

/// What is known at the time of a verdict.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen {
    /// Whether the probe was answered.
    pub(super) answered: bool,
    /// Clients that were told.
    pub(super) told: usize,
    /// Whether somebody came for it.
    pub(super) came: bool,
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is advertised from now on.
    Begins,
    /// The first probes failed; nobody had been told.
    NeverBegan,
    /// It is taken back: probes fail.
    Fails,
    /// It is taken back: nobody comes.
    NobodyComes,
}

#[derive(Debug)]
pub(super) struct Judge {
    /// For how long clients remember what they were told, and must be told otherwise.
    max_age: Duration,
    phase: Phase,
    /// How many probes in a row found what.
    streak: (bool, u32),
    pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing is known yet.
    Beginning,
    Advertising {
        /// Since when many have been told and nobody has come.
        alone: Option<Instant>,
    },
    /// Probes fail. `clear` is where clients were told before.
    Unanswered {
        clear: Option<Instant>,
    },
    Deserted {
        since: Instant,
    },
}

impl Judge {
    /// For how long clients remember what they are told from now on.
    pub(super) fn tell_for(&mut self, max_age: Duration) {
        self.max_age = max_age;
    }

    pub(super) fn new(max_age: Duration) -> Judge {
        Judge { max_age, phase: Phase::Beginning, streak: (false, 0), pause: SHORTEST }
    }

    pub(super) fn saying(&self, now: Instant) -> Saying {
        let since = match self.phase {
            Phase::Advertising { .. } => return Saying::Come,
            Phase::Beginning | Phase::Unanswered { clear: None } => return Saying::Nothing,
            Phase::Unanswered { clear: Some(since) } | Phase::Deserted { since } => since,
        };
        // Whoever was told last has forgotten it then.
        if now.duration_since(since) < self.max_age { Saying::Clear } else { Saying::Nothing }
    }

    /// How long to wait for the next probe.
    pub(super) fn pause(&self) -> Duration {
        self.pause
    }

    /// What a probe, and what has happened since the last one, changes.
    pub(super) fn judge(&mut self, now: Instant, seen: Seen) -> Option<Change> {
        let (last, count) = self.streak;
        self.streak = (seen.answered, if last == seen.answered { count.saturating_add(1) } else { 1 });
        if last != seen.answered {
            self.pause = SHORTEST;
        } else {
            self.pause = (self.pause * 2).min(LONGEST);
        }
        let change = self.decide(now, seen);
        if change.is_some() {
            self.pause = SHORTEST;
        }
        change
    }

    fn decide(&mut self, now: Instant, seen: Seen) -> Option<Change> {
        let (answered, streak) = self.streak;
        let (phase, change) = match self.phase {
            Phase::Beginning if answered => (Phase::Advertising { alone: None }, Change::Begins),
            Phase::Beginning if streak >= FALL => (Phase::Unanswered { clear: None }, Change::NeverBegan),
            Phase::Beginning => return None,
            Phase::Advertising { .. } if !answered && streak >= FALL => {
                (Phase::Unanswered { clear: Some(now) }, Change::Fails)
            }
            Phase::Advertising { .. } if seen.came || seen.told < MANY => {
                self.phase = Phase::Advertising { alone: None };
                return None;
            }
            Phase::Advertising { alone: Some(since) } if now.duration_since(since) >= VISIT => {
                (Phase::Deserted { since: now }, Change::NobodyComes)
            }
            Phase::Advertising { alone } => {
                self.phase = Phase::Advertising { alone: alone.or(Some(now)) };
                return None;
            }
            // Nobody has been told, so nobody is turned round.
            Phase::Unanswered { clear: None } if answered => {
                (Phase::Advertising { alone: None }, Change::Begins)
            }
            Phase::Unanswered { .. } if answered && streak >= RISE => {
                (Phase::Advertising { alone: None }, Change::Begins)
            }
            Phase::Unanswered { .. } => return None,
            // Somebody knew of it otherwise, and it works.
            Phase::Deserted { since } if answered && (seen.came || now.duration_since(since) >= NOBODY) => {
                (Phase::Advertising { alone: None }, Change::Begins)
            }
            Phase::Deserted { .. } => return None,
        };
        self.phase = phase;
        Some(change)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const MAX_AGE: Duration = Duration::from_secs(3600);

    struct Scene {
        judge: Judge,
        now: Instant,
        told: usize,
        came: bool,
    }

    impl Scene {
        fn new() -> Scene {
            Scene { judge: Judge::new(MAX_AGE), now: Instant::now(), told: 0, came: false }
        }

        fn probe(&mut self, answered: bool) -> (Option<Change>, Saying) {
            let seen = Seen { answered, told: self.told, came: self.came };
            let change = self.judge.judge(self.now, seen);
            let said = self.judge.saying(self.now);
            self.now += self.judge.pause();
            (change, said)
        }

        /// Probes until something changes; how long that took.
        fn until_change(&mut self, answered: bool) -> (Change, Duration) {
            let begun = self.now;
            for _ in 0..10_000 {
                let at = self.now;
                if let (Some(change), _) = self.probe(answered) {
                    return (change, at - begun);
                }
            }
            unreachable!("nothing changes")
        }
    }

    #[test]
    fn the_first_answer_is_enough() {
        let mut scene = Scene::new();
        assert_eq!(scene.judge.saying(scene.now), Saying::Nothing);
        assert_eq!(scene.probe(true), (Some(Change::Begins), Saying::Come));
        assert_eq!(scene.probe(true), (None, Saying::Come));
    }

    #[test]
    fn nobody_is_told_of_what_never_worked() {
        let mut scene = Scene::new();
        assert_eq!(scene.probe(false), (None, Saying::Nothing));
        assert_eq!(scene.probe(false), (Some(Change::NeverBegan), Saying::Nothing));
        for _ in 0..100 {
            assert_eq!(scene.probe(false), (None, Saying::Nothing));
        }
        assert_eq!(scene.probe(true), (Some(Change::Begins), Saying::Come));
    }

    #[test]
    fn it_is_taken_back_for_as_long_as_clients_remember() {
        let mut scene = Scene::new();
        scene.probe(true);
        assert_eq!(scene.probe(false), (None, Saying::Come), "one lost probe is none");
        assert_eq!(scene.probe(true), (None, Saying::Come));
        assert_eq!(scene.probe(false), (None, Saying::Come));
        let lost = scene.now;
        assert_eq!(scene.probe(false), (Some(Change::Fails), Saying::Clear));
        while scene.now - lost < MAX_AGE {
            assert_eq!(scene.probe(false), (None, Saying::Clear));
        }
        assert_eq!(scene.probe(false), (None, Saying::Nothing));
        assert_eq!(scene.probe(true), (None, Saying::Nothing));
        assert_eq!(scene.probe(true), (None, Saying::Nothing));
        assert_eq!(scene.probe(true), (Some(Change::Begins), Saying::Come));
    }

    #[test]
    fn probes_are_frequent_after_a_change_and_then_one_a_minute() {
        let mut scene = Scene::new();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            scene.probe(true);
            pauses.push(scene.judge.pause().as_secs());
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        // From the failure of a path to the moment when clients hear of it, the probes' own time aside.
        let begun = scene.now;
        assert_eq!(scene.until_change(false), (Change::Fails, SHORTEST));
        assert!(scene.now - begun < MINUTE);
    }

    #[test]
    fn nobody_comes_though_many_know() {
        let mut scene = Scene::new();
        scene.probe(true);
        scene.told = MANY - 1;
        for _ in 0..1000 {
            assert_eq!(scene.probe(true), (None, Saying::Come));
        }
        scene.told = MANY;
        let (change, after) = scene.until_change(true);
        assert_eq!(change, Change::NobodyComes);
        assert!(after >= VISIT && after < VISIT + 2 * MINUTE, "{after:?}");
        assert_eq!(scene.judge.saying(scene.now), Saying::Clear);
        // It is tried again a day later, or when somebody comes.
        scene.told = 0;
        let (change, after) = scene.until_change(true);
        assert_eq!(change, Change::Begins);
        assert!(after >= NOBODY - MINUTE && after < NOBODY + MINUTE, "{after:?}");
    }

    #[test]
    fn one_who_comes_proves_it() {
        let mut scene = Scene::new();
        scene.probe(true);
        (scene.told, scene.came) = (MANY * 100, true);
        for _ in 0..10_000 {
            assert_eq!(scene.probe(true), (None, Saying::Come));
        }
        scene.came = false;
        assert_eq!(scene.until_change(true).0, Change::NobodyComes);
        scene.came = true;
        assert_eq!(scene.probe(true), (Some(Change::Begins), Saying::Come));
    }
}
