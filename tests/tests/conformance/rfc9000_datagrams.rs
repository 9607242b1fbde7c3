//! RFC 9000, sections 5 and 6: single datagrams that belong to no connection.

use std::{net::SocketAddr, time::Duration};

use foregate_tests::{
    Gateway,
    http3::{Head, frame::data},
};
use tokio::net::UdpSocket;

use crate::scene::{scene, soon};

/// A datagram with a long header, as long as a first one must be, or shorter.
fn long_header(version: u32, length: usize) -> Vec<u8> {
    let mut packet = vec![0xc3];
    packet.extend(version.to_be_bytes());
    packet.extend([8, 1, 2, 3, 4, 5, 6, 7, 8, 5, 9, 9, 9, 9, 9]);
    packet.resize(length, 0);
    packet
}

/// Sends a datagram and listens for a moment.
async fn reply_to(gw: &Gateway, packet: &[u8], wait: Duration) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let to: SocketAddr = gw.dial("shop.test").https;
    socket.send_to(packet, to).await.unwrap();
    let mut buffer = vec![0; 2_048];
    let (length, from) = tokio::time::timeout(wait, socket.recv_from(&mut buffer)).await.ok()?.unwrap();
    assert_eq!(from, to);
    buffer.truncate(length);
    Some(buffer)
}

/// Section 6.1 and 17.2.1.
#[tokio::test]
async fn rfc9000_6_1_an_unknown_version_is_answered_with_those_there_are() {
    let scene = scene().await;
    let packet = long_header(0x1a2a_3a4a, 1_200);
    let reply = reply_to(&scene.gw, &packet, Duration::from_secs(5)).await.expect("Version Negotiation");
    assert_eq!(reply[0] & 0x80, 0x80, "a long header");
    assert_eq!(reply[1..5], [0; 4], "version 0");
    // The ids change places.
    assert_eq!(reply[5..20], [5, 9, 9, 9, 9, 9, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let versions: Vec<u32> =
        reply[20..].chunks(4).map(|v| u32::from_be_bytes(v.try_into().unwrap())).collect();
    assert!(versions.contains(&1), "{versions:x?}");
    assert!(!versions.contains(&0x1a2a_3a4a), "{versions:x?}");
}

/// Silence on the wire cannot be awaited, only given a chance to be broken.
async fn unanswered(packet: Vec<u8>) {
    let scene = scene().await;
    let reply = reply_to(&scene.gw, &packet, Duration::from_millis(300)).await;
    assert_eq!(reply, None);
    scene.others_are_served().await;
}

cases! { unanswered:
    // Smaller than any first datagram may be: an answer would help whoever forges addresses.
    rfc9000_5_2_2_a_small_datagram_of_an_unknown_version => long_header(0x1a2a_3a4a, 600);
    rfc9000_6_1_version_negotiation_is_not_answered => long_header(0, 1_200);
    rfc9000_14_1_a_small_first_datagram_is_discarded => long_header(1, 1_199);
    rfc9000_17_2_an_empty_datagram => Vec::new();
    rfc9000_17_2_a_header_cut_short => vec![0xc3, 0, 0];
}

/// Section 10.3: a stateless reset is smaller than what it answers, so that two never answer each other.
#[tokio::test]
async fn rfc9000_10_3_a_stateless_reset_is_smaller_than_its_cause() {
    let scene = scene().await;
    for length in [22, 43, 100, 1_200] {
        let mut packet = vec![0x5a; length];
        packet[0] = 0x40;
        if let Some(reply) = reply_to(&scene.gw, &packet, Duration::from_millis(200)).await {
            assert!(reply.len() < length && reply.len() >= 21, "{} bytes for {length}", reply.len());
            assert_eq!(reply[0] & 0xc0, 0x40, "a short header");
        }
    }
    scene.goes_on().await;
}

/// RFC 9000, section 5.2: strangers' noise does not disturb a connection.
#[tokio::test]
async fn rfc9000_5_2_noise_disturbs_nobody() {
    let scene = scene().await;
    let mut upload = scene.client.begin(Head::post("/").and(data("he"))).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for n in 0..200_usize {
        let mut packet: Vec<u8> = (0..n * 7 % 1_400).map(|at| (at * 31 + n) as u8).collect();
        if let Some(first) = packet.first_mut() {
            *first |= 0x40;
        }
        socket.send_to(&packet, scene.gw.dial("shop.test").https).await.unwrap();
    }
    upload.finish(data("llo")).await;
    assert_eq!(soon("an answer", upload.answer()).await.status, 200);
    scene.unharmed();
}
