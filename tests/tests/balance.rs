//! Which VM of a pool: the balancers' distributions, stickiness, tiers, and what happens when one fails.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::Arc,
    time::Duration,
};

use foregate_tests::{
    Client, Fields, Gateway, Origin, OriginBuilder, Version, closed_port, eventually, eventually_async,
    gateway, get, origin, post,
};
use tokio::sync::Notify;

/// VMs with their weights, behind one pool with these keys.
async fn pool(keys: &str, weights: &[u32]) -> (Vec<Origin>, Gateway) {
    let mut vms = Vec::new();
    let mut backends = String::new();
    for (number, weight) in weights.iter().enumerate() {
        let name = char::from(b'a' + number as u8).to_string();
        let vm = origin().named(&name).start().await;
        writeln!(backends, "  {{ address = {:?}, weight = {weight} }},", vm.address()).unwrap();
        vms.push(vm);
    }
    (vms, with_backends(keys, &backends).await)
}

async fn with_backends(keys: &str, backends: &str) -> Gateway {
    let text =
        format!("[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\n{keys}\nbackends = [\n{backends}]\n");
    gateway().named(&["shop.test"]).toml(&text).start().await
}

fn line(address: &str, rest: &str) -> String {
    format!("  {{ address = {address:?}{rest} }},\n")
}

/// How many of `count` requests went where.
async fn spread(client: &Client, count: usize) -> BTreeMap<String, usize> {
    let mut spread = BTreeMap::new();
    for _ in 0..count {
        let reply = client.send(&get("/")).await.unwrap();
        assert_eq!(reply.status, 200);
        *spread.entry(reply.vm().to_owned()).or_insert(0) += 1;
    }
    spread
}

fn of(spread: &BTreeMap<String, usize>, vm: &str) -> usize {
    spread.get(vm).copied().unwrap_or(0)
}

/// Within four standard deviations of its share.
fn fair(count: usize, total: usize, share: f64) -> bool {
    let (mean, deviation) = (total as f64 * share, (total as f64 * share * (1.0 - share)).sqrt());
    (count as f64 - mean).abs() <= 4.0 * deviation
}

#[tokio::test]
async fn round_robin_honours_weights_exactly() {
    let (_vms, gw) = pool("balance = \"round_robin\"", &[5, 3, 1]).await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        let spread = spread(&client, 90).await;
        // One worker: every nine requests are 5, 3 and 1.
        assert_eq!((of(&spread, "a"), of(&spread, "b"), of(&spread, "c")), (50, 30, 10), "{version:?}");
    }
    gw.stop().await;
}

/// Weights are no blocks: of three equal VMs none answers twice in a row.
#[tokio::test]
async fn round_robin_takes_turns() {
    let (vms, gw) = pool("", &[1, 1, 1]).await;
    let client = gw.client(Version::H2, "shop.test").await;
    let mut order = Vec::new();
    for _ in 0..30 {
        order.push(client.send(&get("/")).await.unwrap().vm().to_owned());
    }
    assert!(order.windows(2).all(|w| w[0] != w[1]), "{order:?}");
    assert_eq!(vms.iter().map(|vm| vm.requests().len()).collect::<Vec<_>>(), [10, 10, 10]);
    gw.stop().await;
}

#[tokio::test]
async fn random_is_in_proportion() {
    let (_vms, gw) = pool("balance = \"random\"", &[3, 1]).await;
    let client = gw.client(Version::H2, "shop.test").await;
    let spread = spread(&client, 600).await;
    assert!(fair(of(&spread, "a"), 600, 0.75), "{spread:?}");
    gw.stop().await;
}

#[tokio::test]
async fn first_takes_the_first() {
    let (mut vms, gw) = pool("balance = \"first\"", &[1, 1, 1]).await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        assert_eq!(of(&spread(&client, 20).await, "a"), 20, "{version:?}");
    }
    // And the next one while the first is away.
    vms[0].down().await;
    let client = gw.client(Version::H2, "shop.test").await;
    assert_eq!(of(&spread(&client, 20).await, "b"), 20);
    gw.stop().await;
}

/// A VM that holds its requests until told otherwise.
fn held(name: &str, release: &Arc<Notify>) -> OriginBuilder {
    let release = release.clone();
    origin().named(name).on("/held", move |call| {
        let release = release.clone();
        Box::pin(async move {
            release.notified().await;
            call.greet().await;
        })
    })
}

