//! Framing of answers: one length or chunks, whole or not at all, and nothing that the version of the client does not know.

use std::sync::Arc;

use spillway_tests::{Gateway, PATIENCE, Upstream, head_of_a_request, raw, reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;

fn to(url: &str) -> String {
    format!(
        "backends: [{{name: x, endpoints: [{{url: \"{url}\"}}], outlierDetection: {{consecutiveErrors: 1000, errorRate: 0}}}}]
routes: [{{name: r, backendRefs: [{{name: x}}], retry: {{attempts: 0}}}}]
"
    )
}

/// Sends bytes and returns all bytes up to the end of the connection.
async fn exchange(gateway: &Gateway, bytes: &str) -> String {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(bytes.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut all)).await.expect("the connection ends").unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

/// True once there is another request on a connection, false at its end.
async fn asks(stream: &TcpStream) -> bool {
    matches!(stream.peek(&mut [0]).await, Ok(1..))
}

/// Values of a header of the first answer in these bytes.
fn values(answer: &str, name: &str) -> Vec<String> {
    let head = answer.split("\r\n\r\n").next().unwrap();
    let fields = head.lines().skip(1).filter_map(|line| line.split_once(": "));
    fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned()).collect()
}

#[tokio::test]
async fn head_tells_the_length_that_get_has_or_none_and_the_connection_goes_on() {
    let upstream = Upstream::start(|seen| async move {
        let (status, kind) = if seen.path.ends_with("/missing") { (404, "text/html") } else { (200, "text/plain") };
        Some(reply(status, &[("content-type", kind)], "twelve bytes"))
    })
    .await;
    let url = upstream.url();
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: web, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: ai, protocol: openai, model: m, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: ai, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: ai}}]}}
  - {{name: web, matches: [{{path: {{prefix: /web}}}}], backendRefs: [{{name: web}}]}}
  - name: moved
    matches: [{{path: {{prefix: /moved}}}}]
    filters: [{{redirect: {{hostname: other.test}}}}]
    backendRefs: [{{name: web}}]
"
    ))
    .await;
    for path in ["/web/a", "/web/missing", "/v1/models", "/v1/models/m", "/v1/models/none", "/nowhere", "/moved"] {
        let ask = |method: &str| {
            format!(
                "{method} {path} HTTP/1.1\r\nhost: a\r\n\r\nGET /web/next HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
            )
        };
        let (get, head) = (exchange(&gateway, &ask("GET")).await, exchange(&gateway, &ask("HEAD")).await);
        assert_eq!(get.lines().next(), head.lines().next(), "{path}");
        let (of_get, of_head) = (values(&get, "content-length"), values(&head, "content-length"));
        assert!(of_head.is_empty() || of_head == of_get, "{path}: {of_get:?} and {of_head:?}");
        let (_, behind) = head.split_once("\r\n\r\n").unwrap();
        assert!(behind.starts_with("HTTP/1.1 200") && behind.ends_with("twelve bytes"), "{path}: {head}");
    }
}

