//! Whether HTTP/3 is advertised (RFC 7838): what the process knows, and what each worker says of it.

mod judge;
mod prober;

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::limit::network;
use crate::peer::Peer;
use crate::settings::{AltSvc, Settings};

pub(crate) use prober::probe;

/// What `Alt-Svc` says to clients over HTTP/1.1 and HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Saying {
    Nothing,
    /// There is HTTP/3.
    Come,
    /// Forget that there was.
    Clear,
}

/// The process's knowledge, written by its prober and read by every worker.
#[derive(Debug)]
pub(crate) struct Advertising {
    saying: AtomicU8,
    told: Told,
    /// HTTP/3 connections of others.
    came: AtomicUsize,
}

impl Advertising {
    pub(crate) fn new(settings: &Settings) -> Advertising {
        let always = settings.http3.alt_svc == AltSvc::Always && settings.serves_http3();
        let saying = if always { Saying::Come } else { Saying::Nothing };
        Advertising { saying: AtomicU8::new(saying as u8), told: Told::default(), came: AtomicUsize::new(0) }
    }

    pub(crate) fn saying(&self) -> Saying {
        match self.saying.load(Ordering::Relaxed) {
            0 => Saying::Nothing,
            1 => Saying::Come,
            _ => Saying::Clear,
        }
    }

    fn say(&self, saying: Saying) {
        self.saying.store(saying as u8, Ordering::Relaxed);
    }

    /// A client is told that there is HTTP/3.
    pub(crate) fn tell(&self, client: IpAddr) {
        // Once somebody has come nobody counts any more.
        if self.came.load(Ordering::Relaxed) == 0 {
            self.told.note(client);
        }
    }

    /// A client has come over HTTP/3. This machine itself is none: it comes by no firewall.
    pub(crate) fn came(&self, peer: &Peer) {
        let client = peer.address.ip();
        if !client.is_loopback() && client != peer.local.ip() {
            self.came.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Counts clients, each once, in half a kibibyte: a bit for each hash of a network. Up to some hundreds, which
/// is where it matters, hardly two fall on one bit.
#[derive(Debug)]
struct Told {
    bits: [AtomicU64; Told::WORDS],
    count: AtomicUsize,
    hash: RandomState,
}

impl Default for Told {
    fn default() -> Told {
        Told {
            bits: [const { AtomicU64::new(0) }; Told::WORDS],
            count: AtomicUsize::new(0),
            hash: RandomState::new(),
        }
    }
}

impl Told {
    const WORDS: usize = 64;

    fn note(&self, client: IpAddr) {
        let hash = self.hash.hash_one(network(client));
        let bit = 1_u64 << (hash & 63);
        let Some(word) = self.bits.get((hash >> 6) as usize % Told::WORDS) else { return };
        // Nearly always it is there already, and nothing is written.
        if word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
            self.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Begins anew.
    fn clear(&self) {
        for word in &self.bits {
            word.store(0, Ordering::Relaxed);
        }
        self.count.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn clients_are_counted_once_each() {
        let told = Told::default();
        for _ in 0..3 {
            for number in 0..200 {
                told.note(Ipv4Addr::from_bits(0xc000_0200 + number).into());
            }
        }
        assert!((190..=200).contains(&told.count()), "{}", told.count());
        told.clear();
        // One household is one client, whatever addresses its devices draw.
        for number in 0..200 {
            told.note(Ipv6Addr::from_bits((0x2001_0db8 << 96) + number).into());
        }
        assert_eq!(told.count(), 1);
    }
}
