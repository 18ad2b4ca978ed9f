//! `spillway batch run`: sends a file of requests to a gateway, or to another server with OpenAI's Files and Batches API, waits for
//! the batch, and writes its results.
//!
//! Exit codes, beside those of every command: 3 where a line failed, or the batch did not end as `completed`.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::{Args, Subcommand};
use http::{Method, header};
use serde_json::{Value, json};
use spillway_config::values::{self, ServerUrl};

use super::chat::harmless;
use super::{FAILED, WRONG, block_on, fail};
use crate::http_client::Http;

/// Exit code where not every line was answered with success.
const NOT_ALL: u8 = 3;
/// Longest answer that is no file, bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Longest file of results that is read, bytes.
const MAX_RESULTS: usize = 2 << 30;
/// Longest wait for one answer; a file may take this long.
const ANSWER: Duration = Duration::from_secs(3600);
/// Time between two looks at the batch.
const LOOK: Duration = Duration::from_secs(1);
/// Failed looks in a row after which the command gives up: a gateway may be restarted meanwhile.
const MOST_FAILURES: u32 = 60;

#[derive(Subcommand)]
pub(super) enum BatchCommand {
    /// Send a file of requests, wait for their answers, and write them to a file.
    Run(RunArguments),
}

#[derive(Args)]
pub(super) struct RunArguments {
    /// The requests, one in each line, as JSON with `custom_id`, `method`, `url` and `body`.
    file: PathBuf,
    /// File for the answers; `FILE` with `.output.jsonl` at its end when left out.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// File for the lines that failed, written only if there are any; `FILE` with `.errors.jsonl` at its end when left out.
    #[arg(short, long, value_name = "FILE")]
    errors: Option<PathBuf>,
    /// Scheme, host and port of the gateway or server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: ServerUrl,
    /// Time for the whole batch, such as `24h`.
    #[arg(long, value_name = "TIME", default_value = "24h")]
    window: values::Duration,
    /// API key, sent as a bearer token; better given by the variable, since arguments are seen by all on a machine.
    #[arg(long, value_name = "KEY", env = "SPILLWAY_API_KEY", hide_env_values = true)]
    key: Option<String>,
}

/// Failure of the command, in words.
#[derive(Debug, thiserror::Error)]
enum BatchError {
    #[error("{}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    #[error("{0}")]
    Asking(String),
    #[error("{what}: {status}: {said}")]
    Refused { what: &'static str, status: u16, said: String },
}

pub(super) fn run(command: &BatchCommand) -> ExitCode {
    let BatchCommand::Run(arguments) = command;
    let input = match std::fs::read(&arguments.file) {
        Ok(input) => Bytes::from(input),
        Err(e) => return fail(WRONG, &format!("{}: {e}", arguments.file.display())),
    };
    let Some(endpoint) = endpoint_of(&input) else {
        let message = "its first line is no JSON object with the `url` of a request; expected one such as \
                       {\"custom_id\": \"1\", \"method\": \"POST\", \"url\": \"/v1/chat/completions\", \"body\": {...}}";
        return fail(WRONG, &format!("{}: {message}", arguments.file.display()));
    };
    block_on(async {
        match Caller::new(arguments).run(input, &endpoint, arguments).await {
            Ok(batch) => report(&batch),
            Err(e) => fail(FAILED, &e),
        }
    })
}

/// `url` of the first line.
fn endpoint_of(input: &[u8]) -> Option<String> {
    let mut lines = input.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let first: Value = serde_json::from_slice(lines.find(|line| !line.is_empty())?).ok()?;
    first.get("url")?.as_str().map(str::to_owned)
}

/// Exit code of a batch that has ended, with a line about it.
fn report(batch: &Value) -> ExitCode {
    let status = text(batch, "status");
    let counts = batch.get("request_counts");
    let count = |name: &str| counts.and_then(|counts| counts.get(name)).and_then(Value::as_u64).unwrap_or(0);
    let (total, completed, failed) = (count("total"), count("completed"), count("failed"));
    println!("{status}: {completed} of {total} lines answered, {failed} failed");
    for error in batch.pointer("/errors/data").and_then(Value::as_array).into_iter().flatten() {
        let line = error.get("line").and_then(Value::as_u64).map(|line| format!("line {line}: ")).unwrap_or_default();
        println!("{line}{}", harmless(&text(error, "message")));
    }
    if status == "completed" && failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(NOT_ALL) }
}

