//! One order, from the names to the certificate in its file (RFC 8555, section 7.1).

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use instant_acme::{
    AuthorizationStatus, ChallengeType, Identifier, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};

use super::account::Client;
use super::challenges::Offer;
use super::hook::Record;
use super::{Challenges, Keep, Kind, Settings, Trouble, Wanted, told};
use crate::Certificate;

/// How long the authority may look for our answers, or work on a certificate.
const POLLING: RetryPolicy = RetryPolicy::new()
    .initial_delay(Duration::from_millis(500))
    .backoff(1.5)
    .timeout(Duration::from_secs(120));

/// An order that was begun, kept so that whoever comes after a crash goes on with it.
#[derive(Debug, Serialize, Deserialize)]
struct Begun {
    url: String,
    hosts: Vec<String>,
    /// Of the certificate, in PEM.
    key: String,
}

/// Orders a certificate and writes it to its file.
pub(super) async fn obtain(
    client: &Client,
    settings: &Settings,
    wanted: &Wanted,
    challenges: &Arc<Challenges>,
    keep: Keep,
) -> Result<(), Trouble> {
    let note = wanted.note();
    let result = attempt(client, settings, wanted, challenges, keep, &note).await;
    result.map_err(|trouble| Trouble { not_before: client.not_before(), ..trouble })
}

async fn attempt(
    client: &Client,
    settings: &Settings,
    wanted: &Wanted,
    challenges: &Arc<Challenges>,
    keep: Keep,
    note: &Path,
) -> Result<(), Trouble> {
    let (mut order, begun) = match resumed(client, wanted, note).await? {
        Some(resumed) => resumed,
        None => begin(client, wanted, keep, note).await?,
    };
    let chain = match finish(&mut order, &begun, settings, challenges).await {
        Ok(chain) => chain,
        Err(trouble) => {
            // Where the authority has only not been reached, or is not done, the order goes on next time.
            if order.state().status == OrderStatus::Invalid
                || order.state().error.is_some()
                || trouble.is_final
            {
                forget(note);
            }
            return Err(trouble);
        }
    };
    let text = format!("{}\n{}", chain.trim_end(), begun.key);
    if let Err(trouble) = check(&text, wanted) {
        // A new order is the only way on.
        forget(note);
        return Err(trouble);
    }
    keep(&wanted.file, text.as_bytes()).map_err(|error| Trouble::unwritten(&wanted.file, &error))?;
    forget(note);
    Ok(())
}

fn forget(note: &Path) {
    // It need not be there.
    _ = fs::remove_file(note);
}

/// The order of an attempt before this one, if it is for the same hosts and the authority still knows it.
async fn resumed(client: &Client, wanted: &Wanted, note: &Path) -> Result<Option<(Order, Begun)>, Trouble> {
    let begun = fs::read(note).ok().and_then(|text| serde_json::from_slice::<Begun>(&text).ok());
    let Some(begun) = begun.filter(|begun| begun.hosts == wanted.hosts) else {
        forget(note);
        return Ok(None);
    };
    let is_gone = |error: &instant_acme::Error| matches!(error, instant_acme::Error::Api(problem) if matches!(problem.status, Some(400 | 403 | 404 | 410)));
    match client.account.order(begun.url.clone()).await {
        Ok(mut order) => {
            if order.state().status != OrderStatus::Invalid {
                tracing::info!(
                    site = wanted.site,
                    "going on with the order for a certificate that was begun before"
                );
                return Ok(Some((order, begun)));
            }
        }
        Err(error) if is_gone(&error) => {}
        Err(error) => return Err(error.into()),
    }
    forget(note);
    Ok(None)
}

async fn begin(client: &Client, wanted: &Wanted, keep: Keep, note: &Path) -> Result<(Order, Begun), Trouble> {
    let names: Vec<Identifier> = wanted.hosts.iter().cloned().map(Identifier::Dns).collect();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256);
    let key = key.map_err(|error| Trouble::new(format!("no key can be made: {error}")))?;
    let order = client.account.new_order(&NewOrder::new(&names)).await?;
    let begun = Begun { url: order.url().to_owned(), hosts: wanted.hosts.clone(), key: key.serialize_pem() };
    let text = serde_json::to_vec(&begun).map_err(|error| Trouble::new(error.to_string()))?;
    keep(note, &text).map_err(|error| Trouble::unwritten(note, &error))?;
    Ok((order, begun))
}

