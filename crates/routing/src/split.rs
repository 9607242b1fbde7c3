//! One route, several pools: a canary gets its five percent, and who got it once gets it again.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};

use crate::cookie;
use crate::dice::{Purpose, below, digest, mix};
use crate::pool::{Pool, of_client};
use crate::route::RequestView;

/// What of a request decides on its arm.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SplitOn {
    #[default]
    ClientIp,
    /// The value of a cookie, which is set when it is absent.
    Cookie(Box<str>),
    /// The value of a header; the client's address where it is absent.
    Header(HeaderName),
    /// Nothing: every request is drawn anew.
    Request,
}

/// Pools with weights.
///
/// What decides is hashed without the name of the route, so that a client who sees the new shop is also
/// served by the new API, as long as both are split alike.
#[derive(Clone, Debug)]
pub struct Split {
    /// The pools with the sum of the weights up to and including each.
    arms: Box<[(Arc<Pool>, u64)]>,
    /// The last arm: who takes all when every weight is 0.
    last: Arc<Pool>,
    total: u64,
    on: SplitOn,
}

impl Split {
    /// Without arms: to a pool without members.
    pub(crate) fn new(arms: impl IntoIterator<Item = (Arc<Pool>, u32)>, on: SplitOn) -> Split {
        let mut total = 0;
        let sum = |(pool, weight): (Arc<Pool>, u32)| {
            total += u64::from(weight);
            (pool, total)
        };
        let arms: Box<[_]> = arms.into_iter().map(sum).collect();
        let last = arms.last().map_or_else(|| Arc::new(Pool::missing()), |(pool, _)| Arc::clone(pool));
        Split { arms, last, total, on }
    }

