//! Times of the day at which an app does not run: windows such as `23:00-06:00` in a time zone.

use chrono::{DateTime, NaiveDate, NaiveTime, TimeDelta, TimeZone, Timelike};
use chrono_tz::Tz;

const DAY: u32 = 24 * 60;
/// Clocks went forward by a whole day once (Pacific/Apia, 2011), and never by more.
const LONGEST_GAP: u32 = 25 * 60;

/// A part of every day, in minutes from midnight; one that ends before it begins goes on after midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    from: u32,
    to: u32,
}

impl Window {
    /// `HH:MM-HH:MM`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no part of the day; write for instance 23:00-06:00");
        let (from, to) = text.split_once('-').ok_or_else(wrong)?;
        let (from, to) = (
            minute(from).ok_or_else(wrong)?,
            minute(to).ok_or_else(wrong)?,
        );
        if from == DAY || from == to {
            return Err(wrong());
        }
        Ok(Window { from, to })
    }

    fn holds(self, minute: u32) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

/// `HH:MM`, up to 24:00.
fn minute(text: &str) -> Option<u32> {
    let (hour, minute) = text.trim().split_once(':')?;
    let plain = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !(1..=2).contains(&hour.len()) || minute.len() != 2 || !plain(hour) || !plain(minute) {
        return None;
    }
    let (hour, minute): (u32, u32) = (hour.parse().ok()?, minute.parse().ok()?);
    let of_day = hour * 60 + minute;
    (minute < 60 && of_day <= DAY).then_some(of_day)
}

/// Windows in a time zone. What falls into an hour that clocks leave out begins or ends right behind it; of an hour that
/// comes twice, the first counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hours {
    windows: Vec<Window>,
    zone: Tz,
}

impl Hours {
    /// `None` if no time of the day is left.
    pub fn new(windows: Vec<Window>, zone: Tz) -> Option<Self> {
        let is_covered = |minute| windows.iter().any(|window| window.holds(minute));
        let is_all_day = (0..DAY).all(is_covered);
        (!is_all_day).then_some(Hours { windows, zone })
    }

    /// When the windows that hold `now_ms` are over, those that follow without a gap included; `None` outside. Both are
    /// milliseconds since 1970.
    pub fn down_until(&self, now_ms: u64) -> Option<u64> {
        let now = i64::try_from(now_ms).ok()?;
        let today = self.local(now)?.date_naive();
        let mut spans = Vec::new();
        // Yesterday's may go on after midnight; what adjoins may lead into the day after tomorrow.
        for date in today.pred_opt()?.iter_days().take(4) {
            let of_date = |window: &Window| self.span(date, *window);
            spans.extend(self.windows.iter().filter_map(of_date));
        }
        spans.sort_unstable();
        let mut end = now;
        for (from, to) in spans {
            if from <= end {
                end = end.max(to);
            }
        }
        u64::try_from(end).ok().filter(|end| *end > now_ms)
    }

    /// A time as people of that zone call it: `06:00 Asia/Shanghai`.
    pub fn words(&self, ms: u64) -> String {
        let time = i64::try_from(ms).ok().and_then(|ms| self.local(ms));
        let time = time.map(|time| format!("{:02}:{:02} ", time.hour(), time.minute()));
        format!("{}{}", time.unwrap_or_default(), self.zone.name())
    }

    fn local(&self, ms: i64) -> Option<DateTime<Tz>> {
        self.zone.timestamp_millis_opt(ms).single()
    }

    /// From when to when the window of this date goes, in milliseconds since 1970.
    fn span(&self, date: NaiveDate, window: Window) -> Option<(i64, i64)> {
        let ends_on = if window.from < window.to {
            date
        } else {
            date.succ_opt()?
        };
        let from = self.instant(date, window.from)?;
        Some((from, self.instant(ends_on, window.to)?))
    }

