//! Executors, which run the operations of a model. Model code names operations on tensors in order. [`plain`] is the
//! reference: slow, obvious, the standard of the tests. [`gpu`] runs WGSL kernels, [`cpu`] the CPU's vector units.
//! Each kernel has the name of its operation.
//!
//! A step is a batch of rows, each a token at a position of a sequence: chunks of prompts and single tokens of
//! running answers go through the same operations together.

pub mod cpu;
#[cfg(feature = "gpu")]
pub mod gpu;
pub mod plain;

use crate::artifact::Tensor;
use crate::{EngineError, LoadError};

/// Tokens of a page of the KV cache.
pub const PAGE: usize = 32;

/// A weight matrix that an executor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatrixId(pub(crate) usize);
/// A weight vector that an executor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VectorId(pub(crate) usize);
/// A table of rotations that an executor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RopeId(pub(crate) usize);
/// An activation: rows of one width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ActId(pub(crate) usize);

/// Values of a head that are rotated as a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Values `2i` and `2i + 1`: llama, whose weights were permuted for it.
    Neighbours,
    /// Values `i` and `i + dim / 2`: all others.
    Halves,
}

/// Rotation of queries and keys by their positions (RoPE, arXiv:2104.09864): pair `i` at position `p` by the angle `p
/// * scale * base^(-2i / dim) / factors[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Rotated values of a head, its first ones; even.
    pub dim: usize,
    /// Values that form a pair.
    pub pairing: Pairing,
    /// Base of the frequencies.
    pub base: f64,
    /// Factor of the positions (arXiv:2306.15595); 1 for most models.
    pub scale: f64,
    /// Divisor of the angle of each pair (Llama 3.1); empty for 1, else `dim / 2` values.
    pub factors: Vec<f32>,
}

impl Rope {
    /// Cosine and sine of every position and pair, computed in f64: sine is exact only near zero on a GPU. Layout
    /// `[context][dim / 2][cos, sin]`.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "positions are small; f32 is what kernels take"
    )]
    pub fn table(&self, context: usize) -> Vec<f32> {
        let pairs = self.dim / 2;
        let mut table = Vec::with_capacity(context * pairs * 2);
        for position in 0..context {
            for pair in 0..pairs {
                let frequency = self.base.powf(-2.0 * pair as f64 / self.dim as f64);
                let factor = self.factors.get(pair).copied().map_or(1.0, f64::from);
                let angle = position as f64 * self.scale * frequency / factor;
                table.push(angle.cos() as f32);
                table.push(angle.sin() as f32);
            }
        }
        table
    }
}

/// Index by which [`Executor::embed`] selects rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Index {
    /// Token of each row.
    Token,
    /// Position of each row (BERT).
    Position,
    /// Type of each row (BERT's segments).
    Type,
}

/// Function of single values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Function {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x * Φ(x)`, Φ by the error function (arXiv:1606.08415).
    Gelu,
    /// `x / 2 * (1 + tanh(sqrt(2 / π) * (x + 0.044715 x³)))`.
    GeluTanh,
    /// `tanh(x)`.
    Tanh,
    /// `max(x, 0)`.
    Relu,
}

/// Sizes for which an executor is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Most rows of a step.
    pub max_rows: usize,
    /// Most rows of a step whose logits are read.
    pub max_picks: usize,
    /// Most sequences.
    pub slots: usize,
    /// Most tokens of a sequence.
    pub context: usize,
    /// Pages of the KV cache.
    pub pages: usize,
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Token types; 0 for a model without them.
    pub types: usize,
    /// Layers that keep keys and values; 0 for an encoder.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
}

impl Sizes {
    /// Pages of one sequence.
    pub fn pages_per_slot(&self) -> usize {
        self.context.div_ceil(PAGE)
    }
    /// Width of queries, keys and values side by side.
    pub fn qkv_width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }
    /// True if an executor of these sizes can run the step.
    pub fn hold(&self, batch: &Batch) -> bool {
        let within = |n: u32, most: usize| usize::try_from(n).is_ok_and(|n| n < most);
        let rows = batch.rows.len();
        rows <= self.max_rows
            && batch.picks.len() <= self.max_picks
            && batch.pages.len() == self.slots * self.pages_per_slot()
            && (batch.types.is_empty() || batch.types.len() == rows)
            && batch.types.iter().all(|kind| within(*kind, self.types))
            && batch.rows.iter().all(|row| {
                within(row.slot, self.slots) && within(row.position, self.context) && within(row.token, self.vocabulary)
            })
            && batch.picks.iter().all(|pick| within(*pick, rows))
            && batch.pages.iter().all(|page| within(*page, self.pages))
    }
}

/// Row of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Token of the row.
    pub token: u32,
    /// Position in the sequence.
    pub position: u32,
    /// Slot of the sequence.
    pub slot: u32,
}

/// Rows of a step.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Rows of all sequences; those of one sequence in the order of their positions.
    pub rows: Vec<Row>,
    /// Indexes of the rows whose logits are wanted.
    pub picks: Vec<u32>,
    /// Page table, `slots` x `pages_per_slot`.
    pub pages: Vec<u32>,
    /// Token types of the rows; empty if all are 0.
    pub types: Vec<u32>,
}

