//! The reference executor: every operation as it is defined, one loop in another. It is what kernels are tested
//! against and is never used to serve.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "arithmetic over shapes that were checked when the model was loaded"
)]

use half::f16;

use super::{ActId, Batch, Executor, MatrixId, PAGE, Sizes, VectorId};
use crate::artifact::{Tensor, TensorType};
use crate::{EngineError, LoadError};

/// Values of a block of quantised activations.
const BLOCK: usize = 32;

struct Segment {
    columns: usize,
    quantized: bool,
    /// Values of its rows, in f32.
    values: Vec<f32>,
}

/// Runs operations in plain f32.
pub struct Plain {
    sizes: Sizes,
    matrices: Vec<Vec<Segment>>,
    vectors: Vec<Vec<f32>>,
    activations: Vec<(usize, Vec<f32>)>,
    /// Keys and values by layer: `[page][place][kv head][value]`, rounded to f16 as executors keep them.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    rope: Vec<f32>,
    batch: Batch,
    rows: usize,
}

impl Plain {
    /// An executor for these sizes.
    pub fn new(sizes: Sizes) -> Self {
        let cache = vec![vec![0.0; sizes.pages * PAGE * sizes.kv_heads * sizes.head_dim]; sizes.layers];
        Self {
            matrices: Vec::new(),
            vectors: Vec::new(),
            activations: Vec::new(),
            keys: cache.clone(),
            values: cache,
            rope: sizes.rope_table(),
            batch: Batch::default(),
            rows: 0,
            sizes,
        }
    }

    /// The rows of a place, for tests.
    pub fn read(&self, id: ActId) -> &[f32] {
        let (width, values) = &self.activations[id.0];
        &values[..self.rows * width]
    }

    /// Fills a place, for tests.
    pub fn write(&mut self, id: ActId, values: &[f32]) {
        self.activations[id.0].1[..values.len()].copy_from_slice(values);
    }

    /// Where key or value `head` of a sequence's position is kept.
    fn cached(&self, slot: usize, position: usize, head: usize) -> usize {
        let page = self.batch.pages[slot * self.sizes.pages_per_slot() + position / PAGE] as usize;
        ((page * PAGE + position % PAGE) * self.sizes.kv_heads + head) * self.sizes.head_dim
    }
}

/// Activations as quantised matrices meet them: rounded to 8 bits with one scale for each block of 32.
fn rounded(x: &[f32]) -> Vec<f32> {
    x.chunks(BLOCK)
        .flat_map(|block| {
            let most = block.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let scale = most / 127.0;
            let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
            block.iter().map(move |v| (v * inverse).round_ties_even() * scale)
        })
        .collect()
}

