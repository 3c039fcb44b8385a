//! A small network: numbers in, the log odds that something holds out. Trained in Burn; run as plain arithmetic, a few
//! microseconds at a time.
//!
//! One hidden layer of rectified units, on inputs that are brought to mean 0 and spread 1. *Contract*: the same rows, options
//! and seed give the same network. An input that never varied where it was trained says nothing, whatever it is later.

use burn::module::{Module, Param};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::{relu, softplus};
use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::vector::dot;

/// An input that varies by less does not vary.
const SPREAD_MIN: f32 = 1e-3;
/// Training ends when so many passes in a row did not do better on the rows that validate.
const PATIENCE_PASSES: usize = 12;

/// Trained parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Network {
    /// Mean and spread of each input where it was trained: `[inputs]` each.
    means: Vec<f32>,
    spreads: Vec<f32>,
    /// `[inputs, units]`, row by row, and `[units]`.
    hidden: Vec<f32>,
    hidden_bias: Vec<f32>,
    /// `[units]` and one number.
    out: Vec<f32>,
    out_bias: f32,
}

impl Network {
    /// Whether all parts have their sizes and can be reckoned with.
    pub(crate) fn is_sound(&self, inputs: usize, units: usize) -> bool {
        let parts = [
            (&self.means, inputs),
            (&self.spreads, inputs),
            (&self.hidden, inputs.saturating_mul(units)),
            (&self.hidden_bias, units),
            (&self.out, units),
        ];
        parts.iter().all(|(part, size)| part.len() == *size && part.iter().all(|number| number.is_finite()))
            && self.spreads.iter().all(|spread| *spread > 0.0)
            && self.out_bias.is_finite()
    }

    /// The log odds for as many inputs as it was trained with; no number when one of them is none.
    pub(crate) fn judge(&self, inputs: &[f32]) -> f32 {
        debug_assert_eq!(inputs.len(), self.means.len(), "inputs");
        let mut hidden = self.hidden_bias.clone();
        let standard = inputs.iter().zip(&self.means).zip(&self.spreads).map(|((x, mean), spread)| (x - mean) / spread);
        for (input, weights) in standard.zip(self.hidden.chunks_exact(hidden.len())) {
            hidden.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += input * weight);
        }
        // What is no number stays none, which `max` would make 0.
        hidden.iter_mut().filter(|sum| **sum < 0.0).for_each(|sum| *sum = 0.0);
        dot(&hidden, &self.out) + self.out_bias
    }

    /// The log odds as they would be if the inputs that are `taken` away were average.
    pub(crate) fn judge_without(&self, inputs: &[f32], taken: &dyn Fn(usize) -> bool) -> f32 {
        let average = |(at, (x, mean)): (usize, (&f32, &f32))| if taken(at) { *mean } else { *x };
        self.judge(&inputs.iter().zip(&self.means).enumerate().map(average).collect::<Vec<_>>())
    }

    /// Brings inputs that are further from their mean than `spreads` times their spread back to there: about what training
    /// never saw, a network says anything.
    pub(crate) fn tame(&self, inputs: &mut [f32], spreads: f32) {
        for (x, (mean, spread)) in inputs.iter_mut().zip(self.means.iter().zip(&self.spreads)) {
            *x = x.clamp(mean - spreads * spread, mean + spreads * spread);
        }
    }

    /// Mean binary cross entropy.
    fn loss(&self, rows: &[Row<'_>]) -> f32 {
        let surprise = |row: &Row<'_>| {
            let against = if row.holds { -self.judge(row.inputs) } else { self.judge(row.inputs) };
            against.max(0.0) + (-against.abs()).exp().ln_1p()
        };
        rows.iter().map(surprise).sum::<f32>() / rows.len() as f32
    }
}

/// Something to learn from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<'a> {
    pub(crate) inputs: &'a [f32],
    pub(crate) holds: bool,
}

/// How a network is trained.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NetworkOptions {
    /// Units of the hidden layer.
    pub(crate) units: usize,
    /// Passes over the rows at most.
    pub(crate) passes: usize,
    /// Rows of a step.
    pub(crate) batch: usize,
    /// Pulls all parameters towards nothing (Loshchilov and Hutter 2019, <https://arxiv.org/abs/1711.05101>).
    pub(crate) weight_decay: f32,
    /// Decides first weights and the order of rows.
    pub(crate) seed: u64,
}

/// What training gave.
#[derive(Clone, Debug)]
pub(crate) struct Trained {
    pub(crate) network: Network,
    /// The pass that it comes from, from 0.
    pub(crate) pass: usize,
    /// Mean loss of that pass.
    pub(crate) loss: f32,
    /// Mean loss on the rows that validate; [`loss`](Self::loss) where there are none.
    pub(crate) validation_loss: f32,
}

