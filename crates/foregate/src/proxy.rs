//! `foregate proxy`: a configuration made from flags.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use clap::Args;
use foregate_edge::Listening;

use crate::cli::{Exit, load_made, say};
use crate::control::Origin;
use crate::systemd::Given;
use crate::{log, run};

#[derive(Args, Debug)]
pub(crate) struct Flags {
    /// A backend: host:port, a port of this machine, http://, https://, h2c:// or unix:/run/app.sock; repeat it for several
    #[arg(long, value_name = "ADDR", required = true, value_parser = backend)]
    to: Vec<String>,
    /// Answer for this host name only, such as app.test or *.app.test; repeat it for several [default: every host]
    #[arg(long, value_name = "NAME", value_parser = plain)]
    host: Vec<String>,
    /// Listen on this address of the machine only; repeat it for several [default: all addresses]
    #[arg(long, value_name = "IP")]
    listen: Vec<IpAddr>,
    /// The port for plain HTTP, or "off"
    #[arg(long, value_name = "PORT", default_value = "8080")]
    http: Port,
    /// The port for HTTPS and HTTP/3, or "off"
    #[arg(long, value_name = "PORT", default_value = "8443")]
    https: Port,
}

/// A port, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Port {
    Off,
    On(u16),
}

impl FromStr for Port {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Port, Self::Err> {
        match text {
            "off" => Ok(Port::Off),
            _ => match text.parse() {
                Ok(port) if port > 0 => Ok(Port::On(port)),
                _ => Err("expected a port from 1 to 65535, or \"off\""),
            },
        }
    }
}

/// As the configuration language writes it.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Port::Off => f.write_str("\"off\""),
            Port::On(port) => port.fmt(f),
        }
    }
}

/// Serves as the flags say.
pub(crate) fn main(flags: &Flags) -> Exit {
    let loaded = match load_made("the command line", &configuration(flags)) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    log::start();
    run::serve(loaded, Origin::Made, None, None, Given::default(), |listeners| announce(flags, listeners))
}

/// The file that would do the same.
fn configuration(flags: &Flags) -> String {
    let every_host = ["*".to_owned()];
    let hosts = if flags.host.is_empty() { &every_host[..] } else { &flags.host };
    let listen = if flags.listen.is_empty() {
        String::new()
    } else {
        format!("addresses = {}\n", list(&flags.listen))
    };
    let (http, https) = (flags.http, flags.https);
    format!(
        "admin.listen = \"off\"\n\n[server]\n{listen}http = {http}\nhttps = {https}\nredirect_to_https = false\n\n\
         [tls]\nself_signed = true\n\n\
         [sites.proxy]\nhosts = {}\npool = {}\n",
        list(hosts),
        list(&flags.to),
    )
}

/// A TOML list of strings.
fn list(items: &[impl ToString]) -> String {
    toml::Value::Array(items.iter().map(|item| toml::Value::String(item.to_string())).collect()).to_string()
}

/// Tells what to open: an address such as 0.0.0.0 is nothing a client can ask for.
fn announce(flags: &Flags, listeners: &[Listening]) {
    let hosts: Vec<&str> = flags.host.iter().map(String::as_str).filter(|host| !host.contains('*')).collect();
    let mut urls: Vec<String> = Vec::new();
    for listening in listeners {
        let (scheme, default) = if listening.secure { ("https", 443) } else { ("http", 80) };
        let own = match listening.address.ip() {
            ip if ip.is_unspecified() => "localhost".to_owned(),
            IpAddr::V4(ip) => ip.to_string(),
            IpAddr::V6(ip) => format!("[{ip}]"),
        };
        let port = match listening.address.port() {
            port if port == default => String::new(),
            port => format!(":{port}"),
        };
        let names = if hosts.is_empty() { vec![own.as_str()] } else { hosts.clone() };
        for name in names {
            let url = format!("{scheme}://{name}{port}/");
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
    }
    for url in &urls {
        say(format_args!("try {url}"));
    }
    if urls.iter().any(|url| url.starts_with("https:")) {
        say("The certificate is self-signed: browsers warn once, curl wants -k.");
    }
}

/// A backend as the configuration wants it: a port alone is one of this machine.
fn backend(text: &str) -> Result<String, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    match port.parse::<u16>() {
        Ok(0) => Err("there is no port 0".to_owned()),
        Ok(port) => Ok(format!("127.0.0.1:{port}")),
        Err(_) => plain(text),
    }
}

/// In a configuration braces refer to variables and files; on a command line the shell does that.
fn plain(text: &str) -> Result<String, String> {
    match text.contains(['{', '}']) {
        true => Err("braces have no place here".to_owned()),
        false => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: Flags,
    }

    fn parse(arguments: &[&str]) -> Result<Flags, clap::Error> {
        Line::try_parse_from([&["proxy"], arguments].concat()).map(|line| line.flags)
    }

    fn table(arguments: &[&str]) -> toml::Table {
        let text = configuration(&parse(arguments).unwrap());
        text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"))
    }

    fn strings(value: &toml::Value) -> Vec<&str> {
        value.as_array().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
    }

    #[test]
    fn the_defaults_serve_every_host_on_every_address() {
        let table = table(&["--to", "3000"]);
        let server = table["server"].as_table().unwrap();
        assert_eq!(server.get("addresses"), None);
        assert_eq!(server["http"].as_integer(), Some(8080));
        assert_eq!(server["https"].as_integer(), Some(8443));
        assert_eq!(table["tls"]["self_signed"].as_bool(), Some(true));
        let site = &table["sites"]["proxy"];
        assert_eq!(strings(&site["hosts"]), ["*"]);
        assert_eq!(strings(&site["pool"]), ["127.0.0.1:3000"]);
    }

    #[test]
    fn flags_are_taken_over() {
        let table = table(&[
            "--to=10.0.0.5:80",
            "--to=unix:/run/app.sock",
            "--to=:8000",
            "--host=a.test",
            "--host=*.b.test",
            "--listen=127.0.0.1",
            "--listen=::1",
            "--http=off",
            "--https=443",
        ]);
        assert_eq!(strings(&table["server"]["addresses"]), ["127.0.0.1", "::1"]);
        assert_eq!(table["server"]["http"].as_str(), Some("off"));
        assert_eq!(table["server"]["https"].as_integer(), Some(443));
        let site = &table["sites"]["proxy"];
        assert_eq!(strings(&site["hosts"]), ["a.test", "*.b.test"]);
        assert_eq!(strings(&site["pool"]), ["10.0.0.5:80", "unix:/run/app.sock", "127.0.0.1:8000"]);
    }

    #[test]
    fn nothing_on_the_command_line_can_become_another_key() {
        for evil in [
            "a\"]\n[tls]\nself_signed = false #",
            "'''",
            "\\",
            "\u{7f}\t\r\n",
            "\"\"\"",
            "a\\u0022]",
            "ü\u{0}",
        ] {
            let table = table(&["--to", evil, "--host", evil]);
            assert_eq!(strings(&table["sites"]["proxy"]["pool"]), [evil]);
            assert_eq!(strings(&table["sites"]["proxy"]["hosts"]), [evil]);
            assert_eq!(table.len(), 4, "{table}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        for wrong in [
            &["--to", "0"][..],
            &["--to", "{env.BACKEND}"],
            &["--to", "1", "--host", "{file./etc/passwd}"],
            &["--to", "1", "--http", "0"],
            &["--to", "1", "--http", "70000"],
            &["--to", "1", "--https", "on"],
            &["--to", "1", "--listen", "example.com"],
            &[],
        ] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
