//! What of a worker's time a connection's streams may take at once. The runtime runs tasks in the order in which they
//! were woken, so a client that has hundreds of streams woken by a few packets would let everyone else wait for all of
//! them. Here they run so many at a time, and then others do; and connections like that share what one may take.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use pin_project_lite::pin_project;

use super::{Open, Streams};

/// Polls of a connection's streams before others are served, and of all streams that wait for another turn.
const BUDGET: usize = 16;

/// How far a connection is through its budget.
#[derive(Default)]
pub(super) struct Budget {
    /// How many polls were made in the turn in which the last one was.
    spent: Cell<usize>,
    turn: Cell<u64>,
    /// Streams that found it spent, in their order.
    waiting: RefCell<VecDeque<Waker>>,
    /// How many of all that ever waited may go on.
    called: Cell<u64>,
}

/// What became of a stream's wish to run.
enum Turn {
    Now,
    /// The last one of its connection in this turn.
    Last,
    Later,
    /// The first one of its connection that has to wait.
    First,
}

impl Budget {
    /// `ticket` is the stream's place among those that wait.
    fn ask(&self, turn: u64, cx: &Context<'_>, ticket: &mut Option<u64>) -> Turn {
        match *ticket {
            // Its poll was counted when it was called.
            Some(place) if place < self.called.get() => {
                *ticket = None;
                return Turn::Now;
            }
            // Something else has woken it as well.
            Some(_) => return Turn::Later,
            None => {}
        }
        let mut waiting = self.waiting.borrow_mut();
        if self.turn.replace(turn) != turn && waiting.is_empty() {
            self.spent.set(0);
        }
        if self.spent.get() == BUDGET {
            *ticket = Some(self.called.get() + waiting.len() as u64);
            waiting.push_back(cx.waker().clone());
            return if waiting.len() == 1 { Turn::First } else { Turn::Later };
        }
        self.spent.set(self.spent.get() + 1);
        if self.spent.get() == BUDGET { Turn::Last } else { Turn::Now }
    }

    /// Calls so many of those that wait. True: there are more.
    fn call(&self, turn: u64, streams: usize) -> bool {
        let mut waiting = self.waiting.borrow_mut();
        let next = waiting.len().min(streams);
        self.called.set(self.called.get() + next as u64);
        self.turn.set(turn);
        self.spent.set(BUDGET - streams + next);
        waiting.drain(..next).for_each(Waker::wake);
        if waiting.is_empty() {
            *waiting = VecDeque::new();
        }
        !waiting.is_empty()
    }
}

/// The turns of a worker: in each, every task has run that could. They are counted only as long as some connection's
/// budget is spent.
#[derive(Default)]
pub(crate) struct Turns {
    now: Cell<u64>,
    counting: Cell<bool>,
    /// Connections whose streams wait.
    waiting: RefCell<VecDeque<Rc<Streams>>>,
}

impl Turns {
    /// Has the next turn begin when everyone has run.
    fn count(this: &Rc<Turns>) {
        if !this.counting.replace(true) {
            tokio::task::spawn_local(Turns::go_on(this.clone()));
        }
    }

    /// Shares one budget in each turn among the connections that wait. With a whole one for each, who has many
    /// connections would have many times as much.
    async fn go_on(this: Rc<Turns>) {
        loop {
            tokio::task::yield_now().await;
            let turn = this.now.get() + 1;
            this.now.set(turn);
            let connections = this.waiting.borrow().len();
            if connections == 0 {
                this.counting.set(false);
                return;
            }
            let share = (BUDGET / connections).max(1);
            for _ in 0..connections.min(BUDGET) {
                let Some(streams) = this.waiting.borrow_mut().pop_front() else { break };
                if streams.budget.call(turn, share) {
                    this.waiting.borrow_mut().push_back(streams);
                }
            }
        }
    }
}

pin_project! {
    /// What a stream does, within its connection's budget.
    pub(crate) struct Budgeted<F> {
        #[pin]
        work: F,
        ticket: Option<u64>,
        // Dropped last: then the stream is over.
        open: Open,
    }
}

impl<F> Budgeted<F> {
    pub(super) fn new(open: Open, work: F) -> Budgeted<F> {
        Budgeted { work, ticket: None, open }
    }
}

impl<F: Future> Future for Budgeted<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        let Open(streams) = this.open;
        let turns = &streams.turns;
        match streams.budget.ask(turns.now.get(), cx, this.ticket) {
            Turn::Now => {}
            Turn::Last => Turns::count(turns),
            Turn::Later => return Poll::Pending,
            Turn::First => {
                turns.waiting.borrow_mut().push_back(streams.clone());
                Turns::count(turns);
                return Poll::Pending;
            }
        }
        this.work.poll(cx)
    }
}

