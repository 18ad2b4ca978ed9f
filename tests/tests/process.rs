//! Life of the process, and the command line.

use std::process::{Command, Output};

use spillway_tests::{Frames, Gateway, Upstream, binary, model, streamed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } =
        Command::new(binary()).args(arguments).env_remove("SPILLWAY_CONFIG").current_dir("/").output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn plain(url: &str) -> String {
    format!("backends: [{{name: x, endpoints: [{{url: \"{url}\"}}]}}]\nroutes: [{{backendRefs: [{{name: x}}]}}]\n")
}

#[test]
fn check_reads_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("keys"), "").unwrap();
    let check = |text: &str| {
        let mut command = Command::new(binary());
        command.args(["check", "-"]).current_dir(folder.path());
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut child = command.spawn().unwrap();
        // A program that reads no further closes its end.
        let _ = std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes());
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
    };
    let good = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{}", plain("http://127.0.0.1:1"));
    assert_eq!(check(&good), (Some(0), "<stdin>: ok (0 warnings)\n".to_owned(), String::new()));
    let named = format!("{good}consumers: [{{name: c, keysFile: keys}}]\n");
    assert!(!check(&named).2.contains("there is no file"), "paths begin at the current folder");
    let (code, out, errors) = check(&good.replace("routes", "route"));
    assert!(code == Some(2) && out.starts_with("<stdin>: "), "{out}");
    assert!(errors.contains("--> <stdin>:3:1") && errors.contains("did you mean `routes`?"), "{errors}");
    let (code, _, errors) = check(&"# ".repeat(33 << 20));
    assert!(code == Some(2) && errors.contains("cannot read standard input: larger than 64 MiB"), "{errors}");
}

#[tokio::test]
async fn a_running_stream_survives_sigterm_and_nothing_new_is_taken() {
    let (send, parts) = mpsc::channel(1);
    let parts = std::sync::Arc::new(tokio::sync::Mutex::new(Some(parts)));
    let upstream = Upstream::start(move |_| {
        let parts = parts.clone();
        async move { Some(streamed(&[("content-type", "text/event-stream")], parts.lock().await.take()?)) }
    })
    .await;
    let gateway = Gateway::start(&plain(&upstream.url())).await;
    let client = gateway.client();
    let mut stream = client.stream(client.request("GET", "/", &[], "")).await.unwrap();
    send.send(Ok("data: 1\n\n".into())).await.unwrap();
    stream.part().await.unwrap().unwrap();
    gateway.signal("TERM");
    spillway_tests::eventually("no new connection is taken", || async {
        tokio::net::TcpStream::connect(gateway.address).await.err()
    })
    .await;
    assert_eq!(gateway.shown("/readyz").await, "draining");
    send.send(Ok("data: 2\n\n".into())).await.unwrap();
    assert_eq!(stream.part().await.unwrap().unwrap(), "data: 2\n\n");
    drop(send);
    assert!(stream.part().await.is_none(), "the stream ends in order");
    let (status, log) = gateway.wait().await;
    assert!(status.success() && log.contains("\"event\":\"stopped\""), "{log}");
}

/// A client that connected in the moment before the end could not know of it.
#[tokio::test]
async fn the_first_request_of_a_connection_is_answered_although_its_listener_closes() {
    let upstream = Upstream::fixed(200, "{}").await;
    let gateway = Gateway::start(&plain(&upstream.url())).await;
    let mut connection = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    gateway.signal("TERM");
    spillway_tests::eventually("the gateway stops", || async {
        (!gateway.events("stopping").is_empty()).then_some(())
    })
    .await;
    connection.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
    assert!(gateway.wait().await.0.success());
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let upstream = Upstream::start(|_| std::future::pending()).await;
    let gateway = Gateway::start(&(plain(&upstream.url()) + "shutdown: {drainTimeout: 200ms}\n")).await;
    let client = gateway.client();
    let asked = tokio::spawn(async move { client.get("/").await });
    spillway_tests::eventually("the request is at the upstream", || async { (upstream.count() == 1).then_some(()) })
        .await;
    gateway.signal("TERM");
    let (status, log) = gateway.wait().await;
    assert!(status.success() && log.contains("drain_timeout"), "{log}");
    let answer = asked.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (503, "1"), "{}", answer.text());
    assert!(answer.text().contains("shutting_down"), "{}", answer.text());
}

