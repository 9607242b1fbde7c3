//! One certificate chain with its key.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use foregate_routing::HostPattern;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls::{SignatureAlgorithm, SignatureScheme};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::Facts;
use crate::ocsp::{self, Question, Staple};

/// A certificate chain, its private key and the names it is good for.
pub struct Certificate {
    key: Arc<CertifiedKey>,
    /// The same with what its authority says of it, which changes.
    shown: ArcSwap<CertifiedKey>,
    question: Result<Option<Question>, &'static str>,
    names: Vec<String>,
    facts: Option<Facts>,
    covers_all: bool,
}

impl Certificate {
    /// Reads a PEM chain (leaf first) and its PEM private key, and checks that they belong together.
    ///
    /// # Errors
    /// Names the file that is at fault, what is wrong with it and what to do.
    pub fn load(cert: &Path, key: &Path) -> Result<Certificate, CertificateError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| CertificateError::new(path, Problem::Read(error)))
        };
        let (chain_pem, key_pem) = (read(cert)?, read(key)?);
        Certificate::parse(&chain_pem, &key_pem).map_err(|(which, problem)| {
            CertificateError::new(if which == Which::Key { key } else { cert }, problem)
        })
    }

    /// The same from PEM text in memory; errors speak of "memory" instead of a path.
    ///
    /// # Errors
    /// As [`Certificate::load`].
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Result<Certificate, CertificateError> {
        Certificate::parse(cert, key)
            .map_err(|(_, problem)| CertificateError::new(Path::new("memory"), problem))
    }

    /// Marks a certificate made for development: it stands in for any host.
    #[must_use]
    pub fn self_signed(mut self) -> Certificate {
        self.covers_all = true;
        self
    }

    /// The DNS names of the leaf's subject alternative names.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether a client that was shown this certificate may ask for `host` on the same connection.
    #[must_use]
    pub fn covers(&self, host: &str) -> bool {
        if self.covers_all {
            return true;
        }
        let (Ok(leaf), Ok(name)) = (self.leaf(), ServerName::try_from(host)) else { return false };
        leaf.verify_is_valid_for_subject_name(&name).is_ok()
    }

    /// Whether a name that may be a wildcard is one that it was issued for, itself or by a wildcard.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        is_among(&self.names, name)
    }

    /// Who has issued it, and how long it is good, if that can be read.
    #[must_use]
    pub fn facts(&self) -> Option<&Facts> {
        self.facts.as_ref()
    }

    /// Whether it was made for development.
    #[must_use]
    pub fn is_self_signed(&self) -> bool {
        self.covers_all
    }

    /// What kind of key it has.
    pub(crate) fn algorithm(&self) -> SignatureAlgorithm {
        self.key.key.algorithm()
    }

    /// Whether a client that can check these signatures can check those made with its key.
    pub(crate) fn is_for(&self, schemes: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(schemes).is_some()
    }

    /// The SHA-256 of the server's own certificate, in hexadecimal digits.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let der = self.end_entity().map_or(&[][..], |leaf| leaf.as_ref());
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der);
        digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The server's own certificate, the first of the chain.
    #[must_use]
    pub fn end_entity(&self) -> Option<&CertificateDer<'static>> {
        self.key.cert.first()
    }

    pub(crate) fn certified_key(&self) -> Arc<CertifiedKey> {
        self.shown.load_full()
    }

    /// Whether its authority's word is to be shown with it (OCSP).
    #[must_use]
    pub fn wants_word(&self) -> bool {
        self.question() != Ok(None)
    }

    /// Why that cannot be got.
    #[must_use]
    pub fn lacks_word(&self) -> Option<&'static str> {
        self.question().err()
    }

    pub(crate) fn question(&self) -> Result<Option<&Question>, &'static str> {
        self.question.as_ref().map(Option::as_ref).map_err(|why| *why)
    }

    pub(crate) fn is_stapled(&self) -> bool {
        self.shown.load().ocsp.is_some()
    }

    /// Shows it with this from now on.
    pub(crate) fn staple(&self, staple: Option<Staple>) {
        let (cert, key) = (self.key.cert.clone(), self.key.key.clone());
        self.shown.store(Arc::new(CertifiedKey { cert, key, ocsp: staple.map(|staple| staple.der) }));
    }

    fn leaf(&self) -> Result<webpki::EndEntityCert<'_>, webpki::Error> {
        let der = self.key.cert.first().ok_or(webpki::Error::BadDer)?;
        webpki::EndEntityCert::try_from(der)
    }

    fn parse(cert: &[u8], key: &[u8]) -> Result<Certificate, (Which, Problem)> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<_, _>>()
            .map_err(|error| (Which::Chain, Problem::Pem(error)))?;
        let Some(leaf) = chain.first() else {
            let swapped = holds(cert, b"PRIVATE KEY-----");
            return Err((Which::Chain, if swapped { Problem::Swapped } else { Problem::Empty }));
        };
        let facts = Facts::of(leaf);
        let names = webpki::EndEntityCert::try_from(leaf)
            .map_err(|error| (Which::Chain, Problem::X509(error)))?
            .valid_dns_names()
            .map(str::to_ascii_lowercase)
            .collect();
        let text = key;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| {
            let problem = match error {
                _ if is_encrypted(key) => Problem::Encrypted,
                pem::Error::NoItemsFound if holds(key, b"BEGIN CERTIFICATE-----") => Problem::Swapped,
                pem::Error::NoItemsFound => Problem::NoKey,
                other => Problem::Pem(other),
            };
            (Which::Key, problem)
        })?;
        let key = any_supported_type(&key).map_err(|error| {
            (Which::Key, if is_encrypted(text) { Problem::Encrypted } else { Problem::Key(error) })
        })?;
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            // Some key types cannot tell; rustls then finds out at the first handshake.
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {}
            Err(_) => return Err((Which::Key, Problem::Mismatch)),
        }
        let key = Arc::new(key);
        let certificate = Certificate {
            shown: ArcSwap::new(key.clone()),
            question: Question::of(&key.cert),
            key,
            names,
            facts,
            covers_all: false,
        };
        if certificate.wants_word()
            && let Some(staple) = ocsp::last_said(&certificate.fingerprint())
        {
            certificate.staple(Some(staple));
        }
        Ok(certificate)
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Why a certificate cannot be used. Displays the file, the reason and the remedy.
#[derive(Debug)]
pub struct CertificateError {
    path: PathBuf,
    problem: Problem,
}

