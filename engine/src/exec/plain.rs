//! Reference executor: every operation by its definition, as plain loops. Kernels are tested against it; it never
//! serves requests.

#![allow(
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "arithmetic over shapes that were checked when the model was loaded"
)]

use half::f16;

use super::{ActId, Batch, Executor, Function, Index, MatrixId, PAGE, Pairing, Rope, RopeId, Sizes, VectorId};
use crate::artifact::Tensor;
use crate::{EngineError, LoadError};

/// Values of a block of quantised activations.
const BLOCK: usize = 32;

struct PlainSegment {
    columns: usize,
    quantized: bool,
    /// Values of the rows, in f32.
    values: Vec<f32>,
}

/// Runs operations in plain f32.
pub struct Plain {
    sizes: Sizes,
    matrices: Vec<Vec<PlainSegment>>,
    vectors: Vec<Vec<f32>>,
    activations: Vec<(usize, Vec<f32>)>,
    /// Keys and values by layer: `[page][place][kv head][value]`, rounded to f16 as in the other executors.
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    ropes: Vec<(Rope, Vec<f32>)>,
    batch: Batch,
    rows: usize,
    /// True if activations are rounded before products with quantised weights.
    rounds: bool,
}

impl Plain {
    /// An executor without the rounding of activations, which all others do, to measure the effect of rounding alone.
    #[cfg(test)]
    pub(crate) fn exact(sizes: Sizes) -> Self {
        Self { rounds: false, ..Self::new(sizes) }
    }

    /// An executor for these sizes.
    pub fn new(sizes: Sizes) -> Self {
        let cache = vec![vec![0.0; sizes.pages * PAGE * sizes.kv_heads * sizes.head_dim]; sizes.layers];
        Self {
            matrices: Vec::new(),
            vectors: Vec::new(),
            activations: Vec::new(),
            keys: cache.clone(),
            values: cache,
            rounds: true,
            ropes: Vec::new(),
            batch: Batch::default(),
            rows: 0,
            sizes,
        }
    }

    /// Rows of an activation, for tests.
    pub fn read(&self, id: ActId) -> &[f32] {
        let (width, values) = &self.activations[id.0];
        &values[..self.rows * width]
    }

    /// Fills an activation, for tests.
    pub fn write(&mut self, id: ActId, values: &[f32]) {
        self.activations[id.0].1[..values.len()].copy_from_slice(values);
    }

    /// Index of key or value `head` of a sequence's position in the KV cache.
    fn cached(&self, slot: usize, position: usize, head: usize) -> usize {
        let page = self.batch.pages[slot * self.sizes.pages_per_slot() + position / PAGE] as usize;
        ((page * PAGE + position % PAGE) * self.sizes.kv_heads + head) * self.sizes.head_dim
    }
}

/// Activations for products with quantised matrices: rounded to 8 bits with one scale for each block of 32.
fn rounded(x: &[f32]) -> Vec<f32> {
    x.chunks(BLOCK)
        .flat_map(|block| {
            let most = block.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            let scale = most / 127.0;
            // Numbers so small that the inverse would be infinite are rounded to 0.
            let (scale, inverse) = if scale >= f32::MIN_POSITIVE { (scale, 1.0 / scale) } else { (0.0, 0.0) };
            block.iter().map(move |v| (v * inverse).round_ties_even() * scale)
        })
        .collect()
}

/// Values of `pairs` (key, value), weighted by the softmax of their keys' scores for `query`.
fn attend(query: &[f32], scale: f32, pairs: &[(&[f32], &[f32])]) -> Vec<f32> {
    let scores: Vec<f32> =
        pairs.iter().map(|(key, _)| query.iter().zip(*key).map(|(q, k)| q * k).sum::<f32>() * scale).collect();
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|score| (score - most).exp()).collect();
    let total: f32 = weights.iter().sum();
    (0..query.len())
        .map(|c| weights.iter().zip(pairs).map(|(weight, (_, value))| weight * value[c]).sum::<f32>() / total)
        .collect()
}

fn apply(function: Function, x: f32) -> f32 {
    match function {
        Function::Silu => x / (1.0 + (-x).exp()),
        Function::Gelu => 0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2)),
        Function::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
        Function::Tanh => x.tanh(),
        Function::Relu => x.max(0.0),
    }
}

