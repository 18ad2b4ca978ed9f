//! A server that fails must look failed, and one that is well must not, whatever the status of its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use spillway_tests::{Gateway, PathReader, Upstream, binary, encoded, eventually, reply, streamed};
use tokio::sync::mpsc;

const JSON: &[(&str, &str)] = &[("content-type", "application/json")];
const EVENTS: &[(&str, &str)] = &[("content-type", "text/event-stream")];

const ANSWER: &str = r#"{"id":"c1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hello"},"finish_reason":"stop"}]}"#;
const CHUNKS: &str =
    "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"hello\"}}]}\n\ndata: [DONE]\n\n";

/// Server that answers every request with one body, as an event stream or as JSON.
async fn says(body: &'static str) -> Upstream {
    let headers = if body.starts_with(['d', ':', 'e']) { EVENTS } else { JSON };
    Upstream::start(move |_| async move { Some(reply(200, headers, body)) }).await
}

/// Server that answers well, in the form that is asked for.
async fn well() -> Upstream {
    Upstream::start(|seen| async move {
        let is_stream = seen.body.windows(13).any(|part| part == b"\"stream\":true");
        Some(if is_stream { reply(200, EVENTS, CHUNKS) } else { reply(200, JSON, ANSWER) })
    })
    .await
}

/// Two backends, of which the first is asked first.
fn two(protocol: &str, first: &Upstream, second: &Upstream, more: &str) -> String {
    format!(
        "backends:
  - {{name: a, protocol: {protocol}, endpoints: [{{url: \"{}\"}}, {{url: \"{}\", weight: 0}}], outlierDetection: {{consecutiveErrors: 3}}}}
  - {{name: b, protocol: {protocol}, endpoints: [{{url: \"{}\"}}]}}
routes:
  - name: r
    backendRefs: [{{name: a}}, {{name: b, priority: 1}}]
{more}",
        first.url(),
        second.url(),
        second.url()
    )
}

/// Line of the access log of the last of `count` requests.
async fn access(gateway: &Gateway, count: usize) -> serde_json::Value {
    eventually("the requests are logged", || async { gateway.events("access").get(count - 1).cloned() }).await
}

const ASK: &str = r#"{"model":"m","messages":[{"role":"user","content":"hi"}]}"#;
const ASK_STREAM: &str = r#"{"model":"m","stream":true,"messages":[{"role":"user","content":"hi"}]}"#;
const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn an_error_inside_an_answer_of_200_is_tried_elsewhere_and_counts_against_its_server() {
    let other = well().await;
    for body in [
        r#"{"error":{"message":"CUDA error","type":"InternalServerError","param":null,"code":500}}"#,
        r#"{"error":"out of memory"}"#,
        r#"{"object":"error","message":"engine died","type":"InternalServerError","param":null,"code":500}"#,
        "data: {\"error\":{\"message\":\"engine died\",\"type\":\"InternalServerError\",\"code\":500}}\n\ndata: [DONE]\n\n",
        "data: {\"id\":\"g\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"finish_reason\":\"error\"}],\"error\":{\"code\":502,\"message\":\"m\"}}\n\n",
        "event: error\ndata: {\"type\":\"error\",\"code\":\"server_error\",\"message\":\"m\",\"param\":null}\n\n",
        // No empty line ends it.
        "data: {\"error\":{\"message\":\"m\",\"code\":500}}",
    ] {
        let failing = says(body).await;
        let gateway = Gateway::start(&two("openai", &failing, &other, "")).await;
        for n in 1..=3 {
            let is_stream = body.starts_with(['d', 'e']);
            let asked = if is_stream { ASK_STREAM } else { ASK };
            let answer = gateway.client().post(CHAT, &[("content-type", "application/json")], asked).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.text(), if is_stream { CHUNKS } else { ANSWER }, "{body}");
            let line = access(&gateway, n).await;
            assert_eq!((&line["attempts"], &line["servedBy"]), (&2.into(), &"b".into()), "{line}");
        }
        let ejected = eventually("it is ejected", || async { gateway.events("endpoint_ejected").first().cloned() });
        assert_eq!(ejected.await["endpoint"], failing.url());
        assert_eq!(failing.count(), 3);
    }
}

#[tokio::test]
async fn an_error_inside_a_compressed_answer_of_200_is_tried_elsewhere() {
    let other = well().await;
    for (kind, error) in [
        (JSON[0], r#"{"error":{"message":"CUDA error","code":500}}"#),
        (EVENTS[0], "data: {\"error\":{\"message\":\"engine died\",\"code\":500}}\n\n"),
    ] {
        let failing = Upstream::start(move |_| async move {
            Some(reply(200, &[kind, ("content-encoding", "gzip")], encoded("gzip", error.as_bytes())))
        })
        .await;
        let gateway = Gateway::start(&two("openai", &failing, &other, "")).await;
        let answer = gateway.client().post(CHAT, &[("content-type", "application/json")], ASK).await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str(), failing.count()), (200, ANSWER, 1), "{error}");
        let line = access(&gateway, 1).await;
        assert_eq!((&line["attempts"], &line["cause"]), (&2.into(), &"reported_error".into()), "{line}");
    }
}

#[tokio::test]
async fn an_error_inside_an_answer_of_200_reaches_the_client_where_no_try_is_left_and_is_logged() {
    let other = well().await;
    for body in
        [r#"{"error":{"message":"CUDA error","code":500}}"#, "data: {\"error\":{\"message\":\"m\",\"code\":500}}\n\n"]
    {
        let failing = says(body).await;
        let gateway = Gateway::start(&two("openai", &failing, &other, "    retry: {attempts: 0}\n")).await;
        for n in 1..=3 {
            let answer = gateway.client().post(CHAT, &[("content-type", "application/json")], ASK_STREAM).await;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, body));
            let line = access(&gateway, n).await;
            assert_eq!((&line["errorCode"], &line["attempts"]), (&"upstream_error".into(), &1.into()), "{line}");
        }
    }
}

#[tokio::test]
async fn an_error_behind_a_part_of_the_answer_reaches_the_client_and_is_logged() {
    let other = well().await;
    for first in
        [": busy\n\n", "data: {\"id\":\"c\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\"}}]}\n\n"]
    {
        let (sends, mut sending) = mpsc::channel::<mpsc::Sender<Result<Bytes, std::io::Error>>>(4);
        let server = Upstream::start(move |_| {
            let sends = sends.clone();
            async move {
                let (send, parts) = mpsc::channel(4);
                sends.send(send).await.unwrap();
                Some(streamed(EVENTS, parts))
            }
        })
        .await;
        let gateway = Gateway::start(&two("openai", &server, &other, "")).await;
        let client = gateway.client();
        for n in 1..=2 {
            let asked = tokio::spawn({
                let client = client.clone();
                async move {
                    let json = &[("content-type", "application/json")];
                    client.stream(client.request("POST", CHAT, json, ASK_STREAM)).await.unwrap()
                }
            });
            let send = sending.recv().await.unwrap();
            send.send(Ok(first.into())).await.unwrap();
            // The head does not wait behind it.
            let mut stream = asked.await.unwrap();
            assert_eq!(stream.part().await.unwrap().unwrap(), first);
            let error = "data: {\"error\":{\"code\":500}}\n\n";
            send.send(Ok(error.into())).await.unwrap();
            drop(send);
            assert_eq!(stream.part().await.unwrap().unwrap(), error);
            assert!(stream.part().await.is_none());
            let line = access(&gateway, n).await;
            assert_eq!((&line["errorCode"], &line["attempts"]), (&"upstream_error".into(), &1.into()), "{line}");
        }
    }
}

#[tokio::test]
async fn an_answer_that_only_looks_like_an_error_passes_and_its_server_is_well() {
    let other = well().await;
    for (protocol, body) in [
        ("http", r#"{"error":{"message":"m","code":500}}"#),
        ("http", "data: {\"error\":{\"message\":\"m\",\"code\":500}}\n\n"),
        // The request is at fault.
        ("openai", r#"{"error":{"message":"m","type":"invalid_request_error","code":"context_length_exceeded"}}"#),
        ("openai", "data: {\"error\":{\"message\":\"m\",\"type\":\"BadRequestError\",\"code\":400}}\n\n"),
        ("openai", r#"{"error":{"message":"images are not supported","code":501}}"#),
        // The kept answer of a run that failed.
        ("openai", r#"{"id":"resp_1","object":"response","status":"failed","error":{"code":"server_error"}}"#),
        ("openai", r#"{"error":null,"id":"resp_1","object":"response","status":"completed"}"#),
        ("openai", r#"{"error":"","object":"list","data":[]}"#),
        ("openai", r#"[{"error":{"code":500}}]"#),
        ("openai", r#""error""#),
        ("openai", ""),
        ("openai", "{\"error\":"),
    ] {
        let server = says(body).await;
        let gateway = Gateway::start(&two(protocol, &server, &other, "")).await;
        for n in 1..=4 {
            let answer = gateway.client().post("/v1/responses", &[("content-type", "application/json")], ASK).await;
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, body), "{protocol}");
            assert_eq!(access(&gateway, n).await["attempts"], 1);
        }
        assert!(gateway.events("endpoint_ejected").is_empty(), "{protocol} {body}");
    }
}

#[tokio::test]
async fn a_server_that_says_inside_an_answer_of_200_that_it_is_full_is_left_for_a_while_and_not_blamed() {
    let other = well().await;
    let full = says(r#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#).await;
    let gateway = Gateway::start(&two("openai", &full, &other, "    retry: {attempts: 0}\n")).await;
    for _ in 0..4 {
        let answer = gateway.client().post(CHAT, &[("content-type", "application/json")], ASK).await;
        assert_eq!(answer.text(), ANSWER);
    }
    assert_eq!(full.count(), 1, "it is left alone");
    assert!(gateway.events("endpoint_ejected").is_empty());
}

/// Sends requests of both kinds from several clients at a time; returns the answers that were not 200.
async fn load(gateway: &Gateway, clients: usize, each: usize) -> Vec<String> {
    let ask = (0..clients).map(|n| {
        let client = gateway.client();
        async move {
            let mut bad = Vec::new();
            for k in 0..each {
                let is_post = (n + k) % 2 == 0;
                let answer =
                    if is_post { client.post("/x", &[], "a".repeat(300)).await } else { client.get("/x").await };
                if answer.status != 200 {
                    bad.push(format!("{} {} {}", if is_post { "POST" } else { "GET" }, answer.status, answer.text()));
                }
            }
            bad
        }
    });
    futures::future::join_all(ask).await.concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_lost_where_a_server_of_http2_ends_its_connections_and_says_what_it_did_not_see() {
    // Many clients and connections of one request: those that wait find each new connection used up by others.
    for (requests, protocol, clients, each) in [(7, "http", 12, 60), (7, "openai", 12, 60), (1, "http", 64, 20)] {
        let nginx = PathReader::nginx_of_short_connections(requests).await;
        let gateway = Gateway::start(&format!(
            "backends: [{{name: x, protocol: {protocol}, http2: true, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}], retry: {{attempts: 0}}}}]\n",
            nginx.url
        ))
        .await;
        let bad = load(&gateway, clients, each).await;
        assert!(bad.is_empty(), "{requests} {protocol}: {} of {}: {:?}", bad.len(), clients * each, bad.first());
        assert_eq!(gateway.metric("spillway_retries_total{http_route=\"r\"}").await, 0.0, "no retry is spent");
        assert!(gateway.events("endpoint_ejected").is_empty());
    }
}

/// Treatment of a request by [`restless`].
#[derive(Clone, Copy)]
enum Does {
    Answer,
    /// Refuses the stream.
    Refuse,
    /// Ends the connection with this reason, and looks at no further stream.
    GoAway(h2::Reason),
}

/// Server of HTTP/2 whose `n`-th request is treated as `does` says. Counts the requests.
async fn restless(does: fn(usize) -> Does) -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let count = counted.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    match does(count.fetch_add(1, Ordering::Relaxed)) {
                        Does::Answer => {
                            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
                            body.send_data("ok".into(), true).unwrap();
                        }
                        Does::Refuse => respond.send_reset(h2::Reason::REFUSED_STREAM),
                        Does::GoAway(reason) => {
                            connection.abrupt_shutdown(reason);
                            let _ = futures::future::poll_fn(|cx| connection.poll_closed(cx)).await;
                            return;
                        }
                    }
                }
            });
        }
    });
    (url, count)
}

async fn before_http2(url: &str) -> Gateway {
    Gateway::start(&format!(
        "backends: [{{name: x, http2: true, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{backendRefs: [{{name: x}}], retry: {{attempts: 0, backoff: {{base: 1ms, max: 1ms}}}}}}]\n"
    ))
    .await
}

#[tokio::test]
async fn a_stream_that_a_server_refuses_is_sent_again_and_not_without_end() {
    let (url, count) = restless(|n| if n % 4 == 3 { Does::Answer } else { Does::Refuse }).await;
    let gateway = before_http2(&url).await;
    for n in 1..=3 {
        let answer = gateway.client().post("/", &[], "abc").await;
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "ok"));
        assert_eq!(access(&gateway, n).await["attempts"], 4);
    }
    assert_eq!(count.load(Ordering::Relaxed), 12);
    // A long body has gone to the server as it came, and is there no more; without a body, anything may be sent again.
    let long = gateway.client().post("/", &[], vec![b'a'; 1 << 20]).await;
    assert_eq!(long.status, 503);
    assert_eq!(gateway.client().get("/").await.status, 200);
    let (url, count) = restless(|_| Does::Refuse).await;
    let gateway = before_http2(&url).await;
    assert_eq!(gateway.client().post("/", &[], "abc").await.status, 503);
    assert_eq!(count.load(Ordering::Relaxed), 9, "the first try and eight more");
}

#[tokio::test]
async fn what_a_server_may_have_seen_is_not_sent_again() {
    // The stream is the last one that the end of its connection names.
    let (url, count) = restless(|_| Does::GoAway(h2::Reason::NO_ERROR)).await;
    let gateway = before_http2(&url).await;
    assert_eq!(gateway.client().post("/", &[], "abc").await.status, 503);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

/// State of the first endpoint from the admin API.
async fn shown(gateway: &Gateway, url: &str) -> serde_json::Value {
    gateway.endpoint(url).await
}

#[tokio::test]
async fn a_server_that_cannot_be_reached_is_named_with_the_cause_in_the_log_and_to_operators() {
    let dead = Upstream::nobody().await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{dead}\"}}]}}]\nroutes: [{{name: r, backendRefs: [{{name: x}}], retry: {{attempts: 0}}}}]\n"
    ))
    .await;
    assert!(shown(&gateway, &dead).await.get("lastError").is_none());
    for n in 1..=6 {
        let answer = gateway.client().get("/").await;
        assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"));
        let line = access(&gateway, n).await;
        assert_eq!(
            (&line["endpoint"], &line["failedEndpoint"]),
            (&dead.as_str().into(), &dead.as_str().into()),
            "{line}"
        );
        assert_eq!((&line["cause"], line.get("limit")), (&"connect_failure".into(), None), "{line}");
    }
    let shown = shown(&gateway, &dead).await;
    assert_eq!((&shown["healthy"], &shown["state"]), (&false.into(), &"open".into()), "{shown}");
    assert_eq!(shown["lastError"]["cause"], "connect_failure: ConnectRefused", "{shown}");
    assert!(shown["lastError"]["time"].as_str().unwrap().ends_with('Z'));
    let told = gateway.events("endpoint_failed");
    assert_eq!(told.len(), 1, "one line a minute");
    assert_eq!(
        (&told[0]["level"], &told[0]["backend"], &told[0]["endpoint"]),
        (&"WARN".into(), &"x".into(), &dead.as_str().into())
    );
    assert_eq!(told[0]["cause"], "connect_failure: ConnectRefused");
    let admin = format!("http://{}", gateway.admin);
    let out =
        std::process::Command::new(binary()).args(["top", "--once", "--interval", "0.1", "--admin", &admin]).output();
    let top = String::from_utf8(out.unwrap().stdout).unwrap();
    assert!(top.contains("LAST ERROR") && top.contains("connect_failure: ConnectRefused"), "{top}");
}

#[tokio::test]
async fn a_time_limit_that_is_over_is_named_to_the_caller_and_in_the_log() {
    let silent = Upstream::start(|_| std::future::pending()).await;
    // Its streams begin, and stop before the first event, or in the middle.
    let pausing = Upstream::start(|seen| async move {
        let (send, parts) = mpsc::channel(4);
        tokio::spawn(async move {
            if seen.path.contains("begun") {
                send.send(Ok("data: {\"choices\":[]}\n\n".into())).await.unwrap();
            }
            send.closed().await;
        });
        Some(streamed(EVENTS, parts))
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: first, endpoints: [{{url: \"{silent}\"}}], timeouts: {{firstByte: 100ms}}}}
  - {{name: own, endpoints: [{{url: \"{silent}\"}}]}}
  - {{name: idle, protocol: openai, endpoints: [{{url: \"{pausing}\"}}], timeouts: {{idle: 200ms}}}}
routes:
  - {{name: a, matches: [{{path: {{prefix: /first}}}}], backendRefs: [{{name: first}}]}}
  - {{name: b, matches: [{{path: {{prefix: /attempt}}}}], backendRefs: [{{name: own}}], timeouts: {{backendRequest: 100ms}}}}
  - {{name: c, matches: [{{path: {{prefix: /request}}}}], backendRefs: [{{name: own}}], timeouts: {{request: 200ms}}}}
  - {{name: d, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: idle}}]}}
",
        silent = silent.url(),
        pausing = pausing.url()
    ))
    .await;
    for (n, (path, endpoint, limit)) in [
        ("/first", silent.url(), "backends[].timeouts.firstByte"),
        ("/attempt", silent.url(), "routes[].timeouts.backendRequest"),
        ("/request", silent.url(), "routes[].timeouts.request"),
        ("/v1/other", pausing.url(), "backends[].timeouts.idle"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = gateway.client().post(path, &[("content-type", "application/json")], "{}").await;
        assert_eq!(answer.status, 504, "{path}");
        assert!(answer.text().contains(limit.split_once('.').unwrap().1), "{path}: {}", answer.text());
        let line = access(&gateway, n + 1).await;
        assert_eq!((&line["limit"], &line["endpoint"]), (&limit.into(), &endpoint.into()), "{line}");
        assert_eq!(line["attempts"], 1, "a generation is not begun again elsewhere");
    }
    let broken = gateway.client().post("/v1/begun", &[("content-type", "application/json")], "{}").await;
    assert!(broken.text().contains("timeouts.idle"), "{}", broken.text());
    let line = access(&gateway, 5).await;
    assert_eq!((&line["status"], &line["limit"]), (&200.into(), &"backends[].timeouts.idle".into()), "{line}");
}

#[tokio::test]
async fn what_leaves_no_room_is_named_in_the_log() {
    let (hold, held) = (Arc::new(tokio::sync::Semaphore::new(0)), Arc::new(AtomicUsize::new(0)));
    let (holds, counts) = (hold.clone(), held.clone());
    let server = Upstream::start(move |_| {
        let (hold, held) = (holds.clone(), counts.clone());
        async move {
            held.fetch_add(1, Ordering::SeqCst);
            hold.acquire().await.unwrap().forget();
            Some(reply(200, &[], "late"))
        }
    })
    .await;
    for (backend, route, expected) in [
        (", capacity: {maxInFlight: 1}", "", "maxInFlight"),
        (", circuitBreaker: {maxInFlight: 1}", "", "circuitBreaker.maxInFlight"),
        (
            ", capacity: {maxInFlight: 1}",
            ", whenSaturated: {queue: {maxWait: 10ms, maxDepth: 1}}",
            "whenSaturated.queue.maxWait",
        ),
    ] {
        let gateway = Gateway::start(&format!(
            "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]{backend}}}]\nroutes: [{{name: r, backendRefs: [{{name: x}}]{route}}}]\n",
            server.url()
        ))
        .await;
        let before = held.load(Ordering::SeqCst);
        let (client, waiting) = (gateway.client(), gateway.client());
        let first = tokio::spawn(async move { waiting.get("/").await });
        eventually("the first one is there", || async { (held.load(Ordering::SeqCst) > before).then_some(()) }).await;
        assert_eq!(client.get("/").await.status, 503);
        assert_eq!(access(&gateway, 1).await["limit"], expected);
        hold.add_permits(1);
        assert_eq!(first.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn requests_of_one_caller_that_no_server_can_serve_eject_nobody() {
    // As llama.cpp without a projector answers images.
    let no_images = || {
        Upstream::start(|seen| async move {
            let is_image = seen.body.windows(9).any(|part| part == b"image_url");
            Some(if is_image {
                reply(
                    500,
                    JSON,
                    r#"{"error":{"code":500,"message":"image input is not supported","type":"server_error"}}"#,
                )
            } else {
                reply(200, JSON, ANSWER)
            })
        })
    };
    let (a, b) = (no_images().await, no_images().await);
    const IMAGE: &str =
        r#"{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:"}}]}]}"#;
    for (policy, retry) in [
        ("roundRobin", ""),
        ("roundRobin", "    retry: {attempts: 1, on: [\"500\"]}\n"),
        ("hash, hashOn: {header: x-session}", ""),
    ] {
        let gateway = Gateway::start(&format!(
            "backends:
  - name: x
    protocol: openai
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}]
    loadBalancing: {{policy: {policy}}}
    outlierDetection: {{minimumRequests: 6}}
routes:
  - name: r
    backendRefs: [{{name: x}}]
{retry}",
            a.url(),
            b.url()
        ))
        .await;
        let json = &[("content-type", "application/json"), ("x-session", "s")];
        for _ in 0..4 {
            assert_eq!(gateway.client().post(CHAT, json, ASK).await.status, 200);
        }
        for _ in 0..12 {
            let answer = gateway.client().post(CHAT, json, IMAGE).await;
            assert!(answer.status.is_server_error(), "{}", answer.status);
        }
        for _ in 0..4 {
            assert_eq!(gateway.client().post(CHAT, json, ASK).await.status, 200);
        }
        assert!(gateway.events("endpoint_ejected").is_empty(), "{policy} {retry}");
    }
}

#[tokio::test]
async fn a_server_whose_errors_meet_two_callers_or_operations_or_that_others_do_not_have_is_ejected() {
    let (broken, other) = (Upstream::fixed(500, "{}").await, well().await);
    let start = async |policy: &str, more: &str| {
        Gateway::start(&format!(
            "backends:
  - name: x
    protocol: openai
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"{more}}}]
    loadBalancing: {{policy: {policy}}}
routes: [{{name: r, backendRefs: [{{name: x}}]}}]
",
            broken.url(),
            other.url()
        ))
        .await
    };
    let json = &[("content-type", "application/json")];
    // Alone with one caller and operation, it is not known whose fault it is.
    let gateway = start("roundRobin", ", priority: 1").await;
    for _ in 0..8 {
        assert_eq!(gateway.client().post(CHAT, json, ASK).await.status, 500);
    }
    assert!(gateway.events("endpoint_ejected").is_empty());
    // A second operation says it.
    assert_eq!(gateway.client().post("/v1/embeddings", json, ASK).await.status, 500);
    let ejected = eventually("it is ejected", || async { gateway.events("endpoint_ejected").first().cloned() }).await;
    assert_eq!((&ejected["backend"], &ejected["endpoint"]), (&"x".into(), &broken.url().into()));
    // So does a neighbour that serves the same caller and operation.
    let gateway = start("roundRobin", "").await;
    for _ in 0..12 {
        gateway.client().post(CHAT, json, ASK).await;
    }
    let ejected = eventually("it is ejected", || async { gateway.events("endpoint_ejected").first().cloned() }).await;
    assert_eq!((&ejected["reason"], &ejected["endpoint"]), (&"consecutive_errors".into(), &broken.url().into()));
    // And 501 says nothing.
    let unable = Upstream::fixed(501, "{}").await;
    let gateway = Gateway::start(&two("openai", &unable, &other, "")).await;
    for path in ["/v1/embeddings", CHAT, "/v1/images/generations", CHAT, CHAT] {
        assert_eq!(gateway.client().post(path, json, ASK).await.status, 501);
    }
    assert!(gateway.events("endpoint_ejected").is_empty());
}

/// Longer than the silence after which a server of `protocol: http` is given up.
const THINKING: std::time::Duration = std::time::Duration::from_secs(63);

#[tokio::test]
async fn a_model_may_think_and_pause_for_longer_than_a_minute_where_no_limit_is_written() {
    let server = Upstream::start(|seen| async move {
        if !seen.body.windows(13).any(|part| part == b"\"stream\":true") {
            tokio::time::sleep(THINKING).await;
            return Some(reply(200, JSON, ANSWER));
        }
        let (send, parts) = mpsc::channel(4);
        tokio::spawn(async move {
            send.send(Ok("data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"well\"}}]}\n\n".into()))
                .await
                .unwrap();
            tokio::time::sleep(THINKING).await;
            let _ = send.send(Ok(CHUNKS.into())).await;
        });
        Some(streamed(EVENTS, parts))
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: x, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: plain, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: r, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}
  - {{name: p, matches: [{{path: {{prefix: /plain}}}}], backendRefs: [{{name: plain}}]}}
",
        url = server.url()
    ))
    .await;
    let (client, json) = (gateway.client(), &[("content-type", "application/json")]);
    let (whole, stream, plain) = tokio::join!(
        client.post(CHAT, json, ASK),
        client.post(CHAT, json, ASK_STREAM),
        client.post("/plain", json, ASK)
    );
    assert_eq!((whole.status.as_u16(), whole.text().as_str()), (200, ANSWER));
    assert!(stream.text().ends_with(CHUNKS), "{}", stream.text());
    assert_eq!(plain.status, 504, "another server has a minute");
    assert_eq!(server.count(), 3, "nothing was begun twice");
}

#[tokio::test]
async fn every_line_of_the_log_has_its_time_under_one_name() {
    let server = Upstream::fixed(200, "ok").await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]\nroutes: [{{backendRefs: [{{name: x}}], authentication: required}}]\nconsumers: [{{name: c, keys: [{{sha256: \"{}\"}}]}}]\n",
        server.url(),
        "0".repeat(64)
    ))
    .await;
    assert_eq!(gateway.client().get("/").await.status, 401);
    access(&gateway, 1).await;
    eventually("the refusal is audited", || async { gateway.events("audit").first().cloned() }).await;
    for line in gateway.log().lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(line["timestamp"].as_str().is_some_and(|time| time.ends_with('Z')), "{line}");
        assert!(line.get("time").is_none(), "{line}");
    }
}
