//! Between text and tokens: the tokenizer and the chat template of a model file, the text of an answer as it grows.
//! It knows no device and no sequence; its input is the file's metadata and messages.

mod date;
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
    /// Who says it: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What.
    pub content: String,
    /// The tools that an assistant calls with it.
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result a tool tells.
    pub tool_call_id: Option<String>,
}

impl ChatMessage {
    /// A message of text alone.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), tool_calls: Vec::new(), tool_call_id: None }
    }

    /// Whether only a template that knows tools can show it.
    pub fn is_about_tools(&self) -> bool {
        !self.tool_calls.is_empty() || self.tool_call_id.is_some() || self.role == "tool"
    }
}

/// What a model is to answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conversation<'a> {
    /// What was said, oldest first; one message at least.
    pub messages: &'a [ChatMessage],
    /// What it may call.
    pub tools: &'a [Tool],
    /// Whether the answer begins within a call of a tool.
    pub must_call: bool,
    /// How its answer has begun, which is text whoever wrote it.
    pub begun: &'a str,
}

/// Tokenizer and template of one model.
#[derive(Clone)]
pub struct TextModel {
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
}

impl TextModel {
    /// Takes both from the file.
    pub fn new(file: &ModelFile) -> Result<Self, LoadError> {
        let tokenizer = Tokenizer::new(file)?;
        let template = ChatTemplate::new(file, &tokenizer)?;
        Ok(Self { tokenizer: Arc::new(tokenizer), template: template.map(Arc::new) })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The tokenizer of an encoder, which is given no conversations.
    pub(crate) fn tokenizer_of(file: &ModelFile) -> Result<Arc<Tokenizer>, LoadError> {
        Tokenizer::new(file).map(Arc::new)
    }

    /// Whether it can be given conversations.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// How it calls tools; `None` for a model whose template knows none, or in a way that is not read here.
    pub fn tools(&self) -> Option<ToolStyle> {
        self.template.as_ref().and_then(|template| template.tools())
    }

    /// A conversation as tokens, up to where the model's answer begins.
    ///
    /// Control tokens such as `<|im_end|>` are recognised in the template's own text only. What a caller writes is
    /// always text, so that nobody can end a turn and speak as somebody else.
    pub fn encode(&self, conversation: &Conversation<'_>) -> Result<Vec<u32>, PromptError> {
        let template = self.template.as_ref().ok_or(PromptError::NoTemplate)?;
        let mut pieces = template.render(conversation, &self.tokenizer)?;
        if conversation.must_call {
            let style = template.tools().ok_or(PromptError::NoTools)?;
            pieces.push(Piece::Template(style.opening().to_owned()));
        }
        let mut tokens = self.tokenizer.before_conversation().to_vec();
        // Text between two control tokens is encoded as a whole, whoever wrote its parts: merges cross that border.
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Said(said) => text.push_str(&said),
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
