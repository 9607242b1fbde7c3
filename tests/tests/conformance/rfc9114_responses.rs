//! RFC 9114, sections 4.1 and 4.3.2: what a response looks like. That its heads are lawful is checked by
//! the client for every response of every case.

use bytes::Bytes;
use foregate_tests::{
    Fields, OriginBuilder, gateway,
    http3::{
        Answer, Head, Outcome,
        code::*,
        frame::{DATA, HEADERS, MAX_PUSH_ID, data, id_frame},
    },
    origin,
};

use crate::scene::{Scene, none, scene, soon};

fn replying(status: u16, fields: Fields, body: &'static str) -> OriginBuilder {
    origin().on("/", move |call| {
        let fields = fields.clone();
        Box::pin(async move { call.reply(status, &fields, body).await })
    })
}

/// The VM's own bytes, after which it closes.
fn literally(bytes: &'static [u8]) -> OriginBuilder {
    origin().on("/literal", move |call| {
        Box::pin(async move {
            let _ = call.drain().await;
            call.literal(bytes).await;
        })
    })
}

async fn literal_answer(bytes: &'static [u8]) -> Answer {
    let scene = Scene::of(literally(bytes), gateway()).await;
    let answer = scene.ask(Head::get("/literal").frame()).await;
    scene.goes_on().await;
    answer
}

/// The frames of a response that have a meaning, DATA frames in a row counted once.
fn frames(answer: &Answer) -> Vec<u64> {
    let mut frames: Vec<u64> = answer.frames.iter().copied().filter(|k| *k <= 0x20).collect();
    frames.dedup_by(|a, b| *a == DATA && *b == DATA);
    frames
}

#[tokio::test]
async fn rfc9114_4_1_a_response_is_headers_and_data() {
    let scene = scene().await;
    let answer = scene.ask(Head::get("/").frame()).await;
    assert_eq!((frames(&answer), &answer.body[..]), (vec![HEADERS, DATA], &b"vm\n"[..]));
    assert_eq!(answer.fields.get("content-length"), Some("3"));
    assert_eq!(answer.trailers, None);
}

#[tokio::test]
async fn rfc9114_4_1_a_response_of_unknown_length() {
    let vm = origin().on("/", |call| {
        Box::pin(async move {
            call.start(200, &none(), None).await;
            for piece in ["he", "llo"] {
                let _ = call.write(Bytes::from_static(piece.as_bytes())).await;
            }
            call.finish(&none()).await;
        })
    });
    let scene = Scene::of(vm, gateway()).await;
    let answer = scene.ask(Head::get("/").frame()).await;
    assert_eq!((&answer.body[..], answer.fields.get("content-length")), (&b"hello"[..], None));
}

#[tokio::test]
async fn rfc9114_4_1_trailers_are_a_second_headers_frame() {
    let vm = origin().on("/", |call| {
        Box::pin(async move {
            call.start(200, &Fields::new().with("trailer", "x-sum"), None).await;
            let _ = call.write(Bytes::from_static(b"hello")).await;
            call.finish(&Fields::new().with("X-Sum", "5")).await;
        })
    });
    let scene = Scene::of(vm, gateway()).await;
    let answer = scene.ask(Head::get("/").frame()).await;
    assert_eq!(frames(&answer), [HEADERS, DATA, HEADERS]);
    assert_eq!(answer.trailers.unwrap().get("x-sum"), Some("5"));
}

/// RFC 9110, section 9.3.2 and 6.4.1: no content, and yet the length that a GET would have.
#[tokio::test]
async fn rfc9114_4_1_2_head_has_a_length_and_no_data() {
    let scene = Scene::of(replying(200, none(), "hello"), gateway()).await;
    let answer = scene.ask(Head::request("HEAD", "/").frame()).await;
    assert_eq!((frames(&answer), answer.fields.get("content-length")), (vec![HEADERS], Some("5")));
}

