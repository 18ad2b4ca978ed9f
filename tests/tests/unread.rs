//! Unread answers: a client that does not read its answer holds no server and takes bounded memory. After
//! `writeTimeout` without progress it is cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use spillway_tests::{Frames, Gateway, PATIENCE, Upstream, eventually, frame, model, reply, streamed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const CHAT: &str = r#"{"model":"m","max_tokens":8,"messages":[{"role":"user","content":"hi"}]}"#;
const STREAMED: &str = r#"{"model":"m","stream":true,"max_tokens":8,"messages":[{"role":"user","content":"hi"}]}"#;
const PATH: &str = "/v1/chat/completions";
/// A limit that no test reaches.
const NEVER: &str = "writeTimeout: 10m";

async fn start(limits: &str, rest: &str) -> Gateway {
    let yaml = format!(
        "listeners:
  - {{name: plain, address: \"127.0.0.1:0\", limits: {{{limits}}}}}
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c, limits: {{{limits}}}}}
{rest}"
    );
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await
}

/// Route to a server that takes at most four requests at a time.
fn to(url: &str) -> String {
    format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{url}\"}}], capacity: {{maxInFlight: 4}}}}]
routes: [{{name: r, backendRefs: [{{name: x}}]}}]
"
    )
}

fn completion() -> String {
    let choice = serde_json::json!({"index": 0, "message": {"content": "yes"}, "finish_reason": "stop"});
    let usage = serde_json::json!({"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10});
    serde_json::json!({"id": "c", "model": "served", "choices": [choice], "usage": usage}).to_string()
}

fn piece(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

/// Server that streams a few events, one after the other.
async fn talks() -> Upstream {
    Upstream::start(|_| async {
        let (send, parts) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            for text in [piece("one"), piece(" two"), "data: [DONE]\n\n".to_owned()] {
                tokio::time::sleep(Duration::from_millis(20)).await;
                let _ = send.send(Ok(text.into())).await;
            }
        });
        Some(streamed(&[("content-type", "text/event-stream")], parts))
    })
    .await
}

/// Server whose answer has no end.
async fn endless() -> Upstream {
    counted().await.0
}

/// Server whose answer has no end, and the count of bytes that it has written, of all answers.
async fn counted() -> (Upstream, Arc<AtomicUsize>) {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let upstream = Upstream::start(move |_| {
        let count = count.clone();
        async move {
            let (send, parts) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                let part = Bytes::from(vec![b'x'; 64 << 10]);
                while send.send(Ok(part.clone())).await.is_ok() {
                    count.fetch_add(part.len(), Ordering::Relaxed);
                }
            });
            Some(streamed(&[], parts))
        }
    })
    .await;
    (upstream, written)
}

/// Waits until the server writes nothing more: nobody reads on. More than the sockets on the way hold is too much.
async fn is_read_no_further(written: &AtomicUsize) {
    let mut before = usize::MAX;
    eventually("the server is read no further", || {
        let now = written.load(Ordering::Relaxed);
        assert!(now < 512 << 20, "{now} bytes are read of answers that nobody takes");
        let is_same = std::mem::replace(&mut before, now) == now;
        async move {
            tokio::time::sleep(Duration::from_millis(300)).await;
            is_same.then_some(())
        }
    })
    .await;
}

async fn is_free(gateway: &Gateway, upstream: &Upstream) {
    eventually("no slot is held", || async {
        (gateway.endpoint(&upstream.url()).await["inFlight"] == 0).then_some(())
    })
    .await;
}

async fn are_answered(frames: &Frames, streams: &[u32]) {
    eventually("the heads come", || async { streams.iter().all(|stream| frames.is_ok(*stream)).then_some(()) }).await;
}

