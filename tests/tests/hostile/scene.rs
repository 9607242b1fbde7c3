//! One gateway, an attacker, and clients that only want to be served.

use std::{
    future::Future,
    pin::Pin,
    process::Command,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use foregate_tests::{
    Client, Dial, Fields, Version, eventually_async, gateway, get,
    http3::{Connection, Options},
    origin, within,
};
use tokio::sync::oneshot;

const MIB: u64 = 1 << 20;
/// Whom others ask, and the VM behind it: not the attacker's.
const OTHERS: &str = "others.test";
const OURS: &str = "ours";
/// The lowest of the usual priorities.
const LEAST: i32 = 19;
/// How long an attack goes on, and how long others are watched before it.
const ATTACK: Duration = Duration::from_secs(3);
const QUIET: Duration = Duration::from_secs(2);
/// Between two requests of those that are watched.
const GAP: Duration = Duration::from_millis(2);
/// What the usual request of others must not take under an attack. A worker that an attack keeps busy answers
/// after seconds; one on a machine with other things to do still answers within tens of milliseconds.
const BORNE: Duration = Duration::from_millis(500);
/// What the gateway may grow by for reasons of its own: connections to VMs, tables of the runtime, pages that the
/// allocator does not give back. Attacks for which next to nothing is held were seen to cost 3 MiB.
const SLACK: u64 = 4 * MIB;

pub(crate) const STREAMS: u64 = 128;
pub(crate) const REQUEST_HEAD: u64 = 32 * 1024;
pub(crate) const LARGE: u64 = 4 * MIB;

pub(crate) type Running = Pin<Box<dyn Future<Output = ()>>>;

/// What somebody does to a gateway.
pub(crate) struct Attack {
    pub(crate) name: &'static str,
    /// Tables of the gateway's configuration.
    pub(crate) config: &'static str,
    /// What the gateway may hold for it, in bytes.
    pub(crate) holds: u64,
    /// Goes on until the time is over.
    pub(crate) run: Box<dyn FnOnce(Dial, Instant) -> Running + Send>,
}

/// What others met.
#[derive(Default)]
pub(crate) struct Outcome {
    before: [Vec<Duration>; 2],
    during: [Vec<Duration>; 2],
}

impl Outcome {
    pub(crate) fn add(&mut self, other: Outcome) {
        let ours = self.before.iter_mut().chain(&mut self.during);
        for (ours, mut theirs) in ours.zip(other.before.into_iter().chain(other.during)) {
            ours.append(&mut theirs);
        }
    }

    /// The p99 during the attack over that before it, of the version that had to wait more.
    pub(crate) fn ratio(&self) -> f64 {
        let ratio =
            |n: usize| share(&self.during[n], 99).as_secs_f64() / share(&self.before[n], 99).as_secs_f64();
        ratio(0).max(ratio(1))
    }
}

/// The time within which so many of a hundred were served.
fn share(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// What an attacker's thread may have of the machine.
#[derive(Clone, Copy)]
pub(crate) enum Time {
    /// Enough that the attack goes on while other tests run.
    Little,
    /// Only what nobody else wants, and it is interrupted whenever somebody does. The lowest of the usual priorities
    /// would finish a time slice of milliseconds first, for which others had to wait; an attacker has a machine of
    /// its own.
    Spare,
}

/// Lets the gateway be attacked, and checks what it must bear.
pub(crate) async fn bear(attack: Attack, time: Time) -> Outcome {
    let Attack { name, config, holds, run } = attack;
    let (ours, theirs) = (origin().named(OURS).start().await, AttackedVm::start(time));
    let site = format!("[sites.\"shop.test\"]\npool = {:?}\n", theirs.address);
    let gw = gateway().site(OTHERS, &ours).named(&["shop.test"]).toml(&site).toml(config).start().await;
    if matches!(time, Time::Spare) {
        move_to(GATEWAYS, gw.process.threads());
    }
    let others = [gw.client(Version::H2, OTHERS).await, gw.client(Version::H3, OTHERS).await];
    let end = Instant::now() + QUIET;
    let before = watch(&others, || Instant::now() < end).await;

    gw.process.reset_peak();
    let resident = gw.process.memory("VmRSS");
    let dial = gw.dial("shop.test");
    let attacker = elsewhere(time, move || async move {
        within("the end of the attack", run(dial, Instant::now() + ATTACK)).await;
    });
    let during = watch(&others, || !attacker.is_finished()).await;
    let grown = gw.process.memory("VmHWM").saturating_sub(resident);
    attacker.join().expect("the attack went as it should");

    for (n, version) in ["h2", "h3"].into_iter().enumerate() {
        let figures = |times: &[Duration]| format!("{:.1?} {:.1?}", share(times, 50), share(times, 99));
        let (before, during) = (figures(&before[n]), figures(&during[n]));
        eprintln!("{name}: {version} median and p99 before {before}, during {during}");
    }
    eprintln!("{name}: grew {} KiB, may grow {} KiB", grown / 1024, (holds + SLACK) / 1024);
    assert!(grown <= holds + SLACK, "{name}: grew by {} KiB", grown / 1024);
    for times in &during {
        let median = share(times, 50);
        assert!(median <= BORNE, "{name}: others usually waited {median:?}");
    }
    for version in Version::ALL {
        // At the latest when what the attacker has left behind has timed out.
        eventually_async("new connections are served afterwards", || async {
            let asked = get("/").host(OTHERS);
            gw.try_request(version, &asked).await.ok().filter(|reply| reply.vm() == OURS)
        })
        .await;
    }
    let panics = gw.log().having(&["panicked"]);
    assert!(panics.is_empty(), "{name}: {panics:#?}");
    Outcome { before, during }
}

/// The CPU that the gateway has for itself where latencies are compared, and that of all others. A thread that wakes
/// another one on its own CPU may have to wait for it, so a gateway would be blamed for keeping its clients from
/// reading what it has long sent.
const GATEWAYS: usize = 0;
const OTHER: usize = 1;

/// Moves the calling thread, and all that it begins, away from the gateway's CPU. From then on both are kept awake by
/// threads that run when nobody else does: to wake a CPU takes longer than a request.
pub(crate) fn spread() {
    for cpu in [GATEWAYS, OTHER] {
        elsewhere(Time::Spare, move || async move {
            move_to(cpu, [rustix::thread::gettid()]);
            loop {
                // An attacker on the same CPU goes first.
                std::thread::yield_now();
            }
        });
    }
    move_to(OTHER, [rustix::thread::gettid()]);
}

fn move_to(cpu: usize, threads: impl IntoIterator<Item = rustix::thread::Pid>) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    for thread in threads {
        rustix::thread::sched_setaffinity(Some(thread), &set).expect("there are two CPUs");
    }
}

/// Runs on a thread of its own that gives way to others, so that those who are watched do not wait for the attacker
/// itself: it would be another machine.
fn elsewhere<F: Future<Output = ()>>(
    time: Time,
    work: impl FnOnce() -> F + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        time.give();
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().build().unwrap().block_on(work());
    })
}

