//! `backup` and `restore`: a copy of everything that is kept, made by the server if one runs, and put back where none does.

use std::path::{Path, PathBuf};

use serde_json::json;
use tonic::{Code, Status};

use super::{Context, keys, open, reach};
use crate::backup::{BackupError, Backups, restore};
use crate::cli::{BackupArgs, RestoreArgs};
use crate::failure::Failure;
use crate::grpc::proto::admin_client::AdminClient;
use crate::grpc::proto::{BackupRequest, BackupResponse};
use crate::say::say;

pub(super) async fn run(context: &Context, args: BackupArgs) -> Result<(), Failure> {
    let connection = match &args.store.data {
        Some(_) => None,
        None => reach::server(context, args.endpoint.as_ref(), &args.access.into()).await?,
    };
    let made = match connection {
        Some((connection, address)) => {
            say!("asking the server at {address}");
            let mut client = AdminClient::new(connection);
            let name = args.name.map_or_else(String::new, |name| name.as_str().to_owned());
            let made = client.backup(BackupRequest { name }).await;
            made.map_err(|status| refused(&status))?.into_inner()
        }
        None => {
            let dir = context.data_dir(args.store.data.as_ref())?;
            if !dir.join("CURRENT").exists() {
                let error = anyhow::anyhow!("there is no store in {}", dir.display());
                return Err(Failure::from(error).with_hint("name its folder with --data"));
            }
            say!("using the store in {}", dir.display());
            let store = open::store(context, &dir)?;
            let backups = Backups::new(store, keys::files(context, Some(&dir))?, context.backup_folder(&dir));
            let made = backups.make(args.name).map_err(failed)?;
            let files = u32::try_from(made.files).unwrap_or(u32::MAX);
            let (name, path) = (made.name.as_str().to_owned(), made.path.display().to_string());
            BackupResponse { name, path, files, bytes: made.bytes }
        }
    };
    let BackupResponse { name, path, files, bytes } = made;
    let text = format!("backup {name}: {files} files, {bytes} bytes, in {path}\n");
    context.print(&json!({ "name": name, "path": path, "files": files, "bytes": bytes }), text)
}

pub(super) fn run_restore(context: &Context, args: &RestoreArgs) -> Result<(), Failure> {
    let data = context.data_dir(args.store.data.as_ref())?;
    let folder = found(&args.backup, &context.backup_folder(&data));
    let files = keys::files(context, Some(&data))?;
    let restored = restore(&folder, &data, &files, args.replace).map_err(failed)?;
    let mut text = format!("restored {} as it was at {}\n", data.display(), restored.created);
    if let Some(aside) = &restored.replaced {
        text += &format!("what was there is in {} now: delete it when all is well\n", aside.display());
    }
    if restored.took_keys {
        text += "the keys are the backup's; revoke those that were revoked since, and see to it that their pepper is there\n";
    }
    let json = json!({
        "data": data,
        "created": restored.created,
        "replaced": restored.replaced,
        "took_keys": restored.took_keys,
    });
    context.print(&json, text)
}

/// A backup by its path, or by its name among the backups.
fn found(backup: &Path, folder: &Path) -> PathBuf {
    let is_name = backup.components().count() == 1 && !backup.exists();
    if is_name { folder.join(backup) } else { backup.to_owned() }
}

fn refused(status: &Status) -> Failure {
    let failure = reach::refused(status);
    match status.code() {
        Code::AlreadyExists => failure.with_hint("give it another name"),
        Code::FailedPrecondition => failure.with_hint("name a folder in the server's configuration"),
        _ => failure,
    }
}

fn failed(error: BackupError) -> Failure {
    let hint = match &error {
        BackupError::Exists(_) => "--replace puts aside a store that is there; a backup needs another name",
        BackupError::NoBackup { .. } => "name the folder of a backup, or a backup in the folder of backups",
        BackupError::Damaged { .. } => "take another backup, or copy this one again from where it came",
        BackupError::Store(turnflow_state::StateError::Locked { .. }) => "stop the server first",
        _ => return error.into(),
    };
    Failure::from(error).with_hint(hint)
}
