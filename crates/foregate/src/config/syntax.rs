//! Text that is not TOML. The parser goes on after an error, and what it finds next is often only the
//! consequence of the first; here the consequences are left out.

use std::ops::Range;

use toml::de::{DeTable, DeValue, Error};

use super::diagnostic::{Problem, Problems};
use super::source::{Place, Source};

const REPEATED: &str = "duplicate key";
const VALUELESS: &str = "key with no value, expected `=`";

/// The text without the lines that are no more than a key: the parser ends there, and would not see the rest
/// of the file. `None` where there are none. Everything else stays where it is.
pub(super) fn mended(source: &Source, errors: &[Error]) -> Option<String> {
    let mut text = source.text.clone();
    for error in errors.iter().filter(|error| error.message() == VALUELESS) {
        let before = source.text.get(..span(source, error).start)?;
        let line = before.rfind('\n').map_or(0, |newline| newline + 1);
        let key = before.get(line..)?.trim_start();
        let Some(first) = key.chars().next().filter(|_| !key.contains(['=', '{', '['])) else { continue };
        let at = before.len() - key.len();
        let comment = format!("{:<width$}", '#', width = first.len_utf8());
        text.replace_range(at..at + first.len_utf8(), &comment);
    }
    (text != source.text).then_some(text)
}

/// The errors of a text that was mended, and of what the parser found when it had been.
pub(super) fn together(mut first: Vec<Error>, second: Vec<Error>) -> Vec<Error> {
    first.retain(|error| error.message() == VALUELESS);
    first.extend(second);
    first
}

/// The part of a file whose content cannot be relied on.
pub(super) struct Broken<'a> {
    source: &'a Source,
    lines: Vec<usize>,
    /// From the bracket that nothing closes to the end.
    open_from: Option<usize>,
    /// Whether the header of a table is wrong: what stands under it may belong anywhere.
    headless: bool,
}

impl Broken<'_> {
    /// Whether something wrong at this place is a mistake of its own.
    pub(super) fn spares(&self, problem: &Problem) -> bool {
        let Some(place) = problem.place().filter(|place| place.file == self.source.index) else {
            return true;
        };
        let line = line_of(self.source, place.start);
        let readable = !self.lines.contains(&line) && self.open_from.is_none_or(|open| place.start < open);
        readable && !(problem.is_absence() && self.hides(line))
    }

    /// Whether what is missing in the table that begins with this line may stand where nothing could be read.
    fn hides(&self, first: usize) -> bool {
        let after = next_header(self.source, first);
        self.headless
            || self.lines.iter().any(|line| (first..after).contains(line))
            || self.open_from.is_some_and(|open| (first..after).contains(&line_of(self.source, open)))
    }
}

/// The first line after this one that begins with a bracket, as headers of tables do.
fn next_header(source: &Source, line: usize) -> usize {
    let mut lines = source.text.lines().enumerate().skip(line + 1);
    lines.find(|(_, text)| text.trim_start().starts_with('[')).map_or(usize::MAX, |(line, _)| line)
}

/// Notes what is wrong with the text of a file. `None` if nothing is.
pub(super) fn report<'a>(
    source: &'a Source,
    tree: &DeTable<'_>,
    errors: &[Error],
    problems: &Problems,
) -> Option<Broken<'a>> {
    if errors.is_empty() {
        return None;
    }
    let unclosed = errors.iter().any(|error| error.message().starts_with("unclosed array,"))
        || errors.iter().any(|error| error.message().starts_with("unclosed inline table,"));
    let open_from = open_bracket(&source.text).filter(|_| unclosed);
    if let Some(open) = open_from {
        let (kind, bracket) = if source.text.get(open..).is_some_and(|rest| rest.starts_with('[')) {
            ("list", "]")
        } else {
            ("table", "}")
        };
        let problem = Problem::error(source.place(open..open + 1), format!("this {kind} is never closed"));
        problems.push(problem.help(format!("write the `{bracket}` that is missing")));
    }
    let mut lines: Vec<usize> = Vec::new();
    let mut headless = false;
    let mut ordered: Vec<(Range<usize>, &Error)> =
        errors.iter().map(|error| (span(source, error), error)).collect();
    ordered.sort_by_key(|(span, _)| span.start);
    for (span, error) in ordered {
        let line = line_of(source, span.start);
        let told = lines.contains(&line);
        lines.extend(line..=line_of(source, span.end));
        let is_header = source.text.lines().nth(line).is_some_and(|text| text.trim_start().starts_with('['));
        headless |= is_header;
        if is_header && error.message() != REPEATED {
            // Whose keys follow is not known.
            lines.extend(line..next_header(source, line).min(line_of(source, source.text.len()) + 1));
        }
        if open_from.is_some_and(|open| span.start > open) {
            continue;
        }
        if error.message() == REPEATED {
            if !is_in_repeated_table(source, span.start, errors) {
                problems.push(repeated(source, tree, span));
            }
        } else if !told {
            problems.push(wrong(source, span, error));
        }
    }
    Some(Broken { source, lines, open_from, headless })
}

fn span(source: &Source, error: &Error) -> Range<usize> {
    let end = source.text.len();
    error.span().unwrap_or(end..end)
}

