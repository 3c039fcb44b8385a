//! A turn of a conversation and what comes back for it.
//!
//! A turn is answered by a stream of [`TurnEvent`]s: `Accepted`, any number of `Delta`s, and exactly one terminal
//! event, `Done` or `Error`. A `Restart` among them makes the pieces before it void.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::entry::last_flag;
use crate::{ConversationId, EntryId, Source, TenantId, TurnId, TurnKey};

/// What a customer said, addressed to one conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turn {
    /// Whose conversation.
    pub tenant: TenantId,
    /// Which conversation.
    pub conversation: ConversationId,
    /// Named by the client; the same id again gets the same answer.
    pub id: TurnId,
    /// Where it came from.
    pub channel: Channel,
    /// What the customer said.
    pub text: String,
    /// When it was said, in milliseconds since 1970.
    pub at_ms: u64,
    /// Whether caches may be read and written for it.
    pub cache_control: CacheControl,
}

impl Turn {
    /// The turn's full name.
    #[must_use]
    pub fn key(&self) -> TurnKey {
        TurnKey { tenant: self.tenant.clone(), conversation: self.conversation.clone(), turn: self.id.clone() }
    }
}

/// One earlier turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exchange {
    /// What the customer said.
    pub question: String,
    /// What was answered.
    pub answer: String,
}

impl Exchange {
    /// A question together with the one before it, if there is one, for those who read a single text.
    #[must_use]
    pub fn question_in_context(history: &[Self], question: &str) -> String {
        match history.last() {
            Some(before) => format!("{}\n{question}", before.question),
            None => question.to_owned(),
        }
    }
}

/// An enum whose values have one fixed name each, in protocols, logs and configuration alike.
macro_rules! named_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant),+ }

        impl $name {
            /// Every value, in order of declaration.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The value's name.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = String;
            fn from_str(text: &str) -> Result<Self, String> {
                Self::ALL.iter().copied().find(|value| value.as_str() == text).ok_or_else(|| {
                    let names: Vec<_> = Self::ALL.iter().map(|value| value.as_str()).collect();
                    format!("unknown value {text:?}, expected one of {}", names.join(", "))
                })
            }
        }
    };
}

named_enum!(
    /// Where a turn came from.
    Channel {
        /// A chat window on a web page.
        Web = "web",
        /// A mobile app.
        MobileApp = "mobile_app",
        /// WhatsApp.
        Whatsapp = "whatsapp",
        /// E-mail.
        Email = "email",
        /// A voice assistant or telephone line, transcribed.
        Voice = "voice",
        /// Text message.
        Sms = "sms",
        /// A program.
        Api = "api",
    }
);

named_enum!(
    /// What a turn allows the caches to do. A caller can only tighten the policy.
    CacheControl {
        /// Read and write.
        Default = "default",
        /// Neither read nor write.
        Bypass = "bypass",
        /// Read, but do not write.
        ReadOnly = "read_only",
    }
);

named_enum!(
    /// Where an answer came from.
    CacheLevel {
        /// The same question, answered before.
        Exact = "exact",
        /// A similar question, answered before.
        Semantic = "semantic",
        /// The same question or a similar one, being answered when this turn came.
        Joined = "joined",
        /// Nothing cached: answered by a tier.
        Miss = "miss",
        /// The caches were not asked.
        Bypass = "bypass",
    }
);

impl CacheLevel {
    /// Whether the answer of another turn was served.
    #[must_use]
    pub const fn is_hit(self) -> bool {
        matches!(self, Self::Exact | Self::Semantic | Self::Joined)
    }
}

named_enum!(
    /// A kind of model that answers.
    Tier {
        /// The knowledge base's own sentences, chosen with the encoder.
        Extractive = "extractive",
        /// A fixed reply to small talk.
        Scripted = "scripted",
        /// A language model in this process, run by Burn.
        Burn = "burn",
        /// A language model behind a server that speaks OpenAI's protocol.
        Openai = "openai",
    }
);

named_enum!(
    /// Which of the configured tiers.
    TierSize {
        /// The cheap one.
        Small = "small",
        /// The expensive one, or the only one.
        Large = "large",
    }
);

named_enum!(
    /// How loaded a process is.
    #[derive(Default)]
    LoadLevel {
        /// Everything as configured.
        #[default]
        Normal = "normal",
        /// New conversations get the small tier.
        Degraded = "degraded",
        /// New conversations are refused whose question was not answered before in the same words.
        Shedding = "shedding",
    }
);

