//! RFC 9114, sections 4.2.2 and 10.5.1: how large a field section may be.

use foregate_tests::http3::{
    Head, Outcome,
    code::*,
    frame::{HEADERS, data, frame_head},
    qpack::{PREFIX, literal},
};

use crate::scene::{Scene, scene, soon};

/// 32 KiB is the default of `server.limits.request_head`.
const LIMIT: usize = 32 << 10;

/// Refused: with 431, or by a reset that says it is too much or was not processed. No VM sees it.
async fn refused(bytes: Vec<u8>) {
    let scene = scene().await;
    let mut stream = scene.client.request(bytes).await;
    check(&scene, soon("an end", stream.outcome()).await).await;
}

async fn check(scene: &Scene, outcome: Outcome) {
    match outcome {
        Outcome::Answered(answer) => assert!(matches!(answer.status, 414 | 431), "{answer:?}"),
        Outcome::Reset { code, status } => {
            let codes = [H3_EXCESSIVE_LOAD, H3_REQUEST_REJECTED, H3_MESSAGE_ERROR, H3_NO_ERROR];
            assert!(status == Some(431) || codes.contains(&code), "{code:#x} {status:?}");
        }
        other => panic!("{other:?}"),
    }
    scene.goes_on().await;
    assert!(scene.vm.requests().iter().all(|r| r.target == "/afterwards"), "{:?}", scene.vm.requests());
    scene.unharmed();
}

cases! { refused:
    rfc9114_4_2_2_one_field_above_the_limit => Head::get("/").field("x-large", &"x".repeat(LIMIT)).frame();
    rfc9114_4_2_2_many_fields_above_the_limit =>
        (0..100).fold(Head::get("/"), |head, n| head.field(&format!("x-{n}"), &"x".repeat(400))).frame();
    // 32 bytes count for each, however small it is.
    rfc9114_4_2_2_thousands_of_small_fields =>
        (0..5_000).fold(Head::get("/"), |head, _| head.field("a", "")).frame();
    rfc9114_4_2_2_thousands_of_static_references =>
        (0..30_000).fold(Head::get("/"), |head, _| head.line(vec![0xc0 | 29])).frame();
    rfc9114_4_2_2_a_path_above_the_limit => Head::get(&format!("/{}", "x".repeat(LIMIT))).frame();
    rfc9114_4_2_2_cookie_crumbs_above_the_limit =>
        (0..1_500).fold(Head::get("/"), |head, n| head.field("cookie", &format!("crumb{n}=yyyyyyyyyyyyyyyy"))).frame();
}

#[tokio::test]
async fn rfc9114_4_2_2_just_below_the_limit() {
    let scene = scene().await;
    let value = "x".repeat(LIMIT - 1_024);
    let seen = scene.served(Head::get("/").field("x-large", &value).frame()).await;
    assert_eq!(seen.fields.get("x-large").map(str::len), Some(value.len()));
}

#[tokio::test]
async fn rfc9114_4_2_2_the_limit_is_what_the_configuration_says() {
    let gw = foregate_tests::gateway().toml("[server.limits]\nrequest_head = \"4KiB\"\n");
    let scene = Scene::of(foregate_tests::origin(), gw).await;
    let mut stream = scene.client.request(Head::get("/").field("x-large", &"x".repeat(4_096)).frame()).await;
    check(&scene, soon("an end", stream.outcome()).await).await;
    let answer = scene.ask(Head::get("/afterwards").field("x-large", &"x".repeat(3_072)).frame()).await;
    assert_eq!(answer.status, 200);
}

/// A head that is announced as endless is refused before it has all come, and never held.
#[tokio::test]
async fn rfc9114_10_5_1_an_endless_head_costs_no_memory() {
    let scene = scene().await;
    scene.goes_on().await;
    scene.gw.process.reset_peak();
    let before = scene.gw.process.memory("VmRSS");
    let line = literal("x-piece", &"x".repeat(1_000));
    let mut stream = scene.client.begin([frame_head(HEADERS, 1 << 61), PREFIX.to_vec()].concat()).await;
    let sending = async {
        for _ in 0..64_000 {
            if stream.send.write_all(&line).await.is_err() {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(5), sending).await;
    let grown = scene.gw.process.memory("VmHWM").saturating_sub(before);
    assert!(grown < 16 << 20, "{grown} bytes more for one head");
    check(&scene, soon("an end", stream.outcome()).await).await;
}

/// The answer does not wait for the rest of a head that is too large already.
#[tokio::test]
async fn rfc9114_10_5_1_a_head_announced_too_large_is_refused_at_once() {
    let scene = scene().await;
    let head = [frame_head(HEADERS, 10 << 20), PREFIX.to_vec(), literal("x", &"x".repeat(200_000))].concat();
    let mut stream = scene.client.begin(head).await;
    check(&scene, soon("an end", stream.outcome()).await).await;
}

/// Trailers have the same limit; what came before them is not taken for a whole request.
#[tokio::test]
async fn rfc9114_4_2_2_trailers_above_the_limit() {
    let scene = scene().await;
    let trailers = Head::empty().field("x-large", &"x".repeat(2 * LIMIT)).frame();
    let mut stream = scene.client.request(Head::post("/").and([data("hello"), trailers].concat())).await;
    match soon("an end", stream.outcome()).await {
        Outcome::Answered(answer) => assert!(matches!(answer.status, 400 | 431), "{answer:?}"),
        Outcome::Reset { code, .. } => {
            let codes = [H3_EXCESSIVE_LOAD, H3_REQUEST_CANCELLED, H3_MESSAGE_ERROR, H3_INTERNAL_ERROR];
            assert!(codes.contains(&code), "{code:#x}");
        }
        other => panic!("{other:?}"),
    }
    assert!(scene.vm.requests().iter().all(|r| r.delivery != foregate_tests::Delivery::Complete));
    scene.goes_on().await;
    scene.unharmed();
}
