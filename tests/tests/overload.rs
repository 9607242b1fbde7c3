//! More than the gateway itself has room for: who has taken most gets no more, and nobody new comes in where memory is
//! short. What runs goes on.
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
    Client, Error, Request, Version, eventually, eventually_async, gateway, get, origin, within,
};
use tokio::sync::Notify;

fn flooded() -> Request {
    get("/").host("flooded.test")
}

/// One site's VM hangs, and its clients come and come.
#[tokio::test]
async fn a_flooded_site_leaves_room_for_the_others() {
    let release = Arc::new(Notify::new());
    let held = release.clone();
    let hangs = origin().named("b").on("/", move |call| {
        let held = held.clone();
        Box::pin(async move {
            held.notified().await;
            call.greet().await;
        })
    });
    let (hangs, well) = (hangs.start().await, origin().named("a").start().await);
    let gw = gateway()
        .site("shop.test", &well)
        .site("flooded.test", &hangs)
        .server("workers", "2")
        .toml("[server.limits]\nconnections = 100\n")
        .start()
        .await;
    for version in Version::ALL {
        // They come until they are turned away, each on a connection of its own, where there is room for one.
        let mut flood = Vec::new();
        let turned_away = async {
            loop {
                let Ok(client) = Client::connect(&gw.dial("flooded.test"), version).await else { continue };
                let mut sent = tokio::spawn(async move { client.send(&flooded()).await });
                let patience = Duration::from_millis(if flood.len() < 70 { 1 } else { 300 });
                match tokio::time::timeout(patience, &mut sent).await {
                    Ok(Ok(Ok(reply))) if reply.status == 503 => break reply,
                    Ok(_) => {}
                    Err(_) => flood.push(sent),
                }
            }
        };
        let reply = within("the flood is turned away", turned_away).await;
        assert!(reply.fields.has("retry-after"), "{version:?}");
        assert!((50..100).contains(&flood.len()), "{version:?}: {}", flood.len());
        let mut visitors = 0;
        for other in Version::ALL {
            for _ in 0..3 {
                // The flood may be a little faster than the gateway: then a connection is refused, never a request.
                let client = eventually_async("a connection", || async {
                    Client::connect(&gw.dial("shop.test"), other).await.ok()
                })
                .await;
                match client.send(&get("/")).await {
                    Ok(reply) => {
                        assert_eq!((reply.status, reply.vm()), (200, "a"), "{version:?} {other:?}");
                        visitors += 1;
                    }
                    Err(error) => assert!(!matches!(error, Error::Timeout), "{version:?} {other:?}: {error}"),
                }
            }
        }
        assert!(visitors >= 12, "{version:?}: {visitors}");
        eventually("it is said", || gw.log().having(&["little room left for others", "flooded.test"]).pop())
            .await;
        // What runs goes on.
        let mut served = 0;
        for one in flood {
            release.notify_waiters();
            release.notify_one();
            if let Ok(reply) = one.await.unwrap() {
                served += usize::from(reply.status == 200);
            }
        }
        assert!(served >= 40, "{version:?}: {served}");
        eventually_async("it is over", || async {
            release.notify_one();
            let client = Client::connect(&gw.dial("flooded.test"), version).await.ok()?;
            (client.send(&flooded()).await.ok()?.status == 200).then_some(())
        })
        .await;
        release.notify_waiters();
    }
    gw.stop().await;
}

