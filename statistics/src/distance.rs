//! Limit on the distance between the versions' distributions, exact and valid at every look: drift of outputs.
//!
//! **Model.** Values of the two versions have any distributions. The distance is the greatest difference, either way, of the
//! shares above one of [`EDGES`] edges: the Kolmogorov-Smirnov distance on a grid. The edges must come from before the
//! rollout; sixteenths of stable's values spread them evenly ([`edges_of`]).
//!
//! **Null.** The distance is at most `d`.
//!
//! **Evidence.** At one edge and in one direction the null says that the shares above it differ by at most `d`: a pair of
//! shares, judged by the exact mixture of [`crate::share`]. The mean of e-values is an e-value, so the evidence that the
//! distance is above `d` is the mean over edges and directions; thirty questions cost 3.4 in its logarithm at most.
//! Evidence that the distance is below `d` needs all of them: the least of the e-values for the opposite
//! (intersection-union test).
//!
//! **Repeating callers.** Each e-value is divided by the design effect of its own pair of shares.

use crate::grid::Grid;
use crate::share::{self, Counts, Outcomes};
use crate::sketch::Sketch;
use crate::threshold::{Line, Side};
use crate::units::count;

/// Edges of a distance.
pub const EDGES: usize = 15;

/// Sixteenths of the values of a sketch, as edges of a distance; `None` without values.
#[must_use]
pub fn edges_of(before: &Sketch) -> Option<[f64; EDGES]> {
    let mut edges = [0.0; EDGES];
    for (edge, part) in edges.iter_mut().zip(1_u64..) {
        *edge = before.quantile(count(part) / count(EDGES as u64 + 1))?;
    }
    Some(edges)
}

/// Column of a value: how many edges lie below it.
pub(crate) fn column(edges: &[f64; EDGES], value: f64) -> usize {
    edges.partition_point(|edge| *edge < value)
}

/// Counts without values.
pub(crate) fn nothing() -> Grid {
    Grid::new(EDGES + 1)
}

/// Greatest difference of the shares above an edge.
pub(crate) fn distance(stable: &Grid, candidate: &Grid) -> f64 {
    let pairs = stable.above().into_iter().zip(candidate.above());
    let total = |grid: &Grid| grid.count().max(1.0);
    pairs.map(|(theirs, ours)| (ours / total(candidate) - theirs / total(stable)).abs()).fold(0.0, f64::max)
}

/// Pairs of shares of a distance, each with the lines on which it is `limit` in one of the directions.
struct Pairs<'a> {
    stable: &'a Grid,
    candidate: &'a Grid,
    /// Candidate's nominal share of requests.
    split: f64,
    level: f64,
}

impl Pairs<'_> {
    /// Counts above each edge.
    fn counts(&self) -> impl Iterator<Item = (usize, Counts)> {
        let (theirs, ours) = (self.stable.above(), self.candidate.above());
        let of = |grid: &Grid, hits: f64| Outcomes { total: grid.count(), hits };
        let pair = |(theirs, ours): (f64, f64)| Counts {
            stable: of(self.stable, theirs),
            candidate: of(self.candidate, ours),
        };
        let pairs: Vec<Counts> = theirs.into_iter().zip(ours).map(pair).collect();
        // Everything lies above the lowest column.
        pairs.into_iter().enumerate().skip(1)
    }

    fn ln_priced(&self, edge: usize, counts: Counts, side: Side, shift: f64) -> f64 {
        let question = share::Question { line: Line::Shift(shift), side, split: self.split };
        let effect = share::effect_of_spreads(1.0, self.stable.spread(edge), self.candidate.spread(edge), self.level);
        share::priced(question.ln_evidence(counts), effect)
    }
}

/// Question whether the distance is above (or below) a limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) limit: f64,
    pub(crate) side: Side,
    /// Candidate's nominal share of requests.
    pub(crate) split: f64,
    pub(crate) level: f64,
}

impl Question {
    /// Logarithm of the evidence, as if `scale` times the data had come.
    pub(crate) fn ln_evidence(self, stable: &Grid, candidate: &Grid, scale: f64) -> f64 {
        if stable.count() <= 0.0 || candidate.count() <= 0.0 {
            return 0.0;
        }
        let Self { limit, side, split, level } = self;
        let pairs = Pairs { stable, candidate, split, level };
        let each = pairs.counts().flat_map(|(edge, counts)| {
            let counts = counts.scaled(scale);
            // Above the limit: the candidate's share is beyond stable's by more than the limit, up or down.
            let (up, down) = (pairs.ln_priced(edge, counts, side, limit), {
                pairs.ln_priced(edge, counts, side.opposite(), -limit)
            });
            [up, down]
        });
        match side {
            Side::Below => each.fold(f64::INFINITY, f64::min).min(share::MOST),
            Side::Above => ln_mean(&each.collect::<Vec<f64>>()).min(share::MOST),
        }
    }