#[tokio::test]
async fn an_answer_that_is_framed_in_two_ways_is_passed_whole_or_refused() {
    for (head, body, status) in [
        ("content-length: 5\r\ntransfer-encoding: chunked", "b\r\nhello world\r\n0\r\n\r\n", "200"),
        ("transfer-encoding: chunked\r\ncontent-length: 500", "b\r\nhello world\r\n0\r\n\r\n", "200"),
        ("transfer-encoding: Chunked", "b\r\nhello world\r\n0\r\n\r\n", "200"),
        ("content-length: 11\r\ncontent-length: 11", "hello world", "200"),
        ("content-length: 11, 11", "hello world", "200"),
        ("content-length: 11", "hello world", "200"),
        ("content-length: 5\r\ncontent-length: 11", "hello world", "503"),
        ("content-length: 5, 11", "hello world", "503"),
        ("content-length: +11", "hello world", "503"),
        ("content-length: 0x0b", "hello world", "503"),
        ("transfer-encoding: gzip, chunked", "b\r\nhello world\r\n0\r\n\r\n", "503"),
        ("transfer-encoding: gzip\r\ntransfer-encoding: chunked", "b\r\nhello world\r\n0\r\n\r\n", "503"),
        ("transfer-encoding: identity", "hello world", "503"),
        ("transfer-encoding: gzip", "hello world", "503"),
    ] {
        let url = raw(move |mut stream| async move {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n{head}\r\n\r\n{body}");
            // The end of the connection is not what ends the body.
            while asks(&stream).await {
                head_of_a_request(&mut stream).await;
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        })
        .await;
        let gateway = Gateway::start(&to(&url)).await;
        for request in ["GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", "GET / HTTP/1.0\r\nhost: a\r\n\r\n"] {
            let answer = exchange(&gateway, request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
            let (lengths, codings) = (values(&answer, "content-length"), values(&answer, "transfer-encoding"));
            assert!(lengths.len() + codings.len() <= 1, "{head}: {answer}");
            if status == "200" {
                assert!(answer.contains("hello world"), "{head}: {answer}");
                assert!(lengths.is_empty() || lengths == ["11"], "{head}: {answer}");
            }
        }
    }
}

#[tokio::test]
async fn a_part_of_an_answer_with_a_length_arrives_while_its_server_pauses() {
    let go = Arc::new(Notify::new());
    let goes = go.clone();
    let url = raw(move |mut stream| {
        let goes = goes.clone();
        async move {
            head_of_a_request(&mut stream).await;
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 15\r\n\r\n";
            let _ = stream.write_all(format!("{head}first").as_bytes()).await;
            goes.notified().await;
            let _ = stream.write_all(b"other").await;
            goes.notified().await;
            let _ = stream.write_all(b"third").await;
            let _ = stream.read(&mut [0]).await;
        }
    })
    .await;
    let gateway = Gateway::start(&to(&url)).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    for part in ["first", "other", "third"] {
        let mut byte = [0];
        // The server goes on only when the client has this part.
        while !all.ends_with(part.as_bytes()) {
            let read = tokio::time::timeout(PATIENCE, client.read_exact(&mut byte)).await;
            read.unwrap_or_else(|_| panic!("{part} does not come")).unwrap();
            all.push(byte[0]);
        }
        go.notify_one();
    }
}

#[tokio::test]
async fn a_client_of_http_1_0_gets_no_early_answers_and_no_chunks() {
    let url = raw(|mut stream| async move {
        let early = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n";
        let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n5\r\nhello\r\n0\r\nx-end: 1\r\n\r\n";
        while asks(&stream).await {
            head_of_a_request(&mut stream).await;
            let _ = stream.write_all(format!("{early}{answer}").as_bytes()).await;
        }
    })
    .await;
    let gateway = Gateway::start(&to(&url)).await;
    for request in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\nhost: a\r\nconnection: keep-alive\r\nte: trailers\r\n\r\n",
        "POST / HTTP/1.0\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
    ] {
        let answer = exchange(&gateway, request).await;
        assert!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"), "{request}: {answer}");
        assert!(answer.ends_with("\r\n\r\nhello"), "{request}: {answer}");
        assert!(values(&answer, "transfer-encoding").is_empty() && values(&answer, "trailer").is_empty(), "{answer}");
        assert_eq!(values(&answer, "connection"), ["close"], "the end of the connection is that of the body: {answer}");
    }
}

#[tokio::test]
async fn http2_on_a_listener_of_http1_is_refused_in_words() {
    let upstream = Upstream::fixed(200, "reached").await;
    let gateway = Gateway::start(&to(&upstream.url())).await;
    for begin in
        ["PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/2.0\r\nhost: a\r\n\r\n", "GET / HTTP/1.2\r\nhost: a\r\n\r\n"]
    {
        let answer = exchange(&gateway, begin).await;
        assert!(answer.starts_with("HTTP/1.1 505 ") && answer.contains("protocol: h2c"), "{begin}: {answer}");
        assert!(answer.contains("unsupported_http_version"), "{begin}: {answer}");
    }
    let answer = exchange(&gateway, "GET / NONSENSE\r\nhost: a\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert_eq!(upstream.count(), 0);
}