#[tokio::test]
async fn a_client_that_opens_no_window_holds_no_place_of_a_server() {
    for (upstream, body, expected) in [
        (
            Upstream::start(|_| async { Some(reply(200, &[("content-type", "application/json")], completion())) })
                .await,
            CHAT,
            completion(),
        ),
        (talks().await, STREAMED, piece("one") + &piece(" two") + "data: [DONE]\n\n"),
    ] {
        let gateway = start(NEVER, &to(&upstream.url())).await;
        let mut deaf = Frames::connect(gateway.listener("h2c"), 0).await;
        let mut streams = Vec::new();
        for _ in 0..4 {
            streams.push(deaf.send(PATH, body).await);
        }
        are_answered(&deaf, &streams).await;
        is_free(&gateway, &upstream).await;
        // Others are served, again and again.
        for _ in 0..8 {
            assert_eq!(gateway.client().post(PATH, &[], body).await.text(), expected);
        }
        // Bytes being written are not counted, bytes queued behind them are.
        let waits = gateway.metric("spillway_buffered_answer_bytes").await;
        assert_eq!(waits > 0.0, body == STREAMED, "{waits}");
        assert!(streams.iter().all(|stream| deaf.body(*stream).0.is_empty()));
        for stream in &streams {
            deaf.open(*stream, 1 << 20).await;
        }
        for stream in &streams {
            let whole = eventually("the answer is taken", || async {
                let (body, is_whole) = deaf.body(*stream);
                is_whole.then_some(body)
            });
            assert_eq!(whole.await, expected);
        }
        gateway.metric_becomes("spillway_buffered_answer_bytes", 0.0).await;
        eventually("all are counted as answered", || async {
            (gateway.endpoint(&upstream.url()).await["attempts"]["answered"] == 12).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_client_with_a_full_socket_holds_no_place_of_a_server() {
    // More than all sockets on the way hold.
    let long = || Bytes::from(vec![b'x'; 32 << 20]);
    let upstream = Upstream::start(move |_| async move { Some(reply(200, &[], long())) }).await;
    let memory = "limits: {bufferedAnswers: 128MiB, bufferedAnswersPerRequest: 64MiB}\n";
    let gateway = start(NEVER, &(to(&upstream.url()) + memory)).await;
    let mut deaf = TcpStream::connect(gateway.listener("plain")).await.unwrap();
    deaf.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    eventually("it is asked", || async { (upstream.count() == 1).then_some(()) }).await;
    is_free(&gateway, &upstream).await;
    let mut all = Vec::new();
    deaf.read_to_end(&mut all).await.unwrap();
    let body = all.windows(4).position(|end| end == b"\r\n\r\n").unwrap() + 4;
    assert!(all[body..] == long(), "{} bytes of {}", all.len() - body, 32 << 20);
    gateway.metric_becomes("spillway_buffered_answer_bytes", 0.0).await;
}

#[tokio::test]
async fn the_time_in_which_a_client_does_not_read_is_none_of_the_servers() {
    // More than all sockets on the way hold.
    let upstream = Upstream::start(move |_| async move { Some(reply(200, &[], vec![b'x'; 32 << 20])) }).await;
    let memory = "limits: {bufferedAnswersPerRequest: 64KiB}\n";
    let gateway = start(NEVER, &(to(&upstream.url()) + memory)).await;
    let began = Instant::now();
    let mut deaf = TcpStream::connect(gateway.listener("plain")).await.unwrap();
    deaf.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    eventually("it is asked", || async { (upstream.count() == 1).then_some(()) }).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    deaf.read_to_end(&mut Vec::new()).await.unwrap();
    // One series, since there is one model.
    let measured = async |of: &str| {
        let series = format!("gen_ai_client_operation_duration_seconds_{of}{{");
        let shown = gateway.shown("/metrics").await;
        let line = shown.lines().find(|line| line.starts_with(&series))?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    };
    eventually("it is measured", || async { (measured("count").await? >= 1.0).then_some(()) }).await;
    let (whole, counted) = (began.elapsed().as_secs_f64(), measured("sum").await.unwrap());
    // The rest of a second is for what went on before the sockets were full.
    assert!(counted < whole - 4.0, "{counted} of {whole} seconds are counted");
}

#[tokio::test]
async fn a_client_that_takes_nothing_for_its_time_is_cut_whatever_its_route_allows() {
    let endless = endless().await;
    let gateway =
        start("writeTimeout: 1s", &(to(&endless.url()) + "limits: {bufferedAnswersPerRequest: 64KiB}\n")).await;
    let mut frames = Frames::connect(gateway.listener("h2c"), 0).await;
    let (silent, trickling) = (frames.send("/", "").await, frames.send("/", "").await);
    let mut deaf = TcpStream::connect(gateway.listener("plain")).await.unwrap();
    deaf.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // One of HTTP/2 that has opened its windows and does not read its socket: SETTINGS, WINDOW_UPDATE, HEADERS with GET.
    let window = (1u32 << 30).to_be_bytes();
    let asks = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(4, 0, 0, &[&[0, 4][..], &window].concat()),
        frame(8, 0, 0, &window),
        frame(1, 0x5, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'x']),
    ];
    let mut socket = TcpStream::connect(gateway.listener("h2c")).await.unwrap();
    socket.write_all(&asks.concat()).await.unwrap();
    eventually("all are asked", || async { (endless.count() == 4).then_some(()) }).await;
    // Opening the window by a byte now and then does not help.
    let began = Instant::now();
    while !(frames.is_reset(silent) && frames.is_reset(trickling)) {
        assert!(began.elapsed() < PATIENCE, "both streams are reset");
        frames.open(trickling, 1).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    is_free(&gateway, &endless).await;
    let mut rest = Vec::new();
    // Bytes in the sockets arrive, then the end.
    let ended = tokio::time::timeout(PATIENCE, deaf.read_to_end(&mut rest)).await;
    let _ = ended.expect("the connection is closed");
    gateway.metric_becomes("spillway_connections{listener=\"h2c\"}", 1.0).await;
    assert!(gateway.metric("spillway_client_write_timeouts_total").await >= 4.0);
    gateway.metric_becomes("spillway_buffered_answer_bytes", 0.0).await;
    assert!(!frames.is_over(), "its connection goes on");
    let good = frames.send("/", "").await;
    are_answered(&frames, &[good]).await;
}

#[tokio::test]
async fn what_waits_for_clients_is_bounded_for_each_and_in_all() {
    let (endless, written) = counted().await;
    let memory = "limits: {bufferedAnswers: 300KiB, bufferedAnswersPerRequest: 128KiB}\n";
    let gateway = start(NEVER, &(to(&endless.url()).replace("maxInFlight: 4", "maxInFlight: 100") + memory)).await;
    let mut frames = Frames::connect(gateway.listener("h2c"), 0).await;
    let series = "spillway_buffered_answer_bytes";
    let first = frames.send("/", "").await;
    are_answered(&frames, &[first]).await;
    eventually("it is read ahead of", || async { (gateway.metric(series).await > 0.0).then_some(()) }).await;
    is_read_no_further(&written).await;
    assert!(gateway.metric(series).await <= f64::from(128 << 10));
    let mut streams = vec![first];
    for _ in 0..20 {
        streams.push(frames.send("/", "").await);
    }
    are_answered(&frames, &streams).await;
    is_read_no_further(&written).await;
    assert!(gateway.metric(series).await <= f64::from(300 << 10));
    drop(frames);
    gateway.metric_becomes(series, 0.0).await;
    is_free(&gateway, &endless).await;
}

#[tokio::test]
async fn answers_of_the_gateway_itself_wait_no_longer() {
    let upstream = Upstream::fixed(200, "").await;
    let rest = format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: r, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}
",
        upstream.url()
    );
    let gateway = start("writeTimeout: 1s", &rest).await;
    let mut frames = Frames::connect(gateway.listener("h2c"), 0).await;
    let mut streams = Vec::new();
    for path in ["/v1/models", "/nowhere"] {
        streams.push(frames.send(path, "").await);
    }
    eventually("both are reset", || async { streams.iter().all(|stream| frames.is_reset(*stream)).then_some(()) })
        .await;
    assert!(!frames.is_over());
}

#[tokio::test]
async fn a_connection_window_that_is_never_opened_ends_the_streams_behind_it() {
    let long = Bytes::from(vec![b'x'; 40_000]);
    let upstream = Upstream::start(move |_| {
        let long = long.clone();
        async move { Some(reply(200, &[], long)) }
    })
    .await;
    let gateway = start("writeTimeout: 1s", &to(&upstream.url())).await;
    // Each stream has window enough; the connection has 65,535 bytes, and no more.
    let mut frames = Frames::connect(gateway.listener("h2c"), 1 << 30).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(frames.send("/", "").await);
    }
    are_answered(&frames, &streams).await;
    is_free(&gateway, &upstream).await;
    eventually("each has ended", || async {
        streams.iter().all(|stream| frames.is_reset(*stream) || frames.body(*stream).1).then_some(())
    })
    .await;
    assert!(streams.iter().any(|stream| frames.is_reset(*stream)));
}

