//! Executor on the CPU's own vector units. Owns repacked weights, activations, the KV cache and a pool of threads;
//! operations run when they are called. Kernels are written once over the units ([`unit`]) and chosen at load. Knows
//! no file: weights arrive as tensors, whose memory is read once and never again.

#![allow(clippy::indexing_slicing, reason = "in kernels: over arrays whose length is a constant")]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod amx_floats;
mod attention;
mod cores;
mod kernels;
mod matmul;
mod memory;
mod operations;
mod pack;
mod pool;
mod quantize;
mod rows;
mod unit;

use half::f16;

use super::{ActId, Batch, Executor, Function, Index, MatrixId, PAGE, Pairing, Rope, RopeId, Sizes, VectorId};
use crate::artifact::Tensor;
use crate::{EngineError, LoadError};
use attention::Cache;
use kernels::Kernels;
use memory::{Allocation, Memory};
use pack::{Family, Layout};
use pool::Pool;

pub use cores::Cores;
pub use unit::CpuUnit;

/// Bytes of weights that are repacked as one part.
const REPACK_BYTES: usize = 256 << 10;

/// Most rows that [`Kernels::split`] packs together.
const SPLIT_ROWS: usize = 16;
#[cfg(target_arch = "x86_64")]
const _: () = assert!(SPLIT_ROWS == unit::amx::ROWS, "a tile of AMX is packed whole");

/// Neighbouring rows of a matrix that are of one family.
#[derive(Clone, Copy)]
struct CpuSegment {
    layout: Layout,
    weights: Allocation<u8>,
}

#[derive(Clone, Copy)]
struct CpuActivation {
    width: usize,
    rows: usize,
    values: Allocation<f32>,
}

#[derive(Clone, Copy)]
struct Rotation {
    pairs: usize,
    pairing: Pairing,
    table: Allocation<f32>,
}

/// Callback for data that was copied and is not read again.
type Forget = Box<dyn Fn(&[u8]) + Send>;

/// Runs operations on the CPU.
pub struct Cpu {
    unit: CpuUnit,
    kernels: &'static Kernels,
    pool: Pool,
    sizes: Sizes,
    memory: Memory,
    matrices: Vec<Vec<CpuSegment>>,
    vectors: Vec<Allocation<f32>>,
    rotations: Vec<Rotation>,
    activations: Vec<CpuActivation>,
    caches: Vec<Cache<f16>>,
    /// Keys and values of bidirectional attention, for models that use it.
    bidirectional: Option<Cache<f32>>,
    /// Activations packed for the current product.
    packed: Allocation<u8>,
    /// Scores or unpacked weights, for each thread.
    scratch: Vec<Allocation<f32>>,
    batch: Batch,
    /// Range of its sequence's rows, for each row.
    spans: Vec<[u32; 2]>,
    /// Parts of causal attention in this step; empty until a layer needs them.
    tiles: Vec<attention::QueryTile>,
    /// Rows that operations run on now.
    rows: usize,
    /// First error of this step.
    fault: Option<String>,
    /// Called with the data of every tensor that was copied.
    forget: Option<Forget>,
}

/// Positions that a query may attend to, in whole pages: of a sequence, or of rows in bidirectional attention. Size
/// of the scratch for scores as well as bound of the kernels that write them, hence a single function.
fn most_attended(sizes: &Sizes) -> usize {
    sizes.context.max(sizes.max_rows).next_multiple_of(PAGE)
}

fn refused(what: &str, e: &std::io::Error) -> LoadError {
    LoadError::Device { device: "CPU".into(), reason: format!("no memory for {what}: {e}") }
}

impl Cpu {
    /// An executor for these sizes on a unit that this processor has and this many threads, the caller's among them.
    pub(crate) fn new(unit: CpuUnit, threads: usize, sizes: Sizes) -> Result<Self, LoadError> {
        if !unit.is_here() {
            let reason = format!("this processor has no {}", unit.name());
            return Err(LoadError::Device { device: "CPU".into(), reason });
        }
        let mut memory = Memory::default();
        let page = attention::page(sizes.kv_heads, sizes.head_dim);
        let mut cache = || {
            let keys = memory.take::<f16>(sizes.pages * page)?;
            let values = memory.take::<f16>(sizes.pages * page)?;
            Ok(Cache { keys, values, kv_heads: sizes.kv_heads, head_dim: sizes.head_dim })
        };
        let caches =
            (0..sizes.layers).map(|_| cache()).collect::<Result<_, _>>().map_err(|e| refused("the KV cache", &e))?;
        let pool = Pool::new(threads.max(1));
        let packed = memory.take(0).map_err(|e| refused("activations", &e))?;
        Ok(Self {
            unit,
            kernels: Kernels::of(unit),
            pool,
            sizes,
            memory,
            matrices: Vec::new(),
            vectors: Vec::new(),
            rotations: Vec::new(),
            activations: Vec::new(),
            caches,
            bidirectional: None,
            packed,
            scratch: Vec::new(),
            batch: Batch::default(),
            spans: Vec::new(),
            tiles: Vec::new(),
            rows: 0,
            fault: None,
            forget: None,
        })
    }

