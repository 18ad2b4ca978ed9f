//! NEON, which every 64-bit ARM processor has, and NEON with the dot product of ARMv8.2.
//!
//! A group is eight rows of weights in two registers, so that each loaded vector of activations is used twice.

use std::arch::aarch64::*;
use std::arch::asm;

use half::{bf16, f16};

use super::Unit;

/// NEON; the parameter adds the dot product, which multiplies bytes in one instruction instead of two.
pub(crate) struct Neon<const DOT: bool>;

macro_rules! all {
    ($f:ident, $a:expr) => {
        // SAFETY: as the trait says.
        $a.map(|a| unsafe { $f(a) })
    };
    ($f:ident, $a:expr, $b:expr) => {{
        let ([a0, a1, a2, a3], [b0, b1, b2, b3]) = ($a, $b);
        // SAFETY: as the trait says.
        unsafe { [$f(a0, b0), $f(a1, b1), $f(a2, b2), $f(a3, b3)] }
    }};
    ($f:ident, $a:expr, $b:expr, $c:expr) => {{
        let ([a0, a1, a2, a3], [b0, b1, b2, b3], [c0, c1, c2, c3]) = ($a, $b, $c);
        // SAFETY: as the trait says.
        unsafe { [$f(a0, b0, c0), $f(a1, b1, c1), $f(a2, b2, c2), $f(a3, b3, c3)] }
    }};
}

impl<const DOT: bool> Unit for Neon<DOT> {
    const ROWS: usize = 8;
    const TILE: usize = 4;
    const QUERIES: usize = 6;
    const VECTORS: usize = 1;
    const SIGNED: bool = true;

