//! That a certificate has not been revoked, said by its authority (OCSP, RFC 6960) and shown with it: for those that want
//! it so (RFC 7633, "must-staple"). Clients refuse them without.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use bytes::Bytes;
use http::Request;
use http::header::CONTENT_TYPE;
use rustls_pki_types::CertificateDer;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::sleep;
use x509_cert::der::asn1::{Null, ObjectIdentifier, OctetString};
use x509_cert::der::{Any, Decode as _, Encode as _};
use x509_cert::ext::pkix::AuthorityInfoAccessSyntax;
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::spki::AlgorithmIdentifierOwned;
use x509_ocsp::{
    BasicOcspResponse, CertId, CertStatus, OcspGeneralizedTime, OcspRequest, OcspResponse,
    OcspResponseStatus, Request as Asked, TbsRequest, Version,
};

use crate::{Certificate, question};

const TIME: Duration = Duration::from_secs(10);
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure, and where an answer does not say how long it is good.
const AGAIN: Duration = Duration::from_secs(5 * 60);
const UNSAID: Duration = Duration::from_secs(60 * 60);
const TLS_FEATURE: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.24");
/// In it: `status_request`, as DER has it.
const STATUS_REQUEST: [u8; 3] = [2, 1, 5];
const ACCESS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.1.1");
const OCSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");
const SHA1: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.14.3.2.26");

/// What is asked about a certificate, and whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    url: String,
    about: CertId,
}

/// What its authority says.
#[derive(Clone, Debug)]
pub(crate) struct Staple {
    pub(crate) der: Vec<u8>,
    since: SystemTime,
    until: Option<SystemTime>,
}

