//! VMs whose requests fail: who is set aside and comes back, what is made again elsewhere, and what is not.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use foregate_tests::{
    Body, Client, Fields, Gateway, Origin, Version, closed_port, digest_of, eventually, eventually_async,
    gateway, get, origin, post, put, raw,
};
use tokio::sync::Notify;

/// What a VM does while it is ill.
#[derive(Clone, Copy)]
enum Illness {
    BreaksOff,
    Answers(u16),
    IsSilent,
}

/// A VM that can fall ill.
struct Vm {
    origin: Origin,
    ill: Arc<AtomicBool>,
}

impl Vm {
    async fn start(name: &str, illness: Illness) -> Vm {
        let ill = Arc::new(AtomicBool::new(true));
        let flag = ill.clone();
        let origin = origin().named(name).on("/", move |call| {
            let ill = flag.load(Ordering::SeqCst);
            Box::pin(async move {
                let _ = call.drain().await;
                match illness {
                    _ if !ill => call.greet().await,
                    Illness::BreaksOff => call.die(),
                    Illness::Answers(status) => call.reply(status, &Fields::new(), "I am ill").await,
                    Illness::IsSilent => call.gone().await,
                }
            })
        });
        Vm { origin: origin.start().await, ill }
    }

    fn heal(&self) {
        self.ill.store(false, Ordering::SeqCst);
    }

    fn fall_ill(&self) {
        self.ill.store(true, Ordering::SeqCst);
    }

    fn address(&self) -> String {
        self.origin.address()
    }
}

async fn with(keys: &str, backends: &[String]) -> Gateway {
    let text =
        format!("[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nbackends = {backends:?}\n{keys}\n");
    gateway().named(&["shop.test"]).toml(&text).start().await
}

async fn answers(client: &Client, vm: &str) {
    let reply = client.send(&get("/")).await.unwrap();
    assert_eq!((reply.status, reply.vm()), (200, vm), "{}", reply.text());
}

async fn said(gw: &Gateway, words: &[&str]) {
    eventually(&format!("{words:?} in the log"), || gw.log().having(words).pop()).await;
}

/// Nobody probes here: requests alone tell.
#[tokio::test]
async fn who_breaks_off_is_set_aside_and_comes_back_by_a_trial() {
    for version in Version::ALL {
        let (a, b) = (Vm::start("a", Illness::BreaksOff).await, origin().named("b").start().await);
        let gw = with("outlier = { eject = \"1s\" }", &[a.address(), b.address()]).await;
        let client = gw.client(version, "shop.test").await;
        // Every other request meets the VM that is ill, and is made again.
        for _ in 0..12 {
            answers(&client, "b").await;
        }
        assert_eq!(a.origin.requests().len(), 5, "{version:?}");
        said(&gw, &["is set aside", &a.address(), "time=1s"]).await;

        a.heal();
        eventually_async("both VMs answer", || async {
            let (one, two) = (client.send(&get("/")).await.unwrap(), client.send(&get("/")).await.unwrap());
            assert_eq!((one.status, two.status), (200, 200), "{version:?}");
            (one.vm() != two.vm()).then_some(())
        })
        .await;
        said(&gw, &["takes part again", &a.address()]).await;
        gw.stop().await;
    }
}

#[tokio::test]
async fn who_fails_its_trial_stays_away_for_twice_as_long() {
    let (a, b) = (Vm::start("a", Illness::BreaksOff).await, origin().named("b").start().await);
    let gw =
        with("outlier = { eject = \"200ms\", consecutive_failures = 1 }", &[a.address(), b.address()]).await;
    let client = gw.client(Version::H2, "shop.test").await;
    for time in ["200ms", "400ms", "800ms"] {
        eventually_async("it is set aside", || async {
            answers(&client, "b").await;
            gw.log().having(&["is set aside", &format!("time={time}")]).pop()
        })
        .await;
    }
    gw.stop().await;
}

