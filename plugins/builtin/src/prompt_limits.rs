//! `promptLimits`: bounds of what one call of a model may hold and ask for.

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use spillway_config::values::Size;
use spillway_filter::{
    FieldError, Filter, FilterFactory, Flow, Refusal, RequestView, Rewrite, SystemPlace, define_compiled,
};

use crate::json_edit::{self, Pointer, folded};
use crate::strict_json;

/// Bytes of text that a token counts as, as in limits of tokens.
const BYTES_PER_TOKEN: usize = 4;

/// Bounds each call of a model that asks for text, in every API. A call over a bound is 400 and reaches no server. Put it behind
/// filters that change prompts, or before them to bound what callers write alone.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PromptLimits {
    /// Most messages of a conversation, or prompts of a completion.
    #[serde(default)]
    #[schemars(range(min = 1))]
    messages: Option<u32>,
    /// Longest text of a message, of a prompt and of the system prompt, without images, sounds and files.
    #[serde(default)]
    message_bytes: Option<Size>,
    /// Most tokens of the whole prompt, by the estimate of token limits: one for four bytes of text, 765 for an image.
    #[serde(default)]
    #[schemars(range(min = 1))]
    prompt_tokens: Option<u32>,
    /// Most tools that the model may call; 0 for none.
    #[serde(default)]
    tools: Option<u32>,
    /// Most tokens of the answer that a call may ask for (`max_tokens` and its other names). A call that asks for no number is
    /// left as it is: `transform` sets a default.
    #[serde(default)]
    #[schemars(range(min = 1))]
    max_tokens: Option<u32>,
    /// Treatment of a call that asks for more than `maxTokens`.
    #[serde(default)]
    on_max_tokens: OnMaxTokens,
    /// False refuses images.
    #[serde(default = "yes")]
    images: bool,
}

/// Treatment of a call that asks for too long an answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
enum OnMaxTokens {
    /// The call is 400.
    #[default]
    Refuse,
    /// The call asks for `maxTokens` instead.
    Clamp,
}

fn yes() -> bool {
    true
}

/// Names of the most tokens of an answer, at the top of a body.
const MAX_TOKENS: [&str; 6] =
    ["max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict", "max_new_tokens", "num_predict"];
/// Member of Ollama's bodies that has further settings, and the name of the most tokens there.
const OPTIONS: (&str, &str) = ("options", "num_predict");

fn compile(written: &PromptLimits) -> Result<Limits, Vec<FieldError>> {
    let mut errors = Vec::new();
    for (key, value) in [
        ("messages", written.messages),
        ("promptTokens", written.prompt_tokens),
        ("maxTokens", written.max_tokens),
        ("messageBytes", written.message_bytes.map(|size| u32::from(size.0 > 0))),
    ] {
        if value == Some(0) {
            errors.push(FieldError::at([key], "found 0, which lets no call pass; expected 1 or more"));
        }
    }
    if written.on_max_tokens == OnMaxTokens::Clamp && written.max_tokens.is_none() {
        errors.push(FieldError::at(["onMaxTokens"], "no effect without `maxTokens`: add it, or remove this"));
    }
    let counts = [written.messages, written.prompt_tokens, written.tools, written.max_tokens];
    if counts.iter().all(Option::is_none) && written.message_bytes.is_none() && written.images {
        let why =
            "no effect; expected `messages`, `messageBytes`, `promptTokens`, `tools`, `maxTokens` or `images: false`";
        errors.push(FieldError::at([], why));
    }
    let pointer = |text: &str| Pointer::parse(text).map_err(|why| vec![FieldError::at([], why)]);
    let top = MAX_TOKENS.iter().map(|name| Ok((*name, pointer(&format!("/{name}"))?)));
    let pointers = top.collect::<Result<Vec<_>, Vec<FieldError>>>()?;
    let option = pointer(&format!("/{}/{}", OPTIONS.0, OPTIONS.1))?;
    if errors.is_empty() { Ok(Limits { written: written.clone(), pointers, option }) } else { Err(errors) }
}

pub(crate) fn factory() -> Box<dyn FilterFactory> {
    define_compiled("promptLimits", compile)
}

