//! Lists of models that the gateway fetches from servers (`backends[].modelList`): what callers see of them in each API, that no
//! request waits for one, and what stays while a server does not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use spillway_tests::{Client, Gateway, LlamaServer, Reply, Seen, Upstream, eventually, new_key, reply};

const JSON: (&str, &str) = ("content-type", "application/json");
const VERSION: (&str, &str) = ("anthropic-version", "2026-10-21");

/// Names in a list of OpenAI's or Anthropic's API, or of Ollama's.
async fn names(client: &Client, path: &str, headers: &[(&str, &str)]) -> Vec<String> {
    let answer = client.send(client.request("GET", path, headers, "")).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    let json = answer.json();
    let (list, name) = if path == "/api/tags" { ("models", "name") } else { ("data", "id") };
    json[list].as_array().unwrap().iter().map(|one| one[name].as_str().unwrap().to_owned()).collect()
}

/// Waits until a list has some names.
async fn lists(client: &Client, headers: &[(&str, &str)], expected: &[&str]) {
    eventually("the list is fetched", || async {
        let mut names = names(client, "/v1/models", headers).await;
        names.sort();
        (names == expected).then_some(())
    })
    .await;
}

/// Answer of a server of one of the APIs to the question for its models; anything else is answered by the name of the API.
async fn server(api: &'static str, seen: Seen) -> Option<Reply> {
    let query = seen.path.split_once('?').map_or("", |(_, query)| query);
    let list = match (api, seen.path.split('?').next().unwrap()) {
        ("openai", "/v1/models") => json!({"object": "list", "data": [
            {"id": "gpt-5", "object": "model", "created": 7, "owned_by": "x"}, {"id": "secret"}, {"id": "bad\u{7}name"},
            {"id": "x".repeat(257)}, {"id": ""}]}),
        ("openai", _) => return Some(reply(200, &[JSON], json!({"api": api}).to_string())),
        ("anthropic", "/v1/models") => {
            assert_eq!(
                (&seen.headers["x-api-key"], seen.headers.contains_key("anthropic-version")),
                (&"sk".parse().unwrap(), true)
            );
            match query {
                "limit=1000" => {
                    json!({"data": [{"type": "model", "id": "claude 1"}], "has_more": true, "last_id": "claude 1"})
                }
                "limit=1000&after_id=claude+1" => {
                    json!({"data": [{"type": "model", "id": "claude-2"}], "has_more": false, "last_id": "claude-2"})
                }
                other => panic!("{other}"),
            }
        }
        ("ollama", "/api/tags") => json!({"models": [{"name": "llama3:latest", "size": 1}, {"name": "llama3:8b"}]}),
        _ => return Some(reply(404, &[JSON], "{}")),
    };
    Some(reply(200, &[JSON], list.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_see_what_servers_have_in_each_api_as_far_as_they_may_use_it() {
    let servers = ["openai", "anthropic", "ollama"];
    let servers = servers.map(|api| async move { Upstream::start(move |seen| server(api, seen)).await });
    let [openai, anthropic, ollama] = servers;
    let (openai, anthropic, ollama) = (openai.await, anthropic.await, ollama.await);
    let keys = [new_key(), new_key(), new_key()];
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
consumers:
  - {{name: all, keys: [{{sha256: {}}}]}}
  - {{name: few, keys: [{{sha256: {}}}], models: [\"claude*\", gpt-5, fast], modelAlias: {{fast: claude-2}}}}
  - {{name: ops, keys: [{{sha256: {}}}]}}
backends:
  - {{name: openai, protocol: openai, modelList: {{}}, endpoints: [{{url: \"{}\"}}]}}
  - {{name: anthropic, protocol: anthropic, modelList: {{}}, credentials: {{header: x-api-key, secret: {{env: LIST_KEY}}}}, endpoints: [{{url: \"{}\"}}]}}
  - {{name: ollama, protocol: ollama, models: [\"llama3*\"], modelList: {{}}, endpoints: [{{url: \"{}\"}}]}}
routes:
  - {{name: closed, access: {{consumers: [ops]}}, matches: [{{model: secret}}], backendRefs: [{{name: openai}}]}}
  - {{name: local, matches: [{{model: \"llama3*\"}}], backendRefs: [{{name: ollama}}]}}
  - {{name: rest, backendRefs: [{{name: openai}}, {{name: anthropic}}]}}
",
        keys[0].1,
        keys[1].1,
        keys[2].1,
        openai.url(),
        anthropic.url(),
        ollama.url()
    );
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start_with_variables(folder, &yaml, &[("LIST_KEY", "sk")]).await;
    let client = gateway.client();
    let bearers = keys.each_ref().map(|(key, _)| format!("Bearer {key}"));
    let headers = bearers.each_ref().map(|bearer| [("authorization", bearer.as_str()), VERSION]);
    let [all, few, ops] = headers.each_ref().map(|headers| &headers[..1]);
    lists(&client, all, &["claude 1", "claude-2", "gpt-5", "llama3", "llama3:8b"]).await;
    lists(&client, few, &["claude 1", "claude-2", "fast", "gpt-5"]).await;
    lists(&client, ops, &["claude 1", "claude-2", "gpt-5", "llama3", "llama3:8b", "secret"]).await;
    // The same list in the other forms, each model by its name, and HEAD.
    let mut expected = names(&client, "/v1/models", few).await;
    assert_eq!(names(&client, "/v1/models", &headers[1]).await, expected);
    let mut tags = names(&client, "/api/tags", few).await;
    tags.iter_mut().for_each(|name| *name = name.trim_end_matches(":latest").to_owned());
    expected.sort();
    tags.sort();
    assert_eq!(tags, expected);
    for (name, status) in [("gpt-5", 200), ("claude%201", 200), ("fast", 200), ("secret", 404), ("llama3", 404)] {
        for method in ["GET", "HEAD"] {
            let answer = client.send(client.request(method, &format!("/v1/models/{name}"), few, "")).await;
            assert_eq!(answer.status, status, "{method} {name}: {}", answer.text());
        }
    }
    let one = client.send(client.request("GET", "/v1/models/gpt-5", few, "")).await.json();
    assert_eq!((&one["id"], &one["created"]), (&json!("gpt-5"), &json!(7)));
    // A list is for reading: a name that is in none goes where it went.
    let headers = [all[0], JSON];
    let body = json!({"model": "unheard-of", "messages": []}).to_string();
    let answers = [(); 16].map(|()| client.post("/v1/chat/completions", &headers, body.clone()));
    let mut has_answered = false;
    for answer in answers {
        has_answered |= answer.await.text().contains("\"openai\"");
    }
    assert!(has_answered);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_list_stays_while_a_server_fails_and_none_without_the_key() {
    let (state, first) = (Arc::new(AtomicU32::new(0)), Arc::new(tokio::sync::Notify::new()));
    let (now, begun) = (state.clone(), first.clone());
    let server = Upstream::start(move |_| {
        let (now, begun) = (now.clone(), begun.clone());
        async move {
            let list = |name: &str| json!({"data": [{"id": name}, {"id": "b"}, {"id": "c"}]}).to_string();
            Some(match now.load(Ordering::Relaxed) {
                0 => {
                    begun.notify_one();
                    std::future::pending::<()>().await;
                    unreachable!()
                }
                1 => reply(200, &[JSON], list("a")),
                2 => reply(500, &[JSON], list("broken")),
                3 => reply(200, &[JSON], "no list"),
                _ => reply(200, &[JSON], list("z")),
            })
        }
    })
    .await;
    let yaml = |list: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: b, protocol: openai, {list}endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: b}}]}}]
",
            server.url()
        )
    };
    let asks = "modelList: {path: /openai/v1/models, every: 1s, timeout: 1s, maxModels: 2}, ";
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(asks)).await;
    let client = gateway.client();
    first.notified().await;
    assert!(names(&client, "/v1/models", &[]).await.is_empty(), "nobody waits for a server");
    let series = format!("spillway_endpoint_model_list_failures_total{{backend=\"b\",endpoint=\"{}\"}}", server.url());
    eventually("the time of the question is over", || async { (gateway.metric(&series).await > 0.0).then_some(()) })
        .await;
    state.store(1, Ordering::Relaxed);
    lists(&client, &[], &["a", "b"]).await;
    assert_eq!(server.last().path, "/openai/v1/models");
    for broken in [2, 3] {
        state.store(broken, Ordering::Relaxed);
        let failed = gateway.metric(&series).await;
        eventually("it fails", || async { (gateway.metric(&series).await > failed + 1.0).then_some(()) }).await;
        assert_eq!(names(&client, "/v1/models", &[]).await, ["a", "b"]);
    }
    assert_eq!(gateway.events("model_list_not_read").len(), 1, "at most once a minute");
    state.store(4, Ordering::Relaxed);
    lists(&client, &[], &["b", "z"]).await;
    eventually("it is told", || async { gateway.events("model_list_read").first().map(|_| ()) }).await;
    // Another edit keeps the list, and the end of the key ends it.
    let edit = async |yaml: String| {
        let edits = gateway.edits();
        std::fs::write(gateway.config(), spillway_tests::whole(&yaml)).unwrap();
        let reloaded: Value = gateway.reloads(edits).await;
        assert_eq!(reloaded["event"], "config_reloaded", "{reloaded}");
    };
    state.store(2, Ordering::Relaxed);
    edit(yaml(asks) + "prices: [{model: x, input: 1, output: 1}]\n").await;
    assert_eq!(names(&client, "/v1/models", &[]).await, ["z", "b"]);
    edit(yaml("")).await;
    assert!(names(&client, "/v1/models", &[]).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn real_servers_are_asked_llama_cpp_and_another_gateway() {
    let llama = LlamaServer::start(1);
    let inner = Gateway::start(&format!(
        "backends: [{{name: llama, protocol: openai, models: [\"*\"], modelList: {{}}, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: llama}}]}}]
",
        llama.url
    ))
    .await;
    let name = eventually("llama.cpp names its model", || async {
        names(&inner.client(), "/v1/models", &[]).await.into_iter().next()
    })
    .await;
    for protocol in ["openai", "anthropic", "ollama"] {
        let outer = Gateway::start(&format!(
            "backends: [{{name: inner, protocol: {protocol}, modelList: {{}}, endpoints: [{{url: \"http://{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: inner}}]}}]
",
            inner.address
        ))
        .await;
        lists(&outer.client(), &[], &[name.as_str()]).await;
    }
}
