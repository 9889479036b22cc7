//! A control plane that was broken into owns its folders: root must follow nothing that it puts there.

use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root, kill};

fn tree_of(server: &Server, app: &str) -> PathBuf {
    let releases = server.json(&["releases", app]);
    let digest = releases[0]["digest"].as_str().expect("a digest");
    let digest = digest.trim_start_matches("sha256:");
    server.data.path().join("trees").join(digest)
}

#[test]
fn a_release_replaced_by_a_link_is_not_mounted() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "", "honest").path());
    let stolen = python_app("one", "", "stolen");
    let tree = tree_of(&server, "one");
    std::fs::rename(&tree, tree.with_extension("away")).expect("rename");
    symlink(stolen.path(), &tree).expect("symlink");
    let (_, said) = server.fails(&["restart", "one"]);
    assert!(!said.is_empty());
    assert_eq!(
        get(&server.http, "one.test", "/").text(),
        "honest",
        "the old instance serves on"
    );
    // The same through a folder on the way.
    std::fs::remove_file(&tree).expect("unlink");
    std::fs::rename(tree.with_extension("away"), &tree).expect("rename");
    let trees = server.data.path().join("trees");
    let copy = tempfile::tempdir().expect("tempdir");
    let away = copy.path().join("trees");
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&trees, &away])
        .status();
    assert!(copied.expect("cp").success());
    let program = away.join(tree.file_name().expect("a name")).join("app.py");
    let text = std::fs::read_to_string(&program).expect("read");
    std::fs::write(&program, text.replace("honest", "stolen")).expect("write");
    std::fs::rename(&trees, trees.with_extension("away")).expect("rename");
    symlink(&away, &trees).expect("symlink");
    server.run(&["restart", "one"]);
    assert_eq!(get(&server.http, "one.test", "/").text(), "honest");
    std::fs::remove_file(&trees).expect("unlink");
    std::fs::rename(trees.with_extension("away"), &trees).expect("rename");
    server.ok(&["restart", "one"]);
}

#[test]
fn a_spool_replaced_by_a_link_gives_no_file_away() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    server.deploy(python_app("one", "", "1").path());
    let treasure = tempfile::NamedTempFile::new_in(server.data.path()).expect("a file of root's");
    let spool = server.data.path().join("spool/access-0-0.a");
    for hard in [false, true] {
        let before = server.role("gateway");
        std::fs::remove_file(&spool).expect("unlink");
        if hard {
            std::fs::hard_link(treasure.path(), &spool).expect("link");
        } else {
            symlink(treasure.path(), &spool).expect("symlink");
        }
        kill(before);
        eventually("another gateway serves", 20, || {
            get(&server.http, "one.test", "/").text() == "1" && server.role("gateway") != before
        });
        let found = std::fs::metadata(treasure.path()).expect("there");
        assert_eq!((found.uid(), found.len()), (0, 0), "hard link: {hard}");
        let fresh = std::fs::symlink_metadata(&spool).expect("there");
        assert!(
            fresh.is_file() && fresh.ino() != found.ino(),
            "hard link: {hard}"
        );
        assert_eq!(get(&server.http, "one.test", "/").text(), "1");
    }
}

#[test]
fn a_build_copies_no_link_and_no_pipe_and_nobody_elses_file() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    // The build fails by itself, so that the same content is built again.
    let toml = "name = \"built\"\ndomains = [\"built.test\"]\nstatic = \"out\"\n[build]\ncommand = [\"sh\", \"-c\", \"echo seen $(cat x); exit 3\"]\n";
    let treasure = server.data.path().join("treasure");
    std::fs::write(&treasure, "jade").expect("write");
    type Trap = fn(&Path, &Path);
    let traps: [(&str, Trap); 3] = [
        ("link", |from, to| symlink(from, to).expect("symlink")),
        ("hard link", |from, to| {
            std::fs::hard_link(from, to).expect("link")
        }),
        ("pipe", |_, to| {
            let made = std::process::Command::new("mkfifo").arg(to).status();
            assert!(made.expect("mkfifo").success());
        }),
    ];
    for (what, trap) in traps {
        let folder = app_folder(&[("hutong.toml", toml), ("x", what)]);
        let path = folder.path().to_string_lossy().into_owned();
        let (_, said) = server.fails(&["deploy", &path]);
        assert!(said.contains(&format!("seen {what}")), "{said}");
        let x = tree_of(&server, "built").join("x");
        std::fs::remove_file(&x).expect("unlink");
        trap(&treasure, &x);
        let (_, said) = server.fails(&["deploy", &path]);
        assert!(said.contains("cannot prepare the build"), "{what}: {said}");
        assert!(!said.contains("jade"), "{what}: {said}");
    }
}
