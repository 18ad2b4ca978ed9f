//! Limits of a caller: tokens, concurrent requests, budgets.

use bytes::Bytes;
use spillway_tests::{Answer, Client, Gateway, Upstream, eventually, new_key, reply, script, streamed};
use tokio::sync::mpsc;

fn answer_using(prompt: u64, completion: u64) -> String {
    serde_json::json!({
        "id": "c", "object": "chat.completion", "created": 1, "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    })
    .to_string()
}

fn yaml(upstream: &Upstream, digest: &str, limits: &str, more: &str) -> String {
    format!(
        "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], limits: {limits}}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}]
{more}",
        upstream.url()
    )
}

/// Chat with an estimated prompt of 10 tokens.
async fn chat(client: &Client, key: &str, max_tokens: u64, stream: bool) -> Answer {
    let body = serde_json::json!({
        "model": "m", "messages": [{"role": "user", "content": "x".repeat(40)}], "max_tokens": max_tokens, "stream": stream,
    });
    client
        .post("/v1/chat/completions", &[("x-api-key", key), ("content-type", "application/json")], body.to_string())
        .await
}

/// Waits until no request runs: an answer is settled when its last byte is sent.
async fn settled(gateway: &Gateway) {
    gateway.metric_becomes("spillway_requests_in_flight{http_route=\"chat\"}", 0.0).await;
}

fn left(answer: &Answer) -> u64 {
    answer.header("x-ratelimit-remaining-tokens").parse().unwrap_or_else(|_| panic!("{:?}", answer.headers))
}

#[tokio::test]
async fn tokens_are_reserved_by_estimate_and_settled_by_usage() {
    let upstream = Upstream::start(|seen| async move {
        let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let json = [("content-type", "application/json")];
        Some(match body["max_tokens"].as_u64().unwrap() {
            7 => reply(500, &json, r#"{"error":{"message":"no","type":"server_error"}}"#),
            9 => reply(
                200,
                &[("content-type", "text/event-stream")],
                concat!(
                    "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
                    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":20,\"completion_tokens\":30}}\n\n",
                    "data: [DONE]\n\n",
                ),
            ),
            8 => reply(
                200,
                &[("content-type", "text/event-stream")],
                concat!(
                    "data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n",
                    "data: {\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\n",
                    "data: [DONE]\n\n",
                ),
            ),
            _ => reply(200, &json, answer_using(15, 5)),
        })
    })
    .await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&yaml(&upstream, &digest, "{tokens: 1000/h}", "")).await;
    let client = gateway.client();
    let first = chat(&client, &key, 490, false).await;
    assert_eq!((first.status.as_u16(), left(&first)), (200, 500), "10 for the prompt, 490 for the answer");
    assert_eq!(first.header("x-ratelimit-limit-tokens"), "1000");
    assert_eq!(first.header("ratelimit-policy"), "\"tokens\";q=1000;w=3600");
    assert!(first.header("ratelimit").starts_with("\"tokens\";r=500;t="), "{}", first.header("ratelimit"));
    // 20 tokens were used.
    settled(&gateway).await;
    let second = chat(&client, &key, 7, false).await;
    assert_eq!((second.status.as_u16(), left(&second)), (500, 980 - 17));
    // An error of the upstream costs nothing.
    settled(&gateway).await;
    let third = chat(&client, &key, 9, true).await;
    assert_eq!((third.status.as_u16(), left(&third)), (200, 980 - 19));
    settled(&gateway).await;
    // A stream that reports its usage: 50. One that does not: its events, and the estimate of its prompt.
    let fourth = chat(&client, &key, 8, true).await;
    assert_eq!(left(&fourth), 930 - 18);
    settled(&gateway).await;
    let fifth = chat(&client, &key, 100, false).await;
    assert_eq!(left(&fifth), 930 - 12 - 110);
    settled(&gateway).await;
    // More than fits now has to wait; more than ever fits is refused for good.
    let refused = chat(&client, &key, 900, false).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
    assert_eq!(left(&refused), 898);
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!((40..=44).contains(&wait), "12 tokens are missing, each takes 3.6 s: {wait}");
    let never = chat(&client, &key, 991, false).await;
    assert_eq!((never.status.as_u16(), never.json()["error"]["code"].as_str().unwrap()), (400, "tokens_exceed_limit"));
    assert_eq!(upstream.count(), 5);
}

#[tokio::test]
async fn a_stream_that_is_left_costs_what_was_sent() {
    let (parts, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(8);
    let receiver = std::sync::Mutex::new(Some(receiver));
    let upstream = Upstream::start(move |_| {
        let receiver = receiver.lock().unwrap().take();
        async move {
            Some(match receiver {
                Some(receiver) => streamed(&[("content-type", "text/event-stream")], receiver),
                None => reply(200, &[("content-type", "application/json")], answer_using(1, 1)),
            })
        }
    })
    .await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&yaml(&upstream, &digest, "{tokens: 1000/h, concurrency: 1}", "")).await;
    let client = gateway.client();
    let body =
        serde_json::json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(40)}], "stream": true});
    let mut stream = client
        .stream(client.request("POST", "/v1/chat/completions", &[("x-api-key", &key)], body.to_string()))
        .await
        .unwrap();
    let event = Bytes::from("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n");
    for _ in 0..3 {
        parts.send(Ok(event.clone())).await.unwrap();
        stream.part().await.unwrap().unwrap();
    }
    // It runs: another one of this consumer does not.
    let second = chat(&client, &key, 10, false).await;
    assert_eq!(second.status, 429, "{}", second.text());
    assert!(second.text().contains("1 requests at the same time"));
    drop(stream);
    let after = eventually("the request that was left has ended", || async {
        let answer = chat(&client, &key, 10, false).await;
        (answer.status == 200).then_some(answer)
    })
    .await;
    assert_eq!(left(&after), 1000 - 13 - 20, "10 for the prompt, 3 events; then 20 are reserved");
}

