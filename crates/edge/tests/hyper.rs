//! What hyper can and cannot do at the edge and towards the VMs.
//!
//! Each test asks one thing the gateway must do and asserts what hyper really does, right or wrong:
//! literal bytes in, literal bytes out. `docs/hyper.md` has one row per test and the decision drawn
//! from it. A test that fails after an upgrade of hyper means its row, and perhaps the decision, is
//! out of date.
//!
//! Nothing here sleeps. Time is paused, so a deadline passes only when every task is idle: that is
//! how [`until_quiet`] knows that the other side has said all it is going to say.

// A panic is how a test reports, and every byte here is the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::cell::RefCell;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, spawn_local};

/// hyper's HTTP/1.1 server.
mod http1_server {
    use super::*;
    use hyper::server::conn::http1::Builder;

    /// The answer of [`recording`] to a request it could read.
    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    const OK_AND_CLOSE: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok[closed]";
    /// hyper's own answer to a head it cannot parse.
    const HYPERS_400: &str =
        "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n[closed]";

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
            serve("POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
                .await;
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
            (
                answer_to("HEAD", || answer(200).body(Full::from("abc")).unwrap()).await,
                "content-length: 3\r\n",
            ),
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
                answer_to("GET", || {
                    answer(304).header(LENGTH.0, LENGTH.1).body(Empty::<Bytes>::new()).unwrap()
                })
                .await,
                "",
            ),
        ] {
            let (status, rest) = heard.split_once("\r\n").unwrap();
            assert_eq!(rest, format!("{expected}\r\n"), "{status}");
        }
    }
}

/// hyper's HTTP/2 server.
mod http2_server {
    use super::*;
    use hyper::server::conn::http2::Builder;

    /// One connection of hyper's server and its other end, which speaks frames or is an h2 client.
    struct Session {
        connection: JoinHandle<hyper::Result<()>>,
        stop: Option<oneshot::Sender<()>>,
        writes: Rc<RefCell<Vec<Vec<u8>>>>,
    }

    impl Session {
        fn start<F, A, B>(builder: &Builder<Local>, vectored: bool, service: F) -> (Self, DuplexStream)
        where
            F: Fn(Request<Incoming>) -> A + 'static,
            A: Future<Output = Response<B>> + 'static,
            B: Body<Data = Bytes> + 'static,
            B::Error: Into<Box<dyn Error + Send + Sync>>,
        {
            let (client, server) = duplex(1 << 20);
            let writes = Rc::default();
            let server = Tapped { io: server, writes: Rc::clone(&writes), vectored };
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
            (Self { connection, stop: Some(stop), writes }, client)
        }

        fn shut_down_gracefully(&mut self) {
            self.stop.take().unwrap().send(()).unwrap();
        }
    }

    fn builder() -> Builder<Local> {
        let mut builder = Builder::new(Local);
        builder.auto_date_header(false);
        builder
    }

    /// An h2 client over `io`.
    async fn client(io: DuplexStream) -> h2::client::SendRequest<Bytes> {
        let (sender, connection) = h2::client::handshake(io).await.unwrap();
        spawn_local(connection);
        // The server's SETTINGS have to arrive first.
        all_idle().await;
        sender.ready().await.unwrap()
    }

    async fn text(mut body: h2::RecvStream) -> String {
        let mut bytes = Vec::new();
        while let Some(data) = body.data().await {
            let data = data.unwrap();
            body.flow_control().release_capacity(data.len()).unwrap();
            bytes.extend_from_slice(&data);
        }
        String::from_utf8(bytes).unwrap()
    }

    fn request(method: &str) -> http::request::Builder {
        Request::builder().method(method).uri("http://a/")
    }

