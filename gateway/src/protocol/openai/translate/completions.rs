//! The older completions to and from the neutral types: one text of a prompt is a message of the user. What a conversation cannot
//! express is refused by the name of its field, or dropped where the backend says so.

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderName, StatusCode};
use serde_json::{Value, json};
use spillway_filter::Refusal;

use super::error::{self, write_error_event};
use super::reply::new_id;
use super::request::{finish, sampling, stream};
use super::shapes::{Usage, reason_of};
use super::stream::Chunk;
use super::{MAX_NAME, is_own_header};
use crate::protocol::translate::{
    Api, ApiError, Asked, CallerApi, Conversation, Delta, Fields, Finish, Part, Reply, Role, Setting, Tokens, Turn,
    Unreadable, WriteStream, json_object, write_event,
};

/// `max_tokens` of a request without one, as in OpenAI's API.
const MAX_TOKENS: u64 = 16;

/// Translator of the older completions.
pub(in crate::protocol::openai) struct Completions;

/// Fields that a conversation has no form for, with the value that asks for nothing.
fn special() -> [(&'static str, Value); 4] {
    [("best_of", 1.into()), ("echo", false.into()), ("logprobs", Value::Null), ("suffix", "".into())]
}

/// Reads a request.
fn read(body: &[u8]) -> Result<Conversation, Refusal> {
    let mut fields = Fields::new(json_object(body)?, "");
    let mut request = Conversation { model: fields.text("model")?, ..Conversation::default() };
    stream(&mut fields, &mut request)?;
    let prompt = match fields.take("prompt") {
        None => return Err(fields.missing("prompt")),
        // A list of one text asks for the same.
        Some(Value::Array(list)) if list.len() == 1 && list.iter().all(Value::is_string) => list.into_iter().next(),
        Some(prompt) => Some(prompt),
    };
    match prompt {
        Some(Value::String(text)) => {
            request.turns.push(Turn { role: Role::User, parts: vec![Part::Text(text)], at: "prompt".to_owned() });
        }
        _ => {
            return Err(fields.wrong(
                "unsupported_value",
                "prompt",
                "must be one text: the server holds conversations",
            ));
        }
    }
    for (name, nothing) in special() {
        if let Some(value) = fields.take(name).filter(|value| *value != nothing) {
            request.settings.push(name, Setting::Other(value));
        }
    }
    sampling(&mut fields, &mut request)?;
    if !request.settings.iter().any(|named| matches!(named.setting, Setting::MaxTokens(_))) {
        request.settings.push("max_tokens", Setting::MaxTokens(MAX_TOKENS));
    }
    finish(fields, &mut request)?;
    Ok(request)
}

/// Text of an answer; `None` of a part that has no place in a completion.
fn text_of(part: &Part) -> Option<&str> {
    match part {
        Part::Text(text) | Part::Refusal(text) => Some(text),
        // No tools were offered, and reasoning is no part of the text.
        _ => None,
    }
}

fn choice(index: usize, text: &str, finish: Value) -> Value {
    json!({"index": index, "text": text, "logprobs": null, "finish_reason": finish})
}

fn whole_choice(index: usize, parts: &[Part], finish: &Finish) -> Value {
    let text: String = parts.iter().filter_map(text_of).collect();
    choice(index, &text, reason_of(finish).into())
}

impl Api for Completions {
    fn path(&self) -> &'static str {
        "/v1/completions"
    }

    fn is_own_header(&self, name: &HeaderName) -> bool {
        is_own_header(name)
    }
}

impl CallerApi for Completions {
    fn read_request(&self, body: &[u8]) -> Result<Conversation, Refusal> {
        read(body)
    }

    fn write_reply(&self, reply: &Reply, asked: &Asked) -> Result<Bytes, Unreadable> {
        let first = whole_choice(0, &reply.parts, &reply.finish);
        let further = reply.further.iter().map(|choice| whole_choice(choice.index, &choice.parts, &choice.finish));
        let id = reply.id.clone().unwrap_or_else(|| new_id("cmpl-"));
        Ok(crate::protocol::json(&Chunk {
            id: &id,
            object: "text_completion",
            created: crate::clock::unix_now(),
            model: reply.model.as_deref().unwrap_or(&asked.model),
            choices: std::iter::once(first).chain(further).collect(),
            usage: Some(Some(reply.tokens.unwrap_or_default().into())),
        }))
    }

    fn write_stream(&self, asked: &Asked) -> Box<dyn WriteStream> {
        Box::new(StreamWriter {
            id: String::new(),
            model: asked.model.clone(),
            include_usage: asked.include_usage,
            created: crate::clock::unix_now(),
            choice: 0,
            has_ended: false,
            tokens: Tokens::default(),
        })
    }

    fn write_error(&self, error: &ApiError, _request_id: &str) -> (StatusCode, Bytes) {
        error::write(error)
    }
}

/// Writer of the stream for a caller.
#[derive(Debug)]
struct StreamWriter {
    id: String,
    model: String,
    include_usage: bool,
    created: u64,
    /// Choice that is written.
    choice: usize,
    has_ended: bool,
    tokens: Tokens,
}

