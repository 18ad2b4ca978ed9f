//! Step 10: what is told of a request and its attempts. Nothing here changes an answer.

use std::time::{Duration, SystemTime};

use http::{Version, header};
use opentelemetry::{Array, StringValue, Value};
use pingora::protocols::http::ServerSession;
use spillway_filter::ExchangeEnd;

use crate::admission::Admission;
use crate::balancing::Verdict;
use crate::builtin::Report;
use crate::clock::now_millis;
use crate::exchange::{Exchange, RequestBody, ServedBy};
use crate::gateway::Gateway;
use crate::identity::CredentialError;
use crate::telemetry::{AccessRecord, AttemptEnd, Kind, Label, Span, Tokens, names, rfc3339_millis};
use crate::topology::{Route, TargetKind};
use crate::upstream::{Attempt, Failure, Outcome, REQUEST_TIMEOUT, SHUTTING_DOWN};

/// An attempt that ends with the request's own deadline after less than this had no chance.
const LEAST_TIME: Duration = Duration::from_secs(1);

/// The span of an attempt that begins.
pub(super) fn attempt_span(a: &Attempt<'_>, session: &ServerSession, x: &Exchange, resend: u32) -> Span {
    if !x.span.is_recording() {
        return x.span.child("attempt", Kind::Client);
    }
    let asked = x.asked.as_ref().and_then(|asked| asked.model.as_deref());
    let operation = a.backend.dialect.and_then(|dialect| Some((x.resolved.operation.gen_ai_name()?, dialect.name())));
    let name = match (operation, asked) {
        (Some((operation, _)), Some(model)) => format!("{operation} {model}"),
        (Some((operation, _)), None) => operation.to_owned(),
        (None, _) => format!("{} {}", session.req_header().method, a.backend.name),
    };
    let mut span = x.span.child(name, Kind::Client);
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
        span.set(names::GEN_AI_REQUEST_STREAM, x.asked.as_ref().is_some_and(|asked| asked.stream));
    }
    span
}

/// Reports an attempt that has ended after `took`, which is the time of its server and not that of a client that reads
/// slowly.
pub(super) fn attempt_ended(a: &mut Attempt<'_>, outcome: &Outcome, x: &Exchange, took: Duration) {
    judged(a, outcome, x.outcome.status, x.outcome.error_code, took);
    let mut span = std::mem::replace(&mut a.span, Span::none());
    if matches!(outcome, Outcome::GivenUp) {
        span.set(names::SPILLWAY_GIVEN_UP, true);
    }
    if matches!(outcome, Outcome::Answered | Outcome::Unread | Outcome::Broken | Outcome::Died(_)) {
        if a.backend.calls_models() && (200..300).contains(&x.outcome.status) {
            let tokens = Tokens {
                input: x.outcome.prompt_tokens,
                output: x.outcome.completion_tokens,
                first: x.outcome.first_token,
            };
            a.backend.metrics.called(tokens, took);
        }
        if span.is_recording() {
            span.set(names::HTTP_RESPONSE_STATUS_CODE, i64::from(x.outcome.status));
            set_model_outcome(&mut span, x);
        }
    }
    if let Some(error) = error(outcome) {
        span.error(error);
    }
}

/// Reports an attempt that was dropped before its outcome was known.
pub(super) fn given_up(a: &mut Attempt<'_>) {
    judged(a, &Outcome::GivenUp, 0, None, a.started.elapsed());
    a.span.set(names::SPILLWAY_GIVEN_UP, true);
}

/// Counts an attempt and lets it judge its endpoint. `status` is 0 where there was no answer.
pub(super) fn judged(a: &Attempt<'_>, outcome: &Outcome, status: u16, error_code: Option<&str>, took: Duration) {
    a.endpoint.state.metrics.attempted(end(outcome));
    let verdict = verdict(outcome, status, error_code, took);
    a.backend.balancer.ended(&a.endpoint, verdict, a.began, now_millis());
}

