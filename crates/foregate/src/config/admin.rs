//! `[admin]`: where the gateway is asked how it is and told what to do.

use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::decode::{Table, Value};
use super::diagnostic::{Problem, Problems};
use super::source::Placed;

/// What begins an address that is a path.
const UNIX: &str = "unix:";
/// A secret with less than this can be guessed.
const LEAST_TOKEN: usize = 16;

/// Where the administration listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Listen {
    Off,
    Unix(PathBuf),
    /// On a loopback address, for those who know the token.
    Tcp(SocketAddr, Token),
}

/// What proves that somebody may administrate.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Token(pub(crate) Box<str>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

impl Listen {
    /// Whoever has to know what there.
    pub(crate) fn is_same_place(&self, other: &Listen) -> bool {
        match (self, other) {
            (Listen::Tcp(one, _), Listen::Tcp(another, _)) => one == another,
            _ => self == other,
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Off => f.write_str("off"),
            Listen::Unix(path) => write!(f, "{UNIX}{}", path.display()),
            Listen::Tcp(address, _) => address.fmt(f),
        }
    }
}

/// `[admin]`, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admin {
    pub(crate) listen: Listen,
    /// The file says so: it is an error if that cannot be.
    pub(crate) written: bool,
}

impl Default for Admin {
    fn default() -> Admin {
        Admin { listen: Listen::Unix(PathBuf::from("/run/foregate/admin.sock")), written: false }
    }
}

/// An address as it is written.
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

pub(super) fn read(table: Table<'_>) -> Admin {
    let mut admin = Admin::default();
    let problems = table.problems();
    let token = table.read("token_file", Value::path);
    if let Some(value) = table.get("listen") {
        admin.written = true;
        if value.is_word("off") {
            admin.listen = Listen::Off;
        } else if let Some(address) = address(&value) {
            match address.value {
                Address::Unix(path) => admin.listen = Listen::Unix(path),
                Address::Tcp(to) if !to.ip().is_loopback() => {
                    let message = format!("{to} can be reached from other machines");
                    let problem = Problem::error(address.place, message);
                    problems.push(problem.help(
                        "administrate by a unix socket or a loopback address such as \"127.0.0.1:9190\", and come \
                         there with ssh",
                    ));
                }
                Address::Tcp(to) => match &token {
                    None => {
                        let problem =
                            Problem::error(address.place, "everybody on this machine could administrate");
                        problems.push(problem.help("write `token_file = \"admin.token\"` beside it"));
                    }
                    Some(file) => {
                        if let Some(token) = open(file, problems) {
                            admin.listen = Listen::Tcp(to, token);
                        }
                    }
                },
            }
        }
    }
    if let (Some(file), Listen::Unix(_)) = (&token, &admin.listen) {
        let problem = Problem::warning(file.place, "`token_file` has no effect on a unix socket");
        problems
            .push(problem.help("who may open the socket may administrate: that is its owner and its group"));
    }
    table.finish();
    admin
}

fn address(value: &Value<'_>) -> Option<Placed<Address>> {
    let text =
        value.text("\"off\", \"unix:/path\" or an address and a port", super::reference::Braces::Text)?;
    let address = match text.value.strip_prefix(UNIX) {
        Some(path) if path.starts_with('/') => Some(Address::Unix(PathBuf::from(path))),
        Some(_) => None,
        None => text.value.parse().ok().map(Address::Tcp),
    };
    if address.is_none() {
        // The text is not repeated: it may come from a file that holds something else.
        let problem = Problem::error(text.place, "nothing can listen on this");
        value.problem(problem.help("write \"unix:/run/foregate/admin.sock\", \"127.0.0.1:9190\" or \"off\""));
    }
    Some(Placed::new(address?, text.place))
}

fn open(file: &Placed<PathBuf>, problems: &Problems) -> Option<Token> {
    let name = file.value.display();
    let wrong = match fs::read_to_string(&file.value) {
        Ok(text) if text.trim().len() >= LEAST_TOKEN => return Some(Token(text.trim().into())),
        Ok(_) => Problem::error(file.place, format!("{name} holds less than {LEAST_TOKEN} characters"))
            .help("`openssl rand -hex 32` prints a good token"),
        Err(error) => Problem::error(file.place, format!("{name} cannot be read: {error}")),
    };
    problems.push(wrong);
    None
}
