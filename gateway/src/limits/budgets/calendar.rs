//! Days and months in UTC, counted from 1970.

use std::time::Duration;

use spillway_config::schema::Period;

/// Seconds of a day.
pub(super) const DAY: u64 = 86_400;

/// Day or month of a time, counted from 1970, and the Unix second at which the next one begins.
pub(in crate::limits) fn window(period: Period, now: u64) -> (u64, u64) {
    let day = now / DAY;
    match period {
        Period::Day => (day, (day + 1) * DAY),
        Period::Month => {
            let (year, month) = civil(day);
            let next = if month == 12 { (year + 1, 1) } else { (year, month + 1) };
            (year * 12 + month - 1, first_day(next.0, next.1) * DAY)
        }
    }
}

/// Time until the next day or month begins, at least a second.
pub(in crate::limits) fn until_next_window(period: Period, now: u64) -> Duration {
    Duration::from_secs(window(period, now).1.saturating_sub(now).max(1))
}

/// Year and month of a day since 1970 (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days).
fn civil(day: u64) -> (u64, u64) {
    let z = day + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month)
}

/// Days from 1970 to the first of a month (the same, days_from_civil).
fn first_day(year: u64, month: u64) -> u64 {
    let year = year - u64::from(month <= 2);
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5;
    let (era, of_era) = (year / 400, year % 400);
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}
