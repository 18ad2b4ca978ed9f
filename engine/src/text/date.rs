//! `strftime_now`, with which templates of Llama and Mistral write the date. The time is UTC.

use std::time::{SystemTime, UNIX_EPOCH};

use time::OffsetDateTime;

/// Formats the current time by a format of C's `strftime`. Fails with the first unknown directive.
pub(super) fn now(format: &str) -> Result<String, char> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    formatted(since.as_secs(), format)
}

fn formatted(seconds: u64, format: &str) -> Result<String, char> {
    let at = i64::try_from(seconds).unwrap_or(i64::MAX);
    let at = OffsetDateTime::from_unix_timestamp(at).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let (year, month, day) = (at.year(), u8::from(at.month()), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    let (month_name, day_name) = (at.month().to_string(), at.weekday().to_string());
    let short = |name: &str| name.get(..3).unwrap_or_default().to_owned();
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
            Some('B') => month_name.clone(),
            Some('b' | 'h') => short(&month_name),
            Some('A') => day_name.clone(),
            Some('a') => short(&day_name),
            Some('H') => format!("{hour:02}"),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('%') => "%".to_owned(),
            Some(other) => return Err(other),
            None => return Err('%'),
        };
    }
    Ok(text)
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
