//! Division of the executor's operations into parts for its threads. The kernels compute the parts.

use super::attention::{self, Attention, Cache, QueryTile};
use super::matmul::Product;
use super::memory::Allocation;
use super::pack::{self, Layout};
use super::pool::Pool;
use super::{
    ActId, Cpu, CpuActivation, Index, MatrixId, PAGE, RopeId, Rotation, SPLIT_ROWS, VectorId, most_attended, quantize,
};
use crate::exec::Pairing;

/// Values below which the calling thread runs an operation alone: distributing it costs as much as some thousands of
/// values.
const SINGLE_THREAD_VALUES: usize = 16 << 10;
/// Bytes of weights below which a product is not divided further.
const MIN_PART_BYTES: usize = 16 << 10;
/// Values of the widest head.
const MAX_HEAD_DIM: usize = 512;
/// Parts of a product for each thread: more than one, because another process may keep a thread from running.
const PARTS_PER_THREAD: usize = 4;

/// Calls `work` with every number below `count` and the thread's, on all threads if there is enough to do.
fn each(pool: &mut Pool, count: usize, cost: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    if count * cost < SINGLE_THREAD_VALUES {
        return (0..count).for_each(|n| work(n, 0));
    }
    let each = count.div_ceil(pool.threads() * PARTS_PER_THREAD);
    pool.run(count.div_ceil(each), &|part, thread| {
        (part * each..((part + 1) * each).min(count)).for_each(|n| work(n, thread));
    });
}

impl CpuActivation {
    /// Address of a row. Valid while the executor lives; rows do not overlap.
    pub(super) fn row(&self, r: usize) -> *mut f32 {
        debug_assert!(r < self.rows);
        // SAFETY: callers ask for rows of the step only, which `activation_of` has checked against the activation's rows.
        unsafe { self.values.at().add(r * self.width) }
    }
}

impl Cpu {
    /// Activation with room for the current rows.
    pub(super) fn activation_of(&mut self, id: ActId) -> Option<CpuActivation> {
        let place = self.activations.get(id.0).copied().filter(|place| place.rows >= self.rows);
        if place.is_none() {
            self.fail_step("an activation is missing or too small");
        }
        place
    }

    pub(super) fn pair(&mut self, x: ActId, out: ActId) -> Option<(CpuActivation, CpuActivation)> {
        Some((self.activation_of(x)?, self.activation_of(out)?))
    }

    pub(super) fn weights(&mut self, id: VectorId) -> Option<Allocation<f32>> {
        let vector = self.vectors.get(id.0).copied();
        if vector.is_none() {
            self.fail_step("a vector is missing");
        }
        vector
    }

    /// Fails the step: an operation does not fit its activations.
    fn fail_step(&mut self, what: &str) {
        self.fault.get_or_insert_with(|| what.to_owned());
    }

    /// Calls `work` with every row, on all threads if there is enough to do, `cost` values a row.
    pub(super) fn each_row(&mut self, cost: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        each(&mut self.pool, self.rows, cost, work);
    }

    pub(super) fn run_embed(&mut self, table: MatrixId, index: Index, scale: f32, out: ActId, add: bool) {
        let segment = self.matrices.get(table.0).and_then(|m| m.first()).copied();
        let (Some(out), Some(segment)) = (self.activation_of(out), segment) else { return };
        let layout = segment.layout;
        let width = layout.columns.min(out.width);
        for (r, row) in self.batch.rows.iter().enumerate() {
            let at = match index {
                Index::Token => row.token,
                Index::Position => row.position,
                Index::Type => self.batch.types.get(r).copied().unwrap_or(0),
            } as usize;
            if at >= layout.rows {
                self.fault.get_or_insert_with(|| "a row of an embedding table is missing".into());
                return;
            }
            let group = at / layout.lanes * layout.group();
            let mut values = vec![0.0; width];
            // SAFETY: the group lies in the table, and the row in the activation; nothing else uses them now.
            unsafe {
                let group = std::slice::from_raw_parts(segment.weights.at().add(group), layout.group());
                pack::unpack(&layout, group, at % layout.lanes, &mut values);
                let out = std::slice::from_raw_parts_mut(out.row(r), width);
                for (to, value) in out.iter_mut().zip(&values) {
                    *to = value * scale + if add { *to } else { 0.0 };
                }
            }
        }
    }

