//! Decoders by their GGUF names: `llama` (arXiv:2302.13971; SmolLM2, Llama, TinyLlama, Mistral), `qwen2`
//! (arXiv:2407.10671), `qwen3` (arXiv:2505.09388), `gemma3` (arXiv:2503.19786). All share one order of operations,
//! some of which an architecture leaves out.

use crate::artifact::{ModelFile, Tensor};
use crate::exec::{ActId, Batch, Executor, Function, Index, MatrixId, RopeId, Sizes, VectorId};
use crate::{EngineError, LoadError, WeightPrecision};

use super::shape::{DecoderShape, LayerTensors, matrix, values};
use super::weights;

struct DecoderLayer {
    attention_norm: VectorId,
    qkv: MatrixId,
    qkv_bias: Option<VectorId>,
    head_norms: Option<[VectorId; 2]>,
    rope: RopeId,
    window: Option<u32>,
    output: MatrixId,
    output_bias: Option<VectorId>,
    after_attention: Option<VectorId>,
    feed_forward_norm: VectorId,
    gate_up: MatrixId,
    down: MatrixId,
    after_feed_forward: Option<VectorId>,
}

/// A decoder, loaded into an executor.
pub(crate) struct Decoder {
    eps: f32,
    embed_scale: f32,
    attention_scale: f32,
    function: Function,
    table: MatrixId,
    layers: Vec<DecoderLayer>,
    output_norm: VectorId,
    head: MatrixId,
    stream: ActId,
    normed: ActId,
    qkv: ActId,
    attended: ActId,
    gate_up: ActId,
    gated: ActId,
    /// Output of a sublayer that is normed before it is added to the residual stream.
    branch: ActId,
    picked: ActId,
    logits: ActId,
}

impl Decoder {
    /// Loads the weights into an executor.
    pub(crate) fn load(
        shape: &DecoderShape,
        file: &ModelFile,
        sizes: &Sizes,
        precision: WeightPrecision,
        exec: &mut dyn Executor,
    ) -> Result<Self, LoadError> {
        let give = |exec: &mut dyn Executor, parts: &[Tensor<'_>]| weights::give(exec, parts, precision);
        let table = give(exec, &[matrix(file, "token_embd.weight", shape.width, shape.vocabulary)?])?;
        let rope = exec.rope(&shape.rope)?;
        let local_rope = shape.local.as_ref().map(|local| exec.rope(&local.rope)).transpose()?;
        let mut layers = Vec::with_capacity(shape.layers);
        for n in 0..shape.layers {
            let tensors = LayerTensors::of(shape, file, n)?;
            let window = shape.window(n);
            let vectors = |exec: &mut dyn Executor, pair: Option<[Vec<f32>; 2]>| match pair {
                Some([a, b]) => Ok::<_, LoadError>(Some([exec.vector(&a)?, exec.vector(&b)?])),
                None => Ok(None),
            };
            let post_norms = vectors(exec, tensors.post_norms)?;
            layers.push(DecoderLayer {
                attention_norm: exec.vector(&tensors.attention_norm)?,
                qkv: give(exec, &[tensors.q, tensors.k, tensors.v])?,
                qkv_bias: tensors.qkv_bias.map(|bias| exec.vector(&bias)).transpose()?,
                head_norms: vectors(exec, tensors.head_norms)?,
                rope: window.and(local_rope).unwrap_or(rope),
                window,
                output: give(exec, &[tensors.output])?,
                output_bias: tensors.output_bias.map(|bias| exec.vector(&bias)).transpose()?,
                after_attention: post_norms.map(|[after, _]| after),
                feed_forward_norm: exec.vector(&tensors.feed_forward_norm)?,
                gate_up: give(exec, &[tensors.gate, tensors.up])?,
                down: give(exec, &[tensors.down])?,
                after_feed_forward: post_norms.map(|[_, after]| after),
            });
        }
        let output_norm = exec.vector(&values(file, "output_norm.weight", shape.width)?)?;
        let head = if shape.tied {
            table
        } else {
            give(exec, &[matrix(file, "output.weight", shape.width, shape.vocabulary)?])?
        };
        let (rows, picks) = (sizes.max_rows, sizes.max_picks);
        Ok(Self {
            eps: shape.eps,
            embed_scale: shape.embed_scale,
            attention_scale: shape.attention_scale,
            function: shape.function,
            table,
            layers,
            output_norm,
            head,
            stream: exec.activation(shape.width, rows)?,
            normed: exec.activation(shape.width, rows)?,
            qkv: exec.activation(sizes.qkv_width(), rows)?,
            attended: exec.activation(shape.heads * shape.head_dim, rows)?,
            gate_up: exec.activation(2 * shape.feed_forward, rows)?,
            gated: exec.activation(shape.feed_forward, rows)?,
            branch: exec.activation(shape.width, rows)?,
            picked: exec.activation(shape.width, picks)?,
            logits: exec.activation(shape.vocabulary, picks)?,
        })
    }

    /// Runs one step. Returns the logits of the picked rows, one after the other.
    pub(crate) fn forward(&self, exec: &mut dyn Executor, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        exec.begin(batch)?;
        exec.embed(self.table, Index::Token, self.embed_scale, self.stream, false);
        for (n, layer) in self.layers.iter().enumerate() {
            exec.rms_norm(self.stream, layer.attention_norm, self.eps, self.normed);
            exec.matmul(layer.qkv, self.normed, self.qkv, false);
            if let Some(bias) = layer.qkv_bias {
                exec.add_bias(bias, self.qkv);
            }
            if let Some([query, key]) = layer.head_norms {
                exec.head_norm(self.qkv, query, key, self.eps);
            }
            exec.rope_store(self.qkv, Some(layer.rope), n);
            exec.attention(self.qkv, n, self.attention_scale, layer.window, self.attended);
            self.add_product(exec, layer.output, self.attended, layer.after_attention);
            if let Some(bias) = layer.output_bias {
                exec.add_bias(bias, self.stream);
            }
            exec.rms_norm(self.stream, layer.feed_forward_norm, self.eps, self.normed);
            exec.matmul(layer.gate_up, self.normed, self.gate_up, false);
            exec.gate(self.function, self.gate_up, self.gated);
            self.add_product(exec, layer.down, self.gated, layer.after_feed_forward);
        }
        exec.pick(self.stream, self.picked);
        exec.rms_norm(self.picked, self.output_norm, self.eps, self.normed);
        exec.matmul(self.head, self.normed, self.logits, false);
        exec.finish(self.logits)
    }

    /// Adds a product to the residual stream, normed before where the architecture does so.
    fn add_product(&self, exec: &mut dyn Executor, matrix: MatrixId, x: ActId, norm: Option<VectorId>) {
        let Some(norm) = norm else { return exec.matmul(matrix, x, self.stream, true) };
        exec.matmul(matrix, x, self.branch, false);
        exec.rms_norm(self.branch, norm, self.eps, self.normed);
        exec.add(self.normed, self.stream);
    }
}
