//! Distances between a reference and a window, each by a named recipe.
//!
//! | distance | recipe | agrees with |
//! |---|---|---|
//! | [`psi`] | sum of `(r - c) ln(r / c)` over shares; an empty bin counts as 0.0001, or a millionth of the least share where that is at most 0.0001 | Evidently 0.7 `psi` |
//! | [`jensen_shannon`] | square root of the divergence, natural logarithm | Evidently 0.7 `jensenshannon`, scipy |
//! | [`chi_squared`] | statistic of the window's counts against the reference's shares, with its probability | `scipy.stats.chisquare` |
//! | [`kolmogorov_smirnov`] | greatest difference of distribution functions, asymptotic probability | `scipy.stats.ks_2samp`, `asymp` |
//! | [`wasserstein`] | area between distribution functions over the reference's deviation (at least 0.001) | Evidently 0.7 `wasserstein` |
//!
//! Numbers are binned by Evidently's rule for more than 20 distinct values: Sturges' number of equal bins over both samples
//! together ([`sturges_edges`]). From sketches, counts are exact at the edges of bins half a percent wide, so a
//! distance is off by what lies between.

use crate::sketch::Sketch;
use crate::special::chi_squared_tail;
use crate::units::count;

/// Shares of the counts of each side; `None` where a side is empty.
fn shares(pairs: &[(f64, f64)]) -> Option<Vec<(f64, f64)>> {
    let (left, right) = pairs.iter().fold((0.0, 0.0), |sums, pair| (sums.0 + pair.0, sums.1 + pair.1));
    (left > 0.0 && right > 0.0).then(|| pairs.iter().map(|pair| (pair.0 / left, pair.1 / right)).collect())
}

/// Population stability index of (reference, window) counts by category or bin.
#[must_use]
pub fn psi(pairs: &[(f64, f64)]) -> Option<f64> {
    let shares = shares(pairs)?;
    let filler = |least: f64| if least <= 0.0001 { least / 1e6 } else { 0.0001 };
    let least =
        |values: &mut dyn Iterator<Item = f64>| values.filter(|share| *share > 0.0).fold(f64::INFINITY, f64::min);
    let left = filler(least(&mut shares.iter().map(|pair| pair.0)));
    let right = filler(least(&mut shares.iter().map(|pair| pair.1)));
    let filled = |share: f64, filler: f64| if share > 0.0 { share } else { filler };
    let part = |pair: &(f64, f64)| {
        let (reference, window) = (filled(pair.0, left), filled(pair.1, right));
        (reference - window) * (reference / window).ln()
    };
    Some(shares.iter().map(part).sum())
}

/// Jensen-Shannon distance of (reference, window) counts, from 0 to the square root of ln 2.
#[must_use]
pub fn jensen_shannon(pairs: &[(f64, f64)]) -> Option<f64> {
    let part = |share: f64, middle: f64| if share > 0.0 { share * (share / middle).ln() } else { 0.0 };
    let divergence: f64 = shares(pairs)?
        .into_iter()
        .map(|(left, right)| {
            let middle = 0.5 * (left + right);
            0.5 * (part(left, middle) + part(right, middle))
        })
        .sum();
    Some(divergence.max(0.0).sqrt())
}

/// Statistic of a test with the probability of one at least as large under equality.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Test {
    /// Statistic.
    pub statistic: f64,
    /// Probability under equality.
    pub probability: f64,
}

/// Chi-squared test of the window's counts against the reference's shares; a category that the reference has not makes it
/// infinite.
#[must_use]
pub fn chi_squared(pairs: &[(f64, f64)]) -> Option<Test> {
    let total: f64 = pairs.iter().map(|pair| pair.1).sum();
    let shares = shares(pairs)?;
    let used: Vec<(f64, f64)> =
        shares.iter().zip(pairs).map(|(share, pair)| (share.0 * total, pair.1)).filter(|(a, b)| a + b > 0.0).collect();
    let statistic: f64 = used.iter().map(|(expected, seen)| (seen - expected).powi(2) / expected).sum();
    let freedom = count(u64::try_from(used.len()).unwrap_or(0)) - 1.0;
    let probability = if statistic.is_infinite() { 0.0 } else { chi_squared_tail(statistic, freedom) };
    Some(Test { statistic, probability })
}

/// Kolmogorov-Smirnov distance of two sketches with its asymptotic probability; `None` where one is empty.
#[must_use]
pub fn kolmogorov_smirnov(reference: &Sketch, window: &Sketch) -> Option<Test> {
    let statistic = steps(reference, window)?.iter().map(|step| (step.1 - step.2).abs()).fold(0.0, f64::max);
    let (n, m) = (count(reference.count()), count(window.count()));
    Some(Test { statistic, probability: kolmogorov_tail(statistic * (n * m / (n + m)).sqrt()) })
}

/// Wasserstein distance of two sketches over the reference's standard deviation; `None` where one is empty.
#[must_use]
pub fn wasserstein(reference: &Sketch, window: &Sketch) -> Option<f64> {
    let steps = steps(reference, window)?;
    let area: f64 =
        steps.iter().zip(steps.iter().skip(1)).map(|(step, next)| (step.1 - step.2).abs() * (next.0 - step.0)).sum();
    Some(area / deviation(reference).max(0.001))
}

/// Middle of a bin; its finite edge where the other is infinite.
fn middle(low: f64, high: f64) -> f64 {
    match (low.is_finite(), high.is_finite()) {
        (true, true) => 0.5 * (low + high),
        (true, false) => low,
        _ => high,
    }
}

