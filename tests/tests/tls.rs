//! TLS of a listener: the certificate for each name, changed without a lost connection, and only permitted clients.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rustls::version;
use spillway_tests::{Authority, Gateway, Secure, Upstream, binary, eventually, python, whole};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const LISTENER: &str = "listeners:
  - {name: tls, address: \"127.0.0.1:0\", protocol: https, tls: {certificates: [{certFile: a.pem, keyFile: a.key}, {certFile: b.pem, keyFile: b.key}]MORE}LIMITS}
";

fn yaml(upstream: &Upstream, more: &str, limits: &str) -> String {
    let listener = LISTENER.replace("MORE", more).replace("LIMITS", limits);
    let url = upstream.url();
    format!(
        "{listener}backends: [{{name: up, endpoints: [{{url: \"{url}\"}}]}}]\nroutes: [{{name: r, backendRefs: [{{name: up}}]}}]\n"
    )
}

async fn start(authority: &Authority, upstream: &Upstream, more: &str, limits: &str) -> Gateway {
    let folder = tempfile::tempdir().unwrap();
    authority.server(&["a.test", "also-a.test"]).write(folder.path(), "a");
    authority.server(&["*.b.test"]).write(folder.path(), "b");
    authority.write(folder.path());
    Gateway::start_in(folder, &yaml(upstream, more, limits)).await
}

/// Output of a program on both streams.
fn printed(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).stdin(std::process::Stdio::null()).output().unwrap();
    String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_chooses_the_certificate_and_alpn_the_version_for_common_clients() {
    let (authority, upstream) = (Authority::default(), Upstream::fixed(200, "hello").await);
    let gateway = start(&authority, &upstream, "", "").await;
    let (address, port) = (gateway.address.to_string(), gateway.address.port());
    let ca = gateway.folder().join("ca.pem");
    let ca = ca.to_str().unwrap();
    let shown = |name: &str| {
        printed(
            "openssl",
            &["s_client", "-connect", &address, "-servername", name, "-CAfile", ca, "-verify_hostname", name],
        )
    };
    for (name, verified) in [("a.test", true), ("also-a.test", true), ("x.b.test", true), ("other.test", false)] {
        let told = shown(name);
        assert_eq!(told.contains("Verify return code: 0 (ok)"), verified, "{name}: {told}");
    }
    let told =
        printed("openssl", &["s_client", "-connect", &address, "-servername", "a.test", "-CAfile", ca, "-tls1_2"]);
    assert!(told.contains("Protocol  : TLSv1.2"), "{told}");
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let to = format!("a.test:{port}:127.0.0.1");
        let url = format!("https://a.test:{port}/");
        let told = printed(
            "curl",
            &["-sS", flag, "--cacert", ca, "--resolve", &to, "-w", " %{http_version} %{http_code}", &url],
        );
        assert_eq!(told, format!("hello {version} 200"));
        assert_eq!(upstream.last().headers["x-forwarded-proto"], "https");
        assert_eq!(upstream.last().headers["x-forwarded-host"], format!("a.test:{port}"));
    }
    // A session from an earlier connection is resumed.
    let folder = gateway.folder().join("session");
    let session = folder.to_str().unwrap();
    let base = ["s_client", "-connect", &address, "-servername", "a.test", "-CAfile", ca, "-tls1_2"];
    printed("openssl", &[&base[..], &["-sess_out", session]].concat());
    let told = printed("openssl", &[&base[..], &["-sess_in", session]].concat());
    assert!(told.contains("Reused, TLSv1.2"), "{told}");
}