    pub(super) fn run_head_norm(&mut self, qkv: ActId, query: VectorId, key: VectorId, eps: f32) {
        let (Some(qkv), Some(query), Some(key)) = (self.activation_of(qkv), self.weights(query), self.weights(key))
        else {
            return;
        };
        let (s, norm) = (self.sizes, self.kernels.rms_norm);
        if qkv.width != s.qkv_width() || query.len() < s.head_dim || key.len() < s.head_dim {
            return self.fail_step("the heads of a norm do not fit its activation");
        }
        self.each_row(qkv.width, &|r, _| {
            for head in 0..s.heads + s.kv_heads {
                let weight = if head < s.heads { query } else { key };
                // SAFETY: heads of a row of an activation, and vectors of a head's length; the unit is there.
                unsafe {
                    let at = qkv.row(r).add(head * s.head_dim);
                    norm(at, weight.at(), s.head_dim, eps, at);
                }
            }
        });
    }

    pub(super) fn run_matmul(&mut self, matrix: MatrixId, x: ActId, out: ActId, add: bool) {
        let Some((x, out)) = self.pair(x, out) else { return };
        let segments = self.matrices.get(matrix.0).map_or(0, Vec::len);
        let mut packed = None;
        let mut column = 0;
        for n in 0..segments {
            let Some(segment) = self.matrices.get(matrix.0).and_then(|m| m.get(n)).copied() else { return };
            let layout = segment.layout;
            if layout.columns > x.width || column + layout.rows > out.width {
                return self.fail_step("a product does not fit its activations");
            }
            let how = (layout.family.is_quantized(), self.kernels.split.is_some_and(|split| (split.takes)(&layout)));
            if packed != Some(how) {
                packed = Some(how);
                if !self.pack(x, &layout) {
                    return self.fail_step("no room for packed activations");
                }
            }
            let product = Product {
                layout,
                weights: segment.weights.at(),
                x: self.packed.at(),
                rows: self.rows,
                tile: self.tile(&layout),
                // SAFETY: the column is inside of a row.
                out: unsafe { out.values.at().add(column) },
                width: out.width,
                add,
            };
            let groups = layout.groups();
            let each =
                (MIN_PART_BYTES / layout.group()).max(groups.div_ceil(self.pool.threads() * PARTS_PER_THREAD)).max(1);
            let (product, matmul) = (SharedInput(product), self.kernels.matmul);
            let Self { pool, scratch, .. } = self;
            pool.run(groups.div_ceil(each), &|part, thread| {
                let Some(scratch) = scratch.get(thread) else { return };
                // SAFETY: parts are groups that do not overlap, thus columns of `out` that do not; activations and packed
                // activations are as large as their shapes say, as is each thread's scratch; the unit is there.
                unsafe { matmul(product.get(), part * each..((part + 1) * each).min(groups), scratch.at().cast()) };
            });
            column += layout.rows;
        }
    }

    /// Most rows of a tile of activations for such weights.
    fn tile(&self, layout: &Layout) -> usize {
        if layout.family.is_quantized() { self.kernels.quantized_tile } else { self.kernels.tile }
    }