    /// Demand: 103 of the VM reaches the client, then the final answer.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn service_answers_1xx() {
        let (_session, mut client) = Session::start(&builder(), true, |_| async {
            Response::builder().status(103).body(Full::from("")).unwrap()
        });
        client.write_all(&opening()).await.unwrap();
        // It is sent as the final answer: no client can make sense of that.
        let heard = frames(&bytes_until_quiet(&mut client).await.0);
        assert_eq!(
            heard,
            ["SETTINGS", "SETTINGS ACK", "WINDOW_UPDATE 0", "HEADERS 1 :status 103 END_STREAM"]
        );
    }

    /// The same with `h2` alone.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn h2_itself_sends_1xx() {
        let (mut client, server) = duplex(1 << 20);
        spawn_local(async move {
            let mut connection = h2::server::handshake(server).await.unwrap();
            while let Some(request) = connection.accept().await {
                let (_, mut answer) = request.unwrap();
                answer.send_informational(Response::builder().status(103).body(()).unwrap()).unwrap();
                answer.send_response(Response::new(()), true).unwrap();
            }
        });
        client.write_all(&opening()).await.unwrap();
        let heard = frames(&bytes_until_quiet(&mut client).await.0);
        assert_eq!(
            heard,
            ["SETTINGS", "SETTINGS ACK", "HEADERS 1 :status 103", "HEADERS 1 :status 200 END_STREAM"]
        );
    }

    /// Demand: WebSocket over HTTP/2 (RFC 8441).
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn extended_connect() {
        let echo = |mut request: Request<Incoming>| async move {
            let protocol = request.extensions().get::<hyper::ext::Protocol>().unwrap();
            assert_eq!(protocol.as_str(), "websocket");
            let tunnel = hyper::upgrade::on(&mut request);
            spawn_local(async move {
                let mut tunnel = Tunnel(tunnel.await.unwrap());
                let mut bytes = [0; 3];
                tunnel.read_exact(&mut bytes).await.unwrap();
                tunnel.write_all(&bytes).await.unwrap();
                tunnel.shutdown().await.unwrap();
            });
            Response::new(Empty::<Bytes>::new())
        };

        // Off by default.
        let (_session, io) = Session::start(&builder(), true, echo);
        assert!(!client(io).await.is_extended_connect_protocol_enabled());

        let mut enabled = builder();
        enabled.enable_connect_protocol();
        let (_session, io) = Session::start(&enabled, true, echo);
        let mut client = client(io).await;
        assert!(client.is_extended_connect_protocol_enabled());
        let request =
            request("CONNECT").extension(h2::ext::Protocol::from_static("websocket")).body(()).unwrap();
        let (answer, mut up) = client.send_request(request, false).unwrap();
        up.send_data("abc".into(), false).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(text(answer.into_body()).await, "abc");
    }

    /// Demand: a malformed CONNECT ends its own stream and no other.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn connect_with_a_content_length() {
        // `CONNECT a` with `content-length: 1`.
        const CONNECT: &[u8] = b"\x02\x07CONNECT\x41\x01a\x0f\x0d\x011";
        let (session, mut client) =
            Session::start(&builder(), true, |_| std::future::pending::<Response<Empty<Bytes>>>());
        client.write_all(&opening()).await.unwrap();
        bytes_until_quiet(&mut client).await;
        client.write_all(&frame(HEADERS, END_HEADERS, 3, CONNECT)).await.unwrap();
        // The connection is gone, stream 1 with it, without RST_STREAM or GOAWAY.
        assert_eq!(bytes_until_quiet(&mut client).await, (vec![], true));
        session.connection.await.unwrap().unwrap();
    }

    /// Demand: a body cut short is an error, or a VM takes half an upload for the whole.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn request_cut_short() {
        // `POST http://a/` with `content-length: 9`.
        const POST: &[u8] = b"\x83\x86\x84\x41\x01a\x0f\x0d\x019";
        const NO_ERROR: u8 = 0;
        const CANCEL: u8 = 8;
        for (reason, expected) in [(CANCEL, "!error reading a body from connection"), (NO_ERROR, "abc")] {
            let (body, mut seen) = mpsc::unbounded_channel();
            let (_session, mut client) =
                Session::start(&builder(), true, move |request: Request<Incoming>| {
                    let body = body.clone();
                    async move {
                        let read = read(request.into_body()).await;
                        body.send(read.unwrap_or_else(|error| format!("!{error}"))).unwrap();
                        Response::new(Empty::<Bytes>::new())
                    }
                });
            let start =
                [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, END_HEADERS, 1, POST)].concat();
            client.write_all(&start).await.unwrap();
            client.write_all(&frame(DATA, 0, 1, b"abc")).await.unwrap();
            bytes_until_quiet(&mut client).await;
            client.write_all(&frame(RST_STREAM, 0, 1, &[0, 0, 0, reason])).await.unwrap();
            assert_eq!(seen.recv().await.unwrap(), expected);
        }
    }

    /// Demand: GOAWAY, then what runs is finished, then the connection closes.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn graceful_shutdown_sends_goaway() {
        let (go, gone) = oneshot::channel::<()>();
        let gone = RefCell::new(Some(gone));
        let (mut session, mut client) = Session::start(&builder(), true, move |_| {
            let gone = gone.take().unwrap();
            async move {
                gone.await.unwrap();
                Response::new(Full::from("ok"))
            }
        });
        client.write_all(&opening()).await.unwrap();
        bytes_until_quiet(&mut client).await;

        session.shut_down_gracefully();
        let (heard, _) = bytes_until_quiet(&mut client).await;
        assert_eq!(frames(&heard), ["GOAWAY last 2147483647", "PING"]);
        // The real last id waits for the client's PING, however long that takes.
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(bytes_until_quiet(&mut client).await, (vec![], false));
        client.write_all(&frame(PING, ACK, 0, &heard[heard.len() - 8..])).await.unwrap();
        assert_eq!(frames(&bytes_until_quiet(&mut client).await.0), ["GOAWAY last 1"]);

        go.send(()).unwrap();
        let (heard, closed) = bytes_until_quiet(&mut client).await;
        assert_eq!(frames(&heard), ["HEADERS 1 :status 200", "DATA 1 \"ok\" END_STREAM"]);
        assert!(closed);
    }

    /// Demand: the client's trailers reach the service, the VM's reach the client.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn trailers_both_ways() {
        let (_session, io) = Session::start(&builder(), true, |request: Request<Incoming>| async {
            assert_eq!(read(request.into_body()).await.unwrap(), "abc||x: y");
            Response::new(fed([data("def"), trailers(&[("grpc-status", "0")])]))
        });
        let mut client = client(io).await;
        let (answer, mut up) = client.send_request(request("POST").body(()).unwrap(), false).unwrap();
        up.send_data("abc".into(), false).unwrap();
        up.send_trailers(HeaderMap::from_iter([(
            http::HeaderName::from_static("x"),
            HeaderValue::from_static("y"),
        )]))
        .unwrap();
        let mut body = answer.await.unwrap().into_body();
        assert_eq!(body.data().await.unwrap().unwrap(), "def");
        assert!(body.data().await.is_none());
        assert_eq!(fields(&body.trailers().await.unwrap().unwrap()), "|grpc-status: 0");
    }

    /// Demand: `Host` beside `:authority` is reconciled, split cookies are joined.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn host_and_cookies() {
        let (_session, io) = Session::start(&builder(), true, |request: Request<Incoming>| async move {
            Response::new(Full::from(format!("{}{}", request.uri(), fields(request.headers()))))
        });
        let mut client = client(io).await;
        let request = request("GET").header("host", "b").header("cookie", "c=1").header("cookie", "d=2");
        let (answer, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
        let seen = text(answer.await.unwrap().into_body()).await;
        assert_eq!(seen, "http://a/|host: b|cookie: c=1|cookie: d=2");
    }

    /// Demand: frames are gathered into few writes, under TLS above all.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn one_write_per_data_frame() {
        // Four frames, all ready at once, and an empty one of 9 bytes for the end.
        for (size, vectored, expected) in [
            (4096, true, &[10 + 4105, 4105, 4105, 4105, 9][..]),
            (4096, false, &[1024, 10 + 3081, 1024, 3081, 1024, 3081, 1024, 3081, 9][..]),
            (200, true, &[10 + 4 * 209 + 9][..]),
            (200, false, &[10 + 4 * 209 + 9][..]),
        ] {
            let (session, io) = Session::start(&builder(), vectored, move |_| async move {
                let (body, feed) = feed();
                for _ in 0..4 {
                    feed.send(Ok(Frame::data(vec![b'x'; size].into()))).unwrap();
                }
                Response::new(body)
            });
            let mut client = client(io).await;
            session.writes.borrow_mut().clear();
            let (answer, _) = client.send_request(request("GET").body(()).unwrap(), true).unwrap();
            let body = answer.await.unwrap().into_body();
            assert_eq!(text(body).await.len(), 4 * size);
            let written: Vec<_> = session.writes.borrow().iter().map(Vec::len).collect();
            assert_eq!(written, expected, "frames of {size}, vectored: {vectored}");
        }
    }

    // ----- frames -----------------------------------------------------------------------------

    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// `GET http://a/` in HPACK: three fields of the static table and a literal `:authority`.
    const GET: &[u8] = b"\x82\x86\x84\x41\x01a";
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const ACK: u8 = 1;
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// How a client begins, and its first request on stream 1.
    fn opening() -> Vec<u8> {
        let end = END_STREAM | END_HEADERS;
        [PREFACE, &frame(SETTINGS, 0, 0, &[]), &frame(HEADERS, end, 1, GET)].concat()
    }

    /// `:status`, the first field of an answer: in HPACK's static table, or a literal in Huffman code.
    fn status(block: &[u8]) -> u16 {
        match block {
            [0x88, ..] => 200,
            [0x48, 0x82, 0x08, 0x19, ..] => 103,
            other => panic!("another status: {other:x?}"),
        }
    }

    /// A line for each frame.
    fn frames(mut bytes: &[u8]) -> Vec<String> {
        let number = |bytes: &[u8]| bytes.iter().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
        let mut lines = Vec::new();
        while !bytes.is_empty() {
            let (head, rest) = bytes.split_at(9);
            let (payload, rest) = rest.split_at(usize::try_from(number(&head[..3])).unwrap());
            bytes = rest;
            let (flags, stream) = (head[4], number(&head[5..]));
            let end = if flags & 1 == 1 { " END_STREAM" } else { "" };
            let ack = if flags & 1 == 1 { " ACK" } else { "" };
            lines.push(match head[3] {
                0 => format!("DATA {stream} {:?}{end}", String::from_utf8_lossy(payload)),
                1 => format!("HEADERS {stream} :status {}{end}", status(payload)),
                4 => format!("SETTINGS{ack}"),
                6 => format!("PING{ack}"),
                7 => format!("GOAWAY last {}", number(&payload[..4])),
                8 => format!("WINDOW_UPDATE {stream}"),
                other => format!("frame {other} {stream}"),
            });
        }
        lines
    }
}

