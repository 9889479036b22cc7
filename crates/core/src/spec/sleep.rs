//! When an app sleeps, when it is woken before anybody asks, and when it does not run at all.

use std::time::Duration;

use schemars::JsonSchema;
use serde::Deserialize;
use toml::Spanned;

use super::{Check, RawSpec};
use crate::hours::{Hours, Window};
use crate::schedule::{self, Schedule};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSleep {
    /// So long without a request, such as "15m": then the app is stopped, and the next request starts it.
    #[schemars(with = "String")]
    after: Spanned<String>,
    /// When it is woken before anybody asks, as by a request: cron expressions such as "45 7 * * 1-5".
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    wake: Vec<Spanned<String>>,
    /// Parts of every day in which nothing of it runs but timed jobs, such as "23:00-06:00"; visitors get 503.
    #[schemars(with = "Vec<String>")]
    #[serde(default)]
    down: Vec<Spanned<String>>,
    /// The time zone of `wake` and `down`, such as "Asia/Shanghai"; default UTC.
    #[schemars(with = "Option<String>")]
    zone: Option<Spanned<String>>,
}

/// Lines of `wake`, and of `down`.
const MAX_LINES: usize = 32;

impl Check<'_> {
    pub(super) fn sleep(&mut self, raw: &RawSpec) -> Option<Duration> {
        let after = &raw.sleep.as_ref()?.after;
        let at = after.span().start;
        if raw.command.is_none() && !raw.has_image() {
            self.wrong(
                at,
                "`sleep` goes with `command`: nothing else has instances",
            );
        } else if raw.domains.is_empty() {
            self.wrong(
                at,
                "`sleep` goes with `domains`: nothing would ever wake this app",
            );
        }
        let (s, day) = (Duration::from_secs, Duration::from_secs(86_400));
        Some(self.time(&Some(after.clone()), s(900), s(1), 30 * day))
    }

    /// When it is woken, and when it is down.
    pub(super) fn hours(&mut self, raw: &RawSpec) -> (Vec<Schedule>, Option<Hours>) {
        let nothing = (Vec::new(), None);
        let Some(raw) = &raw.sleep else {
            return nothing;
        };
        let name = raw.zone.as_ref().map(|zone| zone.get_ref().as_str());
        let at = raw.zone.as_ref().map_or(0, |zone| zone.span().start);
        let zone = match schedule::parse_zone(name) {
            Ok(zone) => zone,
            Err(error) => {
                self.wrong(at, error.to_string());
                return nothing;
            }
        };
        if name.is_some() && raw.wake.is_empty() && raw.down.is_empty() {
            self.wrong(at, "`zone` goes with `wake` or `down`");
        }
        for list in [&raw.wake, &raw.down] {
            if let Some(line) = list.get(MAX_LINES) {
                self.wrong(line.span().start, format!("at most {MAX_LINES} of these"));
            }
        }
        let mut wake = Vec::new();
        for line in raw.wake.iter().take(MAX_LINES) {
            match Schedule::parse(line.get_ref(), name) {
                Ok(schedule) => wake.push(schedule),
                Err(error) => self.wrong(line.span().start, error.to_string()),
            }
        }
        let mut windows = Vec::new();
        for line in raw.down.iter().take(MAX_LINES) {
            match Window::parse(line.get_ref()) {
                Ok(window) => windows.push(window),
                Err(message) => self.wrong(line.span().start, message),
            }
        }
        let Some(first) = raw.down.first().filter(|_| !windows.is_empty()) else {
            return (wake, None);
        };
        let down = Hours::new(windows, zone);
        if down.is_none() {
            let message = "this leaves no time of the day; `hutong stop` stops an app for good";
            self.wrong(first.span().start, message);
        }
        (wake, down)
    }
}
