//! How many requests a VM had, and how many of them failed, since somebody last looked.

use std::sync::atomic::{AtomicU32, Ordering};

/// One endpoint's. Every order is relaxed: a request that is counted a look later is counted all the same.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    well: AtomicU32,
    failed: AtomicU32,
}

/// What there was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) all: u64,
    pub(crate) failed: u64,
}

impl Tally {
    pub(crate) fn count(&self, well: bool) {
        let counter = if well { &self.well } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// What was counted; begins anew.
    pub(crate) fn take(&self) -> Count {
        let [well, failed] =
            [&self.well, &self.failed].map(|counter| u64::from(counter.swap(0, Ordering::Relaxed)));
        Count { all: well + failed, failed }
    }
}
