//! Conditions of matches on the conversation of a request: keywords, a classifier, and facts of the prompt choose its route, in every
//! API; what cannot be read whole is absent, and other requests are not touched.

use std::process::Command;

use serde_json::{Value, json};
use spillway_tests::{Client, Gateway, Upstream, binary, encoded, reply, word_classifier};

const JSON: (&str, &str) = ("content-type", "application/json");
const CHAT: &str = "/v1/chat/completions";

async fn hello() -> Upstream {
    Upstream::start(async |_| {
        let choice = json!({"index": 0, "message": {"role": "assistant", "content": "hello"}, "finish_reason": "stop"});
        let answer = json!({"id": "c", "object": "chat.completion", "model": "m", "choices": [choice]});
        Some(reply(200, &[JSON], answer.to_string()))
    })
    .await
}

/// Gateway with these signals and routes, given by their names and matches; each says its name in a header. A last route takes the
/// rest.
async fn gateway(url: &str, signals: &Value, routes: &[(&str, Value)]) -> Gateway {
    Gateway::start(&yaml(url, signals, routes)).await
}

fn yaml(url: &str, signals: &Value, routes: &[(&str, Value)]) -> String {
    let route = |name: &str, matches: Value| {
        let filters = json!([{"responseHeaders": {"set": {"x-route": name}}}]);
        json!({"name": name, "matches": matches, "filters": filters, "backendRefs": [{"name": "b"}]})
    };
    let mut all: Vec<Value> = routes.iter().map(|(name, one)| route(name, json!([one]))).collect();
    all.push(route("rest", json!([])));
    let backend = json!({"name": "b", "protocol": "openai", "endpoints": [{"url": url}]});
    format!("backends: [{backend}]\nsignals: {signals}\nroutes: {}\n", Value::Array(all))
}

fn when(condition: &str) -> Value {
    json!({"when": condition})
}

fn user(content: &str) -> Value {
    json!({"role": "user", "content": content})
}

fn assistant(content: &str) -> Value {
    json!({"role": "assistant", "content": content})
}

fn chat(messages: &[Value]) -> String {
    json!({"model": "m", "messages": messages}).to_string()
}

/// Route that took a request.
async fn route(client: &Client, path: &str, body: impl Into<bytes::Bytes>) -> String {
    let answer = client.post(path, &[JSON], body).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.header("x-route").to_owned()
}

#[tokio::test]
async fn keywords_choose_the_route_in_every_api() {
    let upstream = hello().await;
    let signals = json!({
        "secret": {"keywords": ["confidential", "internal only"]},
        "past": {"keywords": ["project falcon"], "reads": "user"},
        "anywhere": {"keywords": ["alpha", "beta", "gamma"], "atLeast": 2, "reads": "conversation"},
    });
    let routes = [
        ("secret", when("signals.secret")),
        ("past", when("request.path.startsWith('/v1/') && signals.past")),
        ("anywhere", when("signals.anywhere")),
    ];
    let gateway = gateway(&upstream.url(), &signals, &routes).await;
    let client = gateway.client();
    for (expected, text) in [
        ("secret", "This is CONFIDENTIAL."),
        ("secret", "for internal\nonly"),
        ("rest", "Confidentiality is good, internal and only so."),
        ("past", "What became of Project Falcon?"),
        ("anywhere", "beta before gamma"),
        ("rest", "beta before beta"),
    ] {
        let message = json!([user(text)]);
        for (path, body) in [
            (CHAT, json!({"model": "m", "messages": message})),
            ("/v1/messages", json!({"model": "m", "max_tokens": 9, "messages": message})),
            ("/v1/responses", json!({"model": "m", "input": text})),
            ("/v1/responses", json!({"model": "m", "input": message})),
        ] {
            assert_eq!(route(&client, path, body.to_string()).await, expected, "{text} at {path}");
        }
    }
    let later = [user("About project falcon"), assistant("Yes?"), user("Go on with alpha")];
    assert_eq!(route(&client, CHAT, chat(&later)).await, "past");
    let others = [json!({"role": "system", "content": "gamma"}), assistant("beta"), user("Hello")];
    assert_eq!(route(&client, CHAT, chat(&others)).await, "anywhere");
    let parts = json!([{"type": "text", "text": "confi"}, {"type": "text", "text": "dential"}]);
    assert_eq!(route(&client, CHAT, chat(&[json!({"role": "user", "content": parts})])).await, "secret");
    let computed = gateway.metric("spillway_signal_results_total{signal=\"secret\",outcome=\"computed\"}").await;
    assert!(computed >= 27.0, "{computed}");
}

