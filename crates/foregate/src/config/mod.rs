//! The configuration: from files to what is served, with every mistake told at its place.
//!
//! ```text
//! files -> source -> parsed tree -> decode -> drafts (document) -> compile -> Live
//! ```
//!
//! `decode` walks the spanned tree of the `toml` crate by hand instead of deriving `serde` types. serde stops
//! at the first wrong value, and loses the place of one inside an untagged or flattened type; here a file
//! with five mistakes is answered with five places. For the same reason nothing below returns early on an
//! error: it is noted in `Problems`, reading goes on, and only a configuration without errors is compiled.
//!
//! The modules: `source` (files), `syntax` (what is not TOML), `diagnostic` (what is wrong, rendered),
//! `decode` (typed access to the tree), `value`, `host`, `reference` and `suggest` (small grammars), one per section of the language,
//! `inherit` (layers), `document` (all sections of all files), and `compile` and `certificates`, which see
//! the whole. Nothing here listens, probes or publishes; certificates are opened and regular expressions
//! compiled, so that what `check` accepts is what `run` can start with.

mod acme;
mod actions;
mod admin;
mod agent;
mod certificates;
mod clients;
mod compile;
mod decode;
mod diagnostic;
mod discover;
mod document;
mod failing;
mod health;
mod host;
mod http3;
mod inherit;
mod names;
mod policy;
mod pools;
mod reference;
mod routes;
mod server;
mod sites;
mod source;
mod suggest;
mod syntax;
#[cfg(test)]
mod tests;
mod tls;
mod transport;
mod value;
mod when;

use std::path::{Path, PathBuf};
use std::time::Duration;

use foregate_certs::acme::Plan;
use foregate_edge::Live;

pub(crate) use admin::{Admin, Listen, Token};
pub(crate) use diagnostic::Report;
pub(crate) use server::usual_state_dir;
pub(crate) use source::{folder_of, matching};

use crate::blueprint::Blueprint;
use crate::pair::Pair;
use crate::self_signed::SelfSigned;
use crate::state::StickySecret;
use diagnostic::{Problem, Problems};
use document::Document;
use source::Source;

/// A configuration that can be served.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What it was made of: the main file and those it includes.
    pub(crate) files: Vec<File>,
    /// What is published to the workers.
    pub(crate) live: Live,
    pub(crate) admin: Admin,
    /// Where the gateway keeps what must survive a restart.
    pub(crate) state_dir: PathBuf,
    /// Rendered like errors, each to be printed as it is.
    pub(crate) warnings: Vec<String>,
    /// The certificates made because of `tls.self_signed`. Loading writes nothing, since anybody may run
    /// `check`: who serves them calls [`SelfSigned::keep`] on each, so that a restart presents the same ones.
    pub(crate) self_signed: Vec<SelfSigned>,
    /// The certificates in files.
    pub(crate) pairs: Vec<Pair>,
    /// Those that an authority is to issue.
    pub(crate) plan: Option<Plan>,
    /// What sticky cookies are made with, where a pool has one: to be kept likewise.
    pub(crate) sticky: Option<StickySecret>,
    /// What the next snapshots are built from, that differ in who is there.
    pub(crate) blueprint: Blueprint,
}

/// A file of a configuration as it is written, with its references and without what they stand for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) name: String,
    pub(crate) text: String,
}

/// Reads the file at `path` and all it includes. `previous` lends what has not changed: endpoints, so that the health of
/// a VM survives a reload, and transports, so that connections to it do.
///
/// # Errors
/// Every mistake of the configuration, each with its place, and every file it names that cannot be used.
pub(crate) fn load(path: &Path, previous: Option<&Live>) -> Result<Loaded, Report> {
    match Source::read(path, 0) {
        Ok(main) => with_included(main, previous),
        Err(message) => {
            let problems = Problems::default();
            problems.push(Problem::unreadable(message));
            Err(problems.into_report(&path.display().to_string(), &[]))
        }
    }
}

