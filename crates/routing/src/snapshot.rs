//! Everything that changes rarely, in one immutable value; and how the next one is made from the one before.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use rapidhash::fast::SeedableState;

use crate::host::{HostPattern, parent_of};
use crate::pool::{Pool, PoolSpec};
use crate::route::RouteTable;
use crate::site::{Site, SiteSpec};

/// A hash map whose keys come from the configuration.
///
/// A client chooses what is looked up, never what is in it: no request can make two keys collide, and the
/// worst look-up costs what the operator's own names cost. So SipHash would buy nothing, and a fixed seed
/// keeps this crate free of random numbers. Tables that clients fill must not use it.
pub(crate) type Lookup<V> = HashMap<Box<str>, V, SeedableState<'static>>;

pub(crate) fn lookup<V>() -> Lookup<V> {
    HashMap::with_hasher(SeedableState::fixed())
}

/// Names a pool towards the builder that gave it, and the snapshot it built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolId(usize);

impl PoolId {
    /// Of no snapshot.
    pub(crate) const NONE: PoolId = PoolId(usize::MAX);

    /// Its place in [`Snapshot::pools`].
    pub fn index(self) -> usize {
        self.0
    }
}

/// Makes the next snapshot. Dropped unbuilt it leaves no trace.
#[derive(Debug)]
pub struct SnapshotBuilder {
    previous: HashMap<Arc<str>, Arc<Pool>>,
    pools: Vec<Arc<Pool>>,
    sites: Vec<Arc<Site>>,
    hosts: Lookup<Sites>,
    wildcards: Lookup<Sites>,
    any: Sites,
}

/// The sites of one host pattern.
#[derive(Debug, Default)]
struct Sites {
    everywhere: Option<Arc<Site>>,
    /// A few at most: an address of the gateway each.
    here: Vec<(IpAddr, Arc<Site>)>,
}

impl Sites {
    /// The one limited to the address wins over the one that is everywhere.
    fn at(&self, local: IpAddr) -> Option<&Arc<Site>> {
        let here = self.here.iter().find(|(address, _)| *address == local).map(|(_, site)| site);
        here.or(self.everywhere.as_ref())
    }

    fn add(&mut self, site: &Arc<Site>) {
        match &site.addresses {
            None => {
                self.everywhere.get_or_insert_with(|| Arc::clone(site));
            }
            Some(addresses) => {
                self.here.extend(addresses.iter().map(|address| (address.to_canonical(), Arc::clone(site))));
            }
        }
    }
}

impl SnapshotBuilder {
    /// `previous` is the snapshot now in use. A pool of the same name keeps the endpoints of addresses it
    /// had: their health, in-flight counts and latencies live on.
    pub fn new(previous: Option<&Snapshot>) -> SnapshotBuilder {
        let previous = previous.into_iter().flat_map(Snapshot::pools);
        SnapshotBuilder {
            previous: previous.map(|pool| (Arc::clone(&pool.name), Arc::clone(pool))).collect(),
            pools: Vec::new(),
            sites: Vec::new(),
            hosts: lookup(),
            wildcards: lookup(),
            any: Sites::default(),
        }
    }

    /// Adds a pool; its name must be new. The id is for the routes of sites added later.
    pub fn add_pool(&mut self, spec: PoolSpec) -> PoolId {
        let id = PoolId(self.pools.len());
        let previous = self.previous.get(&*spec.name).map(Arc::as_ref);
        self.pools.push(Arc::new(Pool::new(spec, id, previous)));
        id
    }

    /// Adds a site. Of two sites with the same host on the same address the first one is found: that they
    /// are different is the configuration's to check. An id that another builder gave, and this one did not,
    /// stands for a pool without members.
    pub fn add_site(&mut self, spec: SiteSpec) {
        let pool = |id: PoolId| match self.pools.get(id.index()) {
            Some(pool) => Arc::clone(pool),
            None => Arc::new(Pool::missing()),
        };
        let early_data = spec.early_data
            && spec.tls.clients.is_none()
            && spec.routes.iter().all(|route| route.when.client_ips.is_empty());
        let routes = RouteTable::new(spec.routes, &pool);
        let site = Arc::new(Site {
            name: spec.name,
            hosts: spec.hosts.into(),
            addresses: spec.addresses.map(Into::into),
            http3: spec.http3,
            early_data,
            redirect_to_https: spec.redirect_to_https,
            hsts: spec.hsts,
            tls: spec.tls,
            response_headers: spec.response_headers,
            routes,
        });
        for host in &site.hosts {
            let sites = match host {
                HostPattern::Exact(name) => self.hosts.entry(name.clone()).or_default(),
                HostPattern::Wildcard(suffix) => self.wildcards.entry(suffix.clone()).or_default(),
                HostPattern::Any => &mut self.any,
            };
            sites.add(&site);
        }
        self.sites.push(site);
    }

