//! `spillway rollout`: the rollouts of a running gateway, read and steered through the admin address.
//!
//! Exit codes, beside those of every command: 1 for a rollout that is aborted, 3 for one that is paused or inconclusive, 4 if
//! `--timeout` is over.

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::{Args, Subcommand};
use http::StatusCode;
use serde::Deserialize;
use spillway_config::values;
use tokio::time::Instant;

use super::admin::{ClientError, PageArguments, segment};
use super::{FAILED, WRONG, block_on, fail};
use crate::rollout::Command;
use crate::telemetry::rfc3339_millis;

/// Exit code for a rollout that is paused or inconclusive: a person decides.
const UNDECIDED: u8 = 3;
/// Exit code if `--timeout` is over.
const TIMEOUT: u8 = 4;

/// Time between two looks of `--wait`: a rollout takes minutes at least.
const POLL: Duration = Duration::from_secs(1);
/// Time for which `--wait` goes on without an answer: a gateway that restarts is back by then.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Subcommand)]
pub(super) enum RolloutCommand {
    /// List the rollouts, or show one with its evidence.
    Status {
        /// The rollout, which has the name of its route; all when left out.
        #[arg(required_if_eq("wait", "true"))]
        name: Option<String>,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        shared: PageArguments,
    },
    /// Begin an ended rollout anew.
    Start {
        #[command(flatten)]
        order: Order,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        shared: PageArguments,
    },
    /// Take no further step; the candidate is judged on.
    Pause {
        #[command(flatten)]
        order: Order,
        #[command(flatten)]
        shared: PageArguments,
    },
    /// End a pause, or go on without enough evidence.
    Resume {
        #[command(flatten)]
        order: Order,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        shared: PageArguments,
    },
    /// Give the candidate all requests, and end.
    Promote {
        #[command(flatten)]
        order: Order,
        #[command(flatten)]
        wait: Wait,
        #[command(flatten)]
        shared: PageArguments,
    },
    /// Give the candidate no request, and end.
    Abort {
        #[command(flatten)]
        order: Order,
        #[command(flatten)]
        shared: PageArguments,
    },
    /// Show what a rollout has done, with the reasons.
    History {
        /// The rollout, which has the name of its route.
        name: String,
        #[command(flatten)]
        shared: PageArguments,
    },
}

/// Rollout that is meant, and why.
#[derive(Args)]
pub(super) struct Order {
    /// The rollout, which has the name of its route.
    name: String,
    /// Reason, kept in the history; at most 500 characters.
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
}

#[derive(Args)]
pub(super) struct Wait {
    /// Wait until it is promoted, aborted, paused or inconclusive.
    #[arg(long)]
    wait: bool,
    /// Longest wait, such as 30m.
    #[arg(long, value_name = "TIME", default_value = "1h", requires = "wait")]
    timeout: values::Duration,
}

/// Rollouts in the list.
#[derive(Deserialize)]
struct List {
    rollouts: Vec<Record>,
}

/// Parts of a record that are shown. Numbers that the gateway could not write are left out.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Record {
    name: String,
    candidate: String,
    #[serde(default)]
    stable: Vec<String>,
    strategy: String,
    state: String,
    step: u32,
    steps: u32,
    weight: f64,
    reason: String,
    started_at: Option<f64>,
    updated_at: Option<f64>,
    ended_at: Option<f64>,
    candidate_requests: u64,
    stable_requests: u64,
    false_alarm: f64,
    judgement: Option<Judgement>,
    #[serde(default)]
    history: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    at: f64,
    event: String,
    step: u32,
    weight: f64,
    by: String,
    reason: String,
}

