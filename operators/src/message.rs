//! What travels between the stages.
//!
//! Everything here can cross to another worker, in this process or another.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Add as _;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use turnflow_state::{
    Answer, ArticleId, CacheControl, CacheEntry, CacheLevel, ConversationId, EntryId, HitEvidence, RouteEvidence,
    ScopeId, ScoredChunk, Stage, StageLatencies, Support, TenantId, TierSize, Turn, TurnError, TurnEvent, TurnKey,
    TurnRecord, Usage, Verdict, normalise_question, question_of,
};

use crate::audit::Record;
use crate::bound::Strictness;
use crate::policy::Prepared;

pub use turnflow_state::Exchange;

/// A stable hash, for deciding which worker owns something: equal in every process of one build.
#[must_use]
pub fn owner_hash(value: &impl Hash) -> u64 {
    // `DefaultHasher::new` uses fixed keys, unlike the hasher of a `HashMap`.
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Names the stream that waits for a turn's events: the worker beside it and a number there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RequestId {
    /// Index of the worker that the turn entered at.
    pub worker: u32,
    /// Number of the turn at that process.
    pub number: u64,
}

/// A question as the caches know it: the scope and the normalised text. Compared in full, never by hash alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QuestionKey {
    /// The partition.
    pub scope: ScopeId,
    /// The question in normal form.
    pub text: Arc<str>,
}

impl QuestionKey {
    /// The key of a question.
    #[must_use]
    pub fn new(scope: ScopeId, question: &str) -> Self {
        Self { scope, text: normalise_question(question).into() }
    }

    /// Decides which worker's shard remembers the question.
    #[must_use]
    pub fn owner(&self) -> u64 {
        owner_hash(self)
    }
}

/// On whose behalf a question is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// A customer's, who waits.
    #[default]
    Turn,
    /// The caches': an answer that fell is made [anew](crate::refresh). It enters before retrieve, passes the caches by, is
    /// written to no conversation, and ends at the question's shard.
    Refresh,
    /// The policy's: a similar hit is answered in full to see whether it was right, see [`audit`](crate::audit). It goes the
    /// same way, and is cached nowhere.
    Audit,
}

impl Purpose {
    /// Whether nobody waits for the answer.
    #[must_use]
    pub const fn is_background(self) -> bool {
        !matches!(self, Self::Turn)
    }
}

/// What a caller wants of the answer to a turn. None of it widens what the caches may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wishes {
    /// How old a cached answer may be, in milliseconds; None for as old as it is.
    pub age_ms_max: Option<u64>,
    /// Whether a turn that no cache answers is to end without an answer.
    pub only_cached: bool,
    /// The tier that is to answer, where there are two. Such a turn passes the caches by.
    pub size: Option<TierSize>,
}

/// After so many failures of tiers at a question nobody tries it again for those who wait.
const FAILURES_MAX: u8 = 2;

/// A turn on its way, and what the stages have found out about it so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ask {
    /// On whose behalf.
    pub purpose: Purpose,
    /// Where its events go.
    pub request: RequestId,
    /// What was said.
    pub turn: Turn,
    /// The partition of everything cached for it, and its key there.
    pub key: QuestionKey,
    /// When it was admitted, in microseconds on the clock of the process it entered.
    pub admitted_us: u64,
    /// When its answer must be complete, on the same clock; None for as long as it takes.
    pub deadline_us: Option<u64>,
    /// The knowledge base's epoch that was acknowledged when it was admitted: it is told nothing older.
    pub acknowledged: u64,
    /// When it entered the current stage, on the clock of the current process.
    pub entered_us: u64,
    /// Time spent in each stage so far.
    pub latency: StageLatencies,
    /// From recall: whether its conversation waits for it to end.
    pub started: bool,
    /// What its caller wants besides.
    pub wishes: Wishes,
    /// From recall: turns that the conversation had answered before this one.
    pub turns_before: u64,
    /// What the caller tells of the conversation; from recall: the latest turns before, oldest first, and none when the turn
    /// does not lean on them.
    pub history: Vec<Exchange>,
    /// From recall: whether the turn can only be understood with its history.
    pub leans: bool,
    /// From recall: the tier that answered the conversation before.
    pub size_before: Option<TierSize>,
    /// From dedupe: whether other turns wait for this one's answer.
    pub leads: bool,
    /// From dedupe, flights and generate: whether it has waited for an answer already that came to nothing.
    pub promised: bool,
    /// From embed: the vector of the question.
    pub vector: Option<Arc<[f32]>>,
    /// From retrieve: the chunks that were found.
    pub retrieved: Vec<ScoredChunk>,
    /// From retrieve: the knowledge base's epoch at that moment.
    pub read_epoch: u64,
    /// From retrieve: the article that the question is clearly about.
    pub about: Option<ArticleId>,
    /// From lookup: why no cached answer was served.
    pub missed: String,
    /// From route: which tier answers.
    pub size: TierSize,
    /// From route: why.
    pub route: Option<Box<RouteEvidence>>,
    /// From route: whether another tier would answer, were it not for the load.
    pub degraded: bool,
    /// From generate: what the tiers took for it, in the order of [`TierSize::ALL`], since each has its own price. Of one that did not come to an
    /// answer it is estimated.
    pub used: [Usage; TierSize::ALL.len()],
    /// From generate, dedupe and flights: how often tiers have failed at its question, for it and for those it has waited for.
    pub failures: u8,
}

