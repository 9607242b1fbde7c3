//! What operators are told: how everything is, as JSON.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use foregate_certs::Certificate;
use foregate_certs::acme::{Keeper, Standing};
use foregate_exchange::clock;
use foregate_routing::{Action, Member, Pool, Route, Site, State};
use http::StatusCode;
use serde_json::{Value, json};

use super::diff::diff;
use super::overrides::Named;
use super::reload::Probation;
use super::successor::Predecessor;
use super::{Control, Origin, Refused, Reply, history};
use crate::config;
use crate::pair::Pair;

impl Control {
    pub(super) fn status(&self) -> Value {
        let live = self.live.load();
        let pools = live.routing.pools();
        let usable = pools.iter().filter(|pool| pool.any_usable()).count();
        let listeners: Vec<String> =
            self.gateway.iter().flat_map(|gateway| gateway.listeners()).map(ToString::to_string).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "state": if self.gateway.is_some() { "serving" } else { "draining" },
            "started": humantime::format_rfc3339_seconds(self.started.0).to_string(),
            "uptime_s": self.started.1.elapsed().as_secs(),
            "configuration": {
                "file": self.file(),
                "number": self.running.number,
                "content": self.running.written.content,
                "differs_from_file": self.differs_from_file(),
                "confirm_within_s": self.probation.as_ref().and_then(Probation::left),
                "goes_back": self.probation.as_ref().and_then(|probation| probation.why.as_ref()),
                "waits_for_restart": self.running.waiting,
            },
            "predecessor_drains_s": self.predecessor.as_ref().map(Predecessor::left),
            "overrides": self.overrides.to_json(),
            "listeners": listeners,
            "connections": self.connections(),
            "sites": live.routing.sites().len(),
            "pools": { "all": pools.len(), "usable": usable },
            "workers": self.gateway.as_ref().map(|gateway| gateway.workers()),
        })
    }

    fn file(&self) -> Option<String> {
        match &self.origin {
            Origin::File(path) => Some(path.display().to_string()),
            Origin::Made => None,
        }
    }

    /// Why what is served is not what the file says; none: it is.
    fn differs_from_file(&self) -> Option<String> {
        let Origin::File(path) = &self.origin else { return None };
        match config::read(path) {
            Ok(files) if history::content(&files) == self.running.written.content => None,
            Ok(files) => {
                let count = diff(&self.running.written.files, &files).len();
                Some(match count {
                    0 => "the file has other words for the same".to_owned(),
                    1 => "one difference; `foregate diff` shows it".to_owned(),
                    count => format!("{count} differences; `foregate diff` shows them"),
                })
            }
            Err(reason) => Some(reason),
        }
    }

    pub(super) fn config(&self) -> Value {
        let file = |file: &config::File| json!({ "name": file.name, "text": file.text });
        json!({
            "number": self.running.number,
            "differs_from_file": self.differs_from_file(),
            "files": self.running.written.files.iter().map(file).collect::<Vec<_>>(),
        })
    }

    pub(super) fn entry(&self, number: u64) -> Reply {
        let entry = self.known(number)?;
        serde_json::to_value(entry)
            .map_err(|error| Refused::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
    }

    pub(super) fn known(&self, number: u64) -> Result<&history::Entry, Refused> {
        self.history.get(number).ok_or_else(|| {
            let message = match self.history.numbers() {
                (Some(first), Some(last)) => {
                    format!(
                        "there is no configuration {number} in the history: it goes from {first} to {last}"
                    )
                }
                _ => "the history is empty".to_owned(),
            };
            Refused::new(StatusCode::NOT_FOUND, message)
        })
    }

    pub(super) fn diff(&self, before: Option<u64>, after: Option<u64>) -> Reply {
        let before = match before {
            Some(number) => (self.known(number)?.files(), format!("configuration {number}")),
            None => (self.running.written.files.clone(), "what is served".to_owned()),
        };
        let after = match (after, &self.origin) {
            (Some(number), _) => (self.known(number)?.files(), format!("configuration {number}")),
            (None, Origin::File(path)) => {
                let files = config::read(path);
                (files.map_err(|reason| Refused::new(StatusCode::CONFLICT, reason))?, "the file".to_owned())
            }
            (None, Origin::Made) => {
                return Err(Refused::new(
                    StatusCode::CONFLICT,
                    "this gateway was started from flags: it has no file",
                ));
            }
        };
        Ok(json!({ "before": before.1, "after": after.1, "changes": diff(&before.0, &after.0) }))
    }

    pub(super) fn sites(&self) -> Value {
        self.live.load().routing.sites().iter().map(|site| told_of_site(site)).collect()
    }

    pub(super) fn pools(&self) -> Value {
        self.live.load().routing.pools().iter().map(|pool| self.told_of_pool(pool)).collect()
    }

    pub(super) fn pool(&self, name: &str) -> Reply {
        let live = self.live.load();
        let pool = live.routing.pools().iter().find(|pool| &*pool.name == name);
        pool.map(|pool| self.told_of_pool(pool)).ok_or_else(|| self.no_backend(name, ""))
    }

    fn told_of_pool(&self, pool: &Pool) -> Value {
        json!({
            "name": &*pool.name,
            "balance": pool.balance().to_string(),
            "usable": pool.any_usable(),
            "waiting": pool.waiting(),
            "probed": pool.health.is_some(),
            "backends": pool.members().iter().map(|member| self.told_of_member(pool, member)).collect::<Vec<_>>(),
        })
    }

    fn told_of_member(&self, pool: &Pool, member: &Member) -> Value {
        let vitals = &member.endpoint.vitals;
        let latency = Duration::from_secs_f64(vitals.latency(clock::now_nanos()).clamp(0.0, 86_400.0));
        let said = self.overrides.get(&pool.name, &member.name);
        json!({
            "name": &*member.name,
            "address": member.endpoint.address.to_string(),
            "state": match vitals.state() {
                State::Unknown => "unknown",
                State::Up => "up",
                State::Down => "down",
            },
            "duty": Named(vitals.duty()).to_string(),
            "set_aside": vitals.is_set_aside(),
            "reason": self.monitor.reason(&member.endpoint),
            "weight": member.weight,
            "weight_overridden": said.is_some_and(|said| said.weight.is_some()),
            "asked_share": vitals.asked_share(),
            "tier": member.tier,
            "max_requests": member.max_requests,
            "requests": vitals.in_flight(),
            "latency_ms": latency.as_secs_f64() * 1000.0,
        })
    }

    pub(super) fn connections(&self) -> Value {
        let (open, limit) = self.gateway.as_ref().map_or((0, 0), |gateway| gateway.connections());
        json!({ "open": open, "limit": limit })
    }

    pub(super) fn workers(&self) -> Value {
        self.gateway
            .iter()
            .flat_map(|gateway| gateway.running())
            .enumerate()
            .map(|(number, running)| json!({ "number": number, "requests": running }))
            .collect()
    }

    pub(super) fn certificates(&self) -> Value {
        let live = self.live.load();
        let pairs = self.pairs.borrow().clone();
        let shown = |pair: &Pair| pair.certificate.as_ref().map(Arc::as_ptr);
        let by_certificate: HashMap<_, _> =
            pairs.iter().filter_map(|pair| Some((shown(pair)?, pair))).collect();
        let standings = self.keeper.as_ref().map(Keeper::standings).unwrap_or_default();
        let time = |time| humantime::format_rfc3339_seconds(time).to_string();
        let one = |(hosts, certificate): (Vec<String>, &Arc<Certificate>)| {
            let pair = by_certificate.get(&Arc::as_ptr(certificate));
            let facts = certificate.facts();
            let left =
                facts.map(|facts| facts.not_after.duration_since(SystemTime::now()).unwrap_or_default());
            json!({
                "shown_for": hosts,
                "names": certificate.names(),
                "issuer": facts.map(|facts| &*facts.issuer),
                "serial": facts.map(|facts| &*facts.serial),
                "not_before": facts.map(|facts| time(facts.not_before)),
                "not_after": facts.map(|facts| time(facts.not_after)),
                "expires_in_days": left.map(|left| left.as_secs() / 86_400),
                "source": match pair.and_then(|pair| pair.ordered_for.as_ref()) {
                    Some(_) => "acme",
                    None if certificate.is_self_signed() => "self-signed",
                    None => "file",
                },
                "order": pair.and_then(|pair| standings.get(pair.ordered_for.as_ref()?)).map(told_of_order),
                "cert": pair.map(|pair| pair.cert.display().to_string()),
                "key": pair.map(|pair| pair.key.display().to_string()),
                "sha256": certificate.fingerprint(),
            })
        };
        let all = live.certificates.all();
        let shown_now: Vec<_> = all.iter().map(|(_, certificate)| Some(Arc::as_ptr(*certificate))).collect();
        let shown = all.into_iter().map(one);
        let is_shown = |pair: &&Pair| shown_now.contains(&pair.certificate.as_ref().map(Arc::as_ptr));
        let awaited = pairs.iter().filter(|pair| !is_shown(pair));
        let awaited = awaited.filter_map(|pair| {
            let standing = standings.get(pair.ordered_for.as_ref()?)?;
            Some(json!({
                "shown_for": [],
                "names": standing.hosts,
                "source": "acme",
                "order": told_of_order(standing),
                "cert": pair.cert.display().to_string(),
            }))
        });
        shown.chain(awaited).collect()
    }
}

/// What is done next about a certificate that an authority issues.
fn told_of_order(standing: &Standing) -> Value {
    json!({
        "next": standing.due.map(|due| humantime::format_rfc3339_seconds(due).to_string()),
        "failures": standing.failures,
        "trouble": standing.trouble,
    })
}

fn told_of_site(site: &Site) -> Value {
    json!({
        "name": &*site.name,
        "hosts": site.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "addresses": site.addresses.as_ref().map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>()),
        "http3": site.http3,
        "routes": site.routes().iter().map(told_of_route).collect::<Vec<_>>(),
    })
}

fn told_of_route(route: &Route) -> Value {
    let action = match &route.action {
        Action::Pool(pool) => json!({ "pool": &*pool.name }),
        Action::Split(split) => json!({ "split": split.pools().map(|pool| &*pool.name).collect::<Vec<_>>() }),
        Action::Redirect { status, .. } => json!({ "redirect": status.as_u16() }),
        Action::Respond(_) => json!({ "respond": true }),
    };
    json!({ "name": &*route.name, "action": action })
}
