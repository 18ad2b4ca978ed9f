//! Folder of a BERT, DistilBERT or RoBERTa model, read into the metadata keys of GGUF.

use std::collections::HashMap;

use serde_json::Value;

use super::{MetaValue, ModelFolder, shown};
use crate::LoadError;

/// Metadata key of `problem_type`.
const PROBLEM: &str = "bert.problem_type";

/// Values of `model_type` that this version runs as encoders.
pub(super) const MODEL_TYPES: [&str; 4] = ["bert", "distilbert", "roberta", "xlm-roberta"];
/// Classes of classifiers of whole texts that this version runs.
pub(super) const CLASSIFIERS: [&str; 4] = [
    "BertForSequenceClassification",
    "DistilBertForSequenceClassification",
    "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification",
];

/// Variant of the architecture, which names its tensors and settings in its own way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Encoder {
    Bert,
    DistilBert,
    Roberta,
}

impl Encoder {
    /// Variant of a `model_type`; `None` for a model that is no encoder.
    pub(super) fn of(model_type: &str) -> Option<Self> {
        match model_type {
            "bert" => Some(Self::Bert),
            "distilbert" => Some(Self::DistilBert),
            "roberta" | "xlm-roberta" => Some(Self::Roberta),
            _ => None,
        }
    }

    /// Name of the variant in the metadata.
    fn name(self) -> &'static str {
        match self {
            Self::Bert => "bert",
            Self::DistilBert => "distilbert",
            Self::Roberta => "roberta",
        }
    }

    /// Numbers of `config.json`, and their keys in GGUF.
    fn numbers(self) -> [(&'static str, &'static str); 6] {
        let [layers, width, feed_forward, heads] = match self {
            Self::DistilBert => ["n_layers", "dim", "hidden_dim", "n_heads"],
            Self::Bert | Self::Roberta => {
                ["num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"]
            }
        };
        [
            (layers, "bert.block_count"),
            (width, "bert.embedding_length"),
            (feed_forward, "bert.feed_forward_length"),
            (heads, "bert.attention.head_count"),
            ("vocab_size", "bert.vocab_size"),
            ("type_vocab_size", "tokenizer.ggml.token_type_count"),
        ]
    }
}

/// Error for a class that judges whole texts and is not supported.
pub(super) fn refuse_classifier(config: &Value) -> Option<String> {
    let is_classifier = |class: &&str| class.ends_with("ForSequenceClassification") && !CLASSIFIERS.contains(class);
    classes(config).find(is_classifier).map(|class| {
        let known = CLASSIFIERS.join(", ");
        format!("the model is a `{}`; of classifiers this version runs {known}: take one of these", shown(class))
    })
}

