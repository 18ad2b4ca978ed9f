//! Labels of answers: who may label what, what is counted, what is remembered, and what callers can break.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use spillway_tests::{
    Answer, Client, Gateway, Issuer, IssuerKey, Upstream, binary, claude, encoded, eventually, gpt, new_key, reply,
    script, streamed,
};

/// Server of chat completions, each answer with an id of its own.
async fn server() -> Upstream {
    let count = Arc::new(AtomicUsize::new(0));
    Upstream::start(move |_| {
        let n = count.fetch_add(1, Ordering::SeqCst);
        async move {
            let message = json!({"role": "assistant", "content": "Hello."});
            let answer = json!({"id": format!("chatcmpl-{n}"), "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]});
            Some(reply(200, &[("content-type", "application/json")], answer.to_string()))
        }
    })
    .await
}

struct Fixture {
    gateway: Gateway,
    acme: String,
    globex: String,
}

impl Fixture {
    /// Gateway with the consumers `acme` and `globex`, a route `chat` to one server, and `feedback` as written.
    async fn start(server: &Upstream, feedback: &str, rest: &str) -> Self {
        let ((acme, first), (globex, second)) = (new_key(), new_key());
        let gateway = Gateway::start(&format!(
            "consumers:
  - {{name: acme, keys: [{{sha256: {first}}}]}}
  - {{name: globex, keys: [{{sha256: {second}}}]}}
backends: [{{name: stable, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: stable}}]}}]
feedback: {feedback}
{rest}",
            server.url()
        ))
        .await;
        Self { gateway, acme, globex }
    }

    fn client(&self) -> Client {
        self.gateway.client()
    }

    /// Makes a call with a key and returns the ids of its request and its answer.
    async fn chat(&self, key: &str) -> (String, String) {
        let answer = self.client().chat("m", &[("authorization", &format!("Bearer {key}"))]).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        (answer.header("x-request-id").to_owned(), answer.json()["id"].as_str().unwrap().to_owned())
    }

    async fn label(&self, key: &str, body: &Value) -> Answer {
        let bearer = format!("Bearer {key}");
        let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
        self.client().post("/v1/feedback", &headers, body.to_string()).await
    }

    async fn shown(&self) -> Value {
        let text = self.gateway.shown("/api/feedback").await;
        serde_json::from_str::<Value>(&text).unwrap()["feedback"].clone()
    }

    /// Figures of the only target.
    async fn target(&self) -> Value {
        self.shown().await["routes"][0]["targets"][0].clone()
    }
}

fn said(answer: &Answer) -> (u16, String) {
    let body = answer.json();
    let word = body["status"].as_str().or(body["error"]["code"].as_str()).unwrap_or_default();
    (answer.status.as_u16(), word.to_owned())
}

fn ok(word: &str) -> (u16, String) {
    (200, word.to_owned())
}

fn not_found() -> (u16, String) {
    (404, "not_found".to_owned())
}

