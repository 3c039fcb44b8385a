//! Which texts go through the encoder together.
//!
//! Contract of [`plan_batches`]: every text is in exactly one batch; a batch stays within the budget, except that a text
//! that is too long on its own travels alone; short texts go first, so that they do not wait for long ones. Nothing is counted
//! for padding, because on the CPU there is none. Pure: lengths in, indices out.

/// Most word pieces of a batch that settings may ask for: they take a second or so, and whoever comes meanwhile waits for them.
pub const BATCH_TOKENS_MAX: usize = 1 << 14;

/// How much one forward pass may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchBudget {
    /// Word pieces.
    pub tokens_max: usize,
    /// Texts.
    pub texts_max: usize,
}

impl BatchBudget {
    /// On two cores the processor time of a text is least at some hundred word pieces a pass and grows beyond; bigger
    /// passes only keep others waiting.
    pub(crate) const DEFAULT: Self = Self { tokens_max: 512, texts_max: 64 };

    const fn fits(self, texts: usize, tokens: usize) -> bool {
        texts <= self.texts_max && tokens <= self.tokens_max
    }
}

/// Cuts texts of the given lengths, in word pieces, into batches of indices, shortest texts first.
#[must_use]
pub fn plan_batches(lengths: &[usize], budget: BatchBudget) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| lengths[index]);
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut tokens = 0;
    for index in order {
        tokens += lengths[index];
        match batches.last_mut() {
            Some(batch) if budget.fits(batch.len() + 1, tokens) => batch.push(index),
            _ => {
                batches.push(vec![index]);
                tokens = lengths[index];
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn batches_by_table() {
        let check = |lengths: &[usize], tokens_max, texts_max, expected: &[&[usize]]| {
            let batches = plan_batches(lengths, BatchBudget { tokens_max, texts_max });
            assert_eq!(batches, expected, "{lengths:?} within {tokens_max} tokens, {texts_max} texts");
        };
        check(&[], 100, 10, &[]);
        check(&[7], 100, 10, &[&[0]]);
        check(&[5, 5, 5, 5], 100, 10, &[&[0, 1, 2, 3]]);
        check(&[5, 5, 5, 5], 10, 10, &[&[0, 1], &[2, 3]]);
        check(&[5, 5, 5, 5], 100, 3, &[&[0, 1, 2], &[3]]);
        // Alike lengths travel together; equal lengths keep their order.
        check(&[9, 2, 9, 2], 18, 2, &[&[1, 3], &[0, 2]]);
        // Nothing is padded: 2 + 2 + 10 fit where 3 × 10 would not.
        check(&[2, 10, 2], 20, 10, &[&[0, 2, 1]]);
        check(&[2, 10, 2], 13, 10, &[&[0, 2], &[1]]);
        // Too long on its own: alone, not lost.
        check(&[300, 1], 100, 10, &[&[1], &[0]]);
        check(&[5, 5], 100, 1, &[&[0], &[1]]);
        check(&[5, 5], 0, 0, &[&[0], &[1]]);
    }

    proptest! {
        #[test]
        fn nothing_is_lost_and_nothing_exceeds(
            lengths in prop::collection::vec(2_usize..300, 0..80),
            tokens_max in 1_usize..2_000,
            texts_max in 1_usize..40,
        ) {
            let budget = BatchBudget { tokens_max, texts_max };
            let batches = plan_batches(&lengths, budget);
            let mut seen: Vec<_> = batches.concat();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
            for batch in &batches {
                let tokens = batch.iter().map(|&index| lengths[index]).sum();
                prop_assert!(batch.len() == 1 || budget.fits(batch.len(), tokens), "{:?}", batch);
            }
        }
    }
}