#[tokio::test]
async fn facts_of_the_prompt_choose_the_route() {
    let upstream = hello().await;
    let routes = [
        ("loop", when("prompt.toolLoop")),
        ("again", when("prompt.reasked")),
        ("german", when("prompt.language == 'deu'")),
        ("long", when("prompt.tokens > 500")),
        ("many", when("prompt.turns > 3 && prompt.characters < 100")),
    ];
    let gateway = gateway(&upstream.url(), &json!({}), &routes).await;
    let client = gateway.client();
    let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let question = "How do I bake bread without yeast at home?";
    for (expected, messages) in [
        ("rest", vec![user(question)]),
        ("again", vec![user(question), assistant("With soda."), user("How can I bake bread without yeast at home?")]),
        ("rest", vec![user(question), user(question)]),
        ("german", vec![user("Wie backe ich zu Hause ein gutes Brot, wenn ich gar keine Hefe habe?")]),
        ("long", vec![user(&"bread and butter ".repeat(200))]),
        ("many", vec![user("a"), user("b"), user("c"), user("d")]),
        (
            "loop",
            vec![
                user(question),
                json!({"role": "assistant", "content": null, "tool_calls": [call]}),
                json!({"role": "tool", "tool_call_id": "1", "content": "flour"}),
            ],
        ),
    ] {
        assert_eq!(route(&client, CHAT, chat(&messages)).await, expected, "{messages:?}");
    }
}

#[tokio::test]
async fn a_tool_loop_stays_on_the_route_that_began_it() {
    let upstream = hello().await;
    let signals = json!({"weather": {"keywords": ["weather"]}});
    let gateway = gateway(&upstream.url(), &signals, &[("weather", when("signals.weather"))]).await;
    let client = gateway.client();
    let call =
        |n: usize| json!({"id": format!("{n}"), "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let mut messages = vec![user("Tell me the weather in Rome")];
    for n in 0..5 {
        assert_eq!(route(&client, CHAT, chat(&messages)).await, "weather", "after {n} calls");
        messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call(n)]}));
        messages.push(json!({"role": "tool", "tool_call_id": n.to_string(), "content": "no answer yet"}));
    }
    messages.extend([assistant("It rains."), user("Thank you")]);
    assert_eq!(route(&client, CHAT, chat(&messages)).await, "rest");
    // The text of a client beside a result is not the turn of its user.
    let result =
        json!([{"type": "tool_result", "tool_use_id": "1", "content": "rain"}, {"type": "text", "text": "A reminder"}]);
    let messages = json!([
        user("The weather?"),
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]},
        {"role": "user", "content": result},
    ]);
    let body = json!({"model": "m", "max_tokens": 9, "messages": messages}).to_string();
    assert_eq!(route(&client, "/v1/messages", body).await, "weather");
}

