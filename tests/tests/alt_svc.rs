//! `http3.alt_svc = "auto"`, the default: HTTP/3 is advertised while the gateway reaches its own.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::{Ipv4Addr, SocketAddr};

use foregate_tests::{
    Client, Dial, Gateway, Relay, Version, closed_port, eventually, eventually_async, gateway, get, lease,
    origin,
};

const TOLD: [Version; 2] = [Version::H1Tls, Version::H2];

async fn said(gw: &Gateway, https: u16, version: Version) -> Option<String> {
    let dial = Dial::loopback(gw.http_port(), https, "shop.test");
    let client = Client::connect(&dial, version).await.unwrap();
    let reply = client.send(&get("/")).await.unwrap();
    assert_eq!(reply.status, 200);
    reply.fields.get("alt-svc").map(str::to_owned)
}

/// The first probe is over before the gateway says that it listens.
#[tokio::test]
async fn the_first_answer_advertises_what_works() {
    let vm = origin().start().await;
    for addresses in ["\"127.0.0.1\"", "[\"0.0.0.0\", \"::\"]"] {
        let gw = gateway().server("addresses", addresses).site("shop.test", &vm).start().await;
        let expected = format!("h3=\":{}\"; ma=3600", gw.https_port());
        for version in TOLD {
            assert_eq!(said(&gw, gw.https_port(), version).await.as_deref(), Some(&*expected), "{version:?}");
        }
        gw.stop().await;
    }
    // No VM is troubled by it.
    assert!(vm.requests().iter().all(|request| request.method == "GET"));
}

#[tokio::test]
async fn what_never_answered_is_never_advertised() {
    let vm = origin().start().await;
    let dead = closed_port();
    let table = format!("[http3]\nalt_svc_port = {}", dead.port);
    let gw = gateway().site("shop.test", &vm).toml(&table).start().await;
    for version in TOLD {
        assert_eq!(said(&gw, gw.https_port(), version).await, None, "{version:?}");
    }
    let text = eventually("the log says so", || {
        let text = gw.log().text();
        text.contains("HTTP/3 is not advertised").then_some(text)
    })
    .await;
    assert!(text.contains(&format!("127.0.0.1:{}", dead.port)), "{text}");
    for version in TOLD {
        assert_eq!(said(&gw, gw.https_port(), version).await, None, "{version:?}");
    }
    // It is there all the same, for those who know.
    assert_eq!(gw.request(Version::H3, get("/")).await.status, 200);
    gw.stop().await;
}

#[tokio::test]
async fn what_stops_working_is_taken_back() {
    let vm = origin().start().await;
    let https = lease();
    let relay = Relay::start(SocketAddr::from((Ipv4Addr::LOCALHOST, https.port))).await;
    let outside = relay.address().port();
    let gw = gateway()
        .server("https", &https.port.to_string())
        .site("shop.test", &vm)
        .toml(&format!("[http3]\nalt_svc_port = {outside}"))
        .start()
        .await;
    let expected = format!("h3=\":{outside}\"; ma=3600");
    for version in TOLD {
        assert_eq!(said(&gw, https.port, version).await.as_deref(), Some(&*expected), "{version:?}");
    }
    drop(relay);
    eventually_async("it is taken back", || async {
        (said(&gw, https.port, Version::H2).await.as_deref() == Some("clear")).then_some(())
    })
    .await;
    assert_eq!(said(&gw, https.port, Version::H1Tls).await.as_deref(), Some("clear"));
    let text = gw.log().text();
    assert!(text.contains("HTTP/3 is no longer advertised"), "{text}");
    gw.stop().await;
}