/// A VM that is restarted is back sooner than it was to be set aside, and probes see that.
#[tokio::test]
async fn a_probe_that_goes_well_has_a_vm_tried_at_once() {
    let (mut a, b) = (origin().named("a").start().await, origin().named("b").start().await);
    let keys = "balance = \"first\"\nhealth = { tcp = {}, interval = \"500ms\", fall = 100 }";
    let gw = with(keys, &[a.address(), b.address()]).await;
    let client = gw.client(Version::H2, "shop.test").await;
    answers(&client, "a").await;
    a.down().await;
    for _ in 0..6 {
        answers(&client, "b").await;
    }
    said(&gw, &["is set aside", "time=30s"]).await;
    a.up().await;
    eventually_async("a answers", || async {
        (client.send(&get("/")).await.unwrap().vm() == "a").then_some(())
    })
    .await;
    gw.stop().await;
}

/// Clients do not pay for the dials.
#[tokio::test]
async fn who_refuses_is_soon_not_asked_any_more() {
    for version in Version::ALL {
        let (closed, b) = (closed_port(), origin().named("b").start().await);
        let refusing = format!("127.0.0.1:{}", closed.port);
        let gw = with("", &[refusing.clone(), b.address()]).await;
        let client = gw.client(version, "shop.test").await;
        for _ in 0..30 {
            assert_eq!(client.send(&post("/", "x")).await.unwrap().status, 200, "{version:?}");
        }
        said(&gw, &["is set aside", &refusing]).await;
        assert_eq!(gw.log().having(&["backend failed", &refusing]).len(), 5, "{version:?}");
        gw.stop().await;
    }
}

/// Who is refused is served elsewhere before anybody notices.
#[tokio::test]
async fn a_refusal_costs_no_time() {
    for version in Version::ALL {
        let (closed, b) = (closed_port(), origin().named("b").start().await);
        let refusing = format!("127.0.0.1:{}", closed.port);
        // It is asked again and again.
        let gw = with("outlier = \"off\"", &[refusing.clone(), b.address()]).await;
        let client = gw.client(version, "shop.test").await;
        let mut late = 0;
        for _ in 0..100 {
            let begun = Instant::now();
            answers(&client, "b").await;
            late += usize::from(begun.elapsed() > Duration::from_millis(100));
        }
        assert!(!gw.log().having(&["backend failed", &refusing]).is_empty());
        // A machine that is busy with something else is not what this is about.
        assert!(late < 5, "{version:?}: {late} of 100");
        gw.stop().await;
    }
}

/// An answer that is none.
/// All the connections that were kept to one that has just died are of no use, and no request tries them one after the other.
#[tokio::test]
async fn stale_connections_cost_one_try_of_a_vm() {
    const KEPT: usize = 5;
    for version in Version::ALL {
        let all_there = Arc::new(tokio::sync::Barrier::new(KEPT));
        let a = origin()
            .named("a")
            .on("/kept", move |call| {
                let all_there = all_there.clone();
                Box::pin(async move {
                    all_there.wait().await;
                    call.greet().await;
                })
            })
            .on("/", |call| Box::pin(async move { call.die() }));
        let (a, b) = (a.start().await, origin().named("b").start().await);
        let gw = with("balance = \"first\"", &[a.address(), b.address()]).await;
        let kept = (0..KEPT).map(|_| gw.request(version, get("/kept")));
        assert!(futures_util::future::join_all(kept).await.iter().all(|reply| reply.vm() == "a"));
        answers(&gw.client(version, "shop.test").await, "b").await;
        assert_eq!(a.requests().len(), KEPT + 2, "{version:?}");
        gw.stop().await;
    }
}

#[tokio::test]
async fn garbage_is_a_failure_too() {
    for version in Version::ALL {
        let (a, b) = (raw("SSH-2.0-nonsense\r\n\r\n", true).await, origin().named("b").start().await);
        let gw = with("outlier = { consecutive_failures = 2 }", &[a.address(), b.address()]).await;
        let client = gw.client(version, "shop.test").await;
        for _ in 0..8 {
            answers(&client, "b").await;
        }
        assert_eq!(a.received().iter().filter(|request| !request.is_empty()).count(), 2, "{version:?}");
        gw.stop().await;
    }
}

