//! The router: whether the small tier answers a turn as well as the large one would, and which of the two is to answer it.
//!
//! *Contract*: a decision is a function of the turn's text, its vector, what it retrieves and how far its conversation has
//! come. The probability is calibrated on turns that training never saw, and what it costs and keeps to require so much of it
//! was measured on the same; [`Target`] chooses between them. It is plain arithmetic, a small fraction of a millisecond for a
//! turn. [`PlainRule`] decides without anything learned. Neither knows the tiers, their prices, or how busy they are.
//!
//! `docs/ROUTER.md` has the method, its assumptions and its figures.

mod curve;
mod evaluate;
mod features;
mod fit;
mod plain;
mod platt;

use std::path::Path;

use serde::{Deserialize, Serialize};
use turnflow_state::TierSize;

use self::curve::Curve;
pub use self::curve::{CurvePoint, Target};
pub use self::evaluate::{DecisionTime, Kept, Needed, Recovered, RoutingReport, evaluate_router};
pub use self::features::{ROUTER_FEATURES, Retrieval, RouterExample, RouterInput};
pub use self::fit::{RouterFitOptions, RouterFitReport, fit_router};
pub use self::plain::PlainRule;
use self::platt::Platt;
use crate::error::ModelError;
use crate::network::Network;
use crate::verifier::Reason;
use crate::whole::write_whole;

/// First bytes of a file of parameters, and the version of the layout that follows them.
const MAGIC: &[u8; 7] = b"TFROUTE";
const VERSION: u8 = 1;
/// Units of the hidden layer.
const UNITS: usize = 32;
/// Reasons named for a decision.
const REASONS: usize = 3;
/// What the vector counts as among them.
const MEANING: &str = "meaning";
/// An input is taken to be at most so many spreads from its mean.
const FAR_SPREADS: f32 = 5.0;

/// Which tier is to answer a turn, and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// The tier.
    pub size: TierSize,
    /// How likely it is that the small tier's answer is as good as the large one's; None by a plain rule.
    pub probability: Option<f32>,
    /// How likely it has to be for the small tier; more than 1 where nothing is enough, None by a plain rule.
    pub required: Option<f32>,
    /// What decided, the strongest first. A positive weight speaks for the small tier.
    pub reasons: Vec<Reason>,
}

/// A trained router with its calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Router {
    /// Numbers of the encoder's vectors.
    dimension: usize,
    network: Network,
    platt: Platt,
    curve: Curve,
    encoder: String,
}

impl Router {
    /// The one that ships.
    ///
    /// # Panics
    /// When the embedded file is damaged, which a test rules out.
    #[must_use]
    pub fn shop() -> Self {
        #[expect(clippy::expect_used, reason = "the file is part of the binary, and a test reads it")]
        Self::from_bytes(include_bytes!("shop.bin"), Path::new("shop.bin")).expect("the embedded router is sound")
    }

