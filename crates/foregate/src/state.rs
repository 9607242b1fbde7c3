//! What is kept in the state folder, so that a restart goes on where the process before it was.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use foregate_routing::Secret;

/// Writes a file that its owner alone can read, and its folder where there is none.
///
/// # Errors
/// The folder or the file cannot be written.
pub(crate) fn write(file: &Path, contents: &[u8]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // Written aside and renamed: a reader sees the old file or the new one, never halves of both.
    let aside = file.with_extension("new");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    new.write_all(contents)?;
    new.sync_all()?;
    fs::rename(&aside, file)
}

/// Writes a file in the place of one that others may read, which keeps who that is.
///
/// # Errors
/// It cannot be written; the old one is still there.
pub(crate) fn replace(file: &Path, contents: &[u8]) -> io::Result<()> {
    let before = fs::metadata(file)?;
    let aside = file.with_extension("new");
    let written = fs::write(&aside, contents)
        .and_then(|()| fs::set_permissions(&aside, before.permissions()))
        .and_then(|()| std::os::unix::fs::chown(&aside, Some(before.uid()), Some(before.gid())))
        .and_then(|()| fs::File::open(&aside)?.sync_all())
        .and_then(|()| fs::rename(&aside, file));
    if written.is_err() {
        _ = fs::remove_file(&aside);
    }
    written
}

/// What sticky cookies are made with. In its file it is 32 hexadecimal digits and the end of a line.
#[derive(Debug)]
pub(crate) struct StickySecret {
    pub(crate) secret: Secret,
    file: PathBuf,
    fresh: bool,
}

impl StickySecret {
    /// The one kept in the folder, or where there is none a new one, the same as long as the process runs. Writes nothing.
    ///
    /// # Errors
    /// What is wrong with the one that is there: others may use it too, so it is not replaced.
    pub(crate) fn obtain(folder: &Path) -> Result<StickySecret, String> {
        static FRESH: OnceLock<Secret> = OnceLock::new();
        let file = folder.join("sticky.key");
        let name = file.display();
        let (secret, fresh) = match fs::read_to_string(&file) {
            Ok(text) => match parse(text.trim()) {
                Some(secret) => (secret, false),
                None => {
                    return Err(format!("{name} does not hold 32 hexadecimal digits; restore or remove it"));
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (*FRESH.get_or_init(random), true),
            Err(error) => {
                return Err(format!(
                    "{name} cannot be read ({error}); let the user that runs foregate read it"
                ));
            }
        };
        Ok(StickySecret { secret, file, fresh })
    }

    /// Writes a new one to its file.
    ///
    /// # Errors
    /// It cannot be written; the secret then lasts as long as the process.
    pub(crate) fn keep(&self) -> io::Result<()> {
        if !self.fresh {
            return Ok(());
        }
        let Secret(bytes) = self.secret;
        let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        write(&self.file, format!("{digits}\n").as_bytes())
    }
}

fn random() -> Secret {
    let mut bytes = [0; 16];
    // Where the system has no random numbers TLS cannot start either, and says so.
    _ = aws_lc_rs::rand::fill(&mut bytes);
    Secret(bytes)
}

fn parse(digits: &str) -> Option<Secret> {
    let valid = digits.len() == 32 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    valid.then(|| u128::from_str_radix(digits, 16).ok().map(|number| Secret(number.to_be_bytes())))?
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_is_kept_for_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("state");
        let first = StickySecret::obtain(&place).unwrap();
        assert!(!place.exists(), "looking writes nothing");
        first.keep().unwrap();
        let mode = fs::metadata(place.join("sticky.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let second = StickySecret::obtain(&place).unwrap();
        assert!(second.secret == first.secret && !second.fresh);
        assert_ne!(first.secret.0, [0; 16]);

        for strange in ["", "0123", "+123456789abcdef0123456789abcde", &"g".repeat(32)] {
            fs::write(place.join("sticky.key"), strange).unwrap();
            assert!(
                StickySecret::obtain(&place).unwrap_err().contains("32 hexadecimal digits"),
                "{strange:?}"
            );
        }
        fs::write(place.join("sticky.key"), " 000102030405060708090a0b0c0d0e0F\n").unwrap();
        assert_eq!(StickySecret::obtain(&place).unwrap().secret.0, std::array::from_fn(|n| n as u8));
    }
}
