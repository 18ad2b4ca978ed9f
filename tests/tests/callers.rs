//! Authentication of callers, and their limits.

use std::process::Command;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spillway_tests::{Authority, Gateway, Issuer, IssuerKey, Upstream, binary, eventually, reply};

/// Creates a key with `spillway key new`; returns the key and its digest.
fn key() -> (String, String) {
    let out = Command::new(binary()).args(["key", "new"]).output().unwrap();
    let text = String::from_utf8(out.stdout).unwrap();
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    (field("key:"), field("sha256:"))
}

#[tokio::test]
async fn a_caller_is_known_by_its_key_before_a_byte_of_its_body_is_read() {
    let upstream = Upstream::digest().await;
    let ((key, digest), (second, second_digest)) = (key(), key());
    let yaml = format!(
        "consumers:
  - {{name: acme, keys: [{{sha256: \"{digest}\"}}, {{sha256: \"{second_digest}\"}}]}}
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: closed, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}
  - {{name: optional, matches: [{{path: {{prefix: /optional}}}}], authentication: optional, backendRefs: [{{name: x}}]}}
  - {{name: open, matches: [{{path: {{prefix: /open}}}}], authentication: none, backendRefs: [{{name: x}}]}}
",
        upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for key in [&key, &second] {
        for (name, value) in
            [("authorization", format!("Bearer {key}")), ("x-api-key", key.clone()), ("api-key", key.clone())]
        {
            let answer = client.chat("m", &[(name, &value)]).await;
            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
            let seen = upstream.last();
            assert!(!seen.headers.contains_key(name), "the header that identified the caller ends here");
        }
    }
    let bad = format!("Bearer {key}x");
    for headers in
        [vec![], vec![("authorization", bad.as_str())], vec![("authorization", "Basic abc")], vec![("x-api-key", "")]]
    {
        let answer = client.chat("m", &headers).await;
        assert_eq!(answer.status, 401);
        assert_eq!(answer.json()["error"]["type"], "authentication_error");
        assert!(answer.header("www-authenticate").starts_with("Bearer"));
        assert!(!answer.text().contains(&key));
    }
    assert_eq!(client.post("/optional", &[], "{}").await.status, 200);
    assert_eq!(client.post("/optional", &[("x-api-key", "wrong")], "{}").await.status, 401);
    assert_eq!(client.post("/open", &[("x-api-key", "theirs")], "{}").await.status, 200);
    assert!(!upstream.last().headers.contains_key("x-api-key"), "credentials end here, looked at or not");
    gateway.metric_becomes("spillway_authentication_failures_total", 5.0).await;

    // The body never arrives: an unknown caller is refused all the same.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0u8; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 401");
}

#[tokio::test]
async fn limits_hold_by_consumer_and_address_and_say_when_to_come_back() {
    let upstream = Upstream::fixed(200, "{}").await;
    let ((a, a_digest), (b, b_digest)) = (key(), key());
    let yaml = format!(
        "consumers:
  - {{name: a, keys: [{{sha256: \"{a_digest}\"}}]}}
  - {{name: b, keys: [{{sha256: \"{b_digest}\"}}]}}
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - name: limited
    filters:
      - rateLimit: {{by: clientAddress, requests: 8/h}}
      - rateLimit: {{by: consumer, requests: 60/h, burst: 3}}
    backendRefs: [{{name: x}}]
",
        upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for left in ["2", "1", "0"] {
        let answer = client.chat("m", &[("x-api-key", &a)]).await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("x-ratelimit-remaining-requests"), left);
        assert_eq!(answer.header("x-ratelimit-limit-requests"), "3");
    }
    for _ in 0..3 {
        let refused = client.chat("m", &[("x-api-key", &a)]).await;
        assert_eq!(refused.status, 429);
        assert_eq!(refused.json()["error"]["code"], "rate_limit_exceeded");
        let wait: u64 = refused.header("retry-after").parse().unwrap();
        let millis: u64 = refused.header("retry-after-ms").parse().unwrap();
        assert!(wait <= 60 && wait == millis.div_ceil(1000), "{wait} s, {millis} ms");
        assert!(refused.header("x-ratelimit-reset-requests").ends_with('s'));
    }
    // Three counted against the address's eight, the refused ones did not: three of b, then two more are left.
    for _ in 0..3 {
        assert_eq!(client.chat("m", &[("x-api-key", &b)]).await.status, 200);
    }
    assert_eq!(client.chat("m", &[("x-api-key", &b)]).await.status, 429, "b's own burst");
    assert_eq!(client.chat("m", &[]).await.status, 401, "this one takes from the address");
    assert_eq!(client.chat("m", &[]).await.status, 401, "and this the last");
    assert_eq!(client.chat("m", &[]).await.status, 429, "the address is judged before the key");
    assert_eq!(upstream.count(), 6);
}

#[tokio::test]
async fn an_issuer_changes_its_keys_under_load_and_goes_away_and_no_request_is_refused() {
    let (upstream, issuer) = (Upstream::fixed(200, "{}").await, Issuer::start().await);
    let (old, new) = (IssuerKey::new("old"), IssuerKey::new("new"));
    issuer.shows(&[&old]);
    let yaml = format!(
        "authentication:
  identityHeaders: {{consumer: x-caller, tenant: x-tenant}}
  jwt: [{{issuer: \"{}\", audiences: [spillway], claims: {{consumer: sub, tenant: org.id}}}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: x}}]}}]
",
        issuer.url(),
        upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    let token = |key: &IssuerKey, n: usize| {
        let claims = serde_json::json!({
            "iss": issuer.url(), "aud": "spillway", "sub": format!("user-{n}"), "org": {"id": "north"}, "exp": ends,
        });
        format!("Bearer {}", key.token(&claims))
    };
    let stop = Arc::new(AtomicBool::new(false));
    let load = |tokens: Vec<String>| {
        let (client, stop) = (gateway.client(), stop.clone());
        tokio::spawn(async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = client.chat("m", &[("authorization", &tokens[count % tokens.len()])]).await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                count += 1;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            count
        })
    };
    let mut running: Vec<_> = (0..2).map(|n| load((0..8).map(|m| token(&old, n * 8 + m)).collect())).collect();
    eventually("requests pass", || async { (upstream.count() > 20).then_some(()) }).await;
    assert_eq!(upstream.last().headers["x-tenant"], "north");
    assert!(upstream.last().headers["x-caller"].to_str().unwrap().starts_with("user-"));

    // A new key of the issuer is fetched when the first token names it, and keys are fetched at most once in ten
    // seconds.
    tokio::time::sleep(Duration::from_millis(10_500)).await;
    issuer.shows(&[&old, &new]);
    let asked = issuer.asked();
    running.extend((0..2).map(|n| load((0..8).map(|m| token(&new, 100 + n * 8 + m)).collect())));
    eventually("its keys are fetched", || async { (issuer.asked() > asked).then_some(()) }).await;
    issuer.goes_away();
    let before = upstream.count();
    eventually("requests pass without it", || async { (upstream.count() > before + 200).then_some(()) }).await;
    assert_eq!(issuer.asked(), asked + 1, "all that wait for a key wait for one fetch");
    stop.store(true, Ordering::Relaxed);
    for worker in running {
        assert!(worker.await.unwrap() > 0);
    }
    let stranger = token(&IssuerKey::new("new"), 0);
    assert_eq!(gateway.client().chat("m", &[("authorization", &stranger)]).await.status, 401);
}

#[tokio::test]
async fn an_issuer_with_a_private_authority_is_believed_by_that_alone() {
    let (authority, stranger) = (Authority::default(), Authority::default());
    let (upstream, issuer) = (Upstream::fixed(200, "{}").await, Issuer::start_secure(&authority).await);
    let key = IssuerKey::new("k");
    issuer.shows(&[&key]);
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:0\"}}]
authentication: {{jwt: [{{issuer: \"{}\", audiences: [spillway], caFile: ca.pem, claims: {{consumer: sub}}}}]}}
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: x}}]}}]
",
        issuer.url(),
        upstream.url()
    );
    let ends = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() + 600;
    let claims = serde_json::json!({"iss": issuer.url(), "aud": "spillway", "sub": "mia", "exp": ends});
    let bearer = format!("Bearer {}", key.token(&claims));
    for (believed, status) in [(&authority, 200), (&stranger, 401)] {
        let folder = tempfile::tempdir().unwrap();
        believed.write(folder.path());
        let gateway = Gateway::start_in(folder, &yaml).await;
        assert_eq!(gateway.client().chat("m", &[("authorization", &bearer)]).await.status, status);
        if status == 401 {
            // Repairing the file is enough: another authority means another key source.
            authority.write(gateway.folder());
            assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
            assert_eq!(gateway.client().chat("m", &[("authorization", &bearer)]).await.status, 200);
        }
    }
}

#[tokio::test]
async fn a_server_that_judges_may_send_callers_to_a_page_where_they_log_in() {
    let upstream = Upstream::fixed(200, "{}").await;
    let authorizer = Upstream::start(|seen| async move {
        let headers = [
            ("location", "https://login.example/?next=%2F"),
            ("set-cookie", "state=1; HttpOnly"),
            ("x-internal", "secret"),
            ("content-type", "text/html"),
        ];
        Some(match seen.headers.get("cookie").map(|cookie| cookie.to_str().unwrap()) {
            Some("session=good") => reply(200, &[], ""),
            Some(_) => reply(403, &headers[3..], "<p>no</p>"),
            None => reply(302, &headers, "<p>this way</p>"),
        })
    })
    .await;
    let yaml = format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - name: page
    filters: [{{externalAuthorization: {{url: \"{}\", timeout: 5s, forwardHeaders: [cookie], copyToAnswer: [location, set-cookie]}}}}]
    backendRefs: [{{name: x}}]
",
        upstream.url(),
        authorizer.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let sent = client.get("/").await;
    assert_eq!((sent.status.as_u16(), sent.text().as_str()), (302, "<p>this way</p>"));
    assert_eq!(sent.header("location"), "https://login.example/?next=%2F");
    assert_eq!(sent.header("set-cookie"), "state=1; HttpOnly");
    assert_eq!(sent.header("content-type"), "text/html");
    assert!(!sent.headers.contains_key("x-internal"), "what is not named stays here");
    let refused = client.post("/", &[("cookie", "session=bad")], "x").await;
    assert_eq!((refused.status.as_u16(), refused.text().as_str()), (403, "<p>no</p>"));
    assert_eq!(client.post("/", &[("cookie", "session=good")], "x").await.status, 200);
    assert_eq!(upstream.count(), 1);
    gateway
        .metric_becomes("spillway_filter_refusals_total{http_route=\"page\",filter=\"externalAuthorization\"}", 2.0)
        .await;
}

#[tokio::test]
async fn no_byte_of_a_body_is_read_for_a_caller_or_an_operation_that_no_route_takes() {
    let upstream = Upstream::digest().await;
    let ((a, a_digest), (b, b_digest)) = (key(), key());
    let yaml = format!(
        "consumers:
  - {{name: a, keys: [{{sha256: \"{a_digest}\"}}], models: [m, n]}}
  - {{name: b, keys: [{{sha256: \"{b_digest}\"}}]}}
backends:
  - {{name: claude, protocol: anthropic, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: gpt, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: ollama, protocol: ollama, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: app, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: one, hostnames: [one.test], backendRefs: [{{name: claude}}]}}
  - {{name: whole, hostnames: [whole.test], backendRefs: [{{name: ollama}}]}}
  - {{name: m, hostnames: [closed.test], matches: [{{path: {{prefix: /}}, model: m}}], access: {{consumers: [a]}}, backendRefs: [{{name: gpt}}]}}
  - {{name: n, hostnames: [closed.test], matches: [{{path: {{prefix: /}}, model: n}}], access: {{consumers: [a]}}, backendRefs: [{{name: gpt}}]}}
  - {{name: m2, hostnames: [apis.test], matches: [{{path: {{prefix: /}}, model: m}}], protocols: [anthropic], backendRefs: [{{name: gpt}}]}}
  - {{name: n2, hostnames: [apis.test], matches: [{{path: {{prefix: /}}, model: n}}], protocols: [anthropic], backendRefs: [{{name: gpt}}]}}
  - {{name: m3, hostnames: [far.test], matches: [{{path: {{prefix: /}}, model: m}}], backendRefs: [{{name: claude}}]}}
  - {{name: n3, hostnames: [far.test], matches: [{{path: {{prefix: /}}, model: n}}], backendRefs: [{{name: claude}}]}}
  - {{name: m4, hostnames: [mixed.test], matches: [{{path: {{prefix: /}}, model: m}}], protocols: [openai], authentication: none, backendRefs: [{{name: ollama}}]}}
  - {{name: rest, hostnames: [mixed.test], access: {{consumers: [b]}}, backendRefs: [{{name: app}}]}}
",
        url = upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for (host, path, key, expected) in [
        // What is allowed is asked for.
        ("one.test", "/v1/chat/completions", &a, "100"),
        ("closed.test", "/v1/chat/completions", &a, "100"),
        ("apis.test", "/v1/messages", &a, "100"),
        ("far.test", "/v1/chat/completions", &a, "100"),
        ("whole.test", "/api/delete", &b, "100"),
        ("mixed.test", "/api/chat", &b, "100"),
        // An operation that the server does not have, on a route by its path and by its model.
        ("one.test", "/v1/embeddings", &a, "404"),
        ("far.test", "/v1/embeddings", &a, "404"),
        // A caller that none of the routes is open to.
        ("closed.test", "/v1/chat/completions", &b, "404"),
        // An API that none of the routes takes, also on a path that is an application's on some of them.
        ("apis.test", "/v1/chat/completions", &a, "404"),
        ("apis.test", "/api/chat", &a, "404"),
        // A server as a whole, which is not for a caller of some models.
        ("whole.test", "/api/delete", &a, "404"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(gateway.address).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nx-api-key: {key}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\nExpect: 100-continue\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0u8; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), format!("HTTP/1.1 {expected}"), "{host} {path}");
    }
    assert_eq!(upstream.count(), 0);
}
