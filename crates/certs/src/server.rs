//! The TLS configurations of one snapshot: TCP in two version floors, and QUIC.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::server::{NoServerSessionStorage, ProducesTickets};
use rustls::version::{TLS12, TLS13};
use rustls::{KeyLog, ServerConfig, SupportedProtocolVersion};

use crate::CertificateStore;
use crate::sessions::SingleUse;
use crate::tickets::Tickets;

/// Ready-made configurations, shared by all workers.
pub struct TlsServer {
    /// TLS 1.3 only, the default.
    pub modern: Arc<ServerConfig>,
    /// For sites with `tls.min_version = "1.2"`.
    pub tls12: Arc<ServerConfig>,
    /// TLS 1.3 with ALPN h3.
    pub quic: Arc<ServerConfig>,
    /// Whether that takes 0-RTT.
    pub early_data: bool,
}

impl TlsServer {
    /// `early_data`: some site takes requests in 0-RTT. `keys` gets the keys of every connection.
    ///
    /// # Errors
    /// The crypto provider lacks what the versions need; does not happen with the one we link.
    pub fn new(
        store: &Arc<CertificateStore>,
        early_data: bool,
        keys: Option<&Arc<dyn KeyLog>>,
    ) -> Result<TlsServer, rustls::Error> {
        let config = |versions: &[&'static SupportedProtocolVersion],
                      alpn: &[&[u8]]|
         -> Result<ServerConfig, rustls::Error> {
            let mut config = config(store, versions, alpn)?;
            if let Some(keys) = keys {
                config.key_log = keys.clone();
            }
            Ok(config)
        };
        let tcp: [&[u8]; 2] = [b"h2", b"http/1.1"];
        let mut quic = config(&[&TLS13], &[b"h3"])?;
        if early_data {
            // rustls takes early data only of sessions it has stored; a ticket can be used again and again.
            quic.session_storage = SingleUse::shared();
            quic.ticketer = Arc::new(NoTickets);
            // QUIC knows no other size than this and 0 (RFC 9001, section 4.6.1).
            quic.max_early_data_size = u32::MAX;
        }
        Ok(TlsServer {
            modern: Arc::new(config(&[&TLS13], &tcp)?),
            tls12: Arc::new(config(&[&TLS13, &TLS12], &tcp)?),
            quic: Arc::new(quic),
            early_data,
        })
    }
}

fn config(
    store: &Arc<CertificateStore>,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> Result<ServerConfig, rustls::Error> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(store.clone());
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // Resumption by tickets alone: the default is a locked cache of 256 sessions that workers fight over.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    // A ticket of one worker, or from before a reload, is good on all.
    config.ticketer = Tickets::shared();
    config.send_tls13_tickets = 1;
    Ok(config)
}

#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}
