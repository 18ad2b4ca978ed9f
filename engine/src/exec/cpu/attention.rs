//! Attention over the pages of the KV cache.
//!
//! A page of a key/value head holds its keys transposed, `[value][position]`, and its values in order,
//! `[position][value]`: both products then run along whole vectors and need no sum over lanes. A tile of queries,
//! those heads of some rows that share a key/value head, converts each number once. Scores of the whole context are
//! kept, so that softmax is exact and each query sums its positions in order, alone or in company.

use std::ops::Range;

use half::f16;

use super::memory::Allocation;
use super::unit::{LANES, QUERIES, Unit};
use crate::exec::PAGE;

/// Values of a position of a head, padded to whole vectors.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(LANES)
}

/// Values of a page.
pub(super) fn page(kv_heads: usize, head_dim: usize) -> usize {
    kv_heads * PAGE * padded(head_dim)
}

/// Element type of stored keys and values.
pub(super) trait Kept: Copy + Default {
    /// Loads a vector.
    unsafe fn load<U: Unit>(from: *const Self) -> U::V;
    /// Stores a vector.
    unsafe fn keep<U: Unit>(to: *mut Self, v: U::V);
}

macro_rules! kept {
    ($kept:ty, $load:ident, $store:ident) => {
        impl Kept for $kept {
            #[inline(always)]
            unsafe fn load<U: Unit>(from: *const Self) -> U::V {
                // SAFETY: as the caller says.
                unsafe { U::$load(from) }
            }
            #[inline(always)]
            unsafe fn keep<U: Unit>(to: *mut Self, v: U::V) {
                // SAFETY: as the caller says.
                unsafe { U::$store(to, v) }
            }
        }
    };
}
kept!(f16, load_f16, store_f16);
kept!(f32, load, store);

/// KV cache of a layer, and its shape.
#[derive(Clone, Copy)]
pub(super) struct Cache<K> {
    pub(super) keys: Allocation<K>,
    pub(super) values: Allocation<K>,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
}

impl<K: Kept> Cache<K> {
    fn head(&self, page: u32, head: usize) -> usize {
        (page as usize * self.kv_heads + head) * PAGE * padded(self.head_dim)
    }

    /// Stores key and value of a position.
    ///
    /// # Safety
    /// The processor has the unit; page and head are inside of the cache and no other thread uses the position.
    #[inline(always)]
    pub(super) unsafe fn store<U: Unit>(
        &self,
        page: u32,
        place: usize,
        head: usize,
        key: *const f32,
        value: *const f32,
    ) {
        // SAFETY: as the caller says; rows of values are whole vectors.
        unsafe {
            let at = self.head(page, head);
            let (keys, values) = (self.keys.at().add(at), self.values.at().add(at + place * padded(self.head_dim)));
            for from in (0..self.head_dim).step_by(LANES) {
                let left = self.head_dim - from;
                K::keep::<U>(values.add(from), U::load_part(value.add(from), left, 0.0));
                let mut column = [K::default(); LANES];
                K::keep::<U>(column.as_mut_ptr(), U::load_part(key.add(from), left, 0.0));
                for (n, key) in column.into_iter().take(left).enumerate() {
                    *keys.add((from + n) * PAGE + place) = key;
                }
            }
        }
    }
}

/// Queries of one key/value head that attend to the same sequence.
#[derive(Clone, Copy)]
pub(super) struct QueryTile {
    /// First row of the step.
    pub(super) row: usize,
    /// Rows, of one sequence, at consecutive positions.
    pub(super) rows: usize,
    /// First query head.
    pub(super) head: usize,
    /// Query heads.
    pub(super) heads: usize,
    pub(super) kv_head: usize,
    /// Position of the first row.
    pub(super) position: usize,
    /// Offset of the sequence's pages in the page table.
    pub(super) pages: usize,
    /// Visible positions of every row, for bidirectional attention; 0 for causal attention.
    pub(super) all: usize,
}

