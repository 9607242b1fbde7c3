//! One data-plane thread's own: its snapshot, its connections to VMs, its counters, its dice.

use std::cell::{Cell, RefCell};
use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use foregate_exchange::clock;
use foregate_routing::{Held, Publisher, Reader};
use foregate_upstream::Client;
use http::HeaderValue;
use tokio::sync::mpsc::UnboundedSender;

use crate::advertise::{Advertising, Saying};
use crate::diagnostics::Diagnostics;
use crate::drain::Drain;
use crate::limit::Connections;
use crate::partings::Partings;
use crate::peer::Peer;
use crate::pressure::Pressure;
use crate::settings::AltSvc;
use crate::streams::Turns;
use crate::tls::TlsServer;
use crate::waits::Waits;
use crate::{Concern, Live};

/// What strangers can make a worker write to its log.
const LINES_PER_SECOND: u32 = 10;

/// Belongs to its thread; everything that serves a request holds it by `Rc`.
pub(crate) struct Worker {
    pub(crate) client: Client,
    pub(crate) drain: Drain,
    pub(crate) connections: Arc<Connections>,
    pub(crate) pressure: Arc<Pressure>,
    pub(crate) advertising: Arc<Advertising>,
    pub(crate) diagnostics: Diagnostics,
    pub(crate) turns: Rc<Turns>,
    pub(crate) waits: Rc<Waits>,
    pub(crate) partings: Rc<Partings>,
    reader: RefCell<Reader<Live>>,
    prepared: RefCell<Rc<Prepared>>,
    /// Requests and tunnels under way.
    running: Cell<usize>,
    /// Client connections of this worker.
    open: Cell<usize>,
    dice: Cell<u64>,
    /// The second in which lines about strangers were last written, and how many.
    said: Cell<(u64, u32)>,
}

/// A snapshot with what a worker derives from it once.
pub(crate) struct Prepared {
    live: Held<Live>,
    pub(crate) tls: TlsServer,
    /// The advertisement of HTTP/3 for each HTTPS port, where it may be made.
    alt_svc: Vec<(u16, HeaderValue)>,
    advertising: Arc<Advertising>,
}

impl Deref for Prepared {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

impl Prepared {
    fn new(
        live: &Held<Live>,
        advertising: &Arc<Advertising>,
        diagnostics: &Diagnostics,
    ) -> Result<Prepared, rustls::Error> {
        let http3 = &live.settings.http3;
        let mut alt_svc = Vec::new();
        if http3.enabled && http3.alt_svc != AltSvc::Never {
            for port in &live.settings.https {
                let advertised = http3.alt_svc_port.unwrap_or(*port);
                let text = format!("h3=\":{advertised}\"; ma={}", http3.alt_svc_max_age.as_secs());
                if let Ok(value) = HeaderValue::from_str(&text) {
                    alt_svc.push((*port, value));
                }
            }
        }
        let early_data = http3.enabled && live.routing.sites().iter().any(|site| site.early_data);
        Ok(Prepared {
            live: live.clone(),
            tls: TlsServer::new(&live.certificates, early_data, diagnostics.keys.as_ref())?,
            alt_svc,
            advertising: advertising.clone(),
        })
    }

    /// What this client is told of HTTP/3.
    pub(crate) fn alt_svc(&self, peer: &Peer) -> Option<HeaderValue> {
        let (_, value) = self.alt_svc.iter().find(|(port, _)| *port == peer.local.port())?;
        match self.advertising.saying() {
            Saying::Nothing => None,
            Saying::Clear => Some(HeaderValue::from_static("clear")),
            Saying::Come => {
                self.advertising.tell(peer.address.ip());
                Some(value.clone())
            }
        }
    }
}

impl Worker {
    pub(crate) fn new(
        live: &Publisher<Live>,
        connections: Arc<Connections>,
        pressure: Arc<Pressure>,
        advertising: Arc<Advertising>,
        diagnostics: Diagnostics,
        concerns: UnboundedSender<Concern>,
    ) -> Result<Rc<Worker>, rustls::Error> {
        let mut reader = live.reader();
        let prepared = Rc::new(Prepared::new(reader.current(), &advertising, &diagnostics)?);
        Ok(Rc::new(Worker {
            said: Cell::new((0, 0)),
            client: Client::default(),
            drain: Drain::new(),
            connections,
            pressure,
            advertising,
            diagnostics,
            turns: Rc::default(),
            waits: Rc::new(Waits::new(concerns)),
            partings: Rc::default(),
            reader: RefCell::new(reader),
            prepared: RefCell::new(prepared),
            running: Cell::new(0),
            open: Cell::new(0),
            // Not for secrets: it spreads load and names requests. The state must not be zero.
            dice: Cell::new(RandomState::new().hash_one(std::thread::current().id()) | 1),
        }))
    }

    /// The newest snapshot. Hold it for as long as one request.
    pub(crate) fn current(&self) -> Rc<Prepared> {
        let mut reader = self.reader.borrow_mut();
        let live = reader.current();
        let mut prepared = self.prepared.borrow_mut();
        if !Rc::ptr_eq(live, &prepared.live) {
            match Prepared::new(live, &self.advertising, &self.diagnostics) {
                Ok(next) => *prepared = Rc::new(next),
                // The provider refused its own defaults; what worked before goes on.
                Err(error) => tracing::error!(%error, "the new TLS configuration cannot be used"),
            }
        }
        prepared.clone()
    }

    /// Counts a request for as long as the guard lives.
    pub(crate) fn begin(self: &Rc<Worker>) -> Counted {
        Counted::new(self, |worker| &worker.running)
    }

    /// Counts a connection for as long as the guard lives.
    pub(crate) fn connected(self: &Rc<Worker>) -> Counted {
        Counted::new(self, |worker| &worker.open)
    }

    pub(crate) fn running(&self) -> usize {
        self.running.get()
    }

    pub(crate) fn open(&self) -> usize {
        self.open.get()
    }

    /// Whether one more line about what some stranger sent may be written: a flood must not fill the log.
    pub(crate) fn may_log(&self) -> bool {
        let second = clock::now_nanos() / 1_000_000_000;
        let (of, lines) = self.said.get();
        let lines = if of == second { lines + 1 } else { 1 };
        self.said.set((second, lines));
        lines <= LINES_PER_SECOND
    }

    /// A random number (xorshift64*).
    pub(crate) fn roll(&self) -> u64 {
        let mut x = self.dice.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.dice.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A name for a request: 32 hexadecimal digits.
    pub(crate) fn request_id(&self) -> HeaderValue {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut id = [b'0'; 32];
        for half in id.chunks_exact_mut(16) {
            let mut bits = self.roll();
            for digit in half {
                bits = bits.rotate_left(4);
                *digit = DIGITS.get((bits & 15) as usize).copied().unwrap_or(b'0');
            }
        }
        // Digits cannot be refused.
        HeaderValue::from_bytes(&id).unwrap_or_else(|_| HeaderValue::from_static(""))
    }
}

/// One more, until dropped.
pub(crate) struct Counted {
    worker: Rc<Worker>,
    counter: fn(&Worker) -> &Cell<usize>,
}

impl Counted {
    fn new(worker: &Rc<Worker>, counter: fn(&Worker) -> &Cell<usize>) -> Counted {
        let cell = counter(worker);
        cell.set(cell.get() + 1);
        Counted { worker: worker.clone(), counter }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let cell = (self.counter)(&self.worker);
        cell.set(cell.get().saturating_sub(1));
    }
}
