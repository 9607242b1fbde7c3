//! What authorities ask for on the ports of everybody, and the answers to that: one for the process, read by all workers.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::Trouble;

/// The protocol an authority speaks to see a certificate of ours (RFC 8737, section 3).
const PROTOCOL: &[u8] = b"acme-tls/1";
/// Where it looks for a text of ours (RFC 8555, section 8.3).
const PATH: &str = "/.well-known/acme-challenge/";

/// Mostly there are none, and asking costs one load.
#[derive(Default)]
pub struct Challenges(ArcSwap<Open>);

#[derive(Clone, Default)]
struct Open {
    /// By the token in the path.
    http: HashMap<String, String>,
    /// By name, a configuration that shows nothing but the one certificate.
    tls: HashMap<String, Arc<ServerConfig>>,
}

impl Challenges {
    /// The process's only ones.
    #[must_use]
    pub fn shared() -> Arc<Challenges> {
        static CHALLENGES: OnceLock<Arc<Challenges>> = OnceLock::new();
        CHALLENGES.get_or_init(Arc::default).clone()
    }

    /// What the authority wants to read at this path.
    #[must_use]
    pub fn text(&self, path: &str) -> Option<String> {
        let token = path.strip_prefix(PATH)?;
        self.0.load().http.get(token).cloned()
    }

    /// How the handshake goes on with a client that offers these protocols and asks for this name, if it is an authority that
    /// wants to see a certificate.
    pub fn certificate<'p>(
        &self,
        mut protocols: impl Iterator<Item = &'p [u8]>,
        name: &str,
    ) -> Option<Arc<ServerConfig>> {
        // It offers this one and no other.
        if protocols.next() != Some(PROTOCOL) || protocols.next().is_some() {
            return None;
        }
        self.0.load().tls.get(name).cloned()
    }

    /// Answers with this text until the offer is dropped.
    pub(super) fn offer_text(self: &Arc<Self>, token: &str, text: &str) -> Offer {
        self.change(|open| _ = open.http.insert(token.to_owned(), text.to_owned()));
        Offer { challenges: self.clone(), token: Some(token.to_owned()), shown: None }
    }

    /// Shows a certificate for the name that holds the digest, until the offer is dropped.
    pub(super) fn offer_certificate(self: &Arc<Self>, name: &str, digest: &[u8]) -> Result<Offer, Trouble> {
        let config = config(name, digest)
            .map_err(|error| Trouble::new(format!("no certificate for tls-alpn-01 can be made: {error}")))?;
        let config = Arc::new(config);
        self.change(|open| _ = open.tls.insert(name.to_owned(), config.clone()));
        Ok(Offer { challenges: self.clone(), token: None, shown: Some((name.to_owned(), config)) })
    }

    fn change(&self, act: impl Fn(&mut Open)) {
        self.0.rcu(|open| {
            let mut next = Open::clone(open);
            act(&mut next);
            next
        });
    }
}

impl fmt::Debug for Challenges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Challenges").finish_non_exhaustive()
    }
}

fn config(name: &str, digest: &[u8]) -> Result<ServerConfig, Box<dyn std::error::Error>> {
    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    let key = any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())))?;
    // Nobody but an authority can make anything of its critical extension, so it is not looked at.
    let certified = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

/// An answer that is there until it is dropped.
#[derive(Debug)]
pub(super) struct Offer {
    challenges: Arc<Challenges>,
    token: Option<String>,
    shown: Option<(String, Arc<ServerConfig>)>,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.challenges.change(|open| {
            self.token.iter().for_each(|token| _ = open.http.remove(token));
            // Somebody else may have one for the same name by now.
            if let Some((name, config)) = &self.shown
                && open.tls.get(name).is_some_and(|shown| Arc::ptr_eq(shown, config))
            {
                open.tls.remove(name);
            }
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_there_for_as_long_as_it_is_offered() {
        let challenges: Arc<Challenges> = Arc::default();
        let path = format!("{PATH}token");
        let shown =
            |protocols: &[&[u8]], name| challenges.certificate(protocols.iter().copied(), name).is_some();
        let text = challenges.offer_text("token", "token.key");
        let certificate = challenges.offer_certificate("a.test", &[7; 32]).unwrap();
        assert_eq!(challenges.text(&path).as_deref(), Some("token.key"));
        assert_eq!((challenges.text(PATH), challenges.text("/token")), (None, None));
        assert!(shown(&[PROTOCOL], "a.test"));
        assert!(!shown(&[PROTOCOL], "b.test") && !shown(&[b"h2"], "a.test") && !shown(&[], "a.test"));
        assert!(!shown(&[PROTOCOL, b"h2"], "a.test") && !shown(&[b"h2", PROTOCOL], "a.test"));
        drop(text);
        assert_eq!(challenges.text(&path), None);
        drop(certificate);
        assert!(!shown(&[PROTOCOL], "a.test"));
    }
}
