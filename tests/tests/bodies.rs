//! Bodies as attacks: announced and never sent, ambiguous, or large enough to delay other requests.

use bytes::Bytes;
use spillway_tests::{Answer, Client, Gateway, PATIENCE, Upstream, encoded, eventually, new_key, reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const JSON: (&str, &str) = ("content-type", "application/json");

/// Opens a connection, announces a body of `length` bytes and sends only its beginning.
async fn announce(gateway: &Gateway, headers: &str, length: usize, begin: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(gateway.address).await.unwrap();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n{headers}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(begin).await.unwrap();
    stream
}

/// Reads up to the end of an answer's head, without sending a byte of the body.
async fn head_of_answer(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = async {
        let mut byte = [0; 1];
        while !answer.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).await.is_ok() {
            answer.push(byte[0]);
        }
    };
    let read = tokio::time::timeout(PATIENCE, read).await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(read.is_ok(), "no whole head came, only {answer:?}");
    answer
}

/// Sends a head with `Expect: 100-continue`, without the body.
async fn ask_first(gateway: &Gateway, headers: &str) -> String {
    let headers = format!("Expect: 100-continue\r\n{headers}");
    head_of_answer(&mut announce(gateway, &headers, 1000, b"").await).await
}

fn is(answer: &str, status: u16) -> bool {
    answer.starts_with(&format!("HTTP/1.1 {status} "))
}

fn long_chat(bytes: usize) -> String {
    serde_json::json!({"model": "m", "messages": [{"role": "user", "content": "x".repeat(bytes)}]}).to_string()
}

async fn post(client: &Client, key: &str, body: impl Into<Bytes>) -> Answer {
    client.post("/v1/chat/completions", &[JSON, ("x-api-key", key)], body).await
}

const HELD: &str = "spillway_buffered_body_bytes";

/// Waits until about this many bytes are held, to a page or two.
async fn held(gateway: &Gateway, bytes: f64) {
    eventually("so much is held", || async { (gateway.metric(HELD).await >= bytes).then_some(()) }).await;
}

fn refusals(reason: &str) -> String {
    format!("spillway_request_bodies_refused_total{{reason=\"{reason}\"}}")
}

#[tokio::test]
async fn bodies_that_are_announced_and_not_sent_take_no_memory_from_others() {
    let upstream = Upstream::fixed(200, "{}").await;
    let gateway = Gateway::start(&format!(
        "limits: {{bufferedBodies: 32MiB, bufferedBodiesPerCaller: 32MiB}}
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}]
",
        upstream.url()
    ))
    .await;
    let mut all = Vec::new();
    for _ in 0..60 {
        all.push(announce(&gateway, "", 20 << 20, b"{").await);
    }
    gateway.metric_becomes("spillway_requests_in_flight{http_route=\"chat\"}", 60.0).await;
    let held = gateway.metric(HELD).await;
    assert!(held <= 60.0 * 1024.0, "{held} bytes are held of 60 that arrived");
    assert_eq!(gateway.client().chat("m", &[]).await.status, 200);
    drop(all);
    gateway.metric_becomes(HELD, 0.0).await;
}

