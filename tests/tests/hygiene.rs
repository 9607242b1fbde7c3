//! HTTP/1.1 by the letter: what is malformed or could be read in two ways is refused, and a VM receives
//! exactly one clean request or none, whatever came in.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use foregate_tests::{
    Delivery, Gateway, Incoming, Io, Origin, Reader, Version, eventually, gateway, get, latin1, origin,
    parse_response, raw, within,
};
use tokio::io::{AsyncWriteExt, ReadHalf};

/// What may have come to the VM. That its lines end in CR LF, and its framing is beyond doubt, the origin sees to.
#[derive(Clone, Copy, Debug)]
enum Arrives {
    Nothing,
    /// Exactly one request, complete, with this body.
    One(&'static str),
    /// Nothing, or a request that was visibly broken off.
    Broken,
}
use Arrives::{Broken, Nothing, One};

/// A literal request. `@` in it becomes a target of this case alone. Status 0 is a connection closed in silence.
struct Case(&'static str, &'static [u8], &'static [u16], Arrives);

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n";

const CASES: &[Case] = &[
    // --- the request line
    Case("ordinary", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[200], One("")),
    Case("empty line before it", b"\r\nGET /@ HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[200], One("")),
    Case("space before it", b" GET /@ HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("no method", b"/@ HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("method is no token", b"G@T /@ HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("NUL in method", b"G\0T /@ HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("space in target", b"GET /@ b HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400, 505], Nothing),
    Case("tab in target", b"GET /@\tb HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("NUL in target", b"GET /@\0 HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("control in target", b"GET /@\x01 HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("CR in target", b"GET /@\rx HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("target without a slash", b"GET @ HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("star with GET", b"GET * HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("CONNECT", b"CONNECT shop.test:443 HTTP/1.1\r\nHost: shop.test:443\r\n\r\n", &[405], Nothing),
    Case("HTTP/0.9", b"GET /@\r\n\r\n", &[400], Nothing),
    Case("HTTP/1.2", b"GET /@ HTTP/1.2\r\nHost: shop.test\r\n\r\n", &[505], Nothing),
    Case("HTTP/2.0", b"GET /@ HTTP/2.0\r\nHost: shop.test\r\n\r\n", &[400, 505], Nothing),
    Case("HTTP/1.10", b"GET /@ HTTP/1.10\r\nHost: shop.test\r\n\r\n", &[400, 505], Nothing),
    Case("lower-case http", b"GET /@ http/1.1\r\nHost: shop.test\r\n\r\n", &[400, 505], Nothing),
    Case("word after version", b"GET /@ HTTP/1.1 x\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("half of an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &[0, 400, 505], Nothing),
    Case("TLS on the wrong port", b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00\r\n\r\n", &[0, 400], Nothing),
    // --- Host
    Case("no Host", b"GET /@ HTTP/1.1\r\nX: y\r\n\r\n", &[400], Nothing),
    Case("two Hosts", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nHost: evil.test\r\n\r\n", &[400], Nothing),
    Case("the same Host twice", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nhost: shop.test\r\n\r\n", &[400], Nothing),
    Case("two names in Host", b"GET /@ HTTP/1.1\r\nHost: shop.test, evil.test\r\n\r\n", &[400], Nothing),
    Case("a path in Host", b"GET /@ HTTP/1.1\r\nHost: shop.test/x\r\n\r\n", &[400], Nothing),
    Case("a user in Host", b"GET /@ HTTP/1.1\r\nHost: evil@shop.test\r\n\r\n", &[400], Nothing),
    Case("empty Host", b"GET /@ HTTP/1.1\r\nHost:\r\n\r\n", &[400], Nothing),
    Case("a wrong port in Host", b"GET /@ HTTP/1.1\r\nHost: shop.test:8x\r\n\r\n", &[400], Nothing),
    Case("absolute form", b"GET http://shop.test/@ HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[200], One("")),
    Case("absolute form, other Host", b"GET http://shop.test/@ HTTP/1.1\r\nHost: evil.test\r\n\r\n", &[400], Nothing),
    Case("absolute form, no Host", b"GET http://shop.test/@ HTTP/1.1\r\nX: y\r\n\r\n", &[400], Nothing),
    Case("HTTP/1.0 with Host", b"GET /@ HTTP/1.0\r\nHost: shop.test\r\n\r\n", &[200], One("")),
    // --- fields
    Case("folded line", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX: a\r\n b\r\n\r\n", &[400], Nothing),
    Case("folded first line", b"GET /@ HTTP/1.1\r\n Host: shop.test\r\nHost: shop.test\r\n\r\n", &[400], Nothing),
    Case("folded by a tab", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX: a\r\n\tb\r\n\r\n", &[400], Nothing),
    Case("bare CR in value", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX: a\rb\r\n\r\n", &[400], Nothing),
    Case("bare CR as line end", b"GET /@ HTTP/1.1\r\nHost: shop.test\rX: a\r\n\r\n", &[400], Nothing),
    Case("CR CR LF", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX: a\r\r\n\r\n", &[400], Nothing),
    Case("space before colon", b"GET /@ HTTP/1.1\r\nHost : shop.test\r\n\r\n", &[400], Nothing),
    Case("tab before colon", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX\t: a\r\n\r\n", &[400], Nothing),
    Case("NUL in value", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX: a\0b\r\n\r\n", &[400], Nothing),
    Case("NUL in name", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX\0: a\r\n\r\n", &[400], Nothing),
    Case("DEL in value", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX: a\x7fb\r\n\r\n", &[400], Nothing),
    Case("name is no token", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX(Y): a\r\n\r\n", &[400], Nothing),
    Case("no name", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\n: a\r\n\r\n", &[400], Nothing),
    Case("no colon", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX-A\r\n\r\n", &[400], Nothing),
    Case("bare LF everywhere", b"GET /@ HTTP/1.1\nHost: shop.test\nX: a\n\n", &[200], One("")),
    Case("one bare LF", b"GET /@ HTTP/1.1\r\nHost: shop.test\nX: a\r\n\r\n", &[200], One("")),
    Case("LF and fold", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding:\n chunked\r\n\r\n0\r\n\r\n", &[400], Nothing),
    Case("obs-text in value", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nX: \xe4\xff\r\n\r\n", &[200], One("")),
    // --- Content-Length
    Case("length", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\n\r\nhello", &[200], One("hello")),
    Case("two lengths", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", &[400], Nothing),
    Case("the same length twice", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", &[400], Nothing),
    Case("two lengths in one", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5, 6\r\n\r\nhello!", &[400], Nothing),
    Case("the same in one", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5, 5\r\n\r\nhello", &[400], Nothing),
    Case("plus", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: +5\r\n\r\nhello", &[400], Nothing),
    Case("minus", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: -5\r\n\r\nhello", &[400], Nothing),
    Case("hexadecimal", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 0x5\r\n\r\nhello", &[400], Nothing),
    Case("two numbers", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5 5\r\n\r\nhello", &[400], Nothing),
    Case("empty length", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length:\r\n\r\nhello", &[400], Nothing),
    Case("length and empty length", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nContent-Length:\r\n\r\nhello", &[400], Nothing),
    Case("too large for 64 bits", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 18446744073709551621\r\n\r\nhello", &[400, 413], Nothing),
    Case("space before its colon", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length : 5\r\n\r\nhello", &[400], Nothing),
    Case("GET with a body", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 43\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[200], One("GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n")),
    // --- Transfer-Encoding
    Case("chunked", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", &[200], One("hello")),
    Case("Chunked", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTRANSFER-ENCODING:\tChunked \r\n\r\n5\r\nhello\r\n0\r\n\r\n", &[200], One("hello")),
    Case("length and chunked", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nG", &[400], Nothing),
    Case("chunked and length", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n5\r\nhello\r\n0\r\n\r\n", &[400], Nothing),
    Case("chunked, identity", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n", &[501], Nothing),
    Case("identity, chunked", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: identity, chunked\r\n\r\n0\r\n\r\n", &[501], Nothing),
    Case("gzip, chunked", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", &[501], Nothing),
    Case("chunked twice", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n", &[501], Nothing),
    Case("two codings in two fields", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n0\r\n\r\n", &[501], Nothing),
    Case("identity", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello", &[501, 400], Nothing),
    Case("xchunked", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", &[501], Nothing),
    Case("chunked in quotes", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n", &[501, 400], Nothing),
    Case("vertical tab", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", &[400], Nothing),
    Case("empty coding", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding:\r\nContent-Length: 5\r\n\r\nhello", &[400, 501], Nothing),
    Case("space before the coding's colon", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n", &[400], Nothing),
    Case("underscore", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", &[200], One("0\r\n\r\n")),
    Case("chunked on HTTP/1.0", b"POST /@ HTTP/1.0\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", &[400], Nothing),
    Case("chunked named by Connection", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nConnection: Transfer-Encoding, Content-Length\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", &[200], One("hello")),
    Case("length named by Connection", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nConnection: Content-Length\r\nContent-Length: 43\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n", &[200], One("GET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n")),
    // --- chunks
    Case("extension", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b;c\r\nhello\r\n0;x\r\n\r\n", &[200], One("hello")),
    Case("zeros before the size", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n0005\r\nhello\r\n000\r\n\r\n", &[200], One("hello")),
    Case("size is no number", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("size with 0x", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("size with a sign", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("negative size", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("empty size", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n\r\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("size of 17 digits", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("more data than the size", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("less data than the size", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n7\r\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("no CRLF after the data", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", &[400], Broken),
    Case("a bad second chunk", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("bare LF after the size", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("bare CR in an extension", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n5;\rx\r\nhello\r\n0\r\n\r\n", &[400], Broken),
    Case("a LF in an extension", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n2;\nxx\r\n2a\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: shop.test\r\n\r\n\r\n0\r\n\r\n", &[400], Broken),
    Case("a trailer without a colon", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx\r\n\r\n", &[400], Broken),
    Case("a space before a trailer's colon", b"POST /@ HTTP/1.1\r\nHost: shop.test\r\nTrailer: x\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx : y\r\n\r\n", &[400], Broken),
    // --- protocols one might be upgraded to
    Case("upgrade to h2c", b"GET /@ HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n", &[200], One("")),
];

type Side = Reader<ReadHalf<Box<dyn Io>>>;

/// Reads one final response: status, whether the connection must close, and its body. `None` at the end.
async fn response(reader: &mut Side, method: &str) -> std::io::Result<Option<(u16, bool, String)>> {
    loop {
        let Some(head) = reader.head().await? else { return Ok(None) };
        let (status, _, fields) = parse_response(&head)?;
        if status < 200 {
            continue;
        }
        let mut body = Incoming::response(method, status, &fields)?;
        let close = fields.lists("connection", "close") || body.until_close();
        let mut text = Vec::new();
        while let Some(piece) = reader.data(&mut body).await? {
            text.extend_from_slice(&piece);
        }
        return Ok(Some((status, close, latin1(&text))));
    }
}

/// What the gateway says to these bytes: 0 for nothing but a closed connection.
async fn provoke(gw: &Gateway, version: Version, bytes: &[u8]) -> (u16, Option<Side>) {
    let io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
    let (read, mut write) = tokio::io::split(io);
    // An early answer may close before all is written.
    let _ = write.write_all(bytes).await;
    let _ = write.flush().await;
    let mut reader = Reader::new(read);
    let method = if bytes.starts_with(b"HEAD") { "HEAD" } else { "GET" };
    let answer = tokio::time::timeout(foregate_tests::PATIENCE, response(&mut reader, method)).await;
    let status = match answer.expect("an answer or a closed connection") {
        Ok(Some((status, _, _))) => status,
        _ => 0,
    };
    // Keeps the sending half open until the answer is read.
    drop(write);
    (status, Some(reader))
}

/// What is answered after that.
async fn next(reader: Option<Side>) -> std::io::Result<Option<(u16, bool, String)>> {
    let mut reader = reader.unwrap();
    within("the connection's end", response(&mut reader, "GET")).await
}

async fn judge(case: &Case, target: &str, status: u16, vm: &Origin) -> Result<(), String> {
    let Case(_, _, allowed, arrives) = *case;
    if !allowed.contains(&status) {
        return Err(format!("status {status}, allowed {allowed:?}"));
    }
    let seen = || vm.requests().into_iter().filter(|r| r.target == target).collect::<Vec<_>>();
    let one = |body: &str| {
        let seen = seen();
        match &seen[..] {
            [only] if only.delivery == Delivery::Complete && only.body == body.as_bytes() => Ok(()),
            other => Err(format!("status {status}, at the VM: {other:?}")),
        }
    };
    match arrives {
        One(body) => one(body),
        Broken => {
            let fate = async {
                eventually("the end of a broken request", || {
                    Some(seen()).filter(|s| s.iter().all(|r| r.delivery != Delivery::Reading))
                })
                .await
            };
            match tokio::time::timeout(foregate_tests::PATIENCE, fate).await {
                Ok(seen) if seen.iter().all(|r| r.delivery != Delivery::Complete) => Ok(()),
                other => Err(format!("status {status}, at the VM: {other:?}")),
            }
        }
        Nothing if seen().is_empty() => Ok(()),
        Nothing => Err(format!("status {status}, and yet at the VM: {:?}", seen())),
    }
}

#[tokio::test]
async fn every_malformed_request_is_refused_and_nothing_of_it_reaches_a_vm() {
    assert!(CASES.len() >= 40);
    for version in [Version::H1, Version::H1Tls] {
        let vm = origin().start().await;
        let gw = gateway().site("shop.test", &vm).start().await;
        let mut wrong = Vec::new();
        for (number, case) in CASES.iter().enumerate() {
            let target = format!("/case-{number}");
            let text: Vec<u8> = case
                .1
                .iter()
                .flat_map(|b| {
                    if *b == b'@' && number_of(case) { target.as_bytes()[1..].to_vec() } else { vec![*b] }
                })
                .collect();
            // Where a broken body ends nobody knows: what follows it must not be taken for a request.
            let broken = matches!(case.3, Broken);
            let text = if broken { [&text, SMUGGLED.as_bytes()].concat() } else { text };
            let (status, reader) = provoke(&gw, version, &text).await;
            if broken && let Ok(Some(next)) = next(reader).await {
                wrong.push(format!("{:?}: and then {next:?}", case.0));
            }
            if let Err(why) = judge(case, &target, status, &vm).await {
                wrong.push(format!("{:?} ({:?}): {why}", case.0, latin1(case.1)));
            }
        }
        let smuggled: Vec<_> = vm.requests().into_iter().filter(|r| r.target == "/smuggled").collect();
        assert!(smuggled.is_empty(), "{version:?}: {smuggled:#?}");
        assert!(wrong.is_empty(), "{version:?}, {} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
        // After all that it still serves.
        assert_eq!(gw.request(version, get("/")).await.status, 200);
        gw.stop().await;
    }
}

/// `@` is meant literally where it is what the case is about.
fn number_of(case: &Case) -> bool {
    !matches!(case.0, "a user in Host" | "method is no token")
}

/// The head's limit is 32 KiB: above it 431, or 414 where the target alone is too long.
#[tokio::test]
async fn heads_are_limited() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in [Version::H1, Version::H1Tls] {
        let target = format!("GET /{} HTTP/1.1\r\nHost: shop.test\r\n\r\n", "a".repeat(40_000));
        assert!(matches!(provoke(&gw, version, target.as_bytes()).await.0, 414 | 431), "{version:?}");
        let field = format!("GET / HTTP/1.1\r\nHost: shop.test\r\nX: {}\r\n\r\n", "a".repeat(40_000));
        assert_eq!(provoke(&gw, version, field.as_bytes()).await.0, 431, "{version:?}");
        let fields =
            format!("GET / HTTP/1.1\r\nHost: shop.test\r\n{}\r\n", "X: yyyyyyyyyyyyyyyy\r\n".repeat(2_000));
        assert_eq!(provoke(&gw, version, fields.as_bytes()).await.0, 431, "{version:?}");
        assert!(vm.requests().is_empty());
        let fits = format!("GET /fits HTTP/1.1\r\nHost: shop.test\r\nX: {}\r\n\r\n", "a".repeat(20_000));
        assert_eq!(provoke(&gw, version, fits.as_bytes()).await.0, 200, "{version:?}");
        vm.forget();
    }
    gw.stop().await;
}

/// Two requests in one segment are two requests, answered in order, however their bodies are framed.
#[tokio::test]
async fn pipelined_requests_stay_apart() {
    let vm = origin().on("/", |call| {
        Box::pin(async move {
            let _ = call.drain().await;
            let target = call.request.target.clone();
            call.reply(200, &foregate_tests::Fields::new(), target).await;
        })
    });
    let vm = vm.start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in [Version::H1, Version::H1Tls] {
        let text = format!(
            "POST /1 HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {}\r\n\r\n{SMUGGLED}\
             POST /2 HTTP/1.1\r\nHost: shop.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n\
             HEAD /3 HTTP/1.1\r\nHost: shop.test\r\n\r\n\
             GET /4 HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n\
             {SMUGGLED}",
            SMUGGLED.len()
        );
        let io = gw.dial("shop.test").http1(version.tls()).await.unwrap();
        let (read, mut write) = tokio::io::split(io);
        write.write_all(text.as_bytes()).await.unwrap();
        let mut reader = Reader::new(read);
        for (method, body) in [("POST", "/1"), ("POST", "/2"), ("HEAD", ""), ("GET", "/4")] {
            let (status, close, text) = response(&mut reader, method).await.unwrap().unwrap();
            assert_eq!((status, text.as_str()), (200, body), "{version:?}");
            assert_eq!(close, body == "/4", "{version:?} {body}");
        }
        // `Connection: close` was the client's last word; what follows is not a request any more.
        assert!(!matches!(response(&mut reader, "GET").await, Ok(Some(_))), "{version:?}");
        let seen: Vec<_> = vm.requests().iter().map(|r| (r.target.clone(), r.length)).collect();
        let expected = [("/1", SMUGGLED.len() as u64), ("/2", 3), ("/3", 0), ("/4", 0)];
        assert_eq!(seen, expected.map(|(t, l)| (t.to_owned(), l)), "{version:?}");
        vm.forget();
    }
    gw.stop().await;
}

/// After `Transfer-Encoding` beside `Content-Length` the connection is not used again.
#[tokio::test]
async fn doubtful_framing_ends_the_connection() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in [Version::H1, Version::H1Tls] {
        let both = format!(
            "POST /x HTTP/1.1\r\nHost: shop.test\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SMUGGLED}"
        );
        let (status, reader) = provoke(&gw, version, both.as_bytes()).await;
        assert_eq!(status, 400, "{version:?}");
        let next = next(reader).await;
        assert!(!matches!(next, Ok(Some(_))), "{version:?}: {next:?}");
    }
    assert!(vm.requests().is_empty(), "{:?}", vm.requests());
    gw.stop().await;
}

/// A VM's malformed answer is 502, or breaks off where its head was already good.
#[tokio::test]
async fn malformed_answers_of_a_vm_are_502() {
    let answers: &[(&str, &[u8])] = &[
        ("nothing", b""),
        ("no HTTP", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"),
        ("half a head", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n"),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nabc"),
        ("length is no number", b"HTTP/1.1 200 OK\r\nContent-Length: two\r\n\r\nab"),
        ("negative length", b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\nab"),
        ("space before colon", b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nab"),
        ("NUL", b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nab"),
        ("bare CR", b"HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 2\r\n\r\nab"),
        ("no status", b"HTTP/1.1 OK\r\nContent-Length: 2\r\n\r\nab"),
        ("status 42", b"HTTP/1.1 42 What\r\nContent-Length: 2\r\n\r\nab"),
        ("HTTP/2", b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nab"),
        (
            "101 out of the blue",
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nab",
        ),
        ("a coding of its own", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
    ];
    for (what, answer) in answers {
        let vm = raw(*answer, true).await;
        let table = format!("[sites.\"shop.test\"]\npool = {:?}\n", vm.address());
        let gw = gateway().named(&["shop.test"]).toml(&table).start().await;
        for version in Version::ALL {
            let reply = gw.request(version, get("/")).await;
            assert_eq!(reply.status, 502, "{what:?} over {version:?}");
        }
        gw.stop().await;
    }
}

/// What a VM sends beyond its answer is nobody's answer.
#[tokio::test]
async fn bytes_after_an_answer_are_never_another_answer() {
    let two =
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let vm = raw(&two[..], false).await;
    let table = format!("[sites.\"shop.test\"]\npool = {:?}\n", vm.address());
    let gw = gateway().named(&["shop.test"]).toml(&table).start().await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        for _ in 0..5 {
            let reply = client.send(&get("/")).await.unwrap();
            assert_eq!((reply.status, reply.text().as_str()), (200, "good"), "{version:?}");
        }
    }
    gw.stop().await;
}
