//! VMs over HTTP/3: bodies and trailers both ways, reuse, and every way in which a VM may fail or leave.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use foregate_tests::{
    Authority, Body, Delivery, Error, Fields, Gateway, GatewayBuilder, Origin, OriginBuilder, Version,
    closed_port, digest_of, eventually, gateway, get, head, origin, post,
};
use tokio::sync::Notify;

const MIB: u64 = 1 << 20;
const LARGE: u64 = 24 * MIB;
const TLS: &str = "tls = { ca = \"ca.pem\", server_name = \"vm.lan\" }";

fn h3() -> OriginBuilder {
    origin().named("h3").http3("vm.lan", false)
}

fn pool(backends: &[String], keys: &str) -> GatewayBuilder {
    let text = format!("[sites.\"shop.test\"]\npool = \"vm\"\n[pools.vm]\nbackends = {backends:?}\n{keys}\n");
    gateway().named(&["shop.test"]).toml(&text).file("ca.pem", Authority::shared().pem())
}

async fn start(vm: &Origin) -> Gateway {
    pool(&[format!("h3://{}", vm.address())], TLS).start().await
}

#[tokio::test]
async fn a_request_and_its_answer() {
    let vm = h3().start().await;
    let address = format!("h3://{}", vm.address());
    let key = format!("protocol = \"h3\"\n{TLS}");
    for (backend, keys) in [(address, TLS), (vm.address(), &key), (format!("https://{}", vm.address()), &key)]
    {
        let gw = pool(&[backend], keys).start().await;
        for version in Version::ALL {
            vm.forget();
            let client = gw.client(version, "shop.test").await;
            let reply = client.send(&post("/a?b", "").body(Body::Pattern(300_000))).await.unwrap();
            assert_eq!((reply.status, reply.vm()), (200, "h3"), "{version:?}: {}", reply.text());
            assert_eq!(reply.text(), "h3\n");
            let seen = vm.only();
            assert!(seen.http3);
            assert_eq!((seen.target.as_str(), seen.host.as_str()), ("/a?b", "shop.test"), "{version:?}");
            assert_eq!(seen.digest, digest_of(300_000), "{version:?}");
            assert_eq!(seen.fields.get("content-length"), Some("300000"), "{version:?}");
            // None of its fields belongs to HTTP/1.1's connections.
            for name in ["connection", "transfer-encoding", "host", "keep-alive"] {
                assert!(!seen.fields.has(name), "{version:?}: {:?}", seen.fields);
            }
        }
        gw.stop().await;
    }
}

#[tokio::test]
async fn answers_without_a_body_have_none() {
    let vm = h3()
        .on("/204", |call| Box::pin(async move { call.reply(204, &Fields::new(), "").await }))
        .on("/304", |call| {
            Box::pin(async move {
                call.start(304, &Fields::new(), Some(5)).await;
                call.finish(&Fields::new()).await;
            })
        })
        .on("/empty", |call| Box::pin(async move { call.reply(200, &Fields::new(), "").await }))
        .start()
        .await;
    let gw = start(&vm).await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        for (request, status, length) in [
            (get("/204"), 204, None),
            (get("/304"), 304, Some("5")),
            (get("/empty"), 200, Some("0")),
            (head("/"), 200, Some("3")),
        ] {
            let reply = client.send(&request).await.unwrap();
            assert_eq!((reply.status, reply.length), (status, 0), "{version:?} {}", request.target);
            assert_eq!(reply.fields.get("content-length"), length, "{version:?} {}", request.target);
        }
        let empty = client.send(&post("/", "")).await.unwrap();
        assert_eq!(empty.status, 200);
    }
    assert_eq!(vm.accepted(), 1, "one QUIC connection for everything");
    gw.stop().await;
}

#[tokio::test]
async fn large_bodies_pass_both_ways() {
    let vm = h3()
        .on("/down", |call| {
            Box::pin(async move {
                let announced = !call.request.target.ends_with('?');
                call.start(200, &Fields::new(), announced.then_some(LARGE)).await;
                let _ = call.write_pattern(LARGE).await;
                call.finish(&Fields::new()).await;
            })
        })
        .start()
        .await;
    let gw = start(&vm).await;
    let expected = digest_of(LARGE);
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        for target in ["/down", "/down?"] {
            let reply = client.send(&get(target)).await.unwrap();
            assert_eq!((reply.status, reply.length, &reply.digest), (200, LARGE, &expected), "{version:?}");
        }
        for announced in [true, false] {
            vm.forget();
            let mut upload = post("/up", "").body(Body::Pattern(LARGE));
            upload.announced = announced;
            assert_eq!(client.send(&upload).await.unwrap().status, 200, "{version:?}");
            let seen = vm.only();
            assert_eq!((seen.length, &seen.digest), (LARGE, &expected), "{version:?}");
            assert_eq!(seen.fields.has("content-length"), announced, "{version:?}");
        }
    }
    assert_eq!(vm.accepted(), 1);
    gw.stop().await;
}

