//! aioquic: QUIC and HTTP/3 in Python.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use foregate_tests::{
    Delivery, Fields, digest_of, eventually,
    foreign::{Running, Trust, said, told},
    gateway, origin,
};
use serde_json::{Value, json};
use tokio::sync::{Barrier, Notify};

use super::{MIB, client, generated, scene};

#[tokio::test]
async fn aioquic_gets_and_posts() {
    let (vm, gw, trust) = scene().await;
    let file = generated(&trust, 5 * MIB);
    let answer = told(&mut client("aioquic_client.py", &gw, &trust, &["get", "--path", "/echo?x"])).await;
    assert_eq!((&answer["status"], &answer["text"]), (&json!(200), &json!("/echo?x")), "{answer}");
    assert_eq!(vm.only().fields.all("via"), ["3 foregate"]);

    let answer = told(&mut client("aioquic_client.py", &gw, &trust, &["get", "--path", "/large"])).await;
    assert_eq!(answer["sha256"], json!(digest_of(20 * MIB)), "{answer}");

    vm.forget();
    let posting = ["post", "--path", "/up", "--file", &file];
    let answer = told(&mut client("aioquic_client.py", &gw, &trust, &posting)).await;
    assert_eq!((&answer["status"], &answer["text"]), (&json!(200), &json!("a\n")), "{answer}");
    let asked = vm.only();
    assert_eq!((asked.length, asked.digest), (5 * MIB, digest_of(5 * MIB)));
    gw.stop().await;
}

#[tokio::test]
async fn aioquic_asks_fifty_things_at_once_on_one_connection() {
    const COUNT: usize = 50;
    let all_here = Arc::new(Barrier::new(COUNT));
    let vm = origin()
        .on("/", move |call| {
            let all_here = all_here.clone();
            Box::pin(async move {
                // None is answered before all were asked, so all are under way at once.
                all_here.wait().await;
                let target = call.request.target.clone();
                call.reply(200, &Fields::new(), target).await;
            })
        })
        .start()
        .await;
    let gw = gateway().site("shop.test", &vm).start().await;
    let trust = Trust::new();
    let count = COUNT.to_string();
    let asking = ["parallel", "--path", "/item/", "--count", &count];
    let told = told(&mut client("aioquic_client.py", &gw, &trust, &asking)).await;
    let answers = told["answers"].as_array().unwrap();
    assert_eq!(answers.len(), COUNT);
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!((&answer["status"], &answer["text"]), (&json!(200), &json!(format!("/item/{number}"))));
    }
    gw.stop().await;
}

/// Four connections on one socket, and first ids as long as the gateway's own: each is its worker's for good, also
/// when all of them come from another port, and then from other addresses.
#[tokio::test]
async fn aioquic_shares_a_socket_and_moves() {
    const MOVES: [&str; 3] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
    const LARGE: u64 = MIB / 2;
    let vm = origin()
        .named("a")
        .on("/large", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), Some(LARGE)).await;
                let _ = call.write_pattern(LARGE).await;
                call.finish(&Fields::new()).await;
            })
        })
        .on("/whoami", |call| {
            Box::pin(async move {
                let client = call.request.fields.all("x-forwarded-for").join(" ");
                call.reply(200, &Fields::new(), client).await;
            })
        })
        .start()
        .await;
    for validation in ["auto", "always"] {
        let http3 = format!("[http3]\naddress_validation = {validation:?}");
        let gw = gateway().server("workers", "3").site("shop.test", &vm).toml(&http3).start().await;
        let asking = ["--path", "/whoami", "--large", "/large", "--moves", MOVES[0], MOVES[1], MOVES[2]];
        let told = told(&mut client("aioquic_crowd.py", &gw, &Trust::new(), &asking)).await;
        let four = |answers: &Value, key: &str, allowed: &[Value]| {
            let answers = answers.as_array().unwrap();
            assert_eq!(answers.len(), 4, "{told}");
            assert!(answers.iter().all(|answer| allowed.contains(&answer[key])), "{validation}: {told}");
        };
        four(&told["before"], "text", &[json!("127.0.0.1")]);
        let mut old = "127.0.0.1";
        for (number, new) in MOVES.into_iter().enumerate() {
            let moved = &told["moves"][number];
            for answers in moved["asked"].as_array().unwrap() {
                // Until the new address is proven, they are the old one's.
                four(answers, "text", &[json!(old), json!(new)]);
            }
            four(&moved["large"], "sha256", &[json!(digest_of(LARGE))]);
            old = new;
        }
        assert_eq!(told["ended"], json!([null, null, null, null]), "{told}");
        gw.stop().await;
    }
}

/// RFC 8446, section 2.3: what it asks for when it comes back is in its first packets, and answered at once.
#[tokio::test]
async fn aioquic_comes_back_with_0_rtt() {
    let trust = Trust::new();
    let mark = trust.path("mark");
    let asked = mark.clone();
    let vm = origin()
        .named("a")
        .on("/early", move |call| {
            // From now on the client hears what the gateway says.
            std::fs::write(&asked, "").unwrap();
            Box::pin(call.greet())
        })
        .start()
        .await;
    let gw = gateway().site("shop.test", &vm).toml("[defaults.sites]\nearly_data = true").start().await;
    let coming = ["--path", "/early", "--mark", &mark];
    let told = told(&mut client("aioquic_early.py", &gw, &trust, &coming)).await;
    assert_eq!(told["accepted"], json!(true), "{told}");
    for answer in ["before", "early", "after"] {
        assert_eq!((&told[answer]["status"], &told[answer]["text"]), (&json!(200), &json!("a\n")), "{told}");
    }
    let early: Vec<_> = vm.requests().into_iter().map(|r| (r.target, r.fields.has("early-data"))).collect();
    assert_eq!(early, [("/before".into(), false), ("/early".into(), true), ("/after".into(), false)]);
    gw.stop().await;
}

