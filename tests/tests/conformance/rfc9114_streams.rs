//! RFC 9114, sections 3 and 6: the connection and its unidirectional streams.

use foregate_tests::{
    gateway,
    http3::{
        Connection, Head, Options,
        code::*,
        frame::{
            CONTROL, DECODER, ENCODER, MAX, MAX_PUSH_ID, PUSH, SETTINGS, grease, id_frame, settings, varint,
            varint_of,
        },
    },
    origin,
};
use quinn::{VarInt, crypto::rustls::HandshakeData};

use crate::scene::{Scene, bare, on_new_stream, scene, soon, until};

#[tokio::test]
async fn rfc9114_3_1_the_protocol_is_h3() {
    let scene = bare().await;
    let data = scene.client.quic.handshake_data().unwrap().downcast::<HandshakeData>().unwrap();
    assert_eq!(data.protocol.as_deref(), Some(&b"h3"[..]));
}

/// RFC 9001, section 8.1: no common protocol is `no_application_protocol`, a TLS alert and so 0x100 + 120.
#[tokio::test]
async fn rfc9114_3_2_another_protocol_is_refused() {
    let scene = bare().await;
    let options = Options { alpn: b"h3-29", ..Options::default() };
    let refused = soon("a refusal", Connection::connect(&scene.gw.dial("shop.test"), options)).await;
    match refused.err().expect("a refusal") {
        quinn::ConnectionError::ConnectionClosed(close) => {
            assert_eq!(u64::from(close.error_code), 0x178, "{close:?}");
        }
        other => panic!("{other:?}"),
    }
    scene.others_are_served().await;
}

/// A server that waited for the client's control stream would deadlock with a client that waits for its.
#[tokio::test]
async fn rfc9114_7_2_4_2_a_request_before_the_clients_settings_is_served() {
    let scene = bare().await;
    scene.served(Head::get("/").frame()).await;
    let _control = scene.client.control().await;
    scene.goes_on().await;
}

#[tokio::test]
async fn rfc9114_7_2_4_2_settings_come_before_the_client_says_anything() {
    let scene = bare().await;
    until("the gateway's SETTINGS", || scene.client.seen().control.first().cloned()).await;
}

#[tokio::test]
async fn rfc9114_6_1_the_server_opens_no_bidirectional_streams() {
    let scene = scene().await;
    for _ in 0..3 {
        scene.goes_on().await;
    }
    assert_eq!(scene.client.seen().bidirectional, 0);
}

/// Section 6.1: at least 100 request streams should be permitted at a time.
#[tokio::test]
async fn rfc9114_6_1_a_hundred_requests_at_once() {
    let scene = scene().await;
    let mut streams = Vec::new();
    for _ in 0..100 {
        streams.push(soon("a stream", scene.client.begin(Head::get("/").frame())).await);
    }
    for mut stream in streams {
        stream.finish(b"").await;
        assert_eq!(soon("an answer", stream.answer()).await.status, 200);
    }
}

/// Section 6.2: at least three, with 1024 bytes of credit each, before the server has read anything.
#[tokio::test]
async fn rfc9114_6_2_three_streams_of_a_kibibyte() {
    let scene = bare().await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let bytes = [varint(grease(7)), vec![0; 1024]].concat();
        streams.push(soon("a stream with credit", scene.client.unidirectional(bytes)).await);
    }
    scene.goes_on().await;
}

/// Section 6.2: a client has to allow streams in its transport parameters; the server does not wait for later.
#[tokio::test]
async fn rfc9114_6_2_a_client_that_allows_no_streams() {
    let options = Options { streams: 0, ..Options::default() };
    let scene = Scene::bare(origin(), gateway(), options).await;
    scene.connection_error(H3_GENERAL_PROTOCOL_ERROR).await;
}

#[tokio::test]
async fn rfc9114_6_2_1_the_server_has_one_control_stream_that_begins_with_settings() {
    let scene = scene().await;
    for _ in 0..3 {
        scene.goes_on().await;
    }
    let seen = scene.client.seen();
    let count = |kind| seen.streams.iter().filter(|k| **k == kind).count();
    assert_eq!(count(CONTROL), 1, "{seen:?}");
    assert!(count(ENCODER) <= 1 && count(DECODER) <= 1, "{seen:?}");
    assert_eq!(count(PUSH), 0, "{seen:?}");
    let frames: Vec<u64> = seen.control.iter().map(|f| f.kind).collect();
    assert_eq!(frames.first(), Some(&SETTINGS), "{frames:x?}");
    assert_eq!(frames.iter().filter(|k| **k == SETTINGS).count(), 1, "{frames:x?}");
    // Of frames with a meaning only GOAWAY might follow, and nobody asked the gateway to go.
    assert!(frames.iter().skip(1).all(|k| *k > 0x20 && !matches!(k, 0xf_0700 | 0xf_0701)), "{frames:x?}");
    assert!(seen.ended.iter().all(|k| *k > DECODER), "a critical stream has ended: {seen:?}");
}

