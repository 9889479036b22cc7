//! nginx's server blocks: what a host and a path of it come to. A block that keeps visitors out in a way that is not known
//! here is not served at all; a location whose paths would be changed is left to what is around it.

mod serve;

use std::collections::BTreeMap;
use std::sync::Arc;

use hutong_core::name::parse_host;

use crate::State;
use crate::app::app_name;
use crate::files::{Files, file_name};
use crate::join::Server;
use crate::place::{At, Mistake, short};
use crate::report::Report;

use super::scope::{Scope, Zones, fixed, is_to_https, leave, shown_names};
use super::{Directive, included, parse};
use serve::host_and_port;

/// Reads a file, and adds its routes.
pub(crate) fn import(
    path: &Arc<str>,
    text: &str,
    files: &mut Files<'_>,
    state: &mut State,
) -> Result<(), Mistake> {
    let list = parse(path, text)?;
    let mut chain = vec![path.to_string()];
    let list = included(list, files, &mut chain, &mut state.report)?;
    let stem = file_name(path).split('.').next().unwrap_or_default();
    let mut reading = Reading {
        stem: app_name(stem),
        upstreams: BTreeMap::new(),
        zones: Zones::default(),
        sends_plain: false,
        files,
        state,
    };
    reading.declarations(&list);
    reading.context(&list, &Scope::default());
    Ok(())
}

/// Servers behind a name.
#[derive(Clone, Default)]
struct Upstream {
    servers: Vec<Server>,
    balance: Option<&'static str>,
    by: Option<&'static str>,
    max_requests: Option<u32>,
}

/// What answers in a location.
#[derive(Clone)]
struct Pass {
    at: At,
    protocol: &'static str,
    target: String,
}

#[derive(Clone, Copy, PartialEq)]
enum Match {
    Prefix,
    Exact,
    Regex,
    Named,
}

#[derive(Clone)]
struct Location {
    at: At,
    matching: Match,
    path: String,
    scope: Scope,
    pass: Option<Pass>,
    alias: Option<String>,
    tries: Vec<String>,
    script_root: Option<String>,
    script_index: Option<String>,
    to_https: bool,
    /// Its paths are changed, or something else answers: why it is not served.
    refused: Option<String>,
}

impl Location {
    fn what(&self) -> String {
        let sign = match self.matching {
            Match::Prefix => "",
            Match::Exact => "= ",
            Match::Regex => "~ ",
            Match::Named => "@",
        };
        format!("location {sign}{}", short(&self.path))
    }
}

struct Reading<'a, 'b> {
    stem: String,
    upstreams: BTreeMap<String, Upstream>,
    zones: Zones,
    /// An `if` of the server block at hand sends plain requests to HTTPS.
    sends_plain: bool,
    files: &'a mut Files<'b>,
    state: &'a mut State,
}

impl Reading<'_, '_> {
    fn report(&mut self) -> &mut Report {
        &mut self.state.report
    }

    /// Upstreams and zones hold wherever they stand.
    fn declarations(&mut self, list: &[Directive]) {
        for directive in list {
            match directive.name.as_str() {
                "http" => self.declarations(directive.block()),
                "upstream" => self.upstream(directive),
                "limit_req_zone" | "limit_conn_zone" => {
                    self.zones.read(directive, &mut self.state.report);
                }
                _ => {}
            }
        }
    }

    fn upstream(&mut self, directive: &Directive) {
        let name = directive.word(0).to_owned();
        let report = &mut self.state.report;
        report.used(
            &directive.at,
            "upstream",
            format!("servers behind {}", short(&name)),
        );
        let mut upstream = Upstream::default();
        for inner in directive.block() {
            let (at, what) = (&inner.at, inner.name.as_str());
            match what {
                "server" => {
                    if let Some(server) = server(inner, &mut upstream, report) {
                        upstream.servers.push(server);
                    }
                }
                "least_conn" => report.used(at, what, "balance.method = \"least\", the default"),
                "ip_hash" => {
                    (upstream.balance, upstream.by) = (Some("hash"), Some("ip"));
                    report.used(at, what, "balance.method = \"hash\", by = \"ip\"");
                }
                "hash" => {
                    let by = match inner.word(0) {
                        "$remote_addr" | "$binary_remote_addr" => Some("ip"),
                        "$request_uri" | "$uri" => Some("path"),
                        _ => None,
                    };
                    match by {
                        Some(by) => {
                            (upstream.balance, upstream.by) = (Some("hash"), Some(by));
                            report.used(
                                at,
                                what,
                                format!("balance.method = \"hash\", by = \"{by}\""),
                            );
                        }
                        None => report.left(
                            at,
                            what,
                            "a hash is by address, by path, or by a header: balance.by",
                        ),
                    }
                }
                "sticky" => {
                    upstream.balance = Some("sticky");
                    report.used(at, what, "balance.method = \"sticky\"");
                }
                "keepalive" | "keepalive_timeout" | "keepalive_requests" | "zone" | "random"
                | "least_time" | "queue" => {
                    report.left(
                        at,
                        what,
                        "connections are kept and shared in Hutong's own way",
                    );
                }
                _ => report.left(at, what, "it is not known here"),
            }
        }
        self.upstreams.insert(name, upstream);
    }

