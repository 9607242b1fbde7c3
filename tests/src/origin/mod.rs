//! Origins: what stands in for VMs. Each records what arrives and answers from closures.

mod call;
mod h3;
mod raw;
mod serve;

use std::{
    future::Future,
    net::Ipv4Addr,
    path::PathBuf,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tokio::{sync::watch, task::JoinHandle};

pub use self::call::Call;
pub use self::raw::{Raw, raw};
use crate::{
    certs::Authority,
    eventually,
    fields::Fields,
    ports::{Lease, lease},
};

/// How far the body of a request has come at the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Nobody has read to its end yet.
    Reading,
    /// All of it came, with a proper end.
    Complete,
    /// It broke off, for this reason: the gateway closed or reset, or the framing was wrong.
    Broken(String),
}

/// A request as a VM received it.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Which of the connections to this VM it came on, counted from 0.
    pub connection: usize,
    pub http2: bool,
    pub http3: bool,
    pub method: String,
    /// The bytes of the target (`:path` for HTTP/2).
    pub target: String,
    /// The `Host` field (`:authority` for HTTP/2).
    pub host: String,
    pub fields: Fields,
    /// At most the first 64 KiB of the body.
    pub body: Bytes,
    pub length: u64,
    /// SHA-256 of the whole body, once it is complete.
    pub digest: String,
    pub trailers: Fields,
    pub delivery: Delivery,
}

pub(crate) type Answering<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
pub(crate) type Handler = Arc<dyn for<'a> Fn(&'a mut Call) -> Answering<'a> + Send + Sync>;

pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) routes: Vec<(String, Handler)>,
    pub(crate) http2: bool,
    pub(crate) requests: Mutex<Vec<Recorded>>,
    /// How many of `requests` are not shown any more.
    forgotten: AtomicUsize,
    pub(crate) wire: Mutex<Vec<Vec<u8>>>,
    pub(crate) faults: Mutex<Vec<String>>,
    pub(crate) accepted: AtomicUsize,
    pub(crate) open: Arc<AtomicUsize>,
    /// Changes when the connections are to end in good order.
    pub(crate) goodbye: watch::Sender<()>,
}

/// Begins an ordinary HTTP/1.1 origin that answers 200 with its name.
pub fn origin() -> Builder {
    Builder {
        name: "vm".to_owned(),
        routes: Vec::new(),
        http2: false,
        place: Place::Tcp(Ipv4Addr::LOCALHOST),
        tls: None,
    }
}

enum Place {
    Tcp(Ipv4Addr),
    Quic,
    Unix(PathBuf),
}

/// An origin before it listens.
pub struct Builder {
    name: String,
    routes: Vec<(String, Handler)>,
    http2: bool,
    place: Place,
    tls: Option<(String, bool)>,
}

impl Builder {
    /// The value of `x-vm` in every answer.
    #[must_use]
    pub fn named(mut self, name: &str) -> Builder {
        name.clone_into(&mut self.name);
        self
    }

    /// HTTP/2: with prior knowledge, or by ALPN with `tls`.
    #[must_use]
    pub fn http2(mut self) -> Builder {
        self.http2 = true;
        self
    }

    /// HTTP/3, with a certificate of the test authority; `client_auth` as for `tls`.
    #[must_use]
    pub fn http3(mut self, name: &str, client_auth: bool) -> Builder {
        self.place = Place::Quic;
        self.tls(name, client_auth)
    }

    /// TLS with a certificate of the test authority; with `client_auth` clients must show one too.
    #[must_use]
    pub fn tls(mut self, name: &str, client_auth: bool) -> Builder {
        self.tls = Some((name.to_owned(), client_auth));
        self
    }

    /// Listens on another address of this machine, as a VM has one of its own: `127.0.0.2` and so on.
    #[must_use]
    pub fn at(mut self, ip: [u8; 4]) -> Builder {
        self.place = Place::Tcp(ip.into());
        self
    }

    /// Listens on a Unix socket instead of a TCP port.
    #[must_use]
    pub fn unix(mut self, path: PathBuf) -> Builder {
        self.place = Place::Unix(path);
        self
    }