impl CertificateError {
    fn new(path: &Path, problem: Problem) -> CertificateError {
        CertificateError { path: path.to_owned(), problem }
    }

    /// The file at fault.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Chain,
    Key,
}

fn holds(text: &[u8], words: &[u8]) -> bool {
    text.windows(words.len()).any(|window| window == words)
}

/// Locked by a passphrase, in either of the ways there are (RFC 5958; RFC 1421).
fn is_encrypted(key: &[u8]) -> bool {
    holds(key, b"BEGIN ENCRYPTED PRIVATE KEY") || holds(key, b"Proc-Type: 4,ENCRYPTED")
}

#[derive(Debug)]
enum Problem {
    Read(std::io::Error),
    Pem(pem::Error),
    Empty,
    NoKey,
    Encrypted,
    /// A key where the certificate should be, or the other way round.
    Swapped,
    X509(webpki::Error),
    Key(rustls::Error),
    Mismatch,
}

/// Whether a name that may be a wildcard is one of these, itself or by a wildcard.
pub(crate) fn is_among(names: &[String], name: &str) -> bool {
    let named = |name: &str| names.iter().any(|one| one == name);
    let wildcard = || HostPattern::over(name).is_some_and(|wildcard| named(&wildcard.to_string()));
    named(name) || !name.starts_with("*.") && wildcard()
}

/// Why a file cannot be read, and what to do.
pub(crate) fn unread(f: &mut fmt::Formatter<'_>, path: &Path, error: &std::io::Error) -> fmt::Result {
    let path = path.display();
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            write!(f, "{path} cannot be read: permission denied; let the user that runs foregate read it")
        }
        _ => write!(f, "{path} cannot be read: {error}"),
    }
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.problem {
            Problem::Read(error) => unread(f, &self.path, error),
            Problem::Pem(error) => write!(f, "{path} is not valid PEM: {error}"),
            Problem::Empty => write!(
                f,
                "{path} holds no certificate; expected PEM with BEGIN CERTIFICATE, the server's own first"
            ),
            Problem::NoKey => {
                write!(f, "{path} holds no private key; expected PEM with BEGIN PRIVATE KEY")
            }
            Problem::Encrypted => write!(
                f,
                "{path} holds a key that is locked by a passphrase, and nobody is there to type it; unlock it once \
                 (`openssl pkey -in {path} -out unlocked.key`), and let foregate's user alone read it"
            ),
            Problem::Swapped => write!(
                f,
                "{path} is the wrong one of the two: `cert` names the file with the certificate, `key` the one with its \
                 private key"
            ),
            Problem::X509(error) => write!(f, "{path} holds a certificate that cannot be used: {error}"),
            Problem::Key(error) => write!(
                f,
                "{path} holds a private key of a kind that cannot be used: {error}; use ECDSA P-256, RSA or Ed25519"
            ),
            Problem::Mismatch => write!(
                f,
                "{path} is not the private key of the certificate; give the key the certificate was made with"
            ),
        }
    }
}

impl std::error::Error for CertificateError {}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_key_is_told_with_the_way_out() {
        let made = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let block =
            |label: &str, head: &str| format!("-----BEGIN {label}-----\n{head}AAAA\n-----END {label}-----\n");
        let locked = block("ENCRYPTED PRIVATE KEY", "");
        let old = block("RSA PRIVATE KEY", "Proc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\n");
        let refused = |chain: &str, key: &str| {
            Certificate::from_pem(chain.as_bytes(), key.as_bytes()).unwrap_err().to_string()
        };
        for (cert, key, says) in [
            (&*chain, &*locked, "openssl pkey -in"),
            (&*chain, &*old, "openssl pkey -in"),
            (&*key, &*chain, "the wrong one of the two"),
            (&*chain, &*chain, "the wrong one of the two"),
            (&*chain, &*other, "not the private key of the certificate"),
            (&*chain, "", "holds no private key"),
            ("", &*key, "holds no certificate"),
            (&*chain, &*block("PRIVATE KEY", ""), "kind that cannot be used"),
        ] {
            assert!(refused(cert, key).contains(says), "{says}: {}", refused(cert, key));
        }
        assert!(Certificate::from_pem(chain.as_bytes(), key.as_bytes()).is_ok());
    }
}
