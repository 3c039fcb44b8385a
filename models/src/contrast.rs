//! Contrastive training of a linear map: texts that mean the same come together, others move apart.
//!
//! The loss is the supervised contrastive one of Khosla et al. 2020, <https://arxiv.org/abs/2004.11362>, plus a pull
//! towards the map that training starts from, which keeps what the labels say nothing about where it was.

use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};

use crate::error::ModelError;

/// Takes a text's similarity to itself out of a softmax.
const SELF: f32 = -1e9;
/// Keeps the division by a vector's length defined.
const NORM_MIN: f32 = 1e-12;

/// How a map is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ContrastOptions {
    /// Steps of the optimiser.
    pub steps: usize,
    /// Labels that are compared in a step, all of one source, and texts of each.
    pub labels_per_step: usize,
    /// Texts of each label in a step.
    pub texts_per_label: usize,
    /// Similarities are divided by this.
    pub temperature: f32,
    /// Largest step; it grows over the first twentieth and then falls to nothing.
    pub learning_rate: f64,
    /// Strength of the pull towards the start.
    pub pull: f32,
    /// Chooses which texts are compared when.
    pub seed: u64,
}

impl Default for ContrastOptions {
    fn default() -> Self {
        Self {
            steps: 500,
            labels_per_step: 40,
            texts_per_label: 5,
            temperature: 0.07,
            learning_rate: 2e-3,
            pull: 0.01,
            seed: 1,
        }
    }
}

#[derive(Module, Debug)]
struct Map {
    weight: Param<Tensor<2>>,
}

/// Trains a linear map on vectors by source and label; `progress` hears of each step and its loss. What two sources call by different
/// names may mean the same, so only labels of one source are moved apart.
///
/// # Shapes
/// `start` is `[dimension, outputs]`, row by row, and so is the result; `vectors` are of `dimension` numbers, of each source by label.
/// A vector `x` is mapped to `x · W`, and similarities are cosines of what is mapped.
///
/// # Errors
/// [`ModelError::Training`] when in no source two labels have two texts each, or when the numbers do not stay finite.
pub fn train_map<'a>(
    vectors: &'a [Vec<Vec<&'a [f32]>>],
    start: &[f32],
    outputs: usize,
    options: &ContrastOptions,
    progress: &mut dyn FnMut(usize, f32),
) -> Result<Vec<f32>, ModelError> {
    let usable = |labels: &'a Vec<Vec<&'a [f32]>>| labels.iter().filter(|texts| texts.len() > 1).collect::<Vec<_>>();
    let sources: Vec<Vec<&Vec<&[f32]>>> = vectors.iter().map(usable).filter(|labels| labels.len() > 1).collect();
    if sources.is_empty() {
        return Err(ModelError::Training {
            reason: "fewer than two labels of a source have two texts each".to_owned(),
        });
    }
    // A source as often as it has labels.
    let turns: Vec<usize> = (0..sources.len()).flat_map(|at| std::iter::repeat_n(at, sources[at].len())).collect();
    let dimension = start.len() / outputs;
    let device = Device::flex().autodiff();
    let origin = Tensor::<2>::from_data(TensorData::new(start.to_vec(), [dimension, outputs]), &device);
    let mut map = Map { weight: Param::from_tensor(origin.clone()) };
    let mut optimiser = AdamWConfig::new().with_weight_decay(0.0).init();
    let mut random = fastrand::Rng::with_seed(options.seed);
    for step in 0..options.steps {
        let source = &sources[turns[random.usize(0..turns.len())]];
        let (texts, owners) = draw(source, options, &mut random);
        let count = owners.len();
        let targets = targets(&owners);
        let x = Tensor::<2>::from_data(TensorData::new(texts, [count, dimension]), &device);
        let mapped = x.matmul(map.weight.val());
        let length = mapped.clone().powi_scalar(2).sum_dim(1).sqrt().clamp_min(NORM_MIN);
        let unit = mapped / length;
        let similar = unit.clone().matmul(unit.transpose()) / options.temperature;
        let diagonal = Tensor::<2>::eye(count, &device) * SELF;
        let likely = log_softmax(similar + diagonal.clone(), 1);
        // The diagonal is as good as minus infinity: it must not meet a target of nothing.
        let wanted = Tensor::<2>::from_data(TensorData::new(targets, [count, count]), &device);
        let contrast = (likely - diagonal) * wanted;
        let away = (map.weight.val() - origin.clone()).powi_scalar(2).sum();
        let loss = -contrast.sum() / count as f32 + away * options.pull;
        let told = loss.clone().into_scalar::<f32>();
        if !told.is_finite() {
            return Err(ModelError::Training { reason: format!("the loss is {told} at step {step}") });
        }
        progress(step, told);
        let gradients = GradientsParams::from_grads(loss.backward(), &map);
        map = optimiser.step(rate(options, step), map, gradients);
    }
    let numbers = map.weight.val().into_data().try_to_vec::<f32>();
    numbers.map_err(|error| ModelError::Training { reason: format!("{error:?}") })
}

