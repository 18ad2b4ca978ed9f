//! Paths that servers read differently: no spelling but the plain one passes a closed route, with real servers as the
//! readers. `encodedSlashes` passes what a server needs; a model's id may have a slash.

use std::net::SocketAddr;
use std::process::Command;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use spillway_tests::{
    Gateway, PATIENCE, PathReader, Upstream, binary, http2_over, new_key, reply, whole, whole_answer,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Characters between two names that a reader could take for a slash, or for none.
const BETWEEN: [&str; 38] = [
    "%2f",
    "%2F",
    "%2f%2f",
    "/%2f",
    "%2f/",
    "%5c",
    "%5C",
    "\\",
    "%252f",
    "%25%32%66",
    "%%32%66",
    "%u002f",
    "%c0%af",
    "%c0%2f",
    "%e0%80%af",
    "%ef%bc%8f",
    "/.%2f",
    "/%2e/",
    "%2f.%2f",
    "/x/..%2f",
    "/x%2f../",
    "/x%2f..%2f",
    "/;/",
    "/;x/",
    ";/",
    ";x=y/",
    "%3b/",
    "/.;/",
    "/x/..;/",
    "%00/",
    "/%00",
    "%0a/",
    "%09/",
    "/%20",
    "%20/",
    "//",
    "/./",
    "./",
];

/// Prefix and suffix around a whole path.
const AROUND: [(&str, &str); 16] = [
    ("", ""),
    ("/", ""),
    ("/x/..", ""),
    ("/x/..;", ""),
    ("/x%2f..", ""),
    ("/x/%2e%2e", ""),
    ("/x/%252e%252e", ""),
    ("/%2f", ""),
    ("/;", ""),
    ("", "%00"),
    ("", "%20"),
    ("", ";x"),
    ("", "%3fx"),
    ("", "%23x"),
    ("", "."),
    ("", "%2f"),
];

/// Spellings of `/FIRST/SECOND` other than the plain one.
fn spellings(first: &str, second: &str) -> Vec<String> {
    let (head, tail) = first.split_at(1);
    let escaped = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
    let twice = |text: &str| text.bytes().map(|b| format!("%25{b:02x}")).collect::<String>();
    let names = [
        first.to_owned(),
        format!("{}{tail}", escaped(head)),
        format!("{}{tail}", twice(head)),
        format!("%u00{:02x}{tail}", head.as_bytes()[0]),
    ];
    let mut all = Vec::new();
    for name in &names {
        for between in BETWEEN {
            all.push(format!("/{name}{between}{second}"));
        }
        for (before, behind) in AROUND {
            all.push(format!("{before}/{name}/{second}{behind}"));
        }
    }
    all.push(format!("{}{}", escaped("/"), escaped(&format!("{first}/{second}"))));
    all.push(format!("/{}", escaped(&format!("{first}/{second}"))));
    all.retain(|path| *path != format!("/{first}/{second}"));
    all
}

/// Status and body of a request whose target is sent unchanged.
async fn ask(address: SocketAddr, method: &str, target: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let head = format!("{method} {target} HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n{headers}");
    let _ = stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{body}").as_bytes()).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time");
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, text)
}