#[tokio::test]
async fn trailers_and_interim_answers_pass() {
    let vm = h3()
        .on("/", |call| {
            Box::pin(async move {
                if call.request.fields.has("expect") {
                    call.inform(100, &Fields::new()).await;
                }
                call.inform(103, &Fields::new().with("link", "</a.css>; rel=preload")).await;
                let _ = call.drain().await;
                call.start(200, &Fields::new().with("trailer", "x-sum"), None).await;
                let _ = call.write(Bytes::from_static(b"body")).await;
                call.finish(&Fields::new().with("x-sum", "7").with("content-length", "9")).await;
            })
        })
        .start()
        .await;
    let gw = start(&vm).await;
    for version in Version::ALL {
        vm.forget();
        let client = gw.client(version, "shop.test").await;
        let request = post("/", "up").field("te", "trailers").field("trailer", "x-up").trailer("x-up", "1");
        let reply = client.send(&request).await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, "body"), "{version:?}");
        assert_eq!(reply.trailers.get("x-sum"), Some("7"), "{version:?}: {reply:?}");
        assert!(!reply.trailers.has("content-length"), "{version:?}");
        assert_eq!(reply.interim.iter().map(|(status, _)| *status).collect::<Vec<_>>(), [103], "{version:?}");
        let seen = vm.only();
        assert_eq!(seen.trailers.get("x-up"), Some("1"), "{version:?}");
        assert_eq!(seen.fields.get("te"), Some("trailers"), "{version:?}");

        let reply = client.send(&post("/", "asked").field("expect", "100-continue")).await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (200, "body"), "{version:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_cancelled_request_is_cancelled_at_the_vm() {
    let vm = h3()
        .on("/down", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), None).await;
                let _ = call.write(Bytes::from_static(b"begun")).await;
                call.gone().await;
            })
        })
        .start()
        .await;
    let gw = start(&vm).await;
    for version in Version::ALL {
        vm.forget();
        let client = gw.client(version, "shop.test").await;
        let mut exchange = client.open(&get("/down")).await.unwrap();
        assert_eq!(exchange.down.head(&mut Vec::new()).await.unwrap().0, 200);
        exchange.up.cancel(&mut exchange.down);
        let gone = |delivery: &Delivery| matches!(delivery, Delivery::Broken(_));
        vm.saw("a cancelled download", |request| gone(&request.delivery)).await;

        // An upload that breaks off never looks whole.
        vm.forget();
        let mut exchange = gw
            .client(version, "shop.test")
            .await
            .open(&post("/up", "").body(Body::Pattern(MIB)))
            .await
            .unwrap();
        exchange.up.data(Bytes::from_static(b"first")).await.unwrap();
        vm.saw("an upload", |request| request.length > 0).await;
        exchange.up.cancel(&mut exchange.down);
        vm.saw("a cancelled upload", |request| gone(&request.delivery)).await;
    }
    assert_eq!(vm.accepted(), 1, "others on the connection notice nothing");
    gw.stop().await;
}

#[tokio::test]
async fn many_requests_share_a_connection_and_idle_ones_are_closed() {
    let vm = h3().start().await;
    let keys = format!("{TLS}\ntimeouts = {{ keep_alive = \"300ms\" }}");
    let gw = pool(&[format!("h3://{}", vm.address())], &keys).start().await;
    let client = gw.client(Version::H2, "shop.test").await;
    let mut running = Vec::new();
    for _ in 0..100 {
        let client = client.clone();
        running.push(tokio::spawn(async move { client.send(&get("/")).await.unwrap().status }));
    }
    for task in running {
        assert_eq!(task.await.unwrap(), 200);
    }
    assert_eq!(vm.accepted(), 1);
    eventually("the connection is closed", || (vm.open() == 0).then_some(())).await;
    assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
    assert_eq!(vm.accepted(), 2);
    gw.stop().await;
}