/// The vectors of one step, and the label of each.
fn draw(labels: &[&Vec<&[f32]>], options: &ContrastOptions, random: &mut fastrand::Rng) -> (Vec<f32>, Vec<usize>) {
    let mut order: Vec<usize> = (0..labels.len()).collect();
    random.shuffle(&mut order);
    let (mut texts, mut owners) = (Vec::new(), Vec::new());
    for &label in order.iter().take(options.labels_per_step) {
        for _ in 0..options.texts_per_label {
            texts.extend_from_slice(labels[label][random.usize(0..labels[label].len())]);
            owners.push(label);
        }
    }
    (texts, owners)
}

/// For each text, how likely each other is to be its like: even over those of its label.
fn targets(owners: &[usize]) -> Vec<f32> {
    let mut targets = Vec::with_capacity(owners.len() * owners.len());
    for (at, owner) in owners.iter().enumerate() {
        let like = |other: usize| other != at && owners[other] == *owner;
        let count = (0..owners.len()).filter(|&other| like(other)).count().max(1);
        targets.extend((0..owners.len()).map(|other| if like(other) { 1.0 / count as f32 } else { 0.0 }));
    }
    targets
}

/// The step's size: a short rise, then a straight fall.
fn rate(options: &ContrastOptions, step: usize) -> f64 {
    let (at, all) = (step as f64 + 1.0, options.steps as f64);
    options.learning_rate * (at / (all / 20.0).max(1.0)).min(1.0) * (1.0 - step as f64 / all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same_comes_together() {
        // Only the first two of eight numbers tell the label; the rest is noise that outweighs them.
        let mut random = fastrand::Rng::with_seed(7);
        let labels: Vec<Vec<Vec<f32>>> = (0..4)
            .map(|label: usize| {
                let (a, b) = ((label % 2) as f32 - 0.5, (label / 2) as f32 - 0.5);
                (0..24).map(|_| [a, b].into_iter().chain((0..6).map(|_| 2.0 * random.f32() - 1.0)).collect()).collect()
            })
            .collect();
        let vectors: Vec<Vec<&[f32]>> = labels.iter().map(|texts| texts.iter().map(Vec::as_slice).collect()).collect();
        let start: Vec<f32> = (0..64).map(|at| if at / 8 == at % 8 { 1.0 } else { 0.0 }).collect();
        let options = ContrastOptions { steps: 150, learning_rate: 0.05, pull: 1e-4, ..ContrastOptions::default() };
        let map = train_map(&[vectors], &start, 8, &options, &mut |_, _| {}).unwrap();
        let strength = |row: usize| map[row * 8..(row + 1) * 8].iter().map(|x| x * x).sum::<f32>().sqrt();
        let (telling, noise) = (strength(0).min(strength(1)), (2..8).map(strength).fold(0.0, f32::max));
        assert!(telling > 3.0 * noise, "{telling} {noise}");
    }

    #[test]
    fn too_little_is_refused() {
        let one = vec![vec![&[1.0_f32, 0.0][..], &[0.0, 1.0][..]]];
        // Two labels, but nobody knows whether they mean different things.
        let error =
            train_map(&[one.clone(), one], &[1.0, 0.0, 0.0, 1.0], 2, &ContrastOptions::default(), &mut |_, _| {})
                .unwrap_err();
        assert!(error.to_string().contains("two labels"), "{error}");
    }
}
