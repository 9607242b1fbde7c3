//! Who the client is, where a site asks for a certificate.

use std::rc::Rc;
use std::sync::Arc;

use foregate_routing::{ClientCert, Site};
use http::StatusCode;

use crate::answer::Answer;
use crate::peer::{Known, Peer, Standing};
use crate::worker::{Prepared, Worker};

/// The client by the certificate it has shown, if it is good by what the site asks now. That is asked for each request:
/// connections, and sessions that are resumed, may be older than lists and authorities are.
///
/// # Errors
/// The site answers nobody without one, or the client's is not good any more: that is not the same as none.
pub(super) fn identify(
    worker: &Worker,
    live: &Prepared,
    peer: &Peer,
    site: &Arc<Site>,
) -> Result<Option<Rc<Known>>, Answer> {
    let required = site.tls.clients.is_some_and(|clients| clients.required);
    let forbidden = |sentence| Err(Answer::new(StatusCode::FORBIDDEN, sentence));
    let Some(tls) = &peer.tls else {
        return if required {
            forbidden("This host is for clients with a certificate, which takes HTTPS.")
        } else {
            Ok(None)
        };
    };
    match tls.identify(live, site) {
        (Standing::Known(known), _) => Ok(Some(known)),
        (Standing::Nobody, _) if !required => Ok(None),
        (Standing::Nobody, _) => {
            forbidden("This host is for clients with a certificate; this connection has none.")
        }
        (Standing::Refused, now) => {
            if now && worker.may_log() {
                tracing::info!(peer = %peer.address, site = %site.name, "refused: a client's certificate is not good any more");
            }
            forbidden("This host is for clients with a certificate; this client's is not good any more.")
        }
    }
}

impl Known {
    pub(super) fn variables(&self) -> ClientCert<'_> {
        let identity = &self.identity;
        ClientCert { subject: &identity.subject, san: &identity.san, fingerprint: &identity.fingerprint }
    }
}
