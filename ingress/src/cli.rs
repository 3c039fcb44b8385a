//! The command line as clap reads it. What a command does is in [`crate::commands`].

mod backup;
mod bench;
mod cache;
mod keys;
mod router;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use turnflow_state::TenantId;

pub use self::backup::{BackupArgs, RestoreArgs};
pub use self::bench::{BenchCommand, BenchGenerateArgs, BenchLoadArgs, CacheArg, OrderArg};
pub use self::cache::{CacheCommand, CacheFlushArgs, CacheListArgs, CacheShowArgs, CacheTarget, ExplainArgs};
pub use self::keys::{
    AccessArgs, AccessOptions, KeyText, KeysCommand, KeysCreateArgs, KeysRevokeArgs, KeysRotateArgs, When,
};
pub use self::router::{JudgedTurnArgs, RouterCommand, RouterEvalArgs, RouterTrainArgs};
use crate::grpc::TENANT_DEFAULT;
use crate::replay::{Format, OnBadLine, Scheme, Speed, Sweep};

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 64 bad configuration or usage, 141 nobody reads the output.";

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

    /// How the log is written
    #[arg(long, global = true, value_name = "FORMAT", env = "TURNFLOW_LOG_FORMAT", default_value = "pretty")]
    pub log_format: LogFormat,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// As text, for people.
    Pretty,
    /// As an object for each line, for programs.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Answer conversations over gRPC and HTTP until told to stop
    Serve(ServeArgs),
    /// Show on a sample shop what Turnflow does, in a minute and without configuration
    Demo(StoreArgs),
    /// Send a log of customer turns through the pipeline and report how well it went
    Replay(ReplayArgs),
    /// Read and write the knowledge base, of a running server or in its store
    #[command(subcommand)]
    Kb(KbCommand),
    /// Make and revoke the keys that callers need
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Look at the caches and flush them
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Fit and judge what decides whether one answer serves two questions
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Fit and judge what decides whether a small model suffices for a turn
    #[command(subcommand)]
    Router(RouterCommand),
    /// Get and inspect the models' weights
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Measure what this machine can do
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Talk to a running server
    Chat(ChatArgs),
    /// Tell a running server whether the answer to a turn was right
    Feedback(FeedbackArgs),
    /// Copy everything that is kept, of a running server or of its store, to where it can be restored from
    Backup(BackupArgs),
    /// Put a backup in the place of a store
    Restore(RestoreArgs),
    /// Print what a shell needs to complete turnflow's commands
    Completions {
        /// Which shell
        #[arg(value_enum)]
        shell: Shell,
    },
    /// Write the manual pages, one for each command
    Man {
        /// Folder to write them to
        #[arg(value_name = "DIR")]
        folder: PathBuf,
    },
    /// Print the effective settings and whether folder, weights and port are usable
    Check(CheckArgs),
}

/// Where the store is.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// Folder of the store [default: data in Turnflow's home]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Where the store is.
    #[command(flatten)]
    pub store: StoreArgs,

    /// Look at settings and at the files that they name, and not at this machine: no store, weights, ports or variables
    #[arg(long)]
    pub settings_only: bool,
}

/// Where to listen for HTTP, if at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HttpArg {
    /// On no port.
    Off,
    /// Here.
    At(SocketAddr),
}

impl std::str::FromStr for HttpArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            address => address.parse().map(Self::At).map_err(|_| "expected IP:PORT, or off".to_owned()),
        }
    }
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

    /// Address to listen on for HTTP; port 0 takes a free one, "off" listens on none [default: as configured]
    #[arg(long, value_name = "ADDRESS")]
    pub http: Option<HttpArg>,

    /// Import the sample shop when the knowledge base is empty
    #[arg(long)]
    pub sample: bool,
}

/// Arguments of `chat`.
#[derive(Debug, Args)]
pub struct ChatArgs {
    /// Where the server is: HOST:PORT, or https://HOST:PORT [default: the configured address]
    #[arg(long, value_name = "ADDRESS")]
    pub endpoint: Option<String>,

    /// Take up this conversation instead of beginning a new one
    #[arg(long, value_name = "ID")]
    pub conversation: Option<String>,

    /// How to call it.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `feedback`.
#[derive(Debug, Args)]
pub struct FeedbackArgs {
    /// The conversation
    #[arg(value_name = "CONVERSATION")]
    pub conversation: String,

    /// The turn
    #[arg(value_name = "TURN")]
    pub turn: String,

    /// Whether its answer was right
    #[arg(value_enum)]
    pub judgement: JudgementArg,

    /// Where the server is: HOST:PORT, or https://HOST:PORT [default: the configured address]
    #[arg(long, value_name = "ADDRESS")]
    pub endpoint: Option<String>,

