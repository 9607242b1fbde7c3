//! How many connections there may be: in the process, and from one client.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::pressure::Pressure;
use crate::worker::Worker;

/// Counts of the whole process, shared by its workers.
pub(crate) struct Connections {
    open: AtomicUsize,
    limit: AtomicUsize,
    pressure: Arc<Pressure>,
    /// What one client may have; 0: as many as it likes.
    per_client: AtomicU32,
    /// A lock, but one taken twice in the life of a connection, and only where such a limit is set.
    by_client: Mutex<HashMap<IpAddr, u32>>,
}

/// One open connection.
pub(crate) struct Permit {
    connections: Arc<Connections>,
    /// `None`: it began when nobody counted.
    client: Option<IpAddr>,
}

/// Which limit a connection would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    Process,
    Client,
    /// Memory is short.
    Memory,
    /// Of what a client may have, the half that is for those who have proven to be where they say they are.
    Unproven,
}

impl Full {
    /// Writes to the log that a connection was refused for it. What the process has no room for concerns
    /// everybody, but a flood must not fill the log; what one client has too many of is its own affair.
    pub(crate) fn log(self, worker: &Worker, peer: SocketAddr) {
        match self {
            Full::Process if worker.may_log() => {
                tracing::warn!(%peer, "connection refused: limits.connections reached");
            }
            // That has been said once for all of them.
            Full::Process | Full::Memory => {}
            Full::Client | Full::Unproven => {
                tracing::debug!(%peer, "connection refused: limits.connections_per_ip reached");
            }
        }
    }
}

impl Connections {
    pub(crate) fn new(limit: usize, per_client: Option<u32>, pressure: Arc<Pressure>) -> Arc<Connections> {
        Arc::new(Connections {
            open: AtomicUsize::new(0),
            limit: AtomicUsize::new(limit),
            pressure,
            per_client: AtomicU32::new(per_client.unwrap_or(0)),
            by_client: Mutex::default(),
        })
    }

    /// The limits from now on. Those who have more already keep it, and who came while nobody counted does not count.
    pub(crate) fn set(&self, limit: usize, per_client: Option<u32>) {
        self.limit.store(limit, Ordering::Relaxed);
        self.per_client.store(per_client.unwrap_or(0), Ordering::Relaxed);
        self.pressure.set_room(limit);
    }

    pub(crate) fn limit(&self) -> usize {
        self.limit.load(Ordering::Relaxed)
    }

    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whose address is not `proven` may be anybody: such a one gets no more than half of what a client may have, so
    /// that nobody can use up what is another's.
    pub(crate) fn admit(self: &Arc<Connections>, address: IpAddr, proven: bool) -> Result<Permit, Full> {
        if self.pressure.is_short() {
            return Err(Full::Memory);
        }
        let client = network(address);
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.limit.load(Ordering::Relaxed) {
            self.open.fetch_sub(1, Ordering::Relaxed);
            return Err(Full::Process);
        }
        let limit = self.per_client.load(Ordering::Relaxed);
        if limit > 0 {
            let mut counts = self.by_client.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.get(&client).copied().unwrap_or(0);
            if count >= if proven { limit } else { limit / 2 } {
                self.open.fetch_sub(1, Ordering::Relaxed);
                return Err(if count >= limit { Full::Client } else { Full::Unproven });
            }
            counts.insert(client, count + 1);
        }
        Ok(Permit { connections: self.clone(), client: (limit > 0).then_some(client) })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.connections.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(client) = &self.client {
            let mut counts = self.connections.by_client.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(count) = counts.get_mut(client) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(client);
                }
            }
        }
    }
}

/// One client is one IPv4 address or one IPv6 /64, which is what one household has.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_an_address_or_a_slash_64() {
        let connections = Connections::new(10, Some(1), Pressure::new(10, 1));
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let first = connections.admit(ip("2001:db8::1"), true).ok().unwrap();
        assert_eq!(connections.admit(ip("2001:db8::2"), true).err(), Some(Full::Client));
        let _other = connections.admit(ip("2001:db8:0:1::2"), true).ok().unwrap();
        let _v4 = connections.admit(ip("192.0.2.1"), true).ok().unwrap();
        assert_eq!(connections.admit(ip("::ffff:192.0.2.1"), true).err(), Some(Full::Client));
        drop(first);
        assert!(connections.admit(ip("2001:db8::2"), true).is_ok());
    }

    #[test]
    fn nobody_uses_up_what_is_anothers() {
        let connections = Connections::new(10, Some(4), Pressure::new(10, 1));
        let address = [192, 0, 2, 1].into();
        let admit = |proven| connections.admit(address, proven);
        let _held: Vec<_> = [admit(false), admit(false)].map(|permit| permit.ok().unwrap()).into();
        assert_eq!(admit(false).err(), Some(Full::Unproven));
        let _more: Vec<_> = [admit(true), admit(true)].map(|permit| permit.ok().unwrap()).into();
        assert_eq!([admit(false).err(), admit(true).err()], [Some(Full::Client); 2]);
    }

    #[test]
    fn limits_change_while_connections_are_open() {
        let connections = Connections::new(10, None, Pressure::new(10, 1));
        let admit = || connections.admit([192, 0, 2, 1].into(), true);
        let before = admit().ok().unwrap();
        connections.set(3, Some(1));
        let counted = admit().ok().unwrap();
        assert_eq!(admit().err(), Some(Full::Client));
        drop(before);
        assert_eq!(admit().err(), Some(Full::Client), "who was not counted gives nothing back");
        connections.set(1, None);
        assert_eq!(admit().err(), Some(Full::Process));
        drop(counted);
        assert!(admit().is_ok() && connections.by_client.lock().unwrap().is_empty());
    }

    #[test]
    fn the_process_has_a_limit() {
        let connections = Connections::new(1, None, Pressure::new(1, 1));
        let first = connections.admit([127, 0, 0, 1].into(), true).ok().unwrap();
        assert_eq!(connections.admit([127, 0, 0, 2].into(), true).err(), Some(Full::Process));
        drop(first);
        assert!(connections.admit([127, 0, 0, 2].into(), true).is_ok());
    }
}
