//! Arguments of `backup` and `restore`.

use std::path::PathBuf;

use clap::Args;

use super::{AccessArgs, StoreArgs};
use crate::backup::BackupName;

/// Arguments of `backup`.
#[derive(Debug, Args)]
pub struct BackupArgs {
    /// What it is called [default: the time]
    #[arg(value_name = "NAME")]
    pub name: Option<BackupName>,

    /// Ask the server there [default: the one at the configured address if it runs, else the store is opened]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "data")]
    pub endpoint: Option<String>,

    /// Where the store is.
    #[command(flatten)]
    pub store: StoreArgs,

    /// How to call it.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// The backup: its folder, or its name in the folder of backups
    #[arg(value_name = "BACKUP")]
    pub backup: PathBuf,

    /// Put aside the store that is there, under another name
    #[arg(long)]
    pub replace: bool,

    /// Where the store is.
    #[command(flatten)]
    pub store: StoreArgs,
}
