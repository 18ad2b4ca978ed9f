//! HTTP/2 on both sides behaves like HTTP/1.1: bodies, streams, cancellation, the end of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use spillway_tests::{
    Authority, Frames, Gateway, Made, PATIENCE, Reply, Upstream, digest, eventually, http2_over, reply, streamed,
    whole_answer,
};
use tokio::net::{TcpListener, TcpStream};

fn yaml(backend: &str) -> String {
    format!(
        "listeners:
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c, limits: {{idleTimeout: 5s}}}}
  - {{name: plain, address: \"127.0.0.1:0\", limits: {{writeTimeout: 10m}}}}
backends: [{{name: up, {backend}}}]
routes: [{{name: r, backendRefs: [{{name: up}}], limits: {{maxBody: 21MiB}}}}]
"
    )
}

async fn start(backend: &str) -> Gateway {
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(backend)).await
}

fn endpoint(upstream: &Upstream) -> String {
    format!("endpoints: [{{url: \"{}\"}}]", upstream.url())
}

async fn connect(gateway: &Gateway) -> hyper::client::conn::http2::SendRequest<Full<Bytes>> {
    http2_over(TcpStream::connect(gateway.listener("h2c")).await.unwrap()).await
}

fn request(method: &str, path: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder().method(method).uri(format!("http://a.test{path}")).body(Full::new(body.into())).unwrap()
}

#[tokio::test]
async fn many_requests_of_one_connection_run_at_once_and_bodies_arrive_whole() {
    let upstream = Upstream::digest().await;
    let gateway = start(&endpoint(&upstream)).await;
    let client = connect(&gateway).await;
    let tasks: Vec<_> = [0usize, 1, 16_384, 65_536, 65_537, 3 << 20]
        .into_iter()
        .cycle()
        .take(60)
        .map(|size| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let body: Bytes = (0..size).map(|n| (n * 7 + n / 4096) as u8).collect::<Vec<_>>().into();
                client.ready().await.unwrap();
                let answer =
                    whole_answer(client.send_request(request("POST", "/x?y=1", body.clone())).await.unwrap()).await;
                assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(&body)), "{size}");
                assert!(!answer.headers.contains_key("transfer-encoding"));
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let seen = upstream.last();
    assert_eq!((seen.path.as_str(), &seen.headers["host"]), ("/x?y=1", &HeaderValue::from_static("a.test")));
    assert_eq!(seen.headers["x-forwarded-host"], "a.test");
    gateway.metric_becomes("spillway_connections{listener=\"h2c\"}", 1.0).await;
    let logged = eventually("the request is logged", || {
        let line = gateway.events("access").first().cloned();
        async move { line }
    });
    assert_eq!(logged.await["protocol"], "HTTP/2");
}

#[tokio::test]
async fn a_body_without_a_length_streams_to_either_version() {
    let http1 = Upstream::digest().await;
    let http2 = Http2Upstream::start(None).await;
    for backend in [endpoint(&http1), format!("http2: true, endpoints: [{{url: \"http://{}\"}}]", http2.address)] {
        let gateway = start(&backend).await;
        let stream = TcpStream::connect(gateway.listener("h2c")).await.unwrap();
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let chunks = (0..50).map(|n| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![n as u8; 20_000]))));
        let all: Vec<u8> = (0..50).flat_map(|n| vec![n as u8; 20_000]).collect();
        let body = StreamBody::new(futures::stream::iter(chunks));
        let request =
            Request::post("http://a.test/").header("cookie", "a=1").header("cookie", "b=2").body(body).unwrap();
        let answer = whole_answer(client.send_request(request).await.unwrap()).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(&all)), "{backend}");
        // HTTP/1.1 towards the client, HTTP/2 towards the server.
        let client = spillway_tests::Client::new(gateway.listener("plain"));
        let chunks = all.chunks(30_000).map(Bytes::copy_from_slice).collect();
        let answer = client.send(client.chunked("/", &[], chunks)).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(&all)), "{backend}");
    }
    assert_eq!(http1.seen.lock().unwrap()[0].headers["cookie"], "a=1; b=2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_asks_again_at_once_does_not_find_its_own_slot_taken() {
    let server = Http2Upstream::start(None).await;
    let backend =
        format!("http2: true, endpoints: [{{url: \"http://{}\"}}], capacity: {{maxInFlight: 1}}", server.address);
    let gateway = start(&backend).await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    for turn in 0..200 {
        let answer = client.send(client.request("POST", "/", &[], "x")).await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(b"x")), "{turn}");
    }
}

