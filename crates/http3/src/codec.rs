//! HTTP/3 as bytes, without any I/O: what a peer sent and what is wrong with it.

pub mod control;
pub mod frame;
pub mod head;
pub mod qpack;
pub mod request;
pub mod varint;

use std::fmt;

pub use qpack::Fields;

use crate::code::Code;

/// A rule a peer broke, and what ends for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    pub scope: Scope,
    pub code: Code,
    /// For people: a log line, and the reason in CONNECTION_CLOSE.
    pub reason: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Stream,
    Connection,
}

impl Violation {
    #[must_use]
    pub const fn stream(code: Code, reason: &'static str) -> Violation {
        Violation { scope: Scope::Stream, code, reason }
    }

    #[must_use]
    pub const fn connection(code: Code, reason: &'static str) -> Violation {
        Violation { scope: Scope::Connection, code, reason }
    }

    /// A message that breaks the rules of RFC 9114, section 4.1.2.
    #[must_use]
    pub const fn malformed(reason: &'static str) -> Violation {
        Violation::stream(Code::H3_MESSAGE_ERROR, reason)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.reason)
    }
}

impl std::error::Error for Violation {}
