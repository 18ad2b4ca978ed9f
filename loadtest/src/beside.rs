//! Cost of the engine to the proxy: latency of proxied requests at a steady rate, alternately while the built-in
//! model is idle and while it is saturated.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;

use crate::process::{Process, free_port, named, wait_for};
use crate::{http, spread};

/// Proxied requests a second.
const RATE: u32 = 500;
/// Connections of these requests, so that a slow answer delays no other request.
const CONNECTIONS: u32 = 50;
/// Concurrent answers of the model.
const TOGETHER: usize = 16;

/// Runs the scenario and prints the results.
pub(crate) fn run(device: &str, cores: Option<usize>, rounds: usize, seconds: u32) {
    let folder = std::env::temp_dir().join(format!("spillway-loadtest-beside-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (upstream, port) = (free_port(), free_port());
    let config = folder.join("beside.yaml");
    let model = std::path::absolute(named("SPILLWAY_TEST_MODEL")).unwrap();
    let cores = cores.map_or_else(String::new, |cores| format!(", cores: {cores}"));
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:{port}\"}}]
models: [{{name: m, source: \"{}\", device: {device}{cores}, maxSequences: {TOGETHER}, maxQueueWait: 10m}}]
backends: [{{name: u, endpoints: [{{url: \"http://127.0.0.1:{upstream}\"}}]}}]
routes:
  - {{name: inside, matches: [{{path: {{prefix: /v1/}}}}], backendRefs: [{{model: m}}]}}
  - {{name: through, backendRefs: [{{name: u}}]}}
telemetry: {{logs: {{access: false}}}}
",
        model.display()
    );
    std::fs::write(&config, yaml).unwrap();
    let _upstream = Process::answering(&folder, upstream);
    let _gateway = Process::start(Command::new(named("SPILLWAY_BIN")).args(["serve", "-c"]).arg(&config));
    wait_for(port);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (mut idle, mut busy, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    runtime.block_on(async {
        // The first answer and the first requests include the set-up.
        write(port, 1).await;
        steady(port, 1).await;
        for _ in 0..rounds {
            idle.push(steady(port, seconds).await);
            let stop = Arc::new(AtomicBool::new(false));
            let written = Arc::new(AtomicU64::new(0));
            let mut writers = tokio::task::JoinSet::new();
            for _ in 0..TOGETHER {
                let (stop, written) = (stop.clone(), written.clone());
                writers.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        written.fetch_add(write(port, 32).await, Ordering::Relaxed);
                    }
                });
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            let (before, began) = (written.load(Ordering::Relaxed), Instant::now());
            busy.push(steady(port, seconds).await);
            tokens.push((written.load(Ordering::Relaxed) - before) as f64 / began.elapsed().as_secs_f64());
            stop.store(true, Ordering::Relaxed);
            while let Some(ended) = writers.join_next().await {
                ended.unwrap();
            }
        }
    });
    println!(
        "\n{RATE} requests/s to a server, {rounds} rounds of {seconds} s, beside the built-in model ({device}{cores}) idle and with {TOGETHER} answers ({:.0} tokens/s), in turn",
        spread(&tokens).0
    );
    for (name, share) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999)] {
        let at = |rounds: &[Vec<f64>]| -> Vec<f64> {
            rounds.iter().map(|latencies| crate::percentile(latencies, share) * 1e3).collect()
        };
        let (idle, busy) = (at(&idle), at(&busy));
        let ratios: Vec<f64> = idle.iter().zip(&busy).map(|(idle, busy)| busy / idle).collect();
        let [(idle, ..), (busy, ..), (ratio, least, most)] = [&idle, &busy, &ratios].map(|values| spread(values));
        println!("{name}: idle {idle:.2} ms, busy {busy:.2} ms, ratio {ratio:.2} ({least:.2}..{most:.2})");
    }
    let _ = std::fs::remove_dir_all(folder);
}

/// Requests an answer of the model; returns its tokens.
async fn write(port: u16, tokens: u32) -> u64 {
    let body = serde_json::json!({
        "model": "m", "max_tokens": tokens, "temperature": 0,
        "messages": [{"role": "user", "content": "Write a long story about a river."}],
    });
    let answer = http::post(port, "/v1/chat/completions", &body).await;
    answer["usage"]["completion_tokens"].as_u64().unwrap_or_else(|| panic!("{answer}"))
}

/// Sorted latencies in seconds of requests at the steady rate, from when each was due.
async fn steady(port: u16, seconds: u32) -> Vec<f64> {
    let between = Duration::from_secs(1) * CONNECTIONS / RATE;
    let began = Instant::now() + Duration::from_millis(10);
    let mut clients = tokio::task::JoinSet::new();
    for n in 0..CONNECTIONS {
        clients.spawn(async move {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            stream.set_nodelay(true).unwrap();
            let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
            let connection = tokio::spawn(connection);
            let mut latencies = Vec::new();
            for turn in 0..seconds * RATE / CONNECTIONS {
                let due = began + between * turn + between * n / CONNECTIONS;
                tokio::time::sleep_until(due.into()).await;
                let request = ::http::Request::get("/").header("host", "localhost").body(Empty::<bytes::Bytes>::new());
                let answer = sender.send_request(request.unwrap()).await.unwrap();
                assert_eq!(answer.status(), 200);
                answer.into_body().collect().await.unwrap();
                latencies.push(due.elapsed().as_secs_f64());
            }
            connection.abort();
            latencies
        });
    }
    let mut latencies = Vec::new();
    while let Some(ended) = clients.join_next().await {
        latencies.extend(ended.unwrap());
    }
    latencies.sort_by(f64::total_cmp);
    latencies
}
