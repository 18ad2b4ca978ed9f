//! Text settings in the folder of a decoder: tokens that begin and end a text, and the chat template. Results match
//! transformers 5 for the same files. Two settings have no effect there, and none here. The model's `bos_token_id` is
//! for answers without a prompt; `add_bos_token` beside a `tokenizer.json` yields to that file's post-processor.

use serde_json::Value;

use super::decoder::Metadata;
use super::{MetaValue, ModelFolder};
use crate::LoadError;

/// Most tokens that end an answer; real models have a handful.
const MAX_ENDS: usize = 4096;

/// Defaults of absent `bos_token` and `eos_token`, by prefix of `tokenizer_class`.
const DEFAULTS: [(&str, Option<&str>, Option<&str>); 3] = [
    ("LlamaTokenizer", Some("<s>"), Some("</s>")),
    ("GemmaTokenizer", Some("<bos>"), Some("<eos>")),
    ("Qwen2Tokenizer", None, Some("<|endoftext|>")),
];

/// Adds the text settings to the metadata. `ends` is the model's own `eos_token_id`.
pub(super) fn read(folder: &ModelFolder, ends: Option<&Value>, metadata: &mut Metadata) -> Result<(), LoadError> {
    let mut put = |key: &str, value| metadata.insert(key.to_owned(), value);
    let settings = folder.json("tokenizer_config.json")?.unwrap_or_default();
    // Older folders keep their special tokens in a file of its own, which takes precedence.
    let older = match settings.get("added_tokens_decoder") {
        Some(_) => None,
        None => folder.json("special_tokens_map.json")?,
    };
    let class = settings.get("tokenizer_class").and_then(Value::as_str).unwrap_or_default();
    let (_, bos, eos) = DEFAULTS.into_iter().find(|(name, ..)| class.starts_with(name)).unwrap_or_default();
    for (key, to, default) in [("bos_token", "tokenizer.bos", bos), ("eos_token", "tokenizer.eos", eos)] {
        let written = older.as_ref().and_then(|older| older.get(key)).or_else(|| settings.get(key));
        if let Some(token) = written.map_or(default, token) {
            put(to, MetaValue::String(token.to_owned()));
        }
    }
    let generation = folder.json("generation_config.json")?.unwrap_or_default();
    let ends = generation.get("eos_token_id").filter(|ends| !ends.is_null()).or(ends);
    let ends = match ends {
        Some(Value::Array(ends)) => ends.iter().take(MAX_ENDS).filter_map(Value::as_f64).collect(),
        Some(end) => end.as_f64().into_iter().collect(),
        None => Vec::new(),
    };
    put("tokenizer.ends", MetaValue::Numbers(ends));
    let beside = folder.text("chat_template.jinja")?;
    let legacy = || Ok::<_, LoadError>(folder.json("chat_template.json")?.and_then(|settings| template(&settings)));
    let template = match beside {
        Some(template) => Some(template),
        None => template(&settings).map_or_else(legacy, |template| Ok(Some(template)))?,
    };
    if let Some(template) = template {
        put("tokenizer.chat_template", MetaValue::String(template));
    }
    Ok(())
}

/// Token in a settings file: a string, or an object with its `content`.
fn token(written: &Value) -> Option<&str> {
    written.as_str().or_else(|| written.get("content")?.as_str())
}

/// Chat template of a settings file: a string, or several with names, of which `default` is used.
fn template(settings: &Value) -> Option<String> {
    let named = |name: &str| {
        let mut all = settings.get("chat_template")?.as_array()?.iter();
        all.find(|one| one.get("name").and_then(Value::as_str) == Some(name))?.get("template")?.as_str()
    };
    let text = settings.get("chat_template").and_then(Value::as_str).or_else(|| named("default"));
    text.map(str::to_owned)
}
