//! A sequence: the tokens of one answer, how many of them are in the KV cache, and its text.

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use crate::exec::Row;
use crate::grammar::first_line;
use crate::sampling::{Allowed, Sampler, log_probabilities};
use crate::text::{TextStream, Tokenizer};
use crate::{EngineError, FinishReason, Generate, TokenProbability, WrittenToken};

/// State of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SequenceState {
    /// Waits until the first answer to the same prompt has prefilled it.
    Follows,
    /// Prefills or decodes.
    Runs,
    /// Has ended.
    Over,
}

/// Output of a sequence after a step.
#[derive(Debug, Default)]
pub(super) struct SequenceOutput {
    pub(super) text: String,
    pub(super) tokens: u32,
    pub(super) written: Vec<WrittenToken>,
    pub(super) ended: Option<FinishReason>,
    /// Index of the stop string that ended the answer.
    pub(super) stop: Option<usize>,
    /// True if a token was decoded, false if only an end was found.
    pub(super) wrote: bool,
}

/// Grammar of an answer, advanced to its current end.
struct Constraint {
    /// `None` while its mask is computed.
    matcher: Option<Box<Matcher>>,
    mask: Option<SimpleVob>,
}

pub(super) struct Sequence {
    pub(super) slot: usize,
    pub(super) choice: u32,
    pub(super) state: SequenceState,
    /// True if the sequence has pages.
    pub(super) has_pages: bool,
    /// Rows in the current step.
    pub(super) in_step: usize,
    /// Tokens of prompt and answer.
    tokens: Vec<u32>,
    prompt: usize,
    /// Tokens that are in the KV cache.
    read: usize,
    /// Tokens whose text is held back.
    untold: u32,
    max_tokens: usize,
    sampler: Sampler,
    text: TextStream,
    log_probabilities: Option<usize>,
    written: Vec<WrittenToken>,
    constraint: Option<Constraint>,
}

impl Sequence {
    /// The `choice`-th answer to a request, in a context of this many tokens.
    pub(super) fn new(request: &Generate, choice: u32, slot: usize, context: usize) -> Self {
        let prompt = request.prompt.tokens();
        let most = context.saturating_sub(prompt.len()).max(1);
        let wanted = request.max_tokens.map_or(most, |n| usize::try_from(n).unwrap_or(usize::MAX));
        Self {
            slot,
            choice,
            state: if choice == 0 { SequenceState::Runs } else { SequenceState::Follows },
            has_pages: false,
            in_step: 0,
            tokens: prompt.to_vec(),
            prompt: prompt.len(),
            read: 0,
            untold: 0,
            max_tokens: wanted.clamp(1, most),
            sampler: Sampler::new(request.sampling.clone(), choice, prompt),
            text: TextStream::new(request.stop.clone()),
            log_probabilities: request.log_probabilities.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
            written: Vec::new(),
            constraint: request
                .grammar
                .clone()
                .map(|grammar| Constraint { matcher: Some(grammar.into_matcher()), mask: None }),
        }
    }

    /// All tokens of the sequence.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    /// Tokens that are in the KV cache.
    pub(super) fn cached(&self) -> &[u32] {
        self.tokens.get(..self.read).unwrap_or_default()
    }
    /// Number of tokens in the KV cache.
    pub(super) fn read(&self) -> usize {
        self.read
    }
    /// Prompt tokens that are not in the KV cache.
    pub(super) fn prompt_left(&self) -> usize {
        self.prompt.saturating_sub(self.read)
    }
    /// Tokens that the model must read before the next one can be chosen.
    pub(super) fn unread(&self) -> usize {
        self.tokens.len() - self.read
    }
    /// Tokens decoded.
    pub(super) fn answered(&self) -> usize {
        self.tokens.len() - self.prompt
    }
    /// True if the next step can have rows of the sequence.
    pub(super) fn can_run(&self) -> bool {
        self.state == SequenceState::Runs && self.has_pages
    }

    /// Sets the tokens that are in the KV cache, filled by other sequences.
    pub(super) fn set_read(&mut self, read: usize) {
        self.read = read;
    }

