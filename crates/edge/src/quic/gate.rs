//! Which clients' first packets come in where more come than handshakes can be made for.
//!
//! What quinn does with a first packet before anybody can say no to it (its keys, and an answer) costs a tenth of a handshake,
//! and takes so long that the socket fills with the packets of clients who have given up. Here one costs next to nothing, and a
//! client that hears nothing tries again a second later.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// A client's first message is often longer than one packet: of so many that came in last the others do too.
const KNOWN: usize = 256;

/// Of one worker; nobody else waits for the lock, and it is taken only while the gate is closed.
#[derive(Debug)]
pub(super) struct Gate {
    /// So many more may come in; `usize::MAX`: it stands open.
    room: AtomicUsize,
    kept_out: AtomicU64,
    known: Mutex<VecDeque<u64>>,
    /// Nobody can make up two ids that look like one.
    hashing: RandomState,
}

impl Gate {
    pub(super) fn new() -> Gate {
        Gate {
            room: AtomicUsize::new(usize::MAX),
            kept_out: AtomicU64::new(0),
            known: Mutex::default(),
            hashing: RandomState::new(),
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.room.load(Ordering::Relaxed) == usize::MAX
    }

    /// Lets in so many more clients; none: all of them.
    pub(super) fn set(&self, room: Option<usize>) {
        self.room.store(room.unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// How many packets were kept out since this was last asked.
    pub(super) fn take_kept_out(&self) -> u64 {
        self.kept_out.swap(0, Ordering::Relaxed)
    }

    /// Whether a first packet with this destination id comes in.
    pub(super) fn admits(&self, id: &[u8]) -> bool {
        let room = self.room.load(Ordering::Relaxed);
        if room == usize::MAX {
            return true;
        }
        let key = self.hashing.hash_one(id);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.contains(&key) {
            return true;
        }
        if room == 0 {
            self.kept_out.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        self.room.store(room - 1, Ordering::Relaxed);
        if known.len() >= KNOWN {
            known.pop_front();
        }
        known.push_back(key);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_come_in_as_there_is_room_for_and_all_that_is_theirs() {
        let gate = Gate::new();
        let id = |n: u64| n.to_be_bytes();
        assert!(gate.is_open() && (0..1000).all(|n| gate.admits(&id(n))));
        gate.set(Some(2));
        assert!(!gate.is_open());
        let admitted: Vec<_> = [1, 2, 3, 1, 2, 3, 4].map(|n| gate.admits(&id(n))).into();
        assert_eq!(admitted, [true, true, false, true, true, false, false]);
        assert_eq!((gate.take_kept_out(), gate.take_kept_out()), (3, 0));
        gate.set(Some(1));
        assert!(gate.admits(&id(3)) && !gate.admits(&id(4)));
        gate.set(Some(usize::MAX - 1));
        assert!((10..10 + KNOWN as u64).all(|n| gate.admits(&id(n))));
        gate.set(Some(0));
        assert!(!gate.admits(&id(1)) && gate.admits(&id(10)), "who came in long ago is forgotten");
        gate.set(None);
        assert!(gate.admits(&id(4)));
    }
}
