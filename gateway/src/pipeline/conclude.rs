//! Step 10: reports of a request and its attempts, as spans, metrics and log lines. Nothing here changes an answer.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderName, Version, header};
use opentelemetry::{Array, StringValue, Value};
use spillway_cel::{Seen, Served};
use spillway_filter::ExchangeEnd;

use crate::admission::Admission;
use crate::balancing::Verdict;
use crate::builtin::Report;
use crate::clock::{self, now_millis};
use crate::downstream::ClientSession;
use crate::exchange::{ConnectionInfo, Doubt, DoubtedError, Exchange, FailedAttempt, RequestBody, ServedBy, version};
use crate::gateway::Gateway;
use crate::identity::CredentialError;
use crate::message::RequestHead;
use crate::protocol::Written;
use crate::quality::{ContentTap, Contents, Ended, Tap};
use crate::telemetry::{
    AccessRecord, AttemptEnd, CallStats, ComputedFields, Field, FieldValues, Label, Span, SpanKind, TraceEnd,
    field_values, names, rfc3339_millis,
};
use crate::topology::{Backend, Route, TargetKind};
use crate::upstream::{Attempt, AttemptOutcome, CutReason, Failure, TimeLimit, is_server_fault};

/// Least time that an attempt must have had before the request's deadline, to be judged by that deadline.
const LEAST_TIME: Duration = Duration::from_secs(1);

/// The span of an attempt that begins.
pub(super) fn attempt_span(a: &Attempt<'_>, session: &ClientSession, exchange: &Exchange, resend: u32) -> Span {
    if !exchange.span.is_recording() {
        return exchange.span.child("attempt", SpanKind::Client);
    }
    let asked = exchange.asked.as_ref().and_then(|asked| asked.model.as_deref());
    let operation =
        a.backend.dialect.and_then(|dialect| Some((exchange.resolved.operation.gen_ai_name()?, dialect.name())));
    let name = match (operation, asked) {
        (Some((operation, _)), Some(model)) => format!("{operation} {model}"),
        (Some((operation, _)), None) => operation.to_owned(),
        (None, _) => format!("{} {}", session.req_header().method, a.backend.name),
    };
    let mut span = exchange.span.child(name, SpanKind::Client);
    span.set(names::SERVER_ADDRESS, a.endpoint.url.host.clone());
    span.set(names::SERVER_PORT, i64::from(a.endpoint.url.port));
    span.set(names::SPILLWAY_BACKEND, a.backend.name.to_string());
    span.set(names::HTTP_REQUEST_METHOD, session.req_header().method.to_string());
    if resend > 0 {
        span.set(names::HTTP_REQUEST_RESEND_COUNT, i64::from(resend));
    }
    if let Some((operation, provider)) = operation {
        span.set(names::GEN_AI_OPERATION_NAME, operation);
        span.set(names::GEN_AI_PROVIDER_NAME, provider);
        if let Some(model) = asked {
            span.set(names::GEN_AI_REQUEST_MODEL, model.to_owned());
        }
        span.set(names::GEN_AI_REQUEST_STREAM, exchange.asked.as_ref().is_some_and(|asked| asked.stream));
    }
    span
}

/// Number of a request's caller and operation. Where no model API names the operation, it is method and path.
pub(super) fn caller_key(backend: &Backend, head: &RequestHead, exchange: &Exchange) -> u64 {
    let seeds = ahash::RandomState::with_seeds(5, 6, 7, 8);
    let path = (!backend.calls_models()).then(|| (&head.method, head.uri.path()));
    seeds.hash_one((super::asking::memory_share(exchange), exchange.resolved.operation, path)).max(1)
}

