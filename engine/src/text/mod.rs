//! Between text and tokens: the tokenizer and the chat template of a model file, the text of an answer as it grows.
//! It knows no device and no sequence; its input is the file's metadata and messages.

mod stream;
mod template;
mod tokenizer;

pub use stream::TextStream;
pub use tokenizer::Tokenizer;

use std::sync::Arc;

use crate::artifact::ModelFile;
use crate::{LoadError, PromptError};
use template::{ChatTemplate, Piece};

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// Who says it: `system`, `user`, `assistant`.
    pub role: String,
    /// What.
    pub content: String,
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

    /// A conversation as tokens, up to where the model's answer begins.
    ///
    /// Control tokens such as `<|im_end|>` are recognised in the template's own text only. What a caller writes is
    /// always text, so that nobody can end a turn and speak as somebody else.
    pub fn encode_chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>, PromptError> {
        self.encode_answer(messages, "")
    }

    /// The same, with an answer that has begun with `begun`, which is text whoever wrote it.
    pub fn encode_answer(&self, messages: &[ChatMessage], begun: &str) -> Result<Vec<u32>, PromptError> {
        let template = self.template.as_ref().ok_or_else(|| {
            PromptError::Template("it has none (`tokenizer.chat_template`): it was not tuned for conversations".into())
        })?;
        let pieces = template.render(messages)?;
        let mut tokens = Vec::new();
        if self.tokenizer.add_bos()
            && let Some(bos) = self.tokenizer.bos()
        {
            tokens.push(bos);
        }
        // Text between two control tokens is encoded as a whole, whoever wrote its parts: merges cross that border.
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Said(said) => text.push_str(&said),
                Piece::Template(written) => {
                    let mut rest = written.as_str();
                    while let Some((before, token, after)) = self.tokenizer.split_control(rest) {
                        text.push_str(before);
                        self.tokenizer.encode(&std::mem::take(&mut text), &mut tokens);
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
        text.push_str(begun);
        self.tokenizer.encode(&text, &mut tokens);
        if tokens.is_empty() { Err(PromptError::Empty) } else { Ok(tokens) }
    }
}
