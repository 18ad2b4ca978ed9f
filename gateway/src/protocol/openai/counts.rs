//! Counts of tokens between this API and others: `/v1/responses/input_tokens`, and `/tokenize` of vLLM, which renders a
//! conversation by the model's own template.

use serde::Deserialize;
use serde_json::{Map, Value};
use spillway_filter::Refusal;

use super::responses::{self, Responses, read_count};
use super::translate::{ChatCompletions, write_request};
use crate::protocol::translate::{
    Conversation, CountCaller, CountServer, Lossy, Part, ServerWords, Setting, WrittenRequest,
};

/// Callers of `/v1/responses/input_tokens`.
pub(in crate::protocol) static CALLER: CountCaller =
    CountCaller { api: &Responses, read: read_count, write: responses::token_count };

/// Servers of `/v1/responses/input_tokens`.
pub(in crate::protocol) static RESPONSES: CountServer = CountServer {
    api: &ChatCompletions,
    path: "/v1/responses/input_tokens",
    write: responses::write_count,
    read: input_tokens,
};

/// Servers of vLLM's `/tokenize`.
pub(in crate::protocol) static TOKENIZE: CountServer =
    CountServer { api: &ChatCompletions, path: "/tokenize", write: tokenize, read: count };

/// Name of the API in refusals.
const API: &str = "openai";

/// Fields of `/tokenize` that a conversation has too.
const TOKENIZED: [&str; 3] = ["messages", "model", "tools"];

/// Count of an answer in the form of the Responses API and of Anthropic's.
pub(in crate::protocol) fn input_tokens(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Count {
        input_tokens: u64,
    }
    serde_json::from_slice(body).ok().map(|Count { input_tokens }| input_tokens)
}

/// Count of an answer of vLLM's. Other servers answer here with a list of tokens alone, of a prompt that they did not render.
fn count(body: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Count {
        count: u64,
    }
    serde_json::from_slice(body).ok().map(|Count { count }| count)
}

fn has_image(parts: &[Part]) -> bool {
    parts.iter().any(|part| match part {
        Part::Image(_) => true,
        Part::ToolResult { parts, .. } => has_image(parts),
        _ => false,
    })
}

