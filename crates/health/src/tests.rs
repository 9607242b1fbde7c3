//! The monitor against VMs on the loopback.

mod agents;

use std::cell::Cell;
use std::rc::Rc;

use foregate_routing::{Probe, Snapshot};
use foregate_upstream::Protocol;

use super::*;
use crate::testing::{Answer, Log, Origin, check, http, over, pool, snapshot, status, transport, until};

#[tokio::test(flavor = "local")]
async fn so_many_probes_run_at_a_time_and_no_more() {
    let running = Rc::new(Cell::new((0_usize, 0_usize)));
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let counts = running.clone();
    tokio::task::spawn_local(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let counts = counts.clone();
            tokio::task::spawn_local(async move {
                let (now, most) = counts.get();
                counts.set((now + 1, most.max(now + 1)));
                tokio::time::sleep(Duration::from_millis(50)).await;
                counts.update(|(now, most)| (now - 1, most));
                drop(stream);
            });
        }
    });
    // Each an address of its own, all of this machine.
    let vms: Vec<_> = (0..1_000_u32).map(|n| ((0x7f01_0000 + n).to_be_bytes(), port).into()).collect();
    let first = snapshot(None, [pool("api", Some(check(http("/"), 1, 1)), &vms)]);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    until("all were probed", || {
        first.pools()[0].members().iter().all(|vm| vm.endpoint.vitals.state() == State::Down)
    })
    .await;
    let most = running.get().1;
    assert!((probe::AT_A_TIME / 4..=probe::AT_A_TIME).contains(&most), "{most}");
}

fn endpoint(snapshot: &Snapshot, pool: usize, member: usize) -> Arc<Endpoint> {
    snapshot.pools()[pool].members()[member].endpoint.clone()
}

async fn becomes(endpoint: &Endpoint, state: State) {
    until(&format!("{state:?}"), || endpoint.vitals.state() == state).await;
}

/// An origin whose status can be changed.
async fn switchable(first: u16) -> (Origin, Rc<Cell<u16>>) {
    let now = Rc::new(Cell::new(first));
    let answer = now.clone();
    (Origin::start(move |_| status(answer.get())).await, now)
}

