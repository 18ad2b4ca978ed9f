//! Answers of built-in models through the translator of an API, for APIs that write no answers of their own.

use bytes::{BufMut, BytesMut};
use spillway_engine::WrittenToken;
use spillway_filter::Refusal;

use super::{ApiError, Asked, CallerApi, Delta, Finish, MostKept, Part, Reply, Tokens, WriteStream};
use crate::protocol::chat::{Call, Choice, FinishReason, Usage};
use crate::protocol::dialect::{AnswerHead, WriteAnswer};

/// Writer of the answer `id` with this head, in an API.
pub fn answer(api: &'static dyn CallerApi, id: String, head: AnswerHead<'_>) -> Box<dyn WriteAnswer> {
    let asked = Asked {
        model: head.model.to_owned(),
        stream: true,
        choices: 1,
        include_usage: head.include_usage,
        echoed: head.echoed.into(),
        most_kept: MostKept::default(),
    };
    Box::new(Answer { api, id, prompt_tokens: head.prompt_tokens, writer: api.write_stream(&asked), asked, stop: None })
}

/// Answer of one choice: APIs with several write their own.
struct Answer {
    api: &'static dyn CallerApi,
    id: String,
    prompt_tokens: u64,
    asked: Asked,
    /// Writer of an event stream.
    writer: Box<dyn WriteStream>,
    /// Stop string that ended the answer.
    stop: Option<String>,
}

impl Answer {
    fn put(&mut self, out: &mut BytesMut, delta: Delta) {
        if let Err(error) = self.writer.write(delta, out) {
            // A built-in model says nothing that an API cannot express.
            tracing::error!(event = "answer_not_written", reason = %error);
        }
    }
}

fn finish_of(reason: FinishReason, stop: Option<String>) -> Finish {
    match (reason, stop) {
        (FinishReason::Stop, None) => Finish::Stop,
        (FinishReason::Stop, stop) => Finish::StopString(stop),
        (FinishReason::Length, _) => Finish::Length,
        (FinishReason::ToolCalls, _) => Finish::ToolCalls,
    }
}

fn tokens_of(usage: Usage) -> Tokens {
    Tokens {
        input: Some(usage.prompt_tokens),
        cache_read: usage.cached_tokens,
        cache_written: usage.cache_written_tokens,
        output: Some(usage.completion_tokens),
        reasoning: usage.reasoning_tokens,
    }
}

impl WriteAnswer for Answer {
    fn id(&self) -> &str {
        &self.id
    }

    fn first(&mut self, out: &mut BytesMut, _choice: u32) {
        let tokens = Tokens { input: Some(self.prompt_tokens), ..Tokens::default() };
        let (id, model) = (Some(self.id.clone()), Some(self.asked.model.clone()));
        self.put(out, Delta::Start { id, model, tokens: Some(tokens) });
    }

    fn resumed(&mut self, _out: &mut BytesMut) {}

    fn piece(
        &mut self,
        out: &mut BytesMut,
        _choice: u32,
        text: &str,
        _written: Option<&[WrittenToken]>,
        _reported: usize,
    ) -> usize {
        self.put(out, Delta::Text { text: text.to_owned(), logprobs: Vec::new() });
        0
    }

    fn call(&mut self, out: &mut BytesMut, _choice: u32, n: usize, call: &Call) {
        let (id, name) = (call.id.clone(), call.name.clone());
        self.put(out, Delta::ToolCall { index: n, id, name });
        self.put(out, Delta::Arguments { index: n, text: call.arguments.clone() });
    }

    fn stopped(&mut self, _choice: u32, stop: &str) {
        self.stop = Some(stop.to_owned());
    }

    fn ended(&mut self, out: &mut BytesMut, _choice: u32, reason: FinishReason) {
        let stop = self.stop.take();
        self.put(out, Delta::Finish(finish_of(reason, stop)));
    }

    fn last(&mut self, out: &mut BytesMut, usage: Usage) {
        self.put(out, Delta::Usage(tokens_of(usage)));
        self.put(out, Delta::End);
    }

    fn failed(&mut self, out: &mut BytesMut, refusal: &Refusal) {
        self.put(out, Delta::Error(error_of(refusal)));
    }

    fn whole(&mut self, out: &mut BytesMut, choices: &[Choice], usage: Usage) {
        let Some(choice) = choices.first() else { return };
        let mut parts = Vec::new();
        if !choice.text.is_empty() {
            parts.push(Part::Text(choice.text.clone()));
        }
        parts.extend(choice.calls.iter().map(|Call { id, name, arguments }| Part::ToolCall {
            id: id.clone(),
            name: name.clone(),
            arguments: arguments.clone(),
        }));
        let reply = Reply {
            id: Some(self.id.clone()),
            model: Some(self.asked.model.clone()),
            parts,
            logprobs: Vec::new(),
            finish: finish_of(choice.finish_reason, choice.stop.clone()),
            further: Vec::new(),
            tokens: Some(tokens_of(usage)),
        };
        match self.api.write_reply(&reply, &self.asked) {
            Ok(body) => out.put_slice(&body),
            Err(error) => tracing::error!(event = "answer_not_written", reason = %error),
        }
    }
}

/// Error of the gateway in the form in which servers have theirs.
pub(super) fn error_of(refusal: &Refusal) -> ApiError {
    ApiError {
        status: refusal.status,
        kind: refusal.kind,
        message: refusal.message.clone().into_owned(),
        code: Some(refusal.code.to_owned()),
        param: refusal.param.clone().map(|param| param.into_owned()),
    }
}
