//! Fitting a router: the network, the calibration, the curve.
//!
//! Turns are split by their text: most are trained on, some validate, some calibrate. What is learned is whether the small
//! tier's answer is as good as the large one's. Turns with both tiers' answers judged are few, so there is more to guard
//! against than to learn: training ends when the turns that validate stop getting better, and of several
//! [strengths](WEIGHT_DECAYS) of weight decay, they choose the one that serves them best. Calibration and curve are made on
//! turns that neither training nor these choices saw.

use turnflow_state::normalise;

use super::curve::{Curve, Outcome};
use super::platt::Platt;
use super::{Router, RouterExample, UNITS, inputs};
use crate::error::ModelError;
use crate::network::{self, NetworkOptions, Row, Trained};
use crate::split::part_of;

/// Shares of the turns that calibrate and validate.
const CALIBRATION_SHARE: f64 = 0.25;
const VALIDATION_SHARE: f64 = 0.15;
const BATCH: usize = 64;
/// Strengths of weight decay that are tried.
const WEIGHT_DECAYS: [f32; 3] = [0.3, 3.0, 10.0];

/// How a router is fitted.
#[derive(Clone, Copy, Debug)]
pub struct RouterFitOptions {
    /// Passes over the turns at most.
    pub passes: usize,
    /// Share of the turns, by their text, that are left out of everything, to judge the router on.
    pub held_out: f64,
    /// Decides first weights and the order of turns.
    pub seed: u64,
}

impl Default for RouterFitOptions {
    fn default() -> Self {
        Self { passes: 100, held_out: 0.0, seed: 1 }
    }
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterFitReport {
    /// Turns trained on.
    pub trained: usize,
    /// Turns that ended training and chose the weight decay.
    pub validated: usize,
    /// Turns that the calibration and the curve were made with.
    pub calibrated: usize,
    /// The weight decay that was chosen.
    pub weight_decay: f32,
    /// Passes after which the network was best.
    pub passes: usize,
    /// Mean loss on the turns that validate.
    pub loss: f32,
    /// Places of the turns that were left out.
    pub held_out: Vec<usize>,
}

/// Where a turn goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    HeldOut,
    Calibrates,
    Validates,
    Trains,
}

impl Part {
    fn of(text: &str, held_out: f64) -> Self {
        let text = normalise(text);
        if part_of(&format!("held out {text}")) < held_out {
            return Self::HeldOut;
        }
        match part_of(&text) {
            part if part < CALIBRATION_SHARE => Self::Calibrates,
            part if part < CALIBRATION_SHARE + VALIDATION_SHARE => Self::Validates,
            _ => Self::Trains,
        }
    }
}

/// Fits a router to turns whose vectors an `encoder` of this name made. `progress` hears of the weight decay, the pass, its
/// loss, and the loss on the turns that validate.
///
/// # Errors
/// [`ModelError::Training`] when there is too little to learn from, vectors differ in length, or the numbers do not stay finite.
pub fn fit_router(
    examples: &[RouterExample],
    options: &RouterFitOptions,
    encoder: String,
    progress: &mut dyn FnMut(f32, usize, f32, f32),
) -> Result<(Router, RouterFitReport), ModelError> {
    let dimension = examples.first().map_or(0, |example| example.vector.len());
    if examples.iter().any(|example| example.vector.len() != dimension) {
        return Err(ModelError::Training { reason: "the turns' vectors differ in length".to_owned() });
    }
    let parts: Vec<Part> = examples.iter().map(|example| Part::of(&example.text, options.held_out)).collect();
    let inputs: Vec<Vec<f32>> = examples.iter().map(|example| inputs(&example.input())).collect();
    let of = |part: Part| (0..examples.len()).filter(|&at| parts[at] == part).collect::<Vec<_>>();
    let row = |&at: &usize| Row { inputs: &inputs[at], holds: examples[at].small_suffices() };
    let rows = |part: Part, what: &str| {
        let rows: Vec<Row<'_>> = of(part).iter().map(row).collect();
        let holds = rows.iter().filter(|row| row.holds).count();
        let reason = format!(
            "of the {} turns that {what}, the small tier suffices for {holds}: there have to be some of both kinds",
            rows.len()
        );
        if (1..rows.len()).contains(&holds) { Ok(rows) } else { Err(ModelError::Training { reason }) }
    };
    let (training, validation) = (rows(Part::Trains, "train")?, rows(Part::Validates, "validate")?);
    let calibration = rows(Part::Calibrates, "calibrate")?;
    let (weight_decay, trained) = train(&training, &validation, options, progress)?;

    let log_odds: Vec<f32> = calibration.iter().map(|row| trained.network.judge(row.inputs)).collect();
    let judged: Vec<(f32, bool)> = log_odds.iter().zip(&calibration).map(|(x, row)| (*x, row.holds)).collect();
    let platt = Platt::of(&judged);
    let outcome = |(&at, log_odds): (&usize, &f32)| {
        let RouterExample { small_correct, large_correct, .. } = examples[at];
        Outcome { probability: platt.probability(*log_odds), small_correct, large_correct }
    };
    let outcomes: Vec<Outcome> = of(Part::Calibrates).iter().zip(&log_odds).map(outcome).collect();
    let router = Router { dimension, network: trained.network, platt, curve: Curve::of(&outcomes), encoder };
    let report = RouterFitReport {
        trained: training.len(),
        validated: validation.len(),
        calibrated: calibration.len(),
        weight_decay,
        passes: trained.pass + 1,
        loss: trained.validation_loss,
        held_out: of(Part::HeldOut),
    };
    Ok((router, report))
}

