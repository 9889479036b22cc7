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

fn held_back(request: &str, answer: &str) -> bool {
    may_hold_secrets(&fields(request), &fields(answer))
}

#[test]
fn what_is_personal() {
    const CROSS: &str = "Sec-Fetch-Site: cross-site";
    for (request, answer, personal) in [
        ("", "", false),
        ("", "Cache-Control: public, max-age=9", false),
        ("", "Cache-Control: no-cache", false),
        ("", "Cache-Control: privately", false),
        ("X-Cookie: a", "", false),
        ("Cookie: sid=1", "", true),
        ("cookie: sid=1", "Cache-Control: public", true),
        ("Authorization: Basic eDp5", "", true),
        ("", "Set-Cookie: sid=1", true),
        ("", "Cache-Control: private", true),
        (
            "",
            "Cache-Control: max-age=0, Private, must-revalidate",
            true,
        ),
        (
            "",
            "Cache-Control: max-age=0 | Cache-Control: private",
            true,
        ),
        ("", "Cache-Control: private=\"x-name\"", true),
        ("", "Cache-Control: NO-STORE", true),
    ] {
        let cross = format!("{request} | {CROSS}");
        assert_eq!(held_back(&cross, answer), personal, "{cross} {answer}");
        assert_eq!(held_back(request, answer), personal, "{request} {answer}");
        let own = format!("{request} | Sec-Fetch-Site: same-origin");
        assert!(!held_back(&own, answer), "{own} {answer}");
    }
}

#[test]
fn who_asks_with_a_cookie() {
    for (request, compressed) in [
        // Browsers of today.
        ("Sec-Fetch-Site: same-origin", true),
        ("sec-fetch-site: none", true),
        ("Sec-Fetch-Site: cross-site", false),
        ("Sec-Fetch-Site: same-site", false),
        ("Sec-Fetch-Site: Same-Origin", false),
        ("Sec-Fetch-Site:", false),
        ("Sec-Fetch-Site: unheard-of", false),
        ("Sec-Fetch-Site: same-origin, cross-site", false),
        ("Sec-Fetch-Site: same-origin | Sec-Fetch-Site: none", true),
        (
            "Sec-Fetch-Site: same-origin | Sec-Fetch-Site: cross-site",
            false,
        ),
        (
            "Sec-Fetch-Site: cross-site | Sec-Fetch-Site: same-origin",
            false,
        ),
        ("Sec_Fetch_Site: same-origin", false),
        ("X-Sec-Fetch-Site: same-origin", false),
        // A click is no evidence, and a Referer counts for less.
        ("Sec-Fetch-Site: cross-site | Sec-Fetch-User: ?1", false),
        (
            "Sec-Fetch-Site: cross-site | Referer: https://shop.example/",
            false,
        ),
        (
            "Sec-Fetch-Site: same-origin | Referer: https://evil.example/",
            true,
        ),
        // Browsers of before.
        ("Referer: https://shop.example/cart?x=1#y", true),
        ("Referer: https://shop.example", true),
        ("Referer: https://shop.example?x", true),
        ("Referer: https://SHOP.example/", true),
        ("Referer: https://shop.example:443/", true),
        ("Origin: https://shop.example", true),
        (
            "Origin: https://shop.example | Referer: https://shop.example/a",
            true,
        ),
        (
            "Origin: https://evil.example | Referer: https://shop.example/a",
            false,
        ),
        (
            "Origin: https://shop.example | Referer: https://evil.example/a",
            false,
        ),
        (
            "Referer: https://shop.example/ | Referer: https://evil.example/",
            false,
        ),
        ("Referer: https://evil.example/shop.example/", false),
        ("Referer: https://evil.example?https://shop.example/", false),
        ("Referer: https://evil.example#https://shop.example/", false),
        ("Referer: https://shop.example.evil.example/", false),
        ("Referer: https://evilshop.example/", false),
        ("Referer: https://shop.example@evil.example/", false),
        ("Referer: https://evil.example\\@shop.example/", false),
        ("Referer: https://shop.example:8443/", false),
        ("Referer: https://www.shop.example/", false),
        ("Referer: http://shop.example/", false),
        ("Origin: http://shop.example", false),
        ("Origin: null", false),
        ("Origin: null | Referer: https://shop.example/", false),
        ("Origin:", false),
        ("Referer: about:blank", false),
        ("Referer: /cart", false),
        ("Referer: https://", false),
        ("Referer: https:///shop.example", false),
        ("", false),
        ("User-Agent: curl/8", false),
        // Programs with a token.
        ("Authorization: Bearer abc", true),
        (
            "authorization: bearer abc | Sec-Fetch-Site: cross-site",
            true,
        ),
        ("Authorization: DPoP abc", true),
        ("Authorization: Basic abc", false),
        ("Authorization: Negotiate abc", false),
        ("Authorization: Bearer a | Authorization: Basic b", false),
        ("Authorization: Bearerish abc", false),
        ("Authorization:", false),
    ] {
        let request = format!("Host: shop.example | Cookie: sid=1 | {request}");
        assert_eq!(!held_back(&request, ""), compressed, "{request}");
    }
}

#[test]
fn the_host_is_compared_with_its_port() {
    for (host, page, own) in [
        ("a.example:8443", "https://a.example:8443/", true),
        ("a.example:443", "https://a.example/", true),
        ("a.example", "https://a.example:443/", true),
        ("[::1]:8443", "https://[::1]:8443/", true),
        ("a.example:8443", "https://a.example/", false),
        ("a.example", "https://a.example:8443/", false),
        ("", "https:///", false),
        (":443", "https:///", false),
    ] {
        let request = format!("Host: {host} | Cookie: sid=1 | Referer: {page}");
        assert_eq!(!held_back(&request, ""), own, "{request}");
    }
    assert!(held_back("Cookie: sid=1 | Referer: https:///", ""));
}
