//! Engines: the encoder, and the tiers with what stands behind them.

use std::fmt;

use turnflow_models::{BreakerState, GenerationStats, RemoteStats};
use turnflow_pipeline::TierState;

use super::Source;
use super::page::{Buckets, Page};

/// The states of a breaker, with their names.
const BREAKER: [(BreakerState, &str); 3] =
    [(BreakerState::Closed, "closed"), (BreakerState::Open, "open"), (BreakerState::HalfOpen, "half_open")];

pub(super) fn write(page: &mut Page<'_>, source: &Source) -> fmt::Result {
    let engines = source.pipeline.engines();
    let encoder = &engines.encoder;
    page.counter("encoder_texts", "Texts that were encoded", encoder.texts)?;
    page.counter("encoder_tokens", "Word pieces of these texts, without padding", encoder.tokens)?;
    page.counter("encoder_batches_failed", "Forward passes that failed", encoder.failed_batches)?;
    let batches = [([], Buckets::of_sizes(&encoder.batch_sizes, encoder.texts))];
    page.histograms("encoder_batch_texts", "Texts of a forward pass", batches)?;
    let jobs = engines.tiers.iter().flat_map(|TierState { size, tier, stats, .. }| {
        let outcomes = [("answered", stats.answered), ("failed", stats.failed), ("cancelled", stats.cancelled)];
        outcomes
            .map(|(outcome, count)| ([("size", size.as_str()), ("tier", tier.as_str()), ("outcome", outcome)], count))
    });
    page.counters("tier_jobs", "Questions that a tier was asked, those of the background included", jobs)?;
    let cut_off = engines
        .tiers
        .iter()
        .map(|TierState { size, tier, stats, .. }| ([("size", size.as_str()), ("tier", tier.as_str())], stats.cut_off));
    page.counters("tier_cut_off", "Answers that the bound on tokens cut off", cut_off)?;
    let decoders = engines.tiers.iter().filter_map(|state| Some((state.size.as_str(), state.generation?)));
    decoder(page, &decoders.collect::<Vec<_>>())?;
    let servers = engines.tiers.iter().filter_map(|state| Some((state.size.as_str(), state.remote?)));
    remote(page, &servers.collect::<Vec<_>>())
}

/// Decoders in this process.
fn decoder(page: &mut Page<'_>, decoders: &[(&'static str, GenerationStats)]) -> fmt::Result {
    let steps = decoders
        .iter()
        .map(|(size, stats)| ([("size", *size)], Buckets::of_sizes(&stats.step_sizes, stats.sequences_stepped)));
    page.histograms("decoder_step_sequences", "Sequences of a step", steps)?;
    let each = |value: fn(&GenerationStats) -> u64| {
        decoders.iter().map(move |(size, stats)| ([("size", *size)], value(stats)))
    };
    page.counters("decoder_steps_failed", "Steps that failed or took too long", each(|stats| stats.steps_failed))?;
    page.counters("decoder_tokens_read", "Tokens that the model read", each(|stats| stats.tokens_read))?;
    page.counters("decoder_tokens_written", "Tokens that were chosen", each(|stats| stats.tokens_written))?;
    page.counters("decoder_prompt_tokens", "Tokens of prompts that were admitted", each(|stats| stats.prompt_tokens))?;
    page.counters(
        "decoder_prompt_tokens_shared",
        "Those of them that did not have to be read, because another prompt had begun alike",
        each(|stats| stats.prompt_tokens_shared),
    )?;
    page.counters(
        "decoder_preemptions",
        "Sequences whose blocks were taken for others",
        each(|stats| stats.preemptions),
    )?;
    page.counters("decoder_blocks_evicted", "Kept blocks that had to make room", each(|stats| stats.blocks_evicted))?;
    page.counters("decoder_late", "Answers that were given up because they were late", each(|stats| stats.late))?;
    page.gauges("decoder_sequences", "Sequences that are being written", each(|stats| stats.sequences as u64))?;
    let blocks = decoders.iter().flat_map(|&(size, stats)| {
        let free = stats.blocks.saturating_sub(stats.blocks_held + stats.blocks_kept);
        let states = [("held", stats.blocks_held), ("kept", stats.blocks_kept), ("free", free)];
        states.map(|(state, blocks)| ([("size", size), ("state", state)], blocks))
    });
    page.gauges("decoder_blocks", "Blocks of keys and values", blocks)
}

/// Tiers behind a server.
fn remote(page: &mut Page<'_>, servers: &[(&'static str, RemoteStats)]) -> fmt::Result {
    let each =
        |value: fn(&RemoteStats) -> u64| servers.iter().map(move |(size, stats)| ([("size", *size)], value(stats)));
    page.gauges("remote_in_flight", "Questions that a server is answering", each(|stats| stats.in_flight as u64))?;
    page.gauges("remote_waiting", "Questions that wait for a server", each(|stats| stats.queued as u64))?;
    page.counters("remote_retries", "Requests that were sent again", each(|stats| stats.retries))?;
    page.counters(
        "remote_breaker_opened",
        "How often a server was left alone because it kept failing",
        each(|stats| stats.breaker_opened),
    )?;
    let states = servers.iter().flat_map(|&(size, stats)| {
        BREAKER.map(|(state, name)| ([("size", size), ("state", name)], u64::from(stats.breaker == state)))
    });
    page.gauges("remote_breaker", "1 for the state of the breaker at present", states)?;
    page.counters(
        "remote_usage_estimated",
        "Answers whose usage the server did not tell",
        each(|stats| stats.usage_estimated),
    )?;
    page.counters("remote_refused", "Answers in which the model declined to answer", each(|stats| stats.refused))
}
