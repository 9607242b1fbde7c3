//! VMs that take so many requests at a time: who waits, in which order, for how long, and who is turned away.
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
    Client, Fields, Gateway, Origin, Reply, Request, Version, eventually, eventually_async, gateway, get,
    origin,
};
use tokio::{sync::Notify, task::JoinHandle};

/// A VM that answers what begins with `/held` when it is told to, one by one.
async fn held(name: &str) -> (Origin, Arc<Notify>) {
    let release = Arc::new(Notify::new());
    let waits = release.clone();
    let vm = origin().named(name).on("/held", move |call| {
        let waits = waits.clone();
        Box::pin(async move {
            waits.notified().await;
            call.greet().await;
        })
    });
    (vm.start().await, release)
}

fn one_at_a_time(vms: &[&Origin]) -> String {
    let line = |vm: &&Origin| format!("  {{ address = \"{}\", max_requests = 1 }},\n", vm.address());
    format!("backends = [\n{}]\n", vms.iter().map(line).collect::<String>())
}

async fn with(backends: &str, keys: &str) -> Gateway {
    let text = format!(
        "[sites.\"shop.test\"]\npool = \"vms\"\nroutes = [{{ paths = \"/held/urgent\", pool = \"vms\", queue_priority = 10 }}]\n\
         [pools.vms]\n{backends}{keys}\n"
    );
    gateway().server("workers", "2").named(&["shop.test"]).toml(&text).start().await
}

fn ask(client: &Arc<Client>, request: Request) -> JoinHandle<Reply> {
    let client = client.clone();
    tokio::spawn(async move { client.send(&request).await.unwrap() })
}

/// A client of its own for each request, so that both workers have some.
async fn ask_alone(gw: &Gateway, version: Version, target: &str) -> JoinHandle<Reply> {
    ask(&Arc::new(gw.client(version, "shop.test").await), get(target))
}

async fn at_the_vm(vm: &Origin, count: usize) {
    eventually("the VM has its requests", || (vm.requests().len() == count).then_some(())).await;
}

/// Time enough for a request to reach a VM that it must not reach.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

#[tokio::test]
async fn a_vm_gets_no_more_than_it_takes_and_all_are_served() {
    for version in Version::ALL {
        let (vm, release) = held("a").await;
        let backends = format!("backends = {{ address = \"{}\", max_requests = 2 }}\n", vm.address());
        let gw = with(&backends, "").await;
        let mut replies = Vec::new();
        for n in 0..8 {
            replies.push(ask_alone(&gw, version, &format!("/held/{n}")).await);
        }
        for served in 0..=6 {
            at_the_vm(&vm, served + 2).await;
            settle().await;
            assert_eq!(vm.requests().len(), served + 2, "{version:?}");
            release.notify_one();
        }
        release.notify_one();
        for reply in replies {
            assert_eq!(reply.await.unwrap().status, 200, "{version:?}");
        }
        gw.stop().await;
    }
}

#[tokio::test]
async fn who_came_first_is_served_first_and_the_urgent_before() {
    for version in Version::ALL {
        let (vm, release) = held("a").await;
        let gw = with(&one_at_a_time(&[&vm]), "").await;
        let mut replies = Vec::new();
        for target in ["/held/first", "/held/second", "/held/third", "/held/urgent"] {
            replies.push(ask_alone(&gw, version, target).await);
            // They come one after the other.
            settle().await;
        }
        for count in 1..=4 {
            at_the_vm(&vm, count).await;
            release.notify_one();
        }
        for reply in replies {
            assert_eq!(reply.await.unwrap().status, 200, "{version:?}");
        }
        let order: Vec<_> = vm.requests().into_iter().map(|request| request.target).collect();
        assert_eq!(order, ["/held/first", "/held/urgent", "/held/second", "/held/third"], "{version:?}");
        gw.stop().await;
    }
}

/// Who asks for very much waits behind itself.
#[tokio::test]
async fn clients_take_turns() {
    for version in Version::ALL {
        let (vm, release) = held("a").await;
        let text = format!(
            "[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\n{}queue = {{ timeout = \"60s\" }}\n",
            one_at_a_time(&[&vm])
        );
        let gw = gateway().server("trusted_proxies", "\"127.0.0.1\"").named(&["shop.test"]).toml(&text);
        let gw = gw.start().await;
        let mut replies = Vec::new();
        for (from, target) in [
            ("10.0.0.1", "/held/1"),
            ("10.0.0.1", "/held/2"),
            ("10.0.0.1", "/held/3"),
            ("10.0.0.1", "/held/4"),
            ("10.0.0.2", "/held/other"),
            ("2001:db8::1", "/held/third"),
        ] {
            let client = Arc::new(gw.client(version, "shop.test").await);
            replies.push(ask(&client, get(target).field("x-forwarded-for", from)));
            settle().await;
        }
        for count in 1..=6 {
            at_the_vm(&vm, count).await;
            release.notify_one();
        }
        for reply in replies {
            assert_eq!(reply.await.unwrap().status, 200, "{version:?}");
        }
        let order: Vec<_> = vm.requests().into_iter().map(|request| request.target).collect();
        assert_eq!(
            order,
            ["/held/1", "/held/2", "/held/other", "/held/third", "/held/3", "/held/4"],
            "{version:?}"
        );
        gw.stop().await;
    }
}

