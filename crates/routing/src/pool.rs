//! Pools: which VMs answer, and which one answers now.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use crate::balance::{Balance, Balancer, Candidates, Occasion};
use crate::dice::{Purpose, digest};
use crate::endpoint::{Address, Endpoint, InFlight};
use crate::route::RequestView;
use crate::snapshot::PoolId;
use crate::{cookie, query};

/// What a pool is made of.
#[derive(Clone, Debug)]
pub struct PoolSpec {
    /// Unique in a snapshot. Together with an address it is the identity of an [`Endpoint`].
    pub name: Box<str>,
    pub balance: Balance,
    /// For [`Balance::Hash`] alone.
    pub hash_on: HashOn,
    pub sticky: Option<Sticky>,
    /// None: nobody probes.
    pub health: Option<HealthCheck>,
    pub members: Vec<MemberSpec>,
}

/// One backend of a pool.
#[derive(Clone, Debug)]
pub struct MemberSpec {
    /// For logs and metrics.
    pub name: Box<str>,
    pub address: Address,
    /// Its share among the members of its tier; 0 is "no new work": only who is stuck to it still comes.
    pub weight: u32,
    /// Tier 1 serves when no member of tier 0 can, and so on.
    pub tier: u32,
}

/// What of a request decides, for [`Balance::Hash`]. A request without the named thing goes by its client's
/// address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HashOn {
    #[default]
    ClientIp,
    Header(HeaderName),
    Cookie(Box<str>),
    /// A parameter of the query, decoded.
    Query(Box<str>),
    /// The normalised path.
    Path,
}

/// A cookie of ours keeps a client at its VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// The name of the cookie: a token (RFC 9110, section 5.6.2), or none is ever set.
    pub cookie: Box<str>,
    /// None: until the browser is closed.
    pub max_age: Option<Duration>,
}

/// How the members are probed. Owned here because it belongs to the pool; run by the health crate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub probe: Probe,
    pub interval: Duration,
    pub timeout: Duration,
    /// So many successes make it up.
    pub rise: u32,
    /// So many failures make it down.
    pub fall: u32,
}

/// What is asked of a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// An answer with one of these statuses, and with this text in its body.
    Http {
        path: Box<str>,
        status: Vec<RangeInclusive<u16>>,
        host: Option<Box<str>>,
        contains: Option<Box<str>>,
    },
    /// A connection.
    Tcp,
}

/// One backend of a pool in a snapshot.
#[derive(Debug)]
pub struct Member {
    pub endpoint: Arc<Endpoint>,
    pub name: Box<str>,
    pub weight: u32,
    pub tier: u32,
}

/// The VMs that share some work.
#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    pub id: PoolId,
    pub health: Option<HealthCheck>,
    hash_on: HashOn,
    members: Box<[Member]>,
    /// In the order they are asked.
    tiers: Box<[Tier]>,
    sticky: Option<StickyCookie>,
    balance: Balance,
}

#[derive(Debug)]
struct Tier {
    rank: u32,
    /// The indices of its members with a weight above zero: the balancer calls them by their place here.
    slots: Box<[usize]>,
    balancer: Balancer,
}

#[derive(Debug)]
struct StickyCookie {
    name: Box<str>,
    /// (value, index), sorted.
    members: Box<[(u64, usize)]>,
    /// By index: what is set over http, and what over https.
    set: Box<[[HeaderValue; 2]]>,
}

/// A member that was picked, and its place in the in-flight count.
#[derive(Debug)]
pub struct Pick<'p> {
    pub member: &'p Member,
    /// For `tried` and [`Pool::sticky_cookie`].
    pub index: usize,
    /// Keep it until the response has ended.
    pub in_flight: InFlight,
}

