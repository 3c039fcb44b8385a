//! Puts a pipeline or a server under load and tells what it does with more than it can answer.
//!
//! ```text
//! log ─▶ Texts ─▶ Customers: new, ongoing ─┐
//! trace ─▶ Pattern: when ─────────────────▶ Generator ─▶ Target ─▶ Sample ─▶ Phase: by class, by second ─▶ report, plot
//! ```
//!
//! First the capacity is measured in a closed loop, as far as load does not decide about turns. Then, for each multiple of it, turns arrive on a schedule that waits for
//! nothing, and their times count from when they were due. Between the phases the load falls, which shows how long it
//! takes until things are as before.
//!
//! The generator shares the machine with what it measures, unless that is a server elsewhere: it tells how late it was
//! itself. Figures are kept of every turn of one phase at a time, a few dozen bytes each, which count in the memory of the process.

mod capacity;
mod customers;
mod generator;
mod phase;
mod plot;
mod report;
mod run;
mod sample;
mod schedule;
mod seconds;
mod summary;
mod target;
mod texts;
mod verdict;

pub use capacity::Step;
pub use customers::Customers;
pub use generator::OUTSTANDING_MAX;
pub use phase::{GeneratorFigures, Phase};
pub use plot::plot;
pub use report::{Capacity, LoadReport};
pub use run::{Plan, run};
pub use sample::{Class, Outcome, Sample, Writer};
pub use schedule::{Part, Pattern, Trace};
pub use seconds::{Recovery, Second, Slice, recovery};
pub use summary::{Batches, ClassFigures, Quantiles};
pub use target::{Connections, END_WAIT_MAX, Target};
pub use texts::{Texts, arrival_times};
pub use verdict::{Verdict, verdicts};
