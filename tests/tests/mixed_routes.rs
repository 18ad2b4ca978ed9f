//! Routes with servers of several APIs: a request goes to a target that can express it, and is refused where none can.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use spillway_tests::{Answer, Client, Gateway, Seen, Upstream, claude, eventually, gpt, minilm, model, reply};
use tokio::sync::Semaphore;

/// Route `r` to backends, each with its protocol, URL, further keys, and keys of its reference.
fn route(backends: &[(&str, &str, &str, &str, &str)], more: &str) -> String {
    let mut yaml = "backends:\n".to_owned();
    for (name, protocol, url, backend, _) in backends {
        yaml += &format!("  - {{name: {name}, protocol: {protocol}, endpoints: [{{url: \"{url}\"}}]{backend}}}\n");
    }
    let refs = backends.iter().map(|(name, _, _, _, target)| format!("{{name: {name}{target}}}"));
    let refs = refs.collect::<Vec<_>>().join(", ");
    yaml + &format!("routes: [{{name: r, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{refs}]{more}}}]\n")
}

/// Request with a field that Anthropic's API does not have.
fn seeded(more: Value) -> String {
    let mut body = json!({"model": "m", "seed": 7, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body.to_string()
}

async fn ask(client: &Client, body: String) -> Answer {
    client.post("/v1/chat/completions", &[("content-type", "application/json")], body).await
}

#[tokio::test]
async fn a_field_goes_to_the_target_that_can_express_it() {
    let (claude, gpt) = (Upstream::start(claude).await, Upstream::start(gpt).await);
    let (a, g) = (claude.url(), gpt.url());
    let yaml = route(&[("a", "anthropic", &a, "", ", weight: 99"), ("g", "openai", &g, "", ", weight: 1")], "");
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for _ in 0..10 {
        let answer = ask(&client, seeded(json!({}))).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-spillway-dropped")), (200, ""), "{}", answer.text());
        assert_eq!(answer.json()["model"], "gpt-x");
    }
    assert_eq!((claude.count(), gpt.count()), (0, 10));
    // The other way round: what the API of the caller has, and the other one not.
    let body =
        json!({"model": "m", "max_tokens": 9, "container": "c", "messages": [{"role": "user", "content": "hi"}]});
    let yaml = route(&[("g", "openai", &g, "", ", weight: 99"), ("a", "anthropic", &a, "", ", weight: 1")], "");
    let gateway = Gateway::start(&yaml).await;
    for _ in 0..5 {
        let answer = gateway.client().post("/v1/messages", &[], body.to_string()).await;
        assert_eq!(answer.json()["model"], "claude-x", "{}", answer.text());
    }
    assert_eq!((claude.count(), gpt.count()), (5, 10));
}

#[tokio::test]
async fn a_request_that_no_target_can_express_is_refused_by_name() {
    let claude = Upstream::start(claude).await;
    let url = claude.url();
    let targets = [("a", "anthropic", &*url, "", ""), ("b", "anthropic", &*url, ", dropFields: [n]", "")];
    let gateway = Gateway::start(&route(&targets, "")).await;
    let client = gateway.client();
    let mut messages = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let answer = ask(&client, seeded(json!({}))).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status.as_u16(), &error["param"]), (400, &json!("seed")), "{}", answer.text());
        // The first target in the file is the one that the refusal is about, whichever was drawn.
        messages.insert(ask(&client, seeded(json!({"n": 2}))).await.text());
    }
    assert_eq!(messages.len(), 1, "{messages:?}");
    assert_eq!(claude.count(), 0);
    // A field that the backend drops can be taken.
    for _ in 0..5 {
        let answer =
            ask(&client, json!({"model": "m", "n": 2, "messages": [{"role": "user", "content": "hi"}]}).to_string())
                .await;
        assert_eq!((answer.status.as_u16(), answer.header("x-spillway-dropped")), (200, "n"), "{}", answer.text());
    }
}

