//! Clients with certificates, of programs that read ours for themselves: who is let in, and what the VM hears of them.

use std::{fs, process::Command, time::Duration};

use foregate_tests::{
    Certified, ClientAuthority, Gateway, Identity,
    foreign::{Trust, finish},
    gateway, origin,
};

use super::{client, curl_to, url};

/// The ways to ask, and the version the VM hears of.
const WAYS: [(&str, &str); 4] =
    [("curl --http1.1", "1.1"), ("curl --http2", "2"), ("curl_cffi", "3"), ("aioquic", "3")];

fn asking(way: &str, gw: &Gateway, trust: &Trust, shown: Option<&Identity>) -> Command {
    let files = [trust.path("shown.crt"), trust.path("shown.key")];
    let [cert, key] = &files;
    let mut with = Vec::new();
    if let Some(identity) = shown {
        fs::write(cert, &identity.chain).unwrap();
        fs::write(key, &identity.key).unwrap();
        with = vec!["--cert", cert, "--key", key];
    }
    match way.strip_prefix("curl ") {
        Some(version) => {
            let mut curl = curl_to(gw, trust);
            curl.args([version, "--fail", &url(gw, true, "/")]).args(with);
            curl
        }
        None if way == "curl_cffi" => {
            client("curl_cffi_client.py", gw, trust, &[&["GET"], &with[..]].concat())
        }
        None => client("aioquic_client.py", gw, trust, &[&["get"], &with[..]].concat()),
    }
}

#[tokio::test]
async fn other_programs_show_their_certificates_and_are_let_in_or_not() {
    let vm = origin().start().await;
    let (ours, theirs) = (ClientAuthority::new("ours"), ClientAuthority::new("theirs"));
    let branch = ours.intermediate("branch");
    let issued = |by: &ClientAuthority| by.issue(&Certified::client("alice"));
    let (good, by_branch, revoked, foreign) =
        (issued(&ours), issued(&branch), issued(&ours), issued(&theirs));
    let expired = ours.issue(&Certified { lasts: Duration::from_secs(3600), ..Certified::client("alice") });
    let gw = gateway()
        .named(&["shop.test"])
        .toml(&format!(
            "[sites.\"shop.test\"]\npool = \"{}\"\ntls = {{ client_ca = \"ca.pem\", client_crl = \"ca.crl\" }}",
            vm.address()
        ))
        .file("ca.pem", ours.pem())
        .file("ca.crl", &(ours.list(&[&revoked]) + &branch.list(&[])))
        .start()
        .await;
    let trust = Trust::new();
    for (way, version) in WAYS {
        for (what, identity) in [("its own", &good), ("of a branch", &by_branch)] {
            let done = finish(&mut asking(way, &gw, &trust, Some(identity))).await;
            assert!(done.status.success(), "{way}, {what}: {done:?}");
            let told = vm.only();
            vm.forget();
            assert_eq!(told.fields.all("via"), [format!("{version} foregate")], "{way}");
            assert_eq!(
                told.fields.all("x-client-cert-subject"),
                ["CN=alice,O=Tests\\, Inc."],
                "{way}, {what}"
            );
        }
        for (what, identity) in [
            ("none", None),
            ("another authority", Some(&foreign)),
            ("expired", Some(&expired)),
            ("revoked", Some(&revoked)),
        ] {
            let done = finish(&mut asking(way, &gw, &trust, identity)).await;
            assert!(!done.status.success(), "{way}, {what}: {done:?}");
        }
        assert!(vm.requests().is_empty(), "{way}");
    }
    gw.stop().await;
}
