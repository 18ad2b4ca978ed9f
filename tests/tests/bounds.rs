//! Bounds of HTTP/1 requests hold for HTTP/2, and for answers of servers of both versions: headers, their fields,
//! early answers, trailers.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use spillway_tests::{Authority, Gateway, PATIENCE, Upstream, frame, head_of_a_request, raw, whole_answer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn yaml(backend: &str, route: &str) -> String {
    format!(
        "listeners:
  - {{name: plain, address: \"127.0.0.1:0\"}}
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c, limits: {{maxHeaderBytes: 16KiB}}}}
backends: [{{name: up, {backend}}}]
routes: [{{name: r, matches: [{{path: {{prefix: /}}}}], backendRefs: [{{name: up}}]{route}}}]
"
    )
}

async fn start(backend: &str, route: &str) -> Gateway {
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(backend, route)).await
}

/// Server that reads a head, sends `first`, then `again` until the connection closes.
async fn says(first: String, again: &'static str) -> String {
    raw(move |mut stream| {
        let first = first.clone();
        async move {
            head_of_a_request(&mut stream).await;
            if stream.write_all(first.as_bytes()).await.is_err() {
                return;
            }
            while !again.is_empty() && stream.write_all(again.repeat(100).as_bytes()).await.is_ok() {}
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await
}

const EARLY: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n";

#[tokio::test]
async fn an_answer_whose_header_is_over_a_bound_is_a_failure_of_its_server() {
    let fields = |count: usize| format!("HTTP/1.1 200 OK\r\n{}content-length: 2\r\n\r\nok", "x: y\r\n".repeat(count));
    let long = |bytes: usize| format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 2\r\n\r\nok", "y".repeat(bytes));
    let early = |bytes: usize| format!("HTTP/1.1 103 Early Hints\r\nlink: {}\r\n\r\n", "y".repeat(bytes)).repeat(10);
    for (what, first, again, good) in [
        ("a header within all bounds", long(60 << 10), "", true),
        ("many fields within the bound", fields(90), "", true),
        ("early answers within the bound", early(5 << 10) + &long(1 << 10), "", true),
        ("a header that does not end", "HTTP/1.1 200 OK\r\nx: ".to_owned(), "y", false),
        ("fields that do not end", "HTTP/1.1 200 OK\r\n".to_owned(), "x: y\r\n", false),
        ("a long header", long(66 << 10), "", false),
        ("many fields", fields(300), "", false),
        ("early answers that do not end", String::new(), EARLY, false),
        ("many early answers", EARLY.repeat(20) + &long(1 << 10), "", false),
        ("long early answers", early(7 << 10) + &long(1 << 10), "", false),
    ] {
        for (route, hedged) in [("", false), (", retry: {attempts: 0, hedge: {after: 20s}}", true)] {
            let url = says(first.clone(), again).await;
            let gateway = start(&format!("endpoints: [{{url: \"{url}\"}}], timeouts: {{firstByte: 50s}}"), route).await;
            let answer = tokio::time::timeout(PATIENCE, gateway.client().get("/")).await.expect(what);
            if good {
                assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "ok"), "{what}, hedged: {hedged}");
            } else {
                assert_eq!(answer.status, 502, "{what}, hedged: {hedged}: {}", answer.text());
                assert_eq!(answer.json()["code"], "upstream_header_too_large", "{what}");
            }
        }
    }
}

#[tokio::test]
async fn a_backend_has_the_bound_that_its_limits_say() {
    let url = says(format!("HTTP/1.1 200 OK\r\nx: {}\r\ncontent-length: 2\r\n\r\nok", "y".repeat(5000)), "").await;
    for (limit, status) in [("4KiB", 502), ("6KiB", 200)] {
        let backend = format!("endpoints: [{{url: \"{url}\"}}], limits: {{maxHeaderBytes: {limit}}}");
        assert_eq!(start(&backend, "").await.client().get("/").await.status, status, "{limit}");
    }
}

#[tokio::test]
async fn what_stands_around_the_chunks_of_an_answer_is_bounded() {
    let begun = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n";
    for (what, first, again) in [
        ("a line of a chunk", "5;", "x"),
        ("the size of a chunk", "", "0"),
        ("trailers", "0\r\n", "x: y\r\n"),
        ("a trailer", "0\r\nx: ", "y"),
    ] {
        let url = says(format!("{begun}{first}"), again).await;
        let gateway = start(&format!("endpoints: [{{url: \"{url}\"}}], timeouts: {{idle: 50s}}"), "").await;
        let http = gateway.client();
        let mut answer = http.stream(http.request("GET", "/", &[], "")).await.unwrap();
        let ended = async {
            loop {
                match answer.part().await {
                    Some(Ok(_)) => {}
                    ended => return ended,
                }
            }
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await.expect(what);
        assert!(matches!(ended, Some(Err(_))), "{what}: the answer seems whole");
    }
}

#[tokio::test]
async fn a_server_that_is_asked_for_http2_and_speaks_http1_has_the_same_bound() {
    const GOOD: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let authority = Authority::default();
    let server = authority.server(&["chat.internal"]);
    // One that names the version which it speaks, and one that says nothing of versions.
    for alpn in [&["http/1.1"][..], &[]] {
        for (first, again) in [(GOOD, ""), ("HTTP/1.1 200 OK\r\nx: ", "y"), ("HTTP/1.1 200 OK\r\n", "x: y\r\n")] {
            let acceptor = server.acceptor(None, alpn);
            let url = raw(move |stream| {
                let acceptor = acceptor.clone();
                async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    // A second request comes over the same connection.
                    loop {
                        let (mut head, mut byte) = (Vec::new(), [0u8; 1]);
                        while !head.ends_with(b"\r\n\r\n") {
                            if stream.read_exact(&mut byte).await.is_err() {
                                return;
                            }
                            head.push(byte[0]);
                        }
                        if stream.write_all(first.as_bytes()).await.is_err() {
                            return;
                        }
                        while !again.is_empty() && stream.write_all(again.repeat(100).as_bytes()).await.is_ok() {}
                    }
                }
            })
            .await;
            let folder = tempfile::tempdir().unwrap();
            authority.write(folder.path());
            let backend = format!(
                "http2: true, endpoints: [{{url: \"{}\"}}], tls: {{sni: chat.internal, caFile: ca.pem}}, \
                 capacity: {{maxConnections: 1}}, timeouts: {{firstByte: 50s}}",
                url.replace("http:", "https:")
            );
            let gateway = Gateway::start_in(folder, &yaml(&backend, "")).await;
            for _ in 0..if first == GOOD { 3 } else { 1 } {
                let answer = tokio::time::timeout(PATIENCE, gateway.client().get("/")).await.expect("an answer");
                if first == GOOD {
                    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "ok"), "{alpn:?}");
                } else {
                    assert_eq!(answer.status, 502, "{alpn:?}: {}", answer.text());
                    assert_eq!(answer.json()["code"], "upstream_header_too_large", "{alpn:?}: {first:?}");
                }
            }
        }
    }
}

