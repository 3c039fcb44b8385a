//! Kernels: the arithmetic of decoders on the CPU, on plain slices of numbers.
//!
//! Contract: all of it is written against [`Simd`], and runs with the instructions that the processor has; the threads are
//! those of a [`Pool`]. Nothing is allocated for a product. Functions are safe to call with any numbers: sizes that do not
//! fit each other panic.
//!
//! This is the only module of the crate with `unsafe` code: in `simd.rs` the processor's instructions, in `pool.rs` a function
//! that other threads call, in `shared.rs` a slice that they write to, and in `tile.rs` one read without a check. Beyond
//! AVX2 there are no wider instructions yet.

#![expect(unsafe_code, reason = "vector instructions, and slices that threads share; each use says why it is sound")]

mod attention;
#[cfg(test)]
mod fixtures;
mod matrix;
mod pool;
mod rows;
mod shared;
mod simd;
mod tile;

pub(crate) use attention::{Asking, HeadShape, Memory};
pub(crate) use matrix::{Matrix, Start};
pub(crate) use pool::Pool;
pub(crate) use rows::{normalise, rotate};
pub use simd::Instructions;
