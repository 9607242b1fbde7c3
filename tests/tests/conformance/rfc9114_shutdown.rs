//! RFC 9114, section 5.2: how the gateway leaves a connection when it is told to end.

use std::sync::Arc;

use foregate_tests::{
    GatewayBuilder, OriginBuilder, gateway,
    http3::{
        Head, Outcome,
        code::*,
        frame::{GOAWAY, MAX, data, take_varint},
    },
    origin,
};
use tokio::sync::Notify;

use crate::scene::{Scene, scene, soon, until};

/// A VM that holds `/held` until told.
fn holding() -> (OriginBuilder, Arc<Notify>) {
    let release = Arc::new(Notify::new());
    let bell = release.clone();
    let vm = origin().on("/held", move |call| {
        let bell = bell.clone();
        Box::pin(async move {
            bell.notified().await;
            call.greet().await;
        })
    });
    (vm, release)
}

fn patient() -> GatewayBuilder {
    gateway().toml("[server.timeouts]\ndrain = \"20s\"\n")
}

/// The ids of the GOAWAY frames so far.
fn goaways(scene: &Scene) -> Vec<u64> {
    let seen = scene.client.seen();
    let frames = seen.control.iter().filter(|f| f.kind == GOAWAY);
    frames.map(|f| take_varint(&mut &f.payload[..]).expect("an id")).collect()
}

/// Waits for a GOAWAY that names a stream.
async fn last_goaway(scene: &Scene) -> u64 {
    until("a GOAWAY that names a stream", || goaways(scene).into_iter().find(|id| *id < MAX - 3)).await
}

async fn closed_without_error(scene: &Scene) {
    match soon("CONNECTION_CLOSE", scene.client.quic.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), H3_NO_ERROR, "{close:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn rfc9114_5_2_an_idle_connection_is_closed_without_error() {
    let mut scene = scene().await;
    scene.goes_on().await;
    scene.gw.terminate();
    closed_without_error(&scene).await;
    scene.gw.ended().await;
}

#[tokio::test]
async fn rfc9114_5_2_a_connection_without_any_request_is_closed_without_error() {
    let mut scene = scene().await;
    until("SETTINGS", || scene.client.seen().control.first().cloned()).await;
    scene.gw.terminate();
    closed_without_error(&scene).await;
    scene.gw.ended().await;
}

/// The way the RFC recommends: first the largest id, and the true one when what was under way has arrived.
#[tokio::test]
async fn rfc9114_5_2_goaway_comes_in_two_steps() {
    let (vm, release) = holding();
    let mut scene = Scene::of(vm, patient()).await;
    let mut held = scene.client.request(Head::get("/held").frame()).await;
    scene.vm.saw("the held one", |r| r.target == "/held").await;
    scene.gw.terminate();
    let last = last_goaway(&scene).await;
    let ids = goaways(&scene);
    assert_eq!(ids.first(), Some(&(MAX - 3)), "{ids:?}");
    assert_eq!(last, held.id() + 4, "{ids:?}");
    release.notify_one();
    assert_eq!(soon("the held answer", held.answer()).await.status, 200);
    closed_without_error(&scene).await;
    // What crosses the last GOAWAY is refused, so that none needs to follow; and no id ever rises.
    let ids = goaways(&scene);
    assert!(ids.windows(2).all(|pair| pair[0] >= pair[1]), "{ids:?}");
    assert!(ids.iter().all(|id| id % 4 == 0), "not ids of request streams: {ids:?}");
    scene.gw.ended().await;
}

#[tokio::test]
async fn rfc9114_5_2_a_request_that_crosses_the_first_goaway_is_served() {
    let (vm, release) = holding();
    let mut scene = Scene::of(vm, patient()).await;
    let mut held = scene.client.request(Head::get("/held").frame()).await;
    scene.vm.saw("the held one", |r| r.target == "/held").await;
    // It is on its way before the gateway can have said anything.
    let sent = scene.client.quic.stats().udp_tx.datagrams;
    let mut crossing = scene.client.request(Head::get("/crossing").frame()).await;
    until("it is sent", || (scene.client.quic.stats().udp_tx.datagrams > sent).then_some(())).await;
    scene.gw.terminate();
    assert_eq!(soon("the crossing answer", crossing.answer()).await.status, 200);
    assert!(last_goaway(&scene).await > crossing.id());
    release.notify_one();
    assert_eq!(soon("the held answer", held.answer()).await.status, 200);
    scene.gw.ended().await;
}

