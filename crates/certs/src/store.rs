//! Which certificate a client is shown: by SNI, the same on TCP and QUIC.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use foregate_routing::{HostPattern, parent_of};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};

use crate::Certificate;

/// All certificates of one configuration, found by host name in constant time.
///
/// Order: those given to a site's host win over those found by their own names; an exact name wins over a wildcard. For one
/// name there may be certificates with different kinds of keys: ECDSA is preferred, RSA is there for clients that know
/// nothing else. Of two with the same name and the same kind the first of the file wins.
#[derive(Default)]
pub struct CertificateStore {
    exact: HashMap<Box<str>, Shown>,
    /// Keyed by what follows the first label: `*.example.com` is found under `example.com`.
    wildcard: HashMap<Box<str>, Shown>,
    default: Shown,
    wanting_word: Vec<Arc<Certificate>>,
}

/// The certificates for one name, the preferred first; of each kind of key one.
type Shown = Vec<Arc<Certificate>>;

impl CertificateStore {
    /// `by_host` are the certificates of single sites; `default` serves clients with no or an unknown SNI.
    #[must_use]
    pub fn new(
        certificates: Vec<Arc<Certificate>>,
        by_host: Vec<(HostPattern, Arc<Certificate>)>,
        default: Vec<Arc<Certificate>>,
    ) -> CertificateStore {
        let mut store = CertificateStore { default, ..CertificateStore::default() };
        for (pattern, certificate) in by_host {
            match pattern {
                HostPattern::Exact(host) => _ = store.exact.entry(host).or_insert_with(|| vec![certificate]),
                HostPattern::Wildcard(parent) => {
                    _ = store.wildcard.entry(parent).or_insert_with(|| vec![certificate]);
                }
                HostPattern::Any if store.default.is_empty() => store.default.push(certificate),
                HostPattern::Any => {}
            }
        }
        let mut found = [HashMap::new(), HashMap::new()];
        for certificate in certificates {
            for name in certificate.names() {
                let [exact, wildcard] = &mut found;
                let (map, key) = match name.strip_prefix("*.") {
                    Some(parent) => (wildcard, parent),
                    None => (exact, name.as_str()),
                };
                let shown: &mut Shown = map.entry(Box::from(key)).or_default();
                if shown.iter().all(|other| other.algorithm() != certificate.algorithm()) {
                    shown.push(certificate.clone());
                    shown.sort_by_key(|certificate| rank(certificate.algorithm()));
                }
            }
        }
        let [exact, wildcard] = found;
        for (key, shown) in exact {
            store.exact.entry(key).or_insert(shown);
        }
        for (key, shown) in wildcard {
            store.wildcard.entry(key).or_insert(shown);
        }
        let shown = store.exact.values().chain(store.wildcard.values()).chain([&store.default]).flatten();
        let mut wanting_word: Vec<_> = shown.filter(|one| one.wants_word()).cloned().collect();
        wanting_word.sort_by_key(Arc::as_ptr);
        wanting_word.dedup_by_key(|one| Arc::as_ptr(one));
        store.wanting_word = wanting_word;
        store
    }

    /// The certificates for a host given in lower case, the preferred first, not considering the default.
    #[must_use]
    pub fn find(&self, host: &str) -> &[Arc<Certificate>] {
        let by_wildcard = || parent_of(host).and_then(|parent| self.wildcard.get(parent));
        self.exact.get(host).or_else(by_wildcard).map_or(&[], Vec::as_slice)
    }

    /// Each certificate with the names it is shown for; `*` is everybody else.
    #[must_use]
    pub fn all(&self) -> Vec<(Vec<String>, &Arc<Certificate>)> {
        let exact = self.exact.iter().map(|(host, shown)| (host.to_string(), shown));
        let wildcard = self.wildcard.iter().map(|(parent, shown)| (format!("*.{parent}"), shown));
        let default = std::iter::once(("*".to_owned(), &self.default));
        let mut all: HashMap<*const Certificate, (Vec<String>, &Arc<Certificate>)> = HashMap::new();
        for (name, shown) in exact.chain(wildcard).chain(default) {
            for certificate in shown {
                let entry = all.entry(Arc::as_ptr(certificate)).or_insert_with(|| (Vec::new(), certificate));
                entry.0.push(name.clone());
            }
        }
        let mut all: Vec<_> = all.into_values().collect();
        all.iter_mut().for_each(|(names, _)| names.sort());
        all.sort_by(|(a, one), (b, other)| {
            a.cmp(b).then(rank(one.algorithm()).cmp(&rank(other.algorithm())))
        });
        all
    }

