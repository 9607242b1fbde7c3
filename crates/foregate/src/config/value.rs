//! The small grammars of single values: durations, sizes, networks, status codes and addresses.
//!
//! Pure text in, a compiled value or the reason out. Places, files and keys are known only to the decoder.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use foregate_routing::Address;
use ipnet::IpNet;

use super::host;

/// Why a value does not fit: what is wrong, and what to write instead where that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Misfit {
    pub(super) what: String,
    pub(super) help: Option<String>,
}

impl Misfit {
    pub(super) fn new(what: impl Into<String>) -> Misfit {
        Misfit { what: what.into(), help: None }
    }

    pub(super) fn help(mut self, help: impl Into<String>) -> Misfit {
        self.help = Some(help.into());
        self
    }
}

/// A whole number of one unit: "250ms", "5s", "3m", "24h", "365d".
pub(super) fn duration(text: &str) -> Result<Duration, Misfit> {
    const SHAPE: &str =
        "a duration is a whole number and a unit: \"250ms\", \"5s\", \"3m\", \"24h\", \"365d\"";
    let (number, unit) = number_and_unit(text).ok_or_else(|| misshapen(text, "a duration", SHAPE))?;
    let seconds = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        "" => return Err(Misfit::new(format!("\"{text}\" has no unit")).help(SHAPE)),
        _ => return Err(Misfit::new(format!("\"{unit}\" is not a unit of time")).help(SHAPE)),
    };
    let seconds = number.checked_mul(seconds).filter(|total| *total <= MAX_SECONDS);
    seconds.map(Duration::from_secs).ok_or_else(|| Misfit::new(format!("\"{text}\" is too long")))
}

/// A hundred years: far beyond any use, and far from what would overflow when added to a clock.
const MAX_SECONDS: u64 = 100 * 366 * 24 * 60 * 60;

/// A number of bytes: "512B", "64KiB", "10MiB", "1GiB"; KB, MB, GB and TB count in thousands.
pub(super) fn size(text: &str) -> Result<u64, Misfit> {
    const SHAPE: &str = "a size is a whole number and a unit: \"512B\", \"64KiB\", \"10MiB\", \"1GB\"";
    let (number, unit) = number_and_unit(text).ok_or_else(|| misshapen(text, "a size", SHAPE))?;
    let bytes: u64 = match unit {
        "B" => 1,
        "KB" => 1000,
        "MB" => 1000_u64.pow(2),
        "GB" => 1000_u64.pow(3),
        "TB" => 1000_u64.pow(4),
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        "" => return Err(Misfit::new(format!("\"{text}\" has no unit")).help(SHAPE)),
        _ => return Err(Misfit::new(format!("\"{unit}\" is not a unit of size")).help(SHAPE)),
    };
    number.checked_mul(bytes).ok_or_else(|| Misfit::new(format!("\"{text}\" is too much")))
}

/// A whole share of something: "0%" to "100%".
pub(super) fn percent(text: &str) -> Result<u8, Misfit> {
    let percent = number_and_unit(text).filter(|(number, unit)| *unit == "%" && *number <= 100);
    percent.and_then(|(number, _)| u8::try_from(number).ok()).ok_or_else(|| {
        misshapen(text, "a share", "write a whole number from 0 to 100 and a percent sign: \"50%\"")
    })
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    Some((number.parse().ok()?, unit.trim_start()))
}

fn misshapen(text: &str, kind: &str, shape: &str) -> Misfit {
    Misfit::new(format!("\"{text}\" is not {kind}")).help(shape)
}

/// An address or a network: "10.0.0.1", "10.0.0.0/8", "fd00::/8".
pub(super) fn network(text: &str) -> Result<IpNet, Misfit> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address));
    }
    let network: IpNet = text.parse().map_err(|_| {
        misshapen(
            text,
            "an address or network",
            "write \"10.0.0.1\", \"10.0.0.0/8\", \"fd00::1\" or \"fd00::/8\"",
        )
    })?;
    if network.addr() == network.network() {
        return Ok(network);
    }
    // Either reading is plausible, and where the list says whom to trust a wrong guess is a hole.
    let help = format!(
        "write \"{}\" for the network or \"{}\" for the one address",
        network.trunc(),
        network.addr()
    );
    Err(Misfit::new(format!("\"{text}\" has bits set beyond its prefix")).help(help))
}

/// A status or a range of them: "200", "200-399".
pub(super) fn statuses(text: &str) -> Result<RangeInclusive<u16>, Misfit> {
    let parse = |text: &str| text.trim().parse::<u16>().ok().filter(|status| (100..=599).contains(status));
    let range = match text.split_once('-') {
        Some((first, last)) => parse(first).zip(parse(last)).filter(|(first, last)| first <= last),
        None => parse(text).map(|status| (status, status)),
    };
    let (first, last) =
        range.ok_or_else(|| misshapen(text, "a range of statuses", "write \"200\" or \"200-399\""))?;
    Ok(first..=last)
}

