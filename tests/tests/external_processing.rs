//! Filter `externalProcessing`: a server that was written with Envoy's own messages sees and changes requests and answers.

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{Gateway, PythonServer, Upstream, eventually, free_port, reply, streamed};

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");

/// Processor of the tests, and what it saw.
struct Processor {
    server: PythonServer,
    folder: tempfile::TempDir,
}

impl Processor {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log").display().to_string();
        Self { server: PythonServer::start_with("ext_proc_service.py", &[&log]), folder }
    }

    fn url(&self) -> String {
        self.server.url.replace("http:", "grpc:")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// Messages of the conversation that ended as number `n`, from 1.
    async fn seen(&self, n: usize) -> Value {
        eventually("the processor's log", || async {
            let text = std::fs::read_to_string(self.log()).unwrap_or_default();
            text.lines().nth(n - 1).map(|line| serde_json::from_str(line).unwrap())
        })
        .await
    }
}

fn yaml(upstream: &str, processing: &Value, further: &Value) -> String {
    format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{upstream}\"}}]}}]
routes: [{{name: r, filters: [{{externalProcessing: {processing}}}{}], backendRefs: [{{name: b}}]}}]
",
        if further.is_null() { String::new() } else { format!(", {further}") }
    )
}

async fn gateway(upstream: &Upstream, processor: &Processor, more: &Value) -> Gateway {
    let mut processing = json!({"url": processor.url(), "timeout": "5s"});
    processing.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    Gateway::start(&yaml(&upstream.url(), &processing, &Value::Null)).await
}

async fn ask(gateway: &Gateway, script: &Value, body: &Value) -> spillway_tests::Answer {
    let script = script.to_string();
    let headers =
        [JSON, ("x-script", script.as_str()), ("authorization", "Bearer secret"), ("x-twice", "1"), ("x-twice", "2")];
    gateway.client().post("/v1/chat/completions?a=1", &headers, body.to_string()).await
}

fn chat(stream: bool) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream})
}

/// A server that answers with what it read.
async fn echo() -> Upstream {
    Upstream::start(async |seen| {
        let headers = [JSON, ("x-server", "1")];
        Some(reply(200, &headers, json!({"read": String::from_utf8_lossy(&seen.body)}).to_string()))
    })
    .await
}

#[tokio::test]
async fn headers_are_shown_and_changed_both_ways() {
    let (upstream, processor) = (echo().await, Processor::start());
    let more = json!({"requestAttributes": ["request.path", "source.address", "request.method"]});
    let gateway = gateway(&upstream, &processor, &more).await;
    let script = json!({
        "request_headers": {"set": {"x-new": "1", "x-twice": "3", "host": "evil", "content-length": "1", ":path": "/evil"},
            "append": {"x-more": "2"}, "remove": ["x-script"]},
        "response_headers": {"set": {"x-answer": "yes", ":status": "203"}, "remove": ["x-server"]},
    });
    let got = ask(&gateway, &script, &chat(false)).await;
    assert_eq!(
        (got.status.as_u16(), got.header("x-answer"), got.header("x-server")),
        (203, "yes", ""),
        "{}",
        got.text()
    );
    let seen = upstream.last();
    let sent = |name: &str| seen.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        (sent("x-new"), sent("x-more"), sent("x-twice"), sent("x-script")),
        (vec!["1"], vec!["2"], vec!["3"], vec![])
    );
    assert_eq!(seen.path, "/v1/chat/completions?a=1");
    assert!(!sent("host").contains(&"evil"));
    assert_eq!(serde_json::from_slice::<Value>(&seen.body).unwrap(), chat(false));
    let log = processor.seen(1).await;
    let request = &log[0];
    assert_eq!((&log[1]["kind"], log.as_array().unwrap().len()), (&json!("response_headers"), 2));
    assert_eq!(log[1]["headers"][":status"], "200");
    for (name, value) in [
        (":method", "POST"),
        (":path", "/v1/chat/completions?a=1"),
        (":scheme", "http"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(request["headers"][name], value, "{name}");
    }
    assert_eq!(request["headers"].get("authorization"), None, "credentials of callers are hidden");
    assert_eq!((&request["ends"], &request["modes"]), (&json!(false), &json!([0, 0])));
    assert_eq!(request["metadata"]["spillway"], json!({"route": "r", "model": "m"}));
    let attributes =
        json!({"request.path": "/v1/chat/completions?a=1", "request.method": "POST", "source.address": "127.0.0.1"});
    assert_eq!(request["attributes"]["envoy.filters.http.ext_proc"], attributes);
}

