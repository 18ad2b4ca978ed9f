//! A 200-byte JSON through Spillway, bare and with the whole pipeline, and through nginx. `wrk` uses 32 connections;
//! upstream, proxy and `wrk` share the machine's cores.

use std::process::Command;

use crate::process::{Process, free_port, named, wait_for};
use crate::spread;

const BODY: usize = 200;

struct Candidate {
    name: &'static str,
    port: u16,
    headers: &'static [&'static str],
    process: Process,
    rates: Vec<f64>,
    cpu: Vec<f64>,
    p99: Vec<f64>,
}

/// Runs the scenario and prints the results.
pub(crate) fn run(rounds: usize, seconds: u32) {
    let folder = std::env::temp_dir().join(format!("spillway-loadtest-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (upstream, nginx, bare, full) = (free_port(), free_port(), free_port(), free_port());
    let json = format!("{{\"text\":\"{}\"}}", "x".repeat(BODY - 11));
    let head = |pid: &str, workers: u32| {
        format!(
            "daemon off; worker_processes {workers}; pid {pid}; error_log /dev/null; events {{ worker_connections 1024; }}\n"
        )
    };
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let pid = |name: &str| folder.join(name).display().to_string();
    let up = write(
        "upstream.conf",
        head(&pid("upstream.pid"), 1)
            + &format!(
                "http {{ access_log off; keepalive_requests 1000000000; server {{ listen 127.0.0.1:{upstream}; location / {{ default_type application/json; return 200 '{json}'; }} }} }}"
            ),
    );
    let peer = write(
        "nginx.conf",
        head(&pid("nginx.pid"), 2)
            + &format!(
                "http {{ access_log off; keepalive_requests 1000000000; upstream u {{ server 127.0.0.1:{upstream}; keepalive 128; keepalive_requests 1000000000; }}
server {{ listen 127.0.0.1:{nginx}; location / {{ proxy_pass http://u; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}"
            ),
    );
    let backend = format!("backends: [{{name: u, endpoints: [{{url: \"http://127.0.0.1:{upstream}\"}}]}}]\n");
    let bare_config = write(
        "bare.yaml",
        format!(
            "listeners: [{{address: \"127.0.0.1:{bare}\"}}]\n{backend}routes: [{{backendRefs: [{{name: u}}]}}]\ntelemetry: {{logs: {{access: false}}}}\n"
        ),
    );
    // SHA-256 of the key `test`.
    let full_config = write(
        "full.yaml",
        format!(
            "listeners: [{{address: \"127.0.0.1:{full}\"}}]\n{backend}consumers: [{{name: a, keys: [{{sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08}}]}}]
routes:
  - filters:
      - rateLimit: {{by: clientAddress, requests: 1000000/s}}
      - rateLimit: {{by: consumer, requests: 1000000/s}}
      - requestHeaders: {{set: {{x-served-by: spillway}}, remove: [cookie]}}
      - responseHeaders: {{set: {{x-backend: \"{{backend}}\"}}}}
    backendRefs: [{{name: u}}]
"
        ),
    );
    let spillway = named("SPILLWAY_BIN");
    let nginx_program = |config: &std::path::Path| Process::start(Command::new("nginx").arg("-c").arg(config));
    let gateway = |config: &std::path::Path| Process::start(Command::new(&spillway).args(["serve", "-c"]).arg(config));
    let _upstream = nginx_program(&up);
    wait_for(upstream);
    let candidate = |name, port, headers, process| {
        wait_for(port);
        Candidate { name, port, headers, process, rates: Vec::new(), cpu: Vec::new(), p99: Vec::new() }
    };
    let mut candidates = [
        candidate("nginx, 2 workers", nginx, &[][..], nginx_program(&peer)),
        candidate("spillway, no filters, no log", bare, &[][..], gateway(&bare_config)),
        candidate("spillway, key, limits, filters, log", full, &["x-api-key: test"][..], gateway(&full_config)),
    ];
    println!("\nA {BODY}-byte JSON, 32 connections, {rounds} rounds of {seconds} s, in turn");
    for candidate in &candidates[1..] {
        println!("idle memory of {}: {:.1} MiB", candidate.name, candidate.process.resident());
    }
    for candidate in &mut candidates {
        load(candidate, 1);
        (candidate.rates, candidate.cpu, candidate.p99) = (Vec::new(), Vec::new(), Vec::new());
    }
    for _ in 0..rounds {
        for candidate in &mut candidates {
            load(candidate, seconds);
        }
    }
    println!(
        "{:38} {:>26} {:>8} {:>26} {:>8} {:>9}",
        "", "requests/s (least..most)", "ratio", "CPU s / 100k requests", "ratio", "p99 ms"
    );
    let (base_rate, base_cpu) = (spread(&candidates[0].rates).0, spread(&candidates[0].cpu).0);
    for c in &candidates {
        let (rate, least, most) = spread(&c.rates);
        let (cpu, cpu_least, cpu_most) = spread(&c.cpu);
        println!(
            "{:38} {:>26} {:>8.2} {:>26} {:>8.2} {:>9.2}",
            c.name,
            format!("{rate:.0} ({least:.0}..{most:.0})"),
            rate / base_rate,
            format!("{cpu:.2} ({cpu_least:.2}..{cpu_most:.2})"),
            cpu / base_cpu,
            spread(&c.p99).0,
        );
    }
    let _ = std::fs::remove_dir_all(folder);
}

/// Runs `wrk` once.
fn load(candidate: &mut Candidate, seconds: u32) {
    let mut wrk = Command::new("wrk");
    wrk.args(["-t1", "-c32", "--latency", &format!("-d{seconds}s"), &format!("http://127.0.0.1:{}/", candidate.port)]);
    for header in candidate.headers {
        wrk.args(["-H", header]);
    }
    let before = candidate.process.cpu();
    let out = wrk.output().expect("wrk is installed: `make bench` does it");
    let cpu = candidate.process.cpu() - before;
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(!text.contains("Non-2xx"), "{}: {text}", candidate.name);
    let number = |label: &str| {
        let line = text.lines().find(|line| line.trim_start().starts_with(label)).unwrap_or_else(|| panic!("{text}"));
        line.trim_start().strip_prefix(label).unwrap().trim().to_owned()
    };
    let rate: f64 = number("Requests/sec:").parse().unwrap();
    candidate.rates.push(rate);
    candidate.cpu.push(cpu / (rate * f64::from(seconds)) * 1e5);
    candidate.p99.push(p99(&text));
}

/// 99th percentile printed by `wrk`, in milliseconds.
pub(crate) fn p99(text: &str) -> f64 {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("99%")).unwrap_or_else(|| panic!("{text}"));
    let p99 = line.trim();
    let digits = p99.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = if p99.ends_with("us") {
        1e-3
    } else if p99.ends_with("ms") {
        1.0
    } else {
        1e3
    };
    digits.parse::<f64>().unwrap() * scale
}