cases! { on_new_stream:
    rfc9114_6_2_1_a_second_control_stream =>
        H3_STREAM_CREATION_ERROR, [varint(CONTROL), settings(&[])].concat();
    rfc9114_6_2_1_a_second_control_stream_is_refused_by_its_type_alone =>
        H3_STREAM_CREATION_ERROR, varint(CONTROL);
    rfc9114_6_2_2_a_push_stream_of_the_client =>
        H3_STREAM_CREATION_ERROR, [varint(PUSH), varint(0)].concat();
    rfc9114_6_2_2_a_push_stream_of_the_client_without_a_push_id =>
        H3_STREAM_CREATION_ERROR, varint(PUSH);
    rfc9114_6_2_1_a_second_control_stream_whose_type_has_four_bytes =>
        H3_STREAM_CREATION_ERROR, varint_of(4, CONTROL);
}

/// Sends the first bytes of a control stream; the type is written by the caller.
async fn control_begins(expected: &[u64], bytes: Vec<u8>) {
    let scene = bare().await;
    let _control = scene.client.unidirectional(bytes).await;
    scene.connection_error_of(expected).await;
}

cases! { control_begins:
    rfc9114_6_2_1_goaway_before_settings =>
        &[H3_MISSING_SETTINGS], [varint(CONTROL), id_frame(7, 0), settings(&[])].concat();
    rfc9114_6_2_1_max_push_id_before_settings =>
        &[H3_MISSING_SETTINGS], [varint(CONTROL), id_frame(MAX_PUSH_ID, 0), settings(&[])].concat();
    rfc9114_9_a_greased_frame_before_settings =>
        &[H3_MISSING_SETTINGS], [varint(CONTROL), super::scene::greased(0), settings(&[])].concat();
    // Wrong twice: sections 6.2.1 and 7.2.1 each name an error.
    rfc9114_6_2_1_data_before_settings =>
        &[H3_MISSING_SETTINGS, H3_FRAME_UNEXPECTED],
        [varint(CONTROL), foregate_tests::http3::frame::data("x")].concat();
    rfc9114_6_2_a_stream_type_in_more_bytes_than_needed =>
        &[H3_MISSING_SETTINGS], [varint_of(8, CONTROL), id_frame(MAX_PUSH_ID, 0)].concat();
}

#[derive(Clone, Copy)]
enum End {
    Fin,
    Reset,
}

/// Opens a stream with these bytes and ends it.
async fn ended(expected: &[u64], bytes: Vec<u8>, how: End) {
    let scene = bare().await;
    let mut stream = scene.client.unidirectional(bytes).await;
    // So that the gateway knows the stream before a reset takes its bytes away.
    scene.goes_on().await;
    match how {
        End::Fin => stream.finish().unwrap(),
        End::Reset => stream.reset(VarInt::from_u32(0x100)).unwrap(),
    }
    scene.connection_error_of(expected).await;
}

cases! { ended:
    rfc9114_6_2_1_the_control_stream_is_finished =>
        &[H3_CLOSED_CRITICAL_STREAM], [varint(CONTROL), settings(&[])].concat(), End::Fin;
    rfc9114_6_2_1_the_control_stream_is_reset =>
        &[H3_CLOSED_CRITICAL_STREAM], [varint(CONTROL), settings(&[])].concat(), End::Reset;
    rfc9114_6_2_1_the_control_stream_is_finished_before_settings =>
        &[H3_CLOSED_CRITICAL_STREAM, H3_MISSING_SETTINGS], varint(CONTROL), End::Fin;
    rfc9114_6_2_1_the_control_stream_is_reset_before_settings =>
        &[H3_CLOSED_CRITICAL_STREAM], varint(CONTROL), End::Reset;
    // Wrong twice, as above.
    rfc9114_7_1_the_control_stream_is_finished_within_settings =>
        &[H3_CLOSED_CRITICAL_STREAM, H3_FRAME_ERROR], vec![0, 4, 2, 6], End::Fin;
    rfc9114_6_2_1_the_control_stream_is_reset_within_a_frame =>
        &[H3_CLOSED_CRITICAL_STREAM], vec![0, 4, 0, 7, 4, 1], End::Reset;
    rfc9204_4_2_the_encoder_stream_is_finished =>
        &[H3_CLOSED_CRITICAL_STREAM], varint(ENCODER), End::Fin;
    rfc9204_4_2_the_encoder_stream_is_reset =>
        &[H3_CLOSED_CRITICAL_STREAM], varint(ENCODER), End::Reset;
    rfc9204_4_2_the_decoder_stream_is_finished =>
        &[H3_CLOSED_CRITICAL_STREAM], varint(DECODER), End::Fin;
    rfc9204_4_2_the_decoder_stream_is_reset =>
        &[H3_CLOSED_CRITICAL_STREAM], varint(DECODER), End::Reset;
}

