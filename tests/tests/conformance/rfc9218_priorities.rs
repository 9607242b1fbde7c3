//! RFC 9218: priorities, by field and by PRIORITY_UPDATE.

use bytes::Bytes;
use foregate_tests::{
    OriginBuilder, gateway,
    http3::{
        Head, Options, Outcome, Stream,
        code::*,
        frame::{
            DATA, MAX, MAX_PUSH_ID, PRIORITY_UPDATE, PRIORITY_UPDATE_PUSH, frame, id_frame, priority_update,
        },
    },
    origin,
};

use crate::scene::{Scene, ignored_on_control_stream, on_control_stream, on_request_stream, scene, soon};

fn update(id: u64, value: &str) -> Vec<u8> {
    priority_update(PRIORITY_UPDATE, id, value)
}

fn update_push(id: u64, value: &str) -> Vec<u8> {
    priority_update(PRIORITY_UPDATE_PUSH, id, value)
}

cases! { ignored_on_control_stream:
    rfc9218_7_2_an_update_of_a_stream_that_is_over => update(0, "u=1");
    rfc9218_7_2_an_update_of_a_stream_not_yet_open => update(40, "u=7, i");
    rfc9218_7_2_many_updates_of_one_stream => (0..200).flat_map(|n| update(40, &format!("u={}", n % 8))).collect();
    rfc9218_7_2_an_update_without_a_value => update(8, "");
    rfc9218_4_an_update_with_unknown_parameters => update(8, "u=2, x=y, foo;bar=1, i=?0");
}

cases! { on_request_stream:
    rfc9218_7_2_an_update_on_a_request_stream => H3_FRAME_UNEXPECTED, update(0, "u=1");
    rfc9218_7_2_an_update_after_headers => H3_FRAME_UNEXPECTED, Head::post("/").and(update(0, "u=1"));
    rfc9218_7_2_an_update_of_a_push_on_a_request_stream => H3_FRAME_UNEXPECTED, update_push(0, "u=1");
}

cases! { on_control_stream:
    rfc9218_7_2_an_update_of_a_stream_of_the_server => H3_ID_ERROR, update(1, "u=1");
    rfc9218_7_2_an_update_of_a_unidirectional_stream => H3_ID_ERROR, update(2, "u=1");
    rfc9218_7_2_an_update_of_a_unidirectional_stream_of_the_server => H3_ID_ERROR, update(3, "u=1");
    rfc9218_7_2_an_update_of_a_push_without_a_limit => H3_ID_ERROR, update_push(0, "u=1");
    rfc9218_7_2_an_update_of_a_push_beyond_the_limit => H3_ID_ERROR,
        [id_frame(MAX_PUSH_ID, 3), update_push(4, "u=1")].concat();
    rfc9218_7_2_an_update_of_a_push_never_promised => H3_ID_ERROR,
        [id_frame(MAX_PUSH_ID, 3), update_push(3, "u=1")].concat();
    rfc9218_7_2_an_update_without_an_id => H3_FRAME_ERROR, frame(PRIORITY_UPDATE, b"");
    rfc9218_7_2_an_update_with_half_an_id => H3_FRAME_ERROR, frame(PRIORITY_UPDATE, &[0x80, 0]);
}

/// The connection is closed with this code or goes on; both are allowed.
async fn tolerated_or(code: u64, bytes: Vec<u8>) {
    let mut scene = scene().await;
    scene.goes_on().await;
    scene.say(bytes).await;
    let mut stream = match scene.client.quic.open_bi().await {
        Ok((send, recv)) => Stream::new(send, recv),
        Err(_) => return scene.connection_error(code).await,
    };
    stream.finish(Head::get("/").frame()).await;
    match soon("an end", stream.outcome()).await {
        Outcome::Answered(answer) => assert_eq!(answer.status, 200),
        Outcome::Lost(_) => return scene.connection_error(code).await,
        other => panic!("{other:?}"),
    }
    scene.unharmed();
}

cases! { tolerated_or:
    // Section 7.2: SHOULD, as the limit may not be known.
    rfc9218_7_2_an_update_beyond_the_stream_limit => H3_ID_ERROR, update(MAX - 3, "u=1");
    // Section 7: a failure to parse MAY be an error.
    rfc9218_7_an_update_that_is_no_dictionary => H3_GENERAL_PROTOCOL_ERROR, update(8, "u=");
    rfc9218_7_an_update_of_bytes_above_ascii => H3_GENERAL_PROTOCOL_ERROR,
        frame(PRIORITY_UPDATE, &[8, 0xff, 0xfe, 0]);
    rfc9218_4_1_an_urgency_out_of_range => H3_GENERAL_PROTOCOL_ERROR, update(8, "u=8");
    rfc9218_4_1_an_urgency_that_is_no_number => H3_GENERAL_PROTOCOL_ERROR, update(8, "u=high");
    rfc9218_7_a_long_value => H3_GENERAL_PROTOCOL_ERROR, update(8, &"x".repeat(1_000));
}

/// Section 4: what is not understood of the field is ignored; it never costs the request.
async fn field_is_harmless(value: &str) {
    let scene = scene().await;
    let seen = scene.served(Head::get("/").field("priority", value).frame()).await;
    // It is end to end (section 5).
    assert_eq!(seen.fields.all("priority"), [value]);
}