    /// Upper bound at little cost of the evidence that the distance is above the limit.
    pub(crate) fn ln_upper_bound(self, stable: &Grid, candidate: &Grid) -> f64 {
        let Self { limit, split, level, .. } = self;
        let pairs = Pairs { stable, candidate, split, level };
        let each = pairs.counts().flat_map(|(_, counts)| {
            [(Side::Above, limit), (Side::Below, -limit)].map(|(side, shift)| {
                let beyond = side.sign() * (counts.candidate.share() - counts.stable.share() - shift) > 0.0;
                let question = share::Question { line: Line::Shift(shift), side, split };
                if beyond { question.ln_upper_bound(counts) } else { 0.0 }
            })
        });
        each.fold(0.0, f64::max)
    }
}

/// Design effect at the edge where the shares differ most.
pub(crate) fn design_effect(stable: &Grid, candidate: &Grid, level: f64) -> f64 {
    let pairs = Pairs { stable, candidate, split: 0.5, level };
    let apart = |counts: &Counts| (counts.candidate.share() - counts.stable.share()).abs();
    let furthest = pairs.counts().max_by(|(_, one), (_, other)| apart(one).total_cmp(&apart(other)));
    furthest.map_or(1.0, |(edge, _)| share::effect_of_spreads(1.0, stable.spread(edge), candidate.spread(edge), level))
}

/// Logarithm of the mean of numbers given by their logarithms.
fn ln_mean(logs: &[f64]) -> f64 {
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logs.iter().map(|log| (log - largest).exp()).sum();
    largest + (sum / count(logs.len() as u64)).ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_split_at_the_edges() {
        let mut sketch = Sketch::default();
        for value in 1..=1600 {
            sketch.add(f64::from(value));
        }
        let edges = edges_of(&sketch).unwrap();
        assert!((edges[7] / 800.0 - 1.0).abs() < 0.01, "the middle edge is the median: {edges:?}");
        assert_eq!((column(&edges, 0.0), column(&edges, 1e9)), (0, EDGES));
        let mut counts = [0; EDGES + 1];
        for value in 1..=1600 {
            counts[column(&edges, f64::from(value))] += 1;
        }
        assert!(counts.iter().all(|count| (95..=105).contains(count)), "{counts:?}");
        assert!(edges_of(&Sketch::default()).is_none());
    }

    #[test]
    fn the_distance_is_that_of_kolmogorov_and_smirnov_on_the_edges() {
        let (mut stable, mut candidate) = (nothing(), nothing());
        for unit in 0..1000 {
            stable.observe(unit, usize::try_from(unit % 16).unwrap());
            candidate.observe(unit, usize::try_from((unit % 16).max(4)).unwrap());
        }
        // The candidate has none of the four lowest sixteenths.
        assert!((distance(&stable, &candidate) - 0.25).abs() < 0.01);
        assert!(distance(&stable, &stable).abs() < 1e-12);
    }

    #[test]
    fn a_distance_past_its_limit_is_found_and_one_within_is_shown() {
        let (mut stable, mut candidate) = (nothing(), nothing());
        for unit in 0..4000 {
            stable.observe(unit, usize::try_from(unit % 16).unwrap());
            candidate.observe(unit, usize::try_from((unit % 16).max(6)).unwrap());
        }
        let question = |limit, side| Question { limit, side, split: 0.5, level: 0.01 };
        let needed = 100.0_f64.ln();
        assert!(question(0.2, Side::Above).ln_evidence(&stable, &candidate, 1.0) > needed);
        assert!(question(0.2, Side::Above).ln_upper_bound(&stable, &candidate) > needed);
        assert!(question(0.2, Side::Below).ln_evidence(&stable, &candidate, 1.0) < 0.0);
        assert!(question(0.2, Side::Below).ln_evidence(&stable, &stable, 1.0) > needed);
        assert!(question(0.2, Side::Above).ln_evidence(&stable, &stable, 1.0) <= 0.0);
    }
}
