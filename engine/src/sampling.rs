//! Sampling of the next token from the logits. The same seed and logits give the same token, whatever else is served.
//!
//! Order, as in vLLM: grammar mask, bias, penalties, temperature, min-p, top-k, top-p, the draw. Reported log
//! probabilities are those of the model itself, before any of these.

use std::collections::HashMap;
use std::sync::Arc;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Sampling parameters.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 chooses the likeliest token; larger values are more varied.
    pub temperature: f32,
    /// Samples from this many of the likeliest tokens only.
    pub top_k: Option<u32>,
    /// Samples from the likeliest tokens that together have this probability.
    pub top_p: f32,
    /// Samples from tokens at least this fraction as likely as the likeliest (arXiv:2407.01082); 0 switches it off.
    pub min_p: f32,
    /// Above 1, tokens of the prompt and of the answer become less likely (arXiv:1909.05858): a positive logit is
    /// divided by this value, a negative one multiplied.
    pub repetition_penalty: f32,
    /// Subtracted from the logit of every token that the answer contains already.
    pub presence_penalty: f32,
    /// Subtracted from the logit of a token once for each time that the answer contains it.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Arc<[(u32, f32)]>,
    /// Seed for repeatable sampling; random if left out.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: None,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Arc::new([]),
            seed: None,
        }
    }
}

impl Sampling {
    /// Parameters that always choose the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::default() }
    }
}

/// Distance to the largest logit, at temperature 1, beyond which a token is never drawn in practice.
const NEGLIGIBLE: f32 = 24.0;
/// Below this temperature a division by it overflows, and the choice is the likeliest token anyway.
const COLD: f32 = 1e-3;

/// Bit set of tokens, 32 to a word, the first in the lowest bit of the first word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed<'m>(pub(crate) &'m [u32]);

impl Allowed<'_> {
    fn forbid_others(self, logits: &mut [f32]) {
        let bits = self.0.iter().copied().chain(std::iter::repeat(0));
        for (logits, mut bits) in logits.chunks_mut(32).zip(bits) {
            for logit in logits {
                if bits & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
                bits >>= 1;
            }
        }
    }
}