/// hyper's HTTP/1.1 client, towards a VM.
mod http1_client {
    use super::*;
    use hyper::client::conn::http1::{Connection, SendRequest, handshake};
    use std::sync::{Arc, Mutex};

    /// A connection with the VM at its other end.
    struct Session<B> {
        vm: DuplexStream,
        sender: SendRequest<B>,
        connection: JoinHandle<hyper::Result<()>>,
    }

    impl<B> Session<B>
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        async fn start() -> Self {
            let (vm, ours) = duplex(1 << 20);
            let (sender, connection) = handshake(TokioIo(ours)).await.unwrap();
            Self { vm, sender, connection: spawn_local(connection) }
        }

        fn send(&mut self, request: Request<B>) -> JoinHandle<hyper::Result<Response<Incoming>>> {
            spawn_local(self.sender.send_request(request))
        }

        async fn vm_says(&mut self, bytes: &str) {
            self.vm.write_all(bytes.as_bytes()).await.unwrap();
        }

        async fn vm_hears(&mut self) -> String {
            until_quiet(&mut self.vm).await
        }

        /// Whether the connection can take another request, after all there was to do.
        async fn is_reusable(&mut self) -> bool {
            self.vm_hears().await;
            self.sender.is_ready()
        }
    }

    fn get() -> Request<Empty<Bytes>> {
        Request::builder().uri("/").header("host", "a").body(Empty::new()).unwrap()
    }

    fn post<B>(body: B, fields: &[(&str, &str)]) -> Request<B> {
        let head = Request::post("/").header("host", "a");
        fields.iter().fold(head, |head, (name, value)| head.header(*name, *value)).body(body).unwrap()
    }

    /// One request without a body, one answer, and whether the connection can be used again.
    async fn exchange(vm_says: &str) -> (String, bool) {
        let mut session = Session::start().await;
        let answer = session.send(get());
        session.vm_hears().await;
        session.vm_says(vm_says).await;
        let answer = match tokio::time::timeout(Duration::from_millis(1), answer).await {
            Err(_) => "no answer".to_owned(),
            Ok(answer) => transcript(answer.unwrap()).await,
        };
        (answer, session.is_reusable().await)
    }

    async fn transcript(answer: hyper::Result<Response<Incoming>>) -> String {
        match answer {
            Err(error) => format!("!{error}"),
            Ok(answer) => {
                let (head, body) = answer.into_parts();
                let body = match tokio::time::timeout(Duration::from_millis(1), read(body)).await {
                    Err(_) => "unfinished".into(),
                    Ok(Ok(body)) => body,
                    Ok(Err(error)) => format!("!{error}"),
                };
                format!("{}{}||{body}", head.status.as_u16(), fields(&head.headers))
            }
        }
    }

    /// Demand: 1xx of the VM is handed on before the final answer.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn interim_answers() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let mut session = Session::start().await;
        let mut request = get();
        let book = seen.clone();
        hyper::ext::on_informational(&mut request, move |interim| {
            book.lock().unwrap().push(format!("{}{}", interim.status().as_u16(), fields(interim.headers())));
        });
        let answer = session.send(request);
        assert_eq!(session.vm_hears().await, "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        session.vm_says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
        session.vm_hears().await;
        assert_eq!(*seen.lock().unwrap(), ["100", "103|link: </a>"]);
        assert!(!answer.is_finished());
        session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(transcript(answer.await.unwrap()).await, "200|content-length: 2||ok");
        assert!(session.is_reusable().await);

        // Without a callback they are dropped, and nothing bounds their number.
        let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(10_000);
        let answer = exchange(&format!("{flood}HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")).await;
        assert_eq!(answer, ("200|content-length: 0||".into(), true));
    }

    /// Demand: the head goes out at once, the body when the VM says 100.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn expect_100_continue() {
        let (asked, mut hears_100) = mpsc::unbounded_channel();
        let mut session = Session::start().await;
        let (body, feed) = feed();
        let mut request = post(body, &[("expect", "100-continue"), ("content-length", "3")]);
        hyper::ext::on_informational(&mut request, move |interim| asked.send(interim.status()).unwrap());
        let answer = session.send(request);
        // hyper waits for nothing but the body itself: while that is pending, the head is flushed.
        assert_eq!(
            session.vm_hears().await,
            "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n"
        );
        assert!(hears_100.try_recv().is_err());
        session.vm_says("HTTP/1.1 100 Continue\r\n\r\n").await;
        assert_eq!(hears_100.recv().await.unwrap(), 100);
        feed.send(Ok(data("abc"))).unwrap();
        drop(feed);
        assert_eq!(session.vm_hears().await, "abc");
        session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(transcript(answer.await.unwrap()).await, "200|content-length: 2||ok");
        assert!(session.is_reusable().await);

        // A body that is ready does not wait for the 100.
        let mut session = Session::start().await;
        let _answer = session.send(post(Full::from("abc"), &[("expect", "100-continue")]));
        assert_eq!(
            session.vm_hears().await,
            "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc"
        );
    }

    /// Demand: an answer that does not wait for the body is handed on, and the connection is used
    /// again only if it is still in step.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn answer_before_the_body_is_finished() {
        const GONE: &str = "hyper::Error(User(Body), Custom { kind: Other, error: \"gone\" })";
        const CUT: &str = "hyper::Error(User(BodyWriteAborted), NotEof(3))";
        let abc = || Some(Ok(data("abc")));
        let gone = || Some(Err(io::Error::other("gone")));
        for (length, last, heard, error) in [
            (&[][..], abc(), "3\r\nabc\r\n0\r\n\r\n", None),
            // A body that merely ends looks complete to the VM; one that fails does not.
            (&[], None, "0\r\n\r\n", None),
            (&[], gone(), "[closed]", Some(GONE)),
            (&[("content-length", "3")], abc(), "abc", None),
            (&[("content-length", "3")], None, "[closed]", Some(CUT)),
            (&[("content-length", "3")], gone(), "[closed]", Some(GONE)),
        ] {
            let mut session = Session::start().await;
            let (body, feed) = feed();
            let answer = session.send(post(body, length));
            session.vm_hears().await;
            session.vm_says("HTTP/1.1 417 No\r\ncontent-length: 2\r\n\r\nno").await;
            assert_eq!(transcript(answer.await.unwrap()).await, "417|content-length: 2||no");
            assert!(!session.is_reusable().await);
            if let Some(last) = last {
                feed.send(last).unwrap();
            }
            drop(feed);
            assert_eq!(session.vm_hears().await, heard);
            assert_eq!(session.is_reusable().await, error.is_none());
            if let Some(error) = error {
                assert_eq!(format!("{:?}", session.connection.await.unwrap().unwrap_err()), error);
            }
        }
    }

    /// Demand: as above, where the VM closes at once and the body still goes on.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn answer_before_the_body_is_finished_and_close() {
        const CUT: &str = "!error reading a body from connection";
        let long = "no".repeat(10_000);
        for (answer, goes_on, expected) in [
            ("no", true, "no"),
            // Writing to a VM that is gone fails, and takes with it what was not yet read of the answer.
            (&long, true, CUT),
            (&long, false, &long),
        ] {
            let mut session = Session::start().await;
            let (body, feed) = feed();
            let answered = session.send(post(body, &[]));
            session.vm_hears().await;
            let head = format!("connection: close\r\ncontent-length: {}", answer.len());
            session.vm_says(&format!("HTTP/1.1 413 No\r\n{head}\r\n\r\n{answer}")).await;
            drop(session.vm);
            if goes_on {
                feed.send(Ok(data("abc"))).unwrap();
            }
            let seen = transcript(answered.await.unwrap()).await;
            assert_eq!(seen, format!("413|{}||{expected}", head.replace("\r\n", "|")));
            session.connection.await.unwrap().unwrap_err();
        }
    }

    /// Demand: the client's trailers reach the VM where `Trailer` names them.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn trailers_to_the_vm() {
        async fn sent(named: &[(&str, &str)]) -> String {
            let body = fed([data("abc"), trailers(&[("x", "y"), ("z", "y"), ("content-type", "y")])]);
            let mut session = Session::start().await;
            let _answer = session.send(post(body, named));
            session.vm_hears().await.split_once("\r\n\r\n").unwrap().1.to_owned()
        }
        assert_eq!(sent(&[("trailer", "x, content-type")]).await, "3\r\nabc\r\n0\r\nx: y\r\n\r\n");
        assert_eq!(
            sent(&[("trailer", "x"), ("trailer", "Z")]).await,
            "3\r\nabc\r\n0\r\nx: y\r\nz: y\r\n\r\n"
        );
        assert_eq!(sent(&[]).await, "3\r\nabc\r\n0\r\n\r\n");
        // With a length there is no place for them.
        assert_eq!(sent(&[("trailer", "x"), ("content-length", "3")]).await, "abc");
    }

    /// Demand: the VM's trailers are handed on.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn trailers_from_the_vm() {
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX: y\r\n\r\n";
        assert_eq!(exchange(answer).await, ("200|transfer-encoding: chunked||abc||x: y".into(), true));
    }

    /// Demand: whatever the method, the body reaches the VM, with exactly one length.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn body_of_a_get() {
        const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");
        const LENGTH: (&str, &str) = ("content-length", "3");
        let chunked = "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let length = "content-length: 3\r\n\r\nabc";
        for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST"] {
            // With no field that says there is a body, hyper leaves that of GET and HEAD unsent.
            let silent = if matches!(method, "GET" | "HEAD") { "\r\n" } else { chunked };
            for (fields, expected) in
                [(&[][..], silent), (&[CHUNKED], chunked), (&[LENGTH], length), (&[CHUNKED, LENGTH], chunked)]
            {
                let mut session = Session::start().await;
                let mut request = post(fed([data("abc")]), fields);
                *request.method_mut() = method.parse().unwrap();
                let _answer = session.send(request);
                let heard = session.vm_hears().await;
                assert_eq!(heard, format!("{method} / HTTP/1.1\r\nhost: a\r\n{expected}"), "{fields:?}");
            }
        }
    }

    /// Demand: a body that fails aborts the exchange, without a final chunk.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn body_fails_midway() {
        for (length, first, last, error) in [
            (&[][..], "3\r\nabc\r\n", Err("bad chunk"), "error from user's Body stream"),
            (&[("content-length", "9")], "abc", Err("bad chunk"), "error from user's Body stream"),
            (&[("content-length", "9")], "abc", Ok(()), "user body write aborted"),
        ] {
            let mut session = Session::start().await;
            let (body, feed) = feed();
            let answer = session.send(post(body, length));
            feed.send(Ok(data("abc"))).unwrap();
            assert!(session.vm_hears().await.ends_with(first));
            if let Err(error) = last {
                feed.send(Err(io::Error::other(error))).unwrap();
            }
            drop(feed);
            assert_eq!(session.vm_hears().await, "[closed]");
            let failure = answer.await.unwrap().unwrap_err();
            assert_eq!(failure.to_string(), error);
            assert!(failure.is_user());
            session.connection.await.unwrap().unwrap();
        }

        // What is more than the length is dropped without a word.
        let mut session = Session::start().await;
        let answer = session.send(post(fed([data("abc")]), &[("content-length", "2")]));
        assert_eq!(session.vm_hears().await, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nab");
        session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(transcript(answer.await.unwrap()).await, "200|content-length: 2||ok");
        assert!(session.is_reusable().await);
    }

    /// Demand: one length, and the connection is not used again.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn transfer_encoding_beside_content_length() {
        let answer =
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        let seen = "200|content-length: 2|transfer-encoding: chunked||abc";
        assert_eq!(exchange(answer).await, (seen.into(), true));
    }

    /// Demand: one length; 502 where they differ.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn repeated_content_length() {
        const REFUSED: &str = "!invalid content-length parsed";
        for (fields, expected, reusable) in [
            (
                "content-length: 2\r\ncontent-length: 2\r\n",
                "200|content-length: 2|content-length: 2||ok",
                true,
            ),
            ("content-length: 2, 2\r\n", "200|content-length: 2, 2||ok", true),
            ("content-length: 2\r\ncontent-length: 3\r\n", REFUSED, false),
            ("content-length: 2, 3\r\n", REFUSED, false),
            ("content-length: +2\r\n", REFUSED, false),
        ] {
            let seen = exchange(&format!("HTTP/1.1 200 OK\r\n{fields}\r\nok")).await;
            assert_eq!(seen, (expected.into(), reusable), "{fields:?}");
        }
    }

    /// Demand: 502.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn transfer_encoding_other_than_chunked() {
        for (answer, expected, reusable) in [
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                "200|transfer-encoding: gzip, chunked||abc",
                true,
            ),
            // Until the VM closes.
            (
                "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc",
                "200|transfer-encoding: gzip||unfinished",
                false,
            ),
            (
                "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
                "!unexpected transfer-encoding parsed",
                false,
            ),
        ] {
            assert_eq!(exchange(answer).await, (expected.into(), reusable));
        }
    }

    /// Demand: nothing is read for a body; the length is not a framing here.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn head_204_and_304() {
        for status in ["204 No Content", "304 Not Modified"] {
            let seen = exchange(&format!("HTTP/1.1 {status}\r\ncontent-length: 2\r\n\r\n")).await;
            assert_eq!(seen, (format!("{}|content-length: 2||", &status[..3]), true));
        }
        let mut session = Session::start().await;
        let mut request = get();
        *request.method_mut() = http::Method::HEAD;
        let answer = session.send(request);
        session.vm_hears().await;
        session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await;
        assert_eq!(transcript(answer.await.unwrap()).await, "200|content-length: 2||");
        assert!(session.is_reusable().await);
    }

    /// Demand: a connection is used again only when both sides agree where the answer ended.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn reuse() {
        for (answer, expected, reusable) in [
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "200|content-length: 2||ok", true),
            ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", "200|content-length: 2||ok", false),
            (
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
                "200|connection: close|content-length: 2||ok",
                false,
            ),
            ("HTTP/1.1 200 OK\r\n\r\nabc", "200||unfinished", false),
            (
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200",
                "200|content-length: 2||ok",
                false,
            ),
        ] {
            assert_eq!(exchange(answer).await, (expected.into(), reusable), "{answer:?}");
        }
    }

    /// Demand: 502 for a head that could mean two things.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn heads_of_answers() {
        const HEADER: &str = "!invalid HTTP header parsed";
        const VERSION: &str = "!invalid HTTP version parsed";
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", HEADER),
            ("HTTP/1.1 200 OK\r\nX : a\r\n\r\n", HEADER),
            ("HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n", HEADER),
            ("HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", HEADER),
            ("HTTP/1.1 099 X\r\n\r\n", "!invalid HTTP status-code parsed"),
            ("HTTP/2.0 200 OK\r\n\r\n", VERSION),
            ("SSH-2.0-OpenSSH\r\n\r\n", VERSION),
            // Taken: a bare LF, an empty line in front, a status of no class.
            ("HTTP/1.1 200 OK\nX: a\ncontent-length: 0\n\n", "200|x: a|content-length: 0||"),
            ("\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "200|content-length: 0||"),
            ("HTTP/1.1 999 X\r\ncontent-length: 0\r\n\r\n", "999|content-length: 0||"),
        ] {
            assert_eq!(exchange(head).await.0, expected, "{head:?}");
        }
    }

    /// Demand: a head has a bound.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn head_of_an_answer_too_long() {
        const TOO_LARGE: &str = "!message head is too large";
        for (fields, expected) in [
            ("x: y\r\n".repeat(100), None),
            ("x: y\r\n".repeat(101), Some(TOO_LARGE)),
            (format!("x: {}\r\n", "y".repeat(300_000)), None),
            (format!("x: {}\r\n", "y".repeat(500_000)), Some(TOO_LARGE)),
        ] {
            let (seen, _) = exchange(&format!("HTTP/1.1 204 No Content\r\n{fields}\r\n")).await;
            assert!(seen.starts_with(expected.unwrap_or("204|x: y")));
        }
    }

    /// Demand: an answer cut short is an error, wherever it is cut.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn answer_cut_short() {
        for head in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
            let mut session = Session::start().await;
            let answer = session.send(get());
            session.vm_hears().await;
            session.vm_says(head).await;
            session.vm.shutdown().await.unwrap();
            assert!(answer.await.unwrap().unwrap_err().is_incomplete_message(), "{head:?}");
        }

        const CUT: &str = "!error reading a body from connection";
        for (fields, body, expected) in [
            ("content-length: 9", "abc", CUT),
            ("content-length: 9", "", CUT),
            ("transfer-encoding: chunked", "", CUT),
            ("transfer-encoding: chunked", "9\r\nabc", CUT),
            ("transfer-encoding: chunked", "3\r\nabc\r\n", CUT),
            ("transfer-encoding: chunked", "3\r\nabc\r\n0\r\n", CUT),
            // Here the end of the connection is the end of the body.
            ("x: y", "abc", "abc"),
        ] {
            let mut session = Session::start().await;
            let answer = session.send(get());
            session.vm_hears().await;
            session.vm_says(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}")).await;
            session.vm.shutdown().await.unwrap();
            assert_eq!(
                transcript(answer.await.unwrap()).await,
                format!("200|{fields}||{expected}"),
                "{body:?}"
            );
            // The connection itself has nothing to add.
            session.connection.await.unwrap().unwrap();
        }
    }

    type Shared<B> = Option<Connection<TokioIo<DuplexStream>, B>>;

    /// Polls `connection` beside `wanted`, as a request does that owns its connection, and drops it
    /// when it has ended.
    async fn beside<B, T>(connection: &mut Shared<B>, wanted: impl Future<Output = T>) -> T
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let mut wanted = pin!(wanted);
        std::future::poll_fn(|cx| {
            if connection.as_mut().is_some_and(|connection| connection.poll_without_shutdown(cx).is_ready()) {
                *connection = None;
            }
            wanted.as_mut().poll(cx)
        })
        .await
    }

    /// A connection that has served one request, each polled by the request itself.
    async fn used() -> (DuplexStream, SendRequest<Empty<Bytes>>, Shared<Empty<Bytes>>) {
        let (mut vm, ours) = duplex(1 << 20);
        let (mut sender, connection) = handshake(TokioIo(ours)).await.unwrap();
        let mut connection = Some(connection);
        let answer = sender.send_request(get());
        beside(&mut connection, tokio::task::yield_now()).await;
        assert_eq!(until_quiet(&mut vm).await, "GET / HTTP/1.1\r\nhost: a\r\n\r\n");
        vm.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        let answer = beside(&mut connection, answer).await.unwrap();
        assert_eq!(beside(&mut connection, read(answer.into_body())).await.unwrap(), "ok");
        // The poll that ended the body made it ready; it needs none while it is idle.
        assert!(sender.is_ready());
        (vm, sender, connection)
    }

    /// Demand: no task of its own for a connection; the request that uses it polls it.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn polled_inside_the_request() {
        let (mut vm, mut sender, mut connection) = used().await;
        let answer = sender.send_request(get());
        beside(&mut connection, tokio::task::yield_now()).await;
        until_quiet(&mut vm).await;
        vm.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
        assert_eq!(beside(&mut connection, answer).await.unwrap().status(), 200);
    }

    /// Demand: a connection that died while idle gives the request back for another attempt.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn died_while_idle() {
        for last_words in ["", "HTTP/1.1 408 Request Timeout\r\n\r\n"] {
            for polled in [true, false] {
                let (mut vm, mut sender, mut connection) = used().await;
                vm.write_all(last_words.as_bytes()).await.unwrap();
                vm.shutdown().await.unwrap();
                if polled {
                    beside(&mut connection, tokio::task::yield_now()).await;
                }
                // Unless it is polled, the sender cannot know.
                assert_eq!((sender.is_ready(), sender.is_closed()), (!polled, polled));
                let mut error = beside(&mut connection, sender.try_send_request(get())).await.unwrap_err();
                assert!(error.take_message().is_some(), "{last_words:?}");
                assert!(error.error().is_canceled(), "{last_words:?}");
                assert_eq!(until_quiet(&mut vm).await, "[closed]", "not a byte of the request was sent");
            }
        }
    }

    /// Demand: as above. A connection that has ended must be dropped: until then the request in its
    /// queue is neither sent nor given back.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn died_while_idle_and_not_dropped() {
        let (mut vm, mut sender, connection) = used().await;
        let mut connection = connection.unwrap();
        vm.shutdown().await.unwrap();
        let mut answer = pin!(sender.try_send_request(get()));
        std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await.unwrap();
        tokio::time::timeout(Duration::from_secs(3600), answer.as_mut()).await.unwrap_err();
        drop(connection);
        assert!(answer.await.unwrap_err().take_message().is_some());
    }

    /// Demand: a WebSocket is one byte stream after the 101, and no byte is lost.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn switching_protocols() {
        const ASKED: &[(&str, &str)] = &[("connection", "upgrade"), ("upgrade", "websocket")];
        for asked in [ASKED, &[]] {
            let (mut vm, ours) = duplex(1 << 20);
            let (mut sender, mut connection) = handshake(TokioIo(ours)).await.unwrap();
            let mut request = get();
            for (name, value) in asked {
                request.headers_mut().insert(*name, HeaderValue::from_static(value));
            }
            let mut answer = pin!(sender.send_request(request));
            assert!(poll_once(|cx| connection.poll_without_shutdown(cx)).await.is_pending());
            let heard = until_quiet(&mut vm).await;
            assert_eq!(heard.contains("upgrade: websocket\r\n"), !asked.is_empty());
            vm.write_all(
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nabc",
            )
            .await
            .unwrap();

            // One poll brings the 101 and ends hyper's part, whether or not we asked for an upgrade.
            assert!(matches!(
                poll_once(|cx| connection.poll_without_shutdown(cx)).await,
                Poll::Ready(Ok(()))
            ));
            let Poll::Ready(Ok(answer)) = poll_once(|cx| answer.as_mut().poll(cx)).await else {
                panic!("no answer");
            };
            assert_eq!(answer.status(), 101);
            let parts = connection.into_parts();
            assert_eq!(parts.read_buf, "abc");
            let mut stream = parts.io.0;
            stream.write_all(b"def").await.unwrap();
            assert_eq!(until_quiet(&mut vm).await, "def");
            vm.write_all(b"ghi").await.unwrap();
            assert_eq!(until_quiet(&mut stream).await, "ghi");
            // The other way to upgrade is closed by this one.
            assert!(hyper::upgrade::on(answer).await.is_err());
        }
    }

    async fn poll_once<T>(mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        std::future::poll_fn(|cx| Poll::Ready(poll(cx))).await
    }

    /// Demand: a client that leaves frees the VM.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn answer_is_dropped() {
        let mut session = Session::start().await;
        let answer = session.send(get());
        session.vm_hears().await;
        answer.abort();
        assert_eq!(session.vm_hears().await, "[closed]");

        // Amid the body: hyper reads on only if the rest is there already.
        for (rest, heard) in [("", "[closed]"), ("defghi", "")] {
            let mut session = Session::start().await;
            let answer = session.send(get());
            session.vm_hears().await;
            session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
            session.vm_says(rest).await;
            drop(answer.await.unwrap().unwrap());
            assert_eq!(session.vm_hears().await, heard);
            assert_eq!(session.sender.is_ready(), heard.is_empty());
        }
    }

    /// Demand: one write for a small request.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn head_and_body_leave_in_one_write() {
        for vectored in [true, false] {
            let (mut vm, ours) = duplex(1 << 20);
            let writes = Rc::<RefCell<Vec<_>>>::default();
            let ours = Tapped { io: ours, writes: Rc::clone(&writes), vectored };
            let (mut sender, connection) = handshake(TokioIo(ours)).await.unwrap();
            spawn_local(connection);
            let _answer = spawn_local(sender.send_request(post(Full::<Bytes>::from("abc"), &[])));
            let heard = until_quiet(&mut vm).await;
            assert!(heard.ends_with("\r\n\r\nabc"));
            assert_eq!(*writes.borrow(), [heard.as_bytes()]);
        }
    }

    /// Demand: the target goes on byte for byte.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn target_is_kept() {
        let mut session = Session::start().await;
        let mut request = get();
        *request.uri_mut() = "/a%2Fb/%2e%2E/.././/?c=%zz&&".parse().unwrap();
        let _answer = session.send(request);
        assert_eq!(session.vm_hears().await, "GET /a%2Fb/%2e%2E/.././/?c=%zz&& HTTP/1.1\r\nhost: a\r\n\r\n");
    }
}

