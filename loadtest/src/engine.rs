//! Tokens per second of the model inside and of a llama.cpp server on the same file and cores, both over HTTP: one
//! answer at a time, then eight together.

use std::process::Command;
use std::time::Instant;

use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;

use crate::process::{Process, free_port, named, wait_for};
use crate::spread;

const TOKENS: u32 = 64;

/// Runs and prints.
pub(crate) fn run(rounds: usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (ours, theirs) = (free_port(), free_port());
    let model = named("SPILLWAY_TEST_MODEL");
    let folder = std::env::temp_dir().join(format!("spillway-loadtest-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let config = folder.join("engine.yaml");
    let yaml = format!(
        "listeners: [{{address: \"127.0.0.1:{ours}\"}}]\nmodels: [{{name: m, source: \"{}\", maxSequences: 8, maxQueueWait: 10m}}]\nroutes: [{{backendRefs: [{{model: m}}]}}]\n",
        model.display()
    );
    std::fs::write(&config, yaml).unwrap();
    let _gateway = Process::start(Command::new(named("SPILLWAY_BIN")).args(["serve", "-c"]).arg(&config));
    let _llama = Process::start(Command::new(named("SPILLWAY_TEST_PYTHON")).arg("scripts/llama_server.py").args([
        "--model",
        model.to_str().unwrap(),
        "--port",
        &theirs.to_string(),
        "--parallel",
        "8",
        "--threads",
        "2",
        "--ctx",
        "8192",
    ]));
    wait_for(ours);
    wait_for(theirs);
    println!("\nTokens per second over HTTP, {TOKENS} tokens an answer, {rounds} rounds in turn, 2 threads each");
    for together in [1, 8] {
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..=rounds {
            for (port, rates) in [ours, theirs].into_iter().zip(&mut rates) {
                let rate = runtime.block_on(answers(port, together));
                // The first round warms up.
                if round > 0 {
                    rates.push(rate);
                }
            }
        }
        let [(a, a_least, a_most), (b, b_least, b_most)] = rates.map(|r| spread(&r));
        println!(
            "{together} together: inside {a:.1} ({a_least:.1}..{a_most:.1}), llama.cpp on the CPU {b:.1} ({b_least:.1}..{b_most:.1}), ratio {:.2}",
            a / b
        );
    }
    let _ = std::fs::remove_dir_all(folder);
}

async fn answers(port: u16, together: usize) -> f64 {
    let started = Instant::now();
    let counts = futures::future::join_all((0..together).map(|n| answer(port, n))).await;
    f64::from(counts.into_iter().sum::<u32>()) / started.elapsed().as_secs_f64()
}

async fn answer(port: u16, n: usize) -> u32 {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let body = serde_json::json!({
        "model": "m", "temperature": 0, "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": format!("Write a long story about the number {n}.")}]
    });
    let request = http::Request::post("/v1/chat/completions")
        .header("host", "localhost")
        .header("content-type", "application/json")
        .body(Full::new(bytes::Bytes::from(body.to_string())))
        .unwrap();
    let answer = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    connection.abort();
    let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
    u32::try_from(answer["usage"]["completion_tokens"].as_u64().unwrap_or_else(|| panic!("{answer}"))).unwrap()
}
