//! What is done row by row against the plain way.

use proptest::prelude::*;

use super::*;
use crate::kernels::fixtures::{gelu, numbers, sets};

struct Exp<'a>(&'a mut [f32; LANES]);

impl Kernel for Exp<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        simd.store(simd.exp(simd.load(self.0)), self.0);
    }
}

struct Gelu<'a>(&'a mut [f32; LANES]);

impl Kernel for Gelu<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        simd.store(simd.gelu(simd.load(self.0)), self.0);
    }
}

struct Softmax<'a>(&'a mut [f32], f32);

impl Kernel for Softmax<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        exponentials(simd, self.0, self.1)
    }
}

#[test]
fn what_is_no_number_stays_so() {
    for set in sets() {
        let mut found = [f32::NAN; LANES];
        set.run(Exp(&mut found));
        assert!(found.iter().all(|x| x.is_nan()), "{}: {found:?}", set.name());
        set.run(Gelu(&mut found));
        assert!(found.iter().all(|x| x.is_nan()), "{}: {found:?}", set.name());
    }
}

proptest! {
    #[test]
    fn powers_of_e_are_those_of_the_library(x in -87.0_f32..88.0) {
        for set in sets() {
            let mut found = [x; LANES];
            set.run(Exp(&mut found));
            let expected = x.exp();
            prop_assert!((found[3] - expected).abs() <= expected * 3e-7, "{}: e^{x} = {}, not {expected}", set.name(), found[3]);
        }
    }

    #[test]
    fn gelus_are_those_of_a_series(x in -12.0_f32..12.0) {
        for set in sets() {
            let mut found = [x; LANES];
            set.run(Gelu(&mut found));
            let expected = gelu(f64::from(x));
            let error = (f64::from(found[7]) - expected).abs();
            prop_assert!(error <= 3e-7 * f64::from(x.abs().max(1.0)), "{}: {} at {x}, not {expected}", set.name(), found[7]);
        }
    }

    #[test]
    fn layer_norms_are_those_of_a_plain_loop(width in 1_usize..100, shift in -9.0_f32..9.0, seed: u64) {
        let x: Vec<f32> = numbers(width, seed).iter().map(|x| x + shift).collect();
        let (weights, bias) = (numbers(width, seed ^ 1), numbers(width, seed ^ 2));
        let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / width as f64;
        let variance = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / width as f64;
        for set in sets() {
            let mut found = x.clone();
            layer_norm(set, &mut found, &weights, &bias, 1e-3);
            for (at, found) in found.iter().enumerate() {
                let scaled = (f64::from(x[at]) - mean) / (variance + 1e-3).sqrt();
                let expected = scaled * f64::from(weights[at]) + f64::from(bias[at]);
                prop_assert!((f64::from(*found) - expected).abs() <= 1e-4, "{}: {found}, not {expected}", set.name());
            }
            add(set, &mut found, &x);
            let mut alone = x.clone();
            layer_norm(set, &mut alone, &weights, &bias, 1e-3);
            for ((found, alone), x) in found.iter().zip(&alone).zip(&x) {
                prop_assert_eq!(*found, alone + x);
            }
        }
    }

    #[test]
    fn norms_are_those_of_a_plain_loop(width in 1_usize..100, seed: u64) {
        let (x, weights) = (numbers(width, seed), numbers(width, seed ^ 1));
        let mean = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
        for set in sets() {
            let mut found = x.clone();
            normalise(set, &mut found, &weights, 1e-5);
            for ((found, x), weight) in found.iter().zip(&x).zip(&weights) {
                let expected = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*weight);
                prop_assert!((f64::from(*found) - expected).abs() <= 1e-6 * expected.abs() + 1e-7);
            }
        }
    }

    #[test]
    fn rotations_are_those_of_complex_numbers(half in 1_usize..40, seed: u64) {
        let (x, angles) = (numbers(2 * half, seed), numbers(half, seed ^ 1));
        let (sines, cosines): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| angle.sin_cos()).unzip();
        for set in sets() {
            let mut found = x.clone();
            rotate(set, &mut found, &cosines, &sines);
            for i in 0..half {
                let (a, b, cosine, sine) = (x[i], x[i + half], cosines[i], sines[i]);
                prop_assert!((found[i] - (a * cosine - b * sine)).abs() <= 1e-6);
                prop_assert!((found[i + half] - (a * sine + b * cosine)).abs() <= 1e-6);
            }
        }
    }

    #[test]
    fn shares_are_those_of_a_softmax(length in 1_usize..80, scale in 0.05_f32..20.0, seed: u64) {
        let x = numbers(length, seed);
        let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let expected: Vec<f32> = x.iter().map(|x| ((x - largest) * scale).exp()).collect();
        let whole: f32 = expected.iter().sum();
        for set in sets() {
            let mut found = x.clone();
            let sum = set.run(Softmax(&mut found, scale));
            prop_assert!((sum - whole).abs() <= 1e-5 * whole);
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert!((found - expected).abs() <= 1e-6);
            }
        }
    }
}
