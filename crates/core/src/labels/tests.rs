use super::*;
use proptest::prelude::{any, proptest};
use std::iter::repeat_n;

/// A container that runs in one network; of the labels' names `traefik.` is left out.
fn container(name: &str, labels: &[(&str, &str)]) -> Container {
    Container {
        id: format!("{name:0>64}"),
        name: name.into(),
        created: 0,
        compose: None,
        networks: vec![Attached {
            network: "web".into(),
            address: Ok("172.18.0.2".parse().expect("an address")),
        }],
        ports: vec![9000, 8000],
        labels: labels
            .iter()
            .map(|(key, value)| (format!("traefik.{key}"), (*value).to_owned()))
            .collect(),
        is_cut: false,
        waits: None,
    }
}

fn compose(name: &str, service: &str, created: i64, labels: &[(&str, &str)]) -> Container {
    Container {
        compose: Some(("shop".into(), service.into())),
        created,
        ..container(name, labels)
    }
}

fn rule(text: &str) -> Result<String, String> {
    let list = rule::parse(text)?;
    let words: Vec<String> = list.iter().map(ToString::to_string).collect();
    Ok(words.join(" "))
}

#[test]
fn rules_become_hosts_with_paths() {
    for (text, expected) in [
        ("Host(`a.test`)", "a.test"),
        ("Host(\"a.test\")", "a.test"),
        ("  Host ( `A.Test` )\n", "a.test"),
        ("Host(`a.test`, `b.test`)", "a.test b.test"),
        ("Host(`a.test`) || Host(`b.test`)", "a.test b.test"),
        ("Host(`a.test`) || Host(`a.test`)", "a.test"),
        ("HostHeader(`a.test`)", "a.test"),
        ("host(`a.test`)", "a.test"),
        ("Host(`a.test`) && PathPrefix(`/api`)", "a.test/api"),
        ("PathPrefix(`/api/`) && Host(`a.test`)", "a.test/api"),
        ("Host(`a.test`) && PathPrefix(`/`)", "a.test"),
        (
            "Host(`a.test`) && PathPrefix(`/a`, `/b`)",
            "a.test/a a.test/b",
        ),
        (
            "Host(`a.test`) && (PathPrefix(`/a`) || PathPrefix(`/b`))",
            "a.test/a a.test/b",
        ),
        // `&&` binds closer.
        (
            "Host(`a.test`) || Host(`b.test`) && PathPrefix(`/b`)",
            "a.test b.test/b",
        ),
        (
            "(Host(`a.test`) || Host(`b.test`)) && PathPrefix(`/b`)",
            "a.test/b b.test/b",
        ),
        ("((Host(`a.test`)))", "a.test"),
        (
            "Host(`a.test`) && PathPrefix(`/a`) && PathPrefix(`/a/b`)",
            "a.test/a/b",
        ),
        ("Host(`a.test`) && Host(`a.test`)", "a.test"),
        // What cannot be is no route, as long as something can.
        (
            "Host(`a.test`) && (Host(`b.test`) || PathPrefix(`/x`))",
            "a.test/x",
        ),
        // A path alone, where what lies below it is meant, too.
        (
            "Host(`a.test`) && (Path(`/a`) || PathPrefix(`/a/`))",
            "a.test/a",
        ),
        (
            "Host(`a.test`) && (Path(`/a/b`) || PathPrefix(`/a`))",
            "a.test/a",
        ),
        ("Host(`a.test`) || Host(`a.test`) && Path(`/x`)", "a.test"),
    ] {
        assert_eq!(rule(text).as_deref(), Ok(expected), "{text}");
    }
}

