//! Names of a consumer's own for models (`consumers[].modelAlias`): the models that they stand for, on every route and wherever an
//! API names a model, and what a consumer with a list of models may reach by them.

use serde_json::{Value, json};
use spillway_tests::{Gateway, Reply, Seen, Upstream, model, new_key, reply};

/// A server that answers with the path, query and body that it got, in the form of the Open Inference Protocol's calls as well.
async fn told(seen: Seen) -> Option<Reply> {
    let body = String::from_utf8_lossy(&seen.body).into_owned();
    let model = seen.path.split('/').nth(3).unwrap_or_default();
    let text = json!({"model_name": model, "path": seen.path, "body": body});
    Some(reply(200, &[("content-type", "application/json")], text.to_string()))
}

fn body(model: &str) -> String {
    json!({"model": model, "max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}).to_string()
}

const CHAT: &str = "/v1/chat/completions";
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_forms_get_the_model_that_an_alias_stands_for() {
    let server = Upstream::start(told).await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, keys: [{{sha256: {digest}}}], modelAlias: {{mine: theirs}}}}]
backends:
  - {{name: plain, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: models, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: triton, protocol: oip, endpoints: [{{url: \"{0}\"}}]}}
routes:
  - {{name: triton, matches: [{{path: {{prefix: /v2}}}}], backendRefs: [{{name: triton}}]}}
  - {{name: models, matches: [{{path: {{prefix: /v1/audio}}}}, {{path: {{prefix: /openai}}}}], backendRefs: [{{name: models}}]}}
  - {{name: plain, backendRefs: [{{name: plain}}]}}
",
        server.url()
    ))
    .await;
    let (client, bearer) = (gateway.client(), format!("Bearer {key}"));
    let post = async |path: &str, kind: &str, body: &str| {
        client.post(path, &[("authorization", &bearer), ("content-type", kind)], body.to_owned()).await
    };
    for (path, at_server) in [
        ("/v2/models/mine/infer", "/v2/models/theirs/infer"),
        ("/v1/models/mine:predict", "/v1/models/theirs:predict"),
        ("/v1/models/mine/versions/2:predict", "/v1/models/theirs/versions/2:predict"),
        ("/predictions/mine", "/predictions/theirs"),
        ("/predictions/other", "/predictions/other"),
    ] {
        let answer = post(path, "application/json", "{}").await;
        assert_eq!(
            (answer.status.as_u16(), server.last().path),
            (200, at_server.to_owned()),
            "{path}: {}",
            answer.text()
        );
        if path.starts_with("/v2") {
            assert_eq!(answer.json()["model_name"], "mine");
        }
    }
    let form = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nmine\r\n--x--\r\n";
    let answer = post("/v1/audio/transcriptions", "multipart/form-data; boundary=x", form).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(server.last().body, form.replace("mine", "theirs").as_bytes());
    // A server would read the alias itself on a path whose name is not replaced.
    let asked = server.count();
    for path in ["/v1/models/mine", "/v1/models/mine/metadata", "/openai/deployments/mine/chat/completions"] {
        let headers = [("authorization", bearer.as_str()), JSON];
        let method = if path.starts_with("/v1") { "GET" } else { "POST" };
        let sent = if method == "GET" { String::new() } else { body("mine") };
        let answer = client.send(client.request(method, path, &headers, sent)).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
    }
    assert_eq!(server.count(), asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_must_have_both_the_alias_and_its_model() {
    let server = Upstream::start(told).await;
    let keys = [new_key(), new_key()];
    let gateway = Gateway::start(&format!(
        "consumers:
  - {{name: few, keys: [{{sha256: {}}}], models: [fast, dear, \"gpt-*\"], modelAlias: {{fast: gpt-5, gpt-4: gpt-5-mini, dear: gpt-5}}}}
  - {{name: all, keys: [{{sha256: {}}}]}}
backends: [{{name: b, protocol: openai, models: [fast, dear, secret, \"gpt-*\"], endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: closed, matches: [{{model: secret}}], backendRefs: [{{name: b}}]}}
  - {{name: r, backendRefs: [{{name: b}}]}}
",
        keys[0].1,
        keys[1].1,
        server.url()
    ))
    .await;
    let client = gateway.client();
    let ask = async |key: &str, model: &str| {
        let answer = client.post(CHAT, &[("authorization", &format!("Bearer {key}")), JSON], body(model)).await;
        (answer.status.as_u16(), answer.text())
    };
    let at_server = || serde_json::from_slice::<Value>(&server.last().body).unwrap()["model"].clone();
    for (model, served) in [("fast", "gpt-5"), ("gpt-4", "gpt-5-mini"), ("gpt-5", "gpt-5"), ("dear", "gpt-5")] {
        let (status, text) = ask(&keys[0].0, model).await;
        assert_eq!((status, at_server()), (200, json!(served)), "{model}: {text}");
    }
    for model in ["secret", "other"] {
        let (status, text) = ask(&keys[0].0, model).await;
        assert!(status == 404 && text.contains(model), "{text}");
    }
    // An alias is a name of its consumer alone.
    for model in ["fast", "gpt-4"] {
        assert_eq!((ask(&keys[1].0, model).await.0, at_server()), (200, json!(model)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_of_an_alias_leads_to_its_route_whenever_the_caller_is_known() {
    let server = Upstream::start(told).await;
    let (key, digest) = new_key();
    for (first, second) in [("required", "required"), ("optional", "required"), ("required", "optional")] {
        let gateway = Gateway::start(&format!(
            "consumers: [{{name: acme, keys: [{{sha256: {digest}}}], modelAlias: {{fast: small, large: small, unknown: small}}}}]
backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: small, authentication: {first}, matches: [{{model: small}}], filters: [{{responseHeaders: {{set: {{x-route: small}}}}}}], backendRefs: [{{name: b}}]}}
  - {{name: large, authentication: {second}, matches: [{{model: large}}], filters: [{{responseHeaders: {{set: {{x-route: large}}}}}}], backendRefs: [{{name: b}}]}}
",
            server.url()
        ))
        .await;
        let bearer = format!("Bearer {key}");
        for (sent, route) in [("small", "small"), ("fast", "small"), ("large", "small"), ("unknown", "small")] {
            let answer = gateway.client().post(CHAT, &[("authorization", &bearer), JSON], body(sent)).await;
            let got = (answer.status.as_u16(), answer.header("x-route"));
            assert_eq!(got, (200, route), "{sent}, {first} and {second}: {}", answer.text());
            assert_eq!(serde_json::from_slice::<Value>(&server.last().body).unwrap()["model"], route);
        }
        let nobody = gateway.client().post(CHAT, &[JSON], body("fast")).await;
        assert!(matches!(nobody.status.as_u16(), 401 | 404), "{}", nobody.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_built_in_model_answers_under_the_name_that_the_caller_sent_and_lists_show_it() {
    let keys = [new_key(), new_key()];
    let gateway = Gateway::start(&format!(
        "consumers:
  - {{name: acme, keys: [{{sha256: {}}}], modelAlias: {{fast: smollm2, tiny: small, other: any}}}}
  - {{name: few, keys: [{{sha256: {}}}], models: [smollm2, fast, other, any], modelAlias: {{fast: smollm2, other: any}}}}
backends: [{{name: shut, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]
models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxQueueWait: 60s}}]
routes:
  - {{name: closed, access: {{consumers: [acme]}}, matches: [{{model: any}}], backendRefs: [{{name: shut}}]}}
  - {{name: r, modelAlias: {{small: smollm2}}, backendRefs: [{{model: smollm2}}]}}
",
        keys[0].1,
        keys[1].1,
        model().display()
    ))
    .await;
    let client = gateway.client();
    let headers = keys.each_ref().map(|(key, _)| format!("Bearer {key}"));
    for path in [CHAT, "/v1/messages", "/v1/responses", "/api/chat"] {
        for (name, is_stream) in [("tiny", false), ("tiny", true), ("fast", false), ("small", false)] {
            let mut sent: Value = serde_json::from_str(&body(name)).unwrap();
            (sent["stream"], sent["input"]) = (is_stream.into(), "hi".into());
            match path {
                "/v1/responses" => sent["max_output_tokens"] = 16.into(),
                "/api/chat" => sent["options"] = json!({"num_predict": 1}),
                _ => {}
            }
            if path != "/v1/responses" {
                sent.as_object_mut().unwrap().remove("input");
            }
            let answer = client.post(path, &[("authorization", &headers[0]), JSON], sent.to_string()).await;
            assert_eq!(answer.status, 200, "{path} {name}: {}", answer.text());
            // A name that the route gives is another name of the model, whose answer has its first one.
            let shown = if name == "small" { "smollm2" } else { name };
            assert!(answer.text().contains(&format!("\"model\":\"{shown}\"")), "{path} {name}: {}", answer.text());
            assert_eq!(answer.header("x-spillway-served-by"), "builtin/smollm2");
        }
    }
    let lists = async |key: &str| {
        let mut lists = Vec::new();
        for (path, list, name) in [("/v1/models", "data", "id"), ("/api/tags", "models", "name")] {
            let answer = client.send(client.request("GET", path, &[("authorization", key)], "")).await.json();
            let models = answer[list].as_array().unwrap().iter();
            let names = models.map(|model| model[name].as_str().unwrap().trim_end_matches(":latest").to_owned());
            let mut names: Vec<String> = names.collect();
            names.sort();
            lists.push(names.join(" "));
        }
        assert_eq!(lists[0], lists[1]);
        lists.swap_remove(0)
    };
    assert_eq!(lists(&headers[0]).await, "any fast other small smollm2 tiny");
    assert_eq!(lists(&headers[1]).await, "fast smollm2");
    for (name, status) in [("fast", 200), ("other", 404), ("tiny", 404)] {
        let path = format!("/v1/models/{name}");
        let answer = client.send(client.request("GET", &path, &[("authorization", &headers[1])], "")).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert!(status != 200 || answer.json()["id"] == name);
    }
}