    /// Those that are to be shown with their authority's word.
    #[must_use]
    pub fn wanting_word(&self) -> Vec<Arc<Certificate>> {
        self.wanting_word.clone()
    }

    /// Names clients may ask for, each with the certificate they are shown then; of a wildcard one.
    pub fn names(&self) -> impl Iterator<Item = (String, &Arc<Certificate>)> {
        let mut names: Vec<_> = self.exact.iter().map(|(host, shown)| (host.to_string(), shown)).collect();
        names.sort_by(|(one, _), (other, _)| one.cmp(other));
        let mut wildcards: Vec<_> =
            self.wildcard.iter().map(|(parent, shown)| (format!("www.{parent}"), shown)).collect();
        wildcards.sort_by(|(one, _), (other, _)| one.cmp(other));
        let default = std::iter::once(("localhost".to_owned(), &self.default));
        names
            .into_iter()
            .chain(wildcards)
            .chain(default)
            .filter_map(|(name, shown)| Some((name, shown.first()?)))
    }

    /// The certificate a client with this SNI is shown, that can check these signatures; `None` refuses the handshake.
    #[must_use]
    pub fn present(&self, sni: Option<&str>, schemes: &[SignatureScheme]) -> Option<&Arc<Certificate>> {
        let shown = match sni.map_or(&[][..], |name| self.find(name)) {
            [] => &self.default[..],
            shown => shown,
        };
        match shown {
            // Whether it fits is found out in the handshake.
            [only] => Some(only),
            many => many.iter().find(|one| one.is_for(schemes)).or(many.first()),
        }
    }
}

/// The lower, the better: by what it costs, and by how many clients know it.
fn rank(algorithm: SignatureAlgorithm) -> u8 {
    match algorithm {
        SignatureAlgorithm::ECDSA => 0,
        SignatureAlgorithm::RSA => 1,
        _ => 2,
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls hands the name out as the client wrote it; DNS names compare without case.
        let sni = hello.server_name().map(str::to_ascii_lowercase);
        let shown = self.present(sni.as_deref(), hello.signature_schemes());
        shown.map(|certificate| certificate.certified_key())
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};

    use super::*;

    fn made(names: &[&str], kind: &'static rcgen::SignatureAlgorithm) -> Arc<Certificate> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let key = KeyPair::generate_for(kind).unwrap();
        let chain = CertificateParams::new(names).unwrap().self_signed(&key).unwrap().pem();
        Arc::new(Certificate::from_pem(chain.as_bytes(), key.serialize_pem().as_bytes()).unwrap())
    }

    #[test]
    fn ecdsa_is_preferred_and_rsa_is_there_for_those_who_need_it() {
        use SignatureScheme as S;
        let rsa = made(&["a.test", "*.a.test"], &PKCS_RSA_SHA256);
        let ed25519 = made(&["a.test"], &PKCS_ED25519);
        let ecdsa = made(&["a.test", "b.test"], &PKCS_ECDSA_P256_SHA256);
        let second = made(&["a.test"], &PKCS_ECDSA_P256_SHA256);
        let listed = vec![rsa.clone(), ed25519.clone(), ecdsa.clone(), second];
        let store = CertificateStore::new(listed, Vec::new(), vec![rsa.clone()]);
        let shown = |sni, schemes: &[S]| store.present(sni, schemes).cloned().unwrap();
        let is = |one: &Arc<Certificate>, other: &Arc<Certificate>| Arc::ptr_eq(one, other);
        let modern = [S::RSA_PSS_SHA256, S::ED25519, S::ECDSA_NISTP256_SHA256];
        assert!(is(&shown(Some("a.test"), &modern), &ecdsa), "the first of the file");
        assert!(is(&shown(Some("a.test"), &modern[..2]), &rsa));
        assert!(is(&shown(Some("a.test"), &modern[1..2]), &ed25519));
        assert!(is(&shown(Some("a.test"), &[]), &ecdsa), "the handshake says that it fits nobody");
        assert!(is(&shown(Some("b.test"), &modern[..1]), &ecdsa), "there is no other");
        assert!(is(&shown(Some("x.a.test"), &modern), &rsa));
        assert!(is(&shown(None, &modern), &rsa) && is(&shown(Some("c.test"), &modern), &rsa));
        let own = made(&["own.test"], &PKCS_RSA_SHA256);
        let by_host = vec![(HostPattern::Exact("a.test".into()), own.clone())];
        let store = CertificateStore::new(vec![ecdsa], by_host, Vec::new());
        assert!(is(store.present(Some("a.test"), &modern).unwrap(), &own), "what a site is given is its own");
        assert!(store.present(None, &modern).is_none());
        assert_eq!(store.all().len(), 2);
    }
}
