//! PM2's ecosystem file: `ecosystem.config.js`, its JSON and its YAML.

use std::sync::Arc;
use std::time::Duration;

use crate::State;
use crate::app::{Draft, Run};
use crate::environment;
use crate::files::file_name;
use crate::place::{At, Mistake, short};
use crate::programs;
use crate::report::Report;
use crate::secrets;
use crate::tree::{Entry, Node, Value};
use crate::units::within;
use crate::{literal, yaml};

/// Reads a file, and adds its apps.
pub(crate) fn import(
    path: &Arc<str>,
    folder: &str,
    text: &str,
    state: &mut State,
) -> Result<(), Mistake> {
    let is_yaml = path.ends_with(".yml") || path.ends_with(".yaml");
    let root = match is_yaml {
        true => yaml::parse(path, text)?.root,
        false => literal::parse(path, text)?,
    };
    let apps = match &root.value {
        Value::List(_) => &root,
        _ => root
            .get("apps")
            .ok_or_else(|| Mistake::new(&root.at, "there is no `apps` in it"))?,
    };
    for entry in root.map() {
        let (at, key) = (&entry.at, entry.key.as_str());
        match key {
            "apps" => {}
            "deploy" => state.report.replaced(
                at,
                key,
                "`hutong deploy` sends a folder, waits until it is healthy, and keeps the releases before",
            ),
            _ => state.report.left(at, key, "it is not known here"),
        }
    }
    let list: Vec<&Node> = match &apps.value {
        Value::List(list) => list.iter().collect(),
        Value::Map(_) => vec![apps],
        _ => {
            let message = format!("`apps` is a list of apps, not {}", apps.kind());
            return Err(Mistake::new(&apps.at, message));
        }
    };
    for app in list {
        let Value::Map(_) = app.value else {
            let message = format!("an app is a table, not {}", app.kind());
            return Err(Mistake::new(&app.at, message));
        };
        let draft = read(app, folder, state)?;
        state.report.app = None;
        state.drafts.push(draft);
    }
    Ok(())
}

/// What the command is made of.
#[derive(Default)]
struct Parts {
    script: Option<(At, String)>,
    interpreter: Option<String>,
    before: Vec<String>,
    behind: Vec<String>,
}

fn read(app: &Node, folder: &str, state: &mut State) -> Result<Draft, Mistake> {
    let text = |key: &str| app.get(key).and_then(Node::text);
    let script_name =
        text("script").map(|script| file_name(script).split('.').next().unwrap_or_default());
    let wanted = text("name").or(script_name).unwrap_or(folder);
    let name = state.names.take(wanted);
    state.report.app = Some(name.clone());
    let mut reading = Reading {
        draft: Draft {
            at: app.at.clone(),
            name,
            egress: true,
            ..Draft::default()
        },
        parts: Parts::default(),
        report: &mut state.report,
    };
    for entry in app.map() {
        reading.entry(entry)?;
    }
    reading.finish()
}

struct Reading<'a> {
    draft: Draft,
    parts: Parts,
    report: &'a mut Report,
}

