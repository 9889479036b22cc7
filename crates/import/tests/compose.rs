//! Compose files, one thing at a time.

mod common;

use common::{app, beside, input, is_said, lines, made, note, wrong};
use hutong_import::{NoteKind, Options, import};

fn compose(services: &str) -> Vec<hutong_import::Input> {
    vec![input("compose.yml", &format!("services:\n{services}"))]
}

#[test]
fn a_service_alone_is_called_after_its_project() {
    let outcome = made(&compose("  web:\n    image: me/x:1\n    ports: ['80']\n"));
    assert_eq!(
        lines(app(&outcome, "shop")),
        ["name = \"shop\"", "image = \"me/x:1\"", "port = 80"]
    );
    let named = input(
        "compose.yml",
        "name: other\nservices:\n  web:\n    image: me/x:1\n",
    );
    assert_eq!(made(&[named]).apps[0].name, "other");
}

#[test]
fn the_port_of_8080_is_not_said() {
    let outcome = made(&compose(
        "  web:\n    image: me/x:1\n    ports: ['80:8080']\n",
    ));
    assert!(!app(&outcome, "shop").toml.contains("port ="));
}

#[test]
fn what_is_no_service_is_a_mistake_with_its_place() {
    for (text, said) in [
        (
            "services: 1\n",
            "compose.yml:1:11: `services` is a table, not a text",
        ),
        (
            "services:\n  web: 1\n",
            "compose.yml:2:8: a service is a table, not a text",
        ),
        (
            "services:\n  web: {}\n",
            "compose.yml:2:3: this service has neither `image` nor `build`",
        ),
        (
            "- a\n",
            "compose.yml:1:1: a compose file is a table with `services`, not a list",
        ),
        (
            "services:\n  web:\n    image: 'a b'\n",
            "compose.yml:3:12: `a b` is no image such as python:3.12",
        ),
        (
            "services:\n  web:\n    image: x\n    command: \"'x\"\n",
            "compose.yml:4:14: a quote is not closed",
        ),
        (
            "services:\n  web:\n    image: ${IMAGE:?which one}\n",
            "compose.yml:3:12: the variable IMAGE must be set: which one",
        ),
        (
            "services:\n  web:\n    image: a$1\n",
            "compose.yml:3:12: `$` begins a variable here",
        ),
    ] {
        let found = wrong(&[input("compose.yml", text)]);
        assert!(found.starts_with(said), "{text}: {found}");
    }
}

#[test]
fn variables_come_from_the_file_beside() {
    let inputs = [
        input(
            "a/compose.yml",
            "services:\n  web:\n    image: me/x:${TAG}\n    environment:\n      A: ${A:-1}\n",
        ),
        beside("a/.env", "TAG=2\nA=${TAG}0\n"),
    ];
    let outcome = made(&inputs);
    assert_eq!(
        lines(app(&outcome, "shop")),
        [
            "name = \"shop\"",
            "image = \"me/x:2\"",
            "[env]",
            "A = \"20\""
        ]
    );
}

#[test]
fn what_is_not_set_is_said() {
    let outcome = made(&compose(
        "  web:\n    image: me/x\n    command: run ${MODE}\n    environment:\n      - KEY\n      - A=x${B}\n",
    ));
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "command",
        "MODE is not set"
    ));
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "environment.KEY",
        "hutong env set shop KEY"
    ));
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "environment.A",
        "B is not set here"
    ));
    assert!(!app(&outcome, "shop").toml.contains("[env]"));
}

#[test]
fn secrets_go_their_own_way() {
    let outcome = made(&compose(
        "  web:\n    image: me/x\n    environment:\n      API_TOKEN: \"a b$$\"\n      URL: http://me:pw@x.example.com/\n      MODE: live\n",
    ));
    let app = app(&outcome, "shop");
    assert_eq!(
        app.secrets.as_deref(),
        Some("API_TOKEN=\"a b$\"\nURL=http://me:pw@x.example.com/\n")
    );
    assert!(!app.toml.contains("pw") && app.toml.contains("MODE = \"live\""));
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "secrets.env",
        "hutong env set shop --file"
    ));
}