    type V = [float32x4_t; 4];
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: as the trait says.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: as the trait says.
        unsafe { [vld1q_f32(from), vld1q_f32(from.add(4)), vld1q_f32(from.add(8)), vld1q_f32(from.add(12))] }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::V {
        // SAFETY: as the trait says.
        unsafe {
            let ([a, b], [c, d]) = (Self::f_load_f16(from), Self::f_load_f16(from.add(8)));
            [a, b, c, d]
        }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, [a, b, c, d]: Self::V) {
        // SAFETY: as the trait says.
        unsafe {
            vst1q_f32(to, a);
            vst1q_f32(to.add(4), b);
            vst1q_f32(to.add(8), c);
            vst1q_f32(to.add(12), d);
        }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, [a, b, c, d]: Self::V) {
        // SAFETY: as the trait says.
        unsafe {
            vst1q_u16(to.cast(), halves(a, b));
            vst1q_u16(to.add(8).cast(), halves(c, d));
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        all!(vaddq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        all!(vsubq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        all!(vmulq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        all!(vdivq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        all!(vmaxq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        all!(vminq_f32, a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // NEON adds to its first factor.
        all!(vfmaq_f32, c, a, b)
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        all!(vrndnq_f32, a)
    }
    #[inline(always)]
    unsafe fn abs(a: Self::V) -> Self::V {
        all!(vabsq_f32, a)
    }
    #[inline(always)]
    unsafe fn scale2(a: Self::V, n: Self::V) -> Self::V {
        let powers = all!(power_of_two, n);
        all!(vmulq_f32, a, powers)
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, v: Self::V) {
        let [a, b, c, d] = all!(vcvtnq_s32_f32, v);
        // SAFETY: as the trait says.
        unsafe {
            let low = vcombine_s16(vmovn_s32(a), vmovn_s32(b));
            let high = vcombine_s16(vmovn_s32(c), vmovn_s32(d));
            vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
    }

    type F = [float32x4_t; 2];
    type I = [int32x4_t; 2];
    #[inline(always)]
    unsafe fn f_splat(x: f32) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    unsafe fn f_load(from: *const f32) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { [vld1q_f32(from), vld1q_f32(from.add(4))] }
    }
    #[inline(always)]
    unsafe fn f_load_f16(from: *const f16) -> Self::F {
        // SAFETY: as the trait says.
        unsafe {
            let halves = vreinterpretq_f16_u16(vld1q_u16(from.cast()));
            [vcvt_f32_f16(vget_low_f16(halves)), vcvt_high_f32_f16(halves)]
        }
    }
    #[inline(always)]
    unsafe fn f_load_bf16(from: *const bf16) -> Self::F {
        // SAFETY: as the trait says. A bf16 is the upper half of an f32.
        unsafe {
            let halves = vld1q_u16(from.cast());
            let (low, high) = (vshll_n_u16::<16>(vget_low_u16(halves)), vshll_high_n_u16::<16>(halves));
            [vreinterpretq_f32_u32(low), vreinterpretq_f32_u32(high)]
        }
    }
    #[inline(always)]
    unsafe fn f_store(to: *mut f32, [a, b]: Self::F) {
        // SAFETY: as the trait says.
        unsafe {
            vst1q_f32(to, a);
            vst1q_f32(to.add(4), b);
        }
    }
    #[inline(always)]
    unsafe fn f_add([a0, a1]: Self::F, [b0, b1]: Self::F) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { [vaddq_f32(a0, b0), vaddq_f32(a1, b1)] }
    }
    #[inline(always)]
    unsafe fn f_mul([a0, a1]: Self::F, [b0, b1]: Self::F) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { [vmulq_f32(a0, b0), vmulq_f32(a1, b1)] }
    }
    #[inline(always)]
    unsafe fn f_fma([a0, a1]: Self::F, [b0, b1]: Self::F, [c0, c1]: Self::F) -> Self::F {
        // SAFETY: as the trait says. NEON adds to its first factor.
        unsafe { [vfmaq_f32(c0, a0, b0), vfmaq_f32(c1, a1, b1)] }
    }
    #[inline(always)]
    unsafe fn to_f([a, b]: Self::I) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { [vcvtq_f32_s32(a), vcvtq_f32_s32(b)] }
    }
    #[inline(always)]
    unsafe fn nibbles<const T: usize, const FIVE: bool>(weights: *const u8, x: *const i8) -> [Self::I; T] {
        // SAFETY: as the trait says.
        unsafe {
            let mask = vdupq_n_u8(15);
            let mut sums = [[vdupq_n_s32(0); 2]; T];
            // Without the dot product, two sums of 16 bits for each row: eight products of at most 31 * 127 stay below 2^15.
            let mut pairs = [[[vdupq_n_s16(0); 2]; 2]; T];
            macro_rules! chunk {
                ($n:literal) => {
                    for half in 0..2 {
                        let both = vld1q_u8(weights.add($n * 32 + half * 16));
                        let (mut low, mut high) = (vandq_u8(both, mask), vshrq_n_u8::<4>(both));
                        if FIVE {
                            let fifth = vld1q_u8(weights.add(4 * 32 + half * 16));
                            low = vorrq_u8(low, vandq_u8(vshlq_n_u8::<{ 4 - $n }>(fifth), vdupq_n_u8(16)));
                            high = vorrq_u8(high, vandq_u8(shifted::<$n>(fifth), vdupq_n_u8(16)));
                        }
                        let (low, high) = (vreinterpretq_s8_u8(low), vreinterpretq_s8_u8(high));
                        for (t, (sums, pairs)) in sums.iter_mut().zip(&mut pairs).enumerate() {
                            let (x_low, x_high) = (vld1q_s8(x.add(t * 32)), vld1q_s8(x.add(t * 32 + 16)));
                            if DOT {
                                sums[half] = dot::<$n>(dot::<$n>(sums[half], low, x_low), high, x_high);
                            } else {
                                let products = multiply(pairs[half], low, four::<$n>(x_low));
                                pairs[half] = multiply(products, high, four::<$n>(x_high));
                            }
                        }
                    }
                };
            }
            chunk!(0);
            chunk!(1);
            chunk!(2);
            chunk!(3);
            if !DOT {
                for (sums, [first, second]) in sums.iter_mut().zip(pairs) {
                    *sums = [fold(first), fold(second)];
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn sixes<const T: usize, const HALF: usize>(
        weights: *const u8,
        x: *const i8,
        start: *const i32,
    ) -> [Self::I; T] {
        // SAFETY: as the trait says.
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 2]; T];
            for (t, sums) in sums.iter_mut().enumerate() {
                *sums = [vdupq_n_s32(start.add(t).read_unaligned()); 2];
            }
            // Without the dot product: four products of at most 63 * 127 stay below 2^15.
            let mut pairs = [[[vdupq_n_s16(0); 2]; 2]; T];
            macro_rules! chunk {
                ($n:literal) => {
                    for half in 0..2 {
                        let both = vld1q_u8(weights.add($n * 32 + half * 16));
                        let upper = vld1q_u8(weights.add((4 + $n / 2) * 32 + half * 16));
                        let (lower, upper) = if HALF == 0 {
                            (vandq_u8(both, vdupq_n_u8(15)), vshlq_n_u8::<{ 4 - $n % 2 * 2 }>(upper))
                        } else {
                            (vshrq_n_u8::<4>(both), shifted::<{ $n % 2 * 2 }>(upper))
                        };
                        let w = vreinterpretq_s8_u8(vorrq_u8(lower, vandq_u8(upper, vdupq_n_u8(0x30))));
                        for (t, (sums, pairs)) in sums.iter_mut().zip(&mut pairs).enumerate() {
                            let x = vld1q_s8(x.add(t * 32 + HALF * 16));
                            if DOT {
                                sums[half] = dot::<$n>(sums[half], w, x);
                            } else {
                                pairs[half] = multiply(pairs[half], w, four::<$n>(x));
                            }
                        }
                    }
                };
            }
            chunk!(0);
            chunk!(1);
            chunk!(2);
            chunk!(3);
            if !DOT {
                for (sums, pairs) in sums.iter_mut().zip(pairs) {
                    for (sum, pairs) in sums.iter_mut().zip(pairs) {
                        *sum = vaddq_s32(*sum, fold(pairs));
                    }
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn bytes<const T: usize>(weights: *const u8, x: *const i8, _: *const i32) -> [Self::I; T] {
        // SAFETY: as the trait says.
        unsafe {
            let mut sums = [[vdupq_n_s32(0); 2]; T];
            // Four groups have 16 columns: one register of activations.
            for four_groups in 0..2 {
                for half in 0..2 {
                    let mut w = [vdupq_n_s8(0); 4];
                    for (group, w) in w.iter_mut().enumerate() {
                        *w = vld1q_s8(weights.add((four_groups * 4 + group) * 32 + half * 16).cast());
                    }
                    let [w0, w1, w2, w3] = w;
                    for (t, sums) in sums.iter_mut().enumerate() {
                        let x = vld1q_s8(x.add(t * 32 + four_groups * 16));
                        let sum = &mut sums[half];
                        if DOT {
                            *sum = dot::<1>(dot::<0>(*sum, w0, x), w1, x);
                            *sum = dot::<3>(dot::<2>(*sum, w2, x), w3, x);
                        } else {
                            // In 16 bits: two products of at most 128 * 127 stay below 2^15.
                            let none = [vdupq_n_s16(0); 2];
                            let first = multiply(multiply(none, w0, four::<0>(x)), w1, four::<1>(x));
                            let second = multiply(multiply(none, w2, four::<2>(x)), w3, four::<3>(x));
                            *sum = vaddq_s32(*sum, vaddq_s32(fold(first), fold(second)));
                        }
                    }
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a hint, which no address makes fault. Its intrinsic is not stable.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) at, options(nostack, preserves_flags, readonly)) }
    }
}

/// Adds to each lane the products of its four bytes of `weights` with the four of `x` at index `N`.
///
/// # Safety
/// The processor has the dot product.
#[inline(always)]
unsafe fn dot<const N: i32>(mut sum: int32x4_t, weights: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: as the caller says. Assembly, since `vdotq_laneq_s32` is stable only from Rust 1.98 on.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {weights:v}.16b, {x:v}.4b[{n}]",
            sum = inout(vreg) sum,
            weights = in(vreg) weights,
            x = in(vreg) x,
            n = const N,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Shifts bytes right by `N`, which may be 0.
#[inline(always)]
unsafe fn shifted<const N: i8>(bytes: uint8x16_t) -> uint8x16_t {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { vshlq_u8(bytes, vdupq_n_s8(-N)) }
}

/// Broadcasts the four activations at index `N` to all lanes.
#[inline(always)]
unsafe fn four<const N: i32>(x: int8x16_t) -> int8x16_t {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { vreinterpretq_s8_s32(vdupq_laneq_s32::<N>(vreinterpretq_s32_s8(x))) }
}

/// Adds products of bytes, each in a lane of its own.
#[inline(always)]
unsafe fn multiply([first, second]: [int16x8_t; 2], weights: int8x16_t, x: int8x16_t) -> [int16x8_t; 2] {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { [vmlal_s8(first, vget_low_s8(weights), vget_low_s8(x)), vmlal_high_s8(second, weights, x)] }
}

/// Sums each four neighbours.
#[inline(always)]
unsafe fn fold([first, second]: [int16x8_t; 2]) -> int32x4_t {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { vpaddq_s32(vpaddlq_s16(first), vpaddlq_s16(second)) }
}

/// Converts eight floats to 16 bits, to the nearest, ties to even.
#[inline(always)]
unsafe fn halves(a: float32x4_t, b: float32x4_t) -> uint16x8_t {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(a), b)) }
}

/// `2^n` for whole `n`.
#[inline(always)]
unsafe fn power_of_two(n: float32x4_t) -> float32x4_t {
    // SAFETY: every 64-bit ARM processor has NEON.
    unsafe { vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)))) }
}
