//! `turnflow cache` as clap reads it.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use turnflow_state::ArticleId;

use super::AccessArgs;

/// What to ask the caches.
#[derive(Debug, Subcommand)]
pub enum CacheCommand {
    /// Tell why two texts would or would not share an answer
    Explain(ExplainArgs),
    /// List the cached answers of a running server, those first that were served most often
    List(CacheListArgs),
    /// Show a cached answer of a running server, with all that is known of it
    Show(CacheShowArgs),
    /// Throw cached answers of a running server away; none of them is served any more when this returns
    Flush(CacheFlushArgs),
}

/// Arguments of `cache explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// One question
    #[arg(value_name = "TEXT")]
    pub a: String,

    /// The other
    #[arg(value_name = "TEXT")]
    pub b: String,

    /// The knowledge base that the questions are about
    #[arg(long, value_name = "KB.jsonl")]
    pub kb: Option<PathBuf>,
}

/// Which server to ask; the key says whose answers.
#[derive(Debug, Args)]
pub struct CacheTarget {
    /// Where the server is: HOST:PORT, or https://HOST:PORT [default: the configured address]
    #[arg(long, value_name = "ADDRESS")]
    pub endpoint: Option<String>,

    /// How to call it.
    #[command(flatten)]
    pub access: AccessArgs,
}

/// Arguments of `cache list`.
#[derive(Debug, Args)]
pub struct CacheListArgs {
    /// Only those that rest on this article
    #[arg(long, value_name = "ID", value_parser = article)]
    pub article: Option<ArticleId>,

    /// Only those whose question has these words in it
    #[arg(long, value_name = "WORDS")]
    pub text: Option<String>,

    /// How many, at most
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,

    /// Which server.
    #[command(flatten)]
    pub target: CacheTarget,
}

/// Arguments of `cache show`.
#[derive(Debug, Args)]
pub struct CacheShowArgs {
    /// The entry, as lists and verdicts name it
    pub entry: u64,

    /// Which server.
    #[command(flatten)]
    pub target: CacheTarget,
}

/// Arguments of `cache flush`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("which").required(true).multiple(true).args(["entry", "article", "text", "all"])))]
pub struct CacheFlushArgs {
    /// This entry
    #[arg(long, value_name = "N")]
    pub entry: Option<u64>,

    /// Those that rest on this article
    #[arg(long, value_name = "ID", value_parser = article)]
    pub article: Option<ArticleId>,

    /// Those whose question has these words in it
    #[arg(long, value_name = "WORDS")]
    pub text: Option<String>,

    /// All of the tenant's
    #[arg(long, conflicts_with_all = ["entry", "article", "text"])]
    pub all: bool,

    /// Only say how many there are
    #[arg(long)]
    pub dry_run: bool,

    /// Which server.
    #[command(flatten)]
    pub target: CacheTarget,
}

fn article(text: &str) -> Result<ArticleId, String> {
    ArticleId::new(text).map_err(|error| error.to_string())
}