#[test]
fn rules_that_cannot_be_served_say_why() {
    for (text, why) in [
        ("", "missing at the end"),
        ("   ", "missing at the end"),
        ("Host", "`(` is missing"),
        ("Host(", "`)` is missing"),
        ("Host()", "takes texts in backticks, not `)`"),
        ("Host(`a.test`", "`)` is missing"),
        ("Host(`a.test`,)", "not `)`"),
        ("Host(`a.test`))", "`)` is not expected"),
        ("Host(`a.test`) &&", "missing at the end"),
        ("&& Host(`a.test`)", "`&&` is not expected"),
        ("Host(`a.test`) & Host(`b.test`)", "`&` means nothing"),
        ("Host(`a.test`) Host(`b.test`)", "`Host` is not expected"),
        ("Host(`a.test`) && (PathPrefix(`/a`)", "`)` is missing"),
        ("Host('a.test')", "single quotes"),
        ("Host(`a.test)", "backtick is not closed"),
        ("Host(\"a.test)", "quotation mark is not closed"),
        (r#"Host("a\.test")"#, "backslash"),
        ("Host:a.test", "Traefik 1"),
        ("Host(a)", "takes texts in backticks, not `a`"),
        ("Host(a.test)", "`.` means nothing"),
        (
            "Host(Host(`a.test`))",
            "takes texts in backticks, not `Host`",
        ),
        ("!Host(`a.test`)", "`!` is not served"),
        ("Host(`a.test`) && !PathPrefix(`/a`)", "`!` is not served"),
        ("HostRegexp(`{any:.+}`)", "HostRegexp is not served"),
        ("HostRegexp(`^.+$`) && PathPrefix(`/a`)", "HostRegexp"),
        ("Host(`a.test`) && Method(`GET`)", "Method is not served"),
        (
            "Host(`a.test`) && Headers(`X-A`, `b`)",
            "Headers is not served",
        ),
        (
            "Host(`a.test`) && ClientIP(`10.0.0.0/8`)",
            "ClientIP is not served",
        ),
        ("Host(`a.test`) && Banana(`x`)", "`Banana` is not known"),
        ("PathPrefix(`/a`)", "names no host"),
        ("Host(`a.test`) || PathPrefix(`/a`)", "names no host"),
        ("Host(`a.test`) && Path(`/a`)", "write PathPrefix(`/a`)"),
        ("Host(`a.test`) && Host(`b.test`)", "no request can meet it"),
        ("Host(`*.test`)", "name each"),
        ("Host(`a b`)", "is no host"),
        ("Host(`a.test:80`)", "is no host"),
        ("Host(``)", "is no host"),
        ("Host(`a.test`) && PathPrefix(`a`)", "is no plain path"),
        (
            "Host(`a.test`) && PathPrefix(`/{id:[0-9]+}`)",
            "is no plain path",
        ),
        ("Host(`a.test`) && PathPrefix(`/../x`)", "is no plain path"),
    ] {
        let said = rule(text).expect_err(text);
        assert!(said.contains(why), "{text}: {said}");
    }
}

#[test]
fn rules_are_bounded() {
    let nested = |depth: usize| {
        let (open, close) = ("(".repeat(depth), ")".repeat(depth));
        format!("{open}Host(`a.test`){close}")
    };
    assert!(rule(&nested(16)).is_ok() && rule(&nested(17)).is_err());
    let hosts = |count: usize| {
        let hosts: Vec<String> = (0..count).map(|n| format!("Host(`h{n}.test`)")).collect();
        hosts.join(" || ")
    };
    assert!(rule(&hosts(64)).is_ok() && rule(&hosts(65)).is_err());
    let texts = |count: usize| repeat_n("`/a`", count).collect::<Vec<_>>().join(",");
    let many = format!("Host({0}) && PathPrefix({0})", texts(9));
    assert!(rule(&many.replacen("`/a`", "`a.test`", 9)).is_err());
    assert!(rule(&format!("Host(`{}`)", "a".repeat(5000))).is_err());
}

/// What `hutong external` would show: routers with their routes, a star where the prefix is cut off.
fn shown(externals: &[External]) -> Vec<String> {
    let router = |router: &Router| {
        let routes = router.routes.iter();
        let routes: Vec<String> = routes
            .map(|route| format!("{}{}", route.domain, if route.strip { "*" } else { "" }))
            .collect();
        format!("{}: {}", router.name, routes.join(" "))
    };
    externals
        .iter()
        .flat_map(|one| &one.routers)
        .map(router)
        .collect()
}

fn one(labels: &[(&str, &str)]) -> External {
    let mut all = read(&[container("web", labels)]);
    assert_eq!(all.len(), 1);
    all.remove(0)
}

/// The only router, where there is nothing to say.
fn router(labels: &[(&str, &str)]) -> Router {
    let mut external = one(labels);
    assert_eq!(external.notes, Vec::<String>::new());
    assert_eq!(external.routers.len(), 1, "{external:?}");
    external.routers.remove(0)
}

/// What is said of a container whose router is left out.
fn refused(labels: &[(&str, &str)]) -> String {
    let external = one(labels);
    assert!(external.routers.is_empty(), "{external:?}");
    external.notes.join("\n")
}

const RULE: (&str, &str) = ("http.routers.web.rule", "Host(`a.test`)");

#[test]
fn the_labels_of_the_guides_back_end_are_served() {
    let router = router(&[
        ("enable", "true"),
        (
            "http.routers.orientation-system-be.rule",
            "Host(`orientation-system.be.wizzstudio.com`)",
        ),
        ("http.routers.orientation-system-be.tls", "true"),
        (
            "http.services.orientation-system-be.loadbalancer.server.port",
            "80",
        ),
    ]);
    assert_eq!(router.name, "web:orientation-system-be@docker");
    let route = &router.routes[0].domain;
    assert_eq!(route.to_string(), "orientation-system.be.wizzstudio.com");
    assert!(router.certificate && router.redirect && !router.compress);
    assert_eq!(router.targets[0].address.to_string(), "172.18.0.2:80");
    assert!(is_external(&router.name));
}

#[test]
fn a_container_says_little_and_is_served() {
    let router = router(&[RULE]);
    // The lowest of its ports.
    assert_eq!(router.targets[0].address.port(), 8000);
    assert!(!router.certificate && !router.redirect && !router.sticky);
    let labels = [
        ("HTTP.Routers.Web.Rule", "Host(`a.test`)"),
        ("http.routers.web.Service", "Main"),
        ("http.services.main.LoadBalancer.Server.Port", " 81 "),
        ("http.services.main.loadbalancer.server.scheme", "h2c"),
        ("http.services.main.loadbalancer.sticky.cookie", "true"),
    ];
    let router = self::router(&labels);
    assert_eq!(router.targets[0].address.port(), 81);
    assert!(router.sticky && router.protocol == Protocol::H2c);
}

#[test]
fn what_keeps_visitors_out_is_never_left_out() {
    const M: (&str, &str) = ("http.routers.web.middlewares", "m");
    let cases: &[(&[(&str, &str)], &str)] = &[
        (
            &[("http.routers.web.middlewares", "auth@file")],
            "Traefik's own",
        ),
        (&[M], "is in no label"),
        (
            &[
                M,
                ("http.middlewares.m.ipallowlist.sourcerange", "10.0.0.0/8"),
            ],
            "its kind `ipallowlist` is not known here",
        ),
        (
            &[M, ("http.middlewares.m.basicauth.users", "me:$apr1$x$y")],
            "not kept as bcrypt",
        ),
        (
            &[
                M,
                (
                    "http.middlewares.m.basicauth.users",
                    "root:$2b$12$aur8GtnfMi",
                ),
            ],
            "this is no user",
        ),
        (
            &[M, ("http.middlewares.m.basicauth.users", "me:$$2y$$05$$x")],
            "compose files only",
        ),
        (
            &[M, ("http.middlewares.m.basicauth.users", " , ")],
            "1 to 100 users",
        ),
        (
            &[M, ("http.middlewares.m.basicauth.usersfile", "/x")],
            "`usersfile` is not understood",
        ),
        (
            &[
                M,
                ("http.middlewares.m.compress", "true"),
                ("http.middlewares.m.basicauth.users", "x"),
            ],
            "of two kinds",
        ),
        (
            &[("http.routers.web.middleware", "auth")],
            "is not understood",
        ),
        (
            &[("http.routers.web.tls.options", "mtls@file")],
            "TLS options",
        ),
        (&[("http.routers.web.tls", "yes")], "`true` or `false`"),
        (
            &[("http.routers.web.service", "api@internal")],
            "Traefik's own",
        ),
        (&[("http.routers.web.service", "other")], "service other"),
        (
            &[("http.services.a.loadbalancer.server.scheme", "https")],
            "http or h2c",
        ),
        (
            &[("http.services.a.loadbalancer.server.port", "0")],
            "is no port",
        ),
        (
            &[("http.services.a.loadbalancer.server.url", "http://10.0.0.1")],
            "is not followed",
        ),
        (
            &[
                ("http.services.a.loadbalancer.server.port", "1"),
                ("http.services.b.loadbalancer.server.port", "2"),
            ],
            "which of its services",
        ),
        (&[("enable", "perhaps")], "`true` or `false`"),
        (
            &[("http.routers.WEB.rule", "Host(`b.test`)")],
            "is there twice",
        ),
    ];
    for (more, why) in cases {
        let said = refused(&[&[RULE][..], *more].concat());
        assert!(said.contains(*why), "{more:?}: {said}");
        // A password, or what is one by mistake, is not said.
        assert!(!said.contains("aur8"), "{said}");
    }
    let mut cut = container("web", &[RULE]);
    cut.is_cut = true;
    cut.labels.clear();
    let all = read(&[cut]);
    assert!(all[0].routers.is_empty() && all[0].notes[0].contains("too many"));
}

#[test]
fn what_is_not_understood_is_noted() {
    let external = one(&[
        RULE,
        ("http.routers.web.tls.domains[0].main", "*.test"),
        ("http.services.web.loadbalancer.server.port", "80"),
        ("http.services.web.loadbalancer.passhostheader", "false"),
        ("http.services.web.loadbalancer.healthcheck.path", "/up"),
        ("tcp.routers.db.rule", "HostSNI(`*`)"),
        ("frontend.rule", "Host:a.test"),
        ("banana", "yes"),
    ]);
    assert_eq!(external.routers.len(), 1);
    for (label, what) in [
        ("tls.domains[0].main", "hosts of the rule"),
        ("passhostheader", "is not understood"),
        ("healthcheck.path", "takes a connection"),
        ("tcp.routers.db.rule", "TCP"),
        ("frontend.rule", "Traefik 1"),
        ("traefik.banana", "is not understood"),
    ] {
        let said = |note: &String| note.contains(label) && note.contains(what);
        assert!(external.notes.iter().any(said), "{label}: {external:?}");
    }
    // One that is not asked for anything is shown all the same.
    assert!(refused(&[("enable", "true")]).contains("routers.NAME.rule"));
    assert!(refused(&[("http.routers.web.tls", "true")]).contains("it has no rule"));
}

#[test]
fn prefixes_are_cut_off_where_a_route_can() {
    let strip = |rule: &str, prefixes: &str| {
        let external = one(&[
            ("http.routers.web.rule", rule),
            ("http.routers.web.middlewares", "s@docker"),
            ("http.middlewares.s.stripprefix.prefixes", prefixes),
        ]);
        match external.routers.is_empty() {
            true => external.notes.join("\n"),
            false => shown(&[external])
                .join("\n")
                .replace("web:web@docker: ", ""),
        }
    };
    let api = "Host(`a.test`) && PathPrefix(`/api`)";
    assert_eq!(strip(api, "/api"), "a.test/api*");
    assert_eq!(strip(api, "/other, /api/"), "a.test/api*");
    assert_eq!(strip(api, "/other"), "a.test/api");
    assert_eq!(strip("Host(`a.test`)", "/api"), "a.test a.test/api*");
    // The first that fits is cut off, not the longest.
    assert_eq!(
        strip("Host(`a.test`)", "/api,/api/v1"),
        "a.test a.test/api*"
    );
    assert_eq!(
        strip("Host(`a.test`)", "/api/v1,/api"),
        "a.test a.test/api* a.test/api/v1*"
    );
    assert_eq!(strip("Host(`a.test`)", "/"), "a.test");
    let deep = "Host(`a.test`) && PathPrefix(`/api/v1`)";
    assert!(strip(deep, "/api").contains("only all of a route's path"));
    assert!(strip(api, "api").contains("is no plain path"));
    assert!(strip(api, "").contains("1 to 16 prefixes"));
}

#[test]
fn users_are_let_in_by_bcrypt() {
    let hash = "$2y$05$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyz01236";
    assert_eq!(hash.len(), 60);
    let users = format!("me:{hash}, you:{hash}");
    let external = one(&[
        RULE,
        ("http.routers.web.middlewares", "auth"),
        ("http.middlewares.auth.basicauth.users", users.as_str()),
        ("http.middlewares.auth.basicauth.realm", "Inside"),
        ("http.middlewares.auth.basicauth.removeheader", "true"),
    ]);
    assert_eq!(external.notes, Vec::<String>::new());
    let auth = external.routers[0].auth.as_ref().expect("users");
    assert_eq!((auth.users.len(), auth.realm.as_str()), (2, "Inside"));
}

#[test]
fn plain_and_secure_routers_are_one() {
    let pair = [
        RULE,
        ("http.routers.web.entrypoints", "web"),
        ("http.routers.web.middlewares", "up"),
        ("http.routers.safe.rule", "Host(`a.test`)"),
        ("http.routers.safe.entrypoints", "websecure"),
        ("http.routers.safe.tls.certresolver", "le"),
        ("http.middlewares.up.redirectscheme.scheme", "https"),
        ("http.middlewares.up.redirectscheme.permanent", "true"),
    ];
    let router = router(&pair);
    assert_eq!(router.name, "web:safe@docker");
    assert!(router.redirect && router.certificate);
    // Both serve the same: nobody is sent elsewhere.
    let same: Vec<(&str, &str)> = [&pair[..2], &pair[3..6]].concat();
    let router = self::router(&same);
    assert!(!router.redirect && router.certificate);
    // They differ: what HTTPS has is what counts.
    let differ = [
        &same[..],
        &[
            ("http.routers.web.middlewares", "c"),
            ("http.middlewares.c.compress", "true"),
        ],
    ];
    let external = one(&differ.concat());
    assert!(external.notes[0].contains("because they differ"));
    assert!(external.routers[0].redirect && external.routers.len() == 1);
    // On its own it leads to nobody: the one that is missing may be the one that asks for a password.
    let alone: Vec<(&str, &str)> = [&pair[..3], &pair[6..7]].concat();
    assert!(refused(&alone).contains("it only sends to HTTPS, and no router has a.test there"));
    let private = [
        ("http.routers.safe.entrypoints", "websecure-office"),
        ("http.routers.safe.middlewares", "who"),
        ("http.middlewares.who.basicauth.users", USER),
    ];
    let external = one(&[&pair[..], &private[..]].concat());
    assert!(external.routers.is_empty(), "{external:?}");
    assert_eq!(denied(&external), ["a.test"]);
    let both = self::router(&[RULE, ("http.routers.web.entrypoints", "web, websecure")]);
    assert!(!both.redirect && both.certificate);
}

const USER: &str = "me:$2y$05$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyz01236";
const OTHER: &str = "you:$2y$05$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyz01236";

/// Hosts and paths that nobody gets.
fn denied(external: &External) -> Vec<String> {
    external.denied.iter().map(ToString::to_string).collect()
}

#[test]
fn what_is_left_out_is_not_served_by_a_shorter_path() {
    let admin = (
        "http.routers.admin.rule",
        "Host(`a.test`) && PathPrefix(`/admin`)",
    );
    let external = one(&[RULE, admin, ("http.routers.admin.middlewares", "auth@file")]);
    assert_eq!(denied(&external), ["a.test/admin"]);
    assert_eq!(external.routers.len(), 1);
    // The same path twice, with two passwords.
    let users = |name: &'static str, middleware: &'static str| {
        [
            (name, middleware),
            ("http.middlewares.x.basicauth.users", USER),
            ("http.middlewares.y.basicauth.users", OTHER),
        ]
    };
    let twice = [
        &[RULE, admin, ("http.routers.other.rule", admin.1)][..],
        &users("http.routers.admin.middlewares", "x")[..],
        &[("http.routers.other.middlewares", "y")],
    ];
    let external = one(&twice.concat());
    assert_eq!(denied(&external), ["a.test/admin"]);
    assert_eq!(
        shown(&[external]).join(" "),
        "web:admin@docker:  web:other@docker:  web:web@docker: a.test"
    );
    // What it would have is not known: nothing is served.
    let external = one(&[
        RULE,
        ("http.routers.odd.rule", "HostRegexp(`{any:.+}`)"),
        ("http.routers.odd.middlewares", "auth@file"),
    ]);
    assert_eq!(denied(&external), ["a.test"]);
    assert!(external.routers.is_empty() && external.notes.len() == 2);
    // Somebody else's host stays theirs.
    let mut all = [external];
    settle(&mut all, |host| (host == "a.test").then(|| "shop".into()));
    assert!(all[0].denied.is_empty());
}

#[test]
fn a_service_of_compose_is_one_while_its_labels_are() {
    let (old, new) = ([RULE], [("http.routers.web.rule", "Host(`b.test`)")]);
    let mut second = compose("shop-web-2", "web", 2, &old);
    second.waits = Some("it is unhealthy".into());
    let all = read(&[
        second,
        compose("shop-web-1", "web", 1, &old),
        compose("shop-web-3", "web", 3, &new),
        compose("shop-db-1", "db", 0, &[("enable", "true")]),
    ]);
    let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["shop/db", "shop/web", "shop/web~2"]);
    assert_eq!(all[1].containers, ["shop-web-1", "shop-web-2"]);
    let targets = &all[1].routers[0].targets;
    assert_eq!(targets.len(), 2);
    assert!(targets[0].waits.is_none() && targets[1].waits.is_some());
}

