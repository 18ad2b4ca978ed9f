//! Admission: a request without room waits in fair order, goes elsewhere, or is refused at once with a retry time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use spillway_tests::{Answer, Client, Gateway, Upstream, eventually, model, reply, streamed, whole};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

/// Server whose answers wait for a permit of the test; records its peak of concurrent requests.
struct Held {
    upstream: Upstream,
    gate: Arc<Semaphore>,
    most: Arc<AtomicUsize>,
}

impl Held {
    async fn start() -> Self {
        Self::start_beside("/nothing", "").await
    }

    /// As [`Self::start`], answering one path at once.
    async fn start_beside(at_once: &'static str, text: &'static str) -> Self {
        let (gate, now, most) =
            (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (open, peak) = (gate.clone(), most.clone());
        let upstream = Upstream::start(move |seen| {
            let (open, now, peak) = (open.clone(), now.clone(), peak.clone());
            async move {
                if seen.path == at_once {
                    return Some(reply(200, &[], text));
                }
                struct Leaves(Arc<AtomicUsize>);
                impl Drop for Leaves {
                    fn drop(&mut self) {
                        self.0.fetch_sub(1, Ordering::SeqCst);
                    }
                }
                let at_once = now.fetch_add(1, Ordering::SeqCst) + 1;
                let _leaves = Leaves(now);
                peak.fetch_max(at_once, Ordering::SeqCst);
                open.acquire().await.unwrap().forget();
                Some(reply(200, &[], seen.path))
            }
        })
        .await;
        Self { upstream, gate, most }
    }

    fn release(&self, count: usize) {
        self.gate.add_permits(count);
    }

    /// Discards unused permits.
    fn forget(&self) {
        self.gate.forget_permits(usize::MAX);
    }

    /// Requested paths in their order, without the one that is answered at once.
    fn asked(&self) -> Vec<String> {
        let seen = self.upstream.seen.lock().unwrap();
        seen.iter().map(|seen| seen.path.clone()).filter(|path| path != "/asked").collect()
    }
}

fn get(gateway: &Gateway, path: &str, headers: &[(&str, &str)]) -> JoinHandle<Answer> {
    let (client, path) = (gateway.client(), path.to_owned());
    let headers: Vec<(String, String)> = headers.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    tokio::spawn(async move {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        client.send(client.request("GET", &path, &headers, "")).await
    })
}

async fn depth(gateway: &Gateway, expected: f64) {
    gateway.metric_becomes("spillway_queue_depth{http_route=\"r\"}", expected).await;
}

async fn waits(gateway: &Gateway, outcome: &str) -> f64 {
    gateway.metric(&format!("spillway_queue_wait_seconds_count{{http_route=\"r\",outcome=\"{outcome}\"}}")).await
}

#[tokio::test]
async fn a_request_waits_for_a_place_and_has_it_as_soon_as_one_is_free() {
    let server = Held::start().await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 2}}}}]
routes: [{{name: r, backendRefs: [{{name: x}}], whenSaturated: {{queue: {{maxWait: 30s}}}}}}]
",
        server.upstream.url()
    ))
    .await;
    let asked: Vec<_> = (0..8).map(|n| get(&gateway, &format!("/{n}"), &[])).collect();
    depth(&gateway, 6.0).await;
    for _ in 0..8 {
        server.release(1);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    for (n, answer) in futures::future::join_all(asked).await.into_iter().enumerate() {
        let answer = answer.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text()), (200, format!("/{n}")));
    }
    assert_eq!(server.most.load(Ordering::SeqCst), 2, "a place is never given twice");
    assert_eq!(waits(&gateway, "admitted").await, 6.0);
    depth(&gateway, 0.0).await;
    eventually("six lines of the log tell of the queue", || async {
        let lines = gateway.events("access");
        let queued = lines.iter().filter(|line| line["queueMs"].as_f64().is_some_and(|time| time > 0.0));
        (queued.count() == 6).then_some(())
    })
    .await;
}

#[tokio::test]
async fn tenants_have_their_turns_and_a_higher_priority_goes_first() {
    let server = Held::start().await;
    // SHA-256 of `a`, `b` and `c`.
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}}}]
consumers:
  - {{name: a, keys: [{{sha256: ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb}}]}}
  - {{name: b, keys: [{{sha256: 3e23e8160039594a33894f6564e1b1348bbd7a0088d42c4acb73eeaed59c009d}}]}}
  - {{name: c, priority: 5, keys: [{{sha256: 2e7d2c03a9507ae265ecf5b5356885a53393a2029d241394997265a1a25aefc6}}]}}
