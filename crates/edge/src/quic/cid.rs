//! Connection ids that say whose they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quinn::{ConnectionId, ConnectionIdGenerator};
use quinn_proto::{InvalidCid, RandomConnectionIdGenerator};

use super::Port;

/// Bytes of our ids: a length that clients seldom give their own first id, which would then be taken for one
/// of ours. (quic-go draws from 8 to 20, others have 8, 16, 18 or 20.)
pub(super) const LENGTH: usize = 13;
/// For so long after a start, packets may be of connections that an instance before this one had: their
/// clients are told quickly.
const AFTERMATH: Duration = Duration::from_secs(60);
/// What stateless resets there may be in that time, and later. quinn enforces the first.
pub(super) const RESET_INTERVAL_AT_FIRST: Duration = Duration::from_millis(1);
const RESET_INTERVAL: Duration = Duration::from_millis(20);

/// The ids of one worker.
pub(super) struct Ids {
    port: Arc<Port>,
    worker: u16,
    random: RandomConnectionIdGenerator,
    started: Instant,
    /// When a packet was last found fit for a stateless reset, in milliseconds after the start.
    reset: AtomicU64,
}

impl Ids {
    pub(super) fn new(port: Arc<Port>, worker: u16) -> Ids {
        Ids {
            port,
            worker,
            random: RandomConnectionIdGenerator::new(LENGTH),
            started: Instant::now(),
            reset: AtomicU64::new(0),
        }
    }

    /// Whether there may be a reset at this time after the start.
    fn may_reset(&self, after: Duration) -> bool {
        if after < AFTERMATH {
            return true;
        }
        let now = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        // Only the worker's own thread comes here.
        if now.saturating_sub(self.reset.load(Ordering::Relaxed)) < RESET_INTERVAL.as_millis() as u64 {
            return false;
        }
        self.reset.store(now, Ordering::Relaxed);
        true
    }
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let random = self.random.generate_cid();
        let mut id = [0; LENGTH];
        id.iter_mut().zip(random.iter()).for_each(|(to, from)| *to = *from);
        let [a, b, ..] = &mut id;
        [*a, *b] = self.port.tag(self.worker, u16::from_be_bytes([*a, *b]));
        ConnectionId::new(&id)
    }

    /// quinn asks this before it answers a packet of no connection it knows with a stateless reset, and for
    /// nothing else. Such a packet may have gone astray, and an answer in its owner's name would end a
    /// connection that lives.
    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        match **id {
            [a, b, ..]
                if self.port.answers([a, b], self.worker) && self.may_reset(self.started.elapsed()) =>
            {
                Ok(())
            }
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        LENGTH
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::super::{Group, Set, Sets};
    use super::*;

    #[test]
    fn an_id_is_its_workers_alone() {
        let group = Group::new(Sets::Two, 2).unwrap();
        let (old, new) = (Port::new(group, Set::First), Port::new(group, Set::Second));
        for port in [&old, &new] {
            port.share(true);
        }
        let generators = || {
            [(&old, 0), (&old, 1), (&new, 0), (&new, 1)].map(|(port, worker)| Ids::new(port.clone(), worker))
        };
        for (issuer, mut ids) in generators().into_iter().enumerate() {
            for _ in 0..100 {
                let id = ids.generate_cid();
                assert_eq!(id.len(), LENGTH);
                for (asked, ids) in generators().into_iter().enumerate() {
                    assert_eq!(ids.validate(&id).is_ok(), asked == issuer, "{id} of {issuer} at {asked}");
                }
            }
        }
        // When the other process has gone, its ids are nobody's, and the worker of that number says so.
        let id = Ids::new(old, 1).generate_cid();
        new.share(false);
        assert!(Ids::new(new.clone(), 0).validate(&id).is_err());
        assert!(Ids::new(new, 1).validate(&id).is_ok());
    }

    #[test]
    fn ids_differ() {
        let port = Port::new(Group::new(Sets::One, 1).unwrap(), Set::First);
        let mut ids = Ids::new(port, 0);
        let seen: std::collections::HashSet<_> = (0..1000).map(|_| ids.generate_cid()).collect();
        assert_eq!(seen.len(), 1000);
    }

    #[test]
    fn resets_are_rare_after_the_first_minute() {
        let ids = Ids::new(Port::new(Group::new(Sets::One, 1).unwrap(), Set::First), 0);
        let at = Duration::from_millis;
        assert!(ids.may_reset(at(0)));
        assert!(ids.may_reset(at(1)));
        assert!(ids.may_reset(at(60_000)));
        assert!(!ids.may_reset(at(60_019)));
        assert!(ids.may_reset(at(60_020)));
    }
}
