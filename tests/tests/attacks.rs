//! Attacks on authentication and authorization, each tried against the running gateway, and their visibility to
//! operators.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use spillway_tests::{Gateway, Upstream, eventually, new_key, reply};

#[tokio::test]
async fn identities_are_not_smuggled_guessed_or_replayed() {
    let upstream = Upstream::fixed(200, "{}").await;
    let authorizer = Upstream::start(|seen| async move {
        Some(match seen.headers.get("x-spillway-consumer").map(|v| v.to_str().unwrap().to_owned()).as_deref() {
            Some("acme") => reply(200, &[("x-user", "verified")], ""),
            _ => reply(403, &[], ""),
        })
    })
    .await;
    let ((acme, acme_digest), (bolt, bolt_digest), (old, old_digest)) = (new_key(), new_key(), new_key());
    let yaml = format!(
        "consumers:
  - name: acme
    tenant: north
    models: [gpt-*]
    keys: [{{sha256: \"{acme_digest}\"}}, {{sha256: \"{old_digest}\", expires: 2020-01-01}}]
  - {{name: bolt, keys: [{{sha256: \"{bolt_digest}\"}}]}}
authentication:
  identityHeaders: {{consumer: x-caller, tenant: x-caller-tenant}}
  failures: {{rate: 1000/s}}
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - name: external
    unknownCalls: pass
    matches: [{{path: {{prefix: /external}}}}]
    filters: [{{externalAuthorization: {{url: \"{}/check\", timeout: 5s, copyToRequest: [x-user]}}}}]
    backendRefs: [{{name: x}}]
  - name: ruled
    unknownCalls: pass
    matches: [{{path: {{prefix: /ruled}}, when: \"request.query == 'on'\"}}]
    filters:
      - authorize: \"consumer.tenant == 'north'\"
      - cel: {{deny: \"size(request.body.messages) > 1\", status: 422, message: too many messages}}
    backendRefs: [{{name: x}}]
  - name: north
    unknownCalls: pass
    matches: [{{path: {{prefix: /north}}}}]
    access: {{tenants: [north]}}
    filters: [{{rateLimit: {{by: clientAddress, requests: 1000/s}}}}, {{responseHeaders: {{set: {{x-north: there}}}}}}]
    backendRefs: [{{name: x}}]
  - {{name: gpt, unknownCalls: pass, matches: [{{path: {{prefix: /gpt}}, model: \"gpt-*\"}}], access: {{tenants: [north]}}, backendRefs: [{{name: x}}]}}
  - {{name: both-gpt, unknownCalls: pass, matches: [{{path: {{prefix: /both}}, model: \"gpt-*\"}}], access: {{tenants: [north]}}, backendRefs: [{{name: x}}]}}
  - {{name: both, unknownCalls: pass, matches: [{{path: {{prefix: /both}}, model: \"other-*\"}}], backendRefs: [{{name: x}}]}}
  - {{name: open, unknownCalls: pass, matches: [{{path: {{prefix: /open}}}}], authentication: none, backendRefs: [{{name: x}}]}}
  - {{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}
",
        upstream.url(),
        authorizer.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let post = |path: &'static str, headers: Vec<(&'static str, String)>, body: &'static str| {
        let client = gateway.client();
        async move {
            let headers = headers.iter().map(|(n, v)| (*n, v.as_str()));
            let headers: Vec<(&str, &str)> = headers.chain([("content-type", "application/json")]).collect();
            client.post(path, &headers, body).await
        }
    };
    let key = |key: &str| ("x-api-key", key.to_owned());
    const CHAT: &str = r#"{"model":"gpt-4o","messages":[]}"#;

    // Identity headers come from the gateway alone, on every route and in every spelling.
    let forged = [
        "x-caller",
        "X_Caller",
        "x-caller-tenant",
        "x_caller-tenant",
        "x-user",
        "x-spillway-consumer",
        "X_Spillway-Consumer",
    ];
    for name in forged {
        for path in ["/v1/chat/completions", "/open"] {
            let answer = post(path, vec![key(&acme), (name, "root".to_owned())], CHAT).await;
            assert_eq!(answer.status, 200, "{name} {path}: {}", answer.text());
            let seen = upstream.last();
            assert!(seen.headers.values().all(|value| value != "root"), "{name} {path}: {:?}", seen.headers);
        }
    }
    assert_eq!(post("/v1/chat/completions", vec![key(&acme)], CHAT).await.status, 200);
    let seen = upstream.last();
    assert_eq!(seen.headers["x-caller"], "acme");
    assert_eq!(seen.headers["x-caller-tenant"], "north");

    // The authorization server's header passes, the caller's own does not; an unknown caller is refused.
    let answer = post("/external", vec![key(&acme), ("x-user", "root".to_owned())], CHAT).await;
    assert_eq!((answer.status.as_u16(), upstream.last().headers["x-user"].to_str().unwrap()), (200, "verified"));
    assert_eq!(authorizer.last().path, "/check/external");
    assert_eq!(post("/external", vec![key(&bolt)], "{}").await.status, 403);

    // Expressions: on the head for the match, on caller and body for the filters.
    const TWO: &str = r#"{"model":"gpt-4o","messages":[1,2]}"#;
    for (path, shown, body, status) in [
        ("/ruled", &acme, CHAT, 404),
        ("/ruled?on", &acme, CHAT, 200),
        ("/ruled?on", &bolt, CHAT, 403),
        ("/ruled?on", &acme, TWO, 422),
        ("/ruled?on", &acme, r#"{"model":"gpt-4o","messages":7}"#, 422),
    ] {
        let answer = client.post(path, &[("x-api-key", shown), ("content-type", "application/json")], body).await;
        assert_eq!(answer.status, status, "{path} {body}: {}", answer.text());
    }

    // A resource that the caller may not use looks absent.
    let missing = client.post("/nothing", &[("x-api-key", &bolt)], CHAT).await;
    let denied = client.post("/north", &[("x-api-key", &bolt)], CHAT).await;
    assert_eq!(denied.status, 404);
    let shape = |answer: &spillway_tests::Answer| {
        let mut json = answer.json();
        json.as_object_mut().unwrap().remove("requestId");
        json.to_string().replace("/nothing", "PATH").replace("/north", "PATH")
    };
    assert_eq!(shape(&missing), shape(&denied));
    let names = |answer: &spillway_tests::Answer| {
        answer.headers.keys().map(|name| name.as_str().to_owned()).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(names(&missing), names(&denied), "neither limits nor headers of the route show");
    // A model that only others may use looks absent.
    let by_model = async |path: &str, model: &str| {
        let body = format!(r#"{{"model":"{model}","messages":[]}}"#);
        client.post(path, &[("x-api-key", &bolt), ("content-type", "application/json")], body).await
    };
    for path in ["/gpt/chat", "/both/chat"] {
        let (missing, denied) = (by_model(path, "absent").await, by_model(path, "gpt-9").await);
        assert_eq!((missing.status.as_u16(), denied.status.as_u16()), (404, 404), "{path}");
        assert_eq!(shape(&missing).replace("absent", "MODEL"), shape(&denied).replace("gpt-9", "MODEL"), "{path}");
        assert_eq!(names(&missing), names(&denied), "{path}");
    }
    assert_eq!(post("/north", vec![key(&acme)], CHAT).await.status, 200);
    let other_model = client.chat("claude-4", &[("x-api-key", &acme)]).await;
    assert_eq!(
        (other_model.status.as_u16(), other_model.json()["error"]["code"].as_str().unwrap()),
        (404, "model_not_found")
    );
    assert_eq!(client.chat("gpt-5", &[("x-api-key", &acme)]).await.status, 200);

    // A key is accepted in a header only, complete, and until it expires.
    let before = upstream.count();
    let shifted: String =
        acme.chars().map(|c| if c.is_ascii_lowercase() { c.to_ascii_uppercase() } else { c }).collect();
    let tries: Vec<(String, Vec<(&str, String)>)> = vec![
        (format!("/v1/chat/completions?api_key={acme}&key={acme}&access_token={acme}"), vec![]),
        ("/v1/chat/completions".into(), vec![("cookie", format!("api_key={acme}"))]),
        ("/v1/chat/completions".into(), vec![key(&acme[..acme.len() - 1])]),
        ("/v1/chat/completions".into(), vec![key(&shifted)]),
        ("/v1/chat/completions".into(), vec![key(&acme_digest)]),
        ("/v1/chat/completions".into(), vec![key(&old)]),
        ("/v1/chat/completions".into(), vec![key(&bolt), ("x-api-key", acme.clone())]),
        ("/v1/chat/completions".into(), vec![key(&acme), ("api-key", acme[..acme.len() - 1].to_owned())]),
        ("/v1/chat/completions".into(), vec![key(&acme), ("authorization", format!("Bearer {bolt}"))]),
        ("/v1/chat/completions".into(), vec![("proxy-authorization", format!("Bearer {acme}"))]),
        ("/v1/chat/completions".into(), vec![("authorization", "Bearer eyJhbGciOiJub25lIn0.e30.".to_owned())]),
    ];
    for (path, headers) in tries {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let answer = client.post(&path, &headers, CHAT).await;
        assert_eq!(answer.status, 401, "{path} {headers:?}");
    }
    assert_eq!(upstream.count(), before, "nothing of that reached a backend");

    // A revoked key is refused, and a revoked model looks absent.
    std::fs::write(
        gateway.config(),
        std::fs::read_to_string(gateway.config()).unwrap().replace(&format!("{{sha256: \"{acme_digest}\"}}, "), ""),
    )
    .unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!(client.chat("gpt-5", &[("x-api-key", &acme)]).await.status, 401);

    // All of these are in the audit log, and no key is.
    let lines = eventually("every refusal is told", || {
        let lines = gateway.events("audit");
        async move { (lines.len() >= 10).then_some(lines) }
    })
    .await;
    assert!(lines.iter().any(|line| line["action"] == "authentication_refused" && line["reason"] == "unknown_key"));
    assert!(lines.iter().any(|line| line["reason"] == "missing" && line["path"] == "/v1/chat/completions"));
    for secret in [&acme, &bolt, &old] {
        assert!(!gateway.log().contains(secret.as_str()));
    }
}

#[tokio::test]
async fn keys_rotate_under_load_without_a_refused_request() {
    let upstream = Upstream::fixed(200, "{}").await;
    let ((old, old_digest), (new, new_digest)) = (new_key(), new_key());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("acme.keys");
    std::fs::write(&file, format!("{old_digest}\n")).unwrap();
    let yaml = format!(
        "consumers: [{{name: acme, keysFile: {}}}]
backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: all, backendRefs: [{{name: x}}]}}]
",
        file.display(),
        upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let stop = Arc::new(AtomicBool::new(false));
    let load = |key: String| {
        let (client, stop) = (gateway.client(), stop.clone());
        tokio::spawn(async move {
            let mut count = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = client.post("/", &[("x-api-key", &key)], "{}").await;
                assert_eq!(answer.status, 200, "{}", answer.text());
                count += 1;
            }
            count
        })
    };
    let with_old = load(old.clone());
    assert_eq!(client.post("/", &[("x-api-key", &new)], "").await.status, 401);
    // The new key is added beside the old one, both are used, then the old one is removed.
    std::fs::write(&file, format!("{old_digest} 2099-01-01\n{new_digest}\n")).unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    let with_new = load(new.clone());
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    assert!(with_old.await.unwrap() > 0 && with_new.await.unwrap() > 0);
    std::fs::write(&file, format!("{new_digest}\n")).unwrap();
    gateway.reloads(1).await;
    assert_eq!(client.post("/", &[("x-api-key", &old)], "").await.status, 401, "the revoked key is not replayed");
    assert_eq!(client.post("/", &[("x-api-key", &new)], "").await.status, 200);
    // A half-written file changes nothing.
    std::fs::write(&file, format!("{new_digest}\nnot a digest\n")).unwrap();
    let kept = gateway.reloads(2).await;
    assert_eq!(kept["event"], "config_rejected");
    assert!(kept["reason"].as_str().unwrap().contains("acme.keys:2"), "{kept}");
    assert_eq!(client.post("/", &[("x-api-key", &new)], "").await.status, 200);
}

#[tokio::test]
async fn a_server_that_judges_may_be_down_and_the_request_waits_no_longer_than_it_was_told() {
    let upstream = Upstream::fixed(200, "{}").await;
    let slow = Upstream::start(|_| async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        Some(reply(200, &[], ""))
    })
    .await;
    let failing = Upstream::fixed(503, "").await;
    let flooding = Upstream::start(|_| async { Some(reply(200, &[], "x".repeat(1 << 20))) }).await;
    let yaml = format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: failing, matches: [{{path: {{prefix: /failing}}}}], filters: [{{externalAuthorization: {{url: \"{failing}\", timeout: 5s}}}}], backendRefs: [{{name: x}}]}}
  - {{name: flooding, matches: [{{path: {{prefix: /flooding}}}}], filters: [{{externalAuthorization: {{url: \"{flooding}\", timeout: 5s}}}}], backendRefs: [{{name: x}}]}}
  - {{name: closed, matches: [{{path: {{prefix: /closed}}}}], filters: [{{externalAuthorization: {{url: \"{slow}\", timeout: 100ms}}}}], backendRefs: [{{name: x}}]}}
  - {{name: opened, matches: [{{path: {{prefix: /opened}}}}], filters: [{{externalAuthorization: {{url: \"{slow}\", timeout: 100ms, onFailure: open}}}}], backendRefs: [{{name: x}}]}}
  - {{name: down, matches: [{{path: {{prefix: /down}}}}], filters: [{{externalAuthorization: {{url: \"{}\"}}}}], backendRefs: [{{name: x}}]}}
",
        upstream.url(),
        Upstream::nobody().await,
        slow = slow.url(),
        failing = failing.url(),
        flooding = flooding.url(),
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    let started = Instant::now();
    for (path, status) in [("/closed", 403), ("/opened", 200), ("/down", 403), ("/failing", 403), ("/flooding", 403)] {
        assert_eq!(client.get(path).await.status, status, "{path}");
        // Failures are counted also where the filter lets requests pass.
        let series = format!("spillway_filter_failures_total{{http_route=\"{}\"}}", &path[1..]);
        gateway.metric_becomes(&series, 1.0).await;
    }
    assert!(started.elapsed() < Duration::from_secs(20), "a bound for a hang, not a measure");
}

#[tokio::test]
async fn an_upgrade_that_a_caller_asks_for_ends_at_the_gateway() {
    // h2c smuggling: a server that accepts the upgrade would be reached past every route and filter.
    let upstream = Upstream::fixed(200, "{}").await;
    let yaml = format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]\nroutes: [{{backendRefs: [{{name: x}}]}}]\n",
        upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    let client = gateway.client();
    for (upgrade, connection) in
        [("h2c", "Upgrade, HTTP2-Settings, X-Own"), ("x-own", "Upgrade, X-Own, HTTP2-Settings"), ("websocket", "X-Own")]
    {
        let asked = [
            ("connection", connection),
            ("upgrade", upgrade),
            ("http2-settings", "AAMAAABkAAQAAP__"),
            ("x-own", "1"),
            ("keep-alive", "timeout=300"),
            ("proxy-connection", "keep-alive"),
            ("te", "trailers, gzip"),
        ];
        let answer = client.send(client.request("GET", "/", &asked, "")).await;
        assert_eq!(answer.status, 200, "{upgrade}");
        let mut seen = upstream.last().headers;
        // The gateway's own word that trailers may come.
        assert_eq!((&seen["te"], &seen["connection"]), (&"trailers".parse().unwrap(), &"te".parse().unwrap()));
        seen.remove("te");
        seen.remove("connection");
        for (name, _) in asked {
            assert!(!seen.contains_key(name), "{upgrade}: {name} in {seen:?}");
        }
    }
}

#[tokio::test]
async fn guesses_at_a_server_that_judges_count_against_the_limits() {
    let upstream = Upstream::fixed(200, "{}").await;
    let authorizer = Upstream::start(|seen| async move {
        Some(match seen.headers.get("x-password").map(|password| password.as_bytes() == b"right") {
            Some(true) => reply(200, &[], ""),
            _ => reply(403, &[("x-why", "wrong")], ""),
        })
    })
    .await;
    let judged = |path: &str, more: &str, url: String| {
        format!(
            "  - name: {path}
    matches: [{{path: {{prefix: /{path}}}}}]
    filters:
      - rateLimit: {{by: clientAddress, requests: 3/h}}
      - externalAuthorization: {{url: \"{url}\", timeout: 5s, forwardHeaders: [x-password]{more}}}
    backendRefs: [{{name: x}}]
"
        )
    };
    let yaml = format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]\nroutes:\n{}{}",
        upstream.url(),
        judged("plain", "", authorizer.url()),
        judged("told", ", copyToAnswer: [x-why]", authorizer.url()),
    );
    let gateway = Gateway::start(&yaml).await;
    for path in ["/plain", "/told"] {
        let before = authorizer.count();
        for n in 0..8 {
            let guess = format!("guess-{n}");
            let answer = gateway.client().post(path, &[("x-password", &guess)], "").await;
            assert_eq!(answer.status, if n < 3 { 403 } else { 429 }, "{path} {n}");
        }
        assert_eq!(gateway.client().post(path, &[("x-password", "right")], "").await.status, 429);
        assert_eq!(authorizer.count(), before + 3, "the server is not asked past the limit");
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn guesses_of_keys_count_whichever_step_refuses_them() {
    let upstream = Upstream::fixed(200, "{}").await;
    let (key, digest) = new_key();
    let yaml = format!(
        "authentication: {{failures: {{rate: 3/h}}}}
consumers: [{{name: a, keys: [{{sha256: \"{digest}\"}}]}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - name: denied
    matches: [{{path: {{prefix: /denied}}}}]
    filters: [{{clientAddress: {{deny: [127.0.0.1]}}}}]
    backendRefs: [{{name: x}}]
  - name: by-model
    matches: [{{path: {{prefix: /v1}}, model: small}}]
    filters: [{{rateLimit: {{by: clientAddress, requests: 7/h}}}}, {{clientAddress: {{deny: [127.0.0.1]}}}}]
    backendRefs: [{{name: x}}]
  - name: rest
    matches: [{{path: {{prefix: /v1}}}}]
    authentication: optional
    filters: [{{clientAddress: {{deny: [127.0.0.1]}}}}]
    backendRefs: [{{name: x}}]
  - {{name: door, matches: [{{path: {{prefix: /door}}}}], backendRefs: [{{name: x}}]}}
",
        upstream.url()
    );
    for path in ["/denied", "/v1/chat/completions"] {
        let gateway = Gateway::start(&yaml).await;
        let client = gateway.client();
        let show = async |path: &str, key: Option<&str>| {
            let header: Vec<_> = key.iter().map(|key| ("x-api-key", *key)).collect();
            client.post(path, &header, r#"{"model":"small"}"#).await.status.as_u16()
        };
        for shown in [None, Some(&*key), None] {
            assert_eq!(show(path, shown).await, 403, "{path}: neither showing nothing nor a good key is a guess");
        }
        assert_eq!(show("/door", Some("guess-1")).await, 401);
        for guess in ["guess-2", "guess-3"] {
            assert_eq!(show(path, Some(guess)).await, 403, "{path}");
        }
        assert_eq!(show("/door", Some("guess-4")).await, 429, "{path}: three were bad before");
        assert_eq!(show("/door", Some(&key)).await, 200);
        // What is refused before its body counts against limits by address in front of what refuses it.
        if path.starts_with("/v1") {
            assert_eq!(show(path, None).await, 403);
            assert_eq!(show(path, None).await, 403);
            assert_eq!(show(path, None).await, 429, "seven came before");
        }
    }
}

#[tokio::test]
async fn who_knocks_without_end_fills_no_log() {
    let upstream = Upstream::fixed(200, "{}").await;
    let (_, digest) = new_key();
    let yaml = |address: &str, total: &str| {
        format!(
            "consumers: [{{name: acme, keys: [{{sha256: \"{digest}\"}}]}}]
telemetry: {{audit: {{perAddress: {address}, total: {total}}}}}
backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: x}}]}}]
",
            upstream.url()
        )
    };
    let gateway = Gateway::start(&yaml("2/h", "1000/h")).await;
    let knock = async |lines: usize, left_out: f64| {
        for _ in 0..5 {
            assert_eq!(gateway.client().post("/", &[("x-api-key", "sk-wrong")], "").await.status, 401);
        }
        gateway.metric_becomes("spillway_audit_dropped_total", left_out).await;
        eventually("the lines are written", || async { (gateway.events("audit").len() == lines).then_some(()) }).await;
    };
    knock(2, 3.0).await;
    let listeners = "listeners: [{address: \"127.0.0.1:0\"}]\n";
    for (n, (address, total, lines, left_out)) in
        [("3/h", "1000/h", 5, 5.0), ("1000/h", "4/h", 9, 6.0)].into_iter().enumerate()
    {
        let edited = spillway_tests::whole(&format!("{listeners}{}", yaml(address, total)));
        std::fs::write(gateway.config(), edited).unwrap();
        assert_eq!(gateway.reloads(n).await["event"], "config_reloaded");
        knock(lines, left_out).await;
    }
}

#[tokio::test]
async fn no_name_of_a_model_turns_or_ends_a_line_of_the_log() {
    let upstream = Upstream::fixed(200, "{}").await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{backendRefs: [{{name: x}}]}}]
telemetry: {{logs: {{access: true}}}}
",
        upstream.url()
    ))
    .await;
    // Characters that turn the order of others, or at which some viewers end a line; controls are no part of a name.
    let model = "gpt-\u{202e}4\u{2066}\u{2028}o\u{2029}\u{200f}\u{61c}";
    assert_eq!(gateway.client().chat(model, &[]).await.status, 200);
    assert_eq!(gateway.client().chat("gpt-\u{9b}31m", &[]).await.status, 400);
    let lines = eventually("both are logged", || async {
        let lines = gateway.events("access");
        (lines.len() == 2).then_some(lines)
    })
    .await;
    assert!(lines.iter().any(|line| line["modelAsked"] == model), "{lines:?}");
    let log = gateway.log();
    assert!(!log.contains(|c: char| model.contains(c) && !c.is_ascii()) && !log.contains('\u{9b}'), "{log}");
}
