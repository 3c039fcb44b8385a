//! Generation: a decoder that answers many questions at once.
//!
//! A question becomes a prompt (`prompt`, `dialect`); the engine batches it with the others (`engine`, `schedule`, `blocks`,
//! `ticket`); of the model's logits come tokens (`sampler`), and of tokens an answer with sources (`stops`, `citations`).
//! `writer` is the tier that all of it makes.

mod blocks;
mod burn;
mod citations;
mod dialect;
mod engine;
#[cfg(test)]
mod fixtures;
mod measure;
mod prompt;
mod sampler;
mod schedule;
mod stops;
mod ticket;
mod writer;

pub use burn::{BurnConfig, BurnTier, KeptPrecision, SamplingFrom};
pub use engine::{GenerationLimits, GenerationStats};
pub use measure::{GenerationBench, GenerationLoad, GenerationRun};
pub use prompt::PromptConfig;
#[cfg(test)]
pub(crate) use prompt::tests::found;
pub(crate) use prompt::{Author, Measure, Prompt, Reader};
pub use sampler::Sampling;