#[tokio::test]
async fn weights_hold_among_the_targets_that_are_left() {
    let (claude, one, two) = (Upstream::start(claude).await, Upstream::start(gpt).await, Upstream::start(gpt).await);
    let (a, x, y) = (claude.url(), one.url(), two.url());
    let targets = [
        ("a", "anthropic", &*a, "", ", weight: 70"),
        ("x", "openai", &*x, "", ", weight: 24"),
        ("y", "openai", &*y, "", ", weight: 6"),
    ];
    let gateway = Gateway::start(&route(&targets, ", sticky: {header: x-session-id}")).await;
    let client = gateway.client();
    for _ in 0..400 {
        assert_eq!(ask(&client, seeded(json!({}))).await.status, 200);
    }
    // Five standard deviations of a binomial with p = 0.2: 80 +- 40.
    assert!((40..=120).contains(&two.count()), "{} of 400", two.count());
    assert_eq!((claude.count(), one.count() + two.count()), (0, 400));
    // A caller whose own target cannot take a request has another one for such requests, and keeps it.
    for session in 0..30 {
        let headers = [("x-session-id", &*format!("s{session}"))];
        let before = [one.count(), two.count()];
        for _ in 0..3 {
            let answer = client.post("/v1/chat/completions", &headers, seeded(json!({}))).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        let took = [one.count() - before[0], two.count() - before[1]];
        assert!(took == [3, 0] || took == [0, 3], "session {session}: {took:?}");
    }
    assert_eq!(claude.count(), 0);
}

#[tokio::test]
async fn retries_and_hedges_do_not_go_to_a_target_that_cannot_take_the_request() {
    let claude = Upstream::start(claude).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = asked.clone();
    let flaky = Upstream::start(move |seen| {
        let first = counted.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
        async move { if first { Some(reply(500, &[], "{}")) } else { gpt(seen).await } }
    })
    .await;
    let (a, g) = (claude.url(), flaky.url());
    let targets = [("g", "openai", &*g, "", ""), ("a", "anthropic", &*a, "", ", priority: 1")];
    let retry = ", retry: {attempts: 1, on: [\"500\"], budget: 1, backoff: {base: 1ms, max: 1ms}}";
    let gateway = Gateway::start(&route(&targets, retry)).await;
    for n in 1..=5 {
        let answer = ask(&gateway.client(), seeded(json!({}))).await;
        assert_eq!((answer.status.as_u16(), flaky.count()), (200, 2 * n), "{}", answer.text());
    }
    assert_eq!(claude.count(), 0);
    // A hedge.
    let (gate, quick) = (Arc::new(Semaphore::new(0)), Upstream::start(gpt).await);
    let opened = gate.clone();
    let slow = Upstream::start(move |seen| {
        let gate = opened.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            gpt(seen).await
        }
    })
    .await;
    let (s, q) = (slow.url(), quick.url());
    let targets = [
        ("s", "openai", &*s, "", ""),
        ("a", "anthropic", &*a, "", ", priority: 1"),
        ("q", "openai", &*q, "", ", priority: 2"),
    ];
    let hedge = ", retry: {budget: 1, hedge: {after: 10ms}}";
    let gateway = Gateway::start(&route(&targets, hedge)).await;
    for n in 1..=3 {
        let answer = ask(&gateway.client(), seeded(json!({}))).await;
        assert_eq!((answer.status.as_u16(), quick.count()), (200, n), "{}", answer.text());
    }
    gateway.metric_becomes("spillway_hedges_total{http_route=\"r\"}", 3.0).await;
    // With no other endpoint that can take it, there is none.
    let gateway = Gateway::start(&route(&targets[..2], hedge)).await;
    let client = gateway.client();
    let before = slow.count();
    let waiting = tokio::spawn(async move { ask(&client, seeded(json!({}))).await });
    eventually("it is asked", || async { (slow.count() > before).then_some(()) }).await;
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    gate.add_permits(8);
    assert_eq!(waiting.await.unwrap().status, 200);
    gateway.metric_becomes("spillway_hedges_total{http_route=\"r\"}", 0.0).await;
    assert_eq!(claude.count(), 0);
}

/// Gateway before a server that holds its answers until a permit is added, and one of the other API; the only slot at the
/// first is taken.
async fn taken(claude: &Upstream, more: &str) -> (Gateway, Upstream, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let opened = gate.clone();
    let held = Upstream::start(move |seen| {
        let gate = opened.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            gpt(seen).await
        }
    })
    .await;
    let (a, g) = (claude.url(), held.url());
    let targets = [
        ("a", "anthropic", &*a, "", ", weight: 50"),
        ("g", "openai", &*g, ", capacity: {maxInFlight: 1}", ", weight: 50"),
    ];
    let gateway = Gateway::start(
        &(route(&targets, more)
            + &format!("models: [{{name: smollm2, source: \"{}\", contextLength: 256}}]\n", model().display())),
    )
    .await;
    let client = gateway.client();
    tokio::spawn(async move { ask(&client, seeded(json!({}))).await });
    eventually("the slot is taken", || async { (held.count() == 1).then_some(()) }).await;
    (gateway, held, gate)
}

