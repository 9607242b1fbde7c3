//! That a certificate has not been revoked, said by its authority (OCSP, RFC 6960) and shown with it: for those that want
//! it so (RFC 7633, "must-staple"). Clients refuse them without.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use bytes::Bytes;
use http::Request;
use http::header::CONTENT_TYPE;
use rustls_pki_types::CertificateDer;
use tokio::task::{AbortHandle, JoinSet, spawn_local};
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

use crate::acme::Keep;
use crate::{Certificate, question};

const TIME: Duration = Duration::from_secs(10);
/// How often it is looked whether something is due.
const LOOK: Duration = Duration::from_secs(1);
/// After a failure, and where an answer does not say how long it is good.
const AGAIN: Duration = Duration::from_secs(5 * 60);
const UNSAID: Duration = Duration::from_secs(60 * 60);
/// However long an answer is good.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// Questions at a time: who does not answer holds up few.
const AT_A_TIME: usize = 8;
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

/// Why nothing good is said of it. `is_final`: what was said before holds no more.
#[derive(Debug)]
struct Silence {
    why: String,
    is_final: bool,
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
        // Nearly none has such an extension, and looking for its name is cheaper than taking them all apart.
        let name = TLS_FEATURE.as_bytes();
        if !chain.first().is_some_and(|leaf| leaf.windows(name.len()).any(|window| window == name)) {
            return Ok(None);
        }
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

    async fn ask(&self) -> Result<Staple, Silence> {
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
        let other = |why: String| Silence { why, is_final: false };
        let body = request.to_der().map_err(|error| other(error.to_string()))?;
        let request = Request::post(&self.url).header(CONTENT_TYPE, "application/ocsp-request");
        let request = request.body(Bytes::from(body)).map_err(|error| other(error.to_string()))?;
        let whom = question::whom(request.uri());
        let (status, answer) = question::ask(request, TIME).await.map_err(other)?;
        if !status.is_success() {
            return Err(other(format!("{whom} answers {status}")));
        }
        self.read(&answer, SystemTime::now())
            .map_err(|silence| Silence { why: format!("{whom}: {}", silence.why), ..silence })
    }

