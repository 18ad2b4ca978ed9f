//! The gateway as a process: its memory, descriptors and threads every second, its metrics, its log.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::check;
use crate::process::{named, status};

/// Longest drain at the end.
const DRAIN: Duration = Duration::from_secs(60);

/// A running gateway whose log goes to a file.
pub(super) struct Gateway {
    child: Child,
    log: std::path::PathBuf,
}

/// Resources of the process at one time.
#[derive(Clone, Copy)]
pub(super) struct Sample {
    /// Resident memory, bytes.
    memory: f64,
    descriptors: f64,
    threads: f64,
}

impl Gateway {
    pub(super) fn start(folder: &Path) -> Self {
        let log = folder.join("log");
        let child = Command::new(named("SPILLWAY_BIN"))
            .args(["serve", "-c", "spillway.yaml"])
            .current_dir(folder)
            .env_remove("SPILLWAY_LOG")
            .stdin(Stdio::null())
            .stdout(File::create(&log).unwrap())
            .stderr(File::create(folder.join("errors")).unwrap())
            .spawn()
            .expect("the gateway starts");
        Self { child, log }
    }

    /// Resources of the process now; `None` where it has ended.
    pub(super) fn sample(&self) -> Option<Sample> {
        let pid = self.child.id();
        Some(Sample {
            memory: status(pid, "VmRSS:")? * 1024.0,
            descriptors: std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count() as f64,
            threads: status(pid, "Threads:")?,
        })
    }

    /// Ends the gateway; returns its exit code and the lines of its access log.
    pub(super) fn end(mut self) -> (Option<i32>, usize) {
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let began = Instant::now();
        while self.child.try_wait().unwrap().is_none() && began.elapsed() < DRAIN {
            std::thread::sleep(Duration::from_millis(50));
        }
        let code = self.child.try_wait().unwrap().and_then(|status| status.code());
        let lines = BufReader::new(File::open(&self.log).unwrap()).lines().map_while(Result::ok);
        (code, lines.filter(|line| line.contains("\"event\":\"access\"")).count())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Metrics as text; empty where the admin address does not answer.
pub(super) async fn metrics(admin: u16) -> String {
    crate::http::text(admin, "/metrics").await.unwrap_or_default()
}

/// Sum of all series of a metric that have a label.
pub(super) fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let of_metric = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let series = metrics.lines().filter(of_metric).filter(|line| line.contains(label));
    // A sample may have an exemplar or a time behind its value.
    let value = |line: &str| {
        let (_, value) = line.rsplit_once("} ").or_else(|| line.split_once(' '))?;
        value.split(' ').next()?.parse::<f64>().ok()
    };
    series.filter_map(value).sum::<f64>()
}

/// Prints what the process held; one result for each check. The first fifth warms up: pools, caches and the allocator's
/// arenas fill. From then on nothing may grow but by what the mix itself changes from second to second.
pub(super) fn report_resources(samples: &[Sample]) -> Vec<bool> {
    type Read = fn(&Sample) -> f64;
    /// Freed memory is given back in pages of the allocator's choice, and reloads hold two snapshots for a moment.
    const MEMORY: f64 = 16.0 * 1024.0 * 1024.0;
    /// Connections of the mix come and go: some thirty clients with as many connections to servers.
    const DESCRIPTORS: f64 = 16.0;
    /// Threads of blocking work end ten seconds after their last task.
    const THREADS: f64 = 4.0;
    let kinds: [(&str, Read, f64, f64); 3] = [
        ("memory, MiB", |sample| sample.memory, MEMORY, 1024.0 * 1024.0),
        ("descriptors", |sample| sample.descriptors, DESCRIPTORS, 1.0),
        ("threads", |sample| sample.threads, THREADS, 1.0),
    ];
    println!("\n{:<14} {:>14} {:>14} {:>9} {:>9}", "held", "second fifth", "last fifth", "most", "allowed");
    let fifth = samples.len() / 5;
    let mut checks = Vec::new();
    for (name, read, allowed, unit) in kinds {
        let median = |part: &[Sample]| crate::spread(&part.iter().map(read).collect::<Vec<_>>()).0;
        let (early, late) = (median(&samples[fifth..2 * fifth]), median(&samples[samples.len() - fifth..]));
        let most = samples.iter().map(read).fold(0.0, f64::max);
        println!(
            "{name:<14} {:>14.1} {:>14.1} {:>9.1} {:>9}",
            early / unit,
            late / unit,
            most / unit,
            format!("+{}", allowed / unit)
        );
        checks.push((name, late - early <= allowed));
    }
    println!();
    checks.into_iter().map(|(name, held)| check(&format!("{name}: the last fifth holds no more"), held, held)).collect()
}
