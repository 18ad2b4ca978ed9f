//! The name of the model in the answers of JSON APIs, where the server knows another name than the caller: the caller reads
//! the name that it sent. Answers pass as they come, whole or as events or lines; only the bytes of a name that is cut wait
//! for the rest of it. Inputs are the head of an answer and its plain bytes.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header;

use super::model_name;
use super::outcome::Attempt;
use crate::coding::Coding;
use crate::exchange::{Exchange, Naming, RequestBody};
use crate::message::ResponseHead;

/// Longest name that is compared, in bytes with quotes and escapes: names have 256 bytes, and an escape six.
const MAX_NAME: usize = 6 * 256 + 2;

/// Longest key that is told from others, in bytes: `response`.
const MAX_KEY: usize = 8;

/// Keys of objects that hold a name in an answer: `message` of Anthropic's API, `response` of the Responses API.
const OF_ANSWERS: &[&[u8]] = &[b"message", b"response"];

/// Names to exchange: that of the server, and that of the caller as it stands in the request, with its quotes.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// Name that is replaced; `None` for any.
    pub(super) from: Option<Arc<str>>,
    /// Name in its place, as JSON text.
    pub(super) to: Bytes,
}

impl Names {
    fn of(attempt: &Attempt<'_>, exchange: &Exchange) -> Option<Self> {
        let (from, _) = model_name::exchanged(attempt.backend, exchange)?;
        let asked = exchange.asked.as_ref().filter(|asked| asked.naming == Naming::Json)?;
        if attempt.translation.is_some() {
            return None;
        }
        let RequestBody::Held(held) = &exchange.body else { return None };
        let at = asked.model_at.clone()?;
        (at.end <= held.bytes.len() && at.start <= at.end)
            .then(|| Self { from: Some(from.clone()), to: held.bytes.slice(at) })
    }
}

/// True if names in the answer are exchanged, so that it must not come in a coding.
pub(super) fn renames(attempt: &Attempt<'_>, exchange: &Exchange) -> bool {
    Names::of(attempt, exchange).is_some()
}

/// Place of the reader in a line of an event stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    /// In data, or in an answer without lines.
    Data,
    /// Behind so many bytes of `data:`.
    Begins(usize),
    /// In another field, or in a comment.
    Other,
}

const DATA: &[u8] = b"data:";

/// Meaning of the value that follows a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Key {
    /// Name of the model.
    Model,
    /// Object that holds such a name.
    Holder,
    Other,
}

/// String that is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Text {
    /// Key of an object in which a name may be.
    Key,
    /// Value under `model`.
    Name,
    Other,
}

/// Exchanges the names in one answer.
#[derive(Debug)]
pub(super) struct AnswerModel {
    names: Names,
    /// Keys of objects in which a name may be, beside the outermost.
    holders: &'static [&'static [u8]],
    /// Last name that was replaced, as JSON text.
    replaced: Option<Bytes>,
    is_event_stream: bool,
    line: Line,
    /// True behind a carriage return, which a line feed may follow.
    is_returned: bool,
    depth: usize,
    /// Depth of the object in which a name may be: 1, or 2 within a holder; 0 outside of one.
    named_depth: usize,
    /// True where a key may begin in that object.
    expects_key: bool,
    key: Key,
    /// String that is being read, and whether an escape has begun in it.
    text: Option<(Text, bool)>,
    /// Bytes of the key or name so far, those of a name with its first quote.
    token: Vec<u8>,
    /// True once a key where a name may be was written in a form that other readers may take for another key.
    is_odd: bool,
}

impl AnswerModel {
    /// Exchange of names in an answer with this head; `None` where they are the same, or the answer is an error or cannot be
    /// read.
    pub(super) fn of(attempt: &Attempt<'_>, exchange: &Exchange, head: &ResponseHead) -> Option<Box<Self>> {
        let names = Names::of(attempt, exchange)?;
        let kind =
            head.headers.get(header::CONTENT_TYPE)?.to_str().ok()?.split(';').next()?.trim().to_ascii_lowercase();
        let is_event_stream = kind == "text/event-stream";
        let is_json = kind.ends_with("json") || kind.ends_with("jsonl");
        let is_read = head.status.is_success() && Coding::of(&head.headers) == Coding::Identity;
        (is_read && (is_event_stream || is_json)).then(|| Box::new(Self::new(names, OF_ANSWERS, is_event_stream)))
    }

