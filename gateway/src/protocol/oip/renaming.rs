//! The name of the model at the head of an answer, where a server knows the model by another name than its caller. Servers write
//! it before the outputs, so that the beginning of an answer is enough.

use std::ops::Range;

use crate::protocol::inference::{AnswerName, InferenceCall};
use crate::protocol::json;
use crate::protocol::text_end::text_end;

/// Member of JSON that names the model in the answer to a call.
fn member_of(call: InferenceCall) -> &'static [u8] {
    match call {
        InferenceCall::ModelMetadata | InferenceCall::ModelReady => b"name",
        _ => b"model_name",
    }
}

/// Finds the name in the JSON of an answer.
pub(super) fn in_json(call: InferenceCall, beginning: &[u8], from: &str, to: &str) -> AnswerName {
    match member(beginning, member_of(call)) {
        Err(Ended::Cut) => AnswerName::NotYet,
        Err(Ended::Other) => AnswerName::Absent,
        Ok(at) => match beginning.get(at.clone()).map(serde_json::from_slice::<String>) {
            Some(Ok(name)) if name == from => AnswerName::Replace(at, json(&to).to_vec()),
            _ => AnswerName::Absent,
        },
    }
}

/// Reason for which no member was found.
enum Ended {
    /// The text ended first.
    Cut,
    /// There is no such member, or the text is no object.
    Other,
}

/// Reader of the members of an object, without a value of any of them.
struct Reader<'b> {
    bytes: &'b [u8],
    at: usize,
}

/// Range of the string that is the value of the first member `name` of an object, with its quotes.
fn member(bytes: &[u8], name: &[u8]) -> Result<Range<usize>, Ended> {
    let mut reader = Reader { bytes, at: 0 };
    reader.expect(b'{')?;
    loop {
        let key = reader.string()?;
        reader.expect(b':')?;
        let is_wanted = bytes.get(key.start + 1..key.end - 1) == Some(name);
        if is_wanted {
            return if reader.peek()? == b'"' { reader.string() } else { Err(Ended::Other) };
        }
        reader.skip_value()?;
        reader.expect(b',')?;
    }
}

impl Reader<'_> {
    /// Next byte that is no blank.
    fn peek(&mut self) -> Result<u8, Ended> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let blanks = rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
        self.at += blanks;
        rest.get(blanks).copied().ok_or(Ended::Cut)
    }

    fn expect(&mut self, byte: u8) -> Result<(), Ended> {
        if self.peek()? != byte {
            return Err(Ended::Other);
        }
        self.at += 1;
        Ok(())
    }

    /// Range of a string with its quotes.
    fn string(&mut self) -> Result<Range<usize>, Ended> {
        self.expect(b'"')?;
        let from = self.at - 1;
        loop {
            self.at += text_end::<false>(self.bytes.get(self.at..).unwrap_or_default());
            match self.bytes.get(self.at) {
                None => return Err(Ended::Cut),
                Some(b'"') => {
                    self.at += 1;
                    return Ok(from..self.at);
                }
                Some(_) => self.at += 2,
            }
        }
    }

    /// Passes over a value, up to the comma or brace behind it.
    fn skip_value(&mut self) -> Result<(), Ended> {
        let mut depth = 0usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth == 0 => return Ok(()),
                b'}' | b']' => depth -= 1,
                b',' if depth == 0 => return Ok(()),
                _ => {}
            }
            self.at += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn renamed(call: InferenceCall, text: &str) -> Option<String> {
        match in_json(call, text.as_bytes(), "old", "a \"new\"") {
            AnswerName::Replace(at, bytes) => {
                Some(format!("{}{}{}", &text[..at.start], String::from_utf8(bytes).unwrap(), &text[at.end..]))
            }
            _ => None,
        }
    }

    #[test]
    fn the_name_is_replaced_where_the_answer_has_it() {
        let infer = |text: &str| renamed(InferenceCall::Infer, text);
        assert_eq!(
            infer(r#"{"id":"old","model_name":"old","outputs":[]}"#).as_deref(),
            Some(r#"{"id":"old","model_name":"a \"new\"","outputs":[]}"#)
        );
        assert_eq!(
            infer("{ \"parameters\" : {\"model_name\":\"old\", \"x\":[1,\"]\"]},\n\"model_name\" :\"ol\\u0064\"")
                .as_deref(),
            Some("{ \"parameters\" : {\"model_name\":\"old\", \"x\":[1,\"]\"]},\n\"model_name\" :\"a \\\"new\\\"\"")
        );
        for text in [
            r#"{"model_name":"other"}"#,
            r#"{"name":"old"}"#,
            r#"{"outputs":[{"model_name":"old"}]}"#,
            r#"{"model_name":1}"#,
            r#"["model_name"]"#,
            "",
            "{}",
        ] {
            assert_eq!(infer(text), None, "{text}");
        }
        assert_eq!(
            renamed(InferenceCall::ModelMetadata, r#"{"name":"old"}"#).as_deref(),
            Some(r#"{"name":"a \"new\""}"#)
        );
    }

    proptest! {
        #[test]
        fn a_longer_beginning_finds_the_same(cut in 0usize..60) {
            let text = br#"{"id":"\"x\\","p":{"a":[1,{}]},"model_name":"old","outputs":1}"#;
            let whole = in_json(InferenceCall::Infer, text, "old", "new");
            let beginning = in_json(InferenceCall::Infer, &text[..cut.min(text.len())], "old", "new");
            prop_assert!(beginning == AnswerName::NotYet || beginning == whole, "{:?}", beginning);
        }

        #[test]
        fn any_bytes_end_the_search(bytes in prop::collection::vec(prop::sample::select(&b"{}[]\",:\\ a1"[..]), 0..60)) {
            let _ = in_json(InferenceCall::Infer, &bytes, "a", "b");
        }
    }
}
