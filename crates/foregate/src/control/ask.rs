//! What comes into the inbox of the control thread, and what is answered.

use foregate_routing::Duty;
use http::StatusCode;
use serde_json::Value;
use tokio::sync::oneshot;

use super::Terms;

/// What somebody asks of the gateway.
#[derive(Debug)]
pub(crate) enum Request {
    Status,
    Sites,
    Pools,
    Pool(String),
    Certificates,
    Workers,
    Connections,
    Config,
    History,
    Entry(u64),
    /// Of two entries; without them what is served, and the file.
    Diff(Option<u64>, Option<u64>),
    Validate(String),
    Reload(Terms),
    Put {
        text: String,
        save: bool,
        terms: Terms,
    },
    Rollback(Option<u64>),
    Confirm,
    /// Certificates as their files are now.
    Renew,
    Upgrade,
    Duty {
        pool: String,
        backend: String,
        duty: Option<Duty>,
    },
    Weight {
        pool: String,
        backend: String,
        weight: Option<u32>,
    },
}

impl Request {
    /// Things are not as they were once that is done.
    pub(super) fn changes(&self) -> bool {
        match self {
            Request::Reload(_)
            | Request::Put { .. }
            | Request::Rollback(_)
            | Request::Confirm
            | Request::Renew
            | Request::Upgrade
            | Request::Duty { .. }
            | Request::Weight { .. } => true,
            Request::Status
            | Request::Sites
            | Request::Pools
            | Request::Pool(_)
            | Request::Certificates
            | Request::Workers
            | Request::Connections
            | Request::Config
            | Request::History
            | Request::Entry(_)
            | Request::Diff(..)
            | Request::Validate(_) => false,
        }
    }
}

/// A request on its way.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) request: Request,
    /// Who asks, for the log and the history.
    pub(crate) by: String,
    /// `None`: nobody waits for it, the log is enough.
    pub(crate) reply: Option<oneshot::Sender<Reply>>,
}

/// What becomes of it.
pub(crate) type Reply = Result<Value, Refused>;

/// Why not, and what to do instead.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    /// The same may be taken a little later.
    pub(super) passes: bool,
}

impl Refused {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Refused {
        let passes = matches!(status, StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE);
        Refused { status, message: message.into(), passes }
    }

    /// It is not worth trying again.
    pub(super) fn for_good(self) -> Refused {
        Refused { passes: false, ..self }
    }
}
