//! Chat template of a model file, rendered by minijinja with a limit on its work: the template is as hostile as the
//! rest of the file.
//!
//! The template sees callers' text as it is. Which text of the rendering is the template's own and which is a caller's
//! is told by a second rendering (`provenance`), because only in the former are control tokens recognised. Tools and their
//! calls are passed unchanged; they are refused if they contain the text of a control token.

use aho_corasick::{AhoCorasick, MatchKind};
use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value, context};

use super::provenance::{follow_strings, plain_text, shown, twin, twin_of};
use super::tools::{Tool, ToolCall, ToolStyle};
use super::{ChatMessage, Conversation, Tokenizer, date};
use crate::artifact::{MetaValue, ModelFile};
use crate::{LoadError, PromptError};

/// Instructions of one rendering; a conversation of a thousand messages takes some ten thousand.
const FUEL: u64 = 2_000_000;
/// Longest template and longest rendering, in bytes.
const MAX_TEMPLATE: usize = 256 << 10;
const MAX_RENDERED: usize = 4 << 20;

/// Most and longest strings of a template's own expressions that are looked for in messages.
const MAX_MARKS: usize = 256;
const MAX_MARK: usize = 64;

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
    /// Search for the strings of the template's expressions, such as `</think>`: an operator of the template may look for
    /// them in a message. None has to do with a control token.
    marks: Option<AhoCorasick>,
    /// A character of each control token.
    control_chars: Vec<char>,
    /// True if a control token is whitespace alone.
    has_blank_control: bool,
    /// Control tokens without a character that has a twin.
    untwinned: Vec<String>,
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
        let marks = strings(&source).into_iter().filter(|mark| tokenizer.control_tokens().all(|t| is_apart(mark, t)));
        let marks: Vec<String> = marks.take(MAX_MARKS).collect();
        let marks = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(marks);
        let blank = |text: &str| text.chars().all(char::is_whitespace);
        let mut control_chars: Vec<char> = tokenizer.control_tokens().filter_map(distinctive).collect();
        control_chars.sort_unstable();
        control_chars.dedup();
        let tools = ToolStyle::of_template(&source, tokenizer);
        let mut environment = Environment::new();
        // Same settings as Hugging Face's apply_chat_template.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| file.unsupported(e.to_string()))?);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(FUEL));
        follow_strings(&mut environment);
        environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: &str| -> Result<String, Error> {
            let unknown = |c| Error::new(ErrorKind::InvalidOperation, format!("strftime_now knows no `%{c}`"));
            date::now(format).map_err(unknown)
        });
        environment
            .add_template_owned(NAME, source)
            .map_err(|e| file.unsupported(format!("the chat template cannot be compiled: {e}")))?;
        let text = |token: Option<u32>| token.and_then(|t| tokenizer.control_text(t)).unwrap_or_default().to_owned();
        Ok(Some(Self {
            environment,
            bos: text(tokenizer.bos()),
            eos: text(tokenizer.eos()),
            marks: marks.ok(),
            control_chars,
            has_blank_control: tokenizer.control_tokens().any(|token| !token.is_empty() && blank(token)),
            untwinned: tokenizer
                .control_tokens()
                .filter(|token| !blank(token) && token.chars().all(|c| c.is_whitespace() || twin(c).is_none()))
                .map(str::to_owned)
                .collect(),
            tools,
        }))
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
        let given = Given { messages, calls: &calls, tools: &tools };
        let is_twinned = |text: &str| !self.untwinned.iter().any(|token| text.contains(token.as_str()));
        if !messages.iter().all(|message| given.texts(message).all(is_twinned)) {
            return Err(PromptError::Template("a message contains a control token of the model".into()));
        }
        let rendered = self.render_with(&given, &shown)?;
        if rendered.len() > MAX_RENDERED {
            return Err(PromptError::Template("the rendering is longer than 4 MiB".into()));
        }
        // Operators of the template see no twin as what it stands for, so the strings that they may look for stay.
        for marks in [None, self.marks.as_ref()] {
            let twinned = self.render_with(&given, &|text: &str| self.twinned(text, marks));
            if let Ok(twinned) = twinned
                && plain_text(&twinned) == rendered
            {
                return Ok(pieces(&twinned));
            }
        }
        // No rendering tells whose each character is. None is needed where the callers wrote no part of a control token.
        let is_harmless = |text: &str| !text.contains(self.control_chars.as_slice());
        if messages.iter().all(|message| given.texts(message).all(is_harmless)) {
            return Ok(vec![Piece::Template(rendered)]);
        }
        Err(PromptError::Template(
            "the template takes the text of a message apart in a way that cannot be followed, and the text has characters of \
             control tokens"
                .into(),
        ))
    }

    /// Renders the conversation with each text of a caller changed by `change`.
    fn render_with(&self, given: &Given<'_>, change: &dyn Fn(&str) -> String) -> Result<String, PromptError> {
        let message = |(n, message): (usize, &ChatMessage)| {
            let plain = context! { role => message.role.as_str(), content => change(&message.content) };
            match (given.calls.get(n).filter(|calls| !calls.is_empty()), &message.tool_call_id) {
                (Some(calls), _) => context! { tool_calls => calls, ..plain },
                (None, Some(id)) => context! { tool_call_id => change(id), ..plain },
                (None, None) => plain,
            }
        };
        let messages: Vec<Value> = given.messages.iter().enumerate().map(message).collect();
        let rendered = self.environment.get_template(NAME).and_then(|template| {
            let context = context! {
                messages,
                add_generation_prompt => true,
                bos_token => self.bos.as_str(),
                eos_token => self.eos.as_str(),
            };
            // Templates test whether `tools` is defined at all.
            template.render(if given.tools.is_empty() {
                context
            } else {
                context! { tools => given.tools, ..context }
            })
        });
        rendered.map_err(|e: Error| PromptError::Template(e.to_string()))
    }

    /// Text with its characters replaced by twins, but for whitespace, which templates trim, and for `marks`.
    fn twinned(&self, text: &str, marks: Option<&AhoCorasick>) -> String {
        let text = shown(text);
        let blanks_stay = !self.has_blank_control;
        let mut twins = String::with_capacity(text.len() * 4);
        let replace = |part: &str, twins: &mut String| {
            twins.extend(part.chars().map(|c| match twin(c) {
                Some(twin) if !(blanks_stay && c.is_whitespace()) => twin,
                _ => c,
            }));
        };
        let mut end = 0;
        for found in marks.into_iter().flat_map(|marks| marks.find_iter(&text)) {
            replace(text.get(end..found.start()).unwrap_or_default(), &mut twins);
            twins.push_str(text.get(found.range()).unwrap_or_default());
            end = found.end();
        }
        replace(text.get(end..).unwrap_or_default(), &mut twins);
        twins
    }
}

