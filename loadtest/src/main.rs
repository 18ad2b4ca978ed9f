//! Measurements compared with peers, interleaved in one run: they print ratios with medians and spread and assert
//! nothing. Load goes to loopback only. `make bench` builds all and runs the comparison with other proxies;
//! `scripts/bench.sh NAME` runs another scenario. The soak alone judges: `make soak`.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_precision_loss,
    clippy::indexing_slicing,
    reason = "a program that stops where something is not as it must be"
)]

mod beside;
mod compare;
mod embeddings;
mod engine;
mod http;
mod idle;
mod overload;
mod process;
mod rotation;
mod soak;
mod translate;

use clap::{Parser, ValueEnum};

/// The allocator that the gateway has, so that the bare Pingora proxy has it too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Compares Spillway with its peers on this machine.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Runs as an upstream of a scenario instead.
    #[command(subcommand)]
    part: Option<Part>,
    /// Scenario to run.
    #[arg(value_enum, default_value = "peers")]
    scenario: Scenario,
    /// Rounds, in each of which every candidate runs once.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each run; default: 5, beside other proxies 3.
    #[arg(long)]
    seconds: Option<u32>,
    #[command(flatten)]
    comparison: compare::Options,
    /// Servers of the overload scenario: llama.cpp runs only its first part, for `--seconds` in all.
    #[arg(long, value_enum, default_value = "scripted")]
    servers: Servers,
    /// Target of requests for which the llama.cpp servers have no room.
    #[arg(long, value_enum, default_value = "inside")]
    spill: overload::Spill,
    /// Idle connections; both ends need as many open files.
    #[arg(long, default_value_t = 10_000)]
    connections: usize,
    /// Threads of the engine and of llama.cpp; default: the machine's processors.
    #[arg(long)]
    cores: Option<usize>,
    /// Device of the engine, as in the configuration of a model: `cpu`, `auto`, `software`.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Concurrent answers of the engine and of llama.cpp.
    #[arg(long, default_value_t = 16)]
    together: usize,
    /// GGUF file for the engine and llama.cpp; may be given several times. Default: the demo model.
    #[arg(long)]
    model: Vec<std::path::PathBuf>,
    /// Vector unit of the engine, such as AVX2; default: the fastest.
    #[arg(long)]
    unit: Option<String>,
    /// `llama-server` to compare with, such as one built for this processor; default: that of the Python package.
    #[arg(long)]
    llama_server: Option<std::path::PathBuf>,
    /// Python interpreter with sentence-transformers or onnxruntime, to compare embeddings with.
    #[arg(long)]
    python: Option<std::path::PathBuf>,
    /// The embedding model in ONNX: the peer is ONNX Runtime then, in that Python.
    #[arg(long)]
    onnx: Option<std::path::PathBuf>,
    /// Keeps the weights of the built-in embedding model in 8 bits.
    #[arg(long)]
    int8: bool,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Scripted upstream, which the overload scenario starts.
    Server(overload::Server),
    /// A mix of everything for a long time; fails where a check does (`make soak`).
    Soak {
        /// Seconds, 50 or more.
        #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u32).range(50..))]
        seconds: u32,
    },
    /// Bare proxy of Pingora, which the peers scenario starts.
    BarePingora(compare::BarePingora),
}

/// Kind of overloaded servers.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Servers {
    /// Servers that sleep.
    Scripted,
    /// Two llama.cpp servers with the demo model.
    Llama,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Three times the load that scripted servers take, and servers that fail; `--seconds 600` for ten minutes.
    Overload,
    /// Spillway beside other proxies and gateways: one table, written into docs/benchmarks.md where all of it ran.
    Peers,
    /// Ten thousand idle and slow clients beside normal traffic.
    Idle,
    /// API keys and certificates that change under 2,000 requests a second.
    Rotation,
    /// Tokens per second of the engine and of llama.cpp, memory, time to first token.
    Engine,
    /// Proxied requests, beside an idle and a saturated built-in model.
    Beside,
    /// Texts per second embedded by the engine and by sentence-transformers.
    Embeddings,
    /// Streams of Anthropic's API to callers of OpenAI's, beside passing them, and beside LiteLLM.
    Translate,
}

fn main() {
    let arguments = Arguments::parse();
    match arguments.part {
        Some(Part::BarePingora(proxy)) => proxy.run(),
        Some(Part::Server(server)) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(server.run());
        }
        Some(Part::Soak { seconds }) => std::process::exit(i32::from(!soak::run(seconds))),
        None => run(arguments),
    }
}

fn run(arguments: Arguments) {
    let machine = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let (rounds, seconds) = (arguments.rounds, arguments.seconds.unwrap_or(5));
    match arguments.scenario {
        Scenario::Peers => compare::run(&arguments.comparison, rounds, arguments.seconds.unwrap_or(3)),
        Scenario::Translate => translate::run(rounds, seconds),
        Scenario::Idle => idle::run(arguments.connections, seconds),
        Scenario::Overload => match arguments.servers {
            Servers::Scripted => overload::run(seconds),
            Servers::Llama => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(overload::run_real(seconds, arguments.spill));
            }
        },
        Scenario::Rotation => rotation::run(seconds),
        Scenario::Engine => engine::run(&engine::Comparison {
            rounds,
            cores: arguments.cores.unwrap_or(machine),
            together: arguments.together,
            device: arguments.device,
            models: arguments.model,
            unit: arguments.unit,
            llama: arguments.llama_server,
        }),
        Scenario::Beside => beside::run(&arguments.device, arguments.cores, rounds, seconds),
        Scenario::Embeddings => embeddings::run(&embeddings::Comparison {
            rounds,
            cores: arguments.cores.unwrap_or(machine),
            model: arguments
                .model
                .into_iter()
                .next()
                .unwrap_or_else(|| "models/all-minilm-l6-v2/model.safetensors".into()),
            unit: arguments.unit,
            python: arguments.python,
            onnx: arguments.onnx,
            int8: arguments.int8,
        }),
    }
}

/// Value below which this share (0 to 1) of sorted values lies; NaN where there are none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    sorted.get((sorted.len().saturating_sub(1) as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}

/// Median, minimum and maximum.
fn spread(values: &[f64]) -> (f64, f64, f64) {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    (sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1])
}
