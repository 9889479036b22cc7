//! Memory that is set aside: what does not fit is refused with the figures where somebody asked for it, and waits elsewhere.

use hutong_testkit::server::{Server, python_app};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root};

#[test]
fn what_does_not_fit_is_refused_or_waits() {
    if !is_root() {
        return;
    }
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "app_memory = '448M'\n").expect("written");
    let server = Server::start_with(&["--config", &file.path().to_string_lossy()]);
    // By default a quarter of 256M.
    server.deploy(python_app("one", "", "one").path());
    server.deploy(
        python_app(
            "two",
            "limits.guaranteed = '200M'\n[sleep]\nafter = '1s'\n",
            "two",
        )
        .path(),
    );
    let deploy = |name: &str, more: &str| {
        let folder = python_app(name, more, name);
        server
            .fails(&["deploy", &folder.path().to_string_lossy()])
            .1
    };
    // While it sleeps its memory is others' to use.
    eventually("it sleeps", 30, || server.app("two")["state"] == "asleep");
    eventually("nothing of it is left", 20, || {
        server.app("two")["instances"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    server.deploy(python_app("three", "limits.guaranteed = '250M'\n", "three").path());
    let said = deploy("four", "limits.guaranteed = '150M'\n");
    assert!(
        said.contains("150M of memory are needed, and 134M of 448M are left"),
        "{said}"
    );
    assert!(server.app("four").is_null(), "nothing was begun");
    let (_, said) = server.fails(&["scale", "one", "4"]);
    assert!(said.contains("192M of memory are needed"), "{said}");
    assert_eq!(server.app("one")["wanted_instances"], 1);
    // A visitor wakes it, and waits until there is room.
    std::thread::scope(|scope| {
        let visit = scope.spawn(|| get(&server.http, "two.test", "/"));
        eventually("it says what it waits for", 20, || {
            let message = server.app("two")["message"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            message.contains("waits for memory: 200M")
        });
        // And so does a build.
        let build = python_app(
            "made",
            "build.command = 'touch made'\nlimits.guaranteed = '1M'\n",
            "made",
        );
        let server = &server;
        let deployed = scope.spawn(move || server.deploy(build.path()));
        let build_waits = || {
            let app = server.app("made");
            let doing = app["deploying"]["doing"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            doing.contains("waits for memory")
        };
        eventually("the build waits", 20, build_waits);
        server.ok(&["stop", "three"]);
        let answer = visit.join().expect("no panic");
        assert_eq!((answer.status, answer.text().as_str()), (200, "two"));
        eventually("it sleeps again, and the build has its memory", 60, || {
            get(&server.http, "made.test", "/").text() == "made"
        });
        deployed.join().expect("no panic");
    });
    // Once there is room it needs no asking.
    eventually("nobody waits", 20, || {
        !server.app("two")["message"]
            .as_str()
            .unwrap_or_default()
            .contains("waits")
    });
}
