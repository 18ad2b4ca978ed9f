//! Shape of a decoder: sizes from its file, and the variants of its architecture. Everything is checked here: counts
//! against bounds, tensors against the shapes that follow from the counts, and no tensor is left over that the model
//! would silently ignore.

use std::collections::HashSet;

use crate::LoadError;
use crate::artifact::{MetaValue, ModelFile, Tensor};
use crate::exec::{Function, PAGE, Pairing, Rope, Sizes};

/// Bounds of the counts in a file; a larger count means that the file is damaged.
pub(super) const MAX_LAYERS: usize = 1024;
pub(super) const MAX_WIDTH: usize = 1 << 17;
pub(super) const MAX_HEADS: usize = 1024;
const MAX_HEAD_DIM: usize = 256;
pub(super) const MAX_VOCABULARY: usize = 1 << 22;
pub(super) const MAX_CONTEXT: usize = 1 << 24;
/// Layers of gemma 3 27B, the only size that scales its attention by its width.
const GEMMA3_27B_LAYERS: usize = 62;

/// GGUF names of the supported decoders.
pub(super) const DECODERS: [&str; 4] = ["llama", "qwen2", "qwen3", "gemma3"];

/// Sizes and variants of a decoder, read from its file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DecoderShape {
    pub(crate) context: usize,
    pub(crate) vocabulary: usize,
    pub(super) layers: usize,
    pub(super) width: usize,
    pub(super) feed_forward: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// Rotary embedding of all layers, or of those with full attention where some have a window.
    pub(super) rope: Rope,
    pub(super) local: Option<Local>,
    pub(super) eps: f32,
    pub(super) embed_scale: f32,
    pub(super) attention_scale: f32,
    pub(super) function: Function,
    /// True if the output head is the embedding table.
    pub(super) tied: bool,
}

/// Layers with sliding-window attention.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Local {
    pub(super) window: u32,
    pub(super) rope: Rope,
    /// Period of the layers with full attention: one in so many.
    pub(super) period: usize,
}

/// Reads a number of an architecture, from 1 to `most`.
pub(super) fn number(file: &ModelFile, key: &str, most: usize) -> Result<usize, LoadError> {
    let name = format!("{}.{key}", file.architecture());
    let n = file.number(key).ok_or_else(|| file.corrupt(format!("`{name}` is missing")))?;
    let within = usize::try_from(n).ok().filter(|n| (1..=most).contains(n));
    within.ok_or_else(|| file.corrupt(format!("`{name}` is {n}; expected 1 to {most}")))
}

/// As [`number`], with a default for a missing key.
fn number_or(file: &ModelFile, key: &str, most: usize, default: usize) -> Result<usize, LoadError> {
    if file.number(key).is_some() { number(file, key, most) } else { Ok(default) }
}

/// Reads a number above 0, with a default for a missing key.
fn positive_or(file: &ModelFile, key: &str, default: f64) -> Result<f64, LoadError> {
    match file.float(key) {
        None => Ok(default),
        Some(value) if value.is_finite() && value > 0.0 => Ok(value),
        Some(value) => {
            Err(file.corrupt(format!("`{}.{key}` is {value}; expected a number above 0", file.architecture())))
        }
    }
}