routes: [{{name: r, backendRefs: [{{name: x}}], whenSaturated: {{queue: {{maxWait: 60s}}}}}}]
",
        server.upstream.url()
    ))
    .await;
    let mut asked = Vec::new();
    for (n, key) in ["a", "a", "a", "a", "b", "c", "b"].iter().enumerate() {
        asked.push(get(&gateway, &format!("/{key}"), &[("x-api-key", key)]));
        if n == 0 {
            eventually("the server is busy", || async { (server.upstream.count() == 1).then_some(()) }).await;
        } else {
            depth(&gateway, n as f64).await;
        }
    }
    server.release(7);
    for answer in futures::future::join_all(asked).await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(server.asked().concat(), "/a/c/a/b/a/b/a");
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_frees_its_place_and_who_finds_none_is_told_when_to_come_back() {
    let server = Held::start().await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}}}]
routes: [{{name: r, backendRefs: [{{name: x}}], whenSaturated: {{queue: {{maxWait: 60s, maxDepth: 1}}, reject: {{status: 429, retryAfter: 9s}}}}}}]
",
        server.upstream.url()
    ))
    .await;
    let first = get(&gateway, "/first", &[]);
    eventually("the server is busy", || async { (server.upstream.count() == 1).then_some(()) }).await;
    let leaves = get(&gateway, "/leaves", &[]);
    depth(&gateway, 1.0).await;
    let refused = gateway.client().get("/refused").await;
    assert_eq!((refused.status.as_u16(), refused.header("retry-after")), (429, "9"), "nothing is known of its rate");
    assert_eq!(refused.header("x-should-retry"), "false");
    leaves.abort();
    depth(&gateway, 0.0).await;
    let stays = get(&gateway, "/stays", &[]);
    depth(&gateway, 1.0).await;
    server.release(2);
    assert_eq!(first.await.unwrap().status, 200);
    assert_eq!(stays.await.unwrap().status, 200);
    assert_eq!(server.asked(), ["/first", "/stays"], "a request whose client has left is sent nowhere");
    assert_eq!((waits(&gateway, "abandoned").await, waits(&gateway, "full").await), (1.0, 1.0));
    // Now the rate is known: the queue was served at once.
    let busy = get(&gateway, "/busy", &[]);
    let waiting = get(&gateway, "/waiting", &[]);
    depth(&gateway, 1.0).await;
    let refused = gateway.client().get("/refused").await;
    let wait: u64 = refused.header("retry-after-ms").parse().unwrap();
    assert!(wait < 9_000, "the measured rate is told, not the default: {wait}");
    server.release(2);
    assert_eq!((busy.await.unwrap().status.as_u16(), waiting.await.unwrap().status.as_u16()), (200, 200));
}

