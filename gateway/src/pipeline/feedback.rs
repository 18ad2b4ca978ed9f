//! Labels of answers: the requests that send them, and the ends of the requests that may be labelled. Such a request is
//! authenticated, limited, counted and traced as any other; the gateway answers it before a route of the file is looked for.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde::Deserializer;
use serde::de::{MapAccess, Visitor};
use serde_json::{Value, json};
use spillway_filter::{Answer, ErrorKind, Refusal};

use super::answers::send;
use super::asking::{decode_body, hold_body, memory_share};
use super::limiting;
use crate::clock;
use crate::downstream::ClientSession;
use crate::exchange::{End, Exchange, RequestBody, ServedBy};
use crate::feedback::{self, Ids, LabelError, MAX_COMMENT, MAX_LABEL, MAX_NAME, NewLabel, Owner, RouteLabels};
use crate::gateway::Gateway;
use crate::limits::number_of_consumer;
use crate::message::ResponseHead;
use crate::protocol;
use crate::routing::Candidates;
use crate::telemetry::{FeedbackEnd, Label};
use crate::topology::FeedbackPlan;

/// Longest id of a request or an answer, in bytes.
const MAX_ID: usize = 256;
/// Waits between looks for an id that is not known: an answer may reach its caller a moment before its request has ended here.
const OVERTAKEN: [Duration; 3] = [Duration::from_millis(10), Duration::from_millis(50), Duration::from_millis(250)];
/// Fields of a label.
const FIELDS: [&str; 9] =
    ["request_id", "response_id", "consumer", "score", "label", "predicted", "expected", "confidence", "comment"];

/// The plan of `feedback`, if the request sends a label.
pub(super) fn plan(candidates: &Candidates<'_>, exchange: &Exchange) -> Option<Arc<FeedbackPlan>> {
    let plan = exchange.snapshot.feedback.as_ref()?;
    candidates.only().is_some_and(|route| Arc::ptr_eq(route, &plan.route)).then(|| plan.clone())
}

