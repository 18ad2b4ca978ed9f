//! Proxying: bodies of any size, streams without delay, and correct headers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

use bytes::Bytes;
use spillway_tests::{Gateway, Upstream, digest, eventually, reply, streamed};
use tokio::sync::mpsc;

/// One route of each kind: bodies that are held (model protocol) and bodies that stream through.
fn both(upstream: &Upstream, more: &str) -> String {
    format!(
        "backends:
  - {{name: held, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: streamed, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: held, matches: [{{path: {{prefix: /held}}}}], backendRefs: [{{name: held}}], limits: {{maxBody: 21MiB}}}}
  - {{name: streamed, matches: [{{path: {{prefix: /streamed}}}}], backendRefs: [{{name: streamed}}], limits: {{maxBody: 21MiB}}}}
{more}",
        url = upstream.url()
    )
}

fn body(size: usize) -> Bytes {
    (0..size).map(|n| b"0123456789abcdefghijklmnopqrstuv"[(n * 7 + n / 4096) % 32]).collect::<Vec<u8>>().into()
}

#[tokio::test]
async fn bodies_of_every_size_arrive_whole_however_they_are_framed() {
    let upstream = Upstream::digest().await;
    let gateway = Gateway::start(&both(&upstream, "")).await;
    let client = gateway.client();
    // Around the 64 KiB that Pingora keeps for a retry, and well past every buffer.
    for size in [0, 1, 60_000, 65_535, 65_536, 65_537, 200_000, 20 << 20] {
        let body = body(size);
        for path in ["/held", "/streamed"] {
            let answer = client.post(path, &[], body.clone()).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(&body)), "{path} {size}");
            let chunks = body.chunks(50_000).map(Bytes::copy_from_slice).collect();
            let answer = client.send(client.chunked(path, &[], chunks)).await;
            assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(&body)), "{path} {size} in chunks");
        }
    }
    gateway.metric_becomes("spillway_buffered_body_bytes", 0.0).await;
}

#[tokio::test]
async fn a_body_over_the_limit_of_its_route_is_refused_before_it_is_sent() {
    let upstream = Upstream::digest().await;
    let gateway = Gateway::start(&both(&upstream, "").replace("21MiB", "64KiB")).await;
    let client = gateway.client();
    for path in ["/held", "/streamed"] {
        let answer = client.post(path, &[], body(65_537)).await;
        assert_eq!(answer.status, 413, "{path}: {}", answer.text());
        assert_eq!(
            answer.json()["error"]["code"].as_str().or(answer.json()["code"].as_str()),
            Some("request_too_large")
        );
    }
    let answer = client.send(client.chunked("/held", &[], vec![body(40_000), body(40_000)])).await;
    assert_eq!(answer.status, 413);
    assert_eq!(upstream.count(), 0);
    assert_eq!(client.post("/held", &[], body(65_536)).await.status, 200);
}

