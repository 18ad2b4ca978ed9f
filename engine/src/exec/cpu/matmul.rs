//! Products of weights with rows of activations: `out[r] = matrix · x[r]`.
//!
//! A tile is one group of rows of weights times some rows of activations. A block of weights is unpacked once for all
//! rows of the tile. Each row has its own sums, which add the blocks in order, so that a row's result does not depend
//! on its company. Quantised blocks are summed as integers, exactly, and scaled once a block.

use std::ops::Range;

use half::{bf16, f16};

use super::pack::{Family, Layout};
use super::quantize::{self, RowTile};
use super::unit::Unit;

/// Parameters of a product.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub(super) layout: Layout,
    pub(super) weights: *const u8,
    /// Packed activations, as [`quantize`] leaves them.
    pub(super) x: *const u8,
    pub(super) rows: usize,
    /// Most rows of activations of a tile.
    pub(super) tile: usize,
    pub(super) out: *mut f32,
    /// Values of a row of `out`.
    pub(super) width: usize,
    /// True to add the result to `out`.
    pub(super) add: bool,
}

/// Bytes of weights that are multiplied with one tile of activations after the other, so that both stay in the L1
/// cache.
const L1_BYTES: usize = 24 << 10;

/// Bytes of scratch of a product of this many columns: groups of weights as bytes, or one of floats.
pub(super) fn scratch(columns: usize) -> usize {
    L1_BYTES.max(columns * super::unit::LANES * size_of::<f32>())
}

/// Splits groups of `bytes` bytes into ranges of about [`L1_BYTES`] bytes.
pub(super) fn cache_sized(groups: Range<usize>, bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let each = (L1_BYTES / bytes.max(1)).max(1);
    let end = groups.end;
    groups.step_by(each).map(move |first| first..(first + each).min(end))
}

/// Computes the product for some groups of weights.
///
/// # Safety
/// The processor has the unit, and all pointers lead to what the shapes say; no other thread writes these columns of
/// `out`.
#[inline(always)]
pub(super) unsafe fn matmul<U: Unit>(p: &Product, groups: Range<usize>) {
    for groups in cache_sized(groups, p.layout.group()) {
        for tile in quantize::tiles(p.rows, p.tile) {
            macro_rules! with {
                ($($t:literal)*) => {
                    match tile.rows {
                        $($t => for group in groups.clone() {
                            // SAFETY: as the caller says.
                            unsafe { one::<U, $t>(p, group, tile) }
                        },)*
                        _ => {}
                    }
                };
            }
            if U::TILE > 4 {
                with!(1 2 4 8);
            } else {
                with!(1 2 4);
            }
        }
    }
}

/// Computes one tile.
///
/// # Safety
/// As for [`matmul`].
#[inline(always)]
pub(super) unsafe fn one<U: Unit, const T: usize>(p: &Product, group: usize, tile: RowTile) {
    let layout = &p.layout;
    // SAFETY: the group and the tile are inside of what the pointers lead to, as the caller says.
    unsafe {
        let quants = p.weights.add(group * layout.group());
        let scales = quants.add(layout.quants()).cast();
        let x = p.x.add(tile.offset(layout));
        let sums = match layout.family {
            Family::Nibbles => nibbles::<U, T, false>(quants, scales, x, layout.blocks()),
            Family::Fives => nibbles::<U, T, true>(quants, scales, x, layout.blocks()),
            Family::Sixes => sixes::<U, T>(quants, scales, x, layout.blocks()),
            Family::Bytes => bytes::<U, T>(quants, scales, x, layout.blocks()),
            Family::F32 => floats::<U, T, f32>(quants.cast(), x.cast(), layout.columns),
            Family::F16 => floats::<U, T, f16>(quants.cast(), x.cast(), layout.columns),
            Family::Bf16 => floats::<U, T, bf16>(quants.cast(), x.cast(), layout.columns),
        };
        put::<U, T>(p, group, tile, sums);
    }
}

/// Stores the sums of a tile in the output.
///
/// # Safety
/// As for [`matmul`].
#[inline(always)]
pub(super) unsafe fn put<U: Unit, const T: usize>(p: &Product, group: usize, tile: RowTile, sums: [U::F; T]) {
    // SAFETY: the group and the tile are inside of what the pointers lead to, as the caller says.
    unsafe {
        let layout = &p.layout;
        let column = group * U::ROWS;
        let left = layout.rows - column;
        for (t, sum) in sums.into_iter().enumerate() {
            let out = p.out.add((tile.first + t) * p.width + column);
            if left >= U::ROWS {
                U::f_store(out, if p.add { U::f_add(U::f_load(out), sum) } else { sum });
            } else {
                let mut part = [0.0f32; 16];
                U::f_store(part.as_mut_ptr(), sum);
                for (n, value) in part.iter().take(left).enumerate() {
                    *out.add(n) = if p.add { *out.add(n) + value } else { *value };
                }
            }
        }
    }
}

/// Distance of prefetching, in bytes.
const PREFETCH_BYTES: usize = 2048;

/// Prefetches what will be read after a block of weights of `bytes` bytes.
#[inline(always)]
pub(super) unsafe fn fetch<U: Unit>(weights: *const u8, bytes: usize) {
    for line in 0..bytes.div_ceil(64) {
        // SAFETY: any address may be fetched.
        unsafe { U::prefetch(weights.wrapping_add(PREFETCH_BYTES + line * 64)) };
    }
}

/// Block of a tile's activations: the bytes, and the start of its factors, of which [`factor`] reads the `n`th.
#[inline(always)]
unsafe fn block_of<const T: usize>(x: *const u8, block: usize) -> (*const i8, *const f32) {
    // SAFETY: as the caller says.
    unsafe {
        let x = x.add(block * T * quantize::RECORD);
        (x.cast(), x.add(T * 32).cast())
    }
}

