//! A question to somebody else over HTTP, bounded in time and size.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::time::timeout;

/// What an answer may be long.
const SIZE: usize = 64 * 1024;

/// The status and the body of the answer.
///
/// # Errors
/// There is none within this time, or it is too long; the text says whom it was about.
pub(crate) async fn ask(request: Request<Bytes>, time: Duration) -> Result<(StatusCode, Bytes), String> {
    let whom = request.uri().to_string();
    let trouble = |why: &dyn std::fmt::Display| format!("{whom} cannot be asked: {why}");
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_platform_verifier())
        .map_err(|error| trouble(&error))?
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let exchange = async {
        let (parts, body) = client.request(request.map(Full::new)).await?.into_parts();
        let body = Limited::new(body, SIZE).collect().await?.to_bytes();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>((parts.status, body))
    };
    let answer = timeout(time, exchange).await.map_err(|_| trouble(&format!("no answer within {time:?}")))?;
    answer.map_err(|error| trouble(&with_sources(&*error)))
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
