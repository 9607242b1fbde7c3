//! The way to the authority: HTTPS, bounded in time and size, and with an ear for how long it wants to be left alone.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use foregate_exchange::head;
use http::header::RETRY_AFTER;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use rustls::crypto::aws_lc_rs;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::time::timeout;

use super::Trouble;

/// An answer takes no longer, and is no longer.
const TIME: Duration = Duration::from_secs(30);
const SIZE: usize = 1024 * 1024;
/// Nobody wants to be left alone for a century, and it may not fit into a time.
const NONSENSE: Duration = Duration::from_secs(100 * 365 * 86_400);

type Inner = Client<HttpsConnector<HttpConnector>, BodyWrapper<Bytes>>;

/// When the authority wants to be asked again, as it said when it last refused something.
pub(super) type NotBefore = Arc<Mutex<Option<SystemTime>>>;

pub(super) struct Https {
    inner: Inner,
    not_before: NotBefore,
}

impl Https {
    pub(super) fn new(ca: Option<&[u8]>, not_before: NotBefore) -> Result<Https, Trouble> {
        let trouble = |error: &dyn std::error::Error| Trouble::new(format!("TLS to the authority: {error}"));
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| trouble(&error))?;
        let config = match ca {
            Some(pem) => config.with_root_certificates(roots(pem)?).with_no_client_auth(),
            None => config.with_platform_verifier().map_err(|error| trouble(&error))?.with_no_client_auth(),
        };
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_all_versions().build();
        Ok(Https { inner: Client::builder(TokioExecutor::new()).build(connector), not_before })
    }
}

fn roots(pem: &[u8]) -> Result<RootCertStore, Trouble> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(pem) {
        let added = root
            .map_err(|error| error.to_string())
            .and_then(|root| roots.add(root).map_err(|error| error.to_string()));
        added.map_err(|error| Trouble::new(format!("the certificates in `ca` cannot be used: {error}")))?;
    }
    Ok(roots)
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let (sent, not_before) = (self.inner.request(request), self.not_before.clone());
        let failed = move |error: Box<dyn std::error::Error + Send + Sync>| {
            let reason = super::with_sources(&*error);
            Error::Other(format!("{host} cannot be asked: {reason}").into())
        };
        Box::pin(async move {
            let exchange = async {
                let (parts, body) = sent.await?.into_parts();
                let body = Limited::new(body, SIZE).collect().await?.to_bytes();
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>((parts, body))
            };
            let answer = timeout(TIME, exchange).await;
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {TIME:?}").into()));
            let (mut parts, body) = answer.map_err(failed)?;
            let rest = head::retry_after(&parts.headers).filter(|rest| *rest < NONSENSE);
            let asked = rest.map(|rest| SystemTime::now() + rest);
            if asked.is_none() {
                // What is no time, or none that there will be, is nothing that others should read.
                parts.headers.remove(RETRY_AFTER);
            }
            let refused = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
            if refused.contains(&parts.status) {
                let mut not_before = not_before.lock().unwrap_or_else(PoisonError::into_inner);
                *not_before = (*not_before).max(asked);
            }
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}
