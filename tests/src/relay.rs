//! A UDP relay between clients and the gateway: what passes both ways can be looked at.
//!
//! A client dials the relay in the gateway's place. Each client address gets a socket of its own towards the
//! gateway, so that the gateway tells clients apart. Like a NAT, the relay may forget these sockets and go on
//! with others. Like a bad network, it may lose what passes, hold it up, and change its order.

mod weather;

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::{
    net::UdpSocket,
    sync::watch,
    task::{AbortHandle, JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval_at},
};

use self::weather::Line;
pub use self::weather::Weather;
use crate::quic::Packet;

/// The largest payload UDP has.
const LARGEST: usize = 65_535;

/// Which way a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    ToGateway,
    ToClient,
}

/// One datagram as it passed.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub direction: Direction,
    /// The client it came from or goes to.
    pub client: SocketAddr,
    pub payload: Bytes,
}

impl Datagram {
    /// Its first QUIC packet, as far as it can be read without keys.
    pub fn packet(&self) -> Packet {
        Packet::first_of(&self.payload)
    }
}

/// A running relay; it stops when dropped.
pub struct Relay {
    address: SocketAddr,
    seen: Seen,
    side: Side,
    /// Whether what the gateway says is held back.
    held: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Where the sockets towards the gateway are bound, whether anybody hears what comes to them, and how often that
/// was said.
type Side = watch::Sender<(usize, IpAddr, bool)>;

impl Relay {
    /// Starts a relay on a free port of 127.0.0.1 that passes everything on to `gateway`.
    pub async fn start(gateway: SocketAddr) -> Relay {
        Relay::launch(gateway, Weather::default(), Seen::recording()).await
    }

    /// Starts one that treats datagrams as this weather does, and keeps none of them.
    pub async fn through(weather: Weather, gateway: SocketAddr) -> Relay {
        Relay::launch(gateway, weather, Seen::default()).await
    }

    /// Starts one that keeps all datagrams, and lets none pass that are longer than this.
    pub async fn narrow(carries: usize, gateway: SocketAddr) -> Relay {
        let weather = Weather { carries: Some(carries), ..Weather::default() };
        Relay::launch(gateway, weather, Seen::recording()).await
    }

    async fn launch(gateway: SocketAddr, weather: Weather, seen: Seen) -> Relay {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let address = socket.local_addr().unwrap();
        let (side, _) = watch::channel((0, Ipv4Addr::LOCALHOST.into(), true));
        let (held, _) = watch::channel(false);
        let ways = Ways { gateway, weather, seen: seen.clone(), held: held.subscribe() };
        let task = tokio::spawn(serve(socket, ways, side.clone()));
        Relay { address, seen, side, held, task }
    }

    /// From now on nothing of what the gateway says reaches a client, until `false` lets it all through.
    pub fn hold(&self, held: bool) {
        self.held.send_replace(held);
    }

    /// What comes from a client from now on reaches the gateway from a new port of this address, and what the
    /// gateway sends to the old port is lost.
    pub fn rebind(&self, from: &str) {
        move_to(&self.side, Some(from.parse().unwrap()), true);
    }

    /// What comes from a client from now on bears this address, which is somebody else's: what the gateway sends
    /// there does not reach the client.
    pub fn forge(&self, from: &str) {
        move_to(&self.side, Some(from.parse().unwrap()), false);
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything that has passed so far, in order.
    pub fn datagrams(&self) -> Vec<Datagram> {
        self.seen.datagrams.as_ref().expect("a relay that keeps them").lock().unwrap().clone()
    }

    /// How many it has lost so far, both ways.
    pub fn lost(&self) -> usize {
        self.seen.lost.load(Ordering::SeqCst)
    }

    /// How many were overtaken by later ones so far, both ways.
    pub fn overtaken(&self) -> usize {
        self.seen.overtaken.load(Ordering::SeqCst)
    }

    /// How often it has gone on from other ports.
    pub fn moves(&self) -> usize {
        self.side.borrow().0
    }
}

/// The next datagrams go from new ports, of another address if one is given.
fn move_to(side: &Side, to: Option<IpAddr>, heard: bool) {
    side.send_modify(|now| *now = (now.0 + 1, to.unwrap_or(now.1), heard));
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Default)]
struct Seen {
    datagrams: Option<Arc<Mutex<Vec<Datagram>>>>,
    lost: Arc<AtomicUsize>,
    overtaken: Arc<AtomicUsize>,
}

impl Seen {
    fn recording() -> Seen {
        Seen { datagrams: Some(Arc::default()), ..Seen::default() }
    }

