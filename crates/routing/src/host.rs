//! Host names: the patterns of sites, and the key made from a request's authority.
//!
//! Internationalised names reach this module as A-labels (`xn--`); what turns them into such is the caller's.

use std::borrow::Cow;
use std::fmt;
use std::net::Ipv6Addr;

/// A host pattern of a site: compiled from `shop.example.com`, `*.shop.example.com` or `*`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// One host, as [`normalise_host`] gives it.
    Exact(Box<str>),
    /// Exactly one label before this suffix: for `*.shop.example.com` it holds `shop.example.com`.
    Wildcard(Box<str>),
    /// Every host.
    Any,
}

/// Why a text is no host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the host is empty")]
    Empty,
    #[error("a host holds no {found:?}")]
    Character { found: char },
    #[error("a label of the host is empty")]
    EmptyLabel,
    #[error("a host has at most 255 characters")]
    TooLong,
    #[error("the port is no number from 0 to 65535")]
    Port,
    #[error("this is no IPv6 address")]
    Ipv6,
    #[error("a host has no port here; ports belong to `server.http` and `server.https`")]
    PortInPattern,
    #[error("a wildcard is the whole first label, as in \"*.example.com\", or \"*\" alone")]
    Wildcard,
}

impl HostPattern {
    /// The wildcard that a host is under: `*.example.com` for `www.example.com`.
    pub fn over(host: &str) -> Option<HostPattern> {
        parent_of(host).map(|parent| HostPattern::Wildcard(parent.into()))
    }

    /// Compiles a host of a configuration. It may be written in upper case and with a trailing dot; IPv6
    /// literals with or without brackets.
    pub fn parse(text: &str) -> Result<HostPattern, HostError> {
        if text == "*" {
            return Ok(HostPattern::Any);
        }
        let (name, wildcard) = match text.strip_prefix("*.") {
            Some(suffix) => (suffix, true),
            None => (text, false),
        };
        if name.contains('*') {
            return Err(HostError::Wildcard);
        }
        if let Ok(address) = name.parse::<Ipv6Addr>() {
            return if wildcard { Err(HostError::Wildcard) } else { Ok(exact(address.to_string())) };
        }
        let bracketed = name.starts_with('[');
        if name.contains(':') && !(bracketed && name.ends_with(']')) {
            return Err(HostError::PortInPattern);
        }
        let name = normalise_host(name)?.into_owned();
        match wildcard {
            true if bracketed => Err(HostError::Wildcard),
            true => Ok(HostPattern::Wildcard(name.into())),
            false => Ok(exact(name)),
        }
    }

    /// Whether the pattern covers a normalised host. A certificate's names can be asked the same way.
    pub fn covers(&self, host: &str) -> bool {
        match self {
            HostPattern::Exact(name) => **name == *host,
            HostPattern::Wildcard(suffix) => parent_of(host) == Some(suffix),
            HostPattern::Any => true,
        }
    }
}

/// As [`HostPattern::parse`] reads it.
impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostPattern::Exact(name) if name.contains(':') => write!(f, "[{name}]"),
            HostPattern::Exact(name) => f.write_str(name),
            HostPattern::Wildcard(suffix) => write!(f, "*.{suffix}"),
            HostPattern::Any => f.write_str("*"),
        }
    }
}

fn exact(name: String) -> HostPattern {
    HostPattern::Exact(name.into())
}

/// The host without its first label: what a wildcard is looked up by.
pub fn parent_of(host: &str) -> Option<&str> {
    host.split_once('.').map(|(_, parent)| parent)
}

/// The key for look-ups of a request's `Host` or `:authority`: lower case, without port and without one
/// trailing dot, an IPv6 literal without brackets and in its shortest form (RFC 5952).
///
/// Borrowed when it is so already. Stricter than RFC 3986: a reg-name is letters, digits, `-`, `_` and dots
/// between non-empty labels, for anything else is a typing error or an attack on whoever reads the host
/// next. A port may be empty (RFC 3986, section 3.2.3).
pub fn normalise_host(authority: &str) -> Result<Cow<'_, str>, HostError> {
    if let Some(literal) = authority.strip_prefix('[') {
        let (address, rest) = literal.split_once(']').ok_or(HostError::Ipv6)?;
        match rest.strip_prefix(':') {
            Some(port) => check_port(port)?,
            None if rest.is_empty() => {}
            None => return Err(HostError::Ipv6),
        }
        return normalise_ipv6(address);
    }
    let name = match authority.split_once(':') {
        Some((name, port)) => {
            check_port(port)?;
            name
        }
        None => authority,
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.is_empty() {
        return Err(HostError::Empty);
    }
    if name.len() > 255 {
        return Err(HostError::TooLong);
    }
    let mut upper = false;
    // The byte before the first label counts as a dot, so that a leading dot is an empty label too.
    let mut before = b'.';
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' => {}
            b'A'..=b'Z' => upper = true,
            b'.' if before != b'.' => {}
            b'.' => return Err(HostError::EmptyLabel),
            _ => return Err(illegal(name)),
        }
        before = byte;
    }
    if before == b'.' {
        return Err(HostError::EmptyLabel);
    }
    Ok(if upper { Cow::Owned(name.to_ascii_lowercase()) } else { Cow::Borrowed(name) })
}

#[cold]
fn illegal(name: &str) -> HostError {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    HostError::Character { found: name.chars().find(|c| !legal(*c)).unwrap_or_default() }
}