#[tokio::test]
async fn a_vm_that_drains_finishes_what_it_has_and_gets_no_more() {
    let (release, begun) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (released, count) = (release.clone(), begun.clone());
    let vm = h3()
        .on("/slow", move |call| {
            let (released, count) = (released.clone(), count.clone());
            Box::pin(async move {
                count.fetch_add(1, Ordering::SeqCst);
                released.notified().await;
                call.greet().await;
            })
        })
        .start()
        .await;
    let gw = start(&vm).await;
    for version in Version::ALL {
        let before = vm.accepted();
        let client = gw.client(version, "shop.test").await;
        begun.store(0, Ordering::SeqCst);
        let slow = tokio::spawn({
            let client = client.clone();
            async move { client.send(&post("/slow", "x")).await }
        });
        eventually("the slow request", || (begun.load(Ordering::SeqCst) == 1).then_some(())).await;
        vm.goodbye();
        // Requests of any method go elsewhere, at once or because this connection rejects them.
        for _ in 0..20 {
            assert_eq!(client.send(&post("/", "fresh")).await.unwrap().status, 200, "{version:?}");
        }
        assert!(vm.accepted() > before, "{version:?}");
        release.notify_one();
        assert_eq!(slow.await.unwrap().unwrap().status, 200, "{version:?}");
    }
    gw.stop().await;
}

/// RFC 9114, section 4.1.1: such a request may be made again, whatever its method.
#[tokio::test]
async fn a_rejected_request_is_made_again() {
    let rejections = Arc::new(AtomicUsize::new(0));
    let count = rejections.clone();
    let vm = h3()
        .on("/once", move |call| {
            let count = count.clone();
            Box::pin(async move {
                if count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                    call.reject()
                } else {
                    call.greet().await
                }
            })
        })
        .start()
        .await;
    let gw = start(&vm).await;
    assert_eq!(gw.request(Version::H1, get("/")).await.status, 200, "the connection is open");
    for version in Version::ALL {
        for request in [get("/once"), post("/once", "")] {
            let method = request.method.clone();
            assert_eq!(gw.request(version, request).await.status, 200, "{version:?} {method}");
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_vm_that_breaks_off_is_an_error_and_no_clean_end() {
    let vm = h3()
        .on("/before", |call| Box::pin(async move { call.die() }))
        .on("/within", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), None).await;
                let _ = call.write(Bytes::from_static(b"half")).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
                call.die();
            })
        })
        .on("/short", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(100)).await;
                let _ = call.write(Bytes::from_static(b"half")).await;
                call.finish(&Fields::new()).await;
            })
        })
        .on("/long", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(2)).await;
                let _ = call.write(Bytes::from_static(b"much more")).await;
                call.finish(&Fields::new()).await;
            })
        })
        .on("/switch", |call| Box::pin(async move { call.reply(101, &Fields::new(), "").await }))
        .on("/status", |call| Box::pin(async move { call.reply(700, &Fields::new(), "").await }))
        .on("/lengths", |call| {
            Box::pin(async move { call.reply(200, &Fields::new().with("content-length", "1"), "ab").await })
        })
        .start()
        .await;
    let gw = start(&vm).await;
    for version in Version::ALL {
        for target in ["/before", "/switch", "/status", "/lengths"] {
            assert_eq!(gw.request(version, post(target, "")).await.status, 502, "{version:?} {target}");
        }
        for target in ["/within", "/short", "/long"] {
            let broken = gw.try_request(version, &get(target)).await;
            assert!(matches!(broken, Err(Error::Broken(_))), "{version:?} {target}: {broken:?}");
        }
    }
    assert_eq!(vm.accepted(), 1, "others on the connection notice nothing");
    gw.stop().await;
}

#[tokio::test]
async fn a_vm_that_restarts_is_met_again() {
    let mut vm = h3().start().await;
    let gw = start(&vm).await;
    let client = gw.client(Version::H2, "shop.test").await;
    for _ in 0..3 {
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
        vm.down().await;
        vm.up().await;
    }
    assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
    gw.stop().await;
}

/// Of UDP nobody says that a port is closed: what does not answer in time is not there.
#[tokio::test]
async fn a_vm_that_is_not_there_is_told_in_time_and_passed_over() {
    let gone = closed_port();
    let nobody = format!("h3://127.0.0.1:{}", gone.port);
    let keys = format!("{TLS}\ntimeouts = {{ connect = \"300ms\" }}");
    let gw = pool(std::slice::from_ref(&nobody), &keys).start().await;
    for version in Version::ALL {
        let begun = std::time::Instant::now();
        assert_eq!(gw.request(version, get("/")).await.status, 504, "{version:?}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{version:?}: {:?}", begun.elapsed());
    }
    gw.stop().await;

    let vm = h3().start().await;
    let gw = pool(&[nobody, format!("h3://{}", vm.address())], &keys).start().await;
    for _ in 0..4 {
        assert_eq!(gw.request(Version::H1, post("/", "x")).await.status, 200);
    }
    gw.stop().await;
}

