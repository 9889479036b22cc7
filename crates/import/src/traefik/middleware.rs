//! Traefik's middlewares: what they come to for an app, or why a router that has one is not served.

use std::time::Duration;

use hutong_core::name::parse_prefix;
use hutong_core::networks::Network;
use hutong_core::spec::parse_user;

use crate::app::{Auth, Settings};
use crate::place::short;
use crate::tree::flag;
use crate::units::rate;

use super::Setting;

/// What the middlewares of a router come to.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Effect {
    pub settings: Settings,
    /// Plain requests are sent to HTTPS.
    pub redirects: bool,
    /// What is cut off, the first that fits.
    pub prefixes: Vec<String>,
    /// What is not done, and keeps nobody out.
    pub remarks: Vec<String>,
}

/// Adds one middleware; its settings begin with its kind.
pub(crate) fn apply(settings: &[Setting], effect: &mut Effect) -> Result<(), String> {
    let kind = settings
        .first()
        .and_then(|first| first.path.first())
        .map_or("", String::as_str);
    let is_kind = |one: &Setting| one.path.first().is_some_and(|first| first == kind);
    if !settings.iter().all(is_kind) {
        return Err("it is of two kinds".into());
    }
    let options: Vec<(String, &Setting)> = settings
        .iter()
        .map(|one| {
            (
                one.path
                    .iter()
                    .skip(1)
                    .cloned()
                    .collect::<Vec<_>>()
                    .join("."),
                one,
            )
        })
        .collect();
    match kind {
        "stripprefix" => strip(&options, effect),
        "basicauth" => basic_auth(&options, effect),
        "redirectscheme" => redirect(&options, effect),
        "ipallowlist" | "ipwhitelist" => allow(&options, effect),
        "ratelimit" => {
            rate_limit(&options, effect);
            Ok(())
        }
        "compress" => {
            for (option, one) in &options {
                match (option.as_str(), flag(one.value())) {
                    ("", Some(false)) => effect.settings.compress = Some(false),
                    ("", _) => {}
                    _ => effect.remarks.push(format!(
                        "compress.{option}: what is compressed is the same for every app"
                    )),
                }
            }
            Ok(())
        }
        "buffering" => {
            for (option, one) in &options {
                match (option.as_str(), one.value().parse::<u64>()) {
                    ("maxrequestbodybytes", Ok(bytes)) => {
                        effect.settings.max_body = Some(bytes).filter(|bytes| *bytes > 0);
                    }
                    _ => effect
                        .remarks
                        .push(format!("buffering.{option} is left out")),
                }
            }
            Ok(())
        }
        "headers" => {
            headers(&options, effect);
            Ok(())
        }
        // They keep nobody out, and change no path.
        "retry" | "circuitbreaker" | "contenttype" | "grpcweb" | "errors" => {
            effect.remarks.push(format!(
                "{kind} is left out: Hutong repeats, spares and answers in ways of its own"
            ));
            Ok(())
        }
        "inflightreq" => {
            effect.remarks.push(
                "inFlightReq is left out: set traffic.max_concurrent or max_concurrent_per_ip"
                    .into(),
            );
            Ok(())
        }
        other => Err(format!(
            "its kind `{}` is not known here, and may be what keeps visitors out or changes paths",
            short(other)
        )),
    }
}

type Options<'a> = [(String, &'a Setting)];

fn unknown(option: &str) -> String {
    format!("its `{}` is not understood", short(option))
}

fn strip(options: &Options<'_>, effect: &mut Effect) -> Result<(), String> {
    if !effect.prefixes.is_empty() {
        return Err("prefixes are cut off twice".into());
    }
    for (option, one) in options {
        match option.as_str() {
            "prefixes" => {
                for (_, prefix) in one.list() {
                    effect.prefixes.push(parse_prefix(&prefix)?);
                }
            }
            "forceslash" => {}
            other => return Err(unknown(other)),
        }
    }
    match effect.prefixes.is_empty() {
        true => Err("it names no prefix".into()),
        false => Ok(()),
    }
}

