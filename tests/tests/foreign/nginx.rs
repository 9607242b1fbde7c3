//! nginx as VMs.

use std::{collections::BTreeMap, process::Command, time::Duration};

use foregate_tests::{
    Gateway, block, digest_of, eventually, eventually_async,
    foreign::{Finished, Nginx, Running, Trust, finish, transfer},
    gateway,
};

use super::{MIB, WAYS, curl_to, generated, sha256, url};

const NAMES: [&str; 3] = ["amber", "jade", "indigo"];

async fn three_nginx(health: &str) -> (Vec<Nginx>, Gateway) {
    let mut vms = Vec::new();
    for name in NAMES {
        let vm = Nginx::start(name).await;
        std::fs::write(vm.www().join("index.html"), name).unwrap();
        vms.push(vm);
    }
    let backends: Vec<String> = vms.iter().map(Nginx::address).collect();
    let text =
        format!("[sites.\"shop.test\"]\npool = \"vms\"\n[pools.vms]\nbackends = {backends:?}\n{health}\n");
    let gw = gateway().named(&["shop.test"]).toml(&text).start().await;
    (vms, gw)
}

/// The ways on which curl 7.88 uses a connection twice: with `--http2-prior-knowledge` its second request
/// fails on any server (curl's issue 10634).
fn ways_again() -> &'static [(&'static str, bool, &'static str, &'static str)] {
    &WAYS[..3]
}

/// A curl that asks for `/name` so many times, one after the other; it prints a line for each.
fn asking(gw: &Gateway, trust: &Trust, way: usize, times: usize) -> Command {
    let (option, tls, ..) = ways_again()[way % ways_again().len()];
    let mut command = curl_to(gw, trust);
    command.args([option, "--write-out", " %{http_code} %{http_version}\n"]);
    command.arg(url(gw, tls, &format!("/name?[1-{times}]")));
    command
}

/// How often which VM answered; every request must have been.
fn answers(done: &Finished) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for line in done.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, "200", _version] = words[..] else { panic!("{line:?} in {done:#?}") };
        *count.entry(name.to_owned()).or_default() += 1;
    }
    count
}

fn evenly(names: &[&str], each: usize) -> BTreeMap<String, usize> {
    names.iter().map(|&name| (name.to_owned(), each)).collect()
}

#[tokio::test]
async fn three_nginx_answer_in_turn() {
    let (vms, gw) = three_nginx("").await;
    let trust = Trust::new();
    for (way, told) in ways_again().iter().enumerate() {
        let done = finish(&mut asking(&gw, &trust, way, 30)).await;
        assert_eq!(answers(&done), evenly(&NAMES, 10), "{told:?}");
    }
    for vm in &vms {
        eventually("nginx has written its log", || (vm.served() == 10 * ways_again().len()).then_some(()))
            .await;
    }
    gw.stop().await;
}

#[tokio::test]
async fn files_of_nginx_arrive_whole_in_part_or_not_at_all() {
    let (vms, gw) = three_nginx("").await;
    let trust = Trust::new();
    let file = generated(&trust, 5 * MIB);
    let day = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for vm in &vms {
        std::fs::copy(&file, vm.www().join("large.bin")).unwrap();
        // The same validator on each, as one deployment would have.
        std::fs::File::options()
            .write(true)
            .open(vm.www().join("large.bin"))
            .unwrap()
            .set_modified(day)
            .unwrap();
    }
    for (option, tls, version, _) in WAYS {
        let way = format!("{option}, TLS: {tls}");
        let large = url(&gw, tls, "/large.bin");
        let ask = async |arguments: &[&str]| {
            let done = transfer(&mut curl_to(&gw, &trust), &[&[option, &large], arguments].concat()).await;
            assert_eq!(done.version(), version, "{way}");
            done
        };
        let done = ask(&[]).await;
        assert_eq!((done.status(), sha256(&done.body)), (200, digest_of(5 * MIB)), "{way}");
        let etag = done.field("etag").unwrap();

        let done = ask(&["--range", "1000000-1000099"]).await;
        let start = 1_000_000 % block().len();
        assert_eq!((done.status(), &done.body[..]), (206, &block()[start..start + 100]), "{way}");
        assert_eq!(
            done.field("content-range").unwrap(),
            format!("bytes 1000000-1000099/{}", 5 * MIB),
            "{way}"
        );

        let done = ask(&["--header", &format!("If-None-Match: {etag}")]).await;
        assert_eq!((done.status(), done.body.len()), (304, 0), "{way}");
        assert_eq!(done.field("etag").as_ref(), Some(&etag), "{way}");

        let done = ask(&["--head"]).await;
        assert_eq!(
            (done.status(), done.field("content-length").unwrap()),
            (200, (5 * MIB).to_string()),
            "{way}"
        );

        let done = transfer(&mut curl_to(&gw, &trust), &[option, &url(&gw, tls, "/no-such-file")]).await;
        assert_eq!(done.status(), 404, "{way}");
    }
    gw.stop().await;
}

#[tokio::test]
async fn an_nginx_that_is_killed_loses_no_request() {
    const EACH: usize = 10;
    let (mut vms, gw) = three_nginx("").await;
    let trust = Trust::new();
    let mut count = BTreeMap::new();
    for batch in 0..20 {
        let run = Running::start(&mut asking(&gw, &trust, batch, EACH));
        if batch == 6 {
            // Anywhere in these ten: before a request, during one, or when curl is not there yet.
            vms[1].kill();
        }
        for (name, times) in answers(&run.finish().await) {
            *count.entry(name).or_insert(0) += times;
        }
    }
    assert_eq!(count.values().sum::<usize>(), 20 * EACH, "{count:?}");
    // It had its turn in six batches of ten, and at the most in the seventh.
    assert!((20..=24).contains(&count[NAMES[1]]), "{count:?}");
    gw.stop().await;
}

#[tokio::test]
async fn an_nginx_that_is_killed_is_found_down_and_up_again() {
    let health = "health = { http = { path = \"/healthz\", contains = \"well\" }, interval = \"100ms\", \
                  timeout = \"5s\", rise = 2, fall = 2 }";
    let (mut vms, gw) = three_nginx(health).await;
    let trust = Trust::new();
    let (address, said) = (vms[1].address(), gw.log().clone());
    assert_eq!(answers(&finish(&mut asking(&gw, &trust, 0, 30)).await), evenly(&NAMES, 10));

    vms[1].kill();
    eventually("it is found down", || said.having(&[&address, "is down"]).pop()).await;
    // Its turns go to the others by lot, which keep their own.
    let spread = answers(&finish(&mut asking(&gw, &trust, 2, 30)).await);
    assert!(spread.len() == 2 && spread[NAMES[0]] >= 10 && spread[NAMES[2]] >= 10, "{spread:?}");

    vms[1].up().await;
    eventually("it is found up", || said.having(&[&address, "is up"]).pop()).await;
    eventually_async("it gets its share again", || async {
        (answers(&finish(&mut asking(&gw, &trust, 1, 30)).await) == evenly(&NAMES, 10)).then_some(())
    })
    .await;
    assert_eq!(said.having(&[&address, "is down"]).len(), 1, "told once:\n{}", said.text());
    gw.stop().await;
}
