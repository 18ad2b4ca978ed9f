//! Detectors of change on streams, with river's parameters, defaults and order of steps.
//!
//! [`Adwin`] (Bifet and Gavaldà 2007, DOI 10.1137/1.9781611972771.42) keeps a window whose two parts have alike means: it drops
//! the oldest values when a cut shows a difference above the bound of its paper. Memory is logarithmic in the window. It looks at
//! every 32nd value only. [`Ddm`] (Gama et al. 2004, DOI 10.1007/978-3-540-28645-5_29) watches an error rate that should fall.
//! Neither has a false-alarm rate over time as the tests of rollouts have: their alerts ask for a look.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::units::count;

/// Values between two looks of [`Adwin`], river's `clock`.
pub const ADWIN_CLOCK: u64 = 32;
/// Window below which [`Adwin`] does not look, river's `grace_period`.
const ADWIN_GRACE: f64 = 10.0;
/// Least length of either part of a window, river's `min_window_length`.
const ADWIN_PART: f64 = 5.0;
/// Buckets of one size before the two oldest are joined.
const ADWIN_BUCKETS: usize = 5;

/// Adaptive window over a stream of numbers. Takes 16 bytes for each of at most six buckets of every power of two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Adwin {
    delta: f64,
    /// Buckets of 1, 2, 4, ... values; each row from the oldest on, as (sum, squared deviations).
    rows: Vec<VecDeque<(f64, f64)>>,
    sum: f64,
    deviations: f64,
    width: f64,
    ticks: u64,
    changed: bool,
}

impl Adwin {
    /// Window with confidence parameter `delta`; river's default is 0.002.
    #[must_use]
    pub fn new(delta: f64) -> Self {
        Self { delta, rows: vec![VecDeque::new()], sum: 0.0, deviations: 0.0, width: 0.0, ticks: 0, changed: false }
    }

    /// Values in the window.
    #[must_use]
    pub fn width(&self) -> f64 {
        self.width
    }

    /// Mean of the window.
    #[must_use]
    pub fn mean(&self) -> f64 {
        if self.width > 0.0 { self.sum / self.width } else { 0.0 }
    }

    /// Adds a value; true if the stream has changed. As in river the window begins anew with the next value then; until that
    /// it holds what came after the change. Values that are no finite number are passed over.
    pub fn add(&mut self, value: f64) -> bool {
        if !value.is_finite() {
            return false;
        }
        if self.changed {
            *self = Self::new(self.delta);
        }
        if let Some(row) = self.rows.first_mut() {
            row.push_back((value, 0.0));
        }
        if self.width > 0.0 {
            self.deviations += self.width * (value - self.sum / self.width).powi(2) / (self.width + 1.0);
        }
        self.width += 1.0;
        self.sum += value;
        self.compress();
        self.ticks += 1;
        if !self.ticks.is_multiple_of(ADWIN_CLOCK) || self.width <= ADWIN_GRACE {
            return false;
        }
        while self.has_cut() {
            self.changed = true;
            self.drop_oldest();
        }
        self.changed
    }

    /// Joins the two oldest buckets of a size that has too many.
    fn compress(&mut self) {
        let (mut place, mut size) = (0, 1.0);
        while let Some(row) = self.rows.get_mut(place).filter(|row| row.len() > ADWIN_BUCKETS) {
            let (Some(first), Some(second)) = (row.pop_front(), row.pop_front()) else { return };
            let between = (first.0 - second.0) / size;
            let joined = (first.0 + second.0, first.1 + second.1 + 0.5 * size * between * between);
            place += 1;
            size *= 2.0;
            match self.rows.get_mut(place) {
                Some(next) => next.push_back(joined),
                None => self.rows.push(VecDeque::from([joined])),
            }
        }
    }

