//! BERT encoders (arXiv:1810.04805) and their kin, DistilBERT (arXiv:1910.01108) and RoBERTa (arXiv:1907.11692): one
//! embedding for a text (Sentence-BERT, arXiv:1908.10084), or scores if the file has a classifier head. All rows of a
//! step are computed together; a sequence is never split between steps.

use std::collections::HashSet;

use crate::artifact::{MetaValue, ModelFile, Tensor};
use crate::exec::{ActId, Batch, Executor, Function, Index, MatrixId, Sizes, VectorId};
use crate::{EngineError, LoadError, WeightPrecision};

use super::shape::{MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, MAX_WIDTH, matrix, number, refuse_unknown_tensors, values};
use super::weights;

/// Most rows of an encoder's step, which the texts of a batch share.
const MAX_ROWS: usize = 512;
/// Most texts of a step.
const MAX_TEXTS: usize = 64;
/// Most token types and labels.
const MAX_TYPES: usize = 1024;

/// Pooling of a text's rows into one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// Mean of all rows.
    Mean,
    /// Row of the first token.
    Cls,
}

/// Variant of the architecture. The layers are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Bert,
    /// No token types; ReLU before the head.
    DistilBert,
    /// Positions begin behind the number of the padding token; two separators between the texts of a pair.
    Roberta,
}

impl Family {
    /// Reads the family of a file: that of a folder's `model_type`; BERT for a GGUF file.
    fn of(file: &ModelFile) -> Self {
        match file.meta("bert.family") {
            Some(MetaValue::String(name)) if name == "distilbert" => Self::DistilBert,
            Some(MetaValue::String(name)) if name == "roberta" => Self::Roberta,
            _ => Self::Bert,
        }
    }

    /// Separators between the two texts of a pair.
    fn separators(self) -> usize {
        if self == Self::Roberta { 2 } else { 1 }
    }

    /// Least tokens of a text: two texts and their special tokens need as many.
    fn least_context(self) -> usize {
        2 + self.separators()
    }
}

/// Sizes of an encoder, read from its file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BertShape {
    /// Tokens of a text; longer texts are cut.
    pub(crate) context: usize,
    pub(crate) vocabulary: usize,
    pub(crate) width: usize,
    /// Labels of the classifier head; 0 without one.
    pub(crate) labels: usize,
    pub(crate) pooling: Pooling,
    family: Family,
    positions: usize,
    /// Row of the position table for the first token.
    first_position: usize,
    types: usize,
    layers: usize,
    feed_forward: usize,
    heads: usize,
    eps: f32,
    function: Function,
    /// True if a layer lies between the pooled row and the head.
    pooler: bool,
}

