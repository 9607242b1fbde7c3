//! Everything that lies in files: what is included, referred to, opened, made and shipped.

use std::fs;
use std::path::PathBuf;

use foregate_routing::HeaderEdit;

use super::*;

/// A folder for one test, removed when it is over.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("foregate-config-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn load(&self, text: &str) -> Loaded {
        load(&self.write("foregate.toml", text), None).unwrap_or_else(|report| panic!("{report}"))
    }

    /// Errors with the folder's own path taken out.
    fn refused(&self, text: &str) -> String {
        self.report(&self.write("foregate.toml", text))
    }

    fn report(&self, path: &Path) -> String {
        let report = load(path, None).unwrap_err().to_string();
        report.replace(&format!("{}/", self.0.display()), "")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_that_cannot_be_read() {
    let folder = Folder::new("unreadable");
    assert_eq!(
        folder.report(&folder.0.join("none.toml")),
        "error: none.toml does not exist\n\n1 error in none.toml"
    );
    let path = folder.0.join("latin1.toml");
    fs::write(&path, b"# caf\xe9").unwrap();
    assert!(folder.report(&path).starts_with("error: latin1.toml is not UTF-8 text (byte 5)"));
}

#[test]
fn references_are_followed_and_their_absence_has_a_place() {
    let folder = Folder::new("references");
    folder.write("secret", "s3cr{e}t\n");
    // cargo sets these variables for the tests it runs.
    let text = r#"server = { state_dir = "state", https = "{env.CARGO_PKG_VERSION_MINOR}" }
[tls]
self_signed = true
[sites."a.example.com"]
pool = "10.0.0.1:80"
request_headers = "Authorization: Bearer {file.secret} {env.CARGO_PKG_NAME}"
"#;
    let loaded = folder.load(text);
    assert_eq!(loaded.state_dir, folder.0.join("state"));
    let minor: u16 = env!("CARGO_PKG_VERSION_MINOR").parse().unwrap();
    assert_eq!(loaded.live.settings.https, [minor]);
    let [HeaderEdit::Set(_, template)] = &policy(&loaded, "a.example.com", "/").request_headers[..] else {
        panic!("one edit")
    };
    assert_eq!(template.as_literal(), Some("Bearer s3cr{e}t foregate"));

    let body = r#"server.http = "{env.FOREGATE_UNSET}"
[sites."a.example.com"]
pool = "http://{file.none}:80"
"#;
    assert_eq!(
        complaints(body),
        [
            "1:16 the environment variable FOREGATE_UNSET is not set | set FOREGATE_UNSET where foregate is started, or write the value here",
            "3:16 /nonexistent/none cannot be read: No such file or directory (os error 2)",
        ]
    );
}

#[test]
fn files_are_included_in_the_order_of_their_names() {
    let folder = Folder::new("include");
    let main = r#"include = "conf.d/*.toml"
server.state_dir = "state"
[tls]
self_signed = true
[pools.shared]
backends = "10.0.0.1:80"
"#;
    folder.write("conf.d/20-b.toml", "[sites.\"b.example.com\"]\npool = \"shared\"\n");
    folder.write("conf.d/10-a.toml", "[sites.\"a.example.com\"]\npool = \"late\"\n");
    folder.write("conf.d/30-c.toml", "[pools.late]\nbackends = \"10.0.0.2:80\"\n");
    folder.write("conf.d/.hidden.toml", "nonsense");
    folder.write("conf.d/readme.txt", "nonsense");
    let loaded = folder.load(main);
    let names: Vec<&str> = loaded.live.routing.sites().iter().map(|site| &*site.name).collect();
    assert_eq!(names, ["a.example.com", "b.example.com"]);

    let second = r#"[sites."a.example.com"]
pool = "shared"
[server]
http = 1
[tls]
self_signed = true
"#;
    folder.write("conf.d/20-b.toml", second);
    let golden = r#"error: the site `a.example.com` stands twice
 --> conf.d/20-b.toml:1:8
  |
1 | [sites."a.example.com"]
  |        ^^^^^^^^^^^^^^^
  |
 ::: conf.d/10-a.toml:1:8
  |
1 | [sites."a.example.com"]
  |        --------------- here first

error: `server` does not belong into an included file
 --> conf.d/20-b.toml:3:2
  |
3 | [server]
  |  ^^^^^^
  |
  = help: an included file holds only sites, pools, filters, forwards and tls.certificates; this belongs into the main file

error: `self_signed` does not belong into [tls]
 --> conf.d/20-b.toml:6:1
  |
6 | self_signed = true
  | ^^^^^^^^^^^
  |
  = help: an included file holds only `certificates` of [tls]; this belongs into the main file

3 errors in conf.d/20-b.toml"#;
    assert_eq!(folder.refused(main), golden);
}

#[test]
fn an_include_elsewhere_is_explained() {
    assert_eq!(
        complaints("[http3]\ninclude = \"x.toml\""),
        [
            "2:1 unknown key `include` in `http3` | `include` stands at the top of the main file, before the first [table]"
        ]
    );
    assert_eq!(
        warnings(&format!("include = \"none.d/*.toml\"\n{SITE}")),
        ["1:11 \"none.d/*.toml\" names no file"]
    );
    assert_eq!(complaints("include = \"none.toml\""), ["1:11 /nonexistent/none.toml does not exist"]);
}

#[test]
fn a_host_without_certificate_is_told_the_three_ways() {
    let refused = |text: &str| load_str("foregate.toml", text, Path::new("/nonexistent"), None).unwrap_err();
    let site = "[sites.a]\nhosts = [\"a.example.com\", \"*.a.example.com\"]\nrespond = {}\n";
    let report = refused(site).to_string();
    assert!(
        report.starts_with("error: there is no certificate for a.example.com, *.a.example.com\n"),
        "{report}"
    );
    assert!(report.contains("foregate.toml:2:10"), "{report}");
    for way in ["[[tls.certificates]]", "[tls.acme]", "self_signed = true"] {
        assert!(report.contains(way), "{report}");
    }
    // Without HTTPS nobody asks for one.
    let plain = format!("server.https = \"off\"\n{site}");
    let loaded = load_str("foregate.toml", &plain, Path::new("/nonexistent"), None).unwrap();
    assert!(!loaded.live.routing.sites()[0].redirect_to_https);
    // What an unreadable certificate would have covered is not complained of as well.
    let unreadable = "[tls]\ndefault_certificate = \"a.example.com\"\ncertificates = { cert = \"a.crt\", key = \"a.key\" }\n";
    assert_eq!(refused(&format!("{unreadable}{site}")).errors().len(), 1);
}

#[test]
fn certificates_are_found_by_the_names_in_them() {
    let folder = Folder::new("certificates");
    for (name, hosts) in [
        ("shop", &["shop.example.com".to_owned(), "*.shop.example.com".to_owned()][..]),
        ("own", &["own.example.com".to_owned()]),
    ] {
        let made = rcgen::generate_simple_self_signed(hosts).unwrap();
        folder.write(&format!("{name}.crt"), &made.cert.pem());
        folder.write(&format!("{name}.key"), &made.signing_key.serialize_pem());
    }
    let listed = "[[tls.certificates]]\ncert = \"shop.crt\"\nkey = \"shop.key\"\n";
    let shop = "[sites.shop]\nhosts = [\"shop.example.com\", \"*.shop.example.com\"]\nrespond = {}\n";
    let own = "[sites.\"own.example.com\"]\nrespond = {}\ntls = { cert = \"own.crt\", key = \"own.key\" }\n";
    let any = "[sites.any]\nhosts = \"*\"\nrespond = {}\n";
    let default = "[tls]\ndefault_certificate = \"shop.example.com\"\n";

    let loaded = folder.load(&format!("{listed}{shop}{own}"));
    let store = &loaded.live.certificates;
    let names = |host: &str| store.find(host)[0].names().to_vec();
    assert_eq!(names("x.shop.example.com"), ["shop.example.com", "*.shop.example.com"]);
    assert_eq!(names("own.example.com"), ["own.example.com"]);
    assert!(loaded.self_signed.is_empty() && loaded.warnings.is_empty());

    // "*" is what the default certificate is for.
    assert!(folder.refused(&format!("{listed}{any}")).starts_with("error: there is no certificate for *\n"));
    folder.load(&format!("{default}{listed}{any}"));
    let misspelt = default.replace("shop.example", "shpo.example");
    let report = folder.refused(&format!("{misspelt}{listed}{shop}"));
    assert!(report.contains("help: did you mean `shop.example.com`?"), "{report}");

    // The key of another certificate, and a site whose own certificate is for somebody else.
    let report = folder.refused(&format!("{}{shop}", listed.replace("shop.key", "own.key")));
    assert!(report.starts_with("error: own.key is not the private key of the certificate"), "{report}");
    assert!(report.contains("foregate.toml:3:7"), "{report}");
    let foreign = own.replace("own.crt", "shop.crt").replace("own.key", "shop.key");
    let warning = folder.load(&foreign).warnings.concat();
    assert!(
        warning.starts_with(
            "warning: the certificate of the site `own.example.com` does not name own.example.com\n"
        ),
        "{warning}"
    );
}

#[test]
fn missing_certificates_are_made_where_that_is_allowed() {
    let folder = Folder::new("self-signed");
    let text = r#"server.state_dir = "state"
server.addresses = "203.0.113.7"
[tls]
self_signed = true
[sites.a]
hosts = ["a.example.com", "*.a.example.com", "*", "198.51.100.7"]
respond = {}
"#;
    let loaded = folder.load(text);
    let hosts: Vec<String> = loaded.self_signed.iter().map(|made| made.hosts.join(" ")).collect();
    assert_eq!(
        hosts,
        [
            "*.a.example.com 198.51.100.7 a.example.com",
            "*.localhost 127.0.0.1 198.51.100.7 203.0.113.7 ::1 localhost",
        ]
    );
    assert!(loaded.live.certificates.find("x.a.example.com").len() == 1);

    let state = folder.0.join("state");
    assert!(!state.exists(), "loading writes nothing");
    loaded.self_signed.iter().for_each(|made| made.keep().unwrap());
    let mut names: Vec<_> =
        fs::read_dir(state.join("self-signed")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["default.pem", "site-a.pem"]);
}

fn shipped(name: &str) -> Loaded {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config").join(name);
    load(&path, None).unwrap_or_else(|report| panic!("{report}"))
}

#[test]
fn shipped_examples_load() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../config/examples");
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name: &String| name.ends_with(".toml"))
        .collect();
    names.sort();
    assert_eq!(
        names,
        [
            "api-sandbox.toml",
            "customer-domains.toml",
            "gitlab-jenkins-docs.toml",
            "homelab.toml",
            "partners.toml",
            "shop-canary.toml",
            "small-firm.toml"
        ]
    );
    for name in names {
        let loaded = shipped(&format!("examples/{name}"));
        let unverified = |warning: &String| warning.contains("are not verified");
        assert!(loaded.warnings.iter().all(unverified), "{name}: {:#?}", loaded.warnings);
    }
}

