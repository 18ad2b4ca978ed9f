//! Who runs the operations of a model. Model code names operations on tensors in order; an executor runs them.
//! [`plain`] is the reference: slow, obvious, what the others are tested against. [`gpu`] runs WGSL kernels. Each kernel
//! has the name of the operation it runs.
//!
//! A step is a batch of rows, each a token at a position of a sequence: parts of prompts and single tokens of running
//! answers go through the same operations together.

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
/// A place for activations: `max_rows` rows of one width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ActId(pub(crate) usize);

/// Sizes that an executor is made for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sizes {
    /// Rows of a step.
    pub max_rows: usize,
    /// Rows of a step whose logits are read.
    pub max_picks: usize,
    /// Sequences.
    pub slots: usize,
    /// Tokens of a sequence.
    pub context: usize,
    /// Pages of the KV cache.
    pub pages: usize,
    /// Layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Values of a head that are rotated.
    pub rope_dim: usize,
    /// Base of the rotation's frequencies.
    pub rope_base: f64,
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
    /// Cosine and sine of every position and pair (RoPE, arXiv:2104.09864), computed in f64: sine is exact only near
    /// zero on a GPU. Layout `[context][rope_dim / 2][cos, sin]`.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "positions are small; f32 is what kernels take"
    )]
    pub fn rope_table(&self) -> Vec<f32> {
        let pairs = self.rope_dim / 2;
        let mut table = Vec::with_capacity(self.context * pairs * 2);
        for position in 0..self.context {
            for pair in 0..pairs {
                let angle = position as f64 * self.rope_base.powf(-2.0 * pair as f64 / self.rope_dim as f64);
                table.push(angle.cos() as f32);
                table.push(angle.sin() as f32);
            }
        }
        table
    }
}

/// One row of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// The token.
    pub token: u32,
    /// Its position in its sequence.
    pub position: u32,
    /// The sequence.
    pub slot: u32,
}

/// The rows of a step.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Rows; those of one sequence in the order of their positions.
    pub rows: Vec<Row>,
    /// Places of the rows whose logits are wanted.
    pub picks: Vec<u32>,
    /// Page table, `slots` x `pages_per_slot`.
    pub pages: Vec<u32>,
}

/// Runs the operations of a model.
///
/// Weights and places are made at load; a step is `begin`, operations, `finish`. Operations of a step happen in order.
/// Shapes are those that were checked when the model was loaded: an executor may rely on them.
pub trait Executor: Send {
    /// Takes a matrix whose rows are those of `parts` one below the other; all have the same number of columns.
    fn matrix(&mut self, parts: &[Tensor<'_>]) -> Result<MatrixId, LoadError>;
    /// Takes a vector.
    fn vector(&mut self, values: &[f32]) -> Result<VectorId, LoadError>;
    /// Makes a place for activations.
    fn activation(&mut self, width: usize) -> Result<ActId, LoadError>;

    /// Begins a step.
    fn begin(&mut self, batch: &Batch) -> Result<(), EngineError>;
    /// `out[r] = table[token of r]`.
    fn embed(&mut self, table: MatrixId, out: ActId);
    /// `out[r] = x[r] / sqrt(mean(x[r]²) + eps) * weight` (arXiv:1910.07467).
    fn rms_norm(&mut self, x: ActId, weight: VectorId, eps: f32, out: ActId);
    /// `out[r] = matrix · x[r]`, added to what is there where `add`. Quantised weights meet activations that are rounded
    /// to 8 bits in blocks of 32, as in llama.cpp.
    fn matmul(&mut self, matrix: MatrixId, x: ActId, out: ActId, add: bool);
    /// Rotates queries and keys of `qkv` by their positions (pairs side by side) and stores keys and values.
    fn rope_store(&mut self, qkv: ActId, layer: usize);
    /// Causal attention of the queries of `qkv` over the stored keys and values of their sequence.
    fn attention(&mut self, qkv: ActId, layer: usize, out: ActId);
    /// `out[r] = silu(left half of x[r]) * right half` (arXiv:2002.05202).
    fn silu_mul(&mut self, x: ActId, out: ActId);
    /// `out[i] = x[picks[i]]`. Later operations of the step run on the picked rows only.
    fn pick(&mut self, x: ActId, out: ActId);
    /// Ends the step and gives `logits` of the picked rows, one after the other.
    fn finish(&mut self, logits: ActId) -> Result<Vec<f32>, EngineError>;

    /// Device memory taken so far, in bytes.
    fn memory(&self) -> u64;
    /// Runs after the last weight was taken.
    fn ready(&mut self) -> Result<(), LoadError> {
        Ok(())
    }
}
