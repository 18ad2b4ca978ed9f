//! A limit on requests in flight that is learnt from latency, for each endpoint by itself.
//!
//! Below the knee of a server latency does not depend on load. Above it requests wait, and latency grows with each further
//! one. The limit is aimed at a latency half way to `latencyTolerance`. For a server that runs `c` requests at a time and a
//! tolerance of 2 that is 1.5 `c`: a short queue that keeps the server busy.
//!
//! Well below the aim the limit grows by its square root for each window, near it by one. Above the aim it shrinks by a
//! quarter of the excess, beyond the tolerance by all of it. The excess comes from the gradient `aim * baseline / latency`,
//! as in the gradient limiters of Netflix (github.com/Netflix/concurrency-limits) and of Envoy's adaptive concurrency filter.
//! Both filters have no aim between growth and shrinking: their `limit * gradient + sqrt(limit)` ends far above the knee of a
//! small server.
//!
//! A baseline that is learnt under load creeps upwards until every latency seems good. So measurements under load only lower
//! it. It is measured anew without load: in windows with so few requests in flight that a server with the right limit has
//! no queue. Where no such window came for a while, the limit is held down to make one: to two thirds of the requests that
//! fill the server, for one window in fifty.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spillway_config::schema;

use super::{Reason, SaturationSignal, SlotLimit};
use crate::balancing::EndpointState;
use crate::balancing::latency::Class;
use crate::clock::millis;

/// Samples of a window: enough that one slow answer does not decide.
const WINDOW_SAMPLES: u32 = 10;
/// Part of the way that one window under load lowers a baseline.
const LOWERED_BY: f64 = 0.125;
/// Shortest window, so that a fast server is not judged by some milliseconds.
const WINDOW_TIME: u64 = 50;
/// Windows after which a baseline that nothing confirmed is measured on purpose.
const CONFIRM_WITHIN: u32 = 50;
/// A window with at most `limit / (tolerance * DEPTH)` in flight is one without load. At a depth of 1 any limit would
/// confirm itself: twice too many in flight, half of them for the measurement, and the same ratio between the two.
const DEPTH: f64 = 1.5;
/// Least factor that a window shrinks the limit by.
const MOST_SHRINK: f64 = 0.5;
/// Part of the excess by which a window above the aim and within the tolerance shrinks the limit.
const GIVE_BACK: f64 = 0.25;
/// Factor by which a window with failures shrinks the limit (AIMD).
const ON_FAILURE: f64 = 0.9;

/// `capacity.adaptive`.
pub(crate) struct Adaptive {
    min: f64,
    max: f64,
    tolerance: f64,
}

/// Learnt values of an endpoint. `limit` is read without the lock; a sample is lost where the lock is not free at once.
#[derive(Debug, Default)]
pub(crate) struct LimiterState {
    /// 0 while nothing was learnt.
    limit: AtomicU32,
    learnt: Mutex<Learnt>,
}

#[derive(Debug, Default)]
struct Learnt {
    limit: f64,
    /// Mean latency without load for each class, in seconds; 0 while unknown.
    baseline: [f64; 2],
    unconfirmed: u32,
    /// True while the limit is held down to measure a baseline.
    probing: bool,
    window: Window,
}

#[derive(Debug, Default)]
struct Window {
    opened: u64,
    /// For each class: samples, and the sum of the logarithms of their seconds. The geometric mean keeps a few long
    /// prompts from looking like a queue.
    samples: [(u32, f64); 2],
    in_flight: u64,
    failures: u32,
}

impl LimiterState {
    /// Limit, once one was learnt.
    pub(crate) fn limit(&self) -> Option<u32> {
        Some(self.limit.load(Ordering::Relaxed)).filter(|limit| *limit > 0)
    }
}

impl Adaptive {
    /// Limiter with these bounds.
    pub(crate) fn new(written: &schema::Adaptive) -> Self {
        let min = f64::from(written.min_limit.get());
        Self { min, max: f64::from(written.max_limit.get()).max(min), tolerance: written.latency_tolerance }
    }

    fn clamp(&self, limit: f64) -> f64 {
        limit.clamp(self.min, self.max)
    }

    /// Target of the latency, in multiples of the latency without load.
    fn aim(&self) -> f64 {
        f64::midpoint(1.0, self.tolerance)
    }

    /// Requests in flight at which a server with this limit has no queue; below the least limit nothing can be measured.
    fn unloaded(&self, limit: f64) -> f64 {
        self.clamp(limit / (self.tolerance * DEPTH))
    }

