//! When the gateway itself has too much to do: then new work is turned away before what runs comes to harm.
//!
//! There are two reasons. Memory is short: nobody new is let in. Or most of the room for requests is taken: then whoever
//! has taken most of it gets no more, so that one site's flood leaves room for the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::memory;

/// How often it is looked at.
pub(crate) const LOOK: Duration = Duration::from_millis(250);

/// Where there is room for fewer there is nothing to be shared out.
const LEAST: usize = 64;

/// Of the whole process, shared by its workers. Every order is relaxed: it is an estimate a quarter of a second old.
pub(crate) struct Pressure {
    /// So many requests and connections there may be.
    room: AtomicUsize,
    /// By worker, the requests under way.
    running: Box<[AtomicUsize]>,
    /// By worker, requests answered so far, and those of them with a 5xx.
    answers: Box<[(AtomicU64, AtomicU64)]>,
    crowded: AtomicBool,
    short: AtomicBool,
}

impl Pressure {
    pub(crate) fn new(room: usize, workers: usize) -> Arc<Pressure> {
        Arc::new(Pressure {
            room: AtomicUsize::new(room),
            running: (0..workers).map(|_| AtomicUsize::new(0)).collect(),
            answers: (0..workers).map(|_| Default::default()).collect(),
            crowded: AtomicBool::new(false),
            short: AtomicBool::new(false),
        })
    }

    pub(crate) fn set_room(&self, room: usize) {
        self.room.store(room, Ordering::Relaxed);
    }

    pub(crate) fn report_answers(&self, worker: usize, (all, failed): (u64, u64)) {
        if let Some(own) = self.answers.get(worker) {
            own.0.store(all, Ordering::Relaxed);
            own.1.store(failed, Ordering::Relaxed);
        }
    }

    /// Requests answered so far, and those of them with a 5xx.
    pub(crate) fn answers(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        self.answers.iter().fold((0, 0), |(all, failed), own| (all + load(&own.0), failed + load(&own.1)))
    }

    /// By worker, the requests under way.
    pub(crate) fn running(&self) -> Vec<usize> {
        self.running.iter().map(|own| own.load(Ordering::Relaxed)).collect()
    }

    fn room(&self) -> usize {
        self.room.load(Ordering::Relaxed)
    }

    /// Takes in what a worker has to do; `open` are the connections of all.
    pub(crate) fn report(&self, worker: usize, running: usize, open: usize) {
        if let Some(own) = self.running.get(worker) {
            own.store(running, Ordering::Relaxed);
        }
        let all: usize = self.running.iter().map(|own| own.load(Ordering::Relaxed)).sum();
        let crowded = self.room() >= LEAST && all.max(open) >= self.room() / 4 * 3;
        self.crowded.store(crowded, Ordering::Relaxed);
    }

    /// Takes in how much memory there is, and says so if it has become short, or is so no more.
    pub(crate) fn look_at_memory(&self) {
        let Some(memory) = memory::read() else { return };
        let was_short = self.is_short();
        let short = memory.is_short(was_short);
        self.short.store(short, Ordering::Relaxed);
        let mib = |bytes: u64| format!("{} MiB", bytes >> 20);
        let (used, free) = (mib(memory.used), mib(memory.free));
        if short && !was_short {
            tracing::error!(used, free, "memory is short: new connections and requests are turned away");
        } else if was_short && !short {
            tracing::info!(used, free, "there is memory again: everybody is let in");
        }
    }

    /// Nobody new is to be let in.
    pub(crate) fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Whether one who has so many requests under way gets no more.
    pub(crate) fn is_too_much(&self, in_flight: impl FnOnce() -> usize) -> bool {
        self.crowded.load(Ordering::Relaxed) && in_flight() >= self.room() / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_taken_most_of_the_room_gets_no_more_of_what_is_left() {
        let pressure = Pressure::new(100, 2);
        pressure.report(0, 60, 10);
        assert!(!pressure.is_too_much(|| 60), "there is room for all");
        pressure.report(1, 15, 10);
        assert!(pressure.is_too_much(|| 60) && !pressure.is_too_much(|| 15));
        pressure.report(0, 40, 10);
        assert!(!pressure.is_too_much(|| 60));
        pressure.report(0, 0, 75);
        assert!(pressure.is_too_much(|| 50), "idle connections take room too");
    }
}
