//! QUIC below HTTP/3: which worker a packet belongs to, and how it gets there.
//!
//! Each worker has one endpoint for each HTTPS port, on a socket of its own for each address. Connection ids
//! say which worker issued them (`cid`), a program in the kernel reads that (`steer`), and where the kernel
//! gives a worker what is another's, the worker passes it on (`socket`, `relay`). So a connection survives
//! that its client changes its port or its address.
//!
//! A port's sockets may be shared by a process and its successor; [`Group`] and [`Port`] know of both.
//! Knows nothing of HTTP: a connection that is established goes to `h3::serve`.

mod cid;
mod endpoint;
mod gate;
mod handshake;
mod keys;
mod path;
mod relay;
mod socket;
mod steer;
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quinn::EndpointConfig;

pub(crate) use endpoint::{Entrance, first_streams};
pub(crate) use handshake::Handshake;
pub use keys::Keys;
pub(crate) use path::proven_address;
pub use socket::WorkerSocket;
pub use steer::{Group, Set, Sets};

use relay::Inbox;

/// One UDP port of a process, shared by its workers.
#[derive(Debug)]
pub struct Port {
    group: Group,
    set: Set,
    /// Whether a process owns the other set.
    shared: AtomicBool,
    inboxes: Box<[Inbox]>,
}

impl Port {
    /// The port of a process that owns this set of the group. Nobody owns the other one so far.
    #[must_use]
    pub fn new(group: Group, set: Set) -> Arc<Port> {
        let inboxes = (0..group.workers()).map(|_| Inbox::default()).collect();
        Arc::new(Port { group, set, shared: AtomicBool::new(false), inboxes })
    }

    /// Says whether another process owns the other set. While one does, packets with its ids are left to it;
    /// without one they are nobody's, and their senders may be told so.
    pub fn share(&self, shared: bool) {
        self.shared.store(shared, Ordering::Release);
    }

    /// What a worker's endpoint receives by and sends with. It is to be given the worker's own socket in each group of the
    /// port, and those of its number in the other set as long as nobody owns that.
    #[must_use]
    pub fn socket(self: &Arc<Port>, worker: u16) -> Arc<WorkerSocket> {
        Arc::new(WorkerSocket::new(self.clone(), worker))
    }

    /// How a worker's endpoint names its connections, and whom it tells that it does not know theirs.
    #[must_use]
    pub fn endpoint_config(self: &Arc<Port>, worker: u16, keys: &Keys) -> EndpointConfig {
        let port = self.clone();
        let mut config = EndpointConfig::new(keys.reset());
        config
            .cid_generator(move || Box::new(cid::Ids::new(port.clone(), worker)))
            .min_reset_interval(cid::RESET_INTERVAL_AT_FIRST);
        config
    }

    /// The worker of this process that a datagram is for; `None`: it is for another process.
    fn route(&self, datagram: &[u8]) -> Option<u16> {
        let owner = self.group.owner(datagram);
        self.has(owner.set).then_some(owner.worker)
    }

    /// Whether this worker is the one to say that it does not know an id that begins so.
    fn answers(&self, tag: [u8; 2], worker: u16) -> bool {
        let owner = self.group.owner_of(tag);
        self.has(owner.set) && owner.worker == worker
    }

    fn has(&self, set: Option<Set>) -> bool {
        set.is_none_or(|set| set == self.set || !self.shared.load(Ordering::Acquire))
    }

    fn tag(&self, worker: u16, random: u16) -> [u8; 2] {
        self.group.tag(self.set, worker, random)
    }

    fn inbox(&self, worker: u16) -> Option<&Inbox> {
        self.inboxes.get(usize::from(worker))
    }
}
