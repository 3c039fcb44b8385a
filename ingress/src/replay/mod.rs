//! Replays a log of customer turns through the pipeline, writes what came back, and reports how well it went.
//!
//! ```text
//! log ─▶ LogReader ─▶ runner: duplicates? ─▶ its time? ─▶ submit ─▶ answers, any order ─▶ in log order ─▶ results, tally
//! ```
//!
//! A log of any length is replayed in bounded memory: turns are read as they are needed, at most so many are in flight,
//! results are written as soon as everything before them is, and of a turn that is written only a ledger entry stays.

pub mod gold;
pub mod ledger;
pub mod log;
pub mod report;
pub mod results;
pub mod runner;
pub mod speed;
pub mod tally;

pub use gold::{Edits, Gold};
pub use log::{LogReader, LogTurn};
pub use report::Report;
pub use results::{TurnResult, write_result};
pub use runner::{Answers, Ending, EventStream, OnBadLine, Plan, Sink, Stop, run};
pub use speed::Speed;
