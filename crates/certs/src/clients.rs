//! Who clients are: by whom they must be certified, and what their certificates say of them.

use std::cmp::Reverse;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use aws_lc_rs::digest;
use foregate_routing::ClientRules;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{RootCertStore, server::VerifierBuilderError};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;
use x509_parser::revocation_list::CertificateRevocationList;

use crate::certificate::unread;
use crate::facts::time;
use crate::identity::Identity;

/// Clients are told which authorities are known here, so that they can choose; of so many names in bytes they are told
/// nothing, for then the message would not hold them.
const MOST_HINTS: usize = 16 * 1024;

/// The authorities that certify a site's clients, and the lists of whom they have disowned.
pub struct ClientAuth {
    rules: ClientRules,
    verifier: Arc<dyn ClientCertVerifier>,
    /// What nobody may have meant.
    warnings: Vec<String>,
    lists: Vec<ListFacts>,
}

/// What a revocation list says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListFacts {
    /// A distinguished name.
    pub issuer: String,
    /// The same as it stands there.
    name: Vec<u8>,
    pub since: SystemTime,
    /// When there should be a newer one.
    pub until: Option<SystemTime>,
}

impl ClientAuth {
    /// Reads a PEM file of authorities, and one with their revocation lists (PEM or DER). `required`: nobody is let in
    /// without a certificate.
    ///
    /// # Errors
    /// Names the file that is at fault, what is wrong with it and what to do.
    pub fn load(ca: &Path, crl: Option<&Path>, required: bool) -> Result<ClientAuth, ClientAuthError> {
        let read = |path: &Path| std::fs::read(path).map_err(|error| wrong(path, Problem::Read(error)));
        let authorities = authorities(&read(ca)?).map_err(|problem| wrong(ca, problem))?;
        let lists = match crl {
            Some(path) => (revoked(&read(path)?)).map_err(|problem| wrong(path, problem))?,
            None => Vec::new(),
        };
        // Of several by one authority the first is taken, and that should be the newest.
        let mut lists: Vec<_> = lists.into_iter().map(|list| (facts_of(&list), list)).collect();
        lists.sort_by_key(|(facts, _)| Reverse(facts.as_ref().map(|facts| facts.since)));
        let (facts, lists): (Vec<_>, Vec<_>) = lists.into_iter().unzip();
        let facts: Vec<ListFacts> = facts.into_iter().flatten().collect();
        let rules = ClientRules { digest: digest(&authorities, &lists, required), required };
        let warnings = vain(&authorities, &facts, crl);
        let mut roots = RootCertStore::empty();
        let hints: usize = authorities.iter().map(|authority| authority.len()).sum();
        for authority in authorities {
            roots.add(authority).map_err(|error| wrong(ca, Problem::Authority(error)))?;
        }
        let provider = Arc::new(default_provider());
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        if !required {
            builder = builder.allow_unauthenticated();
        }
        if hints > MOST_HINTS {
            builder = builder.clear_root_hint_subjects();
        }
        if crl.is_some() {
            // Whoever gives a list wants to know of each certificate that it has not been revoked.
            builder = builder.with_crls(lists).enforce_revocation_expiration();
        }
        let verifier = builder.build().map_err(|error| wrong(crl.unwrap_or(ca), Problem::Verifier(error)))?;
        Ok(ClientAuth { rules, verifier, warnings, lists: facts })
    }

    #[must_use]
    pub fn rules(&self) -> ClientRules {
        self.rules
    }

    /// Sentences about lists that are out of date or missing.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The lists, for whoever sees to it that they are renewed.
    #[must_use]
    pub fn lists(&self) -> &[ListFacts] {
        &self.lists
    }

    /// Who it is that has shown this chain, if the rules allow it now. Whether the client has its key was found out in the
    /// handshake in which it was shown first.
    ///
    /// # Errors
    /// It has expired, was revoked, is of another authority, or is not for this.
    pub fn identify(&self, chain: &[CertificateDer<'_>]) -> Result<Identity, rustls::Error> {
        let Some((leaf, intermediates)) = chain.split_first() else {
            return Err(rustls::Error::NoCertificatesPresented);
        };
        self.verifier.verify_client_cert(leaf, intermediates, UnixTime::now())?;
        Ok(Identity::of(leaf))
    }

    pub(crate) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        self.verifier.clone()
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientAuth").field("rules", &self.rules).finish_non_exhaustive()
    }
}

fn authorities(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let all: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(Problem::Pem)?;
    if all.is_empty() { Err(Problem::NoAuthority) } else { Ok(all) }
}

