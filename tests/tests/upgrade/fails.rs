//! Successors that fail: all is as it was.

use std::process::Stdio;

use super::*;

#[tokio::test]
async fn a_successor_that_fails_changes_nothing() {
    let release = Arc::new(Notify::new());
    let vm = holding("a", &release).await;
    let gw = Arc::new(before(&vm, "5s").copied("program").start().await);
    let (crowd, held) = (Crowd::gather(&gw).await, Held::all(&gw, "shop.test").await);
    let old = pid(&gw).await;
    for (program, complaint) in [
        (&b"#!/bin/sh\nexit 3\n"[..], "ended before it served (exit status: 3)"),
        (b"not a program", "cannot be started"),
        (b"#!/bin/sh\nkill -9 $$\n", "signal: 9"),
        (
            b"#!/bin/sh\nhead -c 1000 >/dev/null\nprintf '\\000\\000\\000\\002{}' >&0\nsleep 9\n",
            "something else than that it is ready",
        ),
    ] {
        install(&gw, program);
        let said = gw.refused(&["upgrade"]).await;
        assert!(said.contains(complaint) && said.contains("goes on as it was"), "{said}");
        assert_eq!(pid(&gw).await, old);
        crowd.goes_on().await;
    }
    // Who asks by a signal reads it in the log.
    let goes_on = || gw.log().having(&["ERROR", "this process goes on"]).len();
    let before = goes_on();
    gw.process.signal(Signal::USR2);
    eventually("it is said", || (goes_on() > before).then_some(())).await;
    crowd.leaves(&vm).await;
    // One that is killed at any point of the hand-over. Whom it has let in by then goes with it, so nobody asks meanwhile.
    let real = gw.folder().join("real");
    copy_program(foregate_tests::binary(), &real);
    let (mut failed, mut point) = (0, 0);
    while failed < 20 && point < 40 {
        point += 1;
        let script = format!(
            "#!/bin/sh\nexec 3<&0\n{} \"$@\" <&3 3<&- &\nsleep 0.{:03}\nkill -9 $!\nwait\nexit 1\n",
            real.display(),
            point * 3 % 60,
        );
        install(&gw, script.as_bytes());
        let output = gw.operate(&["upgrade"]).await;
        if output.status.success() {
            // One that has served for long and is killed then is a crash like any other, and this machine is slow to kill.
            break;
        }
        failed += 1;
        assert_eq!(pid(&gw).await, old);
        for version in Version::ALL {
            let reply = gw.request(version, get("/")).await;
            assert_eq!((reply.status, reply.vm()), (200, "a"), "{version:?} after point {point}");
        }
    }
    assert!(failed >= 10, "after {failed} it was too late");
    if pid(&gw).await != old {
        return;
    }
    release.notify_waiters();
    rest_of(held).await;
    // And then one that does.
    let crowd = Crowd::gather(&gw).await;
    install_file(&gw, foregate_tests::binary());
    gw.told(&["upgrade"]).await;
    assert_ne!(pid(&gw).await, old);
    crowd.goes_on().await;
    crowd.leaves(&vm).await;
}

#[tokio::test]
async fn who_is_told_to_end_does_not_wait_for_a_successor() {
    let vm = holding("a", &Arc::default()).await;
    let mut gw = before(&vm, "5s").copied("program").start().await;
    install(&gw, b"#!/bin/sh\nexec sleep 50\n");
    gw.process.signal(Signal::USR2);
    let children = format!("/proc/{0}/task/{0}/children", gw.process.id());
    let child = eventually("it is started", || {
        std::fs::read_to_string(&children).ok().filter(|text| !text.is_empty())
    })
    .await;
    let begun = std::time::Instant::now();
    gw.terminate();
    gw.ended().await;
    assert!(begun.elapsed().as_secs() < 4, "{:?}", begun.elapsed());
    // Whoever has it by now may take its time to read how it ended.
    let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
    eventually("nothing is left of it", || {
        let state = state();
        (state.is_empty() || state.contains(") Z ")).then_some(())
    })
    .await;
}