    fn context(&mut self, list: &[Directive], outer: &Scope) {
        let mut scope = outer.inner();
        for directive in list {
            let (at, what) = (&directive.at, directive.name.as_str());
            if matches!(
                what,
                "http" | "server" | "upstream" | "limit_req_zone" | "limit_conn_zone"
            ) {
                continue;
            }
            let report = &mut self.state.report;
            if scope.read(directive, &self.zones, self.files, report) {
                continue;
            }
            match fixed(directive) {
                Some((true, text)) => report.used(at, what, text),
                Some((false, text)) => report.left(at, what, text),
                None => report.left(at, what, "it is not known here"),
            }
            leave(
                directive.block(),
                "it goes with the block around it",
                report,
            );
        }
        for directive in list {
            match directive.name.as_str() {
                "http" => self.context(directive.block(), &scope),
                "server" => self.server(directive, &scope),
                _ => {}
            }
        }
    }

    fn server(&mut self, directive: &Directive, outer: &Scope) {
        let mut scope = outer.inner();
        let names = self.names(directive);
        let (mut plain, mut secure) = (false, false);
        let mut to_https = false;
        let mut tries = Vec::new();
        self.sends_plain = false;
        for inner in directive.block() {
            let (at, what) = (&inner.at, inner.name.as_str());
            match what {
                "server_name" | "location" => {}
                "listen" => {
                    let is_secure = self.listen(inner);
                    secure |= is_secure;
                    plain |= !is_secure;
                }
                "ssl" => {
                    secure |= inner.word(0) == "on";
                    self.report()
                        .used(at, what, "every host gets a certificate");
                }
                "return" | "rewrite" | "if" => {
                    to_https |= self.redirect(inner, &names, &mut scope);
                }
                "try_files" => {
                    tries = inner.texts().into_iter().map(str::to_owned).collect();
                    self.report().used(at, what, "which files answer");
                }
                "ssl_certificate" | "ssl_certificate_key" => {
                    self.certificate(inner, directive.block(), &names);
                }
                _ => self.other(inner, &mut scope),
            }
        }
        if !plain && !secure {
            plain = true;
        }
        let mut locations = Vec::new();
        for inner in directive
            .block()
            .iter()
            .filter(|inner| inner.name == "location")
        {
            self.location(inner, &scope, &tries, &names, &mut locations);
        }
        for host in &names {
            let listen = self.state.listens.entry(host.clone()).or_default();
            listen.plain |= plain && !to_https && !self.sends_plain;
            listen.secure |= secure && !to_https;
        }
        let what = shown_names(&names, &directive.at);
        let sends_all =
            |one: &Location| one.matching == Match::Prefix && one.path == "/" && one.to_https;
        if to_https || locations.iter().any(sends_all) {
            let text = "plain requests are sent to HTTPS where a host has a certificate";
            self.report().used(&directive.at, &what, text);
            for host in &names {
                if let Some(listen) = self.state.listens.get_mut(host) {
                    listen.plain = false;
                }
            }
            for location in &locations {
                self.pass_left(location);
            }
            return;
        }
        if let Some(why) = guard(&scope, &locations) {
            self.report().left(
                &directive.at,
                &what,
                format!("its visitors are not let in: {why}; take that out of the file to import the rest, and look who gets in then"),
            );
            for location in &locations {
                self.pass_left(location);
            }
            return;
        }
        let is_root = |one: &Location| one.matching == Match::Prefix && one.path == "/";
        let is_open = !locations.iter().any(is_root);
        if is_open && (locations.is_empty() || scope.root.is_some()) {
            // Files of the block itself.
            locations.push(Location {
                at: directive.at.clone(),
                matching: Match::Prefix,
                path: "/".to_owned(),
                scope: scope.inner(),
                pass: None,
                alias: None,
                tries,
                script_root: None,
                script_index: None,
                to_https: false,
                refused: None,
            });
        }
        self.routes(&names, &locations);
    }

