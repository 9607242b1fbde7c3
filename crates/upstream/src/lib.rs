//! Talk to a VM: dial TCP, unix sockets and TLS, reuse connections, speak HTTP/1.1 and HTTP/2.
//!
//! The only HTTP client in the tree. It knows neither routes nor retries: it is given an endpoint and a
//! request, and says what came of it. Everything here belongs to one worker's thread.

mod client;
mod dial;
mod http1;
mod http2;
mod patience;
mod response;
mod stream;
mod transport;
mod upload;

pub use client::{Client, Link, Outgoing, SendError};
pub use transport::{Protocol, TlsSpec, Transport, TransportError, TransportSpec};
