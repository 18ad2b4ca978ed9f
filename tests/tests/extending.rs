//! Filters of one's own: the gateway of `plugins/examples`, with the configuration that `docs/extend/filter.md` shows.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{
    Gateway, PATIENCE, Reply, Upstream, binary, digest, eventually, example_binary, head_of_a_request, model, raw,
    reply, repository, streamed,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

fn read(path: &str) -> String {
    std::fs::read_to_string(repository().join(path)).unwrap()
}

/// Gateway of the example with these servers for conversations and files.
async fn start(fleet: &Upstream, files: &Upstream) -> Gateway {
    start_with_review(fleet, files, &Upstream::nobody().await).await
}

/// As [`start`], with a server that gets copies.
async fn start_with_review(fleet: &Upstream, files: &Upstream, review: &str) -> Gateway {
    let mut yaml = read("plugins/examples/gateway.yaml").replace("127.0.0.1:8080", "127.0.0.1:0");
    for (port, url) in [(9001, fleet.url()), (9002, files.url()), (9003, review.to_owned())] {
        yaml = yaml.replace(&format!("http://127.0.0.1:{port}"), &url);
    }
    Gateway::start_example(tempfile::tempdir().unwrap(), &yaml).await
}

const JSON: [(&str, &str); 1] = [("content-type", "application/json")];

fn conversation(messages: usize) -> String {
    json!({"model": "m", "messages": vec![json!({"role": "user", "content": "hi"}); messages]}).to_string()
}

/// Server that answers conversations.
async fn fleet() -> Upstream {
    let answer = json!({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []});
    Upstream::start(move |_| {
        let answer = reply(200, &JSON, answer.to_string());
        async move { Some(answer) }
    })
    .await
}

#[test]
fn the_page_shows_the_configuration_and_the_program_of_the_example() {
    let page = read("docs/extend/filter.md");
    for path in ["plugins/examples/gateway.yaml", "plugins/examples/src/main.rs"] {
        let text = read(path);
        assert!(page.contains(&text), "docs/extend/filter.md does not show {path}:\n{text}");
    }
}

#[tokio::test]
async fn filters_of_a_user_decide_on_requests_and_change_answers() {
    let (fleet, files) = (fleet().await, Upstream::digest().await);
    let gateway = start(&fleet, &files).await;
    let client = gateway.client();
    let answer = client.post("/v1/chat/completions", &JSON, conversation(2)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("server-timing").starts_with("gateway;dur="));
    assert_eq!(fleet.count(), 1);

    let answer = client.post("/v1/chat/completions", &JSON, conversation(3)).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    let error: Value = answer.json();
    assert_eq!((&error["error"]["code"], &error["error"]["param"]), (&json!("too_many_messages"), &json!("messages")));
    assert!(answer.header("server-timing").starts_with("gateway;dur="), "refusals are answers as well");
    assert_eq!(fleet.count(), 1, "what a filter refuses reaches no server");
    let refused = "spillway_filter_refusals_total{http_route=\"chat\",filter=\"messageLimit\"}";
    gateway.metric_becomes(refused, 1.0).await;
}

const EVENT: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"}}]}\n\n";
const DONE: &str = "data: [DONE]\n\n";

/// Two events, the second of them in two parts, and the last. There is a pause behind each part.
fn slow_stream() -> Reply {
    let (sender, parts) = mpsc::channel(1);
    tokio::spawn(async move {
        for part in [EVENT, &EVENT[..9], &EVENT[9..], DONE] {
            let _ = sender.send(Ok(Bytes::from(part))).await;
            tokio::time::sleep(Duration::from_millis(400)).await;
        }
    });
    streamed(&[("content-type", "text/event-stream")], parts)
}

async fn paused(gateway: &Gateway) -> Value {
    eventually("the pause is logged", || async { gateway.events("answer_paused").first().cloned() }).await
}

