//! Watch over what callers ask and targets answer: shifts are noticed and quiet traffic is not, whatever the API, the form or
//! the coding of an answer; nothing of a text is kept; wild requests cost no more than others.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use spillway_tests::{
    Collector, Gateway, Reply, Seen, Upstream, asked, binary, encoded, eventually, minilm, model, reply,
};

const JSON: (&str, &str) = ("content-type", "application/json");
const EVENTS: (&str, &str) = ("content-type", "text/event-stream");
/// Word of the prompts that may be found nowhere.
const SECRET: &str = "xylophonequartz";

/// Numbers that are the same in every run (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }
}

const ENGLISH: [&str; 6] = [
    "Could you please explain how the weather forecast for tomorrow morning is made",
    "What would be a good recipe for a simple vegetable soup with some fresh bread",
    "I would like to understand why the train to the city was late again yesterday",
    "Please write a short and friendly letter to my neighbour about the broken fence",
    "Which books should somebody read who wants to learn about the history of music",
    "Tell me how much water a small garden needs during a long and very hot summer",
];

const GERMAN: [&str; 3] = [
    "Bitte erkläre mir ausführlich, warum der Zug in die Stadt gestern schon wieder zu spät gekommen ist",
    "Welche Bücher sollte jemand lesen, der etwas über die Geschichte der Musik lernen möchte",
    "Wie viel Wasser braucht ein kleiner Garten in einem langen und sehr heißen Sommer",
];

/// Prompt of a usual caller, or of a shifted one: longer, and mostly German.
fn prompt(random: &mut Random, is_shifted: bool) -> String {
    let texts: &[&str] = if is_shifted && random.below(4) > 0 { &GERMAN } else { &ENGLISH };
    let sentences = 1 + random.below(4) + if is_shifted { 6 } else { 0 };
    let pick = |random: &mut Random| texts[usize::try_from(random.below(texts.len() as u64)).unwrap()];
    let said: Vec<&str> = (0..sentences).map(|_| pick(random)).collect();
    format!("{}. {SECRET}?", said.join(". "))
}

/// Answer of a server of OpenAI's API, in the form that is asked for, with `words` words.
fn answer(seen: &Seen, words: u64, text: &str) -> Reply {
    let usage = json!({"prompt_tokens": seen.body.len() / 4, "completion_tokens": words});
    let said = vec![text; usize::try_from(words).unwrap()].join(" ");
    if asked(seen)["stream"] != true {
        let body = json!({"id": "c", "object": "chat.completion", "model": "m", "usage": usage,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}]});
        return reply(200, &[JSON], body.to_string());
    }
    let chunk = |delta: Value, reason: Value| {
        format!("data: {}\n\n", json!({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}))
    };
    let last = format!("data: {}\n\ndata: [DONE]\n\n", json!({"id": "c", "choices": [], "usage": usage}));
    let body = chunk(json!({"content": said}), Value::Null) + &chunk(json!({}), json!("stop")) + &last;
    reply(200, &[EVENTS], body)
}

async fn echo(seen: Seen) -> Option<Reply> {
    // As many words as the bytes of the request say, which any prompt makes random.
    let words = 5 + seen.body.iter().map(|byte| u64::from(*byte)).sum::<u64>() % 20;
    Some(answer(&seen, words, "word"))
}

/// Sends `number` conversations at a time of sixteen.
async fn converse(gateway: &Gateway, random: &mut Random, number: usize, is_shifted: bool, headers: &[(&str, &str)]) {
    for n in 0..number.div_ceil(16) {
        let calls = (0..16.min(number - 16 * n)).map(|k| {
            let content = prompt(random, is_shifted);
            let body = json!({"model": "m", "stream": k % 2 == 0, "messages": [{"role": "user", "content": content}]});
            let client = gateway.client();
            let headers: Vec<(&str, &str)> = headers.iter().copied().chain([JSON]).collect();
            async move {
                let answer = client.post("/v1/chat/completions", &headers, body.to_string()).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
            }
        });
        futures::future::join_all(calls).await;
    }
}

async fn shown(gateway: &Gateway) -> Value {
    serde_json::from_str(&gateway.shown("/api/quality").await).unwrap()
}