    /// Packs activations for products with weights of a layout. Returns false if there is no room.
    fn pack(&mut self, x: CpuActivation, layout: &Layout) -> bool {
        let (rows, tile, layout, packed) = (self.rows, self.tile(layout), *layout, self.packed);
        let split = self.kernels.split.filter(|split| (split.takes)(&layout));
        let most = if split.is_some() { rows.next_multiple_of(SPLIT_ROWS) } else { rows };
        if most * quantize::row_bytes(&layout) > packed.len() {
            return false;
        }
        if let Some(split) = split {
            each(&mut self.pool, rows.div_ceil(SPLIT_ROWS), SPLIT_ROWS * layout.columns, &|n, _| {
                let first = n * SPLIT_ROWS;
                // SAFETY: rows of an activation, and room for whole tiles of packed ones; the unit is there.
                unsafe {
                    let to = packed.at().add(first * quantize::row_bytes(&layout));
                    (split.split)(x.row(first), x.width, SPLIT_ROWS.min(rows - first), &layout, to);
                }
            });
            return true;
        }
        let (quantize, transpose) = (self.kernels.quantize, self.kernels.transpose);
        each(&mut self.pool, quantize::tiles(rows, tile).count(), tile.min(rows) * layout.columns, &|n, _| {
            let Some(tile) = quantize::tiles(rows, tile).nth(n) else { return };
            // SAFETY: rows of an activation, and a tile of the packed ones, which has room for all rows; the unit is there.
            unsafe {
                let to = packed.at().add(tile.offset(&layout));
                if layout.family.is_quantized() {
                    quantize(x.row(tile.first), x.width, tile.rows, &layout, to);
                } else {
                    transpose(x.row(tile.first), x.width, tile.rows, &layout, to.cast());
                }
            }
        });
        true
    }

    pub(super) fn run_rope_store(&mut self, qkv: ActId, rope: Option<RopeId>, layer: usize) {
        let Some(qkv) = self.activation_of(qkv) else { return };
        let s = self.sizes;
        let rotation = rope.and_then(|rope| self.rotations.get(rope.0).copied());
        let Some(cache) = self.caches.get(layer).copied() else { return self.fail_step("a layer has no cache") };
        let fits = rotation.is_none_or(|rotation| 2 * rotation.pairs <= s.head_dim);
        if qkv.width != s.qkv_width() || !fits || s.head_dim > MAX_HEAD_DIM || rope.is_some() != rotation.is_some() {
            return self.fail_step("the heads of a rotation do not fit its activation");
        }
        let (store, neighbours, halves) =
            (self.kernels.store, self.kernels.rotate_neighbours, self.kernels.rotate_halves);
        let rotate = match rotation.map(|rotation| rotation.pairing) {
            Some(Pairing::Halves) => halves,
            _ => neighbours,
        };
        let batch = std::mem::take(&mut self.batch);
        self.each_row(2 * qkv.width, &|r, _| {
            let Some(row) = batch.rows.get(r) else { return };
            let (position, slot) = (row.position as usize, row.slot as usize);
            let page = batch.pages.get(slot * s.pages_per_slot() + position / PAGE).copied().unwrap_or(0);
            // SAFETY: heads of a row of an activation. Positions are below the context, for which the table was made,
            // and pages below the cache's (`begin` has checked both). Rows are of different positions of the cache.
            unsafe {
                let turn = |head: *mut f32| {
                    if let Some(Rotation { pairs, table, .. }) = rotation {
                        rotate(head, table.at().add(position * pairs * 2), pairs);
                    }
                };
                (0..s.heads).for_each(|head| turn(qkv.row(r).add(head * s.head_dim)));
                for head in 0..s.kv_heads {
                    let from = qkv.row(r).add((s.heads + head) * s.head_dim);
                    // Only the stored key is rotated.
                    let mut key = [0.0f32; MAX_HEAD_DIM];
                    std::ptr::copy_nonoverlapping(from, key.as_mut_ptr(), s.head_dim);
                    turn(key.as_mut_ptr());
                    let value = from.add(s.kv_heads * s.head_dim);
                    store(&cache, page, position % PAGE, head, key.as_ptr(), value);
                }
            }
        });
        self.batch = batch;
    }

