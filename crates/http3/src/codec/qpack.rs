//! QPACK (RFC 9204) without a dynamic table: field sections to [`Fields`] and back.
//!
//! The gateway announces a table capacity of 0, so a peer may refer to the static table alone and every
//! field section stands for itself: no stream ever waits for another.

mod decode;
mod encode;
mod huffman;
mod instructions;
mod integer;
mod table;

pub use decode::{Fields, Pseudos, decode};
pub use encode::Encoder;
pub use instructions::{DecoderStream, EncoderStream};
pub use table::Pseudo;

/// Why a field section was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("an integer is too large")]
    Integer,
    #[error("a string is not valid Huffman code")]
    Huffman,
    #[error("a field section ends within a field line")]
    Truncated,
    #[error("there is no such entry in the static table")]
    StaticIndex,
    #[error("a reference to the dynamic table, whose announced capacity is 0")]
    Dynamic,
    #[error("the base is negative")]
    Base,
    /// The section can be read, but is larger than was announced (RFC 9114, section 4.2.2).
    #[error("the field section is larger than SETTINGS_MAX_FIELD_SECTION_SIZE")]
    TooLarge,
    /// The section can be read, but no HTTP message has it (RFC 9114, section 4.1.2).
    #[error("{0}")]
    Malformed(&'static str),
}
