//! Tests of the host by modules of their own: every function, and what a hostile module can try.

mod hostile;
mod script;

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use script::{File, L, N, S, Script, TO, To, filter};
use serde_json::json;
use spillway_filter::testing::{FilterBuilder, FixedHttp, TestRequest, exchange_end, headers, split_events, wait};
use spillway_filter::{Answer, AnswerHead, EventChange, Filter, Flow, Rewrite};

fn answered(flow: Flow) -> Answer {
    match flow {
        Flow::Answer(answer) => *answer,
        Flow::Wait(_) => {
            let waited = wait(flow);
            panic!("no answer: {:?} {:?}", waited.refusal, waited.failure)
        }
        _ => panic!("no answer"),
    }
}

fn text(flow: Flow) -> String {
    String::from_utf8_lossy(&answered(flow).body).into_owned()
}

fn rewritten(flow: Flow) -> Rewrite {
    match flow {
        Flow::Rewrite(rewrite) => *rewrite,
        Flow::Continue => Rewrite::default(),
        Flow::Wait(_) => {
            let waited = wait(flow);
            panic!("no rewrite: {:?} {:?}", waited.refusal, waited.failure)
        }
        _ => panic!("no rewrite"),
    }
}

/// Output of a module that makes these calls at the head of a request, and answers.
fn output(script: Script, request: &TestRequest) -> String {
    text(request.decide(&*filter(&script.answer(200).hook("proxy_on_request_headers", 3, Some(1)))))
}

#[test]
fn headers_are_read_and_changed() {
    let request =
        TestRequest::get("/a?b=c").header("host", "a.test").header("x-a", "1").header("x-a", "2").header("x-b", "3");
    let read = Script::new()
        .call("proxy_get_header_map_value", &[N(0), S(b"X-A"), To])
        .given()
        .call("proxy_get_header_map_value", &[N(0), S(b":path"), To])
        .given()
        .call("proxy_get_header_map_value", &[N(0), S(b"x-none"), To])
        .call("proxy_get_header_map_value", &[N(99), S(b"x-none"), To])
        .call("proxy_get_header_map_value", &[N(2), S(b"x-a"), To])
        .call("proxy_get_header_map_size", &[N(0), N(TO.into())]);
    assert_eq!(output(read, &request), "01, 20/a?b=c1210");
    let pairs = Script::new().call("proxy_get_header_map_pairs", &[N(0), To]).given();
    let all = output(pairs, &request);
    assert!(
        all.starts_with("0\u{8}\0\0\0") && all.contains("x-b\u{0}3\u{0}") && all.contains(":method\0GET\0"),
        "{all:?}"
    );
    let change = Script::new()
        .call("proxy_add_header_map_value", &[N(0), S(b"x-a"), S(b"4")])
        .call("proxy_replace_header_map_value", &[N(0), S(b"x-b"), S(b"5")])
        .call("proxy_replace_header_map_value", &[N(0), S(b"x-new"), S(b"6")])
        .call("proxy_remove_header_map_value", &[N(0), S(b"host")])
        .call("proxy_remove_header_map_value", &[N(0), S(b"x-none")])
        .call("proxy_replace_header_map_value", &[N(0), S(b":path"), S(b"/a?b=c")])
        .call("proxy_replace_header_map_value", &[N(0), S(b":path"), S(b"/other")])
        .call("proxy_add_header_map_value", &[N(0), S(b"x-a"), S(b"line\nbreak")])
        .call("proxy_add_header_map_value", &[N(0), S(b"x a"), S(b"")])
        .call("proxy_add_header_map_value", &[N(2), S(b"x-a"), S(b"")])
        .hook("proxy_on_request_headers", 3, Some(0));
    let rewrite = rewritten(request.decide(&*filter(&change)));
    let mut sent = headers([("host", "a.test"), ("x-a", "1"), ("x-b", "3")]);
    rewrite.request_headers.iter().for_each(|change| change.apply(&mut sent));
    let values = |name| sent.get_all(name).map(|value| value.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(
        (values("x-a"), values("x-b"), values("x-new"), values("host")),
        (vec!["1", "2", "4"], vec!["5"], vec!["6"], vec!["a.test"])
    );
    let set = Script::new()
        .call("proxy_set_header_map_pairs", &[N(0), S(b"\x01\0\0\0\x03\0\0\0\x01\0\0\0x-z\09\0")])
        .call("proxy_set_header_map_pairs", &[N(0), S(b"\xff\0\0\0")])
        .hook("proxy_on_request_headers", 3, Some(0));
    let mut sent = headers([("host", "a.test"), ("x-a", "1")]);
    rewritten(request.decide(&*filter(&set))).request_headers.iter().for_each(|change| change.apply(&mut sent));
    assert_eq!(
        (sent.get("x-z").unwrap(), sent.get("x-a"), sent.get("host").unwrap()),
        (&"9".parse().unwrap(), None, &"a.test".parse().unwrap())
    );
}

#[test]
fn a_module_answers_by_itself() {
    let script = Script::new()
        .call(
            "proxy_send_local_response",
            &[
                N(403),
                S(b"details"),
                S(b"no"),
                S(b"\x02\0\0\0\x03\0\0\0\x01\0\0\0\x0e\0\0\0\x01\0\0\0x-w\x001\0content-length\x009\0"),
                N(-1),
            ],
        )
        .call("proxy_send_local_response", &[N(99), S(b""), S(b""), S(b""), N(0)])
        .hook("proxy_on_request_headers", 3, Some(1));
    let answer = answered(TestRequest::get("/").decide(&*filter(&script)));
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::FORBIDDEN, &b"no"[..]));
    assert_eq!(answer.headers, [("x-w".parse().unwrap(), "1".parse().unwrap())]);
}

