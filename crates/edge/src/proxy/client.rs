//! Who the client is, where a site asks for a certificate.

use std::rc::Rc;

use foregate_routing::{ClientCert, Site};
use http::StatusCode;

use crate::answer::Answer;
use crate::peer::{Known, Peer};
use crate::worker::Prepared;

/// The client by the certificate it has shown, if it is good by what the site asks now. That is asked for each request:
/// connections, and sessions that are resumed, may be older than lists and authorities are.
///
/// # Errors
/// The site answers nobody without one.
pub(super) fn identify(live: &Prepared, peer: &Peer, site: &Site) -> Result<Option<Rc<Known>>, Answer> {
    let known = peer.tls.as_ref().and_then(|tls| tls.identify(live, site));
    match site.tls.clients {
        Some(clients) if clients.required && known.is_none() => Err(Answer::new(
            StatusCode::FORBIDDEN,
            if peer.tls.is_some() {
                "This host is for clients with a certificate that it accepts; this connection has none."
            } else {
                "This host is for clients with a certificate, which takes HTTPS."
            },
        )),
        _ => Ok(known),
    }
}

impl Known {
    pub(super) fn variables(&self) -> ClientCert<'_> {
        let identity = &self.identity;
        ClientCert { subject: &identity.subject, san: &identity.san, fingerprint: &identity.fingerprint }
    }
}
