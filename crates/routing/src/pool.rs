//! Pools: which VMs answer, and which one answers now.

mod deviation;
mod judge;
mod sticky;

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};

use self::sticky::StickyCookie;
use crate::alarm::Alarm;
use crate::balance::{Balance, Balancer, Candidates, Heed, Occasion};
use crate::circuit::{Entry, Outlier};
use crate::dice::{Purpose, digest};
use crate::endpoint::{Address, Endpoint, InFlight, State};
use crate::pace::Pace;
use crate::queue::{Queue, QueueSpec, Waiting, client_key};
use crate::retry::{Hedge, Repeating, Retry};
use crate::route::RequestView;
use crate::snapshot::PoolId;
use crate::{cookie, query};

pub use self::deviation::Deviation;
pub use self::judge::Verdict;
pub use self::sticky::{Secret, Sticky};

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
    /// None: whatever fails, nobody is set aside for it.
    pub outlier: Option<Outlier>,
    pub retry: Retry,
    pub queue: QueueSpec,
    /// How long a VM that has come up gets less than its share; none: it gets all of it at once.
    pub slow_start: Option<Duration>,
    /// How long who is stuck to a VM may still come there once it is to have no more work.
    pub drain: Duration,
    /// None: the VMs are not asked how they are.
    pub agent: Option<Agent>,
    /// None: nobody is called when there is no usable VM.
    pub wake: Option<Wake>,
    pub members: Vec<MemberSpec>,
}

impl PoolSpec {
    /// A pool of which nothing else is said.
    pub fn new(name: impl Into<Box<str>>, members: Vec<MemberSpec>) -> PoolSpec {
        PoolSpec {
            name: name.into(),
            balance: Balance::default(),
            hash_on: HashOn::default(),
            sticky: None,
            health: None,
            outlier: Some(Outlier::default()),
            retry: Retry::default(),
            queue: QueueSpec::default(),
            slow_start: None,
            drain: Duration::from_secs(30),
            agent: None,
            wake: None,
            members,
        }
    }
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
    /// So many requests at a time; none: as many as come.
    pub max_requests: Option<u32>,
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
    /// That this service of `grpc.health.v1` is serving; the empty one is the VM as a whole.
    Grpc { service: Box<str> },
}

/// How the VMs are asked for their load: by a connection to a port of theirs, on which they say a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Agent {
    pub port: u16,
    pub interval: Duration,
    /// Percent. A VM that says it uses more is probed at once, and gets less.
    pub max_cpu: u8,
}

/// What is done when there is no usable VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wake {
    /// A program and its arguments.
    pub command: Box<[Box<str>]>,
    /// For so long requests wait for a VM.
    pub timeout: Duration,
}

/// One backend of a pool in a snapshot.
#[derive(Debug)]
pub struct Member {
    pub endpoint: Arc<Endpoint>,
    pub name: Box<str>,
    pub weight: u32,
    pub tier: u32,
    pub max_requests: Option<u32>,
}

/// The VMs that share some work.
#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    pub id: PoolId,
    pub health: Option<HealthCheck>,
    pub retry: Retry,
    /// How many requests wait while all members have as many as they take, and for how long.
    pub queue: QueueSpec,
    pub agent: Option<Agent>,
    pub wake: Option<Wake>,
    alarm: Arc<Alarm>,
    slow_start: Option<Duration>,
    drain: Duration,
    pace: Arc<Pace>,
    line: Arc<Queue>,
    outlier: Option<Outlier>,
    repeating: Arc<Repeating>,
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