    /// How to call it.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Whether an answer was right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum JudgementArg {
    /// It answered the question.
    Good,
    /// It answered another question, or wrongly.
    Wrong,
}

/// Arguments of `replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// The log: one turn per line, as JSON, or in one of the other formats
    #[arg(value_name = "LOG")]
    pub log: PathBuf,

    /// How the log is written
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    pub format: Format,

    /// The knowledge base: one article per line, as JSON
    #[arg(long, value_name = "KB.jsonl")]
    pub kb: PathBuf,

    /// Write one result per turn, in the log's order
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Write what was found as a page with charts, which needs no other file and no network
    #[arg(long, value_name = "FILE.html")]
    pub report: Option<PathBuf>,

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

    /// Edits that were made to the knowledge base while the log was recorded, one per line, as JSON: made again on the
    /// log's clock
    #[arg(long, value_name = "EDITS.jsonl")]
    pub updates: Option<PathBuf>,

    /// Do not ask the questions that an edit brings along to try its effect
    #[arg(long, requires = "updates")]
    pub no_probes: bool,

    /// At full speed, go on as soon as an edit is acknowledged, instead of when what it took out of the caches is answered
    /// anew, for which there would be time on the log's clock
    #[arg(long, requires = "updates")]
    pub no_settle: bool,

    /// What keeps cached answers in step with the knowledge base: exact, none, or a time to live such as ttl=60s, ttl=10m
    /// or ttl=1h [default: as configured]
    #[arg(long, value_name = "VALIDITY")]
    pub validity: Option<Scheme>,

    /// Replay under exact, ttl=60s, ttl=600s and none, one after the other, and compare
    #[arg(long, requires = "updates", conflicts_with_all = ["data", "out", "validity"])]
    pub compare: bool,

    /// Replay under several values of one number of the configuration, and compare: FIRST..LAST/POINTS for a range (of 6
    /// points, unless said otherwise), or a list with commas
    #[arg(long, value_name = "KEY=VALUES", conflicts_with_all = ["data", "out", "compare"])]
    pub sweep: Option<Sweep>,

    /// Keep the store here, so that an interrupted replay can go on [default: a temporary folder]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// Work on the knowledge base.
#[derive(Debug, Subcommand)]
pub enum KbCommand {
    /// Write the articles of files and folders
    Import(KbImportArgs),
    /// Write an article in place of all that it was
    Upsert(KbUpsertArgs),
    /// Delete an article
    Delete(KbDeleteArgs),
    /// Show an article, as a Markdown file
    Get(KbGetArgs),
    /// List the articles
    List(KbListArgs),
    /// Show which parts of which articles a question finds
    Search(KbSearchArgs),
    /// Tell of every change of a running server's knowledge base
    Watch(KbWatchArgs),
}

/// Which knowledge base.
#[derive(Debug, Args)]
pub struct KbTarget {
    /// Ask the server there [default: the one at the configured address if it runs, else the store is opened]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "data")]
    pub endpoint: Option<String>,

    /// Open the store in this folder, and ask no server
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Whose knowledge base, in a store; of a server it is that of the key's tenant
    #[arg(long, default_value = TENANT_DEFAULT, value_parser = tenant)]
    pub tenant: TenantId,

    /// How to call it.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// What to do about an item that is no article, or is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnBadItem {
    /// Name it and go on.
    Skip,
    /// Name it and stop.
    Stop,
}

/// Arguments of `kb import`.
#[derive(Debug, Args)]
pub struct KbImportArgs {
    /// JSONL files with an article per line, and folders of Markdown files with an article each, where links that lead out of them are not followed
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,

    /// What to do about an item that is no article or is refused
    #[arg(long, value_enum, default_value_t = OnBadItem::Skip)]
    pub on_bad_item: OnBadItem,

    /// Delete the articles that are not in the import
    #[arg(long)]
    pub delete_missing: bool,

    /// Change nothing, and tell which cached answers would become invalid
    #[arg(long)]
    pub dry_run: bool,

    /// Which knowledge base.
    #[command(flatten)]
    pub target: KbTarget,
}

/// Arguments of `kb upsert`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("text").required(true).args(["body", "body_file"])))]
pub struct KbUpsertArgs {
    /// The article
    pub id: String,

    /// A short heading
    #[arg(long, value_name = "TEXT")]
    pub title: String,

    /// The text that answers are taken from
    #[arg(long, value_name = "TEXT")]
    pub body: Option<String>,

    /// The same from a file, or from standard input (-)
    #[arg(long, value_name = "FILE")]
    pub body_file: Option<PathBuf>,

    /// A note to keep with it; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = note)]
    pub meta: Vec<(String, String)>,

    /// The version it gets [default: the next]
    #[arg(long, value_name = "N")]
    pub version: Option<u64>,

