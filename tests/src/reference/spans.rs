//! `spans.md`: spans with their attributes and events. The rows are written here; each attribute name and each span of the
//! sources has one.

use std::collections::BTreeSet;
use std::fmt::Write;

use super::source::{calls, files, literal, literals, module};
use super::{GENERATED, cell, compare};

/// Spans: name, kind, work.
const SPANS: &[(&str, &str, &str)] = &[
    (
        "request",
        "server",
        "The whole request; renamed to `METHOD ROUTE` at its end. Its parent is the caller's `traceparent`.",
    ),
    ("filters", "internal", "The filters of the route and the caller's limits."),
    ("admission", "internal", "The choice of an endpoint or a built-in model, once for each try."),
    ("queue", "internal", "The wait for a slot; for a built-in model, the wait for its first step."),
    (
        "attempt",
        "client",
        "One attempt at an endpoint, named `OPERATION MODEL` for a model call, else `METHOD BACKEND`.",
    ),
    (
        "chat",
        "internal",
        "The work of a built-in model, named `chat MODEL`; it has `queue`, `prefill` and `decode` below it.",
    ),
    ("prefill", "internal", "Prefill: the prompt is computed."),
    ("decode", "internal", "Decode: the answer is generated."),
    (
        "rollout",
        "internal",
        "The time up to a decision about a rollout, named `rollout EVENT`. All of one run are one trace, whatever share of the requests is traced.",
    ),
    ("quality", "internal", "The look at a sampled request, after its end."),
];

/// Attributes: name, spans, meaning.
const ATTRIBUTES: &[(&str, &str, &str)] = &[
    ("http.request.method", "request, attempt", "Method."),
    ("http.route", "request, rollout", "Name of the route."),
    ("http.response.status_code", "request, attempt", "Status; 499 where the client left before an answer."),
    ("http.request.resend_count", "attempt", "Attempts before this one; left out of the first."),
    ("url.path", "request", "Path without the query."),
    ("url.scheme", "request", "`http` or `https`."),
    ("client.address", "request", "Address of the client."),
    ("server.address", "attempt", "Host of the endpoint."),
    ("server.port", "attempt", "Port of the endpoint."),
    ("network.protocol.version", "request", "`1.0`, `1.1` or `2`."),
    ("user_agent.original", "request", "`User-Agent`."),
    ("error.type", "all", "[Code](errors.md) of the error, or how an attempt failed. The span has the status error."),
    (
        "gen_ai.operation.name",
        "attempt, chat",
        "`chat`, `text_completion`, `embeddings`, as OpenTelemetry names operations.",
    ),
    (
        "gen_ai.provider.name",
        "attempt, chat",
        "Dialect of the backend, such as `openai`; `spillway` for a built-in model.",
    ),
    ("gen_ai.request.model", "request, attempt, chat", "Model that the request names."),
    ("gen_ai.request.stream", "attempt", "`true` where a stream is asked for."),
    (
        "gen_ai.input.messages",
        "request",
        "Messages of a model call as JSON, the last ones, redacted; only with `captureContent`.",
    ),
    ("gen_ai.output.messages", "request", "Text of its answer as JSON, redacted; only with `captureContent`."),
    (
        "gen_ai.system_instructions",
        "request",
        "Instructions beside the messages as JSON, redacted; only with `captureContent`.",
    ),
    ("gen_ai.response.id", "request, attempt, chat", "Id of the answer."),
    ("gen_ai.response.model", "request, attempt, chat", "Model that the answer names."),
    ("gen_ai.response.finish_reasons", "request, attempt, chat", "Finish reasons of the answer."),
    ("gen_ai.response.time_to_first_chunk", "request, attempt, chat", "Arrival to the first content, in seconds."),
    (
        "gen_ai.usage.cache_creation.input_tokens",
        "request, attempt, chat",
        "Part of the tokens read that the server wrote to its cache.",
    ),
    (
        "gen_ai.usage.cache_read.input_tokens",
        "request, attempt, chat",
        "Part of the tokens read that the server had in its cache.",
    ),
    ("gen_ai.usage.input_tokens", "request, attempt, chat", "Tokens read."),
    ("gen_ai.usage.output_tokens", "request, attempt, chat", "Tokens written."),
    ("spillway.request.id", "request", "As in `x-request-id`."),
    ("spillway.consumer", "request", "Name of the consumer."),
    ("spillway.backend", "request, admission, attempt", "Name of the backend or of the built-in model."),
    ("spillway.endpoint", "admission", "Address of the endpoint that was picked."),
    ("spillway.endpoint.in_flight", "admission", "Requests at it at that moment."),
    ("spillway.policy", "admission", "Policy that picked it."),
    ("spillway.admission", "admission", "`saturated` or `unavailable`, where nothing was picked."),
    ("spillway.spilled", "request", "`true` where the request was not answered by the backends of its route."),
    (
        "spillway.spill.reason",
        "request",
        "Reason, as `reason` of `spillway_spills` ([metrics](metrics.md#overload-and-further-attempts)).",
    ),
    ("spillway.attempts", "request", "Attempts at endpoints."),
    ("spillway.attempt.given_up", "attempt", "`true` where another attempt answered first."),
    ("spillway.queue.priority", "queue", "Priority of the consumer."),
    (
        "spillway.queue.outcome",
        "queue",
        "As `outcome` of `spillway_queue_wait_seconds` ([metrics](metrics.md#overload-and-further-attempts)).",
    ),
    ("spillway.queue.seconds", "request", "Time in the queue, in seconds."),
    (
        "spillway.socket.end",
        "request",
        "Reason for which a socket ended, as `end` of `spillway_sockets_total` ([metrics](metrics.md)).",
    ),
    (
        "spillway.quality.language",
        "quality",
        "Language of the last message of the user (ISO 639-3), or `undetermined`.",
    ),
    ("spillway.quality.refusal", "quality", "`true` for an answer that refuses."),
    (
        "spillway.quality.signal",
        "quality",
        "Sign of a conversation that goes badly: `repeated`, `rephrased`, `gave_up`, `short_follow_up`; left out where there is none.",
    ),
    (
        "spillway.prompt.language",
        "request",
        "Language of the last text of the user (ISO 639-3), where a match reads it ([semantic routing](../how-to/semantic-routing.md)).",
    ),
    ("spillway.prompt.characters", "request", "Characters of the conversation, where a match reads them."),
    ("spillway.prompt.tokens", "request", "Tokens of the prompt as they are estimated, where a match reads them."),
    ("spillway.prompt.turns", "request", "Texts of the user, where a match reads their number."),
    (
        "spillway.prompt.reasked",
        "request",
        "`true` where the user repeats or rephrases a question, where a match reads it.",
    ),
    ("spillway.prompt.tool_loop", "request", "`true` in a loop of tool calls, where a match reads it."),
    (
        "spillway.signal.NAME",
        "request",
        "Value of the signal `NAME`, where a match reads it: `true`, `false` or a number.",
    ),
    ("spillway.signal.NAME.label", "request", "Label of the nearest example of the signal `NAME`."),
    ("spillway.content.dropped", "request", "`true` where there was no room for the texts of a model call."),
    ("spillway.content.truncated", "request", "`true` where a part of its texts was left out."),
    ("spillway.quality.topic", "quality", "Number of the topic of that message, where embeddings are made."),
    ("spillway.resumed", "request", "`true` where a stream died and was continued."),
    ("spillway.rollout.candidate", "rollout", "Name of the candidate."),
    ("spillway.rollout.state", "rollout", "State after the decision."),
    ("spillway.rollout.step", "rollout", "Step after it, from 0."),
    ("spillway.rollout.weight", "rollout", "Candidate's share of the requests after it, in percent."),
    ("spillway.rollout.by", "rollout", "`gateway`, `file`, or who gave a command."),
    ("spillway.rollout.reason", "rollout", "Reason in a sentence."),
];

