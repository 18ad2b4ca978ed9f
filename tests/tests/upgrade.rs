//! Hand-over of a running gateway to a new process: no request fails, no budget is lost, and a process that cannot start leaves
//! the one before as it was.

#![allow(clippy::print_stdout, reason = "tests")]

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use spillway_tests::{Client, Gateway, Upstream, binary, eventually, new_key, reply, streamed};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;

/// Server whose answers under `/stream` are event streams that begin at once and end when the test drops the senders; all others
/// are short.
async fn server() -> (Upstream, Arc<Mutex<Vec<mpsc::Sender<Result<bytes::Bytes, std::io::Error>>>>>) {
    let open = Arc::new(Mutex::new(Vec::new()));
    let streams = open.clone();
    let upstream = Upstream::start(move |seen| {
        let streams = streams.clone();
        async move {
            if seen.path != "/stream" {
                return Some(reply(200, &[], "fine"));
            }
            let (send, parts) = mpsc::channel(4);
            send.send(Ok("data: first\n\n".into())).await.unwrap();
            streams.lock().await.push(send);
            Some(streamed(&[("content-type", "text/event-stream")], parts))
        }
    })
    .await;
    (upstream, open)
}

fn plain(upstream: &Upstream) -> String {
    format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]\nroutes: [{{backendRefs: [{{name: x}}]}}]\n",
        upstream.url()
    )
}