#[tokio::test]
async fn a_stream_that_the_client_takes_back_ends_the_request_behind() {
    let ended = Arc::new(AtomicUsize::new(0));
    let count = ended.clone();
    let upstream = Upstream::start(move |_| {
        let count = count.clone();
        async move {
            let (send, parts) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                // Ends once the parts are no longer accepted.
                while send.send(Ok(Bytes::from_static(b"data: x\n\n"))).await.is_ok() {
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
                count.fetch_add(1, Ordering::Relaxed);
            });
            Some(streamed(&[("content-type", "text/event-stream")], parts))
        }
    })
    .await;
    let gateway = start(&endpoint(&upstream)).await;
    let mut client = connect(&gateway).await;
    let mut kept = client.send_request(request("GET", "/", "")).await.unwrap().into_body();
    let mut dropped = client.send_request(request("GET", "/", "")).await.unwrap().into_body();
    for body in [&mut kept, &mut dropped] {
        assert!(body.frame().await.unwrap().unwrap().data_ref().unwrap().starts_with(b"data: x"));
    }
    drop(dropped);
    eventually("the request behind ends", || {
        let over = ended.load(Ordering::Relaxed) == 1;
        async move { over.then_some(()) }
    })
    .await;
    assert!(kept.frame().await.unwrap().is_ok(), "its neighbour goes on");
}

#[tokio::test]
async fn a_stopping_gateway_says_so_and_lets_streams_finish() {
    let upstream = Upstream::start(|_| async {
        tokio::time::sleep(std::time::Duration::from_millis(700)).await;
        Some(reply(200, &[], "done"))
    })
    .await;
    let gateway = start(&endpoint(&upstream)).await;
    let mut client = connect(&gateway).await;
    let running = tokio::spawn(client.send_request(request("GET", "/", "")));
    eventually("the request runs", || {
        let there = upstream.count() == 1;
        async move { there.then_some(()) }
    })
    .await;
    gateway.signal("TERM");
    let answer = whole_answer(running.await.unwrap().unwrap()).await;
    assert_eq!((answer.status.as_u16(), answer.text(), answer.cut), (200, "done".to_owned(), false));
    let refused = async {
        client.ready().await?;
        client.send_request(request("GET", "/", "")).await.map(|_| ())
    };
    assert!(refused.await.is_err(), "no further request is taken");
    assert!(gateway.wait().await.0.success());
}

#[tokio::test]
async fn a_connection_without_requests_is_closed_when_its_time_is_over() {
    let upstream = Upstream::fixed(200, "x").await;
    let gateway = start(&endpoint(&upstream)).await;
    let mut client = connect(&gateway).await;
    assert_eq!(client.send_request(request("GET", "/", "")).await.unwrap().status(), 200);
    eventually("the connection is closed", || {
        let closed = client.is_closed();
        async move { closed.then_some(()) }
    })
    .await;
    // HTTP/1.1 on a listener of HTTP/2 fails.
    let told = spillway_tests::Client::new(gateway.listener("h2c"));
    assert!(told.try_send(told.request("GET", "/", &[], "")).await.is_err());
}

