//! What one pass over several sequences reads and writes: pure arithmetic on places, without tensors.
//!
//! Contract: slices that do not fit the model's sizes are refused before anything is computed. The tokens of all slices
//! are laid out in rows: first the slices of one token together, then each longer one by itself, so that neither pads
//! the other. A sequence's padding points at its own first token, never at another sequence.

use super::{Slice, StepShape};
use crate::error::ModelError;

/// Places are padded to a multiple of this: a GPU's kernels are compiled for how far a size can be divided, and odd
/// sizes, of which a growing sequence has many, are the slowest.
const KEYS_ROUNDED: usize = 16;

/// One pass, ready to be turned into tensors.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Pass {
    /// The token of each row.
    pub(super) tokens: Vec<u32>,
    /// Each row's place in its sequence.
    pub(super) positions: Vec<usize>,
    /// The place in memory of each row's key and value: `block × block_tokens + offset`.
    pub(super) slots: Vec<usize>,
    /// Rows that attend together, in order.
    pub(super) groups: Vec<Group>,
    /// The rows whose logits are wanted, in the order of the slices.
    pub(super) wanted: Vec<usize>,
}

/// Sequences of which each has the same number of rows.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// How many sequences.
    pub(super) sequences: usize,
    /// Rows of each.
    pub(super) queries: usize,
    /// Places that each may look at: the longest sequence's length, rounded up.
    pub(super) keys: usize,
    /// The places in memory, `[sequences × keys]`.
    pub(super) slots: Vec<usize>,
    /// For each row, how many of its sequence's places it sees; the rest is after it, or padding.
    pub(super) seen: Vec<usize>,
}

impl Group {
    /// Whether any place is hidden from any row.
    pub(super) fn hides(&self) -> bool {
        self.seen.iter().any(|&seen| seen < self.keys)
    }
}

impl Pass {
    /// # Errors
    /// [`ModelError::Step`] for slices that do not fit.
    pub(super) fn plan(shape: &StepShape, slices: &[Slice<'_>]) -> Result<Self, ModelError> {
        for slice in slices {
            check(shape, slice).map_err(|reason| ModelError::Step { reason })?;
        }
        let rows = slices.iter().map(|slice| slice.tokens.len()).sum();
        let mut pass = Self {
            tokens: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            slots: Vec::with_capacity(rows),
            groups: Vec::new(),
            wanted: Vec::new(),
        };
        let mut last_rows = vec![0; slices.len()];
        let (singles, longer): (Vec<_>, Vec<_>) = (0..slices.len()).partition(|&index| slices[index].tokens.len() == 1);
        let groups = std::iter::once(singles).chain(longer.into_iter().map(|index| vec![index]));
        for members in groups.filter(|members| !members.is_empty()) {
            for &index in &members {
                pass.add_rows(shape, &slices[index]);
                last_rows[index] = pass.tokens.len() - 1;
            }
            pass.groups.push(Group::of(shape, members.iter().map(|&index| &slices[index])));
        }
        let wanted = slices.iter().zip(last_rows).filter(|(slice, _)| slice.wants_logits);
        pass.wanted = wanted.map(|(_, row)| row).collect();
        Ok(pass)
    }

    fn add_rows(&mut self, shape: &StepShape, slice: &Slice<'_>) {
        for (position, &token) in (slice.position..).zip(slice.tokens) {
            self.tokens.push(token);
            self.positions.push(position);
            self.slots.push(slot(shape, slice, position));
        }
    }
}

impl Group {
    fn of<'a>(shape: &StepShape, members: impl Iterator<Item = &'a Slice<'a>> + Clone) -> Self {
        let length = |slice: &Slice<'_>| slice.position + slice.tokens.len();
        let keys = members.clone().map(length).max().unwrap_or(0).next_multiple_of(KEYS_ROUNDED);
        let mut group = Self { sequences: 0, queries: 0, keys, slots: Vec::new(), seen: Vec::new() };
        for slice in members {
            group.sequences += 1;
            group.queries = slice.tokens.len();
            let own = (0..length(slice)).map(|position| slot(shape, slice, position));
            let padding = std::iter::repeat_n(slot(shape, slice, 0), keys - length(slice));
            group.slots.extend(own.chain(padding));
            group.seen.extend(slice.position + 1..=length(slice));
        }
        group
    }
}

fn slot(shape: &StepShape, slice: &Slice<'_>, position: usize) -> usize {
    slice.blocks[position / shape.block_tokens] as usize * shape.block_tokens + position % shape.block_tokens
}

