//! Serve: workers, listeners, TLS, HTTP/1.1, HTTP/2, HTTP/3 and the proxy page.
//!
//! A request's way through this crate: `thread` accepts on a worker's own socket, `accept` (or
//! `quic`) finds out what is spoken, `h1`, `h2` and `h3` turn bytes into `Request<Body>`, and
//! `proxy` has it answered.

mod accept;
mod advertise;
mod answer;
mod demand;
mod diagnostics;
mod door;
mod drain;
mod gateway;
mod h1;
mod h2;
mod h3;
mod limit;
mod limited;
mod listen;
mod listener;
mod memory;
mod partings;
mod peer;
mod pressure;
mod proxy;
pub mod quic;
pub mod settings;
mod streams;
mod terms;
mod thread;
mod unsent;
mod waits;
mod websocket;
mod worker;

use std::sync::Arc;

use foregate_certs::{CertificateStore, ClientAuth};
use foregate_exchange::deadline;
use foregate_routing::{Endpoint, Pool, Snapshot};
use foregate_upstream::Transport;

pub use diagnostics::{Diagnostics, Qlog};
pub use gateway::{Change, Gateway, Heritage, StartError};
pub use listen::{BindError, Handed, Kind, Listening};
pub use settings::Settings;

/// What a worker has seen and cannot look after: it is for whoever probes.
#[derive(Debug)]
pub enum Concern {
    /// The VM lets requests wait for long: look at it, and settle the doubt.
    Doubt(Arc<Endpoint>),
    /// Requests wait for a VM, and none of this pool is usable: have it woken, and silence its alarm.
    Wake(Arc<Pool>),
}

/// Everything that changes rarely, published whole: workers read it with one atomic load.
#[derive(Debug)]
pub struct Live {
    /// Who answers what.
    pub routing: Snapshot,
    /// How each pool's VMs are spoken to; the index is `PoolId::index`.
    pub transports: Vec<Arc<Transport>>,
    pub certificates: Arc<CertificateStore>,
    /// Whatever sites hold their clients' certificates to.
    pub clients: Vec<Arc<ClientAuth>>,
    /// For names that only the site for all hosts knows, certificates may be made when they are asked for.
    pub on_demand: bool,
    pub settings: Arc<Settings>,
}
