mod shares;

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Context;

use http::Method;
use http::header::COOKIE;
use proptest::prelude::*;

use super::*;
use crate::dice::mix;
use crate::{Snapshot, SnapshotBuilder, State};

pub(super) fn spec(balance: Balance, members: &[(u32, u32)]) -> PoolSpec {
    let member = |(n, (weight, tier)): (usize, &(u32, u32))| MemberSpec {
        name: format!("vm{n}").into(),
        address: Address::Ip(format!("10.0.{}.{}:80", n / 250, n % 250).parse().unwrap()),
        weight: *weight,
        tier: *tier,
        max_requests: None,
    };
    PoolSpec { balance, ..PoolSpec::new("pool", members.iter().enumerate().map(member).collect()) }
}

pub(super) fn built(spec: PoolSpec) -> Arc<Pool> {
    let mut builder = SnapshotBuilder::new(None);
    let id = builder.add_pool(spec);
    let snapshot: Snapshot = builder.build();
    Arc::clone(snapshot.pool(id).unwrap())
}

pub(super) fn pool(balance: Balance, members: &[(u32, u32)]) -> Arc<Pool> {
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
    RequestView {
        method: &Method::GET,
        path: "/p",
        query: Some("u=a%20b"),
        headers,
        client_ip,
        client_cert: false,
    }
}

pub(super) fn cookies(value: &str) -> HeaderMap {
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
    for balance in [Balance::RoundRobin, Balance::LeastRequests, Balance::Random, Balance::Hash] {
        let shares = shares(&pool(balance, &[(3, 0), (1, 0), (4, 0)]), 20_000, &[]);
        for (share, expected) in shares.iter().zip([0.375, 0.125, 0.5]) {
            assert!((share - expected).abs() < 0.015, "{balance} {shares:?}");
        }
    }
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
    assert_eq!(pool.pick(42, &[home], 9, 0).unwrap().index, second, "its second choice is always the same");
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
    sticky_with(max_age, [7; 16])
}

fn sticky_with(max_age: Option<Duration>, secret: [u8; 16]) -> Arc<Pool> {
    let sticky = Sticky { cookie: "fg_vm".into(), max_age, secret: Secret(secret) };
    built(PoolSpec { sticky: Some(sticky), ..spec(Balance::RoundRobin, &[(1, 0), (0, 0), (1, 1)]) })
}

#[test]
fn sticky_cookies_bring_clients_back() {
    let pool = sticky(None);
    let empty = HeaderMap::new();
    assert!(pool.pick_sticky(&empty, &[], 0).is_none());
    for index in 0..3 {
        let set = pool.sticky_cookie(&empty, index, false).unwrap();
        let (pair, attributes) = set.to_str().unwrap().split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        assert_eq!(pair.len(), "fg_vm=".len() + 16);

        let headers = cookies(&format!("fg_vm=0123456789abcdef; x=y; {pair}"));
        let pick = pool.pick_sticky(&headers, &[], 0).unwrap();
        assert_eq!(pick.index, index, "whatever its tier and weight");
        assert_eq!(pick.member.endpoint.vitals.in_flight(), 1);
        assert!(pool.sticky_cookie(&headers, index, false).is_none(), "it has its cookie");
        assert!(pool.sticky_cookie(&headers, (index + 1) % 3, false).is_some(), "it went elsewhere");
        assert!(pool.pick_sticky(&headers, &[index], 0).is_none());
        down(&pool, index);
        assert!(pool.pick_sticky(&headers, &[], 0).is_none());
    }
    for strange in ["fg_vm=", "fg_vm=+123456789abcdef", "fg_vm=0123456789abcdef", "FG_VM=1"] {
        assert!(pool.pick_sticky(&cookies(strange), &[], 0).is_none());
    }
    assert!(pool.sticky_cookie(&empty, 3, false).is_none());
}

#[test]
fn nobody_names_a_vm_without_the_secret() {
    let (ours, others) = (sticky_with(None, [7; 16]), sticky_with(None, [8; 16]));
    for index in 0..3 {
        let set = others.sticky_cookie(&HeaderMap::new(), index, false).unwrap();
        let forged = cookies(set.to_str().unwrap().split(';').next().unwrap());
        assert!(others.pick_sticky(&forged, &[], 0).is_some());
        assert!(ours.pick_sticky(&forged, &[], 0).is_none());
    }
}

// Clients carry these values: a change loses every session.
#[test]
fn sticky_values_never_change() {
    let set = sticky(Some(Duration::from_secs(3600))).sticky_cookie(&HeaderMap::new(), 0, true).unwrap();
    assert_eq!(set, "fg_vm=e6ad243cbc66a73f; Path=/; HttpOnly; SameSite=Lax; Max-Age=3600; Secure");
}

