//! uwsgi.ini: the options become a command line, because its folder is another one inside.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::State;
use crate::app::{Draft, Run};
use crate::environment;
use crate::files::file_name;
use crate::place::{At, Mistake, short};
use crate::programs;
use crate::systemd::{self, Setting};

/// Placeholders in each other.
const PLACEHOLDERS: usize = 16;

pub(crate) fn import(
    path: &Arc<str>,
    folder: &str,
    text: &str,
    state: &mut State,
) -> Result<(), Mistake> {
    let settings = systemd::parse(path, text)?;
    let ours: Vec<Setting> = settings
        .iter()
        .filter(|setting| setting.section == "uwsgi")
        .map(|setting| Setting {
            value: without_comment(&setting.value),
            ..setting.clone()
        })
        .collect();
    for setting in settings.iter().filter(|setting| setting.section != "uwsgi") {
        let why = format!("the section [{}] is not read", short(&setting.section));
        state.report.left(&setting.at, &setting.key, why);
    }
    let mut values = BTreeMap::new();
    for setting in &ours {
        values
            .entry(setting.key.as_str())
            .or_insert(setting.value.as_str());
    }
    let value = |setting: &Setting| expanded(&setting.value, &values, 0);
    let home = ours
        .iter()
        .find(|setting| matches!(setting.key.as_str(), "chdir" | "chdir2"))
        .map(value);
    let stem = file_name(path).split('.').next().unwrap_or_default();
    let from_home = home
        .as_deref()
        .map(file_name)
        .filter(|name| !name.is_empty());
    let wanted = match (from_home, stem) {
        (Some(name), _) => name.to_owned(),
        (None, "uwsgi") if !folder.is_empty() => folder.to_owned(),
        (None, stem) => stem.to_owned(),
    };
    let name = state.names.take(&wanted);
    state.report.app = Some(name.clone());
    let mut draft = Draft {
        at: At::start(path),
        name,
        folder: home.clone(),
        egress: true,
        ..Draft::default()
    };
    let report = &mut state.report;
    let mut words = vec!["uwsgi".to_owned()];
    let mut listens = None;
    for setting in &ours {
        let (at, key) = (&setting.at, setting.key.as_str());
        let value = value(setting);
        match key {
            "socket" | "uwsgi-socket" | "http" | "http-socket" | "https" | "fastcgi-socket"
                if listens.is_some() =>
            {
                report.left(at, key, "an app has one port");
            }
            "socket" | "uwsgi-socket" | "http" | "http-socket" => {
                let option = match key {
                    "socket" | "uwsgi-socket" => "--socket",
                    _ => "--http-socket",
                };
                let port = value
                    .rsplit(':')
                    .next()
                    .and_then(|port| port.parse::<u16>().ok());
                let port = port.filter(|port| *port > 0 && value.contains(':'));
                if port.is_none() {
                    report.leave_to_do(
                        at,
                        key,
                        format!(
                            "{} is no port, and the gateway asks at one: it is 8080 now",
                            short(&value)
                        ),
                    );
                }
                let port = port.unwrap_or(8080);
                draft.protocol = Some("uwsgi").filter(|_| option == "--socket");
                draft.port = Some(port);
                draft.published.insert(port);
                listens = Some((option, port));
                report.used(at, key, format!("port = {port}, and what is spoken there"));
            }
            "https" | "fastcgi-socket" | "raw-socket" | "puwsgi-socket" => {
                report.left(
                    at,
                    key,
                    "an app speaks uwsgi or HTTP with the gateway, without TLS",
                );
            }
            "chdir" | "chdir2" => report.used(at, key, "the app's folder, /app inside"),
            "virtualenv" | "venv" | "home" | "pyhome" => {
                words.extend(["--virtualenv".to_owned(), "/app/.venv".to_owned()]);
                report.used(
                    at,
                    key,
                    "/app/.venv: what requirements.txt lists is installed when the app is deployed",
                );
            }
            "daemonize" | "daemonize2" | "logto" | "logto2" | "logger" | "req-logger"
            | "log-maxsize" | "log-backupname" | "logfile-chown" | "logfile-chmod" => report
                .replaced(
                    at,
                    key,
                    format!(
                        "it stays in the foreground and prints: `hutong logs {}`",
                        draft.name
                    ),
                ),
            "pidfile" | "pidfile2" | "safe-pidfile" | "safe-pidfile2" => {
                report.left(at, key, "nobody needs it: the shim knows its program");
            }
            "uid" | "gid" | "chmod-socket" | "chown-socket" | "umask" => {
                report.used(
                    at,
                    key,
                    "every app has user ids of its own, and a port of its own",
                );
            }
            "touch-reload" | "touch-chain-reload" | "py-autoreload" | "py-auto-reload"
            | "fs-reload" => {
                report.left(at, key, "`hutong deploy` and `hutong restart` replace it; `deploy --watch` while it is worked on");
            }
            "stats" | "stats-server" => {
                report.left(at, key, "numbers are shown by `hutong status`")
            }
            "emperor" | "ini" | "include" | "inherit" | "vassals-dir" | "plugins-dir"
            | "plugin-dir" => {
                report.left(at, key, "other files are not read: hand them over as well");
            }
            "env" => {
                let (key, value) = value.split_once('=').unwrap_or((value.as_str(), ""));
                environment::put_of_program(&mut draft, at, key, value, report);
            }
            "die-on-term" => report.used(at, key, "always so: SIGTERM ends it"),
            _ if is_placeholder(key, &ours) => {
                report.used(at, key, "put in where it is named");
            }
            _ => match value.to_ascii_lowercase().as_str() {
                "false" | "off" | "no" => report.used(at, key, "off, as without it"),
                "true" | "on" | "yes" => {
                    words.push(format!("--{key}"));
                    report.used(at, key, "handed to uwsgi as it is");
                }
                _ => {
                    let value = match &home {
                        Some(home) => programs::moved(&value, home.trim_end_matches('/')),
                        None => value,
                    };
                    words.push(format!("--{key}"));
                    report.used(at, key, "handed to uwsgi");
                    words.push(value);
                }
            },
        }
    }
    let Some((option, port)) = listens else {
        return Err(Mistake::new(
            &draft.at,
            "nothing here says where uwsgi listens: `socket` or `http-socket`",
        ));
    };
    words.insert(1, option.to_owned());
    words.insert(2, format!("127.0.0.1:{port}"));
    // To uwsgi SIGTERM means a reload, otherwise.
    words.push("--die-on-term".to_owned());
    let total: usize = words.iter().map(|word| word.len() + 1).sum();
    if total > 32 << 10 || words.iter().any(|word| word.contains('\0')) {
        return Err(Mistake::new(
            &draft.at,
            "its options are over 32K, or hold a NUL",
        ));
    }
    draft.port = Some(port).filter(|port| *port != 8080);
    let has = |names: &[&str]| {
        ours.iter()
            .any(|setting| names.contains(&setting.key.as_str()))
    };
    let is_python = has(&["wsgi-file", "file", "module", "wsgi", "mount"]);
    if is_python && !has(&["plugin", "plugins", "need-plugin", "need-plugins"]) {
        report.leave_to_do(
            &draft.at,
            "plugins",
            "Debian's uwsgi has Python in a plugin (apt install uwsgi-plugin-python3): write \"uwsgi\", \"--plugin\", \"python3\"; PyPI's, listed in requirements.txt, has it built in",
        );
    }
    let into = home.as_deref().unwrap_or("the folder of the program");
    report.leave_to_do(
        &draft.at,
        "uwsgi",
        format!(
            "put hutong.toml into {} and deploy that folder",
            short(into)
        ),
    );
    draft.run = Run::Command(words);
    state.report.app = None;
    state.drafts.push(draft);
    Ok(())
}