    /// Answers targets that begin with `prefix` by this closure; the first prefix that fits wins.
    #[must_use]
    pub fn on<F>(mut self, prefix: &str, handler: F) -> Builder
    where
        F: for<'a> Fn(&'a mut Call) -> Answering<'a> + Send + Sync + 'static,
    {
        self.routes.push((prefix.to_owned(), Arc::new(handler)));
        self
    }

    pub async fn start(self) -> Origin {
        let shared = Arc::new(Shared {
            name: self.name,
            routes: self.routes,
            http2: self.http2,
            requests: Mutex::default(),
            forgotten: AtomicUsize::new(0),
            wire: Mutex::default(),
            faults: Mutex::default(),
            accepted: AtomicUsize::new(0),
            open: Arc::default(),
            goodbye: watch::Sender::new(()),
        });
        let (place, lease) = match self.place {
            Place::Tcp(ip) => {
                let lease = lease();
                (serve::Place::Tcp((ip, lease.port).into()), Some(lease))
            }
            Place::Quic => {
                let lease = lease();
                (serve::Place::Quic(lease.port), Some(lease))
            }
            Place::Unix(path) => (serve::Place::Unix(path), None),
        };
        let alpn: &[&[u8]] = match (&place, self.http2) {
            (serve::Place::Quic(_), _) => &[b"h3"],
            (_, true) => &[b"h2"],
            (_, false) => &[b"http/1.1"],
        };
        let tls = self.tls.map(|(name, auth)| Arc::new(Authority::shared().server(&[&name], alpn, auth)));
        let mut vm = Origin { shared, place, tls, lease, task: None };
        vm.up().await;
        vm
    }
}

/// A listening origin. When dropped it checks that nothing doubtful ever came on the wire.
pub struct Origin {
    shared: Arc<Shared>,
    place: serve::Place,
    tls: Option<Arc<rustls::ServerConfig>>,
    lease: Option<Lease>,
    task: Option<JoinHandle<()>>,
}

impl Origin {
    /// What a configuration writes to reach it: `127.0.0.1:1234`, or with a scheme.
    pub fn address(&self) -> String {
        match &self.place {
            serve::Place::Tcp(address) => address.to_string(),
            serve::Place::Quic(port) => format!("127.0.0.1:{port}"),
            serve::Place::Unix(path) => format!("unix:{}", path.display()),
        }
    }

    pub fn port(&self) -> u16 {
        self.lease.as_ref().expect("an origin with a port").port
    }

    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Everything received so far, in order of arrival.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.requests.lock().unwrap()[self.shared.forgotten.load(Ordering::SeqCst)..].to_vec()
    }

    /// Forgets what was received.
    pub fn forget(&self) {
        let requests = self.shared.requests.lock().unwrap();
        self.shared.forgotten.store(requests.len(), Ordering::SeqCst);
    }

    /// The only request so far; panics if there is none or another.
    pub fn only(&self) -> Recorded {
        let requests = self.requests();
        assert_eq!(requests.len(), 1, "requests at {}: {requests:#?}", self.shared.name);
        requests.into_iter().next().unwrap()
    }

    /// Waits for the first request that satisfies `which`.
    pub async fn saw(&self, what: &str, which: impl Fn(&Recorded) -> bool) -> Recorded {
        eventually(what, || self.requests().into_iter().find(|r| which(r))).await
    }

    /// The first 256 KiB of every connection, as they came.
    pub fn wire(&self) -> Vec<Vec<u8>> {
        self.shared.wire.lock().unwrap().clone()
    }

    /// How many connections were ever accepted.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Takes the faults found on the wire, which dropping the origin would otherwise report.
    pub fn take_faults(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.faults.lock().unwrap())
    }

    /// Stops listening and cuts every connection, as a VM that is switched off.
    pub async fn down(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }

    /// Ends the connections there are in good order, as a VM that is about to stop (HTTP/3).
    pub fn goodbye(&self) {
        self.shared.goodbye.send_replace(());
    }

    /// Listens (again) at the same address.
    pub async fn up(&mut self) {
        assert!(self.task.is_none(), "{} is up already", self.shared.name);
        if let serve::Place::Quic(port) = self.place {
            let endpoint = h3::bind(port, self.tls.clone().expect("QUIC has TLS")).await;
            self.task = Some(tokio::spawn(h3::accept(endpoint, self.shared.clone())));
            return;
        }
        let listener = self.place.bind().await;
        self.task = Some(tokio::spawn(serve::accept(listener, self.tls.clone(), self.shared.clone())));
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
        if !std::thread::panicking() {
            let faults = self.take_faults();
            assert!(faults.is_empty(), "doubtful bytes came to VM {}: {faults:#?}", self.shared.name);
        }
    }
}
