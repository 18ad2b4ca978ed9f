//! `logs.md`: fields of the access log and of the audit log, and every event of the process log with its level and fields
//! from the sources. The meaning of an event is written here, one row for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::source::{File, calls, constant, files, json_fields, literal, literals, module, written_keys};
use super::{GENERATED, cell, compare};

/// Fields of a line for a request: name, meaning.
const ACCESS: &[(&str, &str)] = &[
    ("timestamp", "End of the request, RFC 3339 in UTC with milliseconds."),
    ("event", "`access`."),
    ("requestId", "Id of the request, as in `x-request-id`."),
    ("traceId", "Id of the trace; left out where there is none."),
    ("spanId", "Id of the span of the request; left out without `telemetry.tracing`."),
    ("client", "Address of the client, read through `clientAddress` and `proxyProtocol`."),
    ("consumer", "Name of the consumer; left out for an anonymous caller."),
    ("route", "Name of the route; left out where none matched."),
    ("method", "Method."),
    ("path", "Path without the query, which may hold secrets; at most 1,024 bytes."),
    ("protocol", "`HTTP/1.0`, `HTTP/1.1` or `HTTP/2`."),
    (
        "status",
        "Status of the answer; 499 where the client left before it, 0 where none was sent. Of a refused [gRPC call](../how-to/grpc.md) the status that its `grpc-status` stands for.",
    ),
    ("bytesIn", "Bytes of the request body."),
    ("bytesOut", "Bytes of the answer's body."),
    ("durationMs", "Arrival to last byte, in milliseconds."),
    ("servedBy", "Backend, or `builtin/NAME` for a built-in model; left out where the gateway answered itself."),
    (
        "endpoint",
        "Address of the endpoint that answered; where none did, of the last one that failed or that may not get requests.",
    ),
    ("attempts", "Attempts at endpoints."),
    (
        "spilled",
        "Reason why the request did not go to the backends of its route, as `reason` of `spillway_spills` ([metrics](metrics.md#overload-and-further-attempts)).",
    ),
    (
        "notSpilled",
        "Reason why the spill of the route did not take the request, as `reason` of `spillway_unspilled` ([metrics](metrics.md#overload-and-further-attempts)).",
    ),
    ("notSpilledField", "Field of the request that barred it from the spill."),
    ("resumed", "`true` where a stream died and was continued."),
    (
        "socketEnd",
        "Reason for which a [socket](../how-to/websocket.md#how-a-socket-ends) ended, as `end` of `spillway_sockets` ([metrics](metrics.md)). Its line has the status 101, and the bytes and time of its whole life.",
    ),
    ("queueMs", "Time in the queue, in milliseconds."),
    ("modelAsked", "Model that the request names."),
    ("modelAnswered", "Model that the answer names."),
    ("promptTokens", "Tokens read."),
    ("cachedTokens", "Part of `promptTokens` that the server had in its cache."),
    ("cacheWrittenTokens", "Part of `promptTokens` that the server wrote to its cache."),
    ("completionTokens", "Tokens written."),
    ("ttftMs", "Arrival to the first content of a stream, in milliseconds."),
    ("errorCode", "[Code](errors.md) of a refusal."),
    (
        "cause",
        "Reason why the last attempt that failed did: `connect_failure`, `reset`, `stale_connection`, `unprocessed`, `timeout`, `deadline`, `status`, `reported_error` (an error inside an answer of 200), `protocol`, `too_large`, or the code of an answer that was cut. Of a request that no endpoint was tried for: `drained`, `unhealthy` or `ejected`.",
    ),
    ("failedEndpoint", "Address of the endpoint of that attempt."),
    (
        "limit",
        "Limit that was reached, as in the configuration: a time (`backends[].timeouts.firstByte`), or the one that left no room (`maxInFlight`).",
    ),
    ("userAgent", "`User-Agent`, at most 1,024 bytes."),
    (
        "requestHeaders",
        "Headers of `telemetry.logs.headers` by name, those that came several times joined by commas; values of at most 1,024 bytes. `[redacted]` where the value may be a credential, or `redactHeaders` names it.",
    ),
    (
        "fields",
        "Values of the expressions in `telemetry.logs.fields` by name, those that have one; texts of at most 1,024 bytes.",
    ),
    ("requestHeadersCut", "`true` where headers were left out, because they are longer than 8 KiB."),
];

