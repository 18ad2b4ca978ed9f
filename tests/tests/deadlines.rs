//! Deadlines: every wait of a request is bounded, on both sides, and invalid answers are refused.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use spillway_tests::{Authority, Gateway, Upstream, eventually, head_of_a_request, raw, streamed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Far above the second that requests have here and far below the minute that a server may be silent.
const SOON: Duration = Duration::from_secs(30);

/// Server that reads a head and answers with these bytes.
async fn says(text: &'static str) -> String {
    raw(move |mut stream| async move {
        head_of_a_request(&mut stream).await;
        let _ = stream.write_all(text.as_bytes()).await;
        // Time for the bytes to be read before the end of the connection.
        tokio::time::sleep(Duration::from_millis(50)).await;
    })
    .await
}

/// Returns all bytes of the answer to a `GET` on a connection of its own.
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
    let deaf = deaf().await;
    for limit in ["timeouts: {request: 1s}", "timeouts: {backendRequest: 1s}, retry: {attempts: 0}"] {
        let gateway = Gateway::start(&to(&deaf, &format!("limits: {{maxBody: 64MiB}}, {limit}"))).await;
        let client = gateway.client();
        // With a length known beforehand, and in chunks.
        let chunk = Bytes::from(vec![b'x'; 1 << 20]);
        for request in [client.request("POST", "/", &[], long()), client.chunked("/", &[], vec![chunk.clone(); 32])] {
            let began = Instant::now();
            let answer = tokio::time::timeout(SOON, client.try_send(request)).await.expect("an end");
            // A client that is still writing may see the connection closed before it sees the answer.
            if let Ok(answer) = answer {
                assert!(answer.status.is_server_error(), "{limit}: {}", answer.status);
            }
            assert!(began.elapsed() < SOON, "{limit}");
        }
        is_let_go(&gateway, &deaf).await;
    }
}

/// Body larger than the buffers of both sockets.
fn long() -> Vec<u8> {
    vec![b'x'; 32 << 20]
}

async fn deaf() -> String {
    raw(|stream| async move {
        let _kept = stream;
        std::future::pending::<()>().await;
    })
    .await
}

async fn is_let_go(gateway: &Gateway, url: &str) {
    eventually("no slot is held", || async { (gateway.endpoint(url).await["inFlight"] == 0).then_some(()) }).await;
}

