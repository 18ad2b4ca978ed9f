//! Modules that do what they should not. None takes more than its bounds, and none ends the host.

use std::time::{Duration, Instant};

use serde_json::json;
use spillway_filter::testing::{TestRequest, headers, wait};
use spillway_filter::{AnswerHead, Filter, Flow};

use super::script::{File, N, S, Script, TO, To, filter};
use super::{followed, output, text};

const HEAD: &str = "proxy_on_request_headers";

/// Reason of the failure of a request, which is refused.
fn failure(filter: &dyn Filter) -> String {
    let flow = TestRequest::get("/").decide(filter);
    assert!(matches!(flow, Flow::Wait(_)), "the module did not fail");
    let waited = wait(flow);
    let refusal = waited.refusal.unwrap();
    assert_eq!((refusal.status.as_u16(), refusal.code), (503, "wasm_failed"));
    waited.failure.unwrap()
}

#[test]
fn a_module_that_spins_is_ended() {
    let file = File::of(&Script::new().raw("(loop (br 0))").hook(HEAD, 3, Some(0)).text_of());
    let filter = file.filter(&json!({"limits": {"time": "20ms"}}));
    assert!(failure(&*filter).contains("limits.time"));
    let open = file.filter(&json!({"limits": {"time": "20ms"}, "onFailure": "open"}));
    let waited = wait(TestRequest::get("/").decide(&*open));
    assert!(waited.refusal.is_none() && waited.failure.is_some());
    // While it starts, too.
    let starts = File::of(&Script::new().raw("(loop (br 0))").hook("proxy_on_vm_start", 2, Some(1)).text_of());
    let errors = crate::factory::factory().check(&starts.config(&json!({})));
    assert!(errors[0].message.contains("longer than 1000 ms"), "{errors:?}");
}

#[test]
fn a_module_that_traps_or_recurses_is_replaced() {
    for (body, part) in [
        ("unreachable", "unreachable"),
        ("(call $deep)", "stack"),
        ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "divide"),
        ("(drop (i32.load (i32.const -8)))", "out of bounds"),
    ] {
        let script = Script::new().define("(func $deep (call $deep))").raw(body).hook(HEAD, 3, Some(0));
        let reason = failure(&*filter(&script));
        assert!(reason.contains(part), "{body}: {reason}");
    }
    // The next request has a new instance, whose memory is clean.
    let script = Script::new()
        .raw("(i32.store8 (i32.const 200) (i32.add (i32.load8_u (i32.const 200)) (i32.const 1))) (call $status (i32.load8_u (i32.const 200)))")
        .call("proxy_get_header_map_value", &[N(0), S(b"x-trap"), To])
        .raw("(if (i32.load (i32.const 24)) (then unreachable))")
        .answer(200)
        .hook(HEAD, 3, Some(0));
    let filter = filter(&script);
    assert_eq!(text(TestRequest::get("/").decide(&*filter)), "11");
    assert_eq!(text(TestRequest::get("/").decide(&*filter)), "1121");
    assert!(wait(TestRequest::get("/").header("x-trap", "1").decide(&*filter)).failure.is_some());
    assert_eq!(text(TestRequest::get("/").decide(&*filter)), "11");
}

#[test]
fn a_module_that_crashes_again_and_again_is_started_later() {
    let filter = filter(&Script::new().raw("unreachable").hook(HEAD, 3, Some(0)));
    let reasons: Vec<String> = (0..20).map(|_| failure(&*filter)).collect();
    assert!(reasons.iter().filter(|reason| reason.contains("too often")).count() >= 10, "{reasons:?}");
    assert!(reasons[0].contains("unreachable"), "{reasons:?}");
}

#[test]
fn memory_is_bounded() {
    let grow = Script::new()
        .raw("(call $status (i32.eq (memory.grow (i32.const 20000)) (i32.const -1)))")
        .raw("(call $status (i32.eq (memory.grow (i32.const 200)) (i32.const -1)))");
    assert_eq!(output(grow, &TestRequest::get("/")), "10");
}

