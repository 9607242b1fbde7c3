//! How the VMs of one pool are spoken to: the HTTP version, TLS and the time to connect.

use std::fmt;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DEFAULT_VERSIONS, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::http3;

/// The HTTP version spoken to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Http1,
    /// HTTP/2 over TLS, by ALPN.
    H2,
    /// HTTP/2 with prior knowledge, without TLS.
    H2c,
    /// HTTP/3, over QUIC, which always has TLS.
    H3,
    /// Over TLS, whichever of HTTP/2 and HTTP/1.1 the VM takes.
    Auto,
}

/// What a pool's configuration says of its transport.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportSpec {
    pub protocol: Protocol,
    /// Required by `H2`, `H3` and `Auto`; with `Http1` it makes HTTPS.
    pub tls: Option<TlsSpec>,
    /// `None` waits for as long as the system does.
    pub connect_timeout: Option<Duration>,
    /// How long an idle connection is kept; `None` for as long as the VM keeps it.
    pub keep_alive: Option<Duration>,
}

impl TransportSpec {
    /// The hash of what its files hold; `None` where one cannot be read.
    fn read(&self) -> Option<u64> {
        let mut hash = DefaultHasher::new();
        if let Some(tls) = &self.tls {
            let identity = tls.identity.iter().flat_map(|(cert, key)| [cert, key]);
            for file in tls.ca.iter().chain(identity) {
                std::fs::read(file).ok()?.hash(&mut hash);
            }
        }
        Some(hash.finish())
    }
}

/// TLS towards a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsSpec {
    /// PEM roots to trust; `None` trusts the system's.
    pub ca: Option<PathBuf>,
    /// The name to ask for and to verify; `None` takes the address's host.
    pub server_name: Option<String>,
    /// The name to ask for and to verify where a VM was found under it, so that only its address is known.
    pub found_as: Option<String>,
    /// Certificate chain and key to show, as PEM files.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// `false` accepts any certificate.
    pub verify: bool,
}

/// A transport ready for use, with every file opened.
pub struct Transport {
    /// Unique in the process; connections of different transports are never mixed.
    pub(crate) id: u64,
    pub(crate) protocol: Protocol,
    pub(crate) tls: Option<TransportTls>,
    /// Only for HTTP/3.
    pub(crate) quic: Option<quinn::ClientConfig>,
    /// What it was made of, and the hash of the files that were read for it; `None`: of none.
    made_of: Option<(TransportSpec, u64)>,
    server_name: Option<String>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) keep_alive: Option<Duration>,
}

pub(crate) struct TransportTls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) server_name: Option<ServerName<'static>>,
    /// The name of those known by their address alone.
    pub(crate) found_as: Option<ServerName<'static>>,
}

impl Transport {
    /// The one before, where nothing has changed, the content of its files included: connections over it go on. Else a new
    /// one.
    ///
    /// # Errors
    /// As [`new`](Transport::new).
    pub fn following(
        previous: Option<&Arc<Transport>>,
        spec: TransportSpec,
    ) -> Result<Arc<Transport>, TransportError> {
        let same = |previous: &&Arc<Transport>| {
            let made_of = previous.made_of.as_ref();
            made_of.is_some_and(|(before, files)| *before == spec && Some(*files) == spec.read())
        };
        match previous.filter(same) {
            Some(previous) => Ok(previous.clone()),
            None => Transport::new(spec).map(Arc::new),
        }
    }

    /// # Errors
    /// A file that cannot be used, or a server name that is none.
    pub fn new(spec: TransportSpec) -> Result<Transport, TransportError> {
        // Read before what is made of them: should one change in between, the next look finds it changed.
        let made_of = spec.read().map(|files| (spec.clone(), files));
        let tls = match &spec.tls {
            Some(tls) => Some(TransportTls::new(tls, spec.protocol, None)?),
            None => None,
        };
        let quic = match &tls {
            Some(tls) if spec.protocol == Protocol::H3 => Some(http3::client_config(tls.config.clone())?),
            _ => None,
        };
        Ok(Transport {
            id: Transport::next_id(),
            protocol: spec.protocol,
            tls,
            quic,
            made_of,
            server_name: spec.tls.and_then(|tls| tls.server_name),
            connect_timeout: spec.connect_timeout,
            keep_alive: spec.keep_alive,
        })
    }

    /// HTTP/3 to a server that shows exactly this certificate, whoever issued it.
    ///
    /// # Errors
    /// The name cannot be asked for.
    pub fn pinned(
        server_name: &str,
        certificate: CertificateDer<'static>,
        connect_timeout: Duration,
    ) -> Result<Transport, TransportError> {
        let spec = TlsSpec {
            ca: None,
            server_name: Some(server_name.to_owned()),
            found_as: None,
            identity: None,
            verify: true,
        };
        let tls = TransportTls::new(&spec, Protocol::H3, Some(certificate))?;
        Ok(Transport {
            id: Transport::next_id(),
            protocol: Protocol::H3,
            quic: Some(http3::client_config(tls.config.clone())?),
            tls: Some(tls),
            made_of: None,
            server_name: spec.server_name,
            connect_timeout: Some(connect_timeout),
            keep_alive: None,
        })
    }