#[inline(always)]
unsafe fn factor<U: Unit>(factors: *const f32, n: usize) -> U::F {
    // SAFETY: as the caller says.
    unsafe { U::f_splat(factors.add(n).read_unaligned()) }
}

/// `sums += products * d * scale` with each row's scale.
#[inline(always)]
unsafe fn add_products<U: Unit, const T: usize>(
    sums: &mut [U::F; T],
    products: [U::I; T],
    d: U::F,
    factors: *const f32,
) {
    for (t, (sum, product)) in sums.iter_mut().zip(products).enumerate() {
        // SAFETY: as the caller says.
        unsafe { *sum = U::f_fma(U::to_f(product), U::f_mul(d, factor::<U>(factors, t)), *sum) };
    }
}

/// `sums += m * whole` with each row's sum of the block.
#[inline(always)]
unsafe fn add_minimum<U: Unit, const T: usize>(sums: &mut [U::F; T], m: U::F, factors: *const f32) {
    for (t, sum) in sums.iter_mut().enumerate() {
        // SAFETY: as the caller says.
        unsafe { *sum = U::f_fma(m, factor::<U>(factors, T + t), *sum) };
    }
}

#[inline(always)]
unsafe fn nibbles<U: Unit, const T: usize, const FIVE: bool>(
    quants: *const u8,
    scales: *const f16,
    x: *const u8,
    blocks: usize,
) -> [U::F; T] {
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [U::f_splat(0.0); T];
        let bytes = (if FIVE { 20 } else { 16 }) * U::ROWS;
        for block in 0..blocks {
            let (weights, scales) = (quants.add(block * bytes), scales.add(block * 2 * U::ROWS));
            let (x, factors) = block_of::<T>(x, block);
            fetch::<U>(weights, bytes);
            let products = U::nibbles::<T, FIVE>(weights, x);
            add_products::<U, T>(&mut sums, products, U::f_load_f16(scales), factors);
            add_minimum::<U, T>(&mut sums, U::f_load_f16(scales.add(U::ROWS)), factors);
        }
        sums
    }
}

#[inline(always)]
unsafe fn bytes<U: Unit, const T: usize>(
    quants: *const u8,
    scales: *const f16,
    x: *const u8,
    blocks: usize,
) -> [U::F; T] {
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [U::f_splat(0.0); T];
        for block in 0..blocks {
            let (weights, scales) = (quants.add(block * 32 * U::ROWS), scales.add(block * U::ROWS));
            let (x, factors) = block_of::<T>(x, block);
            fetch::<U>(weights, 32 * U::ROWS);
            let products = U::bytes::<T>(weights, x, factors.add(2 * T).cast());
            add_products::<U, T>(&mut sums, products, U::f_load_f16(scales), factors);
        }
        sums
    }
}

#[inline(always)]
unsafe fn sixes<U: Unit, const T: usize>(
    quants: *const u8,
    scales: *const f16,
    x: *const u8,
    blocks: usize,
) -> [U::F; T] {
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [U::f_splat(0.0); T];
        for block in 0..blocks {
            let (weights, scales) = (quants.add(block * 24 * U::ROWS), scales.add(block * 2 * U::ROWS));
            let (x, factors) = block_of::<T>(x, block);
            fetch::<U>(weights, 24 * U::ROWS);
            let products = U::sixes::<T, 0>(weights, x, factors.add(3 * T).cast());
            add_products::<U, T>(&mut sums, products, U::f_load_f16(scales), factors);
            let products = U::sixes::<T, 1>(weights, x, factors.add(4 * T).cast());
            add_products::<U, T>(&mut sums, products, U::f_load_f16(scales.add(U::ROWS)), factors);
        }
        sums
    }
}

/// Float type of weights.
trait Float {
    /// Loads `ROWS` values.
    unsafe fn load<U: Unit>(from: *const Self) -> U::F;
}

macro_rules! float {
    ($float:ty, $load:ident) => {
        impl Float for $float {
            #[inline(always)]
            unsafe fn load<U: Unit>(from: *const Self) -> U::F {
                // SAFETY: as the caller says.
                unsafe { U::$load(from) }
            }
        }
    };
}
float!(f32, f_load);
float!(f16, f_load_f16);
float!(bf16, f_load_bf16);

#[inline(always)]
unsafe fn floats<U: Unit, const T: usize, W: Float>(weights: *const W, x: *const f32, columns: usize) -> [U::F; T] {
    // SAFETY: as the caller says.
    unsafe {
        // Even and odd columns apart, since a sum waits for the one before it.
        let mut sums = [[U::f_splat(0.0); T]; 2];
        let mut column = 0;
        while column + 2 <= columns {
            fetch::<U>(weights.add(column * U::ROWS).cast(), 2 * U::ROWS * size_of::<W>());
            for (n, sums) in sums.iter_mut().enumerate() {
                let w = W::load::<U>(weights.add((column + n) * U::ROWS));
                for (t, sum) in sums.iter_mut().enumerate() {
                    *sum = U::f_fma(w, U::f_splat(*x.add((column + n) * T + t)), *sum);
                }
            }
            column += 2;
        }
        let [mut even, odd] = sums;
        if column < columns {
            let w = W::load::<U>(weights.add(column * U::ROWS));
            for (t, sum) in even.iter_mut().enumerate() {
                *sum = U::f_fma(w, U::f_splat(*x.add(column * T + t)), *sum);
            }
        }
        for (sum, odd) in even.iter_mut().zip(odd) {
            *sum = U::f_add(*sum, odd);
        }
        even
    }
}
