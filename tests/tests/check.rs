//! `spillway check` refuses what `spillway serve` refuses, with the same words, apart from errors that need a socket,
//! a device or another process.

use std::path::Path;
use std::process::Command;

use spillway_tests::{Authority, Gateway, Upstream, binary, minilm, model, reply, with_template};

/// Configuration that both commands must refuse.
struct Bad {
    /// Words that both print.
    says: &'static str,
    yaml: String,
}

fn bad(says: &'static str, yaml: impl Into<String>) -> Bad {
    Bad { says, yaml: yaml.into() }
}

const LISTENER: &str = "listeners: [{address: \"127.0.0.1:0\"}]\n";
const ROUTE: &str = "routes: [{backendRefs: [{name: x}]}]\n";
const BACKEND: &str = "backends: [{name: x, endpoints: [{url: \"http://127.0.0.1:1\"}]}]\n";

/// Configuration of a route to one backend, with `more` appended.
fn with(more: &str) -> String {
    format!("{LISTENER}{BACKEND}{ROUTE}{more}\n")
}

/// Configuration with these keys in its backend.
fn backend(keys: &str) -> String {
    format!("{LISTENER}backends: [{{name: x, endpoints: [{{url: \"http://127.0.0.1:1\"}}], {keys}}}]\n{ROUTE}")
}

/// Configuration with these keys in its route.
fn route(keys: &str) -> String {
    format!("{LISTENER}{BACKEND}routes: [{{backendRefs: [{{name: x}}], {keys}}}]\n")
}

/// Configuration with these models, of which the first has the route.
fn models(models: &str, more: &str) -> String {
    format!("{LISTENER}models: [{models}]\nroutes: [{{backendRefs: [{{model: m}}]}}]\n{more}\n")
}

fn listener(keys: &str) -> String {
    format!("listeners: [{{address: \"127.0.0.1:0\", {keys}}}]\n{BACKEND}{ROUTE}")
}