/// Reports an attempt that has ended after `took`, which is the time of its server and not that of a client that reads
/// slowly.
pub(super) fn attempt_ended(a: &mut Attempt<'_>, outcome: &AttemptOutcome, exchange: &mut Exchange, took: Duration) {
    let status = exchange.outcome.reported.unwrap_or(exchange.outcome.status);
    let verdict = counted(a, outcome, status, took);
    note_failure(a, outcome, status, verdict, exchange);
    if exchange.rollout.is_some() {
        super::comparing::attempted(a, verdict, took, exchange);
    }
    judge(a, outcome, verdict, exchange);
    let mut span = std::mem::replace(&mut a.span, Span::none());
    if matches!(
        outcome,
        AttemptOutcome::Answered | AttemptOutcome::Unread | AttemptOutcome::Broken(_) | AttemptOutcome::Died(_)
    ) {
        if let Some(metrics) = a.backend.metrics.as_ref().filter(|_| (200..300).contains(&status)) {
            let tokens = CallStats {
                input: exchange.outcome.prompt_tokens,
                cached: exchange.outcome.cached_tokens,
                cache_written: exchange.outcome.cache_written_tokens,
                output: exchange.outcome.completion_tokens,
                first: exchange.outcome.first_token,
                trace: exchange.span.sent_trace(),
            };
            metrics.called(tokens, took);
        }
        if span.is_recording() {
            span.set(names::HTTP_RESPONSE_STATUS_CODE, i64::from(exchange.outcome.status));
            if a.backend.calls_models() {
                set_model_outcome(&mut span, exchange);
            }
        }
    } else {
        exchange.outcome.was_at_target(took);
    }
    if let Some(error) = error(outcome).or(exchange.outcome.reported.map(|_| "reported_error")) {
        span.error(error);
    }
}

/// Reports an attempt that was dropped before its outcome was known.
pub(super) fn given_up(a: &mut Attempt<'_>) {
    a.span.set(names::SPILLWAY_GIVEN_UP, true);
    judged(a, &AttemptOutcome::GivenUp, 0, Duration::ZERO);
}

/// Ends an attempt that counts for nobody and judges nothing.
pub(super) fn unjudged(a: &Attempt<'_>) {
    a.backend.balancer.ended(&a.endpoint, Verdict::Unknown, 0, a.began, now_millis());
}

/// Counts an attempt whose outcome no client sees, and lets it judge its endpoint. `status` is 0 where there was no answer.
pub(super) fn judged(a: &mut Attempt<'_>, outcome: &AttemptOutcome, status: u16, took: Duration) -> Verdict {
    let verdict = counted(a, outcome, status, took);
    a.backend.balancer.ended(&a.endpoint, verdict, 0, a.began, now_millis());
    verdict
}

/// Counts an attempt, and records the failure of its endpoint if it was one.
fn counted(a: &Attempt<'_>, outcome: &AttemptOutcome, status: u16, took: Duration) -> Verdict {
    a.endpoint.state.metrics.attempted(attempt_end(outcome));
    let verdict = verdict(outcome, status, took);
    if matches!(verdict, Verdict::Error | Verdict::ServerError) {
        a.endpoint.failed(match outcome {
            AttemptOutcome::Failed(failure) => failure.to_string(),
            AttemptOutcome::Broken(cut) => cut.as_str().to_owned(),
            AttemptOutcome::Died(died) => died.cut.as_str().to_owned(),
            _ => format!("status: {status}"),
        });
    }
    verdict
}

/// Records the failure of an attempt for the access line and the refusal.
fn note_failure(a: &Attempt<'_>, outcome: &AttemptOutcome, status: u16, verdict: Verdict, exchange: &mut Exchange) {
    let (cause, limit) = match outcome {
        AttemptOutcome::Failed(failure) => (failure.as_str(), failure.limit()),
        AttemptOutcome::Broken(cut) => (cut.as_str(), cut.limit()),
        AttemptOutcome::Died(died) => (died.cut.as_str(), died.cut.limit()),
        _ if exchange.outcome.reported == Some(status) => ("reported_error", None),
        _ if verdict == Verdict::ServerError => ("status", None),
        _ => return,
    };
    let endpoint = a.endpoint.address.clone();
    exchange.outcome.failed = Some(FailedAttempt { endpoint, cause, limit: limit.map(TimeLimit::as_str) });
}

