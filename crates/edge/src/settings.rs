//! What the gateway itself is told: where it listens, how long it waits and how much it takes.
//!
//! Compiled from the sections `[server]` and `[http3]` of the configuration. All defaults stand here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroUsize;
use std::time::Duration;

use ipnet::IpNet;

/// Settings of the gateway's own side. `None` in a time-out means "off".
#[derive(Clone, Debug)]
pub struct Settings {
    /// The public addresses all VMs share.
    pub addresses: Vec<IpAddr>,
    /// Ports for plain HTTP; empty means off.
    pub http: Vec<u16>,
    /// Ports for HTTPS on TCP and HTTP/3 on UDP; empty means off.
    pub https: Vec<u16>,
    /// Peers whose `X-Forwarded-*`, `Forwarded` and `X-Request-Id` are believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Data-plane threads; `None` is one per core.
    pub workers: Option<NonZeroUsize>,
    /// Length of each listener's accept queue.
    pub backlog: u32,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub http3: Http3,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            addresses: vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            http: vec![80],
            https: vec![443],
            trusted_proxies: Vec::new(),
            workers: None,
            backlog: 4096,
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            http3: Http3::default(),
        }
    }
}

impl Settings {
    /// Whether there is HTTP/3 at all.
    #[must_use]
    pub fn serves_http3(&self) -> bool {
        self.http3.enabled && !self.https.is_empty()
    }

    /// Whether a peer at this address may speak for others.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(&peer))
    }
}

/// How long the client's side may take. `None` is "off".
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// TLS and QUIC handshakes.
    pub handshake: Option<Duration>,
    /// From the first byte of a request head to its last.
    pub request_head: Option<Duration>,
    /// Between two reads of a request body.
    pub request_body: Option<Duration>,
    /// How long a connection may stay open without a request.
    pub keep_alive: Option<Duration>,
    /// How long work that runs may go on after SIGTERM.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            handshake: Some(Duration::from_secs(5)),
            request_head: Some(Duration::from_secs(10)),
            request_body: Some(Duration::from_secs(30)),
            keep_alive: Some(Duration::from_secs(75)),
            drain: Duration::from_secs(30),
        }
    }
}

/// How much the gateway takes from its clients.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Client connections of the whole process; `None` derives it from the open-file limit.
    pub connections: Option<usize>,
    /// Client connections of one IPv4 address or IPv6 /64; `None` is no limit.
    pub connections_per_ip: Option<u32>,
    /// Concurrent requests of one HTTP/2 or HTTP/3 connection.
    pub streams_per_connection: u32,
    /// Bytes of a request head.
    pub request_head: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections: None,
            connections_per_ip: None,
            streams_per_connection: 128,
            request_head: 32 * 1024,
        }
    }
}

/// HTTP/3 and its advertisement.
#[derive(Clone, Debug)]
pub struct Http3 {
    pub enabled: bool,
    /// Whether answers over HTTP/1.1 and HTTP/2 advertise HTTP/3.
    pub alt_svc: AltSvc,
    /// How long browsers may remember the advertisement.
    pub alt_svc_max_age: Duration,
    /// The port to advertise where a NAT maps another one than we listen on.
    pub alt_svc_port: Option<u16>,
    pub address_validation: AddressValidation,
    pub congestion: Congestion,
}

impl Default for Http3 {
    fn default() -> Http3 {
        Http3 {
            enabled: true,
            alt_svc: AltSvc::Auto,
            alt_svc_max_age: Duration::from_secs(3600),
            alt_svc_port: None,
            address_validation: AddressValidation::Auto,
            congestion: Congestion::Cubic,
        }
    }
}

/// When HTTP/3 is advertised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AltSvc {
    /// While the gateway's own probe is answered, and clients come.
    Auto,
    Always,
    Never,
}

/// When a QUIC client must prove its address with a Retry round trip (RFC 9000, section 8.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressValidation {
    /// While many handshakes are half open.
    Auto,
    Always,
    Never,
}

/// The congestion controller of QUIC connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Congestion {
    Cubic,
    Bbr,
}