#[tokio::test]
async fn a_filter_of_a_user_follows_the_events_of_an_answer_to_its_end() {
    // The first attempt is retried: what came before the answer is not shown.
    let tries = Arc::new(AtomicUsize::new(0));
    let fleet = Upstream::start(move |_| {
        let answers = tries.fetch_add(1, Ordering::SeqCst) > 0;
        async move { answers.then(slow_stream) }
    })
    .await;
    let gateway = start(&fleet, &Upstream::digest().await).await;
    let answer = gateway.client().post("/v1/chat/completions", &JSON, conversation(1)).await;
    assert_eq!((answer.text(), fleet.count()), ([EVENT, EVENT, DONE].concat(), 2));
    let told = paused(&gateway).await;
    // Both parts of the second event came after a pause.
    assert!(told["pause"].as_f64().unwrap() >= 0.7, "{told}");
    assert_eq!((&told["events"], &told["bytes"]), (&json!(3), &json!(answer.text().len())), "{told}");
    assert_eq!((&told["served_by"], &told["whole"]), (&json!("fleet"), &json!(true)), "{told}");
    assert_eq!(gateway.events("answer_paused").len(), 1);
}

#[tokio::test]
async fn a_filter_of_a_user_learns_that_an_answer_was_cut() {
    let fleet = Upstream::start(|_| async {
        let (sender, parts) = mpsc::channel(1);
        tokio::spawn(async move {
            for part in [Ok(Bytes::from(EVENT)), Ok(Bytes::from(EVENT)), Err(std::io::Error::other("cut"))] {
                let _ = sender.send(part).await;
                tokio::time::sleep(Duration::from_millis(400)).await;
            }
        });
        Some(streamed(&[("content-type", "text/event-stream")], parts))
    })
    .await;
    let gateway = start(&fleet, &Upstream::digest().await).await;
    let answer = gateway.client().post("/v1/chat/completions", &JSON, conversation(1)).await;
    assert!(answer.text().contains("upstream_reset"), "{}", answer.text());
    let told = paused(&gateway).await;
    assert_eq!((&told["events"], &told["whole"]), (&json!(3), &json!(false)), "the error event is the third: {told}");
}

#[tokio::test]
async fn a_filter_of_a_user_follows_the_answer_of_a_built_in_model() {
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
models: [{{name: demo, source: {model:?}, contextLength: 256}}]
routes: [{{backendRefs: [{{model: demo}}], filters: [{{answerTiming: {{longestPause: 0s}}}}]}}]
",
        model = model()
    );
    let gateway = Gateway::start_example(tempfile::tempdir().unwrap(), &yaml).await;
    let body =
        json!({"model": "demo", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "stream": true});
    let answer = gateway.client().post("/v1/chat/completions", &JSON, body.to_string()).await;
    assert!(answer.header("server-timing").starts_with("gateway;dur="), "{}", answer.text());
    let told = paused(&gateway).await;
    let events = answer.text().matches("data: ").count();
    assert_eq!((&told["events"], &told["served_by"]), (&json!(events), &json!("builtin/demo")), "{told}");
}

#[tokio::test]
async fn a_filter_of_a_user_refuses_a_body_that_streams_through() {
    let (fleet, files) = (fleet().await, Upstream::digest().await);
    let gateway = start(&fleet, &files).await;
    let client = gateway.client();
    let parts = |parts: &[&'static str]| parts.iter().map(|part| Bytes::from_static(part.as_bytes())).collect();
    let answer = client.send(client.chunked("/files", &[], parts(&["%P", "DF-1.7 and more"]))).await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(b"%PDF-1.7 and more")));
    let answer = client.send(client.chunked("/files", &[], parts(&["MZ", "and more"]))).await;
    assert_eq!(answer.status, 415, "{}", answer.text());
    assert_eq!(answer.json()["code"], "upload_kind_not_allowed");
    let answer = client.post("/files", &[], "GIF not").await;
    assert_eq!(answer.status, 415, "{}", answer.text());
    assert_eq!(files.count(), 1, "no server takes a part for a whole body");
    gateway.metric_becomes("spillway_filter_refusals_total{http_route=\"files\",filter=\"uploadKind\"}", 2.0).await;
}

