//! `models pull`, `models list` and `models verify`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use turnflow_models::{
    BertConfig, Checkpoint, DecoderConfig, EncoderCheckpoint, Hub, InputType, Installed, MODEL_NAME, ModelError,
    Precision, WeightSource, install, installed,
};

use super::{Context, open};
use crate::cli::PullArgs;
use crate::failure::Failure;

pub(super) fn pull(context: &Context, args: PullArgs) -> Result<(), Failure> {
    if let Some(model) = args.model {
        return pull_checkpoint(context, &model, &args.revision);
    }
    // A path that was named is the only source: falling back to the network would hide that it is wrong.
    let sources = match args.from {
        Some(path) => vec![WeightSource::Path(path)],
        None => WeightSource::defaults(None),
    };
    open::weights(context, &sources)?;
    list(context)
}

fn pull_checkpoint(context: &Context, model: &str, revision: &str) -> Result<(), Failure> {
    let hub = Hub::from_env().map_err(Failure::usage)?;
    let installed = install(&hub, &context.home()?, model, revision, &open::show_pull()).map_err(|error| {
        let hint = match &error {
            ModelError::HubName { .. } => return Failure::usage(error),
            ModelError::Hub { status: 401 | 403 | 404, .. } => {
                "is the name right? A private or gated model needs a token in HF_TOKEN of somebody who may read it"
            }
            ModelError::Download { .. } | ModelError::Hub { .. } => {
                "what has come is kept: the same command goes on from there. HF_ENDPOINT names another hub"
            }
            _ => return Failure::from(error),
        };
        Failure::from(error).with_hint(hint)
    })?;
    // Pulled is not usable: say at once what will not load.
    verify_folder(context, &installed.folder)
}

pub(super) fn list(context: &Context) -> Result<(), Failure> {
    let home = context.home()?;
    let (mut models, mut text) = encoder(context)?;
    for checkpoint in installed(&home)? {
        let Installed { repository, revision, commit, folder, .. } = &checkpoint;
        let sizes = checkpoint.check_sizes();
        let state = match &sizes {
            Ok(()) => "complete, sizes checked".to_owned(),
            Err(error) => format!("damaged: {error}"),
        };
        let megabytes = megabytes(checkpoint.bytes());
        text += &format!("{repository}  {megabytes}  {revision}, commit {commit}  {state}\n  {}\n", folder.display());
        models.push(json!({
            "model": repository,
            "path": folder,
            "bytes": checkpoint.bytes(),
            "intact": sizes.is_ok(),
            "state": state,
            "revision": revision,
            "commit": commit,
        }));
    }
    context.print(&models, text)
}

/// The sentence encoder, whose every byte is checked.
fn encoder(context: &Context) -> Result<(Vec<Value>, String), Failure> {
    let home = context.home()?;
    let dir = home.model_dir();
    let bytes = folder_bytes(&dir);
    let checked = turnflow_models::verify(&home);
    let state = match &checked {
        Ok(_) => "intact, every byte checked".to_owned(),
        Err(_) if bytes == 0 => "not installed".to_owned(),
        Err(error) => format!("damaged: {:#}", anyhow::anyhow!("{error}")),
    };
    let json = json!({
        "model": MODEL_NAME,
        "path": dir,
        "bytes": bytes,
        "intact": checked.is_ok(),
        "state": state,
    });
    let mut text = format!("{MODEL_NAME}  {}  {state}\n  {}\n", megabytes(bytes), dir.display());
    if checked.is_err() {
        text += "  get it with: turnflow models pull\n";
    }
    Ok((vec![json], text))
}

pub(super) fn verify(context: &Context, checkpoint: &str) -> Result<(), Failure> {
    let path = PathBuf::from(checkpoint);
    let home = context.home()?;
    let leads_to =
        |folder: PathBuf| path.canonicalize().is_ok_and(|path| folder.canonicalize().is_ok_and(|at| at == path));
    if checkpoint == MODEL_NAME && !path.exists() || leads_to(home.model_dir()) {
        let encoder = turnflow_models::verify(&home)
            .map_err(|error| Failure::from(error).with_hint("get it with: turnflow models pull"))?;
        let (json, text) = encoder_description(&encoder, "the encoder that ships: every byte checked", None);
        return context.print(&json, text);
    }
    if path.is_dir() {
        return verify_folder(context, &path);
    }
    if path.exists() {
        let error = anyhow::anyhow!("{} is a file, expected the folder of a checkpoint", path.display());
        return Err(Failure::usage(error).with_hint("name the folder that the file is in"));
    }
    match home.checkpoint_dir(checkpoint) {
        // A pull that failed leaves a folder too, with nothing in its place yet.
        Ok(folder) if folder.join("config.json").exists() => verify_folder(context, &folder),
        Ok(_) => Err(Failure::from(ModelError::MissingFile { path })
            .with_hint(format!("get it from the hub with: turnflow models pull {checkpoint}"))),
        Err(_) => Err(ModelError::MissingFile { path }.into()),
    }
}

