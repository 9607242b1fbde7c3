//! Who is at the other end of a connection, and what it was shown.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foregate_certs::{Certificate, Identity};
use foregate_exchange::clock;
use foregate_exchange::head::CertificateFields;
use foregate_routing::{Site, TlsRules};
use http::HeaderValue;
use rustls_pki_types::CertificateDer;

use crate::Live;
use crate::limit::Permit;
use crate::listener::Listener;
use crate::terms::{Terms, named_site};

/// For how long it holds what was found out of a certificate: it may expire, and so may the list it does not stand in.
const VERDICT: Duration = Duration::from_secs(60);

/// The facts of one client connection that hold for all its requests, but that a QUIC client may move between
/// two of them.
pub(crate) struct Peer {
    /// Never a v4-mapped address: limits, routes and logs see IPv4 as IPv4.
    pub(crate) address: SocketAddr,
    /// Its IP address as fields say it.
    pub(crate) ip: HeaderValue,
    /// Where the client reached us.
    pub(crate) local: SocketAddr,
    pub(crate) tls: Option<Rc<TlsPeer>>,
    /// What it came by.
    pub(crate) listener: Rc<Listener>,
    /// Counts for where the connection began.
    _permit: Rc<Permit>,
}

/// What a TLS or QUIC client asked for and was shown.
pub(crate) struct TlsPeer {
    /// In lower case.
    pub(crate) sni: Option<Box<str>>,
    pub(crate) certificate: Arc<Certificate>,
    /// What the handshake was held to.
    pub(crate) rules: TlsRules,
    /// What the client has shown, now or in the session that is resumed; its own certificate is the first.
    chain: Vec<CertificateDer<'static>>,
    verdict: RefCell<Option<Verdict>>,
    /// Another connection would be held to other rules, which the site has now.
    outdated: Cell<bool>,
}

/// Who the client is by the rules with this digest, for as long as that holds.
struct Verdict {
    digest: [u8; 32],
    until: u64,
    standing: Standing,
}

/// What is known of a client.
#[derive(Clone)]
pub(crate) enum Standing {
    /// It has shown nothing.
    Nobody,
    Known(Rc<Known>),
    /// What it has shown is not good, or not any more.
    Refused,
}

/// A client that is certified.
pub(crate) struct Known {
    pub(crate) identity: Identity,
    pub(crate) fields: CertificateFields,
}

impl TlsPeer {
    /// None: there is no certificate for it, which no handshake gets past.
    pub(crate) fn new(terms: Terms, chain: Option<Vec<CertificateDer<'static>>>) -> Option<Rc<TlsPeer>> {
        Some(Rc::new(TlsPeer {
            sni: terms.sni,
            certificate: terms.certificate?,
            rules: terms.rules,
            chain: chain.unwrap_or_default(),
            verdict: RefCell::default(),
            outdated: Cell::new(false),
        }))
    }

    /// The site that was asked for in the handshake, as it is now.
    pub(crate) fn site<'l>(&self, live: &'l Live, local: IpAddr) -> Option<&'l Arc<Site>> {
        named_site(live, self.sni.as_deref(), local)
    }

    /// Another connection would be held to other rules, if the site has changed its own.
    pub(crate) fn heed(&self, own: Option<&Arc<Site>>) {
        if own.is_some_and(|own| own.tls != self.rules) {
            self.outdated.set(true);
        }
    }

    /// Who the client is by the present rules of this site, whatever was found out in the handshake: the session may be
    /// older than that, and the connection older than the rules. True beside it: that was found out just now.
    pub(crate) fn identify(&self, live: &Live, site: &Arc<Site>) -> (Standing, bool) {
        self.heed(Some(site));
        let Some(clients) = site.tls.clients.filter(|_| !self.chain.is_empty()) else {
            return (Standing::Nobody, false);
        };
        let (digest, now) = (clients.digest, clock::now_nanos());
        if let Some(verdict) = &*self.verdict.borrow()
            && verdict.digest == digest
            && now < verdict.until
        {
            return (verdict.standing.clone(), false);
        }
        let judge = live.clients.iter().find(|clients| clients.rules().digest == digest);
        let standing = match judge.map(|judge| judge.identify(&self.chain)) {
            Some(Ok(identity)) => Standing::Known(Rc::new(Known { fields: fields(&identity), identity })),
            Some(Err(error)) => {
                tracing::debug!(site = %site.name, %error, "a client's certificate is not good");
                Standing::Refused
            }
            None => Standing::Refused,
        };
        let until = now.saturating_add(VERDICT.as_nanos() as u64);
        self.verdict.replace(Some(Verdict { digest, until, standing: standing.clone() }));
        (standing, true)
    }
}

/// What a VM is told of a client.
fn fields(identity: &Identity) -> CertificateFields {
    // They are visible ASCII.
    let value = |text: &str| HeaderValue::from_str(text).ok().filter(|value| !value.is_empty());
    let Identity { subject, san, fingerprint } = identity;
    CertificateFields { subject: value(subject), san: value(san), fingerprint: value(fingerprint) }
}

impl Peer {
    pub(crate) fn new(
        address: SocketAddr,
        local: SocketAddr,
        tls: Option<Rc<TlsPeer>>,
        listener: Rc<Listener>,
        permit: Rc<Permit>,
    ) -> Peer {
        // An address is text that every field takes.
        let ip = HeaderValue::try_from(address.ip().to_string());
        let ip = ip.unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Peer { address, ip, local, tls, listener, _permit: permit }
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Whether it is to come by another connection, since this one is held to rules of yesterday.
    pub(crate) fn is_outdated(&self) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.outdated.get())
    }

    /// The same client at another address.
    pub(crate) fn at(&self, address: SocketAddr) -> Peer {
        let (tls, listener) = (self.tls.clone(), self.listener.clone());
        Peer::new(address, self.local, tls, listener, self._permit.clone())
    }
}

/// IPv4 as IPv4, also where a dual-stack socket saw it.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
