//! Trailers of requests and answers, and early answers, over both versions of HTTP on both sides (RFC 9110, 6.5 and 15.2).

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use spillway_tests::{Gateway, raw};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A request as a server got it.
#[derive(Debug, Clone, Default)]
struct Got {
    headers: HeaderMap,
    body: Bytes,
    trailers: HeaderMap,
}

type Seen = Arc<Mutex<Vec<Got>>>;

/// Server of either version that answers with the body `ok` and a trailer `x-end`.
async fn server(is_http2: bool) -> (String, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("endpoints: [{{url: \"http://{}\"}}]", listener.local_addr().unwrap());
    let seen = Seen::default();
    let log = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = log.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let log = log.clone();
                async move {
                    let (head, body) = request.into_parts();
                    let body = body.collect().await?;
                    let trailers = body.trailers().cloned().unwrap_or_default();
                    log.lock().unwrap().push(Got { headers: head.headers, body: body.to_bytes(), trailers });
                    let mut end = HeaderMap::new();
                    end.insert("x-end", HeaderValue::from_static("1"));
                    end.insert("content-length", HeaderValue::from_static("7"));
                    let frames = [Ok::<_, hyper::Error>(Frame::data(Bytes::from("ok"))), Ok(Frame::trailers(end))];
                    let answer = Response::builder().header("trailer", "x-end");
                    Ok::<_, hyper::Error>(answer.body(StreamBody::new(futures::stream::iter(frames))).unwrap())
                }
            });
            tokio::spawn(async move {
                let io = TokioIo::new(stream);
                if is_http2 {
                    let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(io, service)
                        .await;
                } else {
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                }
            });
        }
    });
    (format!("{}{url}", if is_http2 { "http2: true, " } else { "" }), seen)
}