/// Authorities publish their lists as DER, and tools write PEM.
fn revoked(text: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Problem> {
    if text.first() == Some(&0x30) {
        return Ok(vec![CertificateRevocationListDer::from(text.to_vec())]);
    }
    let all: Vec<_> =
        CertificateRevocationListDer::pem_slice_iter(text).collect::<Result<_, _>>().map_err(Problem::Pem)?;
    if all.is_empty() { Err(Problem::NoList) } else { Ok(all) }
}

fn digest(
    authorities: &[CertificateDer<'_>],
    lists: &[CertificateRevocationListDer<'_>],
    required: bool,
) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut add = |kind: u8, bytes: &[u8]| {
        hash.update(&[kind]);
        hash.update(&bytes.len().to_be_bytes());
        hash.update(bytes);
    };
    add(b'r', &[u8::from(required)]);
    authorities.iter().for_each(|authority| add(b'a', authority));
    lists.iter().for_each(|list| add(b'l', list));
    let mut digest = [0; 32];
    digest.iter_mut().zip(hash.finish().as_ref()).for_each(|(to, from)| *to = *from);
    digest
}

fn facts_of(list: &[u8]) -> Option<ListFacts> {
    let (_, list) = CertificateRevocationList::from_der(list).ok()?;
    Some(ListFacts {
        issuer: list.issuer().to_string(),
        name: list.issuer().as_raw().to_vec(),
        since: time(list.last_update().timestamp()),
        until: list.next_update().map(|until| time(until.timestamp())),
    })
}

/// Authorities that have expired, lists that are out of date, and authorities without one.
fn vain(authorities: &[CertificateDer<'_>], lists: &[ListFacts], crl: Option<&Path>) -> Vec<String> {
    let (mut warnings, now) = (Vec::new(), SystemTime::now());
    for facts in lists {
        if facts.until.is_some_and(|until| until < now) {
            warnings.push(format!(
                "the revocation list of {} is out of date: its clients are refused until there is a newer one",
                facts.issuer
            ));
        }
    }
    for authority in authorities {
        let Ok((_, authority)) = X509Certificate::from_der(authority) else { continue };
        let subject = authority.subject();
        if time(authority.validity().not_after.timestamp()) < now {
            warnings
                .push(format!("the authority {subject} has expired: its clients are let in all the same"));
        }
        if let Some(path) = crl.filter(|_| lists.iter().all(|list| list.name != subject.as_raw())) {
            warnings.push(format!(
                "{} holds no revocation list of {subject}: the clients it has certified itself are refused",
                path.display()
            ));
        }
    }
    warnings
}

/// Why clients cannot be judged. Displays the file, the reason and the remedy.
#[derive(Debug)]
pub struct ClientAuthError {
    path: PathBuf,
    problem: Problem,
}

impl ClientAuthError {
    /// The file at fault.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn wrong(path: &Path, problem: Problem) -> ClientAuthError {
    ClientAuthError { path: path.to_owned(), problem }
}

#[derive(Debug)]
enum Problem {
    Read(std::io::Error),
    Pem(pem::Error),
    NoAuthority,
    NoList,
    Authority(rustls::Error),
    Verifier(VerifierBuilderError),
}

impl fmt::Display for ClientAuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.problem {
            Problem::Read(error) => unread(f, &self.path, error),
            Problem::Pem(error) => write!(f, "{path} is not valid PEM: {error}"),
            Problem::NoAuthority => write!(
                f,
                "{path} holds no certificate; expected PEM with BEGIN CERTIFICATE, of the authority that certifies the clients"
            ),
            Problem::NoList => {
                write!(f, "{path} holds no revocation list; expected PEM with BEGIN X509 CRL, or DER")
            }
            Problem::Authority(error) => {
                write!(f, "{path} holds an authority's certificate that cannot be used: {error}")
            }
            Problem::Verifier(error) => {
                write!(
                    f,
                    "{path} holds a revocation list that cannot be read ({error}); get it anew from its authority"
                )
            }
        }
    }
}

impl std::error::Error for ClientAuthError {}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::{fs, slice};

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
        ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
        SerialNumber, date_time_ymd,
    };
    use rustls::CertificateError;

    use super::*;

    struct Authority(Issuer<'static, KeyPair>, String);

    fn authority(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority(Issuer::new(params, key), pem)
    }

    impl Authority {
        fn client(&self, serial: u64, purpose: ExtendedKeyUsagePurpose) -> CertificateDer<'static> {
            let mut params = CertificateParams::new(vec!["c.test".to_owned()]).unwrap();
            params.serial_number = Some(SerialNumber::from(serial));
            params.extended_key_usages = vec![purpose];
            params.signed_by(&KeyPair::generate().unwrap(), &self.0).unwrap().der().clone()
        }

        fn list(&self, serials: &[u64], (this, next): (i32, i32)) -> rcgen::CertificateRevocationList {
            let revoked = |serial: &u64| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: date_time_ymd(2026, 1, 1),
                reason_code: None,
                invalidity_date: None,
            };
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(this, 1, 1),
                next_update: date_time_ymd(next, 1, 1),
                crl_number: SerialNumber::from(1),
                issuing_distribution_point: None,
                revoked_certs: serials.iter().map(revoked).collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(&self.0).unwrap()
        }
    }

    fn refused(result: Result<Identity, rustls::Error>) -> CertificateError {
        match result {
            Err(rustls::Error::InvalidCertificate(why)) => why,
            other => other.map(|_| CertificateError::NotValidForName).unwrap(),
        }
    }

    #[test]
    fn who_is_let_in_is_certified_and_not_disowned() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &[u8]| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (ours, theirs) = (authority("ours"), authority("theirs"));
        let ca = file("ca.pem", ours.1.as_bytes());
        let of = |crl: Option<&Path>| ClientAuth::load(&ca, crl, true).unwrap();
        let client = |serial| ours.client(serial, ExtendedKeyUsagePurpose::ClientAuth);
        let (good, bad) = (client(1), client(2));

        let without = of(None);
        assert_eq!(without.identify(slice::from_ref(&good)).unwrap().san, "DNS:c.test");
        assert!(without.identify(slice::from_ref(&bad)).is_ok() && without.warnings().is_empty());
        assert!(matches!(without.identify(&[]), Err(rustls::Error::NoCertificatesPresented)));
        let stranger = theirs.client(1, ExtendedKeyUsagePurpose::ClientAuth);
        assert_eq!(refused(without.identify(&[stranger])), CertificateError::UnknownIssuer);
        let server = ours.client(3, ExtendedKeyUsagePurpose::ServerAuth);
        assert!(matches!(
            refused(without.identify(&[server])),
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. }
        ));

        let list = ours.list(&[2], (2025, 2100));
        for crl in [file("crl.pem", list.pem().unwrap().as_bytes()), file("crl.der", list.der())] {
            let with = of(Some(&crl));
            assert!(with.identify(slice::from_ref(&good)).is_ok());
            assert_eq!(refused(with.identify(slice::from_ref(&bad))), CertificateError::Revoked);
            assert_ne!(with.rules(), without.rules());
            assert!(with.warnings().is_empty(), "{:?}", with.warnings());
        }
        // One after the other in a file: the newest counts.
        let both = ours.list(&[], (2024, 2100)).pem().unwrap() + &list.pem().unwrap();
        let both = of(Some(&file("both.pem", both.as_bytes())));
        assert_eq!(refused(both.identify(slice::from_ref(&bad))), CertificateError::Revoked);
        assert_eq!(both.lists().len(), 2);
        let optional = ClientAuth::load(&ca, None, false).unwrap();
        assert_ne!(
            optional.rules().digest,
            without.rules().digest,
            "a session of the one is none of the other"
        );

        // Nobody knows any more who has been revoked.
        let old = of(Some(&file("old.pem", ours.list(&[2], (2025, 2026)).pem().unwrap().as_bytes())));
        assert!(old.warnings().iter().any(|text| text.contains("out of date")), "{:?}", old.warnings());
        assert!(matches!(
            refused(old.identify(slice::from_ref(&good))),
            CertificateError::ExpiredRevocationList | CertificateError::ExpiredRevocationListContext { .. }
        ));
        let foreign =
            of(Some(&file("foreign.pem", theirs.list(&[], (2025, 2100)).pem().unwrap().as_bytes())));
        assert!(foreign.warnings().iter().any(|text| text.contains("no revocation list of")));
        assert_eq!(refused(foreign.identify(&[good])), CertificateError::UnknownRevocationStatus);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let ours = authority("ours");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("ca.pem"), &ours.1).unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path("list.der"), [0x30, 0x03, 1]).unwrap();
        fs::write(path("broken"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        for (ca, crl, says) in [
            ("none", None, "none cannot be read: No such file"),
            ("empty", None, "empty holds no certificate; expected PEM with BEGIN CERTIFICATE"),
            ("broken", None, "an authority's certificate that cannot be used"),
            ("ca.pem", Some("none"), "none cannot be read: No such file"),
            ("ca.pem", Some("ca.pem"), "holds no revocation list; expected PEM with BEGIN X509 CRL, or DER"),
            ("ca.pem", Some("list.der"), "list.der holds a revocation list that cannot be read"),
        ] {
            let error = ClientAuth::load(&path(ca), crl.map(path).as_deref(), true).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}
