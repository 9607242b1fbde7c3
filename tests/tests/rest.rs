//! VMs that say how they are, rest, warm up and are woken; and VMs that are slow for some.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use foregate_tests::{
    Client, Gateway, Lease, Origin, Reply, Version, binary, delete, eventually, eventually_async,
    foreign::Running, gateway, get, head, lease, origin, post, put,
};
use tokio::{sync::Notify, time::sleep};

async fn with(keys: &str, backends: &[String]) -> Gateway {
    let text =
        format!("[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nbackends = {backends:?}\n{keys}\n");
    gateway().named(&["shop.test"]).toml(&text).start().await
}

async fn two(keys: &str) -> (Origin, Origin, Gateway) {
    let (a, b) = (origin().named("a").start().await, origin().named("b").start().await);
    let gw = with(keys, &[a.address(), b.address()]).await;
    (a, b, gw)
}

/// A real agent, and the file in which its operator says what the VM is to do.
struct Agent {
    _running: Running,
    state: tempfile::TempDir,
    port: u16,
    _lease: Lease,
}

impl Agent {
    async fn start(ip: [u8; 4]) -> Agent {
        let (state, lease) = (tempfile::tempdir().unwrap(), lease());
        let address = std::net::SocketAddr::from((ip, lease.port));
        let mut command = Command::new(binary());
        command.args(["agent", "--listen", &address.to_string(), "--state"]);
        let mut running = Running::start(command.arg(state.path().join("state")));
        assert_eq!(running.printed(1).await, [format!("listening on tcp {address}")]);
        Agent { _running: running, state, port: lease.port, _lease: lease }
    }

    fn says(&self, line: &str) {
        std::fs::write(self.state.path().join("state"), line).unwrap();
    }
}

/// How many of so many requests, one after the other, a VM gets.
async fn share(client: &Client, requests: usize, vm: &str) -> usize {
    let mut got = 0;
    for _ in 0..requests {
        let reply = client.send(&get("/")).await.unwrap();
        assert_eq!(reply.status, 200);
        got += usize::from(reply.vm() == vm);
    }
    got
}

async fn said(gw: &Gateway, words: &[&str]) {
    eventually(&format!("{words:?} in the log"), || gw.log().having(words).pop()).await;
}

/// One request with these fields, and the VM that answered.
async fn met(client: &Client, cookie: Option<&str>) -> Reply {
    let request = cookie.iter().fold(get("/"), |request, cookie| request.field("cookie", cookie));
    let reply = client.send(&request).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply
}

fn cookie_of(reply: &Reply) -> String {
    let [cookie] = reply.fields.all("set-cookie")[..] else { panic!("{:?}", reply.fields) };
    cookie.split(';').next().unwrap().to_owned()
}

/// What the VM says of itself decides, over every version; who is stuck to one that drains may stay for a while.
#[tokio::test]
async fn an_agent_says_what_its_vm_wants() {
    let agent = Agent::start([127, 0, 0, 2]).await;
    let (a, b) = (origin().named("a").at([127, 0, 0, 2]).start().await, origin().named("b").start().await);
    let keys = format!(
        "sticky = {{}}\nagent = {{ port = {}, interval = \"100ms\" }}\n[server.timeouts]\ndrain = \"2s\"",
        agent.port
    );
    let gw = with(&keys, &[a.address(), b.address()]).await;
    let all: Vec<Client> = {
        let mut all = Vec::new();
        for version in Version::ALL {
            all.push(gw.client(version, "shop.test").await);
        }
        all
    };
    // Nobody answers for b, which is said and changes nothing.
    said(&gw, &["agent does not answer: what it said last holds", "127.0.0.1"]).await;
    let stuck = eventually_async("a cookie of a", || async {
        let reply = met(&all[0], None).await;
        (reply.vm() == "a").then(|| cookie_of(&reply))
    })
    .await;

    agent.says("drain # upgrade");
    said(&gw, &["backend drains: it gets no new work", "reason=upgrade"]).await;
    let drained = Instant::now();
    for client in &all {
        assert_eq!(share(client, 10, "a").await, 0);
        assert_eq!(met(client, Some(&stuck)).await.vm(), "a", "who was there may come again");
    }
    assert!(drained.elapsed() < Duration::from_millis(1800), "too slow to tell anything");
    eventually_async("its time is over", || async {
        (met(&all[0], Some(&stuck)).await.vm() == "b").then_some(())
    })
    .await;
    assert!(drained.elapsed() > Duration::from_millis(1500), "{:?}", drained.elapsed());
    for client in &all {
        let moved = met(client, Some(&stuck)).await;
        assert_eq!(moved.vm(), "b");
        assert_ne!(cookie_of(&moved), stuck, "and stays there");
    }

    agent.says("");
    said(&gw, &["backend takes work", "its agent says"]).await;
    for client in &all {
        assert_eq!(share(client, 10, "a").await, 5);
    }
    agent.says("down # out of disk");
    said(&gw, &["backend is off: it gets nothing", "out of disk"]).await;
    for client in &all {
        assert_eq!(share(client, 10, "a").await, 0);
        assert_eq!(met(client, Some(&stuck)).await.vm(), "b");
    }
    // It asks for a part of its weight.
    agent.says("up 25%");
    said(&gw, &["backend takes work", "25%"]).await;
    let got = share(&all[0], 400, "a").await;
    // A quarter towards a whole is a fifth of all.
    assert!((40..130).contains(&got), "{got}");
    gw.stop().await;
}

