//! The promise: who finds no room waits for it in fair order, or goes elsewhere, or is told at once when to come back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use spillway_tests::{Answer, Gateway, Upstream, eventually, reply};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// A server whose answers wait until they are let go, and that knows how many it had at once.
struct Held {
    upstream: Upstream,
    gate: Arc<Semaphore>,
    most: Arc<AtomicUsize>,
}

impl Held {
    async fn start() -> Self {
        let (gate, now, most) =
            (Arc::new(Semaphore::new(0)), Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (open, peak) = (gate.clone(), most.clone());
        let upstream = Upstream::start(move |seen| {
            let (open, now, peak) = (open.clone(), now.clone(), peak.clone());
            async move {
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

    /// The paths that were asked for, in their order.
    fn asked(&self) -> Vec<String> {
        self.upstream.seen.lock().unwrap().iter().map(|seen| seen.path.clone()).collect()
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
    eventually("the queue is as deep as it should be", || async {
        (gateway.metric("spillway_queue_depth{http_route=\"r\"}").await == expected).then_some(())
    })
    .await;
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
    // The digests of `a`, `b` and `c`.
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
    // Now something is known: the queue was served at once.
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
    assert_eq!(gateway.metric("spillway_spills_total{http_route=\"r\",reason=\"queue_timeout\"}").await, 1.0);
    let refused = get(&gateway, "/", &[("x-spillway-fallback", "never")]).await.unwrap();
    assert_eq!(refused.status, 503);
    assert_eq!(gateway.metric("spillway_sheds_total{http_route=\"r\",reason=\"queue_timeout\"}").await, 1.0);
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
