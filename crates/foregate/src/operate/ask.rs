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
use crate::config::Admin;

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
    address: Address,
    token: Option<String>,
}

/// A name as a part of a path.
pub(super) fn part(name: &str) -> String {
    utf8_percent_encode(name, NON_ALPHANUMERIC).to_string()
}

impl Gateway {
    /// The one that the flags name, or the configuration file, or the usual one.
    pub(super) fn find(at: &Where) -> Result<Gateway, Trouble> {
        let written = Written::of(&at.config);
        let place =
            at.admin.clone().or(written.listen).unwrap_or_else(|| Admin::default().listen.to_string());
        let address = match (place.strip_prefix("unix:"), place.parse()) {
            (Some(path), _) => Address::Unix(PathBuf::from(path)),
            (None, Ok(address)) => Address::Ip(address),
            (None, Err(_)) if place == "off" => {
                let file = at.config.display();
                return Err(Trouble::failed(format!(
                    "this gateway is not administrated: {file} has admin.listen = \"off\""
                )));
            }
            (None, Err(_)) => {
                return Err(Trouble::usage(format!(
                    "\"{place}\" is no place; write unix:/run/foregate/admin.sock, or an address and a port"
                )));
            }
        };
        let token = match at.token_file.clone().or(written.token_file) {
            Some(file) if matches!(address, Address::Ip(_)) => {
                let text = fs::read_to_string(&file).map_err(|error| {
                    Trouble::failed(format!("{} cannot be read: {error}", file.display()))
                })?;
                Some(text.trim().to_owned())
            }
            _ => None,
        };
        Ok(Gateway { address, token })
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(&self, asked: Asked<'_>) -> Result<Value, Trouble> {
        let runtime = Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
        let runtime = runtime.map_err(|error| Trouble::failed(format!("this cannot start: {error}")))?;
        let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, self.exchange(asked)).await });
        let (status, body) = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(failure)) => {
                return Err(Trouble::failed(format!(
                    "no gateway answers at {}: {failure}\nIs it running, and may you open that? --admin or --config \
                     names another.",
                    self.address
                )));
            }
            Err(_) => {
                return Err(Trouble::failed(format!("the gateway at {} does not answer", self.address)));
            }
        };
        let value: Value = serde_json::from_slice(&body).unwrap_or_default();
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

    async fn exchange(&self, asked: Asked<'_>) -> Result<(StatusCode, Bytes), Failure> {
        let spec = TransportSpec {
            protocol: Protocol::Http1,
            tls: None,
            connect_timeout: Some(Duration::from_secs(5)),
            keep_alive: None,
        };
        let refused = |error: String| Failure::because(foregate_exchange::Kind::Connect, error);
        let transport = Transport::new(spec).map_err(|error| refused(error.to_string()))?;
        let endpoint = Endpoint::new("admin".into(), self.address.clone());
        let client = Client::default();
        let link = client.connect(&endpoint, &transport, false).await?;
        let mut headers = HeaderMap::new();
        if let Some(token) = &self.token {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            headers.insert(AUTHORIZATION, value.map_err(|error| refused(error.to_string()))?);
        }
        let mut outgoing = Outgoing {
            method: asked.method,
            target: PathAndQuery::try_from(asked.path).map_err(|error| refused(error.to_string()))?,
            authority: HeaderValue::from_static("localhost"),
            headers,
            body: Body::from(Bytes::from(asked.body)),
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

/// What a configuration file says of its administration. One that cannot be read says nothing: who asks how the gateway is
/// need not be able to.
#[derive(Default)]
struct Written {
    listen: Option<String>,
    token_file: Option<PathBuf>,
}

impl Written {
    fn of(file: &Path) -> Written {
        let text = fs::read_to_string(file).unwrap_or_default();
        // Whoever has just broken it somewhere else wants to be told where.
        let (table, _) = DeTable::parse_recoverable(&text);
        let admin = table.get_ref().get("admin").and_then(|admin| admin.get_ref().as_table());
        let text =
            |key: &str| admin.and_then(|admin| admin.get(key)).and_then(|value| value.get_ref().as_str());
        let folder = file.parent().unwrap_or(Path::new(""));
        Written {
            listen: text("listen").map(str::to_owned),
            token_file: text("token_file").map(|name| folder.join(name)),
        }
    }
}
