//! What can go wrong with an exchange, said once: from it follow the status, whose side
//! it was on, and the word in the log.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use http::StatusCode;

/// Who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Upstream,
}

/// What went wrong, and at which stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The client closed or reset before the exchange was over.
    ClientGone,
    /// The client's body breaks its framing.
    ClientBody,
    /// The client paused for too long within its body.
    ClientBodyTimeout,
    /// The client's body is longer than the route takes.
    ClientBodyTooLarge,
    /// The VM's host name has no address.
    Resolve,
    /// No connection to the VM: refused, unreachable.
    Connect,
    ConnectTimeout,
    /// The TLS handshake with the VM failed.
    Tls,
    /// The VM closed or reset before its response head was whole.
    Reset,
    /// No response head in time.
    HeadTimeout,
    /// What the VM sent is not HTTP.
    BadResponse,
    /// The VM's body ended early or broke its framing.
    Truncated,
    /// The VM paused for too long within its body.
    BodyTimeout,
}

impl Kind {
    #[must_use]
    pub fn side(self) -> Side {
        match self {
            Kind::ClientGone | Kind::ClientBody | Kind::ClientBodyTimeout | Kind::ClientBodyTooLarge => {
                Side::Client
            }
            _ => Side::Upstream,
        }
    }

    /// The status for a client that has seen no response head yet.
    #[must_use]
    pub fn status(self) -> StatusCode {
        match self {
            Kind::ClientGone | Kind::ClientBody => StatusCode::BAD_REQUEST,
            Kind::ClientBodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Kind::ClientBodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Kind::ConnectTimeout | Kind::HeadTimeout | Kind::BodyTimeout => StatusCode::GATEWAY_TIMEOUT,
            Kind::Resolve | Kind::Connect | Kind::Tls | Kind::Reset | Kind::BadResponse | Kind::Truncated => {
                StatusCode::BAD_GATEWAY
            }
        }
    }

    /// One word for logs and metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Kind::ClientGone => "client_gone",
            Kind::ClientBody => "client_body",
            Kind::ClientBodyTimeout => "client_body_timeout",
            Kind::ClientBodyTooLarge => "client_body_too_large",
            Kind::Resolve => "resolve",
            Kind::Connect => "connect",
            Kind::ConnectTimeout => "connect_timeout",
            Kind::Tls => "tls",
            Kind::Reset => "reset",
            Kind::HeadTimeout => "head_timeout",
            Kind::BadResponse => "bad_response",
            Kind::Truncated => "truncated",
            Kind::BodyTimeout => "body_timeout",
        }
    }
}

/// A failed exchange. Cheap to clone, so that both directions of a body can report the same one.
#[derive(Clone, Debug)]
pub struct Failure {
    kind: Kind,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl Failure {
    #[must_use]
    pub fn new(kind: Kind) -> Failure {
        Failure { kind, source: None }
    }

    #[must_use]
    pub fn because(kind: Kind, source: impl Into<Box<dyn Error + Send + Sync>>) -> Failure {
        Failure { kind, source: Some(Arc::from(source.into())) }
    }

    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The failure behind a library's error, where one of our bodies made it.
    #[must_use]
    pub fn within(error: &(dyn Error + 'static)) -> Option<Failure> {
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(failure) = error.downcast_ref::<Failure>() {
                return Some(failure.clone());
            }
            next = error.source();
        }
        None
    }
}

impl From<Kind> for Failure {
    fn from(kind: Kind) -> Failure {
        Failure::new(kind)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.kind {
            Kind::ClientGone => "the client closed the connection",
            Kind::ClientBody => "the client's body is malformed",
            Kind::ClientBodyTimeout => "the client paused for too long within its body",
            Kind::ClientBodyTooLarge => "the client's body is too large",
            Kind::Resolve => "the backend's name has no address",
            Kind::Connect => "no connection to the backend",
            Kind::ConnectTimeout => "connecting to the backend took too long",
            Kind::Tls => "the TLS handshake with the backend failed",
            Kind::Reset => "the backend closed the connection without an answer",
            Kind::HeadTimeout => "the backend did not answer in time",
            Kind::BadResponse => "the backend's answer is not valid HTTP",
            Kind::Truncated => "the backend's body ended early",
            Kind::BodyTimeout => "the backend paused for too long within its body",
        };
        f.write_str(text)?;
        // The chain behind it, on one line: it goes to a log.
        let mut next: Option<&(dyn Error + 'static)> =
            self.source.as_deref().map(|source| source as &(dyn Error + 'static));
        while let Some(error) = next {
            write!(f, ": {error}")?;
            next = error.source();
        }
        Ok(())
    }
}

impl Error for Failure {}
