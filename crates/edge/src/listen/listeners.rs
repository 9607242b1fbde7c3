//! What the process listens on, and how that changes from one configuration to the next: what both name is left as it is,
//! what is new is bound before anything changes, and what is named no more drains.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
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
    bound: Vec<Bound>,
    /// UDP sockets of addresses that are left, until nobody uses them: when one of a group is closed, the last of the group
    /// takes its place, and the kernel steers packets by places.
    leaving: Vec<(Instant, Bound)>,
    backlog: u32,
    last: u64,
}

/// One group of sockets.
#[derive(Debug)]
struct Bound {
    id: u64,
    spot: Spot,
    /// For HTTP/3.
    port: Option<Arc<Port>>,
    /// One for each worker, in the order in which they were bound.
    sockets: Vec<Socket>,
}

/// Something the configuration wants to be listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spot {
    place: Place,
    port: u16,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Http,
    Https,
    Http3,
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
    Http3(Arc<Port>, std::net::UdpSocket),
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

impl Listeners {
    /// For so many workers as the group has. Nothing is bound.
    pub(crate) fn new(group: Group) -> Listeners {
        Listeners { group, bound: Vec::new(), leaving: Vec::new(), backlog: 0, last: 0 }
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
            let id = self.last + 1 + plan.new.len() as u64;
            let opened = self.open(spot, settings.backlog).and_then(|sockets| {
                let port = (spot.kind == Kind::Http3).then(|| self.port(&plan.new, spot.port));
                let bound = Bound { id, spot, port, sockets };
                for (worker, socket) in plan.opened.iter_mut().zip(&bound.sockets) {
                    worker.push(bound.lend(socket)?);
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
        if let Some(last) = plan.new.last() {
            self.last = last.id;
            tell_of_small_buffers(&plan.new);
        }
        self.bound.extend(plan.new);
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
        let mut there = self.bound.iter().chain(self.leaving.iter().map(|(_, bound)| bound));
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
        let sockets: Vec<Socket> = (0..self.workers()).map(open).collect::<io::Result<_>>()?;
        if let Some(socket) = sockets.last().filter(|_| udp)
            && let Err(error) = self.group.attach(socket, Set::First)
        {
            tracing::warn!(
                %address,
                %error,
                "the kernel does not steer QUIC packets; workers pass them to each other, which costs time"
            );
        }
        Ok(sockets)
    }

    /// The one of this number, which may have addresses already.
    fn port(&self, new: &[Bound], number: u16) -> Arc<Port> {
        let leaving = self.leaving.iter().map(|(_, bound)| bound);
        let mut all = new.iter().chain(&self.bound).chain(leaving).filter(|bound| bound.spot.port == number);
        all.find_map(|bound| bound.port.clone()).unwrap_or_else(|| Port::new(self.group, Set::First))
    }
}

impl Bound {
    /// For a worker.
    fn lend(&self, socket: &Socket) -> io::Result<Opened> {
        let own = socket.try_clone()?;
        let way = match (&self.port, self.spot.kind) {
            (Some(port), _) => Way::Http3(port.clone(), own.into()),
            (None, Kind::Http) => Way::Http(own.into()),
            (None, _) => Way::Https(own.into()),
        };
        Ok(Opened { id: self.id, address: self.spot.address(), way })
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
