//! HTTP/3 clients: curl_cffi, aioquic and Chromium.

use std::{process::Command, sync::Arc};

use foregate_tests::{
    Fields, Gateway, Process, binary, digest_of, eventually,
    foreign::{Running, Trust, finish, program, said, script, told},
    gateway, lease, origin,
};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::{Barrier, Notify};

use super::{MIB, generated, listens, scene};

fn client(name: &str, gw: &Gateway, trust: &Trust, arguments: &[&str]) -> Command {
    let port = gw.https_port().to_string();
    let ca = trust.ca();
    script(name, &[arguments, &["--port", &port, "--host", "shop.test", "--ca", &ca]].concat())
}

#[tokio::test]
async fn curl_cffi_speaks_http_3_with_the_gateway() {
    let (vm, gw, trust) = scene().await;
    let file = generated(&trust, 5 * MIB);
    let ask = async |arguments: &[&str]| {
        vm.forget();
        let told = told(&mut client("curl_cffi_client.py", &gw, &trust, arguments)).await;
        for answer in told["answers"].as_array().unwrap() {
            assert_eq!((&answer["status"], &answer["version"]), (&json!(200), &told["version"]), "{told}");
        }
        for asked in vm.requests() {
            assert_eq!(asked.fields.all("via"), ["3 foregate"]);
        }
        told["answers"][0].clone()
    };
    let answer = ask(&["GET", "--path", "/echo?over=3"]).await;
    assert_eq!(answer["text"], json!("/echo?over=3"));

    let answer = ask(&["HEAD", "--path", "/large"]).await;
    assert_eq!(answer["fields"]["content-length"], json!((20 * MIB).to_string()));

    let answer = ask(&["GET", "--path", "/large"]).await;
    assert_eq!(answer["sha256"], json!(digest_of(20 * MIB)));

    ask(&["POST", "--path", "/up", "--file", &file]).await;
    let asked = vm.only();
    assert_eq!((asked.length, asked.digest), (5 * MIB, digest_of(5 * MIB)));

    // With a browser's TLS and QUIC parameters, and one connection for all.
    ask(&["GET", "--path", "/echo", "--impersonate", "chrome", "--repeat", "20"]).await;
    assert_eq!(vm.requests().len(), 20);
    gw.stop().await;
}

