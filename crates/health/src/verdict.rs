//! When probes change a state. Pure: it is told what each probe found, and knows neither time nor network.

use foregate_routing::State;

/// So many more probes of one that has gone down come as fast as those before.
const RESTART: u32 = 30;

/// The probes of one endpoint that agreed with each other, up to the latest.
#[derive(Debug)]
pub(crate) struct Streak {
    well: bool,
    length: u32,
    rise: u32,
    fall: u32,
}

impl Streak {
    /// `rise` successes in a row bring a Down endpoint up, `fall` failures in a row bring any down; 0 counts
    /// as 1.
    pub(crate) fn new(rise: u32, fall: u32) -> Streak {
        Streak { well: true, length: 0, rise, fall }
    }

    /// Takes in one probe of an endpoint in `state`. Returns the new state if that changes it.
    ///
    /// An Unknown endpoint comes up with its first success and goes down like one that is up: only after
    /// `fall` failures. So a gateway that starts beside a slow VM does not turn it away at once.
    pub(crate) fn judge(&mut self, state: State, well: bool) -> Option<State> {
        self.length = if well == self.well { self.length.saturating_add(1) } else { 1 };
        self.well = well;
        match state {
            State::Unknown if well => Some(State::Up),
            State::Down if well && self.length >= self.rise => Some(State::Up),
            State::Unknown | State::Up if !well && self.length >= self.fall => Some(State::Down),
            State::Unknown | State::Up | State::Down => None,
        }
    }

    /// Whether nothing is about to change: the latest probe agrees with the state, and one that went down has been so for
    /// some time. A VM that is started anew is back soon.
    pub(crate) fn confirms(&self, state: State) -> bool {
        match state {
            State::Unknown => false,
            State::Up => self.well,
            State::Down => !self.well && self.length >= self.fall.saturating_add(RESTART),
        }
    }

    /// How many probes in a row have agreed with the latest, itself included.
    pub(crate) fn length(&self) -> u32 {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of an endpoint: `+` is a success, `-` a failure; the states after each as letters.
    fn history(start: State, rise: u32, fall: u32, probes: &str) -> String {
        let mut streak = Streak::new(rise, fall);
        let mut state = start;
        let mut letters = String::new();
        for probe in probes.chars() {
            let before = state;
            if let Some(next) = streak.judge(state, probe == '+') {
                state = next;
                assert_ne!(state, before, "a change is a change");
            }
            letters.push(match state {
                State::Unknown => '?',
                State::Up => 'U',
                State::Down => 'D',
            });
        }
        letters
    }

    #[test]
    fn the_first_success_brings_an_unknown_one_up() {
        assert_eq!(history(State::Unknown, 3, 3, "+"), "U");
        assert_eq!(history(State::Unknown, 3, 3, "--+"), "??U");
    }

    #[test]
    fn an_unknown_one_stays_until_it_has_failed_often_enough() {
        assert_eq!(history(State::Unknown, 2, 3, "----"), "??DD");
    }

    #[test]
    fn only_failures_in_a_row_bring_it_down() {
        assert_eq!(history(State::Up, 2, 3, "--+--+---"), "UUUUUUUUD");
    }

    #[test]
    fn only_successes_in_a_row_bring_it_up() {
        assert_eq!(history(State::Down, 3, 1, "++-++-+++"), "DDDDDDDDU");
    }

    #[test]
    fn both_ways_and_back() {
        assert_eq!(history(State::Unknown, 2, 2, "+--++--++"), "UUDDUUDDU");
    }

    #[test]
    fn one_is_enough_where_one_is_asked_and_nought_means_one() {
        assert_eq!(history(State::Up, 1, 1, "-+-+"), "DUDU");
        assert_eq!(history(State::Up, 0, 0, "-+-+"), "DUDU");
    }

    #[test]
    fn a_long_streak_does_not_overflow() {
        let mut streak = Streak { length: u32::MAX, ..Streak::new(2, 3) };
        assert_eq!(streak.judge(State::Up, true), None);
        assert_eq!(streak.length(), u32::MAX);
    }
}
