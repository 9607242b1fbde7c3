//! Bodies in motion: large ones in little memory, as slowly as the slower side, and honestly broken off.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use foregate_tests::{
    Body, Client, Delivery, Error, Exchange, Fields, Gateway, Origin, OriginBuilder, Uploader, Version,
    block, digest_of, eventually, gateway, get, origin, post, raw, within,
};
use tokio::sync::Notify;

const MIB: u64 = 1 << 20;
const LARGE: u64 = 100 * MIB;
/// What 100 MiB may cost the gateway: windows and buffers, never the body.
const GROWTH: u64 = 64 * MIB;
/// What may lie between a sender and a receiver that does not read: three sockets' buffers and the windows.
const IN_FLIGHT: u64 = 40 * MIB;

async fn start(vm: &Origin) -> Gateway {
    let pool = format!("[pools.vm]\nbackends = {:?}\n", vm.address());
    let site = "[sites.\"shop.test\"]\npool = \"vm\"\n";
    gateway().named(&["shop.test"]).toml(site).toml(&pool).start().await
}

/// The same VM over HTTP/1.1 and over HTTP/2 without TLS, each with a gateway before it.
async fn both_kinds(vm: impl Fn() -> OriginBuilder) -> [(Origin, Gateway); 2] {
    let plain = vm().start().await;
    let gw = start(&plain).await;
    let http2 = vm().http2().start().await;
    let pool = format!("[pools.vm]\nbackends = {:?}\nprotocol = \"h2c\"\n", http2.address());
    let site = "[sites.\"shop.test\"]\npool = \"vm\"\n";
    let gw2 = gateway().named(&["shop.test"]).toml(site).toml(&pool).start().await;
    [(plain, gw), (http2, gw2)]
}

#[tokio::test]
async fn a_large_body_comes_down_in_little_memory() {
    for chunked in [false, true] {
        let vm = origin()
            .on("/", move |call| {
                Box::pin(async move {
                    call.start(200, &Fields::new(), (!chunked).then_some(LARGE)).await;
                    let _ = call.write_pattern(LARGE).await;
                    call.finish(&Fields::new()).await;
                })
            })
            .start()
            .await;
        let gw = start(&vm).await;
        let expected = digest_of(LARGE);
        for version in Version::ALL {
            gw.process.reset_peak();
            let before = gw.process.memory("VmRSS");
            let reply = gw.request(version, get("/")).await;
            assert_eq!((reply.status, reply.length), (200, LARGE), "{version:?}");
            assert_eq!(reply.digest, expected, "{version:?}");
            let growth = gw.process.memory("VmHWM").saturating_sub(before);
            assert!(growth < GROWTH, "{version:?}: {} MiB more", growth / MIB);
        }
        gw.stop().await;
    }
}

#[tokio::test]
async fn a_large_body_goes_up_in_little_memory() {
    let vm = origin().start().await;
    let gw = start(&vm).await;
    let expected = digest_of(LARGE);
    for version in Version::ALL {
        for announced in [true, false] {
            vm.forget();
            gw.process.reset_peak();
            let before = gw.process.memory("VmRSS");
            let mut upload = post("/", "").body(Body::Pattern(LARGE));
            upload.announced = announced;
            assert_eq!(gw.request(version, upload).await.status, 200, "{version:?}");
            let seen = vm.only();
            assert_eq!((seen.length, &seen.digest), (LARGE, &expected), "{version:?}");
            let length = seen.fields.get("content-length").map(|l| l.parse::<u64>().unwrap());
            assert_eq!(length, announced.then_some(LARGE), "{version:?}");
            let growth = gw.process.memory("VmHWM").saturating_sub(before);
            assert!(growth < GROWTH, "{version:?}: {} MiB more", growth / MIB);
        }
    }
    gw.stop().await;
}

