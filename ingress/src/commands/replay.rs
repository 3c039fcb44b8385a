//! `replay`: a log through the pipeline, with results to a file and a report to stdout or as a page.
//!
//! Under several settings, one replay after the other has a store and a pipeline of its own. They share the encoder and its
//! memory for vectors of texts. A replay before the first, whose results nobody sees, fills that memory: were the first
//! setting to encode for all, its latency would look like the setting's.

mod sink;

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use tempfile::TempDir;
use turnflow_models::EncoderHandle;
use turnflow_pipeline::{ArticleDraft, Config, Knowledge, Parts, Pipeline};
use turnflow_state::{ArticleId, TenantId};

use self::sink::FileSink;
use super::signal::shutdown_signal;
use super::{Context, named, open};
use crate::cli::ReplayArgs;
use crate::failure::Failure;
use crate::kb_file::read_articles;
use crate::replay::{
    Comparison, ContentVersions, Ending, LogReader, Plan, Report, Run, Setting, Settings, Sink, Speed, Stop, Updates,
    WarmUp, page_of, page_of_settings, run,
};
use crate::say::say;

/// Turns in flight at full speed, when nobody says.
const IN_FLIGHT_DEFAULT: usize = 64;
/// Articles that are listed at once.
const ARTICLES_LISTED: usize = 1_024;
const NO_WAY_BACK: &str = "an article does not go back to an earlier version: with --updates, --data is a fresh folder";

pub(super) fn run_command(context: &Context, args: &ReplayArgs) -> Result<(), Failure> {
    let mut config = context.config.clone();
    if let Some(scheme) = args.validity {
        scheme.configure(&mut config.cache);
    }
    // What a replay finds must not depend on how fast this machine is.
    config.load.enabled = false;
    config.queue.turns_max = config.queue.turns_max.max(config.limits.turns_in_flight_max);
    let context = &context.with(config);
    let settings = match &args.sweep {
        Some(sweep) => Some(Settings::swept(&context.config, sweep).map_err(|reason| wrong_sweep(&reason))?),
        None => args.compare.then(|| Settings::schemes(&context.config)),
    };
    // Every file first: a wrong name must not cost the opening of store and model.
    let log = open_file(&args.log, "log")?;
    refuse_overwriting(args)?;
    let inputs = Inputs::read(context, args)?;
    match settings {
        Some(settings) => replay_all(context, args, &inputs, &log, settings),
        None => {
            let mut sink = FileSink::create(args, true)?;
            let (report, stop) = Replay { context, args, inputs: &inputs, encoder: None }.run(&mut sink)?;
            write_page(args, || page_of(&report, &args.log.display().to_string(), &context.config))?;
            context.print(&report, &report)?;
            judge(args, stop, &sink)
        }
    }
}

fn wrong_sweep(reason: &str) -> Failure {
    Failure::usage(anyhow::anyhow!("--sweep {reason}")).with_hint("turnflow check lists all settings with their values")
}

/// Replays the log under one setting after the other; the context's are what they have in common.
fn replay_all(
    context: &Context,
    args: &ReplayArgs,
    inputs: &Inputs,
    log: &File,
    settings: Settings,
) -> Result<(), Failure> {
    if !log.metadata()?.is_file() {
        return Err(Failure::usage(anyhow::anyhow!(
            "{} is read once for each setting, so it has to be a file",
            args.log.display()
        )));
    }
    let Settings { variable, all: settings } = settings;
    let base = &context.config;
    // Who tries settings of the encoder wants to see what it does under each.
    let is_shared =
        base.replay.memo_bytes_max > 0 && settings.iter().all(|setting| setting.config.encoder == base.encoder);
    let encoder = if is_shared { Some(open::encoder(context, base.replay.memo_bytes_max)?) } else { None };
    let mut comparison = Comparison { variable, warm_up: None, runs: Vec::new() };
    if let Some(encoder) = &encoder {
        say!("encoding the texts:");
        let (started, mut sink) = (Instant::now(), FileSink::create(args, true)?);
        let args = &ReplayArgs { speed: Speed::Max, ..args.clone() };
        let (_, stop) =
            Replay { context: &without_caches(context), args, inputs, encoder: Some(encoder) }.run(&mut sink)?;
        if stop.is_some() {
            return judge(args, stop, &sink);
        }
        let seconds = started.elapsed().as_secs_f64();
        comparison.warm_up = Some(WarmUp { texts_encoded: encoder.stats().texts, seconds });
    }
    let texts_encoded = || encoder.as_ref().map_or(0, |encoder| encoder.stats().texts);
    for Setting { name, value, config } in settings {
        say!("{} {name}:", comparison.variable.key);
        let (before, mut sink) = (texts_encoded(), FileSink::create(args, !is_shared && comparison.runs.is_empty())?);
        let replay = Replay { context: &context.with(config), args, inputs, encoder: encoder.as_ref() };
        let (report, stop) = replay.run(&mut sink)?;
        if stop.is_some() {
            return judge(args, stop, &sink);
        }
        let texts_encoded = is_shared.then(|| texts_encoded() - before);
        comparison.runs.push(Run { setting: name, value, texts_encoded, report });
    }
    write_page(args, || page_of_settings(&comparison, &args.log.display().to_string(), base))?;
    context.print(&comparison, &comparison)
}