/// Server of HTTP/2, with or without TLS, that counts its connections.
struct Http2Upstream {
    address: std::net::SocketAddr,
    connections: Arc<AtomicUsize>,
    heads: Arc<std::sync::Mutex<Vec<http::request::Parts>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Http2Upstream {
    async fn start(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Mutex::new(Vec::new())));
        let (count, log) = (connections.clone(), heads.clone());
        let task = tokio::spawn(async move {
            let mut tasks = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (tls, count, log) = (tls.clone(), count.clone(), log.clone());
                tasks.spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let log = log.clone();
                        async move {
                            let (head, body) = request.into_parts();
                            let body = body.collect().await?.to_bytes();
                            log.lock().unwrap().push(head.clone());
                            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                            let mut trailers = HeaderMap::new();
                            trailers.insert("grpc-status", HeaderValue::from_static("0"));
                            let frames = [
                                Ok::<_, hyper::Error>(Frame::data(digest(&body).into())),
                                Ok(Frame::trailers(trailers)),
                            ];
                            Ok::<_, hyper::Error>(Response::new(StreamBody::new(futures::stream::iter(
                                frames.map(|f: Result<Frame<Bytes>, _>| f),
                            ))))
                        }
                    });
                    let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    match tls {
                        None => {
                            count.fetch_add(1, Ordering::Relaxed);
                            let _ = serve.serve_connection(TokioIo::new(stream), service).await;
                        }
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            count.fetch_add(1, Ordering::Relaxed);
                            let _ = serve.serve_connection(TokioIo::new(stream), service).await;
                        }
                    }
                });
            }
        });
        Self { address, connections, heads, task }
    }
}

impl Drop for Http2Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn requests_share_connections_to_an_http2_server_and_trailers_pass() {
    let upstream = Http2Upstream::start(None).await;
    let gateway = start(&format!("http2: true, endpoints: [{{url: \"http://{}\"}}]", upstream.address)).await;
    let mut client = connect(&gateway).await;
    let mut first = request("POST", "/pkg.Service/Call", "abc");
    first.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    let answer = client.send_request(first).await.unwrap();
    let body = answer.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(body.to_bytes(), digest(b"abc"));
    {
        let heads = upstream.heads.lock().unwrap();
        assert_eq!(heads[0].uri, "http://a.test/pkg.Service/Call");
        assert_eq!(heads[0].headers["te"], "trailers");
        assert!(!heads[0].headers.contains_key("transfer-encoding"));
    }
    for _ in 0..5 {
        let tasks: Vec<_> = (0..20)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move {
                    let answer = client.send_request(request("POST", "/", "abc")).await.unwrap();
                    assert_eq!(whole_answer(answer).await.text(), digest(b"abc"));
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    }
    let connections = upstream.connections.load(Ordering::Relaxed);
    assert!(connections <= 25, "100 requests took {connections} connections");
    // An HTTP/1.1 client gets the answer without fields that its version cannot express.
    let answer = spillway_tests::Client::new(gateway.listener("plain")).post("/", &[], "abc").await;
    assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(b"abc")));
}

/// TLS to a server: its certificate, the client authority it requires, and the gateway's settings.
async fn over_tls(
    server: &Made,
    clients: Option<&Authority>,
    alpn: &[&str],
    authority: &Authority,
    more: &str,
) -> (Http2Upstream, Gateway) {
    let upstream = Http2Upstream::start(Some(server.acceptor(clients, alpn))).await;
    let folder = tempfile::tempdir().unwrap();
    authority.write(folder.path());
    authority.client("gateway", "spiffe://example/gateway").write(folder.path(), "gw");
    let backend = format!("http2: true, endpoints: [{{url: \"https://{}\"}}], {more}", upstream.address);
    (upstream, Gateway::start_in(folder, &yaml(&backend)).await)
}