/// Fields of a line of the audit log.
const AUDIT: &[(&str, &str)] = &[
    ("timestamp", "RFC 3339 in UTC with milliseconds."),
    ("event", "`audit`."),
    ("action", "Audited action; values below."),
    ("client", "Address of the client."),
    ("requestId", "Id of the request."),
    (
        "who",
        "At the admin address: `token`, `loopback`, `person NAME` of a session, or `unknown` of a request that was refused.",
    ),
    ("route", "Name of the route."),
    ("listener", "Name of the listener, where a connection was refused."),
    ("method", "Method."),
    ("path", "Path without the query, at most 256 bytes."),
    ("reason", "Reason of a refused credential; values below."),
    ("status", "Status of the answer of the admin address."),
];

const ACTIONS: &[(&str, &str)] = &[
    ("authentication_refused", "A credential of a caller or the certificate of a client was refused."),
    ("admin_change", "A change was asked for at the admin address, or an operator has logged in or out."),
    ("admin_refused", "A request to the admin address was refused with 401, 403 or 421."),
];

/// Events: name, when it is logged and what to do.
const EVENTS: &[(&str, &str)] = &[
    ("accept_failed", "Accepting a connection of a listener failed."),
    ("acme_account_created", "An account was created at a certificate authority."),
    ("acme_account_not_stored", "The key of an ACME account cannot be written. Make `acme.storage` writable."),
    ("acme_failed", "An order of a certificate failed and is repeated after a pause. The current certificate stays."),
    ("adapter", "An adapter that `models[].device` can name."),
    ("admin_accept_failed", "Accepting a connection of the admin address failed."),
    ("admin_change", "An endpoint was drained or put back."),
    ("admin_descriptors_spent", "No file descriptor was left for the admin address. Raise the limit of open files."),
    ("admin_login_failed", "A login of an operator failed at the issuer or by its token: `reason` says how."),
    ("admin_listening", "The admin address takes connections."),
    ("metrics_listening", "The address of the metrics alone takes connections."),
    ("answer_not_written", "An answer of a built-in model could not be written in the API of its caller: report it."),
    ("attempts_spent", "The last attempt of a request failed."),
    ("batch_ended", "A batch has ended, with its counts."),
    ("batch_file_not_deleted", "The bytes of a file of a batch could not be deleted."),
    ("batches_failed", "The store of batches, or the work on one of them, failed."),
    ("batches_not_written", "The last writes to the store of batches took too long."),
    (
        "budgets_not_written",
        "The file of budgets cannot be written. Budgets are counted in memory and lost when the process ends.",
    ),
    (
        "cache_store_lost",
        "The shared store of answers did not answer a request; those of shared caches are misses until it is back.",
    ),
    ("cache_store_reached", "The shared store of answers answers."),
    ("cache_store_unreachable", "The shared store of answers cannot be reached; requests of shared caches are misses."),
    (
        "cache_store_unswept",
        "A purge has made all gateways forget the answers of a route, and could not free the memory of all of them in time: the rest expires.",
    ),
    ("cannot_resume", "A stream that died could not be continued."),
    ("cannot_spill", "A request could not be answered by the built-in model of its spill."),
    ("certificate_issued", "A certificate authority issued a certificate; it is served."),
    (
        "certificate_not_stored",
        "An issued certificate cannot be written. It is served, and lost when the process ends.",
    ),
    ("certificate_stored", "An issued certificate was written after an earlier failure."),
    ("config_rejected", "An edit has mistakes and was rejected; the last good configuration stays in use."),
    ("config_reloaded", "An edit was applied."),
    ("config_warning", "An applied edit has something that is most likely a mistake."),
    ("connection_refused", "A connection was closed before its first request."),
    ("copy_failed", "A mirrored copy was not answered."),
    ("descriptors_limited", "The limit of open files leaves clients fewer connections than the listeners may take."),
    (
        "descriptors_spent",
        "No file descriptor was left for a client. Raise the limit of open files or lower `limits.maxConnections`.",
    ),
    ("device", "Device of a built-in model, with the reason for the choice."),
    ("device_failed", "A device failed while it computed; its requests failed with it."),
    ("device_fault", "A GPU reported a fault."),
    ("device_hangs", "A device does not end a step in time; its requests have failed."),
    ("device_not_recovered", "A device could not be set up again; it is tried later."),
    ("device_recovered", "A device was set up again after a fault."),
    ("discovery_applied", "What the objects of Kubernetes say was applied; `refused` parts had to be left out."),
    (
        "discovery_rejected",
        "What the objects of Kubernetes say could not be applied; the running configuration is kept.",
    ),
    ("drain_delayed", "The gateway is about to stop and still takes requests, for `shutdown.delay`."),
    ("drain_timeout", "`shutdown.drainTimeout` ended while requests still ran; their connections were closed."),
    ("drift", "A distance of a feature from its reference has passed its limit ([drift](../how-to/drift.md))."),
    ("drift_over", "The distance is below four fifths of its limit again."),
    ("encoding_lost", "A thread that read a prompt ended by a defect: report it."),
    ("endpoint_ejected", "An endpoint is ejected for its errors or latency ([outliers](../how-to/outliers.md))."),
    (
        "endpoint_failed",
        "Attempts at an endpoint failed, or ended with an error of its server: at once, then at most once a minute for each endpoint, with their number since the last line (`times`).",
    ),
    ("endpoint_healthy", "The health check returned an endpoint to service."),
    ("endpoint_metrics_not_read", "The metrics of an endpoint cannot be read; other signals decide."),
    ("endpoint_metrics_read", "The metrics of an endpoint are read again."),
    ("endpoint_returned", "An ejected endpoint receives requests again."),
    ("endpoint_unhealthy", "The health check removed an endpoint from service."),
    ("endpoints_changed", "DNS returned other addresses for the name of an endpoint."),
    ("engine_panicked", "The engine of a built-in model ended by a defect and is set up again: report it."),
    (
        "examples_not_kept",
        "Texts cannot be kept, or not be deleted when they are too old. At most once a minute, with the number of failures since the last line (`times`).",
    ),
    ("file_limit_not_raised", "The limit of open files could not be raised to what the system allows."),
    (
        "external_processing_failed",
        "A server of `externalProcessing` has failed, or asked for a change that it may not make.",
    ),
    (
        "feedback_comment",
        "A caller has sent a comment with its label, where `feedback.logComments` is set ([feedback](../how-to/feedback.md)).",
    ),
    (
        "feedback_errors_rose",
        "DDM found that more answers of a target are wrong, by labels with a predicted and an expected class.",
    ),
    ("feedback_scores_changed", "ADWIN found that the mean score of a target's answers has changed, up or down."),
    ("files_polled", "The system reports no file events; files are polled."),
    (
        "filter_failed",
        "A filter failed: a server that it asked did not answer, its WebAssembly module failed, or it has changed a body to one that cannot be sent.",
    ),
    ("folder_not_watched", "A folder cannot be watched; its files are polled."),
    ("gpu_given_up", "A model runs on the CPU from now on, because its GPU failed."),
    ("gpu_refused", "A model runs on the CPU, because the GPU cannot run it."),
    ("grammar_failed", "An answer could not be constrained to its schema."),
    (
        "gpus_not_watched",
        "The thread that asks the driver of graphics processors could not be started; there are no metrics of them.",
    ),
    (
        "guard_shadow_finding",
        "A guard in shadow mode found something for the first time since the edit: the pattern, and `prompt` or `answer`.",
    ),
    ("jwks_empty", "The key set of an issuer has no usable key."),
    ("jwks_failed", "The key set of an issuer cannot be fetched or read; the last one stays in use."),
    ("jwks_reached", "The key set of an issuer was fetched after a failure."),
    (
        "key_change",
        "An operator has made, rotated, ended or revoked an API key at run time: its id, never the key. `by` is the proof of access and the address.",
    ),
    (
        "key_unreadable",
        "An API key that was made at run time admits nobody: a later version has written it, or its limits cannot be kept.",
    ),
    ("keys_followed", "The store of API keys that are made at run time answers again."),
    (
        "keys_not_followed",
        "The store of API keys that are made at run time does not answer. The keys stay as they are for `keysByApi.maxStale`, and cannot be changed.",
    ),
    ("keys_not_written", "At the end of the process the last write to the file of API keys took too long."),
    (
        "keys_unknown",
        "The store of API keys that are made at run time did not answer at the start; those keys are refused with 503 until it does.",
    ),
    ("kubernetes_leader", "This gateway began or ceased to write the statuses of its class."),
    ("kubernetes_lease_failed", "The lease of the leader could not be read or renewed; it is tried again."),
    (
        "kubernetes_part_refused",
        "A listener, backend or route of Kubernetes was left out; the status of its object says so too.",
    ),
    ("kubernetes_status_failed", "A status could not be written to the API server; it is tried again."),
    (
        "kubernetes_too_many_objects",
        "There are more objects than `discovery.kubernetes.maxObjects`; the last configuration is kept.",
    ),
    ("kubernetes_watch_failed", "The API server refused or ended a watch; it is begun again."),
    (
        "limit_store_lost",
        "The shared store of limits did not answer a request; this gateway's share of each limit holds.",
    ),
    ("limit_store_reached", "The shared store of limits answers."),
    (
        "limit_store_unreachable",
        "The shared store of limits cannot be reached; this gateway's share of each limit holds.",
    ),
    (
        "handed_over",
        "A new process (`pid`) serves; this one finishes its `requests` and ends ([upgrade](../how-to/upgrade.md)).",
    ),
    (
        "hand_over_behind",
        "A store was not written or read in time at a hand-over: the new process learns the rest with the next batches; of a value that is `false`.",
    ),
    ("hand_over_failed", "The new process (`pid`) failed; this one goes on as before, and `reason` says why."),
    ("hand_over_refused", "A hand-over was asked for and does not begin; `reason` says why."),
    ("hand_over_started", "A new process (`pid`) was started, which takes over once it is ready."),
    ("listener_closed", "A listener was removed by an edit."),
    ("listening", "A listener takes connections."),
    (
        "logs_not_sent",
        "A collector does not take the log; its records are dropped and counted in `spillway_log_records_dropped`.",
    ),
    ("mapping_kept", "Memory of a model's file could not be released after its weights were copied."),
    ("mask_thread_lost", "A thread for structured answers ended by a defect: report it."),
    ("mask_thread_not_started", "A thread for structured answers could not be started."),
    ("model_ended", "A built-in model ended by a defect and is loaded again."),
    (
        "model_list_not_read",
        "The list of models of an endpoint cannot be read; the last one stays. At most once a minute, with the number of failures since the last line (`times`).",
    ),
    ("model_list_read", "The list of models of an endpoint is read again, with the number of its models (`models`)."),
    ("model_loaded", "A built-in model is loaded, with its device and measured speed."),
    ("model_not_loaded", "A built-in model could not be loaded; the reason says why."),
    ("model_on_demand", "A built-in model is loaded when the first request needs it."),
    ("model_unloaded", "A built-in model was unloaded, for another or because nobody needed it."),
    (
        "name_not_resolved",
        "The name of an endpoint cannot be resolved; its last addresses are kept, or it is unavailable while it has none.",
    ),
    ("no_chat_template", "A model has no chat template; it continues texts and refuses conversations."),
    ("no_gpu_driver", "There is no driver of NVIDIA's graphics processors, so that there are no metrics of them."),
    (
        "notification_failed",
        "An attempt at a notification failed: at once, then at most once a minute for each receiver, with the number of failures since the last line (`times`).",
    ),
    ("notification_given_up", "A notification was given up: `retry.attempts` or `retry.giveUpAfter` is reached."),
    ("notification_not_written", "An event could not be written as a notification: report it."),
    ("notifications_dropped", "More than `maxPending` notifications wait for a receiver; the oldest gave way."),
    ("notifications_lost", "Notifications that waited are lost: an edit removed their receiver, or the process ends."),
    ("notifications_not_wanted", "A receiver answered 410; it gets nothing until the next edit."),
    ("pipeline_cache_not_kept", "Compiled pipelines could not be written to the cache folder."),
    ("predecessor_not_told", "The process that hands over could not be told that this one serves: it is gone."),
    ("probe_back", "A probe gets the answer that is expected again."),
    (
        "probe_changed",
        "A server names a model or a fingerprint to a probe that it has not named before, or the mean similarity of a probe has moved; `change` says which ([probes](../how-to/probes.md)).",
    ),
    ("probe_failed", "A probe gets another answer than expected; `reason` says how it differs."),
    ("products_chosen", "Family of kernels chosen for a GPU."),
    ("products_measured", "Measured times of both families of kernels on a GPU."),
    ("products_refused", "A GPU cannot run a family of kernels; the other one is used."),
    (
        "quality_not_restored",
        "What is stored of the sketches or the probes of a route cannot be read; it begins anew, and the file is written over.",
    ),
    ("quality_not_started", "The thread that looks at sampled requests could not be started; none is looked at."),
    (
        "quality_not_stored",
        "The sketches of a route, or what is known of its probes, cannot be written. At most once a minute, with the number of failures since the last line (`times`).",
    ),
    (
        "quality_panicked",
        "A defect ended the look at sampled requests; it begins again after `retry_after` seconds with the sketches as they were written last. Report it.",
    ),
    ("ready", "Listeners are open and models with `keepWarm` are loaded."),
    ("request_body_not_taken", "A server closed the connection before it had read the request."),
    ("rollout_aborted", "A rollout ended: its candidate gets no request. `reason` has the evidence."),
    (
        "rollout_answers_unread",
        "The thread that reads answers could not be started; the metrics that need it stay undecided.",
    ),
    ("rollout_changed", "A rollout began, took a step, was paused or resumed, or asked a gate; `change` says which."),
    ("rollout_command", "A command to a rollout was carried out."),
    ("rollout_counts_differ", "Counts of a gateway that has not followed a step yet were left out of a look."),
    ("rollout_end_waits", "The end of a rollout that an edit has removed waits for the store; it is tried again."),
    ("rollout_inconclusive", "A hold of a rollout ended without enough evidence. `reason` says what is missing."),
    ("rollout_lead_not_released", "At the end of the process the lead of a rollout could not be released. It expires."),
    ("rollout_not_written", "A change of a rollout could not be stored; `reason` says why. It is tried again."),
    ("rollout_promoted", "A rollout ended: its candidate gets all requests."),
    (
        "rollout_reports_missed",
        "So many changes of rollouts came at once that some were not reported; the histories have them.",
    ),
    ("rollout_store_back", "The store of rollouts answers again."),
    ("rollout_store_failed", "The store of rollouts failed; weights stay as they are until it answers."),
    (
        "rollout_unknown",
        "The store of rollouts did not answer at the start; the stable version gets all until it does.",
    ),
    ("rollouts_not_started", "The thread that looks at rollouts could not be started; weights stay as they are."),
    (
        "rollouts_not_swept",
        "Rollouts that the store has under way and the file no more could not be ended yet; it is tried again.",
    ),
    ("rollouts_not_tidied", "Counts of earlier steps could not be removed from the store of rollouts."),
    ("rollouts_not_written", "At the end of the process the last writes to the file of rollouts took too long."),
    (
        "rollouts_panicked",
        "A defect ended the thread that decides about rollouts; it begins again after `retry_after` seconds with what the store has. Report it.",
    ),
    (
        "signal_examples_failed",
        "The vectors of the examples of a signal could not be made; the signal is absent until a later attempt succeeds (`retry_after`).",
    ),
    ("signal_ignored", "A signal without a meaning for the gateway was ignored."),
    ("socket_malformed", "A side of a socket broke the framing of WebSocket; `side` says which."),
    (
        "socket_not_taken",
        "A socket that was passed to the process has no listener, and was closed. Clients of one that systemd holds wait in vain.",
    ),
    ("stand_in_failed", "An attempt at the backend of `spillTo` failed."),
    ("stopped", "The process ends."),
    ("stopping", "A signal asked the process to end; running requests finish."),
    ("stored_account_not_used", "The stored key of an ACME account cannot be used; another account is created."),
    ("stored_certificate_not_used", "A stored certificate cannot be used; another is ordered."),
    (
        "system_certificates_not_read",
        "The certificate authorities of the system cannot be read; servers with their certificates are not trusted.",
    ),
    ("systemd_not_told", "systemd could not be told of the state of the process."),
    ("target_cannot_take", "A request was not sent to a target of its route that cannot take it: `reason` says why."),
    ("traces_not_sent", "A collector accepts no spans; they are dropped and counted in `spillway_spans_dropped`."),
    ("upstream_tls_failed", "TLS towards an endpoint failed: the error says why."),
    ("variable_not_followed", "A variable `OTEL_*` has a value that the gateway does not support."),
    ("wasm_allocation_failed", "The allocator of a WebAssembly module failed; the request that needed it fails."),
    ("wasm_call_failed", "A server that a WebAssembly module called gave no answer; the module is told so."),
    (
        "wasm_failed",
        "A WebAssembly module failed for a request. At most once a second for each filter, with the number of failures since the last line (`others`).",
    ),
    (
        "wasm_log",
        "A message of a WebAssembly module (`text`), at its level. At most 100 a second for each instance; `dropped` counts those that were left out before.",
    ),
    ("worker_resumed", "A worker that stood still runs its tasks again; its connections were held up for `seconds`."),
    (
        "worker_stalled",
        "A worker runs no task, and its `connections` wait. New ones go to the others. A filter that blocks its thread is the likeliest cause.",
    ),
];

