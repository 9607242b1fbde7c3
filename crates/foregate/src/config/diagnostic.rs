//! What is wrong with a configuration, where, and what to write instead.
//!
//! Problems are collected, never thrown: an operator who has made three mistakes is told of three.

use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::reference;
use super::source::{Place, Source};
use super::value::Misfit;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Error,
    Warning,
}

/// So many letters of a secret in a row give some of it away.
const PIECE: usize = 4;
/// Of a longer one the rest is not looked for.
const MOST_LOOKED_AT: usize = 4096;

/// One thing to be said about a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    severity: Severity,
    message: String,
    /// `None` only where no file could be read at all.
    place: Option<Place>,
    /// Another place that belongs to it, such as the first of two equal names, and what stands there.
    other: Option<(Place, String)>,
    help: Option<String>,
    /// Whether it is that something is not there, which is no news where the text could not be read.
    absence: bool,
}

impl Problem {
    pub(super) fn error(place: Place, message: impl Into<String>) -> Problem {
        Problem { place: Some(place), ..Problem::unreadable(message) }
    }

    /// What is there is not enough.
    pub(super) fn absence(place: Place, message: impl Into<String>) -> Problem {
        Problem { absence: true, ..Problem::error(place, message) }
    }

    pub(super) fn warning(place: Place, message: impl Into<String>) -> Problem {
        Problem { severity: Severity::Warning, ..Problem::error(place, message) }
    }

    pub(super) fn misfit(place: Place, misfit: Misfit) -> Problem {
        Problem { help: misfit.help, ..Problem::error(place, misfit.what) }
    }

    /// A key of the language that this version does not know how to serve.
    pub(super) fn not_yet(place: Place, what: &str) -> Problem {
        Problem::error(place, format!("`{what}` is not supported yet"))
    }

    pub(super) fn unreadable(message: impl Into<String>) -> Problem {
        Problem {
            severity: Severity::Error,
            message: message.into(),
            place: None,
            other: None,
            help: None,
            absence: false,
        }
    }

    /// A warning of the configuration as a whole.
    pub(super) fn overall(message: impl Into<String>) -> Problem {
        Problem { severity: Severity::Warning, ..Problem::unreadable(message) }
    }

    pub(super) fn place(&self) -> Option<Place> {
        self.place
    }

    pub(super) fn is_absence(&self) -> bool {
        self.absence
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }

    /// "did you mean", where there is something to mean.
    pub(super) fn suggest(self, word: Option<&str>) -> Problem {
        match word {
            Some(word) => self.help(format!("did you mean `{word}`?")),
            None => self,
        }
    }

    pub(super) fn other(mut self, place: Place, label: impl Into<String>) -> Problem {
        self.other = Some((place, label.into()));
        self
    }

    /// Nothing that only a reference stands for is repeated: it may be a secret, and reports go to logs and to whoever asks.
    fn without_secrets(&self, sources: &[Source], all: &[(String, String)]) -> Problem {
        let source = self.place.and_then(|place| sources.get(place.file));
        let written =
            self.place.and_then(|place| source?.text.get(place.start..place.end)).unwrap_or_default();
        let own = source.map(|source| reference::values(written, source)).unwrap_or_default();
        let mut problem = self.clone();
        let is_long = |value: &str| value.chars().count() > PIECE;
        let elsewhere = all.iter().filter(|(_, value)| is_long(value));
        for (reference, value) in own.iter().chain(elsewhere) {
            problem.message = problem.message.replace(value.as_str(), reference);
            problem.help = problem.help.map(|help| help.replace(value.as_str(), reference));
        }
        let said = format!("{} {}", problem.message, problem.help.as_deref().unwrap_or_default());
        let repeats = |value: &str| {
            let letters: Vec<char> = value.chars().take(MOST_LOOKED_AT).collect();
            letters.windows(PIECE).any(|piece| said.contains(&piece.iter().collect::<String>()))
        };
        if let Some((reference, _)) = own.iter().find(|(_, value)| repeats(value)) {
            problem.message = format!("what {reference} stands for cannot stand here");
            problem.help = None;
        }
        problem
    }