#[test]
fn the_shipped_file_says_what_the_defaults_are() {
    let written = shipped("foregate.toml");
    assert!(written.warnings.is_empty(), "{:#?}", written.warnings);
    let unsaid = load_str("empty.toml", "", Path::new("/nonexistent"), None).unwrap();
    assert_eq!(format!("{:?}", written.live.settings), format!("{:?}", unsaid.live.settings));
    assert_eq!(written.state_dir, unsaid.state_dir);
    let bare = served("[sites.\"app.example.com\"]\npool = \"192.168.1.10:80\"\n");
    let own = |loaded: &Loaded| format!("{:?}", policy(loaded, "app.example.com", "/"));
    assert_eq!(own(&written), own(&bare));
}

#[test]
fn whom_sites_ask_for_certificates() {
    let folder = Folder::new("clients");
    let made = rcgen::generate_simple_self_signed(["clients.test".to_owned()]).unwrap();
    let ca = folder.write("clients.pem", &made.cert.pem());
    let head = format!("server.state_dir = \"{}\"\ntls.self_signed = true\n", folder.0.display());
    let loaded = folder.load(&format!(
        r#"{head}[defaults.sites]
tls = {{ client_ca = "clients.pem" }}
[sites."must.test"]
pool = "10.0.0.1:80"
[sites."may.test"]
pool = "10.0.0.1:80"
tls = {{ client_auth = "optional", min_version = "1.2" }}
routes = [{{ paths = "/a/", when = {{ client_cert = true }}, pool = "10.0.0.2:80" }}]
[sites."too.test"]
pool = "10.0.0.1:80"
early_data = true
[sites."open.test"]
pool = "10.0.0.1:80"
tls = {{ client_auth = "off" }}
"#
    ));
    let rules = |host| site(&loaded, host).tls.clients;
    assert_eq!(
        rules("must.test").map(|clients| clients.required),
        Some(true),
        "an authority that is named is meant"
    );
    assert_eq!(rules("may.test").map(|clients| clients.required), Some(false));
    assert_eq!(rules("too.test"), rules("must.test"), "one connection may do for both");
    assert_eq!(rules("open.test"), None);
    assert!(!site(&loaded, "too.test").early_data);
    assert_eq!(loaded.live.clients.len(), 2);
    assert!(loaded.pairs.iter().any(|pair| pair.is_of(&ca, &ca)), "it is followed");
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(loaded.warnings[0].contains("`too.test` takes no requests in 0-RTT"), "{:?}", loaded.warnings);

    // What is broken later is not taken.
    let ours = rules("must.test");
    folder.write("clients.pem", "no more");
    let again =
        load_again(&loaded.files, &loaded.live, &loaded.pairs).unwrap_or_else(|report| panic!("{report}"));
    assert_eq!(site(&again, "must.test").tls.clients, ours);
    assert!(again.warnings.iter().any(|text| text.contains("judged by what was there before")));
    assert!(folder.report(&folder.0.join("foregate.toml")).contains("clients.pem holds no certificate"));
}

