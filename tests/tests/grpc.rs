//! Callers of gRPC read gRPC statuses from the gateway as from their servers, and their deadlines are kept.

use std::collections::BTreeMap;
use std::process::Command;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use spillway_tests::{Gateway, PythonServer, Upstream, eventually, free_port, http2_over, python, repository};
use tokio::net::{TcpListener, TcpStream};

/// Calls of the script by name.
async fn calls(address: std::net::SocketAddr) -> BTreeMap<String, Value> {
    let mut command = Command::new(python());
    command.arg(repository().join("tests/python/grpc_client.py")).arg(address.to_string());
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let lines = String::from_utf8(out.stdout).unwrap();
    let parsed = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    parsed.map(|line| (line["name"].as_str().unwrap().to_owned(), line)).collect()
}

const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

fn all_routes(service: &str) -> String {
    format!(
        "listeners: [{{address: \"127.0.0.1:0\", protocol: h2c}}]
consumers:
  - name: one
    limits: {{requests: 1/h, burst: 1}}
    keys: [{{sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}}]
backends:
  - {{name: service, http2: true, limits: {{maxHeaderBytes: 4KiB}}, endpoints: [{{url: \"{service}\"}}]}}
  - {{name: narrow, http2: true, capacity: {{maxInFlight: 1}}, endpoints: [{{url: \"{service}\"}}]}}
  - {{name: dead, http2: true, endpoints: [{{url: \"http://127.0.0.1:{dead}\"}}]}}
routes:
  - {{name: health, matches: [{{path: {{prefix: /grpc.health.v1.Health}}}}], authentication: none, backendRefs: [{{name: service}}]}}
  - {{name: open, matches: [{{path: {{prefix: /open.Echo}}}}], authentication: none, backendRefs: [{{name: service}}]}}
  - {{name: closed, matches: [{{path: {{prefix: /closed.Echo}}}}], backendRefs: [{{name: service}}]}}
  - name: denied
    matches: [{{path: {{prefix: /denied.Echo}}}}]
    authentication: none
    filters: [{{cel: {{deny: \"true\", status: 403, message: \"n\u{e9} 100%\"}}}}]
    backendRefs: [{{name: service}}]
  - name: invalid
    matches: [{{path: {{prefix: /invalid.Echo}}}}]
    authentication: none
    filters: [{{cel: {{deny: \"true\"}}}}]
    backendRefs: [{{name: service}}]
  - name: small
    matches: [{{path: {{prefix: /small.Echo}}}}]
    authentication: none
    limits: {{maxBody: 20B}}
    backendRefs: [{{name: service}}]
  - {{name: dead, matches: [{{path: {{prefix: /dead.Echo}}}}], authentication: none, backendRefs: [{{name: dead}}]}}
  - name: quick
    matches: [{{path: {{prefix: /quick.Echo}}}}]
    authentication: none
    timeouts: {{request: 700ms}}
    backendRefs: [{{name: service}}]
  - name: brief
    matches: [{{path: {{prefix: /brief.Echo}}}}]
    authentication: none
    timeouts: {{request: 30s}}
    backendRefs: [{{name: service}}]
  - name: full
    matches: [{{path: {{prefix: /full.Echo}}}}]
    authentication: none
    whenSaturated: {{reject: {{status: 503, retryAfter: 2s}}}}
    backendRefs: [{{name: narrow}}]
  - name: full-429
    matches: [{{path: {{prefix: /full-429.Echo}}}}]
    authentication: none
    whenSaturated: {{reject: {{status: 429, retryAfter: 9s}}}}
    backendRefs: [{{name: narrow}}]
  - name: respond
    matches: [{{path: {{prefix: /respond.Echo}}}}]
    authentication: none
    filters: [{{respond: {{status: 503, body: later}}}}]
",
        dead = free_port()
    )
}

#[tokio::test]
async fn a_real_client_reads_the_statuses_of_its_server_and_of_the_gateway() {
    let service = PythonServer::start("grpc_service.py");
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &all_routes(&service.url)).await;
    let calls = calls(gateway.address).await;
    let expect = |name: &str, code: &str, messages: &[&str]| {
        let call = &calls[name];
        assert_eq!((&call["code"], &call["messages"]), (&Value::from(code), &Value::from(messages)), "{call}");
        call
    };
    let long = "x".repeat(200_000);
    for (name, messages) in [
        ("unary", &["abc"][..]),
        ("unary-empty", &[""]),
        ("unary-long", &[&long]),
        ("stream", &["0", "1", "2"]),
        ("stream-empty", &[]),
        ("upload", &["300"]),
        ("upload-empty", &["0"]),
        ("chat", &["a", "", "c"]),
        ("health", &["SERVING"]),
        ("health-not", &["NOT_SERVING"]),
        ("key", &["abc"]),
    ] {
        expect(name, "OK", messages);
    }
    for (number, code) in CODES.iter().enumerate().skip(1) {
        for (kind, messages) in [("own", &[][..]), ("own-stream", &["0", "1"]), ("own-empty", &[])] {
            let call = expect(&format!("{kind}-{number}"), code, messages);
            assert_eq!(call["details"], "n\u{e9} 100%", "{call}");
            assert_eq!(
                (&call["trailing"]["x-why"], &call["trailing"]["x-why-bin"]),
                (&"because".into(), &"00ff".into())
            );
        }
    }
    expect("own-health", "NOT_FOUND", &[]);
    let own = expect("own-method", "UNIMPLEMENTED", &[]);
    assert!(!own["details"].as_str().unwrap().contains("route"), "{own}");

    for (name, code, details) in [
        ("unauthenticated", "UNAUTHENTICATED", "key"),
        ("denied", "PERMISSION_DENIED", "n\u{e9} 100%"),
        ("unknown", "UNIMPLEMENTED", "no route matches POST /unknown.Echo/"),
        ("small", "RESOURCE_EXHAUSTED", "20 bytes"),
        ("dead", "UNAVAILABLE", "available"),
        ("invalid", "INVALID_ARGUMENT", "not accepted"),
    ] {
        // The first message of a chat may be answered before the one that is too much.
        let kinds = ["unary", "stream", "upload", "chat"].into_iter().filter(|kind| (name, *kind) != ("small", "chat"));
        for kind in kinds {
            let call = expect(&format!("{name}-{kind}"), code, &[]);
            assert!(call["details"].as_str().unwrap().contains(details), "{call}");
        }
    }
    assert_eq!(calls["small-chat"]["code"], "RESOURCE_EXHAUSTED", "{}", calls["small-chat"]);
    let spent = expect("key-spent", "RESOURCE_EXHAUSTED", &[]);
    assert!(spent["trailing"]["grpc-retry-pushback-ms"].as_str().unwrap().parse::<u64>().unwrap() > 1000, "{spent}");
    expect("too-big", "UNAVAILABLE", &[]);
    let late = expect("late", "DEADLINE_EXCEEDED", &[]);
    assert!(late["details"].as_str().unwrap().contains("timeouts.request"), "{late}");
    let late = expect("late-stream", "DEADLINE_EXCEEDED", &["0", "1"]);
    assert!(late["details"].as_str().unwrap().contains("timeouts.request"), "{late}");
    let full = expect("full", "UNAVAILABLE", &[]);
    assert_eq!(full["trailing"]["grpc-retry-pushback-ms"], "2000", "{full}");
    assert_eq!(full["trailing"]["retry-after"], "2", "{full}");
    let full = expect("full-429", "RESOURCE_EXHAUSTED", &[]);
    assert_eq!(full["trailing"]["grpc-retry-pushback-ms"], "-1", "{full}");
    // An answer of a filter is none of gRPC: the client translates its status.
    expect("respond", "UNAVAILABLE", &[]);
    assert!(!calls["respond"]["details"].as_str().unwrap().is_empty());
    let died = expect("died", "UNAVAILABLE", &["0", "1"]);
    assert!(died["details"].as_str().unwrap().contains("ended the answer early"), "{died}");

    // Clients round their times up.
    let seconds = |name: &str| calls[name]["messages"][0].as_str().unwrap().parse::<f64>().unwrap();
    assert!(seconds("time") > 0.0 && seconds("time") < 21.0, "{}", calls["time"]);
    assert!(seconds("time-route") > 0.0 && seconds("time-route") < 31.0, "{}", calls["time-route"]);
    expect("time-none", "OK", &["none"]);

    // Logs have the status that a refusal stands for.
    let line = eventually("the calls are logged", || {
        let lines = gateway.events("access");
        let of = |path: &str| lines.iter().find(|line| line["path"] == path).cloned();
        let both = of("/closed.Echo/Stream").zip(of("/quick.Echo/Slow"));
        async move { both }
    });
    let (closed, quick) = line.await;
    assert_eq!((&closed["status"], &closed["protocol"]), (&401.into(), &"HTTP/2".into()));
    assert_eq!((&quick["status"], &quick["errorCode"]), (&504.into(), &"request_timeout".into()));
}

/// Server of HTTP/2 that records the head of each request. Under `/hang` it never answers; under `/begin` its answer has no
/// end; `/break` resets the stream after a part of a message.
async fn scripted() -> (String, std::sync::Arc<std::sync::Mutex<Vec<http::request::Parts>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heads = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = heads.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let log = log.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let (head, _) = request.into_parts();
                let path = head.uri.path().to_owned();
                log.lock().unwrap().push(head);
                async move {
                    if path == "/hang" {
                        return std::future::pending().await;
                    }
                    let part = futures::stream::iter([Ok(Frame::data(Bytes::from_static(b"\0\0\0\0\x09part")))]);
                    let rest = async move {
                        match path.as_str() {
                            "/break" => {
                                // A reset takes with it what was not sent yet.
                                tokio::time::sleep(std::time::Duration::from_millis(300)).await;
                                Err(std::io::Error::other("broken"))
                            }
                            "/begin" => std::future::pending().await,
                            _ => {
                                let mut trailers = HeaderMap::new();
                                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                                Ok(Frame::trailers(trailers))
                            }
                        }
                    };
                    let body = futures::StreamExt::chain(part, futures::stream::once(rest));
                    let answer = Response::builder().header("content-type", "application/grpc");
                    Ok::<_, std::io::Error>(answer.body(BodyExt::boxed_unsync(StreamBody::new(body))).unwrap())
                }
            });
            let serve = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serve.serve_connection(TokioIo::new(stream), service));
        }
    });
    (url, heads)
}

async fn before(url: &str) -> Gateway {
    let yaml = format!(
        "listeners:
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}
  - {{name: plain, address: \"127.0.0.1:0\"}}
backends: [{{name: up, http2: true, endpoints: [{{url: \"{url}\"}}]}}]
routes:
  - {{name: no, matches: [{{path: {{prefix: /no}}}}], filters: [{{cel: {{deny: \"true\", status: 403}}}}], backendRefs: [{{name: up}}]}}
  - {{name: r, backendRefs: [{{name: up}}]}}
"
    );
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await
}

fn call(path: &str, headers: &[(&str, &str)]) -> Request<Full<Bytes>> {
    let mut request = Request::post(format!("http://a.test{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Full::new(Bytes::from_static(b"\0\0\0\0\0"))).unwrap()
}

const GRPC: (&str, &str) = ("content-type", "application/grpc+proto");

#[tokio::test]
async fn a_refused_call_is_answered_with_its_head_alone() {
    let (url, _) = scripted().await;
    let gateway = before(&url).await;
    let mut client = http2_over(TcpStream::connect(gateway.listener("h2c")).await.unwrap()).await;
    let answer = client.send_request(call("/no", &[GRPC])).await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["content-type"]),
        (200, &"application/grpc".parse().unwrap())
    );
    assert_eq!(answer.headers()["grpc-status"], "7");
    assert_eq!(answer.headers()["grpc-message"], "this request is not accepted here");
    assert!(answer.headers().contains_key("x-request-id"));
    assert!(answer.body().is_end_stream(), "the head ends the stream");

    // Over HTTP/1.1 the form is the same.
    let plain = spillway_tests::Client::new(gateway.listener("plain"));
    let answer = plain.post("/no", &[GRPC], "").await;
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, ""));
    assert_eq!(answer.headers["grpc-status"], "7");

    // Requests of other types, methods and gRPC-Web get what they got.
    for (kind, path) in [("application/json", "/no"), ("application/grpc-web+proto", "/no")] {
        let answer = client.send_request(call(path, &[("content-type", kind)])).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.headers().contains_key("grpc-status")), (403, false), "{kind}");
    }
    let get = plain.send(plain.request("GET", "/no", &[GRPC], "")).await;
    assert_eq!((get.status.as_u16(), &get.json()["code"]), (403, &"request_denied".into()));
    let statuses = eventually("the requests are logged", || {
        let all: Vec<_> = gateway.events("access").iter().map(|line| line["status"].clone()).collect();
        async move { (all.len() == 5).then_some(all) }
    });
    assert!(statuses.await.iter().all(|status| *status == 403));
}

#[tokio::test]
async fn the_callers_time_is_passed_on_and_kept() {
    let (url, heads) = scripted().await;
    let gateway = before(&url).await;
    let mut client = http2_over(TcpStream::connect(gateway.listener("h2c")).await.unwrap()).await;
    for value in ["1", "S", "1s", "-1S", "+1S", "123456789m", "1S1S", "1.5S", "99999999999999999999S"] {
        let answer = client.send_request(call("/", &[GRPC, ("grpc-timeout", value)])).await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["grpc-status"]),
            (200, &"3".parse().unwrap()),
            "{value}"
        );
    }
    assert!(heads.lock().unwrap().is_empty(), "no server sees a malformed time");

    let answer = client.send_request(call("/", &[GRPC, ("grpc-timeout", "99999999H")])).await.unwrap();
    assert_eq!(answer.into_body().collect().await.unwrap().trailers().unwrap()["grpc-status"], "0");
    let sent = heads.lock().unwrap().pop().unwrap().headers["grpc-timeout"].clone();
    let text = sent.to_str().unwrap();
    // The route's ten minutes, less what is used.
    let (number, unit) = text.split_at(text.len() - 1);
    assert_eq!(unit, "m", "{text}");
    assert!((1..=600_000).contains(&number.parse::<u32>().unwrap()), "{text}");

    // A request of another API has a header of this name for itself.
    client.send_request(call("/", &[("grpc-timeout", "soon")])).await.unwrap();
    assert_eq!(heads.lock().unwrap().pop().unwrap().headers["grpc-timeout"], "soon");

    // Over the gateway's time to judge a server by a deadline: the server is not to blame for the caller's haste.
    for turn in 0..2 {
        let answer = client.send_request(call("/hang", &[GRPC, ("grpc-timeout", "1200m")])).await.unwrap();
        assert_eq!(
            (&answer.headers()["grpc-status"], answer.body().is_end_stream()),
            (&"4".parse().unwrap(), true),
            "{turn}"
        );
        assert!(answer.headers()["grpc-message"].to_str().unwrap().contains("grpc-timeout"), "{answer:?}");
        let answer = client.send_request(call("/begin", &[GRPC, ("grpc-timeout", "1200m")])).await.unwrap();
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "4", "{turn}");
    }
    let endpoint = gateway.endpoint(&url).await;
    assert_eq!(endpoint["lastError"], Value::Null, "{endpoint}");
    let logged = eventually("the calls are logged", || {
        let all = gateway.events("access");
        let late =
            all.into_iter().filter(|line| line["path"] == "/hang" || line["path"] == "/begin").collect::<Vec<_>>();
        async move { (late.len() == 4).then_some(late) }
    });
    for line in logged.await {
        assert_eq!((&line["errorCode"], &line["limit"]), (&"request_timeout".into(), &"grpc-timeout".into()), "{line}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_ends_with_a_status() {
    let (url, _) = scripted().await;
    let gateway = before(&url).await;
    let mut client = http2_over(TcpStream::connect(gateway.listener("h2c")).await.unwrap()).await;
    let answer = client.send_request(call("/break", &[GRPC])).await.unwrap();
    let body = answer.into_body().collect().await.unwrap();
    let trailers = body.trailers().unwrap().clone();
    assert_eq!(body.to_bytes(), "\0\0\0\0\x09part");
    assert_eq!(
        (&trailers["grpc-status"], &trailers["grpc-message"]),
        (&"14".parse().unwrap(), &"the backend ended the answer early".parse().unwrap())
    );
    // A caller of another API sees its answer cut.
    let answer = client.send_request(call("/break", &[])).await.unwrap();
    assert!(answer.into_body().collect().await.is_err());
}

#[tokio::test]
async fn a_call_of_grpc_on_the_path_of_a_model_api_is_judged_as_any_other() {
    let upstream = Upstream::fixed(200, "{}").await;
    let yaml = format!(
        "consumers: [{{name: c, models: [\"a*\"], keys: [{{sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}}]}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}]}}]
",
        upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let key = ("authorization", "Bearer test");
    for (body, status) in [("{\"model\": \"b\", \"messages\": []}", "5"), ("\0\0\0\0\0", "3")] {
        let answer = client.post("/v1/chat/completions", &[GRPC, key], body).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["grpc-status"]),
            (200, &status.parse().unwrap()),
            "{body:?}"
        );
    }
    assert_eq!(upstream.count(), 0);
}
