//! A cursor over the parsed file: typed access to keys, with every mistake noted at its place.
//!
//! A [`Table`] remembers which keys were asked for; [`Table::finish`] reports the others, so that the list
//! of known keys is the code that reads them. An accessor whose value is wrong notes that and answers
//! `None`, as if the key were absent: reading goes on, and the file is refused in the end.

use std::borrow::Cow;
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::diagnostic::{Problem, Problems};
use super::inherit::Said;
use super::reference::{self, Braces};
use super::source::{Place, Placed, Source};
use super::suggest;
use super::value::{self, Misfit};

/// What reading one file needs everywhere.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) source: &'a Source,
    pub(super) problems: &'a Problems,
}

/// A table being read.
pub(super) struct Table<'a> {
    reading: Reading<'a>,
    entries: &'a DeTable<'a>,
    place: Place,
    /// As messages name it: `sites.shop.routes[2]`. Empty for the whole file.
    name: String,
    known: RefCell<Vec<&'a str>>,
}

/// A value being read.
#[derive(Clone)]
pub(super) struct Value<'a> {
    reading: Reading<'a>,
    node: &'a Spanned<DeValue<'a>>,
    /// As messages name it: `server.timeouts.drain`.
    name: String,
}

impl<'a> Table<'a> {
    pub(super) fn whole(reading: Reading<'a>, entries: &'a DeTable<'a>) -> Table<'a> {
        let place = reading.source.place(0..0);
        Table { reading, entries, place, name: String::new(), known: RefCell::default() }
    }

    pub(super) fn place(&self) -> Place {
        self.place
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn problem(&self, problem: Problem) {
        self.reading.problems.push(problem);
    }

    pub(super) fn problems(&self) -> &'a Problems {
        self.reading.problems
    }

    /// The value of a key, which is known from now on.
    pub(super) fn get(&self, key: &'static str) -> Option<Value<'a>> {
        self.known.borrow_mut().push(key);
        self.entries.get(key).map(|node| self.value(key, node))
    }

    /// Reads the value of a key with `read`; `None` when it is absent or wrong.
    pub(super) fn read<T>(&self, key: &'static str, read: impl FnOnce(&Value<'a>) -> Option<T>) -> Option<T> {
        self.get(key).and_then(|value| read(&value))
    }

    /// The same for what "off" switches off or takes back.
    pub(super) fn said<T>(&self, key: &'static str, read: impl FnOnce(&Value<'a>) -> Option<T>) -> Said<T> {
        match self.get(key) {
            None => Said::Nothing,
            Some(value) if value.is_word("off") => Said::Off,
            Some(value) => read(&value).map_or(Said::Nothing, Said::Value),
        }
    }

    /// The table under a key.
    pub(super) fn table(&self, key: &'static str) -> Option<Table<'a>> {
        self.read(key, Value::table)
    }

    /// A key of the language that is not served yet: any value but a harmless one is refused.
    pub(super) fn later(&self, key: &'static str, harmless: impl FnOnce(&Value<'a>) -> bool) {
        if let Some(value) = self.get(key).filter(|value| !harmless(value)) {
            self.problem(Problem::not_yet(self.key_place(key), &value.name));
        }
    }

