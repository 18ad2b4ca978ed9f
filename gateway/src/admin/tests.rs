use std::net::SocketAddr;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::*;

const TOKEN: &[u8] = b"secret";

struct Shown {
    readiness: Mutex<Result<(), &'static str>>,
    token: bool,
    loopback: bool,
    audited: Mutex<Vec<String>>,
    dropped: Mutex<usize>,
    history: History,
    tail: Arc<Tail>,
}

#[async_trait::async_trait]
impl AdminState for Shown {
    fn readiness(&self) -> Result<(), &'static str> {
        *self.readiness.lock()
    }
    fn metrics(&self) -> (&'static str, String) {
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", "up 1\n# EOF\n".to_owned())
    }
    fn audit(&self, _: std::net::IpAddr, who: &str, method: &str, path: &str, status: u16) {
        self.audited.lock().push(format!("{who} {method} {path} {status}"));
    }
    fn config(&self) -> serde_json::Value {
        serde_json::json!({"generation": 1})
    }
    fn overview(&self) -> serde_json::Value {
        serde_json::json!({"state": "ready"})
    }
    fn history(&self) -> &History {
        &self.history
    }
    fn models(&self) -> serde_json::Value {
        serde_json::json!({"models": []})
    }
    fn edits(&self) -> serde_json::Value {
        serde_json::json!({"edits": []})
    }
    fn consumers(&self, tenant: Option<&str>, after: Option<&str>) -> Option<serde_json::Value> {
        Some(serde_json::json!([tenant, after]))
    }
    fn tail(&self) -> Option<Arc<Tail>> {
        Some(self.tail.clone())
    }
    fn recent(&self) -> Option<serde_json::Value> {
        None
    }
    async fn chat(&self, chat: Chat, lasting: LastingAnswer) -> Result<Response, NoChat> {
        drop(lasting);
        let key = chat.key.as_ref().map(|key| key.to_str().unwrap());
        let sent = serde_json::json!([chat.route, chat.host, chat.path, key, chat.body.len()]);
        Ok(axum::Json(sent).into_response())
    }
    fn backends(&self) -> serde_json::Value {
        serde_json::json!({"backends": []})
    }
    fn feedback(&self) -> serde_json::Value {
        serde_json::json!({"feedback": null})
    }
    fn quality(&self) -> serde_json::Value {
        serde_json::json!({"routes": []})
    }
    async fn reference(&self, _: &str) -> Result<ReferenceFile, NoReference> {
        Err(NoReference::Unknown)
    }
    async fn examples(&self, _: Option<String>) -> Result<Vec<Example>, NoExamples> {
        Ok(Vec::new())
    }
    async fn delete_examples(&self, _: Option<String>) -> Result<usize, NoExamples> {
        Ok(3)
    }
    fn drain(&self, backend: &str, endpoint: &str, drained: bool) -> Option<Vec<(String, bool)>> {
        let known = endpoint == "10.0.0.1:8000" || endpoint == "http://10.0.0.1:8000";
        (backend == "b").then(|| if known { vec![(endpoint.to_owned(), drained)] } else { Vec::new() })
    }
    async fn purge_cache(&self, route: &str, dry_run: bool) -> Result<KeptAnswers, NoCache> {
        match route {
            "r" => Ok(KeptAnswers { answers: if dry_run { 7 } else { 8 }, bytes: 9 }),
            "bare" => Err(NoCache::Without),
            _ => Err(NoCache::Unknown),
        }
    }
    fn rollouts(&self) -> Option<Rollouts> {
        Some(Rollouts::new(Arc::new(spillway_filter::NoHttp), Default::default(), Default::default()))
    }
    fn keys(&self) -> Option<RunningKeys> {
        None
    }
    fn costs(&self) -> Option<ShownCosts> {
        None
    }
    async fn begin_hand_over(&self) -> Result<u32, NoHandOver> {
        Err(NoHandOver::Starting)
    }
    fn hand_overs(&self) -> HandOverReport {
        crate::handover::HandOvers::new().0.report()
    }
    fn token_matches(&self, token: Option<&[u8]>) -> Option<bool> {
        self.token.then(|| token == Some(TOKEN))
    }
    fn login(&self) -> Option<&Arc<Login>> {
        None
    }
    fn is_loopback(&self) -> bool {
        self.loopback
    }
    fn hosts(&self) -> Vec<String> {
        vec!["ops.example".to_owned()]
    }
    fn max_connections(&self) -> usize {
        64
    }
    fn connections_dropped(&self, count: usize) {
        *self.dropped.lock() += count;
    }
}

