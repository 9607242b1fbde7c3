//! Names that visitors ask for and that no site knows by itself: what becomes of them, told between the workers, where
//! they are asked for, and the keeper, which sees whether there is to be a certificate.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// Names at a time. Who asks for more than these has made them up.
const MOST: usize = 4096;
/// An order that has not come to its end by then is nobody's any more.
const LONGEST: Duration = Duration::from_secs(10 * 60);
/// How long it takes at most until what was issued is shown.
const SHOWN: Duration = Duration::from_secs(60);
/// How often room is made at most: it takes a look at all names.
const CLEARING: Duration = Duration::from_secs(1);

/// One for the process.
#[derive(Default)]
pub struct Demand {
    names: Mutex<Names>,
    more: Notify,
    issued: Notify,
}

#[derive(Default)]
struct Names {
    known: HashMap<Box<str>, State>,
    /// When room was last made.
    cleared: Option<Instant>,
    /// For the keeper.
    new: Vec<Box<str>>,
}

struct State {
    refused: bool,
    until: Instant,
}

impl Demand {
    #[must_use]
    pub fn shared() -> Arc<Demand> {
        static DEMAND: OnceLock<Arc<Demand>> = OnceLock::new();
        DEMAND.get_or_init(Arc::default).clone()
    }

    /// Somebody asks for this name, in lower case. Whether it is worth waiting for a certificate: it is being found out
    /// whether there is to be one, or it is ordered.
    #[must_use]
    pub fn is_worth_waiting(&self, name: &str) -> bool {
        self.asked(name, Instant::now())
    }

    fn asked(&self, name: &str, now: Instant) -> bool {
        let mut names = self.lock();
        if let Some(state) = names.known.get(name).filter(|state| now < state.until) {
            return !state.refused;
        }
        if names.known.len() >= MOST && !names.make_room(now) {
            return false;
        }
        names.known.insert(name.into(), State { refused: false, until: now + LONGEST });
        names.new.push(name.into());
        drop(names);
        self.more.notify_one();
        true
    }

    /// Names that have been asked for since.
    pub(super) async fn new_names(&self) -> Vec<Box<str>> {
        loop {
            let new = std::mem::take(&mut self.lock().new);
            if !new.is_empty() {
                return new;
            }
            self.more.notified().await;
        }
    }

    /// There will be no certificate for this name for a while.
    pub(super) fn refuse(&self, name: &str, pause: Duration) {
        let state = State { refused: true, until: Instant::now() + pause };
        self.lock().known.insert(name.into(), state);
    }

    /// Whoever asks for this name is heard again.
    pub(super) fn forget(&self, name: &str) {
        self.lock().known.remove(name);
    }

    /// There is a certificate for this name, which will be shown in a moment.
    pub(super) fn issued_for(&self, name: &str) {
        let state = State { refused: false, until: Instant::now() + SHOWN };
        self.lock().known.insert(name.into(), state);
    }

    /// There is a new certificate, also for a site that has been written down.
    pub(super) fn announce(&self) {
        self.issued.notify_one();
    }

    /// For whoever shows them: waits for the next new certificate.
    pub async fn issued(&self) {
        self.issued.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Names> {
        // What is within is whole after each step.
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Names {
    /// What is refused is only asked about once more if it is forgotten; so refusals make room for names that may be real.
    fn make_room(&mut self, now: Instant) -> bool {
        if self.cleared.is_some_and(|cleared| now < cleared + CLEARING) {
            return false;
        }
        self.cleared = Some(now);
        self.known.retain(|_, state| now < state.until);
        if self.known.len() >= MOST {
            self.known.retain(|_, state| !state.refused);
        }
        self.known.len() < MOST
    }
}

impl fmt::Debug for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Demand").field("known", &self.lock().known.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_once_and_who_makes_names_up_is_not_heard() {
        let (demand, now) = (Demand::default(), Instant::now());
        assert!(demand.asked("a.test", now) && demand.asked("a.test", now));
        assert_eq!(demand.lock().new.len(), 1);
        demand.refuse("a.test", Duration::from_secs(60));
        assert!(!demand.asked("a.test", now));
        assert!(demand.asked("a.test", now + Duration::from_secs(90)), "it may be allowed by now");
        assert_eq!(demand.lock().new.len(), 2);
        for number in 0..2 * MOST {
            let _ = demand.asked(&format!("{number}.test"), now);
        }
        assert_eq!(demand.lock().known.len(), MOST);
        let later = now + CLEARING * 2;
        assert!(!demand.asked("late.test", later), "all of them may be real");
        demand.refuse("7.test", Duration::from_secs(60));
        assert!(!demand.asked("late.test", later), "it is not looked for room each time");
        assert!(demand.asked("late.test", later + CLEARING * 2), "that one is not");
        demand.forget("8.test");
        assert!(demand.asked("more.test", later) && demand.asked("last.test", now + LONGEST));
    }
}
