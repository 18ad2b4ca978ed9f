//! Faults, one at a time, under a steady load of good requests: what breaks, what does not, and how it is seen. Each test says
//! what is promised; `docs/operate/faults.md` is the table of all faults, also of those that other files test.

use std::io::Read;
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spillway_tests::{
    Client, Collector, Gateway, Issuer, IssuerKey, Upstream, binary, eventually, faketime, free_port, new_key, python,
    raw, reply, repository, whole,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Clients that send the next request when they have the answer to the last.
const CLIENTS: usize = 4;

/// Request of the load.
const CHAT: &str = r#"{"model": "m", "messages": [{"role": "user", "content": "Say hello."}], "max_tokens": 4}"#;

/// A closed loop of requests that must all be answered with 200.
struct Load {
    count: Arc<Count>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

#[derive(Default)]
struct Count {
    stop: AtomicBool,
    good: AtomicUsize,
    /// Connections that were not taken.
    refused: AtomicUsize,
    wrong: Mutex<Vec<String>>,
}

impl Load {
    /// Sends chats with these headers to the gateway.
    fn start(address: SocketAddr, headers: &[(&str, &str)]) -> Self {
        let count = Arc::new(Count::default());
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let clients = (0..CLIENTS).map(|_| {
            let (count, headers) = (count.clone(), headers.clone());
            tokio::spawn(async move {
                while !count.stop.load(Ordering::Relaxed) {
                    Self::ask(address, &headers, &count).await;
                }
            })
        });
        Self { clients: clients.collect(), count }
    }

    async fn ask(address: SocketAddr, headers: &[(String, String)], count: &Count) {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let client = Client::new(address);
        let mut all = vec![("content-type", "application/json")];
        all.extend(headers);
        let chat = client.request("POST", "/v1/chat/completions", &all, CHAT);
        // Nobody listens, or the system has reset a connection that nobody had taken when the listener was closed.
        let Ok(answer) = client.try_send(chat).await else {
            count.refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
            return;
        };
        if answer.status == 200 && !answer.cut {
            count.good.fetch_add(1, Ordering::Relaxed);
        } else {
            count.wrong.lock().unwrap().push(format!("{} {}", answer.status, answer.text()));
        }
    }

    fn good(&self) -> usize {
        self.count.good.load(Ordering::Relaxed)
    }

    /// Waits until so many further requests are answered.
    async fn more(&self, count: usize) {
        let before = self.good();
        eventually("further requests are answered", || async { (self.good() >= before + count).then_some(()) }).await;
    }

    /// Stops the load; fails where a request was not answered with 200, or not at all. Returns the good ones.
    async fn end(self) -> usize {
        let count = self.count.clone();
        let good = self.end_with_refused().await;
        assert_eq!(count.refused.load(Ordering::Relaxed), 0, "connections were refused");
        good
    }

    /// As [`Self::end`], where connections may be refused.
    async fn end_with_refused(self) -> usize {
        self.count.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.unwrap();
        }
        let wrong = self.count.wrong.lock().unwrap();
        assert!(
            wrong.is_empty(),
            "{} of {} were not answered: {:?}",
            wrong.len(),
            wrong.len() + self.count.good.load(Ordering::Relaxed),
            &wrong[..wrong.len().min(3)]
        );
        self.count.good.load(Ordering::Relaxed)
    }
}

fn plain(url: &str) -> String {
    format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{name: chat, backendRefs: [{{name: x}}]}}]
"
    )
}

fn with_listener(yaml: &str) -> String {
    format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}")
}

/// Promise (how-to/reload): an edit is applied at once and no request is lost; a mistake is kept out whole and the last good
/// one serves on. A hundred edits, every third broken in another way.
#[tokio::test]
async fn a_hundred_edits_good_and_broken_cost_no_request() {
    const EDITS: usize = 100;
    let (a, b) = (Upstream::fixed(200, "{}").await, Upstream::fixed(200, "{}").await);
    let gateway = Gateway::start(&plain(&a.url())).await;
    let load = Load::start(gateway.address, &[]);
    let mut kept_out = 0;
    for edit in 0..EDITS {
        let good = with_listener(&plain(if edit % 2 == 0 { &b } else { &a }.url().as_str()));
        let (text, event) = match edit % 6 {
            1 => (good.replace("backendRefs", "backendRef"), "config_rejected"),
            // A file that ends in the middle.
            3 => (good[..good.len() - 10].to_owned(), "config_rejected"),
            // Valid for itself, and it cannot be run.
            5 => (
                format!("{good}state: {{budgets: {{sqlite: other-{edit}.db}}}}\nlimits: {{limitKeys: 2048}}\n"),
                "config_rejected",
            ),
            _ => (format!("{good}# {edit}\n"), "config_reloaded"),
        };
        kept_out += usize::from(event == "config_rejected");
        std::fs::write(gateway.config(), whole(&text)).unwrap();
        let told = gateway.reloads(edit).await;
        assert_eq!(told["event"], event, "edit {edit}: {told}");
    }
    load.more(50).await;
    assert!(load.end().await > EDITS);
    let failed = gateway.metric("spillway_config_reloads_total{result=\"failed\"}").await;
    let ok = gateway.metric("spillway_config_reloads_total{result=\"ok\"}").await;
    assert_eq!((ok, failed), ((EDITS - kept_out) as f64, kept_out as f64));
}

