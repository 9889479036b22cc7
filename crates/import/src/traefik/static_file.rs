//! Traefik's static configuration: entry points and resolvers of certificates go into the server file.

use crate::report::Report;
use crate::server::Server;

use super::Setting;

/// Reads settings of the static configuration; those of the dynamic one are given back.
pub(crate) fn read(
    settings: Vec<Setting>,
    server: &mut Server,
    report: &mut Report,
) -> Vec<Setting> {
    let mut dynamic = Vec::new();
    for setting in settings {
        let parts = setting.parts();
        let what = setting.shown.as_str();
        match parts.as_slice() {
            ["http" | "tcp" | "udp" | "tls", ..] => {
                dynamic.push(setting.clone());
                continue;
            }
            ["entrypoints", _, rest @ ..] => entry_point(rest, &setting, server, report),
            ["certificatesresolvers", _, "acme", rest @ ..] => {
                acme(rest, &setting, server, report);
            }
            ["certificatesresolvers", ..] => report.left(
                &setting.at,
                what,
                "certificates come by ACME, or from files: `hutong cert add`",
            ),
            ["api", ..] => report.replaced(
                &setting.at,
                what,
                "routes and instances are shown by `hutong gateway` and `hutong apps`; there is no page for it",
            ),
            ["providers", "docker", ..] => report.replaced(
                &setting.at,
                what,
                "apps are known by their hutong.toml; the labels of a compose file are read once, here",
            ),
            ["providers", "file", ..] => report.replaced(
                &setting.at,
                what,
                "hand the file with routers and middlewares over as well: it is read once, here",
            ),
            ["accesslog", ..] => {
                report.replaced(&setting.at, what, "`hutong logs APP --access`, with --json a line of JSON each");
            }
            ["log", ..] => report.replaced(
                &setting.at,
                what,
                "Hutong's own log is on standard error; HUTONG_LOG says how much",
            ),
            ["ping", ..] => report.replaced(&setting.at, what, "`hutong version`, or GET /v1/version of the API"),
            ["metrics" | "tracing", ..] => {
                report.left(&setting.at, what, "there are no metrics and traces to fetch yet");
            }
            _ => report.left(&setting.at, what, "it is not known here"),
        }
    }
    dynamic
}

fn entry_point(rest: &[&str], setting: &Setting, server: &mut Server, report: &mut Report) {
    let (at, what) = (&setting.at, setting.shown.as_str());
    match rest {
        ["address"] => {
            let address = setting.value();
            let (address, protocol) = address.split_once('/').unwrap_or((address, "tcp"));
            let port = address.rsplit_once(':').map_or("", |(_, port)| port);
            match port {
                _ if protocol != "tcp" => report.left(at, what, "visitors come by TCP"),
                "80" => {
                    server.http = Some("0.0.0.0:80".into());
                    report.used(at, what, "server.toml: http = \"0.0.0.0:80\"");
                }
                "443" => {
                    server.https = Some("0.0.0.0:443".into());
                    report.used(at, what, "server.toml: https = \"0.0.0.0:443\"");
                }
                _ => report.left(
                    at,
                    what,
                    "Hutong listens at one address for HTTP and at one for HTTPS: `http` and `https` of the server file",
                ),
            }
        }
        ["http", "redirections", ..] => report.used(
            at,
            what,
            "plain requests are sent to HTTPS where a host has a certificate",
        ),
        ["http", "tls", ..] => {
            report.used(at, what, "every host gets a certificate");
        }
        ["http", "middlewares"] => report.left(
            at,
            what,
            "such rules hold for one app at a time: look whether a password or a list of addresses is among them, and put it into each hutong.toml",
        ),
        ["forwardedheaders", "trustedips"] => trust(setting, server, report),
        ["forwardedheaders", "insecure"] => report.left(
            at,
            what,
            "nobody's word on who the visitor is counts but that of `trusted_proxies`",
        ),
        ["proxyprotocol", "trustedips"] => {
            server.proxy_protocol = true;
            trust(setting, server, report);
        }
        ["http3", ..] => report.left(at, what, "HTTP/3 is not spoken yet"),
        ["transport", ..] => report.left(at, what, "Hutong has bounds of its own for slow visitors"),
        ["asdefault"] => report.used(at, what, "apps are reached at every address of the server"),
        _ => report.left(at, what, "it is not known here"),
    }
}

/// Proxies in front.
fn trust(setting: &Setting, server: &mut Server, report: &mut Report) {
    for (at, network) in setting.list() {
        match network.parse::<hutong_core::networks::Network>() {
            Ok(_) => {
                report.used(
                    &at,
                    &setting.shown,
                    format!("server.toml: trusted_proxies, {network}"),
                );
                server.trusted.insert(network);
            }
            Err(error) => report.left(&at, &setting.shown, error.to_string()),
        }
    }
}

fn acme(rest: &[&str], setting: &Setting, server: &mut Server, report: &mut Report) {
    let (at, what) = (&setting.at, setting.shown.as_str());
    let value = setting.value().to_owned();
    let acme = server.acme(at);
    match rest {
        ["email"] => {
            report.used(at, what, format!("server.toml: acme.email = \"{value}\""));
            acme.email = Some(value);
        }
        ["caserver"] => {
            let directory = match value.as_str() {
                "https://acme-v02.api.letsencrypt.org/directory" => None,
                "https://acme-staging-v02.api.letsencrypt.org/directory" => {
                    Some("letsencrypt-staging".to_owned())
                }
                other if other.starts_with("https://") => Some(other.to_owned()),
                _ => {
                    report.left(at, what, "an authority's directory is an https:// address");
                    return;
                }
            };
            report.used(at, what, "server.toml: acme.directory");
            acme.directory = directory;
        }
        ["dnschallenge", "provider"] => {
            acme.challenge = Some("dns-01");
            acme.provider = Some((at.clone(), value));
            report.used(
                at,
                what,
                "server.toml: acme.challenge = \"dns-01\", and the table [acme.dns]",
            );
        }
        ["dnschallenge"] => {
            acme.challenge = Some("dns-01");
            report.used(at, what, "server.toml: acme.challenge = \"dns-01\"");
        }
        ["dnschallenge", ..] => report.left(
            at,
            what,
            "a record is waited for until the zone's own name servers have it",
        ),
        ["httpchallenge", ..] => {
            acme.challenge.get_or_insert("http-01");
            report.used(at, what, "server.toml: acme.challenge = \"http-01\"");
        }
        ["tlschallenge", ..] => {
            acme.challenge.get_or_insert("tls-alpn-01");
            report.used(at, what, "server.toml: acme.challenge = \"tls-alpn-01\"");
        }
        ["eab", "kid"] => {
            acme.eab_kid = Some(value);
            report.used(at, what, "server.toml: acme.eab");
        }
        ["eab", "hmacencoded"] => {
            acme.eab_hmac = Some(value);
            report.used(at, what, "server.toml: acme.eab");
        }
        ["storage"] => report.replaced(
            at,
            what,
            "certificates and keys are kept in the data folder; they are asked for anew",
        ),
        _ => report.left(at, what, "Hutong has ways of its own here"),
    }
}
