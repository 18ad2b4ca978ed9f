//! `spillway drift`: makes reference files from a running gateway, and a report that a person can read.

mod html;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Deserialize;

use super::admin::{AdminArguments, ClientError};
use super::segment;
use crate::quality::RouteReport;

#[derive(Subcommand)]
pub(super) enum DriftCommand {
    /// Write the sketches of a route to a file, for `quality.reference.file`.
    Reference {
        /// The route.
        #[arg(long, value_name = "ROUTE")]
        route: String,
        /// The file; `-` writes to standard output.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        admin: AdminArguments,
    },
    /// Write a page with what callers ask and targets answer, beside the reference and over time.
    Report {
        /// The route.
        #[arg(long, value_name = "ROUTE")]
        route: String,
        /// The HTML file; `-` writes to standard output.
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
        #[command(flatten)]
        admin: AdminArguments,
    },
}

#[derive(Deserialize)]
struct Reports {
    routes: Vec<RouteReport>,
}

pub(super) async fn run(command: DriftCommand) -> Result<(), ClientError> {
    match command {
        DriftCommand::Reference { route, output, admin } => {
            let file = admin.get(&format!("/api/quality/{}/reference", segment(&route))).await?;
            write(&output, &file)
        }
        DriftCommand::Report { route, output, admin } => {
            let Reports { routes } = admin.parse(&admin.get("/api/quality").await?)?;
            let known: Vec<String> = routes.iter().map(|report| report.route.clone()).collect();
            let Some(report) = routes.into_iter().find(|report| report.route == route) else {
                return Err(ClientError::NoRoute { route, known });
            };
            write(&output, html::page(&report).as_bytes())
        }
    }
}

/// Writes a file, or standard output for `-`.
fn write(to: &Path, content: &[u8]) -> Result<(), ClientError> {
    if to == Path::new("-") {
        std::io::stdout().write_all(content)?;
        return Ok(());
    }
    std::fs::write(to, content).map_err(|source| ClientError::File { path: to.to_owned(), source })?;
    println!("{}", to.display());
    Ok(())
}
