//! Answers that the gateway makes without a server: `respond`, redirects, health checks of a listener, and the end that these
//! announce.

use spillway_tests::{Frames, Gateway, Upstream, eventually};

/// Digest of the key `test`.
const DIGEST: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

#[tokio::test]
async fn a_route_answers_by_itself_behind_its_other_filters() {
    let yaml = format!(
        "listeners: [{{name: l, address: \"127.0.0.1:0\"}}, {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}]
consumers: [{{name: acme, keys: [{{sha256: {DIGEST}}}]}}]
routes:
  - name: robots
    matches: [{{path: {{exact: /robots.txt}}}}]
    authentication: none
    filters: [{{respond: {{body: \"User-agent: *\\n\"}}}}]
  - name: page
    matches: [{{path: {{exact: /}}}}]
    authentication: none
    filters:
      - cors: {{allowOrigins: [\"https://app.test\"]}}
      - responseHeaders: {{set: {{x-route: \"{{route}}\"}}}}
      - respond: {{status: 503, headers: {{content-type: text/html, retry-after: \"60\"}}, body: <p>Back soon.</p>}}
  - name: limited
    matches: [{{path: {{prefix: /limited}}}}]
    authentication: none
    filters: [{{rateLimit: {{by: clientAddress, requests: 1/hour}}}}, {{respond: {{status: 204}}}}]
  - name: closed
    matches: [{{path: {{prefix: /closed}}}}]
    filters: [{{respond: {{body: in}}}}]
  - name: old
    matches: [{{path: {{prefix: /old}}}}]
    authentication: none
    filters: [{{redirect: {{replacePrefix: /new, status: 301}}}}]
  - name: there
    matches: [{{path: {{exact: /there}}}}]
    authentication: none
    filters: [{{redirect: {{path: /there}}}}]
"
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let client = gateway.client();
    let robots = client.get("/robots.txt").await;
    assert_eq!((robots.status.as_u16(), robots.text().as_str()), (200, "User-agent: *\n"));
    assert_eq!(robots.header("content-type"), "text/plain; charset=utf-8");
    assert!(!robots.header("x-request-id").is_empty());
    let page = client.send(client.request("GET", "/", &[("origin", "https://app.test")], "")).await;
    assert_eq!((page.status.as_u16(), page.text().as_str()), (503, "<p>Back soon.</p>"));
    for (name, value) in [
        ("content-type", "text/html"),
        ("retry-after", "60"),
        ("x-route", "page"),
        ("access-control-allow-origin", "https://app.test"),
    ] {
        assert_eq!(page.header(name), value, "{name}");
    }
    // Without a body, and with one that nobody reads.
    let head = client.send(client.request("HEAD", "/", &[], "")).await;
    assert_eq!((head.status.as_u16(), head.header("content-type"), head.body.len()), (503, "text/html", 0));
    let posted = client.send(client.request("POST", "/robots.txt", &[], "unread")).await;
    assert_eq!(posted.text(), "User-agent: *\n");
    let mut frames = Frames::connect(gateway.listener("h2c"), 1 << 20).await;
    let stream = frames.send("/robots.txt", "").await;
    eventually("HTTP/2 has it too", || async { frames.body(stream).1.then_some(()) }).await;
    assert_eq!(frames.body(stream).0, "User-agent: *\n");
    // Limits and identity come first.
    let first = client.get("/limited").await;
    assert_eq!((first.status.as_u16(), first.body.len()), (204, 0));
    assert_eq!(client.get("/limited/again").await.status, 429);
    assert_eq!(client.get("/closed").await.status, 401);
    let open = client.send(client.request("GET", "/closed", &[("x-api-key", "test")], "")).await;
    assert_eq!(open.text(), "in");
    // A redirect needs no server, and what it lets pass has none.
    let moved = client.get("/old/page?q").await;
    assert_eq!(moved.status, 301);
    assert!(moved.header("location").ends_with("/new/page?q"), "{}", moved.header("location"));
    let there = client.get("/there").await;
    assert_eq!((there.status.as_u16(), there.json()["code"].as_str()), (404, Some("no_route")), "{}", there.text());
    let metrics = gateway.shown("/metrics").await;
    let counted =
        |line: &&str| line.starts_with("http_server_request_duration_seconds_count") && line.contains("\"robots\"");
    assert!(metrics.lines().any(|line| counted(&line)), "{metrics}");
}

#[tokio::test]
async fn a_listener_answers_health_checks_before_every_route() {
    let upstream = Upstream::fixed(200, "reached").await;
    let yaml = format!(
        "listeners:
  - {{name: l, address: \"127.0.0.1:0\", healthPath: /healthz}}
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c, healthPath: /live/now}}
  - {{name: other, address: \"127.0.0.1:0\"}}
consumers: [{{name: acme, keys: [{{sha256: {DIGEST}}}]}}]
backends: [{{name: up, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{filters: [{{rateLimit: {{by: clientAddress, requests: 1/hour}}}}], backendRefs: [{{name: up}}]}}]
",
        upstream.url()
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let client = gateway.client();
    for path in ["/healthz", "/healthz?from=lb", "/%68ealthz", "//healthz"] {
        let answer = client.get(path).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "ready"), "{path}");
        assert_eq!(answer.header("cache-control"), "no-store", "{path}");
    }
    let head = client.send(client.request("HEAD", "/healthz", &[], "")).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    let mut frames = Frames::connect(gateway.listener("h2c"), 1 << 20).await;
    let stream = frames.send("/live/now", "").await;
    eventually("HTTP/2 answers", || async { frames.body(stream).1.then_some(()) }).await;
    assert_eq!(frames.body(stream).0, "ready");
    // Other methods, paths and listeners go on to the routes.
    let other = spillway_tests::Client::new(gateway.listener("other"));
    for (client, method, path) in [
        (&client, "POST", "/healthz"),
        (&client, "GET", "/healthz/x"),
        (&client, "GET", "/HEALTHZ"),
        (&other, "GET", "/healthz"),
    ] {
        let status = client.send(client.request(method, path, &[], "")).await.status.as_u16();
        assert!(matches!(status, 401 | 429), "{method} {path}: {status}");
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn requests_are_taken_for_a_time_after_the_drain_is_announced() {
    let upstream = Upstream::fixed(200, "reached").await;
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\", healthPath: /healthz}}]
backends: [{{name: up, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: up}}]}}]
shutdown: {{delay: 600s}}
",
        upstream.url()
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let client = gateway.client();
    let ready = client.get("/healthz").await;
    assert_eq!((ready.status.as_u16(), ready.header("connection")), (200, ""));
    gateway.signal("TERM");
    eventually("it says so", || async { (client.get("/healthz").await.status == 503).then_some(()) }).await;
    let answer = client.get("/healthz").await;
    assert_eq!((answer.text().as_str(), answer.header("retry-after")), ("draining", "1"));
    assert_eq!(gateway.shown("/readyz").await, "draining");
    // A client that keeps its connection is told to open another, before this one is closed under its next request.
    for path in ["/", "/healthz"] {
        assert_eq!(client.get(path).await.header("connection"), "close", "{path}");
    }
    // New connections and their requests are served; a further SIGTERM changes nothing.
    for _ in 0..2 {
        assert_eq!(client.get("/").await.text(), "reached");
        gateway.signal("TERM");
    }
    let text = std::fs::read_to_string(gateway.config()).unwrap();
    std::fs::write(gateway.config(), text.replace("600s", "0s")).unwrap();
    assert_eq!(client.get("/").await.text(), "reached");
    gateway.signal("INT");
    let (status, log) = gateway.wait().await;
    assert!(status.success() && log.contains("\"event\":\"drain_delayed\""), "{log}");
    assert!(!log.contains("drain_timeout"), "{log}");
}

#[tokio::test]
async fn a_path_that_no_route_takes_says_what_a_base_url_lacks() {
    let upstream = Upstream::fixed(200, "{}").await;
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: up, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{matches: [{{path: {{prefix: /v1/chat}}}}, {{path: {{prefix: /v1/models}}}}], backendRefs: [{{name: up}}]}}]
",
        upstream.url()
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let client = gateway.client();
    for (method, path, hint) in [
        ("POST", "/chat/completions", Some("the path lacks /v1")),
        ("POST", "/embeddings", Some("the path lacks /v1")),
        ("GET", "/models", Some("the path lacks /v1")),
        ("GET", "/models/a%2Fb", Some("the path lacks /v1")),
        ("POST", "/v1/v1/chat/completions", Some("the path has /v1 twice")),
        ("POST", "/chat", None),
        ("GET", "/chat/completions", None),
        ("GET", "/", None),
        ("POST", "/v10/chat/completions", None),
    ] {
        let answer = client.send(client.request(method, path, &[("content-type", "application/json")], "{}")).await;
        assert_eq!(answer.status, 404, "{method} {path}");
        let text = answer.text();
        let found = text.contains("base URL of this client");
        assert_eq!((found, hint.is_none_or(|hint| text.contains(hint))), (hint.is_some(), true), "{path}: {text}");
    }
}

#[tokio::test]
async fn a_plain_route_has_no_series_of_model_calls() {
    let upstream = Upstream::fixed(200, "{\"model\":\"m\",\"usage\":{\"prompt_tokens\":1}}").await;
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: plain, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{filters: [{{rateLimit: {{by: model, requests: 100/s}}}}], backendRefs: [{{name: plain}}]}}]
",
        upstream.url()
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let client = gateway.client();
    let body = "{\"model\":\"m\",\"messages\":[]}";
    assert_eq!(client.post("/v1/chat/completions", &[("content-type", "application/json")], body).await.status, 200);
    let metrics = gateway.shown("/metrics").await;
    let series: Vec<_> = metrics.lines().filter(|line| line.starts_with("gen_ai_")).collect();
    assert!(series.is_empty(), "{series:?}");
}