fn of<'v>(shown: &'v Value, route: &str, target: &str) -> Option<&'v Value> {
    let routes = shown["routes"].as_array()?.iter();
    let targets = routes.filter(|one| one["route"] == route).flat_map(|one| one["targets"].as_array().unwrap());
    targets.into_iter().find(|one| one["target"] == target)
}

fn feature<'v>(target: &'v Value, name: &str) -> &'v Value {
    let features = target["features"].as_array().unwrap();
    features.iter().find(|one| one["feature"] == name).unwrap_or(&Value::Null)
}

/// Waits until so many recent requests of a target were looked at.
async fn looked_at(gateway: &Gateway, route: &str, target: &str, rows: u64) -> Value {
    eventually(&format!("{rows} requests of {route} at {target} are looked at"), || async {
        let shown = shown(gateway).await;
        of(&shown, route, target).filter(|one| one["rows"].as_u64().unwrap() >= rows).cloned()
    })
    .await
}

/// Features with an event, as `target feature`.
fn drifts(gateway: &Gateway, event: &str) -> Vec<String> {
    let name =
        |event: Value| format!("{} {}", event["served_by"].as_str().unwrap(), event["feature"].as_str().unwrap());
    let mut all: Vec<String> = gateway.events(event).into_iter().map(name).collect();
    all.sort();
    all
}

fn run(gateway: &Gateway, arguments: &[&str]) -> (bool, String) {
    let admin = format!("http://{}", gateway.admin);
    let out = Command::new(binary()).args(arguments).args(["--admin", &admin]).current_dir(gateway.folder()).output();
    let out = out.unwrap();
    (out.status.success(), String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned())
}

fn edit(gateway: &Gateway, from: &str, to: &str) {
    let yaml = std::fs::read_to_string(gateway.config()).unwrap();
    assert!(yaml.contains(from), "{from}");
    std::fs::write(gateway.config(), yaml.replace(from, to)).unwrap();
}

