//! Tells how far something long has come: a bar on a terminal, a line now and then elsewhere. Always on stderr.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::say::say;

/// Without a terminal, a line is printed each time another such share is done.
const LINE_EVERY_PERCENT: u64 = 25;
const REDRAW_INTERVAL: Duration = Duration::from_millis(200);

/// What is being counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes, shown in megabytes.
    Bytes,
    /// Things of this name, in the plural.
    Things(&'static str),
}

/// How far something has come.
pub struct Meter {
    label: String,
    unit: Unit,
    total: Option<u64>,
    bar: Option<ProgressBar>,
    percent_told: u64,
}

impl Meter {
    /// Nothing done yet of `total`, or of an unknown number of things.
    pub fn new(label: impl Into<String>, unit: Unit, total: Option<u64>) -> Self {
        let label = label.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(10));
            bar.set_style(style(unit, total.is_some()));
            bar.set_message(label.clone());
            bar.enable_steady_tick(REDRAW_INTERVAL);
            bar
        });
        Self { label, unit, total, bar, percent_told: 0 }
    }

    /// So much is done.
    pub fn set(&mut self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        } else if let Some(total) = self.total.filter(|&total| total > 0) {
            let percent = done.min(total) * 100 / total / LINE_EVERY_PERCENT * LINE_EVERY_PERCENT;
            if percent > self.percent_told {
                self.percent_told = percent;
                say!("{}: {percent} % of {}", self.label, amount(self.unit, total));
            }
        }
    }

    /// Prints a line without tearing the bar.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| say!("{text}")),
            None => say!("{text}"),
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.finish();
    }
}

fn amount(unit: Unit, number: u64) -> String {
    match unit {
        Unit::Bytes => format!("{:.1} MB", number as f64 / 1e6),
        Unit::Things(name) => format!("{number} {name}"),
    }
}

fn style(unit: Unit, total_known: bool) -> ProgressStyle {
    let template = match (unit, total_known) {
        (Unit::Bytes, _) => "{msg} {wide_bar} {bytes}/{total_bytes} {eta}",
        (Unit::Things(_), true) => "{msg} {wide_bar} {pos}/{len} {eta}",
        (Unit::Things(_), false) => "{msg} {spinner} {pos} {per_sec}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