#[tokio::test]
async fn statuses_are_made_again_elsewhere_where_that_is_asked_for() {
    for version in Version::ALL {
        let (a, b) = (Vm::start("a", Illness::Answers(503)).await, origin().named("b").start().await);
        let keys = "balance = \"first\"\nretry = { on = [\"connect\", \"503\"] }\noutlier = { consecutive_failures = 3 }";
        let gw = with(keys, &[a.address(), b.address()]).await;
        let client = gw.client(version, "shop.test").await;
        // What may have had its effect is not repeated: the answer is the VM's own.
        let reply = client.send(&post("/", "x")).await.unwrap();
        assert_eq!((reply.status, reply.vm(), reply.text().as_str()), (503, "a", "I am ill"), "{version:?}");
        answers(&client, "b").await;
        answers(&client, "b").await;
        assert_eq!(a.origin.requests().len(), 3, "{version:?}");
        // That was the third.
        assert_eq!(client.send(&post("/", "x")).await.unwrap().vm(), "b", "{version:?}");
        gw.stop().await;
    }
}

#[tokio::test]
async fn who_asks_for_a_rest_is_left_alone_for_so_long() {
    for version in Version::ALL {
        let a = origin().named("a").on("/", |call| {
            Box::pin(async move { call.reply(503, &Fields::new().with("retry-after", "35"), "later").await })
        });
        let (a, b) = (a.start().await, origin().named("b").start().await);
        let keys = "balance = \"first\"\nretry = { on = [\"connect\", \"503\"] }\noutlier = { consecutive_failures = 2, eject = \"10s\" }";
        let gw = with(keys, &[a.address(), b.address()]).await;
        let client = gw.client(version, "shop.test").await;
        for _ in 0..3 {
            answers(&client, "b").await;
        }
        assert_eq!(a.requests().len(), 2, "{version:?}");
        said(&gw, &["set aside", "backend=", "time=35s"]).await;
        gw.stop().await;
    }
}

/// A VM's own words are better than ours.
#[tokio::test]
async fn where_nobody_does_better_the_first_answer_counts() {
    for version in Version::ALL {
        let closed = closed_port();
        let a = Vm::start("a", Illness::Answers(502)).await;
        for backends in [vec![a.address()], vec![a.address(), format!("127.0.0.1:{}", closed.port)]] {
            let gw = with("balance = \"first\"\nretry = { on = [\"connect\", \"502\"] }", &backends).await;
            let reply = gw.request(version, get("/")).await;
            assert_eq!((reply.status, reply.text().as_str()), (502, "I am ill"), "{version:?}");
            gw.stop().await;
        }
    }
}

#[tokio::test]
async fn silence_is_made_again_elsewhere_where_that_is_asked_for() {
    for version in Version::ALL {
        for (on, status) in [("[\"timeout\"]", 200), ("[\"reset\"]", 504)] {
            let (a, b) = (Vm::start("a", Illness::IsSilent).await, origin().named("b").start().await);
            let keys = format!(
                "balance = \"first\"\nretry = {{ on = {on} }}\n[defaults.sites]\ntimeouts = {{ response = \"300ms\" }}"
            );
            let gw = with(&keys, &[a.address(), b.address()]).await;
            let begun = Instant::now();
            assert_eq!(gw.request(version, get("/")).await.status, status, "{version:?}");
            assert!(begun.elapsed() >= Duration::from_millis(300));
            // A request that is not idempotent may be what keeps it busy.
            assert_eq!(gw.request(version, post("/", "x")).await.status, 504, "{version:?}");
            gw.stop().await;
        }
    }
}

