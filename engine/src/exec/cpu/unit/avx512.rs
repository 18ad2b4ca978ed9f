//! AVX-512 with VNNI.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Unit;

/// AVX-512 (F, BW, VL, VNNI).
pub(crate) struct Avx512;

macro_rules! one {
    ($f:ident $(, $a:expr)*) => {{
        // SAFETY: as the trait says.
        unsafe { $f($($a),*) }
    }};
}

impl Unit for Avx512 {
    const ROWS: usize = 16;
    const TILE: usize = 8;
    const QUERIES: usize = 12;
    const VECTORS: usize = 2;
    const SIGNED: bool = false;

    type V = __m512;
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        one!(_mm512_set1_ps, x)
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        one!(_mm512_loadu_ps, from)
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::V {
        // SAFETY: as the trait says.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        one!(_mm512_storeu_ps, to, v)
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        one!(_mm512_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        one!(_mm512_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        one!(_mm512_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        one!(_mm512_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        one!(_mm512_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        one!(_mm512_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        one!(_mm512_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        // SAFETY: as the trait says.
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::V) -> Self::V {
        one!(_mm512_abs_ps, a)
    }
    #[inline(always)]
    unsafe fn scale2(a: Self::V, n: Self::V) -> Self::V {
        one!(_mm512_scalef_ps, a, n)
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, v: Self::V) {
        // SAFETY: as the trait says.
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, v: Self::V) {
        // SAFETY: as the trait says.
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        one!(_mm512_reduce_add_ps, v)
    }
    #[inline(always)]
    unsafe fn most(v: Self::V) -> f32 {
        one!(_mm512_reduce_max_ps, v)
    }

    type F = __m512;
    type I = __m512i;
    #[inline(always)]
    unsafe fn f_splat(x: f32) -> Self::F {
        one!(_mm512_set1_ps, x)
    }
    #[inline(always)]
    unsafe fn f_load(from: *const f32) -> Self::F {
        one!(_mm512_loadu_ps, from)
    }
    #[inline(always)]
    unsafe fn f_load_f16(from: *const f16) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn f_load_bf16(from: *const bf16) -> Self::F {
        // SAFETY: as the trait says. A bf16 is the upper half of an f32.
        unsafe {
            let halves = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn f_store(to: *mut f32, v: Self::F) {
        one!(_mm512_storeu_ps, to, v)
    }
    #[inline(always)]
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F {
        one!(_mm512_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F {
        one!(_mm512_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        one!(_mm512_fmadd_ps, a, b, c)
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        one!(_mm512_cvtepi32_ps, a)
    }
    #[inline(always)]
    unsafe fn nibbles<const T: usize, const FIVE: bool>(weights: *const u8, x: *const i8) -> [Self::I; T] {
        // SAFETY: as the trait says.
        unsafe {
            let mut sums = [_mm512_setzero_si512(); T];
            for chunk in 0..4 {
                let (low, high) = nibbles::<FIVE>(weights, chunk);
                for (t, sum) in sums.iter_mut().enumerate() {
                    let at = x.add(t * 32 + chunk * 4);
                    *sum = _mm512_dpbusd_epi32(*sum, low, four(at));
                    *sum = _mm512_dpbusd_epi32(*sum, high, four(at.add(16)));
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
            let mut sums = splats::<T>(start);
            for chunk in 0..4 {
                let weights = sixes::<HALF>(weights, chunk);
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_dpbusd_epi32(*sum, weights, four(x.add(t * 32 + HALF * 16 + chunk * 4)));
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn bytes<const T: usize>(weights: *const u8, x: *const i8, start: *const i32) -> [Self::I; T] {
        // SAFETY: as the trait says.
        unsafe {
            let mut sums = splats::<T>(start);
            for group in 0..8 {
                let weights = _mm512_loadu_si512(weights.add(group * 64).cast());
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_dpbusd_epi32(*sum, weights, four(x.add(t * 32 + group * 4)));
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        // SAFETY: a hint, which no address makes fault.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// The two halves of a chunk of 4-bit or 5-bit weights: a byte for each.
#[inline(always)]
pub(crate) unsafe fn nibbles<const FIVE: bool>(weights: *const u8, chunk: usize) -> (__m512i, __m512i) {
    // SAFETY: as the trait says.
    unsafe {
        let both = _mm512_loadu_si512(weights.add(chunk * 64).cast());
        let (low, high) = (bits(both, 15), bits(_mm512_srli_epi16::<4>(both), 15));
        if !FIVE {
            return (low, high);
        }
        let fifth = _mm512_loadu_si512(weights.add(4 * 64).cast());
        let (below, above) = (shift_left(fifth, 4 - chunk), shift_right(fifth, chunk));
        (_mm512_or_si512(low, bits(below, 0x10)), _mm512_or_si512(high, bits(above, 0x10)))
    }
}

/// One half of a chunk of 6-bit weights: a byte for each.
#[inline(always)]
pub(crate) unsafe fn sixes<const HALF: usize>(weights: *const u8, chunk: usize) -> __m512i {
    // SAFETY: as the trait says.
    unsafe {
        let both = _mm512_loadu_si512(weights.add(chunk * 64).cast());
        let upper = _mm512_loadu_si512(weights.add((4 + chunk / 2) * 64).cast());
        let upper = match (HALF, chunk % 2) {
            (0, 0) => shift_left(upper, 4),
            (0, _) => shift_left(upper, 2),
            (_, 0) => upper,
            _ => shift_right(upper, 2),
        };
        let lower = if HALF == 0 { both } else { _mm512_srli_epi16::<4>(both) };
        _mm512_or_si512(bits(lower, 15), bits(upper, 0x30))
    }
}

/// Broadcasts each of `T` integers to all lanes.
#[inline(always)]
unsafe fn splats<const T: usize>(from: *const i32) -> [__m512i; T] {
    // SAFETY: as the trait says.
    unsafe {
        let mut all = [_mm512_setzero_si512(); T];
        for (t, one) in all.iter_mut().enumerate() {
            *one = _mm512_set1_epi32(from.add(t).read_unaligned());
        }
        all
    }
}

/// Masks each byte.
#[inline(always)]
unsafe fn bits(bytes: __m512i, mask: i8) -> __m512i {
    // SAFETY: as the trait says.
    unsafe { _mm512_and_si512(bytes, _mm512_set1_epi8(mask)) }
}

/// Shifts by a number that is a constant once loops are unrolled. Bits cross from byte to byte.
#[inline(always)]
unsafe fn shift_left(bytes: __m512i, by: usize) -> __m512i {
    // SAFETY: as the trait says.
    unsafe { _mm512_sllv_epi32(bytes, _mm512_set1_epi32(by as i32)) }
}

/// Right counterpart of [`shift_left`].
#[inline(always)]
unsafe fn shift_right(bytes: __m512i, by: usize) -> __m512i {
    // SAFETY: as the trait says.
    unsafe { _mm512_srlv_epi32(bytes, _mm512_set1_epi32(by as i32)) }
}

/// Broadcasts four activations to all lanes.
#[inline(always)]
unsafe fn four(x: *const i8) -> __m512i {
    // SAFETY: as the trait says.
    unsafe { _mm512_set1_epi32(x.cast::<i32>().read_unaligned()) }
}
