//! hyper's HTTP/1.1 server.

use std::cell::RefCell;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_local};

use crate::body::{data, fed, feed, fields, read, trailers};
use crate::wire::{TokioIo, TokioTimer, until_quiet};

/// The answer of [`recording`] to a request it could read.
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
const OK_AND_CLOSE: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok[closed]";
/// hyper's own answer to a head it cannot parse.
const HYPERS_400: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n[closed]";

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
/// What [`recording`] writes down for a body it cannot read.
const BAD_CHUNK: &str = "POST / HTTP/1.1|host: a|transfer-encoding: chunked\
                         ||!error reading a body from connection";
/// The answer of [`recording`] to it. hyper closes without having said so.
const SERVICES_400: &str = "HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\nok[closed]";

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.auto_date_header(false);
    builder
}

/// One connection of hyper's server and the client at its other end.
struct Session {
    client: DuplexStream,
    connection: JoinHandle<hyper::Result<()>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Session {
    fn start<F, A, B>(builder: &Builder, service: F) -> Self
    where
        F: Fn(Request<Incoming>) -> A + 'static,
        A: Future<Output = Response<B>> + 'static,
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (client, server) = duplex(1 << 20);
        let service = hyper::service::service_fn(move |request| {
            let answer = service(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let connection = builder.serve_connection(TokioIo(server), service);
        let (stop, stopped) = oneshot::channel();
        let connection = spawn_local(async move {
            let mut connection = pin!(connection);
            tokio::select! {
                ended = connection.as_mut() => return ended,
                Ok(()) = stopped => connection.as_mut().graceful_shutdown(),
            }
            connection.await
        });
        Self { client, connection, stop: Some(stop) }
    }

    async fn says(&mut self, bytes: impl AsRef<[u8]>) {
        self.client.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn hears(&mut self) -> String {
        until_quiet(&mut self.client).await
    }

    fn shut_down_gracefully(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// How the connection's future ended. It must have.
    async fn ended(self) -> hyper::Result<()> {
        assert!(self.connection.is_finished(), "the connection is still being served");
        self.connection.await.unwrap()
    }
}

/// Sends `sent` to hyper as it comes, and returns what came back and what the service saw.
async fn serve(sent: impl AsRef<[u8]>) -> (String, Vec<String>) {
    serve_with(&builder(), sent).await
}

async fn serve_with(builder: &Builder, sent: impl AsRef<[u8]>) -> (String, Vec<String>) {
    let (seen, service) = recording();
    let mut session = Session::start(builder, service);
    session.says(sent).await;
    let heard = session.hears().await;
    (heard, seen.take())
}

/// A service that writes down what it is given, body included, and answers 200, or 400 where the
/// body could not be read.
#[expect(clippy::type_complexity, reason = "the future is spelt out for want of a name")]
fn recording() -> (
    Rc<RefCell<Vec<String>>>,
    impl Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Response<Full<Bytes>>>>>,
) {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let book = seen.clone();
    let service = move |request: Request<Incoming>| {
        let book = book.clone();
        let answer: Pin<Box<dyn Future<Output = _>>> = Box::pin(async move {
            let (head, body) = request.into_parts();
            let (entry, status) = match read(body).await {
                Ok(body) => (body, 200),
                Err(error) => (format!("!{error}"), 400),
            };
            book.borrow_mut().push(format!(
                "{} {} {:?}{}||{entry}",
                head.method,
                head.uri,
                head.version,
                fields(&head.headers)
            ));
            Response::builder().status(status).body(Full::from("ok")).unwrap()
        });
        answer
    };
    (seen, service)
}

// ----- the head ---------------------------------------------------------------------------

/// Demand: 400.
#[tokio::test(flavor = "local", start_paused = true)]
async fn obs_fold() {
    let (heard, seen) = serve("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n").await;
    assert_eq!((heard.as_str(), seen.len()), (HYPERS_400, 0));
}

/// Demand: 400.
#[tokio::test(flavor = "local", start_paused = true)]
async fn bare_cr_in_a_value() {
    let (heard, seen) = serve("GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n").await;
    assert_eq!((heard.as_str(), seen.len()), (HYPERS_400, 0));
}

/// Demand: 400.
#[tokio::test(flavor = "local", start_paused = true)]
async fn space_before_the_colon() {
    let (heard, seen) = serve("GET / HTTP/1.1\r\nHost : a\r\n\r\n").await;
    assert_eq!((heard.as_str(), seen.len()), (HYPERS_400, 0));
}

/// Demand: 400, in a name, in a value and in the target.
#[tokio::test(flavor = "local", start_paused = true)]
async fn nul() {
    for sent in [
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\0Y: b\r\n\r\n",
        "GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let (heard, seen) = serve(sent).await;
        assert_eq!((heard.as_str(), seen.len()), (HYPERS_400, 0), "{sent:?}");
    }
}

/// Demand: a bare LF may end a line. It never reaches a VM, because the head is written anew.
#[tokio::test(flavor = "local", start_paused = true)]
async fn bare_lf_ends_a_line() {
    let (heard, seen) = serve("GET / HTTP/1.1\nHost: a\nX: b\n\n").await;
    assert_eq!(heard, OK);
    assert_eq!(seen, ["GET / HTTP/1.1|host: a|x: b||"]);
}

/// Demand: 400.
#[tokio::test(flavor = "local", start_paused = true)]
async fn two_hosts() {
    let (heard, seen) = serve("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
    assert_eq!(heard, OK);
    assert_eq!(seen, ["GET / HTTP/1.1|host: a|host: b||"]);
}

/// Demand: 400.
#[tokio::test(flavor = "local", start_paused = true)]
async fn no_host() {
    let (heard, seen) = serve("GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(heard, OK);
    assert_eq!(seen, ["GET / HTTP/1.1||"]);
}

/// Demand: its authority is reconciled with `Host`.
#[tokio::test(flavor = "local", start_paused = true)]
async fn absolute_form() {
    let (heard, seen) = serve("GET http://a:81/x?y HTTP/1.1\r\nHost: b\r\n\r\n").await;
    assert_eq!(heard, OK);
    assert_eq!(seen, ["GET http://a:81/x?y HTTP/1.1|host: b||"]);
}

/// Demand: the target goes on byte for byte.
#[tokio::test(flavor = "local", start_paused = true)]
async fn target_is_kept() {
    let (_, seen) = serve("GET /a%2Fb/%2e%2E/.././/?c=%zz&& HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(seen, ["GET /a%2Fb/%2e%2E/.././/?c=%zz&& HTTP/1.1|host: a||"]);
    let (_, seen) = serve("GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(seen, ["GET /a HTTP/1.1|host: a||"]);
}

/// Demand: 431 above the configured size or number of fields.
#[tokio::test(flavor = "local", start_paused = true)]
async fn head_too_long() {
    const HYPERS_431: &str = "HTTP/1.1 431 Request Header Fields Too Large\r\n\
                              connection: close\r\ncontent-length: 0\r\n\r\n[closed]";
    let long = |value: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "b".repeat(value));
    let many = |n: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: b\r\n".repeat(n - 1));

    assert_eq!(serve(long(300_000)).await.0, OK);
    assert_eq!(serve(long(500_000)).await.0, HYPERS_431);
    assert_eq!(serve(many(100)).await.0, OK);
    assert_eq!(serve(many(101)).await.0, HYPERS_431);

    let mut small = builder();
    small.max_header_size(1_000);
    assert_eq!(serve_with(&small, long(900)).await.0, OK);
    assert_eq!(serve_with(&small, long(1_000)).await.0, HYPERS_431);
}

/// Demand: 414 above the configured length.
#[tokio::test(flavor = "local", start_paused = true)]
async fn target_too_long() {
    const HYPERS_414: &str =
        "HTTP/1.1 414 URI Too Long\r\nconnection: close\r\ncontent-length: 0\r\n\r\n[closed]";
    let target = |n: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(n - 1));

    assert_eq!(serve(target(65_534)).await.0, OK);
    assert_eq!(serve(target(65_535)).await.0, HYPERS_414);

    // The only length that can be set is that of the whole head, and its answer is 431.
    let mut small = builder();
    small.max_header_size(1_000);
    let (heard, _) = serve_with(&small, target(2_000)).await;
    assert!(heard.starts_with("HTTP/1.1 431 "), "{heard}");
}

/// Demand: the gateway's own answer, with a body for people and a line in its log.
#[tokio::test(flavor = "local", start_paused = true)]
async fn body_of_hypers_own_answers() {
    let (seen, service) = recording();
    let mut session = Session::start(&builder(), service);
    session.says("GET / HTTP/1.1\r\nHost : a\r\n\r\n").await;
    assert_eq!(session.hears().await, HYPERS_400);
    assert_eq!(seen.take().len(), 0);
    // What can be logged is the reason. The bytes are gone.
    let error = session.ended().await.unwrap_err();
    assert!(error.is_parse());
    assert_eq!(error.to_string(), "invalid HTTP header parsed");
}

/// Demand: the connection closes, and the reason is logged.
#[tokio::test(flavor = "local", start_paused = true)]
async fn head_timeout() {
    let mut builder = builder();
    builder.timer(TokioTimer).header_read_timeout(Duration::from_secs(10));
    for sent in ["", "GET / HTTP/1.1\r\nHo", "GET / HTTP/1.1\r\nHost: a\r\n\r\n"] {
        let (_, service) = recording();
        let mut session = Session::start(&builder, service);
        session.says(sent).await;
        let heard = session.hears().await;
        tokio::time::advance(Duration::from_secs(11)).await;
        // No 408, and an idle connection is held to the same clock as a slow head.
        assert_eq!(session.hears().await, "[closed]", "after {heard:?}");
        assert!(session.ended().await.unwrap_err().is_timeout());
    }
}

// ----- the length -------------------------------------------------------------------------

/// Demand: 400.
#[tokio::test(flavor = "local", start_paused = true)]
async fn two_differing_content_lengths() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\n";
    let (heard, seen) = serve(format!("{head}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd")).await;
    assert_eq!((heard.as_str(), seen.len()), (HYPERS_400, 0));

    let (heard, seen) = serve(format!("{head}Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc")).await;
    assert_eq!(heard, OK);
    assert_eq!(seen, ["POST / HTTP/1.1|host: a|content-length: 3||abc"]);

    let (heard, _) = serve(format!("{head}Content-Length: 3, 3\r\n\r\nabc")).await;
    assert_eq!(heard, HYPERS_400);
}

/// Demand: 400.
#[tokio::test(flavor = "local", start_paused = true)]
async fn transfer_encoding_beside_content_length() {
    for fields in [
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: nonsense\r\n",
    ] {
        let (heard, seen) =
            serve(format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n5\r\nabcde\r\n0\r\n\r\n")).await;
        assert_eq!(heard, OK_AND_CLOSE, "{fields:?}");
        assert_eq!(seen, ["POST / HTTP/1.1|host: a|transfer-encoding: chunked||abcde"], "{fields:?}");
    }
}

/// Demand: 501.
#[tokio::test(flavor = "local", start_paused = true)]
async fn transfer_encoding_gzip_alone() {
    let (heard, seen) = serve("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\nabc").await;
    assert_eq!((heard.as_str(), seen.len()), (HYPERS_400, 0));
}

/// Demand: 501.
#[tokio::test(flavor = "local", start_paused = true)]
async fn transfer_encoding_gzip_then_chunked() {
    for value in ["gzip, chunked", "chunked, chunked"] {
        let (heard, seen) = serve(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: {value}\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
        ))
        .await;
        assert_eq!(heard, OK);
        assert_eq!(seen, [format!("POST / HTTP/1.1|host: a|transfer-encoding: {value}||abc")]);
    }
}

/// Demand: 400.
#[tokio::test(flavor = "local", start_paused = true)]
async fn transfer_encoding_on_http_1_0() {
    let (heard, seen) =
        serve("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    assert_eq!((heard.as_str(), seen.len()), (HYPERS_400, 0));
}

/// Demand: the exchange is aborted without a final chunk; 400 if no head was sent.
#[tokio::test(flavor = "local", start_paused = true)]
async fn bad_chunk_size() {
    for chunks in ["3\r\nabc\r\nx\r\n", "-3\r\nabc\r\n", "0x3\r\nabc\r\n", "11111111111111111\r\nabc"] {
        let (heard, seen) = serve(format!("{CHUNKED}{chunks}")).await;
        assert_eq!((heard.as_str(), seen), (SERVICES_400, vec![BAD_CHUNK.into()]), "{chunks:?}");
    }
}

/// Demand: a bad chunk, as above.
#[tokio::test(flavor = "local", start_paused = true)]
async fn bare_lf_in_chunk_framing() {
    for chunks in [
        "3\nabc\r\n0\r\n\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "3\r\nabc\r\n0\n\n",
        "3;x\ny\r\nabc\r\n0\r\n\r\n",
        "3\r\nabc\r\n0\r\nx: y\nz: y\r\n\r\n",
    ] {
        let (heard, seen) = serve(format!("{CHUNKED}{chunks}")).await;
        assert_eq!((heard.as_str(), seen), (SERVICES_400, vec![BAD_CHUNK.into()]), "{chunks:?}");
    }

    // In a trailer it ends nothing: hyper waits for a CRLF.
    let (heard, seen) = serve(format!("{CHUNKED}3\r\nabc\r\n0\r\nx: y\n\n")).await;
    assert_eq!((heard.as_str(), seen.len()), ("", 0));
}

// ----- interim answers and Expect ---------------------------------------------------------

/// Demand: 1xx of the VM reaches the client, then the final answer.
#[tokio::test(flavor = "local", start_paused = true)]
async fn service_answers_1xx() {
    for status in [100, 102, 103] {
        let mut session = Session::start(&builder(), move |_| async move {
            Response::builder().status(status).header("link", "</a>").body(Full::from("")).unwrap()
        });
        session.says("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(
            session.hears().await,
            "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n[closed]"
        );
        assert!(session.ended().await.unwrap_err().is_user());
    }
}

/// Demand: 100 when the VM says 100, or after one second.
#[tokio::test(flavor = "local", start_paused = true)]
async fn expect_100_continue() {
    const HEAD: &str = "POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";

    // hyper says it when the service first asks for the body, so the service decides when.
    let (ask, asked) = oneshot::channel::<()>();
    let asked = RefCell::new(Some(asked));
    let mut session = Session::start(&builder(), move |request: Request<Incoming>| {
        let asked = asked.take().unwrap();
        async move {
            asked.await.unwrap();
            Response::new(Full::from(read(request.into_body()).await.unwrap()))
        }
    });
    session.says(HEAD).await;
    assert_eq!(session.hears().await, "");
    ask.send(()).unwrap();
    assert_eq!(session.hears().await, "HTTP/1.1 100 Continue\r\n\r\n");
    session.says("abc").await;
    assert_eq!(session.hears().await, "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nabc");

    // A service that answers without asking: no 100, and the connection ends.
    let mut session = Session::start(&builder(), |_| async { Response::new(Full::from("no")) });
    session.says(HEAD).await;
    assert_eq!(
        session.hears().await,
        "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nno[closed]"
    );
}

// ----- trailers ---------------------------------------------------------------------------

/// Demand: the client's trailers reach the service.
#[tokio::test(flavor = "local", start_paused = true)]
async fn trailers_in() {
    for named in ["", "Trailer: x\r\n"] {
        let (heard, seen) = serve(format!(
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n{named}\r\n\
             3\r\nabc\r\n0\r\nX: y\r\nContent-Length: 9\r\n\r\n"
        ))
        .await;
        assert_eq!(heard, OK);
        assert!(seen[0].ends_with("||abc||x: y|content-length: 9"), "{seen:?}");
    }
}

/// Demand: the VM's trailers reach the client that sent `TE: trailers`, where `Trailer` names them.
#[tokio::test(flavor = "local", start_paused = true)]
async fn trailers_out() {
    async fn answer_to(te: &str, named: Option<&'static str>) -> String {
        let mut session = Session::start(&builder(), move |_| async move {
            let mut answer = Response::new(fed([data("abc"), trailers(&[("x", "y"), ("z", "y")])]));
            if let Some(named) = named {
                answer.headers_mut().insert("trailer", HeaderValue::from_static(named));
            }
            answer
        });
        session.says(format!("GET / HTTP/1.1\r\nHost: a\r\n{te}\r\n")).await;
        session.hears().await.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    assert_eq!(answer_to("TE: trailers\r\n", Some("x")).await, "3\r\nabc\r\n0\r\nx: y\r\n\r\n");
    assert_eq!(answer_to("", Some("x")).await, "3\r\nabc\r\n0\r\n\r\n");
    assert_eq!(answer_to("TE: trailers\r\n", None).await, "3\r\nabc\r\n0\r\n\r\n");
}

// ----- the end of a connection ------------------------------------------------------------

/// Demand: while draining, an idle connection stays until the end, and the next answer says
/// `Connection: close`.
#[tokio::test(flavor = "local", start_paused = true)]
async fn graceful_shutdown_of_an_idle_connection() {
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for before in ["", GET] {
        let (_, service) = recording();
        let mut session = Session::start(&builder(), service);
        session.says(before).await;
        session.hears().await;
        session.shut_down_gracefully();
        assert_eq!(session.hears().await, "[closed]", "after {before:?}");
        session.ended().await.unwrap();
    }

    // Half a head has arrived: a connection's first request is waited for and answered, ...
    let (_, service) = recording();
    let mut session = Session::start(&builder(), service);
    session.says(&GET[..20]).await;
    session.hears().await;
    session.shut_down_gracefully();
    assert_eq!(session.hears().await, "");
    session.says(&GET[20..]).await;
    assert_eq!(session.hears().await, OK_AND_CLOSE);

    // ... a later one is dropped without a word.
    let (seen, service) = recording();
    let mut session = Session::start(&builder(), service);
    session.says(GET).await;
    session.says(&GET[..20]).await;
    assert_eq!(session.hears().await, OK);
    session.shut_down_gracefully();
    assert_eq!(session.hears().await, "[closed]");
    assert_eq!(seen.take().len(), 1);
}

/// Demand: the answer in flight says `Connection: close`, then the connection closes.
#[tokio::test(flavor = "local", start_paused = true)]
async fn graceful_shutdown_with_a_request_in_flight() {
    let (go, gone) = oneshot::channel::<()>();
    let gone = RefCell::new(Some(gone));
    let mut session = Session::start(&builder(), move |_| {
        let gone = gone.take().unwrap();
        async move {
            gone.await.unwrap();
            Response::new(Full::from("ok"))
        }
    });
    session.says("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert_eq!(session.hears().await, "");
    session.shut_down_gracefully();
    assert_eq!(session.hears().await, "");
    go.send(()).unwrap();
    assert_eq!(session.hears().await, OK_AND_CLOSE);
    session.ended().await.unwrap();

    // A head that has already gone out cannot say it: the body ends, the connection closes.
    let (body, feed) = feed();
    let body = RefCell::new(Some(body));
    let mut session = Session::start(&builder(), move |_| {
        let body = body.take().unwrap();
        async move { Response::new(body) }
    });
    session.says("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    session.hears().await;
    session.shut_down_gracefully();
    feed.send(Ok(data("abc"))).unwrap();
    drop(feed);
    assert_eq!(session.hears().await, "3\r\nabc\r\n0\r\n\r\n[closed]");
}

/// Demand: a client may shut its sending side after the request and still get its answer.
#[tokio::test(flavor = "local", start_paused = true)]
async fn half_closed_client() {
    for (half_close, at_once, later) in [(false, "[closed]", "[closed]"), (true, "", "ok[closed]")] {
        let (go, gone) = oneshot::channel::<()>();
        let gone = RefCell::new(Some(gone));
        let mut session = Session::start(builder().half_close(half_close), move |_| {
            let gone = gone.take().unwrap();
            async move {
                gone.await.unwrap();
                Response::new(Full::from("ok"))
            }
        });
        session.says("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        session.client.shutdown().await.unwrap();
        assert_eq!(session.hears().await, at_once, "half_close({half_close})");
        // The service of the first round is gone by now: hyper has dropped it.
        assert_eq!(go.send(()).is_ok(), half_close);
        assert!(session.hears().await.ends_with(later), "half_close({half_close})");
    }
}

// ----- several requests, answers without a body -------------------------------------------

/// Demand: answers in the order of the requests.
#[tokio::test(flavor = "local", start_paused = true)]
async fn pipelining() {
    let (heard, seen) = serve(
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
         GET /3 HTTP/1.1\r\nHost: a\r\n\r\n",
    )
    .await;
    assert_eq!(heard, OK.repeat(3));
    assert_eq!(
        seen,
        [
            "GET /1 HTTP/1.1|host: a||",
            "POST /2 HTTP/1.1|host: a|content-length: 3||abc",
            "GET /3 HTTP/1.1|host: a||"
        ]
    );
}

/// Demand: no body on the wire; the length that a GET would have is kept.
#[tokio::test(flavor = "local", start_paused = true)]
async fn head_and_304_with_a_body() {
    async fn answer_to<B>(method: &str, answer: fn() -> Response<B>) -> String
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut session = Session::start(&builder(), move |_| async move { answer() });
        session.says(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        session.hears().await
    }
    fn answer(status: u16) -> http::response::Builder {
        Response::builder().status(status)
    }
    const LENGTH: (&str, &str) = ("content-length", "3");

    for (heard, expected) in [
        (answer_to("HEAD", || answer(200).body(Full::from("abc")).unwrap()).await, "content-length: 3\r\n"),
        (answer_to("HEAD", || answer(200).body(fed([data("abc")])).unwrap()).await, ""),
        (
            answer_to("HEAD", || answer(200).header(LENGTH.0, LENGTH.1).body(fed([])).unwrap()).await,
            "content-length: 3\r\n",
        ),
        (answer_to("GET", || answer(304).body(Full::from("abc")).unwrap()).await, ""),
        (
            answer_to("GET", || answer(304).header(LENGTH.0, LENGTH.1).body(fed([])).unwrap()).await,
            "content-length: 3\r\n",
        ),
        // Only here is the length lost: an answer whose body is known to be empty.
        (
            answer_to("GET", || answer(304).header(LENGTH.0, LENGTH.1).body(Empty::<Bytes>::new()).unwrap())
                .await,
            "",
        ),
    ] {
        let (status, rest) = heard.split_once("\r\n").unwrap();
        assert_eq!(rest, format!("{expected}\r\n"), "{status}");
    }
}