/// `u16::from_str` alone would let a sign pass.
fn check_port(port: &str) -> Result<(), HostError> {
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if port.is_empty() || (digits && port.parse::<u16>().is_ok()) { Ok(()) } else { Err(HostError::Port) }
}

fn normalise_ipv6(text: &str) -> Result<Cow<'_, str>, HostError> {
    let address: Ipv6Addr = text.parse().map_err(|_| HostError::Ipv6)?;
    let shortest = address.to_string();
    Ok(if shortest == text { Cow::Borrowed(text) } else { Cow::Owned(shortest) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn normal_hosts_are_borrowed() {
        for host in
            ["shop.example.com", "a", "10.0.0.1", "xn--bcher-kva.example", "_dmarc.a-b.example", "[::1]"]
        {
            assert!(matches!(normalise_host(host), Ok(Cow::Borrowed(_))), "{host}");
        }
        assert!(matches!(normalise_host("shop.example.com.:8443"), Ok(Cow::Borrowed("shop.example.com"))));
    }

    #[test]
    fn hosts_are_brought_to_one_form() {
        for (authority, host) in [
            ("Shop.Example.COM", "shop.example.com"),
            ("shop.example.com:443", "shop.example.com"),
            ("shop.example.com:", "shop.example.com"),
            ("shop.example.com:00080", "shop.example.com"),
            ("shop.example.com.", "shop.example.com"),
            ("[::1]:8443", "::1"),
            ("[0:0:0::1]", "::1"),
            ("[2001:DB8::A]", "2001:db8::a"),
        ] {
            assert_eq!(normalise_host(authority).as_deref(), Ok(host), "{authority}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for (authority, error) in [
            ("", HostError::Empty),
            (".", HostError::Empty),
            (":80", HostError::Empty),
            ("a..b", HostError::EmptyLabel),
            (".a", HostError::EmptyLabel),
            ("a..", HostError::EmptyLabel),
            ("a b", HostError::Character { found: ' ' }),
            ("a/b", HostError::Character { found: '/' }),
            ("user@a", HostError::Character { found: '@' }),
            ("a%2eb", HostError::Character { found: '%' }),
            ("a\tb", HostError::Character { found: '\t' }),
            ("bücher.example", HostError::Character { found: 'ü' }),
            ("a,b", HostError::Character { found: ',' }),
            ("a:65536", HostError::Port),
            ("a:+80", HostError::Port),
            ("a:80:80", HostError::Port),
            ("::1", HostError::Port),
            ("a:x", HostError::Port),
            ("[::1", HostError::Ipv6),
            ("[::1]80", HostError::Ipv6),
            ("[::1]:99999", HostError::Port),
            ("[fe80::1%25eth0]", HostError::Ipv6),
            ("[a]", HostError::Ipv6),
            ("[]", HostError::Ipv6),
        ] {
            assert_eq!(normalise_host(authority), Err(error), "{authority:?}");
        }
        assert_eq!(normalise_host(&"a".repeat(256)), Err(HostError::TooLong));
        assert!(normalise_host(&"a".repeat(255)).is_ok());
    }

    #[test]
    fn patterns_are_parsed_and_shown_alike() {
        for (text, pattern) in [
            ("*", HostPattern::Any),
            ("Shop.Example.com.", HostPattern::Exact("shop.example.com".into())),
            ("*.Shop.example.com", HostPattern::Wildcard("shop.example.com".into())),
            ("::1", HostPattern::Exact("::1".into())),
            ("[::1]", HostPattern::Exact("::1".into())),
            ("10.0.0.1", HostPattern::Exact("10.0.0.1".into())),
        ] {
            assert_eq!(HostPattern::parse(text).as_ref(), Ok(&pattern), "{text}");
            assert_eq!(HostPattern::parse(&pattern.to_string()), Ok(pattern), "{text}");
        }
        for (text, error) in [
            ("", HostError::Empty),
            ("*.", HostError::Empty),
            ("a.*.b", HostError::Wildcard),
            ("*a.b", HostError::Wildcard),
            ("*.*.b", HostError::Wildcard),
            ("*.[::1]", HostError::Wildcard),
            ("*.::1", HostError::Wildcard),
            ("a.example:8080", HostError::PortInPattern),
            ("[::1]:80", HostError::PortInPattern),
            ("https://a.example", HostError::PortInPattern),
            ("a.example/x", HostError::Character { found: '/' }),
        ] {
            assert_eq!(HostPattern::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_wildcard_is_one_label() {
        let wildcard = HostPattern::parse("*.example.com").unwrap();
        assert!(wildcard.covers("a.example.com"));
        assert!(!wildcard.covers("a.b.example.com"));
        assert!(!wildcard.covers("example.com"));
        assert!(!wildcard.covers("aexample.com"));
        assert!(HostPattern::Any.covers("::1"));
        assert!(HostPattern::parse("A.b").unwrap().covers("a.b"));
    }

    proptest! {
        #[test]
        fn normalising_is_idempotent_but_for_brackets(authority in "[a-zA-Z0-9.:\\[\\]_%@ /*-]{0,24}|\\PC{0,12}") {
            if let Ok(host) = normalise_host(&authority) {
                prop_assert!(!host.is_empty());
                prop_assert!(!host.bytes().any(|b| b.is_ascii_uppercase() || b <= b' ' || b == b'/' || b >= 0x7f));
                let again = if host.contains(':') { format!("[{host}]") } else { host.to_string() };
                prop_assert_eq!(normalise_host(&again).unwrap(), host);
            }
        }
    }
}