    pub fn build(self) -> Snapshot {
        let SnapshotBuilder { pools, sites, hosts, wildcards, any, .. } = self;
        Snapshot { pools: pools.into(), sites: sites.into(), hosts, wildcards, any }
    }
}

/// Sites, routes, pools and their members, as they are until the next snapshot. Shared by all workers;
/// nothing in it changes but the vitals of endpoints and the cursors of balancers.
#[derive(Debug)]
pub struct Snapshot {
    pools: Box<[Arc<Pool>]>,
    sites: Box<[Arc<Site>]>,
    hosts: Lookup<Sites>,
    wildcards: Lookup<Sites>,
    any: Sites,
}

/// A site that was found by host.
#[derive(Clone, Copy, Debug)]
pub struct HostMatch<'s, 'h> {
    pub site: &'s Arc<Site>,
    /// What stands for the `*` of its pattern: a label, or the whole host where the pattern is `*` alone.
    pub wildcard: Option<&'h str>,
}

impl Snapshot {
    /// The site for a host, as [`normalise_host`](crate::normalise_host) gives it, on the local address the
    /// connection came to: the exact host, else the wildcard one label above, else `*`. A site that does not
    /// exist on the address is passed over.
    pub fn host<'s, 'h>(&'s self, host: &'h str, local: IpAddr) -> Option<HostMatch<'s, 'h>> {
        let local = local.to_canonical();
        if let Some(site) = self.hosts.get(host).and_then(|sites| sites.at(local)) {
            return Some(HostMatch { site, wildcard: None });
        }
        if let Some(suffix) = parent_of(host)
            && let Some(site) = self.wildcards.get(suffix).and_then(|sites| sites.at(local))
        {
            let label = host.split('.').next();
            return Some(HostMatch { site, wildcard: label });
        }
        self.any.at(local).map(|site| HostMatch { site, wildcard: Some(host) })
    }

    /// In the order they were added.
    pub fn sites(&self) -> &[Arc<Site>] {
        &self.sites
    }

    /// In the order they were added: [`PoolId::index`] is the place.
    pub fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// None for an id of another builder.
    pub fn pool(&self, id: PoolId) -> Option<&Arc<Pool>> {
        self.pools.get(id.index())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Address, MemberSpec, State, TlsRules, TlsVersion};

    fn pool(name: &str, addresses: &[&str]) -> PoolSpec {
        let member = |address: &&str| MemberSpec {
            name: (*address).into(),
            address: Address::Ip(address.parse().unwrap()),
            weight: 1,
            tier: 0,
            max_requests: None,
        };
        PoolSpec::new(name, addresses.iter().map(member).collect())
    }

    fn site(name: &str, hosts: &[&str], addresses: Option<&[&str]>) -> SiteSpec {
        SiteSpec {
            name: name.into(),
            hosts: hosts.iter().map(|host| HostPattern::parse(host).unwrap()).collect(),
            addresses: addresses.map(|list| list.iter().map(|address| address.parse().unwrap()).collect()),
            http3: true,
            early_data: false,
            redirect_to_https: false,
            hsts: None,
            tls: TlsRules::open(TlsVersion::V1_3),
            response_headers: vec![],
            routes: vec![],
        }
    }

    fn snapshot(sites: Vec<SiteSpec>) -> Snapshot {
        let mut builder = SnapshotBuilder::new(None);
        sites.into_iter().for_each(|site| builder.add_site(site));
        builder.build()
    }