/// The same settings without caches, so that every question is encoded.
fn without_caches(context: &Context) -> Context {
    let mut config = context.config.clone();
    (config.cache.exact, config.cache.semantic) = (false, false);
    context.with(config)
}

fn write_page(args: &ReplayArgs, page: impl FnOnce() -> String) -> anyhow::Result<()> {
    let Some(path) = &args.report else { return Ok(()) };
    std::fs::write(path, page()).with_context(|| format!("cannot write the report to {}", path.display()))
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

/// One replay of the log.
struct Replay<'a> {
    context: &'a Context,
    args: &'a ReplayArgs,
    inputs: &'a Inputs,
    /// An encoder that is shared with other replays.
    encoder: Option<&'a EncoderHandle>,
}

impl Replay<'_> {
    /// Replays the log on a store and a pipeline of its own.
    fn run(&self, sink: &mut FileSink) -> Result<(Report, Option<Stop>), Failure> {
        let Self { context, args, inputs, .. } = *self;
        let config = &context.config;
        let log = self.log()?;
        let temporary = if args.data.is_none() { Some(temporary_folder()?) } else { None };
        let dir = temporary.as_ref().map(TempDir::path).or(args.data.as_deref()).unwrap_or(Path::new("."));
        let store = open::store(context, dir)?;
        let encoder = self.encoder.cloned().map_or_else(|| open::encoder(context, 0), Ok)?;
        let parts = Parts::with_encoder(config, store, encoder).map_err(|error| named::blamed(context, error))?;
        let plan = plan(config, args, &parts);
        let ending = open::runtime()?.block_on(async {
            let pipeline = Pipeline::start(config, &parts)?;
            // The file is the knowledge base of this replay: what an earlier one left beside it must not answer.
            open::import(&pipeline.knowledge(), &args.tenant, inputs.articles.clone()).await?;
            retain(&pipeline.knowledge(), &args.tenant, &inputs.articles).await?;
            replay(&pipeline, log, &plan, inputs.updates.as_ref(), sink).await
        });
        let ending = ending.map_err(|failure: Failure| {
            let may_be_edited = inputs.updates.is_some() && args.data.is_some();
            if may_be_edited { failure.with_hint(NO_WAY_BACK) } else { failure }
        })?;
        sink.close()?;
        Ok((Report::of(&ending, inputs.updates.is_some()), ending.stop))
    }

    /// The log from its beginning.
    fn log(&self) -> Result<LogReader<BufReader<File>>, Failure> {
        let Self { context, args, inputs, .. } = self;
        let name = args.log.display().to_string();
        let file = BufReader::new(open_file(&args.log, "log")?);
        let versions = inputs.updates.as_ref().map(|updates| ContentVersions::of(&updates.edits));
        let log = LogReader::open(file, &name, args.format, &context.config.limits, versions);
        let log = log.with_context(|| format!("cannot read {name}"))?;
        let needs_times = match args.speed {
            Speed::Times(_) => Some("a --speed on its clock"),
            Speed::Max => inputs.updates.is_some().then_some("--updates on its clock"),
        };
        match needs_times.filter(|_| !log.format().has_times()) {
            None => Ok(log),
            Some(what) => {
                let format = log.format().as_str();
                Err(Failure::usage(anyhow::anyhow!("{name} tells no times ({format}), which {what} needs")))
            }
        }
    }
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
        say!("stopping: no new turns, finishing those in flight");
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

fn plan(config: &Config, args: &ReplayArgs, parts: &Parts) -> Plan {
    let limits = &config.limits;
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
    let inputs = [Some(args.log.as_path()), Some(args.kb.as_path()), args.updates.as_deref()];
    keep_apart("--out", args.out.as_deref(), &inputs)?;
    check_output("--report", args.report.as_deref(), &inputs)
}

/// Whether the output of an option can be written where it is wanted, and over nothing that is read. Nobody wants to hear after
/// an hour that there is no such folder.
pub(super) fn check_output(option: &str, output: Option<&Path>, inputs: &[Option<&Path>]) -> Result<(), Failure> {
    keep_apart(option, output, inputs)?;
    let folder = output.and_then(Path::parent).filter(|folder| !folder.as_os_str().is_empty());
    match folder.filter(|folder| !folder.is_dir()) {
        None => Ok(()),
        Some(folder) => Err(Failure::usage(anyhow::anyhow!("{option}: there is no folder {}", folder.display()))),
    }
}

fn keep_apart(option: &str, output: Option<&Path>, inputs: &[Option<&Path>]) -> Result<(), Failure> {
    let Some(output) = output else { return Ok(()) };
    match inputs.iter().flatten().find(|input| is_same_file(output, input)) {
        None => Ok(()),
        Some(input) => {
            let error = anyhow::anyhow!("{option} {} is {}, which is read", output.display(), input.display());
            Err(Failure::usage(error).with_hint("name another file for the results"))
        }
    }
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

pub(super) fn open_file(path: &Path, what: &str) -> anyhow::Result<File> {
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
            // With edits it cannot: see `NO_WAY_BACK`. Several settings have no folder to go on in.
            let goes_on = args.updates.is_none() && args.sweep.is_none();
            Err(if goes_on {
                failure.with_hint("with the same --data, a replay goes on where it was stopped")
            } else {
                failure
            })
        }
    }
}
