//! RFC 9114, sections 4.1.2, 4.2 and 4.3: requests that are frames in good order and yet no request.
//!
//! Each is a stream error H3_MESSAGE_ERROR or a 400, comes to no VM, and leaves the connection as it was.

use foregate_tests::http3::{Head, Outcome, code::H3_MESSAGE_ERROR, frame::data};

use crate::scene::{malformed, malformed_message, scene, soon};

fn get() -> Head {
    Head::get("/")
}

fn post() -> Head {
    Head::post("/")
}

fn trailers() -> Head {
    Head::empty().field("x-sum", "5")
}

// Section 4.1.2: the announced length and the DATA frames disagree.
cases! { malformed_message:
    rfc9114_4_1_2_content_length_shorter_than_data => post().field("content-length", "4").and(data("hello"));
    rfc9114_4_1_2_content_length_longer_than_data => post().field("content-length", "6").and(data("hello"));
    rfc9114_4_1_2_content_length_without_data => post().field("content-length", "5").frame();
    rfc9114_4_1_2_content_length_without_data_in_a_get => get().field("content-length", "5").frame();
    rfc9114_4_1_2_content_length_of_zero_and_data => post().field("content-length", "0").and(data("h"));
    rfc9114_4_1_2_content_length_shorter_than_several_data_frames =>
        post().field("content-length", "4").and([data("he"), data("l"), data("lo")].concat());
    rfc9114_4_1_2_content_length_longer_than_data_before_trailers =>
        post().field("content-length", "6").and([data("hello"), trailers().frame()].concat());
    rfc9114_4_1_2_content_length_shorter_than_data_before_trailers =>
        post().field("content-length", "4").and([data("hello"), trailers().frame()].concat());
    rfc9114_4_1_2_content_length_much_longer_than_data =>
        post().field("content-length", "1000000000000").and(data("hello"));
    rfc9114_4_1_2_content_length_shorter_than_a_large_body =>
        post().field("content-length", "100000").and(data(vec![b'x'; 100_001]));
}

// RFC 9110, section 8.6: a length that is none.
cases! { malformed:
    rfc9110_8_6_two_different_content_lengths =>
        post().field("content-length", "0").field("content-length", "1");
    rfc9110_8_6_a_list_of_different_content_lengths => post().field("content-length", "0, 1");
    rfc9110_8_6_content_length_is_a_word => post().field("content-length", "five");
    rfc9110_8_6_content_length_with_a_sign => post().field("content-length", "+0");
    rfc9110_8_6_content_length_below_zero => post().field("content-length", "-1");
    rfc9110_8_6_content_length_in_hexadecimal => post().field("content-length", "0x0");
    rfc9110_8_6_content_length_with_a_fraction => post().field("content-length", "0.0");
    rfc9110_8_6_an_empty_content_length => post().field("content-length", "");
    rfc9110_8_6_content_length_beyond_64_bits => post().field("content-length", "18446744073709551616");
}

/// RFC 9110, section 8.6 lets a recipient refuse it, or take the two for one.
async fn one_length_or_none(head: Head) {
    let scene = scene().await;
    let mut stream = scene.client.request(head.and(data("hello"))).await;
    match soon("an end", stream.outcome()).await {
        Outcome::Answered(answer) if answer.status == 200 => {
            let seen = scene.vm.only();
            assert_eq!((&seen.body[..], seen.fields.all("content-length")), (&b"hello"[..], vec!["5"]));
        }
        Outcome::Answered(answer) => assert_eq!(answer.status, 400),
        Outcome::Reset { code, .. } => assert_eq!(code, H3_MESSAGE_ERROR, "{code:#x}"),
        other => panic!("{other:?}"),
    }
    scene.goes_on().await;
}

cases! { one_length_or_none:
    rfc9110_8_6_the_same_content_length_twice =>
        post().field("content-length", "5").field("content-length", "5");
    rfc9110_8_6_a_list_of_the_same_content_length => post().field("content-length", "5, 5");
}

// Section 4.2: names.
cases! { malformed:
    rfc9114_4_2_an_upper_case_field_name => get().field("X-Upper", "v");
    rfc9114_4_2_one_upper_case_letter => get().field("x-uppeR", "v");
    rfc9114_4_2_an_upper_case_known_name => get().field("Accept", "*/*");
    rfc9114_10_3_an_empty_field_name => get().field("", "v");
    rfc9114_10_3_a_space_in_a_field_name => get().field("x y", "v");
    rfc9114_10_3_a_space_after_a_field_name => get().field("x ", "v");
    rfc9114_10_3_a_colon_in_a_field_name => get().field("x:y", "v");
    rfc9114_10_3_a_line_feed_in_a_field_name => get().field("x\ny", "v");
    rfc9114_10_3_a_request_in_a_field_name => get().field("x: y\r\nhost", "v");
    rfc9114_10_3_a_zero_in_a_field_name => get().field("x\0", "v");
    rfc9114_10_3_a_delete_in_a_field_name => get().field("x\x7f", "v");
    rfc9114_10_3_a_byte_above_ascii_in_a_field_name => get().field("x\u{e9}", "v");
    rfc9114_10_3_a_separator_in_a_field_name => get().field("x(y)", "v");
}

