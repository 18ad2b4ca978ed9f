//! Charges of tokens: what a caller chooses (compression, streaming, another API, to leave early) changes nothing of what it
//! pays for the same answer.

use std::io::Write;
use std::sync::Mutex;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use spillway_tests::{
    Answer, Client, Gateway, Reply, Seen, Upstream, eventually, http2_over, new_key, reply, streamed,
};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

const CODINGS: [&str; 6] = ["gzip", "gzip in members", "deflate", "bare deflate", "br", "zstd"];
const STREAM: (&str, &str) = ("content-type", "text/event-stream");
const JSON: (&str, &str) = ("content-type", "application/json");

/// A gateway that counts what its one consumer spends.
struct Shop {
    gateway: Gateway,
    key: String,
    spent: f64,
}

impl Shop {
    async fn open(upstream: &Upstream, more: &str) -> Self {
        let (key, digest) = new_key();
        let limits = "{tokens: 1000000/h, budget: {tokens: 1000000000, per: day}}";
        let yaml = format!(
            "listeners:
  - {{name: plain, address: \"127.0.0.1:0\"}}
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}
consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], limits: {limits}}}]
backends:
- {{name: x, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
- {{name: y, protocol: anthropic, endpoints: [{{url: \"{url}\"}}]}}
- {{name: z, protocol: ollama, endpoints: [{{url: \"{url}\"}}]}}
routes:
- {{name: messages, matches: [{{path: {{exact: /v1/messages}}}}], backendRefs: [{{name: y}}]{more}}}
- {{name: lines, matches: [{{path: {{prefix: /api}}}}], backendRefs: [{{name: z}}]{more}}}
- {{name: chat, backendRefs: [{{name: x}}]{more}}}
",
            url = upstream.url()
        );
        Self { gateway: Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await, key, spent: 0.0 }
    }

    fn client(&self) -> Client {
        Client::new(self.gateway.listener("plain"))
    }

    async fn post(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        let headers = [&[("x-api-key", self.key.as_str()), JSON], headers].concat();
        self.client().post(path, &headers, body.to_string()).await
    }

    /// Tokens that were charged since the last look.
    async fn charged(&mut self) -> u64 {
        for route in ["chat", "messages", "lines"] {
            let running = format!("spillway_requests_in_flight{{http_route=\"{route}\"}}");
            self.gateway.metric_becomes(&running, 0.0).await;
        }
        let series = "spillway_budget_spent{budget=\"consumer acme\",per=\"day\",unit=\"tokens\"}";
        let spent = self.gateway.metric(series).await;
        let charged = spent - std::mem::replace(&mut self.spent, spent);
        charged as u64
    }
}

fn chat(max_tokens: u64, stream: bool) -> Value {
    json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(40)}], "max_tokens": max_tokens,
        "stream": stream})
}

/// A chat that asks for the usage of its stream: nothing is taken out of that.
fn asking(max_tokens: u64, stream: bool) -> Value {
    let mut body = chat(max_tokens, stream);
    body["stream_options"] = if stream { json!({"include_usage": true}) } else { Value::Null };
    body
}

fn event(value: &Value) -> String {
    format!("data: {value}\n\n")
}

fn delta(delta: &Value) -> String {
    event(&json!({"id": "c", "model": "m", "choices": [{"index": 0, "delta": delta}]}))
}

/// An answer of 7,000 tokens, in pieces.
fn seven_thousand(stream: bool) -> Vec<String> {
    let usage = json!({"prompt_tokens": 3000, "completion_tokens": 4000, "total_tokens": 7000});
    if !stream {
        let message = json!({"role": "assistant", "content": "word ".repeat(400)});
        let answer = json!({"id": "c", "model": "m", "choices": [{"index": 0, "message": message}], "usage": usage});
        return vec![answer.to_string()];
    }
    let mut pieces = vec![delta(&json!({"content": "word "})); 20];
    pieces.push(event(&json!({"id": "c", "model": "m", "choices": [], "usage": usage})));
    pieces.push("data: [DONE]\n\n".to_owned());
    pieces
}

/// Compresses pieces, each flushed, so that a reader can decode one before the next comes.
fn compressed(coding: &str, pieces: &[String]) -> Vec<Vec<u8>> {
    fn flushed<W: Write>(mut writer: W, pieces: &[String], take: impl Fn(&mut W) -> Vec<u8>) -> Vec<Vec<u8>> {
        let each = pieces.iter().map(|piece| {
            writer.write_all(piece.as_bytes()).unwrap();
            writer.flush().unwrap();
            take(&mut writer)
        });
        let mut parts: Vec<_> = each.collect();
        parts.push(Vec::new());
        parts
    }
    let level = flate2::Compression::default();
    match coding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            let mut parts = flushed(&mut encoder, pieces, |encoder| std::mem::take(encoder.get_mut()));
            *parts.last_mut().unwrap() = encoder.finish().unwrap();
            parts
        }
        "gzip in members" => {
            let member = |piece: &String| {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
                encoder.write_all(piece.as_bytes()).unwrap();
                encoder.finish().unwrap()
            };
            pieces.iter().map(member).collect()
        }
        "deflate" => {
            let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
            let mut parts = flushed(&mut encoder, pieces, |encoder| std::mem::take(encoder.get_mut()));
            *parts.last_mut().unwrap() = encoder.finish().unwrap();
            parts
        }
        "bare deflate" => {
            let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
            let mut parts = flushed(&mut encoder, pieces, |encoder| std::mem::take(encoder.get_mut()));
            *parts.last_mut().unwrap() = encoder.finish().unwrap();
            parts
        }
        "br" => {
            let mut encoder = brotli::CompressorWriter::new(Vec::new(), 4096, 5, 20);
            let mut parts = flushed(&mut encoder, pieces, |encoder| encoder.get_ref().clone());
            // What was written before is in each of them.
            *parts.last_mut().unwrap() = encoder.into_inner();
            let starts: Vec<usize> = std::iter::once(0).chain(parts.iter().map(Vec::len)).collect();
            parts.iter().zip(starts).map(|(part, start)| part[start..].to_vec()).collect()
        }
        "zstd" => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
            let mut parts = flushed(&mut encoder, pieces, |encoder| std::mem::take(encoder.get_mut()));
            *parts.last_mut().unwrap() = encoder.finish().unwrap();
            parts
        }
        _ => pieces.iter().map(|piece| piece.clone().into_bytes()).collect(),
    }
}

/// Name of a coding on the wire.
fn name(coding: &str) -> &str {
    match coding {
        "gzip in members" => "gzip",
        "bare deflate" => "deflate",
        coding => coding,
    }
}

/// Answers with parts, one by one.
fn in_parts(headers: &[(&str, &str)], parts: Vec<Vec<u8>>) -> Reply {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        for part in parts {
            let _ = sender.send(Ok(part.into())).await;
        }
    });
    streamed(headers, receiver)
}

