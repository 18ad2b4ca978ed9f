//! Folders of small encoders for tests, as Hugging Face's libraries write them.

use std::path::Path;

use serde_json::{Value, json};

/// Writes the folder of an encoder: its tensors by name, each with its shape; its configuration; and a tokenizer of words, of which
/// the first four are special: `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`.
pub(crate) fn write_encoder<'t>(
    folder: &Path,
    tensors: impl IntoIterator<Item = (&'t String, &'t (Vec<usize>, Vec<f32>))>,
    config: &Value,
    words: &[&str],
) {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, (shape, values)) in tensors {
        let from = data.len();
        data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [from, data.len()]}));
    }
    let header = Value::from(header).to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &data].concat();
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("model.safetensors"), file).unwrap();
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let vocab: serde_json::Map<_, _> = (0..).zip(words).map(|(id, word)| (word.to_string(), Value::from(id))).collect();
    let special = (0..4).map(|id| {
        json!({"id": id, "content": words[id], "special": true, "normalized": false, "single_word": false,
            "lstrip": false, "rstrip": false})
    });
    let tokenizer = json!({"version": "1.0", "added_tokens": special.collect::<Vec<_>>(),
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
            "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab}});
    std::fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}
