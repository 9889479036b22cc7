//! Sizes and times as people write them: `512M`, `1.5G`, `30s`, `2m`.

use std::time::Duration;

/// Bytes: digits and `K`, `M`, `G` or `T` (powers of 1024; `KiB`, `MB` and so on mean the same).
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a size; write for instance 256M or 1.5G");
    let text_trimmed = text.trim();
    let split = text_trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text_trimmed.len());
    let (number, unit) = text_trimmed.split_at(split);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "b" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let value: f64 = number.parse().map_err(|_| wrong())?;
    let bytes = value * factor as f64;
    if !bytes.is_finite() || bytes > (1u64 << 50) as f64 {
        return Err(wrong());
    }
    Ok(bytes as u64)
}

/// A time: digits and `ms`, `s`, `m`, `h` or `d`.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time; write for instance 500ms, 30s or 5m");
    let text_trimmed = text.trim();
    let split = text_trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text_trimmed.len());
    let (number, unit) = text_trimmed.split_at(split);
    let factor = match unit.trim() {
        "ms" => 0.001,
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86400.0,
        _ => return Err(wrong()),
    };
    let value: f64 = number.parse().map_err(|_| wrong())?;
    let seconds = value * factor;
    if !seconds.is_finite() || seconds > 3660.0 * 86400.0 {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// `1536` → `1.5K`: at most one decimal, for people.
pub fn show_size(bytes: u64) -> String {
    let units = ["B", "K", "M", "G", "T"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 || value.fract() < 0.05 {
        format!("{value:.0}{}", units[unit])
    } else {
        format!("{value:.1}{}", units[unit])
    }
}

/// `90 s` → `1m30s`, for people; at most two units.
pub fn show_time(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{}ms", time.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_times_in_human_units() {
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("1.5G"), Ok(3 << 29));
        assert_eq!(parse_size("64 KiB"), Ok(65536));
        assert_eq!(parse_time("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_time("2m"), Ok(Duration::from_secs(120)));
        for bad in ["", "12", "M", "1.2.3M", "-1M", "99999999T", "1e9G"] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
        for bad in ["", "30", "s", "-1s", "9999d", "1 fortnight"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
        assert_eq!(show_size(1536), "1.5K");
        assert_eq!(show_size(256 << 20), "256M");
        assert_eq!(show_time(Duration::from_secs(90)), "1m30s");
    }

    proptest! {
        #[test]
        fn no_text_makes_them_panic(text in ".{0,12}") {
            let _ = parse_size(&text);
            let _ = parse_time(&text);
        }
    }
}