/// hyper's HTTP/2 client, towards a VM.
mod http2_client {
    use super::*;
    use hyper::client::conn::http2::handshake;

    /// Sends `request` to a VM that does as `vm` says.
    async fn exchange<A>(
        request: Request<Fed>,
        vm: impl Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> A + 'static,
    ) -> hyper::Result<Response<Incoming>>
    where
        A: Future<Output = ()> + 'static,
    {
        let (theirs, ours) = duplex(1 << 20);
        spawn_local(async move {
            let mut connection = h2::server::handshake(theirs).await.unwrap();
            while let Some(Ok((request, answer))) = connection.accept().await {
                spawn_local(vm(request, answer));
            }
        });
        let (mut sender, connection) = handshake(Local, TokioIo(ours)).await.unwrap();
        spawn_local(connection);
        sender.send_request(request).await
    }

    fn post(body: Fed) -> Request<Fed> {
        Request::post("http://a/").body(body).unwrap()
    }

    /// Demand: 1xx of the VM is handed on before the final answer.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn interim_answers() {
        let (seen, mut interim) = mpsc::unbounded_channel();
        let mut request = post(fed([]));
        hyper::ext::on_informational(&mut request, move |interim| seen.send(interim.status()).unwrap());
        let answer = exchange(request, |_, mut answer| async move {
            answer.send_informational(Response::builder().status(103).body(()).unwrap()).unwrap();
            answer.send_response(Response::new(()), true).unwrap();
        })
        .await
        .unwrap();
        assert_eq!(answer.status(), 200);
        assert!(interim.try_recv().is_err());
    }

    /// Demand: gRPC: `te: trailers` is kept, trailers pass both ways without `Trailer`.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn trailers_both_ways() {
        let mut request = post(fed([data("abc"), trailers(&[("x", "y")])]));
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        let answer = exchange(request, |request, mut answer| async move {
            assert_eq!(request.headers()["te"], "trailers");
            let mut body = request.into_body();
            assert_eq!(body.data().await.unwrap().unwrap(), "abc");
            assert!(body.data().await.is_none());
            let end = body.trailers().await.unwrap().unwrap();
            answer.send_response(Response::new(()), false).unwrap().send_trailers(end).unwrap();
        })
        .await
        .unwrap();
        assert_eq!(read(answer.into_body()).await.unwrap(), "||x: y");
    }

    /// Demand: an answer cut short is an error.
    #[tokio::test(flavor = "local", start_paused = true)]
    async fn answer_cut_short() {
        /// 3 of 9 bytes, then RST_STREAM with `reason`, or END_STREAM.
        async fn cut(reason: Option<h2::Reason>) -> hyper::Result<String> {
            let answer = exchange(post(fed([])), move |_, mut answer| async move {
                let head = Response::builder().header("content-length", "9").body(()).unwrap();
                let mut body = answer.send_response(head, false).unwrap();
                body.send_data("abc".into(), reason.is_none()).unwrap();
                // Once the bytes are out: a reset overtakes what is queued.
                all_idle().await;
                if let Some(reason) = reason {
                    body.send_reset(reason);
                }
            })
            .await
            .unwrap();
            read(answer.into_body()).await
        }

        cut(None).await.unwrap_err();
        cut(Some(h2::Reason::CANCEL)).await.unwrap_err();
        // hyper takes this for the end of the body, whatever the length says.
        assert_eq!(cut(Some(h2::Reason::NO_ERROR)).await.unwrap(), "abc");
    }
}

