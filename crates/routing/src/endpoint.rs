//! The identity of a VM's address and what is known of its health. An endpoint outlives configurations: the
//! next snapshot holds the very same one for an unchanged (pool, address).
//!
//! Knows nothing of how health is found out; the health crate writes the vitals, balancers read them.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::circuit::{Circuit, Mark};
use crate::duty::{Duty, Roster};
use crate::queue::Queue;
use crate::share::{FULL, Share};
use crate::tally::Tally;

/// Where a VM listens. Displayed as in a configuration: `10.0.0.1:80`, `vm.lan:80`, `unix:/run/x.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// An address literal and its port.
    Ip(SocketAddr),
    /// A name, to be resolved by whoever dials it, and the port.
    Name { host: Box<str>, port: u16 },
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            Address::Name { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// One address of one pool, shared by all workers and by successive snapshots.
#[derive(Debug)]
pub struct Endpoint {
    /// Unique in this process and never used again: the key of per-worker connection pools.
    pub id: u64,
    /// The name of its pool.
    pub pool: Arc<str>,
    pub address: Address,
    pub vitals: Vitals,
    /// Its pool's; whoever waits there is called when a request ends here.
    pub(crate) queue: Arc<Queue>,
}

impl Endpoint {
    /// A new identity. Snapshots make their endpoints themselves; this is for forwards without a pool of
    /// their own, and for tests.
    pub fn new(pool: Arc<str>, address: Address) -> Arc<Endpoint> {
        Endpoint::of(pool, address, Arc::default())
    }

    pub(crate) fn of(pool: Arc<str>, address: Address, queue: Arc<Queue>) -> Arc<Endpoint> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Arc::new(Endpoint { id, pool, address, vitals: Vitals::default(), queue })
    }
}

/// Whether an endpoint answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Not yet probed, or nobody probes it: used like one that is up.
    #[default]
    Unknown,
    Up,
    /// Gets no request.
    Down,
}

/// What is known of an endpoint now. All of it atomics, read and written by every worker. Every order is
/// relaxed, but that of the requests in flight, which a queue waits for: no other memory hangs on these values, and a
/// balancer may be a few nanoseconds behind.
#[derive(Debug, Default)]
pub struct Vitals {
    state: AtomicU8,
    pub(crate) circuit: Circuit,
    pub(crate) roster: Roster,
    pub(crate) share: Share,
    pub(crate) tally: Tally,
    doubted: AtomicBool,
    in_flight: AtomicU32,
    /// Seconds, the bits of an `f64`; 0 is "never observed".
    latency: AtomicU64,
    /// The caller's clock at the last observation, nanoseconds.
    observed_at: AtomicU64,
}

/// What a process knows of an endpoint beside its state, for the process after it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Memory {
    /// For how much longer live traffic has set it aside, if it has.
    pub aside: Option<Duration>,
    /// How often it has lately.
    pub ejections: u32,
    /// Seconds, as of now; 0: nothing was observed.
    pub latency: f64,
    /// For how long it has warmed up; none: it is warm.
    pub warming: Option<Duration>,
}

/// After this long without a sample an old latency counts 1/e of what it was: long enough to remember a slow
/// VM for some requests, short enough to give it another chance (the value of Finagle's peak EWMA).
const DECAY_SECONDS: f64 = 10.0;

impl Vitals {
    pub fn state(&self) -> State {
        state_of(self.state.load(Ordering::Relaxed))
    }

    /// Sets the state and returns the one before, so that of several reporters exactly one sees the change. One that
    /// was down and is up is taken back by live traffic too: what failed there failed because it was down.
    pub fn set_state(&self, state: State) -> State {
        let code = match state {
            State::Unknown => 0,
            State::Up => 1,
            State::Down => 2,
        };
        let before = state_of(self.state.swap(code, Ordering::Relaxed));
        if before == State::Down && state == State::Up {
            self.circuit.forget();
            self.share.rise();
            _ = self.tally.take();
        }
        before
    }

    /// Whether work may be sent there as far as probes know, and nobody has said otherwise: it is not known to be down.
    pub fn usable(&self) -> bool {
        self.state() != State::Down && self.duty() != Duty::Off
    }

    /// Whether that holds for new work too.
    pub(crate) fn takes_new(&self) -> bool {
        self.state() != State::Down && self.duty() == Duty::Work
    }

    pub fn duty(&self) -> Duty {
        self.roster.duty()
    }

    /// Sets what is said of it, and returns what was before. One that wants work again warms up first.
    pub fn set_duty(&self, duty: Duty, now_nanos: u64) -> Duty {
        let before = self.roster.set(duty, now_nanos);
        if before != Duty::Work && duty == Duty::Work {
            self.share.rise();
        }
        before
    }

