//! The chat template of a file, rendered by minijinja with a limit on its work: it comes with the model and is as
//! hostile as the rest of the file.
//!
//! What callers say is rendered as markers and put in afterwards, so that it stays known which text is the template's
//! and which is theirs.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, context};

use super::{ChatMessage, Tokenizer};
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
        environment
            .add_template_owned(NAME, source)
            .map_err(|e| file.unsupported(format!("its chat template cannot be compiled: {e}")))?;
        let text = |token: Option<u32>| token.and_then(|t| tokenizer.control_text(t)).unwrap_or_default().to_owned();
        Ok(Some(Self { environment, bos: text(tokenizer.bos()), eos: text(tokenizer.eos()), trims }))
    }

    pub(super) fn render(&self, messages: &[ChatMessage]) -> Result<Vec<Piece>, PromptError> {
        if messages.is_empty() {
            return Err(PromptError::Empty);
        }
        for message in messages {
            // Roles go into the template's text: only words, so that they cannot carry a control token.
            let is_word = message.role.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            if message.role.is_empty() || !is_word {
                return Err(PromptError::Role(message.role.chars().take(32).collect()));
            }
        }
        let shown: Vec<_> = messages
            .iter()
            .enumerate()
            .map(|(n, message)| {
                // An empty message stays empty: templates ask for that.
                let content = if message.content.is_empty() { String::new() } else { format!("{OPEN}{n}{CLOSE}") };
                context! { role => message.role.as_str(), content }
            })
            .collect();
        let failed = |e: Error| PromptError::Template(e.to_string());
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|template| {
                template.render(context! {
                    messages => shown,
                    add_generation_prompt => true,
                    bos_token => self.bos.as_str(),
                    eos_token => self.eos.as_str(),
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
        while let Some((before, after)) = rest.split_once(OPEN) {
            let said = after.split_once(CLOSE).and_then(|(number, tail)| {
                let message = messages.get(number.parse::<usize>().ok()?)?;
                Some((message, tail))
            });
            pieces.push(Piece::Template(before.to_owned()));
            match said {
                Some((message, tail)) => {
                    let said = if self.trims { message.content.trim() } else { message.content.as_str() };
                    pieces.push(Piece::Said(said.to_owned()));
                    rest = tail;
                }
                None => rest = after,
            }
        }
        pieces.push(Piece::Template(rest.to_owned()));
        pieces
    }
}