/// Most bytes that a server of HTTP/2 without an end sends.
const ENOUGH: usize = 40 << 20;

#[tokio::test]
async fn a_header_block_of_http2_that_does_not_end_is_not_read_on() {
    let (headers, settings, continuation) = (1u8, 4u8, 9u8);
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let url = raw(move |mut stream| {
        let tell = tell.clone();
        async move {
            let mut preface = [0; 24];
            stream.read_exact(&mut preface).await.unwrap();
            stream.write_all(&frame(settings, 0, 0, &[])).await.unwrap();
            let mut list_size = 0;
            loop {
                let mut head = [0; 9];
                stream.read_exact(&mut head).await.unwrap();
                let mut payload =
                    vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
                stream.read_exact(&mut payload).await.unwrap();
                if head[3] == settings && head[4] == 0 {
                    // SETTINGS_MAX_HEADER_LIST_SIZE (RFC 9113, 6.5.2).
                    let found = payload.chunks(6).find(|setting| setting[..2] == [0, 6]);
                    list_size = found.map_or(0, |setting| u32::from_be_bytes(setting[2..6].try_into().unwrap()));
                }
                if head[3] == headers {
                    break;
                }
            }
            // `:status 200` from the static table, then `x: yyy...` without a place in the dynamic one (RFC 7541).
            stream.write_all(&frame(headers, 0, 1, &[0x88])).await.unwrap();
            let field = [&[0, 1, b'x', 100][..], &[b'y'; 100]].concat();
            let more = frame(continuation, 0, 1, &field.repeat(150));
            let mut sent = 0;
            while sent < ENOUGH && stream.write_all(&more).await.is_ok() {
                sent += more.len();
            }
            let _ = tell.send((list_size, sent));
        }
    })
    .await;
    let gateway =
        start(&format!("http2: true, endpoints: [{{url: \"{url}\"}}], timeouts: {{firstByte: 50s}}"), "").await;
    let answer = tokio::time::timeout(PATIENCE, gateway.client().get("/")).await.expect("an answer");
    let (list_size, sent) = told.recv().await.unwrap();
    // What lies in the sockets was sent and is not read.
    assert!(sent < ENOUGH / 4, "{sent} bytes were sent");
    assert_eq!((answer.status.as_u16(), &answer.json()["code"]), (502, &"upstream_header_too_large".into()));
    assert!((64 << 10..=256 << 10).contains(&list_size), "the server knows: {list_size}");
}