/// Lets an attempt judge its endpoint. An error of a server that is tried elsewhere waits for the other endpoint: if that
/// one repeats it, the request is at fault, and it counts against neither; if that one answers well, the first has failed.
fn judge(a: &Attempt<'_>, outcome: &AttemptOutcome, verdict: Verdict, exchange: &mut Exchange) {
    let is_error = verdict == Verdict::ServerError;
    let verdict = match std::mem::take(&mut exchange.doubt) {
        Doubt::None => verdict,
        Doubt::Repeated => {
            exchange.doubt = Doubt::Repeated;
            if is_error { Verdict::Unknown } else { verdict }
        }
        Doubt::Pending(first) => {
            let is_other = !Arc::ptr_eq(&first.endpoint.state, &a.endpoint.state);
            if is_error && is_other {
                exchange.doubt = Doubt::Repeated;
                Verdict::Unknown
            } else {
                let is_proven = is_other && verdict == Verdict::Good;
                // The good answer first: it is what the error is compared with.
                a.backend.balancer.ended(&a.endpoint, verdict, exchange.caller_key, a.began, now_millis());
                count_doubted(&first, if is_proven { Verdict::Error } else { Verdict::ServerError }, exchange);
                return;
            }
        }
    };
    if verdict == Verdict::ServerError && matches!(outcome, AttemptOutcome::Failed(_)) {
        let (backend, endpoint) = (a.backend.name.clone(), a.endpoint.clone());
        exchange.doubt = Doubt::Pending(DoubtedError { backend, endpoint, began: a.began });
        return;
    }
    a.backend.balancer.ended(&a.endpoint, verdict, exchange.caller_key, a.began, now_millis());
}

/// Counts an error that was doubted.
fn count_doubted(first: &DoubtedError, verdict: Verdict, exchange: &Exchange) {
    if let Some(backend) = exchange.snapshot.backends.iter().find(|backend| backend.name == first.backend) {
        backend.balancer.ended(&first.endpoint, verdict, exchange.caller_key, first.began, now_millis());
    }
}

fn attempt_end(outcome: &AttemptOutcome) -> AttemptEnd {
    match outcome {
        AttemptOutcome::GivenUp
        | AttemptOutcome::Refused(_)
        | AttemptOutcome::Broken(CutReason::RefusedByFilter { .. } | CutReason::RequestTooLarge) => AttemptEnd::GivenUp,
        // After `Unread` the server has done its part.
        AttemptOutcome::Answered | AttemptOutcome::Unread => AttemptEnd::Answered,
        AttemptOutcome::Broken(_) | AttemptOutcome::Died(_) | AttemptOutcome::Failed(_) => AttemptEnd::Failed,
        AttemptOutcome::Full(_) => AttemptEnd::Full,
        AttemptOutcome::ClientGone | AttemptOutcome::Malformed(_) => AttemptEnd::ClientGone,
        AttemptOutcome::ClientSlow => AttemptEnd::ClientSlow,
    }
}

/// Error of the span of an attempt that ended so.
fn error(outcome: &AttemptOutcome) -> Option<&'static str> {
    match outcome {
        AttemptOutcome::Answered | AttemptOutcome::GivenUp => None,
        AttemptOutcome::Refused(_)
        | AttemptOutcome::Broken(CutReason::RefusedByFilter { .. } | CutReason::RequestTooLarge) => Some("refused"),
        AttemptOutcome::Unread | AttemptOutcome::ClientGone => Some("client_gone"),
        AttemptOutcome::Broken(_) | AttemptOutcome::Died(_) => Some("broken"),
        AttemptOutcome::Full(_) => Some("full"),
        AttemptOutcome::ClientSlow => Some("client_slow"),
        AttemptOutcome::Malformed(_) => Some("malformed_request"),
        AttemptOutcome::Failed(failure) => Some(failure.as_str()),
    }
}

