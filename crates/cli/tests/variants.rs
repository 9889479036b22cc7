//! A/B tests: each visitor keeps the variant that it got, both are reported, nobody judges, and the owner's word ends it.

use hutong_testkit::server::{Server, app_folder, python_app};
use hutong_testkit::trial::{canary, is_tried, release, visitors};
use hutong_testkit::visitor::{ask, get};
use hutong_testkit::{eventually, is_root, kill};
use serde_json::Value;

/// Both sides of `hutong variants`, the one that serves first.
fn sides(server: &Server, app: &str) -> (Value, Value) {
    let report = server.json(&["variants", app]);
    (report["variants"][0].clone(), report["variants"][1].clone())
}

fn number(side: &Value, what: &str) -> u64 {
    side[what].as_u64().unwrap_or_default()
}

#[test]
fn two_variants_have_their_own_visitors_and_figures_until_one_is_chosen() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("shop", "", "one");
    let folder = app.path().to_string_lossy().into_owned();
    let green = ["deploy", &folder, "--variant", "green", "--share", "20%"];
    let (_, said) = server.fails(&green);
    assert!(
        said.contains("the variant green could be compared with"),
        "{said}"
    );
    server.deploy(app.path());
    let (_, said) = server.fails(&["variants", "shop"]);
    assert!(said.contains("no A/B test of shop is under way"), "{said}");
    // So bad a canary would be rolled back at once.
    release(app.path(), "two", 0.2, 7);
    // It waits until the variant has visitors, and no longer.
    let said = server.ok(&green);
    assert!(
        said.contains("release 2 of shop is the variant green"),
        "{said}"
    );
    is_tried(&server, "shop", 20);
    let found = visitors(&server, "shop.test", 1000, "two");
    assert!((180..=220).contains(&found), "{found} of 1000");
    let mut places: Vec<(String, String)> = Vec::new();
    for _ in 0..200 {
        let first = get(&server.http, "shop.test", "/");
        let cookie = first.header("set-cookie").expect("a place");
        assert!(
            cookie.starts_with("hutong-variant=") && cookie.contains("; Max-Age=2592000"),
            "{cookie}"
        );
        let place = cookie.split(';').next().expect("a cookie").to_owned();
        if !places.iter().any(|(_, body)| *body == first.text()) {
            places.push((format!("Cookie: {place}\r\n"), first.text()));
        }
    }
    assert_eq!(places.len(), 2, "{places:?}");
    let stays = || {
        for (place, body) in &places {
            for _ in 0..20 {
                let again = ask(&server.http, "shop.test", "/", place);
                assert_eq!(again.text(), *body);
                assert_eq!(again.header("set-cookie"), None);
            }
        }
    };
    stays();
    let all = |(main, green): &(Value, Value)| number(main, "requests") + number(green, "requests");
    eventually("the gateway has said all", 30, || {
        all(&sides(&server, "shop")) >= 1000
    });
    let (main, green) = sides(&server, "shop");
    assert_eq!(
        (&main["name"], &green["name"]),
        (&"main".into(), &"green".into())
    );
    assert_eq!(
        (number(&main, "release"), number(&green, "release")),
        (1, 2)
    );
    assert_eq!((number(&main, "share"), number(&green, "share")), (80, 20));
    assert_eq!(number(&main, "errors"), 0, "{main}");
    let ratio = green["error_ratio"].as_f64().expect("a ratio");
    assert!((0.05..0.4).contains(&ratio), "{green}");
    for side in [&main, &green] {
        let (half, most) = (number(side, "p50_us"), number(side, "p99_us"));
        assert!(half > 0 && half <= most, "{side}");
    }
    let shown = server.ok(&["variants", "shop"]);
    assert!(shown.contains("hutong promote shop green"), "{shown}");
    let shown = server.ok(&["status", "shop"]);
    assert!(
        shown.contains("the variant green (release 2) gets 20 % of the visitors"),
        "{shown}"
    );
    let before = server.json(&["variants", "shop"]);
    kill(server.role("control"));
    is_tried(&server, "shop", 20);
    stays();
    let after = server.json(&["variants", "shop"]);
    assert_eq!(before["deployment"], after["deployment"]);
    let requests = |report: &Value| number(&report["variants"][1], "requests");
    assert!(requests(&after) >= requests(&before), "{after}");
    assert_eq!(canary(&server, "shop")["state"], "rolling");
    let (_, said) = server.fails(&["promote", "shop", "blue"]);
    assert!(said.contains("no variant blue under test"), "{said}");
    let (_, said) = server.fails(&["promote", "shop", "main"]);
    assert!(said.contains("serves already"), "{said}");
    let said = server.ok(&["promote", "shop", "green"]);
    assert!(said.contains("release 2 of shop serves"), "{said}");
    assert_eq!(visitors(&server, "shop.test", 20, "two"), 20);
    let shown = server.ok(&["status", "shop"]);
    assert!(
        shown.contains("A/B test: the variant green (release 2) serves"),
        "{shown}"
    );
    // What was found stays with the decision.
    assert!(shown.contains("requests failed against"), "{shown}");
    server.fails(&["variants", "shop"]);
    // What served before is not put to a test once more.
    server.ok(&["rollback", "shop"]);
    assert_eq!(visitors(&server, "shop.test", 20, "one"), 20);
}