/// Requests under way count against a VM, in proportion to its weight.
#[tokio::test]
async fn least_requests_avoids_the_busy_one() {
    let release = Arc::new(Notify::new());
    let (a, b) = (held("a", &release).start().await, held("b", &release).start().await);
    let backends = line(&a.address(), ", weight = 3") + &line(&b.address(), "");
    let gw = with_backends("balance = \"least_requests\"", &backends).await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        let mut held = Vec::new();
        for number in 1..=16 {
            held.push(client.open(&get("/held")).await.unwrap());
            eventually("the request is held", || {
                (a.requests().len() + b.requests().len() == number).then_some(())
            })
            .await;
        }
        // Never more than one off the exact 3 to 1.
        let counts = (a.requests().len(), b.requests().len());
        assert!((11..=13).contains(&counts.0), "{version:?}: {counts:?}");
        for _ in 0..held.len() {
            // Both VMs wait on the same bell; each ring frees one.
            release.notify_one();
            tokio::task::yield_now().await;
        }
        for mut exchange in held {
            assert_eq!(exchange.down.whole().await.unwrap().status, 200, "{version:?}");
        }
        a.forget();
        b.forget();
    }
    gw.stop().await;
}

#[tokio::test]
async fn least_requests_uses_all_idle_vms() {
    let (_vms, gw) = pool("balance = \"least_requests\"", &[1, 1, 1]).await;
    let client = gw.client(Version::H2, "shop.test").await;
    let spread = spread(&client, 300).await;
    assert!(["a", "b", "c"].iter().all(|vm| of(&spread, vm) >= 30), "{spread:?}");
    gw.stop().await;
}

/// The slow one gets less, and not nothing: it may recover.
#[tokio::test]
async fn ewma_prefers_the_fast_one() {
    let slow = origin().named("slow").on("/", |call| {
        Box::pin(async move {
            // How long it takes is what the balancer measures.
            tokio::time::sleep(Duration::from_millis(40)).await;
            call.greet().await;
        })
    });
    let (slow, fast) = (slow.start().await, origin().named("fast").start().await);
    let backends = line(&slow.address(), "") + &line(&fast.address(), "");
    let gw = with_backends("balance = \"ewma\"", &backends).await;
    for version in [Version::H1, Version::H2, Version::H3] {
        let client = gw.client(version, "shop.test").await;
        let spread = spread(&client, 100).await;
        assert!(of(&spread, "fast") >= 70, "{version:?}: {spread:?}");
    }
    gw.stop().await;
}

async fn homes(client: &Client, count: usize) -> HashMap<usize, String> {
    let mut homes = HashMap::new();
    for key in 0..count {
        let reply = client.send(&get("/").field("x-key", &format!("key-{key}"))).await.unwrap();
        homes.insert(key, reply.vm().to_owned());
    }
    homes
}

#[tokio::test]
async fn hash_is_stable_fair_and_moves_little() {
    let (mut vms, gw) = pool("balance = \"hash\"\nhash_on = \"header:x-key\"", &[1, 1, 2]).await;
    let client = gw.client(Version::H2, "shop.test").await;
    let before = homes(&client, 400).await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        assert_eq!(
            homes(&client, 50).await,
            before.iter().filter(|(k, _)| **k < 50).map(|(k, v)| (*k, v.clone())).collect()
        );
    }
    for (vm, share) in [("a", 0.25), ("b", 0.25), ("c", 0.5)] {
        let count = before.values().filter(|home| *home == vm).count();
        // Rings and tables are not as even as dice.
        assert!((count as f64 / 400.0 - share).abs() < 0.12, "{vm}: {count} of 400");
    }
    vms[0].down().await;
    let after = homes(&client, 400).await;
    for (key, home) in &before {
        assert!(home == "a" || after[key] == *home, "key {key} moved from {home} to {}", after[key]);
        assert_ne!(after[key], "a");
    }
    gw.stop().await;
}

#[tokio::test]
async fn hash_takes_its_key_from_anywhere() {
    for (on, request) in [
        ("client_ip", get("/")),
        ("header:x-user", get("/").field("x-user", "u")),
        ("cookie:session", get("/").field("cookie", "a=b; session=s1")),
        ("query:id", get("/?a=b&id=7")),
        ("path", get("/some/where")),
    ] {
        let (_vms, gw) = pool(&format!("balance = \"hash\"\nhash_on = {on:?}"), &[1, 1, 1, 1]).await;
        let mut met = Vec::new();
        for version in Version::ALL {
            let client = gw.client(version, "shop.test").await;
            for _ in 0..4 {
                met.push(client.send(&request).await.unwrap().vm().to_owned());
            }
        }
        assert!(met.iter().all(|vm| *vm == met[0]), "{on}: {met:?}");
        gw.stop().await;
    }
}

#[tokio::test]
async fn weight_zero_gets_no_new_work() {
    for balance in ["round_robin", "least_requests", "random", "ewma", "hash", "first"] {
        let (vms, gw) = pool(&format!("balance = {balance:?}"), &[0, 1, 1]).await;
        let client = gw.client(Version::H2, "shop.test").await;
        spread(&client, 40).await;
        assert!(vms[0].requests().is_empty(), "{balance}");
        gw.stop().await;
    }
}

