//! Saturation of a server: by its reports, its latency or its answers; and the destination of requests then.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use spillway_tests::{Client, Gateway, LlamaServer, Upstream, eventually, reply, streamed};

#[tokio::test]
async fn load_that_answers_report_is_asked_for_kept_from_callers_and_believed() {
    let busy = Upstream::start(|seen| async move {
        assert_eq!(seen.headers["endpoint-load-metrics-format"], "JSON");
        let load = r#"JSON {"named_metrics": {"kv_cache_usage_perc": 0.2, "num_requests_waiting": 9}}"#;
        Some(reply(200, &[("endpoint-load-metrics", load)], "busy"))
    })
    .await;
    let free = Upstream::fixed(200, "free").await;
    let yaml = format!(
        "backends:
  - name: x
    loadBalancing: {{policy: roundRobin}}
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]
    capacity: {{loadReports: true, queueDepth: {{max: 4, staleAfter: 3s}}}}
routes: [{{backendRefs: [{{name: x}}]}}]
",
        busy.url(),
        free.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for _ in 0..8 {
        let answer = client.get("/").await;
        assert_eq!((answer.status.as_u16(), answer.header("endpoint-load-metrics")), (200, ""));
    }
    assert_eq!(busy.count(), 1, "it said that nine wait");
    let shown = gateway.endpoint(&busy.url()).await;
    assert_eq!((&shown["state"], &shown["waiting"], &shown["kvCache"]), (&"queueDepth".into(), &9.into(), &0.2.into()));
    let series =
        format!("spillway_endpoint_saturated{{backend=\"x\",endpoint=\"{}\",reason=\"queueDepth\"}}", busy.url());
    gateway.metric_becomes(&series, 1.0).await;
    // A stale report does not mean full.
    eventually("it is asked again", || async {
        client.get("/").await;
        (busy.count() > 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_kv_cache_that_is_full_is_scraped_and_a_page_that_fails_stops_nobody() {
    let share = Arc::new(AtomicU32::new(95));
    let shared = share.clone();
    let x = Upstream::start(move |seen| {
        let share = shared.load(Ordering::Relaxed);
        async move {
            Some(match (seen.path.as_str(), share) {
                ("/m", 0) => reply(500, &[], "broken"),
                ("/m", share) => {
                    reply(200, &[], format!("vllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 0.{share}\n"))
                }
                _ => reply(200, &[], "ok"),
            })
        }
    })
    .await;
    let yaml = format!(
        "backends:
  - name: x
    endpoints: [{{url: \"{}\"}}]
    capacity: {{queueDepth: {{metricsPath: /m, max: 4, interval: 100ms, staleAfter: 500ms}}, kvCache: {{max: 0.9}}}}
routes: [{{backendRefs: [{{name: x}}]}}]
",
        x.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    eventually("it is full", || async { (client.get("/").await.status == 503).then_some(()) }).await;
    assert_eq!(gateway.endpoint(&x.url()).await["state"], "kvCache");
    share.store(0, Ordering::Relaxed);
    eventually("the old figure is stale", || async { (client.get("/").await.status == 200).then_some(()) }).await;
    let series = format!("spillway_endpoint_scrape_failures_total{{backend=\"x\",endpoint=\"{}\"}}", x.url());
    assert!(gateway.metric(&series).await > 0.0);
    assert_eq!(gateway.events("endpoint_metrics_not_read").len(), 1, "told once");
    share.store(10, Ordering::Relaxed);
    eventually("it is read again", || async { gateway.events("endpoint_metrics_read").first().map(|_| ()) }).await;
    assert_eq!(client.get("/").await.status, 200);
}

#[tokio::test]
async fn metrics_on_another_port_are_read_over_http_1_without_credentials() {
    let server = Upstream::start_http2(|_| async { Some(reply(200, &[], "ok")) }).await;
    // As Triton: inference over HTTP/2, metrics on a port of their own.
    let page = "nv_inference_pending_request_count{model=\"m\",version=\"1\"} 9\n";
    let metrics = Upstream::fixed(200, page).await;
    let gateway = Gateway::start(&format!(
        "backends:
  - name: triton
    http2: true
    endpoints: [{{url: \"{}\"}}]
    credentials: {{bearer: {{env: TEST_SECRET}}}}
    capacity: {{queueDepth: {{metricsPort: {}, max: 4, interval: 100ms, staleAfter: 10m}}}}
routes: [{{backendRefs: [{{name: triton}}]}}]
",
        server.url(),
        metrics.address.port()
    ))
    .await;
    eventually("it is full", || async { (gateway.client().get("/").await.status == 503).then_some(()) }).await;
    let shown = gateway.endpoint(&server.url()).await;
    assert_eq!((&shown["state"], &shown["waiting"]), (&"queueDepth".into(), &9.into()), "{shown}");
    let asked = metrics.last();
    assert_eq!((asked.path.as_str(), asked.headers.get("authorization")), ("/metrics", None));
    assert_eq!(asked.headers["host"], metrics.address.to_string());
    let seen = server.seen.lock().unwrap();
    assert!(seen.iter().all(|seen| seen.headers["authorization"] == "Bearer upstream-secret"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_at_a_real_llama_server_are_seen_in_its_metrics() {
    let (busy, free) = tokio::join!(
        async { tokio::task::spawn_blocking(|| LlamaServer::start_with(1, &["--metrics"])).await.unwrap() },
        async { tokio::task::spawn_blocking(|| LlamaServer::start_with(1, &["--metrics"])).await.unwrap() }
    );
    let yaml = format!(
        "backends:
  - name: x
    protocol: openai
    loadBalancing: {{policy: queueDepth}}
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]
    capacity: {{queueDepth: {{max: 1, interval: 100ms, staleAfter: 10s}}}}
routes: [{{backendRefs: [{{name: x}}]}}]
",
        busy.url, free.url
    );
    let gateway = Gateway::start(&yaml).await;
    // Requests of another client: the gateway does not count them, the server does.
    let direct = Client::new(busy.url.strip_prefix("http://").unwrap().parse().unwrap());
    let body = serde_json::json!({
        "messages": [{"role": "user", "content": "Count."}], "max_tokens": 2000, "stream": true, "ignore_eos": true
    });
    let hold = || {
        let json = [("content-type", "application/json")];
        let direct = direct.clone();
        let request = direct.request("POST", "/v1/chat/completions", &json, body.to_string());
        tokio::spawn(async move { direct.try_send(request).await })
    };
    let held = [hold(), hold(), hold()];
    let full = eventually("its queue is seen", || async {
        let shown = gateway.endpoint(&busy.url).await;
        (shown["state"] == "queueDepth").then_some(shown)
    })
    .await;
    assert!(full["waiting"].as_u64().unwrap() >= 1, "{full}");
    for _ in 0..2 {
        assert_eq!(gateway.client().chat("m", &[]).await.status, 200);
    }
    assert_eq!(gateway.endpoint(&busy.url).await["attempts"]["answered"], 0, "all went to the other");
    for request in held {
        request.abort();
    }
    eventually("it has room again", || async { (gateway.endpoint(&busy.url).await["state"] == "open").then_some(()) })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_is_found_from_latency_and_what_is_over_it_is_refused_at_once() {
    // Works on four at a time, each for 20 ms.
    let places = Arc::new(tokio::sync::Semaphore::new(4));
    let server = Upstream::start(move |_| {
        let places = places.clone();
        async move {
            let _place = places.acquire().await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            Some(reply(200, &[], "ok"))
        }
    })
    .await;
    let yaml = format!(
        "backends:
  - name: x
    endpoints: [{{url: \"{}\"}}]
    capacity: {{adaptive: {{minLimit: 1, maxLimit: 64, latencyTolerance: 2.0}}}}
routes: [{{backendRefs: [{{name: x}}]}}]
telemetry: {{logs: {{access: false}}}}
",
        server.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let until = tokio::time::Instant::now() + Duration::from_secs(4);
    let load = (0..32).map(|_| {
        let client = gateway.client();
        async move {
            let mut statuses = [0, 0];
            while tokio::time::Instant::now() < until {
                match client.get("/").await.status.as_u16() {
                    200 => statuses[0] += 1,
                    503 => {
                        statuses[1] += 1;
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    other => panic!("{other}"),
                }
            }
            statuses
        }
    });
    let statuses = futures::future::join_all(load).await;
    let (answered, refused): (i32, i32) = statuses.iter().fold((0, 0), |(a, r), s| (a + s[0], r + s[1]));
    let shown = gateway.endpoint(&server.url()).await;
    let limit = shown["limit"].as_u64().unwrap();
    println!("limit {limit}, {answered} answered, {refused} refused");
    assert!(limit > 1 && limit < 32, "grew from 1 and is below what was offered: {shown}");
    assert!(answered > 100 && refused > 100, "{answered} answered, {refused} refused");
    assert!(shown["latencyMs"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn a_key_keeps_its_server_and_prompts_that_begin_alike_share_one() {
    let servers = [Upstream::fixed(200, "a").await, Upstream::fixed(200, "b").await, Upstream::fixed(200, "c").await];
    let list: Vec<String> = servers.iter().map(|s| format!("{{url: \"{}\"}}", s.url())).collect();
    let backend = |name: &str, on: &str| {
        format!(
            "  - {{name: {name}, protocol: openai, endpoints: [{}], loadBalancing: {{policy: hash, hashOn: {on}}}}}\n",
            list.join(", ")
        )
    };
    let yaml = format!(
        "backends:\n{}{}{}routes:
  - {{name: h, matches: [{{path: {{prefix: /header}}}}], backendRefs: [{{name: h}}]}}
  - {{name: c, matches: [{{path: {{prefix: /cookie}}}}], backendRefs: [{{name: c}}]}}
  - {{name: p, backendRefs: [{{name: p}}]}}
",
        backend("h", "{header: x-session}"),
        backend("c", "{cookie: sid}"),
        backend("p", "{promptPrefix: 64B}")
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    // A request is in flight for a moment longer than its caller sees, and a busy server passes a key on.
    let rest = async || {
        eventually("nothing is in flight", || async {
            let shown: serde_json::Value = serde_json::from_str(&gateway.shown("/api/backends").await).unwrap();
            shown["backends"].as_array().unwrap().iter().all(|backend| backend["inFlight"] == 0).then_some(())
        })
        .await;
    };
    for (path, header, value) in [("/header", "x-session", ""), ("/cookie", "cookie", "a=b; sid=")] {
        let mut used = std::collections::BTreeSet::new();
        for key in 0..20 {
            let value = format!("{value}{key}");
            let ask = async || client.send(client.request("GET", path, &[(header, &value)], "")).await.text();
            let first = ask().await;
            rest().await;
            assert_eq!(ask().await, first);
            rest().await;
            used.insert(first);
        }
        assert_eq!(used.len(), 3, "{path}");
    }
    let ask = async |system: &str, user: &str| {
        let body = serde_json::json!({"model": "m", "messages": [
            {"role": "system", "content": system}, {"role": "user", "content": user}
        ]});
        client.post("/v1/chat/completions", &[("content-type", "application/json")], body.to_string()).await.text()
    };
    let mut used = std::collections::BTreeSet::new();
    for assistant in 0..20 {
        let system = format!("{assistant}{}", " You are a helpful assistant of the house.".repeat(4));
        let first = ask(&system, "one").await;
        rest().await;
        assert_eq!(ask(&system, "another").await, first);
        rest().await;
        used.insert(first);
    }
    assert_eq!(used.len(), 3);
}

#[tokio::test]
async fn the_next_priority_stands_in_when_the_first_is_full_or_gone() {
    let first = Upstream::start(|_| async { Some(reply(503, &[("retry-after", "1")], "full")) }).await;
    let (second, third) = (Upstream::fixed(200, "second").await, Upstream::fixed(200, "third").await);
    let yaml = format!(
        "backends:
  - name: near
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\", priority: 1}}]
    capacity: {{statuses: [503]}}
  - name: far
    endpoints: [{{url: \"{}\"}}]
routes:
  - {{name: tiers, backendRefs: [{{name: near}}]}}
  - name: refs
    matches: [{{path: {{prefix: /refs}}}}]
    backendRefs: [{{name: far, priority: 7}}, {{name: gone, priority: 2}}]
",
        first.url(),
        second.url(),
        third.url()
    )
    .replace(
        "  - name: far",
        &format!("  - {{name: gone, endpoints: [{{url: \"{}\"}}], healthCheck: {{tcp: {{}}, interval: 50ms, unhealthyThreshold: 1}}}}\n  - name: far", Upstream::nobody().await),
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for _ in 0..3 {
        assert_eq!(client.get("/").await.text(), "second");
    }
    assert_eq!(first.count(), 1);
    eventually("it is gone", || async { gateway.events("endpoint_unhealthy").first().map(|_| ()) }).await;
    assert_eq!(client.get("/refs").await.text(), "third");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_asks_again_at_once_does_not_find_its_own_slot_taken() {
    // Answers with a length, one in chunks, and one without a body.
    let upstream = Upstream::start(|seen| async move {
        let (send, parts) = tokio::sync::mpsc::channel(4);
        Some(match seen.path.as_str() {
            "/short" => reply(200, &[], "ok"),
            "/long" => reply(200, &[], "x".repeat(300_000)),
            "/none" => reply(204, &[], ""),
            _ => {
                for part in ["one", "two"] {
                    send.send(Ok(part.into())).await.unwrap();
                }
                streamed(&[], parts)
            }
        })
    })
    .await;
    let yaml = format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}}}]
routes: [{{backendRefs: [{{name: x}}], retry: {{attempts: 0}}}}]
",
        upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for turn in 0..400 {
        let path = ["/short", "/long", "/none", "/chunked"][turn % 4];
        let answer = client.get(path).await;
        assert!(answer.status.is_success(), "{turn}, {path}: {}", answer.text());
    }
}
