//! What tells one state of a file from another.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Device, inode, length and time of the last change. None: it is not there.
pub type Look = Option<(u64, u64, u64, i64, i64)>;

/// Links are followed: what counts is what they lead to.
#[must_use]
pub fn look_at(path: &Path) -> Look {
    let found = fs::metadata(path).ok()?;
    Some((found.dev(), found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
}
