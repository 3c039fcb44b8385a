//! Configuration: one embedded file is the only list of defaults, a user's file overrides parts of it, and all of
//! it is [checked](check) before anything starts.

mod check;
mod file;

pub use self::file::ConfigError;

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use turnflow_models::{
    BurnConfig, EncoderConfig, EncoderPrecision, ExtractiveConfig, InstructionChoice, PlainRule, PromptConfig,
    RemoteConfig, Sampling, Target, TierEngineConfig,
};
use turnflow_operators::bound::BoundLimits;
use turnflow_operators::commit::Price;
use turnflow_operators::load::LoadLimits;
use turnflow_operators::prioritise::QueueLimits;
use turnflow_operators::smalltalk::SmallTalk;
use turnflow_state::{Limits, Reach, ScopeId, TenantId};

/// Largest budget of a day: whole numbers count its millionths exactly.
const BUDGET_MAX: f64 = 100_000_000.0;

/// All settings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The gRPC server.
    pub server: ServerConfig,
    /// The HTTP server.
    pub http: HttpConfig,
    /// Who may call.
    pub gateway: GatewayConfig,
    /// The store.
    pub storage: StorageConfig,
    /// The dataflow.
    pub workers: WorkersConfig,
    /// Bounds on input.
    pub limits: Limits,
    /// What besides the question may change an answer.
    pub scope: ScopeConfig,
    /// The caches.
    pub cache: CacheConfig,
    /// When an answer is served to a similar question.
    pub policy: PolicyConfig,
    /// What is answered anew after an edit.
    pub refresh: RefreshConfig,
    /// Which hits on similar questions are answered in full as well.
    pub audit: AuditConfig,
    /// The queues in front of encoder and tiers.
    pub queue: QueueLimits,
    /// What follows from load.
    pub load: LoadLimits,
    /// Which of two tiers answers.
    pub routing: RoutingConfig,
    /// What is said to small talk.
    pub small_talk: SmallTalk,
    /// The knowledge base.
    pub knowledge: KnowledgeConfig,
    /// The memory of a conversation.
    pub conversation: ConversationConfig,
    /// What the encoder and decoders on the CPU compute with.
    pub processor: ProcessorConfig,
    /// The encoder.
    pub encoder: EncoderConfig,
    /// Who answers what no cache does.
    pub tier: TierConfig,
    /// Who answers what is simple, where turns are routed.
    pub small_tier: TierConfig,
    /// The extractive tier.
    pub extractive: ExtractiveConfig,
    /// Replays of logs.
    pub replay: ReplayConfig,
    /// The file that it comes from; None for the defaults.
    #[serde(skip)]
    pub file: Option<PathBuf>,
}

