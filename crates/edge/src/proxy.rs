//! The page on which a request lives: who is asked for, which route, which VM, what became of it.
//!
//! Every status the gateway gives to a request that could be parsed is born here or in [`forward`]. It
//! does not know which HTTP version the client or the VM speaks.

mod attempts;
mod client;
mod forward;
mod hedge;

use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use foregate_exchange::{Body, head};
use foregate_routing::{
    Action, ClientCert, HeaderEdit, HostMatch, NotMatched, Policy, RequestView, Respond, Site, Template,
    Variables, normalise_host, normalise_path,
};
use http::header::{ACCEPT, ALT_SVC, CONTENT_TYPE, LOCATION, SET_COOKIE, STRICT_TRANSPORT_SECURITY};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

use self::forward::Forwarding;
use crate::answer::Answer;
use crate::limited::Limited;
use crate::peer::Peer;
use crate::worker::{Prepared, Worker};

/// Called with each 1xx a VM sends.
pub(crate) type Interim<'a> = &'a dyn Fn(StatusCode, &HeaderMap);

/// A request as it came, by whichever HTTP version.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) parts: Parts,
    pub(crate) body: Body,
    /// The client asks to leave HTTP for this protocol. HTTP/1.1 says it by `Upgrade`, the others by an extended
    /// CONNECT (RFC 8441, RFC 9220); the method is GET here.
    pub(crate) upgrade: Option<HeaderValue>,
    /// Known of itself for HTTP/2 and HTTP/3.
    pub(crate) takes_trailers: bool,
    /// It came in 0-RTT, so it may be a recording (RFC 8470).
    pub(crate) early: bool,
}

/// Has one request answered, and takes from it what that needs. Never fails: what goes wrong becomes a response.
pub(crate) async fn serve(
    worker: &Rc<Worker>,
    peer: &Peer,
    inbound: &mut Inbound,
    interim: Interim<'_>,
) -> Response<Body> {
    let live = worker.current();
    let Inbound { parts, body, upgrade, takes_trailers, early } = inbound;
    let body = std::mem::take(body);
    let trusted = live.settings.trusts(peer.address.ip());
    let request_id = request_id(worker, trusted, &parts.headers);
    let id = request_id.to_str().unwrap_or_default();
    let accept = parts.headers.get(ACCEPT).cloned();
    let refuse = |answer: Answer| {
        let status = answer.status().as_u16();
        tracing::debug!(request_id = %id, peer = %peer.address, status, "request refused");
        answer.response(accept.as_ref(), id)
    };

    // Who is asked for.
    let authority = match authority(parts, peer) {
        Ok(authority) => authority,
        Err(answer) => return dated(refuse(answer)),
    };
    let Ok(Ok(host)) = authority.to_str().map(normalise_host) else {
        let answer = Answer::new(StatusCode::BAD_REQUEST, "The request's host is not valid.");
        return dated(refuse(answer));
    };
    if parts.method == Method::TRACE {
        // It would show a script the fields its browser hides from it (RFC 9110, section 17.10).
        return dated(refuse(Answer::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "This gateway does not answer TRACE.",
        )));
    }
    if let Some(text) = worker.challenges.text(parts.uri.path()) {
        // An authority asks before the site can be served as it should be.
        return dated(Response::new(Body::from(Bytes::from(text))));
    }
    let HostMatch { site, wildcard } = match find_site(&live, peer, &host, parts.version) {
        Ok(found) => found,
        Err(answer) => return dated(refuse(answer)),
    };

    // Which route.
    let (version, mut headers) = (parts.version, std::mem::take(&mut parts.headers));
    let Parts { method, uri, .. } = &*parts;
    let client = head::client_ip(&headers, peer.address.ip(), |ip| live.settings.trusts(ip));
    let scheme = scheme(peer, trusted, &headers);
    // `OPTIONS *` asks about the whole site, which is its root.
    let path = if uri.path().starts_with('/') { uri.path() } else { "/" };
    let query = uri.query();
    let normal = normalise_path(path);
    let mut variables = Variables {
        client_ip: client,
        host: &host,
        wildcard,
        path,
        query,
        scheme,
        request_id: id,
        client_cert: None,
        captures: &[],
    };
    if scheme == "http" && site.redirect_to_https {
        let response = to_https(&live, &variables);
        return decorated(response, &live, peer, version, site, None, &variables);
    }
    let known = match client::identify(worker, &live, peer, site) {
        Ok(known) => known,
        Err(answer) => return decorated(refuse(answer), &live, peer, version, site, None, &variables),
    };
    variables.client_cert = known.as_ref().map(|known| known.variables());
    // Routes and balancers may go by what is known, and by nothing that the client only says.
    head::identify(&mut headers, known.as_ref().map(|known| &known.fields));
    let client_cert = known.is_some();
    let view =
        RequestView { method, path: &normal, query, headers: &headers, client_ip: client, client_cert };
    let matched = match site.route(&view) {
        Ok(matched) => matched,
        Err(reason) => {
            return decorated(refuse(not_matched(reason)), &live, peer, version, site, None, &variables);
        }
    };
    let captures = matched.captures(&normal);
    variables.captures = captures.as_slice();
    let policy = &matched.route.policy;

    // What it says.
    let body = match policy.request_body {
        Some(limit) => Limited::wrap(body, limit),
        None => Some(body),
    };
    let forwarding = Forwarding {
        worker,
        live: &live,
        peer,
        is_known: client_cert,
        interim,
        matched: &matched,
        method,
        uri,
        version,
        normal: &normal,
        variables: &variables,
        authority: &authority,
        id: &request_id,
        trusted,
        upgrade: upgrade.as_ref(),
        early: *early,
        takes_trailers: *takes_trailers,
    };
    let result = match (body, &matched.route.action) {
        (None, _) => Err(forward::too_large()),
        (_, Action::Respond(respond)) => Ok(respond_with(respond, &variables)),
        (_, Action::Redirect { to, status }) => redirect(to, *status, &variables),
        (Some(body), Action::Pool(pool)) => forwarding.to(pool, headers, body).await,
        (Some(body), Action::Split(split)) => {
            let (pool, cookie) = split.choose(&view, worker.roll());
            forwarding.to(pool, headers, body).await.map(|mut response| {
                cookie.map(|cookie| response.headers_mut().append(SET_COOKIE, cookie));
                response
            })
        }
    };
    let response = result.unwrap_or_else(refuse);
    worker.count(response.status());
    decorated(response, &live, peer, version, site, Some(policy), &variables)
}