/// Sampler of one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    parameters: Sampling,
    rng: ChaCha8Rng,
    /// Number of times that the answer contains each of its tokens; empty where no penalty asks.
    counts: HashMap<u32, u32>,
    /// Tokens of the prompt, sorted; empty where no penalty asks.
    prompt: Vec<u32>,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler at the start of its random stream. Each choice of a request has a stream of its own, so that the
    /// first equals the answer to a request for one choice.
    pub(crate) fn new(parameters: Sampling, choice: u32, prompt: &[u32]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(parameters.seed.unwrap_or_else(rand::random));
        rng.set_stream(choice.into());
        let mut sampler = Self { parameters, rng, counts: HashMap::new(), prompt: Vec::new(), candidates: Vec::new() };
        if sampler.has_repetition_penalty() {
            sampler.prompt = prompt.to_vec();
            sampler.prompt.sort_unstable();
            sampler.prompt.dedup();
        }
        sampler
    }

    fn has_repetition_penalty(&self) -> bool {
        (self.parameters.repetition_penalty - 1.0).abs() > f32::EPSILON && self.parameters.repetition_penalty > 0.0
    }

    /// Adds bias and penalties to the logits.
    fn adjust(&self, logits: &mut [f32]) {
        let at = |token: u32| usize::try_from(token).unwrap_or(usize::MAX);
        for (token, bias) in self.parameters.logit_bias.iter() {
            if let Some(logit) = logits.get_mut(at(*token)) {
                *logit += bias;
            }
        }
        if self.has_repetition_penalty() {
            let penalty = self.parameters.repetition_penalty;
            let written = self.counts.keys().filter(|token| self.prompt.binary_search(token).is_err());
            for token in self.prompt.iter().chain(written) {
                if let Some(logit) = logits.get_mut(at(*token)) {
                    *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
                }
            }
        }
        for (token, count) in &self.counts {
            if let Some(logit) = logits.get_mut(at(*token)) {
                #[allow(clippy::cast_precision_loss, reason = "counts are below the context's length")]
                let times = *count as f32;
                *logit -= self.parameters.presence_penalty + times * self.parameters.frequency_penalty;
            }
        }
    }

    /// Chooses the next token among the `allowed`. Logits that are not numbers are never chosen. Overwrites the
    /// logits.
    pub(crate) fn choose(&mut self, logits: &mut [f32], allowed: Option<Allowed<'_>>) -> u32 {
        if let Some(allowed) = allowed {
            allowed.forbid_others(logits);
        }
        self.adjust(logits);
        let token = self.draw(logits);
        let counted = self.parameters.presence_penalty != 0.0
            || self.parameters.frequency_penalty != 0.0
            || self.has_repetition_penalty();
        if counted {
            *self.counts.entry(token).or_insert(0) += 1;
        }
        token
    }

    fn draw(&mut self, logits: &[f32]) -> u32 {
        if self.parameters.temperature < COLD || self.parameters.top_k == Some(1) {
            return likeliest(logits);
        }
        // A token e^-24 as likely as the likeliest changes no choice. That is most of a vocabulary, which would only
        // be sorted.
        let far =
            if self.parameters.min_p > 0.0 { NEGLIGIBLE.min(-self.parameters.min_p.min(1.0).ln()) } else { NEGLIGIBLE };
        let least = largest(logits) - far * self.parameters.temperature;
        let tokens = logits.iter().zip(0u32..).filter(|(logit, _)| **logit >= least && logit.is_finite());
        self.candidates.clear();
        self.candidates.extend(tokens.map(|(logit, token)| (*logit / self.parameters.temperature, token)));
        let by_logit = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if let Some(k) = self.parameters.top_k.and_then(|k| usize::try_from(k).ok()).filter(|k| *k > 0)
            && k < self.candidates.len()
        {
            self.candidates.select_nth_unstable_by(k, by_logit);
            self.candidates.truncate(k);
        }
        let Some(max) = self.candidates.iter().map(|(logit, _)| *logit).max_by(f32::total_cmp) else {
            return likeliest(logits);
        };
        if self.parameters.top_p < 1.0 {
            self.candidates.sort_unstable_by(by_logit);
        }
        let mut total = 0.0f64;
        for (logit, _) in &mut self.candidates {
            *logit = (*logit - max).exp();
            total += f64::from(*logit);
        }
        if self.parameters.top_p < 1.0 {
            let enough = total * f64::from(self.parameters.top_p.max(0.0));
            let mut sum = 0.0;
            let mut kept = 0;
            for (weight, _) in &self.candidates {
                sum += f64::from(*weight);
                kept += 1;
                if sum >= enough {
                    break;
                }
            }
            self.candidates.truncate(kept.max(1));
            total = sum;
        }
        let mut at = self.rng.random::<f64>() * total;
        for (weight, token) in &self.candidates {
            at -= f64::from(*weight);
            if at < 0.0 {
                return *token;
            }
        }
        self.candidates.first().map_or_else(|| likeliest(logits), |(_, token)| *token)
    }
}

