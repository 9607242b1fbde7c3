//! How the gateway speaks to VMs: protocols by key and by scheme, TLS with its checks, sockets, reuse.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use foregate_tests::{
    Authority, Body, Gateway, GatewayBuilder, Origin, Version, check, digest_of, eventually,
    eventually_async, gateway, get, origin, post,
};

fn pool(backend: &str, keys: &str) -> GatewayBuilder {
    let text = format!("[sites.\"shop.test\"]\npool = \"vm\"\n[pools.vm]\nbackends = {backend:?}\n{keys}\n");
    gateway().named(&["shop.test"]).toml(&text).file("ca.pem", Authority::shared().pem())
}

async fn serves(gw: &Gateway, vm: &Origin, http2: bool) {
    for version in Version::ALL {
        vm.forget();
        let client = gw.client(version, "shop.test").await;
        let reply = client.send(&post("/a?b", "").body(Body::Pattern(300_000))).await.unwrap();
        assert_eq!((reply.status, reply.vm()), (200, vm.name()), "{version:?}: {}", reply.text());
        let seen = vm.only();
        assert_eq!(
            (seen.http2, seen.target.as_str(), seen.host.as_str()),
            (http2, "/a?b", "shop.test"),
            "{version:?}"
        );
        assert_eq!(seen.digest, digest_of(300_000), "{version:?}");
        // Of an HTTP/2 request's fields, none belongs to HTTP/1.1's connections.
        assert!(
            !http2 || !seen.fields.has("connection") && !seen.fields.has("transfer-encoding"),
            "{:?}",
            seen.fields
        );
    }
}

#[tokio::test]
async fn http2_without_tls() {
    let vm = origin().named("h2c").http2().start().await;
    for (backend, keys) in [(format!("h2c://{}", vm.address()), ""), (vm.address(), "protocol = \"h2c\"")] {
        let gw = pool(&backend, keys).start().await;
        serves(&gw, &vm, true).await;
        gw.stop().await;
    }
}

/// RFC 9113, section 8.7: such a request may be made again, whatever its method, on a connection old or new.
#[tokio::test]
async fn what_a_vm_does_not_look_at_is_made_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let asked = count.clone();
    let vm = origin()
        .named("h2c")
        .http2()
        .on("/once", move |call| {
            let asked = asked.clone();
            Box::pin(async move {
                match asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                    true => call.reject(),
                    false => call.greet().await,
                }
            })
        })
        .on("/never", |call| Box::pin(async move { call.reject() }))
        .start()
        .await;
    for version in Version::ALL {
        let gw = pool(&format!("h2c://{}", vm.address()), "").start().await;
        for request in [post("/once", "").body(Body::Pattern(30_000)), post("/once", "x"), get("/once")] {
            vm.forget();
            let method = request.method.clone();
            assert_eq!(gw.request(version, request).await.status, 200, "{version:?} {method}");
            let seen = vm.requests();
            assert_eq!(seen.len(), 2, "{version:?} {method}");
        }
        vm.forget();
        assert_eq!(gw.request(version, post("/once", "").body(Body::Pattern(30_000))).await.status, 200);
        assert_eq!(vm.requests().last().unwrap().digest, digest_of(30_000), "{version:?}");
        vm.forget();
        assert_eq!(gw.request(version, post("/never", "x")).await.status, 502, "{version:?}");
        assert_eq!(vm.requests().len(), 3, "{version:?}: as often as it may be");
        gw.stop().await;
    }
}

#[tokio::test]
async fn https_verified_by_a_ca_of_our_own() {
    let vm = origin().named("tls").tls("vm.lan", false).start().await;
    let keys = "tls = { ca = \"ca.pem\", server_name = \"vm.lan\" }";
    let gw = pool(&format!("https://{}", vm.address()), keys).start().await;
    serves(&gw, &vm, false).await;
    gw.stop().await;
}

#[tokio::test]
async fn http2_with_tls_and_by_alpn() {
    let tls = "tls = { ca = \"ca.pem\", server_name = \"vm.lan\" }";
    let new = origin().named("new").tls("vm.lan", false).http2().start().await;
    let old = origin().named("old").tls("vm.lan", false).start().await;
    for (vm, protocol, http2) in [(&new, "h2", true), (&new, "auto", true), (&old, "auto", false)] {
        let keys = format!("protocol = {protocol:?}\n{tls}");
        let gw = pool(&format!("https://{}", vm.address()), &keys).start().await;
        serves(&gw, vm, http2).await;
        gw.stop().await;
    }
}

/// Nothing is sent to a VM that is not the one it should be.
#[tokio::test]
async fn a_certificate_that_does_not_fit_is_502() {
    let vm = origin().tls("vm.lan", false).start().await;
    let address = format!("https://{}", vm.address());
    for keys in [
        "tls = { ca = \"ca.pem\", server_name = \"other.lan\" }",
        // By default it is the address's name, and no public authority knows ours.
        "tls = { server_name = \"vm.lan\" }",
        "",
    ] {
        let gw = pool(&address, keys).start().await;
        for version in Version::ALL {
            assert_eq!(gw.request(version, get("/")).await.status, 502, "{version:?} {keys}");
        }
        gw.stop().await;
    }
    assert!(vm.requests().is_empty());
}