/// Takes a label and answers its request. `within` is the time for its body.
pub(super) async fn answer(
    gateway: &Gateway,
    plan: &FeedbackPlan,
    within: Duration,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(), End> {
    let taken = take(gateway, plan, within, session, exchange).await;
    if let Err(End::Refuse(_) | End::Answer(_)) = &taken {
        // What limits granted before the body was read is given back, as by a route.
        exchange.ledger.release_entries(exchange.judged.taken);
    }
    let (read, id) = taken?;
    // Takes from the limits of the caller that were not judged before.
    limiting::filters(&plan.route, session, exchange).await?;
    if let Some((limit, refusal)) = exchange.over_limit.take() {
        // No lesser answer takes a label, and one that is refused takes nothing from any limit.
        exchange.ledger.release();
        exchange.refused_by = Some(limit);
        return Err(refusal.into());
    }
    let owner = owner(plan, &read, exchange).inspect_err(|_| plan.state.count(FeedbackEnd::Refused))?;
    for wait in OVERTAKEN {
        if plan.state.knows(&id, owner) {
            break;
        }
        tokio::time::sleep(wait).await;
    }
    let labelled = plan.state.label(&id, owner, memory_share(exchange), &read.label, clock::now_millis());
    let labelled = labelled.map_err(|error| refusal(&error, &read))?;
    if plan.logs_comments
        && let Some(comment) = &read.comment
    {
        let request_id = exchange.request_id.to_str().unwrap_or_default();
        let consumer = exchange.caller.as_ref().map(|caller| &*caller.name).unwrap_or_default();
        let (route, target) = (&*labelled.route, &*labelled.target);
        tracing::info!(event = "feedback_comment", request_id, id, consumer, route, target, comment);
    }
    let body = json!({"object": "feedback", "status": labelled.end.as_str()}).to_string();
    let mut head = ResponseHead::new(StatusCode::OK, 4);
    let _ = head.insert_header(header::CONTENT_TYPE, "application/json");
    send(session, exchange, head, Bytes::from(body)).await.map_err(|_| End::ClientGone)
}

/// Reads a label and the id that it is for.
async fn take(
    gateway: &Gateway,
    plan: &FeedbackPlan,
    within: Duration,
    session: &mut ClientSession,
    exchange: &mut Exchange,
) -> Result<(ReadLabel, String), End> {
    if session.req_header().method != Method::POST {
        return Err(not_post(session, exchange));
    }
    let limit = plan.route.max_body;
    limiting::before_body(Some(&plan.route), false, session, exchange).await?;
    hold_body(gateway, session, exchange, limit, within).await?;
    decode_body(session, exchange, limit).await?;
    let RequestBody::Held(held) = &exchange.body else { return Err(End::ClientGone) };
    let (body, off_loop) = (held.bytes.clone(), exchange.off_loop.clone());
    let read = off_loop.run(body.len(), || read(&body)).await?;
    read.map_err(|refusal| {
        plan.state.count(FeedbackEnd::Refused);
        End::refuse(refusal)
    })
}

/// Refusal of another method than POST.
fn not_post(session: &ClientSession, exchange: &Exchange) -> End {
    let method = &session.req_header().method;
    let message = format!("labels are sent with POST, not {method}");
    let (status, kind) = (StatusCode::METHOD_NOT_ALLOWED, ErrorKind::InvalidRequest);
    let refusal = Refusal::new(status, kind, "method_not_allowed", message);
    let id = exchange.request_id.to_str().unwrap_or_default();
    let rendered = protocol::render(&refusal, exchange.error_dialect(), id);
    let mut headers = rendered.headers;
    headers.push((header::ALLOW, HeaderValue::from_static("POST")));
    headers.push((header::CONTENT_TYPE, rendered.content_type));
    End::Answer(Box::new(Answer { status: rendered.status, headers, body: rendered.body }))
}

/// Caller whose request a label is about. Refuses to name another consumer without a scope.
fn owner(plan: &FeedbackPlan, read: &ReadLabel, exchange: &Exchange) -> Result<Owner, Refusal> {
    let own = exchange.caller.as_ref().map(|caller| caller.number);
    let scopes = exchange.caller_view().map_or(&[][..], |caller| caller.scopes);
    let may_label_all = plan.scopes.iter().any(|scope| scopes.iter().any(|own| **own == **scope));
    match &read.consumer {
        Some(name) if own == Some(number_of_consumer(name)) => Ok(Owner::Of(own)),
        Some(name) if may_label_all => Ok(Owner::Of(Some(number_of_consumer(name)))),
        Some(_) => {
            let message = "only callers whose token has one of the scopes of `feedback` may label the requests of another \
                           consumer; leave `consumer` out to label your own";
            let (status, kind) = (StatusCode::FORBIDDEN, ErrorKind::Permission);
            Err(Refusal::new(status, kind, "permission_denied", message).param("consumer"))
        }
        None if may_label_all => Ok(Owner::Anyone),
        None => Ok(Owner::Of(own)),
    }
}

fn refusal(error: &LabelError, read: &ReadLabel) -> Refusal {
    let id = if read.is_response { "response_id" } else { "request_id" };
    match error {
        // The same words for an id that never was, that is another consumer's, and whose time is over: nobody can probe.
        LabelError::Unknown => {
            let message = "no request of this caller with this id can be labelled: the id is not known, or it is too late, as \
                           only the latest requests are remembered and only for some time";
            Refusal::new(StatusCode::NOT_FOUND, ErrorKind::NotFound, "not_found", message).param(id)
        }
        LabelError::Ambiguous => {
            let message = "requests of several consumers have this id: name the one that is meant in `consumer`";
            let kind = ErrorKind::InvalidRequest;
            Refusal::new(StatusCode::CONFLICT, kind, "ambiguous_id", message).param("consumer")
        }
        LabelError::Mismatch { field, reason } => {
            Refusal::invalid("invalid_value", format!("`{field}` {reason}.")).param(*field)
        }
    }
}

/// Label as its request says it.
#[derive(Debug, Default, PartialEq)]
struct ReadLabel {
    label: NewLabel,
    /// True if the id is that of an answer.
    is_response: bool,
    /// Consumer that made the request, where the caller names it.
    consumer: Option<String>,
    comment: Option<String>,
}

/// Members of a body, each once.
struct Members(Vec<(&'static str, Value)>);

/// Mistake in the members of a body.
enum Mistake {
    Unknown(String),
    Twice(&'static str),
}

struct MembersVisitor<'m>(&'m mut Option<Mistake>);

impl<'de> Visitor<'de> for MembersVisitor<'_> {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members: Vec<(&'static str, Value)> = Vec::with_capacity(FIELDS.len());
        while let Some(name) = map.next_key::<String>()? {
            let known = FIELDS.into_iter().find(|field| *field == name);
            let mistake = match known {
                None => Mistake::Unknown(name),
                Some(field) if members.iter().any(|(known, _)| *known == field) => Mistake::Twice(field),
                Some(field) => {
                    members.push((field, map.next_value()?));
                    continue;
                }
            };
            *self.0 = Some(mistake);
            return Err(serde::de::Error::custom("refused"));
        }
        Ok(Members(members))
    }
}

