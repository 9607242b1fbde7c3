//! What the process listens on, and how that changes from one configuration to the next: what both name is left as it is,
//! what is new is bound before anything changes, and what is named no more drains.

use std::cell::Cell;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Protocol, SockRef, Socket, Type};

use super::{BindError, Listening, Place, UDP_BUFFER, open_tcp, open_udp, places, reserve};
use crate::quic::{Group, Port, Set};
use crate::settings::Settings;

/// How much longer than they may take sockets are kept after a drain: workers close theirs a little after it.
const AFTER: Duration = Duration::from_secs(2);

/// Everything bound, once more than the workers have it.
#[derive(Debug)]
pub(crate) struct Listeners {
    group: Group,
    /// Which UDP sockets are this process's own.
    set: Set,
    /// No other process has the other ones, so they are this one's too.
    alone: bool,
    bound: Vec<Bound>,
    /// From the process before, as long as it lives, or from a service manager, until a configuration is served.
    inherited: Vec<Bound>,
    /// UDP sockets of addresses that are left, until nobody uses them: when one of a group is closed, the last of the group
    /// takes its place, and the kernel steers packets by places.
    leaving: Vec<(Instant, Bound)>,
    backlog: u32,
    /// The last number that was given. One that comes to nothing is not given again: workers may still be busy with it.
    last: Cell<u64>,
}

/// One group of sockets.
#[derive(Debug)]
struct Bound {
    id: u64,
    spot: Spot,
    /// For HTTP/3.
    port: Option<Arc<Port>>,
    /// One for each worker, in the order in which they were bound; of UDP two sets of them. Those of TCP that a service manager
    /// has bound may be more or fewer.
    sockets: Vec<Socket>,
}

/// Something the configuration wants to be listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spot {
    place: Place,
    port: u16,
    kind: Kind,
}

/// What is spoken on a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http,
    Https,
    Http3,
}

/// The sockets of one address, as a process hands them to its successor, or a service manager to the process.
#[derive(Debug)]
pub struct Handed {
    pub address: SocketAddr,
    /// IPv4 too.
    pub dual: bool,
    pub kind: Kind,
    /// In the order in which they were bound.
    pub sockets: Vec<OwnedFd>,
}

/// One more address for a worker to listen on.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    pub(crate) way: Way,
}

/// What is spoken there, and the worker's own socket for it.
#[derive(Debug)]
pub(crate) enum Way {
    Http(std::net::TcpListener),
    Https(std::net::TcpListener),
    /// With the one of the other set, if that is nobody's.
    Http3(Arc<Port>, std::net::UdpSocket, Option<std::net::UdpSocket>),
}

/// What it takes to listen on what a configuration names. Nothing has changed so far.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) listening: Vec<Listening>,
    /// By worker.
    pub(crate) opened: Vec<Vec<Opened>>,
    /// The numbers of those that stay.
    stay: Vec<u64>,
    new: Vec<Bound>,
    backlog: u32,
}

impl Plan {
    /// The numbers of what comes.
    pub(crate) fn new_ids(&self) -> Vec<u64> {
        self.new.iter().map(|bound| bound.id).collect()
    }
}

impl Listeners {
    /// For so many workers as the group has. Nothing is bound but what was given.
    pub(crate) fn new(group: Group, given: Vec<Handed>) -> Listeners {
        let inherited = given.into_iter().map(Bound::inherited).collect();
        let (set, alone, bound, leaving) = (Set::First, true, vec![], vec![]);
        Listeners { group, set, alone, bound, inherited, leaving, backlog: 0, last: Cell::new(0) }
    }

    /// For the successor of a process that still has the other set.
    pub(crate) fn inherit(group: Group, set: Set, handed: Vec<Handed>) -> Listeners {
        Listeners { set, alone: false, ..Listeners::new(group, handed) }
    }

    /// For a successor: everything that is listened on.
    ///
    /// # Errors
    /// There are too many open files.
    pub(crate) fn bequeath(&self) -> io::Result<Vec<Handed>> {
        // Also what is being left: one that comes back to it has to be the same group.
        self.bound.iter().chain(self.leaving.iter().map(|(_, bound)| bound)).map(Bound::handed).collect()
    }