#[test]
fn addresses_that_are_none_are_refused() {
    let script = Script::new()
        .call("proxy_log", &[N(2), N(-1), N(10)])
        .call("proxy_log", &[N(2), N(10), N(-1)])
        .call("proxy_log", &[N(2), N(131_072), N(1)])
        .call("proxy_get_header_map_value", &[N(0), N(-4), N(4), To])
        .call("proxy_get_header_map_value", &[N(0), S(b"x-a"), N(-1), N(24)])
        .call("proxy_get_header_map_value", &[N(0), S(b"x-a"), N(16), N(131_070)])
        .call("proxy_get_header_map_pairs", &[N(0), N(131_071), N(24)])
        .call("proxy_set_header_map_pairs", &[N(0), N(1_024), N(-5)])
        .call("proxy_set_buffer_bytes", &[N(0), N(0), N(0), N(1), N(-1)])
        .call("proxy_get_buffer_bytes", &[N(7), N(0), N(-1), N(-1), N(24)])
        .call("proxy_get_current_time_nanoseconds", &[N(131_068)])
        .call("proxy_set_shared_data", &[N(-9), N(9), S(b"v"), N(0)])
        .call("proxy_enqueue_shared_queue", &[N(1), N(1), N(-1)])
        .call("proxy_define_metric", &[N(0), N(1), N(-1), N(16)])
        .call("proxy_get_property", &[N(1), N(-1), To]);
    assert_eq!(output(script, &TestRequest::get("/").header("x-a", "1")), "6".repeat(15));
    let wasi = Script::new()
        .call("random_get", &[N(131_070), N(8)])
        .call("random_get", &[N(0), N(-1)])
        .call("fd_write", &[N(1), N(-8), N(1), N(16)])
        .call("fd_write", &[N(1), N(0), N(-1), N(16)])
        .call("fd_write", &[N(9), N(0), N(1), N(16)]);
    // 21 and 28 behind the digit of 0.
    assert_eq!(output(wasi, &TestRequest::get("/")), "ELEL8");
}

#[test]
fn an_allocator_that_lies_harms_only_its_module() {
    let script = || {
        Script::new()
            .call("proxy_get_header_map_value", &[N(0), S(b"x-a"), To])
            .call("proxy_get_header_map_value", &[N(0), S(b"x-a"), To])
            .answer(200)
            .hook(HEAD, 3, Some(1))
    };
    let request = TestRequest::get("/").header("x-a", "1");
    for (allocator, shown) in [
        ("(i32.const -1)", Some("66")),
        ("(i32.const 131072)", Some("66")),
        ("(i32.const 0)", Some("::")),
        ("unreachable", None),
        ("(loop (br 0)) unreachable", None),
        ("(call $again)", None),
    ] {
        let text_of = script()
            .define("(func $again (result i32) (call $again))")
            .with(&format!("(func (export \"proxy_on_memory_allocate\") (param i32) (result i32) {allocator})"));
        let filter = File::of(&text_of).filter(&json!({}));
        let flow = request.decide(&*filter);
        match shown {
            Some(shown) => assert_eq!(text(flow), shown, "{allocator}"),
            None => assert!(wait(flow).refusal.is_some(), "{allocator}"),
        }
    }
    // One that asks the host for more while it allocates is given nothing.
    let again = script().with(
        "(func $alloc (export \"malloc\") (param i32) (result i32)
           (drop (call $proxy_get_header_map_value (i32.const 0) (i32.const 1024) (i32.const 3) (i32.const 60) (i32.const 64)))
           (i32.const 70000))",
    );
    assert_eq!(text(request.decide(&*File::of(&again).filter(&json!({})))), "00");
}

