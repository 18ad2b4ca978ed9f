//! Retries and failures in flight: failed or slow requests are tried elsewhere within bounds, and no answer is half
//! sent in silence.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use spillway_tests::{Gateway, LlamaServer, Upstream, eventually, model, new_key, reply, streamed};
use tokio::sync::mpsc;

/// Server that never answers; counts requests and cancellations.
async fn silent() -> (Upstream, Arc<AtomicUsize>) {
    let gone = Arc::new(AtomicUsize::new(0));
    let leaves = gone.clone();
    let upstream = Upstream::start(move |_| {
        struct Gone(Arc<AtomicUsize>);
        impl Drop for Gone {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        let gone = Gone(leaves.clone());
        async move {
            let _gone = gone;
            std::future::pending::<()>().await;
            None
        }
    })
    .await;
    (upstream, gone)
}

fn two(a: &str, b: &str, protocol: &str, route: &str) -> String {
    format!(
        "backends:
  - {{name: a, protocol: {protocol}, endpoints: [{{url: \"{a}\"}}]}}
  - {{name: b, protocol: {protocol}, endpoints: [{{url: \"{b}\"}}]}}
routes:
  - name: r
    backendRefs: [{{name: a}}, {{name: b, priority: 1}}]
{route}"
    )
}

#[tokio::test]
async fn a_server_that_fails_does_not_get_a_multiple_of_its_load() {
    let broken = Upstream::start(|_| async { None }).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}], retry: {{attempts: 3, budget: 0.1, backoff: {{base: 1ms, max: 1ms}}}}}}]
",
        broken.url()
    ))
    .await;
    let began = Instant::now();
    for _ in 0..100 {
        assert_eq!(gateway.client().get("/").await.status, 503);
    }
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    let most = 100 + 10 + 10 + seconds;
    assert!(broken.count() > 110 && broken.count() <= most, "{} of at most {most}, and 400 without it", broken.count());
    assert!(gateway.metric("spillway_retries_denied_total{http_route=\"r\"}").await >= 80.0);
}

#[tokio::test]
async fn a_slow_attempt_is_hedged_and_the_loser_is_let_go_at_once() {
    let ((slow, gone), quick) = (silent().await, Upstream::fixed(200, "quick").await);
    let hedge = "    retry: {hedge: {after: 50ms}}\n";
    let gateway = Gateway::start(&two(&slow.url(), &quick.url(), "http", hedge)).await;
    for n in 1..=3 {
        let answer = gateway.client().get("/").await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "quick"));
        eventually("the loser is let go", || async { (gone.load(Ordering::SeqCst) == n).then_some(()) }).await;
    }
    gateway.metric_becomes("spillway_hedges_total{http_route=\"r\"}", 3.0).await;
    let of = |outcome: &str| {
        format!("spillway_endpoint_attempts_total{{backend=\"a\",endpoint=\"{}\",outcome=\"{outcome}\"}}", slow.url())
    };
    gateway.metric_becomes(&of("given_up"), 3.0).await;
    gateway.metric_becomes(&of("failed"), 0.0).await;
    // A request that is not idempotent is never sent twice.
    let client = gateway.client();
    let post = tokio::spawn(async move { client.post("/", &[], "{}").await });
    eventually("it is asked", || async { (slow.count() == 4).then_some(()) }).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(quick.seen.lock().unwrap().iter().filter(|seen| seen.method == "POST").count(), 0);
    post.abort();
}

#[tokio::test]
async fn hedges_take_from_the_budget_for_retries() {
    let ((slow, _), quick) = (silent().await, Upstream::fixed(200, "quick").await);
    let hedge = "    timeouts: {backendRequest: 150ms}\n    retry: {budget: 0, attempts: 0, hedge: {after: 5ms}}\n";
    let gateway = Gateway::start(&two(&slow.url(), &quick.url(), "http", hedge)).await;
    let began = Instant::now();
    let mut hedged = 0;
    for _ in 0..30 {
        hedged += usize::from(gateway.client().get("/").await.status == 200);
    }
    let most = 10 + usize::try_from(began.elapsed().as_secs()).unwrap() + 1;
    assert!((10..=most).contains(&hedged), "ten at first, one a second: {hedged} of at most {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_a_hedge_gave_up_is_free_only_when_its_connection_is_gone() {
    let ((a, _), (b, _), (c, _)) = tokio::join!(silent(), silent(), silent());
    let quick = Upstream::start(|_| async {
        tokio::time::sleep(Duration::from_millis(2)).await;
        Some(reply(200, &[], "quick"))
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:
  - name: slow
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}, {{url: \"{}\"}}]
    capacity: {{maxConnections: 1}}
  - {{name: quick, endpoints: [{{url: \"{}\"}}]}}
routes:
  - name: r
    backendRefs: [{{name: slow}}, {{name: quick, priority: 1}}]
    retry: {{budget: 1, hedge: {{after: 1ms, max: 3}}}}
telemetry: {{logs: {{access: false}}}}
",
        a.url(),
        b.url(),
        c.url(),
        quick.url(),
    ))
    .await;
    let ask = (0..16).map(|_| {
        let client = gateway.client();
        async move {
            for _ in 0..150 {
                assert_eq!(client.get("/").await.text(), "quick");
            }
        }
    });
    futures::future::join_all(ask).await;
    let of = async |outcome: &str| {
        let mut sum = 0.0;
        for server in [&a, &b, &c] {
            let url = server.url();
            let labels = format!("backend=\"slow\",endpoint=\"{url}\",outcome=\"{outcome}\"");
            sum += gateway.metric(&format!("spillway_endpoint_attempts_total{{{labels}}}")).await;
        }
        sum
    };
    assert!(of("given_up").await > 10.0);
    // A request with a slot but without a connection would have been told that the server is full.
    assert_eq!(of("full").await, 0.0);
}

fn sse(text: &str) -> Bytes {
    format!("data: {{\"id\":\"c\",\"model\":\"big\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n").into()
}

/// Server that sends two words and half an event, then breaks.
async fn dying() -> Upstream {
    Upstream::start(|_| async {
        let (send, parts) = mpsc::channel(4);
        tokio::spawn(async move {
            for part in [sse("The capital of"), sse(" France is"), Bytes::from_static(b"data: {\"id\":\"c\",\"cho")] {
                send.send(Ok(part)).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            let _ = send.send(Err(std::io::Error::other("broken on purpose"))).await;
        });
        Some(streamed(&[("content-type", "text/event-stream")], parts))
    })
    .await
}

const QUESTION: &str = r#"{"model":"any","stream":true,"temperature":0,"max_tokens":16,"stream_options":{"include_usage":true},
"messages":[{"role":"user","content":"What is the capital of France? Answer in one sentence."}]}"#;

fn events(text: &str) -> Vec<serde_json::Value> {
    text.lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter(|data| *data != "[DONE]")
        .map(|data| serde_json::from_str(data).unwrap_or_else(|e| panic!("{e}: {data}\n{text}")))
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_dies_is_continued_by_the_model_inside_where_the_route_wants_it() {
    // The second server is the fallback, but cannot continue an answer.
    let (server, other) = (dying().await, Upstream::fixed(400, "{}").await);
    let yaml = |resume: bool| {
        format!(
            "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}, {{url: \"{}\", priority: 1}}]}}]
models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxQueueWait: 60s}}]
routes: [{{name: r, backendRefs: [{{name: x}}], whenUnavailable: {{spillTo: smollm2}}, resume: {resume}}}]
",
            server.url(),
            other.url(),
            model().display()
        )
    };
    let gateway = Gateway::start(&yaml(true)).await;
    let answer = gateway.client().post("/v1/chat/completions", &[], QUESTION).await;
    assert!(!answer.cut && answer.status == 200);
    let text = answer.text();
    let all = events(&text);
    let said: String = all.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, "The capital of France is Paris.");
    let marked: Vec<_> = all.iter().filter(|e| !e["spillway"].is_null()).collect();
    assert_eq!(marked.len(), 1, "{text}");
    assert_eq!(
        (&marked[0]["spillway"]["resumed_by"], &marked[0]["model"]),
        (&"builtin/smollm2".into(), &"smollm2".into())
    );
    assert!(text.trim_end().ends_with("data: [DONE]"), "{text}");
    assert!(all.last().unwrap()["usage"]["completion_tokens"].as_u64().unwrap() > 2, "both parts count: {text}");
    gateway.metric_becomes("spillway_streams_resumed_total{http_route=\"r\"}", 1.0).await;
    assert_eq!((other.count(), gateway.endpoint(&other.url()).await["ejections"].as_u64()), (1, Some(0)));
    // A caller that refuses a fallback, and a route that does not opt in, get the error.
    let never = gateway.client().post("/v1/chat/completions", &[("x-spillway-fallback", "never")], QUESTION).await;
    drop(gateway);
    let plain = Gateway::start(&yaml(false)).await;
    let plain = plain.client().post("/v1/chat/completions", &[], QUESTION).await;
    for answer in [never, plain] {
        let all = events(&answer.text());
        assert_eq!(all.last().unwrap()["error"]["code"], "upstream_reset", "every event is whole: {}", answer.text());
    }
}

#[tokio::test]
async fn a_stream_that_does_not_begin_is_left_for_another_server() {
    let held = Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = held.clone();
    let stalled = Upstream::start(move |_| {
        let (send, parts) = mpsc::channel(1);
        kept.lock().unwrap().push(send);
        async move { Some(streamed(&[("content-type", "text/event-stream")], parts)) }
    })
    .await;
    let quick = Upstream::start(|_| async {
        let body = [&sse("hello")[..], b"data: [DONE]\n\n"].concat();
        Some(reply(200, &[("content-type", "text/event-stream")], body))
    })
    .await;
    let yaml = two(&stalled.url(), &quick.url(), "openai", "    timeouts: {firstToken: 300ms}\n");
    let gateway = Gateway::start(&yaml).await;
    let answer = gateway.client().post("/v1/chat/completions", &[], QUESTION).await;
    assert_eq!(answer.status, 200, "the head had come, and nothing had gone to the client: {}", answer.text());
    assert_eq!((stalled.count(), quick.count()), (1, 1));
    assert!(answer.text().contains("hello") && answer.text().ends_with("data: [DONE]\n\n"));
}

#[tokio::test]
async fn a_completion_of_llama_cpp_has_a_first_token() {
    let (send, parts) = mpsc::channel(2);
    let parts = std::sync::Mutex::new(Some(parts));
    let server = Upstream::start(move |_| {
        let parts = parts.lock().unwrap().take();
        async move { Some(streamed(&[("content-type", "text/event-stream")], parts?)) }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}], timeouts: {{firstToken: 1s}}}}]
",
        server.url()
    ))
    .await;
    let client = gateway.client();
    let asked =
        tokio::spawn(async move { client.post("/completion", &[], r#"{"prompt": "a", "stream": true}"#).await });
    let event = |text: &str, stop: bool| {
        Bytes::from(format!("data: {{\"index\":0,\"content\":\"{text}\",\"tokens\":[1],\"stop\":{stop}}}\n\n"))
    };
    send.send(Ok(event("hello", false))).await.unwrap();
    // Longer than a stream without a first token would be waited for.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    send.send(Ok(event("", true))).await.unwrap();
    drop(send);
    let answer = asked.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.cut), (200, false), "{}", answer.text());
    let logged = eventually("the request is logged", || {
        let line = gateway.events("access").first().cloned();
        async move { line }
    });
    assert!(logged.await["ttftMs"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn copies_go_to_a_second_backend_and_never_change_the_answer() {
    let (first, copies) = (Upstream::digest().await, Upstream::fixed(500, "copy").await);
    let (hanging, _) = silent().await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: x, endpoints: [{{url: \"{}\"}}], callerCredentials: pass}}
  - {{name: y, endpoints: [{{url: \"{}\"}}]}}
  - {{name: z, endpoints: [{{url: \"{}\"}}]}}
routes:
  - name: r
    backendRefs: [{{name: x}}]
    filters: [{{mirror: {{backend: y, maxBody: 10KiB}}}}, {{mirror: {{backend: z, maxInFlight: 2, timeout: 60s}}}}]
",
        first.url(),
        copies.url(),
        hanging.url()
    ))
    .await;
    let headers = [("authorization", "Bearer secret"), ("cookie", "a=b"), ("x-api-key", "k"), ("x-kept", "yes")];
    for n in 0..5 {
        let body = format!("body {n}");
        let answer = gateway.client().post("/p?q=1", &headers, body.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, spillway_tests::digest(body.as_bytes())));
    }
    eventually("the copies have come", || async { (copies.count() == 5).then_some(()) }).await;
    let copy = copies.last();
    assert_eq!((copy.method.as_str(), copy.path.as_str()), ("POST", "/p?q=1"));
    assert!(copy.body.starts_with(b"body ") && copy.headers["x-kept"] == "yes");
    for name in ["authorization", "cookie", "x-api-key"] {
        assert!(!copy.headers.contains_key(name), "{name}");
    }
    assert!(first.last().headers.contains_key("authorization"));
    assert_eq!(hanging.count(), 2, "no more copies at a time than are allowed");
    let big = vec![b'x'; 11 << 10];
    let answer = gateway.client().post("/", &[], big.clone()).await;
    assert_eq!(answer.text(), spillway_tests::digest(&big));
    let series = |outcome: &str| format!("spillway_mirrors_total{{http_route=\"r\",outcome=\"{outcome}\"}}");
    eventually("all is counted", || async {
        let (answered, skipped) = (gateway.metric(&series("answered")).await, gateway.metric(&series("skipped")).await);
        // Three and one without a free slot at z, and one that was too long for y.
        ((answered, skipped) == (5.0, 5.0)).then_some(())
    })
    .await;
    assert_eq!(copies.count(), 5);
}

#[tokio::test]
async fn a_server_of_copies_that_is_full_or_fails_is_left_alone_as_any_other() {
    let first = Upstream::fixed(200, "first").await;
    let full = Upstream::start(|_| async { Some(reply(429, &[("retry-after", "60")], "full")) }).await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: x, endpoints: [{{url: \"{}\"}}]}}
  - {{name: y, endpoints: [{{url: \"{}\"}}], capacity: {{statuses: [429], maxFullFor: 60s}}}}
  - name: z
    endpoints: [{{url: \"{}\"}}]
    outlierDetection: {{consecutiveErrors: 2, maxEjected: 1, panicThreshold: 0, ejectionTime: 60s}}
routes:
  - {{name: r, backendRefs: [{{name: x}}], filters: [{{mirror: {{backend: y}}}}, {{mirror: {{backend: z}}}}]}}
",
        first.url(),
        full.url(),
        Upstream::nobody().await
    ))
    .await;
    let series = |outcome: &str| format!("spillway_mirrors_total{{http_route=\"r\",outcome=\"{outcome}\"}}");
    // Of two copies of each, y accepts one and z none; of further ones neither gets any.
    for (n, (failed, skipped)) in [(2.0, 0.0), (3.0, 1.0), (3.0, 3.0), (3.0, 5.0)].into_iter().enumerate() {
        assert_eq!(gateway.client().get("/").await.text(), "first");
        gateway.metric_becomes(&series("failed"), failed).await;
        gateway.metric_becomes(&series("skipped"), skipped).await;
        assert_eq!(full.count(), 1, "after {n} further requests");
    }
}

/// Server that continues the last message, which must be `so_far`, by these words, and ends or breaks.
async fn continuing(so_far: &'static str, words: &'static [&'static str], breaks: bool) -> Upstream {
    Upstream::start(move |seen| async move {
        let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let last = body["messages"].as_array().unwrap().last().unwrap();
        if (&last["role"], &last["content"]) != (&"assistant".into(), &so_far.into()) {
            return Some(reply(500, &[], format!("not what was said: {body}")));
        }
        assert_eq!((&body["continue_final_message"], &body["add_generation_prompt"]), (&true.into(), &false.into()));
        let (send, parts) = mpsc::channel(4);
        tokio::spawn(async move {
            let role = "data: {\"id\":\"d\",\"model\":\"big\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n";
            send.send(Ok(Bytes::from_static(role.as_bytes()))).await.unwrap();
            for word in words {
                send.send(Ok(sse(word))).await.unwrap();
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if breaks {
                let _ = send.send(Err(std::io::Error::other("broken on purpose"))).await;
                return;
            }
            let end = "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\ndata: {\"choices\":[],\"usage\":{\"prompt_tokens\":12,\"completion_tokens\":2,\"total_tokens\":14}}\n\ndata: [DONE]\n\n";
            send.send(Ok(Bytes::from_static(end.as_bytes()))).await.unwrap();
        });
        Some(streamed(&[("content-type", "text/event-stream")], parts))
    })
    .await
}

#[tokio::test]
async fn a_stream_that_dies_is_continued_by_other_servers_until_one_ends_it() {
    let first = dying().await;
    let second = continuing("The capital of France is", &[" the city"], true).await;
    let third = continuing("The capital of France is the city", &[" of", " Paris."], false).await;
    let endpoints: Vec<String> = [&first, &second, &third]
        .iter()
        .enumerate()
        .map(|(n, server)| format!("{{url: \"{}\", priority: {n}}}", server.url()))
        .collect();
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}], resume: true, retry: {{attempts: 0}}}}]
",
        endpoints.join(", ")
    ))
    .await;
    let answer = gateway.client().post("/v1/chat/completions", &[("x-spillway-fallback", "never")], QUESTION).await;
    let text = answer.text();
    assert!(!answer.cut && answer.status == 200, "{text}");
    let all = events(&text);
    let said: String = all.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, "The capital of France is the city of Paris.");
    let marked: Vec<_> =
        all.iter().filter(|e| !e["spillway"].is_null()).map(|e| e["spillway"]["resumed_by"].clone()).collect();
    assert_eq!(marked, ["x", "x"], "{text}");
    assert!(!text.contains("\"role\"") && text.ends_with("data: [DONE]\n\n"), "no second message begins: {text}");
    // Three pieces were there before.
    assert_eq!(
        all.last().unwrap()["usage"],
        serde_json::json!({"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14})
    );
    assert_eq!((first.count(), second.count(), third.count()), (1, 1, 1));
    gateway.metric_becomes("spillway_streams_resumed_total{http_route=\"r\"}", 1.0).await;
}

/// Server that names the model as it was asked, and says the last of `words` where the text before is there already. It breaks
/// behind a text that it begins.
async fn echoing(id: &'static str, words: [&'static str; 2]) -> Upstream {
    Upstream::start(move |seen| async move {
        let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let continues = body["messages"].as_array().unwrap().last().unwrap()["role"] == "assistant";
        let chunk = |delta: serde_json::Value, reason: serde_json::Value| {
            let choice = serde_json::json!({"index": 0, "delta": delta, "finish_reason": reason});
            let chunk = serde_json::json!({"id": id, "created": id.len(), "model": body["model"], "choices": [choice]});
            Ok(Bytes::from(format!("data: {chunk}\n\n")))
        };
        let said = chunk(serde_json::json!({"content": words[usize::from(continues)]}), serde_json::Value::Null);
        let end = chunk(serde_json::json!({}), "stop".into());
        let (send, parts) = mpsc::channel(4);
        tokio::spawn(async move {
            send.send(said).await.unwrap();
            let end = if continues {
                end
            } else {
                // The first words are on their way before the connection breaks.
                tokio::time::sleep(Duration::from_millis(100)).await;
                Err(std::io::Error::other("broken on purpose"))
            };
            let _ = send.send(end).await;
        });
        Some(streamed(&[("content-type", "text/event-stream")], parts))
    })
    .await
}

#[tokio::test]
async fn a_continued_stream_is_changed_by_filters_from_begin_to_end() {
    let first = dying().await;
    let second = continuing("The capital of France is", &[" Paris."], false).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}, {{url: \"{}\", priority: 1}}]}}]
routes:
  - name: r
    filters: [{{transform: {{response: {{set: {{/service: s}}, remove: [/usage]}}}}}}]
    backendRefs: [{{name: x}}]
    resume: true
    retry: {{attempts: 0}}
",
        first.url(),
        second.url()
    ))
    .await;
    let answer = gateway.client().post("/v1/chat/completions", &[("x-spillway-fallback", "never")], QUESTION).await;
    let text = answer.text();
    assert!(!answer.cut && answer.status == 200, "{text}");
    let all = events(&text);
    let said: String = all.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(said, "The capital of France is Paris.");
    assert!(all.iter().all(|event| event["service"] == "s" && event["usage"].is_null()), "{text}");
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
}

#[tokio::test]
async fn a_continued_stream_has_one_name_of_the_model() {
    let (first, second) = (echoing("c-1", ["Hello", "?"]).await, echoing("c-22", ["?", " there."]).await);
    let (key, digest) = new_key();
    let authorization = format!("Bearer {key}");
    // An alias of the caller, and names of the backends: the same for both, or one for each, or for one alone.
    let cases = [
        (", modelAlias: {mine: theirs}", ["", ""]),
        ("", ["model: theirs, ", "model: theirs, "]),
        ("", ["model: theirs, ", "model: others, "]),
        ("", ["", "model: others, "]),
        (", modelAlias: {mine: theirs}", ["model: others, ", ""]),
    ];
    for (of_caller, [of_first, of_second]) in cases {
        let gateway = Gateway::start(&format!(
            "consumers: [{{name: acme, keys: [{{sha256: {digest}}}]{of_caller}}}]
backends:
  - {{name: a, protocol: openai, {of_first}endpoints: [{{url: \"{}\"}}]}}
  - {{name: b, protocol: openai, {of_second}endpoints: [{{url: \"{}\"}}]}}
routes: [{{name: r, backendRefs: [{{name: a}}, {{name: b, priority: 1}}], resume: true, retry: {{attempts: 0}}}}]
",
            first.url(),
            second.url()
        ))
        .await;
        let request = QUESTION.replace("any", "mine");
        let answer = gateway.client().post("/v1/chat/completions", &[("authorization", &authorization)], request).await;
        let text = answer.text();
        let all = events(&text);
        let said: String = all.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(said, "Hello there.", "{text}");
        for event in &all {
            assert_eq!(
                (&event["model"], &event["id"], &event["created"]),
                (&"mine".into(), &"c-1".into(), &3.into()),
                "{of_caller}{of_first}{of_second}: {text}"
            );
        }
    }
}

#[tokio::test]
async fn a_server_that_still_continues_when_the_time_is_over_is_not_blamed_and_one_that_is_silent_is() {
    // A server is silent after half of its idle time: far more than the one is silent, and far less than the other.
    for (silent, request, idle, code, ejections) in [(false, 3, 60, "request_timeout", 0), (true, 6, 6, "timeout", 1)] {
        let first = dying().await;
        let second = Upstream::start(move |_| async move {
            let (send, parts) = mpsc::channel(1);
            tokio::spawn(async move {
                let _ = send.send(Ok(sse(" one"))).await;
                while !silent && send.send(Ok(sse(" more"))).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                send.closed().await;
            });
            Some(streamed(&[("content-type", "text/event-stream")], parts))
        })
        .await;
        let gateway = Gateway::start(&format!(
            "backends:
  - name: x
    protocol: openai
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\", priority: 1}}]
    outlierDetection: {{consecutiveErrors: 1, maxEjected: 1}}
    timeouts: {{idle: {idle}s}}
routes: [{{name: r, backendRefs: [{{name: x}}], resume: true, timeouts: {{request: {request}s}}}}]
",
            first.url(),
            second.url()
        ))
        .await;
        let answer = gateway.client().post("/v1/chat/completions", &[], QUESTION).await;
        let text = answer.text();
        let all = events(&text);
        assert!(text.contains("resumed_by") && text.contains(" one"), "{text}");
        assert_eq!(all.last().unwrap()["error"]["code"], code, "{text}");
        eventually("the attempt has ended", || async {
            let shown = gateway.endpoint(&second.url()).await;
            (shown["inFlight"] == 0).then_some(())
        })
        .await;
        assert_eq!(gateway.endpoint(&second.url()).await["ejections"], ejections, "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_llama_server_that_is_killed_in_mid_stream_is_continued_by_another() {
    let start = || async { tokio::task::spawn_blocking(|| LlamaServer::start(1)).await.unwrap() };
    let (mut a, mut b) = tokio::join!(start(), start());
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}], resume: true}}]
",
        a.url, b.url
    ))
    .await;
    let client = gateway.client();
    let body = serde_json::json!({
        "messages": [{"role": "user", "content": "Tell me a long story about a fox and a river."}],
        "stream": true, "temperature": 0, "max_tokens": 300, "ignore_eos": true,
        "stream_options": {"include_usage": true}
    });
    let headers = [("content-type", "application/json")];
    let request = client.request("POST", "/v1/chat/completions", &headers, body.to_string());
    let mut stream = client.stream(request).await.unwrap();
    let (mut text, mut killed_at) = (String::new(), None);
    while let Some(part) = stream.part().await {
        text.push_str(&String::from_utf8_lossy(&part.expect("the stream does not break")));
        if killed_at.is_none() && text.matches("\"content\"").count() > 20 {
            let at_a = gateway.endpoint(&a.url).await["inFlight"] == 1;
            killed_at = Some(text.len());
            if at_a { a.kill() } else { b.kill() }
        }
    }
    let all = events(&text);
    let said: String = all.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
    let marked: Vec<_> = all.iter().filter(|e| !e["spillway"].is_null()).collect();
    assert_eq!(marked.len(), 1, "{text}");
    assert!(killed_at.is_some_and(|at| at < text.len()) && text.ends_with("data: [DONE]\n\n"), "{text}");
    let usage = &all.last().unwrap()["usage"];
    let written = usage["completion_tokens"].as_u64().unwrap();
    // A token of the text may be split where it was continued.
    assert!((290..=310).contains(&written), "as long as it was to be: {usage}");
    println!("{said}");
    let before: String = {
        let at = all.iter().position(|e| !e["spillway"].is_null()).unwrap();
        all[..at].iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect()
    };
    let after = said.strip_prefix(&before).unwrap();
    assert!(
        before.len() > 40 && !after.trim_start().starts_with(before.get(..20).unwrap()),
        "it does not begin anew: {said}"
    );
}
