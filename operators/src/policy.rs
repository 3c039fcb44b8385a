//! The hit policy: when a cached answer may be served to a similar question.
//!
//! *Contract*: a hit needs three things. Both questions mention the same numbers, names and addresses
//! ([guard](crate::guard)). Both are of a kind that the verifier was fitted to. And it finds it likely that one answer serves
//! both, by as much as keeps the error of such hits below δ, which depends on what the knowledge base says of the two
//! questions. The same pair is judged the same, unless audits asked for [more](crate::bound). Without a verifier a plain
//! rule stands in for it, a cosine of at least a configured value, which promises nothing.

use std::sync::{Arc, PoisonError, RwLock};

use serde::{Deserialize, Serialize};
use turnflow_models::{Evidence, Level, Profile, Verifier, probability};
use turnflow_state::{ArticleId, HitEvidence, HitReason, ScoredChunk};

use crate::guard::Mentions;

/// When a question is clearly about an article.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Clarity {
    /// Least score of its best chunk.
    pub relevance_min: f32,
    /// Least lead of that chunk over the best one of any other article.
    pub margin_min: f32,
}

impl Clarity {
    /// The article that a question is clearly about, given what it retrieves, best first.
    #[must_use]
    pub fn article(&self, retrieved: &[ScoredChunk]) -> Option<ArticleId> {
        let best = retrieved.first()?;
        let article = &best.chunk.id.article;
        // Where all are of one article, whatever was not retrieved scores at most as much as the last.
        let other = retrieved.iter().find(|found| found.chunk.id.article != *article).or(retrieved.last())?;
        let is_clear = best.score >= self.relevance_min && best.score - other.score >= self.margin_min;
        is_clear.then(|| article.clone())
    }
}

/// A question as the policy sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// What it mentions.
    pub mentions: Mentions,
    /// What the verifier makes of it; None when there is no verifier.
    pub profile: Option<Profile>,
    /// The article that it is clearly about.
    pub about: Option<ArticleId>,
}

impl Prepared {
    /// What it takes in memory beyond itself, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.profile.as_ref().map_or(0, Profile::bytes)
    }
}

/// Decides about pairs of questions.
#[derive(Debug)]
pub struct Policy {
    clarity: Clarity,
    similarity_min: f32,
    verifier: Option<Arc<Verifier>>,
    demand: RwLock<Demand>,
}

/// What is demanded of hits. It may change while turns are judged, each by what holds then.
#[derive(Clone, Copy, Debug)]
struct Demand {
    /// What is needed, by [`Evidence`].
    levels: [Option<Level>; 2],
    delta: f64,
}

impl Demand {
    fn new(verifier: Option<&Arc<Verifier>>, delta: f64) -> Self {
        let level = |evidence| verifier.and_then(|verifier| verifier.level(evidence, delta));
        Self { levels: Evidence::ALL.map(level), delta }
    }
}

impl Policy {
    /// A policy that keeps the error of hits below `delta` by a verifier; by a cosine of `similarity_min` alone without one.
    #[must_use]
    pub fn new(clarity: Clarity, similarity_min: f32, verifier: Option<Arc<Verifier>>, delta: f64) -> Self {
        let demand = RwLock::new(Demand::new(verifier.as_ref(), delta));
        Self { clarity, similarity_min, verifier, demand }
    }

    /// From now on keeps the error of hits below this.
    pub fn set_delta(&self, delta: f64) {
        let demand = Demand::new(self.verifier.as_ref(), delta);
        *self.demand.write().unwrap_or_else(PoisonError::into_inner) = demand;
    }

