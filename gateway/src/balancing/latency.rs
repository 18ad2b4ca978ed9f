//! Smoothed latency of an endpoint: a slow answer counts at once, fast ones count gradually, and old ones fade (Peak EWMA of
//! Finagle, com.twitter.finagle.loadbalancer.PeakEwma).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Kind of a latency. Times of different kinds are not compared where a baseline is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Time to the first token of a stream.
    FirstToken,
    /// Time to the head of any other answer.
    Head,
}

/// After this time a latency has lost two thirds of its weight, milliseconds (Finagle's default).
const DECAY: f64 = 10_000.0;

/// Smoothed latency and the time of its last change in one word, so that no reader sees half of a change. The upper 32 bits
/// are microseconds, saturating at 71 minutes. The lower 32 bits are milliseconds; they wrap after 49 days, which makes an
/// old value count as fresh once.
#[derive(Debug, Default)]
pub(crate) struct Ewma(AtomicU64);

fn pack(micros: f64, now: u64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturating is what is wanted")]
    let micros = micros.max(1.0) as u32;
    (u64::from(micros) << 32) | (now & u64::from(u32::MAX))
}

fn unpack(word: u64, now: u64) -> (f64, f64) {
    let age = (now & u64::from(u32::MAX)).wrapping_sub(word & u64::from(u32::MAX)) & u64::from(u32::MAX);
    // A writer may have read the clock a little later than this reader.
    let age = if age > u64::from(u32::MAX) - 60_000 { 0 } else { age };
    #[allow(clippy::cast_precision_loss, reason = "32 bits")]
    (((word >> 32) as f64), age as f64)
}

impl Ewma {
    /// Records a latency.
    pub(crate) fn observe(&self, took: Duration, now: u64) {
        let sample = took.as_secs_f64() * 1e6;
        // A lost race loses one sample.
        let word = self.0.load(Ordering::Relaxed);
        let next = if word == 0 {
            sample
        } else {
            let (value, age) = unpack(word, now);
            if sample > value {
                sample
            } else {
                // At the same millisecond nothing would be learnt; each answer counts at least one.
                let kept = (-(age.max(1.0)) / DECAY).exp();
                value * kept + sample * (1.0 - kept)
            }
        };
        let _ = self.0.compare_exchange(word, pack(next, now), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The smoothed latency in microseconds, faded since it was last changed; `None` before the first answer.
    pub(crate) fn micros(&self, now: u64) -> Option<f64> {
        let word = self.0.load(Ordering::Relaxed);
        if word == 0 {
            return None;
        }
        let (value, age) = unpack(word, now);
        // A fresh value is not worth an exponential.
        Some(if age < 50.0 { value } else { value * (-age / DECAY).exp() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_answer_counts_at_once_and_fast_ones_by_and_by() {
        let ewma = Ewma::default();
        assert_eq!(ewma.micros(1), None);
        ewma.observe(Duration::from_millis(10), 1);
        ewma.observe(Duration::from_millis(500), 2);
        assert_eq!(ewma.micros(2), Some(500_000.0));
        for n in 0..100 {
            ewma.observe(Duration::from_millis(10), 2 + n * 10);
        }
        let after_a_second = ewma.micros(1_000).unwrap();
        assert!((400_000.0..500_000.0).contains(&after_a_second), "{after_a_second}");
        for n in 0..1_000 {
            ewma.observe(Duration::from_millis(10), 1_000 + n * 50);
        }
        let after_a_minute = ewma.micros(51_000).unwrap();
        assert!((10_000.0..20_000.0).contains(&after_a_minute), "{after_a_minute}");
    }

    #[test]
    fn what_was_seen_long_ago_fades() {
        let ewma = Ewma::default();
        ewma.observe(Duration::from_secs(10), 1);
        assert!(ewma.micros(60_000).unwrap() < 50_000.0);
        let ewma = Ewma::default();
        let wrapped = u64::from(u32::MAX) - 5;
        ewma.observe(Duration::from_secs(1), wrapped);
        assert_eq!(ewma.micros(wrapped + 10), Some(1e6), "the clock's lower half may wrap");
    }
}
