//! A scripted stand-in for the pipeline, and logs to replay on it.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Cursor};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::Notify;
use turnflow::lines::BadLine;
use turnflow::replay::{
    Answers, ContentVersions, Ending, EventStream, Gold, LogReader, OnBadLine, Plan, Sink, Speed, TurnResult, run,
};
use turnflow_pipeline::{ArticleDraft, Config, DraftError, Invalidated, PipelineError, Receipt, SubmitError};
use turnflow_state::{
    ArticleId, ArticleOutcome, CacheControl, CacheLevel, Completion, EntryId, Source, StageLatencies, TenantId, Tier,
    Turn, TurnError, TurnErrorKind, TurnEvent, TurnKey, Usage, Verdict, WriteRefused,
};

pub(crate) const TEXT_BYTES_MAX: usize = 100;
/// How long the answer to the text `slow` takes.
pub(crate) const SLOW: Duration = Duration::from_millis(20);

/// Answers a text that was asked before from its first turn, and holds answers back to give them in reverse order.
///
/// A text is about the article that its first word names, and an edit lets go of the answers about its article.
#[derive(Clone, Default)]
pub(crate) struct Script {
    state: Arc<Mutex<State>>,
    hold_back: usize,
    keeps_outdated: bool,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) submitted: Vec<TurnKey>,
    /// Texts that may only read the cache, with their turns.
    pub(crate) asked_read_only: Vec<(String, TurnKey)>,
    pub(crate) writes: Vec<Write>,
    /// What was answered to a text first.
    cached: HashMap<String, (TurnKey, String)>,
    /// What articles say that were edited.
    articles: HashMap<String, String>,
    held: Vec<Arc<Notify>>,
    pub(crate) open: usize,
    pub(crate) open_max: usize,
    open_of: HashMap<String, usize>,
    pub(crate) open_of_max: usize,
}

/// An edit as it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Write {
    pub(crate) article: String,
    /// Turns submitted before it.
    pub(crate) after: usize,
    /// Of them, those that had not ended.
    pub(crate) open: usize,
}

pub(crate) struct ScriptStream {
    script: Script,
    conversation: String,
    release: Arc<Notify>,
    slow: bool,
    events: VecDeque<TurnEvent>,
}

impl Script {
    pub(crate) fn holding_back(hold_back: usize) -> Self {
        Self { hold_back, ..Self::default() }
    }

    /// An edit lets go of no answer.
    pub(crate) fn keeping_outdated() -> Self {
        Self { keeps_outdated: true, ..Self::default() }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under the lock")
    }

    /// Lets the held answers go, the latest first.
    pub(crate) fn release(&self) {
        for held in self.state().held.drain(..).rev() {
            held.notify_one();
        }
    }
}

/// The article that a text is about.
fn article(text: &str) -> &str {
    text.split(' ').next().unwrap_or("none")
}

impl State {
    /// What the knowledge base says to a text.
    fn answer(&self, text: &str) -> String {
        self.articles.get(article(text)).cloned().unwrap_or_else(|| format!("answer to {text}"))
    }
}

impl Answers for Script {
    type Stream = ScriptStream;

    async fn submit(&self, turn: Turn) -> Result<ScriptStream, SubmitError> {
        if turn.text == "unwelcome" {
            return Err(SubmitError::Invalid { field: "text", message: "not today".to_owned() });
        }
        let (key, conversation) = (turn.key(), turn.conversation.as_str().to_owned());
        let release = Arc::new(Notify::new());
        let mut state = self.state();
        state.submitted.push(key.clone());
        let (answer, origin) = match state.cached.get(&turn.text) {
            Some((origin, answer)) => (answer.clone(), Some(origin.clone())),
            None => (state.answer(&turn.text), None),
        };
        if turn.cache_control == CacheControl::Default {
            state.cached.entry(turn.text.clone()).or_insert_with(|| (key, answer.clone()));
        } else {
            state.asked_read_only.push((turn.text.clone(), key));
        }
        state.open += 1;
        state.open_max = state.open_max.max(state.open);
        let open_of = state.open_of.entry(conversation.clone()).or_default();
        *open_of += 1;
        state.open_of_max = (*open_of).max(state.open_of_max);
        state.held.push(Arc::clone(&release));
        let full = state.held.len() >= self.hold_back || !state.writes.is_empty();
        drop(state);
        if full {
            self.release();
        }
        let last = if turn.text == "broken" {
            TurnEvent::Error(TurnError::new(TurnErrorKind::Internal, "out of order"))
        } else {
            TurnEvent::Done(Box::new(completion(&turn.text, answer, origin)))
        };
        let events = VecDeque::from([TurnEvent::Accepted, TurnEvent::Delta("…".to_owned()), last]);
        Ok(ScriptStream { script: self.clone(), conversation, release, slow: turn.text == "slow", events })
    }

