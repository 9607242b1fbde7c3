//! Another process in the place of the running one: nothing is lost, and if it cannot be, nothing has happened.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod fails;
mod operators;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use foregate_tests::{
    Gateway, GatewayBuilder, Held, Origin, Recorded, Version, copy_program, eventually, eventually_async,
    gateway, get, holding, within,
};
use futures_util::{SinkExt, StreamExt};
use rustix::process::{Signal, kill_process};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

fn before(vm: &Origin, drain: &str) -> GatewayBuilder {
    gateway()
        .server("workers", "2")
        .server("timeouts", &format!("{{ drain = {drain:?} }}"))
        .site("shop.test", vm)
}

/// Clients that ask all the time, over all versions: on connections of their own for as long as those last, and on new ones.
struct Crowd {
    over: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    /// What was asked in vain, and then asked anew.
    in_vain: Arc<Mutex<Vec<String>>>,
    clients: Vec<JoinHandle<()>>,
}

impl Crowd {
    async fn gather(gw: &Arc<Gateway>) -> Crowd {
        let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        // No two of them ask for the same.
        static CROWDS: AtomicUsize = AtomicUsize::new(0);
        let crowd = CROWDS.fetch_add(1, Ordering::Relaxed);
        let (in_vain, mut clients) = (Arc::<Mutex<Vec<String>>>::default(), Vec::new());
        for version in Version::ALL {
            for lasting in [true, false] {
                let (gw, over, asked, in_vain) = (gw.clone(), over.clone(), asked.clone(), in_vain.clone());
                clients.push(tokio::spawn(async move {
                    let mut client = gw.client(version, "shop.test").await;
                    let mut number = 0;
                    while !over.load(Ordering::Relaxed) {
                        if !lasting {
                            client = gw.client(version, "shop.test").await;
                        }
                        number += 1;
                        let target = format!("/{crowd}/{version:?}/{lasting}/{number}");
                        let reply = match client.send(&get(&target)).await {
                            Ok(reply) => reply,
                            // It was told to go, as every client is at times: then it asks anew.
                            Err(why) if lasting && told_to_go(version, &why.to_string()) => {
                                in_vain.lock().unwrap().push(target);
                                client = gw.client(version, "shop.test").await;
                                client.send(&get("/")).await.unwrap_or_else(|e| panic!("{version:?}: {e}"))
                            }
                            Err(why) => panic!("{version:?}, lasting: {lasting}: {why}"),
                        };
                        assert_eq!((reply.status, reply.vm()), (200, "a"), "{version:?}");
                        if reply.fields.lists("connection", "close") {
                            client = gw.client(version, "shop.test").await;
                        }
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }));
            }
        }
        let crowd = Crowd { over, asked, in_vain, clients };
        crowd.goes_on().await;
        crowd
    }

    async fn goes_on(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        eventually("clients go on", || (self.asked.load(Ordering::Relaxed) > before + 40).then_some(()))
            .await;
    }

    /// Checks that nobody asked twice for what the VM had been asked already.
    async fn leaves(self, vm: &Origin) {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        let in_vain = self.in_vain.lock().unwrap().clone();
        let lost = |request: &Recorded| in_vain.contains(&request.target);
        let lost: Vec<_> = vm.requests().into_iter().filter(lost).collect();
        assert!(lost.is_empty(), "{lost:#?}");
    }
}

/// What clients of HTTP/2 and HTTP/3 say when they have seen a GOAWAY and did not send the request.
fn told_to_go(version: Version, why: &str) -> bool {
    !version.is_h1()
        && [
            "closing",
            "GOAWAY",
            "REQUEST_REJECTED",
            "NO_ERROR",
            "closed",
            "H3_NO_ERROR",
            "goaway",
            "not a result",
        ]
        .iter()
        .any(|word| why.contains(word))
}

async fn pid(gw: &Gateway) -> i64 {
    let status = eventually_async("the administration answers", || async {
        let output = gw.operate(&["status", "--json"]).await;
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    })
    .await;
    serde_json::from_str::<serde_json::Value>(&status).unwrap()["pid"].as_i64().unwrap()
}

async fn is_alone(gw: &Gateway) {
    eventually_async("the process before has ended", || async {
        let output = gw.operate(&["status", "--json"]).await;
        let status = serde_json::from_slice::<serde_json::Value>(&output.stdout).ok()?;
        status["predecessor_drains_s"].is_null().then_some(())
    })
    .await;
}

/// Puts a program in the place of the gateway's, as an installer does.
fn install(gw: &Gateway, content: &[u8]) {
    let source = gw.folder().join("source");
    std::fs::write(&source, content).unwrap();
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o755)).unwrap();
    install_file(gw, &source);
}

