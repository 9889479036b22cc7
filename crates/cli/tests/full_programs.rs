//! Programs that nobody here wrote, unmodified, deployed from their folder. They come from PyPI and npm.

use std::path::Path;
use std::process::Command;

use hutong_testkit::is_root;
use hutong_testkit::server::Server;
use hutong_testkit::visitor::{ask, get};

fn run(folder: &Path, program: &str, arguments: &[&str]) {
    let status = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .env("CI", "true")
        .status()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {}", arguments.join(" "));
}

fn write(folder: &Path, name: &str, text: &str) {
    std::fs::write(folder.join(name), text).expect("write");
}

#[test]
fn a_django_site_under_gunicorn() {
    if !is_root() {
        return;
    }
    let work = tempfile::tempdir().expect("tempdir");
    run(work.path(), "/usr/bin/python3", &["-m", "venv", "tools"]);
    run(
        work.path(),
        "tools/bin/pip",
        &["install", "-q", "django>=4.2,<6"],
    );
    std::fs::create_dir(work.path().join("shop")).expect("mkdir");
    run(
        work.path(),
        "tools/bin/django-admin",
        &["startproject", "shop", "shop"],
    );
    let folder = work.path().join("shop");
    write(&folder, "requirements.txt", "django>=4.2,<6\ngunicorn\n");
    write(
        &folder,
        "hutong.toml",
        "name = \"shop\"\ndomains = [\"shop.localhost\"]\ncommand = \"gunicorn shop.wsgi --workers 2\"\n[health]\npath = \"/\"\n",
    );
    let server = Server::start();
    server.deploy(&folder);
    let page = get(&server.http, "shop.localhost", "/");
    assert!(
        page.status == 200 && page.text().contains("install worked successfully"),
        "{}",
        page.text()
    );
    let admin = get(&server.http, "shop.localhost", "/admin/");
    assert_eq!(admin.status, 302, "{}", admin.text());
    assert!(
        server
            .ok(&["exec", "shop", "--", "python", "manage.py", "check"])
            .contains("no issues")
    );
    // The same folder again: nothing is built twice.
    let began = std::time::Instant::now();
    server.deploy(&folder);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
}

#[test]
fn json_server_from_npm() {
    if !is_root() {
        return;
    }
    let work = tempfile::tempdir().expect("tempdir");
    let folder = work.path();
    write(
        folder,
        "package.json",
        "{\"name\":\"api\",\"version\":\"1.0.0\",\"private\":true}",
    );
    run(
        folder,
        "npm",
        &[
            "install",
            "--silent",
            "--package-lock-only",
            "json-server@0.17.4",
        ],
    );
    write(
        folder,
        "db.json",
        "{\"lanes\":[{\"id\":1,\"name\":\"Mao'er\"}]}",
    );
    write(
        folder,
        "hutong.toml",
        "name = \"lanes\"\ndomains = [\"lanes.test\"]\ncommand = [\"json-server\", \"--port\", \"8080\", \"db.json\"]\n",
    );
    let server = Server::start();
    server.deploy(folder);
    let answer = get(&server.http, "lanes.test", "/lanes/1");
    assert!(
        answer.status == 200 && answer.text().contains("Mao'er"),
        "{}",
        answer.text()
    );
}

/// `npm ci` and then the folder's own build script, both in sandboxes; the result is static files.
#[test]
fn a_front_end_that_is_built_by_its_own_script() {
    if !is_root() {
        return;
    }
    let work = tempfile::tempdir().expect("tempdir");
    let folder = work.path();
    let scripts = "{\"name\":\"docs\",\"version\":\"1.0.0\",\"private\":true,\"scripts\":{\"build\":\"mkdir -p dist && marked -i index.md -o dist/index.html\"}}";
    write(folder, "package.json", scripts);
    write(folder, "index.md", "# Nine courtyards\n");
    run(
        folder,
        "npm",
        &[
            "install",
            "--silent",
            "--package-lock-only",
            "-D",
            "marked@12",
        ],
    );
    write(
        folder,
        "hutong.toml",
        "name = \"docs\"\ndomains = [\"docs.test\"]\nstatic = \"dist\"\n[build]\ncommand = \"npm run build\"\n",
    );
    let server = Server::start();
    server.deploy(folder);
    let page = get(&server.http, "docs.test", "/");
    assert!(
        page.text().contains("<h1>Nine courtyards</h1>"),
        "{}",
        page.text()
    );
}

/// The `dist/` that the developer's own machine built; it is git-ignored, as the template has it.
#[test]
fn the_dist_of_a_vite_and_vue_project() {
    if !is_root() {
        return;
    }
    let work = tempfile::tempdir().expect("tempdir");
    let create = [
        "exec",
        "--yes",
        "create-vite@7",
        "--",
        "site",
        "--template",
        "vue",
    ];
    run(work.path(), "npm", &create);
    let folder = work.path().join("site");
    run(
        &folder,
        "npm",
        &["install", "--silent", "--no-audit", "--no-fund"],
    );
    run(&folder, "npm", &["run", "--silent", "build"]);
    write(
        &folder,
        "hutong.toml",
        "name = \"site\"\ndomains = [\"site.test\"]\nstatic = \"dist\"\nspa = true\n",
    );
    let server = Server::start();
    server.deploy(&folder);
    let page = get(&server.http, "site.test", "/some/route").text();
    assert!(page.contains("<div id=\"app\">"), "{page}");
    let script = page
        .split("src=\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next())
        .expect("a script");
    let asset = ask(&server.http, "site.test", script, "");
    assert_eq!(asset.status, 200, "{script}");
    let cached = asset.header("cache-control");
    assert!(cached.is_some_and(|v| v.contains("immutable")), "{script}");
}
