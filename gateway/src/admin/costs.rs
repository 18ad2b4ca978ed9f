//! Page of costs: what each consumer has used and what that costs, as JSON or as a table for spreadsheets.

use std::fmt::Write;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

use super::AdminState;
use super::access::problem;
use super::body::starting;
use crate::limits::CostRow;
use crate::telemetry::rfc3339_millis;

/// Costs since the process began.
pub struct ShownCosts {
    /// Begin of the process.
    pub since: std::time::SystemTime,
    /// Costs by consumer, tenant, route and price.
    pub rows: Vec<CostRow>,
    /// Answers of servers without a price, by consumer, tenant and route.
    pub unpriced: Vec<CostRow>,
}

/// Form of the answer.
#[derive(Deserialize)]
pub(super) struct Form {
    format: Option<String>,
}

/// Row as programs read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row<'r> {
    consumer: &'r str,
    tenant: &'r str,
    route: &'r str,
    model: &'r str,
    answers: u64,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    usd: f64,
}

/// Row of use without a price, as programs read it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct UnpricedRow<'r> {
    consumer: &'r str,
    tenant: &'r str,
    route: &'r str,
    answers: u64,
    input_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
}

impl<'r> UnpricedRow<'r> {
    fn of(row: &'r CostRow) -> Self {
        Self {
            consumer: &row.consumer,
            tenant: &row.tenant,
            route: &row.route,
            answers: row.answers,
            input_tokens: row.input,
            cached_tokens: row.cached,
            output_tokens: row.output,
        }
    }
}

impl<'r> Row<'r> {
    fn of(row: &'r CostRow) -> Self {
        Self {
            consumer: &row.consumer,
            tenant: &row.tenant,
            route: &row.route,
            model: &row.model,
            answers: row.answers,
            input_tokens: row.input,
            cached_tokens: row.cached,
            output_tokens: row.output,
            usd: dollars(row.nanos),
        }
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "2^53 billionths are nine million dollars; beyond, the last cents are lost"
)]
fn dollars(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

/// Shows the costs; as CSV for `?format=csv`, and where `Accept` names `text/csv`.
pub(super) async fn show(
    State(state): State<Arc<dyn AdminState>>,
    headers: HeaderMap,
    Query(form): Query<Form>,
) -> Response {
    let Some(costs) = state.costs() else { return starting() };
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match form.format.as_deref() {
        Some("csv") => table(&costs),
        None if accept.contains("text/csv") => table(&costs),
        None | Some("json") => {
            let rows: Vec<Row<'_>> = costs.rows.iter().map(Row::of).collect();
            let unpriced: Vec<UnpricedRow<'_>> = costs.unpriced.iter().map(UnpricedRow::of).collect();
            let since = rfc3339_millis(costs.since);
            axum::Json(serde_json::json!({ "since": since, "costs": rows, "unpriced": unpriced })).into_response()
        }
        Some(_) => problem(StatusCode::BAD_REQUEST, "unknown format; expected json or csv"),
    }
}

fn table(costs: &ShownCosts) -> Response {
    let mut text = "consumer,tenant,route,model,answers,inputTokens,cachedTokens,outputTokens,usd\r\n".to_owned();
    for row in &costs.rows {
        let names = [&row.consumer, &row.tenant, &row.route, &row.model].map(|name| cell(name)).join(",");
        let usd = format!("{}.{:09}", row.nanos / 1_000_000_000, row.nanos % 1_000_000_000);
        // Writing to a string does not fail.
        let _ = write!(text, "{names},{},{},{},{},{usd}\r\n", row.answers, row.input, row.cached, row.output);
    }
    let content_type = (header::CONTENT_TYPE, "text/csv; charset=utf-8");
    let disposition = (header::CONTENT_DISPOSITION, "attachment; filename=\"spillway-costs.csv\"");
    ([content_type, disposition], text).into_response()
}

/// Cell of a name (RFC 4180). One that a spreadsheet would take for a formula gets an apostrophe, so that it is text: claims of
/// tokens name consumers.
fn cell(name: &str) -> String {
    let is_formula = name.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let name = if is_formula { format!("'{name}") } else { name.to_owned() };
    if name.contains([',', '"', '\r', '\n', '\'']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_text_whatever_a_name_holds() {
        for (name, expected) in [
            ("acme", "acme"),
            ("=1+1", "\"'=1+1\""),
            ("+cmd|' /C calc'!A0", "\"'+cmd|' /C calc'!A0\""),
            ("-2", "\"'-2\""),
            ("@SUM(A1)", "\"'@SUM(A1)\""),
            ("\t=1", "\"'\t=1\""),
            ("a,b", "\"a,b\""),
            ("a\"b\n", "\"a\"\"b\n\""),
            ("", ""),
        ] {
            assert_eq!(cell(name), expected, "{name}");
        }
    }
}
