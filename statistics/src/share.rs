//! Comparison of shares, exact and valid at every look: errors, refusals, labels of yes or no; and of tails of
//! quantiles ([`crate::quantile`]).
//!
//! **Model.** Outcomes of stable are Bernoulli with some share `p0`, those of the candidate with share `p1`, in whatever
//! order they come and whoever chose the version. Near zero the normal approximation fails, so none is used.
//!
//! **Null.** `p1` is not above the line `g(p0)`: `p0 + d`, `r * p0` or a fixed value. `p0` is unknown.
//!
//! **Evidence.** For one value of `p0`, the mixture of likelihood ratios over log odds ratios `s > 0`
//!
//! ```text
//! E(p0) = sum_s w_s * L(theta1(s), theta0(s)) / L(g(p0), p0),
//! logit theta1 = logit g(p0) + s,   logit theta0 = logit p0 - c s,   c = g'(p0) * share / (1 - share)
//! ```
//!
//! is a martingale at `(p0, g(p0))` and a supermartingale for smaller `p1`, as `theta1 > g(p0)` makes the candidate's ratio
//! rise with `p1`. A tenth of the weight is a beta-binomial mixture of stable's own likelihood ratio, which refutes values
//! of `p0` that stable's data exclude. The evidence is `min over p0 of E(p0)`, which is below the martingale of the true `p0`; by
//! Ville's inequality it reaches `1/a` with probability at most `a`, exactly and at any time. It is a function of four
//! counts, so it merges. The line `theta(s)` runs at right angles (in Fisher information) to the null, so that the
//! nearest null of each alternative is `p0`: the reverse information projection of Turner, Ly and Grünwald
//! (arXiv 2106.02693, with lines in arXiv 2203.09785), here fixed in advance by the candidate's share of requests. The
//! share steers power only; a wrong one does no harm to the guarantee. Unlike a test that compares versions by the
//! allocation of errors alone, none of this trusts that the split is as configured.
//!
//! **Repeating callers.** The logarithm of the evidence is divided by the design effect ([`crate::units::design_effect`]).
//! That part is asymptotic in the number of units.

use statrs::function::gamma::ln_gamma;

use crate::special::{ln_logistic, logit};
use crate::threshold::{Line, Side};
use crate::units::{Sample, Spread, count, design_effect, joined_freedom};

/// Log odds ratios that the mixture covers, each 1.35 times the last: 0.12 (a share 13 % higher) to about 4.4 (80
/// times the odds). Finer steps cost as much in weights as they win.
const EFFECTS: usize = 13;
const SMALLEST_EFFECT: f64 = 0.12;
const EFFECT_STEP: f64 = 1.35;
/// Directions in which alternatives leave the null, as multiples of `c`, with their weights. Few counts in a tail bend the
/// right angle, which the steeper direction follows.
const DIRECTIONS: [(f64, f64); 2] = [(1.0, 0.7), (4.0, 0.3)];

/// Distance from 0 or 1 at which a share is past it, and not there but for rounding.
const IMPOSSIBLE: f64 = 1e-9;

/// Counts of both versions; floats, so that a projection may scale them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Counts {
    pub(crate) stable: Outcomes,
    pub(crate) candidate: Outcomes,
}

/// Outcomes of one version.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Outcomes {
    pub(crate) total: f64,
    pub(crate) hits: f64,
}

impl Outcomes {
    pub(crate) fn share(self) -> f64 {
        if self.total > 0.0 { self.hits / self.total } else { 0.0 }
    }

    fn scaled(self, scale: f64) -> Self {
        Self { total: self.total * scale, hits: self.hits * scale }
    }
}

impl Counts {
    pub(crate) fn scaled(self, scale: f64) -> Self {
        Self { stable: self.stable.scaled(scale), candidate: self.candidate.scaled(scale) }
    }
}

/// Mixture of alternatives about one pair of shares, with its logarithms computed once.
#[derive(Clone, Debug)]
pub(crate) struct Alternatives {
    rows: [Row; 2 * EFFECTS],
}

/// Logarithms of one alternative: its weight, its likelihood ratios for hits and misses of the candidate, then of stable.
#[derive(Clone, Copy, Debug, Default)]
struct Row {
    weight: f64,
    hit: f64,
    miss: f64,
    stable_hit: f64,
    stable_miss: f64,
}