/// Attention of a step at one layer.
#[derive(Clone, Copy)]
pub(super) struct Attention<K> {
    pub(super) cache: Cache<K>,
    pub(super) queries: *const f32,
    /// Values of a row of `queries`.
    pub(super) width: usize,
    pub(super) out: *mut f32,
    /// Values of a row of `out`.
    pub(super) out_width: usize,
    pub(super) pages: *const u32,
    pub(super) scale: f32,
    /// Most positions that a query sees, its own the last.
    pub(super) window: usize,
    /// Scores of a query: one for each position of the context, in whole pages.
    pub(super) context: usize,
}

/// Values of a thread's scratch.
pub(super) fn scratch(context: usize, head_dim: usize) -> usize {
    QUERIES * (context + head_dim)
}

/// Computes one tile.
///
/// # Safety
/// The processor has the unit, all pointers lead to what the shapes say, and `scratch` to [`scratch`] values.
#[inline(always)]
pub(super) unsafe fn attention<U: Unit, K: Kept>(a: &Attention<K>, tile: &QueryTile, scratch: *mut f32) {
    macro_rules! with {
        ($($n:literal)*) => {
            match tile.rows * tile.heads {
                // SAFETY: as the caller says.
                $($n if $n <= U::QUERIES => unsafe {
                    if U::VECTORS == 2 {
                        some::<U, K, $n, 2>(a, tile, scratch)
                    } else {
                        some::<U, K, $n, 1>(a, tile, scratch)
                    }
                },)*
                _ => {}
            }
        };
    }
    with!(1 2 3 4 5 6 7 8 9 10 11 12);
}

#[inline(always)]
unsafe fn some<U: Unit, K: Kept, const N: usize, const VECTORS: usize>(
    a: &Attention<K>,
    tile: &QueryTile,
    scratch: *mut f32,
) {
    let dim = a.cache.head_dim;
    // Visible positions of each query, and those of any query.
    let end = |n: usize| if tile.all > 0 { tile.all } else { tile.position + n / tile.heads + 1 };
    let begin = |n: usize| end(n).saturating_sub(a.window);
    let (first, length) = (begin(0), end(N - 1));
    let pages = first / PAGE..length.div_ceil(PAGE);
    // SAFETY: as the caller says: pages of all positions up to `length` are in the table, scores fit into the scratch.
    unsafe {
        let page = |n: usize| a.cache.head(*a.pages.add(tile.pages + n), tile.kv_head);
        // Queries, scaled, side by side.
        let queries = scratch.add(N * a.context);
        for n in 0..N {
            let from = a.queries.add((tile.row + n / tile.heads) * a.width + (tile.head + n % tile.heads) * dim);
            for c in 0..dim {
                *queries.add(c * N + n) = *from.add(c) * a.scale;
            }
        }
        for n in pages.clone() {
            let keys = a.cache.keys.at().add(page(n)).cast_const();
            for part in (0..PAGE).step_by(VECTORS * LANES) {
                let mut sums = [[U::splat(0.0); VECTORS]; N];
                for c in 0..dim {
                    let keys = vectors::<U, K, VECTORS>(keys.add(c * PAGE + part));
                    for (q, sums) in sums.iter_mut().enumerate() {
                        let query = U::splat(*queries.add(c * N + q));
                        for (sum, key) in sums.iter_mut().zip(keys) {
                            *sum = U::fma(query, key, *sum);
                        }
                    }
                }
                for (q, sums) in sums.into_iter().enumerate() {
                    for (v, sum) in sums.into_iter().enumerate() {
                        U::store(scratch.add(q * a.context + n * PAGE + part + v * LANES), sum);
                    }
                }
            }
        }
        let mut totals = [0.0f32; N];
        for (n, total) in totals.iter_mut().enumerate() {
            *total = softmax::<U>(scratch.add(n * a.context), begin(n)..end(n), pages.start * PAGE..length);
        }
        let padded = padded(dim);
        let whole = padded / (VECTORS * LANES) * (VECTORS * LANES);
        for from in (0..whole).step_by(VECTORS * LANES) {
            weigh::<U, K, N, VECTORS>(a, tile, scratch, first..length, &totals, from);
        }
        for from in (whole..padded).step_by(LANES) {
            weigh::<U, K, N, 1>(a, tile, scratch, first..length, &totals, from);
        }
    }
}

