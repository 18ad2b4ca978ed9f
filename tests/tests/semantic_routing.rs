//! Routes by the meaning of a prompt: examples that a real built-in model for embeddings compares, and what happens while it is late, is
//! loaded, or is edited.

use serde_json::{Value, json};
use spillway_tests::{Client, Collector, Gateway, Upstream, eventually, minilm, reply, span_attribute};

const JSON: (&str, &str) = ("content-type", "application/json");
const CHAT: &str = "/v1/chat/completions";
const COOKING: [&str; 3] =
    ["How long do I boil an egg?", "Give me a recipe for tomato soup", "What can I cook with chicken and rice?"];
const CODE: [&str; 3] = [
    "Write a function in Python that sorts a list",
    "Why does my Rust program not compile?",
    "Fix the bug in this SQL query",
];

async fn hello() -> Upstream {
    Upstream::start(async |_| {
        let choice = json!({"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"});
        let answer = json!({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]});
        Some(reply(200, &[JSON], answer.to_string()))
    })
    .await
}

/// Configuration with these signals and conditions of routes, and further text. `model` is what is written of the model beside its
/// name and source.
fn yaml(url: &str, model: &str, signals: &Value, routes: &[(&str, &str)], further: &str) -> String {
    let route = |name: &str, matches: Value| {
        let filters = json!([{"responseHeaders": {"set": {"x-route": name}}}]);
        json!({"name": name, "matches": matches, "filters": filters, "backendRefs": [{"name": "b"}]})
    };
    let mut all: Vec<Value> = routes.iter().map(|(name, when)| route(name, json!([{"when": when}]))).collect();
    all.push(route("rest", json!([])));
    let backend = json!({"name": "b", "protocol": "openai", "endpoints": [{"url": url}]});
    format!(
        "models: [{{name: minilm, source: \"{}\", device: cpu{model}}}]
backends: [{backend}]
signals: {signals}
routes: {}
{further}",
        minilm().display(),
        Value::Array(all)
    )
}

/// Signal with these examples.
fn examples(texts: impl Into<Value>) -> Value {
    json!({"examples": texts.into(), "model": "minilm", "timeout": "30s"})
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn chat(messages: &[Value]) -> String {
    json!({"model": "m", "messages": messages}).to_string()
}

async fn route(client: &Client, messages: &[Value]) -> String {
    let answer = client.post(CHAT, &[JSON], chat(messages)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.header("x-route").to_owned()
}

async fn vectors(gateway: &Gateway, signal: &str) -> f64 {
    gateway.metric(&format!("spillway_signal_example_vectors_total{{signal=\"{signal}\"}}")).await
}

#[tokio::test]
async fn examples_choose_the_route_and_a_tool_loop_stays() {
    let (upstream, collector) = (hello().await, Collector::start().await);
    let signals = json!({
        "topic": examples(json!({"cooking": COOKING, "code": CODE})),
        "code": examples(json!(CODE)),
    });
    let routes = [
        ("cooking", "signals.topic.cooking >= 0.45 && signals.topic.cooking > signals.topic.code"),
        ("code", "signals.code >= 0.45 && signals.code == signals.topic"),
    ];
    let tracing = format!("telemetry: {{tracing: {{otlp: {{endpoint: \"{}\"}}, sampleRatio: 1.0}}}}", collector.url());
    let gateway = Gateway::start(&yaml(&upstream.url(), "", &signals, &routes, &tracing)).await;
    let client = gateway.client();
    let question = user("How should I cook rice with vegetables?");
    assert_eq!(route(&client, std::slice::from_ref(&question)).await, "cooking");
    assert_eq!(route(&client, &[user("My Python function does not sort the list")]).await, "code");
    assert_eq!(route(&client, &[user("Who was the first emperor of Rome?")]).await, "rest");
    // A text in windows: the one about code counts.
    let (sky, grass) = ("The sky is blue. ".repeat(150), "Grass is green. ".repeat(150));
    let code = "My Rust program does not compile, and my Python function does not sort the list. ".repeat(40);
    assert_eq!(route(&client, &[user(&format!("{sky}{code}{grass}"))]).await, "code");
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let result = "def sort(values): return sorted(values)  # Python function that sorts a list";
    let in_loop = [
        question,
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "1", "content": result}),
    ];
    assert_eq!(route(&client, &in_loop).await, "cooking");
    // Both signals share the vectors of the texts; those of the code are made once.
    assert_eq!(vectors(&gateway, "topic").await + vectors(&gateway, "code").await, 6.0);
    for signal in ["topic", "code"] {
        let series = format!("spillway_signal_results_total{{signal=\"{signal}\",outcome=\"computed\"}}");
        gateway.metric_becomes(&series, 5.0).await;
    }
    let span = eventually("the span of a request", || async {
        collector.spans().into_iter().find(|span| span_attribute(span, "spillway.signal.topic.label") == "cooking")
    })
    .await;
    let similarity = span_attribute(&span, "spillway.signal.topic").as_f64().unwrap();
    assert!((0.45..=1.0).contains(&similarity), "{similarity}");
    assert!(span_attribute(&span, "spillway.signal.code").as_f64().unwrap() < similarity);
    let sent = String::from_utf8_lossy(&collector.bytes()).into_owned();
    assert!(!sent.contains("vegetables") && !gateway.log().contains("vegetables"));
}