/// Server that sends an event and then nothing.
async fn falls_silent() -> Upstream {
    Upstream::start(|_| async {
        let (send, parts) = mpsc::channel(1);
        let said = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"one\"}}]}\n\n";
        tokio::spawn(async move {
            let _ = send.send(Ok(said.into())).await;
            send.closed().await;
        });
        Some(streamed(&[("content-type", "text/event-stream")], parts))
    })
    .await
}

/// Request whose answer does not end by itself: the demo model's two tokens that end an answer are barred.
const STREAMED: &str = r#"{"model":"m","stream":true,"max_tokens":4000,"logit_bias":{"0":-100,"2":-100},
    "messages":[{"role":"user","content":"Count."}]}"#;

/// Gateway with a short drain after SIGTERM, for both versions of HTTP.
async fn with_short_drain(rest: &str) -> Gateway {
    let yaml = format!(
        "listeners:
  - {{name: plain, address: \"127.0.0.1:0\"}}
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}
shutdown: {{drainTimeout: 200ms}}
{rest}"
    );
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await
}

/// Stops a gateway while streams of both versions run; each must end in order, with an error event.
async fn ends_streams_in_order(gateway: Gateway) {
    let path = "/v1/chat/completions";
    let client = gateway.client();
    let mut one = client.stream(client.request("POST", path, &[], STREAMED)).await.unwrap();
    let mut text = one.part().await.unwrap().unwrap().to_vec();
    let mut two = Frames::connect(gateway.listener("h2c"), 1 << 20).await;
    let stream = two.send(path, STREAMED).await;
    spillway_tests::eventually("the second stream runs", || async { (!two.body(stream).0.is_empty()).then_some(()) })
        .await;
    gateway.signal("TERM");
    while let Some(part) = one.part().await {
        text.extend(part.expect("the stream ends in order"));
    }
    let (status, log) = gateway.wait().await;
    assert!(status.success() && log.contains("drain_timeout"), "{log}");
    let (body, is_whole) = two.body(stream);
    assert!(is_whole && !two.is_reset(stream), "{body}");
    for text in [String::from_utf8(text).unwrap(), body] {
        let last = text.trim_end().rsplit("\n\n").next().unwrap().strip_prefix("data: ").unwrap_or_default().to_owned();
        let event: serde_json::Value = serde_json::from_str(&last).unwrap_or_else(|e| panic!("{e}: {text}"));
        assert_eq!(event["error"]["code"], "shutting_down", "{text}");
    }
}

#[tokio::test]
async fn streams_that_outlast_a_drain_end_with_an_error_event() {
    let upstream = falls_silent().await;
    let rest = plain(&upstream.url()).replace("name: x, endpoints", "name: x, protocol: openai, endpoints");
    ends_streams_in_order(with_short_drain(&rest).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_of_a_built_in_model_that_outlast_a_drain_end_with_an_error_event() {
    let rest = format!(
        "models: [{{name: m, source: \"{}\", device: cpu, maxSequences: 2, maxQueueWait: 60s}}]
routes: [{{matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{model: m}}]}}]
",
        spillway_tests::model().display()
    );
    ends_streams_in_order(with_short_drain(&rest).await).await;
}

#[tokio::test]
async fn a_listener_that_an_edit_removes_cuts_no_stream() {
    let upstream = falls_silent().await;
    let gateway = with_short_drain(&plain(&upstream.url())).await;
    let client = gateway.client();
    let mut one = client.stream(client.request("GET", "/", &[], "")).await.unwrap();
    one.part().await.unwrap().unwrap();
    let mut two = Frames::connect(gateway.listener("h2c"), 1 << 20).await;
    let stream = two.send("/", "").await;
    spillway_tests::eventually("the second stream runs", || async { (!two.body(stream).0.is_empty()).then_some(()) })
        .await;
    let file = std::fs::read_to_string(gateway.config()).unwrap();
    let kept: Vec<_> =
        file.lines().filter(|line| !line.contains("name: plain") && !line.contains("name: h2c")).collect();
    let edited = kept.join("\n").replace("listeners:", "listeners: [{address: \"127.0.0.2:0\", name: other}]");
    std::fs::write(gateway.config(), edited).unwrap();
    let told = gateway.reloads(0).await;
    assert_eq!(told["event"], "config_reloaded", "{told}");
    let more = tokio::time::timeout(std::time::Duration::from_secs(1), one.part()).await;
    assert!(more.is_err() && !two.body(stream).1 && !two.is_reset(stream) && !two.is_over(), "{more:?}");
}

#[tokio::test]
async fn the_admin_address_shows_no_secret_and_only_to_who_may_look() {
    let upstream = Upstream::fixed(200, "ok").await;
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let yaml = plain(&upstream.url()).replace("endpoints:", "credentials: {bearer: {env: TEST_SECRET}}, endpoints:")
        + &format!("consumers: [{{name: a, keys: [{{sha256: \"{digest}\"}}]}}]\n");
    let gateway = Gateway::start(&yaml).await;
    let shown = gateway.shown("/api/config").await;
    assert!(
        shown.contains("\"name\":\"x\"") && !shown.contains(digest) && !shown.contains("upstream-secret"),
        "{shown}"
    );
    let admin = spillway_tests::Client::new(gateway.admin);
    assert_eq!(admin.get("/healthz").await.text(), "ok");
    let rebound = admin.send(admin.request("GET", "/api/config", &[("host", "evil.example")], "")).await;
    assert_eq!(rebound.status, 421, "a web page that points its name here sees nothing");
    assert_eq!(admin.send(admin.request("GET", "/readyz", &[("host", "evil.example")], "")).await.text(), "ready");
    assert_eq!(admin.get("/nothing").await.status, 404);
    assert!(admin.get("/metrics").await.text().ends_with("# EOF\n"));
}

#[test]
fn check_tells_all_mistakes_with_their_places() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("bad.yaml");
    let yaml = "listeners:
  - address: 127.0.0.1:8080
backends:
  - name: a
    endpoints: [{url: \"http://127.0.0.1:1\", wieght: 2}]
    timeouts: {connect: 5}
    mcp: {}
routes:
  - name: r
    backendRefs:
      - {name: b}
";
    std::fs::write(&file, yaml).unwrap();
    let path = file.to_str().unwrap();
    let (code, _, told) = run(&["check", path]);
    assert_eq!(code, Some(2));
    for part in [
        "unknown key `wieght`".to_owned(),
        "did you mean `weight`?".to_owned(),
        format!("--> {path}:5:45"),
        "expected a duration such as 30s, found the number 5".to_owned(),
        "unknown key `mcp` in `backends[0]`; this version does not support it".to_owned(),
        "= at: backends[0].endpoints[0].wieght".to_owned(),
    ] {
        assert!(told.contains(&part), "{part} is missing in\n{told}");
    }
    let caret = told.lines().skip_while(|line| !line.contains("wieght: 2")).nth(1).unwrap();
    let under = told.lines().find(|line| line.contains("wieght: 2")).unwrap();
    assert_eq!(caret.find('^'), under.find("wieght"), "the caret stands under the key\n{told}");

    std::fs::write(
        &file,
        yaml.replace(", wieght: 2", "").replace("connect: 5", "connect: 5s").replace("    mcp: {}\n", ""),
    )
    .unwrap();
    let (code, _, told) = run(&["check", path]);
    assert_eq!(code, Some(2));
    assert!(
        told.contains("unknown backend `b`") && told.contains("did you mean `a`?") && told.contains(":10:16"),
        "{told}"
    );
    std::fs::write(
        &file,
        yaml.replace(", wieght: 2", "")
            .replace("connect: 5", "connect: 5s")
            .replace("    mcp: {}\n", "")
            .replace("name: b", "name: a"),
    )
    .unwrap();
    assert_eq!(run(&["check", path]).0, Some(0));
}

#[test]
fn the_command_line_answers() {
    let (code, out, _) = run(&["version"]);
    assert_eq!((code, out.trim()), (Some(0), concat!("spillway ", env!("CARGO_PKG_VERSION"))));
    let (code, out, _) = run(&["schema"]);
    let schema: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, Some(0));
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    assert!(schema["$defs"]["Filter"]["oneOf"].as_array().unwrap().len() >= 4);
    assert_eq!(run(&["frobnicate"]).0, Some(2));
    let (code, _, told) = run(&["serve"]);
    assert!(code == Some(2) && told.contains("no configuration"), "{told}");
    let (code, _, told) = run(&["serve", "-c", "/nowhere.yaml"]);
    assert!(code == Some(2) && told.contains("/nowhere.yaml"), "{told}");
}

#[test]
fn what_keeps_it_from_starting_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let serve = |yaml: String| {
        let file = folder.path().join("spillway.yaml");
        std::fs::write(&file, yaml).unwrap();
        run(&["serve", "-c", file.to_str().unwrap()])
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("listeners: [{{address: \"{}\"}}]\n", taken.local_addr().unwrap());
    let (code, _, told) = serve(listen + &plain("http://127.0.0.1:1"));
    assert!(code == Some(1) && told.contains("another process has the port"), "{told}");

    // A model file that ends too early is reported with the missing tensor; nothing is allocated for it.
    let whole = std::fs::read(model()).unwrap();
    let cut = folder.path().join("cut.gguf");
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let inside = |source: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]\nmodels: [{{name: m, source: {source}}}]\nroutes: [{{backendRefs: [{{model: m}}]}}]\n"
        )
    };
    let (code, _, told) = serve(inside("cut.gguf"));
    assert!(code == Some(2) && told.contains("tensor `") && told.contains("cut.gguf is damaged"), "{told}");
    std::fs::write(folder.path().join("text.gguf"), "no model").unwrap();
    let (code, _, told) = serve(inside("text.gguf"));
    assert!(code == Some(2) && told.contains("not a GGUF file"), "{told}");
    let (code, _, told) = serve(inside("missing.gguf"));
    assert!(code == Some(2) && told.contains("there is no file"), "{told}");
}

