//! `foregate demo`: everything in one process, to see the gateway at work.

mod page;
mod ports;
mod vm;

use std::fmt::Write as _;
use std::net::SocketAddr;

use clap::Args;
use foregate_edge::Listening;

use crate::cli::{Exit, complain, load_made, say};
use crate::control::Origin;
use crate::systemd::Given;
use crate::{log, run};

use self::ports::Choice;
use self::vm::Vm;

#[derive(Args, Debug)]
pub(crate) struct Flags {
    /// The port for plain HTTP; without it 8080, or the next one that is free
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    http: Option<u16>,
    /// The port for HTTPS and HTTP/3; without it 8443, or the next one that is free
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    https: Option<u16>,
}

/// Starts the VMs and serves until a signal asks for the end.
pub(crate) fn main(flags: &Flags) -> Exit {
    let choice = match ports::choose(flags.http, flags.https) {
        Ok(choice) => choice,
        Err(taken) => {
            complain(format_args!("foregate: {taken}"));
            return Exit::Failed;
        }
    };
    let vms = match vm::start() {
        Ok(vms) => vms,
        Err(error) => {
            complain(format_args!("foregate: the demo VMs cannot start: {error}"));
            return Exit::Failed;
        }
    };
    let loaded = match load_made("the demo's configuration", &configuration(&choice, &vms)) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    log::start();
    for (vm, address) in &vms {
        say(format_args!("demo VM {} on http://{address}", vm.name));
    }
    if let Some(notice) = choice.notice() {
        say(notice);
    }
    run::serve(loaded, Origin::Made, None, None, Given::default(), |listeners| say(instructions(listeners)))
}

fn configuration(choice: &Choice, vms: &[(Vm, SocketAddr)]) -> String {
    let mut text = format!(
        "admin.listen = \"off\"\n\n[server]\naddresses = \"127.0.0.1\"\nhttp = {}\nhttps = {}\nredirect_to_https = false\n\
         timeouts = {{ drain = \"10s\" }}\n\n\
         [tls]\nself_signed = true\n\n\
         [sites.demo]\nhosts = \"*\"\npool = \"vms\"\n\n\
         [pools.vms]\nhealth = {{ http = {{ path = \"/healthz\" }} }}\nbackends = [\n",
        choice.http, choice.https,
    );
    for (vm, address) in vms {
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {{ address = \"{address}\", name = \"{}\" }},", vm.name);
    }
    text.push_str("]\n");
    text
}

/// What to do now.
fn instructions(listeners: &[Listening]) -> String {
    let address = |secure: bool| listeners.iter().find(|one| one.secure == secure).map(|one| one.address);
    match (address(false), address(true)) {
        (Some(plain), Some(secure)) => format!(
            "
Open in a browser:
  http://{plain}/
  https://{secure}/
      The certificate is self-signed, so the browser asks before it goes there. Browsers use HTTP/3
      only with a certificate they trust; curl is less strict.

Ask over each HTTP version:
  HTTP/1.1             curl http://{plain}/api/whoami
  HTTP/1.1 with TLS    curl -k --http1.1 https://{secure}/api/whoami
  HTTP/2               curl -k --http2 https://{secure}/api/whoami
  HTTP/3               curl -k --http3-only https://{secure}/api/whoami
      The last one needs a curl with HTTP/3: `curl --version` then lists HTTP3.

See a request finish although the gateway was told to stop:
  curl 'http://{plain}/slow?seconds=5'    and meanwhile Ctrl-C here

Ctrl-C stops the gateway and its VMs."
        ),
        _ => "Ctrl-C stops the gateway and its VMs.".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_every_vm() {
        let choice = Choice { http: 8081, https: 8444, moved: false };
        let vms: Vec<(Vm, SocketAddr)> =
            vm::VMS.into_iter().zip([1, 2, 3].map(|port| SocketAddr::from(([127, 0, 0, 1], port)))).collect();
        let text = configuration(&choice, &vms);
        let table: toml::Table = text.parse().unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(table["server"]["http"].as_integer(), Some(8081));
        assert_eq!(table["server"]["https"].as_integer(), Some(8444));
        let backends = table["pools"]["vms"]["backends"].as_array().unwrap();
        let named: Vec<&str> = backends.iter().map(|backend| backend["name"].as_str().unwrap()).collect();
        assert_eq!(named, vm::VMS.map(|vm| vm.name));
        assert_eq!(backends[2]["address"].as_str(), Some("127.0.0.1:3"));
    }
}
