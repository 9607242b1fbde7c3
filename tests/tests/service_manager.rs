//! Sockets that a service manager binds for the gateway, or keeps for the next one: the protocol of systemd, without it.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use foregate_tests::{
    Gateway, GatewayBuilder, Version, binary, eventually, eventually_async, foreign::finish, gateway, get,
    holding, within,
};
use rustix::process::{Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Started by a service manager that binds so many sockets for it.
fn managed(gives: &str) -> GatewayBuilder {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/service_manager.py");
    gateway().within(&["python3", "-B", script.to_str().unwrap(), gives])
}

async fn connect(gw: &Gateway) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", gw.http_port())).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\r\n").await.unwrap();
    stream
}

async fn answer(mut stream: TcpStream) -> String {
    let mut text = String::new();
    within("an answer", stream.read_to_string(&mut text)).await.unwrap();
    text
}

#[tokio::test]
async fn however_many_sockets_are_given_each_is_heard() {
    let vm = holding("a", &Arc::default()).await;
    // As a socket unit gives one; others as a gateway with another number of workers has left them.
    for gives in ["1", "3", "7"] {
        let gw = managed(gives).server("workers", "3").site("shop.test", &vm).start().await;
        for round in 0..3 {
            for _ in 0..30 {
                let said = answer(connect(&gw).await).await;
                assert!(said.starts_with("HTTP/1.1 200"), "{gives}, round {round}: {said}");
            }
            match round {
                0 => drop(gw.told(&["reload"]).await),
                1 => drop(gw.told(&["upgrade"]).await),
                _ => assert_eq!(gw.request(Version::H3, get("/")).await.status, 200),
            }
        }
        let not_ours = gw.log().having(&["does not name it"]);
        assert!(not_ours.is_empty(), "{not_ours:?}");
    }
}

#[tokio::test]
async fn a_crash_refuses_nobody() {
    let vm = holding("a", &Arc::default()).await;
    let gw = managed("0").server("workers", "2").site("shop.test", &vm).start().await;
    let kept = || std::fs::read_to_string(gw.folder().join("kept")).unwrap_or_default();
    let (http, https) = (gw.http_port().to_string(), gw.https_port().to_string());
    // Two of each, one for each worker.
    eventually("all are kept", || (kept().lines().count() == 4).then_some(())).await;
    assert!(kept().contains(&http) && kept().contains(&https), "{}", kept());
    for _ in 0..2 {
        let pid = eventually("it runs", || gw.successors().first().copied()).await;
        kill_process(pid, Signal::KILL).unwrap();
        eventually("it has gone", || (!gw.successors().contains(&pid)).then_some(())).await;
        let mut waiting = Vec::new();
        for _ in 0..20 {
            waiting.push(connect(&gw).await);
        }
        std::fs::write(gw.folder().join("again"), "").unwrap();
        for stream in waiting {
            let said = answer(stream).await;
            assert!(said.starts_with("HTTP/1.1 200"), "{said}");
        }
    }
    // What the configuration does not name any more is not kept either.
    gw.edit(|text| text.replace(&format!("http = {http}\n"), "http = \"off\"\n"));
    // Operators are heard a moment after visitors.
    let reloads = async || gw.operate(&["reload"]).await.status.success().then_some(());
    eventually_async("it reloads", reloads).await;
    eventually("it is given back", || (!kept().contains(&http)).then_some(())).await;
    assert!(kept().contains(&https), "{}", kept());
    let refused = || async { TcpStream::connect(("127.0.0.1", gw.http_port())).await.err() };
    eventually_async("nobody listens", refused).await;
}

#[tokio::test]
async fn what_is_given_and_not_named_is_told() {
    let vm = holding("a", &Arc::default()).await;
    let gw = managed("other").site("shop.test", &vm).start().await;
    eventually("it is said", || gw.log().having(&["WARN", "does not name it"]).first().cloned()).await;
    assert_eq!(gw.request(Version::H1, get("/")).await.status, 200);
}

#[tokio::test]
async fn sockets_that_are_not_there_are_an_error() {
    let mut command = Command::new("sh");
    command
        .args(["-c", "export LISTEN_PID=$$ LISTEN_FDS=4000; exec \"$0\" run --config /nowhere"])
        .arg(binary());
    let done = finish(&mut command).await;
    assert_eq!(done.status.code(), Some(1), "{done:#?}");
    assert!(done.err.contains("LISTEN_FDS") && done.err.contains("correct"), "{done:#?}");
}
