//! What floods and bombs cost: little, and the one who sends them pays first.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use bytes::Bytes;
use foregate_tests::{
    Error, Gateway, Io, Origin, PATIENCE, Version, eventually,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, GET, HEADERS, PING, RST_STREAM, SETTINGS, frame,
        opening, request_block,
    },
    gateway, get, origin, post, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const MIB: u64 = 1 << 20;

async fn scene() -> (Origin, Gateway) {
    let vm = origin().on("/held", |call| Box::pin(call.gone())).start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    (vm, gw)
}

/// A raw HTTP/2 connection whose incoming side is read away.
async fn http2(gw: &Gateway) -> tokio::io::WriteHalf<Box<dyn Io>> {
    let (mut read, mut write) = tokio::io::split(gw.dial("shop.test").http2(true).await.unwrap());
    tokio::spawn(async move {
        let mut sink = vec![0; 64 * 1024];
        while let Ok(1..) = read.read(&mut sink).await {}
    });
    write.write_all(&opening()).await.unwrap();
    write
}

/// A request for what is never answered.
fn held(flags: u8, stream: u32) -> Vec<u8> {
    frame(HEADERS, flags, stream, &request_block(GET, true, "/held", b""))
}

async fn still_serves(gw: &Gateway) {
    for version in Version::ALL {
        let reply = within("an answer after all that", gw.request(version, get("/"))).await;
        assert_eq!(reply.status, 200, "{version:?}");
    }
}

/// Field sections larger than `request_head`, on the versions that compress them.
#[tokio::test]
async fn heads_are_limited_on_every_version() {
    let (vm, gw) = scene().await;
    for version in Version::ALL {
        for request in [
            get("/").field("x-large", &"a".repeat(40_000)),
            (0..2_000).fold(get("/"), |r, n| r.field("x-many", &format!("value number {n}"))),
            get(&format!("/{}", "a".repeat(40_000))),
        ] {
            match gw.try_request(version, &request).await {
                Ok(reply) => assert!(matches!(reply.status, 414 | 431), "{version:?}: {reply:?}"),
                // HTTP/3 clients are told the limit and do not even try.
                Err(Error::Broken(_)) => {}
                Err(other) => panic!("{version:?}: {other}"),
            }
        }
        let fits = get("/").field("x-large", &"a".repeat(20_000));
        assert_eq!(gw.request(version, fits).await.status, 200, "{version:?}");
    }
    assert!(vm.requests().iter().all(|r| r.fields.get("x-large").is_none_or(|v| v.len() == 20_000)));
    gw.stop().await;
}

/// Rapid reset (CVE-2023-44487): streams opened and reset at once never pile up at the VM.
#[tokio::test]
async fn rapid_reset_does_not_pile_up() {
    let (vm, gw) = scene().await;
    gw.process.reset_peak();
    let before = gw.process.memory("VmRSS");
    let mut write = http2(&gw).await;
    // One that is not reset: the bytes are good, and what follows is served by the same rules.
    write.write_all(&held(END_HEADERS | END_STREAM, 1)).await.unwrap();
    vm.saw("the held one", |r| r.target == "/held").await;
    for number in 1..20_000_u32 {
        let stream = number * 2 + 1;
        let pair =
            [held(END_HEADERS | END_STREAM, stream), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())]
                .concat();
        // The gateway may well have enough of it: that is one way to bear it.
        if write.write_all(&pair).await.is_err() {
            break;
        }
    }
    drop(write);
    eventually("the VM is rid of them", || (vm.open() <= 20).then_some(())).await;
    assert!(gw.process.memory("VmHWM").saturating_sub(before) < 64 * MIB);
    still_serves(&gw).await;
    gw.stop().await;
}

/// Rapid reset by many connections, each of which resets only what the gateway has taken: then the protocol alone
/// bounds nothing, and what was reset must not wait to be looked at in ever longer rows.
#[tokio::test]
async fn resets_of_many_connections_do_not_pile_up() {
    const CONNECTIONS: u64 = 24;
    const STREAMS: u32 = 60;
    // The streams there may be of each connection, with some that were reset, and what one may take.
    const HELD: u64 = CONNECTIONS * 192 * 16 * 1024;
    let (_vm, gw) = scene().await;
    gw.process.reset_peak();
    let before = gw.process.memory("VmRSS");
    let mut attackers = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let mut stream = gw.dial("shop.test").http2(true).await.unwrap();
        attackers.spawn(async move {
            let mut taken = 0;
            stream.write_all(&opening()).await.unwrap();
            for round in 0..100_u32 {
                let ids = (0..STREAMS).map(|n| (round * STREAMS + n) * 2 + 1);
                let mut bytes: Vec<u8> =
                    ids.clone().flat_map(|id| held(END_HEADERS | END_STREAM, id)).collect();
                bytes.extend(frame(PING, 0, 0, &u64::from(round).to_be_bytes()));
                let asked = async {
                    stream.write_all(&bytes).await?;
                    // Its answer tells that they were taken.
                    while next_frame(&mut stream).await? != PING {}
                    let resets = ids.flat_map(|id| frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
                    stream.write_all(&resets.collect::<Vec<u8>>()).await
                };
                // The gateway may have enough of it: that is one way to bear it.
                if asked.await.is_err() {
                    break;
                }
                taken += STREAMS;
            }
            taken
        });
    }
    while let Some(taken) = attackers.join_next().await {
        assert!(taken.unwrap() > 0, "a connection was not served at all");
    }
    let grown = gw.process.memory("VmHWM").saturating_sub(before);
    assert!(grown < HELD + 16 * MIB, "grew by {} MiB", grown / MIB);
    still_serves(&gw).await;
    gw.stop().await;
}