/// Verdict of an attempt on the health of its endpoint.
fn verdict(outcome: &AttemptOutcome, status: u16, took: Duration) -> Verdict {
    match outcome {
        AttemptOutcome::Broken(
            CutReason::RequestTimeout
            | CutReason::CallersTimeout
            | CutReason::ShuttingDown
            | CutReason::RefusedByFilter { .. }
            | CutReason::RequestTooLarge,
        ) => Verdict::Unknown,
        AttemptOutcome::Answered | AttemptOutcome::Unread if is_server_fault(status) => Verdict::ServerError,
        AttemptOutcome::Answered | AttemptOutcome::Unread => Verdict::Good,
        AttemptOutcome::Full(_) => Verdict::Full,
        AttemptOutcome::ClientGone
        | AttemptOutcome::ClientSlow
        | AttemptOutcome::Malformed(_)
        | AttemptOutcome::Refused(_)
        | AttemptOutcome::GivenUp => Verdict::Unknown,
        // The server ended a connection, as it may.
        AttemptOutcome::Failed(Failure::Stale(_) | Failure::Unprocessed { is_first: false, .. }) => Verdict::Unknown,
        // A request that had no time left when it came says nothing of the server.
        AttemptOutcome::Failed(Failure::Deadline(_)) if took < LEAST_TIME => Verdict::Unknown,
        // A caller that gives its calls little time must not take servers from others.
        AttemptOutcome::Failed(Failure::Deadline(TimeLimit::Caller)) => Verdict::Unknown,
        AttemptOutcome::Failed(Failure::Status(status) | Failure::Reported(status)) => {
            // Some other status that the route tries elsewhere says nothing.
            if is_server_fault(*status) { Verdict::ServerError } else { Verdict::Unknown }
        }
        AttemptOutcome::Broken(_) | AttemptOutcome::Died(_) | AttemptOutcome::Failed(_) => Verdict::Error,
    }
}

/// Reports the target of a request, and the endpoints that were passed over.
pub(super) fn admitted(span: &mut Span, route: &Route, admission: &Admission<'_>) {
    if !span.is_recording() {
        return;
    }
    match admission {
        Admission::Endpoint { backend, endpoint, slot, .. } => {
            span.set(names::SPILLWAY_BACKEND, backend.name.to_string());
            span.set(names::SPILLWAY_ENDPOINT, endpoint.address.clone());
            span.set(names::SPILLWAY_POLICY, backend.policy.as_str());
            span.set(names::SPILLWAY_ENDPOINT_IN_FLIGHT, i64::from(slot.in_flight_at_start()));
        }
        Admission::Model { model, .. } => span.set(names::SPILLWAY_BACKEND, model.name().to_owned()),
        Admission::Saturated => span.set(names::SPILLWAY_ADMISSION, "saturated"),
        Admission::Unavailable => span.set(names::SPILLWAY_ADMISSION, "unavailable"),
    }
    for target in &route.targets {
        let TargetKind::Backend(backend) = &target.kind else { continue };
        for (endpoint, closed) in backend.balancer.passed_over(now_millis()) {
            span.event("endpoint_passed_over", &format!("{}: {}", endpoint.address, closed.as_str()));
        }
    }
}

fn tokens(count: u64) -> Value {
    Value::I64(i64::try_from(count).unwrap_or(i64::MAX))
}

fn set_model_outcome(span: &mut Span, exchange: &Exchange) {
    let o = &exchange.outcome;
    if let Some(model) = &o.model_answered {
        span.set(names::GEN_AI_RESPONSE_MODEL, model.clone());
    }
    if let Some(id) = &o.response_id {
        span.set(names::GEN_AI_RESPONSE_ID, id.clone());
    }
    if let Some(reason) = &o.finish_reason {
        span.set(
            names::GEN_AI_RESPONSE_FINISH_REASONS,
            Value::Array(Array::String(vec![StringValue::from(reason.clone())])),
        );
    }
    if let Some(count) = o.prompt_tokens {
        span.set(names::GEN_AI_USAGE_INPUT_TOKENS, tokens(count));
    }
    if let Some(count) = o.cached_tokens {
        span.set(names::GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS, tokens(count));
    }
    if let Some(count) = o.cache_written_tokens {
        span.set(names::GEN_AI_USAGE_CACHE_CREATION_INPUT_TOKENS, tokens(count));
    }
    if let Some(count) = o.completion_tokens {
        span.set(names::GEN_AI_USAGE_OUTPUT_TOKENS, tokens(count));
    }
    if let Some(first) = o.first_token {
        span.set(names::GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, first.as_secs_f64());
    }
}