    /// The same where no value is harmless.
    pub(super) fn never_yet(&self, keys: &[&'static str]) {
        for key in keys {
            self.later(key, |_| false);
        }
    }

    /// Makes a key known that something else has read.
    pub(super) fn allow(&self, key: &'a str) {
        self.known.borrow_mut().push(key);
    }

    /// A key that belongs elsewhere; `where_to` says where.
    pub(super) fn misplaced(&self, keys: &[&'static str], where_to: &str) {
        for key in keys {
            if self.get(key).is_some() {
                let scope = match self.name.as_str() {
                    "" => "an included file".to_owned(),
                    name => format!("[{name}]"),
                };
                let message = format!("`{key}` does not belong into {scope}");
                self.problem(Problem::error(self.key_place(key), message).help(where_to));
            }
        }
    }

    /// Every entry, as the file orders them, for tables whose keys are names.
    pub(super) fn entries(&self) -> Vec<(Placed<&'a str>, Value<'a>)> {
        let mut entries: Vec<_> = self
            .entries
            .iter()
            .map(|(key, node)| {
                let name: &'a str = key.get_ref();
                (Placed::new(name, self.reading.source.place(key.span())), self.value(name, node))
            })
            .collect();
        entries.sort_by_key(|(key, _)| key.place);
        entries
    }

    /// Where a key stands, or else the table.
    pub(super) fn key_place(&self, key: &str) -> Place {
        let key = self.entries.get_key_value(key);
        key.map_or(self.place, |(key, _)| self.reading.source.place(key.span()))
    }

    /// Whether one of these keys is there with a slip in it, which [`Table::finish`] tells: that it is missing
    /// is then no news. Call it when all other keys are known.
    pub(super) fn misspells(&self, keys: &[&str]) -> bool {
        let known = self.known.borrow();
        let meant = |key: &str| suggest::nearest(key, known.iter().copied());
        let mut unknown =
            self.entries.keys().map(|key| key.get_ref()).filter(|key| !known.contains(&key.as_ref()));
        unknown.any(|key| meant(key).is_some_and(|word| keys.contains(&word)))
    }

    /// Reports every key that nothing asked for.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for (key, _) in self.entries() {
            if known.contains(&key.value) {
                continue;
            }
            let scope = match self.name.as_str() {
                "" => "at the top of the file".to_owned(),
                name => format!("in `{name}`"),
            };
            let problem = Problem::error(key.place, format!("unknown key `{}` {scope}", key.value));
            let problem = match suggest::nearest(key.value, known.iter().copied()) {
                Some(word) => problem.suggest(Some(word)),
                None if key.value == "include" => {
                    problem.help("`include` stands at the top of the main file, before the first [table]")
                }
                None => problem.help(format!("the keys here are {}", list(&known))),
            };
            self.problem(problem);
        }
    }

    fn value(&self, key: &str, node: &'a Spanned<DeValue<'a>>) -> Value<'a> {
        let key =
            if key.is_empty() || key.contains(|c: char| !(c.is_ascii_alphanumeric() || "_-".contains(c))) {
                format!("\"{key}\"")
            } else {
                key.to_owned()
            };
        let name = if self.name.is_empty() { key } else { format!("{}.{key}", self.name) };
        Value { reading: self.reading, node, name }
    }
}

fn list(known: &[&str]) -> String {
    let mut known = known.to_vec();
    known.sort_unstable();
    known.dedup();
    suggest::quoted(&known)
}

impl<'a> Value<'a> {
    pub(super) fn place(&self) -> Place {
        self.reading.source.place(self.node.span())
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn problem(&self, problem: Problem) {
        self.reading.problems.push(problem);
    }

    /// Notes that the value is of the wrong kind.
    pub(super) fn must_be<T>(&self, expected: &str) -> Option<T> {
        self.must_be_or(expected, None)
    }

    /// The same with advice.
    fn must_be_or<T>(&self, expected: &str, help: Option<String>) -> Option<T> {
        let found = match self.node.get_ref() {
            DeValue::String(_) => "a string",
            DeValue::Integer(_) => "an integer",
            DeValue::Float(_) => "a float",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) => "a table",
        };
        let problem =
            Problem::error(self.place(), format!("`{}` must be {expected}, not {found}", self.name));
        self.problem(match help {
            Some(help) => problem.help(help),
            None => problem,
        });
        None
    }

    /// A number or a boolean as it is written, and what to do where it should have been a string.
    fn bare(&self) -> Option<(&'a str, String)> {
        let node = self.node.get_ref();
        if !(node.is_integer() || node.is_float() || node.is_bool()) {
            return None;
        }
        let text = self.reading.source.text.get(self.node.span())?;
        Some((text, format!("write it with quotes: \"{text}\"")))
    }

