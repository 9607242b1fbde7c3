//! What flows between a client and a VM, the same for every HTTP version: bodies, failures, the hygiene
//! of heads, time limits, and tunnels.
//!
//! The crate opens nothing and decides nothing; it knows neither routes nor connections.

mod body;
pub mod clock;
pub mod deadline;
mod failure;
pub mod head;
pub mod http1;
pub mod reading;
pub mod sparing;
pub mod tunnel;

pub use body::Body;
pub use failure::{Failure, Kind, Side};
pub use tunnel::Tunnel;