#[tokio::test]
async fn whoever_finds_the_queue_full_is_told_to_come_back() {
    for version in Version::ALL {
        for (queue, waiting) in [("{ length = 2 }", 2), ("\"off\"", 0)] {
            let (vm, release) = held("a").await;
            let gw = with(&one_at_a_time(&[&vm]), &format!("queue = {queue}")).await;
            let mut replies = vec![ask_alone(&gw, version, "/held").await];
            at_the_vm(&vm, 1).await;
            for _ in 0..waiting {
                replies.push(ask_alone(&gw, version, "/held").await);
            }
            settle().await;
            let begun = Instant::now();
            let reply = gw.request(version, get("/held")).await;
            assert_eq!((reply.status, reply.field("retry-after")), (503, "5"), "{version:?} {queue}");
            assert!(begun.elapsed() < Duration::from_secs(2), "{version:?}: at once");
            for _ in &replies {
                release.notify_one();
                settle().await;
            }
            for reply in replies {
                assert_eq!(reply.await.unwrap().status, 200, "{version:?} {queue}");
            }
            gw.stop().await;
        }
    }
}

#[tokio::test]
async fn nobody_waits_for_longer_than_the_queue_allows() {
    for version in Version::ALL {
        let (vm, release) = held("a").await;
        let gw = with(&one_at_a_time(&[&vm]), "queue = { timeout = \"400ms\" }").await;
        let first = ask_alone(&gw, version, "/held").await;
        at_the_vm(&vm, 1).await;
        let begun = Instant::now();
        let reply = gw.request(version, get("/held")).await;
        assert_eq!((reply.status, reply.field("retry-after")), (503, "5"), "{version:?}");
        assert!(begun.elapsed() >= Duration::from_millis(400), "{version:?}: {:?}", begun.elapsed());
        release.notify_one();
        assert_eq!(first.await.unwrap().status, 200, "{version:?}");
        assert_eq!(vm.requests().len(), 1, "{version:?}");
        assert_eq!(gw.log().having(&["turned away", "waited too long"]).len(), 1, "{version:?}");
        gw.stop().await;
    }
}

/// It would be of no use: the VMs do no more for it.
#[tokio::test]
async fn a_queue_that_does_not_get_shorter_is_made_shorter() {
    const TIMEOUT: Duration = Duration::from_secs(3);
    let vm = origin().named("a").on("/slow", |call| {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_millis(200)).await;
            call.greet().await;
        })
    });
    let vm = vm.start().await;
    let gw = with(&one_at_a_time(&[&vm]), "queue = { timeout = \"3s\" }").await;
    let client = Arc::new(gw.client(Version::H2, "shop.test").await);
    // Four times what it can do.
    let (begun, mut early, mut late) = (Instant::now(), Vec::new(), Vec::new());
    while begun.elapsed() < 2 * TIMEOUT {
        let (client, asked) = (client.clone(), Instant::now());
        let reply = tokio::spawn(async move {
            let reply = client.send(&get("/slow")).await.unwrap();
            (reply.status, asked.elapsed())
        });
        let standing = begun.elapsed() > TIMEOUT + Duration::from_millis(500);
        if standing { &mut late } else { &mut early }.push(reply);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (mut longest, mut served) = (Duration::ZERO, 0);
    for reply in early {
        longest = longest.max(reply.await.unwrap().1);
    }
    assert!(longest > TIMEOUT * 2 / 3, "a burst has its time: {longest:?}");
    for reply in late {
        let (status, took) = reply.await.unwrap();
        assert!([200, 503].contains(&status), "{status}");
        assert!(took < TIMEOUT * 2 / 3, "{status} after {took:?}");
        served += usize::from(status == 200);
    }
    assert!(served >= 8, "{served}");
    assert!(!gw.log().having(&["turned away", "waited too long"]).is_empty());
    gw.stop().await;
}

#[tokio::test]
async fn who_leaves_makes_room_in_the_queue() {
    for version in Version::ALL {
        let (vm, release) = held("a").await;
        let gw = with(&one_at_a_time(&[&vm]), "queue = { length = 1 }").await;
        let first = ask_alone(&gw, version, "/held/first").await;
        at_the_vm(&vm, 1).await;
        let leaving = ask_alone(&gw, version, "/held/leaves").await;
        settle().await;
        assert_eq!(gw.request(version, get("/held")).await.status, 503, "{version:?}");
        leaving.abort();
        settle().await;
        let next = ask_alone(&gw, version, "/held/next").await;
        settle().await;
        release.notify_one();
        assert_eq!(first.await.unwrap().status, 200, "{version:?}");
        at_the_vm(&vm, 2).await;
        release.notify_one();
        assert_eq!(next.await.unwrap().status, 200, "{version:?}");
        assert!(vm.requests().iter().all(|request| request.target != "/held/leaves"), "{version:?}");
        gw.stop().await;
    }
}

