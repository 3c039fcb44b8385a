//! `demo`: a sample shop's customers through the real pipeline, and what came of it in plain words.

use std::io;

use serde_json::json;
use tempfile::TempDir;
use turnflow_pipeline::Pipeline;
use turnflow_state::TenantId;

use super::replay::{replay, temporary_folder};
use super::{Context, open};
use crate::cli::StoreArgs;
use crate::demo::{Examples, story};
use crate::failure::Failure;
use crate::grpc::TENANT_DEFAULT;
use crate::lines::BadLine;
use crate::progress::{Meter, Unit};
use crate::replay::{Gold, OnBadLine, Plan, Report, Sink, Speed, TurnResult};
use crate::sample;
use crate::say::say;

/// Customers that ask at the same moment: few, so that times are those of answering and not of waiting in line.
const IN_FLIGHT: usize = 4;

pub(super) fn run(context: &Context, args: &StoreArgs) -> Result<(), Failure> {
    let limits = &context.config.limits;
    let tenant = TenantId::new(TENANT_DEFAULT)?;
    let temporary = if args.data.is_none() { Some(temporary_folder()?) } else { None };
    let dir = match (&args.data, &temporary) {
        (Some(dir), _) => dir.clone(),
        (None, temporary) => temporary.as_ref().map(TempDir::path).unwrap_or(".".as_ref()).to_owned(),
    };
    let parts = open::parts(context, open::store(context, &dir)?)?;
    let articles = sample::articles(limits)?;
    say!("A sample shop: {} help articles, {} questions of its customers.", articles.len(), sample::log_turns());
    let plan = Plan {
        speed: Speed::Max,
        on_bad_line: OnBadLine::Stop,
        in_flight_max: IN_FLIGHT,
        in_flight_per_conversation_max: limits.turns_per_conversation_max,
        tenant: tenant.clone(),
        earlier: args.data.is_some().then(|| parts.store.clone()),
    };
    let mut sink = DemoSink {
        meter: Meter::new("customers ask", Unit::Things("questions"), Some(sample::log_turns())),
        turns: 0,
        examples: Examples::default(),
    };
    let ending: Result<_, Failure> = open::runtime()?.block_on(async {
        let pipeline = Pipeline::start(&context.config, &parts)?;
        open::import(&pipeline.knowledge(), &tenant, articles).await?;
        replay(&pipeline, sample::log(limits), &plan, None, &mut sink).await
    });
    let ending = ending?;
    sink.meter.finish();
    let report = Report::of(&ending, false);
    let text = story(&report, &sink.examples);
    context.print(&json!({ "report": report, "examples": sink.examples }), text)?;
    match ending.stop {
        None => Ok(()),
        Some(stop) => Err(anyhow::anyhow!("the demo did not come to its end: {stop}").into()),
    }
}

struct DemoSink {
    meter: Meter,
    turns: u64,
    examples: Examples,
}

impl Sink for DemoSink {
    fn result(&mut self, result: &TurnResult, gold: Option<&Gold>) -> io::Result<()> {
        self.turns += 1;
        self.meter.set(self.turns);
        self.examples.consider(result, gold);
        Ok(())
    }

    fn pause(&mut self) -> io::Result<()> {
        Ok(())
    }

    fn bad_line(&mut self, bad: &BadLine) {
        self.meter.note(&format!("skipped {bad}"));
    }
}
