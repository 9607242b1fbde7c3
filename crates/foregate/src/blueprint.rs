//! What a snapshot is built from, kept where VMs are looked up while the gateway runs: the next one differs from it in who
//! is there.

use std::sync::Arc;

use foregate_discovery::{Dns, Found};
use foregate_edge::Live;
use foregate_routing::{MemberSpec, PoolSpec, SiteSpec, Snapshot, SnapshotBuilder};

/// Pools and sites in the order in which a builder was given them.
#[derive(Debug, Default)]
pub(crate) struct Blueprint {
    pools: Vec<PoolSpec>,
    sites: Vec<SiteSpec>,
    looked_up: Vec<LookedUp>,
}

#[derive(Debug)]
struct LookedUp {
    pool: Arc<str>,
    dns: Dns,
    /// Those the configuration names.
    written: Vec<MemberSpec>,
}

impl Blueprint {
    /// `dns` says where the VMs are found that `pool` does not name.
    pub(crate) fn add_pool(&mut self, pool: PoolSpec, dns: Option<Dns>) {
        if let Some(dns) = dns {
            let (pool, written) = (pool.name.as_ref().into(), pool.members.clone());
            self.looked_up.push(LookedUp { pool, dns, written });
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

    /// Takes in what was found. The configuration knows better about those it names too.
    pub(crate) fn take_in(&mut self, found: &Found) {
        let Some(looked_up) = self.looked_up.iter().find(|one| one.pool == found.pool) else { return };
        let Some(pool) = self.pools.iter_mut().find(|pool| *pool.name == *found.pool) else { return };
        pool.members.clone_from(&looked_up.written);
        let found = found.members.iter().map(foregate_discovery::Target::member);
        let is_new =
            |member: &MemberSpec| looked_up.written.iter().all(|known| known.address != member.address);
        pool.members.extend(found.filter(is_new));
    }

    /// The next of `live`: all as it is, but for who is there.
    pub(crate) fn next(&self, live: &Live) -> Live {
        Live {
            routing: self.build(&live.routing),
            transports: live.transports.clone(),
            certificates: live.certificates.clone(),
            settings: live.settings.clone(),
        }
    }

    fn build(&self, previous: &Snapshot) -> Snapshot {
        let mut builder = SnapshotBuilder::new(Some(previous));
        for pool in &self.pools {
            builder.add_pool(pool.clone());
        }
        for site in &self.sites {
            builder.add_site(site.clone());
        }
        builder.build()
    }
}
