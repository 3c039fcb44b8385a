//! Generation: a decoder that answers many questions at once.
//!
//! The [engine] batches, [blocks] are the memory, [sampler] and [stops] make text of logits.

mod blocks;
mod engine;
#[cfg(test)]
mod fixtures;
mod sampler;
mod schedule;
mod stops;
mod ticket;

pub use engine::{GenerationLimits, GenerationStats};
pub use sampler::Sampling;
