//! Three times the load that two real llama.cpp servers take, in short streamed completions. Measured: goodput,
//! answers to all requests, and time to first byte, minute by minute, so that a collapse would be seen.

use std::process::Command;
use std::time::{Duration, Instant};

use super::{End, Gateway, Question, Told, Upstream, ask, count, millis_at, open_loop, start_gateway};
use crate::process::{Process, free_port, named, wait_for};

/// Slots of each server.
const PLACES: usize = 2;
/// Longest wait in the gateway's queue, in milliseconds.
const QUEUE: u64 = 1_000;
/// Request for a short answer.
const BODY: &str = r#"{"model":"m","stream":true,"temperature":0,"max_tokens":8,"messages":[{"role":"user","content":"Name three colours."}]}"#;

/// Spill target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Spill {
    /// Built-in model, on one thread, on the same processors as the servers.
    Inside,
    /// Scripted server without cost, so that the servers' goodput depends on admission alone.
    Scripted,
}

/// Runs for `seconds`, between two measurements of the servers alone.
pub(crate) async fn run(seconds: u32, spill: Spill) {
    let servers = [llama(), llama()];
    let ports: Vec<u16> = servers.iter().map(|(_, port)| *port).collect();
    let spare = Upstream::wide();
    let alone_for = (seconds / 10).clamp(5, 30);
    let (rate, alone) = stand_alone(&ports, alone_for).await;
    let gateway = gateway(&ports, spare.port, spill);
    let offered = 3.0 * rate;
    println!(
        "\nTwo llama.cpp servers of {PLACES} places give {rate:.1} answers/s alone; {offered:.1} requests/s for {seconds} s, queue of {QUEUE} ms, spilled {}",
        if spill == Spill::Inside { "inside" } else { "to a scripted server" }
    );
    let told = open_loop(gateway.port, offered, seconds, Question::Chat(BODY)).await;
    drop(gateway);
    let (rate_after, _) = stand_alone(&ports, alone_for).await;
    println!(
        "{:>8} {:>10} {:>8} {:>9} {:>9} {:>12} {:>12}",
        "minute", "served/s", "share", "spilled", "200", "p50 ms", "p99 ms"
    );
    let minutes = seconds.div_ceil(60);
    for minute in 0..minutes {
        let (from, to) = (minute * 60, ((minute + 1) * 60).min(seconds));
        let inside = |t: &&Told| t.at >= Duration::from_secs(from.into()) && t.at < Duration::from_secs(to.into());
        line(&(minute + 1).to_string(), told.iter().filter(inside).copied().collect(), to - from, rate);
    }
    line("all", told.clone(), seconds, rate);
    // A request waits for a slot, and then for its first token like any other.
    let bound = QUEUE as f64 + millis_at(&alone, End::Served, 0.99);
    println!(
        "goodput {:.1} % of stand-alone before and {:.1} % of that after ({rate_after:.1}/s); first byte of those who were served: p99 {:.0} ms, bound {bound:.0} ms (queue, and p99 alone)",
        count(&told, End::Served) as f64 / f64::from(seconds) / rate * 100.0,
        count(&told, End::Served) as f64 / f64::from(seconds) / rate_after * 100.0,
        millis_at(&told, End::Served, 0.99),
    );
    println!(
        "answered 200: {:.2} % of {} ({} refused, {} cut, {} lost)",
        answered(&told) * 100.0,
        told.len(),
        count(&told, End::Refused),
        count(&told, End::Cut),
        count(&told, End::Lost)
    );
}

fn answered(told: &[Told]) -> f64 {
    (count(told, End::Served) + count(told, End::Spilled)) as f64 / told.len() as f64
}

fn line(name: &str, told: Vec<Told>, seconds: u32, alone: f64) {
    let served = count(&told, End::Served) as f64 / f64::from(seconds);
    println!(
        "{name:>8} {served:>10.1} {:>7.1}% {:>9} {:>8.2}% {:>12.0} {:>12.0}",
        served / alone * 100.0,
        count(&told, End::Spilled),
        answered(&told) * 100.0,
        millis_at(&told, End::Served, 0.5),
        millis_at(&told, End::Served, 0.99)
    );
}

fn llama() -> (Process, u16) {
    let port = free_port();
    let model = named("SPILLWAY_TEST_MODEL");
    let process = Process::start(Command::new(named("SPILLWAY_TEST_PYTHON")).arg("scripts/llama_server.py").args([
        "--model",
        model.to_str().unwrap(),
        "--port",
        &port.to_string(),
        "--parallel",
        &PLACES.to_string(),
        "--threads",
        "1",
        "--ctx",
        "2048",
    ]));
    wait_for(port);
    (process, port)
}

fn gateway(ports: &[u16], spare: u16, spill: Spill) -> Gateway {
    let endpoints: Vec<String> = ports.iter().map(|port| format!("{{url: \"http://127.0.0.1:{port}\"}}")).collect();
    let (target, model) = match spill {
        Spill::Scripted => ("spare", String::new()),
        Spill::Inside => (
            "inside",
            format!(
                "models: [{{name: inside, source: \"{}\", device: cpu, cores: 1, contextLength: 512, maxSequences: 16, maxQueue: 1024, maxQueueWait: 60s}}]\n",
                named("SPILLWAY_TEST_MODEL").display()
            ),
        ),
    };
    start_gateway(&format!(
        "backends:
  - {{name: fleet, protocol: openai, endpoints: [{}], capacity: {{maxInFlight: {PLACES}}}}}
  - {{name: spare, endpoints: [{{url: \"http://127.0.0.1:{spare}\"}}]}}
{model}routes:
  - backendRefs: [{{name: fleet}}]
    retry: {{attempts: 3, on: [connectFailure, reset, \"502\", \"504\"]}}
    whenSaturated: {{queue: {{maxWait: {QUEUE}ms, maxDepth: 200}}, spillTo: {target}}}
",
        endpoints.join(", ")
    ))
}

/// Answers a second, and all answers, when each server has exactly as many clients as slots, without a gateway.
async fn stand_alone(ports: &[u16], seconds: u32) -> (f64, Vec<Told>) {
    // The first answers warm the servers up.
    for port in ports {
        ask(*port, Duration::ZERO, Question::Chat(BODY)).await;
    }
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds.into());
    let mut tasks = tokio::task::JoinSet::new();
    for port in ports.iter().copied().flat_map(|port| std::iter::repeat_n(port, PLACES)) {
        tasks.spawn(async move {
            let mut told = Vec::new();
            while Instant::now() < until {
                told.push(ask(port, Duration::ZERO, Question::Chat(BODY)).await);
            }
            told
        });
    }
    let mut all = Vec::new();
    while let Some(told) = tasks.join_next().await {
        all.extend(told.unwrap());
    }
    (count(&all, End::Served) as f64 / began.elapsed().as_secs_f64(), all)
}
