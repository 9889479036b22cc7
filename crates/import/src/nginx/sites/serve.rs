//! Locations as routes: which servers answer, or which files.

use std::collections::BTreeMap;

use hutong_core::name::parse_prefix;

use crate::join::{Route, Server, Target};

use super::super::scope::Scope;
use super::{Location, Match, Pass, Reading, Upstream};

impl Reading<'_, '_> {
    /// Routes of a block's locations, for each of its hosts.
    pub(super) fn routes(&mut self, names: &[String], locations: &[Location]) {
        let named: BTreeMap<&str, &Location> = locations
            .iter()
            .filter(|one| one.matching == Match::Named)
            .map(|one| (one.path.as_str(), one))
            .collect();
        let scripts = locations.iter().find(|one| {
            let is_fastcgi = one
                .pass
                .as_ref()
                .is_some_and(|pass| pass.protocol == "fastcgi");
            one.matching == Match::Regex && is_fastcgi
        });
        let mut used_scripts = false;
        for location in locations {
            let what = location.what();
            if let Some(why) = &location.refused {
                self.report().left(
                    &location.at,
                    &what,
                    format!("it is not served by itself: {why}"),
                );
                self.pass_left(location);
                continue;
            }
            match location.matching {
                Match::Named => {
                    self.report()
                        .used(&location.at, &what, "where `try_files` names it");
                    if !locations.iter().any(|one| {
                        one.tries
                            .iter()
                            .any(|name| name.strip_prefix('@') == Some(location.path.as_str()))
                    }) {
                        self.pass_left(location);
                    }
                }
                Match::Regex if scripts.is_some_and(|one| one.at == location.at) => {}
                Match::Regex => {
                    self.report().left(
                        &location.at,
                        &what,
                        "a route is a host and the beginning of a path; these requests go where their path's beginning leads",
                    );
                    self.pass_left(location);
                }
                Match::Exact if location.path != "/" && location.pass.is_none() => {
                    self.report().left(
                        &location.at,
                        &what,
                        "one path alone has no rules of its own; it is answered by what is around it",
                    );
                }
                Match::Exact | Match::Prefix => {
                    used_scripts |= self.serve(names, location, &named, scripts);
                }
            }
        }
        if let (Some(scripts), false) = (scripts, used_scripts) {
            self.report().left(
                &scripts.at,
                &scripts.what(),
                "no location leads to it by `try_files`",
            );
            self.pass_left(scripts);
        }
    }

    /// What was to answer in a location that is not served.
    pub(super) fn pass_left(&mut self, location: &Location) {
        if let Some(pass) = &location.pass {
            let why = "its location is not served by itself";
            self.report().left(&pass.at, "pass", why);
        }
    }

    /// One location; whether it uses the scripts of the block.
    fn serve(
        &mut self,
        names: &[String],
        location: &Location,
        named: &BTreeMap<&str, &Location>,
        scripts: Option<&Location>,
    ) -> bool {
        let what = location.what();
        let path = match parse_prefix(&location.path) {
            Ok(path) => path,
            Err(why) => {
                self.report().left(&location.at, &what, why);
                self.pass_left(location);
                return false;
            }
        };
        let mut scope = location.scope.settled();
        let last = location.tries.last().map_or("", String::as_str);
        let fallback = last.strip_prefix('@').and_then(|name| named.get(name));
        let wants_scripts = last.split('?').next().unwrap_or_default().ends_with(".php")
            || location.tries.is_empty()
                && scope
                    .index
                    .as_deref()
                    .is_some_and(|name| name.ends_with(".php"));
        let (target, uses_scripts) = match (&location.pass, fallback, scripts) {
            (Some(pass), _, _) => (self.target(pass, location, &path, &mut scope), false),
            (None, Some(fallback), _) => {
                self.report().left(
                    &location.at,
                    &what,
                    "files before the program: the program is asked for all; give the files an app of their own (`static`) to have them served by the gateway",
                );
                match &fallback.pass {
                    Some(pass) => (self.target(pass, fallback, &path, &mut scope), false),
                    None => (None, false),
                }
            }
            (None, None, Some(scripts)) if wants_scripts => match &scripts.pass {
                Some(pass) => {
                    self.report()
                        .used(&scripts.at, &scripts.what(), "protocol fastcgi");
                    (self.target(pass, scripts, &path, &mut scope), true)
                }
                None => (None, false),
            },
            _ => (self.files_of(location, &path, &mut scope), false),
        };
        let Some(target) = target else {
            return uses_scripts;
        };
        self.report().used(&location.at, &what, "a route");
        let hint = |host: &str| hint(host, &self.stem);
        let hosts: Vec<(String, String)> = match names.is_empty() {
            true => vec![(String::new(), self.stem.clone())],
            false => names
                .iter()
                .map(|host| (host.clone(), hint(host)))
                .collect(),
        };
        for (host, hint) in hosts {
            self.state.routes.push(Route {
                at: location.at.clone(),
                what: what.clone(),
                host,
                path: path.clone(),
                target: target.clone(),
                settings: scope.settings.clone(),
                hint,
            });
        }
        uses_scripts
    }

