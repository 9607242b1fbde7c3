//! RFC 9114, section 4.1: the order of frames in a request, and where it ends.

use foregate_tests::{
    Fields, OriginBuilder, gateway,
    http3::{Head, code::*, frame::data},
    origin,
};

use crate::scene::{Scene, greased, on_request_stream, on_whole_request_stream, scene, soon};

fn get() -> Vec<u8> {
    Head::get("/").frame()
}

fn post() -> Vec<u8> {
    Head::post("/").frame()
}

fn trailers() -> Vec<u8> {
    Head::empty().field("x-sum", "5").frame()
}

cases! { on_request_stream:
    rfc9114_4_1_data_before_headers => H3_FRAME_UNEXPECTED, data("hello");
    rfc9114_4_1_empty_data_before_headers => H3_FRAME_UNEXPECTED, data("");
    rfc9114_4_1_data_before_headers_behind_an_unknown_frame => H3_FRAME_UNEXPECTED,
        [greased(0), data("hello"), post()].concat();
    rfc9114_4_1_data_after_trailers => H3_FRAME_UNEXPECTED,
        [post(), data("hello"), trailers(), data("more")].concat();
    rfc9114_4_1_headers_after_trailers => H3_FRAME_UNEXPECTED,
        [post(), data("hello"), trailers(), trailers()].concat();
}

cases! { on_whole_request_stream:
    rfc9114_4_1_data_after_trailers_and_an_unknown_frame => H3_FRAME_UNEXPECTED,
        [post(), data("hello"), trailers(), greased(0), data("more")].concat();
    rfc9114_4_1_headers_after_trailers_without_data => H3_FRAME_UNEXPECTED,
        [post(), trailers(), trailers()].concat();
    rfc9114_4_1_empty_data_after_trailers => H3_FRAME_UNEXPECTED,
        [post(), data("hello"), trailers(), data("")].concat();
}

/// Section 4.1: a stream that ends before its request is whole.
async fn incomplete(bytes: Vec<u8>) {
    let scene = scene().await;
    let mut stream = scene.client.request(bytes).await;
    scene.stream_error(&mut stream, H3_REQUEST_INCOMPLETE).await;
}

cases! { incomplete:
    rfc9114_4_1_an_empty_stream => Vec::new();
    rfc9114_4_1_a_stream_of_unknown_frames_alone => [greased(0), greased(1)].concat();
}

#[tokio::test]
async fn rfc9114_4_1_many_requests_on_one_connection_each_get_their_answer() {
    let vm = origin().on("/", |call| {
        Box::pin(async move {
            let target = call.request.target.clone();
            call.reply(200, &Fields::new(), target).await;
        })
    });
    let scene = Scene::of(vm, gateway()).await;
    let asking = (0..60).map(|n| {
        let scene = &scene;
        async move {
            let path = format!("/number/{n}");
            assert_eq!(scene.ask(Head::get(&path).frame()).await.body, path);
        }
    });
    futures_util::future::join_all(asking).await;
}

#[tokio::test]
async fn rfc9114_4_1_a_get_is_a_request_without_a_body() {
    let scene = scene().await;
    let seen = scene.served(get()).await;
    // Neither length nor coding: there is no body, not even an empty one.
    assert!(!seen.fields.has("content-length") && !seen.fields.has("transfer-encoding"), "{:?}", seen.fields);
}

#[tokio::test]
async fn rfc9114_4_1_trailers_of_the_request_come_to_the_vm() {
    let vm = origin().http2().start().await;
    let site = format!("[sites.\"shop.test\"]\npool = \"h2c://{}\"\n", vm.address());
    let gw = gateway().named(&["shop.test"]).toml(&site).start().await;
    let dial = gw.dial("shop.test");
    let client = foregate_tests::http3::Connection::connect(&dial, Default::default()).await.unwrap();
    let _control = client.control().await;
    let mut stream = client.request([post(), data("hello"), trailers()].concat()).await;
    assert_eq!(soon("an answer", stream.answer()).await.status, 200);
    let seen = vm.only();
    assert_eq!((&seen.body[..], seen.trailers.get("x-sum")), (&b"hello"[..], Some("5")));
}

/// A VM that answers at once and reads nothing.
fn hasty() -> OriginBuilder {
    origin().on("/hasty", |call| {
        Box::pin(async move {
            call.literal(b"HTTP/1.1 413 X\r\nConnection: close\r\nContent-Length: 5\r\n\r\nearly").await;
            call.gone().await;
        })
    })
}

/// Section 4.1: a whole response may come before the end of the request, and reading may be aborted then,
/// with no other code than H3_NO_ERROR.
#[tokio::test]
async fn rfc9114_4_1_an_answer_before_the_end_of_the_upload() {
    let scene = Scene::of(hasty(), gateway()).await;
    let mut stream = scene.client.begin(Head::post("/hasty").and(data(vec![b'x'; 10_000]))).await;
    let answer = soon("an answer", stream.answer()).await;
    assert_eq!((answer.status, &answer.body[..]), (413, &b"early"[..]));
    let uploading = async {
        // More than the gateway can hold: it reads all of it away, or asks to be spared.
        for _ in 0..400 {
            if stream.send.write_all(&data(vec![b'x'; 16_384])).await.is_err() {
                break;
            }
        }
        let _ = stream.send.finish();
        stream.stopped().await
    };
    let code = soon("the end of the upload, or STOP_SENDING", uploading).await;
    assert!(matches!(code, None | Some(H3_NO_ERROR)), "{code:x?}");
    scene.goes_on().await;
}

/// A gateway's own answer to an upload is as whole as a VM's.
#[tokio::test]
async fn rfc9114_4_1_the_gateways_own_answer_before_the_end_of_the_upload() {
    let scene = scene().await;
    let head = Head::post("/").with(":authority", "unknown.test");
    let mut stream = scene.client.begin(head.and(data(vec![b'x'; 10_000]))).await;
    let answer = soon("an answer", stream.answer()).await;
    assert!(matches!(answer.status, 404 | 421), "{answer:?}");
    stream.finish(data("more")).await;
    let code = soon("the end of the upload, or STOP_SENDING", stream.stopped()).await;
    assert!(matches!(code, None | Some(H3_NO_ERROR)), "{code:x?}");
    scene.goes_on().await;
}

/// Section 4.1: what is served was read to its end, and nothing is reset.
#[tokio::test]
async fn rfc9114_4_1_a_request_that_was_served_is_not_stopped() {
    let scene = scene().await;
    for _ in 0..20 {
        let mut stream = scene.client.request(Head::post("/").and(data("hello"))).await;
        assert_eq!(soon("an answer", stream.answer()).await.status, 200);
        assert_eq!(soon("the acknowledgement", stream.stopped()).await, None);
    }
}

/// The FIN may come long after the last frame; the VM sees no end before it.
#[tokio::test]
async fn rfc9114_4_1_a_body_ends_with_the_fin_and_not_before() {
    let scene = scene().await;
    let mut stream = scene.client.begin(Head::post("/").and(data("hello"))).await;
    let seen = scene.vm.saw("the body so far", |r| r.length == 5).await;
    assert_eq!(seen.delivery, foregate_tests::Delivery::Reading);
    scene.goes_on().await;
    assert_eq!(scene.vm.requests()[0].delivery, foregate_tests::Delivery::Reading);
    stream.finish(b"").await;
    assert_eq!(soon("an answer", stream.answer()).await.status, 200);
}