#[test]
fn properties_are_those_of_the_table() {
    let request = TestRequest::post("/a?b", "body")
        .header("host", "a.test")
        .header("x-a", "1")
        .caller("anna", "north")
        .model("m")
        .secure();
    let mut script = Script::new();
    let names: [&[u8]; 15] = [
        b"request\0path",
        b"request\0url_path",
        b"request\0query",
        b"request\0host",
        b"request\0scheme",
        b"request\0method",
        b"request\0headers\0x-a",
        b"source\0address",
        b"plugin_name",
        b"plugin_root_id",
        b"route_name",
        b"xds\0route_name\0",
        b"spillway\0consumer",
        b"spillway\0tenant",
        b"spillway\0model",
    ];
    for name in names {
        script = script.call("proxy_get_property", &[S(name), To]).given();
    }
    script = script
        .call("proxy_get_property", &[S(b"none"), To])
        .call("proxy_set_property", &[S(b"mine\0a"), S(b"value")])
        .call("proxy_get_property", &[S(b"mine\0a"), To])
        .given();
    let all = [
        "/a?b",
        "/a",
        "b",
        "a.test",
        "https",
        "POST",
        "1",
        "127.0.0.1",
        "test.wasm",
        "",
        "route",
        "route",
        "anna",
        "north",
        "m",
    ];
    assert_eq!(output(script, &request), format!("0{}100value", all.join("0")));
    let size = Script::new()
        .call("proxy_get_property", &[S(b"request\0size"), To])
        .raw("(call $status (i32.load (i32.load (i32.const 16))))");
    let size = size.answer(200).hook("proxy_on_request_body", 3, Some(0));
    assert_eq!(text(request.decide(&*filter(&size))), "04");
}

