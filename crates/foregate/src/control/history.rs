//! Every configuration that was served, kept in the state folder, so that one can go back.
//!
//! Each entry holds the hash of the one before it, so that whoever changes an old one has to change all that follow.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::File;
use crate::state;

/// So many are kept.
const MOST: usize = 50;
/// The file with what was gone back from.
const REFUSED: &str = "refused";

/// One configuration that was served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) number: u64,
    /// UTC, RFC 3339.
    pub(crate) time: String,
    /// Who asked.
    pub(crate) by: String,
    /// How it came: "start", "reload", "put", "rollback to 3", ...
    pub(crate) how: String,
    pub(crate) files: Vec<Kept>,
    /// The hash of the files.
    pub(crate) content: String,
    /// The hash of the entry before.
    previous: String,
    hash: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Kept {
    name: String,
    text: String,
}

/// A configuration as it is written, and the hash of that.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) files: Vec<File>,
    pub(crate) content: String,
}

impl Written {
    pub(crate) fn new(files: Vec<File>) -> Written {
        Written { content: content(&files), files }
    }
}

/// The entries, and where they are kept.
#[derive(Debug)]
pub(crate) struct History {
    folder: PathBuf,
    /// The oldest first.
    entries: Vec<Entry>,
    /// The numbers of those that are not as they were written.
    broken: Vec<u64>,
    /// The hashes of what was gone back from.
    refused: Vec<String>,
    /// How many of the latest are not kept yet: one is written after those before it, or what follows would not fit.
    unwritten: usize,
    /// It was said that nothing can be written.
    complained: bool,
}

impl Entry {
    pub(crate) fn files(&self) -> Vec<File> {
        let file = |kept: &Kept| File { name: kept.name.clone(), text: kept.text.clone() };
        self.files.iter().map(file).collect()
    }

    fn hash_of(&self) -> String {
        let mut text =
            format!("{}\n{}\n{}\n{}\n{}\n", self.previous, self.number, self.time, self.by, self.how);
        for file in &self.files {
            // With their lengths, so that nothing can be taken for something else.
            text.push_str(&format!("{} {} {}{}", file.name.len(), file.text.len(), file.name, file.text));
        }
        hex(text.as_bytes())
    }
}

impl History {
    /// Reads what is kept. What cannot be read is as if it were not there.
    pub(crate) fn open(state_dir: &Path) -> History {
        let folder = state_dir.join("history");
        let mut entries: Vec<Entry> = fs::read_dir(&folder)
            .into_iter()
            .flatten()
            .filter_map(|item| Some(item.ok()?.path()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
            .filter_map(|path| serde_json::from_slice(&fs::read(path).ok()?).ok())
            .collect();
        entries.sort_by_key(|entry| entry.number);
        let mut broken = Vec::new();
        let mut before: Option<&Entry> = None;
        for entry in &entries {
            let follows = before.is_none_or(|before| entry.previous == before.hash);
            if !follows || entry.hash != entry.hash_of() {
                broken.push(entry.number);
            }
            before = Some(entry);
        }
        let refused = fs::read_to_string(folder.join(REFUSED)).unwrap_or_default();
        let refused = refused.lines().map(str::to_owned).collect();
        History { folder, entries, broken, refused, unwritten: 0, complained: false }
    }

    /// Whether it is as it was written.
    pub(crate) fn is_intact(&self, number: u64) -> bool {
        !self.broken.contains(&number)
    }

    pub(crate) fn get(&self, number: u64) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.number == number)
    }

    /// Whether the content of one was served before that of the other was for the first time.
    pub(crate) fn is_older(&self, number: u64, other: u64) -> bool {
        let first = |number: u64| {
            let content = &self.get(number)?.content;
            self.entries.iter().find(|entry| entry.content == *content).map(|entry| entry.number)
        };
        first(number) < first(other)
    }

    /// The one before this one that held something else, that nobody has gone back from, and that is as it was written.
    pub(crate) fn before(&self, number: u64) -> Option<&Entry> {
        let content = self.get(number).map(|entry| entry.content.as_str());
        let mut older = self.entries.iter().rev().filter(|entry| entry.number < number);
        older.find(|entry| {
            Some(&*entry.content) != content
                && !self.refused.contains(&entry.content)
                && self.is_intact(entry.number)
        })
    }

    pub(crate) fn numbers(&self) -> (Option<u64>, Option<u64>) {
        (self.entries.first().map(|entry| entry.number), self.entries.last().map(|entry| entry.number))
    }

    /// Adds what is served from now on, unless that is what is served already. Returns its number.
    pub(crate) fn add(&mut self, written: &Written, by: &str, how: &str) -> u64 {
        let Written { files, content } = written;
        if let Some(latest) = self.entries.last().filter(|latest| latest.content == *content) {
            let number = latest.number;
            self.keep();
            return number;
        }
        let (number, previous) =
            self.entries.last().map_or((1, String::new()), |latest| (latest.number + 1, latest.hash.clone()));
        let kept = |file: &File| Kept { name: file.name.clone(), text: file.text.clone() };
        let mut entry = Entry {
            number,
            time: now(),
            by: by.to_owned(),
            how: how.to_owned(),
            files: files.iter().map(kept).collect(),
            content: content.clone(),
            previous,
            hash: String::new(),
        };
        entry.hash = entry.hash_of();
        self.entries.push(entry);
        self.unwritten += 1;
        self.keep();
        while self.entries.len() > MOST {
            let oldest = self.entries.remove(0);
            _ = fs::remove_file(self.place(oldest.number));
        }
        self.unwritten = self.unwritten.min(self.entries.len());
        number
    }