#[tokio::test]
async fn who_has_waited_for_nothing_goes_to_the_backend_that_stands_in() {
    let server = Held::start().await;
    let other = Upstream::fixed(200, "other").await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}}}
  - {{name: y, endpoints: [{{url: \"{}\"}}]}}
routes: [{{name: r, backendRefs: [{{name: x}}], whenSaturated: {{queue: {{maxWait: 50ms}}, spillTo: y}}}}]
",
        server.upstream.url(),
        other.url()
    ))
    .await;
    let first = get(&gateway, "/first", &[]);
    eventually("the server is busy", || async { (server.upstream.count() == 1).then_some(()) }).await;
    let spilled = gateway.client().get("/").await;
    assert_eq!((spilled.text().as_str(), spilled.header("x-spillway-served-by")), ("other", "y"));
    gateway.metric_becomes("spillway_spills_total{http_route=\"r\",reason=\"queue_timeout\"}", 1.0).await;
    let refused = get(&gateway, "/", &[("x-spillway-fallback", "never")]).await.unwrap();
    assert_eq!(refused.status, 503);
    gateway.metric_becomes("spillway_sheds_total{http_route=\"r\",reason=\"queue_timeout\"}", 1.0).await;
    server.release(1);
    let first = first.await.unwrap();
    assert_eq!((first.status.as_u16(), first.header("x-spillway-served-by")), (200, ""));
}

#[tokio::test]
async fn the_next_priority_takes_what_the_first_has_no_room_for() {
    let server = Held::start().await;
    let other = Upstream::fixed(200, "other").await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}}}
  - {{name: y, endpoints: [{{url: \"{}\"}}]}}
routes: [{{name: r, backendRefs: [{{name: y, priority: 1}}, {{name: x}}], whenSaturated: {{tryOthers: false}}}}]
",
        server.upstream.url(),
        other.url()
    ))
    .await;
    let first = get(&gateway, "/first", &[]);
    eventually("the server is busy", || async { (server.upstream.count() == 1).then_some(()) }).await;
    let second = gateway.client().get("/second").await;
    assert_eq!((second.text().as_str(), second.header("x-spillway-served-by")), ("other", ""));
    server.release(1);
    assert_eq!(first.await.unwrap().text(), "/first");
}

#[tokio::test]
async fn those_who_wait_for_a_server_that_said_full_are_called_when_it_may_be_asked_again() {
    let full = Arc::new(AtomicUsize::new(1));
    let answers = full.clone();
    let server = Upstream::start(move |_| {
        let is_full = answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok();
        async move { Some(if is_full { reply(429, &[("retry-after", "0.3")], "full") } else { reply(200, &[], "ok") }) }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{statuses: [429]}}}}]
routes: [{{name: r, backendRefs: [{{name: x}}], whenSaturated: {{queue: {{maxWait: 30s}}}}}}]
",
        server.url()
    ))
    .await;
    let asked: Vec<_> = (0..3).map(|n| get(&gateway, &format!("/{n}"), &[])).collect();
    for answer in futures::future::join_all(asked).await {
        assert_eq!(answer.unwrap().text(), "ok");
    }
}

/// One busy server, a second one that accepts nothing yet, and a waiting request. After `change` the second answers
/// the waiting request while the first is as busy as before.
async fn is_called(gateway: &Gateway, busy: &Held, what: &str, change: impl AsyncFnOnce()) {
    let first = get(gateway, "/first", &[]);
    eventually("the first server is busy", || async { (!busy.asked().is_empty()).then_some(()) }).await;
    let waiting = get(gateway, "/waiting", &[]);
    depth(gateway, 1.0).await;
    change().await;
    let answer = waiting.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "second"), "{what}");
    assert!(!first.is_finished(), "{what}: no place was given back");
    busy.release(1);
    assert_eq!(first.await.unwrap().status, 200);
}

/// Configuration with a queue whose waiters do not time out during a test.
fn waiting_for(backend: &str) -> String {
    format!(
        "backends: [{{name: x, {backend}}}]
routes: [{{name: r, backendRefs: [{{name: x}}], whenSaturated: {{queue: {{maxWait: 50s}}}}}}]
"
    )
}

