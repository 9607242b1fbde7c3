//! The end of a gateway: what runs is finished, nothing new begins, and everyone is told in his version's way.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use foregate_tests::{
    Body, Client, Delivery, Error, Fields, FrameSeen, Gateway, Origin, Relay, Version, digest_of, eventually,
    eventually_async, gateway, get,
    http3::{Connection, Options},
    origin, post, within,
};
use quinn::ConnectionError;
use rustix::process::Signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

const MIB: u64 = 1 << 20;

/// A VM that holds `/held` until told, and a gateway before it.
async fn scene(drain: &str) -> (Origin, Gateway, Arc<Notify>) {
    let release = Arc::new(Notify::new());
    let (bell, later) = (release.clone(), release.clone());
    let vm = origin()
        .on("/held", move |call| {
            let bell = bell.clone();
            Box::pin(async move {
                bell.notified().await;
                call.greet().await;
            })
        })
        .on("/late", move |call| {
            let bell = later.clone();
            Box::pin(async move {
                // "/late/5" is so many bytes, late.
                let length = call.request.target["/late/".len()..].parse().unwrap();
                bell.notified().await;
                call.start(200, &Fields::new(), Some(length)).await;
                let _ = call.write_pattern(length).await;
                call.finish(&Fields::new()).await;
            })
        })
        .on("/large", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(40 * MIB)).await;
                let _ = call.write_pattern(40 * MIB).await;
                call.finish(&Fields::new()).await;
            })
        })
        .start()
        .await;
    let timeouts = format!("[server.timeouts]\ndrain = {drain:?}\n");
    let gw = gateway().server("workers", "2").site("shop.test", &vm).toml(&timeouts).start().await;
    (vm, gw, release)
}

/// Waits until the gateway accepts nothing more; a connection in the kernel's queue may still be served.
async fn refuses(gw: &Gateway, version: Version) {
    eventually_async(&format!("{version:?}: new connections are refused"), || async {
        let refused = Client::connect(&gw.dial("shop.test"), version).await.is_err();
        refused.then_some(())
    })
    .await;
}

#[tokio::test]
async fn requests_in_flight_are_finished_on_every_version() {
    let (vm, mut gw, release) = scene("20s").await;
    let mut clients = Vec::new();
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        let exchange = client.open(&get("/held")).await.unwrap();
        clients.push((version, client, exchange));
    }
    eventually("all are at the VM", || (vm.requests().len() == clients.len()).then_some(())).await;
    gw.terminate();
    refuses(&gw, Version::H1).await;
    refuses(&gw, Version::H1Tls).await;

    for (version, client, _) in &clients {
        match version {
            Version::H2 | Version::H2c => {
                eventually("GOAWAY", || {
                    client.frames().iter().any(|f| matches!(f, FrameSeen::GoAway(_, 0))).then_some(())
                })
                .await;
            }
            Version::H3 => goes_away(client).await,
            Version::H1 | Version::H1Tls => {}
        }
    }
    assert!(gw.process.ended().is_none(), "it ended with requests in flight");
    release.notify_waiters();
    for (version, _, exchange) in &mut clients {
        let reply = exchange.down.whole().await.unwrap_or_else(|e| panic!("{version:?}: {e}"));
        assert_eq!((reply.status, reply.text().as_str()), (200, "vm\n"), "{version:?}");
        assert_eq!(
            reply.fields.lists("connection", "close"),
            version.is_h1(),
            "{version:?}: {:?}",
            reply.fields
        );
    }
    gw.ended().await;
    // No reset where there was nothing wrong.
    for (version, client, _) in clients.iter().filter(|(v, ..)| v.is_h2()) {
        assert!(
            !client.frames().iter().any(|f| matches!(f, FrameSeen::Reset(..))),
            "{version:?}: {:?}",
            client.frames()
        );
    }
}

/// Waits for an HTTP/3 GOAWAY: the `h3` client then refuses to begin anything.
async fn goes_away(client: &Client) {
    eventually_async("GOAWAY", || async {
        let refused = client.open(&get("/")).await;
        matches!(&refused, Err(Error::Broken(why)) if why.contains("closing")).then_some(())
    })
    .await;
}

