//! HTTP/3 through bad networks: loss, delay, another order, and a NAT that forgets every second. Nothing that was
//! asked may be lost, or asked twice, or changed.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{collections::HashSet, sync::Arc, time::Duration};

use foregate_tests::{
    Body, Client, Delivery, Digest, Fields, Gateway, Origin, Relay, Version, Weather, block, digest_of,
    gateway, get, origin, post,
};
use tokio::task::JoinSet;

const REQUESTS: usize = 1_000;
const CLIENTS: usize = 5;
/// So many requests of each client.
const AT_ONCE: usize = 4;
/// No larger: where a packet in a hundred is lost and the way is long, it takes seconds as it is.
const LARGE: u64 = 1 << 20;

const CLEAR: Weather = Weather {
    seed: 1,
    loss: 0,
    delay: Duration::ZERO,
    late: 0,
    held: Duration::ZERO,
    hop: None,
    carries: None,
};
const WEATHERS: [(&str, Weather); 6] = [
    ("1 % loss", Weather { loss: 10, ..CLEAR }),
    ("5 % loss", Weather { loss: 50, ..CLEAR }),
    ("50 ms delay", Weather { delay: Duration::from_millis(50), ..CLEAR }),
    ("another order", Weather { late: 100, held: Duration::from_millis(5), ..CLEAR }),
    (
        "a new port every second",
        Weather { delay: Duration::from_millis(30), hop: Some(Duration::from_secs(1)), ..CLEAR },
    ),
    (
        "all of it",
        Weather {
            loss: 10,
            delay: Duration::from_millis(20),
            late: 50,
            held: Duration::from_millis(5),
            hop: Some(Duration::from_secs(1)),
            ..CLEAR
        },
    ),
];

/// A VM that returns what it is sent, and a gateway of two workers.
async fn scene() -> (Origin, Gateway) {
    let vm = origin()
        .on("/large", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(LARGE)).await;
                let _ = call.write_pattern(LARGE).await;
                call.finish(&Fields::new()).await;
            })
        })
        .on("/", |call| {
            Box::pin(async move {
                let mut body = Vec::new();
                while let Ok(Some(piece)) = call.data().await {
                    body.extend_from_slice(&piece);
                }
                call.reply(200, &Fields::new(), body).await;
            })
        })
        .start()
        .await;
    let gw = gateway().server("workers", "2").site("shop.test", &vm).start().await;
    (vm, gw)
}

/// A client on the other side of a relay.
async fn beyond(relay: &Relay, gw: &Gateway) -> Client {
    let mut dial = gw.dial("shop.test");
    dial.https = relay.address();
    Client::connect(&dial, Version::H3).await.unwrap()
}

/// A body that no other request has: its number, and some of the block, of up to 16 KiB.
fn body(number: usize) -> Vec<u8> {
    let length = number * 2_654_435_761 % (16 << 10);
    [&number.to_be_bytes()[..], &block()[..length]].concat()
}

fn digest(bytes: &[u8]) -> String {
    let mut digest = Digest::default();
    digest.update(bytes);
    digest.hex()
}

/// Asks for every `step`th number from `first` on, one after the other.
async fn ask(client: Client, name: &'static str, first: usize, step: usize) {
    for number in (first..REQUESTS).step_by(step) {
        let body = body(number);
        let expected = (200, body.len() as u64, digest(&body));
        let reply = client.send(&post(&format!("/{name}/{number}").replace(' ', "-"), body)).await;
        let reply = reply.unwrap_or_else(|e| panic!("{name}, request {number}: {e}"));
        assert_eq!((reply.status, reply.length, reply.digest), expected, "{name}, request {number}");
    }
}

/// A thousand requests in one weather.
async fn storm(gw: Arc<Gateway>, name: &'static str, weather: Weather) -> (Relay, Weather) {
    let relay = Relay::through(weather, gw.dial("shop.test").https).await;
    let mut asking = JoinSet::new();
    for number in 0..CLIENTS {
        let client = beyond(&relay, &gw).await;
        for turn in 0..AT_ONCE {
            asking.spawn(ask(client.clone(), name, number * AT_ONCE + turn, CLIENTS * AT_ONCE));
        }
    }
    while let Some(asked) = asking.join_next().await {
        asked.unwrap();
    }
    (relay, weather)
}

#[tokio::test]
async fn a_thousand_requests_come_through_every_weather() {
    let (vm, gw) = scene().await;
    let gw = Arc::new(gw);
    let mut storms = JoinSet::new();
    for (name, weather) in WEATHERS {
        storms.spawn(storm(gw.clone(), name, weather));
    }
    while let Some(storm) = storms.join_next().await {
        let (relay, weather) = storm.unwrap();
        // The weather was as announced.
        assert_eq!(relay.lost() > 0, weather.loss > 0, "{} lost: {weather:?}", relay.lost());
        assert_eq!(relay.overtaken() > 0, weather.late > 0, "{} overtaken: {weather:?}", relay.overtaken());
        assert_eq!(relay.moves() > 0, weather.hop.is_some(), "{} moves: {weather:?}", relay.moves());
    }
    // None came twice, and none broken.
    let seen = vm.requests();
    let targets: HashSet<&str> = seen.iter().map(|r| r.target.as_str()).collect();
    assert_eq!((seen.len(), targets.len()), (REQUESTS * WEATHERS.len(), REQUESTS * WEATHERS.len()));
    for request in &seen {
        assert_eq!(request.delivery, Delivery::Complete, "{request:?}");
    }
    Arc::into_inner(gw).unwrap().stop().await;
}

/// Long bodies both ways at once, which are under way while the network does its worst.
#[tokio::test]
async fn large_bodies_come_through_every_weather() {
    let (vm, gw) = scene().await;
    let mut transfers = JoinSet::new();
    for (name, weather) in WEATHERS {
        let relay = Relay::through(weather, gw.dial("shop.test").https).await;
        let client = beyond(&relay, &gw).await;
        transfers.spawn(async move {
            let (up, down) = (post("/up", "").body(Body::Pattern(LARGE)), get("/large"));
            let (sent, received) = tokio::join!(client.send(&up), client.send(&down));
            for reply in [sent, received] {
                let reply = reply.unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(
                    (reply.status, reply.length, reply.digest),
                    (200, LARGE, digest_of(LARGE)),
                    "{name}"
                );
            }
            drop(relay);
        });
    }
    while let Some(transfer) = transfers.join_next().await {
        transfer.unwrap();
    }
    for request in vm.requests().iter().filter(|r| r.target == "/up") {
        assert_eq!((request.length, &request.digest), (LARGE, &digest_of(LARGE)));
    }
    gw.stop().await;
}
