//! Special functions behind the tests, over the crate `statrs`: tails of the normal and chi-squared distributions, and
//! the quantile of Student's t by Fisher's expansion.
//!
//! Every function is total: an argument outside the domain yields a value that claims nothing (0, 1 or infinity).

use statrs::distribution::{ChiSquared, ContinuousCDF, Normal};
use statrs::function::erf::erfc;

/// Natural logarithm of the standard normal distribution function at `x`; negative infinity below about -37.
pub(crate) fn ln_normal_cdf(x: f64) -> f64 {
    (0.5 * erfc(-x / std::f64::consts::SQRT_2)).ln()
}

/// Point that a standard normal variable exceeds with probability `tail`; infinite for a tail outside (0, 1).
pub(crate) fn normal_upper_point(tail: f64) -> f64 {
    if !(tail > 0.0 && tail < 1.0) {
        return f64::INFINITY;
    }
    -Normal::standard().inverse_cdf(tail)
}

/// Ratio of the point that Student's t with `freedom` degrees exceeds with probability `tail` to the normal one.
///
/// Fisher's expansion to the second order (Abramowitz and Stegun 26.7.5), at least 1; within 2 % for ten degrees and
/// tails down to 0.001. Below four degrees the expansion means nothing, and the ratio is infinite.
pub(crate) fn student_factor(tail: f64, freedom: f64) -> f64 {
    let z = normal_upper_point(tail);
    if !(z.is_finite() && z > 0.0) {
        return 1.0;
    }
    if freedom.is_nan() || freedom < 4.0 {
        return f64::INFINITY;
    }
    let square = z * z;
    let first = (square + 1.0) / (4.0 * freedom);
    let second = (5.0 * square * square + 16.0 * square + 3.0) / (96.0 * freedom * freedom);
    1.0 + first + second
}

/// Probability that a chi-squared variable with `freedom` degrees exceeds `statistic`; 1 where that is undefined.
pub(crate) fn chi_squared_tail(statistic: f64, freedom: f64) -> f64 {
    match ChiSquared::new(freedom) {
        Ok(distribution) if statistic.is_finite() => distribution.sf(statistic.max(0.0)),
        _ => 1.0,
    }
}

/// Natural logarithm of `1 / (1 + exp(-x))`, exact to rounding at both ends.
pub(crate) fn ln_logistic(x: f64) -> f64 {
    if x >= 0.0 { -(-x).exp().ln_1p() } else { x - x.exp().ln_1p() }
}

/// Log-odds of `share`, which is held within 1e-12 of 0 and 1 so that the result is finite.
pub(crate) fn logit(share: f64) -> f64 {
    let share = share.clamp(1e-12, 1.0 - 1e-12);
    (share / (1.0 - share)).ln()
}

/// Mixes the bits of a 64-bit value (finaliser of SplitMix64), so that any bits of the result may choose a bucket.
pub(crate) fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use statrs::distribution::StudentsT;

    #[test]
    fn student_factor_agrees_with_the_quantile_of_student_t() {
        for (freedom, tolerance) in [(8.0, 0.04), (12.0, 0.02), (30.0, 0.003), (127.0, 0.0005)] {
            for tail in [0.01, 0.001_43] {
                let exact = -StudentsT::new(0.0, 1.0, freedom).unwrap().inverse_cdf(tail) / normal_upper_point(tail);
                let ours = student_factor(tail, freedom);
                assert!((ours / exact - 1.0).abs() < tolerance, "{freedom} {tail}: {ours} against {exact}");
            }
        }
        assert!(student_factor(0.01, 3.0).is_infinite());
        assert!(student_factor(0.01, f64::NAN).is_infinite());
    }

    #[test]
    fn logistic_and_logit_are_inverse_and_finite() {
        for share in [0.0, 1e-9, 0.2, 0.5, 0.999, 1.0] {
            let there = logit(share);
            assert!(there.is_finite());
            assert!((ln_logistic(there).exp() - share).abs() < 2e-12);
        }
        assert!(ln_logistic(-800.0) <= -799.0 && ln_logistic(800.0) == 0.0);
    }
}