/// Opens a checkpoint as a tier or the encoder would, looks at every number of its weights, and checks every byte of one that was pulled.
fn verify_folder(context: &Context, folder: &Path) -> Result<(), Failure> {
    let pulled = Installed::read_whole(folder)?;
    if let Some(pulled) = &pulled {
        pulled.verify(&open::show_pull()).map_err(|error| {
            let Installed { repository, revision, .. } = pulled;
            let mend = format!("mend it with: turnflow models pull {repository} --revision {revision}");
            Failure::from(error).with_hint(mend)
        })?;
    }
    let origin = pulled.as_ref().map_or_else(
        || "not pulled by Turnflow: bytes are not checked".to_owned(),
        |pulled| format!("{} {}, commit {}: every byte checked", pulled.repository, pulled.revision, pulled.commit),
    );
    let (json, text) = if EncoderCheckpoint::is_at(folder) {
        let encoder = EncoderCheckpoint::open(folder)?;
        encoder.check_finite()?;
        encoder_description(&encoder, &origin, pulled.as_ref())
    } else {
        let checkpoint = Checkpoint::open(folder)?;
        checkpoint.check_dialect()?;
        checkpoint.weights.check_finite()?;
        description(&checkpoint, &origin, pulled.as_ref())
    };
    context.print(&json, text)
}

fn encoder_description(encoder: &EncoderCheckpoint, origin: &str, pulled: Option<&Installed>) -> (Value, String) {
    let EncoderCheckpoint { folder, config, pooling, tokens_max, prefixes, .. } = encoder;
    let BertConfig { hidden_size, num_hidden_layers, num_attention_heads, vocab_size, .. } = config;
    let stored: Vec<String> = encoder.precisions().iter().map(ToString::to_string).collect();
    let prefix = |input| match prefixes.of(input) {
        "" => "nothing".to_owned(),
        prefix => format!("{prefix:?}"),
    };
    let json = json!({
        "path": folder,
        "loads": true,
        "family": "bert",
        "layers": num_hidden_layers,
        "hidden": hidden_size,
        "heads": num_attention_heads,
        "vocabulary": vocab_size,
        "tokens_max": tokens_max,
        "pooling": pooling.to_string(),
        "query_prefix": prefixes.query,
        "passage_prefix": prefixes.passage,
        "stored_as": stored,
        "stored_bytes": encoder.bytes(),
        "repository": pulled.map(|pulled| &pulled.repository),
        "commit": pulled.map(|pulled| &pulled.commit),
    });
    let text = format!(
        "{path}\n  what      a sentence encoder, bert: {num_hidden_layers} layers, {num_attention_heads} heads, vocabulary {vocab_size}; \
         vectors of {hidden_size} numbers by {pooling} pooling\n  weights   {stored} on disk ({disk})\n  reads     {tokens_max} word \
         pieces at most\n  prefixes  {query} before what asks, {passage} before what answers, as the checkpoint says\n  origin    \
         {origin}\n  it will load\n",
        path = folder.display(),
        stored = stored.join(" and "),
        disk = megabytes(encoder.bytes()),
        query = prefix(InputType::Query),
        passage = prefix(InputType::Passage),
    );
    (json, text)
}

fn description(checkpoint: &Checkpoint, origin: &str, pulled: Option<&Installed>) -> (Value, String) {
    let DecoderConfig { family, layers, hidden, heads, kv_heads, vocabulary, context_max, .. } = &checkpoint.config;
    let memory = |precision| checkpoint.config.memory(precision, precision);
    let (full, half) = (memory(Precision::F32), memory(Precision::F16));
    let parameters = full.weight_bytes / Precision::F32.bytes();
    let stored: Vec<String> = checkpoint.weights.precisions().iter().map(ToString::to_string).collect();
    let has_chat = checkpoint.chat.is_some();
    let json = json!({
        "path": checkpoint.folder,
        "loads": true,
        "family": family.name(),
        "parameters": parameters,
        "layers": layers,
        "hidden": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "vocabulary": vocabulary,
        "context_max": context_max,
        "stored_as": stored,
        "stored_bytes": checkpoint.weights.bytes(),
        "weight_bytes": {"f32": full.weight_bytes, "f16": half.weight_bytes},
        "kv_bytes_per_token": {"f32": full.kv_bytes_per_token, "f16": half.kv_bytes_per_token},
        "chat_template": has_chat,
        "eos": checkpoint.eos(),
        "repository": pulled.map(|pulled| &pulled.repository),
        "commit": pulled.map(|pulled| &pulled.commit),
    });
    let context_bytes = |memory: turnflow_models::Memory| megabytes(memory.kv_bytes_per_token * *context_max as u64);
    let text = format!(
        "{path}\n  what      {family}, {millions:.1} million parameters: {layers} layers, hidden {hidden}, {heads} heads \
         ({kv_heads} for keys and values), vocabulary {vocabulary}\n  weights   {stored} on disk ({disk}); in memory {full} as \
         f32, {half} as f16 or bf16\n  context   {context_max} tokens at most; keys and values of so many take {kv_full} as f32, \
         {kv_half} as f16\n  chat      {chat}\n  origin    {origin}\n  it will load\n",
        path = checkpoint.folder.display(),
        family = family.name(),
        millions = parameters as f64 / 1e6,
        stored = stored.join(" and "),
        disk = megabytes(checkpoint.weights.bytes()),
        full = megabytes(full.weight_bytes),
        half = megabytes(half.weight_bytes),
        kv_full = context_bytes(full),
        kv_half = context_bytes(half),
        chat = if has_chat { "has a template" } else { "has no template: it was not trained on conversations" },
    );
    (json, text)
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
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
