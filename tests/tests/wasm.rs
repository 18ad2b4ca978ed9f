//! Filter `wasm`: modules change requests and answers, answer by themselves, fail closed or open, and are swapped by an edit
//! of their file. `make test-wasm` runs those that need a module of the Rust SDK.

use std::path::{Path, PathBuf};

use serde_json::json;
use spillway_tests::{Answer, Gateway, Upstream, binary, encoded, eventually, reply};

/// Module with these hooks, and functions of the host that they use.
fn module(hooks: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_remove_header_map_value" (func $remove (param i32 i32 i32) (result i32)))
  (import "env" "proxy_set_buffer_bytes" (func $body (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_send_local_response"
    (func $answer (param i32 i32 i32 i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 1024) "x-secret") (data (i32.const 1040) "x-module") (data (i32.const 1056) "one")
  (data (i32.const 1072) "x-deny") (data (i32.const 1088) "denied here")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 4096))
  (func $has (param $at i32) (param $size i32) (result i32)
    (i32.eqz (call $get (i32.const 0) (local.get $at) (local.get $size) (i32.const 16) (i32.const 20))))
  {hooks})"#
    );
    wat::parse_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

const CHANGES: &str = r#"
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $set (i32.const 0) (i32.const 1040) (i32.const 8) (i32.const 1056) (i32.const 3)))
    (drop (call $remove (i32.const 0) (i32.const 1024) (i32.const 8)))
    (if (call $has (i32.const 1072) (i32.const 6)) (then
      (drop (call $answer (i32.const 451) (i32.const 0) (i32.const 0) (i32.const 1088) (i32.const 11)
        (i32.const 0) (i32.const 0) (i32.const -1)))))
    (i32.const 0))
  (func (export "proxy_on_response_headers") (param i32 i32 i32) (result i32)
    (drop (call $set (i32.const 2) (i32.const 1040) (i32.const 8) (i32.const 1056) (i32.const 3)))
    (drop (call $remove (i32.const 2) (i32.const 1024) (i32.const 8)))
    (i32.const 0))"#;

fn yaml(url: &str, module: &Path, more: &str) -> String {
    format!(
        "backends: [{{name: b, endpoints: [{{url: \"{url}\"}}]}}]
routes: [{{filters: [{{wasm: {{module: {}, limits: {{time: 1s}}{more}}}}}], backendRefs: [{{name: b}}]}}]
",
        module.display()
    )
}

async fn ask(gateway: &Gateway, headers: &[(&str, &str)]) -> Answer {
    gateway.client().send(gateway.client().request("GET", "/", headers, "")).await
}

#[tokio::test]
async fn a_module_changes_headers_and_answers_by_itself() {
    let upstream = Upstream::fixed(200, "hello").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.wasm");
    std::fs::write(&file, module(CHANGES)).unwrap();
    let gateway = Gateway::start(&yaml(&upstream.url(), &file, "")).await;
    let got = ask(&gateway, &[("x-secret", "1"), ("x-module", "zero")]).await;
    assert_eq!((got.status.as_u16(), got.text()), (200, "hello".to_owned()));
    assert_eq!(got.headers["x-module"], "one");
    let seen = upstream.last();
    assert_eq!((seen.headers["x-module"].to_str().unwrap(), seen.headers.get("x-secret")), ("one", None));
    let count = upstream.count();
    let denied = ask(&gateway, &[("x-deny", "1")]).await;
    assert_eq!((denied.status.as_u16(), denied.text()), (451, "denied here".to_owned()));
    assert_eq!(upstream.count(), count);
}