/// Reports the end of an answer of the engine, whole or not. Its spans are made from the engine's own times.
pub(super) fn engine_ended(exchange: &mut Exchange, report: &Report) {
    exchange.outcome.model_answered = Some(report.model.to_string());
    exchange.outcome.response_id = Some(report.id.clone());
    exchange.outcome.prompt_tokens = report.prompt_tokens;
    exchange.outcome.cached_tokens = report.prompt_tokens.map(|_| report.cached_tokens);
    exchange.outcome.completion_tokens = Some(report.completion_tokens);
    exchange.outcome.finish_reason = report.finish_reason.map(|reason| reason.as_str().to_owned());
    exchange.outcome.first_token = report.first_token.map(|first| first.saturating_duration_since(exchange.started));
    if report.complete {
        // The text that another server wrote before is in the number.
        exchange.outcome.unreported = Written::default();
    }
    exchange.outcome.excuse = report.excuse;
    if report.error.is_some() {
        exchange.outcome.error_code = Some("engine_error");
        exchange.outcome.broken = exchange.outcome.status != 0;
    }
    if report.complete
        && !exchange.is_probe
        && let Some(first) = report.first_token
    {
        let since = first.saturating_duration_since(report.submitted);
        let each = report.completion_tokens / u64::from(report.choices.max(1));
        report.metrics.generated(since, report.decode.unwrap_or_default(), each);
        let tokens = CallStats {
            input: report.prompt_tokens,
            cached: exchange.outcome.cached_tokens,
            cache_written: None,
            output: Some(report.completion_tokens),
            first: exchange.outcome.first_token,
            trace: exchange.span.sent_trace(),
        };
        report.metrics.called(tokens, report.took.unwrap_or_else(|| clock::since(report.submitted)));
    }
    if !exchange.span.is_recording() {
        return;
    }
    // Spans want wall-clock times; the engine measures durations from its submission on.
    let submitted = SystemTime::now() - clock::since(report.submitted);
    let mut span = exchange.span.child_at(format!("chat {}", report.model), SpanKind::Internal, submitted);
    span.set(names::GEN_AI_OPERATION_NAME, "chat");
    span.set(names::GEN_AI_PROVIDER_NAME, "spillway");
    if let Some(model) = exchange.asked.as_ref().and_then(|asked| asked.model.clone()) {
        span.set(names::GEN_AI_REQUEST_MODEL, model);
    }
    set_model_outcome(&mut span, exchange);
    if let Some(error) = &report.error {
        span.error(error.clone());
    }
    let mut at = submitted;
    for (name, took) in [("queue", report.queued), ("prefill", report.prefill), ("decode", report.decode)] {
        let Some(took) = took else { break };
        span.child_at(name, SpanKind::Internal, at).end_at(at + took);
        at += took;
    }
}