fn body_of(seen: &Seen) -> Value {
    serde_json::from_slice(&seen.body).unwrap_or_default()
}

fn wants_stream(seen: &Seen) -> bool {
    body_of(seen)["stream"] == true
}

#[tokio::test]
async fn what_a_caller_accepts_changes_no_charge() {
    let upstream = Upstream::start(|seen| async move {
        let accepts = seen.headers.get("accept-encoding").map_or("*", |accepts| accepts.to_str().unwrap());
        let coding = ["br", "zstd", "gzip", "deflate"].into_iter().find(|coding| accepts.contains(coding));
        let coding = coding.unwrap_or("identity");
        let is_stream = wants_stream(&seen);
        let kind = if is_stream { STREAM } else { JSON };
        let parts = compressed(coding, &seven_thousand(is_stream));
        Some(in_parts(&[kind, ("content-encoding", coding)], parts))
    })
    .await;
    let mut shop = Shop::open(&upstream, "").await;
    for stream in [false, true] {
        for (accepts, asked) in [
            (Some("identity"), "identity"),
            (Some("gzip, deflate"), "gzip, deflate"),
            (Some("br, zstd"), "identity"),
            (Some("br;q=0.9, *;q=0.1"), "gzip, deflate"),
            (Some("gzip;q=0, deflate"), "deflate"),
            (None, "identity"),
        ] {
            let headers: Vec<_> = accepts.iter().map(|accepts| ("accept-encoding", *accepts)).collect();
            let answer = shop.post("/v1/chat/completions", &asking(4000, stream), &headers).await;
            assert_eq!(answer.status, 200, "{accepts:?}: {}", answer.text());
            let coding = answer.header("content-encoding").to_owned();
            assert_eq!(answer.body, compressed(&coding, &seven_thousand(stream)).concat(), "{accepts:?}");
            assert!(coding == "identity" || asked.contains(&coding), "{accepts:?}: {coding}");
            assert_eq!(shop.charged().await, 7000, "{accepts:?}, stream {stream}");
            assert_eq!(upstream.last().headers["accept-encoding"], asked, "{accepts:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_is_compressed_unasked_is_charged_the_same_and_passes_as_it_is() {
    let coding = std::sync::Arc::new(Mutex::new("identity"));
    let said = coding.clone();
    let upstream = Upstream::start(move |seen| {
        let coding = *said.lock().unwrap();
        async move {
            let is_stream = wants_stream(&seen);
            let parts = compressed(coding, &seven_thousand(is_stream));
            let kind = if is_stream { STREAM } else { JSON };
            Some(in_parts(&[kind, ("content-encoding", name(coding))], parts))
        }
    })
    .await;
    let mut shop = Shop::open(&upstream, "").await;
    for stream in [false, true] {
        for each in CODINGS {
            *coding.lock().unwrap() = each;
            let answer = shop.post("/v1/chat/completions", &chat(4000, stream), &[("accept-encoding", "gzip")]).await;
            assert_eq!((answer.status.as_u16(), answer.header("content-encoding")), (200, name(each)), "{each}");
            assert_eq!(
                answer.body,
                compressed(each, &seven_thousand(stream)).concat(),
                "{each}: not a byte is another"
            );
            assert_eq!(shop.charged().await, 7000, "{each}, stream {stream}");
        }
        // Nobody can read it: its bytes count.
        *coding.lock().unwrap() = "compress";
        let answer = shop.post("/v1/chat/completions", &chat(4000, stream), &[]).await;
        assert_eq!(shop.charged().await, 10 + (answer.body.len() as u64).div_ceil(4), "stream {stream}");
    }
    let metrics = shop.gateway.shown("/metrics").await;
    let is_output = |line: &&str| {
        line.starts_with("gen_ai_client_token_usage_sum") && line.contains("gen_ai_token_type=\"output\"")
    };
    let told = metrics.lines().filter(is_output).map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
    assert_eq!(told.sum::<f64>(), 4000.0 * 12.0, "metrics know it too");
}

#[tokio::test]
async fn a_compressed_answer_that_is_cut_or_spoiled_is_charged_for_what_came() {
    let upstream = Upstream::start(|seen| async move {
        let coding = body_of(&seen)["user"].as_str().unwrap().to_owned();
        let mut parts = compressed(&coding, &seven_thousand(true));
        parts.truncate(8);
        if seen.path.contains("spoiled") {
            parts.push(vec![0xFF; 400]);
        }
        Some(in_parts(&[STREAM, ("content-encoding", name(&coding))], parts))
    })
    .await;
    let mut shop = Shop::open(&upstream, "").await;
    for coding in CODINGS {
        let mut body = chat(4000, true);
        body["user"] = coding.into();
        shop.post("/v1/chat/completions?cut", &body, &[]).await;
        // Eight events of five bytes.
        assert_eq!(shop.charged().await, 10 + 10, "{coding}");
        shop.post("/v1/chat/completions?spoiled", &body, &[]).await;
        let charged = shop.charged().await;
        assert!((20..=20 + 101).contains(&charged), "{coding}: {charged}");
    }
}

#[tokio::test]
async fn without_a_limit_callers_and_servers_compress_as_they_agree() {
    let upstream = Upstream::start(|seen| async move {
        let accepts = seen.headers.get("accept-encoding").map_or("", |accepts| accepts.to_str().unwrap()).to_owned();
        Some(reply(200, &[JSON, ("x-accepts", &accepts)], "{}"))
    })
    .await;
    let yaml = |protocol: &str, more: &str| {
        format!(
            "backends: [{{name: x, protocol: {protocol}, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}]{more}}}]
",
            upstream.url()
        )
    };
    for (protocol, more, stream, expected) in [
        ("http", "", false, "br, gzip"),
        ("http", "", true, "br, gzip"),
        ("openai", "", false, "br, gzip"),
        ("openai", "", true, "br, gzip"),
        ("openai", ", timeouts: {firstToken: 5s}", true, "gzip"),
        ("openai", ", resume: true", true, "identity"),
    ] {
        let gateway = Gateway::start(&yaml(protocol, more)).await;
        let headers = [JSON, ("accept-encoding", "br, gzip")];
        let ask = async |body: Value| gateway.client().post("/v1/chat/completions", &headers, body.to_string()).await;
        let answer = ask(asking(5, stream)).await;
        assert_eq!(answer.header("x-accepts"), expected, "{protocol}{more}, stream {stream}");
        // The usage of a stream that does not ask for it is taken out.
        let expected = if protocol == "openai" && stream { "identity" } else { expected };
        assert_eq!(ask(chat(5, stream)).await.header("x-accepts"), expected, "{protocol}{more}, stream {stream}");
    }
}

#[tokio::test]
async fn a_spent_quota_is_no_full_server_in_any_coding() {
    let body =
        json!({"error": {"message": "over your plan", "type": "insufficient_quota", "code": "insufficient_quota"}});
    let full = json!({"error": {"message": "later", "type": "rate_limit_exceeded", "code": "rate_limit_exceeded"}});
    let upstream = Upstream::start(move |seen| {
        let (spent, full) = (body.to_string(), full.to_string());
        async move {
            let coding = body_of(&seen)["user"].as_str().unwrap().to_owned();
            let text = if seen.path.contains("full") { full } else { spent };
            let headers = [JSON, ("content-encoding", name(&coding)), ("retry-after-ms", "1")];
            let mut answer = reply(429, &headers, compressed(&coding, &[text]).concat());
            if coding == "plain" {
                // A coding that is only claimed.
                answer.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
            }
            Some(answer)
        }
    })
    .await;
    let lesser = Upstream::start(|_| async { Some(reply(200, &[JSON], "{\"lesser\":true}")) }).await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
  - {{name: other, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
routes: [{{name: r, backendRefs: [{{name: x}}], whenSaturated: {{spillTo: other}}}}]
",
        upstream.url(),
        lesser.url()
    ))
    .await;
    for coding in CODINGS.into_iter().chain(["identity", "plain"]) {
        let mut body = chat(5, false);
        body["user"] = coding.into();
        let ask = async |path: &str| {
            let client = gateway.client();
            client.post(path, &[JSON, ("accept-encoding", "gzip, br")], body.to_string()).await
        };
        let spent = ask("/v1/chat/completions").await;
        assert_eq!(spent.status, 429, "{coding}: {}", spent.text());
        let full = eventually("the endpoint is asked again", || async {
            let before = upstream.count();
            let full = ask("/v1/chat/completions?full").await;
            (upstream.count() > before).then_some(full)
        })
        .await;
        assert_eq!(full.status, 200, "{coding}: {}", full.text());
        // It is no longer full.
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Text of 2,360 bytes.
fn paragraph() -> String {
    "The quick brown fox jumps over the lazy dog and runs away. ".repeat(40)
}

/// Answers a text that the request names as its user, without usage: whole, or in so many events.
async fn teller() -> Upstream {
    Upstream::start(|seen| async move {
        let body = body_of(&seen);
        let (text, events) = (body["user"].as_str().unwrap().to_owned(), body["seed"].as_u64().unwrap());
        if !wants_stream(&seen) {
            let message = json!({"role": "assistant", "content": text});
            return Some(reply(200, &[JSON], json!({"choices": [{"index": 0, "message": message}]}).to_string()));
        }
        let mut rest: Vec<char> = text.chars().collect();
        let size = rest.len().div_ceil(usize::try_from(events).unwrap());
        let mut out = String::new();
        while !rest.is_empty() {
            let piece: String = rest.drain(..size.min(rest.len())).collect();
            out += &delta(&json!({"content": piece}));
        }
        out += "data: [DONE]\n\n";
        if body["n"] == 1 {
            // As Python's `json.dumps` writes it.
            out = out
                .chars()
                .map(|c| if c.is_ascii() { c.to_string() } else { format!("\\u{:04x}", u32::from(c)) })
                .collect();
        }
        Some(reply(200, &[STREAM], out))
    })
    .await
}

#[tokio::test]
async fn text_without_usage_costs_the_same_whole_and_in_any_number_of_events() {
    let upstream = teller().await;
    let mut shop = Shop::open(&upstream, "").await;
    for (text, tokens) in [(paragraph(), 590), ("\"quoted\"\n\t\\".repeat(40), 110), ("漢字かな".repeat(100), 300)]
    {
        for (stream, events, escaped) in [
            (false, 1, false),
            (true, 1, false),
            (true, 1, true),
            (true, 10, false),
            (true, 10, true),
            (true, 100, false),
        ] {
            let mut body = chat(8000, stream);
            (body["user"], body["seed"]) = (text.clone().into(), events.into());
            if escaped {
                body["n"] = 1.into();
            }
            let answer = shop.post("/v1/chat/completions", &body, &[]).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let charged = shop.charged().await;
            assert_eq!(charged, 10 + tokens, "stream {stream}, {events} events, escaped {escaped}, {text:.10}");
        }
    }
}

#[tokio::test]
async fn all_that_a_model_writes_is_text() {
    let long = paragraph();
    let arguments = json!({"text": long}).to_string();
    let call = json!({"index": 0, "id": "call_1", "function": {"name": "f", "arguments": arguments}});
    let (in_call, in_text) = ((arguments.len() as u64 + 1).div_ceil(4), 590);
    let cases = vec![
        (json!({"reasoning_content": long}), in_text),
        (json!({"reasoning": long, "reasoning_content": long}), in_text),
        (json!({"reasoning": long, "reasoning_details": [{"type": "reasoning.text", "text": long}]}), in_text),
        (json!({"refusal": long}), in_text),
        (json!({"content": [{"type": "text", "text": long}]}), in_text),
        (json!({"tool_calls": [call]}), in_call),
        (json!({"function_call": {"name": "f", "arguments": arguments}}), in_call),
        (json!({"audio": {"id": "a", "data": "A".repeat(9000), "transcript": long}}), in_text),
    ];
    let served = cases.clone();
    let upstream = Upstream::start(move |seen| {
        let (said, _) = served[usize::try_from(body_of(&seen)["seed"].as_u64().unwrap()).unwrap()].clone();
        async move {
            Some(if wants_stream(&seen) {
                reply(200, &[STREAM], delta(&said) + "data: [DONE]\n\n")
            } else {
                reply(200, &[JSON], json!({"choices": [{"index": 0, "message": said}]}).to_string())
            })
        }
    })
    .await;
    let mut shop = Shop::open(&upstream, "").await;
    for (n, (said, tokens)) in cases.iter().enumerate() {
        for stream in [false, true] {
            let mut body = chat(8000, stream);
            body["seed"] = n.into();
            shop.post("/v1/chat/completions", &body, &[]).await;
            assert_eq!(shop.charged().await, 10 + tokens, "stream {stream}: {said:.60}");
        }
    }
}

fn responses_usage() -> Value {
    json!({"input_tokens": 40, "input_tokens_details": {"cached_tokens": 30}, "output_tokens": 9000,
        "output_tokens_details": {"reasoning_tokens": 10}, "total_tokens": 9040})
}

/// Pieces of an answer on the path of another API, of 40 tokens read and 9,000 written.
fn other_api(path: &str, stream: bool) -> Vec<String> {
    let typed = |kind: &str, more: Value| {
        let mut data = more;
        data["type"] = kind.into();
        format!("event: {kind}\ndata: {data}\n\n")
    };
    match (path, stream) {
        ("/v1/responses", false) => {
            let content = json!([{"type": "output_text", "text": "short"}]);
            let output = json!([{"type": "message", "role": "assistant", "content": content}]);
            vec![
                json!({"id": "resp_1", "object": "response", "status": "completed", "error": null, "model": "m",
                "output": output, "usage": responses_usage()})
                .to_string(),
            ]
        }
        ("/v1/responses", true) => {
            let mut all = vec![typed("response.created", json!({"response": {"id": "resp_1", "usage": null}}))];
            for _ in 0..12 {
                all.push(typed("response.output_text.delta", json!({"item_id": "m1", "delta": "word "})));
            }
            all.push(typed("response.output_text.done", json!({"item_id": "m1", "text": "word ".repeat(12)})));
            all.push(typed(
                "response.completed",
                json!({"response": {"id": "resp_1", "usage": responses_usage(),
                "output": [{"type": "message", "content": [{"type": "output_text", "text": "word ".repeat(12)}]}]}}),
            ));
            all
        }
        ("/v1/messages", false) => {
            let usage = json!({"input_tokens": 5, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 30,
                "output_tokens": 9000});
            vec![
                json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
                "content": [{"type": "text", "text": "short"}], "usage": usage})
                .to_string(),
            ]
        }
        ("/v1/messages", true) => {
            let begin = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
                "usage": {"input_tokens": 5, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 30,
                    "output_tokens": 1}});
            let mut all = vec![typed("message_start", json!({"message": begin}))];
            let block = json!({"type": "text", "text": ""});
            all.push(typed("content_block_start", json!({"index": 0, "content_block": block})));
            all.push(typed("ping", json!({})));
            for _ in 0..12 {
                let text = json!({"type": "text_delta", "text": "word "});
                all.push(typed("content_block_delta", json!({"index": 0, "delta": text})));
            }
            all.push(typed("content_block_stop", json!({"index": 0})));
            all.push(typed(
                "message_delta",
                json!({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9000}}),
            ));
            all.push(typed("message_stop", json!({})));
            all
        }
        // Ollama.
        ("/api/chat", false) => {
            vec![
                json!({"model": "m", "message": {"role": "assistant", "content": "short"}, "done": true,
                "prompt_eval_count": 40, "eval_count": 9000})
                .to_string(),
            ]
        }
        ("/api/chat", true) => {
            let line = |said: &str, done: bool| {
                let mut line = json!({"model": "m", "message": {"role": "assistant", "content": said}, "done": done});
                if done {
                    (line["prompt_eval_count"], line["eval_count"]) = (40.into(), 9000.into());
                }
                format!("{line}\n")
            };
            let mut all = vec![line("word ", false); 12];
            all.push(line("", true));
            all
        }
        // llama.cpp.
        ("/completion", false) => {
            vec![
                json!({"content": "short", "stop": true, "tokens_evaluated": 40, "tokens_predicted": 9000}).to_string(),
            ]
        }
        ("/completion", true) => {
            let part = |n: u64| {
                event(&json!({"content": "word ", "stop": n == 9000, "tokens_evaluated": 40, "tokens_predicted": n}))
            };
            vec![part(1), part(2), part(3), part(9000)]
        }
        other => panic!("{other:?}"),
    }
}

