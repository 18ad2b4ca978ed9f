//! What the gateway tells of its requests: times in answers, headers in the access log, traces that are kept by how they end.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::Full;
use spillway_tests::{
    Client, Collector, Gateway, Upstream, binary, eventually, http2_over, model, promtool, reply, whole,
};

/// Time that the scripted server takes.
const WORK: Duration = Duration::from_millis(60);

/// Milliseconds of a metric in the gateway's own `Server-Timing`, which is the last.
fn millis(headers: &HeaderMap, name: &str) -> Option<f64> {
    let field = headers.get_all("server-timing").iter().next_back()?.to_str().unwrap();
    let metric = field.split(", ").find_map(|metric| metric.strip_prefix(name)?.strip_prefix(";dur="));
    Some(metric.unwrap_or_else(|| panic!("{name} in {field}")).parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_say_how_long_they_waited_and_were_worked_on() {
    let server = Upstream::start(|seen| async move {
        if seen.path == "/broken" {
            return None;
        }
        tokio::time::sleep(WORK).await;
        Some(reply(200, &[("server-timing", "db;dur=53")], "ok"))
    })
    .await;
    let yaml = |timing: bool| {
        format!(
            "listeners: [{{name: l, address: \"127.0.0.1:0\"}}, {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}]
backends: [{{name: web, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}, outlierDetection: {{consecutiveErrors: 100}}}}]
models: [{{name: smollm2, source: \"{}\", contextLength: 256, maxQueueWait: 60s}}]
routes:
  - {{name: web, matches: [{{path: {{prefix: /web}}}}], backendRefs: [{{name: web}}], whenSaturated: {{queue: {{maxWait: 30s, maxDepth: 9}}}}}}
  - {{name: broken, matches: [{{path: {{prefix: /broken}}}}], backendRefs: [{{name: web}}], retry: {{attempts: 1}}}}
  - {{name: own, matches: [{{path: {{prefix: /own}}}}], filters: [{{respond: {{body: own}}}}]}}
  - {{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: smollm2}}]}}
telemetry: {{serverTiming: {timing}}}
",
            server.url(),
            model().display()
        )
    };
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(true)).await;
    let client = gateway.client();
    // The second waits for the slot of the first.
    let (first, second) = tokio::join!(client.get("/web"), client.get("/web"));
    let waited = |headers: &HeaderMap| millis(headers, "queue").unwrap();
    assert!(waited(&first.headers).max(waited(&second.headers)) > 0.0, "{:?} {:?}", first.headers, second.headers);
    for answer in [&first, &second] {
        let fields: Vec<_> = answer.headers.get_all("server-timing").iter().collect();
        assert_eq!((fields.len(), fields[0].to_str().unwrap()), (2, "db;dur=53"), "that of the server is kept");
        assert!(millis(&answer.headers, "upstream").unwrap() >= WORK.as_secs_f64() * 1e3, "{:?}", answer.headers);
        assert!(millis(&answer.headers, "gateway").unwrap() >= 0.0);
    }
    // Answers of the gateway itself, refusals among them.
    for (path, status) in [("/own", 200), ("/nothing", 404)] {
        let answer = client.get(path).await;
        assert_eq!(answer.status, status);
        assert_eq!((waited(&answer.headers), millis(&answer.headers, "upstream")), (0.0, Some(0.0)), "{path}");
    }
    let broken = client.get("/broken").await;
    assert_eq!(broken.status, 503);
    assert!(millis(&broken.headers, "upstream").unwrap() > 0.0, "attempts that failed took time: {:?}", broken.headers);
    let body =
        serde_json::json!({"model": "smollm2", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}]});
    let chat = client.post("/v1/chat/completions", &[], body.to_string()).await;
    assert_eq!(chat.status, 200, "{}", chat.text());
    assert!(millis(&chat.headers, "upstream").unwrap() > 0.0, "{:?}", chat.headers);
    // HTTP/2 has it as well.
    let stream = tokio::net::TcpStream::connect(gateway.listener("h2c")).await.unwrap();
    let mut http2 = http2_over(stream).await;
    let request = http::Request::get("http://a.test/web").body(Full::new(Bytes::new())).unwrap();
    let answer = http2.send_request(request).await.unwrap();
    assert!(millis(answer.headers(), "upstream").unwrap() >= WORK.as_secs_f64() * 1e3, "{:?}", answer.headers());
    // Off again by an edit.
    let edits = gateway.edits();
    std::fs::write(gateway.config(), whole(&yaml(false))).unwrap();
    assert_eq!(gateway.reloads(edits).await["event"], "config_reloaded");
    assert_eq!(millis(&client.get("/own").await.headers, "queue"), None);
    let answer = client.get("/web").await;
    assert_eq!(answer.header("server-timing"), "db;dur=53");
}

