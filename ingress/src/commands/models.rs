//! `models pull` and `models list`.

use std::path::{Path, PathBuf};

use serde_json::json;
use turnflow_models::{MODEL_NAME, WeightSource, verify};

use super::{Context, open};
use crate::failure::Failure;

pub(super) fn pull(context: &Context, from: Option<PathBuf>) -> Result<(), Failure> {
    // A path that was named is the only source: falling back to the network would hide that it is wrong.
    let sources = match from {
        Some(path) => vec![WeightSource::Path(path)],
        None => WeightSource::defaults(None),
    };
    open::weights(context, &sources)?;
    list(context)
}

pub(super) fn list(context: &Context) -> Result<(), Failure> {
    let home = context.home()?;
    let dir = home.model_dir();
    let bytes = folder_bytes(&dir);
    let checked = verify(&home);
    let state = match &checked {
        Ok(_) => "intact, every byte checked".to_owned(),
        Err(_) if bytes == 0 => "not installed".to_owned(),
        Err(error) => format!("damaged: {:#}", anyhow::anyhow!("{error}")),
    };
    let json = json!([{
        "model": MODEL_NAME,
        "path": dir,
        "bytes": bytes,
        "intact": checked.is_ok(),
        "state": state,
    }]);
    let mut text = format!("{MODEL_NAME}  {:.1} MB  {state}\n  {}\n", bytes as f64 / 1e6, dir.display());
    if checked.is_err() {
        text += "  get it with: turnflow models pull\n";
    }
    context.print(&json, text)
}

/// Bytes of the files in a folder; 0 when there is none.
fn folder_bytes(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .filter(|metadata| metadata.is_file())
        .map(|metadata| metadata.len())
        .sum()
}