#[tokio::test]
async fn large_bodies_in_flight_are_finished() {
    let (vm, mut gw, _) = scene("20s").await;
    let mut running = Vec::new();
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        let mut down = client.open(&get("/large")).await.unwrap();
        assert_eq!(down.down.head(&mut Vec::new()).await.unwrap().0, 200);
        let mut up = client.open(&post("/up", "").body(Body::Pattern(MIB))).await.unwrap();
        up.up.data(Bytes::from(vec![b'x'; 1000])).await.unwrap();
        running.push((version, client, down, up));
    }
    eventually("all uploads have begun", || {
        (vm.requests().iter().filter(|r| r.target == "/up" && r.length == 1000).count() == running.len())
            .then_some(())
    })
    .await;
    gw.terminate();
    refuses(&gw, Version::H1).await;
    for (version, _client, mut down, mut up) in running {
        let mut length = 0;
        while let Some(piece) = down.down.data().await.unwrap_or_else(|e| panic!("{version:?}: {e}")) {
            length += piece.len() as u64;
        }
        assert_eq!(length, 40 * MIB, "{version:?}");
        up.up.data(Bytes::from(vec![b'x'; MIB as usize - 1000])).await.unwrap();
        up.up.finish(&Fields::new()).await.unwrap();
        assert_eq!(up.down.whole().await.unwrap().status, 200, "{version:?}");
    }
    let whole = vm.requests().iter().filter(|r| r.length == MIB && r.delivery == Delivery::Complete).count();
    assert_eq!(whole, Version::ALL.len());
    gw.ended().await;
}

/// With nothing to finish the end does not wait for clients that merely stay connected.
#[tokio::test]
async fn idle_connections_do_not_hold_it_up() {
    let (_vm, mut gw, _) = scene("60s").await;
    let mut clients = Vec::new();
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
        // And one that never said anything.
        clients.push((client, gw.client(version, "shop.test").await));
    }
    let begun = std::time::Instant::now();
    gw.terminate();
    gw.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    for (client, silent) in clients {
        // They are closed, not forgotten.
        assert!(client.version.is_h1() || client.send(&get("/")).await.is_err(), "{:?}", client.version);
        drop(silent);
    }
}

/// A client that is told to leave is still served once: its next answer says so.
#[tokio::test]
async fn an_idle_connection_is_told_by_its_next_answer() {
    let (vm, mut gw, release) = scene("20s").await;
    for version in [Version::H1, Version::H1Tls] {
        // Both share the process; only the last terminates it, so the idle ones are made first.
        let idle = gw.client(version, "shop.test").await;
        assert_eq!(idle.send(&get("/")).await.unwrap().status, 200);
        if version == Version::H1 {
            continue;
        }
        let busy = gw.client(version, "shop.test").await;
        let mut held = busy.open(&get("/held")).await.unwrap();
        vm.saw("the held one", |r| r.target == "/held").await;
        gw.terminate();
        refuses(&gw, version).await;
        let last = idle.send(&get("/")).await.unwrap();
        assert_eq!(last.status, 200);
        assert!(last.fields.lists("connection", "close"), "{:?}", last.fields);
        assert_eq!(idle.dialed(), 1);
        release.notify_waiters();
        assert_eq!(held.down.whole().await.unwrap().status, 200);
    }
    gw.ended().await;
}

/// What does not finish in time is cut, and the exit status is still 0: the time was what was asked for.
#[tokio::test]
async fn the_drain_time_is_a_limit() {
    let (vm, mut gw, _release) = scene("1s").await;
    let mut clients = Vec::new();
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        clients.push((version, client.open(&get("/held")).await.unwrap(), client));
    }
    eventually("all are at the VM", || (vm.requests().len() == clients.len()).then_some(())).await;
    let begun = std::time::Instant::now();
    gw.terminate();
    gw.ended().await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(800) && took < Duration::from_secs(10), "{took:?}");
    for (version, mut exchange, _client) in clients {
        // Not a clean answer: nobody gave one.
        match exchange.down.whole().await {
            Ok(reply) => assert!(matches!(reply.status, 502..=504), "{version:?}: {reply:?}"),
            Err(Error::Broken(_)) => {}
            Err(other) => panic!("{version:?}: {other}"),
        }
    }
}