/// Events of spans, each with `name`.
const EVENTS: &[(&str, &str)] = &[
    ("answered", "The filter `name` answered the request."),
    ("evidence", "Evidence about a metric of a rollout: `name` is the finding in a sentence."),
    ("refused", "The filter `name` refused the request."),
    (
        "endpoint_passed_over",
        "The endpoint in `name` was not eligible, with the reason: `drained`, `unhealthy`, `ejected`, or the signal that says full.",
    ),
];

/// Renders the page.
pub(super) fn page() -> String {
    let files = files(&["gateway/src"]);
    let names = module(&files, "telemetry/names");
    let mut attributes = literals(&names.code);
    attributes.retain(|name| !name.contains(' '));
    compare("span attributes", &ATTRIBUTES.map_names(), attributes.iter().map(String::as_str));
    let mut spans = BTreeSet::new();
    let mut events = BTreeSet::new();
    for file in &files {
        for method in [".child", ".child_at", "SpanBuilder::from_name"] {
            for call in calls(&file.code, method) {
                // A name that is computed is a row by its first word, or `attempt`.
                let text = call.arguments.first().and_then(|name| literal(name));
                spans.extend(text.and_then(|text| text.split(' ').next().map(str::to_owned)));
            }
        }
        for call in calls(&file.code, ".event").iter().filter(|call| call.arguments.len() == 2) {
            events.extend(literal(&call.arguments[0]));
        }
    }
    // The parts of a built-in model's work are in a list.
    spans.extend(["prefill", "decode"].map(str::to_owned));
    // Those of rollouts are named by their events.
    spans.extend(files.iter().any(|file| file.code.contains("format!(\"rollout {}\"")).then(|| "rollout".to_owned()));
    assert!(files.iter().any(|file| file.code.contains("(\"prefill\", ") && file.code.contains("(\"decode\", ")));
    compare("spans", &SPANS.map_names(), spans.iter().map(String::as_str));
    let rows: Vec<&str> = EVENTS.iter().map(|(name, _)| *name).collect();
    compare("span events", &rows, events.iter().map(String::as_str));
    let mut page = format!(
        "# Spans

{GENERATED}

With `telemetry.tracing`, each request is a trace ([tracing](../how-to/tracing.md)). Names follow OpenTelemetry's semantic conventions for
HTTP and generative AI; `spillway.*` is Spillway's own. Texts have at most 1,024 bytes. An attribute without a value is left out.

| span | kind | work |
|---|---|---|
"
    );
    for (name, kind, text) in SPANS {
        writeln!(page, "| `{name}` | {kind} | {} |", cell(text)).unwrap();
    }
    page.push_str("\n## Attributes\n\n| attribute | on | |\n|---|---|---|\n");
    for (name, on, text) in ATTRIBUTES {
        writeln!(page, "| `{name}` | {on} | {} |", cell(text)).unwrap();
    }
    page.push_str("\n## Events\n\n| event | |\n|---|---|\n");
    for (name, text) in EVENTS {
        writeln!(page, "| `{name}` | {} |", cell(text)).unwrap();
    }
    page
}

/// The names of rows.
trait Names {
    fn map_names(&self) -> Vec<&'static str>;
}

impl Names for [(&'static str, &'static str, &'static str)] {
    fn map_names(&self) -> Vec<&'static str> {
        self.iter().map(|(name, ..)| *name).collect()
    }
}
