//! The `Date` of answers (RFC 9110 §6.6.1), written once a second, and a time for what need not be exact.

use std::cell::{Cell, RefCell};
use std::time::{SystemTime, UNIX_EPOCH};

thread_local! {
    static SECOND: Cell<u64> = const { Cell::new(0) };
    static LINE: RefCell<(u64, String)> = const { RefCell::new((0, String::new())) };
}

/// Appends `date: …` with its line end. It may be as old as the last [`tick`].
pub fn write(out: &mut Vec<u8>) {
    LINE.with_borrow(|(_, line)| out.extend_from_slice(line.as_bytes()));
}

/// Seconds since 1970, as of the last [`tick`].
pub fn second() -> u64 {
    SECOND.get()
}

/// Called several times a second, and before the first answer.
pub fn tick() {
    let now = SystemTime::now();
    let second = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    SECOND.set(second);
    LINE.with_borrow_mut(|(of, line)| {
        if *of != second {
            *of = second;
            *line = format!("date: {}\r\n", httpdate::fmt_http_date(now));
        }
    });
}