/// Reads a frame away, and returns its kind.
async fn next_frame(stream: &mut Box<dyn Io>) -> std::io::Result<u8> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    stream.read_exact(&mut vec![0; length as usize]).await?;
    Ok(head[3])
}

/// CONTINUATION without end (VU#421644) is cut before it costs much.
#[tokio::test]
async fn endless_continuation_is_cut() {
    let (vm, gw) = scene().await;
    gw.process.reset_peak();
    let before = gw.process.memory("VmRSS");
    let mut write = http2(&gw).await;
    let mut sent = write.write_all(&held(END_STREAM, 1)).await;
    // A literal field without indexing, of 16,000 bytes with its name.
    let mut field = vec![0x00, 1, b'x', 0x7f, 0x80, 0x7c];
    field.resize(6 + 127 + 15_872, b'y');
    for _ in 0..20_000 {
        if sent.is_err() {
            break;
        }
        sent = write.write_all(&frame(CONTINUATION, 0, 1, &field)).await;
    }
    assert!(sent.is_err(), "300 MB of one head were taken");
    assert!(gw.process.memory("VmHWM").saturating_sub(before) < 32 * MIB);
    assert!(vm.requests().is_empty());
    still_serves(&gw).await;
    gw.stop().await;
}

/// Frames that carry nothing are work for nothing; others are served meanwhile.
#[tokio::test]
async fn empty_frames_starve_nobody() {
    let (vm, gw) = scene().await;
    let mut write = http2(&gw).await;
    write.write_all(&held(END_HEADERS, 1)).await.unwrap();
    vm.saw("the held one", |r| r.target == "/held").await;
    let flood = tokio::spawn(async move {
        let batch = [frame(DATA, 0, 1, b""), frame(PING, 0, 0, &[0; 8]), frame(SETTINGS, 0, 0, b"")]
            .concat()
            .repeat(200);
        for _ in 0..200 {
            if write.write_all(&batch).await.is_err() {
                return;
            }
        }
    });
    still_serves(&gw).await;
    within("the flood", flood).await.unwrap();
    assert!(gw.process.memory("VmRSS") < 256 * MIB);
    still_serves(&gw).await;
    gw.stop().await;
}

/// More streams at once than `streams_per_connection` are refused or wait, and the connection lives.
#[tokio::test]
async fn streams_are_limited_per_connection() {
    let (vm, gw) = scene().await;
    for version in [Version::H2, Version::H3] {
        vm.forget();
        let client = gw.client(version, "shop.test").await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..300 {
            let client = client.clone();
            tasks.spawn(async move { client.send(&get("/held")).await });
        }
        // The default is 128.
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while vm.requests().len() < 128 {
            if let Ok(ended) = tokio::time::timeout(Duration::from_millis(5), tasks.join_next()).await {
                panic!("{version:?}: ended early: {ended:?}");
            }
            let count = vm.requests().len();
            assert!(tokio::time::Instant::now() < deadline, "{version:?}: only {count} of 128 are at the VM");
        }
        let other = gw.client(version, "shop.test").await;
        assert_eq!(other.send(&get("/")).await.unwrap().status, 200, "{version:?}");
        let held = vm.requests().iter().filter(|r| r.target == "/held").count();
        assert!(held <= 128, "{version:?}: {held} at once");
        tasks.abort_all();
        while tasks.join_next().await.is_some() {}
        drop(client);
    }
    gw.stop().await;
}

/// A body in single bytes is slow, and that is all it is.
#[tokio::test]
async fn a_body_in_single_bytes_is_whole() {
    let (vm, gw) = scene().await;
    for version in Version::ALL {
        vm.forget();
        let client = gw.client(version, "shop.test").await;
        let mut exchange = client.open(&post("/", "").unannounced()).await.unwrap();
        for number in 0..2_000_u32 {
            exchange.up.data(Bytes::from(vec![number as u8])).await.unwrap();
        }
        exchange.up.finish(&foregate_tests::Fields::new()).await.unwrap();
        assert_eq!(exchange.down.whole().await.unwrap().status, 200, "{version:?}");
        assert_eq!(vm.only().length, 2_000, "{version:?}");
    }
    gw.stop().await;
}
