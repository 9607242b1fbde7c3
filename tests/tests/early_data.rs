//! Requests in 0-RTT (RFC 8470): which are answered early, which wait, and that no recording is answered.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::time::Duration;

use foregate_tests::{
    Delivery, Dial, Direction, Fields, Gateway, GatewayBuilder, Origin, Recorded, Relay, Version, eventually,
    gateway, get,
    http3::{Answer, Connection, Head, Options, Outcome, Stream, frame::data},
    origin,
};

const EARLY: &str = "[defaults.sites]\nearly_data = true";

/// A client that has been here before, as the gateway's sessions know.
async fn returning(dial: &Dial) -> Options {
    let options = Options::returning();
    let tls = options.tls.clone();
    let first = Connection::connect(dial, options).await.unwrap();
    // The session comes after the handshake, at the latest with the first answer.
    let mut stream = first.request(Head::get("/before").frame()).await;
    assert_eq!(answer(&mut stream).await.status, 200);
    first.close();
    Options { tls, ..Options::default() }
}

/// A relay to the gateway, and the way through it.
async fn relayed(gw: &Gateway) -> (Relay, Dial) {
    let mut dial = gw.dial("shop.test");
    let relay = Relay::start(dial.https).await;
    dial.https = relay.address();
    (relay, dial)
}

/// Comes back and asks before the handshake is over: the gateway's half of it is held back until `asked`.
async fn ask_early(
    (relay, dial): &(Relay, Dial),
    options: &Options,
    bytes: Vec<u8>,
    asked: impl FnMut() -> Option<()>,
) -> Answer {
    relay.hold(true);
    let (client, accepted) = Connection::early(dial, options).expect("the gateway allows early data");
    let mut stream = client.request(bytes).await;
    eventually("the request arrives", asked).await;
    relay.hold(false);
    assert!(accepted.await, "the early data was refused");
    let answer = answer(&mut stream).await;
    client.close();
    answer
}

async fn answer(stream: &mut Stream) -> Answer {
    match stream.outcome().await {
        Outcome::Answered(answer) => *answer,
        other => panic!("{other:?}"),
    }
}

fn seen(vm: &Origin, target: &str) -> Vec<Recorded> {
    vm.requests().into_iter().filter(|request| request.target == target).collect()
}

async fn started(vm: &Origin, config: &str) -> Gateway {
    gateway().site("shop.test", vm).toml(config).start().await
}

/// What the VM is told of one request that was sent early. One that is `answered` early is so before the
/// gateway's half of the handshake has arrived.
async fn told(builder: GatewayBuilder, vm: &Origin, bytes: Vec<u8>, answered: bool) -> Recorded {
    let gw = builder.start().await;
    let way = relayed(&gw).await;
    let options = returning(&way.1).await;
    let asked = || (!answered || !seen(vm, "/early").is_empty()).then_some(());
    assert_eq!(ask_early(&way, &options, bytes, asked).await.status, 200);
    let seen = seen(vm, "/early");
    assert_eq!(seen.len(), 1);
    gw.stop().await;
    seen.into_iter().next().unwrap()
}

#[tokio::test]
async fn safe_requests_are_answered_early_and_the_vm_is_told() {
    for method in ["GET", "HEAD", "OPTIONS"] {
        let vm = origin().start().await;
        let builder = gateway().site("shop.test", &vm).toml(EARLY);
        let request = told(builder, &vm, Head::request(method, "/early").frame(), true).await;
        assert_eq!(request.fields.all("early-data"), ["1"], "{method}");
    }
}

/// They are answered too, but as what they are then: requests of a client that has proven itself.
#[tokio::test]
async fn everything_else_waits_for_the_handshake() {
    let vm = origin().start().await;
    let site = || gateway().site("shop.test", &vm);
    let early = || Head::get("/early").frame();
    let cases = [
        ("a method that changes something", site().toml(EARLY), Head::post("/early").frame()),
        ("a body", site().toml(EARLY), Head::get("/early").and(data("x"))),
        ("a trusted proxy's address", site().toml(EARLY).server("trusted_proxies", "\"127.0.0.1\""), early()),
    ];
    for (what, builder, bytes) in cases {
        vm.forget();
        let request = told(builder, &vm, bytes, false).await;
        assert!(!request.fields.has("early-data"), "{what}: {:?}", request.fields);
        assert_eq!(request.delivery, Delivery::Complete, "{what}");
    }
}