/// Filter with its bounds.
struct Limits {
    written: PromptLimits,
    /// Places of [`MAX_TOKENS`].
    pointers: Vec<(&'static str, Pointer)>,
    /// Place of the most tokens in [`OPTIONS`].
    option: Pointer,
}

/// Refusal of a call that is over a bound.
fn over(param: &'static str, found: &str, allowed: &str) -> Box<Refusal> {
    let message = format!("this route takes smaller requests: found {found} in `{param}`; allowed {allowed}");
    Box::new(Refusal::invalid("prompt_over_limit", message).param(param))
}

/// Refusal of a body that is not in the form of its API.
fn unread(why: &str) -> Box<Refusal> {
    let message = format!("this route bounds requests, and cannot read the body of this one: {why}");
    Box::new(Refusal::invalid("unsupported_body", message))
}

/// True for a name in any letters that some server reads as this one.
fn is(name: &str, known: &str) -> bool {
    folded(name).eq(known.chars())
}

/// Bytes of the texts of a message, without names, kinds, images, sounds and files. A token counts as four bytes.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Number(_) => BYTES_PER_TOKEN,
        Value::Array(list) => list.iter().map(text_bytes).sum(),
        Value::Object(members) => {
            members.iter().filter(|(name, value)| !is_media(name, value)).map(|(_, value)| text_bytes(value)).sum()
        }
        Value::Bool(_) | Value::Null => 0,
    }
}

/// True for a member that holds no text of a message. The source of a document may be text.
fn is_media(name: &str, value: &Value) -> bool {
    let of_kind = |value: &Value| {
        let kind = value.get("type").and_then(Value::as_str).unwrap_or_default();
        ["base64", "url", "file"].contains(&kind)
    };
    ["role", "type", "image_url", "images", "image", "input_audio", "audio", "file_data", "index", "id"]
        .iter()
        .any(|known| is(name, known))
        || (is(name, "source") && of_kind(value))
}

/// True if a value holds an image.
fn has_image(value: &Value) -> bool {
    let is_there = |value: &Value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
    match value {
        Value::Array(list) => list.iter().any(has_image),
        Value::Object(members) => members.iter().any(|(name, value)| {
            let is_kind = is(name, "type")
                && value.as_str().is_some_and(|kind| ["image", "image_url", "input_image"].contains(&kind));
            let is_image = ["image_url", "images", "image"].iter().any(|known| is(name, known)) && is_there(value);
            is_kind || is_image || has_image(value)
        }),
        _ => false,
    }
}

/// Messages of a call, with the name of the member that holds them.
fn messages(body: &Map<String, Value>, place: SystemPlace) -> (&'static str, Vec<&Value>) {
    let name = match place {
        SystemPlace::Messages | SystemPlace::System => "messages",
        SystemPlace::Instructions => "input",
        SystemPlace::Prompt | SystemPlace::SystemOrPrompt => "prompt",
    };
    let found = match body.get(name) {
        None | Some(Value::Null) => Vec::new(),
        // One prompt in tokens is a list of numbers.
        Some(Value::Array(list)) if !list.first().is_some_and(Value::is_number) => list.iter().collect(),
        Some(one) => vec![one],
    };
    (name, found)
}

