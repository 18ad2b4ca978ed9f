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
    // The heads of pre-training say nothing of a text.
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
    use rand::{RngExt, SeedableRng};
    use rand_chacha::ChaCha8Rng;

    use super::*;

    const CONFIG: &str = r#"{"model_type": "bert", "num_hidden_layers": 1, "hidden_size": 2, "vocab_size": 2,
        "max_position_embeddings": 8, "id2label": {"1": "bad", "0": "good"}}"#;

    fn folder(config: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        folder
    }

    fn file(header: &str, data: usize) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
    }

    #[test]
    fn a_folder_is_read_and_what_it_is_not_is_named() {
        let header = r#"{"embeddings.word_embeddings.weight":{"dtype":"F16","shape":[2,3],"data_offsets":[0,12]}}"#;
        let here = folder(CONFIG);
        let path = here.path().join("model.safetensors");
        let read = parse(&path, &file(header, 12)).unwrap();
        let table = &read.tensors["token_embd.weight"];
        assert_eq!((table.shape(), table.elements, table.range.len()), ((3, 2), 6, 12));
        assert_eq!(read.metadata["bert.context_length"], MetaValue::Unsigned(8));
        assert_eq!(
            read.metadata["bert.classifier.output_labels"],
            MetaValue::Strings(vec!["good".into(), "bad".into()])
        );
        let refused = |config: &str, bytes: &[u8]| {
            let here = folder(config);
            parse(&here.path().join("model.safetensors"), bytes).unwrap_err().to_string()
        };
        let cut = refused(CONFIG, &file(header, 11));
        assert!(cut.contains("damaged"), "{cut}");
        let other = refused(r#"{"model_type": "t5"}"#, &file(header, 12));
        assert!(other.contains("`t5`") && other.contains("convert_hf_to_gguf.py"), "{other}");
        let alone = parse(Path::new("/nowhere/model.safetensors"), &file(header, 12)).unwrap_err().to_string();
        assert!(alone.contains("no `config.json` beside it"), "{alone}");
    }

    #[test]
    fn a_damaged_file_is_refused_and_harms_nothing() {
        let header = r#"{"a.weight":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},"b.bias":{"dtype":"BF16","shape":[4],"data_offsets":[16,24]}}"#;
        let whole = file(header, 24);
        let here = folder(CONFIG);
        let path = here.path().join("model.safetensors");
        assert!(parse(&path, &whole).is_ok());
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        for _ in 0..3000 {
            let mut bytes = whole.clone();
            for _ in 0..rng.random_range(1..4) {
                let at = rng.random_range(0..bytes.len());
                bytes[at] = rng.random();
            }
            bytes.truncate(bytes.len() - rng.random_range(0..2) * rng.random_range(0..bytes.len()));
            if let Ok(read) = parse(&path, &bytes) {
                assert!(read.tensors.values().all(|tensor| tensor.range.end <= bytes.len()));
            }
        }
    }

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