/// Waits until a counter has stood still for a while.
async fn settled(count: &AtomicU64) -> u64 {
    let (mut last, mut same) = (0, 0);
    eventually("a counter that stands still", || {
        let now = count.load(Ordering::SeqCst);
        same = if now > 0 && now == last { same + 1 } else { 0 };
        last = now;
        (same >= 60).then_some(now)
    })
    .await
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_vm() {
    let written = Arc::new(AtomicU64::new(0));
    let count = written.clone();
    let vm = origin()
        .on("/", move |call| {
            let count = count.clone();
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(LARGE)).await;
                let (block, mut left) = (block(), LARGE);
                while left > 0 {
                    let piece = block.slice(..block.len().min(left as usize));
                    left -= piece.len() as u64;
                    count.fetch_add(piece.len() as u64, Ordering::SeqCst);
                    if call.write(piece).await.is_err() {
                        return;
                    }
                }
                call.finish(&Fields::new()).await;
            })
        })
        .start()
        .await;
    let gw = start(&vm).await;
    for version in Version::ALL {
        written.store(0, Ordering::SeqCst);
        gw.process.reset_peak();
        let before = gw.process.memory("VmRSS");
        let client = gw.client(version, "shop.test").await;
        let mut exchange = client.open(&get("/")).await.unwrap();
        let stopped = settled(&written).await;
        assert!(stopped < IN_FLIGHT, "{version:?}: {} MiB under way", stopped / MIB);
        let growth = gw.process.memory("VmHWM").saturating_sub(before);
        assert!(growth < IN_FLIGHT, "{version:?}: {} MiB held", growth / MIB);
        // And it goes on as soon as the client does.
        let reply = exchange.down.whole().await.unwrap();
        assert_eq!((reply.length, reply.digest), (LARGE, digest_of(LARGE)), "{version:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_vm_that_does_not_read_stops_the_client() {
    let go = Arc::new(Notify::new());
    let released = go.clone();
    let vm = origin()
        .on("/", move |call| {
            let released = released.clone();
            Box::pin(async move {
                released.notified().await;
                call.greet().await;
            })
        })
        .start()
        .await;
    let gw = start(&vm).await;
    for version in Version::ALL {
        vm.forget();
        gw.process.reset_peak();
        let before = gw.process.memory("VmRSS");
        let client = gw.client(version, "shop.test").await;
        let mut exchange = client.open(&post("/", "").body(Body::Pattern(LARGE))).await.unwrap();
        let sent = Arc::new(AtomicU64::new(0));
        let count = sent.clone();
        let sending = tokio::spawn(async move {
            let mut up: Uploader = exchange.up;
            let (block, mut left) = (block(), LARGE);
            while left > 0 {
                let piece = block.slice(..block.len().min(left as usize));
                left -= piece.len() as u64;
                count.fetch_add(piece.len() as u64, Ordering::SeqCst);
                up.data(piece).await.unwrap();
            }
            up.finish(&Fields::new()).await.unwrap();
            up
        });
        let stopped = settled(&sent).await;
        assert!(stopped < IN_FLIGHT, "{version:?}: {} MiB under way", stopped / MIB);
        let growth = gw.process.memory("VmHWM").saturating_sub(before);
        assert!(growth < IN_FLIGHT, "{version:?}: {} MiB held", growth / MIB);
        go.notify_one();
        let _up = within("sending the rest", sending).await.unwrap();
        assert_eq!(exchange.down.whole().await.unwrap().status, 200, "{version:?}");
        assert_eq!(vm.only().digest, digest_of(LARGE), "{version:?}");
    }
    gw.stop().await;
}

/// Nothing waits for more: each piece is read by the client before the VM writes the next one.
#[tokio::test]
async fn pieces_pass_at_once() {
    let next = Arc::new(Notify::new());
    let ask = next.clone();
    for (_vm, gw) in both_kinds(|| {
        let ask = ask.clone();
        origin().on("/", move |call| {
            let ask = ask.clone();
            Box::pin(async move {
                call.start(200, &Fields::new().with("content-type", "text/event-stream"), None).await;
                for number in 0..10 {
                    let _ = call.write(Bytes::from(format!("data: {number}\n\n"))).await;
                    ask.notified().await;
                }
                call.finish(&Fields::new()).await;
            })
        })
    })
    .await
    {
        for version in Version::ALL {
            let client = gw.client(version, "shop.test").await;
            let mut exchange = client.open(&get("/")).await.unwrap();
            assert_eq!(exchange.down.head(&mut Vec::new()).await.unwrap().0, 200);
            for number in 0..10 {
                let expected = format!("data: {number}\n\n");
                let mut got = Vec::new();
                while got.len() < expected.len() {
                    got.extend_from_slice(&exchange.down.data().await.unwrap().expect("more"));
                }
                assert_eq!(got, expected.as_bytes(), "{version:?}");
                next.notify_one();
            }
            assert_eq!(exchange.down.data().await.unwrap(), None, "{version:?}");
        }
        gw.stop().await;
    }
}

/// Both directions at once, as gRPC does it: each piece is answered before the next one is sent.
#[tokio::test]
async fn both_directions_at_once() {
    let vm = origin()
        .http2()
        .on("/", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), None).await;
                while let Ok(Some(piece)) = call.data().await {
                    let _ = call.write(piece).await;
                }
                call.finish(&Fields::new().with("grpc-status", "0")).await;
            })
        })
        .start()
        .await;
    let pool = format!("[sites.\"shop.test\"]\npool = \"h2c://{}\"\n", vm.address());
    let gw = gateway().named(&["shop.test"]).toml(&pool).start().await;
    for version in [Version::H2c, Version::H2, Version::H3] {
        let client = gw.client(version, "shop.test").await;
        let request =
            post("/", "").unannounced().field("te", "trailers").field("content-type", "application/grpc");
        let mut exchange = client.open(&request).await.unwrap();
        assert_eq!(exchange.down.head(&mut Vec::new()).await.unwrap().0, 200, "{version:?}");
        for number in 0..20 {
            let piece = Bytes::from(format!("message {number:04}"));
            exchange.up.data(piece.clone()).await.unwrap();
            let mut got = Vec::new();
            while got.len() < piece.len() {
                got.extend_from_slice(&exchange.down.data().await.unwrap().expect("more"));
            }
            assert_eq!(got, piece, "{version:?}");
        }
        exchange.up.finish(&Fields::new()).await.unwrap();
        assert_eq!(exchange.down.data().await.unwrap(), None);
        assert_eq!(exchange.down.trailers().await.unwrap().get("grpc-status"), Some("0"), "{version:?}");
        assert_eq!(vm.only().fields.get("te"), Some("trailers"), "{version:?}");
        vm.forget();
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_vm_that_dies_is_an_error_and_no_clean_end() {
    for length in [None, Some(1000)] {
        for (_vm, gw) in both_kinds(|| {
            origin().on("/", move |call| {
                Box::pin(async move {
                    call.start(200, &Fields::new(), length).await;
                    let _ = call.write(Bytes::from_static(b"the first half")).await;
                    call.die();
                })
            })
        })
        .await
        {
            for version in Version::ALL {
                match gw.try_request(version, &get("/")).await {
                    Err(Error::Broken(_)) => {}
                    // HTTP/2 may throw away what a stream brought before its reset.
                    Ok(reply) => assert_eq!(reply.status, 502, "{version:?}, {length:?}: {reply:?}"),
                    Err(other) => panic!("{version:?}, {length:?}: {other}"),
                }
            }
            gw.stop().await;
        }
    }
}

/// A body that ends with its connection (HTTP/1.0's way) is whole, for there is nothing that says otherwise.
#[tokio::test]
async fn a_body_until_close_is_whole() {
    let vm = raw(&b"HTTP/1.0 200 OK\r\nX: y\r\n\r\nuntil the end"[..], true).await;
    let table = format!("[sites.\"shop.test\"]\npool = {:?}\n", vm.address());
    let gw = gateway().named(&["shop.test"]).toml(&table).start().await;
    for version in Version::ALL {
        let reply = gw.request(version, get("/")).await;
        assert_eq!((reply.status, reply.text().as_str()), (200, "until the end"), "{version:?}");
    }
    gw.stop().await;
}

fn never_ending() -> OriginBuilder {
    origin()
        .on("/waiting", |call| Box::pin(call.gone()))
        .on("/talking", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), None).await;
                while call.write(block()).await.is_ok() {}
                call.gone().await;
            })
        })
        .on("/pausing", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), None).await;
                let _ = call.write(block()).await;
                call.gone().await;
            })
        })
}