#[test]
fn a_cookie_that_no_header_can_hold_is_never_set() {
    let sticky = Sticky { cookie: "a\nb".into(), max_age: None, secret: Secret([7; 16]) };
    let pool = built(PoolSpec { sticky: Some(sticky), ..spec(Balance::RoundRobin, &[(1, 0)]) });
    assert!(pool.sticky_cookie(&HeaderMap::new(), 0, true).is_none());
    assert!(pool.pick(0, &[], 0, 0).is_some());
}

#[test]
fn nobody_gets_more_than_it_takes() {
    for balance in Balance::ALL {
        let mut spec = spec(balance, &[(1, 0), (2, 0), (1, 1)]);
        for (member, most) in spec.members.iter_mut().zip([2, 3, 1]) {
            member.max_requests = Some(most);
        }
        let pool = built(spec);
        let mut picks: Vec<_> = (0..5).map(|n| pool.pick(mix(n), &[], mix(!n), 0).unwrap()).collect();
        assert!(picks.iter().all(|pick| pick.member.tier == 0), "{balance}");
        assert!(!pool.is_busy(&[0, 1, 2], 0), "{balance}: what was tried is not waited for");
        picks.push(pool.pick(0, &[], 0, 0).unwrap());
        assert_eq!(picks[5].index, 2, "{balance}: the next tier has room");
        assert!(pool.pick(0, &[], 0, 0).is_none(), "{balance}");
        assert!(pool.is_busy(&[], 0), "{balance}");
        let counts = pool.members().iter().map(|member| member.endpoint.vitals.in_flight());
        assert_eq!(counts.collect::<Vec<_>>(), [2, 3, 1], "{balance}");
        drop(picks.pop());
        assert_eq!(pool.pick(0, &[], 0, 0).unwrap().index, 2, "{balance}");
        (0..3).for_each(|index| down(&pool, index));
        assert!(!pool.is_busy(&[], 0), "{balance}: who is down is not waited for");
    }
}

/// On many threads at once: nobody waits for ever, and no VM has more than it takes.
#[test]
#[allow(clippy::disallowed_methods, reason = "a call that is lost shows in the time alone")]
fn whoever_waits_is_called() {
    const THREADS: u64 = 8;
    const REQUESTS: u64 = 3_000;
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: Arc<Unpark>) {
            self.0.unpark();
        }
    }
    let mut spec = spec(Balance::RoundRobin, &[(1, 0), (1, 0)]);
    spec.members.iter_mut().for_each(|member| member.max_requests = Some(1));
    let pool = built(spec);
    let (running, waited) = ([AtomicU32::new(0), AtomicU32::new(0)], AtomicU32::new(0));
    let begun = std::time::Instant::now();
    let work = |thread: u64| {
        let waker = std::task::Waker::from(Arc::new(Unpark(std::thread::current())));
        for n in 0..REQUESTS {
            let pick = || pool.pick(0, &[], mix(thread ^ n), 0);
            let at_once = if pool.others_wait() { None } else { pick() };
            let pick = at_once.unwrap_or_else(|| {
                waited.fetch_add(1, Ordering::SeqCst);
                let mut waiting = pool.enter_queue(0, [127, 0, 0, 1].into(), 0).unwrap();
                let mut own_turn = waiting.is_first();
                loop {
                    if own_turn && let Some(pick) = pick() {
                        waiting.leave();
                        return pick;
                    }
                    if own_turn && waiting.stay() {
                        continue;
                    }
                    while Pin::new(&mut waiting).poll(&mut Context::from_waker(&waker)).is_pending() {
                        assert!(begun.elapsed() < Duration::from_secs(60), "nobody calls");
                        std::thread::park_timeout(Duration::from_secs(5));
                    }
                    own_turn = true;
                }
            });
            let now = running[pick.index].fetch_add(1, Ordering::SeqCst);
            assert_eq!(now, 0);
            std::thread::yield_now();
            running[pick.index].fetch_sub(1, Ordering::SeqCst);
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || work(thread));
        }
    });
    assert!(!pool.others_wait());
    assert!(waited.into_inner() > 1_000);
    // With a call lost, five seconds would have passed somewhere.
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
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
        let held: Vec<_> = (0..20_000).map(|n| pool.pick(mix(seed ^ n), &[], mix(seed.wrapping_add(n)), 1)).collect();
        for (n, weight) in weights.iter().enumerate().filter(|(n, _)| Some(*n) != gone) {
            let share = f64::from(pool.members()[n].endpoint.vitals.in_flight()) / held.len() as f64;
            let expected = f64::from(*weight) / f64::from(total);
            prop_assert!((share - expected).abs() < 0.02, "{balance}: {share}, not {expected}");
        }
    }
}