async fn start(backend: &str) -> Gateway {
    let yaml = format!(
        "listeners:
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}
  - {{name: plain, address: \"127.0.0.1:0\"}}
backends: [{{name: up, {backend}}}]
routes:
  - name: model
    matches: [{{path: {{prefix: /v1}}, model: m}}]
    backendRefs: [{{name: up}}]
    filters: &filters
      - requestHeaders: {{set: {{x-set: ours}}, remove: [x-removed]}}
  - name: plain
    backendRefs: [{{name: up}}]
    filters: *filters
"
    );
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await
}

/// Fields that no caller may send as trailers, with a value each.
const REFUSED: [&str; 21] = [
    "authorization",
    "x-api-key",
    "cookie",
    "host",
    "content-length",
    "content-type",
    "transfer-encoding",
    "connection",
    "te",
    "x-forwarded-for",
    "x-real-ip",
    "x-spillway-consumer",
    "x_spillway_consumer",
    "x_checksum",
    "forwarded",
    "x-request-id",
    "traceparent",
    "accept-encoding",
    "x-set",
    "x-removed",
    "x-in-head",
];

/// Sends a request over HTTP/2 whose body has these parts and trailers, and returns the whole answer.
async fn over_http2(
    address: SocketAddr,
    path: &str,
    body: &'static str,
    trailers: HeaderMap,
) -> (u16, Bytes, HeaderMap) {
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let parts = Some(body).filter(|body| !body.is_empty());
    let parts = parts.map(|body| Ok::<_, std::io::Error>(Frame::data(Bytes::from_static(body.as_bytes()))));
    let frames: Vec<_> = parts.into_iter().chain([Ok(Frame::trailers(trailers))]).collect();
    let request = Request::post(format!("http://a.test{path}"))
        .header("content-type", "application/json")
        .header("x-in-head", "1")
        .header("te", "trailers")
        .body(StreamBody::new(futures::stream::iter(frames)))
        .unwrap();
    let answer = client.send_request(request).await.unwrap();
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    (status, body.to_bytes(), trailers)
}

/// Sends a request in chunks over HTTP/1.1, in pieces of `size` bytes, and returns the answer as it came.
async fn over_http1(address: SocketAddr, path: &str, body: &str, trailers: &HeaderMap, size: usize) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let mut text = format!(
        "POST {path} HTTP/1.1\r\nhost: a.test\r\ncontent-type: application/json\r\nx-in-head: 1\r\nte: trailers\r\n\
         trailer: x-checksum\r\nconnection: close, te\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    if !body.is_empty() {
        text += &format!("{:x}\r\n{body}\r\n", body.len());
    }
    text += "0\r\n";
    for (name, value) in trailers {
        text += &format!("{name}: {}\r\n", value.to_str().unwrap());
    }
    text += "\r\n";
    for piece in text.as_bytes().chunks(size) {
        stream.write_all(piece).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn trailers_of_requests_and_answers_pass_between_all_versions() {
    let mut trailers = HeaderMap::new();
    for (name, value) in [("x-checksum", "abc"), ("x-checksum", "def"), ("x-amz-checksum-crc32", "q1w2==")] {
        trailers.append(name, HeaderValue::from_static(value));
    }
    let expected = trailers.clone();
    for name in REFUSED {
        trailers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
    }
    // HTTP/2 knows no fields of a connection.
    let mut of_http2 = trailers.clone();
    for name in ["connection", "te", "transfer-encoding"] {
        of_http2.remove(name);
    }
    for is_http2 in [false, true] {
        let (backend, seen) = server(is_http2).await;
        let gateway = start(&backend).await;
        // Streamed, empty, and held, because the route is chosen by the model.
        for (path, body) in
            [("/x", "some text"), ("/x", ""), ("/v1/chat/completions", r#"{"model":"m","messages":[]}"#)]
        {
            let what = format!("{path} {body} to HTTP/2: {is_http2}");
            let (status, answer, end) = over_http2(gateway.listener("h2c"), path, body, of_http2.clone()).await;
            assert_eq!((status, answer.as_ref()), (200, &b"ok"[..]), "{what}");
            assert_eq!(end.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["x-end"], "{what}");
            for size in [usize::MAX, 1, 7] {
                let answer = over_http1(gateway.listener("plain"), path, body, &trailers, size).await;
                assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{what}: {answer}");
                assert!(answer.ends_with("\r\n2\r\nok\r\n0\r\nx-end: 1\r\n\r\n"), "{what}: {answer}");
            }
            let seen = std::mem::take(&mut *seen.lock().unwrap());
            assert_eq!(seen.len(), 4, "{what}");
            for got in seen {
                assert_eq!((got.body.as_ref(), &got.trailers), (body.as_bytes(), &expected), "{what}");
                assert_eq!(got.headers["te"], "trailers", "{what}");
                assert!(!got.headers.contains_key("content-length"), "{what}: {:?}", got.headers);
            }
        }
    }
}

#[tokio::test]
async fn trailers_end_where_the_gateway_changes_the_body_that_they_describe() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("abc"));
    let body = r#"{"model":"m","messages":[]}"#;
    let (backend, seen) = server(false).await;
    let gateway = start(&format!("{backend}, protocol: openai, model: other")).await;
    let answer = over_http1(gateway.listener("plain"), "/v1/chat/completions", body, &trailers, usize::MAX).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let got = seen.lock().unwrap().pop().unwrap();
    assert_eq!(got.body, r#"{"model":"other","messages":[]}"#);
    assert!(got.trailers.is_empty(), "{got:?}");
    // Decoded, because the route is chosen by what it says.
    let gateway = start(&backend).await;
    let packed = spillway_tests::encoded("gzip", body.as_bytes());
    let mut stream = TcpStream::connect(gateway.listener("plain")).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-encoding: gzip\r\n\
                content-digest: sha-256=:AA==:\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    let size = format!("{:x}\r\n", packed.len());
    let end = b"\r\n0\r\nx-checksum: abc\r\n\r\n";
    stream.write_all(&[head.as_bytes(), size.as_bytes(), &packed, end].concat()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    let got = seen.lock().unwrap().pop().unwrap();
    assert_eq!((got.body.as_ref(), got.headers.get("content-digest")), (body.as_bytes(), None));
    assert!(got.trailers.is_empty(), "{got:?}");
}

/// Server that reads a request to its end, or only `most` bytes behind its head, and says that it is full.
async fn full(most: usize) -> String {
    raw(move |mut stream: TcpStream| async move {
        spillway_tests::head_of_a_request(&mut stream).await;
        let (mut read, mut buffer) = (Vec::new(), [0; 4096]);
        while read.len() < most && !read.ends_with(b"\r\n\r\n") {
            match stream.read(&mut buffer).await {
                Ok(n) if n > 0 => read.extend_from_slice(&buffer[..n]),
                _ => break,
            }
        }
        let _ = stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy").await;
        // The client of this server goes on sending.
        while matches!(stream.read(&mut buffer).await, Ok(1..)) {}
    })
    .await
}

/// Gateway before a server that is full and one that is not.
async fn before_a_full_one(full: &str, other: &str) -> Gateway {
    let yaml = format!(
        "listeners:
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}
  - {{name: plain, address: \"127.0.0.1:0\"}}
backends:
  - {{name: full, endpoints: [{{url: \"{full}\"}}], capacity: {{statuses: [503]}}}}
  - {{name: other, {other}}}
routes: [{{name: r, backendRefs: [{{name: full}}, {{name: other, priority: 1}}]}}]
"
    );
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await
}

#[tokio::test]
async fn a_body_without_a_byte_is_sent_again_with_its_trailers() {
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", HeaderValue::from_static("abc"));
    for is_http2 in [false, true] {
        let (other, seen) = server(is_http2).await;
        for trailers in [trailers.clone(), HeaderMap::new()] {
            let gateway = before_a_full_one(&full(usize::MAX).await, &other).await;
            let (status, body, _) = over_http2(gateway.listener("h2c"), "/x", "", trailers.clone()).await;
            assert_eq!((status, body.as_ref()), (200, &b"ok"[..]));
            let gateway = before_a_full_one(&full(usize::MAX).await, &other).await;
            let answer = over_http1(gateway.listener("plain"), "/x", "", &trailers, usize::MAX).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            for got in std::mem::take(&mut *seen.lock().unwrap()) {
                assert_eq!((got.body.len(), &got.trailers), (0, &trailers), "to HTTP/2: {is_http2}");
            }
        }
    }
}

#[tokio::test]
async fn the_rest_of_a_body_that_a_full_server_has_begun_to_read_goes_nowhere_else() {
    let (other, seen) = server(false).await;
    let gateway = before_a_full_one(&full(10_000).await, &other).await;
    for listener in ["plain", "h2c"] {
        let address = gateway.listener(listener);
        let parts = futures::stream::unfold(0, |n| async move {
            // The answer of the first server comes in the middle of the body.
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            (n < 100).then(|| (Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; 10_000]))), n + 1))
        });
        let request = Request::post("http://a.test/x").header("host", "a.test");
        let request = request.body(http_body_util::BodyExt::boxed_unsync(StreamBody::new(parts))).unwrap();
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let answer = if listener == "h2c" {
            let (mut client, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
            tokio::spawn(connection);
            client.send_request(request).await.unwrap()
        } else {
            let (mut client, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            client.send_request(request).await.unwrap()
        };
        assert_eq!(answer.status(), 503, "{listener}");
        assert!(seen.lock().unwrap().is_empty(), "{listener}");
    }
}

#[tokio::test]
async fn a_request_without_a_host_reaches_a_server_of_http2() {
    let (backend, seen) = server(true).await;
    let gateway = start(&backend).await;
    for request in ["GET /x HTTP/1.0\r\n\r\n", "GET /x HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n"] {
        let mut stream = TcpStream::connect(gateway.listener("plain")).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{request}: {answer}");
    }
    assert_eq!(seen.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_client_of_http1_that_does_not_ask_for_trailers_gets_none() {
    for is_http2 in [false, true] {
        let (backend, _) = server(is_http2).await;
        let gateway = start(&backend).await;
        let mut stream = TcpStream::connect(gateway.listener("plain")).await.unwrap();
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\n2\r\nok\r\n0\r\n\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn early_hints_reach_clients_of_either_version() {
    const ANSWER: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\nx-spillway-x: 1\r\n\r\n\
                            HTTP/1.1 103 Early Hints\r\nlink: </b.css>\r\n\r\n\
                            HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let http1 = raw(|mut stream: TcpStream| async move {
        spillway_tests::head_of_a_request(&mut stream).await;
        let _ = stream.write_all(ANSWER).await;
    })
    .await;
    let http2 = early_http2().await;
    for backend in
        [format!("endpoints: [{{url: \"{http1}\"}}]"), format!("http2: true, endpoints: [{{url: \"{http2}\"}}]")]
    {
        let gateway = start(&backend).await;
        let stream = TcpStream::connect(gateway.listener("h2c")).await.unwrap();
        let (client, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("http://a.test/x").body(()).unwrap();
        let (mut answer, _) = client.ready().await.unwrap().send_request(request, true).unwrap();
        for link in ["</a.css>", "</b.css>"] {
            let early = poll_fn(|cx| answer.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!((early.status().as_u16(), early.headers()["link"].to_str().unwrap()), (103, link), "{backend}");
            assert!(!early.headers().contains_key("x-spillway-x"), "{backend}");
        }
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), 200, "{backend}");
        let mut stream = TcpStream::connect(gateway.listener("plain")).await.unwrap();
        stream.write_all(b"GET /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer.matches("HTTP/1.1 103 Early Hints\r\n").count(), 2, "{backend}: {answer}");
    }
}

/// Server of HTTP/2 with two early answers.
async fn early_http2() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    for link in ["</a.css>", "</b.css>"] {
                        let early = Response::builder().status(103).header("link", link).header("x-spillway-x", "1");
                        respond.send_informational(early.body(()).unwrap()).unwrap();
                    }
                    let mut body = respond.send_response(Response::new(()), false).unwrap();
                    body.send_data(Bytes::from("ok"), true).unwrap();
                }
            });
        }
    });
    url
}