/// Without what a `#` behind a space begins.
fn without_comment(value: &str) -> String {
    let end = value.find(" #").or_else(|| value.find("\t#"));
    value
        .get(..end.unwrap_or(value.len()))
        .unwrap_or(value)
        .trim_end()
        .to_owned()
}

/// Whether an option is no option, but named by others as `%(key)`.
fn is_placeholder(key: &str, settings: &[Setting]) -> bool {
    let name = format!("%({key})");
    settings.iter().any(|setting| setting.value.contains(&name))
}

/// With the values of `%(name)`.
fn expanded(text: &str, values: &BTreeMap<&str, &str>, depth: usize) -> String {
    let mut result = String::new();
    let mut rest = text;
    while let Some(begin) = rest.find("%(") {
        let (before, after) = rest.split_at(begin);
        result.push_str(before);
        let inside = after.get(2..).unwrap_or_default();
        let Some(end) = inside.find(')') else {
            rest = after;
            break;
        };
        let name = inside.get(..end).unwrap_or_default();
        match values.get(name) {
            Some(value) if depth < PLACEHOLDERS && result.len() < 4096 => {
                result.push_str(&expanded(value, values, depth + 1));
            }
            _ => result.push_str(&format!("%({name})")),
        }
        rest = inside.get(end + 1..).unwrap_or_default();
    }
    result.push_str(rest);
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn placeholders_are_put_in() {
        let values = BTreeMap::from([("a", "1"), ("b", "%(a)/2"), ("c", "%(c)x")]);
        assert_eq!(
            expanded("%(b)/%(nobody)/%(a", &values, 0),
            "1/2/%(nobody)/%(a"
        );
        assert!(expanded("%(c)", &values, 0).len() < 100);
    }

    #[test]
    fn comments_end_a_value() {
        assert_eq!(without_comment("0.0.0.0:8000   # why"), "0.0.0.0:8000");
        assert_eq!(without_comment("a#b"), "a#b");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s)(%[(]|[)]|a|#| |.){0,60}") {
            let values = BTreeMap::from([("a", text.as_str())]);
            let _ = (expanded(&text, &values, 0), without_comment(&text));
        }
    }
}