#[derive(Module, Debug)]
struct Layers {
    hidden: Param<Tensor<2>>,
    hidden_bias: Param<Tensor<2>>,
    out: Param<Tensor<2>>,
    out_bias: Param<Tensor<2>>,
}

impl Layers {
    /// Weights and biases drawn evenly from within one over the root of a layer's inputs.
    fn draw(inputs: usize, units: usize, random: &mut fastrand::Rng, device: &Device) -> Self {
        let mut layer = |rows: usize, columns: usize, inputs: usize| {
            let reach = 1.0 / (inputs as f32).sqrt();
            let numbers: Vec<f32> = (0..rows * columns).map(|_| reach * (2.0 * random.f32() - 1.0)).collect();
            Param::from_tensor(Tensor::<2>::from_data(TensorData::new(numbers, [rows, columns]), device))
        };
        Self {
            hidden: layer(inputs, units, inputs),
            hidden_bias: layer(1, units, inputs),
            out: layer(units, 1, units),
            out_bias: layer(1, 1, units),
        }
    }

    /// Log odds of standard inputs.
    ///
    /// # Shapes
    /// `[rows, inputs]` in, `[rows, 1]` out.
    fn forward(&self, inputs: Tensor<2>) -> Tensor<2> {
        let hidden = relu(inputs.matmul(self.hidden.val()) + self.hidden_bias.val());
        hidden.matmul(self.out.val()) + self.out_bias.val()
    }

    fn network(&self, means: &[f32], spreads: &[f32]) -> Result<Network, ModelError> {
        let numbers = |layer: &Param<Tensor<2>>| {
            let numbers = layer.val().into_data().try_to_vec::<f32>();
            numbers.map_err(|error| ModelError::Training { reason: format!("{error:?}") })
        };
        Ok(Network {
            means: means.to_vec(),
            spreads: spreads.to_vec(),
            hidden: numbers(&self.hidden)?,
            hidden_bias: numbers(&self.hidden_bias)?,
            out: numbers(&self.out)?,
            out_bias: numbers(&self.out_bias)?.first().copied().unwrap_or_default(),
        })
    }
}

