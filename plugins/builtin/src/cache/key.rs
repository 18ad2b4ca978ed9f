//! Key of an answer that is kept: all that the answer may depend on, as one digest. Two requests with the same key get the same
//! answer, so what is left out here must not matter.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use http::HeaderName;
use serde_json::Value;
use sha2::{Digest, Sha256};
use spillway_filter::RequestView;

use super::Scope;

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

/// Members that refer to what a server keeps, or ask it to keep something.
const OF_STATE: [&str; 4] = ["previous_response_id", "conversation", "background", "store"];

/// Key of the answer to a request; `None` where the answer depends on more than the request, or changes something.
pub(super) fn of(x: &RequestView<'_>, scope: Scope) -> Option<Key> {
    if !x.is_repeatable {
        return None;
    }
    let body: BTreeMap<String, Value> = serde_json::from_slice(x.body?).ok()?;
    if OF_STATE
        .iter()
        .any(|name| body.get(*name).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false))))
    {
        return None;
    }
    let mut digest = Sha256::new();
    // Each part with its length, so that no two lists of parts are written alike.
    let mut part = |part: &[u8]| {
        digest.update(u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes());
        digest.update(part);
    };
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
    for name in &HEADERS {
        x.headers.get_all(name).iter().for_each(|value| part(value.as_bytes()));
        part(b"");
    }
    let mut text = String::new();
    let asked = body.iter().filter(|(name, _)| !WITHOUT_EFFECT.contains(&name.as_str()));
    write_members(asked, &mut text);
    part(text.as_bytes());
    Some(digest.finalize().into())
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
        of(&request.view(), scope).unwrap()
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
    fn what_refers_to_a_server_or_changes_it_has_no_key() {
        for body in [
            r#"{"input":"x","previous_response_id":"r"}"#,
            r#"{"input":"x","background":true}"#,
            r#"{"input":"x","store":true}"#,
            "[1]",
            "no JSON",
        ] {
            assert!(of(&post(body).view(), Scope::Route).is_none(), "{body}");
        }
        assert!(of(&TestRequest::post("/v1/files", "{}").view(), Scope::Route).is_none());
        assert!(of(&TestRequest::get("/v1/models").repeatable().view(), Scope::Route).is_none());
    }
}
