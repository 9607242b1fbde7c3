//! What a service manager is told (`Type=notify-reload`). Without one nothing is.

use std::time::Duration;

use sd_notify::NotifyState;

/// It serves, or serves what was reloaded.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// It reads its configuration anew.
pub(crate) fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        tell(&[NotifyState::Reloading, now]);
    }
}

/// From now on another process is the service.
pub(crate) fn main_is(pid: u32) {
    tell(&[NotifyState::MainPid(pid)]);
}

/// It drains.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// How often it must be said that all is well, where somebody wants to hear that.
pub(crate) fn watchdog() -> Option<Duration> {
    // Half of what is asked for, as its manual advises.
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// All is well.
pub(crate) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(what: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(what) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
