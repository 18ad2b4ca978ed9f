//! Comparison of two answers to the same request. Texts are the same if their words are, JSON if its values are, and numbers
//! within a tolerance; marks of one answer alone, such as its id and time, are left out.

use http::HeaderValue;
use serde_json::Value;

use super::given::{Arguments, Call, Given};
use crate::protocol::oip::{TensorElements, TensorValues, length_field, read_values};

/// Members of an answer of a model API that are its own, whatever it says.
const OWN_MEMBERS: [&str; 14] = [
    "id",
    "object",
    "model",
    "created",
    "created_at",
    "system_fingerprint",
    "service_tier",
    "usage",
    "timings",
    "total_duration",
    "load_duration",
    "prompt_eval_duration",
    "prompt_eval_count",
    "model_version",
];

/// Kind of the answers of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerKind {
    /// Text and tool calls of a model.
    Text,
    /// Tensors of the Open Inference Protocol.
    Tensors,
    /// Vectors, ranks and the like of a model.
    Values,
    /// Anything of a plain server.
    Plain,
}

/// Body of an answer, decoded, with the length of its JSON where it says one.
pub(super) struct Body<'b> {
    pub bytes: &'b [u8],
    pub json: Option<&'b HeaderValue>,
    pub given: Option<&'b Given>,
}

/// Finding about two answers.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Finding {
    /// They say the same.
    Same,
    /// They do not.
    Different,
    /// Only their words differ, and these are their texts.
    Words(String, String),
}

/// Compares the bodies of two answers of success. `tolerance` is in parts of the greater of two numbers.
pub(super) fn compare(kind: AnswerKind, stable: &Body<'_>, candidate: &Body<'_>, tolerance: f64) -> Finding {
    let is_same = match kind {
        AnswerKind::Text => match (stable.given, candidate.given) {
            (Some(stable), Some(candidate)) => return texts(stable, candidate, tolerance),
            (None, None) => values(stable.bytes, candidate.bytes, &OWN_MEMBERS, tolerance),
            _ => false,
        },
        AnswerKind::Tensors => {
            let read = |body: &Body<'_>| read_values(false, true, &length_field(body.json), body.bytes);
            match (read(stable), read(candidate)) {
                (Some(stable), Some(candidate)) => same_tensors(&stable, &candidate, tolerance),
                (None, None) => stable.bytes == candidate.bytes,
                _ => false,
            }
        }
        AnswerKind::Values => values(stable.bytes, candidate.bytes, &OWN_MEMBERS, tolerance),
        AnswerKind::Plain => values(stable.bytes, candidate.bytes, &[], tolerance),
    };
    if is_same { Finding::Same } else { Finding::Different }
}

fn texts(stable: &Given, candidate: &Given, tolerance: f64) -> Finding {
    let (mut one, mut other) = (String::new(), String::new());
    let mut is_same = stable.0.len() == candidate.0.len();
    for ((index, stable), (place, candidate)) in stable.0.iter().zip(&candidate.0) {
        let calls = || stable.calls.values().zip(candidate.calls.values());
        if index != place
            || stable.is_refusal != candidate.is_refusal
            || stable.calls.len() != candidate.calls.len()
            || !calls().all(|(stable, candidate)| same_call(stable, candidate, tolerance))
        {
            return Finding::Different;
        }
        is_same &= same_text(&stable.text, &candidate.text, tolerance);
        one.push_str(&stable.text);
        other.push_str(&candidate.text);
    }
    match is_same {
        true => Finding::Same,
        false if stable.0.len() == candidate.0.len() => Finding::Words(one, other),
        false => Finding::Different,
    }
}

fn same_call(stable: &Call, candidate: &Call, tolerance: f64) -> bool {
    let value = |arguments: &Arguments| match arguments {
        Arguments::Value(value) => Some(value.clone()),
        Arguments::Text(text) => serde_json::from_str(text).ok(),
        Arguments::Free(_) => None,
    };
    stable.name == candidate.name
        && match (value(&stable.arguments), value(&candidate.arguments)) {
            (Some(stable), Some(candidate)) => same(&stable, &candidate, tolerance),
            _ => stable.arguments == candidate.arguments,
        }
}

