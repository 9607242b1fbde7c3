use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use foregate_upstream::{Protocol, TransportSpec};
use http_body::Frame;
use tokio::net::TcpListener;

use super::*;
use crate::testing::{Answer, Origin, body, status, transport, until};

const PATIENT: Duration = Duration::from_secs(10);

fn ask<'c>(status: &'c [RangeInclusive<u16>], contains: Option<&'c str>) -> Ask<'c> {
    let wanted = Wanted::Answer { status, contains };
    Ask { method: Method::GET, path: "/healthz?full=1", host: None, wanted }
}

fn vm(address: SocketAddr) -> Arc<Endpoint> {
    Endpoint::new("api".into(), Address::Ip(address))
}

/// Probes once; the reason of a failure.
async fn once(origin: &Origin, ask: Ask<'_>, timeout: Duration) -> Result<(), String> {
    let transport = transport(Protocol::Http1);
    let mut probe = HttpProbe::new(&vm(origin.address), &transport, ask, timeout);
    probe.run().await.map_err(|unwell| unwell.to_string())
}

#[tokio::test(flavor = "local")]
async fn asks_as_configured() {
    let origin = Origin::start(|_| status(204)).await;
    assert_eq!(once(&origin, ask(&[200..=399], None), PATIENT).await, Ok(()));
    let named = Ask { host: Some("shop.example"), ..ask(&[200..=399], None) };
    assert_eq!(once(&origin, named, PATIENT).await, Ok(()));
    let head = |host: &str| {
        format!("GET /healthz?full=1 HTTP/1.1\r\nhost: {host}\r\nuser-agent: foregate-health\r\n\r\n")
    };
    assert_eq!(origin.seen(), [head(&origin.address.to_string()), head("shop.example")]);
}

#[tokio::test(flavor = "local")]
async fn the_status_must_be_within_the_set() {
    let answers = [200, 204, 301, 399, 400, 404, 503];
    let origin = Origin::start(move |number| status(answers[number])).await;
    let transport = transport(Protocol::Http1);
    let vm = vm(origin.address);
    let mut probe = HttpProbe::new(&vm, &transport, ask(&[200..=200, 204..=204, 300..=399], None), PATIENT);
    for status in answers {
        let found = probe.run().await.map_err(|unwell| unwell.to_string());
        let expected = match status {
            200..400 => Ok(()),
            _ => Err(format!("HTTP probe: status {status}, expected 200, 204, 300-399")),
        };
        assert_eq!(found, expected);
    }
}

#[tokio::test(flavor = "local")]
async fn the_text_must_be_in_the_body() {
    let fine = [200..=299];
    let origin = Origin::start(|_| body(200, "status: ok, all well")).await;
    assert_eq!(once(&origin, ask(&fine, Some("ok, all")), PATIENT).await, Ok(()));
    assert_eq!(
        once(&origin, ask(&fine, Some("OK")), PATIENT).await,
        Err("HTTP probe: \"OK\" is not in the first 64 KiB of the body".to_owned())
    );
    // An empty text is in any body, and in none.
    assert_eq!(once(&origin, ask(&fine, Some("")), PATIENT).await, Ok(()));
    let silent = Origin::start(|_| status(200)).await;
    assert_eq!(once(&silent, ask(&fine, Some("")), PATIENT).await, Ok(()));
    assert!(once(&silent, ask(&fine, Some("ok")), PATIENT).await.is_err());
}

#[tokio::test(flavor = "local")]
async fn the_text_may_come_in_pieces_but_not_late() {
    let fine = [200..=299];
    let chunked =
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nal\r\n2\r\nl \r\n5\r\nwell!\r\n0\r\n\r\n";
    let origin = Origin::start(move |_| Answer::Say(chunked.to_owned())).await;
    assert_eq!(once(&origin, ask(&fine, Some("all well")), PATIENT).await, Ok(()));

    let padded = |before: usize| body(200, &format!("{}well{}", "x".repeat(before), "y".repeat(9)));
    let at_the_end = Origin::start(move |_| padded(MAX_BODY - 4)).await;
    assert_eq!(once(&at_the_end, ask(&fine, Some("well")), PATIENT).await, Ok(()));
    let behind_it = Origin::start(move |_| padded(MAX_BODY - 3)).await;
    assert!(once(&behind_it, ask(&fine, Some("well")), PATIENT).await.is_err());
}

