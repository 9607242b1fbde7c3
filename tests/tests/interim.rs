//! What stands beside the body: trailers both ways, interim answers, `Expect: 100-continue`.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use foregate_tests::{
    Delivery, Fields, Gateway, Origin, OriginBuilder, Version, gateway, get, origin, post, within,
};
use tokio::sync::Notify;

async fn start(vm: &Origin, http2: bool) -> Gateway {
    let scheme = if http2 { "h2c://" } else { "" };
    let site = format!("[sites.\"shop.test\"]\npool = \"{scheme}{}\"\n", vm.address());
    gateway().named(&["shop.test"]).toml(&site).start().await
}

fn with_trailers() -> OriginBuilder {
    origin().on("/", |call| {
        Box::pin(async move {
            let _ = call.drain().await;
            let fields =
                Fields::new().with("trailer", "x-end, x-more").with("content-type", "application/grpc");
            call.start(200, &fields, None).await;
            let _ = call.write(Bytes::from_static(b"hello")).await;
            call.finish(&Fields::new().with("x-end", "yes").with("x-more", "1")).await;
        })
    })
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    for http2 in [false, true] {
        let vm = if http2 { with_trailers().http2() } else { with_trailers() }.start().await;
        let gw = start(&vm, http2).await;
        for version in Version::ALL {
            let request =
                post("/", "body").field("te", "trailers").field("trailer", "x-sum").trailer("x-sum", "42");
            let reply = gw.request(version, request).await;
            let place = format!("{version:?}, HTTP/2 to the VM: {http2}");
            assert_eq!((reply.status, reply.text().as_str()), (200, "hello"), "{place}");
            assert_eq!(reply.trailers.get("x-end"), Some("yes"), "{place}");
            assert_eq!(reply.trailers.get("x-more"), Some("1"), "{place}");
            let seen = vm.only();
            assert_eq!(
                (seen.delivery, seen.trailers.get("x-sum")),
                (Delivery::Complete, Some("42")),
                "{place}"
            );
            if http2 {
                assert_eq!(seen.fields.get("te"), Some("trailers"), "{place}");
            }
            vm.forget();
        }
        gw.stop().await;
    }
}

/// A client that did not say `TE: trailers` may merge or choke on them: RFC 9110, section 6.5.1.
#[tokio::test]
async fn trailers_nobody_asked_for_are_dropped_on_http1() {
    let vm = with_trailers().start().await;
    let gw = start(&vm, false).await;
    for version in [Version::H1, Version::H1Tls] {
        let client = gw.client(version, "shop.test").await;
        for _ in 0..2 {
            let reply = client.send(&get("/")).await.unwrap();
            assert_eq!((reply.status, reply.text().as_str()), (200, "hello"), "{version:?}");
            assert!(reply.trailers.is_empty(), "{version:?}: {:?}", reply.trailers);
        }
    }
    gw.stop().await;
}

/// RFC 9110, section 6.5.1: framing, routing and credentials have no place in trailers.
#[tokio::test]
async fn trailers_cannot_smuggle_fields_of_the_head() {
    let names =
        ["content-length", "transfer-encoding", "host", "x-forwarded-for", "authorization", "connection"];
    let vm = origin().start().await;
    let gw = start(&vm, false).await;
    for version in [Version::H1, Version::H1Tls] {
        let mut request = post("/", "body").field("trailer", &names.join(", ")).trailer("x-fine", "1");
        for name in names {
            request = request.trailer(name, "1");
        }
        let reply = gw.request(version, request).await;
        let seen = vm.requests();
        if reply.status == 200 {
            for name in names {
                assert!(!seen[0].trailers.has(name), "{version:?}: {name} in {:?}", seen[0].trailers);
            }
        } else {
            assert_eq!(reply.status, 400, "{version:?}");
        }
        vm.forget();
    }
    gw.stop().await;
}

