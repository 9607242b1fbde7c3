//! `[tls.acme]`: certificates from an authority, for every host of a site that has none.

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use foregate_certs::acme::{DIRECTORY, Eab, Kind, Settings};
use http::Uri;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::decode::{Table, Value};
use super::diagnostic::Problem;
use super::source::{Place, Placed};
use super::value::Misfit;
use crate::self_signed::file_name;

#[derive(Debug)]
pub(super) struct Acme {
    pub(super) place: Place,
    email: Option<String>,
    directory: String,
    challenges: Vec<Kind>,
    dns_hook: Option<Vec<String>>,
    ca: Option<Vec<u8>>,
    eab: Option<Eab>,
    pub(super) on_demand: Option<Placed<String>>,
}

impl Acme {
    pub(super) fn read(table: Table<'_>) -> Acme {
        let directory = table.read("directory", |value| value.parse("an https address", directory));
        let challenges = table.read("challenges", |value| value.at_least_one(kind));
        let acme = Acme {
            place: table.place(),
            email: table
                .read("email", |value| value.parse("an e-mail address", email))
                .map(|email| email.value),
            directory: directory.map_or_else(|| DIRECTORY.to_owned(), |directory| directory.value),
            challenges: challenges.unwrap_or_else(|| vec![Kind::TlsAlpn01, Kind::Http01]),
            dns_hook: table.read("dns_hook", hook),
            ca: table.read("ca", |value| read_ca(value)),
            eab: table.table("eab").and_then(eab),
            on_demand: table.table("on_demand").and_then(on_demand),
        };
        if acme.challenges.contains(&Kind::Dns01) && table.get("dns_hook").is_none() {
            let problem =
                Problem::error(table.key_place("challenges"), "dns-01 needs a program that writes records");
            table.problem(problem.help("name it as `dns_hook`"));
        }
        table.finish();
        acme
    }

    /// Whether certificates are made for names that no site has.
    pub(super) fn is_on_demand(&self) -> bool {
        self.on_demand.is_some()
    }

    pub(super) fn proves_wildcards(&self) -> bool {
        self.dns_hook.is_some()
    }

    /// Whether names can be proven in another way.
    pub(super) fn does_without(&self, kind: Kind) -> bool {
        self.challenges.iter().any(|one| *one != kind)
    }

    /// Where what comes of one authority is kept.
    pub(super) fn folder(&self, state_dir: &Path) -> PathBuf {
        let authority = self.directory.trim_start_matches("https://");
        state_dir.join("acme").join(file_name(authority))
    }

    /// `http`: that port is there to be asked.
    pub(super) fn settings(&self, state_dir: &Path, http: bool) -> Settings {
        let possible = |kind: &&Kind| http || **kind != Kind::Http01;
        Settings {
            directory: self.directory.clone(),
            email: self.email.clone(),
            challenges: self.challenges.iter().filter(possible).copied().collect(),
            dns_hook: self.dns_hook.clone(),
            ca: self.ca.clone(),
            eab: self.eab.clone(),
            ask: self.on_demand.as_ref().map(|ask| ask.value.clone()),
            folder: self.folder(state_dir),
        }
    }
}

fn directory(text: &str) -> Result<String, Misfit> {
    let uri =
        text.parse::<Uri>().ok().filter(|uri| uri.scheme_str() == Some("https") && uri.host().is_some());
    let misfit = || {
        Misfit::new(format!("\"{text}\" is not an https address"))
            .help("authorities speak ACME over HTTPS alone")
    };
    uri.map(|_| text.to_owned()).ok_or_else(misfit)
}

fn email(text: &str) -> Result<String, Misfit> {
    let fits =
        |(name, host): (&str, &str)| !name.is_empty() && host.contains('.') && !text.contains([' ', ',']);
    let misfit = || {
        Misfit::new(format!("\"{text}\" is not an e-mail address")).help("one such as \"ops@example.com\"")
    };
    text.split_once('@').filter(|parts| fits(*parts)).map(|_| text.to_owned()).ok_or_else(misfit)
}

fn kind(value: &Value<'_>) -> Option<Kind> {
    value.one_of(&[("tls-alpn-01", Kind::TlsAlpn01), ("http-01", Kind::Http01), ("dns-01", Kind::Dns01)])
}

fn hook(value: &Value<'_>) -> Option<Vec<String>> {
    value.at_least_one(|word| word.string().map(|word| word.value))
}

/// The text of a file that is named, whole.
fn contents(path: &Placed<PathBuf>, value: &Value<'_>) -> Option<Vec<u8>> {
    match fs::read(&path.value) {
        Ok(text) => Some(text),
        Err(error) => {
            value.problem(Problem::error(
                path.place,
                format!("{} cannot be read: {error}", path.value.display()),
            ));
            None
        }
    }
}

fn read_ca(value: &Value<'_>) -> Option<Vec<u8>> {
    let path = value.path()?;
    let text = contents(&path, value)?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    if roots.is_ok_and(|roots| !roots.is_empty()) {
        return Some(text);
    }
    let message = format!("{} holds no certificate", path.value.display());
    value.problem(Problem::error(path.place, message).help("PEM with BEGIN CERTIFICATE is expected"));
    None
}

/// Who says for which names certificates are made that only visitors know of.
fn on_demand(table: Table<'_>) -> Option<Placed<String>> {
    let ask = table.read("ask", |value| value.parse("an http or https address", address));
    if table.get("ask").is_none() && !table.misspells(&["ask"]) {
        let problem = Problem::absence(table.place(), format!("`{}` needs `ask`", table.name()));
        table.problem(problem.help(
            "else anybody could have certificates made for any name that leads here, until the authority has had enough",
        ));
    }
    table.finish();
    ask
}

fn address(text: &str) -> Result<String, Misfit> {
    let uri = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some());
    let uri = uri.filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")));
    let misfit = || {
        Misfit::new(format!("\"{text}\" is not an http or https address"))
            .help("one such as \"http://10.0.0.5:9000/allowed\"; it is asked with ?domain=NAME")
    };
    // It would be sent to nobody.
    let names_user = |uri: &Uri| uri.authority().is_some_and(|authority| authority.as_str().contains('@'));
    uri.filter(|uri| !text.contains('#') && !names_user(uri)).map(|_| text.to_owned()).ok_or_else(misfit)
}

fn eab(table: Table<'_>) -> Option<Eab> {
    let key_id = table.read("key_id", Value::string);
    let hmac_key = table.read("hmac_key_file", |value| {
        let path = value.path()?;
        let text = contents(&path, value)?;
        // Authorities give it away in base64url, some with padding.
        let text = String::from_utf8_lossy(&text);
        let key = BASE64_URL_SAFE_NO_PAD.decode(text.trim().trim_end_matches('='));
        if key.is_err() {
            let message = format!("{} does not hold a key", path.value.display());
            value.problem(
                Problem::error(path.place, message)
                    .help("it is one line in base64url, as the authority gave it"),
            );
        }
        key.ok()
    });
    for key in ["key_id", "hmac_key_file"] {
        if table.get(key).is_none() && !table.misspells(&[key]) {
            table.problem(Problem::absence(table.place(), format!("`{}` needs `{key}`", table.name())));
        }
    }
    table.finish();
    Some(Eab { key_id: key_id?.value, hmac_key: hmac_key? })
}