// ----- bodies -----------------------------------------------------------------------------------

/// A body that yields what it is sent, of unknown length.
struct Fed(mpsc::UnboundedReceiver<Result<Frame<Bytes>, io::Error>>);

type Feed = mpsc::UnboundedSender<Result<Frame<Bytes>, io::Error>>;

impl Body for Fed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        self.0.poll_recv(cx)
    }
}

fn feed() -> (Fed, Feed) {
    let (feed, body) = mpsc::unbounded_channel();
    (Fed(body), feed)
}

/// A body that has all its frames ready.
fn fed<const N: usize>(frames: [Frame<Bytes>; N]) -> Fed {
    let (body, feed) = feed();
    for frame in frames {
        feed.send(Ok(frame)).unwrap();
    }
    body
}

fn data(bytes: &'static str) -> Frame<Bytes> {
    Frame::data(Bytes::from_static(bytes.as_bytes()))
}

fn trailers(fields: &[(&'static str, &'static str)]) -> Frame<Bytes> {
    let fields = fields
        .iter()
        .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)));
    Frame::trailers(HeaderMap::from_iter(fields))
}

/// The body as text, and its trailers behind `||`.
async fn read<B: Body<Data = Bytes>>(body: B) -> Result<String, B::Error> {
    let body = body.collect().await?;
    let trailers = body.trailers().map(|trailers| format!("|{}", fields(trailers)));
    let bytes = body.to_bytes();
    Ok(format!("{}{}", String::from_utf8_lossy(&bytes), trailers.unwrap_or_default()))
}

