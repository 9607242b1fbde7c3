//! Certificates and keys in files, and whether those have changed since they were read.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use foregate_certs::{Certificate, CertificateError};
pub(crate) use foregate_certs::{Look, look_at};

#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
    /// None: it is waited for, or somebody else's.
    pub(crate) certificate: Option<Arc<Certificate>>,
    /// The site whose certificate is ordered from an authority.
    pub(crate) ordered_for: Option<String>,
    /// The gateway writes it itself, whole or not at all.
    pub(crate) is_ours: bool,
    /// As both were before they were read.
    looks: [Look; 2],
}

impl Pair {
    /// # Errors
    /// As [`Certificate::load`].
    pub(crate) fn load(cert: &Path, key: &Path) -> Result<Pair, CertificateError> {
        let looks = [cert, key].map(look_at);
        let certificate = Some(Arc::new(Certificate::load(cert, key)?));
        let (cert, key) = (cert.to_owned(), key.to_owned());
        Ok(Pair { cert, key, certificate, ordered_for: None, is_ours: false, looks })
    }

    /// Files that somebody else reads, who is to read them again when they have changed.
    pub(crate) fn watched(cert: &Path, key: &Path) -> Pair {
        let looks = [cert, key].map(look_at);
        let (cert, key) = (cert.to_owned(), key.to_owned());
        Pair { cert, key, certificate: None, ordered_for: None, is_ours: false, looks }
    }

    /// A folder to which the gateway itself adds certificates.
    pub(crate) fn folder(path: &Path) -> Pair {
        Pair { is_ours: true, ..Pair::watched(path, path) }
    }

    /// What an authority has issued for a site: chain and key in one file, which need not be there yet.
    ///
    /// # Errors
    /// As [`Certificate::load`], if it is there.
    pub(crate) fn ordered(file: &Path, site: &str) -> (Pair, Result<(), CertificateError>) {
        let looks = [look_at(file); 2];
        let (certificate, result) = match looks {
            [None, _] => (None, Ok(())),
            _ => match Certificate::load(file, file) {
                Ok(certificate) => (Some(Arc::new(certificate)), Ok(())),
                Err(error) => (None, Err(error)),
            },
        };
        let ordered_for = Some(site.to_owned());
        let (cert, key) = (file.to_owned(), file.to_owned());
        (Pair { cert, key, certificate, ordered_for, is_ours: true, looks }, result)
    }

    pub(crate) fn is_of(&self, cert: &Path, key: &Path) -> bool {
        self.cert == cert && self.key == key
    }

    /// How the files are now, if that is not as they were.
    pub(crate) fn change(&self) -> Option<[Look; 2]> {
        let now = [&self.cert, &self.key].map(|path| look_at(path));
        (now != self.looks).then_some(now)
    }
}
