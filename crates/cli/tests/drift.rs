//! What was declared, what is wanted and what runs: `diff`, `export` and `apply`.

use std::path::Path;
use std::process::Output;

use hutong_testkit::server::{Server, python_app};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root};

fn write(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
    std::fs::write(path, text).expect("write");
}

/// A static app in a folder of its own.
fn site(apps: &Path, name: &str, page: &str) {
    let toml = format!("name = \"{name}\"\ndomains = [\"{name}.test\"]\nstatic = \"www\"\n");
    write(apps, &format!("{name}/hutong.toml"), &toml);
    write(apps, &format!("{name}/www/index.html"), page);
}

fn said(output: &Output) -> String {
    let (out, err) = (&output.stdout, &output.stderr);
    format!(
        "{}{}",
        String::from_utf8_lossy(out),
        String::from_utf8_lossy(err)
    )
}

fn names(server: &Server) -> Vec<String> {
    let apps = server.json(&["apps"]);
    let list = apps.as_array().expect("a list").iter();
    list.filter_map(|app| app["name"].as_str())
        .map(str::to_owned)
        .collect()
}

#[test]
fn diff_says_what_differs_and_export_brings_it_back() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("shop", "# by hand\n[env]\nGREETING = \"hello\"", "one");
    let folder = app.path().to_string_lossy().into_owned();
    let diff = |what: &str| {
        let output = server.run(&["diff", what]);
        (output.status.code().unwrap_or(-1), said(&output))
    };
    let (code, text) = diff(&folder);
    assert!(code == 5 && text.contains("no such app"), "{text}");
    server.deploy(app.path());
    // What is on its way out does not count, but a fresh instance is healthy before the deploy returns.
    let (code, text) = diff(&folder);
    assert!(
        code == 0 && text.contains("is the same as release 1"),
        "{text}"
    );
    assert_eq!(diff("shop").0, 0);
    let original = std::fs::read_to_string(app.path().join("hutong.toml")).expect("read");
    write(
        app.path(),
        "hutong.toml",
        &original
            .replace("hello", "good day")
            .replace("# by hand\n", "port = 9000\n"),
    );
    write(app.path(), "more.txt", "new");
    let program = std::fs::read_to_string(app.path().join("app.py")).expect("read");
    let changed = format!("{program}\n# changed\n");
    write(app.path(), "app.py", &changed);
    let (code, text) = diff(&folder);
    assert_eq!(code, 5, "{text}");
    for part in [
        "env.GREETING differs, and is not shown",
        "port: not set → 9000",
        "app.py differs",
        "more.txt is only here",
        "runs as it was deployed",
    ] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(!text.contains("good day"), "{text}");
    let output = server.run(&["diff", &folder, "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(
        (output.status.code(), &value["same"]),
        (Some(5), &false.into())
    );
    assert_eq!(value["file"][0]["key"], "env.GREETING");
    assert_eq!(value["file"][0]["after"], "(hidden)");
    assert_eq!(value["files"][1]["change"], "added");
    // The file comes back to the byte, and what is secret stays.
    server.ok(&["env", "set", "shop", "API_KEY=do-not-tell"]);
    let exported = server.run(&["export", "shop"]);
    assert_eq!(String::from_utf8_lossy(&exported.stdout), original);
    let beside = String::from_utf8_lossy(&exported.stderr).into_owned();
    assert!(beside.contains("API_KEY"), "{beside}");
    let all = said(&exported) + &server.ok(&["export", "shop", "--json"]);
    assert!(!all.contains("do-not-tell"));
    let out = app
        .path()
        .join("hutong.toml")
        .to_string_lossy()
        .into_owned();
    let (code, text) = server.fails(&["export", "shop", "--out", &out]);
    assert!(code == 1 && text.contains("--force"), "{text}");
    server.ok(&["export", "shop", "--out", &out, "--force"]);
    std::fs::remove_file(app.path().join("more.txt")).expect("removed");
    write(app.path(), "app.py", &program);
    server.ok(&["check", &folder]);
    let (code, text) = diff(&folder);
    assert!(code == 0, "{text}");
    server.deploy(app.path());
    assert_eq!(server.ok(&["export", "shop"]), original);
}

