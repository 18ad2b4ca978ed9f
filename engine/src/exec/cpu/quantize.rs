//! Packing of activations for products: tiles of some rows, rounded to 8 bits where the weights are quantised.
//!
//! A tile of T rows holds for each block of 32 values: T times 32 bytes, T scales, and T times scale by sum of the
//! bytes. T sums times -128 follow (for units that store bytes of weights with 128 added). Last are T sums times -32
//! of each half (for weights of six bits, which are stored with 32 added). Rows of a tile lie together, so that all
//! addresses in the kernels are constants from one base. Floats are transposed: T values of a column side by side.

use super::pack::Layout;
use super::unit::{BLOCK, LANES, Unit};

/// Bytes of a row in a block of a tile.
pub(super) const RECORD: usize = BLOCK + 5 * 4;

/// Some rows of activations.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowTile {
    pub(super) first: usize,
    pub(super) rows: usize,
}

impl RowTile {
    /// Offset in bytes.
    pub(super) fn offset(self, layout: &Layout) -> usize {
        self.first * row_bytes(layout)
    }
}

/// Bytes of a packed row.
pub(super) fn row_bytes(layout: &Layout) -> usize {
    if layout.family.is_quantized() { layout.blocks() * RECORD } else { layout.columns * 4 }
}

/// Tiles of this many rows: of `most`, a power of two, and the rest in smaller powers of two, so that not every
/// number needs a kernel.
pub(super) fn tiles(rows: usize, most: usize) -> impl Iterator<Item = RowTile> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let size = 1 << (rows - first).min(most).checked_ilog2()?;
        first += size;
        Some(RowTile { first: first - size, rows: size })
    })
}

/// Rounds one tile: `x` is its first row, of `width` values, `out` its destination.
///
/// # Safety
/// The processor has the unit, and the pointers lead to what the shapes say.
#[inline(always)]
pub(super) unsafe fn quantize<U: Unit>(x: *const f32, width: usize, rows: usize, layout: &Layout, out: *mut u8) {
    for t in 0..rows {
        for block in 0..layout.blocks() {
            // SAFETY: the rows have that many blocks and the record lies in the tile.
            unsafe {
                let x = x.add(t * width + block * BLOCK);
                let record = out.add(block * rows * RECORD);
                let quants: *mut i8 = record.add(t * BLOCK).cast();
                let factors: *mut f32 = record.add(rows * BLOCK).cast();
                let (a, b) = (U::load(x), U::load(x.add(LANES)));
                let most = U::most(U::max(U::abs(a), U::abs(b)));
                let scale = most / 127.0;
                // Numbers so small that the inverse would be infinite are rounded to 0.
                let (scale, inverse) = if scale >= f32::MIN_POSITIVE { (scale, 1.0 / scale) } else { (0.0, 0.0) };
                let inverse = U::splat(inverse);
                let (a, b) = (U::round(U::mul(a, inverse)), U::round(U::mul(b, inverse)));
                U::store_i8(quants, a);
                U::store_i8(quants.add(LANES), b);
                // Integers below 2^24: exact in any order.
                let (first, second) = (U::sum(a), U::sum(b));
                factors.add(t).write_unaligned(scale);
                factors.add(rows + t).write_unaligned(scale * (first + second));
                let starts = [-128.0 * (first + second), -32.0 * first, -32.0 * second];
                for (n, start) in starts.into_iter().enumerate() {
                    let place: *mut i32 = factors.add((2 + n) * rows + t).cast();
                    place.write_unaligned(start as i32);
                }
            }
        }
    }
}

/// Transposes one tile of floats.
///
/// # Safety
/// The pointers lead to what the shapes say.
#[inline(always)]
pub(super) unsafe fn transpose(x: *const f32, width: usize, rows: usize, layout: &Layout, out: *mut f32) {
    for column in 0..layout.columns {
        for t in 0..rows {
            // SAFETY: as the caller says.
            unsafe { *out.add(column * rows + t) = *x.add(t * width + column) };
        }
    }
}
