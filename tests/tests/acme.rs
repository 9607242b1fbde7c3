//! Certificates from an authority that is not ours: Pebble.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use foregate_tests::foreign::{finish, program};
use foregate_tests::pebble::{EAB_KEY, Pebble};
use foregate_tests::{
    Authority, Fields, Gateway, Origin, Process, Version, binary, eventually, eventually_async, gateway, get,
    origin, shakes_hands_over_quic,
};
use serde_json::Value;

/// A gateway that serves something else so far, so that its ports are known.
async fn begun() -> Gateway {
    gateway()
        .named(&["other.test"])
        .file("ca.pem", Authority::shared().pem())
        .toml("[sites.\"other.test\"]\nrespond = {}\n")
        .start()
        .await
}

fn site(name: &str, hosts: &[&str]) -> String {
    format!("[sites.{name:?}]\nhosts = {hosts:?}\nrespond = {{ body = \"{name}\" }}\n")
}

/// Serves these sites as well, with certificates of the authority.
async fn add(gw: &Gateway, pebble: &Pebble, keys: &str, sites: &str) {
    gw.edit(|text| format!("{text}{}{keys}{sites}", pebble.toml()));
    gw.told(&["reload"]).await;
}

/// Waits until the certificate that is shown for this host comes from the authority, and visits the site by all versions.
async fn serves(gw: &Gateway, pebble: &Pebble, host: &str, body: &str) {
    let root = pebble.root().await;
    let visit = |version: &'static str| {
        let mut curl = program("curl", "curl");
        curl.args(["-q", "--silent", "--noproxy", "*", "--max-time", "10", version])
            .arg("--cacert")
            .arg(&root);
        curl.args(["--resolve", &format!("{host}:{}:127.0.0.1", gw.https_port())]);
        curl.arg(format!("https://{host}:{}/", gw.https_port()));
        async move { finish(&mut curl).await.out }
    };
    eventually_async("the site is served", || {
        let answer = visit("--http2");
        async move { (answer.await == body).then_some(()) }
    })
    .await;
    assert_eq!(visit("--http1.1").await, body);
    let root = fs::read_to_string(root).unwrap();
    assert_eq!(shakes_hands_over_quic(&root, gw.https_port(), host).await, Ok(()), "HTTP/3");
}

async fn listed(gw: &Gateway) -> Vec<Value> {
    let text = gw.told(&["certificates", "--json"]).await;
    serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
}

/// What an authority has issued, by the folder of its name.
fn folder(gw: &Gateway) -> PathBuf {
    let mut all = fs::read_dir(gw.folder().join("state/acme")).unwrap();
    all.next().unwrap().unwrap().path()
}