/// Ends the exchange: settles its reservation and reports its access log line, span and metrics.
pub(super) fn end(gateway: &Gateway, connection: &ConnectionInfo, session: &ClientSession, exchange: &mut Exchange) {
    super::limiting::settle(exchange);
    if super::batch_lines::found_no_room(exchange) {
        return;
    }
    let part = exchange.rollout.take();
    if let Some(part) = &part {
        let tap = exchange.taps.as_mut().and_then(|taps| taps.rollout.take());
        super::comparing::observe(part, tap, exchange);
    }
    if let Doubt::Pending(first) = std::mem::take(&mut exchange.doubt) {
        count_doubted(&first, Verdict::ServerError, exchange);
    }
    let took = clock::since(exchange.started);
    // The 499 of nginx: the client left before it got a status.
    let status =
        if exchange.outcome.client_gone && exchange.outcome.status == 0 { 499 } else { exchange.outcome.status };
    // The life of a socket is no time of an answer.
    let answered = exchange.outcome.socket.map_or(took, |socket| socket.opened_after);
    end_span(session, exchange, status, answered);
    let head = session.req_header();
    if let Some(route) = &exchange.route {
        route.metrics.ended(&head.method, status, answered, exchange.span.sent_trace());
        if let Some(filter) = &exchange.refused_by {
            route.metrics.refused_by(filter);
        }
    }
    if let Some(reason) = exchange.authentication_failed {
        if reason == CredentialError::Throttled {
            gateway.metrics.process.authentication_throttled.inc();
        } else {
            gateway.metrics.process.authentication_failures.inc();
        }
        gateway.audit.refused(reason.as_str(), exchange, head);
    }
    if let Some(labels) = exchange.route.as_ref().and_then(|route| route.labels.as_ref()) {
        super::feedback::remember(labels, part.as_ref().map(|part| part.unit), exchange);
    }
    let bytes_in = match &exchange.body {
        _ if exchange.outcome.socket.is_some() => exchange.outcome.socket.map_or(0, |socket| socket.bytes_in),
        RequestBody::Held(held) => u64::try_from(held.bytes.len()).unwrap_or(u64::MAX),
        RequestBody::Unread => session.body_bytes(),
    };
    if !exchange.observers.is_empty() {
        let mut observers = std::mem::take(&mut exchange.observers);
        observers.end(&ExchangeEnd {
            status,
            is_whole: status != 0 && !exchange.outcome.client_gone && !exchange.outcome.broken,
            bytes_in,
            bytes_out: exchange.outcome.bytes_out,
            duration: took,
            first_token: exchange.outcome.first_token,
            served_by: exchange.served_by(),
            endpoint: exchange.outcome.endpoint.as_deref(),
            attempts: exchange.outcome.attempts,
            prompt_tokens: exchange.outcome.prompt_tokens,
            cached_tokens: exchange.outcome.cached_tokens,
            cache_written_tokens: exchange.outcome.cache_written_tokens,
            cache_written_1h_tokens: exchange.outcome.cache_written_1h_tokens,
            completion_tokens: exchange.outcome.completion_tokens,
            model: super::limiting::answered_model(exchange).as_deref(),
            error_code: exchange.outcome.error_code,
        });
    }
    if let Some(tap) = exchange.taps.as_mut().and_then(|taps| taps.quality.take()) {
        hand_over(tap, exchange);
    }
    if let Some(recent) = gateway.recent.as_ref().filter(|recent| recent.takes(clock::instant()))
        && let Some(head) = super::replay::kept(connection, session, exchange, bytes_in > 0)
    {
        recent.keep(head);
    }
    let is_watched = gateway.tail.is_watched();
    if exchange.snapshot.access_log || is_watched {
        let route = exchange.route.as_ref().map(|route| route.name.as_str());
        let failed = exchange.outcome.failed.as_ref();
        let millis = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
        let timestamp = rfc3339_millis(SystemTime::now());
        let record = AccessRecord {
            timestamp: &timestamp,
            event: "access",
            request_id: exchange.request_id.to_str().unwrap_or_default(),
            span: exchange.span.ids(),
            client: exchange.client,
            consumer: exchange.caller.as_ref().map(|c| c.name.as_ref()),
            route,
            method: head.method.as_str(),
            path: head.uri.path(),
            protocol: protocol(head.version).0,
            status,
            bytes_in,
            bytes_out: exchange.outcome.bytes_out,
            duration_ms: millis(took),
            served_by: exchange.served_by(),
            endpoint: exchange.outcome.endpoint.as_deref().or(failed.map(|failed| failed.endpoint.as_str())),
            attempts: exchange.outcome.attempts,
            cause: failed.map(|failed| failed.cause),
            failed_endpoint: failed.map(|failed| failed.endpoint.as_str()),
            limit: failed.and_then(|failed| failed.limit).or(exchange.outcome.limit),
            resumed: exchange.outcome.resumed,
            queue_ms: exchange.outcome.queued.map(millis),
            spilled: exchange.outcome.spilled.map(Label::as_str),
            not_spilled: exchange.outcome.not_spilled.as_ref().map(|(reason, _)| reason.as_str()),
            not_spilled_field: exchange.outcome.not_spilled.as_ref().and_then(|(_, field)| field.as_deref()),
            model_asked: exchange.asked.as_ref().and_then(|asked| asked.model.as_deref()),
            model_answered: exchange.outcome.model_answered.as_deref(),
            prompt_tokens: exchange.outcome.prompt_tokens,
            cached_tokens: exchange.outcome.cached_tokens,
            cache_written_tokens: exchange.outcome.cache_written_tokens,
            completion_tokens: exchange.outcome.completion_tokens,
            ttft_ms: exchange.outcome.first_token.map(millis),
            socket_end: exchange.outcome.socket.and_then(|socket| Some(socket.end?.as_str())),
            error_code: exchange.outcome.error_code,
            user_agent: head.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()),
            headers: exchange.snapshot.logged_headers.as_ref().map(|logged| {
                logged.of(&head.headers, |name| exchange.snapshot.caller_headers.may_hold_credential(name))
            }),
            fields: exchange
                .snapshot
                .fields
                .as_deref()
                .filter(|fields| exchange.snapshot.access_log && !fields.of_lines.is_empty())
                .map_or_else(Vec::new, |fields| computed(fields, &fields.of_lines, head, status, exchange)),
        };
        if is_watched {
            gateway.tail.show(&record);
        }
        if exchange.snapshot.access_log {
            record.write(&gateway.log, gateway.log_format);
            if exchange.snapshot.log_export.is_on() {
                record.send(&exchange.snapshot.log_export);
            }
        }
    }
    if let Some(tap) = exchange.taps.as_mut().and_then(|taps| taps.content.take()) {
        show_content(tap, exchange);
    }
}