    /// Where connections are accepted over TCP.
    ///
    /// # Errors
    /// There are too many open files.
    pub(crate) fn accepting(&self) -> io::Result<Vec<Handed>> {
        self.bound.iter().filter(|bound| bound.spot.kind != Kind::Http3).map(Bound::handed).collect()
    }

    /// No other process has a set.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone
    }

    pub(crate) fn set(&self) -> Set {
        self.set
    }

    /// Another process has the other set from now on, and what comes there is its.
    pub(crate) fn share(&mut self) {
        self.alone = false;
        self.ports().for_each(|port| port.share(true));
    }

    /// No other process has the other set any more. Returns its sockets, by worker, with the numbers of the addresses.
    ///
    /// # Errors
    /// There are too many open files.
    pub(crate) fn unshare(&mut self) -> io::Result<Vec<Vec<(u64, std::net::UdpSocket)>>> {
        self.alone = true;
        self.inherited.clear();
        self.ports().for_each(|port| port.share(false));
        let mut idle: Vec<Vec<_>> = (0..self.workers()).map(|_| Vec::new()).collect();
        for bound in self.bound.iter().filter(|bound| bound.spot.kind == Kind::Http3) {
            for (worker, idle) in idle.iter_mut().enumerate() {
                let socket = bound.sockets.get(self.place_of(worker, self.set.other()));
                idle.extend(
                    socket
                        .map(|socket| Ok::<_, io::Error>((bound.id, socket.try_clone()?.into())))
                        .transpose()?,
                );
            }
        }
        Ok(idle)
    }

    /// New QUIC connections come to this process from now on.
    pub(crate) fn take_over(&self) {
        for bound in self.bound.iter().filter(|bound| bound.spot.kind == Kind::Http3) {
            self.attach(bound.spot.address(), &bound.sockets);
        }
    }

    fn has(&self, spot: Spot) -> bool {
        self.bound.iter().any(|bound| bound.spot == spot)
    }

    fn ports(&self) -> impl Iterator<Item = &Arc<Port>> {
        self.bound
            .iter()
            .chain(self.leaving.iter().map(|(_, bound)| bound))
            .filter_map(|bound| bound.port.as_ref())
    }

    /// Which of a group's sockets is a worker's.
    fn place_of(&self, worker: usize, set: Set) -> usize {
        worker + if set == Set::Second { usize::from(self.workers()) } else { 0 }
    }

    fn attach(&self, address: SocketAddr, sockets: &[Socket]) {
        if let Some(socket) = sockets.last()
            && let Err(error) = self.group.attach(socket, self.set)
        {
            tracing::warn!(
                %address,
                %error,
                "the kernel does not steer QUIC packets; workers pass them to each other, which costs time"
            );
        }
    }

    pub(crate) fn workers(&self) -> u16 {
        self.group.workers()
    }

    /// Binds what is new in these settings.
    ///
    /// # Errors
    /// Every address that cannot be bound; then nothing is.
    pub(crate) fn plan(&self, settings: &Settings) -> Result<Plan, Vec<BindError>> {
        let (listening, wanted) = wanted(settings);
        let mut plan = Plan {
            listening,
            opened: (0..self.workers()).map(|_| Vec::new()).collect(),
            stay: Vec::new(),
            new: Vec::new(),
            backlog: settings.backlog,
        };
        let mut errors = Vec::new();
        for spot in wanted {
            if let Some(known) = self.bound.iter().find(|bound| bound.spot == spot) {
                plan.stay.push(known.id);
                continue;
            }
            let id = self.last.get() + 1;
            self.last.set(id);
            let opened = self.open(spot, settings.backlog).and_then(|sockets| {
                let port = (spot.kind == Kind::Http3).then(|| self.port(&plan.new, spot.port));
                let bound = Bound { id, spot, port, sockets };
                for (worker, opened) in plan.opened.iter_mut().enumerate() {
                    opened.extend(self.lend(&bound, worker)?);
                }
                Ok(bound)
            });
            match opened {
                Ok(bound) => plan.new.push(bound),
                Err(error) => errors.push(spot.error(error)),
            }
        }
        if errors.is_empty() { Ok(plan) } else { Err(errors) }
    }

    /// Makes the plan what is bound. Returns the numbers of what is left, which workers have to leave within `limit`.
    pub(crate) fn commit(&mut self, plan: Plan, limit: Duration) -> Vec<u64> {
        let now = Instant::now();
        let (stay, gone): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.bound).into_iter().partition(|bound| plan.stay.contains(&bound.id));
        if plan.backlog != self.backlog {
            for socket in stay.iter().filter(|bound| bound.spot.kind != Kind::Http3).flat_map(|b| &b.sockets)
            {
                // What was good for another length is good for this one.
                _ = socket.listen(i32::try_from(plan.backlog).unwrap_or(i32::MAX));
            }
        }
        self.backlog = plan.backlog;
        self.bound = stay;
        tell_of_small_buffers(&plan.new);
        self.bound.extend(plan.new);
        // What the process before is about to leave stays a group as long as that has it.
        let mut inherited = std::mem::take(&mut self.inherited);
        inherited.retain(|other| !self.alone && other.spot.kind == Kind::Http3 && !self.has(other.spot));
        self.inherited = inherited;
        let left = gone.iter().map(|bound| bound.id).collect();
        let kept = gone.into_iter().filter(|bound| bound.spot.kind == Kind::Http3);
        self.leaving.extend(kept.map(|bound| (now + limit + AFTER, bound)));
        left
    }

    /// Lets go of what workers accept connections on: as long as somebody holds it the kernel goes on with that.
    pub(crate) fn hang_up(&mut self) {
        self.bound.retain(|bound| bound.spot.kind == Kind::Http3);
    }

    /// Closes what nobody uses any more.
    pub(crate) fn tidy(&mut self) {
        let now = Instant::now();
        self.leaving.retain(|(until, _)| *until > now);
    }

    /// Sockets for a spot: those that are there on the same place, or new ones.
    fn open(&self, spot: Spot, backlog: u32) -> io::Result<Vec<Socket>> {
        let leaving = self.leaving.iter().map(|(_, bound)| bound);
        let mut there = self.bound.iter().chain(&self.inherited).chain(leaving);
        if let Some(same) = there.clone().find(|bound| bound.spot.shares(&spot)) {
            return same.sockets.iter().map(Socket::try_clone).collect();
        }
        let address = spot.address();
        let udp = spot.kind == Kind::Http3;
        // Our own sockets would be in the way.
        if !there.any(|bound| bound.spot.port == spot.port && (bound.spot.kind == Kind::Http3) == udp) {
            let (kind, protocol) =
                if udp { (Type::DGRAM, Protocol::UDP) } else { (Type::STREAM, Protocol::TCP) };
            reserve(address, spot.place, kind, protocol)?;
        }
        let open =
            |_| if udp { open_udp(address, spot.place) } else { open_tcp(address, spot.place, backlog) };
        let count = self.workers() * if udp { 2 } else { 1 };
        let sockets: Vec<Socket> = (0..count).map(open).collect::<io::Result<_>>()?;
        if udp {
            self.attach(address, &sockets);
        }
        Ok(sockets)
    }

    /// The one of this number, which may have addresses already.
    fn port(&self, new: &[Bound], number: u16) -> Arc<Port> {
        let leaving = self.leaving.iter().map(|(_, bound)| bound);
        let mut all = new.iter().chain(&self.bound).chain(leaving).filter(|bound| bound.spot.port == number);
        all.find_map(|bound| bound.port.clone()).unwrap_or_else(|| {
            let port = Port::new(self.group, self.set);
            port.share(!self.alone);
            port
        })
    }

    /// For a worker.
    fn lend(&self, bound: &Bound, worker: usize) -> io::Result<Vec<Opened>> {
        let socket = |place: usize| match bound.sockets.get(place) {
            Some(socket) => socket.try_clone(),
            None => Err(io::Error::other("there are fewer sockets than workers")),
        };
        let opened = |way| Opened { id: bound.id, address: bound.spot.address(), way };
        let own = |set| self.place_of(worker, set);
        if let Some(port) = &bound.port {
            let idle = self.alone.then(|| socket(own(self.set.other()))).transpose()?;
            let way = Way::Http3(port.clone(), socket(own(self.set))?.into(), idle.map(Into::into));
            return Ok(vec![opened(way)]);
        }
        // Of those that are given each needs a worker, and each worker one.
        let (count, workers) = (bound.sockets.len().max(1), usize::from(self.workers()));
        let places = (worker % count..count).step_by(workers);
        let way = |socket: Socket| match bound.spot.kind {
            Kind::Http => Way::Http(socket.into()),
            _ => Way::Https(socket.into()),
        };
        places.map(|place| Ok(opened(way(socket(place)?)))).collect()
    }
}

