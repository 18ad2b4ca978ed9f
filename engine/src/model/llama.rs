//! The llama architecture (arXiv:2302.13971) as GGUF names it: SmolLM2, Llama, TinyLlama, Mistral.

use crate::artifact::{ModelFile, Tensor, TensorType};
use crate::exec::{ActId, Batch, Executor, MatrixId, PAGE, Sizes, VectorId};
use crate::{EngineError, LoadError};

use super::MAX_ROWS;

/// Bounds of what a file may claim; beyond them it is damaged.
const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 17;
const MAX_VOCABULARY: usize = 1 << 22;

/// Sizes of a model, as its file gives them.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shape {
    pub(crate) context: usize,
    pub(crate) vocabulary: usize,
    layers: usize,
    width: usize,
    feed_forward: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    rope_dim: usize,
    rope_base: f64,
    eps: f32,
    /// Whether the output head is the embedding table.
    tied: bool,
}

impl Shape {
    /// Reads the sizes.
    #[allow(clippy::cast_possible_truncation, reason = "an epsilon is an f32 in the file")]
    pub(crate) fn of(file: &ModelFile) -> Result<Self, LoadError> {
        if file.architecture() != "llama" {
            return Err(file.unsupported(format!(
                "its architecture is `{}`: this version runs `llama` (SmolLM2, Llama, TinyLlama, Mistral)",
                file.architecture()
            )));
        }
        let number = |key: &str, max: usize| {
            let n = file.number(key).ok_or_else(|| file.corrupt(format!("`llama.{key}` is missing")))?;
            usize::try_from(n)
                .ok()
                .filter(|n| (1..=max).contains(n))
                .ok_or_else(|| file.corrupt(format!("`llama.{key}` is {n}")))
        };
        let width = number("embedding_length", MAX_WIDTH)?;
        let heads = number("attention.head_count", 1024)?;
        let kv_heads = if file.number("attention.head_count_kv").is_some() {
            number("attention.head_count_kv", 1024)?
        } else {
            heads
        };
        let head_dim = match file.number("attention.key_length") {
            Some(_) => number("attention.key_length", 256)?,
            None => width / heads,
        };
        let rope_dim =
            if file.number("rope.dimension_count").is_some() { number("rope.dimension_count", 256)? } else { head_dim };
        if !heads.is_multiple_of(kv_heads) || rope_dim > head_dim || head_dim == 0 || head_dim > 256 {
            return Err(
                file.corrupt(format!("{heads} heads over {kv_heads}, of {head_dim} values, {rope_dim} rotated"))
            );
        }
        if !head_dim.is_multiple_of(2) || !rope_dim.is_multiple_of(2) || !width.is_multiple_of(4) {
            return Err(file.unsupported(format!("heads of {head_dim} values in a width of {width} are not supported")));
        }
        for key in ["rope.scaling.type", "expert_count"] {
            let value = file.meta(&format!("llama.{key}"));
            let harmless = match value {
                None => true,
                Some(crate::artifact::MetaValue::String(kind)) => kind == "none",
                Some(value) => value.as_u64() == Some(0),
            };
            if !harmless {
                return Err(file.unsupported(format!("it uses `llama.{key}`, which this version does not run")));
            }
        }
        if file.has("rope_freqs.weight") {
            return Err(
                file.unsupported("it scales its rotation by `rope_freqs.weight`, which this version does not run")
            );
        }
        let vocabulary = match file.meta("tokenizer.ggml.tokens") {
            Some(crate::artifact::MetaValue::Strings(tokens)) => tokens.len(),
            _ => return Err(file.corrupt("`tokenizer.ggml.tokens` is missing")),
        };
        if vocabulary == 0 || vocabulary > MAX_VOCABULARY {
            return Err(file.corrupt(format!("its vocabulary has {vocabulary} tokens")));
        }
        Ok(Self {
            context: number("context_length", 1 << 24)?,
            vocabulary,
            layers: number("block_count", MAX_LAYERS)?,
            width,
            feed_forward: number("feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            rope_dim,
            rope_base: file.float("rope.freq_base").filter(|base| *base > 0.0).unwrap_or(10_000.0),
            eps: file.float("attention.layer_norm_rms_epsilon").unwrap_or(1e-5) as f32,
            tied: !file.has("output.weight"),
        })
    }

    /// Checks that every tensor is there, in a shape and type that can be run.
    pub(crate) fn check(&self, file: &ModelFile) -> Result<(), LoadError> {
        let mut seen = 0;
        for layer in 0..self.layers {
            seen += self.layer(file, layer)?.len();
        }
        self.matrix(file, "token_embd.weight", self.width, self.vocabulary)?;
        self.vector(file, "output_norm.weight")?;
        if !self.tied {
            self.matrix(file, "output.weight", self.width, self.vocabulary)?;
        }
        debug_assert!(seen > 0);
        Ok(())
    }

    fn matrix<'f>(
        &self,
        file: &'f ModelFile,
        name: &str,
        columns: usize,
        rows: usize,
    ) -> Result<Tensor<'f>, LoadError> {
        let tensor = file.tensor(name, columns, rows)?;
        if tensor.kind != TensorType::F32 && !columns.is_multiple_of(32) {
            return Err(file.corrupt(format!("tensor `{name}` has rows of {columns} values, no whole blocks")));
        }
        Ok(tensor)
    }

    fn vector(&self, file: &ModelFile, name: &str) -> Result<Vec<f32>, LoadError> {
        let tensor = file.tensor(name, self.width, 1)?;
        if tensor.kind != TensorType::F32 {
            return Err(file.unsupported(format!("tensor `{name}` is quantised; norms must be F32")));
        }
        let mut values = Vec::with_capacity(self.width);
        tensor.kind.dequantize(tensor.data, &mut values);
        Ok(values)
    }

    /// The matrices of a layer: q, k, v, output, gate, up, down.
    fn layer<'f>(&self, file: &'f ModelFile, layer: usize) -> Result<[Tensor<'f>; 7], LoadError> {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let get = |name: &str, columns, rows| self.matrix(file, &format!("blk.{layer}.{name}.weight"), columns, rows);
        for name in ["attn_norm", "ffn_norm"] {
            self.vector(file, &format!("blk.{layer}.{name}.weight"))?;
        }
        for name in ["attn_q.bias", "attn_k.bias", "attn_v.bias", "attn_output.bias"] {
            if file.has(&format!("blk.{layer}.{name}")) {
                return Err(file.unsupported(format!("it has `blk.{layer}.{name}`, which this version does not run")));
            }
        }
        Ok([
            get("attn_q", self.width, queries)?,
            get("attn_k", self.width, keys)?,
            get("attn_v", self.width, keys)?,
            get("attn_output", queries, self.width)?,
            get("ffn_gate", self.width, self.feed_forward)?,
            get("ffn_up", self.width, self.feed_forward)?,
            get("ffn_down", self.feed_forward, self.width)?,
        ])
    }

    /// Sizes for an executor: a KV cache for all sequences, or as many as the budget allows, one at least.
    pub(crate) fn sizes(&self, context: usize, slots: usize, budget: usize) -> Sizes {
        let page_bytes = PAGE * self.kv_heads * self.head_dim * 4 * self.layers;
        let one = context.div_ceil(PAGE);
        let pages = (one * slots).min(budget / page_bytes.max(1)).max(one);
        Sizes {
            max_rows: MAX_ROWS,
            max_picks: slots,
            slots,
            context,
            // Page 0 belongs to nobody: what a table says of positions that are not there.
            pages: pages + 1,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rope_dim: self.rope_dim,
            rope_base: self.rope_base,
        }
    }

    /// Values of a row over all places for activations.
    pub(crate) fn activation_width(&self) -> usize {
        let qkv = (self.heads + 2 * self.kv_heads) * self.head_dim;
        3 * self.width + qkv + self.heads * self.head_dim + 3 * self.feed_forward + self.vocabulary
    }
}

