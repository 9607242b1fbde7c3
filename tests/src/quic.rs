//! What of a QUIC packet can be read without its keys (RFC 8999; RFC 9000, section 17), and packets of clients that say
//! nothing else.

use std::net::Ipv4Addr;
use std::time::Duration;

use bytes::{Buf, Bytes};
use quinn::Endpoint;
use tokio::net::UdpSocket;

use crate::PATIENCE;
use crate::certs::Authority;

/// The first packets of as many clients of `shop.test`, as small as they may be.
pub async fn first_packets(count: usize) -> Vec<Bytes> {
    let config = Authority::shared().one_datagram_client();
    let nobody = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let to = nobody.local_addr().unwrap();
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let mut packets = Vec::with_capacity(count);
    while packets.len() < count {
        let connecting = endpoint.connect_with(config.clone(), to, "shop.test").unwrap();
        let mut buffer = vec![0; 2048];
        let received = tokio::time::timeout(PATIENCE, nobody.recv(&mut buffer)).await;
        buffer.truncate(received.expect("a first packet").unwrap());
        packets.push(buffer.into());
        drop(connecting);
        // It says goodbye, to nobody either.
        _ = tokio::time::timeout(Duration::from_millis(100), nobody.recv(&mut [0; 2048])).await;
    }
    packets
}

/// Whether who trusts this root alone gets through a handshake for this host.
///
/// # Errors
/// Why not.
pub async fn shakes_hands_over_quic(root: &str, port: u16, host: &str) -> Result<(), String> {
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let to = (Ipv4Addr::LOCALHOST, port).into();
    let connecting = endpoint.connect_with(Authority::client_that_trusts(root), to, host);
    let connecting = connecting.map_err(|error| error.to_string())?;
    connecting.await.map(|_| ()).map_err(|error| error.to_string())
}

/// A packet by its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packet {
    VersionNegotiation,
    /// With the token by which a client proves its address; empty where it has none yet.
    Initial(Bytes),
    ZeroRtt,
    Handshake,
    Retry,
    /// Everything after the handshake.
    Short,
    /// Shorter than its own head.
    Broken,
}

impl Packet {
    /// The first packet of a datagram.
    pub fn first_of(datagram: &Bytes) -> Packet {
        read(datagram.clone()).unwrap_or(Packet::Broken)
    }
}

/// `None` where the datagram ends too early.
fn read(mut bytes: Bytes) -> Option<Packet> {
    let first = bytes.try_get_u8().ok()?;
    if first & 0x80 == 0 {
        return Some(Packet::Short);
    }
    if bytes.try_get_u32().ok()? == 0 {
        return Some(Packet::VersionNegotiation);
    }
    Some(match (first & 0x30) >> 4 {
        0 => {
            for _connection_id in ["the receiver's", "the sender's"] {
                let length = bytes.try_get_u8().ok()?;
                take(&mut bytes, length.into())?;
            }
            let length = varint(&mut bytes)?;
            Packet::Initial(take(&mut bytes, length)?)
        }
        1 => Packet::ZeroRtt,
        2 => Packet::Handshake,
        _ => Packet::Retry,
    })
}

/// A length as RFC 9000, section 16 writes it.
fn varint(bytes: &mut Bytes) -> Option<usize> {
    let first = bytes.try_get_u8().ok()?;
    let mut value = usize::from(first & 0x3f);
    for _ in 1..1 << (first >> 6) {
        value = value << 8 | usize::from(bytes.try_get_u8().ok()?);
    }
    Some(value)
}

fn take(bytes: &mut Bytes, length: usize) -> Option<Bytes> {
    (length <= bytes.len()).then(|| bytes.split_to(length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_their_first_bytes() {
        let long = |first: u8, rest: &[u8]| Bytes::from([&[first, 0, 0, 0, 1], rest].concat());
        for (datagram, expected) in [
            (Bytes::from_static(&[0x40, 1, 2]), Packet::Short),
            (Bytes::from_static(&[0x80, 0, 0, 0, 0]), Packet::VersionNegotiation),
            (long(0xc0, &[2, 7, 7, 0, 0, 9]), Packet::Initial(Bytes::new())),
            (long(0xc3, &[1, 7, 1, 8, 0x40, 3, 4, 5, 6, 9]), Packet::Initial(Bytes::from_static(&[4, 5, 6]))),
            (long(0xd0, &[]), Packet::ZeroRtt),
            (long(0xe0, &[]), Packet::Handshake),
            (long(0xf0, &[]), Packet::Retry),
            (long(0xc0, &[2, 7]), Packet::Broken),
            (long(0xc0, &[0, 0, 5, 1]), Packet::Broken),
            (Bytes::new(), Packet::Broken),
        ] {
            assert_eq!(Packet::first_of(&datagram), expected, "{datagram:?}");
        }
    }
}