const OTHER_APIS: [&str; 4] = ["/v1/responses", "/v1/messages", "/api/chat", "/completion"];

/// A request with a prompt of ten tokens.
fn ask_other_api(path: &str, stream: bool) -> Value {
    let text = "x".repeat(40);
    match path {
        "/v1/responses" => json!({"model": "m", "input": text, "max_output_tokens": 9000, "stream": stream}),
        "/completion" => json!({"prompt": text, "n_predict": 9000, "stream": stream}),
        _ => {
            let messages = json!([{"role": "user", "content": text}]);
            json!({"model": "m", "messages": messages, "max_tokens": 9000, "stream": stream})
        }
    }
}

fn kind_of(path: &str, stream: bool) -> (&'static str, &'static str) {
    match (path, stream) {
        (_, false) => JSON,
        ("/api/chat", true) => ("content-type", "application/x-ndjson"),
        (_, true) => STREAM,
    }
}

#[tokio::test]
async fn usage_of_every_api_of_a_server_is_charged() {
    let upstream = Upstream::start(|seen| async move {
        let is_stream = wants_stream(&seen);
        let parts = other_api(&seen.path, is_stream).into_iter().map(String::into_bytes).collect();
        Some(in_parts(&[kind_of(&seen.path, is_stream)], parts))
    })
    .await;
    // Streams whose first content is never seen would end here.
    let mut shop = Shop::open(&upstream, ", timeouts: {firstToken: 60s}").await;
    for path in OTHER_APIS {
        for stream in [false, true] {
            let answer = shop.post(path, &ask_other_api(path, stream), &[("anthropic-version", "2023-06-01")]).await;
            assert_eq!(answer.text(), other_api(path, stream).concat(), "{path}: not a byte is another");
            assert_eq!(shop.charged().await, 9040, "{path}, stream {stream}");
        }
    }
}