#[cfg(test)]
#[allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test may stop at the first surprise")]
mod tests {
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::runtime::{Builder, LocalOptions};
    use tokio::sync::Notify;
    use tokio::task::{JoinHandle, spawn_local, yield_now};
    use tokio::time::timeout;

    use super::*;

    fn run(test: impl Future<Output = ()>) {
        let runtime = Builder::new_current_thread().enable_time().build_local(LocalOptions::default());
        runtime.expect("a runtime").block_on(test);
    }

    async fn all(tasks: Vec<JoinHandle<()>>) {
        let ended = async {
            for task in tasks {
                task.await.expect("it ends");
            }
        };
        timeout(Duration::from_secs(20), ended).await.expect("all of them end");
    }

    /// Woken at once, and so before those that wait.
    async fn again() {
        let mut first = true;
        poll_fn(|cx| {
            if std::mem::take(&mut first) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
    }

    #[test]
    fn others_do_not_wait_for_all_streams_of_a_connection() {
        run(async {
            const STREAMS: usize = 500;
            let turns = Rc::default();
            let [streams, neighbour] = [(); 2].map(|()| Rc::new(Streams::new(&turns, usize::MAX)));
            let (ran, packet) = (Rc::new(Cell::new(0)), Rc::new(Notify::new()));
            let mut tasks = Vec::new();
            for _ in 0..STREAMS {
                let (ran, packet) = (ran.clone(), packet.clone());
                let work = async move {
                    packet.notified().await;
                    ran.set(ran.get() + 1);
                };
                tasks.push(spawn_local(Streams::begin(&streams, work)));
            }
            while streams.budget.called.get() < (STREAMS - BUDGET) as u64 {
                yield_now().await;
            }
            // All of them can go on, and only then somebody else.
            packet.notify_waiters();
            let before = ran.clone();
            let other = async move { before.get() };
            let before = spawn_local(Streams::begin(&neighbour, other)).await.expect("it ends");
            assert!(before <= BUDGET, "{before} ran first");
            all(tasks).await;
            assert_eq!(ran.get(), STREAMS);
        });
    }

    #[test]
    fn streams_of_a_connection_take_turns() {
        run(async {
            const STREAMS: usize = 100;
            let streams = Rc::new(Streams::new(&Rc::default(), usize::MAX));
            let steps = Rc::new(RefCell::new(vec![0; STREAMS]));
            let mut tasks = Vec::new();
            for number in 0..STREAMS {
                let steps = steps.clone();
                let work = async move {
                    for _ in 0..50 {
                        let before = steps.borrow()[number];
                        let least = *steps.borrow().iter().min().expect("some");
                        assert!(before <= least + 1, "stream {number} is {} ahead", before - least);
                        steps.borrow_mut()[number] += 1;
                        again().await;
                    }
                };
                tasks.push(spawn_local(Streams::begin(&streams, work)));
            }
            all(tasks).await;
            assert_eq!(*steps.borrow(), [50; STREAMS]);
        });
    }

    #[test]
    fn many_connections_have_no_more_than_one() {
        run(async {
            const STEPS: usize = 20;
            let (turns, ran) = (Rc::default(), Rc::new(Cell::new(0)));
            let mut tasks = Vec::new();
            for _connection in 0..20 {
                let streams = Rc::new(Streams::new(&turns, usize::MAX));
                for _stream in 0..BUDGET * 2 {
                    let ran = ran.clone();
                    let work = async move {
                        for _ in 0..STEPS {
                            ran.set(ran.get() + 1);
                            again().await;
                        }
                    };
                    tasks.push(spawn_local(Streams::begin(&streams, work)));
                }
            }
            let all_steps = tasks.len() * STEPS;
            // What they may do at first, each for itself.
            while ran.get() < 20 * BUDGET {
                yield_now().await;
            }
            let seen = ran.clone();
            let neighbour = spawn_local(async move {
                while seen.get() < all_steps {
                    let before = seen.get();
                    again().await;
                    assert!(seen.get() - before <= BUDGET, "{} ran between", seen.get() - before);
                }
            });
            tasks.push(neighbour);
            all(tasks).await;
        });
    }

    #[test]
    fn a_stream_that_ends_while_it_waits_holds_nobody_up() {
        run(async {
            let streams = Rc::new(Streams::new(&Rc::default(), usize::MAX));
            let mut tasks: Vec<_> =
                (0..BUDGET * 4).map(|_| spawn_local(Streams::begin(&streams, async {}))).collect();
            while streams.budget.waiting.borrow().is_empty() {
                yield_now().await;
            }
            for task in tasks.drain(BUDGET..BUDGET * 3) {
                task.abort();
            }
            all(tasks).await;
            yield_now().await;
            assert_eq!(streams.open.get(), 0);
            assert!(streams.budget.waiting.borrow().is_empty());
        });
    }
}
