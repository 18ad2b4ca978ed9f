//! `strftime_now`, with which templates of Llama and Mistral write the date. The time is UTC.

use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
/// Days of the week from 1 January 1970 on.
const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Formats the current time by a format of C's `strftime`. Fails with the first unknown directive.
pub(super) fn now(format: &str) -> Result<String, char> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    formatted(since.as_secs(), format)
}

fn formatted(seconds: u64, format: &str) -> Result<String, char> {
    let days = seconds / 86_400;
    let (year, month, day) = date(days);
    let name = |names: &[&'static str], at: u64| {
        usize::try_from(at).ok().and_then(|at| names.get(at)).copied().unwrap_or_default()
    };
    let (month_name, day_name) = (name(&MONTHS, month - 1), name(&DAYS, days % 7));
    let short = |name: &'static str| name.get(..3).unwrap_or_default().to_owned();
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        text += &match rest.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => short(month_name),
            Some('A') => day_name.to_owned(),
            Some('a') => short(day_name),
            Some('H') => format!("{:02}", seconds / 3600 % 24),
            Some('M') => format!("{:02}", seconds / 60 % 60),
            Some('S') => format!("{:02}", seconds % 60),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{:02}:{:02}:{:02}", seconds / 3600 % 24, seconds / 60 % 60, seconds % 60),
            Some('%') => "%".to_owned(),
            Some(other) => return Err(other),
            None => return Err('%'),
        };
    }
    Ok(text)
}

/// Year, month and day, this many days after 1 January 1970, in the Gregorian calendar. Years are counted from March,
/// so that the leap day comes last, and in eras of 400 years, which all have as many days.
fn date(days: u64) -> (u64, u64, u64) {
    let since_march_of_0 = days + 719_468;
    let (era, day_of_era) = (since_march_of_0 / 146_097, since_march_of_0 % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let months = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * months + 2) / 5 + 1;
    let month = if months < 10 { months + 3 } else { months - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, date) in [
            (0, "Thursday, 01 January 1970 00:00:00"),
            (951_782_400, "Tuesday, 29 February 2000 00:00:00"),
            (1_709_251_199, "Thursday, 29 February 2024 23:59:59"),
            (1_709_251_200, "Friday, 01 March 2024 00:00:00"),
            (4_107_542_399, "Sunday, 28 February 2100 23:59:59"),
            (4_107_542_400, "Monday, 01 March 2100 00:00:00"),
            (1_735_689_600, "Wednesday, 01 January 2025 00:00:00"),
        ] {
            assert_eq!(formatted(seconds, "%A, %d %B %Y %H:%M:%S").unwrap(), date);
        }
        assert_eq!(
            formatted(1_722_000_000, "%d %b %Y, %e %a %y %F %T 100%%").unwrap(),
            "26 Jul 2024, 26 Fri 24 2024-07-26 13:20:00 100%"
        );
        assert_eq!(formatted(0, "%d %Q"), Err('Q'));
    }
}
