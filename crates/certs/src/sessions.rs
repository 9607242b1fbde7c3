//! TLS sessions that can be resumed once.
//!
//! What a client sends in 0-RTT can be recorded and sent again. A session that is taken out of its store by
//! the first who resumes it leaves nothing to the second: its early data is refused (RFC 8446, section 8.1).
//! So that holds for all workers, they share one store; and none survives the process.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rustls::server::StoresServerSessions;

/// Workers seldom meet in the same one.
const SHARDS: usize = 16;
/// Of one shard. A session takes about half a KiB, so all of them at most 8 MiB; the oldest makes room.
const CAPACITY: usize = 1024;

/// Bounded, shared, and each session is good once.
pub(crate) struct SingleUse {
    shards: [Mutex<Shard>; SHARDS],
}

#[derive(Default)]
struct Shard {
    sessions: HashMap<Vec<u8>, Vec<u8>>,
    /// The keys as they came; of some the session is already taken.
    order: VecDeque<Vec<u8>>,
}

impl SingleUse {
    /// The process's only one: a session of one worker, or from before a reload, is good on all.
    pub(crate) fn shared() -> Arc<SingleUse> {
        static STORE: OnceLock<Arc<SingleUse>> = OnceLock::new();
        STORE.get_or_init(|| Arc::new(SingleUse::new())).clone()
    }

    fn new() -> SingleUse {
        SingleUse { shards: std::array::from_fn(|_| Mutex::default()) }
    }

    /// Keys are random, so any byte of them spreads.
    fn with<T>(&self, key: &[u8], act: impl FnOnce(&mut Shard) -> T) -> Option<T> {
        let shard = self.shards.get(usize::from(*key.first()?) % SHARDS)?;
        // What is within is whole after each step, so another's panic spoils nothing.
        Some(act(&mut shard.lock().unwrap_or_else(PoisonError::into_inner)))
    }
}

impl StoresServerSessions for SingleUse {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let place = key.clone();
        self.with(&place, |shard| {
            while shard.sessions.len() >= CAPACITY {
                let Some(oldest) = shard.order.pop_front() else { break };
                shard.sessions.remove(&oldest);
            }
            if shard.order.len() >= 2 * CAPACITY {
                let Shard { sessions, order } = shard;
                order.retain(|key| sessions.contains_key(key));
            }
            shard.order.push_back(key.clone());
            shard.sessions.insert(key, value);
        })
        .is_some()
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.with(key, |shard| shard.sessions.get(key).cloned()).flatten()
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.with(key, |shard| shard.sessions.remove(key)).flatten()
    }

    fn can_cache(&self) -> bool {
        true
    }
}

impl fmt::Debug for SingleUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // They are secrets.
        f.write_str("SingleUse")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_taken_by_one_of_many() {
        let store = Arc::new(SingleUse::new());
        for round in 0u8..50 {
            assert!(store.put(vec![round, 1], vec![7]));
            let takers = [(); 4].map(|()| {
                let store = store.clone();
                std::thread::spawn(move || store.take(&[round, 1]).is_some())
            });
            let taken = takers.into_iter().map(|taker| taker.join().unwrap_or(false));
            assert_eq!(taken.filter(|taken| *taken).count(), 1);
        }
    }

    #[test]
    fn the_oldest_makes_room() {
        let store = SingleUse::new();
        let key = |n: u32| [&[0], &n.to_be_bytes()[..]].concat();
        for n in 0..10 * CAPACITY as u32 {
            store.put(key(n), vec![0; 100]);
            if n % 2 == 0 {
                assert!(store.take(&key(n)).is_some());
            }
        }
        let held = store.with(&[0], |shard| (shard.sessions.len(), shard.order.len()));
        assert!(
            held.is_some_and(|(sessions, order)| sessions == CAPACITY && order <= 2 * CAPACITY),
            "{held:?}"
        );
        assert!(store.get(&key(1)).is_none());
        assert!(store.get(&key(10 * CAPACITY as u32 - 1)).is_some());
    }
}
