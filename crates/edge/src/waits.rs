//! Requests that wait for their VM's answer. One that waits for long has the VM doubted, and one whose VM is set aside
//! meanwhile may go elsewhere. All of a worker's are looked at from time to time, so that none needs a timer.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use foregate_exchange::clock;
use foregate_routing::{Endpoint, Mark};
use slab::Slab;
use tokio::sync::mpsc::UnboundedSender;

use crate::Concern;

/// How often they are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// The requests of one worker.
pub(crate) struct Waits {
    all: RefCell<Slab<Wait>>,
    concerns: UnboundedSender<Concern>,
}

struct Wait {
    endpoint: Arc<Endpoint>,
    mark: Mark,
    /// Nanoseconds, when the VM is to be doubted; `None` once it was.
    due: Option<u64>,
    waker: Option<Waker>,
    /// It was told that the VM is lost.
    told: bool,
    /// Nobody waits any more, but the VM is to be doubted all the same.
    lingers: bool,
}

impl Waits {
    /// `concerns` goes to whoever probes.
    pub(crate) fn new(concerns: UnboundedSender<Concern>) -> Waits {
        Waits { all: RefCell::default(), concerns }
    }

    /// Has somebody else look after what a worker cannot do.
    pub(crate) fn tell(&self, concern: Concern) {
        // Nobody listens any more only when the process ends.
        _ = self.concerns.send(concern);
    }

    /// A request waits from now on.
    pub(crate) fn begin(&self, endpoint: &Arc<Endpoint>, now: u64, patience: Duration) -> Waiting<'_> {
        let patience = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let wait = Wait {
            endpoint: endpoint.clone(),
            mark: endpoint.vitals.mark(),
            due: Some(now.saturating_add(patience)),
            waker: None,
            told: false,
            lingers: false,
        };
        Waiting { waits: self, key: self.all.borrow_mut().insert(wait), over: Cell::new(false) }
    }

    /// Looks after them as long as the worker lives.
    pub(crate) async fn attend(self: Rc<Waits>) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look(clock::now_nanos());
        }
    }

    fn look(&self, now: u64) {
        self.all.borrow_mut().retain(|_, wait| {
            let vitals = &wait.endpoint.vitals;
            if vitals.is_lost(wait.mark) {
                if let Some(waker) = wait.waker.take() {
                    waker.wake();
                }
            } else if wait.due.take_if(|due| *due <= now).is_some() && vitals.doubt() {
                self.tell(Concern::Doubt(wait.endpoint.clone()));
            }
            !wait.lingers || wait.due.is_some() && !vitals.is_lost(wait.mark)
        });
    }
}

/// One of them, until dropped.
pub(crate) struct Waiting<'w> {
    waits: &'w Waits,
    key: usize,
    /// Nobody asks it anything any more.
    over: Cell<bool>,
}

impl Waiting<'_> {
    /// Whether the VM was set aside since; the task is woken if that happens.
    pub(crate) fn is_lost(&self, cx: &Context<'_>) -> bool {
        let mut all = self.waits.all.borrow_mut();
        let Some(wait) = all.get_mut(self.key) else { return false };
        if !wait.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            wait.waker = Some(cx.waker().clone());
        }
        wait.told = wait.endpoint.vitals.is_lost(wait.mark);
        wait.told
    }

    /// Nobody waits for the answer any more. That it takes long is worth looking into all the same.
    pub(crate) fn linger(&self) {
        if let Some(wait) = self.waits.all.borrow_mut().get_mut(self.key) {
            wait.lingers = true;
            wait.waker = None;
        }
        self.over.set(true);
    }

    /// Whether that was the last thing it was told.
    pub(crate) fn has_left(&self) -> bool {
        self.waits.all.borrow().get(self.key).is_some_and(|wait| wait.told)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        // The place of one that lingers may be somebody else's by now.
        if !self.over.get() {
            self.waits.all.borrow_mut().try_remove(self.key);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use foregate_routing::{Address, State};
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Count>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn endpoint() -> Arc<Endpoint> {
        Endpoint::new("pool".into(), Address::Ip(([127, 0, 0, 1], 1).into()))
    }

    #[test]
    fn who_waits_for_long_has_the_vm_doubted_once() {
        let (doubts, mut doubted) = unbounded_channel();
        let (waits, vm) = (Waits::new(doubts), endpoint());
        let five = Duration::from_secs(5);
        let (first, second) = (waits.begin(&vm, SECOND, five), waits.begin(&vm, SECOND, five));
        drop(waits.begin(&endpoint(), 0, five));
        waits.look(6 * SECOND - 1);
        assert!(doubted.try_recv().is_err());
        waits.look(6 * SECOND);
        assert!(matches!(doubted.try_recv().unwrap(), Concern::Doubt(doubted) if doubted.id == vm.id));
        waits.look(60 * SECOND);
        assert!(doubted.try_recv().is_err(), "each of them once, and both at once are one doubt");

        // The doubt was settled; whoever waits since then may doubt again.
        vm.vitals.settle();
        let third = waits.begin(&vm, 60 * SECOND, five);
        waits.look(65 * SECOND);
        assert!(doubted.try_recv().is_ok());
        drop((first, second, third));
        assert!(waits.all.borrow().is_empty());
    }

    #[test]
    fn who_waits_is_told_when_the_vm_is_lost() {
        let (doubts, mut doubted) = unbounded_channel();
        let (waits, vm, count) = (Waits::new(doubts), endpoint(), Arc::new(Count::default()));
        let waker = Waker::from(count.clone());
        let cx = Context::from_waker(&waker);
        let waiting = waits.begin(&vm, 0, Duration::from_secs(5));
        assert!(!waiting.is_lost(&cx));
        waits.look(SECOND);
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        vm.vitals.set_state(State::Down);
        for times in 1..=2 {
            waits.look(60 * SECOND);
            assert_eq!(count.0.load(Ordering::Relaxed), times);
            assert!(waiting.is_lost(&cx));
        }
        assert!(doubted.try_recv().is_err(), "nobody doubts what is known");
    }

    #[test]
    fn who_is_overtaken_has_the_vm_doubted_all_the_same() {
        let (concerns, mut concerned) = unbounded_channel();
        let (waits, vm) = (Waits::new(concerns), endpoint());
        let overtaken = waits.begin(&vm, 0, Duration::from_secs(5));
        overtaken.linger();
        drop(overtaken);
        waits.look(4 * SECOND);
        assert_eq!((concerned.try_recv().is_ok(), waits.all.borrow().len()), (false, 1));
        waits.look(5 * SECOND);
        assert_eq!((concerned.try_recv().is_ok(), waits.all.borrow().len()), (true, 0));
        // One that is lost meanwhile is known to be.
        let overtaken = waits.begin(&vm, 0, Duration::from_secs(5));
        overtaken.linger();
        drop(overtaken);
        vm.vitals.set_state(State::Down);
        waits.look(SECOND);
        assert!(waits.all.borrow().is_empty() && concerned.try_recv().is_err());
    }
}