impl Alternatives {
    /// Alternatives on `side` of the candidate's share `candidate` while stable has `stable`; `steepness` is `c` of the
    /// module's text.
    pub(crate) fn about(stable: f64, candidate: f64, side: Side, steepness: f64) -> Self {
        let (of_stable, of_candidate) = (logit(stable), logit(candidate));
        let base = Row {
            weight: 0.0,
            hit: ln_logistic(of_candidate),
            miss: ln_logistic(-of_candidate),
            stable_hit: ln_logistic(of_stable),
            stable_miss: ln_logistic(-of_stable),
        };
        let mut rows = [Row::default(); 2 * EFFECTS];
        for (half, (factor, weight)) in rows.chunks_mut(EFFECTS).zip(DIRECTIONS) {
            let mut effect = SMALLEST_EFFECT * side.sign();
            for row in half {
                let (there, beside) = (of_candidate + effect, of_stable - factor * steepness * effect);
                *row = Row {
                    weight: (weight / f64::from(u8::try_from(EFFECTS).unwrap_or(u8::MAX))).ln(),
                    hit: ln_logistic(there) - base.hit,
                    miss: ln_logistic(-there) - base.miss,
                    stable_hit: ln_logistic(beside) - base.stable_hit,
                    stable_miss: ln_logistic(-beside) - base.stable_miss,
                };
                effect *= EFFECT_STEP;
            }
        }
        Self { rows }
    }

    /// Logarithm of `E(p0)`.
    pub(crate) fn ln_evidence(&self, counts: Counts) -> f64 {
        let Counts { stable, candidate } = counts;
        let logs = self.rows.map(|row| {
            row.weight
                + candidate.hits * row.hit
                + (candidate.total - candidate.hits) * row.miss
                + stable.hits * row.stable_hit
                + (stable.total - stable.hits) * row.stable_miss
        });
        let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        if !largest.is_finite() {
            return largest;
        }
        let sum: f64 = logs.iter().map(|log| (log - largest).exp()).sum();
        largest + sum.ln()
    }
}

/// `c` of the module's text, for a candidate that gets `share` of the requests and a line of slope `slope`.
///
/// Held to 4, past which stable is so small a part that it says nothing.
pub(crate) fn steepness(slope: f64, share: f64) -> f64 {
    let share = share.clamp(0.0, 1.0);
    let odds = if share < 1.0 { share / (1.0 - share) } else { f64::INFINITY };
    (slope * odds).clamp(0.0, 4.0)
}

/// Evidence that the candidate's share is on `side` of a line, before the design effect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    pub(crate) line: Line,
    pub(crate) side: Side,
    /// Candidate's nominal share of requests.
    pub(crate) split: f64,
}

impl Question {
    fn slope(self) -> f64 {
        match self.line {
            Line::Shift(_) => 1.0,
            Line::Ratio(ratio) => ratio,
            Line::Fixed(_) => 0.0,
        }
    }

    fn evidence_at(self, counts: Counts, stable: f64) -> f64 {
        let line = self.line.at(stable);
        // No candidate has a share past 0 or 1: beside such a share of stable's there is nothing to refute.
        let is_possible = match self.side {
            Side::Above => line > -IMPOSSIBLE,
            Side::Below => line < 1.0 + IMPOSSIBLE,
        };
        if !is_possible {
            return f64::INFINITY;
        }
        let steepness = steepness(self.slope(), self.split);
        let alternatives = Alternatives::about(stable, line.clamp(0.0, 1.0), self.side, steepness);
        with_refutation(alternatives.ln_evidence(counts), ln_refutation(counts.stable, stable))
    }

    /// Upper bound of the evidence at little cost: `E(p0)` at one likely value of `p0`.
    pub(crate) fn ln_upper_bound(self, counts: Counts) -> f64 {
        let pooled = counts.stable.hits + counts.candidate.hits;
        let likely = match self.line {
            Line::Shift(shift) => {
                (pooled - shift * counts.candidate.total) / (counts.stable.total + counts.candidate.total)
            }
            Line::Ratio(ratio) => pooled / (counts.stable.total + ratio * counts.candidate.total),
            Line::Fixed(_) => return self.ln_evidence(counts),
        };
        self.evidence_at(counts, likely.clamp(0.0, 1.0))
    }

    /// Logarithm of the evidence: the least over `p0`, at most [`MOST`].
    pub(crate) fn ln_evidence(self, counts: Counts) -> f64 {
        if counts.candidate.total <= 0.0 {
            return 0.0;
        }
        if let Line::Fixed(value) = self.line {
            let candidate_only = Counts { stable: Outcomes { total: 0.0, hits: 0.0 }, ..counts };
            return Alternatives::about(0.5, value, self.side, 0.0).ln_evidence(candidate_only).min(MOST);
        }
        if counts.stable.total <= 0.0 {
            return 0.0;
        }
        let at = |place: f64| self.evidence_at(counts, ln_logistic(place).exp());
        let rarer = counts.stable.hits.min(counts.stable.total - counts.stable.hits).max(0.0);
        let centre = logit((counts.stable.hits + 0.5) / (counts.stable.total + 1.0));
        let mut found = least(at, centre, (rarer + 1.0).sqrt().recip());
        if let Line::Shift(shift) = self.line {
            // Where the line meets 0 or 1 the function has a bend, which may be its least point.
            found = found.min(least(at, logit(if shift < 0.0 { -shift } else { 1.0 - shift }), 0.5));
        }
        found.min(MOST)
    }