#[tokio::test]
async fn curl_cffi_waits_for_100_before_it_sends_a_large_post() {
    let (vm, gw, trust) = scene().await;
    let file = generated(&trust, 5 * MIB);
    for version in [&["--http2"][..], &[]] {
        let http2 = !version.is_empty();
        let posting = [&["--file", &file], version].concat();
        let ask = async |path| {
            vm.forget();
            let arguments = [&posting[..], &["--path", path]].concat();
            let told = told(&mut client("curl_cffi_expect.py", &gw, &trust, &arguments)).await;
            assert_eq!(told["version"], json!(if http2 { "2" } else { "3" }), "{told}");
            told
        };
        let answer = ask("/up").await;
        assert_eq!((&answer["status"], &answer["text"]), (&json!(200), &json!("a\n")), "{version:?}");
        let asked = vm.only();
        assert_eq!(asked.digest, digest_of(5 * MIB), "{version:?}");
        assert_eq!(asked.fields.get("expect"), Some("100-continue"), "{version:?}");
        assert_eq!(answer["uploaded"], json!(5 * MIB), "{version:?}");

        let answer = ask("/refuse").await;
        assert_eq!(
            (&answer["status"], &answer["text"]),
            (&json!(413), &json!("no, thank you\n")),
            "{version:?}"
        );
        assert_eq!((vm.only().length, &answer["uploaded"]), (0, &json!(0)), "{version:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn aioquic_gets_and_posts() {
    let (vm, gw, trust) = scene().await;
    let file = generated(&trust, 5 * MIB);
    let answer = told(&mut client("aioquic_client.py", &gw, &trust, &["get", "--path", "/echo?x"])).await;
    assert_eq!((&answer["status"], &answer["text"]), (&json!(200), &json!("/echo?x")), "{answer}");
    assert_eq!(vm.only().fields.all("via"), ["3 foregate"]);

    let answer = told(&mut client("aioquic_client.py", &gw, &trust, &["get", "--path", "/large"])).await;
    assert_eq!(answer["sha256"], json!(digest_of(20 * MIB)), "{answer}");

    vm.forget();
    let posting = ["post", "--path", "/up", "--file", &file];
    let answer = told(&mut client("aioquic_client.py", &gw, &trust, &posting)).await;
    assert_eq!((&answer["status"], &answer["text"]), (&json!(200), &json!("a\n")), "{answer}");
    let asked = vm.only();
    assert_eq!((asked.length, asked.digest), (5 * MIB, digest_of(5 * MIB)));
    gw.stop().await;
}

#[tokio::test]
async fn aioquic_asks_fifty_things_at_once_on_one_connection() {
    const COUNT: usize = 50;
    let all_here = Arc::new(Barrier::new(COUNT));
    let vm = origin()
        .on("/", move |call| {
            let all_here = all_here.clone();
            Box::pin(async move {
                // None is answered before all were asked, so all are under way at once.
                all_here.wait().await;
                let target = call.request.target.clone();
                call.reply(200, &Fields::new(), target).await;
            })
        })
        .start()
        .await;
    let gw = gateway().site("shop.test", &vm).start().await;
    let trust = Trust::new();
    let count = COUNT.to_string();
    let asking = ["parallel", "--path", "/item/", "--count", &count];
    let told = told(&mut client("aioquic_client.py", &gw, &trust, &asking)).await;
    let answers = told["answers"].as_array().unwrap();
    assert_eq!(answers.len(), COUNT);
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!((&answer["status"], &answer["text"]), (&json!(200), &json!(format!("/item/{number}"))));
    }
    gw.stop().await;
}

/// Four connections on one socket, and first ids as long as the gateway's own: each is its worker's for good,
/// also when all of them come from another port.
#[tokio::test]
async fn aioquic_shares_a_socket_and_moves() {
    for validation in ["auto", "always"] {
        let vm = origin().named("a").start().await;
        let http3 = format!("[http3]\naddress_validation = {validation:?}");
        let gw = gateway().server("workers", "3").site("shop.test", &vm).toml(&http3).start().await;
        let told = told(&mut client("aioquic_crowd.py", &gw, &Trust::new(), &[])).await;
        for when in ["before", "after"] {
            let answers = told[when].as_array().unwrap();
            assert_eq!(answers.len(), 4, "{told}");
            assert!(
                answers.iter().all(|answer| answer["status"] == json!(200)),
                "{validation} {when}: {told}"
            );
        }
        assert_eq!(told["ended"], json!([null, null, null, null]), "{told}");
        assert_eq!(vm.requests().len(), 8);
        gw.stop().await;
    }
}

#[tokio::test]
async fn aioquic_is_told_to_go_away_and_still_gets_its_answer() {
    let release = Arc::new(Notify::new());
    let bell = release.clone();
    let vm = origin()
        .named("a")
        .on("/held", move |call| {
            let bell = bell.clone();
            Box::pin(async move {
                bell.notified().await;
                call.greet().await;
            })
        })
        .start()
        .await;
    let mut gw = gateway().site("shop.test", &vm).start().await;
    let trust = Trust::new();
    let asking = ["drain", "--path", "/held"];
    let mut run = Running::start(&mut client("aioquic_client.py", &gw, &trust, &asking));
    eventually("the request is at the VM", || {
        assert!(!run.has_ended(), "the client ended early");
        (!vm.requests().is_empty()).then_some(())
    })
    .await;
    gw.terminate();
    let lines = run.printed(1).await;
    assert!(gw.process.ended().is_none(), "it ended with a request in flight");
    let announced = lines.first().and_then(|line| said(line));
    assert!(announced.is_some_and(|a| a.get("goaway").is_some()), "{lines:?}: {:#?}", run.finish().await);
    release.notify_one();

    let done = run.finish().await;
    let told = said(done.lines().last().unwrap()).unwrap();
    assert_eq!(told["waited"], json!(true), "{told}");
    assert_eq!((&told["first"]["status"], &told["first"]["text"]), (&json!(200), &json!("a\n")), "{told}");
    // What was asked after it was told: H3_REQUEST_REJECTED, so that it may be asked again elsewhere.
    assert_eq!(told["late"]["reset"], json!(0x010b), "{told}");
    let last = told["goaways"].as_array().unwrap().last().unwrap().as_u64().unwrap();
    assert!(last > told["stream"].as_u64().unwrap(), "{told}");
    assert!(last <= told["late_stream"].as_u64().unwrap(), "{told}");
    assert_eq!(vm.requests().len(), 1, "what was rejected never came to the VM");
    gw.ended().await;
}

#[tokio::test]
async fn chromium_shows_the_demo_over_http_3() {
    let (http, https) = (lease(), lease());
    let (plain, secure) = (http.port.to_string(), https.port.to_string());
    let mut command = Command::new(binary());
    let mut gw = Process::spawn(command.args(["demo", "--http", &plain, "--https", &secure]));
    listens(&mut gw).await;
    let key = told(&mut script("spki.py", &["--port", &secure, "--host", "shop.test"])).await;

    let profile = tempfile::tempdir().unwrap();
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
        "--virtual-time-budget=10000",
        "--dump-dom",
    ]);
    chromium.arg(format!("--user-data-dir={}", profile.path().display()));
    chromium.arg(format!("--ignore-certificate-errors-spki-list={}", key["spki"].as_str().unwrap()));
    chromium.arg(format!("--origin-to-force-quic-on=shop.test:{secure}"));
    let done = finish(chromium.arg(format!("https://shop.test:{secure}/"))).await;
    let page = &done.out;
    // What the gateway told the VM, and what the browser says itself.
    assert!(page.contains("<strong id=\"protocol\">HTTP/3</strong>"), "{done:#?}");
    assert!(page.contains("<strong id=\"next-hop\">h3</strong>"), "{done:#?}");
    gw.signal(Signal::TERM);
    assert!(gw.wait().await.success());
}
