//! Values of headers and redirects with variables in braces: `X-Real-IP: {client_ip}`.
//!
//! Compiled at load; rendering only copies. References that are read at load (`{env.X}`, `{file./x}`) are
//! replaced by the configuration before a text comes here.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::path::push_escape;

/// A compiled value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    parts: Box<[Part]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(Box<str>),
    Variable(Variable),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    ClientIp,
    Host,
    Wildcard,
    Path,
    Query,
    Uri,
    Scheme,
    RequestId,
    ClientCertSubject,
    ClientCertSan,
    ClientCertFingerprint,
    /// `{1}` to `{9}`.
    Group(u8),
}

const NAMES: [(&str, Variable); 11] = [
    ("client_ip", Variable::ClientIp),
    ("host", Variable::Host),
    ("host.1", Variable::Wildcard),
    ("path", Variable::Path),
    ("query", Variable::Query),
    ("uri", Variable::Uri),
    ("scheme", Variable::Scheme),
    ("request_id", Variable::RequestId),
    ("client_cert.subject", Variable::ClientCertSubject),
    ("client_cert.san", Variable::ClientCertSan),
    ("client_cert.fingerprint", Variable::ClientCertFingerprint),
];

/// Why a text is no template. `at` counts bytes from the beginning of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    #[error("this \"{{\" is never closed; a brace itself is written \"{{{{\"")]
    Unclosed { at: usize },
    #[error("this \"}}\" closes nothing; a brace itself is written \"}}}}\"")]
    Unopened { at: usize },
    #[error("there is no variable \"{name}\"")]
    Unknown {
        name: Box<str>,
        /// The variable that was probably meant.
        suggestion: Option<&'static str>,
    },
}

/// What the variables of one request stand for.
#[derive(Clone, Copy, Debug)]
pub struct Variables<'a> {
    pub client_ip: IpAddr,
    /// Without port.
    pub host: &'a str,
    /// What the `*` of the site's host matched: `{host.1}`.
    pub wildcard: Option<&'a str>,
    /// As the client sent it.
    pub path: &'a str,
    /// Without its `?`.
    pub query: Option<&'a str>,
    /// `http` or `https`.
    pub scheme: &'a str,
    pub request_id: &'a str,
    /// Of a client that has shown none, all three are "".
    pub client_cert: Option<ClientCert<'a>>,
    /// The groups of the route's regular expression: `{1}` is the first. One that is absent is "".
    pub captures: &'a [&'a str],
}

/// What a client's certificate says, that is good by the rules of the site.
#[derive(Clone, Copy, Debug)]
pub struct ClientCert<'a> {
    pub subject: &'a str,
    pub san: &'a str,
    pub fingerprint: &'a str,
}

