//! hyper's HTTP/1.1 client, towards a VM.

use std::cell::RefCell;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use http_body::Body;
use http_body_util::{Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{Connection, SendRequest, handshake};
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};

use crate::body::{data, fed, feed, fields, read, trailers};
use crate::wire::{Tapped, TokioIo, until_quiet};

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
    assert_eq!(sent(&[("trailer", "x"), ("trailer", "Z")]).await, "3\r\nabc\r\n0\r\nx: y\r\nz: y\r\n\r\n");
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
        ("content-length: 2\r\ncontent-length: 2\r\n", "200|content-length: 2|content-length: 2||ok", true),
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
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200", "200|content-length: 2||ok", false),
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
        assert_eq!(transcript(answer.await.unwrap()).await, format!("200|{fields}||{expected}"), "{body:?}");
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
        assert!(matches!(poll_once(|cx| connection.poll_without_shutdown(cx)).await, Poll::Ready(Ok(()))));
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
