//! Traefik's files, systemd's units, uwsgi.ini, PM2 and Procfiles, one thing at a time; and files of no kind.

mod common;

use common::{app, beside, input, is_said, lines, made, note, wrong};
use hutong_import::{Kind, NoteKind, Options, import};

#[test]
fn traefiks_file_leads_to_servers_and_containers() {
    let compose = "services:\n  orders: {image: me/orders}\n";
    let dynamic = "http:\n  routers:\n    o:\n      rule: Host(`o.test`) && PathPrefix(`/v1`)\n      service: orders\n      middlewares: [cut, list]\n    x:\n      rule: Host(`x.test`)\n      service: far\n      tls: {}\n  services:\n    orders:\n      loadBalancer:\n        servers: [{url: 'http://orders:9000'}]\n    far:\n      loadBalancer:\n        servers:\n          - url: h2c://10.0.0.1:80/\n            weight: 3\n          - url: h2c://10.0.0.2:80\n  middlewares:\n    cut: {stripPrefix: {prefixes: [/v1]}}\n    list: {chain: {middlewares: [who, fast]}}\n    who: {ipAllowList: {sourceRange: [10.0.0.0/8, 192.0.2.1]}}\n    fast: {rateLimit: {average: 100, period: 1m}}\n";
    let outcome = made(&[input("compose.yml", compose), input("dynamic.yml", dynamic)]);
    assert_eq!(
        lines(app(&outcome, "shop")),
        [
            "name = \"shop\"",
            "domains = [\"o.test/v1\"]",
            "strip_prefix = true",
            "image = \"me/orders\"",
            "port = 9000",
            "[traffic]",
            "rate_per_ip = \"100/m\"",
            "allow = [\"10.0.0.0/8\", \"192.0.2.1\"]",
        ]
    );
    assert_eq!(
        lines(app(&outcome, "x")),
        [
            "name = \"x\"",
            "domains = [\"x.test\"]",
            "upstream = [{ url = \"h2c://10.0.0.1:80\", weight = 3 }, \"h2c://10.0.0.2:80\"]",
        ]
    );
}

#[test]
fn labels_may_name_middlewares_of_a_file() {
    let compose = "services:\n  web:\n    image: x\n    labels:\n      - traefik.http.routers.w.rule=Host(`w.test`)\n      - traefik.http.routers.w.middlewares=who@file\n";
    let dynamic = "[http.middlewares.who.ipAllowList]\nsourceRange = [\"10.0.0.0/8\"]\n";
    let outcome = made(&[
        input("compose.yml", compose),
        input("dynamic.toml", dynamic),
    ]);
    assert!(
        app(&outcome, "shop")
            .toml
            .contains("allow = [\"10.0.0.0/8\"]")
    );
    assert!(is_said(
        &outcome,
        NoteKind::Used,
        "sourceRange",
        "whose routers name it"
    ));
}

#[test]
fn traefiks_static_file_in_toml() {
    let text = "[entryPoints]\n  [entryPoints.web]\n    address = \":80\"\n  [entryPoints.odd]\n    address = \":9000\"\n[certificatesResolvers.le.acme]\n  email = \"me@example.com\"\n  caServer = \"https://acme-staging-v02.api.letsencrypt.org/directory\"\n  [certificatesResolvers.le.acme.httpChallenge]\n    entryPoint = \"web\"\n";
    let outcome = made(&[input("traefik.toml", text)]);
    let toml = &outcome.server.as_ref().expect("a server file").toml;
    for line in [
        "http = \"0.0.0.0:80\"",
        "email = \"me@example.com\"",
        "directory = \"letsencrypt-staging\"",
        "challenge = \"http-01\"",
    ] {
        assert!(toml.contains(line), "{line}: {toml}");
    }
    let odd = note(&outcome, NoteKind::LeftOut, "entryPoints.odd.address");
    assert_eq!((odd.line, odd.column), (5, 5));
}

