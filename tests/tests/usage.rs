//! Usage of answers: the gateway learns it from every stream, whether its caller asks or not, and counts the same whatever the
//! caller chooses.

use std::io::Write;

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{Answer, Gateway, Reply, Seen, Upstream, encoded, eventually, new_key, reply, streamed};
use tokio::sync::mpsc;

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
const LINES: (&str, &str) = ("content-type", "application/x-ndjson");
const VERSION: (&str, &str) = ("anthropic-version", "2023-06-01");

/// Last word of the text before a server pauses.
const PAUSE: &str = "stop";

/// A gateway that counts what its one consumer spends.
struct Shop {
    gateway: Gateway,
    key: String,
    spent: (f64, f64),
}

impl Shop {
    /// Gateway before one server, which speaks `protocol`.
    async fn open(protocol: &str, upstream: &Upstream, backend: &str) -> Self {
        let (key, digest) = new_key();
        let yaml = format!(
            "consumers:
- name: acme
  keys: [{{sha256: \"{digest}\"}}]
  limits: {{budget: {{tokens: 1000000000, usd: 1000000, per: day}}}}
prices: [{{model: m, input: 10000, cachedInput: 1000, cacheWrite: 20000, cacheWrite1h: 40000, output: 100}}]
backends: [{{name: b, protocol: {protocol}, endpoints: [{{url: \"{}\"}}]{backend}}}]
routes: [{{name: r, backendRefs: [{{name: b}}]}}]
",
            upstream.url()
        );
        Self { gateway: Gateway::start(&yaml).await, key, spent: (0.0, 0.0) }
    }

    async fn post(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Answer {
        let headers = [&[("x-api-key", self.key.as_str()), JSON], headers].concat();
        self.gateway.client().post(path, &headers, body.to_string()).await
    }

    /// Tokens and ten-thousandths of a dollar that were charged since the last look.
    async fn charged(&mut self) -> (u64, u64) {
        self.gateway.metric_becomes("spillway_requests_in_flight{http_route=\"r\"}", 0.0).await;
        let series = |unit| format!("spillway_budget_spent{{budget=\"consumer acme\",per=\"day\",unit=\"{unit}\"}}");
        let now = (self.gateway.metric(&series("tokens")).await, self.gateway.metric(&series("usd")).await);
        let before = std::mem::replace(&mut self.spent, now);
        ((now.0 - before.0) as u64, ((now.1 - before.1) * 1e4).round() as u64)
    }
}

fn asked(seen: &Seen) -> Value {
    serde_json::from_slice(&seen.body).unwrap()
}

fn wants_stream(seen: &Seen) -> bool {
    asked(seen)["stream"].as_bool().unwrap_or(seen.path.starts_with("/api/"))
}

fn event(data: &Value) -> String {
    format!("data: {data}\n\n")
}

fn typed(kind: &str, mut data: Value) -> String {
    data["type"] = kind.into();
    format!("event: {kind}\ndata: {data}\n\n")
}

/// Usage in OpenAI's words: 40 tokens read, of which 30 came from a cache and 5 went to one, and 12 written.
fn usage() -> Value {
    json!({"prompt_tokens": 40, "completion_tokens": 12, "total_tokens": 52,
        "prompt_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 5}})
}

/// Five tokens at a cent, thirty at a tenth of one, five at two, and twelve at a hundredth of one.
const WHOLE: (u64, u64) = (52, 500 + 300 + 1000 + 12);

/// Words of an answer; the last is [`PAUSE`].
fn words() -> Vec<String> {
    let mut words = vec!["word ".to_owned(); 11];
    words.push(PAUSE.to_owned());
    words
}

/// Answer of a server: what comes before it pauses, and the rest.
fn answer_of(seen: &Seen) -> (String, String) {
    let text = words().concat();
    match (seen.path.as_str(), wants_stream(seen)) {
        ("/v1/chat/completions", false) => {
            let message = json!({"role": "assistant", "content": text});
            let choice = json!({"index": 0, "message": message, "finish_reason": "stop"});
            (json!({"id": "c", "model": "m", "choices": [choice], "usage": usage()}).to_string(), String::new())
        }
        ("/v1/completions", false) => {
            let choice = json!({"index": 0, "text": text, "finish_reason": "stop"});
            (json!({"id": "c", "model": "m", "choices": [choice], "usage": usage()}).to_string(), String::new())
        }
        ("/v1/chat/completions" | "/v1/completions", true) => {
            let choice = |word: &str, reason: Value| match seen.path.as_str() {
                "/v1/completions" => json!({"index": 0, "text": word, "finish_reason": reason}),
                _ => json!({"index": 0, "delta": {"content": word}, "finish_reason": reason}),
            };
            let chunk = |choices: Value| json!({"id": "c", "model": "m", "choices": choices});
            let said = words().iter().map(|word| event(&chunk(json!([choice(word, Value::Null)])))).collect();
            let mut rest = event(&chunk(json!([choice("", "stop".into())])));
            if asked(seen)["stream_options"]["include_usage"] == true {
                let mut last = chunk(json!([]));
                last["usage"] = usage();
                rest += &event(&last);
            }
            (said, rest + "data: [DONE]\n\n")
        }
        ("/v1/messages", false) => {
            let usage = json!({"input_tokens": 5, "cache_creation_input_tokens": 5, "cache_read_input_tokens": 30,
                "output_tokens": 12});
            let content = json!([{"type": "text", "text": text}]);
            let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": content,
                "stop_reason": "end_turn", "usage": usage});
            (message.to_string(), String::new())
        }
        ("/v1/messages", true) => {
            // The reads come first and the writes last.
            let begin = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [],
                "usage": {"input_tokens": 5, "cache_read_input_tokens": 30, "output_tokens": 0}});
            let mut said = typed("message_start", json!({"message": begin}));
            said += &typed("content_block_start", json!({"index": 0, "content_block": {"type": "text", "text": ""}}));
            for word in words() {
                let delta = json!({"type": "text_delta", "text": word});
                said += &typed("content_block_delta", json!({"index": 0, "delta": delta}));
            }
            let mut rest = typed("content_block_stop", json!({"index": 0}));
            let usage = json!({"cache_creation_input_tokens": 5, "output_tokens": 12});
            rest += &typed("message_delta", json!({"delta": {"stop_reason": "end_turn"}, "usage": usage}));
            (said, rest + &typed("message_stop", json!({})))
        }
        ("/v1/responses", is_stream) => {
            let usage = json!({"input_tokens": 40, "output_tokens": 12, "total_tokens": 52,
                "input_tokens_details": {"cached_tokens": 30, "cache_write_tokens": 5}});
            let output = json!([{"type": "message", "content": [{"type": "output_text", "text": text}]}]);
            let whole = json!({"id": "resp_1", "object": "response", "status": "completed", "model": "m",
                "output": output, "usage": usage});
            if !is_stream {
                return (whole.to_string(), String::new());
            }
            let begin = json!({"response": {"id": "resp_1", "model": "m", "usage": null}});
            let mut said = typed("response.created", begin);
            for word in words() {
                said += &typed("response.output_text.delta", json!({"item_id": "m1", "delta": word}));
            }
            (said, typed("response.completed", json!({"response": whole})))
        }
        ("/api/chat", is_stream) => {
            let line = |said: &str| {
                json!({"model": "m", "message": {"role": "assistant", "content": said}, "done": false}).to_string()
                    + "\n"
            };
            let end = |said: &str| {
                let message = json!({"role": "assistant", "content": said});
                json!({"model": "m", "message": message, "done": true, "prompt_eval_count": 40, "eval_count": 12})
                    .to_string()
                    + "\n"
            };
            if is_stream {
                (words().iter().map(|word| line(word)).collect(), end(""))
            } else {
                (end(&text), String::new())
            }
        }
        (path, _) => panic!("{path}"),
    }
}

/// Answers as the request wants it: compressed where it accepts that, and with a pause where the caller is to leave.
async fn serve(seen: Seen) -> Option<Reply> {
    let (said, rest) = answer_of(&seen);
    let accepts = seen.headers.get("accept-encoding").map_or("", |value| value.to_str().unwrap());
    let is_compressed = accepts.contains("gzip");
    let kind = match (seen.path.as_str(), wants_stream(&seen)) {
        (_, false) => JSON,
        ("/api/chat", true) => LINES,
        (_, true) => EVENTS,
    };
    let mut headers = vec![kind];
    if is_compressed {
        headers.push(("content-encoding", "gzip"));
    }
    let pauses = String::from_utf8_lossy(&seen.body).contains("pause");
    if !pauses {
        let whole = said + &rest;
        let whole = if is_compressed { encoded("gzip", whole.as_bytes()) } else { whole.into_bytes() };
        return Some(reply(200, &headers, whole));
    }
    let said = if is_compressed { flushed(&said) } else { said.into_bytes() };
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let _ = sender.send(Ok(Bytes::from(said))).await;
        // The server writes no more and does not end.
        sender.closed().await;
    });
    Some(streamed(&headers, receiver))
}

/// Text in gzip that can be decoded although its end is missing.
fn flushed(text: &str) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.flush().unwrap();
    encoder.get_ref().clone()
}

/// Plain bytes of the part of an answer that has come so far.
fn decoded(is_compressed: bool, bytes: &[u8]) -> String {
    if !is_compressed {
        return String::from_utf8_lossy(bytes).into_owned();
    }
    let mut decoder = flate2::write::GzDecoder::new(Vec::new());
    decoder.write_all(bytes).unwrap();
    decoder.flush().unwrap();
    String::from_utf8_lossy(decoder.get_ref()).into_owned()
}

/// Request with a prompt of ten tokens.
fn request(path: &str, stream: bool, leaves: bool) -> Value {
    let text = format!("{:x<40}", if leaves { "pause" } else { "" });
    match path {
        "/v1/responses" => json!({"model": "m", "input": text, "max_output_tokens": 50, "stream": stream}),
        "/v1/completions" => json!({"model": "m", "prompt": text, "max_tokens": 50, "stream": stream}),
        "/api/chat" => {
            let messages = json!([{"role": "user", "content": text}]);
            json!({"model": "m", "messages": messages, "options": {"num_predict": 50}, "stream": stream})
        }
        _ => {
            let messages = json!([{"role": "user", "content": text}]);
            json!({"model": "m", "messages": messages, "max_tokens": 50, "stream": stream})
        }
    }
}

impl Shop {
    /// Reads an answer until its last word before the pause, then leaves.
    async fn leave(&self, path: &str, body: &Value, headers: &[(&str, &str)]) {
        let headers = [&[("x-api-key", self.key.as_str()), JSON], headers].concat();
        let client = self.gateway.client();
        let mut answer = client.stream(client.request("POST", path, &headers, body.to_string())).await.unwrap();
        let is_compressed = answer.headers.contains_key("content-encoding");
        let mut read = Vec::new();
        while !decoded(is_compressed, &read).contains(PAUSE) {
            read.extend_from_slice(&answer.part().await.unwrap().unwrap());
        }
    }
}

#[tokio::test]
async fn the_counted_usage_is_the_same_whatever_the_caller_chooses() {
    // The protocol of the server, the paths that its callers use, and the charge of a caller that leaves a stream: the prompt,
    // which the first event of the Messages API tells, and the 59 bytes of text.
    let servers = [
        ("openai", &["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"][..], 10 + 15),
        ("anthropic", &["/v1/messages", "/v1/chat/completions"], 35 + 15),
        ("ollama", &["/api/chat", "/v1/chat/completions"], 10 + 15),
    ];
    for (protocol, paths, left) in servers {
        let upstream = Upstream::start(serve).await;
        let mut shop = Shop::open(protocol, &upstream, "").await;
        for path in paths {
            for stream in [false, true] {
                for coding in ["identity", "gzip"] {
                    let case = format!("{path} before {protocol}, stream {stream}, {coding}");
                    let headers = [VERSION, ("accept-encoding", coding)];
                    let body = request(path, stream, false);
                    let answer = shop.post(path, &body, &headers).await;
                    assert_eq!(answer.status, 200, "{case}: {}", answer.text());
                    let (tokens, money) = shop.charged().await;
                    assert_eq!(tokens, WHOLE.0, "{case}");
                    // Ollama has no words for caches.
                    let expected = if *path == "/api/chat" { 4000 + 12 } else { WHOLE.1 };
                    assert_eq!(money, expected, "{case}");
                    if stream {
                        shop.leave(path, &request(path, true, true), &headers).await;
                        assert_eq!(shop.charged().await.0, left, "{case}, left early");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn a_stream_is_asked_for_its_usage_which_its_caller_does_not_see() {
    let upstream = Upstream::start(serve).await;
    let mut shop = Shop::open("openai", &upstream, ", model: \"m, \\\"renamed\\\"\"").await;
    for path in ["/v1/chat/completions", "/v1/completions"] {
        for (options, sent, shows) in [
            (None, json!({"include_usage": true}), false),
            (Some(Value::Null), json!({"include_usage": true}), false),
            (Some(json!({})), json!({"include_usage": true}), false),
            (Some(json!({"include_usage": false})), json!({"include_usage": true}), false),
            (
                Some(json!({"include_obfuscation": false})),
                json!({"include_usage": true, "include_obfuscation": false}),
                false,
            ),
            (Some(json!({"include_usage": true})), json!({"include_usage": true}), true),
        ] {
            let mut body = request(path, true, false);
            if let Some(options) = options {
                body["stream_options"] = options;
            }
            let answer = shop.post(path, &body, &[("accept-encoding", "gzip")]).await;
            let seen = upstream.last();
            body["stream_options"] = sent;
            body["model"] = "m, \"renamed\"".into();
            assert_eq!(asked(&seen), body);
            let (said, rest) = answer_of(&seen);
            let usage = event(&json!({"id": "c", "model": "m", "choices": [], "usage": usage()}));
            let expected = said + &rest;
            assert!(expected.contains(&usage));
            let expected = if shows { expected } else { expected.replace(&usage, "") };
            if answer.header("content-encoding").is_empty() {
                assert_eq!(answer.text(), expected, "{body}");
            } else {
                assert!(shows, "a chunk cannot be taken out of a compressed stream");
            }
            assert_eq!(shop.charged().await, WHOLE, "{body}");
        }
        shop.post(path, &request(path, false, false), &[]).await;
        assert_eq!(asked(&upstream.last()).get("stream_options"), None, "an answer that is no stream has its usage");
        assert_eq!(shop.charged().await, WHOLE);
    }
}

#[tokio::test]
async fn no_chunk_is_hidden_that_has_more_than_the_usage() {
    let text = |usage: Value| {
        let choice = json!({"index": 0, "delta": {"content": "word "}, "finish_reason": null});
        event(&json!({"id": "c", "model": "m", "choices": [choice], "usage": usage}))
    };
    let usage_of = |written: u64| json!({"prompt_tokens": 40, "completion_tokens": written});
    let last = json!({"index": 0, "delta": {}, "finish_reason": "stop"});
    let done = "data: [DONE]\n\n";
    let filter = event(&json!({"id": "", "model": "", "choices": [], "prompt_filter_results": [], "usage": null}));
    let cases = [
        // In every chunk.
        ((1..=12).map(|n| text(usage_of(n))).collect::<String>() + done, 52),
        // With the last chunk that has a choice.
        (text(Value::Null) + &event(&json!({"model": "m", "choices": [last], "usage": usage_of(12)})) + done, 52),
        // In none, behind a chunk without choices that has other news, and an end without `[DONE]`.
        (filter + &text(Value::Null).repeat(12), 10 + 15),
        // An error in place of the usage.
        (
            text(Value::Null)
                + &event(&json!({"choices": [], "usage": usage_of(12), "error": {"message": "x"}}))
                + done,
            52,
        ),
    ];
    for (sent, tokens) in cases {
        let said = sent.clone();
        let upstream = Upstream::start(move |_| {
            let said = said.clone();
            async move { Some(reply(200, &[EVENTS], said)) }
        })
        .await;
        let mut shop = Shop::open("openai", &upstream, "").await;
        let answer = shop.post("/v1/chat/completions", &request("/v1/chat/completions", true, false), &[]).await;
        assert_eq!(answer.text(), sent);
        assert_eq!(shop.charged().await.0, tokens, "{sent}");
    }
}

#[tokio::test]
async fn a_server_that_refuses_the_field_is_not_asked_by_it() {
    let upstream = Upstream::start(|seen| async move {
        if asked(&seen).get("stream_options").is_some() {
            let error = json!({"error": {"message": "Unrecognized request argument: stream_options", "code": null}});
            return Some(reply(400, &[JSON], error.to_string()));
        }
        serve(seen).await
    })
    .await;
    let path = "/v1/chat/completions";
    let mut asking = Shop::open("openai", &upstream, "").await;
    let answer = asking.post(path, &request(path, true, false), &[]).await;
    assert_eq!(answer.status, 400, "the caller reads what the server says");
    assert!(answer.text().contains("stream_options"), "{}", answer.text());
    assert_eq!(asking.charged().await, (0, 0));
    let mut quiet = Shop::open("openai", &upstream, ", streamUsage: false").await;
    let body = request(path, true, false);
    let answer = quiet.post(path, &body, &[]).await;
    assert_eq!((answer.status.as_u16(), upstream.last().body), (200, Bytes::from(body.to_string())));
    assert_eq!(quiet.charged().await.0, 10 + 15, "without usage, text is counted");
    let answer = quiet.post("/v1/messages", &request("/v1/messages", true, false), &[VERSION]).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(quiet.charged().await.0, 10 + 15);
}

#[tokio::test]
async fn tokens_of_caches_are_in_the_metrics_and_the_access_log() {
    let upstream = Upstream::start(serve).await;
    let shop = Shop::open("anthropic", &upstream, "").await;
    for path in ["/v1/messages", "/v1/chat/completions"] {
        shop.post(path, &request(path, true, false), &[VERSION]).await;
    }
    for (kind, tokens) in [("input", 40), ("cache_read_input", 30), ("cache_creation_input", 5), ("output", 12)] {
        let series = format!(
            "gen_ai_client_token_usage_sum{{gen_ai_operation_name=\"chat\",gen_ai_provider_name=\"anthropic\",\
             gen_ai_request_model=\"b\",gen_ai_token_type=\"{kind}\"}}"
        );
        shop.gateway.metric_becomes(&series, f64::from(2 * tokens)).await;
    }
    let lines = eventually("two lines of the access log", || async {
        Some(shop.gateway.events("access")).filter(|lines| lines.len() == 2)
    })
    .await;
    for line in lines {
        let of = |name: &str| line[name].as_u64();
        let told = (of("promptTokens"), of("cachedTokens"), of("cacheWrittenTokens"), of("completionTokens"));
        assert_eq!(told, (Some(40), Some(30), Some(5), Some(12)), "{line}");
    }
}

#[tokio::test]
async fn tokens_that_a_cache_keeps_for_an_hour_have_their_own_price_whoever_asks_and_however() {
    // Forty tokens read: thirty from a cache, five written to it for minutes, four for an hour, one neither; and two written.
    let upstream = Upstream::start(|seen| async move {
        let usage = json!({"input_tokens": 1, "cache_read_input_tokens": 30, "cache_creation_input_tokens": 9,
            "cache_creation": {"ephemeral_5m_input_tokens": 5, "ephemeral_1h_input_tokens": 4}, "output_tokens": 2});
        let content = json!([{"type": "text", "text": "hi"}]);
        let mut message = json!({"id": "m", "type": "message", "role": "assistant", "model": "m", "content": content,
            "stop_reason": "end_turn", "stop_sequence": null, "usage": usage});
        if !wants_stream(&seen) {
            return Some(reply(200, &[JSON], message.to_string()));
        }
        message["content"] = json!([]);
        let block = json!({"index": 0, "content_block": {"type": "text", "text": ""}});
        let text = json!({"index": 0, "delta": {"type": "text_delta", "text": "hi"}});
        let end = json!({"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}});
        let events = [
            typed("message_start", json!({"message": message})),
            typed("content_block_start", block),
            typed("content_block_delta", text),
            typed("content_block_stop", json!({"index": 0})),
            typed("message_delta", end),
            typed("message_stop", json!({})),
        ];
        Some(reply(200, &[EVENTS], events.concat()))
    })
    .await;
    let mut shop = Shop::open("anthropic", &upstream, "").await;
    let messages = json!([{"role": "user", "content": "hi"}]);
    for stream in [false, true] {
        for path in ["/v1/messages", "/v1/chat/completions"] {
            let body = json!({"model": "m", "max_tokens": 9, "stream": stream, "messages": messages});
            let answer = shop.post(path, &body, &[VERSION]).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(shop.charged().await, (42, 100 + 30 * 10 + 5 * 200 + 4 * 400 + 2), "{path}, stream: {stream}");
        }
    }
}

#[tokio::test]
async fn a_field_that_servers_do_not_get_is_not_sent_by_the_gateway_itself() {
    let upstream = Upstream::start(serve).await;
    let path = "/v1/chat/completions";
    for fields in ["stream_options", "seed, stream_options.include_usage"] {
        let mut shop = Shop::open("openai", &upstream, &format!(", dropFields: [{fields}]")).await;
        for (path, more) in [
            (path, json!({})),
            (path, json!({"seed": 1})),
            (path, json!({"stream_options": {"include_usage": true}})),
            ("/v1/messages", json!({})),
        ] {
            let mut body = request(path, true, false);
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            let answer = shop.post(path, &body, &[VERSION]).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let sent = asked(&upstream.last());
            assert!(sent["stream_options"].get("include_usage").is_none(), "{fields}: {sent}");
            assert_eq!(shop.charged().await.0, 10 + 15, "without usage, text is counted");
        }
    }
    // Another field of that object is no reason.
    let mut shop = Shop::open("openai", &upstream, ", dropFields: [stream_options.include_obfuscation]").await;
    let mut body = request(path, true, false);
    body["stream_options"] = json!({"include_obfuscation": false});
    shop.post(path, &body, &[]).await;
    assert_eq!(asked(&upstream.last())["stream_options"], json!({"include_usage": true}));
    assert_eq!(shop.charged().await, WHOLE);
}
