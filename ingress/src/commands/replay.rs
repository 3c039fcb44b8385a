//! `replay`: a log through the pipeline, with results to a file and a report to stdout.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write as _};
use std::path::Path;

use anyhow::Context as _;
use tempfile::TempDir;
use turnflow_pipeline::{ArticleDraft, Knowledge, Parts, Pipeline};
use turnflow_state::{ArticleId, TenantId};

use super::signal::shutdown_signal;
use super::{Context, open};
use crate::cli::ReplayArgs;
use crate::failure::Failure;
use crate::kb_file::read_articles;
use crate::lines::BadLine;
use crate::progress::{Meter, Unit};
use crate::replay::{
    Comparison, ContentVersions, Ending, Gold, LogReader, OnBadLine, Plan, Report, Run, Scheme, Sink, Speed, Stop,
    TurnResult, Updates, run, write_result,
};

/// Turns in flight at full speed, when nobody says.
const IN_FLIGHT_DEFAULT: usize = 64;
/// Skipped lines that are named one by one; the rest is only counted.
const SKIPPED_NAMED_MAX: u64 = 20;
/// Results between two flushes of the results file, at most.
const RESULTS_UNFLUSHED_MAX: u32 = 256;
/// Articles that are listed at once.
const ARTICLES_LISTED: usize = 1_024;
const NO_WAY_BACK: &str = "an article does not go back to an earlier version: with --updates, --data is a fresh folder";

pub(super) fn run_command(context: &Context, args: &ReplayArgs) -> Result<(), Failure> {
    // Every file first: a wrong name must not cost the opening of store and model.
    let log = open_file(&args.log, "log")?;
    let inputs = Inputs::read(context, args)?;
    refuse_overwriting(args)?;
    if args.compare {
        return compare(context, args, &inputs);
    }
    let mut sink = FileSink::create(args)?;
    let (report, stop) = replay_once(context, args, &inputs, log, args.validity, &mut sink)?;
    context.print(&report, &report)?;
    judge(args, stop, &sink)
}

/// Replays the log under one scheme after the other.
fn compare(context: &Context, args: &ReplayArgs, inputs: &Inputs) -> Result<(), Failure> {
    let mut comparison = Comparison::default();
    for scheme in Scheme::COMPARED {
        eprintln!("validity {scheme}:");
        let mut sink = FileSink::create(args)?;
        let log = open_file(&args.log, "log")?;
        let (report, stop) = replay_once(context, args, inputs, log, Some(scheme), &mut sink)?;
        if stop.is_some() {
            return judge(args, stop, &sink);
        }
        comparison.runs.push(Run { validity: scheme, report });
    }
    context.print(&comparison, &comparison)
}

/// What is read before anything runs.
struct Inputs {
    articles: Vec<ArticleDraft>,
    updates: Option<Updates>,
}

impl Inputs {
    fn read(context: &Context, args: &ReplayArgs) -> anyhow::Result<Self> {
        let limits = &context.config.limits;
        let updates = match &args.updates {
            None => None,
            Some(path) => {
                let file = BufReader::new(open_file(path, "list of edits")?);
                let updates = Updates::read(file, &path.display().to_string(), limits)?;
                Some(Updates { probes: !args.no_probes, settle: !args.no_settle, ..updates })
            }
        };
        Ok(Self { articles: read_articles(&args.kb, limits)?, updates })
    }
}

