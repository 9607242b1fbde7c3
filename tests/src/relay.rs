//! A UDP relay between clients and the gateway: what passes both ways can be looked at.
//!
//! A client dials the relay in the gateway's place. Each client address gets a socket of its own towards the
//! gateway, so that the gateway tells clients apart. Like a NAT, the relay may forget these sockets and go on
//! with others.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::{
    net::UdpSocket,
    sync::watch,
    task::{AbortHandle, JoinHandle, JoinSet},
};

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
    /// Where its sockets towards the gateway are bound, and how often that was said.
    side: watch::Sender<(usize, IpAddr)>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Starts a relay on a free port of 127.0.0.1 that passes everything on to `gateway`.
    pub async fn start(gateway: SocketAddr) -> Relay {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let address = socket.local_addr().unwrap();
        let seen = Seen::default();
        let (side, from) = watch::channel((0, Ipv4Addr::LOCALHOST.into()));
        let task = tokio::spawn(serve(socket, gateway, seen.clone(), from));
        Relay { address, seen, side, task }
    }

    /// What comes from a client from now on reaches the gateway from a new port of this address, and what the
    /// gateway sends to the old port is lost.
    pub fn rebind(&self, from: &str) {
        self.side.send_modify(|(times, address)| (*times, *address) = (*times + 1, from.parse().unwrap()));
    }

    /// Where clients find it.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Everything that has passed so far, in order.
    pub fn datagrams(&self) -> Vec<Datagram> {
        self.seen.0.lock().unwrap().clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<Datagram>>>);

impl Seen {
    fn note(&self, direction: Direction, client: SocketAddr, payload: &[u8]) {
        let payload = Bytes::copy_from_slice(payload);
        self.0.lock().unwrap().push(Datagram { direction, client, payload });
    }
}

/// A client's way to the gateway.
struct Path {
    socket: Arc<UdpSocket>,
    side: usize,
    answers: AbortHandle,
}

async fn serve(
    socket: Arc<UdpSocket>,
    gateway: SocketAddr,
    seen: Seen,
    from: watch::Receiver<(usize, IpAddr)>,
) {
    let mut paths: HashMap<SocketAddr, Path> = HashMap::new();
    // They end with the relay.
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        // An error speaks of an earlier datagram, whose receiver was gone.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let (side, address) = *from.borrow();
        if paths.get(&client).is_none_or(|path| path.side != side) {
            let path = Arc::new(UdpSocket::bind((address, 0)).await.unwrap());
            path.connect(gateway).await.unwrap();
            let answers = answers.spawn(answer(socket.clone(), path.clone(), client, seen.clone()));
            if let Some(old) = paths.insert(client, Path { socket: path, side, answers }) {
                old.answers.abort();
            }
        }
        seen.note(Direction::ToGateway, client, &buffer[..length]);
        let _ = paths[&client].socket.send(&buffer[..length]).await;
    }
}

/// Carries back what the gateway says to one client.
async fn answer(socket: Arc<UdpSocket>, path: Arc<UdpSocket>, client: SocketAddr, seen: Seen) {
    let mut buffer = vec![0; LARGEST];
    loop {
        let Ok(length) = path.recv(&mut buffer).await else { continue };
        seen.note(Direction::ToClient, client, &buffer[..length]);
        let _ = socket.send_to(&buffer[..length], client).await;
    }
}
