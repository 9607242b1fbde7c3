//! A small HTTP/3 load generator: so many connections, so many requests at a time on each, for so long.
//!
//! `h3load https://127.0.0.1:8443/1k [connections] [streams] [seconds] [fresh | idle | users RATE | browsers RATE | strangers PATIENCE]` prints
//! `REQUESTS requests, FAILED failed, SECONDS s`. With `fresh` every request has a connection of its own, with
//! a full handshake; with `idle` every connection makes one request and is then kept until the time is over. With
//! `users` each connection is a user who asks so often in a second, whatever the answers do; the latency follows, as
//! `tlsload` prints it. `browsers` are users who ask once more over a new connection where the old one ended before an
//! answer began. With `strangers` so many new ones come each second, with a connection and one request, and leave when they
//! have not been answered after so many seconds. SIGINT ends the time of users.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

use std::net::ToSocketAddrs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Buf;
use tokio::sync::Semaphore;

/// As far as the kernel allows.
const SOCKET_BUFFER: usize = 4 << 20;
/// Handshakes at a time: a server may refuse more than it can take just now.
const HANDSHAKES: usize = 64;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is done with a connection.
#[derive(Clone, Copy)]
enum Mode {
    /// So many requests at a time, one after the other.
    Busy { streams: u64 },
    /// One request, and then another connection.
    Fresh,
    /// One request, and then nothing.
    Idle,
    /// One request, and none if that takes too long.
    Stranger { patience: Duration },
    /// So many a second, the first at this part of the interval.
    User { rate: u32, phase: f64, browses: bool },
}