fn install_file(gw: &Gateway, file: &Path) {
    let aside = gw.folder().join("aside");
    copy_program(file, &aside);
    std::fs::rename(aside, gw.folder().join("program")).unwrap();
}

async fn rest_of(all: Vec<Held>) {
    for held in all {
        held.ends_whole().await;
    }
}

#[tokio::test]
async fn nothing_is_lost_while_processes_follow_each_other() {
    let release = Arc::new(Notify::new());
    let vm = holding("a", &release).await;
    let gw = Arc::new(before(&vm, "20s").start().await);
    let crowd = Crowd::gather(&gw).await;
    // Three times: the third has the first one's sockets again.
    for round in 0..3 {
        let held = Held::all(&gw, "shop.test").await;
        let stream = gw.dial("shop.test").http1(false).await.unwrap();
        let (mut socket, _) = client_async("ws://shop.test/ws", stream).await.unwrap();
        let old = pid(&gw).await;
        if round == 1 {
            kill_process(*gw.successors().last().unwrap(), Signal::USR2).unwrap();
        } else {
            let said = gw.told(&["upgrade"]).await;
            assert!(said.contains(&format!("this one, {old}, drains")), "{said}");
        }
        eventually_async("another process answers", || async { (pid(&gw).await != old).then_some(()) }).await;
        crowd.goes_on().await;
        // The old process still has what it had.
        socket.send(Message::text("still there?")).await.unwrap();
        let echo = within("an echo", socket.next()).await.unwrap().unwrap();
        assert_eq!(echo.into_text().unwrap().as_str(), "still there?");
        let early = gw.refused(&["upgrade"]).await;
        assert!(early.contains("is still draining, for at most"), "{early}");
        release.notify_waiters();
        rest_of(held).await;
        drop(socket);
        is_alone(&gw).await;
        crowd.goes_on().await;
    }
    crowd.leaves(&vm).await;
    assert_eq!(gw.log().having(&["panicked"]), [""; 0]);
}

#[tokio::test]
async fn the_successor_of_a_process_that_is_killed_goes_on() {
    let release = Arc::new(Notify::new());
    let vm = holding("a", &release).await;
    let gw = before(&vm, "20s").start().await;
    let mut held = Held::all(&gw, "shop.test").await;
    gw.told(&["upgrade"]).await;
    gw.process.signal(Signal::KILL);
    is_alone(&gw).await;
    for version in Version::ALL {
        let reply = gw.request(version, get("/")).await;
        assert_eq!((reply.status, reply.vm()), (200, "a"), "{version:?}");
    }
    // Clients of the dead process need not wait for a time-out: their next packet is answered with a stateless reset.
    // That may have been an acknowledgement, sent before this asks.
    let held = held.pop().unwrap();
    let (begun, quic) = (std::time::Instant::now(), held.client.quic());
    if let Ok((mut send, _)) = quic.open_bi().await {
        _ = send.write_all(b"anybody?").await;
    }
    let reason = within("an end", quic.closed()).await.to_string();
    assert!(begun.elapsed().as_millis() < 1000, "{:?}", begun.elapsed());
    assert!(reason.contains("reset"), "{reason}");
}

