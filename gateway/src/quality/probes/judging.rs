//! Judgement of answers to probes: by the values at JSON pointers, or by the embedding of their text.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use serde_json::Value;

use super::course::Outcome;
use super::file::{Probe, Wanted};
use super::{ProbeAnswer, ProbePlan};
use crate::builtin::{LoadedModel, idle_vector};
use crate::coding::Coding;
use crate::quality::texts::Said;

/// Longest time that an answer waits for the model for embeddings to have nothing else to do.
const PATIENCE: Duration = Duration::from_secs(30);
/// Time between two looks at whether it has.
const LOOK: Duration = Duration::from_millis(250);
/// Most bytes of an answer after decoding.
const MOST_DECODED: usize = 1 << 20;
/// Characters of a value that a reason shows.
const SHOWN: usize = 80;

/// Judges an answer to the probe at a place of the plan.
pub(super) async fn judge(plan: &ProbePlan, place: usize, probe: &Probe, answer: &ProbeAnswer) -> Outcome {
    let status = answer.status;
    if status >= 500 || [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS].iter().any(|s| *s == status) {
        return Outcome::Unanswered(format!("status {status}"));
    }
    if !(200..300).contains(&status) {
        return Outcome::Wrong(format!("status {status}"));
    }
    let Some(body) = plain(answer) else {
        return Outcome::Unanswered(
            "the answer broke off, or is too long or in a coding that cannot be read".to_owned(),
        );
    };
    match &probe.wanted {
        Wanted::Exact(fields) => exact(&body, fields),
        Wanted::Similar(expected) => similar(plan, place, expected, &body).await,
    }
}

/// Body of an answer without its coding, and of tensors its JSON alone; `None` for one that is not there to its end.
fn plain(answer: &ProbeAnswer) -> Option<Vec<u8>> {
    if answer.is_cut {
        return None;
    }
    let mut body = match answer.coding {
        Coding::Identity => answer.body.clone(),
        coding => coding.decode(&answer.body, MOST_DECODED).ok()?,
    };
    if let Some(length) = &answer.json {
        body.truncate(length.to_str().ok()?.trim().parse().ok()?);
    }
    Some(body)
}

/// Values of an answer's fields that the server says about itself.
pub(super) fn fingerprint(answer: &ProbeAnswer) -> Option<String> {
    let body = plain(answer)?;
    let of = |json: &[u8]| {
        let value: Value = serde_json::from_slice(json).ok()?;
        Some(value.get("system_fingerprint")?.as_str()?.to_owned())
    };
    of(&body).or_else(|| {
        let lines = body.split(|byte| *byte == b'\n');
        lines.filter_map(|line| of(line.strip_prefix(b"data:")?)).next()
    })
}

fn is_same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        // 4 and 4.0 are one number.
        (Value::Number(one), Value::Number(other)) => one == other || one.as_f64() == other.as_f64(),
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, value)| other.get(key).is_some_and(|other| is_same(value, other)))
        }
        (one, other) => one == other,
    }
}

fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Judges an answer by the values at JSON pointers.
pub(in crate::quality) fn exact(body: &[u8], fields: &[(String, Value)]) -> Outcome {
    let Ok(answer) = serde_json::from_slice::<Value>(body) else {
        return Outcome::Wrong("the answer is not one value of JSON".to_owned());
    };
    let wrong = fields.iter().find_map(|(pointer, expected)| match answer.pointer(pointer) {
        None => Some(format!("{pointer} is not there, expected {}", shown(expected))),
        Some(found) if !is_same(found, expected) => {
            Some(format!("{pointer} is {}, expected {}", shown(found), shown(expected)))
        }
        Some(_) => None,
    });
    wrong.map_or(Outcome::Exact, Outcome::Wrong)
}