/// The system says that there is hardly any memory, in a mount namespace where we write what it says.
#[tokio::test]
async fn where_memory_is_short_nobody_new_comes_in() {
    let folder = tempfile::tempdir().unwrap();
    let meminfo = folder.path().join("meminfo");
    let says = |kib: u32| {
        std::fs::write(&meminfo, format!("MemTotal: 8388608 kB\nMemAvailable: {kib} kB\n")).unwrap()
    };
    says(4 << 20);
    let mount = format!("mount --bind {} /proc/meminfo && exec \"$@\"", meminfo.display());
    let release = Arc::new(Notify::new());
    let held = release.clone();
    let vm = origin().named("a").on("/held", move |call| {
        let held = held.clone();
        Box::pin(async move {
            held.notified().await;
            call.greet().await;
        })
    });
    let vm = vm.start().await;
    let gw = gateway()
        .site("shop.test", &vm)
        .within(&["unshare", "--map-root-user", "--mount", "sh", "-c", &mount, "sh"])
        .start()
        .await;
    for version in Version::ALL {
        let (client, runs) =
            (gw.client(version, "shop.test").await, Arc::new(gw.client(version, "shop.test").await));
        assert_eq!(client.send(&get("/")).await.unwrap().status, 200, "{version:?}");
        let under_way = {
            let runs = runs.clone();
            tokio::spawn(async move { runs.send(&get("/held")).await.unwrap().status })
        };
        vm.saw("the request", |request| request.target == "/held").await;
        says(100);
        eventually("it is said", || gw.log().having(&["ERROR", "memory is short", "free=\"0 MiB\""]).pop())
            .await;
        // On a connection that is there a request is answered, and who would come anew is refused.
        eventually_async("requests are turned away", || async {
            let reply = client.send(&get("/")).await.unwrap();
            (reply.status == 503 && reply.field("retry-after") == "5").then_some(())
        })
        .await;
        for other in Version::ALL {
            let refused = match Client::connect(&gw.dial("shop.test"), other).await {
                Ok(client) => client.send(&get("/")).await.map(|reply| reply.status),
                Err(error) => Err(error),
            };
            assert!(
                refused.as_ref().is_err_and(|error| !matches!(error, Error::Timeout)),
                "{other:?}: {refused:?}"
            );
        }
        release.notify_one();
        assert_eq!(under_way.await.unwrap(), 200, "{version:?}: what runs goes on");
        says(4 << 20);
        eventually("it is said", || gw.log().having(&["there is memory again"]).pop()).await;
        eventually_async("everybody is let in", || async {
            let reply = client.send(&get("/")).await.ok()?;
            (reply.status == 200).then_some(())
        })
        .await;
        assert_eq!(gw.request(version, get("/")).await.status, 200, "{version:?}");
        vm.forget();
    }
    gw.stop().await;
}

/// Whoever is connected is served while others come and come.
#[tokio::test]
async fn newcomers_do_not_starve_who_is_there() {
    let vm = origin().named("a").start().await;
    let gw = Arc::new(gateway().server("workers", "1").site("shop.test", &vm).start().await);
    let over = Arc::new(AtomicBool::new(false));
    // In a thread of its own: who measures should not wait for it.
    let flood = std::thread::spawn({
        let (gw, over) = (gw.clone(), over.clone());
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let come = |number: usize| {
                    let (gw, over) = (&gw, &over);
                    async move {
                        let mut came = 0;
                        while !over.load(Ordering::Relaxed) {
                            // By TLS and by QUIC, as fast as they are let in.
                            let version = if number.is_multiple_of(2) { Version::H2 } else { Version::H3 };
                            came +=
                                usize::from(Client::connect(&gw.dial("shop.test"), version).await.is_ok());
                        }
                        came
                    }
                };
                futures_util::future::join_all((0..40).map(come)).await.into_iter().sum::<usize>()
            })
        }
    });
    for version in Version::ALL {
        let client = within("a connection", gw.client(version, "shop.test")).await;
        let mut took = Vec::new();
        for _ in 0..20 {
            let begun = Instant::now();
            assert_eq!(client.send(&get("/")).await.unwrap().status, 200, "{version:?}");
            took.push(begun.elapsed());
        }
        took.sort();
        // The flood and the tests beside it have the processors as well.
        assert!(took[10] < Duration::from_secs(1), "{version:?}: {took:?}");
    }
    over.store(true, Ordering::Relaxed);
    let came = tokio::task::spawn_blocking(|| flood.join().unwrap()).await.unwrap();
    assert!(came > 50, "{came}");
}