/// Fields that expressions make of an exchange that has ended.
#[cold]
fn computed<'f>(
    fields: &ComputedFields,
    some: &'f [Field],
    head: &RequestHead,
    status: u16,
    exchange: &Exchange,
) -> FieldValues<'f> {
    let names = &exchange.snapshot.caller_headers;
    let hides = |name: &HeaderName| fields.hides(name) || names.may_hold_credential(name);
    let (outcome, request) = (&exchange.outcome, exchange.request_view(head));
    let served = Served {
        backend: exchange.served_by(),
        version: exchange.route.as_ref().map_or("", |route| version(route, outcome.target)),
        status,
        headers: None,
        model: outcome.model_answered.as_deref().unwrap_or_default(),
        prompt_tokens: outcome.prompt_tokens,
        cached_tokens: outcome.cached_tokens,
        completion_tokens: outcome.completion_tokens,
    };
    field_values(some, &Seen { served, hides: Some(&hides), ..Seen::from(&request) })
}

/// Taps an exchange whose span shows its texts, unless its consumer wants none to be kept.
#[cold]
pub(super) fn tap_content(contents: &Arc<Contents>, session: &ClientSession, exchange: &mut Exchange) {
    let may_be_kept = exchange.caller.as_ref().is_none_or(|caller| caller.keep_examples);
    let has_text = exchange.resolved.operation.asks_for_text() && !exchange.is_grpc;
    if exchange.span.is_recording() && may_be_kept && has_text {
        let tap = contents.tap(&session.req_header().headers);
        exchange.taps.get_or_insert_default().content = Some(tap);
    }
}

/// Gives the span of an exchange to the reader of its texts, which ends it.
fn show_content(tap: ContentTap, exchange: &mut Exchange) {
    if exchange.span.sent_trace().is_none() {
        return;
    }
    let span = std::mem::replace(&mut exchange.span, Span::none());
    let body = match &exchange.body {
        RequestBody::Held(held) => Some(&held.bytes),
        RequestBody::Unread => None,
    };
    let outcome = &exchange.outcome;
    let is_whole = outcome.status != 0 && !outcome.client_gone && !outcome.broken;
    tap.end(body, is_whole, outcome.finish_reason.as_deref(), span);
}

/// Hands an exchange that was drawn over to those who look at it.
fn hand_over(tap: Tap, exchange: &Exchange) {
    let outcome = &exchange.outcome;
    // The span ends when the exchange was looked at, which is later.
    let span =
        if exchange.span.is_recording() { exchange.span.child("quality", SpanKind::Internal) } else { Span::none() };
    tap.end(Ended {
        served_by: exchange.served_by(),
        caller: super::asking::memory_share(exchange),
        operation: exchange.resolved.operation,
        is_grpc: exchange.is_grpc,
        body: match &exchange.body {
            RequestBody::Held(held) => Some(&held.bytes),
            RequestBody::Unread => None,
        },
        is_whole: outcome.status != 0 && !outcome.client_gone && !outcome.broken,
        prompt_tokens: outcome.prompt_tokens,
        completion_tokens: outcome.completion_tokens,
        finish: outcome.finish_reason.as_deref(),
        may_be_kept: exchange.caller.as_ref().is_none_or(|caller| caller.keep_examples),
        span,
    });
}