    fn next_id() -> u64 {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// The name asked for in the TLS handshake, where the configuration gives one.
    #[must_use]
    pub fn server_name(&self) -> Option<&str> {
        self.server_name.as_deref()
    }

    /// How long opening a connection may take.
    #[must_use]
    pub fn connect_timeout(&self) -> Option<Duration> {
        self.connect_timeout
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport")
            .field("id", &self.id)
            .field("protocol", &self.protocol)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

impl TransportTls {
    /// With `pinned` that certificate is accepted, and no other.
    fn new(
        spec: &TlsSpec,
        protocol: Protocol,
        pinned: Option<CertificateDer<'static>>,
    ) -> Result<TransportTls, TransportError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        // RFC 9001, section 4.2: QUIC has no older version.
        let versions = if protocol == Protocol::H3 { &[&TLS13][..] } else { DEFAULT_VERSIONS };
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(versions)
            .map_err(|error| TransportError::Tls(error.to_string()))?;
        let builder = if pinned.is_some() || !spec.verify {
            let verifier = WithoutAuthority { provider, only: pinned };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        } else if let Some(ca) = &spec.ca {
            builder.with_root_certificates(roots(ca)?)
        } else {
            let verifier = rustls_platform_verifier::Verifier::new(provider)
                .map_err(|error| TransportError::Tls(format!("the system's root certificates: {error}")))?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        };
        let mut config = match &spec.identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => {
                let chain = chain(cert)?;
                let key_der =
                    PrivateKeyDer::from_pem_file(key).map_err(|error| TransportError::pem(key, &error))?;
                builder.with_client_auth_cert(chain, key_der).map_err(|error| TransportError::File {
                    path: key.clone(),
                    reason: format!("the key cannot be used with {}: {error}", cert.display()),
                })?
            }
        };
        config.alpn_protocols = match protocol {
            Protocol::H2 => vec![b"h2".to_vec()],
            Protocol::H3 => vec![b"h3".to_vec()],
            Protocol::Auto => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Protocol::Http1 => vec![b"http/1.1".to_vec()],
            Protocol::H2c => Vec::new(),
        };
        let name = |name: &Option<String>| match name {
            None => Ok(None),
            Some(name) => ServerName::try_from(name.clone()).map(Some).map_err(|_| {
                TransportError::Tls(format!("\"{name}\" is neither a host name nor an address"))
            }),
        };
        let (server_name, found_as) = (name(&spec.server_name)?, name(&spec.found_as)?);
        Ok(TransportTls { config: Arc::new(config), server_name, found_as })
    }
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TransportError> {
    let certificates: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(|items| items.collect::<Result<_, _>>())
        .map_err(|error| TransportError::pem(path, &error))?;
    if certificates.is_empty() {
        return Err(TransportError::File {
            path: path.to_owned(),
            reason: "holds no certificate; expected PEM with BEGIN CERTIFICATE".to_owned(),
        });
    }
    Ok(certificates)
}

fn roots(path: &Path) -> Result<RootCertStore, TransportError> {
    let mut store = RootCertStore::empty();
    for certificate in chain(path)? {
        store.add(certificate).map_err(|error| TransportError::File {
            path: path.to_owned(),
            reason: format!("holds a certificate that cannot be a root: {error}"),
        })?;
    }
    Ok(store)
}

/// Why a transport cannot be built. Displays the file, where there is one, and the reason.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    #[error("{path} {reason}", path = .path.display())]
    File { path: PathBuf, reason: String },
    #[error("{0}")]
    Tls(String),
}

impl TransportError {
    fn pem(path: &Path, error: &rustls_pki_types::pem::Error) -> TransportError {
        TransportError::File { path: path.to_owned(), reason: format!("cannot be used: {error}") }
    }

    /// The file at fault, where there is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            TransportError::File { path, .. } => Some(path),
            TransportError::Tls(_) => None,
        }
    }
}

/// Asks no authority. Without a certificate of its own it accepts any: `verify = false`, the operator's explicit
/// choice, which `check` warns of.
#[derive(Debug)]
struct WithoutAuthority {
    provider: Arc<CryptoProvider>,
    only: Option<CertificateDer<'static>>,
}

impl ServerCertVerifier for WithoutAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.only {
            Some(only) if only != end_entity => Err(CertificateError::ApplicationVerificationFailure.into()),
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
