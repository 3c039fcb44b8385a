//! What each command does. A command gets checked arguments and settings, and prints its result to stdout.

mod backup;
mod bench;
mod cache;
mod check;
mod demo;
mod feedback;
mod kb;
mod keys;
mod manual;
mod models;
mod named;
mod open;
mod policy;
mod prepare;
mod probe;
mod reach;
mod replay;
mod router;
mod running;
mod serve;
mod signal;

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use serde::Serialize;
use turnflow_models::{ModelHome, default_home};
use turnflow_pipeline::Config;

use crate::chat;
use crate::cli::{CacheCommand, Cli, Command, ModelsCommand, PolicyCommand, RouterCommand};
use crate::failure::{Failure, written};

/// What every command has in hand.
pub struct Context {
    /// The effective settings.
    pub config: Config,
    /// The file they come from, where one was named.
    pub config_file: Option<PathBuf>,
    /// Print JSON.
    pub json: bool,
}

impl Context {
    /// The same with other settings.
    #[must_use]
    pub fn with(&self, config: Config) -> Self {
        Self { config, config_file: self.config_file.clone(), json: self.json }
    }

    /// Turnflow's own folder.
    ///
    /// # Errors
    /// When the user has no home folder and names none.
    pub fn home(&self) -> Result<ModelHome, Failure> {
        let home = default_home().map_err(Failure::usage)?;
        Ok(ModelHome::new(home))
    }

    /// The store's folder: named by the user, or in Turnflow's own folder.
    ///
    /// # Errors
    /// As [`Context::home`].
    pub fn data_dir(&self, named: Option<&PathBuf>) -> Result<PathBuf, Failure> {
        match named {
            Some(dir) => Ok(dir.clone()),
            None => Ok(self.home()?.root().join("data")),
        }
    }

    /// Where the server is: named by the user, or as configured, and on this machine where it listens on all addresses.
    #[must_use]
    pub fn address(&self, named: Option<String>) -> String {
        let server = &self.config.server;
        let scheme = if server.tls.is_on() { "https://" } else { "" };
        let mut at = server.listen;
        match at.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => at.set_ip(Ipv4Addr::LOCALHOST.into()),
            IpAddr::V6(ip) if ip.is_unspecified() => at.set_ip(Ipv6Addr::LOCALHOST.into()),
            _ => {}
        }
        named.unwrap_or_else(|| format!("{scheme}{at}"))
    }

    /// Where backups of the store in a folder go.
    #[must_use]
    pub fn backup_folder(&self, data: &Path) -> PathBuf {
        let named = &self.config.storage.backup_folder;
        if named.as_os_str().is_empty() { data.with_file_name("backups") } else { named.clone() }
    }

    /// Prints a result: as text, or as one line of JSON.
    ///
    /// # Errors
    /// When stdout is closed.
    pub fn print(&self, json: &impl Serialize, text: impl std::fmt::Display) -> Result<(), Failure> {
        let text = if self.json { serde_json::to_string(json)? + "\n" } else { text.to_string() };
        let mut out = std::io::stdout().lock();
        Ok(written(out.write_all(text.as_bytes()).and_then(|()| out.flush()))?)
    }
}

/// Does what the command line asks for.
///
/// # Errors
/// Why it was not done.
pub fn run(cli: Cli) -> Result<(), Failure> {
    let config = Config::load(cli.config.as_deref()).map_err(Failure::usage)?;
    let context = Context { config, config_file: cli.config, json: cli.json };
    match cli.command {
        Command::Serve(args) => serve::run(&context, &args),
        Command::Demo(args) => demo::run(&context, &args),
        Command::Replay(args) => replay::run_command(&context, &args),
        Command::Kb(command) => open::runtime()?.block_on(kb::run(&context, command)),
        Command::Keys(command) => keys::run(&context, command),
        Command::Cache(CacheCommand::Explain(args)) => policy::run_explain(&context, &args),
        Command::Cache(CacheCommand::List(args)) => open::runtime()?.block_on(cache::list(&context, args)),
        Command::Cache(CacheCommand::Show(args)) => open::runtime()?.block_on(cache::show(&context, args)),
        Command::Cache(CacheCommand::Flush(args)) => open::runtime()?.block_on(cache::flush(&context, args)),
        Command::Policy(PolicyCommand::Fit(args)) => policy::run_fit(&context, &args),
        Command::Policy(PolicyCommand::Eval(args)) => policy::run_eval(&context, &args),
        Command::Router(RouterCommand::Train(args)) => router::run_train(&context, &args),
        Command::Router(RouterCommand::Eval(args)) => router::run_eval(&context, &args),
        Command::Models(ModelsCommand::Pull(args)) => models::pull(&context, args),
        Command::Models(ModelsCommand::List) => models::list(&context),
        Command::Models(ModelsCommand::Verify { checkpoint }) => models::verify(&context, &checkpoint),
        Command::Bench(command) => bench::run(&context, &command),
        Command::Chat(args) => {
            let talk = async {
                let (connection, address) = reach::running(&context, args.endpoint, &args.access.into()).await?;
                Ok(chat::chat((connection, &address), args.conversation).await?)
            };
            open::runtime()?.block_on(talk)
        }
        Command::Feedback(args) => open::runtime()?.block_on(feedback::run(&context, args)),
        Command::Backup(args) => open::runtime()?.block_on(backup::run(&context, args)),
        Command::Restore(args) => backup::run_restore(&context, &args),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man { folder } => manual::man(&folder),
        Command::Check(args) => check::run(&context, &args),
    }
}
