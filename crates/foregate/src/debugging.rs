//! What the environment asks to be written down of QUIC and TLS. Variables, and no section of the
//! configuration: this is for an hour of searching, and must not stay on in a file.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;

use foregate_edge::{Diagnostics, Qlog};
use ipnet::IpNet;
use rustls::KeyLogFile;

/// Reads the variables, and says loudly what follows from them.
///
/// # Errors
/// A sentence on the variable that cannot be used.
pub(crate) fn from_environment() -> Result<Diagnostics, String> {
    let mut diagnostics = Diagnostics::default();
    if let Some(file) = env::var_os("SSLKEYLOGFILE") {
        let file = PathBuf::from(file).display().to_string();
        tracing::warn!(
            file,
            "SSLKEYLOGFILE is set: the keys of all connections are written there; whoever has them reads everything"
        );
        diagnostics.keys = Some(Arc::new(KeyLogFile::new()));
    }
    if let Some(folder) = env::var_os("FOREGATE_QLOG_DIR") {
        let folder = PathBuf::from(folder);
        let peers = env::var("FOREGATE_QLOG_PEERS").unwrap_or_default();
        let peers: Result<Vec<IpNet>, String> =
            peers.split(',').map(str::trim).filter(|peer| !peer.is_empty()).map(network).collect();
        let shown = folder.display().to_string();
        let qlog = Qlog::new(folder, peers?)
            .map_err(|error| format!("FOREGATE_QLOG_DIR: the folder {shown} cannot be used: {error}"))?;
        tracing::warn!(
            folder = shown,
            "FOREGATE_QLOG_DIR is set: each HTTP/3 connection is written down there, and nothing is ever deleted"
        );
        diagnostics.qlog = Some(qlog);
    }
    Ok(diagnostics)
}

/// A network, or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse().map(|address: std::net::IpAddr| IpNet::from(address));
    text.parse().or_else(|_| single()).map_err(|_| {
        format!(
            "FOREGATE_QLOG_PEERS: \"{text}\" is no address and no network; write a list such as \"192.0.2.7, 10.0.0.0/8\""
        )
    })
}
