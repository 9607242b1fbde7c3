//! RFC 9220: WebSocket by extended CONNECT, to a VM over HTTP/1.1. Where it says nothing, RFC 8441 does.

use foregate_tests::{
    Delivery, Fields, OriginBuilder, gateway,
    http3::{
        Ended, Head, Outcome, Stream,
        code::*,
        frame::{DATA, GOAWAY, data, frame, frame_head, grease, id_frame},
    },
    origin,
};

use crate::scene::{Scene, greased, malformed, soon, until};

fn connect(path: &str) -> Head {
    Head::empty()
        .field(":method", "CONNECT")
        .field(":protocol", "websocket")
        .field(":scheme", "https")
        .field(":path", path)
        .field(":authority", "shop.test")
        .field("sec-websocket-version", "13")
        .field("origin", "https://shop.test")
}

/// An echo at `/ws`, and others that do not agree to it.
fn vm() -> OriginBuilder {
    origin()
        .on("/ws", |call| Box::pin(call.websocket()))
        .on("/refused", |call| Box::pin(async move { call.reply(403, &Fields::new(), "not you").await }))
        .on("/ordinary", |call| Box::pin(async move { call.reply(200, &Fields::new(), "a page").await }))
        .on("/dies", |call| Box::pin(async move { call.die() }))
}

async fn scene() -> Scene {
    Scene::of(vm(), gateway()).await
}

