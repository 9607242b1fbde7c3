//! Chromium: the HTTP/3 that most clients have.

use std::{process::Command, sync::Arc};

use foregate_tests::{
    Delivery, Fields, Gateway, Origin, Process, Recorded, binary, digest_of,
    foreign::{DEADLINE, Running, finish, program, script, told},
    gateway, lease, origin,
};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};

use super::{MIB, listens};

const PAGE: &str = include_str!("../../clients/chromium.html");
const LARGE: u64 = 50 * MIB;
const EVENTS: usize = 5;

/// A Chromium with a new profile in this folder, which finds shop.test at this port of 127.0.0.1, takes the
/// certificate it is shown there, and asks for everything there over HTTP/3.
async fn chromium(profile: &TempDir, https: u16) -> Command {
    let port = https.to_string();
    let key = told(&mut script("spki.py", &["--port", &port, "--host", "shop.test"])).await;
    let mut chromium = program("chromium", "chromium");
    chromium.env("HOME", profile.path()).args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-proxy-server",
        "--host-resolver-rules=MAP shop.test 127.0.0.1",
    ]);
    chromium.arg(format!("--user-data-dir={}", profile.path().display()));
    chromium.arg(format!("--ignore-certificate-errors-spki-list={}", key["spki"].as_str().unwrap()));
    chromium.arg(format!("--origin-to-force-quic-on=shop.test:{https}"));
    chromium
}

/// The VM of `chromium.html`, and what rings when the page has told what it found.
async fn vm() -> (Origin, Arc<Notify>) {
    let (seen, told) = (Arc::new(Semaphore::new(0)), Arc::new(Notify::new()));
    let (sees, tells) = (seen.clone(), told.clone());
    let vm = origin()
        .named("a")
        .on("/page", |call| {
            Box::pin(async move {
                let html = Fields::new().with("content-type", "text/html");
                call.reply(200, &html, PAGE).await;
            })
        })
        .on("/large", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(LARGE)).await;
                let _ = call.write_pattern(LARGE).await;
                call.finish(&Fields::new()).await;
            })
        })
        .on("/events", move |call| {
            let seen = seen.clone();
            Box::pin(async move {
                let events = Fields::new().with("content-type", "text/event-stream");
                call.start(200, &events, None).await;
                for number in 0..EVENTS {
                    let _ = call.write(format!("data: {number}\n\n").into()).await;
                    // Whatever held it back on the way would hold it for ever.
                    seen.acquire().await.unwrap().forget();
                }
                let _ = call.write("data: end\n\n".into()).await;
                call.gone().await;
            })
        })
        .on("/seen", move |call| {
            let sees = sees.clone();
            Box::pin(async move {
                sees.add_permits(1);
                call.greet().await;
            })
        })
        .on("/ws", |call| Box::pin(call.websocket()))
        .on("/told", move |call| {
            let tells = tells.clone();
            Box::pin(async move {
                call.greet().await;
                tells.notify_one();
            })
        });
    (vm.start().await, told)
}

/// A page that has told what it found, in a Chromium that is still there.
struct Visit {
    found: Value,
    vm: Origin,
    gw: Gateway,
    chromium: Running,
    // It may be written to until Chromium has ended.
    _profile: TempDir,
}

impl Visit {
    async fn to(path: &str, options: &[&str]) -> Visit {
        let (vm, told) = vm().await;
        let gw = gateway().site("shop.test", &vm).start().await;
        let profile = tempfile::tempdir().unwrap();
        let mut command = chromium(&profile, gw.https_port()).await;
        let page = format!("https://shop.test:{}{path}", gw.https_port());
        let mut chromium = Running::start(command.args(options).arg(page));
        if timeout(DEADLINE, told.notified()).await.is_err() {
            panic!(
                "the page does not tell anything: {:#?}\n{:#?}",
                vm.requests(),
                chromium.terminate().await
            );
        }
        assert!(!chromium.has_ended(), "Chromium ended early: {:#?}", chromium.finish().await);
        let told = vm.saw("what was told", |r| r.target == "/told" && r.delivery == Delivery::Complete).await;
        let found: Value = serde_json::from_slice(&told.body).unwrap();
        assert_eq!((found.get("error"), &found["page"]), (None, &json!("h3")), "{found}");
        Visit { found, vm, gw, chromium, _profile: profile }
    }