#[test]
fn a_module_reads_and_judges_its_configuration() {
    let script = Script::new()
        .call("proxy_get_buffer_bytes", &[N(7), N(0), N(100), To])
        .given()
        .call("proxy_get_buffer_status", &[N(7), To])
        .hook("proxy_on_configure", 2, Some(1))
        .call("proxy_get_buffer_bytes", &[N(7), N(1), N(3), To])
        .given()
        .answer(200)
        .hook("proxy_on_request_headers", 3, Some(1));
    let file = File::of(&script.text_of());
    assert_eq!(text(TestRequest::get("/").decide(&*file.filter(&json!({"config": "plain"})))), "0plain00lai");
    assert_eq!(text(TestRequest::get("/").decide(&*file.filter(&json!({"config": {"a": 1}})))), "0{\"a\":1}00\"a\"");
    let refuses = File::of(&Script::new().hook("proxy_on_configure", 2, Some(0)).text_of());
    let errors = crate::factory::factory().check(&refuses.config(&json!({"config": 1})));
    assert_eq!((errors.len(), errors[0].path.as_slice()), (1, &["config".to_owned()][..]));
    assert!(errors[0].message.contains("refuses its configuration"), "{errors:?}");
    let ticks = Script::new().call("proxy_set_tick_period_milliseconds", &[N(100)]).raw("unreachable");
    let errors = crate::factory::factory()
        .check(&File::of(&ticks.hook("proxy_on_vm_start", 2, Some(1)).text_of()).config(&json!({})));
    assert!(errors[0].message.contains("it had asked for `proxy_set_tick_period_milliseconds`"), "{errors:?}");
}

#[test]
fn mistakes_of_the_configuration_are_told_with_their_place() {
    let file = File::of(&Script::new().text_of());
    for (more, path, part) in [
        (json!({"limits": {"memory": "1KiB"}}), vec!["limits", "memory"], "expected 64KiB to 1GiB"),
        (json!({"limits": {"time": "2s"}}), vec!["limits", "time"], "expected 1ms to 1s"),
        (json!({"limits": {"wait": "1m"}}), vec!["limits", "wait"], "at most 30s"),
        (json!({"limits": {"memory": "64KiB"}}), vec!["module"], "memory"),
        (json!({"calls": {"a": "nowhere"}}), vec!["calls", "a"], "is not the URL"),
        (json!({"calls": {"a": "http://u:p@a.test"}}), vec!["calls", "a"], "is not the URL"),
    ] {
        let errors = crate::factory::factory().check(&file.config(&more));
        assert_eq!(errors.len(), 1, "{more}: {errors:?}");
        assert_eq!(errors[0].path, path, "{errors:?}");
        assert!(errors[0].message.contains(part), "{more}: {errors:?}");
    }
    let memory = "(memory (export \"memory\") 1)";
    let alloc = "(func (export \"malloc\") (param i32) (result i32) unreachable)";
    let version = "(func (export \"proxy_abi_version_0_2_0\"))";
    for (module, part) in [
        (format!("(module {memory} {alloc})"), "no proxy-wasm module"),
        (format!("(module {memory} {alloc} (func (export \"proxy_abi_version_0_1_0\")))"), "ABI 0.1.0"),
        (format!("(module {version} {alloc})"), "no memory"),
        (format!("(module {version} {memory})"), "neither"),
        (format!("(module (import \"env\" \"proxy_nope\" (func)) {version} {memory} {alloc})"), "`env.proxy_nope`"),
        (format!("(module (import \"env\" \"proxy_log\" (func)) {version} {memory} {alloc})"), "proxy_log"),
        (
            format!("(module (import \"env\" \"memory\" (memory 1)) {version} {alloc} (export \"memory\" (memory 0)))"),
            "no function",
        ),
        (format!("(module {version} {memory} {alloc} (func (export \"proxy_on_log\")))"), "`proxy_on_log`"),
    ] {
        let errors = crate::factory::factory().check(&File::of(&module).config(&json!({})));
        assert!(
            errors.len() == 1 && errors[0].path == ["module"] && errors[0].message.contains(part),
            "{module}: {errors:?}"
        );
    }
    let fine = format!(
        "(module (import \"wasi_snapshot_preview1\" \"path_open\" (func (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32))) \
         {version} {memory} {alloc})"
    );
    assert!(crate::factory::factory().check(&File::of(&fine).config(&json!({}))).is_empty());
    let no_module = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(no_module.path(), "(module)").unwrap();
    let errors = crate::factory::factory().check(&json!({"module": no_module.path()}));
    assert!(errors[0].message.contains("no WebAssembly"), "{errors:?}");
}