#[tokio::test]
async fn rfc9110_15_3_5_204_has_neither_data_nor_length() {
    let answer = literal_answer(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n").await;
    assert_eq!((answer.status, frames(&answer)), (204, vec![HEADERS]));
    assert_eq!(answer.fields.get("content-length"), None);
}

#[tokio::test]
async fn rfc9110_15_4_5_304_has_no_data() {
    let answer = literal_answer(b"HTTP/1.1 304 X\r\nConnection: close\r\nContent-Length: 99\r\n\r\n").await;
    assert_eq!((answer.status, frames(&answer)), (304, vec![HEADERS]));
}

#[tokio::test]
async fn rfc9114_4_1_an_empty_response() {
    let scene = Scene::of(replying(200, none(), ""), gateway()).await;
    let answer = scene.ask(Head::get("/").frame()).await;
    assert_eq!((answer.body.len(), answer.fields.get("content-length")), (0, Some("0")));
}

/// Section 4.1: any number of interim responses before the final one.
#[tokio::test]
async fn rfc9114_4_1_interim_responses_come_first() {
    let answer = literal_answer(
        b"HTTP/1.1 103 X\r\nLink: </a>; rel=preload\r\nConnection: x\r\n\r\nHTTP/1.1 102 X\r\n\r\n\
          HTTP/1.1 103 X\r\nLink: </b>\r\n\r\nHTTP/1.1 200 X\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok",
    )
    .await;
    let interim: Vec<(u16, Option<&str>)> =
        answer.interim.iter().map(|(status, fields)| (*status, fields.get("link"))).collect();
    assert_eq!(interim.first(), Some(&(103, Some("</a>; rel=preload"))));
    assert_eq!(interim.last(), Some(&(103, Some("</b>"))));
    assert_eq!((answer.status, &answer.body[..]), (200, &b"ok"[..]));
}

#[tokio::test]
async fn rfc9110_10_1_1_expect_is_answered_with_100() {
    let scene = scene().await;
    let mut stream = scene.client.begin(Head::post("/").field("expect", "100-continue").frame()).await;
    assert_eq!(soon("a 100", stream.head()).await.0, 100);
    stream.finish(data("hello")).await;
    assert_eq!(soon("an answer", stream.answer()).await.status, 200);
    assert_eq!(&scene.vm.only().body[..], b"hello");
}

/// Section 4.2: what belongs to the VM's connection ends there; the client checks it for every answer.
#[tokio::test]
async fn rfc9114_4_2_fields_of_the_vms_connection_do_not_pass() {
    let answer = literal_answer(
        b"HTTP/1.1 200 X\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
          Proxy-Connection: x\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\nX-End: 1\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    )
    .await;
    assert_eq!((answer.status, &answer.body[..], answer.fields.get("x-end")), (200, &b"ok"[..], Some("1")));
    assert!(!answer.fields.has("x-hop"), "{:?}", answer.fields);
}

#[tokio::test]
async fn rfc9114_4_2_names_of_the_vm_are_written_in_lower_case() {
    let answer = literal_answer(
        b"HTTP/1.1 200 X\r\nX-UPPER: A\r\nx-Mixed: B\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )
    .await;
    let names: Vec<&str> = answer.fields.iter().map(|(name, _)| name).collect();
    assert!(names.contains(&"x-upper") && names.contains(&"x-mixed"), "{names:?}");
}

#[tokio::test]
async fn rfc9114_4_3_2_every_status_passes() {
    for status in [200, 206, 299, 300, 401, 404, 418, 499, 500, 599] {
        let scene = Scene::of(replying(status, none(), "x"), gateway()).await;
        assert_eq!(scene.ask(Head::get("/").frame()).await.status, status);
    }
}

#[tokio::test]
async fn rfc9114_4_2_set_cookie_stays_several_fields() {
    let fields = Fields::new().with("set-cookie", "a=b").with("set-cookie", "c=d");
    let scene = Scene::of(replying(200, fields, ""), gateway()).await;
    assert_eq!(scene.ask(Head::get("/").frame()).await.fields.all("set-cookie"), ["a=b", "c=d"]);
}

/// Section 4.1.2: a malformed response is not passed on.
async fn bad_gateway(bytes: &'static [u8]) {
    let answer = literal_answer(bytes).await;
    assert_eq!(answer.status, 502, "{answer:?}");
}

cases! { bad_gateway:
    rfc9114_4_1_2_a_vm_that_speaks_no_http => b"hello\r\n\r\n";
    rfc9114_10_3_a_vm_whose_field_name_is_none => b"HTTP/1.1 200 X\r\nx y: z\r\nContent-Length: 0\r\n\r\n";
    rfc9114_10_3_a_vm_whose_value_holds_a_zero => b"HTTP/1.1 200 X\r\nx: a\0b\r\nContent-Length: 0\r\n\r\n";
    rfc9110_8_6_a_vm_with_two_lengths =>
        b"HTTP/1.1 200 X\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab";
    rfc9114_4_3_2_a_vm_with_a_status_beyond_the_classes => b"HTTP/1.1 999 X\r\nContent-Length: 0\r\n\r\n";
}

/// Section 4.1: a response that cannot be completed ends with a reset, never with a FIN.
async fn cut_short(bytes: &'static [u8]) {
    let scene = Scene::of(literally(bytes), gateway()).await;
    let mut stream = scene.client.request(Head::get("/literal").frame()).await;
    match soon("a reset", stream.outcome()).await {
        Outcome::Reset { code, .. } => {
            assert!(matches!(code, H3_INTERNAL_ERROR | H3_REQUEST_CANCELLED), "{code:#x}")
        }
        Outcome::Answered(answer) => assert_eq!(answer.status, 502, "{answer:?}"),
        other => panic!("{other:?}"),
    }
    scene.goes_on().await;
    scene.unharmed();
}

cases! { cut_short:
    rfc9114_4_1_a_vm_that_stops_within_its_length => b"HTTP/1.1 200 X\r\nContent-Length: 100\r\n\r\nhalf";
    rfc9114_4_1_a_vm_that_stops_within_a_chunk => b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nhalf";
    rfc9114_4_1_a_vm_that_stops_before_the_last_chunk =>
        b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n";
    rfc9114_4_1_a_vm_whose_chunk_is_none =>
        b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\nzz\r\n";
}

/// Section 4.6: nothing is pushed, though the client would take it.
#[tokio::test]
async fn rfc9114_4_6_nothing_is_pushed() {
    let fields = Fields::new().with("link", "</style.css>; rel=preload; as=style");
    let mut scene = Scene::of(replying(200, fields, "x"), gateway()).await;
    scene.say(id_frame(MAX_PUSH_ID, 100)).await;
    for _ in 0..5 {
        // A PUSH_PROMISE among its frames would be refused by the client.
        assert_eq!(scene.ask(Head::get("/").frame()).await.status, 200);
    }
    let seen = scene.client.seen();
    assert!(!seen.streams.contains(&0x01), "{seen:?}");
    assert!(seen.control.iter().all(|f| !matches!(f.kind, 0x03 | MAX_PUSH_ID)), "{seen:?}");
}