/// The largest finite logit. Works on sixteen at a time, which the compiler turns into vectors.
fn largest(logits: &[f32]) -> f32 {
    let mut most = [f32::NEG_INFINITY; 16];
    let (chunks, rest) = logits.as_chunks::<16>();
    let larger = |most: &mut f32, logit: f32| {
        if logit > *most && logit < f32::INFINITY {
            *most = logit;
        }
    };
    for chunk in chunks {
        most.iter_mut().zip(chunk).for_each(|(most, logit)| larger(most, *logit));
    }
    let [first, ..] = &mut most;
    rest.iter().for_each(|logit| larger(first, *logit));
    most.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// The token with the largest logit; the first of equals.
fn likeliest(logits: &[f32]) -> u32 {
    let most = largest(logits);
    // One comparison a token, until the first that is as large.
    logits.iter().zip(0u32..).find(|(logit, _)| **logit == most).map_or(0, |(_, token)| token)
}

/// Log probabilities, in the model's own view, of a token and of the `top` likeliest in descending order.
pub(crate) fn log_probabilities(logits: &[f32], token: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let max = logits.iter().copied().filter(|logit| logit.is_finite()).fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().filter(|logit| logit.is_finite()).map(|logit| f64::from(logit - max).exp()).sum();
    #[allow(clippy::cast_possible_truncation, reason = "a log probability is told with an f32's digits")]
    let normal = (f64::from(max) + sum.ln()) as f32;
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(top + 1);
    if top > 0 {
        for (logit, token) in logits.iter().zip(0u32..) {
            let beats = best.len() < top || best.last().is_some_and(|(_, least)| logit > least);
            if logit.is_finite() && beats {
                let at = best.partition_point(|(_, other)| other >= logit);
                best.insert(at, (token, *logit));
                best.truncate(top);
            }
        }
    }
    let of = usize::try_from(token).ok().and_then(|at| logits.get(at)).copied().unwrap_or(f32::NEG_INFINITY);
    (of - normal, best.into_iter().map(|(token, logit)| (token, logit - normal)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sampler(parameters: Sampling) -> Sampler {
        Sampler::new(parameters, 0, &[])
    }

    fn shares(parameters: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = sampler(Sampling { seed: Some(7), ..parameters });
        let mut counts = vec![0u32; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.choose(&mut logits.to_vec(), None) as usize] += 1;
        }
        counts.iter().map(|n| f64::from(*n) / 20_000.0).collect()
    }

    #[test]
    fn choices_follow_the_probabilities() {
        let logits = [0.0, 1.0, 2.0, f32::NAN, f32::NEG_INFINITY];
        let total: f64 = [0.0f64, 1.0, 2.0].iter().map(|l| l.exp()).sum();
        for (share, logit) in shares(Sampling::default(), &logits).iter().zip([0.0f64, 1.0, 2.0]) {
            assert!((share - logit.exp() / total).abs() < 0.015, "{share} for {logit}");
        }
        let cold = shares(Sampling { temperature: 0.5, ..Sampling::default() }, &logits);
        assert!(cold[2] > 0.84 && cold[3] == 0.0 && cold[4] == 0.0);
    }

    #[test]
    fn top_k_top_p_and_min_p_cut_the_tail() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let top_k = shares(Sampling { top_k: Some(2), ..Sampling::default() }, &logits);
        assert!(top_k[0] > 0.0 && top_k[1] > 0.0 && top_k[2] == 0.0 && top_k[3] == 0.0);
        // 0.64, 0.24, 0.09, 0.03: the first two reach 0.8.
        let top_p = shares(Sampling { top_p: 0.8, ..Sampling::default() }, &logits);
        assert!(top_p[1] > 0.2 && top_p[2] == 0.0);
        let least = shares(Sampling { top_p: 0.0, ..Sampling::default() }, &logits);
        assert_eq!(least[0], 1.0);
        // A tenth of 0.64 lets the third in and keeps the fourth out.
        let min_p = shares(Sampling { min_p: 0.1, ..Sampling::default() }, &logits);
        assert!(min_p[2] > 0.05 && min_p[3] == 0.0);
        assert_eq!(shares(Sampling { min_p: 1.0, ..Sampling::default() }, &logits)[0], 1.0);
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        let mut sampler = sampler(Sampling::greedy());
        assert_eq!(sampler.choose(&mut [1.0, f32::NAN, 5.0, 5.0], None), 2);
        assert_eq!(sampler.choose(&mut [], None), 0);
    }

    #[test]
    fn bias_and_masks_decide_what_may_be_chosen() {
        let mut biased = sampler(Sampling { logit_bias: [(0, 9.0), (7, 1.0)].into(), ..Sampling::greedy() });
        assert_eq!(biased.choose(&mut [1.0, 2.0, 5.0], None), 0);
        // No bias opens what a grammar forbids, and missing words of the mask forbid.
        assert_eq!(biased.choose(&mut [1.0, 2.0, 5.0], Some(Allowed(&[0b010]))), 1);
        let mut logits = vec![1.0; 40];
        logits[35] = 9.0;
        assert_eq!(biased.choose(&mut logits, Some(Allowed(&[0b100]))), 2);
    }

    #[test]
    fn penalties_count_what_was_written() {
        let mut frequency = sampler(Sampling { frequency_penalty: 1.0, ..Sampling::greedy() });
        let written: Vec<_> = (0..5).map(|_| frequency.choose(&mut [2.5, 1.0, 0.1], None)).collect();
        assert_eq!(written, [0, 0, 1, 0, 2], "each time costs one more");
        let mut presence = sampler(Sampling { presence_penalty: 1.0, ..Sampling::greedy() });
        let written: Vec<_> = (0..4).map(|_| presence.choose(&mut [2.5, 2.0, 0.0], None)).collect();
        assert_eq!(written, [0, 1, 0, 0], "having it costs once");
        let parameters = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut repetition = Sampler::new(parameters, 0, &[0, 2, 0]);
        // 4 -> 2, -1 -> -2; the second is in neither prompt nor answer.
        assert_eq!(repetition.choose(&mut [4.0, 3.0, -1.0], None), 1);
        assert_eq!(repetition.choose(&mut [4.0, 3.0, -1.0], None), 0, "3 -> 1.5 once it was written");
    }

    #[test]
    fn choices_of_one_request_differ_and_the_first_is_the_request_alone() {
        let parameters = Sampling { seed: Some(5), ..Sampling::default() };
        let draw = |choice| {
            let mut sampler = Sampler::new(parameters.clone(), choice, &[]);
            (0..24).map(|_| sampler.choose(&mut [0.0; 50], None)).collect::<Vec<_>>()
        };
        assert_eq!(draw(0), draw(0));
        assert_ne!(draw(0), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    proptest! {
        #[test]
        fn log_probabilities_are_a_distribution(logits in proptest::collection::vec(-30.0f32..30.0, 1..60), top in 0usize..8) {
            let all: Vec<f32> = (0..logits.len()).map(|t| log_probabilities(&logits, t as u32, 0).0).collect();
            let sum: f64 = all.iter().map(|l| f64::from(*l).exp()).sum();
            prop_assert!((sum - 1.0).abs() < 1e-3, "{}", sum);
            let (_, best) = log_probabilities(&logits, 0, top);
            prop_assert_eq!(best.len(), top.min(logits.len()));
            let mut sorted = all.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            for ((token, logprob), expected) in best.iter().zip(sorted) {
                prop_assert_eq!(*logprob, all[*token as usize]);
                prop_assert_eq!(*logprob, expected);
            }
        }

        #[test]
        fn what_is_chosen_is_allowed_and_repeatable(
            logits in proptest::collection::vec(-9.0f32..9.0, 33..80),
            allowed in proptest::collection::vec(any::<bool>(), 80),
            seed in any::<u64>(), top_k in 0u32..9, top_p in 0.0f32..1.0, min_p in 0.0f32..1.0, penalty in -2.0f32..2.0,
        ) {
            let mut words = vec![0u32; 3];
            for (n, _) in allowed.iter().enumerate().filter(|(_, allowed)| **allowed) {
                words[n / 32] |= 1 << (n % 32);
            }
            prop_assume!(allowed.iter().take(logits.len()).any(|allowed| *allowed));
            let parameters = Sampling {
                seed: Some(seed), top_k: Some(top_k), top_p, min_p, presence_penalty: penalty, frequency_penalty: penalty,
                ..Sampling::default()
            };
            let run = || {
                let mut sampler = sampler(parameters.clone());
                (0..9).map(|_| sampler.choose(&mut logits.clone(), Some(Allowed(&words)))).collect::<Vec<_>>()
            };
            let first = run();
            prop_assert!(first.iter().all(|token| allowed[*token as usize]));
            prop_assert_eq!(first, run());
        }
    }
}
