//! Time limits on both sides: each ends what it is for, in words the version has for it, and nothing else.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use foregate_tests::{
    Body, Delivery, Error, Fields, Gateway, Incoming, Origin, Reader, Version,
    frames::{END_STREAM, GET, HEADERS, frame, opening, request_block},
    gateway, get, origin, parse_response, post, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn start(vm: &Origin, site: &str, rest: &str) -> Gateway {
    let text = format!("[sites.\"shop.test\"]\npool = {:?}\n{site}\n{rest}\n", vm.address());
    gateway().named(&["shop.test"]).toml(&text).start().await
}

/// All versions at once, where each would only wait.
async fn on_all(scenario: impl AsyncFn(Version)) {
    futures_util::future::join_all(Version::ALL.iter().map(|version| scenario(*version))).await;
}

fn took_about(begun: Instant, least: u64) {
    let took = begun.elapsed();
    // The upper end is for a machine that is busy; the lower one for a clock that is coarse.
    assert!(took >= Duration::from_millis(least * 7 / 10) && took < Duration::from_secs(15), "{took:?}");
}

#[tokio::test]
async fn a_vm_that_never_answers_is_504() {
    let vm = origin().on("/silent", |call| Box::pin(call.gone())).start().await;
    let gw = start(&vm, "timeouts = { response = \"400ms\" }", "").await;
    for version in Version::ALL {
        let begun = Instant::now();
        let reply = gw.request(version, get("/silent")).await;
        assert_eq!(reply.status, 504, "{version:?}");
        took_about(begun, 400);
        // The VM is told, and the request is not repeated by default.
        vm.saw("the end", |r| matches!(r.delivery, Delivery::Broken(_))).await;
        assert_eq!(vm.requests().len(), 1, "{version:?}");
        vm.forget();
    }
    gw.stop().await;
}

/// The clock begins with the last byte of the request: a slow upload is no silent VM.
#[tokio::test]
async fn a_slow_upload_is_no_silent_vm() {
    let vm = origin().start().await;
    let gw = start(&vm, "timeouts = { response = \"400ms\" }", "").await;
    on_all(async |version| {
        let client = gw.client(version, "shop.test").await;
        let mut exchange = client.open(&post("/", "").body(Body::Pattern(10))).await.unwrap();
        for _ in 0..10 {
            exchange.up.data(Bytes::from_static(b"x")).await.unwrap();
            // All of them together take longer than the VM may.
            tokio::time::sleep(Duration::from_millis(80)).await;
        }
        // All that was announced has come; the answer may be here before the end is said.
        let _ = exchange.up.finish(&Fields::new()).await;
        assert_eq!(exchange.down.whole().await.unwrap().status, 200, "{version:?}");
    })
    .await;
    gw.stop().await;
}

#[tokio::test]
async fn a_vm_that_pauses_within_its_body_is_cut() {
    let vm = origin()
        .on("/", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), None).await;
                let _ = call.write(Bytes::from_static(b"and then")).await;
                call.gone().await;
            })
        })
        .start()
        .await;
    let gw = start(&vm, "timeouts = { idle = \"400ms\" }", "").await;
    for version in Version::ALL {
        let begun = Instant::now();
        let result = gw.try_request(version, &get("/")).await;
        assert!(matches!(result, Err(Error::Broken(_))), "{version:?}: {result:?}");
        took_about(begun, 400);
        vm.saw("the end", |r| matches!(r.delivery, Delivery::Broken(_))).await;
        vm.forget();
    }
    gw.stop().await;
}

/// Routes have their own: the closest one holds.
#[tokio::test]
async fn a_route_may_be_more_patient() {
    let vm = origin()
        .on("/", |call| {
            Box::pin(async move {
                // Between the two limits.
                tokio::time::sleep(Duration::from_millis(700)).await;
                call.greet().await;
            })
        })
        .start()
        .await;
    let site = "timeouts = { response = \"200ms\" }\nroutes = [{ paths = \"/slow/\", timeouts = { response = \"10s\" } }]";
    let gw = start(&vm, site, "").await;
    on_all(async |version| {
        assert_eq!(gw.request(version, get("/slow/")).await.status, 200, "{version:?}");
        assert_eq!(gw.request(version, get("/")).await.status, 504, "{version:?}");
    })
    .await;
    gw.stop().await;
}

