//! Is it well: active probes, which write the vitals of endpoints.
//!
//! Every endpoint of a pool with a health check is probed by one loop: soon after the start for the first
//! time, then every `interval`, 10 % more or less. A probe that has no answer within `timeout` has failed.
//! `rise` successes in a row bring an endpoint up that was down, `fall` failures in a row bring it down, and while
//! they are counted probes come five times as often. One
//! that nobody has probed yet counts as usable: its first success brings it up, and it takes `fall` failures
//! in a row, not one, to bring it down.
//!
//! VMs that have an agent are asked for their load too, those that fail more often than others are set aside, and a pool
//! that sleeps is woken.
//!
//! Each change of a state is logged once, with the reason. The crate knows nothing of requests: who is picked
//! is the business of `foregate_routing`, what a failed request means is not decided here.

mod agent;
mod dice;
mod probe;
mod standing;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod verdict;
mod wake;

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use foregate_routing::{Duty, Endpoint, HealthCheck, Pool, State};
use foregate_upstream::Transport;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::agent::Polling;
use crate::standing::Standing;

/// How often endpoints are compared: seldom enough for there to be something to compare, often enough to see it soon.
pub const COMPARE: Duration = Duration::from_secs(10);

/// Probes of all pools. Belongs to the control thread's local runtime, where [`follow`](Monitor::follow) spawns;
/// dropping it ends all probes and leaves every endpoint in the state it has.
#[derive(Debug)]
pub struct Monitor {
    /// By the endpoint's id.
    watches: HashMap<u64, Watch>,
    /// Likewise.
    agents: HashMap<u64, Polling>,
    /// All probes come through here.
    gate: Rc<Semaphore>,
    /// By the pool's name, those without a check too.
    standings: HashMap<Arc<str>, Rc<Standing>>,
}

impl Default for Monitor {
    fn default() -> Monitor {
        Monitor::new()
    }
}

impl Monitor {
    /// Probes nothing yet.
    #[must_use]
    pub fn new() -> Monitor {
        Monitor {
            watches: HashMap::new(),
            agents: HashMap::new(),
            gate: Rc::new(Semaphore::new(probe::AT_A_TIME)),
            standings: HashMap::new(),
        }
    }

    /// Probes exactly these pools from now on, each over its transport; name those without a check too, whose
    /// endpoints may have had one before.
    ///
    /// A probe goes on undisturbed, with all it has counted, where endpoint, check and transport (the very same
    /// `Arc`) are unchanged. With another check or transport it begins anew, from the state the endpoint is in.
    /// Where there is no check any more its endpoint becomes [`State::Unknown`].
    ///
    /// # Panics
    /// Outside a local runtime or task set.
    pub fn follow(&mut self, pools: impl IntoIterator<Item = (Arc<Pool>, Arc<Transport>)>) {
        let mut watches = std::mem::take(&mut self.watches);
        let mut agents = std::mem::take(&mut self.agents);
        let mut standings = std::mem::take(&mut self.standings);
        for (pool, transport) in pools {
            let known = self.standings.remove(&pool.name).or_else(|| standings.remove(&pool.name));
            let standing = known.unwrap_or_else(|| Rc::new(Standing::new(pool.clone(), transport.clone())));
            standing.follow(pool.clone(), transport.clone());
            if let Some(check) = &pool.health {
                for endpoint in pool.members().iter().map(|member| &member.endpoint) {
                    // An address may be written twice in a pool.
                    if self.watches.contains_key(&endpoint.id) {
                        continue;
                    }
                    let watch = match watches.remove(&endpoint.id) {
                        Some(watch) if watch.goes_on(check, &transport) => watch,
                        _ => Watch::start(endpoint, check, &transport, &standing, &self.gate),
                    };
                    self.watches.insert(endpoint.id, watch);
                }
            }
            if let Some(agent) = &pool.agent {
                for endpoint in pool.members().iter().map(|member| &member.endpoint) {
                    if self.agents.contains_key(&endpoint.id) {
                        continue;
                    }
                    let polling = match agents.remove(&endpoint.id) {
                        Some(polling) if polling.goes_on(agent) => polling,
                        _ => Polling::start(endpoint, agent, &standing, &self.gate),
                    };
                    self.agents.insert(endpoint.id, polling);
                }
            }
            self.standings.insert(pool.name.clone(), standing);
        }
        for watch in watches.into_values() {
            let standing = self.standings.get(&watch.endpoint.pool);
            watch.retire(standing.map(|standing| &**standing));
        }
        for polling in agents.into_values() {
            let standing = self.standings.get(polling.pool());
            polling.retire(standing.map(|standing| &**standing));
        }
        // Not only probes change what is left of a pool: so do members that come and go.
        for standing in self.standings.values() {
            standing.review();
        }
    }