/// Value of a series.
async fn metric(gateway: &Gateway, series: &str) -> Option<f64> {
    let text = gateway.shown("/metrics").await;
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_openai_client_labels_its_answers_whole_streamed_and_translated() {
    let (openai, anthropic) = (Upstream::start(gpt).await, Upstream::start(claude).await);
    let ((acme, first), (globex, second)) = (new_key(), new_key());
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, keys: [{{sha256: {first}}}]}}, {{name: globex, keys: [{{sha256: {second}}}]}}]
backends:
  - {{name: openai, protocol: openai, apis: [chat], endpoints: [{{url: \"{}\"}}]}}
  - {{name: anthropic, protocol: anthropic, endpoints: [{{url: \"{}\"}}]}}
routes:
  - {{name: gpt, matches: [{{model: gpt}}], backendRefs: [{{name: openai}}]}}
  - {{name: claude, matches: [{{model: claude}}], backendRefs: [{{name: anthropic}}]}}
feedback: {{}}
",
        openai.url(),
        anthropic.url()
    ))
    .await;
    let told = script("feedback_client.py", &gateway, &[&acme, &globex]).await;
    assert_eq!(told.len(), 12, "{told:?}");
    for (n, line) in told.iter().enumerate() {
        if n % 6 == 5 {
            assert_eq!(*line, json!({"status": 404, "code": "not_found", "param": "response_id"}), "another's: {n}");
        } else {
            assert_eq!(line["object"], "feedback", "{n}: {line}");
            assert!(line["status"] == "recorded", "{n}: {line}");
        }
    }
    let shown: Value = serde_json::from_str(&gateway.shown("/api/feedback").await).unwrap();
    for (route, target) in [(&shown["feedback"]["routes"][0], "anthropic"), (&shown["feedback"]["routes"][1], "openai")]
    {
        let figures = &route["targets"][0];
        assert_eq!((&figures["target"], &figures["labelled"]), (&json!(target), &json!(5)), "{shown}");
        assert_eq!(figures["scores"]["mean"], 0.5);
        assert_eq!(figures["labels"], json!({"short": 1}));
        assert_eq!((&figures["answers"]["accuracy"], &figures["calibration"]["count"]), (&json!(0.5), &json!(2)));
        // (0.1^2 + 0.8^2) / 2
        assert!((figures["calibration"]["brier"].as_f64().unwrap() - 0.325).abs() < 1e-9);
    }
    let series = "spillway_feedback_score{http_route=\"claude\",target=\"anthropic\"}";
    assert_eq!(metric(&gateway, series).await, Some(0.5));
    assert_eq!(metric(&gateway, "spillway_feedback_labels_total{result=\"recorded\"}").await, Some(10.0));
    assert_eq!(metric(&gateway, "spillway_feedback_labels_total{result=\"unknown\"}").await, Some(2.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_consumer_who_made_a_request_may_label_it_and_nobody_can_probe() {
    let server = server().await;
    let f = Fixture::start(&server, "{}", "").await;
    let (request, response) = f.chat(&f.acme).await;
    let by_request = json!({"request_id": request, "score": 0});
    let by_response = json!({"response_id": response, "score": 0});
    let never = json!({"request_id": "never", "score": 0});
    let foreign = f.label(&f.globex, &by_request).await;
    let unknown = f.label(&f.globex, &never).await;
    assert_eq!((said(&foreign), said(&f.label(&f.globex, &by_response).await)), (not_found(), not_found()));
    assert_eq!(foreign.json(), unknown.json(), "the same words");
    // Another consumer that sends the same id itself hides nothing and reaches its own request.
    let bearer = format!("Bearer {}", f.globex);
    let same = f.client().chat("m", &[("authorization", &bearer), ("x-request-id", &request)]).await;
    assert_eq!(same.header("x-request-id"), request);
    assert_eq!(said(&f.label(&f.globex, &by_request).await), ok("recorded"));
    assert_eq!(said(&f.label(&f.acme, &json!({"request_id": request, "score": 1})).await), ok("recorded"));
    assert_eq!(said(&f.label(&f.acme, &json!({"response_id": response, "score": 1})).await), ok("unchanged"));
    assert_eq!(
        f.target().await["scores"],
        json!({"count": 2, "mean": 0.5, "recentCount": 2.0, "recentMean": 0.5, "changes": 0})
    );
    // Naming another consumer needs a scope, whether the request is there or not.
    for id in [request.as_str(), "never"] {
        let answer = f.label(&f.acme, &json!({"request_id": id, "consumer": "globex", "score": 1})).await;
        assert_eq!(said(&answer), (403, "permission_denied".to_owned()));
    }
    let own = f.label(&f.acme, &json!({"request_id": request, "consumer": "acme", "score": 0.5})).await;
    assert_eq!(said(&own), ok("replaced"));
    let nobody = f.client().post("/v1/feedback", &[], by_request.to_string()).await;
    assert_eq!((nobody.status.as_u16(), server.count()), (401, 2), "no label reached the server");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_lets_a_caller_label_the_requests_of_all() {
    let (server, issuer, key) = (server().await, Issuer::start().await, IssuerKey::new("k"));
    issuer.shows(&[&key]);
    let (acme, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, keys: [{{sha256: {digest}}}]}}]
authentication: {{jwt: [{{issuer: \"{}\", audiences: [spillway], claims: {{consumer: sub}}}}]}}
backends: [{{name: stable, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: chat, matches: [{{path: {{prefix: /v1}}}}], authentication: optional, backendRefs: [{{name: stable}}]}}
feedback: {{scopes: [label:all, feedback]}}
",
        issuer.url(),
        server.url()
    ))
    .await;
    let expires = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    let token = |scope: &str| {
        let claims = json!({"iss": issuer.url(), "aud": "spillway", "sub": "judge", "exp": expires, "scope": scope});
        format!("Bearer {}", key.token(&claims))
    };
    let (judge, other) = (token("openid feedback"), token("feedback-not label"));
    let client = gateway.client();
    let known = client.chat("m", &[("authorization", &format!("Bearer {acme}")), ("x-request-id", "a")]).await;
    let unknown = client.chat("m", &[("x-request-id", "b")]).await;
    assert!(known.status == 200 && unknown.status == 200);
    // A request is remembered when it has ended, which its caller may see a moment before.
    gateway.metric_becomes("spillway_feedback_remembered_requests", 2.0).await;
    let label = async |bearer: &str, body: Value| {
        said(&client.post("/v1/feedback", &[("authorization", bearer)], body.to_string()).await)
    };
    for id in ["a", "b"] {
        assert_eq!(label(&other, json!({"request_id": id, "score": 1})).await, not_found());
        assert_eq!(label(&judge, json!({"request_id": id, "score": 1})).await, ok("recorded"));
    }
    assert_eq!(label(&judge, json!({"request_id": "a", "consumer": "globex", "score": 1})).await, not_found());
    assert_eq!(label(&judge, json!({"request_id": "a", "consumer": "acme", "score": 0})).await, ok("replaced"));
    // An id that two callers have sent is named with its consumer.
    client.chat("m", &[("x-request-id", "a")]).await;
    gateway.metric_becomes("spillway_feedback_remembered_requests", 3.0).await;
    assert_eq!(label(&judge, json!({"request_id": "a", "score": 0})).await, (409, "ambiguous_id".to_owned()));
    assert_eq!(label(&judge, json!({"request_id": "a", "consumer": "acme", "score": 0})).await, ok("unchanged"));
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_replaced_once_however_often_and_at_the_same_time_they_come() {
    let server = server().await;
    let f = Arc::new(Fixture::start(&server, "{}", "").await);
    let (request, _) = f.chat(&f.acme).await;
    let tasks: Vec<_> = (0..32)
        .map(|n| {
            let (f, request) = (f.clone(), request.clone());
            tokio::spawn(async move {
                let body = json!({"request_id": request, "score": f64::from(n % 2), "label": format!("l{}", n % 4)});
                said(&f.label(&f.acme, &body).await)
            })
        })
        .collect();
    let mut words = Vec::new();
    for task in tasks {
        let (status, word) = task.await.unwrap();
        assert_eq!(status, 200);
        words.push(word);
    }
    assert_eq!(words.iter().filter(|word| *word == "recorded").count(), 1, "{words:?}");
    let body = json!({"request_id": request, "score": 0.25, "label": "last", "expected": "a"});
    assert_eq!(said(&f.label(&f.acme, &body).await), ok("replaced"));
    assert_eq!(said(&f.label(&f.acme, &body).await), ok("unchanged"), "a retry");
    assert_eq!(said(&f.label(&f.acme, &json!({"request_id": request, "predicted": "b"})).await), ok("replaced"));
    let target = f.target().await;
    assert_eq!((&target["labelled"], &target["scores"]["mean"]), (&json!(1), &json!(0.25)), "{target}");
    assert_eq!((&target["labels"], &target["answers"]["accuracy"]), (&json!({"last": 1}), &json!(0.0)));
    let mismatch = f.label(&f.acme, &json!({"request_id": request, "expected": 3})).await;
    assert_eq!(
        (said(&mismatch).1, &mismatch.json()["error"]["param"]),
        ("invalid_value".to_owned(), &json!("expected"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn late_labels_are_refused_and_counted() {
    let server = server().await;
    let f = Fixture::start(&server, "{remember: {requests: 2}}", "").await;
    let (first, _) = f.chat(&f.acme).await;
    for _ in 0..3 {
        f.chat(&f.acme).await;
    }
    let pushed_out = f.label(&f.acme, &json!({"request_id": first, "score": 1})).await;
    assert_eq!(said(&pushed_out), not_found());
    let memory = &f.shown().await["memory"];
    assert_eq!(*memory, json!({"requests": 2, "capacity": 2, "evicted": 2}));
    assert_eq!(metric(&f.gateway, "spillway_feedback_evictions_total").await, Some(2.0));
    assert_eq!(metric(&f.gateway, "spillway_feedback_labels_total{result=\"unknown\"}").await, Some(1.0));

    let f = Fixture::start(&server, "{remember: {for: 1s}}", "").await;
    let (request, _) = f.chat(&f.acme).await;
    eventually("the time for labels is over", || async {
        let answer = f.label(&f.acme, &json!({"request_id": request, "score": 1})).await;
        if answer.status == 200 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            return None;
        }
        assert_eq!(answer.json(), pushed_out.json(), "the same words");
        Some(())
    })
    .await;
    assert_eq!(metric(&f.gateway, "spillway_feedback_labels_total{result=\"late\"}").await, Some(1.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_ids_stays_within_bounds_and_reaches_nobody_else() {
    let server = server().await;
    let f = Fixture::start(&server, "{remember: {requests: 128}}", "").await;
    let client = f.client();
    let bearer = format!("Bearer {}", f.globex);
    f.chat(&f.acme).await;
    // A guessed id, again and again, then many of them.
    let own = client.chat("m", &[("authorization", &format!("Bearer {}", f.acme)), ("x-request-id", "order-17")]).await;
    assert_eq!(own.status, 200);
    for _ in 0..60 {
        client.chat("m", &[("authorization", &bearer), ("x-request-id", "order-17")]).await;
    }
    for key in [&f.acme, &f.globex] {
        let label = f.label(key, &json!({"request_id": "order-17", "score": 1})).await;
        assert_eq!(said(&label), ok("recorded"), "each labels a request of its own");
    }
    for n in 0..128 {
        client.chat("m", &[("authorization", &bearer), ("x-request-id", &format!("i{n}"))]).await;
    }
    let memory = f.shown().await["memory"].clone();
    assert_eq!((&memory["requests"], &memory["capacity"]), (&json!(128), &json!(128)));
    assert_eq!(said(&f.label(&f.acme, &json!({"request_id": "order-17", "score": 1})).await), not_found());
    // Names of labels and classes are bounded too.
    for n in 0..128 {
        let body = json!({"request_id": format!("i{n}"), "label": format!("l{n}"), "predicted": format!("c{n}"), "expected": format!("c{n}")});
        assert_eq!(said(&f.label(&f.globex, &body).await), ok("recorded"), "{n}");
        let more = json!({"request_id": format!("i{n}"), "label": format!("m{n}")});
        assert_eq!(said(&f.label(&f.globex, &more).await), ok("replaced"), "{n}");
    }
    let target = f.target().await;
    assert!(target["labels"].as_object().unwrap().len() <= 65, "{target}");
    assert_eq!(
        (target["answers"]["classes"].as_array().unwrap().len(), &target["answers"]["accuracy"]),
        (33, &json!(1.0))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_bounded_and_mistakes_are_named() {
    let server = server().await;
    let f = Fixture::start(&server, "{maxBody: 1KiB}", "").await;
    let (request, _) = f.chat(&f.acme).await;
    let bearer = format!("Bearer {}", f.acme);
    let client = f.client();
    let post = async |headers: &[(&str, &str)], body: Vec<u8>| {
        let headers: Vec<_> = headers.iter().copied().chain([("authorization", bearer.as_str())]).collect();
        client.post("/v1/feedback", &headers, body).await
    };
    let good = json!({"request_id": request, "score": 1}).to_string();
    let giant = json!({"request_id": request, "score": 1, "comment": "x".repeat(2000)}).to_string();
    assert_eq!(post(&[], giant.clone().into_bytes()).await.status, 413);
    let packed = encoded("gzip", giant.as_bytes());
    assert!(packed.len() < 200);
    assert_eq!(post(&[("content-encoding", "gzip")], packed).await.status, 413, "decoded bytes count");
    assert_eq!(post(&[("content-encoding", "gzip")], good.clone().into_bytes()).await.status, 400);
    assert_eq!(post(&[("content-encoding", "rot13")], good.clone().into_bytes()).await.status, 415);
    assert_eq!(said(&post(&[("content-encoding", "zstd")], encoded("zstd", good.as_bytes())).await), ok("recorded"));
    for (body, status, code, param) in [
        (json!({"request_id": request, "score": "1"}), 400, "invalid_type", "score"),
        (json!({"request_id": request, "score": 2}), 400, "invalid_value", "score"),
        (json!({"request_id": request, "scroe": 1}), 400, "unsupported_parameter", "scroe"),
        (json!({"score": 1}), 400, "missing_required_parameter", "request_id"),
        (json!({"request_id": request, "response_id": "x", "score": 1}), 400, "unsupported_parameter", "response_id"),
        (json!({"request_id": request, "label": "x".repeat(65)}), 400, "string_above_max_length", "label"),
    ] {
        let answer = f.label(&f.acme, &body).await;
        let error = &answer.json()["error"];
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(
            (answer.status.as_u16(), &error["code"], &error["param"]),
            (status, &json!(code), &json!(param)),
            "{body}"
        );
        assert_eq!(f.label(&f.globex, &body).await.json(), answer.json(), "whoever asks");
    }
    for body in ["", "[1]", "{", "null", "{\"request_id\":\"a\",\"score\":1}}"] {
        assert_eq!(said(&post(&[], body.into()).await), (400, "invalid_json".to_owned()), "{body}");
    }
    let wrong = client.send(client.request("GET", "/v1/feedback", &[("authorization", &bearer)], "")).await;
    assert_eq!((said(&wrong), wrong.header("allow")), ((405, "method_not_allowed".to_owned()), "POST"));
    assert_eq!(f.target().await["labelled"], 1);
    assert_eq!(server.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_the_caller_hold_for_labels_and_each_is_logged_and_counted() {
    let server = server().await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, keys: [{{sha256: {digest}}}], limits: {{requests: 3/h}}}}]
backends: [{{name: stable, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, backendRefs: [{{name: stable}}]}}]
feedback: {{logComments: true}}
",
        server.url()
    ))
    .await;
    let (client, bearer) = (gateway.client(), format!("Bearer {key}"));
    let headers = [("authorization", bearer.as_str())];
    let chat = client.chat("m", &headers).await;
    let id = chat.header("x-request-id").to_owned();
    let body = json!({"request_id": id, "score": 1, "comment": "line\nwith \"quotes\""}).to_string();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        let answer = client.post("/v1/feedback", &headers, body.clone()).await;
        assert_eq!(answer.header("x-ratelimit-limit-requests"), "3");
        statuses.push(answer.status);
    }
    assert_eq!(statuses, [200, 200, 429]);
    let lines = eventually("the lines are written", || async {
        let lines: Vec<_> = gateway.events("access").into_iter().filter(|line| line["route"] == "feedback").collect();
        (lines.len() == 3).then_some(lines)
    })
    .await;
    assert_eq!((&lines[0]["consumer"], &lines[0]["path"]), (&json!("acme"), &json!("/v1/feedback")));
    let comments = gateway.events("feedback_comment");
    assert_eq!(comments.len(), 2);
    assert_eq!((&comments[0]["comment"], &comments[0]["id"]), (&json!("line\nwith \"quotes\""), &json!(id)));
    let series = "http_server_request_duration_seconds_count{http_request_method=\"POST\",http_route=\"feedback\",http_response_status_code=\"429\"}";
    assert_eq!(metric(&gateway, series).await, Some(1.0));
}

/// Server of one stream: these texts, then an end, or none where it dies.
async fn streaming(id: &'static str, texts: &'static [&'static str], dies: bool) -> Upstream {
    Upstream::start(move |_| async move {
        let (parts, receiver) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            let chunk = |delta: Value, reason: Value| {
                let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
                let chunk = json!({"id": id, "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]});
                format!("data: {chunk}\n\n").into()
            };
            let _ = parts.send(Ok(chunk(json!({"role": "assistant", "content": ""}), Value::Null))).await;
            for text in texts {
                let _ = parts.send(Ok(chunk(json!({"content": text}), Value::Null))).await;
            }
            if dies {
                // What came before is to arrive.
                tokio::time::sleep(Duration::from_millis(100)).await;
                let _ = parts.send(Err(std::io::Error::other("the server dies"))).await;
                return;
            }
            let _ = parts.send(Ok(chunk(json!({}), "stop".into()))).await;
            let _ = parts.send(Ok("data: [DONE]\n\n".into())).await;
        });
        Some(streamed(&[("content-type", "text/event-stream")], receiver))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_that_spills_refuses_labels() {
    let server = server().await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, keys: [{{sha256: {digest}}}], limits: {{requests: 2/h, onExceeded: spill}}}}]
backends: [{{name: stable, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}, {{name: lesser, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}]
routes: [{{name: chat, whenSaturated: {{spillTo: lesser}}, backendRefs: [{{name: stable}}]}}]
feedback: {{}}
",
        server.url()
    ))
    .await;
    let (client, bearer) = (gateway.client(), format!("Bearer {key}"));
    let headers = [("authorization", bearer.as_str())];
    let chat = client.chat("m", &headers).await;
    let label = json!({"request_id": chat.header("x-request-id"), "score": 1}).to_string();
    assert_eq!(said(&client.post("/v1/feedback", &headers, label.clone()).await), ok("recorded"));
    assert_eq!(client.post("/v1/feedback", &headers, label).await.status, 429);
    // Other requests spill, and their answers are labelled as those of the target that gave them.
    let spilled = client.chat("m", &headers).await;
    assert_eq!((spilled.status.as_u16(), spilled.header("x-spillway-served-by")), (200, "lesser"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_another_server_continued_has_the_ids_of_both() {
    let first = streaming("chatcmpl-first", &["The capital", " of France"], true).await;
    let second = streaming("chatcmpl-second", &[" is Paris."], false).await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, keys: [{{sha256: {digest}}}]}}]
backends: [{{name: pool, protocol: openai, endpoints: [{{url: \"{}\", priority: 0}}, {{url: \"{}\", priority: 1}}]}}]
routes: [{{name: chat, backendRefs: [{{name: pool}}], resume: true, retry: {{attempts: 0}}}}]
feedback: {{}}
",
        first.url(),
        second.url()
    ))
    .await;
    let (client, bearer) = (gateway.client(), format!("Bearer {key}"));
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let body = json!({"model": "m", "stream": true, "messages": [{"role": "user", "content": "Hi"}]}).to_string();
    let text = client.post("/v1/chat/completions", &headers, body).await.text();
    assert!(text.contains("chatcmpl-first") && text.contains(" is Paris.") && text.contains("[DONE]"), "{text}");
    for (id, word) in [("chatcmpl-first", "recorded"), ("chatcmpl-second", "unchanged")] {
        let label = json!({"response_id": id, "score": 1}).to_string();
        assert_eq!(said(&client.post("/v1/feedback", &headers, label).await), ok(word), "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn figures_and_memory_stay_over_a_reload_by_the_names_of_route_and_target() {
    let server = server().await;
    let f = Fixture::start(&server, "{}", "").await;
    let (request, _) = f.chat(&f.acme).await;
    let (later, _) = f.chat(&f.acme).await;
    let score = |id: &str, score: f64| json!({"request_id": id, "score": score});
    assert_eq!(said(&f.label(&f.acme, &score(&request, 1.0)).await), ok("recorded"));
    let written = std::fs::read_to_string(f.gateway.config()).unwrap();
    let edit = |text: String| std::fs::write(f.gateway.config(), text).unwrap();
    let generation = async || {
        let config: Value = serde_json::from_str(&f.gateway.shown("/api/config").await).unwrap();
        config["generation"].as_u64().unwrap()
    };
    let reloaded = async |least: u64| {
        eventually("the edit is active", || async { (generation().await >= least).then_some(()) }).await;
    };
    edit(written.replace("feedback: {}", "feedback: {remember: {requests: 9000, for: 1h}}"));
    reloaded(2).await;
    assert_eq!(said(&f.label(&f.acme, &score(&request, 0.0)).await), ok("replaced"), "the memory was kept");
    assert_eq!(said(&f.label(&f.acme, &score(&later, 0.5)).await), ok("recorded"));
    assert_eq!(
        (&f.target().await["scores"]["mean"], &f.shown().await["memory"]["capacity"]),
        (&json!(0.25), &json!(9000))
    );
    edit(written.replace("stable", "renamed"));
    reloaded(3).await;
    assert_eq!(said(&f.label(&f.acme, &score(&later, 1.0)).await), not_found(), "its target is gone");
    assert_eq!((&f.target().await["target"], &f.target().await["labelled"]), (&json!("renamed"), &json!(0)));
    edit(written.replace("feedback: {}", ""));
    reloaded(4).await;
    assert_eq!(f.shown().await, Value::Null);
    let passed = f.label(&f.acme, &score(&later, 1.0)).await;
    assert_eq!((passed.status.as_u16(), server.count()), (200, 3), "the path is the route's again");
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_taken_at_their_listener_and_only_from_there() {
    let server = server().await;
    let (key, digest) = new_key();
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start_in(
        folder,
        &format!(
            "listeners: [{{name: inner, address: \"127.0.0.1:0\"}}, {{name: outer, address: \"127.0.0.1:0\"}}]
consumers: [{{name: acme, keys: [{{sha256: {digest}}}]}}]
backends: [{{name: stable, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: stable}}]}}]
feedback: {{listener: outer, path: /v1/labels}}
",
            server.url()
        ),
    )
    .await;
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    let (inner, outer) = (Client::new(gateway.listener("inner")), Client::new(gateway.listener("outer")));
    let id = inner.chat("m", &headers).await.header("x-request-id").to_owned();
    let body = json!({"request_id": id, "score": 1}).to_string();
    // Spellings of the path that mean the same, and one that does not.
    for path in ["/v1/labels", "/v1//labels", "/v1/%6Cabels", "/v1/labels?x=1"] {
        assert_eq!(outer.post(path, &headers, body.clone()).await.status, 200, "{path}");
    }
    assert_eq!(outer.post("/v1/labels;a=b", &headers, body.clone()).await.status, 400);
    assert_eq!(server.count(), 1, "all were labels");
    assert_eq!(outer.post("/v1/labels/more", &headers, body.clone()).await.status, 200);
    assert_eq!(inner.post("/v1/labels", &headers, body).await.status, 200);
    assert_eq!(server.count(), 3, "both went to the route");
}

fn check(yaml: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("spillway.yaml"), yaml).unwrap();
    let out = std::process::Command::new(binary())
        .args(["check", "spillway.yaml"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2), "{yaml}");
    String::from_utf8([out.stdout, out.stderr].concat()).unwrap()
}

#[test]
fn check_refuses_feedback_that_cannot_work_with_the_line() {
    let whole = |consumers: &str, route: &str, feedback: &str| {
        format!(
            "listeners: [{{name: public, address: \"127.0.0.1:8080\", healthPath: /healthz}}]
{consumers}backends: [{{name: b, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:9000\"}}]}}, {{name: w, endpoints: [{{url: \"http://127.0.0.1:9001\"}}]}}]
routes:
  - {route}
feedback:
  {feedback}
"
        )
    };
    let known = "consumers: [{name: acme, keys: [{sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}]}]\n";
    let route = "{name: chat, matches: [{path: {prefix: /v1}}], backendRefs: [{name: b}]}";
    let exact = "{name: chat, matches: [{path: {exact: /v1/feedback}}], backendRefs: [{name: b}]}";
    let line = |text: &str, yaml: &str, key: &str| {
        let at = yaml.lines().position(|line| line.contains(key)).unwrap() + 1;
        assert!(text.contains(&format!("spillway.yaml:{at}:")), "line {at} of {key}: {text}");
    };
    for (consumers, route, feedback, key, words) in [
        ("", route, "path: /v1/feedback", "path: /v1/feedback", "no caller can be identified"),
        (known, route, "listener: pubic", "listener: pubic", "unknown listener `pubic`"),
        (known, exact, "path: /v1/feedback", "path: /v1/feedback", "route `chat` serves exactly `/v1/feedback`"),
        (known, route, "path: /healthz", "path: /healthz", "`healthPath` of a listener"),
        (known, route, "path: /v1/%66eedback", "path: /v1/%66", "not a path in its normal form"),
        (known, route, "scopes: [feedback]", "scopes: [feedback]", "only tokens have scopes"),
        (known, route, "remember: {requests: 20000000}", "remember:", "expected 10000000 or less"),
        (known, route, "remember: {for: 100d}", "remember:", "expected 1s to 90d"),
        (known, route, "maxBody: 2MiB", "maxBody:", "expected 1KiB to 1MiB"),
        (
            known,
            "{name: feedback, backendRefs: [{name: b}]}",
            "maxBody: 2KiB",
            "name: feedback",
            "the gateway's own route",
        ),
        (known, "{name: web, backendRefs: [{name: w}]}", "maxBody: 2KiB", "maxBody", "no route calls models"),
        (
            known,
            "{name: r, authentication: none, backendRefs: [{name: b}]}",
            "maxBody: 2KiB",
            "maxBody",
            "`authentication: none`",
        ),
    ] {
        let yaml = whole(consumers, route, feedback);
        let text = check(&yaml);
        assert!(text.contains(words), "{words}: {text}");
        line(&text, &yaml, key);
    }
}