impl Pool {
    /// `previous` is the pool of this name in the snapshot before.
    pub(crate) fn new(spec: PoolSpec, id: PoolId, previous: Option<&Pool>) -> Pool {
        let name: Arc<str> = match previous {
            Some(previous) => Arc::clone(&previous.name),
            None => spec.name.into(),
        };
        let mut endpoints: HashMap<Address, Arc<Endpoint>> = previous
            .into_iter()
            .flat_map(|previous| &previous.members)
            .map(|member| (member.endpoint.address.clone(), Arc::clone(&member.endpoint)))
            .collect();
        let member = |spec: MemberSpec| {
            let MemberSpec { name: member, address, weight, tier } = spec;
            let endpoint = endpoints
                .entry(address)
                .or_insert_with_key(|address| Endpoint::new(Arc::clone(&name), address.clone()));
            Member { endpoint: Arc::clone(endpoint), name: member, weight, tier }
        };
        let members: Box<[Member]> = spec.members.into_iter().map(member).collect();
        let tiers = tiers(&members, spec.balance, previous);
        let sticky = spec.sticky.and_then(|sticky| StickyCookie::new(&name, &sticky, &members));
        let (health, hash_on, balance) = (spec.health, spec.hash_on, spec.balance);
        Pool { name, id, health, hash_on, members, tiers, sticky, balance }
    }

    /// What stands where a pool should be and is none: it has no members, so a request for it is answered
    /// like one for a pool that is down.
    pub(crate) fn missing() -> Pool {
        let spec = PoolSpec {
            name: Box::default(),
            balance: Balance::First,
            hash_on: HashOn::ClientIp,
            sticky: None,
            health: None,
            members: Vec::new(),
        };
        Pool::new(spec, PoolId::NONE, None)
    }

    /// In the order of the file. An index into these names a member towards this pool.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The hash of what [`HashOn`] says, the same in every process; 0 at no cost unless the pool balances by
    /// hash.
    pub fn key(&self, view: &RequestView<'_>) -> u64 {
        if self.balance != Balance::Hash {
            return 0;
        }
        let named = match &self.hash_on {
            HashOn::ClientIp => None,
            HashOn::Header(name) => {
                view.headers.get(name).map(|value| digest(Purpose::Key, value.as_bytes()))
            }
            HashOn::Cookie(name) => {
                cookie::values(view.headers, name).next().map(|value| digest(Purpose::Key, value))
            }
            HashOn::Query(name) => {
                query::values(view.query, name).next().map(|value| digest(Purpose::Key, &value))
            }
            HashOn::Path => Some(digest(Purpose::Key, view.path.as_bytes())),
        };
        named.unwrap_or_else(|| of_client(Purpose::Key, view))
    }

    /// The member for the next attempt: of the lowest tier that has one that is usable, of a weight above
    /// zero and not in `tried`, which holds indices. None when there is none at all: all are down, or all
    /// were tried.
    ///
    /// Takes no lock and allocates nothing. `key` is [`Pool::key`]'s, `dice` a fresh random number,
    /// `now_nanos` the clock of [`Vitals::observe_latency`](crate::Vitals::observe_latency).
    pub fn pick(&self, key: u64, tried: &[usize], dice: u64, now_nanos: u64) -> Option<Pick<'_>> {
        let occasion = Occasion { key, dice, now_nanos };
        self.tiers.iter().find_map(|tier| {
            let candidates = Candidates { members: &self.members, slots: &tier.slots, tried };
            let slot = tier.balancer.pick(&candidates, occasion)?;
            self.begin(*tier.slots.get(slot)?)
        })
    }

    /// The member a sticky cookie of this request names, if it is usable and not in `tried`. Its tier and a
    /// weight of zero do not matter: they are about new work.
    pub fn pick_sticky(&self, headers: &HeaderMap, tried: &[usize]) -> Option<Pick<'_>> {
        let index = self.sticky.as_ref()?.named(headers)?;
        let open = self.members.get(index)?.endpoint.vitals.usable() && !tried.contains(&index);
        open.then(|| self.begin(index))?
    }

    /// The `Set-Cookie` value for a response from `member` to a request with these headers: none when the
    /// pool is not sticky, or the request already named that member. `secure` says that it came by https.
    pub fn sticky_cookie(&self, headers: &HeaderMap, member: usize, secure: bool) -> Option<HeaderValue> {
        let sticky = self.sticky.as_ref()?;
        if sticky.named(headers) == Some(member) {
            return None;
        }
        let [open, sealed] = sticky.set.get(member)?;
        Some(if secure { sealed } else { open }.clone())
    }

    /// Whether a request could be served now.
    pub fn any_usable(&self) -> bool {
        self.members.iter().any(|member| member.weight > 0 && member.endpoint.vitals.usable())
    }

    fn begin(&self, index: usize) -> Option<Pick<'_>> {
        let member = self.members.get(index)?;
        Some(Pick { member, index, in_flight: InFlight::begin(&member.endpoint) })
    }
}