#[tokio::test]
async fn money_for_cached_tokens_is_counted_in_every_api() {
    let upstream = Upstream::start(|seen| async move {
        let is_stream = wants_stream(&seen);
        Some(reply(200, &[kind_of(&seen.path, is_stream)], other_api(&seen.path, is_stream).concat()))
    })
    .await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], limits: {{budget: {{usd: 100000, per: day}}}}}}]
prices: [{{model: m, input: 10000, cachedInput: 1000, output: 0}}]
backends:
- {{name: x, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
- {{name: y, protocol: anthropic, endpoints: [{{url: \"{url}\"}}]}}
routes:
- {{name: messages, matches: [{{path: {{exact: /v1/messages}}}}], backendRefs: [{{name: y}}]}}
- {{name: chat, backendRefs: [{{name: x}}]}}
",
        url = upstream.url()
    ))
    .await;
    let series = "spillway_budget_spent{budget=\"consumer acme\",per=\"day\",unit=\"usd\"}";
    let mut requests = 0.0;
    for path in ["/v1/responses", "/v1/messages"] {
        for stream in [false, true] {
            let headers = [("x-api-key", key.as_str()), JSON];
            gateway.client().post(path, &headers, ask_other_api(path, stream).to_string()).await;
            requests += 1.0;
            // Ten tokens at a cent, thirty at a tenth of one.
            for route in ["chat", "messages"] {
                let running = format!("spillway_requests_in_flight{{http_route=\"{route}\"}}");
                gateway.metric_becomes(&running, 0.0).await;
            }
            let spent = gateway.metric(series).await;
            assert!((spent - 0.13 * requests).abs() < 1e-6, "{path}, stream {stream}: {spent}");
        }
    }
}

/// Sends the pieces of an answer that a channel says, head first.
fn held_back(pieces: usize) -> impl Fn(Seen) -> std::pin::Pin<Box<dyn Future<Output = Option<Reply>> + Send>> {
    move |seen: Seen| {
        Box::pin(async move {
            let is_stream = wants_stream(&seen);
            let (sender, receiver) = mpsc::channel(64);
            let (parts, kind) = if seen.path == "/v1/chat/completions" {
                (seven_thousand(is_stream), if is_stream { STREAM } else { JSON })
            } else {
                (other_api(&seen.path, is_stream), kind_of(&seen.path, is_stream))
            };
            tokio::spawn(async move {
                for part in parts.into_iter().take(pieces) {
                    let _ = sender.send(Ok(Bytes::from(part))).await;
                }
                // The server writes no more and does not end.
                sender.closed().await;
            });
            Some(streamed(&[kind], receiver))
        })
    }
}

/// Leaves an answer when `bytes` of it have come, over HTTP/1 or HTTP/2; with none, when the server has the request.
async fn leave(shop: &Shop, upstream: &Upstream, http2: bool, path: &str, body: &Value, bytes: usize) {
    let asked = upstream.count();
    let read = async {
        if http2 { read_http2(shop, path, body, bytes).await } else { read_http1(shop, path, body, bytes).await }
    };
    let served = eventually("the server works on it", || async { (upstream.count() > asked).then_some(()) });
    tokio::select! {
        () = read => {}
        () = served, if bytes == 0 => {}
    }
}

async fn read_http1(shop: &Shop, path: &str, body: &Value, bytes: usize) {
    let client = shop.client();
    let headers = [("x-api-key", shop.key.as_str()), JSON];
    let mut stream = client.stream(client.request("POST", path, &headers, body.to_string())).await.unwrap();
    let mut seen = 0;
    while seen < bytes.max(1) {
        seen += stream.part().await.unwrap().unwrap().len();
    }
}

async fn read_http2(shop: &Shop, path: &str, body: &Value, bytes: usize) {
    let connection = TcpStream::connect(shop.gateway.listener("h2c")).await.unwrap();
    let mut client = http2_over(connection).await;
    let request = http::Request::post(format!("http://a.test{path}"))
        .header("x-api-key", &shop.key)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap();
    let mut answer = client.send_request(request).await.unwrap();
    let mut seen = 0;
    while seen < bytes.max(1) {
        seen += answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len();
    }
    // Resets the stream; the connection stays.
    drop(answer);
    shop.gateway.metric_becomes("spillway_requests_in_flight{http_route=\"chat\"}", 0.0).await;
}

#[tokio::test]
async fn a_caller_that_leaves_an_answer_pays_the_prompt_and_what_was_written() {
    for pieces in [0, 1, 5] {
        let upstream = Upstream::start(held_back(pieces)).await;
        let mut shop = Shop::open(&upstream, "").await;
        for path in ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/api/chat"] {
            let body = if path == "/v1/chat/completions" { chat(4000, true) } else { ask_other_api(path, true) };
            let sent = if path == "/v1/chat/completions" { seven_thousand(true) } else { other_api(path, true) };
            let bytes: usize = sent[..pieces].iter().map(String::len).sum();
            let words = sent[..pieces].iter().filter(|piece| piece.contains("word ")).count() as u64;
            let mut expected = 10 + (words * 5).div_ceil(4).max(words);
            if path == "/v1/messages" && pieces > 0 {
                // What its first event tells.
                expected += 40 - 10 + 1;
            }
            for http2 in [false, true] {
                leave(&shop, &upstream, http2, path, &body, bytes).await;
                assert_eq!(shop.charged().await, expected, "{path}: left after {pieces} events, HTTP/2 {http2}");
            }
        }
    }
}

#[tokio::test]
async fn a_caller_that_leaves_before_the_head_or_in_a_whole_answer_pays_what_was_written() {
    let half = seven_thousand(false)[0].len() / 2;
    let upstream = Upstream::start(move |seen| async move {
        if seen.path.contains("silent") {
            return std::future::pending().await;
        }
        let whole = &seven_thousand(false)[0];
        let (sender, receiver) = mpsc::channel(1);
        let begun = Bytes::from(whole[..half].to_owned());
        tokio::spawn(async move {
            let _ = sender.send(Ok(begun)).await;
            sender.closed().await;
        });
        Some(streamed(&[JSON], receiver))
    })
    .await;
    let mut shop = Shop::open(&upstream, ", retry: {hedge: {after: 10s}}").await;
    let whole = &seven_thousand(false)[0];
    let text = half - whole.find("word ").unwrap();
    for (http2, stream) in [(false, false), (true, false), (false, true), (true, true)] {
        leave(&shop, &upstream, http2, "/v1/chat/completions?silent", &chat(4000, stream), 0).await;
        assert_eq!(shop.charged().await, 10, "HTTP/2 {http2}, stream {stream}");
    }
    for http2 in [false, true] {
        leave(&shop, &upstream, http2, "/v1/chat/completions", &chat(4000, false), half).await;
        assert_eq!(shop.charged().await, 10 + (text as u64).div_ceil(4), "HTTP/2 {http2}");
    }
}

#[tokio::test]
async fn an_answer_that_is_written_later_costs_what_was_reserved() {
    let upstream = Upstream::start(|_| async {
        let later = json!({"id": "r", "object": "response", "status": "queued", "output": [], "usage": null});
        Some(reply(200, &[JSON], later.to_string()))
    })
    .await;
    let mut shop = Shop::open(&upstream, "").await;
    let mut body = json!({"model": "m", "input": "x".repeat(40), "background": true});
    for (most, expected) in [(json!(null), 512), (json!(77), 77)] {
        body["max_output_tokens"] = most;
        shop.post("/v1/responses", &body, &[]).await;
        assert_eq!(shop.charged().await, 10 + expected);
    }
}

#[tokio::test]
async fn a_limit_of_zero_tokens_makes_no_text_free() {
    let upstream = teller().await;
    let mut shop = Shop::open(&upstream, "").await;
    for stream in [false, true] {
        let mut body = chat(0, stream);
        (body["user"], body["seed"]) = (paragraph().into(), 10.into());
        shop.post("/v1/chat/completions", &body, &[]).await;
        assert_eq!(shop.charged().await, 600, "a server that knows no such limit writes all the same; stream {stream}");
    }
}

#[tokio::test]
async fn an_error_costs_nothing_whatever_its_status_says() {
    let error = json!({"error": {"message": "no", "type": "server_error", "code": 500}});
    let cases = vec![
        (JSON, error.to_string()),
        (JSON, json!({"error": "plain"}).to_string()),
        (JSON, json!({"type": "error", "error": {"type": "api_error", "message": "no"}}).to_string()),
        (STREAM, event(&error)),
        (STREAM, format!(": comment\n\nevent: error\n{}data: [DONE]\n\n", event(&error))),
        (STREAM, event(&json!({"type": "error", "code": "server_error", "message": "no"}))),
        (STREAM, event(&json!({"type": "response.failed", "response": {"error": {"code": "server_error"}}}))),
        (("content-type", "application/x-ndjson"), format!("{error}\n")),
    ];
    let written = vec![
        (JSON, json!({"error": "", "choices": [{"message": {"content": "abcdefgh"}}]}).to_string()),
        (STREAM, delta(&json!({"content": "abcdefgh"})) + &event(&error)),
    ];
    let served = [cases.clone(), written.clone()].concat();
    let upstream = Upstream::start(move |seen| {
        let (kind, body) = served[usize::try_from(body_of(&seen)["seed"].as_u64().unwrap()).unwrap()].clone();
        async move { Some(reply(200, &[kind], body)) }
    })
    .await;
    let mut shop = Shop::open(&upstream, "").await;
    for (n, (_, answer)) in cases.iter().chain(&written).enumerate() {
        let mut body = chat(100, true);
        body["seed"] = n.into();
        shop.post("/v1/chat/completions", &body, &[]).await;
        let expected = if n < cases.len() { 0 } else { 12 };
        assert_eq!(shop.charged().await, expected, "{answer}");
    }
}