#[tokio::test]
async fn bodies_of_requests_are_changed_in_every_mode() {
    let (upstream, processor) = (echo().await, Processor::start());
    let long = json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(150_000)}]});
    let other = json!({"model": "m", "messages": []}).to_string();
    for (mode, script, body, expected, messages) in [
        (
            "buffered",
            json!({"request_body": {"body": other, "set": {"x-seen": "1"}}}),
            chat(false),
            Some(other.clone()),
            1,
        ),
        ("buffered", json!({"request_body": {}}), long.clone(), Some(long.to_string()), 1),
        ("buffered", json!({"request_headers": {"replace": true, "body": other}}), chat(false), Some(other.clone()), 0),
        ("bufferedPartial", json!({"request_body": {"set": {"x-seen": "1"}}}), long.clone(), Some(long.to_string()), 1),
        ("streamed", json!({}), long.clone(), Some(long.to_string()), 3),
        (
            "streamed",
            json!({"request_headers": {"mode": {"request_body_mode": "BUFFERED"}}}),
            chat(false),
            Some(chat(false).to_string()),
            1,
        ),
        (
            "none",
            json!({"request_headers": {"mode": {"request_body_mode": "BUFFERED"}}}),
            chat(false),
            Some(chat(false).to_string()),
            1,
        ),
        ("none", json!({}), chat(false), Some(chat(false).to_string()), 0),
    ] {
        let more = json!({"requestBody": mode, "responseHeaders": "skip", "allowModeOverride": true});
        let gateway = gateway(&upstream, &processor, &more).await;
        let before = std::fs::read_to_string(processor.log()).unwrap_or_default().lines().count();
        let got = ask(&gateway, &script, &body).await;
        assert_eq!(got.status, 200, "{mode} {script}: {}", got.text());
        let seen = upstream.last();
        assert_eq!(Some(String::from_utf8(seen.body.to_vec()).unwrap()), expected, "{mode} {script}");
        assert_eq!(seen.headers["content-length"], seen.body.len().to_string());
        let log = processor.seen(before + 1).await;
        let shown: Vec<&Value> = log.as_array().unwrap().iter().filter(|it| it["kind"] == "request_body").collect();
        assert_eq!(shown.len(), messages, "{mode} {script}");
        if let Some((last, before)) = shown.split_last() {
            assert!(last["ends"] == true && before.iter().all(|it| it["ends"] == false), "{mode}");
            let whole: String = shown.iter().map(|it| it["body"].as_str().unwrap()).collect();
            assert_eq!(whole, body.to_string());
        }
    }
}