pub(super) fn check(shape: &StepShape, slice: &Slice<'_>) -> Result<(), String> {
    if slice.tokens.is_empty() {
        return Err("a slice without tokens".to_owned());
    }
    let length = slice.position.saturating_add(slice.tokens.len());
    if length > shape.context_max {
        return Err(format!("a sequence of {length} tokens, at most {} are possible", shape.context_max));
    }
    let blocks = length.div_ceil(shape.block_tokens);
    if slice.blocks.len() < blocks {
        return Err(format!("{} blocks for a sequence of {length} tokens, which needs {blocks}", slice.blocks.len()));
    }
    if let Some(block) = slice.blocks[..blocks].iter().find(|&&block| block as usize >= shape.blocks) {
        return Err(format!("block {block}, there are {}", shape.blocks));
    }
    if let Some(token) = slice.tokens.iter().find(|&&token| token as usize >= shape.vocabulary) {
        return Err(format!("token {token}, there are {}", shape.vocabulary));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: StepShape = StepShape { blocks: 8, block_tokens: 4, context_max: 12, vocabulary: 100 };

    fn slice<'a>(tokens: &'a [u32], position: usize, blocks: &'a [u32], wants_logits: bool) -> Slice<'a> {
        Slice { tokens, position, blocks, wants_logits }
    }

    #[test]
    fn single_tokens_go_together_and_first() {
        let slices = [
            slice(&[10, 11, 12], 3, &[5, 2], true),
            slice(&[20], 1, &[7], true),
            slice(&[30, 31], 0, &[0], false),
            slice(&[40], 4, &[1, 3], true),
        ];
        let pass = Pass::plan(&SHAPE, &slices).expect("planned");
        assert_eq!(pass.tokens, [20, 40, 10, 11, 12, 30, 31]);
        assert_eq!(pass.positions, [1, 4, 3, 4, 5, 0, 1]);
        assert_eq!(pass.slots, [29, 12, 23, 8, 9, 0, 1]);
        assert_eq!(pass.wanted, [4, 0, 1]);
        // The padding is a sequence's own first place.
        let padded = |slots: &[usize]| [slots, vec![slots[0]; KEYS_ROUNDED - slots.len()].as_slice()].concat();
        let singles = Group {
            sequences: 2,
            queries: 1,
            keys: 16,
            slots: [padded(&[28, 29]), padded(&[4, 5, 6, 7, 12])].concat(),
            seen: vec![2, 5],
        };
        let first = padded(&[20, 21, 22, 23, 8, 9]);
        let first = Group { sequences: 1, queries: 3, keys: 16, slots: first, seen: vec![4, 5, 6] };
        let second = Group { sequences: 1, queries: 2, keys: 16, slots: padded(&[0, 1]), seen: vec![1, 2] };
        assert!(singles.hides() && first.hides() && second.hides());
        assert_eq!(pass.groups, [singles, first, second]);
    }

    #[test]
    fn nothing_is_hidden_from_the_last_token_of_a_full_row() {
        let shape = StepShape { context_max: 32, ..SHAPE };
        let pass = Pass::plan(&shape, &[slice(&[1], 15, &[0, 1, 2, 3], true)]).expect("planned");
        assert_eq!((pass.groups[0].keys, pass.groups[0].hides()), (16, false));
        let pass = Pass::plan(&shape, &[slice(&[1, 2], 15, &[0, 1, 2, 3, 4], true)]).expect("planned");
        assert_eq!((pass.groups[0].keys, pass.groups[0].hides()), (32, true));
    }

    #[test]
    fn slices_that_do_not_fit_are_refused() {
        let check = |slice: Slice<'_>, expected: &str| {
            let error = Pass::plan(&SHAPE, &[slice]).expect_err("refused");
            assert_eq!(error.to_string(), format!("cannot take a step: {expected}"));
        };
        check(slice(&[], 0, &[0], true), "a slice without tokens");
        check(slice(&[1], 12, &[0, 1, 2, 3], true), "a sequence of 13 tokens, at most 12 are possible");
        check(
            slice(&[1], usize::MAX, &[0], true),
            &format!("a sequence of {} tokens, at most 12 are possible", usize::MAX),
        );
        check(slice(&[1], 4, &[0], true), "1 blocks for a sequence of 5 tokens, which needs 2");
        check(slice(&[1], 0, &[8], true), "block 8, there are 8");
        check(slice(&[100], 0, &[0], true), "token 100, there are 100");
        // Blocks beyond the sequence are not looked at.
        assert!(Pass::plan(&SHAPE, &[slice(&[1], 3, &[0, 99], true)]).is_ok());
        assert_eq!(Pass::plan(&SHAPE, &[]).expect("nothing to do").tokens, [0_u32; 0]);
    }
}