impl Ask {
    /// A turn as it enters.
    #[must_use]
    pub fn new(request: RequestId, turn: Turn, scope: ScopeId, admitted_us: u64) -> Self {
        let key = QuestionKey::new(scope, &turn.text);
        Self {
            purpose: Purpose::Turn,
            request,
            turn,
            key,
            admitted_us,
            deadline_us: None,
            acknowledged: 0,
            entered_us: admitted_us,
            latency: StageLatencies::default(),
            started: false,
            wishes: Wishes::default(),
            turns_before: 0,
            history: Vec::new(),
            leans: false,
            size_before: None,
            leads: false,
            promised: false,
            vector: None,
            retrieved: Vec::new(),
            read_epoch: 0,
            about: None,
            missed: String::new(),
            size: TierSize::Large,
            route: None,
            degraded: false,
            used: Default::default(),
            failures: 0,
        }
    }

    /// Decides which worker orders the turns of the conversation.
    #[must_use]
    pub fn conversation_owner(&self) -> u64 {
        conversation_owner(&self.turn)
    }

    /// Whether a cached answer may be served to this turn.
    #[must_use]
    pub fn may_read_cache(&self) -> bool {
        !self.leans && !self.purpose.is_background() && self.turn.cache_control != CacheControl::Bypass
    }

    /// Whether this turn's answer may be cached: one that was written by another tier because of the load may not, or it would
    /// be served long after.
    #[must_use]
    pub fn may_write_cache(&self) -> bool {
        let may = !self.leans && self.purpose != Purpose::Audit && self.turn.cache_control == CacheControl::Default;
        may && !self.degraded
    }

    /// An answer that was made before this time serves only others, in milliseconds since 1970.
    #[must_use]
    pub fn made_since_ms(&self) -> u64 {
        self.wishes.age_ms_max.map_or(0, |age_ms_max| self.turn.at_ms.saturating_sub(age_ms_max))
    }

    /// The question as encoder and tier are to understand it: with what it leans on, if it leans on anything.
    #[must_use]
    pub fn question_in_context(&self) -> String {
        Exchange::question_in_context(if self.leans { &self.history } else { &[] }, question_of(&self.turn.text))
    }

    /// Whether tiers have failed at its question so often that nobody is to try again.
    #[must_use]
    pub const fn is_hopeless(&self) -> bool {
        self.failures >= FAILURES_MAX
    }

    /// What all tiers took for it.
    #[must_use]
    pub fn used(&self) -> Usage {
        self.used.into_iter().fold(Usage::default(), Usage::add)
    }

    /// Closes the time spent in a stage.
    pub fn left(&mut self, stage: Stage, now_us: u64) {
        self.latency.add(stage, now_us.saturating_sub(self.entered_us));
    }
}

/// A conversation's full name.
pub type ConversationKey = (TenantId, ConversationId);

/// Decides which worker orders the turns of a conversation.
#[must_use]
pub fn conversation_owner(turn: &Turn) -> u64 {
    owner_hash(&(&turn.tenant, &turn.conversation))
}

