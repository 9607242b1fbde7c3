//! What an operator has said of backends while the gateway runs. It holds over reloads, until it is cleared or the process
//! ends: at its start the file is the truth.

use std::collections::BTreeMap;
use std::fmt;

use foregate_routing::Duty;
use serde_json::{Value, json};

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