/// Reasons of `authentication_refused`: those of the errors of identity, and of connections.
/// Attributes of exported records that spans do not have: name, meaning.
const OF_RECORDS: &[(&str, &str)] = &[
    ("error.message", "`error` of an event."),
    ("http.request.body.size", "`bytesIn`."),
    ("http.response.body.size", "`bytesOut`."),
    ("network.protocol.name", "`http`, of `protocol`."),
    ("spillway.audit.action", "`action`."),
    ("spillway.audit.reason", "`reason`."),
    ("spillway.audit.who", "`who`."),
    ("spillway.cause", "`cause`."),
    ("spillway.duration.seconds", "`durationMs`, in seconds."),
    ("spillway.failed_endpoint", "`failedEndpoint`."),
    ("spillway.headers_cut", "`requestHeadersCut`."),
    ("spillway.limit", "`limit`."),
    ("spillway.listener", "`listener`."),
    ("spillway.not_spilled.field", "`notSpilledField`."),
    ("spillway.not_spilled.reason", "`notSpilled`."),
];

fn reasons(files: &[File]) -> BTreeSet<String> {
    let errors = files.iter().filter(|file| file.path.contains("/identity/"));
    let bodies = errors.flat_map(|file| file.code.split("fn as_str(self) -> &'static str {").skip(1));
    let mut found: BTreeSet<String> =
        bodies.flat_map(|body| literals(&body[..body.find("\n    }").unwrap()])).collect();
    let audit = module(files, "audit");
    found.extend(audit.code.split("reason: Some(\"").skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()));
    found
}

