//! Vectors, the older completions and counts of tokens between APIs: official clients before a real server of the other API, which is
//! a second gateway with built-in models, and scripted servers for the forms that it does not have.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use spillway_tests::{Gateway, Upstream, asked, eventually, head_of_a_request, minilm, model, raw, reply, script};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test(flavor = "multi_thread")]
async fn official_clients_before_servers_of_other_apis() {
    let server = Gateway::start(&format!(
        "models:
  - {{name: smollm2, source: \"{}\", contextLength: 256, maxQueueWait: 60s}}
  - {{name: minilm, source: \"{}\", task: embedding, maxQueueWait: 60s}}
routes: [{{backendRefs: [{{model: smollm2}}, {{model: minilm}}]}}]
",
        model().display(),
        minilm().display()
    ))
    .await;
    let vllm = Upstream::start(|_| async {
        Some(reply(200, &[JSON], "{\"count\":7,\"max_model_len\":99,\"tokens\":[1,2,3,4,5,6,7]}"))
    })
    .await;
    let url = format!("http://{}", server.address);
    let (mut backends, mut routes) = (String::new(), String::new());
    for (name, protocol, url, further) in [
        ("openai", "openai", &*url, ""),
        ("anthropic", "anthropic", &*url, ""),
        ("chat", "openai", &*url, ", apis: [chat]"),
        ("vllm", "openai", &vllm.url(), ", apis: [chat, responses, tokenize], model: theirs"),
    ] {
        backends += &format!("  - {{name: {name}, protocol: {protocol}, endpoints: [{{url: \"{url}\"}}]{further}}}\n");
        let matches = format!("[{{headers: [{{name: x-to, exact: {name}}}]}}]");
        routes += &format!("  - {{name: {name}, matches: {matches}, backendRefs: [{{name: {name}}}]}}\n");
    }
    let gateway = Gateway::start(&format!("backends:\n{backends}routes:\n{routes}")).await;
    let lines = script("translated_calls.py", &gateway, &[&url]).await;
    let told: BTreeMap<String, Value> =
        lines.into_iter().map(|line| (line["name"].as_str().unwrap().to_owned(), line)).collect();
    let embed = &told["embed"];
    assert_eq!((&embed["same"], &embed["model"]), (&json!(true), &json!("minilm")), "{embed}");
    assert_eq!(embed["tokens"][0], embed["tokens"][1], "{embed}");
    assert_eq!(told["embeddings"]["same"], true);
    let refused = &told["embed refused"];
    assert_eq!(refused["status"], 400, "{refused}");
    assert!(refused["message"].as_str().unwrap().contains("options.num_ctx"), "{refused}");

    let completions = &told["completions"];
    assert_eq!(
        (&completions["same"], &completions["object"]),
        (&json!(true), &json!("text_completion")),
        "{completions}"
    );
    assert_eq!(completions["reasons"][0], completions["reasons"][1], "{completions}");
    assert_eq!(completions["usage"], json!([completions["own"], completions["own"]]), "{completions}");
    let refused = &told["completions refused"];
    assert_eq!(
        (&refused["echo"]["param"], &refused["tokens"]["param"]),
        (&json!("echo"), &json!("prompt")),
        "{refused}"
    );

    let by_chat = &told["completions by chat"];
    let one_and_same = |facts: &Value| facts.as_array().unwrap().windows(2).all(|pair| pair[0] == pair[1]);
    assert_eq!((&by_chat["own"], &by_chat["own"]), (&by_chat["streamed"], &by_chat["whole"]), "{by_chat}");
    assert!(one_and_same(&by_chat["reasons"]) && one_and_same(&by_chat["usage"]), "{by_chat}");
    assert_eq!(by_chat["kinds"], json!(["text_completion", "text_completion"]), "{by_chat}");
    let refused = &told["completions by chat refused"]["params"];
    assert_eq!(refused, &json!(["echo", "suffix", "best_of", "logprobs"]));

    for counts in [&told["counts of messages"]["counts"], &told["counts of responses"]["counts"]] {
        assert!(counts[0].as_u64() > Some(0) && counts[0] == counts[1], "{counts}");
    }
    assert_eq!(
        (&told["counts refused"]["status"], &told["counts refused"]["type"]),
        (&json!(404), &json!("not_found_error"))
    );
    assert_eq!(told["counts by vllm"]["count"], 7);
    let seen = vllm.last();
    assert_eq!((seen.path.as_str(), &asked(&seen)["model"]), ("/tokenize", &json!("theirs")));
}

#[tokio::test]
async fn a_count_is_that_of_the_server_or_none() {
    // llama.cpp answers so to a conversation, which it does not render.
    let server = Upstream::start(|_| async { Some(reply(200, &[JSON], "{\"tokens\":[]}")) }).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: openai, apis: [chat, tokenize], callerCredentials: pass, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: b}}]}}]