    fn names(&mut self, directive: &Directive) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for inner in directive
            .block()
            .iter()
            .filter(|one| one.name == "server_name")
        {
            for word in &inner.words {
                let name = word.text.as_str();
                let report = &mut self.state.report;
                if matches!(name, "_" | "" | "localhost" | "default") {
                    report.left(
                        &word.at,
                        "server_name",
                        "no app answers for hosts that nobody names: put its host into `domains`",
                    );
                    continue;
                }
                let below = name.strip_prefix('.');
                let wanted = match below {
                    Some(rest) => vec![rest.to_owned(), format!("*.{rest}")],
                    None => vec![name.to_owned()],
                };
                for name in wanted {
                    match parse_host(&name) {
                        Ok(host) => {
                            report.used(&word.at, "server_name", format!("domains, {host}"));
                            if !names.contains(&host) {
                                names.push(host);
                            }
                        }
                        Err(_) => report.left(
                            &word.at,
                            "server_name",
                            format!(
                                "`{}` is no host: name each, or all below one as *.example.com",
                                short(&name)
                            ),
                        ),
                    }
                }
            }
        }
        names
    }

    /// Whether it listens for HTTPS.
    fn listen(&mut self, directive: &Directive) -> bool {
        let texts = directive.texts();
        let address = texts.first().copied().unwrap_or_default();
        let port = match address.rsplit_once(':') {
            Some((_, port)) if !port.contains(']') => port,
            _ if address.contains(['.', '*', ']', ':']) => "80",
            _ => address,
        };
        let is_secure = texts.contains(&"ssl") || texts.contains(&"quic");
        let state = &mut *self.state;
        let (at, what) = (&directive.at, "listen");
        match port {
            "80" if !is_secure => {
                state.server.http = Some("0.0.0.0:80".into());
                state.report.used(at, what, "server.toml: http = \"0.0.0.0:80\"");
            }
            "443" => {
                state.server.https = Some("0.0.0.0:443".into());
                state.report.used(at, what, "server.toml: https = \"0.0.0.0:443\"");
            }
            _ => state.report.left(
                at,
                what,
                "visitors come by the two addresses of the server: `http` and `https` of the server file",
            ),
        }
        for option in texts
            .iter()
            .skip(1)
            .filter(|option| **option == "proxy_protocol")
        {
            let why = "name the proxies before this server in `trusted_proxies`, and set `proxy_protocol`";
            state.report.left(at, option, why);
        }
        is_secure || port == "443"
    }

    /// A certificate or a key; `around` is what stands beside it, its key among that.
    fn certificate(&mut self, directive: &Directive, around: &[Directive], names: &[String]) {
        let name = app_name(names.first().map_or(self.stem.as_str(), String::as_str));
        let all = |name: &'static str| around.iter().filter(move |one| one.name == name);
        let text = match directive.name.as_str() {
            "ssl_certificate" => {
                let index = all("ssl_certificate").position(|one| std::ptr::eq(one, directive));
                let key = all("ssl_certificate_key").nth(index.unwrap_or(0));
                format!(
                    "hutong cert add {name} --cert {} --key {}; or leave it: with [acme] in the server file every host gets one by itself",
                    short(directive.word(0)),
                    key.map_or_else(|| "FILE".to_owned(), |key| short(key.word(0)))
                )
            }
            _ => "it goes with its certificate, into the same `hutong cert add`".to_owned(),
        };
        self.report()
            .leave_to_do(&directive.at, &directive.name, text);
    }

    /// `return`, `rewrite` and `if` of a server: whether all of its requests are sent to HTTPS.
    fn redirect(&mut self, directive: &Directive, names: &[String], scope: &mut Scope) -> bool {
        let (at, what) = (&directive.at, directive.name.as_str());
        let report = &mut self.state.report;
        match what {
            "return" => {
                if returns_to_https(directive, names) {
                    report.used(
                        at,
                        what,
                        "plain requests are sent to HTTPS where a host has a certificate",
                    );
                    return true;
                }
                let (_, why) = refusal(directive);
                report.left(at, what, why);
                scope.guard = Some(why.to_owned());
                false
            }
            "rewrite" => {
                let is_permanent = matches!(directive.word(2), "permanent" | "redirect");
                if is_permanent && is_to_https(directive.word(1), names) {
                    report.used(
                        at,
                        what,
                        "plain requests are sent to HTTPS where a host has a certificate",
                    );
                    return true;
                }
                report.left(at, what, REWRITE);
                false
            }
            _ => {
                let sends = |inner: &Directive| {
                    let by_rewrite = inner.name == "rewrite" && is_to_https(inner.word(1), names);
                    by_rewrite || returns_to_https(inner, names)
                };
                if !directive.block().is_empty() && directive.block().iter().all(sends) {
                    report.used(
                        at,
                        what,
                        "plain requests are sent to HTTPS where a host has a certificate",
                    );
                    for inner in directive.block() {
                        report.used(&inner.at, &inner.name, "the same");
                    }
                    self.sends_plain = true;
                    return false;
                }
                let why = "`if` may keep visitors out, and is not understood";
                report.left(at, what, format!("{why}: nobody is let in here"));
                leave(directive.block(), why, report);
                scope.guard = Some(why.into());
                false
            }
        }
    }

    /// What is inherited, or fixed, or not known.
    fn other(&mut self, directive: &Directive, scope: &mut Scope) {
        let report = &mut self.state.report;
        if !scope.read(directive, &self.zones, self.files, report) {
            let (at, what) = (&directive.at, directive.name.as_str());
            match fixed(directive) {
                Some((true, text)) => report.used(at, what, text),
                Some((false, text)) => report.left(at, what, text),
                None => report.left(at, what, "it is not known here"),
            }
        }
        leave(
            directive.block(),
            "it goes with the block around it",
            &mut self.state.report,
        );
    }

    fn location(
        &mut self,
        directive: &Directive,
        outer: &Scope,
        tries: &[String],
        names: &[String],
        locations: &mut Vec<Location>,
    ) {
        let texts = directive.texts();
        let (matching, path) = match texts.as_slice() {
            ["=", path, ..] => (Match::Exact, *path),
            ["~" | "~*", path, ..] => (Match::Regex, *path),
            ["^~", path, ..] => (Match::Prefix, *path),
            [path, ..] if path.starts_with('@') => (Match::Named, path.trim_start_matches('@')),
            [path, ..] => (Match::Prefix, *path),
            [] => (Match::Prefix, "/"),
        };
        let mut location = Location {
            at: directive.at.clone(),
            matching,
            path: path.to_owned(),
            scope: outer.inner(),
            pass: None,
            alias: None,
            tries: tries.to_vec(),
            script_root: None,
            script_index: None,
            to_https: false,
            refused: None,
        };
        if path.starts_with("/.well-known/acme-challenge") {
            let text = "certificates are asked for, and answered for, by Hutong itself";
            self.report()
                .replaced(&directive.at, &location.what(), text);
            leave(directive.block(), text, &mut self.state.report);
            return;
        }
        for inner in directive.block() {
            if inner.name != "location" {
                self.inside(inner, names, &mut location);
            }
        }
        let scope = location.scope.clone();
        let tries = location.tries.clone();
        locations.push(location);
        for inner in directive
            .block()
            .iter()
            .filter(|inner| inner.name == "location")
        {
            self.location(inner, &scope, &tries, names, locations);
        }
    }

    fn inside(&mut self, directive: &Directive, names: &[String], location: &mut Location) {
        let (at, what) = (&directive.at, directive.name.as_str());
        let first = directive.word(0).to_owned();
        match what {
            "proxy_pass" | "uwsgi_pass" | "fastcgi_pass" | "grpc_pass" => {
                let protocol = match what {
                    "proxy_pass" => "http",
                    "uwsgi_pass" => "uwsgi",
                    "fastcgi_pass" => "fastcgi",
                    _ => "h2c",
                };
                location.pass = Some(Pass {
                    at: at.clone(),
                    protocol,
                    target: first,
                });
            }
            "scgi_pass" | "memcached_pass" => {
                let why = "such servers are not spoken to";
                self.report().left(at, what, why);
                location.refused = Some(why.into());
            }
            "alias" => {
                self.report().used(at, what, "where the files are");
                location.alias = Some(first);
            }
            "try_files" => {
                self.report().used(at, what, "which files answer");
                location.tries = directive.texts().into_iter().map(str::to_owned).collect();
            }
            "fastcgi_index" => {
                self.report().used(at, what, "fastcgi.index");
                location.script_index = Some(first);
            }
            "fastcgi_param" if first == "SCRIPT_FILENAME" => {
                let root = directive
                    .word(1)
                    .strip_suffix("$fastcgi_script_name")
                    .unwrap_or_default();
                let root = root.trim_end_matches('/');
                if root.starts_with('/') {
                    location.script_root = Some(root.to_owned());
                }
                self.report().used(at, what, "fastcgi.root");
            }
            "rewrite" => {
                self.report().left(at, what, REWRITE);
                location.refused = Some("`rewrite` changes its paths".into());
            }
            "return" => {
                if returns_to_https(directive, names) {
                    let text = "plain requests are sent to HTTPS where a host has a certificate";
                    self.report().used(at, what, text);
                    location.to_https = true;
                    return;
                }
                let (keeps_out, why) = refusal(directive);
                self.report().left(at, what, why);
                location.refused = Some(why.to_owned());
                if keeps_out {
                    location.scope.guard = Some("`return` keeps visitors out of a path".into());
                }
            }
            "if" => {
                let why = "`if` may keep visitors out, and is not understood";
                let report = &mut self.state.report;
                report.left(at, what, format!("{why}: nobody is let in here"));
                leave(directive.block(), why, report);
                location.scope.guard = Some(why.into());
            }
            "stub_status" => {
                let text = "`hutong gateway` shows routes with their counts";
                self.report().replaced(at, what, text);
                location.refused = Some(text.into());
            }
            _ => self.other(directive, &mut location.scope),
        }
    }
}