    /// Probes an endpoint now, because requests to it wait for long; one that does not answer that either is set aside.
    /// Settles the doubt.
    ///
    /// # Panics
    /// Outside a local runtime or task set.
    pub fn doubt(&self, endpoint: Arc<Endpoint>) {
        let Some(standing) = self.standings.get(&endpoint.pool).cloned() else {
            endpoint.vitals.settle();
            return;
        };
        standing.doubt(endpoint);
    }

    /// Has a pool woken that has no usable VM, as its configuration says.
    ///
    /// # Panics
    /// Outside a local runtime or task set.
    pub fn wake(&self, pool: &Pool) {
        let standing = self.standings.get(&pool.name);
        match standing.and_then(|standing| Some((standing, standing.pool().wake.clone()?))) {
            Some((standing, wake)) => _ = tokio::task::spawn_local(wake::rouse(standing.clone(), wake)),
            None => pool.alarm().silence(),
        }
    }

    /// Whoever runs the gateway says what an endpoint is to do, whatever its agent says; `None`: nothing any more.
    pub fn instruct(&self, endpoint: &Endpoint, duty: Option<Duty>, reason: &str) {
        if let Some(standing) = self.standings.get(&endpoint.pool) {
            standing.instruct(endpoint, duty, &reason);
        }
    }

    /// Why an endpoint is as it is; none: nothing has happened to it.
    #[must_use]
    pub fn reason(&self, endpoint: &Endpoint) -> Option<String> {
        self.standings.get(&endpoint.pool)?.reason(endpoint)
    }

    /// Sets endpoints aside that fail more often than the others of their pool. Call it every [`COMPARE`].
    pub fn compare(&self) {
        self.standings.values().for_each(|standing| standing.compare());
    }
}

/// One endpoint's running probe; dropping it ends that.
#[derive(Debug)]
struct Watch {
    endpoint: Arc<Endpoint>,
    check: HealthCheck,
    transport: Arc<Transport>,
    task: AbortHandle,
}

impl Watch {
    fn start(
        endpoint: &Arc<Endpoint>,
        check: &HealthCheck,
        transport: &Arc<Transport>,
        standing: &Rc<Standing>,
        gate: &Rc<Semaphore>,
    ) -> Watch {
        let (endpoint, check, transport) = (endpoint.clone(), check.clone(), transport.clone());
        let (standing, gate) = (standing.clone(), gate.clone());
        let probing = probe::watch(endpoint.clone(), check.clone(), transport.clone(), standing, gate);
        let task = tokio::task::spawn_local(probing).abort_handle();
        Watch { endpoint, check, transport, task }
    }

    fn goes_on(&self, check: &HealthCheck, transport: &Arc<Transport>) -> bool {
        // It ends by itself only if it panicked; the next reload mends that.
        self.check == *check && Arc::ptr_eq(&self.transport, transport) && !self.task.is_finished()
    }

    /// Nobody probes the endpoint any more, whose pool may be gone too.
    fn retire(self, standing: Option<&Standing>) {
        self.task.abort();
        match standing {
            Some(standing) if self.endpoint.vitals.state() == State::Down && standing.has(&self.endpoint) => {
                standing.change(&self.endpoint, State::Unknown, &"it is probed no more");
            }
            _ => _ = self.endpoint.vitals.set_state(State::Unknown),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