    /// Calls `forget` with the data of every tensor once it was copied, until the last.
    pub(crate) fn forget_with(&mut self, forget: impl Fn(&[u8]) + Send + 'static) {
        self.forget = Some(Box::new(forget));
    }

    /// Vector unit of the executor.
    pub fn unit(&self) -> CpuUnit {
        self.unit
    }

    /// Threads that work on a step.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Values of an activation that belong to the current rows.
    fn values(&self, id: ActId) -> &[f32] {
        let Some(place) = self.activations.get(id.0) else { return &[] };
        let count = (self.rows * place.width).min(place.values.len());
        // SAFETY: the allocation has that many values, and nothing writes them while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(place.values.at(), count) }
    }
}

impl Executor for Cpu {
    fn matrix(&mut self, parts: &[Tensor<'_>]) -> Result<MatrixId, LoadError> {
        let mut segments = Vec::new();
        for group in parts.chunk_by(|a, b| Family::of(a.kind) == Family::of(b.kind)) {
            let Some(first) = group.first() else { continue };
            let layout = Layout {
                family: Family::of(first.kind),
                rows: group.iter().map(|part| part.rows).sum(),
                columns: first.columns,
                lanes: self.kernels.lanes,
                signed: self.kernels.signed,
            };
            let weights = self.memory.take::<u8>(layout.bytes()).map_err(|e| refused(first.name, &e))?;
            let each = (REPACK_BYTES / layout.group()).max(1);
            self.pool.run(layout.groups().div_ceil(each), &|part, _| {
                let groups = part * each..((part + 1) * each).min(layout.groups());
                let (from, len) = (groups.start * layout.group(), groups.len() * layout.group());
                // SAFETY: parts are ranges of groups that do not overlap, inside of the allocation, which is new.
                let out = unsafe { std::slice::from_raw_parts_mut(weights.at().add(from), len) };
                pack::repack(&layout, group, groups, out);
            });
            segments.push(CpuSegment { layout, weights });
            if let Some(forget) = &self.forget {
                group.iter().for_each(|part| forget(part.data));
            }
        }
        self.matrices.push(segments);
        Ok(MatrixId(self.matrices.len() - 1))
    }

    fn vector(&mut self, values: &[f32]) -> Result<VectorId, LoadError> {
        let piece = self.memory.take(values.len()).map_err(|e| refused("a vector", &e))?;
        // SAFETY: the allocation is new and has as many values.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), piece.at(), values.len()) };
        self.vectors.push(piece);
        Ok(VectorId(self.vectors.len() - 1))
    }

    fn rope(&mut self, rope: &Rope) -> Result<RopeId, LoadError> {
        let VectorId(table) = self.vector(&rope.table(self.sizes.context))?;
        let table = self.vectors.swap_remove(table);
        self.rotations.push(Rotation { pairs: rope.dim / 2, pairing: rope.pairing, table });
        Ok(RopeId(self.rotations.len() - 1))
    }

    fn activation(&mut self, width: usize, rows: usize) -> Result<ActId, LoadError> {
        let values = self.memory.take(width * rows).map_err(|e| refused("activations", &e))?;
        self.activations.push(CpuActivation { width, rows, values });
        Ok(ActId(self.activations.len() - 1))
    }

    fn ready(&mut self) -> Result<(), LoadError> {
        // Products only: logits may be wider by far.
        let widest = self.matrices.iter().flatten().map(|segment| segment.layout.columns).max().unwrap_or(0);
        let widest = widest.next_multiple_of(unit::BLOCK);
        // Floats take four bytes a value, more than rounded ones with their scales, and may come in whole tiles only.
        let bytes = widest * self.sizes.max_rows.next_multiple_of(SPLIT_ROWS) * size_of::<f32>();
        self.packed = self.memory.take(bytes).map_err(|e| refused("activations", &e))?;
        let scores = attention::scratch(most_attended(&self.sizes), self.sizes.head_dim);
        let scratch = scores.max(matmul::scratch(widest).div_ceil(size_of::<f32>()));
        self.scratch = (0..self.pool.threads())
            .map(|_| self.memory.take(scratch))
            .collect::<Result<_, _>>()
            .map_err(|e| refused("scores", &e))?;
        self.forget = None;
        Ok(())
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), EngineError> {
        if !self.sizes.hold(batch) {
            return Err(EngineError::Device("a step exceeds the sizes of the executor".into()));
        }
        self.batch.clone_from(batch);
        self.spans = batch.spans();
        self.tiles.clear();
        self.rows = batch.rows.len();
        self.fault = None;
        Ok(())
    }

    fn embed(&mut self, table: MatrixId, index: Index, scale: f32, out: ActId, add: bool) {
        self.run_embed(table, index, scale, out, add);
    }

    fn add(&mut self, x: ActId, out: ActId) {
        let (Some((x, out)), add) = (self.pair(x, out), self.kernels.add) else { return };
        let width = x.width.min(out.width);
        // SAFETY: rows of activations; the unit is there.
        self.each_row(width, &|r, _| unsafe { add(x.row(r), 1.0, width, out.row(r)) });
    }

    fn add_bias(&mut self, bias: VectorId, out: ActId) {
        let (Some(bias), Some(out)) = (self.weights(bias), self.activation_of(out)) else { return };
        let (add, width) = (self.kernels.add, out.width.min(bias.len()));
        // SAFETY: rows of an activation and a vector that is as long; the unit is there.
        self.each_row(width, &|r, _| unsafe { add(bias.at(), 1.0, width, out.row(r)) });
    }

    fn rms_norm(&mut self, x: ActId, weight: VectorId, eps: f32, out: ActId) {
        let (Some((x, out)), Some(weight)) = (self.pair(x, out), self.weights(weight)) else { return };
        let (norm, width) = (self.kernels.rms_norm, x.width.min(out.width).min(weight.len()));
        // SAFETY: rows of activations and a vector that is as long; the unit is there.
        self.each_row(width, &|r, _| unsafe { norm(x.row(r), weight.at(), width, eps, out.row(r)) });
    }

    fn layer_norm(&mut self, x: ActId, weight: VectorId, bias: VectorId, eps: f32, out: ActId) {
        let (Some((x, out)), Some(weight), Some(bias)) = (self.pair(x, out), self.weights(weight), self.weights(bias))
        else {
            return;
        };
        let width = x.width.min(out.width).min(weight.len()).min(bias.len());
        let norm = self.kernels.layer_norm;
        // SAFETY: rows of activations and vectors that are as long; the unit is there.
        self.each_row(width, &|r, _| unsafe { norm(x.row(r), weight.at(), bias.at(), width, eps, out.row(r)) });
    }

    fn head_norm(&mut self, qkv: ActId, query: VectorId, key: VectorId, eps: f32) {
        self.run_head_norm(qkv, query, key, eps);
    }

    fn matmul(&mut self, matrix: MatrixId, x: ActId, out: ActId, add: bool) {
        self.run_matmul(matrix, x, out, add);
    }

    fn rope_store(&mut self, qkv: ActId, rope: Option<RopeId>, layer: usize) {
        self.run_rope_store(qkv, rope, layer);
    }

    fn attention(&mut self, qkv: ActId, layer: usize, scale: f32, window: Option<u32>, out: ActId) {
        self.run_attention(qkv, layer, scale, window, out);
    }

    fn attention_both_ways(&mut self, qkv: ActId, scale: f32, out: ActId) {
        self.run_attention_both_ways(qkv, scale, out);
    }

    fn activate(&mut self, function: Function, x: ActId) {
        let (Some(x), apply) = (self.activation_of(x), self.kernels.apply) else { return };
        // SAFETY: rows of an activation; the unit is there.
        self.each_row(x.width, &|r, _| unsafe { apply(function, x.row(r), std::ptr::null(), x.width, x.row(r)) });
    }

    fn gate(&mut self, function: Function, x: ActId, out: ActId) {
        let (Some((x, out)), apply) = (self.pair(x, out), self.kernels.apply) else { return };
        let width = (x.width / 2).min(out.width);
        // SAFETY: rows of activations, one of them twice as wide; the unit is there.
        self.each_row(4 * width, &|r, _| unsafe {
            apply(function, x.row(r), x.row(r).add(x.width / 2), width, out.row(r));
        });
    }

    fn pick(&mut self, x: ActId, out: ActId) {
        self.run_pick(x, out);
    }

    fn pick_mean(&mut self, x: ActId, out: ActId) {
        self.run_pick_mean(x, out);
    }

    fn finish(&mut self, logits: ActId) -> Result<Vec<f32>, EngineError> {
        if self.pool.take_failure() {
            self.fault.get_or_insert_with(|| "a thread ended while it worked on a step".into());
        }
        match self.fault.take() {
            Some(fault) => Err(EngineError::Device(fault)),
            None => Ok(self.values(logits).to_vec()),
        }
    }

    fn copy_page(&mut self, from: u32, to: u32) -> bool {
        let page = attention::page(self.sizes.kv_heads, self.sizes.head_dim);
        let [Some(from), Some(to)] =
            [from, to].map(|page| usize::try_from(page).ok().filter(|page| *page < self.sizes.pages))
        else {
            return false;
        };
        if from == to {
            return true;
        }
        for cache in &self.caches {
            for piece in [&cache.keys, &cache.values] {
                // SAFETY: the allocation holds `pages` pages, both are among them and differ, and no step runs.
                unsafe { std::ptr::copy_nonoverlapping(piece.at().add(from * page), piece.at().add(to * page), page) };
            }
        }
        true
    }

    fn memory(&self) -> u64 {
        u64::try_from(self.memory.taken()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests;
