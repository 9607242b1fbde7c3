//! The keys of TLS session tickets, which outlive the process: a ticket of the one before is good at its successor.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::rand;
use rustls::server::ProducesTickets;

/// How long a key makes tickets.
pub const ROTATION: u64 = 6 * 60 * 60;
/// How long a ticket is good, and so its key.
const LIFETIME: u64 = 12 * 60 * 60;
/// Nobody carries more about for us: a session holds the client's certificates.
const LONGEST: usize = 16 * 1024;
const ID: usize = 16;

/// A key, as it is kept and handed over.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey {
    pub id: [u8; ID],
    pub secret: [u8; 32],
    /// Seconds since 1970.
    pub since: u64,
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TicketKey")
    }
}

/// The process's only ones; the newest first.
pub struct Tickets(ArcSwap<Vec<(TicketKey, LessSafeKey)>>);

impl Tickets {
    #[must_use]
    pub fn shared() -> Arc<Tickets> {
        static TICKETS: OnceLock<Arc<Tickets>> = OnceLock::new();
        TICKETS.get_or_init(|| Arc::new(Tickets(ArcSwap::default()))).clone()
    }

    /// Goes on with these, as far as they are not too old, and makes a new one if it is time for that. Returns all that
    /// are good now, to be kept.
    #[must_use]
    pub fn renew(&self, kept: Vec<TicketKey>) -> Vec<TicketKey> {
        self.renew_at(kept, now())
    }

    fn renew_at(&self, mut keys: Vec<TicketKey>, now: u64) -> Vec<TicketKey> {
        keys.extend(self.0.load().iter().map(|(key, _)| key.clone()));
        // One from the future is no key of ours.
        keys.retain(|key| key.since <= now && now - key.since < LIFETIME);
        keys.sort_by(|a, b| b.since.cmp(&a.since).then(a.id.cmp(&b.id)));
        keys.dedup();
        if keys.first().is_none_or(|newest| now - newest.since >= ROTATION) {
            let mut key = TicketKey { id: [0; ID], secret: [0; 32], since: now };
            if rand::fill(&mut key.id).and_then(|()| rand::fill(&mut key.secret)).is_ok() {
                keys.insert(0, key);
            }
        }
        let ready = |key: &TicketKey| {
            let sealing = UnboundKey::new(&AES_256_GCM, &key.secret).ok()?;
            Some((key.clone(), LessSafeKey::new(sealing)))
        };
        self.0.store(Arc::new(keys.iter().filter_map(ready).collect()));
        keys
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// What a ticket is good for beside its key: nothing more is asked, or the clients' certificates by these rules.
const OPEN: &[u8] = b"";

impl Tickets {
    fn seal(&self, plain: &[u8], purpose: &[u8]) -> Option<Vec<u8>> {
        if plain.len() > LONGEST {
            return None;
        }
        let keys = self.0.load();
        let (key, sealing) = keys.first()?;
        let mut nonce = [0; NONCE_LEN];
        rand::fill(&mut nonce).ok()?;
        let mut sealed = plain.to_vec();
        let unique = Nonce::assume_unique_for_key(nonce);
        sealing.seal_in_place_append_tag(unique, Aad::from([&key.id, purpose].concat()), &mut sealed).ok()?;
        Some([&key.id[..], &nonce, &sealed].concat())
    }

    fn open(&self, cipher: &[u8], purpose: &[u8]) -> Option<Vec<u8>> {
        let (id, rest) = cipher.split_at_checked(ID)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        let keys = self.0.load();
        let (key, opening) = keys.iter().find(|(key, _)| key.id == id)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let plain = opening.open_in_place(nonce, Aad::from([&key.id, purpose].concat()), &mut sealed).ok()?;
        Some(plain.to_vec())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain, OPEN)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher, OPEN)
    }
}

/// Tickets of connections whose client was asked for its certificate. Under other rules they are none, so that the client
/// is asked anew.
#[derive(Debug)]
pub(crate) struct Bound {
    tickets: Arc<Tickets>,
    rules: [u8; 32],
}

impl Bound {
    pub(crate) fn to(rules: [u8; 32]) -> Bound {
        Bound { tickets: Tickets::shared(), rules }
    }
}

impl ProducesTickets for Bound {
    fn enabled(&self) -> bool {
        self.tickets.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.tickets.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.tickets.seal(plain, &self.rules)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.tickets.open(cipher, &self.rules)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // They are secrets.
        f.write_str("Tickets")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test may stop at the first surprise")]
mod tests {
    use super::*;

    fn tickets() -> Tickets {
        Tickets(ArcSwap::default())
    }

    #[test]
    fn a_ticket_is_good_at_the_successor_and_for_its_time() {
        let (old, new) = (tickets(), tickets());
        let first = old.renew_at(Vec::new(), 1_000_000);
        let ticket = old.encrypt(b"a session").unwrap();
        assert_eq!(new.decrypt(&ticket), None);
        assert_eq!(new.renew_at(first.clone(), 1_000_001), first);
        assert_eq!(new.decrypt(&ticket).unwrap(), b"a session");
        let second = new.renew_at(Vec::new(), 1_000_000 + ROTATION);
        assert_eq!(second.len(), 2);
        assert_ne!(new.encrypt(b"x").unwrap()[..ID], ticket[..ID], "the newest makes tickets");
        assert_eq!(new.decrypt(&ticket).unwrap(), b"a session");
        let third = new.renew_at(Vec::new(), 1_000_000 + LIFETIME);
        assert!(!third.contains(&first[0]));
        assert_eq!(new.decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_is_good_under_its_own_rules_alone() {
        let tickets = Arc::new(tickets());
        _ = tickets.renew_at(Vec::new(), 5);
        let bound = |rules| Bound { tickets: tickets.clone(), rules: [rules; 32] };
        let (open, first) = (tickets.encrypt(b"open").unwrap(), bound(1).encrypt(b"first").unwrap());
        assert_eq!(bound(1).decrypt(&first).unwrap(), b"first");
        assert_eq!(bound(2).decrypt(&first), None);
        assert_eq!(tickets.decrypt(&first), None);
        assert_eq!(bound(1).decrypt(&open), None);
    }

    #[test]
    fn what_is_no_ticket_of_ours_is_none() {
        let tickets = tickets();
        _ = tickets.renew_at(Vec::new(), 5);
        let good = tickets.encrypt(b"a session").unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(tickets.decrypt(&bad), None, "{at}");
            assert_eq!(tickets.decrypt(&good[..at]), None, "{at}");
        }
    }
}
