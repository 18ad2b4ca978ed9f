//! Loads of other programs: `wrk`, `h2load`, and `curl` for a first look.

use std::process::Command;

use super::{Done, Run};
use crate::compare::workload::Ask;

/// Runs `wrk` over so many connections.
pub(super) fn wrk(run: &Run<'_>, connections: usize) -> Done {
    let script = run.folder.join("wrk.lua");
    std::fs::write(&script, lua(run.ask)).unwrap();
    let out = Command::new("wrk")
        .args(["-t1", &format!("-c{connections}"), &format!("-d{}s", run.seconds), "--timeout", "10s", "-s"])
        .arg(script)
        .arg(url(run))
        .output()
        .expect("wrk is installed: `make bench` does it");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let rate = number_after(&text, "Requests/sec:").unwrap_or_else(|| panic!("{text}"));
    let seconds = f64::from(run.seconds);
    Done { amount: rate * seconds, seconds, errors: wrk_errors(&text), ..Done::default() }
}

/// Requests a second of a closed loop over 32 connections, the median of three seconds.
pub(in crate::compare) fn closed_rate(run: &Run<'_>) -> f64 {
    let rates: Vec<f64> = (0..3).map(|_| wrk(&Run { seconds: 1, ..*run }, 32).amount).collect();
    crate::spread(&rates).0
}

/// Answers that were not 2xx, and broken connections.
fn wrk_errors(text: &str) -> u64 {
    let wrong = number_after(text, "Non-2xx or 3xx responses:").unwrap_or(0.0);
    let broken = text.split_once("Socket errors:").map_or(0.0, |(_, rest)| {
        let line = rest.lines().next().unwrap_or_default();
        line.split([' ', ',']).filter_map(|word| word.parse::<f64>().ok()).sum()
    });
    (wrong + broken) as u64
}

/// Runs `h2load`.
pub(super) fn h2load(run: &Run<'_>, connections: usize, streams: usize) -> Done {
    let mut command = Command::new("h2load");
    command.args(["-t1", &format!("-c{connections}"), &format!("-m{streams}"), &format!("-D{}", run.seconds)]);
    for header in &run.ask.headers {
        command.args(["-H", header]);
    }
    let out = command.arg(url(run)).output().expect("h2load is installed: `make bench` does it");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let line = text.lines().find(|line| line.starts_with("requests:")).unwrap_or_else(|| panic!("{text}"));
    let counted = |label: &str| {
        let at = line.find(label).unwrap_or_else(|| panic!("{text}"));
        line[..at].trim_end().rsplit(' ').next().and_then(|count| count.parse::<f64>().ok()).unwrap_or(0.0)
    };
    let errors = (counted("failed") + counted("errored") + counted("timeout")) as u64;
    Done { amount: counted("succeeded"), seconds: f64::from(run.seconds), errors, ..Done::default() }
}

/// Asks once with `curl`; the answer's head and body if its status is 200 and it has what is expected.
pub(in crate::compare) fn answers(ask: &Ask, port: u16, tls: bool) -> Option<String> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--insecure", "--include", "--max-time", "20", "--request", ask.method]);
    for header in &ask.headers {
        command.args(["--header", header]);
    }
    if ask.method == "POST" {
        command.args(["--data-binary", &ask.body]);
    }
    let out = command.arg(address(ask, port, tls)).output().expect("curl is installed: `make bench` does it");
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    let status = text.lines().next().and_then(|line| line.split(' ').nth(1))?;
    (status == "200" && text.contains(ask.expected)).then_some(text)
}

fn address(ask: &Ask, port: u16, tls: bool) -> String {
    format!("{}://127.0.0.1:{port}{}", if tls { "https" } else { "http" }, ask.path)
}

fn url(run: &Run<'_>) -> String {
    address(run.ask, run.port, run.tls)
}

/// Script that makes `wrk` send the request.
fn lua(ask: &Ask) -> String {
    let mut script = format!("wrk.method = \"{}\"\n", ask.method);
    for header in &ask.headers {
        let (name, value) = header.split_once(": ").unwrap();
        script += &format!("wrk.headers[\"{name}\"] = \"{value}\"\n");
    }
    if ask.method == "POST" {
        script += &format!("wrk.body = [==[{}]==]\n", ask.body);
    }
    script
}

fn number_after(text: &str, label: &str) -> Option<f64> {
    text.split_once(label)?.1.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_wrk_are_counted() {
        let text = "  Socket errors: connect 1, read 20, write 0, timeout 3\n  Non-2xx or 3xx responses: 7\nRequests/sec:  3.5\n";
        assert_eq!(wrk_errors(text), 31);
        assert_eq!(number_after(text, "Requests/sec:"), Some(3.5));
        assert_eq!(wrk_errors("Requests/sec: 10"), 0);
    }
}
