//! How many connections clients may have, of the whole process and of one address.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{net::Ipv4Addr, time::Instant};

use foregate_tests::{
    Client, Dial, Error, Gateway, Origin, Packet, Version, eventually, eventually_async, first_packets,
    gateway, get, origin, within,
};
use tokio::net::UdpSocket;

/// With two workers, for the limits are those of the process.
async fn start(limits: &str) -> (Origin, Gateway) {
    let vm = origin().start().await;
    let limits = format!("[server.limits]\n{limits}");
    let gw = gateway().site("shop.test", &vm).server("workers", "2").toml(&limits).start().await;
    (vm, gw)
}

/// A connection that has been answered, and so was admitted; else why not.
async fn admitted(dial: &Dial, version: Version) -> Result<Client, Error> {
    let client = Client::connect(dial, version).await?;
    served(&client).await?;
    Ok(client)
}

async fn served(client: &Client) -> Result<(), Error> {
    let reply = client.send(&get("/")).await?;
    assert_eq!(reply.status, 200, "{:?}", client.version);
    Ok(())
}

/// A client beyond the limit is turned away at once: the connection ends, and nothing hangs.
async fn refused(dial: &Dial, version: Version) {
    match admitted(dial, version).await {
        Ok(_) => panic!("{version:?} was admitted"),
        Err(Error::Timeout) => panic!("{version:?} was left waiting"),
        // RFC 9000, section 20.1: CONNECTION_REFUSED, which quinn puts so.
        Err(Error::Connect(why)) if version == Version::H3 => assert!(why.contains("refused"), "{why}"),
        Err(error) => assert_ne!(version, Version::H3, "{error}"),
    }
}

/// Once a connection has closed its place is free; the gateway learns of that in its own time.
async fn admitted_soon(dial: &Dial, version: Version) -> Client {
    eventually_async(&format!("{version:?} is admitted"), || async { admitted(dial, version).await.ok() })
        .await
}

#[tokio::test]
async fn connections_beyond_the_limit_of_the_process_are_refused() {
    let (_vm, gw) = start("connections = 2").await;
    let dial = gw.dial("shop.test");
    for version in Version::ALL {
        let first = admitted_soon(&dial, version).await;
        let second = admitted_soon(&dial, version).await;
        // Whatever they speak: a limit for each version would be none for the process.
        for other in Version::ALL {
            refused(&dial, other).await;
            refused(&dial.clone().from("127.0.0.2"), other).await;
        }
        served(&first).await.unwrap();
        served(&second).await.unwrap();
        drop(first);
        let third = admitted_soon(&dial, version).await;
        refused(&dial, version).await;
        served(&second).await.unwrap();
        drop((second, third));
    }
    eventually("a word in the log", || {
        gw.log().having(&["WARN", "limits.connections reached", "127.0.0.1"]).pop()
    })
    .await;
    gw.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_limit_of_an_address_are_refused() {
    let (_vm, gw) = start("connections_per_ip = 2").await;
    let (here, there) = (gw.dial("shop.test"), gw.dial("shop.test").from("127.0.0.2"));
    for version in Version::ALL {
        let first = admitted_soon(&here, version).await;
        let second = admitted_soon(&here, version).await;
        for other in Version::ALL {
            refused(&here, other).await;
        }
        // What one address has used up is no other's loss.
        let other = admitted_soon(&there, version).await;
        for client in [&first, &second, &other] {
            served(client).await.unwrap();
        }
        drop(first);
        let third = admitted_soon(&here, version).await;
        refused(&here, version).await;
        drop((second, third, other));
    }
    gw.stop().await;
}

/// Whoever sends first packets under somebody's address does not use up what that one may have.
#[tokio::test]
async fn handshakes_of_unproven_addresses_leave_half_of_the_limit() {
    let (_vm, gw) = start("connections_per_ip = 4").await;
    let dial = gw.dial("shop.test");
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    for packet in first_packets(10).await {
        socket.send_to(&packet, dial.https).await.unwrap();
    }
    // The first two are answered, and the others asked to prove where they are.
    let mut answers = Vec::new();
    let all = async {
        while answers.iter().filter(|packet| **packet == Packet::Retry).count() < 8 {
            let mut answer = vec![0; 2048];
            let length = socket.recv(&mut answer).await.unwrap();
            answer.truncate(length);
            answers.push(Packet::first_of(&answer.into()));
        }
    };
    within("eight Retries", all).await;
    let (first, second) = (admitted_soon(&dial, Version::H3).await, admitted_soon(&dial, Version::H1).await);
    refused(&dial, Version::H2).await;
    refused(&dial, Version::H3).await;
    drop((first, second));
    gw.stop().await;
}

/// The log tells of it whichever version the client speaks, and a flood does not fill it.
#[tokio::test]
async fn refusals_over_every_version_are_told_and_not_too_often() {
    for version in [Version::H1, Version::H3] {
        let (_vm, gw) = start("connections = 1").await;
        let dial = gw.dial("shop.test");
        let _only = admitted_soon(&dial, version).await;
        let begun = Instant::now();
        for _ in 0..100 {
            refused(&dial, version).await;
        }
        // Ten lines a second of each worker.
        let seconds = begun.elapsed().as_secs() as usize + 2;
        let told = || gw.log().having(&["WARN", "limits.connections reached", "127.0.0.1"]);
        eventually("a word in the log", || (!told().is_empty()).then_some(())).await;
        assert!(told().len() <= 2 * 10 * seconds, "{version:?}: {} in {seconds} s", told().len());
        gw.stop().await;
    }
}
