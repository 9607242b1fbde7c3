//! What is kept in the state folder, so that a restart goes on where the process before it was.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use foregate_certs::TicketKey;
use foregate_routing::Secret;

/// Writes a file that its owner alone can read, and its folder where there is none.
///
/// # Errors
/// The folder or the file cannot be written.
pub(crate) fn write(file: &Path, contents: &[u8]) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    Aside::write(file, contents)?.replace()
}

/// A file beside the one whose place it is to take: a reader sees the old one or the new one, never halves of both. Removed
/// when dropped.
#[derive(Debug)]
pub(crate) struct Aside {
    aside: PathBuf,
    file: PathBuf,
}

impl Aside {
    fn write(file: &Path, contents: &[u8]) -> io::Result<Aside> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let aside = Aside { aside: file.with_file_name(format!(".{name}.new")), file: file.to_owned() };
        match fs::remove_file(&aside.aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut new = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside.aside)?;
        new.write_all(contents)?;
        new.sync_all()?;
        Ok(aside)
    }

    /// For a file that others may read, which keeps who that is.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn like(file: &Path, contents: &[u8]) -> io::Result<Aside> {
        let before = fs::metadata(file)?;
        let aside = Aside::write(file, contents)?;
        std::os::unix::fs::chown(&aside.aside, Some(before.uid()), Some(before.gid()))?;
        fs::set_permissions(&aside.aside, before.permissions())?;
        Ok(aside)
    }

    /// Takes its place.
    ///
    /// # Errors
    /// It cannot; the old one is still there.
    pub(crate) fn replace(self) -> io::Result<()> {
        fs::rename(&self.aside, &self.file)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        // Mostly it has gone already.
        _ = fs::remove_file(&self.aside);
    }
}

/// What sticky cookies are made with. In its file it is 32 hexadecimal digits and the end of a line.
#[derive(Debug)]
pub(crate) struct StickySecret {
    pub(crate) secret: Secret,
    file: PathBuf,
    fresh: bool,
}

/// The secret that stands in where no file has one.
static FRESH: OnceLock<Secret> = OnceLock::new();

/// What sticky cookies are made with, for a successor that does not find it in a file.
pub(crate) fn fresh_sticky_secret() -> Option<String> {
    FRESH.get().map(|Secret(bytes)| digits_of(bytes))
}

/// Goes on with the one of the process before.
pub(crate) fn inherit_sticky_secret(digits: &str) {
    if let Some(secret) = parse(digits) {
        _ = FRESH.set(secret);
    }
}

impl StickySecret {
    /// The one kept in the folder, or where there is none a new one, the same as long as the process runs. Writes nothing.
    ///
    /// # Errors
    /// What is wrong with the one that is there: others may use it too, so it is not replaced.
    pub(crate) fn obtain(folder: &Path) -> Result<StickySecret, String> {
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
        write(&self.file, format!("{}\n", digits_of(&bytes)).as_bytes())
    }
}

fn random() -> Secret {
    Secret(random_bytes())
}

fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Where the system has no random numbers TLS cannot start either, and says so.
    _ = aws_lc_rs::rand::fill(&mut bytes);
    bytes
}

/// What QUIC clients are promised with: the secret kept in the folder, or a new one. One that cannot be kept is as good
/// until the process ends.
pub(crate) fn quic_secret(folder: Option<&Path>) -> [u8; 64] {
    let Some(folder) = folder else { return random_bytes() };
    let file = folder.join("quic.key");
    let kept = fs::read_to_string(&file).ok().and_then(|text| bytes_of(text.trim()));
    kept.unwrap_or_else(|| {
        let secret = random_bytes();
        if let Err(error) = write(&file, format!("{}\n", digits_of(&secret)).as_bytes()) {
            tracing::debug!(%error, file = %file.display(), "the secret is not kept");
        }
        secret
    })
}

/// The keys of session tickets that are kept: a line each, with its time, its name and itself.
pub(crate) fn ticket_keys(folder: &Path) -> Vec<TicketKey> {
    let text = fs::read_to_string(folder.join(TICKETS)).unwrap_or_default();
    text.lines().filter_map(ticket_key).collect()
}

pub(crate) fn keep_ticket_keys(folder: &Path, keys: &[TicketKey]) {
    let text: String = keys.iter().map(|key| ticket_line(key) + "\n").collect();
    if let Err(error) = write(&folder.join(TICKETS), text.as_bytes()) {
        tracing::debug!(%error, folder = %folder.display(), "the keys of session tickets are not kept");
    }
}

const TICKETS: &str = "tickets.key";
/// Where the gateway is administrated.
pub(crate) const ADMIN: &str = "admin";

pub(crate) fn ticket_line(key: &TicketKey) -> String {
    format!("{} {} {}", key.since, digits_of(&key.id), digits_of(&key.secret))
}

pub(crate) fn ticket_key(line: &str) -> Option<TicketKey> {
    let mut words = line.split(' ');
    let since = words.next()?.parse().ok()?;
    Some(TicketKey { since, id: bytes_of(words.next()?)?, secret: bytes_of(words.next()?)? })
}

/// Bytes as hexadecimal digits.
pub(crate) fn digits_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The reverse, for so many of them.
pub(crate) fn bytes_of<const N: usize>(digits: &str) -> Option<[u8; N]> {
    if digits.len() != 2 * N || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(digits.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

fn parse(digits: &str) -> Option<Secret> {
    bytes_of(digits).map(Secret)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn what_clients_were_promised_with_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let secret = quic_secret(Some(folder.path()));
        assert_eq!(quic_secret(Some(folder.path())), secret);
        assert!(secret.iter().any(|byte| *byte != 0));
        let keys = [7, 9].map(|since| TicketKey { id: random_bytes(), secret: random_bytes(), since });
        keep_ticket_keys(folder.path(), &keys);
        assert_eq!(ticket_keys(folder.path()), keys);
        fs::write(folder.path().join(TICKETS), "oops\n1 2 3\n").unwrap();
        assert_eq!(ticket_keys(folder.path()), []);
    }

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
