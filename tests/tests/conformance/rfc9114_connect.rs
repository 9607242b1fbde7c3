//! RFC 9114, sections 4.4 and 4.5: CONNECT to a host and port, which a gateway refuses, and Upgrade.

use foregate_tests::{
    gateway,
    http3::{Head, Outcome, code::H3_MESSAGE_ERROR, frame::data},
    origin,
};

use crate::scene::{Scene, malformed, scene, soon};

fn connect() -> Head {
    Head::empty().field(":method", "CONNECT").field(":authority", "shop.test:443")
}

#[tokio::test]
async fn rfc9114_4_4_connect_is_refused_with_a_status() {
    let scene = scene().await;
    let mut stream = scene.client.begin(connect().frame()).await;
    let answer = soon("an answer", stream.answer()).await;
    assert_eq!(answer.status, 405, "{answer:?}");
    assert!(scene.vm.requests().is_empty());
    scene.goes_on().await;
}

#[tokio::test]
async fn rfc9114_4_4_what_follows_a_refused_connect_comes_to_nobody() {
    let scene = scene().await;
    let bytes = connect().and(data("GET /tunnelled HTTP/1.1\r\nHost: shop.test\r\n\r\n"));
    let mut stream = scene.client.request(bytes).await;
    assert_eq!(soon("an answer", stream.answer()).await.status, 405);
    scene.goes_on().await;
    assert!(scene.vm.requests().iter().all(|r| r.target == "/afterwards"), "{:?}", scene.vm.requests());
}

cases! { malformed:
    rfc9114_4_4_connect_with_a_scheme => connect().field(":scheme", "https");
    rfc9114_4_4_connect_with_a_path => connect().field(":path", "/");
    rfc9114_4_4_connect_with_scheme_and_path => connect().field(":scheme", "https").field(":path", "/");
    rfc9114_4_4_connect_without_an_authority => Head::empty().field(":method", "CONNECT");
    rfc9114_4_4_connect_with_an_empty_authority => connect().with(":authority", "");
    rfc9114_4_4_connect_with_a_host_alone => Head::empty().field(":method", "CONNECT").field("host", "shop.test:443");
    rfc9114_4_4_connect_with_a_user => connect().with(":authority", "user@shop.test:443");
}

/// Section 4.4 wants host and port; where there is no port, refusing CONNECT as such is as good.
#[tokio::test]
async fn rfc9114_4_4_connect_without_a_port() {
    let scene = scene().await;
    let mut stream = scene.client.request(connect().with(":authority", "shop.test").frame()).await;
    match soon("an end", stream.outcome()).await {
        Outcome::Answered(answer) => {
            assert!(matches!(answer.status, 400 | 405), "{answer:?}");
        }
        Outcome::Reset { code, .. } => assert_eq!(code, H3_MESSAGE_ERROR, "{code:#x}"),
        other => panic!("{other:?}"),
    }
    assert!(scene.vm.requests().is_empty());
    scene.goes_on().await;
}

/// Section 4.5: there is no 101 in HTTP/3, whatever a VM says.
#[tokio::test]
async fn rfc9114_4_5_a_101_of_the_vm_is_not_passed_on() {
    let vm = origin().on("/switches", |call| {
        Box::pin(async move {
            let switching = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n";
            call.literal(switching).await;
            call.gone().await;
        })
    });
    let scene = Scene::of(vm, gateway()).await;
    let answer = scene.ask(Head::get("/switches").frame()).await;
    assert_eq!(answer.status, 502, "{answer:?}");
    assert!(answer.interim.is_empty(), "{answer:?}");
    scene.goes_on().await;
}