macro_rules! section {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $type:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields)]
        pub struct $name { $($(#[$fdoc])* pub $field: $type),+ }
    };
}

section!(
    /// The gRPC server.
    ServerConfig {
        /// Where clients connect.
        listen: SocketAddr,
        /// An idle connection is probed after this long, in seconds.
        keepalive_interval_s: u64,
        /// A probe waits this long for its answer, in seconds.
        keepalive_timeout_s: u64,
        /// Largest header list of a request, in bytes.
        header_bytes_max: u32,
        /// How long open streams may take to finish on shutdown, in seconds.
        shutdown_grace_s: u64,
        /// Origins of pages in browsers that may call, over gRPC-Web; empty for none.
        grpc_web_origins: Vec<String>,
        /// TLS of both servers.
        tls: TlsConfig,
    }
);
section!(
    /// TLS, which both servers speak where there is a certificate.
    TlsConfig {
        /// The certificate, and those between it and its authority; empty for no TLS.
        cert_file: PathBuf,
        /// The certificate's private key.
        key_file: PathBuf,
        /// Certificates of the authorities whose clients are let in; empty where clients need no certificate.
        client_ca_file: PathBuf,
        /// Whether clients without a certificate are refused, where there are such authorities.
        client_required: bool,
        /// How long a handshake may take, in milliseconds.
        handshake_wait_ms: u64,
    }
);

impl TlsConfig {
    /// Whether TLS is spoken.
    #[must_use]
    pub fn is_on(&self) -> bool {
        !self.cert_file.as_os_str().is_empty()
    }
}

section!(
    /// What the encoder and decoders on the CPU compute with.
    ProcessorConfig {
        /// The processor's instructions.
        instructions: InstructionChoice,
    }
);
section!(
    /// The HTTP server.
    HttpConfig {
        /// Whether there is one.
        enabled: bool,
        /// Where clients connect.
        listen: SocketAddr,
        /// Open connections; each carries one request at a time.
        connections_max: usize,
        /// Largest head of a request, in bytes.
        header_bytes_max: usize,
        /// Headers of a request.
        headers_max: usize,
        /// Largest body of a request, in bytes.
        body_bytes_max: usize,
        /// How long a connection may take until it has sent the whole head of a request, in milliseconds.
        head_wait_ms: u64,
        /// How long the body of a request may take, in milliseconds.
        body_wait_ms: u64,
        /// Requests at once that read or write articles, search, or ask for embeddings.
        work_in_flight_max: usize,
        /// Texts of one request for embeddings.
        inputs_max: usize,
        /// What becomes of the system messages of a conversation.
        system_messages: SystemMessages,
        /// What becomes of requests for models that are not here.
        other_models: OtherModels,
        /// Names of this machine for clients on it.
        hosts: Vec<String>,
    }
);

/// What becomes of requests that name a model which is not here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OtherModels {
    /// They are answered, as if they named none.
    Answer,
    /// They are refused.
    Refuse,
}

/// What becomes of the system messages of a conversation: what answers are to be like is a setting, and part of what may be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SystemMessages {
    /// They are passed over.
    Ignore,
    /// A request that has one is refused.
    Refuse,
}

section!(
    /// Who may call.
    GatewayConfig {
        /// The file of the keys; empty for `keys.jsonl` in the store's folder.
        keys: PathBuf,
        /// The file of the secret that keys are hashed with; empty for `keys.pepper` beside the file of the keys.
        pepper_file: PathBuf,
        /// Whether other machines may call while there is no key.
        open: bool,
        /// How much callers may do.
        limits: GatewayLimits,
    }
);
section!(
    /// How much callers may do.
    GatewayLimits {
        /// Each key, where it has no limits of its own.
        key: CallerLimits,
        /// Each tenant, with all its keys.
        tenant: CallerLimits,
    }
);

/// How much a key or a tenant may do; 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CallerLimits {
    /// Requests a minute.
    pub requests_per_minute: u32,
    /// Tokens read and written for it in a minute.
    pub tokens_per_minute: u32,
    /// Turns that are being answered.
    pub turns_in_flight: u32,
    /// Streams that are open.
    pub streams: u32,
    /// What it may cost on a day of UTC, in the configured currency.
    pub budget_per_day: f64,
}

impl CallerLimits {
    /// Checks what makes sense.
    ///
    /// # Errors
    /// The name of the limit that does not, and what would.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if (0.0..=BUDGET_MAX).contains(&self.budget_per_day) {
            return Ok(());
        }
        Err(("budget-per-day", format!("must be a number from 0, for no limit, to {BUDGET_MAX}")))
    }
}
section!(
    /// The store.
    StorageConfig {
        /// Writes of turns that may wait to be grouped.
        commit_queue_max: usize,
        /// RocksDB's block cache, in bytes.
        block_cache_bytes: usize,
        /// Where backups go; empty for `backups` beside the store's folder.
        backup_folder: PathBuf,
    }
);
section!(
    /// The dataflow.
    WorkersConfig {
        /// Dataflow workers.
        threads: usize,
        /// Threads that search the knowledge base.
        search_threads: usize,
    }
);
section!(
    /// What besides the question may change an answer.
    ScopeConfig {
        /// Language of the answers.
        language: String,
        /// Instructions to the tiers.
        system_prompt: String,
    }
);
/// What keeps cached answers in step with the knowledge base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Validity {
    /// No answer is served that no longer follows from the knowledge base.
    Exact,
    /// Nothing does: answers are served until they are too old, or have to make room.
    Off,
}

