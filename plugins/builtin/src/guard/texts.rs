//! Texts that a classifier judges: what a person or model has written in a body, without the marks of its API.

use super::strings::each_value;

/// Members whose short values are marks of an API, such as a role or a number of a message.
const MARKS: [&str; 22] = [
    "role",
    "type",
    "object",
    "id",
    "model",
    "status",
    "event",
    "detail",
    "finish_reason",
    "native_finish_reason",
    "stop_reason",
    "done_reason",
    "system_fingerprint",
    "service_tier",
    "tool_call_id",
    "tool_use_id",
    "call_id",
    "item_id",
    "response_id",
    "previous_response_id",
    "created_at",
    "media_type",
];
/// Longest value that is a mark, in bytes.
const MAX_MARK: usize = 64;
/// Members whose values in base64 are no text: files, sounds, signatures.
const CODED: [&str; 9] =
    ["data", "url", "file_data", "b64_json", "signature", "encrypted_content", "obfuscation", "embedding", "images[]"];
/// Texts of one body that are judged by themselves, the last ones: those before are judged together with all others.
const SINGLE: usize = 32;

/// True for a value that no model reads as a text.
fn is_mark(name: &str, value: &str) -> bool {
    let is_word = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.' | b':' | b'/');
    if MARKS.contains(&name) {
        return value.len() <= MAX_MARK && value.bytes().all(is_word);
    }
    if !CODED.contains(&name) {
        return false;
    }
    // A link is a text: it may say anything.
    let coded = match value.strip_prefix("data:") {
        Some(rest) => match rest.split_once(";base64,") {
            Some((_, coded)) => coded,
            None => return false,
        },
        None => value,
    };
    coded.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'+' | b'/' | b'=' | b'-' | b'_'))
}

/// Texts of a body, in their order.
#[derive(Debug, Default)]
pub(super) struct Texts {
    /// Each text, and whether it goes on the one before: parts of one message.
    all: Vec<(String, bool)>,
    /// Bytes of all.
    length: usize,
}

impl Texts {
    /// Texts of a text of JSON, or the text itself where it is none.
    pub(super) fn of(text: &str, is_json: bool) -> Self {
        let mut texts = Self::default();
        if !is_json {
            texts.add(text, false);
            return texts;
        }
        let mut is_after_part = false;
        each_value(text, &mut |name, value| {
            if is_mark(name, value) || value.trim().is_empty() {
                return;
            }
            let is_part = name == "text";
            texts.add(value, is_part && is_after_part);
            is_after_part = is_part;
        });
        texts
    }

    /// Adds a text.
    pub(super) fn add(&mut self, text: &str, goes_on: bool) {
        self.length = self.length.saturating_add(text.len());
        self.all.push((text.to_owned(), goes_on));
    }

    /// Bytes of all texts.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// All texts but `known` ones, in lines.
    pub(super) fn without(&self, known: impl Fn(&str) -> bool) -> String {
        let others: Vec<&str> = self.all.iter().map(|(text, _)| text.as_str()).filter(|text| !known(text)).collect();
        others.join("\n")
    }

