//! Opens what commands work with: the runtime, the weights, the store, the parts of a pipeline.

use std::cell::RefCell;
use std::path::Path;

use anyhow::Context as _;
use tokio::runtime::Runtime;
use turnflow_models::{Encoder, EncoderCheckpoint, EncoderEngine, EncoderHandle, Progress, WeightSource, ensure};
use turnflow_pipeline::{ArticleDraft, DraftContent, DraftError, Knowledge, Parts};
use turnflow_state::{StateError, Store, StoreOptions, TenantId, WriteRefused};

use super::running::Running;
use super::{Context, named};
use crate::failure::Failure;
use crate::progress::{Meter, Unit};
use crate::say::say;

/// Articles of one write: enough to fill the encoder's batches and to wait seldom for the disk.
const IMPORT_BATCH: usize = 64;

/// The runtime that connections and replays run on.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("turnflow-io").build();
    Ok(runtime.context("cannot start the I/O threads")?)
}

/// The encoder that ships, pulled when it is missing or damaged.
pub(super) fn weights(context: &Context, sources: &[WeightSource]) -> Result<EncoderCheckpoint, Failure> {
    ensure(&context.home()?, sources, &show_pull()).map_err(|error| {
        Failure::from(error).with_hint(
            "on a machine without network, fetch the files elsewhere and run: turnflow models pull --from FOLDER",
        )
    })
}

/// The encoder of the settings. The one that ships is pulled when it is missing; others were pulled, or lie in a folder.
fn checkpoint(context: &Context) -> Result<EncoderCheckpoint, Failure> {
    if context.config.encoder.is_shipped() {
        return weights(context, &WeightSource::defaults(None));
    }
    context.config.encoder.open(&context.home()?).map_err(|error| named::blamed(context, error.into()))
}

/// What the encoder of the settings is known by to what is fitted to it.
pub(super) fn encoder_identity(context: &Context) -> Result<String, Failure> {
    context.config.encoder.identity(&context.home()?).map_err(|error| named::blamed(context, error.into()))
}

/// Shows how a pull comes along.
pub(super) fn show_pull() -> impl Fn(Progress<'_>) {
    let meter: RefCell<Option<(String, Meter)>> = RefCell::new(None);
    move |progress| match progress {
        Progress::Bytes { file, done, total } => {
            let mut meter = meter.borrow_mut();
            let fresh = || (file.to_owned(), Meter::new(file, Unit::Bytes, Some(total)));
            if meter.as_ref().is_some_and(|(name, _)| name != file) {
                *meter = None;
            }
            meter.get_or_insert_with(fresh).1.set(done);
        }
        Progress::Trying { source } => {
            meter.take();
            say!("getting the sentence encoder's weights from the {source}");
        }
        Progress::Failed { source, error } => {
            meter.take();
            tracing::info!(%source, %error, "no weights from this source");
            say!("the {source} does not have them");
        }
        _ => drop(meter.take()),
    }
}

/// The store in a folder, which is made when it is not there.
pub(super) fn store(context: &Context, dir: &Path) -> Result<Store, Failure> {
    let folder = std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()));
    folder.map_err(|error| Failure::from(error).with_hint("choose another folder with --data"))?;
    let options = StoreOptions { block_cache_bytes: context.config.storage.block_cache_bytes };
    Store::open_with(dir, &options).map_err(|error| match error {
        error @ StateError::Locked { .. } => {
            let hint = match Running::at(dir) {
                Some(Running { pid, grpc, tls: true, .. }) => {
                    let port = grpc.port();
                    format!("process {pid} serves it: call that with --endpoint https://HOST:{port}, where HOST is in its certificate")
                }
                Some(Running { pid, grpc, .. }) => format!("process {pid} serves it: call that with --endpoint {grpc}"),
                None => "a store is open in one process at a time: is a server running on it?".to_owned(),
            };
            Failure::from(error).with_hint(hint)
        }
        error @ StateError::Open { .. } => {
            Failure::from(error).with_hint("where it is damaged, turnflow restore puts a backup in its place")
        }
        error => error.into(),
    })
}

/// The parts of a pipeline on a store.
pub(super) fn parts(context: &Context, store: Store) -> Result<Parts, Failure> {
    Parts::open(&context.config, store, &checkpoint(context)?).map_err(|error| named::blamed(context, error))
}

/// An encoder that several pipelines can share, with a memo of so many bytes.
pub(super) fn encoder(context: &Context, memo_bytes_max: usize) -> Result<EncoderHandle, Failure> {
    let config = &context.config.encoder;
    let encoder = Encoder::load(&checkpoint(context)?, config.options(context.config.processor.instructions))?;
    Ok(EncoderEngine::start_remembering(encoder, config, memo_bytes_max)?)
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ImportSummary {
    /// Articles that are there now, those that were there already in the same version included.
    pub(super) articles: usize,
    /// Chunks of the articles that were written.
    pub(super) chunks: usize,
    /// Contents that came or went.
    pub(super) chunks_changed: usize,
    /// Cached answers that it made invalid.
    pub(super) invalidated: usize,
}

/// Imports articles into a running pipeline and shows how far it has come. An article that is there already in the same
/// version with the same content is left alone, so that an import can be repeated.
///
/// # Errors
/// Names the first article that is refused; those before it are written.
pub(super) async fn import(
    knowledge: &Knowledge,
    tenant: &TenantId,
    articles: Vec<ArticleDraft>,
) -> Result<ImportSummary, Failure> {
    let mut meter = Meter::new("importing", Unit::Things("articles"), Some(articles.len() as u64));
    let mut summary = ImportSummary::default();
    for drafts in articles.chunks(IMPORT_BATCH) {
        let receipt = knowledge.write(tenant, drafts.to_vec()).await?;
        for (draft, outcome) in drafts.iter().zip(receipt.outcomes) {
            match outcome {
                Ok(outcome) => {
                    summary.chunks += outcome.chunks;
                    summary.chunks_changed += outcome.chunks_changed;
                }
                Err(DraftError::Refused(WriteRefused::VersionNotNewer { .. }))
                    if is_there(knowledge, tenant, draft).await? => {}
                Err(error) => {
                    return Err(anyhow::Error::from(error)
                        .context(format!("cannot import article {}", draft.id))
                        .into());
                }
            }
            summary.articles += 1;
        }
        summary.invalidated += receipt.invalidated.len();
        meter.set(summary.articles as u64);
    }
    Ok(summary)
}

/// Whether an article is there as it is to be written.
async fn is_there(knowledge: &Knowledge, tenant: &TenantId, draft: &ArticleDraft) -> Result<bool, Failure> {
    let (Some(wanted), Some(found)) = (&draft.content, knowledge.get(tenant, &draft.id).await?) else {
        return Ok(false);
    };
    let DraftContent { title, body, metadata, version } = wanted;
    Ok(*version == Some(found.version) && (title, body, metadata) == (&found.title, &found.body, &found.metadata))
}
