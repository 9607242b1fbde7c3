//! HTTP/2 connections and streams that do not go by the book.

use std::time::{Duration, Instant};

use bytes::Bytes;
use foregate_tests::{
    Fields, Origin, OriginBuilder, Version,
    foreign::{Trust, curl, finish},
    frames::{
        self, DATA, END_HEADERS, END_STREAM, Frame, GET, GOAWAY, HEADERS, POST, PREFACE, RST_STREAM,
        SETTINGS, frame, opening, request_block,
    },
    gateway, origin, post, within,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{serving, took_less};

/// A connection that is idle for too long ends, whether its client says good-bye, answers, or neither.
#[tokio::test]
async fn an_idle_connection_is_closed_though_its_client_is_silent() {
    let vm = origin().start().await;
    let gw = serving(&vm, false, "", "[server.timeouts]\nkeep_alive = \"1s\"").await;
    let scenario = async |tls: bool, what: &str| {
        let mut bytes = PREFACE.to_vec();
        if what != "the preface alone" {
            bytes.extend(frame(SETTINGS, 0, 0, b""));
        }
        if what == "an answer" {
            bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 1, &request_block(GET, tls, "/", b"")));
        }
        let begun = Instant::now();
        let mut io = gw.dial("shop.test").http2(tls).await.unwrap();
        io.write_all(&bytes).await.unwrap();
        io.flush().await.unwrap();
        let mut sink = [0; 4096];
        // Whatever comes is taken and never answered.
        while within("the end of an idle connection", io.read(&mut sink)).await.is_ok_and(|n| n > 0) {}
        took_less(begun, 8, &format!("closing after {what}, TLS: {tls}"));
    };
    tokio::join!(
        scenario(false, "the preface alone"),
        scenario(true, "the preface alone"),
        scenario(false, "SETTINGS"),
        scenario(true, "SETTINGS"),
        scenario(false, "an answer"),
        scenario(true, "an answer"),
    );
    assert_eq!(vm.requests().len(), 2);
    gw.stop().await;
}

/// A VM that answers without asking for the body, and takes its time over that.
fn unasking() -> OriginBuilder {
    origin().on("/", |call| {
        Box::pin(async move {
            call.start(200, &Fields::new(), None).await;
            let _ = call.write(Bytes::from_static(b"a")).await;
            // Longer than the second after which the gateway would ask in the VM's place.
            tokio::time::sleep(Duration::from_millis(1_600)).await;
            let _ = call.write(Bytes::from_static(b"b")).await;
            call.finish(&Fields::new()).await;
        })
    })
}

/// RFC 9113, section 8.1: after the final head only trailers may come.
#[tokio::test]
async fn no_interim_answer_comes_after_the_final_one() {
    for http2 in [false, true] {
        let vm = if http2 { unasking().http2() } else { unasking() }.start().await;
        let gw = serving(&vm, http2, "", "").await;
        let byte_by_byte = async |tls: bool| {
            // `expect` without indexing: the static table's 35th name.
            let expects = [&[0x0f, 20, 12], &b"100-continue"[..]].concat();
            let mut bytes = opening();
            bytes.extend(frame(HEADERS, END_HEADERS, 1, &request_block(POST, tls, "/", &expects)));
            let mut io = gw.dial("shop.test").http2(tls).await.unwrap();
            io.write_all(&bytes).await.unwrap();
            io.flush().await.unwrap();
            let (mut heads, mut body) = (Vec::new(), Vec::new());
            loop {
                let Frame { kind, flags, stream, payload } = frames::next(&mut io).await;
                match kind {
                    HEADERS => heads.push(payload),
                    DATA => body.extend(payload),
                    _ => {
                        assert!(!(kind == RST_STREAM && stream == 1 || kind == GOAWAY), "reset: {payload:?}")
                    }
                }
                if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                    break;
                }
            }
            // 0x88 is 200 in the static table. Before it the client may well be asked for its body.
            let place = format!("TLS: {tls}, HTTP/2 to the VM: {http2}");
            let last = heads.iter().position(|block| block[0] == 0x88);
            assert_eq!(last, heads.len().checked_sub(1), "{place}: {heads:?}");
            assert_eq!(body, b"ab", "{place}");
        };
        let by_client = async |version: Version| {
            let client = gw.client(version, "shop.test").await;
            let request = post("/", "hello").field("expect", "100-continue");
            let mut exchange = client.open(&request).await.unwrap();
            let reply = exchange.down.whole().await.unwrap_or_else(|e| panic!("{version:?}: {e}"));
            let place = format!("{version:?}, HTTP/2 to the VM: {http2}: {reply:?}");
            assert_eq!((reply.status, reply.text().as_str()), (200, "ab"), "{place}");
            assert!(reply.interim.iter().all(|(status, _)| *status == 100), "{place}");
        };
        tokio::join!(
            byte_by_byte(false),
            byte_by_byte(true),
            futures_util::future::join_all(Version::ALL.map(by_client)),
        );
        gw.stop().await;
    }
}

/// A VM that answers at once, 413 at `/refuse` and else 200, and reads nothing of the bodies.
///
/// Its answer comes in one piece: after half of it curl 7 would end its own half in the middle of the body.
async fn hasty(http2: bool) -> Origin {
    let vm = origin().on("/", |call| {
        Box::pin(async move {
            let status = if call.request.target == "/refuse" { 413 } else { 200 };
            if call.request.http2 {
                call.reply(status, &Fields::new(), "early").await;
            } else {
                let answer =
                    format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly");
                call.literal(answer.as_bytes()).await;
            }
            // It does not close either: that could destroy its answer on the way.
            std::future::pending::<()>().await;
        })
    });
    if http2 { vm.http2() } else { vm }.start().await
}

/// An answer before the end of the upload is an answer; curl calls anything else "error 92".
#[tokio::test]
async fn curl_hears_an_early_answer_to_its_upload() {
    let trust = Trust::new();
    let file = trust.path("upload");
    std::fs::write(&file, vec![b'x'; 200 * 1024]).unwrap();
    let data = format!("@{file}");
    let mut wrong = Vec::new();
    for http2 in [false, true] {
        let vm = hasty(http2).await;
        let scheme = if http2 { "h2c://" } else { "" };
        let site = format!(
            "[sites.\"shop.test\"]\nroutes = [{{ paths = [\"/early\", \"/refuse\"], pool = \"{scheme}{}\" }}]\n",
            vm.address()
        );
        let gw = gateway().named(&["shop.test"]).toml(&site).start().await;
        for (option, url) in [
            ("--http2", format!("https://shop.test:{}", gw.https_port())),
            ("--http2-prior-knowledge", format!("http://shop.test:{}", gw.http_port())),
        ] {
            for (path, status) in [("/nowhere", "404"), ("/early", "200"), ("/refuse", "413")] {
                for attempt in 1..=10 {
                    let mut curl = curl(&[gw.http_port(), gw.https_port()], &trust);
                    curl.args([
                        option,
                        "--output",
                        "/dev/null",
                        "--write-out",
                        "%{http_code} %{http_version}",
                    ]);
                    curl.args(["--data-binary", &data]).arg(format!("{url}{path}"));
                    let done = finish(&mut curl).await;
                    if !done.status.success() || done.out != format!("{status} 2") {
                        let place = format!("{option} {path}, attempt {attempt}, HTTP/2 to the VM: {http2}");
                        wrong.push(format!("{place}: {} {} {}", done.status, done.out, done.err.trim()));
                    }
                }
            }
        }
        gw.stop().await;
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