#[tokio::test]
async fn servers_are_reached_over_tls_only_where_they_are_who_they_must_be() {
    let authority = Authority::default();
    let server = authority.server(&["chat.internal"]);
    let both = "tls: {sni: chat.internal, caFile: ca.pem, clientCertificate: {certFile: gw.pem, keyFile: gw.key}}, \
                healthCheck: {http: {path: /health}, interval: 200ms}";
    let (upstream, gateway) = over_tls(&server, Some(&authority), &["h2"], &authority, both).await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    for _ in 0..5 {
        let answer = client.post("/", &[], "abc").await;
        assert_eq!((answer.status.as_u16(), answer.text()), (200, digest(b"abc")));
    }
    assert!(upstream.heads.lock().unwrap().iter().any(|head| head.uri.scheme_str() == Some("https")));
    eventually("the health check comes by the same way", || {
        let asked = upstream.heads.lock().unwrap().iter().any(|head| head.uri.path() == "/health");
        async move { asked.then_some(()) }
    })
    .await;
    assert!(gateway.events("endpoint_unhealthy").is_empty());

    for (clients, more, why) in [
        (None, "tls: {sni: other.internal, caFile: ca.pem}", "another name"),
        (None, "tls: {caFile: ca.pem}", "an address that is not in the certificate"),
        (None, "tls: {sni: chat.internal}", "an authority that the system does not know"),
        (Some(&authority), "tls: {sni: chat.internal, caFile: ca.pem}", "no certificate of ours"),
    ] {
        let (upstream, gateway) = over_tls(&server, clients, &["h2"], &authority, more).await;
        let answer = spillway_tests::Client::new(gateway.listener("plain")).post("/", &[], "abc").await;
        assert_eq!(answer.status, 503, "{why}");
        assert!(upstream.heads.lock().unwrap().is_empty(), "{why}: nothing is said to a stranger");
    }
}

/// Server of HTTP/2 that answers as `answer` says and records whether each request ended with its head.
async fn http2_server(answer: fn(&str) -> Reply) -> (String, Arc<std::sync::Mutex<Vec<bool>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let ended = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = ended.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = log.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                log.lock().unwrap().push(hyper::body::Body::is_end_stream(request.body()));
                let answer = answer(request.uri().path());
                async move { Ok::<_, std::io::Error>(answer) }
            });
            let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serve.serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, ended)
}

