//! RFC 9114, sections 4.2 and 4.3: what is a request, and how it comes to the VM.

use foregate_tests::{
    Recorded,
    http3::{Head, Outcome, code::H3_MESSAGE_ERROR, frame::data},
};

use crate::scene::{Scene, scene, soon};

fn get() -> Head {
    Head::get("/")
}

/// Serves a request and shows it as the VM saw it.
async fn seen(bytes: Vec<u8>) -> Recorded {
    let scene = scene().await;
    let seen = scene.served(bytes).await;
    scene.goes_on().await;
    scene.unharmed();
    seen
}

#[tokio::test]
async fn rfc9114_4_3_1_method_path_and_query_come_as_they_are() {
    for (method, path) in [
        ("GET", "/"),
        ("GET", "/a/b?c=d&e=%20f"),
        ("GET", "/%2e%2e/%zz?"),
        ("DELETE", "//x"),
        ("PROPFIND", "/~user;v=1/(a)!$&'*+,=:@"),
        ("get", "/lower"),
        ("M-SEARCH", "/?q=a?b/c"),
    ] {
        let seen = seen(Head::request(method, path).frame()).await;
        assert_eq!((seen.method.as_str(), seen.target.as_str()), (method, path));
    }
}

#[tokio::test]
async fn rfc9114_4_3_1_options_with_an_asterisk() {
    let seen = seen(Head::request("OPTIONS", "*").frame()).await;
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("OPTIONS", "*"));
}

/// Section 4.3.1: an intermediary to HTTP/1.1 makes `Host` of `:authority`.
#[tokio::test]
async fn rfc9114_4_3_1_the_authority_becomes_the_host() {
    let seen = seen(get().frame()).await;
    assert_eq!(seen.fields.all("host"), ["shop.test"]);
    assert!(
        seen.fields.iter().all(|(name, _)| !name.contains(':') && name != "authority"),
        "{:?}",
        seen.fields
    );
}

#[tokio::test]
async fn rfc9114_4_3_1_host_may_stand_for_the_authority() {
    let seen = seen(get().without(":authority").field("host", "shop.test").frame()).await;
    assert_eq!(seen.fields.all("host"), ["shop.test"]);
}

#[tokio::test]
async fn rfc9114_4_3_1_authority_and_the_same_host() {
    let seen = seen(get().field("host", "shop.test").frame()).await;
    assert_eq!(seen.fields.all("host"), ["shop.test"]);
}

#[tokio::test]
async fn rfc9114_4_3_1_pseudo_header_fields_in_any_order() {
    let head = Head::empty()
        .field(":path", "/order")
        .field(":authority", "shop.test")
        .field(":method", "GET")
        .field(":scheme", "https")
        .field("x-a", "b");
    assert_eq!(seen(head.frame()).await.target, "/order");
}

/// RFC 3986, section 3.1: schemes are the same in any case. It may be refused, but not misread.
#[tokio::test]
async fn rfc9114_4_3_1_an_upper_case_scheme() {
    let scene = scene().await;
    let mut stream = scene.client.request(get().with(":scheme", "HTTPS").frame()).await;
    match soon("an end", stream.outcome()).await {
        Outcome::Answered(answer) if answer.status == 200 => {
            assert_eq!(scene.vm.only().fields.get("x-forwarded-proto"), Some("https"));
        }
        Outcome::Answered(answer) => assert_eq!(answer.status, 400, "{answer:?}"),
        Outcome::Reset { code, .. } => assert_eq!(code, H3_MESSAGE_ERROR),
        other => panic!("{other:?}"),
    }
    scene.goes_on().await;
}

/// A fragment is no part of `:path`: refused or dropped, it comes to no VM.
#[tokio::test]
async fn rfc9114_4_3_1_a_fragment_in_the_path() {
    let scene = scene().await;
    let mut stream = scene.client.request(get().with(":path", "/a#b").frame()).await;
    match soon("an end", stream.outcome()).await {
        Outcome::Answered(answer) if answer.status == 200 => assert_eq!(scene.vm.only().target, "/a"),
        Outcome::Answered(answer) => assert_eq!(answer.status, 400, "{answer:?}"),
        Outcome::Reset { code, .. } => assert_eq!(code, H3_MESSAGE_ERROR),
        other => panic!("{other:?}"),
    }
    scene.goes_on().await;
}

#[tokio::test]
async fn rfc9114_4_1_2_content_length_equal_to_data() {
    let head = Head::post("/").field("content-length", "5");
    let seen = seen(head.and([data("he"), data("llo")].concat())).await;
    assert_eq!((seen.fields.all("content-length"), &seen.body[..]), (vec!["5"], &b"hello"[..]));
}

