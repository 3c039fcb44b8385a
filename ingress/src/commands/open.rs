//! Opens what commands work with: the runtime, the weights, the store, the parts of a pipeline.

use std::cell::RefCell;
use std::path::Path;

use anyhow::Context as _;
use tokio::runtime::Runtime;
use turnflow_models::{ModelFiles, Progress, WeightSource, ensure};
use turnflow_pipeline::{ImportSummary, Parts, import_articles};
use turnflow_state::{Article, Store, StoreOptions, TenantId};

use super::Context;
use crate::failure::Failure;
use crate::progress::{Meter, Unit};

/// The runtime that connections and replays run on.
pub(super) fn runtime() -> Result<Runtime, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("turnflow-io").build();
    Ok(runtime.context("cannot start the I/O threads")?)
}

/// The weights, pulled when they are missing or damaged.
pub(super) fn weights(context: &Context, sources: &[WeightSource]) -> Result<ModelFiles, Failure> {
    let meter: RefCell<Option<(String, Meter)>> = RefCell::new(None);
    let show = |progress: Progress<'_>| match progress {
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
            eprintln!("getting the sentence encoder's weights from the {source}");
        }
        Progress::Failed { source, error } => {
            meter.take();
            tracing::info!(%source, %error, "no weights from this source");
            eprintln!("the {source} does not have them");
        }
        _ => drop(meter.take()),
    };
    ensure(&context.home()?, sources, &show).map_err(|error| {
        Failure::from(error).with_hint(
            "on a machine without network, fetch the files elsewhere and run: turnflow models pull --from FOLDER",
        )
    })
}

/// The store in a folder, which is made when it is not there.
pub(super) fn store(context: &Context, dir: &Path) -> Result<Store, Failure> {
    let folder = std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", dir.display()));
    folder.map_err(|error| Failure::from(error).with_hint("choose another folder with --data"))?;
    let options = StoreOptions { block_cache_bytes: context.config.storage.block_cache_bytes };
    Store::open_with(dir, &options).map_err(|error| {
        Failure::from(error).with_hint("a store is open in one process at a time: is a server running on it?")
    })
}

/// The parts of a pipeline on a store.
pub(super) fn parts(context: &Context, store: Store) -> Result<Parts, Failure> {
    let files = weights(context, &WeightSource::defaults(None))?;
    Ok(Parts::open(&context.config, store, &files)?)
}

/// Imports articles and shows how far it has come.
pub(super) fn import(
    context: &Context,
    parts: &Parts,
    tenant: &TenantId,
    articles: Vec<Article>,
) -> Result<ImportSummary, Failure> {
    let mut meter = Meter::new("importing", Unit::Things("articles"), Some(articles.len() as u64));
    let mut progress = |done: usize| meter.set(done as u64);
    Ok(import_articles(parts, &context.config, tenant, articles, &mut progress)?)
}