    fn found<'h>(snapshot: &Snapshot, host: &'h str, local: &str) -> Option<(String, Option<&'h str>)> {
        let found = snapshot.host(host, local.parse().unwrap())?;
        Some((found.site.name.to_string(), found.wildcard))
    }

    #[test]
    fn exact_then_wildcard_then_any() {
        let snapshot = snapshot(vec![
            site("any", &["*"], None),
            site("wild", &["*.a.test", "b.test"], None),
            site("exact", &["x.a.test"], None),
        ]);
        let found =
            |host| found(&snapshot, host, "10.0.0.1").map(|(name, wildcard)| (name, wildcard.unwrap_or("-")));
        assert_eq!(found("x.a.test"), Some(("exact".into(), "-")));
        assert_eq!(found("y.a.test"), Some(("wild".into(), "y")));
        assert_eq!(found("b.test"), Some(("wild".into(), "-")));
        assert_eq!(found("z.y.a.test"), Some(("any".into(), "z.y.a.test")));
        assert_eq!(found("a.test"), Some(("any".into(), "a.test")));
        assert_eq!(found("::1"), Some(("any".into(), "::1")));
    }

    #[test]
    fn a_limited_site_exists_on_its_addresses_alone() {
        let snapshot = snapshot(vec![
            site("wild", &["*.test"], None),
            site("everywhere", &["both.test"], None),
            site("here", &["both.test", "only.test"], Some(&["10.0.0.1", "::1"])),
            site("there", &["only.test"], Some(&["10.0.0.2"])),
        ]);
        let found = |host, local| found(&snapshot, host, local).unwrap().0;
        assert_eq!(found("both.test", "10.0.0.1"), "here");
        assert_eq!(found("both.test", "::ffff:10.0.0.1"), "here");
        assert_eq!(found("both.test", "::1"), "here");
        assert_eq!(found("both.test", "10.0.0.2"), "everywhere");
        assert_eq!(found("only.test", "10.0.0.2"), "there");
        assert_eq!(found("only.test", "10.0.0.3"), "wild", "not there: the next pattern");
        assert!(snapshot.host("nowhere", "10.0.0.1".parse().unwrap()).is_none());
    }

    #[test]
    fn of_two_alike_the_first_is_found() {
        let snapshot = snapshot(vec![site("first", &["a.test"], None), site("second", &["a.test"], None)]);
        assert_eq!(found(&snapshot, "a.test", "::1").unwrap().0, "first");
        assert_eq!(snapshot.sites().len(), 2);
    }

    #[test]
    fn endpoints_outlive_a_snapshot() {
        let mut builder = SnapshotBuilder::new(None);
        let a = builder.add_pool(pool("a", &["10.0.0.1:80", "10.0.0.2:80"]));
        builder.add_pool(pool("b", &["10.0.0.1:80"]));
        let first = builder.build();
        let down = &first.pool(a).unwrap().members()[0].endpoint;
        down.vitals.set_state(State::Down);

        let mut builder = SnapshotBuilder::new(Some(&first));
        let b = builder.add_pool(pool("b", &["10.0.0.1:80"]));
        let a = builder.add_pool(pool("a", &["10.0.0.3:80", "10.0.0.1:80", "10.0.0.1:80"]));
        let second = builder.build();
        let members = second.pool(a).unwrap().members();
        assert!(Arc::ptr_eq(&members[1].endpoint, down), "the dead stay dead");
        assert!(Arc::ptr_eq(&members[2].endpoint, down), "one endpoint an address");
        let before = &first.pools()[1].members()[0].endpoint;
        assert!(Arc::ptr_eq(&second.pool(b).unwrap().members()[0].endpoint, before));
        assert_ne!(before.id, down.id, "another pool, another endpoint");
        assert!(members.iter().all(|member| &*member.endpoint.pool == "a"));
        assert!(members[0].endpoint.id > before.id);
    }

    #[test]
    fn a_round_goes_on_in_the_next_snapshot() {
        let addresses = ["10.0.0.1:80", "10.0.0.2:80"];
        let mut seen = Vec::new();
        let mut previous = None;
        for _ in 0..4 {
            let mut builder = SnapshotBuilder::new(previous.as_ref());
            let id = builder.add_pool(pool("a", &addresses));
            let next = builder.build();
            seen.push(next.pool(id).unwrap().pick(0, &[], 0, 0).unwrap().index);
            previous = Some(next);
        }
        assert_eq!(seen, [0, 1, 0, 1]);
    }

    #[test]
    fn a_snapshot_is_shared_by_workers() {
        fn shared<T: Send + Sync + 'static>() {}
        shared::<Snapshot>();
        shared::<SnapshotBuilder>();
        shared::<crate::InFlight>();
    }
}