#[tokio::test]
async fn rfc9114_4_1_2_content_length_of_zero() {
    let seen = seen(Head::post("/").field("content-length", "0").frame()).await;
    assert_eq!((seen.fields.all("content-length"), seen.length), (vec!["0"], 0));
}

#[tokio::test]
async fn rfc9114_4_1_2_content_length_with_leading_zeros() {
    let seen = seen(Head::post("/").field("content-length", "0005").and(data("hello"))).await;
    assert_eq!(&seen.body[..], b"hello");
}

#[tokio::test]
async fn rfc9114_4_2_te_trailers_is_allowed() {
    // It ends here: towards an HTTP/1.1 VM it would need `Connection: TE`.
    let seen = seen(get().field("te", "trailers").frame()).await;
    assert!(!seen.fields.has("te") || seen.fields.lists("connection", "te"), "{:?}", seen.fields);
}

#[tokio::test]
async fn rfc9114_4_2_repeated_fields_keep_their_order() {
    let seen = seen(get().field("x-a", "1").field("x-b", "2").field("x-a", "3").frame()).await;
    assert_eq!((seen.fields.all("x-a"), seen.fields.all("x-b")), (vec!["1", "3"], vec!["2"]));
}

/// RFC 9110, section 5.5: tabs, spaces and bytes above ASCII are valid within a value.
#[tokio::test]
async fn rfc9114_10_3_valid_characters_of_values() {
    let value = "a\tb c \u{80}\u{e9}\u{ff} ~!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}";
    let seen = seen(get().field("x-value", value).field("x-empty", "").frame()).await;
    assert_eq!((seen.fields.get("x-value"), seen.fields.get("x-empty")), (Some(value), Some("")));
}

#[tokio::test]
async fn rfc9114_10_3_valid_characters_of_names() {
    let name = "x!#$%&'*+-.^_`|~0a";
    let seen = seen(get().field(name, "v").frame()).await;
    assert_eq!(seen.fields.get(name), Some("v"));
}

/// No `field-content` begins or ends with a space, so it is refused, or trimmed as HTTP/1.1 would.
async fn trimmed(value: &str) {
    let scene = scene().await;
    let mut stream = scene.client.request(get().field("x-value", value).frame()).await;
    match soon("an end", stream.outcome()).await {
        Outcome::Answered(answer) if answer.status == 200 => {
            assert_eq!(scene.vm.only().fields.get("x-value"), Some("a"));
        }
        Outcome::Answered(answer) => assert_eq!(answer.status, 400, "{answer:?}"),
        Outcome::Reset { code, .. } => assert_eq!(code, H3_MESSAGE_ERROR),
        other => panic!("{other:?}"),
    }
    scene.goes_on().await;
}

cases! { trimmed:
    rfc9114_10_3_spaces_before_a_value => "  a";
    rfc9114_10_3_a_tab_after_a_value => "a\t";
}

/// Section 4.2.1: the crumbs of a cookie are one field again outside of HTTP/2 and HTTP/3.
async fn cookie(crumbs: &[&str], whole: &str) {
    let head = crumbs.iter().fold(get(), |head, crumb| head.field("cookie", crumb).field("x-between", "y"));
    let seen = seen(head.frame()).await;
    assert_eq!(seen.fields.all("cookie"), [whole]);
}

cases! { cookie:
    rfc9114_4_2_1_one_cookie => &["a=b; c=d"], "a=b; c=d";
    rfc9114_4_2_1_cookie_crumbs => &["a=b", "c=d", "e=f"], "a=b; c=d; e=f";
    rfc9114_4_2_1_cookie_crumbs_of_several_pairs => &["a=b; c=d", "e=f"], "a=b; c=d; e=f";
}

#[tokio::test]
async fn rfc9114_4_2_1_many_cookie_crumbs() {
    let crumbs: Vec<String> = (0..60).map(|n| format!("c{n}={n}")).collect();
    let borrowed: Vec<&str> = crumbs.iter().map(String::as_str).collect();
    let head = borrowed.iter().fold(get(), |head, crumb| head.field("cookie", crumb));
    assert_eq!(seen(head.frame()).await.fields.all("cookie"), [crumbs.join("; ")]);
}

/// A VM's own error page says nothing about the request's form.
#[tokio::test]
async fn rfc9114_4_1_2_a_well_formed_request_is_never_reset() {
    let vm = foregate_tests::origin().on("/", |call| {
        Box::pin(async move { call.reply(400, &crate::scene::none(), "the VM's own opinion").await })
    });
    let scene = Scene::of(vm, foregate_tests::gateway()).await;
    let answer = scene.ask(get().frame()).await;
    assert_eq!((answer.status, answer.fields.get("x-vm")), (400, Some("vm")));
}