#[tokio::test]
async fn a_module_that_traps_refuses_or_passes() {
    let upstream = Upstream::fixed(200, "hello").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.wasm");
    let traps = "(func (export \"proxy_on_request_headers\") (param i32 i32 i32) (result i32)
        (if (call $has (i32.const 1072) (i32.const 6)) (then unreachable)) (i32.const 0))";
    std::fs::write(&file, module(traps)).unwrap();
    let closed = Gateway::start(&yaml(&upstream.url(), &file, "")).await;
    let refused = ask(&closed, &[("x-deny", "1")]).await;
    assert_eq!((refused.status.as_u16(), refused.json()["code"].clone()), (503, json!("wasm_failed")));
    assert_eq!(closed.client().get("/").await.text(), "hello", "the next request has a new instance");
    let failed =
        eventually("the failure is logged", || async { closed.events("wasm_failed").into_iter().next() }).await;
    assert!(failed["reason"].as_str().unwrap().contains("unreachable"), "{failed}");
    let open = Gateway::start(&yaml(&upstream.url(), &file, ", onFailure: open")).await;
    assert_eq!(ask(&open, &[("x-deny", "1")]).await.text(), "hello");
}

#[tokio::test]
async fn an_edit_of_the_module_swaps_it_and_a_bad_one_is_kept_out() {
    let upstream = Upstream::fixed(200, "hello").await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.wasm");
    let marks = |value: &str| {
        module(&format!(
            "(data (i32.const 1200) \"{value}\")
             (func (export \"proxy_on_response_headers\") (param i32 i32 i32) (result i32)
               (drop (call $set (i32.const 2) (i32.const 1040) (i32.const 8) (i32.const 1200) (i32.const 3))) (i32.const 0))"
        ))
    };
    let replace = |bytes: &[u8]| {
        let new = folder.path().join("m.new");
        std::fs::write(&new, bytes).unwrap();
        std::fs::rename(&new, &file).unwrap();
    };
    replace(&marks("one"));
    let gateway = Gateway::start(&yaml(&upstream.url(), &file, "")).await;
    assert_eq!(gateway.client().get("/").await.headers["x-module"], "one");
    replace(&marks("two"));
    assert_eq!(gateway.reloads(0).await["event"], "config_reloaded");
    assert_eq!(gateway.client().get("/").await.headers["x-module"], "two");
    replace(&module("(func (export \"proxy_on_configure\") (param i32 i32) (result i32) (i32.const 0))"));
    let told = gateway.reloads(1).await;
    assert_eq!(told["event"], "config_rejected");
    assert!(told["reason"].as_str().unwrap().contains("refuses its configuration"), "{told}");
    assert_eq!(gateway.client().get("/").await.headers["x-module"], "two");
}

#[tokio::test]
async fn check_names_the_place_of_a_module_that_cannot_run() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("spillway.yaml");
    std::fs::write(folder.path().join("m.wasm"), wat::parse_str("(module)").unwrap()).unwrap();
    let listeners = "listeners: [{address: \"127.0.0.1:0\"}]\n";
    std::fs::write(&config, format!("{listeners}{}", yaml("http://127.0.0.1:9", Path::new("m.wasm"), ""))).unwrap();
    let output = std::process::Command::new(binary()).arg("check").arg(&config).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("routes[0].filters[0].wasm.module") && told.contains("no proxy-wasm module"), "{told}");
}

#[tokio::test]
async fn bodies_are_changed_whole_and_streamed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.wasm");
    let changes = "(func (export \"proxy_on_request_body\") (param i32 i32 i32) (result i32)
          (drop (call $body (i32.const 0) (i32.const 0) (i32.const 5) (i32.const 1056) (i32.const 3))) (i32.const 0))
        (func (export \"proxy_on_response_body\") (param i32 i32 i32) (result i32)
          (if (i32.gt_u (local.get 1) (i32.const 6)) (then
            (drop (call $body (i32.const 1) (i32.const 6) (i32.const 1) (i32.const 1056) (i32.const 3)))))
          (i32.const 0))";
    std::fs::write(&file, module(changes)).unwrap();
    let upstream = Upstream::fixed(200, "hello world").await;
    let gateway = Gateway::start(&yaml(&upstream.url(), &file, "")).await;
    let got = gateway.client().post("/", &[("content-type", "text/plain")], "hello you").await;
    assert_eq!((got.status.as_u16(), got.text()), (200, "hello oneorld".to_owned()));
    let seen = upstream.last();
    assert_eq!((&seen.body[..], seen.headers["content-length"].to_str().unwrap()), (&b"one you"[..], "7"));
    let events =
        Upstream::start(async |_| Some(reply(200, &[("content-type", "text/event-stream")], "data: a\n\ndata: b\n\n")))
            .await;
    let gateway = Gateway::start(&yaml(&events.url(), &file, "")).await;
    assert_eq!(gateway.client().get("/").await.text(), "data: one\n\ndata: one\n\n");
    // A server that compresses although it is asked not to.
    let coded = Upstream::start(async |_| {
        let headers = [("content-encoding", "gzip"), ("content-type", "text/plain")];
        Some(reply(200, &headers, encoded("gzip", b"hello world")))
    })
    .await;
    let gateway = Gateway::start(&yaml(&coded.url(), &file, "")).await;
    assert_eq!(gateway.client().get("/").await.text(), "hello oneorld");
}

