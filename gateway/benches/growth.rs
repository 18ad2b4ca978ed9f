//! Costs that grow with the configuration: one look-up among many routes, memory of a route and of a consumer, and the
//! steps of a reload. `cargo bench -p spillway --bench growth [COUNT]`; the default is 10,000.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_precision_loss,
    clippy::print_stdout,
    missing_docs,
    reason = "a measurement"
)]

use std::alloc::{GlobalAlloc, Layout};
use std::fmt::Write as _;
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue, Method};
use spillway::load;
use spillway::routing::HeadContext;
use spillway::snapshot::{Compiler, Snapshot};
use spillway_config::Loaded;
use spillway_filter::Fields;
use spillway_filter::Registry;

/// Allocator of the program that counts what is held.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grown(size: usize) {
    let held = HELD.fetch_add(size, Ordering::Relaxed) + size;
    MOST.fetch_max(held, Ordering::Relaxed);
}

// SAFETY: every call is passed on to the allocator of the program as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: as above.
        unsafe { mimalloc::MiMalloc.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { mimalloc::MiMalloc.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        grown(size);
        // SAFETY: as above.
        unsafe { mimalloc::MiMalloc.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Routes that differ in one thing.
#[derive(Clone, Copy)]
enum Kind {
    Prefix,
    Exact,
    Model,
    ModelPattern,
    Host,
    Wildcard,
    Header,
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Prefix, "prefix"),
    (Kind::Exact, "exact"),
    (Kind::Model, "model"),
    (Kind::ModelPattern, "model pattern"),
    (Kind::Host, "host"),
    (Kind::Wildcard, "wildcard host"),
    (Kind::Header, "header"),
];

/// Configuration with `count` routes to one backend.
fn routes(kind: Kind, count: usize) -> String {
    let mut text = "listeners: [{address: \"127.0.0.1:0\"}]\n\
        backends: [{name: b, protocol: openai, endpoints: [{url: \"http://127.0.0.1:9\"}]}]\nroutes:\n"
        .to_owned();
    for n in 0..count {
        let differs = match kind {
            Kind::Prefix => format!("matches: [{{path: {{prefix: /team/{n}}}}}]"),
            Kind::Exact => format!("matches: [{{path: {{exact: /team/{n}}}}}]"),
            Kind::Model => format!("matches: [{{path: {{prefix: /v1}}, model: model-{n}}}]"),
            Kind::ModelPattern => format!("matches: [{{path: {{prefix: /v1}}, model: \"model-{n}-*\"}}]"),
            Kind::Host => format!("hostnames: [host-{n}.example.com]"),
            Kind::Wildcard => format!("hostnames: [\"*.host-{n}.example.com\"]"),
            Kind::Header => format!("matches: [{{headers: [{{name: x-team, exact: \"{n}\"}}]}}]"),
        };
        writeln!(text, "  - {{name: route-{n}, {differs}, backendRefs: [{{name: b}}]}}").unwrap();
    }
    text
}

/// Configuration with `count` consumers, each with a key and two limits.
fn consumers(count: usize) -> String {
    let mut text = routes(Kind::Prefix, 1);
    text.push_str("consumers:\n");
    for n in 0..count {
        let limits = "{requests: 100/s, tokens: 100000/min}";
        // Digests of keys are spread over their whole range.
        let digest = (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        writeln!(text, "  - {{name: consumer-{n}, keys: [{{sha256: \"{digest:016x}{n:048x}\"}}], limits: {limits}}}")
            .unwrap();
    }
    text
}

struct Bench {
    registry: Arc<Registry>,
    runtime: tokio::runtime::Runtime,
}

/// Figures of one configuration.
struct Compiled {
    snapshot: Snapshot,
    load: Duration,
    compile: Duration,
    /// Bytes held by the snapshot and all state that it made.
    held: usize,
    /// Most bytes held on the way.
    most: usize,
}

impl Bench {
    fn load(&self, text: &str) -> Loaded {
        load::read_text(Path::new("/tmp/spillway.yaml"), text, &self.registry, false).unwrap_or_else(|e| panic!("{e}"))
    }

    fn compile(&self, text: &str) -> Compiled {
        let before = HELD.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let began = Instant::now();
        let loaded = self.load(text);
        let load = began.elapsed();
        let compiler = Compiler::for_judging(&loaded.config, self.registry.clone(), false);
        let began = Instant::now();
        let snapshot = self.runtime.block_on(compiler.compile(&loaded, None)).unwrap();
        snapshot.commit_steps.run();
        let compile = began.elapsed();
        drop(loaded);
        let held = HELD.load(Ordering::Relaxed) - before;
        Compiled { snapshot, load, compile, held, most: MOST.load(Ordering::Relaxed) - before }
    }
}

/// Time of one look-up.
fn look_up(snapshot: &Snapshot, kind: Kind, count: usize) -> Duration {
    const ROUNDS: usize = 200_000;
    let context = HeadContext { query: "", client: IpAddr::V4(Ipv4Addr::LOCALHOST) };
    // What a client would send, in an order that no cache foresees.
    let asked: Vec<(String, String, Option<String>, Fields)> = (0..1024)
        .map(|n| {
            let n = n * 7919 % count;
            let mut headers = Fields::default();
            headers.insert(HeaderName::from_static("x-team"), HeaderValue::from_str(&n.to_string()).unwrap());
            let host = match kind {
                Kind::Host => format!("host-{n}.example.com"),
                Kind::Wildcard => format!("x.host-{n}.example.com"),
                _ => "example.com".to_owned(),
            };
            match kind {
                Kind::Prefix => (host, format!("/team/{n}/chat/completions"), None, headers),
                Kind::Exact => (host, format!("/team/{n}"), None, headers),
                Kind::Model => (host, "/v1/chat/completions".to_owned(), Some(format!("model-{n}")), headers),
                Kind::ModelPattern => (host, "/v1/chat/completions".to_owned(), Some(format!("model-{n}-x")), headers),
                Kind::Host | Kind::Wildcard | Kind::Header => (host, "/".to_owned(), None, headers),
            }
        })
        .collect();
    let find = |n: usize| {
        let (host, path, model, headers) = &asked[n % asked.len()];
        let found = snapshot.routes.candidates(Some(host), path, &Method::POST, headers, context);
        let route = found.only().or_else(|| found.by_model(model.as_deref()));
        black_box(route.unwrap().max_body)
    };
    let rounds = if matches!(kind, Kind::Header) { ROUNDS / 100 } else { ROUNDS };
    (0..rounds / 10).for_each(|n| {
        find(n);
    });
    let began = Instant::now();
    (0..rounds).for_each(|n| {
        find(n);
    });
    began.elapsed() / u32::try_from(rounds).unwrap()
}

fn main() {
    let count = std::env::args().filter_map(|argument| argument.parse::<usize>().ok()).next().unwrap_or(10_000);
    let registry = Arc::new(spillway_filters::registry());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let bench = Bench { registry, runtime };
    let row = |name: &str, one: &Compiled, many: Compiled, looks: [Option<Duration>; 2]| {
        let began = Instant::now();
        drop(many.snapshot);
        let dropped = began.elapsed();
        let each = many.held.saturating_sub(one.held) as f64 / (count - 1) as f64;
        let nanos = |look: Option<Duration>| look.map_or_else(String::new, |look| look.as_nanos().to_string());
        println!(
            "| {name} | {} | {} | {each:.0} | {:.1} | {:.1} | {:.1} | {} |",
            nanos(looks[0]),
            nanos(looks[1]),
            many.load.as_secs_f64() * 1e3,
            many.compile.as_secs_f64() * 1e3,
            dropped.as_secs_f64() * 1e3,
            many.most >> 20
        );
    };
    println!(
        "| {count} of | look-up of 1, ns | of {count}, ns | bytes each | load, ms | compile, ms | drop, ms | peak, MiB |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (kind, name) in KINDS {
        let (one, many) = (bench.compile(&routes(kind, 1)), bench.compile(&routes(kind, count)));
        let looks = [(&one, 1), (&many, count)].map(|(compiled, count)| Some(look_up(&compiled.snapshot, kind, count)));
        row(name, &one, many, looks);
    }
    let (one, many) = (bench.compile(&consumers(1)), bench.compile(&consumers(count)));
    row("consumer", &one, many, [None, None]);
}
