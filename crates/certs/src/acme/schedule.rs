//! When a certificate is ordered. Pure: the time and the dice are arguments.

use std::time::{Duration, SystemTime};

const MINUTE: Duration = Duration::from_secs(60);
/// The longest wait after failures, but for what the authority itself asks for.
const LONGEST: Duration = Duration::from_secs(12 * 60 * 60);

/// When a certificate is renewed of whose time nothing else is known: when two thirds of it are over, or up to a thirtieth
/// before, so that not all are renewed at once. `dice` are from 0 to 1.
pub(super) fn renewal(not_before: SystemTime, not_after: SystemTime, dice: f64) -> SystemTime {
    let lifetime = not_after.duration_since(not_before).unwrap_or_default();
    not_before + lifetime.mul_f64(2.0 / 3.0 - dice / 30.0)
}

/// When one is renewed at the latest, whatever the authority would like: when nine tenths of its time are over.
pub(super) fn latest(not_before: SystemTime, not_after: SystemTime) -> SystemTime {
    not_before + not_after.duration_since(not_before).unwrap_or_default().mul_f64(0.9)
}

/// The moment of a window that the authority suggests (RFC 9773, section 4.2).
pub(super) fn within(start: SystemTime, end: SystemTime, dice: f64) -> SystemTime {
    start + end.duration_since(start).unwrap_or_default().mul_f64(dice)
}

/// How long to wait after so many failures in a row: a minute, four, a quarter of an hour, ..., with up to a quarter more.
/// Let's Encrypt, for one, counts five failures of a name within an hour.
pub(super) fn pause(failures: u32, dice: f64) -> Duration {
    let pause = MINUTE.saturating_mul(4_u32.saturating_pow(failures.saturating_sub(1)));
    pause.min(LONGEST).mul_f64(1.0 + dice / 4.0)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_is_renewed_long_before_its_end() {
        let (begin, day) = (UNIX_EPOCH, Duration::from_secs(24 * 60 * 60));
        assert_eq!(renewal(begin, begin + day * 90, 0.0), begin + day * 60);
        assert_eq!(renewal(begin, begin + day * 90, 1.0), begin + day * 57);
        assert_eq!(renewal(begin, begin + day * 6, 0.0), begin + day * 4);
        assert_eq!(renewal(begin + day, begin, 0.5), begin + day, "nonsense is renewed at once");
        assert_eq!(within(begin, begin + day, 0.5), begin + day / 2);
        assert_eq!(within(begin + day, begin, 0.5), begin + day);
    }

    #[test]
    fn five_failures_take_more_than_an_hour() {
        let pauses: Vec<u64> = (1..=8).map(|failures| pause(failures, 0.0).as_secs() / 60).collect();
        assert_eq!(pauses, [1, 4, 16, 64, 256, 720, 720, 720]);
        assert!((1..=4).map(|failures| pause(failures, 0.0)).sum::<Duration>() > MINUTE * 60);
        assert_eq!(pause(1, 1.0), Duration::from_secs(75));
        assert_eq!(pause(u32::MAX, 0.0), LONGEST);
    }

    proptest! {
        #[test]
        fn it_is_never_renewed_late(lifetime in 1_u64..400 * 86_400, dice in 0.0..1.0) {
            let end = UNIX_EPOCH + Duration::from_secs(lifetime);
            let left = end.duration_since(renewal(UNIX_EPOCH, end, dice)).unwrap_or_default();
            let share = left.as_secs_f64() / lifetime as f64;
            prop_assert!((0.333..0.367).contains(&share), "{share}");
        }
    }
}