    /// Evidence with callers that repeat priced in, as if `scale` times the data had come.
    pub(crate) fn ln_priced(self, stable: &Sample, candidate: &Sample, level: f64, scale: f64) -> f64 {
        let counts = Counts { stable: outcomes(stable), candidate: outcomes(candidate) };
        let effect = effect_of_units(self.line, stable, candidate, level);
        priced(self.ln_evidence(counts.scaled(scale)), effect)
    }
}

/// Largest logarithm of evidence that is reported: past it, values of `p0` outside the search might matter.
pub(crate) const MOST: f64 = 20.0;
/// Weight of the mixture that refutes values of `p0` by stable's data alone.
const REFUTATION: f64 = 0.1;

/// Logarithm of the uniform (beta-binomial) mixture of likelihood ratios of stable's share against `share`.
pub(crate) fn ln_refutation(stable: Outcomes, share: f64) -> f64 {
    let misses = stable.total - stable.hits;
    let place = logit(share);
    ln_gamma(stable.hits + 1.0) + ln_gamma(misses + 1.0)
        - ln_gamma(stable.total + 2.0)
        - stable.hits * ln_logistic(place)
        - misses * ln_logistic(-place)
}

/// Logarithm of the mixture of both kinds of evidence.
pub(crate) fn with_refutation(ln_evidence: f64, ln_refutation: f64) -> f64 {
    let (one, other) = (ln_evidence + (1.0 - REFUTATION).ln(), ln_refutation + REFUTATION.ln());
    let largest = one.max(other);
    if largest.is_finite() { largest + (-(one - other).abs()).exp().ln_1p() } else { largest }
}

/// Least value of a function about `start`, on a grid that widens outwards, then by golden sections.
fn least(function: impl Fn(f64) -> f64, start: f64, width: f64) -> f64 {
    // Log-odds past which a share is within 1e-11 of 0 or 1.
    const END: f64 = 25.0;
    let start = start.clamp(1.0 - END, END - 1.0);
    let mut best = (function(start), start - 0.15 * width, start + 0.15 * width);
    for direction in [-1.0, 1.0] {
        let (mut before, mut offset) = (start, 0.15 * width);
        while before.abs() < END {
            let here = (start + direction * offset).clamp(-END, END);
            offset *= 1.25;
            let value = function(here);
            if value < best.0 {
                let beyond = (start + direction * offset).clamp(-END, END);
                best = (value, before.min(beyond), before.max(beyond));
            }
            before = here;
        }
    }
    let golden = 0.5 * (5.0_f64.sqrt() - 1.0);
    let (mut best, mut left, mut right) = best;
    let (mut first, mut second) = (right - golden * (right - left), left + golden * (right - left));
    let (mut at_first, mut at_second) = (function(first), function(second));
    for _ in 0..24 {
        best = best.min(at_first).min(at_second);
        if at_first < at_second {
            (right, second, at_second) = (second, first, at_first);
            first = right - golden * (right - left);
            at_first = function(first);
        } else {
            (left, first, at_first) = (first, second, at_second);
            second = left + golden * (right - left);
            at_second = function(second);
        }
    }
    best.min(at_first).min(at_second)
}

/// Evidence divided by the design effect, where it is evidence at all.
pub(crate) fn priced(ln_evidence: f64, effect: f64) -> f64 {
    if ln_evidence > 0.0 { ln_evidence / effect } else { ln_evidence }
}

/// Counts of a sample of zeros and ones.
pub(crate) fn outcomes(sample: &Sample) -> Outcomes {
    Outcomes { total: count(sample.count()), hits: sample.sum() }
}

/// Design effect of the difference of two shares.
pub(crate) fn effect_of_units(line: Line, stable: &Sample, candidate: &Sample, level: f64) -> f64 {
    let weight = match line {
        Line::Shift(_) => 1.0,
        Line::Ratio(ratio) => ratio * ratio,
        Line::Fixed(_) => 0.0,
    };
    let parts = |sample: &Sample| {
        let spread = sample.spread();
        let share = outcomes(sample).share();
        Spread { independent: share * (1.0 - share) / count(sample.count()).max(1.0), ..spread }
    };
    effect_of_spreads(weight, parts(stable), parts(candidate), level)
}