/// Over QUIC too a newcomer is told at once, and need not wait for an answer that does not come.
#[tokio::test]
async fn a_newcomer_over_quic_is_told_to_go_elsewhere() {
    let (vm, mut gw, release) = scene("20s").await;
    let client = gw.client(Version::H3, "shop.test").await;
    let mut exchange = client.open(&get("/held")).await.unwrap();
    vm.saw("the request", |_| true).await;
    gw.terminate();
    refuses(&gw, Version::H1).await;
    for _ in 0..3 {
        let refused = Connection::connect(&gw.dial("shop.test"), Options::default()).await.err();
        let Some(ConnectionError::ConnectionClosed(close)) = refused else { panic!("{refused:?}") };
        assert_eq!(close.error_code, quinn::TransportErrorCode::CONNECTION_REFUSED);
    }
    release.notify_waiters();
    assert_eq!(exchange.down.whole().await.unwrap().status, 200);
    gw.ended().await;
}

#[tokio::test]
async fn an_interrupt_drains_too() {
    let (vm, mut gw, release) = scene("20s").await;
    let client = gw.client(Version::H2, "shop.test").await;
    let mut exchange = client.open(&get("/held")).await.unwrap();
    vm.saw("the request", |_| true).await;
    gw.process.signal(Signal::INT);
    refuses(&gw, Version::H1).await;
    release.notify_waiters();
    assert_eq!(exchange.down.whole().await.unwrap().status, 200);
    gw.ended().await;
}

/// HTTP/2 clients may still have requests under way when GOAWAY comes; those are served or safe to repeat.
#[tokio::test]
async fn a_storm_of_requests_loses_none() {
    let (_vm, mut gw, _) = scene("20s").await;
    let mut tasks = Vec::new();
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        tasks.push(tokio::spawn(async move {
            let mut served = 0_usize;
            loop {
                let opened = client.open(&get("/")).await;
                let Ok(mut exchange) = opened else { return (version, served, None) };
                match exchange.down.whole().await {
                    Ok(reply) => {
                        assert_eq!(reply.status, 200, "{version:?}");
                        served += 1;
                        if reply.fields.lists("connection", "close") {
                            return (version, served, None);
                        }
                    }
                    Err(e) => return (version, served, Some(e)),
                }
            }
        }));
    }
    let warm = gw.client(Version::H1, "shop.test").await;
    for _ in 0..50 {
        warm.send(&get("/")).await.unwrap();
    }
    gw.terminate();
    for task in tasks {
        let (version, served, error) = within("the end of a storm", task).await.unwrap();
        assert!(served > 0, "{version:?}");
        // HTTP/1.1 clients are told by `Connection: close`, the others by GOAWAY before they ask again.
        // A request that crosses it on the way is refused in a way that allows to repeat it.
        let repeatable = error.as_ref().is_none_or(|e| {
            let text = e.to_string().to_lowercase();
            !version.is_h1()
                && [
                    "refused",
                    "rejected",
                    "go away",
                    "goaway",
                    "graceful",
                    "clos",
                    "not a result of an error",
                ]
                .iter()
                .any(|w| text.contains(w))
        });
        assert!(repeatable, "{version:?}: {error:?}");
    }
    gw.ended().await;
}

/// RFC 9114, section 5.2: what comes after GOAWAY is rejected in a way that says it was not begun.
#[tokio::test]
async fn http3_streams_after_goaway_are_rejected() {
    let (vm, mut gw, release) = scene("20s").await;
    let client = gw.client(Version::H3, "shop.test").await;
    let mut held = client.open(&get("/held")).await.unwrap();
    vm.saw("the held one", |r| r.target == "/held").await;
    gw.terminate();
    // The first GOAWAY only asks to stop; what still comes is served until the second says where it ends.
    let rejected = quinn::VarInt::from_u32(0x10b);
    eventually_async("a stream is rejected", || async {
        let before = vm.requests().len();
        let (mut send, mut recv) = client.quic().open_bi().await.unwrap();
        // HEADERS with static table references: GET, https, "/" and a literal :authority.
        let mut section = vec![0, 0, 0xd1, 0xd7, 0xc1, 0x50, 9];
        section.extend_from_slice(b"shop.test");
        let frame = [&[1, section.len() as u8][..], &section].concat();
        send.write_all(&frame).await.unwrap();
        let _ = send.finish();
        match within("an end", recv.read_to_end(1 << 16)).await {
            Ok(_) => {
                assert_eq!(vm.requests().len(), before + 1, "it was answered, so it was asked");
                None
            }
            Err(quinn::ReadToEndError::Read(quinn::ReadError::Reset(code))) => {
                assert_eq!(code, rejected);
                assert_eq!(vm.requests().len(), before, "what is rejected never comes to the VM");
                Some(())
            }
            Err(error) => panic!("{error}"),
        }
    })
    .await;
    release.notify_waiters();
    assert_eq!(held.down.whole().await.unwrap().status, 200);
    gw.ended().await;
}

