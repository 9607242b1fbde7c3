//! What becomes of a pool's endpoints, and what the log says of it: each change, and whether any endpoint is left, once.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt::Display;
use std::rc::Rc;
use std::sync::Arc;

use foregate_exchange::clock;
use foregate_routing::{Duty, Endpoint, Pool, State, Verdict};
use foregate_upstream::Transport;
use tokio::sync::Notify;

use crate::probe;

/// One pool, as the newest configuration has it. Outlives reloads, like the probes that report to it.
#[derive(Debug)]
pub(crate) struct Standing {
    pool: RefCell<Arc<Pool>>,
    transport: RefCell<Arc<Transport>>,
    exhausted: Cell<bool>,
    /// How many wait for the pool to wake.
    waking: Cell<usize>,
    stir: Notify,
    /// By the endpoint's id.
    said: RefCell<HashMap<u64, Said>>,
}

/// What is said of an endpoint, and why it is as it is.
#[derive(Debug, Default)]
struct Said {
    by_agent: Duty,
    by_operator: Option<Duty>,
    reason: Option<String>,
}

/// Has a pool's endpoints probed often, until dropped.
pub(crate) struct Waking<'s>(&'s Standing);

impl Drop for Waking<'_> {
    fn drop(&mut self) {
        self.0.waking.update(|others| others.saturating_sub(1));
    }
}

impl Standing {
    pub(crate) fn new(pool: Arc<Pool>, transport: Arc<Transport>) -> Standing {
        let (pool, transport) = (RefCell::new(pool), RefCell::new(transport));
        let (exhausted, waking) = (Cell::new(false), Cell::new(0));
        Standing { pool, transport, exhausted, waking, stir: Notify::new(), said: RefCell::default() }
    }

    /// From now on the pool is this one.
    pub(crate) fn follow(&self, pool: Arc<Pool>, transport: Arc<Transport>) {
        self.said.borrow_mut().retain(|id, _| pool.members().iter().any(|member| member.endpoint.id == *id));
        self.pool.replace(pool);
        self.transport.replace(transport);
    }

    pub(crate) fn pool(&self) -> Arc<Pool> {
        self.pool.borrow().clone()
    }

    pub(crate) fn transport(&self) -> Arc<Transport> {
        self.transport.borrow().clone()
    }

