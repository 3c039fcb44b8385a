//! `replay`: a log through the pipeline, with results to a file and a report to stdout.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write as _};
use std::path::Path;

use anyhow::Context as _;
use tempfile::TempDir;
use turnflow_pipeline::{Parts, Pipeline, retain_articles};

use super::signal::shutdown_signal;
use super::{Context, open};
use crate::cli::ReplayArgs;
use crate::failure::Failure;
use crate::kb_file::read_articles;
use crate::lines::BadLine;
use crate::progress::{Meter, Unit};
use crate::replay::{
    Edits, Ending, Gold, LogReader, OnBadLine, Plan, Report, Sink, Speed, Stop, TurnResult, run, write_result,
};

/// Turns in flight at full speed, when nobody says.
const IN_FLIGHT_DEFAULT: usize = 64;
/// Skipped lines that are named one by one; the rest is only counted.
const SKIPPED_NAMED_MAX: u64 = 20;
/// Results between two flushes of the results file, at most.
const RESULTS_UNFLUSHED_MAX: u32 = 256;

pub(super) fn run_command(context: &Context, args: &ReplayArgs) -> Result<(), Failure> {
    // Every file first: a wrong name must not cost the opening of store and model.
    let name = args.log.display().to_string();
    let log = open_file(&args.log, "log")?;
    let edits = args.gold_edits.as_deref().map(read_edits).transpose()?;
    let versions_told_apart = edits.is_some();
    let articles = read_articles(&args.kb, &context.config.limits)?;
    refuse_overwriting(args)?;
    let temporary = if args.data.is_none() { Some(temporary_folder()?) } else { None };
    let dir = temporary.as_ref().map(TempDir::path).or(args.data.as_deref()).unwrap_or(Path::new("."));
    let parts = open::parts(context, open::store(context, dir)?)?;
    // The file is the knowledge base of this replay: what an earlier one left beside it must not answer.
    let kept = articles.iter().map(|article| article.id.clone()).collect();
    open::import(context, &parts, &args.tenant, articles)?;
    retain_articles(&parts, &args.tenant, &kept)?;
    let mut sink = FileSink::create(args)?;
    let reader = LogReader::new(BufReader::new(log), &name, &context.config.limits, edits);
    let ending = replay(context, &parts, reader, &plan(context, args, &parts), &mut sink)?;
    sink.close()?;
    let report = Report::of(&ending, versions_told_apart);
    context.print(&report, &report)?;
    judge(ending.stop, &sink)
}

/// Runs a replay on a pipeline of its own, until its end or an interrupt.
pub(super) fn replay<R: io::BufRead + Send + 'static>(
    context: &Context,
    parts: &Parts,
    reader: LogReader<R>,
    plan: &Plan,
    sink: &mut dyn Sink,
) -> Result<Ending, Failure> {
    open::runtime()?.block_on(async {
        let signal = shutdown_signal()?;
        let interrupt = async {
            signal.await;
            eprintln!("stopping: no new turns, finishing those in flight");
        };
        let pipeline = Pipeline::start(&context.config, parts)?;
        let ending = run(reader, &pipeline, plan, sink, interrupt).await;
        pipeline.shutdown().await;
        Ok(ending?)
    })
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
    let inputs = [Some(args.log.as_path()), Some(args.kb.as_path()), args.gold_edits.as_deref()];
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

fn read_edits(path: &Path) -> anyhow::Result<Edits> {
    Edits::read(BufReader::new(open_file(path, "list of edits")?), &path.display().to_string())
}

/// Whether a replay that was reported counts as done.
fn judge(stop: Option<Stop>, sink: &FileSink) -> Result<(), Failure> {
    match stop {
        None => Ok(()),
        Some(Stop::BadLine(bad)) => {
            Err(Failure::from(bad).with_hint("--on-bad-line skip passes over lines that are no turns"))
        }
        Some(stop) => Err(Failure::from(anyhow::anyhow!("stopped after {} turns: {stop}", sink.written))
            .with_hint("with the same --data, a replay goes on where it was stopped")),
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