/// True for texts with the same words, and for the same JSON.
fn same_text(stable: &str, candidate: &str, tolerance: f64) -> bool {
    if stable.split_whitespace().eq(candidate.split_whitespace()) {
        return true;
    }
    let value =
        |text: &str| serde_json::from_str::<Value>(text).ok().filter(|value| value.is_object() || value.is_array());
    match (value(stable), value(candidate)) {
        (Some(stable), Some(candidate)) => same(&stable, &candidate, tolerance),
        _ => false,
    }
}

/// True for the same bytes, and for the same JSON but for these members.
fn values(stable: &[u8], candidate: &[u8], but: &[&str], tolerance: f64) -> bool {
    if stable == candidate {
        return true;
    }
    let value = |body: &[u8]| {
        let mut value: Value = serde_json::from_slice(body).ok()?;
        if let Value::Object(map) = &mut value {
            map.retain(|key, _| !but.contains(&key.as_str()));
        }
        Some(value)
    };
    match (value(stable), value(candidate)) {
        (Some(stable), Some(candidate)) => same(&stable, &candidate, tolerance),
        _ => false,
    }
}

fn same(stable: &Value, candidate: &Value, tolerance: f64) -> bool {
    match (stable, candidate) {
        (Value::Number(one), Value::Number(other)) => {
            one == other
                || matches!((one.as_f64(), other.as_f64()), (Some(one), Some(other)) if is_close(one, other, 0.0, tolerance))
        }
        (Value::Array(one), Value::Array(other)) => {
            let numbers = |list: &[Value]| list.iter().map(Value::as_f64).collect::<Option<Vec<f64>>>();
            match (numbers(one), numbers(other)) {
                (Some(one), Some(other)) => same_numbers(&one, &other, tolerance),
                _ => one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other, tolerance)),
            }
        }
        (Value::Object(one), Value::Object(other)) => {
            one.len() == other.len()
                && one.iter().all(|(key, one)| other.get(key).is_some_and(|other| same(one, other, tolerance)))
        }
        _ => stable == candidate,
    }
}

/// True for numbers that are as far apart as the tolerance allows, in parts of the greatest of all: of a vector, a small number
/// says no more than its difference.
fn same_numbers(one: &[f64], other: &[f64], tolerance: f64) -> bool {
    let greatest =
        one.iter().chain(other).filter(|value| value.is_finite()).fold(0.0, |most: f64, value| most.max(value.abs()));
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| is_close(*one, *other, greatest, tolerance))
}

fn is_close(one: f64, other: f64, greatest: f64, tolerance: f64) -> bool {
    one == other
        || (one.is_nan() && other.is_nan())
        || (one - other).abs() <= tolerance * one.abs().max(other.abs()).max(greatest)
}

fn same_tensors(stable: &[TensorValues], candidate: &[TensorValues], tolerance: f64) -> bool {
    stable.len() == candidate.len()
        && stable.iter().all(|one| {
            let other = candidate.iter().find(|other| other.name == one.name);
            other.is_some_and(|other| {
                one.shape == other.shape
                    && match (&one.elements, &other.elements) {
                        (TensorElements::Numbers(one), TensorElements::Numbers(other)) => {
                            same_numbers(one, other, tolerance)
                        }
                        (one, other) => one == other,
                    }
            })
        })
}

