//! A cookie of ours keeps a client at its VM.

use std::fmt;
use std::fmt::Write as _;
use std::hash::Hasher;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use siphasher::sip::SipHasher24;

use super::Member;
use crate::cookie;
use crate::endpoint::Address;

/// How clients are kept at their VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sticky {
    /// The name of the cookie: a token (RFC 9110, section 5.6.2), or none is ever set.
    pub cookie: Box<str>,
    /// None: until the browser is closed.
    pub max_age: Option<Duration>,
    pub secret: Secret,
}

/// What the values of cookies are made with. Who does not know it can name no VM, and gateways that share it agree.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Secret(pub [u8; 16]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Debug)]
pub(super) struct StickyCookie {
    name: Box<str>,
    /// (value, index), sorted.
    members: Box<[(u64, usize)]>,
    /// By index: what is set over http, and what over https.
    set: Box<[[HeaderValue; 2]]>,
}

impl StickyCookie {
    /// None when the name can stand in no header.
    pub(super) fn new(pool: &str, sticky: &Sticky, members: &[Member]) -> Option<StickyCookie> {
        let values: Vec<u64> =
            members.iter().map(|member| value(&sticky.secret, pool, &member.endpoint.address)).collect();
        let set = values.iter().map(|value| {
            let mut text = format!("{}={value:016x}; Path=/; HttpOnly; SameSite=Lax", sticky.cookie);
            if let Some(max_age) = sticky.max_age {
                // Writing to a String does not fail.
                let _ = write!(text, "; Max-Age={}", max_age.as_secs());
            }
            let open = HeaderValue::from_str(&text).ok()?;
            text.push_str("; Secure");
            Some([open, HeaderValue::from_str(&text).ok()?])
        });
        let set = set.collect::<Option<_>>()?;
        let mut members: Box<[_]> = values.into_iter().zip(0..).collect();
        members.sort_unstable();
        Some(StickyCookie { name: sticky.cookie.clone(), members, set })
    }

    /// The index of the member that the request's cookie names.
    pub(super) fn named(&self, headers: &HeaderMap) -> Option<usize> {
        cookie::values(headers, &self.name).find_map(|value| {
            let value = std::str::from_utf8(value).ok().filter(|value| value.len() == 16)?;
            let value = u64::from_str_radix(value, 16).ok()?;
            let at = self.members.partition_point(|(known, _)| *known < value);
            self.members.get(at).filter(|(known, _)| *known == value).map(|(_, index)| *index)
        })
    }

    /// The `Set-Cookie` value that names a member; `secure` says that the client came by https.
    pub(super) fn naming(&self, member: usize, secure: bool) -> Option<HeaderValue> {
        let [open, sealed] = self.set.get(member)?;
        Some(if secure { sealed } else { open }.clone())
    }
}

/// Says nothing of the address, and means the same VM after every restart and behind every gateway with the same secret.
/// SipHash-2-4 is a message authentication code: 64 bits of it, tried over the network, are not guessed.
fn value(Secret(secret): &Secret, pool: &str, address: &Address) -> u64 {
    let mut hasher = SipHasher24::new_with_key(secret);
    hasher.write(format!("{pool}\0{address}").as_bytes());
    hasher.finish()
}
