//! Which sites ask clients for certificates, and by what those are judged.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use foregate_certs::{ClientAuth, ClientAuthError};
use foregate_edge::Live;
use foregate_routing::ClientRules;

use super::diagnostic::{Problem, Problems};
use super::sites::{ClientAuthWord, SiteDraft, SiteLayer};
use super::source::Placed;
use crate::pair::Pair;

/// The files of an authority and of its list, and whether clients must have a certificate.
type Asked = (PathBuf, Option<PathBuf>, bool);

/// Opens each file once, however many sites name it.
pub(super) struct Clients<'p> {
    previous: Option<&'p Live>,
    /// Nothing but files has changed, so what cannot be used any more is kept as it was.
    renews: bool,
    opened: HashMap<Asked, Option<Arc<ClientAuth>>>,
    watched: Vec<Pair>,
    problems: &'p Problems,
}

impl<'p> Clients<'p> {
    pub(super) fn new(previous: Option<&'p Live>, renews: bool, problems: &'p Problems) -> Clients<'p> {
        Clients { previous, renews, opened: HashMap::new(), watched: Vec::new(), problems }
    }

    /// What a site asks of its clients. `layer` is merged over the defaults; `https`: there is a port for it.
    pub(super) fn of(&mut self, site: &SiteDraft, layer: &SiteLayer, https: bool) -> Option<ClientRules> {
        let tls = &layer.tls;
        let Some(ca) = tls.client_ca.as_ref().filter(|_| tls.asks_clients()) else {
            match (&tls.client_auth, &tls.client_crl) {
                (Some(word), _) if word.value != ClientAuthWord::Off => {
                    self.lacks_authority(word, "clients are asked for a certificate, and none would be good");
                }
                (None, Some(crl)) => {
                    self.lacks_authority(crl, "`client_crl` says nothing without `client_ca`")
                }
                _ => {}
            }
            return None;
        };
        let required = tls.client_auth.as_ref().is_none_or(|word| word.value == ClientAuthWord::Require);
        if !https {
            let problem = Problem::warning(ca.place, "no client can show a certificate while `https` is off");
            self.problems.push(problem.help("give `https` a port, or write `client_auth = \"off\"`"));
        }
        if layer.early_data == Some(true) {
            let message = format!("the site `{}` takes no requests in 0-RTT", site.name.value);
            let problem = Problem::warning(site.name.place, message);
            let problem = problem.other(ca.place, "it asks who the client is, which is not known by then");
            self.problems.push(problem.help("remove `early_data`"));
        }
        let crl = tls.client_crl.as_ref();
        let asked = (ca.value.clone(), crl.map(|crl| crl.value.clone()), required);
        if !self.opened.contains_key(&asked) {
            let opened = self.open(site, ca, crl, required);
            self.opened.insert(asked.clone(), opened);
        }
        self.opened.get(&asked).cloned().flatten().map(|clients| clients.rules())
    }

    /// All that some site asks for, each once.
    pub(super) fn all(self) -> (Vec<Arc<ClientAuth>>, Vec<Pair>) {
        let mut all: Vec<_> = self.opened.into_values().flatten().collect();
        all.sort_by_key(|clients| clients.rules().digest);
        all.dedup_by_key(|clients| clients.rules().digest);
        (all, self.watched)
    }

    fn open(
        &mut self,
        site: &SiteDraft,
        ca: &Placed<PathBuf>,
        crl: Option<&Placed<PathBuf>>,
        required: bool,
    ) -> Option<Arc<ClientAuth>> {
        // Before they are read: what changes meanwhile is read again.
        self.watched.push(Pair::watched(&ca.value, &crl.unwrap_or(ca).value));
        match ClientAuth::load(&ca.value, crl.map(|crl| crl.value.as_path()), required) {
            Ok(clients) => {
                for warning in clients.warnings() {
                    self.problems.push(Problem::warning(crl.unwrap_or(ca).place, warning.as_str()));
                }
                Some(Arc::new(clients))
            }
            Err(error) => self.go_on(site, ca, crl, &error),
        }
    }

    /// With what was there before these files could not be used any more, if there was something.
    fn go_on(
        &self,
        site: &SiteDraft,
        ca: &Placed<PathBuf>,
        crl: Option<&Placed<PathBuf>>,
        error: &ClientAuthError,
    ) -> Option<Arc<ClientAuth>> {
        let before = self.previous.filter(|_| self.renews).and_then(|live| {
            let before = live.routing.sites().iter().find(|one| *one.name == *site.name.value)?;
            let digest = before.tls.clients?.digest;
            live.clients.iter().find(|clients| clients.rules().digest == digest).cloned()
        });
        let at_fault = crl.filter(|crl| crl.value == error.path()).unwrap_or(ca);
        self.problems.push(match before {
            Some(_) => Problem::warning(at_fault.place, error.to_string())
                .help("clients are judged by what was there before, until these files change again"),
            None => Problem::error(at_fault.place, error.to_string()),
        });
        before
    }

    fn lacks_authority<T>(&self, written: &Placed<T>, message: &str) {
        let problem = Problem::error(written.place, message);
        self.problems.push(
            problem.help(
                "name the file of the authority that certifies the clients: client_ca = \"clients.pem\"",
            ),
        );
    }
}