/// What an answer follows from, so that it can be told whether it still does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Basis {
    /// The question that was retrieved for.
    pub vector: Arc<[f32]>,
    /// What was read, and what would be read as well.
    pub support: Arc<Support>,
    /// An epoch of the knowledge base at which the answer held.
    pub valid_at: u64,
}

/// An answer that a stage decided on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Served {
    /// The answer.
    pub answer: Arc<Answer>,
    /// Where it came from, and why.
    pub verdict: Verdict,
    /// What it follows from; None when nobody else may get it.
    pub basis: Option<Basis>,
    /// What to remember it by; its id is given at commit. None when it is not to be cached.
    pub offer: Option<Box<CacheEntry>>,
    /// Who wrote it, where its pieces went to the turn as they were written; None when it comes whole.
    pub writer: Option<Writer>,
}

/// Who writes an answer as it is told piece by piece. Pieces of different writers do not belong to one answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// The turn it is written for.
    pub request: RequestId,
    /// The tier that writes.
    pub size: TierSize,
}

impl Writer {
    /// The tier that has a turn.
    #[must_use]
    pub const fn of(ask: &Ask) -> Self {
        Self { request: ask.request, size: ask.size }
    }
}

/// How a turn ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Ending {
    /// With an answer that is to be written.
    Served(Box<Served>),
    /// With the answer that the same turn id got before.
    Repeated(Box<TurnRecord>),
    /// With an error.
    Failed(TurnError),
}

/// A turn and how it ends; on its way to commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The turn.
    pub ask: Box<Ask>,
    /// How it ends.
    pub ending: Ending,
}

impl Outcome {
    /// A turn that ends with an error.
    #[must_use]
    pub fn failed(ask: Box<Ask>, error: TurnError) -> Self {
        Self { ask, ending: Ending::Failed(error) }
    }
}

/// What a stage decided about a turn: it goes on, or it ends.
pub type Step = Result<Box<Ask>, Outcome>;

/// An event on its way to the stream that waits for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Notice {
    /// The stream.
    pub request: RequestId,
    /// When the turn was admitted, in microseconds on the clock of the process it entered.
    pub admitted_us: u64,
    /// The event.
    pub event: TurnEvent,
    /// With a piece, and with an answer's end: who wrote it.
    pub writer: Option<Writer>,
    /// With a piece that a tier writes for this very turn: what is known of the answer.
    pub beginning: Option<Beginning>,
    /// With an error: what tiers took for the turn.
    pub spent: Spent,
    /// Whether it ends a turn with what the same turn id was answered before.
    pub repeated: bool,
}

/// What tiers took for a turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spent {
    /// In tokens, of all of them.
    pub usage: Usage,
    /// At the price of each, in millionths of the configured currency.
    pub micros: u64,
}

/// What is known of an answer while a tier writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beginning {
    /// What the verdict will say: miss or bypass.
    pub level: CacheLevel,
    /// The tier that writes.
    pub size: TierSize,
}

/// What reaches commit: pieces of an answer pass through so that none overtakes the terminal event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ToCommit {
    /// A piece of an answer, and the owner of its conversation.
    Piece(Notice, u64),
    /// The end of a turn.
    End(Outcome),
}

impl ToCommit {
    /// Decides which worker commits: the one that orders the conversation, or the one of the question's shard for one that
    /// belongs to none.
    #[must_use]
    pub fn owner(&self) -> u64 {
        match self {
            Self::Piece(_, owner) => *owner,
            Self::End(outcome) if outcome.ask.purpose.is_background() => outcome.ask.key.owner(),
            Self::End(outcome) => outcome.ask.conversation_owner(),
        }
    }
}

/// The end of a turn, written and not yet told to the client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// The stream that waits.
    pub request: RequestId,
    /// When the turn was admitted, in microseconds on the clock of the process it entered.
    pub admitted_us: u64,
    /// What is left to tell: the terminal event.
    pub event: TurnEvent,
    /// Who wrote the answer, where it was told as it was written.
    pub writer: Option<Writer>,
    /// Whose turn it was.
    pub conversation: ConversationKey,
    /// Where it failed, what tiers took for it.
    pub spent: Spent,
    /// Whether its conversation waits for it to end.
    pub started: bool,
    /// Whether it is what the same turn id was answered before.
    pub repeated: bool,
}