    pub(super) fn table(&self) -> Option<Table<'a>> {
        self.table_or("a table")
    }

    /// The same where something else could stand as well.
    pub(super) fn table_or(&self, expected: &str) -> Option<Table<'a>> {
        match self.node.get_ref() {
            DeValue::Table(entries) => Some(Table {
                reading: self.reading,
                entries,
                place: self.place(),
                name: self.name.clone(),
                known: RefCell::default(),
            }),
            _ => self.must_be(expected),
        }
    }

    /// Whether this is that very string.
    pub(super) fn is_word(&self, word: &str) -> bool {
        self.node.get_ref().as_str() == Some(word)
    }

    pub(super) fn is_string(&self) -> bool {
        self.node.get_ref().is_str()
    }

    pub(super) fn is_table(&self) -> bool {
        self.node.get_ref().is_table()
    }

    pub(super) fn is_empty_list(&self) -> bool {
        self.node.get_ref().as_array().is_some_and(|list| list.is_empty())
    }

    /// A string, with its references followed.
    pub(super) fn string(&self) -> Option<Placed<String>> {
        self.text("a string", Braces::Text)
    }

    /// A string that is compiled as a template afterwards.
    pub(super) fn template_text(&self) -> Option<Placed<String>> {
        self.text("a string", Braces::Template)
    }

    pub(super) fn text(&self, expected: &str, braces: Braces) -> Option<Placed<String>> {
        self.text_if(expected, braces, |_| true)
    }

    /// The same; quotes are advised where `fits` takes what stands there without them.
    fn text_if(
        &self,
        expected: &str,
        braces: Braces,
        fits: impl FnOnce(&str) -> bool,
    ) -> Option<Placed<String>> {
        let Some(text) = self.node.get_ref().as_str() else {
            let quoted = self.bare().filter(|(text, _)| fits(text));
            return self.must_be_or(expected, quoted.map(|(_, help)| help));
        };
        match reference::resolve(text, self.reading.source, braces) {
            Ok(text) => Some(Placed::new(text.into_owned(), self.place())),
            Err(unresolved) => {
                let place = self.place_of(&unresolved.written);
                self.problem(Problem::misfit(place, unresolved.misfit));
                None
            }
        }
    }

    /// Where a part of the string stands, if the file writes it as it reads.
    pub(super) fn place_of(&self, part: &str) -> Place {
        let whole = self.node.span();
        let found = self.reading.source.text.get(whole.clone()).and_then(|text| text.find(part));
        let span = found.map_or(whole.clone(), |at| whole.start + at..whole.start + at + part.len());
        self.reading.source.place(span)
    }

    /// A string that one of the small grammars reads.
    pub(super) fn parse<T>(
        &self,
        expected: &str,
        mut parse: impl FnMut(&str) -> Result<T, Misfit>,
    ) -> Option<Placed<T>> {
        let text = self.text_if(expected, Braces::Text, |bare| parse(bare).is_ok())?;
        match parse(&text.value) {
            Ok(value) => Some(Placed::new(value, text.place)),
            Err(misfit) => {
                self.problem(Problem::misfit(text.place, misfit));
                None
            }
        }
    }

    pub(super) fn bool(&self) -> Option<bool> {
        self.switch("true or false")
    }

    pub(super) fn placed_bool(&self) -> Option<Placed<bool>> {
        self.bool().map(|value| Placed::new(value, self.place()))
    }

    /// A boolean where something else could stand as well.
    pub(super) fn switch(&self, expected: &str) -> Option<bool> {
        match self.node.get_ref() {
            DeValue::Boolean(value) => Some(*value),
            DeValue::String(text) if matches!(text.as_ref(), "true" | "false") => {
                self.must_be_or(expected, Some(format!("write it without quotes: {text}")))
            }
            _ => self.must_be(expected),
        }
    }

    /// A whole number within a range; a string is one too if a reference made it.
    pub(super) fn number<N: TryFrom<i128>>(&self, least: i128, most: i128, expected: &str) -> Option<N> {
        let number = match self.node.get_ref() {
            DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix()).ok(),
            DeValue::String(text) => {
                let resolved = reference::resolve(text, self.reading.source, Braces::Text);
                match resolved {
                    Ok(Cow::Borrowed(text)) => {
                        let number = text.parse().ok().filter(|number| (least..=most).contains(number));
                        let help = number.map(|number| format!("write it without quotes: {number}"));
                        return self.must_be_or(expected, help);
                    }
                    Ok(Cow::Owned(text)) => text.trim().parse().ok(),
                    // Reports what is wrong with the reference.
                    Err(_) => return self.string().and(None),
                }
            }
            _ => return self.must_be(expected),
        };
        let fits =
            number.filter(|number| (least..=most).contains(number)).and_then(|number| number.try_into().ok());
        if fits.is_none() {
            let message = format!("`{}` must be {expected}", self.name);
            self.problem(Problem::error(self.place(), message));
        }
        fits
    }

    /// A duration, which may be zero.
    pub(super) fn duration_or_zero(&self) -> Option<Duration> {
        self.parse("a duration such as \"30s\"", value::duration).map(|duration| duration.value)
    }

    /// A duration that something can be waited for.
    pub(super) fn duration(&self) -> Option<Duration> {
        let duration = self.duration_or_zero()?;
        if duration.is_zero() {
            let message = format!("`{}` must be longer than nothing", self.name);
            self.problem(Problem::error(self.place(), message));
            return None;
        }
        Some(duration)
    }

    pub(super) fn size(&self) -> Option<u64> {
        self.parse("a size such as \"10MiB\"", value::size).map(|size| size.value)
    }

    /// A path, relative to the file it stands in.
    pub(super) fn path(&self) -> Option<Placed<PathBuf>> {
        let text = self.text("a path", Braces::Text)?;
        if text.value.is_empty() {
            self.problem(Problem::error(text.place, format!("`{}` is empty", self.name)));
            return None;
        }
        Some(Placed::new(self.reading.source.path(&text.value), text.place))
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let expected = suggest::alternatives(&names);
        let is_word = |text: &str| words.iter().any(|(word, _)| *word == text);
        let text = self.text_if(&expected, Braces::Text, is_word)?;
        if let Some((_, meaning)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(*meaning);
        }
        let problem = Problem::error(text.place, format!("`{}` must be {expected}", self.name));
        self.problem(problem.suggest(suggest::nearest(&text.value, words.iter().map(|(word, _)| *word))));
        None
    }

    /// The elements of a list, or the one value that stands for a list of one.
    pub(super) fn one_or_many(&self) -> Vec<Value<'a>> {
        match self.node.get_ref() {
            DeValue::Array(list) => list
                .iter()
                .enumerate()
                .map(|(index, node)| Value {
                    reading: self.reading,
                    node,
                    name: format!("{}[{index}]", self.name),
                })
                .collect(),
            _ => vec![self.clone()],
        }
    }

    /// Reads every element with `read`; those that are wrong are left out.
    pub(super) fn each<T>(&self, read: impl FnMut(&Value<'a>) -> Option<T>) -> Vec<T> {
        self.one_or_many().iter().filter_map(read).collect()
    }

    /// The same, where an empty list means nothing.
    pub(super) fn at_least_one<T>(&self, read: impl FnMut(&Value<'a>) -> Option<T>) -> Option<Vec<T>> {
        if self.is_empty_list() {
            self.problem(Problem::error(self.place(), format!("`{}` is an empty list", self.name)));
            return None;
        }
        let read = self.each(read);
        (!read.is_empty()).then_some(read)
    }
}
