//! Active probes: what makes a VM fall and rise, what clients see of it, and what the log says.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
    time::Duration,
};

use foregate_tests::{
    Authority, Client, Fields, Gateway, Origin, Version, closed_port, eventually, eventually_async, gateway,
    get, origin,
};

/// A VM whose `/healthz` answers with a status that can be changed; 0 is silence.
struct Vm {
    origin: Origin,
    status: Arc<AtomicU16>,
    probes: Arc<AtomicUsize>,
}

impl Vm {
    async fn start(name: &str) -> Vm {
        let (status, probes) = (Arc::new(AtomicU16::new(200)), Arc::new(AtomicUsize::new(0)));
        let (answer, count) = (status.clone(), probes.clone());
        let origin = origin().named(name).on("/healthz", move |call| {
            let (answer, count) = (answer.clone(), count.clone());
            Box::pin(async move {
                count.fetch_add(1, Ordering::SeqCst);
                match answer.load(Ordering::SeqCst) {
                    0 => call.gone().await,
                    status => call.reply(status, &Fields::new(), "I am well").await,
                }
            })
        });
        Vm { origin: origin.start().await, status, probes }
    }

    fn set(&self, status: u16) {
        self.status.store(status, Ordering::SeqCst);
    }

    fn probes(&self) -> usize {
        self.probes.load(Ordering::SeqCst)
    }

    async fn more_probes(&self, count: usize) {
        let before = self.probes();
        eventually("more probes", || (self.probes() >= before + count).then_some(())).await;
    }

    /// Requests of clients, not probes.
    fn served(&self) -> usize {
        self.origin.requests().iter().filter(|r| r.target != "/healthz").count()
    }
}

const OFTEN: &str = "interval = \"50ms\", timeout = \"1s\", rise = 2, fall = 3";

async fn start(health: &str, backends: &[String]) -> Gateway {
    let text = format!(
        "[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nbackends = {backends:?}\nhealth = {{ {health} }}\n"
    );
    gateway().named(&["shop.test"]).toml(&text).start().await
}

/// Waits until only this VM answers: ten times in a row, where round robin would change.
async fn alone(client: &Client, vm: &str) {
    eventually_async(&format!("only {vm} answers"), || async {
        for _ in 0..10 {
            let reply = client.send(&get("/")).await.unwrap();
            if reply.status != 200 || reply.vm() != vm {
                return None;
            }
        }
        Some(())
    })
    .await;
}

