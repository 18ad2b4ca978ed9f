//! One answer that is being written: its tokens, how many of them are in the KV cache, what it says next.

use llguidance::Matcher;
use llguidance::toktrie::SimpleVob;

use crate::exec::Row;
use crate::grammar::first_line;
use crate::sampling::{Allowed, Sampler, log_probabilities};
use crate::text::{TextStream, Tokenizer};
use crate::{EngineError, FinishReason, Generate, TokenProbability, WrittenToken};

/// What a sequence is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Waits until the first answer to the same prompt has read it.
    Follows,
    /// Reads or writes.
    Runs,
    /// Has ended.
    Over,
}

/// What a sequence has to tell after a step.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) text: String,
    pub(super) tokens: u32,
    pub(super) written: Vec<WrittenToken>,
    pub(super) ended: Option<FinishReason>,
    /// Whether a token was written, not only an end found.
    pub(super) wrote: bool,
}

/// What an answer must be, as far as it is written.
struct Constraint {
    /// Away while its mask is computed.
    matcher: Option<Box<Matcher>>,
    mask: Option<SimpleVob>,
}

pub(super) struct Sequence {
    pub(super) slot: usize,
    pub(super) choice: u32,
    pub(super) state: State,
    /// Whether it has pages.
    pub(super) placed: bool,
    /// Rows that it has in the step at hand.
    pub(super) in_step: usize,
    /// Prompt and answer.
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
    /// The `choice`-th answer to a request in a context of so many tokens.
    pub(super) fn new(request: &Generate, choice: u32, slot: usize, context: usize) -> Self {
        let prompt = request.prompt.tokens();
        let most = context.saturating_sub(prompt.len()).max(1);
        let wanted = request.max_tokens.map_or(most, |n| usize::try_from(n).unwrap_or(usize::MAX));
        Self {
            slot,
            choice,
            state: if choice == 0 { State::Runs } else { State::Follows },
            placed: false,
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

    /// All of its tokens.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }
    /// Those that are in the KV cache.
    pub(super) fn cached(&self) -> &[u32] {
        self.tokens.get(..self.read).unwrap_or_default()
    }
    /// How many are.
    pub(super) fn read(&self) -> usize {
        self.read
    }
    /// Tokens of the prompt that are not in the KV cache.
    pub(super) fn prompt_left(&self) -> usize {
        self.prompt.saturating_sub(self.read)
    }
    /// Tokens that must go through the model before the next one can be chosen.
    pub(super) fn unread(&self) -> usize {
        self.tokens.len() - self.read
    }
    /// Tokens written.
    pub(super) fn answered(&self) -> usize {
        self.tokens.len() - self.prompt
    }
    /// Whether a row of it can be in the next step.
    pub(super) fn can_run(&self) -> bool {
        self.state == State::Runs && self.placed
    }

    /// Tokens up to here are in the KV cache, by others' work.
    pub(super) fn set_read(&mut self, read: usize) {
        self.read = read;
    }

    /// Its next rows.
    pub(super) fn rows(&self, most: usize) -> impl Iterator<Item = Row> + '_ {
        let slot = super::narrow(self.slot);
        let unread = self.tokens.iter().enumerate().skip(self.read).take(most);
        unread.map(move |(position, token)| Row { token: *token, position: super::narrow(position), slot })
    }

    /// A step has ended: its rows are in the KV cache.
    pub(super) fn advance(&mut self) {
        self.read += std::mem::take(&mut self.in_step);
    }

    /// It lost its pages and begins again with what it has.
    pub(super) fn unplace(&mut self) {
        self.placed = false;
        self.read = 0;
    }

    /// Its grammar, where it has one and it is not away: to be asked what may come next.
    pub(super) fn lend_grammar(&mut self) -> Option<Box<Matcher>> {
        self.constraint.as_mut()?.matcher.take()
    }

    /// The grammar comes back with what may come next.
    pub(super) fn return_grammar(&mut self, matcher: Box<Matcher>, mask: Option<SimpleVob>) {
        if let Some(constraint) = &mut self.constraint {
            *constraint = Constraint { matcher: Some(matcher), mask };
        }
    }

    /// What may come next, for another answer that is at the same place.
    pub(super) fn mask(&self) -> Option<SimpleVob> {
        self.constraint.as_ref()?.mask.clone()
    }
    /// What may come next, from another answer that is at the same place.
    pub(super) fn set_mask(&mut self, mask: Option<SimpleVob>) {
        if let Some(constraint) = &mut self.constraint {
            constraint.mask = mask;
        }
    }

    /// Chooses the next token by the logits, which are used up, and says what that adds to the answer.
    pub(super) fn choose(&mut self, logits: &mut [f32], tokenizer: &Tokenizer) -> Result<Said, EngineError> {
        let allowed = match &self.constraint {
            None => None,
            Some(Constraint { mask: Some(mask), .. }) if !mask.is_zero() => Some(Allowed(mask.as_slice())),
            Some(_) => return Err(EngineError::Grammar("nothing may come next".into())),
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
        let mut said = self.say(added.text);
        if added.stopped {
            self.state = State::Over;
            said.ended = Some(FinishReason::Stop);
        } else if is_complete || self.answered() >= self.max_tokens {
            let reason = if is_complete { FinishReason::Stop } else { FinishReason::Length };
            let rest = self.end(reason);
            said.text.push_str(&rest.text);
            said.tokens += rest.tokens;
            said.written.extend(rest.written);
            said.ended = rest.ended;
        }
        said.wrote = true;
        Ok(said)
    }

    fn say(&mut self, text: String) -> Said {
        if text.is_empty() {
            return Said::default();
        }
        let (tokens, written) = (std::mem::take(&mut self.untold), std::mem::take(&mut self.written));
        Said { text, tokens, written, ..Said::default() }
    }

    /// It ends, and what was held back is part of it.
    fn end(&mut self, reason: FinishReason) -> Said {
        self.state = State::Over;
        let rest = self.text.finish();
        let (tokens, written) = (std::mem::take(&mut self.untold), std::mem::take(&mut self.written));
        Said { text: rest, tokens, written, ended: Some(reason), wrote: false }
    }
}