impl StreamWriter {
    fn chunk(&mut self, choices: Vec<Value>, usage: Option<Option<Usage>>, out: &mut BytesMut) {
        if self.id.is_empty() {
            self.id = new_id("cmpl-");
        }
        let Self { id, model, created, .. } = self;
        let chunk = Chunk { id, object: "text_completion", created: *created, model, choices, usage };
        write_event(out, None, &chunk);
    }

    fn say(&mut self, text: &str, finish: Value, out: &mut BytesMut) {
        let usage = self.include_usage.then_some(None);
        self.chunk(vec![choice(self.choice, text, finish)], usage, out);
    }
}

impl WriteStream for StreamWriter {
    fn write(&mut self, delta: Delta, out: &mut BytesMut) -> Result<(), Unreadable> {
        if self.has_ended {
            return Ok(());
        }
        match delta {
            Delta::Start { id, model, tokens } => {
                // Every chunk repeats them.
                let short = |name: &String| name.len() <= MAX_NAME;
                self.tokens = tokens.unwrap_or_default().or(self.tokens);
                self.id = id.filter(short).unwrap_or_default();
                self.model = model.filter(short).unwrap_or_else(|| std::mem::take(&mut self.model));
            }
            Delta::Text { text, .. } | Delta::Refusal(text) => self.say(&text, Value::Null, out),
            Delta::Choice(index) => self.choice = index,
            Delta::Finish(finish) => self.say("", reason_of(&finish).into(), out),
            Delta::Usage(tokens) => self.tokens = tokens.or(self.tokens),
            // Reasoning shows that the server is at work.
            Delta::Ping | Delta::Thinking(_) => out.put_slice(b": ping\n\n"),
            Delta::Signature(_)
            | Delta::RedactedThinking(_)
            | Delta::TextEnd
            | Delta::ThinkingEnd
            | Delta::ToolCall { .. }
            | Delta::Arguments { .. } => {}
            Delta::Error(error) => {
                self.has_ended = true;
                write_error_event(&error, out);
            }
            Delta::End => {
                self.has_ended = true;
                if self.include_usage {
                    self.chunk(Vec::new(), Some(Some(self.tokens.into())), out);
                }
                out.put_slice(b"data: [DONE]\n\n");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::translate::{Lossy, ServerWords};
    use crate::protocol::{ANTHROPIC, OPENAI};

    fn written(body: &Value) -> Result<Value, Refusal> {
        let conversation = Completions.read_request(body.to_string().as_bytes())?;
        let server = ANTHROPIC.conversations().unwrap();
        let request = server.write_request(&conversation, ("claude", ServerWords::default()), &mut Lossy::default())?;
        Ok(serde_json::from_slice(&request.body).unwrap())
    }

    #[test]
    fn a_prompt_is_a_message_and_the_answer_its_continuation() {
        let message = json!([{"role": "user", "content": [{"type": "text", "text": "Once"}]}]);
        for prompt in [json!("Once"), json!(["Once"])] {
            let sent = written(&json!({"model": "m", "prompt": prompt, "stop": ["."], "echo": false, "n": 1})).unwrap();
            let expected = json!({"model": "claude", "max_tokens": 16, "stop_sequences": ["."], "messages": message});
            assert_eq!(sent, expected);
        }
        let sent = written(&json!({"model": "m", "prompt": "Once", "max_tokens": 7, "stream": true})).unwrap();
        assert_eq!((&sent["max_tokens"], &sent["stream"]), (&json!(7), &json!(true)));
        let asked = Asked { model: "m".to_owned(), ..Asked::default() };
        let reply = Reply {
            parts: vec![Part::Thinking { text: "hm".to_owned(), signature: None }, Part::Text(" upon".to_owned())],
            finish: Finish::Length,
            tokens: Some(Tokens { input: Some(3), output: Some(1), ..Tokens::default() }),
            ..Reply::default()
        };
        let told: Value = serde_json::from_slice(&Completions.write_reply(&reply, &asked).unwrap()).unwrap();
        assert_eq!(
            told["choices"],
            json!([{"index": 0, "text": " upon", "logprobs": null, "finish_reason": "length"}])
        );
        assert_eq!((&told["object"], &told["usage"]["total_tokens"]), (&json!("text_completion"), &json!(4)));
    }

    #[test]
    fn what_a_conversation_cannot_express_is_refused_by_name() {
        for (name, value) in [
            ("echo", json!(true)),
            ("suffix", json!("end")),
            ("logprobs", json!(0)),
            ("best_of", json!(2)),
            ("n", json!(2)),
            ("prompt", json!([1, 2])),
            ("prompt", json!(["a", "b"])),
            ("prompt", json!([[1]])),
            ("surprise", json!(1)),
        ] {
            let mut body = json!({"model": "m", "prompt": "a"});
            body[name] = value.clone();
            let refusal = written(&body).unwrap_err();
            assert_eq!((refusal.status.as_u16(), refusal.param.as_deref()), (400, Some(name)), "{name}: {value}");
        }
        assert_eq!(written(&json!({"model": "m"})).unwrap_err().param.as_deref(), Some("prompt"));
    }

    #[test]
    fn a_stream_is_written_in_chunks() {
        let asked = Asked { model: "m".to_owned(), stream: true, include_usage: true, ..Asked::default() };
        let (mut writer, mut out) = (Completions.write_stream(&asked), BytesMut::new());
        let tokens = Tokens { input: Some(1), output: Some(2), ..Tokens::default() };
        for delta in [
            Delta::Start { id: Some("x".to_owned()), model: None, tokens: None },
            Delta::Text { text: "a".to_owned(), logprobs: Vec::new() },
            Delta::Finish(Finish::Stop),
            Delta::Usage(tokens),
            Delta::End,
        ] {
            writer.write(delta, &mut out).unwrap();
        }
        let text = String::from_utf8(out.to_vec()).unwrap();
        let events: Vec<&str> =
            text.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect();
        assert_eq!((events.len(), events[3]), (4, "[DONE]"));
        let told: Vec<Value> = events[..3].iter().map(|event| serde_json::from_str(event).unwrap()).collect();
        assert_eq!(told[0]["choices"], json!([choice(0, "a", Value::Null)]));
        assert_eq!(told[1]["choices"], json!([choice(0, "", json!("stop"))]));
        assert_eq!(
            (&told[2]["choices"], &told[2]["usage"]["total_tokens"], &told[0]["usage"]),
            (&json!([]), &json!(3), &Value::Null)
        );
        assert!(told.iter().all(|chunk| chunk["id"] == "x" && chunk["model"] == "m"));
    }

    #[test]
    fn several_choices_of_a_server_of_chats_keep_their_numbers() {
        let asked = Asked { model: "m".to_owned(), stream: true, choices: 2, ..Asked::default() };
        let body = json!({"model": "m", "prompt": "Once", "n": 2, "stop": "."});
        let conversation = Completions.read_request(body.to_string().as_bytes()).unwrap();
        let server = OPENAI.conversations().unwrap();
        let sent = server.write_request(&conversation, ("gpt", ServerWords::default()), &mut Lossy::default()).unwrap();
        let sent: Value = serde_json::from_slice(&sent.body).unwrap();
        assert_eq!(
            (&sent["n"], &sent["stop"], &sent["messages"][0]["content"]),
            (&json!(2), &json!(["."]), &json!("Once"))
        );

        let chosen = |index: usize, text: &str, finish: Value| json!({"index": index, "message": {"content": text}, "finish_reason": finish});
        let stop = || json!("stop");
        let body = json!({"choices": [chosen(1, "b", json!("length")), chosen(0, "a", stop())]});
        let reply = server.read_reply(body.to_string().as_bytes()).unwrap();
        let told: Value = serde_json::from_slice(&Completions.write_reply(&reply, &asked).unwrap()).unwrap();
        assert_eq!(told["choices"], json!([choice(0, "a", stop()), choice(1, "b", json!("length"))]));
        let written = |deltas: Vec<Delta>| {
            let (mut writer, mut out) = (Completions.write_stream(&asked), BytesMut::new());
            deltas.into_iter().for_each(|delta| writer.write(delta, &mut out).unwrap());
            let text = String::from_utf8(out.to_vec()).unwrap();
            let events = text.split_terminator("\n\n").filter_map(|event| event.strip_prefix("data: {"));
            let choices =
                events.map(|event| serde_json::from_str::<Value>(&format!("{{{event}")).unwrap()["choices"][0].take());
            choices.collect::<Vec<_>>()
        };
        // A server that does not stream, and one that alternates; a choice that nobody asked for is dropped.
        let of_whole = written(crate::protocol::translate::deltas_of(reply));
        assert_eq!((of_whole[0]["index"].clone(), of_whole[3].clone()), (json!(0), choice(1, "", json!("length"))));
        let chunk = |index: usize, text: &str, finish: Value| {
            format!(
                "data: {}\n\n",
                json!({"choices": [{"index": index, "delta": {"content": text}, "finish_reason": finish}]})
            )
        };
        let parts =
            [(0, "a"), (1, "b"), (2, "c"), (0, "d"), (1, "e")].map(|(index, text)| chunk(index, text, Value::Null));
        let ends = [chunk(0, "", stop()), chunk(1, "", json!("length"))];
        for (text, is_whole) in [(parts.concat() + &ends.concat(), true), (parts.concat() + &ends[0], false)] {
            let (mut reader, mut deltas) = (server.read_stream(2), Vec::new());
            reader.feed(text.as_bytes(), &mut |delta| deltas.push(delta)).unwrap();
            assert_eq!(reader.finish(&mut |delta| deltas.push(delta)).unwrap(), is_whole, "{text}");
            let choices = written(deltas);
            let texts = |wanted: usize| {
                let of_one = choices.iter().filter(|choice| choice["index"] == wanted);
                of_one.map(|choice| choice["text"].as_str().unwrap()).collect::<String>()
            };
            assert_eq!((texts(0), texts(1), texts(2)), ("ad".to_owned(), "be".to_owned(), String::new()));
        }
    }
}
