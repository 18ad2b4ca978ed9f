//! Outlier detection: ejects endpoints whose answers are errors, or much slower than those of their neighbours. The first
//! ejection lasts `ejectionTime`, each further one that much longer, at most ten times. After it an endpoint is on
//! probation: one request at a time until one succeeds. The first failure ejects it again. So its return costs one request
//! and not a herd.
//!
//! At most `maxEjected` of the endpoints are ejected together: when all answer with errors, the requests are at fault.
//! (Envoy's outlier detection; probation as in Linkerd's failure accrual.)
//!
//! A request that a server cannot serve may get a 5xx from a healthy one. So errors by status alone eject only where they come
//! from two callers or operations, or where the neighbours answer the same caller and operation well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spillway_config::schema::OutlierDetection;

use super::Endpoint;
use super::callers::CallerAnswers;
use crate::clock::millis;

/// Result of an attempt for the health of its endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A good answer.
    Good,
    /// No connection, a reset, a time limit, an error where another endpoint answered the same request well.
    Error,
    /// A status that is an error of the server. It may be the request that is at fault.
    ServerError,
    /// Full: neither good nor bad.
    Full,
    /// Nothing is known: the client left.
    Unknown,
}

/// Reason of an ejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EjectionReason {
    FailedOnProbation,
    ConsecutiveErrors,
    ErrorRate,
    Latency,
}

impl EjectionReason {
    /// Name for logs.
    fn as_str(self) -> &'static str {
        match self {
            Self::FailedOnProbation => "failed_on_probation",
            Self::ConsecutiveErrors => "consecutive_errors",
            Self::ErrorRate => "error_rate",
            Self::Latency => "latency",
        }
    }
}

/// Most multiples of `ejectionTime` that an ejection lasts.
const MOST_REPEATS: u32 = 10;
/// Factor by which the share of errors of an outlier is above that of its neighbours.
const UNLIKE: f64 = 2.0;
/// Errors of an endpoint for each request of the same caller and operation that its neighbours must have had.
const LEAST_EVIDENCE: f64 = 2.0;
/// Errors in a row after which an endpoint is shown as failing where none eject it.
const SHOWN_AFTER: u32 = 5;
/// Least endpoints with enough requests for a median.
const LEAST_NEIGHBOURS: usize = 3;

/// Errors and ejections of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Record {
    consecutive: AtomicU32,
    /// Consecutive errors that are none by status alone.
    consecutive_failures: AtomicU32,
    /// In milliseconds of the clock; 0 for never.
    ejected_until: AtomicU64,
    probation: AtomicBool,
    /// Ejections that are not forgiven yet.
    repeats: AtomicU32,
    /// Time at which the last of them was forgiven, or ended.
    calm_since: AtomicU64,
    requests: Buckets,
    errors: Buckets,
    /// Errors that are no errors by status alone.
    failures: Buckets,
    /// Callers and operations, with their answers.
    callers: CallerAnswers,
    latency: Buckets,
    /// Number of latencies in the sum. A latency is known when an answer begins, a request is counted when it ends.
    timed: Buckets,
    /// Half the window, milliseconds.
    half: AtomicU64,
}

impl Record {
    /// True if the endpoint is ejected now.
    pub(crate) fn is_ejected(&self, now: u64) -> bool {
        self.ejected_until.load(Ordering::Relaxed) > now
    }

    /// True if the endpoint gets one request at a time until one succeeds.
    pub(crate) fn is_on_probation(&self) -> bool {
        self.probation.load(Ordering::Relaxed)
    }

    /// Time until the ejection ends; zero without one.
    pub(crate) fn ejected_for(&self, now: u64) -> Duration {
        Duration::from_millis(self.ejected_until.load(Ordering::Relaxed).saturating_sub(now))
    }