    /// Whether live traffic has set it aside.
    pub fn is_set_aside(&self) -> bool {
        !self.circuit.is_closed()
    }

    /// The part of its weight that the VM asks for, from 0 to 1; a sixteenth is the least.
    pub fn asked_share(&self) -> f64 {
        f64::from(self.share.asked()) / f64::from(FULL)
    }

    /// The VM asks for this part of its weight.
    pub fn ask_share(&self, part: f64) {
        // As casts do: what is no number is nothing.
        self.share.ask((part * f64::from(FULL)).round() as u32);
    }

    /// The body of a response was cut short by the VM, or came to its end.
    pub fn cut(&self, short: bool) {
        self.circuit.cut(short);
        if short {
            self.tally.count(false);
        }
    }

    /// For [`is_lost`](Vitals::is_lost), when a request is sent.
    pub fn mark(&self) -> Mark {
        self.circuit.mark()
    }

    /// Whether the VM went down or was set aside since then.
    pub fn is_lost(&self, mark: Mark) -> bool {
        self.state() == State::Down || self.circuit.has_opened(mark)
    }

    /// Somebody has waited for long. True: nobody else has said so; have the VM probed, and then [`settle`](Vitals::settle).
    pub fn doubt(&self) -> bool {
        !self.doubted.swap(true, Ordering::Relaxed)
    }

    /// The doubt is over.
    pub fn settle(&self) {
        self.doubted.store(false, Ordering::Relaxed);
    }

    /// A probe went well, whatever the state.
    pub fn probed_well(&self, now_nanos: u64) {
        self.circuit.hasten(now_nanos);
    }

    /// Requests being served there now, by all workers, under all snapshots.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::SeqCst)
    }

    /// Takes in the time from the last byte of a request to the head of its response. A slower sample than
    /// the average replaces it at once (the "peak"), a faster one pulls it down by the time that has passed.
    ///
    /// `now_nanos` is any monotonic clock in nanoseconds, the same for all callers. Two threads that report
    /// at the same instant may lose one of the samples; the next one mends it.
    pub fn observe_latency(&self, sample: Duration, now_nanos: u64) {
        // Zero is the mark of "never observed".
        let sample = sample.as_secs_f64().max(1e-9);
        let average = f64::from_bits(self.latency.load(Ordering::Relaxed));
        let next = if sample >= average {
            sample
        } else {
            let kept = self.decay(now_nanos);
            average * kept + sample * (1.0 - kept)
        };
        self.latency.store(next.to_bits(), Ordering::Relaxed);
        self.observed_at.fetch_max(now_nanos, Ordering::Relaxed);
    }

    /// The peak-sensitive average latency in seconds, fading while nothing is observed, so that a VM which
    /// was slow once is tried again; 0 when nothing was ever observed. Clock as for
    /// [`observe_latency`](Vitals::observe_latency).
    pub fn latency(&self, now_nanos: u64) -> f64 {
        let average = f64::from_bits(self.latency.load(Ordering::Relaxed));
        if average == 0.0 { 0.0 } else { average * self.decay(now_nanos) }
    }

    /// For another process.
    pub fn memory(&self, now_nanos: u64) -> Memory {
        let (aside, ejections) = self.circuit.standing(now_nanos);
        let (latency, warming) = (self.latency(now_nanos), self.share.warming(now_nanos));
        Memory { aside, ejections, latency, warming }
    }

    /// Goes on with what another process knew.
    pub fn remember(&self, memory: &Memory, now_nanos: u64) {
        self.circuit.resume((memory.aside, memory.ejections), now_nanos);
        self.share.resume(memory.warming, now_nanos);
        if memory.latency > 0.0 {
            self.latency.store(memory.latency.to_bits(), Ordering::Relaxed);
            self.observed_at.store(now_nanos, Ordering::Relaxed);
        }
    }

    /// The share of the average that is left at `now_nanos`. A caller whose clock reading is older than the
    /// last observation sees no decay.
    fn decay(&self, now_nanos: u64) -> f64 {
        let elapsed = now_nanos.saturating_sub(self.observed_at.load(Ordering::Relaxed));
        (-(elapsed as f64) / (DECAY_SECONDS * 1e9)).exp()
    }
}

fn state_of(code: u8) -> State {
    match code {
        1 => State::Up,
        2 => State::Down,
        _ => State::Unknown,
    }
}

