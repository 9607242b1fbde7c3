//! Host names as DNS knows them: lower-case A-labels, so that nothing has to be converted per request.

use std::net::{IpAddr, Ipv6Addr};

use foregate_routing::HostPattern;
use idna::AsciiDenyList;

use super::value::Misfit;

/// The lower-case ASCII form of a host name: "Bücher.example" becomes "xn--bcher-kva.example".
pub(super) fn to_ascii(host: &str) -> Result<String, Misfit> {
    let wrong = || Misfit::new(format!("\"{host}\" is not a host name"));
    let name = idna::domain_to_ascii_cow(host.as_bytes(), AsciiDenyList::URL).map_err(|_| wrong())?;
    let sane = |label: &str| !label.is_empty() && label.len() <= 63;
    if name.len() > 253 || !name.split('.').all(sane) || name.contains('*') {
        return Err(wrong());
    }
    Ok(name.into_owned())
}

/// What a site may be asked by: "shop.example.com", "*.example.com", "*", or an IP address.
pub(super) fn pattern(text: &str) -> Result<HostPattern, Misfit> {
    if text == "*" {
        return Ok(HostPattern::Any);
    }
    if text.contains("://") || text.contains('/') {
        return Err(Misfit::new(format!("\"{text}\" is not a host"))
            .help("a host stands alone, without scheme and path; paths belong into `routes`"));
    }
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    if bare.parse::<Ipv6Addr>().is_err() && bare.contains(':') {
        return Err(Misfit::new(format!("\"{text}\" names a port"))
            .help("hosts have no port; the ports are `http` and `https` of [server]"));
    }
    let ascii = match (bare.parse::<IpAddr>(), bare.strip_prefix("*.")) {
        (Ok(address), _) => address.to_string(),
        (Err(_), Some(parent)) => format!("*.{}", to_ascii(parent)?),
        (Err(_), None) if bare.contains('*') => {
            return Err(Misfit::new(format!("\"{text}\" has a wildcard in the wrong place"))
                .help("a wildcard is the whole first label: \"*.example.com\", or \"*\" for every host"));
        }
        (Err(_), None) => to_ascii(bare.strip_suffix('.').unwrap_or(bare))?,
    };
    HostPattern::parse(&ascii).map_err(|error| Misfit::new(format!("\"{text}\" is not a host: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_a_labels() {
        assert_eq!(to_ascii("Bücher.Example"), Ok("xn--bcher-kva.example".to_owned()));
        assert_eq!(to_ascii("build_1.internal"), Ok("build_1.internal".to_owned()));
        for wrong in ["", "a..b", "a b", "*.example.com", &"a".repeat(64)] {
            assert!(to_ascii(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn patterns() {
        for (text, shown) in [
            ("Shop.Example.com", "shop.example.com"),
            ("shop.example.com.", "shop.example.com"),
            ("*.bücher.example", "*.xn--bcher-kva.example"),
            ("*", "*"),
            ("127.0.0.1", "127.0.0.1"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(pattern(text).map(|p| p.to_string()), Ok(shown.to_owned()), "{text}");
        }
        for wrong in ["", "a:80", "http://a", "a/b", "*a.b", "a.*.b", "*.*.b"] {
            assert!(pattern(wrong).is_err(), "{wrong}");
        }
    }
}