fn text(value: &Value, name: &str) -> String {
    value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

struct Caller {
    client: Http,
    url: String,
    key: Option<String>,
}

impl Caller {
    fn new(arguments: &RunArguments) -> Self {
        let url = arguments.url.to_string().trim_end_matches('/').to_owned();
        Self { client: Http::default(), url, key: arguments.key.clone() }
    }

    async fn ask(
        &self,
        what: &'static str,
        (method, path): (Method, &str),
        (kind, body): (&str, Bytes),
        most: usize,
    ) -> Result<Bytes, BatchError> {
        let mut request = http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !body.is_empty() {
            request = request.header(header::CONTENT_TYPE, kind);
        }
        if let Some(key) = &self.key {
            request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(body).map_err(|e| BatchError::Asking(format!("{what}: {e}")))?;
        let answer = self.client.whole(request, most, ANSWER).await;
        let answer = answer.map_err(|e| BatchError::Asking(format!("{what}: {e}")))?;
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let said: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
        let said = said.pointer("/error/message").or(said.get("detail")).and_then(Value::as_str).unwrap_or_default();
        Err(BatchError::Refused { what, status: answer.status().as_u16(), said: harmless(said).into_owned() })
    }

    async fn json(&self, what: &'static str, asked: (Method, &str), body: (&str, Bytes)) -> Result<Value, BatchError> {
        let answer = self.ask(what, asked, body, MAX_ANSWER).await?;
        serde_json::from_slice(&answer).map_err(|e| BatchError::Asking(format!("{what}: the answer is no JSON: {e}")))
    }

    async fn run(&self, input: Bytes, endpoint: &str, arguments: &RunArguments) -> Result<Value, BatchError> {
        let boundary = format!("spillway-{}", uuid::Uuid::new_v4().simple());
        let form = form(&boundary, &input);
        drop(input);
        let kind = format!("multipart/form-data; boundary={boundary}");
        let sent = self.json("the file could not be sent", (Method::POST, "/v1/files"), (&kind, form)).await?;
        let asked = json!({
            "input_file_id": sent.get("id"),
            "endpoint": endpoint,
            "completion_window": arguments.window.to_string(),
        });
        let asked = ("application/json", Bytes::from(asked.to_string()));
        let batch = self.json("the batch was refused", (Method::POST, "/v1/batches"), asked).await?;
        let batch = self.wait(&batch).await?;
        for (key, chosen, end) in [
            ("output_file_id", &arguments.output, ".output.jsonl"),
            ("error_file_id", &arguments.errors, ".errors.jsonl"),
        ] {
            let Some(id) = batch.get(key).and_then(Value::as_str) else { continue };
            let path = format!("/v1/files/{id}/content");
            let what = "the results could not be read";
            let results = self.ask(what, (Method::GET, &path), ("", Bytes::new()), MAX_RESULTS).await?;
            let to = chosen.clone().unwrap_or_else(|| beside(&arguments.file, end));
            std::fs::write(&to, &results).map_err(|e| BatchError::File { path: to.clone(), reason: e.to_string() })?;
            println!("{}", to.display());
        }
        Ok(batch)
    }

    /// Waits until the batch has ended.
    async fn wait(&self, batch: &Value) -> Result<Value, BatchError> {
        let id = text(batch, "id");
        println!("{}", harmless(&id));
        let (path, is_terminal) = (format!("/v1/batches/{id}"), std::io::stderr().is_terminal());
        let (mut failures, began) = (0, Instant::now());
        loop {
            let what = "the batch could not be looked at";
            match self.json(what, (Method::GET, &path), ("", Bytes::new())).await {
                Ok(batch) => {
                    failures = 0;
                    if is_terminal {
                        progress(&batch, began);
                    }
                    if !matches!(&*text(&batch, "status"), "validating" | "in_progress" | "finalizing" | "cancelling") {
                        if is_terminal {
                            eprintln!();
                        }
                        return Ok(batch);
                    }
                }
                // It may be restarted, or limit how often it is asked.
                Err(e) => {
                    failures += 1;
                    if failures >= MOST_FAILURES {
                        return Err(e);
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Shows how far a batch is, on one line of a terminal.
fn progress(batch: &Value, began: Instant) {
    let counts = batch.get("request_counts");
    let count = |name: &str| counts.and_then(|counts| counts.get(name)).and_then(Value::as_u64).unwrap_or(0);
    let (total, done) = (count("total"), count("completed").saturating_add(count("failed")));
    #[allow(clippy::cast_precision_loss, reason = "at most a million lines")]
    let rate = done as f64 / began.elapsed().as_secs_f64().max(1.0);
    let status = harmless(&text(batch, "status")).into_owned();
    // A terminal that is gone is no reason to stop.
    let _ = write!(std::io::stderr(), "\r\x1b[K{status}: {done} of {total} lines, {rate:.1} a second");
    let _ = std::io::stderr().flush();
}

/// The file with another end, beside it.
fn beside(file: &Path, end: &str) -> PathBuf {
    let mut name = file.file_stem().unwrap_or_default().to_owned();
    name.push(end);
    file.with_file_name(name)
}

/// Form with the file (RFC 7578).
fn form(boundary: &str, input: &[u8]) -> Bytes {
    let head = format!(
        "--{boundary}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--{boundary}\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"input.jsonl\"\r\n\r\n"
    );
    let end = format!("\r\n--{boundary}--\r\n");
    [head.as_bytes(), input, end.as_bytes()].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_beside_the_requests() {
        assert_eq!(beside(Path::new("a/b.jsonl"), ".output.jsonl"), Path::new("a/b.output.jsonl"));
        assert_eq!(beside(Path::new("b"), ".errors.jsonl"), Path::new("b.errors.jsonl"));
    }

    #[test]
    fn the_endpoint_is_that_of_the_first_line() {
        assert_eq!(endpoint_of(b"\n {\"url\":\"/v1/embeddings\"}\n{}").as_deref(), Some("/v1/embeddings"));
        for input in [&b""[..], b"\n", b"{}", b"[]", b"x"] {
            assert_eq!(endpoint_of(input), None);
        }
    }
}