/// Does what the authority asks for, and fetches the chain.
async fn finish(
    order: &mut Order,
    begun: &Begun,
    settings: &Settings,
    challenges: &Arc<Challenges>,
) -> Result<String, Trouble> {
    if order.state().status == OrderStatus::Pending {
        let mut proofs = Proofs::default();
        let proven = async {
            prove(order, settings, challenges, &mut proofs).await?;
            order.poll_ready(&POLLING).await.map_err(Trouble::from)
        };
        let proven = proven.await;
        proofs.end().await;
        match (proven, order.state().status) {
            (_, OrderStatus::Invalid) => return Err(refusal(order).await),
            (proven, _) => _ = proven?,
        }
    }
    if order.state().status == OrderStatus::Ready {
        let request =
            request(begun).map_err(|error| Trouble::new(format!("no request can be made: {error}")))?;
        order.finalize_csr(&request).await?;
    }
    Ok(order.poll_certificate(&POLLING).await?)
}

/// What is shown to the authority until it has looked.
#[derive(Default)]
struct Proofs {
    offers: Vec<Offer>,
    records: Vec<Record>,
}

impl Proofs {
    async fn end(self) {
        drop(self.offers);
        for record in self.records {
            record.clean_up().await;
        }
    }
}

/// Shows for each name what the authority wants to see, and tells it to look.
async fn prove(
    order: &mut Order,
    settings: &Settings,
    challenges: &Arc<Challenges>,
    proofs: &mut Proofs,
) -> Result<(), Trouble> {
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let (name, wildcard) = match authorization.identifier().identifier {
            Identifier::Dns(name) => (name.clone(), authorization.wildcard),
            _ => return Err(Trouble::new("the authority asks for something that is no name")),
        };
        match authorization.status {
            AuthorizationStatus::Valid => continue,
            AuthorizationStatus::Pending => {}
            other => {
                let message = format!("{name}: the authority's leave is {other:?}");
                return Err(Trouble { is_final: true, ..Trouble::new(message) });
            }
        }
        let offered: Vec<ChallengeType> =
            authorization.challenges.iter().map(|challenge| challenge.r#type.clone()).collect();
        let Some(kind) = choose(settings, &offered, wildcard) else {
            return Err(Trouble::new(format!(
                "{name}: the authority asks for {offered:?}, and none of these is in `challenges`"
            )));
        };
        let Some(mut challenge) = authorization.challenge(kind.name()) else { continue };
        let key = challenge.key_authorization();
        match (kind, &settings.dns_hook) {
            (Kind::Http01, _) => proofs.offers.push(challenges.offer_text(&challenge.token, key.as_str())),
            (Kind::TlsAlpn01, _) => {
                proofs.offers.push(challenges.offer_certificate(&name, key.digest().as_ref())?);
            }
            (Kind::Dns01, hook) => {
                let hook = hook.as_deref().unwrap_or_default();
                let record = Record::new(hook, &name, key.dns_value());
                // Also one that may have been written by half is removed.
                proofs.records.push(record);
                if let Some(record) = proofs.records.last() {
                    record.present().await?;
                }
            }
        }
        challenge.set_ready().await?;
    }
    Ok(())
}

fn choose(settings: &Settings, offered: &[ChallengeType], wildcard: bool) -> Option<Kind> {
    let possible = |kind: &Kind| match kind {
        Kind::Dns01 => settings.dns_hook.is_some(),
        Kind::Http01 | Kind::TlsAlpn01 => !wildcard,
    };
    // Where a wildcard needs it, DNS is used without being named.
    let last = [Kind::Dns01].into_iter().filter(|_| wildcard);
    let mut kinds = settings.challenges.iter().copied().chain(last);
    kinds.find(|kind| possible(kind) && offered.contains(&kind.name()))
}

impl Kind {
    fn name(self) -> ChallengeType {
        match self {
            Kind::Http01 => ChallengeType::Http01,
            Kind::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Kind::Dns01 => ChallengeType::Dns01,
        }
    }
}

