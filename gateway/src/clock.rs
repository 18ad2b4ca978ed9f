//! Clocks of the process: a monotonic one that fits an atomic, and Unix time.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::time::error::Elapsed;
use tokio::time::{timeout, timeout_at};

/// Milliseconds since the first call in this process, plus 1, so that callers can store zero for "never".
pub fn now_millis() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    millis(start.elapsed()).saturating_add(1)
}

/// Polls a future once: what is ready needs no timer and no other branch.
pub async fn at_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    poll_fn(|cx| Poll::Ready(future.as_mut().poll(cx))).await
}

/// Runs a future until `deadline` at the latest. One that is ready at once takes no timer, however late it is.
pub async fn until<F: Future>(deadline: tokio::time::Instant, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    match at_once(future.as_mut()).await {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => timeout_at(deadline, future).await,
    }
}

/// Runs a future for at most `time`.
pub async fn within<F: Future>(time: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    match at_once(future.as_mut()).await {
        Poll::Ready(output) => Ok(output),
        Poll::Pending => timeout(time, future).await,
    }
}

/// Converts a duration to whole milliseconds.
pub fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Current time as HTTP writes it (RFC 9110, 5.6.7). A thread writes it once a second.
pub fn http_date() -> HttpDate {
    thread_local! {
        static LAST: Cell<(u64, HttpDate)> = const { Cell::new((u64::MAX, HttpDate([b' '; 29]))) };
    }
    let now = unix_now();
    let (second, date) = LAST.get();
    if second == now {
        return date;
    }
    let mut fresh = HttpDate([b' '; 29]);
    let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(now));
    fresh.0.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
    LAST.set((now, fresh));
    fresh
}

/// Time as HTTP writes it.
#[derive(Debug, Clone, Copy)]
pub struct HttpDate([u8; 29]);

impl HttpDate {
    /// Text of the time.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Current time in whole Unix seconds.
pub fn unix_now() -> u64 {
    unix(SystemTime::now())
}

/// Current time in Unix seconds, with their fraction.
pub fn unix_seconds() -> f64 {
    unix_fraction(SystemTime::now())
}

/// Converts a time to whole Unix seconds; 0 before 1970.
pub fn unix(time: SystemTime) -> u64 {
    since_1970(time).as_secs()
}

/// Converts a time to Unix seconds, with their fraction; 0 before 1970.
pub fn unix_fraction(time: SystemTime) -> f64 {
    since_1970(time).as_secs_f64()
}

/// Unix time of a time; zero before 1970.
pub fn since_1970(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}