    /// Edits, and from then on holds no answer back.
    async fn write(&self, _: &TenantId, drafts: Vec<ArticleDraft>) -> Result<Receipt, PipelineError> {
        let mut state = self.state();
        let mut invalidated = Vec::new();
        let mut outcomes = Vec::new();
        for ArticleDraft { id, content, .. } in drafts {
            let (after, open) = (state.submitted.len(), state.open);
            state.writes.push(Write { article: id.as_str().to_owned(), after, open });
            if !self.keeps_outdated {
                let outdated = state.cached.extract_if(|text, _| article(text) == id.as_str());
                invalidated.extend(outdated.map(|(_, (origin, _))| Invalidated { entry: EntryId(1), origin }));
            }
            if id.as_str() == "refused" {
                outcomes.push(Err(DraftError::Refused(WriteRefused::NotFound)));
                continue;
            }
            match content {
                Some(content) => state.articles.insert(id.as_str().to_owned(), content.body),
                None => state.articles.remove(id.as_str()),
            };
            outcomes.push(Ok(ArticleOutcome { version: 1, existed: true, chunks: 1, chunks_changed: 1 }));
        }
        drop(state);
        self.release();
        Ok(Receipt { epoch: 1, outcomes, invalidated })
    }
}

impl EventStream for ScriptStream {
    async fn next(&mut self) -> Option<TurnEvent> {
        let event = self.events.pop_front()?;
        if event.is_terminal() {
            self.release.notified().await;
            let since = Instant::now();
            while self.slow && since.elapsed() < SLOW {
                tokio::task::yield_now().await;
            }
            let mut state = self.script.state();
            state.open -= 1;
            *state.open_of.get_mut(&self.conversation).expect("opened") -= 1;
        }
        Some(event)
    }
}

/// An answer that cites the article named by the text's first word and takes 10 tokens.
fn completion(text: &str, answer: String, origin: Option<TurnKey>) -> Completion {
    let level = if origin.is_some() { CacheLevel::Exact } else { CacheLevel::Miss };
    let article = ArticleId::new(article(text)).expect("an id");
    let usage = if origin.is_some() { Usage::default() } else { Usage { input_tokens: 7, output_tokens: 3 } };
    Completion {
        text: answer,
        tier: Tier::Extractive,
        grounded: true,
        sources: vec![Source { article_id: article, version: 1, chunk: 0 }],
        usage,
        cost_micros: 0,
        large_cost_micros: 0,
        verdict: Verdict {
            level,
            entry: None,
            similarity: None,
            question: None,
            origin,
            refreshed: false,
            evidence: None,
            route: None,
            reason: String::new(),
            age_ms: None,
        },
        latency: StageLatencies::default(),
        total_us: 1,
        cut_off: false,
    }
}

#[derive(Default)]
pub(crate) struct Collected {
    pub(crate) results: Vec<TurnResult>,
    pub(crate) bad: Vec<String>,
}

impl Sink for Collected {
    fn result(&mut self, result: &TurnResult, _: Option<&Gold>) -> io::Result<()> {
        self.results.push(result.clone());
        Ok(())
    }

    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn bad_line(&mut self, bad: &BadLine) {
        self.bad.push(bad.to_string());
    }
}

pub(crate) fn plan(in_flight_max: usize, on_bad_line: OnBadLine) -> Plan {
    Plan {
        speed: Speed::Max,
        on_bad_line,
        in_flight_max,
        in_flight_per_conversation_max: 3,
        tenant: TenantId::new("shop").expect("an id"),
        earlier: None,
    }
}

pub(crate) fn line(conversation: &str, turn: u64, text: &str, gold: &Value) -> String {
    line_at("2026-03-02T09:00:00.000Z", conversation, turn, text, gold)
}

pub(crate) fn line_at(ts: &str, conversation: &str, turn: u64, text: &str, gold: &Value) -> String {
    let mut line = json!({"conversation_id": conversation, "turn": turn, "ts": ts, "channel": "web", "text": text});
    if !gold.is_null() {
        line["gold"] = gold.clone();
    }
    line.to_string()
}

pub(crate) fn reader(log: &str, versions: Option<ContentVersions>) -> LogReader<Cursor<Vec<u8>>> {
    let mut limits = Config::defaults().limits;
    limits.text_bytes_max = TEXT_BYTES_MAX;
    LogReader::new(Cursor::new(log.as_bytes().to_vec()), "log.jsonl", &limits, versions)
}

pub(crate) async fn replay(log: &str, script: &Script, plan: &Plan) -> (Ending, Collected) {
    let mut sink = Collected::default();
    let ending = run(reader(log, None), script, plan, None, &mut sink, std::future::pending()).await.expect("a replay");
    (ending, sink)
}