/// A client that stops in the middle of its body is told 408, or cut where the VM has begun to answer.
#[tokio::test]
async fn a_client_that_pauses_within_its_body_is_408() {
    let vm = origin().start().await;
    let gw = start(&vm, "", "[server.timeouts]\nrequest_body = \"400ms\"").await;
    for version in Version::ALL {
        for announced in [true, false] {
            let client = gw.client(version, "shop.test").await;
            let mut upload = post("/", "").body(Body::Pattern(1000));
            upload.announced = announced;
            let begun = Instant::now();
            let mut exchange = client.open(&upload).await.unwrap();
            exchange.up.data(Bytes::from_static(b"and then")).await.unwrap();
            let reply = exchange.down.whole().await.unwrap_or_else(|e| panic!("{version:?}: {e}"));
            assert_eq!(reply.status, 408, "{version:?}");
            took_about(begun, 400);
            // The VM must not take the half for the whole.
            vm.saw("the end", |r| matches!(r.delivery, Delivery::Broken(_))).await;
            vm.forget();
        }
    }
    gw.stop().await;
}

/// Slowloris: a head that comes in drops is not waited for longer than one that comes at once.
#[tokio::test]
async fn a_head_in_drops_is_cut() {
    let vm = origin().start().await;
    let gw = start(&vm, "", "[server.timeouts]\nrequest_head = \"500ms\"").await;
    for version in [Version::H1, Version::H1Tls] {
        let io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
        let (read, mut write) = tokio::io::split(io);
        let begun = Instant::now();
        let dripping = tokio::spawn(async move {
            let mut drops = b"GET / HTTP/1.1\r\nHost: shop.test\r\n".to_vec();
            drops.extend_from_slice(&b"X: y\r\n".repeat(1000));
            for drop in drops {
                if write.write_all(&[drop]).await.is_err() {
                    break;
                }
                // Each drop well within the limit, all of them far beyond it.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        let mut reader = Reader::new(read);
        while within("the cut", reader.fill()).await.is_ok_and(|n| n > 0) {}
        took_about(begun, 500);
        dripping.abort();
    }
    assert!(vm.requests().is_empty());
    gw.stop().await;
}

/// The same on HTTP/2: HEADERS that are never completed by their CONTINUATION.
#[tokio::test]
async fn half_a_head_is_cut_on_http2() {
    let vm = origin().start().await;
    let gw = start(&vm, "", "[server.timeouts]\nrequest_head = \"500ms\"").await;
    for tls in [false, true] {
        let mut io = gw.dial("shop.test").http2(tls).await.unwrap();
        let begun = Instant::now();
        // END_STREAM without END_HEADERS.
        let half = frame(HEADERS, END_STREAM, 1, &request_block(GET, tls, "/", b""));
        let bytes = [opening(), half].concat();
        io.write_all(&bytes).await.unwrap();
        let mut sink = [0; 4096];
        loop {
            match within("the cut", io.read(&mut sink)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
        took_about(begun, 500);
    }
    assert!(vm.requests().is_empty());
    gw.stop().await;
}

/// The same on HTTP/3: a stream that never completes its HEADERS is reset; the connection goes on.
#[tokio::test]
async fn half_a_head_is_reset_on_http3() {
    let vm = origin().start().await;
    let gw = start(&vm, "", "[server.timeouts]\nrequest_head = \"500ms\"").await;
    let client = gw.client(Version::H3, "shop.test").await;
    let (mut send, mut recv) = client.quic().open_bi().await.unwrap();
    let begun = Instant::now();
    // A HEADERS frame of 100 bytes, of which three come.
    send.write_all(&[1, 0x40, 100, 0, 0, 0xd1]).await.unwrap();
    let end = within("a reset", recv.read_to_end(1000)).await;
    assert!(end.is_err(), "{end:?}");
    took_about(begun, 500);
    assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
    gw.stop().await;
}

/// A connection without requests is closed after a while, in good order.
#[tokio::test]
async fn idle_connections_are_closed() {
    let vm = origin().start().await;
    let gw = start(&vm, "", "[server.timeouts]\nkeep_alive = \"500ms\"").await;
    for version in [Version::H1, Version::H1Tls] {
        let io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
        let (read, mut write) = tokio::io::split(io);
        let mut reader = Reader::new(read);
        for _ in 0..2 {
            write.write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await.unwrap();
            let head = reader.head().await.unwrap().unwrap();
            let (status, _, fields) = parse_response(&head).unwrap();
            assert_eq!(status, 200);
            let mut body = Incoming::response("GET", status, &fields).unwrap();
            while reader.data(&mut body).await.unwrap().is_some() {}
        }
        let begun = Instant::now();
        // In silence: a 408 here would be taken for the answer to the next request.
        assert_eq!(within("the close", reader.fill()).await.unwrap_or(0), 0, "{version:?}");
        took_about(begun, 500);
    }
    for version in [Version::H2c, Version::H2, Version::H3] {
        let client = gw.client(version, "shop.test").await;
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
        let begun = Instant::now();
        if version == Version::H3 {
            within("the close", client.quic().closed()).await;
            took_about(begun, 500);
        } else {
            foregate_tests::eventually("GOAWAY", || {
                client
                    .frames()
                    .iter()
                    .any(|f| matches!(f, foregate_tests::FrameSeen::GoAway(_, 0)))
                    .then_some(())
            })
            .await;
            took_about(begun, 500);
        }
    }
    gw.stop().await;
}

/// A busy connection is not idle, however long its request takes.
#[tokio::test]
async fn a_long_request_is_not_idle() {
    let vm = origin()
        .on("/", |call| {
            Box::pin(async move {
                // Longer than every limit on idleness.
                tokio::time::sleep(Duration::from_millis(900)).await;
                call.greet().await;
            })
        })
        .start()
        .await;
    let gw = start(
        &vm,
        "",
        "[server.timeouts]\nkeep_alive = \"400ms\"\nrequest_head = \"400ms\"\nhandshake = \"400ms\"",
    )
    .await;
    on_all(async |version| {
        assert_eq!(gw.request(version, get("/")).await.status, 200, "{version:?}");
    })
    .await;
    gw.stop().await;
}

/// A client that connects to the TLS port and says nothing does not stay.
#[tokio::test]
async fn a_silent_handshake_is_cut() {
    let vm = origin().start().await;
    let gw = start(&vm, "", "[server.timeouts]\nhandshake = \"500ms\"").await;
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", gw.https_port())).await.unwrap();
    let begun = Instant::now();
    stream.write_all(&[0x16, 3, 1]).await.unwrap();
    let mut sink = Vec::new();
    let _ = within("the cut", stream.read_to_end(&mut sink)).await;
    took_about(begun, 500);
    gw.stop().await;
}

/// A tunnel nobody uses is closed by its own limit.
#[tokio::test]
async fn a_tunnel_in_silence_is_closed() {
    use futures_util::StreamExt;
    let vm = origin().on("/ws", |call| Box::pin(call.websocket())).start().await;
    let gw =
        start(&vm, "timeouts = { tunnel = \"500ms\", idle = \"100ms\", response = \"100ms\" }", "").await;
    let io = gw.dial("shop.test").http1(false).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://shop.test/ws", io).await.unwrap();
    let begun = Instant::now();
    while within("the end", socket.next()).await.is_some_and(|m| m.is_ok()) {}
    took_about(begun, 500);
    gw.stop().await;
}