    fn instant(&self, date: NaiveDate, minute: u32) -> Option<i64> {
        let midnight = date.and_time(NaiveTime::MIN);
        for minute in minute..minute + LONGEST_GAP {
            let local = midnight.checked_add_signed(TimeDelta::minutes(minute.into()))?;
            if let Some(time) = self.zone.from_local_datetime(&local).earliest() {
                return Some(time.timestamp_millis());
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hours(list: &[&str], zone: &str) -> Hours {
        let windows = list
            .iter()
            .map(|text| Window::parse(text).expect("a window"));
        Hours::new(windows.collect(), zone.parse().expect("a zone")).expect("some time is left")
    }

    fn ms(time: &str) -> u64 {
        let time = DateTime::parse_from_rfc3339(time).expect("a time");
        time.timestamp_millis() as u64
    }

    /// The end as UTC has it; empty outside of the windows.
    fn until(hours: &Hours, now: &str) -> String {
        hours.down_until(ms(now)).map_or(String::new(), |end| {
            DateTime::from_timestamp_millis(end as i64)
                .expect("a time")
                .to_rfc3339()
        })
    }

    #[test]
    fn a_night_goes_on_after_midnight() {
        let night = hours(&["23:00-06:00"], "Asia/Shanghai");
        assert_eq!(until(&night, "2026-11-22T14:59:59Z"), "");
        for now in ["15:00:00", "15:59:59", "16:00:00", "21:59:59"] {
            let now = format!("2026-11-22T{now}Z");
            assert_eq!(until(&night, &now), "2026-11-22T22:00:00+00:00", "{now}");
        }
        assert_eq!(until(&night, "2026-11-22T22:00:00Z"), "");
        let end = ms("2026-11-22T22:00:00Z");
        assert_eq!(night.words(end), "06:00 Asia/Shanghai");
    }

    #[test]
    fn windows_of_one_day_and_such_that_adjoin() {
        let noon = hours(&["12:00-13:00", "9:05-09:10"], "UTC");
        assert_eq!(until(&noon, "2026-11-22T11:59:59Z"), "");
        assert_eq!(
            until(&noon, "2026-11-22T12:00:00Z"),
            "2026-11-22T13:00:00+00:00"
        );
        assert_eq!(
            until(&noon, "2026-11-22T09:09:59Z"),
            "2026-11-22T09:10:00+00:00"
        );
        assert_eq!(until(&noon, "2026-11-22T13:00:00Z"), "");
        // In whatever order they are given.
        let night = hours(
            &["00:00-06:00", "05:30-07:00", "22:00-24:00"],
            "America/New_York",
        );
        assert_eq!(
            until(&night, "2026-11-22T03:00:00Z"),
            "2026-11-22T12:00:00+00:00"
        );
        assert_eq!(until(&night, "2026-11-22T02:59:59Z"), "");
    }

    #[test]
    fn clocks_that_change_neither_lengthen_nor_repeat_a_window() {
        // No 02:00 to 03:00 on 2026-03-29 in Berlin.
        let inside = hours(&["02:30-04:00"], "Europe/Berlin");
        assert_eq!(until(&inside, "2026-03-29T00:59:59Z"), "");
        assert_eq!(
            until(&inside, "2026-03-29T01:00:00Z"),
            "2026-03-29T02:00:00+00:00"
        );
        let into = hours(&["23:00-02:30"], "Europe/Berlin");
        assert_eq!(
            until(&into, "2026-03-29T00:30:00Z"),
            "2026-03-29T01:00:00+00:00"
        );
        assert_eq!(until(&into, "2026-03-29T01:00:00Z"), "");
        let within = hours(&["02:10-02:50"], "Europe/Berlin");
        assert_eq!(until(&within, "2026-03-29T00:59:59Z"), "");
        assert_eq!(until(&within, "2026-03-29T01:00:00Z"), "");
        // Two of it on 2026-10-25.
        assert_eq!(
            until(&into, "2026-10-25T00:20:00Z"),
            "2026-10-25T00:30:00+00:00"
        );
        assert_eq!(until(&into, "2026-10-25T01:10:00Z"), "");
        let from = hours(&["02:30-03:30"], "Europe/Berlin");
        assert_eq!(
            until(&from, "2026-10-25T00:30:00Z"),
            "2026-10-25T02:30:00+00:00"
        );
    }

    #[test]
    fn what_is_no_window_is_refused() {
        for bad in [
            "",
            "-",
            "23:00",
            "23:00-",
            "23-06",
            "24:00-06:00",
            "06:00-24:01",
            "6:0-7:00",
            "+6:00-07:00",
            "06:60-07:00",
            "08:00-08:00",
            "23:00–06:00",
            "100:00-06:00",
        ] {
            let error = Window::parse(bad).expect_err(bad);
            assert!(error.contains("no part of the day"), "{error}");
        }
        let all = |list: &[&str]| {
            let windows = list
                .iter()
                .map(|text| Window::parse(text).expect("a window"));
            Hours::new(windows.collect(), Tz::UTC)
        };
        assert_eq!(all(&["00:00-24:00"]), None);
        assert_eq!(all(&["18:00-09:00", "09:00-18:00"]), None);
        assert!(all(&["18:00-09:00", "09:01-18:00"]).is_some());
    }

    proptest::proptest! {
        #[test]
        fn an_end_lies_ahead_and_is_no_part(now in 0_u64..4_102_444_800_000, text in "[0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9]") {
            if let Some(hours) = Window::parse(&text).ok().and_then(|one| Hours::new(vec![one], Tz::Europe__Berlin))
                && let Some(end) = hours.down_until(now)
            {
                proptest::prop_assert!(end > now && hours.down_until(end).is_none());
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,16}") {
            let _ = Window::parse(&text);
        }
    }
}