/// Promise (operate/faults): a worker thread that stands still holds up its own connections and no other, new connections go to
/// the others, and requests that waited for it are answered when it goes on.
#[tokio::test]
async fn a_worker_that_stands_still_holds_up_its_own_connections_and_no_other() {
    let upstream = Upstream::fixed(200, "{}").await;
    let script = repository().join("tests/python/still_thread.py");
    let mut command = Command::new(python());
    command.arg(&script).arg("run").arg(binary()).env("TOKIO_WORKER_THREADS", "2");
    let yaml = format!("{}\n", with_listener(&plain(&upstream.url())));
    let gateway = Gateway::start_by(command, tempfile::tempdir().unwrap(), &yaml).await;
    // Kept connections, half of them with each worker.
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        assert!(asked(&mut stream).await.starts_with("HTTP/1.1 200"));
        kept.push(stream);
    }
    let mut tracer = Command::new(python());
    tracer.arg(&script).args(["stop", &gateway.id().to_string(), "worker"]);
    let mut tracer = tracer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut told = [0; 8];
    tracer.stdout.as_mut().unwrap().read_exact(&mut told).unwrap();
    assert_eq!(&told, b"stopped\n");
    let waiting: Vec<_> =
        kept.into_iter().map(|mut stream| tokio::spawn(async move { asked(&mut stream).await })).collect();
    gateway.metric_becomes("spillway_workers_stalled", 1.0).await;
    let told = eventually("the log says so", || async { gateway.events("worker_stalled").first().cloned() }).await;
    assert_eq!(told["connections"], 2);
    let load = Load::start(gateway.address, &[]);
    load.more(100).await;
    load.end().await;
    assert_eq!(waiting.iter().filter(|asked| !asked.is_finished()).count(), 2);
    drop(tracer.stdin.take());
    assert!(tracer.wait().unwrap().success());
    for asked in waiting {
        assert!(asked.await.unwrap().starts_with("HTTP/1.1 200"));
    }
    gateway.metric_becomes("spillway_workers_stalled", 0.0).await;
}

/// Sends a request on a kept connection, and returns the beginning of its answer.
async fn asked(stream: &mut TcpStream) -> String {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 64 << 10];
    let length = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// Promise (how-to/shutdown): running requests finish, nothing new is taken. A restart has a moment in which nobody listens: a
/// connection of that moment is refused or reset, and no request that reached a server goes without its answer.
#[tokio::test]
async fn a_restart_loses_no_request_that_was_taken() {
    let upstream = Upstream::start(|_| async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Some(reply(200, &[], "{}"))
    })
    .await;
    let port = free_port();
    let yaml = format!("listeners: [{{address: \"127.0.0.1:{port}\"}}]\n{}", plain(&upstream.url()));
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let load = Load::start(gateway.address, &[]);
    let mut gateway = Some(gateway);
    for _ in 0..3 {
        load.more(50).await;
        let running = gateway.take().unwrap();
        running.signal("TERM");
        let (status, _) = running.wait().await;
        assert!(status.success(), "{status}");
        gateway = Some(Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await);
    }
    load.more(50).await;
    assert_eq!(load.end_with_refused().await, upstream.count());
}

