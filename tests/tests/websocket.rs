//! WebSocket through the gateway: real clients and servers, the limits and choices of a request, and the end of a socket.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use spillway_tests::{
    Authority, CLOSE, Gateway, Issuer, IssuerKey, RawSocket, Secure, SocketServer, TEXT, Upstream, binary, eventually,
    faketime, free_port, new_key, opening, python, repository, socket_frame, switching, whole,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A server of the library `websockets`, stopped when dropped.
struct Python(Child);

impl Python {
    async fn server(certificate: Option<&Path>) -> (Self, u16) {
        let port = free_port();
        let mut command = Command::new(python());
        command.arg(repository().join("tests/python/websocket_server.py")).arg(port.to_string());
        if let Some(folder) = certificate {
            command.args([folder.join("server.pem"), folder.join("server.key")]);
        }
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        eventually("a server listens", || async { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok() })
            .await;
        (Self(child), port)
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a client; returns its output, a line of JSON for each observation.
async fn client(script: &str, arguments: &[&str]) -> Vec<Value> {
    let mut command = Command::new(python());
    command.arg(repository().join("tests/python").join(script)).args(arguments);
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(out.status.success(), "{script}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn route(server: &SocketServer, more: &str) -> String {
    format!(
        "backends: [{{name: up, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: up}}]{more}}}]
",
        server.url()
    )
}

/// Line of the access log for the first request of a route with this status.
async fn logged(gateway: &Gateway, route: &str, status: u16) -> Value {
    eventually("a line of the access log", || {
        let lines = gateway.events("access").into_iter();
        let line = lines.into_iter().find(|line| line["route"] == route && line["status"] == status);
        async move { line }
    })
    .await
}

async fn get(address: SocketAddr, request: &str) -> String {
    let mut socket = RawSocket::send_to(address, request.as_bytes()).await;
    String::from_utf8(socket.rest().await).unwrap()
}

#[tokio::test]
async fn the_library_websockets_talks_to_itself_over_plain_connections_and_tls() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::default();
    authority.write(folder.path());
    authority.server(&["a.test"]).write(folder.path(), "server");
    let (_plain, plain) = Python::server(None).await;
    let (_secure, secure) = Python::server(Some(folder.path())).await;
    let ca = folder.path().join("ca.pem").display().to_string();
    let yaml = format!(
        "listeners:
  - {{name: plain, address: \"127.0.0.1:0\"}}
  - {{name: tls, address: \"127.0.0.1:0\", protocol: https, tls: {{certificates: [{{certFile: server.pem, keyFile: server.key}}]}}}}
backends:
  - {{name: plain, endpoints: [{{url: \"http://127.0.0.1:{plain}\"}}]}}
  - {{name: tls, endpoints: [{{url: \"https://127.0.0.1:{secure}\"}}], tls: {{caFile: ca.pem, sni: a.test}}}}
  - {{name: h2, http2: true, endpoints: [{{url: \"https://127.0.0.1:{secure}\"}}], tls: {{caFile: ca.pem, sni: a.test}}}}
routes:
  - {{name: tls, matches: [{{path: {{prefix: /tls}}}}], backendRefs: [{{name: tls}}]}}
  - {{name: h2, matches: [{{path: {{prefix: /h2}}}}], backendRefs: [{{name: h2}}]}}
  - {{name: plain, backendRefs: [{{name: plain}}]}}
"
    );
    let gateway = Gateway::start_in(folder, &yaml).await;
    let (plain, tls) = (gateway.listener("plain"), gateway.listener("tls"));
    client("websocket_client.py", &[&format!("ws://{plain}/echo")]).await;
    client("websocket_client.py", &[&format!("ws://{plain}/tls")]).await;
    client("websocket_client.py", &[&format!("wss://a.test:{}/h2", tls.port()), &ca]).await;
    gateway.metric_becomes("spillway_open_sockets{http_route=\"plain\"}", 0.0).await;
    gateway.metric_becomes("spillway_sockets_total{http_route=\"h2\",end=\"client\"}", 52.0).await;
    gateway.metric_becomes("spillway_sockets_total{http_route=\"h2\",end=\"server\"}", 1.0).await;
}

#[tokio::test]
async fn openais_client_of_the_realtime_api_speaks_to_the_model_it_may_use() {
    let (_server, port) = Python::server(None).await;
    let ((free, free_digest), (bound, bound_digest), (counted, counted_digest)) = (new_key(), new_key(), new_key());
    let gateway = Gateway::start(&format!(
        "consumers:
  - {{name: free, keys: [{{sha256: \"{free_digest}\"}}]}}
  - {{name: bound, models: [gpt-realtime], keys: [{{sha256: \"{bound_digest}\"}}]}}
  - {{name: counted, keys: [{{sha256: \"{counted_digest}\"}}], limits: {{tokens: 1000/min}}}}
backends:
  - name: voice
    protocol: openai
    model: own-model
    credentials: {{bearer: {{env: TEST_SECRET}}}}
    endpoints: [{{url: \"http://127.0.0.1:{port}\"}}]
routes:
  - {{name: voice, matches: [{{path: {{prefix: /v1}}, model: \"gpt-*\"}}], backendRefs: [{{name: voice}}]}}
"
    ))
    .await;
    let url = format!("http://{}/v1", gateway.address);
    let told = |key: String, model: &'static str| {
        let url = url.clone();
        async move { client("realtime_client.py", &[&url, &key, model]).await.remove(0) }
    };
    let expected = json!({"model": "gpt-realtime", "authorization": "Bearer upstream-secret", "text": "Hello there", "tokens": 12});
    assert_eq!(told(free.clone(), "gpt-realtime").await, expected);
    assert_eq!(told(bound.clone(), "gpt-realtime").await, expected);
    assert_eq!(told(counted, "gpt-realtime").await, expected);
    for (key, model, status, code) in [
        (bound, "gpt-other", 404, "model_not_found"),
        (free, "other", 404, "model_not_found"),
        ("sk-unknown".to_owned(), "gpt-realtime", 401, "invalid_api_key"),
    ] {
        let refused = told(key, model).await;
        assert_eq!((refused["status"].as_u64(), refused["body"]["error"]["code"].as_str()), (Some(status), Some(code)));
    }
    let line = logged(&gateway, "voice", 101).await;
    assert_eq!((&line["consumer"], &line["modelAsked"]), (&json!("free"), &json!("gpt-realtime")));
}

#[tokio::test]
async fn a_socket_holds_its_slot_and_its_callers_concurrency_until_it_closes() {
    let (server, other) = (SocketServer::start().await, SocketServer::start().await);
    let (key, digest) = new_key();
    let yaml = format!(
        "consumers: [{{name: one, keys: [{{sha256: \"{digest}\"}}], limits: {{concurrency: 1}}}}]
backends:
  - {{name: up, capacity: {{maxInFlight: 1}}, endpoints: [{{url: \"{}\"}}]}}
  - {{name: other, endpoints: [{{url: \"{}\"}}]}}
routes:
  - {{name: own, matches: [{{path: {{prefix: /own}}}}], backendRefs: [{{name: other}}]}}
  - {{name: r, authentication: none, backendRefs: [{{name: up}}], whenSaturated: {{spillTo: other}}}}
",
        server.url(),
        other.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let address = gateway.address;
    let (mut client, mut far) = server.through(address, "/").await;
    client.send_frame(TEXT, b"hello").await;
    let frame = far.frame().await.unwrap();
    assert!(frame.masked && frame.payload == b"hello");
    far.send_frame(TEXT, b"hi you").await;
    assert_eq!(client.frame().await.unwrap().payload, b"hi you");
    assert_eq!(gateway.endpoint(&server.url()).await["inFlight"], 1);
    assert_eq!(gateway.metric("spillway_open_sockets{http_route=\"r\"}").await, 1.0);
    let refused = get(address, &opening("/", "")).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("\r\nretry-after: "), "{refused}");

    let open = opening("/own", &format!("authorization: Bearer {key}\r\n"));
    let mut own = RawSocket::send_to(address, open.as_bytes()).await;
    let mut own_far = other.open().await;
    assert!(own.head().await.starts_with("HTTP/1.1 101 "));
    let refused = get(address, &open).await;
    assert!(refused.starts_with("HTTP/1.1 429 "), "{refused}");
    own.send_frame(CLOSE, &1000u16.to_be_bytes()).await;
    assert_eq!(own_far.frame().await.unwrap().code(), 1000);
    own_far.send_frame(CLOSE, &1000u16.to_be_bytes()).await;
    assert_eq!(own.frame().await.unwrap().code(), 1000);
    drop((own, own_far));

    client.send_frame(CLOSE, &1000u16.to_be_bytes()).await;
    assert_eq!(far.frame().await.unwrap().code(), 1000);
    far.send_frame(CLOSE, &1000u16.to_be_bytes()).await;
    assert_eq!(client.frame().await.unwrap().code(), 1000);
    drop(far);
    assert!(client.rest().await.is_empty());
    gateway.metric_becomes("spillway_open_sockets{http_route=\"r\"}", 0.0).await;
    let (_client, _far) = server.through(address, "/").await;
    let line = logged(&gateway, "r", 101).await;
    // 6 bytes of header and mask or 2 of header, and the payloads.
    assert_eq!((&line["bytesIn"], &line["bytesOut"]), (&json!(6 + 5 + 6 + 2), &json!(2 + 6 + 2 + 2)), "{line}");
    assert_eq!((&line["socketEnd"], &line["endpoint"].is_string()), (&json!("client"), &true));
    assert_eq!(logged(&gateway, "r", 503).await["notSpilled"], "operation");
}

#[tokio::test]
async fn before_the_101_another_endpoint_takes_what_one_cannot() {
    let (server, full) = (SocketServer::start().await, Upstream::fixed(503, "full").await);
    let gateway = Gateway::start(&format!(
        "backends:
  - name: up
    capacity: {{statuses: [503]}}
    loadBalancing: {{policy: roundRobin}}
    outlierDetection: {{consecutiveErrors: 1000}}
    endpoints: [{{url: \"{}\"}}, {{url: \"{}\"}}, {{url: \"{}\"}}]
routes: [{{name: r, backendRefs: [{{name: up}}]}}]
",
        Upstream::nobody().await,
        full.url(),
        server.url()
    ))
    .await;
    for _ in 0..3 {
        let (mut client, mut far) = server.through(gateway.address, "/").await;
        client.send_frame(TEXT, b"x").await;
        assert_eq!(far.frame().await.unwrap().payload, b"x");
    }
    assert!(full.count() > 0);
}

#[tokio::test]
async fn another_answer_than_101_passes_as_it_is_and_ends_the_connection() {
    let server = SocketServer::start().await;
    let gateway = Gateway::start(&route(&server, "")).await;
    let asked = opening("/", "");
    let (answer, ()) = tokio::join!(get(gateway.address, &asked), async {
        let (mut far, head) = server.accept().await;
        assert!(head.contains("\r\nupgrade: websocket\r\n") && head.contains("\r\nconnection: upgrade\r\n"), "{head}");
        far.send(b"HTTP/1.1 403 Forbidden\r\nX-Why: origin\r\nContent-Length: 2\r\n\r\nno").await;
    });
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n") && answer.ends_with("\r\n\r\nno"), "{answer}");
    assert!(answer.contains("\r\nx-why: origin\r\n") && answer.contains("\r\nconnection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_gateway_that_stops_ends_sockets_at_a_boundary_between_frames() {
    let server = SocketServer::start().await;
    let yaml = route(&server, "") + "shutdown: {drainTimeout: 1s}\n";
    let gateway = Gateway::start(&yaml).await;
    let address = gateway.address;
    let (mut idle, mut idle_far) = server.through(address, "/").await;
    let (mut cut, mut cut_far) = server.through(address, "/").await;
    let (mut never, mut never_far) = server.through(address, "/").await;
    let big = socket_frame(0x82, &[7; 5000], None);
    cut_far.send(&big[..3000]).await;
    never_far.send(&big[..3]).await;
    let mut begun = vec![0; 3000];
    cut.stream.read_exact(&mut begun).await.unwrap();
    gateway.signal("TERM");

    let close = idle.frame().await.unwrap();
    assert!(close.code() == 1001 && !close.masked, "{close:?}");
    let close = idle_far.frame().await.unwrap();
    assert!(close.code() == 1001 && close.masked, "{close:?}");
    // Within the time to end, the server finishes the frame that it has begun; what it says then is dropped.
    cut_far.send(&big[3000..]).await;
    cut_far.send_frame(TEXT, b"too late").await;
    begun.extend(vec![0; big.len() - 3000]);
    cut.stream.read_exact(&mut begun[3000..]).await.unwrap();
    assert_eq!(begun, big);
    assert_eq!(cut.frame().await.unwrap().code(), 1001);
    assert_eq!(cut_far.frame().await.unwrap().code(), 1001);
    // A frame that does not end is cut, and nothing of the gateway's is in it.
    assert_eq!(never.rest().await, big[..3]);
    assert_eq!(never_far.frame().await.unwrap().code(), 1001);
    drop((idle, idle_far, cut, cut_far, never, never_far));
    let (status, log) = gateway.wait().await;
    assert!(status.success());
    assert_eq!(log.matches("\"socketEnd\":\"shutting_down\"").count(), 3, "{log}");
}

#[tokio::test]
async fn drains_and_edits_end_the_sockets_that_they_concern() {
    let (server, other) = (SocketServer::start().await, SocketServer::start().await);
    let ((key, digest), (kept, kept_digest)) = (new_key(), new_key());
    let first: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let second: SocketAddr = ([127, 0, 0, 1], free_port()).into();
    let yaml = |listeners: &str, keys: &str, routes: &str, endpoints: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:{}\"}}{listeners}]
shutdown: {{drainTimeout: 1s}}
consumers: [{{name: c, keys: [{keys}]}}]
backends: [{{name: up, endpoints: [{endpoints}]}}, {{name: other, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: r, authentication: none, matches: [{{path: {{prefix: /r}}}}], backendRefs: [{{name: up}}]}}
  - {{name: keyed, matches: [{{path: {{prefix: /keyed}}}}], backendRefs: [{{name: other}}]}}
{routes}",
            first.port(),
            other.url()
        )
    };
    let both = format!("{{sha256: \"{digest}\"}}, {{sha256: \"{kept_digest}\"}}");
    let going =
        "  - {name: going, authentication: none, matches: [{path: {prefix: /going}}], backendRefs: [{name: other}]}\n";
    let endpoint = format!("{{url: \"{}\"}}", server.url());
    let listener = format!(", {{address: \"{second}\"}}");
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(&listener, &both, going, &endpoint)).await;
    let address = gateway.address;
    let open = |key: &str| opening("/keyed", &format!("authorization: Bearer {key}\r\n"));
    let keyed = async |key: &str| {
        let mut client = RawSocket::send_to(address, open(key).as_bytes()).await;
        let far = other.open().await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
        (client, far)
    };
    let (mut client, mut far) = server.through(address, "/r").await;
    let (mut revoked, _revoked_far) = keyed(&key).await;
    let (mut staying, mut staying_far) = keyed(&kept).await;
    let (mut ended, mut ended_far) = other.through(address, "/going").await;

    // A drain that is taken back in time ends nothing.
    let name = server.url().replace("http://", "");
    let admin = spillway_tests::Client::new(gateway.admin);
    let change = async |action: &str| {
        let path = format!("/api/backends/up/endpoints/{name}/{action}");
        let answer = admin.post(&path, &[("x-spillway-admin", "1")], "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    };
    change("drain").await;
    change("undrain").await;
    client.send_frame(TEXT, b"on").await;
    assert_eq!(far.frame().await.unwrap().payload, b"on");
    change("drain").await;
    assert_eq!((client.frame().await.unwrap().code(), far.frame().await.unwrap().code()), (1001, 1001));
    change("undrain").await;

    let (mut gone, mut gone_far) = server.through(address, "/r").await;
    let mut elsewhere = RawSocket::send_to(second, open(&kept).as_bytes()).await;
    let mut elsewhere_far = other.open().await;
    assert!(elsewhere.head().await.starts_with("HTTP/1.1 101 "));
    // Its server still thinks about the handshake when its key is removed.
    let mut late = RawSocket::send_to(address, open(&key).as_bytes()).await;
    let (mut late_far, late_head) = other.accept().await;
    let edits = gateway.edits();
    let another = format!("{{url: \"{}\"}}", Upstream::nobody().await);
    let next = yaml("", &format!("{{sha256: \"{kept_digest}\"}}"), "", &another);
    std::fs::write(gateway.config(), whole(&next)).unwrap();
    let edit = gateway.reloads(edits).await;
    assert_eq!(edit["event"], "config_reloaded", "{edit}");
    assert_eq!(revoked.frame().await.unwrap().code(), 1008);
    late_far.send(switching(&late_head).as_bytes()).await;
    assert!(late.head().await.starts_with("HTTP/1.1 101 "));
    assert_eq!(late.frame().await.unwrap().code(), 1008, "opened by a configuration that is gone");
    assert_eq!((ended.frame().await.unwrap().code(), ended_far.frame().await.unwrap().code()), (1001, 1001));
    assert_eq!((gone.frame().await.unwrap().code(), gone_far.frame().await.unwrap().code()), (1001, 1001));
    let closed = (elsewhere.frame().await.unwrap().code(), elsewhere_far.frame().await.unwrap().code());
    assert_eq!(closed, (1001, 1001), "its listener is gone");
    staying.send_frame(TEXT, b"still here").await;
    assert_eq!(staying_far.frame().await.unwrap().payload, b"still here");
}

#[tokio::test]
async fn an_undrain_takes_back_no_end_that_an_edit_has_decided() {
    let server = SocketServer::start().await;
    let yaml = |going: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
shutdown: {{drainTimeout: 2s}}
backends: [{{name: up, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: r, matches: [{{path: {{prefix: /r}}}}], backendRefs: [{{name: up}}]}}
{going}",
            server.url()
        )
    };
    let going = "  - {name: going, matches: [{path: {prefix: /going}}], backendRefs: [{name: up}]}\n";
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(going)).await;
    let (mut kept, mut kept_far) = server.through(gateway.address, "/r").await;
    let (mut ended, mut ended_far) = server.through(gateway.address, "/going").await;
    let name = server.url().replace("http://", "");
    let admin = spillway_tests::Client::new(gateway.admin);
    let change = async |action: &str| {
        let path = format!("/api/backends/up/endpoints/{name}/{action}");
        assert_eq!(admin.post(&path, &[("x-spillway-admin", "1")], "").await.status, 200);
    };
    change("drain").await;
    std::fs::write(gateway.config(), whole(&yaml(""))).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    change("undrain").await;
    assert_eq!((ended.frame().await.unwrap().code(), ended_far.frame().await.unwrap().code()), (1001, 1001));
    kept.send_frame(TEXT, b"on").await;
    assert_eq!(kept_far.frame().await.unwrap().payload, b"on");
}

#[tokio::test]
async fn a_key_that_expires_ends_the_sockets_that_it_opened() {
    let server = SocketServer::start().await;
    let ((ending, ending_digest), (kept, kept_digest)) = (new_key(), new_key());
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
consumers:
  - {{name: c, keys: [{{sha256: \"{ending_digest}\", expires: 2099-01-01}}, {{sha256: \"{kept_digest}\"}}]}}
{}",
        route(&server, "")
    );
    let folder = tempfile::tempdir().unwrap();
    let clock = folder.path().join("clock");
    let set = |before: u64| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        // The first of January, 2099.
        let ahead = 4_070_908_800 - before - now;
        std::fs::write(clock.with_extension("new"), format!("+{ahead}s")).unwrap();
        std::fs::rename(clock.with_extension("new"), &clock).unwrap();
    };
    set(3600);
    let mut command = Command::new(binary());
    command
        .env("LD_PRELOAD", faketime())
        .env("FAKETIME_TIMESTAMP_FILE", &clock)
        .env("FAKETIME_NO_CACHE", "1")
        .env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    let gateway = Gateway::start_by(command, folder, &yaml).await;
    let open = async |key: &str| {
        let request = opening("/", &format!("authorization: Bearer {key}\r\n"));
        let mut client = RawSocket::send_to(gateway.address, request.as_bytes()).await;
        let far = server.open().await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
        (client, far)
    };
    let ((mut client, mut far), (mut other, mut other_far)) = (open(&ending).await, open(&kept).await);
    // Two seconds before the end, an edit that changes nothing reads the clock anew.
    set(2);
    std::fs::write(gateway.config(), format!("{}# edited\n", whole(&yaml))).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!((client.frame().await.unwrap().code(), far.frame().await.unwrap().code()), (1008, 1008));
    other.send_frame(TEXT, b"on").await;
    assert_eq!(other_far.frame().await.unwrap().payload, b"on");
    set(0);
    let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\nAuthorization: Bearer {ending}\r\n\r\n");
    let mut refused = RawSocket::send_to(gateway.address, request.as_bytes()).await;
    assert!(refused.head().await.starts_with("HTTP/1.1 401 "));
}

#[tokio::test]
async fn an_edit_that_removes_a_caller_ends_its_sockets_however_it_was_known() {
    let (server, authority, issuer) = (SocketServer::start().await, Authority::default(), Issuer::start().await);
    let (folder, key) = (tempfile::tempdir().unwrap(), IssuerKey::new("k"));
    authority.server(&["a.test"]).write(folder.path(), "server");
    authority.write(folder.path());
    issuer.shows(&[&key]);
    let yaml = |consumers: &str| {
        format!(
            "listeners:
  - address: 127.0.0.1:0
    protocol: https
    tls:
      certificates: [{{certFile: server.pem, keyFile: server.key}}]
      clientCertificates: {{caFile: ca.pem, mode: optional}}
authentication:
  mtls: {{identity: san-uri}}
  jwt: [{{issuer: \"{}\", audiences: [spillway]}}]
consumers:
  - {{name: kept, mtls: {{identities: [\"spiffe://example/kept\"]}}}}
  - {{name: also-kept, jwt: {{issuer: \"{0}\", subject: kept}}}}
{consumers}
backends: [{{name: up, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: up}}]}}]
",
            issuer.url(),
            server.url()
        )
    };
    let going = format!(
        "  - {{name: a, mtls: {{identities: [\"spiffe://example/a\"]}}}}
  - {{name: b, jwt: {{issuer: \"{}\", subject: b}}}}",
        issuer.url()
    );
    let gateway = Gateway::start_in(folder, &yaml(&going)).await;
    let open = async |certificate: Option<&str>, subject: Option<&str>| {
        let own = certificate.map(|uri| authority.client("x", uri));
        let client = Secure::with(gateway.address, &authority, own.as_ref(), rustls::ALL_VERSIONS);
        let mut socket = RawSocket::over(client.open("a.test", &["http/1.1"]).await.unwrap());
        let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
        let claims = |subject| json!({"iss": issuer.url(), "aud": "spillway", "sub": subject, "exp": ends});
        let bearer = subject.map(|subject| format!("authorization: Bearer {}\r\n", key.token(&claims(subject))));
        socket.send(opening("/", &bearer.unwrap_or_default()).as_bytes()).await;
        let far = server.open().await;
        assert!(socket.head().await.starts_with("HTTP/1.1 101 "));
        (socket, far)
    };
    let mut ended = [open(Some("spiffe://example/a"), None).await, open(None, Some("b")).await];
    let mut kept = [open(Some("spiffe://example/kept"), None).await, open(None, Some("kept")).await];
    std::fs::write(gateway.config(), whole(&yaml(""))).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    for (client, far) in &mut ended {
        assert_eq!((client.frame().await.unwrap().code(), far.frame().await.unwrap().code()), (1008, 1008));
    }
    for (client, far) in &mut kept {
        client.send_frame(TEXT, b"on").await;
        assert_eq!(far.frame().await.unwrap().payload, b"on");
    }
}

#[tokio::test]
async fn idle_time_and_life_are_bounded_but_the_deadline_of_a_request_is_not_for_sockets() {
    let server = SocketServer::start().await;
    let more = ", matches: [{path: {prefix: /idle}}], timeouts: {request: 1s, socketIdle: 2s}}, {name: life, matches: \
                [{path: {prefix: /life}}], backendRefs: [{name: up}], timeouts: {socketLifetime: 1s}";
    let gateway = Gateway::start(&route(&server, more)).await;
    let (mut client, mut far) = server.through(gateway.address, "/idle").await;
    // Pings keep it alive, beyond the time of a request.
    for _ in 0..8 {
        client.send_frame(9, b"").await;
        assert_eq!(far.frame().await.unwrap().first, 0x89);
        far.send_frame(10, b"").await;
        assert_eq!(client.frame().await.unwrap().first, 0x8a);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!((client.frame().await.unwrap().code(), far.frame().await.unwrap().code()), (1001, 1001));
    assert_eq!(logged(&gateway, "r", 101).await["socketEnd"], "idle");
    let (mut client, mut far) = server.through(gateway.address, "/life").await;
    let close = loop {
        far.send_frame(TEXT, b"busy").await;
        let frame = client.frame().await.unwrap();
        if frame.first == 0x80 | CLOSE {
            break frame;
        }
    };
    assert_eq!((close.code(), far.frame().await.unwrap().code()), (1001, 1001));
    gateway.metric_becomes("spillway_sockets_total{http_route=\"life\",end=\"lifetime\"}", 1.0).await;
}

#[tokio::test]
async fn one_side_may_end_before_the_other() {
    let server = SocketServer::start().await;
    let gateway = Gateway::start(&route(&server, "")).await;
    let (mut client, mut far) = server.through(gateway.address, "/").await;
    client.send_frame(TEXT, b"last").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(far.frame().await.unwrap().payload, b"last");
    assert_eq!(far.frame().await, None);
    far.send_frame(TEXT, b"answer").await;
    assert_eq!(client.frame().await.unwrap().payload, b"answer");
    drop(far);
    assert!(client.rest().await.is_empty());
    assert_eq!(logged(&gateway, "r", 101).await["socketEnd"], "client");

    // A server that is lost in the middle is not the end of a socket in order.
    let (mut client, far) = server.through(gateway.address, "/").await;
    reset(far);
    assert_eq!(client.frame().await.unwrap().code(), 1011);
    gateway.metric_becomes("spillway_sockets_total{http_route=\"r\",end=\"server_lost\"}", 1.0).await;
}

/// Ends a connection by a reset.
fn reset(socket: RawSocket) {
    #[allow(deprecated, reason = "a linger of zero does not block")]
    socket.stream.set_linger(Some(Duration::ZERO)).unwrap();
}

#[tokio::test]
async fn a_side_that_does_not_read_holds_the_other_back_and_takes_no_memory() {
    let server = SocketServer::start().await;
    let gateway = Gateway::start(&route(&server, "")).await;
    let (mut client, mut far) = server.through(gateway.address, "/").await;
    let frame = socket_frame(0x82, &[5; 60_000], None);
    // Buffers of the system on both connections take some; the gateway takes none.
    let mut sent = 0;
    while let Ok(written) = tokio::time::timeout(Duration::from_secs(2), far.stream.write_all(&frame)).await {
        written.unwrap();
        sent += 1;
        assert!(sent < 2000, "the server is not held back");
    }
    let memory = |gateway: &Gateway| -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    assert!(memory(&gateway) < 200_000, "{} KB", memory(&gateway));
    // The other direction goes on.
    client.send_frame(TEXT, b"still").await;
    assert_eq!(far.frame().await.unwrap().payload, b"still");
    for _ in 0..sent {
        assert_eq!(client.frame().await.unwrap().payload.len(), 60_000);
    }
}

#[tokio::test]
async fn a_client_that_never_reads_is_cut_by_the_write_timeout_of_its_listener() {
    let server = SocketServer::start().await;
    let yaml =
        format!("listeners: [{{address: \"127.0.0.1:0\", limits: {{writeTimeout: 1s}}}}]\n{}", route(&server, ""));
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let (client, mut far) = server.through(gateway.address, "/").await;
    let frame = socket_frame(0x82, &[5; 60_000], None);
    let lost = async { while far.stream.write_all(&frame).await.is_ok() {} };
    tokio::time::timeout(spillway_tests::PATIENCE, lost).await.expect("the server's end of the socket is closed");
    gateway.metric_becomes("spillway_sockets_total{http_route=\"r\",end=\"client_slow\"}", 1.0).await;
    drop(client);
}

#[tokio::test]
async fn clients_of_http2_open_sockets_by_extended_connect() {
    let server = SocketServer::start().await;
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\", protocol: h2c, healthPath: /healthz}}]\n{}",
        route(&server, "")
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let (mut send, mut connection) = h2::client::handshake(stream).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    let running = tokio::spawn(connection);
    pings.ping(h2::Ping::opaque()).await.unwrap();
    assert!(send.is_extended_connect_protocol_enabled());
    let connect = |path: &str, protocol: Option<&'static str>| {
        let mut request = http::Request::builder()
            .method("CONNECT")
            .uri(format!("http://a.test{path}"))
            .version(http::Version::HTTP_2)
            .header("sec-websocket-version", "13")
            .header("sec-websocket-protocol", "chat")
            .body(())
            .unwrap();
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
        }
        request
    };
    let (answer, mut up) = send.send_request(connect("/chat?x=1", Some("websocket")), false).unwrap();
    up.send_data(socket_frame(0x81, b"early", Some([9, 8, 7, 6])).into(), false).unwrap();
    let (mut far, head) = server.accept().await;
    assert!(head.starts_with("GET /chat?x=1 HTTP/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nsec-websocket-protocol: chat\r\n"), "{head}");
    far.send(switching(&head).replace("\r\n\r\n", "\r\nsec-websocket-protocol: chat\r\n\r\n").as_bytes()).await;
    let answer = answer.await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["sec-websocket-protocol"]),
        (200, &"chat".parse().unwrap())
    );
    assert!(!answer.headers().contains_key("sec-websocket-accept") && !answer.headers().contains_key("upgrade"));
    assert_eq!(far.frame().await.unwrap().payload, b"early");
    let mut body = answer.into_body();
    let payload = vec![3; 100_000];
    let frame = socket_frame(0x82, &payload, None);
    let (got, ()) = tokio::join!(
        async {
            let mut got = Vec::new();
            while got.len() < frame.len() {
                let part = body.data().await.unwrap().unwrap();
                body.flow_control().release_capacity(part.len()).unwrap();
                got.extend_from_slice(&part);
            }
            got
        },
        far.send(&frame)
    );
    assert_eq!(got, frame);
    up.send_data(bytes::Bytes::new(), true).unwrap();
    assert_eq!(far.frame().await, None);
    drop(far);
    while let Some(end) = body.data().await {
        assert!(end.unwrap().is_empty());
    }

    // Nothing else opens a tunnel: no answer of the gateway's own, none of a server, no other protocol.
    let (answer, mut up) = send.send_request(connect("/healthz", Some("websocket")), false).unwrap();
    assert_eq!(answer.await.unwrap().status(), 502);
    up.send_reset(h2::Reason::CANCEL);
    let (answer, _up) = send.send_request(connect("/", Some("websocket")), false).unwrap();
    let (mut far, _) = server.accept().await;
    far.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    assert_eq!(answer.await.unwrap().status(), 502);
    let (answer, _up) = send.send_request(connect("/", Some("connect-udp")), false).unwrap();
    assert_eq!(answer.await.unwrap().status(), 501);
    let plain = http::Request::builder().method("CONNECT").uri("a.test:443").body(()).unwrap();
    let (answer, _up) = send.send_request(plain, false).unwrap();
    assert_eq!(answer.await.unwrap().status(), 405);
    drop(send);
    running.abort();
}
