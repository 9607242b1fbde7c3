//! The one clock of this process's balancers and circuits: what they keep is shared by all threads, so the times in it
//! must count from one instant.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What the process before this one knows is not older.
const BEFORE: Duration = Duration::from_secs(60 * 60);

/// Nanoseconds since an hour before somebody first asked.
#[must_use]
pub fn now_nanos() -> u64 {
    u64::try_from(origin().elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(BEFORE).unwrap_or(now)
    })
}