#[test]
fn middlewares_are_found_in_the_same_project_only() {
    let wants = [RULE, ("http.routers.web.middlewares", "c")];
    let has = [("enable", "true"), ("http.middlewares.c.compress", "true")];
    let all = read(&[
        compose("one", "one", 0, &has),
        compose("web", "web", 1, &wants),
    ]);
    assert!(all[1].routers[0].compress);
    let all = read(&[container("one", &has), compose("web", "web", 1, &wants)]);
    assert!(all[1].routers.is_empty());
}

#[test]
fn only_private_addresses_in_known_networks_are_dialled() {
    let with = |networks: &[(&str, Result<&str, &str>)], label: Option<&str>| {
        let mut one = compose("web", "web", 0, &[RULE]);
        let named = label.map(|name| ("traefik.docker.network".to_owned(), name.to_owned()));
        one.labels.extend(named);
        one.networks = networks
            .iter()
            .map(|(network, address)| Attached {
                network: (*network).into(),
                address: address
                    .map(|ip| ip.parse().expect("an address"))
                    .map_err(str::to_owned),
            })
            .collect();
        let external = read(&[one]).remove(0);
        let targets = &external.routers[0].targets;
        match targets.first() {
            Some(target) => target.address.ip().to_string(),
            None => external.notes.join("\n"),
        }
    };
    let two = [("a", Ok("172.18.0.2")), ("shop_b", Ok("172.19.0.2"))];
    assert_eq!(with(&two, None), "172.18.0.2");
    assert_eq!(with(&two, Some("shop_b")), "172.19.0.2");
    assert_eq!(with(&two, Some("b")), "172.19.0.2");
    assert!(with(&two, Some("c")).contains("not in the network c"));
    let odd = [("a", Err("it is an overlay")), ("b", Ok("fd00::2"))];
    assert_eq!(with(&odd, None), "fd00::2");
    assert!(with(&odd, Some("a")).contains("it is an overlay"));
    assert!(with(&[], None).contains("it is in no network"));
    for out in [
        "127.0.0.1",
        "8.8.8.8",
        "169.254.169.254",
        "100.100.100.200",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.0",
    ] {
        assert!(with(&[("a", Ok(out))], None).contains("no private address"));
    }
    let mut silent = container("web", &[RULE]);
    silent.ports.clear();
    assert!(read(&[silent])[0].notes[0].contains("names no port"));
}

