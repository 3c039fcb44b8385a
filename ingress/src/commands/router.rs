//! `router train` and `router eval`: make a router from turns of which two tiers' answers were judged, and say how good one is.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use turnflow_models::{CurvePoint, Router, RouterExample, RouterFitOptions, RouterFitReport, fit_router};

use super::prepare::{Text, prepare};
use super::replay::check_output;
use super::{Context, open};
use crate::cli::{JudgedTurnArgs, RouterEvalArgs, RouterTrainArgs};
use crate::examples::routing::{JudgedTurn, read_judged_turns};
use crate::failure::Failure;
use crate::router_report::Routed;
use crate::say::say;

/// A line is printed for the first of so many passes.
const PASSES_PER_LINE: usize = 10;

pub(super) fn run_train(context: &Context, args: &RouterTrainArgs) -> Result<(), Failure> {
    let read_from: Vec<_> = args.turns.data.iter().chain(&args.turns.kb).map(|path| Some(path.as_path())).collect();
    check_output("--out", Some(&args.out), &read_from)?;
    let (turns, examples) = read(context, &args.turns)?;
    let options = RouterFitOptions { held_out: args.held_out, seed: args.seed, ..RouterFitOptions::default() };
    let encoder = open::encoder_identity(context)?;
    let (router, report) = fit_router(
        &examples,
        &options,
        encoder,
        &mut |weight_decay, pass, loss, validation_loss| {
            if pass % PASSES_PER_LINE == 0 {
                say!(
                    "weight decay {weight_decay}: pass {pass}, loss {loss:.4}, {validation_loss:.4} on turns that validate"
                );
            }
        },
    )?;
    router.save(&args.out)?;
    let held_out = report.held_out.iter().map(|&at| (turns[at].source.as_str(), examples[at].clone()));
    let outcome = Trained::of(&router, &report, &args.out, Routed::by_source(&router, held_out));
    context.print(&outcome, &outcome)
}

pub(super) fn run_eval(context: &Context, args: &RouterEvalArgs) -> Result<(), Failure> {
    let (name, router) = match &args.router {
        // As routing.router names them.
        None => ("the router that ships".to_owned(), Router::shop()),
        Some(path) if path == Path::new("shop") => ("the router that ships".to_owned(), Router::shop()),
        Some(path) => (path.display().to_string(), Router::load(path)?),
    };
    let encoder = open::encoder_identity(context)?;
    if router.encoder() != encoder {
        let error = anyhow::anyhow!(
            "{name} was fitted with the encoder {}, and the configured one is {encoder}",
            router.encoder()
        );
        return Err(Failure::usage(error).with_hint("set encoder.adapter as it was, or fit a router with this encoder"));
    }
    let (turns, examples) = read(context, &args.turns)?;
    let turns = turns.iter().map(|turn| turn.source.as_str()).zip(examples);
    let outcome = Evaluation { sources: Routed::by_source(&router, turns) };
    context.print(&outcome, &outcome)
}

/// Reads turns and prepares them.
fn read(context: &Context, args: &JudgedTurnArgs) -> Result<(Vec<JudgedTurn>, Vec<RouterExample>), Failure> {
    let turns = read_judged_turns(&args.data, &args.source)?;
    if turns.is_empty() {
        return Err(Failure::usage(anyhow::anyhow!("no turns in the files that were named"))
            .with_hint("is --source the name of a source of theirs?"));
    }
    let texts: Vec<String> = turns.iter().map(|turn| turn.text.clone()).collect();
    let prepared = prepare(context, &texts, args.kb.as_ref())?;
    let example = |(turn, prepared): (&JudgedTurn, Text)| RouterExample {
        text: turn.text.clone(),
        vector: prepared.vector,
        retrieval: prepared.retrieval.filter(|_| turn.is_of_shop),
        turns_before: turn.turns_before,
        small_correct: turn.small_correct,
        large_correct: turn.large_correct,
    };
    let examples = turns.iter().zip(prepared).map(example).collect();
    Ok((turns, examples))
}

/// What training came to.
#[derive(Serialize)]
struct Trained {
    router: PathBuf,
    turns_trained: usize,
    turns_validated: usize,
    turns_calibrated: usize,
    weight_decay: f32,
    passes: usize,
    loss: f32,
    curve: Vec<CurvePoint>,
    /// On the turns that were left out, by source.
    held_out: Vec<Routed>,
}

impl Trained {
    fn of(router: &Router, report: &RouterFitReport, out: &Path, held_out: Vec<Routed>) -> Self {
        Self {
            router: out.to_owned(),
            turns_trained: report.trained,
            turns_validated: report.validated,
            turns_calibrated: report.calibrated,
            weight_decay: report.weight_decay,
            passes: report.passes,
            loss: report.loss,
            curve: router.curve().to_vec(),
            held_out,
        }
    }
}

impl fmt::Display for Trained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "trained on {} turns in {} passes with weight decay {}, validated on {} (loss {:.4}), calibrated on {}; written to {}",
            self.turns_trained,
            self.passes,
            self.weight_decay,
            self.turns_validated,
            self.loss,
            self.turns_calibrated,
            self.router.display()
        )?;
        writeln!(f, "on the turns that calibrate: probability required, large turns, quality kept")?;
        for CurvePoint { required, large_share, quality_kept } in &self.curve {
            writeln!(f, "  {required:.3} {:>7.1} % {:>7.1} %", large_share * 100.0, quality_kept * 100.0)?;
        }
        if !self.held_out.is_empty() {
            writeln!(f, "on the turns that were left out:")?;
        }
        self.held_out.iter().try_for_each(|routed| write!(f, "{routed}"))
    }
}

/// How good a router is.
#[derive(Serialize)]
struct Evaluation {
    sources: Vec<Routed>,
}

impl fmt::Display for Evaluation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.sources.iter().try_for_each(|routed| write!(f, "{routed}"))
    }
}
