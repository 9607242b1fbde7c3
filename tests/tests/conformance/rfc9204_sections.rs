//! RFC 9204, section 4.5: field sections, sound and broken. What cannot be read ends the connection with
//! QPACK_DECOMPRESSION_FAILED (section 2.2): no later section could be trusted.

use foregate_tests::http3::{
    Head,
    code::QPACK_DECOMPRESSION_FAILED,
    frame::{HEADERS, data, frame},
    huffman,
    qpack::{PREFIX, indexed, integer, literal_coded, literal_never_indexed, named, string},
};

use crate::scene::{on_whole_request_stream, scene};

/// A request's head and then these bytes in its field section.
fn head_and(line: Vec<u8>) -> Vec<u8> {
    Head::get("/").line(line).frame()
}

/// A section in whole.
fn section(bytes: &[u8]) -> Vec<u8> {
    frame(HEADERS, bytes)
}

/// A literal line `x: ...` whose value is this Huffman code.
fn coded_value(code: &[u8]) -> Vec<u8> {
    [string(0x20, 3, b"x", false), integer(0x80, 7, code.len() as u64), code.to_vec()].concat()
}

async fn undecodable(bytes: Vec<u8>) {
    on_whole_request_stream(QPACK_DECOMPRESSION_FAILED, bytes).await;
}

cases! { undecodable:
    // The prefix (section 4.5.1).
    rfc9204_4_5_1_1_a_required_insert_count => section(&[&[0x02, 0x00][..], &indexed(17)].concat());
    rfc9204_4_5_1_1_a_required_insert_count_in_a_section_without_references =>
        section(&[&[0x02, 0x00][..], &Head::get("/").section()[2..]].concat());
    rfc9204_4_5_1_1_the_largest_required_insert_count =>
        section(&[integer(0, 8, u64::MAX >> 2), vec![0], indexed(17)].concat());
    rfc9204_4_5_1_2_a_negative_base => section(&[&[0x00, 0x80][..], &Head::get("/").section()[2..]].concat());
    rfc9204_4_5_1_no_prefix => section(b"");
    rfc9204_4_5_1_half_a_prefix => section(&[0]);
    rfc9204_4_5_1_a_prefix_cut_short => section(&[0, 0x7f]);
    rfc9204_4_1_1_a_required_insert_count_beyond_64_bits => section(&[&[0xff; 12][..], &[0x7f, 0]].concat());
    // References to a static table of 99 entries (section 3.1).
    rfc9204_3_1_the_static_entry_after_the_last => head_and(indexed(99));
    rfc9204_3_1_a_static_entry_far_beyond => head_and(indexed(1 << 40));
    rfc9204_3_1_a_static_name_after_the_last => head_and(named(99, "v"));
    rfc9204_4_1_1_a_static_index_beyond_64_bits => head_and(vec![0xff; 16]);
    // References to a dynamic table that is empty (section 2.2.3).
    rfc9204_4_5_2_a_dynamic_reference => head_and(integer(0x80, 6, 0));
    rfc9204_4_5_2_a_large_dynamic_reference => head_and(integer(0x80, 6, 500));
    rfc9204_4_5_3_a_post_base_reference => head_and(integer(0x10, 4, 0));
    rfc9204_4_5_4_a_dynamic_name => head_and([integer(0x40, 4, 0), string(0, 7, b"v", false)].concat());
    rfc9204_4_5_5_a_post_base_name => head_and([integer(0x00, 3, 0), string(0, 7, b"v", false)].concat());
    rfc9204_4_5_5_a_post_base_name_with_the_n_bit =>
        head_and([integer(0x08, 3, 2), string(0, 7, b"v", false)].concat());
    // What is cut short (section 4.1).
    rfc9204_4_1_2_a_name_longer_than_the_section => head_and([integer(0x20, 3, 40), b"x".to_vec()].concat());
    rfc9204_4_1_2_a_value_longer_than_the_section =>
        head_and([string(0x20, 3, b"x", false), integer(0, 7, 2), b"v".to_vec()].concat());
    rfc9204_4_1_2_a_name_without_a_value => head_and(string(0x20, 3, b"x", false));
    rfc9204_4_1_2_a_static_name_without_a_value => head_and(integer(0x50, 4, 92));
    rfc9204_4_1_2_a_length_close_to_the_maximum => head_and(integer(0x20, 3, (1 << 62) - 1));
    rfc9204_4_1_2_a_length_beyond_64_bits => head_and([vec![0x27], vec![0xff; 12]].concat());
    rfc9204_4_1_1_an_index_cut_short => head_and(vec![0xff]);
    rfc9204_4_1_1_a_continued_index_cut_short => head_and(vec![0xff, 0x80, 0x80]);
    // Strings that are no Huffman code (RFC 7541, section 5.2).
    rfc7541_5_2_the_end_of_string_symbol => head_and(coded_value(&huffman::pack(&format!("{}11", huffman::bits([huffman::EOS])))));
    rfc7541_5_2_the_end_of_string_symbol_within_a_string =>
        head_and(coded_value(&huffman::pack(&format!("00011{}00011", huffman::bits([huffman::EOS])))));
    rfc7541_5_2_padding_of_zeros => head_and(coded_value(&huffman::pack("00011000")));
    rfc7541_5_2_padding_with_a_zero => head_and(coded_value(&huffman::pack("00011110")));
    rfc7541_5_2_padding_of_eight_bits => head_and(coded_value(&[0xff]));
    rfc7541_5_2_padding_of_eleven_bits => head_and(coded_value(&huffman::pack("0001111111111111")));
    rfc7541_5_2_a_name_with_wrong_padding =>
        head_and([integer(0x28, 3, 1), huffman::pack("00011000"), string(0, 7, b"v", false)].concat());
    // Trailers are a field section too.
    rfc9204_2_2_trailers_with_a_dynamic_reference =>
        Head::post("/").and([data("hello"), section(&[&PREFIX[..], &integer(0x80, 6, 0)].concat())].concat());
    rfc9204_2_2_empty_trailers_without_a_prefix => Head::post("/").and([data("hello"), section(b"")].concat());
    rfc9204_2_2_trailers_with_a_static_entry_after_the_last =>
        Head::post("/").and([data("hello"), section(&[&PREFIX[..], &indexed(99)].concat())].concat());
}