    /// The only request for this.
    fn asked(&self, target: &str) -> Recorded {
        let asked: Vec<_> = self.vm.requests().into_iter().filter(|r| r.target == target).collect();
        assert_eq!(asked.len(), 1, "{target}: {asked:#?}");
        asked.into_iter().next().unwrap()
    }

    /// What `chromium.html` finds where a socket works.
    fn has_used_a_socket(&self) {
        let texts: Vec<String> = (0..20).map(|number| format!("message {number}")).collect();
        // The VM closes without a code (RFC 6455, section 7.1.5).
        let socket =
            json!({ "subprotocol": "chat", "texts": texts, "same": true, "code": 1005, "clean": true });
        assert_eq!(self.found["socket"], socket, "{}", self.found);
        assert!(self.asked("/ws").fields.lists("upgrade", "websocket"));
    }

    async fn end(self) {
        // Closed, not killed: a client that is gone without a word is waited for.
        self.chromium.terminate().await;
        self.gw.stop().await;
    }
}

#[tokio::test]
async fn chromium_uploads_hears_events_and_opens_a_socket() {
    let visit = Visit::to("/page", &[]).await;
    let found = &visit.found;
    let download = json!({ "length": LARGE, "sha256": digest_of(LARGE), "protocol": "h3" });
    assert_eq!(found["download"], download, "{found}");
    assert_eq!(found["upload"], json!({ "status": 200, "text": "a\n", "protocol": "h3" }), "{found}");
    let upload = visit.asked("/up");
    assert_eq!(
        (upload.length, upload.digest, upload.delivery),
        (LARGE, digest_of(LARGE), Delivery::Complete)
    );
    assert_eq!(found["events"], json!(["0", "1", "2", "3", "4"]), "{found}");
    for target in ["/page", "/large", "/up", "/events"] {
        assert_eq!(visit.asked(target).fields.all("via"), ["3 foregate"], "{target}");
    }
    // The page closed that one when it had heard enough, and went on.
    let closed = |r: &Recorded| r.target == "/events" && matches!(r.delivery, Delivery::Broken(_));
    visit.vm.saw("the end of the events", closed).await;
    // Left to itself Chromium 156 takes a connection of HTTP/1.1 for it.
    visit.has_used_a_socket();
    visit.end().await;
}

/// RFC 9220, which Chromium knows, but does not use unless it is told to.
#[tokio::test]
async fn chromium_opens_a_socket_over_http_3() {
    let visit = Visit::to("/page?socket", &["--enable-features=EnableWebsocketsOverHttp3"]).await;
    visit.has_used_a_socket();
    let via = visit.asked("/ws").fields;
    assert_eq!(via.all("via"), ["3 foregate"], "this Chromium has another name for it, or none: {via:?}");
    visit.end().await;
}

#[tokio::test]
async fn chromium_shows_the_demo_over_http_3() {
    let (http, https) = (lease(), lease());
    let (plain, secure) = (http.port.to_string(), https.port.to_string());
    let mut command = Command::new(binary());
    let mut gw = Process::spawn(command.args(["demo", "--http", &plain, "--https", &secure]));
    listens(&mut gw).await;
    let profile = tempfile::tempdir().unwrap();
    let mut chromium = chromium(&profile, https.port).await;
    chromium.args(["--virtual-time-budget=10000", "--dump-dom"]);
    let done = finish(chromium.arg(format!("https://shop.test:{secure}/"))).await;
    let page = &done.out;
    // What the gateway told the VM, and what the browser says itself.
    assert!(page.contains("<strong id=\"protocol\">HTTP/3</strong>"), "{done:#?}");
    assert!(page.contains("<strong id=\"next-hop\">h3</strong>"), "{done:#?}");
    gw.signal(Signal::TERM);
    assert!(gw.wait().await.success());
}