#[tokio::test]
async fn a_stream_in_both_directions_is_answered_at_will() {
    let upstream = Upstream::start(async |seen| {
        let text = String::from_utf8_lossy(&seen.body).to_lowercase();
        Some(reply(200, &[("content-type", "text/plain")], format!("read {}", text.len())))
    })
    .await;
    let processor = Processor::start();
    // What is made of a body must stay one that names the same model.
    let more = json!({"requestBody": "fullDuplexStreamed", "responseBody": "fullDuplexStreamed"});
    let processing = {
        let mut all = json!({"url": processor.url(), "timeout": "5s"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let file = format!(
        "backends: [{{name: b, protocol: http, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, filters: [{{externalProcessing: {processing}}}], backendRefs: [{{name: b}}]}}]
",
        upstream.url()
    );
    let gateway = Gateway::start(&file).await;
    for (n, (request, late)) in [(json!(true), false), (json!("join"), false), (json!("join"), true)].iter().enumerate()
    {
        let script = json!({
            "request_headers": {"late": late},
            "request_body": {"duplex": request},
            "response_body": {"duplex": request},
        });
        // More than what waits in the queues of both sides.
        let body = "abcdefghij".repeat(200_000);
        let (script, text) = (script.to_string(), ("content-type", "text/plain"));
        let got = gateway.client().post("/x", &[text, ("x-script", &script)], body.clone()).await;
        assert_eq!((got.status.as_u16(), got.text()), (200, "READ 2000000".to_owned()), "{n}");
        let seen = upstream.last();
        assert_eq!(seen.body, Bytes::from(body.to_uppercase()), "{n}");
        assert_eq!(seen.headers.contains_key("x-late"), *late);
    }
}

/// Each part starts the wait for the next one anew: without a bound an exchange would never end.
#[tokio::test]
async fn a_processor_that_sends_nothing_without_end_has_failed() {
    let upstream = Upstream::fixed(200, "x").await;
    let processor = Processor::start();
    let processing = json!({"url": processor.url(), "timeout": "5s", "requestBody": "fullDuplexStreamed", "responseBody": "fullDuplexStreamed"});
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: http, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, filters: [{{externalProcessing: {processing}}}], backendRefs: [{{name: b}}]}}]
",
        upstream.url()
    ))
    .await;
    let ask = async |script: Value| {
        let (script, client) = (script.to_string(), gateway.client());
        client.try_send(client.request("POST", "/x", &[("x-script", &script)], "body")).await
    };
    let refused = ask(json!({"request_body": {"duplex": "endless"}})).await.unwrap();
    assert_eq!(refused.status, 502);
    assert_eq!(upstream.count(), 0);
    // Of an answer the head may have passed.
    let answer = ask(json!({"request_body": {"duplex": "same"}, "response_body": {"duplex": "endless"}})).await;
    assert!(answer.as_ref().is_ok_and(|answer| answer.status == 502 || answer.cut), "{answer:?}");
    let failures = "spillway_filter_external_processing_answer_failures_total{http_route=\"r\"}";
    gateway.metric_becomes(failures, 1.0).await;
}

