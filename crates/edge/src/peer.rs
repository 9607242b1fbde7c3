//! Who is at the other end of a connection, and what it was shown.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use foregate_routing::TlsVersion;

use crate::limit::Permit;
use crate::tls::Certificate;

/// The facts of one client connection that hold for all its requests, but that a QUIC client may move between
/// two of them.
pub(crate) struct Peer {
    /// Never a v4-mapped address: limits, routes and logs see IPv4 as IPv4.
    pub(crate) address: SocketAddr,
    /// Where the client reached us.
    pub(crate) local: SocketAddr,
    pub(crate) tls: Option<TlsPeer>,
    /// Counts for where the connection began.
    pub(crate) _permit: Rc<Permit>,
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
    pub(crate) fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// The same client at another address.
    pub(crate) fn at(&self, address: SocketAddr) -> Peer {
        Peer { address, local: self.local, tls: self.tls.clone(), _permit: self._permit.clone() }
    }
}

/// IPv4 as IPv4, also where a dual-stack socket saw it.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