fn end(outcome: &Outcome) -> AttemptEnd {
    match outcome {
        // After `Unread` the server has done its part.
        Outcome::Answered | Outcome::Unread => AttemptEnd::Answered,
        Outcome::Broken | Outcome::Died(_) | Outcome::Failed(_) => AttemptEnd::Failed,
        Outcome::GivenUp | Outcome::Refused(_) => AttemptEnd::GivenUp,
        Outcome::Full(_) => AttemptEnd::Full,
        Outcome::ClientGone | Outcome::Malformed(_) => AttemptEnd::ClientGone,
        Outcome::ClientSlow => AttemptEnd::ClientSlow,
    }
}

/// Error of the span of an attempt that ended so.
fn error(outcome: &Outcome) -> Option<&'static str> {
    match outcome {
        Outcome::Answered | Outcome::GivenUp => None,
        Outcome::Unread | Outcome::ClientGone => Some("client_gone"),
        Outcome::Broken | Outcome::Died(_) => Some("broken"),
        Outcome::Full(_) => Some("full"),
        Outcome::ClientSlow => Some("client_slow"),
        Outcome::Malformed(_) => Some("malformed_request"),
        Outcome::Refused(_) => Some("refused"),
        Outcome::Failed(failure) => Some(kind(failure)),
    }
}

/// What an attempt says of its endpoint's health.
fn verdict(outcome: &Outcome, status: u16, error_code: Option<&str>, took: Duration) -> Verdict {
    match outcome {
        Outcome::Broken if matches!(error_code, Some(REQUEST_TIMEOUT | SHUTTING_DOWN)) => Verdict::Unknown,
        // 501 and 505 speak of the request.
        Outcome::Answered | Outcome::Unread if matches!(status, 500 | 502..=504 | 506..=599) => Verdict::Error,
        Outcome::Answered | Outcome::Unread => Verdict::Good,
        Outcome::Full(_) => Verdict::Full,
        Outcome::ClientGone | Outcome::ClientSlow | Outcome::Malformed(_) | Outcome::Refused(_) | Outcome::GivenUp => {
            Verdict::Unknown
        }
        // The server ended a connection that idled, as it may.
        Outcome::Failed(Failure::Stale(_)) => Verdict::Unknown,
        // A request that had no time left when it came says nothing of the server.
        Outcome::Failed(Failure::Deadline) if took < LEAST_TIME => Verdict::Unknown,
        // Some other status that the route tries elsewhere.
        Outcome::Failed(Failure::Status(status)) if *status < 500 => Verdict::Unknown,
        Outcome::Broken | Outcome::Died(_) | Outcome::Failed(_) => Verdict::Error,
    }
}