#[tokio::test]
async fn those_who_wait_are_called_when_an_operator_puts_a_server_back() {
    let (busy, second) = (Held::start().await, Upstream::fixed(200, "second").await);
    let gateway = Gateway::start(&waiting_for(&format!(
        "endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}], capacity: {{maxInFlight: 1}}",
        busy.upstream.url(),
        second.url()
    )))
    .await;
    let admin = Client::new(gateway.admin);
    let drain = async |verb: &str| {
        let path = format!("/api/backends/x/endpoints/{}/{verb}", second.address);
        let answer = admin.send(admin.request("POST", &path, &[("x-spillway-admin", "1")], "")).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    drain("drain").await;
    is_called(&gateway, &busy, "undrained", async || drain("undrain").await).await;
}

#[tokio::test]
async fn those_who_wait_are_called_when_a_server_is_well_again_or_says_that_nobody_waits_there() {
    for (check, capacity) in [
        ("healthCheck: {http: {path: /asked}, interval: 100ms, unhealthyThreshold: 1, healthyThreshold: 1}", ""),
        ("", ", queueDepth: {metricsPath: /asked, max: 1, interval: 100ms, staleAfter: 10m}"),
    ] {
        let well = Arc::new(AtomicBool::new(false));
        let says = well.clone();
        let second = Upstream::start(move |seen| {
            let well = says.load(Ordering::SeqCst);
            async move {
                Some(match (seen.path.as_str(), well) {
                    ("/asked", true) => reply(200, &[], "vllm:num_requests_waiting 0\n"),
                    // Unhealthy for a check of the status, full for a reader of the metric.
                    ("/asked", false) => reply(203, &[], "vllm:num_requests_waiting 9\n"),
                    _ => reply(200, &[], "second"),
                })
            }
        })
        .await;
        let busy = Held::start_beside("/asked", "vllm:num_requests_waiting 0\n").await;
        let gateway = Gateway::start(&waiting_for(&format!(
            "endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}], capacity: {{maxInFlight: 1{capacity}}}, {check}",
            busy.upstream.url(),
            second.url()
        )))
        .await;
        eventually("the second one takes nothing", || async {
            (gateway.endpoint(&second.url()).await["state"] != "open").then_some(())
        })
        .await;
        is_called(&gateway, &busy, check, async || well.store(true, Ordering::SeqCst)).await;
    }
}

#[tokio::test]
async fn those_who_wait_are_called_when_an_edit_adds_a_server_or_allows_more() {
    let (busy, second) = (Held::start().await, Upstream::fixed(200, "second").await);
    let one = format!("{{url: \"{}\"}}", busy.upstream.url());
    let both = format!("{one}, {{url: \"{}\"}}", second.url());
    let of = |endpoints: &str, most: u32| {
        waiting_for(&format!("endpoints: [{endpoints}], capacity: {{maxInFlight: {most}}}"))
    };
    let gateway = Gateway::start(&of(&one, 1)).await;
    let edit = async |reloads: usize, yaml: String| {
        let yaml = whole(&format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}"));
        std::fs::write(gateway.config(), yaml).unwrap();
        assert_eq!(gateway.reloads(reloads).await["event"], "config_reloaded");
    };
    is_called(&gateway, &busy, "a server was added", async || edit(0, of(&both, 1)).await).await;
    edit(1, of(&one, 1)).await;
    let first = get(&gateway, "/first", &[]);
    eventually("the server is busy", || async { (busy.asked().len() == 2).then_some(()) }).await;
    let waiting = get(&gateway, "/waiting", &[]);
    depth(&gateway, 1.0).await;
    edit(2, of(&one, 2)).await;
    eventually("both are at the server", || async { (busy.asked().len() == 3).then_some(()) }).await;
    busy.release(2);
    assert_eq!((first.await.unwrap().status.as_u16(), waiting.await.unwrap().status.as_u16()), (200, 200));
}

#[tokio::test]
async fn those_who_wait_are_called_by_what_an_answer_says_while_it_still_comes() {
    let (tell, told) = mpsc::channel::<u32>(4);
    let (told, open) = (Arc::new(tokio::sync::Mutex::new(told)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let server = Upstream::start(move |_| {
        let (told, open) = (told.clone(), open.clone());
        async move {
            let waiting = told.lock().await.recv().await?;
            let load = format!("JSON {{\"named_metrics\": {{\"num_requests_waiting\": {waiting}}}}}");
            let (send, parts) = mpsc::channel(1);
            open.lock().unwrap().push(send);
            Some(streamed(&[("endpoint-load-metrics", &load)], parts))
        }
    })
    .await;
    let gateway = Gateway::start(&waiting_for(&format!(
        "endpoints: [{{url: \"{}\"}}], capacity: {{loadReports: true, queueDepth: {{max: 1, staleAfter: 10m}}}}",
        server.url()
    )))
    .await;
    let ask = |path: &'static str| {
        let client = gateway.client();
        tokio::spawn(async move { client.stream(client.request("GET", path, &[], "")).await.unwrap() })
    };
    let asked = [ask("/1"), ask("/2")];
    eventually("both are there", || async { (server.count() == 2).then_some(()) }).await;
    tell.send(9).await.unwrap();
    eventually("it is full", || async {
        (gateway.endpoint(&server.url()).await["state"] == "queueDepth").then_some(())
    })
    .await;
    let waiting = ask("/3");
    depth(&gateway, 1.0).await;
    assert_eq!(server.count(), 2);
    tell.send(0).await.unwrap();
    eventually("the third is there, and both others go on", || async { (server.count() == 3).then_some(()) }).await;
    tell.send(0).await.unwrap();
    assert_eq!(waiting.await.unwrap().status, 200);
    drop(asked);
}

#[tokio::test]
async fn where_nobody_is_left_the_wait_is_that_of_the_ejection_and_not_what_the_queue_took() {
    let well = Arc::new(AtomicBool::new(true));
    let is_well = well.clone();
    let server = Upstream::start(move |_| {
        let status = if is_well.load(Ordering::SeqCst) { 200 } else { 500 };
        async move {
            tokio::time::sleep(Duration::from_millis(10)).await;
            Some(reply(status, &[], ""))
        }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:
  - name: x
    endpoints: [{{url: \"{}\"}}]
    capacity: {{maxInFlight: 1}}
    outlierDetection: {{consecutiveErrors: 1, maxEjected: 1, panicThreshold: 0, ejectionTime: 60s}}
routes: [{{name: r, backendRefs: [{{name: x}}], whenSaturated: {{queue: {{maxWait: 30s}}}}}}]
",
        server.url()
    ))
    .await;
    let asked: Vec<_> = (0..6).map(|n| get(&gateway, &format!("/{n}"), &[])).collect();
    for answer in futures::future::join_all(asked).await {
        assert_eq!(answer.unwrap().status, 200);
    }
    well.store(false, Ordering::SeqCst);
    // Errors by status eject where two operations got them.
    for path in ["/", "/other"] {
        assert_eq!(gateway.client().get(path).await.status, 500);
    }
    eventually("it is ejected", || async {
        (gateway.endpoint(&server.url()).await["state"] == "ejected").then_some(())
    })
    .await;
    let refused = gateway.client().get("/").await;
    let wait: u64 = refused.header("retry-after").parse().unwrap();
    assert!(refused.status == 503 && wait > 1, "{} and {wait} s, of up to 60", refused.status);
}

#[tokio::test]
async fn who_was_called_in_vain_and_spills_leaves_the_call_to_the_next() {
    let (server, stand_in) = (Held::start().await, Held::start().await);
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}}}
  - {{name: y, endpoints: [{{url: \"{}\"}}]}}
routes:
  - name: r
    backendRefs: [{{name: x}}]
    whenSaturated: {{queue: {{maxWait: 5m}}}}
    whenUnavailable: {{spillTo: y}}
",
        server.upstream.url(),
        stand_in.upstream.url()
    ))
    .await;
    let first = get(&gateway, "/first", &[]);
    eventually("the server is busy", || async { (server.asked().len() == 1).then_some(()) }).await;
    let waiting: Vec<_> = (0..3).map(|n| get(&gateway, &format!("/{n}"), &[])).collect();
    depth(&gateway, 3.0).await;
    let admin = Client::new(gateway.admin);
    let path = format!("/api/backends/x/endpoints/{}/drain", server.upstream.address);
    assert_eq!(admin.send(admin.request("POST", &path, &[("x-spillway-admin", "1")], "")).await.status, 200);
    // The drained backend may get no traffic: all waiters move on at once, before the first has its answer.
    eventually("all are at the stand-in", || async { (stand_in.asked().len() == 3).then_some(()) }).await;
    assert!(!first.is_finished());
    stand_in.release(3);
    server.release(1);
    for answer in futures::future::join_all(waiting).await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(first.await.unwrap().status, 200);
}

#[tokio::test]
async fn a_backend_as_a_whole_has_a_limit_and_an_endpoint_no_more_connections_than_it_may() {
    let (a, b) = (Held::start().await, Held::start().await);
    let backend = |limits: &str| {
        waiting_for(&format!(
            "endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}], {limits}",
            a.upstream.url(),
            b.upstream.url()
        ))
    };
    let reached = || a.asked().len() + b.asked().len();
    for (round, limits) in ["circuitBreaker: {maxInFlight: 2}", "capacity: {maxConnections: 1}"].into_iter().enumerate()
    {
        let gateway = Gateway::start(&backend(limits)).await;
        let asked: Vec<_> = (0..5).map(|n| get(&gateway, &format!("/{n}"), &[])).collect();
        depth(&gateway, 3.0).await;
        eventually("two are at the servers", || async { (reached() >= 5 * round + 2).then_some(()) }).await;
        assert_eq!(reached(), 5 * round + 2, "{limits}");
        a.release(5);
        b.release(5);
        for answer in futures::future::join_all(asked).await {
            assert_eq!(answer.unwrap().status, 200, "{limits}");
        }
        assert_eq!(reached(), 5 * (round + 1));
        let open = gateway.endpoint(&a.upstream.url()).await["connections"].as_u64().unwrap();
        assert!(open <= [2, 1][round], "{limits}: {open} connections");
        // Unused permits.
        a.forget();
        b.forget();
    }
    assert!(a.most.load(Ordering::SeqCst) <= 2 && b.most.load(Ordering::SeqCst) <= 2);
}

#[tokio::test]
async fn no_more_wait_for_a_backend_than_it_lets_whatever_the_routes_they_came_by() {
    let server = Held::start().await;
    let route = |name: &str| {
        format!(
            "  - {{name: {name}, matches: [{{path: {{prefix: /{name}}}}}], backendRefs: [{{name: x}}], whenSaturated: {{queue: {{maxWait: 5m}}}}}}\n"
        )
    };
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}], capacity: {{maxInFlight: 1}}, circuitBreaker: {{maxPending: 2}}}}]
routes:\n{}{}",
        server.upstream.url(),
        route("r"),
        route("s")
    ))
    .await;
    let mut asked = vec![get(&gateway, "/r/first", &[])];
    eventually("the server is busy", || async { (server.asked().len() == 1).then_some(()) }).await;
    asked.extend([get(&gateway, "/r/1", &[]), get(&gateway, "/s/1", &[])]);
    gateway.metric_becomes("spillway_backend_pending{backend=\"x\"}", 2.0).await;
    for path in ["/r/2", "/s/2"] {
        let refused = gateway.client().get(path).await;
        assert_eq!(refused.status, 503, "{}", refused.text());
        assert!(!refused.header("retry-after").is_empty());
    }
    let shown: serde_json::Value = serde_json::from_str(&gateway.shown("/api/backends").await).unwrap();
    assert_eq!((&shown["backends"][0]["pending"], &shown["backends"][0]["maxPending"]), (&2.into(), &2.into()));
    gateway.metric_becomes("spillway_backend_circuit_open{backend=\"x\",limit=\"maxPending\"}", 1.0).await;
    // A cancelled waiter no longer counts, nor does one that got its slot.
    asked.remove(1).abort();
    gateway.metric_becomes("spillway_backend_pending{backend=\"x\"}", 1.0).await;
    asked.push(get(&gateway, "/s/3", &[]));
    gateway.metric_becomes("spillway_backend_pending{backend=\"x\"}", 2.0).await;
    server.release(3);
    for answer in futures::future::join_all(asked).await {
        assert_eq!(answer.unwrap().status, 200);
    }
    gateway.metric_becomes("spillway_backend_pending{backend=\"x\"}", 0.0).await;
}