/// The hash of a request's client. A v4-mapped address is the IPv4 address.
pub(crate) fn of_client(purpose: Purpose, view: &RequestView<'_>) -> u64 {
    match view.client_ip.to_canonical() {
        std::net::IpAddr::V4(ip) => digest(purpose, &ip.octets()),
        std::net::IpAddr::V6(ip) => digest(purpose, &ip.octets()),
    }
}

fn tiers(members: &[Member], balance: Balance, previous: Option<&Pool>) -> Box<[Tier]> {
    let mut by_rank: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for (index, member) in members.iter().enumerate().filter(|(_, member)| member.weight > 0) {
        by_rank.entry(member.tier).or_default().push(index);
    }
    let tier = |(rank, slots): (u32, Vec<usize>)| {
        let before = previous.and_then(|previous| previous.tiers.iter().find(|tier| tier.rank == rank));
        let members: Vec<&Member> = slots.iter().filter_map(|index| members.get(*index)).collect();
        let balancer = Balancer::new(balance, &members, before.map(|tier| &tier.balancer));
        Tier { rank, slots: slots.into(), balancer }
    };
    by_rank.into_iter().map(tier).collect()
}

impl StickyCookie {
    /// None when the name can stand in no header.
    fn new(pool: &str, sticky: &Sticky, members: &[Member]) -> Option<StickyCookie> {
        let values: Vec<u64> =
            members.iter().map(|member| sticky_value(pool, &member.endpoint.address)).collect();
        let set = values.iter().map(|value| {
            let mut text = format!("{}={value:016x}; Path=/; HttpOnly; SameSite=Lax", sticky.cookie);
            if let Some(max_age) = sticky.max_age {
                // Writing to a String does not fail.
                let _ = write!(text, "; Max-Age={}", max_age.as_secs());
            }
            let open = HeaderValue::from_str(&text).ok()?;
            text.push_str("; Secure");
            Some([open, HeaderValue::from_str(&text).ok()?])
        });
        let set = set.collect::<Option<_>>()?;
        let mut members: Box<[_]> = values.into_iter().zip(0..).collect();
        members.sort_unstable();
        Some(StickyCookie { name: sticky.cookie.clone(), members, set })
    }

    /// The index of the member that the request's cookie names.
    fn named(&self, headers: &HeaderMap) -> Option<usize> {
        cookie::values(headers, &self.name).find_map(|value| {
            let value = std::str::from_utf8(value).ok().filter(|value| value.len() == 16)?;
            let value = u64::from_str_radix(value, 16).ok()?;
            let at = self.members.partition_point(|(known, _)| *known < value);
            self.members.get(at).filter(|(known, _)| *known == value).map(|(_, index)| *index)
        })
    }
}