/// A VM whose processors are too busy is asked at once whether it lives, and gets less.
#[tokio::test]
async fn a_busy_vm_gets_less() {
    let port = lease();
    let busy = Arc::new(AtomicU64::new(20));
    let (listener, load) =
        (tokio::net::TcpListener::bind(("127.0.0.2", port.port)).await.unwrap(), busy.clone());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let line = format!("up cpu={}%\n", load.load(Ordering::SeqCst));
            _ = tokio::io::AsyncWriteExt::write_all(&mut stream, line.as_bytes()).await;
        }
    });
    let (a, b) = (origin().named("a").at([127, 0, 0, 2]).start().await, origin().named("b").start().await);
    let keys = format!("agent = {{ port = {}, interval = \"100ms\", max_cpu = \"50%\" }}", port.port);
    let gw = with(&keys, &[a.address(), b.address()]).await;
    let client = gw.client(Version::H1, "shop.test").await;
    assert_eq!(share(&client, 100, "a").await, 50);
    let asked = |origin: &Origin| origin.requests().iter().filter(|request| request.method == "HEAD").count();
    assert_eq!(asked(&a), 0);
    busy.store(100, Ordering::SeqCst);
    eventually_async("it gets less", || async { (share(&client, 100, "a").await < 20).then_some(()) }).await;
    assert!(asked(&a) > 0 && asked(&b) == 0, "it was asked whether it lives");
    busy.store(10, Ordering::SeqCst);
    eventually_async("it gets its share", || async { (share(&client, 100, "a").await == 50).then_some(()) })
        .await;
    gw.stop().await;
}

/// Who comes back is given more and more.
#[tokio::test]
async fn who_comes_back_starts_slowly() {
    let keys = "slow_start = \"4s\"\nhealth = { tcp = {}, interval = \"100ms\", rise = 1, fall = 1 }";
    let (mut a, _b, gw) = two(keys).await;
    let client = gw.client(Version::H1, "shop.test").await;
    assert_eq!(share(&client, 200, "a").await, 100, "all start together");
    sleep(Duration::from_secs(4)).await;
    a.down().await;
    said(&gw, &["backend is down"]).await;
    a.up().await;
    said(&gw, &["backend is up"]).await;
    let begun = Instant::now();
    let mut shares = Vec::new();
    while begun.elapsed() < Duration::from_millis(3500) {
        shares.push(share(&client, 200, "a").await);
        sleep(Duration::from_millis(100)).await;
    }
    eventually_async("all of its share", || async { (share(&client, 200, "a").await == 100).then_some(()) })
        .await;
    assert!(begun.elapsed() > Duration::from_millis(3500), "{:?}", begun.elapsed());
    let third = shares.len() / 3;
    let sum = |part: &[usize]| part.iter().sum::<usize>() / part.len();
    let (first, last) = (sum(&shares[..third]), sum(&shares[2 * third..]));
    assert!(first < 45 && last > 55 && last < 100, "{first} {last} {shares:?}");
    gw.stop().await;
}