/// A tunnel has no end of its own: it goes when the time is over.
#[tokio::test]
async fn a_websocket_ends_with_the_drain_time() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;
    let vm = origin().on("/ws", |call| Box::pin(call.websocket())).start().await;
    let timeouts = "[server.timeouts]\ndrain = \"1s\"\n";
    let mut gw = gateway().site("shop.test", &vm).toml(timeouts).start().await;
    let io = gw.dial("shop.test").http1(false).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://shop.test/ws", io).await.unwrap();
    gw.terminate();
    refuses(&gw, Version::H1).await;
    // It works on meanwhile.
    socket.send(Message::text("still there?")).await.unwrap();
    assert_eq!(within("an echo", socket.next()).await.unwrap().unwrap(), Message::text("still there?"));
    let close = within("a goodbye", socket.next()).await.unwrap().unwrap();
    let Message::Close(Some(frame)) = close else { panic!("{close:?}") };
    assert_eq!(u16::from(frame.code), 1001);
    while within("the end", socket.next()).await.is_some_and(|m| m.is_ok()) {}
    drop(socket);
    gw.ended().await;
    assert_eq!(gw.log().having(&["requests that still ran are cut"]), [""; 0]);
    vm.saw("the end at the VM", |r| r.delivery == Delivery::Complete).await;
}

/// Draining does not change what a body is.
#[tokio::test]
async fn a_body_that_drains_is_the_same_body() {
    let (vm, mut gw, _) = scene("20s").await;
    let client = gw.client(Version::H3, "shop.test").await;
    let mut exchange = client.open(&get("/large")).await.unwrap();
    vm.saw("the request", |r| r.target == "/large").await;
    gw.terminate();
    let reply = exchange.down.whole().await.unwrap();
    assert_eq!((reply.length, reply.digest), (40 * MIB, digest_of(40 * MIB)));
    gw.ended().await;
}

/// The gateway is done with it, and the client does not have it yet: over TCP it is slow to read, over QUIC nothing comes
/// through for a while.
#[tokio::test]
async fn what_is_on_its_way_arrives() {
    let size = Arc::new(AtomicU64::new(0));
    let written = Arc::new(Notify::new());
    let (release, done, length) = (Arc::new(Notify::new()), written.clone(), size.clone());
    let bell = release.clone();
    let vm = origin()
        .on("/", move |call| {
            let (bell, done, length) = (bell.clone(), done.clone(), length.load(Relaxed));
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(length)).await;
                bell.notified().await;
                call.write_pattern(length).await.unwrap();
                call.finish(&Fields::new()).await;
                done.notify_one();
            })
        })
        .start()
        .await;
    // Each is what the gateway gives to the system or to QUIC at once.
    for (version, length) in [(Version::H1, MIB), (Version::H2c, MIB), (Version::H3, 192 * 1024)] {
        size.store(length, Relaxed);
        let timeouts = "[server.timeouts]\ndrain = \"20s\"\n";
        let mut gw = gateway().server("workers", "1").site("shop.test", &vm).toml(timeouts).start().await;
        let relay = Relay::start(gw.dial("shop.test").https).await;
        let narrow = async || {
            let socket = tokio::net::TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(16 * 1024).unwrap();
            socket.connect(([127, 0, 0, 1], gw.http_port()).into()).await.unwrap()
        };
        // What becomes of the rest, once somebody reads it.
        let rest: std::pin::Pin<Box<dyn Future<Output = usize>>> = match version {
            Version::H1 => {
                let mut stream = narrow().await;
                stream.write_all(b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n").await.unwrap();
                let mut head = vec![0; 8];
                stream.read_exact(&mut head).await.unwrap();
                Box::pin(async move {
                    let mut all = head;
                    stream.read_to_end(&mut all).await.unwrap();
                    all.len() - (all.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4)
                })
            }
            Version::H2c => {
                let mut builder = h2::client::Builder::new();
                let windows = builder.initial_window_size(4 << 20).initial_connection_window_size(4 << 20);
                let (mut sender, mut connection) =
                    windows.handshake::<_, Bytes>(narrow().await).await.unwrap();
                let request = http::Request::get("http://shop.test/").body(()).unwrap();
                let (response, _) = sender.send_request(request, true).unwrap();
                let mut body = tokio::select! {
                    response = response => response.unwrap().into_body(),
                    ended = &mut connection => panic!("{ended:?}"),
                };
                Box::pin(async move {
                    // From now on it is read again.
                    let reading = tokio::spawn(connection);
                    let mut length = 0;
                    while let Some(piece) = body.data().await {
                        let piece = piece.unwrap();
                        body.flow_control().release_capacity(piece.len()).unwrap();
                        length += piece.len();
                    }
                    drop(sender);
                    reading.await.unwrap().unwrap();
                    length
                })
            }
            _ => {
                let mut dial = gw.dial("shop.test");
                dial.https = relay.address();
                let client = Client::connect(&dial, version).await.unwrap();
                let mut exchange = client.open(&get("/")).await.unwrap();
                assert_eq!(exchange.down.head(&mut Vec::new()).await.unwrap().0, 200);
                relay.hold(true);
                let relay = &relay;
                Box::pin(async move {
                    relay.hold(false);
                    let _client = client;
                    let mut length = 0;
                    while let Some(piece) = exchange.down.data().await.unwrap() {
                        length += piece.len();
                    }
                    length
                })
            }
        };
        release.notify_one();
        within("the VM has written all", written.notified()).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        gw.terminate();
        tokio::time::sleep(Duration::from_millis(3500)).await;
        assert_eq!(within("the rest", rest).await as u64, length, "{version:?}");
        gw.ended().await;
    }
}

