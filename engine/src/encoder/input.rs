//! Input of an encoder: the tokens of a text within the context, and the rows of a step.

use super::{Input, narrow};
use crate::PromptError;
use crate::exec::{Batch, Row};
use crate::model::BertShape;
use crate::text::Tokenizer;

/// Bytes of a text that are read for each token of the context; longer texts are cut before they are tokenised.
const BYTES_PER_TOKEN: usize = 64;

/// Appends a whole sequence to the batch: rows of type 0 up to `second`, of type 1 from there on.
pub(super) fn place(batch: &mut Batch, tokens: &[u32], second: usize) {
    let slot = narrow(batch.picks.len());
    batch.picks.push(narrow(batch.rows.len()));
    for (position, token) in tokens.iter().enumerate() {
        batch.rows.push(Row { token: *token, position: narrow(position), slot });
        batch.types.push(u32::from(position >= second));
    }
}

/// Returns the tokens of an input within the context, how many belong to its first text, and whether it was cut.
pub(super) fn tokens_of(
    tokenizer: &Tokenizer,
    shape: &BertShape,
    input: &Input,
) -> Result<(Vec<u32>, usize, bool), PromptError> {
    let read = |text: &str| {
        let most = shape.context.saturating_mul(BYTES_PER_TOKEN);
        let cut = text.floor_char_boundary(most.min(text.len()));
        let mut tokens = Vec::new();
        tokenizer.encode(text.get(..cut).unwrap_or_default(), &mut tokens)?;
        Ok((tokens, cut < text.len()))
    };
    let ((mut first, mut cut), second) = match input {
        Input::Text(text) => (read(text)?, None),
        Input::Pair(first, second) => (read(first)?, Some(read(second)?)),
        Input::Tokens(tokens) => {
            let read = tokens.len().min(shape.context);
            return Ok((tokens.iter().take(read).copied().collect(), read, read < tokens.len()));
        }
    };
    let is_pair = second.is_some();
    let (mut second, cut_second) = second.unwrap_or_default();
    cut |= cut_second;
    let separators = if is_pair { shape.separators() } else { 0 };
    let marks = 2 + separators;
    let room = shape.context.saturating_sub(marks);
    // As Hugging Face's `longest_first`: the longer text is cut first.
    if first.len() + second.len() > room {
        cut = true;
        let half = room / 2;
        if first.len() > half && second.len() > half {
            second.truncate(half);
            first.truncate(room - second.len());
        } else if first.len() > second.len() {
            first.truncate(room - second.len());
        } else {
            second.truncate(room - first.len());
        }
    }
    let mut tokens = Vec::with_capacity(first.len() + second.len() + marks);
    tokens.extend(tokenizer.bos());
    tokens.append(&mut first);
    for _ in 0..separators.max(1) {
        tokens.extend(tokenizer.eos());
    }
    let border = tokens.len();
    if is_pair {
        tokens.append(&mut second);
        tokens.extend(tokenizer.eos());
    }
    Ok((tokens, border, cut))
}

/// Tokens of the windows of a whole text within the context, each with the special tokens around it. Two that follow
/// each other have `overlap` tokens in common, at most half of a window.
pub(super) fn windows(
    tokenizer: &Tokenizer,
    context: usize,
    text: &str,
    overlap: usize,
) -> Result<Vec<Vec<u32>>, PromptError> {
    let mut tokens = Vec::new();
    tokenizer.encode(text, &mut tokens)?;
    let room = context.saturating_sub(2).max(1);
    let step = room - overlap.min(room / 2);
    let mut windows = Vec::new();
    let mut from = 0;
    loop {
        let to = tokens.len().min(from + room);
        let window = tokens.get(from..to).unwrap_or_default();
        windows.push(tokenizer.bos().into_iter().chain(window.iter().copied()).chain(tokenizer.eos()).collect());
        if to == tokens.len() {
            return Ok(windows);
        }
        from += step;
    }
}
