//! Clocks of the process: a monotonic one that fits an atomic, and Unix time.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the first reading in this process, from 1 on: zero can mean "never".
pub fn now_millis() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    millis(start.elapsed()).saturating_add(1)
}

/// A duration in whole milliseconds.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Unix seconds of now.
pub fn unix_now() -> u64 {
    unix(SystemTime::now())
}

/// Unix seconds of now, with their fraction.
pub fn unix_seconds() -> f64 {
    unix_fraction(SystemTime::now())
}

/// Unix seconds of a time; 0 before 1970.
pub fn unix(time: SystemTime) -> u64 {
    since_1970(time).as_secs()
}

/// Unix seconds of a time, with their fraction; 0 before 1970.
pub fn unix_fraction(time: SystemTime) -> f64 {
    since_1970(time).as_secs_f64()
}

/// Unix time of a time; zero before 1970.
pub fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
