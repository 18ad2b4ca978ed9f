//! Filter `compression`: clients get what they accept, whoever answers, and pay the same.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{Client, Gateway, Upstream, decoded, encoded, model, new_key, reply, streamed};

const CODINGS: [&str; 3] = ["zstd", "br", "gzip"];

fn page() -> String {
    (0..2_000).map(|n| format!("<p>paragraph {n}</p>\n")).collect()
}

async fn server() -> Upstream {
    Upstream::start(|seen| async move {
        let html = [("content-type", "text/html"), ("etag", "\"one\""), ("accept-ranges", "bytes")];
        Some(match &*seen.path {
            "/small" => reply(200, &html, "small"),
            "/picture" => reply(200, &[("content-type", "image/png")], page()),
            "/encoded" => reply(
                200,
                &[("content-type", "text/html"), ("content-encoding", "br")],
                encoded("br", page().as_bytes()),
            ),
            "/kept" => reply(200, &[html[0], ("cache-control", "no-transform")], page()),
            "/part" => reply(206, &[html[0], ("content-range", "bytes 0-49999/90000")], vec![b'x'; 50_000]),
            "/same" => reply(304, &[("etag", "\"one\"")], ""),
            "/none" => reply(204, &[], ""),
            "/error" => reply(500, &html, page()),
            _ => reply(200, &html, page()),
        })
    })
    .await
}

