//! Whether there is to be a certificate for a name that a visitor has asked for: a program of the operator's knows.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};

use super::Trouble;
use crate::question;

/// Somebody waits for the answer.
const TIME: Duration = Duration::from_secs(5);

/// Asks with `GET ...?domain=NAME`. 2xx is yes, 4xx is no.
pub(super) async fn is_allowed(ask: &str, name: &str) -> Result<bool, Trouble> {
    let mark = if ask.contains('?') { '&' } else { '?' };
    // Names that clients may send have no character that would need an escape.
    let request = Request::get(format!("{ask}{mark}domain={name}")).body(Bytes::new());
    let request = request.map_err(|error| Trouble::new(error.to_string()))?;
    let whom = question::whom(request.uri());
    match question::ask(request, TIME).await.map_err(Trouble::new)?.0 {
        status if status.is_success() => Ok(true),
        status if status.is_client_error() && status != StatusCode::TOO_MANY_REQUESTS => Ok(false),
        status => {
            Err(Trouble::new(format!("{whom} answers {status}, which is neither yes (2xx) nor no (4xx)")))
        }
    }
}