impl Limits {
    /// Body with fewer tokens to write; `None` where it stays.
    fn judged(&self, text: &str, x: &RequestView<'_>, place: SystemPlace) -> Result<Option<Bytes>, Box<Refusal>> {
        let value = strict_json::read(text.as_bytes()).map_err(unread)?;
        let Value::Object(body) = value else { return Err(unread("it is no object")) };
        let own = &self.written;
        let (name, messages) = messages(&body, place);
        if let Some(most) = own.messages.filter(|most| messages.len() > *most as usize) {
            return Err(over(name, &format!("{} messages", messages.len()), &format!("at most {most}")));
        }
        if let Some(most) = own.message_bytes {
            let texts = messages.iter().map(|message| (name, *message));
            let system = ["system", "instructions"].into_iter().filter_map(|name| Some((name, body.get(name)?)));
            for (name, message) in texts.chain(system) {
                let found = text_bytes(message);
                if u64::try_from(found).is_ok_and(|found| found > most.0) {
                    return Err(over(name, &format!("a message of {found} bytes"), &format!("at most {}", most.0)));
                }
            }
        }
        if let (Some(most), Some(found)) = (own.prompt_tokens, x.prompt_tokens)
            && found > u64::from(most)
        {
            return Err(over(name, &format!("about {found} tokens"), &format!("at most {most}")));
        }
        if let Some(most) = own.tools {
            for name in ["tools", "functions"] {
                let found = body.get(name).and_then(Value::as_array).map_or(0, Vec::len);
                if found > most as usize {
                    return Err(over(name, &format!("{found} tools"), &format!("at most {most}")));
                }
            }
        }
        if !own.images {
            let parts = ["messages", "input", "system", "prompt", "images"]
                .into_iter()
                .filter_map(|name| body.get_key_value(name));
            for (key, value) in parts {
                let is_list = key == "images" && value.as_array().is_some_and(|list| !list.is_empty());
                if is_list || has_image(value) {
                    return Err(over(name, "an image", "none"));
                }
            }
        }
        self.answer(text, &body)
    }

    fn answer(&self, text: &str, body: &Map<String, Value>) -> Result<Option<Bytes>, Box<Refusal>> {
        let Some(most) = self.written.max_tokens else { return Ok(None) };
        let top = self.pointers.iter().filter_map(|(name, at)| Some((*name, at, body.get(*name)?)));
        let options = body.get(OPTIONS.0).and_then(Value::as_object);
        let inner = options.into_iter().flatten().filter(|(name, _)| is(name, OPTIONS.1));
        let inner = inner.map(|(_, value)| (OPTIONS.0, &self.option, value));
        let mut changed: Option<String> = None;
        for (name, at, value) in top.chain(inner) {
            let is_over = match value {
                Value::Null => false,
                // A number below zero has no end for Ollama.
                Value::Number(number) => number.as_f64().is_none_or(|number| number < 0.0 || number > f64::from(most)),
                _ => return Err(unread(&format!("`{name}` is no number"))),
            };
            if !is_over {
                continue;
            }
            if self.written.on_max_tokens == OnMaxTokens::Refuse {
                return Err(over(name, &format!("{value} tokens of an answer"), &format!("at most {most}")));
            }
            let set = json_edit::set(changed.as_deref().unwrap_or(text), at, &most.to_string());
            changed = Some(set.map_err(|error| unread(&error.to_string()))?);
        }
        Ok(changed.map(Bytes::from))
    }
}

impl Filter for Limits {
    fn needs_body(&self) -> bool {
        true
    }

    fn on_request(&self, x: &mut RequestView<'_>) -> Flow {
        let (Some(body), Some(place)) = (x.body.filter(|body| !body.is_empty()), x.system) else {
            return Flow::Continue;
        };
        let judged = std::str::from_utf8(body).map_err(|_| unread("it is not UTF-8"));
        match judged.and_then(|text| self.judged(text, x, place)) {
            Ok(None) => Flow::Continue,
            Ok(body) => Flow::Rewrite(Box::new(Rewrite { body, ..Rewrite::default() })),
            Err(refusal) => Flow::Refuse(refusal),
        }
    }
}

#[cfg(test)]
mod tests {
    use SystemPlace::{Instructions, Messages, Prompt, System, SystemOrPrompt};
    use serde_json::json;
    use spillway_filter::testing::{FilterBuilder, TestRequest};

    use super::*;

    /// Result for a body: nothing, another one, or the message of its refusal.
    fn judged(config: &Value, place: SystemPlace, body: &Value) -> Result<Option<Value>, String> {
        let filter = FilterBuilder::new().build(&*factory(), config);
        let request = TestRequest::post("/v1/x", body.to_string()).system(place).prompt_tokens(1_000);
        match request.decide(&*filter) {
            Flow::Continue => Ok(None),
            Flow::Rewrite(rewrite) => Ok(Some(serde_json::from_slice(&rewrite.body.unwrap()).unwrap())),
            Flow::Refuse(refusal) => {
                assert_eq!(refusal.status, 400);
                Err(format!("{} {}", refusal.code, refusal.message))
            }
            _ => panic!("{body}"),
        }
    }

