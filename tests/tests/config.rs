//! The configuration language at its edges: every error of a file is told, each with its place.
// Test code: a broken precondition should stop the test where it stands.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
};

use foregate_tests::{Authority, Process, Version, binary, check, eventually, gateway, get, lease, origin};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn toml_files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "toml"))
        .collect();
    files.sort();
    files
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What a bad file's last lines expect: places as `LINE:COLUMN` (`LINE:*` where the column is the parser's
/// affair), everything else as a phrase.
fn missing(file: &Path, said: &str) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let expected: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# expect: ")).collect();
    let is_place = |line: &&&str| line.split_once(':').is_some_and(|(l, _)| l.parse::<u32>().is_ok());
    let places = expected.iter().filter(is_place).count();
    assert!(places > 0, "{name} expects no place");
    let mut missing = Vec::new();
    for line in &expected {
        let wanted = if is_place(&line) {
            format!("{name}:{}", line.trim_end_matches('*'))
        } else {
            (*line).to_owned()
        };
        let ends = |rest: &str| line.ends_with('*') || !rest.starts_with(|c: char| c.is_ascii_digit());
        let found =
            said.match_indices(&wanted).any(|(at, _)| !is_place(&line) || ends(&said[at + wanted.len()..]));
        if !found {
            missing.push(wanted);
        }
    }
    let errors = said.lines().filter(|line| line.starts_with("error")).count();
    if errors != places {
        missing.push(format!("{places} errors, and it tells of {errors}"));
    }
    missing
}

#[test]
fn every_error_of_a_bad_file_is_told_with_its_place() {
    let files = toml_files(&root().join("tests/tests/golden/bad"));
    assert!(files.len() >= 30, "only {} bad files", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let output = check(&file);
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        if output.status.code() != Some(2) {
            wrong.push(format!("{name}: ended with {}, not 2\n{}", output.status, said(&output)));
            continue;
        }
        if !output.stdout.is_empty() {
            wrong.push(format!(
                "{name}: wrote {:?} to standard output",
                String::from_utf8_lossy(&output.stdout)
            ));
        }
        let missing = missing(&file, &said(&output));
        if !missing.is_empty() {
            wrong.push(format!("{name} lacks {missing:#?}; it says\n{}", said(&output)));
        }
    }
    assert!(wrong.is_empty(), "{} bad files are answered wrongly:\n\n{}", wrong.len(), wrong.join("\n"));
}

/// The line and a caret under the place, as every error shows them.
#[test]
fn an_error_shows_its_line_and_a_caret() {
    let output = check(&root().join("tests/tests/golden/bad/key-misspelt.toml"));
    let said = said(&output);
    assert!(said.lines().any(|l| l.contains("htps = 443")), "{said}");
    assert!(said.lines().any(|l| l.trim_start_matches([' ', '|']).starts_with("^^^^")), "{said}");
}

#[test]
fn every_shipped_configuration_loads() {
    let config = root().join("config");
    let mut files = toml_files(&config);
    files.extend(toml_files(&config.join("examples")));
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let output = check(&file);
        assert_eq!(output.status.code(), Some(0), "{}:\n{}", file.display(), said(&output));
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ok", "{}", file.display());
    }
}

/// The reference's own smallest file.
#[test]
fn the_smallest_useful_file_loads() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("smallest.toml");
    std::fs::write(
        &file,
        "[tls]\nself_signed = true\n[sites.\"app.example.com\"]\npool = \"192.168.1.10:80\"\n",
    )
    .unwrap();
    let output = check(&file);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

#[test]
fn a_missing_file_is_named() {
    let output = check(Path::new("/nonexistent/foregate.toml"));
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("/nonexistent/foregate.toml"), "{}", said(&output));
}

#[test]
fn run_refuses_what_check_refuses() {
    let file = root().join("tests/tests/golden/bad/two-errors.toml");
    let output = Command::new(binary()).arg("run").arg("--config").arg(&file).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert_eq!(missing(&file, &said(&output)), Vec::<String>::new());
}

