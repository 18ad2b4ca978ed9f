//! Days and months in UTC, counted from 1970.

use std::time::Duration;

use spillway_config::schema::Period;
use time::{Date, Month, OffsetDateTime};

/// Seconds of a day.
pub(super) const DAY: u64 = 86_400;

/// Day or month of a time, counted from 1970, and the Unix second at which the next one begins.
pub(in crate::limits) fn window(period: Period, now: u64) -> (u64, u64) {
    let day = now / DAY;
    match period {
        Period::Day => (day, (day + 1) * DAY),
        Period::Month => {
            let today = date(now);
            let (year, month) = (today.year(), today.month());
            let next_year = if month == Month::December { year + 1 } else { year };
            let next = Date::from_calendar_date(next_year, month.next(), 1).unwrap_or(Date::MAX);
            let number = u64::try_from(year).unwrap_or(0) * 12 + u64::from(u8::from(month)) - 1;
            (number, u64::try_from(next.midnight().assume_utc().unix_timestamp()).unwrap_or(0))
        }
    }
}

/// Date of a Unix time in seconds; the calendar ends with the year 9999.
fn date(now: u64) -> Date {
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(now).map_or(Date::MAX, OffsetDateTime::date)
}

/// Time until the next day or month begins, at least a second.
pub(in crate::limits) fn until_next_window(period: Period, now: u64) -> Duration {
    Duration::from_secs(window(period, now).1.saturating_sub(now).max(1))
}
