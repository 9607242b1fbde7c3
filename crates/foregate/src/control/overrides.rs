//! What an operator has said of backends while the gateway runs. It holds over reloads, until it is cleared or the process
//! ends: at its start the file is the truth.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use foregate_edge::Live;
use foregate_routing::{Duty, Endpoint, Member, Pool};
use http::StatusCode;
use serde_json::{Value, json};

use super::{Control, Refused, Reply, done};
use crate::upgrade::Said;

/// By pool and backend.
#[derive(Debug, Default)]
pub(crate) struct Overrides(BTreeMap<(String, String), Override>);

/// Of one backend; never empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct Override {
    pub(crate) duty: Option<Duty>,
    pub(crate) weight: Option<u32>,
    /// Who said so last.
    by: String,
}

impl Overrides {
    pub(crate) fn weight(&self, pool: &str, backend: &str) -> Option<u32> {
        self.get(pool, backend)?.weight
    }

    pub(crate) fn get(&self, pool: &str, backend: &str) -> Option<&Override> {
        // A handful at most.
        self.0.iter().find(|((p, b), _)| p == pool && b == backend).map(|(_, found)| found)
    }

    pub(crate) fn set_duty(&mut self, pool: &str, backend: &str, duty: Option<Duty>, by: &str) {
        self.change(pool, backend, by, |one| one.duty = duty);
    }

    pub(crate) fn set_weight(&mut self, pool: &str, backend: &str, weight: Option<u32>, by: &str) {
        self.change(pool, backend, by, |one| one.weight = weight);
    }

    fn change(&mut self, pool: &str, backend: &str, by: &str, change: impl FnOnce(&mut Override)) {
        let key = (pool.to_owned(), backend.to_owned());
        let mut one = self.0.remove(&key).unwrap_or_default();
        change(&mut one);
        by.clone_into(&mut one.by);
        if one.duty.is_some() || one.weight.is_some() {
            self.0.insert(key, one);
        }
    }

    pub(crate) fn has_weights(&self) -> bool {
        self.0.values().any(|one| one.weight.is_some())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str, &Override)> {
        self.0.iter().map(|((pool, backend), one)| (pool.as_str(), backend.as_str(), one))
    }

    /// For a successor.
    pub(crate) fn said(&self) -> Vec<Said> {
        let said = |(pool, backend, one): (&str, &str, &Override)| Said {
            pool: pool.to_owned(),
            backend: backend.to_owned(),
            duty: one.duty.map(|duty| Named(duty).to_string()),
            weight: one.weight,
            by: one.by.clone(),
        };
        self.iter().map(said).collect()
    }

    /// From a process before. What it says that nobody knows is not said.
    pub(crate) fn heard(said: &[Said]) -> Overrides {
        let mut overrides = Overrides::default();
        for one in said {
            let duty = match one.duty.as_deref() {
                Some("drain") => Some(Duty::Drain),
                Some("maintenance") => Some(Duty::Off),
                _ => None,
            };
            overrides.set_duty(&one.pool, &one.backend, duty, &one.by);
            overrides.set_weight(&one.pool, &one.backend, one.weight, &one.by);
        }
        overrides
    }

    pub(crate) fn to_json(&self) -> Value {
        let one = |(pool, backend, one): (&str, &str, &Override)| {
            json!({
                "pool": pool,
                "backend": backend,
                "duty": one.duty.map(|duty| Named(duty).to_string()),
                "weight": one.weight,
                "by": one.by,
            })
        };
        self.iter().map(one).collect()
    }
}

/// A duty as operators call it.
pub(crate) struct Named(pub(crate) Duty);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Duty::Work => "work",
            Duty::Drain => "drain",
            Duty::Off => "maintenance",
        })
    }
}

impl Control {
    /// What a backend is to do as far as operators and the configuration say, and why.
    pub(super) fn duty_of(&self, pool: &Pool, member: &Member) -> (Option<Duty>, &'static str) {
        let said = self.overrides.get(&pool.name, &member.name).and_then(|said| said.duty);
        match (said, member.weight) {
            (Some(duty), _) => (Some(duty), "an operator said so"),
            (None, 0) => (Some(Duty::Drain), "its weight is 0"),
            (None, _) => (None, "it has a weight again"),
        }
    }

    pub(super) fn set_duty(&mut self, pool: &str, backend: &str, duty: Option<Duty>, by: &str) -> Reply {
        let live = self.live.load();
        let Some(endpoint) = endpoint(&live, pool, backend) else {
            return match self.overrides.get(pool, backend) {
                // It has gone, and what was said of it can be taken back all the same.
                Some(_) if duty.is_none() => {
                    self.overrides.set_duty(pool, backend, None, by);
                    Ok(done(format!("{pool}/{backend} is not there; nothing is said of its duty any more")))
                }
                _ => Err(self.no_backend(pool, backend)),
            };
        };
        self.overrides.set_duty(pool, backend, duty, by);
        self.monitor.instruct(&endpoint, duty, &format!("{by} said so"));
        // Its weight may say something too.
        self.follow();
        self.pool(pool)
    }

    pub(super) fn set_weight(&mut self, pool: &str, backend: &str, weight: Option<u32>, by: &str) -> Reply {
        let members = self.blueprint.members(pool).unwrap_or_default();
        if !members.iter().any(|member| &*member.name == backend) {
            if weight.is_none() && self.overrides.get(pool, backend).is_some() {
                self.overrides.set_weight(pool, backend, None, by);
                return Ok(done(format!(
                    "{pool}/{backend} is not there; nothing is said of its weight any more"
                )));
            }
            return Err(self.no_backend(pool, backend));
        }
        self.overrides.set_weight(pool, backend, weight, by);
        tracing::info!(pool, backend, weight, by, "an operator sets the weight");
        self.rebuild();
        self.follow();
        self.pool(pool)
    }

    pub(super) fn no_backend(&self, pool: &str, backend: &str) -> Refused {
        let live = self.live.load();
        let pools = || live.routing.pools().iter().map(|pool| &*pool.name).collect::<Vec<_>>().join(", ");
        let message = match live.routing.pools().iter().find(|known| &*known.name == pool) {
            None => format!("there is no pool {pool}; the pools are {}", pools()),
            Some(known) => {
                let names = known.members().iter().map(|member| &*member.name).collect::<Vec<_>>().join(", ");
                format!("the pool {pool} has no backend {backend}; its backends are {names}")
            }
        };
        Refused::new(StatusCode::NOT_FOUND, message)
    }
}

fn endpoint(live: &Live, pool: &str, backend: &str) -> Option<Arc<Endpoint>> {
    let pool = live.routing.pools().iter().find(|known| &*known.name == pool)?;
    pool.members().iter().find(|member| &*member.name == backend).map(|member| member.endpoint.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cleared_leaves_nothing() {
        let mut overrides = Overrides::default();
        overrides.set_duty("api", "vm1", Some(Duty::Drain), "a");
        overrides.set_weight("api", "vm1", Some(3), "b");
        overrides.set_duty("api", "vm1", None, "c");
        assert_eq!(overrides.weight("api", "vm1"), Some(3));
        assert_eq!(overrides.to_json()[0]["by"], "c");
        assert_eq!(Overrides::heard(&overrides.said()).to_json(), overrides.to_json());
        overrides.set_weight("api", "vm1", None, "d");
        assert_eq!(overrides.iter().count(), 0);
        assert_eq!(overrides.weight("api", "vm2"), None);
    }
}
