//! Comparison of quantiles, exact but for a stated resolution and valid at every look: p95 of latency or first token.
//!
//! **Model.** Values of the two versions have any distributions. `Q0` and `Q1` are their quantiles at `1 - tail`.
//!
//! **Null.** `Q1` is not above the line `g(Q0)`: `Q0 + d`, `r * Q0` or a fixed value.
//!
//! **Evidence.** Were `x = Q0` known, the null would say that stable exceeds `x` with share `tail` and that the candidate
//! exceeds `g(x)` with share at most `tail`: a pair of shares, judged by the exact mixture of [`crate::share`]. `x` is
//! unknown, so the evidence is the least over all `x`, which is below the martingale of the true one: at most `a` of fine
//! candidates ever reach `1/a`. The counts "above `x`" at one level for all `x` are what the quantile
//! confidence sequences of Howard and Ramdas (arXiv 1906.09712) invert, too; joining the versions in one e-value saves
//! their union bound.
//!
//! **Resolution.** Counts come from a sketch with bins half a percent wide ([`Sketch`]). For `x` inside a bin the least favourable end
//! is taken on both sides, so the guarantee stays exact and a threshold acts as if it were up to 1 % wider.
//!
//! **Callers that leave.** Of a request whose caller left after a time the value is at least that: evidence counts it where that is
//! least favourable, the candidate's as late as it waited and stable's as never when the candidate is to be worse, and the other
//! way round when it is to be fine.
//!
//! **Repeating callers.** Octaves by bucket of units give the design effect at the edge nearest the tail.

use serde::{Deserialize, Serialize};

use crate::grid::Grid;
use crate::share::{
    Alternatives, Counts, MOST, Outcomes, effect_of_spreads, ln_refutation, priced, steepness, with_refutation,
};
use crate::sketch::{Sketch, Tails};
use crate::threshold::{Line, Side};
use crate::units::count;

/// Octaves from 2^-20 to 2^20, with one more below and above.
const OCTAVES: usize = 42;
const LOWEST_OCTAVE: f64 = -20.0;

/// Values of one version: a sketch of all, and a coarse one for each bucket of units. About 11 KiB and the sketch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tail {
    sketch: Sketch,
    octaves: Grid,
}

impl Default for Tail {
    fn default() -> Self {
        Self { sketch: Sketch::default(), octaves: Grid::new(OCTAVES) }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn octave(value: f64) -> usize {
    let place = value.log2().floor() - LOWEST_OCTAVE + 1.0;
    // A value that is no positive number falls into the lowest octave.
    if place >= 1.0 { (place as usize).min(OCTAVES - 1) } else { 0 }
}

impl Tail {
    pub(crate) fn observe(&mut self, unit: u64, value: f64) {
        self.sketch.add(value);
        self.octaves.observe(unit, octave(value));
    }

    /// Adds a value of which no more is known than that it is at least `bound`.
    pub(crate) fn observe_at_least(&mut self, unit: u64, bound: f64) {
        self.sketch.add_at_least(bound);
        self.octaves.observe(unit, octave(bound));
    }

    /// Quantile at `level`, once there are so many values that some are expected above it.
    pub(crate) fn quantile(&self, level: f64) -> Option<f64> {
        let expected = count(self.count()) * (1.0 - level);
        self.sketch.quantile(level).filter(|_| expected >= 1.0)
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        self.sketch.merge(&other.sketch);
        self.octaves.merge(&other.octaves);
    }

    /// Sketch of all values.
    pub(crate) fn sketch(&self) -> &Sketch {
        &self.sketch
    }

    pub(crate) fn count(&self) -> u64 {
        self.sketch.count()
    }

    /// True if the parts fit each other, as a deserialised value may not.
    pub(crate) fn is_consistent(&self) -> bool {
        self.octaves.is_consistent(OCTAVES) && self.sketch.is_consistent()
    }

    /// Effective number of buckets less one.
    pub(crate) fn freedom(&self) -> f64 {
        self.octaves.freedom()
    }
}

/// Design effect of the tail of both versions, at the octave whose pooled share is nearest to the tail's.
pub(crate) fn effect_of_units(stable: &Tail, candidate: &Tail, line: Line, tail: f64, level: f64) -> f64 {
    let edge = |version: &Tail| {
        let above = version.octaves.above();
        let total = above.first().copied().unwrap_or(0.0);
        let distance = |hits: &f64| if *hits > 0.0 { (hits / total / tail).ln().abs() } else { f64::INFINITY };
        let edges = above.iter().enumerate().skip(1);
        edges.min_by(|(_, a), (_, b)| distance(a).total_cmp(&distance(b))).map_or(1, |(edge, _)| edge)
    };
    let (theirs, ours) = (stable.octaves.spread(edge(stable)), candidate.octaves.spread(edge(candidate)));
    let weight = if matches!(line, Line::Fixed(_)) { 0.0 } else { 1.0 };
    effect_of_spreads(weight, theirs, ours, level)
}

/// Question whether the candidate's quantile is on a side of a line.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) line: Line,
    pub(crate) side: Side,
    /// Share of values above the quantile.
    pub(crate) tail: f64,
    /// Candidate's nominal share of requests.
    pub(crate) split: f64,
}

impl Question {
    fn alternatives(self) -> Alternatives {
        let slope = if matches!(self.line, Line::Fixed(_)) { 0.0 } else { 1.0 };
        Alternatives::about(self.tail, self.tail, self.side, steepness(slope, self.split))
    }

