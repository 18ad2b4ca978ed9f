//! `spillway eval`: expressions before requests from files, with the value that the gateway has for them.

use std::path::Path;
use std::process::Command;

use spillway_tests::{Gateway, Upstream, binary, eventually, new_key};

const CHAT: &str = "POST /v1//chat/completions?a=b HTTP/1.1
host: Api.Example.com:8443
x-team: blue
content-type: application/json

{\"model\": \"gpt-x\", \"messages\": [1, 2, 3]}
";

fn eval(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(binary()).arg("eval").args(arguments).current_dir(folder).output().unwrap();
    (out.status.code(), String::from_utf8([out.stdout, out.stderr].concat()).unwrap())
}

#[test]
fn an_expression_has_the_value_and_type_of_the_request_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    write("chat.http", CHAT);
    write("crlf.http", &CHAT.replace('\n', "\r\n"));
    write("late.http", "HTTP/1.1 503 Service Unavailable\nretry-after: 5\n\nbusy");
    write("served.json", r#"{"backend": "chat-v2", "version": "candidate", "usage": {"promptTokens": 7}}"#);
    write("acme.json", r#"{"name": "acme", "scopes": ["chat"], "claims": {"plan": "pro"}}"#);
    for (arguments, code, says) in [
        (&["request.method", "--request", "chat.http"][..], 0, "\"POST\" (string)\n"),
        (&["request.query + request.headers['x-team']", "--request", "crlf.http"], 0, "\"a=bblue\" (string)\n"),
        (&["request.host", "--request", "chat.http"], 0, "\"api.example.com\" (string)\n"),
        (
            &["request.model == 'gpt-x' && size(request.body.messages) > 2", "--request", "chat.http"],
            0,
            "true (bool)\n",
        ),
        (&["consumer.name + claims.plan", "--consumer", "acme.json"], 0, "\"acmepro\" (string)\n"),
        (&["[route, request.clientAddress]", "--route", "r", "--client", "::1"], 0, "[\"r\",\"::1\"] (list)\n"),
        (&["tls.used", "--tls"], 0, "true (bool)\n"),
        (&["response.headers['retry-after'] + backend", "--response", "late.http"], 0, "\"5\" (string)\n"),
        (
            &["[response.status, usage.promptTokens]", "--response", "late.http", "--served", "served.json"],
            0,
            "[503,7] (list)\n",
        ),
        (&["backend", "--place", "request-header", "--served", "served.json"], 0, "\"chat-v2\" (string)\n"),
        (&["rollout.version", "--served", "served.json"], 0, "\"candidate\" (string)\n"),
        (&["usage.completionTokens", "--served", "served.json"], 1, "no value: "),
        (&["response.status"], 2, "`response` is not known in a filter"),
        (&["true", "--response", "acme.json"], 2, "acme.json: this is not an answer: "),
        (&["request.headers['x-none']"], 1, "no value: "),
        (&["claims.plan == 'pro'"], 1, "no value: "),
        (&["request.pth"], 2, "the expression: column 8: `request` has no `pth`; expected `method`, `path`,"),
        (&["request.model", "--when"], 2, "is not read yet when a route is chosen"),
        (&["true", "--request", "none.http"], 2, "none.http: No such file"),
        (&["true", "--request", "acme.json"], 2, "acme.json: this is not a request: "),
        (&["true", "--consumer", "chat.http"], 2, "chat.http: "),
    ] {
        let (ended, said) = eval(folder.path(), arguments);
        assert_eq!(ended, Some(code), "{arguments:?}: {said}");
        assert!(if code == 0 { said == says } else { said.contains(says) }, "{arguments:?}: {said}");
    }
    let form = "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--b--\r\n";
    write(
        "form.http",
        &format!(
            "POST /v1/audio/transcriptions HTTP/1.1\r\ncontent-type: multipart/form-data; boundary=b\r\n\r\n{form}"
        ),
    );
    write("path.http", "POST /v2/models/resnet/infer HTTP/1.1\nhost: a\n\n{\"inputs\": []}");
    write("twice.http", "POST /v1/chat/completions HTTP/1.1\nhost: a\n\n{\"model\": \"a\", \"model\": \"b\"}");
    for (file, code, says) in [
        ("form", 0, "\"whisper\" (string)\n"),
        ("path", 0, "\"resnet\" (string)\n"),
        ("twice", 2, "twice.http: the gateway refuses this request: "),
    ] {
        let (ended, said) = eval(folder.path(), &["request.model", "--request", &format!("{file}.http")]);
        assert!(ended == Some(code) && said.contains(says), "{file}: {ended:?} {said}");
    }
    write("packed.http", &CHAT.replace("x-team: blue", "content-encoding: gzip"));
    write("open.http", "GET / HTTP/1.1\nhost: a");
    write("dots.http", "GET /a/%2e%2e/b HTTP/1.1\nhost: a\n\n");
    for (file, says) in [("packed", "`content-encoding`"), ("open", "has no end"), ("dots", "the path `/a/%2e%2e/b`")] {
        let (ended, said) = eval(folder.path(), &["true", "--request", &format!("{file}.http")]);
        assert!(ended == Some(2) && said.contains(says), "{file}: {ended:?} {said}");
    }
}

/// Headers of requests and answers have the values that expressions make, and nothing else of a caller's takes their place.
#[tokio::test]
async fn headers_have_computed_values() {
    let upstream = Upstream::fixed(200, "{}").await;
    let (key, digest) = new_key();
    let gateway = Gateway::start(&format!(
        "authentication: {{apiKey: {{}}}}
consumers: [{{name: anna, tenant: north, keys: [{{sha256: \"{digest}\"}}]}}]
backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - name: r
    authentication: optional
    filters:
      - requestHeaders:
          set:
            x-user: {{value: \"consumer.name\"}}
            x-to: {{value: \"backend\"}}
            x-key: {{value: \"request.headers['authorization']\"}}
            x-size: {{value: \"size(request.body.list)\"}}
      - responseHeaders: {{set: {{x-of: {{value: \"route + '/' + string(response.status) + '/' + request.query\"}}}}}}
    backendRefs: [{{name: x}}]
",
        upstream.url()
    ))
    .await;
    let client = gateway.client();
    let told = || {
        let headers = upstream.last().headers;
        let text = |name| headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        ["x-user", "x-to", "x-key", "x-size"].map(text).join(" ")
    };
    let forged = [("x-user", "admin"), ("x-size", "0"), ("x-key", "a")];
    let answer = client.post("/?a=b", &forged, "").await;
    assert_eq!((told().as_str(), answer.header("x-of")), (" x  ", "r/200/a=b"));
    let credential = format!("Bearer {key}");
    let known = [("authorization", credential.as_str()), ("x-user", "admin")];
    let answer = client.post("/?%0d%0aset-cookie:a", &known, "{\"list\": [1, 2]}").await;
    assert_eq!((told().as_str(), answer.header("x-of")), ("anna x [redacted] 2", "r/200/%0d%0aset-cookie:a"));
    let refused = client.post("/", &[("authorization", "Bearer wrong")], "").await;
    assert_eq!((refused.status.as_u16(), refused.header("x-of")), (401, "r/401/"));
}

/// A copy is sent of the requests for which the condition holds, also where it reads the body.
#[tokio::test]
async fn copies_are_sent_where_the_condition_holds() {
    let (live, shadow) = (Upstream::fixed(200, "live").await, Upstream::fixed(200, "shadow").await);
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: live, endpoints: [{{url: \"{}\"}}]}}
  - {{name: shadow, endpoints: [{{url: \"{}\"}}]}}
routes:
  - name: r
    filters: [{{mirror: {{backend: shadow, when: \"request.body.list.exists(n, n == 7)\"}}}}]
    backendRefs: [{{name: live}}]
",
        live.url(),
        shadow.url()
    ))
    .await;
    let client = gateway.client();
    for (path, body) in [("/none", ""), ("/other", "{\"list\": [1]}"), ("/copied", "{\"list\": [7]}")] {
        assert_eq!(client.post(path, &[("content-type", "application/json")], body).await.text(), "live");
    }
    eventually("the copy", || async { (shadow.count() > 0).then_some(()) }).await;
    assert_eq!((shadow.count(), shadow.last().path.as_str()), (1, "/copied"));
}

/// A request takes what its cost says, and one of a caller who leaves it out takes one.
#[tokio::test]
async fn requests_take_what_they_cost() {
    let upstream = Upstream::fixed(200, "{}").await;
    let gateway = Gateway::start(&format!(
        "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
routes:
  - name: r
    filters: [{{rateLimit: {{by: clientAddress, requests: 10/h, cost: \"request.path == '/free' ? 0 : request.body.n\"}}}}]
    backendRefs: [{{name: x}}]
",
        upstream.url()
    ))
    .await;
    let client = gateway.client();
    let json = [("content-type", "application/json")];
    for (path, body, status, left) in [
        ("/", "{\"n\": 4}", 200, "6"),
        ("/", "{\"n\": 2.5}", 200, "3"),
        ("/", "{\"n\": -9}", 429, "3"),
        ("/", "{\"n\": 100}", 429, "3"),
        ("/", "{}", 429, "3"),
        ("/", "", 200, "2"),
        ("/", "{\"n\": 2}", 200, "0"),
        ("/", "{\"n\": 0}", 200, ""),
        ("/", "{\"n\": 1}", 429, "0"),
        ("/free", "{\"n\": 1}", 200, ""),
    ] {
        let answer = client.post(path, &json, body).await;
        let remaining = answer.header("x-ratelimit-remaining-requests");
        assert_eq!((answer.status.as_u16(), remaining), (status, left), "{path} {body}");
    }
}

/// A request spills where the condition holds, also where it reads the body.
#[tokio::test]
async fn requests_spill_where_the_condition_holds() {
    let (full, other) = (Upstream::fixed(503, "full").await, Upstream::fixed(200, "other").await);
    let gateway = Gateway::start(&format!(
        "backends:
  - {{name: full, endpoints: [{{url: \"{}\"}}], capacity: {{statuses: [503]}}}}
  - {{name: other, endpoints: [{{url: \"{}\"}}]}}
routes:
  - name: r
    backendRefs: [{{name: full}}]
    whenSaturated: {{spillTo: other}}
    spill: {{when: \"request.headers['x-plan'] == 'free' && !has(request.body.tools)\"}}
",
        full.url(),
        other.url()
    ))
    .await;
    let client = gateway.client();
    for (plan, body, status) in
        [("free", "{}", 200), ("paid", "{}", 503), ("free", "{\"tools\": []}", 503), ("free", "", 503)]
    {
        let answer = client.post("/", &[("x-plan", plan), ("content-type", "application/json")], body).await;
        assert_eq!(answer.status.as_u16(), status, "{plan} {body}: {}", answer.text());
    }
}

/// The gateway decides about a request as `eval` says.
#[tokio::test]
async fn the_gateway_decides_as_eval_says() {
    let upstream = Upstream::fixed(200, "{}").await;
    let folder = tempfile::tempdir().unwrap();
    for (n, expression) in [
        "request.path == '/a/b'",
        "request.path.endsWith('/b/')",
        "request.query.contains('x=1')",
        "'x-team' in request.headers && request.headers['x-team'] == 'blue, red'",
        "request.host == 'shop.test'",
        "request.headers['x-none'] == ''",
    ]
    .into_iter()
    .enumerate()
    {
        let gateway = Gateway::start(&format!(
            "backends: [{{name: x, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: r, matches: [{{when: \"{expression}\"}}], backendRefs: [{{name: x}}]}}]
",
            upstream.url()
        ))
        .await;
        let client = gateway.client();
        for target in ["/a/b", "/a//b?x=1", "/a/./b/?y=2", "/other"] {
            let headers = [("host", "SHOP.test:81"), ("x-team", "blue"), ("x-team", "red")];
            let answer = client.send(client.request("GET", target, &headers, "")).await;
            let text = format!("GET {target} HTTP/1.1\nhost: SHOP.test:81\nx-team: blue\nx-team: red\n\n");
            let file = folder.path().join(format!("{n}.http"));
            std::fs::write(&file, text).unwrap();
            let (code, said) = eval(folder.path(), &[expression, "--when", "--request", &format!("{n}.http")]);
            let holds = code == Some(0) && said == "true (bool)\n";
            assert_eq!(answer.status == 200, holds, "{expression} {target}: {} {said}", answer.status);
        }
    }
}
