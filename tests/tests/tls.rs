//! Listeners and TLS: what is said at the start, which certificate a client is shown, and what is refused.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::sync::Arc;

use foregate_tests::{
    ALPN_H1, ALPN_H2, Authority, Client, Dial, Error, Gateway, Origin, Version, eventually, eventually_async,
    gateway, get, lease, origin,
};
use rustls::{ClientConfig, NamedGroup, version};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

fn roots() -> rustls::RootCertStore {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(Authority::shared().pem().as_bytes()).unwrap()).unwrap();
    roots
}

/// A client that knows these TLS versions only.
fn only(versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots())
        .with_no_client_auth()
}

/// The certificate shown, or why there is none.
async fn shown(dial: &Dial, config: ClientConfig) -> Result<CertificateDer<'static>, Error> {
    let stream = dial.tls_with(config).await?;
    Ok(stream.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned())
}

fn certificate(path: &std::path::Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(path).unwrap()
}

#[tokio::test]
async fn each_listener_is_told_in_one_line() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    let expected = [
        format!("listening on http://127.0.0.1:{} (HTTP/1.1, h2c)", gw.http_port()),
        format!("listening on https://127.0.0.1:{} (HTTP/1.1, HTTP/2, HTTP/3)", gw.https_port()),
    ];
    assert_eq!(gw.process.out.lines(), expected);
    gw.stop().await;

    let gw = gateway().secure().site("shop.test", &vm).toml("[http3]\nenabled = false").start().await;
    assert_eq!(
        gw.process.out.lines(),
        [format!("listening on https://127.0.0.1:{} (HTTP/1.1, HTTP/2)", gw.https_port())]
    );
    assert_eq!(gw.request(Version::H2, get("/")).await.status, 200);
    gw.stop().await;

    let gw = gateway().plain().site("shop.test", &vm).start().await;
    assert_eq!(
        gw.process.out.lines(),
        [format!("listening on http://127.0.0.1:{} (HTTP/1.1, h2c)", gw.http_port())]
    );
    assert_eq!(gw.request(Version::H1, get("/")).await.status, 200);
    gw.stop().await;
}

#[tokio::test]
async fn ports_may_be_lists_and_addresses_of_both_families() {
    let vm = origin().start().await;
    let (second, third) = (lease(), lease());
    let first = lease();
    let gw = gateway()
        .server("addresses", "[\"127.0.0.1\", \"::1\"]")
        .server("http", &format!("[{}, {}]", first.port, second.port))
        .server("https", &format!("[{}]", third.port))
        .site("shop.test", &vm)
        .start()
        .await;
    for address in ["127.0.0.1", "::1"] {
        for port in [first.port, second.port] {
            for version in Version::ALL {
                let mut dial = Dial::loopback(port, third.port, "shop.test");
                dial.http.set_ip(address.parse().unwrap());
                dial.https.set_ip(address.parse().unwrap());
                let dial = dial.from(address);
                let client =
                    eventually_async("a listener", || async { Client::connect(&dial, version).await.ok() })
                        .await;
                assert_eq!(client.send(&get("/")).await.unwrap().status, 200, "{version:?} {address} {port}");
                assert_eq!(vm.only().fields.all("x-forwarded-for"), [address], "{version:?}");
                vm.forget();
            }
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn alpn_decides_the_version() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    let dial = gw.dial("shop.test");
    for (offered, chosen) in [
        (&[ALPN_H2, ALPN_H1][..], Some(ALPN_H2)),
        (&[ALPN_H1, ALPN_H2][..], Some(ALPN_H2)),
        (&[ALPN_H1][..], Some(ALPN_H1)),
        (&[ALPN_H2][..], Some(ALPN_H2)),
        (&[][..], None),
    ] {
        let stream = dial.tls(offered).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), chosen, "{offered:?}");
    }
    // RFC 7301, section 3.2: no common protocol is an error, not a guess.
    assert!(dial.tls(&[b"spdy/3"]).await.is_err());
    gw.stop().await;
}

