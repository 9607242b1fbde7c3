//! Another process in the place of the running one: nothing is lost, and if it cannot be, nothing has happened.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use foregate_tests::{
    Gateway, GatewayBuilder, Held, Origin, Version, eventually, eventually_async, gateway, get, holding,
    within,
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
    clients: Vec<JoinHandle<()>>,
}

impl Crowd {
    async fn gather(gw: &Arc<Gateway>) -> Crowd {
        let (over, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut clients = Vec::new();
        for version in Version::ALL {
            for lasting in [true, false] {
                let (gw, over, asked) = (gw.clone(), over.clone(), asked.clone());
                clients.push(tokio::spawn(async move {
                    let mut client = gw.client(version, "shop.test").await;
                    while !over.load(Ordering::Relaxed) {
                        if !lasting {
                            client = gw.client(version, "shop.test").await;
                        }
                        let reply = match client.send(&get("/")).await {
                            Ok(reply) => reply,
                            // It was told to go, as every client is at times: then it asks anew.
                            Err(why) if lasting && told_to_go(version, &why.to_string()) => {
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
        let crowd = Crowd { over, asked, clients };
        crowd.goes_on().await;
        crowd
    }

    async fn goes_on(&self) {
        let before = self.asked.load(Ordering::Relaxed);
        eventually("clients go on", || (self.asked.load(Ordering::Relaxed) > before + 40).then_some(()))
            .await;
    }

    async fn leaves(self) {
        self.over.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
    }
}

/// What clients of HTTP/2 and HTTP/3 say when they have seen a GOAWAY and did not send the request.
fn told_to_go(version: Version, why: &str) -> bool {
    !version.is_h1()
        && ["closing", "GOAWAY", "NO_ERROR", "closed", "H3_NO_ERROR", "goaway", "not a result"]
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
    crowd.leaves().await;
    assert_eq!(gw.log().having(&["panicked"]), [""; 0]);
}

#[tokio::test]
async fn what_is_known_goes_on() {
    let vm = holding("a", &Arc::default()).await;
    let gw = before(&vm, "5s").named(&["new.test"]).start().await;
    let backend = format!("sites.shop.test/{}", vm.address());
    gw.told(&["weight", &backend, "7"]).await;
    // The file says something else by now; that is for a reload.
    gw.edit(|text| text + "[sites.\"new.test\"]\nrespond = { status = 418 }\n");
    gw.told(&["upgrade"]).await;
    is_alone(&gw).await;
    let status = gw.told(&["status"]).await;
    assert!(status.starts_with("running is not the file: one difference"), "{status}");
    assert!(status.contains(&format!("override: {backend} weight 7")), "{status}");
    assert_eq!(gw.told(&["history"]).await.lines().count(), 2, "it is the same configuration");
    gw.told(&["reload"]).await;
    assert_eq!(gw.request(Version::H1, get("/").host("new.test")).await.status, 418);
}

/// Puts a program in the place of the gateway's, as an installer does.
fn install(gw: &Gateway, content: &[u8]) {
    let (aside, place) = (gw.folder().join("aside"), gw.folder().join("program"));
    std::fs::write(&aside, content).unwrap();
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(aside, place).unwrap();
}

fn install_file(gw: &Gateway, file: &Path) {
    install(gw, &std::fs::read(file).unwrap());
}

#[tokio::test]
async fn a_successor_that_fails_changes_nothing() {
    let release = Arc::new(Notify::new());
    let vm = holding("a", &release).await;
    let gw = Arc::new(before(&vm, "5s").copied("program").start().await);
    let (crowd, held) = (Crowd::gather(&gw).await, Held::all(&gw, "shop.test").await);
    let old = pid(&gw).await;
    for (program, complaint) in [
        (&b"#!/bin/sh\nexit 3\n"[..], "ended before it served (exit status: 3)"),
        (b"not a program", "cannot be started"),
        (b"#!/bin/sh\nkill -9 $$\n", "signal: 9"),
        (
            b"#!/bin/sh\nhead -c 1000 >/dev/null\nprintf '\\000\\000\\000\\002{}' >&0\nsleep 9\n",
            "something else than that it is ready",
        ),
    ] {
        install(&gw, program);
        let said = gw.refused(&["upgrade"]).await;
        assert!(said.contains(complaint) && said.contains("goes on as it was"), "{said}");
        assert_eq!(pid(&gw).await, old);
        crowd.goes_on().await;
    }
    // One that is killed at any point of the hand-over.
    let real = gw.folder().join("real");
    std::fs::copy(foregate_tests::binary(), &real).unwrap();
    let (mut failed, mut point) = (0, 0);
    while failed < 12 && point < 40 {
        point += 1;
        let script = format!(
            "#!/bin/sh\nexport FOREGATE_SUCCESSOR_OF=$$\n{} \"$@\" <&0 &\nsleep 0.{:03}\nkill -9 $!\nwait\nexit 1\n",
            real.display(),
            point * 3 % 60,
        );
        install(&gw, script.as_bytes());
        let output = gw.operate(&["upgrade"]).await;
        // One that has taken over and is killed afterwards is a crash like any other.
        assert!(!output.status.success(), "at point {point} it was too late: {:?}", output.stdout);
        failed += 1;
        assert_eq!(pid(&gw).await, old);
        crowd.goes_on().await;
    }
    release.notify_waiters();
    rest_of(held).await;
    // And then one that does.
    install_file(&gw, foregate_tests::binary());
    gw.told(&["upgrade"]).await;
    assert_ne!(pid(&gw).await, old);
    crowd.goes_on().await;
    crowd.leaves().await;
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
