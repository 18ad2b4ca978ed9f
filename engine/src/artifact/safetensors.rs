//! A BERT model as sentence-transformers keeps it: `model.safetensors` with `config.json` and `tokenizer.json` beside it.
//! It is read into the same metadata and tensors, under the same names, as a GGUF file of that model has, so that all that
//! follows knows one kind of file. The header is checked by the `safetensors` crate: offsets, sizes, no gap, no overlap.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::gguf::{Header, MetaValue, TensorEntry};
use crate::LoadError;

/// Longest file of JSON that is read; a tokenizer of a quarter of a million words has some 30 MB.
const MAX_JSON: u64 = 64 << 20;

/// What stands beside the weights.
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn of(weights: &Path) -> Self {
        Self(weights.parent().map(Path::to_owned).unwrap_or_default())
    }

    pub(super) fn tokenizer(&self) -> PathBuf {
        self.0.join("tokenizer.json")
    }

    fn json(&self, name: &str) -> Result<Option<Value>, LoadError> {
        let path = self.0.join(name);
        let Some(bytes) = bytes(&path)? else { return Ok(None) };
        let corrupt = |e: serde_json::Error| LoadError::Corrupt { path: path.clone(), reason: e.to_string() };
        serde_json::from_slice(&bytes).map(Some).map_err(corrupt)
    }
}

/// The bytes of a file of bounded length; `None` where there is none.
pub(super) fn bytes(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let io = |source| LoadError::Io { path: path.to_owned(), source };
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_JSON + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_JSON {
        return Err(LoadError::Corrupt { path: path.to_owned(), reason: "it is longer than 64 MiB".into() });
    }
    Ok(Some(bytes))
}

/// Reads the header of a file and what stands beside it.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Header, LoadError> {
    let corrupt = |reason: String| LoadError::Corrupt { path: path.to_owned(), reason };
    let unsupported = |reason: String| LoadError::Unsupported { path: path.to_owned(), reason };
    let folder = Folder::of(path);
    let config = folder.json("config.json")?.ok_or_else(|| {
        unsupported(
            "there is no `config.json` beside it: put the whole model folder in place, not the weights alone".into(),
        )
    })?;
    let kind = config.get("model_type").and_then(Value::as_str).unwrap_or("unknown");
    if kind != "bert" {
        let shown: String = kind.chars().take(40).flat_map(char::escape_debug).collect();
        return Err(unsupported(format!(
            "its `config.json` says `model_type` `{shown}`: of safetensors this version runs `bert`; convert others to GGUF \
             with llama.cpp's convert_hf_to_gguf.py"
        )));
    }
    match config.get("position_embedding_type").and_then(Value::as_str) {
        None | Some("absolute") => {}
        Some(other) => {
            let shown: String = other.chars().take(40).flat_map(char::escape_debug).collect();
            return Err(unsupported(format!("its positions are `{shown}`, which this version does not run")));
        }
    }
    let metadata = metadata(&config, &folder, &unsupported)?;
    let (header, parsed) = SafeTensors::read_metadata(file).map_err(|e| corrupt(e.to_string()))?;
    let start = header.checked_add(8).ok_or_else(|| corrupt("its header overflows".into()))?;
    let mut tensors = BTreeMap::new();
    for (name, info) in parsed.tensors() {
        let Some(name) = gguf_name(&name) else { continue };
        let (from, to) = info.data_offsets;
        let range = start.saturating_add(from)..start.saturating_add(to);
        if range.end > file.len() {
            return Err(corrupt(format!("tensor `{name}` lies outside of the file")));
        }
        let entry = TensorEntry::new(number(info.dtype), info.shape.iter().rev().copied().collect(), range)
            .ok_or_else(|| corrupt(format!("tensor `{name}` has no sound shape")))?;
        if tensors.insert(name.clone(), entry).is_some() {
            return Err(corrupt(format!("tensor `{name}` is there twice")));
        }
    }
    Ok(Header { metadata, tensors })
}

/// ggml's number of a type; 24 and more are types that no matrix is run in.
fn number(kind: Dtype) -> u32 {
    match kind {
        Dtype::F32 => 0,
        Dtype::F16 => 1,
        Dtype::BF16 => 30,
        Dtype::F64 => 28,
        Dtype::I64 => 27,
        Dtype::I32 => 26,
        Dtype::I16 => 25,
        _ => 24,
    }
}

fn metadata(
    config: &Value,
    folder: &Folder,
    unsupported: &impl Fn(String) -> LoadError,
) -> Result<HashMap<String, MetaValue>, LoadError> {
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
                    "its `1_Pooling/config.json` asks for another pooling than mean or CLS, which this version does not run"
                        .into(),
                ));
            }
        };
        put("bert.pooling_type", MetaValue::Unsigned(kind));
    }
    Ok(metadata)
}

/// What GGUF calls a tensor; `None` for one that holds no weights.
fn gguf_name(name: &str) -> Option<String> {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    if name.ends_with("position_ids") {
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
        // One that is not known stays as it is, and the model refuses to do without it.
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
            ("cls.predictions.bias", Some("cls.predictions.bias")),
        ] {
            assert_eq!(gguf_name(theirs).as_deref(), ours);
        }
    }
}
