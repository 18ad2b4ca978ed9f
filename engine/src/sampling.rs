//! How the next token is chosen from the logits. The same seed and logits give the same token, whoever else is served.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; larger is more varied.
    pub temperature: f32,
    /// Only so many of the likeliest.
    pub top_k: Option<u32>,
    /// Only the likeliest that together have this probability.
    pub top_p: f32,
    /// For repeatable choices; random when left out.
    pub seed: Option<u64>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: 1.0, seed: None }
    }
}

/// How much less than the largest logit, at temperature 1, is as good as nothing.
const NEGLIGIBLE: f32 = 24.0;
/// Below this temperature dividing by it overflows, and the choice is the likeliest token anyway.
const COLD: f32 = 1e-3;

/// Chooses tokens for one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    how: Sampling,
    rng: ChaCha8Rng,
    candidates: Vec<(f32, u32)>,
}

impl Sampler {
    /// A sampler at the beginning of its random numbers.
    pub(crate) fn new(how: Sampling) -> Self {
        let rng = ChaCha8Rng::seed_from_u64(how.seed.unwrap_or_else(rand::random));
        Self { how, rng, candidates: Vec::new() }
    }

    /// The next token. Logits that are not numbers are never chosen.
    pub(crate) fn choose(&mut self, logits: &[f32]) -> u32 {
        if self.how.temperature < COLD || self.how.top_k == Some(1) {
            return likeliest(logits);
        }
        // What is e^-24 as likely as the likeliest changes no choice: most of a vocabulary, which would only be sorted.
        let least = largest(logits) - NEGLIGIBLE * self.how.temperature;
        let tokens = logits.iter().zip(0u32..).filter(|(logit, _)| **logit >= least && logit.is_finite());
        self.candidates.clear();
        self.candidates.extend(tokens.map(|(logit, token)| (*logit / self.how.temperature, token)));
        let by_logit = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if let Some(k) = self.how.top_k.and_then(|k| usize::try_from(k).ok()).filter(|k| *k > 0)
            && k < self.candidates.len()
        {
            self.candidates.select_nth_unstable_by(k, by_logit);
            self.candidates.truncate(k);
        }
        let Some(max) = self.candidates.iter().map(|(logit, _)| *logit).max_by(f32::total_cmp) else {
            return likeliest(logits);
        };
        if self.how.top_p < 1.0 {
            self.candidates.sort_unstable_by(by_logit);
        }
        let mut total = 0.0f64;
        for (logit, _) in &mut self.candidates {
            *logit = (*logit - max).exp();
            total += f64::from(*logit);
        }
        if self.how.top_p < 1.0 {
            let enough = total * f64::from(self.how.top_p.max(0.0));
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

/// The largest number among the logits, infinities left out. Sixteen at a time, which the compiler makes vectors of.
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

/// The token with the largest logit; of equal ones the first.
fn likeliest(logits: &[f32]) -> u32 {
    let most = largest(logits);
    // One comparison a token, until the first that is as large.
    logits.iter().zip(0u32..).find(|(logit, _)| **logit == most).map_or(0, |(_, token)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(how: Sampling, logits: &[f32]) -> Vec<f64> {
        let mut sampler = Sampler::new(Sampling { seed: Some(7), ..how });
        let mut counts = vec![0u32; logits.len()];
        for _ in 0..20_000 {
            counts[sampler.choose(logits) as usize] += 1;
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
    fn top_k_and_top_p_cut_the_tail() {
        let logits = [3.0, 2.0, 1.0, 0.0];
        let top_k = shares(Sampling { top_k: Some(2), ..Sampling::default() }, &logits);
        assert!(top_k[0] > 0.0 && top_k[1] > 0.0 && top_k[2] == 0.0 && top_k[3] == 0.0);
        // 0.64, 0.24, 0.09, 0.03: the first two reach 0.8.
        let top_p = shares(Sampling { top_p: 0.8, ..Sampling::default() }, &logits);
        assert!(top_p[1] > 0.2 && top_p[2] == 0.0);
        let least = shares(Sampling { top_p: 0.0, ..Sampling::default() }, &logits);
        assert_eq!(least[0], 1.0);
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        let mut sampler = Sampler::new(Sampling { temperature: 0.0, ..Sampling::default() });
        assert_eq!(sampler.choose(&[1.0, f32::NAN, 5.0, 5.0]), 2);
        assert_eq!(sampler.choose(&[]), 0);
    }
}