/// Cosine of two vectors; 0 where one of them has no direction.
pub(super) fn cosine(one: &[f32], other: &[f32]) -> f64 {
    let product = |one: &[f32], other: &[f32]| -> f64 {
        one.iter().zip(other).map(|(one, other)| f64::from(*one) * f64::from(*other)).sum()
    };
    let lengths = (product(one, one) * product(other, other)).sqrt();
    if lengths > 0.0 { product(one, other) / lengths } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn compared(kind: AnswerKind, stable: &str, candidate: &str) -> Finding {
        let given = |text: &str| if kind == AnswerKind::Text { Given::read(text.as_bytes()) } else { None };
        let (one, other) = (given(stable), given(candidate));
        let body = |bytes: &'static [u8], given| Body { bytes, json: None, given };
        // Leaked: a test's texts may live on.
        let leak = |text: &str| -> &'static [u8] { Box::leak(text.to_owned().into_boxed_str()).as_bytes() };
        compare(kind, &body(leak(stable), one.as_ref()), &body(leak(candidate), other.as_ref()), 0.01)
    }

    fn said(text: &str) -> String {
        json!({"id": text, "choices": [{"message": {"content": text}}]}).to_string()
    }

    #[test]
    fn texts_are_compared_by_their_words_and_json_by_its_values() {
        let text = |one: &str, other: &str| compared(AnswerKind::Text, &said(one), &said(other));
        assert_eq!(text("Hello  you.\n", " Hello you."), Finding::Same);
        assert_eq!(text("{\"a\": 1, \"b\": [1.0]}", "{\"b\": [1.001], \"a\": 1}"), Finding::Same);
        assert_eq!(text("Hello you.", "Hello."), Finding::Words("Hello you.".to_owned(), "Hello.".to_owned()));
        assert!(matches!(text("{\"a\": 1}", "{\"a\": 2}"), Finding::Words(..)));
        let stream = "data: {\"choices\":[{\"delta\":{\"content\":\"Hello \"}}]}\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"you.\"}}]}\n\n";
        assert_eq!(compared(AnswerKind::Text, stream, &said("Hello you.")), Finding::Same);
        let calls = |arguments: &str| {
            json!({"choices": [{"message": {"tool_calls": [{"id": arguments, "function": {"name": "f", "arguments": arguments}}]}}]}).to_string()
        };
        assert_eq!(compared(AnswerKind::Text, &calls("{\"a\": 1}"), &calls("{ \"a\":1 }")), Finding::Same);
        assert_eq!(compared(AnswerKind::Text, &calls("{\"a\": 1}"), &calls("{\"a\": 2}")), Finding::Different);
        assert_eq!(compared(AnswerKind::Text, &calls("{}"), &said("{}")), Finding::Different);
    }

    #[test]
    fn tensors_are_compared_by_their_fields_and_numbers() {
        let tensor = |name: &str, shape: Value, data: Value| {
            json!({"model_name": name, "id": "x", "outputs": [{"name": name, "datatype": "FP32", "shape": shape, "data": data}]}).to_string()
        };
        let one = tensor("y", json!([1, 3]), json!([0.9, 0.1, 1e-9]));
        for (other, finding) in [
            (tensor("y", json!([1, 3]), json!([0.901, 0.1, 0.0])), Finding::Same),
            (tensor("y", json!([1, 3]), json!([0.7, 0.3, 0.0])), Finding::Different),
            (tensor("y", json!([3]), json!([0.9, 0.1, 1e-9])), Finding::Different),
            (tensor("z", json!([1, 3]), json!([0.9, 0.1, 1e-9])), Finding::Different),
            ("{}".to_owned(), Finding::Different),
        ] {
            assert_eq!(compared(AnswerKind::Tensors, &one, &other), finding, "{other}");
        }
        let class = |class: &str| {
            json!({"outputs": [{"name": "c", "datatype": "BYTES", "shape": [1], "data": [class]}]}).to_string()
        };
        assert_eq!(compared(AnswerKind::Tensors, &class("cat"), &class("cat")), Finding::Same);
        assert_eq!(compared(AnswerKind::Tensors, &class("cat"), &class("dog")), Finding::Different);
    }

    #[test]
    fn other_answers_are_compared_as_they_are() {
        let vectors = |first: f64, id: &str| {
            json!({"id": id, "data": [{"embedding": [first, 1e-6]}], "usage": {"total_tokens": id}}).to_string()
        };
        assert_eq!(compared(AnswerKind::Values, &vectors(1.0, "a"), &vectors(1.001, "b")), Finding::Same);
        assert_eq!(compared(AnswerKind::Values, &vectors(1.0, "a"), &vectors(0.5, "b")), Finding::Different);
        assert_eq!(compared(AnswerKind::Plain, "ok", "ok"), Finding::Same);
        assert_eq!(compared(AnswerKind::Plain, "ok", "no"), Finding::Different);
        assert_eq!(compared(AnswerKind::Plain, "{\"id\": 1}", "{\"id\":1.0}"), Finding::Same);
        assert_eq!(compared(AnswerKind::Plain, "{\"id\": 1}", "{\"id\": 2}"), Finding::Different);
        assert!((cosine(&[1.0, 0.0], &[1.0, 1.0]) - 0.5_f64.sqrt()).abs() < 1e-9);
        assert_eq!(cosine(&[0.0], &[1.0]), 0.0);
    }
}