    fn render(&self, sources: &[Source]) -> String {
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let title = level.primary_title(self.message.as_str());
        let mut group = Group::with_title(title);
        let visible_place = self.place.and_then(|place| visible(place, sources));
        if let Some((source, range)) = visible_place.clone().filter(|(source, _)| source.may_be_anything()) {
            let line = source.text.get(..range.start).unwrap_or_default().lines().count().max(1);
            let place = format!("{}, line {line}", source.name);
            group = group.element(Level::NOTE.message(place));
        } else if let Some((source, range)) = visible_place {
            let mut snippet = Snippet::source(source.text.as_str())
                .path(source.name.as_str())
                .annotation(AnnotationKind::Primary.span(range));
            let other =
                self.other.as_ref().and_then(|(place, label)| Some((visible(*place, sources)?, label)));
            match other {
                Some(((elsewhere, range), label)) if elsewhere.index == source.index => {
                    snippet = snippet.annotation(AnnotationKind::Context.span(range).label(label.as_str()));
                    group = group.element(snippet);
                }
                Some(((elsewhere, range), label)) => {
                    let second = Snippet::source(elsewhere.text.as_str())
                        .path(elsewhere.name.as_str())
                        .annotation(AnnotationKind::Context.span(range).label(label.as_str()));
                    group = group.element(snippet).element(second);
                }
                None => group = group.element(snippet),
            }
        }
        if let Some(help) = &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        Renderer::plain().render(&[group])
    }
}

/// The part of a place that is worth a caret: its first line, and at least one column.
fn visible(place: Place, sources: &[Source]) -> Option<(&Source, Range<usize>)> {
    let source = sources.get(place.file)?;
    let text = source.text.get(place.start..place.end)?;
    let first_line = text.lines().next().unwrap_or_default().trim_end();
    Some((source, place.start..place.start + first_line.len()))
}

/// The collection that every step of loading adds to.
#[derive(Debug, Default)]
pub(super) struct Problems {
    list: RefCell<Vec<Problem>>,
}

impl Problems {
    pub(super) fn push(&self, problem: Problem) {
        let mut list = self.list.borrow_mut();
        // A mistake in [defaults] or in a host that stands twice would otherwise be told once per use.
        if !list.contains(&problem) {
            list.push(problem);
        }
    }

    /// Takes what was found since `mark` and fails `keep`.
    pub(super) fn retain_since(&self, mark: usize, keep: impl Fn(&Problem) -> bool) {
        let mut list = self.list.borrow_mut();
        let mut index = 0;
        list.retain(|problem| {
            index += 1;
            index <= mark || keep(problem)
        });
    }

    pub(super) fn count(&self) -> usize {
        self.list.borrow().len()
    }

    pub(super) fn any_error(&self) -> bool {
        self.list.borrow().iter().any(|problem| problem.severity == Severity::Error)
    }

    /// The rendered warnings of a configuration without errors.
    pub(super) fn into_warnings(self, sources: &[Source]) -> Vec<String> {
        self.rendered(Severity::Warning, sources)
    }

    /// The rendered errors. `name` is that of the main file, which may not even have been readable.
    pub(super) fn into_report(self, name: &str, sources: &[Source]) -> Report {
        let mut files: Vec<String> = Vec::new();
        let errors = self.rendered(Severity::Error, sources);
        for problem in self.list.borrow().iter().filter(|problem| problem.severity == Severity::Error) {
            let file = problem.place.and_then(|place| sources.get(place.file));
            let file = file.map_or(name, |source| source.name.as_str());
            if !files.iter().any(|known| known == file) {
                files.push(file.to_owned());
            }
        }
        Report { errors, files: files.join(", ") }
    }

    fn rendered(&self, severity: Severity, sources: &[Source]) -> Vec<String> {
        let mut list = self.list.borrow_mut();
        list.sort_by_key(|problem| problem.place);
        let mut concerned = list.iter().filter(|problem| problem.severity == severity).peekable();
        if concerned.peek().is_none() {
            return Vec::new();
        }
        let secrets: Vec<_> =
            sources.iter().flat_map(|source| reference::values(&source.text, source)).collect();
        concerned.map(|problem| problem.without_secrets(sources, &secrets).render(sources)).collect()
    }
}

/// So many errors are told in full: nobody reads more before mending some of them.
const TOLD: usize = 100;

/// Every error of a configuration, rendered; displays them in the order of the files, then their number.
#[derive(Debug)]
pub(crate) struct Report {
    errors: Vec<String>,
    files: String,
}

#[cfg(test)]
impl Report {
    /// The rendered errors, one by one.
    pub(crate) fn errors(&self) -> &[String] {
        &self.errors
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in self.errors.iter().take(TOLD) {
            writeln!(f, "{error}\n")?;
        }
        let count = self.errors.len();
        if count > TOLD {
            writeln!(f, "and {} more, which are told once there are fewer\n", count - TOLD)?;
        }
        write!(f, "{count} error{} in {}", if count == 1 { "" } else { "s" }, self.files)
    }
}

impl std::error::Error for Report {}
