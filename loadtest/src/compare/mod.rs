//! Spillway beside other proxies: each workload against each peer, in turn in every round, on this machine's loopback. A
//! workload is data, a peer a type that starts its program; the runner here is the same for all of them.

mod load;
mod machine;
mod origin;
mod peer;
mod plot;
mod report;
mod runner;
mod workload;

use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use rcgen::{CertifiedKey, generate_simple_self_signed};

pub(crate) use peer::BarePingora;

use runner::Runner;
use workload::Workload;

/// Page that the table is written into, and the folder of its plots.
const PAGE: &str = "docs/benchmarks.md";
const PLOTS: &str = "docs/benchmarks";

/// Choice of peers and workloads.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Peers, with commas between them; default: all that are installed. nginx always takes part.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Workloads or the beginnings of their names, such as `bare,sse`; default: all.
    #[arg(long, value_delimiter = ',')]
    workloads: Vec<String>,
    /// Threads or processes of each peer that carry requests.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// A single round of a second each: to try things out, not for figures.
    #[arg(long)]
    quick: bool,
}

/// Measures, prints the table, and writes it where everything was measured in full.
pub(crate) fn run(options: &Options, rounds: usize, seconds: u32) {
    let (rounds, seconds) = if options.quick { (1, 1) } else { (rounds, seconds) };
    let workloads: Vec<&'static Workload> =
        workload::ALL.iter().filter(|workload| is_wanted(options, workload)).collect();
    assert!(!workloads.is_empty(), "no workload is called {}", options.workloads.join(" or "));
    let folder = std::env::temp_dir().join(format!("spillway-loadtest-peers-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let watch = machine::Watch::start();
    let runner = Runner::new(options, rounds, seconds, &folder, certificate(&folder));
    let groups = workloads.iter().map(|workload| runner.measure(workload)).collect();
    let report = report::Report {
        date: today(),
        machine: machine::description(),
        others: watch.others(),
        peers: runner.peers(),
        workers: options.workers,
        rounds,
        seconds,
        groups,
    };
    drop(runner);
    let _ = std::fs::remove_dir_all(folder);
    let text = report.markdown();
    println!("{text}");
    if options.quick || !options.peers.is_empty() || !options.workloads.is_empty() {
        eprintln!("Not written into {PAGE}: only a whole run is.");
        return;
    }
    let page = std::fs::read_to_string(PAGE).unwrap();
    std::fs::write(PAGE, report::replaced(&page, &text)).unwrap();
    plot::draw(&report, Path::new(PLOTS));
    eprintln!("Written into {PAGE} and {PLOTS}/.");
}

fn is_wanted(options: &Options, workload: &Workload) -> bool {
    options.workloads.is_empty() || options.workloads.iter().any(|name| workload.name.starts_with(name.as_str()))
}

/// Writes a certificate and its key into one file.
fn certificate(folder: &Path) -> PathBuf {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["api.test".to_owned()]).unwrap();
    let path = folder.join("api.test.pem");
    std::fs::write(&path, cert.pem() + &signing_key.serialize_pem()).unwrap();
    path
}

/// Date of today in UTC.
fn today() -> String {
    let out = Command::new("date").args(["-u", "+%F"]).output().unwrap();
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}