struct Admin {
    address: SocketAddr,
    shown: Arc<Shown>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

async fn admin(token: bool, loopback: bool) -> Admin {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shown = Arc::new(Shown {
        readiness: Mutex::new(Ok(())),
        token,
        loopback,
        audited: Mutex::default(),
        dropped: Mutex::default(),
        history: History::default(),
        tail: Arc::default(),
    });
    let stop = watch::Sender::new(false);
    let serving = tokio::spawn(serve(listener, shown.clone(), stop.subscribe()));
    Admin { address, shown, stop, serving }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Admin {
    /// Sends exactly what is written here.
    async fn raw(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        let read = stream.read_to_string(&mut text);
        tokio::time::timeout(Duration::from_secs(20), read).await.expect("it answers").unwrap();
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }
    async fn send(&self, method: &str, path: &str, headers: &str) -> Answer {
        self.raw(&format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n{headers}\r\n")).await
    }
}

const LOCAL: &str = "Host: localhost:9901\r\n";

#[tokio::test]
async fn health_and_readiness_are_one_word_for_anybody() {
    let admin = admin(true, false).await;
    let healthy = admin.send("GET", "/healthz", "Host: anything.example\r\n").await;
    assert_eq!((healthy.status, &*healthy.body), (200, "ok"));
    // HTTP/1.0 has no Host.
    let ready = admin.raw("GET /readyz HTTP/1.0\r\n\r\n").await;
    assert_eq!((ready.status, &*ready.body), (200, "ready"));
    for why in ["starting", "draining"] {
        *admin.shown.readiness.lock() = Err(why);
        let not = admin.send("GET", "/readyz", LOCAL).await;
        assert_eq!((not.status, &*not.body), (503, why));
    }
    assert_eq!(admin.send("HEAD", "/healthz", LOCAL).await.status, 200);
    let wrong = admin.send("POST", "/healthz", LOCAL).await;
    assert_eq!(wrong.status, 405);
    assert!(
        wrong.head.contains("application/problem+json") && wrong.head.contains("allow: get,head"),
        "{}",
        wrong.head
    );
}

#[tokio::test]
async fn on_loopback_a_loopback_host_opens_the_rest_and_no_other_name_does() {
    let admin = admin(false, true).await;
    for host in ["localhost", "127.0.0.1:9901", "[::1]:9901", "ops.example:9901"] {
        let metrics = admin.send("GET", "/metrics", &format!("Host: {host}\r\n")).await;
        assert_eq!((metrics.status, &*metrics.body), (200, "up 1\n# EOF\n"), "{host}");
        assert!(metrics.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", metrics.head);
    }
    let config = admin.send("GET", "/api/config", LOCAL).await;
    assert_eq!((config.status, &*config.body), (200, r#"{"generation":1}"#));
    assert!(config.head.contains("cache-control: no-store") && config.head.contains("nosniff"), "{}", config.head);
    for headers in
        ["Host: evil.example\r\n", "Host: 10.0.0.1\r\n", "Host: localhost\r\nHost: evil.example\r\n", "Host: \r\n"]
    {
        for path in ["/", "/metrics", "/api/config", "/unknown"] {
            let refused = admin.send("GET", path, headers).await;
            assert!(matches!(refused.status, 421 | 400), "{path} {headers}: {}", refused.status);
            assert!(!refused.body.contains("generation") && !refused.body.contains("up 1"));
        }
    }
}

#[tokio::test]
async fn elsewhere_only_the_token_opens_anything() {
    let admin = admin(true, false).await;
    for headers in
        ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic secret\r\n", "Authorization: Bearer\r\n"]
    {
        for path in ["/", "/metrics", "/api/config", "/unknown"] {
            let refused = admin.send("GET", path, &format!("{LOCAL}{headers}")).await;
            assert_eq!(refused.status, 401, "{path} {headers}");
            assert!(refused.head.contains("www-authenticate: bearer"), "{}", refused.head);
        }
    }
    let opened = admin.send("GET", "/metrics", "Host: gateway.example\r\nAuthorization: bearer secret\r\n").await;
    assert_eq!(opened.status, 200);
}

#[tokio::test]
async fn without_a_token_nothing_is_shown_off_loopback() {
    let admin = admin(false, false).await;
    assert_eq!(admin.send("GET", "/metrics", LOCAL).await.status, 401);
    assert_eq!(admin.send("GET", "/healthz", LOCAL).await.status, 200);
}

#[tokio::test]
async fn a_token_is_asked_for_on_loopback_too_where_there_is_one() {
    let admin = admin(true, true).await;
    assert_eq!(admin.send("GET", "/metrics", LOCAL).await.status, 401);
    assert_eq!(admin.send("GET", "/metrics", &format!("{LOCAL}Authorization: Bearer secret\r\n")).await.status, 200);
}

#[tokio::test]
async fn unknown_pages_and_methods_are_problems() {
    let admin = admin(false, true).await;
    let unknown = admin.send("GET", "/api/secrets", LOCAL).await;
    let problem: serde_json::Value = serde_json::from_str(&unknown.body).unwrap();
    assert_eq!((unknown.status, &problem["status"], &problem["title"]), (404, &404.into(), &"Not Found".into()));
    let wrong = admin.send("DELETE", "/api/config", LOCAL).await;
    assert_eq!(wrong.status, 405);
    assert!(
        wrong.head.contains("application/problem+json") && wrong.head.contains("allow: get,head"),
        "{}",
        wrong.head
    );
    assert!(admin.send("GET", "/", LOCAL).await.body.contains("/metrics"));
}

#[tokio::test]
async fn oversized_and_slow_headers_end_their_connection() {
    let admin = admin(false, true).await;
    let large = format!("{LOCAL}x: {}\r\n", "y".repeat(2 * MAX_HEADER));
    assert_eq!(admin.send("GET", "/healthz", &large).await.status, 431);
    let many = "x: y\r\n".repeat(2 * MAX_FIELDS);
    assert_eq!(admin.send("GET", "/healthz", &format!("{LOCAL}{many}")).await.status, 431);
    let mut slow = TcpStream::connect(admin.address).await.unwrap();
    slow.write_all(b"GET /healthz HTTP/1.1\r\nHo").await.unwrap();
    let began = Instant::now();
    let mut answer = Vec::new();
    let ended = tokio::time::timeout(HEADER_TIMEOUT * 3, slow.read_to_end(&mut answer)).await;
    assert!(ended.is_ok() && began.elapsed() >= HEADER_TIMEOUT / 2, "{:?}", began.elapsed());
}

#[tokio::test]
async fn silent_connections_keep_nobody_out_and_do_not_hold_the_end() {
    let admin = admin(false, true).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(admin.address).await.unwrap());
    }
    // At once, while they are all open: each of these is answered.
    for _ in 0..20 {
        let probe = admin.raw("GET /healthz HTTP/1.0\r\n\r\n").await;
        assert_eq!((probe.status, &*probe.body), (200, "ok"));
        assert_eq!(admin.send("GET", "/metrics", LOCAL).await.status, 200);
        silent.push(TcpStream::connect(admin.address).await.unwrap());
    }
    assert!(*admin.shown.dropped.lock() >= 100, "connections are closed to make room");
    let began = Instant::now();
    admin.stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(5), admin.serving).await.expect("it ends").unwrap();
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(TcpStream::connect(admin.address).await.is_err(), "the port is free");
}

#[tokio::test]
async fn a_drain_needs_the_header_that_no_web_page_can_send() {
    let admin = admin(false, true).await;
    let path = "/api/backends/b/endpoints/10.0.0.1:8000/drain";
    for headers in ["", "x-spillway-admin: 0\r\n", "Content-Type: text/plain\r\n"] {
        let refused = admin.send("POST", path, &format!("{LOCAL}{headers}")).await;
        assert_eq!(refused.status, 403, "{headers}");
    }
    let change = format!("{LOCAL}x-spillway-admin: 1\r\n");
    for (path, status) in [
        (path, 200),
        ("/api/backends/b/endpoints/10.0.0.1:8000/undrain", 200),
        ("/api/backends/b/endpoints/http%3A%2F%2F10.0.0.1%3A8000/drain", 200),
        ("/api/backends/b/endpoints/10.0.0.2:8000/drain", 404),
        ("/api/backends/c/endpoints/10.0.0.1:8000/drain", 404),
        ("/api/backends/%ff/endpoints/%ff/drain", 400),
    ] {
        assert_eq!(admin.send("POST", path, &change).await.status, status, "{path}");
    }
    assert_eq!(admin.send("GET", path, &change).await.status, 405);
    // No other method stands for it, and no page of another origin is let send the header.
    let overridden = format!("{change}X-HTTP-Method-Override: POST\r\nX-Method-Override: POST\r\n");
    assert_eq!(admin.send("GET", &format!("{path}?_method=POST"), &overridden).await.status, 405);
    let asked = format!(
        "{LOCAL}Origin: http://evil.example\r\nAccess-Control-Request-Method: POST\r\n\
         Access-Control-Request-Headers: x-spillway-admin\r\n"
    );
    let preflight = admin.send("OPTIONS", path, &asked).await;
    assert_eq!(preflight.status, 405);
    assert!(!preflight.head.contains("access-control"), "{}", preflight.head);
    assert_eq!(admin.send("GET", "/api/backends", LOCAL).await.body, r#"{"backends":[]}"#);
    let other = admin.send("POST", path, "Host: evil.example\r\nx-spillway-admin: 1\r\n").await;
    assert_eq!(other.status, 421);
}

#[tokio::test]
async fn a_command_to_a_rollout_needs_the_header_a_name_and_a_short_reason() {
    let admin = admin(false, true).await;
    assert_eq!(admin.send("GET", "/api/rollouts", LOCAL).await.body, r#"{"rollouts":[]}"#);
    assert_eq!(admin.send("GET", "/api/rollouts/chat", LOCAL).await.status, 404);
    assert_eq!(admin.send("POST", "/api/rollouts/chat/abort", LOCAL).await.status, 403);
    let post = async |path: &str, body: &str| {
        let head = format!("{LOCAL}x-spillway-admin: 1\r\nContent-Length: {}\r\n", body.len());
        let request = format!("POST {path} HTTP/1.1\r\nConnection: close\r\n{head}\r\n{body}");
        let answer = admin.raw(&request).await;
        let problem: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
        (answer.status, problem["detail"].as_str().unwrap().to_owned())
    };
    let abort = "/api/rollouts/chat/abort";
    let long = format!(r#"{{"reason": "{}"}}"#, "x".repeat(501));
    let huge = format!(r#"{{"reason": "{}"}}"#, "x".repeat(5000));
    for (path, body, status, told) in [
        (abort, "", 404, "no route `chat` with a `rollout`; `spillway rollout status` lists those that there are"),
        (abort, r#"{"reason": "too slow"}"#, 404, "no route `chat`"),
        (
            "/api/rollouts/chat/stop",
            "",
            404,
            "there is no such command; expected start, pause, resume, promote or abort",
        ),
        (abort, "reason", 400, "the body is not as expected"),
        (abort, r#"{"why": "x"}"#, 400, "unknown field `why`"),
        (abort, r#"{"reason": "a\nb"}"#, 400, "the reason has a control character"),
        (abort, &long, 400, "the reason is longer than 500 characters"),
        (abort, &huge, 413, "the body is longer than 4096 bytes"),
    ] {
        let answer = post(path, body).await;
        assert!(answer.0 == status && answer.1.contains(told), "{path} {body}: {answer:?}");
    }
    let audited = admin.shown.audited.lock().clone();
    assert_eq!(audited[0], "unknown POST /api/rollouts/chat/abort 403");
    assert_eq!(audited[1], "loopback POST /api/rollouts/chat/abort 404");
}

#[tokio::test]
async fn a_browser_gets_the_page_without_the_token_and_nothing_else() {
    let admin = admin(true, false).await;
    let browser = "Host: gateway.example\r\nAccept: text/html,*/*;q=0.8\r\n";
    let page = admin.send("GET", "/", browser).await;
    assert_eq!(page.status, 200);
    for header in [
        "content-type: text/html; charset=utf-8",
        "content-security-policy: default-src 'none'; script-src 'self'; style-src 'self';",
        "frame-ancestors 'none'",
        "x-content-type-options: nosniff",
        "cache-control: no-cache",
        "vary: accept",
        "etag: \"",
    ] {
        assert!(page.head.contains(header), "{header} in {}", page.head);
    }
    let module = admin.send("GET", "/assets/main.js", "Host: gateway.example\r\n").await;
    assert!(module.status == 200 && module.head.contains("content-type: text/javascript"), "{}", module.head);
    let tag = module.head.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    for known in [tag.to_owned(), format!("\"other\", W/{tag}"), "*".to_owned()] {
        let again = admin.send("GET", "/assets/main.js", &format!("If-None-Match: {known}\r\nHost: a\r\n")).await;
        assert_eq!((again.status, &*again.body), (304, ""), "{known}");
        assert!(again.head.contains(&format!("etag: {tag}")), "{}", again.head);
    }
    assert_eq!(admin.send("GET", "/assets/main.js", "If-None-Match: \"other\"\r\nHost: a\r\n").await.status, 200);
    assert_eq!(admin.send("HEAD", "/assets/page.css", "Host: a\r\n").await.status, 200);
    for name in ["index.html", "mod.rs", "..%2Fmod.rs", "%2e%2e", "nothing.js"] {
        assert_eq!(admin.send("GET", &format!("/assets/{name}"), browser).await.status, 404, "{name}");
    }
    // A browser that opens another path gets no further than a program.
    for (method, path) in [("GET", "/api/config"), ("GET", "/metrics"), ("POST", "/"), ("POST", "/assets/main.js")] {
        assert_eq!(admin.send(method, path, browser).await.status, 401, "{method} {path}");
    }
    assert_eq!(admin.send("GET", "/", "Host: a\r\nAccept: */*\r\n").await.status, 401, "the list needs the token");
}

#[tokio::test]
async fn on_loopback_the_page_is_for_loopback_names() {
    let admin = admin(false, true).await;
    let page = admin.send("GET", "/", &format!("{LOCAL}Accept: text/html\r\n")).await;
    assert!(page.status == 200 && page.head.contains("content-type: text/html"), "{}", page.head);
    let list = admin.send("GET", "/", LOCAL).await;
    assert!(list.head.contains("content-type: text/plain") && list.body.contains("/metrics"), "{}", list.head);
    for path in ["/", "/assets/main.js"] {
        let headers = "Host: evil.example\r\nAccept: text/html\r\n";
        assert_eq!(admin.send("GET", path, headers).await.status, 421, "{path}");
    }
}

#[tokio::test]
async fn off_loopback_without_a_token_there_is_no_page_either() {
    let admin = admin(false, false).await;
    assert_eq!(admin.send("GET", "/", &format!("{LOCAL}Accept: text/html\r\n")).await.status, 401);
}

#[tokio::test]
async fn a_chat_needs_the_header_and_a_short_body_and_is_audited() {
    let admin = admin(false, true).await;
    let post = async |path: &str, headers: &str, body: &str| {
        let head = format!("{LOCAL}{headers}Content-Length: {}\r\n", body.len());
        admin.raw(&format!("POST {path} HTTP/1.1\r\nConnection: close\r\n{head}\r\n{body}")).await
    };
    let change = "x-spillway-admin: 1\r\n";
    assert_eq!(post("/api/playground/chat", "", "{}").await.status, 403);
    let key = format!("{change}x-spillway-playground-key: k\r\n");
    let sent = post("/api/playground/chat?host=a&path=/b%3Fc", &key, "{}").await;
    assert_eq!((sent.status, &*sent.body), (200, r#"["chat","a","/b?c","k",2]"#));
    let long = "x".repeat(playground::MAX_BODY + 1);
    assert_eq!(post("/api/playground/chat", change, &long).await.status, 413);
    let audited = admin.shown.audited.lock().clone();
    assert_eq!(audited[0], "unknown POST /api/playground/chat 403");
    assert_eq!(audited[1], "loopback POST /api/playground/chat 200");
}

#[tokio::test]
async fn a_live_tail_needs_what_all_needs_and_frees_its_place() {
    let foreign = admin(false, true).await.send("GET", "/api/requests", "Host: evil.example\r\n").await;
    assert_eq!(foreign.status, 421);
    let closed = admin(true, true).await;
    assert_eq!(closed.send("GET", "/api/requests", LOCAL).await.status, 401);
    assert!(!closed.shown.tail.is_watched());
    let open = admin(false, true).await;
    assert_eq!(open.send("GET", "/api/requests?status=none", LOCAL).await.status, 400);
    let mut stream = TcpStream::connect(open.address).await.unwrap();
    stream.write_all(format!("GET /api/requests HTTP/1.1\r\n{LOCAL}\r\n").as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
    assert!(open.shown.tail.is_watched());
    drop(stream);
    while open.shown.tail.is_watched() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_lasting_answer_holds_its_connection_and_not_the_end_of_the_process() {
    let answers = LastingAnswers::default();
    let (one, other) = (answers.begin(), answers.clone().begin());
    let ended = tokio::spawn(async move { answers.end().await });
    drop(one);
    tokio::task::yield_now().await;
    assert!(!ended.is_finished());
    drop(other);
    ended.await.unwrap();
    let admin = admin(false, true).await;
    let mut stream = TcpStream::connect(admin.address).await.unwrap();
    stream.write_all(format!("GET /api/requests HTTP/1.1\r\n{LOCAL}\r\n").as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 12]).await.unwrap();
    admin.stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(20), admin.serving).await.expect("it ends").unwrap();
}
