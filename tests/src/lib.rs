//! The harness of the black-box tests: origins (stand-ins for VMs), the gateway as a process, and
//! clients for every HTTP version.
//!
//! A scenario is about ten lines:
//!
//! ```text
//! let vm = origin().named("a").start().await;
//! let gw = gateway().site("shop.test", &vm).start().await;
//! for version in Version::ALL {
//!     let reply = gw.request(version, get("/").host("shop.test")).await;
//!     assert_eq!(reply.status, 200, "{version:?}");
//! }
//! gw.stop().await;
//! ```
//!
//! Nothing here knows the gateway's crates: what is not visible on a socket, on its standard output or
//! in its exit status is not tested here.
// The harness is test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// What failed is told on standard error, where the test runner shows it.
#![allow(clippy::print_stderr)]

mod certs;
mod client;
mod clients;
mod fields;
pub mod foreign;
pub mod frames;
mod gateway;
mod held;
pub mod http3;
mod origin;
mod pattern;
pub mod pebble;
mod ports;
mod process;
mod quic;
mod relay;
mod wire;

use std::{future::Future, time::Duration};

pub use certs::Authority;
pub use client::{
    ALPN_H1, ALPN_H2, Body, Client, Dial, Downloader, Error, Exchange, FrameSeen, Io, Reply, Request,
    Uploader, Version, delete, get, head, post, put, request,
};
pub use clients::{Certified, ClientAuthority, Identity, Visitor};
pub use fields::{Fields, latin1};
pub use gateway::{Builder as GatewayBuilder, Gateway, binary, check, copy_program, gateway};
pub use held::{Held, holding};
pub use origin::{Builder as OriginBuilder, Call, Delivery, Origin, Raw, Recorded, origin, raw};
pub use pattern::{Digest, block, digest_of};
pub use ports::{Lease, closed_port, lease};
pub use process::{Log, Process};
pub use quic::{Packet, first_packets, shakes_hands_over_quic};
pub use relay::{Datagram, Direction, Relay, Weather};
pub use wire::{Incoming, Reader, parse_response};

/// The longest a test waits for something that must happen, on a machine that is busy building.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Polls `check` every few milliseconds until it yields a value; panics with `what` after [`PATIENCE`].
///
/// This is the only way a test waits for another party: there is no fixed sleep to be too short.
pub async fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check() {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Like [`eventually`], for conditions that need the network.
pub async fn eventually_async<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(tokio::time::Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs `future` with a limit; panics with `what` when it takes longer than [`PATIENCE`].
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("took longer than {PATIENCE:?}: {what}"),
    }
}