#[derive(Deserialize)]
struct Judgement {
    metrics: Vec<Evidence>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Evidence {
    name: String,
    threshold: String,
    finding: String,
    stable: Figures,
    candidate: Figures,
    effect: Option<f64>,
    lower: Option<f64>,
    upper: Option<f64>,
    ln_worse: Option<f64>,
    ln_worse_needed: Option<f64>,
    ln_fine: Option<f64>,
    ln_fine_needed: Option<f64>,
    more: Option<u64>,
}

#[derive(Deserialize)]
struct Figures {
    requests: u64,
    estimate: Option<f64>,
}

/// Reason why a command has no success.
enum Failure {
    Client(ClientError),
    /// `--timeout` is over.
    Timeout(Box<Record>, values::Duration),
}

impl From<ClientError> for Failure {
    fn from(e: ClientError) -> Self {
        Self::Client(e)
    }
}

/// Runs a command about rollouts.
pub(super) fn run(command: RolloutCommand) -> ExitCode {
    block_on(async {
        match carry_out(command).await {
            Ok(code) => code,
            Err(Failure::Client(e)) => fail(code_of(&e), &e),
            Err(Failure::Timeout(record, after)) => {
                let message =
                    format!("the rollout {} is still {} after {after}: {}", record.name, record.state, record.reason);
                fail(TIMEOUT, &message)
            }
        }
    })
}

/// Exit code of a failed request: a rollout that is not there is wrong usage.
fn code_of(e: &ClientError) -> u8 {
    match e {
        ClientError::Refused { status, .. } if matches!(*status, StatusCode::NOT_FOUND | StatusCode::BAD_REQUEST) => {
            WRONG
        }
        _ => FAILED,
    }
}

async fn carry_out(command: RolloutCommand) -> Result<ExitCode, Failure> {
    let (order, wait, shared, command) = match command {
        RolloutCommand::Status { name: None, shared, .. } => return Ok(list(&shared).await?),
        RolloutCommand::Status { name: Some(name), wait, shared } => {
            let page = waited(&shared, &name, &wait, None).await?;
            return Ok(show(&shared, &page)?);
        }
        RolloutCommand::History { name, shared } => return Ok(history(&shared, &name).await?),
        RolloutCommand::Start { order, wait, shared } => (order, Some(wait), shared, Command::Start),
        RolloutCommand::Pause { order, shared } => (order, None, shared, Command::Pause),
        RolloutCommand::Resume { order, wait, shared } => (order, Some(wait), shared, Command::Resume),
        RolloutCommand::Promote { order, wait, shared } => (order, Some(wait), shared, Command::Promote),
        RolloutCommand::Abort { order, shared } => (order, None, shared, Command::Abort),
    };
    let path = format!("{}/{}", path_of(&order.name), command.as_str());
    let body = serde_json::json!({ "reason": order.reason });
    let page = shared.admin.post_json(&path, &body).await?;
    match wait {
        Some(wait) if wait.wait => {
            let page = waited(&shared, &order.name, &wait, Some(page)).await?;
            Ok(show(&shared, &page)?)
        }
        _ => {
            // The command was carried out, whatever the state is now.
            show(&shared, &page)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn path_of(name: &str) -> String {
    format!("/api/rollouts/{}", segment(name))
}

/// Page of a rollout; with `--wait`, once nothing more happens by itself. Tells on standard error what happens meanwhile.
async fn waited(shared: &PageArguments, name: &str, wait: &Wait, first: Option<Bytes>) -> Result<Bytes, Failure> {
    let path = path_of(name);
    let mut page = match first {
        Some(page) => page,
        None => shared.admin.get(&path).await?,
    };
    if !wait.wait {
        return Ok(page);
    }
    let (end, mut answered) = (Instant::now() + wait.timeout.0, Instant::now());
    let mut told = None;
    loop {
        let record: Record = shared.admin.parse(&page)?;
        if ended(&record.state) {
            return Ok(page);
        }
        // Its reason counts down meanwhile.
        let at = Some((record.state.clone(), record.step, record.weight.to_bits()));
        if at != told {
            eprintln!("{}", progress(&record));
            told = at;
        }
        if Instant::now() >= end {
            return Err(Failure::Timeout(Box::new(record), wait.timeout));
        }
        tokio::time::sleep(POLL.min(end.saturating_duration_since(Instant::now()))).await;
        match shared.admin.get(&path).await {
            Ok(next) => (page, answered) = (next, Instant::now()),
            // A gateway that restarts goes on where it was.
            Err(e) if is_passing(&e) && answered.elapsed() < PATIENCE => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// True if nothing more happens before a person acts, or the candidate is shown to be worse.
fn ended(state: &str) -> bool {
    matches!(state, "promoted" | "aborted" | "paused" | "inconclusive")
}

/// True for failures that the restart of a gateway explains.
fn is_passing(e: &ClientError) -> bool {
    match e {
        ClientError::Timeout(_) | ClientError::Connect { .. } | ClientError::Http { .. } | ClientError::Body { .. } => {
            true
        }
        ClientError::Refused { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
        _ => false,
    }
}

/// Exit code of a state.
fn code(state: &str) -> ExitCode {
    match state {
        "aborted" => ExitCode::from(FAILED),
        "paused" | "inconclusive" => ExitCode::from(UNDECIDED),
        _ => ExitCode::SUCCESS,
    }
}

async fn list(shared: &PageArguments) -> Result<ExitCode, ClientError> {
    let page = shared.admin.get("/api/rollouts").await?;
    let list: List = shared.admin.parse(&page)?;
    if shared.json {
        print_json(&page);
    } else if list.rollouts.is_empty() {
        println!("The configuration has no rollouts.");
    } else {
        print_table(
            ["ROLLOUT", "STATE", "STEP", "WEIGHT", "CANDIDATE", "REQUESTS", "REASON"],
            list.rollouts.iter().map(|record| {
                [
                    record.name.clone(),
                    record.state.clone(),
                    step(record.step, record.steps),
                    percent(record.weight),
                    record.candidate.clone(),
                    format!("{} / {}", record.candidate_requests, record.stable_requests),
                    record.reason.clone(),
                ]
            }),
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn show(shared: &PageArguments, page: &Bytes) -> Result<ExitCode, ClientError> {
    let record: Record = shared.admin.parse(page)?;
    let code = code(&record.state);
    if shared.json {
        print_json(page);
        return Ok(code);
    }
    println!("{}: {}", record.name, record.state);
    println!("  reason:     {}", record.reason);
    println!("  candidate:  {} against {} ({})", record.candidate, record.stable.join(", "), record.strategy);
    let is_shadow = record.strategy == "shadow";
    let what = if is_shadow { "copied" } else { "weight" };
    println!("  step:       {}, {what} {}", step(record.step, record.steps), percent(record.weight));
    if is_shadow {
        println!("  pairs:      {} compared", record.candidate_requests);
    } else {
        println!(
            "  requests:   {} at the candidate, {} at the stable version",
            record.candidate_requests, record.stable_requests
        );
    }
    println!("  falseAlarm: {}", percent(record.false_alarm * 100.0));
    let times = [("began", record.started_at), ("changed", record.updated_at), ("ended", record.ended_at)];
    for (name, at) in times {
        if let Some(at) = at {
            println!("  {:<12}{}", format!("{name}:"), time(at));
        }
    }
    if let Some(judgement) = &record.judgement {
        println!();
        print_table(
            ["METRIC", "THRESHOLD", "STABLE", "CANDIDATE", "EFFECT", "BOUNDS", "FINDING", "EVIDENCE", "NEEDS"],
            judgement.metrics.iter().map(Evidence::row),
        );
    }
    Ok(code)
}

async fn history(shared: &PageArguments, name: &str) -> Result<ExitCode, ClientError> {
    let page = shared.admin.get(&path_of(name)).await?;
    if shared.json {
        let record: serde_json::Value = shared.admin.parse(&page)?;
        println!("{}", record.get("history").unwrap_or(&serde_json::Value::Null));
        return Ok(ExitCode::SUCCESS);
    }
    let record: Record = shared.admin.parse(&page)?;
    if record.history.is_empty() {
        println!("{}: nothing yet ({})", record.name, record.reason);
        return Ok(ExitCode::SUCCESS);
    }
    print_table(
        ["TIME", "EVENT", "STEP", "WEIGHT", "BY", "REASON"],
        record.history.iter().map(|entry| {
            [
                time(entry.at),
                entry.event.clone(),
                step(entry.step, record.steps),
                percent(entry.weight),
                entry.by.clone(),
                entry.reason.clone(),
            ]
        }),
    );
    Ok(ExitCode::SUCCESS)
}

fn progress(record: &Record) -> String {
    format!(
        "{}: {}, step {}, weight {}: {}",
        record.name,
        record.state,
        step(record.step, record.steps),
        percent(record.weight),
        record.reason
    )
}

impl Evidence {
    /// Cells of a metric.
    fn row(&self) -> [String; 9] {
        let figures = |of: &Figures| match of.estimate {
            Some(estimate) if of.requests > 0 => format!("{} ({})", figure(estimate), of.requests),
            _ => "-".to_owned(),
        };
        let effect = |value: Option<f64>| value.map_or_else(|| "?".to_owned(), |value| self.effect_of(value));
        let bounds = match (self.lower, self.upper) {
            (None, None) => "-".to_owned(),
            (lower, upper) => format!("{} to {}", effect(lower), effect(upper)),
        };
        let needs = match (self.finding.as_str(), self.more) {
            ("undecided", Some(more)) => format!("{more} more"),
            ("undecided", None) if self.stable.requests == 0 || self.candidate.requests == 0 => "requests".to_owned(),
            ("undecided", None) => "out of reach".to_owned(),
            _ => String::new(),
        };
        [
            self.name.clone(),
            self.threshold.clone(),
            figures(&self.stable),
            figures(&self.candidate),
            if self.stable.requests > 0 && self.candidate.requests > 0 { effect(self.effect) } else { "-".to_owned() },
            bounds,
            self.finding.clone(),
            self.evidence(),
            needs,
        ]
    }

    /// An effect in the form of the threshold.
    fn effect_of(&self, value: f64) -> String {
        match self.threshold.as_bytes() {
            [b'+' | b'-', ..] if value >= 0.0 => format!("+{}", figure(value)),
            [.., b'x'] => format!("{}x", figure(value)),
            _ => figure(value),
        }
    }

    /// Part of the evidence that there is: for the finding, or for the nearer of the two.
    fn evidence(&self) -> String {
        let part = |ln: Option<f64>, needed: Option<f64>| {
            let (ln, needed) = (ln?, needed?);
            (needed > 0.0).then(|| (ln / needed).clamp(0.0, 1.0) * 100.0)
        };
        let worse = part(self.ln_worse, self.ln_worse_needed).unwrap_or(0.0);
        let fine = part(self.ln_fine, self.ln_fine_needed).unwrap_or(0.0);
        if worse > fine { format!("{worse:.0}% worse") } else { format!("{fine:.0}% fine") }
    }
}

/// Step as people count.
fn step(step: u32, steps: u32) -> String {
    format!("{}/{steps}", step.saturating_add(1).min(steps))
}

fn percent(value: f64) -> String {
    format!("{}%", figure(value))
}

/// A number with three or four significant digits, and no zeros at its end.
fn figure(value: f64) -> String {
    let digits = match value.abs() {
        size if size >= 1000.0 => 0,
        size if size >= 100.0 => 1,
        size if size >= 10.0 => 2,
        size if size >= 0.1 => 3,
        size if size >= 0.001 => 5,
        _ => 7,
    };
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Unix seconds as people read them.
fn time(at: f64) -> String {
    let since = Duration::try_from_secs_f64(at.max(0.0)).unwrap_or_default();
    let text = rfc3339_millis(SystemTime::UNIX_EPOCH + since);
    text.split_once('.').map_or_else(|| text.clone(), |(seconds, _)| format!("{seconds}Z"))
}

fn print_json(page: &Bytes) {
    println!("{}", String::from_utf8_lossy(page));
}

/// Prints rows in columns below their heads.
fn print_table<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = std::iter::once(heads.map(str::to_owned)).chain(rows).collect();
    let width = |n: usize| rows.iter().filter_map(|row| row.get(n)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..N).map(|n| width(n).unwrap_or(0)).collect();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_digits_that_matter() {
        for (value, text) in [
            (0.0, "0"),
            (0.002, "0.002"),
            (0.000_31, "0.00031"),
            (0.098_765, "0.09877"),
            (0.842_1, "0.842"),
            (12.3, "12.3"),
            (123.46, "123.5"),
            (1234.5, "1234"),
            (-0.05, "-0.05"),
            (100.0, "100"),
        ] {
            assert_eq!(figure(value), text);
        }
    }

    #[test]
    fn evidence_is_shown_in_the_form_of_its_threshold() {
        let evidence = |threshold: &str, finding: &str| -> Evidence {
            serde_json::from_value(serde_json::json!({
                "name": "m", "threshold": threshold, "finding": finding,
                "stable": {"requests": 800, "estimate": 0.5}, "candidate": {"requests": 90, "estimate": 0.6},
                "effect": 0.1, "lower": -0.02, "upper": null, "lnWorse": 2.0, "lnWorseNeeded": 5.0,
                "lnFine": null, "lnFineNeeded": 3.0, "more": 210,
            }))
            .unwrap()
        };
        assert_eq!(
            evidence("+0.02", "undecided").row(),
            ["m", "+0.02", "0.5 (800)", "0.6 (90)", "+0.1", "-0.02 to ?", "undecided", "40% worse", "210 more"]
        );
        assert_eq!(evidence("1.3x", "worse").row()[4..], ["0.1x", "-0.02x to ?", "worse", "40% worse", ""]);
        assert_eq!(evidence("0.2", "fine").row()[4], "0.1");
    }
}