    /// All its pools, in the order of the file.
    pub fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.arms.iter().map(|(pool, _)| pool)
    }

    /// The pool for this request, and the `Set-Cookie` value to add to its response, if any. An arm of
    /// weight 0 gets nothing. `dice` is a fresh random number.
    pub fn choose(&self, view: &RequestView<'_>, dice: u64) -> (&Arc<Pool>, Option<HeaderValue>) {
        match &self.on {
            SplitOn::ClientIp => (self.arm(of_client(Purpose::Split, view)), None),
            SplitOn::Request => (self.arm(mix(dice)), None),
            SplitOn::Header(name) => {
                let named = view.headers.get(name).map(|value| digest(Purpose::Split, value.as_bytes()));
                (self.arm(named.unwrap_or_else(|| of_client(Purpose::Split, view))), None)
            }
            SplitOn::Cookie(name) => {
                let sent = cookie::values(view.headers, name).find(|value| !value.is_empty());
                if let Some(value) = sent {
                    return (self.arm(digest(Purpose::Split, value)), None);
                }
                // The token itself decides, now and when it comes back. A session cookie: after a roll-out
                // it is gone with the browser's session.
                let token = format!("{:016x}", mix(dice));
                let set = format!("{name}={token}; Path=/; HttpOnly; SameSite=Lax");
                (self.arm(digest(Purpose::Split, token.as_bytes())), HeaderValue::try_from(set).ok())
            }
        }
    }

    fn arm(&self, hash: u64) -> &Arc<Pool> {
        let point = below(hash, self.total);
        self.arms.iter().find(|(_, sum)| point < *sum).map_or(&self.last, |(pool, _)| pool)
    }
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;
    use http::{HeaderMap, Method};

    use super::*;
    use crate::{PoolSpec, Snapshot, SnapshotBuilder};

    fn snapshot() -> Snapshot {
        let mut builder = SnapshotBuilder::new(None);
        for name in ["old", "new", "none"] {
            builder.add_pool(PoolSpec::new(name, Vec::new()));
        }
        builder.build()
    }

    fn split(weights: &[u32], on: SplitOn) -> Split {
        let snapshot = snapshot();
        let arms: Vec<_> = snapshot.pools().iter().cloned().zip(weights.iter().copied()).collect();
        Split::new(arms, on)
    }

    fn view<'a>(headers: &'a HeaderMap, client: u32) -> RequestView<'a> {
        let client_ip = std::net::Ipv4Addr::from(client).into();
        RequestView { method: &Method::GET, path: "/", query: None, headers, client_ip, client_cert: false }
    }

    #[test]
    fn clients_are_shared_by_weight_and_stay() {
        let split = split(&[95, 5, 0], SplitOn::ClientIp);
        let headers = HeaderMap::new();
        let mut new = 0;
        for client in 0..20_000 {
            let (pool, cookie) = split.choose(&view(&headers, client), 1);
            assert!(cookie.is_none());
            assert!(Arc::ptr_eq(pool, split.choose(&view(&headers, client), 2).0));
            assert_ne!(&*pool.name, "none");
            new += u32::from(&*pool.name == "new");
        }
        assert!((850..1_150).contains(&new), "{new}");
        let mapped = RequestView { client_ip: "::ffff:0.0.0.9".parse().unwrap(), ..view(&headers, 0) };
        assert!(Arc::ptr_eq(split.choose(&mapped, 0).0, split.choose(&view(&headers, 9), 0).0));
    }

    #[test]
    fn a_larger_share_only_adds_clients() {
        let (few, more) = (split(&[95, 5], SplitOn::ClientIp), split(&[90, 10], SplitOn::ClientIp));
        let headers = HeaderMap::new();
        for client in 0..5_000 {
            let view = view(&headers, client);
            if &*few.choose(&view, 0).0.name == "new" {
                assert_eq!(&*more.choose(&view, 0).0.name, "new");
            }
        }
    }

    #[test]
    fn the_cookie_that_is_set_decides_the_same() {
        let split = split(&[1, 1], SplitOn::Cookie("arm".into()));
        let mut arms = [0, 0];
        for dice in 0..2_000 {
            let first = HeaderMap::new();
            let (pool, set) = split.choose(&view(&first, 0), dice);
            let set = set.unwrap();
            let (cookie, attributes) = set.to_str().unwrap().split_once("; ").unwrap();
            assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
            let mut again = HeaderMap::new();
            again.insert(COOKIE, HeaderValue::from_str(&format!("a=b; {cookie}")).unwrap());
            let (same, set) = split.choose(&view(&again, 7), dice + 1);
            assert!(Arc::ptr_eq(pool, same));
            assert!(set.is_none());
            arms[pool.id.index()] += 1;
        }
        assert!(arms.iter().all(|count| (900..1_100).contains(count)), "{arms:?}");

        let mut empty = HeaderMap::new();
        empty.insert(COOKIE, HeaderValue::from_static("arm="));
        assert!(split.choose(&view(&empty, 0), 0).1.is_some(), "an empty value is none");
    }

    #[test]
    fn headers_decide_or_else_the_client() {
        let name = HeaderName::from_static("x-user");
        let by_ip = split(&[1, 1], SplitOn::ClientIp);
        let split = split(&[1, 1], SplitOn::Header(name.clone()));
        let mut differ = 0;
        for n in 0..200 {
            let mut headers = HeaderMap::new();
            assert_eq!(split.choose(&view(&headers, n), 0).0.id, by_ip.choose(&view(&headers, n), 0).0.id);
            headers.insert(&name, n.into());
            let chosen = split.choose(&view(&headers, 1), 0).0.id;
            assert_eq!(chosen, split.choose(&view(&headers, 2), 9).0.id);
            differ += usize::from(chosen.index() == 1);
        }
        assert!((70..130).contains(&differ), "{differ}");
    }

    #[test]
    fn requests_are_drawn_anew() {
        let split = split(&[3, 1], SplitOn::Request);
        let headers = HeaderMap::new();
        let new =
            (0..10_000).filter(|dice| split.choose(&view(&headers, 1), *dice).0.id.index() == 1).count();
        assert!((2_350..2_650).contains(&new), "{new}");
    }

    #[test]
    fn without_weights_there_is_still_an_answer() {
        let headers = HeaderMap::new();
        assert!(split(&[], SplitOn::Request).choose(&view(&headers, 1), 1).0.members().is_empty());
        assert_eq!(&*split(&[0, 0], SplitOn::Request).choose(&view(&headers, 1), 1).0.name, "new");
    }
}
