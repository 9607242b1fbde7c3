//! Which certificate a client is shown: by SNI, the same on TCP and QUIC.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use foregate_routing::HostPattern;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use crate::Certificate;

/// All certificates of one configuration, found by host name in constant time.
///
/// Order: a certificate given to a site's host wins over one found by its own names; an exact name wins
/// over a wildcard; of two certificates with the same name the first of the file wins.
#[derive(Default)]
pub struct CertificateStore {
    exact: HashMap<Box<str>, Arc<Certificate>>,
    /// Keyed by what follows the first label: `*.example.com` is found under `example.com`.
    wildcard: HashMap<Box<str>, Arc<Certificate>>,
    default: Option<Arc<Certificate>>,
}

impl CertificateStore {
    /// `by_host` are the certificates of single sites; `default` serves clients with no or an unknown SNI.
    #[must_use]
    pub fn new(
        certificates: Vec<Arc<Certificate>>,
        by_host: Vec<(HostPattern, Arc<Certificate>)>,
        default: Option<Arc<Certificate>>,
    ) -> CertificateStore {
        let mut store = CertificateStore { default, ..CertificateStore::default() };
        for (pattern, certificate) in by_host {
            match pattern {
                HostPattern::Exact(host) => _ = store.exact.entry(host).or_insert(certificate),
                HostPattern::Wildcard(parent) => _ = store.wildcard.entry(parent).or_insert(certificate),
                HostPattern::Any => _ = store.default.get_or_insert(certificate),
            }
        }
        for certificate in certificates {
            for name in certificate.names() {
                let (map, key) = match name.strip_prefix("*.") {
                    Some(parent) => (&mut store.wildcard, parent),
                    None => (&mut store.exact, name.as_str()),
                };
                map.entry(key.into()).or_insert_with(|| certificate.clone());
            }
        }
        store
    }

    /// The certificate for a host given in lower case, not considering the default.
    #[must_use]
    pub fn find(&self, host: &str) -> Option<&Arc<Certificate>> {
        self.exact
            .get(host)
            .or_else(|| host.split_once('.').and_then(|(_, parent)| self.wildcard.get(parent)))
    }

    /// Each certificate with the names it is shown for; `*` is everybody else.
    #[must_use]
    pub fn all(&self) -> Vec<(Vec<String>, &Arc<Certificate>)> {
        let exact = self.exact.iter().map(|(host, found)| (host.to_string(), found));
        let wildcard = self.wildcard.iter().map(|(parent, found)| (format!("*.{parent}"), found));
        let default = self.default.iter().map(|found| ("*".to_owned(), found));
        let mut all: HashMap<*const Certificate, (Vec<String>, &Arc<Certificate>)> = HashMap::new();
        for (name, certificate) in exact.chain(wildcard).chain(default) {
            all.entry(Arc::as_ptr(certificate)).or_insert_with(|| (Vec::new(), certificate)).0.push(name);
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.iter_mut().for_each(|(names, _)| names.sort());
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// A name a client may ask for, and the certificate it is shown then.
    #[must_use]
    pub fn any(&self) -> Option<(String, &Arc<Certificate>)> {
        let exact =
            self.exact.iter().min_by_key(|(host, _)| *host).map(|(host, found)| (host.to_string(), found));
        let wildcard = || {
            let found = self.wildcard.iter().min_by_key(|(parent, _)| *parent);
            found.map(|(parent, found)| (format!("www.{parent}"), found))
        };
        let default = || self.default.as_ref().map(|found| ("localhost".to_owned(), found));
        exact.or_else(wildcard).or_else(default)
    }

    /// The certificate a client with this SNI is shown; `None` refuses the handshake.
    #[must_use]
    pub fn present(&self, sni: Option<&str>) -> Option<&Arc<Certificate>> {
        sni.and_then(|name| self.find(name)).or(self.default.as_ref())
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls hands the name out as the client wrote it; DNS names compare without case.
        let sni = hello.server_name().map(str::to_ascii_lowercase);
        self.present(sni.as_deref()).map(|certificate| certificate.certified_key().clone())
    }
}

impl fmt::Debug for CertificateStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateStore")
            .field("exact", &self.exact.keys())
            .field("wildcard", &self.wildcard.keys())
            .field("default", &self.default)
            .finish()
    }
}