#[tokio::test]
async fn tls_1_3_is_the_floor_unless_a_site_says_otherwise() {
    let vm = origin().start().await;
    let old = format!("[sites.\"old.test\"]\npool = {:?}\ntls = {{ min_version = \"1.2\" }}\n", vm.address());
    let gw = gateway().named(&["old.test"]).site("shop.test", &vm).toml(&old).start().await;
    for (name, versions, good) in [
        ("shop.test", &[&version::TLS12][..], false),
        ("shop.test", &[&version::TLS13][..], true),
        ("old.test", &[&version::TLS12][..], true),
        ("old.test", &[&version::TLS13][..], true),
    ] {
        let result = shown(&gw.dial(name), only(versions)).await;
        assert_eq!(result.is_ok(), good, "{name} {versions:?}: {result:?}");
    }
    gw.stop().await;

    let gw = gateway().tls("min_version = \"1.2\"").site("shop.test", &vm).start().await;
    assert!(shown(&gw.dial("shop.test"), only(&[&version::TLS12])).await.is_ok());
    gw.stop().await;
}

#[tokio::test]
async fn the_hybrid_key_exchange_is_offered() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    let hybrid = NamedGroup::X25519MLKEM768;
    // What a client offers, and what must come of it; a client that could do either gets the one that is
    // safe tomorrow too.
    for (offered, chosen) in [
        (&[hybrid][..], hybrid),
        (&[NamedGroup::X25519], NamedGroup::X25519),
        (&[NamedGroup::secp256r1], NamedGroup::secp256r1),
        (&[hybrid, NamedGroup::X25519], hybrid),
    ] {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.kx_groups = rustls::crypto::aws_lc_rs::ALL_KX_GROUPS.to_vec();
        provider.kx_groups.retain(|g| offered.contains(&g.name()));
        provider.kx_groups.sort_by_key(|g| g.name() != hybrid);
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots())
            .with_no_client_auth();
        let stream =
            gw.dial("shop.test").tls_with(config).await.unwrap_or_else(|e| panic!("{offered:?}: {e}"));
        assert_eq!(stream.get_ref().1.negotiated_key_exchange_group().unwrap().name(), chosen, "{offered:?}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn the_certificate_is_chosen_by_the_name_asked_for() {
    let vm = origin().start().await;
    let folder = tempfile::tempdir().unwrap();
    Authority::shared().write(folder.path(), "own", &["own.test"]);
    let own = format!(
        "[sites.\"own.test\"]\npool = {:?}\ntls = {{ cert = {:?}, key = {:?} }}\n",
        vm.address(),
        folder.path().join("own.crt"),
        folder.path().join("own.key")
    );
    let gw = gateway()
        .certificate(&["shop.test", "own.test"])
        .certificate(&["*.shop.test"])
        .certificate(&["exact.shop.test"])
        .site("shop.test", &vm)
        .site("*.shop.test", &vm)
        .site("exact.shop.test", &vm)
        .toml(&own)
        .start()
        .await;
    let path = |number: usize| gw.folder().join(format!("tls{number}.crt"));
    for (name, expected) in [
        ("shop.test", path(0)),
        ("a.shop.test", path(1)),
        ("exact.shop.test", path(2)),
        // A site's own certificate comes before one of the list.
        ("own.test", folder.path().join("own.crt")),
    ] {
        let got = shown(&gw.dial(name), Authority::shared().client(&[])).await.unwrap();
        assert_eq!(got, certificate(&expected), "{name}");
        for version in [Version::H1Tls, Version::H2, Version::H3] {
            assert_eq!(gw.request(version, get("/").host(name)).await.status, 200, "{version:?} {name}");
        }
    }
    gw.stop().await;
}

