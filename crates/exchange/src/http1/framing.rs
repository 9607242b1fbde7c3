//! Where the body that is being read ends.

use bytes::BytesMut;
use http_body::SizeHint;

use super::chunked::{Broken, Chunked, Piece};

/// A body's framing, and how far it has been read.
#[derive(Debug)]
pub enum Framing {
    None,
    /// So many bytes are left.
    Length(u64),
    Chunked(Chunked),
}

impl Framing {
    /// Whether the body has been read to its end.
    #[must_use]
    pub fn is_done(&self) -> bool {
        match self {
            Framing::None | Framing::Length(0) => true,
            Framing::Length(_) => false,
            Framing::Chunked(chunked) => chunked.is_done(),
        }
    }

    /// Takes the next piece of the body from the front of what has been read.
    ///
    /// # Errors
    /// The body breaks its framing.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<Piece, Broken> {
        match self {
            Framing::None | Framing::Length(0) => Ok(Piece::End),
            Framing::Length(_) if input.is_empty() => Ok(Piece::More),
            Framing::Length(left) => {
                let n = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= n as u64;
                Ok(Piece::Data(input.split_to(n).freeze()))
            }
            Framing::Chunked(chunked) => chunked.decode(input),
        }
    }

    /// What is left of the body.
    #[must_use]
    pub fn size_hint(&self) -> SizeHint {
        match self {
            Framing::None => SizeHint::with_exact(0),
            Framing::Length(left) => SizeHint::with_exact(*left),
            Framing::Chunked(_) => SizeHint::default(),
        }
    }
}
