//! Which certificate every host is shown, and what to do about hosts that have none.

use std::cell::LazyCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use foregate_certs::acme::{Kind, Plan, Wanted, on_demand_folder, on_demand_site};
use foregate_certs::{Certificate, CertificateStore};
use foregate_routing::HostPattern;

use super::acme::Acme;
use super::diagnostic::{Problem, Problems};
use super::server::Server;
use super::sites::{SiteDraft, SiteLayer};
use super::source::Place;
use super::suggest;
use super::tls::{CertificateFiles, Tls};
use crate::pair::Pair;
use crate::self_signed::{self, SelfSigned, file_name};

/// All that there are.
pub(super) struct Certificates {
    pub(super) store: CertificateStore,
    /// Those that were made.
    pub(super) made: Vec<SelfSigned>,
    /// Those in files.
    pub(super) pairs: Vec<Pair>,
    /// Those that an authority is to issue.
    pub(super) plan: Option<Plan>,
}

/// Opens every certificate and makes those that are missing, if it may. One that cannot be used any more may be among those
/// that are kept.
pub(super) fn compile(
    tls: &Tls,
    sites: &[(&SiteDraft, SiteLayer)],
    server: &Server,
    kept: &[Pair],
    problems: &Problems,
) -> Certificates {
    let mut gathered = Gathered { opened: Opened { kept, ..Opened::default() }, ..Gathered::default() };
    let mut sound = tls.sound && server.ports_known;
    for files in &tls.certificates {
        if let Some(certificate) = gathered.opened.open(files, problems) {
            gathered.names.extend(certificate.names().iter().cloned());
            gathered.listed.push(certificate);
        } else {
            sound = false;
        }
    }
    for (site, layer) in sites {
        gathered.add_site(site, layer, problems);
    }
    let https = !server.settings.https.is_empty();
    let plan = match &tls.acme {
        Some(acme) if https => Some(gathered.order_missing(acme, sites, server, problems)),
        Some(acme) => {
            let problem = Problem::warning(acme.place, "`tls.acme` has no effect while `https` is off");
            problems.push(problem.help("remove it, or give `https` a port"));
            None
        }
        None => None,
    };
    if https && tls.self_signed {
        gathered.make_missing(sites, server, problems);
    }
    let default = gathered.fallback(tls, sound, problems);
    // What a certificate that could not be read would have covered is not to be complained of as well.
    if https && sound && !tls.self_signed {
        let any = tls.acme.as_ref().is_some_and(|acme| acme.is_on_demand());
        let has_default = !default.is_empty() || tls.default_certificate.is_some();
        gathered.refuse_missing(sites, has_default, any, problems);
    }
    let Gathered { listed, by_host, made, opened, ordered, .. } = gathered;
    let pairs = opened.pairs.into_values().flatten().chain(ordered).collect();
    Certificates { store: CertificateStore::new(listed, by_host, default), made, pairs, plan }
}

#[derive(Default)]
struct Gathered<'k> {
    /// Of `[[tls.certificates]]`, found by the names in them.
    listed: Vec<Arc<Certificate>>,
    /// The names in those.
    names: HashSet<String>,
    /// Of single sites, written there or made for them.
    by_host: Vec<(HostPattern, Arc<Certificate>)>,
    /// The hosts of `by_host`, and those whose own certificate could not be opened, which was said already.
    provided: HashSet<HostPattern>,
    made: Vec<SelfSigned>,
    /// What an authority has issued or is to issue, and the hosts for which it is still waited for.
    ordered: Vec<Pair>,
    awaited: HashSet<HostPattern>,
    /// Made for clients that name no host.
    nameless: Option<Arc<Certificate>>,
    opened: Opened<'k>,
}

/// Files that stand in [defaults.sites] are opened once.
#[derive(Default)]
struct Opened<'k> {
    kept: &'k [Pair],
    pairs: HashMap<(PathBuf, PathBuf), Option<Pair>>,
}

impl Opened<'_> {
    fn open(&mut self, files: &CertificateFiles, problems: &Problems) -> Option<Arc<Certificate>> {
        let (cert, key) = (&files.cert.value, &files.key.value);
        let kept = self.kept;
        let pair = self.pairs.entry((cert.clone(), key.clone())).or_insert_with(|| {
            let error = match Pair::load(cert, key) {
                Ok(pair) => {
                    warn_of_refusal(pair.certificate.as_deref(), files, problems);
                    return Some(pair);
                }
                Err(error) => error,
            };
            let place = files.place_of(error.path());
            let before = kept.iter().find(|pair| pair.is_of(cert, key));
            problems.push(match before {
                Some(_) => Problem::warning(place, error.to_string())
                    .help("what was there before is shown on, until these files change again"),
                None => Problem::error(place, error.to_string()),
            });
            before.cloned()
        });
        pair.as_ref().and_then(|pair| pair.certificate.clone())
    }
}

