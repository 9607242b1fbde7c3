//! The data plane as a whole: starting its workers and draining them.

use std::io;
use std::net::UdpSocket;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use foregate_exchange::clock;
use foregate_routing::Publisher;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::advertise::{self, Advertising};
use crate::diagnostics::Diagnostics;
use crate::drain::Phase;
use crate::limit::Connections;
use crate::listen::{BindError, Bound, Listening, Sockets, bind};
use crate::peer::canonical;
use crate::pressure::{self, Pressure};
use crate::quic::{self, Group, Keys, Sets};
use crate::settings::Settings;
use crate::worker::Worker;
use crate::{Concern, Live, accept};

/// Open files that are neither connections nor a worker's own: logs, certificates, probes, the resolver.
const OTHER_FILES: usize = 128;
/// Open files with which the runtime of each worker waits.
const RUNTIME_FILES: usize = 4;
/// Sockets of each worker towards VMs over HTTP/3, one for IPv4 and one for IPv6.
const QUIC_FILES: usize = 2;
/// A gateway with less than this is not one.
const MIN_CONNECTIONS: u64 = 64;
/// How long nothing must have run before idle connections are closed in a drain: a request that is just
/// on its way on one of them is still answered.
const QUIET: Duration = Duration::from_secs(1);

/// The running data plane.
pub struct Gateway {
    listeners: Vec<Listening>,
    stop: watch::Sender<Option<Duration>>,
    threads: Vec<JoinHandle<()>>,
    live: Publisher<Live>,
    _held: Vec<UdpSocket>,
}

/// Why the data plane did not start. Displays what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(
        "the open-file limit of {limit} is too low: {connections} connections need up to two files each, and the \
         gateway itself {own}; raise it to at least {needed} (LimitNOFILE= in the systemd unit, or `ulimit -n`), \
         or set a lower server.limits.connections"
    )]
    FileLimit { limit: u64, connections: u64, own: u64, needed: u64 },
    #[error("a worker cannot start: {0}")]
    Worker(String),
}

impl Gateway {
    /// Binds every listener and starts the workers. Nothing runs if anything fails. `concerns` gets VMs that let requests
    /// wait for long; whoever probes is to look at them and to settle the doubt.
    ///
    /// # Errors
    /// Which listener or limit, why, and what to do.
    pub fn start(
        live: Publisher<Live>,
        diagnostics: Diagnostics,
        concerns: UnboundedSender<Concern>,
    ) -> Result<Gateway, StartError> {
        let settings = live.load().settings.clone();
        let workers = settings.workers.map_or_else(
            || std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            std::num::NonZero::get,
        );
        let limit = connection_limit(&settings, workers)?;
        let pressure = Pressure::new(limit, workers);
        let connections = Connections::new(limit, settings.limits.connections_per_ip, pressure.clone());
        let mut secret = [0; 64];
        aws_lc_rs::rand::fill(&mut secret).map_err(|_| StartError::Worker("no random numbers".to_owned()))?;
        let keys = Keys::new(&secret);
        let group = Group::new(Sets::One, workers)
            .ok_or_else(|| StartError::Worker(format!("{workers} are more than QUIC can tell apart")))?;
        let Bound { listening, sockets, held } = bind(&settings, group)?;

        let (stop, stopping) = watch::channel(None);
        let mut threads = Vec::with_capacity(workers);
        let (report, reports) = std::sync::mpsc::channel();
        let advertising = Arc::new(Advertising::new(&settings));
        let shared =
            Shared { live: live.clone(), connections, pressure, advertising, keys, diagnostics, concerns };
        for (number, sockets) in (0..group.workers()).zip(sockets) {
            let (shared, stopping, report) = (shared.clone(), stopping.clone(), report.clone());
            let thread = std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || run(shared, number, sockets, stopping, &report))
                .map_err(|error| StartError::Worker(error.to_string()))?;
            threads.push(thread);
        }
        drop(report);
        // Each worker reports once when it accepts; one that panicked has dropped its end.
        for _ in 0..workers {
            match reports.recv() {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => return Err(StartError::Worker(reason)),
                Err(_) => return Err(StartError::Worker("it stopped while starting".to_owned())),
            }
        }
        advertise::probe(live.clone(), &shared.advertising, stopping)
            .map_err(|error| StartError::Worker(error.to_string()))?;
        Ok(Gateway { listeners: listening, stop, threads, live, _held: held })
    }

    /// The addresses listened on, in the order of the configuration.
    #[must_use]
    pub fn listeners(&self) -> &[Listening] {
        &self.listeners
    }

    /// Stops accepting, finishes what runs, at most `settings.timeouts.drain`, and returns when the
    /// workers are gone. Blocks.
    pub fn drain(self) {
        let limit = self.live.load().settings.timeouts.drain;
        self.stop.send_replace(Some(limit));
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a worker ended with a panic");
            }
        }
    }
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
    // A UDP socket is held twice.
    let for_each_https = if settings.http3.enabled { 3 } else { 1 };
    let ports = settings.http.len() + settings.https.len() * for_each_https;
    OTHER_FILES + workers * (settings.addresses.len() * ports + RUNTIME_FILES + QUIC_FILES)
}

type Report = std::sync::mpsc::Sender<Result<(), String>>;