    /// Keeps what could not be kept so far.
    pub(crate) fn keep(&mut self) {
        if self.unwritten > 0 {
            let written = self.write();
            self.tell(written);
        }
    }

    fn write(&mut self) -> io::Result<()> {
        let kept = self.entries.len().saturating_sub(self.unwritten);
        for entry in self.entries.iter().skip(kept) {
            state::write(&self.place(entry.number), &serde_json::to_vec_pretty(entry)?)?;
            self.unwritten -= 1;
        }
        Ok(())
    }

    /// This was gone back from: it is not to come again by accident.
    pub(crate) fn refuse(&mut self, written: &Written) {
        if !self.is_refused(written) {
            self.refused.push(written.content.clone());
            self.keep_refused();
        }
    }

    /// Somebody wants this all the same.
    pub(crate) fn forgive(&mut self, written: &Written) {
        if self.is_refused(written) {
            self.refused.retain(|refused| *refused != written.content);
            self.keep_refused();
        }
    }

    /// Whether somebody has gone back from this.
    pub(crate) fn is_refused(&self, written: &Written) -> bool {
        self.refused.contains(&written.content)
    }

    fn keep_refused(&mut self) {
        let written = state::write(&self.folder.join(REFUSED), self.refused.join("\n").as_bytes());
        self.tell(written);
    }

    fn place(&self, number: u64) -> PathBuf {
        self.folder.join(format!("{number:08}.json"))
    }

    fn tell(&mut self, written: io::Result<()>) {
        match written {
            Ok(()) => self.complained = false,
            Err(error) if !std::mem::replace(&mut self.complained, true) => {
                tracing::warn!(
                    "the history of configurations is kept in memory only: {} cannot be written ({error})",
                    self.folder.display()
                );
            }
            Err(_) => {}
        }
    }

    pub(crate) fn to_json(&self, running: u64) -> Value {
        let one = |entry: &Entry| {
            json!({
                "number": entry.number,
                "time": entry.time,
                "by": entry.by,
                "how": entry.how,
                "content": entry.content,
                "running": entry.number == running,
                "refused": self.refused.contains(&entry.content),
                "intact": self.is_intact(entry.number),
            })
        };
        self.entries.iter().rev().map(one).collect()
    }
}

/// The hash of a configuration, wherever it lies.
pub(crate) fn content(files: &[File]) -> String {
    let mut text = String::new();
    for file in files {
        text.push_str(&format!("{} {}", file.text.len(), file.text));
    }
    hex(text.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    state::digits_of(digest(&SHA256, bytes).as_ref())
}

/// UTC to the second, as RFC 3339 has it.
fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(text: &str) -> Written {
        Written::new(vec![File { name: "/etc/foregate/foregate.toml".to_owned(), text: text.to_owned() }])
    }

    #[test]
    fn what_was_served_is_there_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::open(folder.path());
        assert_eq!(history.add(&files("a"), "uid 0", "start"), 1);
        assert_eq!(history.add(&files("a"), "uid 0", "reload"), 1, "the same is no news");
        assert_eq!(history.add(&files("b"), "uid 7", "reload"), 2);
        assert_eq!(history.add(&files("a"), "uid 0", "rollback to 1"), 3);
        history.refuse(&files("b"));

        let mut history = History::open(folder.path());
        assert_eq!(history.numbers(), (Some(1), Some(3)));
        assert_eq!(history.get(2).unwrap().files(), files("b").files);
        assert_eq!(history.before(3), None, "what was gone back from is not gone back to");
        assert!(history.is_refused(&files("b")) && !history.is_refused(&files("a")));
        history.forgive(&files("b"));
        assert_eq!(history.before(3).unwrap().number, 2);
        assert!(!History::open(folder.path()).is_refused(&files("b")));
        let listed = history.to_json(3);
        assert_eq!((&listed[0]["running"], &listed[1]["by"]), (&json!(true), &json!("uid 7")));
        assert!(listed.as_array().unwrap().iter().all(|entry| entry["intact"] == json!(true)));
    }

    #[test]
    fn tampering_shows() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::open(folder.path());
        for text in ["a", "b", "c"] {
            history.add(&files(text), "x", "reload");
        }
        let place = folder.path().join("history/00000002.json");
        let mut entry: Entry = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
        entry.files[0].text = "evil".to_owned();
        fs::write(&place, serde_json::to_vec(&entry).unwrap()).unwrap();
        assert_eq!(History::open(folder.path()).broken, [2]);
        // Who makes it fit again breaks the next.
        entry.hash = entry.hash_of();
        fs::write(&place, serde_json::to_vec(&entry).unwrap()).unwrap();
        assert_eq!(History::open(folder.path()).broken, [3]);
    }

    #[test]
    fn the_oldest_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut history = History::open(folder.path());
        for number in 0..60 {
            history.add(&files(&number.to_string()), "x", "reload");
        }
        let history = History::open(folder.path());
        assert_eq!((history.numbers(), history.broken.len()), ((Some(11), Some(60)), 0));
    }

    #[test]
    fn a_folder_that_cannot_be_written_stops_nobody() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("history"), "in the way").unwrap();
        let mut history = History::open(folder.path());
        assert_eq!(history.add(&files("a"), "x", "start"), 1);
        assert_eq!(history.add(&files("b"), "x", "reload"), 2);
        assert_eq!(history.get(1).unwrap().files(), files("a").files);
        // Once it can, all of it is there.
        fs::remove_file(folder.path().join("history")).unwrap();
        history.add(&files("b"), "x", "reload");
        history.add(&files("c"), "x", "reload");
        let history = History::open(folder.path());
        assert_eq!((history.numbers(), history.broken.len()), ((Some(1), Some(3)), 0));
    }
}