impl Bound {
    fn inherited(handed: Handed) -> Bound {
        let Handed { address, dual, kind, sockets } = handed;
        let spot = Spot { place: Place { ip: address.ip(), dual }, port: address.port(), kind };
        Bound { id: 0, spot, port: None, sockets: sockets.into_iter().map(Socket::from).collect() }
    }

    fn handed(&self) -> io::Result<Handed> {
        let sockets = self.sockets.iter().map(|socket| Ok(socket.try_clone()?.into()));
        let Spot { place, kind, .. } = self.spot;
        Ok(Handed {
            address: self.spot.address(),
            dual: place.dual,
            kind,
            sockets: sockets.collect::<io::Result<_>>()?,
        })
    }
}

impl Spot {
    fn address(&self) -> SocketAddr {
        SocketAddr::new(self.place.ip, self.port)
    }

    /// Whether the sockets of the other do here too.
    fn shares(&self, other: &Spot) -> bool {
        let same_transport = (self.kind == Kind::Http3) == (other.kind == Kind::Http3);
        self.place == other.place && self.port == other.port && same_transport
    }

    fn error(&self, error: io::Error) -> BindError {
        let (what, key) = match self.kind {
            Kind::Http => ("TCP", "server.http"),
            Kind::Https => ("TCP", "server.https"),
            Kind::Http3 => ("UDP", "server.https"),
        };
        BindError { what, address: self.address(), key, error }
    }
}

