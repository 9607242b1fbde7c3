//! Clients that show who they are, and the authorities that certify and disown them.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, ExtendedKeyUsagePurpose,
    IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};

use crate::Authority;

const DAY: Duration = Duration::from_secs(86_400);

/// One that certifies clients.
pub struct ClientAuthority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    /// What its clients show after their own: nothing, if it is known by itself.
    chain: String,
}

/// A certificate with its key, both PEM.
pub struct Identity {
    pub chain: String,
    pub key: String,
    serial: u64,
}

/// What is certified.
pub struct Certified {
    pub name: &'static str,
    /// Since yesterday.
    pub lasts: Duration,
    pub purpose: ExtendedKeyUsagePurpose,
}

impl Certified {
    /// A client, until tomorrow.
    pub fn client(name: &'static str) -> Certified {
        Certified { name, lasts: 2 * DAY, purpose: ExtendedKeyUsagePurpose::ClientAuth }
    }
}

impl ClientAuthority {
    pub fn new(name: &str) -> ClientAuthority {
        let (params, key) = authority(name);
        let pem = params.self_signed(&key).unwrap().pem();
        ClientAuthority { issuer: Issuer::new(params, key), pem, chain: String::new() }
    }

    /// One that this one has certified.
    pub fn intermediate(&self, name: &str) -> ClientAuthority {
        let (params, key) = authority(name);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        ClientAuthority { issuer: Issuer::new(params, key), chain: pem.clone() + &self.chain, pem }
    }

    /// Its own certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    pub fn issue(&self, certified: &Certified) -> Identity {
        static SERIALS: AtomicUsize = AtomicUsize::new(1);
        let serial = SERIALS.fetch_add(1, Ordering::Relaxed) as u64;
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![format!("{}.clients.test", certified.name)]).unwrap();
        params
            .subject_alt_names
            .push(SanType::URI(format!("spiffe://test/{}", certified.name).try_into().unwrap()));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Tests, Inc.");
        params.distinguished_name.push(DnType::CommonName, certified.name);
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = vec![certified.purpose.clone()];
        let now = SystemTime::now();
        (params.not_before, params.not_after) = ((now - DAY).into(), (now - DAY + certified.lasts).into());
        let own = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { chain: own + &self.chain, key: key.serialize_pem(), serial }
    }

    /// Its list of these, PEM.
    pub fn list(&self, revoked: &[&Identity]) -> String {
        let now = SystemTime::now();
        let revoked = revoked.iter().map(|identity| RevokedCertParams {
            serial_number: SerialNumber::from(identity.serial),
            revocation_time: (now - DAY / 2).into(),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: (now - DAY / 2).into(),
            next_update: (now + DAY).into(),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

fn authority(name: &str) -> (CertificateParams, KeyPair) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params, KeyPair::generate().unwrap())
}

/// A client that remembers its sessions, and shows this certificate to whoever asks.
pub struct Visitor {
    pub tls: ClientConfig,
    seen: Arc<Counting>,
}

impl Visitor {
    pub fn new(identity: Option<&Identity>) -> Visitor {
        Visitor::speaking(identity, rustls::DEFAULT_VERSIONS)
    }

    /// One that knows these versions of TLS alone.
    pub fn speaking(identity: Option<&Identity>, versions: &[&'static SupportedProtocolVersion]) -> Visitor {
        let roots = Arc::new(Authority::shared().roots());
        let provider = Arc::new(aws_lc_rs::default_provider());
        let inner = WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().unwrap();
        let seen = Arc::new(Counting { inner, full: AtomicUsize::new(0), word: Mutex::default() });
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(seen.clone());
        let tls = match identity {
            Some(identity) => {
                let chain = CertificateDer::pem_slice_iter(identity.chain.as_bytes());
                let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain.collect::<Result<_, _>>().unwrap(), key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        Visitor { tls, seen }
    }

    /// What the certificate's authority says of it, as it was shown last.
    pub fn shown_word(&self) -> Vec<u8> {
        self.seen.word.lock().unwrap().clone()
    }

    /// How often it was shown the gateway's certificate: a session that is resumed has no need of that.
    pub fn full_handshakes(&self) -> usize {
        self.seen.full.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Counting {
    inner: Arc<WebPkiServerVerifier>,
    full: AtomicUsize,
    word: Mutex<Vec<u8>>,
}

impl ServerCertVerifier for Counting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.full.fetch_add(1, Ordering::Relaxed);
        *self.word.lock().unwrap() = ocsp_response.to_vec();
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