#[tokio::test]
async fn a_budget_survives_a_crash_and_money_is_counted_by_prices() {
    let upstream = Upstream::start(|_| async {
        Some(reply(200, &[("content-type", "application/json")], answer_using(600, 400)))
    })
    .await;
    let (key, digest) = new_key();
    let prices = "prices: [{model: m, input: 1.0, output: 2.0}]";
    // 600 x $1 + 400 x $2 for a million: $0.0014 for each.
    let yaml = yaml(&upstream, &digest, "{budget: {tokens: 10000, usd: 0.003, per: day}}", prices);
    let gateway = Gateway::start(&yaml).await;
    assert_eq!(chat(&gateway.client(), &key, 10, false).await.status, 200);
    // Spending is written within half a second.
    tokio::time::sleep(std::time::Duration::from_millis(1200)).await;
    let gateway = gateway.crash_and_restart(&yaml).await;
    let client = gateway.client();
    assert_eq!(chat(&client, &key, 10, false).await.status, 200);
    let refused = chat(&client, &key, 1000, false).await;
    assert_eq!(refused.status, 429, "{}", refused.text());
    assert_eq!(refused.json()["error"]["type"], "insufficient_quota");
    assert_eq!(refused.header("x-should-retry"), "false");
    let series = |name: &str, unit: &str| {
        format!("spillway_budget_{name}{{budget=\"consumer acme\",per=\"day\",unit=\"{unit}\"}}")
    };
    for (name, unit, value) in
        [("spent", "tokens", 2000.0), ("limit", "tokens", 10_000.0), ("spent", "usd", 0.0028), ("limit", "usd", 0.003)]
    {
        gateway.metric_becomes(&series(name, unit), value).await;
    }
    assert!(refused.header("retry-after").parse::<u64>().unwrap() <= 86_400);
    assert_eq!(upstream.count(), 2);
}