#[test]
fn what_is_wrong_with_asking_for_certificates_is_told() {
    let folder = Folder::new("asking");
    let made = rcgen::generate_simple_self_signed(["clients.test".to_owned()]).unwrap();
    folder.write("clients.pem", &made.cert.pem());
    for (tls, route, says) in [
        ("client_auth = \"require\"", "", "clients are asked for a certificate, and none would be good"),
        ("client_crl = \"list.crl\"", "", "`client_crl` says nothing without `client_ca`"),
        ("client_ca = \"none.pem\"", "", "none.pem cannot be read: No such file"),
        (
            "client_ca = \"clients.pem\", client_crl = \"clients.pem\"",
            "",
            "clients.pem holds no revocation list",
        ),
        (
            "client_ca = \"clients.pem\", client_auth = \"on\"",
            "",
            "must be \"off\", \"optional\" or \"require\"",
        ),
        ("client_ca = \"none.pem\"", "client_cert = true", "1 error in"),
        ("client_auth = \"off\"", "client_cert = true", "this route can never match"),
        ("client_auth = \"off\"", "client_cert = 1", "must be true or false"),
    ] {
        let text = format!(
            "server.state_dir = \"{}\"\ntls.self_signed = true\n{SITE}tls = {{ {tls} }}\n\
             routes = [{{ paths = \"/a/\", when = {{ {route} }}, pool = \"10.0.0.2:80\" }}]\n",
            folder.0.display()
        );
        let told = folder.refused(&text);
        assert!(told.contains(says), "{tls}: {told}");
    }
}

