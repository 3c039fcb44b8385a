//! The verifier: how likely it is that one answer serves two questions, and which score keeps the error of such hits
//! below a bound.
//!
//! *Contract*: symmetric, deterministic, and a function of both texts and their vectors alone. It knows nothing of numbers,
//! names and addresses: two questions that mention different ones must not come this far. A score becomes a decision only
//! through a [`Calibration`], apart for each kind of [`Evidence`].
//!
//! The parameters that ship, `shop.bin`, were fitted by `turnflow policy fit` on questions of the Bitext customer-support
//! set (CDLA-Sharing-1.0) and Banking77 (CC-BY-4.0); `docs/VERIFIER.md` is their data card.

mod calibration;
mod fit;
mod head;
pub(crate) mod text;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use self::calibration::{CONFIDENCE, Calibration, Level, probability, upper_bound};
pub use self::fit::{FitOptions, FitReport, FitStage, PairExample, QuestionExample, fit, is_held_out};
use self::head::{Head, NAMED, feature_name};
use self::text::{Rarity, WORD_FEATURES, Words};
use crate::error::ModelError;
use crate::vector::dot;
use crate::whole::write_whole;

/// First bytes of a file of parameters; the last is the version of the layout.
const MAGIC: &[u8; 8] = b"TFVERIF\x03";
/// Reasons named for a decision.
const REASONS: usize = 3;
/// Share of the error that calibration may use up.
const CALIBRATED_SHARE: f64 = 0.7;

/// Cosine from which on two questions say nearly the same, so that an odd one may serve the other: `docs/VERIFIER.md` has what
/// other values bring.
const NEAR_MIN: f32 = 0.9;

/// What the knowledge base says about two questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Evidence {
    /// Both are clearly about the same article.
    SameArticle,
    /// Anything else.
    Unsure,
}

impl Evidence {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::SameArticle, Self::Unsure];

    /// Its place among [all](Self::ALL).
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The kind of two questions that are clearly about one article, or are not.
    #[must_use]
    pub const fn of(same_article: bool) -> Self {
        if same_article { Self::SameArticle } else { Self::Unsure }
    }

    /// The kind of two questions, given the article that each is clearly about.
    #[must_use]
    pub fn between<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> Self {
        Self::of(a.is_some() && a == b)
    }
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::SameArticle => "both are clearly about the same article",
            Self::Unsure => "nothing in the knowledge base speaks for it",
        })
    }
}

/// A question prepared for comparing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    words: Words,
    purpose: Vec<f32>,
    /// Cosine to the nearest purpose that was trained.
    familiarity: f32,
}

impl Profile {
    /// What it takes in memory, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.words.bytes() + size_of_val(&*self.purpose)
    }
}

/// The purposes that training knew, as the projection sees them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Purposes {
    /// What the questions of each label gather around, of unit length.
    middles: Vec<Vec<f32>>,
    /// What is further from all of them than this is of another kind.
    familiar_min: f32,
    /// Answers to what is further from all of them than this serve nobody else.
    typical_min: f32,
}

impl Purposes {
    /// Cosine to the nearest.
    fn nearest(&self, purpose: &[f32]) -> f32 {
        self.middles.iter().map(|middle| dot(middle, purpose)).fold(-1.0, f32::max)
    }
}

/// What comparing two questions gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Log odds that one answer serves both.
    pub log_odds: f32,
    cosine: f32,
    words: [f32; WORD_FEATURES],
}

impl Comparison {
    /// The same as a probability.
    #[must_use]
    pub fn probability(&self) -> f32 {
        probability(self.log_odds)
    }
}

/// What spoke for or against.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Reason {
    /// Which property of what was judged.
    pub name: &'static str,
    /// Its value.
    pub value: f32,
    /// By how much it moved the log odds, compared with the average.
    pub weight: f32,
}

/// What a verifier was fitted with: its calibration says nothing of anything else.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FittedWith {
    /// The encoder that made the vectors, with its adapter.
    pub encoder: String,
    /// From which score on a question was clearly about its best chunk's article.
    pub relevance_min: f32,
    /// From which lead over other articles on.
    pub margin_min: f32,
}

/// A trained verifier with its calibration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verifier {
    head: Head,
    rarity: Rarity,
    purposes: Purposes,
    /// By [`Evidence`].
    calibrations: [Calibration; 2],
    fitted_with: FittedWith,
}

impl Verifier {
    /// What it was fitted with.
    #[must_use]
    pub const fn fitted_with(&self) -> &FittedWith {
        &self.fitted_with
    }

