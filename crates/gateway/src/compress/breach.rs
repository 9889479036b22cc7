//! BREACH (breachattack.com, RFC 9110 §17.6): whether an answer may be compressed without telling a
//! listener what is in it.
//!
//! **The attack.** Somebody sees how long encrypted answers are, and a page of theirs makes the victim's
//! browser ask for the same answer thousands of times, each time with another guess that the app writes into
//! the page (`?q=csrf=a`, `?q=csrf=b`, …). Where a guess repeats a secret of the page, the compressed answer
//! is shorter. It takes all of: a secret that stays the same, text of the asker's choice beside it,
//! compression of both together, and a browser that adds the victim's credentials to requests that *another
//! site* has thought up.
//!
//! **What others do.** nginx and ASP.NET Core warn, and compress no HTML, or nothing over TLS, until they are
//! told to. Caddy compresses whatever it is told to. Rails and Django mask their CSRF tokens anew for each
//! page, which saves that secret and no other. Django and some Go handlers add a random length ("Heal the
//! BREACH"): noise is averaged away, so this buys time only. A gateway knows neither the app's secrets nor
//! what it repeats. But it sees who asks, and takes away the last of the four conditions, as Wikipedia's
//! article proposes with the Referer; Sec-Fetch-Site has since made that dependable.
//!
//! **The rule.** A personal answer ([`is_personal`]) is compressed only for who could see it anyway
//! ([`is_of_its_own`]): the app's own pages, the person in front of the browser, or a program that holds a
//! token. It is not for a request that comes from another site, or from who knows where.
//!
//! * `Sec-Fetch-Site` is set by the browser alone (a page cannot: its name begins with `Sec-`) and looks at
//!   the whole chain of redirects. `same-origin` is the app; `none` is the address bar or a bookmark, at a
//!   human pace. `cross-site` is what this is about. `same-site` counts as foreign, too: on a server like
//!   this the neighbour's name is another app, and SameSite cookies, which keep most credentials away from
//!   foreign requests by now, do not keep them from neighbours.
//! * Without it (browsers before 2023, or plain HTTP), Origin and Referer must name the app itself, over
//!   HTTPS: a listener can put what he likes into a page that comes over plain HTTP. If both are missing that
//!   is no evidence, because any page may suppress them (`Referrer-Policy: no-referrer`).
//! * A click (`Sec-Fetch-User`) is none either: one click lets a page open a window and lead it around.
//! * `Authorization: Bearer` was put there by a program that knows the token. A browser never adds it by
//!   itself, and CORS does not let foreign pages add it beside cookies unless they may read the answer as
//!   well. So the clients of an API, which say nothing else about themselves, lose no compression.
//!
//! **What it costs.** The first page after a link from elsewhere goes out as it is where the visitor has a
//! cookie; so does what programs with cookies fetch, and an API with cookies on a neighbouring name. What the
//! pages of the app load themselves is compressed.
//!
//! **What it does not see.** Text of a stranger that the app itself shows and loads (a forum with images
//! that ask its own search), a service worker that asks anew for what it was asked, secrets behind no
//! credentials but an address in the local network: such an app says `Cache-Control: no-transform`. And what
//! an app has compressed itself.

use hutong_http::fields::{Fields, Name};

/// Whether compressing this answer to this request could tell a secret: then it must go out as it is.
pub fn may_hold_secrets(request: &Fields, answer: &Fields) -> bool {
    is_personal(request, answer) && !is_of_its_own(request)
}

/// Made for one visitor: the request has credentials, or the answer sets some or is for no shared cache.
fn is_personal(request: &Fields, answer: &Fields) -> bool {
    let private = |directive: &[u8]| {
        let name = directive.split(|byte| *byte == b'=').next();
        name.is_some_and(|name| {
            name.eq_ignore_ascii_case(b"private") || name.eq_ignore_ascii_case(b"no-store")
        })
    };
    request.has(Name::Cookie)
        || request.has(Name::Authorization)
        || answer.has(Name::SetCookie)
        || answer.members(Name::CacheControl).any(private)
}

/// Whether it is certain that no other site has thought this request up.
fn is_of_its_own(request: &Fields) -> bool {
    if has_token(request) {
        return true;
    }
    let mut sites = named(request, b"sec-fetch-site").peekable();
    if sites.peek().is_some() {
        return sites.all(|site| site == b"same-origin" || site == b"none");
    }
    let host = request.get(Name::Host).unwrap_or_default();
    let mut pages = named(request, b"origin")
        .chain(request.all(Name::Referer))
        .peekable();
    pages.peek().is_some() && pages.all(|page| is_page_of(page, host))
}

/// RFC 6750 §2.1 and RFC 9449 §7.1; browsers send `Basic`, `Digest` and `Negotiate` by themselves.
fn has_token(request: &Fields) -> bool {
    let is_token = |value: &[u8]| {
        let scheme = value.split(|byte| *byte == b' ').next().unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"bearer") || scheme.eq_ignore_ascii_case(b"dpop")
    };
    request.has(Name::Authorization) && request.all(Name::Authorization).all(is_token)
}

/// Whether a URL is below `https://host`, the port included.
fn is_page_of(url: &[u8], host: &[u8]) -> bool {
    let Some((b"https://", rest)) = url.split_at_checked(b"https://".len()) else {
        return false;
    };
    let authority = rest.split(|byte| b"/?#".contains(byte)).next();
    let host = without_port(host);
    let is_host = |authority| without_port(authority).eq_ignore_ascii_case(host);
    !host.is_empty() && authority.is_some_and(is_host)
}

/// Without the one that HTTPS has anyway.
fn without_port(authority: &[u8]) -> &[u8] {
    authority.strip_suffix(b":443").unwrap_or(authority)
}

/// Values of a name that [`Name`] does not know; `name` is in lower case.
fn named<'a>(fields: &'a Fields, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
    fields
        .iter()
        .filter(move |field| field.name.eq_ignore_ascii_case(name))
        .map(|field| field.value)
}

#[cfg(test)]
mod tests;