#[tokio::test]
async fn the_official_openai_client_speaks_to_it_over_tls() {
    let body = r#"{"id":"1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"hi"}}]}"#;
    let authority = Authority::default();
    let upstream = Upstream::fixed(200, body).await;
    let gateway = start(&authority, &upstream, "", "").await;
    authority.server(&["localhost"]).write(gateway.folder(), "b");
    gateway.reloads(0).await;
    let script = format!(
        "from openai import OpenAI\nr = OpenAI(base_url='https://localhost:{}/v1', api_key='k').chat.completions.create(model='m', messages=[{{'role':'user','content':'x'}}])\nprint(r.choices[0].message.content)",
        gateway.address.port()
    );
    let ca = gateway.folder().join("ca.pem");
    let out = tokio::task::spawn_blocking(move || {
        Command::new(python()).args(["-c", &script]).env("SSL_CERT_FILE", ca).output().unwrap()
    });
    let out = out.await.unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "hi", "{}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test]
async fn a_changed_certificate_is_shown_from_then_on_and_no_request_fails() {
    let (authority, upstream) = (Authority::default(), Upstream::fixed(200, "x").await);
    let gateway = start(&authority, &upstream, "", "").await;
    let client = Secure::new(gateway.address, &authority);
    let leaf = |stream: &tokio_rustls::client::TlsStream<_>| stream.get_ref().1.peer_certificates().unwrap()[0].clone();
    let mut held = client.open("a.test", &["http/1.1"]).await.unwrap();
    let before = leaf(&held);
    let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let load: Vec<_> = (0..4)
        .map(|n| {
            let (client, stop, asked) = (client.clone(), stop.clone(), asked.clone());
            tokio::spawn(async move {
                let mut http2 = client.http2("a.test").await;
                while !stop.load(Ordering::Relaxed) {
                    if n % 2 == 0 {
                        // A connection for each request.
                        assert_eq!(client.get("a.test", "a.test", "/").await.unwrap().status, 200);
                    } else {
                        // One connection for all.
                        let request = http::Request::get("https://a.test/").body(Default::default()).unwrap();
                        http2.ready().await.unwrap();
                        assert_eq!(http2.send_request(request).await.unwrap().status(), 200);
                    }
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    for edit in 0..4 {
        // Key and certificate are two files: the state between the two writes is no pair and is never served.
        authority.server(&["a.test"]).write(gateway.folder(), "a");
        assert_eq!(gateway.reloads(edit).await["event"], "config_reloaded");
    }
    assert_ne!(leaf(&client.open("a.test", &[]).await.unwrap()), before);
    stop.store(true, Ordering::Relaxed);
    for task in load {
        task.await.unwrap();
    }
    assert!(asked.load(Ordering::Relaxed) > 50);
    held.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    held.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "the connection of before goes on: {answer}");
}

#[tokio::test]
async fn a_pair_that_does_not_belong_together_is_kept_out_and_named() {
    let (authority, upstream) = (Authority::default(), Upstream::fixed(200, "x").await);
    let gateway = start(&authority, &upstream, "", "").await;
    std::fs::write(gateway.folder().join("b.key"), authority.server(&["*.b.test"]).key).unwrap();
    let told = gateway.reloads(0).await;
    assert_eq!(told["event"], "config_rejected");
    let reason = told["reason"].as_str().unwrap();
    assert!(reason.contains("b.key does not belong to the certificate in") && reason.contains("b.pem"), "{reason}");
    assert!(reason.contains("listeners[0].tls.certificates[1]"), "{reason}");
    let client = Secure::new(gateway.address, &authority);
    assert_eq!(client.get("x.b.test", "x.b.test", "/").await.unwrap().status, 200, "what ran goes on");
    std::fs::remove_file(gateway.folder().join("b.key")).unwrap();
    let out = Command::new(binary()).arg("check").arg(gateway.config()).output().unwrap();
    assert_eq!(out.status.code(), Some(2));
    let told = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
    assert!(told.contains("there is no file") && told.contains("b.key"), "{told}");
}

#[tokio::test]
async fn a_request_for_another_host_than_the_connection_was_opened_for_is_misdirected() {
    let (authority, upstream) = (Authority::default(), Upstream::fixed(200, "x").await);
    let gateway = start(&authority, &upstream, "", "").await;
    let client = Secure::new(gateway.address, &authority);
    for (name, host, status) in [
        ("a.test", "a.test", 200),
        ("a.test", "A.test:8443", 200),
        ("a.test", "also-a.test", 200),
        ("a.test", "x.b.test", 421),
        ("a.test", "internal", 421),
        ("x.b.test", "y.b.test", 200),
        ("x.b.test", "b.test", 421),
    ] {
        let answer = client.get(name, host, "/").await.unwrap();
        assert_eq!(answer.status, status, "{name} {host}");
    }
    for (host, status) in [("x.b.test", 421), ("a.test", 400)] {
        let answer = client.get("a.test", host, "https://x.b.test/").await.unwrap();
        assert_eq!(answer.status, status, "a target that says a host, and `Host: {host}`");
    }
    let mut http2 = client.http2("a.test").await;
    for (target, host, status) in [
        ("https://a.test/", None, 200),
        ("https://also-a.test/", None, 200),
        ("https://x.b.test/", None, 421),
        ("https://internal/", None, 421),
        ("/", Some("x.b.test"), 421),
        // Two that differ make the request malformed (RFC 9113, 8.3.1).
        ("https://x.b.test/", Some("a.test"), 400),
        ("https://a.test/", Some("x.b.test"), 400),
    ] {
        let mut request = http::Request::get(target);
        if let Some(host) = host {
            request = request.header("host", host);
        }
        let answer = http2.send_request(request.body(Default::default()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{target} {host:?}");
    }
}

#[tokio::test]
async fn only_versions_that_are_new_enough_and_known_clients_connect() {
    let (authority, upstream) = (Authority::default(), Upstream::fixed(200, "x").await);
    let clients = "], minVersion: \"1.3\", clientCertificates: {caFile: ca.pem}";
    let gateway = start(&authority, &upstream, clients.trim_start_matches(']'), "").await;
    let own = authority.client("billing", "spiffe://example/billing");
    let strange = Authority::default().client("billing", "spiffe://example/billing");
    let get = async |own, versions: &[&'static rustls::SupportedProtocolVersion]| {
        Secure::with(gateway.address, &authority, own, versions).get("a.test", "a.test", "/").await
    };
    assert_eq!(get(Some(&own), &[&version::TLS13]).await.unwrap().status, 200);
    assert!(get(Some(&own), &[&version::TLS12]).await.is_err(), "too old");
    assert!(get(None, &[&version::TLS13]).await.is_err(), "no certificate");
    assert!(get(Some(&strange), &[&version::TLS13]).await.is_err(), "signed by somebody else");
    // A client may learn of the refusal before it is counted.
    for (reason, count) in [("tls", 1.0), ("client_certificate", 2.0)] {
        let series = format!("spillway_connections_refused_total{{listener=\"tls\",reason=\"{reason}\"}}");
        gateway.metric_becomes(&series, count).await;
    }
    let told = eventually("both certificates are told", || async {
        let told = gateway.events("audit");
        (told.len() == 2).then_some(told)
    })
    .await;
    for line in told {
        assert_eq!(
            (&line["action"], &line["reason"]),
            (&"authentication_refused".into(), &"client_certificate".into())
        );
        assert_eq!((&line["listener"], &line["client"]), (&"tls".into(), &"127.0.0.1".into()));
    }
    let yaml = yaml(&upstream, ", clientCertificates: {caFile: ca.pem, mode: optional}", "");
    std::fs::write(gateway.config(), whole(&yaml)).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!(get(None, &[&version::TLS12]).await.unwrap().status, 200);
    assert!(get(Some(&strange), &[&version::TLS13]).await.is_err(), "one that is shown must be sound");
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_handshake_is_cut_off() {
    let (authority, upstream) = (Authority::default(), Upstream::fixed(200, "x").await);
    let gateway = start(&authority, &upstream, "", ", limits: {handshakeTimeout: 300ms}").await;
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n"] {
        let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(begun).await.unwrap();
        let mut rest = Vec::new();
        // Closed or reset: the connection ends either way.
        let _ = tokio::time::timeout(spillway_tests::PATIENCE, stream.read_to_end(&mut rest)).await.expect("an end");
    }
    let timeouts = gateway.metric("spillway_connections_refused_total{listener=\"tls\",reason=\"timeout\"}").await;
    assert_eq!(timeouts, 2.0);
    gateway.metric_becomes("spillway_connections{listener=\"tls\"}", 0.0).await;
}

#[tokio::test]
async fn a_certificate_says_who_calls_and_a_key_beside_it_goes_before() {
    let (authority, upstream) = (Authority::default(), Upstream::fixed(200, "x").await);
    let folder = tempfile::tempdir().unwrap();
    authority.server(&["a.test"]).write(folder.path(), "a");
    authority.server(&["*.b.test"]).write(folder.path(), "b");
    authority.write(folder.path());
    // SHA-256 of the key `test`.
    let yaml = yaml(&upstream, ", clientCertificates: {caFile: ca.pem, mode: optional}", "")
        + "authentication: {mtls: {identity: san-uri}, identityHeaders: {consumer: x-caller}}
consumers:
  - {name: billing, mtls: {identities: [\"spiffe://example/billing\"]}}
  - {name: other, keys: [{sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}]}
";
    let gateway = Gateway::start_in(folder, &yaml).await;
    let billing = authority.client("x", "spiffe://example/billing");
    let unknown = authority.client("billing", "spiffe://example/unknown");
    for (own, key, status, consumer) in [
        (Some(&billing), None, 200, "billing"),
        (Some(&billing), Some("test"), 200, "other"),
        (Some(&billing), Some("wrong"), 401, ""),
        (Some(&unknown), None, 401, ""),
        (Some(&unknown), Some("test"), 200, "other"),
        (None, None, 401, ""),
    ] {
        let before = upstream.count();
        let mut http2 = Secure::with(gateway.address, &authority, own, rustls::ALL_VERSIONS).http2("a.test").await;
        let mut request = http::Request::get("https://a.test/").header("x-caller", "forged");
        if let Some(key) = key {
            request = request.header("x-api-key", key);
        }
        let answer = http2.send_request(request.body(Default::default()).unwrap()).await.unwrap();
        assert_eq!(answer.status(), status, "{key:?} {consumer}");
        if status == 200 {
            assert_eq!(upstream.last().headers["x-caller"], consumer);
        } else {
            assert_eq!(upstream.count(), before);
        }
    }
}

#[tokio::test]
async fn a_client_certificate_that_ends_ends_its_connections_and_is_not_resumed() {
    let (authority, upstream) = (Authority::default(), Upstream::fixed(200, "x").await);
    let folder = tempfile::tempdir().unwrap();
    authority.server(&["a.test"]).write(folder.path(), "a");
    authority.server(&["*.b.test"]).write(folder.path(), "b");
    authority.write(folder.path());
    let yaml = yaml(&upstream, ", clientCertificates: {caFile: ca.pem}", "")
        + "authentication: {mtls: {identity: san-uri}}
consumers: [{name: billing, mtls: {identities: [\"spiffe://example/billing\"]}}]
";
    let gateway = Gateway::start_in(folder, &yaml).await;
    let own = authority.client_for("spiffe://example/billing", Duration::from_secs(6));
    let client = Secure::with(gateway.address, &authority, Some(&own), &[&version::TLS13]);
    let get = || http::Request::get("https://a.test/").body(Default::default()).unwrap();
    let mut http2 = client.http2("a.test").await;
    assert_eq!(http2.send_request(get()).await.unwrap().status(), 200);
    assert_eq!(client.get("a.test", "a.test", "/").await.unwrap().status, 200);
    let mut idle = client.open("a.test", &["http/1.1"]).await.unwrap();
    let request = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n";
    idle.write_all(request).await.unwrap();
    let mut begin = [0; 12];
    idle.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    // A connection that idles is closed with the certificate; of HTTP/2 it takes no further stream.
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(spillway_tests::PATIENCE, idle.read_to_end(&mut rest)).await.expect("an end");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(http2.ready().await.is_err(), "it was told to go away");
    let served = upstream.count();
    // A session of before is resumed without another look at the certificate: its requests are refused.
    let refused = client.get("a.test", "a.test", "/").await.unwrap();
    assert_eq!(refused.status, 401);
    assert_eq!(refused.json()["code"], "certificate_expired");
    assert_eq!(refused.header("connection"), "close");
    let mut http2 = client.http2("a.test").await;
    assert_eq!(http2.send_request(get()).await.unwrap().status(), 401);
    let goes_away = async {
        while http2.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await
        }
    };
    tokio::time::timeout(spillway_tests::PATIENCE, goes_away).await.expect("it is told to go away");
    assert_eq!(upstream.count(), served);
}
