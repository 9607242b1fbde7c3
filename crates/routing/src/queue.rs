//! Where requests wait while every VM of their pool has as many as it takes.
//!
//! Clients take turns: who asks for very much waits behind itself, and keeps nobody else. Of the turns that the requests of
//! one client would have without the others, the earliest is called first (start-time fair queueing).
//!
//! A line that has not been empty for as long as anybody may wait in it does not help any more: the VMs do no more for it, and
//! everybody waits. Then whoever has waited for a quarter of that time goes, so that all wait less, and the line is soon gone
//! when the load is (as CoDel does with packets).
//!
//! The lock is touched only by those who wait and those who call them: as long as nobody waits, a request that ends costs
//! one load.
#![allow(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "picks and matches never come here: only who waits, or calls somebody who does"
)]

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How many may wait, and for how long.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueSpec {
    pub length: usize,
    /// None: as long as their clients do.
    pub timeout: Option<Duration>,
}

impl Default for QueueSpec {
    fn default() -> QueueSpec {
        QueueSpec { length: 1024, timeout: Some(Duration::from_secs(5)) }
    }
}

impl QueueSpec {
    /// How long one may wait while the line does not get shorter.
    fn patience(&self) -> Option<Duration> {
        self.timeout.map(|timeout| timeout / 4)
    }
}

/// The requests of one pool that wait, of all workers and under all snapshots.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: AtomicUsize,
    /// Nanoseconds, since when it has not been empty.
    since: AtomicU64,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    /// In the order in which they are called.
    places: BTreeMap<Place, Option<Waker>>,
    next: u64,
    /// The turn of whoever was called last, the latest so far.
    turn: u64,
    /// The last turn that each client has, where that is still to come.
    last: HashMap<u64, u64>,
}

/// More urgent ones come first, then those whose turn it is, and then who came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Turned round, so that the highest priority is the least.
    urgency: std::cmp::Reverse<i32>,
    turn: u64,
    number: u64,
}

/// So many clients are remembered beyond those that wait before it is looked who is not needed any more.
const FORGOTTEN: usize = 256;