impl Time {
    /// To the calling thread, from now on.
    fn give(self) {
        match self {
            // On Linux it is this thread alone whose priority this sets.
            Time::Little => {
                rustix::process::setpriority_process(None, LEAST).expect("a lower priority is granted")
            }
            Time::Spare => {
                let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
                let chrt = Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status();
                assert!(chrt.expect("chrt is part of util-linux").success());
            }
        }
    }
}

/// Who serves what the attacker asks for: elsewhere too, and not the VM of others.
struct AttackedVm {
    address: String,
    /// Dropped, it ends.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl AttackedVm {
    fn start(time: Time) -> AttackedVm {
        let (tell, told) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = elsewhere(time, move || async move {
            let vm = origin().on("/held", |call| Box::pin(call.gone())).on("/large", |call| {
                Box::pin(async move {
                    call.start(200, &Fields::new(), Some(LARGE)).await;
                    let _ = call.write_pattern(LARGE).await;
                })
            });
            let vm = vm.start().await;
            tell.send(vm.address()).unwrap();
            _ = stopped.await;
        });
        AttackedVm { address: told.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for AttackedVm {
    fn drop(&mut self) {
        self.stop.take();
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the attacked VM: {ended:?}");
    }
}

/// How long each request takes, one after the other, on connections that stay.
async fn watch(others: &[Client; 2], go_on: impl Fn() -> bool) -> [Vec<Duration>; 2] {
    let mut times = [Vec::new(), Vec::new()];
    while go_on() {
        for (client, times) in others.iter().zip(&mut times) {
            let begun = Instant::now();
            let reply = within("an answer to others", client.send(&get("/").host(OTHERS))).await.unwrap();
            times.push(begun.elapsed());
            assert_eq!((reply.status, reply.vm()), (200, OURS), "{:?}", client.version);
        }
        tokio::time::sleep(GAP).await;
    }
    times
}

/// An attacker's connection, with its control stream.
pub(crate) async fn connection(dial: &Dial) -> (Connection, quinn::SendStream) {
    connection_with(dial, Options::default()).await
}

pub(crate) async fn connection_with(dial: &Dial, options: Options) -> (Connection, quinn::SendStream) {
    let client = within("a handshake", Connection::connect(dial, options)).await.unwrap();
    let control = client.control().await;
    (client, control)
}

/// Steps of an attack, at even distances, until the time is over.
pub(crate) struct Pace {
    until: Instant,
    ticks: tokio::time::Interval,
}

impl Pace {
    pub(crate) fn new(every: Duration, until: Instant) -> Pace {
        let mut ticks = tokio::time::interval(every);
        // One that came late must not be made good by a burst.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Pace { until, ticks }
    }

    /// Waits for the next step; false when there is none.
    pub(crate) async fn next(&mut self) -> bool {
        self.ticks.tick().await;
        Instant::now() < self.until
    }
}
