//! Decoders: language models that advance sequences token by token.
//!
//! *Contract*: a [`StepModel`] keeps keys and values in blocks of a fixed number of tokens, in memory of a fixed size. Who
//! drives it says which blocks a sequence may use; the model reads and writes only those. Sequences that share a prefix may
//! share the whole blocks of it. What a step gives for one sequence depends on which others are in it by rounding alone: the
//! number of rows decides how sums are grouped, so logits differ in their last digits. Where two tokens are as likely to so
//! many digits, the likeliest may be another, and what is written after it.

use crate::error::ModelError;

mod fused;
mod pass;
mod plain;

pub use fused::{FusedDecoder, FusedOptions};
pub use plain::PlainDecoder;

/// The memory for keys and values, and what a step gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// Blocks that there are.
    pub blocks: usize,
    /// Tokens that a block holds.
    pub block_tokens: usize,
    /// Longest sequence, in tokens.
    pub context_max: usize,
    /// Numbers of one row of logits.
    pub vocabulary: usize,
}

/// The next tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// The tokens, at least one.
    pub tokens: &'a [u32],
    /// Place of the first of them in its sequence, from 0. All before it are in the blocks already.
    pub position: usize,
    /// The sequence's blocks in order: enough for all its tokens up to the last of these.
    pub blocks: &'a [u32],
    /// Whether the logits after the last token are wanted.
    pub wants_logits: bool,
}

/// A decoder with its memory for keys and values.
pub trait StepModel: Send {
    /// Its sizes.
    fn shape(&self) -> StepShape;

    /// Reads the slices in one pass, and appends a row of logits, `[vocabulary]`, for each that wants them, in order.
    ///
    /// # Errors
    /// [`ModelError`] when the pass fails; the blocks that the slices would have written are undefined then.
    fn step(&mut self, slices: &[Slice<'_>], logits: &mut Vec<f32>) -> Result<(), ModelError>;

    /// Forgets all keys and values: every block is undefined until it is written again. To be called after a step panicked,
    /// which may have left the model's memory in parts; without it, what further steps give is undefined.
    ///
    /// A model that stands for another passes the call on. One that a panic leaves whole has nothing to do.
    ///
    /// # Errors
    /// [`ModelError`] when the memory cannot be made anew; the model is of no use then.
    fn reset(&mut self) -> Result<(), ModelError>;
}
