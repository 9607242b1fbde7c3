//! Answers the gateway gives itself: redirects aside, what went wrong, in the form the client reads.

use bytes::Bytes;
use foregate_exchange::{Body, head};
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Response, StatusCode};

/// A status with a sentence for the person who meets it.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    sentence: &'static str,
    retry_after: Option<u64>,
    allow: Vec<Method>,
    parting: bool,
}

/// Marks a response after which an HTTP/1.1 connection ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parting;

impl Answer {
    pub(crate) fn new(status: StatusCode, sentence: &'static str) -> Answer {
        Answer { status, sentence, retry_after: None, allow: Vec::new(), parting: false }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    /// Seconds after which trying again makes sense.
    pub(crate) fn retry_after(mut self, seconds: u64) -> Answer {
        self.retry_after = Some(seconds);
        self
    }

    /// The client is to make room: over HTTP/1.1 its connection ends.
    pub(crate) fn and_part(mut self) -> Answer {
        self.parting = true;
        self
    }

    /// The methods that would have been answered.
    pub(crate) fn allow(mut self, methods: Vec<Method>) -> Answer {
        self.allow = methods;
        self
    }

    /// The response for a request, as text, HTML or JSON by its `Accept`, with the id that is in the log.
    pub(crate) fn response(self, accept: Option<&HeaderValue>, id: &str) -> Response<Body> {
        let (code, reason) = (self.status.as_u16(), self.status.canonical_reason().unwrap_or("Error"));
        let sentence = self.sentence;
        let (kind, text) = match preference(accept) {
            Form::Text => {
                ("text/plain; charset=utf-8", format!("{code} {reason}\n{sentence}\nrequest id: {id}\n"))
            }
            Form::Json => (
                "application/json",
                format!(
                    "{{\"status\":{code},\"error\":\"{reason}\",\"message\":\"{sentence}\",\"request_id\":\"{id}\"}}\n"
                ),
            ),
            Form::Html => ("text/html; charset=utf-8", page(code, reason, sentence, id)),
        };
        let mut response = self.finish(kind, text);
        if let Ok(id) = HeaderValue::from_str(id) {
            response.headers_mut().insert(head::X_REQUEST_ID, id);
        }
        response
    }

    /// The response for bytes that never became a request.
    pub(crate) fn plain(self) -> Response<Body> {
        let reason = self.status.canonical_reason().unwrap_or("Error");
        let text = format!("{} {reason}\n{}\n", self.status.as_u16(), self.sentence);
        let mut response = self.finish("text/plain; charset=utf-8", text);
        head::ensure_date(response.headers_mut());
        response
    }

    fn finish(self, kind: &'static str, text: String) -> Response<Body> {
        let mut response = Response::new(Body::Full(Bytes::from(text)));
        *response.status_mut() = self.status;
        if self.parting {
            response.extensions_mut().insert(Parting);
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        // A shared cache must not keep an outage.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        if !self.allow.is_empty() {
            let list = self.allow.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
            if let Ok(value) = HeaderValue::from_str(&list) {
                headers.insert(ALLOW, value);
            }
        }
        response
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Html,
    Json,
}

/// The first of the forms we have that the client lists; browsers list HTML, programs JSON or nothing.
fn preference(accept: Option<&HeaderValue>) -> Form {
    let accepted = accept.and_then(|value| value.to_str().ok()).unwrap_or_default();
    for kind in accepted.split(',') {
        let mut parameters = kind.split(';').map(str::trim);
        let kind = parameters.next().unwrap_or_default();
        let weight = parameters.find_map(|parameter| {
            let (name, value) = parameter.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().ok())?
        });
        if weight == Some(0.0) {
            continue;
        }
        if kind.eq_ignore_ascii_case("text/html") || kind.eq_ignore_ascii_case("application/xhtml+xml") {
            return Form::Html;
        }
        if kind.eq_ignore_ascii_case("application/json")
            || kind.to_ascii_lowercase().ends_with("+json")
            || kind.eq_ignore_ascii_case("application/problem+json")
        {
            return Form::Json;
        }
        if kind.eq_ignore_ascii_case("text/plain") {
            return Form::Text;
        }
    }
    Form::Text
}

fn page(code: u16, reason: &str, sentence: &str, id: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{code} {reason}</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36em;margin:15vh auto;padding:0 1em;color:#222}}\
         h1{{font-size:1.4em}}small{{color:#666}}@media(prefers-color-scheme:dark){{body{{background:#181818;color:#ddd}}}}</style>\n\
         <h1>{code} {reason}</h1>\n<p>{sentence}</p>\n<p><small>Request id: <code>{id}</code></small></p>\n</html>\n"
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn the_form_follows_accept() {
        let form = |accept: &str| preference(Some(&accept.parse().unwrap()));
        assert_eq!(form("text/html,application/xhtml+xml,*/*;q=0.8"), Form::Html);
        assert_eq!(form("application/json, text/html"), Form::Json);
        assert_eq!(form("application/vnd.api+json"), Form::Json);
        assert_eq!(form("*/*"), Form::Text);
        assert_eq!(form("text/html ; Q=0.000, application/json"), Form::Json);
        assert_eq!(preference(None), Form::Text);
    }
}
