//! Folder of a decoder, read into the metadata keys of GGUF. Defaults are those of the classes in Hugging Face's
//! `transformers` that a `config.json` relies on. A variant that would run but give nonsense is refused here.

use std::collections::HashMap;
use std::f64::consts::TAU;

use serde_json::Value;

use super::{MetaValue, ModelFolder, WeightLayout, shown, text};
use crate::LoadError;

/// Longest list that is read; models have some dozens of layers.
const MAX_LIST: usize = 4096;
/// Widest head in values, as in the architecture's shape.
const MAX_HEAD_DIM: u64 = 256;

/// Supported values of `model_type`.
pub(super) const MODEL_TYPES: [&str; 6] = ["llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gemma3"];

/// Default of each number that a `config.json` may leave out.
const GEMMA3: [(&str, u64); 6] = [
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("vocab_size", 262_208),
    ("max_position_embeddings", 131_072),
    ("sliding_window", 4096),
];
const MISTRAL: [(&str, u64); 2] = [("num_key_value_heads", 8), ("sliding_window", 4096)];
const QWEN2: [(&str, u64); 2] = [("num_key_value_heads", 32), ("sliding_window", 4096)];
const QWEN3: [(&str, u64); 3] = [("num_key_value_heads", 32), ("head_dim", 128), ("sliding_window", 4096)];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Architecture {
    Llama,
    Qwen2,
    Qwen3,
    Gemma3,
}

impl Architecture {
    fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::Gemma3 => "gemma3",
        }
    }
}

/// A decoder, described by its `config.json`.
pub(super) struct DecoderConfig {
    architecture: Architecture,
    is_mistral: bool,
    /// True for a model of images and text, of which only the text part is used.
    is_multimodal: bool,
    config: Value,
}

pub(super) type Metadata = HashMap<String, MetaValue>;
type Refuse<'a> = &'a dyn Fn(String) -> LoadError;

