//! `deploy/grafana/*.json`: dashboards for Grafana over the metrics of the gateway. Queries name only series and labels that
//! `metrics.rs` has.

use serde_json::{Value, json};

use super::metrics::Family;

/// Form of a panel.
#[derive(Clone, Copy)]
enum Form {
    /// Lines over time.
    Lines,
    /// Areas over time, one on the other.
    Stack,
    /// The last values, one for each series.
    Stat,
    /// Buckets of a histogram over time.
    Heat,
}

use Form::{Heat, Lines, Stack, Stat};

/// Panel: title, form, unit as Grafana names it, queries with the legend of each.
type Panel = (&'static str, Form, &'static str, &'static [(&'static str, &'static str)]);

/// Dashboard: file, title, and its rows of panels, each with a title.
type Dashboard = (&'static str, &'static str, &'static [(&'static str, &'static [Panel])]);

/// Columns of Grafana's grid, and the height of a panel in its lines.
const COLUMNS: usize = 24;
const HEIGHT: usize = 8;

const DASHBOARDS: &[Dashboard] = &[
    (
        "traffic",
        "Spillway: traffic",
        &[
            (
                "Requests",
                &[
                    (
                        "Requests a second",
                        Stack,
                        "reqps",
                        &[(
                            "sum by (http_route) (rate(http_server_request_duration_seconds_count{$i,$r}[$__rate_interval]))",
                            "{{http_route}}",
                        )],
                    ),
                    (
                        "Answers a second by status",
                        Stack,
                        "reqps",
                        &[(
                            "sum by (http_response_status_code) (rate(http_server_request_duration_seconds_count{$i,$r}[$__rate_interval]))",
                            "{{http_response_status_code}}",
                        )],
                    ),
                    (
                        "Share of 5xx",
                        Lines,
                        "percentunit",
                        &[(
                            "sum by (http_route) (rate(http_server_request_duration_seconds_count{$i,$r,http_response_status_code=~\"5..\"}[$__rate_interval])) / sum by (http_route) (rate(http_server_request_duration_seconds_count{$i,$r}[$__rate_interval]))",
                            "{{http_route}}",
                        )],
                    ),
                    (
                        "Duration of all requests",
                        Lines,
                        "s",
                        &[
                            (
                                "histogram_quantile(0.5, sum by (le) (rate(http_server_request_duration_seconds_bucket{$i,$r}[$__rate_interval])))",
                                "p50",
                            ),
                            (
                                "histogram_quantile(0.95, sum by (le) (rate(http_server_request_duration_seconds_bucket{$i,$r}[$__rate_interval])))",
                                "p95",
                            ),
                            (
                                "histogram_quantile(0.99, sum by (le) (rate(http_server_request_duration_seconds_bucket{$i,$r}[$__rate_interval])))",
                                "p99",
                            ),
                        ],
                    ),
                    (
                        "Duration p95 by route",
                        Lines,
                        "s",
                        &[(
                            "histogram_quantile(0.95, sum by (le, http_route) (rate(http_server_request_duration_seconds_bucket{$i,$r}[$__rate_interval])))",
                            "{{http_route}}",
                        )],
                    ),
                    (
                        "In flight, and open sockets",
                        Lines,
                        "short",
                        &[
                            ("sum by (http_route) (spillway_requests_in_flight{$i,$r})", "{{http_route}}"),
                            ("sum by (http_route) (spillway_open_sockets{$i,$r}) > 0", "{{http_route}} sockets"),
                        ],
                    ),
                ],
            ),
            (
                "Overload",
                &[
                    (
                        "Spills a second by reason",
                        Stack,
                        "reqps",
                        &[(
                            "sum by (http_route, reason) (rate(spillway_spills_total{$i,$r}[$__rate_interval])) > 0",
                            "{{http_route}} {{reason}}",
                        )],
                    ),
                    (
                        "Shed a second by reason",
                        Stack,
                        "reqps",
                        &[(
                            "sum by (http_route, reason) (rate(spillway_sheds_total{$i,$r}[$__rate_interval])) > 0",
                            "{{http_route}} {{reason}}",
                        )],
                    ),
                    (
                        "Not spilled a second by reason",
                        Stack,
                        "reqps",
                        &[(
                            "sum by (http_route, reason) (rate(spillway_unspilled_total{$i,$r}[$__rate_interval])) > 0",
                            "{{http_route}} {{reason}}",
                        )],
                    ),
                    (
                        "Queue",
                        Lines,
                        "short",
                        &[("sum by (http_route) (spillway_queue_depth{$i,$r})", "{{http_route}}")],
                    ),
                    (
                        "Wait in the queue, p95 by outcome",
                        Lines,
                        "s",
                        &[(
                            "histogram_quantile(0.95, sum by (le, outcome) (rate(spillway_queue_wait_seconds_bucket{$i,$r}[$__rate_interval])))",
                            "{{outcome}}",
                        )],
                    ),
                    (
                        "Further attempts a second",
                        Lines,
                        "reqps",
                        &[
                            ("sum(rate(spillway_retries_total{$i,$r}[$__rate_interval]))", "retries"),
                            (
                                "sum(rate(spillway_retries_denied_total{$i,$r}[$__rate_interval]))",
                                "denied by the budget",
                            ),
                            ("sum(rate(spillway_hedges_total{$i,$r}[$__rate_interval]))", "hedges"),
                            ("sum(rate(spillway_streams_resumed_total{$i,$r}[$__rate_interval]))", "streams continued"),
                        ],
                    ),
                ],
            ),
            (
                "Process",
                &[
                    (
                        "Processors in use",
                        Lines,
                        "short",
                        &[("rate(process_cpu_seconds_total{$i}[$__rate_interval])", "{{instance}}")],
                    ),
                    ("Resident memory", Lines, "bytes", &[("process_resident_memory_bytes{$i}", "{{instance}}")]),
                    (
                        "Connections of clients",
                        Lines,
                        "short",
                        &[("sum by (listener) (spillway_connections{$i})", "{{listener}}")],
                    ),
                    (
                        "Connections refused a second",
                        Lines,
                        "short",
                        &[(
                            "sum by (listener, reason) (rate(spillway_connections_refused_total{$i}[$__rate_interval])) > 0",
                            "{{listener}} {{reason}}",
                        )],
                    ),
                    (
                        "Descriptors in use",
                        Lines,
                        "percentunit",
                        &[("process_open_fds{$i} / process_max_fds{$i}", "{{instance}}")],
                    ),
                    (
                        "Edits of the configuration",
                        Stat,
                        "short",
                        &[("sum by (result) (increase(spillway_config_reloads_total{$i}[$__range]))", "{{result}}")],
                    ),
                ],
            ),
        ],
    ),
    (
        "models",
        "Spillway: models",
        &[
            (
                "Calls",
                &[
                    (
                        "Calls a second",
                        Stack,
                        "reqps",
                        &[(
                            "sum by (gen_ai_request_model) (rate(gen_ai_client_operation_duration_seconds_count{$i}[$__rate_interval]))",
                            "{{gen_ai_request_model}}",
                        )],
                    ),
                    (
                        "Time to the first content",
                        Heat,
                        "s",
                        &[(
                            "sum by (le) (increase(gen_ai_client_operation_time_to_first_chunk_seconds_bucket{$i}[$__rate_interval]))",
                            "{{le}}",
                        )],
                    ),
                    (
                        "Time to the first content, p95",
                        Lines,
                        "s",
                        &[(
                            "histogram_quantile(0.95, sum by (le, gen_ai_request_model) (rate(gen_ai_client_operation_time_to_first_chunk_seconds_bucket{$i}[$__rate_interval])))",
                            "{{gen_ai_request_model}}",
                        )],
                    ),
                    (
                        "Duration of a call, p95",
                        Lines,
                        "s",
                        &[(
                            "histogram_quantile(0.95, sum by (le, gen_ai_request_model) (rate(gen_ai_client_operation_duration_seconds_bucket{$i}[$__rate_interval])))",
                            "{{gen_ai_request_model}}",
                        )],
                    ),
                    (
                        "Tokens a second by type",
                        Stack,
                        "short",
                        &[(
                            "sum by (gen_ai_token_type) (rate(gen_ai_client_token_usage_sum{$i}[$__rate_interval]))",
                            "{{gen_ai_token_type}}",
                        )],
                    ),
                    (
                        "Tokens a second by model",
                        Stack,
                        "short",
                        &[(
                            "sum by (gen_ai_request_model) (rate(gen_ai_client_token_usage_sum{$i}[$__rate_interval]))",
                            "{{gen_ai_request_model}}",
                        )],
                    ),
                ],
            ),
            (
                "Built-in models",
                &[
                    (
                        "Answers that are written, and requests that wait",
                        Lines,
                        "short",
                        &[
                            ("sum by (model) (spillway_engine_active_sequences{$i})", "{{model}}"),
                            ("sum by (model) (spillway_engine_waiting_sequences{$i})", "{{model}} waiting"),
                        ],
                    ),
                    (
                        "Tokens a second",
                        Lines,
                        "short",
                        &[
                            (
                                "sum by (model) (rate(spillway_engine_generated_tokens_total{$i}[$__rate_interval]))",
                                "{{model}} written",
                            ),
                            (
                                "sum by (model) (rate(spillway_engine_prompt_tokens_total{$i}[$__rate_interval]))",
                                "{{model}} read",
                            ),
                        ],
                    ),
                    (
                        "First token of a built-in model, p95",
                        Lines,
                        "s",
                        &[(
                            "histogram_quantile(0.95, sum by (le, gen_ai_request_model) (rate(gen_ai_server_time_to_first_token_seconds_bucket{$i}[$__rate_interval])))",
                            "{{gen_ai_request_model}}",
                        )],
                    ),
                    (
                        "Use of the KV cache",
                        Lines,
                        "percentunit",
                        &[(
                            "sum by (model) (spillway_engine_kv_used_tokens{$i}) / sum by (model) (spillway_engine_kv_capacity_tokens{$i})",
                            "{{model}}",
                        )],
                    ),
                    (
                        "Memory of models",
                        Lines,
                        "bytes",
                        &[
                            ("sum by (model) (spillway_engine_memory_bytes{$i})", "{{model}}"),
                            ("sum(spillway_models_memory_limit_bytes{$i})", "limit"),
                        ],
                    ),
                    ("Ready", Stat, "short", &[("min by (model) (spillway_engine_ready{$i})", "{{model}}")]),
                ],
            ),
        ],
    ),
    (
        "servers",
        "Spillway: servers",
        &[
            (
                "Endpoints",
                &[
                    (
                        "In flight",
                        Lines,
                        "short",
                        &[(
                            "sum by (backend, endpoint) (spillway_endpoint_in_flight{$i,$b})",
                            "{{backend}} {{endpoint}}",
                        )],
                    ),
                    (
                        "Share of the limit in use",
                        Lines,
                        "percentunit",
                        &[(
                            "sum by (backend, endpoint) (spillway_endpoint_in_flight{$i,$b}) / sum by (backend, endpoint) (spillway_endpoint_limit{$i,$b})",
                            "{{backend}} {{endpoint}}",
                        )],
                    ),
                    (
                        "Time to the first token or head",
                        Lines,
                        "s",
                        &[(
                            "max by (backend, endpoint) (spillway_endpoint_latency_seconds{$i,$b})",
                            "{{backend}} {{endpoint}}",
                        )],
                    ),
                    (
                        "Attempts a second by outcome",
                        Stack,
                        "reqps",
                        &[(
                            "sum by (backend, outcome) (rate(spillway_endpoint_attempts_total{$i,$b}[$__rate_interval])) > 0",
                            "{{backend}} {{outcome}}",
                        )],
                    ),
                    (
                        "Full, by the signal that says so",
                        Lines,
                        "short",
                        &[(
                            "sum by (backend, endpoint, reason) (spillway_endpoint_saturated{$i,$b}) > 0",
                            "{{backend}} {{endpoint}} {{reason}}",
                        )],
                    ),
                    (
                        "Out of use",
                        Lines,
                        "short",
                        &[
                            (
                                "sum by (backend, endpoint) (spillway_endpoint_healthy{$i,$b} == bool 0) > 0",
                                "{{backend}} {{endpoint}} unhealthy",
                            ),
                            (
                                "sum by (backend, endpoint) (spillway_endpoint_ejected{$i,$b}) > 0",
                                "{{backend}} {{endpoint}} ejected",
                            ),
                            (
                                "sum by (backend, endpoint) (spillway_endpoint_drained{$i,$b}) > 0",
                                "{{backend}} {{endpoint}} drained",
                            ),
                        ],
                    ),
                ],
            ),
            (
                "What servers say of themselves",
                &[
                    (
                        "Requests that wait there",
                        Lines,
                        "short",
                        &[(
                            "max by (backend, endpoint) (spillway_endpoint_waiting{$i,$b})",
                            "{{backend}} {{endpoint}}",
                        )],
                    ),
                    (
                        "KV cache in use",
                        Lines,
                        "percentunit",
                        &[(
                            "max by (backend, endpoint) (spillway_endpoint_kv_cache{$i,$b})",
                            "{{backend}} {{endpoint}}",
                        )],
                    ),
                    (
                        "Limits of circuit breakers reached",
                        Lines,
                        "short",
                        &[(
                            "sum by (backend, limit) (spillway_backend_circuit_open{$i,$b}) > 0",
                            "{{backend}} {{limit}}",
                        )],
                    ),
                ],
            ),
        ],
    ),
    (
        "callers",
        "Spillway: callers and limits",
        &[(
            "Limits",
            &[
                (
                    "Refused a second by rule",
                    Stack,
                    "reqps",
                    &[("sum by (limit) (rate(spillway_limit_refusals_total{$i}[$__rate_interval])) > 0", "{{limit}}")],
                ),
                (
                    "Budget spent",
                    Lines,
                    "percentunit",
                    &[(
                        "max by (budget, per, unit) (spillway_budget_spent{$i}) / max by (budget, per, unit) (spillway_budget_limit{$i})",
                        "{{budget}} {{unit}} a {{per}}",
                    )],
                ),
                (
                    "Bad credentials a second",
                    Lines,
                    "short",
                    &[
                        ("sum(rate(spillway_authentication_failures_total{$i}[$__rate_interval]))", "refused"),
                        ("sum(rate(spillway_authentication_throttled_total{$i}[$__rate_interval]))", "throttled"),
                    ],
                ),
                (
                    "Refused by a filter a second",
                    Stack,
                    "reqps",
                    &[(
                        "sum by (http_route, filter) (rate(spillway_filter_refusals_total{$i,$r}[$__rate_interval])) > 0",
                        "{{http_route}} {{filter}}",
                    )],
                ),
                (
                    "Found by a guard a second",
                    Stack,
                    "short",
                    &[(
                        "sum by (http_route, pattern, at) (rate(spillway_filter_guard_findings_total{$i,$r}[$__rate_interval])) > 0",
                        "{{http_route}} {{pattern}} {{at}}",
                    )],
                ),
                (
                    "Requests at a cache a second",
                    Stack,
                    "reqps",
                    &[(
                        "sum by (http_route, result) (rate(spillway_filter_cache_requests_total{$i,$r}[$__rate_interval])) > 0",
                        "{{http_route}} {{result}}",
                    )],
                ),
                (
                    "Saved by caches a day",
                    Stack,
                    "currencyUSD",
                    &[(
                        "86400 * sum by (http_route) (rate(spillway_filter_cache_saved_usd_total{$i,$r}[$__rate_interval])) > 0",
                        "{{http_route}}",
                    )],
                ),
                (
                    "Days until a certificate ends",
                    Stat,
                    "d",
                    &[(
                        "min by (listener, certificate) (spillway_tls_certificate_expiry_seconds{$i} - time()) / 86400",
                        "{{listener}} {{certificate}}",
                    )],
                ),
                ("Shared limits reachable", Stat, "short", &[("min(spillway_limit_store_up{$i})", "store")]),
            ],
        )],
    ),
    (
        "rollouts",
        "Spillway: rollouts and quality",
        &[
            (
                "Rollouts",
                &[
                    (
                        "Percent at the candidate",
                        Lines,
                        "percent",
                        &[("max by (http_route) (spillway_rollout_weight{$i,$r})", "{{http_route}}")],
                    ),
                    (
                        "State",
                        Stat,
                        "short",
                        &[(
                            "max by (http_route, state) (spillway_rollout_state{$i,$r}) > 0",
                            "{{http_route}} {{state}}",
                        )],
                    ),
                    (
                        "Evidence that a metric is worse (aborts at 1)",
                        Lines,
                        "short",
                        &[(
                            "max by (http_route, metric) (spillway_rollout_evidence{$i,$r})",
                            "{{http_route}} {{metric}}",
                        )],
                    ),
                    (
                        "Concluded requests of the step",
                        Lines,
                        "short",
                        &[(
                            "max by (http_route, version) (spillway_rollout_requests{$i,$r})",
                            "{{http_route}} {{version}}",
                        )],
                    ),
                    (
                        "Ends",
                        Stat,
                        "short",
                        &[(
                            "sum by (http_route, result) (increase(spillway_rollout_ends_total{$i,$r}[$__range]))",
                            "{{http_route}} {{result}}",
                        )],
                    ),
                ],
            ),
            (
                "Drift and feedback",
                &[
                    (
                        "Distance in parts of its limit",
                        Lines,
                        "percentunit",
                        &[(
                            "max by (http_route, target, feature) (spillway_quality_distance{$i,$r}) / max by (http_route, target, feature) (spillway_quality_limit{$i,$r})",
                            "{{http_route}} {{target}} {{feature}}",
                        )],
                    ),
                    (
                        "Conversations that go badly, a second",
                        Stack,
                        "short",
                        &[(
                            "sum by (http_route, signal) (rate(spillway_quality_signals_total{$i,$r}[$__rate_interval])) > 0",
                            "{{http_route}} {{signal}}",
                        )],
                    ),
                    (
                        "Recent score of feedback",
                        Lines,
                        "short",
                        &[(
                            "avg by (http_route, target) (spillway_feedback_recent_score{$i,$r})",
                            "{{http_route}} {{target}}",
                        )],
                    ),
                    (
                        "Accuracy by labels",
                        Lines,
                        "percentunit",
                        &[(
                            "avg by (http_route, target) (spillway_feedback_accuracy{$i,$r})",
                            "{{http_route}} {{target}}",
                        )],
                    ),
                ],
            ),
        ],
    ),
];

/// Short forms in queries, and what they stand for.
const SHORT: &[(&str, &str)] =
    &[("$i", "instance=~\"$instance\""), ("$r", "http_route=~\"$route\""), ("$b", "backend=~\"$backend\"")];

fn query(short: &str) -> String {
    let mut query = short.to_owned();
    for (short, long) in SHORT {
        for behind in [",", "}"] {
            query = query.replace(&format!("{short}{behind}"), &format!("{long}{behind}"));
        }
    }
    query
}

/// Words of a query outside of texts: names of functions, series and labels.
fn words(query: &str) -> Vec<&str> {
    let outside = query.split('"').step_by(2);
    let words = outside.flat_map(|part| part.split(|c: char| !(c.is_alphanumeric() || "_$:".contains(c))));
    words.filter(|word| word.starts_with(|c: char| c.is_ascii_lowercase())).collect()
}

/// Words of PromQL that queries and rules use, and labels that scrapers add.
const KNOWN: &[&str] = &[
    "sum",
    "max",
    "min",
    "avg",
    "by",
    "on",
    "and",
    "or",
    "group_left",
    "bool",
    "rate",
    "increase",
    "time",
    "histogram_quantile",
    "instance",
    "le",
];

/// Number of series in a query. Panics on a name in it that no family has.
pub fn series_of_query(what: &str, query: &str, families: &[Family<'_>]) -> usize {
    let words = words(query);
    let used: Vec<&Family<'_>> = families
        .iter()
        .filter(|family| family.samples().iter().any(|sample| words.contains(&sample.as_str())))
        .collect();
    assert!(!used.is_empty(), "{what}: {query} has no series of the gateway");
    let mut series = 0;
    for word in words {
        let is_series = used.iter().any(|family| family.samples().iter().any(|sample| sample == word));
        let is_label = used.iter().any(|family| family.labels.contains(&word));
        assert!(
            is_series || is_label || KNOWN.contains(&word),
            "{what}: no metric or label is called `{word}` in {query}"
        );
        series += usize::from(is_series);
    }
    series
}

fn panel(id: usize, place: (usize, usize), width: usize, (title, form, unit, queries): &Panel) -> Value {
    let targets = queries.iter().zip(["A", "B", "C", "D"]).map(|((short, legend), reference)| {
        let format = if matches!(form, Heat) { "heatmap" } else { "time_series" };
        json!({"refId": reference, "expr": query(short), "legendFormat": legend, "format": format, "range": !matches!(form, Stat), "instant": matches!(form, Stat)})
    });
    let datasource = json!({"type": "prometheus", "uid": "${datasource}"});
    let mut panel = json!({
        "id": id,
        "title": title,
        "datasource": datasource,
        "gridPos": {"x": place.0, "y": place.1, "w": width, "h": HEIGHT},
        "targets": targets.collect::<Vec<_>>(),
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
    });
    let (kind, options) = match form {
        Lines | Stack => {
            let (stacking, fill) = if matches!(form, Stack) { ("normal", 25) } else { ("none", 0) };
            panel["fieldConfig"]["defaults"]["custom"] =
                json!({"fillOpacity": fill, "showPoints": "never", "stacking": {"mode": stacking, "group": "A"}});
            (
                "timeseries",
                json!({"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}}),
            )
        }
        Stat => (
            "stat",
            json!({"reduceOptions": {"calcs": ["lastNotNull"]}, "textMode": "value_and_name", "colorMode": "none"}),
        ),
        Heat => (
            "heatmap",
            json!({"calculate": false, "yAxis": {"unit": unit}, "cellGap": 0, "color": {"mode": "scheme", "scheme": "Oranges"}}),
        ),
    };
    panel["type"] = json!(kind);
    panel["options"] = options;
    panel
}

/// Choice of values of a label, all at first.
fn choice(name: &str, series: &str, label: &str) -> Value {
    json!({
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": format!("label_values({series}, {label})"), "refId": name},
        "definition": format!("label_values({series}, {label})"),
        "refresh": 2,
        "multi": true,
        "includeAll": true,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "sort": 1,
    })
}

/// Renders every dashboard: its path from the root of the repository, and its text.
pub(super) fn files(families: &[Family]) -> Vec<(String, String)> {
    let render = |(file, title, rows): &Dashboard| {
        let (mut panels, mut line) = (Vec::new(), 0);
        for (title, row) in *rows {
            panels.push(json!({"id": panels.len() + 1, "type": "row", "title": title, "collapsed": false, "panels": [], "gridPos": {"x": 0, "y": line, "w": COLUMNS, "h": 1}}));
            line += 1;
            let width = COLUMNS / 3;
            for (n, each) in row.iter().enumerate() {
                for (short, _) in each.3 {
                    series_of_query(file, &query(short), families);
                }
                let place = (n % 3 * width, line + n / 3 * HEIGHT);
                panels.push(panel(panels.len() + 1, place, width, each));
            }
            line += row.len().div_ceil(3) * HEIGHT;
        }
        let text = json!(panels).to_string();
        let mut variables = vec![
            json!({"name": "datasource", "type": "datasource", "query": "prometheus", "current": {}, "hide": 0}),
            choice("instance", "spillway_build_info", "instance"),
        ];
        if text.contains("$route") {
            variables.push(choice("route", "spillway_requests_in_flight", "http_route"));
        }
        if text.contains("$backend") {
            variables.push(choice("backend", "spillway_backend_pending", "backend"));
        }
        let dashboard = json!({
            "uid": format!("spillway-{file}"),
            "title": title,
            "tags": ["spillway"],
            "schemaVersion": 39,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "templating": {"list": variables},
            "annotations": {"list": []},
            "links": [{"type": "dashboards", "title": "Spillway", "tags": ["spillway"], "asDropdown": true, "includeVars": true, "keepTime": true}],
            "panels": panels,
        });
        let text = serde_json::to_string_pretty(&dashboard).unwrap() + "\n";
        (format!("deploy/grafana/{file}.json"), text)
    };
    DASHBOARDS.iter().map(render).collect()
}
