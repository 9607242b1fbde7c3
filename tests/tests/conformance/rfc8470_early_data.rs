//! RFC 8470, as far as it concerns requests that come after the handshake.

use foregate_tests::{gateway, http3::Head, origin};

use crate::scene::{Scene, none, scene};

/// Section 5.1: the field says that a request came before a handshake was complete. This one did not.
#[tokio::test]
async fn rfc8470_5_1_the_field_is_not_added_to_other_requests() {
    let scene = scene().await;
    assert!(!scene.served(Head::get("/").frame()).await.fields.has("early-data"));
}

/// Section 5.2: an intermediary passes a 425 on where the request had the field already.
#[tokio::test]
async fn rfc8470_5_2_too_early_is_passed_on() {
    let vm = origin().on("/", |call| Box::pin(async move { call.reply(425, &none(), "too early").await }));
    let scene = Scene::of(vm, gateway()).await;
    let answer = scene.ask(Head::get("/").field("early-data", "1").frame()).await;
    assert_eq!((answer.status, answer.fields.get("x-vm")), (425, Some("vm")));
}
