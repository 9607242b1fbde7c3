//! What a service manager is told (`Type=notify-reload`), and the sockets it gives and keeps. Without one nothing is.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::time::Duration;

use foregate_edge::{Handed, Kind};
use rustix::net::SocketType;
use rustix::net::sockopt::{ipv6_v6only, socket_acceptconn, socket_type};
use sd_notify::NotifyState;

/// Files in one message; the kernel takes 253.
const FILES: usize = 128;

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

/// The sockets on which connections are accepted, with a service manager that gives them to the next process: if this one
/// crashes or is restarted, clients wait, and are not refused.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// Which it has, by name.
    kept: BTreeSet<String>,
    /// Where those listen that it gave.
    given: Vec<SocketAddr>,
}

/// What a service manager has given.
#[derive(Debug, Default)]
pub(crate) struct Given {
    pub(crate) sockets: Vec<Handed>,
    pub(crate) store: Store,
    /// What is to be said of them once there is a log.
    pub(crate) complaints: Vec<String>,
}

impl Given {
    /// Takes what there is. Only to be called once, and before this process opens files of its own.
    ///
    /// # Errors
    /// It is said that there are sockets, and they are not there.
    pub(crate) fn take() -> io::Result<Given> {
        let mut given = Given::default();
        // What was for a process further up is nothing to this one.
        if std::env::var("LISTEN_PID").is_ok_and(|pid| pid != std::process::id().to_string()) {
            return Ok(given);
        }
        for (number, name) in sd_notify::listen_fds_with_names()? {
            // SAFETY: `listen_fds_with_names` has found it open, and by the protocol it is this process's own; this runs once,
            // before any other file is opened, so nobody else has it.
            #[allow(unsafe_code, reason = "the protocol tells of files by their numbers")]
            let file = unsafe { OwnedFd::from_raw_fd(number) };
            match listens_on(&file) {
                Ok(Some((address, dual))) => given.add(file, address, dual, name),
                Ok(None) => given.complaints.push(format!(
                    "the service manager gives {name:?} (file {number}), which is not used: no TCP connections are accepted \
                     there. HTTP/3 binds sockets of its own"
                )),
                Err(error) => given
                    .complaints
                    .push(format!("the service manager gives {name:?} (file {number}), which is not used: {error}")),
            }
        }
        Ok(given)
    }

    fn add(&mut self, socket: OwnedFd, address: SocketAddr, dual: bool, name: String) {
        // One that was kept for us is let go of when it is not needed any more.
        if name == name_of(&address) {
            self.store.kept.insert(name);
        }
        self.store.given.push(address);
        let same = |handed: &&mut Handed| handed.address == address && handed.dual == dual;
        match self.sockets.iter_mut().find(same) {
            Some(known) => known.sockets.push(socket),
            // HTTPS does with it too.
            None => self.sockets.push(Handed { address, dual, kind: Kind::Http, sockets: vec![socket] }),
        }
    }
}

/// Its address, and whether it is one of IPv4 too; none, if it is not a socket on which TCP connections are accepted.
fn listens_on(file: &OwnedFd) -> io::Result<Option<(SocketAddr, bool)>> {
    if socket_type(file)? != SocketType::STREAM || !socket_acceptconn(file)? {
        return Ok(None);
    }
    let Ok(address) = SocketAddr::try_from(rustix::net::getsockname(file)?) else { return Ok(None) };
    rustix::io::ioctl_fionbio(file, true)?;
    let dual = address.is_ipv6() && address.ip().is_unspecified() && !ipv6_v6only(file)?;
    Ok(Some((address, dual)))
}

/// Colons would end it.
fn name_of(address: &SocketAddr) -> String {
    format!("foregate-{address}").replace(':', ".")
}

impl Store {
    /// Has the service manager keep these, and nothing else.
    pub(crate) fn keep(&mut self, accepting: io::Result<Vec<Handed>>) {
        let accepting = match accepting {
            Ok(accepting) => accepting,
            Err(error) => {
                return tracing::warn!(%error, "the service manager does not get the sockets to keep");
            }
        };
        let names: BTreeSet<String> = accepting.iter().map(|handed| name_of(&handed.address)).collect();
        for address in std::mem::take(&mut self.given) {
            let name = name_of(&address);
            // What it kept for us it lets go of.
            if !names.contains(&name) && !self.kept.contains(&name) {
                tracing::warn!(
                    "the service manager listens on {address} for this gateway, whose configuration does not name it: who \
                     connects there waits for ever; take it out of the socket unit, or name it in server"
                );
            }
        }
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return;
        }
        for gone in self.kept.difference(&names) {
            tell(&[NotifyState::FdStoreRemove, NotifyState::FdName(gone)]);
        }
        for handed in accepting {
            let name = name_of(&handed.address);
            if self.kept.contains(&name) {
                continue;
            }
            for sockets in handed.sockets.chunks(FILES) {
                let sockets: Vec<BorrowedFd<'_>> = sockets.iter().map(OwnedFd::as_fd).collect();
                let what = [NotifyState::FdStore, NotifyState::FdName(&name)];
                complain(sd_notify::notify_with_fds(&what, &sockets));
            }
        }
        self.kept = names;
    }
}

fn tell(what: &[NotifyState<'_>]) {
    complain(sd_notify::notify(what));
}

fn complain(told: io::Result<()>) {
    if let Err(error) = told {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}
