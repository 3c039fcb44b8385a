//! The command line as clap reads it. What a command does is in [`crate::commands`].

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use turnflow_state::TenantId;

use crate::replay::{OnBadLine, Speed};

/// Whose knowledge base and conversations, when nobody says.
pub const TENANT_DEFAULT: &str = "default";

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 64 bad configuration or usage.";

/// Turnflow answers the questions of a shop's customers, most of them without asking a model.
#[derive(Debug, Parser)]
#[command(name = "turnflow", version, after_help = EXIT_CODES, max_term_width = 110)]
pub struct Cli {
    /// Settings in TOML; what it leaves out keeps its default
    #[arg(long, global = true, value_name = "FILE", env = "TURNFLOW_CONFIG")]
    pub config: Option<PathBuf>,

    /// Print results as JSON
    #[arg(long, global = true)]
    pub json: bool,

    /// Log more (twice: everything); TURNFLOW_LOG or RUST_LOG choose in detail
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer conversations over gRPC until told to stop
    Serve(ServeArgs),
    /// Show on a sample shop what Turnflow does, in a minute and without configuration
    Demo(StoreArgs),
    /// Send a log of customer turns through the pipeline and report how well it went
    Replay(ReplayArgs),
    /// Import and search the knowledge base
    #[command(subcommand)]
    Kb(KbCommand),
    /// Get and inspect the models' weights
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Talk to a running server
    Chat(ChatArgs),
    /// Print the effective settings and whether folder, weights and port are usable
    Check(StoreArgs),
}

/// Where the store is.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Folder of the store [default: data in Turnflow's home]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Where the store is.
    #[command(flatten)]
    pub store: StoreArgs,

    /// Address to listen on; port 0 takes a free one [default: as configured]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,

    /// Import the sample shop when the knowledge base is empty
    #[arg(long)]
    pub sample: bool,
}

/// Arguments of `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Where the server is [default: the configured address]
    #[arg(long, value_name = "ADDRESS")]
    pub endpoint: Option<String>,

    /// Take up this conversation instead of beginning a new one
    #[arg(long, value_name = "ID")]
    pub conversation: Option<String>,
}

/// Arguments of `replay`.
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The log: one turn per line, as JSON
    #[arg(value_name = "LOG.jsonl")]
    pub log: PathBuf,

    /// The knowledge base: one article per line, as JSON
    #[arg(long, value_name = "KB.jsonl")]
    pub kb: PathBuf,

    /// Write one result per turn, in the log's order
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// As fast as possible (max), on the log's clock (real), or so many times faster (10x)
    #[arg(long, default_value = "max")]
    pub speed: Speed,

    /// What to do about a line that is no turn
    #[arg(long, value_enum, default_value_t = OnBadLine::Stop)]
    pub on_bad_line: OnBadLine,

    /// Turns in flight at most [default: 64, or the configured limit with a speed other than max]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub in_flight: Option<u32>,

    /// Whose conversations they are
    #[arg(long, default_value = TENANT_DEFAULT, value_parser = tenant)]
    pub tenant: TenantId,

    /// Edits that were made to the knowledge base while the log was recorded: tells scoring which versions of an
    /// article differ in content; not applied
    #[arg(long, value_name = "EDITS.jsonl")]
    pub gold_edits: Option<PathBuf>,

    /// Keep the store here, so that an interrupted replay can go on [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Work on the knowledge base.
#[derive(Debug, Subcommand)]
pub enum KbCommand {
    /// Import articles; an article that is there already is replaced
    Import(KbImportArgs),
    /// Show which parts of which articles a question finds
    Search(KbSearchArgs),
}

/// Arguments of `kb import`.
#[derive(Debug, Args)]
pub struct KbImportArgs {
    /// The articles: one per line, as JSON with id, and title or body or both
    #[arg(value_name = "KB.jsonl")]
    pub file: PathBuf,

    /// Whose knowledge base
    #[arg(long, default_value = TENANT_DEFAULT, value_parser = tenant)]
    pub tenant: TenantId,

    /// Where the store is.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// Arguments of `kb search`.
#[derive(Debug, Args)]
pub struct KbSearchArgs {
    /// What to look for
    pub query: String,

    /// How many results at most
    #[arg(short, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub k: u16,

    /// Whose knowledge base
    #[arg(long, default_value = TENANT_DEFAULT, value_parser = tenant)]
    pub tenant: TenantId,

    /// Where the store is.
    #[command(flatten)]
    pub store: StoreArgs,
}

/// Work on the models' weights.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Get the weights that are missing or damaged
    Pull {
        /// Take them from this folder or zip file instead of the network
        #[arg(long, value_name = "PATH")]
        from: Option<PathBuf>,
    },
    /// Show what is installed, and whether it is intact
    List,
}

fn tenant(text: &str) -> Result<TenantId, String> {
    TenantId::new(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