/// A server that answers before it has read the body: what the filter refuses then ends the answer, and is no fault of the
/// server.
#[tokio::test]
async fn a_body_that_a_filter_refuses_behind_the_head_of_the_answer_is_not_blamed_on_the_server() {
    const EARLY: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nearly\r\n";
    let url = raw(|mut stream| async move {
        head_of_a_request(&mut stream).await;
        let _ = stream.write_all(EARLY.as_bytes()).await;
        let _ = stream.read_to_end(&mut Vec::new()).await;
    })
    .await;
    let yaml = read("plugins/examples/gateway.yaml")
        .replace("127.0.0.1:8080", "127.0.0.1:0")
        .replace("http://127.0.0.1:9002", &url);
    let gateway = Gateway::start_example(tempfile::tempdir().unwrap(), &yaml).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /files HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\n\r\n";
    client.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"5\r\nearly\r\n") {
        assert!(client.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    client.write_all(b"MZ other").await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, client.read_to_end(&mut rest)).await.expect("the connection ends");
    assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    gateway.metric_becomes("spillway_filter_refusals_total{http_route=\"files\",filter=\"uploadKind\"}", 1.0).await;
    let end = |end: &str| {
        format!("spillway_endpoint_attempts_total{{backend=\"files\",endpoint=\"{url}\",outcome=\"{end}\"}}")
    };
    gateway.metric_becomes(&end("given_up"), 1.0).await;
    gateway.metric_becomes(&end("failed"), 0.0).await;
}

#[tokio::test]
async fn a_filter_of_a_user_has_limits_and_copies_and_still_decides() {
    let (files, review) = (Upstream::digest().await, Upstream::digest().await);
    let gateway = start_with_review(&fleet().await, &files, &review.url()).await;
    let client = gateway.client();
    let status = async |agreed: &[(&str, &str)]| client.post("/trial", agreed, "a").await.status.as_u16();
    assert_eq!(status(&[("x-trial", "share")]).await, 200);
    assert_eq!(status(&[("x-trial", "private")]).await, 200);
    assert_eq!(status(&[]).await, 403, "the filter decides on what its limit allows");
    let answer = client.post("/trial", &[], "a").await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["code"]),
        (429, &json!("rate_limit_exceeded")),
        "the limit is first"
    );
    assert_eq!(files.count(), 2);
    eventually("the copy arrives", || async { (review.count() == 1).then_some(()) }).await;
    gateway.metric_becomes("spillway_mirrors_total{http_route=\"trial\",outcome=\"answered\"}", 1.0).await;
    assert_eq!(review.last().headers["x-trial"], "share");
}

#[tokio::test]
async fn filters_of_a_user_are_checked_reloaded_and_shown_in_the_schema() {
    let (fleet, files) = (fleet().await, Upstream::digest().await);
    let gateway = start(&fleet, &files).await;
    let written = std::fs::read_to_string(gateway.config()).unwrap();

    std::fs::write(gateway.config(), written.replace("maxMessages: 2", "maxMessages: 3")).unwrap();
    let event = gateway.reloads(0).await;
    assert_eq!(event["event"], "config_reloaded", "{event}");
    let answer = gateway.client().post("/v1/chat/completions", &JSON, conversation(3)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());

    std::fs::write(gateway.config(), written.replace("\"GIF8\"", "\"\"")).unwrap();
    let event = gateway.reloads(1).await;
    assert_eq!(event["event"], "config_rejected", "{event}");
    assert!(event["reason"].as_str().unwrap().contains("expected at least one beginning"), "{event}");

    let check = |program: std::path::PathBuf| {
        let out =
            Command::new(program).args(["check", "spillway.yaml"]).current_dir(gateway.folder()).output().unwrap();
        let said = [out.stdout, out.stderr].concat();
        (out.status.success(), String::from_utf8_lossy(&said).into_owned())
    };
    let (good, said) = check(example_binary());
    assert!(!good && said.contains("expected at least one beginning"), "{said}");
    std::fs::write(gateway.config(), &written).unwrap();
    let (good, said) = check(example_binary());
    assert!(good && said.contains("ok (0 warnings)"), "{said}");
    std::fs::write(gateway.config(), written.replace("copyTo: review", "copyTo: nobody")).unwrap();
    let (good, said) = check(example_binary());
    assert!(!good && said.contains("route `trial`, filter `trial`: unknown backend `nobody`"), "{said}");
    std::fs::write(gateway.config(), &written).unwrap();
    let (good, said) = check(binary());
    assert!(!good && said.contains("answerTiming"), "spillway itself knows no such filter: {said}");

    let schema = Command::new(example_binary()).arg("schema").output().unwrap();
    let schema = String::from_utf8(schema.stdout).unwrap();
    assert!(schema.contains("Most messages of a conversation.") && schema.contains("\"rateLimit\""));
}