/// A VM that hangs is found out long before a time-out, and who waits there may leave.
#[tokio::test]
async fn who_answers_neither_requests_nor_a_probe_is_set_aside() {
    for version in Version::ALL {
        let (a, b) = (Vm::start("a", Illness::IsSilent).await, origin().named("b").start().await);
        let keys =
            "balance = \"first\"\nretry = { on = [\"timeout\"] }\noutlier = { probe_after = \"300ms\" }";
        let gw = with(keys, &[a.address(), b.address()]).await;
        let begun = Instant::now();
        let client = gw.client(version, "shop.test").await;
        answers(&client, "b").await;
        // The probe takes two seconds, and waiting requests are looked after four times a second.
        let took = begun.elapsed();
        assert!(
            (Duration::from_millis(2300)..Duration::from_secs(8)).contains(&took),
            "{version:?}: {took:?}"
        );
        said(&gw, &["is set aside: it answers neither", &a.address(), "reason=no answer within 2s"]).await;
        a.origin.forget();
        for _ in 0..5 {
            answers(&client, "b").await;
        }
        assert!(a.origin.requests().is_empty(), "{version:?}");
        gw.stop().await;
    }
}

/// Nothing is done twice, so none of them has to wait for the budget.
#[tokio::test]
async fn all_who_wait_for_a_vm_that_hangs_are_served() {
    const REQUESTS: usize = 60;
    for version in Version::ALL {
        let (a, b) = (Vm::start("a", Illness::IsSilent).await, origin().named("b").start().await);
        let keys =
            "balance = \"first\"\nretry = { on = [\"timeout\"] }\noutlier = { probe_after = \"300ms\" }";
        let gw = with(keys, &[a.address(), b.address()]).await;
        let client = Arc::new(gw.client(version, "shop.test").await);
        let ask = |_| {
            let client = client.clone();
            tokio::spawn(async move { client.send(&get("/")).await.unwrap() })
        };
        for task in (0..REQUESTS).map(ask).collect::<Vec<_>>() {
            let reply = task.await.unwrap();
            assert_eq!((reply.status, reply.vm()), (200, "b"), "{version:?}");
        }
        assert_eq!(gw.log().having(&["is set aside"]).len(), 1, "{version:?}: it is one incident");
        gw.stop().await;
    }
}

#[tokio::test]
async fn who_is_slow_but_alive_is_not() {
    for version in Version::ALL {
        let a = origin().named("a").on("/report", |call| {
            Box::pin(async move {
                tokio::time::sleep(Duration::from_millis(1500)).await;
                call.greet().await;
            })
        });
        let a = a.start().await;
        let b = origin().named("b").start().await;
        let keys =
            "balance = \"first\"\nretry = { on = [\"timeout\"] }\noutlier = { probe_after = \"200ms\" }";
        let gw = with(keys, &[a.address(), b.address()]).await;
        let reply = gw.request(version, get("/report")).await;
        assert_eq!((reply.status, reply.vm()), (200, "a"), "{version:?}");
        let probe = a.saw("a probe", |request| request.method == "HEAD").await;
        assert_eq!((probe.target.as_str(), probe.host.clone()), ("/", a.address()), "{version:?}");
        assert!(gw.log().having(&["set aside"]).is_empty(), "{version:?}");
        gw.stop().await;
    }
}

/// RFC 9110, section 9.2.2: PUT may be repeated, if its body is still at hand.
#[tokio::test]
async fn a_short_body_is_sent_again_and_a_long_one_is_not() {
    for version in Version::ALL {
        let (a, b) = (Vm::start("a", Illness::BreaksOff).await, origin().named("b").start().await);
        let gw = with("balance = \"first\"\noutlier = \"off\"", &[a.address(), b.address()]).await;
        for (length, status) in [(0, 200), (1, 200), (16 * 1024, 200), (16 * 1024 + 1, 502)] {
            b.forget();
            let reply = gw.request(version, put("/", "").body(Body::Pattern(length))).await;
            assert_eq!(reply.status, status, "{version:?} {length}");
            if status == 200 {
                assert_eq!(b.only().digest, digest_of(length), "{version:?} {length}");
            }
        }
        gw.stop().await;
    }
}