async fn similar(plan: &ProbePlan, place: usize, expected: &str, body: &[u8]) -> Outcome {
    let said = Said::read(body).text.start;
    if said.trim().is_empty() {
        return Outcome::Wrong("the answer has no text".to_owned());
    }
    let Some(model) = &plan.embedder else { return Outcome::Unjudged("there is no model for embeddings") };
    let until = Instant::now() + PATIENCE;
    let known = plan.expected.lock().get(&place).cloned();
    let expected = match known {
        Some(known) => known,
        None => match vector(model, expected, until).await {
            Some(vector) => {
                let vector: Arc<[f32]> = vector.into();
                plan.expected.lock().insert(place, vector.clone());
                vector
            }
            None => return BUSY,
        },
    };
    let Some(vector) = vector(model, &said, until).await else { return BUSY };
    cosine(&expected, &vector).map_or(Outcome::Unjudged("the model for embeddings made no vector"), Outcome::Similar)
}

/// Outcome of an answer for whose comparison there was no time.
const BUSY: Outcome = Outcome::Unjudged("the model for embeddings is not loaded, or has no time");

/// Embedding of a text as soon as the model has nothing else to do.
async fn vector(model: &Arc<LoadedModel>, text: &str, until: Instant) -> Option<Vec<f32>> {
    loop {
        if let Some(vector) = idle_vector(model, text.to_owned(), until).await {
            return Some(vector);
        }
        if Instant::now() + LOOK >= until {
            return None;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Cosine of two vectors; `None` where one has no direction, or they have different lengths.
fn cosine(one: &[f32], other: &[f32]) -> Option<f64> {
    if one.len() != other.len() {
        return None;
    }
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let cosine = dot(one, other) / (dot(one, one) * dot(other, other)).sqrt();
    cosine.is_finite().then(|| cosine.clamp(-1.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_are_compared_by_what_they_mean() {
        let body = json!({"outputs": [{"data": [1.0, 2]}], "a/b": "x", "long": "y".repeat(200)}).to_string();
        let outcome = |pointer: &str, value: Value| exact(body.as_bytes(), &[(pointer.to_owned(), value)]);
        assert_eq!(outcome("/outputs/0/data", json!([1, 2.0])), Outcome::Exact);
        assert_eq!(outcome("/a~1b", json!("x")), Outcome::Exact);
        assert_eq!(
            outcome("/outputs/0/data/0", json!(3)),
            Outcome::Wrong("/outputs/0/data/0 is 1.0, expected 3".into())
        );
        assert_eq!(outcome("/none", json!(null)), Outcome::Wrong("/none is not there, expected null".into()));
        let Outcome::Wrong(reason) = outcome("/long", json!("z")) else { panic!("it differs") };
        assert!(reason.len() < 120, "{reason}");
        assert_eq!(exact(b"data: {}", &[]), Outcome::Wrong("the answer is not one value of JSON".into()));
    }

    #[test]
    fn a_cosine_has_a_direction_or_is_none() {
        assert_eq!(cosine(&[1.0, 0.0], &[2.0, 0.0]), Some(1.0));
        assert_eq!(cosine(&[1.0, 0.0], &[0.0, 1.0]), Some(0.0));
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 1.0]), None);
        assert_eq!(cosine(&[1.0], &[0.0, 1.0]), None);
    }

    #[test]
    fn a_fingerprint_is_read_from_values_and_streams() {
        let answer = |body: &str| ProbeAnswer {
            status: 200,
            body: body.into(),
            is_cut: false,
            coding: Coding::Identity,
            json: None,
            asked: None,
            model: None,
            tokens: None,
            took: Duration::ZERO,
        };
        assert_eq!(fingerprint(&answer("{\"system_fingerprint\": \"fp\"}")).as_deref(), Some("fp"));
        let stream = "data: {\"choices\": []}\n\ndata: {\"system_fingerprint\": \"fp\"}\n\ndata: [DONE]\n\n";
        assert_eq!(fingerprint(&answer(stream)).as_deref(), Some("fp"));
        assert_eq!(fingerprint(&answer("{\"system_fingerprint\": null}")), None);
    }
}
