//! What does it cost to pass heads on over HTTP/1.1? Reading them, making them ours, writing them, and all of it
//! together as for one request. The request is a browser's, the response that of an ordinary web server.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot be set up may stop")]

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use foregate_exchange::head::{self, Origin};
use foregate_exchange::http1::Search;
use foregate_exchange::http1::request::{self, Asking};
use foregate_exchange::http1::response::{self, Asked};
use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderMap, HeaderValue, Method, Version};
use http_body::SizeHint;

const REQUEST: &str = "GET /service/42/users/7/orders?since=2026-01-01 HTTP/1.1\r\n\
    Host: shop.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-GB,en;q=0.7,de;q=0.3\r\n\
    Accept-Encoding: gzip, deflate, br, zstd\r\n\
    Referer: https://shop.example.com/service/42/users\r\n\
    Connection: keep-alive\r\n\
    Cookie: session=4f1c2b7e9a0d4e55b1f0; theme=dark; cart=3\r\n\
    Upgrade-Insecure-Requests: 1\r\n\
    Sec-Fetch-Dest: document\r\n\
    Sec-Fetch-Mode: navigate\r\n\
    Sec-Fetch-Site: same-origin\r\n\
    Priority: u=0, i\r\n\
    \r\n";
const RESPONSE: &str = "HTTP/1.1 200 OK\r\n\
    Server: nginx/1.22.1\r\n\
    Date: Wed, 25 Nov 2026 03:00:00 GMT\r\n\
    Content-Type: text/html; charset=utf-8\r\n\
    Content-Length: 1024\r\n\
    Connection: keep-alive\r\n\
    Cache-Control: private, max-age=0\r\n\
    ETag: \"5f3c-62a1\"\r\n\
    Vary: Accept-Encoding\r\n\
    \r\n";
/// Larger than both.
const LIMIT: usize = 32 * 1024;

/// A head in the buffer it was read into, which its values go on using.
fn received(head: &str) -> BytesMut {
    BytesMut::from(head)
}

/// Finds the end of a head, as a connection does.
fn whole(mut input: BytesMut) -> Bytes {
    let length = Search::default().end(&mut input, LIMIT).ok().flatten().unwrap();
    input.split_to(length).freeze()
}

/// A client's head for a VM: what `proxy` does to each, before the changes that a route asks for.
fn for_vm(headers: &mut HeaderMap, peer: &HeaderValue, id: &HeaderValue) -> HeaderValue {
    let authority = headers.get(HOST).cloned().unwrap();
    head::strip_hop_by_hop(headers);
    headers.remove(CONTENT_LENGTH);
    head::join_cookies(headers);
    let origin =
        Origin { peer, trusted: false, scheme: "https", authority: &authority, version: Version::HTTP_11 };
    head::forwarded(headers, &origin);
    headers.insert(head::X_REQUEST_ID, id.clone());
    headers.remove(HOST);
    authority
}

/// From a client's bytes to the VM's.
fn forward(input: BytesMut, out: &mut BytesMut, peer: &HeaderValue, id: &HeaderValue) -> Asked {
    let parsed = request::parse(whole(input)).unwrap();
    let (mut parts, ()) = parsed.request.into_parts();
    let authority = for_vm(&mut parts.headers, peer, id);
    let asking = Asking {
        method: &parts.method,
        target: parts.uri.path_and_query().unwrap().as_str(),
        authority: &authority,
        headers: &parts.headers,
        ending: request::ending(&parts.method, None),
        upgrade: None,
        ask_trailers: parsed.takes_trailers,
    };
    request::write(out, &asking);
    Asked { method: parts.method, version: parts.version, takes_trailers: parsed.takes_trailers }
}

/// From a VM's bytes to the client's.
fn give_back(input: BytesMut, out: &mut BytesMut, asked: &Asked) {
    let mut answered = response::parse(whole(input), false).unwrap();
    head::strip_hop_by_hop(&mut answered.headers);
    let ending = asked.ending(answered.status, &SizeHint::with_exact(1024));
    response::write(out, answered.status, &answered.headers, ending, asked, false);
}

fn heads(c: &mut Criterion) {
    let (peer, id) = (HeaderValue::from_static("192.0.2.7"), HeaderValue::from_static("0123456789abcdef"));
    let asked = Asked { method: Method::GET, version: Version::HTTP_11, takes_trailers: false };
    let mut out = BytesMut::with_capacity(LIMIT);

    let mut group = c.benchmark_group("http1");
    group.throughput(Throughput::Bytes(REQUEST.len() as u64));
    group.bench_function("request_parse", |b| {
        let parse = |input| request::parse(whole(input)).unwrap();
        b.iter_batched(|| received(black_box(REQUEST)), parse, BatchSize::SmallInput);
    });
    group.bench_function("request_rewrite", |b| {
        let parsed = || request::parse(whole(received(REQUEST))).unwrap().request.into_parts().0.headers;
        b.iter_batched_ref(parsed, |headers| for_vm(headers, &peer, &id), BatchSize::SmallInput);
    });
    group.bench_function("request_parse_to_serialise", |b| {
        let forwarded = |input| {
            out.clear();
            forward(input, &mut out, &peer, &id)
        };
        b.iter_batched(|| received(black_box(REQUEST)), forwarded, BatchSize::SmallInput);
    });
    group.throughput(Throughput::Bytes(RESPONSE.len() as u64));
    group.bench_function("response_parse_to_serialise", |b| {
        let given_back = |input| {
            out.clear();
            give_back(input, &mut out, &asked);
        };
        b.iter_batched(|| received(black_box(RESPONSE)), given_back, BatchSize::SmallInput);
    });
    group.finish();

    // What is measured is what should be done.
    out.clear();
    forward(received(REQUEST), &mut out, &peer, &id);
    give_back(received(RESPONSE), &mut out, &asked);
    assert!(out.starts_with(
        b"GET /service/42/users/7/orders?since=2026-01-01 HTTP/1.1\r\nhost: shop.example.com\r\n"
    ));
    let text = std::str::from_utf8(&out).unwrap();
    assert!(text.contains("\r\nvary: Accept-Encoding\r\n") && text.ends_with("\r\n\r\n"), "{text}");
    assert_eq!(text.matches("content-length: 1024\r\n").count(), 1, "{text}");
}

criterion_group!(benches, heads);
criterion_main!(benches);
