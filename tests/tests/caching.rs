//! Filter `cache`: answers that are given again, to whom, and when not.

use std::time::Duration;

use serde_json::{Value, json};
use spillway_tests::{Answer, Gateway, Reply, Seen, Upstream, eventually, new_key, reply};

const JSON: (&str, &str) = ("content-type", "application/json");

/// Server that counts its answers and says what it was asked, whole or as a stream.
async fn counting(seen: Seen) -> Option<Reply> {
    let asked: Value = serde_json::from_slice(&seen.body).unwrap();
    let said = asked["messages"][0]["content"].as_str().unwrap_or_default();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8});
    if asked["stream"] == true {
        let chunk = |delta: Value, reason: Value| {
            format!(
                "data: {}\n\n",
                json!({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
            )
        };
        let text = chunk(json!({"content": said}), Value::Null) + &chunk(json!({}), "stop".into()) + "data: [DONE]\n\n";
        return Some(reply(200, &[("content-type", "text/event-stream")], text));
    }
    let choice = json!({"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"});
    Some(reply(200, &[JSON], json!({"id": "c", "model": "m", "choices": [choice], "usage": usage}).to_string()))
}

fn yaml(upstream: &Upstream, consumers: &str, filters: &str) -> String {
    format!(
        "{consumers}backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, filters: [{filters}], backendRefs: [{{name: b}}]}}]
",
        upstream.url()
    )
}

fn body(text: &str, is_stream: bool) -> String {
    json!({"model": "m", "messages": [{"role": "user", "content": text}], "stream": is_stream}).to_string()
}

async fn ask(gateway: &Gateway, headers: &[(&str, &str)], body: String) -> Answer {
    let headers = [&[JSON], headers].concat();
    gateway.client().post("/v1/chat/completions", &headers, body).await
}

#[tokio::test]
async fn an_answer_is_given_again_whole_or_streamed_and_costs_nothing() {
    let upstream = Upstream::start(counting).await;
    let gateway = Gateway::start(&yaml(&upstream, "", "{cache: {exact: true}}")).await;
    for (n, is_stream) in [false, true].into_iter().enumerate() {
        let first = ask(&gateway, &[], body("hi", is_stream)).await;
        let again = ask(&gateway, &[], body("hi", is_stream)).await;
        assert_eq!((first.header("x-spillway-cache"), again.header("x-spillway-cache")), ("miss", "hit"));
        assert_eq!(first.text(), again.text());
        assert_eq!(first.header("content-type"), again.header("content-type"));
        assert_eq!(again.header("age"), "0");
        assert_eq!(upstream.count(), n + 1);
    }
    let fresh = ask(&gateway, &[("cache-control", "no-cache")], body("hi", false)).await;
    assert_eq!((fresh.header("x-spillway-cache"), upstream.count()), ("miss", 3));
    let unkept = ask(&gateway, &[("cache-control", "no-store")], body("new", false)).await;
    assert_eq!((unkept.header("x-spillway-cache"), upstream.count()), ("", 4));
    assert_eq!(ask(&gateway, &[], body("new", false)).await.header("x-spillway-cache"), "miss");
    let lines = eventually("lines", || async { Some(gateway.events("access")).filter(|lines| lines.len() == 7) }).await;
    assert_eq!((&lines[0]["completionTokens"], &lines[1]["completionTokens"]), (&json!(5), &Value::Null), "{lines:?}");
    for (result, count) in [("hit", 2.0), ("miss", 4.0), ("bypassed", 1.0)] {
        let series = format!("spillway_filter_cache_requests_total{{http_route=\"r\",result=\"{result}\"}}");
        gateway.metric_becomes(&series, count).await;
    }
    // The stream of this server says no usage.
    for (kind, count) in [("prompt", 3.0), ("completion", 5.0)] {
        let series = format!("spillway_filter_cache_saved_tokens_total{{http_route=\"r\",kind=\"{kind}\"}}");
        gateway.metric_becomes(&series, count).await;
    }
}

#[tokio::test]
async fn callers_do_not_share_what_the_file_does_not_say() {
    let upstream = Upstream::start(counting).await;
    let keys: Vec<(String, String)> = (0..3).map(|_| new_key()).collect();
    let consumer =
        |n: usize, tenant: &str| format!("{{name: c{n}, tenant: {tenant}, keys: [{{sha256: {}}}]}}", keys[n].1);
    let consumers = format!("consumers: [{}, {}, {}]\n", consumer(0, "t"), consumer(1, "t"), consumer(2, "u"));
    for (scope, answered) in [("consumer", 3), ("tenant", 2), ("route", 1)] {
        let filter = format!("{{cache: {{exact: true, scope: {scope}}}}}");
        let gateway = Gateway::start(&yaml(&upstream, &consumers, &filter)).await;
        let before = upstream.count();
        for (key, _) in keys.iter().chain(&keys) {
            let authorization = format!("Bearer {key}");
            let answer = ask(&gateway, &[("authorization", &authorization)], body(scope, false)).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        assert_eq!(upstream.count() - before, answered, "{scope}");
    }
}

#[tokio::test]
async fn requests_that_come_together_ask_the_server_once() {
    let upstream = Upstream::start(counting).await;
    let gateway = Gateway::start(&yaml(&upstream, "", "{cache: {exact: true}}")).await;
    let answers = futures::future::join_all((0..20).map(|_| ask(&gateway, &[], body("together", false)))).await;
    assert!(answers.iter().all(|answer| answer.status == 200 && answer.text() == answers[0].text()));
    assert_eq!(upstream.count(), 1);
}

#[tokio::test]
async fn what_a_guard_masks_is_not_kept_for_another() {
    let upstream = Upstream::start(counting).await;
    let filters = "{guard: {patterns: [{kind: card, action: mask}]}}, {cache: {exact: true}}";
    let gateway = Gateway::start(&yaml(&upstream, "", filters)).await;
    for is_stream in [false, true] {
        let before = upstream.count();
        for (card, result) in [("4111 1111 1111 1111", "miss"), ("5500 0000 0000 0004", "hit")] {
            let answer = ask(&gateway, &[], body(&format!("Charge {card}."), is_stream)).await;
            let text = answer.text();
            assert_eq!(answer.header("x-spillway-cache"), result);
            assert!(text.contains("Charge") && text.contains(&format!(" {card}.")), "{text}");
        }
        assert_eq!(upstream.count() - before, 1, "the server has read the same prompt");
        assert!(!String::from_utf8_lossy(&upstream.last().body).contains("1111"));
    }
}

#[tokio::test]
async fn an_operator_counts_and_forgets_the_answers_of_a_route() {
    let upstream = Upstream::start(counting).await;
    let gateway = Gateway::start(&yaml(&upstream, "", "{cache: {exact: true}}")).await;
    let admin = spillway_tests::Client::new(gateway.admin);
    for text in ["a", "b", "a"] {
        ask(&gateway, &[], body(text, false)).await;
    }
    let purge = async |query: &str, headers: &[(&str, &str)]| {
        admin.post(&format!("/api/caches/r/purge{query}"), headers, "").await
    };
    let change = [("x-spillway-admin", "1")];
    assert_eq!(purge("", &[]).await.status, 403);
    assert_eq!(purge("?dryrun=true", &change).await.status, 400, "a mistake forgets nothing");
    let counted = purge("?dryRun=true", &change).await.json();
    assert_eq!((&counted["dryRun"], &counted["answers"]), (&json!(true), &json!(2)), "{counted}");
    assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "hit");
    let purged = purge("", &change).await.json();
    assert_eq!((&purged["answers"], &purged["bytes"]), (&json!(2), &counted["bytes"]), "{purged}");
    assert_eq!(ask(&gateway, &[], body("a", false)).await.header("x-spillway-cache"), "miss");
    assert_eq!(admin.post("/api/caches/nothing/purge", &change, "").await.status, 404);
}

#[tokio::test]
async fn a_question_in_other_words_gets_the_answer_of_its_caller_alone() {
    let upstream = Upstream::start(counting).await;
    let keys: Vec<(String, String)> = (0..2).map(|_| new_key()).collect();
    let consumer = |n: usize| format!("{{name: c{n}, tenant: t, keys: [{{sha256: {}}}]}}", keys[n].1);
    let head = format!(
        "models: [{{name: minilm, source: \"{}\"}}]\nconsumers: [{}, {}]\n",
        spillway_tests::minilm().display(),
        consumer(0),
        consumer(1)
    );
    let filter = "{cache: {exact: true, semantic: {model: minilm, threshold: 0.85, timeout: 10s}}}";
    let gateway = Gateway::start(&yaml(&upstream, &head, filter)).await;
    let asks = async |n: usize, text: &str| {
        ask(&gateway, &[("authorization", &format!("Bearer {}", keys[n].0))], body(text, false)).await
    };
    let first = asks(0, "How do I reset my password?").await;
    assert_eq!(first.header("x-spillway-cache"), "miss", "{}", first.text());
    let near = asks(0, "How can I reset my password?").await;
    let said = near.header("x-spillway-cache").to_owned();
    assert!(said.starts_with("semantic; similarity=0.") && near.text() == first.text(), "{said}: {}", near.text());
    assert_eq!(asks(0, "What is the weather in Paris?").await.header("x-spillway-cache"), "miss");
    assert_eq!(asks(1, "How can I reset my password?").await.header("x-spillway-cache"), "miss");
    assert_eq!(upstream.count(), 3);
}