/// Module of the Rust SDK, which `make test-wasm` builds.
fn of_the_sdk() -> PathBuf {
    PathBuf::from(std::env::var("SPILLWAY_WASM_MODULE").unwrap())
}

#[tokio::test]
#[ignore = "needs a module that `make test-wasm` builds"]
async fn a_module_of_the_rust_sdk_runs() {
    let upstream = Upstream::start(async |seen| {
        let kind = if seen.path == "/events" { "text/event-stream" } else { "text/plain" };
        Some(reply(200, &[("content-type", kind), ("server", "them")], "data: a secret plan\n\n"))
    })
    .await;
    let judge = Upstream::start(async |seen| {
        let is_known = seen.headers.get("authorization").is_some_and(|value| value == "Bearer good");
        Some(reply(if is_known { 200 } else { 403 }, &[("x-user", "anna")], ""))
    })
    .await;
    let more = format!(", config: {{words: [secret, classified], judge: true}}, calls: {{judge: \"{}\"}}", judge.url());
    let gateway = Gateway::start(&yaml(&upstream.url(), &of_the_sdk(), &more)).await;
    let refused = ask(&gateway, &[]).await;
    assert_eq!((refused.status.as_u16(), refused.text()), (401, "who are you?\n".to_owned()));
    assert_eq!(upstream.count(), 0);
    for path in ["/", "/events"] {
        let headers = [("authorization", "Bearer good"), ("x-user", "mallory")];
        let request = gateway.client().request("POST", path, &headers, "a classified matter");
        let got = gateway.client().send(request).await;
        assert_eq!((got.status.as_u16(), got.text()), (200, "data: a ****** plan\n\n".to_owned()), "{path}");
        assert_eq!((got.header("server"), got.header("x-redacted")), ("", "1"));
        let seen = upstream.last();
        assert_eq!((&seen.body[..], &seen.headers["x-user"]), (&b"a ********** matter"[..], &"anna".parse().unwrap()));
        assert_eq!(judge.last().headers["x-path"], path);
    }
    let logged = || async { (!gateway.events("wasm_log").is_empty()).then_some(()) };
    eventually("the module's log is written", logged).await;
    let refused = std::fs::read_to_string(gateway.config()).unwrap().replace("words: [secret, classified]", "words: 7");
    std::fs::write(gateway.config(), refused).unwrap();
    let told = gateway.reloads(0).await;
    assert_eq!(told["event"], "config_rejected");
    assert!(told["reason"].as_str().unwrap().contains("refuses its configuration"), "{told}");
}

/// A panic of the module is a failure of one request, and its message is logged.
#[tokio::test]
#[ignore = "needs a module that `make test-wasm` builds"]
async fn a_panic_of_the_module_is_one_failed_request() {
    let upstream = Upstream::fixed(200, "plain").await;
    let gateway = Gateway::start(&yaml(&upstream.url(), &of_the_sdk(), "")).await;
    let failed = ask(&gateway, &[("x-panic", "1")]).await;
    assert_eq!((failed.status.as_u16(), failed.json()["code"].clone()), (503, json!("wasm_failed")));
    assert_eq!(ask(&gateway, &[]).await.text(), "plain");
    let logged = || async { gateway.log().contains("asked to panic").then_some(()) };
    eventually("the panic is logged", logged).await;
}
