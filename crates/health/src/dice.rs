//! Chance enough to spread what is done again and again over time.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// How far an interval may be off, as a share of it, so that many do not march in step.
const JITTER: f64 = 0.1;

/// xorshift64 (Marsaglia 2003), seeded as hash maps are.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Dice {
        // Zero is the one number xorshift never leaves.
        Dice(RandomState::new().build_hasher().finish() | 1)
    }

    /// Evenly from 0 to below 1.
    pub(crate) fn roll(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// An interval, more or less.
    pub(crate) fn jittered(&mut self, interval: Duration) -> Duration {
        scale(interval, 1.0 - JITTER + 2.0 * JITTER * self.roll())
    }
}

/// `duration * share`, without the panic of [`Duration::mul_f64`] at what no clock will ever show.
pub(crate) fn scale(duration: Duration, share: f64) -> Duration {
    Duration::try_from_secs_f64(duration.as_secs_f64() * share).unwrap_or(duration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dice_are_even() {
        let mut dice = Dice::new();
        let mut counts = [0; 10];
        for _ in 0..100_000 {
            counts[(dice.roll() * 10.0) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_000..11_000).contains(count)), "{counts:?}");
        assert_ne!(Dice::new().roll(), Dice::new().roll());
    }

    #[test]
    fn no_duration_is_too_long() {
        assert_eq!(scale(Duration::MAX, 1.1), Duration::MAX);
        assert_eq!(scale(Duration::from_secs(10), 0.5), Duration::from_secs(5));
        assert_eq!(scale(Duration::ZERO, 1.1), Duration::ZERO);
    }
}
