//! `grpc-timeout`: the time that a caller gives a gRPC call, as up to eight digits and a unit.

use std::time::Duration;

use http::{HeaderName, HeaderValue};
use spillway_filter::{Fields, Refusal};

/// Time for a call.
pub static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Most digits of the value.
const MAX_DIGITS: usize = 8;

/// Largest number of [`MAX_DIGITS`] digits.
const MAX_NUMBER: u128 = 99_999_999;

/// Units from the finest on that [`write_timeout`] uses, with their length in nanoseconds.
const UNITS: [(u128, char); 6] = [
    (1, 'n'),
    (1_000, 'u'),
    (1_000_000, 'm'),
    (1_000_000_000, 'S'),
    (60 * 1_000_000_000, 'M'),
    (3600 * 1_000_000_000, 'H'),
];

/// Reads the time that the caller gives a call; `None` without the header. A value that is not of the protocol's form is
/// refused: a server would refuse it, or give the call no end.
pub fn read_timeout(headers: &Fields) -> Result<Option<Duration>, Refusal> {
    let mut values = headers.get_all(&GRPC_TIMEOUT).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match parse(value.as_bytes()).filter(|_| values.next().is_none()) {
        Some(time) => Ok(Some(time)),
        None => Err(Refusal::invalid(
            "invalid_grpc_timeout",
            "`grpc-timeout` must be one value of 1 to 8 digits and a unit (H, M, S, m, u, n), such as `500m`",
        )),
    }
}

fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > MAX_DIGITS || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number.saturating_mul(3600)),
        b'M' => Duration::from_secs(number.saturating_mul(60)),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Writes a time in the finest unit that holds it, rounded down: a server must not work longer than its caller waits.
pub fn write_timeout(time: Duration) -> HeaderValue {
    let nanos = time.as_nanos();
    let (number, unit) = UNITS
        .iter()
        .map(|(length, unit)| (nanos.checked_div(*length).unwrap_or(0), *unit))
        .find(|(number, _)| *number <= MAX_NUMBER)
        .unwrap_or((MAX_NUMBER, 'H'));
    HeaderValue::from_str(&format!("{number}{unit}")).unwrap_or(HeaderValue::from_static("0n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&'static str]) -> Result<Option<Duration>, Refusal> {
        read_timeout(&values.iter().map(|value| (GRPC_TIMEOUT.clone(), HeaderValue::from_static(value))).collect())
    }

    #[test]
    fn a_time_of_the_protocols_form_is_read_and_any_other_refused() {
        assert_eq!(read(&[]).unwrap(), None);
        for (value, nanos) in [
            ("1H", 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("10S", 10_000_000_000),
            ("00000500m", 500_000_000),
            ("7u", 7_000),
            ("99999999n", 99_999_999),
            ("0n", 0),
        ] {
            assert_eq!(read(&[value]).unwrap(), Some(Duration::from_nanos(nanos)), "{value}");
        }
        assert_eq!(read(&["99999999H"]).unwrap(), Some(Duration::from_secs(99_999_999 * 3600)));
        for value in ["", "1", "H", "s", "1s", "1h", "-1S", "+1S", "1.5S", " 1S", "1 S", "100000000n", "1S1S", "0x1S"] {
            assert_eq!(read(&[value]).unwrap_err().code, "invalid_grpc_timeout", "{value:?}");
        }
        assert!(read(&["1S", "1S"]).is_err());
        let odd = HeaderValue::from_bytes(b"1\xffS").unwrap();
        assert!(read_timeout(&[(GRPC_TIMEOUT.clone(), odd)].into_iter().collect()).is_err());
    }

    #[test]
    fn a_time_is_written_within_eight_digits_and_never_longer_than_it_is() {
        for (time, expected) in [
            (Duration::ZERO, "0n"),
            (Duration::from_nanos(99_999_999), "99999999n"),
            (Duration::from_nanos(100_000_999), "100000u"),
            (Duration::from_secs(99), "99000000u"),
            (Duration::from_secs(600), "600000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(100_000_000), "1666666M"),
            (Duration::MAX, "99999999H"),
        ] {
            let written = write_timeout(time);
            assert_eq!(written, expected, "{time:?}");
            assert!(parse(written.as_bytes()).unwrap() <= time, "{time:?}");
        }
    }
}
