//! What is done to a row of numbers by itself: its norms, and its rotation.

use super::simd::{Instructions, Kernel, LANES, Simd};

/// Divides the numbers by the root of their mean square, and multiplies them by the weights: RMSNorm (Zhang and Sennrich
/// 2019, <https://arxiv.org/abs/1910.07467>).
///
/// # Shapes
/// - `numbers`, `weights`: `[width]`
pub(crate) fn normalise(set: Instructions, numbers: &mut [f32], weights: &[f32], epsilon: f32) {
    assert_eq!(numbers.len(), weights.len(), "a weight for each number");
    set.run(Normalise { numbers, weights, epsilon });
}

/// Shifts and scales the numbers to a mean of 0 and a variance of 1, multiplies them by the weights and adds the bias: LayerNorm
/// (Ba et al. 2016, <https://arxiv.org/abs/1607.06450>).
///
/// # Shapes
/// - `numbers`, `weights`, `bias`: `[width]`
pub(crate) fn layer_norm(set: Instructions, numbers: &mut [f32], weights: &[f32], bias: &[f32], epsilon: f32) {
    assert!(weights.len() == numbers.len() && bias.len() == numbers.len(), "a weight and a bias for each number");
    set.run(LayerNorm { numbers, weights, bias, epsilon });
}

/// Adds to each number the one at its place.
///
/// # Shapes
/// - `numbers`, `more`: `[width]`
pub(crate) fn add(set: Instructions, numbers: &mut [f32], more: &[f32]) {
    assert_eq!(numbers.len(), more.len(), "a number for each");
    set.run(Add { numbers, more });
}

/// Turns each pair `(i, i + half)` of a head by an angle (Su et al. 2021, <https://arxiv.org/abs/2104.09864>).
///
/// # Shapes
/// - `head`: `[2 × half]`, `cosines`, `sines`: `[half]`
pub(crate) fn rotate(set: Instructions, head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let half = cosines.len();
    assert!(sines.len() == half && head.len() == 2 * half, "an angle for each pair");
    set.run(Rotate { head, cosines, sines });
}

struct Normalise<'a> {
    numbers: &'a mut [f32],
    weights: &'a [f32],
    epsilon: f32,
}

impl Kernel for Normalise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { numbers, weights, epsilon } = self;
        let width = numbers.len() as f32;
        let (vectors, rest) = numbers.as_chunks_mut::<LANES>();
        let mut sum = simd.zero();
        for vector in &*vectors {
            let vector = simd.load(vector);
            sum = simd.mul_add(vector, vector, sum);
        }
        let sum = rest.iter().fold(simd.sum(sum), |sum, x| sum + x * x);
        let scale = 1.0 / (sum / width + epsilon).sqrt();
        let (vector_weights, rest_weights) = weights.as_chunks::<LANES>();
        for (vector, weight) in vectors.iter_mut().zip(vector_weights) {
            let scaled = simd.mul(simd.load(vector), simd.splat(scale));
            simd.store(simd.mul(scaled, simd.load(weight)), vector);
        }
        for (x, weight) in rest.iter_mut().zip(rest_weights) {
            *x *= scale * weight;
        }
    }
}

struct LayerNorm<'a> {
    numbers: &'a mut [f32],
    weights: &'a [f32],
    bias: &'a [f32],
    epsilon: f32,
}

