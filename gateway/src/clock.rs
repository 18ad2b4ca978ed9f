//! Clocks of the process: a monotonic one, read once for each poll of a request, one that fits an atomic, and Unix time.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::time::error::Elapsed;
use tokio::time::{timeout, timeout_at};

/// Reading of the monotonic clock that the poll under way shares.
#[derive(Clone, Copy)]
enum Reading {
    /// None: the clock itself is read.
    Direct,
    /// The next reader reads the clock for all.
    Due,
    Taken(tokio::time::Instant),
}

thread_local! {
    static READING: Cell<Reading> = const { Cell::new(Reading::Direct) };
}

/// Future of a connection, for which [`now`] reads the clock at most once in each poll. A request asks for the time at some
/// twenty places, of which all but three are in the same few microseconds.
pub struct OneReading<F>(pub F);

impl<F: Future + Unpin> Future for OneReading<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        /// Ends the sharing, after a panic too.
        struct Sharing;
        impl Drop for Sharing {
            fn drop(&mut self) {
                READING.set(Reading::Direct);
            }
        }
        READING.set(Reading::Due);
        let _sharing = Sharing;
        Pin::new(&mut self.0).poll(cx)
    }
}

/// Current time; within [`OneReading`] that of the first call in this poll.
pub fn now() -> tokio::time::Instant {
    match READING.get() {
        Reading::Direct => tokio::time::Instant::now(),
        Reading::Due => {
            let now = tokio::time::Instant::now();
            READING.set(Reading::Taken(now));
            now
        }
        Reading::Taken(now) => now,
    }
}

/// Lets the next reader of [`now`] read the clock again: work in this poll has taken time.
pub fn renew() {
    if matches!(READING.get(), Reading::Taken(_)) {
        READING.set(Reading::Due);
    }
}

/// As [`now`], in the form of the standard library.
pub fn instant() -> Instant {
    now().into_std()
}

/// Time since `then`, by [`now`].
pub fn since(then: impl Into<tokio::time::Instant>) -> Duration {
    now().saturating_duration_since(then.into())
}

/// Milliseconds since the first call in this process, plus 1, so that callers can store zero for "never".
pub fn now_millis() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    thread_local! {
        // A request asks several times in one poll, in which the clock has one reading.
        static LAST: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
    }
    let now = instant();
    match LAST.get() {
        Some((then, millis)) if then == now => millis,
        _ => {
            let millis = millis(now.saturating_duration_since(*START.get_or_init(|| now))).saturating_add(1);
            LAST.set(Some((now, millis)));
            millis
        }
    }
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
    time.as_secs().saturating_mul(1000).saturating_add(u64::from(time.subsec_millis()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_poll_has_one_time_until_work_has_taken_some() {
        let spent = || std::thread::sleep(Duration::from_millis(2));
        let task = OneReading(Box::pin(async move {
            let first = now();
            spent();
            assert_eq!(now(), first);
            renew();
            let second = now();
            assert!(second > first);
            spent();
            tokio::task::yield_now().await;
            assert!(now() > second, "another poll");
        }));
        task.await;
        let before = now();
        spent();
        assert!(now() > before, "no poll of a connection");
    }
}