#[tokio::test(flavor = "multi_thread")]
async fn saturation_of_the_only_target_that_can_is_saturation() {
    let claude = Upstream::start(claude).await;
    // Neither queue nor spill.
    let (gateway, _held, _) = taken(&claude, "").await;
    for _ in 0..5 {
        let answer = ask(&gateway.client(), seeded(json!({}))).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["code"]),
            (503, &json!("overloaded")),
            "{}",
            answer.text()
        );
    }
    // Another field than the one that is at fault goes to the free one.
    let plain = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).to_string();
    assert_eq!(ask(&gateway.client(), plain).await.json()["model"], "claude-x");
    // A queue, of the route and of each target.
    for others in ["", ", tryOthers: false"] {
        let queue = format!(", whenSaturated: {{queue: {{maxWait: 60s}}{others}}}");
        let (gateway, held, gate) = taken(&claude, &queue).await;
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                let client = gateway.client();
                tokio::spawn(async move { ask(&client, seeded(json!({}))).await })
            })
            .collect();
        eventually("they wait", || async {
            let log = gateway.metric("spillway_queue_depth{http_route=\"r\"}").await;
            (log == 3.0).then_some(())
        })
        .await;
        gate.add_permits(4);
        for answer in waiting {
            assert_eq!(answer.await.unwrap().json()["model"], "gpt-x");
        }
        assert_eq!(held.count(), 4);
    }
    // A spill.
    let (gateway, _held, _) = taken(&claude, ", whenSaturated: {spillTo: smollm2}").await;
    let answer = ask(&gateway.client(), seeded(json!({"max_tokens": 2}))).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("x-spillway-served-by")),
        (200, "builtin/smollm2"),
        "{}",
        answer.text()
    );
    assert_eq!(claude.count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_built_in_model_of_the_route_takes_what_the_server_cannot_and_the_other_way_round() {
    let claude = Upstream::start(claude).await;
    let a = claude.url();
    let mut yaml = route(&[("a", "anthropic", &a, "", ", weight: 99}, {model: smollm2, weight: 1")], "");
    yaml += &format!("models: [{{name: smollm2, source: \"{}\", contextLength: 256}}]\n", model().display());
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let answer = ask(&client, seeded(json!({"max_tokens": 2}))).await;
    assert_eq!(
        (answer.status.as_u16(), answer.header("x-spillway-served-by")),
        (200, "builtin/smollm2"),
        "{}",
        answer.text()
    );
    // Neither has it.
    let answer = ask(&client, seeded(json!({"logit_bias": {"1": 2}, "audio": {}}))).await;
    assert_eq!(answer.status, 400, "{}", answer.text());
    // The caller wants no other model than its own.
    let headers = [("content-type", "application/json"), ("x-spillway-fallback", "never")];
    let answer = client.post("/v1/chat/completions", &headers, seeded(json!({}))).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["param"]), (400, &json!("seed")), "{}", answer.text());
    assert_eq!(claude.count(), 0);
    // A picture, which the built-in model does not read.
    let yaml =
        yaml.replace("weight: 99", "weight: 1").replace("model: smollm2, weight: 1", "model: smollm2, weight: 99");
    let gateway = Gateway::start(&yaml).await;
    let picture = json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}});
    let body = json!({"model": "m", "messages": [{"role": "user", "content": [picture]}]});
    for _ in 0..5 {
        assert_eq!(ask(&gateway.client(), body.to_string()).await.json()["model"], "claude-x");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_of_the_route_takes_the_inferences_and_counts_that_the_built_in_model_cannot() {
    let server = Upstream::start(|seen: Seen| async move {
        let body = if seen.path.ends_with("count_tokens") {
            json!({"input_tokens": 77})
        } else {
            json!({"server": seen.path})
        };
        Some(reply(200, &[("content-type", "application/json")], body.to_string()))
    })
    .await;
    let url = server.url();
    let config = |others: &str| {
        format!(
            "models: [{{name: minilm, source: \"{}\", task: embedding}}]
backends:
  - {{name: tensors, protocol: oip, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: claude, protocol: anthropic, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: tensors, matches: [{{path: {{prefix: /v2}}}}], backendRefs: [{{model: minilm, weight: 1000}}{}]}}
  - {{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: minilm, weight: 1000}}{}]}}
",
            minilm().display(),
            others.replace("SERVER", "tensors"),
            others.replace("SERVER", "claude"),
        )
    };
    let infer = |datatype: &str, data: Value| {
        json!({"inputs": [{"name": "text", "shape": [1], "datatype": datatype, "data": data}]}).to_string()
    };
    let numbers = infer("FP32", json!([1]));
    let count = json!({"model": "minilm", "messages": [{"role": "user", "content": "x"}]}).to_string();
    // Method, path, body, and the status of the built-in model alone.
    let calls = [
        ("POST", "/v2/models/minilm/infer", numbers.as_str(), 400),
        ("POST", "/v2/models/minilm/versions/7/infer", &numbers, 404),
        ("GET", "/v2/models/minilm/versions/7/ready", "", 404),
        ("GET", "/v2/models/minilm/config", "", 501),
        ("POST", "/v2/models/minilm/generate", "{}", 501),
        ("POST", "/v1/messages/count_tokens", &count, 400),
    ];
    for (others, has_server) in [(", {name: SERVER, weight: 1}", true), ("", false)] {
        let gateway = Gateway::start(&config(others)).await;
        let client = gateway.client();
        let answer = client.post("/v2/models/minilm/infer", &[], infer("BYTES", json!(["hi"]))).await;
        assert_eq!(answer.header("x-spillway-served-by"), "builtin/minilm", "{}", answer.text());
        for (method, path, body, alone) in calls {
            let before = server.count();
            let answer = client.send(client.request(method, path, &[], body.to_owned())).await;
            let expected = if has_server { 200 } else { alone };
            assert_eq!(answer.status, expected, "{path}: {}", answer.text());
            assert_eq!(server.count() - before, usize::from(has_server), "{path}");
        }
    }
}
