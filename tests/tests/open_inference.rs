//! The Open Inference Protocol: built-in models as NVIDIA's official client sees them over HTTP and gRPC, and servers behind
//! `protocol: oip` and `oip-grpc` with their models named in paths and messages.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use spillway_tests::{
    Client, CrossEncoder, Gateway, PythonServer, Reply, Seen, Upstream, encoded, eventually, minilm, new_key, reply,
    script,
};

const LISTENERS: &str = "listeners:
  - {name: http, address: \"127.0.0.1:0\"}
  - {name: grpc, address: \"127.0.0.1:0\", protocol: h2c}
";

/// gRPC server of the protocol.
const SERVICE: &str = "open_inference_service.py";

/// Observations of a script by their names.
async fn told(name: &str, gateway: &Gateway, further: &[&str]) -> BTreeMap<String, Value> {
    let lines = script(name, gateway, further).await;
    lines.into_iter().map(|line| (line["name"].as_str().unwrap().to_owned(), line)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_gets_vectors_and_scores_of_built_in_models() {
    let (folder, reranker) = (tempfile::tempdir().unwrap(), CrossEncoder::new());
    std::fs::create_dir(folder.path().join("judge")).unwrap();
    reranker.write(&folder.path().join("judge"));
    let config = format!(
        "{LISTENERS}models:
  - {{name: minilm, source: \"{}\", task: embedding}}
  - {{name: judge, source: judge, task: rerank}}
routes:
  - name: models
    matches: [{{path: {{prefix: /v2}}}}, {{path: {{prefix: /inference.GRPCInferenceService}}}}, {{path: {{prefix: /v1}}}}]
    modelAlias: {{embedder: minilm, lab/mini: minilm}}
    backendRefs: [{{model: minilm}}, {{model: judge}}]
",
        minilm().display()
    );
    let gateway = Gateway::start_in(folder, &config).await;
    let (http, grpc) = (gateway.listener("http").to_string(), gateway.listener("grpc").to_string());
    let told = told("open_inference.py", &gateway, &[&http, &grpc, "minilm", "embedder", "judge"]).await;
    for transport in ["http", "grpc"] {
        let of = |what: &str| &told[&format!("{transport} {what}")];
        let server = of("server");
        assert_eq!((&server["live"], &server["ready"]), (&true.into(), &true.into()), "{server}");
        assert_eq!(server["models"], json!([true, true, true]), "{server}");
        assert_eq!(
            (&server["metadata"]["name"], &server["metadata"]["extensions"]),
            (&"spillway".into(), &json!(["binary_tensor_data"]))
        );
        let number = |n: i64| if transport == "grpc" { json!(n.to_string()) } else { json!(n) };
        let embedder = &of("metadata")["embedder"];
        assert_eq!(
            embedder["outputs"][0],
            json!({"name": "embedding", "datatype": "FP32", "shape": [number(-1), number(384)]})
        );
        let reranker = &of("metadata")["reranker"];
        assert_eq!((&reranker["name"], &reranker["inputs"][1]["name"]), (&"judge".into(), &"documents".into()));
        let vectors = of("vectors");
        assert_eq!((&vectors["shape"], &vectors["kind"]), (&json!([3, 384]), &"float32".into()), "{vectors}");
        assert_eq!(
            (&vectors["same"], &vectors["alike"], &vectors["other"]),
            (&true.into(), &true.into(), &false.into())
        );
        assert_eq!(vectors["norms"], json!([1.0, 1.0, 1.0]));
    }
    assert_eq!(told["http vectors"]["values"], told["grpc vectors"]["values"]);
    let typed = &told["grpc typed"];
    assert_eq!(typed["values"], told["grpc vectors"]["values"], "{typed}");
    assert_eq!((&typed["id"], &typed["raw"], &typed["cut"]), (&"8".into(), &0.into(), &json!([false, false, false])));
    let documents = ["a cat sits on a mat", "a proxy is a server", "server"];
    let score = |text: &str| reranker.score(&CrossEncoder::tokens("what is a proxy"), &CrossEncoder::tokens(text));
    for (transport, (n, expected)) in
        ["http", "grpc"].iter().flat_map(|t| documents.map(score).into_iter().enumerate().map(move |one| (t, one)))
    {
        let found = told[&format!("{transport} scores")]["scores"][n].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-4, "{transport} {n}: {found}, {expected}");
    }
    let coded = &told["http coded"];
    assert_eq!((&coded["id"], &coded["model"]), (&"x7".into(), &"minilm".into()), "{coded}");
    for (what, http, grpc, message) in [
        ("unknown model", "404", "StatusCode.NOT_FOUND", "`nobody`"),
        ("unknown version", "404", "StatusCode.NOT_FOUND", "version 1, not `2`"),
        ("unknown input", "400", "StatusCode.INVALID_ARGUMENT", "`text` does not exist"),
        ("repository", "501", "StatusCode.UNIMPLEMENTED", "repository"),
    ] {
        for (transport, status) in [("http", http), ("grpc", grpc)] {
            let refused = &told[&format!("{transport} {what}")];
            assert_eq!(refused["status"], status, "{refused}");
            assert!(refused["message"].as_str().unwrap().contains(message), "{refused}");
        }
    }
    assert_eq!(told["http shared memory"]["status"], "501");
    // A built-in model may have a slash in its name, because no server reads the path.
    let client = Client::new(gateway.listener("http"));
    assert_eq!(client.get("/v2/models/lab%2Fmini/ready").await.json(), json!({"name": "minilm", "ready": true}));
    assert_eq!(client.get("/v2/models/lab%2Fmaxi/ready").await.status, 404);
    // A compressed message is read.
    assert_eq!(told["grpc compressed"]["status"], "none");
}

/// A server of the protocol that answers with the model and path that it was asked for; `full` has no room, `bad` fails.
async fn serves(seen: Seen) -> Option<Reply> {
    let json = [("content-type", "application/json")];
    let name = seen.path.split('/').nth(3).unwrap_or_default().replace("%20", " ");
    Some(match name.as_str() {
        "full" => reply(503, &json, r#"{"error":"no room"}"#),
        "bad" => reply(400, &json, r#"{"error":"bad tensor"}"#),
        _ if seen.method == "GET" => reply(200, &json, json!({"name": name, "path": seen.path}).to_string()),
        // The JSON, then binary data.
        _ => {
            let head = json!({"id": "1", "model_name": name, "path": seen.path}).to_string();
            let length = head.len().to_string();
            let headers = [("inference-header-content-length", length.as_str()), ("etag", "\"1\"")];
            reply(200, &headers, [head.as_bytes(), &[0, 159, 146, 150]].concat())
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_get_their_own_name_of_the_model_in_the_path() {
    let (own, other) = (Upstream::start(serves).await, Upstream::start(serves).await);
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: own, protocol: oip, model: \"resnet v1\", endpoints: [{{url: \"{}\"}}]}}
  - {{name: other, protocol: oip, endpoints: [{{url: \"{}\"}}]}}
routes:
  - {{name: images, matches: [{{path: {{prefix: /v2}}, model: \"resnet*\"}}], backendRefs: [{{name: own}}]}}
  - {{name: team, matches: [{{path: {{prefix: /team/v2}}}}], filters: [{{urlRewrite: {{replacePrefix: /v2}}}}], backendRefs: [{{name: own}}]}}
  - {{name: others, matches: [{{path: {{prefix: /v2}}}}], backendRefs: [{{name: other}}]}}
",
        own.url(),
        other.url()
    ))
    .await;
    let client = gateway.client();
    for (path, expected) in [
        ("/v2/models/resnet/infer", "/v2/models/resnet%20v1/infer"),
        ("/v2/models/resnet50/versions/3/infer?a=b", "/v2/models/resnet%20v1/versions/3/infer?a=b"),
        ("/v2/models/%72esnet/infer", "/v2/models/resnet%20v1/infer"),
        ("/team/v2/models/any/generate", "/v2/models/resnet%20v1/generate"),
    ] {
        let answer = client.post(path, &[], "{\"inputs\":[]}").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!((own.last().path, other.count()), (expected.to_owned(), 0));
        assert_eq!(&own.last().body[..], b"{\"inputs\":[]}");
        // The answer has the caller's name, and lengths that fit.
        let length: usize = answer.header("inference-header-content-length").parse().unwrap();
        let (head, binary) = answer.body.split_at(length);
        let head: Value = serde_json::from_slice(head).unwrap();
        let called = path.split(['/', '?']).rev().find(|part| part.contains("esnet") || *part == "any").unwrap();
        assert_eq!(head["model_name"], called.replace("%72", "r"), "{path}");
        assert_eq!((head["path"].as_str().unwrap(), binary), (expected, &[0, 159, 146, 150][..]));
        assert_eq!(
            (answer.header("content-length"), answer.header("etag")),
            (answer.body.len().to_string().as_str(), "")
        );
    }
    for path in ["/v2/models/resnet", "/v2/models/resnet/ready"] {
        let answer = client.get(path).await;
        assert_eq!((answer.status.as_u16(), &answer.json()["name"]), (200, &"resnet".into()));
        assert_eq!(own.last().path, path.replace("resnet", "resnet%20v1"));
    }
    for path in ["/v2/models/bert/infer", "/v2/models/bert/ready", "/v2/health/ready", "/v2", "/v2/repository/index"] {
        assert_eq!(client.send(client.request("GET", path, &[], "")).await.status, 200, "{path}");
        assert_eq!(other.last().path, path);
    }
    // Binary tensors pass as they are.
    let body = [&b"{\"inputs\":[]}"[..], &[0, 159, 146, 150]].concat();
    let headers = [("inference-header-content-length", "13"), ("content-type", "application/octet-stream")];
    assert_eq!(client.post("/v2/models/bert/infer", &headers, body.clone()).await.status, 200);
    assert_eq!(
        (&other.last().body[..], &other.last().headers["inference-header-content-length"]),
        (&body[..], &"13".parse().unwrap())
    );
    // The error of a server passes; the gateway's own have the protocol's form.
    let bad = client.post("/v2/models/bad/infer", &[], "{}").await;
    assert_eq!((bad.status.as_u16(), bad.json()), (400, json!({"error": "bad tensor"})));
    for path in ["/v2/models/resnet;v=1/infer", "/v2/models/a;b/infer", "/v2/models/%2e%2e;/infer"] {
        let refused = client.post(path, &[], "{}").await;
        assert_eq!(refused.status, 400, "{path}");
        assert!(refused.json()["error"].is_string(), "{path}: {}", refused.text());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_uses_the_models_of_its_list_whatever_the_spelling() {
    let upstream = Upstream::start(serves).await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, models: [bert], keys: [{{sha256: {digest}}}]}}]
backends: [{{name: b, protocol: oip, endpoints: [{{url: \"{}\"}}]}}, {{name: plain, endpoints: [{{url: \"{0}\"}}]}}]
routes:
  - {{name: plain, matches: [{{path: {{prefix: /plain}}}}], filters: [{{urlRewrite: {{replacePrefix: /}}}}], backendRefs: [{{name: plain}}]}}
  - {{name: all, backendRefs: [{{name: b}}]}}
",
        upstream.url()
    ))
    .await;
    let client = gateway.client();
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let status = async |method: &str, path: &str| {
        let body = if path.contains("repository") || method == "GET" { "" } else { "{\"model\":\"bert\"}" };
        client.send(client.request(method, path, &headers, body)).await.status.as_u16()
    };
    for (method, path, expected) in [
        ("POST", "/v2/models/bert/infer", 200),
        ("POST", "/v2/models/b%65rt/versions/1/infer", 200),
        ("GET", "/v2/models/bert", 200),
        ("GET", "/v2/health/ready", 200),
        ("POST", "/v2/models/llama/infer", 404),
        ("POST", "/v2/models/bert%20/infer", 400),
        ("POST", "/v2/models/llama/versions/bert/infer", 404),
        ("GET", "/v2/models/llama/ready", 404),
        ("GET", "/v2/models/llama/stats", 404),
        ("POST", "/v2/models/llama/generate", 404),
        ("POST", "/v2/models/bert/../llama/infer", 400),
        ("POST", "/v2/models/bert;x/infer", 400),
        ("POST", "/v2/models/bert%2F..%2Fllama/infer", 400),
        ("POST", "/plain/v2/models/llama/infer", 404),
        ("GET", "/plain/v2/models/llama", 404),
        ("POST", "/v2/repository/models/llama/unload", 404),
        ("GET", "/v2/trace/setting", 404),
        ("POST", "/plain/v2/models/bert/infer", 200),
    ] {
        assert_eq!(status(method, path).await, expected, "{method} {path}");
    }
    assert!(upstream.seen.lock().unwrap().iter().all(|seen| !seen.path.contains("llama")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_full_is_passed_over() {
    let (full, free) = (
        Upstream::start(|seen| async move { serves(Seen { path: "/v2/models/full".into(), ..seen }).await }).await,
        Upstream::start(serves).await,
    );
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: oip, endpoints: [{{url: \"{}\"}}, {{url: \"{}\", priority: 1}}]}}]
routes: [{{name: all, backendRefs: [{{name: b}}]}}]
",
        full.url(),
        free.url()
    ))
    .await;
    let answer = gateway.client().post("/v2/models/m/infer", &[], "{}").await;
    assert_eq!((answer.status.as_u16(), full.count(), free.count()), (200, 1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_grpc_are_routed_by_the_model_in_their_message() {
    let (first, second) = (PythonServer::start(SERVICE), PythonServer::start(SERVICE));
    let (key, digest) = new_key();
    let config = format!(
        "{LISTENERS}consumers: [{{name: acme, models: [bert, full, down], keys: [{{sha256: {digest}}}]}}]
authentication: {{apiKey: {{headers: [x-api-key]}}}}
backends:
  - {{name: faulty, protocol: oip-grpc, http2: true, endpoints: [{{url: \"{0}\"}}, {{url: \"{1}\", priority: 1}}]}}
  - {{name: renamed, protocol: oip-grpc, http2: true, model: bert-v3, endpoints: [{{url: \"{0}\"}}]}}
routes:
  - name: renamed
    matches: [{{path: {{prefix: /inference.GRPCInferenceService}}, model: \"b*t\"}}]
    authentication: optional
    backendRefs: [{{name: renamed}}]
  - {{name: others, authentication: optional, backendRefs: [{{name: faulty}}]}}
",
        first.url, second.url
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &config).await;
    let (http, grpc) = (gateway.listener("http").to_string(), gateway.listener("grpc").to_string());
    let port = |service: &PythonServer| service.url.rsplit(':').next().unwrap().to_owned();
    let told = told("open_inference_grpc.py", &gateway, &[&grpc, &key, &port(&first)]).await;
    for name in ["renamed", "allowed"] {
        assert_eq!((&told[name]["model"], &told[name]["asked"]), (&"bert".into(), &"bert-v3".into()), "{}", told[name]);
    }
    assert_eq!((&told["renamed"]["ready"], &told["renamed"]["sound"]), (&true.into(), &true.into()));
    assert_eq!(told["other"]["model"], "resnet");
    assert_eq!(told["forbidden"]["status"], "StatusCode.NOT_FOUND", "{}", told["forbidden"]);
    // Compressed messages are read as others are.
    for coding in ["gzip", "deflate"] {
        let of = |name: &str| &told[&format!("{name} in {coding}")];
        for (name, model, asked) in
            [("renamed", "bert", "bert-v3"), ("allowed", "bert", "bert-v3"), ("other", "resnet", "resnet")]
        {
            let facts = (&of(name)["model"], &of(name)["asked"], &of(name)["sound"]);
            assert_eq!(facts, (&model.into(), &asked.into(), &true.into()), "{coding}: {}", of(name));
        }
        assert_eq!(of("forbidden")["status"], "StatusCode.NOT_FOUND", "{coding}: {}", of("forbidden"));
    }
    assert_eq!(told["health"]["live"], true);
    assert_eq!(told["stream with a rule"]["status"], "StatusCode.UNIMPLEMENTED", "{}", told["stream with a rule"]);
    // The first endpoint has no room: the second one answers.
    for name in ["full", "down"] {
        assert_eq!(
            (&told[name]["model"], &told[name]["port"]),
            (&name.into(), &port(&second).into()),
            "{}",
            told[name]
        );
    }
    assert_eq!(told["failed"]["status"], "StatusCode.INTERNAL");
    let judged = gateway.endpoint(&first.url).await;
    assert_eq!(judged["lastError"]["cause"], "status: 500", "{judged}");
    // Over HTTP too.
    let answer = Client::new(http.parse().unwrap()).post("/v2/models/resnet/infer", &[], "{}").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["model_name"]), (200, &"resnet".into()), "{}", answer.text());
}

/// Body of a call over gRPC with one message, compressed as its flag says.
fn frame(flag: u8, message: &[u8]) -> Vec<u8> {
    [&[flag][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

#[tokio::test]
async fn a_compressed_message_is_read_within_bounds_or_refused() {
    let server = Upstream::fixed(200, "").await;
    let config = format!(
        "{LISTENERS}backends: [{{name: b, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: all, matches: [{{model: bert}}], limits: {{maxBody: 64KiB}}, backendRefs: [{{name: b}}]}}]
",
        server.url()
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &config).await;
    let client = Client::new(gateway.listener("http"));
    let call = async |coding: &str, body: Vec<u8>| {
        let headers = [("content-type", "application/grpc"), ("grpc-encoding", coding)];
        let headers = if coding.is_empty() { &headers[..1] } else { &headers[..] };
        client.post("/inference.GRPCInferenceService/ModelReady", headers, body).await
    };
    let named = b"\x0a\x04bert".to_vec();
    for coding in ["gzip", "deflate"] {
        let sent = encoded(coding, &named);
        assert_eq!(call(coding, frame(1, &sent)).await.status, 200, "{coding}");
        let seen = server.last();
        assert_eq!((&*seen.body, seen.headers.contains_key("grpc-encoding")), (&*frame(0, &named), false), "{coding}");
        // Of some KiB, which decode to a thousand times as much.
        let bomb = encoded(coding, &[&named[..], &[0x12, 0x80, 0x80, 0x80, 0x02], &vec![b'1'; 4 << 20]].concat());
        assert!(bomb.len() < 16 << 10);
        for (status, body) in [("8", bomb), ("3", sent[..sent.len() - 3].to_vec()), ("3", named.clone())] {
            let answer = call(coding, frame(1, &body)).await;
            assert_eq!(answer.header("grpc-status"), status, "{coding}: {}", answer.header("grpc-message"));
            assert!(answer.header("grpc-message").contains("grpc-encoding"), "{}", answer.header("grpc-message"));
        }
    }
    // By the rule of gRPC for a coding that the receiver does not have.
    for (coding, body) in [("snappy", frame(1, &named)), ("", frame(1, &named)), ("gzip, gzip", frame(1, &named))] {
        let answer = call(coding, body).await;
        assert_eq!(
            (answer.header("grpc-status"), answer.header("grpc-accept-encoding")),
            ("12", "identity, deflate, gzip"),
            "{coding}: {}",
            answer.header("grpc-message")
        );
    }
    // A message that is not compressed may name a coding for others of its call.
    assert_eq!(call("snappy", frame(0, &named)).await.status, 200);
    assert_eq!(server.count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_calls_passes_in_both_directions() {
    let service = PythonServer::start(SERVICE);
    let config = format!(
        "{LISTENERS}backends: [{{name: b, protocol: oip-grpc, http2: true, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: all, backendRefs: [{{name: b}}]}}]
",
        service.url
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &config).await;
    let grpc = gateway.listener("grpc").to_string();
    let told = told("open_inference_grpc.py", &gateway, &[&grpc]).await;
    assert_eq!(told["stream"]["models"], json!(["m", "m", "m"]), "{}", told["stream"]);
}

/// Servers of TensorFlow and PyTorch, in the answers of their documents.
async fn serves_others(seen: Seen) -> Option<Reply> {
    let json = [("content-type", "application/json")];
    Some(match (seen.method.as_str(), seen.path.as_str()) {
        ("GET", "/v1/models/half_plus_two") => reply(
            200,
            &json,
            r#"{"model_version_status":[{"version":"1","state":"AVAILABLE","status":{"error_code":"OK","error_message":""}}]}"#,
        ),
        ("GET", "/v1/models/half_plus_two/metadata") => reply(200, &json, r#"{"model_spec":{"name":"half_plus_two"}}"#),
        ("POST", path) if path.ends_with(":predict") => reply(200, &json, r#"{"predictions":[2.5]}"#),
        ("POST", path) if path.ends_with(":classify") => reply(200, &json, r#"{"results":[]}"#),
        ("GET", "/ping") => reply(200, &json, r#"{"status":"Healthy"}"#),
        ("POST", path) if path.starts_with("/predictions/") => reply(200, &json, r#"{"tabby":0.9}"#),
        _ => reply(404, &json, r#"{"error":"Malformed request"}"#),
    })
}

#[tokio::test]
async fn the_path_of_a_deployment_names_a_model_beside_the_body() {
    let upstream = Upstream::fixed(200, "{}").await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, models: [small], keys: [{{sha256: {digest}}}]}}]
backends:
  - {{name: azure, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: plain, endpoints: [{{url: \"{0}\"}}]}}
routes:
  - {{name: plain, matches: [{{path: {{prefix: /plain}}}}], filters: [{{urlRewrite: {{replacePrefix: /}}}}], backendRefs: [{{name: plain}}]}}
  - {{name: azure, matches: [{{path: {{prefix: /openai}}}}], backendRefs: [{{name: azure}}]}}
",
        upstream.url()
    ))
    .await;
    let (client, bearer) = (gateway.client(), format!("Bearer {key}"));
    for prefix in ["", "/plain"] {
        for (deployment, model, expected) in [("small", "small", 200), ("large", "small", 404), ("small", "large", 404)]
        {
            let path = format!("{prefix}/openai/deployments/{deployment}/chat/completions?api-version=2024-10-21");
            let body = json!({"model": model, "messages": []}).to_string();
            let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
            let answer = client.post(&path, &headers, body).await;
            assert_eq!(answer.status, expected, "{path} {model}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_tensorflow_and_pytorch_are_reached_in_their_conventions() {
    let upstream = Upstream::start(serves_others).await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, models: [half_plus_two, densenet], keys: [{{sha256: {digest}}}]}}]
backends:
  - name: tensorflow
    endpoints: [{{url: \"{0}\"}}]
    healthCheck: {{http: {{path: /v1/models/half_plus_two}}, interval: 50ms}}
  - name: torch
    model: densenet161
    endpoints: [{{url: \"{0}\"}}]
    healthCheck: {{http: {{path: /ping}}, interval: 50ms}}
routes:
  - {{name: tensorflow, matches: [{{path: {{prefix: /v1/models}}}}], authentication: optional, backendRefs: [{{name: tensorflow}}]}}
  - {{name: torch, matches: [{{path: {{prefix: /predictions}}}}, {{path: {{exact: /ping}}}}], authentication: optional, backendRefs: [{{name: torch}}]}}
",
        upstream.url()
    ))
    .await;
    let client = gateway.client();
    for (method, path, sent) in [
        ("POST", "/v1/models/half_plus_two:predict", "/v1/models/half_plus_two:predict"),
        ("POST", "/v1/models/half_plus_two/versions/1:predict", "/v1/models/half_plus_two/versions/1:predict"),
        ("POST", "/v1/models/half_plus_two/labels/stable:classify", "/v1/models/half_plus_two/labels/stable:classify"),
        ("GET", "/v1/models/half_plus_two", "/v1/models/half_plus_two"),
        ("GET", "/v1/models/half_plus_two/metadata", "/v1/models/half_plus_two/metadata"),
        ("POST", "/predictions/any", "/predictions/densenet161"),
        ("POST", "/predictions/any/2.0", "/predictions/densenet161/2.0"),
        ("GET", "/ping", "/ping"),
    ] {
        let answer = client.send(client.request(method, path, &[("x-mine", "1")], "{\"instances\":[1]}")).await;
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.text());
        let seen = upstream.seen.lock().unwrap().iter().rfind(|seen| seen.headers.contains_key("x-mine")).cloned();
        assert_eq!(seen.unwrap().path, sent);
    }
    let bearer = format!("Bearer {key}");
    for (path, expected) in [
        ("/v1/models/half_plus_two:predict", 200),
        ("/v1/models/half_plus_two/versions/1:predict", 200),
        ("/v1/models/other:predict", 404),
        ("/v1/models/other/versions/half_plus_two:predict", 404),
        ("/v1/models/other%3Apredict", 400),
        ("/predictions/densenet", 200),
        ("/predictions/other", 404),
    ] {
        let headers = [("authorization", bearer.as_str())];
        let answer = client.post(path, &headers, "{\"instances\":[1]}").await;
        assert_eq!(answer.status, expected, "{path}: {}", answer.text());
    }
    // Calls without a body name their model too.
    for (method, path, expected) in [
        ("GET", "/v1/models/half_plus_two", 200),
        ("GET", "/v1/models/half_plus_two/metadata", 200),
        ("GET", "/v1/models/other", 404),
        ("GET", "/v1/models/%6Fther", 404),
        ("GET", "/v1/models/other/versions/1", 404),
        ("GET", "/v1/models/other/metadata", 404),
        ("DELETE", "/v1/models/other", 404),
        ("POST", "/v1/models/other:predict", 404),
        ("GET", "/predictions/other", 404),
        ("OPTIONS", "/predictions/other/2.0", 404),
        ("GET", "/ping", 200),
    ] {
        let headers = [("authorization", bearer.as_str()), ("x-mine", "2")];
        let answer = client.send(client.request(method, path, &headers, "")).await;
        assert_eq!(answer.status, expected, "{method} {path}: {}", answer.text());
    }
    let passed = upstream.seen.lock().unwrap().clone();
    assert!(!passed.iter().any(|seen| seen.path.contains("other")), "no server hears of another model");
    let refused = client.post("/v1/models/other:predict", &[("authorization", &bearer)], "{}").await;
    assert!(refused.json()["error"].is_string(), "the shape of TensorFlow Serving: {}", refused.text());
}

/// Configuration with servers of both transports, each before callers of the other.
fn bridged(http: &str, grpc: &str) -> String {
    format!(
        "{LISTENERS}backends:
  - {{name: http, protocol: oip, model: theirs, endpoints: [{{url: \"{http}\"}}]}}
  - {{name: grpc, protocol: oip-grpc, http2: true, model: theirs, endpoints: [{{url: \"{grpc}\"}}]}}
  - {{name: plain, protocol: oip-grpc, http2: true, endpoints: [{{url: \"{grpc}\"}}]}}
routes:
  - name: late
    matches: [{{path: {{prefix: /v2}}, headers: [{{name: x-late, exact: \"1\"}}]}}]
    timeouts: {{backendRequest: 1s}}
    retry: {{attempts: 0}}
    backendRefs: [{{name: grpc}}]
  - name: moved
    matches: [{{path: {{prefix: /v2/models/old}}}}]
    filters: [{{urlRewrite: {{replacePrefix: /v2/models/new/versions/4}}}}]
    backendRefs: [{{name: plain}}]
  - {{name: from-http, matches: [{{path: {{prefix: /v2}}}}], backendRefs: [{{name: grpc}}]}}
  - {{name: from-grpc, matches: [{{path: {{prefix: /inference.GRPCInferenceService}}}}], backendRefs: [{{name: http}}]}}
"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_client_reaches_servers_of_the_other_transport() {
    let (http, grpc) = (PythonServer::start("open_inference_http.py"), PythonServer::start(SERVICE));
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &bridged(&http.url, &grpc.url)).await;
    let (to_grpc, to_http) = (gateway.listener("http").to_string(), gateway.listener("grpc").to_string());
    let told = told("open_inference_bridge.py", &gateway, &[&to_grpc, &to_http]).await;
    for way in ["to grpc", "to http"] {
        let of = |what: &str| &told[&format!("{way} {what}")];
        let states = of("states");
        assert_eq!(states["holds"], json!([true, true, true, false]), "{states}");
        let (server, model) = (&of("metadata")["server"], &of("metadata")["model"]);
        assert_eq!((&server["name"], &server["extensions"]), (&"scripted".into(), &json!(["binary_tensor_data"])));
        // The official client over gRPC writes 64-bit numbers as texts.
        let number = |n: i64| if way == "to http" { json!(n.to_string()) } else { json!(n) };
        let tensor = json!({"name": "x", "datatype": "FP32", "shape": [number(-1), number(3)]});
        assert_eq!(
            (&model["name"], &model["inputs"], &model["outputs"]),
            (&"ours".into(), &json!([tensor]), &json!([tensor]))
        );
        assert_eq!(of("every datatype")["wrong"], json!([]), "{}", of("every datatype"));
        let facts = of("facts");
        assert_eq!(
            (&facts["id"], &facts["model"], &facts["version"]),
            (&"id-7".into(), &"ours".into(), &"2".into()),
            "{facts}"
        );
        assert_eq!(facts["outputs"], json!(["b"]), "{facts}");
        assert_eq!(facts["echoed"], json!({"flag": true, "number": -7, "text": "né"}), "{facts}");
        assert_eq!(of("large")["sound"], true);
        let refused = of("unknown model");
        let (status, message) = if way == "to http" {
            ("StatusCode.NOT_FOUND", "no such model: né")
        } else {
            ("404", "no such model: né")
        };
        assert_eq!((&refused["status"], &refused["message"]), (&status.into(), &message.into()), "{refused}");
    }
    // A filter writes another model into the path.
    let moved = Client::new(gateway.listener("http"));
    let answer = moved.post("/v2/models/old/infer", &[], "{\"inputs\":[]}").await.json();
    assert_eq!((&answer["model_version"], &answer["parameters"]["asked"]), (&"4".into(), &"new".into()), "{answer}");
    // Headers that are no metadata end here, and are named.
    let got = told["to grpc headers"]["got"].as_str().unwrap();
    assert!(["x-sent=text", "x-sent-2-bin=b'hi'", "x-sent-3-bin=b'hi'"].iter().all(|sent| got.contains(sent)), "{got}");
    assert!(!["x-sent-bin", "x-sent-4-bin", "x-sent!"].iter().any(|name| got.contains(name)), "{got}");
    let headers = [("x-sent-bin", "hello"), ("x-sent", "né"), ("x-fine-bin", "aGk")];
    let answer = moved.post("/v2/models/ours/infer", &headers, "{\"inputs\":[]}").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-spillway-dropped")), (200, "x-sent-bin, x-sent"));
    assert_eq!(told["to grpc late"]["status"], "504", "{}", told["to grpc late"]);
    assert_eq!(told["to grpc late"]["cancelled"], true, "{}", told["to grpc late"]);
    assert_eq!(told["to http late"]["status"], "StatusCode.DEADLINE_EXCEEDED");
    assert_eq!(told["to http stream"]["status"], "StatusCode.UNIMPLEMENTED", "{}", told["to http stream"]);
    assert!(told["to http stream"]["message"].as_str().unwrap().contains("ModelStreamInfer"));
    assert_eq!(told["to grpc half as json"]["status"], "400");
    for compressed in ["to grpc compressed", "to http in gzip", "to http in deflate"] {
        assert_eq!(told[compressed]["sound"], true, "{compressed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_servers_of_the_other_transport_are_told_and_passed_over() {
    // A server over HTTP without room, and one that answers with no tensors, before callers over gRPC.
    let full = Upstream::start(|_| async { Some(reply(503, &[], "{\"error\":\"full\"}")) }).await;
    let odd = Upstream::start(|seen: Seen| async move {
        Some(match &*seen.path {
            "/v2/models/short/infer" => {
                reply(200, &[], "{\"outputs\":[{\"name\":\"x\",\"shape\":[2],\"datatype\":\"INT8\",\"data\":[1]}]}")
            }
            "/v2/models/failed/infer" => reply(500, &[], "{\"error\":\"it broke\"}"),
            _ => reply(200, &[], "{\"model_name\":\"m\",\"outputs\":[]}"),
        })
    })
    .await;
    let gateway = Gateway::start_in(
        tempfile::tempdir().unwrap(),
        &format!(
            "{LISTENERS}backends: [{{name: b, protocol: oip, endpoints: [{{url: \"{}\"}}, {{url: \"{}\", priority: 1}}]}}]
routes: [{{name: all, backendRefs: [{{name: b}}], retry: {{attempts: 0}}}}]
",
            full.url(),
            odd.url()
        ),
    )
    .await;
    let grpc = gateway.listener("grpc").to_string();
    let told = told("open_inference_bridge.py", &gateway, &["faults", &grpc]).await;
    assert_eq!(told["m"]["outputs"], json!([]), "{}", told["m"]);
    assert!(full.count() > 0);
    assert_eq!(told["short"]["status"], "StatusCode.UNAVAILABLE", "{}", told["short"]);
    assert_eq!(
        (&told["failed"]["status"], &told["failed"]["message"]),
        (&"StatusCode.INTERNAL".into(), &"it broke".into())
    );
    eventually("the answer that was not read is logged", || async {
        let lines = gateway.events("access");
        lines.iter().any(|line| line["errorCode"] == "upstream_answer_unreadable").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_fields_leave_the_binary_data_behind_the_json() {
    let upstream = Upstream::start(serves).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: oip, dropFields: [extra], endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: all, backendRefs: [{{name: b}}]}}]
",
        upstream.url()
    ))
    .await;
    let client = gateway.client();
    let (json, kept) = ("{\"extra\":1,\"inputs\":[]}", "{\"inputs\":[]}");
    // Bytes of a tensor that look like the field.
    for binary in [&b""[..], b"\0\x9f\x92\x96", b"{\"extra\":1}"] {
        let (sent, expected) = ([json.as_bytes(), binary].concat(), [kept.as_bytes(), binary].concat());
        let length = json.len().to_string();
        let headers = [("inference-header-content-length", length.as_str()), ("content-digest", "sha-256=:x:")];
        let answer = client.post("/v2/models/m/infer", &headers, sent).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-spillway-dropped")), (200, "extra"), "{}", answer.text());
        let seen = upstream.last();
        assert_eq!(seen.body, expected);
        assert_eq!(seen.headers["inference-header-content-length"], kept.len().to_string());
        assert_eq!(seen.headers["content-length"], expected.len().to_string());
        assert!(!seen.headers.contains_key("content-digest"));
    }
    // Without JSON there are no fields; a wrong length hides none.
    let before = upstream.count();
    for (length, status) in [("0", 200), ("9999", 400), ("x", 400)] {
        let headers = [("inference-header-content-length", length)];
        let answer = client.post("/v2/models/m/infer", &headers, json).await;
        assert_eq!(answer.status, status, "{length}: {}", answer.text());
    }
    assert_eq!((upstream.count() - before, &upstream.last().body[..]), (1, json.as_bytes()));
}
