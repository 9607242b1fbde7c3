//! curl: HTTP/1.1 and HTTP/2, with and without TLS.

use std::{process::Command, sync::Arc};

use foregate_tests::{
    Delivery, Fields, Process, binary, digest_of,
    foreign::{Trust, curl, finish, transfer},
    gateway, lease, origin,
};
use rustix::process::Signal;
use serde_json::json;
use tokio::sync::Barrier;

use super::{MIB, WAYS, curl_to, generated, listens, scene, sha256, url, vm};

#[tokio::test]
async fn curl_gets_and_heads_over_every_version_it_has() {
    let (vm, gw, trust) = scene().await;
    for (option, tls, version, via) in WAYS {
        let way = format!("{option}, TLS: {tls}");
        for method in ["GET", "HEAD"] {
            vm.forget();
            let url = url(&gw, tls, "/hello?a=%2F");
            let mut arguments = vec![option, &url];
            arguments.extend((method == "HEAD").then_some("--head"));
            let done = transfer(&mut curl_to(&gw, &trust), &arguments).await;
            assert_eq!((done.status(), done.version()), (200, version), "{way}: {method}");
            assert_eq!(done.field("content-length").as_deref(), Some("2"), "{way}: {method}: {}", done.head);
            assert!(done.field("date").is_some(), "{way}: {method}: {}", done.head);
            let asked = vm.only();
            assert_eq!((&*asked.method, &*asked.target), (method, "/hello?a=%2F"), "{way}");
            assert_eq!(asked.fields.all("via"), [via], "{way}");
            if method == "GET" {
                assert_eq!(done.body, b"a\n", "{way}");
            }
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn curl_uploads_and_downloads_20_mib_over_every_version_it_has() {
    let (vm, gw, trust) = scene().await;
    let file = generated(&trust, 20 * MIB);
    for (option, tls, version, _) in WAYS {
        let way = format!("{option}, TLS: {tls}");
        vm.forget();
        let data = format!("@{file}");
        let up = url(&gw, tls, "/up");
        let done = transfer(&mut curl_to(&gw, &trust), &[option, "--data-binary", &data, &up]).await;
        assert_eq!((done.status(), done.version()), (200, version), "{way}");
        assert_eq!(done.report["size_upload"], json!(20 * MIB), "{way}");
        let asked = vm.only();
        assert_eq!((&*asked.method, asked.length), ("POST", 20 * MIB), "{way}");
        assert_eq!((asked.delivery, asked.digest), (Delivery::Complete, digest_of(20 * MIB)), "{way}");

        // Of unknown length: chunked from an HTTP/1.1 client, and to the VM.
        vm.forget();
        let chunked = ["--header", "Transfer-Encoding: chunked", "--upload-file", &file];
        let chunked = if version == "2" { &chunked[2..] } else { &chunked[..] };
        let done = transfer(&mut curl_to(&gw, &trust), &[&[option, &up], chunked].concat()).await;
        assert_eq!(done.status(), 200, "{way}");
        let asked = vm.only();
        assert_eq!((&*asked.method, asked.digest), ("PUT", digest_of(20 * MIB)), "{way}");
        assert_eq!(asked.fields.lists("transfer-encoding", "chunked"), version != "2", "{way}");

        let down = url(&gw, tls, "/large");
        let done = transfer(&mut curl_to(&gw, &trust), &[option, &down]).await;
        assert_eq!((done.status(), done.version()), (200, version), "{way}");
        assert_eq!(sha256(&done.body), digest_of(20 * MIB), "{way}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn curl_is_told_to_continue_with_a_large_post() {
    let (vm, gw, trust) = scene().await;
    let data = format!("@{}", generated(&trust, 5 * MIB));
    for (option, tls, version, _) in WAYS {
        let way = format!("{option}, TLS: {tls}");
        // curl would go on by itself after a second; so much later it would be the test's failure.
        let expecting = ["--verbose", "--header", "Expect: 100-continue", "--expect100-timeout", "90"];
        let posting = [&[option, "--data-binary", &data][..], &expecting].concat();

        vm.forget();
        let to = url(&gw, tls, "/up");
        let done = transfer(&mut curl_to(&gw, &trust), &[&posting[..], &[&to]].concat()).await;
        assert_eq!((done.status(), done.version()), (200, version), "{way}");
        let asked = vm.only();
        assert_eq!(asked.digest, digest_of(5 * MIB), "{way}");
        assert_eq!(asked.fields.get("expect"), Some("100-continue"), "{way}: the VM decides");
        let told = done.trace.lines().any(|l| l.starts_with("< HTTP/") && l.contains(" 100"));
        assert!(told, "{way}: no 100:\n{}", done.trace);

        // A VM that does not want it is asked before the body is sent. Over HTTP/2 curl 7.88 takes a
        // response that is followed by RST_STREAM(NO_ERROR) for none, from nginx too; a later libcurl
        // is asked for that below.
        if version == "1.1" {
            vm.forget();
            let to = url(&gw, tls, "/refuse");
            let done = transfer(&mut curl_to(&gw, &trust), &[&posting[..], &[&to]].concat()).await;
            assert_eq!((done.status(), done.version()), (413, version), "{way}");
            assert_eq!(done.body, b"no, thank you\n", "{way}");
            assert_eq!(done.report["size_upload"], json!(0), "{way}: {}", done.trace);
            assert_eq!(vm.only().length, 0, "{way}");
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn curl_that_asks_for_an_upgrade_to_h2c_is_served_over_http_1() {
    let (vm, gw, trust) = scene().await;
    let done = transfer(&mut curl_to(&gw, &trust), &["--http2", &url(&gw, false, "/")]).await;
    assert_eq!((done.status(), done.version(), &*done.body), (200, "1.1", &b"a\n"[..]));
    let asked = vm.only();
    for name in ["upgrade", "http2-settings"] {
        assert!(!asked.fields.has(name), "{name} came to the VM: {:?}", asked.fields);
    }
    gw.stop().await;
}

#[tokio::test]
async fn curl_multiplexes_on_one_http_2_connection() {
    let all_here = Arc::new(Barrier::new(40));
    let vm = origin()
        .on("/at-once/", move |call| {
            let all_here = all_here.clone();
            Box::pin(async move {
                all_here.wait().await;
                let target = format!("{}\n", call.request.target);
                call.reply(200, &Fields::new(), target).await;
            })
        })
        .start()
        .await;
    let gw = gateway().site("shop.test", &vm).start().await;
    let trust = Trust::new();
    let mut command = curl_to(&gw, &trust);
    // Without --parallel-immediate it waits until the first connection is there and shares it.
    command.args([
        "--http2",
        "--no-progress-meter",
        "--parallel",
        "--parallel-max",
        "40",
        "--write-out",
        "%{stderr}%{http_version}\n",
    ]);
    let done = finish(command.arg(url(&gw, true, "/at-once/[1-40]"))).await;
    let mut bodies = done.lines();
    bodies.sort_by_key(|line| line.rsplit('/').next().unwrap().parse::<u32>().unwrap());
    let wanted: Vec<String> = (1..=40).map(|n| format!("/at-once/{n}")).collect();
    assert_eq!(bodies, wanted);
    let versions: Vec<&str> = done.err.lines().filter(|l| !l.trim().is_empty()).collect();
    assert_eq!(versions, ["2"; 40], "{}", done.err);
    gw.stop().await;
}

#[tokio::test]
async fn curl_learns_of_http_3_over_tls_alone() {
    let (_vm, gw, trust) = scene().await;
    let port = gw.https_port();
    for (option, tls, ..) in WAYS {
        let way = format!("{option}, TLS: {tls}");
        let cache = trust.path("alt-svc");
        let _ = std::fs::remove_file(&cache);
        let done =
            transfer(&mut curl_to(&gw, &trust), &[option, "--alt-svc", &cache, &url(&gw, tls, "/")]).await;
        assert_eq!(done.status(), 200, "{way}");
        let learnt = std::fs::read_to_string(&cache).unwrap_or_default();
        let learnt: Vec<&str> = learnt.lines().filter(|l| !l.starts_with('#')).collect();
        if tls {
            assert_eq!(done.field("alt-svc"), Some(format!("h3=\":{port}\"; ma=3600")), "{way}");
            // Origin, then alternative, each as protocol, host and port.
            let [line] = learnt[..] else { panic!("{way}: {learnt:?}") };
            assert!(line.contains(&format!(" h3 shop.test {port} ")), "{way}: {line}");
        } else {
            assert_eq!(done.field("alt-svc"), None, "{way}");
            assert!(learnt.is_empty(), "{way}: {learnt:?}");
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn curl_reaches_a_program_through_the_gateway_without_a_file() {
    let vm = vm().await;
    let (http, https) = (lease(), lease());
    let (to, plain, secure) = (vm.address(), http.port.to_string(), https.port.to_string());
    let mut command = Command::new(binary());
    command.args(["proxy", "--to", &to, "--listen", "127.0.0.1", "--http", &plain, "--https", &secure]);
    let mut gw = Process::spawn(&mut command);
    listens(&mut gw).await;
    let trust = Trust::new();
    for (option, tls, version, _) in WAYS {
        let (scheme, port) = if tls { ("https", https.port) } else { ("http", http.port) };
        let url = format!("{scheme}://any.test:{port}/echo");
        let mut command = curl(&[http.port, https.port], &trust);
        let done = transfer(&mut command, &[option, "--insecure", &url]).await;
        assert_eq!((done.status(), done.version(), &*done.body), (200, version, &b"/echo"[..]), "{option}");
    }
    gw.signal(Signal::TERM);
    assert!(gw.wait().await.success());
}
