//! Load that servers report in their answers (ORCA, Open Request Cost Aggregation). Asked for with the header
//! `endpoint-load-metrics-format`, answered in `endpoint-load-metrics` as `JSON {...}` or `TEXT name=value, ...`; vLLM and
//! Triton with TensorRT-LLM do so. The header is foreign text: its length is bounded, and impossible figures are no report.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue};
use spillway_filter::Fields;

use super::LoadReport;

/// Request header that asks for reports.
pub static FORMAT: HeaderName = HeaderName::from_static("endpoint-load-metrics-format");
/// Value of [`FORMAT`].
pub static JSON: HeaderValue = HeaderValue::from_static("JSON");
/// Response header with the report.
pub static REPORT: HeaderName = HeaderName::from_static("endpoint-load-metrics");

/// Longest report, bytes.
const MAX_REPORT: usize = 4096;
/// Names of waiting requests: vLLM; TensorRT-LLM.
const WAITING: [&str; 2] = ["num_requests_waiting", "waiting_requests"];
/// Names of the KV cache's use: vLLM, older vLLM, Triton.
const KV_CACHE: [&str; 3] = ["kv_cache_usage_perc", "gpu_cache_usage_perc", "kv_cache_utilization"];

/// Report in the headers of an answer.
pub fn report(headers: &Fields) -> Option<LoadReport> {
    let text = headers.get(&REPORT)?.to_str().ok().filter(|text| text.len() <= MAX_REPORT)?.trim();
    let (format, rest) = text.split_once(' ').unwrap_or((text, ""));
    let figures: HashMap<String, f64> = if format.eq_ignore_ascii_case("JSON") {
        json(rest)?
    } else if format.eq_ignore_ascii_case("TEXT") {
        pairs(rest)
    } else {
        return None;
    };
    let first = |names: &[&str]| names.iter().find_map(|name| figures.get(*name).copied()).filter(|n| *n >= 0.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturating is what is wanted")]
    let waiting = first(&WAITING).map(|count| count as u32);
    let report = LoadReport { waiting, kv_cache: first(&KV_CACHE) };
    (report != LoadReport::default()).then_some(report)
}

fn json(text: &str) -> Option<HashMap<String, f64>> {
    let object: serde_json::Map<String, serde_json::Value> = serde_json::from_str(text).ok()?;
    let named = object.get("named_metrics").or_else(|| object.get("namedMetrics")).and_then(|n| n.as_object());
    let all = named.into_iter().flatten().chain(&object);
    Some(all.filter_map(|(name, value)| Some((name.clone(), value.as_f64()?))).collect())
}

fn pairs(text: &str) -> HashMap<String, f64> {
    let pair = |pair: &str| {
        let (name, value) = pair.split_once('=').or_else(|| pair.split_once(':'))?;
        let name = name.trim();
        let name = name.strip_prefix("named_metrics.").unwrap_or(name);
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.split(',').filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Option<LoadReport> {
        report(&Fields::from_iter([(REPORT.clone(), HeaderValue::from_str(text).unwrap())]))
    }

    #[test]
    fn reports_of_vllm_and_triton_are_read() {
        for (text, waiting, kv_cache) in [
            (r#"JSON {"named_metrics": {"kv_cache_usage_perc": 0.4, "num_requests_waiting": 3}}"#, Some(3), Some(0.4)),
            ("TEXT named_metrics.kv_cache_usage_perc=0.25, named_metrics.num_requests_waiting=0", Some(0), Some(0.25)),
            (r#"JSON {"named_metrics": {"kv_cache_utilization": 0.9, "max_token_capacity": 4096}}"#, None, Some(0.9)),
        ] {
            assert_eq!(of(text), Some(LoadReport { waiting, kv_cache }), "{text}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_no_report() {
        let long = format!("JSON {{\"x\": \"{}\"}}", "y".repeat(MAX_REPORT));
        for text in
            ["", "JSON", "JSON [1]", "JSON {\"named_metrics\": 3}", "BIN AAAA", "TEXT num_requests_waiting=-1", &long]
        {
            assert_eq!(of(text), None, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_read(text in "(JSON|TEXT)? ?[\\x20-\\x7e]{0,100}") {
            let _ = of(&text);
        }
    }
}
