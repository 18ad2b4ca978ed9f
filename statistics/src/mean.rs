//! Comparison of means, valid at every look: latency, tokens per second, cost, output length, feedback.
//!
//! **Model.** Observations of the two versions have finite variances; units are independent ([`crate::units`]). The
//! contrast is linear in both means (`m1 - m0 - d`, `m1 - r * m0`, `m1 - c`), so a ratio needs no division by a noisy
//! mean: for `r` it is tested whether `m1 - r * m0` is above 0 (Fieller's way).
//!
//! **Evidence.** With contrast `D` of variance `V`, and a half-normal mixture of effects of scale `T`, the e-value against
//! "not above 0" is
//!
//! ```text
//! E = 2 / sqrt(1 + R) * exp(D^2 / (2 V) * R / (1 + R)) * Phi(D / sqrt(V) * sqrt(R / (1 + R))),   R = T^2 / V
//! ```
//!
//! the one-sided normal mixture of Robbins, always valid as in Johari et al. (arXiv 1512.04922). With the estimated
//! variance put in, it is the asymptotic confidence sequence of Waudby-Smith et al. (DOI 10.1214/24-AOS2408, one-sided
//! form) in the parameter `rho^2 = T^2 / sigma^4`. `T` stays fixed while `V` shrinks: `R = q n / n*`, where
//! `q = -2 ln a + ln(-2 ln a) + 1` makes the bound tightest at `n*` requests of the candidate. A fixed `R` would be no
//! martingale; its false alarms reach one.
//!
//! **Guarantee.** Asymptotic: the probability that the e-value of a fine candidate ever reaches `1/a` after the minimum
//! sample tends to at most `a` as the minimum grows. `V` is the larger of the variance between units and that of
//! independent requests, times the square of Student's factor for few units.
//!
//! **Heavy tails.** A cap winsorises: values above are counted as the cap at both versions, and the comparison is of
//! capped means. The cap must not depend on the rollout's own values (take the stable version's 99.5th percentile before
//! it); the share cut at each version is reported.

use crate::special::{ln_normal_cdf, student_factor};
use crate::threshold::{Line, Side};
use crate::units::{Sample, count, joined_freedom};

/// Settings of the evidence about means.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    /// Level at which the bound is tightest, and of Student's factor.
    pub(crate) level: f64,
    /// Requests of the candidate at which the bound is tightest.
    pub(crate) tightest_at: f64,
}

/// Logarithm of the e-value against a contrast of at most 0, from its estimate in standard errors and `R`.
pub(crate) fn ln_evidence(z: f64, mixture: f64) -> f64 {
    let part = mixture / (1.0 + mixture);
    std::f64::consts::LN_2 - 0.5 * mixture.ln_1p() + 0.5 * z * z * part + ln_normal_cdf(z * part.sqrt())
}

/// `q` of the module's text: the `R` of a bound that is tightest now.
pub(crate) fn tightest(level: f64) -> f64 {
    let twice = -2.0 * level.ln();
    twice + twice.ln() + 1.0
}

/// Contrast of two samples about a line, above 0 where the candidate is above, with its variance.
pub(crate) fn contrast(stable: &Sample, candidate: &Sample, line: Line, level: f64) -> (f64, f64) {
    let weight = match line {
        Line::Shift(_) => 1.0,
        Line::Ratio(ratio) => ratio,
        Line::Fixed(_) => 0.0,
    };
    let estimate = candidate.mean() - line.at(stable.mean());
    let (ours, theirs) = (candidate.spread(), stable.spread());
    let square = weight * weight;
    let join = |of_candidate: f64, of_stable: f64| {
        if square == 0.0 { of_candidate } else { of_candidate + square * of_stable }
    };
    let freedom = if square == 0.0 {
        ours.freedom
    } else {
        joined_freedom((ours.clustered, ours.freedom), (square * theirs.clustered, theirs.freedom))
    };
    let factor = student_factor(level, freedom);
    let clustered = join(ours.clustered, theirs.clustered) * factor * factor;
    (estimate, clustered.max(join(ours.independent, theirs.independent)))
}

/// Logarithm of the e-value that the candidate's mean is on `side` of the line, as if `scale` times the data had come.
pub(crate) fn ln_evidence_for(
    stable: &Sample,
    candidate: &Sample,
    line: Line,
    side: Side,
    setting: Setting,
    scale: f64,
) -> f64 {
    let (estimate, variance) = contrast(stable, candidate, line, setting.level);
    if !(variance.is_finite() && estimate.is_finite()) {
        return 0.0;
    }
    let variance = variance / scale;
    let mixture = tightest(setting.level) * count(candidate.count()) * scale / setting.tightest_at;
    if variance <= 0.0 {
        // Every value alike at both versions: nothing to estimate a variance from, so no claim.
        return 0.0;
    }
    ln_evidence(side.sign() * estimate / variance.sqrt(), mixture)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The package of the authors of confidence sequences computes the same evidence; `confseq.py` made its figures.
    #[test]
    fn evidence_agrees_with_confseq() {
        let reference: serde_json::Value =
            serde_json::from_str(include_str!("../tests/oracles/confseq.json")).expect("figures of confseq");
        let rows = reference["rows"].as_array().expect("rows");
        assert_eq!(rows.len(), 40);
        for row in rows {
            let [z, ratio, theirs] = ["z", "ratio", "logEvidence"].map(|name| row[name].as_f64().expect("a number"));
            let ours = ln_evidence(z, ratio);
            assert!((ours - theirs).abs() < 1e-9, "{z} {ratio}: {ours} against {theirs}");
        }
    }

    /// `E` is the integral over effects of the ratio of normal densities, weighted by the half-normal density.
    #[test]
    fn evidence_is_the_half_normal_mixture_of_likelihood_ratios() {
        for (z, mixture) in [(0.0, 1.0), (3.0, 13.0), (-1.5, 4.0), (4.5, 0.2)] {
            let scale = f64::sqrt(mixture);
            let steps = 200_000;
            let width = 12.0 * scale / f64::from(steps);
            let mut integral = 0.0;
            for step in 0..steps {
                let effect = (f64::from(step) + 0.5) * width;
                let density =
                    2.0 / (scale * (2.0 * std::f64::consts::PI).sqrt()) * (-0.5 * (effect / scale).powi(2)).exp();
                integral += density * (z * effect - 0.5 * effect * effect).exp() * width;
            }
            assert!((ln_evidence(z, mixture) - integral.ln()).abs() < 1e-6, "{z} {mixture}");
        }
    }

    #[test]
    fn values_all_alike_claim_nothing() {
        let mut sample = Sample::default();
        for unit in 0..500 {
            sample.observe(unit, 1.0, false);
        }
        let setting = Setting { level: 0.01, tightest_at: 500.0 };
        assert_eq!(ln_evidence_for(&sample, &sample, Line::Shift(-1.0), Side::Above, setting, 1.0), 0.0);
    }
}