/// What tells one client from another: the IPv4 address, or the /64 of an IPv6 address.
pub(crate) fn client_key(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

impl Line {
    /// The next turn of a client.
    fn turn_of(&mut self, client: u64) -> u64 {
        let now = self.turn;
        let too_many = |last: &HashMap<u64, u64>| last.len() > self.places.len() + FORGOTTEN;
        if too_many(&self.last) {
            self.last.retain(|_, last| *last > now);
        }
        // Of those who have come and gone nobody can make it remember without end.
        if self.places.is_empty() || too_many(&self.last) {
            self.last.clear();
        }
        let last = self.last.entry(client).and_modify(|last| *last = now.max(*last + 1)).or_insert(now);
        *last
    }
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Takes a place; none: `length` of them are taken.
    pub(crate) fn enter(
        self: &Arc<Queue>,
        length: usize,
        priority: i32,
        client: u64,
        now: u64,
    ) -> Option<Waiting> {
        let mut line = self.lock();
        if line.places.len() >= length {
            return None;
        }
        if line.places.is_empty() {
            self.begin_anew(now);
        }
        let turn = line.turn_of(client);
        let place = Place { urgency: std::cmp::Reverse(priority), turn, number: line.next };
        line.next += 1;
        line.places.insert(place, None);
        self.count(&line);
        Some(Waiting { queue: self.clone(), place, served: false })
    }

    /// Whether one who has waited for so long is to go before its time.
    pub(crate) fn stands(&self, spec: &QueueSpec, waited: Duration, now: u64) -> bool {
        let (Some(timeout), Some(patience)) = (spec.timeout, spec.patience()) else { return false };
        let stood = now.saturating_sub(self.since.load(Ordering::Relaxed));
        waited >= patience && u128::from(stood) >= timeout.as_nanos()
    }

    /// How long it has not been empty counts from now on.
    pub(crate) fn begin_anew(&self, now: u64) {
        self.since.store(now, Ordering::Relaxed);
    }

    /// A VM has room for one more: calls the next.
    pub(crate) fn call(&self) {
        if self.is_empty() {
            return;
        }
        let mut line = self.lock();
        let next = line.places.pop_first();
        if let Some((place, _)) = &next {
            line.turn = line.turn.max(place.turn);
        }
        self.count(&line);
        drop(line);
        if let Some((_, Some(waker))) = next {
            waker.wake();
        }
    }

    fn count(&self, line: &Line) {
        self.waiting.store(line.places.len(), Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        // Nothing panics while it is held.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the line; ready when it is called. Dropping it leaves the line, and passes on what it was called for.
#[derive(Debug)]
pub struct Waiting {
    queue: Arc<Queue>,
    place: Place,
    /// It has got what it waited for.
    served: bool,
}

impl Waiting {
    /// Nobody else is to be called before it. Whoever comes first looks for room itself before it waits, for what became
    /// free before it came has called nobody.
    #[must_use]
    pub fn is_first(&self) -> bool {
        self.queue.lock().places.first_key_value().is_some_and(|(place, _)| *place == self.place)
    }

    /// Waits on, where it stood, although it was its turn: somebody else was faster. True: it had left the line, so what
    /// became free meanwhile has called nobody, and it is to look once more.
    #[must_use]
    pub fn stay(&mut self) -> bool {
        let mut line = self.queue.lock();
        let before = line.places.len();
        line.places.entry(self.place).or_default();
        self.queue.count(&line);
        line.places.len() > before
    }

    /// It has got what it waited for.
    pub fn leave(mut self) {
        self.served = true;
    }
}

impl Future for Waiting {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut line = self.queue.lock();
        match line.places.get_mut(&self.place) {
            Some(waker) => {
                *waker = Some(cx.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut line = self.queue.lock();
        let called = line.places.remove(&self.place).is_none();
        self.queue.count(&line);
        drop(line);
        // Who was called and goes passes it on; who got something without being called lets the next one look.
        if called != self.served {
            self.queue.call();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn is_called(waiting: &mut Waiting) -> bool {
        Pin::new(waiting).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    fn called(all: &mut [Waiting]) -> Vec<usize> {
        (0..).zip(all).filter_map(|(n, waiting)| is_called(waiting).then_some(n)).collect()
    }

    #[test]
    fn who_came_first_is_called_first_and_the_urgent_before() {
        let queue = Arc::new(Queue::default());
        let mut all: Vec<_> =
            [0, 0, 10, -1, 10].map(|priority| queue.enter(9, priority, 1, 0).unwrap()).into();
        let mut order = Vec::new();
        for _ in 0..5 {
            queue.call();
            let now = called(&mut all);
            order.extend(now.into_iter().filter(|n| !order.contains(n)).collect::<Vec<_>>());
        }
        assert_eq!(order, [2, 4, 0, 1, 3]);
        assert!(queue.is_empty());
    }

    #[test]
    fn clients_take_turns() {
        let queue = Arc::new(Queue::default());
        let mut all: Vec<_> = [1, 1, 1, 1].map(|client| queue.enter(99, 0, client, 0).unwrap()).into();
        let mut order = Vec::new();
        let mut call = |all: &mut [Waiting], times| {
            for _ in 0..times {
                queue.call();
                let now = called(all);
                order.extend(now.into_iter().filter(|n| !order.contains(n)).collect::<Vec<_>>());
            }
            order.clone()
        };
        assert_eq!(call(&mut all, 1), [0]);
        all.extend([2, 2, 3, 1].map(|client| queue.enter(99, 0, client, 0).unwrap()));
        // The others are there only now: what the first has had is no debt.
        assert_eq!(call(&mut all, 7), [0, 4, 6, 1, 5, 2, 3, 7]);
        assert!(queue.is_empty());
        // Once nobody waits all begin anew.
        all.clear();
        let mut all: Vec<_> = [1, 2].map(|client| queue.enter(99, 0, client, 0).unwrap()).into();
        queue.call();
        assert_eq!(called(&mut all), [0]);
    }

    #[test]
    fn a_line_that_does_not_get_shorter_is_made_shorter() {
        const SECOND: u64 = 1_000_000_000;
        let (queue, spec) = (Arc::new(Queue::default()), QueueSpec::default());
        let (short, long) = (Duration::from_millis(1249), Duration::from_millis(1250));
        let first = queue.enter(9, 0, 1, SECOND).unwrap();
        let second = queue.enter(9, 0, 1, 2 * SECOND).unwrap();
        assert!(!queue.stands(&spec, long, 6 * SECOND - 1), "it may be a burst");
        drop(first);
        assert!(queue.stands(&spec, long, 6 * SECOND) && !queue.stands(&spec, short, 6 * SECOND));
        let endless = QueueSpec { timeout: None, ..spec.clone() };
        assert!(!queue.stands(&endless, long, 100 * SECOND));
        queue.begin_anew(6 * SECOND);
        assert!(!queue.stands(&spec, long, 10 * SECOND));
        drop(second);
        let _third = queue.enter(9, 0, 1, 20 * SECOND).unwrap();
        assert!(!queue.stands(&spec, long, 24 * SECOND), "it was empty");
    }

    #[test]
    fn who_has_gone_is_forgotten() {
        let queue = Arc::new(Queue::default());
        let _stays = queue.enter(9, 0, 0, 0).unwrap();
        for client in 1..10_000 {
            for _ in 0..3 {
                drop(queue.enter(9, 0, client, 0).unwrap());
            }
            assert!(queue.lock().last.len() <= FORGOTTEN + 2, "{client}");
        }
    }

    #[test]
    fn networks_are_clients() {
        let key = |text: &str| client_key(text.parse().unwrap());
        assert_eq!(key("2001:db8::1"), key("2001:db8::2"));
        assert_ne!(key("2001:db8::1"), key("2001:db8:0:1::1"));
        assert_ne!(key("10.0.0.1"), key("10.0.0.2"));
    }

    #[test]
    fn it_is_bounded() {
        let queue = Arc::new(Queue::default());
        let one = queue.enter(2, 0, 1, 0).unwrap();
        let two = queue.enter(2, 0, 1, 0).unwrap();
        assert!(one.is_first() && !two.is_first());
        assert!(queue.enter(2, 9, 1, 0).is_none(), "however urgent");
        drop(one);
        assert!(queue.enter(2, 0, 1, 0).is_some());
        assert!(Arc::new(Queue::default()).enter(0, 0, 1, 0).is_none());
    }

    #[test]
    fn a_call_wakes_one() {
        let (queue, count) = (Arc::new(Queue::default()), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let mut all: Vec<_> = (0..3).map(|_| queue.enter(9, 0, 1, 0).unwrap()).collect();
        for waiting in &mut all {
            assert!(Pin::new(waiting).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        queue.call();
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn who_is_called_and_goes_passes_it_on() {
        let queue = Arc::new(Queue::default());
        let mut all: Vec<_> = (0..3).map(|_| queue.enter(9, 0, 1, 0).unwrap()).collect();
        queue.call();
        assert_eq!(called(&mut all), [0]);
        drop(all.remove(0));
        assert_eq!(called(&mut all), [0], "the next");
        all.remove(0).leave();
        assert_eq!(called(&mut all), [0; 0], "it has used it");
        let (mut last, first) = (queue.enter(9, 0, 1, 0).unwrap(), all.remove(0));
        assert!(first.is_first());
        first.leave();
        assert!(is_called(&mut last), "it was not called: there may be more");
        drop(last);
        drop(all);
        assert!(queue.is_empty());
    }

    #[test]
    fn who_came_too_late_keeps_its_place() {
        let queue = Arc::new(Queue::default());
        let mut all: Vec<_> = (0..2).map(|_| queue.enter(9, 0, 1, 0).unwrap()).collect();
        queue.call();
        assert_eq!(called(&mut all), [0]);
        assert!(all[0].stay(), "it had left");
        assert!(!all[0].stay());
        assert_eq!(called(&mut all), [0; 0]);
        queue.call();
        assert_eq!(called(&mut all), [0]);
    }
}
