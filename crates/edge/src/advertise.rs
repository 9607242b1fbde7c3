//! Whether HTTP/3 is advertised (RFC 7838): what the process knows, and what each worker says of it.

mod judge;
mod prober;

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use http::Uri;

use crate::limit::network;
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
    /// Somebody uses HTTP/3.
    came: AtomicBool,
}

impl Advertising {
    pub(crate) fn new(settings: &Settings) -> Advertising {
        let always = settings.http3.alt_svc == AltSvc::Always && settings.serves_http3();
        let saying = if always { Saying::Come } else { Saying::Nothing };
        Advertising {
            saying: AtomicU8::new(saying as u8),
            told: Told::default(),
            came: AtomicBool::new(false),
        }
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
        if !self.came.load(Ordering::Relaxed) {
            self.told.note(client);
        }
    }

    /// A client has asked for something over HTTP/3. This machine itself is none, for it comes by no firewall; nor is the
    /// probe, which may come by a NAT, and then under the address of that.
    pub(crate) fn came(&self, client: IpAddr, local: IpAddr, target: &Uri) {
        // Nearly always somebody has.
        if self.came.load(Ordering::Relaxed) {
            return;
        }
        let probe = target.host() == Some(prober::NOBODY);
        if !probe && !client.is_loopback() && client != local {
            self.came.store(true, Ordering::Relaxed);
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
    fn neither_this_machine_nor_its_probe_is_somebody() {
        let advertising = Advertising::new(&Settings::default());
        let [client, local]: [IpAddr; 2] = [[192, 0, 2, 7].into(), [192, 0, 2, 1].into()];
        let (page, probe) = (Uri::from_static("https://a/"), Uri::from_static("https://foregate.invalid/"));
        for (from, target) in [(client, &probe), (local, &page), (Ipv4Addr::LOCALHOST.into(), &page)] {
            advertising.came(from, local, target);
            assert!(!advertising.came.load(Ordering::Relaxed), "{from} {target}");
        }
        advertising.came(client, local, &page);
        assert!(advertising.came.load(Ordering::Relaxed));
    }

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
