//! Paths: the patterns of routes, and the normalised copy they are matched on.
//!
//! The copy is for the decision only. What a VM receives are the original bytes, unless a rewrite says else.

use std::borrow::Cow;
use std::fmt;
use std::fmt::Write as _;

/// A path of a route, compiled from `=/old`, `/api/` or `~^/v`.
#[derive(Clone, Debug)]
pub enum PathPattern {
    /// This path and no other.
    Exact(Box<str>),
    /// Every path that begins with these characters; one that ends in `/` also matches without it.
    Prefix(Box<str>),
    /// Every path the expression finds something in (write `^` and `$` to anchor it).
    Regex(regex::Regex),
}

/// Why a text is no path pattern.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PathError {
    #[error("a path begins with \"/\", \"=/\" (this path alone) or \"~\" (a regular expression)")]
    Kind,
    #[error("paths are compared in their normal form: write \"{normal}\"")]
    NotNormal { normal: Box<str> },
    #[error("a path holds no \"?\"; conditions on the query are written `when = {{ query = {{ ... }} }}`")]
    Query,
    #[error("the regular expression is empty")]
    EmptyRegex,
    #[error(transparent)]
    Regex(#[from] regex::Error),
}

impl PathPattern {
    /// Compiles a path of a configuration. Exact paths and prefixes must be written as [`normalise_path`]
    /// would write them, else they could never match; the error tells the form.
    pub fn parse(text: &str) -> Result<PathPattern, PathError> {
        if let Some(expression) = text.strip_prefix('~') {
            return match expression {
                "" => Err(PathError::EmptyRegex),
                _ => Ok(PathPattern::Regex(regex::Regex::new(expression)?)),
            };
        }
        let (path, sign) = match text.strip_prefix('=') {
            Some(path) => (path, "="),
            None => (text, ""),
        };
        if !path.starts_with('/') {
            return Err(PathError::Kind);
        }
        if path.contains('?') {
            return Err(PathError::Query);
        }
        let escaped = escape(path);
        let normal = normalise_path(&escaped);
        if normal != path {
            return Err(PathError::NotNormal { normal: format!("{sign}{normal}").into() });
        }
        Ok(match sign {
            "=" => PathPattern::Exact(path.into()),
            _ => PathPattern::Prefix(path.into()),
        })
    }

    /// The kind and the text: two patterns that agree in both match the same paths.
    pub(crate) fn identity(&self) -> (u8, &str) {
        match self {
            PathPattern::Exact(path) => (0, path),
            PathPattern::Regex(regex) => (1, regex.as_str()),
            PathPattern::Prefix(path) => (2, path),
        }
    }
}

impl PartialEq for PathPattern {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

/// As [`PathPattern::parse`] reads it.
impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PathPattern::Exact(path) => write!(f, "={path}"),
            PathPattern::Prefix(path) => f.write_str(path),
            PathPattern::Regex(regex) => write!(f, "~{regex}"),
        }
    }
}

/// Escapes what no client leaves bare in a path (the path percent-encode set of the WHATWG URL standard).
fn escape(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if c <= ' ' || c >= '\x7f' || matches!(c, '"' | '#' | '<' | '>' | '`' | '{' | '}') {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                push_escape(&mut out, byte);
            }
        } else {
            out.push(c);
        }
    }
    out
}

/// Writes `byte` as `%XX`.
pub(crate) fn push_escape(out: &mut String, byte: u8) {
    // Writing to a String does not fail.
    let _ = write!(out, "%{byte:02X}");
}

/// The copy of a request's path that routes are matched on: escapes of unreserved characters are decoded and
/// the other escapes upper-cased (RFC 3986, section 6.2.2), dot segments removed (5.2.4), `//` merged, an
/// empty path is `/`.
///
/// `%2F` is never turned into `/`, and a `%` that begins no escape is kept as it is. Idempotent. Borrowed
/// when nothing changes, which one scan of the bytes finds out.
pub fn normalise_path(path: &str) -> Cow<'_, str> {
    if is_normal(path.as_bytes()) {
        return Cow::Borrowed(path);
    }
    let Some(segments) = path.strip_prefix('/') else {
        // `*` of OPTIONS stays what it is.
        return Cow::Borrowed(if path.is_empty() { "/" } else { path });
    };
    let mut out = String::with_capacity(path.len());
    // Whether the last segment was dropped: the path then ends in the slash before it.
    let mut open = false;
    for segment in segments.split('/') {
        let before = out.len();
        out.push('/');
        unescape(segment, &mut out);
        open = matches!(out.get(before..), Some("/" | "/." | "/.."));
        if open {
            let up = out.ends_with("/..");
            out.truncate(before);
            if up {
                out.truncate(out.rfind('/').unwrap_or(0));
            }
        }
    }
    if open {
        out.push('/');
    }
    if out == path { Cow::Borrowed(path) } else { Cow::Owned(out) }
}

/// False when something has to be done, or may have to be: the rules for a bare `%` are left to the slow way.
fn is_normal(mut path: &[u8]) -> bool {
    if path.first() != Some(&b'/') {
        return false;
    }
    while let [first, rest @ ..] = path {
        match (first, rest) {
            (b'/', [b'/', ..] | [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..]) => {
                return false;
            }
            (b'%', [high, low, ..]) if to_change(*high, *low) => return false,
            _ => {}
        }
        path = rest;
    }
    true
}

/// Whether an escape with these digits is not written as it should be.
fn to_change(high: u8, low: u8) -> bool {
    high.is_ascii_lowercase() || low.is_ascii_lowercase() || escaped(high, low).is_some_and(unreserved)
}

