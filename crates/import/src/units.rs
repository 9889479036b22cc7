//! Sizes, times and rates as nginx, systemd and others write them.

use std::time::Duration;

/// `10m`, `512k`, `1g`, `100`: bytes.
pub(crate) fn size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.trim_end_matches(['k', 'm', 'g']);
    let factor: u64 = match &lower[digits.len()..] {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// `60`, `60s`, `5m`, `500ms`, `1h30m`, `1 day`: seconds where no unit is said.
pub(crate) fn time(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest.get(..digits)?.parse().ok()?;
        let after = rest.get(digits..)?.trim_start();
        let length = after
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(after.len());
        let unit = match after.get(..length)? {
            "ms" | "msec" => 0.001,
            "s" | "sec" | "second" | "seconds" => 1.0,
            "m" | "min" | "minute" | "minutes" => 60.0,
            "h" | "hr" | "hour" | "hours" => 3600.0,
            "d" | "day" | "days" => 86_400.0,
            "w" | "week" | "weeks" => 604_800.0,
            _ => return None,
        };
        total += number * unit;
        rest = after.get(length..)?.trim_start();
    }
    (total.is_finite() && total < 1e9).then(|| Duration::from_secs_f64(total))
}

/// The same, and plain numbers are seconds.
pub(crate) fn time_or_seconds(text: &str) -> Option<Duration> {
    match text.trim().parse::<f64>() {
        Ok(seconds) if (0.0..1e9).contains(&seconds) => Some(Duration::from_secs_f64(seconds)),
        _ => time(text),
    }
}

/// So many in so many seconds, as `traffic.rate` takes it: the shortest unit that comes out even.
pub(crate) fn rate(count: f64, seconds: f64) -> Option<String> {
    if !(seconds > 0.0 && count > 0.0) {
        return None;
    }
    for (unit, length) in [("s", 1.0), ("m", 60.0), ("h", 3600.0)] {
        let rate = count / seconds * length;
        if (rate - rate.round()).abs() < 1e-6 && (1.0..=10_000_000.0).contains(&rate.round()) {
            return Some(format!("{}/{unit}", rate.round()));
        }
    }
    None
}

/// A time within what a key of hutong.toml takes.
pub(crate) fn within(time: Duration, low: Duration, high: Duration) -> Duration {
    time.max(low).min(high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_times_and_rates() {
        assert_eq!(size("10m"), Some(10 << 20));
        assert_eq!(size("1G"), Some(1 << 30));
        assert_eq!(size("0"), Some(0));
        assert_eq!(size("10mm"), None);
        assert_eq!(size("99999999999999999999"), None);
        assert_eq!(time_or_seconds("60"), Some(Duration::from_secs(60)));
        assert_eq!(time_or_seconds("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(time("1min 30s"), Some(Duration::from_secs(90)));
        assert_eq!(time("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(time("60"), None);
        assert_eq!(time("soon"), None);
        assert_eq!(rate(10.0, 1.0).as_deref(), Some("10/s"));
        assert_eq!(rate(30.0, 60.0).as_deref(), Some("30/m"));
        assert_eq!(rate(1.0, 7200.0), None);
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in "(?s).{0,20}") {
            let _ = (size(&text), time(&text), time_or_seconds(&text));
        }
    }
}
