//! Apps that get more instances while there is much to do, and fewer afterwards.

use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::traffic::Traffic;
use hutong_testkit::{eventually, is_root, kill};

/// How many serve, if none is on its way in or out.
fn serving(server: &Server, app: &str) -> Option<usize> {
    let shown = server.app(app);
    let instances = shown["instances"].as_array()?;
    let settled = instances.iter().all(|one| one["state"] == "healthy");
    settled.then_some(instances.len())
}

#[test]
fn as_many_as_there_is_to_do() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let more = "[scale]\nmax=3\nrequests=2\ncooldown='5s'\n";
    server.deploy(python_app("busy", more, "hello").path());
    assert_eq!(serving(&server, "busy"), Some(1));
    let quick = Traffic::start(&server.http, "busy.test", "/", 20, 2);
    // Twelve at a time, which is work for six.
    let slow = Traffic::start(&server.http, "busy.test", "/slow?0.5", 24, 12);
    eventually("it grows", 90, || serving(&server, "busy") == Some(3));
    slow.goes_on(24);
    let shown = server.app("busy");
    assert_eq!(shown["wanted_instances"], 3);
    assert_eq!(shown["scaling"]["max"], 3);
    let status = server.ok(&["status", "busy"]);
    assert!(
        status.contains("3 instance(s) wanted, of 1 to 3"),
        "{status}"
    );
    // One that is new does not take away what runs.
    let old = server.role("control");
    kill(old);
    eventually("another control plane looks after it", 20, || {
        server.run(&["apps"]).status.success()
            && server.role("control") != old
            && server.app("busy")["wanted_instances"] == 3
    });
    slow.goes_on(24);
    let report = slow.finish();
    assert!(report.failed.is_empty(), "{report:?}");
    eventually("it shrinks", 120, || serving(&server, "busy") == Some(1));
    quick.goes_on(10);
    let report = quick.finish();
    assert!(report.failed.is_empty(), "{report:?}");
    let log = server.ok(&["logs", "busy", "-n", "1000"]);
    for said in ["1 → 2 instances: ", "2 → 3 instances: ", "→ 1 instances: "] {
        assert!(log.contains(said), "{said}: {log}");
    }
    assert_eq!(log.matches("was started").count(), 3, "{log}");
    // What the owner says holds, whatever there is to do.
    server.ok(&["scale", "busy", "2"]);
    eventually("two run", 30, || serving(&server, "busy") == Some(2));
    let shown = server.app("busy");
    assert_eq!(shown["wanted_instances"], 2);
    assert_eq!(shown["scaling"]["fixed"], true);
}

#[test]
fn a_release_that_scales_begins_with_what_there_was() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("busy", "instances=3\n", "one").path());
    assert_eq!(serving(&server, "busy"), Some(3));
    server.deploy(python_app("busy", "[scale]\nmax=8\n", "two").path());
    assert_eq!(server.app("busy")["wanted_instances"], 3);
    eventually("the old ones are gone", 30, || {
        serving(&server, "busy") == Some(3)
    });
}

#[test]
fn what_cannot_scale() {
    let server = Server::start();
    for (spec, said) in [
        (
            "name='a'\nstatic='.'\n[scale]\nmax=2",
            "4:5: `scale` goes with `command`",
        ),
        (
            "name='a'\ncommand='x'\ninstances=2\n[scale]\nmax=2",
            "3:11: `instances` is a fixed number",
        ),
        (
            "name='a'\ncommand='x'\ndata=true\n[scale]\nmax=2",
            "5:5: data has a single writer",
        ),
        ("name='a'\ncommand='x'\n[scale]\nmin=2", "max"),
    ] {
        let folder = app_folder(&[("hutong.toml", spec)]);
        let (code, text) = server.fails(&["check", &folder.path().display().to_string()]);
        assert!(code == 4 && text.contains(said), "{text}");
    }
}