impl LoadLevel {
    /// The next level; the highest stays.
    #[must_use]
    pub const fn up(self) -> Self {
        match self {
            Self::Normal => Self::Degraded,
            Self::Degraded | Self::Shedding => Self::Shedding,
        }
    }

    /// The level before; the lowest stays.
    #[must_use]
    pub const fn down(self) -> Self {
        match self {
            Self::Normal | Self::Degraded => Self::Normal,
            Self::Shedding => Self::Degraded,
        }
    }
}

named_enum!(
    /// The stages that a turn spends time in.
    Stage {
        /// Waiting for the previous turn of the conversation, and loading its history.
        Recall = "recall",
        /// The exact response cache, and waiting for an identical question in flight.
        Dedupe = "dedupe",
        /// The sentence encoder.
        Embed = "embed",
        /// The knowledge base.
        Retrieve = "retrieve",
        /// The semantic cache, and waiting for a similar question in flight.
        Lookup = "lookup",
        /// Waiting to be generated.
        Prioritise = "prioritise",
        /// The tier that writes the answer.
        Generate = "generate",
        /// The durable write of turn and answer.
        Commit = "commit",
    }
);

/// Time spent in each stage, in microseconds; 0 for a stage that the turn did not pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageLatencies([u32; Stage::ALL.len()]);

impl StageLatencies {
    /// Adds time to a stage; a stage that is passed twice keeps the sum.
    pub fn add(&mut self, stage: Stage, elapsed_us: u64) {
        let slot = &mut self.0[stage as usize];
        *slot = slot.saturating_add(u32::try_from(elapsed_us).unwrap_or(u32::MAX));
    }

    /// Time spent in a stage, in microseconds.
    #[must_use]
    pub const fn get(&self, stage: Stage) -> u32 {
        self.0[stage as usize]
    }

    /// Every stage with its time in microseconds, in the order of a turn's way.
    pub fn iter(&self) -> impl Iterator<Item = (Stage, u32)> + '_ {
        Stage::ALL.iter().map(|&stage| (stage, self.get(stage)))
    }
}

/// What an answer consumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens that a tier read. 0 when no tier was asked.
    pub input_tokens: u32,
    /// Tokens that a tier wrote. 0 when no tier was asked.
    pub output_tokens: u32,
}

/// Bytes of text for each estimated token.
const TOKEN_BYTES: usize = 4;

impl Usage {
    /// What texts of so many bytes that were read and written take, estimated: nobody has counted their tokens.
    #[must_use]
    pub fn estimated(read_bytes: usize, written_bytes: usize) -> Self {
        let tokens = |bytes: usize| u32::try_from(bytes.div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX);
        Self { input_tokens: tokens(read_bytes), output_tokens: tokens(written_bytes) }
    }
}

impl std::ops::Add for Usage {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
        }
    }
}

/// Why an answer was served from where it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    /// Which cache answered, if any.
    pub level: CacheLevel,
    /// The entry that was served, on an exact or semantic hit.
    pub entry: Option<EntryId>,
    /// Cosine between the two questions, where they are similar and not the same.
    pub similarity: Option<f32>,
    /// The question that was answered before, on a hit.
    pub question: Option<String>,
    /// The turn whose answer was served, on a hit.
    pub origin: Option<TurnKey>,
    /// Whether that turn's answer was made anew since, after a change of the knowledge base.
    pub refreshed: bool,
    /// In a few words, why.
    pub reason: String,
    /// What spoke for serving a similar question's answer.
    pub evidence: Option<Box<HitEvidence>>,
    /// Which tier was asked, and why; None when none was.
    pub route: Option<Box<RouteEvidence>>,
    /// Age of the answer when it was served, in milliseconds, on a hit. It is of that moment and not kept with the turn.
    #[serde(skip)]
    pub age_ms: Option<u64>,
}

impl Verdict {
    /// One that says no more than this.
    #[must_use]
    pub fn new(level: CacheLevel, reason: impl Into<String>) -> Self {
        Self {
            level,
            entry: None,
            similarity: None,
            question: None,
            origin: None,
            refreshed: false,
            reason: reason.into(),
            evidence: None,
            route: None,
            age_ms: None,
        }
    }
}

/// Which tier was asked, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteEvidence {
    /// Which.
    pub size: TierSize,
    /// In a few words, why.
    pub reason: String,
    /// How likely the small tier's answer is as good, where that was estimated.
    pub probability: Option<f32>,
    /// How loaded the process was.
    pub load: LoadLevel,
    /// Whether the small tier was asked first, and had no good answer.
    pub escalated: bool,
}

