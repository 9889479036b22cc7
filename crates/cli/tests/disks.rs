//! What apps may keep on the disk: bounds that the kernel keeps, bounds that are measured, and the platform's reserve.

use std::path::Path;

use hutong_testkit::server::{Server, python_app};
use hutong_testkit::visitor::{escape, get};
use hutong_testkit::{eventually, is_root};

fn eval(server: &Server, app: &str, code: &str) -> String {
    let path = format!("/eval?{}", escape(code));
    get(&server.http, &format!("{app}.test"), &path).text()
}

const FILL: &str = "n=0\nf=open('/data/big','wb')\ntry:\n  while True: n+=f.write(b'x'*65536); f.flush()\nexcept OSError as e: result=f'{e.errno} {n>>20}'";

fn is_mounted(folder: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("it is there");
    let folder = folder.to_string_lossy();
    mounts
        .lines()
        .any(|line| line.split(' ').nth(4) == Some(&folder))
}

#[test]
fn data_has_a_bound_of_its_own() {
    if !is_root() {
        return;
    }
    let mut server = Server::start();
    let app = |disk: &str| {
        python_app(
            "box",
            &format!("data = true\nlimits.disk = '{disk}'\n"),
            "box",
        )
    };
    server.deploy(app("32M").path());
    let folder = server.data.path().join("data/box");
    assert!(is_mounted(&folder));
    assert_eq!(
        eval(&server, "box", "import os; result = os.listdir('/data')"),
        "[]"
    );
    let full = eval(&server, "box", FILL);
    let (error, megabytes) = full.split_once(' ').expect("an error and a number");
    assert_eq!(error, "28", "ENOSPC");
    let megabytes: u64 = megabytes.parse().expect("a number");
    assert!((28..=40).contains(&megabytes), "{megabytes}");
    // Neither do names without content go on for ever.
    eval(&server, "box", "import os; os.remove('/data/big')");
    let names = "n=0\ntry:\n  while n<1000000: open(f'/data/{n}','w').close(); n+=1\nexcept OSError as e: result=f'{e.errno}'";
    assert_eq!(eval(&server, "box", names), "28");
    let tidy = "import os\nfor one in os.listdir('/data'): os.remove('/data/'+one)\nopen('/data/kept','w').write('mine')";
    eval(&server, "box", tidy);
    eventually("it is measured", 20, || {
        let disk = server.app("box")["disk"].clone();
        disk["is_enforced"] == true && disk["data_limit_bytes"].as_u64() > Some(30 << 20)
    });
    assert!(server.ok(&["status", "box"]).contains("disk: /data"));
    // More is given while it is in use; less is not.
    server.deploy(app("64M").path());
    let megabytes = |server: &Server| -> u64 {
        let code = "import os; s=os.statvfs('/data'); result = s.f_blocks*s.f_frsize>>20";
        eval(server, "box", code).parse().expect("a number")
    };
    assert!(
        (58..=72).contains(&megabytes(&server)),
        "{}",
        megabytes(&server)
    );
    server.deploy(app("16M").path());
    assert!(
        (58..=72).contains(&megabytes(&server)),
        "{}",
        megabytes(&server)
    );
    // The warden may be killed, the server stopped: it is all there again.
    let http = server.http.clone();
    server = Server::start_in(server.into_data(), &["--http", &http]);
    eventually("it serves", 20, || {
        get(&http, "box.test", "/").status == 200
    });
    assert_eq!(
        eval(&server, "box", "result = open('/data/kept').read()"),
        "mine"
    );
    server.stop();
    assert!(
        !is_mounted(&folder),
        "a server that is stopped leaves no mount"
    );
    let kept = std::mem::replace(&mut server.data, tempfile::tempdir().expect("a folder"));
    drop(server);
    let server = Server::start_in(kept, &["--http", &http]);
    eventually("it serves", 20, || {
        get(&http, "box.test", "/").status == 200
    });
    assert_eq!(
        eval(&server, "box", "result = open('/data/kept').read()"),
        "mine"
    );
    assert!(
        server.ok(&["doctor", "--leaks"]).contains("nothing"),
        "{}",
        server.ok(&["doctor", "--leaks"])
    );
    server.ok(&["remove", "box", "--purge"]);
    eventually("nothing is left", 20, || {
        !is_mounted(&folder)
            && !server.data.path().join("disks/box.img").exists()
            && !folder.exists()
    });
}

