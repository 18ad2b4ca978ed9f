//! Filter `promptLimits`: calls over a bound reach no server, and are told in the API of the caller.

use serde_json::{Value, json};
use spillway_tests::{Gateway, Upstream};

const JSON: (&str, &str) = ("content-type", "application/json");
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

async fn start(protocol: &str, url: &str, limits: &Value) -> Gateway {
    Gateway::start(&format!(
        "backends: [{{name: b, protocol: {protocol}, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{name: r, filters: [{{promptLimits: {limits}}}], backendRefs: [{{name: b}}]}}]
"
    ))
    .await
}

#[tokio::test]
async fn a_call_over_a_bound_is_told_in_its_api() {
    let upstream = Upstream::fixed(200, "{}").await;
    let user = |text: &str| json!({"role": "user", "content": text});
    let long = "x".repeat(100);
    for (protocol, path, good, bad) in [
        ("openai", "/v1/chat/completions", json!({"messages": [user("a")]}), json!({"messages": [user(&long)]})),
        ("openai", "/v1/completions", json!({"prompt": "a"}), json!({"prompt": long})),
        ("openai", "/v1/responses", json!({"input": "a"}), json!({"input": [user(&long)]})),
        (
            "anthropic",
            "/v1/messages",
            json!({"messages": [user("a")], "max_tokens": 5}),
            json!({"messages": [user("a")], "system": long, "max_tokens": 5}),
        ),
        ("ollama", "/api/chat", json!({"messages": [user("a")]}), json!({"messages": [user(&long)]})),
        ("ollama", "/api/generate", json!({"prompt": "a"}), json!({"prompt": long})),
    ] {
        // The bytes of the message, and the estimate of the gateway, which counts the same text.
        for limits in [json!({"messageBytes": "99B"}), json!({"promptTokens": 24})] {
            let gateway = start(protocol, &upstream.url(), &limits).await;
            let ask = async |body: &Value| {
                let mut body = body.clone();
                body["model"] = json!("m");
                gateway.client().post(path, &[JSON, VERSION], body.to_string()).await
            };
            assert_eq!(ask(&good).await.status, 200, "{path} {limits}");
            let count = upstream.count();
            let refused = ask(&bad).await;
            let text = refused.text();
            assert_eq!(refused.status, 400, "{path} {limits}: {text}");
            assert!(text.contains("this route takes smaller requests: found "), "{path}: {text}");
            let error = &refused.json()["error"];
            match protocol {
                "openai" => assert_eq!(error["code"], "prompt_over_limit"),
                "anthropic" => assert_eq!(error["type"], "invalid_request_error"),
                _ => assert!(error.is_string(), "{text}"),
            }
            assert_eq!(upstream.count(), count);
        }
    }
}

#[tokio::test]
async fn a_server_is_asked_for_no_longer_answer() {
    let upstream = Upstream::fixed(200, "{}").await;
    let limits = json!({"maxTokens": 100, "onMaxTokens": "clamp"});
    for (protocol, path, asked, expected) in [
        (
            "openai",
            "/v1/chat/completions",
            json!({"max_completion_tokens": 200}),
            json!({"max_completion_tokens": 100}),
        ),
        ("openai", "/v1/chat/completions", json!({"max_tokens": 50}), json!({"max_tokens": 50})),
        ("anthropic", "/v1/messages", json!({"max_tokens": 200}), json!({"max_tokens": 100})),
        ("ollama", "/api/chat", json!({"options": {"num_predict": -1}}), json!({"options": {"num_predict": 100}})),
    ] {
        let gateway = start(protocol, &upstream.url(), &limits).await;
        let with = |more: &Value| {
            let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "a"}]});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            body
        };
        assert_eq!(gateway.client().post(path, &[JSON, VERSION], with(&asked).to_string()).await.status, 200);
        let seen: Value = serde_json::from_slice(&upstream.last().body).unwrap();
        assert_eq!(seen, with(&expected), "{path}");
    }
}
