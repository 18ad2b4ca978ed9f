//! Keys of consumers that are made, rotated, ended and revoked while the gateway runs: through the admin API and the command line,
//! kept over a restart, shared by two gateways through a Redis server, limited each by itself, and never shown again.

use std::process::{Command, Stdio};

use bytes::Bytes;
use serde_json::{Value, json};
use spillway_tests::{
    Client, Gateway, Planted, RawSocket, Redis, SocketServer, Upstream, binary, eventually, opening, python, reply,
    streamed,
};

const CHANGE: (&str, &str) = ("x-spillway-admin", "1");

/// A gateway for the consumers `acme` and `other`, whose keys are made at run time.
fn yaml(upstream: &str, settings: &str, further: &str) -> String {
    format!(
        "authentication: {{keysByApi: {{{settings}}}}}
consumers: [{{name: acme, tenant: t}}, {{name: other}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{upstream}\"}}]}}]
routes: [{{name: r, backendRefs: [{{name: x}}]}}]
{further}"
    )
}

async fn admin(gateway: &Gateway, method: &str, path: &str, body: Value) -> (u16, Value) {
    let client = Client::new(gateway.admin);
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let answer = client.send(client.request(method, path, &[CHANGE], body)).await;
    let shown = serde_json::from_str(&answer.text()).unwrap_or_else(|e| panic!("{e}: {}", answer.text()));
    (answer.status.as_u16(), shown)
}

/// Makes a key; returns its id and the key.
async fn made(gateway: &Gateway, order: Value) -> (String, String) {
    let (status, made) = admin(gateway, "POST", "/api/keys", order).await;
    assert_eq!(status, 201, "{made}");
    (made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned())
}

async fn asked(gateway: &Gateway, key: &str) -> u16 {
    gateway.client().chat("m", &[("authorization", &format!("Bearer {key}"))]).await.status.as_u16()
}

async fn shown(gateway: &Gateway, id: &str) -> Value {
    admin(gateway, "GET", &format!("/api/keys/{id}"), Value::Null).await.1
}

/// Runs `spillway keys`; returns its exit code, what it printed, and what it told beside that.
async fn keys(gateway: &Gateway, arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(binary());
    command.arg("keys").args(arguments).env("SPILLWAY_ADMIN", format!("http://{}", gateway.admin));
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

#[tokio::test]
async fn a_key_is_made_rotated_ended_and_revoked_and_outlives_a_crash() {
    let upstream = Upstream::digest().await;
    let yaml = yaml(&upstream.url(), "", "");
    let gateway = Gateway::start(&yaml).await;
    let (id, key) = made(&gateway, json!({"consumer": "acme", "expires": "2199-01-01T00:00:00Z"})).await;
    assert!(key.starts_with("sk-spillway-"));
    assert_eq!(shown(&gateway, &id).await.get("lastUsed"), None);
    assert_eq!(asked(&gateway, &key).await, 200, "it is accepted at once");
    assert!(!upstream.last().headers.contains_key("authorization"), "it ends here");
    assert_eq!(asked(&gateway, &format!("{key}x")).await, 401);
    let about = shown(&gateway, &id).await;
    assert_eq!((&about["consumer"], &about["state"]), (&json!("acme"), &json!("active")), "{about}");
    assert_eq!(about["expires"], "2199-01-01T00:00:00.000Z");
    let used = about["lastUsed"].as_str().unwrap().to_owned();
    assert!(used.as_str() >= about["createdAt"].as_str().unwrap(), "{about}");

    let gateway = gateway.crash_and_restart(&yaml).await;
    assert_eq!(asked(&gateway, &key).await, 200);
    assert_eq!(gateway.metric("spillway_api_keys").await, 1.0);

    // Both secrets are accepted for the time of grace; without one, the old one is refused at once.
    let rotate = format!("/api/keys/{id}/rotate");
    let (status, rotated) = admin(&gateway, "POST", &rotate, json!({"grace": "1h"})).await;
    let second = rotated["key"].as_str().unwrap().to_owned();
    assert_eq!((status, rotated["id"].as_str()), (200, Some(id.as_str())), "{rotated}");
    assert_eq!((asked(&gateway, &key).await, asked(&gateway, &second).await), (200, 200));
    let about = shown(&gateway, &id).await;
    assert!(about["previousUntil"].is_string());
    assert!(about["lastUsed"].is_string(), "either secret is the key's use, before and after a change: {about}");
    let (_, rotated) = admin(&gateway, "POST", &rotate, Value::Null).await;
    let third = rotated["key"].as_str().unwrap().to_owned();
    let statuses = (asked(&gateway, &key).await, asked(&gateway, &second).await, asked(&gateway, &third).await);
    assert_eq!(statuses, (401, 401, 200));

    let (status, ended) = admin(&gateway, "POST", &format!("/api/keys/{id}/expire"), Value::Null).await;
    assert_eq!((status, &ended["state"]), (200, &json!("expired")), "{ended}");
    assert_eq!(asked(&gateway, &third).await, 401);
    let (status, refused) = admin(&gateway, "POST", &rotate, Value::Null).await;
    assert_eq!(status, 409, "{refused}");
    let (status, _) = admin(&gateway, "DELETE", &format!("/api/keys/{id}"), Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(shown(&gateway, &id).await["status"], 404);
    assert_eq!(gateway.metric("spillway_api_keys").await, 0.0);
    let gateway = gateway.crash_and_restart(&yaml).await;
    assert_eq!(asked(&gateway, &third).await, 401);
}

#[tokio::test]
async fn the_command_line_makes_lists_rotates_ends_and_revokes() {
    let upstream = Upstream::digest().await;
    let gateway = Gateway::start(&yaml(&upstream.url(), "", "")).await;
    let (code, printed, told) = keys(&gateway, &["create", "acme", "--requests", "1/h", "--concurrency", "3"]).await;
    assert_eq!(code, 0, "{printed}{told}");
    let (about, key) = printed.split_once("\nkey: ").unwrap();
    let (id, key) = (about.split_whitespace().next().unwrap(), key.trim());
    assert!(about.contains("active  acme") && about.contains("requests 1/h, concurrency 3"), "{about}");
    assert_eq!((asked(&gateway, key).await, asked(&gateway, key).await), (200, 429));
    let (_, listed, _) = keys(&gateway, &["list"]).await;
    assert!(listed.contains(id) && !listed.contains(key), "{listed}");
    let (code, printed, _) = keys(&gateway, &["rotate", id, "--json"]).await;
    let rotated: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!((code, asked(&gateway, key).await), (0, 401));
    assert_eq!(asked(&gateway, rotated["key"].as_str().unwrap()).await, 429, "the level is that of the key");
    let (code, printed, _) = keys(&gateway, &["expire", id, "--at", "2199-01-01T00:00:00Z"]).await;
    assert!(code == 0 && printed.contains("ends 2199-01-01T00:00:00.000Z"), "{printed}");
    let (code, printed, _) = keys(&gateway, &["revoke", id]).await;
    assert_eq!((code, printed.as_str()), (0, format!("{id}: revoked\n").as_str()));
    // Wrong usage has a code of its own, and names the remedy.
    for (arguments, expected) in [
        (vec!["create", "nobody"], "no such consumer"),
        (vec!["revoke", id], "no key with this id"),
        (vec!["revoke", key], "expected its id"),
    ] {
        let (code, _, told) = keys(&gateway, &arguments).await;
        assert!(code == 2 && told.contains(expected) && !told.contains(key), "{arguments:?}: {code} {told}");
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_name() {
    let upstream = Upstream::digest().await;
    let gateway = Gateway::start(&yaml(&upstream.url(), "maxKeys: 3", "")).await;
    for (order, expected) in [
        (Value::Null, "the body is empty"),
        (json!({"consumer": "nobody"}), "no such consumer"),
        (json!({"consumer": "acme\n\"}, \u{1b}[31m"}), "no such consumer"),
        (json!({"consumer": "ac\0me"}), "no such consumer"),
        (json!({"consumer": {"name": "acme"}}), "not as expected"),
        (json!({"consumer": "acme", "admin": true}), "unknown field"),
        (json!({"consumer": "acme", "expires": "tomorrow"}), "RFC 3339"),
        (json!({"consumer": "acme", "expires": "2020-01-01T00:00:00Z"}), "is over"),
        (json!({"consumer": "acme", "limits": {"burst": 3}}), "limits.burst: no effect without `requests`"),
        (json!({"consumer": "acme", "limits": {"requests": "many"}}), "not as expected"),
        (
            json!({"consumer": "acme", "limits": {"budget": {"per": "day"}}}),
            "limits.budget: this budget limits nothing",
        ),
        (json!({"consumer": "acme", "limits": {"onExceeded": "spill"}}), "no route of this file spills"),
        (json!({"consumer": "acme", "x": "a".repeat(5000)}), "longer than 4096 bytes"),
    ] {
        let (status, refused) = admin(&gateway, "POST", "/api/keys", order.clone()).await;
        assert!(matches!(status, 400 | 413), "{order}: {status} {refused}");
        assert!(refused["detail"].as_str().unwrap().contains(expected), "{order}: {refused}");
    }
    // A web page can send neither the header nor the method.
    let client = Client::new(gateway.admin);
    for (method, path) in [("POST", "/api/keys"), ("DELETE", "/api/keys/key-1"), ("POST", "/api/keys/key-1/rotate")] {
        let answer = client.send(client.request(method, path, &[], r#"{"consumer": "acme"}"#)).await;
        assert_eq!(answer.status, 403, "{method} {path}");
    }
    for path in ["/api/keys/key-1/rotate", "/api/keys/key-1/expire", "/api/keys/..%2f..%2fx/rotate"] {
        assert_eq!(admin(&gateway, "POST", path, Value::Null).await.0, 404, "{path}");
    }
    let (status, refused) = admin(&gateway, "POST", "/api/keys/key-1/rotate", json!({"grace": "721h"})).await;
    assert!(status == 400 && refused["detail"].as_str().unwrap().contains("30 days"), "{refused}");

    // However many come at once, no more are made than may exist; revoking one makes room.
    let all =
        futures::future::join_all((0..12).map(|_| admin(&gateway, "POST", "/api/keys", json!({"consumer": "acme"}))));
    let all = all.await;
    let (good, bad): (Vec<_>, Vec<_>) = all.iter().partition(|(status, _)| *status == 201);
    assert_eq!(good.len(), 3);
    for (status, refused) in bad {
        assert!(*status == 409 && refused["detail"].as_str().unwrap().contains("maxKeys"), "{refused}");
    }
    let id = |made: &Value| made["id"].as_str().unwrap().to_owned();
    let revoked = format!("/api/keys/{}", id(&good[0].1));
    let both = futures::future::join(
        admin(&gateway, "DELETE", &revoked, Value::Null),
        admin(&gateway, "DELETE", &revoked, Value::Null),
    );
    let (one, other) = both.await;
    assert_eq!([one.0.min(other.0), one.0.max(other.0)], [200, 404], "one of two revokes it");
    made(&gateway, json!({"consumer": "other"})).await;
    let (status, _) = admin(&gateway, "POST", "/api/keys", json!({"consumer": "acme"})).await;
    assert_eq!(status, 409);
    assert_eq!(
        (gateway.metric("spillway_api_keys").await, gateway.metric("spillway_api_keys_limit").await),
        (3.0, 3.0)
    );
    // Another key of the same length is nobody's.
    let guess = format!("sk-spillway-{}", "A".repeat(43));
    assert_eq!(asked(&gateway, &guess).await, 401);
}

#[tokio::test]
async fn a_key_follows_its_consumer_through_edits() {
    let upstream = Upstream::digest().await;
    let first = yaml(&upstream.url(), "", "");
    let gateway = Gateway::start(&first).await;
    let (id, key) = made(&gateway, json!({"consumer": "acme"})).await;
    let (_, other) = made(&gateway, json!({"consumer": "other"})).await;
    let edit = async |yaml: &str, accepted: &str| {
        let before = gateway.edits();
        std::fs::write(
            gateway.config(),
            format!("admin: {{address: \"127.0.0.1:0\"}}\nlisteners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}"),
        )
        .unwrap();
        assert_eq!(gateway.reloads(before).await["event"], accepted);
    };
    edit(&first.replace("{name: acme, tenant: t}, ", ""), "config_reloaded").await;
    assert_eq!((asked(&gateway, &key).await, asked(&gateway, &other).await), (401, 200));
    assert_eq!(shown(&gateway, &id).await["state"], "inactive");
    // What the consumer may do is what the file says now.
    edit(&first.replace("{name: acme, tenant: t}", "{name: acme, models: [n]}"), "config_reloaded").await;
    assert_eq!(asked(&gateway, &key).await, 404, "it may not use the model");
    // Without the settings no such key is accepted, and none is made; with them again they are.
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let of_the_file = first.replace("{name: other}", &format!("{{name: other, keys: [{{sha256: \"{digest}\"}}]}}"));
    edit(&of_the_file.replace("authentication: {keysByApi: {}}\n", ""), "config_reloaded").await;
    assert_eq!(asked(&gateway, &key).await, 401);
    let (status, refused) = admin(&gateway, "POST", "/api/keys", json!({"consumer": "acme"})).await;
    assert!(status == 409 && refused["detail"].as_str().unwrap().contains("keysByApi"), "{refused}");
    edit(&first, "config_reloaded").await;
    assert_eq!(asked(&gateway, &key).await, 200);
    edit(&format!("{first}state: {{store: elsewhere.db}}\n"), "config_rejected").await;
    assert_eq!(asked(&gateway, &key).await, 200);
}

/// Sends a request over a connection that stays open; returns the head of its answer.
async fn over(connection: &mut RawSocket, key: &str) -> String {
    connection.send(format!("GET /v1/x HTTP/1.1\r\nHost: a.test\r\nX-Api-Key: {key}\r\n\r\n").as_bytes()).await;
    connection.head().await
}

#[tokio::test]
async fn what_a_key_began_goes_on_and_what_comes_after_its_end_does_not() {
    let (parts, stream) = tokio::sync::mpsc::channel(4);
    let stream = std::sync::Mutex::new(Some(stream));
    let upstream = Upstream::start(move |seen| {
        let stream = if seen.method == "POST" { stream.lock().unwrap().take() } else { None };
        let answer = stream
            .map_or_else(|| reply(204, &[], ""), |stream| streamed(&[("content-type", "text/event-stream")], stream));
        async move { Some(answer) }
    })
    .await;
    let sockets = SocketServer::start().await;
    let yaml = format!(
        "authentication: {{keysByApi: {{}}}}
consumers: [{{name: acme}}]
backends:
  - {{name: x, endpoints: [{{url: \"{}\"}}]}}
  - {{name: s, endpoints: [{{url: \"{}\"}}]}}
routes:
  - {{name: s, matches: [{{path: {{prefix: /socket}}}}], backendRefs: [{{name: s}}]}}
  - {{name: r, backendRefs: [{{name: x}}]}}
",
        upstream.url(),
        sockets.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let (id, key) = made(&gateway, json!({"consumer": "acme"})).await;
    let (kept, kept_key) = made(&gateway, json!({"consumer": "acme"})).await;
    let mut connection = RawSocket::send_to(gateway.address, b"").await;
    assert!(over(&mut connection, &key).await.starts_with("HTTP/1.1 204 "));
    let client = gateway.client();
    let request = client.request("POST", "/v1/x", &[("x-api-key", &key)], "{}");
    let streaming = tokio::spawn(async move { client.send(request).await });
    eventually("the stream begins", || async { (upstream.count() > 1).then_some(()) }).await;
    let open = async |key: &str| {
        let request = opening("/socket", &format!("x-api-key: {key}\r\n"));
        let mut client = RawSocket::send_to(gateway.address, request.as_bytes()).await;
        let far = sockets.open().await;
        assert!(client.head().await.starts_with("HTTP/1.1 101 "));
        (client, far)
    };
    let ((mut ended, mut ended_far), (mut other, mut other_far)) = (open(&key).await, open(&kept_key).await);
    assert_eq!(admin(&gateway, "DELETE", &format!("/api/keys/{id}"), Value::Null).await.0, 200);
    // The next request of a kept connection is refused, a socket ends, and an answer that has begun is sent to its end.
    assert!(over(&mut connection, &key).await.starts_with("HTTP/1.1 401 "));
    assert_eq!((ended.frame().await.unwrap().code(), ended_far.frame().await.unwrap().code()), (1008, 1008));
    for part in ["data: one\n\n", "data: two\n\n"] {
        parts.send(Ok(Bytes::from(part))).await.unwrap();
    }
    drop(parts);
    let answer = streaming.await.unwrap();
    assert!(!answer.cut && answer.text() == "data: one\n\ndata: two\n\n", "{}", answer.text());
    other.send_frame(1, b"on").await;
    assert_eq!(other_far.frame().await.unwrap().payload, b"on");
    // One that expires ends its sockets as well.
    assert_eq!(admin(&gateway, "POST", &format!("/api/keys/{kept}/expire"), Value::Null).await.0, 200);
    assert_eq!((other.frame().await.unwrap().code(), other_far.frame().await.unwrap().code()), (1008, 1008));
}

#[tokio::test]
async fn a_store_that_cannot_be_written_changes_nothing_and_says_so() {
    let upstream = Upstream::digest().await;
    let gateway = Gateway::start(&yaml(&upstream.url(), "", "")).await;
    let (id, key) = made(&gateway, json!({"consumer": "acme"})).await;
    // Another program holds the file.
    let file = gateway.folder().join("state/spillway.db");
    let hold = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); c.execute('BEGIN IMMEDIATE'); \
                print('held', flush=True); sys.stdin.read()";
    let mut holder = Command::new(python())
        .args(["-c", hold])
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line).unwrap();
    assert_eq!(line, "held\n");
    for (method, path, body) in [
        ("POST", "/api/keys".to_owned(), json!({"consumer": "acme"})),
        ("POST", format!("/api/keys/{id}/rotate"), Value::Null),
        ("DELETE", format!("/api/keys/{id}"), Value::Null),
    ] {
        let (status, refused) = admin(&gateway, method, &path, body).await;
        let detail = refused["detail"].as_str().unwrap();
        assert!(status == 503 && detail.contains("state.store") && detail.contains("locked"), "{refused}");
    }
    assert_eq!(asked(&gateway, &key).await, 200, "nothing has changed");
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert_eq!(admin(&gateway, "DELETE", &format!("/api/keys/{id}"), Value::Null).await.0, 200);
    assert_eq!(asked(&gateway, &key).await, 401);
}

#[tokio::test]
async fn a_document_that_cannot_be_read_admits_nobody_and_can_be_revoked() {
    let upstream = Upstream::digest().await;
    let yaml = yaml(&upstream.url(), "", "");
    let gateway = Gateway::start(&yaml).await;
    let (later, key) = made(&gateway, json!({"consumer": "acme"})).await;
    let (_, fine) = made(&gateway, json!({"consumer": "acme"})).await;
    // As a later version may write it, with a restriction that this one does not know.
    let edit = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); \
                c.execute(\"UPDATE api_keys SET document = json_set(document, '$.only', 'GET') WHERE id = ?\", [sys.argv[2]]); \
                c.execute('UPDATE api_keys_revision SET revision = revision + 1'); c.commit()";
    let file = gateway.folder().join("state/spillway.db");
    assert!(Command::new(python()).args(["-c", edit]).arg(file).arg(&later).status().unwrap().success());
    eventually("the change is followed", || async { (asked(&gateway, &key).await == 401).then_some(()) }).await;
    assert_eq!(asked(&gateway, &fine).await, 200);
    assert_eq!(shown(&gateway, &later).await["state"], "unreadable");
    assert_eq!(admin(&gateway, "POST", &format!("/api/keys/{later}/rotate"), Value::Null).await.0, 409);
    assert_eq!(admin(&gateway, "DELETE", &format!("/api/keys/{later}"), Value::Null).await.0, 200);
}

#[tokio::test]
async fn two_gateways_share_their_keys_and_outlive_their_store() {
    let mut redis = Redis::start();
    let upstream = Upstream::digest().await;
    let store = format!("state: {{store: {{redis: {{url: \"redis://127.0.0.1:{}\"}}}}}}\n", redis.port);
    let yaml = yaml(&upstream.url(), "maxKeys: 4", &store);
    let (first, second) = (Gateway::start(&yaml).await, Gateway::start(&yaml).await);
    let becomes = async |gateway: &Gateway, key: &str, status: u16| {
        let what = format!("the key gets {status}");
        eventually(&what, || async { (asked(gateway, key).await == status).then_some(()) }).await;
    };
    let (id, key) = made(&first, json!({"consumer": "acme"})).await;
    assert_eq!(asked(&first, &key).await, 200);
    becomes(&second, &key, 200).await;
    // Each changes what the other one made, from its newest state.
    let (status, rotated) = admin(&second, "POST", &format!("/api/keys/{id}/rotate"), Value::Null).await;
    assert_eq!(status, 200, "{rotated}");
    let rotated = rotated["key"].as_str().unwrap().to_owned();
    assert_eq!((asked(&second, &key).await, asked(&second, &rotated).await), (401, 200));
    becomes(&first, &rotated, 200).await;
    assert_eq!(asked(&first, &key).await, 401);
    // They share the bound, too.
    let order = json!({"consumer": "acme"});
    let all = futures::future::join_all(
        [&first, &second, &first, &second, &first].map(|gateway| admin(gateway, "POST", "/api/keys", order.clone())),
    );
    assert_eq!(all.await.iter().filter(|(status, _)| *status == 201).count(), 3);
    assert_eq!(admin(&first, "DELETE", &format!("/api/keys/{id}"), Value::Null).await.0, 200);
    assert_eq!(asked(&first, &rotated).await, 401);
    becomes(&second, &rotated, 401).await;

    // Without the store keys stay valid and cannot be changed; a gateway that starts then knows none, and says so.
    let (kept, kept_key) = made(&second, order.clone()).await;
    becomes(&first, &kept_key, 200).await;
    redis.kill();
    let (status, refused) = admin(&first, "DELETE", &format!("/api/keys/{kept}"), Value::Null).await;
    assert!(status == 503 && refused["detail"].as_str().unwrap().contains("state.store.redis"), "{refused}");
    assert_eq!((asked(&first, &kept_key).await, asked(&second, &kept_key).await), (200, 200));
    first.metric_becomes("spillway_api_key_store_up", 0.0).await;
    let third = Gateway::start(&yaml).await;
    assert_eq!(asked(&third, &kept_key).await, 503, "it may be a key");
    assert_eq!(asked(&third, "sk-other").await, 401, "it cannot be one");
    // A server that comes back without its content has no keys.
    redis.restart();
    for gateway in [&first, &second, &third] {
        becomes(gateway, &kept_key, 401).await;
        gateway.metric_becomes("spillway_api_key_store_up", 1.0).await;
    }
    let (_, again) = made(&third, order).await;
    becomes(&first, &again, 200).await;
}

#[tokio::test]
async fn keys_of_a_lost_store_are_refused_after_a_time() {
    let mut redis = Redis::start();
    let upstream = Upstream::digest().await;
    let store = format!("state: {{store: {{redis: {{url: \"redis://127.0.0.1:{}\"}}}}}}\n", redis.port);
    let gateway = Gateway::start(&yaml(&upstream.url(), "maxStale: 2s", &store)).await;
    let (_, key) = made(&gateway, json!({"consumer": "acme"})).await;
    assert_eq!(asked(&gateway, &key).await, 200);
    redis.kill();
    eventually("the key is refused", || async { (asked(&gateway, &key).await == 503).then_some(()) }).await;
    let answer = gateway.client().chat("m", &[("x-api-key", &key)]).await;
    assert!(answer.text().contains("keys_unavailable") && answer.header("retry-after") == "1", "{}", answer.text());
}

#[tokio::test]
async fn a_key_has_limits_and_a_budget_of_its_own() {
    let usage = r#"{"object":"chat.completion","model":"m","choices":[],"usage":{"prompt_tokens":60,"completion_tokens":40,"total_tokens":100}}"#;
    let upstream =
        Upstream::start(move |_| async move { Some(reply(200, &[("content-type", "application/json")], usage)) }).await;
    let further = "prices: [{model: m, input: 1000000, output: 1000000}]\n";
    let yaml = yaml(&upstream.url(), "", further).replace("{name: other}", "{name: other, limits: {requests: 3/h}}");
    let gateway = Gateway::start(&yaml).await;
    let limited =
        async |consumer: &str, limits: Value| made(&gateway, json!({"consumer": consumer, "limits": limits})).await;
    let (_, rate) = limited("acme", json!({"requests": "2/h"})).await;
    let (_, free) = made(&gateway, json!({"consumer": "acme"})).await;
    assert_eq!(
        [asked(&gateway, &rate).await, asked(&gateway, &rate).await, asked(&gateway, &rate).await],
        [200, 200, 429]
    );
    assert_eq!(asked(&gateway, &free).await, 200, "another key of the consumer has no such limit");
    let refused = gateway.client().chat("m", &[("x-api-key", &rate)]).await;
    assert!(refused.text().contains("this API key"), "{}", refused.text());
    // The limits of its consumer hold beside those of a key, over all keys.
    let (_, one) = limited("other", json!({"requests": "2/h"})).await;
    let (_, two) = limited("other", json!({"requests": "100/h"})).await;
    let mut statuses = Vec::new();
    for key in [&one, &two, &one, &two, &one] {
        statuses.push(asked(&gateway, key).await);
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
    // A budget in tokens, and one in money, which a crash and a rotation leave as they are.
    let (spent_id, spent) = limited("acme", json!({"budget": {"tokens": 150, "per": "month"}})).await;
    let (_, dollars) = limited("acme", json!({"budget": {"usd": 150, "per": "day"}})).await;
    for key in [&spent, &dollars] {
        assert_eq!(asked(&gateway, key).await, 200);
        let refused = eventually("the budget is spent", || async {
            let answer = gateway.client().chat("m", &[("x-api-key", key)]).await;
            (answer.status == 429).then_some(answer)
        })
        .await;
        assert!(refused.text().contains("insufficient_quota"), "{}", refused.text());
    }
    let (_, rotated) = admin(&gateway, "POST", &format!("/api/keys/{spent_id}/rotate"), Value::Null).await;
    let rotated = rotated["key"].as_str().unwrap().to_owned();
    assert_eq!(asked(&gateway, &rotated).await, 429);
    let series = "spillway_limit_refusals_total{limit=\"keys/budget/month\"}";
    assert!(gateway.metric(series).await >= 1.0, "{}", gateway.shown("/metrics").await);
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let gateway = gateway.crash_and_restart(&yaml).await;
    assert_eq!((asked(&gateway, &rotated).await, asked(&gateway, &dollars).await), (429, 429));
}

#[tokio::test]
async fn a_key_is_in_one_answer_and_nowhere_else() {
    let upstream = Upstream::digest().await;
    let yaml = yaml(&upstream.url(), "", "telemetry: {logs: {access: true}}\n");
    let mut command = Command::new(binary());
    command.env("RUST_LOG", "trace");
    let whole = format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{yaml}");
    let gateway = Gateway::start_by(command, tempfile::tempdir().unwrap(), &whole).await;
    let mut planted = Planted::default();
    let (id, key) = made(&gateway, json!({"consumer": "acme", "limits": {"requests": "1/h"}})).await;
    planted.add("a key", &key);
    let (_, rotated) = admin(&gateway, "POST", &format!("/api/keys/{id}/rotate"), json!({"grace": "1h"})).await;
    planted.add("a rotated key", rotated["key"].as_str().unwrap());
    let mut outputs: Vec<(String, Vec<u8>)> = Vec::new();
    for key in [&key, rotated["key"].as_str().unwrap(), "sk-spillway-wrong"] {
        let answer = gateway.client().chat("m", &[("authorization", &format!("Bearer {key}"))]).await;
        outputs.push(("an answer".to_owned(), format!("{:?} {}", answer.headers, answer.text()).into_bytes()));
    }
    // An operator takes the key for its id.
    let (_, refused) = admin(&gateway, "DELETE", &format!("/api/keys/{key}"), Value::Null).await;
    outputs.push(("a refusal".to_owned(), refused.to_string().into_bytes()));
    for command in ["expire", "rotate"] {
        admin(&gateway, "POST", &format!("/api/keys/{key}/{command}"), Value::Null).await;
    }
    for page in ["/", "/metrics", "/api/config", "/api/keys", &format!("/api/keys/{id}"), "/api/backends"] {
        outputs.push((page.to_owned(), gateway.shown(page).await.into_bytes()));
    }
    for file in std::fs::read_dir(gateway.folder().join("state")).unwrap() {
        let path = file.unwrap().path();
        outputs.push((path.display().to_string(), std::fs::read(&path).unwrap()));
    }
    eventually("the changes are logged", || async { (gateway.events("key_change").len() == 2).then_some(()) }).await;
    outputs.push(("the log".to_owned(), gateway.log().into_bytes()));
    assert!(outputs.iter().any(|(name, _)| name.ends_with("spillway.db")));
    assert_eq!(planted.search(&outputs), []);
    // The log names the key by its id, its consumer, and who changed it.
    let change = &gateway.events("key_change")[0];
    assert_eq!((&change["id"], &change["consumer"], &change["action"]), (&json!(id), &json!("acme"), &json!("create")));
    assert_eq!(change["by"], "loopback 127.0.0.1");
}