/// A program like this one but for one thing, and the lines that name it.
fn altered(hook: &Path, from: &str, to: &str) -> (PathBuf, String) {
    let program = hook.with_file_name("altered");
    fs::write(&program, fs::read_to_string(hook).unwrap().replace(from, to)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let keys = format!("challenges = \"dns-01\"\ndns_hook = {:?}\n", program.display().to_string());
    (program, keys)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[tokio::test]
async fn a_site_that_is_added_gets_a_certificate_by_each_challenge() {
    for challenge in ["tls-alpn-01", "http-01", "dns-01"] {
        let gw = begun().await;
        let pebble = Pebble::start(&gw, &[]).await;
        let (hook, did) = pebble.hook();
        let mut keys = format!("email = \"ops@other.test\"\nchallenges = \"{challenge}\"\n");
        let mut hosts = vec!["shop.test", "www.shop.test"];
        if challenge == "dns-01" {
            keys += &format!("dns_hook = [{:?}]\n", hook.display().to_string());
            hosts.push("*.api.shop.test");
        }
        add(&gw, &pebble, &keys, &site("shop", &hosts)).await;
        serves(&gw, &pebble, "www.shop.test", "shop").await;
        if challenge == "dns-01" {
            serves(&gw, &pebble, "v1.api.shop.test", "shop").await;
            let did = fs::read_to_string(did).unwrap();
            let times = |what: &str| did.lines().filter(|line| line.starts_with(what)).count();
            assert_eq!(
                (times("present _acme-challenge."), times("cleanup _acme-challenge.")),
                (3, 3),
                "{did}"
            );
        }
        // One certificate for all hosts of a site, renewed by itself.
        let listed = listed(&gw).await;
        let ordered: Vec<_> = listed.iter().filter(|one| one["source"] == "acme").collect();
        assert_eq!(ordered.len(), 1, "{listed:?}");
        assert_eq!(ordered[0]["shown_for"].as_array().unwrap().len(), hosts.len());
        assert!(ordered[0]["order"]["next"].is_string(), "{ordered:?}");
        let folder = folder(&gw);
        assert_eq!((mode(&folder), mode(&folder.join("site-shop.pem"))), (0o700, 0o600));
        assert_eq!(mode(&folder.join("account.json")), 0o600);
        assert!(!folder.join("site-shop.order").exists());
        // Nobody orders twice.
        assert_eq!(gw.log().having(&["a certificate is ordered"]).len(), 1, "{challenge}");
        gw.stop().await;
    }
}

#[tokio::test]
async fn it_is_there_after_a_restart_without_a_new_order() {
    let gw = begun().await;
    let pebble = Pebble::start(&gw, &[]).await;
    add(&gw, &pebble, "", &site("shop", &["shop.test"])).await;
    serves(&gw, &pebble, "shop.test", "shop").await;
    let before = fs::read(folder(&gw).join("site-shop.pem")).unwrap();
    gw.told(&["upgrade"]).await;
    serves(&gw, &pebble, "shop.test", "shop").await;
    assert_eq!(gw.log().having(&["a certificate is ordered"]).len(), 1);
    assert_eq!(fs::read(folder(&gw).join("site-shop.pem")).unwrap(), before);
    // Another host takes another certificate; the old one is shown until that is there.
    gw.edit(|text| text.replace("[\"shop.test\"]", "[\"shop.test\", \"more.test\"]"));
    gw.told(&["reload"]).await;
    serves(&gw, &pebble, "more.test", "shop").await;
    serves(&gw, &pebble, "shop.test", "shop").await;
    // One that somebody has thrown away is ordered anew.
    let file = folder(&gw).join("site-shop.pem");
    let before = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    gw.told(&["reload"]).await;
    let after = eventually("a new one", || fs::read(&file).ok()).await;
    assert_ne!(after, before);
    // An address that changes is told, and nothing is ordered for that.
    for email in ["ops@a.example", "other@a.example"] {
        gw.edit(|text| {
            let kept = text.lines().filter(|line| !line.starts_with("email = "));
            let text: String = kept.map(|line| format!("{line}\n")).collect();
            text.replace("[tls.acme]\n", &format!("[tls.acme]\nemail = \"{email}\"\n"))
        });
        gw.told(&["reload"]).await;
        let told = || gw.log().having(&["the authority knows the new address", email]).pop();
        eventually("it is told", told).await;
    }
    assert!(gw.log().having(&["does not take"]).is_empty());
    gw.stop().await;
}

/// What was issued for a host is shown for it, whatever its site is called and whoever is to issue the next one.
#[tokio::test]
async fn a_certificate_that_is_good_is_not_given_up() {
    let gw = begun().await;
    let mut pebble = Pebble::start(&gw, &[]).await;
    add(&gw, &pebble, "", &site("shop", &["shop.test"])).await;
    serves(&gw, &pebble, "shop.test", "shop").await;
    let root = pebble.root().await;
    pebble.end();
    gw.edit(|text| text.replace("[sites.\"shop\"]", "[sites.\"store\"]").replace("/dir\"", "/other\""));
    gw.told(&["reload"]).await;
    eventually("the order fails", || gw.log().having(&["no certificate", "store"]).pop()).await;
    let root = fs::read_to_string(root).unwrap();
    assert_eq!(shakes_hands_over_quic(&root, gw.https_port(), "shop.test").await, Ok(()));
    assert!(gw.told(&["certificates"]).await.contains("shop.test"));
    gw.stop().await;
}

#[tokio::test]
async fn many_sites_at_once_and_an_authority_that_rejects_nonces() {
    let gw = begun().await;
    let pebble = Pebble::start(&gw, &[("PEBBLE_WFE_NONCEREJECT", "20")]).await;
    let sites: String = (0..50).map(|n| site(&format!("s{n}"), &[&format!("s{n}.test")])).collect();
    add(&gw, &pebble, "", &sites).await;
    let issued = || {
        fs::read_dir(folder(&gw))
            .unwrap()
            .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|kind| kind == "pem"))
            .count()
    };
    eventually("the account", || gw.log().having(&["ACME account made"]).pop()).await;
    for _ in 0..4 {
        // A fifth of all requests is rejected at first, and some three times; those are ordered again.
        let waited = tokio::time::timeout(Duration::from_secs(20), async {
            while issued() < 50 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        if waited.await.is_ok() {
            break;
        }
        gw.told(&["reload"]).await;
    }
    assert_eq!(issued(), 50, "{:?}", gw.log().having(&["no certificate"]));
    serves(&gw, &pebble, "s0.test", "s0").await;
    serves(&gw, &pebble, "s49.test", "s49").await;
    assert_eq!(gw.log().having(&["ACME account made"]).len(), 1);
    gw.stop().await;
}

#[tokio::test]
async fn who_cannot_prove_a_name_is_told_why_and_waits() {
    let gw = begun().await;
    let pebble = Pebble::start(&gw, &[]).await;
    gw.edit(|text| text.replacen("[tls]", "[tls]\nself_signed = true", 1));
    add(
        &gw,
        &pebble,
        "challenges = \"dns-01\"\ndns_hook = [\"/bin/false\"]\n",
        &site("shop", &["shop.test"]),
    )
    .await;
    let line = eventually("the reason", || gw.log().having(&["no certificate", "dns_hook"]).pop()).await;
    assert!(
        line.contains("/bin/false present _acme-challenge.shop.test") && line.contains("next_in_s="),
        "{line}"
    );
    let self_signed =
        |one: &Value| one["source"] == "self-signed" && one["shown_for"].to_string().contains("shop.test");
    assert!(listed(&gw).await.iter().any(self_signed), "meanwhile");
    let told = gw.told(&["certificates"]).await;
    assert!(told.contains("none yet for shop.test") && told.contains("ACME, again on"), "{told}");
    // One who says that it is mended need not wait.
    let (hook, _) = pebble.hook();
    gw.edit(|text| text.replace("/bin/false", &hook.display().to_string()));
    gw.told(&["reload"]).await;
    serves(&gw, &pebble, "shop.test", "shop").await;
    gw.stop().await;
}

#[tokio::test]
async fn a_proof_that_the_authority_refuses_is_an_error_with_its_words() {
    let gw = begun().await;
    let pebble = Pebble::start(&gw, &[]).await;
    let (hook, _) = pebble.hook();
    // It writes something else.
    let (_, keys) = altered(&hook, "$3", "nonsense");
    add(&gw, &pebble, &keys, &site("shop", &["shop.test"])).await;
    let line = eventually("the reason", || gw.log().having(&["no certificate", "shop.test: "]).pop()).await;
    assert!(line.contains("DNS challenge") && line.contains("unauthorized"), "{line}");
    assert!(!folder(&gw).join("site-shop.order").exists(), "that order is over");
    gw.stop().await;
}

#[tokio::test]
async fn an_authority_that_is_down_is_asked_again() {
    let gw = begun().await;
    let mut pebble = Pebble::start(&gw, &[]).await;
    pebble.end();
    add(&gw, &pebble, "", &site("shop", &["shop.test"])).await;
    let line =
        eventually("the reason", || gw.log().having(&["no certificate", "cannot be asked"]).pop()).await;
    assert!(line.contains("refused"), "{line}");
    pebble.begin().await;
    gw.told(&["reload"]).await;
    serves(&gw, &pebble, "shop.test", "shop").await;
    gw.stop().await;
}

/// Whatever an authority says, and if it says nothing, is told and bounded, and what is served is served on.
#[tokio::test]
async fn an_authority_that_talks_nonsense_disturbs_nobody() {
    let authority = origin()
        .tls("localhost", false)
        .on("/page", |call| {
            Box::pin(async move { call.reply(200, &Fields::new(), "<html>welcome</html>").await })
        })
        .on("/none", |call| Box::pin(async move { call.reply(404, &Fields::new(), "").await }))
        .on("/broken", |call| Box::pin(async move { call.reply(500, &Fields::new(), "{}").await }))
        .on("/empty", |call| Box::pin(async move { call.reply(200, &Fields::new(), "{}").await }))
        .on("/large", |call| {
            Box::pin(async move {
                call.start(200, &Fields::new(), None).await;
                _ = call.write_pattern(64 << 20).await;
                call.finish(&Fields::new()).await;
            })
        })
        .on("/silent", |_| Box::pin(std::future::pending()))
        .start()
        .await;
    let gw = begun().await;
    let before = gw.process.memory("VmRSS");
    let acme = |path: &str| {
        format!("[tls.acme]\ndirectory = \"https://localhost:{}{path}\"\nca = \"ca.pem\"\n", authority.port())
    };
    gw.edit(|text| format!("{text}{}{}", acme("/page"), site("shop", &["shop.test"])));
    let mut last = acme("/page");
    for (path, says) in [
        ("/page", "no certificate"),
        ("/none", "no certificate"),
        ("/broken", "no certificate"),
        ("/empty", "no certificate"),
        ("/large", "length limit exceeded"),
        ("/silent", "no answer within 30s"),
    ] {
        gw.edit(|text| text.replace(&last, &acme(path)));
        last = acme(path);
        let known = gw.log().having(&["no certificate", says]).len();
        gw.told(&["reload"]).await;
        let told = tokio::time::timeout(Duration::from_secs(40), async {
            while gw.log().having(&["no certificate", says]).len() <= known {
                assert_eq!(gw.request(Version::H2, get("/").host("other.test")).await.status, 200, "{path}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        assert!(told.await.is_ok(), "{path}: {}", gw.log().text());
    }
    assert!(gw.process.memory("VmRSS") < before + (32 << 20), "it is not kept");
    gw.stop().await;
}

#[tokio::test]
async fn an_account_is_bound_to_one_that_the_authority_knows() {
    let gw = begun().await;
    let pebble = Pebble::start(&gw, &[("EAB", "1")]).await;
    add(&gw, &pebble, "", &site("shop", &["shop.test"])).await;
    eventually("the reason", || gw.log().having(&["no certificate", "externalAccountRequired"]).pop()).await;
    fs::write(gw.folder().join("eab.key"), format!("{EAB_KEY}\n")).unwrap();
    gw.edit(|text| {
        text.replace("[tls.acme]", "[tls.acme]\neab = { key_id = \"kid-1\", hmac_key_file = \"eab.key\" }")
    });
    gw.told(&["reload"]).await;
    serves(&gw, &pebble, "shop.test", "shop").await;
    gw.stop().await;
}

/// Whoever is killed in mid-order is followed by one that goes on with it.
#[tokio::test]
async fn an_order_that_was_begun_is_finished_after_a_crash() {
    let gw = begun().await;
    let pebble = Pebble::start(&gw, &[]).await;
    let (hook, _) = pebble.hook();
    let (slow, keys) = altered(&hook, "set -e\n", "set -e\n[ -e $0.go ] || sleep 60\n");
    add(&gw, &pebble, &keys, &site("shop", &["shop.test"])).await;
    eventually("the order is noted", || {
        let folder = gw.folder().join("state/acme");
        let all = fs::read_dir(folder).ok()?.next()?.ok()?.path();
        all.join("site-shop.order").exists().then_some(())
    })
    .await;
    let order = fs::read_to_string(folder(&gw).join("site-shop.order")).unwrap();
    assert_eq!(mode(&folder(&gw).join("site-shop.order")), 0o600);
    gw.process.signal(rustix::process::Signal::KILL);
    fs::write(slow.with_extension("go"), "").unwrap();
    let config = gw.config().to_owned();
    let mut command = std::process::Command::new(binary());
    command.arg("run").arg("--config").arg(config).env("NO_COLOR", "1");
    eventually("it has gone", || {
        std::net::TcpStream::connect(("127.0.0.1", gw.https_port())).err().map(|_| ())
    })
    .await;
    let next = Process::spawn(&mut command);
    eventually("it goes on", || next.err.having(&["going on with the order"]).pop()).await;
    serves(&gw, &pebble, "shop.test", "shop").await;
    let key = serde_json::from_str::<Value>(&order).unwrap()["key"].as_str().unwrap().to_owned();
    let issued = fs::read_to_string(folder(&gw).join("site-shop.pem")).unwrap();
    assert!(issued.contains(key.trim()), "with the key it was begun with");
    assert!(!folder(&gw).join("site-shop.order").exists());
    drop(next);
}

/// With less than a third of its time left it is renewed, and the new one is shown without a reload.
#[tokio::test]
async fn it_is_renewed_in_time() {
    let gw = begun().await;
    let pebble = Pebble::start(&gw, &[]).await;
    add(&gw, &pebble, "", &site("shop", &["shop.test"])).await;
    serves(&gw, &pebble, "shop.test", "shop").await;
    let serial = |listed: Vec<Value>| {
        listed
            .iter()
            .find(|one| one["source"] == "acme")
            .map(|one| one["serial"].as_str().unwrap().to_owned())
    };
    let before = serial(listed(&gw).await).unwrap();
    // One of the same names that is about to expire takes its place, as if time had passed.
    fs::write(folder(&gw).join("site-shop.pem"), Authority::shared().aged(&["shop.test"], 60, 10)).unwrap();
    gw.told(&["upgrade"]).await;
    eventually_async("a new one is shown", || async {
        let now = serial(listed(&gw).await)?;
        (now != before && listed(&gw).await.iter().any(|one| one["issuer"].to_string().contains("Pebble")))
            .then_some(())
    })
    .await;
    serves(&gw, &pebble, "shop.test", "shop").await;
    gw.stop().await;
}

/// Whether there is to be a certificate for a name is known by somebody else.
async fn knows(allowed: &'static [&'static str]) -> Origin {
    origin()
        .on("/allowed", move |call| {
            Box::pin(async move {
                let name = call.request.target.split_once("domain=").map(|(_, name)| name.to_owned());
                let status = if name.is_some_and(|name| allowed.contains(&&*name)) { 200 } else { 403 };
                call.reply(status, &Fields::new(), "").await;
            })
        })
        .start()
        .await
}

#[tokio::test]
async fn a_certificate_is_made_when_it_is_asked_for_and_allowed() {
    let who = knows(&["new.test", "late.test"]).await;
    let gw = gateway()
        .named(&["other.test"])
        .file("ca.pem", Authority::shared().pem())
        .toml("[sites.\"other.test\"]\nrespond = {}\n[sites.all]\nhosts = \"*\"\nrespond = { body = \"all\" }\n")
        .tls("self_signed = false\ndefault_certificate = \"other.test\"")
        .start()
        .await;
    let pebble = Pebble::start(&gw, &[]).await;
    let on_demand = format!("on_demand = {{ ask = \"http://{}/allowed\" }}\n", who.address());
    gw.edit(|text| {
        let text = text.replace("default_certificate = \"other.test\"\n", "");
        format!("{text}{}{on_demand}", pebble.toml())
    });
    gw.told(&["reload"]).await;

    // The first visit waits for the order.
    let root = pebble.root().await;
    let port = gw.https_port();
    let visit = |host: &str| {
        let mut curl = program("curl", "curl");
        curl.args(["-q", "--silent", "--show-error", "--noproxy", "*", "--max-time", "25"])
            .arg("--cacert")
            .arg(&root);
        curl.args(["--resolve", &format!("{host}:{port}:127.0.0.1"), &format!("https://{host}:{port}/")]);
        async move { finish(&mut curl).await }
    };
    let (first, second) = tokio::join!(visit("new.test"), visit("new.test"));
    assert_eq!((&*first.out, &*second.out), ("all", "all"), "{first:?} {second:?}");
    assert_eq!(gw.log().having(&["a certificate is ordered", "new.test"]).len(), 1);
    serves(&gw, &pebble, "new.test", "all").await;
    assert_eq!(who.requests().len(), 1, "nobody else is asked about");

    // Who is not allowed is refused at once, and not asked about each time.
    for _ in 0..3 {
        assert!(!visit("bad.test").await.status.success());
    }
    assert!(!visit("other.a.bad.test").await.status.success());
    let asked: Vec<String> = who.requests().iter().map(|request| request.target.clone()).collect();
    assert_eq!(
        asked,
        ["new.test", "bad.test", "other.a.bad.test"].map(|name| format!("/allowed?domain={name}"))
    );
    assert_eq!(gw.log().having(&["no certificate on demand: it is not allowed", "bad.test"]).len(), 2);
    assert!(folder(&gw).join("on-demand/new.test.pem").exists());
    assert!(!folder(&gw).join("on-demand/bad.test.pem").exists());
    let told = gw.told(&["certificates"]).await;
    assert!(told.contains("new.test") && !told.contains("bad.test"), "{told}");

    // Over QUIC nobody is asked: anybody can ask for anything in anybody's name there.
    let trusted = fs::read_to_string(&root).unwrap();
    assert!(shakes_hands_over_quic(&trusted, port, "late.test").await.is_err());
    assert_eq!(who.requests().len(), 3);
    assert_eq!(visit("late.test").await.out, "all");
    assert_eq!(shakes_hands_over_quic(&trusted, port, "late.test").await, Ok(()));

    // What is there stays, whoever may say what.
    assert_eq!(who.requests().len(), 4);
    drop(who);
    assert!(!visit("unknown.test").await.status.success());
    assert!(!gw.log().having(&["no certificate on demand", "unknown.test", "cannot be asked"]).is_empty());
    gw.told(&["upgrade"]).await;
    assert_eq!(visit("new.test").await.out, "all");
    gw.stop().await;
}
