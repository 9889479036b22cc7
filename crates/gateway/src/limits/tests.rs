use super::*;
use hutong_http::request::Scan;
use hutong_ipc::gateway::{Rules as WireRules, Traffic, TrafficRoute};

fn request(path: &str, fields: &str) -> RequestHead {
    request_of_bytes(path, fields.as_bytes())
}

fn request_of_bytes(path: &str, fields: &[u8]) -> RequestHead {
    let mut head = RequestHead::default();
    let line = format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n");
    let text = [line.as_bytes(), fields, b"\r\n"].concat();
    head.parse(&text, &mut Scan::default()).expect("sound");
    head
}

fn rate(per_second: u64, burst: u32) -> Option<wire::Rate> {
    Some(wire::Rate {
        interval_ns: 1_000_000_000 / per_second,
        burst,
    })
}

#[test]
fn each_address_has_a_bucket_and_each_path_its_own() {
    let traffic = Traffic {
        rules: WireRules {
            rate_per_ip: rate(1, 3),
            ..WireRules::default()
        },
        routes: vec![TrafficRoute {
            prefix: "/login".into(),
            class: Class::Core,
            response_timeout_ms: Some(800),
            open: false,
            rules: WireRules {
                rate_per_ip: rate(1, 1),
                max_body: Some(10),
                ..WireRules::default()
            },
        }],
        ..Traffic::default()
    };
    crate::date::tick();
    let (limits, guard) = (Limits::new(), Guard::new("a", &traffic, None));
    let ask = |ip: &str, path: &str| guard.admit(&limits, &Peer::plain(ip), &request(path, ""));
    let terms = ask("10.0.0.1", "/login/x").expect("the first");
    assert_eq!(terms.class, Class::Core);
    assert_eq!(terms.response_timeout, Some(Duration::from_millis(800)));
    assert_eq!(terms.max_body, Some(10));
    let refused = ask("10.0.0.1", "/login").expect_err("the second");
    assert_eq!((refused.status, refused.retry_after_s), (429, Some(1)));
    assert!(
        refused
            .fields
            .contains(&("ratelimit-policy", "\"ip\";q=1;w=1".into()))
    );
    // The refused one cost the app's bucket nothing: two of three are left.
    assert!(ask("10.0.0.1", "/").is_ok());
    assert!(ask("10.0.0.1", "/loginx").is_ok());
    assert_eq!(ask("10.0.0.1", "/").expect_err("the fourth").status, 429);
    assert!(ask("10.0.0.2", "/login").is_ok());
    // However it is written, it may be the same path to the app.
    for path in [
        "/%2Flogin",
        "//login",
        "/x%2F..%2Flogin",
        "/%6Cogin",
        "/login/..%2Fx",
        "/login;a",
    ] {
        assert_eq!(ask("10.0.0.2", path).expect_err(path).status, 429);
    }
}

#[test]
fn an_open_path_is_open_in_every_reading() {
    let traffic = Traffic {
        routes: vec![TrafficRoute {
            prefix: "/open".into(),
            class: Class::Normal,
            response_timeout_ms: None,
            open: true,
            rules: WireRules::default(),
        }],
        ..Traffic::default()
    };
    let guard = Guard::new("a", &traffic, None);
    let is_open = |path: &str| guard.is_open(request(path, "").path());
    assert!(is_open("/open") && is_open("/open/x%20y") && is_open("/open/%2Fx"));
    for path in [
        "/",
        "/openx",
        "/admin/..%2Fopen",
        "/a.php/..%2F..%2Fopen",
        "/open/..%2Fadmin",
        "/open/..;/admin",
        "/open%2F..%2Fadmin",
        "//open/../admin",
        "/x;/open",
    ] {
        assert!(!is_open(path), "{path}");
    }
}

#[test]
fn addresses_are_let_in_or_not() {
    let traffic = Traffic {
        allow: vec!["10.0.0.0/8".into(), "2001:db8::/32".into()],
        deny: vec!["10.9.0.0/16".into()],
        ..Traffic::default()
    };
    crate::date::tick();
    let (limits, guard) = (Limits::new(), Guard::new("a", &traffic, None));
    let is_let_in = |ip: &str| {
        guard
            .admit(&limits, &Peer::plain(ip), &request("/", ""))
            .is_ok()
    };
    assert!(is_let_in("10.1.2.3") && is_let_in("2001:db8::1"));
    assert!(!is_let_in("10.9.0.1") && !is_let_in("11.0.0.1") && !is_let_in("::1"));
}

#[test]
fn bad_answers_make_a_ban_that_another_table_keeps() {
    let traffic = Traffic {
        ban: Some(wire::Ban {
            after: 3,
            within_s: 60,
            period_s: 600,
        }),
        ..Traffic::default()
    };
    crate::date::tick();
    let (limits, guard) = (Limits::new(), Guard::new("a", &traffic, None));
    let ip = "10.0.0.1".parse().expect("an address");
    for status in [404, 200, 499, 500, 403] {
        assert!(guard.note(ip, status).is_none());
    }
    assert!(guard.note(ip, 429).is_some());
    let next = Guard::new("a", &traffic, Some(&guard));
    let refused = next.admit(&limits, &Peer::plain("10.0.0.1"), &request("/", ""));
    let page = refused.expect_err("banned");
    assert_eq!(page.status, 403);
    assert!(page.retry_after_s.is_some_and(|s| (590..=600).contains(&s)) && page.close);
    assert!(
        next.admit(&limits, &Peer::plain("10.0.0.2"), &request("/", ""))
            .is_ok()
    );
}

#[test]
fn only_trusted_proxies_say_who_the_visitor_is() {
    let trusted = Networks::parse(&["10.0.0.0/8".into()]).expect("networks");
    let seen = |from: &str, fields: &str| {
        let head = request("/", fields);
        let found = behind(&trusted, &Peer::plain(from), &head)?;
        Some((
            found.text.clone(),
            found.forwarded_for().to_owned(),
            found.scheme(),
        ))
    };
    let chain = "X-Forwarded-For: 6.6.6.6, 1.2.3.4, 10.0.0.9\r\nX-Forwarded-Proto: https\r\n";
    assert_eq!(seen("11.0.0.1", chain), None);
    let (ip, all, scheme) = seen("10.0.0.1", chain).expect("a proxy");
    assert_eq!(ip, "1.2.3.4");
    // What the visitor says of itself is not passed on.
    assert_eq!(all, "1.2.3.4, 10.0.0.9, 10.0.0.1");
    assert_eq!(scheme, "https");
    for (said, visitor) in [
        ("x, 1.2.3.4", "1.2.3.4"),
        ("10.0.0.7, 1.2.3.4:5678", "1.2.3.4"),
        ("[2001:db8::1]:443, 10.0.0.9", "2001:db8::1"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        // Nonsense of a trusted proxy's own is as good as nothing.
        ("1.2.3.4, x", "10.0.0.1"),
        ("", "10.0.0.1"),
    ] {
        let fields = format!("X-Forwarded-For: {said}\r\n");
        let (ip, _, _) = seen("10.0.0.1", &fields).expect("a proxy");
        assert_eq!(ip, visitor, "{said}");
    }
    // What is no text spoils itself, not what a trusted proxy adds to it.
    let head = request_of_bytes("/", b"X-Forwarded-For: \xff, 1.2.3.4\r\n");
    let found = behind(&trusted, &Peer::plain("10.0.0.1"), &head).expect("a proxy");
    assert_eq!(found.text, "1.2.3.4");
    assert_eq!(found.forwarded_for(), "1.2.3.4, 10.0.0.1");
}
