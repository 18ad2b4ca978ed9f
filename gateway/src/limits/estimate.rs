//! Tokens that a request is expected to use before it is answered, and tokens that it has used after. The estimate
//! counts one token for four bytes of text, the rule of thumb for English in OpenAI's documentation. Each image and
//! sound counts as a fixed number of tokens.

/// Bytes of text for each estimated token.
const BYTES_PER_TOKEN: u64 = 4;
/// Tokens of an image. One in high detail of 1024 x 1024 is 765 tokens for GPT-4o (OpenAI, "Images and vision": 85 + 4
/// x 170).
const TOKENS_PER_IMAGE: u64 = 765;
/// Tokens of a sound: half a minute of speech at some ten tokens a second (OpenAI, "Audio": 1 token for 100 ms).
const TOKENS_PER_AUDIO: u64 = 300;
/// Tokens of an answer whose request names no limit: some 2 KiB of English text.
const DEFAULT_OUTPUT: u64 = 512;
/// Upper bound of an estimate, tokens: larger than every burst, and small enough that sums of many stay exact in the
/// arithmetic of every store.
const MOST: u64 = 1 << 40;

/// Tokens that a request is expected to use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimate {
    /// Tokens read.
    pub input: u64,
    /// Tokens written.
    pub output: u64,
}

impl Estimate {
    /// Estimates from the content of the body. `writes` is false for an API that writes no text, such as embeddings.
    pub fn new(text_bytes: u64, images: u64, sounds: u64, max_tokens: Option<u64>, writes: bool) -> Self {
        let input = text_bytes
            .div_ceil(BYTES_PER_TOKEN)
            .saturating_add(images.saturating_mul(TOKENS_PER_IMAGE))
            .saturating_add(sounds.saturating_mul(TOKENS_PER_AUDIO));
        let output = if writes { max_tokens.unwrap_or(DEFAULT_OUTPUT) } else { 0 };
        Self { input: input.min(MOST), output: output.min(MOST) }
    }

    /// Tokens of a text that was written: one for four bytes, and one at least for each event that held some of it.
    pub fn of_written(bytes: u64, events: u64) -> u64 {
        bytes.div_ceil(BYTES_PER_TOKEN).max(events).min(MOST)
    }

    /// Multiplies the output for a request that asks for several `answers`.
    pub fn times(self, answers: u64) -> Self {
        Self { output: self.output.saturating_mul(answers).min(MOST), ..self }
    }

    /// Input and output together.
    pub fn total(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

/// Tokens that a request has used, and their cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    /// Tokens read.
    pub input: u64,
    /// Part of `input` that the upstream had in its cache.
    pub cached: u64,
    /// Part of `input` that the upstream has written to its cache.
    pub cache_written: u64,
    /// Part of `cache_written` that is kept for an hour.
    pub cache_written_1h: u64,
    /// Tokens written.
    pub output: u64,
    /// Cost, in billionths of a US dollar.
    pub nanos: u64,
}

impl Used {
    /// Tokens read and written.
    pub fn tokens(self) -> u64 {
        self.input.saturating_add(self.output)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_estimate_rounds_up_and_counts_what_is_no_text() {
        assert_eq!(Estimate::new(5, 0, 0, Some(10), true), Estimate { input: 2, output: 10 });
        assert_eq!(Estimate::new(0, 1, 1, None, true).total(), 765 + 300 + 512);
        assert_eq!(Estimate::new(400, 0, 0, Some(7), false).total(), 100, "embeddings write nothing");
        assert_eq!(Estimate::new(8, 0, 0, Some(7), true).times(3), Estimate { input: 2, output: 21 });
        assert_eq!((Estimate::of_written(9, 2), Estimate::of_written(4, 3)), (3, 3));
        let most = Estimate::new(u64::MAX, u64::MAX, u64::MAX, Some(u64::MAX), true).times(u64::MAX);
        assert_eq!(most, Estimate { input: MOST, output: MOST });
    }
}
