//! A checker of histories: clients ask while a writer edits, all at once and for real, and every answer to a turn that
//! began after an edit was acknowledged must be at least as new as the edit. It must find nothing in the scheme as it is,
//! and it must find what three plausible schemes do wrong.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::runtime::Runtime;
use turnflow_models::{EncoderCheckpoint, ModelHome, WeightSource, default_home, ensure};
use turnflow_state::{
    ArticleId, CacheControl, CacheLevel, Channel, Completion, ConversationId, Store, TenantId, Turn, TurnEvent, TurnId,
};

use crate::validity::Fault;
use crate::{ArticleDraft, Config, DraftContent, Parts, Pipeline, PipelineStats};

/// What the articles are about; few, so that the same questions are asked again and again.
const TOPICS: [&str; 4] = ["kettle", "teapot", "delivery", "voucher"];
const CLIENTS: u64 = 12;
/// Edits after which a history ends.
const EDITS: u64 = 160;
/// Edits after which a wrong scheme must have been noticed.
const EDITS_MAX: u64 = 1_500;

fn files() -> &'static EncoderCheckpoint {
    static FILES: OnceLock<EncoderCheckpoint> = OnceLock::new();
    FILES.get_or_init(|| {
        let home = ModelHome::new(default_home().expect("a home"));
        ensure(&home, &WeightSource::defaults(None), &|_| {}).expect("weights")
    })
}

fn tenant() -> TenantId {
    TenantId::new("shop").expect("an id")
}

/// The text says which article and which version it is.
fn draft(topic: usize, version: u64) -> ArticleDraft {
    let name = TOPICS[topic];
    let content = DraftContent {
        title: format!("Code of the {name}"),
        body: format!("The secret code of the {name} is {name}-{version}."),
        version: Some(version),
        ..DraftContent::default()
    };
    ArticleDraft { id: ArticleId::new(name).expect("an id"), content: Some(content), expected_version: None }
}

/// Topic and version that an answer gives away.
fn said(text: &str) -> Option<(usize, u64)> {
    TOPICS.iter().enumerate().find_map(|(topic, name)| {
        let (_, rest) = text.split_once(&format!("{name}-"))?;
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        Some((topic, digits.parse().ok()?))
    })
}

/// What happened, as far as it matters.
#[derive(Default)]
struct History {
    acknowledged: [AtomicU64; TOPICS.len()],
    hits: AtomicU64,
    joined: AtomicU64,
    over: AtomicBool,
    violations: Mutex<Vec<String>>,
}

impl History {
    fn acknowledged(&self) -> [u64; TOPICS.len()] {
        std::array::from_fn(|topic| self.acknowledged[topic].load(Ordering::Acquire))
    }

    /// Holds an answer against what was acknowledged when its turn began.
    fn check(&self, began: [u64; TOPICS.len()], completion: &Completion) {
        let level = completion.verdict.level;
        self.hits.fetch_add(u64::from(level.is_hit()), Ordering::Relaxed);
        self.joined.fetch_add(u64::from(level == CacheLevel::Joined), Ordering::Relaxed);
        if let Some((topic, version)) = said(&completion.text)
            && version < began[topic]
        {
            let name = TOPICS[topic];
            let violation = format!("{level}: version {version} of {name}, {} was acknowledged before", began[topic]);
            self.violations.lock().expect("lock").push(violation);
        }
    }

    fn is_violated(&self) -> bool {
        !self.violations.lock().expect("lock").is_empty()
    }
}

async fn ask(pipeline: &Pipeline, conversation: String, topic: usize) -> Completion {
    let turn = Turn {
        tenant: tenant(),
        conversation: ConversationId::new(conversation).expect("an id"),
        id: TurnId::new("1").expect("an id"),
        channel: Channel::Web,
        text: format!("What is the secret code of the {}?", TOPICS[topic]),
        at_ms: 0,
        cache_control: CacheControl::Default,
    };
    let mut stream = pipeline.submit_patiently(turn).await.expect("admitted");
    loop {
        match stream.next().await.expect("a terminal event") {
            TurnEvent::Done(completion) => return *completion,
            TurnEvent::Error(error) => panic!("{error}"),
            TurnEvent::Accepted | TurnEvent::Delta(_) | TurnEvent::Restart => {}
        }
    }
}

