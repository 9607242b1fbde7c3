//! Three small web servers that stand for VMs: HTTP/1.1 on random ports of 127.0.0.1, one thread for all.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};

use super::page;

/// What a visitor tells the VMs apart by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Vm {
    pub(super) name: &'static str,
    /// For the page, as CSS writes it.
    pub(super) colour: &'static str,
}

pub(super) const VMS: [Vm; 3] = [
    Vm { name: "amber", colour: "#b45309" },
    Vm { name: "jade", colour: "#047857" },
    Vm { name: "indigo", colour: "#4338ca" },
];

/// The longest wait anybody can ask `/slow` for.
const SLOWEST: u64 = 60;

/// Starts all VMs; they serve until the process ends.
pub(super) fn start() -> io::Result<Vec<(Vm, SocketAddr)>> {
    let mut vms = Vec::new();
    let mut listeners = Vec::new();
    for vm in VMS {
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        listener.set_nonblocking(true)?;
        vms.push((vm, listener.local_addr()?));
        listeners.push((vm, listener));
    }
    let runtime = || Builder::new_current_thread().enable_all().build_local(LocalOptions::default());
    thread::Builder::new().name("demo-vms".to_owned()).spawn(move || {
        // The listeners are open: should the runtime fail, the gateway reports VMs that do not answer.
        let result = runtime().and_then(|runtime| runtime.block_on(serve_all(listeners)));
        if let Err(error) = result {
            tracing::error!("the demo VMs have stopped: {error}");
        }
    })?;
    Ok(vms)
}

async fn serve_all(listeners: Vec<(Vm, std::net::TcpListener)>) -> io::Result<()> {
    for (vm, listener) in listeners {
        let listener = TcpListener::from_std(listener)?;
        tokio::task::spawn_local(serve(vm, listener));
    }
    std::future::pending().await
}

async fn serve(vm: Vm, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files: others must close theirs first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let service = service_fn(move |request| answer(vm, request));
        let connection =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::task::spawn_local(async move {
            // A peer that goes away is no event.
            let _ = connection.await;
        });
    }
}

async fn answer(vm: Vm, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path();
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Ok(text(StatusCode::METHOD_NOT_ALLOWED, "the demo VMs know GET and HEAD only\n".to_owned()));
    }
    Ok(match path {
        "/" => {
            let body = page::render(vm, &Seen::of(&request));
            let mut response = typed(StatusCode::OK, "text/html; charset=utf-8", body);
            response.headers_mut().insert(CONTENT_SECURITY_POLICY, page::POLICY);
            response
        }
        "/api/whoami" => typed(StatusCode::OK, "application/json", whoami(vm, &Seen::of(&request))),
        "/slow" => {
            let seconds = seconds(request.uri().query());
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            text(StatusCode::OK, format!("{} took its time: {seconds} s\n", vm.name))
        }
        "/healthz" => text(StatusCode::OK, "ok\n".to_owned()),
        _ => text(StatusCode::NOT_FOUND, format!("{} knows /, /api/whoami, /slow and /healthz\n", vm.name)),
    })
}

fn seconds(query: Option<&str>) -> u64 {
    let wanted = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("seconds=")));
    wanted.and_then(|seconds| seconds.parse().ok()).unwrap_or(3).min(SLOWEST)
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    // Every answer tells who gave it; one from a cache would lie.
    headers.insert(CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
    response
}

/// A request as it arrived at a VM.
pub(super) struct Seen {
    /// The HTTP version the client spoke to the gateway.
    pub(super) protocol: &'static str,
    pub(super) secure: bool,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) client: String,
    /// In the order and with the repetitions in which they came.
    pub(super) headers: Vec<(String, String)>,
}