/// A member that was picked, and its place in the in-flight count.
#[derive(Debug)]
pub struct Pick<'p> {
    pub member: &'p Member,
    /// For `tried` and [`Pool::sticky_cookie`].
    pub index: usize,
    /// For [`Pool::judge`].
    pub entry: Entry,
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
        let line = previous.map(|previous| Arc::clone(&previous.line)).unwrap_or_default();
        let pace = previous.map(|previous| Arc::clone(&previous.pace)).unwrap_or_default();
        let alarm = previous.map(|previous| Arc::clone(&previous.alarm)).unwrap_or_default();
        let member = |spec: MemberSpec| {
            let MemberSpec { name: member, address, weight, tier, max_requests } = spec;
            let endpoint = endpoints.entry(address).or_insert_with_key(|address| {
                Endpoint::of(Arc::clone(&name), address.clone(), Arc::clone(&line))
            });
            Member { endpoint: Arc::clone(endpoint), name: member, weight, tier, max_requests }
        };
        let members: Box<[Member]> = spec.members.into_iter().map(member).collect();
        let tiers = tiers(&members, spec.balance, previous);
        let sticky = spec.sticky.and_then(|sticky| StickyCookie::new(&name, &sticky, &members));
        let PoolSpec { balance, hash_on, health, outlier, retry, queue, .. } = spec;
        let PoolSpec { slow_start, drain, agent, wake, .. } = spec;
        let repeating = previous.map(|previous| Arc::clone(&previous.repeating)).unwrap_or_default();
        Pool {
            name,
            id,
            health,
            retry,
            queue,
            agent,
            wake,
            alarm,
            slow_start,
            drain,
            pace,
            line,
            outlier,
            repeating,
            hash_on,
            members,
            tiers,
            sticky,
            balance,
        }
    }

    /// What stands where a pool should be and is none: it has no members, so a request for it is answered
    /// like one for a pool that is down.
    pub(crate) fn missing() -> Pool {
        Pool::new(PoolSpec::new("", Vec::new()), PoolId::NONE, None)
    }

    pub fn balance(&self) -> Balance {
        self.balance
    }

    /// Requests that wait for a member.
    pub fn waiting(&self) -> usize {
        self.line.len()
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
    /// zero, not set aside by live traffic and not in `tried`, which holds indices. A first attempt goes to one
    /// that is set aside where there is nobody else. None when there is none at all: all are down, or all
    /// were tried.
    ///
    /// Takes no lock and allocates nothing. `key` is [`Pool::key`]'s, `dice` a fresh random number,
    /// `now_nanos` the clock of [`Vitals::observe_latency`](crate::Vitals::observe_latency).
    pub fn pick(&self, key: u64, tried: &[usize], dice: u64, now_nanos: u64) -> Option<Pick<'_>> {
        let occasion = Occasion { key, dice, now_nanos };
        // Each time somebody else has taken what there was of the one that was chosen, which is passed over then.
        for _ in 0..=self.members.len() {
            let Some(index) = self.choose(tried, occasion, self.heed()) else {
                break;
            };
            if let Some(pick) = self.begin(index, now_nanos) {
                return Some(pick);
            }
        }
        let alone = self.outlier.is_some() && tried.is_empty() && !self.is_busy(tried, now_nanos);
        let index = alone.then(|| self.choose(tried, occasion, Heed::Nothing))??;
        self.begin_as(index, Entry::LastResort)
    }

    /// The member for an attempt beside one that is under way: as [`pick`](Pool::pick), but none that is set aside, for
    /// whoever is not waited for tells nothing. None too where others wait.
    pub fn pick_beside(&self, key: u64, tried: &[usize], dice: u64, now_nanos: u64) -> Option<Pick<'_>> {
        let occasion = Occasion { key, dice, now_nanos };
        let index = self.choose(tried, occasion, Heed::Closed).filter(|_| !self.others_wait())?;
        self.begin_as(index, Entry::Free)
    }

    /// The index of a member.
    fn choose(&self, tried: &[usize], occasion: Occasion, heed: Heed) -> Option<usize> {
        self.tiers.iter().find_map(|tier| {
            let candidates = Candidates {
                members: &self.members,
                slots: &tier.slots,
                tried,
                heed,
                now_nanos: occasion.now_nanos,
                slow_start: self.slow_start,
                most: Cell::new(0),
            };
            tier.slots.get(tier.balancer.pick(&candidates, occasion)?).copied()
        })
    }

    /// The member a sticky cookie of this request names, if it is usable, not set aside and not in `tried`. Its tier
    /// and a weight of zero do not matter: they are about new work. Nor does it that the VM is to have no new work, for
    /// as long as its pool says.
    pub fn pick_sticky(&self, headers: &HeaderMap, tried: &[usize], now_nanos: u64) -> Option<Pick<'_>> {
        let index = self.sticky.as_ref()?.named(headers)?;
        let member = self.members.get(index)?;
        let open = member.is_open(self.heed(), now_nanos)
            && member.has_room()
            && !tried.contains(&index)
            && !member.endpoint.vitals.roster.is_over(self.drain, now_nanos);
        open.then(|| self.begin(index, now_nanos))?
    }

    /// Whether a cookie keeps clients at their VM.
    pub fn sticks(&self) -> bool {
        self.sticky.is_some()
    }

    /// The `Set-Cookie` value for a response from `member` to a request with these headers: none when the
    /// pool is not sticky, or the request already named that member. `secure` says that it came by https.
    pub fn sticky_cookie(&self, headers: &HeaderMap, member: usize, secure: bool) -> Option<HeaderValue> {
        let sticky = self.sticky.as_ref()?;
        if sticky.named(headers) == Some(member) {
            return None;
        }
        sticky.naming(member, secure)
    }

    /// A place in the line for a VM; none: too many wait already. Whoever [is first](Waiting::is_first) asks
    /// [`pick`](Pool::pick) once more before waiting. Clients take turns.
    pub fn enter_queue(&self, priority: i32, client: IpAddr, now_nanos: u64) -> Option<Waiting> {
        self.line.enter(self.queue.length, priority, client_key(client), now_nanos)
    }

    /// Whether one who has waited in the queue for so long is to go before its time, because the queue does not get shorter.
    #[must_use]
    pub fn queue_stands(&self, waited: Duration, now_nanos: u64) -> bool {
        self.line.stands(&self.queue, waited, now_nanos)
    }

    /// There was no VM that could have made the queue shorter.
    pub fn excuse_queue(&self, now_nanos: u64) {
        self.line.begin_anew(now_nanos);
    }

    /// Requests being served by its members, or waiting for one.
    pub fn under_way(&self) -> usize {
        self.in_flight() as usize + self.line.len()
    }

    /// Requests being served by its members.
    pub(crate) fn in_flight(&self) -> u32 {
        self.members.iter().map(|member| member.endpoint.vitals.in_flight()).fold(0, u32::saturating_add)
    }

    /// Whether others wait, who came before.
    pub fn others_wait(&self) -> bool {
        !self.line.is_empty()
    }

    /// Whether there are members that could be picked if they had room: they are worth waiting for. One may have room
    /// by now.
    pub fn is_busy(&self, tried: &[usize], now_nanos: u64) -> bool {
        let heed = self.heed();
        self.members.iter().enumerate().any(|(index, member)| {
            let limited = member.max_requests.is_some() && member.weight > 0;
            limited && member.takes_new(heed, now_nanos) && !tried.contains(&index)
        })
    }

    /// Whether a request could be served now, as far as probes know.
    pub fn any_usable(&self) -> bool {
        self.members.iter().any(|member| member.weight > 0 && member.endpoint.vitals.takes_new())
    }

    /// After how long without an answer a request that may be made again is made elsewhere too.
    pub fn hedge_after(&self) -> Option<Duration> {
        match self.retry.hedge? {
            Hedge::After(time) => Some(time),
            Hedge::P95 => self.pace.bound(),
        }
    }

    /// Takes in how long an answer took to begin.
    pub fn observe(&self, sample: Duration) {
        if self.retry.hedge == Some(Hedge::P95) {
            self.pace.observe(sample);
        }
    }

    /// Whether probes have found a member down: it may be woken.
    pub fn any_down(&self) -> bool {
        self.members.iter().any(|member| member.weight > 0 && member.endpoint.vitals.state() == State::Down)
    }

    /// For the one who finds no usable VM: whether to wait for one, and whether to have it woken.
    pub fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// What was begun with a member must end: it is to have no work any more, and its time for that is over.
    pub fn is_over(&self, index: usize, now_nanos: u64) -> bool {
        self.members
            .get(index)
            .is_some_and(|member| member.endpoint.vitals.roster.is_over(self.drain, now_nanos))
    }

    /// What live traffic says counts unless that is off.
    fn heed(&self) -> Heed {
        if self.outlier.is_some() { Heed::Due } else { Heed::Nothing }
    }

    /// A member that is open. None where live traffic has just sent it the one request that is a trial, or it has got as
    /// many as it takes: to give the place back calls who waits, so ask only for what is open.
    fn begin(&self, index: usize, now_nanos: u64) -> Option<Pick<'_>> {
        let mut pick = self.begin_as(index, Entry::Free)?;
        if let Some(outlier) = &self.outlier {
            pick.entry = pick.member.endpoint.vitals.circuit.enter(now_nanos, outlier.eject)?;
        }
        Some(pick)
    }

    fn begin_as(&self, index: usize, entry: Entry) -> Option<Pick<'_>> {
        let member = self.members.get(index)?;
        let in_flight = InFlight::within(&member.endpoint, member.max_requests)?;
        Some(Pick { member, index, entry, in_flight })
    }
}

