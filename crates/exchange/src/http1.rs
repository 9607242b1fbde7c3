//! HTTP/1.1 between bytes and what they mean (RFC 9112), without any I/O: where a message's head and body end, and
//! heads, read and written. The edge reads requests and writes responses, and upstream does the reverse.

mod chunked;
mod framing;
mod output;
pub mod request;
pub mod response;
mod search;
mod writer;

pub use chunked::{Broken, Chunked, Piece};
pub use framing::Framing;
pub use output::Output;
pub use search::{Search, TooLong};
pub use writer::{BodyWriter, Ending, announced, decimal, field};
