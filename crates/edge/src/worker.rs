//! One data-plane thread's own: its snapshot, its connections to VMs, its counters, its dice.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use foregate_certs::TlsServer;
use foregate_certs::acme::Challenges;
use foregate_exchange::sparing::Sparing;
use foregate_routing::{Held, Reader};
use foregate_upstream::Client;
use http::{HeaderValue, StatusCode};

use crate::Live;
use crate::advertise::{Advertising, Saying};
use crate::diagnostics::Diagnostics;
use crate::gateway::Shared;
use crate::limit::Connections;
use crate::listener::Listener;
use crate::partings::Partings;
use crate::peer::Peer;
use crate::pressure::Pressure;
use crate::quic::Entrance;
use crate::settings::AltSvc;
use crate::streams::Turns;
use crate::waits::Waits;

/// How rustls says that a client's certificate is missing, or not good. Over QUIC its words are all there is.
const OF_THE_CLIENT: [&str; 3] =
    ["peer sent no certificates", "invalid peer certificate", "invalid certificate revocation list"];

/// Belongs to its thread; everything that serves a request holds it by `Rc`.
pub(crate) struct Worker {
    pub(crate) client: Client,
    pub(crate) connections: Arc<Connections>,
    pub(crate) pressure: Arc<Pressure>,
    pub(crate) advertising: Arc<Advertising>,
    pub(crate) diagnostics: Diagnostics,
    /// What authorities ask for.
    pub(crate) challenges: Arc<Challenges>,
    pub(crate) turns: Rc<Turns>,
    pub(crate) waits: Rc<Waits>,
    pub(crate) partings: Rc<Partings>,
    reader: RefCell<Reader<Live>>,
    prepared: RefCell<Rc<Prepared>>,
    /// Those of which something goes on.
    pub(crate) listeners: RefCell<Vec<Rc<Listener>>>,
    /// The ports of HTTP/3 among them.
    pub(crate) entrances: RefCell<Vec<Rc<Entrance>>>,
    dice: Cell<u64>,
    /// Clients that wait for a certificate to be made.
    pub(crate) demanding: Cell<usize>,
    /// Requests that were answered, and those of them with a 5xx.
    answers: Cell<(u64, u64)>,
    said: Sparing,
}

/// A snapshot with what a worker derives from it once.
pub(crate) struct Prepared {
    live: Held<Live>,
    pub(crate) tls: Arc<TlsServer>,
    /// Some site takes requests in 0-RTT.
    pub(crate) early_data: bool,
    /// The advertisement of HTTP/3 for each HTTPS port, where there is something to advertise.
    alt_svc: Vec<(u16, Option<HeaderValue>)>,
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
        let may = http3.enabled && http3.alt_svc != AltSvc::Never;
        for port in &live.settings.https {
            let advertised = http3.alt_svc_port.unwrap_or(*port);
            let text = format!("h3=\":{advertised}\"; ma={}", http3.alt_svc_max_age.as_secs());
            alt_svc.push((*port, may.then(|| HeaderValue::from_str(&text).ok()).flatten()));
        }
        let early_data = http3.enabled && live.routing.sites().iter().any(|site| site.early_data);
        Ok(Prepared {
            live: live.clone(),
            tls: Arc::new(TlsServer::new(&live.certificates, &live.clients, diagnostics.keys.as_ref())?),
            early_data,
            alt_svc,
            advertising: advertising.clone(),
        })
    }

    /// For those that are not of this thread.
    pub(crate) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// What this client is told of HTTP/3.
    pub(crate) fn alt_svc(&self, peer: &Peer) -> Option<HeaderValue> {
        let (_, value) = self.alt_svc.iter().find(|(port, _)| *port == peer.local.port())?;
        match self.advertising.saying() {
            Saying::Nothing => None,
            Saying::Clear => Some(HeaderValue::from_static("clear")),
            Saying::Come => {
                let value = value.clone()?;
                self.advertising.tell(peer.address.ip());
                Some(value)
            }
        }
    }
}

impl Worker {
    pub(crate) fn new(shared: Shared) -> Result<Rc<Worker>, rustls::Error> {
        let Shared { live, connections, pressure, advertising, diagnostics, concerns, .. } = shared;
        let mut reader = live.reader();
        let prepared = Rc::new(Prepared::new(reader.current(), &advertising, &diagnostics)?);
        Ok(Rc::new(Worker {
            said: Sparing::default(),
            demanding: Cell::new(0),
            answers: Cell::new((0, 0)),
            client: Client::default(),
            connections,
            pressure,
            advertising,
            diagnostics,
            challenges: Challenges::shared(),
            turns: Rc::default(),
            waits: Rc::new(Waits::new(concerns)),
            partings: Rc::default(),
            reader: RefCell::new(reader),
            prepared: RefCell::new(prepared),
            listeners: RefCell::default(),
            entrances: RefCell::default(),
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

    /// Requests and tunnels under way.
    pub(crate) fn running(&self) -> usize {
        self.listeners.borrow().iter().map(|listener| listener.running()).sum()
    }

    /// A request is answered.
    pub(crate) fn count(&self, status: StatusCode) {
        self.answers.update(|(all, failed)| (all + 1, failed + u64::from(status.is_server_error())));
    }

    pub(crate) fn answers(&self) -> (u64, u64) {
        self.answers.get()
    }

    /// Whether one more line about what some stranger sent may be written: a flood must not fill the log.
    pub(crate) fn may_log(&self) -> bool {
        self.said.may_say()
    }

    /// A handshake has come to nothing. Where that is for the client's certificate somebody will ask why.
    pub(crate) fn handshake_failed(&self, peer: SocketAddr, kind: &str, error: &dyn Display) {
        let error = error.to_string();
        if OF_THE_CLIENT.iter().any(|words| error.contains(words)) && self.may_log() {
            tracing::info!(%peer, %error, "refused: the client has no certificate that is good here");
        } else {
            tracing::debug!(%peer, %error, "{kind} handshake failed");
        }
    }

    /// Nobody has had the time to let this client in.
    pub(crate) fn turned_away(&self, peer: SocketAddr) {
        if self.may_log() {
            tracing::warn!(%peer, "connection closed: more come than can be let in, and the newest are first");
        }
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