section!(
    /// The caches.
    CacheConfig {
        /// Whether the exact response cache is used.
        exact: bool,
        /// Whether the semantic cache is used.
        semantic: bool,
        /// Whether a question waits for a similar one in flight; only beside the semantic cache.
        join_similar: bool,
        /// Smallest cosine between two questions that share an answer.
        similarity_min: f32,
        /// What keeps cached answers in step with the knowledge base.
        validity: Validity,
        /// How long an answer is served, in seconds; 0 for as long as it is valid.
        ttl_s: u64,
        /// What all entries may take, over all workers, in bytes.
        bytes_max: usize,
        /// What the entries of one tenant may take, in bytes.
        tenant_bytes_max: usize,
    }
);
section!(
    /// When an answer is served to a similar question.
    PolicyConfig {
        /// What judges two questions: `shop` is the verifier that ships, `none` a plain rule, anything else a file.
        verifier: String,
        /// Share of hits that may be wrong.
        delta: f64,
        /// Least score of a chunk for a question to be clearly about its article.
        relevance_min: f32,
        /// Least lead of that chunk over any other article's.
        margin_min: f32,
    }
);
section!(
    /// What is answered anew, in the background, after an edit.
    RefreshConfig {
        /// Whether anything is.
        enabled: bool,
        /// How often an answer must have been served.
        served_min: u32,
        /// Questions that may wait, over all workers.
        queue_max: usize,
        /// Questions that may be under way, for each worker.
        in_flight_max: usize,
        /// How often an answer is made that another edit outdates before it is kept.
        tries_max: u32,
    }
);
section!(
    /// Which hits on similar questions are answered in full as well, in the background, and what follows for the policy.
    AuditConfig {
        /// Whether any are.
        enabled: bool,
        /// Share of the hits.
        share: f64,
        /// Audits after which no more than the share of an entry's hits is audited; 0 for no more from the start.
        trusted_after: u32,
        /// Audits that may wait, over all workers.
        queue_max: usize,
        /// Audits that may be under way, for each worker.
        in_flight_max: usize,
        /// Share of the audited hits that may disagree: errors of hits and noise of the tier.
        disagreement_max: f64,
        /// By how much one step is stricter, in log odds.
        step: f32,
        /// Steps before similar hits are off.
        steps: u32,
    }
);

impl AuditConfig {
    /// What the controllers keep to.
    #[must_use]
    pub const fn bound_limits(&self) -> BoundLimits {
        BoundLimits { disagreement_max: self.disagreement_max, step: self.step, steps: self.steps }
    }
}

section!(
    /// The knowledge base.
    KnowledgeConfig {
        /// Chunks retrieved for a question.
        chunks_retrieved: usize,
        /// A chunk that scores this much below the best one is not read.
        score_margin: f32,
        /// Longest chunk, in word pieces.
        chunk_tokens_max: usize,
        /// Chunks kept in memory, in bytes.
        cache_bytes: usize,
        /// Recent chunks that late answers are compared with, for each tenant.
        recent_chunks_max: usize,
        /// Changes that may wait to be taken into account.
        writes_waiting_max: usize,
        /// Changes that are kept for those who watch and are slow to listen.
        events_kept_max: usize,
    }
);
impl KnowledgeConfig {
    /// What is read of what is retrieved.
    #[must_use]
    pub const fn reach(&self) -> Reach {
        Reach { chunks: self.chunks_retrieved, margin: self.score_margin }
    }
}

