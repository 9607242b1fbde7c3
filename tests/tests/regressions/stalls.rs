//! Parties that stop in the middle, and how long the others wait for them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use foregate_tests::{
    Body, Delivery, Error, Fields, Lease, Version, eventually, eventually_async, get, lease, origin, post,
    request, within,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Notify,
    task::JoinHandle,
};

use super::{serving, serving_at, took_less};

const KIB: usize = 1 << 10;
const MIB: u64 = 1 << 20;

fn loopback(port: u16) -> std::net::SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// A VM that accepts connections and never reads from them.
struct Deaf {
    lease: Lease,
    task: JoinHandle<()>,
}

impl Deaf {
    async fn start() -> Deaf {
        let lease = lease();
        let bind = || async { TcpListener::bind(loopback(lease.port)).await.ok() };
        let listener = eventually_async("the VM's port", bind).await;
        let task = tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                held.push(stream);
            }
        });
        Deaf { lease, task }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.lease.port)
    }

    /// The connections to it that somebody still has a use for, as the kernel tells them: what the gateway
    /// has closed cannot be seen from a side that does not read.
    fn connections(&self) -> usize {
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
        let to_us = format!("0100007F:{:04X}", self.lease.port);
        let established = |line: &&str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.get(2) == Some(&&*to_us) && words.get(3) == Some(&"01")
        };
        table.lines().filter(established).count()
    }
}