#[tokio::test]
async fn nobody_is_offered_it_by_default_and_where_it_would_wait_anyway() {
    let vm = origin().start().await;
    let by_address = "[[sites.\"shop.test\".routes]]\npaths = \"/office/\"\nwhen = { client_ips = \"10.0.0.0/8\" }\nrespond = { status = 200 }\n";
    let site = || gateway().site("shop.test", &vm);
    for builder in [
        site(),
        // Of another site nothing follows.
        site().toml("early_data = false").site("other.test", &vm).toml(EARLY),
        site().site("other.test", &vm).toml(EARLY).toml(by_address),
    ] {
        let gw = builder.start().await;
        let dial = gw.dial("shop.test");
        let options = returning(&dial).await;
        assert!(Connection::early(&dial, &options).is_none(), "the session allows early data");
        gw.stop().await;
    }
}

/// RFC 8470, section 5.2: a client that knows nothing of early data is not told of it.
#[tokio::test]
async fn a_vm_that_says_too_early_is_asked_again() {
    let vm = origin()
        .on("/early", |call| {
            Box::pin(async move {
                let status = if call.request.fields.has("early-data") { 425 } else { 200 };
                call.reply(status, &Fields::new(), "said").await;
            })
        })
        .start()
        .await;
    let gw = started(&vm, EARLY).await;
    let way = relayed(&gw).await;
    let options = returning(&way.1).await;
    let asked = |times| (seen(&vm, "/early").len() == times).then_some(());
    assert_eq!(ask_early(&way, &options, Head::get("/early").frame(), || asked(1)).await.status, 200);
    let told: Vec<bool> =
        seen(&vm, "/early").iter().map(|request| request.fields.has("early-data")).collect();
    assert_eq!(told, [true, false]);

    let options = returning(&way.1).await;
    let head = Head::get("/early").field("early-data", "1");
    assert_eq!(ask_early(&way, &options, head.frame(), || asked(3)).await.status, 425);
    assert_eq!(seen(&vm, "/early").len(), 3);
    gw.stop().await;
}

/// RFC 8446, section 8: whoever has recorded a client's first flight and sends it again gets nothing done.
#[tokio::test]
async fn a_recording_is_never_answered() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).toml(EARLY).server("workers", "2").start().await;
    let way = relayed(&gw).await;
    let (relay, dial) = &way;
    let options = returning(dial).await;
    let before = relay.datagrams().len();
    let asked = || (!seen(&vm, "/early").is_empty()).then_some(());
    assert_eq!(ask_early(&way, &options, Head::get("/early").frame(), asked).await.status, 200);
    assert_eq!(seen(&vm, "/early")[0].fields.all("early-data"), ["1"]);

    let begun = std::time::Instant::now();
    let flight: Vec<_> = relay.datagrams().split_off(before);
    let flight: Vec<_> = flight.iter().filter(|sent| sent.direction == Direction::ToGateway).collect();
    // Often, so that every worker meets it. As long as the gateway still knows the connection it recognises the
    // packets; later it takes them for a new client's, and answers as far as it can.
    let mut answered = 0;
    while answered < 10 {
        let replay = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        replay.connect(gw.dial("shop.test").https).await.unwrap();
        for sent in &flight {
            replay.send(&sent.payload).await.unwrap();
        }
        let mut answer = vec![0; 65_535];
        let answer = tokio::time::timeout(Duration::from_millis(200), replay.recv(&mut answer)).await;
        answered += u32::from(answer.is_ok());
        assert!(begun.elapsed() < Duration::from_secs(20), "{answered} recordings were read in 20 s");
    }
    // Whatever came of it has come to the VM before this.
    assert_eq!(gw.request(Version::H3, get("/after")).await.status, 200);
    eventually("the VM is asked", || (!seen(&vm, "/after").is_empty()).then_some(())).await;
    assert_eq!(seen(&vm, "/early").len(), 1, "the recording was answered");
    gw.stop().await;
}