/// Waits until this VM answers, and then it alone must.
async fn arrives_at(client: &Client, vm: &str) {
    eventually_async(vm, || async { (client.send(&get("/")).await.unwrap().vm() == vm).then_some(()) }).await;
    assert_eq!(of(&spread(client, 20).await, vm), 20, "{vm} alone");
}

/// A VM of a later tier serves only when none of an earlier one can.
#[tokio::test]
async fn tiers_are_taken_one_by_one() {
    let mut vms = Vec::new();
    let mut backends = String::new();
    for (name, tier) in [("c", 2), ("b", 1), ("a", 0)] {
        let vm = origin().named(name).start().await;
        backends += &line(&vm.address(), &format!(", tier = {tier}"));
        vms.push(vm);
    }
    // Probed often, because a tier is left only when its VMs are known to be down.
    let keys = "health = { tcp = {}, interval = \"100ms\", timeout = \"500ms\", rise = 1, fall = 1 }";
    let gw = with_backends(keys, &backends).await;
    let client = gw.client(Version::H2, "shop.test").await;
    assert_eq!(of(&spread(&client, 20).await, "a"), 20);
    vms[2].down().await;
    arrives_at(&client, "b").await;
    vms[1].down().await;
    arrives_at(&client, "c").await;
    vms[2].up().await;
    arrives_at(&client, "a").await;
    gw.stop().await;
}

/// The cookie of a pool keeps a client at its VM, survives the VM's going, and is nobody else's business.
#[tokio::test]
async fn a_sticky_cookie_sticks() {
    let (mut vms, gw) = pool("sticky = { cookie = \"fg_vm\", max_age = \"1h\" }", &[1, 1, 1]).await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        let mut met = HashMap::new();
        for _ in 0..9 {
            let first = client.send(&get("/")).await.unwrap();
            let [cookie] = first.fields.all("set-cookie")[..] else {
                panic!("{version:?}: {:?}", first.fields)
            };
            assert!(cookie.starts_with("fg_vm=") && cookie.contains("Max-Age=3600"), "{version:?}: {cookie}");
            assert!(cookie.contains("HttpOnly") && cookie.contains("Path=/"), "{version:?}: {cookie}");
            assert_eq!(cookie.contains("Secure"), version.tls(), "{version:?}: {cookie}");
            // An address or a name in it would tell the world about the inside.
            assert!(!cookie.contains("127.0.0.1"), "{version:?}: {cookie}");
            let pair = cookie.split(';').next().unwrap().to_owned();
            for _ in 0..4 {
                let again = client.send(&get("/").field("cookie", &pair)).await.unwrap();
                assert_eq!(again.vm(), first.vm(), "{version:?}");
            }
            met.insert(first.vm().to_owned(), pair);
        }
        assert_eq!(met.len(), 3, "{version:?}: {met:?}");
        if version == Version::H3 {
            vms[0].down().await;
            let moved = client.send(&get("/").field("cookie", &met["a"])).await.unwrap();
            assert_eq!(moved.status, 200);
            assert!(moved.vm() != "a" && moved.fields.has("set-cookie"), "{moved:?}");
        }
        // One we never gave.
        let strange = client.send(&get("/").field("cookie", "fg_vm=nonsense")).await.unwrap();
        assert_eq!(strange.status, 200, "{version:?}");
    }
    gw.stop().await;
}

