//! Kernels: the arithmetic of decoders and of the encoder on the CPU, on plain slices of numbers.
//!
//! Contract: all of it is written against [`Simd`], and runs with the instructions that the processor has; the threads are
//! those of a [`Pool`]. Nothing is allocated for a product. Functions are safe to call with any numbers: sizes that do not
//! fit each other panic.
//!
//! This is the only module of the crate with `unsafe` code: in `simd/` the processor's instructions, in `pool.rs` a function
//! that other threads call, in `shared.rs` a slice that they write to, in `tile.rs` reads without a check, and in `prefetch.rs` one instruction.

#![expect(unsafe_code, reason = "vector instructions, and slices that threads share; each use says why it is sound")]

mod attention;
#[cfg(test)]
mod fixtures;
mod matrix;
mod narrow;
mod pool;
mod prefetch;
mod product;
mod rows;
mod sequences;
mod shared;
mod simd;
mod tile;

pub(crate) use attention::{Asking, HeadShape, Memory};
pub(crate) use matrix::{Format, Matrix};
pub(crate) use narrow::Narrow;
pub(crate) use pool::Pool;
pub use prefetch::prefetch;
pub(crate) use product::{Finish, Start};
pub(crate) use rows::{add, layer_norm, normalise, rotate};
pub(crate) use sequences::Sequences;
pub use simd::{InstructionChoice, Instructions};
