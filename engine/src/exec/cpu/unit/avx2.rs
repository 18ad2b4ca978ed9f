//! AVX2 with FMA and F16C, optionally with AVX-VNNI.

use std::arch::x86_64::*;

use half::{bf16, f16};

use super::Unit;

/// AVX2; the parameter adds AVX-VNNI, which multiplies bytes in one instruction instead of three.
pub(crate) struct Avx2<const VNNI: bool>;

macro_rules! both {
    ($f:ident, $a:expr) => {{
        let [a0, a1] = $a;
        // SAFETY: as the trait says.
        unsafe { [$f(a0), $f(a1)] }
    }};
    ($f:ident, $a:expr, $b:expr) => {{
        let ([a0, a1], [b0, b1]) = ($a, $b);
        // SAFETY: as the trait says.
        unsafe { [$f(a0, b0), $f(a1, b1)] }
    }};
}

impl<const VNNI: bool> Unit for Avx2<VNNI> {
    const ROWS: usize = 8;
    const TILE: usize = 4;
    const QUERIES: usize = 6;
    const VECTORS: usize = 1;
    const SIGNED: bool = !VNNI;

    type V = [__m256; 2];
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        // SAFETY: as the trait says.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: as the trait says.
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::V {
        // SAFETY: as the trait says.
        unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(from.cast())), _mm256_cvtph_ps(_mm_loadu_si128(from.add(8).cast()))] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, [a, b]: Self::V) {
        // SAFETY: as the trait says.
        unsafe {
            _mm256_storeu_ps(to, a);
            _mm256_storeu_ps(to.add(8), b);
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        both!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        let ([a0, a1], [b0, b1], [c0, c1]) = (a, b, c);
        // SAFETY: as the trait says.
        unsafe { [_mm256_fmadd_ps(a0, b0, c0), _mm256_fmadd_ps(a1, b1, c1)] }
    }
    #[inline(always)]
    unsafe fn round([a, b]: Self::V) -> Self::V {
        const HOW: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: as the trait says.
        unsafe { [_mm256_round_ps::<HOW>(a), _mm256_round_ps::<HOW>(b)] }
    }
    #[inline(always)]
    unsafe fn abs(a: Self::V) -> Self::V {
        // SAFETY: as the trait says.
        let sign = unsafe { [_mm256_set1_ps(-0.0); 2] };
        both!(_mm256_andnot_ps, sign, a)
    }
    #[inline(always)]
    unsafe fn scale2(a: Self::V, n: Self::V) -> Self::V {
        // SAFETY: as the trait says.
        unsafe {
            let [n0, n1] = n;
            Self::mul(a, [power_of_two(n0), power_of_two(n1)])
        }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, [a, b]: Self::V) {
        // SAFETY: as the trait says.
        unsafe {
            let words = _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b));
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256::<1>(words));
            _mm_storeu_si128(to.cast(), bytes);
        }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, [a, b]: Self::V) {
        // SAFETY: as the trait says.
        unsafe {
            _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(a));
            _mm_storeu_si128(to.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(b));
        }
    }

    type F = __m256;
    type I = __m256i;
    #[inline(always)]
    unsafe fn f_splat(x: f32) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn f_load(from: *const f32) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { _mm256_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn f_load_f16(from: *const f16) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn f_load_bf16(from: *const bf16) -> Self::F {
        // SAFETY: as the trait says. A bf16 is the upper half of an f32.
        unsafe {
            let halves = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(halves))
        }
    }
    #[inline(always)]
    unsafe fn f_store(to: *mut f32, v: Self::F) {
        // SAFETY: as the trait says.
        unsafe { _mm256_storeu_ps(to, v) }
    }
    #[inline(always)]
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn to_f(a: Self::I) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { _mm256_cvtepi32_ps(a) }
    }
    #[inline(always)]
    unsafe fn nibbles<const T: usize, const FIVE: bool>(weights: *const u8, x: *const i8) -> [Self::I; T] {
        // SAFETY: as the trait says.
        unsafe {
            let mut sums = [_mm256_setzero_si256(); T];
            let mut folded = [_mm256_setzero_si256(); T];
            for chunk in 0..4 {
                let both = _mm256_loadu_si256(weights.add(chunk * 32).cast());
                let mut low = bits(both, 15);
                let mut high = bits(_mm256_srli_epi16::<4>(both), 15);
                if FIVE {
                    let fifth = _mm256_loadu_si256(weights.add(4 * 32).cast());
                    low = _mm256_or_si256(low, bits(shift_left(fifth, 4 - chunk), 0x10));
                    high = _mm256_or_si256(high, bits(shift_right(fifth, chunk), 0x10));
                }
                for (t, sum) in sums.iter_mut().enumerate() {
                    let at = x.add(t * 32 + chunk * 4);
                    let (x_low, x_high) = (four(at), four(at.add(16)));
                    if VNNI {
                        *sum = _mm256_dpbusd_avx_epi32(*sum, low, x_low);
                        *sum = _mm256_dpbusd_avx_epi32(*sum, high, x_high);
                    } else {
                        // In 16 bits: eight pairs of products of at most 15 * 127 stay below 2^15, and four of 31 * 127.
                        *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(low, x_low));
                        *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(high, x_high));
                        if FIVE && chunk == 1 {
                            folded[t] = fold(*sum);
                            *sum = _mm256_setzero_si256();
                        }
                    }
                }
            }
            if !VNNI {
                for (sum, folded) in sums.iter_mut().zip(folded) {
                    *sum = fold(*sum);
                    if FIVE {
                        *sum = _mm256_add_epi32(*sum, folded);
                    }
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
            let mut pairs = [_mm256_setzero_si256(); T];
            for chunk in 0..4 {
                let both = _mm256_loadu_si256(weights.add(chunk * 32).cast());
                let upper = _mm256_loadu_si256(weights.add((4 + chunk / 2) * 32).cast());
                let upper = match (HALF, chunk % 2) {
                    (0, 0) => shift_left(upper, 4),
                    (0, _) => shift_left(upper, 2),
                    (_, 0) => upper,
                    _ => shift_right(upper, 2),
                };
                let lower = if HALF == 0 { both } else { _mm256_srli_epi16::<4>(both) };
                let weights = _mm256_or_si256(bits(lower, 15), bits(upper, 0x30));
                for (t, (sum, pairs)) in sums.iter_mut().zip(&mut pairs).enumerate() {
                    let x = four(x.add(t * 32 + HALF * 16 + chunk * 4));
                    if VNNI {
                        *sum = _mm256_dpbusd_avx_epi32(*sum, weights, x);
                    } else if chunk % 2 == 0 {
                        *pairs = _mm256_maddubs_epi16(weights, x);
                    } else {
                        // In 16 bits: two pairs of products of at most 63 * 127 stay below 2^15.
                        let both = _mm256_add_epi16(*pairs, _mm256_maddubs_epi16(weights, x));
                        *sum = _mm256_add_epi32(*sum, fold(both));
                    }
                }
            }
            sums
        }
    }
    #[inline(always)]
    unsafe fn bytes<const T: usize>(weights: *const u8, x: *const i8, start: *const i32) -> [Self::I; T] {
        // SAFETY: as the trait says.
        unsafe {
            let mut sums = if VNNI { splats::<T>(start) } else { [_mm256_setzero_si256(); T] };
            for group in 0..8 {
                let weights = _mm256_loadu_si256(weights.add(group * 32).cast());
                let size = _mm256_abs_epi8(weights);
                for (t, sum) in sums.iter_mut().enumerate() {
                    let x = four(x.add(t * 32 + group * 4));
                    *sum = if VNNI {
                        _mm256_dpbusd_avx_epi32(*sum, weights, x)
                    } else {
                        // The sign of the weight goes to the activation, since the first factor is unsigned; two
                        // products of at most 128 * 127 stay below 2^15.
                        let pairs = _mm256_maddubs_epi16(size, _mm256_sign_epi8(x, weights));
                        _mm256_add_epi32(*sum, fold(pairs))
                    };
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

/// Broadcasts each of `T` integers to all lanes.
#[inline(always)]
unsafe fn splats<const T: usize>(from: *const i32) -> [__m256i; T] {
    // SAFETY: as the trait says.
    unsafe {
        let mut all = [_mm256_setzero_si256(); T];
        for (t, one) in all.iter_mut().enumerate() {
            *one = _mm256_set1_epi32(from.add(t).read_unaligned());
        }
        all
    }
}

/// Sums neighbouring 16-bit integers.
#[inline(always)]
unsafe fn fold(pairs: __m256i) -> __m256i {
    // SAFETY: as the trait says.
    unsafe { _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)) }
}

/// Masks each byte.
#[inline(always)]
unsafe fn bits(bytes: __m256i, mask: i8) -> __m256i {
    // SAFETY: as the trait says.
    unsafe { _mm256_and_si256(bytes, _mm256_set1_epi8(mask)) }
}

/// Shifts by a number that is a constant once loops are unrolled. Bits cross from byte to byte.
#[inline(always)]
unsafe fn shift_left(bytes: __m256i, by: usize) -> __m256i {
    // SAFETY: as the trait says.
    unsafe { _mm256_sllv_epi32(bytes, _mm256_set1_epi32(by as i32)) }
}

/// Right counterpart of [`shift_left`].
#[inline(always)]
unsafe fn shift_right(bytes: __m256i, by: usize) -> __m256i {
    // SAFETY: as the trait says.
    unsafe { _mm256_srlv_epi32(bytes, _mm256_set1_epi32(by as i32)) }
}

/// Broadcasts four activations to all lanes.
#[inline(always)]
unsafe fn four(x: *const i8) -> __m256i {
    // SAFETY: as the trait says.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// `2^n` for whole `n`.
#[inline(always)]
unsafe fn power_of_two(n: __m256) -> __m256 {
    // SAFETY: as the trait says.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}