/// What all workers have in common.
#[derive(Clone)]
struct Shared {
    live: Publisher<Live>,
    connections: Arc<Connections>,
    pressure: Arc<Pressure>,
    advertising: Arc<Advertising>,
    keys: Keys,
    diagnostics: Diagnostics,
    concerns: UnboundedSender<Concern>,
}

/// The life of a worker thread.
fn run(
    shared: Shared,
    number: u16,
    sockets: Sockets,
    mut stopping: watch::Receiver<Option<Duration>>,
    report: &Report,
) {
    let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            _ = report.send(Err(error.to_string()));
            return;
        }
    };
    runtime.block_on(async {
        let Shared { live, connections, pressure, advertising, keys, diagnostics, concerns } = shared;
        let worker = Worker::new(&live, connections, pressure, advertising, diagnostics, concerns);
        let worker = match worker {
            Ok(worker) => worker,
            Err(error) => {
                _ = report.send(Err(error.to_string()));
                return;
            }
        };
        if let Err(error) = start(&worker, number, &keys, sockets) {
            _ = report.send(Err(error.to_string()));
            return;
        }
        _ = report.send(Ok(()));
        tokio::task::spawn_local(worker.waits.clone().attend());
        tokio::task::spawn_local(watch_pressure(worker.clone(), number.into()));
        let sweeper = worker.clone();
        tokio::task::spawn_local(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                sweeper.client.sweep();
                sweeper.partings.look(clock::now_nanos());
            }
        });
        // The sender is dropped only with the process.
        let limit = stopping.wait_for(Option::is_some).await.ok().and_then(|limit| *limit);
        finish(&worker, limit.unwrap_or_default()).await;
    });
}

/// Tells how much the worker has to do. One of them looks at the memory too.
async fn watch_pressure(worker: Rc<Worker>, number: usize) {
    loop {
        worker.pressure.report(number, worker.running(), worker.connections.open());
        if number == 0 {
            worker.pressure.look_at_memory();
        }
        tokio::time::sleep(pressure::LOOK).await;
    }
}

/// Starts the worker's accept loops.
fn start(
    worker: &Rc<Worker>,
    number: u16,
    keys: &Keys,
    sockets: Sockets,
) -> Result<(), Box<dyn std::error::Error>> {
    for (socket, secure) in sockets.tcp {
        let listener = TcpListener::from_std(socket)?;
        tokio::task::spawn_local(accept_tcp(worker.clone(), listener, secure));
    }
    for (port, sockets) in sockets.udp {
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            port.endpoint_config(number, keys),
            Some(quic::server_config(&worker.current(), keys)?),
            port.socket(number, sockets)?,
            Arc::new(quinn::TokioRuntime),
        )?;
        tokio::task::spawn_local(quic::accept(worker.clone(), endpoint, keys.clone()));
    }
    Ok(())
}

/// Accepts until the worker drains. Awaits nothing but `accept`.
async fn accept_tcp(worker: Rc<Worker>, listener: TcpListener, secure: bool) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = worker.drain.reached(Phase::Draining) => break,
        };
        match accepted {
            Ok(accepted) => admit(&worker, accepted, secure),
            Err(error) => refused(&error).await,
        }
    }
    // What the kernel has accepted for us already would be reset when the listener closes.
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    while let std::task::Poll::Ready(Ok(accepted)) = listener.poll_accept(&mut cx) {
        admit(&worker, accepted, secure);
    }
}

fn admit(
    worker: &Rc<Worker>,
    (stream, address): (tokio::net::TcpStream, std::net::SocketAddr),
    secure: bool,
) {
    let address = canonical(address);
    match worker.connections.admit(address.ip(), true) {
        Ok(permit) => {
            let worker = worker.clone();
            tokio::task::spawn_local(accept::serve(worker, stream, address, permit, secure));
        }
        Err(full) => full.log(worker, address),
    }
}

/// `accept` fails for reasons of one connection, or because files or memory are short; then it would fail
/// again at once.
async fn refused(error: &io::Error) {
    let of_one =
        [io::ErrorKind::ConnectionAborted, io::ErrorKind::ConnectionReset, io::ErrorKind::Interrupted];
    if !of_one.contains(&error.kind()) {
        tracing::error!(%error, "a connection cannot be accepted; raise the open-file limit if this goes on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Lets what runs end, then closes what is idle.
async fn finish(worker: &Rc<Worker>, limit: Duration) {
    let until = Instant::now() + limit;
    worker.drain.enter(Phase::Draining);
    let mut quiet_since = Instant::now();
    loop {
        // First of all the accept loops must take what the kernel has accepted for them.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if worker.running() > 0 {
            quiet_since = Instant::now();
        }
        if worker.open() == 0 || quiet_since.elapsed() >= QUIET || Instant::now() >= until {
            break;
        }
    }
    if worker.running() > 0 {
        tracing::warn!(requests = worker.running(), "drain is over: requests that still ran are cut");
    }
    worker.drain.enter(Phase::Closing);
    // A moment for goodbyes: TLS close_notify, QUIC CONNECTION_CLOSE.
    let goodbyes = Instant::now() + Duration::from_millis(250);
    while Instant::now() < goodbyes && worker.open() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
