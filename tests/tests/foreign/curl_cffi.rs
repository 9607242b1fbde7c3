//! curl_cffi: a recent libcurl with HTTP/3, on ngtcp2, nghttp3 and BoringSSL.

use foregate_tests::{
    digest_of,
    foreign::{Trust, told},
    gateway,
};
use serde_json::json;

use super::{MIB, client, generated, scene, vm};

#[tokio::test]
async fn curl_cffi_speaks_http_3_with_the_gateway() {
    let (vm, gw, trust) = scene().await;
    let file = generated(&trust, 5 * MIB);
    let ask = async |arguments: &[&str]| {
        vm.forget();
        let told = told(&mut client("curl_cffi_client.py", &gw, &trust, arguments)).await;
        for answer in told["answers"].as_array().unwrap() {
            assert_eq!((&answer["status"], &answer["version"]), (&json!(200), &told["version"]), "{told}");
        }
        for asked in vm.requests() {
            assert_eq!(asked.fields.all("via"), ["3 foregate"]);
        }
        told["answers"][0].clone()
    };
    let answer = ask(&["GET", "--path", "/echo?over=3"]).await;
    assert_eq!(answer["text"], json!("/echo?over=3"));

    let answer = ask(&["HEAD", "--path", "/large"]).await;
    assert_eq!(answer["fields"]["content-length"], json!((20 * MIB).to_string()));

    let answer = ask(&["GET", "--path", "/large"]).await;
    assert_eq!(answer["sha256"], json!(digest_of(20 * MIB)));

    ask(&["POST", "--path", "/up", "--file", &file]).await;
    let asked = vm.only();
    assert_eq!((asked.length, asked.digest), (5 * MIB, digest_of(5 * MIB)));

    // With a browser's TLS and QUIC parameters, and one connection for all.
    ask(&["GET", "--path", "/echo", "--impersonate", "chrome", "--repeat", "20"]).await;
    assert_eq!(vm.requests().len(), 20);
    gw.stop().await;
}

#[tokio::test]
async fn curl_cffi_waits_for_100_before_it_sends_a_large_post() {
    let (vm, gw, trust) = scene().await;
    let file = generated(&trust, 5 * MIB);
    for version in [&["--http2"][..], &[]] {
        let http2 = !version.is_empty();
        let posting = [&["--file", &file], version].concat();
        let ask = async |path| {
            vm.forget();
            let arguments = [&posting[..], &["--path", path]].concat();
            let told = told(&mut client("curl_cffi_expect.py", &gw, &trust, &arguments)).await;
            assert_eq!(told["version"], json!(if http2 { "2" } else { "3" }), "{told}");
            told
        };
        let answer = ask("/up").await;
        assert_eq!((&answer["status"], &answer["text"]), (&json!(200), &json!("a\n")), "{version:?}");
        let asked = vm.only();
        assert_eq!(asked.digest, digest_of(5 * MIB), "{version:?}");
        assert_eq!(asked.fields.get("expect"), Some("100-continue"), "{version:?}");
        assert_eq!(answer["uploaded"], json!(5 * MIB), "{version:?}");

        let answer = ask("/refuse").await;
        assert_eq!(
            (&answer["status"], &answer["text"]),
            (&json!(413), &json!("no, thank you\n")),
            "{version:?}"
        );
        assert_eq!((vm.only().length, &answer["uploaded"]), (0, &json!(0)), "{version:?}");
    }
    gw.stop().await;
}

/// The first time curl is told of HTTP/3 (RFC 7838), the second time it comes over it.
#[tokio::test]
async fn curl_cffi_follows_alt_svc_to_http_3() {
    let (vm, gw, trust) = scene().await;
    let cache = trust.path("alt-svc");
    let learning = ["--path", "/echo", "--times", "3", "--alt-svc", &cache];
    let told = told(&mut client("curl_cffi_returns.py", &gw, &trust, &learning)).await;
    let answers = told["answers"].as_array().unwrap();
    let seen = |key: &str| answers.iter().map(|answer| answer[key].clone()).collect::<Vec<_>>();
    assert_eq!(seen("text"), ["/echo", "/echo", "/echo"], "{told}");
    assert_eq!(seen("version"), ["2", "3", "3"], "{told}");
    let via: Vec<_> =
        vm.requests().iter().flat_map(|asked| asked.fields.get("via").map(str::to_owned)).collect();
    assert_eq!(via, ["2 foregate", "3 foregate", "3 foregate"]);
    gw.stop().await;
}

/// It offers its session again. More it cannot be asked for: with BoringSSL this libcurl (8.21) sends no early data
/// over QUIC, whatever it is told; aioquic does.
#[tokio::test]
async fn curl_cffi_comes_back_with_its_session() {
    let vm = vm().await;
    let gw = gateway().site("shop.test", &vm).toml("[defaults.sites]\nearly_data = true").start().await;
    let coming = ["--path", "/echo", "--times", "3", "--http3"];
    let told = told(&mut client("curl_cffi_returns.py", &gw, &Trust::new(), &coming)).await;
    let answers = told["answers"].as_array().unwrap();
    assert_eq!((answers.len(), vm.requests().len()), (3, 3), "{told}");
    for (number, answer) in answers.iter().enumerate() {
        assert_eq!((&answer["text"], &answer["version"]), (&json!("/echo"), &json!("3")), "{told}");
        let trace = answer["trace"].as_str().unwrap();
        assert_eq!(trace.contains("reusing session with ALPN 'h3'"), number > 0, "{number}: {trace}");
    }
    gw.stop().await;
}
