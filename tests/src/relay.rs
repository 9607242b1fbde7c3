//! A UDP relay between clients and the gateway: what passes both ways can be looked at.
//!
//! A client dials the relay in the gateway's place. Each client address gets a socket of its own towards the
//! gateway, so that the gateway tells clients apart.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio::{
    net::UdpSocket,
    task::{JoinHandle, JoinSet},
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
    task: JoinHandle<()>,
}

impl Relay {
    /// Starts a relay on a free port of 127.0.0.1 that passes everything on to `gateway`.
    pub async fn start(gateway: SocketAddr) -> Relay {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
        let address = socket.local_addr().unwrap();
        let seen = Seen::default();
        let task = tokio::spawn(serve(socket, gateway, seen.clone()));
        Relay { address, seen, task }
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

async fn serve(socket: Arc<UdpSocket>, gateway: SocketAddr, seen: Seen) {
    let mut paths: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    // They end with the relay.
    let mut answers = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        // An error speaks of an earlier datagram, whose receiver was gone.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else { continue };
        let path = match paths.entry(client) {
            Entry::Occupied(path) => path.into_mut(),
            Entry::Vacant(place) => {
                let path = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap());
                path.connect(gateway).await.unwrap();
                answers.spawn(answer(socket.clone(), path.clone(), client, seen.clone()));
                place.insert(path)
            }
        };
        seen.note(Direction::ToGateway, client, &buffer[..length]);
        let _ = path.send(&buffer[..length]).await;
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