    /// True if the window can be cut into an older and a newer part of different means.
    fn has_cut(&self) -> bool {
        let (mut older, mut older_sum) = (0.0, 0.0);
        let mut size = 2.0_f64.powf(count(u64::try_from(self.rows.len()).unwrap_or(0)) - 1.0);
        for row in self.rows.iter().rev() {
            for bucket in row {
                older += size;
                older_sum += bucket.0;
                let newer = self.width - older;
                if older < ADWIN_PART || newer < ADWIN_PART {
                    continue;
                }
                let difference = older_sum / older - (self.sum - older_sum) / newer;
                let confidence = (2.0 * self.width.ln() / self.delta).ln();
                let parts = 1.0 / (older - ADWIN_PART + 1.0) + 1.0 / (newer - ADWIN_PART + 1.0);
                let bound =
                    (2.0 * parts * self.deviations / self.width * confidence).sqrt() + 2.0 / 3.0 * confidence * parts;
                if difference.abs() > bound {
                    return true;
                }
            }
            size *= 0.5;
        }
        false
    }

    fn drop_oldest(&mut self) {
        let size = 2.0_f64.powf(count(u64::try_from(self.rows.len()).unwrap_or(0)) - 1.0);
        let Some((sum, deviations)) = self.rows.last_mut().and_then(VecDeque::pop_front) else { return };
        self.width -= size;
        self.sum -= sum;
        if self.width > 0.0 {
            let difference = sum / size - self.sum / self.width;
            self.deviations -= deviations + size * self.width * difference * difference / (size + self.width);
        }
        if self.rows.len() > 1 && self.rows.last().is_some_and(VecDeque::is_empty) {
            self.rows.pop();
        }
    }
}

impl Default for Adwin {
    fn default() -> Self {
        Self::new(0.002)
    }
}

/// State of a [`Ddm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Level {
    /// As before.
    Stable,
    /// Error rate two deviations above its least.
    Warning,
    /// Error rate three deviations above its least; the detector begins anew with the next outcome.
    Drift,
}

/// Drift detection on a stream of failures and successes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ddm {
    outcomes: u64,
    rate: f64,
    /// Rate and deviation where their sum was least.
    least: Option<(f64, f64)>,
    level: Level,
}

impl Default for Ddm {
    fn default() -> Self {
        Self { outcomes: 0, rate: 0.0, least: None, level: Level::Stable }
    }
}

/// Outcomes before [`Ddm`] judges, river's `warm_start`.
const DDM_WARM: u64 = 30;

impl Ddm {
    /// Share of failures since the detector began.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Share of failures where it and its deviation were least; `None` before the detector judges.
    #[must_use]
    pub fn least_rate(&self) -> Option<f64> {
        self.least.map(|(rate, _)| rate)
    }

    /// Adds an outcome and returns the state.
    pub fn add(&mut self, failed: bool) -> Level {
        if self.level == Level::Drift {
            *self = Self::default();
        }
        self.outcomes += 1;
        self.rate += (f64::from(u8::from(failed)) - self.rate) / count(self.outcomes);
        let deviation = (self.rate * (1.0 - self.rate) / count(self.outcomes)).max(0.0).sqrt();
        if self.outcomes <= DDM_WARM {
            return self.level;
        }
        let here = self.rate + deviation;
        let (rate, spread) = match self.least {
            Some((rate, spread)) if here > rate + spread => (rate, spread),
            _ => (self.rate, deviation),
        };
        self.least = Some((rate, spread));
        self.level = if here > rate + 3.0 * spread {
            Level::Drift
        } else if here > rate + 2.0 * spread {
            Level::Warning
        } else {
            Level::Stable
        };
        self.level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adwin_forgets_what_was_before_a_change_and_stays_small() {
        let mut adwin = Adwin::default();
        let detected: Vec<u64> = (0..4000)
            .filter(|index| adwin.add(if *index < 2000 { 0.2 } else { 0.8 } + 0.01 * (*index % 7) as f64))
            .collect();
        assert!(detected.iter().all(|index| (2000..2200).contains(index)), "{detected:?}");
        assert!(!detected.is_empty() && adwin.width() < 2100.0);
        assert!(adwin.rows.len() < 14 && adwin.rows.iter().all(|row| row.len() <= ADWIN_BUCKETS + 1));
        assert!(!adwin.add(f64::NAN));
    }
}
