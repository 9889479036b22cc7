//! systemd units: a service becomes an app, one with a timer becomes a timed job.

use std::sync::Arc;
use std::time::Duration;

use crate::State;
use crate::app::{Cron, Draft, Run, process_name};
use crate::dotenv;
use crate::environment;
use crate::files::{Files, file_name};
use crate::place::{At, Mistake, short};
use crate::programs;
use crate::report::Report;
use crate::secrets;
use crate::units::{time_or_seconds, within};

/// A line with those that it goes on in, in bytes.
const MAX_LINE: usize = 64 << 10;

/// `KEY=VALUE` of a section.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Setting {
    pub at: At,
    pub section: String,
    pub key: String,
    pub value: String,
}

/// The settings of a unit, or of another file of sections.
pub(crate) fn parse(path: &Arc<str>, text: &str) -> Result<Vec<Setting>, Mistake> {
    let mut settings = Vec::new();
    let mut section = String::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, line)) = lines.next() {
        let at = At {
            path: Arc::clone(path),
            line: index + 1,
            column: 1 + line.chars().take_while(|c| c.is_whitespace()).count(),
        };
        let mut line = line.trim().to_owned();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        if let Some(inner) = line.strip_prefix('[') {
            match inner.strip_suffix(']') {
                Some(name) => section = name.to_owned(),
                None => {
                    return Err(Mistake::new(
                        &at,
                        "`]` is missing behind the section's name",
                    ));
                }
            }
            continue;
        }
        // A backslash at the end: the line goes on.
        while let Some(begin) = line.strip_suffix('\\') {
            let next = lines.next().map_or("", |(_, next)| next.trim());
            line = format!("{} {next}", begin.trim_end());
            if line.len() > MAX_LINE {
                return Err(Mistake::new(&at, "this line goes on for over 64K"));
            }
        }
        let Some((key, value)) = line.split_once('=') else {
            let message = format!("`{}` is neither `KEY=VALUE` nor `[SECTION]`", short(&line));
            return Err(Mistake::new(&at, message));
        };
        if section.is_empty() {
            return Err(Mistake::new(
                &at,
                "this stands before the first `[SECTION]`",
            ));
        }
        settings.push(Setting {
            at,
            section: section.clone(),
            key: key.trim().to_owned(),
            value: value.trim().to_owned(),
        });
    }
    Ok(settings)
}

/// Reads a unit, and adds its app.
pub(crate) fn import(
    path: &Arc<str>,
    text: &str,
    files: &mut Files<'_>,
    state: &mut State,
) -> Result<(), Mistake> {
    let settings = parse(path, text)?;
    let name = file_name(path);
    let (stem, kind) = name.rsplit_once('.').unwrap_or((name, "service"));
    let stem = stem.split('@').next().unwrap_or_default();
    if kind != "service" {
        let service = format!("{stem}.service");
        let is_read = kind == "timer" && files.is_asked(path, &service);
        for setting in settings.iter().filter(|_| !is_read) {
            let why = match kind {
                "timer" => "its service was not handed over",
                _ => {
                    "units of this kind are not read: an app's port is opened by the gateway, its files are its folder and /data"
                }
            };
            state.report.left(&setting.at, &setting.key, why);
        }
        return Ok(());
    }
    let name = state.names.take(stem);
    state.report.app = Some(name.clone());
    let timer = match files.get(path, &format!("{stem}.timer")) {
        Some((path, text)) => schedule(&parse(&path, text)?, &mut state.report),
        None => None,
    };
    let mut reading = Reading {
        draft: Draft {
            at: At::start(path),
            name,
            egress: true,
            ..Draft::default()
        },
        report: &mut state.report,
        command: None,
        is_oneshot: false,
    };
    for setting in &settings {
        reading.setting(setting, files)?;
    }
    let draft = reading.finish(timer)?;
    state.drafts.push(draft);
    state.report.app = None;
    Ok(())
}

struct Reading<'a> {
    draft: Draft,
    report: &'a mut Report,
    command: Option<(At, String)>,
    is_oneshot: bool,
}

