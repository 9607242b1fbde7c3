//! What the log says of a pool: each change of an endpoint's state, and of whether any is left, once.

use std::cell::{Cell, RefCell};
use std::fmt::Display;
use std::sync::Arc;

use foregate_routing::{Endpoint, Pool, State};

/// One pool, as the newest configuration has it. Outlives reloads, like the probes that report to it.
#[derive(Debug)]
pub(crate) struct Standing {
    pool: RefCell<Arc<Pool>>,
    exhausted: Cell<bool>,
}

impl Standing {
    pub(crate) fn new(pool: Arc<Pool>) -> Standing {
        Standing { pool: RefCell::new(pool), exhausted: Cell::new(false) }
    }

    /// From now on the pool is this one.
    pub(crate) fn follow(&self, pool: Arc<Pool>) {
        self.pool.replace(pool);
    }

    /// Sets an endpoint's state, and says so if it was another.
    pub(crate) fn change(&self, endpoint: &Endpoint, state: State, reason: &dyn Display) {
        let before = endpoint.vitals.set_state(state);
        if before == state {
            return;
        }
        let pool = &*endpoint.pool;
        let backend = self.name(endpoint);
        let address = &endpoint.address;
        match state {
            // The first verdict confirms what was assumed; a start of a thousand VMs is not a thousand news.
            State::Up if before == State::Unknown => {
                tracing::debug!(pool, backend, %address, %reason, "backend is up");
            }
            State::Up => tracing::info!(pool, backend, %address, %reason, "backend is up"),
            State::Down => tracing::warn!(pool, backend, %address, %reason, "backend is down"),
            State::Unknown => tracing::info!(pool, backend, %address, %reason, "backend counts as usable"),
        }
        self.review();
    }

    /// Says so if the last usable endpoint has gone, or one is back.
    pub(crate) fn review(&self) {
        let pool = self.pool.borrow();
        // A pool without members has lost none.
        let exhausted = !pool.members().is_empty() && !pool.any_usable();
        if self.exhausted.replace(exhausted) == exhausted {
            return;
        }
        let name = &*pool.name;
        if exhausted {
            tracing::error!(pool = name, "pool has no usable backend left");
        } else {
            tracing::info!(pool = name, "pool has a usable backend again");
        }
    }

    pub(crate) fn has(&self, endpoint: &Endpoint) -> bool {
        self.pool.borrow().members().iter().any(|member| member.endpoint.id == endpoint.id)
    }

    /// What the operator calls it; its address, which is the default name, where the pool has it no more.
    fn name(&self, endpoint: &Endpoint) -> String {
        let pool = self.pool.borrow();
        let member = pool.members().iter().find(|member| member.endpoint.id == endpoint.id);
        member.map_or_else(|| endpoint.address.to_string(), |member| member.name.to_string())
    }
}