#[tokio::test]
async fn rfc9114_5_2_requests_at_or_above_the_id_are_rejected() {
    let (vm, release) = holding();
    let mut scene = Scene::of(vm, patient()).await;
    let mut held = scene.client.request(Head::get("/held").frame()).await;
    scene.vm.saw("the held one", |r| r.target == "/held").await;
    scene.gw.terminate();
    let last = last_goaway(&scene).await;
    for bytes in [Head::get("/late").frame(), Head::post("/late").and(data("hello"))] {
        let mut late = scene.client.request(bytes).await;
        assert!(late.id() >= last);
        match soon("a rejection", late.outcome()).await {
            Outcome::Reset { code, status } => assert_eq!((code, status), (H3_REQUEST_REJECTED, None)),
            other => panic!("{other:?}"),
        }
    }
    assert!(scene.vm.requests().iter().all(|r| r.target == "/held"), "{:?}", scene.vm.requests());
    release.notify_one();
    assert_eq!(soon("the held answer", held.answer()).await.status, 200);
    closed_without_error(&scene).await;
    scene.gw.ended().await;
}

/// Also one whose head never becomes whole: it needs not be read to be refused.
#[tokio::test]
async fn rfc9114_5_2_half_a_request_above_the_id_is_rejected() {
    let (vm, release) = holding();
    let mut scene = Scene::of(vm, patient()).await;
    let mut held = scene.client.request(Head::get("/held").frame()).await;
    scene.vm.saw("the held one", |r| r.target == "/held").await;
    scene.gw.terminate();
    last_goaway(&scene).await;
    let mut late = scene.client.begin(&Head::get("/late").frame()[..5]).await;
    match soon("a rejection", late.outcome()).await {
        Outcome::Reset { code, .. } => assert_eq!(code, H3_REQUEST_REJECTED, "{code:#x}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(soon("STOP_SENDING", late.stopped()).await, Some(H3_REQUEST_REJECTED));
    release.notify_one();
    assert_eq!(soon("the held answer", held.answer()).await.status, 200);
    scene.gw.ended().await;
}

/// An upload below the id goes on to its end.
#[tokio::test]
async fn rfc9114_5_2_an_upload_below_the_id_is_finished() {
    let mut scene = Scene::of(origin(), patient()).await;
    let mut upload = scene.client.begin(Head::post("/upload").and(data("he"))).await;
    scene.vm.saw("its beginning", |r| r.length == 2).await;
    scene.gw.terminate();
    let id = last_goaway(&scene).await;
    assert_eq!(id, upload.id() + 4);
    upload.finish(data("llo")).await;
    assert_eq!(soon("its answer", upload.answer()).await.status, 200);
    assert_eq!(&scene.vm.only().body[..], b"hello");
    closed_without_error(&scene).await;
    scene.gw.ended().await;
}

/// A head that is under way when the end is announced is read to its end and served.
#[tokio::test]
async fn rfc9114_5_2_a_head_under_way_is_served() {
    let mut scene = Scene::of(origin(), patient()).await;
    let whole = Head::get("/slow").frame();
    let mut slow = scene.client.begin(&whole[..9]).await;
    scene.goes_on().await;
    scene.gw.terminate();
    assert!(last_goaway(&scene).await > slow.id());
    slow.finish(&whole[9..]).await;
    assert_eq!(soon("its answer", slow.answer()).await.status, 200);
    closed_without_error(&scene).await;
    scene.gw.ended().await;
}

/// Section 5.2: the client's GOAWAY is about pushes; its own requests go on.
#[tokio::test]
async fn rfc9114_5_2_a_client_that_goes_away_is_still_served() {
    let mut scene = scene().await;
    let mut stream = scene.client.begin(Head::post("/").and(data("he"))).await;
    scene.say(foregate_tests::http3::frame::id_frame(GOAWAY, 0)).await;
    scene.goes_on().await;
    stream.finish(data("llo")).await;
    assert_eq!(soon("an answer", stream.answer()).await.status, 200);
}