async fn client(pipeline: Pipeline, history: Arc<History>, number: u64) {
    let mut turns = 0;
    while !history.over.load(Ordering::Acquire) {
        let began = history.acknowledged();
        let topic = usize::try_from((number + turns) % TOPICS.len() as u64).expect("small");
        let completion = ask(&pipeline, format!("c{number}-{turns}"), topic).await;
        history.check(began, &completion);
        turns += 1;
    }
}

/// Edits one topic after the other, each as soon as the one before is acknowledged.
async fn edit(pipeline: Pipeline, history: Arc<History>, edits: u64, until_violated: bool) {
    let mut readers = Vec::new();
    for number in 0..edits {
        let topic = usize::try_from(number % TOPICS.len() as u64).expect("small");
        let version = number / TOPICS.len() as u64 + 2;
        let receipt = pipeline.knowledge().write(&tenant(), vec![draft(topic, version)]).await.expect("written");
        assert_eq!(receipt.outcomes[0].as_ref().expect("written").version, version);
        history.acknowledged[topic].store(version, Ordering::Release);
        // Whoever wrote reads at once, when others may still be answered from what was there before.
        let (reading, seen) = (pipeline.clone(), history.clone());
        readers.push(tokio::spawn(async move {
            let began = seen.acknowledged();
            let completion = ask(&reading, format!("r{number}"), topic).await;
            seen.check(began, &completion);
        }));
        if until_violated && history.is_violated() {
            break;
        }
    }
    history.over.store(true, Ordering::Release);
    for reader in readers {
        reader.await.expect("no task panics");
    }
}

/// Runs a history; gives what became of the caches as well.
fn run(workers: usize, fault: Fault, edits: u64) -> (Arc<History>, PipelineStats) {
    let mut config = Config::defaults();
    config.workers.threads = workers;
    config.knowledge.chunks_retrieved = 2;
    // A question about one topic is no question about another.
    config.cache.similarity_min = 0.99;
    // Everything that falls is made anew.
    config.refresh.served_min = 1;
    let parts = Parts::open(&config, Store::memory(), files()).expect("parts");
    let pipeline = Pipeline::start_with(&config, &parts, |blueprint| blueprint.fault = fault).expect("pipeline");
    let runtime: Runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let history = Arc::new(History::default());
    let stats = runtime.block_on(async {
        let drafts = (0..TOPICS.len()).map(|topic| draft(topic, 1)).collect();
        pipeline.knowledge().write(&tenant(), drafts).await.expect("written");
        let mut tasks: Vec<_> =
            (0..CLIENTS).map(|number| tokio::spawn(client(pipeline.clone(), history.clone(), number))).collect();
        let until_violated = fault != Fault::None;
        tasks.push(tokio::spawn(edit(pipeline.clone(), history.clone(), edits, until_violated)));
        for task in tasks {
            task.await.expect("no task panics");
        }
        pipeline.refreshed().await;
        let stats = pipeline.stats();
        pipeline.shutdown().await;
        stats
    });
    (history, stats)
}

#[test]
fn no_answer_is_older_than_what_was_acknowledged_before_it_was_asked() {
    for workers in [1, 2, 3] {
        let (history, stats) = run(workers, Fault::None, EDITS);
        let violations = history.violations.lock().expect("lock");
        assert!(violations.is_empty(), "{workers} workers, {} violations: {}", violations.len(), violations[0]);
        let (hits, joined) = (history.hits.load(Ordering::Relaxed), history.joined.load(Ordering::Relaxed));
        let (late, refreshed) = (stats.validity.late, stats.refresh.refreshed);
        assert!(
            hits > 0 && joined > 0 && late > 0 && refreshed > 0,
            "nothing was put to the test: {hits} hits, {joined} joined, {late} late, {refreshed} made anew"
        );
    }
}

#[test]
fn a_change_that_is_acknowledged_early_is_noticed() {
    assert!(run(2, Fault::AcknowledgeEarly, EDITS_MAX).0.is_violated());
}

#[test]
fn an_answer_that_is_served_while_pending_is_noticed() {
    assert!(run(2, Fault::ServePending, EDITS_MAX).0.is_violated());
}

#[test]
fn an_answer_that_is_trusted_though_late_is_noticed() {
    assert!(run(2, Fault::TrustLate, EDITS_MAX).0.is_violated());
}

#[test]
fn answers_give_their_version_away() {
    assert_eq!(said("The secret code of the teapot is teapot-17."), Some((1, 17)));
    assert_eq!(said("I do not know"), None);
}