    #[test]
    fn each_bound_counts_in_every_api() {
        let user = |text: &str| json!({"role": "user", "content": text});
        let blocks =
            json!({"role": "user", "content": [{"type": "text", "text": "abcd"}, {"type": "text", "text": "ef"}]});
        let image =
            json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,xxxxxxxxxx"}}]});
        let source =
            json!({"role": "user", "content": [{"type": "image", "source": {"type": "base64", "data": "xxxxxxxxxx"}}]});
        let document =
            json!({"role": "user", "content": [{"type": "document", "source": {"type": "text", "data": "abcdef"}}]});
        for (config, place, body, found) in [
            (json!({"messages": 2}), Messages, json!({"messages": [user("a"), user("b")]}), None),
            (
                json!({"messages": 1}),
                Messages,
                json!({"messages": [user("a"), user("b")]}),
                Some("2 messages in `messages`; allowed at most 1"),
            ),
            (
                json!({"messages": 1}),
                System,
                json!({"messages": [user("a"), user("b")]}),
                Some("2 messages in `messages`"),
            ),
            (
                json!({"messages": 1}),
                Instructions,
                json!({"input": [user("a"), user("b")]}),
                Some("2 messages in `input`"),
            ),
            (json!({"messages": 1}), Instructions, json!({"input": "a"}), None),
            (json!({"messages": 1}), Prompt, json!({"prompt": ["a", "b"]}), Some("2 messages in `prompt`")),
            (json!({"messages": 1}), Prompt, json!({"prompt": [1, 2]}), None),
            (json!({"messages": 1}), Prompt, json!({"prompt": [[1], [2]]}), Some("2 messages in `prompt`")),
            (json!({"messageBytes": "5B"}), Messages, json!({"messages": [user("abcde")]}), None),
            (
                json!({"messageBytes": "5B"}),
                Messages,
                json!({"messages": [user("abcdef")]}),
                Some("a message of 6 bytes in `messages`; allowed at most 5"),
            ),
            (json!({"messageBytes": "5B"}), Messages, json!({"messages": [blocks]}), Some("a message of 6 bytes")),
            (json!({"messageBytes": "5B"}), Messages, json!({"messages": [image]}), None),
            (json!({"messageBytes": "5B"}), System, json!({"messages": [source]}), None),
            (json!({"messageBytes": "5B"}), System, json!({"messages": [document]}), Some("a message of 6 bytes")),
            (json!({"messageBytes": "5B"}), System, json!({"messages": [], "system": "abcdef"}), Some("in `system`")),
            (
                json!({"messageBytes": "5B"}),
                Instructions,
                json!({"input": "a", "instructions": "abcdef"}),
                Some("in `instructions`"),
            ),
            (
                json!({"messageBytes": "5B"}),
                Prompt,
                json!({"prompt": [1, 2]}),
                Some("a message of 8 bytes in `prompt`"),
            ),
            (
                json!({"messageBytes": "5B"}),
                SystemOrPrompt,
                json!({"prompt": "abcdef"}),
                Some("a message of 6 bytes in `prompt`"),
            ),
            (json!({"promptTokens": 1000}), Messages, json!({"messages": []}), None),
            (
                json!({"promptTokens": 999}),
                Messages,
                json!({"messages": []}),
                Some("about 1000 tokens in `messages`; allowed at most 999"),
            ),
            (json!({"tools": 1}), Messages, json!({"messages": [], "tools": [{}]}), None),
            (
                json!({"tools": 0}),
                Messages,
                json!({"messages": [], "tools": [{}]}),
                Some("1 tools in `tools`; allowed at most 0"),
            ),
            (json!({"tools": 0}), Messages, json!({"messages": [], "functions": [{}]}), Some("1 tools in `functions`")),
            (json!({"images": false}), Messages, json!({"messages": [user("a")]}), None),
            (
                json!({"images": false}),
                Messages,
                json!({"messages": [image]}),
                Some("an image in `messages`; allowed none"),
            ),
            (json!({"images": false}), System, json!({"messages": [source]}), Some("an image")),
            (json!({"images": false}), System, json!({"messages": [document]}), None),
            (
                json!({"images": false}),
                Instructions,
                json!({"input": [{"content": [{"type": "input_image", "file_id": "f"}]}]}),
                Some("an image in `input`"),
            ),
            (
                json!({"images": false}),
                Messages,
                json!({"messages": [{"role": "user", "content": "a", "Images": ["x"]}]}),
                Some("an image"),
            ),
            (
                json!({"images": false}),
                Messages,
                json!({"messages": [{"role": "user", "content": "a", "images": []}]}),
                None,
            ),
            (
                json!({"images": false}),
                SystemOrPrompt,
                json!({"prompt": "a", "images": ["x"]}),
                Some("an image in `prompt`"),
            ),
        ] {
            match (judged(&config, place, &body), found) {
                (Ok(None), None) => {}
                (Err(message), Some(found)) => {
                    assert!(message.starts_with("prompt_over_limit ") && message.contains(found), "{message}");
                }
                (other, _) => panic!("{config} {body}: {other:?}"),
            }
        }
    }

