//! What wrk and h2load do not do: connections by the handshake, connections that lie idle, and users who do not wait
//! for each other.
//!
//! ```text
//! tlsload fresh   h1|h2 URL CONNECTIONS SECONDS         a connection with a full handshake for each request
//! tlsload resumed h1|h2 URL CONNECTIONS SECONDS         the same with resumed sessions
//! tlsload idle    h1|h2 URL CONNECTIONS SECONDS         one request on each, and then nothing
//! tlsload users   h1|h2 URL USERS       SECONDS RATE    each asks so often in a second, whatever the answers do
//! tlsload callers h1|h2 URL USERS       SECONDS RATE    the same with a connection and a full handshake each time
//! tlsload strangers h1|h2 URL RATE      SECONDS PATIENCE so many new ones a second, each with a connection and one request,
//!                                                       who leave when they have not been answered after so many seconds
//! tlsload browsers h1|h2 URL USERS      SECONDS RATE    users who go when they are told to, and ask once more over a new
//!                                                       connection where the old one ended before an answer began
//! ```
//!
//! It prints `REQUESTS requests, FAILED failed`, then for `resumed` how many connections were, for `browsers` how many
//! requests were made once more, and for users the
//! latency in microseconds: p50, p99, p99.9. That of a user counts from the moment the request was due, so that one who
//! had to wait for an answer before is no excuse. SIGINT ends the time.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "its output is its purpose")]

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Uri};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Handshakes at a time: a server may refuse more than it can take just now.
const HANDSHAKES: usize = 64;
const USAGE: &str =
    "usage: tlsload fresh|resumed|idle|users|callers|strangers|browsers h1|h2 URL COUNT SECONDS [RATE]";

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An answer that is not 200.
#[derive(Debug, thiserror::Error)]
#[error("status {0}")]
struct Refused(u16);

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Fresh,
    Resumed,
    Idle,
    Users { rate: f64, manners: Manners },
    Strangers { patience: Duration },
}

/// What a user does beside asking.
#[derive(Clone, Copy, PartialEq)]
enum Manners {
    /// Keeps its connection as long as that works.
    Keep,
    /// Has a new one for each request.
    Call,
    /// Goes when it is told to, and asks again what was not answered for that.
    Browse,
}

/// An end of the connection before the answer to a request began.
#[derive(Debug, thiserror::Error)]
#[error("before the response: {0}")]
struct Unanswered(Failure);

#[derive(Clone)]
struct Job {
    mode: Mode,
    http2: bool,
    uri: Uri,
    address: SocketAddr,
    begun: Instant,
    until: Instant,
    over: Arc<AtomicBool>,
    handshakes: Arc<Semaphore>,
    count: Arc<Count>,
}

#[derive(Default)]
struct Count {
    done: AtomicU64,
    failed: AtomicU64,
    resumed: AtomicU64,
    again: AtomicU64,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tlsload: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[String]) -> Result<(), Failure> {
    let [mode, version, url, count, seconds, rest @ ..] = words else { return Err(USAGE.into()) };
    let mode = match (mode.as_str(), rest) {
        ("fresh", []) => Mode::Fresh,
        ("resumed", []) => Mode::Resumed,
        ("idle", []) => Mode::Idle,
        ("users", [rate]) => Mode::Users { rate: rate.parse()?, manners: Manners::Keep },
        ("callers", [rate]) => Mode::Users { rate: rate.parse()?, manners: Manners::Call },
        ("strangers", [patience]) => {
            Mode::Strangers { patience: Duration::try_from_secs_f64(patience.parse()?)? }
        }
        ("browsers", [rate]) => Mode::Users { rate: rate.parse()?, manners: Manners::Browse },
        _ => return Err(USAGE.into()),
    };
    let uri: Uri = url.parse()?;
    let host = uri.host().ok_or("the address has no host")?;
    // IPv4 where there is a choice, which is where the proxies listen.
    let mut addresses = (host, uri.port_u16().unwrap_or(443)).to_socket_addrs()?;
    let address = addresses.find(SocketAddr::is_ipv4).ok_or("the host has no IPv4 address")?;
    let begun = Instant::now();
    let job = Job {
        mode,
        http2: version == "h2",
        uri,
        address,
        begun,
        until: begun + Duration::from_secs(seconds.parse()?),
        over: foregate_bench::over_by_signal()?,
        handshakes: Arc::new(Semaphore::new(HANDSHAKES)),
        count: Arc::default(),
    };
    let mut tasks = JoinSet::new();
    let users: u32 = count.parse()?;
    if let Mode::Strangers { patience } = mode {
        let latencies = strangers(&job, users, patience).await?;
        println!(
            "{} requests, {} failed",
            job.count.done.load(Ordering::Relaxed),
            job.count.failed.load(Ordering::Relaxed)
        );
        println!("{}", foregate_bench::percentiles(latencies));
        return Ok(());
    }
    for number in 0..users {
        tasks.spawn(user(job.clone(), f64::from(number) / f64::from(users)));
    }
    let mut latencies = Vec::new();
    while let Some(result) = tasks.join_next().await {
        match result? {
            Ok(mut its) => latencies.append(&mut its),
            Err(error) => {
                job.count.failed.fetch_add(1, Ordering::Relaxed);
                eprintln!("tlsload: {error}");
            }
        }
    }
    let number = |of: &AtomicU64| of.load(Ordering::Relaxed);
    println!("{} requests, {} failed", number(&job.count.done), number(&job.count.failed));
    if mode == Mode::Resumed {
        println!("{} resumed", number(&job.count.resumed));
    }
    if matches!(mode, Mode::Users { manners: Manners::Browse, .. }) {
        println!("{} again", number(&job.count.again));
    }
    if !latencies.is_empty() {
        println!("{}", foregate_bench::percentiles(latencies));
    }
    Ok(())
}

