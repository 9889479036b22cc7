//! nginx's server blocks, one thing at a time.

mod common;

use common::{app, beside, input, is_said, lines, made, note, wrong};
use hutong_import::{App, NoteKind, Outcome};

fn nginx(text: &str) -> Outcome {
    made(&[input("n.conf", text)])
}

fn server(inside: &str) -> Outcome {
    nginx(&format!(
        "server {{ listen 80; server_name a.test; {inside} }}"
    ))
}

fn first(outcome: &Outcome) -> &App {
    outcome.apps.first().expect("an app")
}

#[test]
fn a_host_and_its_paths() {
    let outcome = server(
        "location / { root /srv/www; try_files $uri $uri/ /index.html; } location /api/ { proxy_pass http://127.0.0.1:3000/; } location /docs { alias /srv/docs/; }",
    );
    assert_eq!(
        lines(app(&outcome, "a")),
        [
            "name = \"a\"",
            "domains = [\"a.test\"]",
            "static = \".\"",
            "spa = true",
            "share = { \"/api\" = \"a-api\", \"/docs\" = \"a-docs\" }",
        ]
    );
    assert_eq!(
        lines(app(&outcome, "a-api")),
        [
            "name = \"a-api\"",
            "domains = [\"a.test/api\"]",
            "strip_prefix = true",
            "upstream = [\"http://127.0.0.1:3000\"]",
        ]
    );
    let docs = app(&outcome, "a-docs");
    assert_eq!(docs.folder.as_deref(), Some("/srv/docs"));
    assert!(docs.toml.contains("strip_prefix = true"));
    let server = outcome.server.as_ref().expect("a server file");
    assert!(server.toml.contains("allow_upstreams = [\"127.0.0.1\"]"));
}

#[test]
fn what_is_passed_on_with_another_path_is_left_out() {
    let outcome = server("location /api/ { proxy_pass http://127.0.0.1:3000/v2/; }");
    assert!(outcome.apps.is_empty());
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "proxy_pass",
        "cut off as a whole"
    ));
    for target in [
        "https://127.0.0.1:1",
        "http://unix:/run/x.sock",
        "http://$backend",
    ] {
        let outcome = server(&format!("location / {{ proxy_pass {target}; }}"));
        assert!(outcome.apps.is_empty(), "{target}");
    }
    let outcome = server("location / { proxy_pass http://backend.example.com:80; }");
    assert!(outcome.apps.is_empty());
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "location /",
        "has an IP address"
    ));
}

#[test]
fn plain_requests_are_sent_to_https() {
    let blocks = "server { listen 443 ssl; server_name a.test www.a.test; location / { proxy_pass http://127.0.0.1:1; } }";
    let sent = [
        "server { listen 80; server_name a.test www.a.test; return 301 https://$host$request_uri; }",
        "server { listen 80; server_name a.test www.a.test; location / { return 301 https://a.test$request_uri; } }",
        "server { listen 80; server_name a.test www.a.test; rewrite ^ https://$server_name$request_uri permanent; }",
    ];
    for more in sent {
        let outcome = nginx(&format!("{blocks}\n{more}"));
        assert_eq!(
            lines(first(&outcome)),
            [
                "name = \"a\"",
                "domains = [\"a.test\", \"www.a.test\"]",
                "upstream = [\"http://127.0.0.1:1\"]"
            ]
        );
    }
    // Both answer: nobody is sent.
    let both = "server { listen 80; listen [::]:80; listen 443 ssl http2; server_name a.test; location / { proxy_pass http://127.0.0.1:1; } }";
    assert!(
        first(&nginx(both))
            .toml
            .contains("[https]\nredirect = false")
    );
    let by_if = "server { listen 80; listen 443 ssl; server_name a.test; if ($scheme = http) { return 301 https://$host$request_uri; } location / { proxy_pass http://127.0.0.1:1; } }";
    assert!(!first(&nginx(by_if)).toml.contains("[https]"));
}

#[test]
fn other_redirects_are_left_out() {
    let outcome = server("return 301 https://other.example.com$request_uri;");
    assert!(outcome.apps.is_empty());
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "return",
        "and nowhere else"
    ));
}

