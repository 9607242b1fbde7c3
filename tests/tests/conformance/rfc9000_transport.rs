//! RFC 9000, the server's side of QUIC, as far as it shows on a socket and through quinn.

use std::{net::SocketAddr, time::Duration};

use foregate_tests::{
    Delivery, Fields, Gateway, OriginBuilder, gateway,
    http3::{
        Connection, Head, Options,
        code::H3_NO_ERROR,
        frame::{data, frame_head, grease, varint},
    },
    origin,
};
use tokio::net::UdpSocket;

use crate::scene::{Scene, scene, soon, until};

/// Section 4.6: credit for streams is renewed as they end, far beyond the limit on concurrent ones.
#[tokio::test]
async fn rfc9000_4_6_credit_for_requests_is_renewed() {
    let scene = Scene::of(origin(), gateway().toml("[server.limits]\nstreams_per_connection = 4\n")).await;
    for _ in 0..40 {
        scene.goes_on().await;
    }
    // Those that end in an error give theirs back too.
    for _ in 0..20 {
        let mut stream = soon("a stream", scene.client.begin(Head::get("/").without(":path").frame())).await;
        let _ = soon("an end", stream.outcome()).await;
    }
    for _ in 0..20 {
        let mut stream = soon("a stream", scene.client.begin(&Head::get("/").frame()[..7])).await;
        stream.reset(0x10c);
        stream.stop(0x10c);
    }
    scene.goes_on().await;
}

/// A request beyond the limit waits at the client and is served when there is room.
#[tokio::test]
async fn rfc9000_4_6_requests_beyond_the_limit_wait() {
    let vm = origin().on("/held", |call| Box::pin(async move { call.gone().await }));
    let scene = Scene::of(vm, gateway().toml("[server.limits]\nstreams_per_connection = 3\n")).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(scene.client.begin(Head::get("/held").frame()).await);
    }
    until("all are at the VM", || (scene.vm.requests().len() == 3).then_some(())).await;
    let fourth = scene.client.quic.open_bi();
    tokio::pin!(fourth);
    assert!(tokio::time::timeout(Duration::from_millis(200), &mut fourth).await.is_err(), "a fourth at once");
    let mut first = held.remove(0);
    first.reset(0x10c);
    first.stop(0x10c);
    soon("room for the fourth", fourth).await.unwrap();
}

/// Section 4.6: so is that for unidirectional streams, of whatever type they are.
#[tokio::test]
async fn rfc9000_4_6_credit_for_unidirectional_streams_is_renewed() {
    let scene = scene().await;
    for n in 0..60 {
        let mut stream = soon("a stream", scene.client.typed(grease(n), b"to be ignored")).await;
        if n % 2 == 0 {
            let _ = stream.finish();
        } else {
            let _ = stream.reset(0x100_u32.into());
        }
    }
    scene.goes_on().await;
    scene.unharmed();
}

/// Section 4.1: what is discarded gives its credit back, or other requests would starve.
#[tokio::test]
async fn rfc9000_4_1_discarded_bytes_give_back_their_credit() {
    let scene = scene().await;
    let mut large = scene.client.begin(frame_head(grease(2), 1 << 40)).await;
    let sending = async {
        for _ in 0..24 {
            large.write(vec![0; 1 << 20]).await;
        }
    };
    soon("24 MiB to be ignored", sending).await;
    scene.goes_on().await;
}

/// Also that of requests which are reset before anybody has read them.
#[tokio::test]
async fn rfc9000_4_1_cancelled_uploads_give_back_their_credit() {
    let vm = origin().on("/held", |call| Box::pin(async move { call.gone().await }));
    let scene = Scene::of(vm, gateway()).await;
    for _ in 0..24 {
        let mut upload = scene.client.begin(Head::post("/held").frame()).await;
        let filling = upload.send.write_all(&[0; 900_000]);
        let _ = tokio::time::timeout(Duration::from_millis(100), filling).await;
        upload.reset(0x10c);
        upload.stop(0x10c);
    }
    let seen = scene.ask(Head::post("/").and(data(vec![b'x'; 500_000]))).await;
    assert_eq!(seen.status, 200);
}

/// A VM that does not read.
fn unreading() -> OriginBuilder {
    origin().on("/held", |call| {
        Box::pin(async move {
            let _connection = call;
            std::future::pending().await
        })
    })
}