#[tokio::test(flavor = "local")]
async fn falls_and_rises_and_says_so_once() {
    let log = Log::capture();
    let (origin, answer) = switchable(200).await;
    let first = snapshot(None, [pool("api", Some(check(http("/"), 2, 3)), &[origin.address])]);
    let vm = endpoint(&first, 0, 0);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    assert_eq!(vm.vitals.state(), State::Unknown);

    becomes(&vm, State::Up).await;
    answer.set(503);
    becomes(&vm, State::Down).await;
    // Still down is no news.
    let probes = origin.requests();
    until("more failures", || origin.requests() > probes + 3).await;
    answer.set(200);
    becomes(&vm, State::Up).await;
    let probes = origin.requests();
    until("more successes", || origin.requests() > probes + 3).await;

    let who = format!(r#"pool="api" backend="vm0" address={}"#, origin.address);
    assert_eq!(
        log.lines(),
        [
            // That it was up at first confirms what was assumed: no news.
            format!("WARN backend is down {who} reason=HTTP probe: status 503, expected 200-399"),
            r#"ERROR pool has no usable backend left pool="api""#.to_owned(),
            format!("INFO backend is up {who} reason=2 probes in a row succeeded"),
            r#"INFO pool has a usable backend again pool="api""#.to_owned(),
        ]
    );
}

#[tokio::test(flavor = "local")]
async fn a_pool_is_exhausted_with_its_last_backend() {
    let log = Log::capture();
    let (one, answer_one) = switchable(503).await;
    let (two, answer_two) = switchable(200).await;
    let health = Some(check(http("/"), 1, 1));
    let first = snapshot(None, [pool("api", health, &[one.address, two.address])]);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    becomes(&endpoint(&first, 0, 0), State::Down).await;
    becomes(&endpoint(&first, 0, 1), State::Up).await;
    let of_pool = || log.lines().into_iter().filter(|line| line.contains(" pool has ")).collect::<Vec<_>>();
    assert_eq!(of_pool(), [""; 0]);

    answer_two.set(503);
    becomes(&endpoint(&first, 0, 1), State::Down).await;
    answer_one.set(200);
    becomes(&endpoint(&first, 0, 0), State::Up).await;
    answer_two.set(200);
    becomes(&endpoint(&first, 0, 1), State::Up).await;
    assert_eq!(
        of_pool(),
        [
            r#"ERROR pool has no usable backend left pool="api""#,
            r#"INFO pool has a usable backend again pool="api""#
        ]
    );
}

#[tokio::test(flavor = "local")]
async fn a_reload_leaves_the_unchanged_alone() {
    // Three failures and then silence: only who counts on across the reloads reaches `fall`.
    let origin = Origin::start(|number| if number < 3 { status(503) } else { Answer::Hang }).await;
    let transport = transport(Protocol::Http1);
    let spec = || pool("api", Some(check(http("/"), 1, 3)), &[origin.address]);
    let mut now = snapshot(None, [spec()]);
    let vm = endpoint(&now, 0, 0);
    let mut monitor = Monitor::new();
    monitor.follow(over(&now, &transport));
    for number in 1..=3 {
        until("a probe", || origin.requests() == number).await;
        // Another pool comes or goes; this one stays.
        let other = (number % 2 == 1).then(|| pool("other", None, &[]));
        now = snapshot(Some(&now), [spec()].into_iter().chain(other));
        monitor.follow(over(&now, &transport));
    }
    becomes(&vm, State::Down).await;
    assert!(Arc::ptr_eq(&vm, &endpoint(&now, 0, 0)));
}

#[tokio::test(flavor = "local")]
async fn another_check_or_transport_begins_anew_and_keeps_the_state() {
    let (origin, answer) = switchable(503).await;
    let old = transport(Protocol::Http1);
    let first = snapshot(None, [pool("api", Some(check(http("/old"), 1, 1)), &[origin.address])]);
    let vm = endpoint(&first, 0, 0);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &old));
    becomes(&vm, State::Down).await;

    let second = snapshot(Some(&first), [pool("api", Some(check(http("/new"), 1, 1)), &[origin.address])]);
    monitor.follow(over(&second, &old));
    assert_eq!(vm.vitals.state(), State::Down);
    until("the new path", || origin.seen().last().is_some_and(|head| head.starts_with("GET /new "))).await;
    assert_eq!(vm.vitals.state(), State::Down);

    let before = monitor.watches[&vm.id].task.id();
    monitor.follow(over(&second, &old));
    assert_eq!(monitor.watches[&vm.id].task.id(), before);
    monitor.follow(over(&second, &transport(Protocol::Http1)));
    assert_ne!(monitor.watches[&vm.id].task.id(), before);
    answer.set(200);
    becomes(&vm, State::Up).await;
    assert_eq!(monitor.watches.len(), 1);
}

#[tokio::test(flavor = "local")]
async fn the_removed_are_probed_no_more() {
    let (origin, _) = switchable(200).await;
    let first = snapshot(None, [pool("api", Some(check(http("/"), 1, 1)), &[origin.address])]);
    let vm = endpoint(&first, 0, 0);
    let mut monitor = Monitor::new();
    let unwatched = Arc::strong_count(&vm);
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    becomes(&vm, State::Up).await;
    assert!(Arc::strong_count(&vm) > unwatched);

    monitor.follow([]);
    // The loop is gone when its share in the endpoint is.
    until("the end of the probe", || Arc::strong_count(&vm) == unwatched).await;
    assert_eq!(vm.vitals.state(), State::Unknown);
    assert!(monitor.watches.is_empty() && monitor.standings.is_empty());
}