/// Every file below a folder.
fn contents(folder: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { all.extend(contents(&path)) } else { all.extend(std::fs::read(path).unwrap()) }
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn shifted_prompts_are_noticed_and_quiet_ones_are_not_and_no_text_is_kept() {
    let (upstream, collector) = (Upstream::start(echo).await, Collector::start().await);
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, quality: {{sample: 1.0}}, backendRefs: [{{name: b}}]}}]
telemetry: {{tracing: {{otlp: {{endpoint: \"{}\"}}, sampleRatio: 1.0}}}}
",
        upstream.url(),
        collector.url()
    ))
    .await;
    let mut random = Random(1);
    converse(&gateway, &mut random, 400, false, &[]).await;
    let target = looked_at(&gateway, "chat", "b", 400).await;
    let languages = feature(&target, "language")["bars"].as_array().unwrap();
    let english = languages.iter().find(|bar| bar["name"] == "eng").unwrap();
    assert!(english["recent"].as_f64().unwrap() > 0.9, "{target}");
    assert_eq!(feature(&target, "answerTokens")["recent"]["count"], 400);
    assert_eq!(feature(&target, "finishReason")["recent"]["count"], 400);

    let (ok, said) = run(&gateway, &["drift", "reference", "--route", "chat", "-o", "reference.json"]);
    assert!(ok, "{said}");
    edit(&gateway, "sample: 1.0", "sample: 1.0, reference: {file: reference.json}");
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    eventually("the recent requests outlive an edit, and the file is the reference", || async {
        let shown = shown(&gateway).await;
        let target = of(&shown, "chat", "b")?;
        (target["referenceRows"] == 400 && target["rows"] == 400).then_some(())
    })
    .await;

    converse(&gateway, &mut random, 400, false, &[]).await;
    let target = looked_at(&gateway, "chat", "b", 800).await;
    assert_eq!(feature(&target, "promptLength")["judged"], true, "{target}");
    assert!(feature(&target, "promptLength")["distance"].as_f64().unwrap() < 0.1);
    assert_eq!(drifts(&gateway, "drift"), [] as [&str; 0]);

    converse(&gateway, &mut random, 1_200, true, &[]).await;
    let target = looked_at(&gateway, "chat", "b", 2_000).await;
    let expected = ["b language", "b promptLength", "b promptTokens", "b words"];
    eventually("the shift is noticed", || async { (drifts(&gateway, "drift") == expected).then_some(()) }).await;
    let length = feature(&target, "promptLength");
    for recipe in ["psi", "jensenShannon", "kolmogorovSmirnov", "wasserstein"] {
        assert!(length[recipe].as_f64().unwrap() > 0.2, "{recipe}: {length}");
    }
    let labels = "http_route=\"chat\",target=\"b\",feature=";
    gateway.metric_becomes(&format!("spillway_quality_drifted{{{labels}\"promptLength\"}}"), 1.0).await;
    gateway.metric_becomes(&format!("spillway_quality_drifted{{{labels}\"answerTokens\"}}"), 0.0).await;
    gateway.metric_becomes("spillway_quality_sampled_total{http_route=\"chat\"}", 2_000.0).await;
    assert_eq!(gateway.metric("spillway_quality_dropped_total{http_route=\"chat\"}").await, 0.0);

    let (ok, said) = run(&gateway, &["drift", "report", "--route", "chat", "-o", "report.html"]);
    assert!(ok, "{said}");
    let report = std::fs::read_to_string(gateway.folder().join("report.html")).unwrap();
    for part in ["<!doctype html>", "promptLength", "<figure", "drifted", "prefers-color-scheme: dark"] {
        assert!(report.contains(part), "{part}");
    }
    let (ok, said) = run(&gateway, &["drift", "report", "--route", "nobody", "-o", "-"]);
    assert!(!ok && said.contains("the route `nobody` is not watched; expected chat"), "{said}");
    let (ok, said) = run(&gateway, &["drift", "reference", "--route", "a/b", "-o", "-"]);
    assert!(!ok && said.contains("there is no route of that name"), "{said}");

    eventually("the spans are exported", || async {
        let bytes = collector.bytes();
        let has = |text: &str| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        (has("spillway.quality.language") && has("spillway.quality.refusal")).then_some(())
    })
    .await;
    let kept = [
        contents(gateway.folder()),
        gateway.shown("/api/quality").await.into_bytes(),
        gateway.shown("/metrics").await.into_bytes(),
        gateway.log().into_bytes(),
        collector.bytes(),
    ];
    for (n, bytes) in kept.iter().enumerate() {
        let found = bytes.windows(SECRET.len()).any(|window| window.eq_ignore_ascii_case(SECRET.as_bytes()));
        assert!(!found, "a word of a prompt is in place {n}");
    }
    assert!(gateway.folder().join("state/quality").is_dir(), "an edit stores the sketches");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_answers_otherwise_is_told_from_the_stable_one() {
    let stable = Upstream::start(echo).await;
    let candidate = Upstream::start(|seen: Seen| async move {
        let refuses = seen.body.len().is_multiple_of(3);
        Some(answer(&seen, 2, if refuses { "I'm sorry, but I can't help with that." } else { "Yes." }))
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: old, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
  - {{name: new, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
routes:
  - name: chat
    quality: {{sample: 1.0, reference: stable}}
    backendRefs: [{{name: new, weight: 40}}, {{name: old, weight: 60}}]
",
        stable.url(),
        candidate.url()
    ))
    .await;
    converse(&gateway, &mut Random(2), 1_100, false, &[]).await;
    let target = looked_at(&gateway, "chat", "new", 300).await;
    assert!(target["referenceRows"].as_u64().unwrap() > 0, "{target}");
    let expected = ["new answerLength", "new answerTokens", "new refusal"];
    eventually("the difference is noticed", || async { (drifts(&gateway, "drift") == expected).then_some(()) }).await;
    let shown = shown(&gateway).await;
    assert_eq!(of(&shown, "chat", "old").unwrap()["referenceRows"], Value::Null, "the stable target is the reference");
    assert!(feature(of(&shown, "chat", "new").unwrap(), "promptLength")["distance"].as_f64().unwrap() < 0.2);
}

/// A request of an API and the answer of its server.
struct Case {
    path: &'static str,
    protocol: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: Value,
    kind: &'static str,
    answer: String,
    features: &'static [&'static str],
}

fn cases() -> Vec<Case> {
    let user = json!([{"role": "user", "content": "Please tell me about the history of this beautiful town"}]);
    let said = "A town by the river.";
    let lines = |lines: &[Value]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let events = |events: &[Value]| events.iter().map(|event| format!("data: {event}\n\n")).collect::<String>();
    let text = ["promptLength", "language", "answerLength", "finishReason", "refusal"].as_slice();
    let case = |path, protocol, body, kind, answer, features| Case {
        path,
        protocol,
        headers: &[JSON],
        body,
        kind,
        answer,
        features,
    };
    vec![
        case(
            "/v1/chat/completions",
            "openai",
            json!({"model": "m", "messages": user, "logprobs": true}),
            "application/json",
            json!({"choices": [{"index": 0, "message": {"content": said}, "finish_reason": "stop",
                "logprobs": {"content": [{"token": "A", "logprob": -0.5}]}}]})
            .to_string(),
            &["promptLength", "language", "answerLength", "finishReason", "refusal", "logprob"],
        ),
        case(
            "/v1/completions",
            "openai",
            json!({"model": "m", "prompt": "Please tell me about the history of this beautiful town", "stream": true}),
            "text/event-stream",
            events(&[json!({"choices": [{"index": 0, "text": said, "finish_reason": "stop"}]})]) + "data: [DONE]\n\n",
            text,
        ),
        case(
            "/v1/responses",
            "openai",
            json!({"model": "m", "input": user, "stream": true}),
            "text/event-stream",
            events(&[
                json!({"type": "response.output_text.delta", "delta": said}),
                json!({"type": "response.completed", "response": {"id": "r", "status": "completed",
                    "output": [{"content": [{"text": said}]}], "usage": {"input_tokens": 9, "output_tokens": 5}}}),
            ]),
            &["promptLength", "language", "answerLength", "refusal", "answerTokens"],
        ),
        case(
            "/v1/embeddings",
            "openai",
            json!({"model": "m", "input": "Please tell me about the history of this beautiful town"}),
            "application/json",
            json!({"data": [{"embedding": [0.1, 0.2]}], "usage": {"prompt_tokens": 9}}).to_string(),
            &["promptLength", "language", "promptTokens"],
        ),
        case(
            "/v1/messages",
            "anthropic",
            json!({"model": "m", "max_tokens": 9, "messages": user}),
            "application/json",
            json!({"type": "message", "role": "assistant", "content": [{"type": "text", "text": said}],
                "stop_reason": "end_turn", "usage": {"input_tokens": 9, "output_tokens": 5}})
            .to_string(),
            text,
        ),
        case(
            "/api/chat",
            "ollama",
            json!({"model": "m", "messages": user}),
            "application/x-ndjson",
            lines(&[
                json!({"model": "m", "message": {"role": "assistant", "content": said}, "done": false}),
                json!({"model": "m", "message": {"content": ""}, "done": true, "done_reason": "stop",
                    "prompt_eval_count": 9, "eval_count": 5}),
            ]),
            text,
        ),
        case(
            "/v2/models/m/infer",
            "oip",
            json!({"inputs": [
                {"name": "age", "shape": [2], "datatype": "FP32", "data": [31.0, 44.0]},
                {"name": "city", "shape": [1], "datatype": "BYTES", "data": ["Bonn"]},
                {"name": "rows", "shape": [1, 3], "datatype": "FP64", "data": [[1.0, 2.0, 3.0]]},
            ]}),
            "application/json",
            json!({"model_name": "m", "outputs": [
                {"name": "scores", "shape": [1, 2], "datatype": "FP32", "data": [0.2, 0.8]},
                {"name": "label", "shape": [1], "datatype": "INT64", "data": [1]},
            ]})
            .to_string(),
            &[
                "input:age",
                "inputMissing:age",
                "input:city",
                "input:rows[2]",
                "output:scores[0]",
                "outputClass:scores",
                "output:label",
                "outputMissing:label",
            ],
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn every_api_is_read_whole_streamed_and_compressed() {
    let codings = ["identity", "gzip", "br", "zstd"];
    let upstream = Upstream::start(|seen: Seen| async move {
        let case = cases().into_iter().find(|case| case.path == seen.path)?;
        let coding = seen.headers.get("x-coding").map_or("identity", |value| value.to_str().unwrap()).to_owned();
        let body = encoded(&coding, case.answer.as_bytes());
        Some(reply(200, &[("content-type", case.kind), ("content-encoding", &coding)], body))
    })
    .await;
    let (mut backends, mut routes) = (String::new(), String::new());
    for (n, case) in cases().iter().enumerate() {
        let (url, protocol, path) = (upstream.url(), case.protocol, case.path);
        backends += &format!("  - {{name: b{n}, protocol: {protocol}, endpoints: [{{url: \"{url}\"}}]}}\n");
        routes += &format!(
            "  - {{name: r{n}, matches: [{{path: {{prefix: {path}}}}}], quality: {{sample: 1.0}}, backendRefs: [{{name: b{n}}}]}}\n"
        );
    }
    let gateway = Gateway::start(&format!("backends:\n{backends}routes:\n{routes}")).await;
    for case in cases() {
        for coding in codings {
            let headers = [case.headers, &[("x-coding", coding), ("accept-encoding", coding)]].concat();
            let answer = gateway.client().post(case.path, &headers, case.body.to_string()).await;
            assert_eq!(answer.status, 200, "{} {coding}: {}", case.path, answer.text());
        }
    }
    let list = gateway.client().get("/v1/models").await;
    assert!(list.status.as_u16() < 500, "a list of models is no call: {}", list.status);
    for (n, case) in cases().iter().enumerate() {
        let target = looked_at(&gateway, &format!("r{n}"), &format!("b{n}"), 4).await;
        for name in case.features {
            let recent = &feature(&target, name)["recent"];
            let each = if *name == "input:age" { 2 } else { 1 };
            assert_eq!(recent["count"], 4 * each, "{} {name}: {target}", case.path);
        }
        let unreadable = format!("spillway_quality_unreadable_total{{http_route=\"r{n}\"}}");
        assert_eq!(gateway.metric(&unreadable).await, 0.0, "{}", case.path);
    }
    assert!(!gateway.shown("/api/quality").await.contains("Bonn"), "a text of a tensor is kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn built_in_models_are_watched_and_one_makes_embeddings_of_prompts() {
    let upstream = Upstream::start(echo).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
models:
  - {{name: minilm, source: \"{}\", task: embedding}}
  - {{name: smollm2, source: \"{}\", contextLength: 256, device: cpu}}
routes:
  - {{name: inside, matches: [{{path: {{prefix: /v1/chat/completions}}, model: smollm2}}], quality: {{sample: 1.0}},
     backendRefs: [{{model: smollm2}}]}}
  - {{name: vectors, matches: [{{path: {{prefix: /v1/embeddings}}}}], quality: {{sample: 1.0}}, backendRefs: [{{model: minilm}}]}}
  - {{name: chat, quality: {{sample: 1.0, embedding: minilm}}, backendRefs: [{{name: b}}]}}
",
        upstream.url(),
        minilm().display(),
        model().display()
    ))
    .await;
    let ask = json!({"model": "smollm2", "max_tokens": 3, "messages": [{"role": "user", "content": "Please count up to three for me"}]});
    let answer = gateway.client().post("/v1/chat/completions", &[JSON], ask.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let target = looked_at(&gateway, "inside", "smollm2", 1).await;
    assert_eq!(feature(&target, "answerTokens")["recent"]["count"], 1, "{target}");
    let ask = json!({"model": "minilm", "input": "The weather in the mountains is very fine today"});
    let answer = gateway.client().post("/v1/embeddings", &[JSON], ask.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let target = looked_at(&gateway, "vectors", "minilm", 1).await;
    assert_eq!(feature(&target, "language")["recent"]["count"], 1, "{target}");

    let mut random = Random(3);
    let series = "spillway_quality_embeddings_total{http_route=\"chat\",outcome=\"done\"}";
    eventually("prompts are turned into embeddings", || async {
        // One at a time: more are left out, since the model does nothing else while it works.
        let content = ENGLISH[0];
        let body = json!({"model": "m", "messages": [{"role": "user", "content": content}]});
        assert_eq!(gateway.client().post("/v1/chat/completions", &[JSON], body.to_string()).await.status, 200);
        (gateway.metric(series).await >= 3.0).then_some(())
    })
    .await;
    converse(&gateway, &mut random, 64, false, &[]).await;
    eventually("the centre of the embeddings is shown", || async {
        let shown = shown(&gateway).await;
        let recent = &feature(of(&shown, "chat", "b")?, "embedding")["recent"];
        (recent["count"].as_u64()? >= 3 && recent["spread"].as_f64()? >= 0.0).then_some(())
    })
    .await;
    assert!(gateway.metric("spillway_quality_embedding_seconds_total{http_route=\"chat\"}").await > 0.0);
    eventually("a burst is left out and counted", || async {
        let left = gateway.metric("spillway_quality_embeddings_total{http_route=\"chat\",outcome=\"left_out\"}").await;
        (left > 0.0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wild_requests_cost_no_more_than_others() {
    let upstream = Upstream::start(|seen: Seen| async move {
        if seen.path.starts_with("/v2/") {
            let outputs: Vec<Value> = (0..100)
                .map(|n| json!({"name": format!("o{n}-{}", "x".repeat(300)), "shape": [1], "datatype": "FP32", "data": [n]}))
                .collect();
            return Some(reply(200, &[JSON], json!({"outputs": outputs}).to_string()));
        }
        Some(reply(200, &[JSON], vec![b'{'; 300_000]))
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: b, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: o, protocol: oip, endpoints: [{{url: \"{0}\"}}]}}
routes:
  - {{name: infer, matches: [{{path: {{prefix: /v2}}}}], quality: {{sample: 1.0}}, backendRefs: [{{name: o}}]}}
  - {{name: chat, quality: {{sample: 1.0}}, backendRefs: [{{name: b}}]}}
",
        upstream.url()
    ))
    .await;
    let client = gateway.client();
    let giant = json!({"model": "m", "messages": [{"role": "user", "content": "ha ".repeat(900_000)}]}).to_string();
    let many = "слово 言葉 λέξη מילה كلمة शब्द คำ 단어 palabra słowo ord szó sana từ ".repeat(200);
    let many = json!({"model": "m", "messages": [{"role": "user", "content": many}]}).to_string();
    let deep = format!(
        "{{\"model\":\"m\",\"messages\":[{{\"role\":\"user\",\"content\":{}1{}}}]}}",
        "[".repeat(100),
        "]".repeat(100)
    );
    let turns: Vec<Value> = (0..20_000).map(|n| json!({"role": "user", "content": format!("{n}")})).collect();
    let turns = json!({"model": "m", "messages": turns}).to_string();
    let bodies = [giant, many, deep, turns];
    for body in &bodies {
        let answer = client.post("/v1/chat/completions", &[JSON], body.clone()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let target = looked_at(&gateway, "chat", "b", 4).await;
    let lengths = &feature(&target, "promptLength")["recent"];
    assert!(lengths["quantiles"][6].as_f64().unwrap() > 2e6, "the length of a giant is known: {target}");
    for n in 0..200 {
        let inputs: Vec<Value> = (0..100)
            .map(|k| json!({"name": format!("i{n}-{k}"), "shape": [2, 9], "datatype": "FP64", "data": (0..18).collect::<Vec<_>>()}))
            .collect();
        let body = json!({"inputs": inputs}).to_string();
        assert_eq!(client.post("/v2/models/m/infer", &[JSON], body).await.status, 200);
    }
    let target = looked_at(&gateway, "infer", "o", 200).await;
    assert!(target["features"].as_array().unwrap().len() <= 128, "{}", target["features"].as_array().unwrap().len());
    for route in ["chat", "infer"] {
        let bytes = gateway.metric(&format!("spillway_quality_state_bytes{{http_route=\"{route}\"}}")).await;
        assert!(bytes > 0.0 && bytes <= f64::from(2 << 20), "{route}: {bytes}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conversations_that_go_badly_are_counted() {
    let upstream = Upstream::start(echo).await;
    let yaml = format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, quality: {{sample: 1.0}}, backendRefs: [{{name: b}}]}}]
",
        upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let first = "How do I bake bread without yeast at home?";
    for last in [
        first,
        "How can I bake bread without yeast at home?",
        "Never mind.",
        "Why?",
        "And which flour is the best for a dark bread?",
    ] {
        let body = json!({"model": "m", "messages": [{"role": "user", "content": first},
            {"role": "assistant", "content": "With soda."}, {"role": "user", "content": last}]});
        assert_eq!(gateway.client().post("/v1/chat/completions", &[JSON], body.to_string()).await.status, 200);
    }
    for signal in ["repeated", "rephrased", "gave_up", "short_follow_up"] {
        let series = format!("spillway_quality_signals_total{{http_route=\"chat\",target=\"b\",signal=\"{signal}\"}}");
        gateway.metric_becomes(&series, 1.0).await;
    }
    // An edit stores the sketches, which a crash then leaves.
    edit(&gateway, "sample: 1.0", "sample: 0.999999");
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    let stored =
        || std::fs::read_dir(gateway.folder().join("state/quality")).is_ok_and(|mut files| files.next().is_some());
    eventually("the sketches are stored", || async { stored().then_some(()) }).await;
    let gateway = gateway.crash_and_restart(&yaml).await;
    looked_at(&gateway, "chat", "b", 5).await;
}

#[test]
fn wrong_use_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("odd.json"), "{}").unwrap();
    for (quality, refs, expected) in [
        ("{sample: 0}", "{name: b}", "0 looks at no request"),
        ("{sample: 2}", "{name: b}", "routes[0].quality.sample"),
        ("{drift: {inputs: 0}}", "{name: b}", "0 is passed by every two samples"),
        ("{probes: {file: probes.jsonl, check: x}}", "{name: b}", "unknown key `check` in `routes[0].quality.probes`"),
        ("{}", "{name: plain}", "the backend `plain` speaks no API of models"),
        ("{reference: stable}", "{name: b}", "the route has one target"),
        ("{reference: {window: 1s}}", "{name: b}", "expected at least 30 s"),
        ("{reference: {file: none.json}}", "{name: b}", "there is no file"),
        ("{reference: {file: odd.json}}", "{name: b}", "it is no reference"),
        ("{embedding: minilm}", "{name: b}", "unknown model `minilm`"),
        ("{probes: {file: none.jsonl}}", "{name: b}", "there is no file"),
        ("{probes: {file: odd.json, every: 100ms}}", "{name: b}", "expected at least 1 s"),
        ("{probes: {file: odd.json, embedding: minilm}}", "{name: b}", "unknown model `minilm`"),
        ("{keepExamples: {percent: 0}}", "{name: b}", "0 keeps no example"),
        ("{keepExamples: {retention: 1s}}", "{name: b}", "expected at least 1 m"),
    ] {
        let yaml = format!(
            "listeners: [{{address: 127.0.0.1:0}}]
backends:
  - {{name: b, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}
  - {{name: plain, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}
routes:
  - name: r
    quality: {quality}
    backendRefs: [{refs}]
"
        );
        let file = folder.path().join("spillway.yaml");
        std::fs::write(&file, yaml).unwrap();
        let out = Command::new(binary()).arg("check").arg(&file).output().unwrap();
        let said = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        assert!(!out.status.success() && said.contains(expected), "{quality}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn examples_are_kept_where_the_file_says_so_redacted_and_for_those_with_a_token_alone() {
    let upstream = Upstream::start(|seen: Seen| async move {
        Some(answer(&seen, 1, "Write to jane@example.com, pay by 4111 1111 1111 1111."))
    })
    .await;
    let ((key, digest), (other, second)) = (spillway_tests::new_key(), spillway_tests::new_key());
    let yaml = |keep: &str, admin: &str| {
        format!(
            "admin: {{address: \"127.0.0.1:0\"{admin}}}
listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
consumers:
  - {{name: acme, keys: [{{sha256: {digest}}}]}}
  - {{name: quiet, keepExamples: false, keys: [{{sha256: {second}}}]}}
routes:
  - {{name: kept, matches: [{{path: {{prefix: /v1}}, model: kept}}], quality: {{sample: 1.0{keep}}}, backendRefs: [{{name: b}}]}}
  - {{name: chat, quality: {{sample: 1.0}}, backendRefs: [{{name: b}}]}}
",
            upstream.url()
        )
    };
    let (keep, token) = (", keepExamples: {percent: 100}", ", token: {env: TEST_SECRET}");
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(keep, token)).await;
    let admin = spillway_tests::Client::new(gateway.admin);
    let bearer = ("authorization", "Bearer upstream-secret");
    let examples = || async {
        let shown = admin.send(admin.request("GET", "/api/quality/examples", &[bearer], "")).await;
        assert_eq!(shown.status, 200, "{}", shown.text());
        let shown: Value = serde_json::from_str(&shown.text()).unwrap();
        shown["examples"].as_array().unwrap().clone()
    };
    let call = |model: &'static str, key: &str, text: &str| {
        let body = json!({"model": model, "messages": [{"role": "user", "content": text}]}).to_string();
        let (client, authorization) = (gateway.client(), format!("Bearer {key}"));
        async move {
            let headers = [JSON, ("authorization", authorization.as_str())];
            let answer = client.post("/v1/chat/completions", &headers, body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    };
    call("kept", &key, "Hello from 192.0.2.7, my number is +49 30 1234567").await;
    call("kept", &other, "This one is of the quiet consumer").await;
    call("m", &key, "This one is on a route that keeps nothing").await;
    call("kept", &key, "The last one").await;
    let kept = eventually("both are kept", || async { Some(examples().await).filter(|kept| kept.len() == 2) }).await;
    assert_eq!(kept[0]["prompt"], "The last one");
    assert_eq!(kept[1]["prompt"], "Hello from [ipAddress], my number is [phone]");
    assert_eq!(kept[1]["answer"], "Write to [email], pay by [card].");
    assert_eq!((&kept[1]["route"], &kept[1]["target"]), (&json!("kept"), &json!("b")));
    let metrics = admin.send(admin.request("GET", "/metrics", &[bearer], "")).await.text();
    assert!(metrics.contains("spillway_quality_examples_total{http_route=\"kept\"} 2"), "{metrics}");
    let file = gateway.folder().join("state/quality/examples.db");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(!contents(gateway.folder()).windows(8).any(|part| part == b"192.0.2."), "a text was kept as it came");
    let looked = eventually("looks are audited", || async {
        let events = gateway.events("audit").into_iter();
        let looked: Vec<Value> = events.filter(|event| event["path"] == "/api/quality/examples").collect();
        (!looked.is_empty()).then_some(looked)
    })
    .await;
    assert!(looked.iter().all(|event| event["who"] == "token"), "{looked:?}");

    let delete = |headers: &'static [(&'static str, &'static str)], query: &str| {
        let path = format!("/api/quality/examples{query}");
        let request = admin.request("DELETE", &path, headers, "");
        let sending = admin.send(request);
        async move {
            let answer = sending.await;
            (answer.status.as_u16(), answer.text())
        }
    };
    assert_eq!(delete(&[("authorization", "Bearer upstream-secret")], "").await.0, 403, "a web page cannot delete");
    let change = &[("authorization", "Bearer upstream-secret"), ("x-spillway-admin", "1")];
    assert_eq!(delete(change, "?route=chat").await.1, "{\"deleted\":0}");
    assert_eq!(delete(change, "?route=kept").await.1, "{\"deleted\":2}");
    assert!(examples().await.is_empty());

    // What the file allows no longer is deleted, and without a token nobody sees any.
    call("kept", &key, "Once more").await;
    eventually("it is kept", || async { (examples().await.len() == 1).then_some(()) }).await;
    std::fs::write(gateway.config(), yaml("", token)).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    eventually("it is deleted", || async { examples().await.is_empty().then_some(()) }).await;
    assert!(!contents(&gateway.folder().join("state")).windows(9).any(|part| part == b"Once more"));
    let open = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(keep, "")).await;
    let refused = spillway_tests::Client::new(open.admin).get("/api/quality/examples").await;
    assert!(refused.status == 403 && refused.text().contains("configure admin.token"), "{}", refused.text());
}