    /// Records a latency, for the comparison with neighbours.
    pub(super) fn took(&self, took: Duration, now: u64) {
        if let Some(epoch) = now.checked_div(self.half.load(Ordering::Relaxed)) {
            self.latency.add(millis(took).min(MAX_COUNT), epoch);
            self.timed.add(1, epoch);
        }
    }

    /// Mean latency within the window in milliseconds, of at least `least` answers.
    #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
    fn mean(&self, now: u64, least: u32) -> Option<f64> {
        let epoch = now / self.half.load(Ordering::Relaxed).max(1);
        let timed = self.timed.sum(epoch);
        (timed >= u64::from(least)).then(|| self.latency.sum(epoch) as f64 / timed as f64)
    }
}

/// A sum over the current half of a window and the one before, without a lock: each bucket is one word with the number
/// of its half.
#[derive(Debug, Default)]
struct Buckets([AtomicU64; 2]);

const COUNT_BITS: u32 = 36;
const MAX_COUNT: u64 = (1 << COUNT_BITS) - 1;

impl Buckets {
    fn add(&self, count: u64, epoch: u64) {
        let [even, odd] = &self.0;
        let bucket = if epoch.is_multiple_of(2) { even } else { odd };
        let tag = epoch & (u64::MAX >> COUNT_BITS);
        // Always `Some`, so it cannot fail.
        let _ = bucket.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            let before = if word >> COUNT_BITS == tag { word & MAX_COUNT } else { 0 };
            Some((tag << COUNT_BITS) | (before + count).min(MAX_COUNT))
        });
    }

    fn sum(&self, epoch: u64) -> u64 {
        let tag = |epoch: u64| epoch & (u64::MAX >> COUNT_BITS);
        let counted = |bucket: &AtomicU64| {
            let word = bucket.load(Ordering::Relaxed);
            let of = word >> COUNT_BITS;
            if of == tag(epoch) || of == tag(epoch.wrapping_sub(1)) { word & MAX_COUNT } else { 0 }
        };
        self.0.iter().map(counted).sum()
    }

    fn clear(&self) {
        for bucket in &self.0 {
            bucket.store(0, Ordering::Relaxed);
        }
    }
}

/// Outlier detection of a backend.
pub struct Detector {
    rules: OutlierDetection,
    half: u64,
    /// Time of the next comparison of latencies.
    compare_at: AtomicU64,
    /// Held while an ejection is decided, so that the cap is exact. Picks do not need it.
    deciding: Mutex<()>,
}

impl Detector {
    /// A detector with these rules.
    pub fn new(rules: &OutlierDetection) -> Self {
        Self {
            half: (millis(rules.window.0) / 2).max(1),
            rules: rules.clone(),
            compare_at: AtomicU64::new(0),
            deciding: Mutex::new(()),
        }
    }

    /// Share of endpoints below which ejections are ignored.
    pub fn panic_threshold(&self) -> f64 {
        self.rules.panic_threshold
    }

    /// Ends the probation of an endpoint with the head of a good answer, of an attempt that began at `began`.
    pub fn good_sign(&self, endpoint: &Endpoint, began: u64, now: u64) {
        let record = &endpoint.state.record;
        if record.is_on_probation() && began >= record.ejected_until.load(Ordering::Relaxed) {
            record.consecutive.store(0, Ordering::Relaxed);
            if record.probation.swap(false, Ordering::Relaxed) {
                endpoint.state.returned(now);
                tracing::info!(event = "endpoint_returned", backend = %endpoint.backend, endpoint = %endpoint.address);
            }
        }
    }

    /// Records an answer, good or an error, to a caller and operation.
    pub fn answered(&self, endpoint: &Endpoint, verdict: Verdict, caller: u64, now: u64) {
        if matches!(verdict, Verdict::Good | Verdict::ServerError) && caller != 0 {
            endpoint.state.record.callers.add(caller, verdict == Verdict::Good, now / self.half);
        }
    }