#[tokio::test(flavor = "local")]
async fn without_a_check_an_endpoint_is_unknown_again() {
    let log = Log::capture();
    let (origin, _) = switchable(503).await;
    let first = snapshot(None, [pool("api", Some(check(http("/"), 1, 1)), &[origin.address])]);
    let vm = endpoint(&first, 0, 0);
    let mut monitor = Monitor::new();
    let transport = transport(Protocol::Http1);
    monitor.follow(over(&first, &transport));
    becomes(&vm, State::Down).await;

    let second = snapshot(Some(&first), [pool("api", None, &[origin.address])]);
    monitor.follow(over(&second, &transport));
    assert_eq!(vm.vitals.state(), State::Unknown);
    assert!(monitor.watches.is_empty());
    let who = format!(r#"pool="api" backend="vm0" address={}"#, origin.address);
    assert_eq!(
        log.lines()[2..],
        [
            format!("INFO backend counts as usable {who} reason=it is probed no more"),
            r#"INFO pool has a usable backend again pool="api""#.to_owned(),
        ]
    );
}

#[tokio::test(flavor = "local")]
async fn members_that_come_and_go_change_what_is_left() {
    let log = Log::capture();
    let (dead, _) = switchable(503).await;
    let (alive, _) = switchable(200).await;
    let health = || Some(check(http("/"), 1, 1));
    let transport = transport(Protocol::Http1);
    let first = snapshot(None, [pool("api", health(), &[dead.address, alive.address])]);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport));
    becomes(&endpoint(&first, 0, 0), State::Down).await;
    becomes(&endpoint(&first, 0, 1), State::Up).await;

    let second = snapshot(Some(&first), [pool("api", health(), &[dead.address])]);
    monitor.follow(over(&second, &transport));
    assert_eq!(log.lines()[1..], [r#"ERROR pool has no usable backend left pool="api""#]);
    let third = snapshot(Some(&second), [pool("api", health(), &[dead.address, alive.address])]);
    monitor.follow(over(&third, &transport));
    assert_eq!(log.lines()[2..], [r#"INFO pool has a usable backend again pool="api""#]);

    // Whole pools that go, or have no members, have nothing to complain of.
    becomes(&endpoint(&third, 0, 1), State::Up).await;
    let lines = log.lines().len();
    let last = snapshot(Some(&third), [pool("empty", health(), &[])]);
    monitor.follow(over(&last, &transport));
    assert_eq!(log.lines().len(), lines);
}

#[tokio::test(flavor = "local")]
async fn one_address_in_two_pools_is_two_endpoints() {
    let (origin, _) = switchable(404).await;
    let strict = check(http("/"), 1, 1);
    let lax = check(Probe::Tcp, 1, 1);
    let first = snapshot(
        None,
        [pool("strict", Some(strict), &[origin.address]), pool("lax", Some(lax), &[origin.address])],
    );
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    becomes(&endpoint(&first, 0, 0), State::Down).await;
    becomes(&endpoint(&first, 1, 0), State::Up).await;
}

#[tokio::test(flavor = "local")]
async fn an_endpoint_is_probed_once_however_often_it_is_named() {
    let (origin, _) = switchable(200).await;
    let health = Some(check(http("/"), 1, 1));
    let first = snapshot(None, [pool("api", health, &[origin.address, origin.address])]);
    let transport = transport(Protocol::Http1);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport).into_iter().chain(over(&first, &transport)));
    assert_eq!((monitor.watches.len(), monitor.standings.len()), (1, 1));
    becomes(&endpoint(&first, 0, 0), State::Up).await;
}

#[tokio::test(flavor = "local")]
async fn a_probe_is_no_load() {
    let origin = Origin::start(|_| Answer::Hang).await;
    let first = snapshot(None, [pool("api", Some(check(http("/"), 1, 1)), &[origin.address])]);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    until("a probe", || origin.requests() == 1).await;
    assert_eq!(endpoint(&first, 0, 0).vitals.in_flight(), 0);
}

#[tokio::test(flavor = "local")]
async fn without_its_monitor_nothing_is_probed() {
    let (origin, _) = switchable(200).await;
    let first = snapshot(None, [pool("api", Some(check(http("/"), 1, 1)), &[origin.address])]);
    let vm = endpoint(&first, 0, 0);
    let unwatched = Arc::strong_count(&vm);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    becomes(&vm, State::Up).await;
    drop(monitor);
    until("the end of the probe", || Arc::strong_count(&vm) == unwatched).await;
    assert_eq!(vm.vitals.state(), State::Up);
}