#[test]
fn certificates_are_made_on_demand_where_somebody_says_for_whom() {
    let folder = Folder::new("demand");
    let text = |acme: &str, hosts: &str| {
        format!(
            "server.state_dir = \"{}\"\n[tls.acme]\n{acme}\n[sites.all]\nhosts = {hosts}\npool = \"10.0.0.1:80\"\n\
             [sites.\"known.test\"]\npool = \"10.0.0.1:80\"\n",
            folder.0.display()
        )
    };
    let asks = "on_demand = { ask = \"http://10.0.0.5:9000/allowed?key=1\" }";
    assert!(folder.refused(&text("", "\"*\"")).contains("there is no certificate for *"));
    for (acme, says) in [
        ("on_demand = {}", "`tls.acme.on_demand` needs `ask`"),
        ("on_demand = { ask = \"10.0.0.5:9000\" }", "is not an http or https address"),
        ("on_demand = { ask = \"ftp://a.test/\" }", "is not an http or https address"),
        ("on_demand = \"http://a.test/\"", "must be a table"),
        ("on_demand = { ask = \"http://me:secret@a.test/\" }", "is not an http or https address"),
    ] {
        let told = folder.refused(&text(acme, "\"*\""));
        assert!(told.contains(says), "{told}");
    }
    let vain = folder.load(&text(asks, "\"a.test\""));
    assert!(
        vain.warnings.iter().any(|text| text.contains("no site has the host \"*\"")),
        "{:?}",
        vain.warnings
    );

    let made = |name: &str| {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        made.cert.pem() + &made.signing_key.serialize_pem()
    };
    for name in ["shop.test", "known.test"] {
        let authority = crate::self_signed::file_name("acme-v02.api.letsencrypt.org/directory");
        let file = format!("acme/{authority}/on-demand/{name}.pem");
        folder.write(&file, &made(name));
    }
    let loaded = folder.load(&text(asks, "\"*\""));
    assert!(loaded.live.on_demand);
    assert_eq!(loaded.live.certificates.find("shop.test").len(), 1, "it was made before");
    let wanted = loaded.plan.unwrap().wanted;
    let demanded: Vec<_> = wanted.iter().filter(|one| one.on_demand).map(|one| &*one.hosts[0]).collect();
    assert_eq!(demanded, ["shop.test"], "what a site names is its own");
    assert_eq!(
        loaded.live.certificates.find("known.test").len(),
        1,
        "and what was made for it will do for now"
    );
    assert!(loaded.live.certificates.find("other.test").is_empty());
}
