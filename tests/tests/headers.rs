//! Fields on their way through, the same for every version: what belongs to one connection stays there, what
//! is said of the client is true, and what a gateway owes is added.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use foregate_tests::{
    Client, Delivery, Error, Fields, Origin, Version, gateway, get, head, origin, post, request, within,
};

/// A VM that answers with these fields.
async fn answering(fields: Fields) -> Origin {
    origin()
        .on("/", move |call| {
            let fields = fields.clone();
            Box::pin(async move {
                let _ = call.drain().await;
                call.reply(200, &fields, "hello").await;
            })
        })
        .start()
        .await
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_request_stay_behind() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in [Version::H1, Version::H1Tls] {
        let request = get("/")
            .field("Connection", "X-Drop , keep-alive")
            .field("connection", "x-also")
            .field("X-Drop", "1")
            .field("X-Also", "1")
            .field("Keep-Alive", "timeout=5")
            .field("Proxy-Connection", "keep-alive")
            .field("Proxy-Authorization", "Basic eDp5")
            .field("TE", "gzip, deflate")
            .field("Upgrade", "TLS/1.3")
            .field("X-Keep", "1");
        assert_eq!(gw.request(version, request).await.status, 200, "{version:?}");
        let seen = vm.only().fields;
        for name in
            ["x-drop", "x-also", "keep-alive", "proxy-connection", "proxy-authorization", "te", "upgrade"]
        {
            assert!(!seen.has(name), "{version:?}: {name} in {seen:?}");
        }
        assert!(!seen.lists("connection", "x-drop") && !seen.lists("connection", "upgrade"), "{seen:?}");
        assert_eq!(seen.get("x-keep"), Some("1"), "{version:?}");
        vm.forget();
    }
    gw.stop().await;
}

/// An upgrade to another version of HTTP would hide everything that follows from the gateway.
#[tokio::test]
async fn an_upgrade_to_http2_is_not_passed_on() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in [Version::H1, Version::H1Tls] {
        for connection in ["Upgrade, HTTP2-Settings", "Upgrade", "HTTP2-Settings, Upgrade"] {
            let request = get("/")
                .field("Connection", connection)
                .field("Upgrade", "h2c")
                .field("HTTP2-Settings", "AAMAAABkAAQAAP__");
            assert_eq!(gw.request(version, request).await.status, 200, "{version:?} {connection}");
            let seen = vm.only().fields;
            assert!(
                !seen.has("upgrade") && !seen.has("http2-settings"),
                "{version:?} {connection}: {seen:?}"
            );
            vm.forget();
        }
    }
    gw.stop().await;
}

/// `Connection` must not talk the gateway out of its own fields, nor out of the framing.
#[tokio::test]
async fn connection_cannot_name_the_gateways_own_fields() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in [Version::H1, Version::H1Tls] {
        let request = post("/", "hello").field(
            "Connection",
            "X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, Via, X-Request-Id, Host, close",
        );
        assert_eq!(gw.request(version, request).await.status, 200, "{version:?}");
        let seen = vm.only();
        for name in
            ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "via", "x-request-id", "host"]
        {
            assert!(seen.fields.has(name), "{version:?}: no {name} in {:?}", seen.fields);
        }
        assert_eq!((seen.length, seen.delivery), (5, Delivery::Complete));
        vm.forget();
    }
    gw.stop().await;
}

