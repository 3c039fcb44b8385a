//! Prepares texts for what is fitted to them: encodes them, and asks a knowledge base, where there is one, what they are about.

use std::path::PathBuf;
use std::sync::Arc;

use turnflow_models::{InputType, Retrieval};
use turnflow_pipeline::{Mentions, Pipeline};
use turnflow_state::{ArticleId, TenantId, question_of};

use super::{Context, open, replay};
use crate::failure::Failure;
use crate::grpc::TENANT_DEFAULT;
use crate::kb_file::read_articles;
use crate::progress::{Meter, Unit};

/// Texts that are encoded together.
const BATCH: usize = 256;

/// A text and what there is to know of it.
#[derive(Clone)]
pub(super) struct Text {
    pub(super) vector: Arc<[f32]>,
    pub(super) mentions: Mentions,
    /// The article that it is clearly about.
    pub(super) article: Option<ArticleId>,
    /// What it retrieves; None without a knowledge base.
    pub(super) retrieval: Option<Retrieval>,
}

/// Encodes texts, and finds what each retrieves when there is a knowledge base.
pub(super) fn prepare(context: &Context, texts: &[String], kb: Option<&PathBuf>) -> Result<Vec<Text>, Failure> {
    let articles = kb.map(|path| read_articles(path, &context.config.limits)).transpose()?.unwrap_or_default();
    let tenant = TenantId::new(TENANT_DEFAULT).map_err(anyhow::Error::from)?;
    let mut config = context.config.clone();
    // What is made here needs no verifier.
    "none".clone_into(&mut config.policy.verifier);
    let context = &context.with(config);
    let folder = replay::temporary_folder()?;
    let parts = open::parts(context, open::store(context, folder.path())?)?;
    let clarity = parts.policy.clarity();
    if !articles.is_empty() {
        open::runtime()?.block_on(async {
            let pipeline = Pipeline::start(&context.config, &parts)?;
            open::import(&pipeline.knowledge(), &tenant, articles).await?;
            pipeline.shutdown().await;
            Ok::<_, Failure>(())
        })?;
    }
    let mut order: Vec<usize> = (0..texts.len()).collect();
    order.sort_by_key(|&at| texts[at].len());
    let mut meter = Meter::new("encoding", Unit::Things("texts"), Some(order.len() as u64));
    let mut prepared: Vec<Option<Text>> = vec![None; order.len()];
    for (done, batch) in order.chunks(BATCH).enumerate() {
        let batch_texts = batch.iter().map(|&at| question_of(&texts[at]).to_owned()).collect();
        let vectors = parts.encoder.encode_blocking(InputType::Query, batch_texts).map_err(anyhow::Error::from)?;
        for (&at, vector) in batch.iter().zip(vectors) {
            let found = parts.knowledge.search(&tenant, &vector, context.config.knowledge.chunks_retrieved)?;
            let (mentions, article) = (Mentions::of(&texts[at]), clarity.article(&found));
            prepared[at] = Some(Text { vector, mentions, article, retrieval: Retrieval::of(&found) });
        }
        meter.set((done * BATCH + batch.len()) as u64);
    }
    Ok(prepared.into_iter().flatten().collect())
}
