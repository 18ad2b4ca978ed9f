//! Products of 32-bit floats on the matrix unit of AMX, which multiplies 16-bit floats (bf16) and sums in 32 bits.
//! Each float is split into two bf16, its upper bits and the remainder. Of the four products of two numbers the
//! smallest is omitted: the loss is less than 2^-13 of a product, always towards zero. Any number of rows is computed
//! this way, so that a row's result does not depend on the other rows.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use super::matmul::{self, Product};
use super::pack::{Family, Layout};
use super::quantize::RowTile;
use super::unit::amx::{self as tiles, ROWS};
use super::unit::avx512::Avx512;

/// Columns of a block.
const COLUMNS: usize = 32;
/// Bytes of a block of activations or weights: upper parts, then remainders.
const BLOCK: usize = 2 * ROWS * COLUMNS * 2;

/// True if products with the matrix are computed this way.
pub(super) fn takes(layout: &Layout) -> bool {
    layout.family == Family::F32 && layout.columns.is_multiple_of(COLUMNS)
}

/// Splits up to [`ROWS`] rows of activations; missing rows are zero.
///
/// # Safety
/// The processor has the unit; `x` leads to `rows` rows of `width` values, `out` to room for [`ROWS`] rows.
#[inline(always)]
pub(super) unsafe fn split(x: *const f32, width: usize, rows: usize, layout: &Layout, out: *mut u8) {
    // SAFETY: as the caller says.
    unsafe {
        // Upper halves of 16 words, then of 16 more.
        let mut uppers = [0i16; 32];
        uppers.iter_mut().zip((1..).step_by(2)).for_each(|(to, at)| *to = at);
        let uppers = _mm512_loadu_si512(uppers.as_ptr().cast());
        for block in 0..layout.columns / COLUMNS {
            for t in 0..ROWS {
                let to = out.add(block * BLOCK + t * 64);
                let (mut upper, mut lower) = (_mm512_setzero_si512(), _mm512_setzero_si512());
                if t < rows {
                    let from = x.add(t * width + block * COLUMNS);
                    let (a, b) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
                    upper = halves(a, uppers, b);
                    lower = halves(rest(a), uppers, rest(b));
                }
                _mm512_storeu_si512(to.cast(), upper);
                _mm512_storeu_si512(to.add(BLOCK / 2).cast(), lower);
            }
        }
    }
}

/// Selects 16-bit words of two vectors by index. A function, since closures are compiled without the vector unit.
#[inline(always)]
unsafe fn halves(a: __m512, which: __m512i, b: __m512) -> __m512i {
    // SAFETY: as the caller says.
    unsafe { _mm512_permutex2var_epi16(_mm512_castps_si512(a), which, _mm512_castps_si512(b)) }
}

/// Upper half of each number.
#[inline(always)]
unsafe fn upper(x: __m512) -> __m512i {
    // SAFETY: as the caller says.
    unsafe { _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(-0x1_0000)) }
}

/// Exact remainder of each number below its upper half.
#[inline(always)]
unsafe fn rest(x: __m512) -> __m512 {
    // SAFETY: as the caller says.
    unsafe { _mm512_sub_ps(x, _mm512_castsi512_ps(upper(x))) }
}

/// Two columns of weights side by side, upper halves only.
#[inline(always)]
unsafe fn join(first: __m512, second: __m512) -> __m512i {
    // SAFETY: as the caller says.
    unsafe { _mm512_or_si512(_mm512_srli_epi32::<16>(_mm512_castps_si512(first)), upper(second)) }
}

/// Computes the product for some groups of weights.
///
/// # Safety
/// As for [`matmul::matmul`], and the processor has AMX; `scratch` leads to [`matmul::scratch`] bytes.
#[inline(always)]
pub(super) unsafe fn matmul(p: &Product, groups: Range<usize>, scratch: *mut u8) {
    // SAFETY: as the caller says; scratch has room for a group of as many columns.
    unsafe {
        tiles::enter_floats();
        let blocks = p.layout.columns / COLUMNS;
        for group in groups {
            let weights: *const f32 = p.weights.add(group * p.layout.group()).cast();
            for pair in 0..p.layout.columns / 2 {
                let from = weights.add(pair * 2 * ROWS);
                matmul::fetch::<Avx512>(from.cast(), 2 * ROWS * size_of::<f32>());
                let (a, b) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(ROWS)));
                let to = scratch.add(pair / ROWS * BLOCK + pair % ROWS * 64);
                _mm512_storeu_si512(to.cast(), join(a, b));
                _mm512_storeu_si512(to.add(BLOCK / 2).cast(), join(rest(a), rest(b)));
            }
            for first in (0..p.rows).step_by(ROWS) {
                let x = p.x.add(first * p.layout.columns * size_of::<f32>());
                let mut products = MaybeUninit::<[[f32; ROWS * ROWS]; 3]>::uninit();
                tiles::floats(scratch, x, blocks, products.as_mut_ptr().cast());
                let products: *const f32 = products.as_ptr().cast();
                for t in 0..ROWS.min(p.rows - first) {
                    let [most, second, third] = [0, 1, 2].map(|n| products.add((n * ROWS + t) * ROWS));
                    let least = _mm512_add_ps(_mm512_loadu_ps(second), _mm512_loadu_ps(third));
                    let sum = _mm512_add_ps(_mm512_loadu_ps(most), least);
                    matmul::put::<Avx512, 1>(p, group, RowTile { first: first + t, rows: 1 }, [sum]);
                }
            }
        }
        tiles::leave();
    }
}
