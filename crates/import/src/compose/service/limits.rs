//! A service's health check, bounds and number.

use std::time::Duration;

use hutong_core::spec::MAX_CONTAINERS;

use crate::place::At;
use crate::tree::Node;
use crate::units::{time_or_seconds, within};

use super::super::parts;
use super::Reading;
use super::fixed::PAUSES;

impl Reading<'_> {
    pub(super) fn healthcheck(&mut self, value: &Node) {
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        for entry in value.map() {
            let (at, what) = (&entry.at, format!("healthcheck.{}", entry.key));
            let time = entry.value.text().and_then(time_or_seconds);
            match (entry.key.as_str(), time) {
                ("test", _) => match parts::checked_path(&entry.value) {
                    Some((path, port)) if self.tcp.is_none() => {
                        self.report.used(at, &what, format!("health.path = \"{path}\""));
                        self.draft.health.path = Some(path);
                        self.checked_port = port;
                    }
                    _ => self.report.left(
                        at,
                        &what,
                        "it is no GET of the container itself: that its port takes a connection is enough",
                    ),
                },
                ("interval", Some(time)) => {
                    self.draft.health.interval = Some(within(time, ms(100), s(3600)));
                    self.report.used(at, &what, "health.interval");
                }
                ("timeout", Some(time)) => {
                    self.draft.health.timeout = Some(within(time, ms(10), s(300)));
                    self.report.used(at, &what, "health.timeout");
                }
                ("retries", _) => {
                    let count = entry.value.text().and_then(|text| text.parse::<u32>().ok());
                    self.draft.health.retries = count.map(|count| count.clamp(1, 100));
                    self.report.used(at, &what, "health.retries");
                }
                ("start_period", Some(time)) => {
                    self.draft.timeouts.start = Some(within(time.max(s(30)), ms(100), s(3600)));
                    self.report.used(at, &what, "timeouts.start, 30s at least");
                }
                ("start_interval", _) => {
                    self.report.left(at, &what, "what starts is asked every 20 ms at first");
                }
                ("disable", _) => {
                    self.report.left(at, &what, "that its port takes a connection is asked for all the same");
                }
                _ => self.report.left(at, &what, "it is not known here"),
            }
        }
    }

    pub(super) fn deploy(&mut self, value: &Node) {
        for entry in value.map() {
            let (at, what) = (&entry.at, format!("deploy.{}", entry.key));
            match entry.key.as_str() {
                "replicas" => self.instances(at, &what, &entry.value),
                "resources" => self.resources(&entry.value),
                "restart_policy" => {
                    for option in entry.value.map() {
                        let what = format!("{what}.{}", option.key);
                        match (option.key.as_str(), option.value.text()) {
                            ("condition", Some("any")) => self.restart(&option.at, "always"),
                            ("condition", Some("none")) => self.restart(&option.at, "no"),
                            ("condition", Some(text)) => self.restart(&option.at, text),
                            _ => self.report.left(&option.at, &what, PAUSES),
                        }
                    }
                }
                "update_config" => {
                    for option in entry.value.map() {
                        let what = format!("{what}.{}", option.key);
                        let strategy = match (option.key.as_str(), option.value.text()) {
                            ("order", Some("start-first")) => "rolling",
                            ("order", Some("stop-first")) => "recreate",
                            _ => {
                                self.report.left(&option.at, &what, "a new release takes over when all of its instances are healthy");
                                continue;
                            }
                        };
                        self.draft.strategy = Some(strategy);
                        self.report
                            .used(&option.at, &what, format!("strategy = \"{strategy}\""));
                    }
                }
                _ => self.report.left(at, &what, "it is for a swarm of machines"),
            }
        }
    }

    fn resources(&mut self, value: &Node) {
        for part in value.map() {
            for option in part.value.map() {
                let what = format!("deploy.resources.{}.{}", part.key, option.key);
                match (part.key.as_str(), option.key.as_str()) {
                    ("limits", "memory") => self.memory(&option.at, &what, &option.value),
                    ("limits", "cpus") => self.cpus(&option.at, &what, &option.value),
                    ("limits", "pids") => self.pids(&option.at, &what, &option.value),
                    _ => self.report.left(
                        &option.at,
                        &what,
                        "nothing is set aside for an app; `limits` bounds it",
                    ),
                }
            }
        }
    }

    pub(super) fn instances(&mut self, at: &At, what: &str, value: &Node) {
        let count = value.text().and_then(|text| text.parse::<u32>().ok());
        match count {
            Some(0) => self
                .report
                .left(at, what, "one is the fewest; `hutong stop` stops an app"),
            Some(count) => {
                let kept = count.min(MAX_CONTAINERS);
                self.draft.instances = Some(kept);
                let more = match kept == count {
                    true => String::new(),
                    false => format!(", the most for an app from an image, not {count}"),
                };
                self.report
                    .used(at, what, format!("instances = {kept}{more}"));
            }
            None => self.report.left(at, what, "this is no number"),
        }
    }

    pub(super) fn memory(&mut self, at: &At, what: &str, value: &Node) {
        match value.text().and_then(parts::memory) {
            Some(bytes) => {
                self.draft.limits.memory = Some(parts::bounded_memory(bytes));
                self.report.used(at, what, "limits.memory");
            }
            None => self.report.left(at, what, "this is no size"),
        }
    }

    pub(super) fn cpus(&mut self, at: &At, what: &str, value: &Node) {
        match value.text().and_then(parts::cores) {
            Some(millis) => {
                self.draft.limits.cpu = Some(millis);
                self.report.used(at, what, "limits.cpu");
            }
            None => self.report.left(at, what, "this is no number of cores"),
        }
    }

    pub(super) fn pids(&mut self, at: &At, what: &str, value: &Node) {
        match value.text().and_then(|text| text.parse::<u32>().ok()) {
            Some(count @ 1..) => {
                self.draft.limits.pids = Some(count.min(32_768));
                self.report.used(at, what, "limits.pids");
            }
            _ => self.report.left(
                at,
                what,
                "without a bound one app could take all: the default is 128",
            ),
        }
    }
}
