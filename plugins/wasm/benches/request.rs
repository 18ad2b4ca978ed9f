//! The cost of a module for a request: one that reads a header and sets another, in WebAssembly written by hand, so that the
//! host is measured and no SDK. The aim is at most 15 us for a request with its end.
//! `cargo bench -p spillway-wasm --bench request`.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "a benchmark")]

use criterion::{Criterion, criterion_group, criterion_main};
use spillway_config::FilterCatalog as _;
use spillway_filter::testing::TestRequest;
use spillway_filter::{
    BuildContext, Counters, Flow, GrpcClient, HttpClient, NoClassifiers, NoEmbedders, NoGrpc, NoHttp, NoPrices,
    Pricing, SharedStates,
};

const MODULE: &str = r#"(module
  (import "env" "proxy_get_header_map_value" (func $get (param i32 i32 i32 i32 i32) (result i32)))
  (import "env" "proxy_replace_header_map_value" (func $set (param i32 i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (data (i32.const 1024) "x-tenant")
  (data (i32.const 1040) "x-seen")
  (func (export "proxy_abi_version_0_2_1"))
  (func (export "proxy_on_memory_allocate") (param i32) (result i32) (i32.const 2048))
  (func (export "proxy_on_context_create") (param i32 i32))
  (func (export "proxy_on_log") (param i32))
  (func (export "proxy_on_delete") (param i32))
  (func (export "proxy_on_request_headers") (param i32 i32 i32) (result i32)
    (drop (call $get (i32.const 0) (i32.const 1024) (i32.const 8) (i32.const 16) (i32.const 20)))
    (drop (call $set (i32.const 0) (i32.const 1040) (i32.const 6) (i32.load (i32.const 16)) (i32.load (i32.const 20))))
    (i32.const 0)))"#;

fn requests(c: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let module = folder.path().join("bench.wasm");
    std::fs::write(&module, wat::parse_str(MODULE).unwrap()).unwrap();
    let registry = spillway_wasm::registry();
    // On a busy machine a call may stand still for longer than the default.
    let config = serde_json::json!({"module": module, "limits": {"time": "1s"}});
    assert_eq!(registry.check("wasm", &config), []);
    let (states, http) = (SharedStates::default(), std::sync::Arc::new(NoHttp) as std::sync::Arc<dyn HttpClient>);
    let grpc = std::sync::Arc::new(NoGrpc) as std::sync::Arc<dyn GrpcClient>;
    let counters = Counters::default();
    let prices = std::sync::Arc::new(NoPrices) as std::sync::Arc<dyn Pricing>;
    let cx = BuildContext {
        route: "bench",
        prefixes: &[],
        states: &states,
        http: &http,
        grpc: &grpc,
        embedders: &NoEmbedders,
        classifiers: &NoClassifiers,
        counters: &counters,
        answers: None,
        prices: &prices,
    };
    let filter = registry.build("wasm", &config, &cx).unwrap();
    let mut request =
        TestRequest::get("/v1/chat/completions").header("host", "api.example.com").header("x-tenant", "acme");
    for n in 0..10 {
        request = request.header(&format!("x-other-{n}"), "a value of some length");
    }
    c.bench_function("headers", |b| {
        b.iter(|| {
            let Flow::Rewrite(rewrite) = request.decide(&*filter) else { panic!("the module changed nothing") };
            rewrite.request_headers.len()
        });
    });
}

criterion_group!(benches, requests);
criterion_main!(benches);