/// Writes the files that the configurations name, good and bad ones.
fn files(folder: &Path) {
    let authority = Authority::default();
    let (one, other) = (authority.server(&["a.test"]), authority.server(&["b.test"]));
    one.write(folder, "one");
    other.write(folder, "other");
    authority.write(folder);
    let put = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    put("text", "no such thing");
    put("jwks.json", "{\"keys\": 1}");
    put("digests", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\n");
    put("notoken", "line\u{7}feed");
    with_template(&model(), &folder.join("template.gguf"), Some("{% for %}"));
}

fn all() -> Vec<Bad> {
    let chat = model();
    let chat = chat.display();
    let encoder = minilm();
    let encoder = encoder.display();
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    let issuer = |keys: &str| with(&format!("authentication: {{jwt: [{{issuer: \"https://id.test\", {keys}}}]}}"));
    vec![
        bad("did you mean `clientAddress`?", route("filters: [{rateLimit: {by: ip, requests: 1/s}}]")),
        bad("a server URL has no path", with("").replace("127.0.0.1:1", "127.0.0.1:1/v1")),
        bad(
            "the value has characters that no header may have",
            route("filters: [{respond: {headers: {x-a: \"a\\nb\"}}}]"),
        ),
        // The admin address.
        bad("needs `admin.token`", with("admin: {address: \"0.0.0.0:0\"}")),
        bad("UNSET_TOKEN", with("admin: {address: \"127.0.0.1:0\", token: {env: UNSET_TOKEN}}")),
        // Listeners.
        bad(
            "127.0.0.1:8080",
            format!(
                "listeners: [{{address: \"127.0.0.1:8080\"}}, {{name: b, address: \"127.0.0.1:8080\"}}]\n{BACKEND}{ROUTE}"
            ),
        ),
        bad("address", format!("listeners: [{{address: \"localhost:http\"}}]\n{BACKEND}{ROUTE}")),
        bad("other.key", listener("protocol: https, tls: {certificates: [{certFile: one.pem, keyFile: other.key}]}")),
        bad("text", listener("protocol: https, tls: {certificates: [{certFile: text, keyFile: one.key}]}")),
        bad("gone.pem", listener("protocol: https, tls: {certificates: [{certFile: gone.pem, keyFile: one.key}]}")),
        bad(
            "text",
            listener(
                "protocol: https, tls: {certificates: [{certFile: one.pem, keyFile: one.key}], clientCertificates: {caFile: text}}",
            ),
        ),
        bad(
            "base64url",
            listener(
                "protocol: https, tls: {acme: {directory: \"https://acme.test/d\", domains: [a.test], externalAccount: {keyId: k, hmacKey: {file: notoken}}}}",
            ),
        ),
        // Backends.
        bad("UNSET_KEY", backend("protocol: openai, credentials: {bearer: {env: UNSET_KEY}}")),
        bad("characters that no header may have", backend("protocol: openai, credentials: {bearer: {file: notoken}}")),
        bad("text", backend("tls: {caFile: text}").replace("http://", "https://")),
        bad(
            "other.key",
            backend("tls: {clientCertificate: {certFile: one.pem, keyFile: other.key}}").replace("http://", "https://"),
        ),
        bad("gone.yaml", backend("endpointsFile: gone.yaml")),
        // Callers.
        bad("header name", with("authentication: {apiKey: {headers: [\"not a header\"]}}")),
        bad(
            "same key",
            with(&format!(
                "consumers: [{{name: a, keys: [{{sha256: \"{digest}\"}}]}}, {{name: b, keysFile: digests}}]"
            )),
        ),
        bad("text", with("consumers: [{name: a, keysFile: text}]")),
        bad("jwks.json", issuer("audiences: [a], jwks: {file: jwks.json}")),
        bad("text", issuer("audiences: [a], caFile: text")),
        // Limits and their stores.
        bad("url", with("state: {limits: {redis: {url: \"http://127.0.0.1:1\"}}}")),
        bad("text", with("state: {limits: {redis: {url: \"rediss://127.0.0.1:1\", caFile: text}}}")),
        bad(
            "budgets",
            with(&format!(
                "state: {{budgets: {{sqlite: text}}}}\nconsumers: [{{name: a, keys: [{{sha256: \"{digest}\"}}], limits: {{budget: {{tokens: 1, per: day}}}}}}]"
            )),
        ),
        bad(
            "budgets",
            with(&format!(
                "state: {{budgets: {{sqlite: text/budgets.db}}}}\nconsumers: [{{name: a, keys: [{{sha256: \"{digest}\"}}], limits: {{budget: {{tokens: 1, per: day}}}}}}]"
            )),
        ),
        // Routes.
        bad("found 0; expected more than 0", route("filters: [{respond: {percent: 0}}]")),
        bad("exactly one of `exact` and `regex`", route("matches: [{headers: [{name: x-a}]}]")),
        bad("exactly one of `exact` and `regex`", route("matches: [{queryParams: [{name: a, exact: b, regex: c}]}]")),
        bad("not a regular expression", route("matches: [{headers: [{name: x-a, regex: \"a)|(?:b\"}]}]")),
        bad("not a regular expression", route("matches: [{queryParams: [{name: a, regex: \"b{1000}{1000}\"}]}]")),
        bad("an empty name", route("matches: [{queryParams: [{name: \"\", exact: b}]}]")),
        bad(
            "unknown key `cors` in `routes[0].backendRefs[0].filters[0]`",
            with("").replace("[{name: x}]", "[{name: x, filters: [{cors: {allowOrigins: [\"*\"]}}]}]"),
        ),
        bad(
            "cannot be changed here",
            with("").replace("[{name: x}]", "[{name: x, filters: [{requestHeaders: {set: {host: a}}}]}]"),
        ),
        bad("duplicate target", with("").replace("[{name: x}]", "[{name: x}, {name: x}]")),
        bad(
            "duplicate target",
            with("").replace(
                "[{name: x}]}",
                "[{name: x}, {name: x, filters: [{requestHeaders: {remove: [a]}}]}], sticky: {header: x-user}}",
            ),
        ),
        bad("`y`", route("filters: [{mirror: {backend: y}}]")),
        bad("`y`", route("whenSaturated: {spillTo: y}")),
        bad("regex", route("matches: [{path: {regex: \"(\"}}]")),
        bad("authorize", route("filters: [{authorize: \"consumer.\"}]")),
        bad("nobody", route("filters: [{authorize: \"nobody == 'a'\"}]")),
        bad("when", route("matches: [{when: \"1 +\"}]")),
        // Telemetry.
        bad("collector", with("telemetry: {tracing: {otlp: {endpoint: \"ftp://127.0.0.1\"}}}")),
        // Models.
        bad("gone.gguf", models("{name: m, source: gone.gguf}", "")),
        bad("not a GGUF file", models("{name: m, source: text}", "")),
        bad("template", models("{name: m, source: template.gguf, device: cpu}", "")),
        bad("`task` says", models(&format!("{{name: m, source: \"{chat}\", device: cpu, task: embedding}}"), "")),
        bad(
            "can take no effect",
            models(&format!("{{name: m, source: \"{encoder}\", device: cpu, kvCache: 1GiB}}"), ""),
        ),
        bad("MiB", models(&format!("{{name: m, source: \"{chat}\", device: cpu, memory: 1MiB}}"), "")),
        bad("MiB", models(&format!("{{name: m, source: \"{chat}\", device: cpu, kvCache: 1KiB}}"), "")),
        bad(
            "limits.modelMemory",
            models(&format!("{{name: m, source: \"{chat}\", device: cpu}}"), "limits: {modelMemory: 1MiB}"),
        ),
        bad(
            "not for conversations",
            format!(
                "{LISTENER}backends: [{{name: x, protocol: openai, endpoints: [{{url: \"http://127.0.0.1:1\"}}]}}]\nmodels: [{{name: m, source: \"{encoder}\", device: cpu}}]\nroutes: [{{backendRefs: [{{name: x}}], whenSaturated: {{spillTo: m}}}}]\n"
            ),
        ),
    ]
}

fn run(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let out = Command::new(binary())
        .args(arguments)
        .current_dir(folder)
        .env_remove("UNSET_TOKEN")
        .env_remove("UNSET_KEY")
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .output()
        .unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn check_refuses_what_serve_refuses_with_the_same_words() {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    let mut wrong = Vec::new();
    for Bad { says, yaml } in all() {
        std::fs::write(folder.path().join("spillway.yaml"), &yaml).unwrap();
        let (checked, told_by_check) = run(folder.path(), &["check", "spillway.yaml"]);
        let (served, told_by_serve) = run(folder.path(), &["serve", "-c", "spillway.yaml"]);
        if checked != Some(2) || !told_by_check.contains(says) {
            wrong.push(format!("check ended with {checked:?} and not with `{says}`:\n{told_by_check}\n{yaml}"));
        }
        if !matches!(served, Some(1 | 2)) || !told_by_serve.contains(says) {
            wrong.push(format!("serve ended with {served:?} and not with `{says}`:\n{told_by_serve}\n{yaml}"));
        }
        let reason = told_by_check.lines().find_map(|line| line.strip_prefix("error: "));
        if !reason.is_some_and(|reason| told_by_serve.contains(reason)) {
            wrong.push(format!("serve does not say what check says, {reason:?}:\n{told_by_serve}\n{yaml}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n---\n"));
    let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name == "state"), "nothing was written: {left:?}");
}

#[test]
fn check_tells_all_of_them_together_and_opens_nothing() {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
    // The port is taken, the name does not resolve, the store is down: only `serve` can find out.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let good = format!(
        "listeners: [{{address: \"{}\"}}]
backends: [{{name: x, endpoints: [{{url: \"http://nowhere.invalid:1\"}}], protocol: openai}}]
state: {{limits: {{redis: {{url: \"redis://127.0.0.1:1\"}}}}, budgets: {{sqlite: state/budgets.db}}}}
consumers: [{{name: a, keys: [{{sha256: \"{digest}\"}}], limits: {{budget: {{tokens: 1, per: day}}}}}}]
models: [{{name: m, source: \"{}\", device: {{name: \"no such device\"}}}}]
routes: [{{backendRefs: [{{name: x}}], whenSaturated: {{spillTo: m}}}}]
",
        taken.local_addr().unwrap(),
        model().display()
    );
    std::fs::write(folder.path().join("spillway.yaml"), &good).unwrap();
    let (code, told) = run(folder.path(), &["check", "spillway.yaml"]);
    assert_eq!(code, Some(0), "{told}");
    assert!(!folder.path().join("state").exists());
    let two = good
        .replace("protocol: openai", "protocol: openai, credentials: {bearer: {file: notoken}}")
        .replace("sqlite: state/budgets.db", "sqlite: text");
    std::fs::write(folder.path().join("spillway.yaml"), &two).unwrap();
    let (code, told) = run(folder.path(), &["check", "spillway.yaml"]);
    assert_eq!(code, Some(2), "{told}");
    for part in ["characters that no header may have", "text: "] {
        assert!(told.contains(part), "{part} is missing in\n{told}");
    }
}

/// Output, errors and exit code of the program.
fn told_apart(arguments: &[&str], folder: &Path) -> (String, String, Option<i32>) {
    let out = Command::new(binary()).args(arguments).current_dir(folder).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(out.stdout), text(out.stderr), out.status.code())
}

#[test]
fn findings_have_forms_for_programs_and_no_line_of_a_file_becomes_a_command() {
    let folder = tempfile::tempdir().unwrap();
    let (good, bad) =
        (with(""), format!("{LISTENER}{BACKEND}routes:\n  - backendRefs: [{{name: \"nobody\\n::error::x\"}}]\n"));
    std::fs::write(folder.path().join("good.yaml"), good).unwrap();
    std::fs::write(folder.path().join("bad,one.yaml"), bad).unwrap();
    let check = |format: &str| {
        let arguments = ["check", "--format", format, "good.yaml", "bad,one.yaml"];
        let (stdout, stderr, code) = told_apart(&arguments, folder.path());
        assert_eq!(code, Some(2), "{format}");
        assert_eq!(stderr, "", "{format}: nothing beside the document");
        stdout
    };
    let json: serde_json::Value = serde_json::from_str(&check("json")).unwrap();
    assert_eq!((&json["files"][0]["file"], &json["files"][0]["ok"]), (&"good.yaml".into(), &true.into()));
    let bad = &json["files"][1];
    assert_eq!((&bad["ok"], &bad["errors"]), (&false.into(), &1.into()), "{bad}");
    let found = &bad["diagnostics"][0];
    assert_eq!((&found["severity"], &found["line"]), (&"error".into(), &4.into()), "{found}");
    assert_eq!(found["path"], "routes[0].backendRefs[0].name");

    let sarif: serde_json::Value = serde_json::from_str(&check("sarif")).unwrap();
    assert_eq!((&sarif["version"], &sarif["runs"][0]["tool"]["driver"]["name"]), (&"2.1.0".into(), &"spillway".into()));
    let results = sarif["runs"][0]["results"].as_array().unwrap();
    assert_eq!((results.len(), &results[0]["level"]), (1, &"error".into()));
    let place = &results[0]["locations"][0];
    assert_eq!(place["physicalLocation"]["artifactLocation"]["uri"], "bad%2Cone.yaml");
    assert_eq!(place["physicalLocation"]["region"]["startLine"], 4);
    assert_eq!(place["physicalLocation"]["region"]["startColumn"], found["column"]);
    assert_eq!(place["logicalLocations"][0]["fullyQualifiedName"], found["path"]);

    let github = check("github");
    let lines: Vec<&str> = github.lines().collect();
    assert_eq!(lines[0], "spillway check: good.yaml: ok (0 warnings)");
    assert!(lines[1].starts_with("::error file=bad%2Cone.yaml,line=4,endLine=4,col="), "{github}");
    assert!(
        lines[1].contains(",title=routes[0].backendRefs[0].name::") && lines[1].contains("%0A::error::x"),
        "{github}"
    );
    assert_eq!((lines[2], lines.len()), ("spillway check: bad,one.yaml: 1 error, 0 warnings", 3));

    let (stdout, stderr, code) = told_apart(&["check", "good.yaml"], folder.path());
    assert_eq!((stdout.as_str(), stderr.as_str(), code), ("good.yaml: ok (0 warnings)\n", "", Some(0)));
    assert_eq!(told_apart(&["check", "--format", "xml", "good.yaml"], folder.path()).2, Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_edit_is_told_before_it_is_made() {
    let yaml = |weight: u32, more: &str, admin: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
admin: {{address: \"{admin}\", token: {{file: token}}}}
consumers: [{{name: acme, keys: [{{sha256: \"9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08\"}}]}}]
backends:
  - {{name: one, endpoints: [{{url: \"http://127.0.0.1:1\"}}], credentials: {{bearer: {{file: bearer}}}}}}
  - {{name: two, endpoints: [{{url: \"http://127.0.0.1:2\"}}]}}
routes:
  - {{name: chat, backendRefs: [{{name: one, weight: {weight}}}, {{name: two, weight: 5}}]}}
{more}"
        )
    };
    let folder = tempfile::tempdir().unwrap();
    for (name, secret) in [("token", "s3cret-admin-token"), ("bearer", "s3cret-bearer"), ("other", "s3cret-other")] {
        std::fs::write(folder.path().join(name), secret).unwrap();
    }
    let gateway = Gateway::start_in(folder, &yaml(95, "", "127.0.0.1:0")).await;
    let diff = |text: String, more: &[&str]| {
        std::fs::write(gateway.folder().join("edited.yaml"), text).unwrap();
        let url = format!("http://{}", gateway.admin);
        let arguments = [&["diff", "edited.yaml", "--admin", &url, "--token", "s3cret-admin-token"], more].concat();
        told_apart(&arguments, gateway.folder())
    };
    let same = diff(yaml(95, "", "127.0.0.1:0"), &[]);
    assert_eq!((same.0.as_str(), same.2), ("no change\n", Some(0)), "{}", same.1);
    let route = "  - {name: more, matches: [{path: {prefix: /more}}], backendRefs: [{name: two}]}\n";
    let (told, warned, code) = diff(yaml(80, route, "127.0.0.1:1"), &[]);
    assert_eq!(code, Some(0), "{warned}");
    for line in [
        "admin",
        "  (needs a restart: an edit of it is refused)",
        "  address: 127.0.0.1:0 -> 127.0.0.1:1",
        "routes",
        "  ~ chat",
        "      backendRefs[one].weight: 95 -> 80",
        "  + more",
    ] {
        assert!(told.lines().any(|told| told == line), "{line} in\n{told}");
    }
    let (json, _, _) = diff(yaml(80, route, "127.0.0.1:0"), &["--json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let expected = serde_json::json!([
        {"section": "routes", "name": "chat", "kind": "changed", "needsRestart": false,
            "values": [{"path": "backendRefs[one].weight", "from": 95, "to": 80}]},
        {"section": "routes", "name": "more", "kind": "added", "needsRestart": false},
    ]);
    assert_eq!(json["changes"], expected);
    // The place of a secret is told, and no secret.
    let (told, warned, _) = diff(yaml(95, "", "127.0.0.1:0").replace("file: bearer", "file: other"), &[]);
    assert!(
        told.contains("credentials.bearer.file") && !format!("{told}{warned}").contains("s3cret"),
        "{told}{warned}"
    );
    // A wrong file is refused as by `check`, and nothing was applied.
    assert_eq!(diff(yaml(95, "", "127.0.0.1:0").replace("backendRefs", "backendRef"), &[]).2, Some(2));
    assert_eq!(gateway.edits(), 0);
    let (_, said, code) = told_apart(&["diff", "edited.yaml", "--admin", "http://127.0.0.1:1"], gateway.folder());
    assert_eq!(code, Some(2), "the file comes first: {said}");
    let shown: serde_json::Value = serde_json::from_str(&{
        let client = spillway_tests::Client::new(gateway.admin);
        let request = client.request("GET", "/api/config", &[("authorization", "Bearer s3cret-admin-token")], "");
        client.send(request).await.text()
    })
    .unwrap();
    assert_eq!(shown["generation"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_an_edit_would_send_elsewhere_are_told_before_it_is_made() {
    let server = Upstream::start(|_| async move { Some(reply(200, &[], "ok")) }).await;
    let yaml = |routes: &str| {
        format!(
            "listeners: [{{address: \"127.0.0.1:0\"}}]
admin: {{address: \"127.0.0.1:0\"}}
backends:
  - {{name: one, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: two, endpoints: [{{url: \"{0}\"}}]}}
  - {{name: ai, protocol: openai, endpoints: [{{url: \"{0}\"}}]}}
routes:
{routes}",
            server.url()
        )
    };
    let running = "  - {name: beta, matches: [{headers: [{name: x-beta, exact: \"yes\"}]}], backendRefs: [{name: two}]}
  - {name: chat, matches: [{path: {prefix: /v1}, model: big}], backendRefs: [{name: ai}]}
  - {name: keyed, matches: [{path: {prefix: /keyed}, headers: [{name: x-api-key, exact: of-the-file}]}], backendRefs: [{name: one}]}
  - {name: rest, matches: [{path: {prefix: /v1}}, {path: {prefix: /web}}, {path: {prefix: /keyed}}], backendRefs: [{name: one}]}
";
    let gateway = Gateway::start_in(tempfile::tempdir().unwrap(), &yaml(running)).await;
    let client = spillway_tests::Client::new(gateway.address);
    let diff = |routes: &str, more: &[&str]| {
        std::fs::write(gateway.folder().join("edited.yaml"), yaml(routes)).unwrap();
        let url = format!("http://{}", gateway.admin);
        let (told, warned, code) =
            told_apart(&[&["diff", "edited.yaml", "--admin", &url], more].concat(), gateway.folder());
        assert_eq!(code, Some(0), "{told}{warned}");
        told
    };
    let untouched = running.replace("/web", "/site");
    assert!(diff(&untouched, &[]).contains("requests: the gateway has kept none since its last edit\n"));

    let secrets = [("authorization", "Bearer s3cret-of-caller"), ("x-team", "s3cret-team")];
    for path in ["/web/a?token=s3cret-query", "/web/b"] {
        client.send(client.request("GET", path, &secrets, "")).await;
    }
    client.send(client.request("GET", "/odd", &[("x-beta", "yes")], "")).await;
    client.send(client.request("GET", "/keyed", &[("x-api-key", "of-the-file")], "")).await;
    client.send(client.request("GET", "/nowhere", &[], "")).await;
    for model in ["big", "small"] {
        let body =
            format!("{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"s3cret-text\"}}]}}");
        client
            .send(client.request("POST", "/v1/chat/completions", &[("content-type", "application/json")], body))
            .await;
    }
    let admin = spillway_tests::Client::new(gateway.admin);
    // A head is kept when its request has ended, a moment after the answer.
    let page = spillway_tests::eventually("seven heads", || async {
        let page = admin.send(admin.request("GET", "/api/requests/recent", &[], "")).await.text();
        assert!(!page.contains("s3cret") && !page.contains("of-the-file"), "{page}");
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        (page["heads"].as_array().unwrap().len() == 7).then_some(page)
    })
    .await;
    let oldest = &page["heads"][6];
    assert_eq!(
        (&oldest["path"], &oldest["route"], &oldest["firstTarget"]),
        (&"/web/a".into(), &"rest".into(), &"one".into())
    );

    // The same routes under another name of a part that decides nothing: none moves.
    assert!(
        diff(
            &format!(
                "{running}  - {{name: more, matches: [{{path: {{exact: /more}}}}], backendRefs: [{{name: two}}]}}\n"
            ),
            &[]
        )
        .contains("none goes elsewhere\n")
    );

    let edited = "  - {name: beta, matches: [{headers: [{name: x-beta, exact: \"yes\"}]}], backendRefs: [{name: one, weight: 90}, {name: two, weight: 10}]}
  - {name: chat, matches: [{path: {prefix: /v1}, model: \"*\"}], backendRefs: [{name: ai}]}
  - {name: web, matches: [{path: {prefix: /web}}], backendRefs: [{name: two}]}
  - {name: keyed, matches: [{path: {prefix: /keyed}, headers: [{name: x-api-key, exact: of-the-file}]}], backendRefs: [{name: one}]}
  - {name: rest, matches: [{path: {prefix: /}}], backendRefs: [{name: one}]}
";
    let told = diff(edited, &[]);
    let address = gateway.address;
    for line in [
        "requests: 6 of the last 7 tried".to_owned(),
        format!("  rest (one) -> web (two): 2 requests, such as GET {address}/web/b"),
        format!("  beta (two) -> beta (one 90, two 10): 1 request, such as GET {address}/odd"),
        format!("  no route -> rest (one): 1 request, such as GET {address}/nowhere"),
        format!("  rest (one) -> chat (ai): 1 request, such as POST {address}/v1/chat/completions"),
        format!(
            "  not tried: 1 request, such as GET {address}/keyed: a match asks for the header `x-api-key`, of which nothing is kept"
        ),
    ] {
        assert!(told.lines().any(|told| told == line), "{line} in\n{told}");
    }
    let json: serde_json::Value = serde_json::from_str(&diff(edited, &["--json"])).unwrap();
    let moved = &json["requests"]["moved"][0];
    assert_eq!((&json["requests"]["kept"], &moved["requests"]), (&7.into(), &2.into()), "{json}");
    assert_eq!(moved["from"], serde_json::json!({"route": "rest", "target": "one"}));
    assert_eq!(moved["to"], serde_json::json!({"route": "web", "target": "two"}));

    // A route that serves one listener alone, and a listener that goes.
    let own = format!("  - {{name: apart, listeners: [other], backendRefs: [{{name: two}}]}}\n{running}");
    let apart = |name: &str| {
        yaml(&own).replace(
            "listeners: [{",
            &format!("listeners: [{{name: other, address: \"127.0.0.1:0\"}}, {{name: {name}, "),
        )
    };
    let url = format!("http://{}", gateway.admin);
    let gone = format!(
        "  not tried: 7 requests, such as POST {address}/v1/chat/completions: the file has no listener `127.0.0.1:0`"
    );
    for (name, line) in [("\"127.0.0.1:0\"", "  none goes elsewhere"), ("renamed", &gone)] {
        std::fs::write(gateway.folder().join("edited.yaml"), apart(name)).unwrap();
        let (told, warned, code) = told_apart(&["diff", "edited.yaml", "--admin", &url], gateway.folder());
        assert_eq!(code, Some(0), "{told}{warned}");
        assert!(told.lines().any(|told| told == line), "{name}: {line} in\n{told}");
    }

    // A header that only the edit asks for, and an expression over headers: nothing of them is kept, and that is said.
    let unknown = format!(
        "  - {{name: team, matches: [{{headers: [{{name: x-team, exact: a}}], path: {{prefix: /web}}}}], backendRefs: [{{name: two}}]}}
  - {{name: said, matches: [{{path: {{prefix: /v1}}, when: 'request.query == \"a\"'}}], backendRefs: [{{name: two}}]}}
{running}"
    );
    let told = diff(&unknown, &[]);
    assert!(told.contains("a match asks for the header `x-team`, of which nothing is kept"), "{told}");
    assert!(told.contains("an expression of the route `said` reads headers or the query"), "{told}");
    assert!(told.contains("requests: 2 of the last 7 tried"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_of_a_file_are_asked_through_a_gateway_and_their_answers_checked() {
    let server = Upstream::start(|seen| async move {
        let asked: serde_json::Value = serde_json::from_slice(&seen.body).unwrap();
        let said = match asked["messages"][0]["content"].as_str().unwrap() {
            "capital" => "Paris.",
            "json" => "{\"city\": \"Rome\"}",
            _ => "five\u{1b}[31m",
        };
        let message = serde_json::json!({"role": "assistant", "content": said});
        let answer = serde_json::json!({"model": asked["model"], "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]});
        Some(reply(200, &[("content-type", "application/json")], answer.to_string()))
    })
    .await;
    let (key, digest) = spillway_tests::new_key();
    let gateway = Gateway::start(&format!(
        "consumers: [{{name: ci, keys: [{{sha256: {digest}}}]}}]
backends: [{{name: b, protocol: openai, endpoints: [{{url: \"{}\"}}]}}]
routes: [{{name: canary, matches: [{{headers: [{{name: x-version, exact: canary}}]}}], retry: {{attempts: 0}}, backendRefs: [{{name: b}}]}}]
",
        server.url()
    ))
    .await;
    let cases = [
        r#"{"name": "capital", "prompt": "capital", "contains": "Paris", "regex": "^Paris"}"#,
        r#"{"name": "json", "prompt": "json", "jsonSchema": {"type": "object", "required": ["city"]}}"#,
        r#"{"name": "sum", "prompt": "sum", "equals": "4"}"#,
    ];
    let file = gateway.folder().join("cases.jsonl");
    let url = format!("http://{}", gateway.address);
    let ask = |cases: &[&str], more: &[&str]| {
        std::fs::write(&file, cases.join("\n")).unwrap();
        let arguments =
            ["eval-set", "cases.jsonl", "--url", &url, "--model", "m", "--header", "x-version: canary", "--key", &key];
        told_apart(&[&arguments, more].concat(), gateway.folder())
    };
    let (told, warned, code) = ask(&cases, &[]);
    assert_eq!(code, Some(3), "{told}{warned}");
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("ok ") && lines[0].ends_with("  capital"), "{told}");
    assert!(lines[2].starts_with("FAILED ") && lines[2].contains("sum: the text is \"five"), "{told}");
    assert!(!told.contains('\u{1b}'), "no answer acts on the terminal: {told:?}");
    assert_eq!(lines[3], "2 of 3 passed (66.7 %), 1 failed, 0 without an answer");
    assert_eq!(ask(&cases, &["--min-pass", "0.6"]).2, Some(0));
    let (told, _, code) = ask(&cases[..2], &["--json"]);
    assert_eq!(code, Some(0), "{told}");
    let report: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&report["passed"], &report["share"], &report["cases"][1]["name"]),
        (&2.into(), &1.0.into(), &"json".into())
    );
    assert_eq!((&report["cases"][1]["result"], &report["cases"][1]["status"]), (&"passed".into(), &200.into()));
    // The route needs the header and the key; a refusal is an answer that fails its check.
    for (header, status) in [("x-version: canary", "status 401"), ("x-version: other", "status 404")] {
        let arguments = ["eval-set", "cases.jsonl", "--url", &url, "--header", header];
        let (told, _, code) = told_apart(&arguments, gateway.folder());
        assert!(code == Some(3) && told.contains(status), "{told}");
    }
    // Nobody there, and a file that is none.
    let (told, _, code) = told_apart(&["eval-set", "cases.jsonl", "--url", "http://127.0.0.1:1"], gateway.folder());
    assert!(code == Some(1) && told.lines().next().unwrap().starts_with("ERROR "), "{told}");
    let (_, said, code) = ask(&[r#"{"prompt": "a"}"#], &[]);
    assert!(code == Some(2) && said.contains("cases.jsonl: line 1: expected one of `equals`"), "{said}");
    assert_eq!(ask(&cases, &["--header", "no-colon"]).2, Some(2));
}