// On a paused clock a time-out comes at once, which is all that is waited for here.
#[tokio::test(flavor = "local", start_paused = true)]
async fn silence_is_a_failure() {
    let origin = Origin::start(|_| Answer::Hang).await;
    let begun = Instant::now();
    let limit = Duration::from_secs(2);
    assert_eq!(once(&origin, ask(&[200..=299], None), limit).await, Err("no answer within 2s".to_owned()));
    assert_eq!(begun.elapsed().as_secs(), 2);
}

#[tokio::test(flavor = "local")]
async fn what_came_before_the_silence_may_be_enough() {
    let fine = [200..=299];
    let limit = Duration::from_secs(1);
    let begun = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nall well";
    let origin = Origin::start(move |_| Answer::Begin(begun.to_owned())).await;
    assert_eq!(once(&origin, ask(&fine, None), limit).await, Ok(()));
    assert_eq!(once(&origin, ask(&fine, Some("well")), limit).await, Ok(()));
    assert_eq!(once(&origin, ask(&fine, Some("never")), limit).await, Err("no answer within 1s".to_owned()));
}

#[tokio::test(flavor = "local")]
async fn a_body_cut_short_fails_only_who_wants_more_of_it() {
    let cut = "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nall well";
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 1024];
            _ = tokio::io::AsyncReadExt::read(&mut stream, &mut head).await;
            _ = tokio::io::AsyncWriteExt::write_all(&mut stream, cut.as_bytes()).await;
        }
    });
    let (transport, vm) = (transport(Protocol::Http1), vm(address));
    let fine = [200..=299];
    for (text, enough) in [(None, true), (Some("well"), true), (Some("never"), false)] {
        let found = HttpProbe::new(&vm, &transport, ask(&fine, text), PATIENT).run().await;
        assert_eq!(found.is_ok(), enough, "{text:?}: {found:?}");
    }
}

#[tokio::test(flavor = "local")]
async fn a_connection_is_used_again_and_may_be_stale() {
    let answers = [body(200, "ok"), body(200, "ok"), Answer::Close, body(200, "ok")];
    let origin = Origin::start(move |number| answers[number].clone()).await;
    let (transport, vm) = (transport(Protocol::Http1), vm(origin.address));
    let mut probe = HttpProbe::new(&vm, &transport, ask(&[200..=299], None), PATIENT);
    probe.run().await.unwrap();
    probe.run().await.unwrap();
    assert_eq!(origin.connections(), 1);
    // The VM closes it upon the third request, which is made again on a new one.
    probe.run().await.unwrap();
    assert_eq!((origin.connections(), origin.requests()), (2, 4));
}

#[tokio::test(flavor = "local")]
async fn a_new_connection_is_not_forgiven() {
    let origin = Origin::start(|number| if number == 0 { status(200) } else { Answer::Close }).await;
    let (transport, vm) = (transport(Protocol::Http1), vm(origin.address));
    let mut probe = HttpProbe::new(&vm, &transport, ask(&[200..=299], None), PATIENT);
    probe.run().await.unwrap();
    let reset = probe.run().await.unwrap_err().to_string();
    assert!(reset.starts_with("the backend closed the connection without an answer"), "{reset}");
    assert_eq!(origin.requests(), 3, "one attempt on the old connection, one on a new one");
    probe.run().await.unwrap_err();
    assert_eq!(origin.requests(), 4, "and one where there is no old one");
}

#[tokio::test(flavor = "local")]
async fn a_closed_port_refuses() {
    // Bound, but not listening: nobody else can take the port meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let (transport, vm) = (transport(Protocol::Http1), vm(socket.local_addr().unwrap()));
    let mut probe = HttpProbe::new(&vm, &transport, ask(&[200..=299], None), PATIENT);
    let refused = probe.run().await.unwrap_err().to_string();
    assert!(refused.contains("Connection refused"), "{refused}");
}

