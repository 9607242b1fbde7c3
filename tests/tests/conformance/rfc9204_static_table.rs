//! RFC 9204, section 3.1 and appendix A: the static table, entry by entry.

use foregate_tests::{
    gateway,
    http3::{
        Head, STATIC_TABLE,
        qpack::{indexed, named},
    },
    origin,
};

use crate::scene::{Scene, scene, soon};

fn entries(which: impl Fn(&str) -> bool) -> impl Iterator<Item = (u64, &'static str, &'static str)> {
    let all = (0..).zip(STATIC_TABLE).map(|(index, (name, value))| (index, name, value));
    all.filter(move |(_, name, _)| which(name))
}

/// What the gateway itself has a say in: it joins, replaces or drops them.
fn edited(name: &str) -> bool {
    matches!(name, "forwarded" | "x-forwarded-for" | "content-length" | "early-data")
}

#[tokio::test]
async fn rfc9204_a_every_field_of_the_table() {
    let scene = scene().await;
    for (index, name, value) in entries(|name| !name.starts_with(':')) {
        let path = format!("/entry/{index}");
        let answer = scene.ask(Head::get(&path).line(indexed(index)).frame()).await;
        assert_eq!(answer.status, 200, "{index} {name}: {value}");
        let seen = scene.vm.saw("it", |r| r.target == path).await;
        if !edited(name) {
            assert_eq!(seen.fields.all(name), [value], "{index}: {:?}", seen.fields);
        }
    }
}

#[tokio::test]
async fn rfc9204_a_every_name_of_the_table_with_another_value() {
    let scene = scene().await;
    for (index, name, _) in entries(|name| !name.starts_with(':')) {
        if edited(name) {
            continue;
        }
        let path = format!("/entry/{index}");
        let answer = scene.ask(Head::get(&path).line(named(index, "another")).frame()).await;
        assert_eq!(answer.status, 200, "{index} {name}");
        let seen = scene.vm.saw("it", |r| r.target == path).await;
        assert_eq!(seen.fields.all(name), ["another"], "{index}: {:?}", seen.fields);
    }
}

#[tokio::test]
async fn rfc9204_a_every_method_of_the_table() {
    let scene = scene().await;
    for (index, _, method) in entries(|name| name == ":method").filter(|(.., method)| *method != "CONNECT") {
        let path = format!("/entry/{index}");
        let head = Head::get(&path).without(":method").line(indexed(index));
        assert_eq!(scene.ask(head.frame()).await.status, 200, "{method}");
        assert_eq!(scene.vm.saw("it", |r| r.target == path).await.method, method);
    }
}

#[tokio::test]
async fn rfc9204_a_the_path_scheme_and_authority_of_the_table() {
    let scene = scene().await;
    let head = Head::get("/x").without(":path").line(indexed(1)).without(":scheme").line(indexed(23));
    let head = head.without(":authority").line(named(0, "shop.test"));
    let seen = scene.served(head.frame()).await;
    assert_eq!((seen.target.as_str(), seen.host.as_str()), ("/", "shop.test"));
    assert_eq!(seen.fields.get("x-forwarded-proto"), Some("https"));
    // The authority of the table is empty.
    scene.vm.forget();
    let mut stream =
        scene.client.request(Head::get("/x").without(":authority").line(indexed(0)).frame()).await;
    scene.malformed(&mut stream).await;
}

#[tokio::test]
async fn rfc9204_a_every_status_of_the_table_is_malformed_in_a_request() {
    let scene = scene().await;
    for (index, ..) in entries(|name| name == ":status") {
        scene.vm.forget();
        let mut stream = scene.client.request(Head::get("/").line(indexed(index)).frame()).await;
        scene.malformed(&mut stream).await;
    }
}

/// The statuses of the table are those an encoder is tempted to index.
#[tokio::test]
async fn rfc9204_a_every_status_of_the_table_in_a_response() {
    let vm = origin().on("/status/", |call| {
        Box::pin(async move {
            let status = call.request.target.trim_start_matches("/status/").parse().unwrap();
            call.reply(status, &crate::scene::none(), "").await;
        })
    });
    let scene = Scene::of(vm, gateway()).await;
    for (_, _, status) in entries(|name| name == ":status").filter(|(.., status)| !status.starts_with('1')) {
        let mut stream = scene.client.request(Head::get(&format!("/status/{status}")).frame()).await;
        assert_eq!(soon("an answer", stream.answer()).await.status.to_string(), status);
    }
}
