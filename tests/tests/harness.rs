//! The harness against itself: clients on origins without a gateway between them.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::net::SocketAddr;

use bytes::Bytes;
use foregate_tests::{
    Body, Client, Delivery, Dial, Error, Fields, Origin, Version, digest_of, get, head, origin, post, within,
};

const DIRECT: [Version; 4] = [Version::H1, Version::H1Tls, Version::H2c, Version::H2];

async fn pair(version: Version, builder: impl Fn() -> foregate_tests::OriginBuilder) -> (Origin, Client) {
    let mut builder = builder();
    if version.is_h2() {
        builder = builder.http2();
    }
    if version.tls() {
        builder = builder.tls("vm.test", false);
    }
    let vm = builder.start().await;
    let at = SocketAddr::from(([127, 0, 0, 1], vm.port()));
    let dial = Dial { http: at, https: at, ..Dial::loopback(0, 0, "vm.test") };
    let client = Client::connect(&dial, version).await.unwrap();
    (vm, client)
}

#[tokio::test]
async fn a_body_and_trailers_go_both_ways() {
    for version in DIRECT {
        let (vm, client) = pair(version, || {
            origin().named("a").on("/", |call| {
                Box::pin(async move {
                    let mut sum = 0;
                    while let Ok(Some(piece)) = call.data().await {
                        sum += piece.len() as u64;
                    }
                    call.inform(103, &Fields::new().with("link", "</x>")).await;
                    call.start(201, &Fields::new(), None).await;
                    call.write_pattern(sum).await.unwrap();
                    call.finish(&Fields::new().with("x-end", "yes")).await;
                })
            })
        })
        .await;
        let wanted = post("/x?y", "").body(Body::Pattern(3_000_000)).trailer("x-sum", "1").field("A", "b");
        let reply = client.send(&wanted).await.unwrap();
        assert_eq!((reply.status, reply.vm(), reply.length), (201, "a", 3_000_000), "{version:?}");
        assert_eq!(reply.digest, digest_of(3_000_000));
        assert_eq!(reply.trailers.get("x-end"), Some("yes"), "{version:?}");
        assert_eq!(reply.interim.len(), 1, "{version:?}");
        let seen = vm.only();
        assert_eq!(
            (seen.method.as_str(), seen.target.as_str(), seen.host.as_str()),
            ("POST", "/x?y", "shop.test")
        );
        assert_eq!((seen.delivery, seen.digest), (Delivery::Complete, digest_of(3_000_000)));
        assert_eq!(seen.trailers.get("x-sum"), Some("1"));
        assert_eq!(seen.fields.get("a"), Some("b"));
        // The connection is used again.
        assert_eq!(client.send(&get("/again")).await.unwrap().status, 201);
        assert_eq!((vm.accepted(), vm.open()), (1, 1), "{version:?}");
    }
}

#[tokio::test]
async fn head_has_no_body() {
    for version in DIRECT {
        let (_vm, client) = pair(version, origin).await;
        for _ in 0..2 {
            let reply = client.send(&head("/")).await.unwrap();
            assert_eq!(
                (reply.status, reply.length, reply.field("content-length")),
                (200, 0, "3"),
                "{version:?}"
            );
        }
    }
}

#[tokio::test]
async fn a_broken_body_is_an_error() {
    for version in DIRECT {
        for length in [None, Some(100)] {
            let (_vm, client) = pair(version, || {
                origin().on("/", move |call| {
                    Box::pin(async move {
                        call.start(200, &Fields::new(), length).await;
                        let _ = call.write(Bytes::from_static(b"half")).await;
                        call.die();
                    })
                })
            })
            .await;
            let result = client.send(&get("/")).await;
            assert!(matches!(result, Err(Error::Broken(_))), "{version:?}: {result:?}");
        }
    }
}

#[tokio::test]
async fn a_client_that_cancels_is_noticed() {
    for version in DIRECT {
        let (vm, client) = pair(version, || origin().on("/", |call| Box::pin(call.gone()))).await;
        let mut exchange = client.open(&get("/")).await.unwrap();
        vm.saw("the request", |_| true).await;
        exchange.up.cancel(&mut exchange.down);
        vm.saw("the cancellation", |r| matches!(r.delivery, Delivery::Broken(_))).await;
    }
}

#[tokio::test]
async fn an_origin_goes_down_and_up() {
    let (mut vm, client) = pair(Version::H1, origin).await;
    assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
    within("going down", vm.down()).await;
    assert!(client.send(&get("/")).await.is_err());
    vm.up().await;
    assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
}

#[tokio::test]
async fn doubtful_bytes_are_a_fault() {
    let (vm, _client) = pair(Version::H1, origin).await;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", vm.port())).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\nHost: x\n\n\r\n\r\n").await.unwrap();
    assert_eq!(stream.read(&mut [0; 10]).await.unwrap_or(0), 0);
    assert_eq!(vm.take_faults().len(), 1);
}