    /// Exchange of names in messages of a socket, each of which is an object of JSON.
    pub(super) fn of_messages(names: Names, holders: &'static [&'static [u8]]) -> Self {
        Self::new(names, holders, false)
    }

    fn new(names: Names, holders: &'static [&'static [u8]], is_event_stream: bool) -> Self {
        Self {
            names,
            holders,
            replaced: None,
            is_event_stream,
            line: if is_event_stream { Line::Begins(0) } else { Line::Data },
            is_returned: false,
            depth: 0,
            named_depth: 0,
            expects_key: false,
            key: Key::Other,
            text: None,
            token: Vec::new(),
            is_odd: false,
        }
    }

    /// Passes a part on, with the caller's name in place of the server's.
    pub(super) fn pass(&mut self, part: Bytes) -> Bytes {
        let mut out = Output { part: &part, written: BytesMut::new(), passed: 0 };
        let mut at = 0;
        while let Some(&byte) = part.get(at) {
            match self.text {
                Some((text, _)) if byte == b'\n' && self.is_event_stream => {
                    // No line ends in a string.
                    if text == Text::Name {
                        out.written.extend_from_slice(&self.token);
                    }
                    self.text = None;
                }
                Some((text, is_escaped)) => {
                    let rest = part.get(at..).unwrap_or_default();
                    let run = rest.get(..if is_escaped { 1 } else { end_of_run(rest) }).unwrap_or_default();
                    at += run.len();
                    self.in_text(text, is_escaped, run, at, &mut out);
                }
                None if self.line != Line::Data || (self.is_event_stream && matches!(byte, b'\n' | b'\r')) => {
                    self.frame(byte);
                    at += 1;
                }
                None => {
                    self.between(byte);
                    at += 1;
                    if matches!(self.text, Some((Text::Name, _))) {
                        out.pass_to(at - 1);
                        out.passed = at;
                    }
                }
            }
        }
        let Output { mut written, passed, .. } = out;
        if written.is_empty() && passed == 0 {
            return part;
        }
        written.extend_from_slice(part.get(passed..).unwrap_or_default());
        written.freeze()
    }

    /// Passes the last part on, and what waits for the rest of a name.
    pub(super) fn finish(&mut self, last: Bytes) -> Bytes {
        let last = self.pass(last);
        if !matches!(self.text.take(), Some((Text::Name, _))) {
            return last;
        }
        [&last[..], &std::mem::take(&mut self.token)].concat().into()
    }

    /// Ends a message of a socket. Returns what waits for the rest of a name.
    pub(super) fn end_message(&mut self) -> Bytes {
        let rest = self.finish(Bytes::new());
        (self.depth, self.named_depth, self.expects_key, self.key) = (0, 0, false, Key::Other);
        rest
    }

    /// True if a key where a name may be had an escape or other letters than it has here: other readers may take it for `model`.
    pub(super) fn take_odd(&mut self) -> bool {
        std::mem::take(&mut self.is_odd)
    }

    /// Takes the last name that was replaced, as JSON text.
    pub(super) fn take_replaced(&mut self) -> Option<Bytes> {
        self.replaced.take()
    }

    /// Puts another name in place of those that come.
    pub(super) fn replace_by(&mut self, to: Bytes) {
        self.names.to = to;
    }

    /// Reads a byte of an event stream that is in no data.
    fn frame(&mut self, byte: u8) {
        if std::mem::replace(&mut self.is_returned, byte == b'\r') && byte == b'\n' {
            return;
        }
        if matches!(byte, b'\n' | b'\r') {
            if self.line == Line::Begins(0) {
                // An empty line ends the event.
                (self.depth, self.named_depth, self.expects_key) = (0, 0, false);
            }
            self.line = Line::Begins(0);
            return;
        }
        self.line = match self.line {
            Line::Begins(n) if DATA.get(n) == Some(&byte) && n + 1 == DATA.len() => Line::Data,
            Line::Begins(n) if DATA.get(n) == Some(&byte) => Line::Begins(n + 1),
            _ => Line::Other,
        };
    }

    /// Reads a byte between strings.
    fn between(&mut self, byte: u8) {
        let is_here = self.named_depth > 0 && self.depth == self.named_depth;
        match byte {
            b'"' => {
                let text = match (is_here, self.expects_key, self.key) {
                    (true, true, _) => Text::Key,
                    (true, false, Key::Model) => Text::Name,
                    _ => Text::Other,
                };
                self.token.clear();
                if text == Text::Name {
                    self.token.push(byte);
                }
                self.text = Some((text, false));
            }
            b'{' | b'[' => {
                let is_holder =
                    byte == b'{' && (self.depth == 0 || (is_here && self.depth == 1 && self.key == Key::Holder));
                self.depth = self.depth.saturating_add(1);
                if is_holder {
                    (self.named_depth, self.expects_key) = (self.depth, true);
                }
                self.key = Key::Other;
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth < self.named_depth {
                    (self.named_depth, self.expects_key) = (self.depth, false);
                }
                self.key = Key::Other;
            }
            b',' if is_here => (self.expects_key, self.key) = (true, Key::Other),
            b':' if is_here => self.expects_key = false,
            _ => {}
        }
    }

    /// Reads a run of bytes in a string, which ends at `at`.
    fn in_text(&mut self, text: Text, is_escaped: bool, run: &[u8], at: usize, out: &mut Output<'_>) {
        let most = match text {
            Text::Key => MAX_KEY + 1,
            Text::Name => MAX_NAME,
            Text::Other => 0,
        };
        self.is_odd |= text == Text::Key && !is_escaped && run.last() == Some(&b'\\');
        let is_kept = self.token.len() + run.len() <= most;
        if is_kept {
            self.token.extend_from_slice(run);
        }
        if text == Text::Name {
            if !is_kept {
                // Too long to be a name.
                out.written.extend_from_slice(&self.token);
                out.written.extend_from_slice(run);
            }
            out.passed = at;
        }
        let last = run.last().copied().filter(|_| !is_escaped);
        let is_escaped = last == Some(b'\\');
        self.text = (last != Some(b'"')).then_some((if is_kept { text } else { Text::Other }, is_escaped));
        if self.text.is_none() && is_kept {
            self.end_token(text, out);
        }
    }

    /// Ends a string that was kept whole.
    fn end_token(&mut self, text: Text, out: &mut Output<'_>) {
        match text {
            Text::Key => {
                let key = self.token.strip_suffix(b"\"");
                let reads_alike =
                    |known: &[u8]| key.is_some_and(|key| key != known && key.trim_ascii().eq_ignore_ascii_case(known));
                self.is_odd |= reads_alike(b"model") || self.holders.iter().any(|holder| reads_alike(holder));
                self.key = match key {
                    Some(b"model") => Key::Model,
                    Some(key) if self.holders.contains(&key) => Key::Holder,
                    _ => Key::Other,
                };
            }
            Text::Name => {
                let is_replaced = serde_json::from_slice::<String>(&self.token)
                    .is_ok_and(|name| self.names.from.as_ref().is_none_or(|from| name == **from));
                out.written.extend_from_slice(if is_replaced { &self.names.to } else { &self.token });
                if is_replaced && self.names.from.is_none() {
                    self.replaced = Some(Bytes::copy_from_slice(&self.token));
                }
            }
            Text::Other => {}
        }
    }
}