/// Whoever waits for 100 (Continue) is not asked for a body that no VM wants.
#[tokio::test]
async fn a_body_that_waits_to_be_asked_for_is_not_taken_beforehand() {
    for version in Version::ALL {
        let a = origin()
            .on("/", |call| Box::pin(async move { call.reply(413, &Fields::new(), "too much").await }));
        let (a, b) = (a.start().await, origin().start().await);
        let gw = with("balance = \"first\"", &[a.address(), b.address()]).await;
        let client = gw.client(version, "shop.test").await;
        let request = put("/", "hello").field("expect", "100-continue");
        let mut exchange = client.open(&request).await.unwrap();
        let (mut interim, begun) = (Vec::new(), Instant::now());
        let (status, _) = exchange.down.head(&mut interim).await.unwrap();
        assert_eq!((status, interim.len()), (413, 0), "{version:?}");
        assert!(begun.elapsed() < Duration::from_secs(1), "{version:?}");
        gw.stop().await;
    }
}

/// Over HTTP/2 a connection is nearly always one that was used before; that excuses nobody.
#[tokio::test]
async fn a_stream_that_is_reset_is_made_again_elsewhere() {
    for version in Version::ALL {
        let a = origin().named("a").http2().on("/ill", |call| Box::pin(async move { call.die() }));
        let (a, b) = (a.start().await, origin().named("b").http2().start().await);
        let backends = [&a, &b].map(|vm| format!("h2c://{}", vm.address()));
        let gw = with("balance = \"first\"", &backends).await;
        let client = gw.client(version, "shop.test").await;
        answers(&client, "a").await;
        for _ in 0..3 {
            let reply = client.send(&get("/ill")).await.unwrap();
            assert_eq!((reply.status, reply.vm()), (200, "b"), "{version:?}");
        }
        assert_eq!(a.requests().len(), 4, "{version:?}: once each");
        gw.stop().await;
    }
}

/// Its heads are well, but nobody gets what it promised.
#[tokio::test]
async fn who_cuts_its_responses_short_is_set_aside() {
    for http2 in [false, true] {
        let cutting = origin().named("a").on("/", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(10)).await;
                let _ = call.write("half".into()).await;
                tokio::time::sleep(Duration::from_millis(10)).await;
                call.die();
            })
        });
        let (cutting, well) = match http2 {
            true => (cutting.http2(), origin().named("b").http2()),
            false => (cutting, origin().named("b")),
        };
        let (a, b) = (cutting.start().await, well.start().await);
        let scheme = if http2 { "h2c://" } else { "" };
        let backends = [&a, &b].map(|vm| format!("{scheme}{}", vm.address()));
        let gw = with("outlier = { consecutive_failures = 3 }", &backends).await;
        let client = gw.client(Version::H2, "shop.test").await;
        let mut cut = 0;
        for _ in 0..20 {
            cut += usize::from(client.send(&get("/")).await.is_err());
        }
        // The fourth begins as well as the others, and is the last.
        assert_eq!((cut, a.requests().len()), (4, 4), "HTTP/2: {http2}");
        said(&gw, &["is set aside", &a.address()]).await;
        gw.stop().await;
    }
}

/// A response that the client's own mistake cuts short says nothing of the VM.
#[tokio::test]
async fn what_the_client_breaks_is_not_the_vms_fault() {
    for kind in ["http1", "h2c", "h3"] {
        let early = |name: &str| {
            origin().named(name).on("/", |call| {
                Box::pin(async move {
                    call.start(200, &Fields::new(), None).await;
                    let _ = call.write("x".into()).await;
                    let _ = call.drain().await;
                    call.finish(&Fields::new()).await;
                })
            })
        };
        let made = |name: &str| match kind {
            "h2c" => early(name).http2(),
            "h3" => early(name).http3("vm.lan", false),
            _ => early(name),
        };
        let (a, b) = (made("a").start().await, made("b").start().await);
        let scheme = if kind == "http1" { "http" } else { kind };
        let backends = [&a, &b].map(|vm| format!("{scheme}://{}", vm.address()));
        let tls = if kind == "h3" { "tls = { verify = false }" } else { "" };
        let keys = format!(
            "balance = \"first\"\noutlier = {{ consecutive_failures = 2 }}\n{tls}\n[defaults.sites]\nrequest_body = \"1KiB\""
        );
        let gw = with(&keys, &backends).await;
        for version in Version::ALL {
            let client = gw.client(version, "shop.test").await;
            for _ in 0..3 {
                let mut exchange = client.open(&post("/", "").unannounced()).await.unwrap();
                let (status, _) = exchange.down.head(&mut Vec::new()).await.unwrap();
                assert_eq!(status, 200, "{kind} {version:?}");
                let _ = exchange.up.data(vec![0; 4096].into()).await;
                let _ = exchange.up.finish(&Fields::new()).await;
                while let Ok(Some(_)) = exchange.down.data().await {}
            }
        }
        assert!(gw.log().having(&["set aside"]).is_empty(), "{kind}");
        assert!(b.requests().is_empty(), "{kind}");
        gw.stop().await;
    }
}