#[tokio::test]
async fn lines_of_requests_show_the_headers_that_were_asked_for_and_no_secret() {
    let server = Upstream::fixed(200, "ok").await;
    let yaml = format!(
        "backends: [{{name: web, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: web}}]}}]
telemetry: {{logs: {{headers: [x-tenant, x-user, cookie, authorization], redactHeaders: [x-user]}}}}
",
        server.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let sent = [
        ("x-tenant", "acme"),
        ("x-user", "ann-1"),
        ("cookie", "sid=s3cret"),
        ("authorization", "Bearer s3cret"),
        ("x-other", "unasked"),
    ];
    client.send(client.request("GET", "/", &sent, "")).await;
    let line = eventually("the line", || async { gateway.events("access").first().cloned() }).await;
    let expected = serde_json::json!({
        "x-tenant": "acme", "x-user": "[redacted]", "cookie": "[redacted]", "authorization": "[redacted]"
    });
    assert_eq!(line["requestHeaders"], expected);
    for secret in ["s3cret", "ann-1", "unasked"] {
        assert!(!gateway.log().contains(secret), "{secret}");
    }
}

/// Waits until the collector has these texts, and asserts that it has none of the others.
async fn exported(collector: &Collector, texts: &[&str], others: &[&str]) {
    let has = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
    for text in texts {
        eventually(&format!("{text} is exported"), || async { has(&collector.bytes(), text).then_some(()) }).await;
    }
    let bytes = collector.bytes();
    for text in others {
        assert!(!has(&bytes, text), "{text} is exported");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_of_errors_spills_and_slow_requests_are_sent_whatever_the_share_is() {
    let collector = Collector::start().await;
    let server = Upstream::start(|seen| async move {
        match seen.path.as_str() {
            "/failed" => Some(reply(500, &[], "no")),
            "/slow" => {
                tokio::time::sleep(WORK).await;
                Some(reply(200, &[], "ok"))
            }
            _ => Some(reply(200, &[], "ok")),
        }
    })
    .await;
    let full = Upstream::fixed(503, "full").await;
    let yaml = format!(
        "backends:
  - {{name: web, endpoints: [{{url: \"{}\"}}]}}
  - {{name: full, endpoints: [{{url: \"{}\"}}], capacity: {{statuses: [503]}}}}
routes:
  - {{name: web, backendRefs: [{{name: web}}]}}
  - {{name: full, matches: [{{path: {{prefix: /full}}}}], backendRefs: [{{name: full}}], whenSaturated: {{spillTo: web}}}}
telemetry: {{tracing: {{otlp: {{endpoint: \"{}\"}}, sampleRatio: 0, keep: {{errors: true, spilled: true, slowerThan: 50ms}}}}}}
",
        server.url(),
        full.url(),
        collector.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for (path, status) in [("/good", 200), ("/failed", 500), ("/full/spilled", 200), ("/slow", 200)] {
        assert_eq!(client.get(path).await.status, status, "{path}");
    }
    // With the names of attempts, which end before their requests do.
    exported(&collector, &["/failed", "/full/spilled", "/slow", "GET web", "GET full"], &[]).await;
    for seen in server.seen.lock().unwrap().iter() {
        assert!(seen.headers["traceparent"].to_str().unwrap().ends_with("-00"), "servers are told what was decided");
    }
    // What is kept is the request that is slow on every machine; a quick one may be slow on some.
    let (status, log) = {
        gateway.signal("TERM");
        gateway.wait().await
    };
    assert!(status.success(), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quick_and_good_request_is_not_kept() {
    let (collector, server) = (Collector::start().await, Upstream::fixed(200, "ok").await);
    let yaml = format!(
        "backends: [{{name: web, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: web, backendRefs: [{{name: web}}]}}]
telemetry: {{tracing: {{otlp: {{endpoint: \"{}\"}}, sampleRatio: 0, keep: {{errors: true, slowerThan: 10m}}}}}}
",
        server.url(),
        collector.url()
    );
    let gateway = Gateway::start(&yaml).await;
    assert_eq!(gateway.client().get("/quick").await.status, 200);
    // The end of the process sends all that waits.
    gateway.signal("TERM");
    let (status, log) = gateway.wait().await;
    assert!(status.success(), "{log}");
    exported(&collector, &[], &["/quick"]).await;
}

/// Answer to every chat that repeats what is asked.
async fn echo(seen: spillway_tests::Seen) -> Option<spillway_tests::Reply> {
    let asked = spillway_tests::asked(&seen);
    let last = asked["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
    let answer = serde_json::json!({
        "id": "c1", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": format!("You said {last}")}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
    });
    let answer = answer.to_string().into_bytes();
    let json = ("content-type", "application/json");
    Some(if seen.headers.get("accept-encoding").is_some_and(|codings| codings.to_str().unwrap().contains("gzip")) {
        reply(200, &[json, ("content-encoding", "gzip")], spillway_tests::encoded("gzip", &answer))
    } else {
        reply(200, &[json], answer)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn spans_show_the_texts_of_model_calls_only_where_asked_and_redacted() {
    let (collector, server) = (Collector::start().await, Upstream::start(echo).await);
    let ((kept, kept_digest), (private, private_digest)) = (spillway_tests::new_key(), spillway_tests::new_key());
    let yaml = |captures: bool| {
        format!(
            "consumers:
  - {{name: open, keys: [{{sha256: {kept_digest}}}]}}
  - {{name: private, keys: [{{sha256: {private_digest}}}], keepExamples: false}}
backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, backendRefs: [{{name: b}}]}}]
telemetry: {{tracing: {{otlp: {{endpoint: \"{}\"}}, captureContent: {captures}}}}}
",
            server.url(),
            collector.url()
        )
    };
    let ask = async |client: &Client, key: &str, text: &str, codings: &str| {
        let body = serde_json::json!({"model": "m", "messages": [
            {"role": "system", "content": "Be kind."}, {"role": "user", "content": text}
        ]});
        let headers = [("x-api-key", key), ("content-type", "application/json"), ("accept-encoding", codings)];
        let answer = client.post("/v1/chat/completions", &headers, body.to_string()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    let silent = Gateway::start(&yaml(false)).await;
    ask(&silent.client(), &kept, "unasked pangolin", "identity").await;
    silent.signal("TERM");
    silent.wait().await;
    let gateway = Gateway::start(&yaml(true)).await;
    let client = gateway.client();
    ask(&client, &private, "private axolotl", "identity").await;
    ask(&client, &kept, "write to ann@example.com", "identity").await;
    ask(&client, &kept, "compressed okapi", "gzip").await;
    let shown = [
        r#"[{"role":"system","parts":[{"type":"text","content":"Be kind."}]},{"role":"user","parts":[{"type":"text","content":"write to [email]"}]}]"#,
        r#"{"type":"text","content":"You said write to [email]"}"#,
        "You said compressed okapi",
        "gen_ai.input.messages",
        "gen_ai.output.messages",
    ];
    let sorted =
        |text: &str| serde_json::from_str(text).map_or(text.to_owned(), |value: serde_json::Value| value.to_string());
    let shown = shown.map(sorted);
    let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
    gateway.signal("TERM");
    gateway.wait().await;
    exported(&collector, &shown, &["pangolin", "axolotl", "ann@example.com"]).await;
}

/// Text that a program says about its input.
fn judged(program: &mut Command, input: &str) -> (Option<i32>, String) {
    let mut child = program.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    (out.status.code(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_an_address_of_their_own_and_lead_to_traces() {
    let (collector, server) = (Collector::start().await, Upstream::fixed(200, "ok").await);
    let yaml = |open_metrics: bool, address: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
admin: {{address: \"127.0.0.1:0\", token: {{env: TEST_SECRET}}}}
backends: [{{name: web, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: web, backendRefs: [{{name: web}}]}}]
telemetry:
  tracing: {{otlp: {{endpoint: \"{}\"}}}}
  metrics: {{openMetrics: {open_metrics}, address: \"{address}\"}}
",
            server.url(),
            collector.url()
        )
    };
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(true, "127.0.0.1:0")).await;
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let client = gateway.client();
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    client.send(client.request("GET", "/", &[("traceparent", &parent)], "")).await;
    let address = gateway.events("metrics_listening")[0]["address"].as_str().unwrap().parse().unwrap();
    let metrics = Client::new(address);
    let count = "http_server_request_duration_seconds_count{";
    let page = eventually("the request is counted", || async {
        let page = metrics.get("/metrics").await;
        page.text().contains(count).then_some(page)
    })
    .await;
    assert_eq!(page.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    let text = page.text();
    let exemplar = format!(" # {{trace_id=\"{trace}\"}} ");
    let leads =
        |line: &&str| line.starts_with("http_server_request_duration_seconds_bucket{") && line.contains(&exemplar);
    assert_eq!(text.lines().filter(leads).count(), 1, "{text}");
    // Prometheus' own parser reads it, exemplars included; it wants a time for each sample of a file.
    let dated: String = text
        .lines()
        .map(|line| match line.split_once("} ").or_else(|| line.split_once(' ')) {
            Some(_) if line.starts_with('#') => format!("{line}\n"),
            Some(_) => {
                let value_at =
                    if line.contains('{') { line.find("} ").unwrap() + 2 } else { line.find(' ').unwrap() + 1 };
                let (series, rest) = line.split_at(value_at);
                let (value, behind) =
                    rest.split_once(' ').map_or((rest, String::new()), |(value, behind)| (value, format!(" {behind}")));
                format!("{series}{value} 1700000000{behind}\n")
            }
            None => format!("{line}\n"),
        })
        .collect();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("metrics.txt"), &dated).unwrap();
    let mut parse = Command::new(promtool());
    parse.args(["tsdb", "create-blocks-from", "openmetrics", "metrics.txt", "blocks"]).current_dir(folder.path());
    let (code, said) = judged(&mut parse, "");
    assert_eq!(code, Some(0), "{said}\n{dated}");
    // Nothing else is there, and nothing else is let in.
    for (method, path, status) in
        [("GET", "/api/config", 404), ("GET", "/", 404), ("GET", "/readyz", 404), ("POST", "/metrics", 405)]
    {
        assert_eq!(metrics.send(metrics.request(method, path, &[], "")).await.status, status, "{method} {path}");
    }
    assert_eq!(Client::new(gateway.admin).get("/metrics").await.status, 401);
    // The older text format, by an edit; the address needs a restart.
    let edits = gateway.edits();
    std::fs::write(gateway.config(), yaml(false, "127.0.0.1:0")).unwrap();
    assert_eq!(gateway.reloads(edits).await["event"], "config_reloaded");
    let page = metrics.get("/metrics").await;
    assert_eq!(page.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    assert!(!page.text().contains(trace), "{}", page.text());
    let (code, said) = judged(Command::new(promtool()).args(["check", "metrics"]), &page.text());
    assert!(matches!(code, Some(0 | 3)), "not even a complaint about its form: {said}");
    let edits = gateway.edits();
    std::fs::write(gateway.config(), yaml(false, "127.0.0.1:1")).unwrap();
    let refused = gateway.reloads(edits).await;
    assert!(refused["reason"].as_str().unwrap().contains("`telemetry.metrics.address` cannot be changed"), "{refused}");
}

#[test]
fn keys_of_telemetry_that_can_have_no_effect_are_told() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spillway.yaml");
    let check = |telemetry: &str| {
        let rest = "listeners: [{address: \"127.0.0.1:8080\"}]\nadmin: {address: \"127.0.0.1:9901\"}\nroutes: [{filters: [{respond: {body: x}}]}]\n";
        std::fs::write(&file, format!("{rest}telemetry: {telemetry}\n")).unwrap();
        let out = Command::new(binary()).arg("check").arg(&file).output().unwrap();
        (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
    };
    for (telemetry, is_good, said) in [
        ("{logs: {redactHeaders: [authorization]}}", true, "`authorization` is not logged at all"),
        ("{logs: {headers: [\"a b\"]}}", false, "`a b` is no name of a header"),
        ("{logs: {headers: [\"*\", x-a]}}", false, "`*` stands for every header"),
        ("{logs: {headers: [x-a], access: false}}", false, "no effect without lines for requests"),
        ("{logs: {headers: [x-spillway-consumer]}}", true, "is removed from every request"),
        ("{metrics: {address: \"127.0.0.1:8080\"}}", false, "a listener has this address already"),
        ("{metrics: {address: \"127.0.0.1:9901\"}}", false, "the admin address is the same"),
        (
            "{tracing: {otlp: {endpoint: \"http://127.0.0.1:4317\"}, keep: {slowerThan: 0s}}}",
            false,
            "every request is slower",
        ),
    ] {
        let (success, text) = check(telemetry);
        assert!(success == is_good && text.contains(said), "{telemetry}: {text}");
    }
}