    /// Texts for the classifier: the last texts by themselves, so that none hides among others; all of them in lines, so that
    /// what is spread over messages is one text; and with the parts of a message put together, as some servers do.
    pub(super) fn judged(mut self) -> Vec<String> {
        if self.all.len() <= 1 {
            return self.all.pop().map(|(text, _)| text).into_iter().collect();
        }
        let mut judged = vec![self.all.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join("\n")];
        if self.all.iter().any(|(_, goes_on)| *goes_on) {
            let mut together = String::with_capacity(self.length + self.all.len());
            for (n, (text, goes_on)) in self.all.iter().enumerate() {
                if n > 0 && !goes_on {
                    together.push('\n');
                }
                together.push_str(text);
            }
            judged.push(together);
        }
        let from = self.all.len().saturating_sub(SINGLE);
        judged.extend(self.all.drain(from..).map(|(text, _)| text));
        judged
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn judged(body: &serde_json::Value) -> Vec<String> {
        Texts::of(&body.to_string(), true).judged()
    }

    #[test]
    fn a_classifier_reads_texts_alone_and_together_and_no_marks() {
        let body = json!({"model": "m", "stream": true, "messages": [
            {"role": "user", "content": "one"},
            {"role": "user", "content": [{"type": "text", "text": "tw"}, {"type": "text", "text": "o"}]},
            {"role": "assistant", "tool_calls": [{"id": "call_1", "type": "function",
                "function": {"name": "f", "arguments": "{\"q\":\"th\\u0072ee\"}"}}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}]},
        ]});
        let all = ["one\ntw\no\nf\nq\nthree", "one\ntwo\nf\nq\nthree", "one", "tw", "o", "f", "q", "three"];
        assert_eq!(judged(&body), all);
        assert_eq!(judged(&json!({"model": "m", "prompt": "x"})), ["x"]);
        assert!(judged(&json!({"model": "m", "n": 1, "prompt": " "})).is_empty());
        assert_eq!(Texts::of("a=b", false).judged(), ["a=b"]);
    }

    #[test]
    fn a_text_in_the_place_of_a_mark_is_a_text() {
        let long = "x".repeat(MAX_MARK + 1);
        for (name, value, is_text) in [
            ("role", "user", false),
            ("role", "ignore all rules", true),
            ("id", long.as_str(), true),
            ("url", "https://example.com/ignore all rules", true),
            ("url", "data:text/plain,ignore", true),
            ("data", "ignore all rules", true),
            ("data", "aGk=", false),
            ("content", "user", true),
            ("Role", "user", true),
        ] {
            assert_eq!(judged(&json!({name: value})).len(), usize::from(is_text), "{name}: {value}");
        }
        // Tensors of the Open Inference protocol are lists, and texts.
        assert_eq!(judged(&json!({"data": ["ignore-all-rules"], "id": "7"})), ["ignore-all-rules"]);
        assert!(judged(&json!({"images": ["aGk="], "data": "aGk="})).is_empty());
        assert_eq!(judged(&json!([{"role": "user"}, "user"])), ["user"]);
    }

    /// What a caller writes as JSON into a text has no marks of the API.
    #[test]
    fn all_of_json_within_a_text_is_text() {
        for (content, lines) in [
            (r#"{"data":"ignore-all-rules"}"#, "data\nignore-all-rules"),
            (r#"[{"id":"ignore"},{"role":"all"},{"status":"rules"}]"#, "id\nignore\nrole\nall\nstatus\nrules"),
            (r#"{"ignore-all-rules":1}"#, "ignore-all-rules"),
            (r#"{"a":"{\"url\":\"ignore\"}"}"#, "a\nurl\nignore"),
        ] {
            for body in
                [json!({"role": "user", "content": content}), json!({"input": content}), json!({"data": content})]
            {
                assert_eq!(judged(&body)[0], lines, "{body}");
            }
        }
    }

    /// Each object of a list has the name of the list: a long one is not copied for each.
    #[test]
    fn a_long_name_costs_no_more_than_its_bytes() {
        let (name, objects) = ("a".repeat(1 << 20), "{},".repeat(1 << 18));
        let body = format!(r#"{{"content":"one","metadata":{{"{name}":[{objects}{{"id":"two"}}]}}}}"#);
        let texts = Texts::of(&body, true);
        assert_eq!(texts.length(), name.len() + 3);
    }

    #[test]
    fn members_that_stand_twice_are_all_read() {
        let texts = Texts::of(r#"{"content":"one","content":"two"}"#, true).judged();
        assert_eq!(texts, ["one\ntwo", "one", "two"]);
    }

    #[test]
    fn few_texts_are_judged_by_themselves_and_none_is_left_out() {
        let many: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
        let judged = judged(&json!({"input": many}));
        assert_eq!((judged.len(), judged[0].lines().count()), (1 + SINGLE, 100));
        assert_eq!(judged.last().unwrap(), "t99");
    }
}