    /// Tiles of a step: consecutive rows of a sequence with the heads that share a key/value head. `pages` returns
    /// for a row the offset of its pages in a table, and the rows that it sees at once.
    fn tiles(&self, pages: impl Fn(usize) -> (usize, usize)) -> Vec<QueryTile> {
        let s = self.sizes;
        let together = s.heads / s.kv_heads.max(1);
        // Heads in equal parts, as few as possible.
        let queries = self.kernels.queries;
        let heads = together.div_ceil(together.div_ceil(queries).max(1)).max(1);
        let most = (queries / heads).max(1);
        let mut tiles = Vec::new();
        let rows = self.batch.rows.iter().zip(0u32..).collect::<Vec<_>>();
        let follows = |a: &(&crate::exec::Row, u32), b: &(&crate::exec::Row, u32)| {
            a.0.slot == b.0.slot && a.0.position + 1 == b.0.position
        };
        for stretch in rows.chunk_by(follows) {
            for part in stretch.chunks(most) {
                let Some((first, row)) = part.first().map(|(first, row)| (first, *row as usize)) else { continue };
                let (pages, all) = pages(row);
                for kv_head in 0..s.kv_heads {
                    for head in (0..together).step_by(heads) {
                        tiles.push(QueryTile {
                            row,
                            rows: part.len(),
                            head: kv_head * together + head,
                            heads: heads.min(together - head),
                            kv_head,
                            position: first.position as usize,
                            pages,
                            all,
                        });
                    }
                }
            }
        }
        tiles
    }

    pub(super) fn run_attention(&mut self, qkv: ActId, layer: usize, scale: f32, window: Option<u32>, out: ActId) {
        let Some((qkv, out)) = self.pair(qkv, out) else { return };
        let s = self.sizes;
        let Some(cache) = self.caches.get(layer).copied() else { return self.fail_step("a layer has no cache") };
        if qkv.width != s.qkv_width() || out.width < s.heads * s.head_dim {
            return self.fail_step("attention does not fit its activations");
        }
        if self.tiles.is_empty() {
            let per_slot = s.pages_per_slot();
            self.tiles = self.tiles(|row| (self.batch.rows.get(row).map_or(0, |row| row.slot as usize * per_slot), 0));
        }
        let Self { tiles, pool, scratch, .. } = self;
        let attention = SharedInput(Attention {
            cache,
            queries: qkv.values.at(),
            width: qkv.width,
            out: out.values.at(),
            out_width: out.width,
            pages: self.batch.pages.as_ptr(),
            scale,
            window: window.map_or(usize::MAX, |window| (window as usize).max(1)),
            context: most_attended(&s),
        });
        let kernel = self.kernels.attention;
        let cost: usize = tiles.iter().map(|tile| (tile.position + tile.rows) * s.head_dim).sum();
        each(pool, tiles.len(), cost / tiles.len().max(1), &|n, thread| {
            let (Some(tile), Some(scratch)) = (tiles.get(n), scratch.get(thread)) else { return };
            // SAFETY: rows and heads of activations, pages that `begin` has checked; tiles write different parts of `out`,
            // each thread has its own scratch; the unit is there.
            unsafe { kernel(attention.get(), tile, scratch.at()) };
        });
    }