/// Kinds and flags of the frames of an answer, once it has ended.
async fn frames_of(client: &mut Frames, method: &str, path: &str) -> Vec<(u8, u8)> {
    let stream = client.bare(method, path).await;
    eventually("the answer ends", || {
        let answer = client.answer(stream);
        async move { answer.last().is_some_and(|(_, end)| *end == 1).then_some(answer) }
    })
    .await
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_no_other_on_the_connection_to_their_server() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    const LARGE: usize = 64 << 20;
    let (url, ended) =
        http2_server(|path| reply(200, &[], if path == "/large" { vec![7; LARGE] } else { b"small".to_vec() })).await;
    let backend = format!("http2: true, endpoints: [{{url: \"{url}\"}}], capacity: {{maxConnections: 1}}");
    let gateway = start(&backend).await;
    let mut stuck = Vec::new();
    for n in 1..=3 {
        let mut stream = TcpStream::connect(gateway.listener("plain")).await.unwrap();
        stream.write_all(b"GET /large HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        stream.read_exact(&mut [0; 1]).await.unwrap();
        stuck.push(stream);
        eventually("the server is asked", || {
            let asked = ended.lock().unwrap().len();
            async move { (asked == n).then_some(()) }
        })
        .await;
    }
    // Until all that the gateway takes for them has come.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    let client = spillway_tests::Client::new(gateway.listener("plain"));
    let small = client.get("/small");
    let answer = tokio::time::timeout(PATIENCE, small).await.expect("nothing stands before a small answer");
    assert_eq!(answer.text(), "small");
}

#[tokio::test]
async fn an_answer_without_a_body_ends_with_its_head() {
    const HEAD: (u8, u8) = (1, 0);
    const LAST_HEAD: (u8, u8) = (1, 1);
    let (http2, _) = http2_server(|path| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("5"));
        let data = (path == "/text").then(|| Frame::data(Bytes::from_static(b"text")));
        let frames: Vec<_> = data.into_iter().chain([Frame::trailers(trailers)]).map(Ok::<_, std::io::Error>).collect();
        let has_status_alone = path == "/status";
        let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(frames)));
        let head = [("content-type", "application/grpc"), ("grpc-message", "nothing"), ("grpc-status", "5")];
        let answer = reply(200, &head, "");
        if has_status_alone { answer } else { answer.map(|_| body) }
    })
    .await;
    let http1 = Upstream::start(|seen| async move {
        let status = seen.path.trim_start_matches("/1/").parse().unwrap_or(200);
        let kind = if seen.path.ends_with("events") { "text/event-stream" } else { "text/plain" };
        Some(reply(status, &[("content-type", kind), ("etag", "\"a\"")], ""))
    })
    .await;
    let yaml = format!(
        "listeners: [{{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}]
backends:
  - {{name: two, http2: true, endpoints: [{{url: \"{http2}\"}}]}}
  - {{name: one, endpoints: [{{url: \"{url}\"}}], credentials: {{bearer: {{env: TEST_SECRET}}}}}}
  - {{name: events, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: two, matches: [{{path: {{prefix: /}}}}], backendRefs: [{{name: two}}]}}
  - {{name: one, matches: [{{path: {{prefix: /1}}}}], backendRefs: [{{name: one}}]}}
  - name: events
    matches: [{{path: {{prefix: /events}}}}]
    timeouts: {{firstToken: 10s}}
    backendRefs: [{{name: events}}]
  - name: moved
    matches: [{{path: {{exact: /moved}}}}]
    filters: [{{redirect: {{path: /}}}}]
    backendRefs: [{{name: one}}]
",
        url = http1.url()
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let mut client = Frames::connect(gateway.address, 65_535).await;
    for (method, path, frames) in [
        ("GET", "/status", vec![LAST_HEAD]),
        ("GET", "/trailers", vec![HEAD, LAST_HEAD]),
        ("GET", "/text", vec![HEAD, (0, 0), LAST_HEAD]),
        ("HEAD", "/1/200", vec![LAST_HEAD]),
        ("GET", "/1/200", vec![LAST_HEAD]),
        ("GET", "/1/204", vec![LAST_HEAD]),
        ("GET", "/1/304", vec![LAST_HEAD]),
        ("GET", "/1/500", vec![LAST_HEAD]),
        ("GET", "/events", vec![LAST_HEAD]),
        ("GET", "/moved", vec![LAST_HEAD]),
        ("HEAD", "/moved", vec![LAST_HEAD]),
    ] {
        let seen = tokio::time::timeout(PATIENCE, frames_of(&mut client, method, path)).await;
        assert_eq!(seen.unwrap(), frames, "{method} {path}");
    }
    let mut client = connect(&gateway).await;
    let answer = client.send_request(request("POST", "/status", "abc")).await.unwrap();
    assert_eq!(
        (&answer.headers()["grpc-status"], &answer.headers()["grpc-message"]),
        (&"5".parse().unwrap(), &"nothing".parse().unwrap())
    );
    assert!(hyper::body::Body::is_end_stream(answer.body()));
}

#[tokio::test]
async fn a_request_without_a_body_ends_with_its_head() {
    let (url, ended) = http2_server(|_| reply(200, &[], "")).await;
    let gateway = start(&format!("http2: true, endpoints: [{{url: \"{url}\"}}]")).await;
    let mut client = connect(&gateway).await;
    for (method, body) in [("GET", ""), ("DELETE", ""), ("POST", ""), ("POST", "abc")] {
        assert_eq!(client.send_request(request(method, "/", body)).await.unwrap().status(), 200);
        assert_eq!(ended.lock().unwrap().last(), Some(&body.is_empty()), "{method} {body:?}");
    }
    let plain = spillway_tests::Client::new(gateway.listener("plain"));
    assert_eq!(plain.get("/").await.status, 200);
    assert_eq!(ended.lock().unwrap().last(), Some(&true));
}