impl Reading<'_> {
    fn setting(&mut self, setting: &Setting, files: &mut Files<'_>) -> Result<(), Mistake> {
        let (at, key, value) = (&setting.at, setting.key.as_str(), setting.value.as_str());
        match (setting.section.as_str(), key) {
            ("Install", _) => {
                self.report.used(at, key, "an app that ran is started again after a reboot");
            }
            ("Unit", "Description" | "Documentation") => {
                self.report.left(at, key, "it is for people; comments may stand in hutong.toml");
            }
            ("Unit", _) => self.report.left(
                at,
                key,
                "apps are started in no order, and do without each other; who calls whom is said by `links`",
            ),
            ("Service", "ExecStart") => match value {
                "" => self.command = None,
                _ if self.command.is_some() => {
                    self.report.left(at, key, "one program is an app; another one is a worker: [workers.NAME]");
                }
                _ => self.command = Some((at.clone(), value.to_owned())),
            },
            ("Service", "Environment") => {
                let words = shell_words::split(value)
                    .map_err(|_| Mistake::new(at, "a quote is not closed"))?;
                for word in words {
                    let (key, value) = word.split_once('=').unwrap_or((word.as_str(), ""));
                    environment::put_of_program(&mut self.draft, at, key, value, self.report);
                }
            }
            ("Service", "EnvironmentFile") => {
                let name = value.trim_start_matches('-');
                match files.get(&at.path, name) {
                    Some((path, text)) => {
                        self.report.used(at, key, format!("the variables of {path}"));
                        for one in dotenv::parse(&path, text)? {
                            let value = one.value.unwrap_or_default();
                            environment::put_of_program(&mut self.draft, &one.at, &one.key, &value, self.report);
                        }
                    }
                    None => self.report.leave_to_do(
                        at,
                        key,
                        format!("{} was not handed over: hutong env set {} --file {}", short(name), self.draft.name, short(name)),
                    ),
                }
            }
            ("Service", _) => self.service(setting),
            (section, _) => {
                let why = format!("the section [{}] is not read", short(section));
                self.report.left(at, key, why);
            }
        }
        Ok(())
    }

    fn service(&mut self, setting: &Setting) {
        let (at, key, value) = (&setting.at, setting.key.as_str(), setting.value.as_str());
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        match key {
            "Type" => match value {
                "forking" => self.report.leave_to_do(
                    at,
                    key,
                    "a program has to stay in the foreground: leave out what puts it into the background",
                ),
                "oneshot" => {
                    self.is_oneshot = true;
                    self.report.used(at, key, "it runs once at a time");
                }
                _ => self.report.used(at, key, "the program stays in the foreground; `health` says when it can serve"),
            },
            "User" | "Group" | "DynamicUser" | "SupplementaryGroups" => {
                self.report.used(at, key, "every app has user ids of its own");
            }
            "WorkingDirectory" => {
                let folder = value.trim_start_matches('-').to_owned();
                self.report.used(at, key, "the app's folder, /app inside");
                self.draft.folder = Some(folder);
            }
            "MemoryLimit" | "MemoryMax" => match size(value) {
                Some(bytes) => {
                    self.draft.limits.memory = Some(bytes.clamp(4 << 20, 1 << 40));
                    self.report.used(at, key, "limits.memory");
                }
                None => self.report.left(at, key, "limits.memory is a size; without one it is 256M"),
            },
            "CPUQuota" => match value.strip_suffix('%').and_then(|text| text.trim().parse::<f64>().ok()) {
                Some(percent) if percent > 0.0 && percent.is_finite() => {
                    let millis = (percent * 10.0).clamp(10.0, 256_000.0).round();
                    self.draft.limits.cpu = Some(millis as u32);
                    self.report.used(at, key, "limits.cpu");
                }
                _ => self.report.left(at, key, "this is no share of a core"),
            },
            "TasksMax" => match value.parse::<u32>() {
                Ok(count @ 1..) => {
                    self.draft.limits.pids = Some(count.min(32_768));
                    self.report.used(at, key, "limits.pids");
                }
                _ => self.report.left(at, key, "limits.pids is a number; without one it is 128"),
            },
            "Restart" => {
                let restart = match value {
                    "always" => None,
                    "on-failure" | "on-abnormal" | "on-abort" | "on-watchdog" => Some("on-failure"),
                    "no" => Some("never"),
                    _ => {
                        self.report.left(at, key, "it is always started again");
                        return;
                    }
                };
                self.draft.restart = restart;
                let name = restart.unwrap_or("always");
                self.report.used(at, key, format!("restart = \"{name}\""));
            }
            "TimeoutStartSec" | "TimeoutStopSec" | "TimeoutSec" => match time_or_seconds(value) {
                Some(time) => {
                    if key != "TimeoutStopSec" {
                        self.draft.timeouts.start = Some(within(time, ms(100), s(3600)));
                    }
                    if key != "TimeoutStartSec" {
                        self.draft.timeouts.stop = Some(within(time, ms(0), s(600)));
                    }
                    self.report.used(at, key, "timeouts");
                }
                None => self.report.left(at, key, "this is no time"),
            },
            "KillSignal" if value == "SIGTERM" => self.report.used(at, key, "always so"),
            "KillSignal" | "FinalKillSignal" | "KillMode" | "SendSIGKILL" | "SuccessExitStatus"
            | "RemainAfterExit" | "PIDFile" | "GuessMainPID" | "NotifyAccess" | "WatchdogSec" => {
                self.report.left(at, key, "a program gets SIGTERM, and all of its processes SIGKILL after timeouts.stop");
            }
            "ExecStartPre" => self.report.left(
                at,
                key,
                "if it is to run before a new release serves (a migration, say): [release] command",
            ),
            "ExecStartPost" | "ExecReload" | "ExecStop" | "ExecStopPost" | "ExecCondition" => {
                self.report.left(at, key, "nothing is run beside a program's start and end; `hutong restart` replaces it without losing a request");
            }
            "RestartSec" | "RestartSteps" | "RestartMaxDelaySec" | "StartLimitInterval"
            | "StartLimitIntervalSec" | "StartLimitBurst" | "RestartPreventExitStatus" => {
                self.report.left(at, key, "what ends is started again, with pauses that grow from 0.2 s to a minute");
            }
            "StandardOutput" | "StandardError" | "SyslogIdentifier" | "LogLevelMax"
            | "SyslogFacility" | "LogsDirectory" => {
                let text = format!("`hutong logs {}`", self.draft.name);
                self.report.replaced(at, key, text);
            }
            "StateDirectory" | "ReadWritePaths" | "ReadWriteDirectories" => {
                self.draft.data = true;
                self.report.leave_to_do(
                    at,
                    key,
                    "data = true: an app keeps its data in /data and nowhere else; have the program use that, and copy what is there now",
                );
            }
            "RuntimeDirectory" | "CacheDirectory" | "ConfigurationDirectory" => {
                self.report.left(at, key, "/tmp is the app's own, in memory; what is to last is in /data");
            }
            "AmbientCapabilities" if value == "CAP_NET_BIND_SERVICE" => {
                self.report.used(at, key, "ports below 1024 are allowed");
            }
            "AmbientCapabilities" => self.report.left(at, key, "an app has no capability"),
            "NoNewPrivileges" | "CapabilityBoundingSet" | "SystemCallFilter"
            | "SystemCallArchitectures" | "LockPersonality" | "MemoryDenyWriteExecute"
            | "ReadOnlyPaths" | "InaccessiblePaths" | "UMask" | "RemoveIPC" | "KeyringMode" => {
                self.report.used(at, key, "an app runs in a sandbox: `hutong doctor` lists its walls");
            }
            _ if ["Protect", "Private", "Restrict"].iter().any(|begin| key.starts_with(begin)) => {
                self.report.used(at, key, "an app runs in a sandbox: `hutong doctor` lists its walls");
            }
            "PassEnvironment" => {
                let text = format!("hutong env set {} KEY=…", self.draft.name);
                self.report.leave_to_do(at, key, text);
            }
            _ if key.starts_with("Limit") || key.starts_with("Memory") || key.starts_with("CPU") || key.starts_with("IO") => {
                self.report.left(at, key, "`limits` has memory, cpu and pids; there is no swap, and 65,536 files may be open");
            }
            _ => self.report.left(at, key, "it is not known here"),
        }
    }

    fn finish(mut self, timer: Option<(At, String)>) -> Result<Draft, Mistake> {
        let Some((at, line)) = self.command.take() else {
            return Err(Mistake::new(
                &self.draft.at,
                "this service has no ExecStart",
            ));
        };
        let line = line.trim_start_matches(['-', '@', ':', '+', '!']);
        let words =
            shell_words::split(line).map_err(|_| Mistake::new(&at, "a quote is not closed"))?;
        let words: Vec<String> = words.iter().map(|word| self.expand(&at, word)).collect();
        if words.first().is_none_or(String::is_empty) {
            return Err(Mistake::new(&at, "ExecStart names no program"));
        }
        if secrets::in_command(&words) {
            self.report.leave_to_do(
                &at,
                "ExecStart",
                "there seems to be a secret in it, and hutong.toml is part of every release: have the program read it from a variable",
            );
        }
        let folder = self.draft.folder.clone();
        let (words, remarks) = programs::at_home(words, folder.as_deref());
        for remark in remarks {
            self.report.leave_to_do(&at, "ExecStart", remark);
        }
        match &folder {
            Some(folder) => self.report.leave_to_do(
                &at,
                "ExecStart",
                format!("put hutong.toml into {} and deploy that folder", short(folder)),
            ),
            None => self.report.leave_to_do(
                &at,
                "ExecStart",
                "put hutong.toml into the folder of the program, which is /app inside, and deploy that folder",
            ),
        }
        if let Some((at, schedule)) = timer {
            let name = process_name(&self.draft.name);
            self.report.used(
                &at,
                "OnCalendar",
                format!("[cron.{name}] schedule = \"{schedule}\""),
            );
            self.report
                .used(&at, "ExecStart", format!("[cron.{name}] command"));
            self.draft.cron.insert(
                name,
                Cron {
                    command: words,
                    schedule,
                },
            );
            self.draft.port = None;
            self.draft.restart = None;
            return Ok(self.draft);
        }
        if self.is_oneshot {
            self.report.leave_to_do(
                &at,
                "ExecStart",
                "it runs once and ends: that is a timed job ([cron.NAME]), the release command, or `hutong run`",
            );
        }
        self.report.used(&at, "ExecStart", "command");
        let port = self.draft.port.or_else(|| programs::port(&words));
        self.draft.published.extend(port);
        self.draft.port = port.filter(|port| *port != 8080);
        self.draft.run = Run::Command(words);
        Ok(self.draft)
    }

    /// Specifiers and variables of systemd.
    fn expand(&mut self, at: &At, word: &str) -> String {
        let mut text = String::new();
        let mut chars = word.chars().peekable();
        while let Some(next) = chars.next() {
            match next {
                '%' => match chars.next() {
                    Some('%') => text.push('%'),
                    Some('n' | 'p' | 'N') => text.push_str(&self.draft.name),
                    other => {
                        text.push('%');
                        text.extend(other);
                        self.report.leave_to_do(
                            at,
                            "ExecStart",
                            "a specifier (`%…`) stands in it: put its value there",
                        );
                    }
                },
                '$' if chars.peek() == Some(&'$') => {
                    chars.next();
                    text.push('$');
                }
                '$' => {
                    let braced = chars.peek() == Some(&'{');
                    if braced {
                        chars.next();
                    }
                    let mut name = String::new();
                    while let Some(c) = chars
                        .peek()
                        .filter(|c| c.is_ascii_alphanumeric() || **c == '_')
                    {
                        name.push(*c);
                        chars.next();
                    }
                    if braced && chars.peek() == Some(&'}') {
                        chars.next();
                    }
                    match self.draft.env.get(&name) {
                        Some(value) => text.push_str(value),
                        None => {
                            text.push_str(&format!("${{{name}}}"));
                            self.report.leave_to_do(
                                at,
                                "ExecStart",
                                format!("no shell puts the variable {name} in: [\"sh\", \"-c\", \"exec … ${name}\"] does"),
                            );
                        }
                    }
                }
                next => text.push(next),
            }
        }
        text
    }
}

