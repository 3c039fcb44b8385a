//! Replays a log of customer turns through the pipeline, writes what came back, and reports how well it went.
//!
//! ```text
//! log ─▶ LogReader ─▶ runner: duplicates? ─▶ its time? ─▶ submit ─▶ answers, any order ─▶ in log order ─▶ results, tally
//! edits ─▶ Updates ──────────────────────────▶ its time? ─▶ editor: write, acknowledged ─▶ probes ─▶ changes
//! ```
//!
//! A log of any length is replayed in bounded memory: turns are read as they are needed, at most so many are in flight,
//! results are written as soon as everything before them is, and of a turn that is written only a ledger entry stays.

pub mod answers;
pub mod audit_report;
pub mod change_report;
pub mod changes;
pub mod comparison;
mod editor;
pub mod gold;
pub mod grid;
pub mod ledger;
pub mod log;
pub mod page;
pub mod report;
pub mod results;
pub mod runner;
pub mod scheme;
pub mod scores;
pub mod speed;
pub mod sweep;
pub mod tally;
pub mod timeline;
pub mod updates;

pub use answers::{Answers, EventStream};
pub use comparison::{Comparison, Run, WarmUp};
pub use gold::{ContentVersions, Gold};
pub use log::{Format, LogReader, LogTurn};
pub use page::{page_of, page_of_settings};
pub use report::Report;
pub use results::{TurnResult, write_result};
pub use runner::{Ending, OnBadLine, Plan, Sink, Stop, run};
pub use scheme::Scheme;
pub use speed::Speed;
pub use sweep::{Setting, Settings, Sweep};
pub use updates::{Edit, Updates};
