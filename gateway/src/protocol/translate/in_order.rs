//! Order of the parts of a stream for APIs in which tool calls follow one another. Servers may write several calls at a time,
//! piece by piece; what comes while a call is under way waits until its arguments are complete.

use std::collections::VecDeque;

use bytes::BytesMut;

use super::{Delta, MAX_CALLS, MostKept, Unreadable, WriteStream};

/// Bytes that a held log probability takes beside its text, about.
const TOKEN_BYTES: usize = 128;

/// Writer that gets each tool call whole before anything that follows it.
pub struct InOrder {
    writer: Box<dyn WriteStream>,
    /// Call whose arguments are written as they come.
    open: Option<OpenCall>,
    held: VecDeque<Held>,
    /// Calls that are held, in the order of their marks in `held`: few, so that their arguments find them at once. At most
    /// [`MAX_CALLS`].
    calls: VecDeque<HeldCall>,
    /// Bytes that are held.
    kept: usize,
    most_kept: MostKept,
}

/// Tool call under way.
struct OpenCall {
    index: usize,
    arguments: ObjectEnd,
}

/// Part of the answer that waits for its turn.
enum Held {
    /// The next one of the calls that are held.
    Call,
    Other(Delta),
}

impl Held {
    /// Bytes that it takes, without those of its call.
    fn size(&self) -> usize {
        let of_content = match self {
            Self::Other(Delta::Text { text, logprobs }) => {
                let tokens: usize = logprobs.iter().map(|token| token.likeliest.len().saturating_add(1)).sum();
                text.len().saturating_add(tokens.saturating_mul(TOKEN_BYTES))
            }
            Self::Other(
                Delta::Refusal(text) | Delta::Thinking(text) | Delta::Signature(text) | Delta::RedactedThinking(text),
            ) => text.len(),
            Self::Call | Self::Other(_) => 0,
        };
        of_content.saturating_add(size_of::<Self>())
    }
}

/// Call that waits for its turn.
struct HeldCall {
    index: usize,
    id: String,
    name: String,
    arguments: String,
}

impl HeldCall {
    /// Bytes that it takes.
    fn size(&self) -> usize {
        let texts = self.id.len().saturating_add(self.name.len()).saturating_add(self.arguments.len());
        texts.saturating_add(size_of::<Self>())
    }
}

impl InOrder {
    /// Writer in front of one whose API has one call at a time.
    pub fn new(writer: Box<dyn WriteStream>, most_kept: MostKept) -> Self {
        Self { writer, open: None, held: VecDeque::new(), calls: VecDeque::new(), kept: 0, most_kept }
    }

    /// True while a call is under way of which more arguments are to come.
    fn is_busy(&self) -> bool {
        self.open.as_ref().is_some_and(|open| !open.arguments.is_complete())
    }

    fn keep(&mut self, bytes: usize) -> Result<(), Unreadable> {
        self.kept = self.kept.saturating_add(bytes);
        self.most_kept.check(self.kept)
    }

    fn hold(&mut self, held: Held) -> Result<(), Unreadable> {
        self.keep(held.size())?;
        self.held.push_back(held);
        Ok(())
    }

    fn hold_call(&mut self, call: HeldCall) -> Result<(), Unreadable> {
        if self.calls.len() == MAX_CALLS {
            return Err(Unreadable("the backend writes more than 128 tool calls at a time"));
        }
        self.keep(call.size())?;
        self.calls.push_back(call);
        self.hold(Held::Call)
    }

    /// Writes a delta, or holds it while a call is under way.
    fn pass(&mut self, delta: Delta, out: &mut BytesMut) -> Result<(), Unreadable> {
        if self.is_busy() {
            return match delta {
                Delta::ToolCall { index, id, name } => {
                    self.hold_call(HeldCall { index, id, name, arguments: String::new() })
                }
                other => self.hold(Held::Other(other)),
            };
        }
        self.open = match delta {
            Delta::ToolCall { index, .. } => Some(OpenCall { index, arguments: ObjectEnd::default() }),
            _ => None,
        };
        self.writer.write(delta, out)
    }

