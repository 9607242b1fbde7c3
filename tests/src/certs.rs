//! One certificate authority per test process, and the certificates it issues.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use quinn::crypto::rustls::QuicClientConfig;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, aws_lc_rs},
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

/// The authority that issues what the gateway and TLS origins present, and that the clients trust.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    key: String,
}

impl Authority {
    pub fn shared() -> &'static Authority {
        static ONCE: OnceLock<Authority> = OnceLock::new();
        ONCE.get_or_init(|| {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
            params.distinguished_name.push(rcgen::DnType::CommonName, "foregate tests");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
            let pem = params.self_signed(&key).unwrap().pem();
            Authority { key: key.serialize_pem(), issuer: Issuer::new(params, key), pem }
        })
    }

    /// The authority's own certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for these names and its key, both PEM.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        let mut params = CertificateParams::new(names.clone()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, names.first().map_or("none", String::as_str));
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// The authority's own key, PEM.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// A certificate with its chain, and its key, that is to be shown with this responder's word (must-staple); its serial
    /// number is this one.
    pub fn stapled(&self, name: &str, responder: &str, serial: u8) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(vec![serial]));
        let feature =
            CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 24], vec![0x30, 3, 2, 1, 5]);
        let length = u8::try_from(responder.len()).unwrap();
        let mut access =
            vec![0x30, length + 14, 0x30, length + 12, 6, 8, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 0x86, length];
        access.extend(responder.as_bytes());
        let access = CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access);
        params.custom_extensions = vec![feature, access];
        let own = params.signed_by(&key, &self.issuer).unwrap().pem();
        (own + &self.pem, key.serialize_pem())
    }

    /// A certificate and its key in one text, so many days old and so many from its end.
    pub fn aged(&self, names: &[&str], age: u32, left: u32) -> String {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        let (now, day) = (SystemTime::now(), Duration::from_secs(86_400));
        params.not_before = (now - day * age).into();
        params.not_after = (now + day * left).into();
        params.signed_by(&key, &self.issuer).unwrap().pem() + &key.serialize_pem()
    }

    /// Writes `NAME.crt` and `NAME.key` for `names` into a folder.
    pub fn write(&self, folder: &Path, name: &str, names: &[&str]) {
        let (certificate, key) = self.issue(names);
        std::fs::write(folder.join(format!("{name}.crt")), certificate).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key).unwrap();
    }

    pub(crate) fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        roots
    }

    /// A client that trusts this authority alone and offers these protocols.
    pub fn client(&self, alpn: &[&[u8]]) -> rustls::ClientConfig {
        self.client_of(provider(), alpn)
    }

    /// An HTTP/3 client that trusts another authority alone.
    pub fn client_that_trusts(pem: &str) -> quinn::ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
        let mut tls = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"h3".to_vec()];
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
    }

    /// An HTTP/3 client whose first flight is one datagram: it has no post-quantum key share.
    pub fn one_datagram_client(&self) -> quinn::ClientConfig {
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        let tls = self.client_of(Arc::new(provider), &[b"h3"]);
        quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
    }

    fn client_of(&self, provider: Arc<CryptoProvider>, alpn: &[&[u8]]) -> rustls::ClientConfig {
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config
    }

    /// A server that presents a fresh certificate for `names`; `client_ca`: it asks for a client's too.
    pub fn server(&self, names: &[&str], alpn: &[&[u8]], client_auth: bool) -> rustls::ServerConfig {
        let (certificate, key) = self.issue(names);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let builder = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if client_auth {
            let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
                Arc::new(self.roots()),
                provider(),
            )
            .build()
            .unwrap();
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let mut config = builder.with_single_cert(chain, key).unwrap();
        config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
        config
    }
}

fn provider() -> Arc<CryptoProvider> {
    static ONCE: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    ONCE.get_or_init(|| Arc::new(aws_lc_rs::default_provider())).clone()
}