async fn both(client: &Client) {
    eventually_async("both VMs answer", || async {
        let (one, two) = (client.send(&get("/")).await.unwrap(), client.send(&get("/")).await.unwrap());
        (one.status == 200 && two.status == 200 && one.vm() != two.vm()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_vm_falls_and_rises_by_its_http_probe() {
    let (a, b) = (Vm::start("a").await, Vm::start("b").await);
    let health = format!("http = {{ path = \"/healthz\" }}, {OFTEN}");
    let gw = start(&health, &[a.origin.address(), b.origin.address()]).await;
    let client = gw.client(Version::H2, "shop.test").await;
    both(&client).await;
    for status in [500, 404, 0] {
        a.set(status);
        alone(&client, "b").await;
        // No client notices anything of it on any version.
        let before = a.served();
        for version in Version::ALL {
            let reply = gw.request(version, get("/")).await;
            assert_eq!((reply.status, reply.vm()), (200, "b"), "{version:?}");
        }
        assert_eq!(a.served(), before);
        a.set(200);
        both(&client).await;
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_vm_falls_and_rises_by_its_tcp_probe() {
    let (mut a, b) = (Vm::start("a").await, Vm::start("b").await);
    let gw = start(&format!("tcp = {{}}, {OFTEN}"), &[a.origin.address(), b.origin.address()]).await;
    let client = gw.client(Version::H2, "shop.test").await;
    both(&client).await;
    a.origin.down().await;
    eventually("its fall is logged", || (!falls(&gw, &a.origin.address()).is_empty()).then_some(())).await;
    alone(&client, "b").await;
    a.origin.up().await;
    both(&client).await;
    // A probe of this kind sends nothing.
    assert_eq!((a.probes(), b.probes()), (0, 0));
    gw.stop().await;
}

#[tokio::test]
async fn a_vm_falls_and_rises_by_its_grpc_probe() {
    for http3 in [false, true] {
        // SERVING is 1, NOT_SERVING 2.
        let serving = Arc::new(AtomicU16::new(1));
        let says = serving.clone();
        let vm = origin().named("a").on("/grpc.health.v1.Health/Check", move |call| {
            let says = says.load(Ordering::SeqCst);
            Box::pin(async move {
                let mut question = Vec::new();
                while let Ok(Some(data)) = call.data().await {
                    question.extend_from_slice(&data);
                }
                assert_eq!(question, b"\0\0\0\0\x05\x0a\x03api");
                call.start(200, &Fields::new().with("content-type", "application/grpc"), None).await;
                let _ = call.write(vec![0, 0, 0, 0, 2, 8, says.to_le_bytes()[0]].into()).await;
                call.finish(&Fields::new().with("grpc-status", "0")).await;
            })
        });
        let (vm, scheme, tls) = match http3 {
            true => (vm.http3("vm.lan", false).start().await, "h3", "tls = { verify = false }"),
            false => (vm.http2().start().await, "h2c", ""),
        };
        let text = format!(
            "[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nbackends = \"{scheme}://{}\"\n{tls}\n\
             health = {{ grpc = {{ service = \"api\" }}, {OFTEN} }}\n",
            vm.address()
        );
        let gw = gateway().named(&["shop.test"]).toml(&text).start().await;
        let probe = vm.saw("a probe", |request| request.method == "POST").await;
        assert_eq!(
            (probe.fields.get("content-type"), probe.fields.get("te")),
            (Some("application/grpc"), Some("trailers")),
            "HTTP/3: {http3}"
        );
        assert_eq!(gw.request(Version::H2, get("/")).await.status, 200);
        serving.store(2, Ordering::SeqCst);
        let fallen = || gw.log().having(&["is down", "gRPC probe: NOT_SERVING"]).pop();
        eventually("its fall", fallen).await;
        assert_eq!(gw.request(Version::H2, get("/")).await.status, 503);
        serving.store(1, Ordering::SeqCst);
        eventually("its rise", || gw.log().having(&["is up"]).pop()).await;
        assert_eq!(gw.request(Version::H2, get("/")).await.status, 200);
        gw.stop().await;
    }
}

/// A probe comes the way requests do.
#[tokio::test]
async fn a_vm_falls_and_rises_over_every_protocol() {
    for (kind, scheme) in
        [("HTTP/1.1 over TLS", "https"), ("HTTP/2 over TLS", "https"), ("", "h2c"), ("", "h3")]
    {
        let status = Arc::new(AtomicU16::new(200));
        let answer = status.clone();
        let vm = origin().named("a").on("/healthz", move |call| {
            let status = answer.load(Ordering::SeqCst);
            Box::pin(async move { call.reply(status, &Fields::new(), "").await })
        });
        let vm = match (scheme, kind) {
            ("h3", _) => vm.http3("vm.lan", false),
            ("h2c", _) => vm.http2(),
            (_, "HTTP/2 over TLS") => vm.tls("vm.lan", false).http2(),
            _ => vm.tls("vm.lan", false),
        };
        let vm = vm.start().await;
        let tls = if scheme == "h2c" { "" } else { "tls = { ca = \"ca.pem\", server_name = \"vm.lan\" }" };
        let text = format!(
            "[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nbackends = \"{scheme}://{}\"\n{tls}\n\
             health = {{ http = {{ path = \"/healthz\" }}, {OFTEN} }}\n",
            vm.address()
        );
        let gw = gateway()
            .named(&["shop.test"])
            .toml(&text)
            .file("ca.pem", Authority::shared().pem())
            .start()
            .await;
        let probe = vm.saw("a probe", |request| request.target == "/healthz").await;
        assert_eq!(probe.http2, kind.starts_with("HTTP/2") || scheme == "h2c", "{scheme} {kind}");
        for well in [false, true] {
            status.store(if well { 200 } else { 500 }, Ordering::SeqCst);
            eventually_async("it is known", || async {
                let status = gw.request(Version::H2, get("/")).await.status;
                (status == if well { 200 } else { 503 }).then_some(())
            })
            .await;
        }
        gw.stop().await;
    }
}

/// Two failures are not three.
#[tokio::test]
async fn a_short_illness_changes_nothing() {
    let count = Arc::new(AtomicUsize::new(0));
    let probes = count.clone();
    let vm = origin().named("a").on("/healthz", move |call| {
        let number = probes.fetch_add(1, Ordering::SeqCst);
        // Twice ill, once well, and so on.
        let status = if number % 3 == 2 { 200 } else { 500 };
        Box::pin(async move { call.reply(status, &Fields::new(), "").await })
    });
    let vm = vm.start().await;
    let gw = start(&format!("http = {{ path = \"/healthz\" }}, {OFTEN}"), &[vm.address()]).await;
    let client = gw.client(Version::H1, "shop.test").await;
    eventually_async("fifteen probes", || async {
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
        (count.load(Ordering::SeqCst) >= 15).then_some(())
    })
    .await;
    assert!(falls(&gw, &vm.address()).is_empty(), "{:#?}", gw.log().lines());
    gw.stop().await;
}

#[tokio::test]
async fn a_probe_asks_for_what_is_configured() {
    let vm = Vm::start("a").await;
    let health = format!(
        "http = {{ path = \"/healthz?deep=1\", status = \"200-299\", host = \"health.lan\", contains = \"am well\" }}, {OFTEN}"
    );
    let gw = start(&health, &[vm.origin.address()]).await;
    vm.more_probes(4).await;
    let probe = vm.origin.requests().into_iter().next().unwrap();
    assert_eq!(
        (probe.method.as_str(), probe.target.as_str(), probe.host.as_str()),
        ("GET", "/healthz?deep=1", "health.lan")
    );
    assert!(falls(&gw, &vm.origin.address()).is_empty(), "{:#?}", gw.log().lines());
    // 302 is good by default, but this pool is stricter.
    vm.set(302);
    eventually("its fall", || (falls(&gw, &vm.origin.address()).len() == 1).then_some(())).await;
    gw.stop().await;
}

#[tokio::test]
async fn a_probe_reads_the_body_when_asked() {
    let (a, b) = (Vm::start("a").await, Vm::start("b").await);
    let health = format!("http = {{ path = \"/healthz\", contains = \"perfectly\" }}, {OFTEN}");
    let gw = start(&health, &[a.origin.address(), b.origin.address()]).await;
    eventually("both fall", || {
        let fallen = [&a, &b].iter().filter(|vm| !falls(&gw, &vm.origin.address()).is_empty()).count();
        (fallen == 2).then_some(())
    })
    .await;
    assert_eq!(gw.request(Version::H1, get("/")).await.status, 503);
    gw.stop().await;
}

/// The lines of the log that tell that this VM fell, and that it rose.
fn falls(gw: &Gateway, address: &str) -> Vec<String> {
    gw.log().having(&[address, "is down"])
}

fn rises(gw: &Gateway, address: &str) -> Vec<String> {
    gw.log().having(&[address, "is up"])
}

#[tokio::test]
async fn a_change_is_logged_once_with_its_reason() {
    let a = Vm::start("a").await;
    let address = a.origin.address();
    let gw =
        start(&format!("http = {{ path = \"/healthz\" }}, {OFTEN}"), std::slice::from_ref(&address)).await;
    a.more_probes(5).await;
    // From not known to well is a change or none, as one likes, but only once.
    let first = rises(&gw, &address).len();
    assert!(first <= 1 && falls(&gw, &address).is_empty(), "{:#?}", gw.log().lines());
    a.set(500);
    eventually("its fall is logged", || (!falls(&gw, &address).is_empty()).then_some(())).await;
    a.more_probes(8).await;
    let fall = falls(&gw, &address);
    assert!(fall.len() == 1 && fall[0].contains("500"), "once, with the reason: {fall:#?}");
    a.set(200);
    eventually("its rise is logged", || (rises(&gw, &address).len() > first).then_some(())).await;
    a.more_probes(8).await;
    assert_eq!(
        (falls(&gw, &address).len(), rises(&gw, &address).len()),
        (1, first + 1),
        "{:#?}",
        gw.log().lines()
    );
    gw.stop().await;
}

#[tokio::test]
async fn when_all_are_down_the_answer_is_503_with_retry_after() {
    let (a, b) = (Vm::start("a").await, Vm::start("b").await);
    let health = format!("http = {{ path = \"/healthz\" }}, {OFTEN}");
    let gw = start(&health, &[a.origin.address(), b.origin.address()]).await;
    a.set(503);
    b.set(503);
    let client = gw.client(Version::H1, "shop.test").await;
    eventually_async("no VM is left", || async {
        (client.send(&get("/")).await.unwrap().status == 503).then_some(())
    })
    .await;
    let before = (a.served(), b.served());
    for version in Version::ALL {
        let reply = gw.request(version, get("/")).await;
        assert_eq!(reply.status, 503, "{version:?}");
        let seconds: u32 = reply.field("retry-after").parse().unwrap();
        assert!((1..=120).contains(&seconds), "{version:?}: {seconds}");
    }
    assert_eq!((a.served(), b.served()), before);
    a.set(200);
    alone(&client, "a").await;
    gw.stop().await;
}

/// Nothing is known of a VM before its first probes: it is used.
#[tokio::test]
async fn a_vm_not_yet_probed_is_usable() {
    let a = Vm::start("a").await;
    a.set(500);
    let health = "http = { path = \"/healthz\" }, interval = \"60s\", timeout = \"1s\", rise = 2, fall = 3";
    let gw = start(health, &[a.origin.address()]).await;
    for version in Version::ALL {
        assert_eq!(gw.request(version, get("/")).await.status, 200, "{version:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn tiers_fall_back_one_by_one() {
    let vms = [Vm::start("a").await, Vm::start("b").await, Vm::start("c").await];
    let mut backends = String::new();
    for (tier, vm) in vms.iter().enumerate() {
        backends += &format!("  {{ address = {:?}, tier = {tier} }},\n", vm.origin.address());
    }
    let text = format!(
        "[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nhealth = {{ http = {{ path = \"/healthz\" }}, {OFTEN} }}\nbackends = [\n{backends}]\n"
    );
    let gw = gateway().named(&["shop.test"]).toml(&text).start().await;
    let client = gw.client(Version::H3, "shop.test").await;
    alone(&client, "a").await;
    vms[0].set(500);
    alone(&client, "b").await;
    vms[1].set(500);
    alone(&client, "c").await;
    vms[2].set(500);
    eventually_async("503", || async { (client.send(&get("/")).await.unwrap().status == 503).then_some(()) })
        .await;
    vms[1].set(200);
    alone(&client, "b").await;
    vms[0].set(200);
    alone(&client, "a").await;
    gw.stop().await;
}

/// Defaults of `[defaults.pools]` hold for pools written in place too.
#[tokio::test]
async fn inline_pools_are_probed_by_the_defaults() {
    let (a, closed) = (Vm::start("a").await, closed_port());
    let text = format!(
        "[defaults.pools]\nhealth = {{ http = {{ path = \"/healthz\" }}, {OFTEN} }}\n[sites.\"shop.test\"]\npool = [{:?}, \"127.0.0.1:{}\"]\n",
        a.origin.address(),
        closed.port
    );
    let gw = gateway().named(&["shop.test"]).toml(&text).start().await;
    a.more_probes(3).await;
    let dead = format!("127.0.0.1:{}", closed.port);
    eventually("the dead one's fall", || (falls(&gw, &dead).len() == 1).then_some(())).await;
    assert_eq!(gw.request(Version::H2, get("/")).await.vm(), "a");
    gw.stop().await;
}

/// Probes are spread: VMs of one pool are not all asked in the same instant for ever.
#[tokio::test]
async fn probes_keep_about_their_interval() {
    let a = Vm::start("a").await;
    let health = "http = { path = \"/healthz\" }, interval = \"100ms\", timeout = \"1s\", rise = 2, fall = 3";
    let gw = start(health, &[a.origin.address()]).await;
    a.more_probes(1).await;
    let begun = tokio::time::Instant::now();
    a.more_probes(10).await;
    let took = begun.elapsed();
    // With jitter; above, only a machine that is very busy.
    assert!(took >= Duration::from_millis(600), "ten probes in {took:?}");
    gw.stop().await;
}