/// A client that answers our ping at once and then is slow to read: what it sends meanwhile is no reason to break it off.
#[tokio::test]
async fn who_answers_and_is_slow_to_read_has_all() {
    let (vm, mut gw, release) = scene("20s").await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    let (mut from, mut to) =
        socket.connect(([127, 0, 0, 1], gw.http_port()).into()).await.unwrap().into_split();
    let (ours, theirs) = tokio::io::duplex(4096);
    let (mut read, mut write) = tokio::io::split(ours);
    tokio::spawn(async move {
        let mut piece = [0; 16 * 1024];
        loop {
            let length = from.read(&mut piece).await.unwrap();
            if length == 0 {
                return write.shutdown().await.unwrap();
            }
            write.write_all(&piece[..length]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    tokio::spawn(async move { tokio::io::copy(&mut read, &mut to).await });
    let mut builder = h2::client::Builder::new();
    // Room for all of it; more is given when half of that is read.
    let windows = builder.initial_window_size(1 << 20).initial_connection_window_size(1 << 20);
    let (mut sender, connection) = windows.handshake::<_, Bytes>(theirs).await.unwrap();
    let connection = tokio::spawn(connection);
    let request = http::Request::get(format!("http://shop.test/late/{MIB}")).body(()).unwrap();
    let (response, _) = sender.send_request(request, true).unwrap();
    vm.saw("the request", |r| r.target.starts_with("/late")).await;
    gw.terminate();
    tokio::time::sleep(Duration::from_millis(500)).await;
    release.notify_one();
    let mut body = response.await.unwrap().into_body();
    let mut length = 0;
    while let Some(piece) = within("the next piece", body.data()).await {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        length += piece.len() as u64;
    }
    assert_eq!(length, MIB);
    drop(sender);
    // It is not kept longer than it takes.
    let begun = std::time::Instant::now();
    within("an orderly end", connection).await.unwrap().unwrap();
    gw.ended().await;
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

/// Over QUIC too, and also what is thought to arrive by the time somebody closes the connection.
#[tokio::test]
async fn a_short_answer_on_its_way_arrives() {
    let (vm, mut gw, release) = scene("20s").await;
    let relay = Relay::start(gw.dial("shop.test").https).await;
    let mut dial = gw.dial("shop.test");
    dial.https = relay.address();
    let client = Client::connect(&dial, Version::H3).await.unwrap();
    let mut exchange = client.open(&get("/late/50000")).await.unwrap();
    vm.saw("the request", |r| r.target == "/late/50000").await;
    gw.terminate();
    goes_away(&client).await;
    relay.hold(true);
    release.notify_one();
    // Longer than the goodbyes.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    relay.hold(false);
    assert_eq!(exchange.down.whole().await.unwrap().length, 50_000);
    gw.ended().await;
}
