//! RFC 9204, sections 4.2 to 4.4: the encoder and decoder streams, where the dynamic table has no room.

use foregate_tests::http3::{
    Head,
    code::*,
    frame::{CONTROL, DECODER, ENCODER, settings, varint},
    qpack::{integer, string},
};

use crate::scene::{bare, scene};

/// Bytes on the encoder stream end the connection.
async fn on_encoder_stream(expected: u64, bytes: Vec<u8>) {
    let scene = scene().await;
    let _encoder = scene.client.typed(ENCODER, bytes).await;
    scene.connection_error(expected).await;
}

async fn on_decoder_stream(expected: u64, bytes: Vec<u8>) {
    let scene = scene().await;
    // There was a request on stream 0, whose section needed no acknowledgement.
    scene.goes_on().await;
    let _decoder = scene.client.typed(DECODER, bytes).await;
    scene.connection_error(expected).await;
}

/// Bytes on one of the two change nothing.
async fn accepted(kind: u64, bytes: Vec<u8>) {
    let scene = scene().await;
    let _stream = scene.client.typed(kind, bytes).await;
    for _ in 0..3 {
        scene.goes_on().await;
    }
    scene.unharmed();
}

fn insert(name: &[u8], value: &[u8]) -> Vec<u8> {
    [string(0x40, 5, name, false), string(0, 7, value, false)].concat()
}

cases! { on_encoder_stream:
    rfc9204_4_3_1_a_capacity_above_the_limit => QPACK_ENCODER_STREAM_ERROR, integer(0x20, 5, 1);
    rfc9204_4_3_1_a_large_capacity => QPACK_ENCODER_STREAM_ERROR, integer(0x20, 5, 4_096);
    rfc9204_4_3_1_a_capacity_of_zero_and_then_one =>
        QPACK_ENCODER_STREAM_ERROR, [integer(0x20, 5, 0), integer(0x20, 5, 1)].concat();
    rfc9204_4_1_1_a_capacity_beyond_64_bits => QPACK_ENCODER_STREAM_ERROR, [vec![0x3f], vec![0xff; 12]].concat();
    rfc9204_4_3_2_an_insert_with_a_static_name =>
        QPACK_ENCODER_STREAM_ERROR, [integer(0xc0, 6, 92), string(0, 7, b"v", false)].concat();
    rfc9204_4_3_2_an_insert_with_a_static_name_after_the_last =>
        QPACK_ENCODER_STREAM_ERROR, [integer(0xc0, 6, 99), string(0, 7, b"v", false)].concat();
    rfc9204_4_3_2_an_insert_with_a_dynamic_name =>
        QPACK_ENCODER_STREAM_ERROR, [integer(0x80, 6, 0), string(0, 7, b"v", false)].concat();
    rfc9204_4_3_3_an_insert_with_a_literal_name => QPACK_ENCODER_STREAM_ERROR, insert(b"x", b"v");
    rfc9204_4_3_3_an_insert_of_nothing => QPACK_ENCODER_STREAM_ERROR, insert(b"", b"");
    // An entry larger than the table is an error at once (section 3.2.2); its end need not be waited for.
    rfc9204_4_3_3_an_insert_with_an_endless_name => QPACK_ENCODER_STREAM_ERROR,
        [integer(0x40, 5, 1 << 60), vec![b'x'; 100_000]].concat();
    rfc9204_4_3_4_a_duplicate => QPACK_ENCODER_STREAM_ERROR, integer(0x00, 5, 0);
}

