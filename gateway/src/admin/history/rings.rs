//! Rings of figures by step of time, each of a fixed length: the last ten minutes finely, the last day coarsely. A step
//! without a request takes no memory but its place.

use std::collections::VecDeque;

use crate::telemetry::BUCKETS;

/// Time between two samples in seconds, which is the shortest step: a person sees a change at once, and a sample of ten
/// thousand routes costs some milliseconds.
pub(super) const SAMPLE: u64 = 5;

/// Window of time that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    /// Name in a query.
    pub(super) name: &'static str,
    /// Length of a step, in seconds.
    pub(super) step: u64,
    /// Number of steps.
    pub(super) steps: usize,
}

/// The windows, each with as many steps as a chart can show.
pub(super) const WINDOWS: [Window; 3] = [
    Window { name: "10m", step: SAMPLE, steps: 120 },
    Window { name: "3h", step: 60, steps: 180 },
    Window { name: "24h", step: 300, steps: 288 },
];

/// Figures of one step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Figures {
    pub(super) errors: u32,
    pub(super) input: u64,
    pub(super) output: u64,
    /// Requests by the buckets of their durations.
    pub(super) latency: [u32; BUCKETS],
    /// Model calls by the buckets of the time to their first content.
    pub(super) first_token: [u32; BUCKETS],
    /// Requests by the number of a reason; a request that spilled or was refused has one.
    pub(super) reasons: Vec<(u16, u32)>,
}

impl Figures {
    /// Requests that ended in the step.
    pub(super) fn requests(&self) -> u32 {
        self.latency.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// Adds to the count of a reason.
    pub(super) fn add_reason(&mut self, reason: u16, times: u32) {
        match self.reasons.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, count)) => *count = count.saturating_add(times),
            None if times > 0 => self.reasons.push((reason, times)),
            None => {}
        }
    }

    /// Adds the figures of another.
    pub(super) fn add(&mut self, other: &Self) {
        self.errors = self.errors.saturating_add(other.errors);
        self.input = self.input.saturating_add(other.input);
        self.output = self.output.saturating_add(other.output);
        let pairs = self.latency.iter_mut().zip(other.latency);
        for (own, more) in pairs.chain(self.first_token.iter_mut().zip(other.first_token)) {
            *own = own.saturating_add(more);
        }
        for (reason, times) in &other.reasons {
            self.add_reason(*reason, *times);
        }
    }
}

/// Newest steps of one window.
#[derive(Debug)]
struct Ring {
    window: Window,
    /// Number of the newest step, counted from 1970.
    newest: u64,
    steps: VecDeque<Option<Box<Figures>>>,
}

impl Ring {
    fn new(window: Window) -> Self {
        Self { window, newest: 0, steps: VecDeque::new() }
    }

    /// Makes a step the newest one, unless a newer one is there.
    fn advance(&mut self, step: u64) {
        if self.steps.is_empty() {
            self.newest = step;
            self.steps.push_back(None);
        }
        let most = u64::try_from(self.window.steps).unwrap_or(u64::MAX);
        let missing = step.saturating_sub(self.newest);
        for _ in 0..missing.min(most) {
            self.steps.push_back(None);
        }
        self.newest += missing;
        let surplus = self.steps.len().saturating_sub(self.window.steps);
        self.steps.drain(..surplus);
    }

    /// Place of a step; `None` for one that the ring has no more, or not yet.
    fn place(&self, step: u64) -> Option<usize> {
        let back = usize::try_from(self.newest.checked_sub(step)?).ok()?;
        self.steps.len().checked_sub(back.checked_add(1)?)
    }

    fn add(&mut self, step: u64, figures: &Figures) {
        self.advance(step);
        if let Some(place) = self.place(step).and_then(|place| self.steps.get_mut(place)) {
            place.get_or_insert_default().add(figures);
        }
    }

    fn get(&self, step: u64) -> Option<&Figures> {
        self.steps.get(self.place(step)?)?.as_deref()
    }
}

/// Rings of all windows, of one route or of all.
#[derive(Debug)]
pub(super) struct Series([Ring; WINDOWS.len()]);

