//! What operators have said and what they say meanwhile.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use foregate_tests::{Authority, origin};

use super::*;

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

/// Over TCP as well, and also where it comes to nothing.
#[tokio::test]
async fn operators_are_heard_all_the_time() {
    let vm = holding("a", &Arc::default()).await;
    let lease = foregate_tests::lease();
    let text = format!("[admin]\nlisten = \"127.0.0.1:{}\"\ntoken_file = \"token\"\n", lease.port);
    let gw = before(&vm, "1s").copied("program").file("token", &"x".repeat(32)).toml(&text).start().await;
    let gw = Arc::new(gw);
    let over = Arc::new(AtomicBool::new(false));
    let operator = tokio::spawn({
        let (gw, over) = (gw.clone(), over.clone());
        async move {
            while !over.load(Ordering::Relaxed) {
                gw.told(&["status"]).await;
            }
        }
    });
    for round in 0..4 {
        let old = pid(&gw).await;
        if round % 2 == 0 {
            install(&gw, b"#!/bin/sh\nexit 3\n");
            gw.refused(&["upgrade"]).await;
            assert_eq!(pid(&gw).await, old);
        } else {
            install_file(&gw, foregate_tests::binary());
            gw.told(&["upgrade"]).await;
            assert_ne!(pid(&gw).await, old);
            is_alone(&gw).await;
        }
    }
    over.store(true, Ordering::Relaxed);
    operator.await.unwrap();
}

/// While another process makes ready they hear how things are, and what they want of it is done by the one that serves then.
#[tokio::test]
async fn what_is_asked_in_between_is_done_by_the_successor() {
    let vm = holding("a", &Arc::default()).await;
    let gw = before(&vm, "1s").copied("program").named(&["new.test"]).start().await;
    let backend = format!("sites.shop.test/{}", vm.address());
    let ready = gw.folder().join("ready");
    let slow = format!(
        "#!/bin/sh\nwhile ! [ -e {} ]; do sleep 0.05; done\nexec {} \"$@\"\n",
        ready.display(),
        foregate_tests::binary().display()
    );

    for comes_to_something in [false, true] {
        let old = pid(&gw).await;
        let failing = slow.replace("exec", "exit 5 #");
        install(&gw, if comes_to_something { &slow } else { &failing }.as_bytes());
        let weight = if comes_to_something { "7" } else { "3" };
        let upgrade = gw.operate(&["upgrade"]);
        let begun = gw.log().having(&["a new process is started"]).len();
        let meanwhile = async {
            let is_started = || (gw.log().having(&["a new process is started"]).len() > begun).then_some(());
            eventually("it is started", is_started).await;
            assert!(gw.told(&["status"]).await.contains(&old.to_string()));
            gw.edit(|text| text + "\n# more\n[sites.\"new.test\"]\nrespond = { status = 418 }\n");
            gw.process.signal(Signal::HUP);
            let weigh = ["weight", &backend, weight];
            let weighs = gw.told(&weigh);
            let goes_on = async {
                // By then it has been asked.
                tokio::time::sleep(std::time::Duration::from_millis(500)).await;
                std::fs::write(&ready, "").unwrap();
            };
            tokio::join!(weighs, goes_on);
            std::fs::remove_file(&ready).unwrap();
        };
        let (upgraded, ()) = tokio::join!(upgrade, meanwhile);
        assert_eq!(upgraded.status.success(), comes_to_something);
        assert_eq!(pid(&gw).await == old, !comes_to_something);
        let status = gw.told(&["status"]).await;
        assert!(status.contains(&format!("override: {backend} weight {weight}")), "{status}");
        eventually_async("it is reloaded", || async {
            (gw.request(Version::H1, get("/").host("new.test")).await.status == 418).then_some(())
        })
        .await;
        gw.edit(|text| text.replace("[sites.\"new.test\"]\nrespond = { status = 418 }\n", ""));
        gw.told(&["reload"]).await;
    }
}

