//! The chat template of a file, rendered by minijinja with a limit on its work: it comes with the model and is as
//! hostile as the rest of the file.
//!
//! What callers say is rendered as markers and put in afterwards, so that it stays known which text is the template's
//! and which is theirs. Tools and their calls, which templates take apart, are given as they are: they are refused where
//! they hold the text of a control token.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Kwargs;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context};

use super::tools::{Tool, ToolCall, ToolStyle, python_json};
use super::{ChatMessage, Conversation, Tokenizer};
use crate::artifact::{MetaValue, ModelFile};
use crate::{LoadError, PromptError};

/// Instructions that one rendering may take; a conversation of a thousand messages takes some ten thousand.
const FUEL: u64 = 2_000_000;
/// Longest template, and longest text that a rendering may give.
const MAX_TEMPLATE: usize = 256 << 10;
const MAX_RENDERED: usize = 4 << 20;

/// Private-use characters around the number of a message.
const OPEN: char = '\u{F5A0}';
const CLOSE: char = '\u{F5A1}';
/// The same within a JSON string.
const OPEN_JSON: char = '\u{F5A2}';

/// A part of a rendered conversation.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Text of the template, in which control tokens mean what they say.
    Template(String),
    /// Text of a caller.
    Said(String),
}

/// A compiled template.
pub(super) struct ChatTemplate {
    environment: Environment<'static>,
    bos: String,
    eos: String,
    /// The template trims what is said, which a marker would keep it from.
    trims: bool,
    /// How the model calls tools, where the template tells it of them.
    tools: Option<ToolStyle>,
}

const NAME: &str = "chat";

impl ChatTemplate {
    /// The template of a file; none for a model that was not tuned for conversations.
    pub(super) fn new(file: &ModelFile, tokenizer: &Tokenizer) -> Result<Option<Self>, LoadError> {
        let source = match file.meta("tokenizer.chat_template") {
            Some(MetaValue::String(source)) if source.len() <= MAX_TEMPLATE => source.clone(),
            Some(MetaValue::String(_)) => return Err(file.corrupt("its chat template is longer than 256 KiB")),
            _ => return Ok(None),
        };
        let trims = source.contains("trim") || source.contains(".strip(");
        let tools = ToolStyle::of_template(&source, tokenizer);
        let mut environment = Environment::new();
        // As Hugging Face's apply_chat_template does.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| file.unsupported(e.to_string()))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source)
            .map_err(|e| file.unsupported(format!("its chat template cannot be compiled: {e}")))?;
        let text = |token: Option<u32>| token.and_then(|t| tokenizer.control_text(t)).unwrap_or_default().to_owned();
        Ok(Some(Self { environment, bos: text(tokenizer.bos()), eos: text(tokenizer.eos()), trims, tools }))
    }

    /// How the model calls tools; `None` where its template knows none, or in a way that is not read here.
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
            // Roles go into the template's text: only words, so that they cannot carry a control token.
            let is_word = message.role.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            if message.role.is_empty() || !is_word {
                return Err(PromptError::Role(message.role.chars().take(32).collect()));
            }
        }
        let calls = |message: &ChatMessage| message.tool_calls.iter().map(|call| called(call, tokenizer)).collect();
        let calls = messages.iter().map(calls).collect::<Result<Vec<Vec<Value>>, _>>()?;
        let tools = tools.iter().map(|tool| offered(tool, tokenizer)).collect::<Result<Vec<Value>, _>>()?;
        let shown: Vec<_> = messages
            .iter()
            .enumerate()
            .map(|(n, message)| {
                // An empty message stays empty: templates ask for that.
                let content = if message.content.is_empty() { String::new() } else { format!("{OPEN}{n}{CLOSE}") };
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
                // Templates ask whether there is such a thing at all.
                template.render(if tools.is_empty() {
                    given
                } else {
                    context! { tools => tools, ..given }
                })
            })
            .map_err(failed)?;
        if rendered.len() > MAX_RENDERED {
            return Err(PromptError::Template("it gives more than 4 MiB".into()));
        }
        Ok(self.pieces(&rendered, messages))
    }

    fn pieces(&self, rendered: &str, messages: &[ChatMessage]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut rest = rendered;
        while let Some((before, after)) = rest.split_once([OPEN, OPEN_JSON]) {
            let in_json = rest.get(before.len()..).is_some_and(|marker| marker.starts_with(OPEN_JSON));
            let said = after.split_once(CLOSE).and_then(|(number, tail)| {
                let message = messages.get(number.parse::<usize>().ok()?)?;
                Some((message, tail))
            });
            pieces.push(Piece::Template(before.to_owned()));
            match said {
                Some((message, tail)) => {
                    let said = if self.trims { message.content.trim() } else { message.content.as_str() };
                    pieces.push(Piece::Said(if in_json { in_quotes(said) } else { said.to_owned() }));
                    rest = tail;
                }
                None => rest = after,
            }
        }
        pieces.push(Piece::Template(rest.to_owned()));
        pieces
    }
}

/// A text as it stands between the quotes of a JSON string.
fn in_quotes(text: &str) -> String {
    let json = serde_json::Value::from(text).to_string();
    json.strip_prefix('"').and_then(|json| json.strip_suffix('"')).unwrap_or_default().to_owned()
}

/// As Python's `json.dumps(ensure_ascii=False)`, which is what models were trained on: with blanks between entries, and
/// without the escapes that minijinja's own filter makes for HTML.
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

/// A tool as templates know it.
fn offered(tool: &Tool, tokenizer: &Tokenizer) -> Result<Value, PromptError> {
    let function: serde_json::Value =
        serde_json::from_str(&tool.function).map_err(|e| PromptError::Tools(format!("it is not JSON: {e}")))?;
    harmless(&function, tokenizer)?;
    Ok(of_json(&serde_json::json!({"type": "function", "function": function})))
}

/// A call as templates know it: its arguments are an object where they are JSON, as they should be.
fn called(call: &ToolCall, tokenizer: &Tokenizer) -> Result<Value, PromptError> {
    let arguments =
        serde_json::from_str(&call.arguments).unwrap_or_else(|_| serde_json::Value::from(call.arguments.as_str()));
    let call = serde_json::json!({
        "id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments},
    });
    harmless(&call, tokenizer)?;
    Ok(of_json(&call))
}

/// Refuses what would be read as a control token in the template's text.
fn harmless(value: &serde_json::Value, tokenizer: &Tokenizer) -> Result<(), PromptError> {
    let check = |text: &str| {
        if tokenizer.split_control(text).is_some() || text.contains([OPEN, CLOSE, OPEN_JSON]) {
            return Err(PromptError::Tools("a text in it is a control token of the model".into()));
        }
        Ok(())
    };
    match value {
        serde_json::Value::String(text) => check(text),
        serde_json::Value::Array(entries) => entries.iter().try_for_each(|entry| harmless(entry, tokenizer)),
        serde_json::Value::Object(fields) => fields.iter().try_for_each(|(name, field)| {
            check(name)?;
            harmless(field, tokenizer)
        }),
        _ => Ok(()),
    }
}