    /// Next rows of the sequence, at most `most`.
    pub(super) fn rows(&self, most: usize) -> impl Iterator<Item = Row> + '_ {
        let slot = super::narrow(self.slot);
        let unread = self.tokens.iter().enumerate().skip(self.read).take(most);
        unread.map(move |(position, token)| Row { token: *token, position: super::narrow(position), slot })
    }

    /// Records the end of a step: its rows are in the KV cache.
    pub(super) fn advance(&mut self) {
        self.read += std::mem::take(&mut self.in_step);
    }

    /// Records the loss of the pages: all tokens must be read again.
    pub(super) fn lose_pages(&mut self) {
        self.has_pages = false;
        self.read = 0;
    }

    /// Takes the grammar out to compute its mask; `None` without one.
    pub(super) fn lend_grammar(&mut self) -> Option<Box<Matcher>> {
        self.constraint.as_mut()?.matcher.take()
    }

    /// Puts the grammar back with its mask.
    pub(super) fn return_grammar(&mut self, matcher: Box<Matcher>, mask: Option<SimpleVob>) {
        if let Some(constraint) = &mut self.constraint {
            *constraint = Constraint { matcher: Some(matcher), mask };
        }
    }

    /// Mask of the next token, for another answer at the same position.
    pub(super) fn mask(&self) -> Option<SimpleVob> {
        self.constraint.as_ref()?.mask.clone()
    }
    /// Sets the mask of the next token, from another answer at the same position.
    pub(super) fn set_mask(&mut self, mask: Option<SimpleVob>) {
        if let Some(constraint) = &mut self.constraint {
            constraint.mask = mask;
        }
    }

    /// Chooses the next token and returns its output. Overwrites the logits.
    pub(super) fn choose(&mut self, logits: &mut [f32], tokenizer: &Tokenizer) -> Result<SequenceOutput, EngineError> {
        let allowed = match &self.constraint {
            None => None,
            Some(Constraint { mask: Some(mask), .. }) if !mask.is_zero() => Some(Allowed(mask.as_slice())),
            Some(_) => return Err(EngineError::Grammar("no token may come next".into())),
        };
        // The sampler changes the logits in place.
        let model = self.log_probabilities.map(|_| logits.to_vec());
        let token = self.sampler.choose(logits, allowed);
        let is_end = tokenizer.is_end(token);
        if let Some(Constraint { matcher: Some(matcher), mask }) = &mut self.constraint {
            *mask = None;
            if !is_end {
                matcher.consume_token(token).map_err(|e| EngineError::Grammar(first_line(&e.to_string())))?;
            }
        }
        if is_end {
            return Ok(self.end(FinishReason::Stop));
        }
        if let (Some(model), Some(top)) = (model, self.log_probabilities) {
            let named = |(token, log_probability): (u32, f32)| TokenProbability {
                token,
                bytes: tokenizer.bytes_of(token).into(),
                log_probability,
            };
            let (chosen, likeliest) = log_probabilities(&model, token, top);
            let likeliest = likeliest.into_iter().map(named).collect();
            self.written.push(WrittenToken { chosen: named((token, chosen)), likeliest });
        }
        self.tokens.push(token);
        self.untold += 1;
        let added = self.text.push(tokenizer.bytes_of(token));
        let is_complete = self.constraint.as_ref().and_then(|c| c.matcher.as_ref()).is_some_and(|m| m.is_stopped());
        let mut output = self.emit(added.text);
        if added.stopped.is_some() {
            self.state = SequenceState::Over;
            (output.ended, output.stop) = (Some(FinishReason::Stop), added.stopped);
        } else if is_complete || self.answered() >= self.max_tokens {
            let reason = if is_complete { FinishReason::Stop } else { FinishReason::Length };
            let rest = self.end(reason);
            output.text.push_str(&rest.text);
            output.tokens += rest.tokens;
            output.written.extend(rest.written);
            output.ended = rest.ended;
        }
        output.wrote = true;
        Ok(output)
    }

    fn emit(&mut self, text: String) -> SequenceOutput {
        if text.is_empty() {
            return SequenceOutput::default();
        }
        let (tokens, written) = (std::mem::take(&mut self.untold), std::mem::take(&mut self.written));
        SequenceOutput { text, tokens, written, ..SequenceOutput::default() }
    }

    /// Ends the answer, including the text held back.
    fn end(&mut self, reason: FinishReason) -> SequenceOutput {
        self.state = SequenceState::Over;
        let rest = self.text.finish();
        let (tokens, written) = (std::mem::take(&mut self.untold), std::mem::take(&mut self.written));
        SequenceOutput { text: rest, tokens, written, ended: Some(reason), ..SequenceOutput::default() }
    }
}