    /// The one that ships.
    ///
    /// # Panics
    /// When the embedded file is damaged, which a test rules out.
    #[must_use]
    pub fn shop() -> Self {
        #[expect(clippy::expect_used, reason = "the file is part of the binary, and a test reads it")]
        Self::from_bytes(include_bytes!("shop.bin"), Path::new("shop.bin")).expect("the embedded verifier is sound")
    }

    /// Reads a file that [`Verifier::save`] wrote.
    ///
    /// # Errors
    /// [`ModelError::Io`], and [`ModelError::Verifier`] when it is not such a file.
    pub fn load(path: &Path) -> Result<Self, ModelError> {
        Self::from_bytes(&std::fs::read(path).map_err(ModelError::io("read", path))?, path)
    }

    fn from_bytes(bytes: &[u8], path: &Path) -> Result<Self, ModelError> {
        let wrong = |reason: &str| ModelError::Verifier { path: path.to_owned(), reason: reason.to_owned() };
        let rest = bytes.strip_prefix(MAGIC).ok_or_else(|| wrong("it does not begin as one of this version does"))?;
        let verifier: Self = postcard::from_bytes(rest).map_err(|error| wrong(&error.to_string()))?;
        if verifier.head.is_sound() { Ok(verifier) } else { Err(wrong("its parts do not fit together")) }
    }

    /// Writes the parameters to a file, in one piece.
    ///
    /// # Errors
    /// [`ModelError::Io`].
    pub fn save(&self, path: &Path) -> Result<(), ModelError> {
        let fail = |error: postcard::Error| ModelError::Verifier { path: path.to_owned(), reason: error.to_string() };
        let bytes = postcard::to_extend(self, MAGIC.to_vec()).map_err(fail)?;
        write_whole(path, &bytes)
    }

    /// Numbers of the vectors it was trained with.
    #[must_use]
    pub const fn dimension(&self) -> usize {
        self.head.dimension
    }

    /// Prepares a question; `vector` is the encoder's.
    #[must_use]
    pub fn profile(&self, text: &str, vector: &[f32]) -> Profile {
        let purpose = self.head.project(vector);
        Profile { words: Words::of(text, &self.rarity), familiarity: self.purposes.nearest(&purpose), purpose }
    }

    /// Whether a question is of a kind that training knew. What a score means is known for those alone: about others the
    /// verifier has nothing to say.
    #[must_use]
    pub fn is_familiar(&self, profile: &Profile) -> bool {
        profile.familiarity >= self.purposes.familiar_min
    }

    /// Whether the answer to a question may serve another one, which has this cosine to it: whether it lies nearer still to what
    /// training knew, or the other is asked in nearly the same words (`NEAR_MIN`). An odd one would be the answer of all who ask
    /// something near it.
    #[must_use]
    pub fn may_serve(&self, profile: &Profile, cosine: f32) -> bool {
        let is_near = cosine >= NEAR_MIN && self.is_familiar(profile);
        profile.familiarity >= self.purposes.typical_min || is_near
    }

    /// Compares two questions; `cosine` is that of their vectors.
    #[must_use]
    pub fn compare(&self, a: &Profile, b: &Profile, cosine: f32) -> Comparison {
        let words = a.words.compare(&b.words);
        let log_odds = self.head.judge(&head::inputs(cosine, &a.purpose, &b.purpose, &words));
        Comparison { log_odds, cosine, words }
    }

    /// What decided, the strongest first. The projections count as one.
    #[must_use]
    pub fn reasons(&self, a: &Profile, b: &Profile, comparison: &Comparison) -> Vec<Reason> {
        let inputs = head::inputs(comparison.cosine, &a.purpose, &b.purpose, &comparison.words);
        let without =
            |taken: &dyn Fn(usize) -> bool| comparison.log_odds - self.head.network.judge_without(&inputs, taken);
        let similarity = Reason { name: feature_name(0), value: comparison.cosine, weight: without(&|at| at < 2) };
        let purpose = Reason {
            name: feature_name(2),
            value: dot(&a.purpose, &b.purpose),
            weight: without(&|at| at == 2 || at == 3 || at >= NAMED),
        };
        let words = (4..NAMED).map(|at| Reason {
            name: feature_name(at),
            value: comparison.words[at - 4],
            weight: without(&|other| other == at),
        });
        let mut reasons: Vec<Reason> = [similarity, purpose].into_iter().chain(words).collect();
        reasons.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
        reasons.truncate(REASONS);
        reasons
    }

    /// What is needed so that the error of hits is at most `delta`; None when no score is enough. Calibration has to show less
    /// than that: the rest is for what it cannot know, since customers ask less alike than calibration questions do.
    #[must_use]
    pub fn level(&self, evidence: Evidence, delta: f64) -> Option<Level> {
        self.calibrations[evidence.index()].level(delta * CALIBRATED_SHARE)
    }
}