/// `512M`, `1G`, `1048576`: bytes.
fn size(text: &str) -> Option<u64> {
    match text.strip_suffix(['T', 't']) {
        Some(number) => number.trim().parse::<u64>().ok()?.checked_mul(1 << 40),
        None => crate::units::size(text),
    }
}

/// When a timer is due.
fn schedule(settings: &[Setting], report: &mut Report) -> Option<(At, String)> {
    let mut found = None;
    for setting in settings {
        let (at, key, value) = (&setting.at, setting.key.as_str(), setting.value.as_str());
        match (setting.section.as_str(), key) {
            ("Timer", "OnCalendar") if found.is_none() => match calendar(value) {
                Some(schedule) => found = Some((at.clone(), schedule)),
                None => report.leave_to_do(
                    at,
                    key,
                    "write it as a cron expression: [cron.NAME] schedule = \"30 3 * * *\" (default here: @daily)",
                ),
            },
            ("Timer", "OnUnitActiveSec") if found.is_none() => match every(value) {
                Some(schedule) => found = Some((at.clone(), schedule)),
                None => report.left(at, key, "a timed job has a cron expression"),
            },
            ("Timer", "Unit") | ("Install", _) => report.used(at, key, "the timed job"),
            ("Timer", "Persistent") => {
                report.left(at, key, "times that went by are not made up for; `hutong runs` says which");
            }
            ("Unit", _) => report.left(at, key, "it is for people, or for an order that there is not"),
            _ => report.left(at, key, "a timed job has a cron expression, and is begun within five minutes"),
        }
    }
    let first = settings.first()?;
    let is_timer = settings.iter().any(|setting| setting.section == "Timer");
    found.or_else(|| is_timer.then(|| (first.at.clone(), "@daily".to_owned())))
}