#[test]
fn a_unit_with_everything() {
    let unit = "[Unit]\nDescription=x\n[Service]\nType=simple\nEnvironment=\"A=1 2\" PORT=3000 API_KEY=hush\nEnvironmentFile=-/etc/default/shop\nEnvironmentFile=more.env\nExecStart=-/usr/bin/node ${A} server.js %% $B\nTasksMax=64\nMemoryMax=1G\nMemoryHigh=512M\nRestart=on-failure\nRestartSec=5\nTimeoutStopSec=1min 30s\nTimeoutStartSec=10\nProtectSystem=strict\nStateDirectory=shop\nStandardOutput=journal\nNice=5\nWhatever=1\n[Install]\nWantedBy=multi-user.target\n";
    let inputs = [
        input("d/shop.service", unit),
        beside("d/more.env", "B=b\nLONG=2\n"),
    ];
    let outcome = made(&inputs);
    let shop = app(&outcome, "shop");
    assert_eq!(
        lines(shop),
        [
            "name = \"shop\"",
            "command = [\"/usr/bin/node\", \"1 2\", \"server.js\", \"%\", \"b\"]",
            "port = 3000",
            "data = true",
            "restart = \"on-failure\"",
            "[env]",
            "A = \"1 2\"",
            "B = \"b\"",
            "LONG = \"2\"",
            "[limits]",
            "memory = \"1G\"",
            "pids = 64",
            "[timeouts]",
            "start = \"10s\"",
            "stop = \"90s\"",
        ]
    );
    assert_eq!(shop.secrets.as_deref(), Some("API_KEY=hush\n"));
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "EnvironmentFile",
        "/etc/default/shop was not handed over"
    ));
    assert_eq!(note(&outcome, NoteKind::LeftOut, "Whatever").line, 20);
}

#[test]
fn a_timer_makes_a_timed_job() {
    let inputs = [
        input(
            "tidy.timer",
            "[Timer]\nOnCalendar=*-*-* 03:30:00\nPersistent=true\n[Install]\nWantedBy=timers.target\n",
        ),
        input(
            "tidy.service",
            "[Service]\nType=oneshot\nExecStart=/usr/bin/python3 tidy.py\n",
        ),
    ];
    let outcome = made(&inputs);
    assert_eq!(
        lines(app(&outcome, "tidy")),
        [
            "name = \"tidy\"",
            "[cron.tidy]",
            "command = [\"/usr/bin/python3\", \"tidy.py\"]",
            "schedule = \"30 3 * * *\"",
        ]
    );
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "Persistent",
        "not made up for"
    ));
    let alone = made(&[input("tidy.timer", "[Timer]\nOnCalendar=daily\n")]);
    assert!(alone.apps.is_empty());
    assert!(is_said(
        &alone,
        NoteKind::LeftOut,
        "OnCalendar",
        "its service was not handed over"
    ));
}

#[test]
fn a_unit_without_a_program_is_a_mistake() {
    assert_eq!(
        wrong(&[input("a.service", "[Service]\nUser=x\n")]),
        "a.service:1:1: this service has no ExecStart"
    );
    let found = wrong(&[input("a.service", "[Service]\nExecStart=/x 'y\n")]);
    assert_eq!(found, "a.service:2:1: a quote is not closed");
}

#[test]
fn uwsgi_speaks_http_or_its_own() {
    let outcome = made(&[input(
        "uwsgi.ini",
        "[uwsgi]\nhttp-socket = :9090\nmodule = app:app\nvirtualenv = /srv/venv\nlazy-apps = false\nenv = SECRET_KEY=hush\nuid = www-data\n[other]\nx = 1\n",
    )]);
    let shop = app(&outcome, "shop");
    assert_eq!(
        lines(shop)[1..],
        [
            "command = [\"uwsgi\", \"--http-socket\", \"127.0.0.1:9090\", \"--module\", \"app:app\", \"--virtualenv\", \"/app/.venv\", \"--die-on-term\"]",
            "port = 9090",
        ]
    );
    assert_eq!(shop.secrets.as_deref(), Some("SECRET_KEY=hush\n"));
    assert_eq!(note(&outcome, NoteKind::LeftOut, "x").line, 9);
    let found = wrong(&[input("uwsgi.ini", "[uwsgi]\nmodule = x\n")]);
    assert!(
        found.contains("nothing here says where uwsgi listens"),
        "{found}"
    );
}