#[test]
fn shared_data_queues_and_metrics_are_shared_by_instances() {
    let script = Script::new()
        .call("proxy_get_shared_data", &[S(b"k"), To, N(48)])
        .call("proxy_set_shared_data", &[S(b"k"), S(b"one"), N(0)])
        .call("proxy_set_shared_data", &[S(b"k"), S(b"two"), N(9)])
        .call("proxy_set_shared_data", &[S(b"k"), S(b"two"), N(1)])
        .call("proxy_get_shared_data", &[S(b"k"), To, N(48)])
        .given()
        .call("proxy_resolve_shared_queue", &[S(b""), S(b"q"), N(TO.into())])
        .call("proxy_register_shared_queue", &[S(b"q"), N(TO.into())])
        .call("proxy_resolve_shared_queue", &[S(b""), S(b"q"), N(TO.into())])
        .number()
        .call("proxy_dequeue_shared_queue", &[N(1), To])
        .call("proxy_enqueue_shared_queue", &[N(1), S(b"entry")])
        .call("proxy_enqueue_shared_queue", &[N(7), S(b"entry")])
        .call("proxy_dequeue_shared_queue", &[N(1), To])
        .given()
        .call("proxy_define_metric", &[N(0), S(b"m"), N(TO.into())])
        .call("proxy_define_metric", &[N(1), S(b"m"), N(TO.into())])
        .call("proxy_define_metric", &[N(9), S(b"n"), N(TO.into())])
        .call("proxy_increment_metric", &[N(1), L(3)])
        .call("proxy_increment_metric", &[N(1), L(-1)])
        .call("proxy_record_metric", &[N(1), L(4)])
        .call("proxy_get_metric", &[N(1), N(TO.into())])
        .number()
        .call("proxy_get_metric", &[N(0), N(TO.into())]);
    assert_eq!(output(script, &TestRequest::get("/")), "10800two10017010entry022020071");
}

#[test]
fn time_logs_and_wasi_are_there() {
    let script = Script::new()
        .call("proxy_log", &[N(2), S(b"hello")])
        .call("proxy_log", &[N(9), S(b"hello")])
        .call("proxy_get_log_level", &[N(TO.into())])
        .call("proxy_get_current_time_nanoseconds", &[N(TO.into())])
        .call("proxy_set_effective_context", &[N(1)])
        .call("proxy_set_effective_context", &[N(77)])
        .call("proxy_set_effective_context", &[N(2)])
        .call("proxy_done", &[])
        .call("proxy_get_status", &[N(48), To])
        .call("proxy_continue_stream", &[N(0)])
        .call("proxy_continue_stream", &[N(7)])
        .call("proxy_close_stream", &[N(0)])
        .call("proxy_call_foreign_function", &[S(b"f"), S(b""), To])
        .call("proxy_grpc_cancel", &[N(1)])
        .call("clock_time_get", &[N(0), L(0), N(TO.into())])
        .call("clock_time_get", &[N(1), L(0), N(TO.into())])
        .call("random_get", &[N(TO.into()), N(8)])
        .call("environ_sizes_get", &[To])
        .call("args_get", &[To])
        .call("sched_yield", &[])
        .call("fd_close", &[N(5)])
        .raw("(i32.store (i32.const 100) (i32.const 1024)) (i32.store (i32.const 104) (i32.const 5))")
        .call("fd_write", &[N(1), N(100), N(1), N(TO.into())])
        .number();
    assert_eq!(output(script, &TestRequest::get("/")), "02000200002<<<000000805");
}