impl DecoderShape {
    /// Reads and checks the sizes.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "scales are f32 in all engines")]
    pub(crate) fn of(file: &ModelFile) -> Result<Self, LoadError> {
        let architecture = file.architecture();
        if !DECODERS.contains(&architecture) {
            return Err(super::unknown(file));
        }
        let gemma = architecture == "gemma3";
        let width = number(file, "embedding_length", MAX_WIDTH)?;
        let layers = number(file, "block_count", MAX_LAYERS)?;
        let heads = number(file, "attention.head_count", MAX_HEADS)?;
        let kv_heads = number_or(file, "attention.head_count_kv", MAX_HEADS, heads)?;
        let head_dim = number_or(file, "attention.key_length", MAX_HEAD_DIM, if gemma { 256 } else { width / heads })?;
        let value_dim = number_or(file, "attention.value_length", MAX_HEAD_DIM, head_dim)?;
        let rope_dim = number_or(file, "rope.dimension_count", MAX_HEAD_DIM, head_dim)?;
        if !heads.is_multiple_of(kv_heads) || rope_dim > head_dim || head_dim == 0 || head_dim > MAX_HEAD_DIM {
            return Err(file.corrupt(format!(
                "{heads} query heads, {kv_heads} key and value heads, {head_dim} values a head and {rope_dim} of them \
                 rotated do not fit each other"
            )));
        }
        if !head_dim.is_multiple_of(4) || !rope_dim.is_multiple_of(4) || !width.is_multiple_of(4) {
            return Err(file.unsupported(format!(
                "heads of {head_dim} values, {rope_dim} of them rotated, in a width of {width}; this version runs \
                 multiples of 4"
            )));
        }
        if value_dim != head_dim {
            let why = format!("values of {value_dim} beside keys of {head_dim}; this version runs equal lengths");
            return Err(file.unsupported(why));
        }
        refuse_unsupported(file)?;
        // llama.cpp's conversion reorders the rows of llama from their order in training.
        let neighbours = architecture == "llama" && !file.layout().rope_halves;
        let pairing = if neighbours { Pairing::Neighbours } else { Pairing::Halves };
        let scale = match file.meta(&format!("{architecture}.rope.scaling.type")) {
            Some(MetaValue::String(kind)) if kind == "linear" => 1.0 / positive_or(file, "rope.scaling.factor", 1.0)?,
            _ => 1.0,
        };
        let factors = match file.meta(&format!("{architecture}.rope.freq_factors")) {
            Some(MetaValue::Numbers(factors)) if factors.len() == rope_dim / 2 => {
                factors.iter().map(|factor| *factor as f32).collect()
            }
            Some(_) => return Err(file.corrupt("the number of `rope.freq_factors` is not that of the pairs of a head")),
            None if file.has("rope_freqs.weight") => values(file, "rope_freqs.weight", rope_dim / 2)?,
            None => Vec::new(),
        };
        if factors.iter().any(|factor| !factor.is_finite() || *factor <= 0.0) {
            return Err(file.corrupt("a factor of the rotation is not above 0"));
        }
        let default_base = if gemma { 1e6 } else { 1e4 };
        let rope =
            Rope { dim: rope_dim, pairing, base: positive_or(file, "rope.freq_base", default_base)?, scale, factors };
        let local = match gemma {
            true => Some(Local {
                window: u32::try_from(number(file, "attention.sliding_window", MAX_CONTEXT)?).unwrap_or(u32::MAX),
                rope: Rope {
                    base: positive_or(file, "rope.freq_base_swa", 1e4)?,
                    scale: 1.0,
                    factors: Vec::new(),
                    ..rope.clone()
                },
                period: number_or(file, "attention.sliding_window_pattern", MAX_LAYERS, 6)?,
            }),
            false => None,
        };
        let by_head = if gemma && layers == GEMMA3_27B_LAYERS { width / heads } else { head_dim };
        let attention_scale = positive_or(file, "attention.scale", f64::from(1.0 / (by_head as f32).sqrt()))?;
        Ok(Self {
            context: number(file, "context_length", MAX_CONTEXT)?,
            vocabulary: vocabulary(file)?,
            layers,
            width,
            feed_forward: number(file, "feed_forward_length", MAX_WIDTH)?,
            heads,
            kv_heads,
            head_dim,
            rope,
            local,
            eps: positive_or(file, "attention.layer_norm_rms_epsilon", 1e-5)? as f32,
            embed_scale: if gemma { (width as f32).sqrt() } else { 1.0 },
            attention_scale: attention_scale as f32,
            function: if gemma { Function::GeluTanh } else { Function::Silu },
            tied: !file.has("output.weight"),
        })
    }

    /// Checks that every tensor is present in a supported shape and type, and that there is no unknown tensor.
    pub(crate) fn check(&self, file: &ModelFile) -> Result<(), LoadError> {
        let mut known: HashSet<String> = HashSet::from(["rope_freqs.weight".to_owned()]);
        let mut see = |names: Vec<String>| known.extend(names);
        for layer in 0..self.layers {
            see(LayerTensors::of(self, file, layer)?.names);
        }
        matrix(file, "token_embd.weight", self.width, self.vocabulary)?;
        values(file, "output_norm.weight", self.width)?;
        if !self.tied {
            matrix(file, "output.weight", self.width, self.vocabulary)?;
        }
        see(["token_embd.weight", "output_norm.weight", "output.weight"].map(str::to_owned).to_vec());
        refuse_unknown_tensors(file, &known)
    }

