//! Sampling: which token comes next.
//!
//! Contract: the same seed and the same logits give the same tokens, whatever else is generated at the time. At temperature 0
//! the most likely token is chosen, of equally likely ones the first, and the seed plays no part. Logits that are no
//! numbers are an error of their sequence alone; minus infinity is a token that cannot come.
//!
//! The order is that of Hugging Face's transformers: repetition penalty, temperature, top-k, top-p.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// How tokens are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Sampling {
    /// Divides the logits: above 1 is bolder, below 1 tamer, 0 takes the most likely token.
    pub temperature: f32,
    /// Only so many of the most likely tokens come into question; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens come into question that have this probability together; 1 for all.
    pub top_p: f32,
    /// Logits of tokens that were there already are divided by it, or multiplied when they are negative; 1 for not at all.
    pub repetition_penalty: f32,
    /// Where the draws begin.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token, always.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 };
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub(crate) struct Sampler {
    sampling: Sampling,
    draws: fastrand::Rng,
}

/// A token that comes into question, ordered by how likely it is, the first of equally likely ones on top.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Candidate {}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        self.logit.total_cmp(&other.logit).then(other.token.cmp(&self.token))
    }
}

impl Sampler {
    pub(crate) fn new(sampling: Sampling) -> Self {
        Self { sampling, draws: fastrand::Rng::with_seed(sampling.seed) }
    }

    /// Chooses the token after `tokens`, from the logits for it, `[vocabulary]`, which are spoilt.
    ///
    /// # Errors
    /// [`ModelError::Logits`] when one is not a number or too large, or no token can come.
    pub(crate) fn next(&mut self, tokens: &[u32], logits: &mut [f32]) -> Result<u32, ModelError> {
        let Sampling { temperature, repetition_penalty, .. } = self.sampling;
        // NaN is lost in a maximum; a sum keeps it, and vectorises.
        let sum: f32 = logits.iter().map(|&logit| if logit == f32::NEG_INFINITY { 0.0 } else { logit * 0.0 }).sum();
        if sum.is_nan() {
            return Err(ModelError::Logits { reason: "one is not a finite number" });
        }
        if repetition_penalty != 1.0 {
            punish(tokens, logits, repetition_penalty);
        }
        let best = most_likely(logits).ok_or(ModelError::Logits { reason: "no token can come" })?;
        if temperature <= 0.0 { Ok(best.token) } else { Ok(self.draw(logits, best)) }
    }

    fn draw(&mut self, logits: &[f32], best: Candidate) -> u32 {
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        let weight = |logit: f32| f64::from((logit - best.logit) / temperature).exp();
        let mut candidates: Vec<Candidate> = (0_u32..)
            .zip(logits)
            .map(|(token, &logit)| Candidate { token, logit })
            .filter(|candidate| candidate.logit > f32::NEG_INFINITY)
            .collect();
        if top_k > 0 && top_k < candidates.len() {
            candidates.select_nth_unstable_by(top_k - 1, |a, b| b.cmp(a));
            candidates.truncate(top_k);
        }
        let mut total: f64 = candidates.iter().map(|candidate| weight(candidate.logit)).sum();
        if top_p < 1.0 {
            (candidates, total) = nucleus(candidates, f64::from(top_p) * total, weight);
        } else {
            // Whatever partial sorting did to their order must not decide.
            candidates.sort_unstable_by_key(|candidate| candidate.token);
        }
        let mut left = self.draws.f64() * total;
        let chosen = candidates.iter().find(|candidate| {
            left -= weight(candidate.logit);
            left < 0.0
        });
        chosen.or(candidates.last()).map_or(best.token, |candidate| candidate.token)
    }
}

/// The most likely candidates that have this weight together, most likely first, and the weight that they have.
fn nucleus(candidates: Vec<Candidate>, wanted: f64, weight: impl Fn(f32) -> f64) -> (Vec<Candidate>, f64) {
    let mut heap = BinaryHeap::from(candidates);
    let (mut kept, mut total) = (Vec::new(), 0.0);
    while let Some(candidate) = heap.pop() {
        total += weight(candidate.logit);
        kept.push(candidate);
        if total >= wanted {
            break;
        }
    }
    (kept, total)
}

