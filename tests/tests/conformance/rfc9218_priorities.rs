//! RFC 9218: priorities, by field and by PRIORITY_UPDATE.

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use foregate_tests::{
    OriginBuilder, Relay, Weather, gateway,
    http3::{
        Connection, Head, Options, Outcome, Stream,
        code::*,
        frame::{
            DATA, MAX, MAX_PUSH_ID, PRIORITY_UPDATE, PRIORITY_UPDATE_PUSH, frame, id_frame, priority_update,
        },
    },
    origin,
};

use tokio::sync::Notify;

use crate::scene::{
    Scene, ignored_on_control_stream, on_control_stream, on_request_stream, scene, soon, until,
};

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
/// Less than half of what the gateway hands QUIC before its client takes anything.
const LARGE: usize = 1 << 20;

/// A client that takes little at a time, and a VM that holds its responses back until it is told.
struct Narrow {
    scene: Scene,
    told: Arc<Notify>,
    delivered: Arc<AtomicUsize>,
    relay: Option<Relay>,
}

/// It allows little to be on its way.
async fn narrow() -> Narrow {
    narrow_with(None).await
}

/// The VM says `priority` of the second response, if there is one to say.
async fn narrow_with(priority: Option<&'static str>) -> Narrow {
    let (vm, told, delivered) = holding(priority);
    let options = Options { window: 64 << 10, ..Options::default() };
    let mut scene = Scene::bare(vm, gateway(), options).await;
    scene.control = Some(scene.client.control().await);
    Narrow { scene, told, delivered, relay: None }
}

/// It would take everything, but the way to it is long.
async fn far() -> Narrow {
    let (vm, told, delivered) = holding(None);
    let vm = vm.start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    let mut dial = gw.dial("shop.test");
    let weather = Weather { delay: Duration::from_millis(40), ..Weather::default() };
    let relay = Relay::through(weather, dial.https).await;
    dial.https = relay.address();
    let client = soon("a handshake", Connection::connect(&dial, Options::default())).await.unwrap();
    let control = Some(client.control().await);
    Narrow { scene: Scene { vm, gw, client, control }, told, delivered, relay: Some(relay) }
}

fn holding(priority: Option<&'static str>) -> (OriginBuilder, Arc<Notify>, Arc<AtomicUsize>) {
    let (told, delivered) = (Arc::<Notify>::default(), Arc::<AtomicUsize>::default());
    let (waiting, count) = (told.clone(), delivered.clone());
    let vm = origin().on("/large", move |call| {
        let (told, delivered) = (waiting.clone(), count.clone());
        let said = priority.filter(|_| call.request.target.ends_with("second"));
        Box::pin(async move {
            told.notified().await;
            let mut fields = crate::scene::none();
            if let Some(priority) = said {
                fields = fields.with("priority", priority);
            }
            call.start(200, &fields, Some(LARGE as u64)).await;
            call.write(Bytes::from(vec![b'x'; LARGE])).await.unwrap();
            call.finish(&crate::scene::none()).await;
            delivered.fetch_add(1, Ordering::Relaxed);
        })
    });
    (vm, told, delivered)
}

impl Narrow {
    /// Asks for two large responses, with these priorities.
    async fn ask(&self, first: Option<&str>, second: Option<&str>) -> [Stream; 2] {
        let ask = |name: &str, priority: Option<&str>| {
            let head = Head::get(&format!("/large?{name}"));
            priority.map_or(head.clone(), |value| head.field("priority", value)).frame()
        };
        let first = self.scene.client.request(ask("first", first)).await;
        let second = self.scene.client.request(ask("second", second)).await;
        [first, second]
    }

    /// Both responses are with the gateway before anything of them is read: what comes then is its choice. When the
    /// second is whole, much of the first must be missing. Not all of it: the client's window may have been full of it,
    /// and it may go on where the gateway has to wait for more of the second.
    async fn second_comes_first(self, [mut first, mut second]: [Stream; 2]) {
        let large =
            || self.scene.vm.requests().iter().filter(|seen| seen.target.starts_with("/large")).count();
        until("both at the VM", || (large() == 2).then_some(())).await;
        self.told.notify_waiters();
        until("both responses", || (self.delivered.load(Ordering::Relaxed) == 2).then_some(())).await;
        // What the VM has written may still be in a socket's buffer.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let (of_first, of_second) = (Cell::new(0), Cell::new(0));
        let (rest, whole) = (download(&mut first, &of_first), download(&mut second, &of_second));
        tokio::pin!(rest, whole);
        soon("both", async {
            tokio::select! {
                () = &mut whole => assert!(of_first.get() < LARGE / 4 * 3, "of the first: {}", of_first.get()),
                () = &mut rest => panic!("the first came first; of the second: {}", of_second.get()),
            }
            rest.await;
        })
        .await;
        drop(self.relay);
    }
}

async fn download(stream: &mut Stream, count: &Cell<usize>) {
    assert_eq!(stream.head().await.0, 200);
    while let Some(frame) = stream.frames.next().await.unwrap() {
        assert_eq!(frame.kind, DATA);
        count.set(count.get() + frame.payload.len());
    }
    assert_eq!(count.get(), LARGE);
}

#[tokio::test]
async fn rfc9218_10_the_urgent_response_is_sent_first() {
    let narrow = narrow().await;
    let streams = narrow.ask(Some("u=7"), Some("u=0")).await;
    narrow.second_comes_first(streams).await;
}

/// What QUIC has been given and not sent yet is overtaken too.
#[tokio::test]
async fn rfc9218_10_the_urgent_response_is_sent_first_on_a_long_way() {
    let far = far().await;
    let streams = far.ask(Some("u=7"), Some("u=0")).await;
    far.second_comes_first(streams).await;
}

#[tokio::test]
async fn rfc9218_4_1_the_default_urgency_is_three() {
    let narrow = narrow().await;
    let streams = narrow.ask(Some("u=4"), None).await;
    narrow.second_comes_first(streams).await;
}

#[tokio::test]
async fn rfc9218_7_an_update_before_the_stream_is_open_is_kept() {
    let mut narrow = narrow().await;
    narrow.scene.say([update(0, "u=7"), update(4, "u=0")].concat()).await;
    // The requests say the opposite, and the update wins (section 7).
    let streams = narrow.ask(Some("u=0"), Some("u=7")).await;
    narrow.second_comes_first(streams).await;
}

#[tokio::test]
async fn rfc9218_6_a_response_under_way_is_reprioritised() {
    let mut narrow = narrow().await;
    let streams = narrow.ask(Some("u=3"), Some("u=5")).await;
    let [first, second] = &streams;
    narrow.scene.say([update(second.id(), "u=1"), update(first.id(), "u=6")].concat()).await;
    narrow.scene.goes_on().await;
    narrow.second_comes_first(streams).await;
}

/// Section 8: the VM knows what the client cannot.
#[tokio::test]
async fn rfc9218_8_what_the_vm_says_stands_above_what_the_client_asked() {
    let narrow = narrow_with(Some("u=0")).await;
    let streams = narrow.ask(Some("u=2"), Some("u=6")).await;
    narrow.second_comes_first(streams).await;
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
