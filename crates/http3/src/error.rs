//! Why a stream or a connection ended before its time.

use quinn::{ConnectionError, ReadError, StoppedError, VarInt, WriteError};

use crate::codec::{Scope, Violation};

#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The peer broke a rule. The stream, or with [`Scope::Connection`] the connection, has been ended with
    /// the violation's code.
    #[error("the peer broke a rule: {0}")]
    Violation(#[from] Violation),
    /// The head is larger than we said we take. The stream can still be answered.
    #[error("the request's head is larger than announced")]
    TooLarge,
    /// The peer reset the stream or asked us to stop.
    #[error("the peer cancelled the stream with code {0}")]
    Cancelled(VarInt),
    /// Our side has ended the stream already.
    #[error("the stream is closed")]
    Closed,
    #[error(transparent)]
    Lost(ConnectionError),
}

impl Error {
    /// The peer is at fault, not the network and not its user.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        match self {
            Error::Violation(violation) => Some(*violation),
            _ => None,
        }
    }

    /// Ends what the violation ends for.
    pub(crate) fn raise(connection: &quinn::Connection, violation: Violation) -> Error {
        if violation.scope == Scope::Connection {
            connection.close(violation.code.into(), violation.reason.as_bytes());
        }
        Error::Violation(violation)
    }
}

impl From<ConnectionError> for Error {
    fn from(error: ConnectionError) -> Error {
        Error::Lost(error)
    }
}

impl From<ReadError> for Error {
    fn from(error: ReadError) -> Error {
        match error {
            ReadError::Reset(code) => Error::Cancelled(code),
            ReadError::ConnectionLost(error) => Error::Lost(error),
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Error::Closed
            }
        }
    }
}

impl From<WriteError> for Error {
    fn from(error: WriteError) -> Error {
        match error {
            WriteError::Stopped(code) => Error::Cancelled(code),
            WriteError::ConnectionLost(error) => Error::Lost(error),
            WriteError::ClosedStream | WriteError::ZeroRttRejected => Error::Closed,
        }
    }
}

impl From<StoppedError> for Error {
    fn from(error: StoppedError) -> Error {
        match error {
            StoppedError::ConnectionLost(error) => Error::Lost(error),
            StoppedError::ZeroRttRejected => Error::Closed,
        }
    }
}