    /// Evidence least favourable to the question, for a stable quantile between `low` and `high`.
    fn evidence_within(
        self,
        alternatives: &Alternatives,
        stable: &Tails,
        candidate: &Tails,
        low: f64,
        high: f64,
        totals: Counts,
    ) -> f64 {
        let (most, fewest) = (count(stable.possibly_above(low)), count(stable.surely_above(high)));
        let scale = totals.candidate.hits;
        // Least of the refutation over the counts that the bin allows: it falls up to this count and rises past it.
        let turn = self.tail * (totals.stable.total + 1.0) - 1.0;
        let refuting = Outcomes { hits: turn.clamp(fewest * scale, most * scale), ..totals.stable };
        let refutation = ln_refutation(refuting, self.tail);
        if with_refutation(f64::NEG_INFINITY, refutation) >= MOST {
            return MOST;
        }
        let (hits, stable_hits) = match self.side {
            Side::Above => (candidate.surely_above(self.line.at(high)), most),
            Side::Below => (candidate.possibly_above(self.line.at(low)), fewest),
        };
        let counts = Counts {
            stable: Outcomes { hits: stable_hits * scale, ..totals.stable },
            candidate: Outcomes { hits: count(hits) * scale, ..totals.candidate },
        };
        with_refutation(alternatives.ln_evidence(counts), refutation)
    }

    /// Logarithm of the evidence, as if `scale` times the data had come; at most [`MOST`].
    ///
    /// With a `stride` above 1, an upper bound at little cost: only every so many bins are tried.
    fn ln_evidence(self, stable: &Sketch, candidate: &Sketch, scale: f64, stride: usize) -> f64 {
        let alternatives = self.alternatives();
        if candidate.count() == 0 {
            return 0.0;
        }
        // `hits` of the candidate carries the scale.
        let totals = Counts {
            stable: Outcomes { total: count(stable.count()) * scale, hits: 0.0 },
            candidate: Outcomes { total: count(candidate.count()) * scale, hits: scale },
        };
        let of_candidate = candidate.tails();
        if let Line::Fixed(value) = self.line {
            let hits = match self.side {
                Side::Above => of_candidate.surely_above(value),
                Side::Below => of_candidate.possibly_above(value),
            };
            let counts = Counts {
                stable: Outcomes { total: 0.0, hits: 0.0 },
                candidate: Outcomes { hits: count(hits) * scale, ..totals.candidate },
            };
            return alternatives.ln_evidence(counts).min(MOST);
        }
        if stable.count() == 0 {
            return 0.0;
        }
        let of_stable = stable.tails();
        let within = |low, high| self.evidence_within(&alternatives, &of_stable, &of_candidate, low, high, totals);
        let ends = (of_stable.bins.first(), of_stable.bins.last());
        let (Some(first), Some(last)) = ends else { return 0.0 };
        let outside = within(f64::NEG_INFINITY, first.low).min(within(last.high, f64::INFINITY));
        of_stable.bins.iter().step_by(stride).map(|bin| within(bin.low, bin.high)).fold(outside, f64::min).min(MOST)
    }

    /// Upper bound of the evidence at little cost; none where the estimate is on the other side of the line.
    pub(crate) fn ln_upper_bound(self, stable: &Tail, candidate: &Tail) -> f64 {
        if let (false, Some(bin)) = (matches!(self.line, Line::Fixed(_)), stable.sketch.bin_of_tail(self.tail)) {
            let reached = candidate.sketch.share_above(self.line.at(bin.high));
            if self.side.sign() * (reached - self.tail) <= 0.0 {
                return 0.0;
            }
        }
        // Sixteen bins are 8 % of a value: few enough to be cheap, close enough to be near the least.
        self.ln_evidence(&stable.sketch, &candidate.sketch, 1.0, 16)
    }

    /// Evidence with callers that repeat priced in.
    pub(crate) fn ln_priced(self, stable: &Tail, candidate: &Tail, effect: f64, scale: f64) -> f64 {
        priced(self.ln_evidence(&stable.sketch, &candidate.sketch, scale, 1), effect)
    }
}