const REWRITE: &str = "paths are not rewritten: an app gets them as visitors send them, or without the route's own (`strip_prefix`)";

/// Why nobody is let in, anywhere in a block: what is around a location would answer for it otherwise.
fn guard(scope: &Scope, locations: &[Location]) -> Option<String> {
    if let Some(why) = scope.settled().guard {
        return Some(why);
    }
    let settings = scope.settled().settings;
    for one in locations {
        let settled = one.scope.settled();
        // Names that begin with a dot: nobody serves them.
        let is_dotted = one.matching == Match::Regex && one.path.starts_with("/\\.");
        if is_dotted || one.to_https {
            continue;
        }
        if let Some(why) = settled.guard {
            return Some(format!("{} (line {}): {why}", one.what(), one.at.line));
        }
        let own = (
            &settled.settings.allow,
            &settled.settings.deny,
            &settled.settings.auth,
        );
        if own != (&settings.allow, &settings.deny, &settings.auth) {
            return Some(format!(
                "{} (line {}): who is let in there is not who is let in elsewhere, and an app has one rule for that",
                one.what(),
                one.at.line
            ));
        }
    }
    None
}

fn returns_to_https(directive: &Directive, names: &[String]) -> bool {
    let is_code = matches!(directive.word(0), "301" | "302" | "307" | "308");
    directive.name == "return" && is_code && is_to_https(directive.word(1), names)
}

