//! What the tests of kernels share.

use super::Instructions;

/// Every set of instructions that this processor has.
pub(super) fn sets() -> Vec<Instructions> {
    Instructions::available()
}

/// Numbers in -1..1, equal for equal seeds.
pub(super) fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..count).map(|_| random.f32() * 2.0 - 1.0).collect()
}

/// x·Φ(x), with the error function summed as a series, which is exact to 1e-12 where it is not 1.
pub(super) fn gelu(x: f64) -> f64 {
    let z = (x / 2.0_f64.sqrt()).clamp(-6.0, 6.0);
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    let erf = if z.abs() < 5.0 { sum * std::f64::consts::FRAC_2_SQRT_PI } else { z.signum() };
    x * (1.0 + erf) / 2.0
}