/// Times of systemd.time(7) that cron has, too.
fn calendar(text: &str) -> Option<String> {
    let fixed = match text {
        "minutely" => "* * * * *",
        "hourly" => "0 * * * *",
        "daily" => "0 0 * * *",
        "weekly" => "0 0 * * 1",
        "monthly" => "0 0 1 * *",
        "yearly" | "annually" => "0 0 1 1 *",
        _ => "",
    };
    if !fixed.is_empty() {
        return Some(fixed.to_owned());
    }
    let mut weekdays = "*".to_owned();
    let mut date = None;
    let mut time = None;
    for part in text.split_whitespace() {
        if part.contains(':') {
            time = Some(part);
        } else if part.starts_with(|c: char| c.is_ascii_alphabetic()) {
            weekdays = days(part)?;
        } else {
            date = Some(part);
        }
    }
    let day = match date {
        None | Some("*-*-*") => "*".to_owned(),
        Some(date) => number(date.strip_prefix("*-*-")?, 31).filter(|day| day != "0")?,
    };
    let mut parts = time.unwrap_or("00:00").split(':');
    let hour = number_or_star(parts.next()?, 23)?;
    let minute = number_or_star(parts.next()?, 59)?;
    match parts.next() {
        None | Some("00" | "0") => {}
        Some(_) => return None,
    }
    Some(format!("{minute} {hour} {day} * {weekdays}"))
}

