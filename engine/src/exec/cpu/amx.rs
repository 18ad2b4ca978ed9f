//! Products of quantised weights on the matrix unit of AMX. A group of weights is unpacked to bytes once for all rows
//! of activations. Each block is then multiplied by tiles of [`ROWS`] rows and scaled in the order of
//! [`super::matmul`]. So a row's result does not depend on which of the two computes it. Fewer rows are computed
//! there.

use std::arch::x86_64::*;
use std::mem::MaybeUninit;
use std::ops::Range;

use half::f16;

use super::amx_floats;
use super::matmul::{self, Product};
use super::pack::{Family, Layout};
use super::quantize::{self, RowTile};
use super::unit::amx as tiles;
use super::unit::avx512::{self, Avx512};

pub(super) use super::unit::amx::ROWS;

/// Bytes of a block of a group, unpacked.
const BLOCK: usize = 32 * ROWS;

/// Computes the product for some groups of weights.
///
/// # Safety
/// As for [`matmul::matmul`], and the processor has AMX; `scratch` leads to [`matmul::scratch`] bytes.
#[inline(always)]
pub(super) unsafe fn matmul(p: &Product, groups: Range<usize>, scratch: *mut u8) {
    // SAFETY: as the caller says.
    unsafe {
        if amx_floats::takes(&p.layout) {
            return amx_floats::matmul(p, groups, scratch);
        }
        if p.rows < ROWS || !p.layout.family.is_quantized() {
            return matmul::matmul::<Avx512>(p, groups);
        }
        tiles::enter();
        let each = p.layout.blocks() * BLOCK;
        for groups in matmul::cache_sized(groups, each) {
            for (n, group) in groups.clone().enumerate() {
                unpack(&p.layout, p.weights.add(group * p.layout.group()), scratch.add(n * each));
            }
            for tile in quantize::tiles(p.rows, ROWS) {
                for (n, group) in groups.clone().enumerate() {
                    match tile.rows {
                        1 => matmul::one::<Avx512, 1>(p, group, tile),
                        2 => matmul::one::<Avx512, 2>(p, group, tile),
                        4 => matmul::one::<Avx512, 4>(p, group, tile),
                        8 => matmul::one::<Avx512, 8>(p, group, tile),
                        _ => whole(p, group, tile, scratch.add(n * each)),
                    }
                }
            }
        }
        tiles::leave();
    }
}

/// Computes a tile of [`ROWS`] rows.
#[inline(always)]
unsafe fn whole(p: &Product, group: usize, tile: RowTile, unpacked: *const u8) {
    // SAFETY: the group and the tile are inside of what the pointers lead to, as the caller says.
    unsafe {
        let weights = p.weights.add(group * p.layout.group());
        let scales: *const f16 = weights.add(p.layout.quants()).cast();
        let (x, blocks) = (p.x.add(tile.offset(&p.layout)), p.layout.blocks());
        let sums = match p.layout.family {
            // Already bytes.
            Family::Bytes => sums::<false, false>(weights, scales, x, blocks),
            Family::Sixes => sums::<false, true>(unpacked, scales, x, blocks),
            _ => sums::<true, false>(unpacked, scales, x, blocks),
        };
        matmul::put::<Avx512, ROWS>(p, group, tile, sums);
    }
}

/// Unpacks the weights of a group to bytes, in chunks of four columns of each row. Weights that are bytes already are
/// only prefetched.
#[inline(always)]
unsafe fn unpack(layout: &Layout, weights: *const u8, out: *mut u8) {
    let bytes = layout.family.block().0 * ROWS;
    for block in 0..layout.blocks() {
        // SAFETY: the blocks are in the group, and there is room for each, as the caller says.
        unsafe {
            let (from, to) = (weights.add(block * bytes), out.add(block * BLOCK));
            matmul::fetch::<Avx512>(from, bytes);
            for chunk in 0..4 {
                let (low, high) = match layout.family {
                    Family::Nibbles => avx512::nibbles::<false>(from, chunk),
                    Family::Fives => avx512::nibbles::<true>(from, chunk),
                    Family::Sixes => (avx512::sixes::<0>(from, chunk), avx512::sixes::<1>(from, chunk)),
                    _ => break,
                };
                _mm512_storeu_si512(to.add(chunk * 64).cast(), low);
                _mm512_storeu_si512(to.add((4 + chunk) * 64).cast(), high);
            }
        }
    }
}

/// Results of the matrix unit for a block: for each row of activations an integer for each row of weights, of the
/// block or of each of its halves.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Products([i32; 2 * ROWS * ROWS]);

/// Sums of one tile. `MIN`: weights have a minimum; `HALVES`: the halves of a block have scales of their own.
#[inline(always)]
unsafe fn sums<const MIN: bool, const HALVES: bool>(
    weights: *const u8,
    scales: *const f16,
    x: *const u8,
    blocks: usize,
) -> [__m512; ROWS] {
    // SAFETY: as the caller says; the tile's activations lie as `quantize` says.
    unsafe {
        let mut products = [MaybeUninit::<Products>::uninit(); 2];
        let mut sums = [_mm512_setzero_ps(); ROWS];
        // A block is multiplied while the one before it is scaled.
        multiply::<HALVES>(weights, x, 0, blocks, &mut products);
        for block in 0..blocks {
            multiply::<HALVES>(weights, x, block + 1, blocks, &mut products);
            let whole: *const i32 = products[block % 2].as_ptr().cast();
            let factors: *const f32 = x.add(block * ROWS * quantize::RECORD + ROWS * 32).cast();
            let scales = scales.add(block * if MIN || HALVES { 2 } else { 1 } * ROWS);
            let scale = |n: usize| _mm512_cvtph_ps(_mm256_loadu_si256(scales.add(n * ROWS).cast()));
            for half in 0..if HALVES { 2 } else { 1 } {
                let d = scale(half);
                // Position of -128 or -32 times the sum of the activations, which corrects the offset of stored
                // weights.
                let starts: *const i32 = factors.add(if HALVES { 3 + half } else { 2 } * ROWS).cast();
                for (t, sum) in sums.iter_mut().enumerate() {
                    let mut product = _mm512_load_si512(whole.add((half * ROWS + t) * ROWS).cast());
                    if !MIN {
                        product = _mm512_add_epi32(product, _mm512_set1_epi32(starts.add(t).read_unaligned()));
                    }
                    let factor = _mm512_mul_ps(d, _mm512_set1_ps(factors.add(t).read_unaligned()));
                    *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), factor, *sum);
                }
            }
            if MIN {
                let m = scale(1);
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum = _mm512_fmadd_ps(m, _mm512_set1_ps(factors.add(ROWS + t).read_unaligned()), *sum);
                }
            }
        }
        sums
    }
}

/// Multiplies a block, unless it lies past the end.
#[inline(always)]
unsafe fn multiply<const HALVES: bool>(
    weights: *const u8,
    x: *const u8,
    block: usize,
    blocks: usize,
    products: &mut [MaybeUninit<Products>; 2],
) {
    if block < blocks {
        // SAFETY: the block is there, as the caller says, and the tiles' shapes are set.
        unsafe {
            let (weights, x) = (weights.add(block * BLOCK), x.add(block * ROWS * quantize::RECORD).cast());
            let out = products[block % 2].as_mut_ptr().cast();
            if HALVES { tiles::halves(weights, x, out) } else { tiles::block(weights, x, out) }
        }
    }
}
