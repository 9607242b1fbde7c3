//! RFC 9114, section 7: the layout of frames, and which of them may stand where.

use foregate_tests::http3::{
    Head,
    code::*,
    frame::{
        CANCEL_PUSH, DATA, GOAWAY, HEADERS, MAX, MAX_PUSH_ID, PUSH_PROMISE, data, frame, frame_head, grease,
        id_frame, settings, varint, varint_of,
    },
    qpack::PREFIX,
};

use crate::scene::{
    greased, ignored_on_control_stream, on_control_stream, on_request_stream, on_whole_request_stream, scene,
    served, served_hello,
};

fn get() -> Vec<u8> {
    Head::get("/").frame()
}

fn post() -> Vec<u8> {
    Head::post("/").frame()
}

fn half(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() / 2);
    bytes
}

/// A frame with its type and length in as many bytes as they can have.
fn wide(kind: u64, payload: &[u8]) -> Vec<u8> {
    [varint_of(8, kind), varint_of(8, payload.len() as u64), payload.to_vec()].concat()
}

// Section 7.1: a FIN within a frame.
cases! { on_whole_request_stream:
    rfc9114_7_1_fin_within_headers => H3_FRAME_ERROR, half(get());
    rfc9114_7_1_fin_after_the_type_of_a_frame => H3_FRAME_ERROR, [get(), vec![0]].concat();
    rfc9114_7_1_fin_within_the_type_of_a_frame => H3_FRAME_ERROR, [get(), vec![0x40]].concat();
    rfc9114_7_1_fin_within_the_length_of_a_frame => H3_FRAME_ERROR, [post(), vec![0, 0x80, 0]].concat();
    rfc9114_7_1_fin_before_the_payload_of_a_frame => H3_FRAME_ERROR, [post(), frame_head(DATA, 5)].concat();
    rfc9114_7_1_fin_within_data => H3_FRAME_ERROR, [post(), frame_head(DATA, 5), b"hell".to_vec()].concat();
    rfc9114_7_1_fin_within_trailers => H3_FRAME_ERROR,
        [post(), data("hello"), half(Head::empty().field("x-sum", "5").frame())].concat();
    rfc9114_7_1_fin_within_an_unknown_frame => H3_FRAME_ERROR, [get(), half(greased(2))].concat();
    rfc9114_7_1_fin_within_the_first_frame_an_unknown_one => H3_FRAME_ERROR, half(greased(2));
    rfc9114_7_1_fin_within_an_endless_unknown_frame => H3_FRAME_ERROR,
        [get(), frame_head(grease(5), 1 << 61), vec![7; 100_000]].concat();
}

// Section 7.1: the fields of a frame fill its payload, no less and no more.
cases! { on_control_stream:
    rfc9114_7_1_goaway_without_an_id => H3_FRAME_ERROR, frame(GOAWAY, b"");
    rfc9114_7_1_goaway_with_half_an_id => H3_FRAME_ERROR, frame(GOAWAY, &[0x40]);
    rfc9114_7_1_goaway_with_a_byte_more => H3_FRAME_ERROR, frame(GOAWAY, &[0, 0]);
    rfc9114_7_1_max_push_id_without_an_id => H3_FRAME_ERROR, frame(MAX_PUSH_ID, b"");
    rfc9114_7_1_max_push_id_with_half_an_id => H3_FRAME_ERROR, frame(MAX_PUSH_ID, &[0xc0, 0]);
    rfc9114_7_1_max_push_id_with_a_byte_more => H3_FRAME_ERROR, frame(MAX_PUSH_ID, &[0, 0]);
    rfc9114_7_1_cancel_push_without_an_id => H3_FRAME_ERROR, frame(CANCEL_PUSH, b"");
    rfc9114_7_1_cancel_push_with_a_byte_more => H3_FRAME_ERROR, frame(CANCEL_PUSH, &[0, 0]);
}

// Frames that may not stand on the control stream.
cases! { on_control_stream:
    rfc9114_7_2_1_data_on_the_control_stream => H3_FRAME_UNEXPECTED, data("x");
    rfc9114_7_2_1_empty_data_on_the_control_stream => H3_FRAME_UNEXPECTED, data("");
    rfc9114_7_2_2_headers_on_the_control_stream => H3_FRAME_UNEXPECTED, get();
    rfc9114_7_2_4_a_second_settings_frame => H3_FRAME_UNEXPECTED, settings(&[]);
    rfc9114_7_2_5_push_promise_on_the_control_stream => H3_FRAME_UNEXPECTED,
        frame(PUSH_PROMISE, &[&varint(0)[..], &PREFIX].concat());
    rfc9114_7_2_8_http2_priority_on_the_control_stream => H3_FRAME_UNEXPECTED, frame(0x02, b"");
    rfc9114_7_2_8_http2_ping_on_the_control_stream => H3_FRAME_UNEXPECTED, frame(0x06, &[0; 8]);
    rfc9114_7_2_8_http2_window_update_on_the_control_stream => H3_FRAME_UNEXPECTED, frame(0x08, &[0; 4]);
    rfc9114_7_2_8_http2_continuation_on_the_control_stream => H3_FRAME_UNEXPECTED, frame(0x09, b"");
}