// Section 10.3: values.
cases! { malformed:
    rfc9114_10_3_a_line_feed_in_a_value => get().field("x-value", "a\nb");
    rfc9114_10_3_a_carriage_return_in_a_value => get().field("x-value", "a\rb");
    rfc9114_10_3_a_field_in_a_value => get().field("x-value", "a\r\nx-smuggled: b");
    rfc9114_10_3_a_zero_in_a_value => get().field("x-value", "a\0b");
    rfc9114_10_3_a_control_character_in_a_value => get().field("x-value", "a\x01b");
    rfc9114_10_3_an_escape_in_a_value => get().field("x-value", "\x1b[2J");
    rfc9114_10_3_a_delete_in_a_value => get().field("x-value", "a\x7fb");
    rfc9114_10_3_a_line_feed_at_the_end_of_a_value => get().field("x-value", "a\n");
}

// Section 4.2: what belongs to a connection of HTTP/1.1.
cases! { malformed:
    rfc9114_4_2_connection => get().field("connection", "close");
    rfc9114_4_2_connection_naming_a_field => get().field("x-a", "b").field("connection", "x-a");
    rfc9114_4_2_keep_alive => get().field("keep-alive", "timeout=5");
    rfc9114_4_2_proxy_connection => get().field("proxy-connection", "keep-alive");
    rfc9114_4_2_transfer_encoding_chunked => post().field("transfer-encoding", "chunked");
    rfc9114_4_2_transfer_encoding_identity => get().field("transfer-encoding", "identity");
    rfc9114_4_2_upgrade => get().field("upgrade", "websocket");
    rfc9114_4_2_te_other_than_trailers => get().field("te", "gzip");
    rfc9114_4_2_te_more_than_trailers => get().field("te", "trailers, gzip");
    rfc9114_4_2_te_trailers_and_another => get().field("te", "trailers").field("te", "deflate");
}

// Section 4.3: pseudo-header fields where they may not be, or that do not exist.
cases! { malformed:
    rfc9114_4_3_a_response_pseudo_header_field => get().first(":status", "200");
    rfc9114_4_3_an_unknown_pseudo_header_field => get().first(":foregate", "x");
    rfc9114_4_3_a_pseudo_header_field_without_a_name => get().first(":", "x");
    rfc9114_4_3_an_upper_case_pseudo_header_field => get().without(":method").first(":Method", "GET");
    rfc9114_4_3_protocol_without_connect => get().first(":protocol", "websocket");
    rfc9114_4_3_method_after_a_field => get().without(":method").field("x-a", "b").field(":method", "GET");
    rfc9114_4_3_scheme_after_a_field => get().without(":scheme").field("x-a", "b").field(":scheme", "https");
    rfc9114_4_3_path_after_a_field => get().without(":path").field("x-a", "b").field(":path", "/");
    rfc9114_4_3_authority_after_a_field =>
        get().without(":authority").field("x-a", "b").field(":authority", "shop.test");
    rfc9114_4_3_a_second_path_after_a_field => get().field("x-a", "b").field(":path", "/admin");
}

// Section 4.3: no pseudo-header fields in trailers, and what else trailers may not hold.
cases! { malformed_message:
    rfc9114_4_3_method_in_trailers => post().and([data("hello"), Head::empty().field(":method", "GET").frame()].concat());
    rfc9114_4_3_path_in_trailers => post().and([data("hello"), Head::empty().field(":path", "/").frame()].concat());
    rfc9114_4_3_status_in_trailers => post().and([data("hello"), trailers().field(":status", "200").frame()].concat());
    rfc9114_4_3_an_unknown_pseudo_header_field_in_trailers =>
        post().and([data("hello"), trailers().field(":x", "y").frame()].concat());
    rfc9114_4_2_an_upper_case_name_in_trailers =>
        post().and([data("hello"), Head::empty().field("X-Sum", "5").frame()].concat());
    rfc9114_4_2_connection_in_trailers =>
        post().and([data("hello"), trailers().field("connection", "close").frame()].concat());
    rfc9114_4_2_transfer_encoding_in_trailers =>
        post().and([data("hello"), trailers().field("transfer-encoding", "chunked").frame()].concat());
    rfc9114_10_3_a_line_feed_in_trailers =>
        post().and([data("hello"), trailers().field("x-value", "a\nb").frame()].concat());
    rfc9114_10_3_a_space_in_a_name_of_trailers =>
        post().and([data("hello"), trailers().field("x value", "a").frame()].concat());
}