fn number(text: &str, most: u32) -> Option<String> {
    let number = text.parse::<u32>().ok().filter(|number| *number <= most)?;
    Some(number.to_string())
}

/// `*`, `5`, `0/15`.
fn number_or_star(text: &str, most: u32) -> Option<String> {
    match text.split_once('/') {
        Some(("0" | "00" | "*", step)) => {
            Some(format!("*/{}", number(step, most)?)).filter(|text| text != "*/0")
        }
        Some(_) => None,
        None if text == "*" => Some("*".to_owned()),
        None => number(text, most),
    }
}

/// `Mon..Fri`, `Sat,Sun`.
fn days(text: &str) -> Option<String> {
    let names = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
    let day = |text: &str| {
        let lower: String = text.to_ascii_lowercase().chars().take(3).collect();
        names.iter().position(|name| *name == lower)
    };
    let mut list = Vec::new();
    for part in text.split(',') {
        match part.split_once("..") {
            Some((first, last)) => list.push(format!("{}-{}", day(first)?, day(last)?)),
            None => list.push(day(part)?.to_string()),
        }
    }
    Some(list.join(","))
}

/// Every so many minutes or hours, where that comes out even.
fn every(text: &str) -> Option<String> {
    let minutes = time_or_seconds(text)?.as_secs() / 60;
    match minutes {
        1 => Some("* * * * *".into()),
        2..=30 if 60 % minutes == 0 => Some(format!("*/{minutes} * * * *")),
        60 => Some("0 * * * *".into()),
        1440 => Some("0 0 * * *".into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sections_lines_that_go_on_and_comments() {
        let text = "# x\n[Unit]\nDescription=a = b\n\n[Service]\n; y\nExecStart=/bin/x \\\n  --y \\\n  z\n  User = me\n";
        let found = parse(&Arc::from("a.service"), text).expect("good");
        let shown: Vec<(&str, &str, &str, usize)> = found
            .iter()
            .map(|one| {
                (
                    one.section.as_str(),
                    one.key.as_str(),
                    one.value.as_str(),
                    one.at.line,
                )
            })
            .collect();
        assert_eq!(
            shown,
            [
                ("Unit", "Description", "a = b", 3),
                ("Service", "ExecStart", "/bin/x --y z", 7),
                ("Service", "User", "me", 10),
            ]
        );
        assert_eq!(found[2].at.column, 3);
    }

    #[test]
    fn mistakes_have_their_place() {
        let wrong = |text| {
            let found = parse(&Arc::from("a.service"), text);
            found.expect_err("it is wrong").to_string()
        };
        assert_eq!(
            wrong("[Unit]\n  what\n"),
            "a.service:2:3: `what` is neither `KEY=VALUE` nor `[SECTION]`"
        );
        assert_eq!(
            wrong("A=1\n"),
            "a.service:1:1: this stands before the first `[SECTION]`"
        );
        assert_eq!(
            wrong("[Unit\n"),
            "a.service:1:1: `]` is missing behind the section's name"
        );
    }

    #[test]
    fn times_of_timers_become_cron_expressions() {
        for (text, wanted) in [
            ("daily", Some("0 0 * * *")),
            ("weekly", Some("0 0 * * 1")),
            ("*-*-* 03:30:00", Some("30 3 * * *")),
            ("Mon..Fri *-*-* 07:45", Some("45 7 * * 1-5")),
            ("Sat,Sun 10:00", Some("0 10 * * 6,0")),
            ("*:0/15", Some("*/15 * * * *")),
            ("*-*-01 04:00", Some("0 4 1 * *")),
            ("2026-01-01 00:00", None),
            ("*-*-* 03:30:10", None),
            ("someday", None),
            ("*-*-* 25:00", None),
        ] {
            assert_eq!(calendar(text).as_deref(), wanted, "{text}");
            if let Some(wanted) = wanted {
                assert!(hutong_core::schedule::Schedule::parse(wanted, None).is_ok());
            }
        }
        assert_eq!(every("15min").as_deref(), Some("*/15 * * * *"));
        assert_eq!(every("1h").as_deref(), Some("0 * * * *"));
        assert_eq!(every("7min"), None);
        assert_eq!(size("1T"), Some(1 << 40));
        assert_eq!(size("infinity"), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(?s)(\\[Service\\]\n|ExecStart=|\\\\\n|%|[$]|[{]|=|.){0,60}") {
            let _ = parse(&Arc::from("f"), &text);
            let _ = calendar(&text);
        }
    }
}
