use super::*;

/// From `name: value | name: value`.
fn fields(text: &str) -> Fields {
    let mut fields = Fields::default();
    for line in text.split('|').filter(|line| !line.trim().is_empty()) {
        let (name, value) = line.split_once(':').expect("a colon");
        fields.push(name.trim().as_bytes(), value.trim().as_bytes());
    }
    fields
}

fn text(fields: &Fields) -> String {
    let line = |field: hutong_http::fields::Field<'_>| {
        let part = |text: &[u8]| String::from_utf8_lossy(text).into_owned();
        format!("{}: {}\n", part(field.name), part(field.value))
    };
    fields.iter().map(line).collect()
}

#[test]
fn media_types() {
    for good in [
        "text/html",
        "text/html; charset=utf-8",
        "TEXT/HTML;charset=utf-8",
        " text/css ",
        "text/plain",
        "text/javascript",
        "text/markdown",
        "text/cache-manifest",
        "application/json",
        "application/json;charset=UTF-8",
        "Application/JSON",
        "application/javascript",
        "application/x-javascript",
        "application/xml",
        "application/xhtml+xml",
        "application/rss+xml; charset=utf-8",
        "application/problem+json",
        "application/ld+json",
        "application/vnd.api+json",
        "application/manifest+json",
        "application/x-web-app-manifest+json",
        "application/something+text",
        "application/wasm",
        "image/svg+xml",
        "font/ttf",
        "font/otf",
        "application/vnd.ms-fontobject",
        "application/font-sfnt",
    ] {
        assert!(compresses_well(good.as_bytes()), "{good}");
    }
    for bad in [
        "text/event-stream",
        "Text/Event-Stream; charset=utf-8",
        "image/png",
        "image/jpeg",
        "image/webp",
        "image/x-icon",
        "video/mp4",
        "audio/mpeg",
        "font/woff",
        "font/woff2",
        "application/font-woff",
        "application/zip",
        "application/gzip",
        "application/epub+zip",
        "application/pdf",
        "application/octet-stream",
        "application/grpc",
        "application/jsonp",
        "application/x+jsonl",
        "multipart/x-mixed-replace",
        "text",
        "json",
        "+jso",
        "",
        ";text/html",
        "x; text/html",
    ] {
        assert!(!compresses_well(bad.as_bytes()), "{bad}");
    }
}

#[test]
fn what_is_worth_it() {
    let long = Some(4096);
    for (status, more, length, worth) in [
        (200, "", long, true),
        (200, "", None, true),
        (200, "", Some(1024), true),
        (200, "", Some(1023), false),
        (200, "", Some(0), false),
        (201, "", long, true),
        (202, "", long, true),
        (203, "", long, true),
        (207, "", long, true),
        (404, "", long, true),
        (500, "", None, true),
        (503, "", long, true),
        (101, "", None, false),
        (103, "", None, false),
        (204, "", None, false),
        (205, "", None, false),
        (206, "", long, false),
        (301, "", long, false),
        (304, "", None, false),
        (600, "", long, false),
        (200, "Content-Encoding: gzip", long, false),
        (200, "Content-Encoding: br, identity", long, false),
        (200, "Content-Encoding: unheard-of", long, false),
        (200, "Content-Encoding: Identity", long, true),
        (200, "Content-Encoding:", long, true),
        (
            200,
            "Content-Encoding: identity | Content-Encoding: x",
            long,
            false,
        ),
        (200, "Content-Range: bytes 0-9/10", long, false),
        (416, "Content-Range: bytes */10", long, false),
        (200, "Cache-Control: no-transform", long, false),
        (
            200,
            "Cache-Control: a | Cache-Control: x,No-Transform ,y",
            long,
            false,
        ),
        (200, "Cache-Control: max-age=1, public", long, true),
        (200, "Cache-Control: no-transformation", long, true),
    ] {
        let answer = fields(&format!("Content-Type: text/html | {more}"));
        let said = is_worth_it(status, &answer, length);
        assert_eq!(said, worth, "{status} {more} {length:?}");
    }
    assert!(!is_worth_it(200, &Fields::default(), long));
    let twice = fields("Content-Type: image/png | Content-Type: text/html");
    assert!(!is_worth_it(200, &twice, long));
}