/// Replays the log on a store and a pipeline of its own.
fn replay_once(
    context: &Context,
    args: &ReplayArgs,
    inputs: &Inputs,
    log: File,
    scheme: Option<Scheme>,
    sink: &mut FileSink,
) -> Result<(Report, Option<Stop>), Failure> {
    let mut config = context.config.clone();
    if let Some(scheme) = scheme {
        scheme.configure(&mut config.cache);
    }
    let context = &Context { config, config_file: context.config_file.clone(), json: context.json };
    let temporary = if args.data.is_none() { Some(temporary_folder()?) } else { None };
    let dir = temporary.as_ref().map(TempDir::path).or(args.data.as_deref()).unwrap_or(Path::new("."));
    let parts = open::parts(context, open::store(context, dir)?)?;
    let versions = inputs.updates.as_ref().map(|updates| ContentVersions::of(&updates.edits));
    let versions_told_apart = versions.is_some();
    let name = args.log.display().to_string();
    let log = LogReader::new(BufReader::new(log), &name, &context.config.limits, versions);
    let plan = plan(context, args, &parts);
    let ending = open::runtime()?.block_on(async {
        let pipeline = Pipeline::start(&context.config, &parts)?;
        // The file is the knowledge base of this replay: what an earlier one left beside it must not answer.
        open::import(&pipeline.knowledge(), &args.tenant, inputs.articles.clone()).await?;
        retain(&pipeline.knowledge(), &args.tenant, &inputs.articles).await?;
        replay(&pipeline, log, &plan, inputs.updates.as_ref(), sink).await
    });
    let ending = ending.map_err(|failure: Failure| {
        let may_be_edited = versions_told_apart && args.data.is_some();
        if may_be_edited { failure.with_hint(NO_WAY_BACK) } else { failure }
    })?;
    sink.close()?;
    Ok((Report::of(&ending, versions_told_apart), ending.stop))
}

/// Sends a log through a pipeline, until its end or an interrupt, and shuts the pipeline down.
pub(super) async fn replay<R: BufRead + Send + 'static>(
    pipeline: &Pipeline,
    log: LogReader<R>,
    plan: &Plan,
    updates: Option<&Updates>,
    sink: &mut dyn Sink,
) -> Result<Ending, Failure> {
    let signal = shutdown_signal()?;
    let interrupt = async {
        signal.await;
        eprintln!("stopping: no new turns, finishing those in flight");
    };
    let ending = run(log, pipeline, plan, updates, sink, interrupt).await;
    pipeline.shutdown().await;
    Ok(ending?)
}

/// Deletes the articles that are not among those given.
async fn retain(knowledge: &Knowledge, tenant: &TenantId, articles: &[ArticleDraft]) -> Result<(), Failure> {
    let kept: HashSet<&ArticleId> = articles.iter().map(|article| &article.id).collect();
    let mut after = None;
    loop {
        let page = knowledge.list(tenant, after.as_ref(), ARTICLES_LISTED).await?;
        let Some(last) = page.last() else { return Ok(()) };
        after = Some(last.id.clone());
        let gone = page.into_iter().filter(|article| !kept.contains(&article.id));
        let deletions = gone.map(|article| ArticleDraft { id: article.id, content: None, expected_version: None });
        for outcome in knowledge.write(tenant, deletions.collect()).await?.outcomes {
            outcome.context("cannot delete an article that is not in the knowledge base's file")?;
        }
    }
}

/// A folder for a store that nobody keeps.
pub(super) fn temporary_folder() -> Result<TempDir, Failure> {
    let folder = tempfile::Builder::new().prefix("turnflow-").tempdir().context("cannot make a temporary folder");
    folder.map_err(|error| Failure::from(error).with_hint("name a folder with --data"))
}

fn plan(context: &Context, args: &ReplayArgs, parts: &Parts) -> Plan {
    let limits = &context.config.limits;
    let in_flight_default = match args.speed {
        Speed::Max => IN_FLIGHT_DEFAULT.min(limits.turns_in_flight_max),
        Speed::Times(_) => limits.turns_in_flight_max,
    };
    Plan {
        speed: args.speed,
        on_bad_line: args.on_bad_line,
        in_flight_max: args.in_flight.map_or(in_flight_default, |turns| turns as usize),
        in_flight_per_conversation_max: limits.turns_per_conversation_max,
        tenant: args.tenant.clone(),
        earlier: args.data.is_some().then(|| parts.store.clone()),
    }
}