cases! { field_is_harmless:
    rfc9218_5_the_field_comes_to_the_vm => "u=1, i";
    rfc9218_4_a_field_with_unknown_parameters => "u=1, x=\"y\";z, (a b)";
    rfc9218_4_1_a_field_with_an_urgency_out_of_range => "u=9";
    rfc9218_4_a_field_that_is_no_dictionary => "=,;u";
    rfc9218_4_an_empty_field => "";
}

/// More than the windows hold, so that the gateway must choose what to send.
const LARGE: usize = 3 << 20;

fn large() -> OriginBuilder {
    origin().on("/large", |call| {
        Box::pin(async move {
            call.start(200, &crate::scene::none(), Some(LARGE as u64)).await;
            for _ in 0..LARGE >> 16 {
                if call.write(Bytes::from(vec![b'x'; 1 << 16])).await.is_err() {
                    return;
                }
            }
            call.finish(&crate::scene::none()).await;
        })
    })
}

/// A client that takes little at a time.
async fn narrow() -> Scene {
    let options = Options { window: 64 << 10, ..Options::default() };
    let mut scene = Scene::bare(large(), gateway(), options).await;
    scene.control = Some(scene.client.control().await);
    scene
}

/// Reads a large response to its end, counting, and slowly: what is sent is then the gateway's choice among
/// what it holds, and not whatever the VM has just delivered.
async fn download(stream: &mut Stream, count: &std::cell::Cell<usize>) {
    assert_eq!(stream.head().await.0, 200);
    while let Some(frame) = stream.frames.next().await.unwrap() {
        assert_eq!(frame.kind, DATA);
        count.set(count.get() + frame.payload.len());
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_eq!(count.get(), LARGE);
}

/// Both are read at once. When the urgent one is whole, much of the other must still be missing.
async fn urgent_first(urgent: &mut Stream, other: &mut Stream) {
    let (first, second) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let (whole, rest) = (download(urgent, &first), download(other, &second));
    tokio::pin!(whole, rest);
    soon("both", async {
        tokio::select! {
            () = &mut whole => assert!(second.get() < LARGE / 2, "of the other: {} of {LARGE}", second.get()),
            () = &mut rest => panic!("the other was first; of the urgent one: {}", first.get()),
        }
        rest.await;
    })
    .await;
}

#[tokio::test]
#[ignore = "which response leads depends on how fast the VM delivers; wants a quiet machine"]
async fn rfc9218_10_the_urgent_response_is_sent_first() {
    let scene = narrow().await;
    let mut other = scene.client.request(Head::get("/large").field("priority", "u=7").frame()).await;
    scene.vm.saw("the other", |_| true).await;
    let mut urgent = scene.client.request(Head::get("/large").field("priority", "u=0").frame()).await;
    urgent_first(&mut urgent, &mut other).await;
}

#[tokio::test]
#[ignore = "which response leads depends on how fast the VM delivers; wants a quiet machine"]
async fn rfc9218_4_1_the_default_urgency_is_three() {
    let scene = narrow().await;
    let mut other = scene.client.request(Head::get("/large").field("priority", "u=4").frame()).await;
    scene.vm.saw("the other", |_| true).await;
    let mut urgent = scene.client.request(Head::get("/large").frame()).await;
    urgent_first(&mut urgent, &mut other).await;
}

#[tokio::test]
#[ignore = "which response leads depends on how fast the VM delivers; wants a quiet machine"]
async fn rfc9218_7_an_update_before_the_stream_is_open_is_kept() {
    let mut scene = narrow().await;
    scene.say([update(0, "u=7"), update(4, "u=0")].concat()).await;
    // It says the opposite, and the update wins (section 7).
    let mut other = scene.client.request(Head::get("/large").field("priority", "u=0").frame()).await;
    scene.vm.saw("the other", |_| true).await;
    let mut urgent = scene.client.request(Head::get("/large").field("priority", "u=7").frame()).await;
    urgent_first(&mut urgent, &mut other).await;
}

#[tokio::test]
#[ignore = "which response leads depends on how fast the VM delivers; wants a quiet machine"]
async fn rfc9218_6_a_response_under_way_is_reprioritised() {
    let mut scene = narrow().await;
    let mut other = scene.client.request(Head::get("/large").field("priority", "u=3").frame()).await;
    scene.vm.saw("the other", |_| true).await;
    let mut urgent = scene.client.request(Head::get("/large").field("priority", "u=5").frame()).await;
    scene.say([update(urgent.id(), "u=1"), update(other.id(), "u=6")].concat()).await;
    urgent_first(&mut urgent, &mut other).await;
}

/// Section 7.2: servers send none.
#[tokio::test]
async fn rfc9218_7_2_the_gateway_sends_no_updates() {
    let mut scene = scene().await;
    scene.say(update(0, "u=1")).await;
    scene.goes_on().await;
    let seen = scene.client.seen();
    assert!(
        seen.control.iter().all(|f| !matches!(f.kind, PRIORITY_UPDATE | PRIORITY_UPDATE_PUSH)),
        "{seen:?}"
    );
}
