//! What kind of file something is, by its name and its first words.

use std::str::FromStr;

use crate::files::file_name;
use crate::traefik;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Compose,
    Traefik,
    Nginx,
    Systemd,
    Uwsgi,
    Pm2,
    Procfile,
}

const NAMES: [(&str, Kind); 7] = [
    ("compose", Kind::Compose),
    ("traefik", Kind::Traefik),
    ("nginx", Kind::Nginx),
    ("systemd", Kind::Systemd),
    ("uwsgi", Kind::Uwsgi),
    ("pm2", Kind::Pm2),
    ("procfile", Kind::Procfile),
];

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = NAMES.iter().find(|(name, _)| *name == text);
        found.map(|(_, kind)| *kind).ok_or_else(|| {
            let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
            format!("there are {}", names.join(", "))
        })
    }
}

impl Kind {
    /// What runs apps is read before what leads to them.
    pub(crate) fn order(self) -> u8 {
        match self {
            Kind::Compose => 0,
            Kind::Systemd | Kind::Uwsgi | Kind::Pm2 | Kind::Procfile => 1,
            Kind::Traefik => 2,
            Kind::Nginx => 3,
        }
    }
}

/// What a file is; `None` if it looks like none of these.
pub fn recognise(path: &str, text: &str) -> Option<Kind> {
    let name = file_name(path).to_ascii_lowercase();
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    match ending {
        "service" | "timer" | "socket" | "path" | "mount" | "target" | "slice" => {
            return has_section(text, &["unit", "service", "timer", "install"])
                .then_some(Kind::Systemd);
        }
        "ini" | "uwsgi" => return has_section(text, &["uwsgi"]).then_some(Kind::Uwsgi),
        "js" | "cjs" | "mjs" => {
            let is_ecosystem = text.contains("apps") && text.contains("script");
            return is_ecosystem.then_some(Kind::Pm2);
        }
        "json" => {
            return match (text.contains("\"services\""), text.contains("\"script\"")) {
                (true, _) => Some(Kind::Compose),
                (false, true) => Some(Kind::Pm2),
                _ => None,
            };
        }
        "yml" | "yaml" => return of_keys(&name, &top_keys(text, ':')),
        "toml" => {
            let keys = top_keys(text, '=');
            let is_traefik = |key: &String| traefik::is_static(key) || traefik::is_dynamic(key);
            return (!keys.is_empty() && keys.iter().all(is_traefik)).then_some(Kind::Traefik);
        }
        _ => {}
    }
    if name == "procfile" || name.starts_with("procfile.") {
        return Some(Kind::Procfile);
    }
    looks_like_nginx(text).then_some(Kind::Nginx)
}

/// Whether it only stands beside others: variables, or users.
pub(crate) fn is_beside(path: &str) -> bool {
    let name = file_name(path).to_ascii_lowercase();
    name == ".env"
        || name.starts_with(".env.")
        || name.ends_with(".env")
        || name.contains("htpasswd")
}

fn has_section(text: &str, names: &[&str]) -> bool {
    text.lines().any(|line| {
        let inner = line
            .trim()
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'));
        inner.is_some_and(|name| names.contains(&name.to_ascii_lowercase().as_str()))
    })
}

/// Keys at the beginning of a line, or the first words of sections.
fn top_keys(text: &str, sign: char) -> Vec<String> {
    let is_key = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let mut keys = Vec::new();
    for line in text.lines().take(10_000) {
        let line = match sign {
            '=' => line.trim_start_matches('['),
            _ => line.trim_start_matches('"'),
        };
        if !line.starts_with(is_key) {
            continue;
        }
        let key: String = line.chars().take_while(|c| is_key(*c)).collect();
        let rest = line
            .get(key.len()..)
            .unwrap_or_default()
            .trim_start_matches('"');
        let is_entry = match sign {
            ':' => rest.starts_with(':'),
            _ => rest.starts_with(['.', ']']) || rest.trim_start().starts_with('='),
        };
        if is_entry {
            keys.push(key);
        }
        if sign == '=' && !keys.is_empty() {
            // Below a section keys are its own.
            break;
        }
    }
    keys
}

fn of_keys(name: &str, keys: &[String]) -> Option<Kind> {
    let has = |wanted: &str| keys.iter().any(|key| key == wanted);
    if has("services") || name.contains("compose") {
        return Some(Kind::Compose);
    }
    if has("apps") {
        return Some(Kind::Pm2);
    }
    let is_traefik = |key: &String| traefik::is_static(key) || traefik::is_dynamic(key);
    let is_ours = !keys.is_empty()
        && keys
            .iter()
            .all(|key| is_traefik(key) || key.starts_with("x-"));
    (is_ours || name.contains("traefik")).then_some(Kind::Traefik)
}

fn looks_like_nginx(text: &str) -> bool {
    text.lines().any(|line| {
        let line = line.split('#').next().unwrap_or_default().trim();
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default().trim_end_matches('{');
        let is_block = line.ends_with('{') || line.ends_with('}') || words.next().is_none();
        matches!(first, "server" | "upstream" | "http") && is_block
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_are_known_by_name_and_content() {
        for (path, text, wanted) in [
            (
                "docker-compose.yml",
                "version: '3'\nservices:\n",
                Some(Kind::Compose),
            ),
            ("stack.yaml", "services:\n  a:\n", Some(Kind::Compose)),
            ("compose.yml", "{services: {}}", Some(Kind::Compose)),
            ("x.json", "{\"services\": {}}", Some(Kind::Compose)),
            (
                "traefik.yml",
                "providers:\n  docker:\n",
                Some(Kind::Traefik),
            ),
            (
                "dynamic_conf.yml",
                "http:\n  routers:\n",
                Some(Kind::Traefik),
            ),
            (
                "traefik.toml",
                "[entryPoints.web]\naddress = ':80'\n",
                Some(Kind::Traefik),
            ),
            (
                "dyn.toml",
                "[http.routers.a]\nrule = 'x'\n",
                Some(Kind::Traefik),
            ),
            ("vhosts.conf", "server {\n", Some(Kind::Nginx)),
            (
                "sites-enabled/shop",
                "# x\nupstream a\n{\n}\nserver\n{\n",
                Some(Kind::Nginx),
            ),
            (
                "a.service",
                "[Service]\nExecStart=/x\n",
                Some(Kind::Systemd),
            ),
            ("uwsgi.ini", "[uwsgi]\n", Some(Kind::Uwsgi)),
            (
                "ecosystem.config.js",
                "module.exports = {apps: [{script: 'a'}]}",
                Some(Kind::Pm2),
            ),
            (
                "pm2.json",
                "{\"apps\": [{\"script\": \"a\"}]}",
                Some(Kind::Pm2),
            ),
            ("pm2.yml", "apps:\n  - script: a\n", Some(Kind::Pm2)),
            ("Procfile", "web: x\n", Some(Kind::Procfile)),
            ("README.md", "A server for people\n", None),
            ("other.yml", "on: push\njobs:\n", None),
            ("Cargo.toml", "[package]\nname = 'x'\n", None),
            ("php.ini", "[PHP]\n", None),
            ("package.json", "{\"name\": \"x\"}", None),
        ] {
            assert_eq!(recognise(path, text), wanted, "{path}");
        }
        assert!(is_beside("a/.env") && is_beside("x/.htpasswd") && !is_beside("a.yml"));
        assert_eq!("pm2".parse(), Ok(Kind::Pm2));
        assert!("docker".parse::<Kind>().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(path in ".{0,12}([.](yml|toml|conf|ini|js|json))?", text in "(?s).{0,80}") {
            let _ = recognise(&path, &text);
        }
    }
}
