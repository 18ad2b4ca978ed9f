//! Times as the log writes them.

use std::time::SystemTime;

use time::OffsetDateTime;

use crate::clock::since_1970;

/// Formats a time by RFC 3339, in UTC with milliseconds.
pub fn rfc3339_millis(time: SystemTime) -> String {
    let since = since_1970(time);
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let at = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second, milli) = (at.hour(), at.minute(), at.second(), since.subsec_millis());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_rfc_3339() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_795_523_696, "2026-11-24T12:34:56.000Z"),
        ] {
            assert_eq!(rfc3339_millis(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
    }
}