/// What is to be listened on, in the order of the configuration.
fn wanted(settings: &Settings) -> (Vec<Listening>, Vec<Spot>) {
    let (mut listening, mut wanted) = (Vec::new(), Vec::new());
    let ports = settings.http.iter().map(|port| (*port, false));
    for (port, secure) in ports.chain(settings.https.iter().map(|port| (*port, true))) {
        let http3 = secure && settings.http3.enabled;
        for place in places(&settings.addresses) {
            wanted.push(Spot { place, port, kind: if secure { Kind::Https } else { Kind::Http } });
            if http3 {
                wanted.push(Spot { place, port, kind: Kind::Http3 });
            }
            if place.dual {
                listening.push(Listening { address: (Ipv4Addr::UNSPECIFIED, port).into(), secure, http3 });
            }
            listening.push(Listening { address: SocketAddr::new(place.ip, port), secure, http3 });
        }
    }
    (listening, wanted)
}

fn tell_of_small_buffers(new: &[Bound]) {
    let socket =
        new.iter().find(|bound| bound.spot.kind == Kind::Http3).and_then(|bound| bound.sockets.first());
    if let Some(granted) = socket.and_then(|socket| SockRef::from(socket).recv_buffer_size().ok())
        // The kernel says twice what it was asked for: the rest is for its own records.
        && granted / 2 < UDP_BUFFER
    {
        let (granted, wanted) = (granted / 2 / 1024, UDP_BUFFER / 1024);
        tracing::info!("UDP sockets hold {granted} KiB of {wanted}; raise net.core.rmem_max for fast HTTP/3");
    }
}