#[tokio::test]
async fn a_server_that_stops_reading_is_left_for_another_after_its_idle_time_and_blamed() {
    let (deaf, good) = (deaf().await, Upstream::digest().await);
    let gateway = Gateway::start(&format!(
        "backends:
  - name: x
    protocol: openai
    endpoints: [{{url: \"{deaf}\"}}, {{url: \"{}\", priority: 1}}]
    timeouts: {{idle: 1s}}
    outlierDetection: {{consecutiveErrors: 1}}
routes: [{{name: r, backendRefs: [{{name: x}}], retry: {{on: [\"504\"]}}, limits: {{maxBody: 64MiB}}}}]
",
        good.url()
    ))
    .await;
    let client = gateway.client();
    let answered = tokio::time::timeout(SOON, client.post("/v1/other", &[], long())).await.expect("an answer");
    assert_eq!((answered.status.as_u16(), answered.text()), (200, spillway_tests::digest(&long())));
    is_let_go(&gateway, &deaf).await;
    let shown = gateway.endpoint(&deaf).await;
    assert_eq!((&shown["ejections"], &shown["attempts"]["failed"]), (&1.into(), &1.into()), "{shown}");
}

#[tokio::test]
async fn a_server_that_stops_reading_is_no_reason_to_answer_later_than_the_request_may_last() {
    let deaf = deaf().await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{deaf}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}], timeouts: {{request: 3s}}, limits: {{maxBody: 64MiB}}}}]
"
    ))
    .await;
    let client = gateway.client();
    let answer = tokio::time::timeout(SOON, client.post("/v1/other", &[], long())).await.expect("an answer");
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (504, &"request_timeout".into()));
    is_let_go(&gateway, &deaf).await;
    assert_eq!(gateway.endpoint(&deaf).await["attempts"]["failed"], 1);
}

#[tokio::test]
async fn a_server_behind_tls_that_does_not_read_cannot_keep_its_connection_from_being_closed() {
    let authority = Authority::default();
    let acceptor = authority.server(&["deaf.test"]).acceptor(None, &["http/1.1"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            kept.push(acceptor.accept(stream).await.unwrap());
        }
    });
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path());
    let gateway = Gateway::start_in(
        folder,
        &format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: x, endpoints: [{{url: \"{url}\"}}], tls: {{sni: deaf.test, caFile: ca.pem}}}}]
routes: [{{name: r, backendRefs: [{{name: x}}], timeouts: {{request: 3s}}, limits: {{maxBody: 64MiB}}}}]
"
        ),
    )
    .await;
    let client = gateway.client();
    let asked = tokio::spawn(async move { client.try_send(client.request("POST", "/", &[], long())).await });
    eventually("it is asked", || async { (gateway.endpoint(&url).await["inFlight"] == 1).then_some(()) }).await;
    let freed = async {
        while gateway.endpoint(&url).await["inFlight"] != 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(SOON, freed).await.expect("its slot is given back");
    assert_eq!(gateway.endpoint(&url).await["connections"], 0);
    // A client that is still writing may see the connection closed before it sees the answer.
    if let Ok(answer) = tokio::time::timeout(SOON, asked).await.expect("an end").unwrap() {
        assert_eq!(answer.status, 504);
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
    // The following bytes belong to the other protocol, whatever they look like.
    for after in ["bytes", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nbytes"] {
        let head = "HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n";
        let url = says(Box::leak(format!("{head}{after}").into_boxed_str())).await;
        let gateway = Gateway::start(&to(&url, "retry: {attempts: 0}")).await;
        let answer = bytes_of(&gateway).await;
        assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
        assert!(!answer.contains("bytes"), "{answer}");
    }
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
async fn a_connection_with_half_a_request_on_it_carries_no_other() {
    // Bytes of each connection: the server answers every head at once and takes all that follows for its body.
    let came: Arc<Mutex<Vec<String>>> = Arc::default();
    let log = came.clone();
    let url = raw(move |mut stream| {
        let log = log.clone();
        async move {
            head_of_a_request(&mut stream).await;
            let place = {
                let mut log = log.lock().unwrap();
                log.push(String::new());
                log.len() - 1
            };
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = stream.read(&mut buffer).await {
                log.lock().unwrap()[place].push_str(&String::from_utf8_lossy(&buffer[..count]));
            }
        }
    })
    .await;
    let gateway = Gateway::start(&to(&url, "retry: {attempts: 0}")).await;
    let mut client = TcpStream::connect(gateway.address).await.unwrap();
    client.write_all(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nhalf").await.unwrap();
    let mut answer = [0; 12];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    is_let_go(&gateway, &url).await;
    let second = tokio::time::timeout(SOON, gateway.client().get("/second")).await.expect("an answer");
    assert_eq!((second.status.as_u16(), second.text().as_str()), (200, "ok"));
    let came = came.lock().unwrap().clone();
    assert_eq!(came.len(), 2, "{came:?}");
    assert!(came.iter().all(|bytes| !bytes.contains("HTTP/1.1")), "{came:?}");
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
async fn an_answer_that_never_ends_is_cut_when_its_request_must_and_its_server_is_not_blamed() {
    let endless = Upstream::start(|_| async {
        let (send, parts) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            while send.send(Ok(Bytes::from_static(b"x"))).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Some(streamed(&[], parts))
    })
    .await;
    let url = endless.url();
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{url}\"}}], outlierDetection: {{consecutiveErrors: 1, maxEjected: 1}}}}]
routes: [{{name: r, backendRefs: [{{name: x}}], timeouts: {{request: 2s}}}}]
"
    ))
    .await;
    let answer = tokio::time::timeout(SOON, gateway.client().get("/")).await.expect("an end");
    assert!(answer.status == 200 && answer.cut && answer.body.starts_with(b"x"), "{answer:?}");
    is_let_go(&gateway, &url).await;
    assert_eq!(gateway.endpoint(&url).await["ejections"], 0);
}

#[tokio::test]
async fn the_time_of_a_server_begins_when_it_has_the_request() {
    let server = Upstream::digest().await;
    let url = server.url();
    let gateway = Gateway::start(&format!(
        "backends:
  - name: x
    endpoints: [{{url: \"{url}\"}}]
    timeouts: {{firstByte: 1s}}
    outlierDetection: {{consecutiveErrors: 1, maxEjected: 1}}
routes:
  - {{name: r, backendRefs: [{{name: x}}]}}
  - {{name: s, matches: [{{path: {{prefix: /short}}}}], backendRefs: [{{name: x}}], timeouts: {{backendRequest: 1s}}}}
"
    ))
    .await;
    let begin = async |path: &str| {
        let mut client = TcpStream::connect(gateway.address).await.unwrap();
        let head = format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 8\r\n\r\nhalf");
        client.write_all(head.as_bytes()).await.unwrap();
        client
    };
    let end = async |mut client: TcpStream| {
        let mut answer = Vec::new();
        tokio::time::timeout(SOON, client.read_to_end(&mut answer)).await.expect("an answer").unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    let mut slow = begin("/").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    slow.write_all(b"half").await.unwrap();
    let answer = end(slow).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(&spillway_tests::digest(b"halfhalf")), "{answer}");
    // A client that still owes part of its request when the attempt times out has exceeded its own time.
    let answer = end(begin("/short").await).await;
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    is_let_go(&gateway, &url).await;
    let shown = gateway.endpoint(&url).await;
    assert_eq!((&shown["ejections"], &shown["attempts"]["client_slow"]), (&0.into(), &1.into()), "{shown}");
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

/// What a filter asks another server for is given up at the deadline of the request, and when the client has left.
#[tokio::test]
async fn a_request_for_which_a_filter_waits_ends_at_its_deadline_and_with_its_client() {
    let (silent, server) = (deaf().await, Upstream::fixed(200, "x").await);
    let asks = |route: &str| {
        let filter = format!("filters: [{{externalAuthorization: {{url: \"{silent}\", timeout: 10s}}}}]");
        to(&server.url(), &format!("{filter}, {route}"))
    };
    let gateway = Gateway::start(&asks("timeouts: {request: 1s}")).await;
    for request in [gateway.client().request("GET", "/", &[], ""), gateway.client().request("POST", "/", &[], "body")] {
        let answer = gateway.client().send(request).await;
        assert_eq!((answer.status.as_u16(), answer.json()["code"].as_str().unwrap()), (504, "request_timeout"));
    }

    let gateway = Gateway::start(&asks("timeouts: {request: 60s}")).await;
    for request in ["GET / HTTP/1.1\r\nhost: x\r\n\r\n", "POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nhalf"]
    {
        let before = gateway.events("access").len();
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        eventually("it waits", || async {
            (gateway.metric("spillway_requests_in_flight{http_route=\"r\"}").await >= 1.0).then_some(())
        })
        .await;
        drop(stream);
        let left = eventually("it has ended", || async { gateway.events("access").get(before).cloned() }).await;
        assert_eq!(left["status"], 499, "{left}");
    }
    assert_eq!(server.count(), 0);
}