#[tokio::test]
async fn answers_are_changed_whole_and_in_parts() {
    let upstream = Upstream::start(async |seen| {
        let asked: Value = serde_json::from_slice(&seen.body).unwrap();
        if asked["stream"] != true {
            return Some(reply(200, &[JSON, ("etag", "\"1\"")], "{\"a\": \"b\"}"));
        }
        let (parts, body) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            for part in ["data: {\"a\"", ": 1}\n", "\ndata: {\"b\": 2}\n\n", "data: [DONE]\n\n"] {
                let _ = parts.send(Ok(Bytes::from(part))).await;
            }
        });
        Some(streamed(&[EVENTS], body))
    })
    .await;
    let processor = Processor::start();
    for (mode, stream, script, status, expected) in [
        ("buffered", false, json!({"response_body": {"upper": true, "set": {"x-late": "1"}}}), 200, "{\"A\": \"B\"}"),
        (
            "buffered",
            false,
            json!({"response_body": {"immediate": {"status": 451, "body": "no", "set": {"x-why": "law"}}}}),
            451,
            "no",
        ),
        (
            "buffered",
            true,
            json!({"response_body": {"upper": true}}),
            200,
            "DATA: {\"A\": 1}\n\nDATA: {\"B\": 2}\n\nDATA: [DONE]\n\n",
        ),
        ("streamed", false, json!({"response_body": {"upper": true}}), 200, "{\"A\": \"B\"}"),
        (
            "streamed",
            true,
            json!({"response_body": {"upper": true}}),
            200,
            "DATA: {\"A\": 1}\n\nDATA: {\"B\": 2}\n\nDATA: [DONE]\n\n",
        ),
        (
            "fullDuplexStreamed",
            true,
            json!({"response_body": {"duplex": true}}),
            200,
            "DATA: {\"A\": 1}\n\nDATA: {\"B\": 2}\n\nDATA: [DONE]\n\n",
        ),
        (
            "fullDuplexStreamed",
            true,
            json!({"response_body": {"duplex": "join"}}),
            200,
            "DATA: {\"A\": 1}\n\nDATA: {\"B\": 2}\n\nDATA: [DONE]\n\n",
        ),
        ("fullDuplexStreamed", true, json!({"response_body": {"duplex": "cut"}}), 200, "cut"),
        (
            "streamed",
            false,
            json!({"response_headers": {"immediate": {"status": 403, "body": "secret"}}}),
            403,
            "secret",
        ),
        (
            "streamed",
            true,
            json!({"response_headers": {"replace": true, "body": "other", "set": {"content-type": "text/plain"}}}),
            200,
            "other",
        ),
        (
            "streamed",
            true,
            json!({"response_headers": {"end": true}}),
            200,
            "data: {\"a\": 1}\n\ndata: {\"b\": 2}\n\ndata: [DONE]\n\n",
        ),
        (
            "none",
            false,
            json!({"response_headers": {"mode": {"response_body_mode": "STREAMED"}}, "response_body": {"clear": true}}),
            200,
            "",
        ),
    ] {
        let more = json!({"responseBody": mode, "allowModeOverride": true});
        let gateway = gateway(&upstream, &processor, &more).await;
        let got = ask(&gateway, &script, &chat(stream)).await;
        assert_eq!((got.status.as_u16(), got.text().as_str()), (status, expected), "{mode} {stream} {script}");
        assert_eq!(
            got.header("etag"),
            if mode == "none" || mode == "buffered" || !stream { "" } else { got.header("etag") }
        );
        if script["response_body"]["set"].is_object() {
            assert_eq!((got.header("x-late"), got.header("content-length")), ("1", "10"));
        }
    }
    let lines: Vec<Value> = std::fs::read_to_string(processor.log())
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let events = |log: &Value| -> Vec<String> {
        let parts = log.as_array().unwrap().iter().filter(|it| it["kind"] == "response_body");
        parts.map(|it| it["body"].as_str().unwrap().to_owned()).filter(|it| !it.is_empty()).collect()
    };
    let split = lines.iter().find(|log| log[0]["modes"] == json!([0, 1]) && events(log).len() > 1).unwrap();
    assert!(events(split).iter().all(|part| part.ends_with("\n\n")), "events are shown whole: {split}");
}

#[tokio::test]
async fn a_processor_answers_in_place_of_servers() {
    let (upstream, processor) = (echo().await, Processor::start());
    let gateway = gateway(&upstream, &processor, &json!({"requestBody": "buffered"})).await;
    for kind in ["request_headers", "request_body"] {
        let script = json!({kind: {"immediate": {"status": 429, "body": "later", "set": {"retry-after": "7"}}}});
        let got = ask(&gateway, &script, &chat(false)).await;
        assert_eq!(
            (got.status.as_u16(), got.text().as_str(), got.header("retry-after")),
            (429, "later", "7"),
            "{kind}"
        );
    }
    let got =
        ask(&gateway, &json!({"request_headers": {"immediate": {"status": 200, "body": "{}"}}}), &chat(false)).await;
    assert_eq!((got.status.as_u16(), got.text().as_str()), (200, "{}"));
    assert_eq!(upstream.count(), 0);
    let refusals = "spillway_filter_refusals_total{http_route=\"r\",filter=\"externalProcessing\"}";
    gateway.metric_becomes(refusals, 2.0).await;
}

