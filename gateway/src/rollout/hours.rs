//! Hours in which a rollout may take steps up. Pure: times are Unix seconds; the time zones are those of the program.

use jiff::civil::{Time, Weekday};
use jiff::tz::{TimeZone, TimeZoneDatabase};
use jiff::{Timestamp, ToSpan, Zoned};

const MINUTES_OF_DAY: u16 = 24 * 60;

/// Fault of `within`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HoursError {
    /// The zone has no such name.
    #[error("unknown time zone `{0}`; expected a name of the IANA database, such as UTC or Europe/Berlin")]
    Zone(String),
    /// The list of days is empty.
    #[error("no day, so that no step would ever be taken; leave `days` out for all of them")]
    Days,
    /// The hours have no length, or do not begin within a day.
    #[error("hours without length; expected a range such as 09:00-17:00, 22:00-06:00 or 00:00-24:00")]
    Empty,
}

/// Hours of some days of the week, by the clock of a time zone.
///
/// An instant is allowed by what the clock on the wall shows. Hours that the clock skips are not there, and hours that it
/// shows twice are allowed twice. Hours over midnight belong to the day on which they begin.
#[derive(Clone, Debug)]
pub struct AllowedHours {
    /// First minute of the day.
    from: u16,
    /// First minute of the day that is not allowed, up to 1440.
    until: u16,
    /// Days on which the hours begin, from Monday.
    days: [bool; 7],
    zone: TimeZone,
}

impl AllowedHours {
    /// Hours from one minute of the day to another (the second not included, 1440 for the end of the day; none for the whole
    /// day) on some days of the week (0 is Monday; none for all) in a time zone of the IANA database (none for UTC).
    ///
    /// # Errors
    ///
    /// [`HoursError`] with what was found and what was expected.
    pub fn new(range: Option<(u16, u16)>, days: Option<&[usize]>, zone: Option<&str>) -> Result<Self, HoursError> {
        let (from, until) = range.unwrap_or((0, MINUTES_OF_DAY));
        if from == until || from >= MINUTES_OF_DAY || until > MINUTES_OF_DAY {
            return Err(HoursError::Empty);
        }
        let mut allowed = [days.is_none(); 7];
        for day in days.unwrap_or_default() {
            if let Some(allowed) = allowed.get_mut(*day) {
                *allowed = true;
            }
        }
        if !allowed.contains(&true) {
            return Err(HoursError::Days);
        }
        let zone = zone.unwrap_or("UTC");
        // The program's own data, so that a rollout does not depend on what the host has installed.
        let zone = TimeZoneDatabase::bundled().get(zone).map_err(|_| HoursError::Zone(zone.to_owned()))?;
        Ok(Self { from, until, days: allowed, zone })
    }

    /// True if steps may be taken at a time.
    #[must_use]
    pub fn allow(&self, now: f64) -> bool {
        self.local(now).is_some_and(|local| self.allow_local(&local))
    }

    /// Time at which the hours begin next, as RFC 3339 text with offset and zone; none while they last.
    #[must_use]
    pub fn opens(&self, now: f64) -> Option<String> {
        let local = self.local(now)?;
        if self.allow_local(&local) {
            return None;
        }
        self.next(&local).map(|opens| opens.strftime("%Y-%m-%d %H:%M %:z (%Q)").to_string())
    }

    fn local(&self, now: f64) -> Option<Zoned> {
        #[allow(clippy::cast_possible_truncation, reason = "whole seconds of a time")]
        let time = Timestamp::from_second(now.floor() as i64).ok()?;
        Some(time.to_zoned(self.zone.clone()))
    }

    fn allow_local(&self, local: &Zoned) -> bool {
        let minute = u16::from(local.hour().unsigned_abs()) * 60 + u16::from(local.minute().unsigned_abs());
        let today = of_week(local.weekday());
        let on = |day: usize| self.days.get(day % self.days.len()).copied().unwrap_or(false);
        if self.from < self.until {
            return on(today) && (self.from..self.until).contains(&minute);
        }
        (on(today) && minute >= self.from) || (on(today + 6) && minute < self.until)
    }

