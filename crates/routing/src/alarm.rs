//! Waking a pool that has no usable VM: one of those who ask for one calls, and all wait for what comes of it.

use std::sync::atomic::{AtomicU8, Ordering};

/// One pool's, under all snapshots.
#[derive(Debug, Default)]
pub struct Alarm(AtomicU8);

/// What is being done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sleep {
    /// Nothing was: whoever is told so is to have the VMs woken, and then waits like everybody.
    Sound,
    /// They are being woken.
    Wakes,
    /// They were, and none came; they are let alone for a while.
    Deaf,
}

const QUIET: u8 = 0;
const RINGING: u8 = 1;
const PAUSED: u8 = 2;

impl Alarm {
    /// Somebody wants a VM. Exactly one hears [`Sleep::Sound`] until [`silence`](Alarm::silence).
    pub fn raise(&self) -> Sleep {
        match self.0.compare_exchange(QUIET, RINGING, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Sleep::Sound,
            Err(RINGING) => Sleep::Wakes,
            Err(_) => Sleep::Deaf,
        }
    }

    /// One woke: from now on it may be raised again.
    pub fn silence(&self) {
        self.0.store(QUIET, Ordering::Relaxed);
    }

    /// None woke: it is not to be raised again until it is [silenced](Alarm::silence).
    pub fn pause(&self) {
        self.0.store(PAUSED, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_calls_and_all_wait() {
        let alarm = Alarm::default();
        assert_eq!([alarm.raise(), alarm.raise(), alarm.raise()], [Sleep::Sound, Sleep::Wakes, Sleep::Wakes]);
        alarm.pause();
        assert_eq!(alarm.raise(), Sleep::Deaf);
        alarm.silence();
        assert_eq!(alarm.raise(), Sleep::Sound);
    }
}