/// Two listeners, for both versions of HTTP.
const LISTENERS: &str = "listeners:
  - {name: plain, address: \"127.0.0.1:0\"}
  - {name: h2c, address: \"127.0.0.1:0\", protocol: h2c}
";

/// Counts of a load.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicUsize,
    connections: AtomicUsize,
}

impl Load {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    /// Sends requests over HTTP/1.1, each `pause` after the one before, on connections that are kept as long as the gateway keeps
    /// them. Every failure fails the test: nothing is tried again.
    async fn http1(&self, address: SocketAddr, pause: Duration) {
        let mut connection: Option<BufReader<TcpStream>> = None;
        let mut clock = tokio::time::interval(pause);
        while self.goes_on() {
            clock.tick().await;
            let mut open = match connection.take() {
                Some(open) => open,
                None => {
                    self.connections.fetch_add(1, Ordering::Relaxed);
                    BufReader::new(TcpStream::connect(address).await.expect("a connection"))
                }
            };
            open.get_mut().write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await.expect("sent");
            let (mut closes, mut length, mut line) = (false, 0, String::new());
            loop {
                line.clear();
                let read = open.read_line(&mut line).await.expect("a head");
                assert!(read > 0, "the connection was closed under a request");
                match line.trim_end() {
                    "" => break,
                    "connection: close" => closes = true,
                    other => {
                        if let Some(value) = other.strip_prefix("content-length: ") {
                            length = value.parse().unwrap();
                        }
                        assert!(!other.starts_with("HTTP/1.1 ") || other.starts_with("HTTP/1.1 200"), "{other}");
                    }
                }
            }
            let mut body = vec![0; length];
            open.read_exact(&mut body).await.expect("a body");
            assert_eq!(body, b"fine");
            self.answered.fetch_add(1, Ordering::Relaxed);
            connection = Some(open).filter(|_| !closes);
        }
    }

    /// As [`Self::http1`], over HTTP/2; a connection is given up once the gateway says that it goes away.
    async fn http2(&self, address: SocketAddr, pause: Duration) {
        let mut clock = tokio::time::interval(pause);
        while self.goes_on() {
            let stream = TcpStream::connect(address).await.expect("a connection");
            self.connections.fetch_add(1, Ordering::Relaxed);
            let (mut sender, connection) = h2::client::handshake(stream).await.expect("a handshake");
            tokio::spawn(connection);
            while self.goes_on() {
                clock.tick().await;
                match sender.ready().await {
                    Ok(ready) => sender = ready,
                    Err(e) => {
                        assert!(e.is_go_away() || e.is_io(), "{e}");
                        break;
                    }
                }
                let request = http::Request::get(format!("http://{address}/")).body(()).unwrap();
                let answer = match sender.send_request(request, true) {
                    Ok((answer, _)) => answer,
                    // Known to the client before anything was sent.
                    Err(_) => break,
                };
                let answer = answer.await.expect("an answer");
                assert_eq!(answer.status(), 200);
                let mut body = answer.into_body();
                while let Some(part) = body.data().await {
                    let part = part.expect("a body");
                    let _ = body.flow_control().release_capacity(part.len());
                }
                self.answered.fetch_add(1, Ordering::Relaxed);
                // The driver learns of the end between two requests.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Hands over `upgrades` times while `rate` requests a second run over both versions of HTTP, and `streams` event streams are
/// open from before the first hand-over to after the last.
async fn upgrade_under_load(upgrades: usize, rate: u32, streams: usize) {
    let (upstream, open) = server().await;
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &format!("{LISTENERS}{}", plain(&upstream))).await;
    let client = gateway.client();
    let mut reading = JoinSet::new();
    for _ in 0..streams {
        let mut stream = client.stream(client.request("GET", "/stream", &[], "")).await.unwrap();
        assert_eq!(stream.part().await.unwrap().unwrap(), "data: first\n\n");
        reading.spawn(async move {
            let mut rest = Vec::new();
            while let Some(part) = stream.part().await {
                rest.extend(part.expect("the stream is whole"));
            }
            String::from_utf8(rest).unwrap()
        });
    }
    let load = Arc::new(Load::default());
    let mut clients = JoinSet::new();
    let workers = 16;
    let pause = Duration::from_secs(1) * workers / rate;
    let (http1, http2) = (gateway.address, gateway.listener("h2c"));
    for worker in 0..workers {
        let load = load.clone();
        clients.spawn(async move {
            if worker % 4 == 0 { load.http2(http2, pause).await } else { load.http1(http1, pause).await }
        });
    }
    let began = std::time::Instant::now();
    let first = gateway.id();
    for n in 0..upgrades {
        let before = gateway.serving().await;
        let (code, said) = gateway.upgrade().await;
        assert_eq!(code, Some(0), "hand-over {n}: {said}");
        // A connection to the admin address of the process before may have waited there.
        let now = eventually("another process serves", || async {
            Some(gateway.serving().await).filter(|now| *now != before)
        })
        .await;
        assert!(said.contains(&format!("process {now} serves")), "{said}");
        let seen = load.answered.load(Ordering::Relaxed);
        eventually("requests go on", || {
            assert!(clients.try_join_next().is_none(), "a client failed");
            let goes_on = load.answered.load(Ordering::Relaxed) > seen + 200;
            async move { goes_on.then_some(()) }
        })
        .await;
    }
    load.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = clients.join_next().await {
        ended.expect("no request failed");
    }
    let answered = load.answered.load(Ordering::Relaxed);
    let rate = answered as f64 / began.elapsed().as_secs_f64();
    let opened = load.connections.load(Ordering::Relaxed);
    println!("{upgrades} hand-overs, {answered} requests at {rate:.0}/s over {opened} connections, {streams} streams");
    // The streams are those of the first process, which waits for them.
    for send in open.lock().await.drain(..) {
        send.send(Ok("data: last\n\n".into())).await.unwrap();
    }
    while let Some(rest) = reading.join_next().await {
        assert_eq!(rest.unwrap(), "data: last\n\n");
    }
    assert_ne!(gateway.serving().await, first);
    assert_eq!(gateway.events("handed_over").len(), upgrades);
    assert!(gateway.events("drain_timeout").is_empty(), "{}", gateway.log());
    drop(upstream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_processes_take_over_under_load_and_no_request_fails() {
    upgrade_under_load(3, 200, 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a release binary and a quiet machine: make test-upgrades"]
async fn twenty_new_processes_take_over_under_two_thousand_requests_a_second() {
    upgrade_under_load(20, 2_000, 50).await;
}

#[tokio::test]
async fn an_old_process_ends_with_its_last_stream_and_its_idle_connections_are_still_answered() {
    let (upstream, open) = server().await;
    let gateway = Gateway::start(&plain(&upstream)).await;
    let client = gateway.client();
    let mut stream = client.stream(client.request("GET", "/stream", &[], "")).await.unwrap();
    stream.part().await.unwrap().unwrap();
    let mut idle = BufReader::new(TcpStream::connect(gateway.address).await.unwrap());
    let mut ask = async || {
        idle.get_mut().write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        let mut text = String::new();
        while !text.ends_with("fine") {
            let mut byte = [0];
            if idle.read(&mut byte).await.unwrap() == 0 {
                break;
            }
            text.push(char::from(byte[0]));
        }
        text
    };
    assert!(!ask().await.contains("connection: close"));
    gateway.signal("QUIT");
    eventually("the new process serves", || async { (gateway.serving().await != gateway.id()).then_some(()) }).await;
    let last = ask().await;
    assert!(last.starts_with("HTTP/1.1 200 OK\r\n") && last.contains("\r\nconnection: close\r\n"), "{last}");
    assert_eq!(client.get("/").await.text(), "fine");
    assert_eq!(gateway.shown("/readyz").await, "ready");
    open.lock().await.clear();
    assert!(stream.part().await.is_none(), "the stream ends in order");
    let successors = gateway.successors();
    let admin = Client::new(gateway.admin);
    let old = gateway.id();
    eventually("the old process ends", || async { (!gateway.events("stopped").is_empty()).then_some(()) }).await;
    assert_eq!(successors.len(), 1);
    let shown = admin.get("/api/upgrade").await.json();
    assert_eq!((shown["pid"].as_u64(), &shown["failed"]), (Some(successors[0].into()), &serde_json::Value::Null));
    assert_ne!(u64::from(old), shown["pid"].as_u64().unwrap());
}

#[tokio::test]
async fn sigterm_to_an_old_process_gives_its_streams_the_time_of_a_drain_and_leaves_the_new_one_alone() {
    let (upstream, _open) = server().await;
    let gateway = Gateway::start(&(plain(&upstream) + "shutdown: {drainTimeout: 200ms}\n")).await;
    let client = gateway.client();
    let mut stream = client.stream(client.request("GET", "/stream", &[], "")).await.unwrap();
    stream.part().await.unwrap().unwrap();
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    gateway.signal("QUIT");
    eventually("a further hand-over is refused", || async {
        (gateway.events("hand_over_refused").len() == 1).then_some(())
    })
    .await;
    gateway.signal("TERM");
    eventually("the old process ends", || async { (!gateway.events("stopped").is_empty()).then_some(()) }).await;
    assert_eq!(gateway.events("drain_timeout").len(), 1, "{}", gateway.log());
    assert_eq!(client.get("/").await.text(), "fine");
}

/// Token counts of a chat's answer.
fn usage(prompt: u64, completion: u64) -> serde_json::Value {
    serde_json::json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

#[tokio::test]
async fn budgets_add_up_over_hand_overs_with_streams_that_end_after_them() {
    let ends = Arc::new(Mutex::new(Vec::new()));
    let waiting = ends.clone();
    let upstream = Upstream::start(move |seen| {
        let waiting = waiting.clone();
        async move {
            let body: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
            if body["stream"] != true {
                let answer = serde_json::json!({
                    "id": "c", "object": "chat.completion", "created": 1, "model": "m", "usage": usage(30, 7),
                    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
                });
                return Some(reply(200, &[("content-type", "application/json")], answer.to_string()));
            }
            let (send, parts) = mpsc::channel(4);
            let chunk = serde_json::json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
                "choices": [{"index": 0, "delta": {"content": "a"}}]});
            send.send(Ok(format!("data: {chunk}\n\n").into())).await.unwrap();
            waiting.lock().await.push(send);
            Some(streamed(&[("content-type", "text/event-stream")], parts))
        }
    })
    .await;
    let (key, digest) = new_key();
    let yaml = format!(
        "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}], limits: {{budget: {{tokens: 100000, per: month}}}}}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}]
",
        upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let headers = [("x-api-key", key.as_str()), ("content-type", "application/json")];
    let body = |stream: bool| {
        serde_json::json!({"model": "m", "max_tokens": 1000, "stream": stream, "messages": [{"role": "user", "content": "x"}]})
            .to_string()
    };
    let mut streams = Vec::new();
    let (mut whole, hand_overs) = (0, 3);
    for n in 0..=hand_overs {
        for _ in 0..2 {
            let request = client.request("POST", "/v1/chat/completions", &headers, body(true));
            let mut stream = client.stream(request).await.unwrap();
            stream.part().await.unwrap().unwrap();
            streams.push(stream);
        }
        for _ in 0..3 {
            assert_eq!(client.post("/v1/chat/completions", &headers, body(false)).await.status, 200);
            whole += 1;
        }
        if n < hand_overs {
            let (code, said) = gateway.upgrade().await;
            assert_eq!(code, Some(0), "{said}");
        }
    }
    // Every process but the last has streams whose use it learns only now.
    let count = u64::try_from(streams.len()).unwrap();
    for send in ends.lock().await.drain(..) {
        let last = serde_json::json!({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m",
            "choices": [], "usage": usage(20, 1500)});
        send.send(Ok(format!("data: {last}\n\ndata: [DONE]\n\n").into())).await.unwrap();
    }
    for mut stream in streams {
        while let Some(part) = stream.part().await {
            part.unwrap();
        }
    }
    let spent = count * 1520 + whole * 37;
    let series = "spillway_budget_spent{budget=\"consumer acme\",per=\"month\",unit=\"tokens\"}";
    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    gateway.metric_becomes(series, spent as f64).await;
    // And it stands in the file.
    let gateway = {
        eventually("the old processes end", || async { (gateway.events("stopped").len() == hand_overs).then_some(()) })
            .await;
        let pid = gateway.serving().await;
        assert!(Command::new("kill").args(["-s", "TERM", &pid.to_string()]).status().unwrap().success());
        eventually("the last process ends", || async {
            (gateway.events("stopped").len() == hand_overs + 1).then_some(())
        })
        .await;
        gateway.crash_and_restart(&yaml).await
    };
    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    gateway.metric_becomes(series, spent as f64).await;
}

/// Gateway whose program is a link, so that a test can install another one.
async fn installed(yaml: &str) -> (Gateway, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("spillway");
    std::os::unix::fs::symlink(binary(), &program).unwrap();
    let yaml = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}");
    (Gateway::start_by(Command::new(&program), folder, &yaml).await, program)
}

/// Installs a program that never becomes ready.
fn install_one_that_hangs(program: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    let new = program.with_extension("new");
    std::fs::write(&new, "#!/bin/sh\nexec sleep 600\n").unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(new, program).unwrap();
}

#[tokio::test]
async fn a_process_that_cannot_start_leaves_the_one_before_as_it_was() {
    let (upstream, _open) = server().await;
    let more = "shutdown: {handOver: {startTimeout: 1s}}\n";
    let (gateway, program) = installed(&(plain(&upstream) + more)).await;
    let good = std::fs::read_to_string(gateway.config()).unwrap();
    let fails = async |why: &str| {
        let (code, said) = gateway.upgrade().await;
        assert!(code == Some(3) && said.contains("goes on") && said.contains(why), "{code:?} {said}");
        assert_eq!(gateway.client().get("/").await.text(), "fine");
        assert_eq!(gateway.serving().await, gateway.id());
        eventually("the new process is gone", || async { gateway.successors().is_empty().then_some(()) }).await;
    };
    // A configuration that is wrong: the new process says what is.
    std::fs::write(gateway.config(), good.replace("routes", "route")).unwrap();
    fails("did you mean `routes`?").await;
    // One whose port another process has.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let listener = format!("listeners: [{{address: \"127.0.0.1:{port}\"}}, ");
    std::fs::write(gateway.config(), good.replace("listeners: [", &listener)).unwrap();
    fails("another process has the port").await;
    std::fs::write(gateway.config(), &good).unwrap();
    // A program that is none, one that ends, and one that is never ready.
    std::fs::remove_file(&program).unwrap();
    fails("No such file").await;
    std::os::unix::fs::symlink("/bin/false", &program).unwrap();
    fails("ended before it was ready (exit status: 1)").await;
    std::fs::remove_file(&program).unwrap();
    install_one_that_hangs(&program);
    fails("not ready within 1 s").await;
    assert_eq!(gateway.metric("spillway_hand_overs_failed_total").await, 5.0);
    // One was not started.
    eventually("the log has them", || async { (gateway.events("hand_over_failed").len() == 4).then_some(()) }).await;
    // The next one that can starts.
    std::fs::remove_file(&program).unwrap();
    std::os::unix::fs::symlink(binary(), &program).unwrap();
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(gateway.client().get("/").await.text(), "fine");
}

#[tokio::test]
async fn a_second_hand_over_is_refused_and_sigterm_ends_both_processes() {
    let (upstream, _open) = server().await;
    let (gateway, program) = installed(&plain(&upstream)).await;
    install_one_that_hangs(&program);
    let admin = Client::new(gateway.admin);
    let without = admin.post("/api/upgrade", &[], "").await;
    assert_eq!(without.status, 403, "{}", without.text());
    let begun = admin.post("/api/upgrade", &[("x-spillway-admin", "1")], "").await;
    let new = begun.json()["successor"].as_u64().unwrap();
    assert_eq!(begun.status, 202, "{}", begun.text());
    let (code, said) = gateway.upgrade().await;
    let refusal = format!("a hand-over to process {new} is under way");
    assert!(code == Some(4) && said.contains(&refusal), "{code:?} {said}");
    gateway.signal("QUIT");
    eventually("the signal is refused", || async { (gateway.events("hand_over_refused").len() == 2).then_some(()) })
        .await;
    assert_eq!(gateway.client().get("/").await.text(), "fine");
    gateway.signal("TERM");
    let (status, log) = gateway.wait().await;
    assert!(status.success() && log.contains("\"event\":\"stopped\""), "{log}");
    assert!(!PathBuf::from(format!("/proc/{new}")).exists(), "the new process has ended too");
}

#[tokio::test]
async fn a_hand_over_applies_what_an_edit_cannot_and_opens_and_closes_listeners() {
    let (upstream, _open) = server().await;
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &format!("{LISTENERS}{}", plain(&upstream))).await;
    let gone = gateway.listener("h2c");
    let file = std::fs::read_to_string(gateway.config()).unwrap();
    let edited = file
        .replace("name: h2c, address: \"127.0.0.1:0\", protocol: h2c", "name: other, address: \"127.0.0.2:0\"")
        + "limits: {limitKeys: 2048}\n";
    std::fs::write(gateway.config(), edited).unwrap();
    let rejected = gateway.reloads(0).await;
    assert!(rejected["reason"].as_str().unwrap().contains("`limits.limitKeys` cannot be changed"), "{rejected}");
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(gateway.shown("/api/config").await.contains("\"limitKeys\":2048"));
    for address in [gateway.address, gateway.listener("other")] {
        assert_eq!(Client::new(address).get("/").await.text(), "fine");
    }
    eventually("the listener that is gone is closed", || async { TcpStream::connect(gone).await.err() }).await;
}

#[tokio::test]
async fn sockets_of_systemd_are_used_and_systemd_follows_the_main_process() {
    let (upstream, _open) = server().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let manager = Arc::new(manager);
    let told = async || {
        let manager = manager.clone();
        let told = tokio::task::spawn_blocking(move || {
            let mut read = [0; 256];
            let count = manager.recv(&mut read).expect("a message");
            String::from_utf8(read[..count].to_vec()).unwrap()
        });
        told.await.unwrap()
    };
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // Connected before the gateway runs: systemd listens.
    let early = tokio::spawn(async move { Client::new(address).get("/").await });
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\""]).arg(binary());
    shell.env("NOTIFY_SOCKET", &path);
    let yaml = format!("listeners: [{{address: \"{address}\"}}]\n{}", plain(&upstream));
    let gateway = Gateway::start_with_input(shell, Stdio::from(OwnedFd::from(socket)), folder, &yaml).await;
    assert_eq!(told().await, "READY=1\n");
    assert_eq!(early.await.unwrap().text(), "fine");
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    let new = gateway.successors()[0];
    assert_eq!(told().await, format!("MAINPID={new}\n"));
    assert_eq!(gateway.client().get("/").await.text(), "fine");
    assert!(Command::new("kill").args(["-s", "TERM", &new.to_string()]).status().unwrap().success());
    assert_eq!(told().await, "STOPPING=1\n");
}

#[tokio::test]
async fn a_socket_of_systemd_without_a_listener_is_reported_and_one_that_does_not_listen_refused() {
    let (upstream, _open) = server().await;
    let pass = |socket: OwnedFd| {
        let mut shell = Command::new("sh");
        let script = "exec 3<&0 0</dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\"";
        shell.args(["-c", script]).arg(binary());
        (shell, Stdio::from(socket))
    };
    let (shell, input) = pass(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into());
    let yaml = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{}", plain(&upstream));
    let gateway = Gateway::start_with_input(shell, input, tempfile::tempdir().unwrap(), &yaml).await;
    let reported = gateway.events("socket_not_taken");
    assert!(reported.len() == 1 && reported[0]["message"].as_str().unwrap().contains("wait in vain"), "{reported:?}");
    let (mut shell, input) = pass(std::net::UdpSocket::bind("127.0.0.1:0").unwrap().into());
    let ran = shell.args(["serve", "-c", "none.yaml"]).stdin(input).output().unwrap();
    let said = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.code() == Some(1) && said.contains("no TCP socket that listens"), "{said}");
}
