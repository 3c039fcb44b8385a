//! The arguments of `bench`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::AccessArgs;

/// Largest number of seconds, of turns per second, and of their multiples.
const NUMBER_MAX: f64 = 1e6;

/// What is measured.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// How fast the configured language model writes: many requests together, one at a time, and with a shared beginning
    Generate(BenchGenerateArgs),
    /// What becomes of turns when more arrive than can be answered: goodput, times from when they were due, refusals, recovery
    Load(Box<BenchLoadArgs>),
}

/// Arguments of `bench generate`.
#[derive(Debug, Args)]
pub struct BenchGenerateArgs {
    /// The checkpoint's folder [default: tier.burn.model]
    #[arg(long, value_name = "DIR")]
    pub model: Option<PathBuf>,

    /// Requests that come together
    #[arg(long, default_value_t = 32)]
    pub requests: usize,

    /// Longest prompt, in tokens; the shortest has an eighth of it
    #[arg(long, default_value_t = 256)]
    pub prompt_tokens_max: usize,

    /// Longest answer, in tokens; the shortest has an eighth of it
    #[arg(long, default_value_t = 128)]
    pub answer_tokens_max: usize,

    /// Tokens that prompts begin with alike, for the time to the first token
    #[arg(long, default_value_t = 1000)]
    pub prefix_tokens: usize,
}

/// Arguments of `bench load`.
#[derive(Debug, Args)]
pub struct BenchLoadArgs {
    /// What customers say: a log in any of the formats that a replay reads
    #[arg(value_name = "LOG")]
    pub log: PathBuf,

    /// The knowledge base: one article per line, as JSON [default: the sample shop]
    #[arg(long, value_name = "KB.jsonl", conflicts_with = "server")]
    pub kb: Option<PathBuf>,

    /// Arrivals in the gaps of this log, scaled to the load [default: a Poisson process]
    #[arg(long, value_name = "TRACE")]
    pub arrivals: Option<PathBuf>,

    /// The loads, as multiples of the capacity
    #[arg(long, value_name = "FACTORS", value_delimiter = ',', default_value = "0.5,1,2,5,10", value_parser = positive)]
    pub multiples: Vec<f64>,

    /// How long each load takes, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = positive)]
    pub seconds: f64,

    /// How long the load is low after each, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "15", value_parser = positive)]
    pub recover_seconds: f64,

    /// Turns per second at a multiple of 1 [default: measured]
    #[arg(long, value_name = "TURNS", value_parser = positive)]
    pub capacity: Option<f64>,

    /// Share of the turns that go on with a conversation that had an answer
    #[arg(long, value_name = "SHARE", default_value = "0.5", value_parser = share)]
    pub ongoing_share: f64,

    /// What the caches may do
    #[arg(long, value_enum, default_value_t = CacheArg::Bypass)]
    pub cache: CacheArg,

    /// Answers that take longer are late, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2_000)]
    pub slo_ms: u64,

    /// Run all of it a second time with queues in this order, in a pipeline of its own, side by side
    #[arg(long, value_enum, value_name = "ORDER", conflicts_with = "server")]
    pub compare_order: Option<OrderArg>,

    /// Ask a running server [default: a pipeline in this process]
    #[arg(long, value_name = "ADDRESS")]
    pub server: Option<String>,

    /// How to call it.
    #[command(flatten)]
    pub access: AccessArgs,

    /// Draw goodput and times, second by second
    #[arg(long, value_name = "FILE.svg")]
    pub report: Option<PathBuf>,
}

/// In which order queues are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OrderArg {
    /// Whoever is in a conversation first, tenants in turn
    Priority,
    /// First come, first served
    Fifo,
}

/// What the caches may do for the turns of a measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheArg {
    /// Nothing: every turn is answered by a tier
    Bypass,
    /// Answer what was answered before
    Default,
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|&number: &f64| number > 0.0 && number <= NUMBER_MAX);
    number.ok_or_else(|| format!("expected a number above 0, and {NUMBER_MAX} at most"))
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "expected a number from 0 to 1".to_owned())
}