#[test]
fn what_was_done_beside_the_file_is_drift() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("shop", "[env]\nMODE = \"file\"", "one");
    server.deploy(app.path());
    let drift = |part: &str| {
        let output = server.run(&["diff", "shop"]);
        let text = said(&output);
        assert!(
            output.status.code() == Some(5) && text.contains(part),
            "{part}: {text}"
        );
    };
    server.ok(&["scale", "shop", "2"]);
    drift("2 instances were set");
    assert!(said(&server.run(&["export", "shop"])).contains("set 2 instance"));
    server.ok(&["scale", "shop", "1"]);
    server.ok(&["env", "set", "shop", "MODE=hand"]);
    drift("the variable MODE was set");
    server.ok(&["env", "unset", "shop", "MODE"]);
    eventually("nothing differs", 30, || {
        server.run(&["diff", "shop"]).status.success()
    });
    server.ok(&["stop", "shop"]);
    drift("it was stopped");
    server.ok(&["start", "shop"]);
    let bundle = app.path().join("evidence").to_string_lossy().into_owned();
    server.ok(&["isolate", "shop", "--bundle", &bundle]);
    drift("in quarantine");
    server.ok(&["release", "shop"]);
    let (code, text) = server.fails(&["diff", "no-such-app"]);
    assert!(code == 1 && text.contains("there is no app"), "{text}");
}

#[test]
fn a_folder_is_applied_as_a_whole_and_only_its_own_apps_go() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let other = python_app("other", "", "deployed otherwise");
    server.deploy(other.path());
    let folder = tempfile::tempdir().expect("tempdir");
    let apps = folder.path();
    let place = apps.to_string_lossy().into_owned();
    for name in ["one", "two", "three"] {
        site(apps, name, name);
    }
    let planned = server.run(&["apply", &place, "--dry-run"]);
    let text = said(&planned);
    assert!(
        planned.status.success() && text.contains("+ one: new"),
        "{text}"
    );
    assert_eq!(names(&server), ["other"]);
    let done = server.ok(&["apply", &place]);
    assert!(done.contains("two: release 1 serves"), "{done}");
    assert_eq!(get(&server.http, "three.test", "/").text(), "three");
    // Again: nothing is touched. One changed: that one is.
    let rows = |arguments: &[&str]| {
        let output = server.run(&[&["apply", place.as_str(), "--json"][..], arguments].concat());
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        let rows = value.as_array().expect("a list").iter();
        let rows = rows.map(|row| {
            let word = |key: &str| row[key].as_str().unwrap_or_default().to_owned();
            (word("app"), word("action"), word("result"))
        });
        (output.status.code(), rows.collect::<Vec<_>>())
    };
    let (code, all) = rows(&[]);
    assert!(
        code == Some(0) && all.iter().all(|row| row.1 == "unchanged"),
        "{all:?}"
    );
    write(apps, "two/www/index.html", "second");
    let (code, all) = rows(&[]);
    assert_eq!(code, Some(0), "{all:?}");
    assert_eq!(all[2].1, "changed");
    let releases = |app: &str| server.json(&["releases", app]).as_array().map(Vec::len);
    assert_eq!((releases("one"), releases("two")), (Some(1), Some(2)));
    // One that is wrong holds nobody up, and nothing is removed meanwhile.
    std::fs::rename(apps.join("one"), apps.join(".one")).expect("rename");
    write(
        apps,
        "wrong/hutong.toml",
        "name = \"wrong\"\nstatc = \"www\"",
    );
    site(apps, "four", "four");
    let (code, all) = rows(&["--prune", "--yes"]);
    assert_eq!(code, Some(4), "{all:?}");
    assert_eq!(get(&server.http, "four.test", "/").text(), "four");
    assert!(names(&server).contains(&"one".to_owned()));
    std::fs::remove_dir_all(apps.join("wrong")).expect("removed");
    // Without a terminal it is not asked, and not done.
    let (code, text) = server.fails(&["apply", &place, "--prune"]);
    assert!(code == 2 && text.contains("would remove one"), "{text}");
    let (code, all) = rows(&["--prune", "--dry-run"]);
    assert_eq!(code, Some(0), "{all:?}");
    assert!(names(&server).contains(&"one".to_owned()));
    // Who deploys one of them otherwise takes it out of the folder.
    server.deploy(&apps.join("three"));
    std::fs::rename(apps.join("three"), apps.join(".three")).expect("rename");
    let (code, all) = rows(&["--prune", "--yes"]);
    assert_eq!(code, Some(0), "{all:?}");
    assert_eq!(all.last().map(|row| row.0.as_str()), Some("one"));
    assert_eq!(names(&server), ["four", "other", "three", "two"]);
    // Another folder's prune is none of their business.
    let second = tempfile::tempdir().expect("tempdir");
    site(second.path(), "five", "five");
    server.ok(&[
        "apply",
        &second.path().to_string_lossy(),
        "--prune",
        "--yes",
    ]);
    assert_eq!(names(&server), ["five", "four", "other", "three", "two"]);
}

