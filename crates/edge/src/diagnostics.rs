//! What of QUIC and TLS is written down for whoever looks for a fault. Off unless asked for: it names clients,
//! and with the keys everything they say can be read.

use std::fmt;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, BufWriter};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use quinn::{QlogConfig, QlogStream};
use rustls::KeyLog;

/// What is asked for.
#[derive(Clone, Default)]
pub struct Diagnostics {
    /// Gets the keys of every TLS and QUIC connection with a client.
    pub keys: Option<Arc<dyn KeyLog>>,
    pub qlog: Option<Qlog>,
}

impl fmt::Debug for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Diagnostics").field("keys", &self.keys.is_some()).field("qlog", &self.qlog).finish()
    }
}

/// A file for each QUIC connection, in the format of qlog.
#[derive(Clone, Debug)]
pub struct Qlog {
    folder: PathBuf,
    /// Only of clients in these networks; none: of all.
    peers: Vec<IpNet>,
}

impl Qlog {
    /// # Errors
    /// The folder is not there and cannot be made.
    pub fn new(folder: PathBuf, peers: Vec<IpNet>) -> io::Result<Qlog> {
        DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Qlog { folder, peers })
    }

    /// The log of one connection; `None` where it is not wanted or cannot be written.
    pub(crate) fn of(&self, peer: SocketAddr, id: &dyn fmt::Display) -> Option<QlogStream> {
        if !(self.peers.is_empty() || self.peers.iter().any(|network| network.contains(&peer.ip()))) {
            return None;
        }
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let name =
            format!("{seconds}-{}-{}-{id}.sqlog", peer.ip().to_string().replace(':', "."), peer.port());
        let path = self.folder.join(name);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(file) => {
                let mut config = QlogConfig::default();
                config.writer(Box::new(BufWriter::new(file))).title(Some(format!("foregate, client {peer}")));
                config.into_stream()
            }
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "a qlog cannot be written");
                None
            }
        }
    }
}
