//! Writer of a stream of lines. A tool call is one line with all of its arguments, which are kept until then.

use bytes::{BufMut, BytesMut};

use super::error_of;
use super::write::{Said, call, end, line};
use crate::protocol::ollama::answer::Shape;
use crate::protocol::openai::response::put_json;
use crate::protocol::translate::{Asked, Delta, Finish, MostKept, Tokens, Unreadable, WriteStream};

/// Tool call that is being written.
#[derive(Debug)]
struct OpenCall {
    index: usize,
    id: String,
    name: String,
    arguments: String,
}

/// Writer of one stream.
#[derive(Debug)]
pub(super) struct StreamWriter {
    shape: Shape,
    model: String,
    call: Option<OpenCall>,
    tokens: Tokens,
    finish: Finish,
    has_ended: bool,
    most_kept: MostKept,
}

impl StreamWriter {
    /// Begins the stream of an answer.
    pub(super) fn new(shape: Shape, asked: &Asked) -> Self {
        Self {
            shape,
            model: asked.model.clone(),
            call: None,
            tokens: Tokens::default(),
            finish: Finish::Stop,
            has_ended: false,
            most_kept: asked.most_kept,
        }
    }

    fn say(&self, said: Said, out: &mut BytesMut) {
        put_json(out, &line(self.shape, &self.model, said));
        out.put_u8(b'\n');
    }

    /// Writes the tool call whose arguments are complete, if any.
    fn close_call(&mut self, is_cut: bool, out: &mut BytesMut) -> Result<(), Unreadable> {
        let Some(OpenCall { index, id, name, arguments }) = self.call.take() else { return Ok(()) };
        let call = call(index, &id, &name, &arguments, is_cut)?;
        self.say(Said { calls: vec![call], ..Said::default() }, out);
        Ok(())
    }

    fn arguments(&mut self, index: usize, text: &str) -> Result<(), Unreadable> {
        let Some(call) = self.call.as_mut().filter(|call| call.index == index) else {
            return Err(Unreadable("the backend's stream continues a tool call behind the next one"));
        };
        self.most_kept.check(call.arguments.len().saturating_add(text.len()))?;
        call.arguments.push_str(text);
        Ok(())
    }

    fn text(&mut self, said: Said, out: &mut BytesMut) -> Result<(), Unreadable> {
        self.close_call(false, out)?;
        self.say(said, out);
        Ok(())
    }
}

impl WriteStream for StreamWriter {
    fn write(&mut self, delta: Delta, out: &mut BytesMut) -> Result<(), Unreadable> {
        if self.has_ended {
            return Ok(());
        }
        match delta {
            Delta::Start { model, tokens, .. } => {
                self.tokens = tokens.unwrap_or_default().or(self.tokens);
                self.model = model.unwrap_or_else(|| std::mem::take(&mut self.model));
            }
            Delta::Text { text, logprobs } => self.text(Said { text, logprobs, ..Said::default() }, out)?,
            Delta::Refusal(text) => self.text(Said { text, ..Said::default() }, out)?,
            Delta::Thinking(thinking) => self.text(Said { thinking, ..Said::default() }, out)?,
            // The API has no place for proofs of reasoning.
            Delta::Signature(_)
            | Delta::RedactedThinking(_)
            | Delta::TextEnd
            | Delta::ThinkingEnd
            | Delta::Choice(_) => {}
            Delta::ToolCall { index, id, name } => {
                self.close_call(false, out)?;
                self.call = Some(OpenCall { index, id, name, arguments: String::new() });
            }
            Delta::Arguments { text, .. } if text.is_empty() => {}
            Delta::Arguments { index, text } => self.arguments(index, &text)?,
            Delta::Finish(finish) => {
                self.close_call(finish == Finish::Length, out)?;
                self.finish = finish;
            }
            Delta::Usage(tokens) => self.tokens = tokens.or(self.tokens),
            // A line without content shows that the server is at work.
            Delta::Ping => self.say(Said::default(), out),
            Delta::Error(error) => {
                self.has_ended = true;
                out.put_slice(&error_of(&error));
                out.put_u8(b'\n');
            }
            Delta::End => {
                self.close_call(false, out)?;
                self.has_ended = true;
                let mut last = line(self.shape, &self.model, Said::default());
                end(&mut last, &self.finish, self.tokens);
                put_json(out, &last);
                out.put_u8(b'\n');
            }
        }
        Ok(())
    }
}
