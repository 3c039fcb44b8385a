//! Fitting a verifier: the projection, the network, the calibration.
//!
//! Questions are split by their text: some are trained on, the others calibrate. The projection is trained by
//! [contrast](crate::contrast); the network on pairs that are hard to tell apart, found among the nearest; the calibration
//! plays a cache: the questions come one after another, each is judged against the nearest of those before it, and what
//! is counted is the nearest that is accepted, as when serving. Each source is played by itself, and questions of two sources are
//! never a pair: what they call by different names may be the same.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::calibration::Judged;
use super::head::{self, HIDDEN, Head, INPUTS, PROJECTED};
use super::text::{Rarity, Words, asked};
use super::{Calibration, Evidence, FittedWith, Profile, Purposes, Verifier};
use crate::axes::{AXES, principal_axes};
use crate::contrast::{ContrastOptions, train_map};
use crate::error::ModelError;
use crate::network::{self, NetworkOptions, Row};
use crate::split::part_of;
use crate::vector::{dot, to_unit};

/// Share of the questions that calibrate.
const CALIBRATION_SHARE: f64 = 0.3;
/// Each question is an anchor so often at most, or a few are learned by heart.
const ANCHORS_PER_QUESTION: usize = 4;
/// A word in fewer texts than this says nothing about how rare it is.
const WORD_TEXTS_MIN: u32 = 3;
/// Nearest questions among which a hard pair is drawn.
const HARD_NEAREST: usize = 10;
const LIKE_NEAREST: usize = 40;
/// Candidates that are judged for a question, as when serving.
const CANDIDATES: usize = 8;
/// Share of the questions that calibrate that count as of another kind.
const UNFAMILIAR_SHARE: f64 = 0.1;
/// Share of the questions that calibrate whose answers serve no others.
const UNTYPICAL_SHARE: f64 = 0.6;
/// What the questions of one label gather around.
const MIDDLES_PER_LABEL: usize = 4;
const KMEANS_PASSES: usize = 15;
const BATCH: usize = 256;
const WEIGHT_DECAY: f32 = 0.02;

/// A question whose answer is known by its label.
#[derive(Clone, Debug)]
pub struct QuestionExample {
    /// The question.
    pub text: String,
    /// The encoder's vector.
    pub vector: Arc<[f32]>,
    /// Where it comes from. Labels of two sources say nothing about each other.
    pub source: String,
    /// Questions of a source with the same label share an answer.
    pub label: String,
    /// Questions that mention different things never share one: differs when they do.
    pub mentions: String,
    /// The article that it is clearly about, if it is.
    pub article: Option<String>,
}

impl QuestionExample {
    fn shares_answer(&self, other: &Self) -> bool {
        self.source == other.source && self.label == other.label
    }
}

/// Two questions, by their places, and whether they share an answer.
#[derive(Clone, Copy, Debug)]
pub struct PairExample {
    /// One question.
    pub a: usize,
    /// The other.
    pub b: usize,
    /// Whether one answer serves both.
    pub same: bool,
}

/// How a verifier is fitted.
#[derive(Clone, Copy, Debug)]
pub struct FitOptions {
    /// Questions around which pairs are drawn at most: four pairs each.
    pub anchors: usize,
    /// Passes over the pairs.
    pub epochs: usize,
    /// Share of the labels that are left out of training and calibration, to see what becomes of labels never seen.
    pub held_out_labels: f64,
    /// Decides splits, draws and first weights.
    pub seed: u64,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self { anchors: 10_000, epochs: 12, held_out_labels: 0.0, seed: 1 }
    }
}

/// What is being done, for those who wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FitStage {
    /// The projection is trained.
    Projection,
    /// The network is trained.
    Network,
    /// The calibration is made.
    Calibration,
}

/// What came out.
#[derive(Clone, Debug, PartialEq)]
pub struct FitReport {
    /// Questions trained on, and questions that calibrate.
    pub trained: usize,
    /// Questions that calibrate.
    pub calibrated: usize,
    /// Pairs trained on.
    pub pairs: usize,
    /// Mean loss of the last pass.
    pub loss: f32,
}

/// Whether a label belongs to those that are left out.
#[must_use]
pub fn is_held_out(label: &str, share: f64) -> bool {
    part_of(&format!("label {label}")) < share
}

/// An error where what is left to train on, by source and label, cannot tell any labels apart; `counts` are all questions, those that calibrate and
/// those left.
fn require_labels(sources: &[Vec<Vec<usize>>], counts: [usize; 3]) -> Result<(), ModelError> {
    let has_two = |labels: &Vec<Vec<usize>>| labels.iter().filter(|texts| texts.len() > 1).count() > 1;
    if sources.iter().any(has_two) {
        return Ok(());
    }
    let [all, calibrate, left] = counts;
    let held_out = all - calibrate - left;
    let reason = format!(
        "of {all} different questions with a label, {calibrate} calibrate, {held_out} are held out and {left} are left to train on, which must \
         have two labels of one source with two questions each; give more questions of each label"
    );
    Err(ModelError::Training { reason })
}