cases! { on_decoder_stream:
    rfc9204_4_4_1_an_acknowledgement_of_nothing => QPACK_DECODER_STREAM_ERROR, integer(0x80, 7, 0);
    rfc9204_4_4_1_an_acknowledgement_of_an_unknown_stream => QPACK_DECODER_STREAM_ERROR, integer(0x80, 7, 4_000);
    rfc9204_4_4_3_an_increment_of_zero => QPACK_DECODER_STREAM_ERROR, integer(0x00, 6, 0);
    rfc9204_4_4_3_an_increment_beyond_what_was_sent => QPACK_DECODER_STREAM_ERROR, integer(0x00, 6, 1);
    rfc9204_4_1_1_an_increment_beyond_64_bits => QPACK_DECODER_STREAM_ERROR, [vec![0x3f], vec![0xff; 12]].concat();
    rfc9204_4_4_2_a_cancellation_and_then_an_error =>
        QPACK_DECODER_STREAM_ERROR, [integer(0x40, 6, 0), integer(0x00, 6, 0)].concat();
}

cases! { accepted:
    rfc9204_4_2_an_encoder_stream_that_stays_empty => ENCODER, Vec::new();
    rfc9204_4_2_a_decoder_stream_that_stays_empty => DECODER, Vec::new();
    rfc9204_4_3_1_a_capacity_of_zero => ENCODER, integer(0x20, 5, 0);
    rfc9204_4_3_1_many_capacities_of_zero => ENCODER, vec![0x20; 3_000];
    rfc9204_4_4_2_a_cancelled_stream => DECODER, integer(0x40, 6, 0);
    rfc9204_4_4_2_cancelled_streams_never_opened => DECODER, [integer(0x40, 6, 400), integer(0x40, 6, 62), integer(0x40, 6, 63)].concat();
    rfc9204_4_4_2_a_cancellation_with_half_an_integer => DECODER, vec![0x7f, 0x80];
}

async fn twice(kind: u64) {
    let scene = scene().await;
    let _first = scene.client.typed(kind, b"").await;
    scene.goes_on().await;
    let _second = scene.client.typed(kind, b"").await;
    scene.connection_error(H3_STREAM_CREATION_ERROR).await;
}

cases! { twice:
    rfc9204_4_2_a_second_encoder_stream => ENCODER;
    rfc9204_4_2_a_second_decoder_stream => DECODER;
}

/// An instruction is refused when it is whole, however it was cut.
#[tokio::test]
async fn rfc9204_4_3_an_insert_that_comes_byte_by_byte() {
    let scene = scene().await;
    let mut encoder = scene.client.typed(ENCODER, b"").await;
    for byte in [integer(0x20, 5, 0), insert(b"x", b"v")].concat() {
        let _ = encoder.write_all(&[byte]).await;
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    scene.connection_error(QPACK_ENCODER_STREAM_ERROR).await;
}

/// Section 4.4: with no table there is nothing to acknowledge; only streams may be called cancelled. And an
/// encoder whose peer has given the table no room inserts nothing (section 3.2.3).
#[tokio::test]
async fn rfc9204_4_4_the_gateways_own_instructions() {
    let scene = scene().await;
    for n in 0..10 {
        scene.goes_on().await;
        let mut cancelled = scene.client.begin(&Head::get("/").frame()[..n]).await;
        cancelled.reset(H3_REQUEST_CANCELLED);
        cancelled.stop(H3_REQUEST_CANCELLED);
    }
    scene.goes_on().await;
    let [encoder, decoder] = scene.client.seen().qpack;
    assert!(encoder.iter().all(|b| *b == 0x20), "encoder instructions: {encoder:x?}");
    // Those stream ids fit into a prefix of six bits.
    assert!(decoder.iter().all(|b| b & 0xc0 == 0x40), "decoder instructions: {decoder:x?}");
}

/// Section 2.1: what a client offers need not be used. Its decoder stream stays in step either way.
#[tokio::test]
async fn rfc9204_2_1_a_client_with_a_table_is_answered() {
    let scene = bare().await;
    let _control = scene.client.typed(CONTROL, settings(&[(0x01, 65_536), (0x07, 100)])).await;
    let _encoder = scene.client.unidirectional(varint(ENCODER)).await;
    let _decoder = scene.client.unidirectional(varint(DECODER)).await;
    for _ in 0..10 {
        // The client refuses sections that refer to a table it was never told to fill.
        assert_eq!(scene.ask(Head::get("/").field("x-repeated", "value").frame()).await.status, 200);
    }
}