#[derive(Debug, Default)]
struct Found {
    levels: BTreeSet<&'static str>,
    fields: BTreeSet<String>,
}

/// Fields of a macro's arguments: `%name`, `name = value`, `name`; a text in quotes is the message.
fn field(argument: &str) -> Option<String> {
    let name = argument.split(" = ").next().unwrap().trim_start_matches(['%', '?']);
    let name = name.rsplit('.').next().unwrap();
    (name.chars().all(|c| c.is_ascii_lowercase() || c == '_') && name != "event").then(|| name.to_owned())
}

fn events(files: &[File]) -> BTreeMap<String, Found> {
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    for (place, file) in files.iter().enumerate() {
        let mut seen = 0;
        for level in ["error", "warn", "info", "debug", "trace"] {
            for call in calls(&file.code, &format!("{level}!")) {
                let Some(event) = call.arguments.iter().find_map(|argument| argument.strip_prefix("event = ")) else {
                    continue;
                };
                seen += 1;
                let name = literal(event).or_else(|| literal(&constant(files, place, event)?));
                let event = found.entry(name.unwrap_or_else(|| panic!("{}: {event}", file.path))).or_default();
                event.levels.insert(level);
                event.fields.extend(call.arguments.iter().filter_map(|argument| field(argument)));
            }
        }
        // `event!` with a level, or a macro of another name, would be missed.
        let written = file.code.matches("event = \"").count();
        assert!(seen >= written, "{}: {written} events are written and {seen} were read", file.path);
    }
    found
}