    /// Somebody waits for the pool to wake.
    pub(crate) fn waking(&self) -> Waking<'_> {
        self.waking.update(|others| others + 1);
        self.stir.notify_waiters();
        Waking(self)
    }

    pub(crate) fn is_waking(&self) -> bool {
        self.waking.get() > 0
    }

    /// Ready when somebody begins to wait for that.
    pub(crate) async fn stirred(&self) {
        self.stir.notified().await;
    }

    /// Probes an endpoint now, and sets it aside if it does not answer that either. Settles the doubt.
    pub(crate) fn doubt(self: Rc<Standing>, endpoint: Arc<Endpoint>) {
        tokio::task::spawn_local(async move {
            let (pool, transport, mark) = (self.pool(), self.transport(), endpoint.vitals.mark());
            let found = probe::once(&endpoint, pool.health.as_ref(), &transport).await;
            endpoint.vitals.settle();
            let (pool, address) = (&*endpoint.pool, &endpoint.address);
            match found {
                Ok(()) => tracing::debug!(pool, %address, "in doubt, it was probed, and answered"),
                // Somebody else was faster.
                Err(_) if endpoint.vitals.is_lost(mark) => {}
                Err(unwell) => self.set_aside(&endpoint, &unwell),
            }
        });
    }

    /// Compares the endpoints by what requests say of them.
    pub(crate) fn compare(&self) {
        let pool = self.pool();
        if let Some(deviation) = pool.compare(clock::now_nanos())
            && let Some(member) = pool.members().get(deviation.index)
        {
            let percent = |part: f64| format!("{:.0}%", part * 100.0);
            let (name, backend) = (&*pool.name, &*member.name);
            let (fails, others) = (percent(deviation.fails), percent(deviation.others_fail));
            match deviation.verdict {
                Verdict::SetAside(time) => tracing::warn!(
                    pool = name, backend, address = %member.endpoint.address, fails, others, ?time,
                    "backend is set aside: more of its requests fail than of the others'"
                ),
                Verdict::AllFail | Verdict::Restored => tracing::error!(
                    pool = name,
                    backend,
                    fails,
                    "every backend fails: those that were set aside take part again"
                ),
            }
        }
    }

    /// An endpoint's agent says what it is to do.
    pub(crate) fn order(&self, endpoint: &Endpoint, duty: Duty, reason: &dyn Display) {
        self.said.borrow_mut().entry(endpoint.id).or_default().by_agent = duty;
        self.put(endpoint, reason);
    }

    /// Whoever runs the gateway says what an endpoint is to do, or nothing any more.
    pub(crate) fn instruct(&self, endpoint: &Endpoint, duty: Option<Duty>, reason: &dyn Display) {
        self.said.borrow_mut().entry(endpoint.id).or_default().by_operator = duty;
        self.put(endpoint, reason);
    }

    /// Why the endpoint is as it is, as far as somebody has said or found out.
    pub(crate) fn reason(&self, endpoint: &Endpoint) -> Option<String> {
        self.said.borrow().get(&endpoint.id).and_then(|said| said.reason.clone())
    }

    fn note(&self, endpoint: &Endpoint, reason: &dyn Display) {
        self.said.borrow_mut().entry(endpoint.id).or_default().reason = Some(reason.to_string());
    }

    /// Sets what an endpoint is to do: what gives it less of what is said. Says so if that is new.
    fn put(&self, endpoint: &Endpoint, reason: &dyn Display) {
        let duty = {
            let said = self.said.borrow();
            let said = said.get(&endpoint.id);
            said.map_or(Duty::Work, |said| said.by_operator.unwrap_or_default().max(said.by_agent))
        };
        if endpoint.vitals.set_duty(duty, clock::now_nanos()) == duty {
            return;
        }
        self.note(endpoint, reason);
        let (pool, backend, address) = (&*endpoint.pool, self.name(endpoint), &endpoint.address);
        match duty {
            Duty::Work => tracing::info!(pool, backend, %address, %reason, "backend takes work"),
            Duty::Drain => {
                tracing::info!(pool, backend, %address, %reason, "backend drains: it gets no new work")
            }
            Duty::Off => tracing::warn!(pool, backend, %address, %reason, "backend is off: it gets nothing"),
        }
        self.review();
    }

    /// Sets an endpoint aside that answers neither requests nor a probe, if its pool can do without it.
    pub(crate) fn set_aside(&self, endpoint: &Endpoint, reason: &dyn Display) {
        let pool = self.pool();
        let Some(index) = pool.members().iter().position(|member| member.endpoint.id == endpoint.id) else {
            return;
        };
        let (name, backend, address) = (&*pool.name, self.name(endpoint), &endpoint.address);
        self.note(endpoint, reason);
        match pool.set_aside(index, clock::now_nanos()) {
            Some(Verdict::SetAside(time)) => tracing::warn!(
                pool = name, backend, %address, ?time, %reason,
                "backend is set aside: it answers neither requests nor a probe"
            ),
            Some(Verdict::AllFail) => tracing::error!(
                pool = name, backend, %reason,
                "every backend fails: those that were set aside take part again"
            ),
            Some(Verdict::Restored) | None => {
                tracing::warn!(pool = name, backend, %address, %reason, "backend answers neither requests nor a probe");
            }
        }
    }

    /// Sets an endpoint's state, and says so if it was another.
    pub(crate) fn change(&self, endpoint: &Endpoint, state: State, reason: &dyn Display) {
        let before = endpoint.vitals.set_state(state);
        if before == state {
            return;
        }
        self.note(endpoint, reason);
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
