//! A caller with a list of models, and calls that reach other models beside the one that they name: calls about a server as a
//! whole, methods and parameters that a server reads in its own way.

use spillway_tests::{Gateway, RawSocket, Upstream, eventually, new_key, opening};

/// Gateway with a consumer that may use the model `mine`, and its key.
async fn start(rest: &str) -> (Gateway, String) {
    let (key, digest) = new_key();
    let consumer = format!("consumers:\n  - {{name: acme, models: [mine], keys: [{{sha256: {digest}}}]}}\n");
    (Gateway::start(&(consumer + rest)).await, format!("Bearer {key}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_about_a_whole_server_is_not_for_the_caller_whatever_its_body_names() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends: [{{name: b, protocol: oip, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: b}}]}}]
",
        server.url()
    ))
    .await;
    for path in [
        "/v2/repository/models/other/load",
        "/v2/repository/models/mine/unload",
        "/v2/systemsharedmemory/region/a/register",
        "/v2/trace/setting",
    ] {
        let answer = gateway.client().post(path, &[("authorization", &key)], r#"{"model":"mine"}"#).await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_models_of_an_ollama_server_are_not_the_callers_to_change() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends: [{{name: box, protocol: ollama, endpoints: [{{url: \"{0}\"}}]}}, {{name: app, protocol: http, endpoints: [{{url: \"{0}\"}}]}}]
routes:
  - {{name: app, hostnames: [app.test], unknownCalls: pass, backendRefs: [{{name: app}}]}}
  - {{name: r, backendRefs: [{{name: box}}]}}
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    let headers = [("authorization", key.as_str())];
    for (method, path, body) in [
        // The server copies what the gateway did not look at, and `mine` then is the other model.
        ("POST", "/api/copy", r#"{"model":"mine","source":"other","destination":"mine"}"#),
        ("POST", "/api/create", r#"{"model":"mine","from":"other"}"#),
        ("DELETE", "/api/delete", r#"{"model":"mine"}"#),
        ("POST", "/api/pull", r#"{"model":"mine"}"#),
        ("POST", "/api/push", r#"{"model":"mine"}"#),
        ("POST", "/api/blobs/sha256:1", r#"{"model":"mine"}"#),
        ("HEAD", "/api/blobs/sha256:1", ""),
    ] {
        let answer = client.send(client.request(method, path, &headers, body)).await;
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
    }
    assert_eq!(server.count(), 0);
    let shown = client.post("/api/show", &headers, r#"{"model":"mine"}"#).await;
    assert_eq!(shown.status, 200, "{}", shown.text());
    // Where no models are called, the path is one of the application's.
    let app = [("authorization", key.as_str()), ("host", "app.test")];
    assert_eq!(client.post("/api/copy", &app, "{}").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn torchserve_predicts_by_any_method_and_so_the_list_applies_to_all() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends: [{{name: torch, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: torch}}]}}]
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    for method in ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
        for (path, expected) in
            [("/predictions/mine", 200), ("/predictions/other", 404), ("/predictions/other/2.0", 404)]
        {
            let answer = client.send(client.request(method, path, &[("authorization", &key)], "")).await;
            assert_eq!(answer.status, expected, "{method} {path}");
        }
    }
    assert_eq!(server.count(), 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_names_its_model_once() {
    let server = Upstream::fixed(200, "{}").await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: voice, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: dear, matches: [{{model: dear}}], filters: [{{cel: {{deny: \"request.method == 'GET'\", status: 403, message: no}}}}], backendRefs: [{{name: voice}}]}}
  - {{name: r, backendRefs: [{{name: voice}}]}}
",
        server.url()
    ))
    .await;
    for (query, expected) in
        [("model=dear", 403), ("model=dear&model=cheap", 400), ("m%6fdel=dear&x=1&model=cheap", 400)]
    {
        let request = opening(&format!("/v1/realtime?{query}"), "");
        let mut socket = RawSocket::send_to(gateway.address, request.as_bytes()).await;
        let head = socket.head().await;
        assert!(head.starts_with(&format!("HTTP/1.1 {expected} ")), "{query}: {head}");
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_only_the_rewritten_path_names_is_judged_too() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends: [{{name: b, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: named, matches: [{{path: {{prefix: /team}}, model: special}}], backendRefs: [{{name: b}}]}}
  - {{name: rest, matches: [{{path: {{prefix: /team}}}}], filters: [{{urlRewrite: {{replacePrefix: /}}}}], backendRefs: [{{name: b}}]}}
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    let headers = [("authorization", key.as_str())];
    for (method, path) in [("GET", "/team/v2/models/other"), ("POST", "/team/v2/models/other/infer")] {
        let answer = client.send(client.request(method, path, &headers, "")).await;
        assert_eq!(answer.status, 404, "{method} {path}: {}", answer.text());
    }
    assert_eq!(server.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_with_the_tag_that_every_name_has_is_the_same_name_in_all_apis_of_an_ollama_server() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends: [{{name: box, protocol: ollama, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: dear, authentication: optional, matches: [{{model: dear}}], filters: [{{cel: {{deny: \"request.method == 'POST'\", status: 403, message: no}}}}], backendRefs: [{{name: box}}]}}
  - {{name: r, authentication: optional, backendRefs: [{{name: box}}]}}
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    let body = |model: &str| format!("{{\"model\":\"{model}\",\"max_tokens\":1,\"messages\":[],\"prompt\":\"\"}}");
    for path in ["/api/chat", "/v1/chat/completions", "/v1/completions", "/v1/messages"] {
        for model in ["dear", "dear:latest"] {
            let answer = client.post(path, &[], body(model)).await;
            assert_eq!(answer.status, 403, "{path} {model}: {}", answer.text());
        }
        let mine = client.post(path, &[("authorization", &key)], body("mine:latest")).await;
        assert_eq!(mine.status, 200, "{path}: {}", mine.text());
        assert!(String::from_utf8_lossy(&server.last().body).contains("mine:latest"), "the server gets what came");
    }
    assert_eq!(server.count(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn all_spellings_that_ollama_reads_as_one_name_take_the_way_of_that_name() {
    let server = Upstream::fixed(200, "{}").await;
    let (gateway, key) = start(&format!(
        "backends:
  - {{name: box, protocol: ollama, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: other, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
routes:
  - {{name: dear, authentication: optional, matches: [{{model: dear}}], filters: [{{cel: {{deny: \"request.method == 'POST'\", status: 403, message: no}}}}], backendRefs: [{{name: box}}]}}
  - {{name: cased, authentication: optional, matches: [{{model: \"Lab/*\"}}], backendRefs: [{{name: other}}]}}
  - {{name: r, authentication: optional, backendRefs: [{{name: box}}]}}
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    let body = |model: &str| format!("{{\"model\":\"{model}\",\"max_tokens\":1,\"messages\":[],\"prompt\":\"\"}}");
    let spellings = |name: &str| {
        let capital = name.to_uppercase();
        [
            name.to_owned(),
            format!("{name}:latest"),
            format!("{capital}:LATEST"),
            format!("library/{name}"),
            format!("{name}:local"),
            format!("registry.ollama.ai/library/{name}:latest"),
            format!("https://Registry.Ollama.AI/Library/{capital}"),
        ]
    };
    let headers = [("authorization", key.as_str())];
    for path in ["/api/chat", "/api/generate", "/v1/chat/completions", "/v1/messages"] {
        for model in spellings("dear") {
            let answer = client.post(path, &[], body(&model)).await;
            assert_eq!(answer.status, 403, "{path} {model}: {}", answer.text());
            let answer = client.post(path, &headers, body(&model)).await;
            assert!(matches!(answer.status.as_u16(), 403 | 404), "{path} {model}: {}", answer.text());
        }
        assert_eq!(server.count(), 0);
    }
    for model in spellings("mine") {
        let answer = client.post("/api/chat", &headers, body(&model)).await;
        assert_eq!(answer.status, 200, "{model}: {}", answer.text());
        assert!(String::from_utf8_lossy(&server.last().body).contains(&model), "the server gets what came");
    }
    let seen = server.count();
    for model in
        ["other/mine", "hub.test/library/mine", "mine:8b"].into_iter().map(str::to_owned).chain(spellings("other"))
    {
        let answer = client.post("/api/chat", &headers, body(&model)).await;
        assert_eq!(answer.status, 404, "{model}: {}", answer.text());
    }
    assert_eq!(server.count(), seen);
    // Other servers tell letters apart.
    assert_eq!(client.post("/v1/chat/completions", &[], body("Lab/m")).await.status, 200);
    let answer = client.post("/v1/chat/completions", &headers, body("MINE")).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_gets_no_call_through_whose_model_is_not_known() {
    let server = Upstream::fixed(200, "{}").await;
    let (free, free_digest) = new_key();
    let (gateway, key) = start(&format!(
        "  - {{name: free, keys: [{{sha256: {free_digest}}}]}}
backends:
  - {{name: plain, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: openai, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: anthropic, protocol: anthropic, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: oip, protocol: oip, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: ollama, protocol: ollama, endpoints: [{{url: \"{0}\"}}]}}
routes:
  - {{name: plain, hostnames: [plain.test], backendRefs: [{{name: plain}}]}}
  - {{name: openai, hostnames: [openai.test], backendRefs: [{{name: openai}}]}}
  - {{name: anthropic, hostnames: [anthropic.test], backendRefs: [{{name: anthropic}}]}}
  - {{name: oip, hostnames: [oip.test], backendRefs: [{{name: oip}}]}}
  - {{name: ollama, hostnames: [ollama.test], backendRefs: [{{name: ollama}}]}}
  - {{name: passed, hostnames: [passed.test], unknownCalls: pass, backendRefs: [{{name: plain}}]}}
  - {{name: passed-openai, hostnames: [passed-openai.test], unknownCalls: pass, backendRefs: [{{name: openai}}]}}
  - {{name: respond, hostnames: [respond.test], filters: [{{respond: {{status: 200, body: ok}}}}]}}
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    let mine = r#"{"model":"mine","max_tokens":1,"messages":[],"prompt":""}"#;
    let other = mine.replace("mine", "other");
    let unknown = [
        // SageMaker and MLflow, MLServer, TorchServe's management, TensorFlow Serving over gRPC.
        ("POST", "/invocations?model_name=other", mine),
        ("POST", "/models/other/invoke", mine),
        ("POST", "/models/other/versions/1/invocations", mine),
        ("POST", "/other/predict", mine),
        ("PUT", "/models/other", mine),
        ("POST", "/tensorflow.serving.PredictionService/Predict", ""),
        // vLLM, llama.cpp, text-generation-inference.
        ("POST", "/v1/load_lora_adapter", r#"{"model":"mine","lora_name":"mine","lora_path":"/other"}"#),
        ("POST", "/sleep", ""),
        ("POST", "/tokenize", mine),
        ("GET", "/slots", ""),
        ("GET", "/props", ""),
        ("POST", "/slots/0?action=restore", mine),
        ("POST", "/generate", mine),
        ("GET", "/metrics", ""),
        // Models of OpenAI's and Anthropic's APIs that stand elsewhere than at the top of the body, or in none.
        ("POST", "/v1/batches", mine),
        (
            "POST",
            "/v1/messages/batches",
            r#"{"model":"mine","requests":[{"custom_id":"a","params":{"model":"other"}}]}"#,
        ),
        ("GET", "/v1/chat/completions", ""),
        ("POST", "/v1/realtime/client_secrets", r#"{"model":"mine","session":{"model":"other"}}"#),
        ("POST", "/v1/fine_tuning/jobs", mine),
    ];
    for host in ["plain.test", "openai.test", "anthropic.test", "oip.test", "ollama.test"] {
        for (method, path, body) in unknown {
            let headers = [("authorization", key.as_str()), ("host", host), ("content-type", "application/json")];
            let answer = client.send(client.request(method, path, &headers, body)).await;
            assert!(
                answer.status == 403 && answer.text().contains("unknownCalls"),
                "{method} {host}{path}: {} {}",
                answer.status,
                answer.text()
            );
        }
    }
    for (method, path) in [
        ("GET", "/v1/models"),
        ("GET", "/api/ps"),
        ("GET", "/api/tags"),
        ("POST", "/api/pull"),
        ("GET", "/v2/repository/index"),
    ] {
        let headers = [("authorization", key.as_str()), ("host", "plain.test")];
        let answer =
            client.send(client.request(method, path, &headers, if method == "POST" { mine } else { "" })).await;
        assert!(matches!(answer.status.as_u16(), 403 | 404), "{method} {path}: {}", answer.text());
    }
    assert_eq!(server.count(), 0);
    for (host, method, path, body, status) in [
        ("plain.test", "POST", "/v1/chat/completions", mine, 200),
        ("plain.test", "POST", "/v1/chat/completions", &other, 404),
        ("plain.test", "POST", "/v1/chat/completions", "", 404),
        ("plain.test", "POST", "/api/chat", mine, 200),
        ("plain.test", "POST", "/api/chat", "{}", 404),
        ("plain.test", "POST", "/v2/models/mine/infer", "{}", 200),
        ("plain.test", "GET", "/v2/models/other/config", "", 404),
        ("plain.test", "GET", "/v2/health/ready", "", 200),
        ("plain.test", "GET", "/v1/models/mine", "", 200),
        ("plain.test", "GET", "/v1/models/other/metadata", "", 404),
        ("plain.test", "POST", "/v1/models/mine/labels/x:predict", "{}", 200),
        ("plain.test", "POST", "/predictions/mine/2.0", "{}", 200),
        ("plain.test", "POST", "/grpc.health.v1.Health/Check", "", 200),
        ("oip.test", "GET", "/api/ps", "", 403),
        ("plain.test", "GET", "/ping", "", 200),
        ("plain.test", "POST", "/ping", mine, 403),
        ("openai.test", "GET", "/v1/responses/resp_1", "", 200),
        ("openai.test", "POST", "/openai/v1/chat/completions", mine, 200),
        ("openai.test", "POST", "/v1beta/openai/embeddings", &other, 404),
        ("openai.test", "POST", "/v1/engines/other/completions", mine, 403),
        ("plain.test", "POST", "/openai/v1/chat/completions", mine, 403),
        ("openai.test", "POST", "/v1/responses/resp_1/cancel", "", 200),
        ("openai.test", "POST", "/v1/responses/resp_1/cancel", "{}", 200),
        ("openai.test", "POST", "/v1/chat/completions?model=other", mine, 400),
        ("openai.test", "POST", "/v1/chat/completions?x=1", mine, 200),
        ("openai.test", "POST", "/v1/moderations", mine, 200),
        ("openai.test", "POST", "/v1/moderations", &other, 404),
        ("openai.test", "POST", "/openai/deployments/mine/chat/completions", mine, 200),
        ("openai.test", "POST", "/openai/deployments/other/chat/completions", mine, 404),
        ("ollama.test", "GET", "/api/version", "", 200),
        ("ollama.test", "HEAD", "/", "", 200),
        ("ollama.test", "POST", "/api/show", mine, 200),
        ("ollama.test", "POST", "/api/show", &other, 404),
        // Its older field, which is read where `model` is empty or not there, in any letters, the last one of two.
        ("ollama.test", "POST", "/api/show", r#"{"name":"mine"}"#, 200),
        ("ollama.test", "POST", "/api/show", r#"{"model":"","name":"mine"}"#, 200),
        ("ollama.test", "POST", "/api/show", r#"{"name":"library/mine:latest","model":null}"#, 200),
        ("ollama.test", "POST", "/api/show", r#"{"name":"other"}"#, 404),
        ("ollama.test", "POST", "/api/show", r#"{"name":"other","model":""}"#, 404),
        ("ollama.test", "POST", "/api/show", r#"{"name":"other","model":"mine"}"#, 200),
        ("ollama.test", "POST", "/api/show", r#"{"name":"mine","model":"other"}"#, 404),
        ("ollama.test", "POST", "/api/show", r#"{"Name":"other","name":"mine"}"#, 400),
        ("ollama.test", "POST", "/api/show", r#"{"name":"mine","name":"other"}"#, 400),
        ("ollama.test", "POST", "/api/show", r#"{"name":["mine"]}"#, 400),
        ("ollama.test", "POST", "/api/show", "{}", 404),
        ("plain.test", "POST", "/api/show", r#"{"name":"mine"}"#, 200),
        ("plain.test", "POST", "/api/show", r#"{"name":"other"}"#, 404),
        ("ollama.test", "GET", "/", "", 200),
        ("ollama.test", "POST", "/", mine, 403),
        ("plain.test", "GET", "/", "", 403),
        ("openai.test", "GET", "/", "", 403),
        ("plain.test", "GET", "/health", "", 200),
        ("openai.test", "GET", "/health", "", 200),
        ("anthropic.test", "HEAD", "/health", "", 200),
        ("ollama.test", "GET", "/health?", "", 200),
        ("openai.test", "GET", "/health?include_slots", "", 403),
        ("openai.test", "POST", "/health", mine, 403),
        ("openai.test", "GET", "/health/models", "", 403),
        ("passed.test", "POST", "/invocations?model_name=other", "{}", 200),
        ("passed.test", "POST", "/invocations", &other, 404),
        ("passed.test", "GET", "/slots", "", 200),
        ("passed-openai.test", "POST", "/v1/batches", "{\"input_file_id\":\"x\"}", 200),
        ("passed-openai.test", "POST", "/tokenize", "{}", 200),
        ("passed-openai.test", "POST", "/v1/chat/completions", "{}", 404),
        ("respond.test", "GET", "/anything", "", 200),
    ] {
        let headers = [("authorization", key.as_str()), ("host", host), ("content-type", "application/json")];
        let answer = client.send(client.request(method, path, &headers, body.to_owned())).await;
        assert_eq!(answer.status, status, "{method} {host}{path} {body}: {}", answer.text());
    }
    // Callers of all models call what they like.
    let bearer = format!("Bearer {free}");
    for (method, path, body) in unknown {
        let headers =
            [("authorization", bearer.as_str()), ("host", "plain.test"), ("content-type", "application/json")];
        let answer = client.send(client.request(method, path, &headers, body)).await;
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_models_that_are_loaded_are_shown_as_far_as_the_caller_may_use_them() {
    let server = Upstream::fixed(200, r#"{"models":[{"name":"other"}]}"#).await;
    let (free, free_digest) = new_key();
    let (gateway, key) = start(&format!(
        "  - {{name: free, keys: [{{sha256: {free_digest}}}]}}
backends: [{{name: box, protocol: ollama, endpoints: [{{url: \"{}\"}}]}}]
models:
  - {{name: mine, source: \"{1}\", contextLength: 256}}
  - {{name: other, source: \"{1}\", contextLength: 256}}
routes:
  - {{name: box, hostnames: [box.test], backendRefs: [{{name: box}}]}}
  - {{name: both, hostnames: [both.test], backendRefs: [{{model: mine}}, {{model: other}}]}}
  - {{name: named, hostnames: [named.test], matches: [{{model: mine}}, {{model: other}}], backendRefs: [{{model: other}}, {{model: mine}}]}}
",
        server.url(),
        spillway_tests::model().display()
    ))
    .await;
    let client = gateway.client();
    let loaded = async |host: &str, key: &str| {
        let answer = client.send(client.request("GET", "/api/ps", &[("authorization", key), ("host", host)], "")).await;
        assert_eq!(answer.status, 200, "{host}: {}", answer.text());
        let models = answer.json()["models"].as_array().unwrap().clone();
        models.iter().map(|model| model["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(loaded("box.test", &key).await.is_empty(), "what a server has loaded is not shown");
    assert_eq!(server.count(), 0);
    assert_eq!(loaded("box.test", &format!("Bearer {free}")).await, ["other"]);
    for host in ["both.test", "named.test"] {
        eventually("the model is loaded", || async {
            let loaded = loaded(host, &key).await;
            assert!(!loaded.contains(&"other".to_owned()), "{loaded:?}");
            (loaded == ["mine"]).then_some(())
        })
        .await;
    }
}