/// What the authority did not like, name by name.
async fn refusal(order: &mut Order) -> Trouble {
    let mut reasons = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let Ok(mut authorization) = authorization else { continue };
        let Ok(state) = authorization.refresh().await else { continue };
        let name = state.identifier().to_string();
        for challenge in &state.challenges {
            if let Some(problem) = &challenge.error {
                reasons.push(format!("{name}: {}", told(problem)));
            }
        }
    }
    if reasons.is_empty() {
        reasons.extend(order.state().error.as_ref().map(told));
    }
    match reasons.as_slice() {
        [] => Trouble::new("the authority refuses without a reason"),
        reasons => Trouble::new(reasons.join("; ")),
    }
}

/// The request for a certificate (RFC 8555, section 7.4).
fn request(begun: &Begun) -> Result<Vec<u8>, rcgen::Error> {
    let mut params = CertificateParams::new(begun.hosts.clone())?;
    params.distinguished_name = DistinguishedName::new();
    Ok(params.serialize_request(&KeyPair::from_pem(&begun.key)?)?.der().to_vec())
}

/// Whether what the authority has sent is what was asked for.
fn check(text: &str, wanted: &Wanted) -> Result<(), Trouble> {
    let unfit = |reason: String| Trouble::new(format!("the authority has sent a certificate that {reason}"));
    let certificate = Certificate::from_pem(text.as_bytes(), text.as_bytes())
        .map_err(|error| unfit(format!("cannot be used: {error}")))?;
    if let Some(missing) = wanted.hosts.iter().find(|host| !certificate.is_named(host)) {
        return Err(unfit(format!("is not for {missing}")));
    }
    match certificate.facts() {
        None => Err(unfit("cannot be read".to_owned())),
        Some(facts) if facts.not_after <= SystemTime::now() => Err(unfit("has expired".to_owned())),
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn settings(challenges: &[Kind], hook: bool) -> Settings {
        Settings {
            ask: None,
            directory: String::new(),
            email: None,
            challenges: challenges.to_vec(),
            dns_hook: hook.then(|| vec!["hook".to_owned()]),
            ca: None,
            eab: None,
            folder: PathBuf::new(),
        }
    }

    #[test]
    fn a_wildcard_is_proven_by_dns_and_the_rest_in_the_order_of_the_file() {
        use ChallengeType as T;
        let all = [T::Dns01, T::Http01, T::TlsAlpn01];
        let ports = settings(&[Kind::TlsAlpn01, Kind::Http01], true);
        assert_eq!(choose(&ports, &all, false), Some(Kind::TlsAlpn01));
        assert_eq!(choose(&ports, &[T::Http01, T::Dns01], false), Some(Kind::Http01));
        assert_eq!(choose(&ports, &[T::Dns01], false), None);
        assert_eq!(choose(&ports, &all, true), Some(Kind::Dns01));
        assert_eq!(choose(&settings(&[Kind::Http01], false), &all, true), None);
        assert_eq!(choose(&settings(&[Kind::Dns01, Kind::Http01], true), &all, false), Some(Kind::Dns01));
        assert_eq!(choose(&settings(&[Kind::Dns01, Kind::Http01], false), &all, false), Some(Kind::Http01));
    }

    #[test]
    fn what_was_not_asked_for_is_not_taken() {
        let key = KeyPair::generate().unwrap();
        let made = |hosts: &[&str], end: i32| {
            let mut params =
                CertificateParams::new(hosts.iter().map(|&host| host.to_owned()).collect::<Vec<_>>())
                    .unwrap();
            params.not_after = rcgen::date_time_ymd(end, 1, 1);
            params.self_signed(&key).unwrap().pem() + &key.serialize_pem()
        };
        let hosts = ["a.test", "*.a.test"].map(str::to_owned).to_vec();
        let wanted = Wanted { site: "a".to_owned(), hosts, file: PathBuf::from("a.pem"), on_demand: false };
        assert!(check(&made(&["a.test", "*.a.test"], 4000), &wanted).is_ok());
        let refused = |text: &str| check(text, &wanted).unwrap_err().to_string();
        assert!(refused(&made(&["a.test"], 4000)).contains("is not for *.a.test"));
        assert!(refused(&made(&["a.test", "*.a.test"], 2001)).contains("expired"));
        assert!(refused("nonsense").contains("cannot be used"));
        let other = made(&["a.test", "*.a.test"], 4000);
        let (chain, _) = other.split_at(other.find("-----BEGIN PRIVATE").unwrap());
        let foreign = chain.to_owned() + &KeyPair::generate().unwrap().serialize_pem();
        assert!(refused(&foreign).contains("cannot be used"));
    }
}