#[test]
fn a_request_body_is_read_and_changed() {
    let script = Script::new()
        .call("proxy_get_buffer_bytes", &[N(0), N(0), N(100), To])
        .call("proxy_set_buffer_bytes", &[N(0), N(0), N(5), S(b"HELLO")])
        .call("proxy_set_buffer_bytes", &[N(0), N(99), N(0), S(b"!")])
        .hook("proxy_on_request_body", 3, Some(0));
    let filter = filter(&script);
    assert!(filter.needs_body());
    let rewrite = rewritten(TestRequest::post("/", "hello world").decide(&*filter));
    assert_eq!(rewrite.body.as_deref(), Some(&b"HELLO world!"[..]));
    // Without a body there is none to read.
    assert!(rewritten(TestRequest::post("/", "").decide(&*filter)).body.is_none());
    let file = File::of(&script.text_of());
    assert!(!file.filter(&json!({"requestBody": false})).needs_body());
}

/// Follows an exchange of a module.
fn followed(filter: &Arc<dyn Filter>) -> Rewrite {
    rewritten(TestRequest::get("/").decide(&**filter))
}

#[test]
fn an_answers_headers_and_body_are_changed() {
    let script = Script::new()
        .call("proxy_replace_header_map_value", &[N(2), S(b"server"), S(b"us")])
        .call("proxy_remove_header_map_value", &[N(2), S(b"x-secret")])
        .call("proxy_remove_header_map_value", &[N(2), S(b"content-length")])
        .hook("proxy_on_response_headers", 3, Some(0))
        .call("proxy_set_buffer_bytes", &[N(1), N(0), N(1), S(b"J")])
        .hook("proxy_on_response_body", 3, Some(0));
    let file = File::of(&script.text_of());
    let mut rewrite = followed(&file.filter(&json!({})));
    let head = || headers([("server", "them"), ("x-secret", "1"), ("content-length", "5")]);
    let seen = head();
    let rewriter = rewrite.rewriter.as_mut().unwrap();
    assert!(rewriter.reads(&AnswerHead { status: StatusCode::OK, headers: &seen, is_spilled: false }));
    assert_eq!(rewriter.whole(b"hello").unwrap().unwrap(), "Jello");
    let mut sent = head();
    rewrite.observer.as_mut().unwrap().on_response_head(StatusCode::OK, &mut sent);
    assert_eq!((sent.get("server").unwrap(), sent.get("x-secret"), sent.len()), (&"us".parse().unwrap(), None, 2));
    // Without the body the head is shown when it is sent.
    let mut rewrite = followed(&file.filter(&json!({"responseBody": false})));
    assert!(rewrite.rewriter.is_none());
    let mut sent = head();
    rewrite.observer.as_mut().unwrap().on_response_head(StatusCode::OK, &mut sent);
    assert_eq!(sent.get("server").unwrap(), "us");
}

#[test]
fn a_stream_passes_event_by_event_and_may_be_held_back() {
    let changes = Script::new().call("proxy_set_buffer_bytes", &[N(1), N(6), N(1), S(b"X")]);
    let changes = changes.hook("proxy_on_response_body", 3, Some(0));
    let mut rewriter = followed(&filter(&changes)).rewriter.unwrap();
    let mut out = Vec::new();
    split_events("data: a\n\ndata: b\n\n", |event| match rewriter.event(event) {
        EventChange::Replace(bytes) => out.extend_from_slice(&bytes),
        other => panic!("{other:?}"),
    });
    assert_eq!(String::from_utf8(out).unwrap(), "data: X\n\ndata: X\n\n");
    // All is held until the end.
    let holds = "(func (export \"proxy_on_response_body\") (param i32 i32 i32) (result i32) (i32.eqz (local.get 2)))";
    let mut rewriter = followed(&filter(&Script::new().define(holds))).rewriter.unwrap();
    split_events("data: a\n\ndata: b\n\n", |event| assert!(matches!(rewriter.event(event), EventChange::Drop)));
    assert_eq!(rewriter.end().unwrap(), "data: a\n\ndata: b\n\n");
}