    #[test]
    fn too_long_an_answer_is_refused_or_shortened() {
        let (refuse, clamp) = (json!({"maxTokens": 100}), json!({"maxTokens": 100, "onMaxTokens": "clamp"}));
        for (body, changed) in [
            (json!({"max_tokens": 100}), None),
            (json!({"max_tokens": null}), None),
            (json!({}), None),
            (json!({"max_tokens": 101, "seed": 1}), Some(json!({"max_tokens": 100, "seed": 1}))),
            (
                json!({"max_tokens": 1e9, "max_completion_tokens": 200}),
                Some(json!({"max_tokens": 100, "max_completion_tokens": 100})),
            ),
            (json!({"max_output_tokens": 200}), Some(json!({"max_output_tokens": 100}))),
            (
                json!({"options": {"num_predict": -1, "seed": 2}}),
                Some(json!({"options": {"num_predict": 100, "seed": 2}})),
            ),
            (json!({"options": {"num_predict": 7}}), None),
        ] {
            assert_eq!(judged(&clamp, Messages, &body), Ok(changed.clone()), "{body}");
            assert_eq!(judged(&refuse, Messages, &body).is_err(), changed.is_some(), "{body}");
        }
        let message = judged(&refuse, Messages, &json!({"max_tokens": 101})).unwrap_err();
        assert!(message.ends_with("found 101 tokens of an answer in `max_tokens`; allowed at most 100"), "{message}");
        for body in [json!({"max_tokens": "101"}), json!({"options": {"NUM_predict": 101}}), json!([])] {
            assert!(judged(&clamp, Messages, &body).unwrap_err().starts_with("unsupported_body"), "{body}");
        }
    }

    #[test]
    fn other_requests_pass_as_they_are() {
        let filter = FilterBuilder::new().build(&*factory(), &json!({"messages": 1, "images": false}));
        for request in [TestRequest::get("/v1/models"), TestRequest::post("/v1/embeddings", r#"{"input":["a","b"]}"#)] {
            assert!(matches!(request.decide(&*filter), Flow::Continue), "{request:?}");
        }
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (json, path) in [
            (json!({}), vec![]),
            (json!({"images": true}), vec![]),
            (json!({"messages": 0}), vec!["messages"]),
            (json!({"messageBytes": "0B"}), vec!["messageBytes"]),
            (json!({"promptTokens": 0}), vec!["promptTokens"]),
            (json!({"maxTokens": 0}), vec!["maxTokens"]),
            (json!({"messages": 1, "onMaxTokens": "clamp"}), vec!["onMaxTokens"]),
        ] {
            let errors = factory().check(&json);
            assert_eq!(errors.len(), 1, "{json}: {errors:?}");
            assert_eq!(errors[0].path, path, "{json}");
        }
        assert!(factory().check(&json!({"tools": 0})).is_empty());
    }
}
