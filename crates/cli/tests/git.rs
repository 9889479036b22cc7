//! `git push` as its users know it: the real client against a real server; what comes in is hostile now and then.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use hutong_testkit::server::Server;
use hutong_testkit::visitor::{get, raw};
use hutong_testkit::{eventually, is_root, kill};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A server with a host of its own, which is this machine's.
fn server() -> (Server, TempDir) {
    let folder = tempfile::tempdir().expect("tempdir");
    let file = folder.path().join("server.toml");
    std::fs::write(&file, "host = \"localhost\"\n").expect("write");
    let file = file.to_string_lossy().into_owned();
    (Server::start_with(&["--config", &file]), folder)
}

/// A working copy.
struct Work {
    folder: TempDir,
    url: String,
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).into_owned()
}

impl Work {
    fn new(server: &Server, app: &str, token: &str) -> Self {
        let work = Work {
            folder: tempfile::tempdir().expect("tempdir"),
            url: url(server, app, token),
        };
        work.git(&["init", "-q", "-b", "main"]);
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
        std::fs::write(path, content).expect("write");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("git");
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.folder.path())
            .env("LC_ALL", "C")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_ALLOW_PROTOCOL", "http:file");
        for who in ["AUTHOR", "COMMITTER"] {
            command
                .env(format!("GIT_{who}_NAME"), "tester")
                .env(format!("GIT_{who}_EMAIL"), "tester@example.com");
        }
        command.stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("git runs")
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let said = text(&output);
        assert!(output.status.success(), "git {arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn commit(&self, message: &str) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "--allow-empty", "-m", message]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// What git says of a push that must be taken.
    fn push(&self, what: &str) -> String {
        let output = self.run(&["push", &self.url, what]);
        let said = text(&output);
        assert!(output.status.success(), "push {what}: {said}");
        said
    }

    /// And of one that must not.
    fn refused(&self, what: &str) -> String {
        let output = self.run(&["push", &self.url, what]);
        let said = text(&output);
        assert!(!output.status.success(), "push {what}: {said}");
        said
    }

    fn remote(&self, branch: &str) -> String {
        let said = self.git(&["ls-remote", &self.url, &format!("refs/heads/{branch}")]);
        said.split('\t').next().unwrap_or_default().to_owned()
    }
}

fn url(server: &Server, app: &str, token: &str) -> String {
    let port = server.http.rsplit_once(':').expect("a port").1;
    format!("http://me:{token}@localhost:{port}/git/{app}.git")
}

fn token(server: &Server, app: &str) -> String {
    server.ok(&["token", "create", app]).trim().to_owned()
}

/// A site whose page is made by a build of `seconds`.
fn site(work: &Work, name: &str, more: &str, page: &str, seconds: &str) {
    let program = format!(
        "import os,time; print('building {page}', flush=True); time.sleep({seconds}); os.makedirs('dist', exist_ok=True); open('dist/index.html','w').write(open('page.txt').read())"
    );
    let toml = format!(
        "name = \"{name}\"\ndomains = [\"{name}.test\"]\nstatic = \"dist\"\n[build]\ncommand = [\"python3\", \"-c\", \"{program}\"]\n{more}\n"
    );
    work.write("hutong.toml", &toml);
    work.write("page.txt", page);
}

fn page(server: &Server, host: &str) -> String {
    get(&server.http, host, "/").text()
}

#[test]
fn a_push_is_built_and_serves_and_what_fails_moves_no_branch() {
    if !is_root() {
        return;
    }
    let (server, _folder) = server();
    let work = Work::new(&server, "site", &token(&server, "site"));
    site(&work, "site", "", "one", "0");
    let first = work.commit("one");
    let said = work.push("main");
    assert!(said.contains("building one"), "{said}");
    assert!(
        said.contains("release 1 of site serves: http://site.test"),
        "{said}"
    );
    assert_eq!(page(&server, "site.test"), "one");
    assert_eq!(work.remote("main"), first);

    site(&work, "site", "", "two", "0");
    let second = work.commit("two");
    work.push("main");
    assert_eq!(page(&server, "site.test"), "two");

    // A build that fails, with its output; the branch stays.
    site(&work, "site", "", "three", "undefined_name");
    work.commit("three");
    let said = work.refused("main");
    assert!(said.contains("NameError"), "{said}");
    assert!(said.contains("is not served"), "{said}");
    assert_eq!(page(&server, "site.test"), "two");
    assert_eq!(work.remote("main"), second);

    // It can be read again, by whoever has a token.
    let away = tempfile::tempdir().expect("tempdir");
    let clone = away.path().join("clone");
    work.git(&["clone", "-q", &work.url, &clone.to_string_lossy()]);
    let page = std::fs::read_to_string(clone.join("page.txt")).expect("read");
    assert_eq!(page, "two");
    // What serves is not deleted by a push.
    let said = work.refused(":main");
    assert!(said.contains("main"), "{said}");
    // Another history takes the place of the one there is, if the pusher says so.
    work.git(&["checkout", "-q", "--orphan", "other"]);
    site(&work, "site", "", "four", "0");
    work.commit("four");
    assert!(work.refused("other:main").contains("rejected"));
    work.push("+other:main");
    assert_eq!(get(&server.http, "site.test", "/").text(), "four");
}

#[test]
fn what_a_repository_leaves_out_of_archives_is_deployed() {
    if !is_root() {
        return;
    }
    let (server, _folder) = server();
    let work = Work::new(&server, "site", &token(&server, "site"));
    site(&work, "site", "", "one", "0");
    work.write(
        ".gitattributes",
        "*.txt export-ignore\nhutong.toml export-ignore\n",
    );
    work.commit("one");
    work.push("main");
    assert_eq!(page(&server, "site.test"), "one");
}

#[test]
fn only_a_token_of_the_app_lets_anybody_in() {
    if !is_root() {
        return;
    }
    let (server, _folder) = server();
    let secret = token(&server, "site");
    let mut work = Work::new(&server, "site", &secret);
    site(&work, "site", "", "one", "0");
    work.commit("one");
    let other = token(&server, "other");
    let reader = server.ok(&["token", "create", "site", "--name", "ci", "--pull"]);
    for (bad, says) in [
        ("htg_wrong", "Authentication failed"),
        (other.as_str(), "403"),
        (reader.trim(), "403"),
    ] {
        work.url = url(&server, "site", bad);
        let said = work.refused("main");
        assert!(said.contains(says), "{bad}: {said}");
        assert!(server.app("site").is_null());
    }
    work.url = url(&server, "site", &secret);
    work.push("main");
    let list = server.json(&["token", "list", "site"]);
    let names: Vec<_> = list
        .as_array()
        .expect("list")
        .iter()
        .map(|t| &t["name"])
        .collect();
    assert_eq!(names, ["git", "ci"]);
    assert!(!list.to_string().contains("htg_"), "{list}");
    work.url = url(&server, "site", reader.trim());
    assert_eq!(work.remote("main").len(), 40);
    let id = list[0]["id"].to_string();
    server.ok(&["token", "revoke", "site", &id]);
    work.url = url(&server, "site", &secret);
    work.commit("again");
    assert!(work.refused("main").contains("Authentication failed"));
    // The store does not have what a token is, and an app that is removed has none any more.
    for file in ["state.db", "state.db-wal"] {
        let raw = std::fs::read(server.data.path().join("control").join(file)).unwrap_or_default();
        assert!(!raw.windows(secret.len()).any(|w| w == secret.as_bytes()));
    }
    server.ok(&["remove", "site", "--purge"]);
    eventually("the repository goes with its app", 20, || {
        !server.data.path().join("control/git/site.git").exists()
    });
    // The management API is not there.
    for path in [
        "/v1/apps",
        "/git/../v1/apps",
        "/git/x/config",
        "/git/site.git/HEAD",
    ] {
        let status = get(&server.http, "localhost", path).status;
        assert!((400..500).contains(&status), "{path}: {status}");
    }
}

#[test]
fn hostile_trees_are_refused_with_the_reason() {
    if !is_root() {
        return;
    }
    let (server, _folder) = server();
    let work = Work::new(&server, "site", &token(&server, "site"));
    work.write("page.txt", "x");
    work.commit("no file");
    let said = work.refused("main");
    assert!(said.contains("no hutong.toml"), "{said}");
    let toml = "name = \"site\"\ndomains = [\"site.test\"]\nstatic = \"public\"\n";
    work.write("hutong.toml", &toml.replace("\"site\"", "\"other\""));
    work.write("public/index.html", "good");
    work.commit("wrong name");
    let said = work.refused("main");
    assert!(said.contains("names the app other"), "{said}");
    work.write(
        "hutong.toml",
        &format!("{toml}[preview]\nlifetme = \"1d\"\n"),
    );
    work.commit("a mistake");
    let said = work.refused("main");
    assert!(
        said.contains("hutong.toml:5:1:") && said.contains("lifetime"),
        "{said}"
    );
    work.write("hutong.toml", toml);
    // Nobody waits for trees that were refused.
    let trees = std::fs::read_dir(server.data.path().join("trees")).expect("read");
    let names = trees.flatten().map(|entry| entry.file_name());
    let left: Vec<_> = names.filter(|name| name.len() == 64).collect();
    assert!(left.is_empty(), "{left:?}");
    std::os::unix::fs::symlink("/etc/passwd", work.path("public/leak")).expect("symlink");
    work.commit("a link");
    let said = work.refused("main");
    assert!(said.contains("out of the tree"), "{said}");
    std::fs::remove_file(work.path("public/leak")).expect("rm");
    std::os::unix::fs::symlink("index.html", work.path("public/same")).expect("symlink");
    // Hooks and submodules of theirs are nothing that anybody runs or fetches.
    work.write(
        "hooks/post-receive",
        "#!/bin/sh\ntouch /tmp/hutong-hook-ran\n",
    );
    work.write(
        ".gitmodules",
        "[submodule \"m\"]\n\tpath = m\n\turl = https://127.0.0.1:1/m.git\n",
    );
    let good = work.commit("good");
    let said = work.push("main");
    assert!(said.contains("submodules are not fetched"), "{said}");
    assert_eq!(get(&server.http, "site.test", "/same").text(), "good");
    // A tree that would write into .git of whoever checks it out.
    let blob = work.git(&["hash-object", "-w", "page.txt"]);
    let tree = work.path("tree");
    std::fs::write(&tree, format!("100644 blob {blob}\t.git\n")).expect("write");
    let mut command = work.command(&["mktree"]);
    command.stdin(std::fs::File::open(&tree).expect("open"));
    let made = command.output().expect("git runs");
    let made = String::from_utf8_lossy(&made.stdout).trim().to_owned();
    let evil = work.git(&["commit-tree", &made, "-p", &good, "-m", "evil"]);
    let said = work.refused(&format!("{evil}:refs/heads/main"));
    assert!(
        said.contains("hasDotgit") || said.contains("fsck"),
        "{said}"
    );
    for name in ["refs/notes/x", "refs/heads/a@{b", "refs/hutong/x"] {
        let output = work.run(&["push", &work.url, &format!("{good}:{name}")]);
        assert!(!output.status.success(), "{name}");
    }
    assert_eq!(work.remote("main"), good);
    // Nothing of what was refused stays.
    let objects = server.data.path().join("control/git/site.git/objects");
    let names = std::fs::read_dir(objects).expect("read").flatten();
    let left = names.filter(|entry| entry.file_name().to_string_lossy().contains("incoming"));
    assert_eq!(left.count(), 0);
}

#[test]
fn what_git_itself_would_refuse_is_not_deployed() {
    if !is_root() {
        return;
    }
    let (server, _folder) = server();
    let mut work = Work::new(&server, "site", &token(&server, "site"));
    site(&work, "site", "", "one", "0");
    work.commit("one");
    work.write("more.txt", "x");
    work.commit("two");
    // A history that is cut off.
    let mut cut = Work::new(&server, "site", "none");
    cut.url.clone_from(&work.url);
    let from = format!("file://{}", work.folder.path().display());
    cut.git(&["fetch", "-q", "--depth=1", &from, "main"]);
    cut.git(&["checkout", "-q", "-B", "main", "FETCH_HEAD"]);
    let said = cut.refused("main");
    assert!(said.contains("shallow"), "{said}");
    assert!(server.app("site").is_null());
    work.push("main");
    // Names that cannot be beside each other; and one that is the repository's HEAD.
    work.push("main:a");
    let said = work.refused("main:a/b");
    assert!(said.contains("cannot be the branches"), "{said}");
    work.push(":a");
    work.push("main:a/b");
    // A link that says more than any path can.
    work.write("long", &"x".repeat(5000));
    let blob = work.git(&["hash-object", "-w", "long"]);
    let entry = format!("120000,{blob},link");
    work.git(&["update-index", "--add", "--cacheinfo", &entry]);
    work.git(&["commit", "-q", "-m", "a long link"]);
    let said = work.refused("main");
    assert!(said.to_lowercase().contains("link"), "{said}");
    assert_eq!(page(&server, "site.test"), "one");
    // Removed, and pushed as it was.
    work.git(&["reset", "-q", "--hard", "HEAD~1"]);
    server.ok(&["remove", "site"]);
    work.url = url(&server, "site", &token(&server, "site"));
    work.push("main");
    assert_eq!(page(&server, "site.test"), "one");
}

#[test]
fn a_branch_is_a_preview_until_it_is_deleted() {
    if !is_root() {
        return;
    }
    let (server, _folder) = server();
    let work = Work::new(&server, "site", &token(&server, "site"));
    site(&work, "site", "[preview]\nmax = 1", "one", "0");
    work.commit("one");
    work.git(&["checkout", "-q", "-b", "feature/Cart"]);
    // Before there is an app, there is nothing that previews could be of.
    let said = work.push("feature/Cart");
    assert!(said.contains("kept and not deployed"), "{said}");
    work.push("main");
    site(&work, "site", "[preview]\nmax = 1", "cart", "0");
    work.commit("cart");
    let said = work.push("feature/Cart");
    assert!(said.contains("site--feature-cart"), "{said}");
    assert_eq!(page(&server, "feature-cart.site.test"), "cart");
    assert_eq!(page(&server, "site.test"), "one");
    let list = server.json(&["previews", "site"]);
    assert_eq!(list[0]["branch"], "feature/Cart");
    assert_eq!(list[0]["host"], "feature-cart.site.test");
    // One too many.
    work.git(&["checkout", "-q", "-b", "second"]);
    let said = work.refused("second");
    assert!(said.contains("site has 1 previews"), "{said}");
    // A preview that cannot serve refuses its branch, and only that.
    site(
        &work,
        "site",
        "[preview]\nmax = 1",
        "cart-2",
        "undefined_name",
    );
    work.commit("broken");
    work.refused("second:feature/Cart");
    assert_eq!(page(&server, "feature-cart.site.test"), "cart");
    // Merged, and gone.
    work.git(&["checkout", "-q", "main"]);
    work.git(&["merge", "-q", "feature/Cart"]);
    work.push("main");
    assert_eq!(page(&server, "site.test"), "cart");
    // What git does not delete after all keeps its preview.
    let heads = server.data.path().join("control/git/site.git/refs/heads");
    let held = heads.join("feature/Cart.lock");
    std::fs::write(&held, "").expect("write");
    let said = work.refused(":feature/Cart");
    assert!(said.contains("failed to update ref"), "{said}");
    let _ = std::fs::remove_file(&held);
    assert_eq!(page(&server, "feature-cart.site.test"), "cart");
    let said = work.push(":feature/Cart");
    assert!(
        said.contains("the preview site--feature-cart is removed"),
        "{said}"
    );
    eventually("the preview is gone", 20, || {
        get(&server.http, "feature-cart.site.test", "/").status == 404
            && server.app("site--feature-cart").is_null()
            && server
                .json(&["previews", "site"])
                .as_array()
                .is_some_and(Vec::is_empty)
    });
    // Its place is free, and previews end with their app.
    work.git(&["checkout", "-q", "-b", "third"]);
    work.push("third");
    assert_eq!(page(&server, "third.site.test"), "cart");
    server.ok(&["remove", "site"]);
    eventually("previews end with their app", 30, || {
        get(&server.http, "third.site.test", "/").status == 404
    });
}

#[test]
fn a_preview_begins_with_a_copy_of_the_data_when_asked() {
    if !is_root() {
        return;
    }
    let (server, _folder) = server();
    let work = Work::new(&server, "shop", &token(&server, "shop"));
    let more = "data = true\n[preview]\ndata = 'copy'\n";
    let app = hutong_testkit::server::python_app("shop", more, "shop");
    for name in ["hutong.toml", "app.py"] {
        let text = std::fs::read_to_string(app.path().join(name)).expect("it is there");
        work.write(name, &text);
    }
    work.commit("one");
    work.push("main");
    let sh = |app: &str, script: &str| server.ok(&["exec", app, "--", "sh", "-c", script]);
    sh(
        "shop",
        "mkdir /data/a; echo mine > /data/a/b; ln -s /etc/passwd /data/link",
    );
    work.git(&["checkout", "-q", "-b", "next"]);
    work.commit("next");
    work.push("next");
    assert_eq!(page(&server, "next.shop.test"), "shop");
    let preview = "shop--next";
    assert_eq!(
        sh(preview, "cat /data/a/b; readlink /data/link"),
        "mine\n/etc/passwd\n"
    );
    // It is the preview's own: nobody's changes reach the other.
    sh(preview, "echo theirs >> /data/a/b");
    assert_eq!(sh("shop", "cat /data/a/b"), "mine\n");
    sh("shop", "echo later > /data/later");
    work.commit("once more");
    work.push("next");
    assert_eq!(
        sh(preview, "cat /data/a/b; ls /data"),
        "mine\ntheirs\na\nlink\n"
    );
    // Removed and made anew, it begins anew.
    work.push(":next");
    eventually("the preview is gone", 30, || server.app(preview).is_null());
    work.push("next");
    assert_eq!(
        sh(preview, "cat /data/later; cat /data/a/b"),
        "later\nmine\n"
    );
}

#[test]
fn of_two_pushes_at_once_the_later_wins_and_both_say_so() {
    if !is_root() {
        return;
    }
    let (server, _folder) = server();
    let secret = token(&server, "site");
    let work = Work::new(&server, "site", &secret);
    site(&work, "site", "", "zero", "0");
    work.commit("zero");
    work.push("main");
    let start = |name: &str, seconds: &str| {
        work.git(&["checkout", "-q", "-B", name, "main"]);
        site(&work, "site", "", name, seconds);
        let commit = work.commit(name);
        let mut command = work.command(&["push", &work.url, &format!("{name}:main")]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        (command.spawn().expect("git runs"), commit)
    };
    let (earlier, _) = start("earlier", "20");
    eventually("the first is being built", 20, || {
        server.app("site")["deploying"]["state"] == "building"
    });
    let (later, commit) = start("later", "0");
    let later = later.wait_with_output().expect("an end");
    let earlier = earlier.wait_with_output().expect("an end");
    assert!(later.status.success(), "{}", text(&later));
    assert!(!earlier.status.success(), "{}", text(&earlier));
    assert!(
        text(&later).contains("takes the place of deployment"),
        "{}",
        text(&later)
    );
    assert!(text(&earlier).contains("newer push"), "{}", text(&earlier));
    assert_eq!(page(&server, "site.test"), "later");
    assert_eq!(work.remote("main"), commit);
}

#[test]
fn a_killed_control_plane_takes_the_next_push() {
    if !is_root() {
        return;
    }
    let (server, _folder) = server();
    let work = Work::new(&server, "site", &token(&server, "site"));
    site(&work, "site", "", "one", "2");
    let commit = work.commit("one");
    let mut command = work.command(&["push", &work.url, "main"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let pushing = command.spawn().expect("git runs");
    eventually("it is being built", 20, || {
        server.app("site")["deploying"]["state"] == "building"
    });
    kill(server.role("control"));
    let output = pushing.wait_with_output().expect("an end");
    assert!(!output.status.success(), "{}", text(&output));
    let mut last = String::new();
    eventually("the next push is taken", 60, || {
        let output = work.run(&["push", &work.url, "main"]);
        last = text(&output);
        output.status.success()
    });
    assert_eq!(page(&server, "site.test"), "one", "{last}");
    assert_eq!(work.remote("main"), commit);
}

/// A token of one app opens nothing else, nor does the server look around in its own network for it.
#[test]
fn a_push_has_the_server_ask_no_registry_of_its_own_network() {
    if !is_root() {
        return;
    }
    let (server, _folder) = server();
    let work = Work::new(&server, "site", &token(&server, "site"));
    let asked = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    asked.set_nonblocking(true).expect("set");
    let here = asked.local_addr().expect("an address").to_string();
    let port = asked.local_addr().expect("an address").port();
    for host in [here, format!("localhost:{port}"), "169.254.169.254".into()] {
        let toml = format!(
            "name = \"site\"\ndomains = [\"site.test\"]\nimage = \"{host}/x:1\"\ndriver = \"sandbox\"\n"
        );
        work.write("hutong.toml", &toml);
        work.commit(&host);
        let said = work.refused("main");
        assert!(said.contains("in this server's own network"), "{said}");
        assert!(said.contains("hutong registry login"), "{said}");
    }
    assert!(asked.accept().is_err(), "somebody asked");
    assert!(server.app("site").is_null());
}

/// HMAC-SHA256 (RFC 2104), in hex, of a key of at most 64 bytes.
fn sign(key: &str, body: &str) -> String {
    let mut block = [0u8; 64];
    block[..key.len()].copy_from_slice(key.as_bytes());
    let inner = Sha256::new()
        .chain_update(block.map(|byte| byte ^ 0x36))
        .chain_update(body)
        .finalize();
    let outer = Sha256::new()
        .chain_update(block.map(|byte| byte ^ 0x5c))
        .chain_update(inner)
        .finalize();
    outer.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hook(server: &Server, app: &str, secret: &str, body: &str) -> u16 {
    let signature = sign(secret, body);
    let request = format!(
        "POST /hooks/{app} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nX-GitHub-Event: push\r\nX-GitHub-Delivery: 1\r\nX-Hub-Signature-256: sha256={signature}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    raw(&server.http, request.as_bytes())
        .expect("an answer")
        .status
}

#[test]
fn a_webhook_fetches_builds_and_says_how_it_came_out() {
    if !is_root() {
        return;
    }
    let (server, folder) = server();
    // The repository elsewhere is another app's here: what it deploys itself is another branch.
    let work = Work::new(&server, "origin", &token(&server, "origin"));
    let own = "name = \"origin\"\nstatic = \"public\"\n[git]\nbranch = \"live\"\n";
    work.write("hutong.toml", own);
    work.write("public/index.html", "x");
    work.commit("origin");
    work.push("main");
    site(&work, "site", "[preview]", "fetched", "0");
    work.commit("site");
    work.push("main");
    let reader = server.ok(&["token", "create", "origin", "--pull"]);
    let port = server.http.rsplit_once(':').expect("a port").1;
    let from = format!("http://localhost:{port}/git/origin.git");
    let given = folder.path().join("reader");
    std::fs::write(&given, &reader).expect("write");
    let mut set = server.command(&[
        "source",
        "set",
        "site",
        &from,
        "--from",
        "github",
        "--token-stdin",
        "--json",
    ]);
    set.stdin(std::fs::File::open(&given).expect("open"));
    let output = set.output().expect("hutong runs");
    assert!(output.status.success(), "{}", text(&output));
    let made: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(made["hook"], "http://localhost/hooks/site");
    let secret = made["secret"].as_str().expect("a secret").to_owned();
    let state = || server.json(&["source", "show", "site"])["state"].clone();
    assert_eq!(state(), "new");

    let body = r#"{"ref":"refs/heads/main","after":"1"}"#;
    assert_eq!(hook(&server, "site", "wrong", body), 403);
    assert_eq!(hook(&server, "none", &secret, body), 403);
    assert_eq!(hook(&server, "site", &secret, "{"), 422);
    assert_eq!(hook(&server, "site", &secret, body), 202);
    assert_eq!(hook(&server, "site", &secret, body), 409, "a replay");
    eventually("it serves", 60, || page(&server, "site.test") == "fetched");
    eventually("it is said", 20, || state() == "done");

    // A branch is a preview here, too.
    work.git(&["checkout", "-q", "-b", "next"]);
    site(&work, "site", "[preview]", "next", "0");
    work.commit("next");
    work.push("next");
    let body = r#"{"ref":"refs/heads/next","after":"2"}"#;
    assert_eq!(hook(&server, "site", &secret, body), 202);
    eventually("the preview serves", 60, || {
        page(&server, "next.site.test") == "next"
    });
    let body = r#"{"ref":"refs/heads/next","after":"0000","deleted":true}"#;
    assert_eq!(hook(&server, "site", &secret, body), 202);
    eventually("the preview is gone", 30, || {
        get(&server.http, "next.site.test", "/").status == 404
    });

    // What fails is said, and what serves goes on.
    work.git(&["checkout", "-q", "main"]);
    site(&work, "site", "[preview]", "broken", "undefined_name");
    work.commit("broken");
    work.push("main");
    let body = r#"{"ref":"refs/heads/main","after":"3"}"#;
    assert_eq!(hook(&server, "site", &secret, body), 202);
    eventually("the failure is said", 60, || state() == "failed");
    let warnings = server.app("site")["warnings"].to_string();
    assert!(warnings.contains("the last webhook failed"), "{warnings}");
    assert_eq!(page(&server, "site.test"), "fetched");
    // The token for reading is in no log.
    let heard = server.heard().join("\n");
    assert!(!heard.contains(reader.trim()), "{heard}");
    server.ok(&["source", "forget", "site"]);
    let body = r#"{"ref":"refs/heads/main","after":"4"}"#;
    assert_eq!(hook(&server, "site", &secret, body), 403);
}