    /// Write only if this is its version now; 0 if it must not exist
    #[arg(long, value_name = "N")]
    pub expect: Option<u64>,

    /// Change nothing, and tell which cached answers would become invalid
    #[arg(long)]
    pub dry_run: bool,

    /// Which knowledge base.
    #[command(flatten)]
    pub target: KbTarget,
}

/// Arguments of `kb delete`.
#[derive(Debug, Args)]
pub struct KbDeleteArgs {
    /// The article
    pub id: String,

    /// Delete only if this is its version now
    #[arg(long, value_name = "N")]
    pub expect: Option<u64>,

    /// Change nothing, and tell which cached answers would become invalid
    #[arg(long)]
    pub dry_run: bool,

    /// Which knowledge base.
    #[command(flatten)]
    pub target: KbTarget,
}

/// Arguments of `kb get`.
#[derive(Debug, Args)]
pub struct KbGetArgs {
    /// The article
    pub id: String,

    /// Which knowledge base.
    #[command(flatten)]
    pub target: KbTarget,
}

/// Arguments of `kb list`.
#[derive(Debug, Args)]
pub struct KbListArgs {
    /// Only articles whose id begins like this
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub prefix: String,

    /// How many articles at most
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,

    /// With the bodies: as JSON, what can be imported again
    #[arg(long)]
    pub with_body: bool,

    /// Which knowledge base.
    #[command(flatten)]
    pub target: KbTarget,
}

/// Arguments of `kb search`.
#[derive(Debug, Args)]
pub struct KbSearchArgs {
    /// What to look for
    pub query: String,

    /// How many results at most
    #[arg(short, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub k: u32,

    /// Which knowledge base.
    #[command(flatten)]
    pub target: KbTarget,
}

/// Arguments of `kb watch`.
#[derive(Debug, Args)]
pub struct KbWatchArgs {
    /// Where the server is: HOST:PORT, or https://HOST:PORT [default: the configured address]
    #[arg(long, value_name = "ADDRESS")]
    pub endpoint: Option<String>,

    /// How to call it.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Work on the models' weights.
#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// Get the encoder's weights, if they are missing or damaged, or a decoder from the Hugging Face hub
    Pull(PullArgs),
    /// Show what is installed, and whether it is intact
    List,
    /// Tell what a decoder's checkpoint is, whether it will load, and how much memory it needs
    Verify {
        /// Its folder, or the name of one that was pulled
        #[arg(value_name = "PATH|ORG/NAME")]
        checkpoint: String,
    },
}

/// Arguments of `models pull`.
#[derive(Debug, Args)]
pub struct PullArgs {
    /// A decoder on the hub; HF_TOKEN and HF_ENDPOINT are honoured [default: the sentence encoder]
    #[arg(value_name = "ORG/NAME")]
    pub model: Option<String>,

    /// Its branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = "main", requires = "model")]
    pub revision: String,

    /// Take the encoder's weights from this folder or zip file instead of the network
    #[arg(long, value_name = "PATH", conflicts_with = "model")]
    pub from: Option<PathBuf>,
}

/// What to do with the hit policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Fit a verifier to labelled questions and calibrate it
    Fit(PolicyFitArgs),
    /// Say how good a verifier is on labelled pairs of questions
    Eval(PolicyEvalArgs),
}

/// What a verifier is fitted to, or judged on.
#[derive(Debug, Args)]
pub struct ExampleArgs {
    /// Labelled questions, turns and pairs: JSON lines
    #[arg(value_name = "DATA.jsonl", required = true)]
    pub data: Vec<PathBuf>,

    /// The knowledge base that the questions are about: says which of them are clearly about the same article
    #[arg(long, value_name = "KB.jsonl")]
    pub kb: Option<PathBuf>,

    /// Take only rows of this source; may be given more than once
    #[arg(long, value_name = "NAME")]
    pub source: Vec<String>,
}

/// Arguments of `policy fit`.
#[derive(Debug, Args)]
pub struct PolicyFitArgs {
    /// What it is fitted to.
    #[command(flatten)]
    pub examples: ExampleArgs,

    /// Where to write it; a configuration names it in policy.verifier
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Leave out this share of the labels, to see how much is lost on labels never seen
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub held_out_labels: f64,

    /// Decides splits, draws and first weights
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// Arguments of `policy eval`.
#[derive(Debug, Args)]
pub struct PolicyEvalArgs {
    /// What it is judged on: the pairs.
    #[command(flatten)]
    pub examples: ExampleArgs,

    /// The verifier [default: the one that ships]
    #[arg(long, value_name = "FILE")]
    pub verifier: Option<PathBuf>,

    /// Draw a reliability diagram
    #[arg(long, value_name = "FILE.svg")]
    pub report: Option<PathBuf>,
}

fn note(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("not NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
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
