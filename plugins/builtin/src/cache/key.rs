//! Key of an answer that is kept: all that the answer may depend on, as one digest. Two requests with the same key get the same
//! answer, so what is left out here must not matter.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::header::{self, HeaderName};
use serde_json::Value;
use sha2::{Digest, Sha256};
use spillway_filter::{RequestView, SystemPlace};

use super::Scope;
use crate::strict_json;

/// Key.
pub(super) type Key = [u8; 32];

/// Members that name the caller's own user or help a server's cache, and change no answer.
const WITHOUT_EFFECT: [&str; 3] = ["user", "safety_identifier", "prompt_cache_key"];

/// Headers by which callers choose the form of the answer.
static HEADERS: [HeaderName; 3] = [
    HeaderName::from_static("anthropic-version"),
    HeaderName::from_static("anthropic-beta"),
    HeaderName::from_static("openai-beta"),
];

/// Headers by which servers know callers that the gateway does not know: what one account may read is not given to others
/// (RFC 9111, 3.5).
static CREDENTIALS: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("api-key"),
    HeaderName::from_static("x-goog-api-key"),
];

/// Members that refer to what a server keeps, or ask it to keep something.
const OF_STATE: [&str; 4] = ["previous_response_id", "conversation", "background", "store"];

/// Longest text that is compared by its meaning, in bytes: encoders read some hundred tokens.
const MAX_TEXT: usize = 8 << 10;

/// Request as a cache compares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Key of its answer.
    pub(super) key: Key,
    /// Last text of its user, where that is compared by its meaning.
    pub(super) last: Option<LastText>,
}

/// Last text of a user in a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LastText {
    /// Fingerprint of all the rest of the request, and of the place of the text.
    pub(super) group: Key,
    /// The text.
    pub(super) text: String,
}

/// Conversation in the body of a call that asks a model for text. Calls that count tokens alone have none.
fn conversation(x: &RequestView<'_>) -> Option<&'static str> {
    match x.system? {
        SystemPlace::Messages => Some("messages"),
        SystemPlace::System if x.path.ends_with("/messages") => Some("messages"),
        SystemPlace::Instructions if x.path.ends_with("/responses") => Some("input"),
        _ => None,
    }
}

/// Last text of the user in a conversation, with its place. `None` where that is not one text.
fn last_text(conversation: &mut Value) -> Option<(&mut Value, String)> {
    if conversation.is_string() {
        return Some((conversation, "text".to_owned()));
    }
    let messages = conversation.as_array_mut()?;
    let at = messages.iter().rposition(|message| message.get("role").is_some_and(|role| role == "user"))?;
    let content = messages.get_mut(at)?.get_mut("content")?;
    if content.is_string() {
        return Some((content, format!("message {at}")));
    }
    let is_text = |part: &Value| part.get("text").is_some();
    let parts = content.as_array_mut()?;
    let part = parts.iter().position(is_text)?;
    if parts.iter().filter(|part| is_text(part)).count() > 1 {
        return None;
    }
    let text = parts.get_mut(part)?.get_mut("text")?;
    text.is_string().then_some((text, format!("message {at} part {part}")))
}

/// Request as a cache compares it, with its last text if `by_meaning`. `None` where the answer depends on more than the request,
/// or changes something. `further` is an expression of the file and its value.
pub(super) fn of(x: &RequestView<'_>, scope: Scope, by_meaning: bool, further: Option<(&str, &str)>) -> Option<Asked> {
    if !x.is_repeatable {
        return None;
    }
    // A server may take either of two members with one name: no answer to such a request is one to another.
    let Ok(Value::Object(body)) = strict_json::read(x.body?) else { return None };
    let mut body: BTreeMap<String, Value> = body.into_iter().collect();
    if OF_STATE
        .iter()
        .any(|name| body.get(*name).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false))))
    {
        return None;
    }
    let mut digest = Sha256::new();
    let mut part = |part: &[u8]| add(&mut digest, part);
    for text in [x.route, x.path, x.query, x.model.unwrap_or_default()] {
        part(text.as_bytes());
    }
    match (scope, &x.caller) {
        (Scope::Route, _) => part(b"route"),
        (Scope::Tenant, Some(caller)) => [&b"tenant"[..], caller.tenant.as_bytes()].into_iter().for_each(&mut part),
        (Scope::Consumer, Some(caller)) => {
            [&b"consumer"[..], caller.tenant.as_bytes(), caller.consumer.as_bytes()].into_iter().for_each(&mut part);
        }
        // Nobody knows whether two of them are one.
        (_, None) => [&b"address"[..], x.client.to_string().as_bytes()].into_iter().for_each(&mut part),
    }
    if x.caller.is_none() {
        for name in &CREDENTIALS {
            x.headers.get_all(name).iter().for_each(|value| part(value.as_bytes()));
            part(b"");
        }
    }
    for name in &HEADERS {
        x.headers.get_all(name).iter().for_each(|value| part(value.as_bytes()));
        part(b"");
    }
    if let Some((expression, value)) = further {
        // Three parts more than a key without one has, and one more than a group: no two of them are written alike.
        [&b"further"[..], expression.as_bytes(), value.as_bytes()].into_iter().for_each(|part| add(&mut digest, part));
    }
    let exact = digest.clone();
    let key = finished(exact, &body);
    let last = by_meaning.then(|| conversation(x)).flatten().and_then(|name| {
        let (text, place) = last_text(body.get_mut(name)?)?;
        if !(1..=MAX_TEXT).contains(&text.as_str()?.len()) {
            return None;
        }
        let Value::String(text) = text.take() else { return None };
        // Two parts more than a key has: no group is a key.
        add(&mut digest, b"all but");
        add(&mut digest, place.as_bytes());
        Some(LastText { group: finished(digest, &body), text })
    });
    Some(Asked { key, last })
}