/// What the scheme in front of an address asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    H2c,
    H3,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scheme::Http => "http://",
            Scheme::Https => "https://",
            Scheme::H2c => "h2c://",
            Scheme::H3 => "h3://",
        })
    }
}

/// Where a VM is, as an operator writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// `None` for `host:port` and `unix:`, which leave the protocol to the pool.
    pub(super) scheme: Option<Scheme>,
    pub(super) address: Address,
}

const ADDRESS_SHAPE: &str = "write \"host:port\", \"http://host:port\", \"https://host:port\", \"h2c://host:port\", \"h3://host:port\" or \"unix:/run/app.sock\"";

/// Whether a text that may be the name of a pool is meant as an address.
pub(super) fn looks_like_location(text: &str) -> bool {
    text.contains(':') || text.contains('/')
}

/// `host:port`, a URL without a path, or `unix:/path`.
pub(super) fn location(text: &str) -> Result<Location, Misfit> {
    if let Some(path) = text.strip_prefix("unix:") {
        // `unix:///run/x` is how URLs write it.
        let path = path.strip_prefix("//").unwrap_or(path);
        if !path.starts_with('/') {
            return Err(Misfit::new(format!("\"{text}\" names no socket"))
                .help("write the socket's whole path: \"unix:/run/app.sock\""));
        }
        return Ok(Location { scheme: None, address: Address::Unix(PathBuf::from(path)) });
    }
    let (scheme, rest) = match text.split_once("://") {
        None => (None, text),
        Some(("http", rest)) => (Some(Scheme::Http), rest),
        Some(("https", rest)) => (Some(Scheme::Https), rest),
        Some(("h2c", rest)) => (Some(Scheme::H2c), rest),
        Some(("h3", rest)) => (Some(Scheme::H3), rest),
        Some(("h2", _)) => {
            return Err(Misfit::new(format!("\"{text}\" has no known scheme"))
                .help("HTTP/2 with TLS is `https://` with `protocol = \"h2\"`; without TLS it is `h2c://`"));
        }
        Some(_) => return Err(Misfit::new(format!("\"{text}\" has no known scheme")).help(ADDRESS_SHAPE)),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#']) {
        return Err(Misfit::new(format!("\"{text}\" has a path, and an address has none"))
            .help("name the VM alone; `rewrite` and `strip_prefix` of a route change the path"));
    }
    if authority.contains('@') {
        return Err(Misfit::new(format!("\"{text}\" carries credentials"))
            .help("send them with `request_headers = [\"Authorization: ...\"]`"));
    }
    let default_port = match scheme {
        None => None,
        Some(Scheme::Https | Scheme::H3) => Some(443),
        Some(Scheme::Http | Scheme::H2c) => Some(80),
    };
    let address = endpoint(text, authority, default_port)?;
    Ok(Location { scheme, address })
}

fn endpoint(text: &str, authority: &str, default_port: Option<u16>) -> Result<Address, Misfit> {
    if let Ok(address) = authority.parse::<SocketAddr>() {
        return if address.port() == 0 { Err(no_port(text)) } else { Ok(Address::Ip(address)) };
    }
    if authority.parse::<Ipv6Addr>().is_ok() {
        return Err(Misfit::new(format!("\"{text}\" needs brackets around its IPv6 address"))
            .help(format!("write \"[{authority}]:80\"")));
    }
    let bracketed = authority.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let (host, port) = match (bracketed, authority.rsplit_once(':')) {
        (Some(host), _) => (host, default_port.ok_or_else(|| no_port(text))?),
        (None, Some((host, port))) => {
            let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(|| {
                Misfit::new(format!("\"{port}\" is not a port")).help("a port is a number from 1 to 65535")
            })?;
            (host, port)
        }
        (None, None) => (authority, default_port.ok_or_else(|| no_port(text))?),
    };
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(Address::Ip(SocketAddr::new(ip, port)));
    }
    let name = host::to_ascii(host).map_err(|_| {
        Misfit::new(format!("\"{host}\" is neither an address nor a host name")).help(ADDRESS_SHAPE)
    })?;
    Ok(Address::Name { host: name.into(), port })
}

