//! Who the gateway is: certificates, the choice among them by SNI, and the TLS configurations of TCP and
//! QUIC that present them.

mod certificate;
mod facts;
mod server;
mod sessions;
mod store;
mod tickets;

pub use certificate::{Certificate, CertificateError};
pub use facts::Facts;
pub(crate) use server::TlsServer;
pub use store::CertificateStore;
pub use tickets::{ROTATION, TicketKey, Tickets};