#[tokio::test(flavor = "local", start_paused = true)]
async fn the_shorter_time_to_connect_counts() {
    let full = crate::testing::full();
    let spec = TransportSpec {
        protocol: Protocol::Http1,
        tls: None,
        connect_timeout: Some(Duration::from_secs(1)),
        keep_alive: None,
    };
    let (transport, vm) = (Transport::new(spec).unwrap(), vm(full.address));
    let mut probe = HttpProbe::new(&vm, &transport, ask(&[200..=299], None), Duration::from_secs(2));
    assert_eq!(probe.run().await.unwrap_err().to_string(), "no connection within 1s");
}

#[tokio::test(flavor = "local")]
async fn what_cannot_be_asked_is_said() {
    let origin = Origin::start(|_| status(200)).await;
    let path = Ask { path: "/a b", ..ask(&[200..=299], None) };
    assert_eq!(
        once(&origin, path, PATIENT).await,
        Err("HTTP probe: path \"/a b\" cannot be asked for".to_owned())
    );
    let host = Ask { host: Some("a\nb"), ..ask(&[200..=299], None) };
    assert_eq!(
        once(&origin, host, PATIENT).await,
        Err("HTTP probe: host \"a\nb\" cannot be asked for".to_owned())
    );
}

/// A VM that speaks HTTP/2 without TLS; from its second request on each connection it does not answer.
async fn forgetful_h2(heads: Rc<RefCell<Vec<String>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heads = heads.clone();
            tokio::task::spawn_local(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut forgotten = Vec::new();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    heads.borrow_mut().push(format!("{} {}", request.method(), request.uri()));
                    if forgotten.is_empty() {
                        let mut stream = respond.send_response(Response::new(()), false).unwrap();
                        stream.send_data(Bytes::from_static(b"well"), true).unwrap();
                    }
                    forgotten.push(respond);
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "local")]
async fn http2_is_spoken_and_a_dead_connection_left_after_one_failure() {
    let heads = Rc::new(RefCell::default());
    let address = forgetful_h2(Rc::clone(&heads)).await;
    let (transport, vm) = (transport(Protocol::H2c), vm(address));
    let mut probe = HttpProbe::new(&vm, &transport, ask(&[200..=299], Some("well")), Duration::from_secs(1));
    probe.run().await.unwrap();
    assert_eq!(heads.borrow()[..], [format!("GET http://{address}/healthz?full=1")]);
    assert_eq!(probe.run().await.unwrap_err().to_string(), "no answer within 1s");
    probe.run().await.unwrap();
    until("all three", || heads.borrow().len() == 3).await;
}

#[test]
fn addresses_as_authorities() {
    let ip = |text: &str| Address::Ip(text.parse().unwrap());
    assert_eq!(authority(&ip("10.0.0.1:80")), "10.0.0.1:80");
    assert_eq!(authority(&ip("[fe80::1%2]:8080")), "[fe80::1]:8080");
    assert_eq!(authority(&Address::Name { host: "vm.lan".into(), port: 80 }), "vm.lan:80");
    assert_eq!(authority(&Address::Unix("/run/vm.sock".into())), "localhost");
}

/// A body whose frames are these.
struct Frames(std::vec::IntoIter<&'static str>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Failure>>> {
        std::task::Poll::Ready(self.0.next().map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes())))))
    }
}

#[tokio::test]
async fn the_text_is_found_wherever_the_frames_end() {
    for (frames, contained) in [
        (vec!["abc"], true),
        (vec!["a", "b", "c"], true),
        (vec!["xa", "", "bc"], true),
        (vec!["aab", "cx"], true),
        (vec!["ab", "abc"], true),
        (vec!["ab", "xc"], false),
        (vec!["a"], false),
        (vec![], false),
    ] {
        let mut found = false;
        search(Body::stream(Frames(frames.clone().into_iter())), b"abc", &mut found).await.unwrap();
        assert_eq!(found, contained, "{frames:?}");
    }
}
