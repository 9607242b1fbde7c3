//! Who is at the other end of a connection, and what it was shown.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use foregate_certs::Certificate;
use foregate_routing::TlsVersion;
use http::HeaderValue;

use crate::limit::Permit;
use crate::listener::Listener;

/// The facts of one client connection that hold for all its requests, but that a QUIC client may move between
/// two of them.
pub(crate) struct Peer {
    /// Never a v4-mapped address: limits, routes and logs see IPv4 as IPv4.
    pub(crate) address: SocketAddr,
    /// Its IP address as fields say it.
    pub(crate) ip: HeaderValue,
    /// Where the client reached us.
    pub(crate) local: SocketAddr,
    pub(crate) tls: Option<TlsPeer>,
    /// What it came by.
    pub(crate) listener: Rc<Listener>,
    /// Counts for where the connection began.
    _permit: Rc<Permit>,
}

/// What a TLS or QUIC client asked for and was shown.
#[derive(Clone)]
pub(crate) struct TlsPeer {
    /// In lower case.
    pub(crate) sni: Option<Box<str>>,
    pub(crate) certificate: Arc<Certificate>,
    /// The floor the handshake was held to.
    pub(crate) floor: TlsVersion,
}

impl Peer {
    pub(crate) fn new(
        address: SocketAddr,
        local: SocketAddr,
        tls: Option<TlsPeer>,
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
