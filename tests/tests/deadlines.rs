//! The promise: every wait of a request has an end, on both sides, and answers that are none are refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "tests"
)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use spillway_tests::{Gateway, Upstream, eventually, head_of_a_request, raw, streamed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Far above the second that requests have here and far below the minute that a server may be silent.
const SOON: Duration = Duration::from_secs(30);

/// A server that reads a head and answers with these bytes.
async fn says(text: &'static str) -> String {
    raw(move |mut stream| async move {
        head_of_a_request(&mut stream).await;
        let _ = stream.write_all(text.as_bytes()).await;
        // What is written is read before the end is seen.
        tokio::time::sleep(Duration::from_millis(50)).await;
    })
    .await
}

/// All bytes of the answer to a `GET` on a connection of its own.
async fn bytes_of(gateway: &Gateway) -> String {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    String::from_utf8_lossy(&all).into_owned()
}

fn to(url: &str, route: &str) -> String {
    format!(
        "backends: [{{name: x, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}], {route}}}]
"
    )
}

#[tokio::test]
async fn a_server_that_does_not_read_holds_a_request_no_longer_than_it_may_last() {
    let deaf = raw(|stream| async move {
        let _kept = stream;
        std::future::pending::<()>().await;
    })
    .await;
    for limit in ["timeouts: {request: 1s}", "timeouts: {backendRequest: 1s}, retry: {attempts: 0}"] {
        let gateway = Gateway::start(&to(&deaf, &format!("limits: {{maxBody: 64MiB}}, {limit}"))).await;
        let client = gateway.client();
        // More than the buffers of both sockets take, known beforehand and in chunks.
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        for request in
            [client.request("POST", "/", &[], vec![b'x'; 32 << 20]), client.chunked("/", &[], vec![chunk.clone(); 32])]
        {
            let began = Instant::now();
            let answer = tokio::time::timeout(SOON, client.try_send(request)).await.expect("an end");
            // A client that still writes may see the connection closed before it sees the answer.
            if let Ok(answer) = answer {
                assert!(answer.status.is_server_error(), "{limit}: {}", answer.status);
            }
            assert!(began.elapsed() < SOON, "{limit}");
        }
        let url = deaf.clone();
        eventually("no slot is held", || async { (gateway.endpoint(&url).await["inFlight"] == 0).then_some(()) }).await;
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_a_slot_no_longer_than_its_request_may_last() {
    let endless = Upstream::start(|_| async {
        let (send, parts) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let part = Bytes::from(vec![b'x'; 64 << 10]);
            while send.send(Ok(part.clone())).await.is_ok() {}
        });
        Some(streamed(&[], parts))
    })
    .await;
    let gateway = Gateway::start(&to(&endless.url(), "timeouts: {request: 1s}")).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    eventually("it is asked", || async { (endless.count() == 1).then_some(()) }).await;
    let freed = async {
        while gateway.endpoint(&endless.url()).await["inFlight"] != 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, freed).await.expect("its slot is given back");
    drop(client);
}

#[tokio::test]
async fn a_change_of_protocol_that_nobody_asked_for_is_no_answer() {
    let url = says("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\nbytes").await;
    let gateway = Gateway::start(&to(&url, "retry: {attempts: 0}")).await;
    let answer = bytes_of(&gateway).await;
    assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
    assert!(!answer.contains("bytes"), "{answer}");
}

#[tokio::test]
async fn of_early_answers_hints_are_passed_on_and_a_server_that_sends_nothing_else_is_left() {
    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nconnection: x-own\r\n\r\n";
    let url = says(concat!(
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\nconnection: x-own\r\n\r\n",
        "HTTP/1.1 102 Processing\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    ))
    .await;
    let gateway = Gateway::start(&to(&url, "retry: {attempts: 0}")).await;
    let answer = bytes_of(&gateway).await;
    let heads: Vec<&str> = answer.lines().filter(|line| line.starts_with("HTTP/")).collect();
    assert_eq!(heads.len(), 2, "{answer}");
    assert!(heads[0].contains("103") && heads[1].contains("200") && answer.contains("</a.css>"), "{answer}");
    assert!(answer.ends_with("ok") && !answer.to_lowercase().contains("x-own"), "{answer}");
    for (count, status) in [(16, " 200"), (17, " 50")] {
        let url =
            says(Box::leak((HINT.repeat(count) + "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").into_boxed_str()));
        let gateway = Gateway::start(&to(&url.await, "retry: {attempts: 0}")).await;
        let answer = bytes_of(&gateway).await;
        let last = answer.lines().rfind(|line| line.starts_with("HTTP/")).unwrap();
        assert!(last.contains(status), "{count}: {answer}");
    }
}

#[tokio::test]
async fn an_answer_without_a_body_says_no_length() {
    let url = says("HTTP/1.1 204 No Content\r\ncontent-length: 0\r\nx-mine: 1\r\n\r\n").await;
    let gateway = Gateway::start(&to(&url, "retry: {attempts: 0}")).await;
    let answer = bytes_of(&gateway).await.to_lowercase();
    assert!(answer.starts_with("http/1.1 204") && answer.contains("x-mine"), "{answer}");
    assert!(!answer.contains("content-length") && !answer.contains("transfer-encoding"), "{answer}");
}

#[tokio::test]
async fn a_client_that_stops_sending_is_told_so_and_its_server_is_not_blamed() {
    let server = Upstream::digest().await;
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start_in(
        folder,
        &format!(
            "listeners: [{{address: \"127.0.0.1:0\", limits: {{bodyTimeout: 500ms}}}}]
backends:
  - {{name: x, endpoints: [{{url: \"{url}\"}}], outlierDetection: {{consecutiveErrors: 1}}}}
  - {{name: y, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: streamed, matches: [{{path: {{prefix: /streamed}}}}], backendRefs: [{{name: x}}]}}
  - {{name: held, matches: [{{path: {{prefix: /held}}}}], backendRefs: [{{name: y}}]}}
",
            url = server.url()
        ),
    )
    .await;
    for path in ["/streamed", "/held"] {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf");
        client.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(SOON, client.read_to_end(&mut answer)).await.expect("an answer").unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{path}: {answer}");
    }
    let count = |outcome: &str| {
        format!("spillway_endpoint_attempts_total{{backend=\"x\",endpoint=\"{}\",outcome=\"{outcome}\"}}", server.url())
    };
    gateway.metric_becomes(&count("client_slow"), 1.0).await;
    gateway.metric_becomes(&count("failed"), 0.0).await;
    assert_eq!(gateway.endpoint(&server.url()).await["ejections"], 0);
}
