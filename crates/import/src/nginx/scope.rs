//! What nginx inherits from block to block: bounds, who is let in, where files are.

use std::collections::BTreeMap;
use std::time::Duration;

use hutong_core::networks::Network;
use hutong_core::spec::parse_user;

use crate::app::{Auth, Settings};
use crate::files::Files;
use crate::place::{At, short};
use crate::report::Report;
use crate::units::{rate, size, time_or_seconds, within};

use super::Directive;

/// Zones of `limit_req_zone` and `limit_conn_zone`, where they count by address.
#[derive(Default)]
pub(super) struct Zones {
    pub rates: BTreeMap<String, String>,
    pub connections: Vec<String>,
}

impl Zones {
    /// `limit_req_zone $binary_remote_addr zone=one:10m rate=10r/s;`
    pub fn read(&mut self, directive: &Directive, report: &mut Report) {
        let (at, what) = (&directive.at, directive.name.as_str());
        let texts = directive.texts();
        let by_address = matches!(
            texts.first(),
            Some(&("$binary_remote_addr" | "$remote_addr"))
        );
        let option = |name: &str| {
            let mut found = texts.iter().filter_map(|text| text.strip_prefix(name));
            found.next().unwrap_or_default()
        };
        let zone = option("zone=").split(':').next().unwrap_or_default();
        if !by_address || zone.is_empty() {
            report.left(at, what, "visitors are counted by address, or all together");
            return;
        }
        if what == "limit_conn_zone" {
            self.connections.push(zone.to_owned());
            report.used(at, what, "for `limit_conn`");
            return;
        }
        let (count, unit) = option("rate=").split_once("r/").unwrap_or_default();
        let seconds = match unit {
            "s" => 1.0,
            "m" => 60.0,
            _ => 0.0,
        };
        match rate(count.parse().unwrap_or(0.0), seconds) {
            Some(rate) => {
                report.used(at, what, format!("for `limit_req`: {rate}"));
                self.rates.insert(zone.to_owned(), rate);
            }
            None => report.left(at, what, "its rate is not understood"),
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct Scope {
    pub settings: Settings,
    pub root: Option<String>,
    pub index: Option<String>,
    /// Why nobody can be let in as the file wants it.
    pub guard: Option<String>,
    /// In order: allowed or denied, and who.
    access: Vec<(bool, String)>,
    own_access: bool,
    realm: Option<String>,
    users: Option<Result<Vec<String>, String>>,
}

impl Scope {
    /// What a block inside begins with.
    pub fn inner(&self) -> Scope {
        Scope {
            own_access: false,
            ..self.clone()
        }
    }

    /// Takes in a directive, if it is one of these.
    pub fn read(
        &mut self,
        directive: &Directive,
        zones: &Zones,
        files: &mut Files<'_>,
        report: &mut Report,
    ) -> bool {
        let (at, what) = (&directive.at, directive.name.as_str());
        let first = directive.word(0);
        match what {
            "client_max_body_size" => match size(first) {
                Some(bytes) => {
                    self.settings.max_body = Some(bytes).filter(|bytes| *bytes > 0);
                    report.used(at, what, "traffic.max_body");
                }
                None => report.left(at, what, "this is no size"),
            },
            "proxy_read_timeout"
            | "uwsgi_read_timeout"
            | "fastcgi_read_timeout"
            | "grpc_read_timeout" => match time_or_seconds(first) {
                Some(time) => {
                    let (low, high) = (Duration::from_millis(10), Duration::from_secs(3600));
                    self.settings.response = Some(within(time, low, high));
                    report.used(at, what, "timeouts.response: until an answer begins");
                }
                None => report.left(at, what, "this is no time"),
            },
            "gzip" | "brotli" | "zstd" => {
                let on = first == "on";
                if what == "gzip" {
                    self.settings.compress = Some(false).filter(|_| !on);
                }
                report.used(
                    at,
                    what,
                    match on || what != "gzip" {
                        true => "answers are compressed by zstd, gzip and Brotli",
                        false => "traffic.compress = false",
                    },
                );
            }
            "root" => {
                self.root = Some(first.to_owned());
                report.used(at, what, "where the files are");
            }
            "index" => {
                self.index = Some(first.to_owned());
                match directive
                    .texts()
                    .iter()
                    .any(|name| name.starts_with("index.html") || name.ends_with(".php"))
                {
                    true => report.used(at, what, "a folder answers with its index.html"),
                    false => report.left(
                        at,
                        what,
                        "a folder answers with its index.html, and with no other file",
                    ),
                }
            }
            "allow" | "deny" => {
                if !self.own_access {
                    self.access.clear();
                    self.own_access = true;
                }
                self.access.push((what == "allow", first.to_owned()));
                report.used(at, what, format!("traffic.{what}, {}", short(first)));
            }
            "auth_basic" => {
                self.realm = Some(first.to_owned()).filter(|realm| realm != "off");
                report.used(at, what, "[traffic.auth]");
            }
            "auth_basic_user_file" => {
                let found = match files.get(&at.path, first) {
                    Some(found) => Some(found),
                    None => files.matching(first).into_iter().next(),
                };
                let users = match found {
                    Some((_, text)) => users(text),
                    None => Err(format!(
                        "the users of {} were not handed over with it",
                        short(first)
                    )),
                };
                report.used(at, what, "[traffic.auth]");
                self.users = Some(users);
            }
            "limit_req" => {
                let option = |name: &str| {
                    let texts = directive.texts();
                    let mut found = texts.iter().filter_map(|text| text.strip_prefix(name));
                    found.next().map(str::to_owned)
                };
                let zone = option("zone=").unwrap_or_default();
                let burst = option("burst=").and_then(|burst| burst.parse::<u32>().ok());
                match zones.rates.get(&zone) {
                    Some(rate) => {
                        let burst = burst.filter(|burst| *burst > 0);
                        self.settings.rate_per_ip = Some((rate.clone(), burst));
                        report.used(at, what, "traffic.rate_per_ip; who is too fast gets 429");
                    }
                    None => report.left(
                        at,
                        what,
                        "its zone does not count by address; set traffic.rate_per_ip",
                    ),
                }
            }
            "limit_conn" => {
                let count = directive
                    .word(1)
                    .parse::<u32>()
                    .ok()
                    .filter(|count| *count > 0);
                match count.filter(|_| zones.connections.iter().any(|zone| zone == first)) {
                    Some(count) => {
                        self.settings.max_concurrent_per_ip = Some(count.min(1_000_000));
                        report.used(at, what, "traffic.max_concurrent_per_ip");
                    }
                    None => report.left(at, what, "its zone does not count by address"),
                }
            }
            "add_header" if first.eq_ignore_ascii_case("strict-transport-security") => {
                let mut seconds = directive
                    .word(1)
                    .split(';')
                    .filter_map(|part| part.trim().strip_prefix("max-age="));
                let seconds = seconds
                    .next()
                    .and_then(|text| text.trim_matches('"').parse::<u64>().ok());
                match seconds {
                    Some(seconds @ 1..=63_072_000) => {
                        self.settings.hsts = Some(Duration::from_secs(seconds));
                        report.used(at, what, "https.hsts");
                    }
                    _ => report.left(at, what, "https.hsts is up to two years"),
                }
            }
            _ => return self.guarded(directive, report),
        }
        true
    }

    /// Takes in what may keep visitors out and is not understood: then it is not served at all.
    fn guarded(&mut self, directive: &Directive, report: &mut Report) -> bool {
        let (at, what) = (&directive.at, directive.name.as_str());
        let first = directive.word(0);
        let guards = match what {
            "satisfy" => first == "any",
            "ssl_verify_client" => first != "off",
            "valid_referers" | "secure_link" | "secure_link_md5" | "internal" | "limit_except" => {
                true
            }
            _ => {
                what.starts_with("auth_")
                    || what.starts_with("access_by_")
                    || what.starts_with("rewrite_by_")
                    || what == "js_access"
            }
        };
        if guards {
            let why = format!("`{what}` keeps visitors out, and Hutong does not know how");
            report.left(at, what, format!("{why}: nobody is let in here"));
            self.guard = Some(why);
        }
        guards || what == "satisfy" || what == "ssl_verify_client"
    }

    /// All of it, once a block is at its end.
    pub fn settled(&self) -> Scope {
        let mut scope = self.clone();
        if let Err(why) = scope.admit() {
            scope.guard.get_or_insert(why);
        }
        if let Some(realm) = &scope.realm {
            match &scope.users {
                Some(Ok(users)) => {
                    let plain = |c: char| !c.is_control() && c != '"' && c != '\\';
                    let is_good =
                        !realm.is_empty() && realm.len() <= 100 && realm.chars().all(plain);
                    scope.settings.auth = Some(Auth {
                        realm: Some(realm.clone()).filter(|_| is_good),
                        users: users.clone(),
                    });
                }
                Some(Err(why)) => scope.guard = Some(why.clone()),
                None => {
                    scope.guard = Some("a password is asked for, and no users are named".into())
                }
            }
        }
        scope
    }

    /// Rules in their order become two lists. Where the order matters, the stricter reading holds.
    fn admit(&mut self) -> Result<(), String> {
        let mut rules = self.access.clone();
        let last = rules.last().filter(|(_, who)| who == "all").cloned();
        if last.is_some() {
            rules.pop();
        }
        let nobody_else = matches!(last, Some((false, _)));
        for (allowed, who) in rules {
            let network: Network = who
                .parse()
                .map_err(|_| format!("`{}` is no address or network", short(&who)))?;
            match allowed {
                true if nobody_else => self.settings.allow.push(network.to_string()),
                true => {}
                false => self.settings.deny.push(network.to_string()),
            }
        }
        match nobody_else && self.settings.allow.is_empty() {
            true => Err("`deny all` lets nobody in".into()),
            false => Ok(()),
        }
    }
}

/// The lines of a file of users; all of them are taken, or none.
fn users(text: &str) -> Result<Vec<String>, String> {
    let mut users = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        parse_user(line)?;
        users.push(line.to_owned());
    }
    match users.len() {
        0 => Err("the file of users is empty".into()),
        _ => Ok(users),
    }
}

/// What nginx is told that changes nothing here, or that is Hutong's own affair: whether it holds all the same, and how.
pub(super) fn fixed(directive: &Directive) -> Option<(bool, &'static str)> {
    let name = directive.name.as_str();
    let sent = [
        "host",
        "x-real-ip",
        "x-forwarded-for",
        "x-forwarded-proto",
        "x-forwarded-host",
        "x-forwarded-port",
        "upgrade",
        "connection",
    ];
    let header = directive.word(0).to_ascii_lowercase();
    Some(match name {
        "proxy_set_header" if sent.contains(&header.as_str()) => (
            true,
            "Hutong sends Host, X-Real-IP and X-Forwarded-* by itself, and passes WebSockets on",
        ),
        "proxy_set_header" | "proxy_hide_header" | "proxy_pass_header" | "add_header"
        | "more_set_headers" | "expires" | "etag" | "charset" | "types" | "default_type"
        | "uwsgi_param" | "fastcgi_param" | "grpc_set_header" => (
            false,
            "an app sends its own headers; files get ETag, type and Cache-Control by themselves",
        ),
        "access_log" | "error_log" | "log_format" | "log_not_found" | "rewrite_log" => (
            false,
            "logs are kept for each app: `hutong logs APP`, `hutong logs APP --access`",
        ),
        "error_page" | "proxy_intercept_errors" => (false, "error pages are Hutong's own"),
        "ssl_protocols"
        | "ssl_ciphers"
        | "ssl_prefer_server_ciphers"
        | "ssl_ecdh_curve"
        | "ssl_dhparam"
        | "ssl_session_timeout"
        | "ssl_session_cache"
        | "ssl_session_tickets"
        | "ssl_conf_command"
        | "ssl_buffer_size"
        | "ssl_early_data" => (
            false,
            "TLS 1.2 and 1.3 are served with the ciphers that are sound today",
        ),
        "ssl_stapling"
        | "ssl_stapling_verify"
        | "ssl_trusted_certificate"
        | "resolver"
        | "resolver_timeout" => (false, "nothing has to be looked up for visitors"),
        "ssl_client_certificate" | "ssl_crl" | "ssl_verify_depth" => {
            (false, "visitors are not asked for certificates")
        }
        "proxy_redirect" => (
            false,
            "an app's redirects go out as they are; it gets the visitor's Host",
        ),
        "proxy_http_version"
        | "proxy_buffering"
        | "proxy_buffer_size"
        | "proxy_buffers"
        | "proxy_busy_buffers_size"
        | "proxy_request_buffering"
        | "proxy_max_temp_file_size"
        | "proxy_temp_file_write_size"
        | "proxy_connect_timeout"
        | "proxy_send_timeout"
        | "proxy_next_upstream"
        | "proxy_next_upstream_tries"
        | "proxy_next_upstream_timeout"
        | "proxy_ignore_client_abort"
        | "proxy_socket_keepalive"
        | "uwsgi_connect_timeout"
        | "uwsgi_send_timeout"
        | "uwsgi_buffers"
        | "uwsgi_buffer_size"
        | "uwsgi_buffering"
        | "fastcgi_connect_timeout"
        | "fastcgi_send_timeout"
        | "fastcgi_buffers"
        | "fastcgi_buffer_size"
        | "fastcgi_buffering"
        | "fastcgi_split_path_info"
        | "fastcgi_intercept_errors"
        | "grpc_send_timeout"
        | "grpc_connect_timeout" => (
            false,
            "bodies are streamed, and what cannot be reached is tried elsewhere, in Hutong's own way",
        ),
        "proxy_cache"
        | "proxy_cache_path"
        | "proxy_cache_valid"
        | "proxy_cache_key"
        | "proxy_cache_bypass"
        | "proxy_no_cache"
        | "proxy_cache_use_stale"
        | "fastcgi_cache"
        | "fastcgi_cache_path"
        | "uwsgi_cache"
        | "open_file_cache"
        | "open_file_cache_valid" => (false, "answers are not cached yet"),
        "keepalive_timeout"
        | "keepalive_requests"
        | "client_body_timeout"
        | "client_header_timeout"
        | "client_header_buffer_size"
        | "large_client_header_buffers"
        | "client_body_buffer_size"
        | "send_timeout"
        | "reset_timedout_connection"
        | "lingering_close"
        | "limit_rate"
        | "client_body_temp_path" => (
            false,
            "Hutong has bounds of its own for slow visitors and long heads",
        ),
        "gzip_types" | "gzip_min_length" | "gzip_comp_level" | "gzip_vary" | "gzip_proxied"
        | "gzip_buffers" | "gzip_http_version" | "gzip_disable" | "gzip_static"
        | "brotli_types" | "brotli_comp_level" | "brotli_static" => (
            false,
            "text is compressed where that is safe and pays; finished .br, .zst and .gz files are used",
        ),
        "sendfile"
        | "tcp_nopush"
        | "tcp_nodelay"
        | "aio"
        | "directio"
        | "server_tokens"
        | "server_names_hash_bucket_size"
        | "server_names_hash_max_size"
        | "types_hash_max_size"
        | "types_hash_bucket_size"
        | "variables_hash_max_size"
        | "map_hash_bucket_size"
        | "user"
        | "worker_processes"
        | "worker_connections"
        | "worker_rlimit_nofile"
        | "pid"
        | "events"
        | "use"
        | "multi_accept"
        | "daemon"
        | "master_process"
        | "load_module"
        | "worker_cpu_affinity"
        | "worker_shutdown_timeout"
        | "http2"
        | "http2_max_concurrent_streams"
        | "underscores_in_headers"
        | "merge_slashes"
        | "absolute_redirect"
        | "port_in_redirect"
        | "server_name_in_redirect"
        | "ignore_invalid_headers"
        | "http3"
        | "quic_retry"
        | "disable_symlinks"
        | "pcre_jit"
        | "thread_pool"
        | "env"
        | "ssl_engine" => (false, "it is of nginx's own; the gateway has its ways"),
        "real_ip_header" | "set_real_ip_from" | "real_ip_recursive" => (
            false,
            "name proxies before this server in `trusted_proxies` of the server file",
        ),
        "autoindex" | "autoindex_exact_size" | "autoindex_localtime" => (
            false,
            "folders are not listed: one without index.html is not found",
        ),
        "limit_req_status"
        | "limit_conn_status"
        | "limit_req_log_level"
        | "limit_conn_log_level" => (false, "who is too fast gets 429"),
        "stub_status" => (false, "`hutong gateway` shows routes with their counts"),
        "map" | "geo" | "split_clients" | "set" | "sub_filter" | "sub_filter_once" | "mirror"
        | "perl_modules" | "js_import" | "lua_package_path" | "lua_shared_dict" => {
            (false, "there are no variables and no scripts in routes")
        }
        "stream" | "mail" => (false, "visitors come by HTTP"),
        "modsecurity" | "modsecurity_rules" | "modsecurity_rules_file" => {
            (false, "there is no web application firewall yet")
        }
        "break" => (true, "nothing is rewritten"),
        _ => return None,
    })
}

/// Says of a whole block that it is left out.
pub(super) fn leave(list: &[Directive], why: &str, report: &mut Report) {
    for directive in list {
        report.left(&directive.at, &directive.name, why);
        leave(directive.block(), why, report);
    }
}

/// Where a redirect leads to this very site over HTTPS.
pub(super) fn is_to_https(url: &str, names: &[String]) -> bool {
    let Some(rest) = url.strip_prefix("https://") else {
        return false;
    };
    let mut hosts = vec![
        "$host",
        "${host}",
        "$http_host",
        "$server_name",
        "${server_name}",
    ];
    hosts.extend(names.iter().map(String::as_str));
    let behind = [
        "",
        "/",
        "$request_uri",
        "${request_uri}",
        "$uri",
        "$uri$is_args$args",
        "/$1",
        "$1",
    ];
    hosts
        .iter()
        .filter_map(|host| rest.strip_prefix(host))
        .any(|rest| behind.contains(&rest))
}

/// For notes on a whole server block.
pub(super) fn shown_names(names: &[String], at: &At) -> String {
    match names.is_empty() {
        true => format!("server of line {}", at.line),
        false => format!("server {}", short(&names.join(" "))),
    }
}