/// Clients with no name, or one nobody has: refused, unless there is a certificate for them.
#[tokio::test]
async fn nameless_clients_get_the_default_certificate_or_none() {
    let vm = origin().start().await;
    let nameless = || {
        let mut config = Authority::shared().client(&[]);
        config.enable_sni = false;
        config
    };
    let gw = gateway().site("shop.test", &vm).start().await;
    assert!(shown(&gw.dial("shop.test"), nameless()).await.is_err());
    let Err(refused) = shown(&gw.dial("unknown.test"), Authority::shared().client(&[])).await else {
        panic!("served")
    };
    assert!(refused.to_string().contains("alert"), "the gateway must refuse, not the client: {refused}");
    for version in [Version::H2, Version::H3] {
        assert!(Client::connect(&gw.dial("unknown.test"), version).await.is_err(), "{version:?}");
    }
    gw.stop().await;

    let gw = gateway().tls("default_certificate = \"shop.test\"").site("shop.test", &vm).start().await;
    assert!(shown(&gw.dial("shop.test"), nameless()).await.is_ok());
    let Err(refused) = shown(&gw.dial("unknown.test"), Authority::shared().client(&[])).await else {
        panic!("fits")
    };
    assert!(
        !refused.to_string().contains("alert"),
        "now it is the client who finds the wrong name: {refused}"
    );
    gw.stop().await;
}

/// For development: no certificate is configured, one is made, and kept for the next start.
#[tokio::test]
async fn a_self_signed_certificate_is_made_and_kept() {
    let vm: Origin = origin().start().await;
    let state = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    for _ in 0..2 {
        let gw = gateway()
            .certificate(&[])
            .server("state_dir", &format!("{:?}", state.path()))
            .tls("self_signed = true")
            .toml(&format!("[sites.\"shop.test\"]\npool = {:?}\n", vm.address()))
            .start()
            .await;
        let Err(unknown) = shown(&gw.dial("shop.test"), Authority::shared().client(&[])).await else {
            panic!("trusted")
        };
        assert!(unknown.to_string().contains("UnknownIssuer"), "{unknown}");
        // It is kept beside the serving, so the end is awaited.
        gw.stop().await;
        seen.push(files(&state.path().join("self-signed")));
    }
    assert!(!seen[0].is_empty());
    assert!(
        seen[0] == seen[1],
        "the second start made others: {:?}",
        seen[1].iter().map(|f| &f.0).collect::<Vec<_>>()
    );
}

fn files(folder: &std::path::Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// Noise on the ports disturbs nobody.
/// A pair of files as somebody who renews certificates writes it: one after the other, each in one go.
fn renew(gw: &Gateway, name: &str, host: &str) -> CertificateDer<'static> {
    let (certificate, key) = Authority::shared().issue(&[host]);
    for (ending, text) in [("crt", &certificate), ("key", &key)] {
        let (aside, file) = (gw.folder().join("aside"), gw.folder().join(format!("{name}.{ending}")));
        std::fs::write(&aside, text).unwrap();
        std::fs::rename(aside, file).unwrap();
    }
    CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()
}

/// Nobody has to reload, nobody is disturbed, and one broken pair keeps no other back.
#[tokio::test]
async fn certificate_files_that_change_are_read_again() {
    let vm = origin().named("a").start().await;
    let gw = gateway()
        .site("a.test", &vm)
        .site("b.test", &vm)
        .certificate(&["a.test"])
        .certificate(&["b.test"])
        .start()
        .await;
    let by_tcp = async |host: &str| shown(&gw.dial(host), only(&[&version::TLS13])).await.unwrap();
    let by_quic = async |host: &str| {
        let client = gw.client(Version::H3, host).await;
        let chain =
            client.quic().peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
        chain[0].clone().into_owned()
    };
    let follows = async |host: &str, wanted: &CertificateDer<'static>| {
        eventually_async("it is shown", || async { (by_tcp(host).await == *wanted).then_some(()) }).await;
        assert_eq!(by_quic(host).await, *wanted, "{host}");
    };
    let before = gw.client(Version::H2, "a.test").await;
    assert_eq!(before.send(&get("/").host("a.test")).await.unwrap().status, 200);
    let old = by_tcp("b.test").await;

    let new = renew(&gw, "tls0", "a.test");
    follows("a.test", &new).await;
    assert_eq!(by_tcp("b.test").await, old);

    std::fs::write(gw.folder().join("tls1.key"), "oops").unwrap();
    let newer = renew(&gw, "tls0", "a.test");
    follows("a.test", &newer).await;
    follows("b.test", &old).await;
    let told = || gw.log().having(&["tls1.key holds no private key"]).len();
    let before_long = told();
    assert!(before_long > 0);
    // It is told once for each change, however long it stays so.
    tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    assert_eq!(told(), before_long);
    // Whoever reloads is told too, and nothing follows of it.
    assert!(gw.refused(&["reload"]).await.contains("tls1.key holds no private key"));

    let mended = renew(&gw, "tls1", "b.test");
    follows("b.test", &mended).await;
    assert_eq!(before.send(&get("/").host("a.test")).await.unwrap().status, 200);
    assert_eq!(before.dialed(), 1, "who is connected stays so");
    assert_eq!(gw.told(&["history"]).await.lines().count(), 2, "it is the same configuration");

    let listed = gw.told(&["certificates"]).await;
    assert!(listed.contains("foregate tests") && listed.contains("tls0.crt"), "{listed}");
    let listed: Value = serde_json::from_str(&gw.told(&["certificates", "--json"]).await).unwrap();
    let one = listed.as_array().unwrap().iter().find(|one| one["shown_for"][0] == "a.test").unwrap();
    assert_eq!((&one["source"], &one["names"][0]), (&"file".into(), &"a.test".into()), "{one}");
    assert!(one["expires_in_days"].as_u64().unwrap() > 300, "{one}");
    gw.stop().await;
}

