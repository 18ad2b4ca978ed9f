//! Account of an answer that is kept: the tokens that it took, and the model that answered. The answer itself says some of it
//! when it is kept, and the end of its exchange the rest, so that a later hit is priced as the first answer was.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use spillway_filter::{ExchangeEnd, Pricing, StoredAnswer, TokenUse};

use super::counts::Tokens;

/// Prefix of the name of a built-in model that has answered.
const BUILT_IN: &str = "builtin/";

/// Account of one answer.
#[derive(Debug, Default)]
pub(super) struct Told {
    /// Model that the request named.
    asked: Option<Box<str>>,
    /// Tokens that the answer says.
    said: OnceLock<Tokens>,
    ended: OnceLock<Ended>,
    /// Hits before the end, which are counted with it.
    waiting: Mutex<u64>,
}

/// Facts at the end of an exchange.
#[derive(Debug, Default)]
struct Ended {
    prompt: Option<u64>,
    completion: Option<u64>,
    cached: u64,
    cache_written: u64,
    cache_written_1h: u64,
    /// Model that answered, as its server names it: a caller may have got another name.
    model: Option<Arc<str>>,
    is_built_in: bool,
}

impl Told {
    /// Account of an answer on its way.
    pub(super) fn new(asked: Option<Box<str>>) -> Self {
        Self { asked, ..Self::default() }
    }

    /// Account of an answer from a store.
    pub(super) fn of(stored: &StoredAnswer, asked: Option<&str>) -> Self {
        let TokenUse { input, cached, cache_written, cache_written_1h, output } = stored.tokens;
        let ended = Ended {
            prompt: Some(input),
            completion: Some(output),
            cached,
            cache_written,
            cache_written_1h,
            model: stored.model.clone(),
            is_built_in: stored.is_built_in,
        };
        Self { asked: asked.map(Into::into), ended: OnceLock::from(ended), ..Self::default() }
    }

    /// Notes the tokens that the answer says.
    pub(super) fn said(&self, tokens: Tokens) {
        let _ = self.said.set(tokens);
    }

    fn waiting(&self) -> MutexGuard<'_, u64> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the end of the exchange.
    pub(super) fn ended(&self, end: &ExchangeEnd<'_>) {
        let _ = self.ended.set(Ended {
            prompt: end.prompt_tokens,
            completion: end.completion_tokens,
            cached: end.cached_tokens.unwrap_or(0),
            cache_written: end.cache_written_tokens.unwrap_or(0),
            cache_written_1h: end.cache_written_1h_tokens.unwrap_or(0),
            model: end.model.map(Into::into),
            is_built_in: end.served_by.starts_with(BUILT_IN),
        });
    }

    /// Closes the account, whether the end was told or not. Returns the hits that wait to be counted.
    pub(super) fn close(&self) -> u64 {
        let mut waiting = self.waiting();
        let _ = self.ended.set(Ended::default());
        std::mem::take(&mut waiting)
    }

    /// True if a hit is counted now. Otherwise it waits for the end, which tells what it is worth.
    pub(super) fn counts_now(&self) -> bool {
        if self.ended.get().is_some() {
            return true;
        }
        let mut waiting = self.waiting();
        let is_ended = self.ended.get().is_some();
        *waiting += u64::from(!is_ended);
        is_ended
    }

    /// Tokens that the answer took.
    pub(super) fn tokens(&self) -> TokenUse {
        let said = self.said.get().copied().unwrap_or_default();
        let Some(ended) = self.ended.get() else {
            return TokenUse { input: said.prompt, output: said.completion, ..TokenUse::default() };
        };
        TokenUse {
            input: ended.prompt.unwrap_or(said.prompt),
            cached: ended.cached,
            cache_written: ended.cache_written,
            cache_written_1h: ended.cache_written_1h,
            output: ended.completion.unwrap_or(said.completion),
        }
    }

    /// Model that answered, and true if it is a built-in one.
    pub(super) fn model(&self) -> (Option<&Arc<str>>, bool) {
        self.ended.get().map_or((None, false), |ended| (ended.model.as_ref(), ended.is_built_in))
    }

    /// Cost of the answer by the prices now, in billionths of a US dollar.
    pub(super) fn nanos(&self, prices: &dyn Pricing) -> u64 {
        let (model, is_built_in) = self.model();
        prices.nanos(self.tokens(), model.map(|model| &**model), self.asked.as_deref(), is_built_in)
    }
}