/// gRPC's answer without a message: the status stands in the head, and there is no body.
#[tokio::test]
async fn an_answer_of_a_head_alone_passes() {
    let vm = origin()
        .http2()
        .on("/", |call| {
            Box::pin(async move {
                let _ = call.drain().await;
                call.start(200, &Fields::new().with("grpc-status", "12"), None).await;
                call.finish(&Fields::new()).await;
            })
        })
        .start()
        .await;
    let gw = start(&vm, true).await;
    for version in Version::ALL {
        let reply = gw.request(version, post("/", "x").field("te", "trailers")).await;
        assert_eq!((reply.status, reply.length, reply.field("grpc-status")), (200, 0, "12"), "{version:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn early_hints_pass_or_are_dropped_and_are_never_an_error() {
    for http2 in [false, true] {
        let vm = origin().on("/", |call| {
            Box::pin(async move {
                call.inform(103, &Fields::new().with("link", "</style.css>; rel=preload")).await;
                call.inform(103, &Fields::new().with("link", "</script.js>; rel=preload")).await;
                call.greet().await;
            })
        });
        let vm = if http2 { vm.http2() } else { vm }.start().await;
        let gw = start(&vm, http2).await;
        for version in Version::ALL {
            let client = gw.client(version, "shop.test").await;
            for _ in 0..2 {
                let reply = client.send(&get("/")).await.unwrap();
                assert_eq!((reply.status, reply.text().as_str()), (200, "vm\n"), "{version:?}");
                assert!(!reply.fields.has("link"), "{version:?}: {:?}", reply.fields);
                let links: Vec<&str> = reply.interim.iter().filter_map(|(_, f)| f.get("link")).collect();
                // Here the issue asks for them; elsewhere a later one does.
                if version.is_h1() && !http2 {
                    assert_eq!(
                        links,
                        ["</style.css>; rel=preload", "</script.js>; rel=preload"],
                        "{version:?}"
                    );
                }
                assert!(
                    reply.interim.iter().all(|(status, _)| *status == 103),
                    "{version:?}: {:?}",
                    reply.interim
                );
            }
        }
        gw.stop().await;
    }
}

/// The client's body is asked for when the VM asks for it, and not before.
#[tokio::test]
async fn continue_comes_from_the_vm() {
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
    let gw = start(&vm, false).await;
    for version in [Version::H1, Version::H1Tls] {
        vm.forget();
        let client = gw.client(version, "shop.test").await;
        let mut exchange = client.open(&post("/", "hello").field("expect", "100-continue")).await.unwrap();
        let head = vm.saw("the head at the VM", |_| true).await;
        assert_eq!(head.fields.get("expect"), Some("100-continue"), "{version:?}");
        let asked = Instant::now();
        go.notify_one();
        let (status, _) = exchange.down.any_head().await.unwrap();
        assert_eq!(status, 100, "{version:?}");
        assert!(
            asked.elapsed().as_millis() < 900,
            "{version:?}: not because of the VM, but of the second's end"
        );
        assert_eq!(vm.only().length, 0);
        exchange.up.data(Bytes::from_static(b"hello")).await.unwrap();
        exchange.up.finish(&Fields::new()).await.unwrap();
        let reply = exchange.down.whole().await.unwrap();
        assert_eq!(reply.status, 200, "{version:?}");
        // Once is enough.
        assert!(reply.interim.is_empty(), "{version:?}: {:?}", reply.interim);
        assert_eq!(vm.only().body, "hello");
    }
    gw.stop().await;
}

/// A VM that does not know `Expect` says nothing; after a second the gateway asks in its place.
#[tokio::test]
async fn continue_comes_after_a_second_of_silence() {
    let vm = origin()
        .on("/", |call| {
            Box::pin(async move {
                let _ = call.drain().await;
                call.reply(200, &Fields::new(), "").await;
            })
        })
        .start()
        .await;
    let gw = start(&vm, false).await;
    for version in [Version::H1, Version::H1Tls] {
        let client = gw.client(version, "shop.test").await;
        let begun = Instant::now();
        let mut exchange = client.open(&post("/", "hello").field("expect", "100-continue")).await.unwrap();
        let (status, _) = exchange.down.any_head().await.unwrap();
        let waited = begun.elapsed().as_millis();
        assert_eq!(status, 100, "{version:?}");
        assert!((700..8_000).contains(&waited), "{version:?}: after {waited} ms");
        exchange.up.data(Bytes::from_static(b"hello")).await.unwrap();
        exchange.up.finish(&Fields::new()).await.unwrap();
        assert_eq!(exchange.down.whole().await.unwrap().status, 200, "{version:?}");
    }
    assert!(vm.requests().iter().all(|r| r.body == "hello"));
    gw.stop().await;
}

/// A refusal needs no body: the client never sends it, and the connection ends with the answer or survives it
/// in good order.
#[tokio::test]
async fn a_refusal_instead_of_continue() {
    let vm = origin()
        .on("/refused", |call| Box::pin(async move { call.reply(417, &Fields::new(), "no").await }))
        .start()
        .await;
    let gw = start(&vm, false).await;
    for version in [Version::H1, Version::H1Tls] {
        let client = gw.client(version, "shop.test").await;
        let request = post("/refused", "hello").field("expect", "100-continue");
        let mut exchange = client.open(&request).await.unwrap();
        let reply = exchange.down.whole().await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (417, "no"), "{version:?}");
        assert!(reply.interim.is_empty(), "{version:?}: {:?}", reply.interim);
    }
    assert!(vm.requests().iter().all(|r| r.length == 0));
    assert_eq!(gw.request(Version::H1, get("/")).await.status, 200);
    gw.stop().await;
}

/// A client that does not wait is served too, on every version.
#[tokio::test]
async fn a_client_need_not_wait_for_continue() {
    for http2 in [false, true] {
        let vm = if http2 { origin().http2() } else { origin() }.start().await;
        let gw = start(&vm, http2).await;
        for version in Version::ALL {
            let client = gw.client(version, "shop.test").await;
            for _ in 0..2 {
                vm.forget();
                let request = post("/", "hello").field("expect", "100-continue");
                let reply = within("an answer", client.send(&request)).await.unwrap();
                assert_eq!(reply.status, 200, "{version:?}, HTTP/2 to the VM: {http2}");
                assert_eq!(vm.only().body, "hello", "{version:?}");
            }
        }
        gw.stop().await;
    }
}

/// Bytes that are no chunk end the exchange with the VM, and nothing there looks like an end.
#[tokio::test]
async fn a_bad_chunk_after_good_ones_aborts() {
    use tokio::io::AsyncWriteExt;
    for http2 in [false, true] {
        let vm = if http2 { origin().http2() } else { origin() }.start().await;
        let gw = start(&vm, http2).await;
        for version in [Version::H1, Version::H1Tls] {
            vm.forget();
            let mut io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
            let begin =
                b"POST / HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
            io.write_all(begin).await.unwrap();
            vm.saw("the good chunk", |r| r.length == 5).await;
            io.write_all(b"this is no chunk\r\n0\r\n\r\n").await.unwrap();
            let mut reader = foregate_tests::Reader::new(io);
            if let Ok(Some(head)) = within("an answer", reader.head()).await {
                assert_eq!(foregate_tests::parse_response(&head).unwrap().0, 400, "{version:?}");
            }
            vm.saw("the end", |r| matches!(r.delivery, Delivery::Broken(_))).await;
            let wire = vm.wire().concat();
            assert!(!wire.ends_with(b"0\r\n\r\n"), "{version:?}");
        }
        assert_eq!(gw.request(Version::H1, get("/")).await.status, 200);
        gw.stop().await;
    }
}

/// A VM's interim answers without end are not an answer.
#[tokio::test]
async fn a_vm_that_only_informs_and_dies_is_502() {
    let vm = origin()
        .on("/", |call| {
            Box::pin(async move {
                call.inform(102, &Fields::new()).await;
                call.die();
            })
        })
        .start()
        .await;
    let gw = start(&vm, false).await;
    for version in Version::ALL {
        assert_eq!(gw.request(version, post("/", "x")).await.status, 502, "{version:?}");
    }
    gw.stop().await;
}
