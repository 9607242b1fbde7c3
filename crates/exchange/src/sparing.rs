//! How much is written to the log of what strangers do: a flood must not fill it.

use std::cell::Cell;

use crate::clock;

const LINES_PER_SECOND: u32 = 10;

/// Counts the lines of one thread, or of one task.
#[derive(Debug, Default)]
pub struct Sparing {
    /// The second in which lines were last written, and how many.
    said: Cell<(u64, u32)>,
}

impl Sparing {
    /// Whether one more line may be written, which then counts.
    pub fn may_say(&self) -> bool {
        let second = clock::now_nanos() / 1_000_000_000;
        let (of, lines) = self.said.get();
        let lines = if of == second { lines.saturating_add(1) } else { 1 };
        self.said.set((second, lines));
        lines <= LINES_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_are_written_in_a_second() {
        let sparing = Sparing::default();
        let begun = clock::now_nanos();
        let said = (0..1000).filter(|_| sparing.may_say()).count();
        let seconds = (clock::now_nanos() / 1_000_000_000 - begun / 1_000_000_000) as usize;
        assert!((10..=10 * (seconds + 1)).contains(&said), "{said} in {seconds}");
    }
}