/// `|name: value` for each field.
fn fields(fields: &HeaderMap) -> String {
    fields.iter().map(|(name, value)| format!("|{name}: {}", value.to_str().unwrap())).collect()
}

// ----- both ends of the wire --------------------------------------------------------------------

/// All that comes out of `io` until every task is idle; `[closed]` is appended for an end of file.
async fn until_quiet(io: &mut (impl AsyncRead + Unpin)) -> String {
    let (bytes, closed) = bytes_until_quiet(io).await;
    String::from_utf8(bytes).unwrap() + if closed { "[closed]" } else { "" }
}

async fn bytes_until_quiet(io: &mut (impl AsyncRead + Unpin)) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(Duration::from_millis(1), io.read_buf(&mut bytes)).await {
            Err(_quiet) => return (bytes, false),
            Ok(Ok(0) | Err(_)) => return (bytes, true),
            Ok(Ok(_)) => {}
        }
    }
}

/// Returns when every other task waits for something.
async fn all_idle() {
    let _elapsed = tokio::time::timeout(Duration::from_millis(1), std::future::pending::<()>()).await;
}

/// tokio's I/O traits as hyper's. It copies what is read once, to stay free of `unsafe`.
struct TokioIo<T>(T);

impl<T: AsyncRead + Unpin> hyper::rt::Read for TokioIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut into: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 8192];
        let room = into.remaining().min(bytes.len());
        let mut read = ReadBuf::new(&mut bytes[..room]);
        ready!(Pin::new(&mut self.0).poll_read(cx, &mut read))?;
        into.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> hyper::rt::Write for TokioIo<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, slices)
    }
}