/// Serves a request with this line, which means this field.
async fn readable(line: Vec<u8>, name: &str, value: &str) {
    let scene = scene().await;
    let seen = scene.served(head_and(line)).await;
    assert_eq!(seen.fields.get(name), Some(value), "{:?}", seen.fields);
    scene.goes_on().await;
}

cases! { readable:
    rfc9204_4_5_2_an_indexed_line => indexed(98), "x-frame-options", "sameorigin";
    rfc9204_4_5_4_a_static_name => named(95, "by hand"), "user-agent", "by hand";
    rfc9204_4_5_4_a_static_name_never_to_be_indexed =>
        [integer(0x70, 4, 84), string(0, 7, b"secret", false)].concat(), "authorization", "secret";
    rfc9204_4_5_4_a_static_name_with_a_coded_value =>
        [integer(0x50, 4, 95), string(0, 7, b"coded", true)].concat(), "user-agent", "coded";
    rfc9204_4_5_6_a_literal_never_to_be_indexed =>
        literal_never_indexed("x-secret", "s3cr3t"), "x-secret", "s3cr3t";
    rfc9204_4_5_6_a_coded_literal => literal_coded("x-coded", "Huffman & more"), "x-coded", "Huffman & more";
    rfc9204_4_5_6_a_coded_name_and_a_plain_value =>
        [string(0x20, 3, b"x-coded", true), string(0, 7, b"plain", false)].concat(), "x-coded", "plain";
    rfc9204_4_5_6_a_plain_name_and_a_coded_value =>
        [string(0x20, 3, b"x-plain", false), string(0, 7, b"coded", true)].concat(), "x-plain", "coded";
    rfc9204_4_5_6_an_empty_value => [string(0x20, 3, b"x-empty", false), vec![0]].concat(), "x-empty", "";
    rfc9204_4_5_6_an_empty_coded_value => [string(0x20, 3, b"x-empty", false), vec![0x80]].concat(), "x-empty", "";
    rfc9204_4_1_2_a_coded_string_of_full_bytes =>
        // `a` and `0` are five bits each, `e` too, `t` as well: 40 bits without padding.
        coded_value(&huffman::encode(b"a0eta0et")), "x", "a0eta0et";
    rfc9204_4_1_1_a_length_of_two_bytes =>
        literal_never_indexed("x-long", &"l".repeat(300)), "x-long", &"l".repeat(300);
}

/// Every byte a value may hold, in the Huffman code.
#[tokio::test]
async fn rfc7541_5_2_every_byte_in_huffman_code() {
    let bytes = (0x21..=0xff_u8).filter(|b| *b != 0x7f).chain([b' ', b'\t', b'z']);
    let value: String = bytes.map(char::from).collect();
    readable(literal_coded("x-all", &value), "x-all", &value).await;
}

/// Without references any base is as good as another (section 4.5.1.2).
#[tokio::test]
async fn rfc9204_4_5_1_2_a_base_that_nothing_refers_to() {
    let scene = scene().await;
    let bytes = section(&[&[0x00, 0x05][..], &Head::get("/based").section()[2..]].concat());
    assert_eq!(scene.served(bytes).await.target, "/based");
}

/// Heads in every representation at once, as different clients write them.
#[tokio::test]
async fn rfc9204_4_5_a_head_of_mixed_lines() {
    let scene = scene().await;
    let head = Head::empty()
        .line(indexed(17))
        .line(indexed(23))
        .line([integer(0x50, 4, 0), string(0, 7, b"shop.test", true)].concat())
        .line(named(1, "/mixed"))
        .line(literal_coded("x-a", "1"))
        .line(literal_never_indexed("x-b", "2"));
    let seen = scene.served(head.frame()).await;
    assert_eq!((seen.target.as_str(), seen.host.as_str()), ("/mixed", "shop.test"));
    assert_eq!((seen.fields.get("x-a"), seen.fields.get("x-b")), (Some("1"), Some("2")));
}
