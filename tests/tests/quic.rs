//! What `[http3]` decides below HTTP/3: address validation and congestion control.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use foregate_tests::{
    Body, Client, Delivery, Direction, Fields, Gateway, Origin, Packet, Relay, Version, digest_of, gateway,
    get, origin, post,
};

const MIB: u64 = 1 << 20;
const LARGE: u64 = 20 * MIB;

async fn start(vm: &Origin, http3: &str) -> Gateway {
    gateway().site("shop.test", vm).toml(&format!("[http3]\n{http3}")).start().await
}

/// The kinds of packets of one direction, each by the first of its datagram.
fn packets(relay: &Relay, direction: Direction) -> Vec<Packet> {
    let datagrams = relay.datagrams();
    datagrams.iter().filter(|d| d.direction == direction).map(|d| d.packet()).collect()
}

/// RFC 9000, section 8.1.2: who has not proved its address is told to by a Retry packet, and comes again with
/// the token in it.
#[tokio::test]
async fn who_must_prove_its_address_is_sent_a_retry() {
    let vm = origin().start().await;
    for (word, must_prove) in [("always", true), ("never", false), ("auto", false)] {
        let gw = start(&vm, &format!("address_validation = {word:?}")).await;
        let relay = Relay::start(gw.dial("shop.test").https).await;
        let mut dial = gw.dial("shop.test");
        dial.https = relay.address();
        let client = Client::connect(&dial, Version::H3).await.unwrap();
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200, "{word}");

        let (asked, answered) = (packets(&relay, Direction::ToGateway), packets(&relay, Direction::ToClient));
        let tokens: Vec<usize> = asked
            .iter()
            .filter_map(|packet| if let Packet::Initial(token) = packet { Some(token.len()) } else { None })
            .collect();
        assert_eq!(tokens.first(), Some(&0), "{word}: a new client has no token: {asked:?}");
        if must_prove {
            assert_eq!(answered.first(), Some(&Packet::Retry), "{word}: {answered:?}");
            assert!(tokens.iter().any(|length| *length > 0), "{word}: no Initial with a token: {asked:?}");
        } else {
            assert!(!answered.contains(&Packet::Retry), "{word}: {answered:?}");
            assert!(matches!(answered.first(), Some(Packet::Initial(_))), "{word}: {answered:?}");
        }
        gw.stop().await;
    }
}

#[tokio::test]
async fn every_congestion_controller_carries_large_bodies() {
    let vm = origin()
        .on("/large", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(LARGE)).await;
                let _ = call.write_pattern(LARGE).await;
                call.finish(&Fields::new()).await;
            })
        })
        .start()
        .await;
    for word in ["cubic", "bbr"] {
        vm.forget();
        let gw = start(&vm, &format!("congestion = {word:?}")).await;
        let client = gw.client(Version::H3, "shop.test").await;
        let reply = client.send(&post("/up", "").body(Body::Pattern(LARGE))).await.unwrap();
        assert_eq!(reply.status, 200, "{word}");
        let seen = vm.only();
        assert_eq!((seen.length, seen.digest, seen.delivery), (LARGE, digest_of(LARGE), Delivery::Complete));
        let reply = client.send(&get("/large")).await.unwrap();
        assert_eq!((reply.status, reply.length, reply.digest), (200, LARGE, digest_of(LARGE)), "{word}");
        gw.stop().await;
    }
}