/// So does one that an operator lets work again, or that was set aside.
#[tokio::test]
async fn who_was_not_asked_for_a_while_starts_slowly() {
    let ill = Arc::new(AtomicBool::new(false));
    let flag = ill.clone();
    let a = origin().named("a").on("/", move |call| {
        let ill = flag.load(Ordering::SeqCst);
        Box::pin(async move { if ill { call.die() } else { call.greet().await } })
    });
    let (a, b) = (a.start().await, origin().named("b").start().await);
    let keys = "slow_start = \"6s\"\noutlier = { consecutive_failures = 2, eject = \"1s\" }";
    let gw = with(keys, &[a.address(), b.address()]).await;
    let client = gw.client(Version::H2, "shop.test").await;
    assert_eq!(share(&client, 200, "a").await, 100, "all start together");
    sleep(Duration::from_secs(6)).await;
    let backend = format!("vms/{}", a.address());
    for drained in [true, false] {
        if drained {
            gw.told(&["drain", &backend]).await;
            assert_eq!(share(&client, 50, "a").await, 0);
            gw.told(&["undrain", &backend]).await;
        } else {
            ill.store(true, Ordering::SeqCst);
            assert_eq!(share(&client, 50, "a").await, 0);
            said(&gw, &["is set aside"]).await;
            ill.store(false, Ordering::SeqCst);
            eventually_async("it is tried", || async { (share(&client, 10, "a").await > 0).then_some(()) })
                .await;
        }
        let first = share(&client, 100, "a").await;
        assert!(first < 35, "drained: {drained}: {first} of 50");
        eventually_async("all of its share", || async {
            (share(&client, 200, "a").await == 100).then_some(())
        })
        .await;
    }
    gw.stop().await;
}

/// The pool sleeps: a request has its VM started, and waits for it with everybody else.
#[tokio::test]
async fn a_pool_that_sleeps_is_woken() {
    for version in Version::ALL {
        let folder = tempfile::tempdir().unwrap();
        let calls = folder.path().join("calls");
        let mut vm = origin().named("a").start().await;
        let health = "health = { http = { path = \"/\" }, interval = \"60s\", timeout = \"1s\" }";
        let wake = format!(
            "wake = {{ command = [\"sh\", \"-c\", \"echo woken >> {}\"], timeout = \"20s\" }}",
            calls.display()
        );
        vm.down().await;
        let gw = with(&format!("{health}\n{wake}\nqueue = {{ timeout = \"1s\" }}"), &[vm.address()]).await;
        // The first probe tells, whatever it takes later.
        said(&gw, &["pool has no usable backend left"]).await;
        let client = Arc::new(gw.client(version, "shop.test").await);
        let waiting: Vec<_> = (0..5)
            .map(|n| {
                let client = client.clone();
                // Whatever they are: nothing of them was sent.
                let request = if n % 2 == 0 { get("/") } else { post("/", "x".repeat(100_000)) };
                tokio::spawn(async move { client.send(&request).await.unwrap() })
            })
            .collect();
        eventually("the command", || std::fs::read_to_string(&calls).ok().filter(|text| !text.is_empty()))
            .await;
        // Longer than the queue has patience.
        sleep(Duration::from_millis(1500)).await;
        assert!(waiting.iter().all(|one| !one.is_finished()), "{version:?}");
        vm.up().await;
        for one in waiting {
            assert_eq!(one.await.unwrap().status, 200, "{version:?}");
        }
        assert_eq!(std::fs::read_to_string(&calls).unwrap(), "woken\n", "{version:?}: once");
        said(&gw, &["the pool is awake"]).await;
        gw.stop().await;
    }
}

/// One that does not wake is said, and nobody waits for it a second time at once.
#[tokio::test]
async fn a_pool_that_does_not_wake_turns_away() {
    let closed = foregate_tests::closed_port();
    let keys = "health = { tcp = {}, interval = \"100ms\", rise = 1, fall = 1 }\n\
        wake = { command = [\"sh\", \"-c\", \"echo no such domain >&2; exit 7\"], timeout = \"1s\" }\nqueue = { timeout = \"200ms\" }";
    let gw = with(keys, &[format!("127.0.0.1:{}", closed.port)]).await;
    said(&gw, &["pool has no usable backend left"]).await;
    for version in Version::ALL {
        let begun = Instant::now();
        let reply = gw.request(version, get("/")).await;
        assert_eq!((reply.status, reply.field("retry-after")), (503, "5"), "{version:?}");
        let waited = begun.elapsed() > Duration::from_millis(900);
        assert_eq!(waited, version == Version::ALL[0], "{version:?}: {:?}", begun.elapsed());
    }
    said(&gw, &["the command that wakes the pool has failed", "no such domain", "7"]).await;
    said(&gw, &["the pool did not wake", "waited=1s"]).await;
    gw.stop().await;
}

/// A VM that is slow for some requests, and the other one.
async fn slow_and_fast(keys: &str, delay: Duration) -> (Origin, Origin, Gateway, Arc<AtomicUsize>) {
    let left = Arc::new(AtomicUsize::new(0));
    let counter = left.clone();
    let slow = origin().named("slow").on("/", move |call| {
        let counter = counter.clone();
        Box::pin(async move {
            let _ = call.drain().await;
            tokio::select! {
                () = call.gone() => { counter.fetch_add(1, Ordering::SeqCst); }
                () = sleep(delay) => {}
            }
            call.greet().await;
        })
    });
    let (slow, fast) = (slow.start().await, origin().named("fast").start().await);
    let gw = with(&format!("balance = \"first\"\n{keys}"), &[slow.address(), fast.address()]).await;
    (slow, fast, gw, left)
}

