//! What the tests of the pipeline share: a small shop, and turns that are asked and read to their ends.

#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::future::Future;
use std::sync::OnceLock;

use turnflow_models::{EncoderCheckpoint, ModelHome, WeightSource, default_home, ensure};
use turnflow_pipeline::{ArticleDraft, Config, DraftContent, Parts, Pipeline, Receipt, TurnStream};
use turnflow_state::{
    ArticleId, CacheControl, CacheLevel, Channel, Completion, ConversationId, Store, TenantId, Turn, TurnError,
    TurnEvent, TurnId,
};

pub(crate) fn files() -> &'static EncoderCheckpoint {
    static FILES: OnceLock<EncoderCheckpoint> = OnceLock::new();
    FILES.get_or_init(|| {
        let home = ModelHome::new(default_home().expect("a home"));
        ensure(&home, &WeightSource::defaults(None), &|_| {}).expect("weights")
    })
}

pub(crate) fn tenant() -> TenantId {
    TenantId::new("shop").expect("valid")
}

pub(crate) fn article(id: &str, title: &str, body: &str) -> ArticleDraft {
    let content = DraftContent { title: title.into(), body: body.into(), ..DraftContent::default() };
    ArticleDraft { id: ArticleId::new(id).expect("valid"), content: Some(content), expected_version: None }
}

pub(crate) fn articles() -> Vec<ArticleDraft> {
    vec![
        article("returns", "Returns", "You can return any item within 30 days. Returns are free of charge."),
        article(
            "delivery",
            "Delivery times",
            "Delivery takes three to five working days. Express delivery takes one day.",
        ),
        article("gift-cards", "Gift cards", "Gift cards are sold in amounts from $10 to $200. They never expire."),
        article(
            "tracking",
            "Track an order",
            "Open the order history and choose the order to see where your parcel is.",
        ),
        article("kettle-care", "Cleaning a kettle", "Remove lime scale with a spoon of citric acid and boiling water."),
    ]
}

pub(crate) async fn import(pipeline: &Pipeline) {
    let receipt = pipeline.knowledge().write(&tenant(), articles()).await.expect("written");
    assert!(receipt.outcomes.iter().all(Result::is_ok), "{receipt:?}");
}

pub(crate) fn config(workers: usize) -> Config {
    let mut config = Config::defaults();
    config.workers.threads = workers;
    // Nothing is asked but what the tests ask, but in those of what is answered anew or audited.
    config.refresh.enabled = false;
    config.audit.enabled = false;
    config
}

/// Runs a test at 1, 2 and 3 workers, each with a store of its own.
pub(crate) fn at_each<F: Future<Output = ()>>(adjust: impl Fn(&mut Config), test: impl Fn(Pipeline) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    for workers in [1, 2, 3] {
        let mut config = config(workers);
        adjust(&mut config);
        let parts = Parts::open(&config, Store::memory(), files()).expect("parts");
        let pipeline = Pipeline::start(&config, &parts).expect("pipeline");
        runtime.block_on(async {
            import(&pipeline).await;
            test(pipeline.clone()).await;
            pipeline.shutdown().await;
        });
    }
}

pub(crate) fn turn(conversation: &str, id: &str, text: &str) -> Turn {
    Turn {
        tenant: tenant(),
        conversation: ConversationId::new(conversation).expect("valid"),
        id: TurnId::new(id).expect("valid"),
        channel: Channel::Web,
        text: text.into(),
        cache_control: CacheControl::Default,
        at_ms: 0,
    }
}

/// Reads a stream to its end, checking the contract of events on the way.
pub(crate) async fn ended(mut stream: TurnStream) -> Result<Completion, TurnError> {
    assert_eq!(stream.next().await, Some(TurnEvent::Accepted));
    let mut text = String::new();
    let result = loop {
        match stream.next().await.expect("a terminal event") {
            TurnEvent::Accepted => panic!("accepted twice"),
            TurnEvent::Delta(piece) => text.push_str(&piece),
            TurnEvent::Restart => text.clear(),
            TurnEvent::Done(completion) => {
                assert_eq!(completion.text, text, "the pieces are the answer");
                break Ok(*completion);
            }
            TurnEvent::Error(error) => break Err(error),
        }
    };
    assert_eq!(stream.next().await, None, "nothing follows the terminal event");
    result
}

pub(crate) async fn asked(pipeline: &Pipeline, turn: Turn) -> Completion {
    ended(pipeline.submit(turn).await.expect("admitted")).await.expect("answered")
}

/// Asks a question as the first turn of a conversation.
pub(crate) async fn ask(pipeline: &Pipeline, conversation: &str, question: &str) -> Completion {
    asked(pipeline, turn(conversation, "1", question)).await
}

/// Writes an article, or deletes it; nothing is refused.
pub(crate) async fn write(pipeline: &Pipeline, draft: ArticleDraft) -> Receipt {
    let receipt = pipeline.knowledge().write(&tenant(), vec![draft]).await.expect("written");
    assert!(receipt.outcomes.iter().all(Result::is_ok), "{receipt:?}");
    receipt
}

/// Asks a question until its answer comes from the cache; gives the first answer.
pub(crate) async fn cached(pipeline: &Pipeline, conversation: &str, question: &str) -> Completion {
    let first = ask(pipeline, conversation, question).await;
    let again = ask(pipeline, &format!("{conversation}-again"), question).await;
    assert_eq!(again.verdict.level, CacheLevel::Exact);
    first
}

/// Takes an article away.
pub(crate) fn delete(id: &str) -> ArticleDraft {
    ArticleDraft { id: ArticleId::new(id).expect("valid"), content: None, expected_version: None }
}

/// What the shop says of its deliveries from now on.
pub(crate) fn delivery(takes: &str) -> ArticleDraft {
    article("delivery", "Delivery times", &format!("Delivery takes {takes}."))
}
