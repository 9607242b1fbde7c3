//! The files of one configuration: the main one, and those its `include` brings in.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// One file, and what the paths in it are relative to.
#[derive(Debug)]
pub(super) struct Source {
    /// As messages name it.
    pub(super) name: String,
    pub(super) folder: PathBuf,
    pub(super) text: String,
    /// 0 is the main file; included ones follow in the order they are read.
    pub(super) index: usize,
}

impl Source {
    /// Reads a file. The error is a sentence that names it.
    pub(super) fn read(path: &Path, index: usize) -> Result<Source, String> {
        let name = path.display().to_string();
        let bytes = fs::read(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("{name} does not exist"),
            io::ErrorKind::PermissionDenied => {
                format!("{name} cannot be read: permission denied; let the user that runs foregate read it")
            }
            _ => format!("{name} cannot be read: {error}"),
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            format!("{name} is not UTF-8 text (byte {})", error.utf8_error().valid_up_to())
        })?;
        Ok(Source { name, folder: folder_of(path), text, index })
    }

    /// A path written in this file.
    pub(super) fn path(&self, written: &str) -> PathBuf {
        self.folder.join(written)
    }

    /// Somebody includes it, and by its name it need not be a configuration: its lines are not shown around.
    pub(super) fn may_be_anything(&self) -> bool {
        self.index > 0 && Path::new(&self.name).extension().is_none_or(|extension| extension != "toml")
    }

    pub(super) fn place(&self, span: std::ops::Range<usize>) -> Place {
        Place { file: self.index, start: span.start, end: span.end }
    }
}

/// What paths in a file are relative to.
pub(crate) fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(parent) if parent != Path::new("") => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Where something is written: a file and a range of its bytes. Places order as the text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) file: usize,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Placed<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl<T> Placed<T> {
    pub(super) fn new(value: T, place: Place) -> Placed<T> {
        Placed { value, place }
    }
}

/// The files a pattern such as `conf.d/*.toml` names: in the order of their names, without dot files.
pub(crate) fn matching(folder: &Path, pattern: &str) -> io::Result<Vec<PathBuf>> {
    let mut found = vec![if pattern.starts_with('/') { PathBuf::from("/") } else { folder.to_owned() }];
    for part in pattern.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if !is_pattern(part) {
            found.iter_mut().for_each(|path| path.push(part));
            continue;
        }
        let mut next = Vec::new();
        for path in found.iter().filter(|path| path.is_dir()) {
            let mut names = Vec::new();
            for entry in fs::read_dir(path)? {
                names.push(entry?.file_name());
            }
            names.sort();
            let fits = |name: &str| !name.starts_with('.') && glob(part.as_bytes(), name.as_bytes());
            next.extend(
                names.iter().filter(|name| name.to_str().is_some_and(fits)).map(|name| path.join(name)),
            );
        }
        found = next;
    }
    Ok(found)
}

/// Whether a pattern may name more than one file.
pub(super) fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// `*` stands for any run of bytes, `?` for one.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match pattern.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => {
            (0..=text.len()).any(|skip| text.get(skip..).is_some_and(|tail| glob(rest, tail)))
        }
        Some((wanted, rest)) => text
            .split_first()
            .is_some_and(|(byte, tail)| (wanted == byte || *wanted == b'?') && glob(rest, tail)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs() {
        for (pattern, text, fits) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml~", false),
            ("site-?.toml", "site-1.toml", true),
            ("site-?.toml", "site-10.toml", false),
            ("*a*b*", "xxaxxbxx", true),
            ("*a*b*", "xxbxxaxx", false),
        ] {
            assert_eq!(glob(pattern.as_bytes(), text.as_bytes()), fits, "{pattern} {text}");
        }
    }
}
