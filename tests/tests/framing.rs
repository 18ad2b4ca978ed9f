//! Framing of HTTP/1: a violation of the grammar or of a bound is answered and ends its connection. Memory stays
//! bounded, and no server gets the violation as a whole request.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spillway_tests::{Gateway, PATIENCE, Upstream, eventually, reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

async fn start(limits: &str, backend: &str, url: &str) -> Gateway {
    let yaml = format!(
        "listeners: [{{name: l, address: \"127.0.0.1:0\", limits: {{headerTimeout: 60s, bodyTimeout: 60s{limits}}}}}]
backends: [{{name: up, endpoints: [{{url: \"{url}\"}}]{backend}}}]
routes: [{{name: r, matches: [{{path: {{prefix: /}}}}], backendRefs: [{{name: up}}]}}]
"
    );
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await
}

/// Sends parts, each once the one before was accepted, and returns the answer up to the orderly end of the
/// connection.
async fn ended(gateway: &Gateway, parts: impl IntoIterator<Item = Vec<u8>>) -> String {
    let (mut read, mut write) = TcpStream::connect(gateway.address).await.unwrap().into_split();
    let reading = tokio::spawn(async move {
        let mut answer = Vec::new();
        let result = read.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(result.is_ok(), "reset after {answer:?}");
        answer
    });
    for part in parts {
        if write.write_all(&part).await.is_err() {
            break;
        }
    }
    let answer = tokio::time::timeout(PATIENCE, reading).await.expect("the connection ends").unwrap();
    drop(write);
    answer
}

/// Statuses of successive answers.
fn statuses(answers: &str) -> Vec<&str> {
    answers.match_indices("HTTP/1.1 ").map(|(at, found)| &answers[at + found.len()..][..3]).collect()
}

#[tokio::test]
async fn a_head_is_refused_when_its_bound_is_reached_and_not_when_it_ends() {
    let upstream = Upstream::fixed(200, "reached").await;
    let gateway = start(", maxHeaderBytes: 4KiB", "", &upstream.url()).await;
    let fields: Vec<u8> = (0..40).flat_map(|n| format!("X-{n}: {}\r\n", "a".repeat(100)).into_bytes()).collect();
    for (what, head, status) in [
        ("a field", [&b"GET / HTTP/1.1\r\nHost: a\r\nX: "[..], &[b'a'; 5000]].concat(), "431"),
        ("a name", [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], &[b'a'; 5000]].concat(), "431"),
        ("many fields", [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], &fields].concat(), "431"),
        ("small fields", [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], &b"x:y\r\n".repeat(300)].concat(), "431"),
        ("a target", [&b"GET /"[..], &[b'a'; 5000]].concat(), "414"),
        ("a method", [b'M'; 5000].to_vec(), "414"),
        ("empty lines", b"\r\n".repeat(2500), "414"),
        (
            "trailers",
            [&b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX: "[..], &[b'a'; 5000]].concat(),
            "431",
        ),
    ] {
        // The heads have no end, so that only the bound can end them.
        let answer = ended(&gateway, [head]).await;
        assert_eq!(statuses(&answer), [status], "{what}: {answer}");
        assert!(answer.to_ascii_lowercase().contains("connection: close"), "{what}: {answer}");
    }
    assert_eq!(gateway.client().get("/").await.text(), "reached");
    let refused = gateway.metric("spillway_malformed_requests_total{listener=\"l\",reason=\"header_too_long\"}").await;
    assert_eq!(refused, 3.0);
}

/// Server that answers nothing and records the bytes of each connection, and whether it has ended.
async fn deaf() -> (SocketAddr, Arc<Mutex<Vec<(Vec<u8>, bool)>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(Mutex::new(Vec::new()));
    let seen = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let seen = seen.clone();
            let number = {
                let mut seen = seen.lock().unwrap();
                seen.push((Vec::new(), false));
                seen.len() - 1
            };
            tokio::spawn(async move {
                let mut part = [0; 4096];
                while let Ok(n @ 1..) = stream.read(&mut part).await {
                    seen.lock().unwrap()[number].0.extend_from_slice(&part[..n]);
                }
                seen.lock().unwrap()[number].1 = true;
            });
        }
    });
    (address, connections)
}

/// Chunked bodies that break the grammar after a good first chunk.
const BROKEN: &[&[u8]] = &[
    b"\r\n",
    b"5;a\n",
    b"5;a\x01b\r\nhello\r\n",
    b"5\nhello\r\n",
    b"5 \r\nhello\r\n",
    b"5\r\nhello\n",
    b"5\r\nhello!\r\n",
    b"x\r\n",
    b"10000000000000000\r\n",
    b"0\r\nno colon\r\n\r\n",
    b"0\r\nX : y\r\n\r\n",
    b"0\r\nX: y\n\n",
    b"0\r\n\n",
];

#[tokio::test]
async fn a_streamed_body_that_breaks_its_framing_is_answered_and_never_ends_at_the_server() {
    let (address, connections) = deaf().await;
    let gateway = start("", "", &format!("http://{address}")).await;
    for (number, broken) in BROKEN.iter().enumerate() {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n";
        client.write_all(head).await.unwrap();
        eventually("the first chunk is at the server", || {
            let came = connections.lock().unwrap().get(number).is_some_and(|(read, _)| read.ends_with(b"first\r\n"));
            async move { came.then_some(()) }
        })
        .await;
        client.write_all(broken).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(PATIENCE, client.read_to_string(&mut answer)).await.expect("an answer").unwrap();
        assert_eq!(statuses(&answer), ["400"], "{}: {answer}", broken.escape_ascii());
        eventually("the server's connection ends", || {
            let ended = connections.lock().unwrap()[number].1;
            async move { ended.then_some(()) }
        })
        .await;
        let read = connections.lock().unwrap()[number].0.clone();
        assert!(!read.windows(5).any(|end| end == b"0\r\n\r\n"), "{}: its body has an end", broken.escape_ascii());
    }
}

#[tokio::test]
async fn a_held_body_that_breaks_its_framing_is_answered_and_reaches_no_server() {
    let upstream = Upstream::fixed(200, "reached").await;
    let gateway = start("", ", protocol: openai", &upstream.url()).await;
    for broken in BROKEN {
        let head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n";
        let answer = ended(&gateway, [[&head[..], broken].concat()]).await;
        assert_eq!(statuses(&answer), ["400"], "{}: {answer}", broken.escape_ascii());
        assert!(answer.contains("\"malformed_"), "in the form of the API: {answer}");
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_good_request_before_a_bad_one_is_served_and_the_bad_one_answered() {
    let upstream = Upstream::start(|_| async {
        // Time for the bad one to be read while this one runs.
        tokio::time::sleep(Duration::from_millis(200)).await;
        Some(reply(200, &[], "reached"))
    })
    .await;
    let gateway = start("", "", &upstream.url()).await;
    let good = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello";
    for bad in [
        &b"GET / HTTP/1.1\nHost: a\n\n"[..],
        b"\0\0\0\0",
        b"\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let before = upstream.count();
        let together = ended(&gateway, [[&good[..], bad].concat()]).await;
        assert_eq!(statuses(&together), ["200", "400"], "{}: {together}", bad.escape_ascii());
        let apart = ended(&gateway, [good.to_vec(), bad.to_vec()]).await;
        assert_eq!(statuses(&apart), ["200", "400"], "{}: {apart}", bad.escape_ascii());
        assert_eq!(upstream.count(), before + 2, "{}", bad.escape_ascii());
    }
}

#[tokio::test]
async fn a_client_that_still_sends_gets_its_refusal_whole() {
    let upstream = Upstream::fixed(200, "reached").await;
    let gateway = start(", maxHeaderBytes: 4KiB", "", &upstream.url()).await;
    let more = || std::iter::repeat_n(vec![b'a'; 64 << 10], 16);
    for (begun, status) in [
        (&b"GET /\x01"[..], "400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", "431"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", "400"),
    ] {
        let answer = ended(&gateway, std::iter::once(begun.to_vec()).chain(more())).await;
        assert_eq!(statuses(&answer), [status], "{}: {answer}", begun.escape_ascii());
        assert!(answer.ends_with('}'), "{answer}");
    }
}

#[tokio::test]
async fn what_is_sent_behind_a_running_request_takes_bounded_memory() {
    let (address, connections) = deaf().await;
    let gateway = start("", "", &format!("http://{address}")).await;
    let before = gateway.metric("process_resident_memory_bytes").await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        client.write_all(b"GET /first HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        held.push(client);
    }
    eventually("all of them run", || {
        let running = connections.lock().unwrap().len();
        async move { (running == 8).then_some(()) }
    })
    .await;
    let requests = b"GET /behind HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2000);
    for client in &mut held {
        // Ends when nothing more is accepted.
        let taken = async { while client.write_all(&requests).await.is_ok() {} };
        let _ = tokio::time::timeout(Duration::from_millis(300), taken).await;
    }
    let after = gateway.metric("process_resident_memory_bytes").await;
    assert!(after - before < 8e6, "{before} became {after}");
    assert!(connections.lock().unwrap().iter().all(|(read, _)| !read.windows(7).any(|part| part == b"/behind")));
}