/// Design effect of a contrast in which stable's variance has `weight`.
pub(crate) fn effect_of_spreads(weight: f64, stable: Spread, candidate: Spread, level: f64) -> f64 {
    if weight == 0.0 {
        return design_effect(candidate.independent, candidate.clustered, candidate.freedom, level);
    }
    let theirs = weight * stable.clustered;
    design_effect(
        candidate.independent + weight * stable.independent,
        candidate.clustered + theirs,
        joined_freedom((candidate.clustered, candidate.freedom), (theirs, stable.freedom)),
        level,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(stable: (f64, f64), candidate: (f64, f64)) -> Counts {
        Counts {
            stable: Outcomes { total: stable.0, hits: stable.1 },
            candidate: Outcomes { total: candidate.0, hits: candidate.1 },
        }
    }

    /// The expectation of the e-value over all outcomes of a few requests is at most 1 for every null, and 1 on the line.
    #[test]
    fn expectation_under_the_null_is_at_most_one() {
        let binomial = |total: u32, hits: u32, share: f64| {
            let ways = (0..hits).fold(1.0, |ways, k| ways * f64::from(total - k) / f64::from(k + 1));
            ways * share.powf(f64::from(hits)) * (1.0 - share).powf(f64::from(total - hits))
        };
        let lines = [Line::Shift(0.02), Line::Shift(-0.05), Line::Ratio(1.5), Line::Ratio(0.8), Line::Fixed(0.2)];
        for line in lines {
            for side in [Side::Above, Side::Below] {
                for stable in [0.0, 0.06, 0.3, 0.6] {
                    for shift in [0.0, 0.03, 0.2] {
                        let candidate = line.at(stable) - side.sign() * shift;
                        if !(0.0..=1.0).contains(&candidate) {
                            continue;
                        }
                        let question = Question { line, side, split: 0.3 };
                        let (mut least, mut martingale) = (0.0, 0.0);
                        for (k0, k1) in (0..=7).flat_map(|k0| (0..=5).map(move |k1| (k0, k1))) {
                            let weight = binomial(7, k0, stable) * binomial(5, k1, candidate);
                            let seen = counts((7.0, k0.into()), (5.0, k1.into()));
                            least += weight * question.ln_evidence(seen).exp();
                            martingale += weight * question.evidence_at(seen, stable).exp();
                        }
                        assert!(least <= 1.0 + 1e-9, "{question:?} {stable} {candidate}: {least}");
                        let inside = |share: f64| share > 0.0 && share < 1.0;
                        if shift == 0.0 && inside(line.at(stable)) && inside(stable) {
                            assert!((martingale - 1.0).abs() < 1e-6, "{question:?} {stable}: {martingale}");
                        }
                    }
                }
            }
        }
    }

    proptest! {
        /// The search finds the least of a fine grid.
        #[test]
        fn least_over_stable_shares_is_found(
            (n0, n1) in (1u32..2000, 1u32..800), k0 in 0.0..1.0_f64, k1 in 0.0..1.0_f64, above: bool,
            line in prop_oneof![(-0.5..0.5_f64).prop_map(Line::Shift), (0.3..3.0_f64).prop_map(Line::Ratio)],
        ) {
            let seen = counts(
                (n0.into(), (f64::from(n0) * k0 * k0).floor()), (n1.into(), (f64::from(n1) * k1 * k1).floor()));
            let question = Question { line, side: if above { Side::Above } else { Side::Below }, split: 0.2 };
            let found = question.ln_evidence(seen);
            let grid = (-500..=500).map(|step| {
                question.evidence_at(seen, ln_logistic(f64::from(step) * 0.05).exp())
            });
            let least = grid.fold(f64::INFINITY, f64::min).min(MOST);
            prop_assert!(found <= least + 1e-3, "{found} against {least} for {seen:?} {question:?}");
            prop_assert!(question.ln_upper_bound(seen) >= found - 1e-3);
        }

        /// Evidence is never above 1 while the candidate is on the right side of the line.
        #[test]
        fn no_evidence_against_a_candidate_within_the_line(n0 in 1u32..500, n1 in 1u32..500, k0 in 0u32..500, k1 in 0u32..500) {
            let (k0, k1) = (k0.min(n0), k1.min(n1));
            let seen = counts((n0.into(), k0.into()), (n1.into(), k1.into()));
            let question = Question { line: Line::Shift(0.02), side: Side::Above, split: 0.1 };
            if seen.candidate.share() <= seen.stable.share() + 0.02 {
                prop_assert!(question.ln_evidence(seen) <= 1e-9);
            }
        }
    }
}
