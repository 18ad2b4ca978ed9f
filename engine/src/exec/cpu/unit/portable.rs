//! Any CPU: arrays, which the compiler turns into the vectors that exist.

use half::{bf16, f16};

use super::{LANES, Unit};

const ROWS: usize = 8;

/// Any CPU: arrays, which the compiler turns into the vectors that exist.
pub(crate) struct Portable;

macro_rules! each {
    ($a:expr, $f:expr) => {{
        let mut a = $a;
        for x in &mut a {
            *x = $f(*x);
        }
        a
    }};
    ($a:expr, $b:expr, $f:expr) => {{
        let mut a = $a;
        for (x, y) in a.iter_mut().zip($b) {
            *x = $f(*x, y);
        }
        a
    }};
}

impl Unit for Portable {
    const ROWS: usize = ROWS;
    const TILE: usize = 4;
    const QUERIES: usize = 4;
    const VECTORS: usize = 1;
    const SIGNED: bool = true;

    type V = [f32; LANES];
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self::V {
        // SAFETY: as the trait says.
        unsafe { from.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const f16) -> Self::V {
        // SAFETY: as the trait says.
        let halves = unsafe { from.cast::<[f16; LANES]>().read_unaligned() };
        halves.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, v: Self::V) {
        // SAFETY: as the trait says.
        unsafe { to.cast::<Self::V>().write(v) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        each!(a, b, |x: f32, y: f32| x + y)
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        each!(a, b, |x: f32, y: f32| x - y)
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        each!(a, b, |x: f32, y: f32| x * y)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        each!(a, b, |x: f32, y: f32| x / y)
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        each!(a, b, f32::max)
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        each!(a, b, f32::min)
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // Two roundings: a fused one is a call into a library where the processor has none.
        let products = each!(a, b, |x: f32, y: f32| x * y);
        each!(products, c, |x: f32, y: f32| x + y)
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        each!(a, f32::round_ties_even)
    }
    #[inline(always)]
    unsafe fn abs(a: Self::V) -> Self::V {
        each!(a, f32::abs)
    }
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "n is whole and between -126 and 127")]
    unsafe fn scale2(a: Self::V, n: Self::V) -> Self::V {
        each!(a, n, |x: f32, n: f32| x * f32::from_bits(((n as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    #[allow(clippy::cast_possible_truncation, reason = "whole numbers from -127 to 127")]
    unsafe fn store_i8(to: *mut i8, v: Self::V) {
        // SAFETY: as the trait says.
        unsafe { to.cast::<[i8; LANES]>().write(v.map(|x| x as i8)) }
    }
    #[inline(always)]
    unsafe fn store_f16(to: *mut f16, v: Self::V) {
        // SAFETY: as the trait says.
        unsafe { to.cast::<[f16; LANES]>().write_unaligned(v.map(f16::from_f32)) }
    }

    type F = [f32; ROWS];
    type I = [i32; ROWS];
    #[inline(always)]
    unsafe fn f_splat(x: f32) -> Self::F {
        [x; ROWS]
    }
    #[inline(always)]
    unsafe fn f_load(from: *const f32) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { from.cast::<Self::F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn f_load_f16(from: *const f16) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { from.cast::<[f16; ROWS]>().read_unaligned() }.map(f16::to_f32)
    }
    #[inline(always)]
    unsafe fn f_load_bf16(from: *const bf16) -> Self::F {
        // SAFETY: as the trait says.
        unsafe { from.cast::<[bf16; ROWS]>().read_unaligned() }.map(bf16::to_f32)
    }
    #[inline(always)]
    unsafe fn f_store(to: *mut f32, v: Self::F) {
        // SAFETY: as the trait says.
        unsafe { to.cast::<Self::F>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn f_add(a: Self::F, b: Self::F) -> Self::F {
        each!(a, b, |x: f32, y: f32| x + y)
    }
    #[inline(always)]
    unsafe fn f_mul(a: Self::F, b: Self::F) -> Self::F {
        each!(a, b, |x: f32, y: f32| x * y)
    }
    #[inline(always)]
    unsafe fn f_fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        let products = each!(a, b, |x: f32, y: f32| x * y);
        each!(products, c, |x: f32, y: f32| x + y)
    }
    #[inline(always)]
    #[allow(clippy::cast_precision_loss, reason = "sums of 32 products of bytes are exact")]
    unsafe fn to_f(a: Self::I) -> Self::F {
        a.map(|x| x as f32)
    }
    #[inline(always)]
    unsafe fn nibbles<const T: usize, const FIVE: bool>(weights: *const u8, x: *const i8) -> [Self::I; T] {
        let mut sums = [[0; ROWS]; T];
        // SAFETY: chunks of 4 bytes for each row, as many as the trait says.
        let chunk_at = |n: usize| unsafe { weights.cast::<[[u8; 4]; ROWS]>().add(n).read() };
        let fifth = if FIVE { chunk_at(4) } else { [[0; 4]; ROWS] };
        for chunk in 0..4 {
            let bytes = chunk_at(chunk);
            for (t, sums) in sums.iter_mut().enumerate() {
                // SAFETY: blocks of 32 activations, as the trait says.
                let (low, high) = unsafe {
                    let at = x.add(t * 32 + chunk * 4);
                    (at.cast::<[i8; 4]>().read(), at.add(16).cast::<[i8; 4]>().read())
                };
                for ((sum, bytes), fifth) in sums.iter_mut().zip(bytes).zip(fifth) {
                    for (((byte, fifth), low), high) in bytes.into_iter().zip(fifth).zip(low).zip(high) {
                        let (w_low, w_high) = (byte & 15 | fifth >> chunk << 4 & 16, byte >> 4 | fifth >> chunk & 16);
                        *sum += i32::from(w_low) * i32::from(low) + i32::from(w_high) * i32::from(high);
                    }
                }
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn sixes<const T: usize, const HALF: usize>(
        weights: *const u8,
        x: *const i8,
        start: *const i32,
    ) -> [Self::I; T] {
        let mut sums = [[0; ROWS]; T];
        for (t, sums) in sums.iter_mut().enumerate() {
            // SAFETY: one for each block, as the trait says.
            *sums = [unsafe { start.add(t).read_unaligned() }; ROWS];
        }
        // SAFETY: chunks of 4 bytes for each row, as many as the trait says.
        let chunk_at = |n: usize| unsafe { weights.cast::<[[u8; 4]; ROWS]>().add(n).read() };
        for chunk in 0..4 {
            let (bytes, upper) = (chunk_at(chunk), chunk_at(4 + chunk / 2));
            for (t, sums) in sums.iter_mut().enumerate() {
                // SAFETY: blocks of 32 activations, as the trait says.
                let x = unsafe { x.add(t * 32 + HALF * 16 + chunk * 4).cast::<[i8; 4]>().read() };
                for ((sum, bytes), upper) in sums.iter_mut().zip(bytes).zip(upper) {
                    for ((byte, upper), x) in bytes.into_iter().zip(upper).zip(x) {
                        let w = byte >> (4 * HALF) & 15 | (upper >> (4 * HALF + chunk % 2 * 2) & 3) << 4;
                        *sum += i32::from(w) * i32::from(x);
                    }
                }
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn bytes<const T: usize>(weights: *const u8, x: *const i8, _: *const i32) -> [Self::I; T] {
        let mut sums = [[0; ROWS]; T];
        for group in 0..8 {
            // SAFETY: four bytes of each row a group, as the trait says.
            let bytes = unsafe { weights.cast::<[[i8; 4]; ROWS]>().add(group).read() };
            for (t, sums) in sums.iter_mut().enumerate() {
                // SAFETY: blocks of 32 activations, as the trait says.
                let x = unsafe { x.add(t * 32 + group * 4).cast::<[i8; 4]>().read() };
                for (sum, bytes) in sums.iter_mut().zip(bytes) {
                    *sum += bytes.into_iter().zip(x).map(|(w, x)| i32::from(w) * i32::from(x)).sum::<i32>();
                }
            }
        }
        sums
    }
}
