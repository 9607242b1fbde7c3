//! Certificates the gateway makes for itself, for development: `[tls] self_signed = true`.
//!
//! One P-256 certificate per site, good for 90 days. It is kept in a file, so that a browser that was told to
//! trust it is not asked again after a restart; where no file can be written a new one is made each time.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use foregate_certs::{Certificate, CertificateError};
use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

use crate::state;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Below the 398 days that browsers accept, and short enough that nobody takes it for the real thing.
const VALIDITY: Duration = DAY.saturating_mul(90);

/// With less than this left a new one is made at the next start or reload.
pub(crate) const RENEWAL: Duration = DAY.saturating_mul(30);

/// Clocks of development machines disagree; a certificate that is not valid yet helps nobody.
const BACKDATED: Duration = DAY;

/// What PEM calls explanatory text (RFC 7468, section 2): the first line of a file of ours says when its
/// certificate ends, in seconds since 1970, and what it is for, so that neither has to be dug out of X.509.
const HEADING: &str = "foregate self-signed certificate until ";

/// A certificate made by the gateway.
#[derive(Debug)]
pub(crate) struct SelfSigned {
    pub(crate) certificate: Arc<Certificate>,
    /// What it is good for: host names, wildcards and addresses.
    pub(crate) hosts: Vec<String>,
    file: PathBuf,
    /// Chain and key, until they are in the file.
    fresh: Option<String>,
}

/// Why no certificate could be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SelfSignedError {
    #[error("no self-signed certificate can be made for {hosts}: {reason}")]
    Make { hosts: String, reason: rcgen::Error },
    #[error("the self-signed certificate cannot be used: {0}")]
    Use(#[from] CertificateError),
}

/// The certificate kept as `name` in `folder` if it is for these hosts and has time left at `now`; else a new
/// one. Writes nothing.
///
/// # Errors
/// A host that cannot stand in a certificate.
pub(crate) fn obtain(
    folder: &Path,
    name: &str,
    hosts: &[String],
    now: SystemTime,
) -> Result<SelfSigned, SelfSignedError> {
    let mut hosts = hosts.to_vec();
    hosts.sort();
    hosts.dedup();
    let file = folder.join(format!("{}.pem", file_name(name)));
    if let Some(certificate) = kept(&file, &hosts, now) {
        return Ok(SelfSigned { certificate: Arc::new(certificate), hosts, file, fresh: None });
    }
    let pem =
        make(&hosts, now).map_err(|reason| SelfSignedError::Make { hosts: hosts.join(", "), reason })?;
    let certificate = Certificate::from_pem(pem.as_bytes(), pem.as_bytes())?.self_signed();
    Ok(SelfSigned { certificate: Arc::new(certificate), hosts, file, fresh: Some(pem) })
}

impl SelfSigned {
    /// Writes a new certificate and its key to its file, readable by its owner alone.
    ///
    /// # Errors
    /// The state folder cannot be written; the certificate then lasts as long as the process.
    pub(crate) fn keep(&self) -> io::Result<()> {
        let Some(pem) = &self.fresh else { return Ok(()) };
        state::write(&self.file, pem.as_bytes())
    }
}

/// Only what is safe in a file name stays as it is.
pub(crate) fn file_name(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            'a'..='z' | 'A'..='Z' | '0'..='9' | '.' | '-' => out.push(c),
            other => out.push_str(&format!("_{:x}_", u32::from(other))),
        }
    }
    out
}

fn make(hosts: &[String], now: SystemTime) -> Result<String, rcgen::Error> {
    let mut params = CertificateParams::new(hosts.to_vec())?;
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + VALIDITY).into();
    params.distinguished_name.push(DnType::OrganizationName, "Foregate (self-signed, for development)");
    // A common name is at most 64 characters (RFC 5280, appendix A.1); nobody reads it but people.
    let shown = hosts.iter().find(|host| host.len() <= 64).map_or("foregate", String::as_str);
    params.distinguished_name.push(DnType::CommonName, shown);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let certificate = params.self_signed(&key)?;
    let ends = (now + VALIDITY).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (chain, key) = (certificate.pem(), key.serialize_pem());
    Ok(format!("{HEADING}{ends} for {}\n{chain}{key}", hosts.join(" ")))
}

/// The certificate in the file, if it is still the one we want. Whatever is wrong with it, a new one helps.
fn kept(file: &Path, hosts: &[String], now: SystemTime) -> Option<Certificate> {
    let pem = fs::read_to_string(file).ok()?;
    let (first, _) = pem.split_once('\n')?;
    let (ends, named) = first.strip_prefix(HEADING)?.split_once(" for ")?;
    let ends = UNIX_EPOCH + Duration::from_secs(ends.parse().ok()?);
    if named != hosts.join(" ") || now + RENEWAL > ends || now + VALIDITY + DAY < ends {
        return None;
    }
    Some(Certificate::from_pem(pem.as_bytes(), pem.as_bytes()).ok()?.self_signed())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("foregate-self-signed-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        folder
    }

    fn hosts(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn it_is_kept_across_restarts_and_private() {
        let folder = folder("kept");
        let names = hosts(&["shop.example.com", "*.shop.example.com", "127.0.0.1", "::1"]);
        let now = SystemTime::now();
        let first = obtain(&folder, "site-shop", &names, now).unwrap();
        assert!(first.fresh.is_some() && !folder.exists());
        first.keep().unwrap();
        let file = folder.join("site-shop.pem");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);

        let again = obtain(&folder, "site-shop", &names, now).unwrap();
        assert!(again.fresh.is_none());
        assert_eq!(again.certificate.names(), first.certificate.names());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn it_is_made_anew_for_other_hosts_and_before_it_expires() {
        let folder = folder("renewed");
        let names = hosts(&["a.example.com"]);
        let now = SystemTime::now();
        obtain(&folder, "site-a", &names, now).unwrap().keep().unwrap();
        assert!(obtain(&folder, "site-a", &hosts(&["b.example.com"]), now).unwrap().fresh.is_some());
        assert!(obtain(&folder, "site-a", &names, now + DAY * 59).unwrap().fresh.is_none());
        assert!(obtain(&folder, "site-a", &names, now + DAY * 61).unwrap().fresh.is_some());
        fs::write(folder.join("site-a.pem"), "not a certificate").unwrap();
        assert!(obtain(&folder, "site-a", &names, now).unwrap().fresh.is_some());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn names_of_files_hold_no_path() {
        assert_eq!(file_name("site-shop.example.com"), "site-shop.example.com");
        assert_eq!(file_name("site-../etc"), "site-.._2f_etc");
    }

    #[test]
    fn it_stands_in_for_any_host() {
        let made = obtain(&folder("any"), "site-a", &hosts(&["a.example.com"]), SystemTime::now()).unwrap();
        assert!(made.certificate.covers("b.example.com"));
        assert_eq!(made.certificate.names(), ["a.example.com"]);
    }
}
