//! Files as their owners hand them over, and what must come of them.

use std::path::{Path, PathBuf};

use hutong_import::{Input, NoteKind, Options, Outcome, import};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Files of a case; those with a plus before their name only stand beside the others.
fn inputs(case: &str, names: &[&str]) -> Vec<Input> {
    let input = |name: &&str| {
        let (path, asked) = match name.strip_prefix('+') {
            Some(path) => (path, false),
            None => (*name, true),
        };
        let file = fixtures().join("own").join(case).join(path);
        let folder = match path.rsplit_once('/') {
            Some((folder, _)) => folder.rsplit('/').next().unwrap_or_default(),
            None => case,
        };
        Input {
            path: path.to_owned(),
            folder: folder.to_owned(),
            text: std::fs::read_to_string(&file)
                .unwrap_or_else(|error| panic!("{}: {error}", file.display())),
            asked,
        }
    };
    names.iter().map(input).collect()
}

/// Imports a case, and compares with what lies in its folder of `expected`.
fn check(case: &str, expected: &str, names: &[&str]) -> Outcome {
    let inputs = inputs(case, names);
    let outcome = import(&inputs, &Options::default()).unwrap_or_else(|wrong| panic!("{wrong}"));
    let folder = fixtures().join("expected").join(expected);
    let mut wanted: Vec<String> = std::fs::read_dir(&folder)
        .expect("a folder")
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let mut compare = |name: String, text: &str| {
        let stored = std::fs::read_to_string(folder.join(&name)).unwrap_or_default();
        assert_eq!(text, stored, "{expected}/{name}");
        wanted.retain(|known| *known != name);
    };
    for app in &outcome.apps {
        compare(format!("{}.toml", app.name), &app.toml);
        if let Some(secrets) = &app.secrets {
            compare(format!("{}.env", app.name), secrets);
        }
    }
    if let Some(server) = &outcome.server {
        compare("server.toml".to_owned(), &server.toml);
    }
    assert_eq!(wanted, Vec::<String>::new(), "nothing came of these");
    // No secret is in a file, nor in the report.
    for app in &outcome.apps {
        assert!(!app.toml.contains("hush"), "{}", app.toml);
    }
    for note in &outcome.notes {
        assert!(
            !note.text.contains("hush") && !note.what.contains("hush"),
            "{note:?}"
        );
    }
    outcome
}

/// Lines with something in them that no note is about, nor about what is around them.
fn unsaid(input: &Input, outcome: &Outcome) -> Vec<String> {
    let is_yaml = input.path.ends_with(".yml");
    let noted = |line: usize, whole: bool| {
        outcome.notes.iter().any(|note| {
            let is_whole = matches!(note.kind, NoteKind::LeftOut | NoteKind::Replaced);
            note.path == input.path && note.line == line && (is_whole || !whole)
        })
    };
    let mut around: Vec<(usize, usize, bool)> = Vec::new();
    let mut unsaid = Vec::new();
    for (index, line) in input.text.lines().enumerate() {
        let text = line.trim();
        let is_nothing = text.is_empty() || text.starts_with(['#', '[', '}', ';']);
        if is_nothing || text.starts_with("<<:") || text == "---" {
            continue;
        }
        if !is_yaml {
            if !text.ends_with('{') && !noted(index + 1, false) {
                unsaid.push(format!("{}:{}: {text}", input.path, index + 1));
            }
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        let is_item = text.starts_with("- ");
        while around.last().is_some_and(|(column, _, item)| {
            *column > indent || (*column == indent && (*item || !is_item))
        }) {
            around.pop();
        }
        let is_inside = around.iter().any(|(_, line, _)| noted(*line, true));
        if !text.ends_with(':') && !is_inside && !noted(index + 1, false) {
            unsaid.push(format!("{}:{}: {text}", input.path, index + 1));
        }
        around.push((indent, index + 1, is_item));
    }
    unsaid
}

fn check_all_is_said(case: &str, names: &[&str], outcome: &Outcome) {
    for input in inputs(case, names).iter().filter(|input| input.asked) {
        assert_eq!(unsaid(input, outcome), Vec::<String>::new());
    }
}

fn said<'a>(outcome: &'a Outcome, kind: NoteKind, what: &str) -> &'a str {
    let found = outcome
        .notes
        .iter()
        .find(|note| note.kind == kind && note.what.contains(what));
    let found = found.unwrap_or_else(|| panic!("{what} is not said: {:#?}", outcome.notes));
    &found.text
}

#[test]
fn two_containers_behind_nginx() {
    let names = ["docker-compose.yml", "nginx.conf"];
    let outcome = check("s0", "s0", &names);
    check_all_is_said("s0", &names, &outcome);
    assert!(said(&outcome, NoteKind::LeftOut, "version").contains("obsolete"));
    assert!(
        said(&outcome, NoteKind::LeftOut, "networks.app-network").contains("network of its own")
    );
    assert!(said(&outcome, NoteKind::ToDo, "image").contains("runs as root"));
}

#[test]
fn a_unit_of_systemd() {
    let names = ["miniapp-a.service"];
    let outcome = check("s0", "s0-unit", &names);
    check_all_is_said("s0", &names, &outcome);
    assert!(said(&outcome, NoteKind::Used, "User").contains("user ids of its own"));
}