/// Warnings are told and refuse nothing.
#[test]
fn a_warning_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("warns.toml");
    let text = "[tls]\nself_signed = true\n[sites.\"a.test\"]\npool = \"127.0.0.1:80\"\nroutes = [\n  \
        { paths = \"/\", when = { client_ips = [\"10.0.0.0/8\"] }, pool = \"127.0.0.1:80\" },\n]\n";
    std::fs::write(&file, text).unwrap();
    let output = check(&file);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains("warning") && said(&output).contains("warns.toml:6:"),
        "{}",
        said(&output)
    );
}

/// What works, but not as its author may think.
#[test]
fn what_has_no_effect_is_warned_of() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("warns.toml");
    let site = "[sites.\"a.test\"]\npool = \"127.0.0.1:80\"\n";
    for (text, words) in [
        ("[tls]\nself_signed = true\n".to_owned(), &["no site: every request is answered 404"][..]),
        (
            format!("[server]\nhttps = \"off\"\nredirect_to_https = true\n{site}"),
            &["no effect", "warns.toml:3:21"],
        ),
        (
            format!("[server]\nhttps = \"off\"\n{site}redirect_to_https = true\n"),
            &["no effect", "warns.toml:5:21"],
        ),
        (format!("[server]\nhttps = \"off\"\nredirect_to_https = false\n{site}"), &[]),
    ] {
        std::fs::write(&file, &text).unwrap();
        let output = check(&file);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(0), "{text}: {said}");
        assert_eq!(said.matches("warning: ").count(), words.len().min(1), "{text}: {said}");
        for word in words {
            assert!(said.contains(word), "{text}: {word} in {said}");
        }
    }
}

#[test]
fn certificates_are_opened_by_check() {
    let folder = tempfile::tempdir().unwrap();
    let write = |text: &str| {
        let file = folder.path().join("foregate.toml");
        std::fs::write(&file, format!("{text}\n[sites.\"a.test\"]\npool = \"127.0.0.1:80\"\n")).unwrap();
        check(&file)
    };
    Authority::shared().write(folder.path(), "a", &["a.test"]);
    Authority::shared().write(folder.path(), "b", &["b.test"]);
    std::fs::write(folder.path().join("junk.crt"), "this is no certificate").unwrap();

    let good = write("[[tls.certificates]]\ncert = \"a.crt\"\nkey = \"a.key\"");
    assert_eq!(good.status.code(), Some(0), "{}", said(&good));
    for (cert, key, words) in [
        ("b.crt", "b.key", &["a.test"][..]),
        ("a.crt", "b.key", &["b.key", "foregate.toml:3:7"]),
        ("junk.crt", "a.key", &["junk.crt", "foregate.toml:2:8"]),
        ("a.crt", "missing.key", &["missing.key", "foregate.toml:3:7"]),
    ] {
        let bad = write(&format!("[[tls.certificates]]\ncert = {cert:?}\nkey = {key:?}"));
        assert_eq!(bad.status.code(), Some(2), "{cert} {key}: {}", said(&bad));
        for word in words {
            assert!(said(&bad).contains(word), "{cert} {key}: {word} in {}", said(&bad));
        }
    }
}

/// Files in lexical order, without dot files, and an error names the file it stands in.
#[tokio::test]
async fn includes_hold_sites() {
    let vm = origin().named("a").start().await;
    let pool = format!("pool = {:?}\n", vm.address());
    let folder = tempfile::tempdir().unwrap();
    let parts = folder.path().join("conf.d");
    std::fs::create_dir(&parts).unwrap();
    std::fs::write(parts.join("10-a.toml"), format!("[sites.\"a.test\"]\n{pool}")).unwrap();
    std::fs::write(parts.join("20-b.toml"), format!("[sites.\"b.test\"]\n{pool}")).unwrap();
    std::fs::write(parts.join(".hidden.toml"), "this = is not read").unwrap();
    let main = folder.path().join("main.toml");
    let text = "include = \"conf.d/*.toml\"\n[tls]\nself_signed = true\n";
    std::fs::write(&main, text).unwrap();
    let output = check(&main);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));

    std::fs::write(parts.join("30-a.toml"), format!("[sites.\"a.test\"]\n{pool}")).unwrap();
    let output = check(&main);
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("30-a.toml:1:") && said(&output).contains("10-a.toml:1:"),
        "{}",
        said(&output)
    );

    std::fs::write(parts.join("30-a.toml"), "[server]\nhttp = 81\n").unwrap();
    let output = check(&main);
    assert_eq!(output.status.code(), Some(2));
    assert!(said(&output).contains("30-a.toml:1:"), "{}", said(&output));
}