#[test]
fn a_set_is_the_same_wherever_it_lies_and_files_alone_are_apps() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let alone =
        |name: &str| format!("name='{name}'\ncommand='python3 -m http.server -b 127.0.0.1 8080'\n");
    let apply = |folder: &Path| {
        let place = folder.to_string_lossy().into_owned();
        server.ok(&["apply", &place, "--set", "production", "--prune", "--yes"])
    };
    let first = tempfile::tempdir().expect("tempdir");
    write(first.path(), "a.toml", &alone("a"));
    write(first.path(), "b.toml", &alone("b"));
    apply(first.path());
    assert_eq!(names(&server), ["a", "b"]);
    let second = tempfile::tempdir().expect("tempdir");
    write(second.path(), "b.toml", &alone("b"));
    let done = apply(second.path());
    assert!(done.contains("a: removed"), "{done}");
    assert_eq!(names(&server), ["b"]);
    assert_eq!(
        server.json(&["releases", "b"]).as_array().map(Vec::len),
        Some(1)
    );
    // What cannot be meant is refused before anything is done.
    let nothing = tempfile::tempdir().expect("tempdir");
    let (code, text) = server.fails(&[
        "apply",
        &nothing.path().to_string_lossy(),
        "--prune",
        "--yes",
    ]);
    assert!(code == 4 && text.contains("no app in it"), "{text}");
    write(second.path(), "c.toml", &alone("b"));
    let (code, text) = server.fails(&["apply", &second.path().to_string_lossy()]);
    assert!(code == 4 && text.contains("more than one file"), "{text}");
    assert_eq!(names(&server), ["b"]);
}

#[test]
fn an_app_that_moved_to_another_folder_is_not_the_first_ones_any_more() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let folder = tempfile::tempdir().expect("tempdir");
    let (first, second) = (folder.path().join("first"), folder.path().join("second"));
    site(&first, "stays", "stays");
    site(&first, "moves", "moves");
    site(&second, "other", "other");
    let apply = |folder: &Path, more: &[&str]| {
        let place = folder.to_string_lossy().into_owned();
        server.ok(&[&["apply", place.as_str()][..], more].concat())
    };
    apply(&first, &[]);
    apply(&second, &[]);
    std::fs::rename(first.join("moves"), second.join("moves")).expect("rename");
    let planned = apply(&second, &["--json"]);
    let rows: serde_json::Value = serde_json::from_str(&planned).expect("JSON");
    assert_eq!(
        (&rows[0]["app"], &rows[0]["action"]),
        (&"moves".into(), &"moved".into())
    );
    apply(&first, &["--prune", "--yes"]);
    assert_eq!(names(&server), ["moves", "other", "stays"]);
    assert_eq!(get(&server.http, "moves.test", "/").text(), "moves");
    // It is the second folder's now, and goes with it.
    let again = apply(&second, &["--json"]);
    assert!(!again.contains("moved"), "{again}");
    std::fs::rename(second.join("moves"), second.join(".moves")).expect("rename");
    apply(&second, &["--prune", "--yes"]);
    assert_eq!(names(&server), ["other", "stays"]);
}

