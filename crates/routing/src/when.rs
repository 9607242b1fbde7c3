//! The conditions of a route beside its path.
//!
//! They choose between VMs; they are not access control, for a request that fails them goes to the next
//! route.

use std::net::IpAddr;

use http::{HeaderName, Method};
use ipnet::IpNet;

use crate::route::RequestView;
use crate::{cookie, query};

/// All of these must hold; an empty list asks nothing.
#[derive(Clone, Debug, Default)]
pub struct When {
    /// One of these. `GET` does not include `HEAD`.
    pub methods: Vec<Method>,
    pub headers: Vec<(HeaderName, Condition)>,
    /// By name, which is case-sensitive.
    pub cookies: Vec<(Box<str>, Condition)>,
    /// By decoded name.
    pub query: Vec<(Box<str>, Condition)>,
    /// The client is in one of these networks.
    pub client_ips: Vec<IpNet>,
    /// Whether it has shown a certificate that is good.
    pub client_cert: Option<bool>,
}

/// What is asked of a named value. A name may occur several times: one occurrence that fits is enough.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// Written `true`.
    Present,
    /// Written `false`.
    Absent,
    Matches(TextMatch),
}

/// What is asked of a text.
#[derive(Clone, Debug)]
pub enum TextMatch {
    Equals(Box<str>),
    /// Found anywhere in it. A value that is no UTF-8 does not match.
    Regex(regex::Regex),
}

impl TextMatch {
    fn fits(&self, value: &[u8]) -> bool {
        match self {
            TextMatch::Equals(text) => text.as_bytes() == value,
            TextMatch::Regex(regex) => std::str::from_utf8(value).is_ok_and(|value| regex.is_match(value)),
        }
    }
}

/// By kind and text.
impl PartialEq for TextMatch {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (TextMatch::Equals(a), TextMatch::Equals(b)) => a == b,
            (TextMatch::Regex(a), TextMatch::Regex(b)) => a.as_str() == b.as_str(),
            _ => false,
        }
    }
}

impl Condition {
    fn holds<V: AsRef<[u8]>>(&self, mut values: impl Iterator<Item = V>) -> bool {
        match self {
            Condition::Present => values.next().is_some(),
            Condition::Absent => values.next().is_none(),
            Condition::Matches(text) => values.any(|value| text.fits(value.as_ref())),
        }
    }

    /// Whether this holds wherever `other` holds.
    fn implied_by(&self, other: &Condition) -> bool {
        match (self, other) {
            (Condition::Present, Condition::Matches(_)) => true,
            (Condition::Matches(TextMatch::Regex(regex)), Condition::Matches(TextMatch::Equals(text))) => {
                regex.is_match(text)
            }
            (mine, theirs) => mine == theirs,
        }
    }
}

impl When {
    /// Whether it holds for every request.
    pub fn is_empty(&self) -> bool {
        self.keys() == 0
    }

    /// How many conditions there are: of two routes with the same path the one with more is asked first. A
    /// list of methods or of networks is one condition.
    pub fn keys(&self) -> usize {
        usize::from(!self.methods.is_empty())
            + self.headers.len()
            + self.cookies.len()
            + self.query.len()
            + usize::from(!self.client_ips.is_empty())
            + usize::from(self.client_cert.is_some())
    }

    /// Whether the route may answer this request.
    pub fn holds(&self, view: &RequestView<'_>) -> bool {
        self.method_holds(view.method) && self.others_hold(view)
    }

    pub(crate) fn method_holds(&self, method: &Method) -> bool {
        self.methods.is_empty() || self.methods.contains(method)
    }

    /// Everything but the methods.
    pub(crate) fn others_hold(&self, view: &RequestView<'_>) -> bool {
        self.headers.iter().all(|(name, asked)| asked.holds(view.headers.get_all(name).iter()))
            && self.cookies.iter().all(|(name, asked)| asked.holds(cookie::values(view.headers, name)))
            && self.query.iter().all(|(name, asked)| asked.holds(query::values(view.query, name)))
            && (self.client_ips.is_empty() || within(&self.client_ips, view.client_ip))
            && self.client_cert.is_none_or(|asked| asked == view.client_cert)
    }