#[tokio::test]
async fn who_leaves_an_answer_unread_has_used_what_was_written_for_it() {
    // At once, and in two parts: the end is read while its client does not take the beginning.
    for parts in [1, 2] {
        let upstream = Upstream::start(move |_| async move {
            let (send, body) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                let whole = completion();
                for part in whole.as_bytes().chunks(whole.len().div_ceil(parts)) {
                    let _ = send.send(Ok(Bytes::copy_from_slice(part))).await;
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            });
            Some(streamed(&[("content-type", "application/json")], body))
        })
        .await;
        let gateway = start(NEVER, &(to(&upstream.url()) + "telemetry: {logs: {access: true}}\n")).await;
        let mut frames = Frames::connect(gateway.listener("h2c"), 0).await;
        let stream = frames.send(PATH, CHAT).await;
        are_answered(&frames, &[stream]).await;
        is_free(&gateway, &upstream).await;
        drop(frames);
        let line = eventually("the line of the request", || async { gateway.events("access").first().cloned() }).await;
        assert_eq!((&line["promptTokens"], &line["completionTokens"]), (&7.into(), &3.into()), "{parts}: {line}");
        let shown = gateway.endpoint(&upstream.url()).await;
        assert_eq!(shown["attempts"]["answered"], 1, "the server has done its part: {shown}");
    }
}