section!(
    /// The memory of a conversation.
    ConversationConfig {
        /// Earlier turns that a turn may lean on.
        history_turns_max: usize,
    }
);
section!(
    /// Replays of logs.
    ReplayConfig {
        /// Vectors of texts that are kept while a log is replayed under several settings, in bytes; 0 for none.
        memo_bytes_max: usize,
    }
);
section!(
    /// Which of two tiers answers what no cache does.
    RoutingConfig {
        /// Whether there are two.
        enabled: bool,
        /// What chooses: `shop` is the router that ships, `plain` a rule, anything else a file that `turnflow router train` wrote.
        router: String,
        /// What is wanted of a router.
        target: Target,
        /// The plain rule.
        plain: PlainRule,
        /// Whether a conversation that the large tier has answered stays with it.
        sticky: bool,
        /// Whether the large tier is asked where the small one has no good answer.
        escalate: bool,
    }
);
section!(
    /// Who answers what no cache does.
    TierConfig {
        /// What kind of tier.
        kind: TierKind,
        /// What its tokens cost.
        price: Price,
        /// Questions that may wait for the extractive tier, in each lane.
        queue_max: usize,
        /// Threads of the extractive tier.
        threads: usize,
        /// How a language model is asked.
        prompt: PromptConfig,
        /// How it chooses its words.
        sampling: Sampling,
        /// A language model in this process.
        burn: BurnConfig,
        /// A language model behind another server.
        openai: RemoteConfig,
    }
);

/// A kind of tier that may be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TierKind {
    /// The knowledge base's own sentences.
    Extractive,
    /// A language model in this process.
    Burn,
    /// A language model behind another server.
    Openai,
}

impl TierConfig {
    /// Bounds of the extractive tier's engine.
    #[must_use]
    pub const fn engine(&self) -> TierEngineConfig {
        TierEngineConfig { queue_max: self.queue_max, threads: self.threads }
    }
}

/// The settings that divide what is cached, with their values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scopes(Vec<(&'static str, String)>);

impl Scopes {
    /// The partition of a tenant.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> ScopeId {
        let settings: Vec<_> = self.0.iter().map(|(name, value)| (*name, value.as_str())).collect();
        ScopeId::derive(tenant, &settings)
    }
}

impl Config {
    /// The partitions of everything cached: every setting that may change an answer is part of them. `tier` is what
    /// tiers say of [themselves](crate::Parts::tiers_identity): a model is more than its settings.
    #[must_use]
    pub fn scopes(&self, tier: &str) -> Scopes {
        let KnowledgeConfig { chunks_retrieved, score_margin, chunk_tokens_max, .. } = self.knowledge;
        let retrieval = format!("{chunks_retrieved} of {chunk_tokens_max} tokens within {score_margin}");
        let answers = match self.tier.kind {
            TierKind::Extractive if !self.routing.enabled => ("extractive", format!("{:?}", self.extractive)),
            TierKind::Burn | TierKind::Openai if !self.routing.enabled => ("tier", tier.to_owned()),
            _ => ("tiers", format!("{tier}, {:?}, {:?}", self.extractive, self.routing)),
        };
        // What the model's files are, its store knows. Other precisions make slightly other vectors, which retrieve other chunks now and then.
        let EncoderConfig { model, query_prefix, passage_prefix, precision, .. } = &self.encoder;
        let mut encoder = model.display().to_string();
        if *precision != EncoderPrecision::F32 {
            encoder += &format!(" in {precision}");
        }
        if !(query_prefix.is_empty() && passage_prefix.is_empty()) {
            encoder += &format!(" after {query_prefix:?} and {passage_prefix:?}");
        }
        Scopes(vec![
            ("language", self.scope.language.clone()),
            ("system-prompt", self.scope.system_prompt.clone()),
            ("encoder", encoder),
            ("adapter", self.encoder.adapter.to_string()),
            ("retrieval", retrieval),
            answers,
            ("small-talk", format!("{:?}", self.small_talk)),
        ])
    }

    /// Takes over places that were found out at the start, where none are written.
    pub(crate) fn keep_places(&mut self, before: &Self) {
        let keep = |own: &mut PathBuf, before: &PathBuf| {
            if own.as_os_str().is_empty() {
                own.clone_from(before);
            }
        };
        keep(&mut self.gateway.keys, &before.gateway.keys);
        keep(&mut self.storage.backup_folder, &before.storage.backup_folder);
    }
}
