//! RFC 9114, section 7.2.4: SETTINGS, the client's and the gateway's.

use foregate_tests::{
    Fields, gateway,
    http3::{
        Head, Options, Outcome,
        code::*,
        frame::{
            CONTROL, MAX, SETTINGS, frame, frame_head, grease, settings, take_varint, varint, varint_of,
        },
    },
    origin,
};

use crate::scene::{Scene, bare, soon, until};

/// The first bytes of a control stream end the connection.
async fn refused(expected: u64, settings: Vec<u8>) {
    let scene = bare().await;
    let _control = scene.client.typed(CONTROL, settings).await;
    scene.connection_error(expected).await;
}

/// The first bytes of a control stream are understood.
async fn accepted(settings: Vec<u8>) {
    let scene = bare().await;
    let _control = scene.client.typed(CONTROL, settings).await;
    scene.goes_on().await;
    scene.goes_on().await;
    scene.unharmed();
}

cases! { refused:
    rfc9114_7_2_4_1_reserved_setting_enable_push => H3_SETTINGS_ERROR, settings(&[(0x02, 0)]);
    rfc9114_7_2_4_1_reserved_setting_max_concurrent_streams => H3_SETTINGS_ERROR, settings(&[(0x03, 100)]);
    rfc9114_7_2_4_1_reserved_setting_initial_window_size => H3_SETTINGS_ERROR, settings(&[(0x04, 65_535)]);
    rfc9114_7_2_4_1_reserved_setting_max_frame_size => H3_SETTINGS_ERROR, settings(&[(0x05, 16_384)]);
    rfc9114_7_2_4_1_a_reserved_setting_behind_others => H3_SETTINGS_ERROR,
        settings(&[(0x06, 65_536), (grease(4), 1), (0x02, 1)]);
    rfc9114_7_1_settings_with_an_identifier_alone => H3_FRAME_ERROR, frame(SETTINGS, &[0x06]);
    rfc9114_7_1_settings_with_half_an_identifier => H3_FRAME_ERROR, frame(SETTINGS, &[0x06, 1, 0x40]);
    rfc9114_7_1_settings_with_half_a_value => H3_FRAME_ERROR, frame(SETTINGS, &[0x06, 0x80, 0, 0]);
}

cases! { accepted:
    rfc9114_7_2_4_empty_settings => settings(&[]);
    rfc9114_7_2_4_unknown_settings => settings(&[(0x4d44, 1), (0x2b60_3742, 1), (MAX, MAX), (0x33, 1), (0x08, 1)]);
    rfc9114_7_2_4_1_greased_settings => settings(&[(grease(0), 0), (grease(1), MAX), (grease(1 << 50), 5)]);
    rfc9114_7_2_4_settings_with_wide_integers =>
        [varint_of(8, SETTINGS), varint_of(4, 16), varint_of(8, 6), varint_of(8, 9_000)].concat();
    rfc9204_5_a_client_that_offers_a_dynamic_table => settings(&[(0x01, 4_096), (0x07, 16)]);
    rfc9114_7_2_4_1_the_largest_values => settings(&[(0x01, MAX), (0x06, MAX), (0x07, MAX)]);
}

