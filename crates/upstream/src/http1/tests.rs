//! Literal bytes of a VM, and what becomes of them; what a VM hears, to the byte.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may stop at the first surprise")]

use std::cell::RefCell;
use std::time::Duration;

use bytes::Bytes;
use foregate_routing::{Address, Endpoint};
use http::HeaderValue;
use http::uri::PathAndQuery;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};

use super::*;

/// Longer than anything here takes, unless it never happens.
const PATIENCE: Duration = Duration::from_secs(20);

/// A body that yields what it is sent; its length is known or not.
struct Fed {
    frames: mpsc::UnboundedReceiver<Result<Frame<Bytes>, Failure>>,
    length: Option<u64>,
}

type Feed = mpsc::UnboundedSender<Result<Frame<Bytes>, Failure>>;

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        self.frames.poll_recv(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

fn fed(length: Option<u64>) -> (Body, Feed) {
    let (feed, frames) = mpsc::unbounded_channel();
    (Body::stream(Fed { frames, length }), feed)
}

fn data(text: &'static str) -> Result<Frame<Bytes>, Failure> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn fields(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &'static str)| {
        (http::HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    fields.iter().map(field).collect()
}

fn get() -> Outgoing {
    Outgoing {
        method: Method::GET,
        target: PathAndQuery::from_static("/"),
        authority: HeaderValue::from_static("a"),
        headers: HeaderMap::new(),
        body: Body::Empty,
        ask_trailers: false,
        upgrade: None,
        response_timeout: Some(PATIENCE),
        idle_timeout: Some(PATIENCE),
    }
}

fn post(body: Body, named: &[(&'static str, &'static str)]) -> Outgoing {
    Outgoing { method: Method::POST, headers: fields(named), body, ..get() }
}

/// A connection with the VM at its other end.
struct Session {
    vm: UnixStream,
    heard: String,
    answer: JoinHandle<Result<Response<Body>, SendError>>,
    shelf: Rc<Shelf>,
    interims: Rc<RefCell<Vec<String>>>,
}

impl Session {
    fn send(outgoing: Outgoing) -> Session {
        let (vm, ours) = UnixStream::pair().unwrap();
        Session::over(vm, Http1::new(Stream::Unix(ours)), outgoing)
    }

    fn over(vm: UnixStream, http1: Box<Http1>, mut outgoing: Outgoing) -> Session {
        let endpoint = Endpoint::new("pool".into(), Address::Unix("/vm".into()));
        let (shelf, interims) = (Rc::<Shelf>::default(), Rc::<RefCell<Vec<String>>>::default());
        let book = interims.clone();
        let interim = move |status: StatusCode, headers: HeaderMap| {
            book.borrow_mut().push(format!("{}{}", status.as_u16(), listed(&headers)));
        };
        let in_flight = InFlight::begin(&endpoint);
        let kept = shelf.clone();
        let answer = spawn_local(async move { http1.send(&mut outgoing, in_flight, kept, interim).await });
        Session { vm, heard: String::new(), answer, shelf, interims }
    }

    /// Waits until all that the VM has heard since the last time ends so; `[closed]` stands for the end.
    async fn vm_hears(&mut self, end: &str) -> String {
        let hearing = async {
            while !self.heard.ends_with(end) {
                let mut bytes = [0; 4096];
                match self.vm.read(&mut bytes).await {
                    Ok(0) | Err(_) => self.heard.push_str("[closed]"),
                    Ok(n) => self.heard.push_str(std::str::from_utf8(bytes.get(..n).unwrap()).unwrap()),
                }
                assert!(self.heard.ends_with(end) || !self.heard.ends_with("[closed]"), "{:?}", self.heard);
            }
        };
        if tokio::time::timeout(PATIENCE, hearing).await.is_err() {
            panic!("the VM waits for {end:?} after {:?}", self.heard);
        }
        std::mem::take(&mut self.heard)
    }

    async fn vm_says(&mut self, bytes: &str) {
        self.vm.write_all(bytes.as_bytes()).await.unwrap();
    }

    async fn vm_ends(&mut self) {
        self.vm.shutdown().await.unwrap();
    }

    /// The answer in one line, and whether the connection can be used again.
    async fn outcome(self) -> (String, bool) {
        // The VM stays until its answer has been read.
        let Session { answer, shelf, vm: _vm, .. } = self;
        let answer = match tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap() {
            Err(error) => format!("!{}", error.failure.kind().label()),
            Ok(response) => transcript(response).await,
        };
        (answer, !shelf.http1.borrow().is_empty())
    }
}

fn listed(fields: &HeaderMap) -> String {
    fields.iter().map(|(name, value)| format!("|{name}: {}", value.to_str().unwrap())).collect()
}

async fn transcript(response: Response<Body>) -> String {
    let (head, body) = response.into_parts();
    let body = match tokio::time::timeout(PATIENCE, body.collect()).await.unwrap() {
        Err(failure) => format!("!{}", failure.kind().label()),
        Ok(body) => {
            let trailers = body.trailers().map(|trailers| format!("|{}", listed(trailers)));
            let bytes = body.to_bytes();
            format!("{}{}", String::from_utf8_lossy(&bytes), trailers.unwrap_or_default())
        }
    };
    format!("{}{}||{body}", head.status.as_u16(), listed(&head.headers))
}

/// One GET, what the VM says to it, and then its end if it is to come.
async fn exchange(vm_says: &str, ends: bool) -> (String, bool) {
    let mut session = Session::send(get());
    session.vm_hears("\r\n\r\n").await;
    session.vm_says(vm_says).await;
    if ends {
        session.vm_ends().await;
    }
    session.outcome().await
}

/// The cases of a table: what the VM says, what is seen of it, whether the connection is used again.
async fn all(cases: &[(&str, &str, bool)]) {
    for (vm_says, seen, reused) in cases {
        assert_eq!(exchange(vm_says, false).await, ((*seen).to_owned(), *reused), "{vm_says:?}");
    }
}

#[tokio::test(flavor = "local")]
async fn heads_are_written_as_they_are() {
    let mut outgoing = get();
    outgoing.target = PathAndQuery::from_static("/a%2Fb/%2e%2E/.././/?c=%zz&&");
    outgoing.headers =
        fields(&[("x-a", "b"), ("content-length", "7"), ("transfer-encoding", "gzip"), ("te", "x")]);
    let heard = Session::send(outgoing).vm_hears("\r\n\r\n").await;
    assert_eq!(heard, "GET /a%2Fb/%2e%2E/.././/?c=%zz&& HTTP/1.1\r\nhost: a\r\nx-a: b\r\n\r\n");

    let heard = Session::send(post(Body::Empty, &[])).vm_hears("\r\n\r\n").await;
    assert_eq!(heard, "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n");

    let heard = Session::send(Outgoing { ask_trailers: true, ..get() }).vm_hears("\r\n\r\n").await;
    assert_eq!(heard, "GET / HTTP/1.1\r\nhost: a\r\nconnection: te\r\nte: trailers\r\n\r\n");
}

/// Whatever the method, the body reaches the VM, with exactly one length; a small one in one write.
#[tokio::test(flavor = "local")]
async fn bodies_are_framed_by_what_is_known_of_them() {
    for method in ["GET", "HEAD", "DELETE", "OPTIONS", "POST"] {
        for (length, framing) in [
            (None, "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"),
            (Some(3), "content-length: 3\r\n\r\nabc"),
        ] {
            let (body, feed) = fed(length);
            feed.send(data("abc")).unwrap();
            drop(feed);
            let outgoing = Outgoing { method: method.parse().unwrap(), ..post(body, &[]) };
            let mut session = Session::send(outgoing);
            let mut bytes = [0; 4096];
            let n = session.vm.read(&mut bytes).await.unwrap();
            let heard = String::from_utf8_lossy(bytes.get(..n).unwrap());
            assert_eq!(heard, format!("{method} / HTTP/1.1\r\nhost: a\r\n{framing}"));
        }
    }
}

#[tokio::test(flavor = "local")]
async fn large_bodies_arrive_whole() {
    let large = Bytes::from((0..3_000_000u32).map(|n| b'a' + (n % 26) as u8).collect::<Vec<u8>>());
    for chunked in [false, true] {
        let (body, feed) = fed((!chunked).then_some(large.len() as u64));
        for piece in large.chunks(100_000) {
            feed.send(Ok(Frame::data(large.slice_ref(piece)))).unwrap();
        }
        drop(feed);
        let mut session = Session::send(post(body, &[]));
        let end = if chunked {
            "\r\n0\r\n\r\n"
        } else {
            std::str::from_utf8(large.get(2_999_000..).unwrap()).unwrap()
        };
        let mut heard = String::new();
        // What ends so may not be the end yet: the text repeats itself.
        while heard.len() < large.len() {
            heard.push_str(&session.vm_hears(end).await);
        }
        let (_, body) = heard.split_once("\r\n\r\n").unwrap();
        if chunked {
            assert!(body.starts_with("186a0\r\nabc"));
        } else {
            assert!(body.as_bytes() == large);
        }
        session.vm_says(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", large.len())).await;
        let response = (&mut session.answer).await.unwrap().unwrap();
        let (written, body) = tokio::join!(session.vm.write_all(&large), response.into_body().collect());
        written.unwrap();
        assert!(body.unwrap().to_bytes() == large);
        assert_eq!(session.shelf.http1.borrow().len(), 1);
    }
}

#[tokio::test(flavor = "local")]
async fn trailers_go_where_they_are_named() {
    for (named, end) in
        [(&[("trailer", "x, y")][..], "3\r\nabc\r\n0\r\nx: 1\r\n\r\n"), (&[], "3\r\nabc\r\n0\r\n\r\n")]
    {
        let (body, feed) = fed(None);
        feed.send(data("abc")).unwrap();
        feed.send(Ok(Frame::trailers(fields(&[("x", "1"), ("z", "2")])))).unwrap();
        drop(feed);
        let heard = Session::send(post(body, named)).vm_hears(end).await;
        assert!(!heard.contains("z: 2"), "{heard:?}");
    }
}

#[tokio::test(flavor = "local")]
async fn interim_answers_are_handed_on() {
    let mut session = Session::send(get());
    session.vm_hears("\r\n\r\n").await;
    session.vm_says("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
    session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let interims = session.interims.clone();
    assert_eq!(session.outcome().await, ("200||ok".to_owned(), true));
    assert_eq!(*interims.borrow(), ["100", "103|link: </a>"]);
}

#[tokio::test(flavor = "local")]
async fn a_body_waits_for_100() {
    let (body, feed) = fed(Some(3));
    feed.send(data("abc")).unwrap();
    drop(feed);
    let mut session = Session::send(post(body, &[("expect", "100-continue")]));
    let heard = session.vm_hears("\r\n\r\n").await;
    assert_eq!(heard, "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n");
    session.vm_says("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(session.vm_hears("abc").await, "abc");
    session.vm_says("HTTP/1.1 204 No Content\r\n\r\n").await;
    assert_eq!(session.outcome().await, ("204||".to_owned(), true));
}

/// A VM that has answered no gets no more, and what it said is read to its end although it has closed.
#[tokio::test(flavor = "local")]
async fn an_upload_that_is_refused_ends() {
    let long = "no".repeat(100_000);
    for (said, closes) in [("no", false), ("no", true), (&*long, true)] {
        let (body, feed) = fed(None);
        let mut session = Session::send(post(body, &[]));
        session.vm_hears("\r\n\r\n").await;
        let head = format!("HTTP/1.1 413 No\r\ncontent-length: {}\r\n\r\n{said}", said.len());
        let Session { mut vm, answer, shelf, .. } = session;
        let saying = spawn_local(async move {
            vm.write_all(head.as_bytes()).await.unwrap();
            (!closes).then_some(vm)
        });
        let response = answer.await.unwrap().unwrap();
        feed.send(data("abc")).unwrap();
        assert!(transcript(response).await == format!("413||{said}"));
        assert!(shelf.http1.borrow().is_empty());
        if let Some(mut vm) = saying.await.unwrap() {
            // Nothing that would make the VM take what it got for all of it.
            let mut rest = Vec::new();
            vm.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"");
        }
    }
}

/// The VM agrees before it has everything: the upload goes on, whether or not the response is read.
#[tokio::test(flavor = "local")]
async fn an_upload_goes_on_beside_its_response() {
    for fails in [false, true] {
        let (body, feed) = fed(None);
        let mut session = Session::send(post(body, &[]));
        session.vm_hears("\r\n\r\n").await;
        session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nyes").await;
        let response = (&mut session.answer).await.unwrap().unwrap();
        feed.send(data("abc")).unwrap();
        assert_eq!(session.vm_hears("abc\r\n").await, "3\r\nabc\r\n");
        if fails {
            feed.send(Err(Kind::ClientGone.into())).unwrap();
            // Without the end of the body.
            assert_eq!(session.vm_hears("[closed]").await, "[closed]");
            assert_eq!(transcript(response).await, "200||!truncated");
        } else {
            drop(feed);
            assert_eq!(session.vm_hears("0\r\n\r\n").await, "0\r\n\r\n");
            session.vm_says("!").await;
            assert_eq!(transcript(response).await, "200||yes!");
        }
    }
}

#[tokio::test(flavor = "local")]
async fn a_body_that_fails_leaves_no_end() {
    let gone = || Some(Err(Kind::ClientGone.into()));
    for (length, last, expected) in [
        (None, gone(), "!client_gone"),
        (Some(9), gone(), "!client_gone"),
        (Some(9), None, "!client_body"),
        (Some(4), Some(data("de")), "!client_body"),
    ] {
        let (body, feed) = fed(length);
        feed.send(data("abc")).unwrap();
        let mut session = Session::send(post(body, &[]));
        let begun = if length.is_some() { "abc" } else { "3\r\nabc\r\n" };
        session.vm_hears(begun).await;
        if let Some(last) = last {
            feed.send(last).unwrap();
        }
        drop(feed);
        assert_eq!(session.vm_hears("[closed]").await, "[closed]");
        assert_eq!(session.outcome().await, (expected.to_owned(), false));
    }
}

#[tokio::test(flavor = "local")]
async fn what_is_in_step_is_used_again() {
    all(&[
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", "200||ok", true),
        ("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "200||", true),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: y\r\n\r\n",
            "200|transfer-encoding: chunked||ok||x: y",
            true,
        ),
        ("HTTP/1.1 204 No Content\r\n\r\n", "204||", true),
        // The body it speaks of may still come.
        ("HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\n", "204||", false),
        ("HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n", "304|content-length: 2||", true),
        ("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", "200||ok", false),
        (
            "HTTP/1.1 200 OK\r\nconnection: x, Close\r\ncontent-length: 2\r\n\r\nok",
            "200|connection: x, Close||ok",
            false,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200", "200||ok", false),
        // One length, and nothing after it is trusted.
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "200|transfer-encoding: chunked||abc",
            false,
        ),
    ])
    .await;
    let mut session = Session::send(Outgoing { method: Method::HEAD, ..get() });
    session.vm_hears("\r\n\r\n").await;
    session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n").await;
    assert_eq!(session.outcome().await, ("200|content-length: 2||".to_owned(), true));
    // However often it is said, clients hear it once.
    let seen =
        exchange("HTTP/1.1 304 Not Modified\r\ncontent-length: 2, 2\r\ncontent-length: 2\r\n\r\n", false)
            .await;
    assert_eq!(seen, ("304|content-length: 2||".to_owned(), true));
}

#[tokio::test(flavor = "local")]
async fn what_could_mean_two_things_is_refused() {
    for (head, body) in [
        ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3", "ok"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2, 3", "ok"),
        ("HTTP/1.1 200 OK\r\ncontent-length: +2", "ok"),
        ("HTTP/1.1 200 OK\r\ncontent-length: ", "ok"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked", "2\r\nok\r\n0\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked", "0\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: gzip", "ok"),
        ("HTTP/1.0 200 OK\r\ntransfer-encoding: chunked", "2\r\nok\r\n0\r\n\r\n"),
        ("HTTP/1.1 200 OK\r\nX: a\r\n b", ""),
        ("HTTP/1.1 200 OK\r\nX : a", ""),
        ("HTTP/1.1 200 OK\r\nX: a\rb", ""),
        ("HTTP/1.1 200 OK\r\nX: a\0b", ""),
        ("HTTP/1.1 099 X", ""),
        ("HTTP/1.1 999 X", ""),
        ("HTTP/2.0 200 OK", ""),
        ("SSH-2.0-OpenSSH", ""),
        ("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x", ""),
    ] {
        let seen = exchange(&format!("{head}\r\n\r\n{body}"), false).await;
        assert_eq!(seen, ("!bad_response".to_owned(), false), "{head:?}");
    }
    all(&[
        ("HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\ncontent-length: 2\r\n\r\nok", "200||ok", true),
        ("HTTP/1.1 200 OK\nX: a\ncontent-length: 0\n\n", "200|x: a||", true),
        ("\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "200||", true),
    ])
    .await;
}

/// The VM agrees, says everything and then takes nothing: what it has answered to is not sent for ever.
#[tokio::test(flavor = "local")]
async fn an_upload_that_nobody_takes_ends_after_its_response() {
    let (body, feed) = fed(None);
    let limit = Duration::from_millis(200);
    let mut session = Session::send(Outgoing { response_timeout: Some(limit), ..post(body, &[]) });
    session.vm_hears("\r\n\r\n").await;
    session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nyes!").await;
    // More than the socket takes.
    for _ in 0..1024 {
        feed.send(Ok(Frame::data(Bytes::from_static(&[0; 4096])))).unwrap();
    }
    let response = (&mut session.answer).await.unwrap().unwrap();
    assert_eq!(transcript(response).await, "200||yes!");
    tokio::time::timeout(PATIENCE, feed.closed()).await.unwrap();
}

#[tokio::test(flavor = "local")]
async fn a_head_has_a_bound() {
    for (fields, fits) in [
        ("x: y\r\n".repeat(256), true),
        ("x: y\r\n".repeat(257), false),
        (format!("x: {}\r\n", "y".repeat(MAX_HEAD - 100)), true),
        (format!("x: {}\r\n", "y".repeat(MAX_HEAD)), false),
    ] {
        let mut session = Session::send(get());
        session.vm_hears("\r\n\r\n").await;
        let Session { mut vm, answer, .. } = session;
        let saying = spawn_local(async move {
            // One that is too long is not read to its end.
            _ = vm.write_all(format!("HTTP/1.1 204 No Content\r\n{fields}\r\n").as_bytes()).await;
            vm
        });
        let answer = answer.await.unwrap();
        assert_eq!(
            answer.map(|_| ()).map_err(|error| error.failure.kind()),
            if fits { Ok(()) } else { Err(Kind::BadResponse) }
        );
        drop(saying);
    }
}

#[tokio::test(flavor = "local")]
async fn an_answer_cut_short_is_an_error() {
    for head in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 103 Early Hints\r\n\r\n"] {
        assert_eq!(exchange(head, true).await, ("!reset".to_owned(), false), "{head:?}");
    }
    for (fields, body) in [
        ("content-length: 9", "abc"),
        ("content-length: 9", ""),
        ("transfer-encoding: chunked", ""),
        ("transfer-encoding: chunked", "9\r\nabc"),
        ("transfer-encoding: chunked", "3\r\nabc\r\n"),
        ("transfer-encoding: chunked", "3\r\nabc\r\n0\r\n"),
        ("transfer-encoding: chunked", "zz\r\n"),
    ] {
        let (seen, reused) = exchange(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n{body}"), true).await;
        assert!(seen.ends_with("||!truncated") && !reused, "{body:?}: {seen}");
    }
    // Here the end of the connection is the end of the body.
    assert_eq!(exchange("HTTP/1.1 200 OK\r\n\r\nabc", true).await, ("200||abc".to_owned(), false));
}

/// A connection lies on its shelf, and its VM closes or talks there.
#[tokio::test(flavor = "local")]
async fn what_died_while_idle_is_not_used() {
    for (last_words, ends) in [("", true), ("HTTP/1.1 408 Request Timeout\r\n\r\n", false), ("", false)] {
        let mut session = Session::send(get());
        session.vm_hears("\r\n\r\n").await;
        session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        assert_eq!(transcript((&mut session.answer).await.unwrap().unwrap()).await, "200||ok");
        let mut http1 = session.shelf.http1.borrow_mut().pop().unwrap();
        session.vm_says(last_words).await;
        if ends {
            session.vm_ends().await;
        }
        // The socket's readiness is seen on the runtime's next turn.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let alive = !ends && last_words.is_empty();
        assert_eq!(http1.is_usable(), alive);
        let again = Session::over(session.vm, http1, get());
        if alive {
            let mut again = again;
            again.vm_hears("\r\n\r\n").await;
            again.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            assert_eq!(again.outcome().await, ("200||ok".to_owned(), true));
        }
    }
}

#[tokio::test(flavor = "local")]
async fn what_was_not_sent_comes_back() {
    let (vm, ours) = UnixStream::pair().unwrap();
    drop(vm);
    let mut outgoing = Outgoing { headers: fields(&[("x-a", "b")]), ..get() };
    let in_flight = InFlight::begin(&Endpoint::new("pool".into(), Address::Unix("/vm".into())));
    let sent = Http1::new(Stream::Unix(ours)).send(&mut outgoing, in_flight, Rc::default(), |_, _| {});
    let error = sent.await.unwrap_err();
    assert_eq!((error.failure.kind(), error.unsent.is_some()), (Kind::Reset, true));
    assert_eq!(listed(&outgoing.headers), "|x-a: b");
}

/// After a 101 it is one byte stream, and no byte is lost.
#[tokio::test(flavor = "local")]
async fn an_upgrade_is_a_tunnel() {
    let upgrade = Some(HeaderValue::from_static("websocket"));
    let mut session = Session::send(Outgoing { upgrade, ..get() });
    let heard = session.vm_hears("\r\n\r\n").await;
    assert!(heard.ends_with("connection: upgrade\r\nupgrade: websocket\r\n\r\n"), "{heard:?}");
    session
        .vm_says("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nabc")
        .await;
    let response = (&mut session.answer).await.unwrap().unwrap();
    assert_eq!(response.status(), 101);
    let Body::Tunnel(tunnel) = response.into_body() else { panic!("no tunnel") };
    let (mut client, gateways) = tokio::io::duplex(64);
    spawn_local(tunnel.join(gateways));
    let mut bytes = [0; 3];
    client.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"abc");
    client.write_all(b"def").await.unwrap();
    assert_eq!(session.vm_hears("def").await, "def");
}

#[tokio::test(flavor = "local")]
async fn a_client_that_leaves_frees_the_vm() {
    let mut session = Session::send(get());
    session.vm_hears("\r\n\r\n").await;
    session.answer.abort();
    assert_eq!(session.vm_hears("[closed]").await, "[closed]");

    let mut session = Session::send(get());
    session.vm_hears("\r\n\r\n").await;
    session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
    drop((&mut session.answer).await.unwrap().unwrap());
    assert_eq!(session.vm_hears("[closed]").await, "[closed]");
}

#[tokio::test(flavor = "local")]
async fn a_vm_is_not_waited_for_for_ever() {
    let short = Some(Duration::from_millis(20));
    let mut session = Session::send(Outgoing { response_timeout: short, ..get() });
    session.vm_hears("\r\n\r\n").await;
    assert_eq!(session.outcome().await, ("!head_timeout".to_owned(), false));

    let mut session = Session::send(Outgoing { idle_timeout: short, ..get() });
    session.vm_hears("\r\n\r\n").await;
    session.vm_says("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nabc").await;
    assert_eq!(session.outcome().await, ("200||!body_timeout".to_owned(), false));
}

#[tokio::test(flavor = "local")]
async fn a_vm_that_only_informs_is_given_up() {
    for (count, seen) in [(MAX_INTERIMS, "200||ok"), (MAX_INTERIMS + 1, "!bad_response")] {
        let flood = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(count as usize);
        let says = format!("{flood}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        assert_eq!(exchange(&says, false).await.0, seen, "{count}");
    }
}

/// A VM that answers and closes while the upload still runs into it: the answer is whole, and the client's body is
/// kept until it has been read, so that the client is not told to stop before it is answered.
#[tokio::test(flavor = "local")]
async fn an_upload_that_breaks_waits_for_its_answer() {
    for closes in [true, false] {
        let (body, feed) = fed(None);
        for _ in 0..64 {
            feed.send(Ok(Frame::data(Bytes::from(vec![b'x'; 64 * 1024])))).unwrap();
        }
        let session = Session::send(post(body, &[]));
        let Session { mut vm, answer, shelf, .. } = session;
        // It reads nothing of the body.
        vm.readable().await.unwrap();
        vm.write_all(b"HTTP/1.1 413 No\r\ncontent-length: 4\r\n\r\nno").await.unwrap();
        let response = answer.await.unwrap().unwrap();
        assert_eq!(response.status(), 413);
        assert!(!feed.is_closed(), "the upload was dropped before the answer was read");
        if closes {
            drop(vm);
            assert_eq!(transcript(response).await, "413||!truncated");
        } else {
            vm.write_all(b"no").await.unwrap();
            assert_eq!(transcript(response).await, "413||nono");
        }
        assert!(shelf.http1.borrow().is_empty());
    }
}

/// A VM that shuts its reading side and answers has not taken the request: the connection is not used again.
#[tokio::test(flavor = "local")]
async fn a_request_that_could_not_be_written_is_not_in_step() {
    let (vm, ours) = UnixStream::pair().unwrap();
    let vm = vm.into_std().unwrap();
    vm.shutdown(std::net::Shutdown::Read).unwrap();
    let mut vm = UnixStream::from_std(vm).unwrap();
    vm.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
    let session = Session::over(vm, Http1::new(Stream::Unix(ours)), get());
    assert_eq!(session.outcome().await, ("200||ok".to_owned(), false));
}
