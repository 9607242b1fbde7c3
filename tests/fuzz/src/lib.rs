//! What strangers can send over HTTP/3 and HTTP/1.1, as fuzz targets: each takes any bytes and panics where a promise does
//! not hold.
//!
//! `scripts/fuzz` feeds them with what it finds leads on; `tests/seeds.rs` with the files it begins from, so
//! that every run of the tests shows that they still work. The files are written by `src/seeds.rs`.
// A broken promise should stop the engine where it is seen.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod connection;
mod frames;
mod http1;
mod input;
mod qpack;
pub mod seeds;
mod wire;

pub use connection::connection;
pub use frames::frames;
pub use http1::http1;
pub use qpack::qpack;