/// Says nothing of the address, and means the same VM after every restart and behind every gateway.
fn sticky_value(pool: &str, address: &Address) -> u64 {
    digest(Purpose::Sticky, format!("{pool}\0{address}").as_bytes())
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use http::Method;
    use http::header::COOKIE;
    use proptest::prelude::*;

    use super::*;
    use crate::dice::mix;
    use crate::{Snapshot, SnapshotBuilder, State};

    fn spec(balance: Balance, members: &[(u32, u32)]) -> PoolSpec {
        let member = |(n, (weight, tier)): (usize, &(u32, u32))| MemberSpec {
            name: format!("vm{n}").into(),
            address: Address::Ip(format!("10.0.{}.{}:80", n / 250, n % 250).parse().unwrap()),
            weight: *weight,
            tier: *tier,
        };
        PoolSpec {
            name: "pool".into(),
            balance,
            hash_on: HashOn::ClientIp,
            sticky: None,
            health: None,
            members: members.iter().enumerate().map(member).collect(),
        }
    }

    fn built(spec: PoolSpec) -> Arc<Pool> {
        let mut builder = SnapshotBuilder::new(None);
        let id = builder.add_pool(spec);
        let snapshot: Snapshot = builder.build();
        Arc::clone(snapshot.pool(id).unwrap())
    }

    fn pool(balance: Balance, members: &[(u32, u32)]) -> Arc<Pool> {
        built(spec(balance, members))
    }

    fn down(pool: &Pool, index: usize) {
        pool.members()[index].endpoint.vitals.set_state(State::Down);
    }

    /// How often each member is picked, each request over before the next one.
    fn shares(pool: &Pool, picks: u64, tried: &[usize]) -> Vec<f64> {
        let mut counts = vec![0_u64; pool.members().len()];
        for n in 0..picks {
            counts[pool.pick(mix(n), tried, mix(!n), 0).unwrap().index] += 1;
        }
        counts.iter().map(|count| *count as f64 / picks as f64).collect()
    }

    fn view<'a>(headers: &'a HeaderMap, ip: &str) -> RequestView<'a> {
        let client_ip: IpAddr = ip.parse().unwrap();
        RequestView { method: &Method::GET, path: "/p", query: Some("u=a%20b"), headers, client_ip }
    }

    fn cookies(value: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(COOKIE, HeaderValue::from_str(value).unwrap());
        headers
    }

    #[test]
    fn tiers_fall_back_one_by_one() {
        for balance in Balance::ALL {
            // Tier 0 is in the middle of the file; one of its members takes no new work.
            let pool = pool(balance, &[(1, 2), (1, 0), (0, 0), (1, 1), (1, 0)]);
            let all = |tried: &[usize]| {
                let mut seen: Vec<_> =
                    (0..200).filter_map(|n| Some(pool.pick(mix(n), tried, mix(n), 0)?.index)).collect();
                seen.sort_unstable();
                seen.dedup();
                seen
            };
            let tier_0 = if balance == Balance::First { vec![1] } else { vec![1, 4] };
            assert_eq!(all(&[]), tier_0, "{balance}");
            assert_eq!(all(&[1]), [4], "{balance}");
            assert_eq!(all(&[4, 1]), [3], "{balance}: all of a tier were tried");
            down(&pool, 1);
            down(&pool, 4);
            assert_eq!(all(&[]), [3], "{balance}");
            down(&pool, 3);
            assert_eq!(all(&[]), [0], "{balance}");
            assert!(pool.any_usable());
            assert!(pool.pick(0, &[0], 0, 0).is_none(), "{balance}");
            down(&pool, 0);
            assert!(pool.pick(0, &[], 0, 0).is_none(), "{balance}");
            assert!(!pool.any_usable(), "what takes no new work is no use");
        }
    }

    #[test]
    fn an_empty_pool_has_nobody() {
        for balance in Balance::ALL {
            assert!(pool(balance, &[]).pick(1, &[], 1, 1).is_none());
            assert!(pool(balance, &[(0, 0)]).pick(1, &[], 1, 1).is_none());
        }
        assert!(Pool::missing().pick(1, &[], 1, 1).is_none());
    }

    #[test]
    fn idle_pools_are_shared_by_weight() {
        for balance in [Balance::RoundRobin, Balance::Random, Balance::Hash] {
            let shares = shares(&pool(balance, &[(3, 0), (1, 0), (4, 0)]), 20_000, &[]);
            for (share, expected) in shares.iter().zip([0.375, 0.125, 0.5]) {
                assert!((share - expected).abs() < 0.015, "{balance} {shares:?}");
            }
        }
        // With nothing in flight the heaviest has the least load for its weight; equals share.
        let equal = shares(&pool(Balance::LeastRequests, &[(2, 0), (2, 0), (2, 0), (1, 0)]), 20_000, &[]);
        assert!(equal[..3].iter().all(|share| (share - 1.0 / 3.0).abs() < 0.015), "{equal:?}");
        // Nothing is known of anybody.
        let unknown = shares(&pool(Balance::Ewma, &[(3, 0), (1, 0)]), 20_000, &[]);
        assert!((unknown[0] - 0.75).abs() < 0.015, "{unknown:?}");
        assert_eq!(shares(&pool(Balance::First, &[(1, 0), (9, 0)]), 10, &[]), [1.0, 0.0]);
    }

    #[test]
    fn the_share_of_a_dead_vm_is_spread_evenly() {
        for balance in [Balance::RoundRobin, Balance::Random, Balance::Hash] {
            let pool = pool(balance, &[(1, 0), (1, 0), (1, 0), (1, 0), (2, 0)]);
            down(&pool, 1);
            let shares = shares(&pool, 20_000, &[]);
            for (share, expected) in shares.iter().zip([0.2, 0.0, 0.2, 0.2, 0.4]) {
                assert!((share - expected).abs() < 0.02, "{balance} {shares:?}");
            }
        }
    }

    #[test]
    fn ewma_prefers_the_fast_and_tries_the_slow_again() {
        const SECOND: u64 = 1_000_000_000;
        for size in [3, 8] {
            let pool = pool(Balance::Ewma, &vec![(1, 0); size]);
            for (index, member) in pool.members().iter().enumerate() {
                let sample = Duration::from_millis(if index == 1 { 500 } else { 10 });
                member.endpoint.vitals.observe_latency(sample, SECOND);
            }
            let slow = (0..1_000).filter(|n| pool.pick(0, &[], mix(*n), SECOND).unwrap().index == 1).count();
            // With two choices only who draws it twice.
            assert!(slow < 40, "{slow} of {size}");
            for member in pool.members().iter().filter(|member| &*member.name != "vm1") {
                member.endpoint.vitals.observe_latency(Duration::from_millis(10), 60 * SECOND);
            }
            let again =
                (0..1_000).filter(|n| pool.pick(0, &[], mix(*n), 60 * SECOND).unwrap().index == 1).count();
            assert!(again > 100, "{again} of {size}");
        }
    }

    #[test]
    fn a_new_vm_gets_one_request_until_it_has_answered() {
        let pool = pool(Balance::Ewma, &[(1, 0), (1, 0)]);
        pool.members()[0].endpoint.vitals.observe_latency(Duration::from_millis(10), 1);
        let first = pool.pick(0, &[], 1, 1).unwrap();
        assert_eq!(first.index, 1);
        let others: Vec<_> = (0..20).map(|n| pool.pick(0, &[], n, 1).unwrap()).collect();
        assert!(others.iter().all(|pick| pick.index == 0));
    }

    #[test]
    fn a_popular_key_cannot_drown_its_vm() {
        let pool = pool(Balance::Hash, &[(1, 0), (1, 0), (2, 0), (1, 0)]);
        let picks: Vec<_> = (0..500).map(|n| pool.pick(42, &[], n, 0).unwrap()).collect();
        for member in pool.members() {
            let bound = 1.25 * 500.0 * f64::from(member.weight) / 5.0 + 1.0;
            assert!(f64::from(member.endpoint.vitals.in_flight()) <= bound);
        }
        let home = picks[0].index;
        drop(picks);
        assert_eq!(pool.pick(42, &[], 0, 0).unwrap().index, home, "and comes home");
        let second = pool.pick(42, &[home], 0, 0).unwrap().index;
        assert_ne!(second, home);
        assert_eq!(
            pool.pick(42, &[home], 9, 0).unwrap().index,
            second,
            "its second choice is always the same"
        );
    }

    #[test]
    fn keys_of_the_living_stay_when_one_dies() {
        let pool = pool(Balance::Hash, &[(1, 0); 10]);
        let homes: Vec<_> = (0..2_000).map(|n| pool.pick(mix(n), &[], 0, 0).unwrap().index).collect();
        down(&pool, 4);
        for (n, home) in (0..2_000).zip(homes) {
            let now = pool.pick(mix(n), &[], 0, 0).unwrap().index;
            assert!(now == home || home == 4);
        }
    }

    #[test]
    fn keys_are_of_what_was_configured() {
        let key = |hash_on: HashOn, headers: &HeaderMap, ip: &str| {
            built(PoolSpec { hash_on, ..spec(Balance::Hash, &[(1, 0)]) }).key(&view(headers, ip))
        };
        let mut headers = cookies("user=7");
        headers.insert("x-user", HeaderValue::from_static("7"));
        let empty = HeaderMap::new();
        let by_ip = key(HashOn::ClientIp, &empty, "10.0.0.1");
        assert_eq!(by_ip, key(HashOn::ClientIp, &headers, "::ffff:10.0.0.1"));
        assert_ne!(by_ip, key(HashOn::ClientIp, &empty, "10.0.0.2"));
        let seven = digest(Purpose::Key, b"7");
        let header = HashOn::Header("x-user".parse().unwrap());
        assert_eq!(key(header.clone(), &headers, "10.0.0.1"), seven);
        assert_eq!(key(header, &empty, "10.0.0.1"), by_ip, "absent: the client");
        assert_eq!(key(HashOn::Cookie("user".into()), &headers, "10.0.0.1"), seven);
        assert_eq!(key(HashOn::Query("u".into()), &empty, "10.0.0.1"), digest(Purpose::Key, b"a b"));
        assert_eq!(key(HashOn::Path, &empty, "10.0.0.1"), digest(Purpose::Key, b"/p"));
        assert_eq!(pool(Balance::Random, &[(1, 0)]).key(&view(&empty, "10.0.0.1")), 0);
    }

    fn sticky(max_age: Option<Duration>) -> Arc<Pool> {
        let sticky = Sticky { cookie: "fg_vm".into(), max_age };
        built(PoolSpec { sticky: Some(sticky), ..spec(Balance::RoundRobin, &[(1, 0), (0, 0), (1, 1)]) })
    }

    #[test]
    fn sticky_cookies_bring_clients_back() {
        let pool = sticky(None);
        let empty = HeaderMap::new();
        assert!(pool.pick_sticky(&empty, &[]).is_none());
        for index in 0..3 {
            let set = pool.sticky_cookie(&empty, index, false).unwrap();
            let (pair, attributes) = set.to_str().unwrap().split_once("; ").unwrap();
            assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
            assert_eq!(pair.len(), "fg_vm=".len() + 16);

            let headers = cookies(&format!("fg_vm=0123456789abcdef; x=y; {pair}"));
            let pick = pool.pick_sticky(&headers, &[]).unwrap();
            assert_eq!(pick.index, index, "whatever its tier and weight");
            assert_eq!(pick.member.endpoint.vitals.in_flight(), 1);
            assert!(pool.sticky_cookie(&headers, index, false).is_none(), "it has its cookie");
            assert!(pool.sticky_cookie(&headers, (index + 1) % 3, false).is_some(), "it went elsewhere");
            assert!(pool.pick_sticky(&headers, &[index]).is_none());
            down(&pool, index);
            assert!(pool.pick_sticky(&headers, &[]).is_none());
        }
        for strange in ["fg_vm=", "fg_vm=+123456789abcdef", "fg_vm=0123456789abcdef", "FG_VM=1"] {
            assert!(pool.pick_sticky(&cookies(strange), &[]).is_none());
        }
        assert!(pool.sticky_cookie(&empty, 3, false).is_none());
    }

    // Clients carry these values: a change loses every session.
    #[test]
    fn sticky_values_never_change() {
        let set = sticky(Some(Duration::from_secs(3600))).sticky_cookie(&HeaderMap::new(), 0, true).unwrap();
        assert_eq!(set, "fg_vm=4434c4340947826c; Path=/; HttpOnly; SameSite=Lax; Max-Age=3600; Secure");
    }

    #[test]
    fn a_cookie_that_no_header_can_hold_is_never_set() {
        let sticky = Sticky { cookie: "a\nb".into(), max_age: None };
        let pool = built(PoolSpec { sticky: Some(sticky), ..spec(Balance::RoundRobin, &[(1, 0)]) });
        assert!(pool.sticky_cookie(&HeaderMap::new(), 0, true).is_none());
        assert!(pool.pick(0, &[], 0, 0).is_some());
    }

    fn any_balance() -> impl Strategy<Value = Balance> {
        prop::sample::select(Balance::ALL.to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn only_the_open_of_the_lowest_tier_are_picked(
            balance in any_balance(),
            members in prop::collection::vec((0_u32..4, 0_u32..3, any::<bool>(), any::<bool>()), 0..9),
            seed in any::<u64>(),
        ) {
            let specs: Vec<_> = members.iter().map(|(weight, tier, ..)| (*weight, *tier)).collect();
            let pool = pool(balance, &specs);
            let mut tried = Vec::new();
            let mut open = Vec::new();
            for (index, (weight, tier, up, was_tried)) in members.iter().enumerate() {
                if !up { down(&pool, index) }
                if *was_tried { tried.push(index) }
                if *up && !was_tried && *weight > 0 { open.push((*tier, index)) }
            }
            let lowest = open.iter().map(|(tier, _)| *tier).min();
            let mut held = Vec::new();
            for n in 0..40 {
                let pick = pool.pick(mix(seed ^ n), &tried, mix(seed.wrapping_add(n)), n);
                match lowest {
                    None => prop_assert!(pick.is_none()),
                    Some(tier) => {
                        let pick = pick.unwrap();
                        prop_assert!(open.contains(&(tier, pick.index)), "{} of {:?}", pick.index, open);
                        if n % 2 == 0 { held.push(pick) }
                    }
                }
            }
            let in_flight: u32 = pool.members().iter().map(|member| member.endpoint.vitals.in_flight()).sum();
            prop_assert_eq!(in_flight as usize, held.len());
            drop(held);
            prop_assert!(pool.members().iter().all(|member| member.endpoint.vitals.in_flight() == 0));
        }

        // With many requests in flight every balancer but `first` has given them out by weight.
        #[test]
        fn load_is_by_weight(
            balance in any_balance().prop_filter("it does not share", |balance| *balance != Balance::First),
            weights in prop::collection::vec(1_u32..6, 1..9),
            gone in prop::option::of(any::<prop::sample::Index>()),
            seed in any::<u64>(),
        ) {
            let members: Vec<_> = weights.iter().map(|weight| (*weight, 0)).collect();
            let pool = pool(balance, &members);
            for member in pool.members() {
                member.endpoint.vitals.observe_latency(Duration::from_millis(20), 1);
            }
            let gone = gone.map(|index| index.index(weights.len())).filter(|_| weights.len() > 1);
            if let Some(gone) = gone { down(&pool, gone) }
            let total: u32 = (0..).zip(&weights).filter(|(n, _)| Some(*n) != gone).map(|(_, weight)| weight).sum();
            let held: Vec<_> = (0..4_000).map(|n| pool.pick(mix(seed ^ n), &[], mix(seed.wrapping_add(n)), 1)).collect();
            for (n, weight) in weights.iter().enumerate().filter(|(n, _)| Some(*n) != gone) {
                let share = f64::from(pool.members()[n].endpoint.vitals.in_flight()) / held.len() as f64;
                let expected = f64::from(*weight) / f64::from(total);
                prop_assert!((share - expected).abs() < 0.04, "{balance}: {share}, not {expected}");
            }
        }
    }
}