/// As those that visitors are shown: nobody has to reload.
#[tokio::test]
async fn files_of_a_pools_tls_that_change_are_read_again() {
    let vm = origin().named("tls").tls("vm.lan", false).start().await;
    let (stranger, _) = Authority::shared().issue(&["stranger.lan"]);
    let keys = "tls = { ca = \"vm-ca.pem\", server_name = \"vm.lan\" }";
    let gw = pool(&format!("https://{}", vm.address()), keys).file("vm-ca.pem", &stranger).start().await;
    assert_eq!(gw.request(Version::H2, get("/")).await.status, 502, "it trusts somebody else");
    let write = |text: &str| {
        std::fs::write(gw.folder().join("aside"), text).unwrap();
        std::fs::rename(gw.folder().join("aside"), gw.folder().join("vm-ca.pem")).unwrap();
    };
    write(Authority::shared().pem());
    eventually_async("it is trusted", || async {
        (gw.request(Version::H2, get("/")).await.status == 200).then_some(())
    })
    .await;
    write("oops");
    eventually("it is told", || gw.log().having(&["what was there before is used on"]).pop()).await;
    for version in Version::ALL {
        assert_eq!(gw.request(version, get("/")).await.status, 200, "{version:?}");
    }
    assert!(gw.refused(&["reload"]).await.contains("vm-ca.pem"));
    gw.stop().await;
}

#[tokio::test]
async fn not_verifying_is_possible_and_warned_of() {
    let vm = origin().named("any").tls("whoever.lan", false).start().await;
    let gw = pool(&format!("https://{}", vm.address()), "tls = { verify = false }").start().await;
    serves(&gw, &vm, false).await;
    let output = check(&gw.folder().join("foregate.toml"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("warning") && said.contains("verif"), "{said}");
    gw.stop().await;
}

#[tokio::test]
async fn a_vm_may_want_a_certificate_of_the_gateway() {
    let vm = origin().named("mtls").tls("vm.lan", true).start().await;
    let address = format!("https://{}", vm.address());
    let (cert, key) = Authority::shared().issue(&["gateway.lan"]);
    let keys = "tls = { ca = \"ca.pem\", server_name = \"vm.lan\", cert = \"gw.crt\", key = \"gw.key\" }";
    let gw = pool(&address, keys).file("gw.crt", &cert).file("gw.key", &key).start().await;
    serves(&gw, &vm, false).await;
    gw.stop().await;

    vm.forget();
    let gw = pool(&address, "tls = { ca = \"ca.pem\", server_name = \"vm.lan\" }").start().await;
    assert_eq!(gw.request(Version::H2, get("/")).await.status, 502);
    assert!(vm.requests().is_empty());
    gw.stop().await;
}

#[tokio::test]
async fn a_unix_socket_is_an_address() {
    let folder = tempfile::tempdir().unwrap();
    let vm = origin().named("unix").unix(folder.path().join("vm.sock")).start().await;
    let gw = pool(&vm.address(), "").start().await;
    serves(&gw, &vm, false).await;
    gw.stop().await;
}

#[tokio::test]
async fn a_host_name_is_resolved() {
    let vm = origin().named("named").start().await;
    let gw = pool(&format!("localhost:{}", vm.port()), "").start().await;
    serves(&gw, &vm, false).await;
    gw.stop().await;

    let gw = pool("no-such-host.invalid:80", "").start().await;
    assert_eq!(gw.request(Version::H1, get("/")).await.status, 502);
    gw.stop().await;
}

/// Kept below the VM's own limit, so that it is the gateway who closes.
#[tokio::test]
async fn idle_connections_to_vms_are_closed_in_time() {
    for http2 in [false, true] {
        let vm = if http2 { origin().http2() } else { origin() }.start().await;
        let scheme = if http2 { "h2c://" } else { "" };
        let keys = "timeouts = { keep_alive = \"300ms\" }";
        let gw = pool(&format!("{scheme}{}", vm.address()), keys).start().await;
        assert_eq!(gw.request(Version::H1, get("/")).await.status, 200);
        assert_eq!(vm.accepted(), 1);
        eventually("the connection is closed", || (vm.open() == 0).then_some(())).await;
        assert_eq!(gw.request(Version::H1, get("/")).await.status, 200);
        assert_eq!(vm.accepted(), 2);
        gw.stop().await;
    }
}

/// Many requests at once share one HTTP/2 connection, and a VM that restarts is met again.
#[tokio::test]
async fn http2_connections_carry_many_and_are_replaced() {
    let mut vm = origin().named("h2c").http2().start().await;
    let gw = pool(&format!("h2c://{}", vm.address()), "").start().await;
    let client = gw.client(Version::H2, "shop.test").await;
    let mut running = Vec::new();
    for _ in 0..50 {
        let client = client.clone();
        running.push(tokio::spawn(async move { client.send(&get("/")).await.unwrap().status }));
    }
    for task in running {
        assert_eq!(task.await.unwrap(), 200);
    }
    assert!(vm.accepted() <= 4, "{} connections for one worker", vm.accepted());
    for _ in 0..3 {
        vm.down().await;
        vm.up().await;
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
    }
    gw.stop().await;
}
