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

mod actions;
mod agent;
mod certificates;
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

use foregate_edge::Live;
use foregate_routing::Snapshot;

pub(crate) use diagnostic::Report;

use crate::blueprint::Blueprint;
use crate::self_signed::SelfSigned;
use crate::state::StickySecret;
use diagnostic::{Problem, Problems};
use document::Document;
use source::Source;

/// A configuration that can be served.
#[derive(Debug)]
pub(crate) struct Loaded {
    /// What is published to the workers.
    pub(crate) live: Live,
    /// Where the gateway keeps what must survive a restart.
    pub(crate) state_dir: PathBuf,
    /// Rendered like errors, each to be printed as it is.
    pub(crate) warnings: Vec<String>,
    /// The certificates made because of `tls.self_signed`. Loading writes nothing, since anybody may run
    /// `check`: who serves them calls [`SelfSigned::keep`] on each, so that a restart presents the same ones.
    pub(crate) self_signed: Vec<SelfSigned>,
    /// What sticky cookies are made with, where a pool has one: to be kept likewise.
    pub(crate) sticky: Option<StickySecret>,
    /// What the next snapshots are built from, where VMs are looked up.
    pub(crate) blueprint: Option<Blueprint>,
}

/// Reads the file at `path` and all it includes. `previous` lends its endpoints, so that the health of an
/// unchanged VM survives a reload.
///
/// # Errors
/// Every mistake of the configuration, each with its place, and every file it names that cannot be used.
pub(crate) fn load(path: &Path, previous: Option<&Snapshot>) -> Result<Loaded, Report> {
    match Source::read(path, 0) {
        Ok(main) => load_source(main, previous),
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
    previous: Option<&Snapshot>,
) -> Result<Loaded, Report> {
    let main = Source { name: name.to_owned(), folder: base_dir.to_owned(), text: text.to_owned(), index: 0 };
    load_source(main, previous)
}

fn load_source(main: Source, previous: Option<&Snapshot>) -> Result<Loaded, Report> {
    let problems = Problems::default();
    let name = main.name.clone();
    let included = document::included(&main, &problems);
    let mut sources = vec![main];
    sources.extend(included);
    let document = Document::read(&sources, &problems);
    let Some(document) = document else { return Err(problems.into_report(&name, &sources)) };
    let state_dir = document.server.state_dir.clone();
    let Some(compiled) = compile::compile(document, previous, &problems) else {
        return Err(problems.into_report(&name, &sources));
    };
    let warnings = problems.into_warnings(&sources);
    let compile::Compiled { live, self_signed, sticky, blueprint } = compiled;
    Ok(Loaded { live, state_dir, warnings, self_signed, sticky, blueprint })
}