#[test]
fn files_of_variables_are_read_and_the_compose_file_wins() {
    let inputs = [
        input(
            "compose.yml",
            "services:\n  web:\n    image: x\n    env_file: [a.env, gone.env]\n    environment: {A: '1'}\n",
        ),
        beside("a.env", "A=0\nB='$C'\nC=c\nD=${C}d\nPORT=3000\n"),
    ];
    let outcome = made(&inputs);
    assert_eq!(
        lines(app(&outcome, "shop")),
        [
            "name = \"shop\"",
            "image = \"x\"",
            "port = 3000",
            "[env]",
            "A = \"1\"",
            "B = \"$C\"",
            "C = \"c\"",
            "D = \"cd\""
        ]
    );
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "env_file",
        "gone.env was not handed over"
    ));
    assert_eq!(outcome.wanted, [".env", "gone.env"]);
}

#[test]
fn a_service_extends_another_one() {
    let inputs = [
        input(
            "a/compose.yml",
            "services:\n  web:\n    extends: {file: ../base.yml, service: middle}\n    image: x\n    environment: [B=2]\n  more:\n    extends: web\n    image: y\n",
        ),
        beside(
            "base.yml",
            "services:\n  middle:\n    extends: root\n    environment: {A: '1', B: '1'}\n  root:\n    ports: ['81']\n    restart: 'no'\n",
        ),
    ];
    let outcome = made(&inputs);
    let web = lines(app(&outcome, "shop-web"));
    assert_eq!(
        web,
        [
            "name = \"shop-web\"",
            "image = \"x\"",
            "port = 81",
            "restart = \"never\"",
            "[env]",
            "A = \"1\"",
            "B = \"2\""
        ]
    );
    assert!(app(&outcome, "more").toml.contains("image = \"y\""));
}

#[test]
fn what_extends_or_includes_itself_is_found() {
    let found = wrong(&compose("  a:\n    extends: b\n  b:\n    extends: a\n"));
    assert!(
        found.starts_with("compose.yml:5:14: `a` extends itself: a → b → a"),
        "{found}"
    );
    let inputs = [
        input("a.yml", "include: [b.yml]\nservices: {}\n"),
        beside("b.yml", "include:\n  - path: a.yml\n"),
    ];
    let found = wrong(&inputs);
    assert!(
        found.starts_with("b.yml:2:11: a.yml includes itself: a.yml → b.yml → a.yml"),
        "{found}"
    );
    let found = wrong(&compose("  a:\n    extends: nobody\n"));
    assert!(
        found.contains("there is no service `nobody` to extend"),
        "{found}"
    );
}

#[test]
fn included_files_are_part_of_the_project() {
    let inputs = [
        input("a.yml", "include: [b.yml]\nservices:\n  one: {image: x}\n"),
        input("b.yml", "services:\n  two: {image: y}\n"),
    ];
    let names: Vec<String> = made(&inputs).apps.into_iter().map(|app| app.name).collect();
    assert_eq!(names, ["two", "one"]);
}

#[test]
fn an_override_is_merged() {
    let inputs = [
        input(
            "d/docker-compose.yml",
            "services:\n  web:\n    image: x\n    ports: ['80:80']\n    environment: {A: '1'}\n",
        ),
        input(
            "d/docker-compose.override.yml",
            "services:\n  web:\n    image: z\n    environment: [A=2, B=3]\n    ports: ['81:81']\n",
        ),
    ];
    let outcome = made(&inputs);
    assert_eq!(outcome.apps.len(), 1);
    assert_eq!(
        lines(app(&outcome, "shop")),
        [
            "name = \"shop\"",
            "image = \"z\"",
            "port = 80",
            "[env]",
            "A = \"2\"",
            "B = \"3\""
        ]
    );
    let left = note(&outcome, NoteKind::LeftOut, "ports");
    assert_eq!(
        (left.path.as_str(), left.line),
        ("d/docker-compose.override.yml", 5)
    );
}

#[test]
fn profiles_are_asked_for() {
    let inputs = compose("  web: {image: x}\n  debug: {image: y, profiles: [debug, dev]}\n");
    assert_eq!(made(&inputs).apps.len(), 1);
    let options = Options {
        profiles: vec!["dev".into()],
        ..Options::default()
    };
    assert_eq!(import(&inputs, &options).expect("imported").apps.len(), 2);
}