/// Adds a part with its length, so that no two lists of parts are written alike.
fn add(digest: &mut Sha256, part: &[u8]) {
    digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
    digest.update(part);
}

fn finished(mut digest: Sha256, body: &BTreeMap<String, Value>) -> Key {
    let mut text = String::new();
    write_members(body.iter().filter(|(name, _)| !WITHOUT_EFFECT.contains(&name.as_str())), &mut text);
    add(&mut digest, text.as_bytes());
    digest.finalize().into()
}

/// Writes a value with its members in the order of their names.
fn write_value(value: &Value, out: &mut String) {
    match value {
        Value::Object(members) => {
            let sorted: BTreeMap<&String, &Value> = members.iter().collect();
            write_members(sorted, out);
        }
        Value::Array(list) => {
            out.push('[');
            for (n, value) in list.iter().enumerate() {
                if n > 0 {
                    out.push(',');
                }
                write_value(value, out);
            }
            out.push(']');
        }
        // Writing to a string does not fail.
        other => drop(write!(out, "{other}")),
    }
}

fn write_members<'v>(members: impl IntoIterator<Item = (&'v String, &'v Value)>, out: &mut String) {
    out.push('{');
    for (n, (name, value)) in members.into_iter().enumerate() {
        if n > 0 {
            out.push(',');
        }
        let _ = write!(out, "{}:", Value::from(name.as_str()));
        write_value(value, out);
    }
    out.push('}');
}

#[cfg(test)]
mod tests {
    use spillway_filter::testing::TestRequest;

    use super::*;

    fn key(request: &TestRequest, scope: Scope) -> Key {
        of(&request.view(), scope, false, None).unwrap().key
    }

    fn post(body: &'static str) -> TestRequest {
        TestRequest::post("/v1/chat/completions", body).repeatable().caller("a", "t").model("m")
    }