/// Classes that `config.json` names.
fn classes(config: &Value) -> impl Iterator<Item = &str> {
    config.get("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

pub(super) fn metadata(
    encoder: Encoder,
    config: &Value,
    folder: &ModelFolder,
    unsupported: &impl Fn(String) -> LoadError,
) -> Result<HashMap<String, MetaValue>, LoadError> {
    match config.get("position_embedding_type").and_then(Value::as_str) {
        None | Some("absolute") => {}
        Some(other) => {
            return Err(unsupported(format!("its positions are `{}`; this version runs `absolute`", shown(other))));
        }
    }
    // Heads of these classes have the same tensor names as a classifier of whole texts.
    for class in classes(config) {
        if ["ForTokenClassification", "ForMultipleChoice", "ForQuestionAnswering"]
            .iter()
            .any(|kind| class.ends_with(kind))
        {
            return Err(unsupported(format!(
                "the model is a `{}`; of {} this version runs embeddings and classifiers of whole texts",
                shown(class),
                MODEL_TYPES.join(", ")
            )));
        }
    }
    let mut metadata = HashMap::new();
    let mut put = |key: &str, value: MetaValue| metadata.insert(key.to_owned(), value);
    put("general.architecture", MetaValue::String("bert".into()));
    put("bert.family", MetaValue::String(encoder.name().to_owned()));
    for (from, to) in encoder.numbers() {
        if let Some(n) = config.get(from).and_then(Value::as_u64) {
            put(to, MetaValue::Unsigned(n));
        }
    }
    let positions = config.get("max_position_embeddings").and_then(Value::as_u64);
    if let Some(positions) = positions {
        put("bert.positions", MetaValue::Unsigned(positions));
        let mut first = 0;
        if encoder == Encoder::Roberta {
            // Positions are counted from behind the number of the padding token, which is 1 by default.
            let padding = config.get("pad_token_id").filter(|id| !id.is_null()).map_or(Some(1), Value::as_u64);
            let first_of = |padding: u64| padding.checked_add(1).filter(|first| *first < positions);
            first = padding.and_then(first_of).ok_or_else(|| {
                let expected = format!("expected a number below {positions}, its `max_position_embeddings`, less one");
                unsupported(format!("the `pad_token_id` leaves no position for a text; {expected}"))
            })?;
            put("bert.first_position", MetaValue::Unsigned(first));
        }
        let positions = positions - first;
        let cut = folder.json("sentence_bert_config.json")?;
        let cut = cut.as_ref().and_then(|cut| cut.get("max_seq_length")).and_then(Value::as_u64);
        put("bert.context_length", MetaValue::Unsigned(cut.map_or(positions, |cut| cut.min(positions))));
    }
    // DistilBERT has no setting for it.
    let eps = config.get("layer_norm_eps").filter(|_| encoder != Encoder::DistilBert);
    if let Some(eps) = eps.and_then(Value::as_f64) {
        put("bert.attention.layer_norm_epsilon", MetaValue::Float(eps));
    }
    let function = if encoder == Encoder::DistilBert { "activation" } else { "hidden_act" };
    if let Some(function) = config.get(function).and_then(Value::as_str) {
        put("bert.hidden_act", MetaValue::String(function.to_owned()));
    }
    if let Some(Value::Object(labels)) = config.get("id2label") {
        let mut named: Vec<_> = labels
            .iter()
            .filter_map(|(id, label)| Some((id.parse::<u64>().ok()?, label.as_str()?.to_owned())))
            .collect();
        named.sort();
        put("bert.classifier.output_labels", MetaValue::Strings(named.into_iter().map(|(_, label)| label).collect()));
    }
    if let Some(problem) = config.get("problem_type").filter(|problem| !problem.is_null()) {
        let known = ["single_label_classification", "multi_label_classification", "regression"];
        let problem = problem.as_str().unwrap_or_default();
        if !known.contains(&problem) {
            let known = known.join(", ");
            return Err(unsupported(format!("unknown `problem_type` `{}`; expected {known}", shown(problem))));
        }
        put(PROBLEM, MetaValue::String(problem.to_owned()));
    }
    if let Some(pooling) = folder.json("1_Pooling/config.json")? {
        let on = |key: &str| pooling.get(key).and_then(Value::as_bool).unwrap_or(false);
        let kind = match (on("pooling_mode_mean_tokens"), on("pooling_mode_cls_token")) {
            (true, false) => 1,
            (false, true) => 2,
            _ => {
                return Err(unsupported(
                    "`1_Pooling/config.json` sets another pooling than mean or CLS; this version runs only these"
                        .into(),
                ));
            }
        };
        put("bert.pooling_type", MetaValue::Unsigned(kind));
    }
    Ok(metadata)
}

/// Name of a tensor in GGUF; `None` for a tensor that is not used.
pub(super) fn gguf_name(encoder: Encoder, name: &str) -> Option<String> {
    let name = name.strip_prefix(encoder.name()).and_then(|rest| rest.strip_prefix('.')).unwrap_or(name);
    // Heads that are not used for embeddings or scores, most of them of pre-training.
    let heads: &[&str] = match encoder {
        Encoder::Bert => &["cls.predictions.", "cls.seq_relationship."],
        Encoder::DistilBert => &["vocab_transform.", "vocab_layer_norm.", "vocab_projector."],
        // The head reads the first row itself; older folders have a pooler beside it.
        Encoder::Roberta => &["lm_head.", "pooler."],
    };
    if heads.iter().any(|head| name.starts_with(head)) || name.ends_with("position_ids") {
        return None;
    }
    let (stem, end) = name.rsplit_once('.').unwrap_or((name, ""));
    let layers = if encoder == Encoder::DistilBert { "transformer.layer." } else { "encoder.layer." };
    let of_layer = stem.strip_prefix(layers).and_then(|rest| rest.split_once('.')).and_then(|(n, part)| {
        let part = match part {
            _ if encoder == Encoder::DistilBert => match part {
                "attention.q_lin" => "attn_q",
                "attention.k_lin" => "attn_k",
                "attention.v_lin" => "attn_v",
                "attention.out_lin" => "attn_output",
                "sa_layer_norm" => "attn_output_norm",
                "ffn.lin1" => "ffn_up",
                "ffn.lin2" => "ffn_down",
                "output_layer_norm" => "layer_output_norm",
                _ => return None,
            },
            "attention.self.query" => "attn_q",
            "attention.self.key" => "attn_k",
            "attention.self.value" => "attn_v",
            "attention.output.dense" => "attn_output",
            "attention.output.LayerNorm" => "attn_output_norm",
            "intermediate.dense" => "ffn_up",
            "output.dense" => "ffn_down",
            "output.LayerNorm" => "layer_output_norm",
            _ => return None,
        };
        Some(format!("blk.{n}.{part}"))
    });
    let stem = match stem {
        "embeddings.word_embeddings" => "token_embd".to_owned(),
        "embeddings.position_embeddings" => "position_embd".to_owned(),
        "embeddings.token_type_embeddings" => "token_types".to_owned(),
        "embeddings.LayerNorm" => "token_embd_norm".to_owned(),
        "pooler.dense" if encoder == Encoder::Bert => "cls".to_owned(),
        "pre_classifier" if encoder == Encoder::DistilBert => "cls".to_owned(),
        "classifier.dense" if encoder == Encoder::Roberta => "cls".to_owned(),
        "classifier.out_proj" if encoder == Encoder::Roberta => "cls.output".to_owned(),
        "classifier" if encoder != Encoder::Roberta => "cls.output".to_owned(),
        // Unknown names are kept, so that the model refuses the tensor by its name.
        other => of_layer.unwrap_or_else(|| other.to_owned()),
    };
    // Older checkpoints name the parts of a norm after its paper.
    let end = match end {
        "gamma" => "weight",
        "beta" => "bias",
        other => other,
    };
    Some(format!("{stem}.{end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_have_the_names_of_gguf() {
        let (bert, distilbert, roberta) = (Encoder::Bert, Encoder::DistilBert, Encoder::Roberta);
        for (encoder, theirs, ours) in [
            (bert, "embeddings.word_embeddings.weight", Some("token_embd.weight")),
            (bert, "bert.encoder.layer.11.attention.output.LayerNorm.gamma", Some("blk.11.attn_output_norm.weight")),
            (bert, "encoder.layer.0.output.dense.bias", Some("blk.0.ffn_down.bias")),
            (bert, "classifier.weight", Some("cls.output.weight")),
            (bert, "embeddings.position_ids", None),
            (bert, "cls.predictions.bias", None),
            (bert, "encoder.layer.0.adapter.weight", Some("encoder.layer.0.adapter.weight")),
            (bert, "pre_classifier.weight", Some("pre_classifier.weight")),
            (distilbert, "distilbert.embeddings.LayerNorm.bias", Some("token_embd_norm.bias")),
            (distilbert, "distilbert.transformer.layer.3.attention.out_lin.weight", Some("blk.3.attn_output.weight")),
            (distilbert, "transformer.layer.3.sa_layer_norm.weight", Some("blk.3.attn_output_norm.weight")),
            (distilbert, "transformer.layer.3.ffn.lin1.bias", Some("blk.3.ffn_up.bias")),
            (distilbert, "pre_classifier.bias", Some("cls.bias")),
            (distilbert, "vocab_projector.bias", None),
            (roberta, "roberta.encoder.layer.1.intermediate.dense.weight", Some("blk.1.ffn_up.weight")),
            (roberta, "classifier.dense.weight", Some("cls.weight")),
            (roberta, "classifier.out_proj.weight", Some("cls.output.weight")),
            (roberta, "classifier.weight", Some("classifier.weight")),
            (roberta, "lm_head.bias", None),
            (roberta, "roberta.pooler.dense.weight", None),
        ] {
            assert_eq!(gguf_name(encoder, theirs).as_deref(), ours);
        }
    }
}