// Section 4.3.1: exactly one of each, with a value that is one.
cases! { malformed:
    rfc9114_4_3_1_no_method => get().without(":method");
    rfc9114_4_3_1_no_scheme => get().without(":scheme");
    rfc9114_4_3_1_no_path => get().without(":path");
    rfc9114_4_3_1_no_pseudo_header_fields => Head::empty().field("host", "shop.test");
    rfc9114_4_3_1_no_fields_at_all => Head::empty();
    rfc9114_4_3_1_two_methods => get().first(":method", "POST");
    rfc9114_4_3_1_the_same_method_twice => get().first(":method", "GET");
    rfc9114_4_3_1_two_schemes => get().first(":scheme", "http");
    rfc9114_4_3_1_the_same_scheme_twice => get().first(":scheme", "https");
    rfc9114_4_3_1_two_paths => get().first(":path", "/admin");
    rfc9114_4_3_1_the_same_path_twice => get().first(":path", "/");
    rfc9114_4_3_1_two_authorities => get().first(":authority", "evil.test");
    rfc9114_4_3_1_the_same_authority_twice => get().first(":authority", "shop.test");
    rfc9114_4_3_1_an_empty_method => get().with(":method", "");
    rfc9114_4_3_1_a_space_in_the_method => get().with(":method", "GET /x");
    rfc9114_4_3_1_a_line_feed_in_the_method => get().with(":method", "GET\n");
    rfc9114_4_3_1_a_separator_in_the_method => get().with(":method", "G@T");
    rfc9114_4_3_1_an_empty_scheme => get().with(":scheme", "");
    rfc9114_4_3_1_a_scheme_that_is_none => get().with(":scheme", "ht tps");
    rfc9114_4_3_1_a_request_in_the_scheme => get().with(":scheme", "https://evil.test/?x=");
    rfc9114_4_3_1_an_empty_path => get().with(":path", "");
    rfc9114_4_3_1_a_path_without_a_slash => get().with(":path", "index.html");
    rfc9114_4_3_1_a_path_that_is_a_query => get().with(":path", "?x=y");
    rfc9114_4_3_1_a_path_with_scheme_and_host => get().with(":path", "https://evil.test/");
    rfc9114_4_3_1_a_space_in_the_path => get().with(":path", "/a b");
    rfc9114_4_3_1_a_request_in_the_path => get().with(":path", "/ HTTP/1.1\r\nx-smuggled: y\r\n\r\n");
    rfc9114_4_3_1_a_zero_in_the_path => get().with(":path", "/\0");
    rfc9114_4_3_1_a_delete_in_the_path => get().with(":path", "/\x7f");
    rfc9114_4_3_1_an_asterisk_in_a_get => get().with(":path", "*");
    rfc9114_4_3_1_an_asterisk_and_more => Head::request("OPTIONS", "*").with(":path", "*x");
    rfc9114_4_3_1_an_empty_path_in_options => Head::request("OPTIONS", "");
}

// Section 4.3.1: the authority.
cases! { malformed:
    rfc9114_4_3_1_neither_authority_nor_host => get().without(":authority");
    rfc9114_4_3_1_an_empty_authority => get().with(":authority", "");
    rfc9114_4_3_1_an_empty_host => get().without(":authority").field("host", "");
    rfc9114_4_3_1_an_authority_and_an_empty_host => get().field("host", "");
    rfc9114_4_3_1_an_empty_authority_and_a_host => get().with(":authority", "").field("host", "shop.test");
    rfc9114_4_3_1_authority_and_host_differ => get().field("host", "evil.test");
    rfc9114_4_3_1_authority_and_host_differ_in_the_port =>
        get().with(":authority", "shop.test:443").field("host", "shop.test:444");
    rfc9114_4_3_1_two_hosts => get().without(":authority").field("host", "shop.test").field("host", "evil.test");
    rfc9114_4_3_1_the_same_host_twice => get().field("host", "shop.test").field("host", "shop.test");
    rfc9114_4_3_1_a_user_in_the_authority => get().with(":authority", "user@shop.test");
    rfc9114_4_3_1_a_user_with_a_password_in_the_authority => get().with(":authority", "user:pw@shop.test");
    rfc9114_4_3_1_an_empty_user_in_the_authority => get().with(":authority", "@shop.test");
    rfc9114_4_3_1_a_path_in_the_authority => get().with(":authority", "shop.test/admin");
    rfc9114_4_3_1_a_query_in_the_authority => get().with(":authority", "shop.test?x");
    rfc9114_4_3_1_a_space_in_the_authority => get().with(":authority", "shop.test evil.test");
    rfc9114_4_3_1_a_line_feed_in_the_authority => get().with(":authority", "shop.test\r\nx: y");
    rfc9114_4_3_1_a_port_that_is_none => get().with(":authority", "shop.test:8x");
    rfc9114_4_3_1_a_list_in_the_authority => get().with(":authority", "shop.test, evil.test");
}
