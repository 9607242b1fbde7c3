//! Sites: who is asked for.

use std::net::IpAddr;

use http::HeaderValue;

use crate::host::HostPattern;
use crate::route::{HeaderEdit, Matched, NotMatched, RequestView, Route, RouteSpec, RouteTable};

/// What a site is made of.
#[derive(Clone, Debug)]
pub struct SiteSpec {
    pub name: Box<str>,
    pub hosts: Vec<HostPattern>,
    /// The local addresses it exists on; none: on all.
    pub addresses: Option<Vec<IpAddr>>,
    pub http3: bool,
    /// Requests that come in 0-RTT are wanted.
    pub early_data: bool,
    /// Already decided: it is wanted, and there is a certificate.
    pub redirect_to_https: bool,
    /// The value of `Strict-Transport-Security`.
    pub hsts: Option<HeaderValue>,
    pub tls: TlsRules,
    /// For the answers that belong to no route of it.
    pub response_headers: Vec<HeaderEdit>,
    /// Its own action is the last of them, with the prefix `/`.
    pub routes: Vec<RouteSpec>,
}

/// What a TLS connection is held to: chosen by the name the client asks for. Sites with the same rules may share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TlsRules {
    pub min_version: TlsVersion,
    /// None: clients are not asked who they are.
    pub clients: Option<ClientRules>,
}

/// By whom clients must be certified. What it takes to find that out is elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientRules {
    /// A digest of everything that a certificate is judged by: other authorities or lists are other rules.
    pub digest: [u8; 32],
    /// Without a certificate nothing is answered.
    pub required: bool,
}

impl TlsRules {
    /// Nobody is asked for a certificate.
    #[must_use]
    pub fn open(min_version: TlsVersion) -> TlsRules {
        TlsRules { min_version, clients: None }
    }
}

/// A version of TLS, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

/// A site in a snapshot. The fields are those of [`SiteSpec`].
#[derive(Debug)]
pub struct Site {
    pub name: Box<str>,
    pub hosts: Box<[HostPattern]>,
    pub addresses: Option<Box<[IpAddr]>>,
    pub http3: bool,
    /// Wanted, and nothing asks for the client's address or certificate, which are not proven before the handshake is over.
    pub early_data: bool,
    pub redirect_to_https: bool,
    pub hsts: Option<HeaderValue>,
    pub tls: TlsRules,
    pub response_headers: Vec<HeaderEdit>,
    pub(crate) routes: RouteTable,
}

impl Site {
    /// The route that answers this request: exact paths first, then regular expressions in the order of the
    /// file, then the longest prefix; within one path the route with more conditions, then the order of the
    /// file. The first whose conditions hold wins.
    pub fn route<'s>(&'s self, view: &RequestView<'_>) -> Result<Matched<'s>, NotMatched> {
        self.routes.find(view)
    }

    /// In the order of the file.
    pub fn routes(&self) -> &[Route] {
        self.routes.routes()
    }
}