/// A connection to the process before is no way to the one that serves.
#[tokio::test]
async fn who_stays_connected_is_told_to_come_anew() {
    let release = Arc::new(Notify::new());
    let vm = holding("a", &release).await;
    let gw = before(&vm, "20s").start().await;
    // The old process has something to do for a while.
    let held = Held::begin(gw.client(Version::H2, "shop.test").await, Version::H2).await;
    let mut stays = tokio::net::UnixStream::connect(gw.folder().join("admin.sock")).await.unwrap();
    let status = "GET /status HTTP/1.1\r\nhost: x\r\n\r\n";
    let mut answer = vec![0; 65536];
    stays.write_all(status.as_bytes()).await.unwrap();
    let length = stays.read(&mut answer).await.unwrap();
    assert!(answer[..length].starts_with(b"HTTP/1.1 200"));
    gw.told(&["upgrade"]).await;
    stays.write_all(status.as_bytes()).await.unwrap();
    let mut rest = String::new();
    stays.read_to_string(&mut rest).await.unwrap();
    assert!(rest.starts_with("HTTP/1.1 421") && rest.contains("serves by now"), "{rest}");
    assert!(rest.to_lowercase().contains("connection: close"), "{rest}");
    release.notify_waiters();
    held.ends_whole().await;
}

/// An upgrade is no reason to read the file again; what comes to it afterwards is.
#[tokio::test]
async fn files_are_watched_from_where_the_process_before_was() {
    let vm = holding("a", &Arc::default()).await;
    let gw = before(&vm, "1s").flag("--watch").named(&["new.test", "newer.test"]).start().await;
    let text = std::fs::read_to_string(gw.config()).unwrap();
    let status = async |host: &str| gw.request(Version::H1, get("/").host(host)).await.status;
    // For a while, and not in the file.
    let put = text.clone() + "[sites.\"new.test\"]\nrespond = { status = 418 }\n";
    let mut admin = tokio::net::UnixStream::connect(gw.folder().join("admin.sock")).await.unwrap();
    let request = format!(
        "PUT /config HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{put}",
        put.len()
    );
    admin.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    admin.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    gw.told(&["upgrade"]).await;
    is_alone(&gw).await;
    // Longer than it takes to see a change.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(status("new.test").await, 418);
    gw.edit(|text| text + "[sites.\"newer.test\"]\nrespond = { status = 410 }\n");
    eventually_async("it is followed", || async { (status("newer.test").await == 410).then_some(()) }).await;
    assert_eq!(status("new.test").await, 404);
}