#[tokio::test]
async fn where_retries_are_off_the_first_failure_is_the_answer() {
    for version in Version::ALL {
        let (closed, b) = (closed_port(), origin().named("b").start().await);
        for retry in ["\"off\"", "{ attempts = 0 }", "{ on = \"reset\" }"] {
            let backends = [format!("127.0.0.1:{}", closed.port), b.address()];
            let gw = with(&format!("balance = \"first\"\nretry = {retry}"), &backends).await;
            assert_eq!(gw.request(version, get("/")).await.status, 502, "{version:?} {retry}");
            gw.stop().await;
        }
    }
}

/// A pool that is in trouble is not given the same work again and again.
#[tokio::test]
async fn repetitions_are_a_share_of_what_is_under_way() {
    const REQUESTS: usize = 60;
    // A tenth of them is less than what always may be.
    const AGAIN: usize = 10;
    for version in Version::ALL {
        let a = Vm::start("a", Illness::BreaksOff).await;
        let release = Arc::new(Notify::new());
        let held = release.clone();
        let b = origin().named("b").on("/", move |call| {
            let held = held.clone();
            Box::pin(async move {
                held.notified().await;
                call.greet().await;
            })
        });
        let b = b.start().await;
        let keys = "balance = \"first\"\noutlier = \"off\"\nretry = { budget = \"10%\" }";
        let gw = with(keys, &[a.address(), b.address()]).await;
        let client = Arc::new(gw.client(version, "shop.test").await);
        let tasks: Vec<_> = (0..REQUESTS)
            .map(|_| {
                let client = client.clone();
                tokio::spawn(async move { client.send(&get("/")).await.unwrap().status })
            })
            .collect();
        eventually("all others are answered", || {
            (tasks.iter().filter(|task| task.is_finished()).count() == REQUESTS - AGAIN).then_some(())
        })
        .await;
        // Those that are made again may still be on their way.
        eventually("they arrive", || (b.requests().len() >= AGAIN).then_some(())).await;
        assert_eq!(b.requests().len(), AGAIN, "{version:?}");
        for _ in 0..AGAIN {
            release.notify_one();
        }
        let mut statuses = Vec::new();
        for task in tasks {
            statuses.push(task.await.unwrap());
        }
        statuses.sort_unstable();
        assert_eq!(statuses, [vec![200; AGAIN], vec![502; REQUESTS - AGAIN]].concat(), "{version:?}");
        gw.stop().await;
    }
}

#[tokio::test]
async fn where_all_fail_all_are_tried() {
    let (a, b) = (Vm::start("a", Illness::BreaksOff).await, Vm::start("b", Illness::BreaksOff).await);
    let gw = with("outlier = { consecutive_failures = 2 }", &[a.address(), b.address()]).await;
    let client = gw.client(Version::H1, "shop.test").await;
    eventually_async("it is said", || async {
        assert_eq!(client.send(&get("/")).await.unwrap().status, 502);
        gw.log().having(&["every backend fails", "pool=\"vms\""]).pop()
    })
    .await;
    // Whoever is well first serves.
    b.heal();
    eventually_async("b answers", || async {
        (client.send(&get("/")).await.unwrap().vm() == "b").then_some(())
    })
    .await;
    for _ in 0..10 {
        answers(&client, "b").await;
    }
    b.fall_ill();
    a.heal();
    eventually_async("a answers", || async {
        (client.send(&get("/")).await.unwrap().vm() == "a").then_some(())
    })
    .await;
    gw.stop().await;
}