#[test]
fn traefiks_labels_become_domains_and_rules() {
    let hash = "$$2y$$05$$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyz01236";
    let outcome = made(&compose(&format!(
        "  web:\n    image: x\n    labels:\n      traefik.enable: 'true'\n      traefik.http.routers.a.rule: Host(`a.test`) || Host(`b.test`)\n      traefik.http.routers.a.middlewares: auth@docker\n      traefik.http.routers.a.tls.certresolver: le\n      traefik.http.services.a.loadbalancer.server.port: 9000\n      traefik.http.services.a.loadbalancer.sticky.cookie: 'true'\n      traefik.http.services.a.loadbalancer.healthcheck.path: /up\n      traefik.http.middlewares.auth.basicauth.users: me:{hash}\n",
    )));
    assert_eq!(
        lines(app(&outcome, "shop")),
        [
            "name = \"shop\"",
            "domains = [\"a.test\", \"b.test\"]",
            "image = \"x\"",
            "port = 9000",
            "[health]",
            "path = \"/up\"",
            "[balance]",
            "method = \"sticky\"",
            "[traffic.auth]",
            "users = [\"me:$2y$05$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyz01236\"]",
        ]
    );
}

#[test]
fn a_router_that_is_not_understood_lets_nobody_in() {
    for (label, why) in [
        (
            "traefik.http.middlewares.m.forwardauth.address: http://x",
            "may be what keeps visitors out",
        ),
        (
            "traefik.http.middlewares.m.basicauth.users: 'me:secret'",
            "is not kept as bcrypt",
        ),
        (
            "traefik.http.middlewares.m.stripprefix.prefixes: /api",
            "below its own",
        ),
        (
            "traefik.http.middlewares.m.chain.middlewares: m",
            "without end",
        ),
        ("traefik.other: x", "none of the files"),
    ] {
        let outcome = made(&compose(&format!(
            "  web:\n    image: x\n    labels:\n      traefik.http.routers.a.rule: Host(`a.test`)\n      traefik.http.routers.a.middlewares: m\n      {label}\n"
        )));
        assert!(!app(&outcome, "shop").toml.contains("domains"), "{label}");
        assert!(
            is_said(&outcome, NoteKind::LeftOut, "router a", why),
            "{label}: {:#?}",
            outcome.notes
        );
        assert!(
            !outcome
                .notes
                .iter()
                .any(|note| note.text.contains("secret"))
        );
    }
}

#[test]
fn plain_and_secure_routers_are_one_app() {
    let labels = |more: &str| {
        format!(
            "  web:\n    image: x\n    labels:\n      - traefik.http.routers.p.rule=Host(`a.test`)\n      - traefik.http.routers.p.entrypoints=web\n      - traefik.http.routers.s.rule=Host(`a.test`)\n      - traefik.http.routers.s.entrypoints=websecure\n{more}"
        )
    };
    let outcome = made(&compose(&labels("")));
    assert!(
        app(&outcome, "shop")
            .toml
            .contains("[https]\nredirect = false\n")
    );
    let sends = "      - traefik.http.routers.p.middlewares=up\n      - traefik.http.middlewares.up.redirectscheme.scheme=https\n";
    let outcome = made(&compose(&labels(sends)));
    let toml = &app(&outcome, "shop").toml;
    assert!(
        toml.contains("domains = [\"a.test\"]") && !toml.contains("[https]"),
        "{toml}"
    );
}

#[test]
fn names_of_other_services_become_links() {
    let outcome = made(&compose(
        "  web:\n    image: x\n    ports: ['80:3000']\n    environment:\n      API_HOST: api\n      ROLE: api\n      BACK: api:9000\n      DB_HOST: db\n    depends_on: [api, db, jobs]\n  api:\n    image: y\n    expose: ['9000']\n  db:\n    image: redis:7\n  jobs:\n    image: z\n    expose: ['1']\n",
    ));
    let web = &app(&outcome, "shop-web").toml;
    assert!(
        web.contains("links = { api = \"shop-api\", jobs = \"jobs\" }"),
        "{web}"
    );
    assert!(web.contains("API_HOST = \"api.internal\"\nBACK = \"api.internal:80\"\nDB_HOST = \"db\"\nROLE = \"api\""), "{web}");
    assert!(
        app(&outcome, "shop-api")
            .toml
            .contains("callers = [\"shop-web\"]")
    );
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "environment.DB_HOST",
        "speaks Redis"
    ));
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "depends_on.jobs",
        "http://jobs.internal"
    ));
}