#[tokio::test]
async fn secrets_come_from_the_environment_and_files() {
    let vm = origin().start().await;
    let site = format!(
        "[sites.\"shop.test\"]\npool = {:?}\nrequest_headers = [\"X-Env: {{env.FOREGATE_TEST_SECRET}}\", \"X-File: {{file.secret.txt}}\"]\n",
        vm.address()
    );
    let gw = gateway()
        .named(&["shop.test"])
        .env("FOREGATE_TEST_SECRET", "from the environment")
        .file("secret.txt", "from a file\n")
        .toml(&site)
        .start()
        .await;
    gw.request(Version::H1, get("/")).await;
    let seen = vm.only().fields;
    assert_eq!((seen.get("x-env"), seen.get("x-file")), (Some("from the environment"), Some("from a file")));
    gw.stop().await;
}

#[test]
fn help_is_there_for_everyone() {
    for arguments in
        [&["--help"][..], &["run", "--help"], &["check", "--help"], &["proxy", "--help"], &["demo", "--help"]]
    {
        let output = Command::new(binary()).args(arguments).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("Usage:"), "{arguments:?}: {text}{}", said(&output));
    }
    let output = Command::new(binary()).arg("nonsense").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}

/// The same gateway from flags alone.
#[tokio::test]
async fn proxy_serves_without_a_file() {
    let (a, b) = (origin().named("a").start().await, origin().named("b").start().await);
    let (http, https) = (lease(), lease());
    let mut command = Command::new(binary());
    command.arg("proxy").args(["--to", &a.address(), "--to", &b.address()]);
    command.args([
        "--host",
        "app.test",
        "--http",
        &http.port.to_string(),
        "--https",
        &https.port.to_string(),
    ]);
    let mut process = Process::spawn(&mut command);
    eventually("both listeners", || {
        assert!(process.ended().is_none(), "it ended: {}", process.err.text());
        (process.out.having(&["listening on "]).len() >= 2).then_some(())
    })
    .await;
    let dial = foregate_tests::Dial::loopback(http.port, https.port, "app.test");
    let client = foregate_tests::Client::connect(&dial, Version::H1).await.unwrap();
    let mut met: Vec<String> = Vec::new();
    for _ in 0..4 {
        let reply = client.send(&get("/").host("app.test")).await.unwrap();
        // Where a certificate exists plain HTTP is redirected; from flags it must at least be one or the other.
        assert!(matches!(reply.status, 200 | 308), "{reply:?}");
        met.push(reply.vm().to_owned());
    }
    if met.iter().any(|vm| !vm.is_empty()) {
        assert!(met.contains(&"a".to_owned()) && met.contains(&"b".to_owned()), "{met:?}");
    }
    process.signal(rustix::process::Signal::TERM);
    assert!(process.wait().await.success(), "{}", process.err.text());
}

/// Three VMs and a gateway, with the lines a stranger needs; a second demo finds ports of its own.
#[tokio::test]
async fn demo_runs_and_says_what_to_try() {
    let mut demos = Vec::new();
    for _ in 0..2 {
        let mut process = Process::spawn(Command::new(binary()).arg("demo"));
        eventually("curl lines", || {
            assert!(process.ended().is_none(), "it ended: {}", process.err.text());
            let text = process.out.text() + &process.err.text();
            (text.contains("curl") && text.contains("--http3") && text.contains("https://")).then_some(())
        })
        .await;
        demos.push(process);
    }
    for process in &mut demos {
        process.signal(rustix::process::Signal::INT);
        assert!(process.wait().await.success(), "{}", process.err.text());
    }
}

#[test]
fn systemd_takes_the_units() {
    let folder = tempfile::tempdir().unwrap();
    for unit in ["foregate.service", "foregate-agent.service"] {
        let text = std::fs::read_to_string(root().join("config").join(unit)).unwrap();
        // It looks whether the program is there.
        let text = text.replace("/usr/local/bin/foregate", binary().to_str().unwrap());
        let file = folder.path().join(unit);
        std::fs::write(&file, text).unwrap();
        let output = Command::new("systemd-analyze").arg("verify").arg(&file).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{unit}: {}", said(&output));
    }
}
