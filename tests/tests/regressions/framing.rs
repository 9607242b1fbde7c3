//! Bytes that are no HTTP/1.1, from clients and from VMs.

use foregate_tests::{
    Delivery, Fields, Origin, OriginBuilder, Version, eventually, get, latin1, origin, raw,
};
use tokio::io::AsyncWriteExt;

use super::{Heard, Side, hear, serving, serving_at};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n";

/// Bodies that break their framing.
fn broken_bodies() -> Vec<(&'static str, String)> {
    vec![
        ("a size that is none", "zz\r\n".to_owned()),
        ("a second size that is none", "5\r\nhello\r\nzz\r\n".to_owned()),
        ("data beyond the size", "3\r\nabcdef\r\n".to_owned()),
        ("a trailer name that is none", "5\r\nhello\r\n0\r\nX Y: 1\r\n\r\n".to_owned()),
        ("a trailer without a colon", "0\r\nnothing\r\n\r\n".to_owned()),
        ("a folded trailer", "0\r\nX: 1\r\n y\r\n\r\n".to_owned()),
        ("trailers without measure", format!("0\r\n{}\r\n", "X: yyyyyy\r\n".repeat(2_000))),
    ]
}

/// `/early` is answered without a look at its body, and nothing more of it is ever read.
fn early() -> OriginBuilder {
    origin().on("/early", |call| {
        Box::pin(async move {
            call.reply(200, &Fields::new(), "early").await;
            std::future::pending::<()>().await;
        })
    })
}

async fn whole_vm(http2: bool) -> Origin {
    if http2 { early().http2() } else { early() }.start().await
}

/// What these bytes are answered with, and everything that is answered after it.
async fn answers(io: Box<dyn foregate_tests::Io>, parts: &[&str]) -> Vec<Heard> {
    let (read, mut write) = tokio::io::split(io);
    for part in parts {
        // An early answer may close before all is written.
        let _ = write.write_all(part.as_bytes()).await;
        let _ = write.flush().await;
    }
    let mut reader: Side = foregate_tests::Reader::new(read);
    let mut all = Vec::new();
    while let Some(heard) = hear(&mut reader).await {
        all.push(heard);
    }
    drop(write);
    all
}

