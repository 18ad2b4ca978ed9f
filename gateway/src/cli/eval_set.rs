//! `spillway eval-set`: asks the questions of a file through a gateway, or a server, and reports whose answers pass their checks.
//!
//! Exit codes, beside those of every command: 1 where a question got no answer, 3 where fewer passed than `--min-pass`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use bytes::Bytes;
use clap::Args;
use futures::StreamExt;
use http::{HeaderName, HeaderValue, Method, header};
use serde::Serialize;
use spillway_config::values::{self, ServerUrl};

use super::chat::harmless;
use super::{FAILED, WRONG, block_on, fail};
use crate::http_client::Http;
use crate::quality::EvalCase;

/// Exit code where fewer answers passed than `--min-pass`.
const TOO_FEW: u8 = 3;
/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 << 20;
/// Most questions at a time.
const MOST_PARALLEL: u16 = 256;

#[derive(Args)]
pub(super) struct EvalSetArguments {
    /// The questions with their checks, one in each line, as JSON.
    file: PathBuf,
    /// Scheme, host and port of the gateway or server.
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    url: ServerUrl,
    /// Model of questions that name none.
    #[arg(long, value_name = "NAME")]
    model: Option<String>,
    /// Further header of each request, such as `host: api.example.com`, by which a route is chosen.
    #[arg(long = "header", value_name = "NAME: VALUE", value_parser = parse_header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// API key, sent as a bearer token; better given by the variable, since arguments are seen by all on a machine.
    #[arg(long, value_name = "KEY", env = "SPILLWAY_API_KEY", hide_env_values = true)]
    key: Option<String>,
    /// Questions that are asked at a time.
    #[arg(long, value_name = "NUMBER", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=i64::from(MOST_PARALLEL)))]
    parallel: u16,
    /// Longest wait for an answer.
    #[arg(long, value_name = "TIME", default_value = "2m")]
    timeout: values::Duration,
    /// Share of the questions that must pass, 0 to 1.
    #[arg(long, value_name = "SHARE", default_value_t = 1.0, value_parser = parse_share)]
    min_pass: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn parse_header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("expected `NAME: VALUE`")?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|e| e.to_string())?;
    Ok((name, HeaderValue::from_str(value.trim()).map_err(|e| e.to_string())?))
}

fn parse_share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}

/// Result of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum EvalVerdict {
    Passed,
    Failed,
    Unanswered,
}

/// Question with what came of it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EvalOutcome {
    name: Box<str>,
    result: EvalVerdict,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// Time until the answer was there to its end.
    seconds: f64,
    /// Status of the answer; `None` without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    /// Built-in model or other backend that answered in place of the route's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    served_by: Option<String>,
}

pub(super) fn run(arguments: &EvalSetArguments) -> ExitCode {
    let cases = match EvalCase::read(&arguments.file) {
        Ok(cases) => cases,
        Err(e) => return fail(WRONG, &format!("{}: {e}", arguments.file.display())),
    };
    block_on(async {
        let client = Http::default();
        let asked = cases.iter().map(|case| ask(&client, arguments, case));
        // In the order of the file, whatever the order of the answers.
        let mut answers = futures::stream::iter(asked).buffered(usize::from(arguments.parallel));
        let mut all = Vec::with_capacity(cases.len());
        while let Some(judged) = answers.next().await {
            if !arguments.json {
                println!("{}", line(&judged));
            }
            all.push(judged);
        }
        report(&all, arguments)
    })
}

async fn ask(client: &Http, arguments: &EvalSetArguments, case: &EvalCase) -> EvalOutcome {
    let began = Instant::now();
    let judged = |result, reason, status, served_by| EvalOutcome {
        name: case.name.clone(),
        result,
        reason,
        seconds: (began.elapsed().as_secs_f64() * 1e3).round() / 1e3,
        status,
        served_by,
    };
    let request = match request(arguments, case) {
        Ok(request) => request,
        Err(e) => return judged(EvalVerdict::Unanswered, Some(e.to_string()), None, None),
    };
    match client.whole(request, MAX_ANSWER, arguments.timeout.0).await {
        Err(e) => judged(EvalVerdict::Unanswered, Some(e.to_string()), None, None),
        Ok(answer) => {
            let status = answer.status().as_u16();
            let served_by = answer.headers().get("x-spillway-served-by").and_then(|name| name.to_str().ok());
            let served_by = served_by.map(str::to_owned);
            match case.judge(status, answer.body()) {
                Ok(()) => judged(EvalVerdict::Passed, None, Some(status), served_by),
                Err(reason) => judged(EvalVerdict::Failed, Some(reason), Some(status), served_by),
            }
        }
    }
}

fn request(arguments: &EvalSetArguments, case: &EvalCase) -> Result<http::Request<Bytes>, http::Error> {
    let url = arguments.url.to_string();
    let uri = format!("{}{}", url.trim_end_matches('/'), case.path);
    let mut request = http::Request::builder().method(Method::POST).uri(uri);
    request = request.header(header::CONTENT_TYPE, "application/json");
    if let Some(key) = &arguments.key {
        request = request.header(header::AUTHORIZATION, format!("Bearer {key}"));
    }
    for (name, value) in &arguments.headers {
        request = request.header(name, value);
    }
    request.body(case.body(arguments.model.as_deref()))
}

/// Result of a question for a terminal.
fn line(judged: &EvalOutcome) -> String {
    let word = match judged.result {
        EvalVerdict::Passed => "ok    ",
        EvalVerdict::Failed => "FAILED",
        EvalVerdict::Unanswered => "ERROR ",
    };
    let by = judged.served_by.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let reason = judged.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    harmless(&format!("{word} {:7.3} s  {}{by}{reason}", judged.seconds, judged.name)).replace('\n', " ")
}

fn report(all: &[EvalOutcome], arguments: &EvalSetArguments) -> ExitCode {
    let count = |result| all.iter().filter(|judged| judged.result == result).count();
    let [passed, failed, unanswered] = [EvalVerdict::Passed, EvalVerdict::Failed, EvalVerdict::Unanswered].map(count);
    #[allow(clippy::cast_precision_loss, reason = "at most some thousand")]
    let share = passed as f64 / all.len().max(1) as f64;
    if arguments.json {
        let report = serde_json::json!({
            "passed": passed, "failed": failed, "unanswered": unanswered, "share": share, "cases": all,
        });
        println!("{}", serde_json::to_string_pretty(&report).unwrap_or_default());
    } else {
        println!(
            "{passed} of {} passed ({:.1} %), {failed} failed, {unanswered} without an answer",
            all.len(),
            share * 100.0
        );
    }
    if unanswered > 0 {
        ExitCode::from(FAILED)
    } else if share < arguments.min_pass {
        ExitCode::from(TOO_FEW)
    } else {
        ExitCode::SUCCESS
    }
}