/// Whether a request may be answered before the handshake that brings it is over, when its client's address is
/// not proven and its bytes may be a recording. It must have no body.
pub(crate) fn takes_early(worker: &Worker, peer: &Peer, parts: &Parts) -> bool {
    let live = worker.current();
    let Ok(authority) = authority(parts, peer) else { return false };
    let Ok(Ok(host)) = authority.to_str().map(normalise_host) else { return false };
    matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS)
        // Whoever may speak for others must be who he says.
        && !live.settings.trusts(peer.address.ip())
        && find_site(&live, peer, &host, parts.version).is_ok_and(|found| found.site.early_data)
}

/// The id a trusted proxy gave the request, or a new one.
fn request_id(worker: &Worker, trusted: bool, headers: &HeaderMap) -> HeaderValue {
    let given = headers.get(head::X_REQUEST_ID).filter(|_| trusted);
    match given {
        // It is written into answers and logs: letters, digits and the marks ids are made of.
        Some(id)
            if (1..=128).contains(&id.len())
                && id
                    .as_bytes()
                    .iter()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"-_.:=+/".contains(byte)) =>
        {
            id.clone()
        }
        _ => worker.request_id(),
    }
}

/// The authority a request names; HTTP/1.0 without one asks for the address it reached.
fn authority(parts: &Parts, peer: &Peer) -> Result<HeaderValue, Answer> {
    let refused = |sentence| Answer::new(StatusCode::BAD_REQUEST, sentence);
    match head::authority(parts) {
        Ok(Some(authority)) => Ok(authority),
        Ok(None) => {
            HeaderValue::from_str(&peer.local.to_string()).map_err(|_| refused("The request names no host."))
        }
        Err(head::HostProblem::Missing) => Err(refused("The request names no host.")),
        Err(head::HostProblem::Double) => Err(refused("The request names a host more than once.")),
        Err(head::HostProblem::Conflict) => Err(refused("The request names two different hosts.")),
        Err(head::HostProblem::NotText) => Err(refused("The request's host is not valid.")),
    }
}