/// HTTP/2 server that answers with these fields and trailers.
async fn http2_server(fields: HeaderMap, trailers: HeaderMap) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (fields, trailers) = (fields.clone(), trailers.clone());
            let service = service_fn(move |_: Request<Incoming>| {
                let (fields, trailers) = (fields.clone(), trailers.clone());
                async move {
                    let frames =
                        [Ok::<_, hyper::Error>(Frame::data(Bytes::from_static(b"ok"))), Ok(Frame::trailers(trailers))];
                    let mut answer = Response::new(StreamBody::new(futures::stream::iter(frames)));
                    *answer.headers_mut() = fields;
                    Ok::<_, hyper::Error>(answer)
                }
            });
            let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(async move { serve.serve_connection(TokioIo::new(stream), service).await });
        }
    });
    url
}

/// Client that accepts any headers.
async fn connect<B>(gateway: &Gateway) -> hyper::client::conn::http2::SendRequest<B>
where
    B: hyper::body::Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + Unpin + 'static,
{
    let stream = TcpStream::connect(gateway.listener("h2c")).await.unwrap();
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    let (client, connection) = builder.max_header_list_size(1 << 20).handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    client
}

fn of_bytes(bytes: usize) -> HeaderMap {
    // Fields of a size that every library sends in one block.
    let mut fields = HeaderMap::new();
    for _ in 0..bytes.div_ceil(1024) {
        fields.append("x", HeaderValue::from_str(&"y".repeat(1024 - 5)).unwrap());
    }
    fields
}

fn of_count(count: usize) -> HeaderMap {
    (0..count).map(|_| (http::HeaderName::from_static("x"), HeaderValue::from_static("y"))).fold(
        HeaderMap::new(),
        |mut all, (name, value)| {
            all.append(name, value);
            all
        },
    )
}

#[tokio::test]
async fn headers_and_trailers_of_servers_of_http2_have_the_same_bounds() {
    for (fields, trailers, head, whole) in [
        (of_bytes(50 << 10), of_bytes(12 << 10), 200, true),
        (of_bytes(66 << 10), HeaderMap::new(), 502, true),
        (of_count(300), HeaderMap::new(), 502, true),
        (HeaderMap::new(), of_bytes(66 << 10), 200, false),
        (HeaderMap::new(), of_count(300), 200, false),
    ] {
        let what = (fields.len(), trailers.len());
        let url = http2_server(fields, trailers.clone()).await;
        let gateway = start(&format!("http2: true, endpoints: [{{url: \"{url}\"}}]"), "").await;
        let mut client = connect::<Full<Bytes>>(&gateway).await;
        let request = Request::get("http://a.test/").body(Full::new(Bytes::new())).unwrap();
        let answer = match client.send_request(request).await {
            Ok(answer) => answer,
            // The end of the stream may overtake its head.
            Err(e) => {
                assert!(!whole, "{what:?}: {e}");
                continue;
            }
        };
        assert_eq!(answer.status(), head, "{what:?}");
        match answer.into_body().collect().await {
            Ok(body) if whole => {
                let passed = body.trailers().map_or(0, HeaderMap::len);
                assert_eq!(passed, if head == 200 { trailers.len() } else { 0 }, "{what:?}");
            }
            Ok(_) => panic!("{what:?}: the answer seems whole"),
            Err(e) => assert!(!whole, "{what:?}: {e}"),
        }
    }
}