impl Reading<'_> {
    fn entry(&mut self, entry: &Entry) -> Result<(), Mistake> {
        let (at, key, value) = (&entry.at, entry.key.as_str(), &entry.value);
        if value.value == Value::Expression {
            self.report.leave_to_do(
                at,
                key,
                "it is worked out by JavaScript, which is not run here: put its value into hutong.toml",
            );
            return Ok(());
        }
        let text = value.text().unwrap_or_default();
        match key {
            "name" => self.report.used(at, key, format!("name = \"{}\"", self.draft.name)),
            "script" => {
                self.parts.script = Some((at.clone(), text.to_owned()));
                self.report.used(at, key, "command");
            }
            "args" => {
                self.parts.behind = words(value)?;
                self.report.used(at, key, "command");
            }
            "interpreter" | "exec_interpreter" => {
                self.parts.interpreter = Some(text.to_owned());
                self.report.used(at, key, "command");
            }
            "node_args" | "interpreter_args" => {
                self.parts.before = words(value)?;
                self.report.used(at, key, "command");
            }
            "cwd" => {
                self.draft.folder = Some(text.to_owned());
                self.report.used(at, key, "the app's folder, /app inside");
            }
            "instances" => self.instances(at, key, text),
            "exec_mode" => {
                self.report.used(at, key, "each instance has a network of its own, and the gateway spreads requests");
            }
            "env" => self.env(value),
            _ if key.starts_with("env_") => {
                let why = "another set of variables: `hutong env set` changes them where the app runs";
                self.leave(entry, why);
            }
            "max_memory_restart" => self.memory(at, key, text),
            "kill_timeout" => {
                self.draft.timeouts.stop = milliseconds(text, Duration::ZERO, 600);
                self.report.used(at, key, "timeouts.stop");
            }
            "listen_timeout" => {
                self.draft.timeouts.start = milliseconds(text, Duration::from_millis(100), 3600);
                self.report.used(at, key, "timeouts.start");
            }
            "autorestart" => match value.flag() {
                Some(false) => {
                    self.draft.restart = Some("never");
                    self.report.used(at, key, "restart = \"never\"");
                }
                _ => self.report.used(at, key, "restart = \"always\""),
            },
            "wait_ready" | "shutdown_with_message" => self.report.left(
                at,
                key,
                "an instance is ready when its port takes a connection, or `health.path` answers; to stop it gets SIGTERM",
            ),
            "restart_delay" | "min_uptime" | "max_restarts" | "exp_backoff_restart_delay"
            | "stop_exit_codes" | "unstable_restarts" => self.report.left(
                at,
                key,
                "what ends is started again, with pauses that grow from 0.2 s to a minute",
            ),
            "cron_restart" | "cron" => self.report.left(
                at,
                key,
                "an app is not restarted by the clock; a program that runs at times is a timed job: [cron.NAME]",
            ),
            "watch" | "ignore_watch" | "watch_delay" | "watch_options" => self.leave(
                entry,
                "`hutong deploy --watch` deploys after each change, while you work on it",
            ),
            "error_file" | "out_file" | "log_file" | "output" | "error" | "log" | "log_date_format"
            | "merge_logs" | "combine_logs" | "log_type" | "time" | "disable_logs" | "pid_file" | "pid" => {
                let text = format!("`hutong logs {}`", self.draft.name);
                self.report.replaced(at, key, text);
            }
            "user" | "uid" | "gid" => self.report.used(at, key, "every app has user ids of its own"),
            "namespace" | "version" | "increment_var" | "instance_var" | "source_map_support"
            | "disable_source_map_support" | "vizion" | "post_update" | "pmx" | "automation"
            | "treekill" | "force" | "append_env_to_name" | "filter_env" | "windowsHide"
            | "exec_path" | "port" => {
                self.leave(entry, "it is of PM2's own");
            }
            _ => self.leave(entry, "it is not known here"),
        }
        Ok(())
    }

    /// Says of an entry and what is in it that it is left out.
    fn leave(&mut self, entry: &Entry, why: &str) {
        self.report.left(&entry.at, &entry.key, why);
        for inner in entry.value.map() {
            self.report
                .left(&inner.at, &format!("{}.{}", entry.key, inner.key), why);
        }
    }

    fn instances(&mut self, at: &At, key: &str, text: &str) {
        match text.parse::<i64>() {
            Ok(count @ 1..) => {
                let kept = count.min(64) as u32;
                self.draft.instances = Some(kept);
                self.report.used(at, key, format!("instances = {kept}"));
            }
            // `0`, `-1` and `max` go by the processors.
            _ => self.report.leave_to_do(
                at,
                key,
                "as many as there are processors: set `instances`, or [scale] max to have their number follow what there is to do",
            ),
        }
    }

    fn env(&mut self, value: &Node) {
        for entry in value.map() {
            let what = format!("env.{}", entry.key);
            match (&entry.value.value, entry.value.text()) {
                (Value::Expression, _) => self.report.leave_to_do(
                    &entry.at,
                    &what,
                    format!("it is worked out by JavaScript, which is not run here: hutong env set {} {}=…", self.draft.name, entry.key),
                ),
                (_, Some(text)) => {
                    environment::put_of_program(&mut self.draft, &entry.at, &entry.key, text, self.report);
                }
                _ => self.report.left(&entry.at, &what, "a variable is a text"),
            }
        }
    }

    fn memory(&mut self, at: &At, key: &str, text: &str) {
        let Some(bytes) = crate::units::size(text).filter(|bytes| *bytes >= 1 << 20) else {
            self.report.left(at, key, "this is no size");
            return;
        };
        let bytes = bytes.min(1 << 39);
        self.draft.limits.restart_at = Some(bytes);
        // The cap is where the kernel kills it: half as much again leaves room for a restart that loses nothing.
        let cap = (bytes + bytes / 2).max(256 << 20);
        self.draft.limits.memory = Some(cap.div_ceil(1 << 20) << 20);
        self.report
            .used(at, key, "limits.restart_at, and limits.memory above it");
    }

    fn finish(mut self) -> Result<Draft, Mistake> {
        let Some((at, script)) = self
            .parts
            .script
            .take()
            .filter(|(_, script)| !script.is_empty())
        else {
            return Err(Mistake::new(&self.draft.at, "this app has no `script`"));
        };
        let mut command = Vec::new();
        match self.parts.interpreter.as_deref() {
            Some("none" | "") => {}
            Some(interpreter) => command.push(interpreter.to_owned()),
            None => command.extend(interpreter_of(&script).map(str::to_owned)),
        }
        let is_program = command.is_empty();
        command.append(&mut self.parts.before);
        let is_beside = is_program && !script.starts_with(['/', '.']) && script.contains('/');
        command.push(match is_beside {
            true => format!("./{script}"),
            false => script,
        });
        command.append(&mut self.parts.behind);
        if secrets::in_command(&command) {
            self.report.leave_to_do(
                &at,
                "script",
                "there seems to be a secret in it, and hutong.toml is part of every release: have the program read it from a variable",
            );
        }
        let total: usize = command.iter().map(|word| word.len() + 1).sum();
        if total > 32 << 10 || command.iter().any(|word| word.contains('\0')) {
            return Err(Mistake::new(&at, "its command is over 32K, or holds a NUL"));
        }
        let folder = self.draft.folder.clone();
        let (words, remarks) = programs::at_home(command, folder.as_deref());
        for remark in remarks {
            self.report.leave_to_do(&at, "script", remark);
        }
        let into = folder.as_deref().unwrap_or("the folder of this file");
        self.report.leave_to_do(
            &at,
            "script",
            format!(
                "put hutong.toml into {} and deploy that folder",
                short(into)
            ),
        );
        let port = self.draft.port.or_else(|| programs::port(&words));
        if port.is_none() {
            self.report.leave_to_do(
                &at,
                "script",
                "nothing says which port it listens on: have it listen at PORT (8080), or set `port`; a program that serves no visitors is a worker: [workers.NAME]",
            );
        }
        self.draft.published.extend(port);
        self.draft.port = port.filter(|port| *port != 8080);
        self.draft.run = Run::Command(words);
        Ok(self.draft)
    }
}

/// What runs a script, by its ending.
fn interpreter_of(script: &str) -> Option<&'static str> {
    let name = file_name(script);
    let (_, ending) = name.rsplit_once('.')?;
    Some(match ending {
        "js" | "mjs" | "cjs" => "node",
        "ts" | "tsx" => "ts-node",
        "py" => "python3",
        "rb" => "ruby",
        "php" => "php",
        "pl" => "perl",
        "sh" => "bash",
        _ => return None,
    })
}

/// A line or a list of words.
fn words(value: &Node) -> Result<Vec<String>, Mistake> {
    match &value.value {
        Value::Scalar(scalar) => shell_words::split(&scalar.text)
            .map_err(|_| Mistake::new(&value.at, "a quote is not closed")),
        _ => Ok(value.texts().into_iter().map(|(_, word)| word).collect()),
    }
}

fn milliseconds(text: &str, low: Duration, high: u64) -> Option<Duration> {
    let time = match text.trim().parse::<u64>() {
        Ok(count) => Duration::from_millis(count),
        Err(_) => crate::units::time(text)?,
    };
    Some(within(time, low, Duration::from_secs(high)))
}