#[test]
fn what_keeps_visitors_out_keeps_all_of_a_server_out() {
    let app = "location / { proxy_pass http://127.0.0.1:1; }";
    for (inside, why) in [
        ("auth_request /auth;", "auth_request"),
        (
            "auth_basic 'x'; auth_basic_user_file /etc/u;",
            "were not handed over",
        ),
        (
            "location /admin { allow 10.0.0.1; deny all; proxy_pass http://127.0.0.1:1; }",
            "an app has one rule",
        ),
        (
            "location /x { internal; proxy_pass http://127.0.0.1:1; }",
            "internal",
        ),
        (
            "location /x { return 403; }",
            "keeps visitors out of a path",
        ),
        ("deny all;", "lets nobody in"),
        ("if ($http_x) { return 403; }", "`if`"),
        ("ssl_verify_client on;", "ssl_verify_client"),
        ("location ~ ^/admin { deny all; }", "deny all"),
        ("limit_except GET { deny all; }", "limit_except"),
        ("allow banana; deny all;", "no address"),
    ] {
        let outcome = server(&format!("{inside} {app}"));
        assert!(outcome.apps.is_empty(), "{inside}");
        assert!(
            is_said(&outcome, NoteKind::LeftOut, "server a.test", why),
            "{inside}: {:#?}",
            outcome.notes
        );
    }
    // What nobody serves anyway keeps nobody out.
    let outcome = server(&format!("location ~ /\\. {{ deny all; }} {app}"));
    assert_eq!(outcome.apps.len(), 1);
}

#[test]
fn addresses_users_rates_and_bounds_are_taken_over() {
    let conf = "limit_req_zone $binary_remote_addr zone=one:10m rate=10r/s;\nlimit_conn_zone $remote_addr zone=two:1m;\nserver { listen 443 ssl; server_name a.test; deny 10.1.0.0/16; allow 10.0.0.0/8; deny all; auth_basic \"Staff only\"; auth_basic_user_file users; limit_req zone=one burst=20 nodelay; limit_conn two 5; client_max_body_size 10m; proxy_read_timeout 120; gzip off; add_header Strict-Transport-Security \"max-age=31536000; includeSubDomains\"; location / { proxy_pass http://127.0.0.1:1; } }";
    let hash = "$2y$05$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyz01236";
    let inputs = [
        input("n.conf", conf),
        beside("users", &format!("# staff\nann:{hash}\n")),
    ];
    let outcome = made(&inputs);
    let user = format!("users = [\"ann:{hash}\"]");
    assert_eq!(
        lines(first(&outcome))[3..],
        [
            "[timeouts]",
            "response = \"2m\"",
            "[https]",
            "hsts = \"365d\"",
            "[traffic]",
            "rate_per_ip = \"10/s\"",
            "burst_per_ip = 20",
            "max_body = \"10M\"",
            "max_concurrent_per_ip = 5",
            "allow = [\"10.0.0.0/8\"]",
            "deny = [\"10.1.0.0/16\"]",
            "compress = false",
            "[traffic.auth]",
            "realm = \"Staff only\"",
            user.as_str(),
        ]
    );
}

#[test]
fn upstreams_with_methods() {
    let outcome = nginx(
        "upstream pool { ip_hash; server 10.0.0.1:80 weight=500; server 10.0.0.2 max_conns=8; server 10.0.0.3:80 backup; server unix:/x; }\nserver { listen 80; server_name a.test; location / { proxy_pass http://pool; } }",
    );
    assert_eq!(
        lines(first(&outcome))[2..],
        [
            "upstream = [{ url = \"http://10.0.0.1:80\", weight = 100 }, \"http://10.0.0.2:80\"]",
            "[balance]",
            "method = \"hash\"",
            "by = \"ip\"",
            "max_requests = 8",
        ]
    );
    assert!(is_said(&outcome, NoteKind::LeftOut, "server", "`backup`"));
}

#[test]
fn php_behind_fastcgi() {
    let outcome = server(
        "root /var/www/html; index index.php; location / { try_files $uri $uri/ /index.php?$args; } location ~ \\.php$ { include fastcgi_params; fastcgi_index index.php; fastcgi_param SCRIPT_FILENAME $document_root$fastcgi_script_name; fastcgi_pass 127.0.0.1:9000; }",
    );
    assert_eq!(
        lines(first(&outcome)),
        [
            "name = \"a\"",
            "domains = [\"a.test\"]",
            "upstream = [\"fastcgi://127.0.0.1:9000\"]",
            "[fastcgi]",
            "root = \"/var/www/html\"",
            "index = \"index.php\"",
        ]
    );
}

#[test]
fn names_and_places_that_are_not_hosts() {
    let outcome =
        nginx("server { listen 8080; server_name _ ~^x .b.test; location / { root /x; } }");
    assert!(
        first(&outcome)
            .toml
            .contains("domains = [\"b.test\", \"*.b.test\"]")
    );
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "listen",
        "two addresses"
    ));
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "server_name",
        "is no host"
    ));
}