    fn note(&self, direction: Direction, client: SocketAddr, payload: &Bytes) {
        if let Some(datagrams) = &self.datagrams {
            datagrams.lock().unwrap().push(Datagram { direction, client, payload: payload.clone() });
        }
    }

    fn line<T>(&self, weather: Weather, salt: u64) -> Line<T> {
        Line::new(weather, salt, self.lost.clone(), self.overtaken.clone())
    }
}

/// What all ways have in common.
#[derive(Clone)]
struct Ways {
    gateway: SocketAddr,
    weather: Weather,
    seen: Seen,
    held: watch::Receiver<bool>,
}

/// A client's way to the gateway.
struct Path {
    socket: Arc<UdpSocket>,
    side: usize,
    /// None where what comes is lost.
    answers: Option<AbortHandle>,
}

async fn serve(socket: Arc<UdpSocket>, ways: Ways, side: Side) {
    let Ways { gateway, weather, seen, held } = ways;
    let mut paths: HashMap<SocketAddr, Path> = HashMap::new();
    // They end with the relay.
    let mut answers = JoinSet::new();
    let mut line = seen.line(weather, 0);
    let mut hops = weather.hop.map(|every| {
        let mut hops = interval_at(Instant::now() + every, every);
        hops.set_missed_tick_behavior(MissedTickBehavior::Delay);
        hops
    });
    let mut buffer = vec![0; LARGEST];
    loop {
        let (client, payload) = tokio::select! {
            received = socket.recv_from(&mut buffer) => {
                // An error speaks of an earlier datagram, whose receiver was gone.
                if let Ok((length, client)) = received
                    && weather.lets_pass(length)
                {
                    line.put((client, Bytes::copy_from_slice(&buffer[..length])));
                }
                continue;
            }
            due = line.next() => due,
            () = tick(&mut hops) => {
                move_to(&side, None, true);
                continue;
            }
        };
        let (now, address, heard) = *side.borrow();
        if paths.get(&client).is_none_or(|path| path.side != now) {
            let path = Arc::new(UdpSocket::bind((address, 0)).await.unwrap());
            path.connect(gateway).await.unwrap();
            let line = seen.line(weather, paths.len() as u64 + 1);
            let answer =
                || answer(socket.clone(), path.clone(), client, (line, weather), seen.clone(), held.clone());
            let answers = heard.then(|| answers.spawn(answer()));
            let old = paths.insert(client, Path { socket: path, side: now, answers });
            if let Some(answers) = old.and_then(|old| old.answers) {
                answers.abort();
            }
        }
        seen.note(Direction::ToGateway, client, &payload);
        let _ = paths[&client].socket.send(&payload).await;
    }
}

async fn tick(hops: &mut Option<tokio::time::Interval>) {
    match hops {
        Some(hops) => drop(hops.tick().await),
        None => std::future::pending().await,
    }
}

/// Carries back what the gateway says to one client.
async fn answer(
    socket: Arc<UdpSocket>,
    path: Arc<UdpSocket>,
    client: SocketAddr,
    (mut line, weather): (Line<Bytes>, Weather),
    seen: Seen,
    mut held: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; LARGEST];
    loop {
        let holding = *held.borrow_and_update();
        tokio::select! {
            received = path.recv(&mut buffer) => {
                if let Ok(length) = received
                    && weather.lets_pass(length)
                {
                    line.put(Bytes::copy_from_slice(&buffer[..length]));
                }
            }
            payload = line.next(), if !holding => {
                seen.note(Direction::ToClient, client, &payload);
                let _ = socket.send_to(&payload, client).await;
            }
            Ok(()) = held.changed() => {}
        }
    }
}