#[tokio::test]
async fn no_more_retries_are_on_their_way_than_a_backend_allows() {
    // Retries of one request follow each other: with one slot all of them run.
    for (most, tries) in [(0, 1), (1, 4)] {
        let broken = Upstream::start(|_| async { None }).await;
        let gateway = Gateway::start(&format!(
            "backends: [{{name: x, endpoints: [{{url: \"{}\"}}], circuitBreaker: {{maxRetries: {most}}}}}]
routes: [{{name: r, backendRefs: [{{name: x}}], retry: {{attempts: 3, backoff: {{base: 1ms, max: 1ms}}}}}}]
",
            broken.url()
        ))
        .await;
        for _ in 0..2 {
            assert_eq!(gateway.client().get("/").await.status, 503);
        }
        assert_eq!(broken.count(), 2 * tries);
        let denied = gateway.metric("spillway_retries_denied_total{http_route=\"r\"}").await;
        assert_eq!(denied, if most == 0 { 2.0 } else { 0.0 });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_model_refuses_a_prompt_that_it_would_read_for_too_long() {
    let gateway = Gateway::start(&format!(
        "models: [{{name: m, source: \"{}\", contextLength: 512, maxQueueWait: 1ms}}]\nroutes: [{{backendRefs: [{{model: m}}]}}]\n",
        model().display()
    ))
    .await;
    // No prompt is prefilled within a millisecond.
    for _ in 0..3 {
        let answer = gateway.client().chat("m", &[]).await;
        assert_eq!((answer.status.as_u16(), answer.json()["error"]["code"].as_str()), (503, Some("overloaded")));
        assert!(answer.headers.contains_key("retry-after"), "{:?}", answer.headers);
    }
}
