//! Another configuration while the gateway runs: what has not changed goes on, what has changed holds from the next request
//! on, and what is wrong changes nothing.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use foregate_tests::{
    Client, Fields, Gateway, Held, Origin, Version, eventually, eventually_async, gateway, get, holding,
    lease, origin, within,
};
use futures_util::{SinkExt, StreamExt};
use rustix::process::{Signal, kill_process};
use tokio::sync::Notify;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

fn pool(backends: &[&Origin]) -> String {
    let entry = |vm: &&Origin| format!("{{ address = \"{}\", name = \"{}\" }}", vm.address(), vm.name());
    let backends: Vec<String> = backends.iter().map(entry).collect();
    format!("[pools.app]\nbackends = [{}]\n", backends.join(", "))
}

/// A gateway of two workers before this pool.
async fn scene(backends: &[&Origin]) -> Gateway {
    let site = "[sites.\"shop.test\"]\npool = \"app\"\n";
    let pool = pool(backends);
    gateway().server("workers", "2").named(&["shop.test"]).toml(&format!("{site}{pool}")).start().await
}

fn with_pool(text: &str, backends: &[&Origin]) -> String {
    let (before, _) = text.split_once("[pools.app]").unwrap();
    format!("{before}{}", pool(backends))
}

async fn answers(gw: &Gateway, version: Version) -> String {
    gw.request(version, get("/")).await.vm().to_owned()
}

#[tokio::test]
async fn nothing_is_lost_while_everything_changes() {
    let release = Arc::new(Notify::new());
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = Arc::new(scene(&[&a]).await);

    // Downloads and a WebSocket that last longer than everything else.
    let held = Held::all(&gw, "shop.test").await;
    let stream = gw.dial("shop.test").http1(false).await.unwrap();
    let (mut socket, _) = client_async("ws://shop.test/ws", stream).await.unwrap();

    // Clients that ask all the time: on a connection of their own, and on new ones.
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
                    let reply = client.send(&get("/")).await.unwrap_or_else(|e| panic!("{version:?}: {e}"));
                    assert_eq!(reply.status, 200, "{version:?}");
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
    }
    let more = lease();
    let http = gw.http_port();
    for round in 0..20 {
        let before = asked.load(Ordering::Relaxed);
        gw.edit(|text| match round % 4 {
            // A VM comes, a port comes, a route comes; a VM goes; the port goes; the route goes.
            0 => with_pool(&text, &[&a, &b])
                .replace(&format!("http = {http}"), &format!("http = [{http}, {}]", more.port)),
            1 => with_pool(&text, &[&b]).replace(
                "pool = \"app\"\n",
                "pool = \"app\"\nroutes = [{ paths = \"/x/\", respond = { status = 418 } }]\n",
            ),
            2 => with_pool(&text, &[&a, &b])
                .replace(&format!("http = [{http}, {}]", more.port), &format!("http = {http}")),
            _ => with_pool(&text, &[&a])
                .replace("routes = [{ paths = \"/x/\", respond = { status = 418 } }]\n", ""),
        });
        if round % 2 == 0 {
            gw.told(&["reload"]).await;
        } else {
            let lines = gw.log().having(&["reload: served"]).len();
            gw.process.signal(Signal::HUP);
            eventually("SIGHUP reloads", || {
                (gw.log().having(&["reload: served"]).len() > lines).then_some(())
            })
            .await;
        }
        eventually("clients go on", || (asked.load(Ordering::Relaxed) > before + 20).then_some(())).await;
    }
    over.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    assert!(!a.requests().is_empty() && !b.requests().is_empty());

    socket.send(Message::text("still there?")).await.unwrap();
    let echo = within("an echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(echo.into_text().unwrap().as_str(), "still there?");
    release.notify_waiters();
    for held in held {
        held.ends_whole().await;
    }
}