/// tokio's clock as hyper's.
struct TokioTimer;

struct TokioSleep(Pin<Box<tokio::time::Sleep>>);

impl hyper::rt::Timer for TokioTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(TokioSleep(Box::pin(tokio::time::sleep(duration))))
    }

    fn sleep_until(&self, deadline: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(TokioSleep(Box::pin(tokio::time::sleep_until(deadline.into()))))
    }

    fn now(&self) -> std::time::Instant {
        tokio::time::Instant::now().into_std()
    }
}

impl Future for TokioSleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.as_mut().poll(cx)
    }
}

impl hyper::rt::Sleep for TokioSleep {}

/// Runs hyper's HTTP/2 tasks on the test's own thread.
#[derive(Clone)]
struct Local;

impl<F: Future + 'static> hyper::rt::Executor<F> for Local {
    fn execute(&self, task: F) {
        spawn_local(async move {
            task.await;
        });
    }
}

/// Writes down each write, as one system call would be.
struct Tapped {
    io: DuplexStream,
    writes: Rc<RefCell<Vec<Vec<u8>>>>,
    vectored: bool,
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, into)
    }
}

impl AsyncWrite for Tapped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
        self.writes.borrow_mut().push(bytes[..written].to_vec());
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
        self.poll_write(cx, &bytes)
    }
}

/// hyper's upgraded stream as tokio's.
struct Tunnel(hyper::upgrade::Upgraded);

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut bytes = [0; 8192];
        let room = into.remaining().min(bytes.len());
        let mut read = hyper::rt::ReadBuf::new(&mut bytes[..room]);
        ready!(hyper::rt::Read::poll_read(Pin::new(&mut self.0), cx, read.unfilled()))?;
        into.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        hyper::rt::Write::poll_write(Pin::new(&mut self.0), cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        hyper::rt::Write::poll_flush(Pin::new(&mut self.0), cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        hyper::rt::Write::poll_shutdown(Pin::new(&mut self.0), cx)
    }
}
