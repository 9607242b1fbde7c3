//! The data plane as a whole: starting its workers, having them follow the configuration, and draining them.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use foregate_routing::Publisher;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::watch;

use crate::advertise::{self, Advertising};
use crate::diagnostics::Diagnostics;
use crate::limit::Connections;
use crate::listen::{BindError, Handed, Listeners, Listening, Plan};
use crate::pressure::Pressure;
use crate::quic::{Group, Keys, Set, Sets};
use crate::settings::Settings;
use crate::thread::{self, Order, Report};
use crate::{Concern, Live};

/// Open files that are neither connections nor a worker's own: logs, certificates, probes, the resolver.
const OTHER_FILES: usize = 128;
/// Open files with which the runtime of each worker waits.
const RUNTIME_FILES: usize = 4;
/// Sockets of each worker towards VMs over HTTP/3, one for IPv4 and one for IPv6.
const QUIC_FILES: usize = 2;
/// A gateway with less than this is not one.
const MIN_CONNECTIONS: u64 = 64;

/// The running data plane.
pub struct Gateway {
    listening: Vec<Listening>,
    listeners: Listeners,
    /// One for each worker.
    orders: Vec<UnboundedSender<Order>>,
    threads: Vec<JoinHandle<()>>,
    live: Publisher<Live>,
    connections: Arc<Connections>,
    pressure: Arc<Pressure>,
    /// What the prober hears of: each new snapshot, and whether it is the end.
    news: watch::Sender<bool>,
}

/// What a process leaves to its successor.
#[derive(Debug)]
pub struct Heritage {
    pub workers: usize,
    /// Which of the UDP sockets are the successor's own.
    pub set: Set,
    pub sockets: Vec<Handed>,
}

/// What it takes to follow the next settings, made ready. Dropping it changes nothing.
#[derive(Debug)]
pub struct Change {
    plan: Plan,
    connections: usize,
    per_client: Option<u32>,
}

/// Why the data plane did not start, or cannot follow the next settings. Displays what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("{}", Lines(.0))]
    Bind(Vec<BindError>),
    #[error(
        "the open-file limit of {limit} is too low: {connections} connections need up to two files each, and the \
         gateway itself {own}; raise it to at least {needed} (LimitNOFILE= in the systemd unit, or `ulimit -n`), \
         or set a lower server.limits.connections"
    )]
    FileLimit { limit: u64, connections: u64, own: u64, needed: u64 },
    #[error("a worker cannot start: {0}")]
    Worker(String),
}

/// Each on a line of its own.
struct Lines<'l>(&'l [BindError]);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{error}")?;
        }
        Ok(())
    }
}

