//! When a timed process is due: a cron expression in a time zone.

use std::fmt;

use chrono::{DateTime, TimeZone};
use chrono_tz::Tz;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};

/// A cron expression of five fields (crontab(5), with `L`, `#` and `@daily` and its kin) in a time zone. Where
/// clocks go forward, what falls into the hour that is left out comes right behind it; where they go
/// back, what is due at fixed times comes once.
#[derive(Clone)]
pub struct Schedule {
    text: String,
    zone: Tz,
    cron: Cron,
}

impl Schedule {
    /// `zone` is a name of the IANA time zone database; `None` is UTC.
    pub fn parse(text: &str, zone: Option<&str>) -> Result<Self, ScheduleError> {
        let zone = parse_zone(zone)?;
        let parser = CronParser::builder()
            .seconds(Seconds::Disallowed)
            .year(Year::Disallowed)
            .build();
        let wrong = |why: String| ScheduleError::Expression(text.into(), why);
        if text.len() > 200 {
            return Err(wrong("it is over 200 characters".into()));
        }
        let cron = parser.parse(text).map_err(|error| {
            let why = error.to_string();
            let why = why.trim_start_matches("Invalid pattern: ");
            wrong(why.trim_end_matches('.').to_owned())
        })?;
        let schedule = Schedule {
            text: text.to_owned(),
            zone,
            cron,
        };
        match schedule.next_after(SOME_DAY_MS) {
            Some(_) => Ok(schedule),
            None => Err(wrong("no day is like that".into())),
        }
    }

    /// The first time behind `ms`; both are milliseconds since 1970.
    pub fn next_after(&self, ms: u64) -> Option<u64> {
        let from: DateTime<Tz> = self
            .zone
            .timestamp_millis_opt(i64::try_from(ms).ok()?)
            .single()?;
        let next = self.cron.find_next_occurrence(&from, false).ok()?;
        u64::try_from(next.timestamp_millis()).ok()
    }

    /// What to do at `now_ms`, everything up to `seen_ms` having been dealt with. Times that nobody was there for are
    /// missed; the last one is still met when it is not long ago.
    pub fn settle(&self, seen_ms: u64, now_ms: u64) -> Settled {
        let mut settled = Settled::default();
        let mut count = 0;
        let mut at = seen_ms;
        while let Some(next) = self.next_after(at).filter(|next| *next <= now_ms) {
            (at, count) = (next, count + 1);
            if count == MAX_COUNTED {
                settled.missed = count;
                return settled;
            }
        }
        let is_met = count > 0 && now_ms - at <= GRACE_MS;
        settled.due_ms = is_met.then_some(at);
        settled.missed = count - usize::from(is_met);
        settled
    }

    /// Whether a time has come since `seen_ms`, up to which everything was dealt with, that is no longer ago than
    /// `grace_ms`.
    pub fn was_due(&self, seen_ms: u64, now_ms: u64, grace_ms: u64) -> bool {
        // The clock may have been set back.
        let from = seen_ms.min(now_ms).max(now_ms.saturating_sub(grace_ms));
        self.next_after(from).is_some_and(|next| next <= now_ms)
    }

    pub fn zone(&self) -> &'static str {
        self.zone.name()
    }
}

/// A name of the IANA time zone database; `None` is UTC.
pub fn parse_zone(name: Option<&str>) -> Result<Tz, ScheduleError> {
    match name {
        None => Ok(Tz::UTC),
        Some(name) => name.parse().map_err(|_| ScheduleError::Zone(name.into())),
    }
}

/// What has become due.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// The time that is met now.
    pub due_ms: Option<u64>,
    /// How many went by before; [`MAX_COUNTED`] stands for any number from there.
    pub missed: usize,
}

/// A time that one comes to later than this was missed.
const GRACE_MS: u64 = 5 * 60_000;
pub const MAX_COUNTED: usize = 1000;

