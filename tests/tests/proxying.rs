//! Proxying: bodies of any size, streams without delay, and correct headers.

use std::io::Write;

use bytes::Bytes;
use http_body_util::StreamBody;
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
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
async fn a_body_without_a_length_is_refused_where_it_exceeds_the_limit_of_its_route() {
    let upstream = Upstream::digest().await;
    let yaml = both(&upstream, "").replace("21MiB", "64KiB");
    let listeners =
        "listeners: [{name: one, address: \"127.0.0.1:0\"}, {name: two, address: \"127.0.0.1:0\", protocol: h2c}]";
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &format!("{listeners}\n{yaml}")).await;
    let client = gateway.client();
    for (parts, status) in [([32_768, 32_768], 200), ([32_768, 32_769], 413), ([70_000, 1], 413)] {
        let parts = parts.map(body);
        let answer = client.send(client.chunked("/streamed", &[], parts.to_vec())).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        let stream = tokio::net::TcpStream::connect(gateway.listener("two")).await.unwrap();
        let (mut http2, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let frames = parts.map(|part| Ok::<_, std::io::Error>(Frame::data(part)));
        let request = http::Request::post("http://a.test/streamed");
        let request = request.body(StreamBody::new(futures::stream::iter(frames))).unwrap();
        assert_eq!(http2.send_request(request).await.unwrap().status(), status);
    }
    // The server is not to blame.
    assert_eq!(gateway.endpoint(&upstream.url()).await["lastError"], serde_json::Value::Null);
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
    assert_eq!((first.status.as_u16(), &first.json()["code"]), (504, &"upstream_timeout".into()), "{}", first.text());
    assert!(first.text().contains("backends[].timeouts.firstByte"), "{}", first.text());
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
async fn a_target_has_header_filters_of_its_own_and_a_backend_in_its_place_has_none() {
    let a = Upstream::start(|_| async { Some(reply(200, &[("x-inner", "a")], "a")) }).await;
    let b = Upstream::fixed(200, "b").await;
    let yaml = format!(
        "backends:
  - {{name: a, endpoints: [{{url: \"{a}\"}}]}}
  - {{name: b, endpoints: [{{url: \"{b}\"}}]}}
  - {{name: nobody, endpoints: [{{url: \"http://127.0.0.1:9\"}}]}}
routes:
  - name: split
    matches: [{{path: {{prefix: /split}}}}]
    filters:
      - requestHeaders: {{set: {{x-to: any, x-all: \"1\"}}}}
      - responseHeaders: {{set: {{x-from: any}}}}
    backendRefs:
      - name: a
        filters:
          - requestHeaders: {{set: {{x-to: \"{{backend}}\"}}, remove: [x-mine]}}
          - responseHeaders: {{set: {{x-from: first}}, remove: [x-inner]}}
      - {{name: b, filters: [{{requestHeaders: {{add: {{x-to: second}}}}}}]}}
  - name: away
    backendRefs: [{{name: nobody, filters: [{{requestHeaders: {{set: {{x-to: nobody}}}}}}, {{responseHeaders: {{set: {{x-from: nobody}}}}}}]}}]
    whenUnavailable: {{spillTo: b}}
",
        a = a.url(),
        b = b.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let mut answered = std::collections::BTreeSet::new();
    for _ in 0..200 {
        let answer = client.send(client.request("GET", "/split", &[("x-mine", "1")], "")).await;
        let is_a = answer.text() == "a";
        let seen = if is_a { a.last() } else { b.last() };
        let values: Vec<_> = seen.headers.get_all("x-to").iter().map(|value| value.to_str().unwrap()).collect();
        assert_eq!(values, if is_a { &["a"][..] } else { &["any", "second"] });
        assert_eq!((seen.headers["x-all"].to_str().unwrap(), seen.headers.contains_key("x-mine")), ("1", !is_a));
        assert_eq!(answer.header("x-from"), if is_a { "first" } else { "any" });
        assert!(!answer.headers.contains_key("x-inner"));
        answered.insert(is_a);
        if answered.len() == 2 {
            break;
        }
    }
    assert_eq!(answered.len(), 2, "both had requests");
    let answer = client.get("/away").await;
    assert_eq!((answer.text().as_str(), answer.headers.contains_key("x-from")), ("b", false));
    assert!(!b.last().headers.contains_key("x-to"));
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
async fn a_loop_is_found_as_the_listener_says_through_other_gateways_too() {
    let upstream = Upstream::fixed(200, "reached").await;
    let yaml = |listener: &str, url: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"{listener}}}]
backends: [{{name: b, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{backendRefs: [{{name: b}}]}}]
"
        )
    };
    let start =
        async |listener: &str, url: &str| Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(listener, url)).await;
    let last = start("", &upstream.url()).await;
    let first = start("", &format!("http://{}", last.address)).await;
    assert_eq!(first.client().get("/").await.status, 200, "two gateways in a row are no loop");
    let hops = upstream.last().headers["x-spillway-hops"].to_str().unwrap().to_owned();
    let [one, two] = hops.split(", ").collect::<Vec<_>>()[..] else { panic!("{hops}") };
    assert_ne!(one, two);
    let client = last.client();
    for (name, value, status) in [
        ("x-spillway-hops", hops.as_str(), 508),
        ("x-spillway-hops", one, 200),
        ("x-spillway-hops", "no list; at all", 200),
        ("x-spillway-hops", &["00000000"; 16].join(", "), 508),
        ("via", "1.1 other", 200),
    ] {
        let answer = client.send(client.request("GET", "/", &[(name, value)], "")).await;
        assert_eq!(answer.status, status, "{name}: {value}");
    }
    assert_eq!(upstream.last().headers["via"], "1.1 other");
    let signs = start(", via: true, loopHeader: false", &upstream.url()).await;
    let client = signs.client();
    client.send(client.request("GET", "/", &[("via", "1.1 other"), ("x-spillway-hops", one)], "")).await;
    let seen = upstream.last().headers;
    assert!(!seen.contains_key("x-spillway-hops"));
    let via: Vec<_> = seen.get_all("via").iter().map(|via| via.to_str().unwrap()).collect();
    assert!(via[0] == "1.1 other" && via[1].starts_with("1.1 spillway-"), "{via:?}");
    let answer = client.send(client.request("GET", "/", &[("via", via[1])], "")).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (508, &"loop_detected".into()));
}

#[tokio::test]
async fn comments_that_keep_a_stream_alive_pass_when_they_come() {
    let (waiting, streams) = mpsc::channel::<mpsc::Receiver<_>>(1);
    let streams = std::sync::Arc::new(tokio::sync::Mutex::new(streams));
    let upstream = Upstream::start(move |_| {
        let streams = streams.clone();
        async move { Some(streamed(&[("content-type", "text/event-stream")], streams.lock().await.recv().await?)) }
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: up, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: plain, matches: [{{path: {{prefix: /v1/completions}}}}], backendRefs: [{{name: up}}]}}
  - name: token
    matches: [{{path: {{prefix: /v1/chat}}}}]
    timeouts: {{firstToken: 60s}}
    backendRefs: [{{name: up}}]
",
        upstream.url()
    ))
    .await;
    let client = gateway.client();
    for path in ["/v1/completions", "/v1/chat/completions"] {
        for comment in [": ping\n\n", ":\n\n", ": ping\r\n\r\n", ": ping\n", ":\r\n", ":\r"] {
            let (send, parts) = mpsc::channel(1);
            waiting.send(parts).await.unwrap();
            send.send(Ok(bytes::Bytes::from_static(comment.as_bytes()))).await.unwrap();
            let body = r#"{"model":"m","stream":true,"prompt":"x","messages":[]}"#;
            let mut answer = client.stream(client.request("POST", path, &[], body)).await.unwrap();
            for _ in 0..3 {
                // The next one is sent only when this one has arrived.
                assert_eq!(answer.part().await.unwrap().unwrap(), comment, "{path}");
                send.send(Ok(bytes::Bytes::from_static(comment.as_bytes()))).await.unwrap();
            }
            send.send(Ok("data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\ndata: [DONE]\n\n".into()))
                .await
                .unwrap();
            drop(send);
            let mut rest = String::new();
            while let Some(part) = answer.part().await {
                rest.push_str(std::str::from_utf8(&part.unwrap()).unwrap());
            }
            assert!(rest.starts_with(comment) && rest.ends_with("data: [DONE]\n\n"), "{path} {comment:?}: {rest:?}");
        }
    }
}

#[tokio::test]
async fn an_error_event_stands_by_itself_behind_a_torn_event_of_any_size() {
    for size in [10, 1_000, 300_000, 1_500_000] {
        let upstream = Upstream::start(move |_| async move {
            let (send, parts) = mpsc::channel(64);
            tokio::spawn(async move {
                let _ = send.send(Ok("data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n".into())).await;
                let _ = send.send(Ok(format!("data: {{\"torn\":\"{}", "x".repeat(size)).into())).await;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                let _ = send.send(Err(std::io::Error::other("dies"))).await;
            });
            Some(streamed(&[("content-type", "text/event-stream")], parts))
        })
        .await;
        let url = upstream.url();
        let gateway = Gateway::start(&format!(
            "backends:
  - {{name: ai, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: web, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: ai, matches: [{{path: {{prefix: /v1/chat}}}}], backendRefs: [{{name: ai}}]}}
  - {{name: web, matches: [{{path: {{prefix: /v1/completions}}}}], backendRefs: [{{name: web}}]}}
"
        ))
        .await;
        for path in ["/v1/chat/completions", "/v1/completions"] {
            let answer =
                gateway.client().post(path, &[], r#"{"model":"m","messages":[],"prompt":"x","stream":true}"#).await;
            let text = answer.text();
            let last = text.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap();
            let error: serde_json::Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("{size} {path}: {e}"));
            assert_eq!(error["error"]["code"], "upstream_reset", "{size} {path}");
            assert!(text.ends_with("\n\n") && text.starts_with("data: {\"choices\""));
        }
    }
}

#[tokio::test]
async fn a_compressed_stream_that_dies_is_cut_and_gets_no_event_in_plain_text() {
    // A whole event: one that dies before is none of this client's, and the request may go elsewhere.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(b"data: {\"choices\":[{\"delta\":{\"content\":\"x\"}}]}\n\n").unwrap();
    encoder.flush().unwrap();
    let begun = Bytes::copy_from_slice(encoder.get_ref());
    let beginning = begun.clone();
    let upstream = Upstream::start(move |_| {
        let begun = begun.clone();
        async move {
            let (send, parts) = mpsc::channel(2);
            tokio::spawn(async move {
                let _ = send.send(Ok(begun)).await;
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                let _ = send.send(Err(std::io::Error::other("dies"))).await;
            });
            Some(streamed(&[("content-type", "text/event-stream"), ("content-encoding", "gzip")], parts))
        }
    })
    .await;
    let gateway = Gateway::start(&both(&upstream, "")).await;
    let answer = gateway.client().post("/held", &[], "{}").await;
    assert!(answer.cut && answer.body == beginning, "{:?}", answer.body);
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