fn basic_auth(options: &Options<'_>, effect: &mut Effect) -> Result<(), String> {
    if effect.settings.auth.is_some() {
        return Err("it asks for two passwords".into());
    }
    let mut auth = Auth::default();
    for (option, one) in options {
        match option.as_str() {
            "users" => {
                for (_, line) in one.list() {
                    parse_user(&line)?;
                    auth.users.push(line);
                }
            }
            "usersfile" => {
                return Err("its users are in a file; put them into its `users`".into());
            }
            "realm" => {
                let plain = |c: char| !c.is_control() && c != '"' && c != '\\';
                let realm = one.value();
                if realm.is_empty() || realm.len() > 100 || !realm.chars().all(plain) {
                    return Err("its realm is 1 to 100 bytes without quotation marks".into());
                }
                auth.realm = Some(realm.to_owned());
            }
            "removeheader" => {}
            other => return Err(unknown(other)),
        }
    }
    if auth.users.is_empty() {
        return Err("it names no users".into());
    }
    effect.settings.auth = Some(auth);
    Ok(())
}

fn redirect(options: &Options<'_>, effect: &mut Effect) -> Result<(), String> {
    let mut scheme = String::new();
    for (option, one) in options {
        match option.as_str() {
            "scheme" => scheme = one.value().to_ascii_lowercase(),
            "permanent" => {}
            "port" => effect
                .remarks
                .push("redirectScheme.port is left out: it is where this server has HTTPS".into()),
            other => return Err(unknown(other)),
        }
    }
    match scheme.as_str() {
        "https" => {
            effect.redirects = true;
            Ok(())
        }
        _ => Err("it sends visitors to something else than https".into()),
    }
}

fn allow(options: &Options<'_>, effect: &mut Effect) -> Result<(), String> {
    if !effect.settings.allow.is_empty() {
        return Err("it has two lists of addresses".into());
    }
    for (option, one) in options {
        match option.as_str() {
            "sourcerange" => {
                for (_, text) in one.list() {
                    text.parse::<Network>().map_err(|error| error.to_string())?;
                    effect.settings.allow.push(text);
                }
            }
            other => return Err(unknown(other)),
        }
    }
    match effect.settings.allow.is_empty() {
        true => Err("it names no addresses".into()),
        false => Ok(()),
    }
}

/// So many in a period, of each address.
fn rate_limit(options: &Options<'_>, effect: &mut Effect) {
    let (mut average, mut burst, mut seconds) = (None, None, Some(1.0));
    for (option, one) in options {
        match option.as_str() {
            "average" => average = one.value().parse::<u32>().ok(),
            "burst" => burst = one.value().parse::<u32>().ok().filter(|count| *count > 0),
            "period" => {
                let value = one.value();
                let number = value.parse::<f64>().ok();
                let time = hutong_core::units::parse_time(value).ok();
                seconds = time.map(|time| time.as_secs_f64()).or(number);
            }
            other => effect.remarks.push(format!(
                "rateLimit.{} is left out: it is by address",
                short(other)
            )),
        }
    }
    let rate = match (average, seconds) {
        (Some(average @ 1..), Some(seconds)) => rate(f64::from(average), seconds),
        _ => None,
    };
    match rate {
        Some(rate) => effect.settings.rate_per_ip = Some((rate, burst)),
        None => effect.remarks.push(
            "rateLimit is left out: its rate is not understood; set traffic.rate_per_ip".into(),
        ),
    }
}

fn headers(options: &Options<'_>, effect: &mut Effect) {
    for (option, one) in options {
        match (option.as_str(), one.value().parse::<u64>()) {
            ("stsseconds", Ok(seconds @ 1..=63_072_000)) => {
                effect.settings.hsts = Some(Duration::from_secs(seconds));
            }
            ("sslredirect", _) if flag(one.value()) == Some(true) => effect.redirects = true,
            _ => effect.remarks.push(format!(
                "headers.{} is left out: an app sends its own headers",
                short(option)
            )),
        }
    }
}