/// What else a `return` is: whether it keeps visitors out, and why it is left out.
fn refusal(directive: &Directive) -> (bool, &'static str) {
    match directive.word(0) {
        "401" | "403" | "444" => (true, "it keeps visitors out of a path"),
        "301" | "302" | "303" | "307" | "308" => (
            false,
            "Hutong sends visitors to HTTPS and nowhere else: list the other host in `domains`, or have an app answer so",
        ),
        _ => (false, "answers come from apps"),
    }
}

fn server(directive: &Directive, upstream: &mut Upstream, report: &mut Report) -> Option<Server> {
    let (at, what) = (&directive.at, "server");
    let address = directive.word(0);
    let mut weight = 1;
    for option in directive.words.iter().skip(1) {
        let text = option.text.as_str();
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        match (key, value.parse::<u32>()) {
            ("weight", Ok(wanted)) => weight = wanted.clamp(1, 100),
            ("max_conns", Ok(count)) => {
                upstream.max_requests = Some(count).filter(|count| *count > 0)
            }
            ("down" | "backup", _) => {
                report.left(at, what, format!("`{key}`: all of an app's servers share the requests, so this one is left out"));
                return None;
            }
            _ => report.left(
                &option.at,
                text,
                "servers that fail are spared in Hutong's own way (`balance.eject`)",
            ),
        }
    }
    if address.starts_with("unix:") {
        report.left(
            at,
            what,
            "a server behind Hutong has an IP address and a port",
        );
        return None;
    }
    let Some((host, port)) = host_and_port(address, Some(80)) else {
        report.left(
            at,
            what,
            format!("`{}` is no address with a port", short(address)),
        );
        return None;
    };
    report.used(at, what, format!("{host}:{port}, weight {weight}"));
    Some(Server {
        at: at.clone(),
        host,
        port,
        weight,
    })
}