/// Trains a network with each strength of weight decay; the one with the least loss on the turns that validate is taken.
fn train(
    training: &[Row<'_>],
    validation: &[Row<'_>],
    options: &RouterFitOptions,
    progress: &mut dyn FnMut(f32, usize, f32, f32),
) -> Result<(f32, Trained), ModelError> {
    let mut best: Option<(f32, Trained)> = None;
    for weight_decay in WEIGHT_DECAYS {
        let RouterFitOptions { passes, seed, .. } = *options;
        let how = NetworkOptions { units: UNITS, passes, batch: BATCH, weight_decay, seed };
        let trained = network::train(training, validation, &how, &mut |pass, loss, validation_loss| {
            progress(weight_decay, pass, loss, validation_loss);
        })?;
        if best.as_ref().is_none_or(|(_, best)| trained.validation_loss < best.validation_loss) {
            best = Some((weight_decay, trained));
        }
    }
    best.ok_or_else(|| ModelError::Training { reason: "no weight decay to try".to_owned() })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::router::{RouterInput, evaluate_router};

    pub(in crate::router) fn asked<'a>(text: &'a str, vector: &'a [f32]) -> RouterInput<'a> {
        RouterInput { text, vector, retrieval: None, turns_before: 0, leans: false }
    }

    /// Turns of which the first number of the vector tells whether the small tier is right, where it tells anything; the
    /// large one is right four times in five, and the small one never where it is not.
    fn turns(count: usize, seed: u64, tells: bool) -> Vec<RouterExample> {
        let mut random = fastrand::Rng::with_seed(seed);
        let one = |at: usize| {
            let vector: Vec<f32> = (0..8).map(|_| 2.0 * random.f32() - 1.0).collect();
            let large_correct = random.f32() < 0.8;
            let is_easy = if tells { vector[0] > 0.0 } else { random.bool() };
            let text = format!("how is thing {seed} {at}{}", ["", "?", " and why", " or not?"][at % 4]);
            let (retrieval, turns_before) = (None, 0);
            let small_correct = large_correct && is_easy;
            RouterExample { text, vector: vector.into(), retrieval, turns_before, small_correct, large_correct }
        };
        (0..count).map(one).collect()
    }

    fn fit(examples: &[RouterExample], seed: u64) -> Result<(Router, RouterFitReport), ModelError> {
        let options = RouterFitOptions { passes: 60, seed, ..RouterFitOptions::default() };
        fit_router(examples, &options, "an encoder".to_owned(), &mut |_, _, _, _| {})
    }

    /// A router for turns that are told apart by the first of eight numbers.
    pub(in crate::router) fn fitted() -> Router {
        fit(&turns(1_000, 1, true), 1).unwrap().0
    }

    #[test]
    fn what_can_be_told_apart_is() {
        let (router, report) = fit(&turns(1_500, 1, true), 1).unwrap();
        assert_eq!(report.trained + report.validated + report.calibrated, 1_500);
        assert!(report.trained > 800 && report.validated > 150 && report.calibrated > 300, "{report:?}");
        assert!(report.held_out.is_empty());
        let others = turns(800, 2, true);
        let judged = evaluate_router(&router, &others).unwrap();
        // Of every ten turns the router can but send five, of which four gain: 5/6 of what the oracle gets.
        assert!((0.65..0.9).contains(&judged.gap_closed.unwrap()), "{judged:?}");
        let met = judged.kept.iter().find(|kept| kept.quality == 0.95).unwrap().met;
        assert!(met.quality_kept > 0.9 && met.large_share < 0.65, "{met:?}");
    }

    #[test]
    fn what_cannot_be_told_apart_is_not() {
        let (router, _) = fit(&turns(1_500, 1, false), 1).unwrap();
        let judged = evaluate_router(&router, &turns(2_000, 2, false)).unwrap();
        assert!(judged.gap_closed.unwrap().abs() < 0.2, "{judged:?}");
    }

    #[test]
    fn the_same_seed_gives_the_same_router() {
        let turns = turns(400, 1, true);
        let [first, again, other] = [1, 1, 2].map(|seed| fit(&turns, seed).unwrap().0);
        assert_eq!(first, again);
        assert_ne!(first, other);
    }

    #[test]
    fn what_is_held_out_is_in_no_other_part() {
        let turns = turns(1_000, 1, true);
        let options = RouterFitOptions { passes: 5, held_out: 0.3, ..RouterFitOptions::default() };
        let (_, report) = fit_router(&turns, &options, String::new(), &mut |_, _, _, _| {}).unwrap();
        let held_out = report.held_out.len();
        assert!((230..370).contains(&held_out), "{held_out}");
        assert_eq!(report.trained + report.validated + report.calibrated + held_out, 1_000);
        assert_eq!(Part::of("How is it?", 0.5), Part::of("how is  IT", 0.5), "by normal form");
    }

    #[test]
    fn too_little_is_refused() {
        let refused = |turns: &[RouterExample]| fit(turns, 1).unwrap_err().to_string();
        assert!(refused(&[]).contains("of the 0 turns that train"), "{}", refused(&[]));
        let mut turns = turns(100, 1, true);
        turns[7].vector = vec![0.0; 7].into();
        assert!(refused(&turns).contains("differ in length"), "{}", refused(&turns));
        turns.remove(7);
        turns.iter_mut().for_each(|turn| turn.small_correct = true);
        assert!(refused(&turns).contains("some of both kinds"), "{}", refused(&turns));
    }
}