/// Loads adjacent vectors of keys or values.
#[inline(always)]
unsafe fn vectors<U: Unit, K: Kept, const VECTORS: usize>(from: *const K) -> [U::V; VECTORS] {
    // SAFETY: as the caller says.
    unsafe {
        let mut all = [U::splat(0.0); VECTORS];
        for (v, one) in all.iter_mut().enumerate() {
            *one = K::load::<U>(from.add(v * LANES));
        }
        all
    }
}

/// Values of the visible positions, weighted by their scores: some vectors of each head's, those at `column`.
#[inline(always)]
unsafe fn weigh<U: Unit, K: Kept, const N: usize, const VECTORS: usize>(
    a: &Attention<K>,
    tile: &QueryTile,
    scores: *const f32,
    seen: Range<usize>,
    totals: &[f32; N],
    column: usize,
) {
    let dim = a.cache.head_dim;
    let padded = padded(dim);
    // SAFETY: as the caller says.
    unsafe {
        let mut sums = [[U::splat(0.0); VECTORS]; N];
        for n in seen.start / PAGE..seen.end.div_ceil(PAGE) {
            let page = a.cache.head(*a.pages.add(tile.pages + n), tile.kv_head);
            let values = a.cache.values.at().add(page + column).cast_const();
            for place in seen.start.saturating_sub(n * PAGE)..PAGE.min(seen.end - n * PAGE) {
                let values = vectors::<U, K, VECTORS>(values.add(place * padded));
                for (q, sums) in sums.iter_mut().enumerate() {
                    let weight = U::splat(*scores.add(q * a.context + n * PAGE + place));
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum = U::fma(weight, value, *sum);
                    }
                }
            }
        }
        for (n, sums) in sums.into_iter().enumerate() {
            let total = U::splat(totals[n]);
            let row = a.out.add((tile.row + n / tile.heads) * a.out_width + (tile.head + n % tile.heads) * dim);
            for (v, sum) in sums.into_iter().enumerate() {
                let at = column + v * LANES;
                if at < dim {
                    U::store_part(row.add(at), dim - at, U::div(sum, total));
                }
            }
        }
    }
}

/// Turns the scores of visible positions into weights, and those of the others in `all` into zeros; returns the sum.
/// Vectors begin at multiples of their length, so that a query's sum is the same alone and in company.
#[inline(always)]
unsafe fn softmax<U: Unit>(scores: *mut f32, seen: Range<usize>, all: Range<usize>) -> f32 {
    // SAFETY: there are scores for whole pages around `all`.
    unsafe {
        for at in (all.start..seen.start).chain(seen.end..all.end.next_multiple_of(LANES)) {
            *scores.add(at) = f32::NEG_INFINITY;
        }
        let start = seen.start / LANES * LANES;
        let mut most = U::splat(f32::NEG_INFINITY);
        for at in (start..seen.end).step_by(LANES) {
            most = U::max(most, U::load(scores.add(at)));
        }
        let most = U::splat(U::most(most));
        for at in (start..seen.end).step_by(LANES) {
            U::store(scores.add(at), U::exp(U::sub(U::load(scores.add(at)), most)));
        }
        // Positions that are not visible must have weight 0, not almost 0.
        for at in (all.start..seen.start).chain(seen.end..all.end.next_multiple_of(LANES)) {
            *scores.add(at) = 0.0;
        }
        let mut total = U::splat(0.0);
        for at in (start..seen.end).step_by(LANES) {
            total = U::add(total, U::load(scores.add(at)));
        }
        U::sum(total)
    }
}
