//! Prices of tokens for filters, by the configuration. The gateway provides them.

/// Tokens that an answer took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenUse {
    /// Tokens read, those of caches included.
    pub input: u64,
    /// Part of `input` that the server had in its cache.
    pub cached: u64,
    /// Part of `input` that the server wrote to its cache.
    pub cache_written: u64,
    /// Part of `cache_written` that is kept for an hour.
    pub cache_written_1h: u64,
    /// Tokens written.
    pub output: u64,
}

/// Prices of models.
pub trait Pricing: Send + Sync {
    /// Cost of an answer in billionths of a US dollar: by the price of the model that answered, else of the one that was asked
    /// for; 0 without a price.
    fn nanos(&self, tokens: TokenUse, answered: Option<&str>, asked: Option<&str>, is_built_in: bool) -> u64;
}

/// No prices; for checks and tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoPrices;

impl Pricing for NoPrices {
    fn nanos(&self, _: TokenUse, _: Option<&str>, _: Option<&str>, _: bool) -> u64 {
        0
    }
}
