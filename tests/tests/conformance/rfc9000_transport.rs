//! RFC 9000, the server's side of QUIC, as far as it shows on a socket and through quinn.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
    time::Duration,
};

use foregate_tests::{
    Delivery, Fields, OriginBuilder, gateway,
    http3::{
        Connection, Head, Options,
        code::{H3_NO_ERROR, H3_REQUEST_CANCELLED},
        frame::{data, frame_head, grease, varint},
    },
    origin,
};

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
        stream.reset(H3_REQUEST_CANCELLED);
        stream.stop(H3_REQUEST_CANCELLED);
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
    first.reset(H3_REQUEST_CANCELLED);
    first.stop(H3_REQUEST_CANCELLED);
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

/// A VM that does not read.
fn unreading() -> OriginBuilder {
    origin().on("/held", |call| {
        Box::pin(async move {
            let _connection = call;
            std::future::pending().await
        })
    })
}

/// Section 4.1: so do uploads that are reset before anybody has read them.
#[tokio::test]
async fn rfc9000_4_1_cancelled_uploads_give_back_their_credit() {
    let scene = Scene::of(unreading(), gateway()).await;
    for _ in 0..24 {
        let mut upload = scene.client.begin(Head::post("/held").frame()).await;
        let body = data(vec![b'x'; 900_000]);
        let filling = upload.send.write_all(&body);
        let _ = tokio::time::timeout(Duration::from_millis(100), filling).await;
        upload.reset(H3_REQUEST_CANCELLED);
        upload.stop(H3_REQUEST_CANCELLED);
    }
    let seen = scene.ask(Head::post("/").and(data(vec![b'x'; 500_000]))).await;
    assert_eq!(seen.status, 200);
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
    const WHOLE: u64 = 64 << 20;
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let vm = origin().on("/large", move |call| {
        let count = count.clone();
        Box::pin(async move {
            call.start(200, &Fields::new(), Some(WHOLE)).await;
            while count.load(SeqCst) < WHOLE && call.write(vec![b'x'; 1 << 16].into()).await.is_ok() {
                count.fetch_add(1 << 16, SeqCst);
            }
        })
    });
    let options = Options { window: 128 << 10, ..Options::default() };
    let mut scene = Scene::bare(vm, gateway(), options).await;
    scene.control = Some(scene.client.control().await);
    let mut stream = scene.client.request(Head::get("/large").frame()).await;
    assert_eq!(soon("a head", stream.head()).await.0, 200);
    // Until the VM gets rid of nothing more.
    let mut before = u64::MAX;
    while before != written.load(SeqCst) {
        before = written.load(SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(before < 24 << 20, "{before} bytes were taken from the VM for a client that does not read");
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

/// RFC 9001, section 6: keys may change at any time.
#[tokio::test]
async fn rfc9001_6_a_client_that_updates_its_keys_is_served() {
    let scene = scene().await;
    let mut upload = scene.client.begin(Head::post("/").and(data("he"))).await;
    scene.vm.saw("its beginning", |r| r.length == 2).await;
    for _ in 0..3 {
        scene.client.quic.force_key_update();
        scene.goes_on().await;
    }
    upload.finish(data("llo")).await;
    assert_eq!(soon("an answer", upload.answer()).await.status, 200);
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