impl Template {
    /// Compiles a value. `{{` and `}}` are braces.
    pub fn parse(text: &str) -> Result<Template, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(brace) = rest.find(['{', '}']) {
            let (before, from_brace) = rest.split_at(brace);
            let at = text.len() - from_brace.len();
            literal.push_str(before);
            if let Some(after) = from_brace.strip_prefix("{{") {
                literal.push('{');
                rest = after;
            } else if let Some(after) = from_brace.strip_prefix("}}") {
                literal.push('}');
                rest = after;
            } else if let Some(after) = from_brace.strip_prefix('{') {
                let (name, beyond) = after.split_once('}').ok_or(TemplateError::Unclosed { at })?;
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal).into()));
                }
                parts.push(Part::Variable(variable(name)?));
                rest = beyond;
            } else {
                return Err(TemplateError::Unopened { at });
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal.into()));
        }
        Ok(Template { parts: parts.into() })
    }

    /// A template that renders as `text`, whatever stands in it.
    pub fn literal(text: &str) -> Template {
        let part = (!text.is_empty()).then(|| Part::Literal(text.into()));
        Template { parts: part.into_iter().collect() }
    }

    /// The text, when it is the same for every request: it can be made into a header value at load.
    pub fn as_literal(&self) -> Option<&str> {
        match &*self.parts {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// Appends the value for one request. It may hold any character the client sent in its path and query
    /// and any that the operator wrote: whoever makes a field of it checks it as a field value.
    pub fn render(&self, variables: &Variables<'_>, out: &mut String) {
        self.render_by(variables, out, |out, text, _| out.push_str(text));
    }

    /// Appends the value as part of a request target: what may not stand in one (RFC 9112, section 3.2) is
    /// percent-encoded, and no value but `{query}` and `{uri}` can begin a query.
    pub(crate) fn render_target(&self, variables: &Variables<'_>, out: &mut String) {
        self.render_by(variables, out, |out, text, from| {
            let keeps_query = matches!(from, None | Some(Variable::Query | Variable::Uri));
            push_target(out, text, keeps_query);
        });
    }

    /// Whether a target made of this brings its own query.
    pub(crate) fn holds_query(&self) -> bool {
        self.parts.iter().any(|part| match part {
            Part::Literal(text) => text.contains('?'),
            Part::Variable(variable) => *variable == Variable::Uri,
        })
    }

    /// The highest `{n}` in it, 0 when there is none.
    pub fn uses_captures(&self) -> u8 {
        let group = |part: &Part| match part {
            Part::Variable(Variable::Group(n)) => *n,
            _ => 0,
        };
        self.parts.iter().map(group).max().unwrap_or(0)
    }

    /// `push` is told which variable a text is from, or none for what the operator wrote.
    fn render_by(&self, v: &Variables<'_>, out: &mut String, push: fn(&mut String, &str, Option<Variable>)) {
        for part in &self.parts {
            let variable = match part {
                Part::Literal(text) => {
                    push(out, text, None);
                    continue;
                }
                Part::Variable(variable) => *variable,
            };
            let text = match variable {
                Variable::ClientIp => {
                    // Digits, dots and colons: fit for every place. Writing to a String does not fail.
                    let _ = write!(out, "{}", v.client_ip);
                    continue;
                }
                Variable::Host => v.host,
                Variable::Wildcard => v.wildcard.unwrap_or_default(),
                Variable::Path => v.path,
                Variable::Query => v.query.unwrap_or_default(),
                Variable::Uri => {
                    push(out, v.path, Some(Variable::Path));
                    let Some(query) = v.query else { continue };
                    out.push('?');
                    query
                }
                Variable::Scheme => v.scheme,
                Variable::RequestId => v.request_id,
                Variable::ClientCertSubject => v.client_cert.map_or("", |client| client.subject),
                Variable::ClientCertSan => v.client_cert.map_or("", |client| client.san),
                Variable::ClientCertFingerprint => v.client_cert.map_or("", |client| client.fingerprint),
                Variable::Group(n) => v.captures.get(usize::from(n) - 1).copied().unwrap_or_default(),
            };
            push(out, text, Some(variable));
        }
    }
}

/// Appends `text` with everything encoded that a request target cannot hold.
pub(crate) fn push_target(out: &mut String, text: &str, keeps_query: bool) {
    for c in text.chars() {
        match c {
            '?' if !keeps_query => push_escape(out, b'?'),
            '"' | '#' | '<' | '>' | '`' | '\\' | '^' | '{' | '|' | '}' | '\0'..=' ' | '\x7f' => {
                push_escape(out, c as u8);
            }
            c if c.is_ascii() => out.push(c),
            c => c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| push_escape(out, byte)),
        }
    }
}

fn variable(name: &str) -> Result<Variable, TemplateError> {
    if let Some((_, variable)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Ok(*variable);
    }
    if let [digit @ b'1'..=b'9'] = name.as_bytes() {
        return Ok(Variable::Group(digit - b'0'));
    }
    let suggestion = NAMES
        .iter()
        .map(|(known, _)| (edits(known, name), *known))
        .filter(|(edits, known)| *edits <= known.len().div_ceil(3))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, known)| known);
    Err(TemplateError::Unknown { name: name.into(), suggestion })
}