",
        server.url()
    ))
    .await;
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let headers = [JSON, ("anthropic-version", "2023-06-01"), ("x-api-key", "the callers")];
    let answer = gateway.client().post("/v1/messages/count_tokens", &headers, body).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["type"]),
        (502, &json!("api_error")),
        "{}",
        answer.text()
    );
    let seen = server.last();
    assert_eq!(seen.headers["authorization"], "Bearer the callers");
    assert!(!seen.headers.contains_key("x-api-key") && !seen.headers.contains_key("anthropic-version"));
}

#[tokio::test]
async fn an_error_in_place_of_an_answer_has_its_own_status_and_message() {
    let server = Upstream::start(|seen| async move {
        let status = seen.headers["x-status"].to_str().unwrap().parse().unwrap();
        Some(reply(status, &[JSON], r#"{"error":{"message":"bad key upstream-secret","code":400}}"#))
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:
  - name: b
    protocol: openai
    apis: [chat, tokenize]
    credentials: {{bearer: {{env: TEST_SECRET}}}}
    endpoints: [{{url: \"{}\"}}]
routes: [{{backendRefs: [{{name: b}}], retry: {{attempts: 0}}}}]
",
        server.url()
    ))
    .await;
    let count = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    for (path, body, pointer) in [
        ("/api/embed", json!({"model": "m", "input": "a"}), "/error"),
        ("/v1/messages/count_tokens", count, "/error/message"),
    ] {
        // The error of a redirection is that of a server that cannot be followed.
        for (status, told) in [("200", 400), ("300", 300)] {
            let headers = [JSON, ("anthropic-version", "2023-06-01"), ("x-status", status)];
            let answer = gateway.client().post(path, &headers, body.to_string()).await;
            let text = answer.text();
            assert!(!text.contains("upstream-secret") && text.contains("***"), "{path} {status}: {text}");
            if status == "200" {
                assert_eq!(answer.status.as_u16(), told, "{path}: {text}");
                assert_eq!(answer.json().pointer(pointer).unwrap(), "bad key ***************", "{path}: {text}");
            }
        }
    }
    let line = eventually("the request is logged", || async { gateway.events("access").first().cloned() }).await;
    assert_eq!(line["errorCode"], "upstream_error", "{line}");
}

#[tokio::test]
async fn early_hints_of_a_server_of_another_api_do_not_pass() {
    let upstream = raw(|mut stream| async move {
        head_of_a_request(&mut stream).await;
        let body = r#"{"data":[{"embedding":[1]}]}"#;
        let answer = format!(
            "HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{upstream}\"}}]}}]\nroutes: [{{backendRefs: [{{name: b}}]}}]\n"
    ))
    .await;
    let asked = r#"{"model":"m","input":"a"}"#;
    for (path, hints) in [("/v1/embeddings", 1), ("/api/embed", 0)] {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{asked}",
            asked.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.matches("HTTP/1.1 103 ").count(), hints, "{path}: {answer}");
        assert!(answer.contains("HTTP/1.1 200 OK") && answer.contains("[1]"), "{path}: {answer}");
    }
}