#[tokio::test]
async fn a_failure_is_closed_or_open_as_the_file_says() {
    let (upstream, processor) = (echo().await, Processor::start());
    let dead = json!({"url": format!("grpc://127.0.0.1:{}", free_port()), "timeout": "2s"});
    let slow = json!({"request_headers": {"sleep": 3}});
    for on_failure in ["closed", "open"] {
        for (url, timeout, script) in [
            (None, "5s", json!({"request_headers": {"abort": "UNAVAILABLE"}})),
            (None, "5s", json!({"request_headers": {"wrong": true}})),
            (None, "300ms", slow.clone()),
            (None, "5s", json!({"response_headers": {"abort": "INTERNAL"}})),
            (None, "5s", json!({"response_body": {"wrong": true}})),
            (Some(&dead["url"]), "5s", json!({})),
        ] {
            let url = url.map_or_else(|| processor.url(), |url| url.as_str().unwrap().to_owned());
            let processing =
                json!({"url": url, "timeout": timeout, "onFailure": on_failure, "responseBody": "buffered"});
            let gateway = Gateway::start(&yaml(&upstream.url(), &processing, &Value::Null)).await;
            let got = ask(&gateway, &script, &chat(false)).await;
            let status = if on_failure == "open" { 200 } else { 502 };
            assert_eq!(got.status, status, "{on_failure} {script}: {}", got.text());
            if status == 502 {
                assert_eq!(got.json()["error"]["code"], "external_processing_failed");
            } else {
                assert_eq!(got.json()["read"], chat(false).to_string());
            }
            let of_answers = ["response_headers", "response_body"].iter().any(|kind| script.get(kind).is_some());
            let failures =
                ["spillway_filter_failures_total", "spillway_filter_external_processing_answer_failures_total"];
            for (name, counts) in failures.into_iter().zip([!of_answers, of_answers]) {
                let counted = gateway.metric(&format!("{name}{{http_route=\"r\"}}")).await;
                assert_eq!(counted, f64::from(u8::from(counts)), "{name} {on_failure} {script}");
            }
        }
    }
    let ends = gateway(&upstream, &processor, &json!({"responseBody": "buffered"})).await;
    let got = ask(&ends, &json!({"request_headers": {"end": true}}), &chat(false)).await;
    assert_eq!(got.status, 200, "a conversation that ends well asks for nothing more");
}

#[tokio::test]
async fn a_processor_may_ask_for_more_time_where_the_file_allows_it() {
    let (upstream, processor) = (echo().await, Processor::start());
    let script = json!({"request_headers": {"more_time": 5000, "sleep": 0.6}});
    for (more, status) in [(json!({"timeout": "300ms", "maxTimeout": "10s"}), 200), (json!({"timeout": "300ms"}), 502)]
    {
        let gateway = gateway(&upstream, &processor, &more).await;
        assert_eq!(ask(&gateway, &script, &chat(false)).await.status, status, "{more}");
    }
}

#[tokio::test]
async fn a_processor_that_watches_holds_nothing_up() {
    let (upstream, processor) = (echo().await, Processor::start());
    let more = json!({"observeOnly": true, "requestBody": "streamed", "responseBody": "streamed"});
    let watched = gateway(&upstream, &processor, &more).await;
    let script = json!({"request_headers": {"set": {"x-new": "1"}}, "request_body": {"clear": true}});
    let got = ask(&watched, &script, &chat(false)).await;
    assert_eq!(got.json()["read"], chat(false).to_string());
    assert!(!upstream.last().headers.contains_key("x-new"));
    let log = processor.seen(1).await;
    let kinds: Vec<&str> = log.as_array().unwrap().iter().map(|it| it["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds[..3], ["request_headers", "request_body", "response_headers"], "{log}");
    assert!(log.as_array().unwrap().iter().all(|it| it["observes"] == true));
    let body: String = log
        .as_array()
        .unwrap()
        .iter()
        .filter(|it| it["kind"] == "response_body")
        .map(|it| it["body"].as_str().unwrap())
        .collect();
    assert_eq!(body, got.text());
    let dead = json!({"url": format!("grpc://127.0.0.1:{}", free_port()), "observeOnly": true});
    let gateway = Gateway::start(&yaml(&upstream.url(), &dead, &Value::Null)).await;
    assert_eq!(ask(&gateway, &script, &chat(false)).await.status, 200);
}

#[tokio::test]
async fn filters_change_an_answer_in_their_order_around_a_processor() {
    let upstream = Upstream::start(async |_| Some(reply(200, &[JSON], "{\"from\":\"server\"}"))).await;
    let processor = Processor::start();
    let script = json!({"response_body": {"upper": true}}).to_string();
    let transform = |name: &str| json!({"transform": {"response": {"set": {name: "x"}}}});
    let processing =
        json!({"externalProcessing": {"url": processor.url(), "timeout": "5s", "responseBody": "streamed"}});
    let file = format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, filters: [{}, {processing}, {}], backendRefs: [{{name: b}}]}}]