/// Conversation as the template gets it.
struct Given<'a> {
    messages: &'a [ChatMessage],
    /// Tool calls of each message.
    calls: &'a [Vec<Value>],
    tools: &'a [Value],
}

impl Given<'_> {
    /// Texts of the caller in a message.
    fn texts<'m>(&self, message: &'m ChatMessage) -> impl Iterator<Item = &'m str> {
        [Some(message.content.as_str()), message.tool_call_id.as_deref()].into_iter().flatten()
    }
}

/// Splits a rendering in which callers' characters are twins.
fn pieces(rendered: &str) -> Vec<Piece> {
    let mut pieces: Vec<Piece> = Vec::new();
    for c in rendered.chars() {
        match (twin_of(c), pieces.last_mut()) {
            (Some(original), Some(Piece::Caller(text))) => text.push(original),
            (Some(original), _) => pieces.push(Piece::Caller(original.into())),
            (None, Some(Piece::Template(text))) => text.push(c),
            (None, _) => pieces.push(Piece::Template(c.into())),
        }
    }
    pieces
}

/// Strings in the expressions and statements of a template, longest first.
fn strings(source: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut rest = source;
    while let Some(at) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        rest = rest.get(at + 2..).unwrap_or_default();
        let mut chars = rest.char_indices();
        while let Some((at, c)) = chars.next() {
            if c == '}' && rest.get(..at).is_some_and(|before| before.ends_with(['}', '%'])) {
                break;
            }
            if c != '\'' && c != '"' {
                continue;
            }
            let mut text = String::new();
            while let Some((_, inner)) = chars.next().filter(|(_, inner)| *inner != c) {
                text.push(match inner {
                    '\\' => match chars.next() {
                        Some((_, 'n')) => '\n',
                        Some((_, 't')) => '\t',
                        Some((_, other)) => other,
                        None => break,
                    },
                    inner => inner,
                });
            }
            let is_mark = text.len() <= MAX_MARK && text.chars().any(|c| !c.is_whitespace());
            if is_mark && !found.contains(&text) {
                found.push(text);
            }
        }
        rest = chars.as_str();
    }
    found.sort_by_key(|text| std::cmp::Reverse(text.len()));
    found
}

/// True if no occurrence of `mark` can have a character in common with one of `token`.
fn is_apart(mark: &str, token: &str) -> bool {
    let ends_meet = |before: &str, after: &str| {
        before.char_indices().any(|(at, _)| before.get(at..).is_some_and(|end| after.starts_with(end)))
    };
    token.is_empty()
        || !(mark.contains(token) || token.contains(mark) || ends_meet(mark, token) || ends_meet(token, mark))
}

/// Character of a control token that ordinary text seldom has.
fn distinctive(token: &str) -> Option<char> {
    token.chars().find(|c| !c.is_alphanumeric() && !c.is_whitespace()).or_else(|| token.chars().next())
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
        if tokenizer.split_control(text).is_some() || text.chars().any(|c| twin_of(c).is_some()) {
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
