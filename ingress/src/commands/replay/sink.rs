//! Where the results of a replay go: to a file, while a meter shows how far it has come.

use std::fs::File;
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use anyhow::Context as _;

use crate::cli::ReplayArgs;
use crate::lines::BadLine;
use crate::progress::{Meter, Unit};
use crate::replay::{Gold, OnBadLine, Sink, TurnResult, write_result};

/// Skipped lines that are named one by one; the rest is only counted.
const SKIPPED_NAMED_MAX: u64 = 20;
/// Results between two flushes of the results file, at most.
const RESULTS_UNFLUSHED_MAX: u32 = 256;

/// Writes results to a file and shows how far the replay has come.
pub(super) struct FileSink {
    out: Option<BufWriter<File>>,
    meter: Meter,
    on_bad_line: OnBadLine,
    names_skipped: bool,
    /// Results so far.
    pub(super) written: u64,
    unflushed: u32,
    skipped: u64,
}

impl FileSink {
    /// Makes the results file, if one is wanted. `names_skipped` says whether lines that are passed over are named.
    pub(super) fn create(args: &ReplayArgs, names_skipped: bool) -> anyhow::Result<Self> {
        let create = |path: &Path| -> anyhow::Result<BufWriter<File>> {
            let file = File::create(path).with_context(|| format!("cannot write results to {}", path.display()))?;
            Ok(BufWriter::new(file))
        };
        Ok(Self {
            out: args.out.as_deref().map(create).transpose()?,
            meter: Meter::new("replaying", Unit::Things("turns"), None),
            on_bad_line: args.on_bad_line,
            names_skipped,
            written: 0,
            unflushed: 0,
            skipped: 0,
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.unflushed = 0;
        self.out.as_mut().map_or(Ok(()), BufWriter::flush)
    }

    /// Ends the meter and writes what is left.
    pub(super) fn close(&mut self) -> anyhow::Result<()> {
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
        if self.on_bad_line == OnBadLine::Skip && self.names_skipped {
            self.skipped += 1;
            if self.skipped <= SKIPPED_NAMED_MAX {
                self.meter.note(&format!("skipped {bad}"));
            }
        }
    }
}