impl Batch {
    /// For each row the range of its sequence's rows in this step: the first, and one past the last. Rows of a
    /// sequence are adjacent.
    pub fn spans(&self) -> Vec<[u32; 2]> {
        let mut spans = Vec::with_capacity(self.rows.len());
        let mut first = 0u32;
        for sequence in self.rows.chunk_by(|a, b| a.slot == b.slot) {
            let end = first.saturating_add(u32::try_from(sequence.len()).unwrap_or(u32::MAX));
            spans.extend(sequence.iter().map(|_| [first, end]));
            first = end;
        }
        spans
    }
}

/// Runs the operations of a model.
///
/// Weights and activations are made at load; a step is `begin`, operations, `finish`. Operations of a step run in
/// order and, but for [`embed`](Self::embed), on all its rows `r`. Shapes were checked when the model was loaded: an
/// executor may rely on them. Two activations of one operation are never the same.
///
/// Queries, keys and values of a row lie side by side in one activation of [`Sizes::qkv_width`] values: `heads`
/// queries, then `kv_heads` keys, then `kv_heads` values, each of `head_dim` values. Query head `h` attends to key
/// and value head `h / (heads / kv_heads)`.
pub trait Executor: Send {
    /// Stores a matrix whose rows are those of `parts` one below the other; all have the same number of columns.
    fn matrix(&mut self, parts: &[Tensor<'_>]) -> Result<MatrixId, LoadError>;
    /// Stores a vector.
    fn vector(&mut self, values: &[f32]) -> Result<VectorId, LoadError>;
    /// Stores a rotation for all positions of the context.
    fn rope(&mut self, rope: &Rope) -> Result<RopeId, LoadError>;
    /// Allocates an activation: `rows` rows of `width` values.
    fn activation(&mut self, width: usize, rows: usize) -> Result<ActId, LoadError>;

    /// Begins a step that [`Sizes::hold`].
    fn begin(&mut self, batch: &Batch) -> Result<(), EngineError>;
    /// `out[r] = table[index of r] * scale`, added to `out` if `add`.
    fn embed(&mut self, table: MatrixId, index: Index, scale: f32, out: ActId, add: bool);
    /// `out[r] += x[r]`.
    fn add(&mut self, x: ActId, out: ActId);
    /// `out[r] += bias`.
    fn add_bias(&mut self, bias: VectorId, out: ActId);
    /// `out[r] = x[r] / sqrt(mean(x[r]²) + eps) * weight` (arXiv:1910.07467).
    fn rms_norm(&mut self, x: ActId, weight: VectorId, eps: f32, out: ActId);
    /// `out[r] = (x[r] - mean(x[r])) / sqrt(variance(x[r]) + eps) * weight + bias` (arXiv:1607.06450), with the variance
    /// `mean((x[r] - mean(x[r]))²)`.
    fn layer_norm(&mut self, x: ActId, weight: VectorId, bias: VectorId, eps: f32, out: ActId);
    /// [`rms_norm`](Self::rms_norm) of each head: queries of `qkv` by the weights `query`, keys by `key`, both of
    /// `head_dim` values. Values are not changed.
    fn head_norm(&mut self, qkv: ActId, query: VectorId, key: VectorId, eps: f32);
    /// `out[r] = matrix · x[r]`, added to `out` if `add`. Quantised weights are multiplied with activations rounded
    /// to 8 bits in blocks of 32, as in llama.cpp. Floats are multiplied with f32, with a loss of less than 2^-13 of
    /// each product.
    fn matmul(&mut self, matrix: MatrixId, x: ActId, out: ActId, add: bool);
    /// Rotates the queries of `qkv` by their positions in place, and stores rotated keys and values of `layer` in
    /// f16. Without `rope` nothing is rotated.
    fn rope_store(&mut self, qkv: ActId, rope: Option<RopeId>, layer: usize);
    /// Causal attention of the queries of `qkv` over the stored keys and values of their sequence (arXiv:1706.03762):
    /// for each head `out[r] = Σ softmax_p(scale * query · key[p]) * value[p]`. The positions `p` end at that of the
    /// row, and with a `window` only that many of the last are read.
    fn attention(&mut self, qkv: ActId, layer: usize, scale: f32, window: Option<u32>, out: ActId);
    /// Bidirectional attention over all rows of the row's sequence in this step, with the keys and values in `qkv`.
    /// The KV cache is not read.
    fn attention_both_ways(&mut self, qkv: ActId, scale: f32, out: ActId);
    /// `x[r] = function(x[r])`.
    fn activate(&mut self, function: Function, x: ActId);
    /// `out[r] = function(left half of x[r]) * right half` (arXiv:2002.05202).
    fn gate(&mut self, function: Function, x: ActId, out: ActId);
    /// `out[i] = x[picks[i]]`. Later operations of the step run on the picked rows only.
    fn pick(&mut self, x: ActId, out: ActId);
    /// `out[i]` is the mean of the rows of `x` that belong to the sequence of row `picks[i]`. Later operations of the
    /// step run on these rows only.
    fn pick_mean(&mut self, x: ActId, out: ActId);
    /// Ends the step and returns `logits` of the picked rows, one after the other.
    fn finish(&mut self, logits: ActId) -> Result<Vec<f32>, EngineError>;

    /// Copies the keys and values of all layers from one page of the KV cache to another, before the next step.
    /// Returns false if the executor cannot; the tokens are prefilled again then.
    fn copy_page(&mut self, from: u32, to: u32) -> bool {
        let _ = (from, to);
        false
    }
    /// Device memory taken so far, in bytes.
    fn memory(&self) -> u64;
    /// Prepares the executor after the last weight was stored.
    fn ready(&mut self) -> Result<(), LoadError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