#[tokio::test]
async fn consumers_of_a_tenant_share_its_limits_and_its_budget_beside_their_own() {
    let upstream =
        Upstream::start(|_| async { Some(reply(200, &[("content-type", "application/json")], answer_using(60, 40))) })
            .await;
    let keys = [new_key(), new_key(), new_key(), new_key()];
    let digests: Vec<&str> = keys.iter().map(|(_, digest)| digest.as_str()).collect();
    let yaml = format!(
        "consumers:
  - {{name: a, tenant: north, keys: [{{sha256: \"{}\"}}], limits: {{requests: 2/h}}}}
  - {{name: b, tenant: north, keys: [{{sha256: \"{}\"}}]}}
  - {{name: c, tenant: south, keys: [{{sha256: \"{}\"}}]}}
  - {{name: d, tenant: south, keys: [{{sha256: \"{}\"}}]}}
tenants:
  - {{name: north, limits: {{requests: 3/h}}}}
  - {{name: south, limits: {{budget: {{tokens: 250, per: month}}}}}}
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}]
",
        digests[0],
        digests[1],
        digests[2],
        digests[3],
        upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let ask = async |n: usize| chat(&gateway.client(), &keys[n].0, 10, false).await;
    let statuses = [(0, 200), (0, 200), (0, 429), (1, 200), (1, 429)];
    for (n, (caller, status)) in statuses.into_iter().enumerate() {
        let answer = ask(caller).await;
        assert_eq!(answer.status, status, "request {n}: {}", answer.text());
    }
    assert!(ask(1).await.text().contains("for this tenant"), "whose limit it is");
    // 100 tokens each: after two the third would pass 250 by its reservation, and after that none fits.
    for caller in [2, 3] {
        assert_eq!(ask(caller).await.status, 200);
        settled(&gateway).await;
    }
    let refused = chat(&gateway.client(), &keys[2].0, 100, false).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]["code"]), (429, &"insufficient_quota".into()));
    let refused = chat(&gateway.client(), &keys[3].0, 100, false).await;
    assert!(refused.text().contains("the budget of this tenant"), "{}", refused.text());
}

#[tokio::test]
async fn a_prompt_counts_although_its_caller_leaves_before_the_first_byte() {
    let upstream = Upstream::start(|_| std::future::pending()).await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&yaml(&upstream, &digest, "{budget: {tokens: 10000, per: day}}", "")).await;
    for (requests, stream) in [(1, false), (2, true)] {
        let (client, key) = (gateway.client(), key.clone());
        let leaving = tokio::spawn(async move { chat(&client, &key, 50, stream).await });
        eventually("the server works on it", || async { (upstream.count() == requests).then_some(()) }).await;
        leaving.abort();
        settled(&gateway).await;
        // The reservation for the answer is returned; the 10 tokens of the prompt were read.
        let spent = "spillway_budget_spent{budget=\"consumer acme\",per=\"day\",unit=\"tokens\"}";
        gateway.metric_becomes(spent, 10.0 * requests as f64).await;
    }
}

#[tokio::test]
async fn a_budget_on_trial_counts_what_it_would_refuse() {
    let upstream =
        Upstream::start(|_| async { Some(reply(200, &[("content-type", "application/json")], answer_using(60, 40))) })
            .await;
    let (key, digest) = new_key();
    let limits = "{budget: {tokens: 50, per: day, onExceeded: shadow}}";
    let gateway = Gateway::start(&yaml(&upstream, &digest, limits, "")).await;
    for _ in 0..3 {
        assert_eq!(chat(&gateway.client(), &key, 10, false).await.status, 200);
        settled(&gateway).await;
    }
    let series = "spillway_limit_shadow_refusals_total{limit=\"consumer acme/budget/day\"}";
    gateway.metric_becomes(series, 2.0).await;
}

#[tokio::test]
async fn a_limit_on_trial_counts_what_it_would_refuse() {
    let upstream = Upstream::fixed(200, "{}").await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&yaml(&upstream, &digest, "{requests: 1/h, onExceeded: shadow}", "")).await;
    let client = gateway.client();
    for _ in 0..3 {
        assert_eq!(chat(&client, &key, 10, false).await.status, 200);
    }
    let series = "spillway_limit_shadow_refusals_total{limit=\"consumer acme/requests/3600\"}";
    gateway.metric_becomes(series, 2.0).await;
}

#[tokio::test]
async fn the_official_client_meets_the_limits_of_three_consumers() {
    let upstream =
        Upstream::start(|_| async { Some(reply(200, &[("content-type", "application/json")], answer_using(60, 40))) })
            .await;
    let keys = [new_key(), new_key(), new_key()];
    let limits = ["{requests: 2/h}", "{tokens: 1000/h}", "{budget: {tokens: 100, per: month}}"];
    let consumers: String = keys
        .iter()
        .zip(limits)
        .enumerate()
        .map(|(n, ((_, digest), limits))| {
            format!("  - {{name: c{n}, keys: [{{sha256: \"{digest}\"}}], limits: {limits}}}\n")
        })
        .collect();
    let gateway = Gateway::start(&format!(
        "consumers:\n{consumers}backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, backendRefs: [{{name: x}}]}}]
",
        upstream.url()
    ))
    .await;
    script("limits_client.py", &gateway, &keys.each_ref().map(|(key, _)| key.as_str())).await;
}