#[test]
fn an_app_that_listens_at_80_has_no_links() {
    let outcome = made(&compose(
        "  web:\n    image: x\n    ports: ['80:80']\n    environment: {API_URL: 'http://api:9000'}\n  api:\n    image: y\n    expose: ['9000']\n",
    ));
    assert!(!app(&outcome, "shop-web").toml.contains("links"));
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "environment.API_URL",
        "port 80"
    ));
}

#[test]
fn databases_keep_their_data_in_data() {
    let outcome = made(&compose(
        "  a:\n    image: mysql:8\n    volumes: ['db:/var/lib/mysql']\n    command: --character-set-server=utf8\n  b:\n    image: redis\n    volumes: ['r:/data']\n  c:\n    image: me/x\n    volumes: ['v:/var/lib/x', './a.conf:/etc/a.conf:ro', '/var/run/docker.sock:/var/run/docker.sock']\n",
    ));
    assert!(
        app(&outcome, "a")
            .toml
            .contains("command = [\"--character-set-server=utf8\", \"--datadir=/data\"]")
    );
    assert!(app(&outcome, "b").toml.contains("data = true"));
    assert!(app(&outcome, "c").toml.contains("data = true"));
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "v:/var/lib/x",
        "/data and nowhere else"
    ));
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "a.conf",
        "container.mount"
    ));
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "docker.sock",
        "no app gets at the engine"
    ));
}

#[test]
fn limits_replicas_and_restarts() {
    let outcome = made(&compose(
        "  web:\n    image: x\n    mem_limit: 1g\n    cpus: 1.5\n    pids_limit: 50\n    scale: 9\n    restart: on-failure\n    pull_policy: always\n    tmpfs: /var/cache\n    entrypoint: ['']\n    deploy:\n      update_config: {order: stop-first, parallelism: 2}\n",
    ));
    let toml = &app(&outcome, "shop").toml;
    for line in [
        "instances = 6",
        "restart = \"on-failure\"",
        "strategy = \"recreate\"",
        "memory = \"1G\"",
        "cpu = 1.5",
        "pids = 50",
        "pull = \"always\"",
        "writable = [\"/var/cache\"]",
    ] {
        assert!(toml.contains(line), "{line}: {toml}");
    }
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "parallelism",
        "healthy"
    ));
}

#[test]
fn a_build_wants_an_image() {
    let outcome = made(&compose(
        "  web:\n    build: {context: ./web, args: {A: 1}}\n    ports: ['80:3000']\n",
    ));
    let toml = &app(&outcome, "shop").toml;
    assert!(
        toml.contains("image = \"shop-web\"") && toml.contains("pull = \"never\""),
        "{toml}"
    );
    assert!(is_said(
        &outcome,
        NoteKind::ToDo,
        "build",
        "docker build -t IMAGE ./web"
    ));
}

#[test]
fn networks_that_lead_nowhere_give_no_egress() {
    let text = "services:\n  a:\n    image: x\n    networks: [inner]\n  b:\n    image: y\n    networks: [inner, outer]\n  c:\n    image: z\n    network_mode: none\nnetworks:\n  inner: {internal: true}\n  outer:\n";
    let outcome = made(&[input("compose.yml", text)]);
    assert!(!app(&outcome, "a").toml.contains("egress"));
    assert!(app(&outcome, "b").toml.contains("egress"));
    assert!(!app(&outcome, "c").toml.contains("egress"));
}

#[test]
fn nginx_proxy_routes_by_variables() {
    let outcome = made(&compose(
        "  proxy: {image: nginxproxy/nginx-proxy}\n  web:\n    image: x\n    environment:\n      VIRTUAL_HOST: a.test,b.test\n      VIRTUAL_PORT: 5000\n      LETSENCRYPT_HOST: a.test\n",
    ));
    assert_eq!(
        lines(app(&outcome, "shop")),
        [
            "name = \"shop\"",
            "domains = [\"a.test\", \"b.test\"]",
            "image = \"x\"",
            "port = 5000"
        ]
    );
}