fn punish(tokens: &[u32], logits: &mut [f32], penalty: f32) {
    let mut seen = vec![false; logits.len()];
    for &token in tokens {
        let place = token as usize;
        if seen.get(place) == Some(&false) {
            seen[place] = true;
            let logit = &mut logits[place];
            *logit = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
        }
    }
}

fn most_likely(logits: &[f32]) -> Option<Candidate> {
    let logit = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let token = logits.iter().position(|&other| other == logit).filter(|_| logit > f32::NEG_INFINITY)?;
    #[expect(clippy::cast_possible_truncation, reason = "a vocabulary's size fits")]
    Some(Candidate { token: token as u32, logit })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(sampling: Sampling, logits: &[f32], count: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling);
        (0..count).map(|_| sampler.next(&[], &mut logits.to_vec()).expect("numbers")).collect()
    }

    const WARM: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

    #[test]
    fn greedy_takes_the_first_of_the_best_and_no_draw() {
        assert_eq!(drawn(Sampling::GREEDY, &[0.5, 2.0, 2.0, -1.0], 3), [1, 1, 1]);
        let colder = Sampling { temperature: 0.0, top_k: 3, top_p: 0.1, seed: 9, ..Sampling::GREEDY };
        assert_eq!(drawn(colder, &[f32::NEG_INFINITY, -3.0], 1), [1]);
    }

    #[test]
    fn draws_follow_the_probabilities() {
        // Weights 1, 2, 4 and a token that cannot come.
        let logits = [0.0, 2.0_f32.ln(), 4.0_f32.ln(), f32::NEG_INFINITY];
        let table: &[(Sampling, [f64; 4])] = &[
            (WARM, [1.0 / 7.0, 2.0 / 7.0, 4.0 / 7.0, 0.0]),
            (Sampling { temperature: 0.5, ..WARM }, [1.0 / 21.0, 4.0 / 21.0, 16.0 / 21.0, 0.0]),
            (Sampling { top_k: 2, ..WARM }, [0.0, 1.0 / 3.0, 2.0 / 3.0, 0.0]),
            (Sampling { top_p: 0.5, ..WARM }, [0.0, 0.0, 1.0, 0.0]),
            (Sampling { top_p: 0.6, ..WARM }, [0.0, 1.0 / 3.0, 2.0 / 3.0, 0.0]),
            (Sampling { top_k: 2, top_p: 0.6, ..WARM }, [0.0, 0.0, 1.0, 0.0]),
        ];
        for (sampling, expected) in table {
            let draws = drawn(*sampling, &logits, 20_000);
            for (token, share) in (0_u32..).zip(expected) {
                let found = draws.iter().filter(|&&drawn| drawn == token).count() as f64 / draws.len() as f64;
                // Five standard deviations; the seed is fixed.
                assert!((found - share).abs() < 0.018, "{sampling:?}: token {token} {found}, expected {share}");
            }
        }
    }

    #[test]
    fn a_seed_decides() {
        let logits: Vec<f32> = (0..50).map(|n| (n as f32 * 0.7).sin()).collect();
        for sampling in [WARM, Sampling { top_k: 20, ..WARM }, Sampling { top_p: 0.9, ..WARM }] {
            assert_eq!(drawn(sampling, &logits, 40), drawn(sampling, &logits, 40));
            assert_ne!(drawn(sampling, &logits, 40), drawn(Sampling { seed: 1, ..sampling }, &logits, 40));
        }
    }

    #[test]
    fn what_was_there_is_less_likely() {
        let punished = Sampling { repetition_penalty: 2.0, ..Sampling::GREEDY };
        let next = |tokens: &[u32], logits: &[f32]| Sampler::new(punished).next(tokens, &mut logits.to_vec()).unwrap();
        assert_eq!(next(&[], &[3.0, 2.0]), 0);
        assert_eq!(next(&[0, 0, 7], &[3.0, 2.0]), 1, "once, however often it was there");
        assert_eq!(next(&[0], &[-1.0, -1.5]), 1);
    }

    #[test]
    fn no_number_no_token() {
        for logits in [&[1.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 3], &[]] {
            for sampling in [WARM, Sampling::GREEDY] {
                let error = Sampler::new(sampling).next(&[], &mut logits.to_vec()).expect_err("no number");
                assert!(matches!(error, ModelError::Logits { .. }), "{logits:?}: {error}");
            }
        }
    }
}
