//! The TLS configurations of one snapshot: for each set of rules TCP in two version floors, and QUIC.

use std::collections::HashMap;
use std::sync::Arc;

use foregate_routing::{TlsRules, TlsVersion};
use rustls::crypto::aws_lc_rs;
use rustls::server::{NoServerSessionStorage, ProducesTickets, WebPkiClientVerifier};
use rustls::version::{TLS12, TLS13};
use rustls::{KeyLog, ServerConfig, SupportedProtocolVersion};

use crate::sessions::SingleUse;
use crate::tickets::{Bound, Tickets};
use crate::{CertificateStore, ClientAuth};

/// Ready-made configurations, chosen by the site a client asks for.
pub struct TlsServer {
    /// For sites that do not ask clients who they are.
    open: Configs,
    /// The same over QUIC, if it takes 0-RTT.
    early: Arc<ServerConfig>,
    /// For those that do, by the digest of what they ask.
    asking: HashMap<[u8; 32], Configs>,
}

struct Configs {
    /// TLS 1.3 only, the default.
    modern: Arc<ServerConfig>,
    /// For sites with `tls.min_version = "1.2"`.
    tls12: Arc<ServerConfig>,
    /// TLS 1.3 with ALPN h3.
    quic: Arc<ServerConfig>,
}

impl TlsServer {
    /// `clients` are all that some site asks for. `keys` gets the keys of every connection.
    ///
    /// # Errors
    /// The crypto provider lacks what the versions need; does not happen with the one we link.
    pub fn new(
        store: &Arc<CertificateStore>,
        clients: &[Arc<ClientAuth>],
        keys: Option<&Arc<dyn KeyLog>>,
    ) -> Result<TlsServer, rustls::Error> {
        let open = Configs::new(store, None, keys)?;
        let mut early = ServerConfig::clone(&open.quic);
        // rustls takes early data only of sessions it has stored; a ticket can be used again and again.
        early.session_storage = SingleUse::shared();
        early.ticketer = Arc::new(NoTickets);
        // QUIC knows no other size than this and 0 (RFC 9001, section 4.6.1).
        early.max_early_data_size = u32::MAX;
        let asking = clients.iter().map(|clients| {
            let configs = Configs::new(store, Some(clients), keys)?;
            Ok((clients.rules().digest, configs))
        });
        Ok(TlsServer { open, early: Arc::new(early), asking: asking.collect::<Result<_, rustls::Error>>()? })
    }

    /// For TCP. None: nobody has told how clients are judged by these rules.
    #[must_use]
    pub fn tcp(&self, rules: &TlsRules) -> Option<&Arc<ServerConfig>> {
        let configs = self.configs(rules)?;
        Some(match rules.min_version {
            TlsVersion::V1_2 => &configs.tls12,
            TlsVersion::V1_3 => &configs.modern,
        })
    }

    /// For QUIC before anything is known of the client.
    #[must_use]
    pub fn quic_for_everybody(&self) -> &Arc<ServerConfig> {
        &self.open.quic
    }

    /// For QUIC, which has no older version. `early`: it takes 0-RTT, unless it asks who the client is, which is not
    /// known then.
    #[must_use]
    pub fn quic(&self, rules: &TlsRules, early: bool) -> Option<&Arc<ServerConfig>> {
        match rules.clients {
            None if early => Some(&self.early),
            _ => Some(&self.configs(rules)?.quic),
        }
    }

    fn configs(&self, rules: &TlsRules) -> Option<&Configs> {
        match rules.clients {
            None => Some(&self.open),
            Some(clients) => self.asking.get(&clients.digest),
        }
    }
}

impl Configs {
    fn new(
        store: &Arc<CertificateStore>,
        clients: Option<&Arc<ClientAuth>>,
        keys: Option<&Arc<dyn KeyLog>>,
    ) -> Result<Configs, rustls::Error> {
        let verifier =
            clients.map_or_else(WebPkiClientVerifier::no_client_auth, |clients| clients.verifier());
        let config = |versions: &[&'static SupportedProtocolVersion], alpn: &[&[u8]]| {
            let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(versions)?
                .with_client_cert_verifier(verifier.clone())
                .with_cert_resolver(store.clone());
            config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
            // Resumption by tickets alone: the default is a locked cache of 256 sessions that workers fight over.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            // A ticket of one worker, or from before a reload, is good on all; but only where the client was asked the same.
            config.ticketer = match clients {
                None => Tickets::shared(),
                Some(clients) => Arc::new(Bound::to(clients.rules().digest)),
            };
            config.send_tls13_tickets = 1;
            if let Some(keys) = keys {
                config.key_log = keys.clone();
            }
            Ok::<_, rustls::Error>(Arc::new(config))
        };
        let tcp: [&[u8]; 2] = [b"h2", b"http/1.1"];
        Ok(Configs {
            modern: config(&[&TLS13], &tcp)?,
            tls12: config(&[&TLS13, &TLS12], &tcp)?,
            quic: config(&[&TLS13], &[b"h3"])?,
        })
    }
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