impl Question {
    /// About the first of a chain. None: it does not want an answer to be shown.
    ///
    /// # Errors
    /// It does, and nobody can be asked.
    pub(crate) fn of(chain: &[CertificateDer<'_>]) -> Result<Option<Question>, &'static str> {
        let read = |der: &CertificateDer<'_>| x509_cert::Certificate::from_der(der).ok();
        let Some(leaf) = chain.first().and_then(read) else { return Ok(None) };
        let extension = |id| {
            let all = leaf.tbs_certificate.extensions.iter().flatten();
            all.filter(move |one| one.extn_id == id).map(|one| one.extn_value.as_bytes()).next()
        };
        let wants = |value: &[u8]| value.windows(STATUS_REQUEST.len()).any(|window| window == STATUS_REQUEST);
        if !extension(TLS_FEATURE).is_some_and(wants) {
            return Ok(None);
        }
        let access = extension(ACCESS).and_then(|value| AuthorityInfoAccessSyntax::from_der(value).ok());
        let url = access.iter().flat_map(|access| &access.0).find_map(|one| match &one.access_location {
            GeneralName::UniformResourceIdentifier(url) if one.access_method == OCSP => Some(url.to_string()),
            _ => None,
        });
        let url = url.ok_or("it does not say where its authority is asked (OCSP)")?;
        let issuer = chain.get(1).and_then(read).ok_or("its file lacks the certificate of its authority")?;
        let about = about(&leaf, &issuer).ok_or("it cannot be asked about")?;
        Ok(Some(Question { url, about }))
    }

    async fn ask(&self) -> Result<Staple, String> {
        let asked = Asked { req_cert: self.about.clone(), single_request_extensions: None };
        let request = OcspRequest {
            tbs_request: TbsRequest {
                version: Version::V1,
                requestor_name: None,
                request_list: vec![asked],
                request_extensions: None,
            },
            optional_signature: None,
        };
        let body = request.to_der().map_err(|error| error.to_string())?;
        let request = Request::post(&self.url).header(CONTENT_TYPE, "application/ocsp-request");
        let request = request.body(Bytes::from(body)).map_err(|error| error.to_string())?;
        let (status, answer) = question::ask(request, TIME).await?;
        if !status.is_success() {
            return Err(format!("{} answers {status}", self.url));
        }
        self.read(&answer, SystemTime::now()).map_err(|why| format!("{}: {why}", self.url))
    }

    /// What the answer says of ours. Its signature is for those to check it is shown to.
    fn read(&self, answer: &[u8], now: SystemTime) -> Result<Staple, String> {
        let unread = |error: x509_cert::der::Error| format!("the answer cannot be read: {error}");
        let response = OcspResponse::from_der(answer).map_err(unread)?;
        let bytes = match (response.response_status, response.response_bytes) {
            (OcspResponseStatus::Successful, Some(bytes)) => bytes,
            (status, _) => return Err(format!("it answers {status:?}")),
        };
        let basic = BasicOcspResponse::from_der(bytes.response.as_bytes()).map_err(unread)?;
        let mut all = basic.tbs_response_data.responses.into_iter();
        let ours = all.find(|one| one.cert_id.serial_number == self.about.serial_number);
        let ours = ours.ok_or("the answer is about another certificate")?;
        match ours.cert_status {
            CertStatus::Good(_) => {}
            CertStatus::Revoked(_) => {
                return Err("the certificate is REVOKED: clients will refuse it".to_owned());
            }
            CertStatus::Unknown(_) => return Err("it does not know the certificate".to_owned()),
        }
        let time = |time: OcspGeneralizedTime| UNIX_EPOCH + time.0.to_unix_duration();
        let until = ours.next_update.map(time);
        if until.is_some_and(|until| until <= now) {
            return Err("the answer is out of date".to_owned());
        }
        Ok(Staple { der: answer.to_vec(), since: time(ours.this_update), until })
    }
}

fn about(leaf: &x509_cert::Certificate, issuer: &x509_cert::Certificate) -> Option<CertId> {
    let hash = |bytes: &[u8]| OctetString::new(digest(&SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref()).ok();
    let key = issuer.tbs_certificate.subject_public_key_info.subject_public_key.as_bytes()?;
    Some(CertId {
        hash_algorithm: AlgorithmIdentifierOwned { oid: SHA1, parameters: Some(Any::from(Null)) },
        issuer_name_hash: hash(&leaf.tbs_certificate.issuer.to_der().ok()?)?,
        issuer_key_hash: hash(key)?,
        serial_number: leaf.tbs_certificate.serial_number.clone(),
    })
}

impl Staple {
    pub(crate) fn is_good(&self, now: SystemTime) -> bool {
        self.until.is_none_or(|until| now < until)
    }

    /// When half of its time is over.
    fn due(&self) -> SystemTime {
        match self.until.map(|until| until.duration_since(self.since).unwrap_or_default()) {
            Some(time) => self.since + time / 2,
            None => self.since + UNSAID,
        }
    }
}

/// By the certificate's fingerprint: who is read anew has it still.
fn known() -> &'static Mutex<HashMap<String, Staple>> {
    static KNOWN: OnceLock<Mutex<HashMap<String, Staple>>> = OnceLock::new();
    KNOWN.get_or_init(Mutex::default)
}

/// What was last said of this certificate.
pub(crate) fn last_said(fingerprint: &str) -> Option<Staple> {
    let known = known().lock().unwrap_or_else(PoisonError::into_inner);
    known.get(fingerprint).filter(|staple| staple.is_good(SystemTime::now())).cloned()
}

/// Asks in time, until it is dropped.
#[derive(Debug)]
pub struct Stapler(AbortHandle);

impl Stapler {
    /// In a local runtime. `shown` are those that want an answer shown, at any time.
    #[must_use]
    pub fn begin(shown: impl Fn() -> Vec<Arc<Certificate>> + 'static) -> Stapler {
        Stapler(spawn_local(attend(shown)).abort_handle())
    }
}

impl Drop for Stapler {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn attend(shown: impl Fn() -> Vec<Arc<Certificate>>) {
    let mut next: HashMap<String, SystemTime> = HashMap::new();
    loop {
        let shown = shown();
        let now = SystemTime::now();
        next.retain(|fingerprint, _| shown.iter().any(|one| one.fingerprint() == *fingerprint));
        for certificate in &shown {
            let Ok(Some(question)) = certificate.question() else { continue };
            let fingerprint = certificate.fingerprint();
            // A clock that was wrong is no reason to wait for longer.
            if next.get(&fingerprint).is_some_and(|due| now < *due && *due < now + UNSAID * 24 * 7) {
                continue;
            }
            let names = certificate.names().join(" ");
            let due = match question.ask().await {
                Ok(staple) => {
                    tracing::debug!(names, "the authority says that the certificate is good");
                    let due = staple.due().max(now + LOOK * 60);
                    known()
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(fingerprint.clone(), staple.clone());
                    certificate.staple(Some(staple));
                    due
                }
                Err(why) => {
                    tracing::error!(
                        names,
                        "the certificate wants to be shown with its authority's word (OCSP), and there is none: {why}"
                    );
                    if last_said(&fingerprint).is_none() {
                        certificate.staple(None);
                    }
                    now + AGAIN
                }
            };
            next.insert(fingerprint, due);
        }
        sleep(LOOK).await;
    }
}