    fn demand(&self) -> Demand {
        *self.demand.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// A question ready to be judged; `vector` is the encoder's, `about` from [`Clarity::article`].
    #[must_use]
    pub fn prepare(&self, question: &str, vector: Option<&[f32]>, about: Option<ArticleId>) -> Prepared {
        let profile = self.verifier.as_ref().zip(vector).map(|(verifier, vector)| verifier.profile(question, vector));
        Prepared { mentions: Mentions::of(question), profile, about }
    }

    /// When a question is clearly about an article.
    #[must_use]
    pub const fn clarity(&self) -> Clarity {
        self.clarity
    }

    /// Whether a question may be answered with another's answer; `similarity` is the cosine of their vectors. What is
    /// needed grows by `extra` log odds, by [`Evidence`]. The plain rule knows no odds: for it, any extra is too much.
    ///
    /// What decided is left out of the evidence and of the refusal, because it takes far longer to tell than to judge, and
    /// is told of one pair at most: see [`Policy::reasons`] and [`Policy::explain`].
    ///
    /// # Errors
    /// Why not.
    pub fn judge(
        &self,
        asked: &Prepared,
        cached: &Prepared,
        similarity: f32,
        extra: [f32; 2],
    ) -> Result<HitEvidence, Refusal> {
        if asked.mentions != cached.mentions {
            return Err(Refusal::Mentions);
        }
        let Some((verifier, a, b)) = self.verified(asked, cached) else {
            return if similarity < self.similarity_min {
                Err(Refusal::Similarity)
            } else if extra[Evidence::Unsure.index()] > 0.0 {
                Err(Refusal::SwitchedOff)
            } else {
                Ok(HitEvidence::by_similarity(similarity))
            };
        };
        if !verifier.is_familiar(a) || !verifier.may_serve(b, similarity) {
            return Err(Refusal::Unfamiliar);
        }
        let evidence = Evidence::between(asked.about.as_ref(), cached.about.as_ref());
        let Some(level) = self.demand().levels[evidence.index()] else {
            return Err(Refusal::NoLevel(evidence));
        };
        let extra = extra[evidence.index()];
        if extra.is_infinite() {
            return Err(Refusal::SwitchedOff);
        }
        let comparison = verifier.compare(a, b, similarity);
        let log_odds_min = level.log_odds_min + extra;
        let required = probability(log_odds_min);
        if comparison.log_odds < log_odds_min {
            return Err(Refusal::Unlikely { evidence, required });
        }
        Ok(HitEvidence {
            probability: comparison.probability(),
            log_odds: comparison.log_odds,
            required,
            #[expect(clippy::cast_possible_truncation, reason = "a rate from 0 to 1")]
            error_max: level.error_max as f32,
            same_article: evidence == Evidence::SameArticle,
            reasons: Vec::new(),
            age_ms: 0,
            audits: 0,
            agreed: 0,
        })
    }

    /// The verifier and what it makes of both questions; None where the plain rule decides.
    fn verified<'a>(
        &'a self,
        asked: &'a Prepared,
        cached: &'a Prepared,
    ) -> Option<(&'a Verifier, &'a Profile, &'a Profile)> {
        Some((self.verifier.as_deref()?, asked.profile.as_ref()?, cached.profile.as_ref()?))
    }

    /// What decided about two questions, the strongest first; nothing where the plain rule did.
    #[must_use]
    pub fn reasons(&self, asked: &Prepared, cached: &Prepared, similarity: f32) -> Vec<HitReason> {
        let Some((verifier, a, b)) = self.verified(asked, cached) else { return Vec::new() };
        let reasons = verifier.reasons(a, b, &verifier.compare(a, b, similarity)).into_iter();
        reasons
            .map(|reason| HitReason { name: reason.name.to_owned(), value: reason.value, weight: reason.weight })
            .collect()
    }