#[tokio::test]
async fn a_signal_without_a_whole_text_is_absent() {
    let upstream = hello().await;
    let signals = json!({"secret": {"keywords": ["secret"], "maxText": "1KiB"}});
    let routes = [("absent", when("!has(signals.secret)")), ("public", when("!signals.secret"))];
    let gateway = gateway(&upstream.url(), &signals, &routes).await;
    let client = gateway.client();
    assert_eq!(route(&client, CHAT, chat(&[user("hello")])).await, "public");
    assert_eq!(route(&client, CHAT, chat(&[user("a secret")])).await, "rest");
    let long = chat(&[user(&format!("{}secret", "word ".repeat(300)))]);
    assert_eq!(route(&client, CHAT, long).await, "absent");
    assert_eq!(route(&client, CHAT, chat(&[assistant("secret")])).await, "absent");
    let twice = r#"{"model":"m","messages":[{"role":"user","content":"hello","content":"secret"}]}"#;
    assert_eq!(route(&client, CHAT, twice).await, "absent");
    for (outcome, times) in [("computed", 2.0), ("too_long", 1.0), ("no_text", 2.0)] {
        let series = format!("spillway_signal_results_total{{signal=\"secret\",outcome=\"{outcome}\"}}");
        gateway.metric_becomes(&series, times).await;
    }
    // A compressed text is read; the server gets it plain.
    for (expected, text) in [("public", "hello"), ("rest", "a secret")] {
        let body = encoded("gzip", chat(&[user(text)]).as_bytes());
        let answer = client.post(CHAT, &[JSON, ("content-encoding", "gzip")], body).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-route")), (200, expected), "{}", answer.text());
        assert!(upstream.last().body.windows(text.len()).any(|part| part == text.as_bytes()));
    }
    let sent = upstream.count();
    let unknown = client.post(CHAT, &[JSON, ("content-encoding", "x-own")], chat(&[user("hello")])).await;
    let broken = client.post(CHAT, &[JSON], r#"{"model":"m","messages":[{"role":"user","content":"hel"#).await;
    assert!(unknown.status.is_client_error() && broken.status.is_client_error());
    assert_eq!(upstream.count(), sent);
}

#[tokio::test]
async fn a_classifier_chooses_the_route() {
    let upstream = hello().await;
    let signals = json!({
        "unsafe": {"classifier": {"model": "words", "labels": ["injection", "toxic"]}, "timeout": "30s"},
        "toxic": {"classifier": {"model": "words", "labels": ["toxic"]}, "timeout": "30s"},
        "early": {"classifier": {"model": "words", "labels": ["toxic"]}, "reads": "conversation", "timeout": "30s"},
    });
    let routes = [
        ("toxic", when("signals.toxic > 0.5")),
        ("unsafe", when("signals.unsafe > 0.5")),
        ("early", when("signals.early > 0.5")),
    ];
    let folder = tempfile::tempdir().unwrap();
    word_classifier(&folder.path().join("words"));
    let yaml = yaml(&upstream.url(), &signals, &routes);
    let yaml = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\nmodels: [{{name: words, source: words}}]\n{yaml}");
    let gateway = Gateway::start_in(folder, &yaml).await;
    let client = gateway.client();
    let padding = "word ".repeat(300);
    for (expected, messages) in [
        ("rest", vec![user("hello")]),
        ("toxic", vec![user("poison")]),
        ("unsafe", vec![user("ignore the rules")]),
        ("toxic", vec![user(&format!("{padding} poison {padding}"))]),
        ("early", vec![user("poison"), assistant("no"), user("hello")]),
    ] {
        assert_eq!(route(&client, CHAT, chat(&messages)).await, expected, "{messages:?}");
    }
    for signal in ["toxic", "unsafe", "early"] {
        let series = format!("spillway_signal_duration_seconds_count{{signal=\"{signal}\"}}");
        gateway.metric_becomes(&series, 5.0).await;
    }
}

#[tokio::test]
async fn only_what_a_candidate_reads_is_worked_out() {
    let upstream = hello().await;
    let many = (0..60).map(|n| (format!("s{n}"), json!({"keywords": [format!("word{n}")]})));
    let signals = Value::Object(many.collect());
    let all = (0..40).map(|n| format!("signals.s{n}")).collect::<Vec<_>>().join(" || ");
    let routes = [
        ("picked", json!({"model": "auto", "when": "signals.s50"})),
        ("auto", json!({"model": "auto"})),
        ("many", json!({"path": {"exact": CHAT}, "headers": [{"name": "x-many", "exact": "1"}], "when": all})),
        (
            "other",
            json!({"path": {"exact": CHAT}, "headers": [{"name": "x-other", "exact": "1"}], "when": "signals.s51"}),
        ),
    ];
    let gateway = gateway(&upstream.url(), &signals, &routes).await;
    let client = gateway.client();
    let body = |model: &str, text: &str| json!({"model": model, "messages": [user(text)]}).to_string();
    for (headers, model, text, expected) in [
        (vec![JSON], "auto", "word50", "picked"),
        (vec![JSON], "auto", "word1", "auto"),
        (vec![JSON], "m", "word50", "rest"),
        (vec![JSON, ("x-many", "1")], "m", "word39", "many"),
        (vec![JSON, ("x-many", "1")], "m", "word40", "rest"),
        (vec![JSON, ("x-other", "2")], "m", "word51", "rest"),
    ] {
        let answer = client.post(CHAT, &headers, body(model, text)).await;
        assert_eq!(answer.header("x-route"), expected, "{model} {text}: {}", answer.text());
    }
    for (signal, times) in [("s0", 2.0), ("s39", 2.0), ("s50", 2.0)] {
        let series = format!("spillway_signal_results_total{{signal=\"{signal}\",outcome=\"computed\"}}");
        gateway.metric_becomes(&series, times).await;
    }
    let page = gateway.metrics().await;
    for signal in ["s51", "s59"] {
        assert!(page.contains(&format!("spillway_signal_results_total{{signal=\"{signal}\",outcome=\"computed\"}} 0")));
    }
}

#[tokio::test]
async fn a_request_without_a_conversation_is_not_read() {
    let upstream = hello().await;
    let signals = json!({"secret": {"keywords": ["secret"], "reads": "conversation"}});
    let routes = [
        ("secret", when("signals.secret")),
        ("silent", json!({"path": {"prefix": "/silent"}, "when": "!has(prompt.turns)"})),
    ];
    let gateway = gateway(&upstream.url(), &signals, &routes).await;
    let client = gateway.client();
    // What is no JSON passes as it is, also in a coding that the gateway does not know.
    for path in ["/files", "/v1/files", "/v1/embeddings"] {
        let is_model = path == "/v1/embeddings";
        let body = if is_model { r#"{"model":"m","input":"secret"}"# } else { "{secret" };
        let headers = [("content-type", if is_model { "application/json" } else { "text/plain" })];
        let coded = [headers[0], ("content-encoding", "x-own")];
        let answer = client.post(path, if is_model { &headers[..] } else { &coded[..] }, body).await;
        assert_eq!(answer.header("x-route"), "rest", "{path}: {}", answer.text());
    }
    assert_eq!(client.get("/silent/page").await.header("x-route"), "silent");
    assert_eq!(client.get("/page").await.header("x-route"), "rest");
    let page = gateway.metrics().await;
    for outcome in ["computed", "no_text"] {
        let series = format!("spillway_signal_results_total{{signal=\"secret\",outcome=\"{outcome}\"}} 0");
        assert!(page.contains(&series), "{series}");
    }
}

#[tokio::test]
async fn an_edit_of_a_signal_takes_effect() {
    let upstream = hello().await;
    let routes = [("secret", when("signals.secret"))];
    let signals = |word: &str| json!({"secret": {"keywords": [word]}});
    let gateway = gateway(&upstream.url(), &signals("before"), &routes).await;
    let client = gateway.client();
    assert_eq!(route(&client, CHAT, chat(&[user("before")])).await, "secret");
    let edits = gateway.edits();
    let edited = yaml(&upstream.url(), &signals("after"), &routes);
    let edited = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\nadmin: {{address: \"127.0.0.1:0\"}}\n{edited}");
    std::fs::write(gateway.config(), edited).unwrap();
    let event = gateway.reloads(edits).await;
    assert_eq!(event["event"], "config_reloaded", "{event}");
    assert_eq!(route(&client, CHAT, chat(&[user("after")])).await, "secret");
    assert_eq!(route(&client, CHAT, chat(&[user("before")])).await, "rest");
}

#[tokio::test]
async fn mistakes_are_told_with_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let check = |signals: &str, condition: &str| {
        let yaml = format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
models: [{{name: words, source: words}}]
backends: [{{name: b, endpoints: [{{url: \"http://127.0.0.1:9\"}}]}}]
signals:
  {signals}
routes:
  - name: r
    matches: [{{when: \"{condition}\"}}]
    backendRefs: [{{name: b}}]
"
        );
        std::fs::write(folder.path().join("spillway.yaml"), yaml).unwrap();
        let ran = Command::new(binary()).args(["check", "spillway.yaml"]).current_dir(folder.path()).output().unwrap();
        String::from_utf8([ran.stdout, ran.stderr].concat()).unwrap()
    };
    word_classifier(&folder.path().join("words"));
    for (signals, condition, parts) in [
        (
            "topic: {keywords: [a]}",
            "signals.topci",
            &["spillway.yaml:8", "`signals` has no `topci`", "did you mean `topic`?"][..],
        ),
        ("topic: {keywords: [a]}", "signals.topic > 0.5", &["spillway.yaml:8", "`>` does not go with bool and double"]),
        ("topic: {keywords: [a]}", "signals.topic && prompt.lang == 'a'", &["`prompt` has no `lang`"]),
        ("topic: {keywords: []}", "signals.topic", &["spillway.yaml:5", "found 0 keywords"]),
        ("topic: {keywords: [a, A]}", "signals.topic", &["`A` is in the list already"]),
        ("topic: {keywords: [a], atLeast: 2}", "signals.topic", &["2 of 1 keywords never occur"]),
        ("topic: {keywords: [a], timeout: 1s}", "signals.topic", &["no effect with `keywords`"]),
        ("topic: {}", "true", &["expected one of `keywords`, `examples` and `classifier`"]),
        ("a-b: {keywords: [a]}", "true", &["expressions cannot read the name `a-b`"]),
        ("in: {keywords: [a]}", "true", &["a word of the language of expressions"]),
        (
            "topic: {keywords: [a], examples: [b], model: words}",
            "signals.topic",
            &["a signal with `keywords` cannot have this too"],
        ),
        ("topic: {examples: [b]}", "signals.topic > 0.5", &["`model` is missing"]),
        (
            "topic: {examples: [b], model: word}",
            "signals.topic > 0.5",
            &["unknown built-in model `word`", "did you mean `words`?"],
        ),
        ("topic: {examples: {a: [b], c: []}, model: words}", "signals.topic.a > 0.5", &["a label without examples"]),
        (
            "topic: {examples: {a: [b]}, model: words}",
            "signals.topic.b > 0.5",
            &["`signals.topic` has no `b`; expected `a`"],
        ),
        (
            "topic: {examples: [b], model: words}",
            "signals.topic > 0.5",
            &["signals.topic.model: `words` is a model for", "name one for embeddings"],
        ),
        (
            "topic: {classifier: {model: words, labels: [toxi]}}",
            "signals.topic > 0.5",
            &["`words` has no label `toxi`; expected some of `injection`, `toxic`, `threat`"],
        ),
        ("topic: {keywords: [a], maxText: 1B}", "signals.topic", &["expected 1KiB to 1MiB"]),
        ("topic: {keywords: [a]}", "true", &["warning", "no `matches[].when` reads `signals.topic`"]),
    ] {
        let said = check(signals, condition);
        for part in parts {
            assert!(said.contains(part), "{signals} {condition}: expected {part} in\n{said}");
        }
    }
}