/// Wherever on its way it ends: the one before has everything still.
#[tokio::test]
async fn a_successor_may_end_at_any_point() {
    let release = Arc::new(Notify::new());
    let vm = holding("a", &release).await;
    let gw = Arc::new(before(&vm, "5s").copied("program").start().await);
    let (crowd, held) = (Crowd::gather(&gw).await, Held::all(&gw, "shop.test").await);
    let old = pid(&gw).await;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/successor.py");
    for (point, complaint) in [
        ("testament", "signal: 9"),
        ("sockets", "signal: 9"),
        ("ready", "signal: 9"),
        ("take over", "signal: 9"),
        ("done", "signal: 9"),
        ("silent", "it takes too long"),
    ] {
        let program = format!("#!/bin/sh\nexec python3 -B {} '{point}' \"$@\"\n", script.display());
        install(&gw, program.as_bytes());
        let said = gw.refused(&["upgrade"]).await;
        assert!(said.contains(complaint) && said.contains("goes on as it was"), "{point}: {said}");
        assert_eq!(pid(&gw).await, old, "{point}");
        crowd.goes_on().await;
    }
    release.notify_waiters();
    rest_of(held).await;
    install_file(&gw, foregate_tests::binary());
    gw.told(&["upgrade"]).await;
    crowd.goes_on().await;
    crowd.leaves(&vm).await;
}

/// Half of what it needs is no reason not to serve: it is started as if nobody had been there before.
#[tokio::test]
async fn who_was_told_half_starts_anew() {
    use std::io::Write;
    let vm = holding("a", &Arc::default()).await;
    let mut gw = before(&vm, "1s").start().await;
    gw.terminate();
    gw.ended().await;
    let (mut channel, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    channel.write_all(&[0, 0, 1, 0, b'{']).unwrap();
    drop(channel);
    let mut command = tokio::process::Command::new(foregate_tests::binary());
    command.args(["run", "--config"]).arg(gw.config());
    command.env("FOREGATE_SUCCESSOR_OF", std::process::id().to_string()).kill_on_drop(true);
    command.stdin(std::os::fd::OwnedFd::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
    let _process = command.spawn().unwrap();
    for version in Version::ALL {
        let serves =
            async || gw.try_request(version, &get("/")).await.ok().filter(|reply| reply.status == 200);
        eventually_async("it serves", serves).await;
    }
}

/// The one before is of a version that this one does not know.
#[tokio::test]
async fn what_is_not_understood_is_refused() {
    use std::io::{Read, Write};
    let (mut channel, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let text = br#"{ "version": 9, "program": "7.0", "spots": [] }"#;
    channel.write_all(&(text.len() as u32).to_be_bytes()).unwrap();
    channel.write_all(text).unwrap();
    let mut command = tokio::process::Command::new(foregate_tests::binary());
    command
        .args(["run", "--config", "/nowhere"])
        .env("FOREGATE_SUCCESSOR_OF", std::process::id().to_string());
    let output = command.stdin(std::os::fd::OwnedFd::from(theirs)).output().await.unwrap();
    drop(command);
    let mut said = Vec::new();
    channel.read_to_end(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said[4..]).into_owned();
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    for text in [&*said, &*told] {
        assert!(text.contains("speaks version 9") && text.contains("restart instead"), "{text}");
    }
    assert!(said.contains("\"refused\""), "{said}");
}

/// What is being started then serves, whether it had heard from the one before or not.
#[tokio::test]
async fn the_process_before_may_end_at_any_point() {
    let vm = holding("a", &Arc::default()).await;
    for has_heard in [false, true] {
        let gw = before(&vm, "5s").copied("program").start().await;
        let slow = format!("#!/bin/sh\nsleep 1\nexec {} \"$@\"\n", foregate_tests::binary().display());
        install(&gw, slow.as_bytes());
        gw.process.signal(Signal::USR2);
        eventually("it is started", || gw.log().having(&["a new process is started"]).pop()).await;
        // By then the new one has been told everything, and waits to be let.
        tokio::time::sleep(std::time::Duration::from_millis(400)).await;
        if has_heard {
            gw.process.signal(Signal::STOP);
            eventually("it makes ready", || gw.successors().first().copied()).await;
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        }
        gw.process.signal(Signal::KILL);
        for version in Version::ALL {
            let reply =
                eventually_async("it serves", || async { gw.try_request(version, &get("/")).await.ok() })
                    .await;
            assert_eq!((reply.status, reply.vm()), (200, "a"), "{version:?}");
        }
    }
}

/// Later it is too late to go on as before; what has begun ends well, and the log tells.
#[tokio::test]
async fn a_successor_that_ends_later_is_told_of() {
    let release = Arc::new(Notify::new());
    let vm = holding("a", &release).await;
    let mut gw = before(&vm, "20s").start().await;
    let held = Held::all(&gw, "shop.test").await;
    gw.told(&["upgrade"]).await;
    kill_process(*gw.successors().last().unwrap(), Signal::KILL).unwrap();
    eventually("it is said", || gw.log().having(&["ERROR", "that has taken over has ended"]).pop()).await;
    release.notify_waiters();
    rest_of(held).await;
    assert!(gw.process.wait().await.success());
}