    /// True if the last attempts at an endpoint have all failed, as many as would eject one that has neighbours.
    pub fn is_failing(&self, endpoint: &Endpoint) -> bool {
        let most = if self.rules.consecutive_errors == 0 { SHOWN_AFTER } else { self.rules.consecutive_errors };
        endpoint.state.record.consecutive.load(Ordering::Relaxed) >= most
    }

    /// Records the end of an attempt that began at `began`. True if the endpoint was ejected for it.
    pub fn ended(&self, all: &[Arc<Endpoint>], endpoint: &Endpoint, verdict: Verdict, began: u64, now: u64) -> bool {
        let record = &endpoint.state.record;
        record.half.store(self.half, Ordering::Relaxed);
        let epoch = now / self.half;
        match verdict {
            Verdict::Unknown | Verdict::Full => false,
            Verdict::Good => {
                record.requests.add(1, epoch);
                record.consecutive.store(0, Ordering::Relaxed);
                record.consecutive_failures.store(0, Ordering::Relaxed);
                self.good_sign(endpoint, began, now);
                self.forgive(record, now);
                self.compare(all, endpoint, now)
            }
            Verdict::Error | Verdict::ServerError => {
                record.requests.add(1, epoch);
                record.errors.add(1, epoch);
                let in_a_row = record.consecutive.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                let mut failures_in_a_row = record.consecutive_failures.load(Ordering::Relaxed);
                if verdict == Verdict::Error {
                    record.failures.add(1, epoch);
                    record.consecutive_failures.fetch_add(1, Ordering::Relaxed);
                    failures_in_a_row = failures_in_a_row.saturating_add(1);
                }
                // An attempt that began before an ejection says nothing about the time after it.
                if began < record.ejected_until.load(Ordering::Relaxed) {
                    return false;
                }
                let most = self.rules.consecutive_errors;
                let reason = if record.is_on_probation() {
                    EjectionReason::FailedOnProbation
                } else if most > 0 && in_a_row >= most && (failures_in_a_row >= most || is_at_fault(all, record, epoch))
                {
                    EjectionReason::ConsecutiveErrors
                } else if self.rate_is_too_high(all, record, epoch)
                    && (record.failures.sum(epoch).saturating_mul(2) >= record.errors.sum(epoch)
                        || is_at_fault(all, record, epoch))
                {
                    EjectionReason::ErrorRate
                } else {
                    return false;
                };
                self.eject(all, endpoint, reason, now)
            }
        }
    }

    /// True if too many answers of an endpoint were errors, by the configured rate and beside its neighbours. Envoy compares
    /// success rates with mean and deviation of at least five hosts; most fleets of models are smaller.
    #[allow(clippy::cast_precision_loss, reason = "36 bits")]
    fn rate_is_too_high(&self, all: &[Arc<Endpoint>], record: &Record, epoch: u64) -> bool {
        let most = self.rules.error_rate;
        let (requests, errors) = (record.requests.sum(epoch), record.errors.sum(epoch));
        if most == 0.0
            || requests < u64::from(self.rules.minimum_requests.get())
            || (errors as f64) < most * requests as f64
        {
            return false;
        }
        let others = all.iter().map(|e| &e.state.record).filter(|other| !std::ptr::eq(*other, record));
        let (their_requests, their_errors) = others.fold((0u64, 0u64), |(requests, errors), other| {
            (requests + other.requests.sum(epoch), errors + other.errors.sum(epoch))
        });
        // errors / requests >= UNLIKE * theirs, without a division by zero.
        errors as f64 * their_requests as f64 >= UNLIKE * their_errors as f64 * requests as f64
    }