/// Writes a question for `/tokenize`. Images are refused: their tokens are counted there only once they are read.
fn tokenize(conversation: &Conversation, model: &str, lossy: &mut Lossy<'_>) -> Result<WrittenRequest, Refusal> {
    if let Some(turn) = conversation.turns.iter().find(|turn| has_image(&turn.parts)) {
        return Err(Lossy::no_counterpart(&format!("{}.content", turn.at), API));
    }
    if let Some(named) = conversation.settings.iter().find(|named| matches!(named.setting, Setting::Format(_))) {
        lossy.hint(&named.name);
    }
    let written = write_request(conversation, (model, ServerWords::default()), lossy)?;
    let Value::Object(written) = written else { return Err(Lossy::no_counterpart("messages", API)) };
    let mut body: Map<String, Value> =
        written.into_iter().filter(|(name, _)| TOKENIZED.contains(&name.as_str())).collect();
    body.insert("add_generation_prompt".to_owned(), true.into());
    Ok(WrittenRequest { body: crate::protocol::json(&body), headers: Vec::new() })
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use serde_json::json;
    use spillway_filter::Fields;

    use super::*;
    use crate::protocol::call_translator;
    use crate::protocol::operation::Operation;
    use crate::protocol::translate::{CallAnswer, CallerCall, MostKept, ServerAnswer, ServerKind, WrittenCall};
    use crate::protocol::{ANTHROPIC, Dialect, OPENAI};

    fn ask(
        caller: &'static dyn Dialect,
        server: ServerKind,
        body: &Value,
    ) -> Result<(WrittenCall, Option<String>), Refusal> {
        let (headers, bytes) = (Fields::default(), body.to_string());
        let call = CallerCall {
            operation: Operation::CountTokens,
            method: &Method::POST,
            path: "/v1/messages/count_tokens",
            headers: &headers,
            body: bytes.as_bytes(),
            model: Some("m"),
            renamed: Some("theirs"),
            takes_trailers: false,
        };
        let mut lossy = Lossy::default();
        let written = call_translator(caller, Operation::CountTokens, server).unwrap().write(&call, &mut lossy)?;
        Ok((written, lossy.header().map(|value| value.to_str().unwrap().to_owned())))
    }

    fn told(written: &WrittenCall, status: u16, body: &str) -> CallAnswer {
        written.reader.read(&ServerAnswer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: &Fields::default(),
            body: Ok(body.as_bytes()),
            most_kept: MostKept::default(),
            trailers: None,
            stands_in: false,
            request_id: "id",
        })
    }

    fn json_of(bytes: &[u8]) -> Value {
        serde_json::from_slice(bytes).unwrap()
    }

    const VLLM: ServerKind = ServerKind { dialect: OPENAI, has_responses: false, has_tokenize: true };
    const PLATFORM: ServerKind = ServerKind { dialect: OPENAI, has_responses: true, has_tokenize: false };
    const CLAUDE: ServerKind = ServerKind { dialect: ANTHROPIC, has_responses: true, has_tokenize: false };

    fn question() -> Value {
        json!({"model": "m", "system": "s", "temperature": 0, "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": "c"}, {"type": "text", "text": "a"},
                {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "r"}]}],
            "tools": [{"name": "f", "description": "F", "input_schema": {"type": "object"}}]})
    }

    #[test]
    fn questions_of_anthropics_callers_reach_both_forms_of_openais_servers() {
        let (written, dropped) = ask(ANTHROPIC, PLATFORM, &question()).unwrap();
        assert_eq!(written.path, "/v1/responses/input_tokens");
        assert_eq!(dropped.as_deref(), Some("messages[1].thinking"));
        assert_eq!(
            json_of(&written.body),
            json!({"model": "theirs", "input": [
                {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "s"}]},
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
                {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{\"x\":1}"},
                {"type": "function_call_output", "call_id": "1", "output": [{"type": "input_text", "text": "r"}]}],
                "tools": [{"type": "function", "name": "f", "description": "F", "parameters": {"type": "object"}, "strict": null}]})
        );
        let answer = told(&written, 200, r#"{"object":"response.input_tokens","input_tokens":42}"#);
        assert_eq!(json_of(&answer.body), json!({"input_tokens": 42}));

        let (written, _) = ask(ANTHROPIC, VLLM, &question()).unwrap();
        let sent = json_of(&written.body);
        assert_eq!((&*written.path, &sent["add_generation_prompt"]), ("/tokenize", &json!(true)));
        let names: Vec<&str> = sent.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["model", "messages", "tools", "add_generation_prompt"]);
        let answer = told(&written, 200, r#"{"count":7,"max_model_len":10,"tokens":[1,2,3,4,5,6,7]}"#);
        assert_eq!(json_of(&answer.body), json!({"input_tokens": 7}));
        // llama.cpp, which does not render conversations there.
        let answer = told(&written, 200, r#"{"tokens":[]}"#);
        assert_eq!((answer.status.as_u16(), answer.unreadable.is_some()), (502, true));
        let answer = told(&written, 404, r#"{"error":{"message":"no such path"}}"#);
        assert_eq!(answer.status.as_u16(), 404);
        assert_eq!(json_of(&answer.body)["error"]["type"], "not_found_error");

        let image = json!({"type": "image", "source": {"type": "url", "url": "https://a.test/i.png"}});
        let asked = json!({"model": "m", "messages": [{"role": "user", "content": [image]}]});
        assert_eq!(ask(ANTHROPIC, VLLM, &asked).err().unwrap().param.as_deref(), Some("messages[0].content"));
        assert!(ask(ANTHROPIC, PLATFORM, &asked).is_ok());
    }

    #[test]
    fn questions_of_openais_callers_reach_anthropics_servers() {
        let asked = json!({"model": "m", "input": "hi", "instructions": "s",
            "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}}]});
        let (written, _) = ask(OPENAI, CLAUDE, &asked).unwrap();
        assert_eq!(written.path, "/v1/messages/count_tokens");
        assert!(written.headers.iter().any(|(name, _)| name == "anthropic-version"));
        let sent = json_of(&written.body);
        let names: Vec<&str> = sent.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(names, ["model", "system", "messages", "tools"]);
        let answer = told(&written, 200, r#"{"input_tokens":9}"#);
        assert_eq!(json_of(&answer.body), json!({"object": "response.input_tokens", "input_tokens": 9}));
        for (name, value) in [("previous_response_id", json!("resp_1")), ("conversation", json!("c"))] {
            let mut asked = asked.clone();
            asked[name] = value;
            assert_eq!(ask(OPENAI, CLAUDE, &asked).err().unwrap().param.as_deref(), Some(name));
        }
    }

    #[test]
    fn servers_without_a_counterpart_are_not_asked() {
        let chat_only = ServerKind { dialect: OPENAI, has_responses: false, has_tokenize: false };
        assert!(call_translator(ANTHROPIC, Operation::CountTokens, chat_only).is_none());
        assert!(call_translator(OPENAI, Operation::CountTokens, chat_only).is_none());
        assert!(call_translator(OPENAI, Operation::CountTokens, VLLM).is_some());
    }
}