#[test]
fn a_host_has_one_owner() {
    let label = |rule: &'static str| [("http.routers.web.rule", rule)];
    let named = |name: &str, created, rule| Container {
        created,
        ..container(name, &label(rule))
    };
    let mut all = read(&[
        named("late", 2, "Host(`a.test`) || Host(`b.test`)"),
        named("early", 1, "Host(`a.test`)"),
        named("path", 3, "Host(`a.test`) && PathPrefix(`/api`)"),
        named("ours", 4, "Host(`shop.test`) || Host(`c.test`)"),
    ]);
    settle(&mut all, |host| {
        (host == "shop.test").then(|| "shop".into())
    });
    assert_eq!(
        shown(&all),
        [
            "early:web@docker: a.test",
            "late:web@docker: b.test",
            "path:web@docker: a.test/api",
            "ours:web@docker: c.test"
        ]
    );
    assert_eq!(all[1].notes, ["a.test waits: early has it"]);
    assert!(all[3].notes[0].contains("belongs to the app shop"));
}

#[test]
fn priorities_are_noted_where_they_would_matter() {
    let with = |priority: &str| {
        let labels = [
            RULE,
            ("http.routers.web.priority", priority),
            (
                "http.routers.api.rule",
                "Host(`a.test`) && PathPrefix(`/api`)",
            ),
        ];
        one(&labels).notes
    };
    assert_eq!(with("1"), Vec::<String>::new());
    assert_eq!(with("0"), Vec::<String>::new());
    assert!(with("1000")[0].contains("priority of web:web@docker is not followed"));
    assert!(with("many")[0].contains("priority is not understood"));
}