/// Fits a verifier to questions that were prepared `fitted_with` an encoder and a knowledge base. `progress` hears of the
/// stage, the step and the loss.
///
/// # Errors
/// [`ModelError::Training`] when there is too little to learn from, or the numbers do not stay finite.
pub fn fit(
    questions: &[QuestionExample],
    pairs: &[PairExample],
    options: &FitOptions,
    fitted_with: FittedWith,
    progress: &mut dyn FnMut(FitStage, usize, f32),
) -> Result<(Verifier, FitReport), ModelError> {
    let used = |at: &usize| !is_held_out(&questions[*at].label, options.held_out_labels);
    let calibrates = |at: &usize| part_of(&asked(&questions[*at].text)) < CALIBRATION_SHARE;
    let (calibration, training): (Vec<usize>, Vec<usize>) = (0..questions.len()).filter(used).partition(calibrates);
    let dimension = questions.first().map_or(0, |question| question.vector.len());

    let mut by_source = BTreeMap::<&str, BTreeMap<&str, Vec<usize>>>::new();
    for &at in &training {
        let QuestionExample { source, label, .. } = &questions[at];
        by_source.entry(source).or_default().entry(label).or_default().push(at);
    }
    let sources: Vec<Vec<Vec<usize>>> = by_source.into_values().map(|labels| labels.into_values().collect()).collect();
    require_labels(&sources, [questions.len(), calibration.len(), training.len()])?;
    let vector = |at: &usize| &*questions[*at].vector;
    let vectors_of = |labels: &Vec<Vec<usize>>| labels.iter().map(|texts| texts.iter().map(vector).collect()).collect();
    let vectors: Vec<Vec<Vec<&[f32]>>> = sources.iter().map(vectors_of).collect();
    let contrast = ContrastOptions { pull: 1e-4, seed: options.seed, ..ContrastOptions::default() };
    let projection = train_map(&vectors, &start(dimension, options.seed), PROJECTED, &contrast, &mut |step, loss| {
        progress(FitStage::Projection, step, loss);
    })?;

    let rarity = Rarity::of(training.iter().map(|&at| questions[at].text.as_str()), WORD_TEXTS_MIN);
    let projected: Vec<Vec<f32>> =
        questions.iter().map(|question| head::project(&projection, &question.vector)).collect();
    let purposes = purposes(&sources.concat(), &projected, &calibration, options.seed);
    let profile = |(question, purpose): (&QuestionExample, Vec<f32>)| Profile {
        words: Words::of(&question.text, &rarity),
        familiarity: purposes.nearest(&purpose),
        purpose,
    };
    let profiles: Vec<Profile> = questions.iter().zip(projected).map(profile).collect();
    let is_training: Vec<bool> = (0..questions.len()).map(|at| used(&at) && !calibrates(&at)).collect();
    let mut drawn = hard_pairs(questions, &profiles, &training, options);
    drawn.extend(pairs.iter().filter(|pair| is_training[pair.a] && is_training[pair.b]));
    if drawn.is_empty() {
        return Err(ModelError::Training { reason: "no pairs to learn from".to_owned() });
    }
    let inputs: Vec<[f32; INPUTS]> = drawn.iter().map(|pair| inputs_of(questions, &profiles, *pair)).collect();
    let rows: Vec<Row<'_>> = inputs.iter().zip(&drawn).map(|(inputs, pair)| Row { inputs, holds: pair.same }).collect();
    let (passes, seed) = (options.epochs, options.seed);
    let how = NetworkOptions { units: HIDDEN, passes, batch: BATCH, weight_decay: WEIGHT_DECAY, seed };
    let trained = network::train(&rows, &[], &how, &mut |pass, loss, _| progress(FitStage::Network, pass, loss))?;
    let (head, loss) = (Head { dimension, projection, network: trained.network }, trained.loss);

    progress(FitStage::Calibration, 0, loss);
    let uncalibrated = Evidence::ALL.map(|_| Calibration::of(&[]));
    let mut verifier = Verifier { head, rarity, purposes, calibrations: uncalibrated, fitted_with };
    let judged = play(questions, &profiles, &calibration, &verifier, options.seed);
    verifier.calibrations = Evidence::ALL.map(|evidence| Calibration::of(&judged[evidence.index()]));
    let report = FitReport { trained: training.len(), calibrated: calibration.len(), pairs: drawn.len(), loss };
    Ok((verifier, report))
}

