//! Talk to a VM: dial TCP, unix sockets, TLS and QUIC, reuse connections, speak HTTP/1.1, HTTP/2 and HTTP/3.
//!
//! The only HTTP client in the tree. It knows neither routes nor retries: it is given an endpoint and a
//! request, and says what came of it. Everything here belongs to one worker's thread.

mod client;
mod dial;
mod http1;
mod http2;
mod http3;
mod patience;
mod replay;
mod response;
mod stream;
mod transport;
mod upload;

pub use client::{Client, Link, Outgoing, SendError};
pub use transport::{Protocol, TlsSpec, Transport, TransportError, TransportSpec};