/// Nobody is waiting any more: the VM is told, before its answer and in the middle of it, also where it pauses.
async fn cancels(vanish: impl Fn(Client, Exchange)) {
    for (vm, gw) in both_kinds(never_ending).await {
        for version in Version::ALL {
            for target in ["/waiting", "/talking", "/pausing"] {
                vm.forget();
                let client = gw.client(version, "shop.test").await;
                let mut exchange = client.open(&get(target)).await.unwrap();
                vm.saw("the request", |r| r.target == target).await;
                if target != "/waiting" {
                    exchange.down.head(&mut Vec::new()).await.unwrap();
                    assert!(exchange.down.data().await.unwrap().is_some());
                }
                vanish(client, exchange);
                let what = format!("{version:?} {target}: the end of the VM's exchange");
                vm.saw(&what, |r| matches!(r.delivery, Delivery::Broken(_))).await;
            }
        }
        gw.stop().await;
    }
}

#[tokio::test]
async fn a_client_that_vanishes_cancels_the_request() {
    cancels(|client, exchange| {
        if client.version == Version::H3 {
            client.quic().close(0_u32.into(), b"");
        }
        drop((exchange, client));
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_is_cancelled_cancels_the_request() {
    cancels(|_client, mut exchange| exchange.up.cancel(&mut exchange.down)).await;
}

/// Half an upload and then nothing: the VM must not take the half for the whole.
#[tokio::test]
async fn an_upload_that_breaks_off_never_looks_whole() {
    for (vm, gw) in both_kinds(origin).await {
        for version in Version::ALL {
            for announced in [true, false] {
                vm.forget();
                let client = gw.client(version, "shop.test").await;
                let mut upload = post("/", "").body(Body::Pattern(1000));
                upload.announced = announced;
                let mut exchange = client.open(&upload).await.unwrap();
                exchange.up.data(Bytes::from_static(b"the first half")).await.unwrap();
                vm.saw("the first half", |r| r.length == 14).await;
                exchange.up.cancel(&mut exchange.down);
                let what = format!("{version:?}, announced {announced}: the end");
                vm.saw(&what, |r| matches!(r.delivery, Delivery::Broken(_))).await;
            }
        }
        gw.stop().await;
    }
}

/// An answer that comes before the end of the request is an answer.
#[tokio::test]
async fn an_early_answer_reaches_a_client_that_still_sends() {
    let vm = origin()
        .on("/", |call| {
            Box::pin(async move {
                call.reply(413, &Fields::new(), "enough").await;
                // A polite VM reads on for a while, else its reset could overtake its answer.
                let _ = tokio::time::timeout(Duration::from_secs(5), call.drain()).await;
            })
        })
        .start()
        .await;
    let gw = start(&vm).await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        let mut exchange = client.open(&post("/", "").body(Body::Pattern(LARGE))).await.unwrap();
        exchange.up.data(block()).await.unwrap();
        let reply = exchange.down.whole().await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (413, "enough"), "{version:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn bodies_above_the_limit_are_413() {
    let vm = origin().start().await;
    let site = format!(
        "[sites.\"shop.test\"]\npool = {:?}\nrequest_body = \"10KiB\"\n\
         routes = [{{ paths = \"/large/\", request_body = \"off\" }}]\n",
        vm.address()
    );
    let gw = gateway().named(&["shop.test"]).toml(&site).start().await;
    for version in Version::ALL {
        for announced in [true, false] {
            vm.forget();
            let mut upload = post("/", "").body(Body::Pattern(10 * 1024));
            upload.announced = announced;
            assert_eq!(gw.request(version, upload.clone()).await.status, 200, "{version:?}");
            vm.forget();
            upload.body = Body::Pattern(10 * 1024 + 1);
            assert_eq!(gw.request(version, upload.clone()).await.status, 413, "{version:?} {announced}");
            if announced {
                assert!(vm.requests().is_empty(), "{version:?}");
            } else {
                vm.requests().iter().for_each(|r| assert_ne!(r.delivery, Delivery::Complete, "{version:?}"));
            }
            upload.target = "/large/x".to_owned();
            assert_eq!(gw.request(version, upload).await.status, 200, "{version:?}");
        }
    }
    gw.stop().await;
}