#[test]
fn included_files_are_put_in_their_place() {
    let inputs = [
        input(
            "nginx.conf",
            "user x;\nhttp {\n  client_max_body_size 5m;\n  include mime.types;\n  include /etc/nginx/conf.d/*.conf;\n  include gone.conf;\n}\n",
        ),
        input(
            "conf.d/a.conf",
            "server { listen 80; server_name a.test; location / { proxy_pass http://127.0.0.1:1; } }",
        ),
    ];
    let outcome = made(&inputs);
    assert_eq!(outcome.apps.len(), 1);
    assert!(first(&outcome).toml.contains("max_body = \"5M\""));
    assert!(is_said(&outcome, NoteKind::Used, "include", "by itself"));
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "include",
        "gone.conf was not handed over"
    ));
    assert_eq!(note(&outcome, NoteKind::LeftOut, "user").line, 1);
}

#[test]
fn files_that_include_each_other_are_found() {
    let inputs = [
        input("a.conf", "http { include b.conf; }\n"),
        beside("b.conf", "include a.conf;\n"),
    ];
    let found = wrong(&inputs);
    assert!(
        found.starts_with("b.conf:1:1: a.conf includes itself"),
        "{found}"
    );
}

#[test]
fn what_is_not_known_is_named_with_its_place() {
    let outcome = nginx(
        "server {\n  listen 80;\n  server_name a.test;\n  banana on;\n  location / {\n    proxy_pass http://127.0.0.1:1;\n    cherry { x y; }\n  }\n}\n",
    );
    let found = note(&outcome, NoteKind::LeftOut, "banana");
    assert_eq!((found.line, found.column), (4, 3));
    assert_eq!(note(&outcome, NoteKind::LeftOut, "cherry").line, 7);
    assert_eq!(note(&outcome, NoteKind::LeftOut, "x").line, 7);
}

#[test]
fn rewrites_are_refused() {
    let outcome = server(
        "location /a { rewrite ^/a/(.*)$ /$1 break; proxy_pass http://127.0.0.1:1; } location / { proxy_pass http://127.0.0.1:2; }",
    );
    assert_eq!(outcome.apps.len(), 1);
    assert!(first(&outcome).toml.contains(":2\"]"));
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "rewrite",
        "not rewritten"
    ));
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "location /a",
        "not served by itself"
    ));
}

#[test]
fn containers_of_one_program_behind_one_name_are_instances() {
    let compose = "services:\n  n1: {image: me/x, ports: ['8001:80']}\n  n2: {image: me/x, ports: ['8002:80']}\n  n3: {image: me/x, ports: ['8003:80']}\n";
    let conf = "upstream pool { server 127.0.0.1:8001 weight=2; server 127.0.0.1:8002; server 127.0.0.1:8003; }\nserver { listen 80; server_name a.test; location / { uwsgi_pass pool; } }";
    let outcome = made(&[input("compose.yml", compose), input("n.conf", conf)]);
    assert_eq!(outcome.apps.len(), 1);
    assert_eq!(
        lines(first(&outcome)),
        [
            "name = \"n1\"",
            "domains = [\"a.test\"]",
            "image = \"me/x\"",
            "protocol = \"uwsgi\"",
            "port = 80",
            "instances = 3"
        ]
    );
    assert!(is_said(
        &outcome,
        NoteKind::LeftOut,
        "location /",
        "weights are not needed"
    ));
}

#[test]
fn a_container_is_found_by_its_name() {
    let compose = "services:\n  backend: {image: me/x}\n  proxy: {image: nginx}\n";
    let conf =
        "server { listen 80; server_name a.test; location / { proxy_pass http://backend:5000; } }";
    let outcome = made(&[input("compose.yml", compose), input("n.conf", conf)]);
    let toml = &app(&outcome, "shop-backend").toml;
    assert!(
        toml.contains("domains = [\"a.test\"]") && toml.contains("port = 5000"),
        "{toml}"
    );
}

#[test]
fn a_program_of_systemd_is_found_by_its_port() {
    let unit = "[Service]\nWorkingDirectory=/srv/shop\nExecStart=/srv/shop/venv/bin/gunicorn -b 127.0.0.1:8000 shop.wsgi\n";
    let conf = "server { listen 80; server_name a.test; location / { proxy_pass http://localhost:8000; } location /static/ { alias /srv/shop/static/; } }";
    let outcome = made(&[input("n.conf", conf), input("shop.service", unit)]);
    assert_eq!(
        lines(app(&outcome, "shop")),
        [
            "name = \"shop\"",
            "domains = [\"a.test\"]",
            "command = [\"gunicorn\", \"-b\", \"127.0.0.1:8000\", \"shop.wsgi\"]",
            "port = 8000",
            "share = { \"/static\" = \"a-static\" }",
        ]
    );
}
