//! What the admin address shows of a running gateway for its dashboard: traffic as it was, requests as they end, edits with
//! what they changed, consumers with what they have used, and chats of an operator with a route.

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{Client, Gateway, Stream, Upstream, eventually, model, new_key, reply, streamed, whole};
use tokio::sync::mpsc;

const CHANGE: (&str, &str) = ("x-spillway-admin", "1");

async fn shown(gateway: &Gateway, path: &str) -> Value {
    let answer = Client::new(gateway.admin).get(path).await;
    assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    answer.json()
}

fn sum(counts: &Value) -> u64 {
    counts.as_array().unwrap().iter().map(|count| count.as_u64().unwrap()).sum()
}

/// Answers chats with usage, and `/fail` with 500.
async fn server() -> Upstream {
    Upstream::start(|seen| async move {
        if seen.path.contains("fail") {
            return Some(reply(500, &[], "no"));
        }
        let answer = json!({
            "id": "c", "object": "chat.completion", "created": 1, "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
        });
        Some(reply(200, &[("content-type", "application/json")], answer.to_string()))
    })
    .await
}

fn two_routes(server: &Upstream, more: &str) -> String {
    format!(
        "backends:
  - {{name: x, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: plain, endpoints: [{{url: \"{0}\"}}]}}
routes:
  - {{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}
  - {{name: rest, backendRefs: [{{name: plain}}]}}
{more}",
        server.url()
    )
}

#[tokio::test]
async fn traffic_is_shown_as_it_was_for_all_and_for_each_route() {
    let server = server().await;
    let gateway = Gateway::start(&two_routes(&server, "")).await;
    let client = gateway.client();
    for _ in 0..3 {
        assert_eq!(client.chat("m", &[]).await.status, 200);
        assert_eq!(client.get("/fail").await.status, 500);
    }
    let history = eventually("the requests are in the history", || async {
        let history = shown(&gateway, "/api/history").await;
        (sum(&history["requests"]) == 6).then_some(history)
    })
    .await;
    assert_eq!((&history["stepSeconds"], history["requests"].as_array().unwrap().len()), (&json!(5), 120));
    assert_eq!((sum(&history["errors"]), sum(&history["inputTokens"]), sum(&history["outputTokens"])), (3, 15, 21));
    let bounds = history["latencyBounds"].as_array().unwrap().len();
    let rows = history["latency"].as_array().unwrap();
    assert!(rows.len() == 120 && rows.iter().all(|row| row.as_array().unwrap().len() == bounds + 1));
    assert_eq!(rows.iter().map(sum).sum::<u64>(), 6);
    let rows = history["firstToken"].as_array().unwrap();
    assert_eq!((rows.len(), rows.iter().map(sum).sum::<u64>()), (120, 3));
    assert_eq!(history["routes"], json!(["chat", "rest"]));
    for (window, step, steps) in [("3h", 60, 180), ("24h", 300, 288)] {
        let of_chat = shown(&gateway, &format!("/api/history?window={window}&route=chat")).await;
        assert_eq!(of_chat["stepSeconds"], step);
        assert_eq!(of_chat["requests"].as_array().unwrap().len(), steps);
        assert_eq!((sum(&of_chat["requests"]), sum(&of_chat["errors"])), (3, 0));
        assert_eq!((&of_chat["inputTokens"], &of_chat["firstToken"]), (&Value::Null, &Value::Null));
    }
    let admin = Client::new(gateway.admin);
    assert_eq!(admin.get("/api/history?window=1h").await.status, 400);
    assert_eq!(admin.get("/api/history?route=nobody").await.status, 404);

    let overview = shown(&gateway, "/api/overview").await;
    assert_eq!(
        (&overview["state"], &overview["generation"], &overview["inFlight"]),
        (&json!("ready"), &json!(1), &json!(0))
    );
    assert_eq!(overview["listeners"][0]["address"], gateway.listener("127.0.0.1:0").to_string());
    assert_eq!((&overview["listeners"][0]["tls"], &overview["playground"]), (&json!(false), &json!(true)));
    let mut names: Vec<_> = overview["routes"].as_array().unwrap().iter().map(|route| route["name"].clone()).collect();
    names.sort_by_key(Value::to_string);
    assert_eq!(names, ["chat", "rest"]);
}

#[tokio::test]
async fn refusals_and_spills_are_told_by_their_reasons() {
    let server = server().await;
    let yaml = two_routes(&server, "")
        .replace("- {name: rest,", "- {name: rest, filters: [{clientAddress: {deny: [127.0.0.0/8]}}],");
    let gateway = Gateway::start(&yaml).await;
    assert_eq!(gateway.client().get("/x").await.status, 403);
    let admin = Client::new(gateway.admin);
    let history = eventually("the refusal is in the history", || async {
        let answer = admin.get("/api/history?window=3h&route=rest").await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    assert_eq!(sum(&history["refused"]["clientAddress"]), 1, "{}", history["refused"]);
    assert_eq!((sum(&history["requests"]), sum(&history["errors"])), (1, 0));
}

#[tokio::test]
async fn built_in_models_are_shown_with_their_memory() {
    let yaml = format!(
        "models: [{{name: small, source: \"{}\", contextLength: 256, device: cpu}}]
routes: [{{name: inside, backendRefs: [{{model: small}}]}}]",
        model().display()
    );
    let gateway = Gateway::start(&yaml).await;
    let answer = gateway.client().chat("small", &[]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let models = eventually("the tokens are counted", || async {
        let models = shown(&gateway, "/api/models").await;
        let small = &models["models"][0];
        (small["generatedTokens"].as_u64() > Some(0) && small["running"] == 0).then_some(models)
    })
    .await;
    let small = &models["models"][0];
    assert_eq!((&small["name"], &small["loaded"]), (&json!("small"), &json!(true)));
    assert!(small["memoryBytes"].as_u64() > Some(0) && small["kvTotal"].as_u64() >= Some(256), "{small}");
    assert!(models["memory"]["used"].as_u64() > Some(0) && models["memory"]["limit"].is_u64(), "{models}");
}

#[tokio::test]
async fn the_last_edits_are_kept_with_what_each_changed() {
    let server = server().await;
    let yaml = two_routes(&server, "");
    let gateway = Gateway::start(&yaml).await;
    let first = shown(&gateway, "/api/config/history").await;
    assert_eq!((&first["edits"][0]["generation"], &first["edits"][0]["diff"]), (&json!(1), &Value::Null));
    let edit = async |text: &str, edits: usize| {
        let text = whole(&format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{text}"));
        std::fs::write(gateway.config(), text).unwrap();
        eventually("the edit is kept", || async {
            let history = shown(&gateway, "/api/config/history").await;
            (history["edits"].as_array().unwrap().len() == edits).then(|| history["edits"][0].clone())
        })
        .await
    };
    let good =
        edit(&yaml.replace("name: rest, backendRefs", "name: rest, timeouts: {request: 7s}, backendRefs"), 2).await;
    assert_eq!((&good["result"], &good["generation"]), (&json!("ok"), &json!(2)));
    let diff = good["diff"].as_str().unwrap();
    assert!(diff.contains("+routes[rest].timeouts.request: \"7s\"\n"), "{diff}");
    assert!(!diff.contains("routes[chat]") && !diff.contains("backends"), "{diff}");
    let broken = edit("routes: 1", 3).await;
    assert_eq!(
        (&broken["result"], &broken["generation"], &broken["diff"]),
        (&json!("failed"), &Value::Null, &Value::Null)
    );
    assert!(!broken["diagnostics"].as_array().unwrap().is_empty(), "{broken}");
    // A file that is right, and cannot be run without a restart.
    let kept_out = edit(&format!("{yaml}\nlimits: {{limitKeys: 5000}}"), 4).await;
    assert!(kept_out["errors"][0].as_str().unwrap().contains("restart"), "{kept_out}");
    assert!(kept_out["diff"].as_str().unwrap().contains("+limits.limitKeys: 5000\n"), "{kept_out}");
}

/// Event stream of requests, read event by event.
struct Live {
    stream: Stream,
    text: String,
}

impl Live {
    async fn open(gateway: &Gateway, query: &str) -> Self {
        let admin = Client::new(gateway.admin);
        let request = admin.request("GET", &format!("/api/requests{query}"), &[], Bytes::new());
        let mut stream = admin.stream(request).await.unwrap();
        assert_eq!(stream.status, 200);
        assert_eq!(stream.headers["content-type"], "text/event-stream");
        let first = stream.part().await.unwrap().unwrap();
        assert!(first.starts_with(b":"), "{first:?}");
        Self { stream, text: String::new() }
    }

    /// Name and data of the next event.
    async fn next(&mut self) -> (String, Value) {
        loop {
            if let Some((event, rest)) = self.text.clone().split_once("\n\n") {
                self.text = rest.to_owned();
                let Some(event) = event.strip_prefix("event: ") else { continue };
                let (name, data) = event.split_once("\ndata: ").unwrap();
                return (name.to_owned(), serde_json::from_str(data).unwrap());
            }
            let part = self.stream.part().await.expect("an event").unwrap();
            self.text.push_str(std::str::from_utf8(&part).unwrap());
        }
    }
}

#[tokio::test]
async fn requests_are_seen_as_they_end_by_those_who_watch() {
    let server = server().await;
    let gateway = Gateway::start(&two_routes(&server, "telemetry: {logs: {access: false}}")).await;
    let mut all = Live::open(&gateway, "").await;
    let mut failed = Live::open(&gateway, "?route=rest&status=5xx").await;
    let client = gateway.client();
    client.post("/v1/chat/completions?key=secret", &[("x-request-id", "one")], r#"{"model":"m","messages":[]}"#).await;
    client.send(client.request("GET", "/fail", &[("x-request-id", "two")], Bytes::new())).await;
    let (event, line) = all.next().await;
    assert_eq!((&*event, &line["requestId"], &line["route"]), ("request", &json!("one"), &json!("chat")));
    assert_eq!((&line["path"], &line["completionTokens"]), (&json!("/v1/chat/completions"), &json!(7)));
    assert!(!line.to_string().contains("secret"), "{line}");
    assert_eq!(all.next().await.1["requestId"], "two");
    assert_eq!(failed.next().await.1["requestId"], "two", "the first was of another route");
    let others =
        [Live::open(&gateway, "?consumer=a").await, Live::open(&gateway, "").await, Live::open(&gateway, "").await];
    let more = [Live::open(&gateway, "").await, Live::open(&gateway, "").await, Live::open(&gateway, "").await];
    let admin = Client::new(gateway.admin);
    assert_eq!(admin.get("/api/requests").await.status, 503);
    assert_eq!(admin.get("/api/requests?status=5x").await.status, 400);
    drop((others, more));
    // Many at once: each watcher gets some, and is told of the rest.
    let calls = (0..200).map(|_| client.get("/many"));
    futures::future::join_all(calls).await;
    let (mut seen, mut missed) = (0, 0);
    while seen + missed < 200 {
        match all.next().await {
            (event, _) if event == "request" => seen += 1,
            (_, told) => missed += told["missed"].as_u64().unwrap(),
        }
    }
    assert_eq!(seen + missed, 200);
    drop((all, failed));
    eventually("a place is free", || async {
        let request = admin.request("GET", "/api/requests", &[], Bytes::new());
        (admin.stream(request).await.unwrap().status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn consumers_are_shown_with_what_they_have_used() {
    let server = server().await;
    let (key, digest) = new_key();
    let consumers = format!(
        "consumers:
  - {{name: acme, tenant: big, keys: [{{sha256: \"{digest}\"}}], limits: {{requests: 100/h, concurrency: 5, budget: {{tokens: 1000, per: day}}}}}}
  - {{name: zeta, tenant: big}}
  - {{name: other}}
tenants: [{{name: big, limits: {{requests: 1000/h, budget: {{usd: 2.5, per: month}}}}}}]
prices: [{{model: \"*\", input: 1, output: 1}}]"
    );
    let gateway = Gateway::start(&two_routes(&server, &consumers)).await;
    for _ in 0..2 {
        assert_eq!(gateway.client().chat("m", &[("x-api-key", &key)]).await.status, 200);
    }
    let report = eventually("the use is settled", || async {
        let report = shown(&gateway, "/api/consumers").await;
        (report["consumers"][0]["budgets"][0]["spent"] == 24.0).then_some(report)
    })
    .await;
    let names: Vec<_> = report["consumers"].as_array().unwrap().iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["acme", "other", "zeta"]);
    assert_eq!(report["more"], 0);
    let acme = &report["consumers"][0];
    let limit = |rule: &str, whose: &str| {
        let is = |limit: &&Value| limit["rule"] == rule && limit["whose"] == whose;
        acme["limits"].as_array().unwrap().iter().find(is).unwrap().clone()
    };
    let own = limit("requests", "consumer");
    assert_eq!(
        (&own["limit"], &own["window"], &own["used"], &own["shared"]),
        (&json!(100), &json!("h"), &json!(2), &json!(false))
    );
    assert_eq!(limit("requests", "tenant")["used"], 2);
    assert_eq!(
        (&limit("concurrency", "consumer")["limit"], &limit("concurrency", "consumer")["used"]),
        (&json!(5), &json!(0))
    );
    let budget = |whose: &str, unit: &str| {
        let is = |budget: &&Value| budget["whose"] == whose && budget["unit"] == unit;
        acme["budgets"].as_array().unwrap().iter().find(is).unwrap().clone()
    };
    assert_eq!(
        (&budget("consumer", "tokens")["limit"], &budget("consumer", "tokens")["window"]),
        (&json!(1000.0), &json!("day"))
    );
    let usd = budget("tenant", "usd");
    assert_eq!((&usd["limit"], &usd["window"]), (&json!(2.5), &json!("month")));
    assert!((usd["spent"].as_f64().unwrap() - 24e-6).abs() < 1e-12, "{usd}");
    assert_eq!((&report["tenants"][0]["name"], &report["tenants"][0]["limits"][0]["used"]), (&json!("big"), &json!(2)));
    let rest = shown(&gateway, "/api/consumers?tenant=big&after=acme").await;
    assert_eq!((rest["consumers"].as_array().unwrap().len(), &rest["consumers"][0]["name"]), (1, &json!("zeta")));
    assert!(!report.to_string().contains(&digest) && !report.to_string().contains(&key));
}

const CHAT: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"stream":true}"#;

#[tokio::test]
async fn an_operator_chats_with_a_route_as_the_caller_of_a_key() {
    let (parts, answers) = mpsc::channel(8);
    let answers = std::sync::Arc::new(tokio::sync::Mutex::new(Some(answers)));
    let server = Upstream::start(move |_| {
        let answers = answers.clone();
        async move {
            let parts = answers.lock().await.take();
            Some(match parts {
                Some(parts) => streamed(&[("content-type", "text/event-stream"), ("set-cookie", "a=b")], parts),
                None => reply(200, &[("content-type", "application/json")], "{}"),
            })
        }
    })
    .await;
    let (key, digest) = new_key();
    let yaml = format!(
        "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}]}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: chat, hostnames: [chat.test], matches: [{{path: {{prefix: /team}}}}], authentication: required, filters: [{{urlRewrite: {{replacePrefix: /}}}}], backendRefs: [{{name: x}}]}}
  - {{name: hidden, hostnames: [chat.test], matches: [{{path: {{prefix: /team/v1}}, headers: [{{name: x-a, exact: b}}]}}], backendRefs: [{{name: x}}]}}",
        server.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let mut live = Live::open(&gateway, "").await;
    let admin = Client::new(gateway.admin);
    let headers = [CHANGE, ("x-spillway-playground-key", &*key), ("content-type", "application/json")];
    let request = admin.request("POST", "/api/playground/chat", &headers, CHAT);
    parts.send(Ok("data: {\"choices\":[{\"delta\":{\"content\":\"one\"}}]}\n\n".into())).await.unwrap();
    let mut answer = admin.stream(request).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["x-spillway-playground"], "route");
    assert!(answer.headers.contains_key("x-request-id") && !answer.headers.contains_key("set-cookie"));
    // The first part is there before the server has written the next.
    let first = answer.part().await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&first).contains("one"), "{first:?}");
    parts.send(Ok("data: [DONE]\n\n".into())).await.unwrap();
    drop(parts);
    while let Some(part) = answer.part().await {
        part.unwrap();
    }
    let (_, line) = live.next().await;
    assert_eq!(
        (&line["consumer"], &line["route"], &line["client"]),
        (&json!("acme"), &json!("chat"), &json!("127.0.0.1"))
    );
    let seen = server.last();
    assert_eq!(seen.path, "/v1/chat/completions");
    assert!(!seen.headers.contains_key("authorization") && !seen.headers.contains_key("x-spillway-playground-key"));

    // Without a key the route refuses, which is told apart from a refusal of the admin address.
    let unknown = admin.post("/api/playground/chat", &[CHANGE], CHAT).await;
    assert_eq!((unknown.status.as_u16(), unknown.header("x-spillway-playground")), (401, "route"));
    let large = "x".repeat((1 << 20) + 1);
    for (path, headers, body, status) in [
        ("/api/playground/chat", &[][..], CHAT, 403),
        ("/api/playground/nobody", &[CHANGE], CHAT, 404),
        ("/api/playground/hidden", &[CHANGE], CHAT, 409),
        ("/api/playground/chat?host=other.test", &[CHANGE], CHAT, 409),
        ("/api/playground/chat", &[CHANGE], "no JSON", 400),
        ("/api/playground/chat", &[CHANGE], &large, 413),
    ] {
        let answer = admin.post(path, headers, body.to_owned()).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.text());
        assert_eq!(answer.header("x-spillway-playground"), "", "{path}");
    }
    let named = admin.post("/api/playground/chat?host=chat.test&path=/team/v1/models", &headers, CHAT).await;
    assert_eq!(named.header("x-spillway-playground"), "route", "{}", named.text());
    assert!(!gateway.log().contains(&key));
}

#[tokio::test]
async fn few_chats_run_at_a_time_and_one_ends_with_its_reader() {
    let server = Upstream::start(|_| async {
        tokio::time::sleep(std::time::Duration::from_secs(600)).await;
        None
    })
    .await;
    let gateway = Gateway::start(&two_routes(&server, "")).await;
    let admin = Client::new(gateway.admin);
    let chats: Vec<_> = (0..4)
        .map(|_| {
            let (admin, request) =
                (Client::new(gateway.admin), admin.request("POST", "/api/playground/chat", &[CHANGE], CHAT));
            tokio::spawn(async move { admin.try_send(request).await.is_ok() })
        })
        .collect();
    eventually("all are at the server", || async { (server.count() == 4).then_some(()) }).await;
    let busy = admin.post("/api/playground/chat", &[CHANGE], CHAT).await;
    assert_eq!(busy.status, 503, "{}", busy.text());
    assert!(busy.text().contains("4 chats"), "{}", busy.text());
    for chat in &chats {
        chat.abort();
    }
    gateway.metric_becomes("spillway_requests_in_flight{http_route=\"chat\"}", 0.0).await;
    // Their places are free again: this one reaches the route.
    let again = admin.request("POST", "/api/playground/chat", &[CHANGE], CHAT);
    let waiting = tokio::spawn(async move { admin.try_send(again).await.is_ok() });
    eventually("another is at the server", || async { (server.count() == 5).then_some(()) }).await;
    waiting.abort();
}

#[tokio::test]
async fn the_playground_is_off_where_the_file_says_so() {
    let server = server().await;
    let yaml = two_routes(
        &server,
        "admin: {address: \"127.0.0.1:0\", playground: false, tracesUrl: \"http://traces.test/trace/{trace_id}\"}",
    );
    let gateway = Gateway::start(&yaml).await;
    let overview = shown(&gateway, "/api/overview").await;
    assert_eq!(
        (&overview["playground"], &overview["tracesUrl"]),
        (&json!(false), &json!("http://traces.test/trace/{trace_id}"))
    );
    let refused = Client::new(gateway.admin).post("/api/playground/chat", &[CHANGE], CHAT).await;
    assert_eq!(refused.status, 403, "{}", refused.text());
    assert!(refused.text().contains("admin.playground: true") && server.count() == 0);
}
