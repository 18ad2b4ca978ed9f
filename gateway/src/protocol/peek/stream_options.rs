//! Edit by which a request for an event stream asks for the usage at its end (`stream_options.include_usage`, as in OpenAI's
//! API). The body itself is not written anew: the edit says what to put in place of which bytes.

use std::ops::Range;

use super::scan::{Scan, ValueKind};

/// Other text in place of a range of a body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BodyEdit {
    /// The range; an empty one where text is inserted.
    pub at: Range<usize>,
    /// The text.
    pub text: &'static str,
}

/// Edit of a body without the options, which has other members; `begin` is the place of its first one.
pub(super) fn of_body(begin: usize) -> BodyEdit {
    BodyEdit { at: begin..begin, text: "\"stream_options\":{\"include_usage\":true}," }
}

/// Edit of the options at `at` in a body, whose value is of this kind. `None` where they ask already, or are not what servers
/// read: the server then answers what it makes of them.
pub(super) fn of_options(options: &[u8], at: Range<usize>, kind: ValueKind) -> Option<BodyEdit> {
    match kind {
        ValueKind::Null => Some(BodyEdit { at, text: "{\"include_usage\":true}" }),
        ValueKind::Object => of_object(options, at.start),
        _ => None,
    }
}

fn of_object(options: &[u8], offset: usize) -> Option<BodyEdit> {
    let mut scan = Scan::new(options).ok()?;
    scan.enter().ok()?;
    let begin = scan.at();
    let (mut found, mut is_empty) = (None, true);
    while let Some((name, has_escapes)) = scan.name(is_empty).ok()? {
        is_empty = false;
        let is_wanted = scan.text(name, has_escapes).is_some_and(|name| name == "include_usage");
        scan.next();
        let start = scan.at();
        let kind = scan.skip().ok()?;
        // Of two, servers could read either.
        if is_wanted && found.replace((start..scan.at(), kind)).is_some() {
            return None;
        }
    }
    let (at, text) = match found {
        None if is_empty => (begin..begin, "\"include_usage\":true"),
        None => (begin..begin, "\"include_usage\":true,"),
        Some((at, ValueKind::Null | ValueKind::Bool(false))) => (at, "true"),
        Some(_) => return None,
    };
    Some(BodyEdit { at: at.start + offset..at.end + offset, text })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::peek;

    /// Body as a server gets it, `None` where it stays as it is.
    fn edited(body: &str) -> Option<String> {
        let edit = peek(body.as_bytes(), true).unwrap().usage_edit?;
        Some(format!("{}{}{}", &body[..edit.at.start], edit.text, &body[edit.at.end..]))
    }

    #[test]
    fn a_stream_asks_for_its_usage_and_for_nothing_else_that_it_did_not() {
        for (body, sent) in [
            (r#"{"stream":true}"#, Some(r#"{"stream_options":{"include_usage":true},"stream":true}"#)),
            (r#" { "stream":true}"#, Some(r#" {"stream_options":{"include_usage":true}, "stream":true}"#)),
            (
                r#"{"stream_options":null,"stream":true}"#,
                Some(r#"{"stream_options":{"include_usage":true},"stream":true}"#),
            ),
            (
                r#"{"stream_options": { },"stream":true}"#,
                Some(r#"{"stream_options": {"include_usage":true },"stream":true}"#),
            ),
            (
                r#"{"stream":true,"stream_options":{"include_obfuscation":false}}"#,
                Some(r#"{"stream":true,"stream_options":{"include_usage":true,"include_obfuscation":false}}"#),
            ),
            (
                r#"{"stream":true,"stream_options":{"a":[1], "include_us\u0061ge": false}}"#,
                Some(r#"{"stream":true,"stream_options":{"a":[1], "include_us\u0061ge": true}}"#),
            ),
            (
                r#"{"stream":true,"stream_options":{"include_usage":null}}"#,
                Some(r#"{"stream":true,"stream_options":{"include_usage":true}}"#),
            ),
            (r#"{"stream":true,"stream_options":{"include_usage":true}}"#, None),
            (r#"{"stream":true,"stream_options":{"include_usage":1}}"#, None),
            (r#"{"stream":true,"stream_options":{"include_usage":false,"include_usage":false}}"#, None),
            (r#"{"stream":true,"stream_options":[]}"#, None),
            (r#"{"stream":true,"stream_options":"x"}"#, None),
            (r#"{"stream":false}"#, None),
            (r#"{"stream_options":{}}"#, None),
            ("{}", None),
        ] {
            assert_eq!(edited(body).as_deref(), sent, "{body}");
        }
    }

    proptest! {
        #[test]
        fn an_edited_body_says_the_same_and_asks(
            options in prop_oneof![
                Just(None),
                Just(Some(Value::Null)),
                proptest::collection::btree_map("include_usage|[a-z]{0,3}", prop_oneof![
                    Just(json!(false)), Just(Value::Null), Just(json!(true)), Just(json!({"a": [{}]})),
                ], 0..3).prop_map(|options| Some(json!(options))),
            ],
            pretty in any::<bool>(),
        ) {
            let mut body = json!({"model": "m", "stream": true});
            if let Some(options) = options {
                body["stream_options"] = options;
            }
            let text = if pretty { serde_json::to_string_pretty(&body) } else { serde_json::to_string(&body) }.unwrap();
            let mut expected = body.clone();
            if !expected["stream_options"].is_object() {
                expected["stream_options"] = json!({});
            }
            let asked = &mut expected["stream_options"]["include_usage"];
            let is_edited = asked.is_null() || *asked == false;
            if is_edited {
                *asked = true.into();
            }
            match edited(&text) {
                Some(text) => prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected),
                None => prop_assert!(!is_edited),
            }
        }
    }
}
