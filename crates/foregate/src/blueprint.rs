//! What a snapshot is built from, kept while the gateway runs: the next one may differ from it in who is there, and in how
//! much work each of them is to have.

use std::sync::Arc;

use foregate_discovery::{Dns, Found, Target};
use foregate_edge::Live;
use foregate_routing::{MemberSpec, PoolSpec, SiteSpec, Snapshot, SnapshotBuilder};

use crate::control::Overrides;

/// Pools and sites in the order in which a builder was given them.
#[derive(Debug, Default)]
pub(crate) struct Blueprint {
    pools: Vec<PoolSpec>,
    sites: Vec<SiteSpec>,
    looked_up: Vec<LookedUp>,
}

/// A pool whose VMs are looked up.
#[derive(Debug)]
struct LookedUp {
    pool: Arc<str>,
    dns: Dns,
    /// What was found last.
    found: Vec<Target>,
}

impl Blueprint {
    /// `dns` says where the VMs are found that `pool` does not name.
    pub(crate) fn add_pool(&mut self, pool: PoolSpec, dns: Option<Dns>) {
        if let Some(dns) = dns {
            self.looked_up.push(LookedUp { pool: pool.name.as_ref().into(), dns, found: Vec::new() });
        }
        self.pools.push(pool);
    }

    pub(crate) fn add_site(&mut self, site: SiteSpec) {
        self.sites.push(site);
    }

    /// The pools to look up.
    pub(crate) fn looked_up(&self) -> impl Iterator<Item = (Arc<str>, Dns)> {
        self.looked_up.iter().map(|one| (one.pool.clone(), one.dns.clone()))
    }

    /// Takes in what was found.
    pub(crate) fn take_in(&mut self, found: &Found) {
        if let Some(looked_up) = self.looked_up.iter_mut().find(|one| one.pool == found.pool) {
            looked_up.found.clone_from(&found.members);
        }
    }

    /// What was found, by pool.
    pub(crate) fn found(&self) -> impl Iterator<Item = Found> {
        self.looked_up.iter().map(|one| Found { pool: one.pool.clone(), members: one.found.clone() })
    }

    /// Takes over what was found for those pools that are looked up in the same way as `before`.
    pub(crate) fn inherit(&mut self, before: &Blueprint) {
        for one in &mut self.looked_up {
            let same = |other: &&LookedUp| other.pool == one.pool && other.dns == one.dns;
            if let Some(known) = before.looked_up.iter().find(same) {
                one.found.clone_from(&known.found);
            }
        }
    }

    /// The names and weights of a pool's backends, as the configuration and look-ups have them.
    pub(crate) fn members(&self, pool: &str) -> Option<Vec<MemberSpec>> {
        self.pools.iter().find(|spec| &*spec.name == pool).map(|spec| self.all_members(spec))
    }

    /// The next of `live`: all as it is, but for who is there and what they are given.
    pub(crate) fn next(&self, live: &Live, overrides: &Overrides) -> Live {
        Live {
            routing: self.build(&live.routing, overrides),
            transports: live.transports.clone(),
            certificates: live.certificates.clone(),
            clients: live.clients.clone(),
            on_demand: live.on_demand,
            settings: live.settings.clone(),
        }
    }

    /// A snapshot that keeps the endpoints it shares with `previous`.
    pub(crate) fn build(&self, previous: &Snapshot, overrides: &Overrides) -> Snapshot {
        let mut builder = SnapshotBuilder::new(Some(previous));
        for spec in &self.pools {
            let mut members = self.all_members(spec);
            for member in &mut members {
                if let Some(weight) = overrides.weight(&spec.name, &member.name) {
                    member.weight = weight;
                }
            }
            builder.add_pool(PoolSpec { members, ..spec.clone() });
        }
        for site in &self.sites {
            builder.add_site(site.clone());
        }
        builder.build()
    }

    /// Those the configuration names, which knows better about them, and those found.
    fn all_members(&self, spec: &PoolSpec) -> Vec<MemberSpec> {
        let mut members = spec.members.clone();
        if let Some(looked_up) = self.looked_up.iter().find(|one| *one.pool == *spec.name) {
            let is_new = |found: &MemberSpec| spec.members.iter().all(|known| known.address != found.address);
            members.extend(looked_up.found.iter().map(Target::member).filter(is_new));
        }
        members
    }
}