#[test]
fn much_is_bounded() {
    let hosts: Vec<String> = (0..60).map(|n| format!("`h{n}.test`")).collect();
    let rule = format!("Host({})", hosts.join(","));
    let keys: Vec<String> = (0..50).map(|n| format!("http.routers.r{n}.rule")).collect();
    let labels: Vec<(&str, &str)> = keys
        .iter()
        .map(|key| (key.as_str(), rule.as_str()))
        .collect();
    let external = one(&labels);
    let routes: usize = external.routers.iter().map(|one| one.routes.len()).sum();
    assert_eq!((routes, external.denied.len()), (0, 60));
    assert!(external.notes[0].contains("more than 200 routes"));
    let keys: Vec<String> = (0..200).map(|n| format!("banana{n}")).collect();
    let labels: Vec<(&str, &str)> = keys.iter().map(|key| (key.as_str(), "")).collect();
    assert!(one(&labels).notes.len() <= MAX_NOTES + 1);
}

#[test]
fn names_are_harmless() {
    let odd = "http.routers.a b\u{1b}[2J/\u{202e}.rule";
    let router = router(&[(odd, "Host(`a.test`)")]);
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:@~/".contains(c);
    assert!(router.name.chars().all(plain), "{}", router.name);
    assert!(is_wanted(None, true) && !is_wanted(None, false));
    assert!(is_wanted(Some("true"), false) && !is_wanted(Some("False"), true));
}