/// Promise (how-to/retries, how-to/outliers): a server whose answers are no HTTP is an attempt that failed, which is retried
/// where `on` has `"502"`; so it costs no request that may be repeated. It is ejected, and the neighbour takes all.
#[tokio::test]
async fn a_server_that_answers_garbage_costs_no_request_and_is_left_alone() {
    let good = Upstream::fixed(200, "{}").await;
    let garbage = raw(|mut stream| async move {
        spillway_tests::head_of_a_request(&mut stream).await;
        let _ = stream.write_all(b"\x16\x03\x01 this is no HTTP\r\n\r\n").await;
    })
    .await;
    let yaml = format!(
        "backends: [{{name: x, endpoints: [{{url: \"{garbage}\"}}, {{url: \"{}\"}}]}}]
routes: [{{name: r, retry: {{attempts: 2, budget: 1.0, on: [\"502\"]}}, backendRefs: [{{name: x}}]}}]
",
        good.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for _ in 0..100 {
        let answer = client.get("/").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let endpoint = gateway.endpoint(&garbage).await;
    assert_eq!(endpoint["state"], "ejected", "{endpoint}");
    assert!(endpoint["lastError"]["cause"].as_str().unwrap().starts_with("protocol"), "{endpoint}");
    assert_eq!(good.count(), 100);
}

/// Promise (how-to/tracing): a collector that is down costs requests nothing, and `spillway_spans_dropped_total` counts what
/// did not reach it. One that hangs is no different, and spans that wait are bounded.
#[tokio::test]
async fn a_trace_collector_that_hangs_or_is_gone_costs_no_request() {
    let (upstream, collector) = (Upstream::fixed(200, "{}").await, Collector::start().await);
    let yaml = |url: &str| {
        format!(
            "{}telemetry: {{tracing: {{otlp: {{endpoint: \"{url}\"}}, sampleRatio: 1.0}}}}\n",
            plain(&upstream.url())
        )
    };
    let gateway = Gateway::start(&yaml(&collector.url())).await;
    let load = Load::start(gateway.address, &[]);
    eventually("spans are exported", || async { (collector.count() > 0).then_some(()) }).await;
    assert_eq!(gateway.metric("spillway_spans_dropped_total").await, 0.0);
    collector.hangs();
    // An export has five seconds; behind it the queue fills.
    eventually("lost spans are counted", || async {
        (gateway.metric("spillway_spans_dropped_total").await > 0.0).then_some(())
    })
    .await;
    load.more(100).await;
    assert!(!gateway.events("traces_not_sent").is_empty());
    // Gone altogether, by an edit that needs no restart.
    let before = gateway.metric("spillway_spans_dropped_total").await;
    let away = whole(&with_listener(&yaml(&Upstream::nobody().await)));
    std::fs::write(gateway.config(), away).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    eventually("lost spans are counted", || async {
        (gateway.metric("spillway_spans_dropped_total").await > before).then_some(())
    })
    .await;
    load.more(100).await;
    load.end().await;
}

/// Promise (how-to/jwt): an issuer that is down keeps the keys it had. One that takes requests and answers none is down too,
/// and a token with a key that it has not shown is refused, not waited for.
#[tokio::test]
async fn an_issuer_that_hangs_keeps_its_keys_and_holds_nobody_up() {
    let (upstream, issuer) = (Upstream::fixed(200, "{}").await, Issuer::start().await);
    let (known, unknown) = (IssuerKey::new("known"), IssuerKey::new("unknown"));
    issuer.shows(&[&known]);
    let yaml = format!(
        "authentication: {{jwt: [{{issuer: \"{}\", audiences: [spillway], claims: {{consumer: sub}}, jwks: {{url: \"{}/keys\", refresh: 10s}}}}]}}
{}",
        issuer.url(),
        issuer.url(),
        plain(&upstream.url())
    );
    let gateway = Gateway::start(&yaml).await;
    let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    let bearer = |key: &IssuerKey, who: &str| {
        let claims = serde_json::json!({"iss": issuer.url(), "aud": "spillway", "sub": who, "exp": ends});
        format!("Bearer {}", key.token(&claims))
    };
    let load = Load::start(gateway.address, &[("authorization", &bearer(&known, "mia"))]);
    load.more(50).await;
    issuer.hangs();
    let asked = issuer.asked();
    eventually("its keys are asked for", || async { (issuer.asked() > asked).then_some(()) }).await;
    let stranger = gateway.client().chat("m", &[("authorization", &bearer(&unknown, "mia"))]).await;
    assert_eq!(stranger.status, 401, "{}", stranger.text());
    // A token that was never seen is verified with the keys that are there.
    let other = gateway.client().chat("m", &[("authorization", &bearer(&known, "noa"))]).await;
    assert_eq!(other.status, 200, "{}", other.text());
    eventually("the failure is told", || async { gateway.events("jwks_failed").first().cloned() }).await;
    load.more(50).await;
    load.end().await;
}

/// Promise (reference/logs, `budgets_not_written`): where the file of budgets cannot be written, budgets are counted in memory,
/// requests are served, and `spillway_budget_write_failures_total` says so. A limit of file sizes stands for a full disk: a
/// write past it fails as on one.
#[tokio::test]
async fn a_full_disk_costs_no_request_and_budgets_are_counted_in_memory() {
    let usage = r#"{"id":"c","model":"m","choices":[],"usage":{"prompt_tokens":10,"completion_tokens":40}}"#;
    let upstream =
        Upstream::start(move |_| async move { Some(reply(200, &[("content-type", "application/json")], usage)) }).await;
    let (key, digest) = new_key();
    let yaml = format!(
        "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], limits: {{budget: {{tokens: 100000000, per: month}}}}}}]\n{}",
        plain(&upstream.url())
    );
    // The file exists: only what is written while requests come has no room.
    let gateway = Gateway::start(&yaml).await;
    let spent = "spillway_budget_spent{budget=\"consumer acme\",per=\"month\",unit=\"tokens\"}";
    limit_file_sizes(&gateway, "0");
    let load = Load::start(gateway.address, &[("x-api-key", &key)]);
    eventually("failed writes are counted", || async {
        (gateway.metric("spillway_budget_write_failures_total").await > 0.0).then_some(())
    })
    .await;
    load.more(50).await;
    let good = load.end().await;
    gateway.metric_becomes(spent, (good * 50) as f64).await;
    assert!(!gateway.events("budgets_not_written").is_empty());
    // Room again: what was counted in memory is written, and outlives a crash.
    let before = written(&gateway);
    limit_file_sizes(&gateway, "unlimited");
    eventually("budgets are written", || async { (written(&gateway) > before).then_some(()) }).await;
    let gateway = gateway.crash_and_restart(&yaml).await;
    gateway.metric_becomes(spent, (good * 50) as f64).await;
}

/// Bytes of the files of budgets.
fn written(gateway: &Gateway) -> u64 {
    let files = std::fs::read_dir(gateway.folder().join("state")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

/// Sets the largest size of a file that a running gateway may write: bytes, or `unlimited`.
fn limit_file_sizes(gateway: &Gateway, size: &str) {
    let set =
        Command::new("prlimit").arg("--pid").arg(gateway.id().to_string()).arg(format!("--fsize={size}:")).status();
    assert!(set.expect("prlimit (util-linux)").success());
}

/// Promise (`telemetry/log.rs`, reference/metrics): the log waits for nobody. A reader that has gone or that reads no more
/// costs lines, which `spillway_log_lines_dropped_total` counts, and no request.
#[tokio::test]
async fn a_reader_of_the_log_that_has_gone_or_hangs_costs_lines_and_no_request() {
    let upstream = Upstream::fixed(200, "{}").await;
    for is_gone in [true, false] {
        // At this level each request has many lines, which fill the bounded memory of the log in some seconds.
        let (folder, yaml) = (tempfile::tempdir().unwrap(), with_listener(&plain(&upstream.url())));
        let gateway = Gateway::start_with_variables(folder, &yaml, &[("SPILLWAY_LOG", "trace")]).await;
        let load = Load::start(gateway.address, &[]);
        load.more(20).await;
        if is_gone {
            gateway.close_log();
        } else {
            gateway.stop_reading_log();
        }
        eventually("lost lines are counted", || async {
            (gateway.metric("spillway_log_lines_dropped_total").await > 0.0).then_some(())
        })
        .await;
        load.more(200).await;
        load.end().await;
        assert_eq!(Client::new(gateway.admin).get("/readyz").await.text(), "ready");
        // A drain waits for its last lines, and not for ever.
        gateway.signal("TERM");
        let (status, _) = gateway.wait().await;
        assert!(status.success(), "{status}");
    }
}

/// Promise (operate/faults): rates, time limits and tokens follow clocks that nobody sets, or survive a jump of the one that
/// is set. An hour forward, two back: no request is refused for it, none hangs.
#[tokio::test]
async fn a_clock_that_jumps_costs_no_request() {
    let (upstream, issuer) = (Upstream::fixed(200, "{}").await, Issuer::start().await);
    let (signing, (key, digest)) = (IssuerKey::new("one"), new_key());
    issuer.shows(&[&signing]);
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], limits: {{requests: 100000/s, concurrency: 64, budget: {{tokens: 100000000, per: day}}}}}}]
{}",
        plain(&upstream.url())
    );
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    let jump = |offset: &str| {
        let new = clock.with_extension("new");
        std::fs::write(&new, offset).unwrap();
        std::fs::rename(&new, &clock).unwrap();
    };
    jump("+0s");
    let mut command = Command::new(binary());
    command
        .env("LD_PRELOAD", faketime())
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let gateway = Gateway::start_by(command, folder, &yaml).await;
    let load = Load::start(gateway.address, &[("x-api-key", &key)]);
    load.more(50).await;
    for offset in ["+3600s", "-7200s", "+86400s", "+0s"] {
        jump(offset);
        let seconds: f64 = offset.trim_end_matches('s').parse().unwrap();
        eventually("the gateway sees the jump", || async {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
            let before = gateway.edits();
            gateway.signal("HUP");
            gateway.reloads(before).await;
            let shown: serde_json::Value = serde_json::from_str(&gateway.shown("/api/config").await).unwrap();
            let ahead = shown["lastEdit"]["at"].as_f64().unwrap() - now;
            ((ahead - seconds).abs() < 60.0).then_some(())
        })
        .await;
        load.more(100).await;
    }
    load.end().await;
}
