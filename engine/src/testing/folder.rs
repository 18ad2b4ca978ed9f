//! Folders as Hugging Face's libraries write them, made of GGUF files: the same weights in safetensors, with rows in
//! their order of training, and the files beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::artifact::{MetaValue, ModelFile, TensorType};

/// Name, `dtype`, shape from the outermost dimension on, data.
pub(crate) type Weights = (String, &'static str, Vec<usize>, Vec<u8>);

/// A folder that is deleted when dropped.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    pub(crate) fn write(&self, name: &str, value: &Value) {
        std::fs::write(self.file(name), value.to_string()).unwrap();
    }
    /// Changes a JSON file.
    pub(crate) fn edit(&self, name: &str, edit: impl FnOnce(&mut Value)) {
        let mut value = serde_json::from_slice(&std::fs::read(self.file(name)).unwrap()).unwrap();
        edit(&mut value);
        self.write(name, &value);
    }
}

/// Weights as a file of safetensors.
pub(crate) fn safetensors(tensors: &[Weights]) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, kind, shape, bytes) in tensors {
        let from = data.len();
        data.extend(bytes);
        header.insert(name.clone(), json!({"dtype": kind, "shape": shape, "data_offsets": [from, data.len()]}));
    }
    let mut header = Value::from(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// Copies a file of safetensors and renames its tensors, each to one name or several.
pub(crate) fn rename(from: &Path, to: &Path, names: impl Fn(&str) -> Vec<String>) {
    let bytes = std::fs::read(from).unwrap();
    let (header, parsed) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let mut tensors: Vec<Weights> = Vec::new();
    for (name, info) in BTreeMap::from_iter(parsed.tensors()) {
        let kind = if info.dtype == safetensors::Dtype::F32 { "F32" } else { "BF16" };
        let data = &bytes[8 + header + info.data_offsets.0..8 + header + info.data_offsets.1];
        tensors.extend(names(&name).into_iter().map(|name| (name, kind, info.shape.clone(), data.to_vec())));
    }
    std::fs::write(to, self::safetensors(&tensors)).unwrap();
}

/// Converts a GGUF file to a decoder's folder with the weights in this many parts.
pub(crate) fn of_gguf(gguf: &Path, parts: usize) -> Folder {
    let file = ModelFile::open(gguf).unwrap();
    let folder = Folder(tempfile::tempdir().unwrap());
    let architecture = file.architecture();
    let number = |key: &str| file.number(key).unwrap() as usize;
    let (heads, kv_heads) = (number("attention.head_count"), number("attention.head_count_kv"));
    let mut tensors: Vec<Weights> = Vec::new();
    for name in file.names() {
        let (columns, rows) = file.entry(name).unwrap().shape();
        let tensor = file.tensor(name, columns, rows).unwrap();
        let kind = match tensor.kind {
            TensorType::F32 => "F32",
            TensorType::F16 => "F16",
            TensorType::BF16 => "BF16",
            other => panic!("{other:?}"),
        };
        let mut data = tensor.data.to_vec();
        // Undoes the order of llama.cpp's conversion, which puts the two of a pair next to each other.
        let of_head = if name.contains("attn_q.") { heads } else { kv_heads };
        if architecture == "llama" && (name.contains("attn_q.") || name.contains("attn_k.")) {
            let (width, dim) = (data.len() / rows, rows / of_head);
            for row in 0..rows {
                let (head, place) = (row / dim, row % dim);
                let to = head * dim + place % 2 * (dim / 2) + place / 2;
                data[to * width..(to + 1) * width].copy_from_slice(&tensor.data[row * width..(row + 1) * width]);
            }
        }
        if architecture == "gemma3" && name.ends_with("norm.weight") {
            for value in data.chunks_exact_mut(4) {
                let less = f32::from_le_bytes(value.try_into().unwrap()) - 1.0;
                value.copy_from_slice(&less.to_le_bytes());
            }
        }
        let is_vector = rows == 1 && (name.ends_with("norm.weight") || name.ends_with("bias"));
        let shape = if is_vector { vec![columns] } else { vec![rows, columns] };
        tensors.push((their_name(name, architecture), kind, shape, data));
    }
    if parts == 1 {
        std::fs::write(folder.file("model.safetensors"), safetensors(&tensors)).unwrap();
    } else {
        let (mut map, size) = (BTreeMap::new(), tensors.len().div_ceil(parts));
        for (n, part) in tensors.chunks(size).enumerate() {
            let name = format!("model-{:05}-of-{parts:05}.safetensors", n + 1);
            std::fs::write(folder.file(&name), safetensors(part)).unwrap();
            map.extend(part.iter().map(|(tensor, ..)| (tensor.clone(), name.clone())));
        }
        folder.write("model.safetensors.index.json", &json!({"metadata": {}, "weight_map": map}));
    }
    let gemma = architecture == "gemma3";
    let mut config = json!({
        "model_type": if gemma { "gemma3_text" } else { architecture },
        "num_hidden_layers": number("block_count"),
        "hidden_size": number("embedding_length"),
        "intermediate_size": number("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": number("attention.key_length"),
        "vocab_size": file.rows("token_embd.weight").unwrap(),
        "max_position_embeddings": number("context_length"),
        "rms_norm_eps": file.float("attention.layer_norm_rms_epsilon").unwrap(),
        "rope_theta": file.float("rope.freq_base").unwrap(),
        "tie_word_embeddings": !file.has("output.weight"),
        "torch_dtype": "float32",
    });
    if gemma {
        config["hidden_activation"] = "gelu_pytorch_tanh".into();
        config["sliding_window"] = number("attention.sliding_window").into();
        config["sliding_window_pattern"] = 6.into();
        config["query_pre_attn_scalar"] = number("attention.key_length").into();
    } else {
        config["hidden_act"] = "silu".into();
    }
    folder.write("config.json", &config);
    folder.write("tokenizer.json", &byte_level(&file, &json!([])));
    let token = |key: &str| {
        let Some(MetaValue::Strings(tokens)) = file.meta("tokenizer.ggml.tokens") else { panic!() };
        let id = file.meta(&format!("tokenizer.ggml.{key}_token_id")).and_then(MetaValue::as_u64)?;
        tokens.get(id as usize).cloned()
    };
    let template = match file.meta("tokenizer.chat_template") {
        Some(MetaValue::String(template)) => Some(template.clone()),
        _ => None,
    };
    folder.write(
        "tokenizer_config.json",
        &json!({"bos_token": {"content": token("bos")}, "eos_token": token("eos"), "chat_template": template}),
    );
    folder
}

/// A `tokenizer.json` of byte-level BPE with these pre-tokenizers before the split into bytes.
pub(crate) fn byte_level(file: &ModelFile, cuts: &Value) -> Value {
    let strings = |key: &str| match file.meta(key) {
        Some(MetaValue::Strings(values)) => values.clone(),
        other => panic!("{other:?}"),
    };
    let (tokens, merges) = (strings("tokenizer.ggml.tokens"), strings("tokenizer.ggml.merges"));
    let Some(MetaValue::Numbers(kinds)) = file.meta("tokenizer.ggml.token_type") else { panic!() };
    let added = tokens.iter().zip(kinds).enumerate().filter(|(_, (_, kind))| **kind == 3.0);
    let added = added.map(|(id, (content, _))| {
        json!({"id": id, "content": content, "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false})
    });
    let added: Vec<_> = added.collect();
    // GPT-2's own split unless others are given.
    let plain = cuts.as_array().is_some_and(Vec::is_empty);
    let mut steps = cuts.as_array().cloned().unwrap_or_default();
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": plain}));
    let vocab: serde_json::Map<_, _> = (0..).zip(&tokens).map(|(id, token)| (token.clone(), Value::from(id))).collect();
    json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": false},
    })
}

/// Hugging Face's name of a GGUF tensor.
fn their_name(name: &str, architecture: &str) -> String {
    let gemma = architecture == "gemma3";
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        _ => {}
    }
    let mut parts = name.split('.');
    let (Some("blk"), Some(n), Some(stem), Some(end)) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        panic!("{name}")
    };
    let stem = match stem {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        "attn_norm" => "input_layernorm",
        "ffn_norm" if gemma => "pre_feedforward_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "post_attention_norm" => "post_attention_layernorm",
        "post_ffw_norm" => "post_feedforward_layernorm",
        other => panic!("{other}"),
    };
    format!("model.layers.{n}.{stem}.{end}")
}