#[tokio::test]
async fn a_stream_arrives_part_by_part() {
    let (send, parts) = mpsc::channel(1);
    let parts = std::sync::Arc::new(tokio::sync::Mutex::new(Some(parts)));
    let upstream = Upstream::start(move |_| {
        let parts = parts.clone();
        async move { Some(streamed(&[("content-type", "text/event-stream")], parts.lock().await.take()?)) }
    })
    .await;
    let gateway = Gateway::start(&both(&upstream, "")).await;
    let client = gateway.client();
    let mut answer = client.stream(client.request("POST", "/held", &[], "{}")).await.unwrap();
    assert_eq!(answer.status, 200);
    for n in 0..5 {
        let event = format!("data: {{\"n\":{n}}}\n\n");
        // The next part is sent only when this one has arrived: nothing may wait for more.
        send.send(Ok(event.clone().into())).await.unwrap();
        assert_eq!(answer.part().await.unwrap().unwrap(), event);
    }
    drop(send);
    assert!(answer.part().await.is_none(), "the stream ends in order");
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_request_at_the_upstream() {
    let (send, parts) = mpsc::channel(1);
    let parts = std::sync::Arc::new(tokio::sync::Mutex::new(Some(parts)));
    let upstream = Upstream::start(move |_| {
        let parts = parts.clone();
        async move { Some(streamed(&[("content-type", "text/event-stream")], parts.lock().await.take()?)) }
    })
    .await;
    let gateway = Gateway::start(&both(&upstream, "")).await;
    let client = gateway.client();
    let mut answer = client.stream(client.request("POST", "/held", &[], "{}")).await.unwrap();
    send.send(Ok("data: {}\n\n".into())).await.unwrap();
    answer.part().await.unwrap().unwrap();
    drop(answer);
    // No further part is sent: the upstream must notice the cancellation all the same.
    tokio::time::timeout(spillway_tests::PATIENCE, send.closed()).await.expect("the upstream's connection is closed");
    gateway.metric_becomes("spillway_requests_in_flight{http_route=\"held\"}", 0.0).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_ends_in_an_error_event_or_a_broken_connection() {
    for (kind, path) in [("text/event-stream", "/held"), ("application/octet-stream", "/streamed")] {
        let (send, parts) = mpsc::channel(4);
        let parts = std::sync::Arc::new(tokio::sync::Mutex::new(Some(parts)));
        let upstream = Upstream::start(move |_| {
            let parts = parts.clone();
            async move { Some(streamed(&[("content-type", kind)], parts.lock().await.take()?)) }
        })
        .await;
        let gateway = Gateway::start(&both(&upstream, "")).await;
        let client = gateway.client();
        let mut answer = client.stream(client.request("POST", path, &[], "{}")).await.unwrap();
        assert_eq!(answer.status, 200);
        send.send(Ok("data: {\"a\":1}\n\n".into())).await.unwrap();
        assert_eq!(answer.part().await.unwrap().unwrap(), "data: {\"a\":1}\n\n");
        send.send(Err(std::io::Error::other("dies"))).await.unwrap();
        if kind == "text/event-stream" {
            let last = answer.part().await.unwrap().unwrap();
            let event = last.strip_prefix(b"data: ").unwrap();
            let event: serde_json::Value = serde_json::from_slice(event).unwrap();
            assert_eq!(event["error"]["code"], "upstream_reset");
            assert!(answer.part().await.is_none(), "after the error the stream ends in order");
        } else {
            assert!(answer.part().await.unwrap().is_err(), "half an answer must not look whole");
        }
    }
}

#[tokio::test]
async fn time_limits_end_what_does_not_come() {
    let upstream = Upstream::start(|_| std::future::pending()).await;
    let yaml = format!(
        "backends:
  - {{name: slow, endpoints: [{{url: \"{url}\"}}], timeouts: {{firstByte: 200ms}}}}
  - {{name: whole, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: a, matches: [{{path: {{prefix: /first}}}}], backendRefs: [{{name: slow}}]}}
  - {{name: b, matches: [{{path: {{prefix: /whole}}}}], backendRefs: [{{name: whole}}], timeouts: {{request: 300ms}}}}
",
        url = upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let first = gateway.client().get("/first").await;
    assert_eq!((first.status.as_u16(), first.header("retry-after")), (503, "1"), "{}", first.text());
    let whole = gateway.client().get("/whole").await;
    assert_eq!((whole.status.as_u16(), &whole.json()["code"]), (504, &"request_timeout".into()));
}

#[tokio::test]
async fn headers_end_here_pass_or_are_set_as_a_gateway_should() {
    let upstream = Upstream::start(|_| async {
        Some(reply(
            200,
            &[("x-up", "1"), ("keep-alive", "timeout=5"), ("connection", "x-secret"), ("x-secret", "s")],
            "ok",
        ))
    })
    .await;
    let yaml = format!(
        "backends:
  - {{name: plain, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: own, endpoints: [{{url: \"{url}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}
routes:
  - name: plain
    matches: [{{path: {{prefix: /plain}}}}]
    filters:
      - requestHeaders: {{set: {{x-served-by: spillway}}, remove: [cookie]}}
      - responseHeaders: {{set: {{x-model: \"{{backend}}\"}}}}
    backendRefs: [{{name: plain}}]
  - {{name: own, matches: [{{path: {{prefix: /own}}}}], backendRefs: [{{name: own}}]}}
",
        url = upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let sent = [
        ("host", "api.example.com"),
        ("connection", "close, x-hop"),
        ("x-hop", "1"),
        ("cookie", "c=1"),
        ("x-spillway-consumer", "admin"),
        ("X_Spillway_Tenant", "admin"),
        ("x-forwarded-for", "6.6.6.6"),
        ("forwarded", "for=6.6.6.6"),
        ("authorization", "Bearer mine"),
        ("x-request-id", "my-id-1"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-keep", "yes"),
    ];
    let answer = client.send(client.request("GET", "/plain?a=b%20c", &sent, "")).await;
    let seen = upstream.last();
    assert_eq!(seen.path, "/plain?a=b%20c");
    let up = |name: &str| seen.headers.get(name).map(|v| v.to_str().unwrap().to_owned());
    for gone in ["x-hop", "cookie", "x-spillway-consumer", "x_spillway_tenant", "forwarded", "connection"] {
        assert_eq!(up(gone), None, "{gone}");
    }
    assert_eq!(up("host").as_deref(), Some("api.example.com"));
    assert_eq!(up("x-forwarded-for").as_deref(), Some("127.0.0.1"));
    assert_eq!(up("x-forwarded-host").as_deref(), Some("api.example.com"));
    assert_eq!(up("authorization"), None, "credentials end here unless the backend says otherwise");
    assert_eq!(up("x-served-by").as_deref(), Some("spillway"));
    assert_eq!(up("x-keep").as_deref(), Some("yes"));
    assert_eq!(up("x-request-id").as_deref(), Some("my-id-1"));
    assert!(up("traceparent").unwrap().starts_with("00-0af7651916cd43dd8448eb211c80319c-"));
    assert_eq!(up("via"), None, "nginx compresses no answer to a request that has it");
    assert_eq!(up("x-spillway-hops").unwrap().len(), 8);
    assert_eq!(answer.header("x-request-id"), "my-id-1");
    assert_eq!((answer.header("x-up"), answer.header("x-model")), ("1", "plain"));
    assert!(!answer.headers.contains_key("x-secret") && !answer.headers.contains_key("keep-alive"));

    let answer =
        client.send(client.request("GET", "/own", &[("x-api-key", "mine"), ("x-request-id", "bad id")], "")).await;
    let seen = upstream.last();
    assert_eq!(seen.headers["authorization"], "Bearer upstream-secret");
    assert!(!seen.headers.contains_key("x-api-key"));
    assert_eq!(answer.header("x-request-id").len(), 36, "an id that is not sane is replaced");
}

#[tokio::test]
async fn a_request_that_comes_back_is_refused() {
    // A gateway whose backend is itself.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spillway.yaml");
    let yaml = format!(
        "listeners: [{{address: \"{address}\"}}]
backends: [{{name: me, endpoints: [{{url: \"http://{address}\"}}]}}]
routes: [{{backendRefs: [{{name: me}}]}}]
"
    );
    std::fs::write(&file, yaml).unwrap();
    let mut child = std::process::Command::new(spillway_tests::binary())
        .args(["serve", "-c", file.to_str().unwrap()])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    eventually("it listens", || async { tokio::net::TcpStream::connect(address).await.ok() }).await;
    let answer = spillway_tests::Client::new(address).get("/").await;
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (508, &"loop_detected".into()));
}

#[tokio::test]
async fn bad_input_gets_a_clear_error_in_the_right_shape_and_harms_nothing() {
    let upstream = Upstream::fixed(200, "ok").await;
    let gateway = Gateway::start(&both(&upstream, "")).await;
    let client = gateway.client();
    let answer = client.get("/nowhere").await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (404, "application/problem+json"));
    let large = "x".repeat(40_000);
    let answer = client.send(client.request("GET", "/streamed", &[("x-large", &large)], "")).await;
    assert_eq!(answer.status, 431);
    // No HTTP at all, or two framings.
    for raw in [
        "NONSENSE\r\n\r\n",
        "GET /streamed HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "GET /streamed HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
        "GET /streamed HTTP/1.1\r\nHost : a\r\n\r\n",
    ] {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(raw.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(spillway_tests::PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{raw:?}: {answer:?}");
    }
    assert_eq!(upstream.count(), 0);
    assert_eq!(client.get("/streamed").await.text(), "ok");
}

#[tokio::test]
async fn an_expected_continue_is_answered_once_before_the_body() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let upstream = Upstream::digest().await;
    let gateway = Gateway::start(&both(&upstream, "")).await;
    for path in ["/held", "/streamed"] {
        let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut interim = [0u8; 25];
        stream.read_exact(&mut interim).await.unwrap();
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"hello").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with(&digest(b"hello")), "{path}: {answer}");
    }
}
