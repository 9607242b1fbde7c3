//! Who the gateway is: certificates, the choice among them by SNI, the TLS configurations of TCP and QUIC that present
//! them, and where they come from if nobody puts them into files: an authority that speaks ACME. And who its clients are,
//! where a site asks them for certificates of theirs.

pub mod acme;
mod certificate;
mod clients;
mod facts;
mod identity;
mod look;
mod ocsp;
mod question;
mod server;
mod sessions;
mod store;
mod tickets;

pub use certificate::{Certificate, CertificateError};
pub use clients::{ClientAuth, ClientAuthError, ListFacts};
pub use facts::Facts;
pub use identity::Identity;
pub use look::{Look, look_at};
pub use ocsp::Stapler;
pub use server::TlsServer;
pub use store::CertificateStore;
pub use tickets::{ROTATION, TicketKey, Tickets};