/// Section 7.2.4 lets a receiver choose: an error of this type, or none.
#[tokio::test]
async fn rfc9114_7_2_4_a_setting_twice() {
    let scene = bare().await;
    let _control = scene.client.typed(CONTROL, settings(&[(0x06, 9_000), (0x06, 9_000)])).await;
    soon("an answer or the connection's end", async {
        loop {
            if scene.client.quic.close_reason().is_some() {
                return scene.connection_error(H3_SETTINGS_ERROR).await;
            }
            if !scene.vm.requests().is_empty() {
                return scene.goes_on().await;
            }
            if let Ok((mut send, _recv)) = scene.client.quic.open_bi().await {
                let _ = send.write_all(&Head::get("/").frame()).await;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    })
    .await;
}

/// It holds nothing yet of what it announces, so a limit that only it knows must bound it.
#[tokio::test]
async fn rfc9114_7_2_4_endless_settings_cost_no_memory() {
    let scene = bare().await;
    scene.gw.process.reset_peak();
    let before = scene.gw.process.memory("VmRSS");
    let mut control = scene.client.typed(CONTROL, frame_head(SETTINGS, 1 << 40)).await;
    let pairs: Vec<u8> = (0..1_000).flat_map(|n| [varint_of(8, grease(n)), varint(1)].concat()).collect();
    let sending = async {
        for _ in 0..6_000 {
            if control.write_all(&pairs).await.is_err() {
                return;
            }
        }
    };
    // A gateway that neither refuses it nor reads on is as good: then this never ends.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(3), sending).await;
    let grown = scene.gw.process.memory("VmHWM").saturating_sub(before);
    assert!(grown < 24 << 20, "{grown} bytes more for SETTINGS");
    scene.others_are_served().await;
}

/// Section 4.2.2: what exceeds the client's limit should not be sent. It may be all the same; the client's
/// other requests do not suffer for it.
#[tokio::test]
async fn rfc9114_4_2_2_a_response_above_the_clients_limit() {
    let fields = Fields::new().with("x-large", &"x".repeat(8_000));
    let vm = origin().on("/large", move |call| {
        let fields = fields.clone();
        Box::pin(async move { call.reply(200, &fields, "").await })
    });
    let scene = Scene::bare(vm, gateway(), Options::default()).await;
    let _control = scene.client.typed(CONTROL, settings(&[(0x06, 4_096)])).await;
    scene.goes_on().await;
    let mut stream = scene.client.request(Head::get("/large").frame()).await;
    match soon("an end", stream.outcome()).await {
        Outcome::Answered(answer) => assert!(matches!(answer.status, 200 | 502), "{answer:?}"),
        Outcome::Reset { .. } => {}
        other @ Outcome::Lost(_) => panic!("{other:?}"),
    }
    scene.goes_on().await;
}

async fn announced() -> Vec<(u64, u64)> {
    let scene = bare().await;
    let frame = until("the gateway's SETTINGS", || scene.client.seen().control.first().cloned()).await;
    assert_eq!(frame.kind, SETTINGS);
    let mut rest = &frame.payload[..];
    let mut pairs = Vec::new();
    while !rest.is_empty() {
        let id = take_varint(&mut rest).expect("an identifier");
        pairs.push((id, take_varint(&mut rest).expect("a value")));
    }
    pairs
}

#[tokio::test]
async fn rfc9114_7_2_4_the_gateways_settings_are_each_sent_once() {
    let settings = announced().await;
    for (id, _) in &settings {
        assert_eq!(settings.iter().filter(|(i, _)| i == id).count(), 1, "{settings:x?}");
    }
}

#[tokio::test]
async fn rfc9114_7_2_4_1_the_gateway_sends_no_reserved_settings() {
    let settings = announced().await;
    assert!(settings.iter().all(|(id, _)| !matches!(id, 0 | 2..=5)), "{settings:x?}");
}

#[tokio::test]
async fn rfc9114_4_2_2_the_gateway_announces_its_limit_of_field_sections() {
    let settings = announced().await;
    let limit = settings.iter().find(|(id, _)| *id == 0x06).expect("SETTINGS_MAX_FIELD_SECTION_SIZE").1;
    // `server.limits.request_head` is 32 KiB by default.
    assert!((16 << 10..=1 << 20).contains(&limit), "{limit}");
}

#[tokio::test]
async fn rfc9204_5_the_gateway_offers_no_dynamic_table() {
    let settings = announced().await;
    assert!(settings.iter().all(|(id, value)| !matches!(id, 0x01 | 0x07) || *value == 0), "{settings:x?}");
}

#[tokio::test]
async fn rfc9220_3_the_gateway_announces_extended_connect() {
    assert!(announced().await.contains(&(0x08, 1)));
}