/// Where a request goes, and which endpoints were passed over.
pub(super) fn admitted(span: &mut Span, route: &Route, admission: &Admission<'_>) {
    if !span.is_recording() {
        return;
    }
    match admission {
        Admission::Endpoint { backend, endpoint, slot } => {
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

fn kind(failure: &Failure) -> &'static str {
    match failure {
        Failure::Connect(_) => "connect_failure",
        Failure::Reset(_) => "reset",
        Failure::Stale(_) => "stale_connection",
        Failure::Timeout(_) => "timeout",
        Failure::Deadline => "deadline",
        Failure::Status(_) => "status",
        Failure::Protocol(_) => "protocol",
        Failure::TooLarge(_) => "too_large",
    }
}

fn tokens(count: u64) -> Value {
    Value::I64(i64::try_from(count).unwrap_or(i64::MAX))
}

fn set_model_outcome(span: &mut Span, x: &Exchange) {
    let o = &x.outcome;
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
    if let Some(count) = o.completion_tokens {
        span.set(names::GEN_AI_USAGE_OUTPUT_TOKENS, tokens(count));
    }
    if let Some(first) = o.first_token {
        span.set(names::GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, first.as_secs_f64());
    }
}

/// The engine has ended its part, whole or not: its spans are made from what it measured.
pub(super) fn engine_ended(x: &mut Exchange, report: &Report) {
    x.outcome.model_answered = Some(report.model.to_string());
    x.outcome.response_id = Some(report.id.clone());
    x.outcome.prompt_tokens = report.prompt_tokens;
    x.outcome.completion_tokens = Some(report.completion_tokens);
    x.outcome.finish_reason = report.finish_reason.map(|reason| reason.as_str().to_owned());
    x.outcome.first_token = report.first_token.map(|first| first.saturating_duration_since(x.started));
    if report.error.is_some() {
        x.outcome.error_code = Some("engine_error");
        x.outcome.broken = x.outcome.status != 0;
    }
    if report.complete
        && let Some(first) = report.first_token
    {
        let since = first.saturating_duration_since(report.submitted);
        let each = report.completion_tokens / u64::from(report.choices.max(1));
        report.metrics.generated(since, report.decode.unwrap_or_default(), each);
        let tokens = Tokens {
            input: report.prompt_tokens,
            output: Some(report.completion_tokens),
            first: x.outcome.first_token,
        };
        report.metrics.called(tokens, report.took.unwrap_or_else(|| report.submitted.elapsed()));
    }
    if !x.span.is_recording() {
        return;
    }
    // Spans want wall-clock times; the engine measures durations from its submission on.
    let submitted = SystemTime::now() - report.submitted.elapsed();
    let mut span = x.span.child_at(format!("chat {}", report.model), Kind::Internal, submitted);
    span.set(names::GEN_AI_OPERATION_NAME, "chat");
    span.set(names::GEN_AI_PROVIDER_NAME, "spillway");
    if let Some(model) = x.asked.as_ref().and_then(|asked| asked.model.clone()) {
        span.set(names::GEN_AI_REQUEST_MODEL, model);
    }
    set_model_outcome(&mut span, x);
    if let Some(error) = &report.error {
        span.error(error.clone());
    }
    let mut at = submitted;
    for (name, took) in [("queue", report.queued), ("prefill", report.prefill), ("decode", report.decode)] {
        let Some(took) = took else { break };
        span.child_at(name, Kind::Internal, at).end_at(at + took);
        at += took;
    }
}

/// The request has ended: one line, one span, its metrics.
pub(super) fn tell(gateway: &Gateway, session: &ServerSession, mut x: Exchange) {
    super::limiting::settle(&mut x);
    let head = session.req_header();
    let took = x.started.elapsed();
    // What nginx calls 499: the client left; nobody got this status.
    let status = if x.outcome.client_gone && x.outcome.status == 0 { 499 } else { x.outcome.status };
    let bytes_in = match &x.body {
        RequestBody::Held(held) => u64::try_from(held.bytes.len()).unwrap_or(u64::MAX),
        RequestBody::Unread => u64::try_from(session.body_bytes_read()).unwrap_or(u64::MAX),
    };
    if !x.observers.is_empty() {
        let mut observers = std::mem::take(&mut x.observers);
        observers.end(&ExchangeEnd {
            status,
            is_whole: status != 0 && !x.outcome.client_gone && !x.outcome.broken,
            bytes_in,
            bytes_out: x.outcome.bytes_out,
            duration: took,
            first_token: x.outcome.first_token,
            served_by: x.served_by(),
            endpoint: x.outcome.endpoint.as_deref(),
            attempts: x.outcome.attempts,
            prompt_tokens: x.outcome.prompt_tokens,
            completion_tokens: x.outcome.completion_tokens,
            error_code: x.outcome.error_code,
        });
    }
    if let Some(route) = &x.route {
        route.metrics.ended(&head.method, status, took);
        if let Some(filter) = &x.refused_by {
            route.metrics.refused_by(filter);
        }
    }
    if let Some(reason) = x.authentication_failed {
        if reason == CredentialError::Throttled {
            gateway.metrics.process.authentication_throttled.inc();
        } else {
            gateway.metrics.process.authentication_failures.inc();
        }
        gateway.audit.refused(reason.as_str(), &x, head);
    }
    tell_span(session, &mut x, status);
    if x.snapshot.access_log {
        let route = x.route.as_ref().map(|route| route.name.as_str());
        let millis = |d: Duration| (d.as_secs_f64() * 1e6).round() / 1e3;
        let time = rfc3339_millis(SystemTime::now());
        AccessRecord {
            time: &time,
            event: "access",
            request_id: x.request_id.to_str().unwrap_or_default(),
            trace_id: x.span.trace_id().map(|id| id.to_string()),
            client: x.client,
            consumer: x.caller.as_ref().map(|c| c.name.as_ref()),
            route,
            method: head.method.as_str(),
            path: head.uri.path(),
            protocol: protocol(head.version).0,
            status,
            bytes_in,
            bytes_out: x.outcome.bytes_out,
            duration_ms: millis(took),
            served_by: x.served_by(),
            endpoint: x.outcome.endpoint.as_deref(),
            attempts: x.outcome.attempts,
            resumed: x.outcome.resumed,
            queue_ms: x.outcome.queued.map(millis),
            spilled: x.outcome.spilled.map(Label::as_str),
            model_asked: x.asked.as_ref().and_then(|asked| asked.model.as_deref()),
            model_answered: x.outcome.model_answered.as_deref(),
            prompt_tokens: x.outcome.prompt_tokens,
            completion_tokens: x.outcome.completion_tokens,
            ttft_ms: x.outcome.first_token.map(millis),
            error_code: x.outcome.error_code,
            user_agent: head.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()),
        }
        .write(&gateway.log, gateway.log_format);
    }
}

fn tell_span(session: &ServerSession, x: &mut Exchange, status: u16) {
    if !x.span.is_recording() {
        return;
    }
    let head = session.req_header();
    let mut span = std::mem::replace(&mut x.span, Span::none());
    if let Some(route) = &x.route {
        span.rename(format!("{} {}", head.method, route.name));
        span.set(names::HTTP_ROUTE, route.name.clone());
    } else {
        span.rename(head.method.to_string());
    }
    span.set(names::HTTP_REQUEST_METHOD, head.method.to_string());
    span.set(names::URL_PATH, head.uri.path().to_owned());
    span.set(names::URL_SCHEME, if x.secure { "https" } else { "http" });
    span.set(names::CLIENT_ADDRESS, x.client.to_string());
    span.set(names::NETWORK_PROTOCOL_VERSION, protocol(head.version).1);
    if let Some(agent) = head.headers.get(header::USER_AGENT).and_then(|v| v.to_str().ok()) {
        span.set(names::USER_AGENT_ORIGINAL, agent.to_owned());
    }
    if status != 0 {
        span.set(names::HTTP_RESPONSE_STATUS_CODE, i64::from(status));
    }
    span.set(names::SPILLWAY_REQUEST_ID, x.request_id.to_str().unwrap_or_default().to_owned());
    if let Some(caller) = &x.caller {
        span.set(names::SPILLWAY_CONSUMER, caller.name.to_string());
    }
    span.set(names::SPILLWAY_ATTEMPTS, i64::from(x.outcome.attempts));
    span.set(names::SPILLWAY_SPILLED, x.outcome.spilled.is_some());
    if x.outcome.resumed {
        span.set(names::SPILLWAY_RESUMED, true);
    }
    if let Some(queued) = x.outcome.queued {
        span.set(names::SPILLWAY_QUEUE_SECONDS, queued.as_secs_f64());
    }
    if let Some(reason) = x.outcome.spilled {
        span.set(names::SPILLWAY_SPILL_REASON, reason.as_str());
    }
    if let ServedBy::Backend(name) | ServedBy::Model(name) = &x.outcome.served_by {
        span.set(names::SPILLWAY_BACKEND, name.to_string());
    }
    if let Some(model) = x.asked.as_ref().and_then(|asked| asked.model.clone()) {
        span.set(names::GEN_AI_REQUEST_MODEL, model);
    }
    set_model_outcome(&mut span, x);
    if status >= 500 || x.outcome.broken {
        span.error(x.outcome.error_code.unwrap_or("upstream_status"));
    }
    x.span = span;
}

/// How a version is written, whole and as its number alone.
fn protocol(version: Version) -> (&'static str, &'static str) {
    match version {
        Version::HTTP_10 => ("HTTP/1.0", "1.0"),
        Version::HTTP_2 => ("HTTP/2", "2"),
        _ => ("HTTP/1.1", "1.1"),
    }
}