impl Gateway {
    /// Binds every listener and starts the workers. Nothing runs if anything fails. `concerns` gets what workers have seen
    /// and cannot look after. What a process with this `secret` has promised to QUIC clients is kept. One with a heritage
    /// has as many workers as the process before it, and listens only when it [takes over](Gateway::take_over). What is
    /// `given` is listened on where the settings name its address, and closed where they do not.
    ///
    /// # Errors
    /// Which listener or limit, why, and what to do.
    pub fn start(
        live: Publisher<Live>,
        diagnostics: Diagnostics,
        concerns: UnboundedSender<Concern>,
        secret: &[u8; 64],
        heritage: Option<Heritage>,
        given: Vec<Handed>,
    ) -> Result<Gateway, StartError> {
        let settings = live.load().settings.clone();
        let workers =
            heritage.as_ref().map_or_else(|| wanted_workers(&settings), |heritage| heritage.workers);
        let limit = connection_limit(&settings, workers)?;
        let pressure = Pressure::new(limit, workers);
        let connections = Connections::new(limit, settings.limits.connections_per_ip, pressure.clone());
        let keys = Keys::new(secret);
        let group = Group::new(Sets::Two, workers)
            .ok_or_else(|| StartError::Worker(format!("{workers} are more than QUIC can tell apart")))?;
        let inherits = heritage.is_some();
        let mut listeners = match heritage {
            Some(Heritage { set, sockets, .. }) => Listeners::inherit(group, set, sockets),
            None => Listeners::new(group, given),
        };
        let mut plan = listeners.plan(&settings).map_err(StartError::Bind)?;

        let advertising = Arc::new(Advertising::new(&settings));
        let shared = Shared {
            live: live.clone(),
            connections: connections.clone(),
            pressure: pressure.clone(),
            advertising: advertising.clone(),
            keys,
            diagnostics,
            concerns,
        };
        let (mut threads, mut orders) = (Vec::with_capacity(workers), Vec::with_capacity(workers));
        let (report, mut reports) = mpsc::unbounded_channel();
        let opened = std::mem::take(&mut plan.opened);
        for number in 0..group.workers() {
            let (order, ordered) = mpsc::unbounded_channel();
            let (shared, report) = (shared.clone(), report.clone());
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || thread::live(shared, number, ordered, &report))
                .map_err(|error| StartError::Worker(error.to_string()))?;
            threads.push(thread);
            orders.push(order);
        }
        for (order, opened) in orders.iter().zip(opened) {
            _ = order.send(Order::Listen(opened, report.clone()));
        }
        // A successor listens when the process before it lets it.
        if !inherits {
            orders.iter().for_each(|order| _ = order.send(Order::Begin(report.clone())));
        }
        drop(report);
        // Each worker reports when it lives, when it is ready to listen, and when it does; one that panicked has dropped its
        // end.
        for _ in 0..if inherits { 2 * workers } else { 3 * workers } {
            match reports.blocking_recv() {
                Some(Ok(())) => {}
                Some(Err(reason)) => return Err(StartError::Worker(reason)),
                None => return Err(StartError::Worker("it stopped while starting".to_owned())),
            }
        }
        let listening = std::mem::take(&mut plan.listening);
        listeners.commit(plan, Duration::ZERO);
        let (news, hears) = watch::channel(false);
        advertise::probe(live.clone(), &advertising, hears)
            .map_err(|error| StartError::Worker(error.to_string()))?;
        Ok(Gateway { listening, listeners, orders, threads, live, connections, pressure, news })
    }

    /// The addresses listened on, in the order of the configuration.
    #[must_use]
    pub fn listeners(&self) -> &[Listening] {
        &self.listening
    }

    /// How many workers there are. It takes another process to have more or less.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.threads.len()
    }

    /// Requests answered so far, and those of them with a 5xx, as of a moment ago.
    #[must_use]
    pub fn answers(&self) -> (u64, u64) {
        self.pressure.answers()
    }

    /// By worker, the requests under way, as of a moment ago.
    #[must_use]
    pub fn running(&self) -> Vec<usize> {
        self.pressure.running()
    }

    /// How many workers these settings want.
    #[must_use]
    pub fn wanted_workers(settings: &Settings) -> usize {
        wanted_workers(settings)
    }

    /// Client connections now, and how many there may be.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        (self.connections.open(), self.connections.limit())
    }

    /// Binds what the next settings name and these do not, and has the workers make ready for it. Nothing changes yet.
    ///
    /// # Errors
    /// Which listeners or limit, why, and what to do; nothing is left of it.
    pub async fn prepare(&self, settings: &Settings) -> Result<Change, StartError> {
        let connections = connection_limit(settings, self.workers())?;
        let mut plan = self.listeners.plan(settings).map_err(StartError::Bind)?;
        let opened = std::mem::take(&mut plan.opened);
        let change = Change { plan, connections, per_client: settings.limits.connections_per_ip };
        let failed = self.have(opened, Order::Listen).await;
        if failed.is_empty() {
            return Ok(change);
        }
        self.abandon(change).await;
        Err(StartError::Worker(failed.join("; ")))
    }

    /// Lets go of what was made ready.
    pub async fn abandon(&self, change: Change) {
        let new = vec![change.plan.new_ids(); self.workers()];
        self.have(new, |new, report| Order::Leave(new, Duration::ZERO, report)).await;
    }

    /// Follows the settings that were prepared, and that are published by now. `limit` is for what came by listeners that are
    /// there no more. Returns when the workers listen on what is new, with what some could not do.
    pub async fn follow(&mut self, change: Change, limit: Duration) -> Vec<String> {
        let Change { mut plan, connections, per_client } = change;
        self.connections.set(connections, per_client);
        self.listening = std::mem::take(&mut plan.listening);
        // What is new listens before what is old is left: they may share a socket.
        let mut failed = self.begin().await;
        if !self.listeners.is_alone() {
            // What the process before is leaving may have come to this one just now.
            self.listeners.take_over();
        }
        let left = vec![self.listeners.commit(plan, limit); self.workers()];
        failed.extend(self.have(left, |left, report| Order::Leave(left, limit, report)).await);
        self.look();
        failed
    }

    /// Has the workers look at what is published now, also those that have nothing else to do.
    pub fn look(&self) {
        self.orders.iter().for_each(|order| _ = order.send(Order::Look));
        self.news.send_modify(|_| {});
    }

    /// Closes what nobody uses any more. Call it from time to time.
    pub fn tidy(&mut self) {
        self.listeners.tidy();
    }

    /// For a successor: all sockets, and which set of the UDP ones is to be its own.
    ///
    /// # Errors
    /// There are too many open files.
    pub fn bequeath(&self) -> io::Result<Heritage> {
        let set = self.listeners.set().other();
        Ok(Heritage { workers: self.workers(), set, sockets: self.listeners.bequeath()? })
    }

    /// For a service manager to keep: what accepts connections over TCP.
    ///
    /// # Errors
    /// There are too many open files.
    pub fn accepting(&self) -> io::Result<Vec<Handed>> {
        self.listeners.accepting()
    }

    /// Leaves the other set of UDP sockets to another process.
    pub async fn share(&mut self) {
        self.listeners.share();
        self.have(vec![(); self.workers()], |(), report| Order::GiveUp(report)).await;
    }

    /// Nobody has the other set any more: its packets are ours, and new ones come to our own. Returns what workers could
    /// not do.
    pub async fn unshare(&mut self) -> Vec<String> {
        let idle = match self.listeners.unshare() {
            Ok(idle) => idle,
            Err(error) => return vec![error.to_string()],
        };
        self.listeners.take_over();
        self.have(idle, Order::Adopt).await
    }

    /// Listens, in the place of the process before. Returns what workers could not do.
    pub async fn take_over(&self) -> Vec<String> {
        let failed = self.begin().await;
        // Only now that somebody reads what comes.
        self.listeners.take_over();
        failed
    }

    async fn begin(&self) -> Vec<String> {
        self.have(vec![(); self.workers()], |(), report| Order::Begin(report)).await
    }

    /// Has each worker do its part, and returns what they complain of.
    async fn have<T>(&self, parts: Vec<T>, order: impl Fn(T, Report) -> Order) -> Vec<String> {
        let (report, mut reports) = mpsc::unbounded_channel();
        for (worker, part) in self.orders.iter().zip(parts) {
            _ = worker.send(order(part, report.clone()));
        }
        let mut complaints = Vec::new();
        for _ in &self.orders {
            // One that has panicked reports nothing.
            let report = tokio::time::timeout(Duration::from_secs(5), reports.recv()).await;
            match report {
                Ok(Some(Ok(()))) => {}
                Ok(Some(Err(complaint))) => complaints.push(complaint),
                Ok(None) | Err(_) => complaints.push("a worker did not do as it was told".to_owned()),
            }
        }
        complaints
    }

    /// Stops accepting, finishes what runs, at most `settings.timeouts.drain`, and returns when the
    /// workers are gone. `handed_over`: a successor accepts what is new. Blocks.
    pub fn drain(mut self, handed_over: bool) {
        let limit = self.live.load().settings.timeouts.drain;
        self.news.send_replace(true);
        self.listeners.hang_up();
        for order in &self.orders {
            _ = order.send(Order::Drain { limit, handed_over });
        }
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended with a panic");
            }
        }
    }
}