impl BertShape {
    #[allow(clippy::cast_possible_truncation, reason = "an epsilon is an f32 in all engines")]
    pub(crate) fn of(file: &ModelFile) -> Result<Self, LoadError> {
        let width = number(file, "embedding_length", MAX_WIDTH)?;
        let heads = number(file, "attention.head_count", MAX_HEADS)?;
        let context = number(file, "context_length", MAX_CONTEXT)?;
        let fits = width.is_multiple_of(heads) && (width / heads).is_multiple_of(2) && width / heads <= 256;
        if !fits || !width.is_multiple_of(4) {
            return Err(file.unsupported(format!("{heads} heads in a width of {width} are not supported")));
        }
        let positions =
            if file.number("positions").is_some() { number(file, "positions", MAX_CONTEXT)? } else { context };
        let family = Family::of(file);
        let first_position = file.number("first_position").unwrap_or(0);
        let first_position =
            usize::try_from(first_position).ok().filter(|first| *first < positions).ok_or_else(|| {
                file.corrupt(format!(
                    "the position of the first token is {first_position}; expected less than {positions}"
                ))
            })?;
        let context = context.min(positions - first_position).min(MAX_ROWS);
        let least = family.least_context();
        if context < least {
            let expected = format!("expected at least {least}, for two texts and their special tokens");
            return Err(file.corrupt(format!("the context length is {context}; {expected}")));
        }
        let types = file.meta("tokenizer.ggml.token_type_count").and_then(MetaValue::as_u64).unwrap_or(1);
        let types = usize::try_from(types).ok().filter(|n| (1..=MAX_TYPES).contains(n));
        let bounds = || format!("`tokenizer.ggml.token_type_count` is out of bounds; expected 1 to {MAX_TYPES}");
        let types = types.ok_or_else(|| file.corrupt(bounds()))?;
        let vocabulary = super::shape::vocabulary(file)?;
        let function = match file.meta("bert.hidden_act") {
            None => Function::Gelu,
            Some(MetaValue::String(name)) if name == "gelu" => Function::Gelu,
            Some(MetaValue::String(name)) if name == "gelu_new" || name == "gelu_pytorch_tanh" => Function::GeluTanh,
            Some(MetaValue::String(name)) if name == "silu" => Function::Silu,
            Some(MetaValue::String(name)) if name == "relu" => Function::Relu,
            Some(_) => {
                let known = "gelu, gelu_new, gelu_pytorch_tanh, relu and silu";
                return Err(file.unsupported(format!("unknown `hidden_act`; this version runs {known}")));
            }
        };
        let labels = file.rows("cls.output.weight").unwrap_or(0);
        if labels > MAX_TYPES {
            return Err(file.corrupt(format!("the classifier head has {labels} labels; expected at most {MAX_TYPES}")));
        }
        // The numbers are llama.cpp's: 1 mean, 2 the first token, 4 the head of a reranker, which reads the first
        // token.
        let pooling = match file.number("pooling_type") {
            None | Some(0) if labels > 0 => Pooling::Cls,
            None | Some(0 | 1) => Pooling::Mean,
            Some(2 | 4) => Pooling::Cls,
            Some(other) => {
                let known = "mean (1) and CLS (2, 4)";
                return Err(file.unsupported(format!("the pooling type is {other}; this version runs {known}")));
            }
        };
        let eps = file.float("attention.layer_norm_epsilon").filter(|eps| eps.is_finite() && *eps >= 0.0);
        Ok(Self {
            context,
            vocabulary,
            width,
            labels,
            pooling,
            family,
            positions,
            first_position,
            types: if family == Family::DistilBert { 0 } else { types },
            layers: number(file, "block_count", MAX_LAYERS)?,
            feed_forward: number(file, "feed_forward_length", MAX_WIDTH)?,
            heads,
            eps: eps.unwrap_or(1e-12) as f32,
            function,
            // A head as transformers saves it always has one; a GGUF file may leave it out.
            pooler: labels > 0 && (file.has_tokenizer_beside() || file.has("cls.weight")),
        })
    }

    /// Checks that every tensor is present in a supported shape and type, and that there is no unknown tensor.
    pub(crate) fn check(&self, file: &ModelFile) -> Result<(), LoadError> {
        // Without a head a pooler is left over from training.
        let mut known = HashSet::from(["cls.weight".to_owned(), "cls.bias".to_owned()]);
        let mut see = |name: &str| {
            known.insert(format!("{name}.weight"));
            known.insert(format!("{name}.bias"));
        };
        for layer in 0..self.layers {
            let [q, k, v, output, up, down] = self.matrices(file, layer)?;
            for tensor in [q, k, v, output, up, down] {
                let stem = tensor.name.strip_suffix(".weight").unwrap_or(tensor.name);
                see(stem);
                values(file, &format!("{stem}.bias"), tensor.rows)?;
            }
            for norm in ["attn_output_norm", "layer_output_norm"] {
                let stem = format!("blk.{layer}.{norm}");
                values(file, &format!("{stem}.weight"), self.width)?;
                values(file, &format!("{stem}.bias"), self.width)?;
                see(&stem);
            }
        }
        for (_, tensor) in self.tables(file)? {
            see(tensor.name.strip_suffix(".weight").unwrap_or(tensor.name));
        }
        values(file, "token_embd_norm.weight", self.width)?;
        values(file, "token_embd_norm.bias", self.width)?;
        see("token_embd_norm");
        if self.labels > 0 {
            self.head(file)?;
            see("cls.output");
        }
        refuse_unknown_tensors(file, &known)
    }