impl Drop for Deaf {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A VM that takes nothing does not answer either, however much of the request is left to send.
#[tokio::test]
async fn a_vm_that_never_reads_a_large_upload_is_504() {
    for http2 in [false, true] {
        let vm = Deaf::start().await;
        let gw = serving_at(&vm.address(), http2, "timeouts = { response = \"1s\" }", "").await;
        // All at once: a connection on which HTTP/2's pings are not answered does not live long.
        let scenario = async |version: Version| {
            for announced in [true, false] {
                let mut upload = post("/", "").body(Body::Pattern(64 * MIB));
                upload.announced = announced;
                let begun = Instant::now();
                let reply = gw.request(version, upload).await;
                let place =
                    format!("{version:?}, announced: {announced}, HTTP/2 to the VM: {http2}: {reply:?}");
                assert_eq!(reply.status, 504, "{place}");
                took_less(begun, 8, &place);
            }
        };
        futures_util::future::join_all(Version::ALL.map(scenario)).await;
        eventually("the connections of HTTP/1.1 are given up", || {
            (http2 || vm.connections() == 0).then_some(())
        })
        .await;
        gw.stop().await;
    }
}

/// A client that leaves during a stalled upload is noticed, and the VM is told.
#[tokio::test]
async fn a_client_that_leaves_a_stalled_upload_ends_it_at_an_http2_vm() {
    // It reads nothing; what it may be sent is its window of 1 MiB.
    let vm = origin().http2().on("/", |call| Box::pin(call.gone())).start().await;
    let gw = serving(&vm, true, "", "").await;
    for version in [Version::H1, Version::H1Tls, Version::H2c, Version::H2] {
        for abruptly in [false, true] {
            vm.forget();
            let client = gw.client(version, "shop.test").await;
            let mut exchange = client.open(&post("/", "").body(Body::Pattern(10 * MIB))).await.unwrap();
            // More than the window, and little enough that nothing stays behind with the client.
            for _ in 0..(1024 + 48) / 16 {
                let piece = Bytes::from(vec![b'x'; 16 * KIB]);
                within("room for a piece", exchange.up.data(piece)).await.unwrap();
            }
            vm.saw("the upload", |_| true).await;
            if abruptly {
                drop((exchange, client));
            } else {
                exchange.up.cancel(&mut exchange.down);
            }
            let what = format!("the end at the VM: {version:?}, connection dropped: {abruptly}");
            vm.saw(&what, |r| matches!(r.delivery, Delivery::Broken(_))).await;
        }
    }
    gw.stop().await;
}

/// The same where the VM speaks HTTP/1.1 and its kernel takes what it will.
#[tokio::test]
async fn a_client_that_leaves_a_stalled_upload_ends_it_at_an_http1_vm() {
    for version in [Version::H2c, Version::H2] {
        for abruptly in [false, true] {
            let vm = Deaf::start().await;
            let gw = serving_at(&vm.address(), false, "", "").await;
            let client = gw.client(version, "shop.test").await;
            let mut exchange = client.open(&post("/", "").body(Body::Pattern(500 * MIB))).await.unwrap();
            let mut sent = 0;
            // Half a second without room for a piece: it is stalled.
            let stall = Duration::from_millis(500);
            let piece = Bytes::from(vec![b'x'; 64 * KIB]);
            while let Ok(sending) = tokio::time::timeout(stall, exchange.up.data(piece.clone())).await {
                sending.unwrap();
                sent += piece.len() as u64;
                assert!(sent < 400 * MIB, "it is never stalled");
            }
            assert_eq!(vm.connections(), 1, "{version:?}");
            if abruptly {
                drop((exchange, client));
            } else {
                exchange.up.cancel(&mut exchange.down);
            }
            let what = format!("the connection is closed: {version:?}, connection dropped: {abruptly}");
            eventually(&what, || (vm.connections() == 0).then_some(())).await;
            gw.stop().await;
        }
    }
}

/// While the gateway looks after its own limits, what a slow client sends goes on to the VM.
#[tokio::test]
async fn a_slow_upload_goes_on_piece_by_piece() {
    for http2 in [false, true] {
        let vm = if http2 { origin().http2() } else { origin() }.start().await;
        let gw = serving(&vm, http2, "timeouts = { response = \"400ms\" }", "").await;
        for version in Version::ALL {
            vm.forget();
            let client = gw.client(version, "shop.test").await;
            let mut exchange = client.open(&post("/", "").body(Body::Pattern(10))).await.unwrap();
            for number in 1..=10 {
                // Longer than the pauses between two looks at the VM's limit.
                tokio::time::sleep(Duration::from_millis(150)).await;
                exchange.up.data(Bytes::from_static(b"x")).await.unwrap();
                let what = format!("byte {number} at the VM, {version:?}, HTTP/2 to the VM: {http2}");
                vm.saw(&what, |r| r.length == number).await;
            }
            let _ = exchange.up.finish(&Fields::new()).await;
            assert_eq!(exchange.down.whole().await.unwrap().status, 200, "{version:?}");
        }
        gw.stop().await;
    }
}

/// A client that takes nothing for a while is no VM that pauses: after it the VM has its whole time again.
#[tokio::test]
async fn a_client_that_pauses_is_no_vm_that_pauses() {
    // One byte more than the client's window takes, so that the gateway has it and cannot pass it on.
    const AHEAD: u64 = MIB + 1;
    let rest = Arc::new(Notify::new());
    let bell = rest.clone();
    let answering = move || {
        let bell = bell.clone();
        origin().on("/", move |call| {
            let bell = bell.clone();
            Box::pin(async move {
                call.start(200, &Fields::new(), None).await;
                let _ = call.write_pattern(AHEAD).await;
                bell.notified().await;
                let _ = call.write(Bytes::from_static(b"the rest")).await;
                call.finish(&Fields::new()).await;
            })
        })
    };
    for http2 in [false, true] {
        let vm = if http2 { answering().http2() } else { answering() }.start().await;
        let gw = serving(&vm, http2, "timeouts = { idle = \"1s\" }", "").await;
        for version in [Version::H2c, Version::H2] {
            let place = format!("{version:?}, HTTP/2 to the VM: {http2}");
            let client = gw.client(version, "shop.test").await;
            let mut exchange = client.open(&get("/")).await.unwrap();
            assert_eq!(exchange.down.any_head().await.unwrap().0, 200, "{place}");
            // Longer than the VM may pause: what is tested is that this time is the client's.
            tokio::time::sleep(Duration::from_millis(1_300)).await;
            let mut length = 0;
            while length < AHEAD {
                let piece = exchange.down.data().await.unwrap_or_else(|e| panic!("{place}: {e}"));
                length += piece.expect("no end yet").len() as u64;
            }
            rest.notify_one();
            let piece = exchange.down.data().await.unwrap_or_else(|e| panic!("{place}: {e}"));
            assert_eq!(piece.as_deref(), Some(&b"the rest"[..]), "{place}");
            assert_eq!(exchange.down.data().await, Ok(None), "{place}");
        }
        gw.stop().await;
    }
}

/// A request without a body that does not say so is not waited for without end.
#[tokio::test]
async fn a_request_that_never_ends_is_not_waited_for() {
    let vm = origin()
        .on("/early", |call| {
            Box::pin(async move {
                call.reply(200, &Fields::new(), "early").await;
                std::future::pending::<()>().await;
            })
        })
        .start()
        .await;
    let gw = serving(&vm, false, "", "[server.timeouts]\nrequest_body = \"1s\"").await;
    let scenario = async |version: Version| {
        let client = gw.client(version, "shop.test").await;
        for method in ["GET", "HEAD", "DELETE", "POST"] {
            for target in ["/", "/early"] {
                // A body, even an empty one, is what the harness does not end by itself.
                let endless = request(method, target).body(Body::Pattern(0)).unannounced();
                let place = format!("{method} {target} over {version:?}");
                let begun = Instant::now();
                let mut exchange = client.open(&endless).await.unwrap();
                let result = exchange.down.whole().await;
                match &result {
                    Ok(_) | Err(Error::Broken(_)) => {}
                    Err(other) => panic!("{place}: {other}"),
                }
                took_less(begun, 8, &place);
                drop(exchange);
                // It is the request's trouble and nobody else's.
                assert_eq!(client.send(&get("/")).await.unwrap().status, 200, "{place}");
            }
        }
    };
    tokio::join!(scenario(Version::H3), scenario(Version::H2), scenario(Version::H2c));
    gw.stop().await;
}

/// A VM whose kernel takes no more connections: nobody has accepted those that fill its queue.
struct Full {
    lease: Lease,
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Full {
    async fn start() -> Full {
        let lease = lease();
        let listen = || async {
            let socket = TcpSocket::new_v4().ok()?;
            socket.set_reuseaddr(true).ok()?;
            socket.bind(loopback(lease.port)).ok()?;
            socket.listen(0).ok()
        };
        let listener = eventually_async("the VM's port", listen).await;
        let mut queue = Vec::new();
        // On this machine a connection takes microseconds, or for ever.
        let patience = Duration::from_millis(500);
        while let Ok(connected) =
            tokio::time::timeout(patience, TcpStream::connect(loopback(lease.port))).await
        {
            queue.push(connected.unwrap());
            assert!(queue.len() < 100, "the queue is never full");
        }
        Full { lease, _listener: listener, _queue: queue }
    }
}

/// Whoever waits for somebody else's connection does not wait for one of its own after that.
#[tokio::test]
async fn requests_at_once_wait_for_one_connect_timeout() {
    let vm = Full::start().await;
    let address = format!("127.0.0.1:{}", vm.lease.port);
    for http2 in [true, false] {
        let scheme = if http2 { "h2c://" } else { "" };
        let pool = format!(
            "[pools.vm]\nbackends = \"{scheme}{address}\"\ntimeouts = {{ connect = \"1s\" }}\n\
             [sites.\"shop.test\"]\npool = \"vm\"\n"
        );
        let gw = foregate_tests::gateway().named(&["shop.test"]).toml(&pool).start().await;
        for version in [Version::H1, Version::H2, Version::H3] {
            let client = gw.client(version, "shop.test").await;
            let begun = Instant::now();
            let (first, second) = (get("/"), post("/", "hello"));
            let requests = (0..8).map(|n| client.send(if n % 2 == 0 { &first } else { &second }));
            let replies = futures_util::future::join_all(requests).await;
            let place = format!("8 requests over {version:?}, HTTP/2 to the VM: {http2}");
            for reply in replies {
                assert_eq!(reply.unwrap().status, 504, "{place}");
            }
            took_less(begun, 3, &place);
        }
        gw.stop().await;
    }
}