#[tokio::test]
async fn hop_by_hop_fields_of_a_response_stay_behind() {
    let vm = answering(
        Fields::new()
            .with("Connection", "X-Inner")
            .with("X-Inner", "secret")
            .with("Keep-Alive", "timeout=5")
            .with("Proxy-Connection", "close")
            .with("Proxy-Authenticate", "Basic")
            .with("Upgrade", "h2c")
            .with("Alt-Svc", "h3=\":9\"")
            .with("X-Keep", "1")
            .with("Set-Cookie", "a=1")
            .with("Set-Cookie", "b=2"),
    )
    .await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in Version::ALL {
        let fields = gw.request(version, get("/")).await.fields;
        for name in ["x-inner", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"] {
            assert!(!fields.has(name), "{version:?}: {name} in {fields:?}");
        }
        assert!(!fields.lists("connection", "x-inner"), "{version:?}: {fields:?}");
        assert!(version.is_h1() || !fields.has("connection"), "{version:?}: {fields:?}");
        // It speaks of the VM's ports, which are not the client's.
        assert!(!fields.all("alt-svc").contains(&"h3=\":9\""), "{version:?}: {fields:?}");
        assert_eq!(fields.get("x-keep"), Some("1"), "{version:?}");
        assert_eq!(fields.all("set-cookie"), ["a=1", "b=2"], "{version:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn fields_keep_their_order_and_repetition() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in Version::ALL {
        let request =
            get("/").field("x-many", "1").field("x-one", "a, b").field("x-many", "2").field("x-empty", "");
        assert_eq!(gw.request(version, request).await.status, 200, "{version:?}");
        let seen = vm.only().fields;
        assert_eq!(seen.all("x-many"), ["1", "2"], "{version:?}");
        assert_eq!((seen.get("x-one"), seen.get("x-empty")), (Some("a, b"), Some("")), "{version:?}");
        vm.forget();
    }
    gw.stop().await;
}

fn forged() -> foregate_tests::Request {
    get("/")
        .field("x-forwarded-for", "203.0.113.7")
        .field("x-forwarded-proto", "gopher")
        .field("x-forwarded-host", "evil.test")
        .field("forwarded", "for=203.0.113.7;proto=gopher")
        .field("x-request-id", "forged-0123456789")
}

#[tokio::test]
async fn what_a_stranger_says_of_itself_is_dropped() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in Version::ALL {
        for request in [get("/"), forged()] {
            assert_eq!(gw.request(version, request).await.status, 200, "{version:?}");
            let seen = vm.only().fields;
            let scheme = if version.tls() { "https" } else { "http" };
            assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"], "{version:?}");
            assert_eq!(seen.all("x-forwarded-proto"), [scheme], "{version:?}");
            assert_eq!(seen.all("x-forwarded-host"), ["shop.test"], "{version:?}");
            assert!(!seen.has("forwarded"), "{version:?}: {seen:?}");
            let [id] = seen.all("x-request-id")[..] else {
                panic!("{version:?}: one x-request-id in {seen:?}")
            };
            assert!(id.len() >= 8 && !id.starts_with("forged"), "{version:?}: {id}");
            vm.forget();
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn names_that_a_cgi_cannot_tell_apart_are_dropped_too() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in Version::ALL {
        let request = get("/").field("x_forwarded_for", "203.0.113.7").field("x_forwarded-proto", "gopher");
        assert_eq!(gw.request(version, request).await.status, 200, "{version:?}");
        let seen = vm.only().fields;
        assert!(!seen.has("x_forwarded_for") && !seen.has("x_forwarded-proto"), "{version:?}: {seen:?}");
        vm.forget();
    }
    gw.stop().await;
}

#[tokio::test]
async fn via_names_the_version_it_was_received_by() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in Version::ALL {
        assert_eq!(gw.request(version, get("/")).await.status, 200, "{version:?}");
        let seen = vm.only().fields;
        let via = seen.all("via").join(", ");
        let received = match version {
            Version::H1 | Version::H1Tls => "1.1 ",
            Version::H2 | Version::H2c => "2",
            Version::H3 => "3",
        };
        assert!(via.starts_with(received) && via.contains(' '), "{version:?}: {via:?}");
        vm.forget();
    }
    gw.stop().await;
}

/// A trusted proxy in front: what it says is kept and added to, and the client is who it says.
#[tokio::test]
async fn a_trusted_proxy_is_believed() {
    let vm = origin().start().await;
    let edits = "[defaults.sites]\nrequest_headers = [\"X-Real-IP: {client_ip}\"]\n";
    let gw = gateway()
        .server("trusted_proxies", "[\"127.0.0.8/30\", \"198.51.100.0/24\"]")
        .site("shop.test", &vm)
        .toml(edits)
        .start()
        .await;
    for version in Version::ALL {
        for (from, said, expected, client) in [
            ("127.0.0.9", "203.0.113.7", "203.0.113.7, 127.0.0.9", "203.0.113.7"),
            ("127.0.0.9", "6.6.6.6, 203.0.113.7", "6.6.6.6, 203.0.113.7, 127.0.0.9", "203.0.113.7"),
            ("127.0.0.9", "203.0.113.7, 198.51.100.4", "203.0.113.7, 198.51.100.4, 127.0.0.9", "203.0.113.7"),
            ("127.0.0.9", "2001:db8::7", "2001:db8::7, 127.0.0.9", "2001:db8::7"),
            ("127.0.0.1", "203.0.113.7", "127.0.0.1", "127.0.0.1"),
        ] {
            let client_of = Client::connect(&gw.dial("shop.test").from(from), version).await.unwrap();
            let request = get("/")
                .field("x-forwarded-for", said)
                .field("x-forwarded-proto", "https")
                .field("x-forwarded-host", "outside.test")
                .field("x-request-id", "from-the-front-1");
            assert_eq!(client_of.send(&request).await.unwrap().status, 200);
            let seen = vm.only().fields;
            let place = format!("{version:?} from {from} with {said}: {seen:?}");
            assert_eq!(seen.all("x-forwarded-for").join(", "), expected, "{place}");
            assert_eq!(seen.all("x-real-ip"), [client], "{place}");
            let trusted = from != "127.0.0.1";
            let own_scheme = if version.tls() { "https" } else { "http" };
            assert_eq!(
                seen.all("x-forwarded-proto"),
                [if trusted { "https" } else { own_scheme }],
                "{place}"
            );
            assert_eq!(
                seen.all("x-forwarded-host"),
                [if trusted { "outside.test" } else { "shop.test" }],
                "{place}"
            );
            assert_eq!(seen.all("x-request-id") == ["from-the-front-1"], trusted, "{place}");
            vm.forget();
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn request_ids_are_unique() {
    let vm = origin().start().await;
    let gw = gateway().server("workers", "2").site("shop.test", &vm).start().await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        for _ in 0..40 {
            client.send(&get("/")).await.unwrap();
        }
    }
    let mut ids: Vec<String> =
        vm.requests().iter().map(|r| r.fields.get("x-request-id").unwrap().to_owned()).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 40 * Version::ALL.len());
    gw.stop().await;
}

#[tokio::test]
async fn the_host_is_preserved_or_replaced_as_configured() {
    let vm = origin().start().await;
    let sites = format!(
        "[sites.\"backend.test\"]\npool = {0:?}\nupstream_host = \"backend\"\n\
         [sites.\"literal.test\"]\npool = {0:?}\nupstream_host = \"inner.lan\"\n\
         [sites.\"route.test\"]\npool = {0:?}\nupstream_host = \"inner.lan\"\n\
         routes = [{{ paths = \"/keep/\", upstream_host = \"preserve\" }}]\n",
        vm.address()
    );
    let names = ["backend.test", "literal.test", "route.test", "shop.test"];
    let gw = gateway().named(&names).site("shop.test", &vm).toml(&sites).start().await;
    for version in Version::ALL {
        for (host, path, expected) in [
            ("shop.test", "/", "shop.test".to_owned()),
            ("SHOP.test:4711", "/", "SHOP.test:4711".to_owned()),
            ("backend.test", "/", vm.address()),
            ("literal.test", "/", "inner.lan".to_owned()),
            ("route.test", "/", "inner.lan".to_owned()),
            ("route.test", "/keep/", "route.test".to_owned()),
        ] {
            gw.request(version, get(path).host(host)).await;
            let seen = vm.only();
            assert!(seen.host.eq_ignore_ascii_case(&expected), "{version:?} {host}{path}: {}", seen.host);
            assert_eq!(seen.fields.get("x-forwarded-host").unwrap().to_lowercase(), host.to_lowercase());
            vm.forget();
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn cookies_in_pieces_are_joined() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in [Version::H2c, Version::H2, Version::H3] {
        let request = get("/").field("cookie", "a=1").field("x-between", "y").field("cookie", "b=2; c=3");
        assert_eq!(gw.request(version, request).await.status, 200);
        assert_eq!(vm.only().fields.all("cookie"), ["a=1; b=2; c=3"], "{version:?}");
        vm.forget();
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_date_is_present_and_the_vms_own_is_kept() {
    let dated = answering(Fields::new().with("Date", "Sun, 06 Nov 1994 08:49:37 GMT")).await;
    let silent = origin().start().await;
    let names = ["silent.test", "none.test", "dated.test"];
    let gw =
        gateway().certificate(&names).site("dated.test", &dated).site("silent.test", &silent).start().await;
    for version in Version::ALL {
        let kept = gw.request(version, get("/").host("dated.test")).await;
        assert_eq!(kept.fields.all("date"), ["Sun, 06 Nov 1994 08:49:37 GMT"], "{version:?}");
        for host in ["silent.test", "none.test"] {
            let reply = gw.request(version, get("/").host(host)).await;
            let [date] = reply.fields.all("date")[..] else { panic!("{version:?}: {:?}", reply.fields) };
            assert!(date.len() == 29 && date.ends_with(" GMT"), "{version:?}: {date}");
        }
    }
    gw.stop().await;
}

/// The advertisement of HTTP/3: with TLS only, with the right port, for the sites that allow it.
#[tokio::test]
async fn alt_svc_is_where_it_belongs() {
    let vm = origin().start().await;
    let quiet = format!("[sites.\"quiet.test\"]\npool = {:?}\nhttp3 = false\n", vm.address());
    let gw = gateway().named(&["quiet.test"]).site("shop.test", &vm).toml(&quiet).start().await;
    let expected = format!("h3=\":{}\"; ma=3600", gw.https_port());
    for version in Version::ALL {
        let reply = gw.request(version, get("/")).await;
        match version {
            Version::H1 | Version::H2c => {
                assert!(!reply.fields.has("alt-svc"), "{version:?}: {:?}", reply.fields)
            }
            Version::H1Tls | Version::H2 => {
                assert_eq!(reply.fields.all("alt-svc"), [&expected], "{version:?}")
            }
            Version::H3 => {}
        }
        if version != Version::H3 {
            let quiet = gw.request(version, get("/").host("quiet.test")).await;
            assert_eq!((quiet.status, quiet.fields.get("alt-svc")), (200, None), "{version:?}");
        }
    }
    // Reached all the same, it is refused.
    if let Ok(reply) = gw.try_request(Version::H3, &get("/").host("quiet.test")).await {
        assert_eq!(reply.status, 421);
    }
    gw.stop().await;
}

#[tokio::test]
async fn alt_svc_follows_the_configuration() {
    for (table, expected) in [
        ("alt_svc = \"always\"\nalt_svc_max_age = \"2h\"\nalt_svc_port = 443", Some("h3=\":443\"; ma=7200")),
        ("alt_svc = \"never\"", None),
        ("enabled = false", None),
    ] {
        let vm = origin().start().await;
        let gw = gateway().site("shop.test", &vm).toml(&format!("[http3]\n{table}")).start().await;
        for version in [Version::H1Tls, Version::H2] {
            assert_eq!(
                gw.request(version, get("/")).await.fields.get("alt-svc"),
                expected,
                "{version:?} {table}"
            );
        }
        if table == "enabled = false" {
            // Nobody is bound there: the kernel says so at once, or nothing is ever heard.
            let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(("127.0.0.1", gw.https_port())).unwrap();
            let sent = socket.send(b"?").and_then(|_| socket.recv(&mut [0; 10]));
            assert_eq!(sent.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
        } else {
            assert_eq!(gw.request(Version::H3, get("/")).await.status, 200, "{table}");
        }
        gw.stop().await;
    }
}

#[tokio::test]
async fn head_204_and_304_have_no_body() {
    let vm = origin()
        .on("/304", |call| {
            Box::pin(async move {
                let fields = Fields::new().with("etag", "\"x\"").with("content-length", "5");
                call.start(304, &fields, None).await;
            })
        })
        .on("/204", |call| Box::pin(async move { call.reply(204, &Fields::new(), "").await }))
        .on("/chunked", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), None).await;
                call.finish(&Fields::new()).await;
            })
        })
        .start()
        .await;
    // `start` without a length announces chunks; a 304 that does so is what careless servers send.
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in Version::ALL {
        let client = gw.client(version, "shop.test").await;
        // One after the other on the same connection: a stray byte would spoil the next answer.
        for _ in 0..2 {
            let reply = client.send(&head("/")).await.unwrap();
            assert_eq!(
                (reply.status, reply.length, reply.fields.get("content-length")),
                (200, 0, Some("3")),
                "{version:?}"
            );
            let reply = client.send(&head("/chunked")).await.unwrap();
            assert_eq!((reply.status, reply.length), (200, 0), "{version:?}");
            let reply = client.send(&get("/304").field("if-none-match", "\"x\"")).await.unwrap();
            assert_eq!((reply.status, reply.length, reply.field("etag")), (304, 0, "\"x\""), "{version:?}");
            let reply = client.send(&get("/204")).await.unwrap();
            assert_eq!((reply.status, reply.length), (204, 0), "{version:?}");
            assert!(
                !reply.fields.has("content-length") && !reply.fields.has("transfer-encoding"),
                "{:?}",
                reply.fields
            );
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn edits_of_fields_add_up() {
    let vm = answering(Fields::new().with("Server", "old/1").with("X-Vm-Says", "1")).await;
    let site = format!(
        "[sites.\"shop.test\"]\npool = {:?}\n\
         request_headers = [\"X-Real-IP: {{client_ip}}\", \"+X-Trace: 1\", \"-X-Debug\", \"X-Where: {{host}} {{scheme}} {{path}} {{query}}\"]\n\
         response_headers = [\"-Server\", \"X-Served: {{host}}\", \"+X-Vm-Says: 2\"]\n\
         hsts = {{ max_age = \"365d\", include_subdomains = true }}\n\
         routes = [{{ paths = \"=/own\", respond = {{ status = 200, body = \"own\" }} }}]\n",
        vm.address()
    );
    let gw = gateway().named(&["shop.test"]).toml(&site).start().await;
    for version in Version::ALL {
        let sent = get("/a?b=c").field("x-real-ip", "6.6.6.6").field("x-trace", "0").field("x-debug", "yes");
        let reply = gw.request(version, sent).await;
        let seen = vm.only().fields;
        let scheme = if version.tls() { "https" } else { "http" };
        assert_eq!(seen.all("x-real-ip"), ["127.0.0.1"], "{version:?}");
        assert_eq!(seen.all("x-trace"), ["0", "1"], "{version:?}");
        assert!(!seen.has("x-debug"), "{version:?}");
        assert_eq!(seen.all("x-where"), [format!("shop.test {scheme} /a b=c")], "{version:?}");
        let own = gw.request(version, get("/own")).await;
        for fields in [&reply.fields, &own.fields] {
            assert!(!fields.has("server"), "{version:?}: {fields:?}");
            assert_eq!(fields.all("x-served"), ["shop.test"], "{version:?}");
            let hsts = fields.get("strict-transport-security");
            // RFC 6797, section 7.2: never without TLS.
            let expected = version.tls().then_some("max-age=31536000; includeSubDomains");
            assert_eq!(hsts.map(str::to_lowercase), expected.map(str::to_lowercase), "{version:?}");
        }
        assert_eq!(reply.fields.all("x-vm-says"), ["1", "2"], "{version:?}");
        vm.forget();
    }
    gw.stop().await;
}

/// HTTP/2 and HTTP/3 name the host twice if they like, but not two hosts.
#[tokio::test]
async fn authority_and_host_must_agree() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in [Version::H2c, Version::H2, Version::H3] {
        let agreed = gw.request(version, get("/").field("host", "shop.test")).await;
        assert_eq!(agreed.status, 200, "{version:?}");
        assert_eq!(vm.only().fields.all("host"), ["shop.test"], "{version:?}");
        vm.forget();
        match gw.try_request(version, &get("/").field("host", "evil.test")).await {
            Ok(reply) => assert_eq!(reply.status, 400, "{version:?}"),
            Err(Error::Broken(_)) => {}
            Err(other) => panic!("{version:?}: {other}"),
        }
        assert!(vm.requests().is_empty(), "{version:?}: {:?}", vm.requests());
    }
    gw.stop().await;
}

/// RFC 9114, section 4.2: a request with such fields is malformed; what is served all the same is served
/// without them.
#[tokio::test]
async fn connection_specific_fields_of_http3_reach_no_vm() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for (name, value) in [
        ("connection", "x-forwarded-for"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "close"),
        ("te", "gzip"),
    ] {
        match gw.try_request(Version::H3, &get("/").field(name, value)).await {
            Ok(reply) if reply.status == 200 => {
                let seen = vm.only().fields;
                assert!(!seen.all(name).contains(&value), "{name}: {seen:?}");
                assert_eq!(seen.all("x-forwarded-for"), ["127.0.0.1"], "{name}");
            }
            Ok(reply) => assert_eq!(reply.status, 400, "{name}"),
            Err(Error::Broken(_)) => {}
            Err(other) => panic!("{name}: {other}"),
        }
        vm.forget();
    }
    gw.stop().await;
}

/// A body that is not as long as it was said to be never looks whole to the VM.
#[tokio::test]
async fn a_wrong_content_length_is_never_a_whole_body() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in [Version::H2c, Version::H2, Version::H3] {
        for said in ["10", "3", "x", "-1", "5, 6"] {
            let lying = post("/", "hello").unannounced().field("content-length", said);
            match within("an answer", gw.try_request(version, &lying)).await {
                Ok(reply) => assert_eq!(reply.status, 400, "{version:?} {said}"),
                Err(Error::Broken(_)) => {}
                Err(other) => panic!("{version:?} {said}: {other}"),
            }
            assert!(
                vm.requests().iter().all(|r| r.delivery != Delivery::Complete),
                "{version:?} {said}: {:?}",
                vm.requests()
            );
        }
        let honest = post("/", "hello").unannounced().field("content-length", "5");
        assert_eq!(gw.request(version, honest).await.status, 200, "{version:?}");
        vm.saw("the honest one", |r| r.delivery == Delivery::Complete).await;
        vm.forget();
    }
    gw.stop().await;
}

/// A method nobody knows is the VM's affair.
#[tokio::test]
async fn unknown_methods_pass() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    for version in Version::ALL {
        for method in ["PROPFIND", "get", "X-Y_Z!"] {
            assert_eq!(gw.request(version, request(method, "/")).await.status, 200, "{version:?} {method}");
            assert_eq!(vm.only().method, method, "{version:?}");
            vm.forget();
        }
    }
    gw.stop().await;
}