fn wrong(source: &Source, span: Range<usize>, error: &Error) -> Problem {
    let problem = Problem::error(source.place(span.clone()), error.message());
    let text = source.text.get(span).unwrap_or_default();
    if error.message().starts_with("string values must be quoted") && !text.is_empty() {
        return problem.help(format!("write it in quotes: \"{text}\""));
    }
    problem
}

/// Where the outermost list or inline table begins that is still open when the text ends.
fn open_bracket(text: &str) -> Option<usize> {
    let mut open: Vec<(usize, char)> = Vec::new();
    let mut rest = text;
    let mut fresh_line = true;
    while let Some(c) = rest.chars().next() {
        let at = text.len() - rest.len();
        let mut skip = c.len_utf8();
        match c {
            '\n' => fresh_line = true,
            ' ' | '\t' | '\r' => {}
            '#' => skip = rest.find('\n').unwrap_or(rest.len()),
            '"' | '\'' => skip = string_length(rest, c),
            // The header of a table.
            '[' if fresh_line && open.is_empty() => skip = rest.find('\n').unwrap_or(rest.len()),
            '[' | '{' => open.push((at, c)),
            ']' | '}' => {
                let opening = if c == ']' { '[' } else { '{' };
                open.pop_if(|(_, top)| *top == opening);
            }
            _ => {}
        }
        fresh_line = matches!(c, '\n') || (fresh_line && matches!(c, ' ' | '\t' | '\r'));
        rest = rest.get(skip..).unwrap_or_default();
    }
    open.first().map(|(at, _)| *at)
}

/// How long the string is that a text begins with. One line's string ends with the line, closed or not.
fn string_length(text: &str, quote: char) -> usize {
    let triple: String = [quote; 3].iter().collect();
    if let Some(body) = text.strip_prefix(triple.as_str()) {
        return body.find(triple.as_str()).map_or(text.len(), |end| end + 6);
    }
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '\n' => return at,
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            _ if c == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn repeated(source: &Source, tree: &DeTable<'_>, span: Range<usize>) -> Problem {
    let key = source.text.get(span.clone()).unwrap_or_default();
    let problem = Problem::error(source.place(span.clone()), format!("`{key}` stands twice"));
    match first_of(source, tree, span.start, key) {
        Some(first) => problem.other(first, "here first"),
        None => problem,
    }
}

/// Of a table that stands twice, its keys are reported to stand twice as well.
fn is_in_repeated_table(source: &Source, at: usize, errors: &[Error]) -> bool {
    let above = source.text.get(..at).unwrap_or_default();
    let Some(header) = above.rfind("\n[").map(|newline| line_of(source, newline + 1)) else { return false };
    let on_it =
        |error: &Error| error.message() == REPEATED && line_of(source, span(source, error).start) == header;
    header != line_of(source, at) && errors.iter().any(on_it)
}

/// The place of the key that a duplicate repeats: the same table header, or the nearest equal key before it.
fn first_of(source: &Source, tree: &DeTable<'_>, at: usize, key: &str) -> Option<Place> {
    let line_start = source.text.get(..at)?.rfind('\n').map_or(0, |newline| newline + 1);
    let before_key = source.text.get(line_start..at)?.trim_start();
    if before_key.starts_with('[') {
        let header = format!("{before_key}{key}]");
        let mut start = 0;
        for line in source.text.split_inclusive('\n') {
            if start < line_start && line.trim_start().starts_with(&header) {
                let key_at = start + line.find(&header)? + before_key.len();
                return Some(source.place(key_at..key_at + key.len()));
            }
            start += line.len();
        }
    }
    let mut nearest = None;
    nearest_key(tree, source, at, key, &mut nearest);
    nearest
}

fn nearest_key(tree: &DeTable<'_>, source: &Source, before: usize, key: &str, nearest: &mut Option<Place>) {
    for (name, value) in tree {
        let place = source.place(name.span());
        let written = source.text.get(name.span());
        if written == Some(key) && place.start < before && nearest.is_none_or(|nearest| nearest < place) {
            *nearest = Some(place);
        }
        each_table(value.get_ref(), &mut |table| nearest_key(table, source, before, key, nearest));
    }
}

fn each_table(value: &DeValue<'_>, visit: &mut dyn FnMut(&DeTable<'_>)) {
    match value {
        DeValue::Table(table) => visit(table),
        DeValue::Array(list) => list.iter().for_each(|item| each_table(item.get_ref(), visit)),
        _ => {}
    }
}

fn line_of(source: &Source, at: usize) -> usize {
    source.text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::open_bracket;

    #[test]
    fn the_bracket_that_nothing_closes() {
        for (text, at) in [
            ("a = [1, 2]\n[b]\nc = {}\n", None),
            ("a = [1, 2\n[b]\nc = {}\n", Some(4)),
            ("a = \"[\"\nb = '['\nc = \"\"\"[\n[\"\"\"\nd = [ # [\n]\n", None),
            ("a = \"unclosed [\nb = [\n", Some(20)),
            ("[unclosed\na = { b = 1\n", Some(14)),
            ("  [a]\n  b = [ { c = 1 }, \n", Some(12)),
        ] {
            assert_eq!(open_bracket(text), at, "{text}");
        }
    }
}