#[tokio::test]
async fn aioquic_opens_a_websocket() {
    let vm = origin().named("a").on("/ws", |call| Box::pin(call.websocket())).start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    let told = told(&mut client("aioquic_websocket.py", &gw, &Trust::new(), &["--path", "/ws?room=1"])).await;
    assert_eq!(told["head"][":status"], json!("200"), "{told}");
    assert_eq!(told["head"]["sec-websocket-protocol"], json!("chat"), "{told}");
    let texts: Vec<String> = (0..20).map(|number| format!("message {number}")).collect();
    assert_eq!(told["texts"], json!(texts), "{told}");
    assert_eq!(
        (&told["same"], &told["closed"], &told["fin"]),
        (&json!(true), &json!(1000), &json!(true)),
        "{told}"
    );
    assert_eq!(told["beside"]["status"], json!(200), "{told}");
    let socket = vm
        .saw("the end of the socket", |r| r.target == "/ws?room=1" && r.delivery == Delivery::Complete)
        .await;
    assert_eq!(socket.fields.all("via"), ["3 foregate"]);
    assert!(socket.fields.lists("upgrade", "websocket"), "{:?}", socket.fields);
    gw.stop().await;
}

/// The VM of its WebSocket is to have no more work.
#[tokio::test]
async fn aioquic_is_told_that_its_websocket_is_over() {
    let vm = origin().named("a").on("/ws", |call| Box::pin(call.websocket())).start().await;
    let lease = foregate_tests::lease();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", lease.port)).await.unwrap();
    let drains = Arc::new(AtomicBool::new(false));
    let flag = drains.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let line: &[u8] = if flag.load(Ordering::SeqCst) { b"drain\n" } else { b"up\n" };
            _ = tokio::io::AsyncWriteExt::write_all(&mut stream, line).await;
        }
    });
    let toml = format!(
        "[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nbackends = [{:?}]\n\
         agent = {{ port = {}, interval = \"100ms\" }}\n[server.timeouts]\ndrain = \"1s\"\n",
        vm.address(),
        lease.port
    );
    let gw = gateway().named(&["shop.test"]).toml(&toml).start().await;
    let (socket, trust) = (["--path", "/ws", "--stay"], Trust::new());
    let mut client = client("aioquic_websocket.py", &gw, &trust, &socket);
    let staying = told(&mut client);
    let draining = async {
        vm.saw("the socket", |r| r.target == "/ws").await;
        drains.store(true, Ordering::SeqCst);
    };
    let (told, ()) = tokio::join!(staying, draining);
    assert_eq!(
        (&told["text"], &told["closed"], &told["fin"]),
        (&json!("hello"), &json!(1001), &json!(true)),
        "{told}"
    );
    vm.saw("the end of the socket", |r| r.delivery == Delivery::Complete).await;
    gw.stop().await;
}

#[tokio::test]
async fn aioquic_is_told_to_go_away_and_still_gets_its_answer() {
    let release = Arc::new(Notify::new());
    let bell = release.clone();
    let vm = origin()
        .named("a")
        .on("/held", move |call| {
            let bell = bell.clone();
            Box::pin(async move {
                bell.notified().await;
                call.greet().await;
            })
        })
        .start()
        .await;
    let mut gw = gateway().site("shop.test", &vm).start().await;
    let trust = Trust::new();
    let asking = ["drain", "--path", "/held"];
    let mut run = Running::start(&mut client("aioquic_client.py", &gw, &trust, &asking));
    eventually("the request is at the VM", || {
        assert!(!run.has_ended(), "the client ended early");
        (!vm.requests().is_empty()).then_some(())
    })
    .await;
    gw.terminate();
    let lines = run.printed(1).await;
    assert!(gw.process.ended().is_none(), "it ended with a request in flight");
    let announced = lines.first().and_then(|line| said(line));
    assert!(announced.is_some_and(|a| a.get("goaway").is_some()), "{lines:?}: {:#?}", run.finish().await);
    release.notify_one();

    let done = run.finish().await;
    let told = said(done.lines().last().unwrap()).unwrap();
    assert_eq!(told["waited"], json!(true), "{told}");
    assert_eq!((&told["first"]["status"], &told["first"]["text"]), (&json!(200), &json!("a\n")), "{told}");
    // What was asked after it was told: H3_REQUEST_REJECTED, so that it may be asked again elsewhere.
    assert_eq!(told["late"]["reset"], json!(0x010b), "{told}");
    let last = told["goaways"].as_array().unwrap().last().unwrap().as_u64().unwrap();
    assert!(last > told["stream"].as_u64().unwrap(), "{told}");
    assert!(last <= told["late_stream"].as_u64().unwrap(), "{told}");
    assert_eq!(vm.requests().len(), 1, "what was rejected never came to the VM");
    gw.ended().await;
}
