//! Conversion between text and tokens: tokenizer and chat template of a model file, and the growing text of an
//! answer. Knows no device and no sequence; its input is the file's metadata and messages.

mod date;
mod provenance;
mod stream;
mod template;
mod tokenizer;
mod tools;

pub use stream::TextStream;
pub use tokenizer::Tokenizer;
pub use tools::{Said, Tool, ToolCall, ToolReader, ToolStyle};

use std::sync::Arc;

use crate::artifact::ModelFile;
use crate::{LoadError, PromptError};
use template::{ChatTemplate, Piece};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Speaker: `system`, `user`, `assistant` or `tool`.
    pub role: String,
    /// Text of the message.
    pub content: String,
    /// Tool calls of an assistant's message.
    pub tool_calls: Vec<ToolCall>,
    /// Call that a tool's message answers.
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// A message of text alone.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), tool_calls: Vec::new(), tool_call_id: None }
    }

    /// True if only a template that knows tools can render the message.
    pub fn is_about_tools(&self) -> bool {
        !self.tool_calls.is_empty() || self.tool_call_id.is_some() || self.role == "tool"
    }
}

/// Conversation that a model is to answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conversation<'a> {
    /// Messages, oldest first; at least one.
    pub messages: &'a [ChatMessage],
    /// Tools that the model may call.
    pub tools: &'a [Tool],
    /// True if the answer must begin with a tool call.
    pub must_call: bool,
    /// Beginning of the answer; always read as text, whoever wrote it.
    pub begun: &'a str,
}

/// Tokenizer and template of one model.
#[derive(Clone)]
pub struct TextModel {
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
}

impl TextModel {
    /// Reads both from the file.
    pub fn new(file: &ModelFile) -> Result<Self, LoadError> {
        let tokenizer = Tokenizer::new(file)?;
        let template = ChatTemplate::new(file, &tokenizer)?;
        Ok(Self { tokenizer: Arc::new(tokenizer), template: template.map(Arc::new) })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Reads the tokenizer of an encoder, which has no conversations.
    pub(crate) fn tokenizer_of(file: &ModelFile) -> Result<Arc<Tokenizer>, LoadError> {
        Tokenizer::new(file).map(Arc::new)
    }

    /// True if the model has a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// Tool-call syntax of the model; `None` if its template knows no tools or uses an unsupported syntax.
    pub fn tools(&self) -> Option<ToolStyle> {
        self.template.as_ref().and_then(|template| template.tools())
    }

    /// Renders a conversation as tokens, up to where the model's answer begins.
    ///
    /// Control tokens such as `<|im_end|>` are recognised in the template's own text only. Callers' text is always
    /// text, so that nobody can end a turn and speak as somebody else.
    pub fn encode(&self, conversation: &Conversation<'_>) -> Result<Vec<u32>, PromptError> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        let mut pieces = template.render(conversation, &self.tokenizer)?;
        if conversation.must_call {
            let style = template.tools().ok_or(PromptError::NoTools)?;
            pieces.push(Piece::Template(style.opening().to_owned()));
        }
        let mut tokens = self.tokenizer.before_conversation().to_vec();
        // Text between two control tokens is tokenised as a whole, whoever wrote its parts, because merges cross that
        // border.
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Caller(said) => text.push_str(&said),
                Piece::Template(written) => {
                    let mut rest = written.as_str();
                    while let Some((before, token, after)) = self.tokenizer.split_control(rest) {
                        text.push_str(before);
                        self.tokenizer.encode(&std::mem::take(&mut text), &mut tokens)?;
                        // A template that writes the first token itself does not get a second one.
                        if !(tokens.len() == 1 && tokens.first() == Some(&token) && self.tokenizer.bos() == Some(token))
                        {
                            tokens.push(token);
                        }
                        rest = after;
                    }
                    text.push_str(rest);
                }
            }
        }
        text.push_str(conversation.begun);
        self.tokenizer.encode(&text, &mut tokens)?;
        if tokens.is_empty() { Err(PromptError::Empty) } else { Ok(tokens) }
    }
}
