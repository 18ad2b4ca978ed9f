use std::time::Duration;

use http::Method;

use super::*;
use crate::telemetry::{AttemptEnd, SpillReason};

fn has(text: &str, line: &str) -> bool {
    text.lines().any(|l| l == line)
}

#[test]
fn a_scrape_shows_what_happened() {
    let metrics = Metrics::new();
    let route = metrics.route("chat");
    route.ended(&Method::POST, 200, Duration::from_millis(20), None);
    route.ended(&Method::from_bytes(b"BREW").unwrap(), 404, Duration::from_millis(20), None);
    route.ended(&Method::from_bytes(b"BOIL").unwrap(), 404, Duration::from_millis(20), None);
    route.spilled(SpillReason::Saturated);
    route.shed(SpillReason::Unavailable);
    route.refused_by("rateLimit");
    route.refused_by("rateLimit");
    let endpoint = metrics.endpoint("b", "http://127.0.0.1:1");
    endpoint.attempted(AttemptEnd::Answered);
    let inside = metrics.model("spillway", "m");
    inside.called(CallStats { input: Some(5), output: Some(3), ..CallStats::default() }, Duration::from_millis(30));
    inside.generated(Duration::from_millis(15), Duration::from_millis(80), 3);
    metrics.spans_dropped.fetch_add(2, Ordering::Relaxed);
    metrics.log_records_dropped.fetch_add(4, Ordering::Relaxed);
    let certificate = |ends| CertificateSample { place: "public".into(), certificate: "a.test".into(), ends };
    let samples = Samples {
        engines: &[EngineSample { model: "m".into(), generated: 7, ..EngineSample::default() }],
        certificates: &[certificate(1_800_000_009), certificate(1_800_000_000)],
        log_dropped: 3,
        ..Samples::default()
    };
    let text = metrics.encode(&samples, MetricsFormat::OpenMetrics);
    let older = metrics.encode(&samples, MetricsFormat::Text);
    assert!(has(&older, "# TYPE spillway_spills_total counter") && !older.contains("# EOF"), "{older}");
    for line in [
        r#"http_server_request_duration_seconds_bucket{le="0.025",http_request_method="POST",http_route="chat",http_response_status_code="200"} 1"#,
        r#"http_server_request_duration_seconds_count{http_request_method="POST",http_route="chat",http_response_status_code="200"} 1"#,
        r#"http_server_request_duration_seconds_count{http_request_method="_OTHER",http_route="chat",http_response_status_code="404"} 2"#,
        r#"spillway_spills_total{http_route="chat",reason="saturated"} 1"#,
        r#"spillway_sheds_total{http_route="chat",reason="unavailable"} 1"#,
        r#"spillway_filter_refusals_total{http_route="chat",filter="rateLimit"} 2"#,
        r#"spillway_endpoint_attempts_total{backend="b",endpoint="http://127.0.0.1:1",outcome="answered"} 1"#,
        r#"gen_ai_client_token_usage_sum{gen_ai_operation_name="chat",gen_ai_provider_name="spillway",gen_ai_request_model="m",gen_ai_token_type="input"} 5.0"#,
        r#"gen_ai_server_time_per_output_token_seconds_sum{gen_ai_operation_name="chat",gen_ai_provider_name="spillway",gen_ai_request_model="m"} 0.04"#,
        r#"spillway_engine_generated_tokens_total{model="m"} 7"#,
        r#"spillway_tls_certificate_expiry_seconds{listener="public",certificate="a.test"} 1800000000"#,
        "spillway_log_lines_dropped_total 3",
        "spillway_spans_dropped_total 2",
        "spillway_log_records_dropped_total 4",
        concat!("spillway_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(has(&text, line), "{line} is missing in\n{text}");
    }
    assert!(text.ends_with("# EOF\n") && text.matches("# EOF").count() == 1);
}

#[test]
fn the_process_tells_what_it_uses() {
    let text = Metrics::new().encode(&Samples::default(), MetricsFormat::OpenMetrics);
    for name in [
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "process_start_time_seconds",
        "process_cpu_seconds_total",
    ] {
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<f64>().ok());
        assert!(value.is_some_and(|value| value > 0.0), "{name} in\n{text}");
    }
}

#[test]
fn a_reload_keeps_series_and_what_is_removed_takes_its_own_along() {
    let metrics = Metrics::new();
    let old = (metrics.route("gone"), metrics.endpoint("b", "http://gone"), metrics.listener("gone"));
    let old_model = metrics.model("openai", "gone");
    old.0.ended(&Method::GET, 200, Duration::ZERO, None);
    old.0.refused_by("rateLimit");
    let kept = metrics.route("kept");
    kept.retries.inc();
    // The new snapshot is compiled while the old one lives.
    let again = metrics.route("kept");
    drop(kept);
    again.retries.inc();
    assert!(has(
        &metrics.encode(&Samples::default(), MetricsFormat::OpenMetrics),
        r#"spillway_retries_total{http_route="kept"} 2"#
    ));
    assert!(metrics.encode(&Samples::default(), MetricsFormat::OpenMetrics).contains("gone"));
    drop((old, old_model));
    let text = metrics.encode(&Samples::default(), MetricsFormat::OpenMetrics);
    assert!(!text.contains("gone"), "{text}");
    assert!(text.contains("kept"));
}

#[test]
fn a_model_that_is_gone_shows_nothing_and_one_that_was_reloaded_counts_anew() {
    let metrics = Metrics::new();
    let sample = |generated| [EngineSample { model: "m".into(), generated, active: 1, ..EngineSample::default() }];
    let text = |engines: &[EngineSample]| {
        metrics.encode(&Samples { engines, ..Samples::default() }, MetricsFormat::OpenMetrics)
    };
    assert!(has(&text(&sample(7)), r#"spillway_engine_generated_tokens_total{model="m"} 7"#));
    assert!(has(&text(&sample(2)), r#"spillway_engine_generated_tokens_total{model="m"} 2"#));
    assert!(!metrics.encode(&Samples::default(), MetricsFormat::OpenMetrics).contains("model=\"m\""));
}

#[test]
fn no_upstream_can_make_series_without_end() {
    let metrics = Metrics::new();
    let route = metrics.route("r");
    for status in 200..1000 {
        route.ended(&Method::GET, status, Duration::ZERO, None);
        route.refused_by(&format!("filter{status}"));
    }
    let text = metrics.encode(&Samples::default(), MetricsFormat::OpenMetrics);
    assert_eq!(text.matches("http_server_request_duration_seconds_count{").count(), 65);
    let rest = r#"http_server_request_duration_seconds_count{http_request_method="_OTHER",http_route="r",http_response_status_code="other"} 736"#;
    assert!(has(&text, rest), "{text}");
    assert!(has(&text, r#"spillway_filter_refusals_total{http_route="r",filter="other"} 736"#), "{text}");
}

#[test]
fn names_cannot_break_the_text() {
    let metrics = Metrics::new();
    let route = metrics.route("a\"} 1\\\nspillway_fake 1");
    route.retries.inc();
    let text = metrics.encode(&Samples::default(), MetricsFormat::OpenMetrics);
    assert!(has(&text, r#"spillway_retries_total{http_route="a\"} 1\\\nspillway_fake 1"} 1"#), "{text}");
}