/// Those who come, ask once and go; how long those waited who were answered.
async fn strangers(job: &Job, rate: u32, patience: Duration) -> Result<Vec<Duration>, Failure> {
    let alpn: &[u8] = if job.http2 { b"h2" } else { b"http/1.1" };
    let tls = Arc::new(foregate_bench::tls_client(alpn, Resumption::disabled())?);
    let (interval, mut due) = (Duration::from_secs(1) / rate, job.begun);
    let (mut tasks, mut latencies) = (JoinSet::new(), Vec::new());
    while due < job.until && !job.over.load(Ordering::Relaxed) {
        tokio::time::sleep_until(due.into()).await;
        let (job, tls) = (job.clone(), tls.clone());
        tasks.spawn(async move {
            let visit = async {
                let mut link = Link::dial(&job, &tls).await?;
                let got = link.get(&job.uri).await;
                link.close().await;
                got
            };
            let got = tokio::time::timeout_at((due + patience).into(), visit).await;
            let got = got.unwrap_or_else(|_| Err("not in time".into()));
            let took = got.is_ok().then(|| due.elapsed());
            job.tally(got);
            took
        });
        while let Some(took) = tasks.try_join_next() {
            latencies.extend(took?);
        }
        due += interval;
    }
    while let Some(took) = tasks.join_next().await {
        latencies.extend(took?);
    }
    Ok(latencies)
}

/// What one connection after the other, or one user, does. `phase`: where in the first interval a user begins.
async fn user(job: Job, phase: f64) -> Result<Vec<Duration>, Failure> {
    let resumption = if job.mode == Mode::Resumed {
        // A session may be used once, so none is shared.
        Resumption::in_memory_sessions(8)
    } else {
        Resumption::disabled()
    };
    let alpn: &[u8] = if job.http2 { b"h2" } else { b"http/1.1" };
    let tls = Arc::new(foregate_bench::tls_client(alpn, resumption)?);
    let mut latencies = Vec::new();
    match job.mode {
        Mode::Fresh | Mode::Resumed => {
            while Instant::now() < job.until {
                let mut link = Link::open(&job, &tls).await?;
                job.tally(link.get(&job.uri).await);
                link.close().await;
            }
        }
        Mode::Idle => {
            let mut link = Link::open(&job, &tls).await?;
            job.tally(link.get(&job.uri).await);
            tokio::time::sleep_until(job.until.into()).await;
        }
        // They have no turns.
        Mode::Strangers { .. } => {}
        Mode::Users { rate, manners } => {
            let mut link = Link::open(&job, &tls).await?;
            let interval = Duration::try_from_secs_f64(1.0 / rate)?;
            // The first second belongs to the handshakes.
            let mut due = job.begun + Duration::from_secs(1) + interval.mul_f64(phase);
            while due < job.until && !job.over.load(Ordering::Relaxed) {
                tokio::time::sleep_until(due.into()).await;
                let mut got = link.get(&job.uri).await;
                if manners == Manners::Browse && got.as_ref().is_err_and(|error| error.is::<Unanswered>()) {
                    job.count.again.fetch_add(1, Ordering::Relaxed);
                    link = Link::open(&job, &tls).await?;
                    got = link.get(&job.uri).await;
                }
                if let Err(error) = &got
                    && manners == Manners::Browse
                {
                    eprintln!("tlsload: {error}");
                }
                // One that was turned away keeps its connection, as browsers do.
                let goes = manners == Manners::Call || link.was_told_to_go();
                if goes || got.as_ref().is_err_and(|error| !error.is::<Refused>()) {
                    std::mem::replace(&mut link, Link::open(&job, &tls).await?).close().await;
                }
                job.tally(got);
                latencies.push(due.elapsed());
                due += interval;
            }
        }
    }
    Ok(latencies)
}