fn wanted_workers(settings: &Settings) -> usize {
    let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    settings.workers.map_or_else(cores, std::num::NonZero::get)
}

/// How many client connections the process may have. Each may need a second file for its VM.
fn connection_limit(settings: &Settings, workers: usize) -> Result<usize, StartError> {
    let mut limit = getrlimit(Resource::Nofile);
    if let Some(maximum) = limit.maximum {
        limit.current = Some(maximum);
        // The hard limit is ours to use; if even that is refused, the soft one counts.
        _ = setrlimit(Resource::Nofile, limit);
    }
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let own = own_files(settings, workers) as u64;
    let possible = limit.saturating_sub(own) / 2;
    let wanted = settings.limits.connections.map(|wanted| wanted as u64);
    let connections = wanted.unwrap_or(MIN_CONNECTIONS);
    if possible < connections {
        let needed = connections.saturating_mul(2).saturating_add(own);
        return Err(StartError::FileLimit { limit, connections, own, needed });
    }
    Ok(usize::try_from(wanted.unwrap_or(possible)).unwrap_or(usize::MAX))
}

/// The open files the process needs before it has accepted anything.
fn own_files(settings: &Settings, workers: usize) -> usize {
    // Each is held twice, and of UDP there are two sets.
    let for_each_https = if settings.http3.enabled { 6 } else { 2 };
    let ports = settings.http.len() * 2 + settings.https.len() * for_each_https;
    OTHER_FILES + workers * (settings.addresses.len() * ports + RUNTIME_FILES + QUIC_FILES)
}

/// What all workers have in common.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) live: Publisher<Live>,
    pub(crate) connections: Arc<Connections>,
    pub(crate) pressure: Arc<Pressure>,
    pub(crate) advertising: Arc<Advertising>,
    pub(crate) keys: Keys,
    pub(crate) diagnostics: Diagnostics,
    pub(crate) concerns: UnboundedSender<Concern>,
}
