//! Who should answer a request: hosts, paths and conditions, pools and their balancers, endpoints and
//! their vitals, and the immutable snapshot that holds all of it.
//!
//! The crate is pure. It opens no socket, reads no clock and draws no random number: the caller hands in
//! the time and the dice. It knows nothing of connections, bodies or configuration files.
//!
//! The way in: a control thread fills a [`SnapshotBuilder`] from specifications ([`SiteSpec`],
//! [`PoolSpec`]), which re-uses the endpoints of the snapshot before it, and publishes the result through
//! a [`Publisher`]. A worker reads it through a [`Reader`], finds a [`Site`] by host, a [`Matched`] route
//! by path, and asks a [`Pool`] to [`pick`](Pool::pick).

mod alarm;
mod balance;
mod circuit;
mod cookie;
mod dice;
mod duty;
mod endpoint;
mod host;
mod pace;
mod path;
mod pool;
mod publish;
mod query;
mod queue;
mod retry;
mod route;
mod share;
mod site;
mod snapshot;
mod split;
mod tally;
mod template;
mod when;

pub use alarm::{Alarm, Sleep};
pub use balance::{Balance, UnknownBalance};
pub use circuit::{Entry, Mark, Outlier};
pub use duty::Duty;
pub use endpoint::{Address, Endpoint, InFlight, Memory, State, Vitals};
pub use host::{HostError, HostPattern, normalise_host, parent_of};
pub use path::{PathError, PathPattern, normalise_path};
pub use pool::{
    Agent, Deviation, HashOn, HealthCheck, Member, MemberSpec, Pick, Pool, PoolSpec, Probe, Secret, Sticky,
    Verdict, Wake,
};
pub use publish::{Held, Publisher, Reader};
pub use queue::{QueueSpec, Waiting};
pub use retry::{Cause, Hedge, Repetition, Retry};
pub use route::{
    Action, ActionSpec, Captures, HeaderEdit, Matched, NotMatched, Policy, RequestView, Respond, Rewrite,
    Route, RouteSpec, RouteTimeouts, Shadowed, UpstreamHost,
};
pub use site::{ClientRules, Site, SiteSpec, TlsRules, TlsVersion};
pub use snapshot::{HostMatch, PoolId, Snapshot, SnapshotBuilder};
pub use split::{Split, SplitOn};
pub use template::{ClientCert, Template, TemplateError, Variables};
pub use when::{Condition, TextMatch, When};