/// The site of a host, if this connection may ask for it (RFC 9110, section 7.4).
fn find_site<'s, 'h>(
    live: &'s Prepared,
    peer: &Peer,
    host: &'h str,
    version: Version,
) -> Result<HostMatch<'s, 'h>, Answer> {
    let misdirected = |sentence| Err(Answer::new(StatusCode::MISDIRECTED_REQUEST, sentence));
    let local = peer.local.ip();
    let found = live.routing.host(host, local);
    if let Some(tls) = &peer.tls
        && tls.sni.as_deref() != Some(host)
    {
        if !tls.certificate.covers(host) {
            return misdirected(
                "This connection's certificate is not for this host; use another connection.",
            );
        }
        // The handshake was held to the rules of the site it was for; others may be stricter, and ask who the client is.
        let own = tls.site(live, local);
        let is_own = |site: &Arc<Site>| own.is_some_and(|own| Arc::ptr_eq(own, site));
        if found.as_ref().is_some_and(|found| !is_own(found.site) && found.site.tls != tls.rules) {
            tls.heed(own);
            return misdirected(
                "This host has other TLS rules than this connection; use another connection.",
            );
        }
    }
    match found {
        Some(found) if version == Version::HTTP_3 && !found.site.http3 => {
            misdirected("This host is not served over HTTP/3.")
        }
        Some(found) => Ok(found),
        None => Err(Answer::new(StatusCode::NOT_FOUND, "Nothing here answers to this host.")),
    }
}

/// How the client came: over TLS to us, or to a trusted proxy before us.
fn scheme(peer: &Peer, trusted: bool, headers: &HeaderMap) -> &'static str {
    let told = headers.get(head::X_FORWARDED_PROTO).filter(|_| trusted);
    match told {
        Some(proto) if proto.as_bytes().eq_ignore_ascii_case(b"https") => "https",
        Some(proto) if proto.as_bytes().eq_ignore_ascii_case(b"http") => "http",
        _ => peer.scheme(),
    }
}

fn not_matched(reason: NotMatched) -> Answer {
    match reason {
        NotMatched::NoRoute => Answer::new(StatusCode::NOT_FOUND, "Nothing here answers to this path."),
        NotMatched::Method { allow } => {
            let sentence = "Nothing here answers to this method.";
            Answer::new(StatusCode::METHOD_NOT_ALLOWED, sentence).allow(allow)
        }
    }
}

fn respond_with(respond: &Respond, variables: &Variables<'_>) -> Response<Body> {
    let mut text = String::new();
    match (respond.body.as_literal(), escape_for(&respond.content_type)) {
        (Some(literal), _) => text.push_str(literal),
        (None, None) => respond.body.render(variables, &mut text),
        (None, Some(escape)) => {
            // What a client put into its request must not become markup of ours.
            let [host, path] = [variables.host, variables.path].map(escape);
            let [wildcard, query] = [variables.wildcard, variables.query].map(|text| text.map(escape));
            let captures: Vec<String> = variables.captures.iter().map(|text| escape(text)).collect();
            let captures: Vec<&str> = captures.iter().map(String::as_str).collect();
            let client = variables.client_cert.map(|client| [escape(client.subject), escape(client.san)]);
            let client_cert = variables.client_cert.zip(client.as_ref());
            let client_cert = client_cert.map(|(known, [subject, san])| ClientCert { subject, san, ..known });
            let escaped = Variables {
                host: &host,
                path: &path,
                wildcard: wildcard.as_deref(),
                query: query.as_deref(),
                captures: &captures,
                client_cert,
                ..*variables
            };
            respond.body.render(&escaped, &mut text);
        }
    }
    let mut response = Response::new(Body::from(Bytes::from(text)));
    *response.status_mut() = respond.status;
    response.headers_mut().insert(CONTENT_TYPE, respond.content_type.clone());
    response
}