/// What lies between a sender and a receiver that does not read is bounded, and others do not wait for it.
#[tokio::test]
async fn who_does_not_read_stops_who_sends() {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let vm = h3()
        .on("/down", move |call| {
            let count = count.clone();
            Box::pin(async move {
                call.start(200, &Fields::new(), None).await;
                let piece = Bytes::from(vec![7; 64 * 1024]);
                while call.write(piece.clone()).await.is_ok() {
                    count.fetch_add(piece.len(), Ordering::SeqCst);
                }
            })
        })
        .on("/up", |call| Box::pin(async move { call.gone().await }))
        .start()
        .await;
    let gw = start(&vm).await;
    for version in Version::ALL {
        written.store(0, Ordering::SeqCst);
        let client = gw.client(version, "shop.test").await;
        let mut unread = client.open(&get("/down")).await.unwrap();
        let (mut last, mut same) = (0, 0);
        eventually("the VM stops", || {
            let now = written.load(Ordering::SeqCst);
            same = if now > 0 && now == last { same + 1 } else { 0 };
            last = now;
            (same >= 40).then_some(())
        })
        .await;
        assert!(last < 40 << 20, "{version:?}: {last} bytes");

        let mut upload = client.open(&post("/up", "").body(Body::Pattern(1 << 30))).await.unwrap();
        let piece = Bytes::from(vec![7; 64 * 1024]);
        let mut sent = 0;
        // A send that hangs is what is waited for.
        while tokio::time::timeout(Duration::from_millis(500), upload.up.data(piece.clone())).await.is_ok() {
            sent += piece.len();
            assert!(sent < 40 << 20, "{version:?}: {sent} bytes");
        }
        assert_eq!(gw.request(version, get("/")).await.status, 200, "{version:?}: others do not wait");
        unread.up.cancel(&mut unread.down);
        upload.up.cancel(&mut upload.down);
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_websocket_cannot_be_carried() {
    let vm = h3().start().await;
    let gw = start(&vm).await;
    let upgrade = get("/")
        .field("connection", "upgrade")
        .field("upgrade", "websocket")
        .field("sec-websocket-version", "13")
        .field("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(gw.request(Version::H1, upgrade).await.status, 502);
    assert!(vm.requests().is_empty());
    gw.stop().await;
}

/// Nothing is sent to a VM that is not the one it should be.
#[tokio::test]
async fn certificates_are_checked_both_ways() {
    let vm = h3().start().await;
    let address = format!("h3://{}", vm.address());
    for keys in
        ["tls = { ca = \"ca.pem\", server_name = \"other.lan\" }", "tls = { server_name = \"vm.lan\" }", ""]
    {
        let gw = pool(std::slice::from_ref(&address), keys).start().await;
        assert_eq!(gw.request(Version::H2, get("/")).await.status, 502, "{keys}");
        gw.stop().await;
    }
    assert!(vm.requests().is_empty());
    let gw = pool(std::slice::from_ref(&address), "tls = { verify = false }").start().await;
    assert_eq!(gw.request(Version::H2, get("/")).await.status, 200);
    gw.stop().await;

    let vm = origin().named("mtls").http3("vm.lan", true).start().await;
    let address = format!("h3://{}", vm.address());
    let (cert, key) = Authority::shared().issue(&["gateway.lan"]);
    let keys = "tls = { ca = \"ca.pem\", server_name = \"vm.lan\", cert = \"gw.crt\", key = \"gw.key\" }";
    let gw =
        pool(std::slice::from_ref(&address), keys).file("gw.crt", &cert).file("gw.key", &key).start().await;
    assert_eq!(gw.request(Version::H2, get("/")).await.status, 200);
    gw.stop().await;
    vm.forget();
    let gw = pool(&[address], TLS).start().await;
    assert_eq!(gw.request(Version::H2, get("/")).await.status, 502);
    assert!(vm.requests().is_empty());
    gw.stop().await;
}

#[tokio::test]
async fn a_health_check_speaks_http3_too() {
    let mut vm = h3().start().await;
    let check = "health = { http = { path = \"/health\" }, interval = \"100ms\", timeout = \"500ms\", rise = 1, fall = 1 }";
    let gw = pool(&[format!("h3://{}", vm.address())], &format!("{TLS}\n{check}")).start().await;
    let seen = vm.saw("a probe", |request| request.target == "/health").await;
    assert!(seen.http3);
    assert_eq!(gw.request(Version::H1, get("/")).await.status, 200);
    vm.down().await;
    eventually("the VM is down", || gw.log().text().contains("down").then_some(())).await;
    assert_eq!(gw.request(Version::H1, get("/")).await.status, 503);
    vm.up().await;
    eventually("the VM is up", || gw.log().text().contains("up").then_some(())).await;
    foregate_tests::eventually_async("an answer", || async {
        (gw.request(Version::H1, get("/")).await.status == 200).then_some(())
    })
    .await;
    gw.stop().await;
}