    /// Whether this certainly holds wherever `other` holds. False where it cannot be told.
    pub(crate) fn implied_by(&self, other: &When) -> bool {
        fn all<N: PartialEq>(mine: &[(N, Condition)], theirs: &[(N, Condition)]) -> bool {
            mine.iter().all(|(name, asked)| {
                theirs.iter().any(|(other, condition)| name == other && asked.implied_by(condition))
            })
        }
        let methods = self.methods.is_empty()
            || (!other.methods.is_empty()
                && other.methods.iter().all(|method| self.methods.contains(method)));
        let client_ips = self.client_ips.is_empty()
            || (!other.client_ips.is_empty()
                && other.client_ips.iter().all(|net| {
                    let net = canonical(net);
                    self.client_ips.iter().any(|wider| canonical(wider).contains(&net))
                }));
        methods
            && client_ips
            && (self.client_cert.is_none() || self.client_cert == other.client_cert)
            && all(&self.headers, &other.headers)
            && all(&self.cookies, &other.cookies)
            && all(&self.query, &other.query)
    }
}

/// A client that came through a dual-stack socket has a v4-mapped address, and an operator may have written
/// a v4-mapped network: both mean the IPv4 ones. `::/0` and other wide networks stay IPv6.
fn within(nets: &[IpNet], ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    nets.iter().any(|net| canonical(net).contains(&ip))
}

fn canonical(net: &IpNet) -> IpNet {
    if let IpNet::V6(v6) = net
        && let Some(bits) = v6.prefix_len().checked_sub(96)
        && let Some(address) = v6.addr().to_ipv4_mapped()
        && let Ok(v4) = ipnet::Ipv4Net::new(address, bits)
    {
        return v4.into();
    }
    *net
}

#[cfg(test)]
mod tests {
    use http::header::COOKIE;
    use http::{HeaderMap, HeaderValue};

    use super::*;

    const GET: Method = Method::GET;

    fn equals(text: &str) -> Condition {
        Condition::Matches(TextMatch::Equals(text.into()))
    }

    fn regex(text: &str) -> Condition {
        Condition::Matches(TextMatch::Regex(regex::Regex::new(text).unwrap()))
    }

    fn view<'a>(headers: &'a HeaderMap, query: Option<&'a str>, client_ip: &str) -> RequestView<'a> {
        RequestView {
            method: &GET,
            path: "/",
            query,
            headers,
            client_ip: client_ip.parse().unwrap(),
            client_cert: false,
        }
    }