/// How text is written within this kind of document, where it cannot stand as it is.
fn escape_for(content_type: &HeaderValue) -> Option<fn(&str) -> String> {
    let kind = content_type.to_str().unwrap_or_default().to_ascii_lowercase();
    if kind.contains("html") || kind.contains("xml") {
        return Some(|text| {
            text.replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;")
                .replace('"', "&quot;")
                .replace('\'', "&#39;")
        });
    }
    if kind.contains("json") {
        return Some(|text| text.replace('\\', "\\\\").replace('"', "\\\""));
    }
    if kind.contains("javascript") {
        return Some(|text| {
            let code = |c: char| format!("\\u{:04x}", u32::from(c));
            text.chars()
                .map(|c| if c.is_ascii_alphanumeric() || !c.is_ascii() { c.to_string() } else { code(c) })
                .collect()
        });
    }
    None
}

fn redirect(to: &Template, status: StatusCode, variables: &Variables<'_>) -> Result<Response<Body>, Answer> {
    let mut location = String::new();
    to.render(variables, &mut location);
    match HeaderValue::try_from(location) {
        Ok(location) => Ok(moved(status, location)),
        // Only bytes from the request can be at fault: the template was checked at load.
        Err(_) => Err(Answer::new(StatusCode::BAD_REQUEST, "The request cannot be redirected.")),
    }
}

/// The same address over HTTPS; 308 keeps method and body.
fn to_https(live: &Prepared, variables: &Variables<'_>) -> Response<Body> {
    let host = variables.host;
    let mut location = String::from("https://");
    if host.contains(':') {
        location.extend(["[", host, "]"]);
    } else {
        location.push_str(host);
    }
    match live.settings.https.first() {
        None | Some(443) => {}
        Some(port) => location.extend([":", &port.to_string()]),
    }
    location.push_str(variables.path);
    if let Some(query) = variables.query {
        location.extend(["?", query]);
    }
    match HeaderValue::try_from(location) {
        Ok(location) => moved(StatusCode::PERMANENT_REDIRECT, location),
        Err(_) => Answer::new(StatusCode::BAD_REQUEST, "The request cannot be redirected.").plain(),
    }
}

fn moved(status: StatusCode, location: HeaderValue) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    response.headers_mut().insert(LOCATION, location);
    response
}

/// What every response of a site carries, the gateway's own ones too.
fn decorated(
    mut response: Response<Body>,
    live: &Prepared,
    peer: &Peer,
    version: Version,
    site: &Site,
    policy: Option<&Policy>,
    variables: &Variables<'_>,
) -> Response<Body> {
    let headers = response.headers_mut();
    // A VM's own advertisement would send browsers to a port that is not ours.
    headers.remove(ALT_SVC);
    if peer.tls.is_some() {
        if let Some(hsts) = &site.hsts {
            headers.insert(STRICT_TRANSPORT_SECURITY, hsts.clone());
        }
        if let (true, true, Some(alt_svc)) = (site.http3, version != Version::HTTP_3, live.alt_svc(peer)) {
            headers.insert(ALT_SVC, alt_svc);
        }
    }
    let edits = policy.map_or(&site.response_headers, |policy| &policy.response_headers);
    edit(headers, edits, variables);
    dated(response)
}

fn dated(mut response: Response<Body>) -> Response<Body> {
    head::ensure_date(response.headers_mut());
    response
}

/// Applies a site's or route's header edits in their order.
fn edit(headers: &mut HeaderMap, edits: &[HeaderEdit], variables: &Variables<'_>) {
    let render = |template: &Template| {
        if let Some(literal) = template.as_literal() {
            return HeaderValue::from_str(literal);
        }
        let mut text = String::new();
        template.render(variables, &mut text);
        HeaderValue::try_from(text).or_else(|_| HeaderValue::from_str(""))
    };
    for each in edits {
        match each {
            HeaderEdit::Remove(name) => _ = headers.remove(name),
            HeaderEdit::Set(name, template) => _ = render(template).map(|value| headers.insert(name, value)),
            HeaderEdit::Add(name, template) => _ = render(template).map(|value| headers.append(name, value)),
        }
    }
}