    /// Reads a file that [`Router::save`] wrote.
    ///
    /// # Errors
    /// [`ModelError::Io`], and [`ModelError::Router`] when it is not such a file.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        Self::from_bytes(&std::fs::read(path).map_err(ModelError::io("read", path))?, path)
    }

    fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, ModelError> {
        let wrong = |reason: String| ModelError::Router { path: path.to_owned(), reason };
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("it does not begin as one does".to_owned()))?;
        let (&version, rest) = rest.split_first().ok_or_else(|| wrong("it ends after its first bytes".to_owned()))?;
        if version != VERSION {
            return Err(wrong(format!("it is of version {version}, and this program reads version {VERSION}")));
        }
        let (router, rest) = postcard::take_from_bytes::<Self>(rest).map_err(|error| wrong(error.to_string()))?;
        if !rest.is_empty() {
            return Err(wrong(format!("it goes on for {} bytes after its end", rest.len())));
        }
        if router.is_sound() { Ok(router) } else { Err(wrong("its parts do not fit together".to_owned())) }
    }

    fn is_sound(&self) -> bool {
        self.dimension.checked_add(ROUTER_FEATURES.len()).is_some_and(|inputs| self.network.is_sound(inputs, UNITS))
            && self.platt.is_sound()
            && self.curve.is_sound()
    }

    /// Writes the parameters to a file, in one piece.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), ModelError> {
        write_whole(path, &self.to_bytes(path)?)
    }

    fn to_bytes(&self, path: &Path) -> Result<Vec<u8>, ModelError> {
        let fail = |error: postcard::Error| ModelError::Router { path: path.to_owned(), reason: error.to_string() };
        postcard::to_extend(self, [&MAGIC[..], &[VERSION][..]].concat()).map_err(fail)
    }

    /// The encoder that made the vectors that it was fitted with, with its adapter: it says nothing of any other's.
    #[must_use]
    pub fn encoder(&self) -> &str {
        &self.encoder
    }

    /// A digest of its parameters.
    ///
    /// # Errors
    /// [`ModelError::Router`] when they cannot be written down.
    pub fn digest(&self) -> Result<String, ModelError> {
        Ok(blake3::hash(&self.to_bytes(Path::new("router"))?).to_hex().to_string())
    }

    /// Numbers of the vectors it was trained with.
    #[must_use]
    pub const fn dimension(&self) -> usize {
        self.dimension
    }

    /// What required probabilities cost and kept on the turns that calibrate, from no turn for the large tier to all.
    #[must_use]
    pub fn curve(&self) -> &[CurvePoint] {
        self.curve.points()
    }

    /// How likely it is that the small tier's answer is as good as the large one's, from 0 to 1.
    ///
    /// # Panics
    /// When the vector is not of [`dimension`](Self::dimension) numbers, in builds with debug assertions.
    #[must_use]
    pub fn small_suffices(&self, input: &RouterInput<'_>) -> f32 {
        self.platt.probability(self.network.judge(&self.inputs(input)))
    }

    /// Which tier is to answer a turn. What cannot be judged, a vector that holds no numbers, goes to the large one.
    ///
    /// # Panics
    /// As [`Router::small_suffices`].
    #[must_use]
    pub fn decide(&self, input: &RouterInput<'_>, target: Target) -> Decision {
        let inputs = self.inputs(input);
        let log_odds = self.network.judge(&inputs);
        let probability = self.platt.probability(log_odds);
        let required = self.curve.required(target);
        let size = if probability >= required { TierSize::Small } else { TierSize::Large };
        let reasons = self.reasons(&inputs, log_odds);
        Decision { size, probability: Some(probability), required: Some(required), reasons }
    }

    /// What moved the log odds most. The vector counts as one; its value is nothing that could be read.
    fn reasons(&self, inputs: &[f32], log_odds: f32) -> Vec<Reason> {
        let weight =
            |taken: &dyn Fn(usize) -> bool| self.platt.slope() * (log_odds - self.network.judge_without(inputs, taken));
        let named = ROUTER_FEATURES.into_iter().zip(inputs).enumerate();
        let named =
            named.map(|(at, (name, value))| Reason { name, value: *value, weight: weight(&|other| other == at) });
        let meaning = Reason { name: MEANING, value: 1.0, weight: weight(&|at| at >= ROUTER_FEATURES.len()) };
        let mut reasons: Vec<Reason> = named.chain([meaning]).filter(|reason| reason.weight != 0.0).collect();
        reasons.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
        reasons.truncate(REASONS);
        reasons
    }

    /// The inputs of a turn, no further from what training saw than can be judged.
    fn inputs(&self, input: &RouterInput<'_>) -> Vec<f32> {
        debug_assert_eq!(input.vector.len(), self.dimension, "vectors of different length");
        let mut inputs = inputs(input);
        self.network.tame(&mut inputs, FAR_SPREADS);
        inputs
    }
}

/// The named numbers of a turn, then its vector's.
fn inputs(input: &RouterInput<'_>) -> Vec<f32> {
    [&features::features(input)[..], input.vector].concat()
}

#[cfg(test)]
mod tests {
    use super::fit::tests::{asked, fitted};
    use super::*;

    #[test]
    fn the_one_that_ships_keeps_its_targets() {
        let router = Router::shop();
        assert_eq!(router.dimension(), 384);
        let points = router.curve();
        assert!(points.windows(2).all(|pair| pair[0].large_share <= pair[1].large_share), "{points:?}");
        let last = points.last().expect("a curve has points");
        assert_eq!((last.large_share, last.quality_kept), (1.0, 1.0));
        let decide = |number: f32, target| {
            let (text, vector) = ("how do i return an item", vec![number; 384]);
            let input = RouterInput { text, vector: &vector, retrieval: None, turns_before: 0, leans: false };
            router.decide(&input, target).size
        };
        assert_eq!(decide(0.0, Target::LargeShare(0.0)), TierSize::Small, "none may go to the large one");
        assert_eq!(decide(f32::NAN, Target::Quality(0.5)), TierSize::Large, "what cannot be judged");
    }