// Frames that may not stand on a request stream, before its head or behind it.
cases! { on_request_stream:
    rfc9114_7_2_3_cancel_push_on_a_request_stream => H3_FRAME_UNEXPECTED, id_frame(CANCEL_PUSH, 0);
    rfc9114_7_2_3_cancel_push_after_headers => H3_FRAME_UNEXPECTED, [post(), id_frame(CANCEL_PUSH, 0)].concat();
    rfc9114_7_2_4_settings_on_a_request_stream => H3_FRAME_UNEXPECTED, settings(&[]);
    rfc9114_7_2_4_settings_after_headers => H3_FRAME_UNEXPECTED, [post(), settings(&[])].concat();
    rfc9114_7_2_5_push_promise_on_a_request_stream => H3_FRAME_UNEXPECTED,
        frame(PUSH_PROMISE, &[&varint(0)[..], &PREFIX].concat());
    rfc9114_7_2_5_push_promise_after_headers => H3_FRAME_UNEXPECTED,
        [post(), frame(PUSH_PROMISE, &[&varint(0)[..], &PREFIX].concat())].concat();
    rfc9114_7_2_6_goaway_on_a_request_stream => H3_FRAME_UNEXPECTED, id_frame(GOAWAY, 0);
    rfc9114_7_2_6_goaway_after_headers => H3_FRAME_UNEXPECTED, [post(), id_frame(GOAWAY, 0)].concat();
    rfc9114_7_2_7_max_push_id_on_a_request_stream => H3_FRAME_UNEXPECTED, id_frame(MAX_PUSH_ID, 0);
    rfc9114_7_2_7_max_push_id_after_headers => H3_FRAME_UNEXPECTED, [post(), id_frame(MAX_PUSH_ID, 0)].concat();
    rfc9114_7_2_8_http2_priority_on_a_request_stream => H3_FRAME_UNEXPECTED, frame(0x02, b"");
    rfc9114_7_2_8_http2_ping_on_a_request_stream => H3_FRAME_UNEXPECTED, frame(0x06, &[0; 8]);
    rfc9114_7_2_8_http2_window_update_on_a_request_stream => H3_FRAME_UNEXPECTED, frame(0x08, &[0; 4]);
    rfc9114_7_2_8_http2_continuation_on_a_request_stream => H3_FRAME_UNEXPECTED, frame(0x09, b"");
    rfc9114_7_2_8_http2_priority_after_headers => H3_FRAME_UNEXPECTED, [post(), frame(0x02, b"")].concat();
    rfc9114_7_2_8_http2_ping_after_data => H3_FRAME_UNEXPECTED,
        [post(), data("x"), frame(0x06, &[0; 8])].concat();
    rfc9114_7_2_8_http2_window_update_after_data => H3_FRAME_UNEXPECTED,
        [post(), data("x"), frame(0x08, &[0; 4])].concat();
    rfc9114_7_2_8_http2_continuation_after_headers => H3_FRAME_UNEXPECTED, [post(), frame(0x09, b"")].concat();
    // What it is, is known from its type; its payload need not come.
    rfc9114_7_2_8_a_reserved_frame_is_refused_by_its_type => H3_FRAME_UNEXPECTED, frame_head(0x02, MAX);
}

// Section 7.2.3: no push was ever promised, so that no id is known.
cases! { on_control_stream:
    rfc9114_7_2_3_cancel_push_without_a_limit => H3_ID_ERROR, id_frame(CANCEL_PUSH, 0);
    rfc9114_7_2_3_cancel_push_beyond_the_limit => H3_ID_ERROR,
        [id_frame(MAX_PUSH_ID, 3), id_frame(CANCEL_PUSH, 4)].concat();
    rfc9114_7_2_3_cancel_push_of_a_push_never_promised => H3_ID_ERROR,
        [id_frame(MAX_PUSH_ID, 3), id_frame(CANCEL_PUSH, 3)].concat();
    rfc9114_7_2_7_max_push_id_is_reduced => H3_ID_ERROR,
        [id_frame(MAX_PUSH_ID, 3), id_frame(MAX_PUSH_ID, 2)].concat();
    rfc9114_7_2_7_max_push_id_is_reduced_to_none => H3_ID_ERROR,
        [id_frame(MAX_PUSH_ID, MAX), id_frame(MAX_PUSH_ID, 0)].concat();
    rfc9114_5_2_goaway_rises => H3_ID_ERROR, [id_frame(GOAWAY, 3), id_frame(GOAWAY, 4)].concat();
    rfc9114_5_2_goaway_rises_to_the_maximum => H3_ID_ERROR, [id_frame(GOAWAY, 0), id_frame(GOAWAY, MAX)].concat();
}

