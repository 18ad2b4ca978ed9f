//! Chat template of a model file, rendered by minijinja with a limit on its work: the template is as hostile as the
//! rest of the file.
//!
//! Callers' text is rendered as markers and inserted afterwards, so that it stays known which text is the template's
//! and which is the caller's. Parts that templates inspect stay visible: the whitespace around a text, which they
//! trim, and a few marks such as `</think>`, at which they cut. Tools and their calls, which templates take apart,
//! are passed unchanged; they are refused if they contain the text of a control token.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context};

use super::tools::{Tool, ToolCall, ToolStyle, python_json};
use super::{ChatMessage, Conversation, Tokenizer, date};
use crate::artifact::{MetaValue, ModelFile};
use crate::{LoadError, PromptError};

/// Instructions of one rendering; a conversation of a thousand messages takes some ten thousand.
const FUEL: u64 = 2_000_000;
/// Longest template and longest rendering, in bytes.
const MAX_TEMPLATE: usize = 256 << 10;
const MAX_RENDERED: usize = 4 << 20;

/// Marks that templates search for in a message, to leave out thoughts or to tell a tool's result from a question.
const INSPECTED_MARKS: [&str; 4] = ["<think>", "</think>", "<tool_response>", "</tool_response>"];

/// Private-use characters around the index of a caller's text.
const OPEN: char = '\u{F5A0}';
const CLOSE: char = '\u{F5A1}';
/// Opening marker within a JSON string.
const OPEN_JSON: char = '\u{F5A2}';

/// Part of a rendered conversation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text of the template, in which control tokens are recognised.
    Template(String),
    /// Text of a caller.
    Caller(String),
}

/// A compiled template.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    /// Marks of [`INSPECTED_MARKS`] that this template searches for and that are no control tokens of the model.
    inspected: Vec<&'static str>,
    /// Tool-call syntax of the model, if the template knows tools.
    tools: Option<ToolStyle>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles the template of a file; `None` for a model that was not tuned for conversations.
    pub(super) fn new(file: &ModelFile, tokenizer: &Tokenizer) -> Result<Option<Self>, LoadError> {
        let source = match file.meta("tokenizer.chat_template") {
            Some(MetaValue::String(source)) if source.len() <= MAX_TEMPLATE => source.clone(),
            Some(MetaValue::String(_)) => return Err(file.corrupt("the chat template is longer than 256 KiB")),
            _ => return Ok(None),
        };
        let source = without_training(&source);
        let is_text = |mark: &&str| source.contains(*mark) && tokenizer.split_control(mark).is_none();
        let inspected = INSPECTED_MARKS.into_iter().filter(is_text).collect();
        let tools = ToolStyle::of_template(&source, tokenizer);
        let mut environment = Environment::new();
        // Same settings as Hugging Face's apply_chat_template.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| file.unsupported(e.to_string()))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: &str| -> Result<String, Error> {
            let unknown = |c| Error::new(ErrorKind::InvalidOperation, format!("strftime_now knows no `%{c}`"));
            date::now(format).map_err(unknown)
        });
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source)
            .map_err(|e| file.unsupported(format!("the chat template cannot be compiled: {e}")))?;
        let text = |token: Option<u32>| token.and_then(|t| tokenizer.control_text(t)).unwrap_or_default().to_owned();
        Ok(Some(Self { environment, bos: text(tokenizer.bos()), eos: text(tokenizer.eos()), inspected, tools }))
    }

    /// Tool-call syntax; `None` if the template knows no tools or uses an unsupported syntax.
    pub(super) fn tools(&self) -> Option<ToolStyle> {
        self.tools
    }

    pub(super) fn render(
        &self,
        conversation: &Conversation<'_>,
        tokenizer: &Tokenizer,
    ) -> Result<Vec<Piece>, PromptError> {
        let Conversation { messages, tools, .. } = conversation;
        if messages.is_empty() {
            return Err(PromptError::Empty);
        }
        let has_tools = !tools.is_empty() || messages.iter().any(ChatMessage::is_about_tools);
        if has_tools && self.tools.is_none() {
            return Err(PromptError::NoTools);
        }
        for message in *messages {
            // Roles become part of the template's text, so only plain words are accepted: they cannot contain a
            // control token.
            let is_word = message.role.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            if message.role.is_empty() || !is_word {
                return Err(PromptError::Role(message.role.chars().take(32).collect()));
            }
        }
        let calls = |message: &ChatMessage| message.tool_calls.iter().map(|call| call_value(call, tokenizer)).collect();
        let calls = messages.iter().map(calls).collect::<Result<Vec<Vec<Value>>, _>>()?;
        let tools = tools.iter().map(|tool| tool_value(tool, tokenizer)).collect::<Result<Vec<Value>, _>>()?;
        let mut said = Vec::new();
        let shown: Vec<_> = messages
            .iter()
            .enumerate()
            .map(|(n, message)| {
                let content = self.with_markers(&message.content, tokenizer, &mut said);
                let plain = context! { role => message.role.as_str(), content };
                match (calls.get(n).filter(|calls| !calls.is_empty()), &message.tool_call_id) {
                    (Some(calls), _) => context! { tool_calls => calls, ..plain },
                    (None, Some(id)) => context! { tool_call_id => id.as_str(), ..plain },
                    (None, None) => plain,
                }
            })
            .collect();
        let failed = |e: Error| PromptError::Template(e.to_string());
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| {
                let given = context! {
                    messages => shown,
                    add_generation_prompt => true,
                    bos_token => self.bos.as_str(),
                    eos_token => self.eos.as_str(),
                };
                // Templates test whether `tools` is defined at all.
                template.render(if tools.is_empty() {
                    given
                } else {
                    context! { tools => tools, ..given }
                })
            })
            .map_err(failed)?;
        if rendered.len() > MAX_RENDERED {
            return Err(PromptError::Template("the rendering is longer than 4 MiB".into()));
        }
        Ok(pieces(&rendered, &said))
    }

    /// Replaces a message by markers for its texts, which are pushed to `said`, with the visible parts between them.
    /// An empty message stays empty, because templates test for that.
    fn with_markers<'m>(&self, message: &'m str, tokenizer: &Tokenizer, said: &mut Vec<&'m str>) -> String {
        let mut marked = String::new();
        let mut text = |text: &'m str, marked: &mut String| {
            let inner = text.trim();
            let (before, after) = text.split_once(inner).unwrap_or((text, ""));
            // Whitespace is no control token, unless the file says so.
            let is_text = |blanks: &str| tokenizer.split_control(blanks).is_none();
            let (before, inner, after) =
                if is_text(before) && is_text(after) { (before, inner, after) } else { ("", text, "") };
            marked.push_str(before);
            if !inner.is_empty() {
                marked.push_str(&format!("{OPEN}{}{CLOSE}", said.len()));
                said.push(inner);
            }
            marked.push_str(after);
        };
        let mut rest = message;
        let first = |rest: &str| self.inspected.iter().filter_map(|mark| Some((rest.find(mark)?, *mark))).min();
        while let Some((at, mark)) = first(rest) {
            let (before, after) = rest.split_at(at);
            text(before, &mut marked);
            marked.push_str(mark);
            rest = after.get(mark.len()..).unwrap_or_default();
        }
        text(rest, &mut marked);
        marked
    }
}

