//! Servers that fail, hang, are ejected or change: detection, duration, and no effect on callers.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicUsize, Ordering};

use spillway_tests::{
    Authority, Client, Gateway, LlamaServer, Upstream, binary, eventually, head_of_a_request, raw, reply,
};

const HEAD: &str = "listeners: [{address: \"127.0.0.1:0\"}]\nadmin: {address: \"127.0.0.1:0\"}\n";

/// Server with a variable status; 0 closes the connection without an answer.
async fn switched(name: &'static str) -> (Upstream, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let shared = status.clone();
    let server = Upstream::start(move |_| {
        let status = shared.load(Ordering::Relaxed);
        async move { (status > 0).then(|| reply(status, &[], name)) }
    })
    .await;
    (server, status)
}

#[tokio::test]
async fn a_server_whose_answers_are_errors_is_left_alone_and_returns_by_one_good_answer() {
    let (a, status) = switched("a").await;
    let b = Upstream::fixed(200, "b").await;
    let yaml = format!(
        "backends:
  - name: x
    loadBalancing: {{policy: roundRobin}}
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]
    outlierDetection: {{consecutiveErrors: 3, ejectionTime: 500ms}}
routes: [{{backendRefs: [{{name: x}}], retry: {{attempts: 2, on: [connectFailure, reset, \"500\"]}}}}]
",
        a.url(),
        b.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for (bad, ejections) in [(500, 1), (0, 2)] {
        status.store(bad, Ordering::Relaxed);
        eventually("it is ejected", || async {
            assert_eq!(client.get("/").await.status, 200, "a retry hides it");
            (gateway.events("endpoint_ejected").len() >= ejections).then_some(())
        })
        .await;
        assert_eq!(gateway.endpoint(&a.url()).await["state"], "ejected");
        let seen = a.count();
        for _ in 0..5 {
            assert_eq!(client.get("/").await.text(), "b");
        }
        assert!(a.count() <= seen + 1, "at most a probation request after half a second");
        status.store(200, Ordering::Relaxed);
        eventually("it is back", || async { (client.get("/").await.text() == "a").then_some(()) }).await;
        eventually("it is told", || async { (gateway.events("endpoint_returned").len() >= ejections).then_some(()) })
            .await;
    }
    let series = format!("spillway_endpoint_ejections_total{{backend=\"x\",endpoint=\"{}\"}}", a.url());
    assert!(gateway.metric(&series).await >= 2.0);
    assert_eq!(gateway.endpoint(&b.url()).await["ejections"], 0);
}

#[tokio::test]
async fn a_server_that_fails_half_of_its_answers_is_ejected_by_its_share_of_errors() {
    let count = Arc::new(AtomicUsize::new(0));
    let shared = count.clone();
    let flaky = Upstream::start(move |_| {
        let odd = shared.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        async move { Some(reply(if odd { 500 } else { 200 }, &[], "flaky")) }
    })
    .await;
    let good = Upstream::fixed(200, "good").await;
    let yaml = format!(
        "backends:
  - name: x
    loadBalancing: {{policy: roundRobin}}
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]
    outlierDetection: {{minimumRequests: 10}}
routes: [{{backendRefs: [{{name: x}}]}}]
",
        flaky.url(),
        good.url()
    );
    let gateway = Gateway::start(&yaml).await;
    for _ in 0..40 {
        gateway.client().get("/").await;
    }
    let told = eventually("it is told", || async { gateway.events("endpoint_ejected").first().cloned() }).await;
    assert_eq!(told["reason"], "error_rate");
    assert_eq!(count.load(Ordering::Relaxed), 10, "no request after the one that decided it");
}

#[tokio::test]
async fn when_all_servers_fail_half_of_them_are_still_asked() {
    let (a, _) = switched("a").await;
    let dead = Upstream::nobody().await;
    let yaml = format!(
        "backends: [{{name: x, endpoints: [{{url: \"{dead}\"}}], outlierDetection: {{consecutiveErrors: 1}}}}, {{name: y, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: x}}, {{name: y, priority: 1}}], retry: {{attempts: 0}}}}]
",
        a.url()
    );
    let gateway = Gateway::start(&yaml).await;
    for _ in 0..3 {
        assert_eq!(gateway.client().get("/").await.status, 503);
    }
    assert!(gateway.events("endpoint_ejected").is_empty(), "the only one is never ejected");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_llama_server_that_dies_or_hangs_costs_no_request_and_one_that_wakes_returns() {
    let (mut a, b) =
        tokio::join!(async { tokio::task::spawn_blocking(|| LlamaServer::start(2)).await.unwrap() }, async {
            tokio::task::spawn_blocking(|| LlamaServer::start(2)).await.unwrap()
        });
    let yaml = format!(
        "backends:
  - name: x
    protocol: openai
    loadBalancing: {{policy: roundRobin}}
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]
    outlierDetection: {{consecutiveErrors: 2, ejectionTime: 2s}}
    timeouts: {{firstByte: 5s}}
routes: [{{backendRefs: [{{name: x}}], retry: {{attempts: 2, on: [connectFailure, reset, \"504\"]}}}}]
",
        a.url, b.url
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let ask = async |n: usize| {
        let asked = (0..n).map(|_| client.chat("m", &[]));
        for answer in futures::future::join_all(asked).await {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    };
    ask(4).await;
    // The server hangs: connections are accepted, and nothing follows.
    b.signal("STOP");
    let began = std::time::Instant::now();
    eventually("the hanging one is ejected", || async {
        ask(4).await;
        gateway.events("endpoint_ejected").first().map(|e| assert_eq!(e["endpoint"], b.url.as_str()))
    })
    .await;
    println!("hanging: ejected after {:?}", began.elapsed());
    b.signal("CONT");
    let began = std::time::Instant::now();
    eventually("it returns", || async {
        ask(2).await;
        gateway.events("endpoint_returned").first().map(|_| ())
    })
    .await;
    println!("awake: returned after {:?}", began.elapsed());
    let ejected = gateway.events("endpoint_ejected").len();
    a.kill();
    let began = std::time::Instant::now();
    eventually("the dead one is ejected", || async {
        ask(2).await;
        (gateway.events("endpoint_ejected").len() > ejected).then_some(())
    })
    .await;
    println!("dead: ejected after {:?}", began.elapsed());
    ask(4).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_endpoint_gets_no_new_requests_loses_none_and_stays_drained_over_a_reload() {
    let slow = |name: &'static str| {
        Upstream::start(move |_| async move {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            Some(reply(200, &[], name))
        })
    };
    let (a, b) = (slow("a").await, slow("b").await);
    let yaml = format!(
        "backends: [{{name: \"x\", endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]}}]\nroutes: [{{backendRefs: [{{name: x}}]}}]\n",
        a.url(),
        b.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let stop = Arc::new(AtomicBool::new(false));
    let load: Vec<_> = (0..8)
        .map(|_| {
            let (client, stop) = (gateway.client(), stop.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(client.get("/").await.status, 200);
                }
            })
        })
        .collect();
    eventually("both answer", || async { (a.count() > 20 && b.count() > 20).then_some(()) }).await;
    let admin = Client::new(gateway.admin);
    let path = format!("/api/backends/x/endpoints/{}/drain", a.address);
    let refused = admin.send(admin.request("POST", &path, &[], "")).await;
    assert_eq!((refused.status.as_u16(), a.count() > 0), (403, true), "a web page could send this");
    let drained = admin.send(admin.request("POST", &path, &[("x-spillway-admin", "1")], "")).await;
    assert_eq!(drained.json()["endpoints"][0]["changed"], true, "{}", drained.text());
    let (then, other) = (a.count(), b.count());
    eventually("the other goes on", || async { (b.count() > other + 40).then_some(()) }).await;
    // Eight clients have at most eight requests in flight.
    assert!(a.count() <= then + 8, "{} more", a.count() - then);
    let told = gateway.events("admin_change");
    assert_eq!((&told[0]["action"], &told[0]["endpoint"]), (&"drain".into(), &a.url().into()));
    std::fs::write(gateway.config(), format!("{HEAD}{yaml}# an edit\n")).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!(gateway.endpoint(&a.url()).await["state"], "drained");
    eventually("it runs dry", || async { (gateway.endpoint(&a.url()).await["inFlight"] == 0).then_some(()) }).await;

    let command = |args: &[&str]| {
        let admin = format!("http://{}", gateway.admin);
        let out = Command::new(binary()).args(args).args(["--admin", &admin]).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        (out.status.code(), text)
    };
    let (code, top) = command(&["top", "--once", "--interval", "0.3"]);
    assert_eq!(code, Some(0), "{top}");
    let line = |url: &str| top.lines().find(|line| line.contains(url)).unwrap_or_else(|| panic!("{top}")).to_owned();
    assert!(line(&a.url()).contains("drained") && line(&b.url()).contains("open"), "{top}");
    // Eight clients send requests all the time.
    let route: Vec<String> = line("default").split_whitespace().map(str::to_owned).collect();
    assert!(
        route.len() == 6 && route[2].parse::<f64>().unwrap() > 0.0,
        "waiting, requests, retries, spills, sheds: {top}"
    );
    let (code, told) = command(&["drain", "x", &a.url(), "--undo"]);
    assert_eq!((code, told.trim()), (Some(0), format!("{}: undrained", a.url()).as_str()));
    let (code, told) = command(&["drain", "x", "127.0.0.1:1"]);
    assert!(code == Some(1) && told.contains("no such endpoint"), "{told}");
    let then = a.count();
    eventually("it is back", || async { (a.count() > then).then_some(()) }).await;
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
}

#[tokio::test]
async fn endpoints_of_a_file_come_and_go_with_it_and_a_broken_file_changes_nothing() {
    let (a, b) = (Upstream::fixed(200, "a").await, Upstream::fixed(200, "b").await);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("endpoints.json");
    std::fs::write(&file, format!("[{{\"url\": \"{}\"}}]", a.url())).unwrap();
    let yaml = format!(
        "backends: [{{name: x, endpointsFile: \"{}\", loadBalancing: {{policy: roundRobin}}}}]\nroutes: [{{backendRefs: [{{name: x}}]}}]\n",
        file.display()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    assert_eq!(client.get("/").await.text(), "a");
    std::fs::write(&file, "[{\"urll\": 1}]").unwrap();
    let told = gateway.reloads(0).await;
    assert_eq!(told["event"], "config_rejected");
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("endpoints.json:1:") && reason.contains("did you mean `url`"), "{reason}");
    assert_eq!(client.get("/").await.text(), "a");
    std::fs::write(&file, format!("[{{\"url\": \"{}\"}}, {{\"url\": \"{}\"}}]", a.url(), b.url())).unwrap();
    assert_eq!(gateway.reloads(1).await["event"], "config_reloaded");
    let mut answers: Vec<String> = Vec::new();
    for _ in 0..4 {
        answers.push(client.get("/").await.text());
    }
    answers.sort();
    assert_eq!(answers, ["a", "a", "b", "b"]);
}

#[tokio::test]
async fn a_new_endpoint_takes_traffic_after_its_first_check_and_checks_may_be_connections_or_completions() {
    let ready = Arc::new(AtomicBool::new(false));
    let shared = ready.clone();
    let a = Upstream::fixed(200, "a").await;
    let b = Upstream::start(move |seen| {
        let ready = shared.load(Ordering::Relaxed);
        async move {
            let asks = seen.path == "/v1/chat/completions" && seen.headers.contains_key("user-agent");
            let check = asks && seen.headers["user-agent"].to_str().unwrap().contains("health-check");
            if check {
                let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
                assert_eq!((&body["model"], &body["max_tokens"]), (&"m".into(), &1.into()));
                assert_eq!(seen.headers["authorization"], "Bearer upstream-secret");
            }
            Some(reply(if check && !ready { 500 } else { 200 }, &[], "b"))
        }
    })
    .await;
    let yaml = |endpoints: &str| {
        format!(
            "backends:
  - name: x
    protocol: openai
    model: m
    credentials: {{bearer: {{env: TEST_SECRET}}}}
    loadBalancing: {{policy: roundRobin}}
    endpoints: [{endpoints}]
    healthCheck: {{completion: {{}}, interval: 100ms, healthyThreshold: 3}}
  - name: down
    endpoints: [{{url: \"{}\"}}]
    healthCheck: {{tcp: {{}}, interval: 100ms, unhealthyThreshold: 1}}
routes: [{{backendRefs: [{{name: x}}]}}]
",
            a.url().replace(&a.address.port().to_string(), "1")
        )
    };
    let gateway = Gateway::start(&yaml(&format!("{{url: \"{}\"}}", a.url()))).await;
    let both = yaml(&format!("{{url: \"{}\"}}, {{url: \"{}\"}}", a.url(), b.url()));
    std::fs::write(gateway.config(), format!("{HEAD}{both}")).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    eventually("it is checked", || async { (b.count() >= 2).then_some(()) }).await;
    for _ in 0..6 {
        assert_eq!(gateway.client().get("/").await.text(), "a");
    }
    ready.store(true, Ordering::Relaxed);
    eventually("it takes traffic", || async { (gateway.client().get("/").await.text() == "b").then_some(()) }).await;
    let down = a.url().replace(&a.address.port().to_string(), "1");
    eventually("nobody takes its connections", || async {
        (gateway.endpoint(&down).await["state"] == "unhealthy").then_some(())
    })
    .await;
}

/// gRPC server with the health service alone, over HTTP/2, with TLS if there is an acceptor.
async fn health_service_over(
    acceptor: Option<tokio_rustls::TlsAcceptor>,
) -> (String, tonic_health::server::HealthReporter) {
    let (reporter, service) = tonic_health::server::health_reporter();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let scheme = if acceptor.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper_util::service::TowerToHyperService::new(service.clone());
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let http2 = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
                match acceptor {
                    None => http2.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await,
                    Some(acceptor) => {
                        // A client that does not trust the server hangs up.
                        let Ok(stream) = acceptor.accept(stream).await else { return Ok(()) };
                        http2.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await
                    }
                }
            });
        }
    });
    (url, reporter)
}

async fn health_service() -> (String, tonic_health::server::HealthReporter) {
    health_service_over(None).await
}

#[tokio::test]
async fn a_grpc_server_is_asked_by_the_health_protocol_for_one_service() {
    use tonic_health::ServingStatus::{NotServing, Serving};
    let (url, reporter) = health_service().await;
    reporter.set_service_status("inference.Models", Serving).await;
    let yaml = format!(
        "backends:
  - name: x
    http2: true
    endpoints: [{{url: \"{url}\"}}]
    healthCheck: {{grpc: {{service: inference.Models}}, interval: 100ms, unhealthyThreshold: 1, healthyThreshold: 1}}
  - name: y
    http2: true
    endpoints: [{{url: \"{url}\"}}]
    healthCheck: {{grpc: {{service: nobody.Knows}}, interval: 100ms, unhealthyThreshold: 1}}
routes: [{{backendRefs: [{{name: x}}, {{name: y}}]}}]
"
    );
    let gateway = Gateway::start(&yaml).await;
    let state = async |backend: usize| {
        let shown: serde_json::Value = serde_json::from_str(&gateway.shown("/api/backends").await).unwrap();
        shown["backends"][backend]["endpoints"][0]["state"].as_str().unwrap().to_owned()
    };
    eventually("a service that it does not have is not healthy", || async {
        (state(1).await == "unhealthy").then_some(())
    })
    .await;
    assert_eq!(state(0).await, "open");
    reporter.set_service_status("inference.Models", NotServing).await;
    eventually("it says that it does not serve", || async { (state(0).await == "unhealthy").then_some(()) }).await;
    eventually("why is told", || async {
        let why: Vec<_> = gateway.events("endpoint_unhealthy").iter().map(|e| e["reason"].to_string()).collect();
        let all = why.iter().any(|why| why.contains("NOT_SERVING")) && why.iter().any(|why| why.contains("status 5"));
        all.then_some(())
    })
    .await;
    reporter.set_service_status("inference.Models", Serving).await;
    eventually("it serves again", || async { (state(0).await == "open").then_some(()) }).await;
}

#[tokio::test]
async fn a_grpc_server_behind_tls_is_asked_by_the_health_protocol() {
    use tonic_health::ServingStatus::{NotServing, Serving};
    let (authority, stranger) = (Authority::default(), Authority::default());
    let server = authority.server(&["grpc.test"]);
    let (url, reporter) = health_service_over(Some(server.acceptor(None, &["h2"]))).await;
    // Without ALPN for HTTP/2: a server that announces HTTP/1.1 only.
    let (plain, _) = health_service_over(Some(server.acceptor(None, &["http/1.1"]))).await;
    reporter.set_service_status("", Serving).await;
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path());
    std::fs::write(folder.path().join("other.pem"), &stranger.pem).unwrap();
    let backend = |name: &str, url: &str, ca: &str| {
        format!(
            "  - name: {name}
    http2: true
    endpoints: [{{url: \"{url}\"}}]
    tls: {{sni: grpc.test, caFile: {ca}}}
    healthCheck: {{grpc: {{}}, interval: 100ms, timeout: 5s, unhealthyThreshold: 1, healthyThreshold: 1}}
"
        )
    };
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends:
{}{}{}routes: [{{backendRefs: [{{name: x}}, {{name: untrusted}}, {{name: old}}]}}]
",
        backend("x", &url, "ca.pem"),
        backend("untrusted", &url, "other.pem"),
        backend("old", &plain, "ca.pem")
    );
    let gateway = Gateway::start_in(folder, &yaml).await;
    let state = async |name: &str| {
        let shown: serde_json::Value = serde_json::from_str(&gateway.shown("/api/backends").await).unwrap();
        let mut backends = shown["backends"].as_array().unwrap().iter();
        backends.find(|b| b["name"] == name).unwrap()["endpoints"][0]["state"].as_str().unwrap().to_owned()
    };
    for (name, why) in [("untrusted", "TLS"), ("old", "does not speak HTTP/2")] {
        eventually("it is not healthy", || async { (state(name).await == "unhealthy").then_some(()) }).await;
        let events = gateway.events("endpoint_unhealthy");
        let event = events.iter().find(|event| event["backend"] == name).unwrap();
        assert!(event["reason"].as_str().unwrap().contains(why), "{event}");
    }
    assert_eq!(state("x").await, "open");
    reporter.set_service_status("", NotServing).await;
    eventually("it says that it does not serve", || async { (state("x").await == "unhealthy").then_some(()) }).await;
    reporter.set_service_status("", Serving).await;
    eventually("it serves again", || async { (state("x").await == "open").then_some(()) }).await;
}

/// A backend with these servers in round robin, and further keys.
fn in_turn(servers: &[&str], keys: &str) -> String {
    let endpoints: Vec<String> = servers.iter().map(|url| format!("{{url: \"{url}\"}}")).collect();
    format!(
        "backends: [{{name: x, loadBalancing: {{policy: roundRobin}}, endpoints: [{}], {keys}}}]
routes: [{{backendRefs: [{{name: x}}], retry: {{attempts: 2, on: [connectFailure, reset, \"504\"]}}}}]
",
        endpoints.join(", ")
    )
}

#[tokio::test]
async fn a_server_that_takes_connections_and_looks_at_none_costs_no_request() {
    let slow = raw(|stream| async move {
        let _kept = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let good = Upstream::fixed(200, "good").await;
    let gateway = Gateway::start(&in_turn(
        &[&slow, &good.url()],
        "timeouts: {firstByte: 200ms}, outlierDetection: {consecutiveErrors: 2, ejectionTime: 60s}",
    ))
    .await;
    eventually("it is ejected", || async {
        assert_eq!(gateway.client().get("/").await.text(), "good");
        (gateway.endpoint(&slow).await["state"] == "ejected").then_some(())
    })
    .await;
    let told = eventually("it is told", || async { gateway.events("endpoint_ejected").first().cloned() }).await;
    assert_eq!(told["reason"], "consecutive_errors");
}

#[tokio::test]
async fn a_server_that_resets_in_mid_body_hurts_the_answers_that_were_on_their_way_and_no_other() {
    use tokio::io::AsyncWriteExt;
    let resets = raw(|mut stream| async move {
        head_of_a_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
        tokio::time::sleep(std::time::Duration::from_millis(30)).await;
        // Dropped with zero linger: a reset, not an orderly end.
        let _ = stream.set_zero_linger();
    })
    .await;
    let good = Upstream::fixed(200, "good").await;
    let gateway = Gateway::start(&in_turn(
        &[&resets, &good.url()],
        "outlierDetection: {consecutiveErrors: 3, ejectionTime: 60s}",
    ))
    .await;
    let mut cut = 0;
    for _ in 0..30 {
        let answer = gateway.client().get("/").await;
        assert_eq!(answer.status, 200);
        assert!(answer.cut || answer.text() == "good", "half an answer is never taken for a whole one");
        cut += usize::from(answer.cut);
    }
    assert_eq!(cut, 3, "then it is ejected");
}

#[tokio::test]
async fn a_server_of_a_byte_a_second_holds_the_requests_that_it_has_and_gets_few_others() {
    use tokio::io::AsyncWriteExt;
    let slow = raw(|mut stream| async move {
        head_of_a_request(&mut stream).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n").await;
        while stream.write_all(b"x").await.is_ok() {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    })
    .await;
    let good = Upstream::fixed(200, "good").await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{slow}\"}}, {{url: \"{}\"}}]}}]\nroutes: [{{backendRefs: [{{name: x}}]}}]\n",
        good.url()
    ))
    .await;
    let mut held = Vec::new();
    eventually("it has one", || {
        let client = gateway.client();
        held.push(tokio::spawn(async move { client.get("/").await }));
        async { (gateway.endpoint(&slow).await["inFlight"] == 1).then_some(()) }
    })
    .await;
    for _ in 0..50 {
        // A request is in flight a moment longer than its caller sees; with one at each, either may be next.
        eventually("the other one is idle", || async {
            (gateway.endpoint(&good.url()).await["inFlight"] == 0).then_some(())
        })
        .await;
        assert_eq!(gateway.client().get("/").await.text(), "good");
    }
    assert_eq!(gateway.endpoint(&slow).await["inFlight"], 1);
    held.iter().for_each(tokio::task::JoinHandle::abort);
    eventually("who leaves gives its place back", || async {
        (gateway.endpoint(&slow).await["inFlight"] == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn when_most_servers_are_ejected_all_are_asked_again_unless_that_is_switched_off() {
    for (threshold, panics) in [(0.5, true), (0.0, false)] {
        let (a, a_status) = switched("a").await;
        let (b, b_status) = switched("b").await;
        let (c, _) = switched("c").await;
        let rules = format!(
            "outlierDetection: {{consecutiveErrors: 1, errorRate: 0, ejectionTime: 60s, maxEjected: 1, panicThreshold: {threshold}}}"
        );
        let gateway = Gateway::start(&in_turn(&[&a.url(), &b.url(), &c.url()], &rules)).await;
        for status in [&a_status, &b_status] {
            status.store(500, Ordering::Relaxed);
        }
        eventually("two of three are ejected", || async {
            gateway.client().get("/").await;
            (gateway.events("endpoint_ejected").len() == 2).then_some(())
        })
        .await;
        for status in [&a_status, &b_status] {
            status.store(200, Ordering::Relaxed);
        }
        let shown: serde_json::Value = serde_json::from_str(&gateway.shown("/api/backends").await).unwrap();
        assert_eq!(shown["backends"][0]["panic"], panics, "{shown}");
        let (then_a, then_b) = (a.count(), b.count());
        for _ in 0..12 {
            assert_eq!(gateway.client().get("/").await.status, 200);
        }
        assert_eq!((a.count() > then_a, b.count() > then_b), (panics, panics));
    }
}

#[tokio::test]
async fn a_server_that_is_many_times_slower_than_its_neighbours_is_ejected() {
    let slow = Upstream::start(|_| async {
        tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
        Some(reply(200, &[], "slow"))
    })
    .await;
    let (a, b) = (Upstream::fixed(200, "a").await, Upstream::fixed(200, "b").await);
    let gateway = Gateway::start(&in_turn(
        &[&a.url(), &slow.url(), &b.url()],
        "outlierDetection: {latencyFactor: 3, minimumRequests: 5, ejectionTime: 60s}",
    ))
    .await;
    let told = eventually("it is ejected", || async {
        let asked = (0..9).map(|_| async { gateway.client().get("/").await.status });
        assert!(futures::future::join_all(asked).await.iter().all(|status| *status == 200));
        gateway.events("endpoint_ejected").first().cloned()
    })
    .await;
    assert_eq!((&told["reason"], &told["endpoint"]), (&"latency".into(), &slow.url().into()));
}

#[tokio::test]
async fn a_server_that_returns_takes_a_small_share_at_first() {
    let (a, b) = (Upstream::fixed(200, "a").await, Upstream::fixed(200, "b").await);
    let yaml = format!(
        "backends: [{{name: x, loadBalancing: {{policy: roundRobin, slowStart: 1h}}, endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: x}}]}}]
",
        a.url(),
        b.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let ask = async |times: usize| {
        for _ in 0..times {
            assert_eq!(gateway.client().get("/").await.status, 200);
        }
    };
    ask(20).await;
    assert_eq!((a.count(), b.count()), (10, 10), "at the start all have their share");
    let admin = Client::new(gateway.admin);
    for verb in ["drain", "undrain"] {
        let path = format!("/api/backends/x/endpoints/{}/{verb}", b.address);
        assert_eq!(admin.send(admin.request("POST", &path, &[("x-spillway-admin", "1")], "")).await.status, 200);
    }
    ask(200).await;
    // A tenth of its weight: one of eleven, 18 of 200.
    let share = b.count() - 10;
    assert!((5..=40).contains(&share), "{share} of 200");
}
