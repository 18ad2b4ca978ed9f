//! What the gateway tells of its requests: times in answers, headers in the access log, traces that are kept by how they end.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::Full;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use spillway_tests::{
    Client, Collector, Gateway, Upstream, binary, eventually, free_port, http2_over, jaeger, model, new_key, promtool,
    reply, streamed, whole,
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

/// Fields of lines and attributes of spans have the values of expressions, and no value of a redacted header or a credential.
#[tokio::test(flavor = "multi_thread")]
async fn lines_and_spans_have_computed_fields_and_no_secret() {
    let usage = r#"{"id": "1", "object": "chat.completion", "model": "m-2", "choices": [{"index": 0, "message": {"role":
        "assistant", "content": "hi"}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}}"#;
    let answer = move |_| async move { Some(reply(200, &[("content-type", "application/json")], usage)) };
    let (collector, server) = (Collector::start().await, Upstream::start(answer).await);
    let yaml = format!(
        "backends: [{{name: llm, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, backendRefs: [{{name: llm}}]}}]
telemetry:
  tracing:
    otlp: {{endpoint: \"{}\"}}
    attributes:
      - {{name: app.model, value: \"model\"}}
      - {{name: app.plan, value: \"request.headers['x-plan'] + request.headers['x-user'] + request.headers['authorization']\"}}
  logs:
    redactHeaders: [x-user]
    fields:
      - {{name: tokens, value: \"usage.promptTokens + usage.completionTokens\"}}
      - {{name: of, value: \"backend + '/' + route + '/' + model\"}}
      - {{name: good, value: \"response.status < 400\"}}
      - {{name: who, value: \"request.headers['x-user'] + request.headers.map(n, request.headers[n]).filter(v, v.contains('s3cret'))[0]\"}}
      - {{name: line, value: \"request.headers['x-plan']\"}}
",
        server.url(),
        collector.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let sent =
        [("x-plan", "gold \u{85}"), ("x-user", "ann-1"), ("authorization", "Bearer s3cret"), ("cookie", "a=s3cret")];
    assert_eq!(client.chat("m", &sent).await.status, 200);
    let line = eventually("the line", || async { gateway.events("access").first().cloned() }).await;
    let expected = serde_json::json!({"tokens": 10, "of": "llm/chat/m-2", "good": true, "line": "gold \u{85}"});
    assert_eq!(line["fields"], expected);
    exported(&collector, &["app.model", "m-2", "app.plan", "[redacted][redacted]"], &["s3cret", "ann-1"]).await;
    assert!(!gateway.log().contains("s3cret") && !gateway.log().contains("ann-1"));
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Waits until the collector has these texts, and asserts that it has none of the others.
async fn exported(collector: &Collector, texts: &[&str], others: &[&str]) {
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
        ("{logs: {fields: [{name: a, value: \"usage.none\"}]}}", false, "`usage` has no `none`"),
        ("{logs: {fields: [{name: a, value: \"request.body.n\"}]}}", false, "`request.body` is not known in a field"),
        ("{logs: {fields: [{name: a b, value: \"route\"}]}}", false, "expected at most 64 letters"),
        ("{logs: {fields: [{name: a, value: \"route\"}, {name: a, value: \"route\"}]}}", false, "is there already"),
        (
            "{logs: {access: false, fields: [{name: a, value: \"route\"}]}}",
            false,
            "no effect without lines for requests",
        ),
        (
            "{tracing: {otlp: {endpoint: \"http://127.0.0.1:4317\"}, attributes: [{name: http.x, value: \"route\"}]}}",
            false,
            "the gateway sets attributes such as `http.x` itself",
        ),
        ("{logs: {headers: [x-spillway-consumer]}}", true, "is removed from every request"),
        ("{logs: {otlp: {endpoint: \"https://127.0.0.1:4317\"}}}", false, "is not the URL of a collector"),
        ("{logs: {otlp: {endpoint: \"http://u:p@127.0.0.1:4317\"}}}", false, "a user or password in the URL"),
        (
            "{logs: {otlp: {endpoint: \"http://127.0.0.1:4317\", buffered: 1KiB}}}",
            false,
            "a single record may be larger: expected at least 64KiB",
        ),
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

/// Configuration whose log goes to a collector.
fn exported_log(server: &Upstream, digest: &str, telemetry: &str) -> String {
    format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
admin: {{address: \"127.0.0.1:0\"}}
consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}]}}]
backends: [{{name: web, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: web, backendRefs: [{{name: web}}]}}]
telemetry: {telemetry}
",
        server.url()
    )
}

/// Records of the log that were lost.
async fn lost_records(gateway: &Gateway) -> f64 {
    gateway.metric("spillway_log_records_dropped_total").await
}

/// Writes a configuration and waits until it is in force.
async fn reload(gateway: &Gateway, yaml: &str) {
    let before = gateway.edits();
    std::fs::write(gateway.config(), yaml).unwrap();
    assert_eq!(gateway.reloads(before).await["event"], "config_reloaded");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Promise (how-to/logs): with `telemetry.logs.otlp` a collector has the lines of standard output, under the spans of their
/// requests, and no secret that the lines have not. An edit takes effect without a restart, and the last lines arrive.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_has_the_lines_of_the_log_under_the_spans_of_their_requests() {
    let (collector, other) = (Collector::start().await, Collector::start().await);
    let server = Upstream::start(|seen| async move {
        Some(reply(if seen.path.starts_with("/broken") { 500 } else { 200 }, &[], "ok"))
    })
    .await;
    let (key, digest) = new_key();
    let telemetry = |logs: &str| {
        let headers = "headers: [x-tenant, x-user, cookie], redactHeaders: [x-user]";
        format!("{{tracing: {{otlp: {{endpoint: \"{}\"}}}}, logs: {{{headers}{logs}}}}}", collector.url())
    };
    let to = |collector: &Collector| telemetry(&format!(", otlp: {{endpoint: \"{}\"}}", collector.url()));
    let yaml = |telemetry: &str| exported_log(&server, &digest, telemetry);
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(&to(&collector))).await;
    let client = gateway.client();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let parent = format!("00-{trace}-b7ad6b7169203331-01");
    let headers = [
        ("x-api-key", key.as_str()),
        ("traceparent", &parent),
        ("x-tenant", "north\u{9b}"),
        ("x-user", "mia-s3cret"),
        ("cookie", "session=s3cret"),
        ("user-agent", "probe/1"),
    ];
    client.send(client.request("POST", "/fine?token=s3cret", &headers, "12345")).await;
    client.send(client.request("GET", "/broken", &[("x-api-key", &key)], "")).await;
    assert_eq!(client.send(client.request("GET", "/", &[("x-api-key", "wrong-s3cret")], "")).await.status, 401);

    let requests = eventually("the collector has all requests", || async {
        Some(collector.logged_as("access")).filter(|logged| logged.len() == 3)
    })
    .await;
    let line = gateway.events("access").into_iter().find(|line| line["path"] == "/fine").unwrap();
    let of = |path: &str| requests.iter().find(|logged| logged.attribute("url.path") == path).unwrap();
    let fine = of("/fine");
    for (key, expected) in [
        ("spillway.request.id", line["requestId"].clone()),
        ("client.address", "127.0.0.1".into()),
        ("spillway.consumer", "acme".into()),
        ("http.route", "web".into()),
        ("http.request.method", "POST".into()),
        ("network.protocol.name", "http".into()),
        ("network.protocol.version", "1.1".into()),
        ("http.response.status_code", 200.into()),
        ("http.request.body.size", 5.into()),
        ("http.response.body.size", 2.into()),
        ("spillway.backend", "web".into()),
        ("spillway.attempts", 1.into()),
        ("user_agent.original", "probe/1".into()),
        ("http.request.header.x-tenant", serde_json::json!([line["requestHeaders"]["x-tenant"]])),
        ("http.request.header.x-user", serde_json::json!(["[redacted]"])),
        ("http.request.header.cookie", serde_json::json!(["[redacted]"])),
        ("error.type", serde_json::Value::Null),
    ] {
        assert_eq!(fine.attribute(key), expected, "{key} of {fine:?}");
    }
    let millis = line["durationMs"].as_f64().unwrap();
    assert!((fine.attribute("spillway.duration.seconds").as_f64().unwrap() - millis / 1e3).abs() < 1e-9);
    assert_eq!((hex(&fine.record.trace_id), &line["traceId"]), (trace.to_owned(), &trace.into()));
    assert_eq!(line["spanId"], hex(&fine.record.span_id).as_str());
    // Its span too, which comes by another way.
    exported(&collector, &["POST web"], &[]).await;
    assert_eq!((fine.record.severity_text.as_str(), fine.record.severity_number), ("INFO", 9));
    assert_eq!((of("/broken").record.severity_text.as_str(), of("/broken").record.severity_number), ("ERROR", 17));
    assert_eq!((fine.of_process("service.name"), fine.scope.as_str()), ("spillway".into(), "spillway"));
    assert!(fine.record.time_unix_nano > 0 && fine.record.observed_time_unix_nano > 0);

    let refused = &collector.logged_as("audit")[0];
    assert_eq!(refused.record.severity_text, "WARN");
    assert_eq!(refused.attribute("spillway.audit.action"), "authentication_refused");
    assert_eq!(refused.attribute("spillway.request.id"), of("/").attribute("spillway.request.id"));
    let ready = eventually("the collector has events", || async { collector.logged_as("ready").pop() }).await;
    assert!(ready.scope.starts_with("spillway::"), "{ready:?}");
    assert_eq!(ready.attribute("spillway.version"), gateway.events("ready")[0]["version"]);

    // Without tracing there is the caller's trace, and no span of the gateway's own.
    let silent = format!("{{logs: {{otlp: {{endpoint: \"{}\"}}}}}}", other.url());
    reload(&gateway, &yaml(&silent)).await;
    client.send(client.request("GET", "/moved", &headers, "")).await;
    let moved = eventually("the other collector has it", || async { other.logged_as("access").pop() }).await;
    assert_eq!(moved.attribute("url.path"), "/moved");
    assert_eq!((hex(&moved.record.trace_id), hex(&moved.record.span_id)), (trace.to_owned(), "0".repeat(16)));
    assert!(gateway.events("access").iter().all(|line| line["path"] != "/moved" || line.get("spanId").is_none()));
    assert!(!has(&collector.bytes(), "/moved"));

    // Off, and on again: nothing of the time between arrives.
    reload(&gateway, &yaml("{}")).await;
    client.send(client.request("GET", "/unseen", &headers, "")).await;
    reload(&gateway, &yaml(&to(&collector))).await;
    assert_eq!(lost_records(&gateway).await, 0.0);
    client.send(client.request("GET", "/last", &headers, "")).await;
    gateway.signal("TERM");
    let (status, _) = gateway.wait().await;
    assert!(status.success());
    for (event, key, value) in [("access", "url.path", "/last"), ("stopped", "url.path", "")] {
        let last = collector.logged_as(event).pop().unwrap_or_else(|| panic!("{event} is not there"));
        assert_eq!(last.attribute(key).as_str().unwrap_or_default(), value);
    }
    let all = [collector.bytes(), other.bytes()].concat();
    for secret in ["s3cret", "/unseen", &key] {
        assert!(!has(&all, secret), "{secret}");
    }
}

/// Texts with how often each is there.
fn counted(texts: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    texts.for_each(|text| *counts.entry(text).or_default() += 1);
    counts
}

/// Promise (how-to/upgrade, how-to/logs): over hand-overs under load a collector has each line of the log and each span once, of
/// the processes that end as of the one that goes on.
#[tokio::test(flavor = "multi_thread")]
async fn no_line_and_no_span_is_lost_or_doubled_over_hand_overs() {
    let collector = Collector::start().await;
    let open = Arc::new(Mutex::new(Vec::new()));
    let streams = open.clone();
    let server = Upstream::start(move |seen| {
        let streams = streams.clone();
        async move {
            if !seen.path.starts_with("/stream") {
                return Some(reply(200, &[], "ok"));
            }
            let (send, parts) = tokio::sync::mpsc::channel(4);
            send.send(Ok("data: first\n\n".into())).await.unwrap();
            streams.lock().unwrap().push(send);
            Some(streamed(&[("content-type", "text/event-stream")], parts))
        }
    })
    .await;
    let (key, digest) = new_key();
    let endpoint = collector.url();
    let telemetry =
        format!("{{tracing: {{otlp: {{endpoint: \"{endpoint}\"}}}}, logs: {{otlp: {{endpoint: \"{endpoint}\"}}}}}}");
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &exported_log(&server, &digest, &telemetry)).await;
    let client = gateway.client();
    let headers = [("x-api-key", key.as_str())];
    let sent = AtomicUsize::new(0);
    let stopped = AtomicBool::new(false);
    let load = async || {
        while !stopped.load(Ordering::Relaxed) {
            let path = format!("/{}", sent.fetch_add(1, Ordering::Relaxed));
            assert_eq!(client.send(client.request("GET", &path, &headers, "")).await.status, 200);
        }
    };
    let mut held = Vec::new();
    let handing_over = async {
        for n in 0..2 {
            let path = format!("/stream/{n}");
            let mut stream = client.stream(client.request("GET", &path, &headers, "")).await.unwrap();
            stream.part().await.unwrap().unwrap();
            held.push(stream);
            let (code, said) = gateway.upgrade().await;
            assert_eq!(code, Some(0), "{said}");
        }
        stopped.store(true, Ordering::Relaxed);
    };
    tokio::join!(handing_over, load(), load(), load());
    // A stream of each process that has handed over ends in it.
    assert_eq!(gateway.events("stopped").len(), 0);
    open.lock().unwrap().clear();
    for mut stream in held {
        assert!(stream.part().await.is_none(), "the stream ends in order");
    }
    eventually("the processes before end", || async { (gateway.events("stopped").len() == 2).then_some(()) }).await;
    let last = gateway.serving().await;
    assert_eq!(lost_records(&gateway).await, 0.0);
    assert_eq!(gateway.metric("spillway_spans_dropped_total").await, 0.0);
    assert!(Command::new("kill").args(["-s", "TERM", &last.to_string()]).status().unwrap().success());
    eventually("the last process ends", || async { gateway.successors().is_empty().then_some(()) }).await;

    let paths: BTreeMap<String, usize> = (0..sent.into_inner())
        .map(|n| (format!("/{n}"), 1))
        .chain((0..2).map(|n| (format!("/stream/{n}"), 1)))
        .collect();
    let lines = gateway.events("access");
    assert_eq!(counted(lines.iter().map(|line| line["path"].as_str().unwrap().to_owned())), paths);
    let logged = collector.logged();
    let requests = logged.iter().filter(|logged| logged.record.event_name == "access");
    assert_eq!(counted(requests.map(|logged| logged.attribute("url.path").as_str().unwrap().to_owned())), paths);
    let spans = collector.spans();
    let by_id = counted(spans.iter().map(|span| hex(&span.span_id)));
    assert!(by_id.values().all(|count| *count == 1), "a span is there twice: {by_id:?}");
    for kind in [SpanKind::Server, SpanKind::Client] {
        let spans = spans.iter().filter(|span| span.kind() == kind).count();
        assert_eq!(spans, lines.len(), "each request has its span and that of its attempt");
    }
    for line in &lines {
        assert!(by_id.contains_key(line["spanId"].as_str().unwrap()), "the span of {line} is missing");
    }
    // A process logs these before its configuration is in force too, and that is on standard output alone.
    let is_early = |event: &String| ["descriptors_limited", "admin_listening"].contains(&event.as_str());
    let told = gateway.log();
    let told = told.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        Some(line["event"].as_str()?.to_owned())
    });
    let told = counted(told.filter(|event| !is_early(event)));
    let exported = logged.iter().map(|logged| logged.record.event_name.clone());
    let exported = counted(exported.filter(|event| !is_early(event)));
    assert_eq!(exported, told);
}

/// Promise (how-to/logs): a collector that hangs costs requests nothing, records that wait are bounded, what is lost is
/// counted, and the end of the process does not wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_collector_of_the_log_that_hangs_costs_records_and_no_request() {
    let (collector, server) = (Collector::start().await, Upstream::fixed(200, "ok").await);
    let (key, digest) = new_key();
    let telemetry = format!("{{logs: {{otlp: {{endpoint: \"{}\", buffered: 64KiB}}}}}}", collector.url());
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &exported_log(&server, &digest, &telemetry)).await;
    collector.hangs();
    let client = gateway.client();
    eventually("lost records are counted", || async {
        for _ in 0..20 {
            assert_eq!(client.send(client.request("GET", "/", &[("x-api-key", &key)], "")).await.status, 200);
        }
        (lost_records(&gateway).await > 0.0).then_some(())
    })
    .await;
    eventually("it is told", || async { gateway.events("logs_not_sent").first().cloned() }).await;
    assert_eq!(gateway.metric("spillway_log_lines_dropped_total").await, 0.0);
    assert_eq!(client.send(client.request("GET", "/", &[("x-api-key", &key)], "")).await.status, 200);
    gateway.signal("TERM");
    assert!(gateway.wait().await.0.success());
}

/// A program that is killed at the end of a test.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Promise (how-to/logs): OpenTelemetry's own collector takes the log. Jaeger is a build of it, whose receiver takes logs;
/// its exporter `debug` prints what came.
#[tokio::test(flavor = "multi_thread")]
async fn the_opentelemetry_collector_takes_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let port = free_port();
    let pipeline = format!(
        "receivers: {{otlp: {{protocols: {{grpc: {{endpoint: \"127.0.0.1:{port}\"}}}}}}}}
exporters: {{debug: {{verbosity: detailed}}}}
service:
  telemetry: {{metrics: {{level: none}}}}
  pipelines: {{logs: {{receivers: [otlp], exporters: [debug]}}}}
"
    );
    let (file, said) = (folder.path().join("collector.yaml"), folder.path().join("said.txt"));
    std::fs::write(&file, pipeline).unwrap();
    let out = std::fs::File::create(&said).unwrap();
    let mut collector = Command::new(jaeger());
    collector.arg("--config").arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(out);
    let _collector = Running(collector.spawn().unwrap());
    eventually("the collector listens", || async {
        tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok().then_some(())
    })
    .await;
    let (server, (key, digest)) = (Upstream::fixed(200, "ok").await, new_key());
    let telemetry = format!("{{logs: {{otlp: {{endpoint: \"http://127.0.0.1:{port}\"}}}}}}");
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &exported_log(&server, &digest, &telemetry)).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let client = gateway.client();
    client.send(client.request("GET", "/seen", &[("x-api-key", &key), ("traceparent", parent)], "")).await;
    let printed = eventually("the collector prints the request", || async {
        Some(std::fs::read_to_string(&said).unwrap()).filter(|text| text.contains("url.path: Str(/seen)"))
    })
    .await;
    for part in [
        "EventName: access",
        "SeverityText: INFO",
        "SeverityNumber: Info(9)",
        "Body: Str(GET /seen 200)",
        "Trace ID: 0af7651916cd43dd8448eb211c80319c",
        "http.response.status_code: Int(200)",
        "service.name: Str(spillway)",
        "EventName: ready",
    ] {
        assert!(printed.contains(part), "{part} in {printed}");
    }
    assert_eq!(lost_records(&gateway).await, 0.0);
}