#[test]
fn nothing_is_removed_once_something_failed() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let folder = tempfile::tempdir().expect("tempdir");
    let place = folder.path().to_string_lossy().into_owned();
    site(folder.path(), "old", "old");
    site(folder.path(), "good", "good");
    server.ok(&["apply", &place]);
    std::fs::rename(folder.path().join("old"), folder.path().join(".old")).expect("rename");
    write(
        folder.path(),
        "new/hutong.toml",
        "name='new'\ncommand=['python3','-c','raise SystemExit(3)']",
    );
    let prune = ["apply", place.as_str(), "--prune", "--yes"];
    let (code, text) = server.fails(&prune);
    assert!(
        code == 1 && text.contains("nothing is removed, because something failed"),
        "{text}"
    );
    assert_eq!(get(&server.http, "old.test", "/").text(), "old");
    // A folder that cannot be looked at is not one that is gone.
    std::fs::remove_dir_all(folder.path().join("new")).expect("removed");
    std::os::unix::fs::symlink("/no/such/folder", folder.path().join("old")).expect("a link");
    let (code, text) = server.fails(&prune);
    assert!(
        code == 4 && text.contains("nothing is removed while"),
        "{text}"
    );
    assert!(names(&server).contains(&"old".to_owned()));
    std::fs::remove_file(folder.path().join("old")).expect("removed");
    let done = server.ok(&prune);
    assert!(done.contains("old: removed"), "{done}");
}

#[test]
fn a_deployment_that_is_on_its_way_is_waited_for() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let folder = tempfile::tempdir().expect("tempdir");
    let place = folder.path().to_string_lossy().into_owned();
    let program = "import time; time.sleep(8)\nimport http.server as h\nh.HTTPServer((\"127.0.0.1\", 8080), h.SimpleHTTPRequestHandler).serve_forever()\n";
    write(folder.path(), "slow/app.py", program);
    write(
        folder.path(),
        "slow/hutong.toml",
        "name='slow'\ncommand=['python3','app.py']\n",
    );
    // With its folder noted, but not waited for.
    let mut first = server
        .command(&["apply", &place])
        .spawn()
        .expect("hutong runs");
    eventually("it is on its way", 20, || {
        server.app("slow")["deploying"].is_object()
    });
    let done = server.ok(&["apply", &place, "--json"]);
    let rows: serde_json::Value = serde_json::from_str(&done).expect("JSON");
    assert_eq!(
        (&rows[0]["action"], &rows[0]["result"]),
        (&"under-way".into(), &"release 1 serves".into())
    );
    assert!(first.wait().expect("it ends").success());
    let releases = server.json(&["releases", "slow"]);
    assert_eq!(releases.as_array().map(Vec::len), Some(1));
}

#[test]
fn a_failure_is_said_and_the_others_go_on() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let folder = tempfile::tempdir().expect("tempdir");
    write(
        folder.path(),
        "bad/hutong.toml",
        "name='bad'\ncommand=['python3','-c','print(\"no key\"); raise SystemExit(3)']",
    );
    site(folder.path(), "good", "good");
    let output = server.run(&["apply", &folder.path().to_string_lossy()]);
    let text = said(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("bad: release 1 of bad is not served") && text.contains("no key"),
        "{text}"
    );
    assert_eq!(get(&server.http, "good.test", "/").text(), "good");
    // The same content is tried again: its release never served.
    let output = server.run(&["apply", &folder.path().to_string_lossy()]);
    let text = said(&output);
    assert!(
        output.status.code() == Some(1) && text.contains("tried again"),
        "{text}"
    );
    assert!(text.contains("= good: unchanged"), "{text}");
}