/// Length of a run of bytes of a string: up to the next quote or backslash, with that, or up to the end of a line.
fn end_of_run(bytes: &[u8]) -> usize {
    match memchr::memchr3(b'"', b'\\', b'\n', bytes) {
        Some(at) if bytes.get(at) == Some(&b'\n') => at.max(1),
        Some(at) => at + 1,
        None => bytes.len(),
    }
}

/// Bytes that go on of a part.
struct Output<'p> {
    part: &'p [u8],
    /// Bytes in place of those up to `passed`.
    written: BytesMut,
    passed: usize,
}

impl Output<'_> {
    /// Passes the bytes of the part up to `at`.
    fn pass_to(&mut self, at: usize) {
        self.written.extend_from_slice(self.part.get(self.passed..at).unwrap_or_default());
        self.passed = at;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn reader(is_event_stream: bool) -> AnswerModel {
        let names = Names { from: Some("lab/m-1".into()), to: Bytes::from_static(b"\"small \\\"one\\\"\"") };
        AnswerModel::new(names, OF_ANSWERS, is_event_stream)
    }

    #[test]
    fn keys_that_other_readers_may_take_for_the_name_are_told() {
        for (message, is_odd) in [
            (r#"{"type":"response.create","model":"a","metadata":{"Model":1,"mod\u0065l":2}}"#, false),
            (r#"{"response":{"model":"a","metadata\n":1}}"#, true),
            (r#"{"mod\u0065l":"a"}"#, true),
            (r#"{"\u006d\u006f\u0064\u0065\u006c":"a"}"#, true),
            (r#"{"Model":"a"}"#, true),
            (r#"{"model ":"a"}"#, true),
            (r#"{"Response":{"model":"a"}}"#, true),
            (r#"{"models":["a"],"modelled":"\u0065"}"#, false),
        ] {
            for size in [1, 3, 200] {
                let names = Names { from: None, to: Bytes::from_static(b"\"small\"") };
                let mut reader = AnswerModel::of_messages(names, &[b"response"]);
                message.as_bytes().chunks(size).for_each(|part| drop(reader.pass(Bytes::copy_from_slice(part))));
                reader.end_message();
                assert_eq!(reader.take_odd(), is_odd, "{message}");
                assert!(!reader.take_odd());
            }
        }
    }

    fn passed(is_event_stream: bool, text: &str, cuts: &[usize]) -> String {
        let (mut reader, mut out, mut rest) = (reader(is_event_stream), Vec::new(), text.as_bytes());
        for cut in cuts {
            let (part, more) = rest.split_at((*cut).min(rest.len()));
            rest = more;
            out.extend_from_slice(&reader.pass(Bytes::copy_from_slice(part)));
        }
        out.extend_from_slice(&reader.finish(Bytes::copy_from_slice(rest)));
        String::from_utf8(out).unwrap()
    }

    const FROM: &str = r#""lab/m-1""#;
    const TO: &str = r#""small \"one\"""#;

    /// Answers with the name at `@`, and with names of other things that stay.
    const ANSWERS: [&str; 7] = [
        r#"{"id":"x","model":@,"choices":[{"message":{"content":"say \"model\":\"lab/m-1\"","model":"lab/m-1"}}]}"#,
        r#" { "choices" : [ { "model" : "lab/m-1" } ] , "model" : @ , "usage":{"model":"lab/m-1"} } "#,
        r#"{"type":"message_start","message":{"id":"m","model":@,"content":[{"model":"lab/m-1"}]},"model":@}"#,
        r#"{"type":"response.created","response":{"tools":[{"model":"lab/m-1"}],"model":@},"sequence_number":0}"#,
        r#"{"model":"other","x":{"response":{"model":"lab/m-1"}},"y":"model","z":"lab/m-1"}"#,
        r#"{"model":{"model":"lab/m-1"},"message":[{"model":"lab/m-1"}],"response":"lab/m-1"}"#,
        r#"{"model":null,"modelx":"lab/m-1","mode":"lab/m-1","x":["model","lab/m-1"]}"#,
    ];

    #[test]
    fn the_name_of_the_server_becomes_that_of_the_caller_and_nothing_else_changes() {
        for answer in ANSWERS {
            let (sent, read) = (answer.replace('@', FROM), answer.replace('@', TO));
            assert_eq!(passed(false, &sent, &[]), read);
            let lines = format!("{sent}\n{sent}\n");
            assert_eq!(passed(false, &lines, &[]), format!("{read}\n{read}\n"), "lines of JSON");
            let events =
                |text: &str| format!(": \"{{\n\nevent: \"model\ndata: {text}\r\n\r\ndata:{text}\n\ndata: [DONE]\n\n");
            assert_eq!(passed(true, &events(&sent), &[]), events(&read));
        }
        assert_eq!(
            passed(false, r#"{"model":"lab\/m\u002d1"}"#, &[]),
            format!("{{\"model\":{TO}}}"),
            "escapes are read"
        );
        assert_eq!(
            passed(true, "data: {\"x\":1,\ndata: \"model\":\"lab/m-1\"}\n\n", &[]),
            format!("data: {{\"x\":1,\ndata: \"model\":{TO}}}\n\n")
        );
        let broken = "data: {\"x\": [[\n\ndata: {\"model\":\"lab/m-1\"}\n\n";
        assert!(passed(true, broken, &[]).contains(TO), "an event that is not whole ends with its lines");
        let long = format!("{{\"model\":\"{}\",\"x\":1}}", "m".repeat(2 * MAX_NAME));
        assert_eq!(passed(false, &long, &[MAX_NAME, 9, 7]), long);
    }

    #[test]
    fn no_more_than_a_name_waits_and_a_part_without_one_is_not_copied() {
        let mut reader = reader(false);
        assert_eq!(reader.pass(Bytes::from_static(b"{\"model\":\"lab")), "{\"model\":");
        assert_eq!(reader.pass(Bytes::from_static(b"/m-1")), "");
        assert_eq!(reader.pass(Bytes::from_static(b"\",\"x")), format!("{TO},\"x"));
        let part = Bytes::from_static(b"\":\"text of the answer");
        assert_eq!(reader.pass(part.clone()).as_ptr(), part.as_ptr());
        assert_eq!(passed(false, "{\"model\":\"lab/m-1", &[]), "{\"model\":\"lab/m-1", "an answer that is cut");
    }

    proptest! {
        #[test]
        fn the_result_does_not_depend_on_the_cuts(
            answer in proptest::sample::select(&ANSWERS[..]),
            is_event_stream in any::<bool>(),
            cuts in proptest::collection::vec(1usize..9, 0..60),
        ) {
            let frame = |text: String| if is_event_stream { format!("data: {text}\n\n").repeat(2) } else { text };
            let (sent, read) = (frame(answer.replace('@', FROM)), frame(answer.replace('@', TO)));
            prop_assert_eq!(passed(is_event_stream, &sent, &cuts), read);
        }

        #[test]
        fn other_bytes_pass_as_they_are(text in "[\"\\\\{}\\[\\]:,\n\r a-z]{0,80}", cuts in proptest::collection::vec(1usize..9, 0..30)) {
            for is_event_stream in [false, true] {
                prop_assert_eq!(passed(is_event_stream, &text, &cuts), text.clone());
            }
        }

        #[test]
        fn a_value_of_any_shape_keeps_all_but_the_name(
            value in proptest::collection::btree_map("model|message|[a-z\"]{1,3}", prop_oneof![
                Just(json!("lab/m-1")), Just(json!({"model": "lab/m-1"})), Just(json!([{"model": "lab/m-1"}])), Just(json!(1)),
            ], 0..5),
        ) {
            let sent = json!(value);
            let mut read = sent.clone();
            let name = json!("small \"one\"");
            for at in ["/model", "/message/model"] {
                if let Some(found) = read.pointer_mut(at).filter(|found| **found == "lab/m-1") {
                    *found = name.clone();
                }
            }
            let out: Value = serde_json::from_str(&passed(false, &sent.to_string(), &[])).unwrap();
            prop_assert_eq!(out, read);
        }
    }
}