// What may stand on the control stream and changes nothing for requests.
cases! { ignored_on_control_stream:
    rfc9114_7_2_7_max_push_id_rises_or_stays =>
        [id_frame(MAX_PUSH_ID, 0), id_frame(MAX_PUSH_ID, 0), id_frame(MAX_PUSH_ID, MAX)].concat();
    // A client's GOAWAY holds a push id, which need not look like a stream's.
    rfc9114_5_2_goaway_of_the_client_with_any_push_id => id_frame(GOAWAY, 3);
    rfc9114_5_2_goaway_of_the_client_falls_or_stays =>
        [id_frame(GOAWAY, MAX), id_frame(GOAWAY, 7), id_frame(GOAWAY, 7), id_frame(GOAWAY, 0)].concat();
    rfc9114_7_1_control_frames_with_wide_integers =>
        [wide(MAX_PUSH_ID, &varint_of(8, 1)), wide(GOAWAY, &varint_of(4, 1))].concat();
    rfc9114_7_2_8_greased_frames_on_the_control_stream =>
        [greased(0), greased(1), greased(1 << 50), frame(grease(9), b"")].concat();
    rfc9114_9_unknown_frames_on_the_control_stream => [frame(0x0a, b"x"), frame(0x41, b""), frame(MAX, b"y")].concat();
    rfc9114_7_2_8_a_large_greased_frame_on_the_control_stream => frame(grease(4), &vec![1; 3_000_000]);
}

// Requests that are whole, however they are framed.
cases! { served:
    rfc9114_7_1_headers_with_wide_integers => wide(HEADERS, &Head::get("/").section());
    rfc9114_7_2_8_greased_frames_before_headers => [greased(0), greased(1 << 40), get()].concat();
    rfc9114_7_2_8_greased_frames_after_headers => [get(), greased(3), frame(grease(3), b"")].concat();
    rfc9114_9_unknown_frames_around_headers => [frame(0x0a, b"x"), get(), frame(0x21_4365, b"y")].concat();
    rfc9114_4_1_a_get_with_empty_data => [get(), data("")].concat();
}

cases! { served_hello:
    rfc9114_7_1_data_with_wide_integers => [post(), wide(DATA, b"hello")].concat();
    rfc9114_7_2_1_empty_data_frames => [post(), data(""), data("he"), data(""), data("llo"), data("")].concat();
    rfc9114_7_2_1_one_byte_a_frame => [post(), b"hello".iter().flat_map(|b| data([*b])).collect()].concat();
    rfc9114_7_2_8_greased_frames_between_data =>
        [post(), greased(0), data("he"), greased(1), data("llo"), greased(2)].concat();
    rfc9114_4_1_unknown_frames_around_trailers =>
        [post(), data("hello"), greased(0), Head::empty().field("x-sum", "5").frame(), greased(1)].concat();
}

/// Section 4.1: frames may be cut anywhere by the transport.
#[tokio::test]
async fn rfc9114_7_a_request_that_comes_byte_by_byte() {
    let scene = scene().await;
    let mut stream = scene.client.open().await;
    for byte in [greased(6), post(), data("he"), greased(7), data("llo")].concat() {
        stream.write([byte]).await;
        // So that each is a packet of its own.
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    stream.finish(b"").await;
    assert_eq!(crate::scene::soon("an answer", stream.answer()).await.status, 200);
    assert_eq!(&scene.vm.only().body[..], b"hello");
}

/// Section 7.1: a stream that is reset may end anywhere; only that request is over.
#[tokio::test]
async fn rfc9114_7_1_a_reset_within_a_frame_is_no_connection_error() {
    let scene = scene().await;
    for bytes in
        [half(get()), vec![0x40], [post(), frame_head(DATA, 50), b"he".to_vec()].concat(), half(greased(1))]
    {
        let mut stream = scene.client.begin(bytes).await;
        scene.goes_on().await;
        stream.reset(H3_REQUEST_CANCELLED);
        scene.goes_on().await;
    }
    scene.unharmed();
}

/// A frame of 2^61 bytes to be ignored is read away as it comes, and never kept.
#[tokio::test]
async fn rfc9114_7_2_8_an_endless_greased_frame_costs_no_memory() {
    let scene = scene().await;
    scene.goes_on().await;
    scene.gw.process.reset_peak();
    let before = scene.gw.process.memory("VmRSS");
    let mut stream = scene.client.begin(frame_head(grease(5), 1 << 61)).await;
    for _ in 0..64 {
        crate::scene::soon("room for more of it", stream.write(vec![0; 1 << 20])).await;
    }
    let grown = scene.gw.process.memory("VmHWM").saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes more for a frame to be ignored");
    stream.reset(H3_REQUEST_CANCELLED);
    scene.goes_on().await;
}