    /// Forgives an ejection for each window without errors.
    fn forgive(&self, record: &Record, now: u64) {
        let repeats = record.repeats.load(Ordering::Relaxed);
        if repeats == 0 {
            return;
        }
        let calm = record.calm_since.load(Ordering::Relaxed);
        let long = millis(self.rules.window.0.max(self.rules.ejection_time.0));
        if now.saturating_sub(calm) > long
            && record.calm_since.compare_exchange(calm, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
        {
            record.repeats.store(repeats - 1, Ordering::Relaxed);
        }
    }

    fn compare(&self, all: &[Arc<Endpoint>], endpoint: &Endpoint, now: u64) -> bool {
        let Some(factor) = self.rules.latency_factor else { return false };
        let due = self.compare_at.load(Ordering::Relaxed);
        let next = now + (self.half / 10).max(1);
        if now < due || self.compare_at.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return false;
        }
        let least = self.rules.minimum_requests.get();
        let mut means: Vec<f64> = all.iter().filter_map(|e| e.state.record.mean(now, least)).collect();
        if means.len() < LEAST_NEIGHBOURS {
            return false;
        }
        means.sort_by(f64::total_cmp);
        let Some(median) = means.get(means.len() / 2).copied() else { return false };
        let mut ejected = false;
        for e in all {
            let slow = e.state.record.mean(now, least).is_some_and(|mean| mean > median.max(1.0) * factor);
            if slow && !e.state.record.is_ejected(now) {
                ejected |= self.eject(all, e, EjectionReason::Latency, now) && std::ptr::eq(&**e, endpoint);
            }
        }
        ejected
    }

    fn eject(&self, all: &[Arc<Endpoint>], endpoint: &Endpoint, reason: EjectionReason, now: u64) -> bool {
        let _deciding = self.deciding.lock();
        let record = &endpoint.state.record;
        if record.is_ejected(now) {
            return false;
        }
        let ejected = all.iter().filter(|e| e.state.record.is_ejected(now)).count();
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a count times a share"
        )]
        let most = (all.len() as f64 * self.rules.max_ejected) as usize;
        if ejected >= most {
            return false;
        }
        let repeats = record.repeats.load(Ordering::Relaxed).saturating_add(1).min(MOST_REPEATS);
        let time = millis(self.rules.ejection_time.0).saturating_mul(u64::from(repeats));
        record.repeats.store(repeats, Ordering::Relaxed);
        record.calm_since.store(now.saturating_add(time), Ordering::Relaxed);
        record.probation.store(true, Ordering::Relaxed);
        record.ejected_until.store(now.saturating_add(time), Ordering::Relaxed);
        record.consecutive.store(0, Ordering::Relaxed);
        record.consecutive_failures.store(0, Ordering::Relaxed);
        for buckets in [&record.requests, &record.errors, &record.failures, &record.latency, &record.timed] {
            buckets.clear();
        }
        endpoint.state.metrics.ejections.inc();
        tracing::warn!(
            event = "endpoint_ejected",
            backend = %endpoint.backend,
            endpoint = %endpoint.address,
            reason = reason.as_str(),
            seconds = Duration::from_millis(time).as_secs_f64()
        );
        true
    }
}

/// True if it is the endpoint that its errors by status speak of, and not the requests: they went to two callers or
/// operations, or the neighbours answer that one well.
fn is_at_fault(all: &[Arc<Endpoint>], record: &Record, epoch: u64) -> bool {
    let failing = record.callers.failing(epoch);
    let Some(first) = failing.first() else { return true };
    if failing.len() > 1 {
        return true;
    }
    let own = record.callers.of(*first, epoch);
    let others = all.iter().map(|e| &e.state.record).filter(|other| !std::ptr::eq(*other, record));
    let theirs = others.fold((0u32, 0u32), |(good, bad), other| {
        let (more_good, more_bad) = other.callers.of(*first, epoch);
        (good.saturating_add(more_good), bad.saturating_add(more_bad))
    });
    let all_of = |(good, bad): (u32, u32)| f64::from(good) + f64::from(bad);
    // At least half as many requests as failed here, and at most half of the share of errors.
    theirs.0 > 0
        && LEAST_EVIDENCE * all_of(theirs) >= f64::from(own.1)
        && f64::from(own.1) * all_of(theirs) >= UNLIKE * f64::from(theirs.1) * all_of(own)
}

#[cfg(test)]
mod tests;