impl Ended {
    /// The end of a turn with this event.
    #[must_use]
    pub fn new(ask: &Ask, event: TurnEvent, writer: Option<Writer>) -> Box<Self> {
        Box::new(Self {
            request: ask.request,
            admitted_us: ask.admitted_us,
            event,
            writer,
            conversation: (ask.turn.tenant.clone(), ask.turn.conversation.clone()),
            spent: Spent::default(),
            started: ask.started,
            repeated: false,
        })
    }

    /// Decides which worker tells it: the one that orders the conversation.
    #[must_use]
    pub fn owner(&self) -> u64 {
        owner_hash(&self.conversation)
    }
}

/// The end of a turn that others wait for, or whose answer is to be cached; on its way to the question's shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settlement {
    /// What the question was answered with, for those who wait for it.
    pub resolution: Resolution,
    /// The end itself, to be told afterwards; None when nobody waits.
    pub ended: Option<Box<Ended>>,
}

/// What a question in flight was answered with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resolution {
    /// On whose behalf it was asked.
    pub purpose: Purpose,
    /// The question.
    pub key: QuestionKey,
    /// Its answer; None when it failed, or when those who wait may not have it.
    pub result: Option<Settled>,
    /// How often tiers have failed at it.
    pub failures: u8,
    /// What those who wait are told when nobody is to try again.
    pub error: Option<TurnError>,
}

impl Resolution {
    /// The same question, without an answer.
    #[must_use]
    pub fn without_answer(self) -> Self {
        Self { result: None, ..self }
    }
}

/// An answer as it reaches the question's shard.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settled {
    /// The answer.
    pub answer: Arc<Answer>,
    /// The turn that was answered first.
    pub origin: TurnKey,
    /// Whether its answer was made anew since.
    pub refreshed: bool,
    /// The question as it was asked there.
    pub question: String,
    /// Who wrote it, where others may have listened.
    pub writer: Option<Writer>,
    /// What it cost to write, in millionths of the configured currency.
    pub cost_micros: u64,
    /// What it follows from; None when nobody else may get it.
    pub basis: Option<Basis>,
    /// The entry to remember.
    pub entry: Option<Box<CacheEntry>>,
}

/// A question to every shard: what do you know that is similar?
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Query {
    /// Which lookup asks, and at which worker.
    pub request: RequestId,
    /// The worker that gathers the replies.
    pub asker: u64,
    /// The partition.
    pub scope: ScopeId,
    /// The question, as the policy sees it.
    pub question: Prepared,
    /// Its vector.
    pub vector: Arc<[f32]>,
    /// When it was asked, in milliseconds of Unix time.
    pub at_ms: u64,
    /// Answers that were made before this time are not wanted, in the same.
    pub made_since_ms: u64,
    /// How strict the policy is for the tenant.
    pub strictness: Strictness,
}

/// A cached question that may answer another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// The entry.
    pub entry: EntryId,
    /// Cosine between the questions.
    pub similarity: f32,
    /// The cached question.
    pub question: String,
    /// Its answer.
    pub answer: Arc<Answer>,
    /// The turn that was answered first.
    pub origin: TurnKey,
    /// Whether its answer was made anew since.
    pub refreshed: bool,
    /// What the answer follows from.
    pub basis: Basis,
    /// What speaks for it.
    pub evidence: HitEvidence,
    /// What is known of the entry.
    pub record: Record,
    /// Under which levels it was decided, from [`Strictness::changes`].
    pub changes: [u32; 2],
}

/// One shard's reply to a [`Query`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Which lookup asked.
    pub request: RequestId,
    /// The worker that gathers the replies.
    pub asker: u64,
    /// What may be served.
    pub hit: Option<Candidate>,
    /// What may not, and may if the policy were one step less strict for the tenant.
    pub withheld: Option<Candidate>,
    /// The nearest that may not, and why, for the verdict.
    pub near_miss: Option<(f32, String)>,
    /// Cosines of the nearest that mention the same, nearest first: what may be served is one of the nearest of all shards.
    pub nearest: Vec<f32>,
}
