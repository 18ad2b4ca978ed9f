//! Operations along rows of activations: norms, rotation, functions. Each works on one row; input and output may be
//! the same.

use super::unit::{LANES, Unit};
use crate::exec::Function;

/// `out = x / sqrt(mean(x²) + eps) * weight` (arXiv:1910.07467).
///
/// # Safety
/// The processor has the unit; all three have `n` values.
#[inline(always)]
pub(super) unsafe fn rms_norm<U: Unit>(x: *const f32, weight: *const f32, n: usize, eps: f32, out: *mut f32) {
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [U::splat(0.0); 2];
        for at in (0..n).step_by(LANES) {
            let v = U::load_part(x.add(at), n - at, 0.0);
            let sum = &mut sums[at / LANES % 2];
            *sum = U::fma(v, v, *sum);
        }
        let [even, odd] = sums;
        let scale = U::splat(1.0 / (U::sum(U::add(even, odd)) / n as f32 + eps).sqrt());
        for at in (0..n).step_by(LANES) {
            let left = n - at;
            let v = U::mul(U::load_part(x.add(at), left, 0.0), scale);
            U::store_part(out.add(at), left, U::mul(v, U::load_part(weight.add(at), left, 0.0)));
        }
    }
}

/// `out = (x - mean(x)) / sqrt(variance(x) + eps) * weight + bias` (arXiv:1607.06450).
///
/// # Safety
/// The processor has the unit; all four have `n` values.
#[inline(always)]
pub(super) unsafe fn layer_norm<U: Unit>(
    x: *const f32,
    weight: *const f32,
    bias: *const f32,
    n: usize,
    eps: f32,
    out: *mut f32,
) {
    // SAFETY: as the caller says.
    unsafe {
        let mut sum = U::splat(0.0);
        for at in (0..n).step_by(LANES) {
            sum = U::add(sum, U::load_part(x.add(at), n - at, 0.0));
        }
        let mean = U::sum(sum) / n as f32;
        let mut sum = U::splat(0.0);
        for at in (0..n).step_by(LANES) {
            let v = U::sub(U::load_part(x.add(at), n - at, mean), U::splat(mean));
            sum = U::fma(v, v, sum);
        }
        let scale = U::splat(1.0 / (U::sum(sum) / n as f32 + eps).sqrt());
        for at in (0..n).step_by(LANES) {
            let left = n - at;
            let v = U::mul(U::sub(U::load_part(x.add(at), left, 0.0), U::splat(mean)), scale);
            let v = U::fma(v, U::load_part(weight.add(at), left, 0.0), U::load_part(bias.add(at), left, 0.0));
            U::store_part(out.add(at), left, v);
        }
    }
}

/// `out += x * scale`.
///
/// # Safety
/// The processor has the unit; both have `n` values.
#[inline(always)]
pub(super) unsafe fn add<U: Unit>(x: *const f32, scale: f32, n: usize, out: *mut f32) {
    // SAFETY: as the caller says.
    unsafe {
        for at in (0..n).step_by(LANES) {
            let left = n - at;
            let v = U::fma(U::load_part(x.add(at), left, 0.0), U::splat(scale), U::load_part(out.add(at), left, 0.0));
            U::store_part(out.add(at), left, v);
        }
    }
}

/// `out = function(x)`, times `by` unless null (arXiv:2002.05202).
///
/// # Safety
/// The processor has the unit; all have `n` values, or `by` is null.
#[inline(always)]
pub(super) unsafe fn apply<U: Unit>(f: Function, x: *const f32, by: *const f32, n: usize, out: *mut f32) {
    for at in (0..n).step_by(LANES) {
        let left = n - at;
        // SAFETY: as the caller says.
        unsafe {
            let v = function::<U>(f, U::load_part(x.add(at), left, 0.0));
            let v = if by.is_null() { v } else { U::mul(v, U::load_part(by.add(at), left, 0.0)) };
            U::store_part(out.add(at), left, v);
        }
    }
}

/// `1 / (1 + exp(-x))`. A function, not a closure: closures are compiled without the vector unit.
#[inline(always)]
unsafe fn sigmoid<U: Unit>(x: U::V) -> U::V {
    // SAFETY: as the caller says.
    unsafe {
        let one = U::splat(1.0);
        U::div(one, U::add(one, U::exp(U::sub(U::splat(0.0), x))))
    }
}

#[inline(always)]
unsafe fn function<U: Unit>(f: Function, x: U::V) -> U::V {
    // SAFETY: as the caller says.
    unsafe {
        match f {
            Function::Silu => U::mul(x, sigmoid::<U>(x)),
            Function::Relu => U::max(x, U::splat(0.0)),
            // tanh(x) = 2 * sigmoid(2x) - 1.
            Function::Tanh => U::fma(sigmoid::<U>(U::add(x, x)), U::splat(2.0), U::splat(-1.0)),
            Function::GeluTanh => {
                let cubic = U::fma(U::mul(U::mul(x, x), x), U::splat(0.044_715), x);
                // x * (1 + tanh(y)) / 2 = x * sigmoid(2y), with 2 * sqrt(2 / pi).
                U::mul(x, sigmoid::<U>(U::mul(cubic, U::splat(1.595_769))))
            }
            Function::Gelu => {
                // 1 - erf(a) by Abramowitz and Stegun 7.1.26, within 1.5e-7, for a = |x| / sqrt(2).
                let a = U::mul(U::abs(x), U::splat(std::f32::consts::FRAC_1_SQRT_2));
                let t = U::div(U::splat(1.0), U::fma(a, U::splat(0.327_591_1), U::splat(1.0)));
                let mut p = U::splat(1.061_405_4);
                for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6, 0.0] {
                    p = U::fma(p, t, U::splat(c));
                }
                let rest = U::mul(p, U::exp(U::sub(U::splat(0.0), U::mul(a, a))));
                // x * Φ(x) is max(x, 0) less |x| * (1 - erf(a)) / 2.
                let tail = U::mul(U::mul(U::abs(x), rest), U::splat(0.5));
                U::sub(U::max(x, U::splat(0.0)), tail)
            }
        }
    }
}

/// Rotates pairs of a head by `table`, cosine and sine of each pair in turn (RoPE, arXiv:2104.09864): values `2i` and
/// `2i + 1`.
///
/// # Safety
/// `head` and `table` have `2 * pairs` values.
#[inline(always)]
pub(super) unsafe fn rotate_neighbours(head: *mut f32, table: *const f32, pairs: usize) {
    for pair in 0..pairs {
        // SAFETY: as the caller says.
        unsafe { rotate(head.add(2 * pair), head.add(2 * pair + 1), table.add(2 * pair)) }
    }
}

/// As [`rotate_neighbours`], with values `i` and `i + pairs`.
///
/// # Safety
/// `head` and `table` have `2 * pairs` values.
#[inline(always)]
pub(super) unsafe fn rotate_halves(head: *mut f32, table: *const f32, pairs: usize) {
    for pair in 0..pairs {
        // SAFETY: as the caller says.
        unsafe { rotate(head.add(pair), head.add(pair + pairs), table.add(2 * pair)) }
    }
}

#[inline(always)]
unsafe fn rotate(first: *mut f32, second: *mut f32, table: *const f32) {
    // SAFETY: as the caller says.
    unsafe {
        let (a, b) = (*first, *second);
        let (cos, sin) = (*table, *table.add(1));
        *first = a * cos - b * sin;
        *second = a * sin + b * cos;
    }
}