#[tokio::test]
async fn a_caller_holds_its_share_of_the_memory_for_bodies_and_no_more() {
    let upstream = Upstream::fixed(200, "{}").await;
    let (a, a_digest) = new_key();
    let (b, b_digest) = new_key();
    let yaml = |share: &str| {
        format!(
            "limits: {{bufferedBodies: 8MiB, bufferedBodiesPerCaller: {share}}}
consumers: [{{name: a, keys: [{{sha256: \"{a_digest}\"}}]}}, {{name: b, keys: [{{sha256: \"{b_digest}\"}}]}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}
  - {{name: open, matches: [{{path: {{prefix: /open}}}}], authentication: none, backendRefs: [{{name: x}}]}}
",
            upstream.url()
        )
    };
    let gateway = Gateway::start(&yaml("1MiB")).await;
    let client = gateway.client();
    let header = format!("x-api-key: {a}\r\n");
    let begun = announce(&gateway, &header, 900 << 10, &vec![b' '; 700 << 10]).await;
    held(&gateway, f64::from(700 << 10)).await;
    let refused = post(&client, &a, long_chat(600 << 10)).await;
    assert_eq!(
        (refused.status.as_u16(), refused.json()["error"]["code"].as_str().unwrap()),
        (429, "body_share_exhausted")
    );
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(gateway.metric(&refusals("caller")).await, 1.0);
    // A body whose announced length does not fit is not requested.
    let mut stream = announce(&gateway, &format!("Expect: 100-continue\r\n{header}"), 600 << 10, b"").await;
    assert!(is(&head_of_answer(&mut stream).await, 429));
    // Small ones fit, and others have shares of their own: consumers, and addresses while the caller is unknown.
    assert_eq!(client.chat("m", &[("x-api-key", &a)]).await.status, 200);
    assert_eq!(post(&client, &b, long_chat(900 << 10)).await.status, 200);
    let open = client.post("/open", &[JSON], long_chat(900 << 10)).await;
    assert_eq!(open.status, 200);
    // A body larger than a whole share is refused for good.
    let long = post(&client, &b, long_chat(1100 << 10)).await;
    assert_eq!((long.status.as_u16(), long.header("retry-after")), (413, ""));
    let chunked = client.chunked(
        "/v1/chat/completions",
        &[JSON, ("x-api-key", &b)],
        vec![Bytes::from(long_chat(600 << 10)), Bytes::from(vec![b' '; 600 << 10])],
    );
    assert_eq!(client.send(chunked).await.status, 413);
    // A share changes while the gateway runs.
    std::fs::write(
        gateway.config(),
        spillway_tests::whole(&format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{}", yaml("2MiB"))),
    )
    .unwrap();
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!(post(&client, &a, long_chat(600 << 10)).await.status, 200);
    drop(begun);
    gateway.metric_becomes(HELD, 0.0).await;
}

#[tokio::test]
async fn memory_for_bodies_that_is_spent_is_told_and_comes_back() {
    let upstream = Upstream::fixed(200, "{}").await;
    let keys = [new_key(), new_key()];
    let gateway = Gateway::start(&format!(
        "limits: {{bufferedBodies: 1MiB}}
consumers: [{{name: a, keys: [{{sha256: \"{}\"}}]}}, {{name: b, keys: [{{sha256: \"{}\"}}]}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}]
",
        keys[0].1,
        keys[1].1,
        upstream.url()
    ))
    .await;
    let header = format!("x-api-key: {}\r\n", keys[0].0);
    let begun = announce(&gateway, &header, 900 << 10, &vec![b' '; 700 << 10]).await;
    held(&gateway, f64::from(700 << 10)).await;
    let refused = post(&gateway.client(), &keys[1].0, long_chat(600 << 10)).await;
    assert_eq!(
        (refused.status.as_u16(), refused.json()["error"]["code"].as_str().unwrap()),
        (503, "body_memory_exhausted")
    );
    assert_eq!((refused.header("retry-after"), gateway.metric(&refusals("process")).await), ("1", 1.0));
    // The slow request that holds most of the memory is given up, long before its deadline.
    let mut begun = begun;
    let answer = head_of_answer(&mut begun).await;
    assert!(is(&answer, 503), "{answer}");
    assert_eq!(gateway.metric(&refusals("slow")).await, 1.0);
    gateway.metric_becomes(HELD, 0.0).await;
    assert_eq!(post(&gateway.client(), &keys[1].0, long_chat(600 << 10)).await.status, 200);
}

fn answer_using(prompt: u64, completion: u64) -> String {
    serde_json::json!({
        "object": "chat.completion", "choices": [],
        "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
    })
    .to_string()
}

#[tokio::test]
async fn limits_that_need_no_body_are_judged_before_one_is_taken() {
    let upstream =
        Upstream::start(|_| async { Some(reply(200, &[("content-type", "application/json")], answer_using(60, 40))) })
            .await;
    let limits = [
        "{requests: 1/h}",
        "{budget: {tokens: 100, per: month}}",
        "{tokens: 100/h, tokenBurst: 100}",
        "{}",
        "{}",
        "{requests: 5/h}",
    ];
    let keys: Vec<_> = limits.iter().map(|_| new_key()).collect();
    let consumers: String = keys
        .iter()
        .zip(limits)
        .enumerate()
        .map(|(n, ((_, digest), limits))| {
            format!("  - {{name: c{n}, keys: [{{sha256: \"{digest}\"}}], limits: {limits}}}\n")
        })
        .collect();
    let gateway = Gateway::start(&format!(
        "consumers:\n{consumers}backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: closed, matches: [{{path: {{prefix: /v1}}, headers: [{{name: x-to, exact: closed}}]}}], access: {{consumers: [c0]}}, backendRefs: [{{name: x}}]}}
  - name: narrow
    matches: [{{path: {{prefix: /v1}}, headers: [{{name: x-to, exact: narrow}}]}}]
    filters: [{{rateLimit: {{by: route, requests: 1/h}}}}]
    backendRefs: [{{name: x}}]
  - name: first
    matches: [{{path: {{prefix: /v1}}, model: a, headers: [{{name: x-to, exact: either}}]}}]
    filters: [{{clientAddress: {{deny: [127.0.0.1]}}}}]
    backendRefs: [{{name: x}}]
  - name: second
    matches: [{{path: {{prefix: /v1}}, headers: [{{name: x-to, exact: either}}]}}]
    access: {{consumers: [c0]}}
    backendRefs: [{{name: x}}]
  - name: by-model
    matches: [{{path: {{prefix: /v1}}, model: a, headers: [{{name: x-to, exact: model}}]}}]
    backendRefs: [{{name: x}}]
  - {{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}
",
        upstream.url()
    ))
    .await;
    let client = gateway.client();
    let chat = async |n: usize, to: &str| {
        let body = r#"{"model":"m","messages":[],"max_tokens":50}"#;
        let headers = [JSON, ("x-api-key", keys[n].0.as_str()), ("x-to", to)];
        let answer = client.post("/v1/chat/completions", &headers, body).await;
        gateway.metric_becomes("spillway_requests_in_flight{http_route=\"chat\"}", 0.0).await;
        answer.status.as_u16()
    };
    let asked = async |n: usize, to: &str| {
        let answer = ask_first(&gateway, &format!("x-api-key: {}\r\nx-to: {to}\r\n", keys[n].0)).await;
        // The request is over, and has released its reservations.
        gateway.metric_becomes("spillway_requests_in_flight{http_route=\"chat\"}", 0.0).await;
        answer
    };
    assert!(is(&asked(3, "").await, 100), "who may call is asked for its body");
    for (n, limit) in limits.iter().enumerate().take(3) {
        assert!(is(&asked(n, "").await, 100), "{}", limit);
        assert_eq!(chat(n, "").await, 200, "and a body that never came has taken nothing: {}", limit);
        for to in ["", "model"] {
            let answer = asked(n, to).await;
            assert!(is(&answer, 429), "{} {to}: {answer}", limit);
            assert!(answer.to_ascii_lowercase().contains("\r\nretry-after: "), "{answer}");
        }
    }
    // Rules and access of the only route, and of every possible route.
    assert!(is(&asked(3, "closed").await, 404));
    assert_eq!(chat(3, "narrow").await, 200);
    assert!(is(&asked(4, "narrow").await, 429));
    assert!(is(&asked(3, "either").await, 403), "the first that it could be");
    assert!(is(&asked(4, "model").await, 100), "one of two would take it");
    // A request that is refused, by its body or before, consumes nothing.
    for _ in 0..8 {
        let headers = [JSON, ("x-api-key", keys[5].0.as_str())];
        assert_eq!(client.post("/v1/chat/completions", &headers, "{").await.status, 400);
        assert!(is(&asked(5, "").await, 100));
    }
    gateway.metric_becomes("spillway_requests_in_flight{http_route=\"chat\"}", 0.0).await;
    let left = client.chat("m", &[("x-api-key", &keys[5].0)]).await;
    assert_eq!(left.header("x-ratelimit-remaining-requests"), "4");
}

#[tokio::test]
async fn a_body_on_its_way_counts_among_the_requests_that_run() {
    let upstream = Upstream::fixed(200, "{}").await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: a, keys: [{{sha256: \"{digest}\"}}], limits: {{concurrency: 2}}}}]
backends: [{{name: x, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}]
",
        upstream.url()
    ))
    .await;
    let header = format!("x-api-key: {key}\r\n");
    let running = [announce(&gateway, &header, 9, b"{").await, announce(&gateway, &header, 9, b"{").await];
    gateway.metric_becomes("spillway_requests_in_flight{http_route=\"chat\"}", 2.0).await;
    assert!(is(&ask_first(&gateway, &header).await, 429));
    drop(running);
    eventually("the two have ended", || async {
        (gateway.client().chat("m", &[("x-api-key", &key)]).await.status == 200).then_some(())
    })
    .await;
}

/// Two backends, and a caller that may use only one of them.
async fn two_backends() -> (Upstream, Upstream, Gateway, String) {
    let (small, big) = (Upstream::fixed(200, "{}").await, Upstream::fixed(200, "{}").await);
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: small, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
  - {{name: big, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
consumers: [{{name: a, keys: [{{sha256: \"{digest}\"}}], models: [small], limits: {{tokens: 1000/h, tokenBurst: 1000}}}}]
routes:
  - {{name: big, matches: [{{path: {{prefix: /v1}}, model: big}}], backendRefs: [{{name: big}}]}}
  - {{name: small, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: small}}]}}
  - {{name: only, matches: [{{path: {{prefix: /only/v1}}}}], backendRefs: [{{name: small}}]}}
",
        small.url(),
        big.url()
    ))
    .await;
    (small, big, gateway, key)
}

#[tokio::test]
async fn a_body_that_two_readers_take_for_two_is_refused() {
    let (small, big, gateway, key) = two_backends().await;
    let client = gateway.client();
    let messages = r#""messages":[{"role":"user","content":"x"}]"#;
    let utf16: Vec<u8> = "{\"model\":\"big\"}".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let mut bodies: Vec<Vec<u8>> = vec![utf16];
    for fields in [
        r#""model":"small","model":"big""#,
        r#""model":"small","mod\u0065l":"big""#,
        r#""model":"small","Model":"big""#,
        r#""MODEL":"big","model":"small""#,
        r#""model":"small","mod\u0045l":"big""#,
        r#""model":"small","ſtream":true"#,
        "\"model\":\"small\",\"max_to\u{212A}ens\":900000",
        r#""model":"small","max_tokens":1,"Max_Tokens":900000"#,
        r#""model":"small","max_tokens":"900000""#,
        r#""model":["big"]"#,
        r#""model":"small\u0000big""#,
        r#""model":"small ""#,
        r#""model":"small","model\u0000":"big""#,
        r#""model":"small","x":"\ud800""#,
        r#""model":"small","x":NaN"#,
        r#""model":"small","x":1e999"#,
    ] {
        bodies.push(format!("{{{fields},{messages}}}").into());
    }
    let plain = format!(r#"{{"model":"small",{messages}}}"#);
    bodies.push(format!("\u{FEFF}{plain}").into());
    bodies.push(format!(r#"{plain}{{"model":"big",{messages}}}"#).into());
    bodies.push(format!(r#"{{"model":"small","x":{}{},{messages}}}"#, "[".repeat(200), "]".repeat(200)).into());
    let key = ("x-api-key", key.as_str());
    let form = "--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nsmall\r\n--x\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nbig\r\n--x--\r\n";
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/engines/small/completions", "/only/v1/chat/completions"] {
        for content_type in ["application/json", "Application/JSON", "text/plain", ""] {
            for body in &bodies {
                let answer = client.post(path, &[("content-type", content_type), key], body.clone()).await;
                let text = String::from_utf8_lossy(body);
                assert_eq!(answer.status, 400, "{path} {content_type}: {text}: {}", answer.text());
            }
            let forbidden = format!(r#"{{"model":"big",{messages}}}"#);
            let answer = client.post(path, &[("content-type", content_type), key], forbidden).await;
            // The older path names a model itself, and it is not known which of both its server takes.
            let expected = if path.contains("engines") { 403 } else { 404 };
            assert_eq!(answer.status, expected, "{path} {content_type}: {}", answer.text());
        }
        // A form with two models, and one of a type that is not read.
        for (content_type, body) in
            [("multipart/form-data; boundary=x", form), ("application/x-www-form-urlencoded", "model=small&model=big")]
        {
            let answer = client.post(path, &[("content-type", content_type), key], body).await;
            assert_eq!(answer.status, 400, "{path} {content_type}: {}", answer.text());
        }
    }
    // Types by which some servers decode another text than the gateway.
    for (content_type, code) in [
        ("application/json; charset=utf-7", "unsupported_charset"),
        ("application/json; charset=utf-16", "unsupported_charset"),
        ("application/json; charset*=utf-8''utf-7", "unsupported_charset"),
        ("application/json; charset=utf-8; charset=utf-7", "unsupported_charset"),
        ("application/x-www-form-urlencoded", "unsupported_form"),
    ] {
        let body = r#"{"model":"small","x":"+ACIALAAi-model+ACIAOgAi-big&model=big"}"#;
        for path in ["/v1/chat/completions", "/v1/other"] {
            let answer = client.post(path, &[("content-type", content_type), key], body).await;
            assert_eq!((answer.status.as_u16(), code_of(&answer)), (400, code.to_owned()), "{path} {content_type}");
        }
    }
    let two_types = [JSON, ("content-type", "multipart/form-data; boundary=x"), key];
    let answer = client.post("/v1/chat/completions", &two_types, plain.clone()).await;
    assert_eq!((answer.status.as_u16(), code_of(&answer)), (400, "ambiguous_content_type".to_owned()));
    let compressed = [JSON, ("content-encoding", "gzip"), key];
    let answer = client.post("/v1/other", &compressed, &b"\x1f\x8b\x08"[..]).await;
    assert_eq!((answer.status.as_u16(), code_of(&answer)), (400, "invalid_content_encoding".to_owned()));
    // Forms in which some servers read another model.
    let part = |header: &str, value: &str| format!("--x\r\n{header}\r\n\r\n{value}\r\n");
    let named_small = part("Content-Disposition: form-data; name=\"model\"", "small");
    let plain_type = "multipart/form-data; boundary=x";
    for (content_type, header) in [
        (plain_type, "Content-Disposition: form-data; name=\"x\"; name*0=\"model\""),
        (plain_type, "Content-Disposition: form-data; name=\"mo\"; name*0=\"del\""),
        (plain_type, "Content-Disposition: form-data; name=\"x\"; name\t=\"model\""),
        (plain_type, "Content-Disposition: form-data; name=\"x\"\r\nContent-Disposition : form-data; name=\"model\""),
        ("multipart/form-data; boundary=x; boundary*0=b", "Content-Disposition: form-data; name=\"x\""),
        ("multipart/form-data; boundary=\"x \"", "Content-Disposition: form-data; name=\"x\""),
        ("multipart/form-data; boundary=x; charset=utf-7", "Content-Disposition: form-data; name=\"+AG0AbwBkAGUAbA-\""),
    ] {
        let body = format!("{named_small}{}--x--\r\n", part(header, "big"));
        // A boundary with a blank at its end, which some servers take off, stands so in the body too.
        let body = if content_type.ends_with("x \"") { body.replace("--x", "--x ") } else { body };
        let answer = client.post("/v1/audio/transcriptions", &[("content-type", content_type), key], body).await;
        assert_eq!(
            (answer.status.as_u16(), code_of(&answer)),
            (400, "invalid_form".to_owned()),
            "{content_type}: {header}"
        );
    }
    assert_eq!((small.count(), big.count()), (0, 0), "nothing of it reached a server");
    let honest = ("content-type", "Application/JSON; charset=\"UTF-8\"");
    let answer = client.post("/v1/chat/completions", &[honest, key], plain).await;
    assert_eq!((answer.status.as_u16(), small.count()), (200, 1));
    // The model of a form counts like one of JSON.
    let named =
        |model: &str| form.replacen("small", model, 1).replacen("name=\"model\"\r\n\r\nbig", "name=\"x\"\r\n\r\ny", 1);
    for (model, status, count) in [("big", 404, 1), ("small", 200, 2)] {
        let headers = [("content-type", "multipart/form-data; boundary=x"), key];
        let answer = client.post("/v1/audio/transcriptions", &headers, named(model)).await;
        assert_eq!((answer.status.as_u16(), small.count()), (status, count), "{}", answer.text());
    }
    // Without a rule on the content, a body is left to the server.
    let open = Gateway::start(&format!(
        "backends:
  - {{name: x, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: renames, protocol: openai, model: other, endpoints: [{{url: \"{0}\"}}]}}
routes:
  - {{name: body, matches: [{{path: {{prefix: /body}}}}], filters: [{{cel: {{deny: \"has(request.body.forbidden)\"}}}}], backendRefs: [{{name: x}}]}}
  - {{name: model, matches: [{{path: {{prefix: /model}}}}], filters: [{{authorize: \"request.model == 'small'\"}}], backendRefs: [{{name: x}}]}}
  - {{name: denied, matches: [{{path: {{prefix: /denied}}}}], filters: [{{cel: {{deny: \"request.model == 'big'\"}}}}], backendRefs: [{{name: x}}]}}
  - {{name: renames, matches: [{{path: {{prefix: /renames}}}}], backendRefs: [{{name: renames}}]}}
  - {{name: open, backendRefs: [{{name: x}}]}}
",
        small.url()
    ))
    .await;
    let form = ("content-type", "multipart/form-data; boundary=x");
    let json = |path: &'static str, body: &str, status: u16| (path, JSON, body.to_owned(), status);
    for (path, content_type, body, status) in [
        json("/cars", r#"{"Model":"T","N":2}"#, 200),
        // If an expression reads the body or its model, or a backend renames the model, the body must be unambiguous.
        json("/body/cars", r#"{"Model":"T","N":2}"#, 400),
        json("/body/cars", r#"{"name":"T"}"#, 200),
        json("/model/x", r#"{"model":"small"}"#, 200),
        json("/model/x", r#"{"model":"big"}"#, 403),
        json("/model/x", r#"{"model":"small","Model":"big"}"#, 400),
        json("/denied/x", r#"{"model":"small"}"#, 200),
        json("/denied/x", r#"{"model":"big"}"#, 400),
        json("/renames/x", r#"{"model":"small"}"#, 200),
        json("/renames/x", r#"{"model":"small","Model":"big"}"#, 400),
        ("/renames/x", form, format!("{named_small}--x--\r\n"), 200),
        ("/renames/x", form, format!("{}--x--\r\n", part("Content-Disposition: form-data; name=\"file\"", "x")), 200),
    ] {
        let before = small.count();
        let answer = open.client().post(path, &[content_type], body.clone()).await;
        assert_eq!(answer.status.as_u16(), status, "{path}: {body}: {}", answer.text());
        assert_eq!(small.count() - before, usize::from(status == 200), "{path}: {body}");
    }
}

#[tokio::test]
async fn a_form_is_routed_and_renamed_by_its_model() {
    let (small, large) = (Upstream::fixed(200, "{}").await, Upstream::fixed(200, "{}").await);
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: small, protocol: openai, endpoints: [{{url: \"{}\"}}]}}
  - {{name: large, protocol: openai, model: ear-large-internal, endpoints: [{{url: \"{}\"}}]}}
routes:
  - {{name: small, matches: [{{path: {{prefix: /v1}}, model: ear-small}}], backendRefs: [{{name: small}}]}}
  - {{name: large, matches: [{{path: {{prefix: /v1}}, model: ear-large}}], backendRefs: [{{name: large}}]}}
  - {{name: any, matches: [{{path: {{prefix: /any}}}}], backendRefs: [{{name: large}}]}}
",
        small.url(),
        large.url()
    ))
    .await;
    let client = gateway.client();
    let part = |head: &str, value: &str| format!("--q7\r\nContent-Disposition: form-data; {head}\r\n\r\n{value}\r\n");
    // Bytes that look like the field are a file.
    let file = part("name=\"file\"; filename=\"a.wav\"", "RIFF\0\r\n\r\near-large\r\nname=\"model\"");
    let named = |model: &str| part("name=\"model\"", model);
    let form = ("content-type", "multipart/form-data; boundary=q7");
    for (path, model) in [
        ("/v1/audio/transcriptions", "ear-large"),
        ("/v1/images/edits", "ear-large"),
        ("/any/upload", "whatever"),
        ("/any/upload", "é"),
    ] {
        for parts in [[named(model), file.clone()], [file.clone(), named(model)]] {
            let body = parts.concat() + "--q7--\r\n";
            let answer = client.post(path, &[form], body.clone()).await;
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            let seen = large.last();
            assert_eq!(seen.body, body.replace(&named(model), &named("ear-large-internal")), "{path}");
            assert_eq!(seen.headers["content-length"].to_str().unwrap(), seen.body.len().to_string());
        }
    }
    let body = named("ear-small") + &file + "--q7--\r\n";
    assert_eq!(client.post("/v1/audio/transcriptions", &[form], body.clone()).await.status, 200);
    assert_eq!(small.last().body, body, "a form that names the server's own model passes as it is");
    let unknown = client.post("/v1/audio/transcriptions", &[form], named("ear") + "--q7--\r\n").await;
    assert_eq!(unknown.status, 404, "{}", unknown.text());
}

/// Code of an error, in any of the API shapes.
fn code_of(answer: &Answer) -> String {
    let error = answer.json();
    error["error"]["code"].as_str().or(error["code"].as_str()).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn every_answer_that_may_be_written_is_reserved() {
    let (small, _, gateway, key) = two_backends().await;
    let client = gateway.client();
    for (path, fields, status) in [
        ("/v1/chat/completions", r#""max_tokens":100,"n":128"#, 400),
        ("/v1/chat/completions", r#""max_tokens":1e9"#, 400),
        ("/v1/chat/completions", r#""max_tokens":18446744073709551615,"n":18446744073709551615"#, 400),
        ("/v1/chat/completions", r#""max_tokens":1,"n_predict":5000"#, 400),
        ("/v1/completions", r#""max_tokens":100,"best_of":11"#, 400),
        ("/v1/completions", r#""max_tokens":400,"prompt":["a","b","c"]"#, 400),
        ("/v1/completions", r#""max_tokens":200,"prompt":["a","b","c"]"#, 200),
        ("/v1/chat/completions", r#""max_tokens":1e2,"n":3"#, 200),
    ] {
        let body = format!(r#"{{"model":"small",{fields}}}"#);
        let answer = client.post(path, &[JSON, ("x-api-key", &key)], body.clone()).await;
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        if status == 400 {
            assert_eq!(answer.json()["error"]["code"], "tokens_exceed_limit", "{body}");
        }
        gateway.metric_becomes("spillway_requests_in_flight{http_route=\"small\"}", 0.0).await;
    }
    assert_eq!(small.count(), 2);
}

/// Bodies that are costly to read for their size: each of 19 MB, or as much as the gateway accepts of them.
fn heavy() -> Vec<(&'static str, String)> {
    let messages = r#""messages":[{"role":"user","content":"x"}]"#;
    vec![
        ("one text", format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{}"}}]}}"#, "a".repeat(19 << 20))),
        ("small values", format!(r#"{{"model":"m","x":[{}1],{messages}}}"#, "1,".repeat(9 << 20))),
        ("names", format!(r#"{{"model":"m",{}{messages}}}"#, r#""a":1,"#.repeat(3 << 20))),
        (
            "escapes",
            format!(r#"{{"model":"m","messages":[{{"role":"user","content":"{}"}}]}}"#, r"\u0061".repeat(3 << 20)),
        ),
        ("the model at the end", format!(r#"{{"x":"{}","model":"m"}}"#, "a".repeat(19 << 20))),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_are_read_beside_the_requests_of_others() {
    let upstream = Upstream::start(|seen| async move {
        let named = seen.body.len() < 1000 || memchr_of(&seen.body, b"\"model\":\"other\"");
        Some(reply(200, &[], format!("{} {named}", seen.body.len())))
    })
    .await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, protocol: openai, model: other, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: chat, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: x}}]}}]
",
        upstream.url()
    ))
    .await;
    let client = gateway.client();
    for (what, body) in heavy() {
        let length = body.len() + "other".len() - "m".len();
        let large = async { client.post("/v1/chat/completions", &[JSON], body).await };
        let small = async {
            for _ in 0..20 {
                assert_eq!(client.chat("m", &[]).await.status, 200, "beside {what}");
            }
        };
        let (large, ()) = tokio::join!(large, small);
        assert_eq!((large.status.as_u16(), large.text()), (200, format!("{length} true")), "{what}");
    }
    // Nesting is refused where it is too deep, whether it ends or not.
    let open = format!(r#"{{"model":"m","x":{}"#, "[".repeat(9 << 20));
    let closed = format!("{open}{}}}", "]".repeat(9 << 20));
    for nested in [open, closed] {
        let answer = client.post("/v1/chat/completions", &[JSON], nested).await;
        assert_eq!((answer.status.as_u16(), code_of(&answer)), (400, "invalid_json".to_owned()));
    }
    assert_eq!(gateway.metric(&refusals("busy")).await, 0.0);
    gateway.metric_becomes(HELD, 0.0).await;
}

fn memchr_of(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

#[tokio::test]
async fn a_list_of_models_holds_on_routes_that_read_no_body() {
    let upstream = Upstream::digest().await;
    let ((key, digest), (free, free_digest)) = (new_key(), new_key());
    let gateway = Gateway::start(&format!(
        "consumers:
  - {{name: a, models: [small], keys: [{{sha256: \"{digest}\"}}]}}
  - {{name: b, keys: [{{sha256: \"{free_digest}\"}}]}}
backends: [{{name: web, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: web, unknownCalls: pass, backendRefs: [{{name: web}}]}}]
",
        upstream.url()
    ))
    .await;
    let client = gateway.client();
    let form =
        |model: &str| format!("--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b--\r\n");
    let named = |model: &str| format!("{{\"model\":\"{model}\"}}");
    let multipart = ("content-type", "multipart/form-data; boundary=b");
    let (gzip, compress) = (("content-encoding", "gzip"), ("content-encoding", "compress"));
    let (identity, url_encoded) = (("content-encoding", "identity"), "application/x-www-form-urlencoded");
    let refused = "model_not_found";
    for (path, headers, body, status, code) in [
        ("/api/chat", [JSON, identity], named("small"), 200, ""),
        ("/api/chat", [JSON, identity], named("big"), 404, refused),
        ("/api/chat", [("content-type", "text/plain"), identity], named("big"), 404, refused),
        ("/api/chat", [multipart, identity], form("small"), 200, ""),
        ("/api/chat", [multipart, identity], form("big"), 404, refused),
        ("/api/chat", [JSON, identity], "{\"Model\":\"big\"}".to_owned(), 400, "ambiguous_parameter"),
        ("/api/chat", [JSON, gzip], "packed".to_owned(), 400, "invalid_content_encoding"),
        ("/api/chat", [JSON, compress], "packed".to_owned(), 415, "unsupported_content_encoding"),
        ("/api/chat", [("content-type", url_encoded), identity], "model=big".to_owned(), 400, "unsupported_form"),
        ("/upload", [("content-type", "image/png"), identity], "\u{89}PNG".to_owned(), 200, ""),
        ("/upload", [JSON, identity], "{\"a\":1}".to_owned(), 200, ""),
        ("/upload", [JSON, identity], String::new(), 200, ""),
        ("/v1/chat/completions", [JSON, identity], named("small"), 200, ""),
        ("/v1/chat/completions", [JSON, identity], named("big"), 404, refused),
        ("/v1/chat/completions", [JSON, identity], "{}".to_owned(), 404, refused),
    ] {
        let before = upstream.count();
        let answer = client.post(path, &[("x-api-key", &key), headers[0], headers[1]], body.clone()).await;
        assert_eq!(answer.status, status, "{path} {headers:?} {body}: {}", answer.text());
        assert!(status == 200 || code_of(&answer) == code, "{path} {headers:?} {body}: {}", answer.text());
        assert_eq!(upstream.count() - before, usize::from(status == 200), "{path} {headers:?} {body}");
        let answer = client.post(path, &[("x-api-key", &free), headers[0], headers[1]], body.clone()).await;
        assert_eq!(answer.status, 200, "a caller without a list: {path} {headers:?} {body}");
    }
}

#[tokio::test]
async fn a_compressed_body_is_read_where_it_must_be_and_passes_as_it_came_elsewhere() {
    let upstream = Upstream::fixed(200, "reached").await;
    let url = upstream.url();
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: ai, protocol: openai, model: theirs, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: web, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - {{name: big, matches: [{{path: {{prefix: /v1}}, model: big}}], backendRefs: [{{name: ai}}], limits: {{maxBody: 2MiB}}}}
  - {{name: ai, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: ai}}], limits: {{maxBody: 100KiB}}}}
  - {{name: web, matches: [{{path: {{prefix: /web}}}}], backendRefs: [{{name: web}}]}}
"
    ))
    .await;
    let client = gateway.client();
    let plain = r#"{"model":"ours","messages":[{"role":"user","content":"hello"}]}"#;
    let renamed = plain.replace("ours", "theirs");
    for coding in ["gzip", "deflate", "br", "zstd"] {
        let body = encoded(coding, plain.as_bytes());
        let headers = [("content-encoding", coding), ("content-digest", "sha-256=:AAAA:"), JSON];
        for request in [
            client.request("POST", "/v1/chat/completions", &headers, body.clone()),
            client.chunked("/v1/chat/completions", &headers, body.chunks(7).map(Bytes::copy_from_slice).collect()),
        ] {
            let answer = client.send(request).await;
            assert_eq!(answer.status, 200, "{coding}: {}", answer.text());
            let seen = upstream.last();
            assert_eq!(seen.body, renamed, "{coding}");
            assert_eq!(seen.headers["content-length"], renamed.len().to_string());
            for gone in ["content-encoding", "content-digest"] {
                assert!(!seen.headers.contains_key(gone), "{coding} {gone}");
            }
        }
        // Nothing there depends on the body.
        assert_eq!(client.post("/web", &headers, body.clone()).await.status, 200);
        let seen = upstream.last();
        assert_eq!((&seen.body[..], &seen.headers["content-encoding"]), (&body[..], &coding.parse().unwrap()));
        assert!(seen.headers.contains_key("content-digest"));
        // The limit of a route is that of the decoded body, which may be of another route's size.
        let long = format!("{{\"model\":\"MODEL\",\"prompt\":\"{}\"}}", "x".repeat(1 << 20));
        for (model, status) in [("ours", 413), ("big", 200)] {
            let body = encoded(coding, long.replace("MODEL", model).as_bytes());
            assert!(body.len() < 50_000, "{}", body.len());
            let answer = client.post("/v1/completions", &headers, body).await;
            assert_eq!(answer.status, status, "{coding} {model}: {}", answer.text());
        }
        let bomb = encoded(coding, &vec![b' '; 40 << 20]);
        let answer = client.post("/v1/completions", &headers, bomb).await;
        assert_eq!((answer.status.as_u16(), code_of(&answer).as_str()), (413, "request_too_large"), "{coding}");
        let before = upstream.count();
        let answer = client.post("/v1/completions", &headers, &b"\xff\xffno coding at all"[..]).await;
        assert_eq!(code_of(&answer), "invalid_content_encoding", "{coding}: {}", answer.text());
        assert_eq!((answer.status.as_u16(), upstream.count()), (400, before));
    }
    for coding in ["compress", "gzip, br", "aes128gcm"] {
        let answer = client.post("/v1/completions", &[("content-encoding", coding), JSON], plain).await;
        assert_eq!((answer.status.as_u16(), code_of(&answer).as_str()), (415, "unsupported_content_encoding"));
        assert_eq!(answer.header("accept-encoding"), "gzip, deflate, br, zstd");
    }
    held(&gateway, 0.0).await;
}