/// Results that were written over what the replay reads would destroy it.
fn refuse_overwriting(args: &ReplayArgs) -> Result<(), Failure> {
    let Some(out) = args.out.as_deref() else { return Ok(()) };
    let inputs = [Some(args.log.as_path()), Some(args.kb.as_path()), args.updates.as_deref()];
    for input in inputs.into_iter().flatten() {
        if is_same_file(out, input) {
            let error = anyhow::anyhow!("--out {} is {}, which is read", out.display(), input.display());
            return Err(Failure::usage(error).with_hint("name another file for the results"));
        }
    }
    Ok(())
}

/// Whether two names lead to one file; false when one of them leads nowhere.
fn is_same_file(a: &Path, b: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let identity = |path: &Path| path.metadata().map(|found| (found.dev(), found.ino()));
        matches!((identity(a), identity(b)), (Ok(a), Ok(b)) if a == b)
    }
    #[cfg(not(unix))]
    {
        matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
    }
}

fn open_file(path: &Path, what: &str) -> anyhow::Result<File> {
    let file = File::open(path).with_context(|| format!("cannot open the {what} {}", path.display()))?;
    anyhow::ensure!(!file.metadata()?.is_dir(), "the {what} {} is a folder", path.display());
    Ok(file)
}

/// Whether a replay that was reported counts as done.
fn judge(args: &ReplayArgs, stop: Option<Stop>, sink: &FileSink) -> Result<(), Failure> {
    match stop {
        None => Ok(()),
        Some(Stop::BadLine(bad)) => {
            Err(Failure::from(bad).with_hint("--on-bad-line skip passes over lines that are no turns"))
        }
        Some(stop) => {
            let failure = Failure::from(anyhow::anyhow!("stopped after {} turns: {stop}", sink.written));
            // With edits it cannot: see `NO_WAY_BACK`.
            let goes_on = args.updates.is_none();
            Err(if goes_on {
                failure.with_hint("with the same --data, a replay goes on where it was stopped")
            } else {
                failure
            })
        }
    }
}

/// Writes results to a file and shows how far the replay has come.
struct FileSink {
    out: Option<BufWriter<File>>,
    meter: Meter,
    on_bad_line: OnBadLine,
    written: u64,
    unflushed: u32,
    skipped: u64,
}

impl FileSink {
    fn create(args: &ReplayArgs) -> anyhow::Result<Self> {
        let create = |path: &Path| -> anyhow::Result<BufWriter<File>> {
            let file = File::create(path).with_context(|| format!("cannot write results to {}", path.display()))?;
            Ok(BufWriter::new(file))
        };
        Ok(Self {
            out: args.out.as_deref().map(create).transpose()?,
            meter: Meter::new("replaying", Unit::Things("turns"), None),
            on_bad_line: args.on_bad_line,
            written: 0,
            unflushed: 0,
            skipped: 0,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unflushed = 0;
        self.out.as_mut().map_or(Ok(()), BufWriter::flush)
    }

    fn close(&mut self) -> anyhow::Result<()> {
        let more = self.skipped.saturating_sub(SKIPPED_NAMED_MAX);
        if more > 0 {
            self.meter.note(&format!("skipped {more} more lines that are no turns"));
        }
        self.meter.finish();
        self.flush().context("cannot write the results")
    }
}

impl Sink for FileSink {
    fn result(&mut self, result: &TurnResult, _: Option<&Gold>) -> io::Result<()> {
        self.written += 1;
        self.meter.set(self.written);
        if let Some(out) = &mut self.out {
            write_result(out, result)?;
            self.unflushed += 1;
        }
        if self.unflushed >= RESULTS_UNFLUSHED_MAX { self.flush() } else { Ok(()) }
    }

    fn pause(&mut self) -> io::Result<()> {
        self.flush()
    }

    fn bad_line(&mut self, bad: &BadLine) {
        // The line that ends a replay is its error and told as such.
        if self.on_bad_line == OnBadLine::Skip {
            self.skipped += 1;
            if self.skipped <= SKIPPED_NAMED_MAX {
                self.meter.note(&format!("skipped {bad}"));
            }
        }
    }
}