/// The same for a text that is in no file; `name` stands for it in messages, and paths in it are relative to
/// `base_dir`.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_str(
    name: &str,
    text: &str,
    base_dir: &Path,
    previous: Option<&Live>,
) -> Result<Loaded, Report> {
    let main = Source { name: name.to_owned(), folder: base_dir.to_owned(), text: text.to_owned(), index: 0 };
    with_included(main, previous)
}

/// The same for files as they once were; the first is the main one.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_files(files: &[File], previous: Option<&Live>) -> Result<Loaded, Report> {
    load_sources(sources(files), Problems::default(), previous, None)
}

/// What is served already, with its certificates as their files are now. Where those cannot be used, say because only half
/// of them was written so far, what they held before is kept, with a warning.
///
/// # Errors
/// As [`load`]; something else has changed.
pub(crate) fn load_again(files: &[File], previous: &Live, kept: &[Pair]) -> Result<Loaded, Report> {
    load_sources(sources(files), Problems::default(), Some(previous), Some(kept))
}

fn sources(files: &[File]) -> Vec<Source> {
    let source = |(index, file): (usize, &File)| Source {
        name: file.name.clone(),
        folder: folder_of(Path::new(&file.name)),
        text: file.text.clone(),
        index,
    };
    files.iter().enumerate().map(source).collect()
}

/// The files at `path`, unread but for what they include.
///
/// # Errors
/// The main file cannot be read.
pub(crate) fn read(path: &Path) -> Result<Vec<File>, String> {
    let main = Source::read(path, 0)?;
    let included = document::included(&main, &Problems::default());
    Ok(std::iter::once(main)
        .chain(included)
        .map(|source| File { name: source.name, text: source.text })
        .collect())
}

fn with_included(main: Source, previous: Option<&Live>) -> Result<Loaded, Report> {
    let problems = Problems::default();
    let included = document::included(&main, &problems);
    let sources = std::iter::once(main).chain(included).collect();
    load_sources(sources, problems, previous, None)
}

fn load_sources(
    sources: Vec<Source>,
    problems: Problems,
    previous: Option<&Live>,
    kept: Option<&[Pair]>,
) -> Result<Loaded, Report> {
    let name = sources.first().map_or_else(String::new, |main| main.name.clone());
    let document = Document::read(&sources, &problems);
    let Some(document) = document else { return Err(problems.into_report(&name, &sources)) };
    let (state_dir, admin) = (document.server.state_dir.clone(), document.admin.clone());
    let Some(compiled) = compile::compile(document, previous, kept, &problems) else {
        return Err(problems.into_report(&name, &sources));
    };
    let warnings = problems.into_warnings(&sources);
    let compile::Compiled { live, self_signed, pairs, plan, sticky, blueprint } = compiled;
    let files = sources.into_iter().map(|source| File { name: source.name, text: source.text }).collect();
    Ok(Loaded { files, live, admin, state_dir, warnings, self_signed, pairs, plan, sticky, blueprint })
}

/// Whether it names other files, though there may be none.
pub(crate) fn has_include(file: &File) -> bool {
    let main = Source { name: String::new(), folder: PathBuf::new(), text: file.text.clone(), index: 0 };
    document::include(&main, &Problems::default()).is_some()
}

/// A text of the file at `path`, with its references followed.
pub(crate) fn resolved(path: &Path, text: &str) -> Option<String> {
    let source = Source { name: String::new(), folder: folder_of(path), text: String::new(), index: 0 };
    reference::resolve(text, &source, reference::Braces::Text).ok().map(std::borrow::Cow::into_owned)
}

/// A time as the configuration writes it.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    value::duration(text).ok()
}

/// What a main file includes: a folder, and a pattern for the names of files below it.
pub(crate) fn include_of(path: &Path) -> Option<(PathBuf, String)> {
    let main = Source::read(path, 0).ok()?;
    let pattern = document::include(&main, &Problems::default())?;
    Some((main.folder, pattern.value))
}
