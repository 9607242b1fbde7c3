//! The way to the administration of a running gateway.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use foregate_exchange::{Body, Failure};
use foregate_routing::{Address, Endpoint, InFlight};
use foregate_upstream::{Client, Outgoing, Protocol, Transport, TransportSpec};
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;
use tokio::runtime::{Builder, LocalOptions};
use toml::de::DeTable;

use super::Where;
use crate::cli::Exit;
use crate::config::{self, Admin};
use crate::state;

/// Reading a configuration with many certificates takes its time.
const PATIENCE: Duration = Duration::from_secs(300);

/// Why there is no answer, or not the one that was hoped for.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) exit: Exit,
    pub(super) sentence: String,
}

impl Trouble {
    /// The command line is wrong.
    pub(super) fn usage(sentence: String) -> Trouble {
        Trouble { exit: Exit::Invalid, sentence }
    }

    fn failed(sentence: String) -> Trouble {
        Trouble { exit: Exit::Failed, sentence }
    }
}

/// One request.
pub(super) struct Asked<'p> {
    pub(super) method: Method,
    pub(super) path: &'p str,
    pub(super) body: String,
}

/// A running gateway's administration.
pub(super) struct Gateway {
    /// Where it may be, the likeliest first.
    addresses: Vec<Address>,
    token: Option<String>,
}

/// A name as a part of a path.
pub(super) fn part(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

impl Gateway {
    /// The one that the flags name, or the configuration file, or the usual one. The file may have been changed since the
    /// gateway has read it, so the place where that was heard last is another that may be right.
    pub(super) fn find(at: &Where) -> Result<Gateway, Trouble> {
        let written = Written::of(&at.config);
        let mut places: Vec<String> = match &at.admin {
            Some(place) => vec![place.clone()],
            None => {
                let usual = || Admin::default().listen.to_string();
                let last = fs::read_to_string(written.state_dir.join(state::ADMIN)).ok();
                std::iter::once(written.listen.unwrap_or_else(usual)).chain(last).collect()
            }
        };
        places.dedup();
        let file = at.config.display();
        if places == ["off"] {
            return Err(Trouble::failed(format!(
                "this gateway is not administrated: {file} has admin.listen = \"off\""
            )));
        }
        let places = places.iter().filter(|place| *place != "off");
        let addresses = places.map(|place| address(place)).collect::<Result<Vec<_>, _>>()?;
        let by_ip = addresses.iter().any(|address| matches!(address, Address::Ip(_)));
        let token = match at.token_file.clone().or(written.token_file) {
            Some(file) if by_ip => {
                let text = fs::read_to_string(&file).map_err(|error| {
                    Trouble::failed(format!("{} cannot be read: {error}", file.display()))
                })?;
                Some(text.trim().to_owned())
            }
            _ => None,
        };
        Ok(Gateway { addresses, token })
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(&self, asked: Asked<'_>) -> Result<Value, Trouble> {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let runtime = runtime.map_err(|error| Trouble::failed(format!("this cannot start: {error}")))?;
        let mut nobody = String::new();
        for address in &self.addresses {
            let exchange = async {
                match self.exchange(address, &asked).await {
                    // That process has a successor since.
                    Ok((StatusCode::MISDIRECTED_REQUEST, _)) => self.exchange(address, &asked).await,
                    answer => answer,
                }
            };
            match runtime.block_on(async { tokio::time::timeout(PATIENCE, exchange).await }) {
                Ok(Ok((status, body))) => return understood(status, &body),
                Ok(Err(failure)) => {
                    nobody.push_str(&format!("no gateway answers at {address}: {failure}\n"));
                    if failure.kind() != foregate_exchange::Kind::Connect {
                        break;
                    }
                }
                Err(_) => {
                    return Err(Trouble::failed(format!("the gateway at {address} does not answer")));
                }
            }
        }
        Err(Trouble::failed(format!(
            "{nobody}Is it running, and may you open that? --admin or --config names another."
        )))
    }

    async fn exchange(&self, address: &Address, asked: &Asked<'_>) -> Result<(StatusCode, Bytes), Failure> {
        let spec = TransportSpec {
            protocol: Protocol::Http1,
            tls: None,
            connect_timeout: Some(Duration::from_secs(5)),
            keep_alive: None,
        };
        let refused = |error: String| Failure::because(foregate_exchange::Kind::Connect, error);
        let transport = Transport::new(spec).map_err(|error| refused(error.to_string()))?;
        let endpoint = Endpoint::new("admin".into(), address.clone());
        let client = Client::default();
        let link = client.connect(&endpoint, &transport, false).await?;
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            headers.insert(AUTHORIZATION, value.map_err(|error| refused(error.to_string()))?);
        }
        let mut outgoing = Outgoing {
            method: asked.method.clone(),
            target: PathAndQuery::try_from(asked.path).map_err(|error| refused(error.to_string()))?,
            authority: HeaderValue::from_static("localhost"),
            headers,
            body: Body::from(Bytes::from(asked.body.clone())),
            ask_trailers: false,
            upgrade: None,
            response_timeout: None,
            idle_timeout: None,
        };
        let response = link.send(&mut outgoing, InFlight::begin(&endpoint), |_, _| {}).await;
        let response = response.map_err(|error| error.failure)?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }
}

fn address(place: &str) -> Result<Address, Trouble> {
    match (place.strip_prefix("unix:"), place.parse()) {
        (Some(path), _) => Ok(Address::Unix(PathBuf::from(path))),
        (None, Ok(address)) => Ok(Address::Ip(address)),
        (None, Err(_)) => Err(Trouble::usage(format!(
            "\"{place}\" is no place; write unix:/run/foregate/admin.sock, or an address and a port"
        ))),
    }
}

/// What a gateway has answered.
fn understood(status: StatusCode, body: &[u8]) -> Result<Value, Trouble> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    if status.is_success() {
        return Ok(value);
    }
    let sentence = value.get("error").and_then(Value::as_str);
    let sentence = sentence.map_or_else(|| format!("the gateway answers {status}"), str::to_owned);
    let exit = match status {
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::BAD_REQUEST => Exit::Invalid,
        _ => Exit::Failed,
    };
    Err(Trouble { exit, sentence })
}

/// What a configuration file says of its administration. One that cannot be read says nothing: who asks how the gateway is
/// need not be able to.
struct Written {
    listen: Option<String>,
    token_file: Option<PathBuf>,
    state_dir: PathBuf,
}

impl Written {
    fn of(file: &Path) -> Written {
        let text = fs::read_to_string(file).unwrap_or_default();
        // Whoever has just broken it somewhere else wants to be told where.
        let (table, _) = DeTable::parse_recoverable(&text);
        let text = |section: &str, key: &str| {
            let section = table.get_ref().get(section)?.get_ref().as_table()?;
            let text = section.get(key)?.get_ref().as_str()?;
            Some(config::resolved(file, text).unwrap_or_else(|| text.to_owned()))
        };
        let folder = file.parent().unwrap_or(Path::new(""));
        let path = |section, key| text(section, key).map(|name| folder.join(name));
        Written {
            listen: text("admin", "listen"),
            token_file: path("admin", "token_file"),
            state_dir: path("server", "state_dir").unwrap_or_else(config::usual_state_dir),
        }
    }
}