/// What the questions of each label gather around, and how near to one of these all but a few of the questions that
/// calibrate are.
fn purposes(labels: &[Vec<usize>], projected: &[Vec<f32>], calibration: &[usize], seed: u64) -> Purposes {
    let mut random = fastrand::Rng::with_seed(seed);
    let middles = labels.iter().flat_map(|texts| {
        middles(&texts.iter().map(|&at| &*projected[at]).collect::<Vec<_>>(), MIDDLES_PER_LABEL, &mut random)
    });
    let mut purposes = Purposes { middles: middles.collect(), familiar_min: 0.0, typical_min: 0.0 };
    let mut nearest: Vec<f32> = calibration.iter().map(|&at| purposes.nearest(&projected[at])).collect();
    nearest.sort_by(f32::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a count")]
    let below = |share: f64| nearest.get((nearest.len() as f64 * share) as usize).copied().unwrap_or_default();
    (purposes.familiar_min, purposes.typical_min) = (below(UNFAMILIAR_SHARE), below(UNTYPICAL_SHARE));
    purposes
}

/// Spherical k-means (Dhillon and Modha 2001, <https://doi.org/10.1023/A:1007612920971>): `count` vectors of unit length at
/// most, each the middle of those that are nearer to it than to the others.
fn middles(vectors: &[&[f32]], count: usize, random: &mut fastrand::Rng) -> Vec<Vec<f32>> {
    let mut middles: Vec<Vec<f32>> =
        random.choose_multiple(vectors.iter(), count).into_iter().map(|v| v.to_vec()).collect();
    for _ in 0..KMEANS_PASSES {
        let mut sums: Vec<Vec<f32>> = middles.iter().map(|middle| vec![0.0; middle.len()]).collect();
        for vector in vectors {
            let cosines = middles.iter().map(|middle| dot(middle, vector)).enumerate();
            let Some((nearest, _)) = cosines.max_by(|(_, a), (_, b)| a.total_cmp(b)) else { continue };
            sums[nearest].iter_mut().zip(*vector).for_each(|(sum, number)| *sum += number);
        }
        // One that nothing is nearest to is the double of another.
        middles = sums.into_iter().filter(|sum| sum.iter().any(|number| *number != 0.0)).map(to_unit).collect();
    }
    middles
}

/// Where the projection starts: at the principal axes of the encoder, or at random ones for another encoder.
fn start(dimension: usize, seed: u64) -> Vec<f32> {
    let axes = principal_axes();
    let mut random = fastrand::Rng::with_seed(seed);
    let number = |input: usize, output: usize, random: &mut fastrand::Rng| {
        if axes.len() == AXES * dimension { axes[output * dimension + input] } else { random.f32() - 0.5 }
    };
    let mut start = Vec::with_capacity(dimension * PROJECTED);
    for input in 0..dimension {
        start.extend((0..PROJECTED).map(|output| number(input, output, &mut random)));
    }
    start
}

fn inputs_of(questions: &[QuestionExample], profiles: &[Profile], pair: PairExample) -> [f32; INPUTS] {
    let (a, b) = (&profiles[pair.a], &profiles[pair.b]);
    let cosine = dot(&questions[pair.a].vector, &questions[pair.b].vector);
    head::inputs(cosine, &a.purpose, &b.purpose, &a.words.compare(&b.words))
}

/// For each of many questions: one of the nearest with another label, by vector and by purpose, one of the nearest with its
/// own, and any with its own.
fn hard_pairs(
    questions: &[QuestionExample],
    profiles: &[Profile],
    training: &[usize],
    options: &FitOptions,
) -> Vec<PairExample> {
    let mut random = fastrand::Rng::with_seed(options.seed);
    let mut pairs = Vec::with_capacity(4 * options.anchors);
    if training.is_empty() {
        return pairs;
    }
    for _ in 0..options.anchors.min(ANCHORS_PER_QUESTION * training.len()) {
        let a = training[random.usize(0..training.len())];
        let of_source = training.iter().copied().filter(|&b| b != a && questions[b].source == questions[a].source);
        let (alike, others): (Vec<usize>, Vec<usize>) =
            of_source.partition(|&b| questions[b].shares_answer(&questions[a]));
        let by_vector = |b: &usize| (dot(&questions[a].vector, &questions[*b].vector), *b);
        let by_purpose = |b: &usize| (dot(&profiles[a].purpose, &profiles[*b].purpose), *b);
        let candidates = [
            (nearest(others.iter().map(by_vector).collect(), HARD_NEAREST), false),
            (nearest(others.iter().map(by_purpose).collect(), HARD_NEAREST), false),
            (nearest(alike.iter().map(by_vector).collect(), LIKE_NEAREST), true),
            (alike, true),
        ];
        for (candidates, same) in candidates {
            pairs.extend(random.choice(candidates).map(|b| PairExample { a, b, same }));
        }
    }
    pairs
}

/// The highest scores' places, highest first.
fn nearest(mut scored: Vec<(f32, usize)>, count: usize) -> Vec<usize> {
    let by_score = |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if count < scored.len() {
        scored.select_nth_unstable_by(count, by_score);
        scored.truncate(count);
        scored.sort_unstable_by(by_score);
    }
    scored.into_iter().map(|(_, at)| at).collect()
}

/// Plays a cache for each source, which holds every question so far that may serve the one that is asked; for each kind of evidence, the candidates of all
/// familiar questions and whether each is right.
fn play(
    questions: &[QuestionExample],
    profiles: &[Profile],
    calibration: &[usize],
    verifier: &Verifier,
    seed: u64,
) -> [Vec<Judged>; 2] {
    let is_familiar = |at: &usize| verifier.is_familiar(&profiles[*at]);
    let mut order: Vec<usize> = calibration.iter().copied().filter(is_familiar).collect();
    fastrand::Rng::with_seed(seed).shuffle(&mut order);
    let mut judged = [Vec::new(), Vec::new()];
    for (at, &asked) in order.iter().enumerate() {
        let question = &questions[asked];
        let scored = order[..at].iter().filter_map(|&at| {
            let cached = &questions[at];
            let cosine = dot(&question.vector, &cached.vector);
            let may_serve = cached.source == question.source
                && cached.mentions == question.mentions
                && verifier.may_serve(&profiles[at], cosine);
            may_serve.then_some((cosine, at))
        });
        let mut covered = [f32::NEG_INFINITY; 2];
        for cached in nearest(scored.collect(), CANDIDATES) {
            let log_odds =
                verifier.head.judge(&inputs_of(questions, profiles, PairExample { a: asked, b: cached, same: false }));
            let other = &questions[cached];
            let evidence = Evidence::between(question.article.as_ref(), other.article.as_ref()).index();
            let is_right = question.shares_answer(other);
            judged[evidence].push(Judged { log_odds, covered: covered[evidence], is_right });
            covered[evidence] = covered[evidence].max(log_odds);
        }
    }
    judged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(source: &str, label: &str, at: usize) -> QuestionExample {
        QuestionExample {
            text: format!("question {at} of {label}"),
            vector: to_unit(vec![at as f32, 1.0, label.len() as f32]).into(),
            source: source.to_owned(),
            label: label.to_owned(),
            mentions: String::new(),
            article: None,
        }
    }

    #[test]
    fn too_few_questions_are_told_with_how_they_were_split() {
        let questions: Vec<_> = (0..40).map(|at| question("a", "refund", at)).collect();
        let fitted_with = FittedWith { encoder: String::new(), relevance_min: 0.0, margin_min: 0.0 };
        let error =
            fit(&questions, &[], &FitOptions::default(), fitted_with, &mut |_, _, _| {}).expect_err("one label");
        let told = error.to_string();
        assert!(told.starts_with("cannot train: of 40 different questions with a label, "), "{told}");
        let number = |before: &str| -> usize {
            let (_, rest) = told.split_once(before).expect("told");
            rest.split(' ').next().and_then(|number| number.parse().ok()).expect("a number")
        };
        let counts = [number("label, "), number("calibrate, "), number("held out and ")];
        assert!(counts[0] > 0 && counts[1] == 0 && counts.iter().sum::<usize>() == 40, "{told}");
    }

    #[test]
    fn labels_of_two_sources_are_never_held_against_each_other() {
        let labels = [("a", "refund"), ("a", "delivery"), ("b", "refunds"), ("b", "refund")];
        let questions: Vec<QuestionExample> =
            labels.iter().flat_map(|(source, label)| (0..5).map(|at| question(source, label, at))).collect();
        let rarity = Rarity::of(questions.iter().map(|question| question.text.as_str()), 1);
        let profile = |question: &QuestionExample| Profile {
            words: Words::of(&question.text, &rarity),
            familiarity: 1.0,
            purpose: question.vector.to_vec(),
        };
        let profiles: Vec<Profile> = questions.iter().map(profile).collect();
        let all: Vec<usize> = (0..questions.len()).collect();
        let pairs = hard_pairs(&questions, &profiles, &all, &FitOptions::default());
        assert!(pairs.iter().any(|pair| pair.same) && pairs.iter().any(|pair| !pair.same));
        for PairExample { a, b, same } in pairs {
            let (a, b) = (&questions[a], &questions[b]);
            assert_eq!(a.source, b.source);
            assert_eq!(same, a.label == b.label);
        }
    }
}
