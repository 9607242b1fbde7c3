//! Handshakes that nobody goes on with.

use std::{net::Ipv4Addr, time::Duration};

use foregate_tests::first_packets;
use tokio::net::UdpSocket;

use crate::scene::{Attack, Pace, Time, bear};

const HANDSHAKES: usize = 10_000;
/// How many are sent each time, and how often: all within two and a half seconds.
const BURST: usize = 4;
const EVERY: Duration = Duration::from_millis(1);
/// Half-open handshakes from which on clients must prove their addresses.
const HALF_OPEN: u64 = 100;
/// What a half-open handshake holds: QUIC's state and its three packet spaces, TLS, the certificate on its way
/// and the buffers it is sent from.
const HANDSHAKE: u64 = 64 * 1024;
/// First packets that may wait for the gateway to look at them, and what each takes.
const INCOMING: u64 = 1024 * 2048;
/// The limit of the second attack.
const CONNECTIONS: u64 = 1_000;

/// Ten thousand first packets of clients that are never heard of again.
pub(crate) fn unproven() -> Attack {
    Attack {
        name: "10,000 half-open handshakes",
        config: "",
        // Those after the first hundred are sent a Retry, for which nothing is kept.
        holds: HALF_OPEN * HANDSHAKE + INCOMING,
        run: flood(),
    }
}

/// The same where nobody must prove an address, as if all of them had: then what counts is how many connections
/// there may be.
pub(crate) fn held_open() -> Attack {
    Attack {
        name: "10,000 handshakes with proven addresses",
        config: "[server.limits]\nconnections = 1000\n[http3]\naddress_validation = \"never\"\n",
        holds: CONNECTIONS * HANDSHAKE + INCOMING,
        run: flood(),
    }
}

fn flood() -> Box<dyn FnOnce(foregate_tests::Dial, std::time::Instant) -> crate::scene::Running + Send> {
    let packets = std::thread::spawn(|| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        // Made before anything is measured.
        runtime.enable_all().build().unwrap().block_on(first_packets(HANDSHAKES))
    });
    let packets = packets.join().unwrap();
    Box::new(move |dial, until| {
        Box::pin(async move {
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            socket.connect(dial.https).await.unwrap();
            let mut pace = Pace::new(EVERY, until);
            let mut rest = packets.chunks(BURST);
            let mut answer = [0; 2048];
            while pace.next().await {
                for packet in rest.next().unwrap_or_default() {
                    socket.send(packet).await.unwrap();
                }
                while socket.try_recv(&mut answer).is_ok() {}
            }
            let left = rest.len() * BURST;
            // On a slow machine the attacker is slow too, but it is an attack.
            assert!(left < HANDSHAKES / 2, "{left} were not sent");
        })
    })
}

#[tokio::test]
async fn half_open_handshakes_without_proof_cost_little() {
    bear(unproven(), Time::Little).await;
}

#[tokio::test]
async fn half_open_handshakes_count_as_connections() {
    bear(held_open(), Time::Little).await;
}
