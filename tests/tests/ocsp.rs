//! Certificates that are to be shown with their authority's word, which is openssl here.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::path::Path;

use foregate_tests::foreign::{Running, finish, program};
use foregate_tests::{
    Authority, Client, Gateway, GatewayBuilder, Lease, Version, Visitor, eventually, eventually_async,
    gateway, get, lease,
};

/// openssl as the authority's responder: it knows one certificate, with this serial number, good ("V") or revoked ("R").
async fn responder(folder: &Path, port: &Lease, serial: u8, state: &str) -> Running {
    let path = |name: &str| folder.join(name).display().to_string();
    let revoked = if state == "R" { "250101000000Z" } else { "" };
    fs::write(
        path("index"),
        format!("{state}\t491231235959Z\t{revoked}\t{serial:02X}\tunknown\t/CN=a.test\n"),
    )
    .unwrap();
    fs::write(path("ca.pem"), Authority::shared().pem()).unwrap();
    fs::write(path("ca.key"), Authority::shared().key()).unwrap();
    let mut openssl = program("openssl", "openssl");
    openssl.args(["ocsp", "-index", &path("index"), "-port", &port.port.to_string(), "-nmin", "60"]);
    openssl.args(["-rsigner", &path("ca.pem"), "-rkey", &path("ca.key"), "-CA", &path("ca.pem")]);
    let says = Running::start(&mut openssl);
    // A connection that asks nothing would keep it waiting.
    let listens = || std::net::TcpListener::bind(("127.0.0.1", port.port)).is_err().then_some(());
    eventually("the responder listens", listens).await;
    says
}

fn with_certificate(responder: &Lease, serial: u8) -> GatewayBuilder {
    let (chain, key) =
        Authority::shared().stapled("shop.test", &format!("http://127.0.0.1:{}", responder.port), serial);
    gateway()
        .file("shop.crt", &chain)
        .file("shop.key", &key)
        .toml("[[tls.certificates]]\ncert = \"shop.crt\"\nkey = \"shop.key\"\n[sites.\"shop.test\"]\nrespond = {}\n")
}

/// What a new client is shown beside the certificate.
async fn shown(gw: &Gateway, version: Version) -> Vec<u8> {
    let visitor = Visitor::new(None);
    let client = Client::connect(&gw.dial("shop.test").by(&visitor), version).await.unwrap();
    assert_eq!(client.send(&get("/")).await.unwrap().status, 200);
    visitor.shown_word()
}

#[tokio::test]
async fn a_certificate_that_wants_it_is_shown_with_its_authoritys_word() {
    let (folder, port) = (tempfile::tempdir().unwrap(), lease());
    let says = responder(folder.path(), &port, 7, "V").await;
    let gw = with_certificate(&port, 7).start().await;
    for version in [Version::H1Tls, Version::H2, Version::H3] {
        let word = async || Some(shown(&gw, version).await).filter(|word| !word.is_empty());
        eventually_async("it is shown", word).await;
    }
    let told = async || {
        let mut openssl = program("openssl", "openssl");
        let at = format!("127.0.0.1:{}", gw.https_port());
        openssl.args(["s_client", "-connect", &at, "-servername", "shop.test", "-status"]);
        openssl.args(["-CAfile", &folder.path().join("ca.pem").display().to_string()]);
        finish(&mut openssl).await.out
    };
    let told = told().await;
    assert!(
        told.contains("OCSP Response Status: successful") && told.contains("Cert Status: good"),
        "{told}"
    );
    // It stays as long as it is good, whoever reads the certificate again, and whether or not the authority is there.
    drop(says);
    fs::write(gw.folder().join("shop.key"), fs::read(gw.folder().join("shop.key")).unwrap()).unwrap();
    for command in [&["reload", "--force"][..], &["upgrade"]] {
        gw.told(command).await;
        for version in [Version::H2, Version::H3] {
            let word = async || Some(shown(&gw, version).await).filter(|word| !word.is_empty());
            eventually_async("it is shown still", word).await;
        }
    }
    gw.stop().await;
}

#[tokio::test]
async fn what_the_authority_does_not_say_is_told() {
    let (folder, port) = (tempfile::tempdir().unwrap(), lease());
    let gw = with_certificate(&port, 8).start().await;
    let there_is_none =
        |why: &str| gw.log().having(&["authority's word (OCSP), and there is none", why]).pop();
    eventually("nobody is there", || there_is_none("cannot be asked")).await;
    assert!(shown(&gw, Version::H2).await.is_empty());
    gw.stop().await;
    for (serial, state, why) in
        [(8, "R", "the certificate is REVOKED"), (9, "V", "it does not know the certificate")]
    {
        let _says = responder(folder.path(), &port, serial, state).await;
        let gw = with_certificate(&port, 8).start().await;
        let told = || gw.log().having(&["authority's word (OCSP), and there is none", why]).pop();
        eventually("it is told", told).await;
        assert!(shown(&gw, Version::H3).await.is_empty());
        gw.stop().await;
    }
}
