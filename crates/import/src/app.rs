//! An app on its way: what is known of it, and its `hutong.toml`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hutong_core::name::MAX_APP_NAME;

use crate::place::At;

/// What it runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Run {
    /// Workers and timed jobs only.
    #[default]
    Background,
    Command(Vec<String>),
    Image(Container),
    Static {
        folder: String,
        spa: bool,
    },
    /// Addresses with weights.
    Upstream(Vec<(String, u32)>),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Container {
    pub image: String,
    pub command: Option<Vec<String>>,
    pub entrypoint: Option<Vec<String>>,
    pub mount: Option<String>,
    /// As a user of the app's own.
    pub own_user: bool,
    pub allow_root: bool,
    pub writable: Vec<String>,
    pub pull: Option<&'static str>,
    /// How often is looked where its tag leads.
    pub watch: Option<&'static str>,
}

/// Bounds of one instance.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Limits {
    pub memory: Option<u64>,
    /// Thousandths of a core.
    pub cpu: Option<u32>,
    pub pids: Option<u32>,
    pub restart_at: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Worker {
    pub command: Vec<String>,
    pub instances: u32,
    pub limits: Limits,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Cron {
    pub command: Vec<String>,
    pub schedule: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Health {
    pub path: Option<String>,
    pub interval: Option<Duration>,
    pub timeout: Option<Duration>,
    pub retries: Option<u32>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Timeouts {
    pub start: Option<Duration>,
    pub stop: Option<Duration>,
    pub response: Option<Duration>,
}

/// What holds for the visitors of an app, however they come.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Settings {
    pub strip: bool,
    pub max_body: Option<u64>,
    pub response: Option<Duration>,
    /// `false`: answers are not compressed.
    pub compress: Option<bool>,
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    pub auth: Option<Auth>,
    /// With how many at once.
    pub rate_per_ip: Option<(String, Option<u32>)>,
    pub max_concurrent_per_ip: Option<u32>,
    pub hsts: Option<Duration>,
    pub balance: Option<&'static str>,
    pub balance_by: Option<&'static str>,
    pub max_requests: Option<u32>,
}

/// Names and passwords.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Auth {
    pub realm: Option<String>,
    pub users: Vec<String>,
}

/// A path with rules of its own.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PathRule {
    pub path: String,
    pub max_body: Option<u64>,
    pub response: Option<Duration>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Draft {
    pub at: At,
    pub name: String,
    /// What others of its project call it.
    pub aliases: BTreeSet<String>,
    pub project: String,
    /// Ports of the machine at which it was reached.
    pub published: BTreeSet<u16>,
    /// Not known to speak HTTP: its name in the trade, such as PostgreSQL.
    pub tcp: Option<&'static str>,
    /// Where its files are.
    pub folder: Option<String>,
    pub run: Run,
    pub domains: Vec<String>,
    pub settings: Settings,
    /// It is an instance of another one.
    pub is_joined: bool,
    /// They were set by somebody: another's have to be the same.
    pub is_settled: bool,
    pub path_rules: Vec<PathRule>,
    pub redirect: Option<bool>,
    pub protocol: Option<&'static str>,
    /// Folder and index script.
    pub fastcgi: Option<(String, Option<String>)>,
    pub port: Option<u16>,
    pub env: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, String>,
    /// Bytes of its variables, keys and values.
    pub env_size: usize,
    /// Where its variables stand.
    pub env_at: BTreeMap<String, At>,
    /// Others of its project that it is started after.
    pub needs: Vec<(At, String)>,
    pub instances: Option<u32>,
    pub limits: Limits,
    pub health: Health,
    pub timeouts: Timeouts,
    pub data: bool,
    pub restart: Option<&'static str>,
    pub strategy: Option<&'static str>,
    pub egress: bool,
    pub share: BTreeMap<String, String>,
    pub links: BTreeMap<String, String>,
    pub callers: BTreeSet<String>,
    pub workers: BTreeMap<String, Worker>,
    pub cron: BTreeMap<String, Cron>,
    pub release: Option<Vec<String>>,
}

impl Draft {
    pub fn container(&self) -> Option<&Container> {
        match &self.run {
            Run::Image(container) => Some(container),
            _ => None,
        }
    }

    pub fn add_domain(&mut self, domain: &str) {
        if !self.domains.iter().any(|known| known == domain) {
            self.domains.push(domain.to_owned());
        }
    }

    /// Whether Hutong runs programs for its visitors.
    pub fn has_instances(&self) -> bool {
        matches!(self.run, Run::Command(_) | Run::Image(_))
    }

    /// Its `hutong.toml`.
    pub fn toml(&self) -> String {
        let mut file = Writer::default();
        let place = format!("{}:{}", self.at.path, self.at.line);
        file.line(&format!("# From {}, by `hutong import`.", plain(&place)));
        file.text("name", &self.name);
        if !self.domains.is_empty() {
            file.list("domains", &self.domains);
        }
        file.flag("strip_prefix", self.settings.strip);
        match &self.run {
            Run::Background => {}
            Run::Command(words) => file.list("command", words),
            Run::Image(container) => {
                file.text("image", &container.image);
                if let Some(words) = &container.command {
                    file.list("command", words);
                }
            }
            Run::Static { folder, spa } => {
                file.text("static", folder);
                file.flag("spa", *spa);
            }
            Run::Upstream(list) => file.upstream(list),
        }
        if let Some(protocol) = self.protocol {
            file.text("protocol", protocol);
        }
        file.number("port", self.port);
        file.number("instances", self.instances.filter(|count| *count != 1));
        file.flag("data", self.data);
        if let Some(restart) = self.restart {
            file.text("restart", restart);
        }
        if let Some(strategy) = self.strategy {
            file.text("strategy", strategy);
        }
        if self.egress {
            let why = "as before; without this line it calls nobody outside";
            file.line(&format!("egress = \"internet\"   # {why}"));
        }
        file.pairs("share", &self.share);
        file.pairs("links", &self.links);
        if !self.callers.is_empty() {
            let callers: Vec<String> = self.callers.iter().cloned().collect();
            file.list("callers", &callers);
        }
        self.tables(&mut file);
        file.text
    }

    fn tables(&self, file: &mut Writer) {
        if let Some((root, index)) = &self.fastcgi {
            file.table("fastcgi");
            file.text("root", root);
            file.optional("index", index.as_deref());
        }
        if !self.env.is_empty() {
            file.table("env");
            for (key, value) in &self.env {
                file.text(key, value);
            }
        }
        if let Some(container) = self.container() {
            container.write(file);
            if let Some(watch) = container.watch {
                file.table("push");
                file.text("watch", watch);
            }
        }
        self.limits.write("limits", file);
        if self.health != Health::default() {
            file.table("health");
            file.optional("path", self.health.path.as_deref());
            file.time("interval", self.health.interval);
            file.time("timeout", self.health.timeout);
            file.number("retries", self.health.retries);
        }
        let response = self.settings.response.or(self.timeouts.response);
        if self.timeouts.start.is_some() || self.timeouts.stop.is_some() || response.is_some() {
            file.table("timeouts");
            file.time("start", self.timeouts.start);
            file.time("stop", self.timeouts.stop);
            file.time("response", response);
        }
        if self.redirect == Some(false) || self.settings.hsts.is_some() {
            file.table("https");
            if self.redirect == Some(false) {
                file.line("redirect = false");
            }
            file.time("hsts", self.settings.hsts);
        }
        let settings = &self.settings;
        if settings.balance.is_some() || settings.max_requests.is_some() {
            file.table("balance");
            file.optional("method", settings.balance);
            file.optional("by", settings.balance_by);
            file.number("max_requests", settings.max_requests);
        }
        self.traffic(file);
        if let Some(words) = &self.release {
            file.table("release");
            file.list("command", words);
        }
        for (name, worker) in &self.workers {
            file.table(&format!("workers.{name}"));
            file.list("command", &worker.command);
            file.number(
                "instances",
                Some(worker.instances).filter(|count| *count != 1),
            );
            worker.limits.write(&format!("workers.{name}.limits"), file);
        }
        for (name, job) in &self.cron {
            file.table(&format!("cron.{name}"));
            file.list("command", &job.command);
            file.text("schedule", &job.schedule);
        }
    }

    fn traffic(&self, file: &mut Writer) {
        let settings = &self.settings;
        let is_said = settings.max_body.is_some()
            || settings.compress == Some(false)
            || settings.rate_per_ip.is_some()
            || settings.max_concurrent_per_ip.is_some()
            || !settings.allow.is_empty()
            || !settings.deny.is_empty();
        if is_said {
            file.table("traffic");
            if let Some((rate, burst)) = &settings.rate_per_ip {
                file.text("rate_per_ip", rate);
                file.number("burst_per_ip", *burst);
            }
            file.size("max_body", settings.max_body);
            file.number("max_concurrent_per_ip", settings.max_concurrent_per_ip);
            if !settings.allow.is_empty() {
                file.list("allow", &settings.allow);
            }
            if !settings.deny.is_empty() {
                file.list("deny", &settings.deny);
            }
            if settings.compress == Some(false) {
                file.line("compress = false");
            }
        }
        if let Some(auth) = &settings.auth {
            file.table("traffic.auth");
            file.optional("realm", auth.realm.as_deref());
            file.list("users", &auth.users);
        }
        for rule in &self.path_rules {
            file.line("");
            file.line("[[traffic.route]]");
            file.text("path", &rule.path);
            file.size("max_body", rule.max_body);
            file.time("response", rule.response);
        }
    }
}

impl Container {
    fn write(&self, file: &mut Writer) {
        let without = Container {
            image: self.image.clone(),
            command: self.command.clone(),
            watch: self.watch,
            ..Container::default()
        };
        if *self == without {
            return;
        }
        file.table("container");
        if let Some(words) = &self.entrypoint {
            file.list("entrypoint", words);
        }
        file.optional("mount", self.mount.as_deref());
        if self.own_user {
            file.text("user", "app");
        }
        file.flag("allow_root", self.allow_root);
        if !self.writable.is_empty() {
            file.list("writable", &self.writable);
        }
        file.optional("pull", self.pull);
    }
}

impl Limits {
    fn write(&self, table: &str, file: &mut Writer) {
        if *self == Limits::default() {
            return;
        }
        file.table(table);
        file.size("memory", self.memory);
        if let Some(millis) = self.cpu {
            file.line(&format!("cpu = {}", f64::from(millis) / 1000.0));
        }
        file.number("pids", self.pids);
        file.size("restart_at", self.restart_at);
    }
}

/// Lines of a TOML file.
#[derive(Default)]
pub(crate) struct Writer {
    pub text: String,
}

impl Writer {
    pub fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    pub fn table(&mut self, name: &str) {
        self.line("");
        self.line(&format!("[{name}]"));
    }

    pub fn text(&mut self, key: &str, value: &str) {
        self.line(&format!("{} = {}", bare(key), quoted(value)));
    }

    pub fn optional(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    pub fn list(&mut self, key: &str, values: &[String]) {
        let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
        self.line(&format!("{key} = [{}]", values.join(", ")));
    }

    fn pairs(&mut self, key: &str, pairs: &BTreeMap<String, String>) {
        if pairs.is_empty() {
            return;
        }
        let pairs: Vec<String> = pairs
            .iter()
            .map(|(key, value)| format!("{} = {}", bare(key), quoted(value)))
            .collect();
        self.line(&format!("{key} = {{ {} }}", pairs.join(", ")));
    }

    fn upstream(&mut self, list: &[(String, u32)]) {
        let one = |(url, weight): &(String, u32)| match weight {
            1 => quoted(url),
            weight => format!("{{ url = {}, weight = {weight} }}", quoted(url)),
        };
        let list: Vec<String> = list.iter().map(one).collect();
        self.line(&format!("upstream = [{}]", list.join(", ")));
    }

    pub fn flag(&mut self, key: &str, on: bool) {
        if on {
            self.line(&format!("{key} = true"));
        }
    }

    fn number(&mut self, key: &str, number: Option<impl std::fmt::Display>) {
        if let Some(number) = number {
            self.line(&format!("{key} = {number}"));
        }
    }

    fn size(&mut self, key: &str, bytes: Option<u64>) {
        if let Some(bytes) = bytes {
            self.text(key, &size(bytes));
        }
    }

    fn time(&mut self, key: &str, time: Option<Duration>) {
        if let Some(time) = time {
            self.text(key, &show(time));
        }
    }
}

/// Bytes as `hutong.toml` takes them, exactly.
pub(crate) fn size(bytes: u64) -> String {
    let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
    for (bits, unit) in units {
        if bytes > 0 && bytes.is_multiple_of(1 << bits) {
            return format!("{}{unit}", bytes >> bits);
        }
    }
    format!("{bytes}b")
}

/// A time as `hutong.toml` takes it, to the millisecond.
pub(crate) fn show(time: Duration) -> String {
    let ms = time.as_millis();
    let units = [
        (86_400_000, "d"),
        (3_600_000, "h"),
        (60_000, "m"),
        (1000, "s"),
    ];
    for (length, unit) in units {
        if ms > 0 && ms.is_multiple_of(length) {
            return format!("{}{unit}", ms / length);
        }
    }
    format!("{ms}ms")
}

fn bare(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match !key.is_empty() && key.chars().all(is_bare) {
        true => key.to_owned(),
        false => quoted(key),
    }
}

/// A basic string of TOML.
pub(crate) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for next in text.chars() {
        match next {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A text that may stand in a comment.
pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// An app's name that comes closest to a text.
pub(crate) fn app_name(text: &str) -> String {
    let mut name = String::new();
    for next in text.chars() {
        let next = next.to_ascii_lowercase();
        if next.is_ascii_lowercase() || next.is_ascii_digit() {
            name.push(next);
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    name.truncate(MAX_APP_NAME);
    let name = name.trim_end_matches('-');
    match name.is_empty() {
        true => "app".to_owned(),
        false => name.to_owned(),
    }
}

/// The name of a worker or timed job that comes closest to a text.
pub(crate) fn process_name(text: &str) -> String {
    let plain = |c: &char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let mut name: String = text
        .chars()
        .map(|c| c.to_ascii_lowercase())
        .filter(plain)
        .skip_while(char::is_ascii_digit)
        .collect();
    name.truncate(hutong_core::name::MAX_PROCESS);
    if hutong_core::name::check_process(&name).is_err() {
        name.insert(0, 'x');
        name.truncate(hutong_core::name::MAX_PROCESS);
    }
    name
}

/// Names that are given once.
#[derive(Default)]
pub(crate) struct Names(BTreeSet<String>);

impl Names {
    /// This name, or the first free one after it.
    pub fn take(&mut self, wanted: &str) -> String {
        let wanted = app_name(wanted);
        let mut name = wanted.clone();
        let mut count = 1;
        while !self.0.insert(name.clone()) {
            count += 1;
            let end = format!("-{count}");
            let mut begin = wanted.clone();
            begin.truncate(MAX_APP_NAME - end.len());
            name = format!("{}{end}", begin.trim_end_matches('-'));
        }
        name
    }

    pub fn is_free(&self, name: &str) -> bool {
        !self.0.contains(&app_name(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    #[test]
    fn sizes_and_times_are_exact() {
        assert_eq!(size(512 << 20), "512M");
        assert_eq!(size(1536 << 20), "1536M");
        assert_eq!(size(1000), "1000b");
        assert_eq!(size(0), "0b");
        assert_eq!(show(Duration::from_secs(90)), "90s");
        assert_eq!(show(Duration::from_secs(300)), "5m");
        assert_eq!(show(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show(Duration::ZERO), "0ms");
    }

    #[test]
    fn names_are_good_and_given_once() {
        let mut names = Names::default();
        assert_eq!(names.take("My_Shop.v2"), "my-shop-v2");
        assert_eq!(names.take("my-shop-v2"), "my-shop-v2-2");
        assert_eq!(names.take("商店"), "app");
        assert!(!names.is_free("APP") && names.is_free("b"));
        let long = "x".repeat(60);
        let (first, second) = (names.take(&long), names.take(&long));
        assert!(first != second && first.len() <= 40 && second.len() <= 40);
        assert_eq!(process_name("Celery-Beat"), "celerybeat");
        assert_eq!(process_name("run"), "xrun");
        assert_eq!(process_name("2-go"), "go");
        assert_eq!(process_name(""), "x");
    }

    #[test]
    fn a_full_file_is_a_good_one() {
        let draft = Draft {
            at: At::start(&Arc::from("compose.yml")),
            name: "shop".into(),
            run: Run::Image(Container {
                image: "me/shop:1".into(),
                command: Some(vec!["run".into(), "a \"b\"".into()]),
                entrypoint: Some(Vec::new()),
                mount: Some("/app".into()),
                own_user: true,
                allow_root: false,
                writable: vec!["/var/cache".into()],
                pull: Some("always"),
                watch: Some("5m"),
            }),
            domains: vec!["shop.example.com/api".into()],
            settings: Settings {
                strip: true,
                max_body: Some(10 << 20),
                response: Some(Duration::from_secs(300)),
                compress: Some(false),
                allow: vec!["10.0.0.0/8".into()],
                deny: vec!["10.1.0.0/16".into()],
                auth: Some(Auth {
                    realm: Some("Staff".into()),
                    users: vec![
                        "me:$2y$05$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyz01236".into(),
                    ],
                }),
                rate_per_ip: Some(("10/s".into(), Some(20))),
                max_concurrent_per_ip: Some(10),
                hsts: Some(Duration::from_secs(86_400)),
                balance: Some("hash"),
                balance_by: Some("ip"),
                max_requests: Some(5),
            },
            path_rules: vec![PathRule {
                path: "/api/up".into(),
                max_body: Some(1 << 30),
                response: None,
            }],
            redirect: Some(false),
            port: Some(3000),
            env: BTreeMap::from([("A".into(), "1\n2".into())]),
            instances: Some(2),
            limits: Limits {
                memory: Some(512 << 20),
                cpu: Some(500),
                pids: Some(64),
                restart_at: Some(400 << 20),
            },
            health: Health {
                path: Some("/up".into()),
                interval: Some(Duration::from_secs(5)),
                timeout: Some(Duration::from_secs(1)),
                retries: Some(2),
            },
            timeouts: Timeouts {
                start: Some(Duration::from_secs(60)),
                stop: Some(Duration::from_secs(5)),
                response: None,
            },
            data: true,
            restart: Some("on-failure"),
            strategy: Some("rolling"),
            egress: true,
            share: BTreeMap::from([("/x".into(), "other".into())]),
            links: BTreeMap::from([("orders".into(), "orders-app".into())]),
            callers: BTreeSet::from(["web".into()]),
            workers: BTreeMap::from([(
                "mail".into(),
                Worker {
                    command: vec!["mail".into()],
                    instances: 2,
                    limits: Limits {
                        memory: Some(128 << 20),
                        ..Limits::default()
                    },
                },
            )]),
            cron: BTreeMap::from([(
                "tidy".into(),
                Cron {
                    command: vec!["tidy".into()],
                    schedule: "@daily".into(),
                },
            )]),
            release: Some(vec!["migrate".into()]),
            ..Draft::default()
        };
        let text = draft.toml();
        let spec = hutong_core::spec::parse("hutong.toml", &text);
        let spec = spec.unwrap_or_else(|wrong| panic!("{wrong}\n{text}"));
        assert_eq!(spec.env["A"], "1\n2");
        assert_eq!(spec.caps.cpu_millis, 500);
        assert_eq!(spec.workers["mail"].caps.memory_bytes, 128 << 20);
        assert_eq!(spec.traffic.routes[0].prefix, "/api/up");
        assert_eq!(spec.links["orders"].as_str(), "orders-app");
        assert_eq!(spec.response_timeout, Duration::from_secs(300));
    }

    proptest! {
        #[test]
        fn any_text_is_quoted_soundly(text in "(?s).{0,60}") {
            let line = format!("a = {}", quoted(&text));
            let table: toml::Table = line.parse().expect("TOML");
            prop_assert_eq!(table["a"].as_str(), Some(text.as_str()));
        }

        #[test]
        fn any_text_makes_a_good_name(text in "(?s).{0,60}") {
            prop_assert!(hutong_core::name::AppName::new(&app_name(&text)).is_ok());
            prop_assert!(hutong_core::name::check_process(&process_name(&text)).is_ok());
        }
    }
}