    /// Next beginning after a time outside the hours: a beginning of the hours by the clock, midnight, or a change of the clock.
    fn next(&self, local: &Zoned) -> Option<Zoned> {
        let begin = Time::midnight().checked_add(i64::from(self.from).minutes()).ok()?;
        let days = (0..9).filter_map(|days| local.date().checked_add(i64::from(days).days()).ok());
        let begins = days.filter_map(|date| date.to_datetime(begin).to_zoned(self.zone.clone()).ok());
        let limit = local.checked_add(9.days()).ok()?;
        let changes =
            self.zone.following(local.timestamp()).map(|change| change.timestamp().to_zoned(self.zone.clone()));
        let changes = changes.take_while(|change| *change < limit);
        begins.chain(changes).filter(|time| time > local && self.allow_local(time)).min()
    }
}

fn of_week(day: Weekday) -> usize {
    usize::from(day.to_monday_zero_offset().unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEEK: [usize; 5] = [0, 1, 2, 3, 4];

    fn at(zone: &str, time: &str) -> f64 {
        let zone = TimeZoneDatabase::bundled().get(zone).unwrap();
        let time: jiff::civil::DateTime = time.parse().unwrap();
        time.to_zoned(zone).unwrap().timestamp().as_second() as f64
    }

    fn utc(time: &str) -> f64 {
        at("UTC", time)
    }

    #[test]
    fn hours_are_those_of_the_zone_and_its_days() {
        let hours = AllowedHours::new(Some((9 * 60, 17 * 60)), Some(&WEEK), Some("Europe/Berlin")).unwrap();
        let berlin = |time| at("Europe/Berlin", time);
        // Monday, 2026-11-30.
        assert!(!hours.allow(berlin("2026-11-30 08:59:59")));
        assert!(hours.allow(berlin("2026-11-30 09:00")));
        assert!(hours.allow(berlin("2026-11-30 16:59:59")));
        assert!(!hours.allow(berlin("2026-11-30 17:00")));
        assert!(!hours.allow(berlin("2026-11-28 12:00")), "a Saturday");
        assert_eq!(hours.opens(berlin("2026-11-30 10:00")), None);
        assert_eq!(hours.opens(berlin("2026-11-30 08:00")).unwrap(), "2026-11-30 09:00 +01:00 (Europe/Berlin)");
        assert_eq!(hours.opens(berlin("2026-11-27 17:00")).unwrap(), "2026-11-30 09:00 +01:00 (Europe/Berlin)");
        // Summer: the same clock, another offset.
        assert!(hours.allow(utc("2026-07-01 07:00")) && !hours.allow(utc("2026-07-01 06:59")));
    }

    #[test]
    fn hours_over_midnight_belong_to_the_day_on_which_they_begin() {
        // Friday night.
        let hours = AllowedHours::new(Some((22 * 60, 6 * 60)), Some(&[4]), None).unwrap();
        assert!(!hours.allow(utc("2026-11-27 05:00")), "Thursday night");
        assert!(hours.allow(utc("2026-11-27 22:00")) && hours.allow(utc("2026-11-28 05:59")));
        assert!(!hours.allow(utc("2026-11-28 06:00")) && !hours.allow(utc("2026-11-28 22:00")));
        assert_eq!(hours.opens(utc("2026-11-28 06:00")).unwrap(), "2026-12-04 22:00 +00:00 (UTC)");
        // Sunday night reaches into Monday.
        let sunday = AllowedHours::new(Some((23 * 60, 60)), Some(&[6]), None).unwrap();
        assert!(sunday.allow(utc("2026-11-30 00:30")) && !sunday.allow(utc("2026-12-01 00:30")));
        // The whole day ends at midnight.
        let whole = AllowedHours::new(None, Some(&[0]), None).unwrap();
        assert!(whole.allow(utc("2026-11-30 23:59")) && !whole.allow(utc("2026-12-01 00:00")));
    }

    #[test]
    fn hours_that_the_clock_skips_are_not_there() {
        // On 2026-03-29 the clock in Berlin goes from 02:00 to 03:00.
        let skipped = AllowedHours::new(Some((120, 180)), None, Some("Europe/Berlin")).unwrap();
        let before = utc("2026-03-29 00:59:59");
        assert!(!skipped.allow(before) && !skipped.allow(before + 1.0));
        assert_eq!(skipped.opens(before).unwrap(), "2026-03-30 02:00 +02:00 (Europe/Berlin)");
        // Those that begin in the gap begin when it is over.
        let partly = AllowedHours::new(Some((150, 240)), None, Some("Europe/Berlin")).unwrap();
        assert!(!partly.allow(before) && partly.allow(before + 1.0));
        assert_eq!(partly.opens(before).unwrap(), "2026-03-29 03:00 +02:00 (Europe/Berlin)");
    }

    #[test]
    fn hours_that_the_clock_shows_twice_are_allowed_twice() {
        // On 2026-10-25 the clock in Berlin goes from 03:00 back to 02:00, at 01:00 UTC.
        let hours = AllowedHours::new(Some((60, 150)), None, Some("Europe/Berlin")).unwrap();
        let allowed = |time| hours.allow(utc(time));
        assert!(allowed("2026-10-25 00:29") && !allowed("2026-10-25 00:30"));
        assert!(allowed("2026-10-25 01:00") && allowed("2026-10-25 01:29") && !allowed("2026-10-25 01:30"));
        assert_eq!(hours.opens(utc("2026-10-25 00:45")).unwrap(), "2026-10-25 02:00 +01:00 (Europe/Berlin)");
    }

    #[test]
    fn what_says_nothing_is_refused_by_name() {
        let zone = AllowedHours::new(None, None, Some("Europe/Berlim")).unwrap_err().to_string();
        assert!(zone.contains("`Europe/Berlim`") && zone.contains("such as UTC"), "{zone}");
        assert_eq!(AllowedHours::new(None, Some(&[]), None).unwrap_err(), HoursError::Days);
        for range in [(60, 60), (1440, 60), (0, 1441)] {
            assert_eq!(AllowedHours::new(Some(range), None, None).unwrap_err(), HoursError::Empty);
        }
        // Times that no calendar has are not allowed, and ask for no answer.
        let hours = AllowedHours::new(None, None, None).unwrap();
        assert!(!hours.allow(1e300) && hours.opens(f64::NAN).is_none() && hours.allow(0.0));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        /// The next beginning is the first allowed minute, in zones with and without changes of the clock.
        #[test]
        fn hours_open_at_the_first_allowed_minute(
            from in 0u16..1440, until in 0u16..=1440, days in proptest::collection::vec(0usize..7, 1..4),
            zone in proptest::sample::select(vec!["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns"]),
            minute in 0i32..600_000,
        ) {
            proptest::prop_assume!(from != until);
            let hours = AllowedHours::new(Some((from, until)), Some(&days), Some(zone)).unwrap();
            let now = 1_750_000_020.0 + f64::from(minute) * 60.0;
            let allowed = (0..9 * 1440).map(|later| now + f64::from(later) * 60.0).find(|time| hours.allow(*time));
            let opens = hours.local(now).and_then(|local| {
                if hours.allow_local(&local) { Some(local) } else { hours.next(&local) }
            });
            let opens = opens.map(|opens| opens.timestamp().as_second() as f64);
            if let Some(opens) = opens && opens < now + 9.0 * 86_400.0 - 3600.0 {
                proptest::prop_assert_eq!(Some(opens), allowed);
            }
        }
    }
}
