//! `spillway upgrade`: asks a running gateway to hand over to a new process, and waits until that serves.

use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::StatusCode;
use serde::Deserialize;

use super::admin::{AdminArguments, ClientError};
use super::{FAILED, block_on, fail};

/// Exit code where the new process failed, and the one before goes on.
const NOT_UPGRADED: u8 = 3;
/// Exit code where the gateway refuses to begin.
const REFUSED: u8 = 4;
/// Page of hand-overs.
const PAGE: &str = "/api/upgrade";
/// Time between two looks.
const POLL: Duration = Duration::from_millis(250);
/// Looks in a row that may fail: the admin address changes its process meanwhile.
const MISSES: u32 = 20;
/// Reason that the gateway does not show.
const UNKNOWN: &str = "its log says why";

/// Arguments of `upgrade`.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 the new process serves, 1 the gateway does not answer, 2 wrong usage, 3 the new process \
    failed and the one before goes on, 4 the gateway refuses to begin."
)]
pub(super) struct UpgradeArguments {
    #[command(flatten)]
    admin: AdminArguments,
}

/// Hand-overs, as the admin address shows them.
#[derive(Deserialize)]
struct Report {
    pid: u32,
    successor: Option<u32>,
    failed: Option<Failed>,
}

#[derive(Deserialize)]
struct Failed {
    pid: u32,
    error: String,
}

/// Runs the command.
pub(super) fn run(arguments: &UpgradeArguments) -> ExitCode {
    block_on(async {
        match upgrade(&arguments.admin).await {
            Ok(code) => code,
            Err(e @ ClientError::Refused { status, .. }) => match status {
                StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE => fail(REFUSED, &e),
                StatusCode::INTERNAL_SERVER_ERROR => not_upgraded(&e.to_string()),
                _ => fail(FAILED, &e),
            },
            Err(e) => fail(FAILED, &e),
        }
    })
}

async fn upgrade(admin: &AdminArguments) -> Result<ExitCode, ClientError> {
    let begun: Report = admin.parse(&admin.post(PAGE).await?)?;
    let (old, Some(new)) = (begun.pid, begun.successor) else {
        // It has failed already.
        return Ok(not_upgraded(&begun.failed.map_or_else(|| UNKNOWN.to_owned(), |failed| failed.error)));
    };
    eprintln!("process {old} starts process {new}");
    let mut misses = 0;
    loop {
        tokio::time::sleep(POLL).await;
        let read = match admin.get(PAGE).await {
            Ok(page) => admin.parse::<Report>(&page),
            Err(e) => Err(e),
        };
        let report = match read {
            Ok(report) => report,
            Err(e) if misses == MISSES => {
                eprintln!("the gateway does not answer any more; its log says whether process {new} serves");
                return Err(e);
            }
            Err(_) => {
                misses += 1;
                continue;
            }
        };
        misses = 0;
        if report.pid != old {
            println!("process {} serves; process {old} finishes its requests", report.pid);
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(failed) = report.failed.filter(|failed| failed.pid == new) {
            return Ok(not_upgraded(&failed.error));
        }
    }
}

fn not_upgraded(why: &str) -> ExitCode {
    fail(NOT_UPGRADED, &format!("the gateway goes on with the process that it had: {why}"))
}