struct Layer {
    attention_norm: VectorId,
    qkv: MatrixId,
    output: MatrixId,
    feed_forward_norm: VectorId,
    gate_up: MatrixId,
    down: MatrixId,
}

/// A llama model in an executor.
pub(crate) struct Llama {
    eps: f32,
    table: MatrixId,
    layers: Vec<Layer>,
    output_norm: VectorId,
    head: MatrixId,
    stream: ActId,
    normed: ActId,
    qkv: ActId,
    attended: ActId,
    gate_up: ActId,
    gated: ActId,
    picked: ActId,
    logits: ActId,
}

impl Llama {
    /// Gives the weights to an executor.
    pub(crate) fn load(
        shape: &Shape,
        file: &ModelFile,
        sizes: &Sizes,
        exec: &mut dyn Executor,
    ) -> Result<Self, LoadError> {
        // The table comes first: executors take the vocabulary from it.
        let table = exec.matrix(&[shape.matrix(file, "token_embd.weight", shape.width, shape.vocabulary)?])?;
        let mut layers = Vec::with_capacity(shape.layers);
        for n in 0..shape.layers {
            let [q, k, v, output, gate, up, down] = shape.layer(file, n)?;
            let norm = |name: &str| shape.vector(file, &format!("blk.{n}.{name}.weight"));
            layers.push(Layer {
                attention_norm: exec.vector(&norm("attn_norm")?)?,
                qkv: exec.matrix(&[q, k, v])?,
                output: exec.matrix(&[output])?,
                feed_forward_norm: exec.vector(&norm("ffn_norm")?)?,
                gate_up: exec.matrix(&[gate, up])?,
                down: exec.matrix(&[down])?,
            });
        }
        let output_norm = exec.vector(&shape.vector(file, "output_norm.weight")?)?;
        let head = if shape.tied {
            table
        } else {
            exec.matrix(&[shape.matrix(file, "output.weight", shape.width, shape.vocabulary)?])?
        };
        Ok(Self {
            eps: shape.eps,
            table,
            layers,
            output_norm,
            head,
            stream: exec.activation(shape.width)?,
            normed: exec.activation(shape.width)?,
            qkv: exec.activation(sizes.qkv_width())?,
            attended: exec.activation(shape.heads * shape.head_dim)?,
            gate_up: exec.activation(2 * shape.feed_forward)?,
            gated: exec.activation(shape.feed_forward)?,
            picked: exec.activation(shape.width)?,
            logits: exec.activation(shape.vocabulary)?,
        })
    }

    /// One step: the logits of the picked rows, one after the other.
    pub(crate) fn forward(&self, exec: &mut dyn Executor, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        exec.begin(batch)?;
        exec.embed(self.table, self.stream);
        for (n, layer) in self.layers.iter().enumerate() {
            exec.rms_norm(self.stream, layer.attention_norm, self.eps, self.normed);
            exec.matmul(layer.qkv, self.normed, self.qkv, false);
            exec.rope_store(self.qkv, n);
            exec.attention(self.qkv, n, self.attended);
            exec.matmul(layer.output, self.attended, self.stream, true);
            exec.rms_norm(self.stream, layer.feed_forward_norm, self.eps, self.normed);
            exec.matmul(layer.gate_up, self.normed, self.gate_up, false);
            exec.silu_mul(self.gate_up, self.gated);
            exec.matmul(layer.down, self.gated, self.stream, true);
        }
        exec.pick(self.stream, self.picked);
        exec.rms_norm(self.picked, self.output_norm, self.eps, self.normed);
        exec.matmul(self.head, self.normed, self.logits, false);
        exec.finish(self.logits)
    }
}