#[tokio::test]
async fn the_service_manager_follows_and_the_watchdog_is_answered() {
    let vm = holding("a", &Arc::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = tokio::net::UnixDatagram::bind(&path).unwrap();
    // As a service manager starts it: the variable names this process, and none after it.
    let gw = before(&vm, "1s")
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "400000")
        .within(&["sh", "-c", "export WATCHDOG_PID=$$; exec \"$0\" \"$@\""])
        .start()
        .await;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = tokio::spawn({
        let heard = heard.clone();
        async move {
            let mut buffer = [0; 1024];
            loop {
                let length = manager.recv(&mut buffer).await.unwrap();
                heard.lock().unwrap().push(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        }
    });
    let hears = async |what: &str| {
        heard.lock().unwrap().clear();
        eventually(what, || heard.lock().unwrap().iter().find(|text| text.contains(what)).cloned()).await
    };
    hears("WATCHDOG=1").await;
    let (said, main) = tokio::join!(gw.told(&["upgrade"]), hears("MAINPID="));
    assert!(main.contains(&format!("MAINPID={}", pid(&gw).await)), "{main} {said}");
    is_alone(&gw).await;
    // Twice, since the first may be what the old one has said last.
    hears("WATCHDOG=1").await;
    hears("WATCHDOG=1").await;
    listener.abort();
}

#[tokio::test]
async fn the_old_process_drains_when_it_is_told_to_end() {
    let release = Arc::new(Notify::new());
    let vm = holding("a", &release).await;
    let mut gw = before(&vm, "20s").start().await;
    let held = Held::begin(gw.client(Version::H1, "shop.test").await, Version::H1).await;
    gw.told(&["upgrade"]).await;
    gw.terminate();
    eventually("it says so", || gw.log().having(&["once more ends it"]).first().cloned()).await;
    release.notify_waiters();
    held.ends_whole().await;
    assert!(gw.process.wait().await.success());
    assert_eq!(gw.request(Version::H2, get("/")).await.vm(), "a", "the new one goes on");
}

/// Where a link is what is called, what it leads to by then is the next program.
#[tokio::test]
async fn links_to_the_program_are_followed_anew() {
    let vm = holding("a", &Arc::default()).await;
    let gw = before(&vm, "1s")
        .copied("one")
        .within(&["sh", "-c", "cd $(dirname $0) && ln -s $0 link && exec ./link \"$@\""])
        .start()
        .await;
    std::fs::write(gw.folder().join("two"), "#!/bin/sh\nexit 7\n").unwrap();
    std::fs::set_permissions(gw.folder().join("two"), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("two", gw.folder().join("aside")).unwrap();
    std::fs::rename(gw.folder().join("aside"), gw.folder().join("link")).unwrap();
    let said = gw.refused(&["upgrade"]).await;
    assert!(said.contains("exit status: 7"), "{said}");
}

/// The kernel has accepted them for the process while that did nothing.
#[tokio::test]
async fn who_is_in_the_queue_is_served() {
    let vm = holding("a", &Arc::default()).await;
    let mut gw = before(&vm, "20s").server("workers", "1").start().await;
    gw.process.signal(Signal::STOP);
    let mut queue = Vec::new();
    for _ in 0..400 {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", gw.http_port())).unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n";
        std::io::Write::write_all(&mut stream, request).unwrap();
        queue.push(stream);
    }
    gw.terminate();
    gw.process.signal(Signal::CONT);
    let served = tokio::task::spawn_blocking(|| {
        let answer = |mut stream: std::net::TcpStream| {
            let mut text = String::new();
            std::io::Read::read_to_string(&mut stream, &mut text).is_ok() && text.starts_with("HTTP/1.1 200")
        };
        queue.into_iter().map(answer).filter(|well| *well).count()
    });
    assert_eq!(served.await.unwrap(), 400);
    gw.ended().await;
}