    fn arguments(&mut self, index: usize, text: String, out: &mut BytesMut) -> Result<(), Unreadable> {
        if let Some(open) = self.open.as_mut().filter(|open| open.index == index) {
            open.arguments.feed(&text);
            self.writer.write(Delta::Arguments { index, text }, out)?;
            return if self.is_busy() { Ok(()) } else { self.release(false, out) };
        }
        self.keep(text.len())?;
        match self.calls.iter_mut().find(|held| held.index == index) {
            Some(held) => held.arguments.push_str(&text),
            // Blanks behind the arguments say nothing.
            None if text.trim().is_empty() => self.kept = self.kept.saturating_sub(text.len()),
            None => return Err(Unreadable("the backend's stream continues a tool call behind the next one")),
        }
        Ok(())
    }

    /// Writes what is held, up to a call that is not complete; all of it at the end of the answer.
    fn release(&mut self, is_end: bool, out: &mut BytesMut) -> Result<(), Unreadable> {
        while (is_end || !self.is_busy())
            && let Some(held) = self.held.pop_front()
        {
            self.kept = self.kept.saturating_sub(held.size());
            match held {
                Held::Other(delta) => {
                    self.open = None;
                    self.writer.write(delta, out)?;
                }
                Held::Call => {
                    let Some(call) = self.calls.pop_front() else { continue };
                    self.kept = self.kept.saturating_sub(call.size());
                    let HeldCall { index, id, name, arguments: text } = call;
                    let mut arguments = ObjectEnd::default();
                    arguments.feed(&text);
                    self.open = Some(OpenCall { index, arguments });
                    self.writer.write(Delta::ToolCall { index, id, name }, out)?;
                    if !text.is_empty() {
                        self.writer.write(Delta::Arguments { index, text }, out)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl WriteStream for InOrder {
    fn write(&mut self, delta: Delta, out: &mut BytesMut) -> Result<(), Unreadable> {
        match delta {
            Delta::Arguments { index, text } => self.arguments(index, text, out),
            Delta::Finish(_) | Delta::End => {
                self.release(true, out)?;
                self.open = None;
                self.writer.write(delta, out)
            }
            Delta::Start { .. } | Delta::Usage(_) | Delta::Ping | Delta::Error(_) => self.writer.write(delta, out),
            Delta::Text { .. }
            | Delta::TextEnd
            | Delta::Choice(_)
            | Delta::Refusal(_)
            | Delta::Thinking(_)
            | Delta::Signature(_)
            | Delta::ThinkingEnd
            | Delta::RedactedThinking(_)
            | Delta::ToolCall { .. } => self.pass(delta, out),
        }
    }
}

/// End of a JSON object that comes in pieces.
#[derive(Debug, Default)]
struct ObjectEnd {
    depth: usize,
    has_begun: bool,
    is_text: bool,
    is_escaped: bool,
}

impl ObjectEnd {
    fn feed(&mut self, text: &str) {
        for byte in text.bytes() {
            if self.is_text {
                match byte {
                    _ if std::mem::take(&mut self.is_escaped) => {}
                    b'\\' => self.is_escaped = true,
                    b'"' => self.is_text = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.is_text = true,
                b'{' | b'[' => (self.depth, self.has_begun) = (self.depth.saturating_add(1), true),
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
    }

    /// True once the object has ended.
    fn is_complete(&self) -> bool {
        self.has_begun && self.depth == 0 && !self.is_text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;
    use proptest::prelude::*;

    use super::*;

    /// Writer that collects what it gets.
    struct Collects(Arc<Mutex<Vec<Delta>>>);

    impl WriteStream for Collects {
        fn write(&mut self, delta: Delta, _out: &mut BytesMut) -> Result<(), Unreadable> {
            self.0.lock().push(delta);
            Ok(())
        }
    }

    /// What the writer behind gets, in the words of the test; pieces of a call are joined.
    fn written(deltas: impl IntoIterator<Item = Delta>) -> Result<String, Unreadable> {
        let got = Arc::new(Mutex::new(Vec::new()));
        let mut writer = InOrder::new(Box::new(Collects(got.clone())), MostKept::default());
        for delta in deltas {
            writer.write(delta, &mut BytesMut::new())?;
        }
        let mut said = String::new();
        for delta in got.lock().iter() {
            said += &match delta {
                Delta::ToolCall { index, name, .. } => format!(" {name}{index}"),
                Delta::Arguments { text, .. } => text.clone(),
                Delta::Text { text, .. } => format!(" '{text}'"),
                Delta::Finish(_) => " finish".to_owned(),
                Delta::Ping => " ping".to_owned(),
                other => format!(" {other:?}"),
            };
        }
        Ok(said.trim_start().to_owned())
    }

    fn call(index: usize) -> Delta {
        Delta::ToolCall { index, id: String::new(), name: "f".to_owned() }
    }

    fn piece(index: usize, text: &str) -> Delta {
        Delta::Arguments { index, text: text.to_owned() }
    }

    fn text(text: &str) -> Delta {
        Delta::Text { text: text.to_owned(), logprobs: Vec::new() }
    }

    fn end() -> Delta {
        Delta::Finish(super::super::Finish::ToolCalls)
    }

    #[test]
    fn calls_that_follow_one_another_pass_at_once() {
        let calls = [
            call(0),
            piece(0, "{\"a\":\"}\\\"\"}"),
            call(1),
            piece(1, "{"),
            Delta::Ping,
            piece(1, "}"),
            piece(1, "\n"),
        ];
        assert_eq!(written(calls).unwrap(), "f0{\"a\":\"}\\\"\"} f1{ ping}\n");
        // Blanks behind a call that has ended, and arguments, which are an error.
        assert_eq!(written([call(0), piece(0, "{}"), text("x"), piece(0, " ")]).unwrap(), "f0{} 'x'");
        assert!(written([call(0), piece(0, "{}"), text("x"), piece(0, "{}")]).is_err());
        assert!(written([piece(3, "{}")]).is_err());
    }

    #[test]
    fn calls_at_the_same_time_are_written_in_turn() {
        let both =
            [call(0), call(1), piece(1, "{\"b\""), text("x"), piece(0, "{"), piece(1, ":1}"), piece(0, "}"), text("y")];
        assert_eq!(written(both).unwrap(), "f0{} f1{\"b\":1} 'x' 'y'");
        // The second one is not complete at its turn, and passes on from there.
        let rest = [call(0), call(1), piece(1, "{"), piece(0, "{}"), piece(1, "}")];
        assert_eq!(written(rest).unwrap(), "f0{} f1{}");
        // A call without arguments, and one that is cut, end with the answer.
        let cut = [call(0), call(1), piece(1, "{\"b"), call(2), end()];
        assert_eq!(written(cut).unwrap(), "f0 f1{\"b f2 finish");
    }

    #[test]
    fn no_more_is_held_than_the_bound() {
        let long = "x".repeat(1 << 20);
        let most = MostKept::default().0 / long.len();
        for of in [|long: &str| piece(1, long), |long: &str| text(long)] {
            let held = |count: usize| {
                let more = std::iter::repeat_with(|| of(&long)).take(count);
                written([call(0), call(1)].into_iter().chain(more))
            };
            assert!(held(most - 1).is_ok() && held(most).is_err());
        }
        // Calls are few, however short.
        let calls = |count: usize| written((0..=count).map(call));
        assert!(calls(MAX_CALLS).is_ok() && calls(MAX_CALLS + 1).is_err());
        // What was written makes room.
        let rounds = (0..3 * most).flat_map(|n| {
            [call(2 * n), call(2 * n + 1), piece(2 * n + 1, &long), piece(2 * n, "{}"), piece(2 * n + 1, "{}")]
        });
        assert!(written(rounds).is_ok());
    }

    proptest! {
        #[test]
        fn the_order_of_the_pieces_changes_nothing(
            arguments in proptest::collection::vec("\\{(\"[a-c}\\[]{0,3}\":(\"\\\\\\\\\"|1|\\[\\{\\}\\]))?\\}", 1..5),
            turns in proptest::collection::vec(0..5usize, 0..64),
        ) {
            let expected: String = arguments.iter().enumerate().map(|(n, text)| format!(" f{n}{text}")).collect();
            let mut rest: Vec<_> = arguments.iter().map(|text| text.chars().collect::<VecDeque<_>>()).collect();
            let mut deltas: Vec<_> = (0..arguments.len()).map(call).collect();
            for turn in turns.into_iter().chain((0..arguments.len()).flat_map(|n| std::iter::repeat_n(n, 40))) {
                if let Some(c) = rest.get_mut(turn).and_then(VecDeque::pop_front) {
                    deltas.push(piece(turn, &c.to_string()));
                }
            }
            deltas.push(end());
            prop_assert_eq!(written(deltas).unwrap(), format!("{} finish", expected.trim_start()));
        }
    }
}
