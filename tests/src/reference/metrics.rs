//! `metrics.md`: every series, with help and kind from the sources. Labels, unit and group are written here, one row for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::LazyLock;

use super::source::{File, files, literal, literals, parts};
use super::{GENERATED, cell, compare};

/// Values of a label.
#[derive(Debug, Clone, Copy)]
enum Values {
    /// Names of the configuration, or another text.
    Text(&'static str),
    /// Values of the enum with this name.
    Enum(&'static str),
    /// A list of values, each of which the sources have.
    List(&'static [&'static str]),
}

use Values::{Enum, List, Text};

type Label = (&'static str, Values);

const ROUTE: Label = ("http_route", Text("name of the route"));
const BACKEND: Label = ("backend", Text("name of the backend"));
const ENDPOINT: Label = ("endpoint", Text("URL of the endpoint; for a name, with its address"));
const TARGET: Label = ("target", Text("name of the backend, or `builtin/NAME`"));
const CLASS: Label = ("class", Text("class as callers wrote it; `other` beyond 32 of a target"));
const LISTENER: Label = ("listener", Text("name of the listener"));
const GPU: &[Label] = &[
    ("gpu", Text("number that the driver gives it")),
    ("name", Text("name of the product")),
    ("uuid", Text("identifier of the card")),
];
const MODEL: Label = ("model", Text("name of the built-in model"));
const FEATURE: Label =
    ("feature", Text("[feature](../how-to/drift.md#features), such as `promptLength` or `input:age`"));
const PROBE: Label = ("probe", Text("name of the probe in its file"));
const LIMIT: Label = (
    "limit",
    Text(
        "name of the rule: whose it is, what it counts, and its period in seconds, such as `consumer acme/requests/1`",
    ),
);
const COST: &[Label] = &[
    ("consumer", Text("name of the consumer; empty for anonymous callers, `other` beyond 10,000 rows")),
    ("tenant", Text("name of its tenant")),
    ROUTE,
    ("model", Text("name of the price, as `prices` or the catalogue has it")),
];
const OPERATION: Label = ("gen_ai_operation_name", List(&["chat"]));
const PROVIDER: Label =
    ("gen_ai_provider_name", Text("dialect of the backend, such as `openai`; `spillway` for a built-in model"));
const ASKED: Label = ("gen_ai_request_model", Text("name of the backend or of the built-in model"));

const PATTERN: Label =
    ("pattern", Text("name of the pattern of a guard, or model and label of its classifier (`toxicity:toxic`)"));
const JUDGED: Label = ("outcome", List(&["passed", "found", "unavailable", "too_long"]));
const AT: Label = ("at", List(&["prompt", "answer"]));
const ACTION: Label = ("action", List(&["redact", "mask", "refuse"]));

const METRIC: Label = ("metric", Text("name of the metric, as in `abortWhen`"));
const SIGNAL: Label = ("signal", Text("name of the signal"));
const RECEIVER: Label = ("receiver", Text("scheme, host and port of the receiver"));

/// Groups of series: title, and name, labels and unit of each.
type Group = (&'static str, &'static [(&'static str, &'static [Label], &'static str)]);

const GROUPS: &[Group] = &[
    (
        "Requests",
        &[
            (
                "http_server_request_duration_seconds",
                &[
                    ("http_request_method", Text("method; `_OTHER` for unusual ones")),
                    ROUTE,
                    (
                        "http_response_status_code",
                        Text("status; `none` where nothing was sent, `other` beyond 64 pairs of method and status"),
                    ),
                ],
                "seconds",
            ),
            ("spillway_requests_in_flight", &[ROUTE], "requests"),
            ("spillway_open_sockets", &[ROUTE], "sockets"),
            ("spillway_sockets", &[ROUTE, ("end", Enum("SocketEnd"))], "sockets"),
            ("spillway_filter_refusals", &[ROUTE, ("filter", Text("name of the filter"))], "requests"),
            ("spillway_filter_failures", &[ROUTE], "requests"),
        ],
    ),
    (
        "Guards, caches, processors, headers and compression",
        &[
            ("spillway_filter_guard_findings", &[ROUTE, PATTERN, AT, ACTION], "things"),
            ("spillway_filter_guard_shadow_findings", &[ROUTE, PATTERN, AT, ACTION], "things"),
            (
                "spillway_filter_guard_judgements",
                &[ROUTE, MODEL, AT, ("action", List(&["refuse", "shadow"])), JUDGED],
                "texts",
            ),
            (
                "spillway_filter_cache_requests",
                &[ROUTE, ("result", List(&["hit", "joined", "semantic", "miss", "bypassed"]))],
                "requests",
            ),
            (
                "spillway_filter_cache_unkept_answers",
                &[
                    ROUTE,
                    (
                        "reason",
                        List(&[
                            "status",
                            "spilled",
                            "form",
                            "forbidden",
                            "error",
                            "too_long",
                            "purged",
                            "store",
                            "cut",
                        ]),
                    ),
                ],
                "answers",
            ),
            ("spillway_filter_cache_embeddings", &[ROUTE, ("outcome", List(&["done", "left_out"]))], "texts"),
            ("spillway_filter_external_processing_answer_failures", &[ROUTE], "answers"),
            ("spillway_filter_cache_saved_tokens", &[ROUTE, ("kind", List(&["prompt", "completion"]))], "tokens"),
            ("spillway_filter_cache_saved_usd", &[ROUTE], "US dollars"),
            ("spillway_cache_store_up", &[], "0 or 1"),
            ("spillway_cache_store_lookups", &[("result", Enum("CacheLookup"))], "lookups"),
            ("spillway_cache_store_lookup_duration_seconds", &[], "seconds"),
            ("spillway_cache_store_writes", &[("result", Enum("CacheWrite"))], "answers"),
            (
                "spillway_filter_compression_answers",
                &[ROUTE, ("coding", List(&["zstd", "br", "gzip", "none"]))],
                "answers",
            ),
            (
                "spillway_filter_header_values_dropped",
                &[ROUTE, ("header", Text("name of the header")), ("reason", List(&["length", "characters"]))],
                "values",
            ),
            ("spillway_filter_compression_bytes", &[ROUTE, ("form", List(&["plain", "compressed"]))], "bytes"),
        ],
    ),
    (
        "Overload and further attempts",
        &[
            ("spillway_spills", &[ROUTE, ("reason", Enum("SpillReason"))], "requests"),
            ("spillway_unspilled", &[ROUTE, ("reason", Enum("NotSpilled"))], "requests"),
            ("spillway_sheds", &[ROUTE, ("reason", Enum("SpillReason"))], "requests"),
            ("spillway_queue_depth", &[ROUTE], "requests"),
            ("spillway_queue_wait_seconds", &[ROUTE, ("outcome", Enum("QueueEnd"))], "seconds"),
            ("spillway_retries", &[ROUTE], "attempts"),
            ("spillway_retries_denied", &[ROUTE], "attempts"),
            ("spillway_hedges", &[ROUTE], "attempts"),
            ("spillway_streams_resumed", &[ROUTE], "streams"),
            ("spillway_translated_answers_too_large", &[ROUTE], "answers"),
            ("spillway_mirrors", &[ROUTE, ("outcome", Enum("MirrorEnd"))], "copies"),
        ],
    ),
    (
        "Endpoints",
        &[
            ("spillway_endpoint_in_flight", &[BACKEND, ENDPOINT], "requests"),
            ("spillway_endpoint_limit", &[BACKEND, ENDPOINT], "requests"),
            ("spillway_endpoint_connections", &[BACKEND, ENDPOINT], "connections"),
            (
                "spillway_endpoint_saturated",
                &[
                    BACKEND,
                    ENDPOINT,
                    (
                        "reason",
                        Text(
                            "signal that says so, as in `capacity`: `maxInFlight`, `maxConnections`, `adaptive`, `queueDepth`, `kvCache`, `status`, `probation`",
                        ),
                    ),
                ],
                "0 or 1",
            ),
            ("spillway_endpoint_full", &[BACKEND, ENDPOINT], "answers"),
            ("spillway_endpoint_healthy", &[BACKEND, ENDPOINT], "0 or 1"),
            ("spillway_endpoint_ejected", &[BACKEND, ENDPOINT], "0 or 1"),
            ("spillway_endpoint_ejections", &[BACKEND, ENDPOINT], "ejections"),
            ("spillway_endpoint_drained", &[BACKEND, ENDPOINT], "0 or 1"),
            ("spillway_endpoint_attempts", &[BACKEND, ENDPOINT, ("outcome", Enum("AttemptEnd"))], "attempts"),
            ("spillway_endpoint_latency_seconds", &[BACKEND, ENDPOINT], "seconds"),
            ("spillway_endpoint_waiting", &[BACKEND, ENDPOINT], "requests"),
            ("spillway_endpoint_kv_cache", &[BACKEND, ENDPOINT], "share, 0 to 1"),
            ("spillway_endpoint_scrape_failures", &[BACKEND, ENDPOINT], "readings"),
            ("spillway_endpoint_model_list_failures", &[BACKEND, ENDPOINT], "questions"),
        ],
    ),
    (
        "Backends",
        &[
            ("spillway_backend_pending", &[BACKEND], "requests"),
            ("spillway_backend_retries_in_flight", &[BACKEND], "attempts"),
            ("spillway_backend_panic", &[BACKEND], "0 or 1"),
            ("spillway_backend_circuit_open", &[BACKEND, ("limit", Text("key of `circuitBreaker`"))], "0 or 1"),
        ],
    ),
    (
        "Model calls",
        &[
            ("gen_ai_client_operation_duration_seconds", &[OPERATION, PROVIDER, ASKED], "seconds"),
            ("gen_ai_client_operation_time_to_first_chunk_seconds", &[OPERATION, PROVIDER, ASKED], "seconds"),
            (
                "gen_ai_client_token_usage",
                &[
                    OPERATION,
                    PROVIDER,
                    ASKED,
                    ("gen_ai_token_type", List(&["input", "cache_read_input", "cache_creation_input", "output"])),
                ],
                "tokens",
            ),
            ("gen_ai_server_request_duration_seconds", &[OPERATION, PROVIDER, ASKED], "seconds"),
            ("gen_ai_server_time_to_first_token_seconds", &[OPERATION, PROVIDER, ASKED], "seconds"),
            ("gen_ai_server_time_per_output_token_seconds", &[OPERATION, PROVIDER, ASKED], "seconds"),
        ],
    ),
    (
        "Built-in models",
        &[
            ("spillway_engine_ready", &[MODEL], "0 or 1"),
            ("spillway_engine_loaded", &[MODEL], "0 or 1"),
            ("spillway_engine_active_sequences", &[MODEL], "sequences"),
            ("spillway_engine_waiting_sequences", &[MODEL], "requests"),
            ("spillway_engine_estimated_wait_seconds", &[MODEL], "seconds"),
            ("spillway_engine_generated_tokens", &[MODEL], "tokens"),
            ("spillway_engine_prompt_tokens", &[MODEL], "tokens"),
            ("spillway_engine_cached_prompt_tokens", &[MODEL], "tokens"),
            ("spillway_engine_kv_used_tokens", &[MODEL], "tokens"),
            ("spillway_engine_kv_idle_tokens", &[MODEL], "tokens"),
            ("spillway_engine_kv_capacity_tokens", &[MODEL], "tokens"),
            ("spillway_engine_preemptions", &[MODEL], "sequences"),
            ("spillway_engine_device_faults", &[MODEL], "faults"),
            ("spillway_engine_evictions", &[MODEL], "times"),
            ("spillway_engine_loads_refused", &[MODEL], "times"),
            ("spillway_engine_memory_bytes", &[MODEL], "bytes"),
            ("spillway_engine_load_tokens_per_second", &[MODEL], "tokens a second"),
            ("spillway_engine_load_bytes_per_second", &[MODEL], "bytes a second"),
            (
                "spillway_engine_device_info",
                &[
                    MODEL,
                    ("device", Text("name of the device")),
                    ("kind", Text("kind of the device")),
                    ("driver", Text("its driver")),
                ],
                "1",
            ),
            ("spillway_models_memory_bytes", &[], "bytes"),
            ("spillway_gpu_utilization_ratio", GPU, "0 to 1"),
            ("spillway_gpu_memory_used_bytes", GPU, "bytes"),
            ("spillway_gpu_memory_bytes", GPU, "bytes"),
            ("spillway_gpu_temperature_celsius", GPU, "degrees Celsius"),
            ("spillway_gpu_power_watts", GPU, "watts"),
            ("spillway_models_memory_limit_bytes", &[], "bytes"),
        ],
    ),
    (
        "Limits and budgets",
        &[
            ("spillway_limit_refusals", &[LIMIT], "requests"),
            ("spillway_limit_shadow_refusals", &[LIMIT], "requests"),
            ("spillway_limit_keys_forgotten", &[], "levels"),
            ("spillway_limit_store_up", &[], "0 or 1"),
            ("spillway_limit_store_gateways", &[], "gateways"),
            ("spillway_limit_store_fallbacks", &[], "requests"),
            ("spillway_limit_settlements_lost", &[], "corrections"),
            ("spillway_cost_usd", COST, "US dollars"),
            ("spillway_cost_answers", COST, "answers"),
            (
                "spillway_budget_spent",
                &[
                    ("budget", Text("`consumer NAME` or `tenant NAME`")),
                    ("per", List(&["day", "month"])),
                    ("unit", List(&["tokens", "usd"])),
                ],
                "tokens or US dollars",
            ),
            (
                "spillway_budget_limit",
                &[
                    ("budget", Text("`consumer NAME` or `tenant NAME`")),
                    ("per", List(&["day", "month"])),
                    ("unit", List(&["tokens", "usd"])),
                ],
                "tokens or US dollars",
            ),
            ("spillway_budget_write_failures", &[], "batches"),
        ],
    ),
    (
        "Feedback",
        &[
            ("spillway_feedback_labels", &[("result", Enum("FeedbackEnd"))], "labels"),
            ("spillway_feedback_remembered_requests", &[], "requests"),
            ("spillway_feedback_memory_limit_requests", &[], "requests"),
            ("spillway_feedback_evictions", &[], "requests"),
            ("spillway_feedback_labelled_requests", &[ROUTE, TARGET], "requests"),
            ("spillway_feedback_scored_requests", &[ROUTE, TARGET], "requests"),
            ("spillway_feedback_score", &[ROUTE, TARGET], "0 to 1"),
            ("spillway_feedback_recent_score", &[ROUTE, TARGET], "0 to 1"),
            (
                "spillway_feedback_requests_by_label",
                &[ROUTE, TARGET, ("label", Text("label as callers wrote it; `other` beyond 64 of a target"))],
                "requests",
            ),
            ("spillway_feedback_judged_requests", &[ROUTE, TARGET], "requests"),
            ("spillway_feedback_accuracy", &[ROUTE, TARGET], "0 to 1"),
            ("spillway_feedback_macro_precision", &[ROUTE, TARGET], "0 to 1"),
            ("spillway_feedback_macro_recall", &[ROUTE, TARGET], "0 to 1"),
            ("spillway_feedback_macro_f1", &[ROUTE, TARGET], "0 to 1"),
            ("spillway_feedback_class_precision", &[ROUTE, TARGET, CLASS], "0 to 1"),
            ("spillway_feedback_class_recall", &[ROUTE, TARGET, CLASS], "0 to 1"),
            ("spillway_feedback_class_f1", &[ROUTE, TARGET, CLASS], "0 to 1"),
            ("spillway_feedback_brier_score", &[ROUTE, TARGET], "0 to 1"),
            ("spillway_feedback_calibration_error", &[ROUTE, TARGET], "0 to 1"),
            ("spillway_feedback_mean_error", &[ROUTE, TARGET], "unit of the numbers"),
            ("spillway_feedback_mean_absolute_error", &[ROUTE, TARGET], "unit of the numbers"),
            ("spillway_feedback_root_mean_square_error", &[ROUTE, TARGET], "unit of the numbers"),
            ("spillway_feedback_changes", &[ROUTE, TARGET, ("detector", List(&["adwin", "ddm"]))], "changes"),
            ("spillway_feedback_errors_state", &[ROUTE, TARGET], "0, 1 or 2"),
        ],
    ),
    (
        "Batches",
        &[
            ("spillway_batch_lines", &[("end", Enum("LineEnded"))], "tries of lines"),
            ("spillway_batch_lines_in_flight", &[], "lines"),
            ("spillway_batches", &[("status", Enum("BatchStatus"))], "batches"),
            ("spillway_batch_files", &[], "files"),
            ("spillway_batch_file_bytes", &[], "bytes"),
        ],
    ),
    (
        "Drift and quality",
        &[
            ("spillway_quality_distance", &[ROUTE, TARGET, FEATURE], "distance"),
            ("spillway_quality_limit", &[ROUTE, TARGET, FEATURE], "distance"),
            ("spillway_quality_drifted", &[ROUTE, TARGET, FEATURE], "0 or 1"),
            (
                "spillway_quality_signals",
                &[ROUTE, TARGET, ("signal", List(&["repeated", "rephrased", "gave_up", "short_follow_up"]))],
                "conversations",
            ),
            ("spillway_quality_state_bytes", &[ROUTE], "bytes"),
            ("spillway_quality_sampled", &[ROUTE], "requests"),
            ("spillway_quality_dropped", &[ROUTE], "requests"),
            ("spillway_quality_examples", &[ROUTE], "requests"),
            ("spillway_quality_unreadable", &[ROUTE], "requests"),
            ("spillway_quality_embeddings", &[ROUTE, ("outcome", List(&["done", "left_out"]))], "prompts"),
            ("spillway_quality_embedding_seconds", &[ROUTE], "seconds"),
            ("spillway_quality_write_failures", &[], "writes"),
            ("spillway_quality_panics", &[], "panics"),
            ("spillway_quality_probes", &[ROUTE, TARGET, ("result", Enum("ProbeResult"))], "probes"),
            ("spillway_quality_probe_changes", &[ROUTE, TARGET, ("change", Enum("ProbeChange"))], "changes"),
            ("spillway_quality_probe_failing", &[ROUTE, TARGET, PROBE], "0 or 1"),
            ("spillway_quality_probe_similarity", &[ROUTE, TARGET, PROBE], "-1 to 1"),
            ("spillway_quality_probe_tokens", &[ROUTE, TARGET], "tokens"),
            ("spillway_quality_probe_seconds", &[ROUTE, TARGET], "seconds"),
        ],
    ),
    (
        "Callers",
        &[
            ("spillway_authentication_failures", &[], "credentials"),
            ("spillway_authentication_throttled", &[], "requests"),
            ("spillway_token_cache_entries", &[], "tokens"),
            ("spillway_jwks_failures", &[], "fetches"),
            ("spillway_api_keys", &[], "keys"),
            ("spillway_api_keys_limit", &[], "keys"),
            ("spillway_api_key_store_up", &[], "0 or 1"),
            ("spillway_audit_dropped", &[], "lines"),
        ],
    ),
    (
        "Connections and memory",
        &[
            ("spillway_connections", &[LISTENER], "connections"),
            ("spillway_connections_refused", &[LISTENER, ("reason", Enum("ConnectionRefusal"))], "connections"),
            ("spillway_malformed_requests", &[LISTENER, ("reason", Enum("MalformedReason"))], "requests"),
            ("spillway_descriptor_shortages", &[("side", List(&["clients", "servers", "admin"]))], "connections"),
            ("spillway_client_write_timeouts", &[], "clients"),
            ("spillway_workers_stalled", &[], "workers"),
            ("spillway_hand_overs_failed", &[], "hand-overs"),
            ("spillway_admin_connections_dropped", &[], "connections"),
            ("spillway_buffered_body_bytes", &[], "bytes"),
            ("spillway_buffered_answer_bytes", &[], "bytes"),
            ("spillway_request_bodies_refused", &[("reason", Enum("BodyRefusal"))], "requests"),
        ],
    ),
    (
        "Certificates",
        &[
            (
                "spillway_tls_certificate_expiry_seconds",
                &[
                    ("listener", Text("name of the listener, or `backend NAME`")),
                    ("certificate", Text("first name of the certificate")),
                ],
                "Unix time",
            ),
            ("spillway_acme_orders", &[("result", List(&["ok", "failed"]))], "orders"),
            ("spillway_acme_storage_failures", &[], "tries"),
        ],
    ),
    (
        "Rollouts",
        &[
            (
                "spillway_rollout_state",
                &[ROUTE, ("state", Text("`waiting`, `running`, `paused`, `inconclusive`, `promoted`, `aborted`"))],
                "1",
            ),
            ("spillway_rollout_step", &[ROUTE], "steps"),
            ("spillway_rollout_steps", &[ROUTE], "steps"),
            ("spillway_rollout_weight", &[ROUTE], "percent"),
            ("spillway_rollout_requests", &[ROUTE, ("version", List(&["candidate", "stable"]))], "requests"),
            ("spillway_rollout_finding", &[ROUTE, METRIC, ("finding", Enum("RolloutFinding"))], "1"),
            ("spillway_rollout_evidence", &[ROUTE, METRIC], "1"),
            ("spillway_rollout_ends", &[ROUTE, ("result", Enum("RolloutEnd"))], "rollouts"),
            ("spillway_rollout_observations_lost", &[], "requests"),
            ("spillway_rollout_answers_unread", &[], "answers"),
            ("spillway_rollout_pairs", &[ROUTE, ("outcome", Enum("PairEnd"))], "requests"),
        ],
    ),
    (
        "Semantic routing",
        &[
            ("spillway_signal_results", &[SIGNAL, ("outcome", Enum("SignalOutcome"))], "requests"),
            ("spillway_signal_duration_seconds", &[SIGNAL], "seconds"),
            ("spillway_signal_example_vectors", &[SIGNAL], "vectors"),
        ],
    ),
    (
        "Notifications",
        &[
            ("spillway_notifications", &[RECEIVER, ("result", Enum("NotificationEnd"))], "notifications"),
            ("spillway_notification_failures", &[RECEIVER], "attempts"),
            ("spillway_notifications_pending", &[RECEIVER], "notifications"),
        ],
    ),
    (
        "Configuration and process",
        &[
            ("spillway_config_reloads", &[("result", List(&["ok", "failed"]))], "edits"),
            ("spillway_config_last_reload_success_timestamp_seconds", &[], "Unix time"),
            ("spillway_kubernetes_objects", &[], "objects"),
            ("spillway_kubernetes_parts_refused", &[], "listeners, backends and routes"),
            ("spillway_kubernetes_leader", &[], "0 or 1"),
            ("spillway_kubernetes_changes_rejected", &[], "changes"),
            ("spillway_kubernetes_watch_failures", &[], "watches"),
            ("spillway_kubernetes_status_failures", &[], "statuses"),
            ("spillway_build", &[("version", Text("version of the program"))], "1"),
            ("spillway_spans_dropped", &[], "spans"),
            ("spillway_log_records_dropped", &[], "records"),
            ("spillway_log_lines_dropped", &[], "lines"),
            ("process_resident_memory_bytes", &[], "bytes"),
            ("process_cpu_seconds", &[], "seconds"),
            ("process_open_fds", &[], "descriptors"),
            ("process_max_fds", &[], "descriptors"),
            ("process_start_time_seconds", &[], "Unix time"),
        ],
    ),
];

/// A series as the sources declare it.
#[derive(Debug)]
struct Series {
    help: String,
    kind: &'static str,
}

fn is_metric(name: &str) -> bool {
    let named = ["spillway_", "gen_ai_", "http_server_", "process_"].iter().any(|prefix| name.starts_with(prefix));
    named && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// Kind that a type or a constructor names.
fn kind_in(text: &str) -> Option<&'static str> {
    [("Counter", "counter"), ("Histogram", "histogram"), ("Gauge", "gauge"), ("Info", "info")]
        .into_iter()
        .find_map(|(word, kind)| text.contains(word).then_some(kind))
}

/// Series of one file: those of the `series!` lists, and those that are registered at a scrape.
fn series_of(file: &File, labels: &[&str], found: &mut BTreeMap<String, Series>) {
    let text = &file.text;
    for (at, _) in text.match_indices('"') {
        let Some(name) = text[at + 1..].split('"').next().filter(|name| is_metric(name)) else { continue };
        let line = text[..at].rfind('\n').map_or(0, |n| n + 1);
        let before = &text[line..at];
        if labels.contains(&name) {
            continue;
        }
        let (help, kind) =
            if let Some((field, kind)) = before.trim_end().strip_suffix('=').and_then(|f| f.split_once(':')) {
                // `/// Help` and `field: Type = "name", ...;` of a list.
                if field.contains("const ") || field.contains("let ") {
                    continue;
                }
                let above = text[..line].lines().rev().map_while(|line| line.trim().strip_prefix("///")).map(str::trim);
                let mut above: Vec<&str> = above.collect();
                above.reverse();
                (above.join(" "), kind_in(kind))
            } else {
                // `register(name, help, metric)` or a closure that does it.
                let opened = text[..at].rfind('(').unwrap();
                let called = text[..opened].rsplit(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap();
                let (arguments, _) = parts(text, opened);
                let place = arguments.iter().position(|argument| argument.trim_matches('"') == name);
                let behind: Vec<&String> = arguments.iter().skip(place.map_or(0, |n| n + 1)).collect();
                let mut help = behind.first().and_then(|help| literal(help));
                if help.is_none() {
                    let value = text[..at].rfind("let help = ").map(|from| literals(&text[from..at]).remove(0));
                    help = value;
                }
                let kind = match called {
                    "gauge" | "float" => Some("gauge"),
                    "counter" => Some("counter"),
                    _ => {
                        let metric = behind.last().map_or("", |metric| metric.as_str());
                        let names = [
                            format!("let {metric} = "),
                            format!("let {metric}: "),
                            format!("({metric}, "),
                            format!(", {metric})"),
                        ];
                        let from = names.iter().filter_map(|pattern| text[..at].rfind(pattern.as_str())).max();
                        from.and_then(|from| kind_in(text[from..].split(';').next().unwrap()))
                            // Of a list that a loop registers.
                            .or_else(|| kind_in(text[at..].split("r.register").next().unwrap()))
                    }
                };
                (help.unwrap_or_default(), kind)
            };
        let kind = kind.unwrap_or_else(|| panic!("{}: the kind of {name} cannot be read", file.path));
        found.insert(name.to_owned(), Series { help, kind });
    }
}

/// Values of an enum of labels with what each means.
fn values_of(files: &[File], name: &str) -> Vec<(String, String)> {
    let head = format!("\n    {name} {{\n");
    let mut lists = files.iter().flat_map(|file| file.text.split("\nlabel! {").skip(1));
    let list = lists.find(|list| list.split("\n}").next().unwrap().contains(&head));
    let list = list.unwrap_or_else(|| panic!("the sources have no labels `{name}`: name them anew"));
    let list = list.split("\n}").next().unwrap();
    let mut values = Vec::new();
    let mut doc = String::new();
    for line in list.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc = format!("{doc} {}", text.trim()).trim().to_owned();
        } else if let Some((_, text)) = line.split_once("=> \"") {
            values.push((text.split('"').next().unwrap().to_owned(), std::mem::take(&mut doc)));
        } else {
            doc.clear();
        }
    }
    values
}

/// Family of the page.
#[derive(Debug)]
pub struct Family<'n> {
    /// Name without the ending of its samples.
    pub name: &'n str,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// Names of its labels.
    pub labels: Vec<&'static str>,
}

impl Family<'_> {
    /// Names of its samples.
    pub(super) fn samples(&self) -> Vec<String> {
        let name = self.name;
        match self.kind {
            "counter" => vec![format!("{name}_total")],
            "histogram" => ["bucket", "sum", "count"].map(|end| format!("{name}_{end}")).to_vec(),
            "info" => vec![format!("{name}_info")],
            _ => vec![name.to_owned()],
        }
    }
}

/// Sample of a page of metrics.
#[derive(Debug, PartialEq, Eq)]
pub struct Sample<'t> {
    /// Name with its ending.
    pub name: &'t str,
    /// Labels as they are written.
    pub labels: BTreeMap<&'t str, &'t str>,
    /// Value; empty where a line has none.
    pub value: &'t str,
}

impl<'t> Sample<'t> {
    /// Reads a line such as `spillway_retries_total{http_route="r"} 1`.
    pub fn read(line: &'t str) -> Self {
        let (name, mut rest) = line.split_at(line.find(['{', ' ']).unwrap_or(line.len()));
        let mut labels = BTreeMap::new();
        // An exemplar has labels of its own behind the value.
        while let Some((label, behind)) = rest.strip_prefix(['{', ',']).and_then(|rest| rest.split_once("=\"")) {
            let mut escaped = false;
            let end = behind.find(|c| {
                let is_end = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                is_end
            });
            let end = end.unwrap_or_else(|| panic!("a label of {line} has no end"));
            labels.insert(label, &behind[..end]);
            rest = &behind[end + 1..];
        }
        let value = rest.trim_start_matches('}').split_whitespace().next().unwrap_or_default();
        Self { name, labels, value }
    }
}

/// Family of a series such as `spillway_retries_total{http_route="r"}`. Panics on a name or a label that no family has, and on a
/// value that the label never has: a test that expects 0 would pass with any of these.
pub fn family_of(series: &str) -> &'static Family<'static> {
    type Bounded = BTreeMap<(&'static str, &'static str), Vec<String>>;
    static KNOWN: LazyLock<(Vec<Family<'static>>, Bounded)> = LazyLock::new(|| (families(), bounded()));
    let (families, bounded) = &*KNOWN;
    let Sample { name, labels, .. } = Sample::read(series);
    let found = families.iter().find(|family| family.samples().iter().any(|sample| sample == name));
    let family = found.unwrap_or_else(|| panic!("no metric of the gateway has samples called `{name}`"));
    let mut expected: BTreeSet<&str> = family.labels.iter().copied().collect();
    if name.ends_with("_bucket") && family.kind == "histogram" {
        expected.insert("le");
    }
    let named: BTreeSet<&str> = labels.keys().copied().collect();
    assert_eq!(named, expected, "the labels of `{series}` are not those of `{}`", family.name);
    for (label, value) in labels {
        if let Some(values) = bounded.get(&(family.name, label)) {
            assert!(values.iter().any(|known| known == value), "`{label}` in `{series}` is none of {values:?}");
        }
    }
    family
}

/// Values of the labels that have a fixed list of them, by family and label.
fn bounded() -> BTreeMap<(&'static str, &'static str), Vec<String>> {
    let files = sources();
    let rows = GROUPS.iter().flat_map(|(_, rows)| rows.iter());
    let all = rows.flat_map(|(name, labels, _)| labels.iter().map(|(label, values)| (*name, *label, *values)));
    all.filter_map(|(name, label, values)| {
        let values = match values {
            Text(_) => return None,
            List(list) => list.iter().map(|value| (*value).to_owned()).collect(),
            Enum(name) => values_of(&files, name).into_iter().map(|(value, _)| value).collect(),
        };
        Some(((name, label), values))
    })
    .collect()
}

/// Every family of the page, for tests that read a running gateway, rules or dashboards.
pub fn families() -> Vec<Family<'static>> {
    let found = found(&sources());
    let rows = GROUPS.iter().flat_map(|(_, rows)| rows.iter());
    let family = |(name, labels, _): &(&'static str, &'static [Label], &str)| Family {
        name,
        kind: found[*name].kind,
        labels: labels.iter().map(|(label, _)| *label).collect(),
    };
    rows.map(family).collect()
}

fn sources() -> Vec<File> {
    files(&["gateway/src/telemetry", "gateway/src/descriptors.rs", "plugins/builtin/src", "plugins/extproc/src"])
}

/// Series that the sources register.
fn found(files: &[File]) -> BTreeMap<String, Series> {
    let rows = GROUPS.iter().flat_map(|(_, rows)| rows.iter());
    let labels: Vec<&str> = rows.flat_map(|(_, labels, _)| labels.iter().map(|(label, _)| *label)).collect();
    let mut found = BTreeMap::new();
    for file in files.iter().filter(|file| file.path.contains("/metrics")) {
        series_of(file, &labels, &mut found);
    }
    for file in files.iter().filter(|file| file.path.contains("plugins/")) {
        counters_of(file, &mut found);
    }
    found
}

/// Counters that a filter declares.
fn counters_of(file: &File, found: &mut BTreeMap<String, Series>) {
    for (at, opened) in file.text.match_indices("CounterSpec {") {
        if !file.text[..at].trim_end().ends_with('=') {
            continue;
        }
        let declared = literals(file.text[at + opened.len()..].split("};").next().unwrap());
        let [name, help, ..] = &declared[..] else { panic!("{}: a counter without name and help", file.path) };
        found.insert(name.clone(), Series { help: help.clone(), kind: "counter" });
    }
}

/// Renders the page.
pub(super) fn page() -> String {
    let files = sources();
    let rows = || GROUPS.iter().flat_map(|(_, rows)| rows.iter());
    let labels = rows().flat_map(|(_, labels, _)| labels.iter().map(|(label, _)| *label));
    let found = found(&files);
    assert!(found.len() > 80, "only {} series were found: the sources are read wrongly", found.len());
    let names: Vec<&str> = rows().map(|(name, ..)| *name).collect();
    compare("metrics", &names, found.keys().map(String::as_str));
    let sources: String = files.iter().map(|file| file.code.as_str()).collect();
    for label in labels {
        assert!(sources.contains(&format!("\"{label}\"")), "nothing in the sources has the label `{label}`");
    }
    let mut page = format!(
        "# Metrics

{GENERATED}

`GET /metrics` on the [admin address](admin-api.md) has them as OpenMetrics text. A counter ends in `_total` there, a histogram has
`_bucket`, `_sum` and `_count`, an info ends in `_info`. Labels have bounded values: names of the configuration or those listed here.
[Read metrics](../how-to/metrics.md) begins with the useful ones, [alerts](../operate/alerts.md) has rules.
"
    );
    for (title, rows) in GROUPS {
        write!(page, "\n## {title}\n\n| metric | kind | unit | labels | meaning |\n|---|---|---|---|---|\n").unwrap();
        for (name, labels, unit) in *rows {
            let series = &found[*name];
            let names = labels.iter().map(|(label, _)| format!("`{label}`")).collect::<Vec<_>>().join(", ");
            writeln!(page, "| `{name}` | {} | {unit} | {names} | {} |", series.kind, cell(&series.help)).unwrap();
        }
        let mut told: Vec<(&str, String)> = Vec::new();
        for (name, labels, _) in *rows {
            for (label, values) in *labels {
                let text = match values {
                    Text(text) => format!("- `{label}`: {text}.\n"),
                    List(list) => {
                        let list = list.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
                        format!("- `{label}`: {list}.\n")
                    }
                    Enum(values) => {
                        let mut text = format!("- `{label}` of `{name}`:\n");
                        for (value, doc) in values_of(&files, values) {
                            writeln!(text, "  - `{value}`: {doc}").unwrap();
                        }
                        text
                    }
                };
                let same = |(known, other): &(&str, String)| {
                    *known == *label
                        && (other.split_once(":\n").map(|(_, rest)| rest)
                            == text.split_once(":\n").map(|(_, rest)| rest))
                };
                if !told.iter().any(same) {
                    told.push((label, text));
                }
            }
        }
        if !told.is_empty() {
            page.push('\n');
        }
        page.extend(told.iter().map(|(_, text)| text.as_str()));
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_read_with_the_labels_that_it_has() {
        for (line, name, labels, value) in [
            ("process_open_fds 12", "process_open_fds", &[][..], "12"),
            ("process_open_fds", "process_open_fds", &[], ""),
            (r#"a{b="x, \"y\" {z}",c=""} 1"#, "a", &[("b", r#"x, \"y\" {z}"#), ("c", "")], "1"),
            (r#"a_bucket{le="1"} 2 # {trace_id="f"} 0.5 3"#, "a_bucket", &[("le", "1")], "2"),
        ] {
            assert_eq!(Sample::read(line), Sample { name, labels: labels.iter().copied().collect(), value });
        }
    }

    #[test]
    fn the_family_of_a_series_is_found() {
        for (series, family) in [
            ("spillway_retries_total{http_route=\"r\"}", "spillway_retries"),
            ("spillway_build_info{version=\"1\"}", "spillway_build"),
            (
                "spillway_queue_wait_seconds_bucket{le=\"1\",outcome=\"admitted\",http_route=\"r\"}",
                "spillway_queue_wait_seconds",
            ),
            ("process_open_fds", "process_open_fds"),
        ] {
            assert_eq!(family_of(series).name, family);
        }
    }

    #[test]
    #[should_panic(expected = "no metric of the gateway has samples called `spillway_retries`")]
    fn a_counter_has_its_ending() {
        family_of("spillway_retries{http_route=\"r\"}");
    }

    #[test]
    #[should_panic(expected = "no metric of the gateway has samples called `spillway_sheets_total`")]
    fn a_metric_that_no_family_has_is_refused() {
        family_of("spillway_sheets_total{http_route=\"r\",reason=\"saturated\"}");
    }

    #[test]
    #[should_panic(expected = "are not those of `spillway_sheds`")]
    fn a_label_that_the_family_has_not_is_refused() {
        family_of("spillway_sheds_total{route=\"r\",reason=\"saturated\"}");
    }

    #[test]
    #[should_panic(expected = "is none of [\"saturated\"")]
    fn a_value_that_the_label_never_has_is_refused() {
        family_of("spillway_sheds_total{http_route=\"r\",reason=\"full\"}");
    }
}