impl Seen {
    fn of<B>(request: &Request<B>) -> Seen {
        let headers = request.headers();
        let shown = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let named = |name: &str| headers.get(name).map(shown);
        Seen {
            protocol: protocol(headers),
            secure: named("x-forwarded-proto").as_deref() == Some("https"),
            method: request.method().to_string(),
            path: request.uri().path_and_query().map_or_else(String::new, ToString::to_string),
            client: named("x-forwarded-for").unwrap_or_else(|| "unknown".to_owned()),
            headers: headers.iter().map(|(name, value)| (name.to_string(), shown(value))).collect(),
        }
    }
}

/// The gateway says in `Via` (RFC 9110, section 7.6.3) over which version it was asked; the last entry is
/// that of our neighbour.
fn protocol(headers: &HeaderMap) -> &'static str {
    let last = headers.get_all("via").iter().next_back().and_then(|value| value.to_str().ok());
    let entry = last.and_then(|value| value.rsplit(',').next()).unwrap_or_default().trim();
    match entry.split_whitespace().next() {
        Some("3" | "3.0") => "HTTP/3",
        Some("2" | "2.0") => "HTTP/2",
        Some("1.1") => "HTTP/1.1",
        Some("1.0") => "HTTP/1.0",
        _ => "no gateway",
    }
}

fn whoami(vm: Vm, seen: &Seen) -> String {
    let mut headers = serde_json::Map::new();
    for (name, value) in &seen.headers {
        match headers.get_mut(name) {
            Some(serde_json::Value::String(before)) => {
                before.push_str(", ");
                before.push_str(value);
            }
            _ => _ = headers.insert(name.clone(), value.as_str().into()),
        }
    }
    let whoami = serde_json::json!({
        "vm": vm.name,
        "protocol": seen.protocol,
        "secure": seen.secure,
        "method": seen.method,
        "path": seen.path,
        "client": seen.client,
        "headers": headers,
    });
    format!("{whoami:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(fields: &[(&str, &str)]) -> Seen {
        let mut request = Request::get("/a?b=c&d");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        Seen::of(&request.body(()).unwrap())
    }

    #[test]
    fn the_protocol_is_what_the_last_gateway_was_asked_over() {
        assert_eq!(seen(&[("via", "3 foregate")]).protocol, "HTTP/3");
        assert_eq!(seen(&[("via", "1.1 cache, 2 foregate")]).protocol, "HTTP/2");
        assert_eq!(seen(&[("via", "3 cache"), ("via", "1.1 foregate")]).protocol, "HTTP/1.1");
        assert_eq!(seen(&[]).protocol, "no gateway");
    }

    #[test]
    fn whoami_is_json_and_loses_no_field() {
        let seen = seen(&[
            ("via", "2 foregate"),
            ("accept", "a"),
            ("accept", "b\"c"),
            ("x-forwarded-for", "192.0.2.1"),
        ]);
        let whoami: serde_json::Value = serde_json::from_str(&whoami(VMS[1], &seen)).unwrap();
        assert_eq!(whoami["vm"], "jade");
        assert_eq!(whoami["protocol"], "HTTP/2");
        assert_eq!(whoami["path"], "/a?b=c&d");
        assert_eq!(whoami["client"], "192.0.2.1");
        assert_eq!(whoami["headers"]["accept"], "a, b\"c");
    }

    #[test]
    fn the_page_shows_fields_and_runs_none_of_them() {
        let evil = "</td><script>alert('1')</script>&{{VM}}";
        let page = page::render(VMS[0], &seen(&[("via", "3 foregate"), ("x-evil", evil)]));
        assert!(
            page.contains("&lt;/td&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&amp;{{VM}}"),
            "{page}"
        );
        assert!(!page.contains("alert('1')"));
        assert!(page.contains("HTTP/3"));
        assert_eq!(page.matches("{{").count(), 1, "every place of the template is filled");
    }

    #[test]
    fn nobody_waits_for_ever() {
        assert_eq!(seconds(None), 3);
        assert_eq!(seconds(Some("a=1&seconds=5")), 5);
        assert_eq!(seconds(Some("seconds=many")), 3);
        assert_eq!(seconds(Some("seconds=999999999999")), SLOWEST);
    }
}