    fn nets(list: &[&str]) -> Vec<IpNet> {
        list.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn an_empty_when_always_holds() {
        let when = When::default();
        assert!(when.is_empty());
        assert!(when.holds(&view(&HeaderMap::new(), None, "::1")));
    }

    #[test]
    fn keys_are_counted_by_leaf() {
        let when = When {
            methods: vec![Method::GET, Method::POST],
            headers: vec![
                ("x-canary".parse().unwrap(), equals("1")),
                ("x-b".parse().unwrap(), Condition::Absent),
            ],
            cookies: vec![("beta".into(), Condition::Present)],
            query: vec![("v".into(), regex("^2"))],
            client_ips: nets(&["10.0.0.0/8", "::1/128"]),
            client_cert: None,
        };
        assert_eq!(when.keys(), 6);
        assert!(!when.is_empty());
    }

    #[test]
    fn methods_are_literal() {
        let when = When { methods: vec![Method::GET], ..When::default() };
        assert!(when.method_holds(&Method::GET));
        assert!(!when.method_holds(&Method::HEAD));
    }

    #[test]
    fn any_field_line_may_match() {
        let mut headers = HeaderMap::new();
        headers.append("x-canary", HeaderValue::from_static("0"));
        headers.append("x-canary", HeaderValue::from_static("1"));
        headers.append("x-bytes", HeaderValue::from_bytes(b"\xff1").unwrap());
        let holds = |name: &str, condition: Condition| {
            let when = When { headers: vec![(name.parse().unwrap(), condition)], ..When::default() };
            when.holds(&view(&headers, None, "::1"))
        };
        assert!(holds("x-canary", equals("1")));
        assert!(holds("x-canary", Condition::Present));
        assert!(!holds("x-canary", Condition::Absent));
        assert!(!holds("x-canary", equals("2")));
        assert!(!holds("x-none", Condition::Present));
        assert!(holds("x-none", Condition::Absent));
        assert!(!holds("x-bytes", regex("1")), "no UTF-8, no match");
        assert!(holds("x-canary", regex("^[1]$")));
    }

    #[test]
    fn cookies_and_parameters() {
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, HeaderValue::from_static("a=1; beta="));
        headers.append(COOKIE, HeaderValue::from_static("c=3"));
        let cookie = |name: &str, condition: Condition| {
            let when = When { cookies: vec![(name.into(), condition)], ..When::default() };
            when.holds(&view(&headers, None, "::1"))
        };
        assert!(cookie("beta", Condition::Present));
        assert!(cookie("c", equals("3")));
        assert!(!cookie("A", Condition::Present));
        assert!(cookie("A", Condition::Absent));

        let query = |condition: Condition| {
            let when = When { query: vec![("v w".into(), condition)], ..When::default() };
            when.holds(&view(&headers, Some("x=1&v+w=2%2E0"), "::1"))
        };
        assert!(query(equals("2.0")));
        assert!(query(regex("^2")));
        assert!(!query(equals("2%2E0")));
        assert!(!query(Condition::Absent));
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let headers = HeaderMap::new();
        let holds = |net: &str, ip: &str| {
            When { client_ips: nets(&[net]), ..When::default() }.holds(&view(&headers, None, ip))
        };
        assert!(holds("10.0.0.0/8", "10.1.2.3"));
        assert!(holds("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(holds("::ffff:10.0.0.0/104", "10.1.2.3"));
        assert!(holds("::ffff:10.0.0.0/104", "::ffff:10.1.2.3"));
        assert!(!holds("10.0.0.0/8", "11.1.2.3"));
        assert!(!holds("::/0", "::ffff:10.1.2.3"), "all of IPv6 is not all of IPv4");
        assert!(holds("2001:db8::/32", "2001:db8::1"));
    }

    #[test]
    fn who_has_shown_a_certificate() {
        let headers = HeaderMap::new();
        let view = |client_cert| RequestView { client_cert, ..view(&headers, None, "::1") };
        for (asked, with, without) in
            [(None, true, true), (Some(true), true, false), (Some(false), false, true)]
        {
            let when = When { client_cert: asked, ..When::default() };
            assert_eq!((when.holds(&view(true)), when.holds(&view(false))), (with, without), "{asked:?}");
            assert_eq!(when.keys(), usize::from(asked.is_some()));
        }
    }

    #[test]
    fn implication() {
        let header =
            |condition| When { headers: vec![("x-a".parse().unwrap(), condition)], ..When::default() };
        let methods = |list: &[Method]| When { methods: list.to_vec(), ..When::default() };
        let ips = |list: &[&str]| When { client_ips: nets(list), ..When::default() };
        let certified = |asked| When { client_cert: Some(asked), ..When::default() };
        let empty = When::default();

        for (wide, narrow) in [
            (&empty, &empty),
            (&empty, &header(equals("1"))),
            (&header(equals("1")), &header(equals("1"))),
            (&header(Condition::Present), &header(equals("1"))),
            (&header(regex("^1")), &header(regex("^1"))),
            (&header(regex("^1")), &header(equals("12"))),
            (&methods(&[Method::GET, Method::POST]), &methods(&[Method::GET])),
            (&ips(&["10.0.0.0/8"]), &ips(&["10.1.0.0/16", "::ffff:10.2.0.0/112"])),
            (&empty, &certified(true)),
            (&certified(false), &certified(false)),
        ] {
            assert!(wide.implied_by(narrow), "{wide:?} {narrow:?}");
        }
        for (one, other) in [
            (&header(equals("1")), &empty),
            (&certified(true), &empty),
            (&certified(true), &certified(false)),
            (&header(equals("1")), &header(equals("2"))),
            (&header(equals("1")), &header(Condition::Present)),
            (&header(regex("^1")), &header(equals("2"))),
            (&header(Condition::Absent), &header(equals("1"))),
            (&methods(&[Method::GET]), &empty),
            (&methods(&[Method::GET]), &methods(&[Method::GET, Method::POST])),
            (&ips(&["10.1.0.0/16"]), &ips(&["10.0.0.0/8"])),
        ] {
            assert!(!one.implied_by(other), "{one:?} {other:?}");
        }
    }
}