fn yaml(server: &Upstream, more: &str) -> String {
    format!(
        "listeners: [{{name: l, address: \"127.0.0.1:0\"}}, {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}]
backends: [{{name: web, endpoints: [{{url: \"{}\"}}]}}]
routes:
{more}
  - name: own
    matches: [{{path: {{prefix: /own}}}}]
    filters: [{{compression: {{minLength: 0B}}}}, {{respond: {{body: \"{}\"}}}}]
  - name: plain
    matches: [{{path: {{prefix: /plain}}}}]
    backendRefs: [{{name: web}}]
  - name: web
    filters: [{{compression: {{}}}}]
    backendRefs: [{{name: web}}]
",
        server.url(),
        "own ".repeat(100)
    )
}

async fn get(client: &Client, method: &str, path: &str, accepts: &str) -> spillway_tests::Answer {
    client.send(client.request(method, path, &[("accept-encoding", accepts)], "")).await
}

#[tokio::test]
async fn a_client_gets_a_coding_that_it_accepts() {
    let server = server().await;
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(&server, "")).await;
    let client = gateway.client();
    for coding in CODINGS {
        for (path, status, text) in [("/", 200, page()), ("/own", 200, "own ".repeat(100)), ("/error", 500, page())] {
            let got = get(&client, "GET", path, coding).await;
            assert_eq!((got.status.as_u16(), got.header("content-encoding")), (status, coding), "{path}");
            assert!(got.body.len() * 3 < text.len(), "{} bytes", got.body.len());
            assert_eq!(decoded(coding, &got.body), text.as_bytes());
            assert_eq!((got.header("content-length"), got.header("accept-ranges")), ("", ""));
            assert_eq!(got.header("vary"), "accept-encoding");
            assert_eq!(got.header("etag"), if path == "/own" { "" } else { "W/\"one\"" });
        }
        let got = get(&client, "GET", "/plain", coding).await;
        assert_eq!((got.header("content-encoding"), got.header("vary")), ("", ""));
        let head = get(&client, "HEAD", "/", coding).await;
        assert_eq!((head.header("content-encoding"), head.header("content-length")), (coding, ""));
    }
    for accepts in ["", "identity", "gzip;q=0", "deflate"] {
        let got = get(&client, "GET", "/", accepts).await;
        assert_eq!((got.header("content-encoding"), got.header("vary")), ("", "accept-encoding"), "{accepts}");
        assert_eq!((got.header("etag"), got.text()), ("\"one\"", page()));
    }
    let bytes = gateway.metric("spillway_filter_compression_bytes_total{http_route=\"web\",form=\"plain\"}").await;
    assert_eq!(bytes, 6.0 * page().len() as f64);
    for coding in CODINGS {
        let series = format!("spillway_filter_compression_answers_total{{http_route=\"web\",coding=\"{coding}\"}}");
        assert_eq!(gateway.metric(&series).await, 2.0);
    }
}

#[tokio::test]
async fn answers_that_gain_nothing_or_may_not_be_changed_pass_as_they_are() {
    let server = server().await;
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(&server, "")).await;
    let client = gateway.client();
    let length = page().len().to_string();
    for (path, encoding, content_length, vary) in [
        ("/small", "", "5", ""),
        ("/picture", "", &*length, ""),
        ("/kept", "", &*length, ""),
        ("/part", "", "50000", ""),
        ("/same", "", "", "accept-encoding"),
        ("/none", "", "", ""),
    ] {
        let got = get(&client, "GET", path, "gzip, br, zstd").await;
        let fields = (got.header("content-encoding"), got.header("content-length"), got.header("vary"));
        assert_eq!(fields, (encoding, content_length, vary), "{path}");
    }
    let got = get(&client, "GET", "/encoded", "gzip, br").await;
    assert_eq!((got.header("content-encoding"), decoded("br", &got.body)), ("br", page().into_bytes()));
}

#[tokio::test]
async fn nothing_of_an_answer_shows_in_the_next_one_of_its_connection() {
    let server = server().await;
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(&server, "")).await;
    let stream = tokio::net::TcpStream::connect(gateway.listener("l")).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for (path, encoding) in
        [("/", "gzip"), ("/plain", ""), ("/small", ""), ("/", "gzip"), ("/none", ""), ("/own", "gzip")]
    {
        let request = http::Request::get(path).header("host", "x").header("accept-encoding", "gzip");
        let answer = sender.send_request(request.body(http_body_util::Empty::<Bytes>::new()).unwrap()).await.unwrap();
        let named = answer.headers().get("content-encoding").map_or("", |value| value.to_str().unwrap()).to_owned();
        assert_eq!(named, encoding, "{path}");
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        let expected = match path {
            "/own" => "own ".repeat(100),
            "/small" => "small".to_owned(),
            "/none" => String::new(),
            _ => page(),
        };
        assert_eq!(decoded(&named, &body), expected.as_bytes(), "{path}");
    }
}

#[tokio::test]
async fn http2_has_it_too() {
    let server = Upstream::start_http2(|_| async {
        let (parts, receiver) = tokio::sync::mpsc::channel(4);
        tokio::spawn(async move {
            for _ in 0..3 {
                parts.send(Ok(Bytes::from(page()))).await.unwrap();
            }
        });
        Some(streamed(&[("content-type", "text/html")], receiver))
    })
    .await;
    let yaml = yaml(&server, "").replace("endpoints:", "http2: true, endpoints:");
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let stream = tokio::net::TcpStream::connect(gateway.listener("h2c")).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for coding in CODINGS {
        let request = http::Request::get("http://x/").header("accept-encoding", coding).body(()).unwrap();
        let answer = sender.send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(answer.headers()["content-encoding"], coding);
        assert!(!answer.headers().contains_key("transfer-encoding"));
        let (mut body, mut bytes) = (answer.into_body(), Vec::new());
        while let Some(part) = body.data().await {
            let part = part.unwrap();
            body.flow_control().release_capacity(part.len()).unwrap();
            bytes.extend_from_slice(&part);
        }
        assert_eq!(decoded(coding, &bytes), page().repeat(3).as_bytes());
    }
}

#[tokio::test]
async fn streams_are_compressed_only_where_asked_and_each_event_comes_at_once() {
    let (parts, receiver) = tokio::sync::mpsc::channel(4);
    let receiver = std::sync::Arc::new(tokio::sync::Mutex::new(Some(receiver)));
    let server = Upstream::start(move |_| {
        let receiver = receiver.clone();
        async move {
            let events = [("content-type", "text/event-stream")];
            Some(match receiver.lock().await.take() {
                Some(receiver) => streamed(&events, receiver),
                None => reply(200, &events, "data: rest\n\n".repeat(500)),
            })
        }
    })
    .await;
    let asked = "  - {name: asked, matches: [{path: {prefix: /asked}}], filters: [{compression: {streams: true, codings: [gzip]}}], backendRefs: [{name: web}]}";
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(&server, asked)).await;
    let client = gateway.client();
    let mut stream = client.stream(client.request("GET", "/asked", &[("accept-encoding", "gzip")], "")).await.unwrap();
    assert_eq!(stream.headers["content-encoding"], "gzip");
    let (mut came, mut sent) = (Vec::new(), String::new());
    for n in 0..20 {
        let event = format!("data: {n}\n\n");
        sent.push_str(&event);
        parts.send(Ok(Bytes::from(event))).await.unwrap();
        // The next event is sent once this one is here.
        while decoded("gzip", &came) != sent.as_bytes() {
            let part = tokio::time::timeout(Duration::from_secs(20), stream.part()).await.expect("the event comes");
            came.extend_from_slice(&part.unwrap().unwrap());
        }
    }
    drop(parts);
    while let Some(part) = stream.part().await {
        came.extend_from_slice(&part.unwrap());
    }
    let mut whole = flate2::write::GzDecoder::new(Vec::new());
    std::io::Write::write_all(&mut whole, &came).unwrap();
    assert_eq!(whole.finish().unwrap(), sent.as_bytes(), "the end is there");
    let got = get(&client, "GET", "/", "gzip").await;
    assert_eq!((got.header("content-encoding"), got.text()), ("", "data: rest\n\n".repeat(500)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_built_in_model_answers_compressed_and_every_coding_costs_the_same() {
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], limits: {{budget: {{tokens: 100000, per: day}}}}}}]
models: [{{name: smollm2, source: \"{}\", contextLength: 256}}]
routes:
  - name: chat
    filters: [{{compression: {{minLength: 0B, streams: true}}}}]
    backendRefs: [{{model: smollm2}}]
",
        model().display()
    ))
    .await;
    let client = gateway.client();
    let (bearer, mut costs, mut texts, mut before) = (format!("Bearer {key}"), Vec::new(), Vec::new(), 0.0);
    for coding in ["identity", "zstd", "br", "gzip"] {
        for stream in [false, true] {
            let body = json!({"model": "smollm2", "temperature": 0, "max_tokens": 12, "stream": stream, "messages": [{"role": "user", "content": "Say hello."}]});
            let headers = [("authorization", &*bearer), ("accept-encoding", coding)];
            let got = client.post("/v1/chat/completions", &headers, body.to_string()).await;
            assert_eq!(got.header("content-encoding"), if coding == "identity" { "" } else { coding });
            let text = String::from_utf8(decoded(coding, &got.body)).unwrap();
            texts.push(if stream { content_of_stream(&text) } else { content(&serde_json::from_str(&text).unwrap()) });
            gateway.metric_becomes("spillway_requests_in_flight{http_route=\"chat\"}", 0.0).await;
            let spent =
                gateway.metric("spillway_budget_spent{budget=\"consumer acme\",per=\"day\",unit=\"tokens\"}").await;
            costs.push(spent - before);
            before = spent;
        }
    }
    assert!(!texts[0].is_empty() && texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    assert!(costs[0] > 0.0 && costs.iter().all(|cost| *cost == costs[0]), "{costs:?}");
}

fn content(answer: &Value) -> String {
    answer["choices"][0]["message"]["content"].as_str().unwrap_or_default().to_owned()
}

fn content_of_stream(stream: &str) -> String {
    let events = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    let delta = |data: &str| {
        serde_json::from_str::<Value>(data).ok()?["choices"][0]["delta"]["content"].as_str().map(str::to_owned)
    };
    events.filter_map(delta).collect()
}