    #[test]
    fn the_order_of_members_and_what_has_no_effect_do_not_matter() {
        let first = post(r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"temperature":0.5}"#);
        for same in [
            r#"{"temperature":0.5,"messages":[{"content":"hi","role":"user"}],"model":"m"}"#,
            r#"{"model":"m","messages":[{"role":"user","content":"\u0068i"}],"temperature":0.5,"user":"u-1"}"#,
            r#"{ "model":"m", "messages":[ {"role":"user","content":"hi"} ], "temperature":0.5, "store":false }"#,
        ] {
            let is_same = key(&first, Scope::Consumer) == key(&post(same), Scope::Consumer);
            assert!(is_same || same.contains("store"), "{same}");
        }
    }

    #[test]
    fn whatever_an_answer_may_depend_on_makes_another_key() {
        let body = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
        let first = key(&post(body), Scope::Consumer);
        let mut keys = std::collections::BTreeSet::from([first]);
        for other in [
            post(r#"{"model":"m","messages":[{"role":"user","content":"hi "}]}"#),
            post(r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#),
            post(r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"seed":1}"#),
            post(r#"{"model":"m","messages":[{"role":"user","content":["hi"]}]}"#),
            post(body).model("n"),
            post(body).caller("b", "t"),
            post(body).caller("a", "u"),
            post(body).route("other"),
            post(body).header("anthropic-beta", "x"),
            post(body).header("openai-beta", "x"),
            TestRequest::post("/v1/responses", body).repeatable().caller("a", "t").model("m"),
            TestRequest::post("/v1/chat/completions", body).repeatable().model("m"),
            TestRequest::post("/v1/chat/completions", body).repeatable().model("m").client([10, 0, 0, 9]),
        ] {
            assert!(keys.insert(key(&other, Scope::Consumer)), "{other:?}");
        }
        assert_eq!(key(&post(body), Scope::Tenant), key(&post(body).caller("b", "t"), Scope::Tenant));
        assert_ne!(key(&post(body), Scope::Tenant), key(&post(body).caller("a", "u"), Scope::Tenant));
        assert_eq!(key(&post(body), Scope::Route), key(&post(body).caller("z", "u"), Scope::Route));
    }

    #[test]
    fn what_servers_know_a_caller_by_is_part_of_the_key_where_the_gateway_knows_none() {
        let anonymous = || TestRequest::post("/v1/chat/completions", r#"{"input":"x"}"#).repeatable().model("m");
        let mut keys = std::collections::BTreeSet::new();
        for (name, value) in [
            ("authorization", "Bearer a"),
            ("authorization", "Bearer b"),
            ("x-api-key", "a"),
            ("cookie", "a"),
            ("x-more", "a"),
        ] {
            assert!(keys.insert(key(&anonymous().header(name, value), Scope::Route)), "{name}");
        }
        assert!(!keys.insert(key(&anonymous(), Scope::Route)));
    }

    #[test]
    fn all_but_the_last_text_of_the_user_makes_another_group() {
        let last = |request: &TestRequest| of(&request.view(), Scope::Consumer, true, None).unwrap().last;
        let chat = |body: &'static str| post(body).system(SystemPlace::Messages);
        let hi =
            last(&chat(r#"{"messages":[{"role":"system","content":"s"},{"role":"user","content":"hi"}]}"#)).unwrap();
        let hey = chat(r#"{"user":"u","messages":[{"content":"s","role":"system"},{"role":"user","content":"hey"}]}"#);
        assert_eq!(last(&hey), Some(LastText { group: hi.group, text: "hey".to_owned() }));
        let mut groups = std::collections::BTreeSet::from([hi.group]);
        for other in [
            chat(r#"{"messages":[{"role":"system","content":"t"},{"role":"user","content":"hi"}]}"#),
            chat(r#"{"messages":[{"role":"user","content":"hi"}]}"#),
            chat(r#"{"messages":[{"role":"user","content":"a"},{"role":"user","content":"hi"}]}"#),
            chat(r#"{"messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"a"}]}"#),
            chat(r#"{"messages":[{"role":"user","content":"hi"}],"tools":[]}"#),
            chat(r#"{"messages":[{"role":"user","content":"hi"}],"temperature":0}"#),
            chat(r#"{"messages":[{"role":"user","content":"hi"}],"stream":true}"#),
            chat(r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi"}]}]}"#),
            chat(r#"{"messages":[{"role":"user","content":[{"type":"text","text":"hi"},{"type":"image_url"}]}]}"#),
            chat(r#"{"messages":[{"role":"user","content":[{"type":"image_url"},{"type":"text","text":"hi"}]}]}"#),
            chat(r#"{"messages":[{"role":"user","content":"hi"}]}"#).model("n"),
            chat(r#"{"messages":[{"role":"user","content":"hi"}]}"#).caller("b", "t"),
            TestRequest::post("/v1/messages", r#"{"messages":[{"role":"user","content":"hi"}]}"#)
                .repeatable()
                .system(SystemPlace::System),
            TestRequest::post("/v1/responses", r#"{"input":"hi"}"#).repeatable().system(SystemPlace::Instructions),
            TestRequest::post(
                "/v1/responses",
                r#"{"input":[{"role":"user","content":[{"type":"input_text","text":"hi"}]}]}"#,
            )
            .repeatable()
            .system(SystemPlace::Instructions),
        ] {
            let asked = of(&other.view(), Scope::Consumer, true, None).unwrap();
            let last = asked.last.unwrap();
            assert_eq!(last.text, "hi");
            assert!(groups.insert(last.group) && groups.insert(asked.key), "{other:?}");
        }
    }

    #[test]
    fn what_is_not_one_text_of_a_conversation_is_compared_exactly_alone() {
        let last = |request: TestRequest| of(&request.view(), Scope::Route, true, None).unwrap().last;
        let chat =
            |body: String| TestRequest::post("/v1/chat/completions", body).repeatable().system(SystemPlace::Messages);
        let said = |content: &str| chat(format!(r#"{{"messages":[{{"role":"user","content":{content}}}]}}"#));
        for request in [
            said(r#"[{"type":"text","text":"a"},{"type":"text","text":"b"}]"#),
            said(r#"[{"type":"text","text":"a"},{"type":"text","text":null}]"#),
            said(r#"[{"type":"image_url"}]"#),
            said("null"),
            said("\"\""),
            said(&format!("\"{}\"", "x".repeat(MAX_TEXT + 1))),
            chat(r#"{"messages":[{"role":"assistant","content":"hi"}]}"#.to_owned()),
            chat(r#"{"messages":"hi"}"#.replace("messages", "prompt")),
            TestRequest::post("/v1/embeddings", r#"{"input":"hi"}"#).repeatable(),
            TestRequest::post("/v1/completions", r#"{"prompt":"hi"}"#).repeatable().system(SystemPlace::Prompt),
            TestRequest::post("/v1/messages/count_tokens", r#"{"messages":[{"role":"user","content":"hi"}]}"#)
                .repeatable()
                .system(SystemPlace::System),
            TestRequest::post("/v1/responses/input_tokens", r#"{"input":"hi"}"#)
                .repeatable()
                .system(SystemPlace::Instructions),
        ] {
            let what = format!("{request:?}");
            assert_eq!(last(request), None, "{what}");
        }
    }

    #[test]
    fn what_refers_to_a_server_or_changes_it_has_no_key() {
        for body in [
            r#"{"input":"x","previous_response_id":"r"}"#,
            r#"{"input":"x","background":true}"#,
            r#"{"input":"x","store":true}"#,
            "[1]",
            "no JSON",
            r#"{"messages":[{"role":"user","content":"a","content":"b"}]}"#,
        ] {
            assert!(of(&post(body).view(), Scope::Route, true, None).is_none(), "{body}");
        }
        assert!(of(&TestRequest::post("/v1/files", "{}").view(), Scope::Route, true, None).is_none());
        assert!(of(&TestRequest::get("/v1/models").repeatable().view(), Scope::Route, true, None).is_none());
    }
}