/// One request's place in an endpoint's in-flight count, given back on drop. Owned: it may travel with the
/// response body and outlive the snapshot it was picked from.
#[derive(Debug)]
#[must_use = "dropping it at once says that the request is over"]
pub struct InFlight {
    endpoint: Arc<Endpoint>,
}

impl InFlight {
    /// Counts one more request at `endpoint`. A [`Pick`](crate::Pick) brings its own.
    pub fn begin(endpoint: &Arc<Endpoint>) -> InFlight {
        endpoint.vitals.in_flight.fetch_add(1, Ordering::SeqCst);
        InFlight { endpoint: Arc::clone(endpoint) }
    }

    /// The same if that is no more than `most` at a time.
    pub(crate) fn within(endpoint: &Arc<Endpoint>, most: Option<u32>) -> Option<InFlight> {
        let before = endpoint.vitals.in_flight.fetch_add(1, Ordering::SeqCst);
        let one = InFlight { endpoint: Arc::clone(endpoint) };
        most.is_none_or(|most| before < most).then_some(one)
    }

    /// The body of the response was cut short by the VM, or came to its end.
    pub fn cut(&self, short: bool) {
        self.endpoint.vitals.cut(short);
    }

    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Who comes to the queue counts these afterwards, and this looks into the queue afterwards: one sees the other.
        self.endpoint.vitals.in_flight.fetch_sub(1, Ordering::SeqCst);
        self.endpoint.queue.call();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn endpoint() -> Arc<Endpoint> {
        Endpoint::new("pool".into(), Address::Ip("10.0.0.1:80".parse().unwrap()))
    }

    #[test]
    fn addresses_are_shown_as_configured() {
        let name = Address::Name { host: "vm.lan".into(), port: 80 };
        assert_eq!(name.to_string(), "vm.lan:80");
        assert_eq!(Address::Ip("[::1]:80".parse().unwrap()).to_string(), "[::1]:80");
        assert_eq!(Address::Unix("/run/x.sock".into()).to_string(), "unix:/run/x.sock");
    }

    #[test]
    fn identities_are_unique() {
        assert_ne!(endpoint().id, endpoint().id);
    }

    #[test]
    fn unknown_counts_as_usable_and_a_change_is_seen_once() {
        let vitals = Vitals::default();
        assert_eq!(vitals.state(), State::Unknown);
        assert!(vitals.usable());
        assert_eq!(vitals.set_state(State::Down), State::Unknown);
        assert_eq!(vitals.set_state(State::Down), State::Down);
        assert!(!vitals.usable());
        assert_eq!(vitals.set_state(State::Up), State::Down);
        assert!(vitals.usable());
    }

    #[test]
    fn in_flight_is_given_back_on_drop() {
        let endpoint = endpoint();
        let first = InFlight::begin(&endpoint);
        let second = InFlight::begin(&endpoint);
        assert_eq!(endpoint.vitals.in_flight(), 2);
        drop(first);
        assert_eq!(second.endpoint().vitals.in_flight(), 1);
        drop(second);
        assert_eq!(endpoint.vitals.in_flight(), 0);
    }

    #[test]
    fn a_peak_counts_at_once_and_fades_slowly() {
        let vitals = Vitals::default();
        assert_eq!(vitals.latency(0), 0.0);
        vitals.observe_latency(Duration::from_millis(10), SECOND);
        assert_eq!(vitals.latency(SECOND), 0.010);
        vitals.observe_latency(Duration::from_millis(500), SECOND);
        assert_eq!(vitals.latency(SECOND), 0.5);
        // A fast sample right after the peak hardly moves it, ten seconds later it weighs 1 - 1/e.
        vitals.observe_latency(Duration::from_millis(10), SECOND + 1_000);
        assert!(vitals.latency(SECOND + 1_000) > 0.499);
        vitals.observe_latency(Duration::from_millis(10), 11 * SECOND);
        let expected = 0.5 / std::f64::consts::E + 0.010 * (1.0 - 1.0 / std::f64::consts::E);
        assert!((vitals.latency(11 * SECOND) - expected).abs() < 1e-3);
    }

    #[test]
    fn latency_fades_while_nothing_is_observed_but_never_to_unknown() {
        let vitals = Vitals::default();
        vitals.observe_latency(Duration::ZERO, 5 * SECOND);
        assert!(vitals.latency(5 * SECOND) > 0.0);
        vitals.observe_latency(Duration::from_secs(1), 5 * SECOND);
        assert!((vitals.latency(15 * SECOND) - 1.0 / std::f64::consts::E).abs() < 1e-9);
        assert_eq!(vitals.latency(SECOND), 1.0, "a clock reading from before the sample");
    }
}