    /// Closes a window that has enough samples, and adjusts the limit.
    fn judge(&self, learnt: &mut Learnt, now: u64) {
        let window = &learnt.window;
        let count: u32 = window.samples.iter().map(|(count, _)| count).sum();
        let wanted = WINDOW_SAMPLES.max(f64_to_u32(learnt.limit));
        if count + window.failures < wanted || now.saturating_sub(window.opened) < WINDOW_TIME {
            return;
        }
        let window = std::mem::replace(&mut learnt.window, Window { opened: now, ..Window::default() });
        let failed = window.failures * 10 > count;
        if count == 0 {
            learnt.limit = self.clamp(learnt.limit * ON_FAILURE);
            return;
        }
        #[allow(clippy::cast_precision_loss, reason = "sums of small counts")]
        let in_flight = window.in_flight as f64 / f64::from(count);
        let without_load = in_flight <= self.unloaded(learnt.limit);
        // The worst ratio of the classes that were seen often enough decides.
        let mut ratio: f64 = 0.0;
        for ((samples, logs), baseline) in window.samples.iter().zip(&mut learnt.baseline) {
            if *samples == 0 {
                continue;
            }
            let mean = (logs / f64::from(*samples)).exp();
            if *baseline == 0.0 {
                *baseline = mean;
            } else if mean < *baseline && !without_load {
                // By chance, or because the server has become faster: a little each time, or noise would be a baseline.
                *baseline += (mean - *baseline) * LOWERED_BY;
            } else if without_load {
                // Half way: one window without load may have had the longer prompts.
                *baseline = f64::midpoint(*baseline, mean);
            }
            if samples * 4 >= count {
                ratio = ratio.max(mean / *baseline);
            }
        }
        if without_load {
            learnt.unconfirmed = 0;
        } else {
            learnt.unconfirmed = learnt.unconfirmed.saturating_add(1);
        }
        if learnt.probing {
            learnt.probing = false;
            learnt.unconfirmed = 0;
            return;
        }
        if failed {
            learnt.limit = self.clamp(learnt.limit * ON_FAILURE);
        } else if ratio > self.tolerance {
            learnt.limit = self.clamp(learnt.limit * (self.aim() / ratio).max(MOST_SHRINK));
        } else if ratio > self.aim() {
            let too_much = learnt.limit * (1.0 - self.aim() / ratio);
            learnt.limit = self.clamp(learnt.limit - too_much * GIVE_BACK);
        } else if in_flight * 2.0 >= learnt.limit {
            // A limit that is not reached says nothing about a higher one.
            let step = if ratio > f64::midpoint(1.0, self.aim()) { 1.0 } else { learnt.limit.sqrt() };
            learnt.limit = self.clamp(learnt.limit + step);
        }
        learnt.probing = learnt.unconfirmed >= CONFIRM_WITHIN;
    }

    fn with(&self, state: &LimiterState, now: u64, take: impl FnOnce(&mut Learnt)) {
        let Some(mut learnt) = state.learnt.try_lock() else { return };
        if learnt.limit == 0.0 {
            learnt.limit = self.min;
            learnt.window.opened = now;
        }
        // The bounds may have been changed by a reload.
        learnt.limit = self.clamp(learnt.limit);
        take(&mut learnt);
        self.judge(&mut learnt, now);
        let shown = if learnt.probing { self.unloaded(learnt.limit) } else { learnt.limit };
        state.limit.store(f64_to_u32(shown).max(1), Ordering::Relaxed);
    }

    fn sample(&self, state: &LimiterState, class: Class, took: Duration, at_start: u32, now: u64) {
        self.with(state, now, |learnt| {
            // What began before the window did met another limit.
            if now.saturating_sub(millis(took)) < learnt.window.opened {
                return;
            }
            let index = match class {
                Class::FirstToken => 0,
                Class::Head => 1,
            };
            if let Some((count, logs)) = learnt.window.samples.get_mut(index) {
                *count += 1;
                *logs += took.as_secs_f64().max(1e-6).ln();
                learnt.window.in_flight += u64::from(at_start);
            }
        });
    }

    fn failure(&self, state: &LimiterState, now: u64) {
        self.with(state, now, |learnt| learnt.window.failures += 1);
    }

    fn limit(&self, state: &LimiterState) -> u32 {
        let limit = state.limit().map_or(self.min, f64::from);
        f64_to_u32(self.clamp(limit))
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturating is what is wanted")]
fn f64_to_u32(value: f64) -> u32 {
    value as u32
}

impl SaturationSignal for Adaptive {
    fn reason(&self) -> Reason {
        Reason::Adaptive
    }
    fn room(&self, e: &EndpointState, _: u64) -> SlotLimit {
        SlotLimit::UpTo(self.limit(&e.limiter))
    }
    fn observe(&self, e: &EndpointState, class: Class, took: Duration, at_start: u32, now: u64) {
        let before = self.limit(&e.limiter);
        self.sample(&e.limiter, class, took, at_start, now);
        if self.limit(&e.limiter) > before {
            e.may_have_room();
        }
    }
    fn failed(&self, e: &EndpointState, now: u64) {
        self.failure(&e.limiter, now);
    }
}

#[cfg(test)]
mod tests;
