//! Members that count for less than their weight, or want no work.

use super::*;
use crate::Duty;

const SECOND: u64 = 1_000_000_000;
const SHARING: [Balance; 4] = [Balance::RoundRobin, Balance::LeastRequests, Balance::Random, Balance::Hash];

fn slow(balance: Balance, members: usize) -> Arc<Pool> {
    let slow_start = Some(Duration::from_secs(30));
    built(PoolSpec { slow_start, ..spec(balance, &vec![(1, 0); members]) })
}

/// The share of one member, at this time.
fn share_of(pool: &Pool, index: usize, now: u64) -> f64 {
    let picked = (0..20_000).filter(|n| pool.pick(mix(*n), &[], mix(!n), now).unwrap().index == index);
    picked.count() as f64 / 20_000.0
}

/// All are warm, and one has just come up again at ten seconds past.
fn one_comes_up(pool: &Pool, index: usize) -> u64 {
    share_of(pool, 0, SECOND);
    let now = 100 * SECOND;
    share_of(pool, 0, now);
    down(pool, index);
    pool.members()[index].endpoint.vitals.set_state(State::Up);
    pool.members()[index].endpoint.vitals.share.now(Some(Duration::from_secs(30)), now);
    now
}

#[test]
fn who_has_come_up_gets_more_and_more() {
    for balance in SHARING {
        let pool = slow(balance, 4);
        let now = one_comes_up(&pool, 2);
        let shares = [0, 10, 20, 30].map(|seconds| share_of(&pool, 2, now + seconds * SECOND));
        assert!(shares.is_sorted(), "{balance}: {shares:?}");
        assert!((0.005..0.04).contains(&shares[0]), "{balance}: {shares:?}");
        assert!((0.08..0.17).contains(&shares[1]), "{balance}: {shares:?}");
        assert!((0.23..0.27).contains(&shares[3]), "{balance}: {shares:?}");
    }
    let pool = slow(Balance::First, 2);
    let now = one_comes_up(&pool, 0);
    let shares = [0, 15, 30].map(|seconds| share_of(&pool, 0, now + seconds * SECOND));
    assert!(shares[0] < 0.08 && (0.5..0.6).contains(&shares[1]) && shares[2] == 1.0, "{shares:?}");
}

#[test]
fn in_flight_too_it_holds_its_part() {
    for balance in [Balance::LeastRequests, Balance::Random, Balance::Ewma, Balance::Hash] {
        let pool = slow(balance, 10);
        for member in pool.members() {
            member.endpoint.vitals.observe_latency(Duration::from_millis(20), 100 * SECOND);
        }
        let now = one_comes_up(&pool, 3) + 8 * SECOND;
        let held: Vec<_> = (0..4_000).map(|n| pool.pick(mix(n), &[], mix(!n), now).unwrap()).collect();
        let one = held.iter().filter(|pick| pick.index == 3).count();
        // A third of a tenth.
        assert!((60..230).contains(&one), "{balance}: {one}");
    }
}

#[test]
fn where_all_warm_up_none_is_passed_over() {
    for balance in SHARING {
        let pool = slow(balance, 4);
        let share = share_of(&pool, 1, SECOND);
        assert!((share - 0.25).abs() < 0.02, "{balance}: {share}");
    }
    assert_eq!(share_of(&slow(Balance::First, 3), 0, SECOND), 1.0);
    let homes =
        |pool: &Pool| (0..500).map(|n| pool.pick(mix(n), &[], 0, SECOND).unwrap().index).collect::<Vec<_>>();
    assert_eq!(homes(&slow(Balance::Hash, 4)), homes(&pool(Balance::Hash, &[(1, 0); 4])));
}

#[test]
fn a_key_moves_home_once_as_its_vm_warms_up() {
    let pool = slow(Balance::Hash, 4);
    let now = one_comes_up(&pool, 2);
    for key in 0..500 {
        let homes: Vec<_> =
            (0..=30).map(|s| pool.pick(mix(key), &[], 0, now + s * SECOND).unwrap().index).collect();
        assert!(homes.windows(2).filter(|pair| pair[0] != pair[1]).count() <= 1, "{homes:?}");
    }
}

#[test]
fn who_asks_for_less_gets_less() {
    for balance in SHARING {
        let pool = pool(balance, &[(1, 0); 2]);
        pool.members()[0].endpoint.vitals.ask_share(0.5);
        let share = share_of(&pool, 0, SECOND);
        assert!((0.22..0.36).contains(&share), "{balance}: {share}");
        pool.members()[0].endpoint.vitals.ask_share(1.0);
        assert!((share_of(&pool, 0, SECOND) - 0.5).abs() < 0.02, "{balance}");
    }
}

#[test]
fn who_drains_keeps_its_clients_for_a_while() {
    let sticky = Sticky { cookie: "fg_vm".into(), max_age: None, secret: Secret([7; 16]) };
    for balance in Balance::ALL {
        let pool = built(PoolSpec { sticky: Some(sticky.clone()), ..spec(balance, &[(1, 0); 2]) });
        let set = pool.sticky_cookie(&HeaderMap::new(), 0, false).unwrap();
        let stuck = cookies(set.to_str().unwrap().split(';').next().unwrap());
        let vitals = &pool.members()[0].endpoint.vitals;
        assert_eq!(vitals.set_duty(Duty::Drain, 10 * SECOND), Duty::Work);
        assert!((0..100).all(|n| pool.pick(mix(n), &[], mix(!n), 11 * SECOND).unwrap().index == 1));
        assert!(pool.pick(0, &[1], 0, 11 * SECOND).is_none(), "not even when the others were tried");
        assert_eq!(pool.pick_sticky(&stuck, &[], 39 * SECOND).unwrap().index, 0);
        assert!(!pool.is_over(0, 39 * SECOND) && pool.is_over(0, 40 * SECOND));
        assert!(pool.pick_sticky(&stuck, &[], 40 * SECOND).is_none(), "its time is over");
        vitals.set_duty(Duty::Off, 50 * SECOND);
        assert!(pool.pick_sticky(&stuck, &[], 50 * SECOND).is_none(), "nothing at all");
        assert!(pool.any_usable());
        vitals.set_duty(Duty::Work, 60 * SECOND);
        assert!(pool.pick(0, &[1], 0, 60 * SECOND).is_some());
        pool.members()
            .iter()
            .for_each(|member| _ = member.endpoint.vitals.set_duty(Duty::Drain, 70 * SECOND));
        assert!(pool.pick(0, &[], 0, 70 * SECOND).is_none() && !pool.any_usable());
    }
}