impl Kernel for LayerNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { numbers, weights, bias, epsilon } = self;
        let width = numbers.len() as f32;
        let (vectors, rest) = numbers.as_chunks_mut::<LANES>();
        let sum = vectors.iter().fold(simd.zero(), |sum, vector| simd.add(sum, simd.load(vector)));
        let mean = rest.iter().fold(simd.sum(sum), |sum, x| sum + x) / width;
        let centre = simd.splat(mean);
        let squares = vectors.iter().fold(simd.zero(), |sum, vector| {
            let apart = simd.sub(simd.load(vector), centre);
            simd.mul_add(apart, apart, sum)
        });
        let squares = rest.iter().fold(simd.sum(squares), |sum, x| sum + (x - mean) * (x - mean));
        let scale = 1.0 / (squares / width + epsilon).sqrt();
        let (vector_weights, rest_weights) = weights.as_chunks::<LANES>();
        let (vector_biases, rest_biases) = bias.as_chunks::<LANES>();
        for ((vector, weight), bias) in vectors.iter_mut().zip(vector_weights).zip(vector_biases) {
            let scaled = simd.mul(simd.sub(simd.load(vector), centre), simd.splat(scale));
            simd.store(simd.mul_add(scaled, simd.load(weight), simd.load(bias)), vector);
        }
        for ((x, weight), bias) in rest.iter_mut().zip(rest_weights).zip(rest_biases) {
            *x = (*x - mean) * scale * weight + bias;
        }
    }
}

struct Add<'a> {
    numbers: &'a mut [f32],
    more: &'a [f32],
}

impl Kernel for Add<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (vectors, rest) = self.numbers.as_chunks_mut::<LANES>();
        let (more_vectors, more_rest) = self.more.as_chunks::<LANES>();
        for (vector, more) in vectors.iter_mut().zip(more_vectors) {
            simd.store(simd.add(simd.load(vector), simd.load(more)), vector);
        }
        for (x, more) in rest.iter_mut().zip(more_rest) {
            *x += more;
        }
    }
}

struct Rotate<'a> {
    head: &'a mut [f32],
    cosines: &'a [f32],
    sines: &'a [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { head, cosines, sines } = self;
        let (first, second) = head.split_at_mut(cosines.len());
        let ((firsts, rest_first), (seconds, rest_second)) = (first.as_chunks_mut::<LANES>(), second.as_chunks_mut());
        let ((cosines, rest_cosines), (sines, rest_sines)) = (cosines.as_chunks::<LANES>(), sines.as_chunks::<LANES>());
        for (((first, second), cosine), sine) in firsts.iter_mut().zip(seconds).zip(cosines).zip(sines) {
            let (a, b) = (simd.load(first), simd.load(second));
            let (cosine, sine) = (simd.load(cosine), simd.load(sine));
            simd.store(simd.sub(simd.mul(a, cosine), simd.mul(b, sine)), first);
            simd.store(simd.mul_add(a, sine, simd.mul(b, cosine)), second);
        }
        for (((first, second), cosine), sine) in
            rest_first.iter_mut().zip(rest_second).zip(rest_cosines).zip(rest_sines)
        {
            let (a, b) = (*first, *second);
            *first = a * cosine - b * sine;
            *second = b * cosine + a * sine;
        }
    }
}

/// Makes of scores the shares of the softmax, but for the sum, which it gives: `exp((score - largest) · scale)`.
///
/// # Shapes
/// - `scores`: `[length]`, not empty
#[inline(always)]
pub(crate) fn exponentials<S: Simd>(simd: S, scores: &mut [f32], scale: f32) -> f32 {
    let (vectors, rest) = scores.as_chunks_mut::<LANES>();
    let mut largest = simd.splat(f32::NEG_INFINITY);
    for vector in &*vectors {
        largest = simd.max(largest, simd.load(vector));
    }
    let largest = simd.splat(rest.iter().fold(simd.largest(largest), |largest, x| largest.max(*x)));
    let scale = simd.splat(scale);
    let mut sum = simd.zero();
    for vector in vectors {
        let share = simd.exp(simd.mul(simd.sub(simd.load(vector), largest), scale));
        sum = simd.add(sum, share);
        simd.store(share, vector);
    }
    if rest.is_empty() {
        return simd.sum(sum);
    }
    let mut last = [0.0; LANES];
    last[..rest.len()].copy_from_slice(rest);
    let share = simd.exp(simd.mul(simd.sub(simd.load(&last), largest), scale));
    simd.store(share, &mut last);
    rest.copy_from_slice(&last[..rest.len()]);
    rest.iter().fold(simd.sum(sum), |sum, x| sum + x)
}

#[cfg(test)]
#[path = "rows_tests.rs"]
mod tests;
