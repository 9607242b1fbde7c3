//! `{env.NAME}` and `{file.PATH}` in strings: secrets and per-machine values, read when the file is.

use std::borrow::Cow;
use std::env;
use std::fs;

use super::source::Source;
use super::value::Misfit;

/// What becomes of a string afterwards, which decides what braces in it mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Braces {
    /// Nothing: they are text, as in a regular expression. Only a reference is replaced.
    Text,
    /// It is compiled as a template: `{{` is a brace, and so must be every brace of a value put in.
    Template,
}

/// A reference that cannot be followed; `written` is its text in the file, as a place to point at.
#[derive(Debug)]
pub(super) struct Unresolved {
    pub(super) written: String,
    pub(super) misfit: Misfit,
}

/// The text with every reference replaced by what it names.
pub(super) fn resolve<'t>(
    text: &'t str,
    source: &Source,
    braces: Braces,
) -> Result<Cow<'t, str>, Unresolved> {
    if !text.contains("{env.") && !text.contains("{file.") {
        return Ok(Cow::Borrowed(text));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        if let Some(escaped) = from.strip_prefix('{').filter(|inner| inner.starts_with('{')) {
            rest = match escaped.split_once("}}").filter(|_| braces == Braces::Text && is_reference(escaped))
            {
                Some((inner, tail)) => {
                    out.push_str(inner);
                    out.push('}');
                    tail
                }
                None => {
                    out.push_str("{{");
                    escaped.get(1..).unwrap_or_default()
                }
            };
        } else if is_reference(from) {
            let Some((written, tail)) = from.split_once('}') else {
                let misfit = Misfit::new(format!("\"{from}\" has no closing brace"));
                return Err(Unresolved { written: from.to_owned(), misfit });
            };
            let value = value_of(written.trim_start_matches('{'), source)
                .map_err(|misfit| Unresolved { written: format!("{written}}}"), misfit })?;
            match braces {
                Braces::Text => out.push_str(&value),
                Braces::Template => out.push_str(&value.replace('{', "{{").replace('}', "}}")),
            }
            rest = tail;
        } else {
            out.push('{');
            rest = from.get(1..).unwrap_or_default();
        }
    }
    out.push_str(rest);
    Ok(Cow::Owned(out))
}

/// Every reference in a text as it is written, and what it stands for.
pub(super) fn values(text: &str, source: &Source) -> Vec<(String, String)> {
    let starts =
        text.match_indices('{').filter_map(|(at, _)| text.get(at..).filter(|from| is_reference(from)));
    let written = starts.filter_map(|from| from.split_once('}').map(|(written, _)| written));
    written
        .filter_map(|written| {
            let value = value_of(written.trim_start_matches('{'), source).ok()?;
            Some((format!("{written}}}"), value)).filter(|(_, value)| !value.is_empty())
        })
        .collect()
}

fn is_reference(from: &str) -> bool {
    from.starts_with("{env.") || from.starts_with("{file.")
}

fn value_of(name: &str, source: &Source) -> Result<String, Misfit> {
    if let Some(name) = name.strip_prefix("env.") {
        return env::var(name).map_err(|error| match error {
            env::VarError::NotPresent => Misfit::new(format!("the environment variable {name} is not set"))
                .help(format!("set {name} where foregate is started, or write the value here")),
            env::VarError::NotUnicode(_) => {
                Misfit::new(format!("the environment variable {name} is not UTF-8 text"))
            }
        });
    }
    let path = source.path(name.strip_prefix("file.").unwrap_or(name));
    match fs::read_to_string(&path) {
        // Editors and `echo` end a file with a newline that is no part of a secret.
        Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).to_owned()),
        Err(error) => Err(Misfit::new(format!("{} cannot be read: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> Source {
        let folder = env!("CARGO_MANIFEST_DIR").into();
        Source { name: "test.toml".to_owned(), folder, text: String::new(), index: 0 }
    }

    fn resolved(text: &str, braces: Braces) -> String {
        resolve(text, &source(), braces).unwrap().into_owned()
    }

    #[test]
    fn references_are_replaced_and_other_braces_stay() {
        // cargo sets this variable for the tests it runs.
        assert_eq!(resolved("a {env.CARGO_PKG_NAME} b", Braces::Text), "a foregate b");
        assert_eq!(resolved("~^/[0-9]{2}/{env.CARGO_PKG_NAME}", Braces::Text), "~^/[0-9]{2}/foregate");
        assert_eq!(resolved("{{env.CARGO_PKG_NAME}}", Braces::Text), "{env.CARGO_PKG_NAME}");
        assert_eq!(resolved("{{env.CARGO_PKG_NAME}}", Braces::Template), "{{env.CARGO_PKG_NAME}}");
        assert_eq!(resolved("{host}{env.CARGO_PKG_NAME}", Braces::Template), "{host}foregate");
        assert_eq!(resolved("{{}}", Braces::Text), "{{}}");
    }

    #[test]
    fn files_are_read_relative_to_the_file_and_escaped_for_templates() {
        let folder = env::temp_dir().join(format!("foregate-reference-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("secret"), "a{b}\n").unwrap();
        let source = Source { folder: folder.clone(), ..source() };
        assert_eq!(resolve("x{file.secret}", &source, Braces::Text).unwrap(), "xa{b}");
        assert_eq!(resolve("x{file.secret}", &source, Braces::Template).unwrap(), "xa{{b}}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_cannot_be_followed_is_named() {
        let unresolved = resolve("x{env.FOREGATE_UNSET}y", &source(), Braces::Text).unwrap_err();
        assert_eq!(unresolved.written, "{env.FOREGATE_UNSET}");
        assert_eq!(unresolved.misfit.what, "the environment variable FOREGATE_UNSET is not set");
        assert!(resolve("{file.no/such/file}", &source(), Braces::Text).is_err());
        assert!(resolve("{env.OPEN", &source(), Braces::Text).is_err());
    }
}