fn table(page: &mut String, head: &str, rows: &[(&str, &str)]) {
    write!(page, "| {head} | |\n|---|---|\n").unwrap();
    for (name, text) in rows {
        writeln!(page, "| `{name}` | {} |", cell(text)).unwrap();
    }
}

/// Renders the page.
pub(super) fn page() -> String {
    let files = files(&["gateway/src", "engine/src", "config/src", "plugins"]);
    let names = |rows: &[(&'static str, &str)]| rows.iter().map(|(name, _)| *name).collect::<Vec<_>>();
    let access = written_keys(module(&files, "telemetry/access_log"));
    compare("fields of the access log", &names(ACCESS), access.iter().map(String::as_str));
    let audit = json_fields(module(&files, "audit"), 0);
    compare("fields of the audit log", &names(AUDIT), audit.iter().map(String::as_str));
    for (action, _) in ACTIONS {
        assert!(
            module(&files, "audit").code.contains(&format!("\"{action}\"")),
            "the audit log has no action {action}"
        );
    }
    let mut of_records = literals(&module(&files, "telemetry/log_export/names").code);
    of_records.retain(|name| !name.contains(' '));
    compare("attributes of records", &names(OF_RECORDS), of_records.iter().map(String::as_str));
    let events = events(&files);
    assert!(events.len() > 60, "only {} events were found: the sources are read wrongly", events.len());
    compare("events", &names(EVENTS), events.keys().map(String::as_str));
    let mut page = format!(
        "# Logs

{GENERATED}

Standard output has one line for each request (`telemetry.logs.access`), each audited action, and each event of the process. With
`telemetry.logs.format: json` a line is one JSON object, with `text` it is words. `event` tells the kinds apart. `SPILLWAY_LOG` is the
filter of the process log (`info` by default). A collector may [have them too](#records-of-otlp). [Read logs](../how-to/logs.md) has an
example.

## Access log

One line when a request has ended. A field without a value is left out.

"
    );
    table(&mut page, "field", ACCESS);
    page.push_str("\n## Audit log\n\nOne line for each refused credential and each change through the admin address, as many as `telemetry.audit` allows.\n\n");
    table(&mut page, "field", AUDIT);
    page.push('\n');
    table(&mut page, "`action`", ACTIONS);
    let reasons = reasons(&files).into_iter().map(|reason| format!("`{reason}`")).collect::<Vec<_>>().join(", ");
    write!(page, "\n`reason` is one of {reasons}.\n").unwrap();
    page.push_str(
        "\n## Events of the process\n\nEach has `timestamp`, `level`, `target` and `event` beside its fields.\n\n| event | level | fields | when |\n|---|---|---|---|\n",
    );
    for (name, text) in EVENTS {
        let event = &events[*name];
        let levels = event.levels.iter().copied().collect::<Vec<_>>().join(", ");
        let fields = event.fields.iter().map(|field| format!("`{field}`")).collect::<Vec<_>>().join(", ");
        writeln!(page, "| `{name}` | {levels} | {fields} | {} |", cell(text)).unwrap();
    }
    page.push_str(
        "\n## Records of OTLP

With `telemetry.logs.otlp` each line is a record as well, with the trace and span of its request, its `event` as the name of the event,
and a severity: of a request `ERROR` from status 500 on, else `INFO`; of a refused credential `WARN`. Attributes are named as those of
[spans](spans.md), headers `http.request.header.NAME`, and these:

",
    );
    table(&mut page, "attribute", OF_RECORDS);
    page.push_str("\nFields of events of the process are `spillway.FIELD`, the target is the name of the scope.\n");
    page
}