/// Clients refuse it, and nobody may have meant that.
fn warn_of_refusal(certificate: Option<&Certificate>, files: &CertificateFiles, problems: &Problems) {
    if let Some(why) = certificate.and_then(Certificate::lacks_word) {
        let message = format!(
            "the certificate in {} is to be shown with its authority's word (OCSP): {why}",
            files.cert.value.display()
        );
        let help = "some clients refuse it without: append the authority's certificate, or have one issued without must-staple";
        problems.push(Problem::warning(files.cert.place, message).help(help));
    }
    let Some(facts) = certificate.and_then(Certificate::facts) else { return };
    let (now, file) = (SystemTime::now(), files.cert.value.display());
    let day = |time| humantime::format_rfc3339_seconds(time);
    if facts.not_after < now {
        let message = format!("the certificate in {file} has expired on {}", day(facts.not_after));
        problems.push(Problem::warning(files.cert.place, message).help("clients refuse it: renew it"));
    } else if facts.not_before > now {
        let message = format!("the certificate in {file} is not valid before {}", day(facts.not_before));
        problems.push(
            Problem::warning(files.cert.place, message)
                .help("clients refuse it until then; is the clock right?"),
        );
    }
}

impl Gathered<'_> {
    fn add_site(&mut self, site: &SiteDraft, layer: &SiteLayer, problems: &Problems) {
        let files = match (&layer.tls.cert, &layer.tls.key) {
            (None, None) => return,
            (Some(cert), Some(key)) => Some(CertificateFiles { cert: cert.clone(), key: key.clone() }),
            (Some(lonely), None) | (None, Some(lonely)) => {
                problems.push(Problem::error(lonely.place, "`cert` and `key` of a `tls` table go together"));
                None
            }
        };
        let certificate = files.as_ref().and_then(|files| self.opened.open(files, problems));
        for host in &site.hosts {
            self.provided.insert(host.value.clone());
            let Some(certificate) = &certificate else { continue };
            if !is_for(certificate, &host.value) {
                let message =
                    format!("the certificate of the site `{}` does not name {}", site.name.value, host.value);
                let problem = Problem::warning(host.place, message);
                problems.push(problem.help("clients will refuse it for this host"));
            }
            self.by_host.push((host.value.clone(), certificate.clone()));
        }
    }

    /// Whether a client that asks for this host is shown a certificate meant for it.
    fn covered(&self, host: &HostPattern) -> bool {
        if self.provided.contains(host) {
            return true;
        }
        let listed = |name: &str| self.names.contains(name);
        match host {
            HostPattern::Exact(name) => {
                listed(name) || HostPattern::over(name).is_some_and(|wildcard| listed(&wildcard.to_string()))
            }
            HostPattern::Wildcard(parent) => listed(&format!("*.{parent}")),
            HostPattern::Any => false,
        }
    }

    /// Has an authority issue a certificate for each site that lacks one. What it has issued already is shown.
    fn order_missing(
        &mut self,
        acme: &Acme,
        sites: &[(&SiteDraft, SiteLayer)],
        server: &Server,
        problems: &Problems,
    ) -> Plan {
        let http = !server.settings.http.is_empty();
        if !http && !acme.does_without(Kind::Http01) {
            let problem = Problem::error(acme.place, "http-01 is the only challenge, and `http` is off");
            problems.push(problem.help("give `http` the port 80, or add \"tls-alpn-01\" to `challenges`"));
        }
        let (folder, mut wanted) = (acme.folder(&server.state_dir), Vec::new());
        let earlier = LazyCell::new(|| issued_earlier(&server.state_dir));
        for (site, _) in sites {
            let mut lacking = site.hosts.clone();
            // What clients do not send as a name is not found by one.
            lacking.retain(|host| match &host.value {
                HostPattern::Any => false,
                HostPattern::Exact(name) if name.parse::<IpAddr>().is_ok() => false,
                host => !self.covered(host),
            });
            if let Some(host) = lacking.iter().find(|host| matches!(host.value, HostPattern::Wildcard(_)))
                && !acme.proves_wildcards()
            {
                let message = format!("a certificate for {} takes a proof by DNS", host.value);
                let help = "name a program that writes DNS records as `dns_hook` in [tls.acme], or give the site a certificate in files";
                problems.push(Problem::error(host.place, message).help(help));
            }
            if lacking.is_empty() {
                continue;
            }
            let name = &site.name.value;
            let file = folder.join(format!("site-{}.pem", file_name(name)));
            let (mut pair, loaded) = Pair::ordered(&file, name);
            if let Err(error) = loaded {
                problems.push(Problem::overall(format!("{error}; a new one is ordered")));
            }
            if pair.certificate.is_none() {
                // What has been shown so far is better than nothing.
                let before = self.opened.kept.iter().find(|kept| kept.is_of(&file, &file));
                pair.certificate = before.and_then(|kept| kept.certificate.clone());
            }
            for host in &lacking {
                let name = host.value.to_string();
                // Until there is one of its own, one that was issued under another name of the site, or by another authority, will do.
                let own = pair.certificate.as_ref().filter(|one| one.is_named(&name));
                let fits = |one: &&Arc<Certificate>| one.is_named(&name);
                match own.or_else(|| earlier.iter().find(fits)) {
                    Some(certificate) => {
                        self.provided.insert(host.value.clone());
                        self.by_host.push((host.value.clone(), certificate.clone()));
                    }
                    None => _ = self.awaited.insert(host.value.clone()),
                }
            }
            let mut hosts: Vec<String> = lacking.iter().map(|host| certified(&host.value)).collect();
            hosts.sort();
            hosts.dedup();
            // Some authorities refuse what a wildcard beside it covers.
            let all = hosts.clone();
            let by_wildcard = |host: &str| HostPattern::over(host).map(|wildcard| wildcard.to_string());
            hosts.retain(|host| {
                host.starts_with("*.") || by_wildcard(host).is_none_or(|wildcard| !all.contains(&wildcard))
            });
            wanted.push(Wanted { site: name.clone(), hosts, file, on_demand: false });
            self.ordered.push(pair);
        }
        if let Some(ask) = &acme.on_demand {
            if any_host(sites) {
                wanted.extend(self.made_on_demand(&folder, &server.state_dir, sites, &earlier));
            } else {
                let problem =
                    Problem::warning(ask.place, "no site has the host \"*\": nobody asks for other names");
                problems
                    .push(problem.help("certificates for hosts that are written down are made without it"));
            }
        }
        Plan { settings: acme.settings(&server.state_dir, http), wanted }
    }

    /// Shows what has been made for names that visitors have asked for, and has it renewed. What is added is shown as well.
    fn made_on_demand(
        &mut self,
        folder: &Path,
        state_dir: &Path,
        sites: &[(&SiteDraft, SiteLayer)],
        earlier: &[Arc<Certificate>],
    ) -> Vec<Wanted> {
        let folder = on_demand_folder(folder);
        self.ordered.push(Pair::folder(&folder));
        let named: HashSet<&HostPattern> =
            sites.iter().flat_map(|(site, _)| &site.hosts).map(|host| &host.value).collect();
        // Another authority is to issue the next one, and until it has, the one before will do.
        let everywhere =
            files_in(&state_dir.join("acme")).flat_map(|authority| files_in(&on_demand_folder(&authority)));
        let names: BTreeSet<String> = everywhere
            .filter(|file| file.extension().is_some_and(|ending| ending == "pem"))
            .filter_map(|file| Some(file.file_stem()?.to_str()?.to_owned()))
            .collect();
        let mut wanted = Vec::new();
        for name in names {
            let Ok(host) = super::host::pattern(&name) else { continue };
            let is_named =
                named.contains(&host) || HostPattern::over(&name).is_some_and(|one| named.contains(&one));
            // It may have become a site's own.
            if is_named || self.covered(&host) {
                continue;
            }
            let (site, file) = (on_demand_site(&name), folder.join(format!("{name}.pem")));
            let (pair, loaded) = Pair::ordered(&file, &site);
            if let Err(error) = loaded {
                tracing::warn!("{error}; a new one is ordered");
            }
            let shown = pair.certificate.clone();
            if let Some(certificate) =
                shown.or_else(|| earlier.iter().find(|one| one.is_named(&name)).cloned())
            {
                self.provided.insert(host.clone());
                self.by_host.push((host, certificate));
            }
            self.ordered.push(pair);
            wanted.push(Wanted { site, hosts: vec![name], file, on_demand: true });
        }
        wanted
    }

    /// Makes a certificate for each site that lacks one, and one for clients that name no host.
    fn make_missing(&mut self, sites: &[(&SiteDraft, SiteLayer)], server: &Server, problems: &Problems) {
        let folder = server.state_dir.join("self-signed");
        let now = SystemTime::now();
        let make =
            |name: &str, hosts: &[String], place: Place| match self_signed::obtain(&folder, name, hosts, now)
            {
                Ok(made) => Some(made),
                Err(error) => {
                    problems.push(Problem::error(place, error.to_string()));
                    None
                }
            };
        // "*" is left to the one for all; so are addresses, which clients do not send as a name.
        let mut fallback = ["localhost", "*.localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        let addresses = server.settings.addresses.iter().filter(|address| !address.is_unspecified());
        fallback.extend(addresses.map(IpAddr::to_string));
        for (site, _) in sites {
            let mut lacking = site.hosts.clone();
            lacking.retain(|host| host.value != HostPattern::Any && !self.covered(&host.value));
            let Some(first) = lacking.first() else { continue };
            let hosts: Vec<String> = lacking.iter().map(|host| certified(&host.value)).collect();
            fallback.extend(hosts.iter().filter(|host| host.parse::<IpAddr>().is_ok()).cloned());
            let Some(made) = make(&format!("site-{}", site.name.value), &hosts, first.place) else {
                continue;
            };
            let certificate = &made.certificate;
            self.by_host.extend(lacking.iter().map(|host| (host.value.clone(), certificate.clone())));
            self.made.push(made);
        }
        if let Some(made) = make("default", &fallback, Place { file: 0, start: 0, end: 0 }) {
            self.nameless = Some(made.certificate.clone());
            self.made.push(made);
        }
    }

    /// What clients with no or an unknown SNI are shown.
    fn fallback(&self, tls: &Tls, sound: bool, problems: &Problems) -> Vec<Arc<Certificate>> {
        let Some(wanted) = &tls.default_certificate else { return self.nameless.iter().cloned().collect() };
        let store = CertificateStore::new(self.listed.clone(), self.by_host.clone(), Vec::new());
        let host = wanted.value.to_ascii_lowercase();
        let found = store.find(&host);
        if !(found.is_empty() && sound) || self.awaits(&host) {
            return found.to_vec();
        }
        let known: Vec<&str> =
            self.listed.iter().flat_map(|listed| listed.names()).map(String::as_str).collect();
        let problem = Problem::error(wanted.place, format!("no certificate is for {}", wanted.value));
        problems.push(match suggest::nearest(&host, known.iter().copied()) {
            Some(word) => problem.suggest(Some(word)),
            None if known.is_empty() => problem.help("list one under [[tls.certificates]]"),
            None => problem.help(format!("the certificates are for {}", known.join(", "))),
        });
        Vec::new()
    }

    /// Whether an authority is to issue one for it.
    fn awaits(&self, host: &str) -> bool {
        self.awaited.contains(&HostPattern::Exact(host.into()))
            || HostPattern::over(host).is_some_and(|wildcard| self.awaited.contains(&wildcard))
    }

    /// `any`: certificates are made on demand.
    fn refuse_missing(
        &self,
        sites: &[(&SiteDraft, SiteLayer)],
        has_default: bool,
        any: bool,
        problems: &Problems,
    ) {
        for (site, _) in sites {
            // A client that names no host is shown the default, and for "*" anything may be meant.
            let by_default = |host: &HostPattern| match host {
                HostPattern::Any => has_default || any,
                HostPattern::Exact(name) => has_default && name.parse::<IpAddr>().is_ok(),
                HostPattern::Wildcard(_) => false,
            };
            let provided =
                |host: &HostPattern| self.covered(host) || by_default(host) || self.awaited.contains(host);
            let lacking: Vec<_> = site.hosts.iter().filter(|host| !provided(&host.value)).collect();
            let Some(first) = lacking.first() else { continue };
            let hosts: Vec<String> = lacking.iter().map(|host| host.value.to_string()).collect();
            let message = format!("there is no certificate for {}", hosts.join(", "));
            problems.push(Problem::error(first.place, message).help(
                "there are three ways to one: a file under [[tls.certificates]], [tls.acme] for certificates of an authority, \
                 or `self_signed = true` in [tls] for development",
            ));
        }
    }
}