",
        upstream.url(),
        transform("/outer"),
        transform("/inner")
    );
    let gateway = Gateway::start(&file).await;
    let got =
        gateway.client().post("/v1/chat/completions", &[JSON, ("x-script", &script)], chat(false).to_string()).await;
    assert_eq!(got.json(), json!({"FROM": "SERVER", "INNER": "X", "outer": "x"}));
}

#[tokio::test]
async fn a_processor_picks_the_endpoint_or_sheds_into_the_spill() {
    let answering = |name: &'static str| Upstream::fixed(200, name);
    let (first, second, spare) = (answering("first").await, answering("second").await, answering("spare").await);
    let processor = Processor::start();
    let processing =
        json!({"url": processor.url(), "timeout": "5s", "picksEndpoints": true, "responseHeaders": "skip"});
    let dead = free_port();
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: pool, protocol: http, endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}, {{url: \"http://127.0.0.1:{dead}\"}}]}}
  - {{name: spare, protocol: http, endpoints: [{{url: \"{}\"}}]}}
routes:
  - name: r
    filters: [{{externalProcessing: {processing}}}]
    retry: {{attempts: 2}}
    whenSaturated: {{queue: {{maxWait: 20s}}, spillTo: spare}}
    backendRefs: [{{name: pool}}]
",
        first.url(),
        second.url(),
        spare.url()
    ))
    .await;
    let address = |upstream: &Upstream| upstream.url().trim_start_matches("http://").to_owned();
    let ask = async |script: Value| {
        let script = script.to_string();
        let request = gateway.client().request("GET", "/x", &[("x-script", &script)], "");
        gateway.client().send(request).await
    };
    let pick = |picked: &str| json!({"request_headers": {"set": {"x-gateway-destination-endpoint": picked}}});
    for _ in 0..4 {
        assert_eq!(ask(pick(&address(&first))).await.text(), "first");
        assert_eq!(ask(pick(&address(&second))).await.text(), "second");
    }
    for action in ["append", "add_if_absent"] {
        let script =
            json!({"request_headers": {action: {"x-gateway-destination-endpoint": address(&first)}}}).to_string();
        let headers = [("x-script", script.as_str()), ("x-gateway-destination-endpoint", &address(&second))];
        let request = gateway.client().request("GET", "/x", &headers, "");
        assert_eq!(gateway.client().send(request).await.text(), "first", "a caller picks none: {action}");
    }
    let both = format!("127.0.0.1:{dead}, {}", address(&second));
    assert_eq!(ask(pick(&both)).await.text(), "second", "the next of a pick takes what the first could not");
    for (script, why) in [
        (json!({"request_headers": {"immediate": {"status": 429, "body": "later"}}}), "the picker sheds"),
        (json!({"request_headers": {"immediate": {"status": 503}}}), "the picker knows no endpoint"),
        (pick("127.0.0.9:1"), "the picked endpoint is none of the pool"),
    ] {
        assert_eq!(ask(script).await.text(), "spare", "{why}");
    }
    for script in [json!({}), pick("somewhere")] {
        assert_eq!(ask(script).await.status, 502, "a picker that picks nothing has failed");
    }
    let refused = ask(json!({"request_headers": {"immediate": {"status": 403, "body": "no"}}})).await;
    assert_eq!((refused.status.as_u16(), refused.text().as_str()), (403, "no"));
}