#[tokio::test]
async fn who_is_slow_is_overtaken() {
    for version in Version::ALL {
        let keys = "retry = { hedge_after = \"200ms\" }";
        let (slow, fast, gw, left) = slow_and_fast(keys, Duration::from_secs(20)).await;
        let client = gw.client(version, "shop.test").await;
        for request in [get("/"), head("/")] {
            let begun = Instant::now();
            let reply = client.send(&request).await.unwrap();
            assert_eq!((reply.status, reply.vm()), (200, "fast"), "{version:?}");
            assert!(begun.elapsed() > Duration::from_millis(190), "{version:?}: {:?}", begun.elapsed());
            assert!(begun.elapsed() < Duration::from_secs(5), "{version:?}: {:?}", begun.elapsed());
        }
        eventually("the slow one is left alone", || (left.load(Ordering::SeqCst) == 2).then_some(())).await;
        assert_eq!((slow.requests().len(), fast.requests().len()), (2, 2), "{version:?}");
        // What changes something is not done at two VMs at a time, although it may be done twice.
        for request in [post("/", "x"), put("/", "a body that is kept"), delete("/")] {
            let late = tokio::time::timeout(Duration::from_millis(700), client.send(&request)).await;
            assert!(late.is_err(), "{version:?}");
        }
        assert_eq!(fast.requests().len(), 2, "{version:?}");
        gw.stop().await;
    }
}

/// Where all are slow, not all of it is done twice.
#[tokio::test]
async fn hedges_are_a_share_of_what_is_under_way() {
    const REQUESTS: usize = 60;
    // A tenth of them is less than what always may be.
    const TWICE: usize = 10;
    for version in Version::ALL {
        let release = Arc::new(Notify::new());
        let vms = ["a", "b"].map(|name| {
            let held = release.clone();
            origin().named(name).on("/", move |call| {
                let held = held.clone();
                Box::pin(async move {
                    held.notified().await;
                    call.greet().await;
                })
            })
        });
        let [a, b] = vms;
        let (a, b) = (a.start().await, b.start().await);
        let keys = "balance = \"first\"\nretry = { hedge_after = \"200ms\", budget = \"10%\" }";
        let gw = with(keys, &[a.address(), b.address()]).await;
        let client = Arc::new(gw.client(version, "shop.test").await);
        let tasks: Vec<_> = (0..REQUESTS)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.send(&get("/")).await.unwrap().status })
            })
            .collect();
        eventually("all are at the first", || (a.requests().len() == REQUESTS).then_some(())).await;
        eventually("some are at the second", || (b.requests().len() == TWICE).then_some(())).await;
        sleep(Duration::from_millis(600)).await;
        assert_eq!(b.requests().len(), TWICE, "{version:?}");
        let over = tokio::spawn(async move {
            loop {
                release.notify_waiters();
                sleep(Duration::from_millis(5)).await;
            }
        });
        for task in tasks {
            assert_eq!(task.await.unwrap(), 200, "{version:?}");
        }
        over.abort();
        gw.stop().await;
    }
}

/// The first good answer wins, whoever's it is.
#[tokio::test]
async fn the_better_of_two_answers_wins() {
    for version in Version::ALL {
        let slow = origin().named("slow").on("/", |call| {
            Box::pin(async move {
                sleep(Duration::from_millis(600)).await;
                call.greet().await;
            })
        });
        let ill =
            origin().named("ill").on("/breaks", |call| Box::pin(async move { call.die() })).on("/", |call| {
                Box::pin(async move { call.reply(503, &foregate_tests::Fields::new(), "ill").await })
            });
        let (slow, ill) = (slow.start().await, ill.start().await);
        let keys = "balance = \"first\"\nretry = { on = [\"connect\", \"503\"], hedge_after = \"100ms\" }";
        let gw = with(keys, &[slow.address(), ill.address()]).await;
        let client = gw.client(version, "shop.test").await;
        for path in ["/", "/breaks"] {
            let reply = client.send(&get(path)).await.unwrap();
            assert_eq!((reply.status, reply.vm()), (200, "slow"), "{version:?} {path}");
        }
        assert_eq!((slow.requests().len(), ill.requests().len()), (2, 2), "{version:?}");
        gw.stop().await;
    }
}