impl Executor for Plain {
    fn matrix(&mut self, parts: &[Tensor<'_>]) -> Result<MatrixId, LoadError> {
        let segments = parts.iter().map(|part| {
            let mut values = Vec::with_capacity(part.columns * part.rows);
            part.kind.dequantize(part.data, &mut values);
            Segment { columns: part.columns, quantized: part.kind != TensorType::F32, values }
        });
        self.matrices.push(segments.collect());
        Ok(MatrixId(self.matrices.len() - 1))
    }

    fn vector(&mut self, values: &[f32]) -> Result<VectorId, LoadError> {
        self.vectors.push(values.to_vec());
        Ok(VectorId(self.vectors.len() - 1))
    }

    fn activation(&mut self, width: usize) -> Result<ActId, LoadError> {
        self.activations.push((width, vec![0.0; width * self.sizes.max_rows]));
        Ok(ActId(self.activations.len() - 1))
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), EngineError> {
        self.batch = batch.clone();
        self.rows = batch.rows.len();
        Ok(())
    }

    fn embed(&mut self, table: MatrixId, out: ActId) {
        let segment = &self.matrices[table.0][0];
        let width = self.activations[out.0].0;
        for (r, row) in self.batch.rows.iter().enumerate() {
            let from = row.token as usize * segment.columns;
            self.activations[out.0].1[r * width..(r + 1) * width].copy_from_slice(&segment.values[from..from + width]);
        }
    }

    fn rms_norm(&mut self, x: ActId, weight: VectorId, eps: f32, out: ActId) {
        let (width, x) = self.activations[x.0].clone();
        for r in 0..self.rows {
            let row = &x[r * width..(r + 1) * width];
            let mean = row.iter().map(|v| v * v).sum::<f32>() / width as f32;
            let scale = 1.0 / (mean + eps).sqrt();
            for (c, v) in row.iter().enumerate() {
                self.activations[out.0].1[r * width + c] = v * scale * self.vectors[weight.0][c];
            }
        }
    }

    fn matmul(&mut self, matrix: MatrixId, x: ActId, out: ActId, add: bool) {
        let (columns, x) = self.activations[x.0].clone();
        let width = self.activations[out.0].0;
        let mut offset = 0;
        for segment in &self.matrices[matrix.0] {
            let rows = segment.values.len() / segment.columns;
            for r in 0..self.rows {
                let row = &x[r * columns..r * columns + segment.columns];
                let row = if segment.quantized { rounded(row) } else { row.to_vec() };
                for n in 0..rows {
                    let weights = &segment.values[n * segment.columns..(n + 1) * segment.columns];
                    let sum: f32 = weights.iter().zip(&row).map(|(w, v)| w * v).sum();
                    let place = &mut self.activations[out.0].1[r * width + offset + n];
                    *place = if add { *place + sum } else { sum };
                }
            }
            offset += rows;
        }
    }

    fn rope_store(&mut self, qkv: ActId, layer: usize) {
        let s = self.sizes;
        let width = s.qkv_width();
        for (r, row) in self.batch.rows.clone().iter().enumerate() {
            let (position, slot) = (row.position as usize, row.slot as usize);
            let mut values = self.activations[qkv.0].1[r * width..(r + 1) * width].to_vec();
            for head in 0..s.heads + s.kv_heads {
                for pair in 0..s.rope_dim / 2 {
                    let at = (position * s.rope_dim / 2 + pair) * 2;
                    let (cos, sin) = (self.rope[at], self.rope[at + 1]);
                    let i = head * s.head_dim + 2 * pair;
                    let (a, b) = (values[i], values[i + 1]);
                    (values[i], values[i + 1]) = (a * cos - b * sin, a * sin + b * cos);
                }
            }
            for head in 0..s.kv_heads {
                let to = self.cached(slot, position, head);
                for c in 0..s.head_dim {
                    let key = values[(s.heads + head) * s.head_dim + c];
                    let value = values[(s.heads + s.kv_heads + head) * s.head_dim + c];
                    self.keys[layer][to + c] = f16::from_f32(key).to_f32();
                    self.values[layer][to + c] = f16::from_f32(value).to_f32();
                }
            }
            let queries = s.heads * s.head_dim;
            self.activations[qkv.0].1[r * width..r * width + queries].copy_from_slice(&values[..queries]);
        }
    }

    fn attention(&mut self, qkv: ActId, layer: usize, out: ActId) {
        let s = self.sizes;
        let (from, to) = (s.qkv_width(), s.heads * s.head_dim);
        for (r, row) in self.batch.rows.clone().iter().enumerate() {
            for head in 0..s.heads {
                let query = self.activations[qkv.0].1[r * from + head * s.head_dim..][..s.head_dim].to_vec();
                let kv = head / (s.heads / s.kv_heads);
                let places: Vec<_> =
                    (0..=row.position as usize).map(|position| self.cached(row.slot as usize, position, kv)).collect();
                let scores: Vec<f32> = places
                    .iter()
                    .map(|at| {
                        let keys = &self.keys[layer][*at..at + s.head_dim];
                        query.iter().zip(keys).map(|(q, k)| q * k).sum::<f32>() / (s.head_dim as f32).sqrt()
                    })
                    .collect();
                let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
                let total: f32 = weights.iter().sum();
                for c in 0..s.head_dim {
                    let sum: f32 = weights.iter().zip(&places).map(|(w, at)| w * self.values[layer][at + c]).sum();
                    self.activations[out.0].1[r * to + head * s.head_dim + c] = sum / total;
                }
            }
        }
    }

    fn silu_mul(&mut self, x: ActId, out: ActId) {
        let (double, x) = self.activations[x.0].clone();
        let width = double / 2;
        for r in 0..self.rows {
            for c in 0..width {
                let (gate, up) = (x[r * double + c], x[r * double + width + c]);
                self.activations[out.0].1[r * width + c] = gate / (1.0 + (-gate).exp()) * up;
            }
        }
    }

    fn pick(&mut self, x: ActId, out: ActId) {
        let (width, x) = self.activations[x.0].clone();
        for (i, r) in self.batch.picks.iter().enumerate() {
            let from = *r as usize * width;
            self.activations[out.0].1[i * width..(i + 1) * width].copy_from_slice(&x[from..from + width]);
        }
        self.rows = self.batch.picks.len();
    }

    fn finish(&mut self, logits: ActId) -> Result<Vec<f32>, EngineError> {
        Ok(self.read(logits).to_vec())
    }

    fn memory(&self) -> u64 {
        0
    }
}