/// Section 4.1: a VM that does not read stops its client, and nobody else.
#[tokio::test]
async fn rfc9000_4_1_an_upload_waits_for_the_vm() {
    let scene = Scene::of(unreading(), gateway()).await;
    let mut upload = scene.client.begin(Head::post("/held").frame()).await;
    let mut sent = 0;
    let piece = data(vec![0; 1 << 16]);
    while sent < 64 << 20 {
        let writing = tokio::time::timeout(Duration::from_secs(1), upload.send.write_all(&piece));
        if writing.await.is_err() {
            break;
        }
        sent += piece.len();
    }
    // Windows, and the buffers of the sockets to the VM.
    assert!(sent < 24 << 20, "{sent} bytes went to a VM that reads none");
    scene.goes_on().await;
}

/// Section 4.1: so does a client that does not read stop its VM.
#[tokio::test]
async fn rfc9000_4_1_a_response_waits_for_the_client() {
    let vm = origin().on("/large", |call| {
        Box::pin(async move {
            call.start(200, &Fields::new(), Some(64 << 20)).await;
            let _ = call.write_pattern(64 << 20).await;
        })
    });
    let options = Options { window: 128 << 10, ..Options::default() };
    let mut scene = Scene::bare(vm, gateway(), options).await;
    scene.control = Some(scene.client.control().await);
    scene.gw.process.reset_peak();
    let before = scene.gw.process.memory("VmRSS");
    let mut stream = scene.client.request(Head::get("/large").frame()).await;
    assert_eq!(soon("a head", stream.head()).await.0, 200);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let grown = scene.gw.process.memory("VmHWM").saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes are held for a client that does not read");
}

/// Section 9: a client whose address changes, as behind a NAT that forgot, keeps its connection.
#[tokio::test]
async fn rfc9000_9_a_client_that_changes_its_port_is_served() {
    let scene = scene().await;
    let mut upload = scene.client.begin(Head::post("/").and(data("he"))).await;
    scene.vm.saw("its beginning", |r| r.length == 2).await;
    for _ in 0..3 {
        scene.client.endpoint.rebind(std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).unwrap();
        scene.goes_on().await;
    }
    upload.finish(data("llo")).await;
    assert_eq!(soon("an answer", upload.answer()).await.status, 200);
}

/// Section 8.1.2: a client that has to prove its address is served then.
#[tokio::test]
async fn rfc9000_8_1_2_a_client_that_is_asked_to_retry_is_served() {
    let scene = Scene::of(origin(), gateway().toml("[http3]\naddress_validation = \"always\"\n")).await;
    scene.goes_on().await;
}

/// Section 10.2: a client's CONNECTION_CLOSE is the end of everything, at once.
#[tokio::test]
async fn rfc9000_10_2_a_close_within_an_upload_breaks_it_off() {
    let scene = scene().await;
    let _upload = scene.client.begin(Head::post("/").and(data("he"))).await;
    scene.vm.saw("its beginning", |r| r.length == 2).await;
    scene.client.close();
    until("the end at the VM", || matches!(scene.vm.only().delivery, Delivery::Broken(_)).then_some(()))
        .await;
    scene.others_are_served().await;
}

/// RFC 9114, section 5.1: a connection without requests ends some time, and without an error.
#[tokio::test]
async fn rfc9114_5_1_an_idle_connection_ends_without_error() {
    let scene = Scene::of(origin(), gateway().toml("[server.timeouts]\nkeep_alive = \"1s\"\n")).await;
    scene.goes_on().await;
    match soon("the end", scene.client.quic.closed()).await {
        quinn::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), H3_NO_ERROR, "{close:?}");
        }
        // Silence is as good: section 10.1 of RFC 9000.
        quinn::ConnectionError::TimedOut => {}
        other => panic!("{other:?}"),
    }
}

/// RFC 9114, section 5.1: it is not idle while a request is under way, however quiet.
#[tokio::test]
async fn rfc9114_5_1_a_quiet_request_keeps_its_connection() {
    let vm = origin().on("/slow", |call| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            call.greet().await;
        })
    });
    let scene = Scene::of(vm, gateway().toml("[server.timeouts]\nkeep_alive = \"1s\"\n")).await;
    assert_eq!(scene.ask(Head::get("/slow").frame()).await.status, 200);
}

/// A datagram with a long header, as long as a first one must be, or shorter.
fn long_header(version: u32, length: usize) -> Vec<u8> {
    let mut packet = vec![0xc3];
    packet.extend(version.to_be_bytes());
    packet.extend([8, 1, 2, 3, 4, 5, 6, 7, 8, 5, 9, 9, 9, 9, 9]);
    packet.resize(length, 0);
    packet
}