#[tokio::test]
async fn a_late_model_leaves_the_signal_absent() {
    let upstream = hello().await;
    let mut signal = examples(json!(COOKING));
    signal["timeout"] = json!("1ms");
    let signals = json!({"cooking": signal});
    let routes = [("cooking", "signals.cooking > 0.0"), ("absent", "!has(signals.cooking)")];
    let gateway = Gateway::start(&yaml(&upstream.url(), ", keepWarm: false", &signals, &routes, "")).await;
    let client = gateway.client();
    // Half a page takes longer than a millisecond, loaded or not.
    let long = user(&"How should I cook rice with vegetables? ".repeat(60));
    assert_eq!(route(&client, &[long]).await, "absent");
    gateway.metric_becomes("spillway_signal_results_total{signal=\"cooking\",outcome=\"late\"}", 1.0).await;
    assert_eq!(gateway.metric("spillway_signal_duration_seconds_count{signal=\"cooking\"}").await, 1.0);
    // Without a text nothing waits for the model.
    assert_eq!(route(&client, &[json!({"role": "assistant", "content": "hi"})]).await, "absent");
    gateway.metric_becomes("spillway_signal_results_total{signal=\"cooking\",outcome=\"no_text\"}", 1.0).await;
}

#[tokio::test]
async fn vectors_of_examples_are_kept_over_reloads() {
    let upstream = hello().await;
    let routes = [("cooking", "signals.cooking >= 0.45")];
    let text = |texts: &[&str], further: &str| {
        let signals = json!({"cooking": examples(json!(texts))});
        yaml(&upstream.url(), "", &signals, &routes, further)
    };
    let gateway = Gateway::start(&text(&COOKING, "")).await;
    let client = gateway.client();
    let asked = [user("How should I cook rice with vegetables?")];
    assert_eq!(route(&client, &asked).await, "cooking");
    assert_eq!(vectors(&gateway, "cooking").await, 3.0);
    let edit = async |yaml: String| {
        let edits = gateway.edits();
        std::fs::write(
            gateway.config(),
            format!("listeners: [{{address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\n{yaml}"),
        )
        .unwrap();
        let event = gateway.reloads(edits).await;
        assert_eq!(event["event"], "config_reloaded", "{event}");
    };
    edit(text(&COOKING, "limits: {bufferedBodies: 64MiB}\n")).await;
    assert_eq!(route(&client, &asked).await, "cooking");
    assert_eq!(vectors(&gateway, "cooking").await, 3.0, "an edit of something else");
    edit(text(&[COOKING[1], "How do I bake bread?", COOKING[0]], "")).await;
    let other = [user("How should I bake a loaf of bread?")];
    assert_eq!(route(&client, &other).await, "cooking");
    assert_eq!(vectors(&gateway, "cooking").await, 4.0, "only the new text");
}
