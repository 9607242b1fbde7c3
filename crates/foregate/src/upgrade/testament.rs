//! What a process tells its successor.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::config::File;
use crate::pair::Look;

/// What this program says. One that says less understands it all the same: what it does not know it passes over.
const VERSION: u32 = 1;

/// What a process tells its successor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Testament {
    pub(super) version: u32,
    /// The program's, for the log.
    pub(super) program: String,
    pub(super) workers: usize,
    pub(super) second_set: bool,
    pub(super) spots: Vec<Spot>,
    /// Hexadecimal digits.
    pub(crate) quic_secret: String,
    /// As they are kept.
    pub(crate) ticket_keys: Vec<String>,
    /// What is served: name and text.
    pub(super) files: Vec<(String, String)>,
    pub(crate) overrides: Vec<Said>,
    pub(crate) verdicts: Vec<Verdict>,
    pub(crate) memories: Vec<Remembered>,
    /// The VMs that were looked up.
    pub(crate) looked_up: Vec<LookedUp>,
    /// What sticky cookies are made with, if no file says so. Hexadecimal digits.
    pub(crate) sticky: Option<String>,
    /// The files that are watched as they were when what is in them was taken up, if they are.
    pub(crate) watched: Option<Vec<Seen>>,
    /// How long the drain may take.
    pub(crate) drain_ms: u64,
}

/// Sockets that follow.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Spot {
    pub(super) address: Option<SocketAddr>,
    pub(super) dual: bool,
    /// "http", "https", "http3", "admin".
    pub(super) kind: String,
    /// Of the administration, as the configuration writes it.
    pub(super) place: Option<String>,
    pub(super) sockets: usize,
}

/// The VMs of a pool that were looked up.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LookedUp {
    pub(crate) pool: String,
    /// Address, weight and tier.
    pub(crate) members: Vec<(SocketAddr, u32, u32)>,
}

/// A file that is watched, as it was.
pub(crate) type Seen = (String, Look);

/// What an operator has said of a backend.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Said {
    pub(crate) pool: String,
    pub(crate) backend: String,
    /// "drain", "maintenance".
    pub(crate) duty: Option<String>,
    pub(crate) weight: Option<u32>,
    pub(crate) by: String,
}

/// What was found out of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Verdict {
    pub(crate) pool: String,
    pub(crate) address: String,
    pub(crate) up: bool,
}

/// What else is known of a VM.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Remembered {
    pub(crate) pool: String,
    pub(crate) address: String,
    /// For how much longer it is set aside.
    pub(crate) aside_ms: Option<u64>,
    pub(crate) ejections: u32,
    pub(crate) latency_s: f64,
    /// For how long it has warmed up, if it is not warm.
    pub(crate) warming_ms: Option<u64>,
}

impl Testament {
    pub(crate) fn new(files: &[File]) -> Testament {
        let files = files.iter().map(|file| (file.name.clone(), file.text.clone())).collect();
        Testament {
            version: VERSION,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            files,
            ..Testament::default()
        }
    }

    pub(crate) fn files(&self) -> Vec<File> {
        self.files.iter().map(|(name, text)| File { name: name.clone(), text: text.clone() }).collect()
    }
}