#[tokio::test]
async fn who_has_not_renewed_is_told() {
    let vm = origin().start().await;
    let pair = |days: i64| {
        let mut params = rcgen::CertificateParams::new(vec![format!("d{}.test", days.abs())]).unwrap();
        let now = std::time::SystemTime::now();
        let day = |days: i64| match u64::try_from(days) {
            Ok(days) => now + std::time::Duration::from_secs(days * 86_400),
            Err(_) => now - std::time::Duration::from_secs(days.unsigned_abs() * 86_400),
        };
        (params.not_before, params.not_after) = (day(-90).into(), day(days).into());
        let key = rcgen::KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    let ((expired, its_key), (expires, other_key)) = (pair(-1), pair(5));
    let text = "[[tls.certificates]]\ncert = \"expired.crt\"\nkey = \"expired.key\"\n\
        [[tls.certificates]]\ncert = \"expires.crt\"\nkey = \"expires.key\"\n";
    let gw = gateway()
        .site("shop.test", &vm)
        .certificate(&[])
        .toml("[sites.\"d1.test\"]\nrespond = { status = 418 }\n")
        .toml(text)
        .tls("self_signed = true\n")
        .file("expired.crt", &expired)
        .file("expired.key", &its_key)
        .file("expires.crt", &expires)
        .file("expires.key", &other_key)
        .start()
        .await;
    for words in [
        ["expired.crt has expired on", "clients refuse it"],
        ["ERROR", "certificate for d1.test has expired"],
        ["WARN", "certificate for d5.test is about to expire"],
    ] {
        eventually("it is said", || gw.log().having(&words[..1]).first().cloned()).await;
        eventually("it is said", || gw.log().having(&words[1..]).first().cloned()).await;
    }
    gw.stop().await;
}

#[tokio::test]
async fn garbage_is_survived() {
    let vm = origin().start().await;
    let gw = gateway().site("shop.test", &vm).start().await;
    let dial = gw.dial("shop.test");
    let busy = gw.client(Version::H3, "shop.test").await;
    for noise in [
        &b"GET / HTTP/1.1\r\nHost: shop.test\r\n\r\n"[..],
        &[0; 100],
        &[0x16, 3, 1, 255, 255, 1, 2, 3],
        &[255; 2000],
    ] {
        for port in [dial.http, dial.https] {
            let mut stream = tokio::net::TcpStream::connect(port).await.unwrap();
            let _ = stream.write_all(noise).await;
        }
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(dial.https).await.unwrap();
        for first in [0x00_u8, 0x40, 0xc0, 0xff] {
            let mut datagram = noise.to_vec();
            datagram.resize(1200, 0);
            datagram[0] = first;
            let _ = socket.send(&datagram).await;
        }
    }
    for version in Version::ALL {
        assert_eq!(gw.request(version, get("/")).await.status, 200, "{version:?}");
    }
    assert_eq!(busy.send(&get("/")).await.unwrap().status, 200);
    gw.stop().await;
}