    pub(super) fn run_attention_both_ways(&mut self, qkv: ActId, scale: f32, out: ActId) {
        let Some((qkv, out)) = self.pair(qkv, out) else { return };
        let s = self.sizes;
        if qkv.width != s.qkv_width() || out.width < s.heads * s.head_dim {
            return self.fail_step("attention does not fit its activations");
        }
        // Each sequence begins on a page of its own.
        let mut starts = vec![0usize; self.rows];
        let mut next = 0;
        for (r, [first, end]) in self.spans.iter().map(|span| span.map(|row| row as usize)).enumerate() {
            if r == first {
                starts.iter_mut().take(end).skip(first).for_each(|start| *start = next);
                next += (end - first).div_ceil(PAGE);
            }
        }
        let pages: Vec<u32> = (0..).take(next).collect();
        if self.bidirectional.is_none() {
            let values = (s.max_rows.div_ceil(PAGE) + s.slots) * attention::page(s.kv_heads, s.head_dim);
            let (Ok(keys), Ok(values)) = (self.memory.take::<f32>(values), self.memory.take::<f32>(values)) else {
                return self.fail_step("no memory for keys and values");
            };
            self.bidirectional = Some(Cache { keys, values, kv_heads: s.kv_heads, head_dim: s.head_dim });
        }
        let Some(cache) = self.bidirectional else { return };
        let (spans, store, shared) = (self.spans.clone(), self.kernels.store_f32, cache);
        let places = &starts;
        self.each_row(2 * qkv.width, &|r, _| {
            let (Some([first, _]), Some(start)) = (spans.get(r), places.get(r)) else { return };
            let at = r - *first as usize;
            for head in 0..s.kv_heads {
                // SAFETY: heads of a row of an activation; sequences have pages of their own, as many as there are at most.
                unsafe {
                    let key = qkv.row(r).add((s.heads + head) * s.head_dim);
                    let value = key.add(s.kv_heads * s.head_dim);
                    store(&shared, (start + at / PAGE) as u32, at % PAGE, head, key, value);
                }
            }
        });
        let tiles = self.tiles(|row| {
            let span = self.spans.get(row).copied().unwrap_or_default();
            (starts.get(row).copied().unwrap_or(0), (span[1] - span[0]) as usize)
        });
        let attention = SharedInput(Attention {
            cache,
            queries: qkv.values.at(),
            width: qkv.width,
            out: out.values.at(),
            out_width: out.width,
            pages: pages.as_ptr(),
            scale,
            window: usize::MAX,
            context: most_attended(&s),
        });
        let Self { pool, scratch, .. } = self;
        let kernel = self.kernels.attention_f32;
        each(pool, tiles.len(), SINGLE_THREAD_VALUES, &|n, thread| {
            let (Some(tile), Some(scratch)) = (tiles.get(n), scratch.get(thread)) else { return };
            // SAFETY: as for causal attention; the pages are those that were just filled.
            unsafe { kernel(attention.get(), tile, scratch.at()) };
        });
    }

    pub(super) fn run_pick(&mut self, x: ActId, out: ActId) {
        let Some(x) = self.activation_of(x) else { return };
        self.rows = self.batch.picks.len();
        let Some(out) = self.activation_of(out) else { return };
        let width = x.width.min(out.width);
        for (i, pick) in self.batch.picks.iter().enumerate() {
            // SAFETY: picks are rows of the step (`begin` has checked), activations have those rows and are not the same.
            unsafe { std::ptr::copy_nonoverlapping(x.row(*pick as usize), out.row(i), width) };
        }
    }

    pub(super) fn run_pick_mean(&mut self, x: ActId, out: ActId) {
        let Some(x) = self.activation_of(x) else { return };
        self.rows = self.batch.picks.len();
        let Some(out) = self.activation_of(out) else { return };
        let (add, width) = (self.kernels.add, x.width.min(out.width));
        for (i, pick) in self.batch.picks.iter().enumerate() {
            let [first, end] = self.spans.get(*pick as usize).copied().unwrap_or_default();
            let share = 1.0 / (end - first).max(1) as f32;
            // SAFETY: spans are rows of the step, activations have those rows and are not the same; the unit is there.
            unsafe {
                std::slice::from_raw_parts_mut(out.row(i), width).fill(0.0);
                (first..end).for_each(|r| add(x.row(r as usize), share, width, out.row(i)));
            }
        }
    }
}

/// Input shared by all threads of an operation: shapes, and pointers of which each thread uses its own part.
struct SharedInput<T>(T);

// SAFETY: the threads of one operation use different parts of what the pointers lead to, as each operation says. The
// pool finishes all parts before the operation ends.
unsafe impl<T> Sync for SharedInput<T> {}

impl<T> SharedInput<T> {
    fn get(&self) -> &T {
        &self.0
    }
}
