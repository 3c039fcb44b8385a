//! `bench generate`: what the configured language model does on this machine, each figure beside what it is compared with.

use anyhow::Context as _;
use serde::Serialize;
use turnflow_models::{GenerationBench, GenerationLoad, GenerationRun};
use turnflow_pipeline::resident_bytes;

use super::super::Context;
use crate::cli::BenchGenerateArgs;
use crate::failure::Failure;
use crate::load::Batches;

/// Tokens of a prompt that are its own, behind the shared beginning.
const OWN_TOKENS: usize = 24;
/// Requests whose beginning is shared; the first of them finds nothing.
const SHARING: usize = 4;
const MIB: f64 = 1024.0 * 1024.0;

#[derive(Serialize)]
struct Report {
    load: GenerationLoad,
    one_at_a_time: GenerationRun,
    static_batches: GenerationRun,
    continuous: GenerationRun,
    prefix_tokens: usize,
    unshared: GenerationRun,
    shared: GenerationRun,
    weight_bytes: u64,
    kv_bytes: u64,
    /// What the process holds after all of it; None where the system does not tell.
    resident_bytes: Option<u64>,
    /// What it held before the checkpoint was opened.
    resident_bytes_before: Option<u64>,
}

pub(super) fn run(context: &Context, args: &BenchGenerateArgs) -> Result<(), Failure> {
    let mut config = context.config.tier.burn.clone();
    config.model = args.model.clone().unwrap_or(config.model);
    if config.model.as_os_str().is_empty() {
        let missing = anyhow::anyhow!("no checkpoint: tier.burn.model is empty");
        return Err(Failure::usage(missing).with_hint("name a folder with --model"));
    }
    let resident_bytes_before = resident_bytes();
    if args.requests == 0 {
        return Err(Failure::usage(anyhow::anyhow!("--requests 0: there is nothing to measure")));
    }
    let bench = GenerationBench::open(&config, &context.home()?, context.config.processor.instructions)
        .with_context(|| format!("cannot open the checkpoint {}", config.model.display()))?;
    let range = |most: usize| (most.div_ceil(8), most);
    let (prompt_tokens, answer_tokens) = (range(args.prompt_tokens_max), range(args.answer_tokens_max));
    let load = GenerationLoad { requests: args.requests, prompt_tokens, answer_tokens, seed: 1 };
    // The first run touches all memory; its figures are thrown away.
    bench.in_batches(&GenerationLoad { requests: 1, ..load }, 1)?;
    let with_prefix = |share| {
        let run = bench.with_prefix(args.prefix_tokens, OWN_TOKENS, SHARING, share);
        run.with_context(|| format!("cannot measure prompts that share {} tokens", args.prefix_tokens))
    };
    // What may not fit comes first.
    let (unshared, shared) = (with_prefix(false)?, with_prefix(true)?);
    let (weight_bytes, kv_bytes) = bench.bytes();
    let report = Report {
        one_at_a_time: bench.in_batches(&load, 1)?,
        static_batches: bench.in_batches(&load, config.engine.sequences_max)?,
        continuous: bench.continuously(&load)?,
        load,
        prefix_tokens: args.prefix_tokens,
        unshared,
        shared,
        weight_bytes,
        kv_bytes,
        resident_bytes: resident_bytes(),
        resident_bytes_before,
    };
    let text = written(&report, config.engine.sequences_max);
    context.print(&report, text)
}

fn written(report: &Report, batch: usize) -> String {
    let Report { load, one_at_a_time, static_batches, continuous, unshared, shared, .. } = report;
    let mut text = format!(
        "{} requests together, prompts of {} to {} tokens, answers of {} to {}\n",
        load.requests, load.prompt_tokens.0, load.prompt_tokens.1, load.answer_tokens.0, load.answer_tokens.1
    );
    let batches = format!("static batches of {batch}");
    for (name, run) in
        [("one at a time", one_at_a_time), (batches.as_str(), static_batches), ("continuous", continuous)]
    {
        text += &format!(
            "  {name:<22} {:>8.1} tokens/s  {:>5.2} x  {:>5.1} sequences a step  first token {:>8.0} ms median\n",
            run.answer_tokens_per_s,
            run.answer_tokens_per_s / one_at_a_time.answer_tokens_per_s,
            run.sequences_per_step,
            median(&run.first_token_ms),
        );
    }
    let steps: Vec<_> =
        Batches::of(&continuous.step_sizes).iter().map(|steps| format!("{} of {}", steps.passes, steps.size)).collect();
    text += &format!("  continuous steps by sequences: {}\n", steps.join(", "));
    // The slowest is the first, which found nothing.
    let found = shared.first_token_ms.split_last().map_or(&[][..], |(_, found)| found);
    let (without, with) = (median(&unshared.first_token_ms), median(found));
    text += &format!(
        "A shared beginning of {} tokens: first token after {without:.1} ms without sharing, {with:.1} ms with it ({:.1} x)\n",
        report.prefix_tokens,
        without / with
    );
    let bytes = |bytes: u64| bytes as f64 / MIB;
    text += &format!(
        "Memory: weights {:.0} MiB, keys and values {:.0} MiB",
        bytes(report.weight_bytes),
        bytes(report.kv_bytes)
    );
    if let (Some(now), Some(before)) = (report.resident_bytes, report.resident_bytes_before) {
        text += &format!("; resident {:.0} MiB, {:.0} MiB of it before", bytes(now), bytes(before));
    }
    text + "\n"
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