    /// What the answer says of ours. Its signature is for those to check it is shown to.
    fn read(&self, answer: &[u8], now: SystemTime) -> Result<Staple, Silence> {
        let other = |why: &str| Silence { why: why.to_owned(), is_final: false };
        let unread = |error: x509_cert::der::Error| other(&format!("the answer cannot be read: {error}"));
        let response = OcspResponse::from_der(answer).map_err(unread)?;
        let bytes = match (response.response_status, response.response_bytes) {
            (OcspResponseStatus::Successful, Some(bytes)) => bytes,
            (status, _) => return Err(other(&format!("it answers {status:?}"))),
        };
        let basic = BasicOcspResponse::from_der(bytes.response.as_bytes()).map_err(unread)?;
        let mut all = basic.tbs_response_data.responses.into_iter();
        let ours = all.find(|one| one.cert_id.serial_number == self.about.serial_number);
        let ours = ours.ok_or_else(|| other("the answer is about another certificate"))?;
        match ours.cert_status {
            CertStatus::Good(_) => {}
            CertStatus::Revoked(_) => {
                let why = "the certificate is REVOKED: clients will refuse it".to_owned();
                return Err(Silence { why, is_final: true });
            }
            CertStatus::Unknown(_) => return Err(other("it does not know the certificate")),
        }
        let time = |time: OcspGeneralizedTime| UNIX_EPOCH + time.0.to_unix_duration();
        let until = ours.next_update.map(time);
        if until.is_some_and(|until| until <= now) {
            return Err(other("the answer is out of date"));
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

    /// When it is asked for a newer one: when half of its time is over, and then from time to time.
    fn due(&self, now: SystemTime) -> SystemTime {
        let (half, left) = match self.until {
            Some(until) => {
                let left = until.duration_since(now).unwrap_or_default();
                (until.duration_since(self.since).unwrap_or_default() / 2, left)
            }
            None => (UNSAID, UNSAID),
        };
        let soonest = now + (left / 4).clamp(AGAIN, UNSAID);
        (self.since + half).max(soonest).min(now + LONGEST)
    }
}

/// By the certificate's fingerprint: who is read anew has it still.
fn known() -> MutexGuard<'static, HashMap<String, Staple>> {
    static KNOWN: OnceLock<Mutex<HashMap<String, Staple>>> = OnceLock::new();
    KNOWN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was last said of this certificate.
pub(crate) fn last_said(fingerprint: &str) -> Option<Staple> {
    known().get(fingerprint).filter(|staple| staple.is_good(SystemTime::now())).cloned()
}

/// Asks in time, until it is dropped.
#[derive(Debug)]
pub struct Stapler(AbortHandle);

impl Stapler {
    /// In a local runtime. What was said is kept in this folder by `keep`. `shown` are those that want an answer shown, at
    /// any time.
    #[must_use]
    pub fn begin(
        folder: PathBuf,
        keep: Keep,
        shown: impl Fn() -> Vec<Arc<Certificate>> + 'static,
    ) -> Stapler {
        let stapling = Stapling { folder, keep, shown, next: HashMap::new(), running: HashSet::new() };
        Stapler(spawn_local(stapling.attend()).abort_handle())
    }
}

impl Drop for Stapler {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Stapling<S> {
    folder: PathBuf,
    keep: Keep,
    shown: S,
    /// By the certificate's fingerprint, when its authority is asked next.
    next: HashMap<String, SystemTime>,
    running: HashSet<String>,
}

type Said = (String, Result<Staple, Silence>);

impl<S: Fn() -> Vec<Arc<Certificate>>> Stapling<S> {
    async fn attend(mut self) {
        let mut jobs: JoinSet<Said> = JoinSet::new();
        loop {
            let shown = self.shown();
            self.forget_others(&shown);
            for (fingerprint, certificate) in &shown {
                let Ok(Some(question)) = certificate.question() else { continue };
                let now = SystemTime::now();
                if !self.next.contains_key(fingerprint) {
                    self.recall(fingerprint, question, now);
                }
                // It has just been read, or is another of the same.
                if !certificate.is_stapled()
                    && let Some(staple) = last_said(fingerprint)
                {
                    certificate.staple(Some(staple));
                }
                // A clock that was wrong is no reason to wait for longer.
                let waits = self.next.get(fingerprint).is_some_and(|due| now < *due && *due <= now + LONGEST);
                if !waits && jobs.len() < AT_A_TIME && self.running.insert(fingerprint.clone()) {
                    let (question, fingerprint) = (question.clone(), fingerprint.clone());
                    jobs.spawn_local(async move { (fingerprint, question.ask().await) });
                }
            }
            tokio::select! {
                Some(said) = jobs.join_next(), if !jobs.is_empty() => match said {
                    Ok(said) => self.take_in(said),
                    // Whichever it was is asked about again.
                    Err(_) => self.running.clear(),
                },
                () = sleep(LOOK) => {}
            }
        }
    }

    fn shown(&self) -> Vec<(String, Arc<Certificate>)> {
        (self.shown)().into_iter().map(|certificate| (certificate.fingerprint(), certificate)).collect()
    }

    fn file_of(&self, fingerprint: &str) -> PathBuf {
        self.folder.join(format!("{fingerprint}.der"))
    }

    /// What is shown no more need not be known any more.
    fn forget_others(&mut self, shown: &[(String, Arc<Certificate>)]) {
        let gone: Vec<String> =
            self.next.keys().filter(|known| shown.iter().all(|(one, _)| one != *known)).cloned().collect();
        for fingerprint in gone {
            self.next.remove(&fingerprint);
            known().remove(&fingerprint);
            _ = fs::remove_file(self.file_of(&fingerprint));
        }
    }

    /// What a process before this one was told.
    fn recall(&mut self, fingerprint: &str, question: &Question, now: SystemTime) {
        let kept = fs::read(self.file_of(fingerprint)).ok();
        let staple = kept.and_then(|answer| question.read(&answer, now).ok());
        self.next.insert(fingerprint.to_owned(), staple.as_ref().map_or(now, |staple| staple.due(now)));
        if let Some(staple) = staple {
            known().insert(fingerprint.to_owned(), staple);
        }
    }

    fn take_in(&mut self, (fingerprint, said): Said) {
        self.running.remove(&fingerprint);
        let now = SystemTime::now();
        let of_this =
            |(one, certificate): (String, Arc<Certificate>)| (one == fingerprint).then_some(certificate);
        let shown: Vec<_> = self.shown().into_iter().filter_map(of_this).collect();
        let Some(names) = shown.first().map(|one| one.names().join(" ")) else { return };
        let show = |staple: Option<&Staple>| shown.iter().for_each(|one| one.staple(staple.cloned()));
        let due = match said {
            Ok(staple) => {
                tracing::debug!(names, "the authority says that the certificate is good");
                if let Err(error) = (self.keep)(&self.file_of(&fingerprint), &staple.der) {
                    tracing::warn!(%error, "what an authority has said of {names} cannot be kept");
                }
                show(Some(&staple));
                let due = staple.due(now);
                known().insert(fingerprint.clone(), staple);
                due
            }
            Err(silence) => {
                if silence.is_final {
                    known().remove(&fingerprint);
                    _ = fs::remove_file(self.file_of(&fingerprint));
                }
                let why = silence.why;
                match last_said(&fingerprint) {
                    Some(_) => tracing::warn!(
                        names,
                        "the certificate is shown with what its authority has said before (OCSP): {why}"
                    ),
                    None => {
                        tracing::error!(
                            names,
                            "the certificate wants to be shown with its authority's word (OCSP), and there is none: {why}"
                        );
                        show(None);
                    }
                }
                now + AGAIN
            }
        };
        self.next.insert(fingerprint, due);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_asked_again_in_time_and_not_all_the_time() {
        let (now, hour, day) = (UNIX_EPOCH + UNSAID * 1000, UNSAID, UNSAID * 24);
        let due = |since: SystemTime, until: Option<SystemTime>| {
            let staple = Staple { der: Vec::new(), since, until };
            staple.due(now).duration_since(now).unwrap_or_default()
        };
        assert_eq!(due(now, Some(now + day * 4)), day * 2);
        assert_eq!(due(now, Some(now + day * 60)), LONGEST);
        assert_eq!(due(now - day * 3, Some(now + day)), hour, "the authority has no newer one yet");
        assert_eq!(due(now - day * 3, Some(now + hour)), hour / 4);
        assert_eq!(due(now - day * 3, Some(now + AGAIN)), AGAIN);
        assert_eq!(due(now, None), hour);
        assert_eq!(due(now - day, None), hour / 4);
    }
}
