//! What both sides of HTTP/1.1 share (RFC 9112): where a message's head and body end, read and written.
//!
//! Knows neither requests nor responses; the edge reads the ones and writes the others, and upstream does
//! the reverse.

mod chunked;
mod framing;
mod output;
mod search;
mod writer;

pub use chunked::{Broken, Chunked, Piece};
pub use framing::Framing;
pub use output::Output;
pub use search::{Search, TooLong};
pub use writer::{BodyWriter, Ending, announced, decimal, field};
