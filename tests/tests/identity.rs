//! Sites that ask clients who they are: whom they let in, what their VMs are told, and that it holds on every connection.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{fs, time::Duration};

use foregate_tests::{
    Certified, Client, ClientAuthority, Error, Gateway, GatewayBuilder, Identity, Origin, Reply, Version,
    Visitor, eventually, eventually_async, gateway, get,
    http3::{Connection, Head, Options, Outcome},
    origin,
};
use rcgen::ExtendedKeyUsagePurpose;

/// Those that can show a certificate.
const SECURE: [Version; 3] = [Version::H1Tls, Version::H2, Version::H3];

const REQUIRE: &str =
    "tls = { client_ca = \"clients.pem\", client_crl = \"clients.crl\", client_auth = \"require\" }";

fn issued(by: &ClientAuthority) -> Identity {
    by.issue(&Certified::client("alice"))
}

/// One request on a new connection.
async fn ask(gw: &Gateway, version: Version, visitor: &Visitor, host: &str) -> Result<Reply, Error> {
    let client = Client::connect(&gw.dial(host).by(visitor), version).await?;
    client.send(&get("/").host(host)).await
}

fn site(host: &str, vm: &Origin, more: &str) -> String {
    format!("[sites.\"{host}\"]\npool = \"{}\"\n{more}\n", vm.address())
}

/// With one certificate for all hosts here.
fn begun(text: &str) -> GatewayBuilder {
    gateway().named(&["shop.test", "*.a.test"]).toml(text)
}

fn told(vm: &Origin) -> Vec<(String, String)> {
    let requests = vm.requests();
    vm.forget();
    let about = requests.last().unwrap().fields.iter().filter(|(name, _)| name.contains("client"));
    let mut told: Vec<_> = about.map(|(name, value)| (name.to_string(), value.to_string())).collect();
    told.sort();
    told
}