/// Reads a body, with the id that it names.
fn read(body: &[u8]) -> Result<(ReadLabel, String), Refusal> {
    let mut members = members(body)?.0;
    let mut take = |name: &str| {
        let at = members.iter().position(|(member, _)| *member == name)?;
        Some(members.swap_remove(at).1).filter(|value| !value.is_null())
    };
    let request_id = take("request_id").map(|value| text("request_id", value, MAX_ID)).transpose()?;
    let response_id = take("response_id").map(|value| text("response_id", value, MAX_ID)).transpose()?;
    let is_response = response_id.is_some();
    let id = match (request_id, response_id) {
        (Some(id), None) | (None, Some(id)) => id,
        (None, None) => {
            let message = "`request_id` or `response_id` is missing: name the request, by its header `x-request-id` or by the \
                           `id` of its answer.";
            return Err(Refusal::invalid("missing_required_parameter", message).param("request_id"));
        }
        (Some(_), Some(_)) => {
            let message = "`request_id` and `response_id` are both there: send one of them.";
            return Err(Refusal::invalid("unsupported_parameter", message).param("response_id"));
        }
    };
    let label = NewLabel {
        score: take("score").map(|value| share("score", &value)).transpose()?,
        label: take("label").map(|value| text("label", value, MAX_LABEL)).transpose()?,
        predicted: take("predicted").map(|value| class_or_number("predicted", value)).transpose()?,
        expected: take("expected").map(|value| class_or_number("expected", value)).transpose()?,
        confidence: take("confidence").map(|value| share("confidence", &value)).transpose()?,
    };
    if label == NewLabel::default() {
        let message = "the body says nothing of the answer: send `score`, `label`, or `predicted` and `expected`.";
        return Err(Refusal::invalid("missing_required_parameter", message).param("score"));
    }
    let consumer = take("consumer").map(|value| text("consumer", value, MAX_ID)).transpose()?;
    let comment = take("comment").map(|value| comment(&value)).transpose()?;
    Ok((ReadLabel { label, is_response, consumer, comment }, id))
}

fn members(body: &[u8]) -> Result<Members, Refusal> {
    let (mut json, mut mistake) = (serde_json::Deserializer::from_slice(body), None);
    let read = json.deserialize_map(MembersVisitor(&mut mistake)).and_then(|members| json.end().map(|()| members));
    match (read, mistake) {
        (_, Some(Mistake::Unknown(name))) => {
            let shown = protocol::shown(&name);
            let message =
                format!("unknown field `{shown}`; expected one of {}.", FIELDS.map(|f| format!("`{f}`")).join(", "));
            Err(Refusal::invalid("unsupported_parameter", message).param(shown))
        }
        (_, Some(Mistake::Twice(name))) => {
            let message = format!("`{name}` appears more than once in the body.");
            Err(Refusal::invalid("duplicate_parameter", message).param(name))
        }
        (Ok(members), None) => Ok(members),
        // The library's message would repeat the value.
        (Err(error), None) if error.is_data() => {
            Err(Refusal::invalid("invalid_json", "The body must be a JSON object."))
        }
        (Err(error), None) => Err(Refusal::invalid("invalid_json", format!("The body is not valid JSON: {error}."))),
    }
}

/// Refusal of a value of another type.
fn wrong_type(field: &'static str, expected: &str) -> Refusal {
    Refusal::invalid("invalid_type", format!("`{field}` has a wrong type; expected {expected}.")).param(field)
}

/// A name: a string that is not empty, of at most `most` bytes and without control characters.
fn text(field: &'static str, value: Value, most: usize) -> Result<String, Refusal> {
    let Value::String(text) = value else { return Err(wrong_type(field, "a string")) };
    check_length(field, &text, most)?;
    if text.is_empty() || text.chars().any(char::is_control) {
        let message = format!("`{field}` is empty or has control characters; expected a name.");
        return Err(Refusal::invalid("invalid_value", message).param(field));
    }
    Ok(text)
}

fn check_length(field: &'static str, text: &str, most: usize) -> Result<(), Refusal> {
    if text.len() <= most {
        return Ok(());
    }
    let message = format!("`{field}` has {} bytes; expected at most {most}.", text.len());
    Err(Refusal::invalid("string_above_max_length", message).param(field))
}

fn comment(value: &Value) -> Result<String, Refusal> {
    let text = value.as_str().ok_or_else(|| wrong_type("comment", "a string"))?;
    check_length("comment", text, MAX_COMMENT)?;
    Ok(text.to_owned())
}

/// A number from 0 to 1.
fn share(field: &'static str, value: &Value) -> Result<f64, Refusal> {
    let Value::Number(number) = value else { return Err(wrong_type(field, "a number from 0 to 1")) };
    number.as_f64().filter(|number| (0.0..=1.0).contains(number)).ok_or_else(|| {
        Refusal::invalid("invalid_value", format!("`{field}` is {number}; expected a number from 0 to 1.")).param(field)
    })
}

