//! Measured cost of steps on this device, by their number of rows: the scheduler fills a step up to a time, not up to
//! a constant.

use std::time::Duration;

/// Number of size classes of steps, by powers of two: up to 256 rows and more.
const BUCKETS: usize = 9;
/// Weight of the newest measurement: an eighth.
const SMOOTHING: f64 = 0.125;

#[derive(Debug, Clone, Copy, Default)]
struct Figure {
    rows: f64,
    seconds: f64,
}

/// Measured cost of steps.
#[derive(Debug, Default)]
pub(super) struct Cost {
    /// Averages for steps of 1, 2, 3 to 4, 5 to 8, ... rows; `None` if none was measured.
    figures: [Option<Figure>; BUCKETS],
    /// Most rows of a step so far.
    most: usize,
}

#[allow(clippy::cast_precision_loss, reason = "rows are few")]
fn float(rows: usize) -> f64 {
    rows as f64
}

/// Size class of a step.
fn bucket(rows: usize) -> usize {
    usize::try_from(rows.max(1).next_power_of_two().trailing_zeros()).map_or(BUCKETS - 1, |n| n.min(BUCKETS - 1))
}

impl Cost {
    /// Most rows of a step so far.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// Records the duration of a step.
    pub(super) fn measured(&mut self, rows: usize, took: Duration) {
        self.most = self.most.max(rows);
        let Some(figure) = self.figures.get_mut(bucket(rows)) else { return };
        let (rows, seconds) = (float(rows), took.as_secs_f64());
        match figure {
            Some(figure) => {
                figure.rows += (rows - figure.rows) * SMOOTHING;
                figure.seconds += (seconds - figure.seconds) * SMOOTHING;
            }
            None => *figure = Some(Figure { rows, seconds }),
        }
    }

    /// Replaces the averages for steps of this size and forgets those of larger ones: the device has been idle, and a
    /// slow spell before it says nothing about now.
    pub(super) fn measured_anew(&mut self, rows: usize, took: Duration) {
        let bucket = bucket(rows);
        self.figures.iter_mut().skip(bucket).for_each(|figure| *figure = None);
        self.most = 0;
        self.measured(rows, took);
    }

    /// Expected duration of a step: on the line through the averages on both sides of it, or through the last two. A
    /// step of more rows never costs less.
    pub(super) fn of(&self, rows: usize) -> Duration {
        let rows = float(rows);
        let mut known = self.figures.iter().flatten().copied();
        let Some(mut low) = known.next() else { return Duration::ZERO };
        let mut high = low;
        let mut is_first = true;
        for figure in known {
            if !is_first && high.rows >= rows {
                break;
            }
            (low, high) = (high, figure);
            is_first = false;
        }
        let run = high.rows - low.rows;
        let slope =
            if run > 0.0 { ((high.seconds - low.seconds) / run).max(0.0) } else { low.seconds / low.rows.max(1.0) };
        let seconds = low.seconds + slope * (rows - low.rows);
        Duration::from_secs_f64(seconds.clamp(0.0, 3600.0))
    }

    /// Most rows, of `least` to `most`, of a step that ends within `budget`. At most twice the most rows so far:
    /// beyond that the cost is unknown, since a few rows cost little more than one and many do not.
    pub(super) fn rows_within(&self, budget: Duration, least: usize, most: usize) -> usize {
        let most = if self.most == 0 { most } else { most.min(2 * self.most) };
        let (mut low, mut high) = (least, most.max(least));
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            if self.of(middle) <= budget { low = middle } else { high = middle - 1 }
        }
        low
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_step_is_filled_up_to_its_time() {
        let mut cost = Cost::default();
        assert_eq!(cost.rows_within(ms(50), 1, 64), 64, "nothing is known");
        cost.measured(1, ms(10));
        cost.measured(8, ms(24));
        // 2 ms a row from there.
        assert_eq!(cost.of(16), ms(40));
        assert_eq!(cost.rows_within(ms(40), 1, 64), 16);
        assert_eq!(cost.rows_within(ms(1), 3, 64), 3, "what must run does");
        assert_eq!(cost.rows_within(ms(900), 1, 64), 16, "what so many cost is not known");
        cost.measured(16, ms(40));
        cost.measured(32, ms(72));
        assert_eq!(cost.rows_within(ms(900), 1, 64), 64);
        // A device that becomes slower is noticed.
        for _ in 0..60 {
            cost.measured(8, ms(80));
        }
        assert_eq!(cost.rows_within(ms(40), 1, 64), 4);
        // One that became faster while it was idle, too, and larger steps are tried again.
        cost.measured_anew(8, ms(10));
        assert_eq!(cost.of(8), ms(10));
        assert_eq!(cost.rows_within(ms(40), 1, 64), 16);
    }

    proptest! {
        #[test]
        fn a_step_has_what_it_must_and_no_more_than_it_may(steps in proptest::collection::vec((1usize..200, 1u64..500), 1..30)) {
            let mut cost = Cost::default();
            for (rows, took) in steps {
                cost.measured(rows, ms(took));
            }
            for budget in [0, 10, 100, 1000] {
                let rows = cost.rows_within(ms(budget), 1, 64);
                prop_assert!((1..=64).contains(&rows));
            }
        }
    }
}