    /// Attention window of a layer in tokens; `None` for full attention.
    pub(super) fn window(&self, layer: usize) -> Option<u32> {
        let local = self.local.as_ref()?;
        (!(layer + 1).is_multiple_of(local.period)).then_some(local.window)
    }

    /// Sizes for an executor: a KV cache for all sequences, or as many pages as the budget allows, and at least one
    /// context.
    pub(crate) fn sizes(&self, context: usize, slots: usize, budget: usize) -> Sizes {
        let page_bytes = PAGE * self.kv_heads * self.head_dim * 4 * self.layers;
        let one = context.div_ceil(PAGE);
        let pages = (one * slots).min(budget / page_bytes.max(1)).max(one);
        Sizes {
            max_rows: super::MAX_ROWS,
            max_picks: slots,
            slots,
            context,
            // Page 0 belongs to no sequence: tables name it for positions that do not exist.
            pages: pages + 1,
            vocabulary: self.vocabulary,
            types: 0,
            layers: self.layers,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
        }
    }

    /// Bytes of all activations, and of one buffer in which an executor packs the operand of a product.
    pub(crate) fn activation_bytes(&self, sizes: &Sizes) -> usize {
        let attended = self.heads * self.head_dim;
        let packed = self.width.max(attended).max(self.feed_forward);
        let row = 3 * self.width + sizes.qkv_width() + attended + 3 * self.feed_forward + packed;
        (sizes.max_rows * row + sizes.max_picks * (self.width + self.vocabulary)) * 4
    }
}

/// Tokens of the file's tokenizer, or, if that lies beside the file, rows of the token table.
pub(crate) fn vocabulary(file: &ModelFile) -> Result<usize, LoadError> {
    match file.meta("tokenizer.ggml.tokens") {
        None if file.has_tokenizer_beside() => number(file, "vocab_size", MAX_VOCABULARY),
        Some(MetaValue::Strings(tokens)) if (1..=MAX_VOCABULARY).contains(&tokens.len()) => Ok(tokens.len()),
        Some(MetaValue::Strings(tokens)) => {
            Err(file.corrupt(format!("the vocabulary has {} tokens; expected 1 to {MAX_VOCABULARY}", tokens.len())))
        }
        _ => Err(file.corrupt("`tokenizer.ggml.tokens` is missing")),
    }
}

/// Refuses variants of the architectures that would run but give nonsense.
fn refuse_unsupported(file: &ModelFile) -> Result<(), LoadError> {
    for key in ["rope.scaling.type", "expert_count", "attn_logit_softcapping", "final_logit_softcapping"] {
        let name = format!("{}.{key}", file.architecture());
        let harmless = match file.meta(&name) {
            None => true,
            Some(MetaValue::String(kind)) => kind == "none" || kind == "linear",
            Some(value) => value.as_f64() == Some(0.0),
        };
        if !harmless {
            return Err(file.unsupported(format!("the file sets `{name}`, which this version does not run")));
        }
    }
    Ok(())
}

/// Refuses unknown tensors: a model that ignores weights of its file gives wrong answers and no error.
pub(super) fn refuse_unknown_tensors(file: &ModelFile, known: &HashSet<String>) -> Result<(), LoadError> {
    match file.names().find(|name| !known.contains(*name)) {
        None => Ok(()),
        Some(name) => {
            let shown: String = name.chars().take(80).flat_map(char::escape_debug).collect();
            Err(file.unsupported(format!("unknown tensor `{shown}`, which this version does not run")))
        }
    }
}

/// Returns a matrix whose rows an executor can read.
pub(super) fn matrix<'f>(
    file: &'f ModelFile,
    name: &str,
    columns: usize,
    rows: usize,
) -> Result<Tensor<'f>, LoadError> {
    let tensor = file.tensor(name, columns, rows)?;
    let step = if tensor.kind.is_quantized() { 32 } else { 4 };
    if !columns.is_multiple_of(step) {
        let why = format!("tensor `{name}` has rows of {columns} values; expected a multiple of {step}");
        return Err(file.unsupported(why));
    }
    Ok(tensor)
}