#[test]
fn software_vulkan_that_is_wanted_and_not_there_is_told_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spillway.yaml");
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]\nmodels: [{{name: m, source: \"{}\", device: software}}]\nroutes: [{{backendRefs: [{{model: m}}]}}]\n",
        model().display()
    );
    std::fs::write(&file, yaml).unwrap();
    let out = Command::new(binary())
        .args(["serve", "-c", file.to_str().unwrap()])
        .env("VK_DRIVER_FILES", "/nonexistent.json")
        .env("VK_ICD_FILENAMES", "/nonexistent.json")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(out.status.code() == Some(1) && told.contains("apt-get install libvulkan1 mesa-vulkan-drivers"), "{told}");
}

/// Signals whose default ends a process and that the gateway ignores; numbers 34 to 64 are the real-time ones.
const MEANINGLESS: [&str; 12] =
    ["USR1", "USR2", "ALRM", "STKFLT", "XCPU", "XFSZ", "VTALRM", "PROF", "POLL", "PWR", "40", "64"];

#[tokio::test]
async fn signals_without_a_meaning_are_logged_once_and_end_nothing() {
    let upstream = Upstream::fixed(200, "ok").await;
    let gateway = Gateway::start(&plain(&upstream.url())).await;
    gateway.signal("PIPE");
    for name in MEANINGLESS {
        gateway.signal(name);
        let before = gateway.events("signal_ignored").len();
        for _ in 0..20 {
            gateway.signal(name);
        }
        spillway_tests::eventually("the signal is logged", || async {
            (gateway.events("signal_ignored").len() >= before.max(1)).then_some(())
        })
        .await;
        assert_eq!(gateway.client().get("/").await.status, 200, "after SIG{name}");
    }
    spillway_tests::eventually("each signal is logged", || async {
        (gateway.events("signal_ignored").len() >= MEANINGLESS.len()).then_some(())
    })
    .await;
    let logged = gateway.events("signal_ignored");
    assert_eq!(logged.len(), MEANINGLESS.len(), "one line each, however often it was sent: {logged:?}");
    gateway.signal("TERM");
    let (status, log) = gateway.wait().await;
    assert!(status.success() && log.contains("\"event\":\"stopped\""), "{log}");
}

/// A starting program.
struct Starting {
    child: std::process::Child,
    _folder: tempfile::TempDir,
}

impl Starting {
    fn new(folder: tempfile::TempDir, yaml: &str) -> Self {
        std::fs::write(folder.path().join("spillway.yaml"), yaml).unwrap();
        let child = Command::new(binary())
            .args(["serve", "-c", "spillway.yaml"])
            .current_dir(folder.path())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        Self { child, _folder: folder }
    }

    fn signal(&self, name: &str) {
        assert!(Command::new("kill").args(["-s", name, &self.child.id().to_string()]).status().unwrap().success());
    }

    async fn end(mut self) -> std::process::ExitStatus {
        spillway_tests::eventually("it ends", || {
            let ended = self.child.try_wait().unwrap();
            async move { ended }
        })
        .await
    }

    fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn signals_have_their_meaning_while_it_starts() {
    for end in ["TERM", "INT"] {
        let dns = spillway_tests::Dns::start().await;
        dns.tell("never.test", spillway_tests::Says::Silence);
        let yaml = format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]\ndns: {{servers: [\"{}\"]}}\n{}",
            dns.address,
            plain("http://never.test:1")
        );
        let mut starting = Starting::new(tempfile::tempdir().unwrap(), &yaml);
        spillway_tests::eventually("it asks for the name", || async { (dns.asked("never.test") > 0).then_some(()) })
            .await;
        for name in ["HUP", "USR2"] {
            starting.signal(name);
            assert!(starting.runs(), "after SIG{name}");
        }
        starting.signal(end);
        assert_eq!(starting.end().await.code(), Some(0), "SIG{end}");
    }
}

#[tokio::test]
async fn a_drain_goes_on_after_a_further_sigterm_and_ends_at_a_further_sigint() {
    let upstream = Upstream::start(|_| std::future::pending()).await;
    let gateway = Gateway::start(&(plain(&upstream.url()) + "shutdown: {drainTimeout: 600s}\n")).await;
    let client = gateway.client();
    let asked = tokio::spawn(async move { client.send(client.request("GET", "/", &[], "")).await.status });
    spillway_tests::eventually("the request is at the upstream", || async { (upstream.count() == 1).then_some(()) })
        .await;
    gateway.signal("TERM");
    spillway_tests::eventually("it drains", || async { (gateway.shown("/readyz").await == "draining").then_some(()) })
        .await;
    for name in ["TERM", "HUP", "USR1", "TERM"] {
        gateway.signal(name);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        assert_eq!(gateway.shown("/readyz").await, "draining", "after a further SIG{name}");
    }
    gateway.signal("INT");
    let (status, log) = gateway.wait().await;
    assert!(status.success() && log.contains("\"event\":\"stopped\""), "{log}");
    assert_eq!(asked.await.unwrap(), 503, "it was told so");
}