/// Where a broken body ends nobody knows: what follows it is no request, whoever was to read the body.
#[tokio::test]
async fn nothing_after_a_broken_body_is_a_request() {
    let own = "routes = [{ paths = \"=/own\", respond = { status = 200, body = \"own\" } }]";
    for http2 in [false, true] {
        let vm = whole_vm(http2).await;
        let gw = serving(&vm, http2, own, "").await;
        for version in [Version::H1, Version::H1Tls] {
            for (what, body) in broken_bodies() {
                for target in ["/read", "/early", "/own"] {
                    // The second one is for a decoder that would find its feet again.
                    for tail in ["", "0\r\n\r\n"] {
                        let place =
                            format!("{what}, {target}, {tail:?}, {version:?}, HTTP/2 to the VM: {http2}");
                        let head = format!(
                            "POST {target} HTTP/1.1\r\nHost: shop.test\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                        );
                        let io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
                        let heard = answers(io, &[&format!("{head}{body}{tail}{SMUGGLED}")]).await;
                        let [(status, fields, _)] = &heard[..] else { panic!("{place}: {heard:?}") };
                        if *status == 400 {
                            assert!(fields.lists("connection", "close"), "{place}: {fields:?}");
                        } else {
                            // Whoever does not read the body cannot know in time.
                            assert!(*status == 200 && target != "/read", "{place}: {heard:?}");
                        }
                    }
                }
            }
        }
        let read = eventually("the end of the broken requests", || {
            let read: Vec<_> = vm.requests().into_iter().filter(|r| r.target == "/read").collect();
            read.iter().all(|r| r.delivery != Delivery::Reading).then_some(read)
        })
        .await;
        assert!(read.iter().all(|r| r.delivery != Delivery::Complete), "{read:#?}");
        let smuggled: Vec<_> = vm.requests().into_iter().filter(|r| r.target == "/smuggled").collect();
        assert!(smuggled.is_empty(), "HTTP/2 to the VM: {http2}: {smuggled:#?}");
        assert!(!latin1(&vm.wire().concat()).contains("/smuggled"), "HTTP/2 to the VM: {http2}");
        gw.stop().await;
    }
}

/// The same where the break comes after the VM has seen the good beginning.
#[tokio::test]
async fn nothing_after_a_body_that_breaks_late_is_a_request() {
    for http2 in [false, true] {
        let vm = whole_vm(http2).await;
        let gw = serving(&vm, http2, "", "").await;
        for version in [Version::H1, Version::H1Tls] {
            for (what, body) in broken_bodies() {
                vm.forget();
                let place = format!("{what}, {version:?}, HTTP/2 to the VM: {http2}");
                let mut io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
                let good = "POST /read HTTP/1.1\r\nHost: shop.test\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ngood\r\n";
                io.write_all(good.as_bytes()).await.unwrap();
                io.flush().await.unwrap();
                vm.saw("the good chunk", |r| r.length == 4).await;
                let heard = answers(io, &[&body, SMUGGLED]).await;
                let [(400, fields, _)] = &heard[..] else { panic!("{place}: {heard:?}") };
                assert!(fields.lists("connection", "close"), "{place}: {fields:?}");
                vm.saw("the end", |r| matches!(r.delivery, Delivery::Broken(_))).await;
                assert_eq!(vm.requests().len(), 1, "{place}: {:#?}", vm.requests());
            }
        }
        gw.stop().await;
    }
}

/// Empty lines before a request line are tolerated, a CR that ends no line is not.
#[tokio::test]
async fn a_lone_cr_before_the_request_line_is_refused() {
    let vm = origin().start().await;
    let gw = serving(&vm, false, "", "").await;
    let get = "GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
    let first = "GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n";
    for version in [Version::H1, Version::H1Tls] {
        for (before, expected) in [
            (&["\r"][..], &[400][..]),
            (&["\r\r\n"], &[400]),
            (&["\r", "\r"], &[400]),
            (&["\r\n\r"], &[400]),
            (&["\r\n"], &[200]),
            (&["\r", "\n"], &[200]),
            (&["\r\n\r", "\n"], &[200]),
            (&[first, "\r"], &[200, 400]),
            (&[first, "\r", "\n"], &[200, 200]),
        ] {
            vm.forget();
            let io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
            let heard = answers(io, &[before, &[get]].concat()).await;
            let statuses: Vec<u16> = heard.iter().map(|(status, ..)| *status).collect();
            assert_eq!(statuses, expected, "{version:?} {before:?}");
            let served = expected.iter().filter(|status| **status == 200).count();
            assert_eq!(vm.requests().len(), served, "{version:?} {before:?}");
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_status_that_is_none_is_502() {
    for status in ["600", "799", "999"] {
        let vm = raw(format!("HTTP/1.1 {status} What\r\nContent-Length: 2\r\n\r\nab"), false).await;
        let gw = serving_at(&vm.address(), false, "", "").await;
        for version in Version::ALL {
            assert_eq!(gw.request(version, get("/")).await.status, 502, "{status} over {version:?}");
        }
        gw.stop().await;
    }
    let vm = origin()
        .http2()
        .on("/", |call| Box::pin(async move { call.reply(600, &Fields::new(), "ab").await }))
        .start()
        .await;
    let gw = serving(&vm, true, "", "").await;
    for version in Version::ALL {
        assert_eq!(gw.request(version, get("/")).await.status, 502, "600 by HTTP/2 over {version:?}");
    }
    gw.stop().await;
}

/// A VM's head has a limit of 256 KiB, whether it is one field or many.
#[tokio::test]
async fn a_response_head_beyond_its_limit_is_502() {
    let large = format!("X-Large: {}\r\n", "a".repeat(300 * 1024));
    let many: String = (0..200).map(|n| format!("X-{n}: {}\r\n", "a".repeat(1_500))).collect();
    for fields in [large, many] {
        let vm = raw(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{fields}\r\nab"), false).await;
        let gw = serving_at(&vm.address(), false, "", "").await;
        for version in Version::ALL {
            let reply = gw.request(version, get("/")).await;
            assert_eq!(reply.status, 502, "{version:?}, a head of {} bytes", fields.len());
        }
        gw.stop().await;
    }
}

/// An absolute target may have no path; what a VM gets has one (RFC 9112, section 3.2.1).
#[tokio::test]
async fn a_vm_gets_a_path() {
    for http2 in [false, true] {
        let vm = whole_vm(http2).await;
        let gw = serving(&vm, http2, "", "").await;
        let request = "GET http://shop.test?b HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
        let heard = answers(gw.dial("shop.test").http1(false).await.unwrap(), &[request]).await;
        assert_eq!(heard.first().map(|(status, ..)| *status), Some(200), "HTTP/2 to the VM: {http2}");
        assert_eq!(vm.requests()[0].target, "/?b", "HTTP/2 to the VM: {http2}");
        gw.stop().await;
    }
}
