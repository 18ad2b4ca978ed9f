//! Folder of a BERT model, read into the metadata keys of GGUF.

use std::collections::HashMap;

use serde_json::Value;

use super::{MetaValue, ModelFolder, shown};
use crate::LoadError;

pub(super) fn metadata(
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
    for class in config.get("architectures").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
        if ["ForTokenClassification", "ForMultipleChoice"].iter().any(|kind| class.ends_with(kind)) {
            return Err(unsupported(format!(
                "the model is a `{}`; of BERT this version runs embeddings and classifiers of whole texts",
                shown(class)
            )));
        }
    }
    let mut metadata = HashMap::new();
    let mut put = |key: &str, value: MetaValue| metadata.insert(key.to_owned(), value);
    put("general.architecture", MetaValue::String("bert".into()));
    for (from, to) in [
        ("num_hidden_layers", "bert.block_count"),
        ("hidden_size", "bert.embedding_length"),
        ("intermediate_size", "bert.feed_forward_length"),
        ("num_attention_heads", "bert.attention.head_count"),
        ("vocab_size", "bert.vocab_size"),
        ("type_vocab_size", "tokenizer.ggml.token_type_count"),
    ] {
        if let Some(n) = config.get(from).and_then(Value::as_u64) {
            put(to, MetaValue::Unsigned(n));
        }
    }
    let positions = config.get("max_position_embeddings").and_then(Value::as_u64);
    if let Some(positions) = positions {
        put("bert.positions", MetaValue::Unsigned(positions));
        let cut = folder.json("sentence_bert_config.json")?;
        let cut = cut.as_ref().and_then(|cut| cut.get("max_seq_length")).and_then(Value::as_u64);
        put("bert.context_length", MetaValue::Unsigned(cut.map_or(positions, |cut| cut.min(positions))));
    }
    if let Some(eps) = config.get("layer_norm_eps").and_then(Value::as_f64) {
        put("bert.attention.layer_norm_epsilon", MetaValue::Float(eps));
    }
    if let Some(function) = config.get("hidden_act").and_then(Value::as_str) {
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
pub(super) fn gguf_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    // The heads of pre-training are not used for embeddings or scores.
    let training = ["cls.predictions.", "cls.seq_relationship."].iter().any(|head| name.starts_with(head));
    if training || name.ends_with("position_ids") {
        return None;
    }
    let (stem, end) = name.rsplit_once('.').unwrap_or((name, ""));
    let of_layer = stem.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.')).and_then(|(n, part)| {
        let part = match part {
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
        "pooler.dense" => "cls".to_owned(),
        "classifier" => "cls.output".to_owned(),
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
        for (theirs, ours) in [
            ("embeddings.word_embeddings.weight", Some("token_embd.weight")),
            ("bert.encoder.layer.11.attention.output.LayerNorm.gamma", Some("blk.11.attn_output_norm.weight")),
            ("encoder.layer.0.output.dense.bias", Some("blk.0.ffn_down.bias")),
            ("classifier.weight", Some("cls.output.weight")),
            ("embeddings.position_ids", None),
            ("cls.predictions.bias", None),
            ("encoder.layer.0.adapter.weight", Some("encoder.layer.0.adapter.weight")),
        ] {
            assert_eq!(gguf_name(theirs).as_deref(), ours);
        }
    }
}
