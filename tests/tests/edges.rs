//! Edge of the gateway: client addresses, access, and attacks that every gateway sees.

use std::time::Duration;

use spillway_tests::{Gateway, PATIENCE, Upstream, eventually, write_countries};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

async fn start(listener: &str, route: &str, upstream: &Upstream) -> Gateway {
    let url = upstream.url();
    let yaml = format!(
        "listeners: [{{name: l, address: \"127.0.0.1:0\"{listener}}}]
backends: [{{name: up, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: up}}]{route}}}]
"
    );
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await
}

/// Sends raw bytes and returns the answer, up to the end of the connection or until `enough` is true.
async fn raw(gateway: &Gateway, bytes: &[u8], enough: impl Fn(&str) -> bool) -> String {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = async {
        let mut part = [0; 4096];
        while let Ok(n @ 1..) = stream.read(&mut part).await {
            answer.extend_from_slice(&part[..n]);
            if enough(&String::from_utf8_lossy(&answer)) {
                return;
            }
        }
    };
    let ended = tokio::time::timeout(PATIENCE, read).await.is_ok();
    assert!(ended, "the connection stays open after {:?}", String::from_utf8_lossy(bytes));
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends bytes after which the gateway must close the connection.
async fn cut(gateway: &Gateway, bytes: &[u8]) -> String {
    raw(gateway, bytes, |_| false).await
}

#[tokio::test]
async fn attacks_on_the_framing_are_refused_and_the_connection_with_them() {
    let upstream = Upstream::fixed(200, "reached").await;
    let gateway = start(", limits: {maxHeaderBytes: 4KiB, headerTimeout: 1s}", "", &upstream).await;
    let post = |headers: &str, body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\n{headers}\r\n{body}");
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n";
    for (attack, bytes) in [
        ("Content-Length and Transfer-Encoding", post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", smuggled)),
        ("the same in the other order", post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", smuggled)),
        ("the same in other letters", post("TRANSFER-ENCODING: chunked\r\ncontent-LENGTH: 4\r\n", smuggled)),
        ("two lengths", post("Content-Length: 4\r\nContent-Length: 5\r\n", "abcde")),
        ("a length with a sign", post("Content-Length: +4\r\n", "abcd")),
        ("an unknown coding", post("Transfer-Encoding: xchunked\r\n", smuggled)),
        ("chunked not last", post("Transfer-Encoding: chunked, identity\r\n", smuggled)),
        ("a space before the colon", post("Transfer-Encoding : chunked\r\n", smuggled)),
        ("a folded line", post("X-A: b\r\n Transfer-Encoding: chunked\r\n", "")),
        (
            "a coding under HTTP/1.0",
            post("Transfer-Encoding: chunked\r\n", smuggled).replace("/1.1\r\nHost", "/1.0\r\nHost"),
        ),
        ("two hosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".into()),
        ("a host with a user", "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n".into()),
        ("no host", "GET / HTTP/1.1\r\n\r\n".into()),
        ("a bare line feed in a name", "GET / HTTP/1.1\r\nHost: a\r\nX\n: b\r\n\r\n".into()),
        ("a zero byte", "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n".into()),
        ("CONNECT", "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n".into()),
        ("CONNECT to a path", "CONNECT /x HTTP/1.1\r\nHost: a\r\n\r\n".into()),
        ("a header that is too long", format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(5000))),
        ("a target that is too long", format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(5000))),
        ("three hundred headers", format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(300))),
        ("a header that never ends", "GET / HTTP/1.1\r\nHost: a\r\nX: ".into()),
        ("silence", String::new()),
        ("no HTTP at all", "\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n".into()),
    ] {
        let answer = cut(&gateway, bytes.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{attack}: {answer}");
        assert_eq!(
            answer.lines().filter(|line| line.starts_with("HTTP/1.1 ")).count(),
            usize::from(!answer.is_empty()),
            "{attack}: {answer}"
        );
        assert_eq!(upstream.count(), 0, "{attack} reached the server");
    }
    assert_eq!(gateway.client().get("/").await.text(), "reached", "honest callers are served all the while");
}

#[tokio::test]
async fn who_is_slow_is_cut_off_in_every_phase() {
    let upstream = Upstream::fixed(200, "x").await;
    let limits = ", limits: {headerTimeout: 400ms, idleTimeout: 1s, bodyTimeout: 500ms}";
    let gateway = start(limits, "", &upstream).await;
    let mut slow = TcpStream::connect(gateway.address).await.unwrap();
    let dripped = async {
        // A byte now and then does not keep the connection alive.
        for byte in b"GET / HTTP/1.1\r\nHost: a\r\nX-A: 0123456789012345678901234567890123456789" {
            slow.write_all(&[*byte]).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::io::Result::Ok(())
    };
    assert!(tokio::time::timeout(PATIENCE, dripped).await.unwrap().is_err(), "header");
    let answer = cut(&gateway, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nabc").await;
    assert!(!answer.contains("HTTP/1.1 200 "), "body: {answer}");
    let answer = cut(&gateway, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.matches("HTTP/1.1 ").count() == 1,
        "between requests: {answer}"
    );
    gateway.metric_becomes("spillway_connections{listener=\"l\"}", 0.0).await;
}

#[tokio::test]
async fn claims_of_who_the_caller_is_are_believed_from_trusted_proxies_only() {
    let upstream = Upstream::fixed(200, "x").await;
    let claims = [
        ("x-forwarded-for", "1.1.1.1, 203.0.113.7, 127.0.0.9"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.test"),
        ("forwarded", "for=1.1.1.1"),
        ("x-real-ip", "203.0.113.7"),
        ("x-forwarded-port", "443"),
        ("x_forwarded_port", "443"),
        ("true-client-ip", "203.0.113.7"),
        ("fastly-client-ip", "203.0.113.7"),
        ("x-envoy-external-address", "203.0.113.7"),
        ("x-ssl-client-cert", "admin"),
        ("x-forwarded-client-cert", "Subject=\"CN=admin\""),
        ("x-forwarded-uri", "/admin"),
        ("x-original-uri", "/admin"),
        ("remote-user", "admin"),
        ("x_envoy_external_address", "203.0.113.7"),
        ("remote_user", "admin"),
        ("x-original-url", "/admin"),
        ("x-rewrite-url", "/admin"),
        ("proxy", "http://evil.test"),
        ("host", "a.test"),
    ];
    for (listener, client, scheme) in [
        ("", "127.0.0.1", "http"),
        (", clientAddress: {trustedProxies: [127.0.0.0/8]}", "203.0.113.7", "https"),
        (", clientAddress: {trustedProxies: [10.0.0.0/8]}", "127.0.0.1", "http"),
    ] {
        let gateway = start(listener, "", &upstream).await;
        let http = gateway.client();
        http.send(http.request("GET", "/", &claims, "")).await;
        let seen = upstream.last().headers;
        let all = |name: &str| seen.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect::<Vec<_>>();
        assert_eq!(all("x-forwarded-for"), [client], "{listener}");
        assert_eq!(all("x-forwarded-proto"), [scheme], "{listener}");
        assert_eq!(all("x-forwarded-host"), ["a.test"], "{listener}");
        assert!(all("forwarded").is_empty(), "{listener}");
        let is_trusted = client == "203.0.113.7";
        let only_ours = ["x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "forwarded", "host"];
        let never = ["x-original-url", "x-rewrite-url", "proxy"];
        for (name, _) in claims.into_iter().filter(|(name, _)| !only_ours.contains(name)) {
            let may_pass = is_trusted && !name.contains('_') && !never.contains(&name);
            assert_eq!(!all(name).is_empty(), may_pass, "{listener} {name}");
        }
        let logged = eventually("the request is logged", || {
            let line = gateway.events("access").first().cloned();
            async move { line }
        });
        assert_eq!(logged.await["client"], client);
    }
}

#[tokio::test]
async fn the_proxy_protocol_is_needed_from_its_proxies_and_refused_from_all_others() {
    let upstream = Upstream::fixed(200, "x").await;
    let get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let version1 = [b"PROXY TCP4 203.0.113.7 127.0.0.1 4711 80\r\n", &get[..]].concat();
    let mut version2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
    version2.extend([203, 0, 113, 8, 127, 0, 0, 1, 0, 1, 0, 80]);
    version2.extend(get);
    let behind = start(", proxyProtocol: {from: [127.0.0.1]}, limits: {handshakeTimeout: 500ms}", "", &upstream).await;
    for (bytes, client) in [(&version1, "203.0.113.7"), (&version2, "203.0.113.8")] {
        let answer = cut(&behind, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert_eq!(upstream.last().headers["x-forwarded-for"], client);
    }
    for (what, bytes) in [
        ("no header", &get[..]),
        ("half a header", b"PROXY TCP4 203.0"),
        ("nonsense", b"PROXY TCP4 a b c d\r\n"),
        ("silence", b""),
    ] {
        assert_eq!(cut(&behind, bytes).await, "", "{what}");
    }
    assert_eq!(
        behind.metric("spillway_connections_refused_total{listener=\"l\",reason=\"proxy_protocol\"}").await,
        2.0
    );
    behind.metric_becomes("spillway_connections_refused_total{listener=\"l\",reason=\"timeout\"}", 2.0).await;

    let before = upstream.count();
    let direct = start(", proxyProtocol: {from: [10.0.0.0/8]}", "", &upstream).await;
    let answer = cut(&direct, &version1).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(upstream.count(), before, "a header from anybody else is no request");
    let answer = cut(&direct, get).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(upstream.last().headers["x-forwarded-for"], "127.0.0.1");
}

#[tokio::test]
async fn an_address_has_only_so_many_connections() {
    let upstream = Upstream::fixed(200, "x").await;
    let gateway = start(", limits: {maxConnectionsPerAddress: 3}", "", &upstream).await;
    let get = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(get).await.unwrap();
        assert!(stream.read(&mut [0; 1000]).await.unwrap() > 0);
        held.push(stream);
    }
    assert_eq!(cut(&gateway, get).await, "");
    drop(held.pop());
    eventually("the place is free again", || async {
        let answer = raw(&gateway, get, |answer| answer.contains("\r\n\r\n")).await;
        answer.starts_with("HTTP/1.1 200").then_some(())
    })
    .await;
    assert!(gateway.metric("spillway_connections_refused_total{listener=\"l\",reason=\"address_limit\"}").await >= 1.0);
}

#[tokio::test]
async fn addresses_are_let_in_and_kept_out_by_network() {
    let upstream = Upstream::fixed(200, "x").await;
    let route = ", filters: [{clientAddress: {allow: [203.0.113.0/24], deny: [203.0.113.7]}}]";
    let gateway = start(", clientAddress: {trustedProxies: [127.0.0.1]}", route, &upstream).await;
    let http = gateway.client();
    for (client, status) in [("203.0.113.1", 200), ("203.0.113.7", 403), ("198.51.100.1", 403)] {
        let answer = http.send(http.request("GET", "/", &[("x-forwarded-for", client)], "")).await;
        assert_eq!(answer.status, status, "{client}");
    }
}

/// Lists in files and a database of countries; an edit counts at once, and one with a mistake not at all.
#[tokio::test]
async fn addresses_and_programs_are_kept_out_by_lists_in_files() {
    let upstream = Upstream::fixed(200, "x").await;
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("blocked.txt", "203.0.113.7 ; a comment\n");
    write("bots.json", r#"[{"pattern": "Googlebot\\/", "url": "x"}]"#);
    write_countries(&folder.path().join("countries.mmdb"), &[("203.0.113.0/24", "DE"), ("198.51.100.0/24", "FR")]);
    let url = upstream.url();
    let yaml = format!(
        "listeners: [{{name: l, address: \"127.0.0.1:0\", clientAddress: {{trustedProxies: [127.0.0.1]}}}}]
backends: [{{name: up, endpoints: [{{url: \"{url}\"}}]}}]
routes:
  - name: r
    filters:
      - clientAddress: {{denyFiles: [blocked.txt], countries: {{database: countries.mmdb, allow: [DE]}}}}
      - userAgent: {{denyFiles: [bots.json], denyMissing: true}}
    backendRefs: [{{name: up}}]
"
    );
    let gateway = Gateway::start_in(folder, &yaml).await;
    let code = async |client: &str, program: &str| {
        let http = gateway.client();
        let headers = [("x-forwarded-for", client), ("user-agent", program)];
        let answer = http.send(http.request("GET", "/", &headers, "")).await;
        if answer.status == 200 { "200".to_owned() } else { answer.json()["code"].as_str().unwrap().to_owned() }
    };
    let address = "address_not_allowed";
    for (client, program, wanted) in [
        ("203.0.113.1", "browser", "200"),
        ("203.0.113.7", "browser", address),
        ("198.51.100.1", "browser", address),
        ("192.0.2.1", "browser", address),
        ("203.0.113.1", "a googleBOT/2.1", "user_agent_not_allowed"),
        ("203.0.113.1", "", "user_agent_not_allowed"),
    ] {
        assert_eq!(code(client, program).await, wanted, "{client} {program}");
    }

    let (list, edits) = (gateway.folder().join("blocked.txt"), gateway.edits());
    std::fs::write(&list, "203.0.113.1\n").unwrap();
    assert_eq!(gateway.reloads(edits).await["event"], "config_reloaded");
    assert_eq!((code("203.0.113.1", "b").await.as_str(), code("203.0.113.7", "b").await.as_str()), (address, "200"));
    std::fs::write(&list, "203.0.113.0/33\n").unwrap();
    let refused = eventually("the mistake is reported", || async { gateway.events("config_rejected").pop() }).await;
    let refused = refused.to_string();
    assert!(refused.contains("line 1 of the file: `203.0.113.0/33` is not a network"), "{refused}");

    let edits = gateway.edits();
    std::fs::write(&list, "").unwrap();
    write_countries(&gateway.folder().join("countries.mmdb"), &[("198.51.100.0/24", "DE")]);
    gateway.reloads(edits).await;
    eventually("the new database", || async { (code("198.51.100.1", "b").await == "200").then_some(()) }).await;
    assert_eq!(code("203.0.113.1", "b").await, address);
}

#[tokio::test]
async fn pages_of_allowed_origins_may_call_and_what_they_ask_before_needs_no_credential() {
    let upstream = Upstream::start(|_| async {
        Some(spillway_tests::reply(200, &[("access-control-allow-origin", "*"), ("x-usage", "1")], "x"))
    })
    .await;
    let url = upstream.url();
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
backends: [{{name: up, endpoints: [{{url: \"{url}\"}}]}}]
consumers: [{{name: c, keys: [{{sha256: \"{digest}\"}}]}}]
routes:
  - name: r
    matches: [{{path: {{prefix: /v1}}, method: POST}}]
    filters: [{{cors: {{allowOrigins: [\"https://app.test\"], allowMethods: [POST], allowHeaders: [\"*\"], exposeHeaders: [x-usage], maxAge: 1h, allowCredentials: true}}}}]
    backendRefs: [{{name: up}}]
",
        digest = "a".repeat(64)
    );
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await;
    let http = gateway.client();
    let ask = async |origin: &str, method: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", method),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        http.send(http.request("OPTIONS", "/v1/chat", &headers, "")).await
    };
    let answer = ask("https://app.test", "POST").await;
    assert_eq!(answer.status, 204, "{}", answer.text());
    for (name, value) in [
        ("access-control-allow-origin", "https://app.test"),
        ("access-control-allow-methods", "GET, HEAD, POST"),
        ("access-control-allow-headers", "authorization,content-type"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "3600"),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
    assert!(!answer.headers.contains_key("content-length"));
    let vary: Vec<_> = answer.headers.get_all("vary").iter().map(|v| v.to_str().unwrap()).collect();
    assert!(vary.contains(&"Origin"), "{vary:?}");
    assert_eq!(ask("https://evil.test", "POST").await.status, 403);
    assert_eq!(ask("https://app.test", "DELETE").await.status, 404, "no route takes that method");

    let post = async |origin: &str| http.post("/v1/chat", &[("origin", origin)], "").await;
    let refused = post("https://app.test").await;
    assert_eq!(refused.status, 401);
    assert_eq!(refused.header("access-control-allow-origin"), "https://app.test", "the page may read why");
    let foreign = post("https://evil.test").await;
    assert_eq!(foreign.header("access-control-allow-origin"), "");
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn callers_are_sent_on_to_tls_and_servers_see_another_path() {
    let upstream = Upstream::fixed(200, "x").await;
    let route = ", matches: [{path: {prefix: /v1}}], filters: [{redirect: {scheme: https, status: 308}}, {strictTransportSecurity: {}}, {urlRewrite: {replacePrefix: /openai/v1, hostname: api.internal}}]";
    let gateway = start(", clientAddress: {trustedProxies: [127.0.0.1]}", route, &upstream).await;
    let http = gateway.client();
    let answer = http.send(http.request("POST", "/v1/chat?x=1", &[("host", "a.test:8080")], "")).await;
    assert_eq!((answer.status.as_u16(), answer.header("location")), (308, "https://a.test/v1/chat?x=1"));
    assert_eq!(answer.header("strict-transport-security"), "", "nobody has to believe it without TLS");
    let headers = [("host", "a.test"), ("x-forwarded-proto", "https")];
    let answer = http.send(http.request("POST", "/v1/chat?x=1", &headers, "")).await;
    assert_eq!((answer.status.as_u16(), answer.header("strict-transport-security")), (200, "max-age=31536000"));
    let seen = upstream.last();
    assert_eq!((seen.path.as_str(), seen.headers["host"].to_str().unwrap()), ("/openai/v1/chat?x=1", "api.internal"));
    assert_eq!(seen.headers["x-forwarded-host"], "a.test");
}

/// Upstream with a persistent connection: records what it reads and answers each request once its last chunk is here.
async fn recorder() -> (std::net::SocketAddr, std::sync::Arc<std::sync::Mutex<Vec<u8>>>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let read = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let kept = read.clone();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let kept = kept.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n) = socket.read(&mut buffer).await {
                    if n == 0 {
                        break;
                    }
                    kept.lock().unwrap().extend_from_slice(&buffer[..n]);
                    let whole = {
                        let kept = kept.lock().unwrap();
                        kept.windows(5).any(|part| part == b"\r\n0\r\n") && kept.ends_with(b"\r\n\r\n")
                    };
                    if whole {
                        // Excess bytes would arrive at once.
                        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                    }
                }
            });
        }
    });
    (address, read)
}

#[tokio::test]
async fn a_body_in_chunks_ends_once_however_its_end_arrives() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let head = "POST /x HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n";
    for end in [&["0\r\n\r\n"][..], &["0\r\nX-T: 1\r\n\r\n"], &["0\r\n", "\r\n"], &["0", "\r\n", "\r\n"]] {
        let (address, read) = recorder().await;
        let yaml = format!(
            "backends: [{{name: b, endpoints: [{{url: \"http://{address}\"}}]}}]\nroutes: [{{backendRefs: [{{name: b}}]}}]\n"
        );
        let gateway = Gateway::start(&yaml).await;
        let mut client = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        client.write_all(head.as_bytes()).await.unwrap();
        for part in end {
            tokio::time::sleep(std::time::Duration::from_millis(60)).await;
            client.write_all(part.as_bytes()).await.unwrap();
        }
        let mut answer = [0; 1024];
        let n = client.read(&mut answer).await.unwrap();
        assert!(answer[..n].starts_with(b"HTTP/1.1 200"), "{end:?}");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        let read = read.lock().unwrap().clone();
        let body = read.windows(4).position(|part| part == b"\r\n\r\n").unwrap() + 4;
        let expected = format!("3\r\nabc\r\n{}", end.concat().to_ascii_lowercase());
        assert_eq!(String::from_utf8_lossy(&read[body..]), expected, "{end:?}");
    }
}

#[tokio::test]
async fn what_a_backend_could_read_otherwise_is_refused_or_read_once() {
    let upstream = Upstream::fixed(200, "ok").await;
    let (_, digest) = spillway_tests::new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: c, keys: [{{sha256: \"{digest}\"}}]}}]
backends: [{{name: b, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: admin, matches: [{{path: {{prefix: /admin}}}}], authentication: required, backendRefs: [{{name: b}}]}}
  - {{name: secret, hostnames: [secret.test], authentication: required, backendRefs: [{{name: b}}]}}
  - {{name: open, authentication: none, backendRefs: [{{name: b}}]}}
",
        upstream.url()
    ))
    .await;
    let ask = async |text: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut socket = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        socket.write_all(text.as_bytes()).await.unwrap();
        let mut answer = [0; 64];
        let n = socket.read(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[..n]).split(' ').nth(1).unwrap_or_default().to_owned()
    };
    for (target, status) in [
        ("/open", "200"),
        ("/x/../admin", "400"),
        ("/x/%2e%2e/admin", "400"),
        ("/x\\..\\admin", "400"),
        ("/%61dmin", "401"),
        ("//admin", "401"),
        ("http://secret.test/x", "400"),
        ("http://open.test/x", "200"),
        ("admin", "400"),
        ("#admin", "400"),
        ("*#admin", "400"),
    ] {
        assert_eq!(ask(&format!("GET {target} HTTP/1.1\r\nHost: open.test\r\n\r\n")).await, status, "{target}");
    }
    for (host, status) in [
        ("secret.test", "401"),
        ("secret.test.", "401"),
        ("SECRET.test:80", "401"),
        ("secret.test:abc", "400"),
        ("secret.test, open.test", "400"),
    ] {
        assert_eq!(ask(&format!("GET /x HTTP/1.1\r\nHost: {host}\r\n\r\n")).await, status, "{host}");
    }
    assert_eq!(ask("GET http://secret.test/x HTTP/1.0\r\n\r\n").await, "401");
    assert_eq!(upstream.last().path, "/x", "only the target of the route that is open");
}

#[tokio::test]
async fn requests_sent_before_the_answer_to_the_one_before_are_answered_in_order() {
    let upstream = Upstream::start(|seen| async move {
        tokio::time::sleep(Duration::from_millis(if seen.path == "/slow" { 200 } else { 0 })).await;
        Some(spillway_tests::reply(200, &[], format!("<{} {}>", seen.path, String::from_utf8_lossy(&seen.body))))
    })
    .await;
    let gateway = start("", "", &upstream).await;
    let post = |path: &str, body: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let chunked = "POST /chunked HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let last = "GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    for (what, bytes, answers) in [
        ("two in one packet", post("/slow", "one") + last, vec!["</slow one>", "</last >"]),
        ("a line break behind a body", post("/slow", "one") + "\r\n" + last, vec!["</slow one>", "</last >"]),
        ("behind chunks", chunked.to_owned() + last, vec!["</chunked abc>", "</last >"]),
        (
            "bodies among them",
            post("/slow", "one") + &post("/b", "two") + chunked + last,
            vec!["</slow one>", "</b two>", "</chunked abc>", "</last >"],
        ),
        ("one behind the last", last.to_owned() + &post("/never", "x"), vec!["</last >"]),
    ] {
        let answer = cut(&gateway, bytes.as_bytes()).await;
        let found: Vec<&str> =
            answer.split('<').skip(1).map(|part| part.split_inclusive('>').next().unwrap()).collect();
        let wanted: Vec<&str> = answers.iter().map(|answer| &answer[1..]).collect();
        assert_eq!(found, wanted, "{what}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 200").count(), wanted.len(), "{what}: {answer}");
    }
    assert!(!upstream.seen.lock().unwrap().iter().any(|seen| seen.path == "/never"));

    // A request that arrives while the one before runs disturbs it no more than one that arrives with it.
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    stream.write_all(post("/slow", "one").as_bytes()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    stream.write_all(b"\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    stream.write_all(last.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.contains("</slow one>") && answer.ends_with("</last >"), "{answer}");

    // Pipelining is no way to run many requests at once.
    let many: String = (0..50).map(|n| post(&format!("/{n}"), "x")).collect::<String>() + last;
    let answer = cut(&gateway, many.as_bytes()).await;
    let places: Vec<_> = (0..50).map(|n| answer.find(&format!("</{n} x>")).unwrap()).collect();
    assert!(places.is_sorted(), "answers come in the order of the requests");
}