/// Splits a rendering at its markers and inserts the texts of the callers.
fn pieces(rendered: &str, said: &[&str]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut rest = rendered;
    while let Some((before, after)) = rest.split_once([OPEN, OPEN_JSON]) {
        let in_json = rest.get(before.len()..).is_some_and(|marker| marker.starts_with(OPEN_JSON));
        pieces.push(Piece::Template(before.to_owned()));
        let told = after.split_once(CLOSE).and_then(|(n, tail)| Some((said.get(n.parse::<usize>().ok()?)?, tail)));
        match told {
            Some((text, tail)) => {
                pieces.push(Piece::Caller(if in_json { in_quotes(text) } else { (*text).to_owned() }));
                rest = tail;
            }
            None => rest = after,
        }
    }
    pieces.push(Piece::Template(rest.to_owned()));
    pieces
}

/// Removes the marks of training (`{% generation %}`), which have no effect on answers.
fn without_training(source: &str) -> String {
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag, after)) =
        rest.split_once("{%").and_then(|(before, tag)| tag.split_once("%}").map(|(tag, after)| (before, tag, after)))
    {
        let word = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        // A block of the same extent, so that whitespace is trimmed in the same places.
        let tag = match word {
            "generation" => tag.replacen(word, "if true", 1),
            "endgeneration" => tag.replacen(word, "endif", 1),
            _ => tag.to_owned(),
        };
        plain.extend([before, "{%", &tag, "%}"]);
        rest = after;
    }
    plain + rest
}

/// A text as it is written between the quotes of a JSON string.
fn in_quotes(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.strip_prefix('"').and_then(|json| json.strip_suffix('"')).unwrap_or_default().to_owned()
}

/// Python's `json.dumps(ensure_ascii=False)`, with which models were trained: with blanks between entries, and
/// without the HTML escapes of minijinja's own filter.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let json = python_json(value, indent.map(|indent| indent.min(16)))
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    Ok(json.replace(OPEN, &OPEN_JSON.to_string()))
}

fn of_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::from(()),
        serde_json::Value::Bool(value) => Value::from(*value),
        serde_json::Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(n), _) => Value::from(n),
            (_, Some(n)) => Value::from(n),
            _ => Value::from(number.as_f64().unwrap_or_default()),
        },
        serde_json::Value::String(text) => Value::from(text.as_str()),
        serde_json::Value::Array(entries) => entries.iter().map(of_json).collect(),
        serde_json::Value::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, field)| (name.as_str(), of_json(field))))
        }
    }
}

/// A tool as templates expect it.
fn tool_value(tool: &Tool, tokenizer: &Tokenizer) -> Result<Value, PromptError> {
    let function: serde_json::Value =
        serde_json::from_str(&tool.function).map_err(|e| PromptError::Tools(format!("not JSON: {e}")))?;
    refuse_control_tokens(&function, tokenizer)?;
    Ok(of_json(&serde_json::json!({"type": "function", "function": function})))
}

/// A call as templates expect it: arguments that are JSON become an object.
fn call_value(call: &ToolCall, tokenizer: &Tokenizer) -> Result<Value, PromptError> {
    let arguments =
        serde_json::from_str(&call.arguments).unwrap_or_else(|_| serde_json::Value::from(call.arguments.as_str()));
    let call = serde_json::json!({
        "id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments},
    });
    refuse_control_tokens(&call, tokenizer)?;
    Ok(of_json(&call))
}

/// Refuses values that would be read as a control token in the template's text.
fn refuse_control_tokens(value: &serde_json::Value, tokenizer: &Tokenizer) -> Result<(), PromptError> {
    let check = |text: &str| {
        if tokenizer.split_control(text).is_some() || text.contains([OPEN, CLOSE, OPEN_JSON]) {
            return Err(PromptError::Tools("a text in it contains a control token of the model".into()));
        }
        Ok(())
    };
    match value {
        serde_json::Value::String(text) => check(text),
        serde_json::Value::Array(entries) => {
            entries.iter().try_for_each(|entry| refuse_control_tokens(entry, tokenizer))
        }
        serde_json::Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
            check(name)?;
            refuse_control_tokens(field, tokenizer)
        }),
        _ => Ok(()),
    }
}