/// The error function, to 1.5e-7 (Abramowitz and Stegun, formula 7.1.26).
fn erf(x: f32) -> f32 {
    let x = f64::from(x);
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let series =
        t * (0.254_829_592 + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    ((1.0 - series * (-x * x).exp()) * x.signum()) as f32
}

impl Executor for Plain {
    fn matrix(&mut self, parts: &[Tensor<'_>]) -> Result<MatrixId, LoadError> {
        let segments = parts.iter().map(|part| {
            let mut values = Vec::with_capacity(part.columns * part.rows);
            part.kind.dequantize(part.data, &mut values);
            PlainSegment { columns: part.columns, quantized: part.kind.is_quantized(), values }
        });
        self.matrices.push(segments.collect());
        Ok(MatrixId(self.matrices.len() - 1))
    }

    fn vector(&mut self, values: &[f32]) -> Result<VectorId, LoadError> {
        self.vectors.push(values.to_vec());
        Ok(VectorId(self.vectors.len() - 1))
    }

    fn rope(&mut self, rope: &Rope) -> Result<RopeId, LoadError> {
        self.ropes.push((rope.clone(), rope.table(self.sizes.context)));
        Ok(RopeId(self.ropes.len() - 1))
    }

    fn activation(&mut self, width: usize, rows: usize) -> Result<ActId, LoadError> {
        self.activations.push((width, vec![0.0; width * rows]));
        Ok(ActId(self.activations.len() - 1))
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), EngineError> {
        if !self.sizes.hold(batch) {
            return Err(EngineError::Device("a step exceeds the sizes of the executor".into()));
        }
        self.batch = batch.clone();
        self.rows = batch.rows.len();
        Ok(())
    }

    fn embed(&mut self, table: MatrixId, index: Index, scale: f32, out: ActId, add: bool) {
        let segment = &self.matrices[table.0][0];
        let (width, out) = &mut self.activations[out.0];
        for (r, row) in self.batch.rows.iter().enumerate() {
            let from = match index {
                Index::Token => row.token,
                Index::Position => row.position,
                Index::Type => self.batch.types.get(r).copied().unwrap_or(0),
            } as usize;
            for c in 0..*width {
                let value = segment.values[from * segment.columns + c] * scale;
                let place = &mut out[r * *width + c];
                *place = if add { *place + value } else { value };
            }
        }
    }

    fn add(&mut self, x: ActId, out: ActId) {
        let (width, x) = self.activations[x.0].clone();
        for (place, v) in self.activations[out.0].1.iter_mut().zip(&x[..self.rows * width]) {
            *place += v;
        }
    }

    fn add_bias(&mut self, bias: VectorId, out: ActId) {
        let (width, out) = &mut self.activations[out.0];
        for row in out.chunks_exact_mut(*width).take(self.rows) {
            for (place, bias) in row.iter_mut().zip(&self.vectors[bias.0]) {
                *place += bias;
            }
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

    fn layer_norm(&mut self, x: ActId, weight: VectorId, bias: VectorId, eps: f32, out: ActId) {
        let (width, x) = self.activations[x.0].clone();
        for r in 0..self.rows {
            let row = &x[r * width..(r + 1) * width];
            let mean = row.iter().sum::<f32>() / width as f32;
            let variance = row.iter().map(|v| (v - mean) * (v - mean)).sum::<f32>() / width as f32;
            let scale = 1.0 / (variance + eps).sqrt();
            for (c, v) in row.iter().enumerate() {
                self.activations[out.0].1[r * width + c] =
                    (v - mean) * scale * self.vectors[weight.0][c] + self.vectors[bias.0][c];
            }
        }
    }

    fn head_norm(&mut self, qkv: ActId, query: VectorId, key: VectorId, eps: f32) {
        let s = self.sizes;
        for r in 0..self.rows {
            for head in 0..s.heads + s.kv_heads {
                let weight = &self.vectors[if head < s.heads { query.0 } else { key.0 }];
                let values = &mut self.activations[qkv.0].1[r * s.qkv_width() + head * s.head_dim..][..s.head_dim];
                let mean = values.iter().map(|v| v * v).sum::<f32>() / s.head_dim as f32;
                let scale = 1.0 / (mean + eps).sqrt();
                for (value, weight) in values.iter_mut().zip(weight) {
                    *value = *value * scale * weight;
                }
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
                let row = if segment.quantized && self.rounds { rounded(row) } else { row.to_vec() };
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

    fn rope_store(&mut self, qkv: ActId, rope: Option<RopeId>, layer: usize) {
        let s = self.sizes;
        let width = s.qkv_width();
        for (r, row) in self.batch.rows.clone().iter().enumerate() {
            let (position, slot) = (row.position as usize, row.slot as usize);
            let mut values = self.activations[qkv.0].1[r * width..(r + 1) * width].to_vec();
            if let Some((rope, table)) = rope.map(|id| &self.ropes[id.0]) {
                for head in 0..s.heads + s.kv_heads {
                    for pair in 0..rope.dim / 2 {
                        let at = (position * rope.dim / 2 + pair) * 2;
                        let (cos, sin) = (table[at], table[at + 1]);
                        let (i, j) = match rope.pairing {
                            Pairing::Neighbours => (2 * pair, 2 * pair + 1),
                            Pairing::Halves => (pair, pair + rope.dim / 2),
                        };
                        let (i, j) = (head * s.head_dim + i, head * s.head_dim + j);
                        let (a, b) = (values[i], values[j]);
                        (values[i], values[j]) = (a * cos - b * sin, a * sin + b * cos);
                    }
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

    fn attention(&mut self, qkv: ActId, layer: usize, scale: f32, window: Option<u32>, out: ActId) {
        let s = self.sizes;
        for (r, row) in self.batch.rows.clone().iter().enumerate() {
            let end = row.position as usize + 1;
            let first = window.map_or(0, |window| end.saturating_sub(window as usize));
            for head in 0..s.heads {
                let kv = head / (s.heads / s.kv_heads);
                let places = (first..end).map(|position| self.cached(row.slot as usize, position, kv));
                let pairs: Vec<_> = places
                    .map(|at| (&self.keys[layer][at..at + s.head_dim], &self.values[layer][at..at + s.head_dim]))
                    .collect();
                let query = &self.activations[qkv.0].1[r * s.qkv_width() + head * s.head_dim..][..s.head_dim];
                let attended = attend(query, scale, &pairs);
                self.activations[out.0].1[(r * s.heads + head) * s.head_dim..][..s.head_dim].copy_from_slice(&attended);
            }
        }
    }

    fn attention_both_ways(&mut self, qkv: ActId, scale: f32, out: ActId) {
        let s = self.sizes;
        let qkv = self.activations[qkv.0].1.clone();
        for (r, [first, end]) in self.batch.spans().into_iter().enumerate() {
            for head in 0..s.heads {
                let kv = head / (s.heads / s.kv_heads);
                let at = |row: usize, head: usize| &qkv[row * s.qkv_width() + head * s.head_dim..][..s.head_dim];
                let pairs: Vec<_> = (first as usize..end as usize)
                    .map(|row| (at(row, s.heads + kv), at(row, s.heads + s.kv_heads + kv)))
                    .collect();
                let attended = attend(at(r, head), scale, &pairs);
                self.activations[out.0].1[(r * s.heads + head) * s.head_dim..][..s.head_dim].copy_from_slice(&attended);
            }
        }
    }

    fn activate(&mut self, function: Function, x: ActId) {
        let (width, values) = &mut self.activations[x.0];
        values[..self.rows * *width].iter_mut().for_each(|v| *v = apply(function, *v));
    }

    fn gate(&mut self, function: Function, x: ActId, out: ActId) {
        let (double, x) = self.activations[x.0].clone();
        let width = double / 2;
        for r in 0..self.rows {
            for c in 0..width {
                let (gate, up) = (x[r * double + c], x[r * double + width + c]);
                self.activations[out.0].1[r * width + c] = apply(function, gate) * up;
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

    fn pick_mean(&mut self, x: ActId, out: ActId) {
        let (width, x) = self.activations[x.0].clone();
        let spans = self.batch.spans();
        for (i, pick) in self.batch.picks.iter().enumerate() {
            let [first, end] = spans[*pick as usize];
            for c in 0..width {
                let sum: f32 = (first..end).map(|r| x[r as usize * width + c]).sum();
                self.activations[out.0].1[i * width + c] = sum / (end - first) as f32;
            }
        }
        self.rows = self.batch.picks.len();
    }

    fn finish(&mut self, logits: ActId) -> Result<Vec<f32>, EngineError> {
        Ok(self.read(logits).to_vec())
    }

    fn copy_page(&mut self, from: u32, to: u32) -> bool {
        let size = PAGE * self.sizes.kv_heads * self.sizes.head_dim;
        for cache in self.keys.iter_mut().chain(&mut self.values) {
            cache.copy_within(from as usize * size..(from as usize + 1) * size, to as usize * size);
        }
        true
    }

    fn memory(&self) -> u64 {
        0
    }
}