impl Member {
    /// Whether probes and live traffic let work be sent there.
    fn is_open(&self, heed: Heed, now_nanos: u64) -> bool {
        self.endpoint.vitals.usable() && self.is_heeded(heed, now_nanos)
    }

    /// Whether new work may be.
    pub(crate) fn takes_new(&self, heed: Heed, now_nanos: u64) -> bool {
        self.endpoint.vitals.takes_new() && self.is_heeded(heed, now_nanos)
    }

    fn is_heeded(&self, heed: Heed, now_nanos: u64) -> bool {
        let circuit = &self.endpoint.vitals.circuit;
        match heed {
            Heed::Nothing => true,
            Heed::Due => circuit.admits(now_nanos),
            Heed::Closed => circuit.is_closed(),
        }
    }

    /// Whether it takes one more request.
    pub(crate) fn has_room(&self) -> bool {
        self.max_requests.is_none_or(|most| self.endpoint.vitals.in_flight() < most)
    }
}

/// The hash of a request's client. A v4-mapped address is the IPv4 address.
pub(crate) fn of_client(purpose: Purpose, view: &RequestView<'_>) -> u64 {
    match view.client_ip.to_canonical() {
        IpAddr::V4(ip) => digest(purpose, &ip.octets()),
        IpAddr::V6(ip) => digest(purpose, &ip.octets()),
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

#[cfg(test)]
mod tests;