impl DecoderConfig {
    /// Reads a `config.json`; `None` for other model types.
    pub(super) fn of(model_type: &str, config: &Value) -> Option<Self> {
        let architecture = match model_type {
            "llama" | "mistral" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            "gemma3_text" | "gemma3" => Architecture::Gemma3,
            _ => return None,
        };
        let (is_mistral, is_multimodal) = (model_type == "mistral", model_type == "gemma3");
        let mut inner = config.clone();
        if let (true, Some(text)) = (is_multimodal, config.get("text_config")) {
            inner = text.clone();
            // Keys of the whole model that apply to its text part.
            for key in ["eos_token_id", "tie_word_embeddings"] {
                if let (Some(value), Some(fields)) = (config.get(key), inner.as_object_mut()) {
                    fields.entry(key).or_insert_with(|| value.clone());
                }
            }
        }
        Some(Self { architecture, is_mistral, is_multimodal, config: inner })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    /// Number of a key, or the default if the key is absent; `null` is no number and has no default.
    fn number(&self, key: &str) -> Option<u64> {
        let defaults: &[_] = match self.architecture {
            Architecture::Gemma3 => &GEMMA3,
            Architecture::Qwen2 => &QWEN2,
            Architecture::Qwen3 => &QWEN3,
            Architecture::Llama if self.is_mistral => &MISTRAL,
            Architecture::Llama => &[],
        };
        match self.config.get(key) {
            Some(value) => value.as_u64(),
            None => defaults.iter().find(|(name, _)| *name == key).map(|(_, value)| *value),
        }
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.get(key).and_then(Value::as_f64)
    }

    /// True if the output head is the embedding table.
    pub(super) fn is_tied(&self) -> bool {
        let default = self.architecture == Architecture::Gemma3;
        self.get("tie_word_embeddings").and_then(Value::as_bool).unwrap_or(default)
    }

    pub(super) fn layout(&self) -> WeightLayout {
        WeightLayout { rope_halves: true, norms_less_one: self.architecture == Architecture::Gemma3 }
    }

    /// Metadata of the model: its sizes, its variants, and its text keys.
    pub(super) fn metadata(&self, folder: &ModelFolder, refuse: Refuse<'_>) -> Result<Metadata, LoadError> {
        let mut metadata = HashMap::new();
        metadata.insert("general.architecture".into(), MetaValue::String(self.architecture.name().into()));
        self.refuse_unsupported(refuse)?;
        let mut put = |key: &str, value: MetaValue| {
            metadata.insert(format!("{}.{key}", self.architecture.name()), value);
        };
        for (from, to, must) in [
            ("num_hidden_layers", "block_count", true),
            ("hidden_size", "embedding_length", true),
            ("intermediate_size", "feed_forward_length", true),
            ("num_attention_heads", "attention.head_count", true),
            // Default: as many as heads.
            ("num_key_value_heads", "attention.head_count_kv", false),
            ("head_dim", "attention.key_length", false),
            ("vocab_size", "vocab_size", true),
        ] {
            match self.number(from) {
                Some(n) => put(to, MetaValue::Unsigned(n)),
                None if must => return Err(refuse(format!("`config.json` has no `{from}`"))),
                None => {}
            }
        }
        put("context_length", MetaValue::Unsigned(self.context(refuse)?));
        put("attention.layer_norm_rms_epsilon", MetaValue::Float(self.float("rms_norm_eps").unwrap_or(1e-6)));
        let (whole, local) = self.rotations();
        put("rope.freq_base", MetaValue::Float(whole.base));
        match whole.scaling(refuse)? {
            Scaling::None => {}
            Scaling::Linear(factor) => {
                put("rope.scaling.type", MetaValue::String("linear".into()));
                put("rope.scaling.factor", MetaValue::Float(factor));
            }
            Scaling::Llama3(scaling) => {
                let head_dim = self
                    .number("head_dim")
                    .or_else(|| self.number("hidden_size")?.checked_div(self.number("num_attention_heads")?));
                let dim = head_dim.filter(|dim| (2..=MAX_HEAD_DIM).contains(dim));
                let dim = dim.ok_or_else(|| refuse("`config.json` gives no valid `head_dim`".into()))?;
                put("rope.freq_factors", MetaValue::Numbers(scaling.factors(dim, whole.base)));
            }
        }
        if self.architecture == Architecture::Gemma3 {
            if !matches!(local.scaling(refuse)?, Scaling::None) {
                return Err(refuse("positions of windowed layers are scaled, which this version does not run".into()));
            }
            put("rope.freq_base_swa", MetaValue::Float(local.base));
            if let Some(window) = self.number("sliding_window") {
                put("attention.sliding_window", MetaValue::Unsigned(window));
            }
            put("attention.sliding_window_pattern", MetaValue::Unsigned(self.full_attention_period(refuse)?));
            let scalar = self.float("query_pre_attn_scalar").unwrap_or(256.0);
            put("attention.scale", MetaValue::Float(1.0 / scalar.sqrt()));
        }
        text::read(folder, self.get("eos_token_id"), &mut metadata)?;
        Ok(metadata)
    }

    /// Refuses variants that this version does not run.
    fn refuse_unsupported(&self, refuse: Refuse<'_>) -> Result<(), LoadError> {
        let wanted = if self.architecture == Architecture::Gemma3 { "gelu_pytorch_tanh" } else { "silu" };
        let function = self.get("hidden_activation").or_else(|| self.get("hidden_act")).and_then(Value::as_str);
        if let Some(other) = function.filter(|name| *name != wanted) {
            return Err(refuse(format!(
                "the activation is `{}`; this version runs `{wanted}` for this architecture",
                shown(other)
            )));
        }
        for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
            if self.float(key).is_some_and(|cap| cap != 0.0) {
                return Err(refuse(format!("`config.json` sets `{key}`, which this version does not run")));
            }
        }
        if self.get("use_bidirectional_attention").and_then(Value::as_bool) == Some(true) {
            return Err(refuse(
                "it looks both ways (`use_bidirectional_attention`), which this version does not run".into(),
            ));
        }
        let is_part = |settings: &Value| {
            let part = settings.get("partial_rotary_factor").and_then(Value::as_f64);
            part.is_some_and(|part| (part - 1.0).abs() > f64::EPSILON)
        };
        let parameters = self.get("rope_parameters").and_then(Value::as_object);
        if is_part(&self.config)
            || self.get("rope_parameters").is_some_and(is_part)
            || parameters.is_some_and(|all| all.values().any(is_part))
        {
            return Err(refuse(
                "it rotates a part of each head (`partial_rotary_factor`), which this version does not run".into(),
            ));
        }
        Ok(())
    }