#[derive(Default)]
struct Count {
    done: AtomicU64,
    failed: AtomicU64,
    again: AtomicU64,
    latencies: Mutex<Vec<Duration>>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(url) = words.next() else {
        eprintln!(
            "usage: h3load URL [connections] [streams] [seconds] [fresh | idle | users RATE | browsers RATE | strangers PATIENCE]"
        );
        return ExitCode::from(2);
    };
    let number =
        |word: Option<String>, default: u64| word.and_then(|word| word.parse().ok()).unwrap_or(default);
    let connections = number(words.next(), 64);
    let streams = number(words.next(), 10);
    let seconds = number(words.next(), 5);
    let mode = match words.next().as_deref() {
        Some("fresh") => Mode::Fresh,
        Some("idle") => Mode::Idle,
        Some("strangers") => Mode::Stranger { patience: Duration::from_secs(number(words.next(), 2)) },
        Some(word @ ("users" | "browsers")) => {
            let rate = u32::try_from(number(words.next(), 1)).unwrap_or(1).max(1);
            Mode::User { rate, phase: 0.0, browses: word == "browsers" }
        }
        _ => Mode::Busy { streams },
    };
    match run(&url, connections, Duration::from_secs(seconds), mode).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("h3load: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whom all of this is for.
struct Target {
    endpoint: quinn::Endpoint,
    config: quinn::ClientConfig,
    address: std::net::SocketAddr,
    name: String,
    handshakes: Semaphore,
}

impl Target {
    async fn connect(&self) -> Result<quinn::Connection, Failure> {
        let _turn = self.handshakes.acquire().await?;
        self.dial().await
    }

    async fn dial(&self) -> Result<quinn::Connection, Failure> {
        Ok(self.endpoint.connect_with(self.config.clone(), self.address, &self.name)?.await?)
    }
}

async fn run(url: &str, connections: u64, time: Duration, mode: Mode) -> Result<(), Failure> {
    let uri: http::Uri = url.parse()?;
    let host = uri.host().ok_or("the address has no host")?.to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let address = (host.as_str(), port).to_socket_addrs()?.next().ok_or("the host has no address")?;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // All connections share it, and what it drops looks like a gateway that does not answer.
    socket2::SockRef::from(&socket).set_recv_buffer_size(SOCKET_BUFFER)?;
    let runtime = Arc::new(quinn::TokioRuntime);
    let endpoint = quinn::Endpoint::new(quinn::EndpointConfig::default(), None, socket, runtime)?;
    let config = client_config()?;
    let name = if host.parse::<std::net::IpAddr>().is_ok() { "localhost".to_owned() } else { host };

    let count = Arc::new(Count::default());
    let handshakes = Semaphore::new(HANDSHAKES);
    let target = Arc::new(Target { endpoint, config, address, name, handshakes });
    let mut tasks = tokio::task::JoinSet::new();
    let over = foregate_bench::over_by_signal()?;
    let begun = Instant::now();
    if let Mode::Stranger { patience } = mode {
        let interval = time.div_f64(time.as_secs_f64() * connections as f64);
        let mut due = begun;
        while due < begun + time && !over.load(Ordering::Relaxed) {
            tokio::time::sleep_until(due.into()).await;
            tasks.spawn(stranger(target.clone(), uri.clone(), (due, due + patience), count.clone()));
            while tasks.try_join_next().is_some() {}
            due += interval;
        }
    }
    for number in 0..if matches!(mode, Mode::Stranger { .. }) { 0 } else { connections } {
        let phase = number as f64 / connections as f64;
        let mode = match mode {
            Mode::User { rate, browses, .. } => Mode::User { rate, phase, browses },
            mode => mode,
        };
        let (target, over) = (target.clone(), over.clone());
        let (uri, count, until) = (uri.clone(), count.clone(), begun + time);
        tasks.spawn(async move {
            if let Mode::User { .. } = mode {
                return user(&target, uri, mode, (begun, until), &over, count).await;
            }
            loop {
                let quic = target.connect().await?;
                connection(quic, uri.clone(), mode, until, count.clone()).await?;
                if !matches!(mode, Mode::Fresh) || Instant::now() >= until {
                    return Ok::<(), Failure>(());
                }
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        if let Err(error) = result? {
            count.failed.fetch_add(1, Ordering::Relaxed);
            eprintln!("h3load: {error}");
        }
    }
    let (done, failed) = (count.done.load(Ordering::Relaxed), count.failed.load(Ordering::Relaxed));
    println!("{done} requests, {failed} failed, {:.3} s", begun.elapsed().as_secs_f64());
    if matches!(mode, Mode::User { browses: true, .. }) {
        println!("{} again", count.again.load(Ordering::Relaxed));
    }
    let latencies = std::mem::take(&mut *count.latencies.lock().unwrap_or_else(PoisonError::into_inner));
    if !latencies.is_empty() {
        println!("{}", foregate_bench::percentiles(latencies));
    }
    Ok(())
}

/// One user: the latency counts from when a request was due. The first second belongs to the handshakes.
async fn user(
    target: &Target,
    uri: http::Uri,
    mode: Mode,
    (begun, until): (Instant, Instant),
    over: &AtomicBool,
    count: Arc<Count>,
) -> Result<(), Failure> {
    let Mode::User { rate, phase, browses } = mode else { return Ok(()) };
    let mut link = Link::over(target.connect().await?).await?;
    let interval = Duration::from_secs(1) / rate;
    let mut due = begun + Duration::from_secs(1) + interval.mul_f64(phase);
    let mut latencies = Vec::new();
    while due < until && !over.load(Ordering::Relaxed) {
        tokio::time::sleep_until(due.into()).await;
        let mut got = exchange(&mut link.sender, &uri).await;
        if browses && got.as_ref().is_err_and(|error| error.is::<Unanswered>()) {
            count.again.fetch_add(1, Ordering::Relaxed);
            link = Link::over(target.connect().await?).await?;
            got = exchange(&mut link.sender, &uri).await;
        }
        if let Err(error) = &got {
            eprintln!("h3load: {error}");
        }
        let counter = if got.is_ok() { &count.done } else { &count.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        latencies.push(due.elapsed());
        due += interval;
    }
    count.latencies.lock().unwrap_or_else(PoisonError::into_inner).append(&mut latencies);
    Ok(())
}

/// Comes, asks once, and goes.
async fn stranger(
    target: Arc<Target>,
    uri: http::Uri,
    (due, until): (Instant, Instant),
    count: Arc<Count>,
) -> Result<(), Failure> {
    let visit = async {
        let mut link = Link::over(target.dial().await?).await?;
        exchange(&mut link.sender, &uri).await
    };
    if let Ok(Ok(())) = tokio::time::timeout_at(until.into(), visit).await {
        count.done.fetch_add(1, Ordering::Relaxed);
        count.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(due.elapsed());
    } else {
        count.failed.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

type Sender = h3::client::SendRequest<h3_quinn::OpenStreams, bytes::Bytes>;

/// A connection that is closed, and says so, when dropped.
struct Link {
    sender: Sender,
    quic: quinn::Connection,
    driving: tokio::task::AbortHandle,
}

impl Link {
    async fn over(quic: quinn::Connection) -> Result<Link, Failure> {
        let (mut driver, sender) = h3::client::new(h3_quinn::Connection::new(quic.clone())).await?;
        let driving = tokio::spawn(async move { driver.wait_idle().await }).abort_handle();
        Ok(Link { sender, quic, driving })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driving.abort();
        // Said, not left to a time-out: the other side should not have to keep it.
        self.quic.close(quinn::VarInt::from_u32(0x100), b"");
    }
}

/// An end before the answer to a request began, of the connection or because it had been told to go.
#[derive(Debug, thiserror::Error)]
#[error("before the response: {0}")]
struct Unanswered(Failure);

fn unanswered(error: h3::error::StreamError) -> Failure {
    use h3::error::{Code, StreamError};
    match error {
        StreamError::RemoteTerminate { code, .. } if code != Code::H3_REQUEST_REJECTED => error.into(),
        _ => Unanswered(error.into()).into(),
    }
}

async fn connection(
    quic: quinn::Connection,
    uri: http::Uri,
    mode: Mode,
    until: Instant,
    count: Arc<Count>,
) -> Result<(), Failure> {
    let link = Link::over(quic).await?;
    let mut tasks = tokio::task::JoinSet::new();
    let streams = if let Mode::Busy { streams } = mode { streams } else { 1 };
    for _ in 0..streams {
        let (mut sender, uri, count) = (link.sender.clone(), uri.clone(), count.clone());
        tasks.spawn(async move {
            loop {
                match exchange(&mut sender, &uri).await {
                    Ok(()) => count.done.fetch_add(1, Ordering::Relaxed),
                    Err(_) => count.failed.fetch_add(1, Ordering::Relaxed),
                };
                if Instant::now() >= until || !matches!(mode, Mode::Busy { .. }) {
                    break;
                }
            }
        });
    }
    while tasks.join_next().await.is_some() {}
    if let Mode::Idle = mode {
        tokio::time::sleep_until(until.into()).await;
    }
    Ok(())
}

async fn exchange(sender: &mut Sender, uri: &http::Uri) -> Result<(), Failure> {
    let request = http::Request::get(uri.clone()).body(())?;
    let mut stream = sender.send_request(request).await.map_err(unanswered)?;
    stream.finish().await.map_err(unanswered)?;
    let response = stream.recv_response().await.map_err(unanswered)?;
    while let Some(mut data) = stream.recv_data().await? {
        data.advance(data.remaining());
    }
    if response.status().is_success() { Ok(()) } else { Err(response.status().to_string().into()) }
}

fn client_config() -> Result<quinn::ClientConfig, Failure> {
    let tls = foregate_bench::tls_client(b"h3", rustls::client::Resumption::disabled())?;
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls)?;
    Ok(quinn::ClientConfig::new(Arc::new(crypto)))
}
