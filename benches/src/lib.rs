//! Benchmarks of the gateway, and what its load generators share.
//!
//! Each file beside this folder answers one question; run one with
//! `cargo bench -p foregate-bench --bench match_pick`. `scripts/bench` measures beside other proxies.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls13_signature};
use rustls::{CipherSuite, ClientConfig};

/// What users had to wait, in microseconds: `p50 N p99 N p99.9 N`.
#[must_use]
pub fn percentiles(mut latencies: Vec<Duration>) -> String {
    latencies.sort_unstable();
    let share = |permille: usize| {
        let at = (latencies.len() * permille / 1000).min(latencies.len().saturating_sub(1));
        latencies.get(at).map_or(0, Duration::as_micros)
    };
    format!("p50 {} p99 {} p99.9 {}", share(500), share(990), share(999))
}

/// True from SIGINT on.
///
/// # Errors
/// Signals cannot be waited for.
pub fn over_by_signal() -> std::io::Result<Arc<AtomicBool>> {
    let over = Arc::new(AtomicBool::new(false));
    let mut interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt())?;
    let told = over.clone();
    tokio::spawn(async move {
        interrupt.recv().await;
        told.store(true, Ordering::Relaxed);
    });
    Ok(over)
}

/// A client that trusts any certificate: it measures, it does not browse.
///
/// # Errors
/// The cryptography is not there.
pub fn tls_client(alpn: &[u8], resumption: Resumption) -> Result<ClientConfig, rustls::Error> {
    let mut provider = aws_lc_rs::default_provider();
    // What browsers ask for first; a server that goes by the client's order is measured with it.
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    let provider = Arc::new(provider);
    let mut tls = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
        .with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    tls.resumption = resumption;
    Ok(tls)
}

#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &rustls::pki_types::CertificateDer<'_>,
        _signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is measured".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