fn end_span(session: &ClientSession, exchange: &mut Exchange, status: u16, took: Duration) {
    if !exchange.span.is_recording() {
        return;
    }
    let head = session.req_header();
    let mut span = std::mem::replace(&mut exchange.span, Span::none());
    if let Some(route) = &exchange.route {
        span.rename(format!("{} {}", head.method, route.name));
        span.set(names::HTTP_ROUTE, route.name.clone());
    } else {
        span.rename(head.method.to_string());
    }
    span.set(names::HTTP_REQUEST_METHOD, head.method.to_string());
    span.set(names::URL_PATH, head.uri.path().to_owned());
    span.set(names::URL_SCHEME, if exchange.secure { "https" } else { "http" });
    span.set(names::CLIENT_ADDRESS, exchange.client.to_string());
    span.set(names::NETWORK_PROTOCOL_VERSION, protocol(head.version).1);
    if let Some(agent) = head.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()) {
        span.set(names::USER_AGENT_ORIGINAL, agent.to_owned());
    }
    if status != 0 {
        span.set(names::HTTP_RESPONSE_STATUS_CODE, i64::from(status));
    }
    span.set(names::SPILLWAY_REQUEST_ID, exchange.request_id.to_str().unwrap_or_default().to_owned());
    if let Some(caller) = &exchange.caller {
        span.set(names::SPILLWAY_CONSUMER, caller.name.to_string());
    }
    span.set(names::SPILLWAY_ATTEMPTS, i64::from(exchange.outcome.attempts));
    span.set(names::SPILLWAY_SPILLED, exchange.outcome.spilled.is_some());
    if exchange.outcome.resumed {
        span.set(names::SPILLWAY_RESUMED, true);
    }
    if let Some(end) = exchange.outcome.socket.and_then(|socket| socket.end) {
        span.set(names::SPILLWAY_SOCKET_END, end.as_str());
    }
    if let Some(queued) = exchange.outcome.queued {
        span.set(names::SPILLWAY_QUEUE_SECONDS, queued.as_secs_f64());
    }
    if let Some(reason) = exchange.outcome.spilled {
        span.set(names::SPILLWAY_SPILL_REASON, reason.as_str());
    }
    if let ServedBy::Backend(name) | ServedBy::Model(name) = &exchange.outcome.served_by {
        span.set(names::SPILLWAY_BACKEND, name.to_string());
    }
    if let Some(fields) = exchange.snapshot.fields.as_deref().filter(|fields| !fields.of_spans.is_empty()) {
        span.set_fields(computed(fields, &fields.of_spans, head, status, exchange));
    }
    // A plain route may read a body, for limits by model or expressions, and calls no model all the same.
    if exchange.route.as_ref().is_none_or(|route| route.calls_models) {
        if let Some(model) = exchange.asked.as_ref().and_then(|asked| asked.model.clone()) {
            span.set(names::GEN_AI_REQUEST_MODEL, model);
        }
        set_model_outcome(&mut span, exchange);
    }
    let is_error = status >= 500 || exchange.outcome.broken || exchange.outcome.reported.is_some();
    if is_error {
        span.error(exchange.outcome.error_code.unwrap_or("upstream_status"));
    }
    span.decide(TraceEnd { is_error, is_spilled: exchange.outcome.spilled.is_some(), took });
    exchange.span = span;
}

/// Name and number of an HTTP version.
fn protocol(version: Version) -> (&'static str, &'static str) {
    match version {
        Version::HTTP_10 => ("HTTP/1.0", "1.0"),
        Version::HTTP_2 => ("HTTP/2", "2"),
        _ => ("HTTP/1.1", "1.1"),
    }
}
