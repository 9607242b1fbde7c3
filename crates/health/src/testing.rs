//! What the tests of this crate share: VMs of a few lines, pools, and the log.

use std::cell::{Cell, RefCell};
use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use foregate_routing::{Address, HealthCheck, MemberSpec, Pool, PoolSpec, Probe, Snapshot, SnapshotBuilder};
use foregate_upstream::{Protocol, Transport, TransportSpec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tracing::subscriber::DefaultGuard;

/// What a VM does with one request.
#[derive(Clone)]
pub(crate) enum Answer {
    Say(String),
    /// Begins, and never ends.
    Begin(String),
    Hang,
    /// Closes the connection without a word.
    Close,
}

pub(crate) fn status(status: u16) -> Answer {
    body(status, "")
}

pub(crate) fn body(status: u16, text: &str) -> Answer {
    Answer::Say(format!("HTTP/1.1 {status} Status\r\ncontent-length: {}\r\n\r\n{text}", text.len()))
}

/// An HTTP/1.1 server that answers its n-th request, counted from 0 over all connections, as told.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    seen: Rc<RefCell<Vec<String>>>,
    connections: Rc<Cell<usize>>,
}

impl Origin {
    pub(crate) async fn start(answer: impl Fn(usize) -> Answer + 'static) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, connections) = (Rc::new(RefCell::default()), Rc::new(Cell::new(0)));
        let origin = Origin { address, seen: seen.clone(), connections: connections.clone() };
        let answer = Rc::new(answer);
        tokio::task::spawn_local(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                connections.set(connections.get() + 1);
                tokio::task::spawn_local(serve(stream, seen.clone(), answer.clone()));
            }
        });
        origin
    }

    /// The heads of all requests so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.borrow().clone()
    }

    pub(crate) fn requests(&self) -> usize {
        self.seen.borrow().len()
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.get()
    }
}

async fn serve(mut stream: TcpStream, seen: Rc<RefCell<Vec<String>>>, answer: Rc<impl Fn(usize) -> Answer>) {
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        seen.borrow_mut().push(String::from_utf8(std::mem::take(&mut head)).unwrap());
        let number = seen.borrow().len() - 1;
        match answer(number) {
            Answer::Say(text) => _ = stream.write_all(text.as_bytes()).await,
            Answer::Begin(text) => {
                _ = stream.write_all(text.as_bytes()).await;
                std::future::pending().await
            }
            Answer::Hang => std::future::pending().await,
            Answer::Close => return,
        }
    }
}

/// A port that takes no more connections, and refuses none: its queue is full.
pub(crate) struct Full {
    pub(crate) address: SocketAddr,
    _listener: TcpListener,
    _waiting: std::net::TcpStream,
}

pub(crate) fn full() -> Full {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let waiting = std::net::TcpStream::connect(address).unwrap();
    Full { address, _listener: listener, _waiting: waiting }
}

/// Waits for what other tasks bring about.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

pub(crate) fn http(path: &str) -> Probe {
    Probe::Http { path: path.into(), status: vec![200..=399], host: None, contains: None }
}

/// Fast, but with a time-out that a busy machine keeps.
pub(crate) fn check(probe: Probe, rise: u32, fall: u32) -> HealthCheck {
    let (interval, timeout) = (Duration::from_millis(10), Duration::from_secs(10));
    HealthCheck { probe, interval, timeout, rise, fall }
}

/// Members are named `vm0`, `vm1` and so on.
pub(crate) fn pool(name: &str, health: Option<HealthCheck>, addresses: &[SocketAddr]) -> PoolSpec {
    let member = |(index, address): (usize, &SocketAddr)| MemberSpec {
        name: format!("vm{index}").into(),
        address: Address::Ip(*address),
        weight: 1,
        tier: 0,
        max_requests: None,
    };
    PoolSpec { health, ..PoolSpec::new(name, addresses.iter().enumerate().map(member).collect()) }
}

pub(crate) fn snapshot(previous: Option<&Snapshot>, pools: impl IntoIterator<Item = PoolSpec>) -> Snapshot {
    let mut builder = SnapshotBuilder::new(previous);
    for pool in pools {
        builder.add_pool(pool);
    }
    builder.build()
}

/// All pools of a snapshot over one transport.
pub(crate) fn over(snapshot: &Snapshot, transport: &Arc<Transport>) -> Vec<(Arc<Pool>, Arc<Transport>)> {
    snapshot.pools().iter().map(|pool| (pool.clone(), transport.clone())).collect()
}

pub(crate) fn transport(protocol: Protocol) -> Arc<Transport> {
    let spec = TransportSpec { protocol, tls: None, connect_timeout: None, keep_alive: None };
    Arc::new(Transport::new(spec).unwrap())
}

/// What this thread logs at info and above, for as long as it lives.
pub(crate) struct Log {
    text: Arc<Mutex<Vec<u8>>>,
    _guard: DefaultGuard,
}

impl Log {
    pub(crate) fn capture() -> Log {
        let text = Arc::new(Mutex::new(Vec::new()));
        let writer = text.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .with_writer(move || Writer(writer.clone()))
            .finish();
        Log { text, _guard: tracing::subscriber::set_default(subscriber) }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let text = self.text.lock().unwrap();
        std::str::from_utf8(&text).unwrap().lines().map(|line| line.trim().to_owned()).collect()
    }
}

struct Writer(Arc<Mutex<Vec<u8>>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