/// Trains a network; `progress` hears of each pass, its loss, and the loss on the rows that validate. Where such rows are
/// given, the pass that did best on them is taken; else the last.
///
/// # Errors
/// [`ModelError::Training`] when there are no rows, or the numbers do not stay finite.
pub(crate) fn train(
    rows: &[Row<'_>],
    validation: &[Row<'_>],
    options: &NetworkOptions,
    progress: &mut dyn FnMut(usize, f32, f32),
) -> Result<Trained, ModelError> {
    let Some(inputs) = rows.first().map(|row| row.inputs.len()) else {
        return Err(ModelError::Training { reason: "no rows to learn from".to_owned() });
    };
    let (means, spreads) = moments(rows, inputs);
    let device = Device::flex().autodiff();
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut layers = Layers::draw(inputs, options.units, &mut random, &device);
    let mut optimiser = AdamWConfig::new().with_weight_decay(options.weight_decay).init();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    let mut best: Option<Trained> = None;
    for pass in 0..options.passes {
        random.shuffle(&mut order);
        let mut sum = 0.0;
        for batch in order.chunks(options.batch) {
            let standard = batch.iter().flat_map(|&at| {
                rows[at].inputs.iter().zip(means.iter().zip(&spreads)).map(|(x, (mean, spread))| (x - mean) / spread)
            });
            let x = Tensor::<2>::from_data(TensorData::new(standard.collect(), [batch.len(), inputs]), &device);
            let signs: Vec<f32> = batch.iter().map(|&at| if rows[at].holds { -1.0 } else { 1.0 }).collect();
            let signs = Tensor::<2>::from_data(TensorData::new(signs, [batch.len(), 1]), &device);
            // Binary cross entropy of log odds z: log(1 + e^∓z).
            let loss = softplus(layers.forward(x) * signs, 1.0).mean();
            sum += loss.clone().into_scalar::<f32>() * batch.len() as f32;
            let gradients = GradientsParams::from_grads(loss.backward(), &layers);
            let rate = 1e-3 * (1.0 - pass as f64 / options.passes as f64);
            layers = optimiser.step(rate, layers, gradients);
        }
        let loss = sum / rows.len() as f32;
        if !loss.is_finite() {
            return Err(ModelError::Training { reason: format!("the loss is {loss} in pass {pass}") });
        }
        let network = layers.network(&means, &spreads)?;
        let validation_loss = if validation.is_empty() { loss } else { network.loss(validation) };
        progress(pass, loss, validation_loss);
        match &best {
            Some(best) if !validation.is_empty() && validation_loss >= best.validation_loss => {
                if pass - best.pass >= PATIENCE_PASSES {
                    break;
                }
            }
            _ => best = Some(Trained { network, pass, loss, validation_loss }),
        }
    }
    best.ok_or_else(|| ModelError::Training { reason: "no pass over the rows".to_owned() })
}

/// Mean and spread of each input. The spread of one that does not vary is so large that nothing is left of it.
fn moments(rows: &[Row<'_>], inputs: usize) -> (Vec<f32>, Vec<f32>) {
    let count = rows.len() as f32;
    let means: Vec<f32> = (0..inputs).map(|at| rows.iter().map(|row| row.inputs[at]).sum::<f32>() / count).collect();
    let spread = |at: usize| {
        let spread = (rows.iter().map(|row| (row.inputs[at] - means[at]).powi(2)).sum::<f32>() / count).sqrt();
        if spread < SPREAD_MIN { f32::MAX } else { spread }
    };
    let spreads = (0..inputs).map(spread).collect();
    (means, spreads)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: NetworkOptions = NetworkOptions { units: 8, passes: 60, batch: 32, weight_decay: 0.02, seed: 3 };

    /// Two inputs that decide together, one that is noise, and one that never varies.
    fn inputs() -> Vec<([f32; 4], bool)> {
        let mut random = fastrand::Rng::with_seed(5);
        let row = |_| {
            let [a, b, noise] = [random.f32(), random.f32(), random.f32()];
            ([a, b, noise, 0.5], a + b > 1.0)
        };
        (0..600).map(row).collect()
    }

    fn rows(inputs: &[([f32; 4], bool)]) -> Vec<Row<'_>> {
        inputs.iter().map(|(inputs, holds)| Row { inputs, holds: *holds }).collect()
    }

    #[test]
    fn learns_what_decides_and_ignores_what_never_varied() {
        let inputs = inputs();
        let rows = rows(&inputs);
        let (seen, unseen) = rows.split_at(450);
        let trained = train(seen, &[], &OPTIONS, &mut |_, _, _| {}).unwrap();
        let network = &trained.network;
        let right = unseen.iter().filter(|row| (network.judge(row.inputs) > 0.0) == row.holds).count();
        assert!(right > 135, "{right} of 150");
        assert_eq!(trained.pass, OPTIONS.passes - 1, "without validation the last pass is taken");
        let judged = network.judge(&[0.9, 0.9, 0.5, 0.5]);
        assert!((network.judge(&[0.9, 0.9, 0.5, 1e6]) - judged).abs() < 1e-3, "it never varied");
        let without = |taken: usize| judged - network.judge_without(&[0.9, 0.9, 0.5, 0.5], &|at| at == taken);
        assert!(without(0) > 0.5 && without(0) > 3.0 * without(2).abs(), "{} {}", without(0), without(2));
        let mut far = [1e9, f32::MIN, 0.5, 7.0];
        network.tame(&mut far, 4.0);
        assert!(far[0] < 3.0 && far[1] > -3.0, "{far:?}");
        assert!(network.judge(&[0.9, f32::NAN, 0.5, 0.5]).is_nan());
        assert!(network.is_sound(4, 8) && !network.is_sound(4, 7) && !network.is_sound(5, 8));
        assert_eq!(*network, train(seen, &[], &OPTIONS, &mut |_, _, _| {}).unwrap().network, "the same again");
        let other = NetworkOptions { seed: 4, ..OPTIONS };
        assert_ne!(*network, train(seen, &[], &other, &mut |_, _, _| {}).unwrap().network);
    }

    #[test]
    fn stops_when_validation_does_not_get_better() {
        let inputs = inputs();
        let rows = rows(&inputs);
        // What validates says the opposite of what is trained on: every pass makes it worse.
        let opposite: Vec<Row<'_>> = rows[450..].iter().map(|row| Row { holds: !row.holds, ..*row }).collect();
        let mut passes = 0;
        let trained = train(&rows[..450], &opposite, &OPTIONS, &mut |_, _, _| passes += 1).unwrap();
        assert!(passes < OPTIONS.passes, "{passes}");
        assert_eq!(trained.pass + PATIENCE_PASSES + 1, passes);
    }

    #[test]
    fn nothing_to_learn_from_is_refused() {
        let error = train(&[], &[], &OPTIONS, &mut |_, _, _| {}).unwrap_err();
        assert!(error.to_string().contains("no rows"), "{error}");
    }
}
