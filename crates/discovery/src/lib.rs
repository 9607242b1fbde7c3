//! Who is there: finds the VMs of pools whose configuration does not name them, and says so when they change.
//!
//! Each pool is looked up by a task of its own. What it finds goes into the one inbox of whoever publishes snapshots. A
//! look-up that fails changes nothing: what was found last holds, however long that takes.

mod dns;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foregate_routing::{Address, MemberSpec};
use hickory_resolver::TokioResolver;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::AbortHandle;

pub use dns::{Dns, Query};

/// The VMs of a pool, all of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub pool: Arc<str>,
    /// Sorted by address, each once.
    pub members: Vec<Target>,
}

/// One VM.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub address: std::net::SocketAddr,
    pub weight: u32,
    pub tier: u32,
}

impl Target {
    /// As a member of its pool, named by its address.
    #[must_use]
    pub fn member(&self) -> MemberSpec {
        MemberSpec {
            name: self.address.to_string().into(),
            address: Address::Ip(self.address),
            weight: self.weight,
            tier: self.tier,
            max_requests: None,
        }
    }
}

/// Looks up pools. Belongs to the control thread's local runtime, where [`follow`](Discovery::follow) spawns; dropping it
/// ends that.
#[derive(Debug)]
pub struct Discovery {
    resolver: TokioResolver,
    inbox: UnboundedSender<Found>,
    watches: HashMap<Arc<str>, (Dns, AbortHandle)>,
}

/// Why there is no resolver.
#[derive(Debug)]
pub struct NoResolver(String);

impl std::fmt::Display for NoResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the system's DNS configuration (/etc/resolv.conf) cannot be used: {}", self.0)
    }
}

impl std::error::Error for NoResolver {}

impl Discovery {
    /// Asks the DNS servers that the system names. Looks up nothing yet.
    ///
    /// # Errors
    /// The system's configuration cannot be read.
    pub fn new(inbox: UnboundedSender<Found>) -> Result<Discovery, NoResolver> {
        let failed = |error: hickory_resolver::net::NetError| NoResolver(error.to_string());
        let mut builder = TokioResolver::builder_tokio().map_err(failed)?;
        dns::tune(builder.options_mut());
        Ok(Discovery::with(builder.build().map_err(failed)?, inbox))
    }

    fn with(resolver: TokioResolver, inbox: UnboundedSender<Found>) -> Discovery {
        Discovery { resolver, inbox, watches: HashMap::new() }
    }

    /// Looks up exactly these pools from now on; what is unchanged goes on undisturbed.
    ///
    /// # Panics
    /// Outside a local runtime or task set.
    pub fn follow(&mut self, pools: impl IntoIterator<Item = (Arc<str>, Dns)>) {
        let mut before = std::mem::take(&mut self.watches);
        for (pool, dns) in pools {
            let watch = match before.remove(&pool) {
                Some((known, task)) if known == dns && !task.is_finished() => (known, task),
                other => {
                    if let Some((_, task)) = other {
                        task.abort();
                    }
                    let watching =
                        watch(self.resolver.clone(), pool.clone(), dns.clone(), self.inbox.clone());
                    (dns, tokio::task::spawn_local(watching).abort_handle())
                }
            };
            self.watches.insert(pool, watch);
        }
        before.into_values().for_each(|(_, task)| task.abort());
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.watches.values().for_each(|(_, task)| task.abort());
    }
}

/// Who fails to be looked up is looked up again so soon.
const AGAIN: Duration = Duration::from_secs(5);
/// However short a name is valid.
const LEAST: Duration = Duration::from_secs(1);
/// Who is missing from so many answers, one after the other, is gone. Servers that know many VMs tell of some at a time.
const MISSING: u32 = 3;

/// Those found, with how many answers each is missing from.
#[derive(Debug, Default)]
struct Known(Vec<(Target, u32)>);

impl Known {
    /// Takes in an answer. Whoever is missing from it stays for now; whether there is one.
    fn take_in(&mut self, answer: &[Target]) -> bool {
        for (target, missing) in &mut self.0 {
            match answer.iter().find(|found| found.address == target.address) {
                Some(found) => (*target, *missing) = (found.clone(), 0),
                None => *missing += 1,
            }
        }
        self.0.retain(|(_, missing)| *missing < MISSING);
        let is_new = |found: &&Target| self.0.iter().all(|(known, _)| known.address != found.address);
        let new: Vec<_> = answer.iter().filter(is_new).map(|found| (found.clone(), 0)).collect();
        self.0.extend(new);
        self.0.sort();
        self.0.iter().any(|(_, missing)| *missing > 0)
    }

    fn members(&self) -> Vec<Target> {
        self.0.iter().map(|(target, _)| target.clone()).collect()
    }
}

/// Looks up one pool again and again. Ends when nobody listens any more.
async fn watch(resolver: TokioResolver, pool: Arc<str>, dns: Dns, inbox: UnboundedSender<Found>) {
    let mut last: Option<Vec<Target>> = None;
    let mut known = Known::default();
    let mut failing = false;
    loop {
        let pause = match dns.look_up(&resolver).await {
            Ok((answer, valid)) => {
                let some_are_missing = known.take_in(&answer);
                let members = known.members();
                if std::mem::take(&mut failing) {
                    tracing::info!(pool = &*pool, query = %dns.query, "the backends of the pool are found again");
                }
                if last.as_ref() != Some(&members) {
                    tell(&pool, last.as_deref().unwrap_or_default(), &members);
                    if inbox.send(Found { pool: pool.clone(), members: members.clone() }).is_err() {
                        return;
                    }
                    last = Some(members);
                }
                // Whether they are gone is to be known soon.
                let valid = if some_are_missing { LEAST } else { valid };
                valid.clamp(LEAST.min(dns.interval), dns.interval)
            }
            Err(reason) => {
                let (pool, query) = (&*pool, &dns.query);
                match (std::mem::replace(&mut failing, true), &last) {
                    (true, _) => {}
                    (false, None) => {
                        tracing::error!(pool, %query, reason, "the backends of the pool are not found")
                    }
                    (false, Some(_)) => tracing::warn!(
                        pool, %query, reason,
                        "the backends of the pool cannot be looked up: those found last go on"
                    ),
                }
                AGAIN.min(dns.interval)
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Says who came and who went.
fn tell(pool: &str, before: &[Target], now: &[Target]) {
    let missing = |from: &[Target], of: &[Target]| {
        let all = from.iter().filter(|one| of.iter().all(|other| other.address != one.address));
        all.map(|target| target.address.to_string()).collect::<Vec<_>>().join(", ")
    };
    let (came, went) = (missing(now, before), missing(before, now));
    match (came.as_str(), went.as_str()) {
        ("", "") => tracing::info!(pool, "weights or tiers of the pool's backends have changed"),
        (came, "") => tracing::info!(pool, came, "backends found"),
        ("", went) => tracing::info!(pool, went, "backends are no longer found"),
        (came, went) => tracing::info!(pool, came, went, "other backends found"),
    }
}
