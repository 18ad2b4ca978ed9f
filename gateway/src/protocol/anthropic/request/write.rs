//! Writer of a request of the Messages API from the neutral types.

use serde_json::{Map, Value, json};
use spillway_filter::Refusal;

use super::content::{block_of, input_of};
use super::tools;
use crate::protocol::translate::{
    Conversation, Effort, Format, Lossy, NamedSetting, Part, Role, Setting, Thinking, ToolSpec, Turn, set,
};

/// Name of the API in refusals.
const API: &str = "anthropic";

/// `max_tokens` of a request without one: as much as every model of the API can write.
const MAX_TOKENS: u64 = 4096;

/// Writes a request for a server that knows the model as `model`.
pub(in crate::protocol::anthropic) fn write(
    conversation: &Conversation,
    model: &str,
    lossy: &mut Lossy<'_>,
) -> Result<Value, Refusal> {
    for hint in &conversation.hints {
        lossy.hint(hint);
    }
    let mut body = Map::new();
    body.insert("model".to_owned(), model.into());
    body.insert("max_tokens".to_owned(), MAX_TOKENS.into());
    let (instructions, turns) = leading_instructions(&conversation.turns);
    if !instructions.is_empty() {
        body.insert("system".to_owned(), instructions.into());
    }
    body.insert("messages".to_owned(), messages(turns, lossy)?);
    let mut tools = Vec::new();
    for tool in &conversation.tools {
        match tools::write(tool) {
            Some(tool) => tools.push(tool),
            None => {
                if let ToolSpec::Other { at, .. } = tool {
                    lossy.without(at, API)?;
                }
            }
        }
    }
    if !tools.is_empty() {
        body.insert("tools".to_owned(), tools.into());
        if let Some(pick) = tools::write_pick(conversation.tool_pick.as_ref(), conversation.one_tool_call) {
            body.insert("tool_choice".to_owned(), pick);
        }
    } else if conversation.tool_pick.is_some() || conversation.one_tool_call {
        // The tools between which it chooses were dropped.
        lossy.hint("tool_choice");
    }
    for named in conversation.settings.iter() {
        setting(named, &mut body, lossy)?;
    }
    if conversation.stream {
        body.insert("stream".to_owned(), true.into());
    }
    Ok(Value::Object(body))
}

/// Instructions before the first other message, as blocks, and the turns behind them.
fn leading_instructions(turns: &[Turn]) -> (Vec<Value>, &[Turn]) {
    let leading = turns.iter().take_while(|turn| turn.role == Role::System).count();
    let (system, rest) = turns.split_at_checked(leading).unwrap_or((&[], turns));
    // A conversation of instructions alone needs a message.
    if rest.is_empty() {
        return (Vec::new(), turns);
    }
    let blocks = system.iter().flat_map(|turn| &turn.parts).filter(|part| !is_empty_text(part)).filter_map(block_of);
    (blocks.collect(), rest)
}

/// The API refuses empty texts.
fn is_empty_text(part: &Part) -> bool {
    matches!(part, Part::Text(text) | Part::Refusal(text) if text.is_empty())
}

/// Writes the messages. Those of one role in a row become one: results of tools that other APIs keep apart belong together.
fn messages(turns: &[Turn], lossy: &mut Lossy<'_>) -> Result<Value, Refusal> {
    let mut written: Vec<(Role, Vec<Value>)> = Vec::new();
    for turn in turns {
        let mut blocks = Vec::new();
        for part in turn.parts.iter().filter(|part| !is_empty_text(part)) {
            check(part, &turn.at, lossy)?;
            blocks.extend(block_of(part));
        }
        if blocks.is_empty() {
            continue;
        }
        match written.last_mut() {
            Some((role, earlier)) if *role == turn.role => earlier.append(&mut blocks),
            _ => written.push((turn.role, blocks)),
        }
    }
    let messages = written.into_iter().map(|(role, mut blocks)| {
        if role == Role::User {
            // Results come first in their message.
            blocks.sort_by_key(|block| block["type"] != "tool_result");
        }
        let role = match role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        json!({"role": role, "content": blocks})
    });
    Ok(messages.collect())
}

/// Refuses a part that the API cannot express, and records what is lost of it.
fn check(part: &Part, at: &str, lossy: &mut Lossy<'_>) -> Result<(), Refusal> {
    match part {
        Part::Other { at, .. } => Err(Lossy::no_counterpart(at, API)),
        Part::ToolResult { parts, .. } => parts.iter().try_for_each(|part| check(part, at, lossy)),
        Part::ToolCall { arguments, .. } if input_of(arguments).is_none() => {
            let name = format!("{at}.tool_calls");
            let message = format!("`{name}` has arguments that are no JSON object.");
            Err(Refusal::invalid("invalid_value", message).param(name))
        }
        // Servers refuse reasoning that they cannot prove to be theirs.
        Part::Thinking { signature: None, .. } => {
            lossy.hint(&format!("{at}.reasoning_content"));
            Ok(())
        }
        _ => Ok(()),
    }
}

fn setting(named: &NamedSetting, body: &mut Map<String, Value>, lossy: &mut Lossy<'_>) -> Result<(), Refusal> {
    let NamedSetting { name, setting } = named;
    let (field, value): (&str, Value) = match setting {
        Setting::MaxTokens(most) => ("max_tokens", (*most).into()),
        Setting::Temperature(number) => ("temperature", number.clone().into()),
        Setting::TopP(number) => ("top_p", number.clone().into()),
        Setting::TopK(count) => ("top_k", (*count).into()),
        Setting::Stop(stop) => ("stop_sequences", stop.clone().into()),
        Setting::User(user) => ("metadata", json!({"user_id": user})),
        Setting::Thinking(thinking) => ("thinking", thinking_of(*thinking)),
        Setting::Effort(effort) => ("output_config.effort", effort_of(*effort).into()),
        Setting::Format(Format::JsonSchema { schema, .. }) => {
            ("output_config.format", json!({"type": "json_schema", "schema": schema}))
        }
        Setting::Format(Format::JsonObject)
        | Setting::MinP(_)
        | Setting::Seed(_)
        | Setting::PresencePenalty(_)
        | Setting::FrequencyPenalty(_)
        | Setting::RepetitionPenalty(_)
        | Setting::LogitBias(_)
        | Setting::Choices(_)
        | Setting::Logprobs(_)
        | Setting::Other(_)
        | Setting::Unknown(_) => return lossy.without(name, API),
    };
    if lossy.drops(name, Some(field)) {
        return Ok(());
    }
    match field.split_once('.') {
        None => {
            body.insert(field.to_owned(), value);
        }
        Some((outer, inner)) => {
            let outer = body.entry(outer).or_insert_with(|| json!({}));
            set(outer, inner, value);
        }
    }
    Ok(())
}

fn thinking_of(thinking: Thinking) -> Value {
    match thinking {
        Thinking::Off => json!({"type": "disabled"}),
        Thinking::Adaptive => json!({"type": "adaptive"}),
        Thinking::Budget(tokens) => json!({"type": "enabled", "budget_tokens": tokens}),
    }
}

/// The API knows no effort below low.
fn effort_of(effort: Effort) -> &'static str {
    effort.max(Effort::Low).as_str()
}
