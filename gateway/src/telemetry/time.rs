//! Times as the log writes them.

use std::cell::RefCell;
use std::time::SystemTime;

use time::OffsetDateTime;

use crate::clock::since_1970;

/// Formats a time by RFC 3339, in UTC with milliseconds. A thread formats a second once: each request logs its time.
pub fn rfc3339_millis(time: SystemTime) -> String {
    thread_local! {
        static LAST: RefCell<(u64, String)> = const { RefCell::new((u64::MAX, String::new())) };
    }
    let since = since_1970(time);
    LAST.with_borrow_mut(|(second, text)| {
        if *second != since.as_secs() {
            (*second, *text) = (since.as_secs(), to_the_second(since.as_secs()));
        }
        let mut out = String::with_capacity(text.len() + ".000Z".len());
        out.push_str(text);
        out.push('.');
        for place in [100, 10, 1] {
            out.push(char::from_digit(since.subsec_millis() / place % 10, 10).unwrap_or('0'));
        }
        out.push('Z');
        out
    })
}

fn to_the_second(second: u64) -> String {
    let second = i64::try_from(second).unwrap_or(i64::MAX);
    let at = OffsetDateTime::from_unix_timestamp(second).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day, hour, minute, second) =
        (at.year(), u8::from(at.month()), at.day(), at.hour(), at.minute(), at.second());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (millis, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_070, "2000-02-29T00:00:00.070Z"),
            (1_795_523_696_123, "2026-11-24T12:34:56.123Z"),
            (1_795_523_696_999, "2026-11-24T12:34:56.999Z"),
            (951_782_400_005, "2000-02-29T00:00:00.005Z"),
        ] {
            assert_eq!(rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_millis(millis)), text);
        }
    }
}