    /// A refusal in words, for the verdict.
    #[must_use]
    pub fn explain(&self, refusal: Refusal, asked: &Prepared, cached: &Prepared, similarity: f32) -> String {
        match refusal {
            Refusal::Mentions => format!("this one mentions {}, that one {}", asked.mentions, cached.mentions),
            Refusal::Similarity => format!("{:.2} is required", self.similarity_min),
            Refusal::SwitchedOff => "audits found that too many of such hits were wrong".to_owned(),
            Refusal::Unfamiliar => {
                let verified = self.verified(asked, cached);
                let unfamiliar =
                    |question: &Profile| verified.is_some_and(|(verifier, ..)| !verifier.is_familiar(question));
                match verified {
                    Some((_, asked, _)) if unfamiliar(asked) => {
                        "this one is of a kind that the verifier was not fitted to"
                    }
                    Some((_, _, cached)) if unfamiliar(cached) => {
                        "that one is of a kind that the verifier was not fitted to"
                    }
                    _ => "that one is asked too unusually for its answer to serve any but nearly the same words",
                }
                .to_owned()
            }
            Refusal::NoLevel(evidence) => {
                format!("{evidence}, and without that no score keeps the error below {}", percent(self.demand().delta))
            }
            Refusal::Unlikely { evidence, required } => {
                let compared = self.verified(asked, cached).map(|(verifier, a, b)| verifier.compare(a, b, similarity));
                let found = compared.map_or(0.0, |comparison| comparison.probability());
                let reasons = self.reasons(asked, cached, similarity);
                let against: Vec<String> =
                    reasons.iter().filter(|reason| reason.weight < 0.0).map(ToString::to_string).collect();
                let against =
                    if against.is_empty() { String::new() } else { format!("; against it: {}", against.join(", ")) };
                format!(
                    "one answer serves both with a probability of {found:.4}, and {required:.4} is required where {evidence}{against}"
                )
            }
        }
    }
}

/// Why a question may not be answered with another's answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refusal {
    /// They mention different things.
    Mentions,
    /// Their cosine is too small for the plain rule.
    Similarity,
    /// Audits switched such hits off.
    SwitchedOff,
    /// One of them is of a kind that the verifier was not fitted to, or the cached one is neither typical of its kind nor nearly the same.
    Unfamiliar,
    /// No score keeps the error of such hits below δ.
    NoLevel(Evidence),
    /// It is not likely enough that one answer serves both.
    Unlikely {
        /// What the knowledge base says of them.
        evidence: Evidence,
        /// The probability that is required.
        required: f32,
    },
}

fn percent(share: f64) -> String {
    format!("{} %", (share * 10_000.0).round() / 100.0)
}

#[cfg(test)]
mod tests {
    use turnflow_state::{Chunk, ChunkId, ContentHash, TenantId};

    use super::*;

    fn found(article: &str, score: f32) -> ScoredChunk {
        let chunk = Chunk {
            id: ChunkId {
                tenant: TenantId::new("t").expect("an id"),
                article: ArticleId::new(article).expect("an id"),
                ordinal: 0,
            },
            version: 1,
            title: "title".into(),
            text: "text".into(),
            hash: ContentHash::of("title", "text"),
            vector: Arc::new([]),
            since: 0,
        };
        ScoredChunk { chunk: Arc::new(chunk), score }
    }

    #[test]
    fn clear_is_what_is_near_and_stands_out() {
        let clarity = Clarity { relevance_min: 0.5, margin_min: 0.1 };
        let about = |found: &[ScoredChunk]| clarity.article(found).map(|article| article.to_string());
        assert_eq!(about(&[found("a", 0.7), found("a", 0.69), found("b", 0.5)]).as_deref(), Some("a"));
        assert_eq!(about(&[found("a", 0.7), found("b", 0.65)]), None, "too close");
        assert_eq!(about(&[found("a", 0.4), found("b", 0.1)]), None, "not near");
        assert_eq!(about(&[found("a", 0.7), found("a", 0.65)]), None, "another may score as much as the last");
        assert_eq!(about(&[found("a", 0.7), found("a", 0.5)]).as_deref(), Some("a"));
        assert_eq!(about(&[]), None);
    }

    #[test]
    fn what_the_verifier_was_not_fitted_to_is_refused() {
        let verifier = Verifier::shop();
        let mut vector = vec![0.0; verifier.dimension()];
        vector[0] = 1.0;
        let clarity = Clarity { relevance_min: 0.5, margin_min: 0.0 };
        let policy = Policy::new(clarity, 0.0, Some(Arc::new(verifier)), 0.01);
        let question = policy.prepare("explain photosynthesis", Some(&vector), ArticleId::new("a").ok());
        let refusal = policy.judge(&question, &question, 1.0, [0.0; 2]).expect_err("not even to itself");
        assert_eq!(refusal, Refusal::Unfamiliar);
        let told = policy.explain(refusal, &question, &question, 1.0);
        assert_eq!(told, "this one is of a kind that the verifier was not fitted to");
    }
}