#[test]
fn floods_are_bounded() {
    let flood = Script::new()
        .raw("(local $n i32) (loop $more")
        .call("proxy_log", &[N(2), S(b"flood")])
        .call("proxy_add_header_map_value", &[N(0), S(b"x-more"), S(b"1")])
        .call("proxy_set_property", &[S(b"p"), S(b"v")])
        .raw("(i32.store (i32.const 32) (i32.const 0)) (local.set $n (i32.add (local.get $n) (i32.const 1)))")
        .raw("(br_if $more (i32.lt_u (local.get $n) (i32.const 400))))")
        .hook(HEAD, 3, Some(0));
    let file = File::of(&flood.text_of());
    let rewrite = super::rewritten(TestRequest::get("/").decide(&*file.filter(&json!({"limits": {"time": "1s"}}))));
    assert_eq!(rewrite.request_headers[0].values.len(), crate::context::MAX_FIELDS);
    let endless = Script::new()
        .raw("(loop $more")
        .call("proxy_log", &[N(2), S(b"flood")])
        .raw("(i32.store (i32.const 32) (i32.const 0)) (br $more))");
    let began = Instant::now();
    assert!(failure(&*filter(&endless.hook(HEAD, 3, Some(0)))).contains("limits.time"));
    assert!(began.elapsed() < Duration::from_secs(60), "it ends at all");
    let calls = Script::new().raw("(local $n i32) (loop $more").call(
        "proxy_http_call",
        &[S(b"a"), S(b"\x01\0\0\0\x05\0\0\0\x01\0\0\0:path\0/\0"), S(b""), S(b""), N(10), N(TO.into())],
    );
    let calls = calls
        .raw("(local.set $n (i32.add (local.get $n) (i32.const 1))) (br_if $more (i32.lt_u (local.get $n) (i32.const 20))))")
        .answer(200)
        .hook(HEAD, 3, Some(1));
    let filter = File::of(&calls.text_of()).filter(&json!({"calls": {"a": "http://a.test"}, "limits": {"time": "1s"}}));
    assert_eq!(text(TestRequest::get("/").decide(&*filter)), format!("{}::::", "0".repeat(16)));
}

#[test]
fn large_things_are_refused() {
    let script = Script::new()
        .call("proxy_send_local_response", &[N(200), N(0), N(0), N(0), N(1 << 21), N(0), N(0), N(-1)])
        .call("proxy_set_shared_data", &[N(0), N(300), S(b"v"), N(0)])
        .call("proxy_register_shared_queue", &[N(0), N(300), N(TO.into())])
        .call("proxy_add_header_map_value", &[N(0), S(b"x-long"), N(131_072), N(70_000)])
        .raw("(drop (memory.grow (i32.const 100)))")
        .call("proxy_send_local_response", &[N(200), N(0), N(0), N(0), N(1 << 21), N(0), N(0), N(-1)]);
    assert_eq!(output(script, &TestRequest::get("/")), "6::62");
}

#[test]
fn an_answer_whose_module_fails_is_refused_or_passes() {
    let script = Script::new().raw("unreachable").hook("proxy_on_response_body", 3, Some(0));
    let file = File::of(&script.text_of());
    let head = headers([]);
    let head = AnswerHead { status: http::StatusCode::OK, headers: &head, is_spilled: false };
    let mut closed = followed(&file.filter(&json!({}))).rewriter.unwrap();
    assert!(closed.reads(&head));
    assert_eq!(closed.whole(b"secret").unwrap_err().code, "wasm_failed");
    let mut open = followed(&file.filter(&json!({"onFailure": "open"}))).rewriter.unwrap();
    assert!(open.reads(&head));
    assert_eq!(open.whole(b"plain").unwrap(), None);
    let script = Script::new().raw("unreachable").hook("proxy_on_response_headers", 3, Some(0));
    let script = script.hook("proxy_on_response_body", 3, Some(0));
    let mut closed = followed(&filter(&script)).rewriter.unwrap();
    assert!(closed.reads(&head), "it is read to be refused");
    assert!(closed.whole(b"secret").is_err());
}

#[test]
fn an_end_by_the_module_is_a_failure() {
    let exits = "(import \"wasi_snapshot_preview1\" \"proc_exit\" (func $exit (param i32)))";
    let text_of = Script::new().raw("(call $exit (i32.const 3))").hook(HEAD, 3, Some(0)).text_of();
    let text_of = text_of.replacen("(module", &format!("(module {exits}"), 1);
    assert!(failure(&*File::of(&text_of).filter(&json!({}))).contains("proc_exit(3)"));
}