/// Who is at home at a VM is not sent to another because that one is slow.
#[tokio::test]
async fn who_is_stuck_is_not_hedged() {
    let keys = "sticky = {}\nretry = { hedge_after = \"100ms\" }";
    let (slow, fast, gw, _) = slow_and_fast(keys, Duration::from_millis(500)).await;
    let client = gw.client(Version::H1, "shop.test").await;
    let new = met(&client, None).await;
    assert_eq!(new.vm(), "fast");
    // The cookie of the slow one: a request that may not be made twice waits for it.
    let reply = client.send(&post("/", "x")).await.unwrap();
    let cookie = cookie_of(&reply);
    assert_eq!(reply.vm(), "slow");
    for _ in 0..3 {
        assert_eq!(met(&client, Some(&cookie)).await.vm(), "slow");
    }
    assert_eq!((slow.requests().len(), fast.requests().len()), (5, 1));
    gw.stop().await;
}

/// What is slow is known from what was before.
#[tokio::test]
async fn a_hedge_may_follow_the_pace_of_the_pool() {
    let served = Arc::new(AtomicUsize::new(0));
    let counter = served.clone();
    let a = origin().named("a").on("/", move |call| {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            // All at first, and then every hundredth hangs.
            sleep(Duration::from_millis(if number % 100 == 99 { 20_000 } else { 5 })).await;
            call.greet().await;
        })
    });
    let (a, b) = (a.start().await, origin().named("b").start().await);
    let keys = "balance = \"first\"\nretry = { hedge_after = \"p95\", budget = \"off\" }";
    let gw = with(keys, &[a.address(), b.address()]).await;
    let client = gw.client(Version::H1, "shop.test").await;
    let first = tokio::time::timeout(Duration::from_secs(3), share(&client, 99, "a")).await;
    assert_eq!(first, Ok(99), "nothing is known, and nobody is asked twice");
    assert!(b.requests().is_empty());
    served.store(200, Ordering::SeqCst);
    share(&client, 60, "a").await;
    served.store(399, Ordering::SeqCst);
    let begun = Instant::now();
    assert_eq!(met(&client, None).await.vm(), "b");
    assert!(begun.elapsed() < Duration::from_millis(500), "{:?}", begun.elapsed());
    gw.stop().await;
}

/// The value of a cookie is worth nothing at a gateway with another secret, and survives a restart of this one.
#[tokio::test]
async fn a_sticky_cookie_is_the_gateways_own() {
    let (a, b) = (origin().named("a").start().await, origin().named("b").start().await);
    let text = format!(
        "[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nbackends = {:?}\nsticky = {{}}\n",
        [a.address(), b.address()]
    );
    let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut cookies = Vec::new();
    for state in [&ours, &ours, &others] {
        let gw = gateway()
            .named(&["shop.test"])
            .server("state_dir", &format!("{:?}", state.path()))
            .toml(&text)
            .start()
            .await;
        let client = gw.client(Version::H1, "shop.test").await;
        let mut met_at = std::collections::BTreeMap::new();
        for _ in 0..2 {
            let reply = met(&client, None).await;
            met_at.insert(reply.vm().to_owned(), cookie_of(&reply));
        }
        for (vm, cookie) in cookies.first().unwrap_or(&met_at) {
            for _ in 0..3 {
                let reply = met(&client, Some(cookie)).await;
                assert_eq!(reply.vm() == vm && !reply.fields.has("set-cookie"), met_at[vm] == *cookie);
            }
        }
        cookies.push(met_at);
        gw.stop().await;
    }
    assert_eq!(cookies[0], cookies[1], "after a restart they are the same");
    assert!(cookies[0]["a"] != cookies[2]["a"] && cookies[0]["b"] != cookies[2]["b"]);
}

/// Who hangs is found out although nobody waits for it any more.
#[tokio::test]
async fn who_is_overtaken_again_and_again_is_found_out() {
    for version in Version::ALL {
        let keys = "retry = { hedge_after = \"100ms\" }\noutlier = { probe_after = \"1s\" }";
        let (_slow, _fast, gw, _) = slow_and_fast(keys, Duration::from_secs(60)).await;
        let client = gw.client(version, "shop.test").await;
        eventually_async("it is set aside", || async {
            assert_eq!(met(&client, None).await.vm(), "fast", "{version:?}");
            gw.log().having(&["backend is set aside", "neither requests nor a probe"]).pop()
        })
        .await;
        let begun = Instant::now();
        assert_eq!(met(&client, None).await.vm(), "fast", "{version:?}");
        assert!(begun.elapsed() < Duration::from_millis(90), "{version:?}: {:?}", begun.elapsed());
        gw.stop().await;
    }
}
