//! What goes into the server file: where visitors arrive, who signs certificates, which servers may stand behind it.

use std::collections::{BTreeMap, BTreeSet};

use crate::app::{Writer, quoted};
use crate::place::At;
use crate::report::Report;

#[derive(Default)]
pub(crate) struct Server {
    pub http: Option<String>,
    pub https: Option<String>,
    pub acme: Option<Acme>,
    /// Addresses that apps name in `upstream`.
    pub upstreams: BTreeSet<String>,
    pub trusted: BTreeSet<String>,
    pub proxy_protocol: bool,
    /// There are apps from images.
    pub needs_engine: bool,
    /// What was in the environment of what asked for certificates before; `None`: not known.
    pub variables: BTreeMap<String, Option<String>>,
}

#[derive(Default)]
pub(crate) struct Acme {
    pub at: At,
    pub email: Option<String>,
    pub directory: Option<String>,
    pub challenge: Option<&'static str>,
    /// Who holds the DNS records, as lego calls it.
    pub provider: Option<(At, String)>,
    /// An account of the authority's web site: its id, and its key.
    pub eab_kid: Option<String>,
    pub eab_hmac: Option<String>,
}

/// A part of a server file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerPart {
    pub toml: String,
    /// There are keys in it that nobody else should read.
    pub is_secret: bool,
}

impl Server {
    pub fn acme(&mut self, at: &At) -> &mut Acme {
        self.acme.get_or_insert_with(|| Acme {
            at: at.clone(),
            ..Acme::default()
        })
    }

    /// The part of a server file, if there is anything to say.
    pub fn part(&self, report: &mut Report) -> Option<ServerPart> {
        let mut file = Writer::default();
        let mut is_secret = false;
        file.optional("http", self.http.as_deref());
        file.optional("https", self.https.as_deref());
        let list = |set: &BTreeSet<String>| set.iter().cloned().collect::<Vec<String>>();
        if !self.upstreams.is_empty() {
            file.line("# Servers that Hutong does not run, and that apps name in `upstream`.");
            file.list("allow_upstreams", &list(&self.upstreams));
        }
        if !self.trusted.is_empty() {
            file.list("trusted_proxies", &list(&self.trusted));
            file.flag("proxy_protocol", self.proxy_protocol);
        }
        if self.needs_engine {
            file.table("docker");
            file.line("# Apps from images run on the engine at /var/run/docker.sock; without this table they");
            file.line("# run in sandboxes, and need none.");
        }
        if let Some(acme) = &self.acme {
            file.table("acme");
            file.optional("email", acme.email.as_deref());
            file.optional("directory", acme.directory.as_deref());
            file.optional("challenge", acme.challenge);
            if let (Some(kid), Some(hmac)) = (&acme.eab_kid, &acme.eab_hmac) {
                is_secret = true;
                file.line(&format!(
                    "eab = {{ kid = {}, hmac = {} }}",
                    quoted(kid),
                    quoted(hmac)
                ));
            }
            if let (Some("dns-01"), provider) = (acme.challenge, &acme.provider) {
                file.table("acme.dns");
                let (at, name) = match provider {
                    Some((at, name)) => (at, name.as_str()),
                    None => (&acme.at, ""),
                };
                is_secret |= self.dns(at, name, &mut file, report);
            }
        }
        if file.text.is_empty() {
            return None;
        }
        let text = file.text.trim_start_matches('\n');
        let gap = if text.starts_with('[') { "\n" } else { "" };
        Some(ServerPart {
            toml: format!(
                "# A part of /etc/hutong/server.toml, by `hutong import`: look it over before you use it.\n{gap}{text}"
            ),
            is_secret,
        })
    }

    /// The provider with its keys; whether a key is in it.
    fn dns(&self, at: &At, provider: &str, file: &mut Writer, report: &mut Report) -> bool {
        let keys: &[(&str, &[&str])] = match provider {
            "alidns" => &[
                ("key_id", &["ALICLOUD_ACCESS_KEY"]),
                ("key_secret", &["ALICLOUD_SECRET_KEY"]),
            ],
            "tencentcloud" => &[
                ("secret_id", &["TENCENTCLOUD_SECRET_ID"]),
                ("secret_key", &["TENCENTCLOUD_SECRET_KEY"]),
            ],
            "cloudflare" => &[("token", &["CF_DNS_API_TOKEN", "CLOUDFLARE_DNS_API_TOKEN"])],
            _ => {
                file.text("type", "exec");
                file.line("# Called with: present|cleanup NAME VALUE");
                file.line("program = [\"/usr/local/bin/dns-hook\"]");
                report.leave_to_do(
                    at,
                    "acme.dns",
                    "alidns, dnspod and cloudflare are known; for another provider write a program that makes the record, and name it in server.toml",
                );
                return false;
            }
        };
        let name = match provider {
            "tencentcloud" => "dnspod",
            other => other,
        };
        file.text("type", name);
        let mut is_secret = false;
        for (key, variables) in keys {
            let value = variables
                .iter()
                .find_map(|name| self.variables.get(*name).cloned().flatten());
            match value {
                Some(value) => {
                    is_secret = true;
                    file.text(key, &value);
                }
                None => {
                    let name = variables.first().copied().unwrap_or_default();
                    file.text(key, &format!("FILL IN: {name}"));
                    report.leave_to_do(
                        at,
                        "acme.dns",
                        format!("put the value of {name} into server.toml, as `{key}`"),
                    );
                }
            }
        }
        is_secret
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_provider_are_taken_over_or_asked_for() {
        let mut server = Server::default();
        assert_eq!(server.part(&mut Report::default()), None);
        let at = At::default();
        let acme = server.acme(&at);
        acme.challenge = Some("dns-01");
        acme.provider = Some((at.clone(), "tencentcloud".into()));
        let known = Some("id".to_owned());
        server
            .variables
            .insert("TENCENTCLOUD_SECRET_ID".into(), known);
        let mut report = Report::default();
        let part = server.part(&mut report).expect("a part");
        assert!(part.is_secret);
        assert!(
            part.toml
                .contains("type = \"dnspod\"\nsecret_id = \"id\"\n")
        );
        assert!(
            part.toml
                .contains("secret_key = \"FILL IN: TENCENTCLOUD_SECRET_KEY\"")
        );
        assert_eq!(report.notes.len(), 1);
        assert!(part.toml.parse::<toml::Table>().is_ok());
    }

    #[test]
    fn an_unknown_provider_becomes_a_program() {
        let mut server = Server::default();
        let acme = server.acme(&At::default());
        acme.challenge = Some("dns-01");
        acme.provider = Some((At::default(), "route53".into()));
        let part = server.part(&mut Report::default()).expect("a part");
        assert!(part.toml.contains("type = \"exec\"") && !part.is_secret);
    }
}