async fn gateway(url: &str, key_digest: &str) -> Gateway {
    let yaml = format!(
        "listeners:
  - {{name: plain, address: \"127.0.0.1:0\"}}
  - {{name: h2c, address: \"127.0.0.1:0\", protocol: h2c}}
consumers: [{{name: c, models: [small], keys: [{{sha256: \"{key_digest}\"}}]}}]
backends:
  - {{name: web, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: model, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - name: chat
    matches: [{{path: {{exact: /v1/chat/completions}}}}]
    filters: [{{rateLimit: {{by: consumer, requests: 1/d, burst: 1}}}}]
    backendRefs: [{{name: model}}]
  - {{name: v1, unknownCalls: pass, matches: [{{path: {{prefix: /v1}}}}], backendRefs: [{{name: model}}]}}
  - {{name: admin, unknownCalls: pass, matches: [{{path: {{prefix: /admin}}}}], backendRefs: [{{name: web}}]}}
  - {{name: web, authentication: none, backendRefs: [{{name: web}}]}}
"
    );
    Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await
}

#[tokio::test]
async fn no_spelling_but_the_plain_one_reaches_what_is_closed() {
    let (key, digest) = new_key();
    let mut read_otherwise = 0;
    for reader in [PathReader::nginx().await, PathReader::asgi().await] {
        let gateway = gateway(&reader.url, &digest).await;
        let address = gateway.listener("plain");
        let server: SocketAddr = reader.url.trim_start_matches("http://").parse().unwrap();
        let shown = format!("x-api-key: {key}\r\n");
        let (status, answer) = ask(address, "GET", "/admin/keys", &shown, "").await;
        assert!(status == 200 && answer.contains("SECRET"), "with a key: {answer}");
        assert_eq!(ask(address, "GET", "/admin/keys", "", "").await.0, 401);
        assert_eq!(ask(address, "GET", "/page?a=%2f..%5c%00", "", "").await.0, 200, "a query is no path");
        let mut h2 = http2_over(TcpStream::connect(gateway.listener("h2c")).await.unwrap()).await;
        for path in spellings("admin", "keys") {
            read_otherwise += usize::from(ask(server, "GET", &path, "", "").await.1.contains("SECRET"));
            for target in [path.clone(), format!("http://a.test{path}"), format!("{path}?x=/admin/keys")] {
                let (status, answer) = ask(address, "GET", &target, "", "").await;
                assert!(!answer.contains("SECRET"), "{target} reaches {}: {status}", reader.url);
            }
            let Ok(request) = Request::get(format!("http://a.test{path}")).body(Full::<Bytes>::default()) else {
                continue;
            };
            h2.ready().await.unwrap();
            let answer = whole_answer(h2.send_request(request).await.unwrap()).await;
            assert!(!answer.text().contains("SECRET"), "{path} by HTTP/2: {}", answer.status);
        }
    }
    // Proof that the servers alone serve other spellings: without it nothing would have been tested.
    assert!(read_otherwise > 20, "{read_otherwise} spellings of a closed path were served");
}

#[tokio::test]
async fn no_spelling_passes_round_a_limit_or_a_list_of_models() {
    let (key, digest) = new_key();
    let reader = PathReader::asgi().await;
    let gateway = gateway(&reader.url, &digest).await;
    let address = gateway.listener("plain");
    let headers = format!("x-api-key: {key}\r\ncontent-type: application/json\r\n");
    let body = |model: &str| format!("{{\"model\":\"{model}\",\"messages\":[]}}");
    let chat = async |path: &str, model: &str| ask(address, "POST", path, &headers, &body(model)).await;
    assert_eq!(chat("/v1/chat/completions", "small").await.0, 200);
    assert_eq!(chat("/v1/chat/completions", "small").await.0, 429, "the limit of the route");
    assert_eq!(chat("/v1/other", "big").await.0, 404, "a model of others");
    let mut all = spellings("v1", "chat/completions");
    all.extend(spellings("v1/chat", "completions"));
    for path in all {
        for model in ["small", "big"] {
            let (status, answer) = chat(&path, model).await;
            assert!(!answer.contains("answered"), "{path} answers for {model}: {status}");
        }
    }
}

#[tokio::test]
async fn no_spelling_changes_what_a_server_is_told_or_which_server_it_is() {
    let upstream = Upstream::start(|seen| async move {
        let role = seen.headers.get("x-role").map(|role| role.to_str().unwrap().to_owned());
        Some(reply(200, &[], format!("SERVED {} as {}", seen.path, role.unwrap_or_default())))
    })
    .await;
    let yaml = format!(
        "backends:
  - {{name: b, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: other, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - name: guests
    matches: [{{path: {{prefix: /guest}}}}]
    filters: [{{requestHeaders: {{set: {{x-role: guest}}}}}}]
    backendRefs: [{{name: b}}]
  - name: colon
    matches: [{{path: {{prefix: \"/guest:of\"}}}}]
    filters: [{{requestHeaders: {{set: {{x-role: guest}}}}}}]
    backendRefs: [{{name: b}}]
  - name: same
    matches: [{{path: {{prefix: /same}}}}]
    filters: [{{requestHeaders: {{set: {{x-role: staff}}}}}}]
    backendRefs: [{{name: b}}]
  - name: elsewhere
    matches: [{{path: {{prefix: /elsewhere}}}}]
    filters: [{{requestHeaders: {{set: {{x-role: staff}}}}}}]
    backendRefs: [{{name: other}}]
  - name: answers
    matches: [{{path: {{prefix: /answers}}}}]
    filters: [{{requestHeaders: {{set: {{x-role: staff}}}}}}, {{responseHeaders: {{set: {{x-answer: other}}}}}}]
    backendRefs: [{{name: b}}]
  - {{name: rest, filters: [{{requestHeaders: {{set: {{x-role: staff}}}}}}], backendRefs: [{{name: b}}]}}
",
        url = upstream.url()
    );
    let gateway = Gateway::start(&yaml).await;
    for (path, served) in [
        ("/guest/page", Some("as guest")),
        ("/guest/page;x", Some("as guest")),
        ("/guest:of/page", Some("as guest")),
        ("/page;x", Some("as staff")),
        ("/same;x/page", Some("as staff")),
        ("/guest;x/page", None),
        ("/guest%3Fx", None),
        ("/guest.", None),
        ("/guest%3Aof/page", None),
        ("/elsewhere;x/page", None),
        ("/answers;x/page", None),
    ] {
        let (status, answer) = ask(gateway.address, "GET", path, "", "").await;
        match served {
            Some(role) => assert!(status == 200 && answer.ends_with(role), "{path}: {answer}"),
            None => assert!(status == 400 && answer.contains("ambiguous_path"), "{path}: {status} {answer}"),
        }
    }
    // With encoded slashes the same is an error of the file.
    let passing = yaml.replace("{name: rest,", "{name: rest, encodedSlashes: pass,");
    let (taken, told) = check(&format!("listeners: [{{address: \"127.0.0.1:0\"}}]\n{passing}"));
    assert!(!taken, "{told}");
    for (path, is_error) in [("/guest", true), ("/elsewhere", true), ("/answers", true), ("/same", false)] {
        assert_eq!(told.contains(&format!("{path}%2Fx")), is_error, "{path}: {told}");
    }
}

fn check(yaml: &str) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("spillway.yaml");
    std::fs::write(&file, whole(yaml)).unwrap();
    let out = Command::new(binary()).arg("check").arg(&file).output().unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    (out.status.success(), told)
}

#[tokio::test]
async fn encoded_slashes_pass_as_they_came_where_the_file_says_so() {
    let upstream = Upstream::start(|seen| async move { Some(reply(200, &[], seen.path)) }).await;
    let url = upstream.url();
    let backends = format!("backends: [{{name: b, endpoints: [{{url: \"{url}\"}}]}}]");
    let start = async |listener: &str, routes: &str| {
        let yaml =
            format!("listeners: [{{name: l, address: \"127.0.0.1:0\"{listener}}}]\n{backends}\nroutes:\n{routes}");
        Gateway::start_in(tempfile::tempdir().unwrap(), &yaml).await
    };
    let routes = "  - {name: git, matches: [{path: {prefix: /api}}, {path: {prefix: /v1}}], encodedSlashes: pass, backendRefs: [{name: b}]}
  - {name: strict, matches: [{path: {prefix: /strict}}], encodedSlashes: refuse, backendRefs: [{name: b}]}
  - {name: npm, matches: [{path: {prefix: /npm}}], filters: [{urlRewrite: {replacePrefix: /r}}], backendRefs: [{name: b}]}
";
    let by_route = start("", routes).await;
    let by_listener = start(", encodedSlashes: pass", routes).await;
    for (path, route, listener) in [
        ("/api/projects/group%2Fname", Some("/api/projects/group%2Fname"), Some("/api/projects/group%2Fname")),
        ("/api/a%2fb%5cc?q=%2F", Some("/api/a%2fb%5cc?q=%2F"), Some("/api/a%2fb%5cc?q=%2F")),
        ("/npm/@scope%2fname", None, Some("/r/@scope%2fname")),
        ("/v1/files%2Fa", Some("/v1/files%2Fa"), Some("/v1/files%2Fa")),
        // The operation of a model API has checks of its own, on whatever route.
        ("/v1/chat%2Fcompletions", None, None),
        ("/v1%2Fchat/completions", None, None),
        ("/strict/a%2fb", None, None),
        ("/api/a%2f..%2fb", None, None),
        ("/api/a%2f%2e%2e/b", None, None),
        ("/api/%2fevil.test", None, None),
        ("/npm/%2fevil.test", None, None),
        ("/npm%2f/evil.test", None, None),
        ("/api/a%252fb", None, None),
        ("/api/a%00", None, None),
        ("/api/a%20b", Some("/api/a%20b"), Some("/api/a%20b")),
    ] {
        for (gateway, expected) in [(&by_route, route), (&by_listener, listener)] {
            let (status, answer) = ask(gateway.address, "GET", path, "", "").await;
            match expected {
                Some(seen) => assert!(status == 200 && answer.ends_with(seen), "{path}: {answer}"),
                None => assert!(
                    (status == 400 && answer.contains("ambiguous_path")) || status == 404,
                    "{path}: {status} {answer}"
                ),
            }
        }
    }
    assert_eq!(ask(by_route.address, "GET", "/npm/@scope%2fname", "", "").await.0, 400);

    // A configuration in which a request could bypass another route is refused at start.
    let (_, digest) = new_key();
    let callers = format!("consumers: [{{name: c, keys: [{{sha256: \"{digest}\"}}]}}]\n{backends}");
    let listeners = "listeners: [{address: \"127.0.0.1:0\"}]\n";
    for (routes, sound) in [
        (
            "  - {name: admin, matches: [{path: {prefix: /admin}}], backendRefs: [{name: b}]}\n  - {name: web, authentication: none, encodedSlashes: pass, backendRefs: [{name: b}]}\n",
            false,
        ),
        (
            "  - {name: admin, matches: [{path: {prefix: /admin}}], backendRefs: [{name: b}]}\n  - {name: web, encodedSlashes: pass, backendRefs: [{name: b}]}\n",
            true,
        ),
        (
            "  - {name: admin, matches: [{path: {prefix: /admin}}], backendRefs: [{name: b}]}\n  - {name: git, authentication: none, matches: [{path: {prefix: /git}}], encodedSlashes: pass, backendRefs: [{name: b}]}\n",
            true,
        ),
    ] {
        let (taken, told) = check(&format!("{listeners}{callers}\nroutes:\n{routes}"));
        assert_eq!(taken, sound, "{routes}{told}");
        assert!(sound || (told.contains("encodedSlashes") && told.contains("/admin%2Fx")), "{told}");
    }
}

#[tokio::test]
async fn an_id_of_a_model_may_have_a_slash_in_any_spelling() {
    let upstream = Upstream::fixed(200, "REACHED").await;
    let url = upstream.url();
    let yaml = format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}]
routes:
  - name: r
    matches: [{{path: {{prefix: /v1}}, model: lab/mini}}, {{path: {{prefix: /v1}}, model: \"modèle 1\"}}, {{path: {{prefix: /v1}}}}]
    backendRefs: [{{name: b}}]
"
    );
    let gateway = Gateway::start(&yaml).await;
    for (path, id) in [
        ("/v1/models/lab/mini", Some("lab/mini")),
        ("/v1/models/lab%2Fmini", Some("lab/mini")),
        ("/v1/models/lab%2fmini?x=1", Some("lab/mini")),
        ("/v1/models/mod%C3%A8le%201", Some("modèle 1")),
        ("/v1/models/mod%c3%a8le%201", Some("modèle 1")),
        ("/v1/models/lab%252Fmini", None),
        ("/v1/models/..%2f..%2fadmin", None),
        ("/v1/models/lab%00", None),
        ("/v1/models/%ff", None),
        ("/v1/models/a;b%3fc%20", None),
    ] {
        let (status, answer) = ask(gateway.address, "GET", path, "", "").await;
        match id {
            Some(id) => assert!(status == 200 && answer.contains(&format!("\"id\":\"{id}\"")), "{path}: {answer}"),
            None => assert!(status == 404 && answer.contains("model_not_found"), "{path}: {answer}"),
        }
    }
    // Other operations on the same route, and other methods, are left to the server.
    assert_eq!(ask(gateway.address, "DELETE", "/v1/models/lab%2Fmini", "", "").await.0, 400);
    assert_eq!(ask(gateway.address, "GET", "/v1/files/lab%2Fmini", "", "").await.0, 400);
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn a_host_is_matched_whole_whatever_is_put_around_it() {
    let upstream = Upstream::start(|seen| async move {
        let host = seen.headers.get("host").map(|host| host.to_str().unwrap().to_owned());
        Some(reply(200, &[], format!("OPEN {}", host.unwrap_or_default())))
    })
    .await;
    let (_, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: c, keys: [{{sha256: \"{digest}\"}}]}}]
backends: [{{name: b, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - {{name: closed, hostnames: [secret.test, \"*.secret.test\", \"2001:db8::1\"], backendRefs: [{{name: b}}]}}
  - {{name: open, authentication: none, backendRefs: [{{name: b}}]}}
",
        upstream.url()
    ))
    .await;
    let long = format!("{}secret.test", "a.".repeat(140));
    // Whether a server may take each host for the closed one; if so, no caller without a key passes.
    for (host, closed) in [
        ("secret.test", true),
        ("SECRET.Test:8080", true),
        ("secret.test.", true),
        ("secret.test.:80", true),
        ("x.secret.test", true),
        ("y.x.Secret.test:1", true),
        ("[2001:db8::1]", true),
        ("[2001:0DB8:0::0:1]:80", true),
        ("secret.test..", true),
        ("x..secret.test", true),
        (".secret.test", true),
        (&long, true),
        ("user@secret.test", true),
        ("open.test@secret.test", true),
        ("secret.test@open.test", true),
        ("secret.test:80:80", true),
        ("secret.test/x", true),
        ("secret%2etest", true),
        ("secret.test#", true),
        ("secret.test, open.test", true),
        ("secret.test\r\nHost: open.test", true),
        ("open.test\r\nHost: secret.test", true),
        ("secret.test.evil.test", false),
        ("x.secret.test.evil.test", false),
        ("notsecret.test", false),
        ("secret.testing", false),
        ("open.test", false),
    ] {
        let head = format!("GET /x HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time").unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert_eq!(answer.contains("OPEN"), !closed, "{host:?}: {answer}");
    }
    for target in
        ["http://secret.test/x", "http://SECRET.test:80/x", "http://open.test@secret.test/x", "//secret.test/x"]
    {
        let head = format!("GET {target} HTTP/1.0\r\nConnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time").unwrap();
        // `//secret.test/x` is a path.
        assert_eq!(answer.windows(5).any(|w| w == b"OPEN "), target.starts_with("//"), "{target}");
    }
}

#[tokio::test]
async fn an_expression_over_the_path_is_evaded_by_no_spelling() {
    let upstream = Upstream::start(|seen| async move { Some(reply(200, &[], format!("OPEN {}", seen.path))) }).await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - name: ruled
    matches: [{{path: {{prefix: /x}}}}]
    filters: [{{authorize: \"!(request.path.startsWith('/x/secret:all') || request.path.matches('/x/keys(/|$)'))\"}}]
    backendRefs: [{{name: b}}]
  - name: slashes
    matches: [{{path: {{prefix: /s}}}}]
    encodedSlashes: pass
    filters: [{{authorize: \"!request.path.startsWith('/s/keys/')\"}}]
    backendRefs: [{{name: b}}]
  - name: hosts
    matches: [{{path: {{prefix: /hosts}}}}]
    filters: [{{cel: {{deny: \"request.host == 'secret.test'\"}}}}]
    backendRefs: [{{name: b}}]
  - {{name: open, backendRefs: [{{name: b}}]}}
",
        upstream.url()
    ))
    .await;
    for (path, status) in [
        ("/x/page", 200),
        ("/x/page%20of%20mine/a%40b", 200),
        ("/x/keys", 403),
        ("/x/%6beys", 403),
        ("/x//keys/", 403),
        ("/x/secret:all", 403),
        ("/x/secret%3Aall", 403),
        ("/x/secret%3aall", 403),
        ("/x/keys;a", 400),
        ("/x/keys%3fa", 400),
        ("/x/keys.", 400),
        ("/x/keys%2f", 400),
        ("/x;a/keys", 400),
        ("/y/keys;a", 200),
        ("/s/page/a", 200),
        ("/s/keys/a", 403),
        ("/s/keys%2Fa", 400),
        ("/s/keys%5ca", 400),
    ] {
        let (found, answer) = ask(gateway.address, "GET", path, "", "").await;
        assert_eq!(found, status, "{path}: {answer}");
    }
    for (host, status) in [("open.test", 200), ("secret.test", 400), ("SECRET.test:8080", 400), ("secret.test.", 400)] {
        let head = format!("GET /hosts HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        let mut stream = TcpStream::connect(gateway.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an answer in time").unwrap();
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{host}: {answer}");
    }
}

#[tokio::test]
async fn the_list_of_models_is_no_request_that_spills() {
    let upstream = Upstream::fixed(200, "REACHED").await;
    let url = upstream.url();
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: b, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
  - {{name: other, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}
routes:
  - name: r
    matches: [{{path: {{prefix: /v1}}}}]
    filters: [{{rateLimit: {{by: clientAddress, requests: 1/d, burst: 1, onExceeded: spill}}}}]
    backendRefs: [{{name: b}}]
    whenSaturated: {{spillTo: other}}
"
    ))
    .await;
    assert_eq!(ask(gateway.address, "GET", "/v1/models", "", "").await.0, 200);
    for path in ["/v1/models", "/v1/models/a", "/v1/models/..%2f..%2fadmin"] {
        let (status, answer) = ask(gateway.address, "GET", path, "", "").await;
        assert!(status == 429 && !answer.contains("REACHED"), "{path}: {answer}");
    }
    assert_eq!(upstream.count(), 0);
}

#[tokio::test]
async fn the_api_is_known_behind_a_prefix_that_is_rewritten() {
    let upstream = Upstream::fixed(200, "REACHED").await;
    let url = upstream.url();
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: openai, model: lab/mini, endpoints: [{{url: \"{url}\"}}]}}]
routes:
  - name: team
    matches: [{{path: {{prefix: /team-a}}}}]
    authentication: none
    filters: [{{urlRewrite: {{replacePrefix: /}}}}]
    backendRefs: [{{name: b}}]
  - name: llm
    matches: [{{path: {{prefix: /llm}}, model: gpt}}]
    authentication: none
    filters: [{{urlRewrite: {{replacePrefix: /v1}}}}]
    backendRefs: [{{name: b}}]
  - name: rest
    matches: [{{path: {{prefix: /llm}}}}]
    authentication: none
    filters: [{{urlRewrite: {{replacePrefix: /v1}}}}]
    backendRefs: [{{name: b}}]
  - name: encoded
    matches: [{{path: {{prefix: /encoded}}}}]
    authentication: none
    encodedSlashes: pass
    filters: [{{urlRewrite: {{replacePrefix: /}}}}]
    backendRefs: [{{name: b}}]
  - name: closed
    matches: [{{path: {{prefix: /closed}}}}]
    filters: [{{urlRewrite: {{replacePrefix: /v1}}}}]
    authentication: optional
    access: {{consumers: [nobody]}}
    backendRefs: [{{name: b}}]
consumers: [{{name: nobody, keys: [{{sha256: \"{key}\"}}]}}]
",
        key = "0".repeat(64)
    ))
    .await;
    let is_openai = |answer: &str| answer.contains("\"error\":{") && !answer.contains("requestId");
    for prefix in ["/team-a/v1", "/llm", "/encoded/v1"] {
        for path in ["/models", "/models/lab%2Fmini", "/models/lab/mini"] {
            let (status, answer) = ask(gateway.address, "GET", &format!("{prefix}{path}"), "", "").await;
            assert!(status == 200 && answer.contains("\"id\":\"lab/mini\""), "{prefix}{path}: {answer}");
        }
        let (status, answer) = ask(gateway.address, "GET", &format!("{prefix}/models/other"), "", "").await;
        assert!(status == 404 && answer.contains("model_not_found") && is_openai(&answer), "{prefix}: {answer}");
        let target = format!("{prefix}/chat/completions");
        let (status, answer) = ask(gateway.address, "POST", &target, "content-type: text/plain\r\n", "{not json").await;
        assert!(status == 400 && is_openai(&answer), "{prefix}: {status} {answer}");
    }
    assert_eq!(upstream.count(), 0);
    let (status, _) = ask(gateway.address, "POST", "/llm/chat/completions", "", "{\"model\":\"gpt\"}").await;
    assert_eq!((status, upstream.last().path.as_str()), (200, "/v1/chat/completions"));
    // What is no operation there either is left to the server.
    assert_eq!(ask(gateway.address, "GET", "/team-a/other", "", "").await.0, 200);
    // A second reading that is an operation behind the prefix is refused as it is without one.
    let before = upstream.count();
    let (status, _) = ask(gateway.address, "POST", "/encoded/v1%2Fchat/completions", "", "{not json").await;
    assert_eq!((status, upstream.count()), (400, before));
    // A closed route is answered as none.
    let (status, answer) = ask(gateway.address, "POST", "/closed/chat/completions", "", "{}").await;
    assert!(status == 404 && answer.contains("no_route") && !is_openai(&answer), "{answer}");
}

#[tokio::test]
async fn a_path_is_rewritten_by_an_expression_to_one_that_has_one_reading() {
    let upstream = Upstream::start(|seen| async move { Some(reply(200, &[], format!("REACHED {}", seen.path))) }).await;
    let url = upstream.url();
    let gateway = Gateway::start(&format!(
        "backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{url}\"}}]}}]
routes:
  - name: teams
    matches: [{{path: {{prefix: /teams}}}}]
    filters: [{{urlRewrite: {{path: {{regex: \"^/teams/([^/]+)/(.*)$\", replacement: '/\\2'}}}}}}, {{requestHeaders: {{set: {{x-a: b}}}}}}]
    backendRefs: [{{name: b}}]
  - name: joined
    matches: [{{path: {{prefix: /joined}}}}]
    filters: [{{urlRewrite: {{path: {{regex: \"-\", replacement: ''}}}}}}]
    backendRefs: [{{name: b}}]
"
    ))
    .await;
    for (path, seen) in [
        ("/teams/red/files?q=1", Some("/files?q=1")),
        ("/teams/red/a%20b", Some("/a%20b")),
        ("/teams", Some("/teams")),
        ("/joined/a-b-c", Some("/joined/ab-c")),
        ("/joined/.-./x", None),
        ("/joined/%25-41", None),
        ("/joined/%-2e", None),
        ("/joined/..-;/x", None),
        // Another reading (`/teams/red/files`) is another one for the expression.
        ("/teams/red;x/files", None),
    ] {
        let (status, answer) = ask(gateway.address, "GET", path, "", "").await;
        match seen {
            Some(seen) => assert!(status == 200 && answer.ends_with(&format!("REACHED {seen}")), "{path}: {answer}"),
            None => assert!(status == 400 && answer.contains("ambiguous_path"), "{path}: {status} {answer}"),
        }
    }
    // The operation is the one that the servers see.
    let (status, answer) = ask(gateway.address, "POST", "/teams/red/v1/chat/completions", "", "{not json").await;
    assert!(status == 400 && answer.contains("\"error\":{") && !answer.contains("requestId"), "{answer}");
}