#[test]
fn a_file_may_name_the_variant_and_a_newer_one_takes_its_place() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let settings = "strategy = \"ab\"\n[ab]\nvariant = \"green\"\nshare = 10\nheader = \"x-try: me\"\ncookie = \"try=me\"";
    let app = python_app("file", settings, "one");
    let said = server.deploy(app.path());
    assert!(
        said.contains("release 1 of file serves"),
        "the first has nobody beside it: {said}"
    );
    release(app.path(), "two", 0.0, 1);
    let said = server.deploy(app.path());
    assert!(
        said.contains("release 2 of file is the variant green"),
        "{said}"
    );
    is_tried(&server, "file", 10);
    let tester = |says: &str| ask(&server.http, "file.test", "/", says).text();
    for says in ["X-Try: me\r\n", "Cookie: a=b; try=me\r\n"] {
        assert_eq!(tester(says), "two");
    }
    release(app.path(), "three", 0.0, 1);
    let folder = app.path().to_string_lossy().into_owned();
    let blue = ["deploy", &folder, "--variant", "blue", "--share", "40"];
    let output = server.run(&blue);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success() && said.contains("the variant green of release 2 ends"),
        "{said}"
    );
    is_tried(&server, "file", 40);
    let (main, other) = sides(&server, "file");
    assert_eq!(
        (&main["release"], &other["name"], &other["share"]),
        (&1.into(), &"blue".into(), &40.into())
    );
    eventually("testers get the newer one", 20, || {
        tester("X-Try: me\r\n") == "three"
    });
    let said = server.ok(&["abort", "file"]);
    assert!(said.contains("release 1 serves on"), "{said}");
    assert_eq!(tester("X-Try: me\r\n"), "one");
    assert_eq!(visitors(&server, "file.test", 20, "one"), 20);
    let over = canary(&server, "file");
    assert_eq!(
        (&over["state"], &over["variant"]),
        (&"failed".into(), &"blue".into())
    );
    let why = over["decision"].to_string();
    assert!(why.contains("its owner aborted it"), "{why}");
}

#[test]
fn mistakes_are_said_before_anything_is_deployed() {
    if !is_root() {
        return;
    }
    let server = Server::start();
    let app = python_app("wrong", "", "one");
    let folder = app.path().to_string_lossy().into_owned();
    server.deploy(app.path());
    let begin: &[&str] = &["deploy", &folder];
    let mistakes: [(&[&str], &str); 5] = [
        (&["--share", "20%"], "--variant"),
        (&["--variant", "green", "--share", "100"], "1 to 99"),
        (&["--variant", "green", "--share", "many"], "1 to 99"),
        (&["--variant", "Green"], "a name has lower-case letters"),
        (&["--variant", "main"], "is the release that serves"),
    ];
    for (more, wanted) in mistakes {
        let (code, said) = server.fails(&[begin, more].concat());
        assert!(code == 2 && said.contains(wanted), "{code} {said}");
    }
    let files = app_folder(&[
        (
            "hutong.toml",
            "name = \"files\"\ndomains = [\"files.test\"]\nstatic = \"dist\"\n",
        ),
        ("dist/index.html", "one"),
    ]);
    server.deploy(files.path());
    let place = files.path().to_string_lossy().into_owned();
    let (_, said) = server.fails(&["deploy", &place, "--variant", "green"]);
    assert!(said.contains("this strategy goes with `command`"), "{said}");
    let green = ["deploy", &folder, "--dry-run", "--variant", "green"];
    let said = server.ok(&green);
    assert!(
        said.contains("the variant green, 50 % of the visitors until"),
        "{said}"
    );
    // What the file leaves out may be said here.
    let unnamed = python_app("unnamed", "strategy = \"ab\"", "one");
    let place = unnamed.path().to_string_lossy().into_owned();
    let (_, said) = server.fails(&["deploy", &place]);
    assert!(said.contains("needs a name for the new release"), "{said}");
    let (_, said) = server.fails(&["deploy", &place, "--variant", "green"]);
    assert!(said.contains("could be compared with"), "{said}");
    let (_, said) = server.fails(&["promote", "wrong", "green"]);
    assert!(said.contains("no release of wrong is on trial"), "{said}");
    assert_eq!(server.app("wrong")["release"], 1);
}