    /// Servers that answer, by address or by the name of an upstream.
    fn target(
        &mut self,
        pass: &Pass,
        location: &Location,
        path: &str,
        scope: &mut Scope,
    ) -> Option<Target> {
        let what = format!(
            "{}_pass",
            if pass.protocol == "http" {
                "proxy"
            } else {
                pass.protocol
            }
        );
        let report = &mut self.state.report;
        let (scheme, rest) = match pass.target.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, pass.target.as_str()),
        };
        let expected = match pass.protocol {
            "http" => "http",
            "h2c" => "grpc",
            other => other,
        };
        if scheme.is_some_and(|scheme| scheme != expected) {
            report.left(
                &pass.at,
                &what,
                "servers behind Hutong are spoken to without TLS",
            );
            return None;
        }
        if rest.starts_with("unix:") {
            report.left(
                &pass.at,
                &what,
                "a server behind Hutong has an IP address and a port (127.0.0.1:9000), or Hutong runs it itself: `command`",
            );
            return None;
        }
        if rest.contains('$') {
            report.left(&pass.at, &what, "there are no variables in routes");
            return None;
        }
        let (authority, uri) = match rest.find('/') {
            Some(at) => (&rest[..at], Some(&rest[at..])),
            None => (rest, None),
        };
        let ours = path.trim_end_matches('/');
        match uri.map(|uri| uri.trim_end_matches('/')) {
            None => {}
            Some(uri) if uri == ours => {}
            Some("") => scope.settings.strip = true,
            Some(_) => {
                report.left(
                    &pass.at,
                    &what,
                    "a path is passed on as it is, or cut off as a whole",
                );
                return None;
            }
        }
        let upstream = match self.upstreams.get(authority) {
            Some(upstream) => upstream.clone(),
            None => {
                let port = match pass.protocol {
                    "http" => Some(80),
                    _ => None,
                };
                let Some((host, port)) = host_and_port(authority, port) else {
                    report.left(
                        &pass.at,
                        &what,
                        "this is no address with a port, and no upstream",
                    );
                    return None;
                };
                Upstream {
                    servers: vec![Server {
                        at: pass.at.clone(),
                        host,
                        port,
                        weight: 1,
                    }],
                    ..Upstream::default()
                }
            }
        };
        if upstream.servers.is_empty() {
            report.left(
                &pass.at,
                &what,
                "its upstream has no server that could be used",
            );
            return None;
        }
        scope.settings.balance = upstream.balance;
        scope.settings.balance_by = upstream.by;
        scope.settings.max_requests = upstream.max_requests;
        let mut fastcgi = None;
        if pass.protocol == "fastcgi" {
            let root = location.script_root.clone().or_else(|| scope.root.clone());
            let Some(root) = root.filter(|root| root.starts_with('/')) else {
                report.left(&pass.at, &what, "`root` does not say where the scripts are");
                return None;
            };
            fastcgi = Some((root, location.script_index.clone()));
        }
        report.used(&pass.at, &what, "what answers");
        Some(Target::Servers {
            protocol: pass.protocol,
            servers: upstream.servers,
            fastcgi,
        })
    }

    /// Files of the machine.
    fn files_of(&mut self, location: &Location, path: &str, scope: &mut Scope) -> Option<Target> {
        let spa = location
            .tries
            .last()
            .is_some_and(|last| last == "/index.html" || last == "index.html");
        let folder = match (&location.alias, &scope.root) {
            (Some(alias), _) => {
                scope.settings.strip = path != "/";
                alias.clone()
            }
            (None, Some(root)) if path == "/" => root.clone(),
            (None, Some(root)) => {
                scope.settings.strip = true;
                format!("{}{path}", root.trim_end_matches('/'))
            }
            (None, None) => {
                self.report().left(
                    &location.at,
                    &location.what(),
                    "it says neither what answers nor where files are",
                );
                return None;
            }
        };
        Some(Target::Static {
            folder: folder.trim_end_matches('/').to_owned(),
            spa,
        })
    }
}

/// `127.0.0.1:80`, `[::1]:80`, `app:80`, or without a port where there is a usual one.
pub(super) fn host_and_port(text: &str, usual: Option<u16>) -> Option<(String, u16)> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port.parse().ok()?),
        _ => (text, usual?),
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    (port > 0 && !host.is_empty() && host.chars().all(is_plain)).then(|| (host.to_owned(), port))
}

/// What an app for a host is called.
fn hint(host: &str, stem: &str) -> String {
    let mut labels = host.trim_start_matches("*.").split('.');
    let first = labels.next().unwrap_or_default();
    match (first, labels.next()) {
        ("www", Some(second)) => second.to_owned(),
        ("", _) => stem.to_owned(),
        _ => first.to_owned(),
    }
}