#[tokio::test]
async fn nobody_waits_while_another_vm_has_room() {
    for version in Version::ALL {
        let ((a, release), b) = (held("a").await, origin().named("b").start().await);
        let gw = with(&one_at_a_time(&[&a, &b]), "balance = \"first\"\nsticky = {}").await;
        let client = Arc::new(gw.client(version, "shop.test").await);
        let first = ask_alone(&gw, version, "/held").await;
        at_the_vm(&a, 1).await;
        let reply = client.send(&get("/")).await.unwrap();
        assert_eq!((reply.status, reply.vm()), (200, "b"), "{version:?}");
        release.notify_one();
        let cookie = first.await.unwrap().field("set-cookie").split(';').next().unwrap().to_owned();
        // A client that is stuck to a VM which is busy goes elsewhere too.
        let second = ask_alone(&gw, version, "/held").await;
        at_the_vm(&a, 2).await;
        let reply = client.send(&get("/").field("cookie", &cookie)).await.unwrap();
        assert_eq!((reply.status, reply.vm()), (200, "b"), "{version:?}");
        release.notify_one();
        assert_eq!(second.await.unwrap().status, 200, "{version:?}");
        gw.stop().await;
    }
}

/// Their VM is set aside, and the other one busy: they wait like anybody else, and their worker goes on.
#[tokio::test]
async fn who_is_stuck_to_a_vm_that_is_set_aside_waits_too() {
    for version in Version::ALL {
        let ill = Arc::new(AtomicBool::new(false));
        let flag = ill.clone();
        let a = origin().named("a").on("/", move |call| {
            let ill = flag.load(Ordering::SeqCst);
            Box::pin(async move {
                match ill {
                    true => call.die(),
                    false => call.greet().await,
                }
            })
        });
        let (a, (b, release)) = (a.start().await, held("b").await);
        let routes = "routes = [{ paths = \"=/here\", respond = { body = \"here\" } }]";
        let text = format!(
            "[sites.\"shop.test\"]\npool = \"vms\"\n{routes}\n[pools.vms]\nbalance = \"first\"\nsticky = {{}}\n\
             backends = [\"{}\", {{ address = \"{}\", max_requests = 1 }}]\n",
            a.address(),
            b.address()
        );
        let gw = gateway().named(&["shop.test"]).toml(&text).start().await;
        let client = Arc::new(gw.client(version, "shop.test").await);
        let first = client.send(&get("/")).await.unwrap();
        assert_eq!(first.vm(), "a", "{version:?}");
        let cookie = first.field("set-cookie").split(';').next().unwrap().to_owned();
        ill.store(true, Ordering::SeqCst);
        eventually_async("it is set aside", || async {
            assert_eq!(client.send(&get("/")).await.unwrap().status, 200, "{version:?}");
            gw.log().having(&["is set aside"]).pop()
        })
        .await;
        b.forget();
        let busy = ask_alone(&gw, version, "/held").await;
        at_the_vm(&b, 1).await;
        let stuck = Arc::new(gw.client(version, "shop.test").await);
        let stuck = ask(&stuck, get("/").field("cookie", &cookie));
        settle().await;
        assert_eq!(client.send(&get("/here")).await.unwrap().text(), "here", "{version:?}");
        release.notify_one();
        assert_eq!((busy.await.unwrap().status, stuck.await.unwrap().vm()), (200, "b"), "{version:?}");
        gw.stop().await;
    }
}

/// A response that is still under way is work.
#[tokio::test]
async fn a_body_that_is_not_over_takes_room() {
    for version in Version::ALL {
        let release = Arc::new(Notify::new());
        let waits = release.clone();
        let vm = origin().on("/slow", move |call| {
            let waits = waits.clone();
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(2)).await;
                call.write("x".into()).await.unwrap();
                waits.notified().await;
                call.write("y".into()).await.unwrap();
                call.finish(&Fields::new()).await;
            })
        });
        let vm = vm.start().await;
        let gw = with(&one_at_a_time(&[&vm]), "").await;
        let slow = ask_alone(&gw, version, "/slow").await;
        at_the_vm(&vm, 1).await;
        let next = ask_alone(&gw, version, "/").await;
        settle().await;
        assert_eq!(vm.requests().len(), 1, "{version:?}");
        release.notify_one();
        assert_eq!(slow.await.unwrap().text(), "xy", "{version:?}");
        assert_eq!(next.await.unwrap().status, 200, "{version:?}");
        gw.stop().await;
    }
}