#[test]
fn the_end_is_told_once_whatever_happens() {
    let counts = |name: &[u8]| Script::new().call("proxy_define_metric", &[N(0), S(name), N(TO.into())]);
    let script = counts(b"ends")
        .call("proxy_increment_metric", &[N(1), L(1)])
        .hook("proxy_on_delete", 1, None)
        .call("proxy_get_metric", &[N(1), N(TO.into())])
        .number()
        .call("proxy_get_header_map_value", &[N(0), S(b"x-show"), To])
        .raw("(if (i32.load (i32.const 24)) (then")
        .answer(200)
        .raw("))")
        .hook("proxy_on_request_headers", 3, Some(0));
    let filter = filter(&script);
    let mut rewrite = followed(&filter);
    let mut observer = rewrite.observer.take().unwrap();
    observer.on_end(&exchange_end());
    drop(observer);
    drop(followed(&filter));
    let shown = text(TestRequest::get("/").header("x-show", "1").decide(&*filter));
    // Of the requests before, two have ended.
    assert!(shown.ends_with("020"), "{shown}");
}

#[test]
fn a_call_pauses_and_continues_the_request() {
    let script = || {
        Script::new()
            .call("proxy_http_call", &[
                S(b"judge"),
                S(b"\x03\0\0\0\x07\0\0\0\x03\0\0\0\x05\0\0\0\x03\0\0\0\x03\0\0\0\x01\0\0\0:method\0PUT\0:path\0/ok\0x-q\x001\0"),
                S(b"body"),
                S(b""),
                N(100),
                N(TO.into()),
            ])
            .hook("proxy_on_request_headers", 3, Some(1))
            .call("proxy_get_header_map_value", &[N(6), S(b":status"), To])
            .given()
            .call("proxy_get_buffer_bytes", &[N(4), N(0), N(10), To])
            .given()
            .call("proxy_set_effective_context", &[N(2)])
    };
    let hook = "proxy_on_http_call_response";
    let http = FixedHttp::answering(http::Response::builder().status(418).body(Bytes::from("tea")).unwrap());
    let calls = json!({"calls": {"judge": "http://judge.test/base/"}});
    let ask = |script: Script, http: &Arc<FixedHttp>, more: &serde_json::Value| {
        let file = File::of(&script.text_of());
        let filter = FilterBuilder::new().http(http.clone()).build(&*crate::factory::factory(), &file.config(more));
        wait(TestRequest::get("/").decide(&*filter))
    };
    let answers = ask(script().answer(401).hook(hook, 5, None), &http, &calls);
    let answer = answers.served.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.body[..]), (401, &b"004180tea0"[..]));
    let asked = &http.requests()[0];
    assert_eq!((asked.method().as_str(), asked.uri().to_string().as_str()), ("PUT", "http://judge.test/base/ok"));
    assert_eq!(
        (&asked.headers()["x-q"], &asked.body()[..]),
        (&"1".parse::<http::HeaderValue>().unwrap(), &b"body"[..])
    );
    let goes_on = script()
        .call("proxy_add_header_map_value", &[N(0), S(b"x-judged"), S(b"yes")])
        .call("proxy_continue_stream", &[N(0)])
        .hook(hook, 5, None);
    let waited = ask(goes_on, &http, &calls);
    assert!(waited.refusal.is_none() && waited.failure.is_none());
    assert_eq!(waited.rewrite.request_headers[0].name, "x-judged");
    // A call without an answer is told as well.
    let failed = ask(script().answer(500).hook(hook, 5, None), &FixedHttp::failing("cut"), &calls);
    assert_eq!(&failed.served.unwrap().body[..], b"0100");
    // Who waits for nothing is refused.
    let waits = ask(script().hook(hook, 5, None), &http, &calls);
    assert!(waits.refusal.is_some() && waits.failure.unwrap().contains("waits for no call"));
    let unknown = ask(script().hook(hook, 5, None), &http, &json!({}));
    assert!(unknown.refusal.is_some());
    assert_eq!(unknown.refusal.unwrap().code, "wasm_failed");
}