/// Nothing of the request was sent: any method may go to another VM, with its body.
#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere() {
    let closed = closed_port();
    let vm = origin().named("a").start().await;
    let backends = line(&format!("127.0.0.1:{}", closed.port), "") + &line(&vm.address(), "");
    let gw = with_backends("", &backends).await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        for number in 0..10 {
            let body = format!("body {number}");
            let reply = client.send(&post("/", body.clone())).await.unwrap();
            assert_eq!((reply.status, reply.vm()), (200, "a"), "{version:?}");
            assert_eq!(vm.only().body, body, "{version:?}");
            vm.forget();
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn when_every_vm_refuses_the_answer_is_502() {
    let (one, two) = (closed_port(), closed_port());
    let backends =
        line(&format!("127.0.0.1:{}", one.port), "") + &line(&format!("127.0.0.1:{}", two.port), "");
    let gw = with_backends("", &backends).await;
    for version in Version::ALL {
        let reply = gw.request(version, get("/").field("accept", "application/json")).await;
        assert_eq!(reply.status, 502, "{version:?}");
        assert!(reply.field("content-type").starts_with("application/json"), "{version:?}");
        // The inside is for the log, not for the world.
        assert!(!reply.text().contains("127.0.0.1"), "{version:?}: {}", reply.text());
    }
    gw.stop().await;
}

/// The log tells each attempt that failed under the VM's name, and whether another one followed.
#[tokio::test]
async fn every_failed_attempt_is_told_and_the_last_one_as_such() {
    let dying = origin().on("/", |call| Box::pin(async move { call.die() })).start().await;
    let (alive, closed) = (origin().start().await, closed_port());
    let refusing = format!("127.0.0.1:{}", closed.port);
    let named = |name: &str, address: &str| line(address, &format!(", name = {name:?}"));
    let (refusing, dying, alive) =
        (named("refusing", &refusing), named("dying", &dying.address()), named("alive", &alive.address()));
    for (backends, status, told) in [
        (refusing.clone(), 502, &[("refusing", false)][..]),
        (dying.clone(), 502, &[("dying", false)]),
        (refusing.clone() + &dying, 502, &[("refusing", true), ("dying", false)]),
        (dying.clone() + &refusing, 502, &[("dying", true), ("refusing", false)]),
        (refusing + &dying + &alive, 200, &[("refusing", true), ("dying", true)]),
        (alive, 200, &[]),
    ] {
        let gw = with_backends("balance = \"first\"", &backends).await;
        assert_eq!(gw.request(Version::H1, get("/")).await.status, status, "{backends}");
        let log = gw.log().clone();
        gw.stop().await;
        let lines = eventually("all of it is written", || {
            log.having(&["drained"]).pop().map(|_| log.having(&["backend failed"]))
        })
        .await;
        assert_eq!(lines.len(), told.len(), "{backends}: {lines:#?}");
        for (line, (name, again)) in lines.iter().zip(told) {
            let words = [format!("backend=\"{name}\""), format!("again={again}")];
            assert!(words.iter().all(|word| line.contains(word)), "{backends}: {words:?} in {line}");
        }
    }
}

/// A kept connection that the VM has closed meanwhile is no error for a request that may be repeated.
#[tokio::test]
async fn a_stale_connection_is_not_the_clients_problem() {
    let mut vm = origin().named("a").start().await;
    let gw = with_backends("", &line(&vm.address(), "")).await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
        vm.down().await;
        vm.up().await;
        let reply = client.send(&get("/")).await.unwrap();
        assert_eq!(reply.status, 200, "{version:?}: {}", reply.text());
    }
    gw.stop().await;
}

/// A request that may have had its effect is not repeated on its own.
#[tokio::test]
async fn a_post_that_was_sent_is_not_repeated() {
    let dying = |name: &str| {
        origin().named(name).on("/", |call| {
            Box::pin(async move {
                let _ = call.drain().await;
                call.die();
            })
        })
    };
    let (a, b) = (dying("a").start().await, dying("b").start().await);
    let backends = line(&a.address(), "") + &line(&b.address(), "");
    let gw = with_backends("outlier = \"off\"", &backends).await;
    for version in Version::ALL {
        assert_eq!(gw.request(version, post("/", "x")).await.status, 502, "{version:?}");
        assert_eq!(a.requests().len() + b.requests().len(), 1, "{version:?}");
        a.forget();
        b.forget();
        // A GET is, but on each of the VMs only once.
        assert_eq!(gw.request(version, get("/")).await.status, 502, "{version:?}");
        assert_eq!((a.requests().len(), b.requests().len()), (1, 1), "{version:?}");
        a.forget();
        b.forget();
    }
    gw.stop().await;
}

/// Two gateways' worth of clients on two workers still come out even.
#[tokio::test]
async fn connections_to_vms_are_used_again() {
    let vm = origin().named("a").start().await;
    let gw = gateway().server("workers", "2").site("shop.test", &vm).start().await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        spread(&client, 50).await;
    }
    // At most one for each worker and client connection; never one for each request.
    assert!(vm.accepted() <= 2 * Version::ALL.len(), "{} connections", vm.accepted());
    assert_eq!(vm.requests().len(), 50 * Version::ALL.len());
    gw.stop().await;
}

#[tokio::test]
async fn answers_of_the_vm_are_not_the_gateways_failures() {
    let vm = origin()
        .on("/", |call| {
            Box::pin(async move { call.reply(503, &Fields::new().with("retry-after", "7"), "mine").await })
        })
        .start()
        .await;
    let gw = with_backends("", &line(&vm.address(), "")).await;
    for version in Version::ALL {
        let reply = gw.request(version, get("/")).await;
        assert_eq!(
            (reply.status, reply.field("retry-after"), reply.text().as_str()),
            (503, "7", "mine"),
            "{version:?}"
        );
        assert_eq!(vm.requests().len(), 1, "{version:?}");
        vm.forget();
    }
    gw.stop().await;
}