#[tokio::test]
async fn what_is_wrong_changes_nothing() {
    let release = Arc::default();
    let (a, stranger) = (holding("a", &release).await, std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let taken = stranger.local_addr().unwrap().port();
    let gw = scene(&[&a]).await;
    gw.told(&["drain", "app/a"]).await;
    gw.told(&["undrain", "app/a"]).await;
    let good = std::fs::read_to_string(gw.config()).unwrap();
    // What the file says of it may be wrong too.
    let socket = format!("unix:{}", gw.folder().join("admin.sock").display());
    let at = |command: &'static str| [command, "--json", "--admin", &socket].map(str::to_owned);
    let told = async |command| {
        let words = at(command);
        gw.told(&words.each_ref().map(String::as_str)).await
    };
    let json = |text: String| serde_json::from_str::<serde_json::Value>(&text).unwrap();
    let state = async || {
        let mut status = json(told("status").await);
        for volatile in ["uptime_s", "connections"] {
            status.as_object_mut().unwrap().remove(volatile);
        }
        status["configuration"].as_object_mut().unwrap().remove("differs_from_file");
        (status, told("pools").await, told("history").await, sockets(&gw))
    };
    let before = state().await;
    let http = gw.http_port();
    for (bad, complaint) in [
        (format!("{good}\n[oops]\n"), "unknown key `oops`"),
        (good.replace("pool = \"app\"", "pool = \"ap\""), "there is no pool `ap`"),
        ("not toml".to_owned(), "foregate.toml"),
        (good.replace("tls0.key", "tls1.key"), "tls1.key"),
        (
            good.replace(&format!("http = {http}"), &format!("http = [{http}, {}, {taken}]", lease().port)),
            "the port is taken",
        ),
        (format!("{good}\n[metrics]\nlisten = \"127.0.0.1:1\"\n"), "not supported yet"),
        (
            good.replace("[admin]\n", "[admin]\nlisten = \"0.0.0.0:1\"\n#"),
            "can be reached from other machines",
        ),
    ] {
        gw.edit(|_| bad);
        let said = gw.refused(&["reload", "--admin", &socket]).await;
        assert!(said.contains(complaint), "{complaint}: {said}");
        assert_eq!(state().await, before, "{complaint}");
    }
    // Every configuration that is known to be wrong.
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bad");
    for file in std::fs::read_dir(golden).unwrap() {
        let bad = std::fs::read_to_string(file.unwrap().path()).unwrap();
        gw.edit(|_| bad.clone());
        gw.refused(&["reload", "--admin", &socket]).await;
        assert_eq!(state().await, before, "{bad}");
    }
    gw.edit(|_| good);
    gw.told(&["reload"]).await;
    assert_eq!(answers(&gw, Version::H3).await, "a");
}

/// What the process listens on: the sockets in its table of files that are bound and not connected.
fn sockets(gw: &Gateway) -> Vec<String> {
    let pid = gw.process.id();
    let mut own: Vec<String> = Vec::new();
    for file in std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let Ok(target) = std::fs::read_link(file.unwrap().path()) else { continue };
        own.extend(
            target
                .to_string_lossy()
                .strip_prefix("socket:[")
                .map(|rest| rest.trim_end_matches(']').to_owned()),
        );
    }
    let mut found = Vec::new();
    for table in ["tcp", "udp", "tcp6", "udp6"] {
        let text = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // The gateway's own probe asks from a socket on no address in particular.
            let alone = fields[2].ends_with(":0000") && fields[1].starts_with("0100007F");
            if alone && own.iter().any(|inode| inode == fields[9]) {
                found.push(format!("{table} {}", fields[1]));
            }
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn addresses_and_ports_come_and_go() {
    let release = Arc::new(Notify::new());
    let a = holding("a", &release).await;
    let gw = scene(&[&a]).await;
    let (other, http, https) = (lease(), gw.http_port(), gw.https_port());
    // One more HTTPS port, and one more address for all ports: HTTP/3 too.
    gw.edit(|text| {
        text.replace("[\"127.0.0.1\"]", "[\"127.0.0.1\", \"127.0.0.2\"]")
            .replace(&format!("https = {https}"), &format!("https = [{https}, {}]", other.port))
    });
    gw.told(&["reload"]).await;
    let ask = async |ip: &str, https: u16, version: Version| {
        let dial = gw.dial("shop.test").to(ip, http, https);
        Client::connect(&dial, version).await?.send(&get("/")).await
    };
    for ip in ["127.0.0.1", "127.0.0.2"] {
        for port in [https, other.port] {
            for version in Version::ALL {
                let reply =
                    ask(ip, port, version).await.unwrap_or_else(|e| panic!("{version:?} {ip}:{port} {e}"));
                assert_eq!(reply.vm(), "a");
            }
        }
    }
    let plain = |version| matches!(version, Version::H1 | Version::H2c);
    // They go again while something is under way there.
    let mut held = Vec::new();
    for version in Version::ALL {
        let dial = gw.dial("shop.test").to("127.0.0.2", http, other.port);
        held.push(Held::begin(Client::connect(&dial, version).await.unwrap(), version).await);
    }
    gw.edit(|text| {
        text.replace("[\"127.0.0.1\", \"127.0.0.2\"]", "[\"127.0.0.1\"]")
            .replace(&format!("https = [{https}, {}]", other.port), &format!("https = {https}"))
    });
    gw.told(&["reload"]).await;
    for version in Version::ALL {
        assert!(ask("127.0.0.2", https, version).await.is_err(), "{version:?}");
        assert_eq!(ask("127.0.0.1", https, version).await.unwrap().vm(), "a", "{version:?}");
        let gone = ask("127.0.0.1", other.port, version).await;
        assert_eq!(gone.is_err(), !plain(version), "{version:?}");
    }
    release.notify_waiters();
    for held in held {
        held.ends_whole().await;
    }
    // And come back at once.
    gw.edit(|text| text.replace("[\"127.0.0.1\"]", "[\"127.0.0.1\", \"127.0.0.2\"]"));
    gw.told(&["reload"]).await;
    for version in Version::ALL {
        assert_eq!(ask("127.0.0.2", https, version).await.unwrap().vm(), "a", "{version:?}");
    }
    // Without HTTP/3 clients that know of it are told to forget it.
    gw.edit(|text| text + "[http3]\nenabled = false\n");
    gw.told(&["reload"]).await;
    assert!(ask("127.0.0.1", https, Version::H3).await.is_err());
    eventually_async("Alt-Svc: clear", || async {
        let reply = ask("127.0.0.1", https, Version::H2).await.unwrap();
        (reply.field("alt-svc") == "clear").then_some(())
    })
    .await;
    // A port that spoke HTTP speaks HTTPS.
    gw.edit(|text| {
        text.replace(&format!("http = {http}"), "http = \"off\"")
            .replace(&format!("https = {https}"), &format!("https = [{http}, {https}]"))
    });
    gw.told(&["reload"]).await;
    assert_eq!(ask("127.0.0.1", http, Version::H2).await.unwrap().vm(), "a");
    gw.stop().await;
}

#[tokio::test]
async fn what_goes_on_at_an_address_that_is_left_is_cut_in_the_end() {
    let vm = holding("a", &Arc::default()).await;
    let gw = scene(&[&vm]).await;
    gw.edit(|text| {
        text.replace("[server]", "[server]\ntimeouts = { drain = \"500ms\" }")
            .replace("[\"127.0.0.1\"]", "[\"127.0.0.1\", \"127.0.0.2\"]")
    });
    gw.told(&["reload"]).await;
    let dial = gw.dial("shop.test").to("127.0.0.2", gw.http_port(), gw.https_port());
    let mut held = Vec::new();
    for version in Version::ALL {
        held.push(Held::begin(Client::connect(&dial, version).await.unwrap(), version).await);
    }
    let (mut socket, _) = client_async("ws://shop.test/ws", dial.http1(false).await.unwrap()).await.unwrap();
    let stays = Held::begin(gw.client(Version::H1, "shop.test").await, Version::H1).await;
    gw.edit(|text| text.replace("[\"127.0.0.1\", \"127.0.0.2\"]", "[\"127.0.0.1\"]"));
    gw.told(&["reload"]).await;
    for held in held {
        held.is_cut().await;
    }
    while let Some(Ok(_)) = within("the end of the WebSocket", socket.next()).await {}
    let status: serde_json::Value = serde_json::from_str(&gw.told(&["status", "--json"]).await).unwrap();
    assert_eq!(status["connections"]["open"], 1, "nobody else is left");
    drop(stays);
}

#[tokio::test]
async fn a_vm_that_is_gone_ends_what_it_has_begun_and_then_its_websockets() {
    let release = Arc::new(Notify::new());
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = scene(&[&a]).await;
    gw.edit(|text| text.replace("[server]", "[server]\ntimeouts = { drain = \"1s\" }"));
    gw.told(&["reload"]).await;
    let stream = gw.dial("shop.test").http1(false).await.unwrap();
    let (mut socket, _) = client_async("ws://shop.test/ws", stream).await.unwrap();
    let held = Held::begin(gw.client(Version::H2, "shop.test").await, Version::H2).await;
    gw.edit(|text| with_pool(&text, &[&b]));
    gw.told(&["reload"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "b");
    let close = within("a goodbye", socket.next()).await.unwrap().unwrap();
    let Message::Close(Some(frame)) = close else { panic!("{close:?}") };
    assert_eq!(u16::from(frame.code), 1001);
    release.notify_waiters();
    // A request is not a WebSocket: it ends by itself.
    held.ends_whole().await;
}

#[tokio::test]
async fn connections_to_unchanged_vms_are_kept() {
    let a = holding("a", &Arc::default()).await;
    let gw = scene(&[&a]).await;
    gw.edit(|text| text.replace("workers = 2", "workers = 1"));
    assert!(gw.told(&["reload"]).await.contains("waits for a restart: server.workers 2 -> 1"));
    let client = gw.client(Version::H1, "shop.test").await;
    for round in 0..10 {
        assert_eq!(client.send(&get("/")).await.unwrap().vm(), "a");
        gw.edit(|text| format!("{text}# {round}\n"));
        gw.told(&["reload"]).await;
    }
    assert_eq!(a.accepted(), 1, "one connection carried all requests");
    assert!(gw.told(&["status"]).await.contains("waits for a restart: server.workers 2 -> 1"));
}

#[tokio::test]
async fn what_operators_say_holds_over_reloads() {
    let release = Arc::default();
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = scene(&[&a, &b]).await;
    let shares = async || {
        let client = gw.client(Version::H2, "shop.test").await;
        let mut of_a = 0;
        for _ in 0..40 {
            of_a += usize::from(client.send(&get("/")).await.unwrap().vm() == "a");
        }
        of_a
    };
    assert_eq!(shares().await, 20);
    gw.told(&["drain", "app/a"]).await;
    assert_eq!(shares().await, 0);
    gw.edit(|text| text + "# changed\n");
    gw.told(&["reload"]).await;
    assert_eq!(shares().await, 0, "it still drains");
    assert!(gw.told(&["status"]).await.contains("override: app/a drain"));
    assert!(gw.told(&["pools"]).await.contains("unknown, drain"));
    gw.told(&["undrain", "app/a"]).await;
    gw.told(&["weight", "app/a", "3"]).await;
    assert_eq!(shares().await, 30);
    gw.edit(|text| text + "# changed\n");
    gw.told(&["reload"]).await;
    assert_eq!(shares().await, 30);
    gw.told(&["weight", "app/a", "file"]).await;
    assert_eq!(shares().await, 20);
    gw.told(&["maintenance", "app/b"]).await;
    assert_eq!(shares().await, 40);
    assert!(!gw.told(&["status"]).await.contains("override: app/a"));
    // What was said of one that has gone can be taken back.
    gw.told(&["weight", "app/b", "7"]).await;
    gw.edit(|text| with_pool(&text, &[&a]));
    gw.told(&["reload"]).await;
    assert!(gw.told(&["status"]).await.contains("override: app/b maintenance"));
    assert!(gw.told(&["undrain", "app/b"]).await.contains("is not there"));
    assert!(gw.told(&["status"]).await.contains("override: app/b weight 7"));
    gw.told(&["weight", "app/b", "file"]).await;
    assert!(!gw.told(&["status"]).await.contains("override:"));
    for (wrong, complaint) in [
        (&["drain", "app/c"][..], "there is no backend app/c; there are:\n  app/a"),
        (&["weight", "app/a", "-"], "no weight"),
        (&["pools", "ap"], "there is no pool ap; the pools are app"),
    ] {
        let said = gw.refused(wrong).await;
        assert!(said.contains(complaint), "{said}");
    }
}

/// Who is stuck to it may stay for a while, and then it has nothing to do any more.
#[tokio::test]
async fn a_weight_of_zero_drains() {
    let release = Arc::default();
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = scene(&[&a, &b]).await;
    gw.edit(|text| {
        let text = text.replace("[server]", "[server]\ntimeouts = { drain = \"2s\" }");
        text.replace("[pools.app]", "[pools.app]\nsticky = { cookie = \"vm\" }")
    });
    gw.told(&["reload"]).await;
    let first = gw.request(Version::H2, get("/")).await;
    let (vm, other) = if first.vm() == "a" { ("a", "b") } else { ("b", "a") };
    let cookie = first.field("set-cookie").split(';').next().unwrap().to_owned();
    let stuck = async || gw.request(Version::H2, get("/").field("cookie", &cookie)).await.vm().to_owned();
    let backend = format!("app/{vm}");
    gw.told(&["weight", &backend, "0"]).await;
    assert_eq!(stuck().await, vm);
    assert_eq!(answers(&gw, Version::H2).await, other);
    assert!(gw.told(&["pools"]).await.contains("its weight is 0"));
    eventually_async("its time is over", || async { (stuck().await == other).then_some(()) }).await;
    gw.told(&["weight", &backend, "file"]).await;
    eventually_async("it works again", || async { (answers(&gw, Version::H2).await == vm).then_some(()) })
        .await;
    // What an operator says beside that holds.
    gw.told(&["weight", &backend, "0"]).await;
    gw.told(&["maintenance", &backend]).await;
    gw.told(&["undrain", &backend]).await;
    assert!(gw.told(&["pools"]).await.contains("its weight is 0"));
    assert_eq!(answers(&gw, Version::H2).await, other);
}

#[tokio::test]
async fn one_can_go_back() {
    let release = Arc::default();
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = scene(&[&a]).await;
    gw.edit(|text| with_pool(&text, &[&b]));
    assert_eq!(
        gw.told(&["diff"]).await,
        "what is served -> the file\n  pool app: a removed\n  pool app: b added\n"
    );
    gw.told(&["reload"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "b");
    gw.told(&["rollback"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "a");
    let status = gw.told(&["status"]).await;
    assert!(status.starts_with("running is not the file: 2 differences"), "{status}");
    assert!(gw.refused(&["reload"]).await.contains("was rolled back"));
    assert_eq!(answers(&gw, Version::H1).await, "a");
    gw.told(&["reload", "--force"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "b");
    gw.told(&["rollback", "1"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "a");
    // Who goes forward again has not given up what is older.
    gw.told(&["rollback", "2"]).await;
    gw.told(&["rollback", "1"]).await;
    gw.told(&["rollback", "2"]).await;
    gw.told(&["rollback"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "a");
    assert!(gw.refused(&["rollback", "99"]).await.contains("it goes from 1 to "));
    assert!(gw.told(&["diff", "1", "2"]).await.contains("pool app: a removed"));
    let history = gw.told(&["history"]).await;
    assert!(history.contains("was rolled back") && history.contains("is served"), "{history}");
}

/// A start with what was rolled back says so, and what somebody has changed in the history is not gone back to.
#[tokio::test]
async fn a_start_looks_at_the_history() {
    let release = Arc::default();
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = gateway()
        .named(&["shop.test"])
        .toml(&format!("[sites.\"shop.test\"]\npool = \"app\"\n{}", pool(&[&a])))
        .started_anew()
        .start()
        .await;
    gw.edit(|text| with_pool(&text, &[&b]));
    gw.told(&["reload"]).await;
    gw.told(&["rollback"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "a");
    let entry = gw.folder().join("state/history/00000001.json");
    let changed = std::fs::read_to_string(&entry).unwrap().replace("app", "api");
    std::fs::write(&entry, changed).unwrap();

    kill_process(gw.successors()[0], Signal::KILL).unwrap();
    eventually("it is said", || gw.log().having(&["WARN", "this configuration was rolled back"]).pop()).await;
    eventually_async("it serves", || async {
        let reply = gw.try_request(Version::H1, &get("/")).await.ok()?;
        (reply.vm() == "b").then_some(())
    })
    .await;
    eventually_async("operators are heard", || async {
        gw.operate(&["status"]).await.status.success().then_some(())
    })
    .await;
    assert!(gw.told(&["history"]).await.contains("NOT AS IT WAS WRITTEN"));
    let said = gw.refused(&["rollback", "1"]).await;
    assert!(said.contains("is not as it was written"), "{said}");
    assert_eq!(answers(&gw, Version::H1).await, "b");
}

/// Nobody has to be asked for that: there is nobody who could.
#[tokio::test]
async fn a_change_that_loses_all_vms_is_undone() {
    let a = holding("a", &Arc::default()).await;
    let closed = foregate_tests::closed_port();
    let gw = scene(&[&a]).await;
    let health = "health = { tcp = {}, interval = \"100ms\", fall = 1 }\n";
    gw.edit(|text| text.replace("[pools.app]\n", &format!("[pools.app]\n{health}")));
    gw.told(&["reload"]).await;
    gw.edit(|text| text.replace(&a.address(), &format!("127.0.0.1:{}", closed.port)));
    gw.told(&["reload", "--confirm", "600s", "--guard"]).await;
    eventually("it goes back", || gw.log().having(&["no usable backend any more", "going back"]).pop()).await;
    eventually_async("it is as before", || async {
        let reply = gw.try_request(Version::H1, &get("/")).await.ok()?;
        (reply.status == 200).then_some(())
    })
    .await;
}

/// What a reference stands for is told to nobody: not to who asks, and not to the log.
#[tokio::test]
async fn secrets_are_not_repeated() {
    const SECRET: &str = "correct-horse-battery-staple";
    let a = holding("a", &Arc::default()).await;
    let gw = gateway()
        .named(&["shop.test"])
        .toml(&format!("[sites.\"shop.test\"]\npool = \"app\"\n{}", pool(&[&a])))
        .file("secret", &format!("{SECRET}\n"))
        .file("hidden", &format!("{SECRET} = \n"))
        .start()
        .await;
    let text = std::fs::read_to_string(gw.config()).unwrap();
    for wrong in [
        "[pools.x]\nbackends = \"{file.secret}\"\n",
        "[pools.x]\nbackends = \"127.0.0.1:1\"\nhealth = { tcp = {}, interval = \"5{file.secret}\" }\n",
        "[pools.x]\nbackends = \"127.0.0.1:1\"\nhealth = { http = { path = \"{file.secret}\" } }\n",
        "[pools.x]\nbackends = \"127.0.0.1:1\"\nbalance = \"{file.secret}\"\n",
        "[sites.\"{file.secret}\"]\npool = \"app\"\n[sites.x]\nhosts = \"{file.secret}\"\npool = \"nothing\"\n",
        "[sites.x]\nhosts = \"x.test\"\npool = \"{file.secret}\"\n",
        "[sites.x]\nhosts = \"x.test\"\nroutes = [{ paths = \"{file.secret}\", pool = \"app\" }]\n",
        "[sites.x]\nhosts = \"x.test\"\nroutes = [{ paths = \"~[{file.secret}\", pool = \"app\" }]\n",
        "INCLUDE",
    ] {
        gw.edit(|_| match wrong {
            "INCLUDE" => format!("include = \"hidden\"\n{text}"),
            wrong => format!("{text}{wrong}"),
        });
        let said = gw.refused(&["reload"]).await;
        assert!(!said.is_empty());
        for piece in SECRET.split('-') {
            assert!(!said.contains(piece), "{wrong}: {said}");
        }
    }
    eventually("it is in the log", || (gw.log().having(&["nothing follows"]).len() == 9).then_some(())).await;
    for piece in SECRET.split('-') {
        assert!(!gw.log().text().contains(piece), "{}", gw.log().text());
    }
}

#[tokio::test]
async fn who_does_not_confirm_gets_back_what_was() {
    let release = Arc::default();
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = scene(&[&a]).await;
    gw.edit(|text| with_pool(&text, &[&b]));
    gw.told(&["reload", "--confirm", "2s"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "b");
    assert!(gw.refused(&["reload"]).await.contains("waits to be confirmed"));
    eventually_async("it goes back", || async { (answers(&gw, Version::H1).await == "a").then_some(()) })
        .await;
    gw.told(&["reload", "--force", "--confirm", "60s"]).await;
    gw.told(&["confirm"]).await;
    assert!(gw.refused(&["confirm"]).await.contains("nothing waits"));
    assert_eq!(answers(&gw, Version::H1).await, "b");
    assert_eq!(
        gw.refused(&["reload", "--confirm", "soon"]).await.trim(),
        "foregate: `confirm` must be a time such as \"60s\""
    );
}

#[tokio::test]
async fn who_cannot_go_back_says_so_and_may_be_helped() {
    let release = Arc::default();
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = scene(&[&a]).await;
    gw.edit(|text| with_pool(&text, &[&b]).replace("tls0.", "new."));
    for kind in ["crt", "key"] {
        let at = |name: &str| gw.folder().join(format!("{name}.{kind}"));
        std::fs::rename(at("tls0"), at("new")).unwrap();
    }
    gw.told(&["reload", "--confirm", "1s"]).await;
    eventually("it is said", || gw.log().having(&["tls0.crt", "cannot be"]).first().cloned()).await;
    let status = gw.told(&["status"]).await;
    assert!(status.contains("goes back to the configuration before: nobody has confirmed"), "{status}");
    assert!(gw.refused(&["reload"]).await.contains("waits to be confirmed"));
    assert_eq!(answers(&gw, Version::H1).await, "b");
    for kind in ["crt", "key"] {
        let at = |name: &str| gw.folder().join(format!("{name}.{kind}"));
        std::fs::copy(at("new"), at("tls0")).unwrap();
    }
    gw.told(&["rollback", "1"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "a");
    assert!(!gw.told(&["status"]).await.contains("goes back"));
}

#[tokio::test]
async fn a_change_that_makes_things_worse_is_undone() {
    let release = Arc::default();
    let (a, b) = (
        holding("a", &release).await,
        origin()
            .named("b")
            .on("/", |call| {
                Box::pin(async move {
                    call.reply(500, &Fields::new(), "oops").await;
                })
            })
            .start()
            .await,
    );
    let gw = scene(&[&a]).await;
    let client = gw.client(Version::H2, "shop.test").await;
    let ask = async |times| {
        for _ in 0..times {
            client.send(&get("/")).await.unwrap();
        }
    };
    ask(60).await;
    gw.edit(|text| with_pool(&text, &[&b]));
    gw.told(&["reload", "--confirm", "600s", "--guard"]).await;
    eventually_async("it goes back", || async {
        ask(30).await;
        (answers(&gw, Version::H1).await == "a").then_some(())
    })
    .await;
    assert_eq!(gw.log().having(&["of the answers fail, it was 0 %", "going back"]).len(), 1);
    let said = gw.refused(&["reload", "--guard"]).await;
    assert!(said.contains("--confirm"), "{said}");
}

#[tokio::test]
async fn files_that_change_are_followed() {
    let release = Arc::default();
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = gateway()
        .named(&["shop.test"])
        .flag("--watch")
        .file("site.toml", "[sites.\"shop.test\"]\npool = \"app\"\n")
        .toml(&pool(&[&a]))
        .first("include = \"site.toml\"")
        .start()
        .await;
    assert_eq!(answers(&gw, Version::H1).await, "a");
    // As editors do: written beside, and renamed.
    let text = std::fs::read_to_string(gw.config()).unwrap();
    std::fs::write(gw.folder().join("new"), with_pool(&text, &[&b])).unwrap();
    std::fs::rename(gw.folder().join("new"), gw.config()).unwrap();
    eventually_async("the file is followed", || async {
        (answers(&gw, Version::H1).await == "b").then_some(())
    })
    .await;
    std::fs::write(gw.folder().join("site.toml"), "[sites.\"shop.test\"]\nrespond = { status = 418 }\n")
        .unwrap();
    eventually_async("an included file is followed", || async {
        (gw.request(Version::H1, get("/")).await.status == 418).then_some(())
    })
    .await;
    std::fs::write(gw.folder().join("site.toml"), "oops").unwrap();
    eventually("it is said", || {
        gw.log().having(&["the files changed, and nothing follows"]).first().cloned()
    })
    .await;
    assert_eq!(gw.request(Version::H1, get("/")).await.status, 418);
}

/// One request to the administration over TCP.
async fn ask(port: u16, head: &str, body: &str) -> (u16, String) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request =
        format!("{head}\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn the_administration_takes_configurations_from_those_who_know_the_token() {
    let release = Arc::default();
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let admin = lease();
    let site = "[sites.\"shop.test\"]\npool = \"app\"\n";
    let token = "0123456789abcdef0123456789abcdef";
    let gw = gateway()
        .named(&["shop.test"])
        .file("admin.token", &format!("{token}\n"))
        .toml(&format!(
            "[admin]\nlisten = \"127.0.0.1:{}\"\ntoken_file = \"admin.token\"\n{site}{}",
            admin.port,
            pool(&[&a])
        ))
        .start()
        .await;
    let knows = format!("Authorization: Bearer {token}");
    for wrong in ["X: y", "Authorization: Bearer 0123456789abcdef", "Authorization: Basic abc"] {
        for line in ["GET /status HTTP/1.1", "POST /reload HTTP/1.1"] {
            assert_eq!(ask(admin.port, &format!("{line}\r\n{wrong}"), "").await.0, 401, "{wrong}");
        }
    }
    assert!(gw.told(&["status"]).await.contains("serving"), "the command line finds the token in the file");
    let text = std::fs::read_to_string(gw.config()).unwrap();
    assert!(gw.told(&["config"]).await.contains(text.trim_end()));
    assert!(gw.told(&["connections"]).await.contains("clients are connected, of at most "));
    assert!(gw.told(&["workers"]).await.starts_with("WORKER  REQUESTS\n0"));
    let other = with_pool(&text, &[&b]);
    let put = |query: &str| format!("PUT /config{query} HTTP/1.1\r\n{knows}");
    let (status, said) =
        ask(admin.port, &format!("POST /config/validate HTTP/1.1\r\n{knows}"), "x = 1").await;
    assert_eq!(status, 422, "{said}");
    assert!(said.contains("unknown key `x`"), "{said}");
    assert_eq!(answers(&gw, Version::H1).await, "a");
    // For now: the file is as it was, and the next reload brings it back.
    let (status, said) = ask(admin.port, &put(""), &other).await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(answers(&gw, Version::H1).await, "b");
    assert_eq!(std::fs::read_to_string(gw.config()).unwrap(), text);
    gw.told(&["reload"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "a");
    // For good.
    let (status, said) = ask(admin.port, &put("?save=true"), &other).await;
    assert_eq!(status, 200, "{said}");
    assert_eq!(std::fs::read_to_string(gw.config()).unwrap(), other);
    // For good once it is confirmed, and not before.
    let saved = std::fs::metadata(gw.config()).unwrap();
    let (status, said) = ask(admin.port, &put("?save=true&confirm=600s"), &text).await;
    assert_eq!((status, answers(&gw, Version::H1).await.as_str()), (200, "a"), "{said}");
    assert_eq!(std::fs::read_to_string(gw.config()).unwrap(), other);
    gw.told(&["rollback"]).await;
    assert_eq!(std::fs::read_to_string(gw.config()).unwrap(), other);
    assert_eq!(ask(admin.port, &put("?save=true&force=true&confirm=600s"), &text).await.0, 200);
    gw.told(&["confirm"]).await;
    assert_eq!(std::fs::read_to_string(gw.config()).unwrap(), text);
    assert_eq!(std::fs::metadata(gw.config()).unwrap().mode(), saved.mode());
    assert_eq!(ask(admin.port, &put("?save=true"), &other).await.0, 200);
    // Not where nobody can tell which file it belongs to.
    let (status, said) =
        ask(admin.port, &put("?save=true"), &format!("include = \"none/*.toml\"\n{other}")).await;
    assert_eq!((status, said.contains("with `include`")), (409, true), "{said}");
    assert_eq!(std::fs::read_to_string(gw.config()).unwrap(), other);
    for (line, status) in [
        ("GET /nothing HTTP/1.1", 404),
        ("DELETE /config HTTP/1.1", 405),
        ("GET /openapi.json HTTP/1.1", 200),
        ("POST /reload?x HTTP/1.1", 200),
        ("GET /history/1 HTTP/1.1", 200),
        ("GET /certificates HTTP/1.1", 200),
        ("GET /workers HTTP/1.1", 200),
        ("GET /connections HTTP/1.1", 200),
    ] {
        let (got, said) = ask(admin.port, &format!("{line}\r\n{knows}"), "").await;
        assert_eq!(got, status, "{line}: {said}");
        assert!(!said.contains(token) && !said.contains("PRIVATE KEY"), "{line}: {said}");
    }
    // Another token holds from the next reload on, for those who are connected too.
    let next = "fedcba9876543210fedcba9876543210";
    std::fs::write(gw.folder().join("admin.token"), next).unwrap();
    assert_eq!(ask(admin.port, &format!("POST /reload HTTP/1.1\r\n{knows}"), "").await.0, 200);
    assert_eq!(ask(admin.port, &format!("GET /status HTTP/1.1\r\n{knows}"), "").await.0, 401);
    assert!(gw.told(&["status"]).await.contains("serving"));
}

#[tokio::test]
async fn the_administration_moves() {
    let release = Arc::default();
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = scene(&[&a]).await;
    let next = gw.folder().join("next.sock");
    // What is there and is no socket is not removed.
    std::fs::write(&next, "precious").unwrap();
    gw.edit(|text| with_pool(&text, &[&b]).replace("admin.sock", "next.sock"));
    let said = gw.refused(&["reload"]).await;
    assert!(said.contains("something that is no socket"), "{said}");
    assert_eq!(std::fs::read_to_string(&next).unwrap(), "precious");
    assert_eq!(answers(&gw, Version::H1).await, "a");
    std::fs::remove_file(&next).unwrap();
    // One that nobody listens on is.
    drop(std::os::unix::net::UnixListener::bind(&next).unwrap());
    gw.told(&["reload"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "b");
    assert!(!gw.folder().join("admin.sock").exists());
    let other = holding("other", &release).await;
    let busy = gateway().site("shop.test", &other).start().await;
    let taken = busy.folder().join("admin.sock").display().to_string();
    let text = std::fs::read_to_string(gw.config()).unwrap();
    let place = gw.folder().join("next.sock").display().to_string();
    gw.edit(|text| text.replace(&place, &taken));
    let at = format!("unix:{place}");
    let said = gw.refused(&["reload", "--admin", &at]).await;
    assert!(said.contains("another program listens there"), "{said}");
    busy.told(&["status"]).await;
    gw.edit(|_| text.replace("listen = ", "# "));
    // Nobody asked for the usual place, so that it is taken or closed is no reason to refuse the rest.
    gw.told(&["reload"]).await;
    gw.edit(|text| with_pool(&text, &[&a]));
    gw.process.signal(Signal::HUP);
    eventually_async("it follows", || async { (answers(&gw, Version::H1).await == "a").then_some(()) }).await;
}

#[tokio::test]
async fn a_service_manager_is_told() {
    let a = holding("a", &Arc::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = tokio::net::UnixDatagram::bind(&path).unwrap();
    let gw = gateway()
        .env("NOTIFY_SOCKET", path.to_str().unwrap())
        .env("WATCHDOG_USEC", "400000")
        .site("shop.test", &a)
        .start()
        .await;
    let next = async |what: &str| {
        let mut buffer = [0; 1024];
        loop {
            let length = within(what, manager.recv(&mut buffer)).await.unwrap();
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            if text.contains(what) {
                return text;
            }
        }
    };
    next("READY=1").await;
    next("WATCHDOG=1").await;
    gw.process.signal(Signal::HUP);
    assert!(next("RELOADING=1").await.contains("MONOTONIC_USEC="));
    next("READY=1").await;
    gw.terminate();
    next("STOPPING=1").await;
    drop(gw);
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_written_stops_nobody() {
    let release = Arc::default();
    let (a, b) = (holding("a", &release).await, holding("b", &release).await);
    let gw = scene(&[&a]).await;
    let state = gw.folder().join("state");
    // It may be writing something there.
    eventually("the folder has gone", || std::fs::remove_dir_all(&state).ok()).await;
    std::fs::write(&state, "in the way").unwrap();
    gw.edit(|text| with_pool(&text, &[&b]));
    gw.told(&["reload"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "b");
    gw.told(&["rollback"]).await;
    assert_eq!(answers(&gw, Version::H1).await, "a");
    assert_eq!(gw.log().having(&["kept in memory only"]).len(), 1);
}