impl Job {
    fn tally(&self, got: Result<(), Failure>) {
        let counter = if got.is_ok() { &self.count.done } else { &self.count.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A connection, whichever version it speaks.
enum Link {
    Http1 { stream: Box<TlsStream<TcpStream>>, input: BytesMut, close: bool },
    Http2 { sender: h2::client::SendRequest<Bytes> },
}

impl Link {
    async fn open(job: &Job, tls: &Arc<ClientConfig>) -> Result<Link, Failure> {
        let _turn = job.handshakes.acquire().await?;
        Link::dial(job, tls).await
    }

    async fn dial(job: &Job, tls: &Arc<ClientConfig>) -> Result<Link, Failure> {
        let stream = TcpStream::connect(job.address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("localhost")?;
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await?;
        if stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed) {
            job.count.resumed.fetch_add(1, Ordering::Relaxed);
        }
        if !job.http2 {
            return Ok(Link::Http1 { stream: Box::new(stream), input: BytesMut::new(), close: false });
        }
        let (sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(async move { connection.await.is_ok() });
        Ok(Link::Http2 { sender })
    }

    async fn get(&mut self, uri: &Uri) -> Result<(), Failure> {
        match self {
            Link::Http1 { stream, input, close } => http1(stream, input, close, uri).await,
            Link::Http2 { sender } => http2(sender, uri).await,
        }
    }

    fn was_told_to_go(&self) -> bool {
        matches!(self, Link::Http1 { close: true, .. })
    }

    async fn close(self) {
        if let Link::Http1 { mut stream, .. } = self {
            // What it says does not matter any more.
            _ = stream.shutdown().await;
        }
    }
}

async fn http1(
    stream: &mut TlsStream<TcpStream>,
    input: &mut BytesMut,
    close: &mut bool,
    uri: &Uri,
) -> Result<(), Failure> {
    let unanswered = |error: std::io::Error| Unanswered(error.into());
    let request = format!("GET {} HTTP/1.1\r\nhost: localhost\r\n\r\n", uri.path());
    stream.write_all(request.as_bytes()).await.map_err(unanswered)?;
    let mut refused = None;
    let mut left = loop {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut response = httparse::Response::new(&mut fields);
        if let httparse::Status::Complete(head) = response.parse(input)? {
            if response.code != Some(200) {
                refused = Some(Refused(response.code.unwrap_or(0)));
            }
            *close = response.headers.iter().any(|field| {
                field.name.eq_ignore_ascii_case("connection") && field.value.eq_ignore_ascii_case(b"close")
            });
            let named =
                response.headers.iter().find(|field| field.name.eq_ignore_ascii_case("content-length"));
            let length = named.ok_or("a response without Content-Length")?.value;
            let length: usize = std::str::from_utf8(length)?.parse()?;
            input.advance(head);
            break length;
        }
        let begun = !input.is_empty();
        match stream.read_buf(input).await {
            Ok(0) if begun => return Err("closed in the head of the response".into()),
            Ok(0) => return Err(Unanswered("closed".into()).into()),
            Ok(_) => {}
            Err(error) if begun => return Err(error.into()),
            Err(error) => return Err(unanswered(error).into()),
        }
    };
    loop {
        let taken = left.min(input.len());
        input.advance(taken);
        left -= taken;
        if left == 0 {
            return refused.map_or(Ok(()), |refused| Err(refused.into()));
        }
        if stream.read_buf(input).await? == 0 {
            return Err("closed in the response".into());
        }
    }
}

async fn http2(sender: &mut h2::client::SendRequest<Bytes>, uri: &Uri) -> Result<(), Failure> {
    let unanswered = |error: h2::Error| -> Failure {
        // It was told to go, or the connection has ended: a stream that is broken off alone is another matter.
        let is_connection = error.is_go_away() || error.is_io() || !error.is_reset();
        let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
        if is_connection || refused { Unanswered(error.into()).into() } else { error.into() }
    };
    let mut ready = sender.clone().ready().await.map_err(unanswered)?;
    let request = Request::get(uri.clone()).body(())?;
    let (response, _) = ready.send_request(request, true).map_err(unanswered)?;
    let response = response.await.map_err(unanswered)?;
    let mut refused = None;
    if response.status() != 200 {
        refused = Some(Refused(response.status().as_u16()));
    }
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
    }
    refused.map_or(Ok(()), |refused| Err(refused.into()))
}
