//! Whether there is to be a certificate for a name that a visitor has asked for: a program of the operator's knows.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Empty;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use rustls::ClientConfig;
use rustls::crypto::aws_lc_rs;
use rustls_platform_verifier::BuilderVerifierExt as _;
use tokio::time::timeout;

use super::{Trouble, with_sources};

/// Somebody waits for the answer.
const TIME: Duration = Duration::from_secs(5);

/// Asks with `GET ...?domain=NAME`. 2xx is yes, 4xx is no.
pub(super) async fn is_allowed(ask: &str, name: &str) -> Result<bool, Trouble> {
    let mark = if ask.contains('?') { '&' } else { '?' };
    // Names that clients may send have no character that would need an escape.
    let address = format!("{ask}{mark}domain={name}");
    let trouble = |why: &dyn std::fmt::Display| Trouble::new(format!("{ask} cannot be asked: {why}"));
    let request = Request::get(&address).body(Empty::<Bytes>::new()).map_err(|error| trouble(&error))?;
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|config| config.with_platform_verifier())
        .map_err(|error| trouble(&error))?
        .with_no_client_auth();
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let answer = timeout(TIME, client.request(request)).await;
    let answer = answer.map_err(|_| trouble(&format!("no answer within {TIME:?}")))?;
    match answer.map_err(|error| trouble(&with_sources(&error)))?.status() {
        status if status.is_success() => Ok(true),
        status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => Ok(false),
        status => Err(trouble(&format!("it answers {status}, which is neither yes (2xx) nor no (4xx)"))),
    }
}
