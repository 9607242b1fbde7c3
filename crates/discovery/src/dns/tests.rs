//! Against a DNS server of some lines, on the loopback.

use std::cell::RefCell;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::{Message, MessageType, ResponseCode};
use hickory_resolver::proto::rr::{Name, Record};
use tokio::net::UdpSocket;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::*;
use crate::{Discovery, Found};

/// What the server knows: (name, time to live, data); or what it answers to everything.
#[derive(Default)]
struct Zone {
    records: Vec<(&'static str, u32, RData)>,
    broken: Option<ResponseCode>,
    /// Of this kind nothing is answered at all.
    silent: Option<RecordType>,
    asked: usize,
}

fn a(last: u8) -> RData {
    RData::A(Ipv4Addr::new(10, 0, 0, last).into())
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(SRV::new(priority, weight, port, Name::from_utf8(target).unwrap()))
}

async fn server() -> (TokioResolver, Rc<RefCell<Zone>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = socket.local_addr().unwrap().port();
    let zone = Rc::new(RefCell::new(Zone::default()));
    let known = zone.clone();
    tokio::task::spawn_local(async move {
        let mut buffer = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let question = Message::from_vec(&buffer[..length]).unwrap();
            let answer = {
                let mut zone = known.borrow_mut();
                zone.asked += 1;
                answer(&zone, &question)
            };
            if let Some(answer) = answer {
                socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
            }
        }
    });
    let mut connection = ConnectionConfig::udp();
    connection.port = port;
    let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
    let search = vec![Name::from_utf8("elsewhere.example.").unwrap()];
    let config = ResolverConfig::from_parts(None, search, vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    tune(builder.options_mut());
    builder.options_mut().timeout = Duration::from_millis(200);
    builder.options_mut().attempts = 1;
    (builder.build().unwrap(), zone)
}

fn answer(zone: &Zone, question: &Message) -> Option<Message> {
    let query = question.queries.first().unwrap();
    if zone.silent == Some(query.query_type()) {
        return None;
    }
    let mut answer = question.clone();
    answer.metadata.message_type = MessageType::Response;
    let is_asked = |name: &str| Name::from_utf8(name).unwrap() == *query.name();
    let code = match zone.broken {
        Some(code) => code,
        None if zone.records.iter().any(|(name, ..)| is_asked(name)) => ResponseCode::NoError,
        None => ResponseCode::NXDomain,
    };
    answer.metadata.response_code = code;
    for (name, ttl, data) in &zone.records {
        if zone.broken.is_none() && is_asked(name) && data.record_type() == query.query_type() {
            answer.answers.push(Record::from_rdata(Name::from_utf8(name).unwrap(), *ttl, data.clone()));
        }
    }
    Some(answer)
}

fn addresses_of(host: &str) -> Dns {
    Dns { query: Query::Addresses { host: host.into(), port: 80 }, interval: Duration::from_secs(30) }
}

fn shown(targets: &[Target]) -> Vec<String> {
    targets.iter().map(|target| format!("{} {} {}", target.address, target.weight, target.tier)).collect()
}

#[tokio::test(flavor = "local")]
async fn every_address_of_a_name_is_a_vm() {
    let (resolver, zone) = server().await;
    let six = RData::AAAA("fd00::1".parse::<std::net::Ipv6Addr>().unwrap().into());
    zone.borrow_mut().records =
        vec![("vms.lan.", 60, a(2)), ("vms.lan.", 60, a(1)), ("vms.lan.", 7, six), ("four.lan.", 60, a(4))];
    let (targets, valid) = addresses_of("vms.lan.").look_up(&resolver).await.unwrap();
    assert_eq!(shown(&targets), ["10.0.0.1:80 1 0", "10.0.0.2:80 1 0", "[fd00::1]:80 1 0"]);
    assert!((5..=7).contains(&valid.as_secs()), "the shortest of all: {valid:?}");
    let (targets, _) = addresses_of("four.lan.").look_up(&resolver).await.unwrap();
    assert_eq!(shown(&targets), ["10.0.0.4:80 1 0"], "it need not have both kinds");
    // Without the dot at its end it is the same name, and nobody of the search list is taken for it.
    let six = RData::AAAA("fd00::bad".parse::<std::net::Ipv6Addr>().unwrap().into());
    zone.borrow_mut().records.push(("four.lan.elsewhere.example.", 60, six));
    let (targets, _) = addresses_of("four.lan").look_up(&resolver).await.unwrap();
    assert_eq!(shown(&targets), ["10.0.0.4:80 1 0"]);
    zone.borrow_mut().records.push(("short.elsewhere.example.", 60, a(5)));
    let (targets, _) = addresses_of("short").look_up(&resolver).await.unwrap();
    assert_eq!(shown(&targets), ["10.0.0.5:80 1 0"], "one without a dot is completed");

    assert_eq!(addresses_of("none.lan.").look_up(&resolver).await, Err("there is no such name".to_owned()));
    zone.borrow_mut().records.push(("text.lan.", 60, RData::SRV(SRV::new(0, 0, 1, Name::root()))));
    assert_eq!(addresses_of("text.lan.").look_up(&resolver).await, Err("it has no address".to_owned()));
    // IPv6 VMs alone would be half of them.
    zone.borrow_mut().silent = Some(RecordType::A);
    assert!(addresses_of("vms.lan.").look_up(&resolver).await.is_err());
}

#[tokio::test(flavor = "local")]
async fn services_have_ports_weights_and_tiers() {
    let (resolver, zone) = server().await;
    zone.borrow_mut().records = vec![
        ("_http._tcp.lan.", 60, srv(20, 0, 8081, "b.lan.")),
        ("_http._tcp.lan.", 60, srv(10, 3, 8080, "a.lan.")),
        ("_http._tcp.lan.", 60, srv(10, 0, 8082, "b.lan.")),
        ("_http._tcp.lan.", 60, srv(10, 5, 80, ".")),
        ("a.lan.", 9, a(1)),
        ("b.lan.", 60, a(2)),
    ];
    let dns =
        |name: &str| Dns { query: Query::Services { name: name.into() }, interval: Duration::from_secs(30) };
    let (targets, valid) = dns("_http._tcp.lan.").look_up(&resolver).await.unwrap();
    assert_eq!(shown(&targets), ["10.0.0.1:8080 3 0", "10.0.0.2:8081 1 1", "10.0.0.2:8082 1 0"]);
    assert!((7..=9).contains(&valid.as_secs()), "{valid:?}");
    assert!(dns("_http._tcp.lan").look_up(&resolver).await.is_ok());
    assert!(dns("_none._tcp.lan.").look_up(&resolver).await.is_err());
    assert_eq!(dns("a.lan.").look_up(&resolver).await, Err("it has no SRV record".to_owned()));
    // A target that cannot be found now may be there all the same.
    zone.borrow_mut().records.push(("_http._tcp.lan.", 60, srv(10, 1, 80, "gone.lan.")));
    assert!(dns("_http._tcp.lan.").look_up(&resolver).await.is_err());
}

async fn found(inbox: &mut UnboundedReceiver<Found>) -> Vec<String> {
    let found = tokio::time::timeout(Duration::from_secs(20), inbox.recv()).await.expect("a report").unwrap();
    assert_eq!(&*found.pool, "api");
    shown(&found.members)
}

#[tokio::test(flavor = "local")]
async fn changes_are_told_and_failures_change_nothing() {
    let (resolver, zone) = server().await;
    zone.borrow_mut().records = vec![("vms.lan.", 1, a(1))];
    let (sender, mut inbox) = unbounded_channel();
    let mut discovery = Discovery::with(resolver, sender);
    let pool: Arc<str> = "api".into();
    discovery.follow([(pool.clone(), addresses_of("vms.lan."))]);
    assert_eq!(found(&mut inbox).await, ["10.0.0.1:80 1 0"]);
    // Its time to live is shorter than the interval, so it is asked about again soon.
    zone.borrow_mut().records.push(("vms.lan.", 1, a(2)));
    assert_eq!(found(&mut inbox).await, ["10.0.0.1:80 1 0", "10.0.0.2:80 1 0"]);
    for code in [ResponseCode::ServFail, ResponseCode::NXDomain, ResponseCode::Refused] {
        zone.borrow_mut().broken = Some(code);
        let asked = zone.borrow().asked;
        while zone.borrow().asked < asked + 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(inbox.try_recv().is_err(), "{code}: those found last go on");
    }
    zone.borrow_mut().broken = None;
    let gone = zone.borrow_mut().records.remove(0);
    let asked = zone.borrow().asked;
    // An answer may hold a part of them.
    while zone.borrow().asked < asked + 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    zone.borrow_mut().records.insert(0, gone);
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(inbox.try_recv().is_err(), "it was missing in one answer");
    zone.borrow_mut().records.remove(0);
    assert_eq!(found(&mut inbox).await, ["10.0.0.2:80 1 0"]);
    // The same again is no news, nor is another pool a reason to begin anew.
    let asked = zone.borrow().asked;
    discovery.follow([(pool, addresses_of("vms.lan."))]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(zone.borrow().asked <= asked + 2 && inbox.try_recv().is_err());
    discovery.follow([]);
    let asked = zone.borrow().asked;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(zone.borrow().asked <= asked + 2, "nobody asks any more");
}