#[tokio::test]
async fn trailers_of_servers_of_http1_reach_clients_of_http2_within_their_bound() {
    for (trailers, expected) in [
        ("X-Sum: 1\r\nConnection: x-hop\r\nX-Spillway-Forged: 1\r\n".to_owned(), Some(1)),
        (String::new(), Some(0)),
        (format!("X-Long: {}\r\n", "x".repeat(66 << 10)), None),
        ("No colon\r\n".to_owned(), None),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n{trailers}\r\n");
        let url = raw(move |mut stream| {
            let answer = answer.clone();
            async move {
                head_of_a_request(&mut stream).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.read_to_end(&mut Vec::new()).await;
            }
        })
        .await;
        let gateway = start(&format!("endpoints: [{{url: \"{url}\"}}]"), "").await;
        let mut client = connect::<Full<Bytes>>(&gateway).await;
        let request = Request::get("http://a.test/").body(Full::new(Bytes::new())).unwrap();
        let Ok(answer) = client.send_request(request).await else {
            assert!(expected.is_none(), "{trailers:?}");
            continue;
        };
        let body = answer.into_body().collect().await;
        let passed = body.ok().map(|body| body.trailers().map_or(0, HeaderMap::len));
        assert_eq!(passed, expected, "{trailers:.40}");
    }
}

#[tokio::test]
async fn heads_of_clients_of_http2_have_the_bounds_of_their_listener() {
    let upstream = Upstream::fixed(200, "reached").await;
    let gateway = start(&format!("endpoints: [{{url: \"{}\"}}]", upstream.url()), "").await;
    for (what, path, fields, status) in [
        ("little", "/".to_owned(), of_count(80), 200),
        ("many fields", "/".to_owned(), of_count(300), 431),
        ("a long header", "/".to_owned(), of_bytes(17 << 10), 431),
        ("a long target", format!("/{}", "a".repeat(17 << 10)), HeaderMap::new(), 431),
    ] {
        let mut client = connect::<Full<Bytes>>(&gateway).await;
        let mut request = Request::get(format!("http://a.test{path}")).body(Full::new(Bytes::new())).unwrap();
        request.headers_mut().extend(fields);
        let before = upstream.count();
        let answer = whole_answer(client.send_request(request).await.unwrap()).await;
        assert_eq!(answer.status, status, "{what}");
        // The library counts bytes; the server behind may bound the number of fields.
        assert_eq!(answer.text().contains("header_too_large"), what == "many fields", "{what}");
        assert_eq!(upstream.count() - before, usize::from(status == 200), "{what}");
    }
}

#[tokio::test]
async fn trailers_of_clients_of_http2_have_the_bounds_of_their_listener() {
    let upstream = Upstream::digest().await;
    let gateway = start(&format!("endpoints: [{{url: \"{}\"}}]", upstream.url()), "").await;
    // Trailers over the bound are dropped; a sender of four times as much is refused.
    for (trailers, good) in [(of_bytes(1 << 10), true), (of_bytes(17 << 10), true), (of_bytes(70 << 10), false)] {
        let mut client = connect(&gateway).await;
        let frames = [Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(b"abc"))), Ok(Frame::trailers(trailers))];
        let body = StreamBody::new(futures::stream::iter(frames));
        let request = Request::post("http://a.test/").body(body).unwrap();
        let before = upstream.count();
        let answer = tokio::time::timeout(PATIENCE, client.send_request(request)).await.expect("an end");
        assert_eq!(answer.as_ref().is_ok_and(|answer| answer.status() == 200), good, "{answer:?}");
        assert_eq!(upstream.count() - before, usize::from(good), "a request without its end is none");
        assert_eq!(gateway.client().get("/").await.status, 200);
    }
}