#[test]
fn traefiks_flags_are_read() {
    let text = "services:\n  traefik:\n    image: traefik:v3\n    command:\n      - --entrypoints.web.address=:80\n      - --entrypoints.websecure.address=:443\n      - --certificatesresolvers.le.acme.email=me@example.com\n      - --certificatesresolvers.le.acme.dnschallenge.provider=cloudflare\n      - --banana=1\n    environment:\n      - CF_DNS_API_TOKEN=hush\n";
    let outcome = made(&[input("compose.yml", text)]);
    assert!(outcome.apps.is_empty());
    let part = outcome.server.as_ref().expect("a server file");
    assert!(part.is_secret);
    assert_eq!(
        part.toml.lines().skip(1).collect::<Vec<_>>(),
        [
            "http = \"0.0.0.0:80\"",
            "https = \"0.0.0.0:443\"",
            "",
            "[acme]",
            "email = \"me@example.com\"",
            "challenge = \"dns-01\"",
            "",
            "[acme.dns]",
            "type = \"cloudflare\"",
            "token = \"hush\"",
        ]
    );
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "--banana",
        "not known"
    ));
    assert!(!outcome.notes.iter().any(|note| note.text.contains("hush")));
}

#[test]
fn two_services_of_a_name_are_a_mistake() {
    let inputs = [
        input("a.yml", "include: [b.yml]\nservices:\n  one: {image: x}\n"),
        beside("b.yml", "services:\n  one: {image: y}\n"),
    ];
    assert!(wrong(&inputs).contains("there are two services `one`"));
}

#[test]
fn what_has_another_form_is_refused_not_passed_over() {
    for (text, said) in [
        (
            "web:\n  image: x\n",
            "compose.yml:1:1: `web` stands at the top, as services did in version 1 of the format: put it below `services:`",
        ),
        (
            "services:\n  a:\n    image: x\n    environment:\n      - A: b\n",
            "compose.yml:5:9: `environment` is a list of KEY=VALUE or a table; in the list there is a table",
        ),
        (
            "services:\n  a:\n    image: x\n    labels: a=b\n",
            "compose.yml:4:13: `labels` is a list of KEY=VALUE or a table, not a text",
        ),
        (
            "services:\n  a:\n    image: x\n    ports: 80:80\n",
            "compose.yml:4:12: `ports` is a list, not a text",
        ),
        (
            "include: b.yml\nservices: {}\n",
            "compose.yml:1:10: `include` is a list, not a text",
        ),
        (
            "services:\n  a:\n    image: ${TAGGED}\n",
            "compose.yml:3:12: TAGGED is not set, and the image cannot be told without: hand over an .env file beside the compose file",
        ),
    ] {
        assert_eq!(wrong(&[input("compose.yml", text)]), said, "{text}");
    }
}

#[test]
fn a_project_without_services_says_so() {
    let outcome = made(&[input("compose.yml", "services: {}\n")]);
    assert!(is_said(&outcome, NoteKind::LeftOut, "services", "none"));
}

#[test]
fn what_long_forms_say_is_said() {
    let outcome = made(&compose(
        "  a:\n    image: x\n    ports:\n      - target: 80\n        mode: host\n    volumes:\n      - source: v\n        target: /v\n        volume: {nocopy: true}\n",
    ));
    assert_eq!(note(&outcome, NoteKind::LeftOut, "ports.mode").line, 6);
    assert_eq!(note(&outcome, NoteKind::LeftOut, "volumes.volume").line, 10);
}

#[test]
fn a_file_that_would_help_is_named_with_the_mistake() {
    let inputs = compose("  a:\n    extends: {file: base.yml, service: a}\n");
    let found = import(&inputs, &Options::default()).expect_err("nothing says its image");
    assert!(
        found.wanted.contains(&"base.yml".to_owned()),
        "{:?}",
        found.wanted
    );
    assert_eq!(
        found.to_string(),
        "compose.yml:2:3: this service has neither `image` nor `build`; it extends one of base.yml: was that handed over?"
    );
}