fn no_port(text: &str) -> Misfit {
    Misfit::new(format!("\"{text}\" has no port"))
        .help(format!("write \"{text}:80\" or whichever port the VM serves"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("3m"), Ok(Duration::from_secs(180)));
        assert_eq!(duration("24h"), Ok(Duration::from_secs(86_400)));
        assert_eq!(duration("365d"), Ok(Duration::from_secs(31_536_000)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for wrong in ["", "5", "s", "-5s", "1.5s", "5 years", "5S", "99999999999999999999s", "999999999d"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("0B"), Ok(0));
        assert_eq!(size("64KiB"), Ok(65_536));
        assert_eq!(size("64KB"), Ok(64_000));
        assert_eq!(size("10MiB"), Ok(10_485_760));
        assert_eq!(size("10GiB"), Ok(10_737_418_240));
        assert_eq!(size("1TB"), Ok(1_000_000_000_000));
        for wrong in ["", "10", "MiB", "10mb", "10 bytes", "1.5MiB", "99999999999TiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(percent("0%"), Ok(0));
        assert_eq!(percent("100%"), Ok(100));
        for wrong in ["", "50", "%", "101%", "-1%", "0.5%", "half"] {
            assert!(percent(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn networks() {
        assert_eq!(network("10.0.0.1").map(|n| n.to_string()), Ok("10.0.0.1/32".to_owned()));
        assert_eq!(network("10.0.0.0/8").map(|n| n.to_string()), Ok("10.0.0.0/8".to_owned()));
        assert_eq!(network("fd00::/8").map(|n| n.to_string()), Ok("fd00::/8".to_owned()));
        let misfit = network("10.0.0.5/8").unwrap_err();
        assert_eq!(
            misfit.help.as_deref(),
            Some("write \"10.0.0.0/8\" for the network or \"10.0.0.5\" for the one address")
        );
        assert!(network("everyone").is_err());
    }

    #[test]
    fn status_ranges() {
        assert_eq!(statuses("200"), Ok(200..=200));
        assert_eq!(statuses("200-399"), Ok(200..=399));
        for wrong in ["", "99", "600", "399-200", "2xx", "200-"] {
            assert!(statuses(wrong).is_err(), "{wrong}");
        }
    }

    fn parsed(text: &str) -> (Option<Scheme>, String) {
        let location = location(text).unwrap_or_else(|misfit| panic!("{text}: {misfit:?}"));
        (location.scheme, location.address.to_string())
    }

    #[test]
    fn locations() {
        assert_eq!(parsed("10.0.0.5:80"), (None, "10.0.0.5:80".to_owned()));
        assert_eq!(parsed("[fd00::5]:80"), (None, "[fd00::5]:80".to_owned()));
        assert_eq!(parsed("VM.lan:8080"), (None, "vm.lan:8080".to_owned()));
        assert_eq!(parsed("localhost:3000"), (None, "localhost:3000".to_owned()));
        assert_eq!(parsed("http://10.0.0.5"), (Some(Scheme::Http), "10.0.0.5:80".to_owned()));
        assert_eq!(parsed("http://10.0.0.5/"), (Some(Scheme::Http), "10.0.0.5:80".to_owned()));
        assert_eq!(parsed("https://vm.lan"), (Some(Scheme::Https), "vm.lan:443".to_owned()));
        assert_eq!(parsed("https://[fd00::5]"), (Some(Scheme::Https), "[fd00::5]:443".to_owned()));
        assert_eq!(parsed("h3://vm.lan"), (Some(Scheme::H3), "vm.lan:443".to_owned()));
        assert_eq!(parsed("h2c://vm.lan:50051"), (Some(Scheme::H2c), "vm.lan:50051".to_owned()));
        assert_eq!(parsed("unix:/run/app.sock"), (None, "unix:/run/app.sock".to_owned()));
        assert_eq!(parsed("unix:///run/app.sock"), (None, "unix:/run/app.sock".to_owned()));
    }

    #[test]
    fn locations_that_are_none() {
        for (text, what) in [
            ("10.0.0.5", "\"10.0.0.5\" has no port"),
            ("10.0.0.5:0", "\"10.0.0.5:0\" has no port"),
            ("vm.lan:http", "\"http\" is not a port"),
            ("vm.lan:70000", "\"70000\" is not a port"),
            ("fd00::5", "\"fd00::5\" needs brackets around its IPv6 address"),
            ("http://vm/app", "\"http://vm/app\" has a path, and an address has none"),
            ("http://me@vm", "\"http://me@vm\" carries credentials"),
            ("ftp://vm", "\"ftp://vm\" has no known scheme"),
            ("unix:app.sock", "\"unix:app.sock\" names no socket"),
            ("a b:80", "\"a b\" is neither an address nor a host name"),
        ] {
            assert_eq!(location(text).map_err(|misfit| misfit.what), Err(what.to_owned()), "{text}");
        }
    }
}