#[test]
fn the_head_says_what_was_done() {
    let before = "Content-Type: text/html | Content-Encoding: identity | Content-Length: 5000 \
        | Accept-Ranges: bytes | ETag: \"abc\" | Content-MD5: x | Digest: sha-256=x \
        | Content-Digest: sha-256=:x: | REPR-DIGEST: sha-256=:x: | Want-Repr-Digest: sha-256=1 \
        | Vary: Cookie | X-Digest: stays";
    let mut answer = fields(before);
    mark(&mut answer, Coding::Zstd);
    let expected = "Content-Type: text/html\n\
        Want-Repr-Digest: sha-256=1\n\
        Vary: Cookie\n\
        X-Digest: stays\n\
        content-encoding: zstd\n\
        etag: W/\"abc\"\n\
        vary: Accept-Encoding\n";
    assert_eq!(text(&answer), expected);
    mark(&mut answer, Coding::Zstd);
    let again = text(&answer);
    assert_eq!(again.matches("ccept-").count(), 1, "{again}");
    assert_eq!(again.matches("W/").count(), 1, "{again}");
}

#[test]
fn etags() {
    for (tag, weak) in [
        ("\"a\"", Some("W/\"a\"")),
        ("\"\"", Some("W/\"\"")),
        ("W/\"a\"", Some("W/\"a\"")),
        ("\"W/a\"", Some("W/\"W/a\"")),
        ("w/\"a\"", None),
        ("a", None),
        ("\"", None),
        ("\"a", None),
        ("W/", None),
        ("W/a", None),
        ("", None),
    ] {
        let mut answer = fields(&format!("ETag: {tag}"));
        weaken(&mut answer);
        assert_eq!(answer.text(Name::Etag), weak, "{tag}");
    }
    let mut none = Fields::default();
    weaken(&mut none);
    assert!(none.is_empty());
}

#[test]
fn vary_is_said_once() {
    for (before, after) in [
        ("", "vary: Accept-Encoding\n"),
        ("Vary: Cookie", "Vary: Cookie\nvary: Accept-Encoding\n"),
        ("Vary: accept-encoding", "Vary: accept-encoding\n"),
        ("Vary: A, Accept-Encoding", "Vary: A, Accept-Encoding\n"),
        (
            "Vary: A | Vary: ACCEPT-ENCODING",
            "Vary: A\nVary: ACCEPT-ENCODING\n",
        ),
        ("Vary: *", "Vary: *\n"),
        ("Vary: Accept", "Vary: Accept\nvary: Accept-Encoding\n"),
    ] {
        let mut answer = fields(before);
        vary(&mut answer);
        vary(&mut answer);
        assert_eq!(text(&answer), after);
    }
}

#[test]
fn a_cache_finds_what_it_has_stored() {
    for (asked, tag, said) in [
        ("If-None-Match: W/\"a\"", "\"a\"", "W/\"a\""),
        ("If-None-Match: \"x\", W/\"a\"", "\"a\"", "W/\"a\""),
        (
            "If-None-Match: \"x\" | If-None-Match: W/\"a,b\"",
            "\"a,b\"",
            "W/\"a,b\"",
        ),
        ("If-None-Match: \"a\"", "\"a\"", "\"a\""),
        ("If-None-Match: *", "\"a\"", "\"a\""),
        ("If-None-Match: W/\"b\"", "\"a\"", "\"a\""),
        ("If-None-Match: W/\"a\"", "W/\"a\"", "W/\"a\""),
        ("If-None-Match: W/\"a\"", "a", "a"),
        ("", "\"a\"", "\"a\""),
    ] {
        let mut answer = fields(&format!("ETag: {tag}"));
        not_modified(&fields(asked), &mut answer);
        assert_eq!(answer.text(Name::Etag), Some(said), "{asked} {tag}");
        assert_eq!(answer.has(Name::Vary), said != tag, "{asked} {tag}");
    }
}
