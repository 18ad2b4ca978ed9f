//! Reader of `options`: how an answer is sampled, and how a server runs the model.

use serde_json::{Number, Value};

use crate::protocol::refusals::shown;
use crate::protocol::translate::{Conversation, Fields, Setting, Wrong};

/// Options of the server's memory and processors, which change no answer.
const HINTS: [&str; 14] = [
    "embedding_only",
    "f16_kv",
    "logits_all",
    "low_vram",
    "main_gpu",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_keep",
    "num_thread",
    "numa",
    "use_mlock",
    "use_mmap",
    "vocab_only",
];

/// Reads the options of a request.
pub(super) fn read(fields: &mut Fields, request: &mut Conversation) -> Result<(), Wrong> {
    let Some(mut options) = fields.object("options")? else { return Ok(()) };
    let settings = &mut request.settings;
    for (name, path, setting) in [
        ("temperature", "options.temperature", Setting::Temperature as fn(Number) -> Setting),
        ("top_p", "options.top_p", Setting::TopP),
        ("min_p", "options.min_p", Setting::MinP),
    ] {
        if let Some(number) = options.number(name)? {
            settings.push(path, setting(number));
        }
    }
    for (name, path, neutral, setting) in [
        ("presence_penalty", "options.presence_penalty", 0.0, Setting::PresencePenalty as fn(Number) -> Setting),
        ("frequency_penalty", "options.frequency_penalty", 0.0, Setting::FrequencyPenalty),
        ("repeat_penalty", "options.repeat_penalty", 1.0, Setting::RepetitionPenalty),
    ] {
        if let Some(number) = options.number(name)?.filter(|number| number.as_f64() != Some(neutral)) {
            settings.push(path, setting(number));
        }
    }
    // Numbers below 1 restrict nothing, and any seed below 0 is a new one.
    if let Some(count) = whole(&mut options, "top_k")?.and_then(|count| u64::try_from(count).ok()).filter(|k| *k > 0) {
        settings.push("options.top_k", Setting::TopK(count));
    }
    if let Some(most) = whole(&mut options, "num_predict")?.and_then(|most| u64::try_from(most).ok()).filter(|n| *n > 0)
    {
        settings.push("options.num_predict", Setting::MaxTokens(most));
    }
    if let Some(seed) = whole(&mut options, "seed")?.filter(|seed| *seed >= 0) {
        settings.push("options.seed", Setting::Seed(seed.into()));
    }
    let stop = stop(&mut options)?;
    if !stop.is_empty() {
        settings.push("options.stop", Setting::Stop(stop));
    }
    for name in HINTS {
        options.hint(name, &mut request.hints);
    }
    for (name, value) in options.rest().filter(|(name, value)| !is_neutral(name, value)) {
        request.settings.push(format!("options.{}", shown(&name)), Setting::Unknown(value));
    }
    Ok(())
}

/// True for the value of an option by which it changes nothing.
fn is_neutral(name: &str, value: &Value) -> bool {
    match name {
        "typical_p" | "tfs_z" => value.as_f64() == Some(1.0),
        "mirostat" => value.as_f64() == Some(0.0),
        _ => false,
    }
}

/// Takes a whole number, which may be written as `40.0`.
fn whole(options: &mut Fields, name: &'static str) -> Result<Option<i64>, Wrong> {
    let Some(number) = options.number(name)? else { return Ok(None) };
    #[allow(clippy::cast_possible_truncation, reason = "a whole number; a cast saturates")]
    let of_float = || number.as_f64().filter(|number| number.fract() == 0.0).map(|number| number as i64);
    match number.as_i64().or_else(of_float) {
        Some(whole) => Ok(Some(whole)),
        None => Err(options.wrong("invalid_type", name, "must be a whole number")),
    }
}

/// Takes the stop strings. Ollama passes over empty ones, which would end every answer.
fn stop(options: &mut Fields) -> Result<Vec<String>, Wrong> {
    let stop = match options.take("stop") {
        None => Vec::new(),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(list)) => {
            let texts = list.into_iter().map(|value| match value {
                Value::String(text) => Ok(text),
                _ => Err(options.wrong("invalid_type", "stop", "must be a string or a list of strings")),
            });
            texts.collect::<Result<_, _>>()?
        }
        Some(_) => return Err(options.wrong("invalid_type", "stop", "must be a string or a list of strings")),
    };
    Ok(stop.into_iter().filter(|stop| !stop.is_empty()).collect())
}