/// How many characters have to be changed, added or left out (Levenshtein).
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (above, a) in from.chars().enumerate() {
        let mut diagonal = above;
        let mut left = above + 1;
        let mut columns = row.iter_mut();
        if let Some(first) = columns.next() {
            *first = left;
        }
        for (cell, b) in columns.zip(to.chars()) {
            let changed = diagonal + usize::from(a != b);
            diagonal = *cell;
            left = changed.min(*cell + 1).min(left + 1);
            *cell = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn variables<'a>(captures: &'a [&'a str]) -> Variables<'a> {
        Variables {
            client_ip: "2001:db8::1".parse().unwrap(),
            host: "eu.shop.example",
            wildcard: Some("eu"),
            path: "/a b",
            query: Some("q=1?2"),
            scheme: "https",
            request_id: "id?7",
            client_cert: None,
            captures,
        }
    }

    fn rendered(text: &str) -> String {
        let mut out = String::new();
        Template::parse(text).unwrap().render(&variables(&["x", "y?"]), &mut out);
        out
    }

    fn target(text: &str) -> String {
        let mut out = String::new();
        Template::parse(text).unwrap().render_target(&variables(&["x", "y?"]), &mut out);
        out
    }

    #[test]
    fn every_variable_is_rendered() {
        let all = "{client_ip} {host} {host.1} {path} {query} {uri} {scheme} {request_id} {1}{2}{3}{9}.";
        assert_eq!(rendered(all), "2001:db8::1 eu.shop.example eu /a b q=1?2 /a b?q=1?2 https id?7 xy?.");
        assert_eq!(rendered("{{host}} {{{host}}}"), "{host} {eu.shop.example}");
        assert_eq!(rendered(""), "");
        let certified = "{client_cert.subject}|{client_cert.san}|{client_cert.fingerprint}";
        assert_eq!(rendered(certified), "||");
        let shown = ClientCert { subject: "CN=a", san: "DNS:a.test", fingerprint: "0f" };
        let mut out = String::new();
        let variables = Variables { client_cert: Some(shown), ..variables(&[]) };
        Template::parse(certified).unwrap().render(&variables, &mut out);
        assert_eq!(out, "CN=a|DNS:a.test|0f");
    }

    #[test]
    fn absent_values_are_empty() {
        let template = Template::parse("[{host.1}{query}{1}]{uri}").unwrap();
        let mut out = String::new();
        template.render(&Variables { wildcard: None, query: None, ..variables(&[]) }, &mut out);
        assert_eq!(out, "[]/a b");
    }

    #[test]
    fn literals_are_known_at_load() {
        assert_eq!(Template::parse("no {{variable}}").unwrap().as_literal(), Some("no {variable}"));
        assert_eq!(Template::parse("").unwrap().as_literal(), Some(""));
        assert_eq!(Template::literal("{host}").as_literal(), Some("{host}"));
        assert_eq!(Template::literal("").as_literal(), Some(""));
        assert_eq!(Template::parse("a{host}").unwrap().as_literal(), None);
        assert_eq!(Template::parse("{2}{1}").unwrap().uses_captures(), 2);
        assert_eq!(Template::parse("{host}").unwrap().uses_captures(), 0);
    }

    #[test]
    fn errors_say_where_and_what() {
        let error = |text| Template::parse(text).unwrap_err();
        assert_eq!(error("ab{host"), TemplateError::Unclosed { at: 2 });
        assert_eq!(error("a}b"), TemplateError::Unopened { at: 1 });
        for (text, name, suggestion) in [
            ("ü{hots}", "hots", Some("host")),
            ("xx{client-ip}", "client-ip", Some("client_ip")),
            ("xx{Query}", "Query", Some("query")),
            ("xx{0}", "0", None),
            ("xx{10}", "10", None),
            ("xx{}", "", None),
            ("xx{nonsense}", "nonsense", None),
        ] {
            assert_eq!(error(text), TemplateError::Unknown { name: name.into(), suggestion }, "{text}");
        }
        assert!(error("{").to_string().contains("\"{\" is never closed"));
    }

    #[test]
    fn targets_are_encoded() {
        assert_eq!(target("/{path}|ü\r\n#"), "//a%20b%7C%C3%BC%0D%0A%23");
        assert_eq!(target("/{2}?{query}&r={request_id}"), "/y%3F?q=1?2&r=id%3F7");
        assert_eq!(target("{uri}"), "/a%20b?q=1?2");
        assert!(Template::parse("/x?{query}").unwrap().holds_query());
        assert!(Template::parse("{uri}").unwrap().holds_query());
        assert!(!Template::parse("/{query}").unwrap().holds_query());
    }

    #[test]
    fn edit_distance() {
        for (a, b, distance) in
            [("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3), ("host", "host", 0)]
        {
            assert_eq!(edits(a, b), distance);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_a_literal_is_itself(text in "[{}a-z.1]{0,12}|\\PC{0,8}") {
            let _ = Template::parse(&text);
            let mut out = String::new();
            Template::literal(&text).render(&variables(&[]), &mut out);
            prop_assert_eq!(&out, &text);
            let doubled = text.replace('{', "{{").replace('}', "}}");
            let parsed = Template::parse(&doubled).unwrap();
            prop_assert_eq!(parsed.as_literal(), Some(&*text));
        }

        #[test]
        fn a_target_is_always_a_target(text in "\\PC{0,8}|[\\x00-\\x20a?#%]{0,8}") {
            let mut out = String::from("/");
            push_target(&mut out, &text, true);
            prop_assert!(out.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert!(out.parse::<http::uri::PathAndQuery>().is_ok());
        }
    }
}