/// A WebSocket text frame of a client; the mask is zero, so that it can be read here.
fn text(payload: &str) -> Vec<u8> {
    assert!(payload.len() < 126);
    [&[0x81, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload.as_bytes()].concat()
}

/// The echo of it.
fn echo(payload: &str) -> Vec<u8> {
    [&[0x81, payload.len() as u8], payload.as_bytes()].concat()
}

/// An open socket, after its 200.
async fn open(scene: &Scene) -> Stream {
    let mut stream = scene.client.begin(connect("/ws?room=1").frame()).await;
    assert_eq!(soon("an answer to CONNECT", stream.head()).await.0, 200);
    stream
}

async fn echoes(stream: &mut Stream, payload: &str) {
    stream.write(data(text(payload))).await;
    assert_eq!(soon("an echo", stream.body(payload.len() + 2)).await, echo(payload));
}

async fn over_at_the_vm(scene: &Scene) {
    until("the end at the VM", || {
        let socket = scene.vm.requests().into_iter().find(|r| r.target.starts_with("/ws"))?;
        (socket.delivery != Delivery::Reading).then_some(())
    })
    .await;
}

/// RFC 8441, section 5: what RFC 6455 does with fields of HTTP/1.1 stays out of the stream.
#[tokio::test]
async fn rfc9220_3_a_socket_is_opened_with_200() {
    let scene = scene().await;
    let head = connect("/ws?room=1").field("sec-websocket-protocol", "chat");
    let mut stream = scene.client.begin(head.frame()).await;
    let (status, fields) = soon("an answer to CONNECT", stream.head()).await;
    assert_eq!((status, fields.get("sec-websocket-protocol")), (200, Some("chat")));
    for absent in ["sec-websocket-accept", "content-length"] {
        assert!(!fields.has(absent), "{fields:?}");
    }
    echoes(&mut stream, "Hello").await;
}

/// RFC 8441, section 5, in the other direction: the VM sees RFC 6455's handshake.
#[tokio::test]
async fn rfc9220_3_the_vm_sees_an_upgrade() {
    let scene = scene().await;
    let mut stream = open(&scene).await;
    echoes(&mut stream, "Hello").await;
    let seen = scene.vm.only();
    let place = format!("{:?}", seen.fields);
    assert_eq!(
        (seen.method.as_str(), seen.target.as_str(), seen.host.as_str()),
        ("GET", "/ws?room=1", "shop.test")
    );
    assert!(
        seen.fields.lists("connection", "upgrade") && seen.fields.lists("upgrade", "websocket"),
        "{place}"
    );
    assert_eq!(seen.fields.all("sec-websocket-version"), ["13"], "{place}");
    assert_eq!(seen.fields.all("sec-websocket-key").len(), 1, "{place}");
    assert_eq!(seen.fields.all("origin"), ["https://shop.test"], "{place}");
}

#[tokio::test]
async fn rfc9220_3_bytes_are_a_stream_however_they_are_framed() {
    let scene = scene().await;
    let mut stream = open(&scene).await;
    let message = text("cut into pieces");
    let (front, back) = message.split_at(3);
    stream.write([data(""), data(front), greased(0), data(""), data(back)].concat()).await;
    assert_eq!(soon("an echo", stream.body(17)).await, echo("cut into pieces"));
    stream.write(data([text("two"), text("in one")].concat())).await;
    assert_eq!(soon("both", stream.body(13)).await, [echo("two"), echo("in one")].concat());
}

#[tokio::test]
async fn rfc9220_3_a_large_message_passes() {
    let scene = scene().await;
    let mut stream = open(&scene).await;
    let size: usize = 2 << 20;
    let mut head = vec![0x82, 0xff];
    head.extend((size as u64).to_be_bytes());
    head.extend([0; 4]);
    let Stream { send, frames } = &mut stream;
    let sending = async {
        send.write_all(&data(head)).await.unwrap();
        for _ in 0..size >> 14 {
            send.write_all(&data(vec![b'x'; 1 << 14])).await.unwrap();
        }
    };
    let receiving = async {
        let mut length = 0;
        while length < size + 10 {
            let frame = frames.next().await.unwrap().expect("more");
            assert_eq!(frame.kind, DATA);
            length += frame.payload.len();
        }
        assert_eq!(length, size + 10);
    };
    soon("a large message there and back", async { tokio::join!(sending, receiving) }).await;
}

/// What comes before the 200 is not lost.
#[tokio::test]
async fn rfc9220_3_data_sent_with_the_connect_arrives() {
    let scene = scene().await;
    let mut stream = scene.client.begin(connect("/ws").and(data(text("early")))).await;
    assert_eq!(soon("an answer to CONNECT", stream.head()).await.0, 200);
    assert_eq!(soon("an echo", stream.body(7)).await, echo("early"));
}

/// RFC 9114, section 4.4: FIN on the stream is FIN on the VM's connection, and the other way round.
#[tokio::test]
async fn rfc9220_3_the_clients_fin_ends_it_at_the_vm() {
    let scene = scene().await;
    let mut stream = open(&scene).await;
    echoes(&mut stream, "Hello").await;
    stream.finish(b"").await;
    over_at_the_vm(&scene).await;
    while let Some(frame) = soon("the FIN", stream.frames.next()).await.unwrap() {
        assert_eq!(frame.kind, DATA, "{frame:?}");
    }
    scene.goes_on().await;
}

#[tokio::test]
async fn rfc9220_3_the_vms_close_ends_the_stream_with_a_fin() {
    let scene = scene().await;
    let mut stream = open(&scene).await;
    stream.write(data(text("bye"))).await;
    // Its close frame, whole.
    assert_eq!(soon("a close frame", stream.body(2)).await[0], 0x88);
    // The client's own, after which the VM closes.
    stream.write(data([0x88, 0x80, 0, 0, 0, 0])).await;
    over_at_the_vm(&scene).await;
    let end = soon("the end", stream.frames.next()).await;
    assert_eq!(end, Ok(None));
    scene.goes_on().await;
}

/// RFC 9114, section 4.4: a stream that is reset closes the VM's connection.
#[tokio::test]
async fn rfc9220_3_the_clients_reset_ends_it_at_the_vm() {
    let scene = scene().await;
    let mut stream = open(&scene).await;
    echoes(&mut stream, "Hello").await;
    stream.reset(H3_REQUEST_CANCELLED);
    over_at_the_vm(&scene).await;
    // Both directions are cancelled; at the latest now, and not by a FIN that promises a clean end.
    let end = soon("the end", stream.frames.next()).await;
    assert!(matches!(end, Err(Ended::Reset(_)) | Ok(None)), "{end:?}");
    scene.goes_on().await;
}

#[tokio::test]
async fn rfc9220_3_stop_sending_ends_it_at_the_vm() {
    let scene = scene().await;
    let mut stream = open(&scene).await;
    echoes(&mut stream, "Hello").await;
    stream.stop(H3_REQUEST_CANCELLED);
    over_at_the_vm(&scene).await;
    scene.goes_on().await;
}

/// A VM that breaks off is no clean end.
#[tokio::test]
async fn rfc9220_3_a_vm_that_dies_before_it_answers() {
    let scene = scene().await;
    let mut stream = scene.client.begin(connect("/dies").frame()).await;
    assert_eq!(soon("an answer", stream.answer()).await.status, 502);
    scene.goes_on().await;
}

#[tokio::test]
async fn rfc9220_3_a_refusal_of_the_vm_passes() {
    let scene = scene().await;
    let mut stream = scene.client.begin(connect("/refused").frame()).await;
    let answer = soon("an answer", stream.answer()).await;
    assert_eq!(
        (answer.status, &answer.body[..], answer.fields.get("x-vm")),
        (403, &b"not you"[..], Some("vm"))
    );
    scene.goes_on().await;
}

/// A VM that answers with 200 has not agreed to anything: towards the client that would be a tunnel.
#[tokio::test]
async fn rfc9220_3_a_page_of_the_vm_is_no_agreement() {
    let scene = scene().await;
    let mut stream = scene.client.begin(connect("/ordinary").frame()).await;
    let answer = soon("an answer", stream.answer()).await;
    assert!(!(200..300).contains(&answer.status), "{answer:?}");
    scene.goes_on().await;
}

/// RFC 9220, section 3: a protocol that is not supported is answered with 501.
#[tokio::test]
async fn rfc9220_3_another_protocol() {
    for protocol in ["connect-udp", "webtransport", "websockets", "h2c"] {
        let scene = scene().await;
        let mut stream = scene.client.begin(connect("/ws").with(":protocol", protocol).frame()).await;
        assert_eq!(soon("an answer", stream.answer()).await.status, 501, "{protocol}");
        assert!(scene.vm.requests().is_empty());
        scene.goes_on().await;
    }
}

cases! { malformed:
    rfc8441_4_protocol_with_get => connect("/ws").with(":method", "GET");
    rfc8441_4_protocol_with_post => connect("/ws").with(":method", "POST");
    rfc8441_4_protocol_without_a_method => connect("/ws").without(":method");
    rfc8441_4_extended_connect_without_a_scheme => connect("/ws").without(":scheme");
    rfc8441_4_extended_connect_without_a_path => connect("/ws").without(":path");
    rfc8441_4_extended_connect_without_an_authority => connect("/ws").without(":authority");
    rfc8441_4_extended_connect_without_any_of_them =>
        connect("/ws").without(":scheme").without(":path").without(":authority");
    rfc8441_4_extended_connect_with_an_empty_path => connect("");
    rfc8441_4_protocol_twice => connect("/ws").first(":protocol", "websocket");
    rfc8441_4_protocol_after_a_field => connect("/ws").without(":protocol").field(":protocol", "websocket");
    rfc8441_4_authority_and_host_differ => connect("/ws").field("host", "evil.test");
    rfc8441_5_upgrade_in_an_extended_connect => connect("/ws").field("upgrade", "websocket");
    rfc8441_5_connection_in_an_extended_connect => connect("/ws").field("connection", "upgrade");
}

/// No token is empty; whether that is malformed or merely unknown is left open.
#[tokio::test]
async fn rfc8441_4_an_empty_protocol() {
    let scene = scene().await;
    let mut stream = scene.client.request(connect("/ws").with(":protocol", "").frame()).await;
    match soon("an end", stream.outcome()).await {
        Outcome::Answered(answer) => assert!(matches!(answer.status, 400 | 501), "{answer:?}"),
        Outcome::Reset { code, .. } => assert_eq!(code, H3_MESSAGE_ERROR, "{code:#x}"),
        other => panic!("{other:?}"),
    }
    assert!(scene.vm.requests().is_empty());
    scene.goes_on().await;
}

/// RFC 9114, section 4.4: after the 200 only DATA may come, and what is unknown.
async fn in_a_tunnel(code: u64, bytes: Vec<u8>, fin: bool) {
    let scene = scene().await;
    let mut stream = open(&scene).await;
    stream.write(bytes).await;
    if fin {
        let _ = stream.send.finish();
    }
    scene.connection_error(code).await;
    over_at_the_vm(&scene).await;
}

cases! { in_a_tunnel:
    rfc9114_4_4_headers_in_a_tunnel => H3_FRAME_UNEXPECTED, Head::empty().field("x-sum", "5").frame(), false;
    rfc9114_4_4_settings_in_a_tunnel => H3_FRAME_UNEXPECTED, frame(0x04, b""), false;
    rfc9114_4_4_goaway_in_a_tunnel => H3_FRAME_UNEXPECTED, id_frame(GOAWAY, 0), false;
    rfc9114_4_4_http2_ping_in_a_tunnel => H3_FRAME_UNEXPECTED, frame(0x06, &[0; 8]), false;
    rfc9114_7_1_fin_within_data_of_a_tunnel => H3_FRAME_ERROR, frame_head(DATA, 50), true;
    rfc9114_7_1_fin_within_an_unknown_frame_of_a_tunnel => H3_FRAME_ERROR, frame_head(grease(1), 50), true;
}

#[tokio::test]
async fn rfc9220_3_ordinary_requests_beside_a_socket_go_on() {
    let scene = scene().await;
    let mut stream = open(&scene).await;
    for _ in 0..5 {
        scene.goes_on().await;
        echoes(&mut stream, "still there").await;
    }
}

/// RFC 9114, section 5.2: an open socket is a request under way; it goes on until the time is over.
#[tokio::test]
async fn rfc9114_5_2_a_socket_outlives_goaway() {
    let gw = gateway().toml("[server.timeouts]\ndrain = \"2s\"\n");
    let mut scene = Scene::of(vm(), gw).await;
    let mut stream = open(&scene).await;
    scene.gw.terminate();
    until("GOAWAY", || scene.client.seen().control.iter().any(|f| f.kind == GOAWAY).then_some(())).await;
    echoes(&mut stream, "still there").await;
    scene.gw.ended().await;
    over_at_the_vm(&scene).await;
}