/// Appends one segment with its escapes brought to their normal form.
fn unescape(mut segment: &str, out: &mut String) {
    // Where the last bare '%' stands in `out`. An escape whose character would complete it to a new escape
    // stays escaped: `%%34%31` must not become `%41`, or a second look would see another path.
    let mut bare = None;
    while let Some((before, after)) = segment.split_once('%') {
        out.push_str(before);
        let byte = match after.as_bytes() {
            [high, low, ..] => escaped(*high, *low),
            _ => None,
        };
        let (Some(byte), Some((_, rest))) = (byte, after.split_at_checked(2)) else {
            bare = Some(out.len());
            out.push('%');
            segment = after;
            continue;
        };
        let since_bare = bare.and_then(|at| out.as_bytes().get(at + 1..));
        let completes = match since_bare {
            Some([]) => true,
            Some([digit]) => digit.is_ascii_hexdigit(),
            _ => false,
        };
        if unreserved(byte) && !(completes && byte.is_ascii_hexdigit()) {
            out.push(char::from(byte));
        } else {
            push_escape(out, byte);
        }
        segment = rest;
    }
    out.push_str(segment);
}

fn unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// The byte that `%` with these two digits stands for.
pub(crate) fn escaped(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normal_paths_are_borrowed() {
        for path in [
            "/",
            "/a",
            "/a/",
            "/a.b/..c/.d",
            "/a%2Fb",
            "/%E4%BD%A0",
            "/a%",
            "/%zz",
            "/...",
            "*",
            "/ü",
            "/a/%",
        ] {
            assert!(matches!(normalise_path(path), Cow::Borrowed(same) if same == path), "{path}");
        }
    }

    #[test]
    fn paths_are_brought_to_one_form() {
        for (path, normal) in [
            ("", "/"),
            ("//", "/"),
            ("/a//b", "/a/b"),
            ("/a/./b", "/a/b"),
            ("/a/../b", "/b"),
            ("/a//../b", "/b"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a/..", "/"),
            ("/%2e%2e/a", "/a"),
            ("/a/%2E%2e/b", "/b"),
            ("/a/.%2e/b", "/b"),
            ("/a/%2e/", "/a/"),
            ("/%61pi/%7Ex", "/api/~x"),
            ("/a%2fb", "/a%2Fb"),
            ("/a%2f..%2fb", "/a%2F..%2Fb"),
            ("/a%2f../b", "/a%2F../b"),
            ("/%c3%bc", "/%C3%BC"),
            ("/a%/%2e%2e/b", "/b"),
            ("/%zz%41", "/%zzA"),
            ("/%%41", "/%%41"),
            ("/%%7e", "/%~"),
            ("/%4%31", "/%4%31"),
            ("/%%34%31", "/%%341"),
            ("/%2%66", "/%2%66"),
            ("/x%41%", "/xA%"),
            ("/x%41%4", "/xA%4"),
        ] {
            assert_eq!(normalise_path(path), normal, "{path}");
        }
    }

    #[test]
    fn patterns_are_parsed_and_shown_alike() {
        for text in ["/", "/api/", "/api", "=/old", "~^/v([0-9])", "=/a%20b", "/a|b", "=/"] {
            assert_eq!(PathPattern::parse(text).unwrap().to_string(), text);
        }
        assert!(matches!(PathPattern::parse("=/old"), Ok(PathPattern::Exact(path)) if &*path == "/old"));
        for (text, error) in [
            ("", PathError::Kind),
            ("api/", PathError::Kind),
            ("=old", PathError::Kind),
            ("*", PathError::Kind),
            ("~", PathError::EmptyRegex),
            ("/a?b=c", PathError::Query),
            ("/a//b", PathError::NotNormal { normal: "/a/b".into() }),
            ("=/%61", PathError::NotNormal { normal: "=/a".into() }),
            ("/a b", PathError::NotNormal { normal: "/a%20b".into() }),
            ("/ü", PathError::NotNormal { normal: "/%C3%BC".into() }),
            ("/{id}", PathError::NotNormal { normal: "/%7Bid%7D".into() }),
            ("/a/../b", PathError::NotNormal { normal: "/b".into() }),
        ] {
            assert_eq!(PathPattern::parse(text), Err(error), "{text}");
        }
        assert!(matches!(PathPattern::parse("~("), Err(PathError::Regex(_))));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        #[test]
        fn normalising_is_idempotent(path in "/[/.%2eE4fF1a7~+]{0,16}|/\\PC{0,12}|\\PC{0,4}") {
            let once = normalise_path(&path);
            prop_assert_eq!(normalise_path(&once), once.clone());
            prop_assert!(!once.contains("//") || !path.starts_with('/'));
            if path.starts_with('/') {
                prop_assert!(once.split('/').all(|segment| segment != "." && segment != ".."));
            }
        }

        #[test]
        fn a_slash_is_never_made(path in "/([a-c.]|%2[fF]|%2e|%61|/){0,12}") {
            prop_assert!(normalise_path(&path).matches('/').count() <= path.matches('/').count() + 1);
            let escapes = path.to_ascii_uppercase().matches("%2F").count();
            if !path.contains('.') && !path.contains("%2e") {
                prop_assert_eq!(normalise_path(&path).matches("%2F").count(), escapes);
            }
        }

        #[test]
        fn the_scan_agrees_with_the_work(path in "/[/.%2eE4fa]{0,10}") {
            // What the scan calls normal must come out unchanged of the slow way.
            if is_normal(path.as_bytes()) {
                let mut out = String::new();
                for segment in path.strip_prefix('/').unwrap().split('/') {
                    out.push('/');
                    unescape(segment, &mut out);
                }
                prop_assert_eq!(out, path);
            }
        }
    }
}
