//! RFC 9114, section 4.1.1: requests that the client no longer wants, and those that break off.

use std::sync::Arc;

use foregate_tests::{
    Delivery, Fields, OriginBuilder, gateway,
    http3::{Head, Outcome, code::*, frame::data},
    origin,
};
use tokio::sync::Notify;

use crate::scene::{Scene, scene, soon, until};

/// A VM that works on `/held` until the gateway goes away, and streams `/endless`.
fn busy() -> OriginBuilder {
    origin().on("/held", |call| Box::pin(async move { call.gone().await })).on("/endless", |call| {
        Box::pin(async move {
            call.start(200, &Fields::new(), None).await;
            while call.write(vec![b'x'; 10_000].into()).await.is_ok() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
            call.gone().await;
        })
    })
}

async fn broken_off(scene: &Scene) {
    until("the VM's exchange is broken off", || {
        matches!(scene.vm.requests()[0].delivery, Delivery::Broken(_)).then_some(())
    })
    .await;
    scene.goes_on().await;
    scene.unharmed();
}

/// Section 4.1.1: both directions, as clients should.
#[tokio::test]
async fn rfc9114_4_1_1_a_cancelled_request_ends_at_the_vm() {
    let scene = Scene::of(busy(), gateway()).await;
    let mut stream = scene.client.begin(Head::get("/held").frame()).await;
    scene.vm.saw("the request", |_| true).await;
    stream.reset(H3_REQUEST_CANCELLED);
    stream.stop(H3_REQUEST_CANCELLED);
    broken_off(&scene).await;
}

/// The request was whole already: only the response can be refused.
#[tokio::test]
async fn rfc9114_4_1_1_stop_sending_before_the_response_ends_it_at_the_vm() {
    let scene = Scene::of(busy(), gateway()).await;
    let mut stream = scene.client.request(Head::get("/held").frame()).await;
    scene.vm.saw("the request", |_| true).await;
    stream.stop(H3_REQUEST_CANCELLED);
    broken_off(&scene).await;
}

#[tokio::test]
async fn rfc9114_4_1_1_stop_sending_within_the_response_ends_it_at_the_vm() {
    let scene = Scene::of(busy(), gateway()).await;
    let mut stream = scene.client.request(Head::get("/endless").frame()).await;
    assert_eq!(soon("a head", stream.head()).await.0, 200);
    soon("some of the body", stream.body(30_000)).await;
    stream.stop(H3_REQUEST_CANCELLED);
    broken_off(&scene).await;
}

/// Whatever the code says: an unknown one means no more than none (section 8).
#[tokio::test]
async fn rfc9114_8_any_code_cancels() {
    for code in [H3_NO_ERROR, 0, 0x21, 0x3fff_ffff_ffff_ffff] {
        let scene = Scene::of(busy(), gateway()).await;
        let mut stream = scene.client.begin(Head::get("/held").frame()).await;
        scene.vm.saw("the request", |_| true).await;
        stream.reset(code);
        stream.stop(code);
        broken_off(&scene).await;
    }
}

#[tokio::test]
async fn rfc9114_4_1_1_a_reset_upload_is_broken_off_at_the_vm() {
    let scene = scene().await;
    let mut stream = scene.client.begin(Head::post("/").and(data("hello"))).await;
    scene.vm.saw("some of the body", |r| r.length == 5).await;
    stream.reset(H3_REQUEST_CANCELLED);
    broken_off(&scene).await;
    // No answer that calls it served.
    match soon("an end", stream.outcome()).await {
        Outcome::Answered(answer) => assert_eq!(answer.status, 400, "{answer:?}"),
        Outcome::Reset { .. } => {}
        other @ Outcome::Lost(_) => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn rfc9114_4_1_1_a_reset_before_the_head_comes_to_nobody() {
    let scene = scene().await;
    let whole = Head::get("/").frame();
    let mut stream = scene.client.begin(&whole[..whole.len() - 1]).await;
    scene.goes_on().await;
    stream.reset(H3_REQUEST_CANCELLED);
    stream.stop(H3_REQUEST_CANCELLED);
    scene.goes_on().await;
    assert!(scene.vm.requests().iter().all(|r| r.target == "/afterwards"), "{:?}", scene.vm.requests());
    scene.unharmed();
}

/// Section 4.1.1: a request that was passed on was processed, and must not be called rejected.
#[tokio::test]
async fn rfc9114_4_1_1_what_was_begun_is_not_called_rejected() {
    let vm = origin().on("/dies", |call| {
        Box::pin(async move {
            call.start(200, &Fields::new(), Some(100_000)).await;
            let _ = call.write(vec![b'x'; 50_000].into()).await;
            call.die();
        })
    });
    let scene = Scene::of(vm, gateway()).await;
    let mut stream = scene.client.request(Head::get("/dies").frame()).await;
    match soon("a reset", stream.outcome()).await {
        // Cut short, so that the client can tell: never a FIN.
        Outcome::Reset { code, status } => {
            // A reset may overtake the head.
            assert!(matches!(status, None | Some(200)), "{status:?}");
            assert!(matches!(code, H3_INTERNAL_ERROR | H3_REQUEST_CANCELLED), "{code:#x}");
        }
        other => panic!("{other:?}"),
    }
    scene.goes_on().await;
}

#[tokio::test]
async fn rfc9114_4_1_1_a_cancelled_request_leaves_its_neighbours_alone() {
    let release = Arc::new(Notify::new());
    let bell = release.clone();
    let vm = busy().on("/waits", move |call| {
        let bell = bell.clone();
        Box::pin(async move {
            bell.notified().await;
            call.greet().await;
        })
    });
    let scene = Scene::of(vm, gateway()).await;
    let mut neighbour = scene.client.request(Head::get("/waits").frame()).await;
    scene.vm.saw("the neighbour", |r| r.target == "/waits").await;
    for _ in 0..20 {
        let mut stream = scene.client.begin(Head::get("/held").frame()).await;
        stream.reset(H3_REQUEST_CANCELLED);
        stream.stop(H3_REQUEST_CANCELLED);
    }
    release.notify_one();
    assert_eq!(soon("the neighbour's answer", neighbour.answer()).await.status, 200);
    scene.goes_on().await;
    scene.unharmed();
}

/// The whole connection goes: every request of it ends at the VM.
#[tokio::test]
async fn rfc9114_5_3_a_connection_that_is_closed_ends_its_requests_at_the_vm() {
    let scene = Scene::of(busy(), gateway()).await;
    let mut streams = Vec::new();
    for _ in 0..5 {
        streams.push(scene.client.begin(Head::get("/held").frame()).await);
    }
    until("all are at the VM", || (scene.vm.requests().len() == 5).then_some(())).await;
    scene.client.close();
    until("all are broken off", || {
        scene.vm.requests().iter().all(|r| matches!(r.delivery, Delivery::Broken(_))).then_some(())
    })
    .await;
    scene.others_are_served().await;
}