/// Neither where the folder cannot be written at all, nor where the disk is full; and once there is room all is kept.
#[tokio::test]
async fn a_full_disk_stops_nobody() {
    for (mount, fills) in [("-o ro", false), ("-o size=64k", true)] {
        let vm = holding("a", &Arc::default()).await;
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::create_dir(&state).unwrap();
        let mount = format!("mount -t tmpfs {mount} tmpfs {} && exec \"$@\"", state.display());
        let gw = before(&vm, "1s")
            .server("state_dir", &format!("{:?}", state.display().to_string()))
            .within(&["unshare", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"])
            .named(&["new.test"])
            .start()
            .await;
        let inside = format!("/proc/{}/root{}/filler", gw.process.id(), state.display());
        if fills {
            let full = std::fs::write(&inside, vec![0; 1 << 20]).unwrap_err();
            assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        }
        let status = async |host: &str| gw.request(Version::H1, get("/").host(host)).await.status;
        gw.edit(|text| text + "[sites.\"new.test\"]\nrespond = { status = 418 }\n");
        gw.told(&["reload"]).await;
        assert_eq!(status("new.test").await, 418);
        gw.told(&["rollback"]).await;
        assert_eq!(status("new.test").await, 404);
        assert_eq!(gw.log().having(&["kept in memory only"]).len(), 1, "{mount}");
        if fills {
            std::fs::remove_file(&inside).unwrap();
        }
        gw.told(&["reload", "--force"]).await;
        let held = gw.told(&["history"]).await;
        assert_eq!(held.lines().count(), 5, "{held}");
        gw.told(&["upgrade"]).await;
        is_alone(&gw).await;
        assert_eq!((status("new.test").await, status("shop.test").await), (418, 200));
        let kept = gw.told(&["history"]).await;
        if fills {
            assert_eq!(kept.lines().count(), 5, "{kept}");
            assert!(!kept.contains("NOT AS IT WAS"), "{kept}");
        }
    }
}

/// Who was set aside or had to rest is not asked again because another process serves, and visitors find their VM.
#[tokio::test]
async fn vms_are_known_to_the_successor() {
    let ill = origin().named("ill").on("/", |call| Box::pin(async move { call.die() })).start().await;
    let (well, rests) = (origin().named("well").start().await, origin().named("rests").start().await);
    let backends = [ill.address(), well.address(), rests.address()];
    let text = format!(
        "[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nbackends = {backends:?}\nsticky = {{ cookie = \"vm\" }}\n\
         outlier = {{ consecutive_failures = 2, eject = \"600s\" }}\n"
    );
    let gw = gateway().server("workers", "2").named(&["shop.test"]).toml(&text).start().await;
    // From then on operators are heard.
    pid(&gw).await;
    gw.told(&["drain", &format!("vms/{}", rests.address())]).await;
    let mut cookie = String::new();
    for _ in 0..12 {
        let reply = gw.request(Version::H2, get("/")).await;
        assert_eq!((reply.status, reply.vm()), (200, "well"));
        cookie = reply.field("set-cookie").split(';').next().unwrap().to_owned();
    }
    eventually("it is set aside", || gw.log().having(&["is set aside"]).pop()).await;
    gw.told(&["upgrade"]).await;
    is_alone(&gw).await;
    let asked = (ill.requests().len(), rests.requests().len());
    for version in Version::ALL {
        for _ in 0..6 {
            let reply = gw.request(version, get("/").field("cookie", &cookie)).await;
            assert_eq!((reply.status, reply.vm()), (200, "well"), "{version:?}");
            assert!(!reply.fields.has("set-cookie"), "the cookie is as good as before");
        }
    }
    assert_eq!((ill.requests().len(), rests.requests().len()), asked);
    let pools = gw.told(&["pools", "--json"]).await;
    assert!(pools.contains("\"set_aside\": true"), "{pools}");
    assert!(gw.told(&["status"]).await.contains("drain"), "{pools}");
}

/// The process is killed, and somebody starts it anew.
#[tokio::test]
async fn after_a_crash_what_is_kept_is_used() {
    let release = Arc::new(Notify::new());
    let vm = holding("a", &release).await;
    let closed = foregate_tests::closed_port();
    let text = format!(
        "[sites.\"down.test\"]\npool = \"down\"\n[pools.down]\nbackends = \"127.0.0.1:{}\"\n\
         health = {{ tcp = {{}}, interval = \"200ms\", fall = 2 }}\n",
        closed.port
    );
    let gw = before(&vm, "5s").named(&["down.test"]).toml(&text).started_anew().start().await;
    let kept = gw.folder().join("state/verdicts.json");
    let config = Authority::shared().client(&[b"http/1.1"]);
    let handshake = async || {
        let mut stream = gw.dial("shop.test").tls_with(config.clone()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: shop.test\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        stream.get_ref().1.handshake_kind().unwrap()
    };
    assert_eq!(handshake().await, rustls::HandshakeKind::Full);
    assert_eq!(handshake().await, rustls::HandshakeKind::Resumed);
    // Every quarter of a minute.
    eventually("it is kept", || kept.exists().then_some(())).await;
    let held = Held::begin(gw.client(Version::H3, "shop.test").await, Version::H3).await;

    let listens = || gw.process.out.having(&["listening on "]).len();
    let before = listens();
    kill_process(gw.successors()[0], Signal::KILL).unwrap();
    eventually("it listens again", || (listens() == 2 * before).then_some(())).await;
    // A client of the dead connection is told at once, whoever asks first.
    let (begun, quic) = (std::time::Instant::now(), held.client.quic());
    if let Ok((mut send, _)) = quic.open_bi().await {
        _ = send.write_all(b"anybody?").await;
    }
    let reason = within("an end", quic.closed()).await.to_string();
    assert!(
        reason.contains("reset") && begun.elapsed().as_millis() < 1000,
        "{reason}, {:?}",
        begun.elapsed()
    );
    assert_eq!(handshake().await, rustls::HandshakeKind::Resumed);
    assert_eq!(gw.request(Version::H1, get("/").host("down.test")).await.status, 503);
    assert_eq!(gw.log().having(&["backend failed"]), [""; 0], "nobody tried it");
}