/// Sends a datagram and listens for a moment.
async fn reply_to(gw: &Gateway, packet: &[u8], wait: Duration) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to: SocketAddr = gw.dial("shop.test").https;
    socket.send_to(packet, to).await.unwrap();
    let mut buffer = vec![0; 2_048];
    let (length, from) = tokio::time::timeout(wait, socket.recv_from(&mut buffer)).await.ok()?.unwrap();
    assert_eq!(from, to);
    buffer.truncate(length);
    Some(buffer)
}

/// Section 6.1 and 17.2.1.
#[tokio::test]
async fn rfc9000_6_1_an_unknown_version_is_answered_with_those_there_are() {
    let scene = scene().await;
    let packet = long_header(0x1a2a_3a4a, 1_200);
    let reply = reply_to(&scene.gw, &packet, Duration::from_secs(5)).await.expect("Version Negotiation");
    assert_eq!(reply[0] & 0x80, 0x80, "a long header");
    assert_eq!(reply[1..5], [0; 4], "version 0");
    // The ids change places.
    assert_eq!(reply[5..20], [5, 9, 9, 9, 9, 9, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let versions: Vec<u32> =
        reply[20..].chunks(4).map(|v| u32::from_be_bytes(v.try_into().unwrap())).collect();
    assert!(versions.contains(&1), "{versions:x?}");
    assert!(!versions.contains(&0x1a2a_3a4a), "{versions:x?}");
}

/// Silence on the wire cannot be awaited, only given a chance to be broken.
async fn unanswered(packet: Vec<u8>) {
    let scene = scene().await;
    let reply = reply_to(&scene.gw, &packet, Duration::from_millis(300)).await;
    assert_eq!(reply, None);
    scene.others_are_served().await;
}

cases! { unanswered:
    // Smaller than any first datagram may be: an answer would help whoever forges addresses.
    rfc9000_5_2_2_a_small_datagram_of_an_unknown_version => long_header(0x1a2a_3a4a, 600);
    rfc9000_6_1_version_negotiation_is_not_answered => long_header(0, 1_200);
    rfc9000_14_1_a_small_first_datagram_is_discarded => long_header(1, 1_199);
    rfc9000_17_2_an_empty_datagram => Vec::new();
    rfc9000_17_2_a_header_cut_short => vec![0xc3, 0, 0];
}

/// Section 10.3: a stateless reset is smaller than what it answers, so that two never answer each other.
#[tokio::test]
async fn rfc9000_10_3_a_stateless_reset_is_smaller_than_its_cause() {
    let scene = scene().await;
    for length in [22, 43, 100, 1_200] {
        let mut packet = vec![0x5a; length];
        packet[0] = 0x40;
        if let Some(reply) = reply_to(&scene.gw, &packet, Duration::from_millis(200)).await {
            assert!(reply.len() < length && reply.len() >= 21, "{} bytes for {length}", reply.len());
            assert_eq!(reply[0] & 0xc0, 0x40, "a short header");
        }
    }
    scene.goes_on().await;
}

/// RFC 9000, section 5.2: strangers' noise does not disturb a connection.
#[tokio::test]
async fn rfc9000_5_2_noise_disturbs_nobody() {
    let scene = scene().await;
    let mut upload = scene.client.begin(Head::post("/").and(data("he"))).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for n in 0..200_usize {
        let mut packet: Vec<u8> = (0..n * 7 % 1_400).map(|at| (at * 31 + n) as u8).collect();
        if let Some(first) = packet.first_mut() {
            *first |= 0x40;
        }
        socket.send_to(&packet, scene.gw.dial("shop.test").https).await.unwrap();
    }
    upload.finish(data("llo")).await;
    assert_eq!(soon("an answer", upload.answer()).await.status, 200);
    scene.unharmed();
}

/// Handshakes that lead to nothing, half of them with something under way, leave nothing behind.
#[tokio::test]
async fn rfc9000_10_2_connections_come_and_go() {
    let scene = scene().await;
    for n in 0..30 {
        let client = Connection::connect(&scene.gw.dial("shop.test"), Options::default()).await.unwrap();
        let _control = client.unidirectional(varint(0)).await;
        if n % 3 == 0 {
            let _stream = client.begin(b"\x01").await;
        }
        client.close();
    }
    scene.goes_on().await;
    scene.unharmed();
}
