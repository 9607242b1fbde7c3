//! Ports of 127.0.0.1 that nobody else has.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

/// The usual ones, and how many pairs after them are tried.
const HTTP: u16 = 8080;
const HTTPS: u16 = 8443;
const TRIES: u16 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) http: u16,
    pub(super) https: u16,
    /// Whether a usual port was taken.
    pub(super) moved: bool,
}

impl Choice {
    /// What to tell about ports that nobody asked for.
    pub(super) fn notice(&self) -> Option<String> {
        self.moved.then(|| {
            format!(
                "The usual ports {HTTP} and {HTTPS} are not both free; these are used instead: {} and {}.",
                self.http, self.https
            )
        })
    }
}

/// A port that was asked for and cannot be had.
#[derive(Debug)]
pub(super) struct Taken {
    port: u16,
    reason: io::Error,
}

impl fmt::Display for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Taken { port, reason } = self;
        match reason.kind() {
            io::ErrorKind::AddrInUse => {
                write!(f, "port {port} of 127.0.0.1 is in use by another program; choose another one")
            }
            io::ErrorKind::PermissionDenied => {
                write!(f, "port {port} needs a privilege this user does not have; choose one above 1023")
            }
            _ => write!(f, "port {port} of 127.0.0.1 cannot be used: {reason}"),
        }
    }
}

/// Asked-for ports must be free; of the others the first free pair is taken.
///
/// The gateway shares its ports between threads (`SO_REUSEPORT`), so two gateways of one user on one port
/// would be no error to the system, and a riddle to the user. The sockets tried here do not share.
pub(super) fn choose(http: Option<u16>, https: Option<u16>) -> Result<Choice, Taken> {
    let mut last = None;
    for step in 0..TRIES {
        let choice = Choice {
            http: http.unwrap_or(HTTP + step),
            https: https.unwrap_or(HTTPS + step),
            moved: step > 0,
        };
        match try_pair(choice.http, choice.https) {
            Ok(()) => return Ok(choice),
            Err(taken) if Some(taken.port) == http || Some(taken.port) == https => return Err(taken),
            Err(taken) => last = Some(taken),
        }
    }
    Err(last.unwrap_or_else(|| Taken { port: HTTP, reason: io::ErrorKind::AddrInUse.into() }))
}

fn try_pair(http: u16, https: u16) -> Result<(), Taken> {
    let taken = |port| move |reason| Taken { port, reason };
    // All of them at once, so that one port for both is found out too.
    let _http = TcpListener::bind((Ipv4Addr::LOCALHOST, http)).map_err(taken(http))?;
    let _https = TcpListener::bind((Ipv4Addr::LOCALHOST, https)).map_err(taken(https))?;
    let _http3 = UdpSocket::bind((Ipv4Addr::LOCALHOST, https)).map_err(taken(https))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_asked_for_is_taken_or_refused_but_never_replaced() {
        let busy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = busy.local_addr().unwrap().port();
        let taken = choose(Some(port), None).unwrap_err();
        assert_eq!(taken.port, port);
        assert!(taken.to_string().contains("in use"), "{taken}");
        assert!(choose(None, Some(port)).is_err());
    }

    #[test]
    fn a_port_busy_with_udp_is_no_port_for_http3() {
        let busy = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = busy.local_addr().unwrap().port();
        assert!(choose(None, Some(port)).is_err());
    }

    #[test]
    fn one_port_cannot_serve_both() {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        assert!(choose(Some(free), Some(free)).is_err());
    }

    #[test]
    fn a_pair_is_found_without_being_asked_for_one() {
        let choice = choose(None, None).unwrap();
        assert_eq!(choice.https - choice.http, HTTPS - HTTP);
        assert_eq!(choice.notice().is_some(), choice.http != HTTP);
    }
}