#[test]
fn all_of_it_at_once() {
    let inputs = inputs(
        "s0",
        &["docker-compose.yml", "nginx.conf", "miniapp-a.service"],
    );
    let outcome = import(&inputs, &Options::default()).expect("imported");
    let names: Vec<&str> = outcome.apps.iter().map(|app| app.name.as_str()).collect();
    assert_eq!(names, ["miniapp-a", "miniapp-b", "miniapp-a-2"]);
}

#[test]
fn a_gateway_of_traefik_with_all_around_it() {
    let names = [
        "traefik/docker-compose.yml",
        "traefik/config/traefik.yml",
        "traefik/config/dynamic_conf.yml",
        "orientation-system-be/docker-compose.yml",
        "watchtower/docker-compose.yml",
        "go_webdav/docker-compose.yml",
    ];
    let outcome = check("s2", "s2", &names);
    check_all_is_said("s2", &names, &outcome);
    assert!(said(&outcome, NoteKind::Replaced, "services.traefik").contains("gateway"));
    assert!(said(&outcome, NoteKind::Replaced, "services.watchtower").contains("[push] watch"));
    assert!(said(&outcome, NoteKind::Replaced, "services.watchtower").contains("[push] tags"));
    assert!(said(&outcome, NoteKind::Replaced, "services.webdav").contains("hutong logs"));
    assert!(said(&outcome, NoteKind::Replaced, "router dashboard").contains("hutong gateway"));
    assert!(said(&outcome, NoteKind::Replaced, "lab.log").contains("standard output"));
    assert!(said(&outcome, NoteKind::ToDo, "acme.dns").contains("ALICLOUD_ACCESS_KEY"));
    // Half a password is none: nobody is let in by it.
    assert!(said(&outcome, NoteKind::LeftOut, "basicAuth").contains("no router"));
}

#[test]
fn front_and_back_behind_nginx_and_uwsgi() {
    let names = [
        "hsheng-mall.conf",
        "hsheng-mall-backend.conf",
        "vhosts.conf",
        "uwsgi.ini",
    ];
    let outcome = check("s4", "s4", &names);
    check_all_is_said("s4", &names, &outcome);
    assert!(
        said(&outcome, NoteKind::ToDo, "ssl_certificate")
            .contains("bundle.crt --key /home/hsheng/www/hsheng-mall")
    );
    assert!(said(&outcome, NoteKind::ToDo, "plugins").contains("\"--plugin\", \"python3\""));
    let hosts: Vec<&str> = outcome
        .notes
        .iter()
        .filter(|note| note.what == "domains" && note.kind == NoteKind::ToDo)
        .map(|note| note.text.as_str())
        .collect();
    assert_eq!(hosts.len(), 2, "{hosts:?}");
    assert!(
        hosts
            .iter()
            .any(|text| text.ends_with(": api-aaa (uwsgi://127.0.0.1:8001)"))
    );
    assert!(
        hosts
            .iter()
            .any(|text| text.ends_with(": aaa (http://127.0.0.1:8081)"))
    );
    assert!(said(&outcome, NoteKind::LeftOut, "ssl_ciphers").contains("TLS 1.2 and 1.3"));
    assert!(said(&outcome, NoteKind::Replaced, "daemonize").contains("foreground"));
}

#[test]
fn weights_and_bounds_by_path() {
    let names = ["hsheng-mall-backend.conf"];
    let outcome = check("s4-weighted", "s4-weighted", &names);
    check_all_is_said("s4-weighted", &names, &outcome);
}

#[test]
fn a_shop_with_links_workers_and_a_database() {
    let names = ["docker-compose.yml", "+common.yml", "+.env"];
    let outcome = check("shop", "shop", &names);
    check_all_is_said("shop", &names, &outcome);
    assert!(
        said(&outcome, NoteKind::ToDo, "environment.DATABASE_URL").contains("no TCP links yet")
    );
    assert!(said(&outcome, NoteKind::Used, "environment.ORDERS_URL").contains("[env]"));
    assert!(said(&outcome, NoteKind::Used, "services.mailer").contains("[workers.mailer]"));
    assert!(said(&outcome, NoteKind::LeftOut, "services.debug").contains("--profile debug"));
    assert!(said(&outcome, NoteKind::ToDo, "environment.PAYMENT_TOKEN").contains("hutong env set"));
    assert!(said(&outcome, NoteKind::ToDo, "shop.example.com/api").contains("share"));
    let moved = outcome
        .notes
        .iter()
        .any(|note| note.app.as_deref() == Some("mailer"));
    assert!(!moved, "a worker's notes are its app's");
}

#[test]
fn an_ecosystem_of_pm2() {
    let outcome = check("pm2", "pm2", &["ecosystem.config.js"]);
    assert!(said(&outcome, NoteKind::ToDo, "env.HOME_DIR").contains("JavaScript"));
    assert!(said(&outcome, NoteKind::LeftOut, "env_staging.NODE_ENV").contains("another set"));
    assert!(said(&outcome, NoteKind::ToDo, "instances").contains("[scale]"));
    assert!(said(&outcome, NoteKind::Replaced, "error_file").contains("hutong logs api"));
}

#[test]
fn a_procfile() {
    let mut inputs = inputs("procfile", &["Procfile"]);
    inputs[0].folder = "blog".into();
    let outcome = import(&inputs, &Options::default()).expect("imported");
    let path = fixtures().join("expected/procfile/blog.toml");
    let stored = std::fs::read_to_string(path).expect("read");
    assert_eq!(outcome.apps[0].toml, stored);
    assert_eq!(unsaid(&inputs[0], &outcome), Vec::<String>::new());
}