/// Section 6.2.1: the receiver must not ask for it, and a control stream that is closed ends the connection.
#[tokio::test]
async fn rfc9114_6_2_1_the_client_stops_the_servers_control_stream() {
    let options = Options { watch: false, ..Options::default() };
    let scene = Scene::bare(origin(), gateway(), options).await;
    let _control = scene.client.control().await;
    let mut kept = Vec::new();
    loop {
        let (kind, mut frames) = soon("the control stream", scene.client.accept()).await;
        if kind == CONTROL {
            frames.recv.stop(VarInt::from_u32(0x100)).unwrap();
            break;
        }
        kept.push(frames);
    }
    scene.connection_error(H3_CLOSED_CRITICAL_STREAM).await;
}

/// Section 6.2: a stream of an unknown type is discarded or stopped, and never an error of the connection.
async fn unknown_stream(kind: u64) {
    let scene = scene().await;
    let mut stream = scene.client.typed(kind, vec![0xff; 700]).await;
    scene.goes_on().await;
    let _ = stream.write_all(&[0; 700]).await;
    scene.goes_on().await;
    // Where reading was aborted, the code is one that says no more than that.
    if let Ok(Ok(Some(code))) =
        tokio::time::timeout(std::time::Duration::from_millis(50), stream.stopped()).await
    {
        let code = code.into_inner();
        let reserved = code >= 0x21 && (code - 0x21) % 0x1f == 0;
        assert!(code == H3_STREAM_CREATION_ERROR || reserved, "stopped with {code:#x}");
    }
    scene.unharmed();
}

cases! { unknown_stream:
    rfc9114_6_2_an_unknown_stream_type => 0x04;
    rfc9114_6_2_an_unknown_stream_type_of_webtransport => 0x54;
    rfc9114_6_2_an_unknown_stream_type_of_eight_bytes => MAX;
    rfc9114_6_2_3_a_reserved_stream_type => grease(0);
    rfc9114_6_2_3_a_reserved_stream_type_of_eight_bytes => grease(100_000_000_000_000_000);
}

#[tokio::test]
async fn rfc9114_6_2_3_a_reserved_stream_may_be_finished_or_reset() {
    let scene = scene().await;
    let mut finished = scene.client.typed(grease(1), b"padding").await;
    finished.finish().unwrap();
    let mut reset = scene.client.typed(grease(2), b"padding").await;
    scene.goes_on().await;
    let _ = reset.reset(VarInt::from_u32(0x100));
    scene.goes_on().await;
    scene.goes_on().await;
}

/// Section 6.2: closed or reset before the type is there.
async fn tolerated(bytes: &[u8], how: End) {
    let scene = scene().await;
    let mut stream = scene.client.unidirectional(bytes).await;
    match how {
        End::Fin => stream.finish().unwrap(),
        End::Reset => stream.reset(VarInt::from_u32(0x100)).unwrap(),
    }
    scene.goes_on().await;
    scene.goes_on().await;
    scene.unharmed();
}

cases! { tolerated:
    rfc9114_6_2_a_stream_finished_before_its_type => b"", End::Fin;
    rfc9114_6_2_a_stream_finished_within_its_type => &[0x40], End::Fin;
    rfc9114_6_2_a_stream_reset_before_its_type => b"", End::Reset;
    rfc9114_6_2_a_stream_reset_within_its_type => &[0x80, 0, 0], End::Reset;
}

#[tokio::test]
async fn rfc9114_6_2_1_a_control_stream_that_comes_byte_by_byte() {
    let scene = bare().await;
    let mut control = scene.client.unidirectional(b"").await;
    let bytes =
        [varint_of(2, CONTROL), settings(&[(6, 65_536), (grease(3), 9)]), id_frame(MAX_PUSH_ID, 70)].concat();
    for byte in bytes {
        control.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
        scene.goes_on().await;
    }
    // It was understood: a smaller limit is an error.
    control.write_all(&id_frame(MAX_PUSH_ID, 69)).await.unwrap();
    scene.connection_error(H3_ID_ERROR).await;
}