proptest! {
    #[test]
    fn no_rule_makes_it_panic(text in "(?s).{0,200}") {
        let _ = rule::parse(&text);
    }

    #[test]
    fn no_odd_rule_makes_it_panic(text in r#"((Host|Path|PathPrefix|HostRegexp|X)?[(]?([`"](/|a[.]b|/x/y|\*|\\")?[`"]?,?)?[)]?( ?(&&|[|][|]|!|[(]|[)]) ?)?){0,12}"#) {
        if let Ok(list) = rule::parse(&text) {
            assert!((1..=64).contains(&list.len()));
        }
    }

    #[test]
    fn no_labels_make_it_panic(labels in proptest::collection::btree_map("traefik[.](http[.](routers|services|middlewares)[.].?[.](rule|service|tls|priority|middlewares|entrypoints|loadbalancer[.]server[.]port|stripprefix[.]prefixes|basicauth[.]users|compress)|.{0,30})", "(?s)(Host[(]`a`[)]|a,b|/a,/b|true|.{0,30})", 0..8), cut in any::<bool>()) {
        let mut one = container("x", &[]);
        one.labels = labels;
        one.is_cut = cut;
        let mut all = read(&[one.clone(), one]);
        settle(&mut all, |_| None);
        assert_eq!(all.len(), 2);
    }
}