#[tokio::test]
async fn a_stream_that_dies_unread_is_continued_and_its_server_is_free() {
    let dies = Upstream::start(|_| async {
        let (send, parts) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            let _ = send.send(Ok(piece("one").into())).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            let _ = send.send(Err(std::io::Error::other("dead"))).await;
        });
        Some(streamed(&[("content-type", "text/event-stream")], parts))
    })
    .await;
    let goes_on = talks().await;
    let gateway = start(
        NEVER,
        &format!(
            "backends:
  - {{name: a, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
  - {{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
routes: [{{name: r, backendRefs: [{{name: a}}, {{name: b, priority: 1}}], resume: true}}]
",
            dies.url(),
            goes_on.url()
        ),
    )
    .await;
    let mut frames = Frames::connect(gateway.listener("h2c"), 0).await;
    let stream = frames.send(PATH, STREAMED).await;
    are_answered(&frames, &[stream]).await;
    is_free(&gateway, &dies).await;
    assert_eq!(goes_on.count(), 0, "the rest is asked for when the beginning was taken");
    frames.open(stream, u32::try_from(piece("one").len()).unwrap()).await;
    eventually("the rest is asked for", || async { (goes_on.count() == 1).then_some(()) }).await;
    is_free(&gateway, &goes_on).await;
    frames.open(stream, 1 << 20).await;
    let whole = eventually("the answer is taken", || async {
        let (body, is_whole) = frames.body(stream);
        is_whole.then_some(body)
    })
    .await;
    assert!(whole.contains("\"one\"") && whole.contains("\" two\"") && whole.ends_with("data: [DONE]\n\n"), "{whole}");
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_that_do_not_read_shut_nobody_out_of_a_built_in_model() {
    let inside = format!(
        "models: [{{name: m, source: \"{}\", device: cpu, contextLength: 256, maxSequences: 2}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: m}}], whenSaturated: {{reject: {{status: 429}}}}}}]
",
        model().display()
    );
    // Complete answers wait in memory; without any memory for them the engine itself must release its slot. The
    // two tokens that end an answer (0 and 2) are ruled out, so that each is longer than what the engine buffers.
    let long = "\"max_tokens\":120,\"temperature\":0,\"logit_bias\":{\"0\":-100,\"2\":-100}";
    for (memory, wanted) in [("1MiB", CHAT), ("1MiB", STREAMED), ("0B", STREAMED)] {
        let wanted = wanted.replace("\"max_tokens\":8", long);
        let limits = format!("limits: {{bufferedAnswersPerRequest: {memory}}}\n");
        let gateway = start(NEVER, &(inside.clone() + &limits)).await;
        let mut frames = Frames::connect(gateway.listener("h2c"), 0).await;
        for _ in 0..4 {
            frames.send(PATH, &wanted).await;
        }
        for _ in 0..3 {
            eventually("others are served", || async {
                (gateway.client().post(PATH, &[], CHAT).await.status == 200).then_some(())
            })
            .await;
        }
        gateway.metric_becomes("spillway_engine_active_sequences{model=\"m\"}", 0.0).await;
    }
}
