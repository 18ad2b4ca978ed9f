//! Vector units of CPUs: the supported ones, and the few steps of which kernels consist on each of them. Kernels are
//! written once over [`Unit`]; [`super::kernels`] compiles them for each unit. Knows no model.

#![allow(clippy::inline_always, reason = "outside of a function that is compiled for the unit these would be calls")]

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
mod choose;
#[cfg(target_arch = "aarch64")]
pub(super) mod neon;
pub(super) mod portable;

use half::{bf16, f16};

pub use choose::CpuUnit;

/// Floats of a vector in operations other than matrix products.
pub(super) const LANES: usize = 16;
/// Most queries of a tile of attention on any unit.
pub(super) const QUERIES: usize = 12;
/// Values of a block of quantised weights and activations.
pub(super) const BLOCK: usize = 32;

/// A vector unit.
///
/// Two widths: [`LANES`] floats for operations along a row of activations, and `ROWS` for matrix products. Those fill
/// one register or two, and each lane is a row of weights. Weights of `ROWS` rows lie side by side, four columns of
/// each in turn.
///
/// # Safety
/// The processor must have the unit, and pointers must lead to as many values as the function reads or writes. No
/// alignment is needed.
pub(super) trait Unit: 'static {
    /// Rows of weights side by side.
    const ROWS: usize;
    /// Most rows of activations that share an unpacked weight: as many as the registers hold.
    const TILE: usize;
    /// Most queries that share keys and values of attention, at most [`QUERIES`], and vectors of each that are
    /// computed together, 1 or 2: as many as the registers hold.
    const QUERIES: usize;
    const VECTORS: usize;
    /// True if bytes of weights are stored unchanged; false if 128 is added, which the sums of activations
    /// compensate.
    const SIGNED: bool;

    /// [`LANES`] floats.
    type V: Copy;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(from: *const f32) -> Self::V;
    unsafe fn load_f16(from: *const f16) -> Self::V;
    unsafe fn store(to: *mut f32, v: Self::V);
    unsafe fn store_f16(to: *mut f16, v: Self::V);
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// `a * b + c`.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    unsafe fn abs(a: Self::V) -> Self::V;
    /// `a * 2^n` for whole `n` that keep it normal.
    unsafe fn scale2(a: Self::V, n: Self::V) -> Self::V;
    /// Stores integers from -127 to 127 as bytes.
    unsafe fn store_i8(to: *mut i8, v: Self::V);

    /// `ROWS` floats.
    type F: Copy;
    /// `ROWS` integers.
    type I: Copy;
    unsafe fn f_splat(x: f32) -> Self::F;
    unsafe fn f_load(from: *const f32) -> Self::F;
    unsafe fn f_load_f16(from: *const f16) -> Self::F;
    unsafe fn f_load_bf16(from: *const bf16) -> Self::F;
    unsafe fn f_store(to: *mut f32, v: Self::F);
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    unsafe fn to_f(a: Self::I) -> Self::F;
    /// Products of a block of 4-bit weights, or of 5-bit weights if `FIVE`, with `T` blocks of 32 activations at `x`.
    /// `weights` are four chunks of 4 bytes for each row and one of fifth bits. Low halves of the bytes are columns 0
    /// to 15, high halves 16 to 31. In a byte of fifth bits, bit `n` belongs to the low half of chunk `n`, bit `4 +
    /// n` to its high half.
    unsafe fn nibbles<const T: usize, const FIVE: bool>(weights: *const u8, x: *const i8) -> [Self::I; T];
    /// Products of one half of a block of 6-bit weights: four chunks as above, then two of upper bits, the first for
    /// chunks 0 and 1, the other for 2 and 3. Of a byte of these, bits 0 and 1 belong to the low half of the first;
    /// the low half of the second and the high halves follow. `start` is -32 times the sum of these `T` halves of
    /// activations.
    unsafe fn sixes<const T: usize, const HALF: usize>(
        weights: *const u8,
        x: *const i8,
        start: *const i32,
    ) -> [Self::I; T];
    /// Products of a block of 8-bit weights with `T` blocks of 32 activations. `start` is -128 times the sum of each
    /// of these, for units that store weights with 128 added.
    unsafe fn bytes<const T: usize>(weights: *const u8, x: *const i8, start: *const i32) -> [Self::I; T];
    /// Prefetches what will be read soon. Any address is allowed.
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        let _ = at;
    }

    /// e^x (within 2 ulp); below -87 it stays at e^-87.
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        // SAFETY: as the trait says.
        unsafe {
            let x = Self::min(Self::max(x, Self::splat(-87.0)), Self::splat(88.0));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // ln 2 in two parts, so that the remainder is exact (Cody and Waite).
            let r = Self::fma(n, Self::splat(-0.693_145_75), x);
            let r = Self::fma(n, Self::splat(-1.428_606_8e-6), r);
            // Taylor's series to the sixth power: |r| <= ln 2 / 2.
            let mut p = Self::splat(1.0 / 720.0);
            for c in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = Self::fma(p, r, Self::splat(c));
            }
            Self::scale2(p, n)
        }
    }
    /// Sums all lanes, in one fixed order.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: as the trait says; there is room for all lanes.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let mut width = LANES / 2;
        while width > 0 {
            let (low, high) = lanes.split_at_mut(width);
            low.iter_mut().zip(high).for_each(|(a, b)| *a += *b);
            width /= 2;
        }
        lanes.first().copied().unwrap_or_default()
    }
    /// The largest lane.
    #[inline(always)]
    unsafe fn most(v: Self::V) -> f32 {
        let mut lanes = [0.0f32; LANES];
        // SAFETY: as the trait says; there is room for all lanes.
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        lanes.iter().copied().fold(f32::NEG_INFINITY, f32::max)
    }
    /// Loads the first `n` of [`LANES`] floats, `other` in the rest.
    #[inline(always)]
    unsafe fn load_part(from: *const f32, n: usize, other: f32) -> Self::V {
        // SAFETY: `n` floats can be read, as the caller says.
        unsafe {
            if n >= LANES {
                return Self::load(from);
            }
            let mut part = [other; LANES];
            std::ptr::copy_nonoverlapping(from, part.as_mut_ptr(), n);
            Self::load(part.as_ptr())
        }
    }
    /// Stores the first `n` lanes.
    #[inline(always)]
    unsafe fn store_part(to: *mut f32, n: usize, v: Self::V) {
        // SAFETY: `n` floats can be written, as the caller says.
        unsafe {
            if n >= LANES {
                return Self::store(to, v);
            }
            let mut part = [0.0f32; LANES];
            Self::store(part.as_mut_ptr(), v);
            std::ptr::copy_nonoverlapping(part.as_ptr(), to, n);
        }
    }
}