/// What spoke for serving a similar question's answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HitEvidence {
    /// How likely it is that one answer serves both questions, by the verifier.
    pub probability: f32,
    /// The same as log odds: tells apart what is nearly certain.
    pub log_odds: f32,
    /// The probability that was required.
    pub required: f32,
    /// Upper bound of the share of wrong answers among hits with what was required; 1 where nothing is known of it.
    pub error_max: f32,
    /// Whether both questions are clearly about the same article.
    pub same_article: bool,
    /// What decided, the strongest first.
    pub reasons: Vec<HitReason>,
    /// Age of the answer, in milliseconds.
    pub age_ms: u64,
    /// Hits on the cached question that were answered in full as well, or judged by a customer, before this one.
    pub audits: u32,
    /// Those of them that agreed with the answer.
    pub agreed: u32,
}

impl HitEvidence {
    /// Of a rule that knows nothing but a cosine.
    #[must_use]
    pub const fn by_similarity(similarity: f32) -> Self {
        Self {
            probability: similarity,
            log_odds: similarity,
            required: similarity,
            error_max: 1.0,
            same_article: false,
            reasons: Vec::new(),
            age_ms: 0,
            audits: 0,
            agreed: 0,
        }
    }
}

/// A property of two questions that helped to decide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HitReason {
    /// Which.
    pub name: String,
    /// Its value.
    pub value: f32,
    /// By how much it moved the log odds, compared with an average pair.
    pub weight: f32,
}

impl std::fmt::Display for HitReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:.2} ({:+.1})", self.name, self.value, self.weight)
    }
}

/// What ends a turn well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Completion {
    /// The whole answer.
    pub text: String,
    /// The tier that wrote it, now or when it was cached.
    pub tier: Tier,
    /// Whether the tier found an answer; `false` when it said that it does not know.
    pub grounded: bool,
    /// Where in the knowledge base the answer comes from, best first.
    pub sources: Vec<Source>,
    /// What this turn consumed: nothing, on a hit.
    pub usage: Usage,
    /// What this turn cost, in millionths of the configured currency.
    pub cost_micros: u64,
    /// What the same tokens would have cost by the large tier alone, in the same unit.
    pub large_cost_micros: u64,
    /// Where the answer came from, and why.
    pub verdict: Verdict,
    /// Time spent in each stage.
    pub latency: StageLatencies,
    /// Time from admission to this event, in microseconds.
    pub total_us: u64,
    /// Whether the bound on tokens cut the answer off.
    #[serde(default, deserialize_with = "last_flag")]
    pub cut_off: bool,
}

/// What is kept of an answered turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TurnRecord {
    /// What was asked.
    pub turn: Turn,
    /// What was answered.
    pub completion: Completion,
}

named_enum!(
    /// What went wrong with a turn, in terms that a client can act on.
    TurnErrorKind {
        /// The turn itself is at fault; the same again fails again.
        Invalid = "invalid",
        /// Too much at once; try again later.
        Overloaded = "overloaded",
        /// The caller's own deadline has passed, or would have before there was an answer.
        Late = "late",
        /// Turnflow is at fault.
        Internal = "internal",
        /// The caller wanted an answer from a cache or none, and no cache has one.
        Uncached = "uncached",
        /// Turnflow is shutting down.
        Unavailable = "unavailable",
    }
);

/// What ends a turn badly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct TurnError {
    /// What the client can do about it.
    pub kind: TurnErrorKind,
    /// What happened, for the client.
    pub message: String,
    /// When trying again makes sense, in milliseconds, where that is known.
    pub retry_after_ms: Option<u64>,
}

impl TurnError {
    /// An error with a message for the client.
    pub fn new(kind: TurnErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after_ms: None }
    }

    /// Too much at once: try again after so many milliseconds.
    #[must_use]
    pub fn overloaded(message: impl Into<String>, retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(TurnErrorKind::Overloaded, message) }
    }
}

/// What a client hears about a turn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TurnEvent {
    /// The turn was admitted and will end in exactly one terminal event.
    Accepted,
    /// The next piece of the answer.
    Delta(String),
    /// The pieces so far were of an answer that is not given after all: what follows begins anew.
    Restart,
    /// The turn was answered. Terminal.
    Done(Box<Completion>),
    /// The turn was not answered. Terminal.
    Error(TurnError),
}

impl TurnEvent {
    /// Whether no event follows this one.
    #[must_use]
    pub const fn is_terminal(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Error(_))
    }
}
