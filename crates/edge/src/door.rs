//! Who is let in next where more come than can be: each costs a handshake, and that is most of what a connection costs.
//!
//! One is let in at a time, and then all others who have something to do have their turn: whoever is in comes first. The
//! newest is let in first, because it waits least: where somebody must wait for longer than it will, it is one and not all.
//! A few wait here and more in the kernel, so that a burst is only served more slowly. Where that does not end the kernel's
//! queue holds nobody but those who have left or soon will. Then it is emptied, and of all who come only the newest few wait.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// So many wait here, and so many come here before the next is let in.
pub(crate) const ROOM: usize = 64;
/// When somebody has been waiting all the time for so long it is no burst. Nor is it over before nobody had to leave for
/// so long.
pub(crate) const BURST: Duration = Duration::from_secs(1);
/// In a crowd nobody waits for longer: who came later is let in before, so it would be for ever.
const STALE: Duration = Duration::from_secs(1);
/// So many more may come in a crowd however many wait, for there is no telling whether those wait still.
const LEAST: usize = ROOM / 4;

pub(crate) struct Door<T> {
    waiting: VecDeque<(Instant, T)>,
    /// Since when it has not been empty.
    since: Option<Instant>,
    /// When somebody had to leave last, and how many had.
    turned_away: Option<(Instant, u64)>,
}

impl<T> Door<T> {
    pub(crate) fn new() -> Door<T> {
        Door { waiting: VecDeque::new(), since: None, turned_away: None }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether more are to be accepted now.
    pub(crate) fn takes(&self, now: Instant) -> bool {
        self.waiting.len() < ROOM || self.is_crowded(now)
    }

    /// How many more may come while they can be kept out before they come here; none: all.
    pub(crate) fn room(&self, now: Instant) -> Option<usize> {
        self.is_crowded(now).then(|| (ROOM - self.waiting.len()).max(LEAST))
    }

    /// So many were.
    pub(crate) fn keep_out(&mut self, number: u64, now: Instant) {
        if number > 0 {
            self.turned_away = Some((now, self.turned_away.map_or(0, |(_, before)| before) + number));
        }
    }

    /// One waits from now on. Returns whoever has to leave for it.
    pub(crate) fn wait(&mut self, one: T, now: Instant) -> Option<T> {
        self.since.get_or_insert(now);
        let leaves = if self.waiting.len() >= ROOM { self.waiting.pop_front() } else { None };
        self.keep_out(u64::from(leaves.is_some()), now);
        self.waiting.push_back((now, one));
        leaves.map(|(_, one)| one)
    }

    /// One who has waited in a crowd for too long.
    pub(crate) fn stale(&mut self, now: Instant) -> Option<T> {
        let is_stale = |(since, _): &(Instant, T)| now.duration_since(*since) >= STALE;
        if !self.is_crowded(now) || !self.waiting.front().is_some_and(is_stale) {
            return None;
        }
        self.keep_out(1, now);
        let stale = self.waiting.pop_front();
        self.leaves(stale)
    }

    /// The next that is let in.
    pub(crate) fn next(&mut self) -> Option<T> {
        let next = self.waiting.pop_back();
        self.leaves(next)
    }

    fn leaves(&mut self, one: Option<(Instant, T)>) -> Option<T> {
        if self.is_empty() {
            self.since = None;
        }
        one.map(|(_, one)| one)
    }

    /// Says how many had to leave, once that is over.
    pub(crate) fn over(&mut self, now: Instant) -> Option<u64> {
        let (_, number) = self.turned_away.filter(|_| self.is_empty() && !self.is_crowded(now))?;
        self.turned_away = None;
        Some(number)
    }

    fn is_crowded(&self, now: Instant) -> bool {
        let lately = |then: Instant| now.duration_since(then) < BURST;
        self.since.is_some_and(|since| !lately(since))
            || self.turned_away.is_some_and(|(last, _)| lately(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_waits_and_a_crowd_does_not() {
        let (mut door, begun) = (Door::new(), Instant::now());
        for n in 0..ROOM {
            assert!(door.takes(begun));
            assert_eq!(door.wait(n, begun), None);
        }
        let soon = begun + BURST - Duration::from_millis(1);
        assert!(!door.takes(soon), "the others wait in the kernel");
        assert_eq!(door.next(), Some(ROOM - 1), "who came last waits least");
        assert!(door.takes(soon));
        assert_eq!(door.wait(64, soon), None);
        assert_eq!((door.room(soon), door.stale(soon)), (None, None));
        let late = begun + BURST;
        assert!(door.takes(late));
        assert_eq!(door.wait(65, late), Some(0));
        assert_eq!(door.room(late), Some(LEAST));
        let stale: Vec<_> = std::iter::from_fn(|| door.stale(late)).collect();
        assert_eq!(stale, (1..ROOM - 1).collect::<Vec<_>>(), "they would never have been let in");
        let stays = ROOM - stale.len();
        assert_eq!(stays, 2);
        let all: Vec<_> = std::iter::from_fn(|| door.next()).collect();
        assert_eq!(all, [65, 64]);
        let soon = late + BURST - Duration::from_millis(1);
        assert_eq!(door.over(soon), None);
        for n in 0..ROOM {
            assert_eq!(door.wait(n, soon), None);
        }
        assert!(door.takes(soon), "it goes on");
        while door.next().is_some() {}
        let end = late + BURST;
        assert_eq!((door.over(end), door.over(end)), (Some(1 + stale.len() as u64), None), "it is said once");
        for n in 0..ROOM {
            assert_eq!(door.wait(n, end), None);
        }
        assert!(!door.takes(end), "a burst again");
    }
}
