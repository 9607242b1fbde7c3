//! gRPC: grpcio on both sides.

use foregate_tests::{
    Gateway, Lease, closed_port, eventually,
    foreign::{Running, Trust, said, script, told},
    gateway,
};
use serde_json::{Value, json};

/// A grpcio server as VM behind `rpc.test`, and nobody behind `nobody.test`.
struct Rpc {
    gw: Gateway,
    trust: Trust,
    _server: Running,
    _nobody: Lease,
}

impl Rpc {
    async fn start() -> Rpc {
        let mut server = Running::start(&mut script("grpc_server.py", &[]));
        let lines = server.printed(1).await;
        let port = lines.first().and_then(|line| said(line)).and_then(|told| told["port"].as_u64());
        let Some(port) = port else { panic!("the gRPC server does not start: {:#?}", server.finish().await) };
        let nobody = closed_port();
        // The same server, by what its health service says of this service.
        let probed = |service: &str| {
            format!(
                "[sites.\"{service}.probed.test\"]\npool = \"{service}\"\n[pools.\"{service}\"]\n\
                 backends = \"h2c://127.0.0.1:{port}\"\n\
                 health = {{ grpc = {{ service = \"{service}\" }}, interval = \"100ms\", fall = 1 }}\n"
            )
        };
        let text = ["foregate.Test", "ill", "strange"].map(probed).concat()
            + &format!(
                "[sites.\"rpc.test\"]\npool = \"rpc\"\n\
             [pools.rpc]\nprotocol = \"h2c\"\nbackends = [\"127.0.0.1:{port}\"]\n\
             [sites.\"nobody.test\"]\npool = \"h2c://127.0.0.1:{}\"\n",
                nobody.port
            );
        let gw = gateway()
            .named(&[
                "rpc.test",
                "nobody.test",
                "foregate.Test.probed.test",
                "ill.probed.test",
                "strange.probed.test",
            ])
            .toml(&text)
            .start()
            .await;
        Rpc { gw, trust: Trust::new(), _server: server, _nobody: nobody }
    }

    /// What the client tells of this kind of call, over TLS.
    async fn call(&self, kind: &str, host: &str) -> Value {
        let (port, ca) = (self.gw.https_port().to_string(), self.trust.ca());
        told(&mut script("grpc_client.py", &[kind, "--port", &port, "--host", host, "--ca", &ca])).await
    }
}

#[tokio::test]
async fn grpc_unary_calls() {
    let rpc = Rpc::start().await;
    let port = rpc.gw.http_port().to_string();
    let plain = ["unary", "--port", &port, "--host", "rpc.test"];
    for told in [rpc.call("unary", "rpc.test").await, told(&mut script("grpc_client.py", &plain)).await] {
        assert_eq!((&told["code"], &told["answer"]), (&json!("OK"), &json!("ping")), "{told}");
        assert_eq!((&told["large"], &told["empty"]), (&json!(true), &json!(true)), "{told}");
        assert_eq!(told["initial"]["x-vm"], json!("grpc"), "{told}");
        assert_eq!(told["trailing"]["x-asked"], json!("me"), "{told}");
        assert_eq!(told["trailing"]["x-raw-bin"], json!("00ff01"), "{told}");
    }
    let told = rpc.call("concurrent", "rpc.test").await;
    assert_eq!(told["right"], json!(300), "{told}");
    rpc.gw.stop().await;
}

#[tokio::test]
async fn grpc_health_is_asked_for() {
    let rpc = Rpc::start().await;
    let down = async |pool: &str, reason: &str| {
        let words = ["is down", &format!("pool=\"{pool}\""), &format!("reason=gRPC probe: {reason}")];
        eventually(&format!("{words:?}"), || rpc.gw.log().having(&words).pop()).await;
    };
    down("ill", "NOT_SERVING").await;
    down("strange", "status 5 (unknown service)").await;
    assert!(rpc.gw.log().having(&["is down", "foregate.Test"]).is_empty());
    let told = rpc.call("unary", "foregate.Test.probed.test").await;
    assert_eq!(told["code"], json!("OK"), "{told}");
    rpc.gw.stop().await;
}

#[tokio::test]
async fn grpc_streams() {
    let rpc = Rpc::start().await;
    let told = rpc.call("server_stream", "rpc.test").await;
    assert_eq!(told, json!({"messages": 500, "in_order": true, "code": "OK"}));

    let told = rpc.call("client_stream", "rpc.test").await;
    for key in ["messages", "length", "sha256"] {
        assert_eq!(told["answer"][key], told[key], "{key}: {told}");
    }

    let told = rpc.call("bidi", "rpc.test").await;
    let words = ["AMBER", "JADE", "INDIGO"].repeat(20);
    assert_eq!(told, json!({"answers": words, "rest": 0, "code": "OK"}));
    rpc.gw.stop().await;
}

#[tokio::test]
async fn grpc_statuses_arrive_in_trailers() {
    let rpc = Rpc::start().await;
    let told = rpc.call("errors", "rpc.test").await;
    assert_eq!(told["at_once"]["code"], json!("NOT_FOUND"), "{told}");
    assert_eq!(told["at_once"]["details"], json!("no such VM: käse 100%"), "{told}");
    assert_eq!(told["at_once"]["trailing"]["x-why"], json!("because"), "{told}");

    assert_eq!(told["late"]["received"], json!(["one", "two", "three"]), "{told}");
    assert_eq!(told["late"]["code"], json!("RESOURCE_EXHAUSTED"), "{told}");
    assert_eq!(told["late"]["details"], json!("three are enough"), "{told}");
    assert_eq!(told["late"]["trailing"]["x-why"], json!("enough"), "{told}");

    assert_eq!(told["unknown"]["code"], json!("UNIMPLEMENTED"), "{told}");

    // The gateway's own answer: gRPC makes UNAVAILABLE of 502, 503 and 504.
    let told = rpc.call("nobody", "nobody.test").await;
    assert_eq!(told["code"], json!("UNAVAILABLE"), "{told}");
    rpc.gw.stop().await;
}

#[tokio::test]
async fn grpc_servers_hear_of_calls_that_are_given_up() {
    let rpc = Rpc::start().await;
    let told = rpc.call("deadline", "rpc.test").await;
    assert_eq!(told["late"]["code"], json!("DEADLINE_EXCEEDED"), "{told}");
    rpc.gw.stop().await;
}