    /// Tables whose rows add up to the first activation of a token.
    fn tables<'f>(&self, file: &'f ModelFile) -> Result<Vec<(Index, Tensor<'f>)>, LoadError> {
        let mut positions = matrix(file, "position_embd.weight", self.width, self.positions)?;
        if self.first_position > 0 {
            // No row is read that lies before the first.
            let skipped = positions.data.len() / self.positions * self.first_position;
            positions.data = positions.data.get(skipped..).unwrap_or_default();
            positions.rows = self.positions - self.first_position;
        }
        let tokens = matrix(file, "token_embd.weight", self.width, self.vocabulary)?;
        let mut tables = vec![(Index::Token, tokens), (Index::Position, positions)];
        if self.types > 0 {
            tables.push((Index::Type, matrix(file, "token_types.weight", self.width, self.types)?));
        }
        Ok(tables)
    }

    /// Matrices of a layer: q, k, v, output, up, down.
    fn matrices<'f>(&self, file: &'f ModelFile, layer: usize) -> Result<[Tensor<'f>; 6], LoadError> {
        let get = |name: &str, columns, rows| matrix(file, &format!("blk.{layer}.{name}.weight"), columns, rows);
        Ok([
            get("attn_q", self.width, self.width)?,
            get("attn_k", self.width, self.width)?,
            get("attn_v", self.width, self.width)?,
            get("attn_output", self.width, self.width)?,
            get("ffn_up", self.width, self.feed_forward)?,
            get("ffn_down", self.feed_forward, self.width)?,
        ])
    }

    /// Optional layer before the head, and the head: matrix and bias.
    #[allow(clippy::type_complexity, reason = "two pairs")]
    fn head<'f>(
        &self,
        file: &'f ModelFile,
    ) -> Result<(Option<(Tensor<'f>, Vec<f32>)>, (Tensor<'f>, Vec<f32>)), LoadError> {
        let pooler = match self.pooler {
            true => Some((matrix(file, "cls.weight", self.width, self.width)?, values(file, "cls.bias", self.width)?)),
            false => None,
        };
        let head = matrix(file, "cls.output.weight", self.width, self.labels)?;
        let bias = match file.has("cls.output.bias") {
            true => values(file, "cls.output.bias", self.labels)?,
            false => vec![0.0; self.labels],
        };
        Ok((pooler, (head, bias)))
    }

    /// Sizes for an executor: no KV cache, one slot for each text of a step.
    pub(crate) fn sizes(&self) -> Sizes {
        Sizes {
            max_rows: MAX_ROWS,
            max_picks: MAX_TEXTS,
            slots: MAX_TEXTS,
            context: self.context,
            pages: 1,
            vocabulary: self.vocabulary,
            // One that all rows have, where the model has none.
            types: self.types.max(1),
            layers: 0,
            heads: self.heads,
            kv_heads: self.heads,
            head_dim: self.width / self.heads,
        }
    }

    /// Values of the result for a text.
    pub(crate) fn outputs(&self) -> usize {
        if self.labels > 0 { self.labels } else { self.width }
    }

    /// True if there is a second token type, for the second text of a pair.
    pub(crate) fn has_second_type(&self) -> bool {
        self.types > 1
    }

    /// Separators between the two texts of a pair.
    pub(crate) fn separators(&self) -> usize {
        self.family.separators()
    }

    /// Sets the context that an operator wants, within the table of positions and with room for two texts.
    pub(crate) fn limit_context(&mut self, wanted: u32) {
        let wanted = usize::try_from(wanted).unwrap_or(usize::MAX);
        self.context = self.context.min(wanted).max(self.family.least_context());
    }

    /// Bytes of all activations, and of one buffer in which an executor packs the operand of a product.
    pub(crate) fn activation_bytes(&self) -> usize {
        let packed = self.width.max(self.feed_forward);
        (MAX_ROWS * (6 * self.width + self.feed_forward + packed) + MAX_TEXTS * (2 * self.width + self.outputs())) * 4
    }
}

/// A matrix with its bias.
struct Linear {
    matrix: MatrixId,
    bias: VectorId,
}

impl Linear {
    fn run(&self, exec: &mut dyn Executor, x: ActId, out: ActId, add: bool) {
        exec.matmul(self.matrix, x, out, add);
        exec.add_bias(self.bias, out);
    }
}

/// A layer norm.
struct Norm {
    weight: VectorId,
    bias: VectorId,
}

struct EncoderLayer {
    qkv: Linear,
    output: Linear,
    after_attention: Norm,
    up: Linear,
    down: Linear,
    after_feed_forward: Norm,
}

/// An encoder, loaded into an executor.
pub(crate) struct Bert {
    shape: BertShape,
    tables: Vec<(Index, MatrixId)>,
    norm: Norm,
    layers: Vec<EncoderLayer>,
    pooler: Option<Linear>,
    head: Option<Linear>,
    stream: ActId,
    normed: ActId,
    qkv: ActId,
    attended: ActId,
    hidden: ActId,
    picked: ActId,
    pooled: ActId,
    scores: ActId,
}

