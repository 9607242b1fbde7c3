//! Certificates from an authority that speaks ACME (RFC 8555).
//!
//! A [`Plan`] says which site needs a certificate for which hosts, and in which file it is kept. The [`Keeper`] sees to it
//! that there is one in time: it reads the files, orders what is missing or due (`order`), waits longer and longer where that
//! fails (`schedule`), and says that a file has changed. Nothing else is shared: who shows certificates reads the files.
//! While an order is open, [`Challenges`] answers the authority's questions on the ports that everybody uses.

mod account;
mod ask;
mod challenges;
mod client;
mod demand;
mod hook;
mod keeper;
mod order;
mod schedule;

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::certificate::is_among;
use crate::question::with_sources;

pub use self::account::Eab;
pub use self::challenges::Challenges;
pub use self::demand::Demand;
pub use self::keeper::Keeper;

/// Let's Encrypt, which is whom most people mean.
pub const DIRECTORY: &str = "https://acme-v02.api.letsencrypt.org/directory";

/// `[tls.acme]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The authority's address.
    pub directory: String,
    pub email: Option<String>,
    /// What the authority may ask for, the best first; a wildcard is proven by DNS alone.
    pub challenges: Vec<Kind>,
    /// A program and its arguments that writes DNS records.
    pub dns_hook: Option<Vec<String>>,
    /// PEM of the roots that the authority's own server is trusted by; none: the system's.
    pub ca: Option<Vec<u8>>,
    pub eab: Option<Eab>,
    /// Who says whether a name that no site has is to have a certificate; none: it is not.
    pub ask: Option<String>,
    /// Where the account is kept.
    pub folder: PathBuf,
}

impl Settings {
    /// The same with another challenge first after each failure: a port may be closed on the way.
    fn turned(&self, failures: u32) -> Settings {
        let mut turned = self.clone();
        let by = failures as usize % turned.challenges.len().max(1);
        turned.challenges.rotate_left(by);
        turned
    }
}

/// How an authority may have it proven that a name is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Http01,
    TlsAlpn01,
    Dns01,
}

/// One certificate, for all hosts of a site that have none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub site: String,
    /// In lower case, sorted.
    pub hosts: Vec<String>,
    /// Chain and key, once there are.
    pub file: PathBuf,
    /// A visitor has asked for it: before it is ordered it is asked whether there is to be one.
    pub on_demand: bool,
}

impl Wanted {
    /// For a name that a visitor has asked for, by what its settings say.
    fn on_demand(settings: &Settings, name: &str) -> Wanted {
        Wanted {
            site: on_demand_site(name),
            hosts: vec![name.to_owned()],
            file: on_demand_folder(&settings.folder).join(format!("{name}.pem")),
            on_demand: true,
        }
    }

    /// Whether it is for a name that the other is for too.
    fn shares(&self, other: &Wanted) -> bool {
        self.hosts.iter().any(|host| other.hosts.contains(host))
    }

    /// Whether it is for this name, itself or by a wildcard.
    fn is_for(&self, host: &str) -> bool {
        is_among(&self.hosts, host)
    }

    /// Where it is noted what has been ordered, beside the files that are shown.
    fn note(&self) -> PathBuf {
        match (self.hosts.first(), self.file.parent().and_then(Path::parent)) {
            (Some(name), Some(folder)) if self.on_demand => folder.join(format!("on-demand-{name}.order")),
            _ => self.file.with_extension("order"),
        }
    }
}

/// What such a certificate goes by, where others have the name of their site.
#[must_use]
pub fn on_demand_site(name: &str) -> String {
    format!("{name} (on demand)")
}

/// Where those are kept: whatever is there is shown.
#[must_use]
pub fn on_demand_folder(folder: &Path) -> PathBuf {
    folder.join("on-demand")
}

/// What is to be looked after.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub settings: Settings,
    pub wanted: Vec<Wanted>,
}

/// Writes a file that its owner alone can read, whole or not at all.
pub type Keep = fn(&Path, &[u8]) -> io::Result<()>;

/// How it stands with a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub hosts: Vec<String>,
    /// When it is ordered next; none: just now it is.
    pub due: Option<SystemTime>,
    /// Orders in a row that have failed, and why the last one did.
    pub failures: u32,
    pub trouble: Option<String>,
}

/// Why an order came to nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Trouble {
    message: String,
    /// When the authority wants to be asked again.
    not_before: Option<SystemTime>,
    /// The same order will not come to anything.
    is_final: bool,
    /// It does not know our account any more.
    account_is_lost: bool,
}

impl Trouble {
    fn new(message: impl Into<String>) -> Trouble {
        Trouble { message: message.into(), not_before: None, is_final: false, account_is_lost: false }
    }

    fn unwritten(file: &Path, error: &io::Error) -> Trouble {
        Trouble::new(format!("{} cannot be written: {error}", file.display()))
    }
}

impl From<instant_acme::Error> for Trouble {
    fn from(error: instant_acme::Error) -> Trouble {
        match &error {
            instant_acme::Error::Api(problem) => Trouble {
                account_is_lost: kind(problem) == Some("accountDoesNotExist"),
                ..Trouble::new(told(problem))
            },
            other => Trouble::new(with_sources(other)),
        }
    }
}

/// What an authority says, with what it says of single names.
fn told(problem: &instant_acme::Problem) -> String {
    let mut text =
        problem.detail.clone().unwrap_or_else(|| "the authority refuses without a reason".to_owned());
    for one in &problem.subproblems {
        text += &format!("; {one}");
    }
    if let Some(kind) = kind(problem) {
        text += &format!(" ({kind})");
    }
    text
}

/// What kind of problem it is (RFC 8555, section 6.7).
fn kind(problem: &instant_acme::Problem) -> Option<&str> {
    problem.r#type.as_deref()?.rsplit(':').next()
}