fn deviation(sketch: &Sketch) -> f64 {
    let (mut total, mut mean, mut squares) = (0.0, 0.0, 0.0);
    for bin in sketch.bins().iter().filter(|bin| bin.count > 0) {
        let (weight, value) = (count(bin.count), middle(bin.low, bin.high));
        total += weight;
        let difference = value - mean;
        mean += difference * weight / total;
        squares += weight * difference * (value - mean);
    }
    if total > 0.0 { (squares / total).sqrt() } else { 0.0 }
}

/// Values with the distribution functions of both sketches there, in rising order.
fn steps(first: &Sketch, second: &Sketch) -> Option<Vec<(f64, f64, f64)>> {
    if first.count() == 0 || second.count() == 0 {
        return None;
    }
    let mut masses: Vec<(f64, f64, f64)> = Vec::new();
    for bin in first.bins().iter().filter(|bin| bin.count > 0) {
        masses.push((middle(bin.low, bin.high), count(bin.count) / count(first.count()), 0.0));
    }
    for bin in second.bins().iter().filter(|bin| bin.count > 0) {
        masses.push((middle(bin.low, bin.high), 0.0, count(bin.count) / count(second.count())));
    }
    masses.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut joined: Vec<(f64, f64, f64)> = Vec::with_capacity(masses.len());
    let (mut left, mut right) = (0.0, 0.0);
    for (value, first, second) in masses {
        left += first;
        right += second;
        match joined.last_mut() {
            Some(last) if last.0.to_bits() == value.to_bits() => *last = (value, left, right),
            _ => joined.push((value, left, right)),
        }
    }
    Some(joined)
}

/// Probability that Kolmogorov's variable exceeds `x`.
fn kolmogorov_tail(x: f64) -> f64 {
    if x < 0.2 {
        return 1.0;
    }
    let mut sum = 0.0;
    for term in 1..=100 {
        let k = f64::from(term);
        let sign = if term % 2 == 1 { 1.0 } else { -1.0 };
        sum += sign * (-2.0 * k * k * x * x).exp();
    }
    (2.0 * sum).clamp(0.0, 1.0)
}

/// Edges of Sturges' equal bins over both samples together: `ceil(log2 n) + 1` bins from the least to the greatest value.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn sturges_edges(low: f64, high: f64, values: u64) -> Vec<f64> {
    // numpy: the width is the range over (log2 n + 1), the number of bins the range over that width, rounded up.
    let bins = (count(values.max(1)).log2() + 1.0).ceil() as usize;
    let (low, high) = if low < high { (low, high) } else { (low - 0.5, high + 0.5) };
    let width = (high - low) / count(u64::try_from(bins).unwrap_or(1));
    (0..=bins).map(|edge| low + width * count(u64::try_from(edge).unwrap_or(0))).collect()
}

/// Counts of both sketches in Sturges' bins, to ask for [`psi`] and [`jensen_shannon`] of numbers.
#[must_use]
pub fn binned(reference: &Sketch, window: &Sketch) -> Vec<(f64, f64)> {
    let values = |sketch: &Sketch| -> Vec<(f64, f64)> {
        let filled = sketch.bins().into_iter().filter(|bin| bin.count > 0);
        filled.map(|bin| (middle(bin.low, bin.high), count(bin.count))).collect()
    };
    let (left, right) = (values(reference), values(window));
    let all = || left.iter().chain(&right).map(|value| value.0);
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    if !low.is_finite() || !high.is_finite() {
        return Vec::new();
    }
    let edges = sturges_edges(low, high, reference.count() + window.count());
    let mut pairs = vec![(0.0, 0.0); edges.len() - 1];
    let last = pairs.len() - 1;
    let bin = |value: f64| edges.partition_point(|edge| *edge <= value).saturating_sub(1).min(last);
    for (value, weight) in left.iter().copied() {
        if let Some(pair) = pairs.get_mut(bin(value)) {
            pair.0 += weight;
        }
    }
    for (value, weight) in right.iter().copied() {
        if let Some(pair) = pairs.get_mut(bin(value)) {
            pair.1 += weight;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn distances_vanish_between_equals_and_never_else_go_below(pairs in prop::collection::vec((0u32..50, 0u32..50), 1..12)) {
            let pairs: Vec<(f64, f64)> = pairs.into_iter().map(|(a, b)| (a.into(), b.into())).collect();
            let equal: Vec<(f64, f64)> = pairs.iter().map(|pair| (pair.0, pair.0)).collect();
            for distance in [psi, jensen_shannon] {
                prop_assert!(distance(&equal).is_none_or(|distance| distance.abs() < 1e-9));
                prop_assert!(distance(&pairs).is_none_or(|distance| distance >= -1e-12));
            }
            if let (Some(one), Some(other)) = (
                jensen_shannon(&pairs), jensen_shannon(&pairs.iter().map(|pair| (pair.1, pair.0)).collect::<Vec<_>>()),
            ) {
                prop_assert!((one - other).abs() < 1e-12 && one <= std::f64::consts::LN_2.sqrt() + 1e-12);
            }
        }
    }

    #[test]
    fn nothing_has_no_distance() {
        let (empty, mut one) = (Sketch::default(), Sketch::default());
        one.add(1.0);
        assert_eq!(psi(&[(0.0, 3.0)]), None);
        assert_eq!(kolmogorov_smirnov(&empty, &one), None);
        assert_eq!(wasserstein(&one, &empty), None);
        assert_eq!(psi(&binned(&empty, &empty)), None);
    }
}