    const TEXT: &str = "how is thing 1 170 and why";

    #[test]
    fn a_file_gives_back_what_was_saved() {
        let router = fitted();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.router");
        router.save(&path).unwrap();
        let read = Router::load(&path).unwrap();
        assert_eq!(read, router);
        assert_eq!((read.encoder(), read.dimension()), ("an encoder", 8));
        let error = Router::load(&dir.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("cannot read") && error.contains("none"), "{error}");
    }

    #[test]
    fn other_files_are_refused() {
        let bytes = fitted().to_bytes(Path::new("x")).unwrap();
        let refused = |bytes: &[u8]| Router::from_bytes(bytes, Path::new("x.router")).unwrap_err().to_string();
        for (bytes, expected) in [
            (&b""[..], "does not begin as one does"),
            (&b"TFVERIF\x02 and so on"[..], "does not begin as one does"),
            (&bytes[..7], "ends after its first bytes"),
            (&bytes[..bytes.len() / 2], "holds no router"),
            (&[&bytes[..], &b"more"[..]].concat()[..], "4 bytes after its end"),
            (&[&bytes[..7], &[9][..], &bytes[8..]].concat()[..], "version 9, and this program reads version 1"),
        ] {
            let error = refused(bytes);
            assert!(error.starts_with("x.router holds no router") && error.contains(expected), "{error}");
        }
        let mut damaged = fitted();
        damaged.dimension = 9;
        let error = refused(&damaged.to_bytes(Path::new("x")).unwrap());
        assert!(error.contains("do not fit together"), "{error}");
        damaged.dimension = usize::MAX;
        assert!(refused(&damaged.to_bytes(Path::new("x")).unwrap()).contains("do not fit together"));
    }

    #[test]
    fn decides_by_what_the_target_requires_and_says_why() {
        let router = fitted();
        let (easy, hard) = ([1.0, 0.1, -0.1, 0.0, 0.0, 0.1, 0.0, 0.1], [-1.0, 0.1, -0.1, 0.0, 0.0, 0.1, 0.0, 0.1]);
        let half = Target::LargeShare(0.5);
        let decided = [&easy, &hard].map(|vector| router.decide(&asked(TEXT, vector), half));
        assert_eq!(decided.each_ref().map(|decision| decision.size), [TierSize::Small, TierSize::Large], "{decided:?}");
        for (decision, vector) in decided.iter().zip([&easy, &hard]) {
            assert_eq!(decision.probability, Some(router.small_suffices(&asked(TEXT, vector))));
            assert_eq!((decision.reasons[0].name, decision.reasons.len()), (MEANING, REASONS), "{decision:?}");
            assert_eq!(decision.reasons[0].weight > 0.0, decision.size == TierSize::Small);
        }
        let cheap = router.decide(&asked(TEXT, &hard), Target::LargeShare(0.0));
        assert_eq!((cheap.size, cheap.required), (TierSize::Small, Some(0.0)));
        let dear = router.decide(&asked(TEXT, &easy), Target::LargeShare(1.0));
        assert!(dear.size == TierSize::Large && dear.required > Some(1.0), "{dear:?}");
        let broken = router.decide(&asked(TEXT, &[f32::NAN; 8]), half);
        assert_eq!(broken.size, TierSize::Large);
    }

    #[test]
    fn what_training_never_saw_moves_little() {
        let router = fitted();
        let vector = [0.0; 8];
        let usual = asked(TEXT, &vector);
        // No example had earlier turns, or leant on them.
        let later = RouterInput { turns_before: 1_000, leans: true, ..usual };
        assert!((router.small_suffices(&usual) - router.small_suffices(&later)).abs() < 1e-3);
        let endless = "{}[]=+ 12345 ".repeat(10_000);
        assert!(router.small_suffices(&asked(&endless, &vector)).is_finite());
        assert!(router.small_suffices(&asked("", &vector)).is_finite());
    }
}
