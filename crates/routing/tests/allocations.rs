//! A pick allocates nothing, whatever the balancer and whoever is down: counted by the allocator itself.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop at the first surprise")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use foregate_routing::{
    Address, Balance, Duty, MemberSpec, PoolSpec, Secret, SnapshotBuilder, State, Sticky,
};
use http::HeaderMap;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator as it came; a counter without a destructor is all there is
// besides.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is the system's too.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1_u8; 100]))), 1);
}

#[test]
fn a_pick_allocates_nothing() {
    let second = 1_000_000_000;
    for balance in Balance::ALL {
        let members = (0..12).map(|n| MemberSpec {
            name: format!("vm{n}").into(),
            address: Address::Ip(([10, 0, 0, n], 80).into()),
            weight: u32::from(n % 3) + 1,
            tier: u32::from(n % 2),
            max_requests: (n % 4 == 0).then_some(5),
        });
        let sticky = Sticky { cookie: "fg_vm".into(), max_age: None, secret: Secret([7; 16]) };
        let spec = PoolSpec::new("pool", members.collect());
        let spec =
            PoolSpec { balance, sticky: Some(sticky), slow_start: Some(Duration::from_secs(30)), ..spec };
        let mut builder = SnapshotBuilder::new(None);
        let id = builder.add_pool(spec);
        let snapshot = builder.build();
        let pool = snapshot.pool(id).unwrap();
        let vitals = |index: usize| &pool.members()[index].endpoint.vitals;
        vitals(0).set_state(State::Down);
        vitals(2).set_duty(Duty::Drain, second);
        vitals(4).ask_share(0.3);
        let headers = HeaderMap::new();
        let mut held = Vec::with_capacity(64);
        let counted = allocations(|| {
            for n in 0..1_000_u64 {
                let now = second + n * second / 20;
                let dice = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                assert!(pool.pick_sticky(&headers, &[], now).is_none());
                let Some(pick) = pool.pick(!dice, &[1], dice, now) else { continue };
                pool.judge(pick.index, pick.entry, !n.is_multiple_of(7), now);
                if held.len() < 64 {
                    held.push(pick);
                }
            }
        });
        assert_eq!(counted, 0, "{balance}");
        assert_eq!(held.len(), 64, "{balance}");
    }
}