    /// Context length in training. A model whose layers all attend to a window is limited to that window.
    fn context(&self, refuse: Refuse<'_>) -> Result<u64, LoadError> {
        let whole = self.number("max_position_embeddings");
        let whole = whole.ok_or_else(|| refuse("`config.json` has no `max_position_embeddings`".into()))?;
        let has_windows = match self.architecture {
            Architecture::Qwen2 | Architecture::Qwen3 => {
                self.get("use_sliding_window").and_then(Value::as_bool) == Some(true)
            }
            Architecture::Llama => self.is_mistral,
            Architecture::Gemma3 => false,
        };
        let window = self.number("sliding_window").filter(|window| has_windows && *window > 0);
        Ok(window.map_or(whole, |window| whole.min(window)))
    }

    /// Period of the layers that attend to the whole context: one in so many.
    fn full_attention_period(&self, refuse: Refuse<'_>) -> Result<u64, LoadError> {
        let settings = self.number("sliding_window_pattern").or_else(|| self.number("_sliding_window_pattern"));
        let Some(kinds) = self.get("layer_types").and_then(Value::as_array) else { return Ok(settings.unwrap_or(6)) };
        let is_full = |kind: &Value| kind.as_str() == Some("full_attention");
        // Without any such layer the period is longer than the model.
        let period = kinds.iter().position(is_full).map_or(kinds.len(), |first| first) + 1;
        let regular = kinds.iter().enumerate().all(|(n, kind)| is_full(kind) == (n + 1).is_multiple_of(period));
        let known = kinds.iter().all(|kind| is_full(kind) || kind.as_str() == Some("sliding_attention"));
        if !regular || !known || kinds.len() > MAX_LIST {
            return Err(refuse(
                "`layer_types` are irregular; this version runs full layers at a fixed interval".into(),
            ));
        }
        u64::try_from(period).map_err(|e| refuse(e.to_string()))
    }

    /// Rotary embedding of the layers with full attention, and of those with sliding-window attention.
    fn rotations(&self) -> (RopeConfig<'_>, RopeConfig<'_>) {
        let gemma = self.architecture == Architecture::Gemma3;
        let parameters = self.get("rope_parameters");
        let base = self.float("rope_theta").unwrap_or(if gemma { 1e6 } else { 1e4 });
        let local_base = self.float("rope_local_base_freq").unwrap_or(1e4);
        let of = |kind: &str, base: f64, scaling| {
            // Newer files give the parameters for each kind of layer, or once for all; older ones keep the base
            // apart.
            let settings = parameters.and_then(|all| all.get(kind).or(Some(all))).or(scaling);
            let base = settings.and_then(|settings| settings.get("rope_theta")).and_then(Value::as_f64).unwrap_or(base);
            RopeConfig { base, settings }
        };
        let whole = of("full_attention", base, self.get("rope_scaling"));
        let windowed = parameters.is_some_and(|all| all.get("sliding_attention").is_some());
        let local = if windowed {
            of("sliding_attention", local_base, None)
        } else {
            RopeConfig { base: local_base, settings: None }
        };
        (whole, local)
    }