/// 2024-01-01, at the beginning of a leap year.
const SOME_DAY_MS: u64 = 1_704_067_200_000;

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.text, self.zone)
    }
}

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text && self.zone == other.zone
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error("`{0}` is no time zone; write for instance Asia/Shanghai or UTC")]
    Zone(String),
    #[error(
        "`{0}` is no cron expression such as \"0 3 * * *\" (minute hour day month weekday): {1}"
    )]
    Expression(String, String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(schedule: &Schedule, from: &str, count: usize) -> Vec<String> {
        let mut now = DateTime::parse_from_rfc3339(from)
            .expect("a time")
            .timestamp_millis() as u64;
        (0..count)
            .map(|_| {
                now = schedule.next_after(now).expect("there is a next");
                let time = schedule.zone.timestamp_millis_opt(now as i64);
                time.single().expect("a time").to_rfc3339()
            })
            .collect()
    }

    #[test]
    fn zones_and_changing_clocks_are_heeded() {
        let nightly = Schedule::parse("30 3 * * *", Some("Asia/Shanghai")).expect("good");
        assert_eq!(
            times(&nightly, "2026-11-22T00:00:00Z", 2),
            ["2026-11-23T03:30:00+08:00", "2026-11-24T03:30:00+08:00"]
        );
        // There is no 02:30 on 2026-03-29 in Berlin, and two on 2026-10-25.
        let half_past_two = Schedule::parse("30 2 * * *", Some("Europe/Berlin")).expect("good");
        assert_eq!(
            times(&half_past_two, "2026-03-28T12:00:00Z", 2),
            ["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]
        );
        assert_eq!(
            times(&half_past_two, "2026-10-24T12:00:00Z", 2),
            ["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]
        );
        let working = Schedule::parse("0 9 * * 1-5", None).expect("good");
        assert_eq!(
            times(&working, "2026-11-20T10:00:00Z", 1),
            ["2026-11-23T09:00:00+00:00"]
        );
        assert_eq!(
            times(
                &Schedule::parse("@monthly", None).expect("good"),
                "2026-11-20T10:00:00Z",
                1
            ),
            ["2026-12-01T00:00:00+00:00"]
        );
    }

    #[test]
    fn what_went_by_is_missed_and_what_just_came_is_met() {
        let hourly = Schedule::parse("0 * * * *", None).expect("good");
        let hour = 3_600_000;
        let noon = SOME_DAY_MS + 12 * hour;
        let settled = |due_ms, missed| Settled { due_ms, missed };
        assert_eq!(hourly.settle(noon, noon + hour - 1), settled(None, 0));
        assert_eq!(
            hourly.settle(noon, noon + hour),
            settled(Some(noon + hour), 0)
        );
        // Once met, it is over.
        assert_eq!(hourly.settle(noon + hour, noon + hour), settled(None, 0));
        let (late, later) = (noon + 3 * hour + GRACE_MS, noon + 3 * hour + GRACE_MS + 1);
        assert_eq!(hourly.settle(noon, late), settled(Some(noon + 3 * hour), 2));
        assert_eq!(hourly.settle(noon, later), settled(None, 3));
        assert_eq!(
            hourly.settle(noon, noon + 5000 * hour),
            settled(None, MAX_COUNTED)
        );
        // The clock was set back.
        assert_eq!(hourly.settle(noon, noon - hour), settled(None, 0));
    }

    #[test]
    fn what_came_since_the_last_look_is_due_once_and_not_for_long() {
        let hourly = Schedule::parse("0 * * * *", None).expect("good");
        let (minute, hour) = (60_000, 3_600_000);
        let noon = SOME_DAY_MS + 12 * hour;
        assert!(!hourly.was_due(noon - minute, noon - 1, minute));
        assert!(hourly.was_due(noon - 5_000, noon, minute));
        assert!(hourly.was_due(noon - 1, noon + 4_999, minute));
        assert!(!hourly.was_due(noon, noon + 4_999, minute));
        // Nobody looked meanwhile.
        assert!(hourly.was_due(0, noon + minute - 1, minute));
        assert!(hourly.was_due(noon - 2 * hour, noon + minute - 1, minute));
        assert!(!hourly.was_due(0, noon + minute, minute));
        // The clock was set back.
        assert!(!hourly.was_due(noon + hour, noon, minute));
        assert!(hourly.was_due(noon - 1, noon, minute));
    }

    #[test]
    fn what_is_no_schedule_is_refused() {
        for bad in [
            "",
            "0 3 * *",
            "0 0 3 * * *",
            "60 * * * *",
            "0 0 30 2 *",
            "every day",
            "@reboot",
        ] {
            let error = Schedule::parse(bad, None).expect_err(bad);
            assert!(error.to_string().contains("no cron expression"), "{error}");
        }
        let error = Schedule::parse("0 3 * * *", Some("Asia/Peking")).expect_err("no zone");
        assert!(error.to_string().contains("no time zone"), "{error}");
        assert!(Schedule::parse("0 0 29 2 *", None).is_ok());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[0-9*/,@L#A-Za-z -]{0,20}") {
            let _ = Schedule::parse(&text, None);
        }
    }
}
