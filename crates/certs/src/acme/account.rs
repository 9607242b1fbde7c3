//! The account at the authority. Its key is kept: whoever loses it begins anew, with new limits.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use instant_acme::{Account, AccountCredentials, ExternalAccountKey, NewAccount};

use super::client::{Https, NotBefore};
use super::{Keep, Settings, Trouble};

/// Where it is noted what address the authority has.
const CONTACT: &str = "contact";

/// What binds the account to one that the authority knows already (RFC 8555, section 7.3.4).
#[derive(Clone, PartialEq, Eq)]
pub struct Eab {
    pub key_id: String,
    pub hmac_key: Vec<u8>,
}

impl fmt::Debug for Eab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The other is a secret.
        f.debug_struct("Eab").field("key_id", &self.key_id).finish_non_exhaustive()
    }
}

/// An account that can be used.
pub(super) struct Client {
    pub(super) account: Account,
    not_before: NotBefore,
}

impl Client {
    /// The one that is kept, or a new one.
    pub(super) async fn obtain(settings: &Settings, keep: Keep) -> Result<Client, Trouble> {
        let not_before = Arc::new(Mutex::new(None));
        let https = Https::new(settings.ca.as_deref(), not_before.clone())?;
        let builder = Account::builder_with_http(Box::new(https));
        let file = file_of(settings);
        let contact: Vec<String> = settings.email.iter().map(|email| format!("mailto:{email}")).collect();
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let found = match kept(settings) {
            Ok(Some(credentials)) => match builder.from_credentials(credentials).await {
                Ok(account) => {
                    if told(settings).as_deref() != Some(&contact.join(" ")) {
                        // Without it a certificate is ordered all the same.
                        match account.update_contacts(&contact).await {
                            Ok(()) => {
                                tracing::info!(
                                    contact = contact.join(" "),
                                    "the authority knows the new address"
                                );
                                note(settings, &contact, keep);
                            }
                            Err(error) => {
                                tracing::warn!(%error, "the authority does not take the new `email`")
                            }
                        }
                    }
                    Ok(account)
                }
                Err(error) => Err(error),
            },
            Ok(None) => {
                let new = NewAccount {
                    contact: &contact,
                    terms_of_service_agreed: true,
                    only_return_existing: false,
                };
                let eab = settings.eab.as_ref();
                let eab = eab.map(|eab| ExternalAccountKey::new(eab.key_id.clone(), &eab.hmac_key));
                match builder.create(&new, settings.directory.clone(), eab.as_ref()).await {
                    Ok((account, credentials)) => {
                        let text = serde_json::to_vec(&credentials)
                            .map_err(|error| Trouble::new(error.to_string()))?;
                        keep(&file, &text).map_err(|error| Trouble::unwritten(&file, &error))?;
                        note(settings, &contact, keep);
                        tracing::info!(
                            account = account.id(),
                            directory = settings.directory,
                            "ACME account made"
                        );
                        Ok(account)
                    }
                    Err(error) => Err(error),
                }
            }
            Err(reason) => return Err(Trouble::new(reason)),
        };
        match found {
            Ok(account) => Ok(Client { account, not_before }),
            Err(error) => {
                let not_before = asked(&not_before);
                Err(Trouble { not_before, ..Trouble::from(error) })
            }
        }
    }

    /// When the authority wants to be asked again.
    pub(super) fn not_before(&self) -> Option<SystemTime> {
        asked(&self.not_before)
    }
}

/// The authority does not know it any more: the next one is a new one.
pub(super) fn forget(settings: &Settings) {
    tracing::warn!(directory = settings.directory, "the authority does not know the account any more");
    _ = fs::remove_file(file_of(settings));
}

fn asked(not_before: &NotBefore) -> Option<SystemTime> {
    let asked = *not_before.lock().unwrap_or_else(PoisonError::into_inner);
    asked.filter(|time| *time > SystemTime::now())
}

fn file_of(settings: &Settings) -> PathBuf {
    settings.folder.join("account.json")
}

/// The address that the authority has been told.
fn told(settings: &Settings) -> Option<String> {
    fs::read_to_string(settings.folder.join(CONTACT)).ok()
}

fn note(settings: &Settings, contact: &[&str], keep: Keep) {
    let file = settings.folder.join(CONTACT);
    if let Err(error) = keep(&file, contact.join(" ").as_bytes()) {
        // It is told once more.
        tracing::warn!(%error, "{} cannot be written", file.display());
    }
}

fn kept(settings: &Settings) -> Result<Option<AccountCredentials>, String> {
    let file = file_of(settings);
    let text = match fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{} cannot be read: {error}", file.display())),
    };
    let reason = |error| format!("{} is no ACME account: {error}; restore or remove it", file.display());
    serde_json::from_slice(&text).map(Some).map_err(reason)
}
