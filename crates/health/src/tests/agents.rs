//! Agents, pools that are woken, and endpoints that are compared: against real sockets and a real command.

use std::cell::RefCell;

use foregate_routing::{Agent, Duty, Entry, PoolSpec, Sleep, Wake};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::*;

/// A program that says a line to whoever connects; what it says can be changed, to nothing too.
async fn agent(first: &str) -> (u16, Rc<RefCell<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let line = Rc::new(RefCell::new(first.to_owned()));
    let says = line.clone();
    tokio::task::spawn_local(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let line = says.borrow().clone();
            _ = stream.write_all(line.as_bytes()).await;
        }
    });
    (port, line)
}

fn asked(port: u16) -> Option<Agent> {
    Some(Agent { port, interval: Duration::from_millis(10), max_cpu: 80 })
}

#[tokio::test(flavor = "local")]
async fn a_vm_says_what_it_wants() {
    let log = Log::capture();
    let (port, line) = agent("up 50%\n").await;
    let vm = ([127, 0, 0, 1], 1).into();
    let first = snapshot(None, [PoolSpec { agent: asked(port), ..pool("api", None, &[vm]) }]);
    let endpoint = endpoint(&first, 0, 0);
    let mut monitor = Monitor::new();
    let http1 = transport(Protocol::Http1);
    monitor.follow(over(&first, &http1));
    until("its share", || endpoint.vitals.asked_share() == 0.5).await;
    line.replace("drain\n".to_owned());
    until("its drain", || endpoint.vitals.duty() == Duty::Drain).await;
    assert_eq!(endpoint.vitals.asked_share(), 1.0, "each line stands for itself");
    line.replace("down # out of disk\n".to_owned());
    until("its end", || endpoint.vitals.duty() == Duty::Off).await;
    line.replace("\n".to_owned());
    until("a warning", || log.lines().iter().any(|line| line.contains("does not answer"))).await;
    assert_eq!(endpoint.vitals.duty(), Duty::Off, "what it said last holds");
    line.replace("ready".to_owned());
    until("its return", || endpoint.vitals.duty() == Duty::Work).await;

    let who = format!(r#"pool="api" backend="vm0" address={vm}"#);
    let at = format!(r#"pool="api" address=127.0.0.1:{port}"#);
    assert_eq!(
        log.lines(),
        [
            format!(r#"INFO backend drains: it gets no new work {who} reason=its agent says "drain""#),
            r#"ERROR pool has no usable backend left pool="api""#.to_owned(),
            format!("WARN backend is off: it gets nothing {who} reason=out of disk"),
            format!(
                r#"WARN agent does not answer: what it said last holds {at} reason="\"\" says nothing an agent may say""#
            ),
            format!("INFO agent answers again {at}"),
            format!(r#"INFO backend takes work {who} reason=its agent says "ready""#),
            r#"INFO pool has a usable backend again pool="api""#.to_owned(),
        ]
    );

    line.replace("maint 20%".to_owned());
    until("its rest", || endpoint.vitals.duty() == Duty::Off).await;
    let second = snapshot(Some(&first), [pool("api", None, &[vm])]);
    monitor.follow(over(&second, &http1));
    assert_eq!(
        (endpoint.vitals.duty(), endpoint.vitals.asked_share()),
        (Duty::Work, 1.0),
        "nobody asks any more"
    );
}

#[tokio::test(flavor = "local")]
async fn a_vm_with_too_much_to_do_is_probed_and_gets_less() {
    let log = Log::capture();
    let (port, line) = agent("cpu=40%\n").await;
    let (well, full) = (Origin::start(|_| status(200)).await, testing::full());
    let check = HealthCheck {
        timeout: Duration::from_millis(50),
        interval: Duration::from_secs(60),
        ..check(http("/"), 1, 9)
    };
    let spec = pool("api", Some(check), &[full.address, well.address]);
    let first = snapshot(None, [PoolSpec { agent: asked(port), ..spec }]);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    let (busy, other) = (endpoint(&first, 0, 0), endpoint(&first, 0, 1));
    becomes(&other, State::Up).await;
    assert_eq!(busy.vitals.asked_share(), 1.0);
    line.replace("cpu=99%\n".to_owned());
    until("less work", || busy.vitals.asked_share() < 0.1 && other.vitals.asked_share() < 0.1).await;
    let aside = || log.lines().into_iter().filter(|line| line.contains("is set aside")).collect::<Vec<_>>();
    until("a probe that fails", || !aside().is_empty()).await;
    assert!(aside()[0].contains("vm0") && aside()[0].contains("50ms"), "{:?}", aside());
    assert!(other.vitals.usable());
    line.replace("cpu=5%\n".to_owned());
    until("all of its work", || other.vitals.asked_share() == 1.0).await;
}

#[tokio::test(flavor = "local")]
async fn a_pool_is_woken_by_its_command() {
    let log = Log::capture();
    let folder = tempfile::tempdir().unwrap();
    let awake = folder.path().join("awake");
    let (file, runs) = (awake.clone(), folder.path().join("runs"));
    let origin = Origin::start(move |_| status(if file.exists() { 200 } else { 503 })).await;
    let script = format!(
        "echo x >> {}; sleep 0.2; touch {}; echo no disk >&2; exit 3",
        runs.display(),
        awake.display()
    );
    let wake =
        Wake { command: ["sh", "-c", &script].map(Box::from).into(), timeout: Duration::from_secs(20) };
    // So seldom that only who is probed for waking is up in time.
    let check = HealthCheck { interval: Duration::from_secs(3600), ..check(http("/"), 1, 1) };
    let spec = PoolSpec { wake: Some(wake), ..pool("api", Some(check), &[origin.address]) };
    let first = snapshot(None, [spec]);
    let vm = endpoint(&first, 0, 0);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    becomes(&vm, State::Down).await;
    let pool = &first.pools()[0];
    assert_eq!(pool.alarm().raise(), Sleep::Sound);
    monitor.wake(pool);
    becomes(&vm, State::Up).await;
    until("silence", || pool.alarm().raise() == Sleep::Sound).await;
    assert_eq!(std::fs::read_to_string(&runs).unwrap(), "x\n", "it ran once");
    // The command has failed, and the VM is up all the same.
    until("the end of the command", || log.lines().iter().any(|line| line.contains("no disk"))).await;
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn a_pool_that_does_not_wake_is_let_alone_for_a_while() {
    let vm = ([127, 0, 0, 1], 1).into();
    let wake = Wake { command: ["/nowhere/at/all"].map(Box::from).into(), timeout: Duration::from_secs(60) };
    let spec = PoolSpec { wake: Some(wake), ..pool("api", None, &[vm]) };
    let first = snapshot(None, [spec]);
    let pool = &first.pools()[0];
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    pool.members()[0].endpoint.vitals.set_state(State::Down);
    let begun = tokio::time::Instant::now();
    pool.alarm().raise();
    monitor.wake(pool);
    for (sleep, seconds) in [(Sleep::Deaf, 60), (Sleep::Sound, 70)] {
        while pool.alarm().raise() != sleep {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(begun.elapsed().as_secs(), seconds);
    }
}

#[tokio::test(flavor = "local")]
async fn who_fails_more_often_than_the_others_is_set_aside_and_named() {
    let log = Log::capture();
    let vms = [1, 2, 3].map(|port| ([127, 0, 0, 1], port).into());
    let first = snapshot(None, [pool("api", None, &vms)]);
    let mut monitor = Monitor::new();
    monitor.follow(over(&first, &transport(Protocol::Http1)));
    for n in 0..600 {
        // Never two in a row.
        first.pools()[0].judge(n % 3, Entry::Free, n % 3 != 1 || n % 2 == 0, 1);
    }
    monitor.compare();
    monitor.compare();
    assert_eq!(
        log.lines(),
        [
            r#"WARN backend is set aside: more of its requests fail than of the others' pool="api" backend="vm1" address=127.0.0.1:2 fails="50%" others="0%" time=30s"#
        ]
    );
}