    /// Name of a tensor in GGUF; `None` for a tensor that the text part does not use.
    pub(super) fn gguf_name(&self, name: &str) -> Option<String> {
        let strip =
            |name: &str, heads: &[&str]| heads.iter().find_map(|head| name.strip_prefix(head)).map(str::to_owned);
        let of_images =
            ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];
        if self.is_multimodal && of_images.iter().any(|head| name.starts_with(head)) {
            return None;
        }
        if name == "lm_head.weight" || (self.is_multimodal && name == "language_model.lm_head.weight") {
            return (!self.is_tied()).then(|| "output.weight".to_owned());
        }
        let heads: &[&str] = if self.is_multimodal {
            &["language_model.model.", "model.language_model.", "model."]
        } else {
            &["model."]
        };
        let Some(inner) = strip(name, heads) else { return Some(name.to_owned()) };
        match inner.as_str() {
            "embed_tokens.weight" => return Some("token_embd.weight".into()),
            "norm.weight" => return Some("output_norm.weight".into()),
            _ => {}
        }
        let of_layer = inner.strip_prefix("layers.").and_then(|rest| rest.split_once('.'));
        let Some((n, part)) = of_layer else { return Some(name.to_owned()) };
        // Older files store frequencies that follow from the base.
        if part == "self_attn.rotary_emb.inv_freq" {
            return None;
        }
        let (stem, end) = part.rsplit_once('.').unwrap_or((part, ""));
        let gemma = self.architecture == Architecture::Gemma3;
        let stem = match stem {
            "self_attn.q_proj" => "attn_q",
            "self_attn.k_proj" => "attn_k",
            "self_attn.v_proj" => "attn_v",
            "self_attn.o_proj" => "attn_output",
            "self_attn.q_norm" => "attn_q_norm",
            "self_attn.k_norm" => "attn_k_norm",
            "mlp.gate_proj" => "ffn_gate",
            "mlp.up_proj" => "ffn_up",
            "mlp.down_proj" => "ffn_down",
            "input_layernorm" => "attn_norm",
            "post_attention_layernorm" if gemma => "post_attention_norm",
            "post_attention_layernorm" => "ffn_norm",
            "pre_feedforward_layernorm" if gemma => "ffn_norm",
            "post_feedforward_layernorm" if gemma => "post_ffw_norm",
            // Unknown names are kept, so that the model refuses the tensor by its name.
            _ => return Some(name.to_owned()),
        };
        Some(format!("blk.{n}.{stem}.{end}"))
    }
}

/// Rotary embedding of some layers: base frequency and scaling parameters.
struct RopeConfig<'a> {
    base: f64,
    settings: Option<&'a Value>,
}

enum Scaling {
    None,
    Linear(f64),
    Llama3(Llama3),
}

impl RopeConfig<'_> {
    fn scaling(&self, refuse: Refuse<'_>) -> Result<Scaling, LoadError> {
        let Some(settings) = self.settings else { return Ok(Scaling::None) };
        let kind =
            settings.get("rope_type").or_else(|| settings.get("type")).and_then(Value::as_str).unwrap_or("default");
        let number = |key: &str| {
            let number = settings.get(key).and_then(Value::as_f64).filter(|n| n.is_finite() && *n > 0.0);
            number.ok_or_else(|| refuse(format!("positions are scaled by `{}`, but `{key}` is missing", shown(kind))))
        };
        match kind {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear(number("factor")?)),
            "llama3" => {
                let scaling = Llama3 {
                    factor: number("factor")?,
                    low: number("low_freq_factor")?,
                    high: number("high_freq_factor")?,
                    context: number("original_max_position_embeddings")?,
                };
                if scaling.high <= scaling.low {
                    return Err(refuse("`high_freq_factor` is not above `low_freq_factor`".into()));
                }
                Ok(Scaling::Llama3(scaling))
            }
            other => Err(refuse(format!(
                "positions are scaled by `{}`; this version runs `linear` and `llama3`",
                shown(other)
            ))),
        }
    }
}

/// Context extension of Llama 3.1 (arXiv:2407.21783). Wavelengths long beside the original context are stretched,
/// short ones stay, and the factor changes smoothly between them.
struct Llama3 {
    factor: f64,
    low: f64,
    high: f64,
    /// Tokens of the original context.
    context: f64,
}

impl Llama3 {
    /// Divisor of the frequency of each pair.
    #[allow(clippy::cast_precision_loss, reason = "a width of a head is small")]
    fn factors(&self, dim: u64, base: f64) -> Vec<f64> {
        let pairs = (0..dim / 2).map(|pair| {
            let wave = TAU * base.powf((2 * pair) as f64 / dim as f64);
            if wave < self.context / self.high {
                1.0
            } else if wave > self.context / self.low {
                self.factor
            } else {
                let smooth = (self.context / wave - self.low) / (self.high - self.low);
                1.0 / ((1.0 - smooth) / self.factor + smooth)
            }
        });
        pairs.collect()
    }
}