#[test]
fn pm2_in_json_and_yaml() {
    let json = "{\"apps\": {\"script\": \"bin/www\", \"env\": {\"PORT\": 8080}}}";
    let outcome = made(&[input("pm2.json", json)]);
    assert_eq!(
        lines(app(&outcome, "www")),
        ["name = \"www\"", "command = [\"./bin/www\"]"]
    );
    let yaml = "apps:\n  - script: ./a.py\n    name: a\n    banana: 1\n";
    let outcome = made(&[input("pm2.yml", yaml)]);
    assert_eq!(
        lines(app(&outcome, "a")),
        ["name = \"a\"", "command = [\"python3\", \"./a.py\"]"]
    );
    assert_eq!(note(&outcome, NoteKind::LeftOut, "banana").line, 4);
}

#[test]
fn mistakes_of_ecosystems_have_their_place() {
    for (text, said) in [
        (
            "module.exports = {apps: [{name: 'a', script: ''}]}",
            "e.js:1:26: this app has no `script`",
        ),
        (
            "module.exports = {apps: 'script'}",
            "e.js:1:25: `apps` is a list of apps, not a text",
        ),
        (
            "module.exports = {script: 'apps'}",
            "e.js:1:18: there is no `apps` in it",
        ),
        (
            "module.exports = {apps: [1]} // script",
            "e.js:1:26: an app is a table, not a text",
        ),
        (
            "module.exports = {apps: [{script: 'a', }}",
            "e.js:1:41: `,` or `]` is missing here",
        ),
    ] {
        let found = wrong(&[input("e.js", text)]);
        assert_eq!(found, said, "{text}");
    }
}

#[test]
fn a_procfile_without_a_web_has_workers_only() {
    let outcome = made(&[input(
        "Procfile",
        "clock: python clock.py\nbeat-2: celery beat\n",
    )]);
    assert_eq!(
        lines(app(&outcome, "shop")),
        [
            "name = \"shop\"",
            "[workers.beat2]",
            "command = [\"celery\", \"beat\"]",
            "[workers.clock]",
            "command = [\"python\", \"clock.py\"]",
        ]
    );
    assert!(wrong(&[input("Procfile", "release: x\n")]).contains("no `web` and no worker"));
    assert!(wrong(&[input("Procfile", "# nothing\n")]).contains("there is no process in it"));
}

#[test]
fn a_file_of_no_kind_is_named() {
    let found = wrong(&[
        input("notes.txt", "hello\n"),
        input("x.service", "[Service]\nwhat\n"),
    ]);
    let lines: Vec<&str> = found.lines().collect();
    assert!(
        lines[0].starts_with("notes.txt:1:1: this looks like none of compose"),
        "{found}"
    );
    assert!(
        lines[1].starts_with("x.service:2:1: `what` is neither"),
        "{found}"
    );
    let options = Options {
        kind: Some(Kind::Procfile),
        ..Options::default()
    };
    let outcome = import(&[input("notes.txt", "web: x\n")], &options).expect("a Procfile");
    assert_eq!(outcome.apps.len(), 1);
}

#[test]
fn sizes_are_bounded() {
    let long = format!("services:\n  # {}\n", "x".repeat(11 << 20));
    assert_eq!(
        wrong(&[input("compose.yml", &long)]),
        "compose.yml:1:1: the file is over 10 MB"
    );
    let long = format!("web: {}\n", "x".repeat(2 << 20));
    assert_eq!(
        wrong(&[input("Procfile", &long)]),
        "Procfile:1:1: the file is over 1 MB"
    );
}

#[test]
fn every_file_that_is_written_is_a_good_one() {
    let inputs = [
        input(
            "compose.yml",
            "services:\n  'Odd.Name_':\n    image: x\n    environment: {'1x': a, HUTONG_X: b, OK: \"\\u0001\\\"\"}\n    command: ['a', \"b\\nc\"]\n",
        ),
        input(
            "n.conf",
            "server { listen 80; server_name a_b.test ok.test; location / { proxy_pass http://127.0.0.1:1; } location /a%20b { proxy_pass http://127.0.0.1:2; } }",
        ),
    ];
    let outcome = made(&inputs);
    for app in &outcome.apps {
        let spec = hutong_core::spec::parse("hutong.toml", &app.toml);
        assert!(spec.is_ok(), "{}", app.toml);
    }
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "environment.1x",
        "cannot name"
    ));
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "environment.HUTONG_X",
        "set by Hutong"
    ));
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "server_name",
        "a_b.test"
    ));
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "location /a%20b",
        "plain path"
    ));
}