/// Reads a vector as f32.
pub(super) fn values(file: &ModelFile, name: &str, width: usize) -> Result<Vec<f32>, LoadError> {
    let tensor = file.tensor(name, width, 1)?;
    if tensor.kind.is_quantized() {
        return Err(file.unsupported(format!("tensor `{name}` is quantised; norms and biases must be floats")));
    }
    let mut values = Vec::with_capacity(width);
    tensor.kind.dequantize(tensor.data, &mut values);
    if file.layout().norms_less_one && name.ends_with("norm.weight") {
        values.iter_mut().for_each(|value| *value += 1.0);
    }
    Ok(values)
}

/// Tensors of a layer.
pub(super) struct LayerTensors<'f> {
    pub(super) q: Tensor<'f>,
    pub(super) k: Tensor<'f>,
    pub(super) v: Tensor<'f>,
    pub(super) output: Tensor<'f>,
    pub(super) gate: Tensor<'f>,
    pub(super) up: Tensor<'f>,
    pub(super) down: Tensor<'f>,
    pub(super) attention_norm: Vec<f32>,
    pub(super) feed_forward_norm: Vec<f32>,
    /// Bias of queries, keys and values side by side.
    pub(super) qkv_bias: Option<Vec<f32>>,
    pub(super) output_bias: Option<Vec<f32>>,
    /// Norms of each query and of each key.
    pub(super) head_norms: Option<[Vec<f32>; 2]>,
    /// Norms after attention and after the feed-forward part.
    pub(super) post_norms: Option<[Vec<f32>; 2]>,
    names: Vec<String>,
}

impl<'f> LayerTensors<'f> {
    pub(super) fn of(shape: &DecoderShape, file: &'f ModelFile, layer: usize) -> Result<Self, LoadError> {
        let (queries, keys) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let mut names = Vec::new();
        let mut full = |name: &str| {
            let name = format!("blk.{layer}.{name}");
            names.push(name.clone());
            name
        };
        let mut get = |name: &str, columns, rows| matrix(file, &full(name), columns, rows);
        let (q, k) = (get("attn_q.weight", shape.width, queries)?, get("attn_k.weight", shape.width, keys)?);
        let v = get("attn_v.weight", shape.width, keys)?;
        let output = get("attn_output.weight", queries, shape.width)?;
        let gate = get("ffn_gate.weight", shape.width, shape.feed_forward)?;
        let up = get("ffn_up.weight", shape.width, shape.feed_forward)?;
        let down = get("ffn_down.weight", shape.feed_forward, shape.width)?;
        let attention_norm = values(file, &full("attn_norm.weight"), shape.width)?;
        let feed_forward_norm = values(file, &full("ffn_norm.weight"), shape.width)?;
        let architecture = file.architecture();
        let mut wanted = |name: &str, must: bool, width: usize| {
            let name = full(name);
            if must || file.has(&name) { values(file, &name, width).map(Some) } else { Ok(None) }
        };
        let biased = architecture == "qwen2";
        let parts = [("attn_q.bias", queries), ("attn_k.bias", keys), ("attn_v.bias", keys)];
        let biases = parts
            .into_iter()
            .map(|(name, width)| Ok((wanted(name, biased, width)?, width)))
            .collect::<Result<Vec<_>, LoadError>>()?;
        let qkv_bias = biases
            .iter()
            .any(|(bias, _)| bias.is_some())
            .then(|| biases.into_iter().flat_map(|(bias, width)| bias.unwrap_or_else(|| vec![0.0; width])).collect());
        let output_bias = wanted("attn_output.bias", false, shape.width)?;
        let both = |a: Option<Vec<f32>>, b: Option<Vec<f32>>, what: &str| match (a, b) {
            (Some(a), Some(b)) => Ok(Some([a, b])),
            (None, None) => Ok(None),
            _ => Err(file.corrupt(format!("layer {layer} has only one of two {what}"))),
        };
        let normed = matches!(architecture, "qwen3" | "gemma3");
        let head_norms = both(
            wanted("attn_q_norm.weight", normed, shape.head_dim)?,
            wanted("attn_k_norm.weight", normed, shape.head_dim)?,
            "norms of queries and keys",
        )?;
        let post = architecture == "gemma3";
        let post_norms = both(
            wanted("post_attention_norm.weight", post, shape.width)?,
            wanted("post_ffw_norm.weight", post, shape.width)?,
            "norms after its sublayers",
        )?;
        Ok(Self {
            q,
            k,
            v,
            output,
            gate,
            up,
            down,
            attention_norm,
            feed_forward_norm,
            qkv_bias,
            output_bias,
            head_norms,
            post_norms,
            names,
        })
    }
}
