//! Tokens of sockets: read from the messages of OpenAI's APIs as they pass, and counted as those of requests.

use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use spillway_tests::{
    CLOSE, Gateway, RawSocket, SocketServer, TEXT, eventually, free_port, new_key, opening, python, repository,
    socket_frame, switching,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Tokens that are reserved for a response: a sound of half a minute, and an answer without a limit.
const EXPECTED: u64 = 300 + 512;

/// The scripted server, stopped when dropped.
struct Server(Child);

impl Server {
    async fn start() -> (Self, u16) {
        let port = free_port();
        let mut command = Command::new(python());
        command.arg(repository().join("tests/python/websocket_server.py")).arg(port.to_string());
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        eventually("a server listens", || async { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok() })
            .await;
        (Self(child), port)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs OpenAI's client against the gateway and returns what it saw.
async fn client(gateway: &Gateway, key: &str, api: &str) -> Value {
    let mut command = Command::new(python());
    command.arg(repository().join("tests/python/socket_usage_client.py"));
    command.args([&format!("http://{}/v1", gateway.address), key, "gpt-realtime", api]);
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(out.status.success(), "{api}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Lines of the access log for sockets that have ended.
async fn logged(gateway: &Gateway, count: usize) -> Vec<Value> {
    eventually("sockets in the access log", || {
        let lines = gateway.events("access").into_iter().filter(|line| line["status"] == 101);
        let lines: Vec<Value> = lines.collect();
        async move { (lines.len() >= count).then_some(lines) }
    })
    .await
}

#[tokio::test]
async fn openais_client_is_counted_on_both_of_its_sockets_and_stopped_at_its_limit() {
    let (_server, port) = Server::start().await;
    let ((free, free_digest), (bound, bound_digest)) = (new_key(), new_key());
    let gateway = Gateway::start(&format!(
        "consumers:
  - {{name: free, keys: [{{sha256: \"{free_digest}\"}}], limits: {{budget: {{usd: 1, per: month}}}}}}
  - {{name: bound, keys: [{{sha256: \"{bound_digest}\"}}], limits: {{tokens: {}/d}}}}
prices: [{{model: gpt-realtime, input: 4, cachedInput: 1, output: 16}}]
backends: [{{name: voice, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:{port}\"}}]}}]
routes: [{{name: voice, backendRefs: [{{name: voice}}]}}]
",
        EXPECTED + 20
    ))
    .await;
    for api in ["realtime", "responses"] {
        let told = client(&gateway, &free, api).await;
        assert_eq!(
            told,
            json!({"responses": 10, "tokens": 120, "text": "Hello there".repeat(10), "models": ["gpt-realtime"]}),
            "{api}"
        );
    }
    // Each response costs ten tokens read, of which the second socket's cache had four, and two written.
    let spent = "spillway_budget_spent{budget=\"consumer free\",per=\"month\",unit=\"usd\"}";
    let micros = 10 * (10 * 4 + 2 * 16) + 10 * (6 * 4 + 4 + 2 * 16);
    gateway.metric_becomes(spent, f64::from(micros) / 1e6).await;
    let lines = logged(&gateway, 2).await;
    for (line, cached) in lines.iter().zip([None, Some(40)]) {
        assert_eq!((line["promptTokens"].as_u64(), line["completionTokens"].as_u64()), (Some(100), Some(20)), "{line}");
        assert_eq!(line["cachedTokens"].as_u64(), cached, "{line}");
    }
    // The first response leaves 8 tokens more than the next one is expected to use, the second leaves 4 less.
    let told = client(&gateway, &bound, "realtime").await;
    assert_eq!((told["responses"].as_u64(), told["code"].as_u64()), (Some(2), Some(1008)), "{told}");
    assert!(told["reason"].as_str().unwrap().contains("tokens for this consumer is reached"), "{told}");
    let line = logged(&gateway, 3).await.pop().unwrap();
    assert_eq!((&line["socketEnd"], line["promptTokens"].as_u64()), (&json!("limit"), Some(20)));
    let told = client(&gateway, &bound, "responses").await;
    assert_eq!(told["status"], 429, "too little is left to open another socket: {told}");
}

#[tokio::test]
async fn openais_client_reads_the_name_of_the_model_that_it_sent() {
    let (_server, port) = Server::start().await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: voice, protocol: openai, model: lab/voice, endpoints: [{{url: \"http://127.0.0.1:{port}\"}}]}}]
routes: [{{name: voice, backendRefs: [{{name: voice}}]}}]
"
    ))
    .await;
    for api in ["realtime", "responses"] {
        let told = client(&gateway, "none", api).await;
        assert_eq!((&told["responses"], &told["models"]), (&json!(10), &json!(["gpt-realtime"])), "{api}: {told}");
    }
    for line in logged(&gateway, 2).await {
        assert_eq!(line["promptTokens"].as_u64(), Some(100), "{line}");
    }
}

/// Usage of a response that used so many tokens.
fn done(input: u64, output: u64) -> String {
    let usage = json!({"input_tokens": input, "output_tokens": output, "total_tokens": input + output});
    json!({"type": "response.done", "response": {"id": "r", "status": "completed", "usage": usage}}).to_string()
}

fn create() -> String {
    json!({"type": "response.create"}).to_string()
}

/// A gateway with a consumer of `limits` in front of a scripted server, and the consumer's key.
async fn gateway(server: &SocketServer, limits: &str) -> (Gateway, String) {
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: c, keys: [{{sha256: \"{digest}\"}}], limits: {{{limits}}}}}]
backends: [{{name: voice, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: voice, backendRefs: [{{name: voice}}]}}]
",
        server.url()
    ))
    .await;
    (gateway, key)
}

/// A socket of the Realtime API: the end of the client, and that of the server.
async fn through(gateway: &Gateway, server: &SocketServer, key: &str) -> (RawSocket, RawSocket) {
    let request = opening("/v1/realtime?model=gpt-realtime", &format!("authorization: Bearer {key}\r\n"));
    let mut client = RawSocket::send_to(gateway.address, request.as_bytes()).await;
    let far = server.open().await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    (client, far)
}

/// Sends bytes in pieces that arrive one by one.
async fn drip(socket: &mut RawSocket, bytes: &[u8], size: usize) {
    for part in bytes.chunks(size) {
        socket.send(part).await;
        socket.stream.flush().await.unwrap();
        tokio::task::yield_now().await;
    }
}

async fn asks(client: &mut RawSocket, far: &mut RawSocket) {
    client.send_frame(TEXT, create().as_bytes()).await;
    assert_eq!(far.frame().await.unwrap().payload, create().as_bytes());
}

#[tokio::test]
async fn usage_is_read_however_frames_are_cut_and_whatever_comes_between() {
    let server = SocketServer::start().await;
    let used = done(400, 100);
    let (begin, rest) = used.split_at(40);
    let ping = socket_frame(0x89, b"still there", None);
    let fragments = [
        socket_frame(TEXT, begin.as_bytes(), None),
        ping.clone(),
        socket_frame(0, rest.as_bytes(), None),
        ping,
        socket_frame(0x80, b"", None),
    ];
    // Longer than anything that is held.
    let long = json!({"type": "response.done", "response": {
        "output": ["x".repeat(3 << 20)], "usage": {"input_tokens": 400, "output_tokens": 100},
    }});
    for (name, bytes, size) in [
        ("whole", socket_frame(0x80 | TEXT, used.as_bytes(), None), 1 << 20),
        ("every byte", socket_frame(0x80 | TEXT, used.as_bytes(), None), 1),
        ("fragments", fragments.concat(), 7),
        ("long", socket_frame(0x80 | TEXT, long.to_string().as_bytes(), None), 1 << 20),
    ] {
        let (gateway, key) = gateway(&server, &format!("tokens: {}/d", EXPECTED + 490)).await;
        let (mut client, mut far) = through(&gateway, &server, &key).await;
        // The client's frame is masked, and cut at every byte as well.
        drip(&mut client, &socket_frame(0x80 | TEXT, create().as_bytes(), Some([9, 8, 7, 6])), size).await;
        assert_eq!(far.frame().await.unwrap().payload, create().as_bytes(), "{name}");
        let (mut read, sent) = (Vec::new(), bytes.clone());
        let (mut reader, mut writer) = client.stream.split();
        let passed = async {
            let mut part = vec![0; 1 << 16];
            while read.len() < sent.len() {
                let count = reader.read(&mut part).await.unwrap();
                assert!(count > 0, "{name}");
                read.extend_from_slice(&part[..count]);
            }
        };
        tokio::join!(drip(&mut far, &bytes, size), passed);
        assert!(read == bytes, "{name}: passed as it was");
        // 500 of its tokens are used: what is left is less than the next response is expected to use.
        let next = socket_frame(0x80 | TEXT, create().as_bytes(), Some([1, 1, 1, 1]));
        writer.write_all(&next).await.unwrap();
        let refused = far.frame().await.unwrap();
        assert_eq!(refused.code(), 1008, "{name}: the frame that would start a response does not reach the server");
        assert_eq!(client.frame().await.unwrap().code(), 1008, "{name}");
        let line = logged(&gateway, 1).await.remove(0);
        assert_eq!((&line["promptTokens"], &line["completionTokens"]), (&json!(400), &json!(100)), "{name}");
    }
}

#[tokio::test]
async fn responses_that_are_asked_for_at_once_are_each_reserved() {
    let server = SocketServer::start().await;
    let begun = json!({"type": "response.created", "response": {"id": "r"}}).to_string();
    for is_begun in [false, true] {
        let (gateway, key) = gateway(&server, &format!("tokens: {}/d", 3 * EXPECTED)).await;
        let (mut client, mut far) = through(&gateway, &server, &key).await;
        for _ in 0..3 {
            asks(&mut client, &mut far).await;
            if is_begun {
                far.send_frame(TEXT, begun.as_bytes()).await;
                client.frame().await.unwrap();
            }
        }
        client.send_frame(TEXT, create().as_bytes()).await;
        assert_eq!(far.frame().await.unwrap().code(), 1008, "the fourth does not reach the server: {is_begun}");
    }
    // Without a limit in tokens no response is reserved.
    let (unlimited, key) = gateway(&server, "requests: 100/s").await;
    let (mut client, mut far) = through(&unlimited, &server, &key).await;
    for _ in 0..200 {
        asks(&mut client, &mut far).await;
    }
    let (gateway, key) = gateway(&server, "tokens: 10000000/d").await;
    let (mut client, mut far) = through(&gateway, &server, &key).await;
    for _ in 0..128 {
        asks(&mut client, &mut far).await;
    }
    client.send_frame(TEXT, create().as_bytes()).await;
    assert_eq!(far.frame().await.unwrap().code(), 1008, "more than any client has under way");
}

#[tokio::test]
async fn a_caller_at_its_limit_goes_on_listening_and_begins_no_response_by_any_spelling() {
    let server = SocketServer::start().await;
    let quiet = json!({"type": "conversation.item.truncate", "item_id": "i", "content_index": 0, "audio_end_ms": 1});
    let escaped = create().replace("response.create", "response\\u002ecreate");
    let twice = "{\"type\":\"response.cancel\",\"type\":\"response.create\"}".to_owned();
    let audio = json!({"type": "input_audio_buffer.append", "audio": "AAAA"}).to_string();
    for (opcode, spelled) in [(TEXT, escaped), (TEXT, twice), (TEXT, audio), (TEXT, "?".to_owned()), (2, create())] {
        let (gateway, key) = gateway(&server, &format!("tokens: {EXPECTED}/d")).await;
        let (mut client, mut far) = through(&gateway, &server, &key).await;
        asks(&mut client, &mut far).await;
        far.send_frame(TEXT, done(900, 100).as_bytes()).await;
        assert_eq!(client.frame().await.unwrap().payload, done(900, 100).as_bytes());
        client.send_frame(TEXT, quiet.to_string().as_bytes()).await;
        assert_eq!(far.frame().await.unwrap().payload, quiet.to_string().as_bytes());
        far.send_frame(TEXT, b"{\"type\":\"conversation.item.truncated\"}").await;
        assert_eq!(client.frame().await.unwrap().payload, b"{\"type\":\"conversation.item.truncated\"}");
        client.send_frame(opcode, spelled.as_bytes()).await;
        assert_eq!(
            (far.frame().await.unwrap().code(), client.frame().await.unwrap().code()),
            (1008, 1008),
            "{spelled}"
        );
    }
    // A response that the server begins by itself ends the socket as well.
    let (gateway, key) = gateway(&server, &format!("tokens: {EXPECTED}/d")).await;
    let (mut client, mut far) = through(&gateway, &server, &key).await;
    asks(&mut client, &mut far).await;
    far.send_frame(TEXT, done(900, 100).as_bytes()).await;
    client.frame().await.unwrap();
    let created = json!({"type": "response.created", "response": {"id": "r2"}}).to_string();
    far.send_frame(TEXT, created.as_bytes()).await;
    assert_eq!(client.frame().await.unwrap().payload, created.as_bytes());
    assert_eq!((client.frame().await.unwrap().code(), far.frame().await.unwrap().code()), (1008, 1008));
    // A frame of which a part has passed is cut with its connection.
    let (gateway, key) = self::gateway(&server, &format!("tokens: {EXPECTED}/d")).await;
    let (mut client, mut far) = through(&gateway, &server, &key).await;
    asks(&mut client, &mut far).await;
    far.send_frame(TEXT, done(900, 100).as_bytes()).await;
    client.frame().await.unwrap();
    let frame = socket_frame(0x80 | TEXT, create().as_bytes(), Some([1, 2, 3, 4]));
    let (begin, end) = frame.split_at(12);
    client.send(begin).await;
    let mut seen = [0; 12];
    far.stream.read_exact(&mut seen).await.unwrap();
    client.send(end).await;
    assert_eq!(client.frame().await.unwrap().code(), 1008);
    assert_eq!(far.rest().await, b"");
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_a_response_pays_for_what_was_said() {
    let server = SocketServer::start().await;
    let (gateway, key) = gateway(&server, "tokens: 100000/h").await;
    let (mut client, mut far) = through(&gateway, &server, &key).await;
    asks(&mut client, &mut far).await;
    far.send_frame(TEXT, done(1000, 10).as_bytes()).await;
    client.frame().await.unwrap();
    asks(&mut client, &mut far).await;
    far.send_frame(TEXT, b"{\"type\":\"response.created\",\"response\":{\"id\":\"r2\"}}").await;
    let delta =
        json!({"type": "response.output_text.delta", "response_id": "r2", "delta": "x".repeat(400)}).to_string();
    for _ in 0..2 {
        far.send_frame(TEXT, delta.as_bytes()).await;
        client.frame().await.unwrap();
    }
    client.frame().await.unwrap();
    drop((client, far));
    let line = logged(&gateway, 1).await.remove(0);
    assert_eq!(line["completionTokens"].as_u64(), Some(10 + 2 * 100), "{line}");
    let prompt = line["promptTokens"].as_u64().unwrap();
    assert!((2000..2100).contains(&prompt), "a prompt as long as the last one, and what was said since: {line}");
}

#[tokio::test]
async fn messages_that_are_read_are_not_compressed_and_others_may_be() {
    let server = SocketServer::start().await;
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: voice, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: plain, endpoints: [{{url: \"{0}\"}}]}}
routes:
  - {{name: voice, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: voice}}]}}
  - {{name: plain, backendRefs: [{{name: plain}}]}}
",
        server.url()
    ))
    .await;
    let offer = "sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n";
    for (path, is_offered) in
        [("/v1/realtime?model=m", false), ("/v1/responses", false), ("/v1/other", true), ("/chat", true)]
    {
        let mut client = RawSocket::send_to(gateway.address, opening(path, offer).as_bytes()).await;
        let (mut far, head) = server.accept().await;
        assert_eq!(head.to_ascii_lowercase().contains("permessage-deflate"), is_offered, "{path}: {head}");
        far.send(switching(&head).as_bytes()).await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    }
    // A server that compresses all the same is at fault.
    let mut client = RawSocket::send_to(gateway.address, opening("/v1/responses", offer).as_bytes()).await;
    let (mut far, head) = server.accept().await;
    let answer = switching(&head).replace("\r\n\r\n", "\r\nsec-websocket-extensions: permessage-deflate\r\n\r\n");
    far.send(answer.as_bytes()).await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 503 "), "{head}");
}

/// Next message, of one frame or many, and the number of its frames. Control frames between them are left out.
async fn message(socket: &mut RawSocket) -> (Vec<u8>, usize) {
    let (mut whole, mut frames) = (Vec::new(), 0);
    loop {
        let frame = socket.frame().await.expect("a frame");
        if frame.first & 0x08 != 0 {
            continue;
        }
        frames += 1;
        whole.extend(frame.payload);
        if frame.first & 0x80 != 0 {
            return (whole, frames);
        }
    }
}

#[tokio::test]
async fn each_side_reads_its_own_name_of_the_model_in_messages_however_they_are_cut() {
    let server = SocketServer::start().await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: openai, model: \"lab/m-1\", endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: b}}]}}]
",
        server.url()
    ))
    .await;
    let long = "x".repeat(100 << 10);
    let session = |model: &str, more: &str| {
        let transcription = json!({"model": "lab/m-1"});
        json!({"type": "session.x", "session": {"input": [transcription], "model": model, "instructions": more}})
            .to_string()
    };
    let create =
        |model: &str, more: &str| json!({"type": "response.create", "input": more, "model": model}).to_string();
    let created = |model: &str, more: &str| {
        json!({"type": "response.created", "response": {"output": [more], "model": model}, "model": "a \"lab/m-1\""})
            .to_string()
    };
    for size in [1 << 20, 1, 900] {
        let (mut client, mut far) = server.through(gateway.address, "/v1/realtime?model=voice").await;
        let (mut second, mut second_far) = server.through(gateway.address, "/v1/responses").await;
        for more in ["short", if size > 1 { long.as_str() } else { "short too" }] {
            let framed = |text: String| socket_frame(0x80 | TEXT, text.as_bytes(), None);
            let masked = |text: String| socket_frame(0x80 | TEXT, text.as_bytes(), Some([9, 8, 7, 6]));
            let (sent, came) = (framed(session("lab/m-1", more)), message(&mut client));
            let (_, (text, frames)) = tokio::join!(drip(&mut far, &sent, size), came);
            assert_eq!(String::from_utf8(text).unwrap(), session("voice", more), "{size}");
            assert_eq!(frames > 1, more.len() > 16 << 10, "{size}: only a long message comes in fragments");
            let (sent, came) = (masked(session("voice", more)), message(&mut far));
            let (_, (text, _)) = tokio::join!(drip(&mut client, &sent, size), came);
            assert_eq!(String::from_utf8(text).unwrap(), session("lab/m-1", more), "{size}");
            // Each request of the other socket names a model, and the answer is to that.
            for model in ["mini", "a \"large\" one"] {
                let (sent, came) = (masked(create(model, more)), message(&mut second_far));
                let (_, (text, _)) = tokio::join!(drip(&mut second, &sent, size), came);
                assert_eq!(String::from_utf8(text).unwrap(), create("lab/m-1", more), "{size}");
                let (sent, came) = (framed(created("lab/m-1", more)), message(&mut second));
                let (_, (text, _)) = tokio::join!(drip(&mut second_far, &sent, size), came);
                assert_eq!(String::from_utf8(text).unwrap(), created(model, more), "{size}");
            }
        }
        // What is no text passes as it is, and so does the end.
        let binary = session("lab/m-1", "");
        far.send_frame(2, binary.as_bytes()).await;
        assert_eq!(client.frame().await.unwrap().payload, binary.as_bytes());
        client.send_frame(CLOSE, &[3, 0xe8]).await;
        assert_eq!(far.frame().await.unwrap().code(), 1000);
    }
    // A server that leaves in the middle of a frame: what it began is no message, and nothing of it passes.
    let mut client = RawSocket::send_to(gateway.address, opening("/v1/realtime?model=voice", "").as_bytes()).await;
    let (mut far, head) = server.accept().await;
    assert!(head.starts_with("GET /v1/realtime?model=lab%2Fm-1 "), "{head}");
    far.send(switching(&head).as_bytes()).await;
    assert!(client.head().await.starts_with("HTTP/1.1 101 "));
    let half = socket_frame(0x80 | TEXT, session("lab/m-1", "").as_bytes(), None);
    far.send(&half[..half.len() / 2]).await;
    drop(far);
    let rest = client.rest().await;
    assert!(rest.is_empty() || rest[0] == 0x80 | CLOSE, "{rest:x?}");
}

#[tokio::test]
async fn a_socket_whose_tokens_nobody_can_count_is_refused_by_name() {
    let server = SocketServer::start().await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: c, keys: [{{sha256: \"{digest}\"}}], limits: {{tokens: 1000/h}}}}]
backends:
  - {{name: voice, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: claude, protocol: anthropic, endpoints: [{{url: \"{0}\"}}]}}
routes:
  - {{name: both, matches: [{{path: {{exact: /v1/realtime}}, model: both}}], backendRefs: [{{name: voice}}, {{name: claude}}]}}
  - name: by-model
    matches: [{{path: {{exact: /v1/responses}}}}]
    filters: [{{rateLimit: {{by: model, tokens: 5000/h}}}}]
    backendRefs: [{{name: voice}}]
  - {{name: voice, backendRefs: [{{name: voice}}]}}
",
        server.url()
    ))
    .await;
    let header = format!("authorization: Bearer {key}\r\n");
    for path in ["/v1/realtime?model=both", "/v1/responses", "/v1/realtime/translations"] {
        let mut socket = RawSocket::send_to(gateway.address, opening(path, &header).as_bytes()).await;
        let answer = String::from_utf8(socket.rest().await).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("socket_not_counted"), "{path}: {answer}");
    }
}
