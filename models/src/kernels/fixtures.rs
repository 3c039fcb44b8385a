//! What the tests of kernels share.

use super::Instructions;

/// Every set of instructions that this processor has.
pub(super) fn sets() -> Vec<Instructions> {
    let best = Instructions::detect();
    if best == Instructions::PORTABLE { vec![best] } else { vec![Instructions::PORTABLE, best] }
}

/// Numbers in -1..1, equal for equal seeds.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| random.f32() * 2.0 - 1.0).collect()
}