impl Default for Series {
    fn default() -> Self {
        Self(WINDOWS.map(Ring::new))
    }
}

impl Series {
    /// Adds the figures of the sample that begins at `start`, in Unix seconds.
    pub(super) fn add(&mut self, start: u64, figures: &Figures) {
        for ring in &mut self.0 {
            ring.add(start / ring.window.step, figures);
        }
    }

    /// Notes that time has passed until `start`.
    pub(super) fn advance(&mut self, start: u64) {
        for ring in &mut self.0 {
            ring.advance(start / ring.window.step);
        }
    }

    /// Adds all figures of another.
    pub(super) fn merge(&mut self, other: &Self) {
        for (ring, other) in self.0.iter_mut().zip(&other.0) {
            for (back, figures) in (0..).zip(other.steps.iter().rev()) {
                if let Some(figures) = figures {
                    ring.add(other.newest.saturating_sub(back), figures);
                }
            }
        }
    }

    /// Figures of the steps of a window up to the one with `end`, oldest first, with the time at which the first begins.
    /// A step without any is `None`.
    pub(super) fn read(&self, window: Window, end: u64) -> (u64, Vec<Option<&Figures>>) {
        let newest = end / window.step;
        let first = newest.saturating_sub(u64::try_from(window.steps).unwrap_or(0).saturating_sub(1));
        let ring = self.0.iter().find(|ring| ring.window == window);
        (first * window.step, (first..=newest).map(|step| ring?.get(step)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(requests: u32) -> Figures {
        let mut figures = Figures { errors: 1, input: 2, output: 3, ..Figures::default() };
        figures.latency[4] = requests;
        figures.add_reason(7, 1);
        figures
    }

    fn requests(series: &Series, window: Window, end: u64) -> Vec<u32> {
        series.read(window, end).1.into_iter().map(|step| step.map_or(0, Figures::requests)).collect()
    }

    #[test]
    fn a_sample_counts_in_every_window_and_old_ones_are_dropped() {
        let mut series = Series::default();
        for second in (0..100_000).step_by(5) {
            series.add(1_000_000 + second, &figures(1));
        }
        let end = 1_099_995;
        for (window, each) in WINDOWS.into_iter().zip([1, 12, 60]) {
            let (start, steps) = series.read(window, end);
            assert_eq!((steps.len(), start % window.step), (window.steps, 0));
            assert_eq!(start, end / window.step * window.step - window.step * (window.steps as u64 - 1));
            let counted = requests(&series, window, end);
            assert!(counted[..window.steps - 1].iter().all(|count| *count == each), "{counted:?}");
            let step = steps[0].unwrap();
            assert_eq!((step.errors, step.output, &*step.reasons), (each, u64::from(each) * 3, &[(7, each)][..]));
        }
        assert!(series.0.iter().all(|ring| ring.steps.len() == ring.window.steps));
    }

    #[test]
    fn time_that_leaps_or_runs_back_keeps_the_rings_short_and_in_order() {
        let mut series = Series::default();
        series.add(1_000_000, &figures(1));
        series.add(1_000_010, &figures(2));
        assert_eq!(requests(&series, WINDOWS[0], 1_000_010)[117..], [1, 0, 2]);
        // The clock is set back by a step, and far.
        series.add(1_000_005, &figures(3));
        series.add(5, &figures(9));
        assert_eq!(requests(&series, WINDOWS[0], 1_000_010)[117..], [1, 3, 2]);
        series.advance(u64::MAX);
        assert!(series.0.iter().all(|ring| ring.steps.len() == ring.window.steps));
        assert!(requests(&series, WINDOWS[2], u64::MAX).iter().all(|count| *count == 0));
    }

    #[test]
    fn series_that_are_merged_have_the_sum_of_both() {
        let (mut one, mut other) = (Series::default(), Series::default());
        one.add(1_000_000, &figures(1));
        other.add(1_000_000, &figures(2));
        other.add(1_000_020, &figures(4));
        one.merge(&other);
        assert_eq!(requests(&one, WINDOWS[0], 1_000_020)[115..], [3, 0, 0, 0, 4]);
        assert_eq!(requests(&one, WINDOWS[2], 1_000_020)[287], 7);
    }
}