#[test]
fn what_was_there_is_kept_when_a_bound_comes() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = |more: &str| python_app("old", &format!("data = true\n{more}"), "old");
    server.deploy(app("").path());
    eval(
        &server,
        "old",
        "import os; os.makedirs('/data/a/b'); open('/data/a/b/c','w').write('mine'); os.symlink('/etc/passwd', '/data/link')",
    );
    server.deploy(app("limits.disk = '16M'\n").path());
    assert!(is_mounted(&server.data.path().join("data/old")));
    let code = "import os; result = open('/data/a/b/c').read(), os.readlink('/data/link'), os.stat('/data/a').st_uid == os.getuid()";
    assert_eq!(eval(&server, "old", code), "('mine', '/etc/passwd', True)");
    let full = eval(&server, "old", FILL);
    let megabytes: u64 = full
        .strip_prefix("28 ")
        .expect(&full)
        .parse()
        .expect("a number");
    assert!((14..=23).contains(&megabytes), "{megabytes}");
    let left = std::fs::read_dir(server.data.path().join("disks")).expect("it is there");
    assert_eq!(left.count(), 1, "no half image is left");
    assert!(
        !server.data.path().join("data/.lost").exists(),
        "nor a second copy"
    );
    // What there is no room for is refused, and nothing is lost.
    let (_, said) = server.fails(&[
        "deploy",
        &python_app("huge", "data = true\nlimits.disk = '8T'\n", "")
            .path()
            .to_string_lossy(),
    ]);
    assert!(
        said.contains("no room for 8T") || said.contains("File too large"),
        "{said}"
    );
}

/// The warden is killed at each step of making and growing a disk: nothing is lost, and it is made in the end.
#[test]
fn a_killed_warden_loses_nothing_of_a_disk() {
    if !is_root() {
        return;
    }
    for (step, from, to) in [
        ("disk.made", "", "limits.disk = '16M'\n"),
        ("disk.mounted", "", "limits.disk = '16M'\n"),
        (
            "disk.allocated",
            "limits.disk = '16M'\n",
            "limits.disk = '48M'\n",
        ),
    ] {
        let fail = tempfile::tempdir().expect("a folder");
        let data = tempfile::Builder::new()
            .prefix("hutong-test-")
            .tempdir()
            .expect("a folder");
        let variable = format!("HUTONG_FAIL={}", fail.path().display());
        let mut server = Server::start_through_in(&["/usr/bin/env", &variable], data, &[]);
        std::fs::write(fail.path().join("hits"), "").expect("written");
        let app = |disk: &str| python_app("box", &format!("data = true\n{disk}"), "box");
        server.deploy(app(from).path());
        eval(&server, "box", "open('/data/kept','w').write('mine')");
        std::fs::write(fail.path().join("armed"), format!("warden {step} 1 kill\n"))
            .expect("armed");
        let folder = app(to);
        let mut command = server.command(&["deploy", &folder.path().to_string_lossy()]);
        let mut deploy = command.spawn().expect("hutong runs");
        eventually(step, 20, || !server.is_alive());
        // Nobody is there to tell it how it went.
        let _ = deploy.kill();
        let _ = deploy.wait();
        let http = server.http.clone();
        server = Server::start_in(server.into_data(), &["--http", &http]);
        server.deploy(app(to).path());
        eventually("it serves", 30, || {
            get(&http, "box.test", "/").status == 200
        });
        assert_eq!(
            eval(&server, "box", "result = open('/data/kept').read()"),
            "mine",
            "{step}"
        );
        let code = "import os; s=os.statvfs('/data'); result = s.f_blocks*s.f_frsize>>20";
        let megabytes: u64 = eval(&server, "box", code).parse().expect("a number");
        let wanted = if step == "disk.allocated" {
            40..=60
        } else {
            12..=24
        };
        assert!(wanted.contains(&megabytes), "{step}: {megabytes}");
        let left = std::fs::read_dir(server.data.path().join("disks")).expect("it is there");
        assert_eq!(left.count(), 1, "{step}: no half image is left");
    }
}

/// Without a bound of its own /data is measured; who keeps too much is stopped, and may clear up.
#[test]
fn who_keeps_too_much_is_stopped() {
    if !is_root() {
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "app_disk = '20M'\n").expect("written");
    let server = Server::start_with(&["--config", &file.path().to_string_lossy()]);
    let more = "data = true\n[workers.log]\ncommand = ['sleep', '600']\n";
    server.deploy(python_app("hog", more, "hog").path());
    server.deploy(python_app("calm", "data = true", "calm").path());
    eval(
        &server,
        "hog",
        "open('/data/big','wb').write(b'x'*(30<<20))",
    );
    eventually("it is stopped", 40, || {
        let app = server.app("hog");
        let message = app["message"].as_str().unwrap_or_default();
        app["state"] == "failing"
            && message.contains("/data holds 30")
            && message.contains("more than the 20M")
    });
    eventually("nothing of it runs", 20, || {
        server.app("hog")["instances"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    assert_eq!(get(&server.http, "hog.test", "/").status, 503);
    assert_eq!(get(&server.http, "calm.test", "/").text(), "calm");
    server.ok(&["run", "hog", "--", "rm", "/data/big"]);
    eventually("it is back", 40, || {
        get(&server.http, "hog.test", "/").text() == "hog"
    });
}