/// In no order; none, if there is no such folder.
fn files_in(folder: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Whether a site is there for every host.
fn any_host(sites: &[(&SiteDraft, SiteLayer)]) -> bool {
    sites.iter().any(|(site, _)| site.hosts.iter().any(|host| host.value == HostPattern::Any))
}

/// Certificates that authorities have issued for this gateway, whatever for, and that are good now.
fn issued_earlier(state_dir: &Path) -> Vec<Arc<Certificate>> {
    let of = |authority: PathBuf| files_in(&authority).chain(files_in(&on_demand_folder(&authority)));
    let files = files_in(&state_dir.join("acme")).flat_map(of);
    let files = files.filter(|file| file.extension().is_some_and(|ending| ending == "pem"));
    let is_good = |one: &Certificate| one.facts().is_some_and(|facts| facts.not_after > SystemTime::now());
    files.filter_map(|file| Certificate::load(&file, &file).ok()).filter(is_good).map(Arc::new).collect()
}

/// A host as certificates name it: IPv6 addresses stand there without brackets.
fn certified(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(name) => name.to_string(),
        other => other.to_string(),
    }
}

/// Whether a certificate was made for this host. A self-signed one of ours stands in for any, but is found
/// by host only.
fn is_for(certificate: &Certificate, host: &HostPattern) -> bool {
    match host {
        HostPattern::Exact(name) => certificate.covers(name),
        HostPattern::Wildcard(_) => certificate.names().contains(&host.to_string()),
        HostPattern::Any => false,
    }
}