/// An answer: the name of a class, or a number. `true` and `false` are classes of these names.
fn class_or_number(field: &'static str, value: Value) -> Result<feedback::Answer, Refusal> {
    match value {
        Value::Bool(yes) => Ok(feedback::Answer::Class(yes.to_string())),
        Value::Number(number) => match number.as_f64().filter(|number| number.is_finite()) {
            Some(number) => Ok(feedback::Answer::Number(number)),
            None => Err(Refusal::invalid("invalid_value", format!("`{field}` is no finite number.")).param(field)),
        },
        Value::String(_) => text(field, value, MAX_NAME).map(feedback::Answer::Class),
        _ => Err(wrong_type(field, "a string, which is a class, or a number")),
    }
}

/// Remembers a request that has ended, if a target of its route has answered it.
/// `unit` is the one of the rollout that the request had a part in.
pub(super) fn remember(labels: &RouteLabels, unit: Option<u64>, exchange: &Exchange) {
    let outcome = &exchange.outcome;
    let (ServedBy::Backend(served_by) | ServedBy::Model(served_by)) = &outcome.served_by else { return };
    if !(200..300).contains(&outcome.status) || outcome.reported.is_some() {
        return;
    }
    let consumer = exchange.caller.as_ref().map(|caller| caller.number);
    let responses = [outcome.response_id.as_deref(), outcome.shown_id.as_deref()];
    let ids = Ids { consumer, request: exchange.request_id.as_bytes(), responses };
    labels.remember(served_by, ids, unit.unwrap_or_else(rand::random), clock::now_millis());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mistake_in_a_body_is_named_with_its_field() {
        let nested = format!(r#"{{"request_id":"r","score":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
        let long = format!(r#"{{"request_id":"r","label":"{}"}}"#, "x".repeat(65));
        for (body, code, param) in [
            ("", "invalid_json", None),
            ("[]", "invalid_json", None),
            ("{\"request_id\":\"r\"", "invalid_json", None),
            (r#"{"request_id":"r","score":1} x"#, "invalid_json", None),
            (&nested, "invalid_json", None),
            (r#"{"request_id":"r","score":1,"scroe":1}"#, "unsupported_parameter", Some("scroe")),
            (r#"{"request_id":"r","score":1,"score":0}"#, "duplicate_parameter", Some("score")),
            (r#"{"score":1}"#, "missing_required_parameter", Some("request_id")),
            (r#"{"request_id":"r","response_id":"c","score":1}"#, "unsupported_parameter", Some("response_id")),
            (r#"{"request_id":"r"}"#, "missing_required_parameter", Some("score")),
            (r#"{"request_id":"r","comment":"good"}"#, "missing_required_parameter", Some("score")),
            (r#"{"request_id":7,"score":1}"#, "invalid_type", Some("request_id")),
            (r#"{"request_id":"","score":1}"#, "invalid_value", Some("request_id")),
            (r#"{"request_id":"r","score":"1"}"#, "invalid_type", Some("score")),
            (r#"{"request_id":"r","score":true}"#, "invalid_type", Some("score")),
            (r#"{"request_id":"r","score":1.01}"#, "invalid_value", Some("score")),
            (r#"{"request_id":"r","score":-1e-9}"#, "invalid_value", Some("score")),
            (r#"{"request_id":"r","confidence":2,"predicted":"a"}"#, "invalid_value", Some("confidence")),
            (r#"{"request_id":"r","label":"a\u0000"}"#, "invalid_value", Some("label")),
            (r#"{"request_id":"r","expected":["a"]}"#, "invalid_type", Some("expected")),
            (r#"{"request_id":"r","predicted":{}}"#, "invalid_type", Some("predicted")),
            (&long, "string_above_max_length", Some("label")),
        ] {
            let refused = read(body.as_bytes()).unwrap_err();
            assert_eq!((refused.code, refused.param.as_deref()), (code, param), "{body}: {}", refused.message);
        }
    }

    #[test]
    fn a_body_says_what_it_says() {
        let body = br#"{"response_id":"chatcmpl-1","score":0.5,"predicted":true,"expected":"yes","confidence":null}"#;
        let (read, id) = read(body).unwrap();
        assert_eq!((id.as_str(), read.is_response, read.label.score), ("chatcmpl-1", true, Some(0.5)));
        assert_eq!(read.label.predicted, Some(feedback::Answer::Class("true".to_owned())));
        assert_eq!((read.label.confidence, read.comment), (None, None));
    }
}
