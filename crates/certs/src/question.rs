//! A question to somebody else over HTTP, bounded in time and size.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// What an answer may be long.
const SIZE: usize = 64 * 1024;

type Boxed = Box<dyn std::error::Error + Send + Sync>;
type Https = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// The status and the body of the answer.
///
/// # Errors
/// There is none within this time, or it is too long; the text says whom it was asked of.
pub(crate) async fn ask(request: Request<Bytes>, time: Duration) -> Result<(StatusCode, Bytes), String> {
    let whom = whom(request.uri());
    let exchange = async {
        let request = request.map(Full::new);
        let response = match request.uri().scheme_str() {
            Some("https") => https().await?.request(request).await?,
            _ => Client::builder(TokioExecutor::new()).build_http().request(request).await?,
        };
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, SIZE).collect().await?.to_bytes();
        Ok::<_, Boxed>((parts.status, body))
    };
    match timeout(time, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(format!("{whom} cannot be asked: {}", with_sources(&*error))),
        Err(_) => Err(format!("{whom} cannot be asked: no answer within {time:?}")),
    }
}

/// An address without what may be a secret in it.
pub(crate) fn whom(uri: &Uri) -> String {
    let host = uri.host().unwrap_or_default();
    let port = uri.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{host}{port}{}", uri.scheme_str().unwrap_or("http"), uri.path())
}

/// One for the process: it takes the system's roots to be read, which are many files.
async fn https() -> Result<&'static Https, Boxed> {
    static HTTPS: OnceLock<Https> = OnceLock::new();
    if let Some(known) = HTTPS.get() {
        return Ok(known);
    }
    let tls = spawn_blocking(|| {
        ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .and_then(|config| config.with_platform_verifier())
            .map(|config| config.with_no_client_auth())
    });
    let connector =
        HttpsConnectorBuilder::new().with_tls_config(tls.await??).https_only().enable_http1().build();
    Ok(HTTPS.get_or_init(|| Client::builder(TokioExecutor::new()).build(connector)))
}

pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let its = source.to_string();
        if !text.contains(&its) {
            text += &format!(": {its}");
        }
        next = source.source();
    }
    text
}
