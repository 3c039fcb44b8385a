//! What the benches share: a running pipeline over a small shop, vectors from a seed, and peers in Python.
//!
//! Every figure stands beside a peer or a limit of the machine, measured in the same run; run them with
//! `cargo bench -p turnflow-benches`.

mod peer;

use anyhow::Context as _;
use turnflow_models::{ModelHome, WeightSource, default_home, ensure};
use turnflow_pipeline::{ArticleDraft, Config, DraftContent, Parts, Pipeline};
use turnflow_state::{ArticleId, CacheControl, Channel, ConversationId, Store, TenantId, Turn, TurnEvent, TurnId};

pub use self::peer::Peer;

/// A pipeline with default settings over one article, on a store in a folder or in memory.
///
/// # Errors
/// When the weights cannot be had, or something cannot be started.
pub fn pipeline(runtime: &tokio::runtime::Runtime, store: Store, workers: usize) -> anyhow::Result<Pipeline> {
    let mut config = Config::defaults();
    config.workers.threads = workers;
    let files = ensure(&ModelHome::new(default_home()?), &WeightSource::defaults(None), &|_| {})?;
    let parts = Parts::open(&config, store, &files)?;
    let content = DraftContent {
        title: "Delivery times".into(),
        body: "Delivery takes three to five working days. Express delivery takes one day.".into(),
        ..DraftContent::default()
    };
    let article = ArticleDraft { id: ArticleId::new("delivery")?, content: Some(content), expected_version: None };
    let pipeline = Pipeline::start(&config, &parts)?;
    runtime.block_on(pipeline.knowledge().write(&tenant()?, vec![article]))?;
    Ok(pipeline)
}

/// Asks one question in a conversation of its own and waits for the end.
///
/// # Errors
/// When the turn is refused or fails.
pub async fn ask(pipeline: &Pipeline, conversation: u64, text: &str) -> anyhow::Result<()> {
    let turn = Turn {
        tenant: tenant()?,
        conversation: ConversationId::new(format!("c{conversation}"))?,
        id: TurnId::new("1")?,
        channel: Channel::Web,
        text: text.into(),
        cache_control: CacheControl::Default,
        at_ms: 0,
    };
    let mut events = pipeline.submit_patiently(turn).await?;
    while let Some(event) = events.next().await {
        if let TurnEvent::Error(error) = event {
            return Err(error).context("a turn failed");
        }
    }
    Ok(())
}

/// The tenant of all benches.
///
/// # Errors
/// None in fact.
pub fn tenant() -> anyhow::Result<TenantId> {
    Ok(TenantId::new("bench")?)
}

/// Unit vectors around a few hundred centres, as questions about a few hundred topics are; equal for equal seeds.
#[must_use]
pub fn clustered(count: usize, dimension: usize, seed: u64) -> Vec<std::sync::Arc<[f32]>> {
    let mut state = seed | 1;
    // Numbers in [-1, 1) by xorshift64* (Vigna, 2016): repeatable, and good enough for directions.
    let mut next = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        let high = (state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40) as u32;
        #[expect(clippy::cast_precision_loss, reason = "24 bits fit a float")]
        let unit = high as f32 / 8_388_608.0;
        unit - 1.0
    };
    let centres: Vec<Vec<f32>> = (0..count.div_ceil(40)).map(|_| (0..dimension).map(|_| next()).collect()).collect();
    (0..count)
        .map(|index| {
            let raw: Vec<f32> = centres[index % centres.len()].iter().map(|centre| centre + 0.5 * next()).collect();
            let length = raw.iter().map(|x| x * x).sum::<f32>().sqrt();
            raw.into_iter().map(|x| x / length).collect()
        })
        .collect()
}
