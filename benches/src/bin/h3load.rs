//! A small HTTP/3 load generator: so many connections, so many requests at a time on each, for so long.
//!
//! `h3load https://127.0.0.1:8443/1k [connections] [streams] [seconds] [fresh | idle | users RATE]` prints
//! `REQUESTS requests, FAILED failed, SECONDS s`. With `fresh` every request has a connection of its own, with
//! a full handshake; with `idle` every connection makes one request and is then kept until the time is over. With
//! `users` each connection is a user who asks so often in a second, whatever the answers do; the latency follows, as
//! `tlsload` prints it.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

use std::net::ToSocketAddrs;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
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
    /// So many a second, the first at this part of the interval.
    User { rate: u32, phase: f64 },
}

#[derive(Default)]
struct Count {
    done: AtomicU64,
    failed: AtomicU64,
    latencies: Mutex<Vec<Duration>>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(url) = words.next() else {
        eprintln!("usage: h3load URL [connections] [streams] [seconds] [fresh | idle | users RATE]");
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
        Some("users") => {
            Mode::User { rate: u32::try_from(number(words.next(), 1)).unwrap_or(1).max(1), phase: 0.0 }
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
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let mut tasks = tokio::task::JoinSet::new();
    let begun = Instant::now();
    for number in 0..connections {
        let phase = number as f64 / connections as f64;
        let mode = match mode {
            Mode::User { rate, .. } => Mode::User { rate, phase },
            mode => mode,
        };
        let (endpoint, config, name) = (endpoint.clone(), config.clone(), name.clone());
        let (uri, count, until) = (uri.clone(), count.clone(), begun + time);
        let handshakes = handshakes.clone();
        tasks.spawn(async move {
            loop {
                let turn = handshakes.acquire().await?;
                let quic = endpoint.connect_with(config.clone(), address, &name)?.await?;
                drop(turn);
                if let Mode::User { rate, phase } = mode {
                    return user(quic, uri, rate, phase, (begun, until), count).await;
                }
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
    let latencies = std::mem::take(&mut *count.latencies.lock().unwrap_or_else(PoisonError::into_inner));
    if !latencies.is_empty() {
        println!("{}", foregate_bench::percentiles(latencies));
    }
    Ok(())
}

/// One user: the latency counts from when a request was due. The first second belongs to the handshakes.
async fn user(
    quic: quinn::Connection,
    uri: http::Uri,
    rate: u32,
    phase: f64,
    (begun, until): (Instant, Instant),
    count: Arc<Count>,
) -> Result<(), Failure> {
    let (mut driver, mut sender) = h3::client::new(h3_quinn::Connection::new(quic.clone())).await?;
    let driving = tokio::spawn(async move { driver.wait_idle().await });
    let interval = Duration::from_secs(1) / rate;
    let mut due = begun + Duration::from_secs(1) + interval.mul_f64(phase);
    let mut latencies = Vec::new();
    while due < until {
        tokio::time::sleep_until(due.into()).await;
        let counter = match exchange(&mut sender, &uri).await {
            Ok(()) => &count.done,
            Err(_) => &count.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        latencies.push(due.elapsed());
        due += interval;
    }
    count.latencies.lock().unwrap_or_else(PoisonError::into_inner).append(&mut latencies);
    drop(sender);
    driving.abort();
    quic.close(quinn::VarInt::from_u32(0x100), b"");
    Ok(())
}

async fn connection(
    quic: quinn::Connection,
    uri: http::Uri,
    mode: Mode,
    until: Instant,
    count: Arc<Count>,
) -> Result<(), Failure> {
    let connection = h3_quinn::Connection::new(quic.clone());
    let (mut driver, sender) = h3::client::new(connection).await?;
    let driving = tokio::spawn(async move { driver.wait_idle().await });
    let mut tasks = tokio::task::JoinSet::new();
    let streams = if let Mode::Busy { streams } = mode { streams } else { 1 };
    for _ in 0..streams {
        let (mut sender, uri, count) = (sender.clone(), uri.clone(), count.clone());
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
    drop(sender);
    driving.abort();
    // Said, not left to a time-out: the other side should not have to keep it.
    quic.close(quinn::VarInt::from_u32(0x100), b"");
    Ok(())
}

async fn exchange(
    sender: &mut h3::client::SendRequest<h3_quinn::OpenStreams, bytes::Bytes>,
    uri: &http::Uri,
) -> Result<(), Failure> {
    let request = http::Request::get(uri.clone()).body(())?;
    let mut stream = sender.send_request(request).await?;
    stream.finish().await?;
    let response = stream.recv_response().await?;
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