#[tokio::test]
async fn who_has_a_good_certificate_is_let_in_and_nobody_else() {
    let vm = origin().start().await;
    let (ours, theirs) = (ClientAuthority::new("ours"), ClientAuthority::new("theirs"));
    let branch = ours.intermediate("branch");
    let (good, revoked) = (issued(&ours), issued(&ours));
    let lists = ours.list(&[&revoked]) + &branch.list(&[]);
    let gw = begun(&site("shop.test", &vm, REQUIRE))
        .file("clients.pem", ours.pem())
        .file("clients.crl", &lists)
        .start()
        .await;
    let expired = ours.issue(&Certified { lasts: Duration::from_secs(3600), ..Certified::client("alice") });
    let server =
        ours.issue(&Certified { purpose: ExtendedKeyUsagePurpose::ServerAuth, ..Certified::client("alice") });
    for version in SECURE {
        if version == Version::H3 {
            // In one second no more than ten lines are written of strangers.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        for identity in [&good, &issued(&branch)] {
            let visitor = Visitor::new(Some(identity));
            let client = Client::connect(&gw.dial("shop.test").by(&visitor), version).await.unwrap();
            let mut request =
                get("/").field("x-client-cert-subject", "CN=root").field("client-cert", ":AAAA:");
            if version.is_h1() {
                request = request.field("connection", "x-client-cert-subject, x-client-cert-san");
            }
            assert_eq!(client.send(&request).await.unwrap().status, 200, "{version:?}");
            let told = told(&vm);
            let names = "DNS:alice.clients.test,URI:spiffe://test/alice";
            let expected = [("san", names), ("subject", "CN=alice,O=Tests\\, Inc.")];
            assert_eq!(
                (told.len(), told[0].0.as_str(), told[0].1.len()),
                (3, "x-client-cert-fingerprint", 64)
            );
            for ((name, value), (suffix, text)) in told[1..].iter().zip(expected) {
                assert_eq!((&**name, &**value), (&*format!("x-client-cert-{suffix}"), text), "{version:?}");
            }
        }
        for (why, identity) in [
            ("none", None),
            ("of another authority", Some(&issued(&theirs))),
            ("expired", Some(&expired)),
            ("revoked", Some(&revoked)),
            ("not for clients", Some(&server)),
        ] {
            let refused = ask(&gw, version, &Visitor::new(identity), "shop.test").await;
            assert!(refused.is_err(), "{version:?} {why}: {refused:?}");
        }
    }
    // Without TLS nobody can be known.
    for version in [Version::H1, Version::H2c] {
        let refused = gw.request(version, get("/")).await;
        assert_eq!(refused.status, 403, "{version:?}");
        assert!(refused.text().contains("which takes HTTPS"), "{}", refused.text());
    }
    assert!(vm.requests().is_empty());
    for why in
        ["peer sent no certificates", "UnknownIssuer", "certificate expired", "Revoked", "extended key usage"]
    {
        let told = gw.log().having(&["refused: the client has no certificate that is good here", why]);
        assert!(told.len() >= 2, "{why}: {}", gw.log().text());
        assert!(told.iter().any(|line| line.contains("cryptographic handshake")), "over QUIC too: {told:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn a_site_may_ask_and_serve_others_as_well() {
    let (vm, known) = (origin().named("vm").start().await, origin().named("known").start().await);
    let ours = ClientAuthority::new("ours");
    let more = format!(
        "tls = {{ client_ca = \"clients.pem\", client_auth = \"optional\" }}\n\
         request_headers = [\"X-Who: {{client_cert.subject}}|{{client_cert.san}}|{{client_cert.fingerprint}}\"]\n\
         response_headers = [\"X-Known: {{client_cert.subject}}\"]\n\
         routes = [{{ paths = \"/\", when = {{ client_cert = true }}, pool = \"{}\" }}]",
        known.address()
    );
    let gw = begun(&site("shop.test", &vm, &more)).file("clients.pem", ours.pem()).start().await;
    for version in SECURE {
        let reply = ask(&gw, version, &Visitor::new(None), "shop.test").await.unwrap();
        assert_eq!((reply.status, reply.vm(), reply.field("x-known")), (200, "vm", ""), "{version:?}");
        assert_eq!(vm.only().fields.all("x-who"), ["||"], "{version:?}");
        assert!(told(&vm).is_empty());
        let reply = ask(&gw, version, &Visitor::new(Some(&issued(&ours))), "shop.test").await.unwrap();
        let subject = "CN=alice,O=Tests\\, Inc.";
        assert_eq!(
            (reply.status, reply.vm(), reply.field("x-known")),
            (200, "known", subject),
            "{version:?}"
        );
        assert!(known.only().fields.get("x-who").unwrap().starts_with(&format!("{subject}|DNS:alice")));
        known.forget();
        // One that is no good is not taken for none.
        let stranger = Visitor::new(Some(&issued(&ClientAuthority::new("theirs"))));
        assert!(ask(&gw, version, &stranger, "shop.test").await.is_err(), "{version:?}");
    }
    for version in [Version::H1, Version::H2c] {
        assert_eq!(gw.request(version, get("/").field("x-client-cert-san", "DNS:a")).await.status, 200);
        assert!(told(&vm).is_empty());
    }
    gw.stop().await;
}

#[tokio::test]
async fn only_sites_that_ask_do_and_no_connection_leads_to_them_that_was_not_asked() {
    let vm = origin().start().await;
    let (ours, theirs) = (ClientAuthority::new("ours"), ClientAuthority::new("theirs"));
    let ask_for = |file: &str| format!("tls = {{ client_ca = \"{file}\" }}");
    let text = site("open.a.test", &vm, "")
        + &site("one.a.test", &vm, &ask_for("ours.pem"))
        + &site("two.a.test", &vm, &ask_for("ours.pem"))
        + &site("three.a.test", &vm, &ask_for("theirs.pem"))
        + &site("four.a.test", &vm, "tls = { client_ca = \"ours.pem\", client_auth = \"optional\" }");
    let gw = begun(&text).file("ours.pem", ours.pem()).file("theirs.pem", theirs.pem()).start().await;
    for version in SECURE {
        let alice = Visitor::new(Some(&issued(&ours)));
        let at = async |host: &str| Client::connect(&gw.dial(host).by(&alice), version).await.unwrap();
        let status =
            async |client: &Client, host: &str| client.send(&get("/").host(host)).await.unwrap().status;
        let open = at("open.a.test").await;
        // It was not asked, so it is not known there, although it could be.
        assert_eq!(status(&open, "open.a.test").await, 200);
        assert!(told(&vm).is_empty(), "{version:?}");
        for host in ["one.a.test", "three.a.test", "four.a.test"] {
            assert_eq!(status(&open, host).await, 421, "{version:?} {host}");
        }
        assert_eq!(status(&open, "open.a.test").await, 200, "the connection goes on");
        let one = at("one.a.test").await;
        for (host, expected) in [
            ("one.a.test", 200),
            ("two.a.test", 200),
            ("three.a.test", 421),
            ("four.a.test", 421),
            ("open.a.test", 421),
            ("one.a.test", 200),
        ] {
            assert_eq!(status(&one, host).await, expected, "{version:?} {host}");
        }
        vm.forget();
    }
    gw.stop().await;
}

/// How the rules of a site change between two visits, and what becomes of who was let in before.
struct Change {
    what: &'static str,
    before: &'static str,
    after: &'static str,
    files: Vec<(&'static str, String)>,
    /// Whether who comes back with a certificate is let in.
    stays: bool,
}

#[tokio::test]
async fn what_changes_holds_for_who_comes_back_and_for_who_has_stayed() {
    let [h1, h2, h3] = SECURE.map(who_comes_back_and_who_has_stayed);
    tokio::join!(h1, h2, h3);
}

async fn who_comes_back_and_who_has_stayed(version: Version) {
    const OPEN: &str = "";
    const OPTIONAL: &str = "tls = { client_ca = \"clients.pem\", client_auth = \"optional\" }";
    let (ours, theirs) = (ClientAuthority::new("ours"), ClientAuthority::new("theirs"));
    let alice = issued(&ours);
    let changes = [
        Change {
            what: "revoked",
            before: REQUIRE,
            after: REQUIRE,
            files: vec![("clients.crl", ours.list(&[&alice]))],
            stays: false,
        },
        Change {
            what: "another authority",
            before: REQUIRE,
            after: REQUIRE,
            files: vec![("clients.pem", theirs.pem().to_owned()), ("clients.crl", theirs.list(&[]))],
            stays: false,
        },
        Change { what: "asked from now on", before: OPEN, after: REQUIRE, files: vec![], stays: true },
        Change { what: "required from now on", before: OPTIONAL, after: REQUIRE, files: vec![], stays: true },
        Change { what: "asked no more", before: REQUIRE, after: OPEN, files: vec![], stays: true },
    ];
    for change in &changes {
        let vm = origin().start().await;
        let gw = begun(&site("shop.test", &vm, change.before))
            .file("clients.pem", ours.pem())
            .file("clients.crl", &ours.list(&[]))
            .start()
            .await;
        let what = format!("{version:?} {}", change.what);
        let (known, nobody) = (Visitor::new(Some(&alice)), Visitor::new(None));
        let open = change.before != REQUIRE;
        // Twice: the second visit resumes the first one's session.
        for visit in 1..=2 {
            for visitor in [&nobody, &known] {
                if open || std::ptr::eq(visitor, &raw const known) {
                    assert_eq!(ask(&gw, version, visitor, "shop.test").await.unwrap().status, 200, "{what}");
                    assert_eq!(visitor.full_handshakes(), 1, "{what}: visit {visit}");
                }
            }
        }
        assert_eq!(told(&vm).is_empty(), change.before == OPEN, "{what}");
        let guest = Visitor::new(Some(&alice));
        let stayed = Client::connect(&gw.dial("shop.test").by(&guest), version).await.unwrap();
        assert_eq!(stayed.send(&get("/")).await.unwrap().status, 200, "{what}");

        for (file, content) in &change.files {
            fs::write(gw.folder().join(file), content).unwrap();
        }
        let strict = change.after == REQUIRE;
        if change.before == change.after {
            // Files are followed.
            let refused = async || (stayed.send(&get("/")).await.unwrap().status == 403).then_some(());
            eventually_async("the change holds", refused).await;
        } else {
            let [before, after] = [change.before, change.after].map(|more| site("shop.test", &vm, more));
            gw.edit(|text| text.replace(&before, &after));
            gw.told(&["reload"]).await;
            // Who has stayed is known by what it has shown, if it was asked.
            let expected = if change.before == OPEN { 403 } else { 200 };
            assert_eq!(stayed.send(&get("/")).await.unwrap().status, expected, "{what}");
        }
        // It is to come by another connection, which is held to what is asked now.
        if version.is_h1() {
            let dialed = stayed.dialed();
            _ = stayed.send(&get("/")).await;
            assert_eq!(stayed.dialed(), dialed + 1, "{what}");
        } else {
            let refused = async || stayed.send(&get("/")).await.err().map(|_| ());
            eventually_async("the connection ends", refused).await;
        }
        vm.forget();
        let before = known.full_handshakes();
        match ask(&gw, version, &known, "shop.test").await {
            Ok(reply) => assert!(change.stays && reply.status == 200, "{what}: {reply:?}"),
            Err(error) => assert!(!change.stays, "{what}: {error}"),
        }
        assert_eq!(known.full_handshakes(), before + 1, "{what}: it is asked anew");
        if change.stays {
            assert_eq!(told(&vm).is_empty(), change.after == OPEN, "{what}");
        }
        let nobody = ask(&gw, version, &nobody, "shop.test").await;
        assert_eq!(nobody.is_err(), strict, "{what}: {nobody:?}");
        gw.stop().await;
    }
}

#[tokio::test]
async fn a_certificate_may_expire_while_its_session_is_good() {
    let vm = origin().start().await;
    let ours = ClientAuthority::new("ours");
    let text = site("shop.test", &vm, "tls = { client_ca = \"clients.pem\", min_version = \"1.2\" }");
    let gw = begun(&text).file("clients.pem", ours.pem()).start().await;
    let day = Duration::from_secs(86_400);
    let brief = ours.issue(&Certified { lasts: day + Duration::from_secs(4), ..Certified::client("brief") });
    let mut visitors = Vec::new();
    for version in SECURE {
        visitors.push((version, Visitor::new(Some(&brief))));
    }
    visitors.push((Version::H2, Visitor::speaking(Some(&brief), &[&rustls::version::TLS12])));
    for (version, visitor) in &visitors {
        for _ in 0..2 {
            assert_eq!(ask(&gw, *version, visitor, "shop.test").await.unwrap().status, 200, "{version:?}");
        }
        assert_eq!(visitor.full_handshakes(), 1, "{version:?}");
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    for (version, visitor) in &visitors {
        let reply = ask(&gw, *version, visitor, "shop.test").await.unwrap();
        assert_eq!(
            (reply.status, visitor.full_handshakes()),
            (403, 1),
            "{version:?}: resumed, and judged anew"
        );
    }
    gw.stop().await;
}

#[tokio::test]
async fn who_names_no_host_is_asked_by_the_site_of_the_address() {
    let vm = origin().start().await;
    let ours = ClientAuthority::new("ours");
    let text = format!(
        "[sites.all]\nhosts = \"*\"\npool = \"{}\"\ntls = {{ client_ca = \"clients.pem\" }}\n",
        vm.address()
    );
    let gw = gateway().named(&["127.0.0.1", "a.test"]).tls("default_certificate = \"a.test\"").toml(&text);
    let gw = gw.file("clients.pem", ours.pem()).start().await;
    for version in SECURE {
        let known = Visitor::new(Some(&issued(&ours)));
        assert_eq!(ask(&gw, version, &known, "127.0.0.1").await.unwrap().status, 200, "{version:?}");
        assert_eq!(told(&vm).len(), 3, "{version:?}");
        assert!(ask(&gw, version, &Visitor::new(None), "127.0.0.1").await.is_err(), "{version:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn nothing_of_0_rtt_reaches_a_site_that_asks() {
    let vm = origin().start().await;
    let ours = ClientAuthority::new("ours");
    let open = site("open.a.test", &vm, "early_data = true");
    let other = site("shop.test", &vm, "early_data = true");
    let closed = site("closed.a.test", &vm, "tls = { client_ca = \"clients.pem\" }");
    let text = format!("{open}{other}{closed}");
    let gw = begun(&text).file("clients.pem", ours.pem()).start().await;
    let mut clients = Vec::new();
    for identity in [None, Some(&issued(&ours))] {
        let mut tls = Visitor::new(identity).tls;
        tls.enable_early_data = true;
        tls.alpn_protocols = vec![b"h3".to_vec()];
        clients.push(Options { tls: Some(tls), ..Options::default() });
    }
    let returning = async |options: &Options, host: &str| {
        let options = Options { tls: options.tls.clone(), ..Options::default() };
        let first = Connection::connect(&gw.dial(host), options).await.unwrap();
        let mut stream = first.request(Head::get("/before").with(":authority", host).frame()).await;
        assert!(matches!(stream.outcome().await, Outcome::Answered(answer) if answer.status == 200));
        first.close();
    };
    let early = async |options: &Options, sni: &str, host: &str| {
        let (client, accepted) = Connection::early(&gw.dial(sni), options).expect("it has a session");
        let mut stream = client.request(Head::get("/early").with(":authority", host).frame()).await;
        // What was refused is as if it had never been sent.
        let outcome = if accepted.await { Some(stream.outcome().await) } else { None };
        (client, outcome)
    };
    for options in &clients {
        // Another site's connection leads nowhere, also in its first flight.
        returning(options, "open.a.test").await;
        vm.forget();
        let (_, outcome) = early(options, "open.a.test", "closed.a.test").await;
        assert!(matches!(&outcome, Some(Outcome::Answered(answer)) if answer.status == 421), "{outcome:?}");
        assert!(vm.requests().is_empty());
        // Whose session is from when nobody was asked.
        returning(options, "shop.test").await;
    }
    gw.edit(|text| text.replace(&other, &site("shop.test", &vm, "tls = { client_ca = \"clients.pem\" }")));
    gw.told(&["reload"]).await;
    for (options, known) in clients.iter().zip([false, true]) {
        vm.forget();
        let (client, outcome) = early(options, "shop.test", "shop.test").await;
        assert!(outcome.is_none(), "{outcome:?}");
        assert!(vm.requests().is_empty(), "it has not run");
        if known {
            let mut stream =
                client.request(Head::get("/after").with(":authority", "shop.test").frame()).await;
            assert!(matches!(stream.outcome().await, Outcome::Answered(answer) if answer.status == 200));
            assert_eq!(told(&vm).len(), 3);
        }
    }
    gw.stop().await;
}

/// The gateway's own probe is a client without a certificate.
#[tokio::test]
async fn http3_is_advertised_beside_and_by_sites_that_ask() {
    let vm = origin().start().await;
    let ours = ClientAuthority::new("ours");
    let asks = "tls = { client_ca = \"clients.pem\" }";
    for open in [true, false] {
        let mut text = site("first.a.test", &vm, asks);
        if open {
            text += &site("shop.test", &vm, "");
        }
        let gw = begun(&text).file("clients.pem", ours.pem()).start().await;
        let known = Visitor::new(Some(&issued(&ours)));
        let reply = ask(&gw, Version::H2, &known, "first.a.test").await.unwrap();
        assert!(reply.field("alt-svc").starts_with("h3="), "{reply:?}");
        assert!(gw.log().having(&["refused"]).is_empty(), "{}", gw.log().text());
        gw.stop().await;
    }
}

/// A connection is held to its site, by whichever of its hosts it is asked for, and by an address too.
#[tokio::test]
async fn other_hosts_of_the_same_site_are_judged_as_it_is() {
    let vm = origin().start().await;
    let ours = ClientAuthority::new("ours");
    let (good, bad) = (issued(&ours), issued(&ours));
    let text = format!(
        "[sites.all]\nhosts = [\"one.a.test\", \"*.a.test\", \"*\"]\npool = \"{}\"\n\
         tls = {{ client_ca = \"clients.pem\", client_crl = \"clients.crl\" }}\n",
        vm.address()
    );
    let gw = gateway()
        .named(&["*.a.test", "127.0.0.1", "b.test"])
        .tls("default_certificate = \"b.test\"")
        .toml(&text);
    let gw = gw.file("clients.pem", ours.pem()).file("clients.crl", &ours.list(&[])).start().await;
    let mut open = Vec::new();
    for version in SECURE {
        for sni in ["one.a.test", "127.0.0.1"] {
            let [good, bad] = [&good, &bad].map(|identity| Visitor::new(Some(identity)));
            let at =
                async |visitor: &Visitor| Client::connect(&gw.dial(sni).by(visitor), version).await.unwrap();
            open.push((version, sni, at(&good).await, at(&bad).await));
        }
    }
    // Another name than the one in the handshake, that the certificate is good for.
    let status = async |client: &Client, host: &str| client.send(&get("/").host(host)).await.unwrap().status;
    for (version, sni, good, bad) in &open {
        assert_eq!(
            (status(good, "two.a.test").await, status(bad, "two.a.test").await),
            (200, 200),
            "{version:?} {sni}"
        );
    }
    fs::write(gw.folder().join("clients.crl"), ours.list(&[&bad])).unwrap();
    eventually_async("the list holds", || async {
        (status(&open[0].3, "two.a.test").await == 403).then_some(())
    })
    .await;
    for (version, sni, good, bad) in &open[1..] {
        assert_eq!(
            (status(good, "two.a.test").await, status(bad, "two.a.test").await),
            (200, 403),
            "{version:?} {sni}"
        );
    }
    gw.stop().await;
}

/// Who is known is known to routes and balancers, and who only says so is not. Who was known and is no more is not nobody.
#[tokio::test]
async fn routes_go_by_what_is_proven() {
    let (vm, admin) = (origin().named("vm").start().await, origin().named("admin").start().await);
    let ours = ClientAuthority::new("ours");
    let (root, other) = (ours.issue(&Certified::client("root")), issued(&ours));
    let more = format!(
        "tls = {{ client_ca = \"clients.pem\", client_crl = \"clients.crl\", client_auth = \"optional\" }}\n\
         routes = [{{ paths = \"/\", when = {{ headers = {{ x-client-cert-subject = \"~^CN=root,\" }} }}, pool = \"{}\" }}]",
        admin.address()
    );
    let gw = begun(&site("shop.test", &vm, &more)).file("clients.pem", ours.pem());
    let gw = gw.file("clients.crl", &ours.list(&[])).start().await;
    let claims = get("/")
        .field("x-client-cert-subject", "CN=root,O=Tests")
        .field("X_Client_Cert_Subject", "CN=root,O=Tests");
    let mut stay = Vec::new();
    for version in SECURE {
        for (identity, expected) in [(None, "vm"), (Some(&other), "vm"), (Some(&root), "admin")] {
            let dial = gw.dial("shop.test").by(&Visitor::new(identity));
            let client = Client::connect(&dial, version).await.unwrap();
            assert_eq!(client.send(&claims).await.unwrap().vm(), expected, "{version:?}");
            stay.push((version, identity.is_some(), client));
        }
    }
    for version in [Version::H1, Version::H2c] {
        assert_eq!(gw.request(version, claims.clone()).await.vm(), "vm", "{version:?}");
    }
    fs::write(gw.folder().join("clients.crl"), ours.list(&[&root, &other])).unwrap();
    let refused = async || (stay[1].2.send(&get("/")).await.unwrap().status == 403).then_some(());
    eventually_async("the list holds", refused).await;
    for (version, known, client) in stay.iter().filter(|(version, ..)| *version != Version::H1Tls) {
        let expected = if *known { 403 } else { 200 };
        assert_eq!(client.send(&get("/")).await.unwrap().status, expected, "{version:?} {known}");
    }
    assert!(!gw.log().having(&["refused: a client's certificate is not good any more"]).is_empty());

    // What cannot be read is told, and what was there before holds.
    fs::write(gw.folder().join("clients.crl"), "no list").unwrap();
    let told = || gw.log().having(&["clients.crl holds no revocation list"]).pop();
    eventually("it is told", told).await;
    for version in SECURE {
        assert!(ask(&gw, version, &Visitor::new(Some(&root)), "shop.test").await.is_err(), "{version:?}");
        assert_eq!(
            ask(&gw, version, &Visitor::new(None), "shop.test").await.unwrap().status,
            200,
            "{version:?}"
        );
    }
    gw.stop().await;
}