impl Bert {
    /// Loads the weights into an executor.
    pub(crate) fn load(
        shape: &BertShape,
        file: &ModelFile,
        sizes: &Sizes,
        precision: WeightPrecision,
        exec: &mut dyn Executor,
    ) -> Result<Self, LoadError> {
        let give = |exec: &mut dyn Executor, parts: &[Tensor<'_>]| weights::give(exec, parts, precision);
        let tables = shape.tables(file)?.into_iter().map(|(index, table)| {
            let id = if index == Index::Token { give(exec, &[table])? } else { exec.matrix(&[table])? };
            Ok((index, id))
        });
        let tables = tables.collect::<Result<Vec<_>, LoadError>>()?;
        let norm = |exec: &mut dyn Executor, stem: &str| {
            Ok::<_, LoadError>(Norm {
                weight: exec.vector(&values(file, &format!("{stem}.weight"), shape.width)?)?,
                bias: exec.vector(&values(file, &format!("{stem}.bias"), shape.width)?)?,
            })
        };
        let linear = |exec: &mut dyn Executor, parts: &[Tensor<'_>]| {
            let mut bias = Vec::new();
            for part in parts {
                let stem = part.name.strip_suffix(".weight").unwrap_or(part.name);
                bias.extend(values(file, &format!("{stem}.bias"), part.rows)?);
            }
            Ok::<_, LoadError>(Linear { matrix: give(exec, parts)?, bias: exec.vector(&bias)? })
        };
        let first = norm(exec, "token_embd_norm")?;
        let mut layers = Vec::with_capacity(shape.layers);
        for n in 0..shape.layers {
            let [q, k, v, output, up, down] = shape.matrices(file, n)?;
            layers.push(EncoderLayer {
                qkv: linear(exec, &[q, k, v])?,
                output: linear(exec, &[output])?,
                after_attention: norm(exec, &format!("blk.{n}.attn_output_norm"))?,
                up: linear(exec, &[up])?,
                down: linear(exec, &[down])?,
                after_feed_forward: norm(exec, &format!("blk.{n}.layer_output_norm"))?,
            });
        }
        let (mut pooler, mut head) = (None, None);
        if shape.labels > 0 {
            let (before, (matrix, bias)) = shape.head(file)?;
            if let Some((matrix, bias)) = before {
                pooler = Some(Linear { matrix: exec.matrix(&[matrix])?, bias: exec.vector(&bias)? });
            }
            head = Some(Linear { matrix: exec.matrix(&[matrix])?, bias: exec.vector(&bias)? });
        }
        let (rows, texts) = (sizes.max_rows, sizes.max_picks);
        Ok(Self {
            shape: shape.clone(),
            tables,
            norm: first,
            layers,
            pooler,
            head,
            stream: exec.activation(shape.width, rows)?,
            normed: exec.activation(shape.width, rows)?,
            qkv: exec.activation(sizes.qkv_width(), rows)?,
            attended: exec.activation(shape.width, rows)?,
            hidden: exec.activation(shape.feed_forward, rows)?,
            picked: exec.activation(shape.width, texts)?,
            pooled: exec.activation(shape.width, texts)?,
            scores: exec.activation(shape.labels.max(1), texts)?,
        })
    }

    /// Runs one step over whole sequences, whose first rows are picked. Returns the embedding or the scores of each,
    /// one after the other.
    #[allow(clippy::cast_precision_loss, reason = "heads are small")]
    pub(crate) fn forward(&self, exec: &mut dyn Executor, batch: &Batch) -> Result<Vec<f32>, EngineError> {
        let shape = &self.shape;
        let scale = 1.0 / ((shape.width / shape.heads) as f32).sqrt();
        let norm = |exec: &mut dyn Executor, norm: &Norm, x: ActId, out: ActId| {
            exec.layer_norm(x, norm.weight, norm.bias, shape.eps, out);
        };
        exec.begin(batch)?;
        for (index, table) in &self.tables {
            exec.embed(*table, *index, 1.0, self.stream, *index != Index::Token);
        }
        norm(exec, &self.norm, self.stream, self.normed);
        for layer in &self.layers {
            layer.qkv.run(exec, self.normed, self.qkv, false);
            exec.attention_both_ways(self.qkv, scale, self.attended);
            layer.output.run(exec, self.attended, self.normed, true);
            norm(exec, &layer.after_attention, self.normed, self.stream);
            layer.up.run(exec, self.stream, self.hidden, false);
            exec.activate(shape.function, self.hidden);
            layer.down.run(exec, self.hidden, self.stream, true);
            norm(exec, &layer.after_feed_forward, self.stream, self.normed);
        }
        match shape.pooling {
            Pooling::Mean => exec.pick_mean(self.normed, self.picked),
            Pooling::Cls => exec.pick(self.normed, self.picked),
        }
        let Some(head) = &self.head else { return exec.finish(self.picked) };
        let mut pooled = self.picked;
        if let Some(pooler) = &self.pooler {
            pooler.run(exec, self.picked, self.pooled, false);
            let function = if shape.family == Family::DistilBert { Function::Relu } else { Function::Tanh };
            exec.activate(function, self.pooled);
            pooled = self.pooled;
        }
        head.run(exec, pooled, self.scores, false);
        exec.finish(self.scores)
    }
}
