//! HTTP/3 over quinn's streams, server side (RFC 9114, 9204, 9218 and 9220).
//!
//! Owns what is HTTP/3 about a QUIC connection: its streams, frames, fields, priorities and goodbyes. It
//! accepts no connections, answers no requests and sets no time limits: it is handed a connection, gives out
//! requests, and dropping what it gave out cancels them. Nothing here is `Send`: a connection belongs to one
//! thread.
//!
//! What a peer can make a connection hold is bounded: the head of each stream by
//! [`Settings::max_field_section_size`](codec::control::Settings), bodies by QUIC's windows, control frames and
//! priorities by constants beside them.

pub mod codec;

mod code;
mod connection;
mod error;
mod priority;
mod recv;
mod send;
mod tunnel;
mod turns;
mod uni;

pub use code::Code;
pub use codec::control::Settings;
pub use codec::head::Head;
pub use connection::{Connection, Incoming};
pub use error::Error;
pub use priority::Priority;
pub use recv::RecvStream;
pub use send::SendStream;
pub use tunnel::Tunnel;
